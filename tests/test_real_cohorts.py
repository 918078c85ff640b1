"""Every real cohort at hand: opened, prepared, trained on; skipped where there is none."""

import functools
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from test_cli import walk

from ssl3d.data.layouts import open_cohort
from ssl3d.data.prepare import prepare
from ssl3d.data.store import Store
from ssl3d.downstream.finetune import finetune
from ssl3d.files import read_table
from ssl3d.networks.weights import load_encoder
from ssl3d.tasks import NAMES
from ssl3d.training.pretrain import pretrain
from ssl3d.training.runs import read_log

SMALL = (4, 8, 16)
REAL = {  # folder: how it is opened; layout, cases, masks, grades, channels
    "Task04_Hippocampus": ({}, "msd", 223, 223, {}, 1),
    "brats_mini_2mm": ({"modalities": ("t1c", "t2f")}, "brats", 8, 8, {}, 2),
    "retinamnist": ({}, "medmnist", 1600, 0, {0: 714, 1: 186, 2: 326, 3: 282, 4: 92}, 3),
    "ixi_t1_brain_2mm": (
        {"images": "{id}_T1brain.nii.gz", "masks": "{id}_tissue.nii.gz", "table": "participants.csv"},
        "pattern",
        159,
        159,
        {},
        1,
    ),
    "ixi_t1_head_2mm_10": ({"images": "{id}_T1.nii.gz", "masks": "{id}_T1_DLMUSE.nii.gz"}, "pattern", 10, 10, {}, 1),
    "idrid_grading_512/labels.csv": (
        {"columns": {"grade": "dr_grade"}},
        "csv",
        413,
        0,
        {0: 134, 1: 20, 2: 136, 3: 74, 4: 49},
        3,
    ),
    "synthseg_labelmaps_2mm": ({"images": "{id}.nii.gz"}, "pattern", 20, 0, {}, 1),
    "totalsegmentator_ct": ({}, "folder", 3, 1, {}, 1),
}


@pytest.fixture(scope="module")
def stores(real_data, tmp_path_factory):
    """The cohorts by name, and their stores, each of them prepared when it is first asked for."""
    folder = tmp_path_factory.mktemp("real")

    @functools.cache
    def opened(name):
        how, _, cases, *_ = REAL[name]
        cohort = open_cohort(real_data / name, **how)
        size = 48 if "retina" in name or "idrid" in name else 32
        test = 0.8 if cases > 20 else 0.2
        return cohort, prepare(cohort, folder / Path(name).parts[0], size=size, test=test, progress=False)

    return opened


@pytest.mark.parametrize("name", REAL)
def test_every_real_folder_opens_and_pretrains(stores, tmp_path, name):
    _, layout, cases, masks, grades, channels = REAL[name]
    cohort, store = stores(name)
    found = [c.grade for c in cohort.cases if c.grade is not None]
    assert (cohort.layout, len(cohort), sum(c.mask is not None for c in cohort.cases)) == (layout, cases, masks)
    assert {g: found.count(g) for g in set(found)} == grades
    flat = "retina" in name or "idrid" in name
    assert (len(store), store.channels, store.spatial_dims) == (cases, channels, 2 if flat else 3)
    for slices in (False, True) if "Hippocampus" in name else (False,):
        for task in NAMES:
            run = pretrain(
                task,
                store.folder,
                tmp_path / f"{task}-{slices}",
                **{"epochs": 1} if task == "rotation" else {"steps": 2},  # one of them sees every image
                batch_size=min(16, len(store.split("train"))),
                widths=SMALL,
                slices=slices,
                progress=False,
                accelerator="cpu",
            )
            assert (run / "encoder.safetensors").exists()
            assert np.isfinite(read_log(run)["loss"]).all() and load_encoder(run).channels == SMALL


def test_real_people(real_data):
    brains = open_cohort(real_data / "ixi_t1_brain_2mm", images="{id}_T1brain.nii.gz", table="participants.csv")
    known = [c for c in brains.cases if c.age is not None]
    first = brains.cases[0]
    assert len(known) == 155 and (first.id, first.age, first.sex) == ("IXI012-HH-1211", 38.78, "M")
    tumours = open_cohort(real_data / "brats_mini_2mm")
    assert len({c.subject for c in tumours.cases}) == 8 and sum(len(c.images) == 4 for c in tumours.cases) == 4
    ct = open_cohort(real_data / "totalsegmentator_ct" / "example_ct_dicom")
    assert ct.layout == "dicom" and len(ct) == 1 and ct.channels == ("CT Body 3.0",)


def test_real_copies(stores):
    _, store = stores("idrid_grading_512/labels.csv")
    people = {part: {store.cases[n]["fingerprint"] for n in store.split(part)} for part in ("train", "test")}
    assert store.copies == 5 and not people["train"] & people["test"]
    assert Store(store.folder).hash == store.hash


def test_real_hippocampus(real_data, tmp_path):
    cohort = open_cohort(real_data / "Task04_Hippocampus")
    assert len(cohort) == 223 and cohort.classes == {0: "background", 1: "Anterior", 2: "Posterior"}
    few = tmp_path / "few"
    shutil.copytree(
        real_data / "Task04_Hippocampus",
        few,
        symlinks=True,
        ignore=lambda folder, names: [n for n in names if n.startswith("hippocampus_") and n > "hippocampus_02"],
    )
    info = json.loads((few / "dataset.json").read_text())
    info["training"] = [row for row in info["training"] if (few / row["image"]).exists()]
    (few / "dataset.json").write_text(json.dumps(info))
    store = prepare(few, tmp_path / "store", size=32, progress=False)
    assert len(store) == len(info["training"]) >= 5
    assert all(set(np.unique(store.mask(n))) == {0, 1, 2} for n in store.cases)


def test_real_retina_and_heads(real_data, tmp_path):
    retina = open_cohort(real_data / "retinamnist")
    assert len(retina) == 1600 and {c.grade for c in retina.cases} == {0, 1, 2, 3, 4}
    (tmp_path / "heads.csv").write_text(
        "image\n" + "\n".join(str(f) for f in sorted((real_data / "ixi_t1_head_2mm_10").glob("*_T1.nii.gz"))[:3])
    )
    store = prepare(tmp_path / "heads.csv", tmp_path / "heads", size=32, progress=False)
    assert len(store) == 3
    top, bottom = (np.mean([store.image(n)[0, :, :, s].mean() for n in store.cases]) for s in (-2, 16))
    assert top < bottom, "superior is the end of the third axis: there is air above the head"


def test_real_retinas(stores, tmp_path):
    _, store = stores("idrid_grading_512/labels.csv")
    few = {"batch_size": 32, "progress": False}
    encoder = pretrain("rotation", store.folder, tmp_path / "rot", epochs=1, widths=SMALL, **few)
    how = {"goal": "classification", "ordinal": True, "balanced": True}
    run = finetune(store.folder, tmp_path / "run", encoder=encoder, epochs=2, **how, **few)
    rows = read_table(run / "predictions.csv")
    assert {r["grade"] for r in rows} == {0, 1, 2, 3, 4} and len(rows) == len(store.split("test"))
    assert np.isfinite(read_table(run / "scores.csv")[0]["kappa"])


def test_four_commands_on_real_hippocampi(real_data, tmp_path):
    walk(real_data / "Task04_Hippocampus", tmp_path, 32, 0.1, ("--steps", 5))


def test_a_ct_at_three_millimetres_in_crops_and_windows(real_data, tmp_path):
    """The front and the back of a real CT as two people, whole at 3 mm: pretrained, segmented, and laid over it."""
    folder = real_data / "totalsegmentator_ct"
    ct, organs = (nib.load(folder / f"{name}.nii.gz") for name in ("example_ct", "example_seg_fast_force_split"))
    (tmp_path / "in").mkdir()
    for name, rows in (("front", slice(56, None)), ("back", slice(56))):
        liver = nib.Nifti1Image((np.asarray(organs.dataobj) == 5).astype(np.uint8), organs.affine)
        for what, image in (("ct", ct), ("mask", liver)):
            part = image.slicer[:, rows]
            turn = nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, ("RAS", "LPS")))
            nib.save(part.as_reoriented(turn) if name == "front" else part, tmp_path / f"in/{name}_{what}.nii.gz")
    cohort = open_cohort(tmp_path / "in", images="{id}_ct.nii.gz", masks="{id}_mask.nii.gz")
    store = prepare(cohort, tmp_path / "store", spacing=(3, 3, 3), window=(-160, 240), test=0.5, progress=False)
    assert {store.mask(name).shape for name in store.cases} == {(122, 45, 112), (122, 56, 112)}
    how = {"patch": 32, "widths": SMALL, "progress": False}
    run = pretrain("rotation", store, tmp_path / "crops", steps=5, batch_size=1, **how)
    run = finetune(store, tmp_path / "run", encoder=run, steps=80, lr=5e-3, **how)
    (file,) = run.predict(store, tmp_path / "masks", progress=False)
    found, scan = nib.load(file), nib.load(store.cases[store.split("test")[0]]["files"][0])
    assert found.shape == scan.shape and np.array_equal(found.affine, scan.affine)
    true = np.asarray(nib.load(str(scan.get_filename()).replace("_ct.", "_mask.")).dataobj)
    marked = np.asarray(found.dataobj)
    dice = 2 * (marked & true).sum() / (marked.sum() + true.sum())
    assert marked.any() and abs(dice - run.scores[0]["dice"]) < 1e-6, "what is scored is what lies on the scan"
