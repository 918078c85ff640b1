"""The generated abdomens: what is in them, where it is, and that it is always the same."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT
from scipy import ndimage

from ssl3d.data.layouts import open_cohort
from ssl3d.data.prepare import prepare
from ssl3d.errors import InputError
from ssl3d.samples.abdomens import (
    ORGANS,
    SHAPE,
    VOXEL_MM,
    dataset_description,
    filled_by,
    grid_mm,
    paint_abdomen,
    sample_abdomen,
    sample_abdomens,
    scan,
    scan_affine,
)
from ssl3d.samples.brains import save_scan

COHORT = ROOT / "data_samples" / "Task07_Pancreas"


@pytest.fixture(scope="module")
def subject():
    """Subject 0: its scene, image and mask."""
    rng = np.random.default_rng([0, 0])
    scene = paint_abdomen(rng)
    return scene, scan(rng, scene), sample_abdomen(0)


def centre(scene, name):
    """Middle of an organ in mm to the right, front and top."""
    return grid_mm()[:, scene["organ"] == ORGANS.index(name)].mean(1)


def test_the_same_seed_gives_the_same_bytes_and_another_index_others(subject, tmp_path):
    scene, image, (again, mask) = subject
    assert np.array_equal(image, again) and image.dtype == np.int16 and mask.dtype == np.uint8
    files = [save_scan(array, scan_affine(), tmp_path / f"{k}.nii.gz") for k, array in enumerate((image, again))]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert (sample_abdomen(1)[0] != image).mean() > 0.2  # outside the body both are air
    assert (sample_abdomen(0, seed=1)[0] != image).mean() > 0.2


def test_the_tumour_lies_in_the_gland():
    for path in sorted((COHORT / "labelsTr").glob("*.nii.gz")):
        mask = np.asarray(nib.load(path).dataobj)
        assert set(np.unique(mask)) == {0, 1, 2}, path.name
        pieces, _ = ndimage.label(mask > 0, np.ones((3, 3, 3)))
        gland = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
        assert gland.sum() > 0.9 * (mask > 0).sum() and gland[mask == 2].mean() > 0.95, path.name
        shell = ndimage.binary_dilation(mask == 2) & (mask != 2)
        assert (mask[shell] == 1).mean() > 0.3, path.name
        assert (mask == 1).sum() > 200 and (mask == 2).sum() >= 8, path.name


@pytest.mark.parametrize(
    "organ, low, high",
    [
        ("fat", -110, -85),
        ("muscle", 45, 65),
        ("bone", 150, 500),
        ("lung", -900, -750),
        ("liver", 70, 130),
        ("spleen", 95, 140),
        ("kidney", 140, 205),
        ("aorta", 115, 175),
        ("vein", 115, 175),
        ("pancreas", 75, 115),
        ("tumour", 30, 70),
    ],
)
def test_hounsfield_units(subject, organ, low, high):
    scene, image, _ = subject
    assert low < image[filled_by(scene["organ"], (organ,)) > 0.99].mean() < high


def test_air_is_around_the_body_and_bone_is_the_brightest(subject):
    scene, image, _ = subject
    assert image.min() == -1000 and (image[:, -1] == -1000).all()
    assert (filled_by(scene["organ"], ("bone",))[image > 350] > 0).all()


def test_organs_lie_where_they_should(subject):
    scene = subject[0]
    place = {name: centre(scene, name) for name in ("liver", "spleen", "stomach", "kidney", "bone", "lung", "pancreas")}
    assert place["liver"][0] > 30 and place["spleen"][0] < -50 and place["stomach"][0] < -10  # R is positive
    assert place["bone"][1] < place["kidney"][1] < place["pancreas"][1] < place["stomach"][1]  # from back to front
    assert place["kidney"][2] < place["liver"][2] < place["lung"][2]  # from bottom to top


def test_volumes(subject):
    ml = {name: filled_by(subject[0]["organ"], (name,)).sum() * VOXEL_MM**3 / 1000 for name in ORGANS}
    assert 900 < ml["liver"] < 2200 and 100 < ml["spleen"] < 400
    assert 150 < ml["kidney"] < 500 and 40 < ml["pancreas"] < 140
    assert ml["liver"] > 4 * ml["spleen"] > 4 * ml["pancreas"] > 4 * ml["tumour"]


def test_organs_end_along_the_body(subject):
    for name in ("kidney", "spleen", "pancreas"):
        levels = (subject[0]["organ"] == ORGANS.index(name)).sum((0, 1))
        assert levels[0] == levels[-1] == 0 and np.abs(np.diff(levels)).max() < 0.35 * levels.max(), name


def test_the_shipped_cohort_is_what_the_generator_makes(subject):
    _, image, (_, mask) = subject
    shipped = [nib.load(COHORT / part / "pancreas_001.nii.gz") for part in ("imagesTr", "labelsTr")]
    assert (np.abs(np.asarray(shipped[0].dataobj).astype(int) - image) <= 3).mean() > 0.999
    assert (np.asarray(shipped[1].dataobj) == mask).mean() > 0.999
    for file in shipped:
        assert file.shape == SHAPE and np.allclose(file.affine, scan_affine())
        assert nib.aff2axcodes(file.affine) == ("R", "A", "S") and np.allclose(file.header.get_zooms(), VOXEL_MM)
    assert shipped[0].get_data_dtype() == np.int16


def test_the_shipped_cohort_says_what_it_is():
    table = json.loads((COHORT / "dataset.json").read_text(encoding="utf-8"))
    assert table == dataset_description(32) and table["modality"] == {"0": "CT"}
    assert "NO PATIENT WAS SCANNED" in (COHORT / "NOTICE.txt").read_text(encoding="utf-8")
    assert sum(p.stat().st_size for p in COHORT.rglob("*") if p.is_file()) < 5e6


def test_sizes_and_places_of_the_tumours_vary():
    masks = [np.asarray(nib.load(path).dataobj) for path in sorted((COHORT / "labelsTr").glob("*.nii.gz"))]
    sizes = np.array([(mask == 2).sum() for mask in masks])
    sides = np.array([np.argwhere(mask == 2)[:, 0].mean() for mask in masks])
    assert len(masks) == 32 and np.percentile(sizes, 90) > 8 * np.percentile(sizes, 10)
    assert (sides > SHAPE[0] / 2 + 3).sum() >= 5 and (sides < SHAPE[0] / 2 - 5).sum() >= 5


def test_the_cohort_can_be_opened_and_prepared(tmp_path):
    cohort = open_cohort(COHORT)
    assert cohort.layout == "msd" and len(cohort) == 32 and len(cohort.channels) == 1 and len(cohort.classes) == 3
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / "two" / part).mkdir(parents=True)
        for name in ("pancreas_001.nii.gz", "pancreas_002.nii.gz"):
            shutil.copy(COHORT / part / name, tmp_path / "two" / part / name)
    (tmp_path / "two" / "dataset.json").write_text(json.dumps(dataset_description(2)))
    store = prepare(tmp_path / "two", tmp_path / "store", size=16, percentiles=(0.5, 99.5), progress=False)
    name = store.split("train")[0]
    assert store.channels == 1 and set(np.unique(store.mask(name))) <= {0, 1, 2} and (store.mask(name) > 0).any()


def test_an_empty_cohort_is_refused(tmp_path):
    with pytest.raises(InputError, match="one subject"):
        sample_abdomens(tmp_path / "none", n=0)
    assert not (tmp_path / "none").exists()
