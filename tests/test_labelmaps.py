"""Masks among scans: told by their voxels, their grid and their names, in folders of many kinds."""

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import write_nifti
from PIL import Image
from scipy.ndimage import gaussian_filter

from ssl3d.data.labelmaps import LABELS, SCAN, UNSURE, look_at, looks_like, measures
from ssl3d.data.layouts import open_cohort
from ssl3d.errors import InputError

pytestmark = pytest.mark.quick
SHAPE, AFFINE = (20, 24, 16), np.diag([2.0, 2.0, 3.0, 1.0])


def a_scan(seed: int, shape=SHAPE) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 300, shape)
    image[4:-4, 5:-5, 3:-3] += 500
    return image.astype(np.int16)


def a_mask(*codes: int, shape=SHAPE) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    for i, code in enumerate(codes or (1,)):
        mask[5 + 2 * i : 9 + 2 * i, 8:14, 6:10] = code
    return mask


def put(folder: Path, name: str, array: np.ndarray, affine=AFFINE) -> Path:
    file = folder / (name if "." in Path(name).name else f"{name}.nii.gz")
    file.parent.mkdir(parents=True, exist_ok=True)
    return write_nifti(file, array, affine)


LAYOUTS = {  # scan, masks, layout, how many of 3 cases have a mask
    "TotalSegmentator": ("s{i:04d}/ct", ["s{i:04d}/segmentations/liver", "s{i:04d}/segmentations/spleen"], 0),
    "LiTS": ("volume-{i}.nii", ["segmentation-{i}.nii"], 3),
    "ACDC": ("patient{i:03d}/patient{i:03d}_frame01", ["patient{i:03d}/patient{i:03d}_frame01_gt"], 3),
    "FLARE": ("images/T_{i:04d}_0000", ["labels/T_{i:04d}"], 3),
    "BTCV": ("img/img{i:04d}", ["label/label{i:04d}"], 3),
    "BraTS-MEN-RT": ("BraTS-MEN-RT-{i:04d}-1/BraTS-MEN-RT-{i:04d}-1_t1c",
                     ["BraTS-MEN-RT-{i:04d}-1/BraTS-MEN-RT-{i:04d}-1_gtv"], 3),
    "KiTS": ("case_{i:05d}/imaging", ["case_{i:05d}/segmentation"], 3),
    "SegTHOR": ("Patient_{i:02d}/Patient_{i:02d}", ["Patient_{i:02d}/GT"], 3),
    "no name says it": ("{i:03d}/a", ["{i:03d}/b"], 3),
    "same names in two folders": ("imagesTr/p{i}", ["labelsTr/p{i}"], 3),
    "two kinds of masks": ("p{i}_T1", ["p{i}_tissue", "p{i}_lesion"], 0),
    "people by name": ("{n}/t1", ["{n}/roi"], 3),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_masks_are_no_scans(tmp_path, name):
    scan, masks, having = LAYOUTS[name]
    for i, person in enumerate(("anna", "bert", "carl")):
        put(tmp_path, scan.format(i=i, n=person), a_scan(i))
        for k, each in enumerate(masks):
            put(tmp_path, each.format(i=i, n=person), a_mask(k + 1))
    cohort = open_cohort(tmp_path)
    assert len(cohort) == 3 and sum(case.mask is not None for case in cohort.cases) == having
    for i, case in enumerate(cohort.cases):
        if case.mask:
            assert case.images[0].name in scan.format(i=i, n=("anna", "bert", "carl")[i]) + ".nii.gz"
            assert case.mask == tmp_path / (masks[0].format(i=i, n=("anna", "bert", "carl")[i]) + (
                "" if masks[0].endswith(".nii") else ".nii.gz"))
    seen = re.search(r"files: +(\d+) seen, (\d+) used, (\d+) left out", str(cohort))
    assert [int(n) for n in seen.groups()] == [3 + 3 * len(masks), 3 + having, 3 * len(masks) - having]


def test_what_was_decided_is_told_with_the_patterns_that_say_the_same(tmp_path):
    for i in range(3):
        put(tmp_path, f"P{i}/P{i}_t1", a_scan(i)), put(tmp_path, f"P{i}/P{i}_vs", a_mask())
    text = str(open_cohort(tmp_path))
    assert "3 files look like label maps of 3 scans, and are taken as their masks" in text
    images, masks = re.search("--images '(.*?)' --masks '(.*?)'", text).groups()
    same = open_cohort(tmp_path, images=images, masks=masks)
    assert [case.mask for case in same.cases] == [case.mask for case in open_cohort(tmp_path).cases]
    for i in range(3):
        put(tmp_path, f"P{i}/P{i}_other", a_mask(2))
    text = str(open_cohort(tmp_path))
    assert "6 files look like label maps of 3 scans, of 2 kinds; none is used. To choose: --images" in text


@pytest.mark.parametrize("kind", ["png", "npy", "nii", "float", "255", "off by a millionth"])
def test_masks_in_other_formats(tmp_path, kind):
    for i in range(3):
        scan, mask = a_scan(i), a_mask()
        if kind == "png":
            Image.fromarray((scan[:, :, 8] // 4).astype(np.uint8)).save(tmp_path / f"eye{i}.png")
            Image.fromarray(mask[:, :, 8] * 255).save(tmp_path / f"eye{i}_vessels.png")
        elif kind == "npy":
            np.save(tmp_path / f"eye{i}.npy", scan), np.save(tmp_path / f"eye{i}_vessels.npy", mask)
        else:
            mask = mask.astype(float) * {"255": 255, "off by a millionth": 1.000001}.get(kind, 1)
            ending = ".nii" if kind == "nii" else ".nii.gz"
            put(tmp_path, f"eye{i}{ending}", scan), put(tmp_path, f"eye{i}_vessels{ending}", mask.astype(np.float32))
    cohort = open_cohort(tmp_path)
    assert len(cohort) == 3 and all(case.mask and "vessels" in case.mask.name for case in cohort.cases)


def test_a_mask_stored_from_the_other_side_lies_on_its_scan(tmp_path):
    turned = AFFINE.copy()
    turned[0, 0], turned[0, 3] = -2, 2 * (SHAPE[0] - 1)
    for i in range(2):
        put(tmp_path, f"p{i}", a_scan(i)), put(tmp_path, f"p{i}_x", a_mask(), turned)
    assert all(case.mask for case in open_cohort(tmp_path).cases)


def test_a_probability_map_or_a_scan_of_few_greys_is_refused_beside_a_scan(tmp_path):
    for i in range(3):
        put(tmp_path, f"p{i}", a_scan(i))
        put(tmp_path, f"p{i}_gm", gaussian_filter(a_mask().astype(np.float32), 1))
    with pytest.raises(InputError, match="p0_gm.nii.gz: may be a mask or a probability map of p0.nii.gz.*--images"):
        open_cohort(tmp_path)
    cohort = open_cohort(tmp_path, images="{id}_gm.nii.gz")
    assert len(cohort) == 3, "the user says that these are the images"


def test_one_hot_masks_are_neither_scans_nor_masks(tmp_path):
    hot = np.stack([a_mask() == k for k in range(3)], axis=-1).astype(np.uint8)
    for i in range(3):
        put(tmp_path, f"p{i}", a_scan(i)), put(tmp_path, f"p{i}_hot", hot)
    cohort = open_cohort(tmp_path)
    assert len(cohort) == 3 and not any(case.mask for case in cohort.cases)
    assert "3 files look like label maps of 3 scans" in str(cohort)


def test_scans_that_nothing_contradicts_are_scans(tmp_path):
    for i in range(3):
        put(tmp_path / "normalised", f"p{i}", a_scan(i) / np.float32(1000))
        put(tmp_path / "registered", f"p{i}_t1", a_scan(i)), put(tmp_path / "registered", f"p{i}_t2", a_scan(i + 9))
        put(tmp_path / "coarse", f"p{i}", a_scan(i) // 60)
        put(tmp_path / "ct", f"p{i}", a_scan(i) - 1024)
    for name, n in {"normalised": 3, "registered": 6, "coarse": 3, "ct": 3}.items():
        assert len(open_cohort(tmp_path / name)) == n and "label map" not in str(open_cohort(tmp_path / name))


def test_a_folder_of_label_maps_alone_is_refused_and_a_pattern_opens_it(tmp_path):
    for i in range(3):
        put(tmp_path, f"maps/training_{i}", a_mask(1, 2))
    with pytest.raises(InputError, match=r"all 3 files look like label maps.*--images '\*\*/{id}.nii.gz'"):
        open_cohort(tmp_path)
    assert len(open_cohort(tmp_path, images="**/{id}.nii.gz")) == 3


def test_a_label_map_without_a_scan_is_left_out_by_name(tmp_path):
    for i in range(3):
        put(tmp_path, f"p{i}", a_scan(i))
    put(tmp_path, "p7_seg", a_mask()), put(tmp_path, "atlas", a_mask(shape=(9, 9, 9)))
    cohort = open_cohort(tmp_path)
    assert len(cohort) == 3 and not any(case.mask for case in cohort.cases)
    assert "and no scan to belong to: atlas.nii.gz, p7_seg.nii.gz; left out" in str(cohort)


def test_a_pattern_or_a_table_that_names_masks_as_images_is_refused(tmp_path):
    for i in range(3):
        put(tmp_path, f"p{i}", a_scan(i)), put(tmp_path, f"p{i}_lesion", a_mask())
    with pytest.raises(InputError, match="p0_lesion.nii.gz: looks like a label map of p0.nii.gz.*--masks"):
        open_cohort(tmp_path, images="{id}.nii.gz")
    (tmp_path / "t.csv").write_text("image\n" + "".join(f"p{i}.nii.gz\np{i}_lesion.nii.gz\n" for i in range(3)))
    with pytest.raises(InputError, match="p0_lesion.nii.gz: looks like a label map.*column 'mask'"):
        open_cohort(tmp_path / "t.csv")
    assert len(open_cohort(tmp_path, images="{id}.nii.gz", masks="{id}_lesion.nii.gz")) == 3


def test_a_large_folder_is_not_read_whole(tmp_path, monkeypatch):
    import ssl3d.data.voxels as module

    for i in range(30):
        put(tmp_path, f"p{i:02d}", a_scan(i)), put(tmp_path, f"p{i:02d}_x", a_mask())
    read, true = [], module.read_voxels
    monkeypatch.setattr(module, "read_voxels", lambda path: read.append(path.name) or true(path))
    assert len(open_cohort(tmp_path)) == 30
    assert sum("_x" not in name for name in read) == 3, "three scans are read, the others' headers"


def test_masks_that_pack_badly_are_masks_all_the_same(tmp_path):
    """Small or busy masks need as many bytes as scans; three of a naming were looked at, so all are."""
    for i in range(6):
        noise = gaussian_filter(np.random.default_rng(i).normal(size=(128, 128)), 1.2)
        vessels = ((noise > 0.05) * 255).astype(np.uint8)
        photo = np.random.default_rng(i).integers(0, 255, (128, 128, 3), dtype=np.uint8)
        for part, image in (("images", photo), ("masks", np.stack([vessels] * 3, -1))):
            (tmp_path / part).mkdir(exist_ok=True)
            Image.fromarray(image).save(tmp_path / part / f"p{i}.png")
    cohort = open_cohort(tmp_path)
    assert len(cohort) == 6 and all(case.mask for case in cohort.cases)


@pytest.mark.parametrize("scans, masks, pairs", [
    ("P5/visit1/T1 P5/visit2/T1 P6/visit2/T1 P7/visit1/T1", "P5/visit1/lesion P5/visit2/lesion P6/visit1/lesion", 2),
    ("siteA/P2/T1 siteB/P3/T1 siteB/P4/T1 siteC/P5/T1", "siteA/P1/lesion siteB/P3/lesion siteB/P4/lesion", 2),
    ("P01_20200101 P02_20200101", "P03_20200101_seg", 0),
    ("1_2 3_4", "2_1_seg", 0),
    ("anna bert", "carl_seg", 0),
])  # fmt: skip
def test_a_mask_of_somebody_else_is_nobodys(tmp_path, scans, masks, pairs):
    for i, name in enumerate(scans.split()):
        put(tmp_path, name, a_scan(i))
    for name in masks.split():
        put(tmp_path, name, a_mask())
    cohort = open_cohort(tmp_path)
    having = [case for case in cohort.cases if case.mask]
    assert len(cohort) == len(scans.split()) and len(having) == pairs
    assert all(case.mask.parent == case.images[0].parent for case in having)
    assert "no scan to belong to" in str(cohort)


@pytest.mark.parametrize("kind", ["halves", "blurred classes"])
def test_codes_that_are_no_whole_numbers_are_a_mask(tmp_path, kind):
    for i in range(3):
        mask = a_mask(1, 2, 3).astype(np.float32)
        put(tmp_path, f"p{i}", a_scan(i))
        put(tmp_path, f"p{i}_x", mask / 2 if kind == "halves" else np.where(mask == 1, mask + 0.25, mask))
    assert len(open_cohort(tmp_path)) == 3


def test_a_mask_under_an_unknown_suffix_of_bids_is_no_channel(tmp_path):
    for i in range(3):
        put(tmp_path, f"sub-0{i}/anat/sub-0{i}_T1w", a_scan(i))
        put(tmp_path, f"sub-0{i}/anat/sub-0{i}_lesionmask", a_mask())
    cohort = open_cohort(tmp_path)
    assert cohort.channels == ("T1w",) and all(case.mask for case in cohort.cases)


def test_the_mask_of_another_run_is_not_taken(tmp_path):
    for i in range(3):
        for scan in ("run-1_T1w", "run-2_T1w", "T2w"):
            put(tmp_path, f"sub-0{i}/anat/sub-0{i}_{scan}", a_scan(i))
        put(tmp_path, f"derivatives/x/sub-0{i}/anat/sub-0{i}_run-2_dseg", a_mask())
    cohort = open_cohort(tmp_path)
    assert len(cohort) == 3 and not any(case.mask for case in cohort.cases)
    assert "3 masks that fit no scan" in str(cohort)


def levels(image: np.ndarray, n: int) -> np.ndarray:
    low, high = np.percentile(image, (0.5, 99.5))
    return np.clip(np.floor((image - low) / (high - low) * n), 0, n - 1)


def test_the_rule_on_every_real_folder(real_data):
    """False alarms and misses over the real scans: none."""
    from ssl3d.data.formats import files_below, is_scan_name

    wrong = []
    for file in [file for file in files_below(real_data, []) if is_scan_name(file)][::9]:
        mask = re.search(r"labelsTr|_tissue|_regions|DLMUSE|[-_]seg|training_seg", file.as_posix()) is not None
        look = look_at(file)
        if look.kind != (LABELS if mask else SCAN):
            wrong.append((file.name, look.kind))
    assert not wrong


def test_the_rule_on_scans_as_people_change_them(real_data):
    import nibabel as nib

    brain = np.asarray(nib.load(next(real_data.glob("ixi_t1_head_2mm_10/*_T1.nii.gz"))).dataobj)
    for n in (3000, 256, 64, 32, 16):
        assert looks_like(measures(levels(brain, n))) == SCAN, f"{n} levels"
    assert looks_like(measures(levels(brain, 8))) == UNSURE and looks_like(measures(levels(brain, 2))) == LABELS
    assert looks_like(measures(brain / brain.max())) == UNSURE, "in [0, 1], as probabilities are"


def test_a_scan_with_a_hot_voxel_is_a_scan(tmp_path):
    """Metal, or a fault of the reconstruction, may be a hundred times as bright as all the rest."""
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for i in range(6):
        values = rng.normal(100, 20, (16, 16, 16)).clip(1)
        values.flat[: i % 3] = 20000
        write_nifti(tmp_path / f"in/s{i}.nii.gz", values.astype(np.float32))
    assert len(open_cohort(tmp_path / "in")) == 6


def test_one_mask_of_one_scan_is_told_in_the_singular(tmp_path):
    put(tmp_path, "P0/P0_t1", a_scan(0)), put(tmp_path, "P0/P0_vs", a_mask())
    assert "1 file looks like a label map of 1 scan, and is taken as its mask; to say" in str(open_cohort(tmp_path))
