"""Folders as people have them: public layouts, patterns, tables, and every real cohort at hand."""

import json
import tarfile
import threading
import time
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from conftest import write_nifti
from filelock import FileLock
from PIL import Image
from test_dicom import write as write_series

from ssl3d.data import prepare as prepare_module
from ssl3d.data.layouts import download_msd, open_cohort
from ssl3d.data.prepare import forecast, prepare
from ssl3d.data.scans import fingerprint, read_scan, resize, scale, survey
from ssl3d.data.splits import label_subset, merge_copies, split_subjects
from ssl3d.data.store import Store, read_split, write_split
from ssl3d.errors import InputError
from ssl3d.tasks import NAMES
from ssl3d.training.pretrain import pretrain

RNG = np.random.default_rng(0)


def volumes(folder, *names, mask=(), codes=(0, 1, 2)):
    """Volumes under these names, and masks with these codes."""
    for name in (*names, *mask):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        write_nifti(folder / f"{name}.nii.gz", RNG.random((8, 9, 10)))
    for name in mask:
        write_nifti(folder / f"{name}.nii.gz", RNG.choice(codes, (8, 9, 10)).astype(np.uint8))
    return folder


def brats(folder, name, sep, parts, codes=(0, 1, 2, 3)):
    volumes(folder, *[f"{name}/{name}{sep}{p}" for p in parts], mask=[f"{name}/{name}{sep}seg"], codes=codes)


OLD, NEW = ("t1", "t1ce", "t2", "flair"), ("t1n", "t1c", "t2w", "t2f")


def test_brats_of_all_years(tmp_path):
    brats(tmp_path / "HGG", "Brats18_2013_2_1", "_", OLD, codes=(0, 1, 2, 4))
    brats(tmp_path / "HGG", "Brats18_2013_2_2", "_", OLD, codes=(0, 1, 2, 4))
    brats(tmp_path, "BraTS2021_00006", "_", OLD, codes=(0, 1, 2, 4))
    brats(tmp_path, "BraTS-GLI-00000-000", "-", NEW)
    brats(tmp_path, "BraTS-GLI-00000-001", "-", NEW)
    cohort = open_cohort(tmp_path)
    assert cohort.layout == "brats" and cohort.channels == ("t1n", "t1c", "t2w", "t2f") and len(cohort) == 5
    assert sorted({c.subject for c in cohort.cases}) == ["BraTS-GLI-00000", "BraTS2021_00006", "Brats18_2013_2"]
    assert all([f.name.split(".")[0][-2:] for f in c.images][2] in ("t2", "2w") for c in cohort.cases)
    store = prepare(cohort, tmp_path.parent / f"{tmp_path.name}-store", size=8, progress=False)
    assert store.channels == 4 and all(case["classes"] == [0, 1, 2, 3] for case in store.cases.values())


def test_codes_that_contradict_each_other(tmp_path):
    brats(tmp_path / "in", "BraTS2021_00006", "_", OLD, codes=(0, 1, 2, 3, 4))
    brats(tmp_path / "in", "BraTS2021_00007", "_", OLD, codes=(0, 1, 2, 4))
    with pytest.raises(InputError, match="BraTS2021_00006_seg.*stands for 3, and 3 itself"):
        prepare(tmp_path / "in", tmp_path / "out", size=8, progress=False)


def test_modalities_are_chosen_in_order(tmp_path):
    brats(tmp_path / "in", "BraTS-GLI-00001-000", "-", NEW)
    brats(tmp_path / "in", "BraTS-GLI-00002-000", "-", NEW[:2])
    brats(tmp_path / "in", "BraTS-GLI-00003-000", "-", NEW)
    assert "t2w (2 cases)" in str(open_cohort(tmp_path / "in"))
    with pytest.raises(InputError, match="00002-000.*no t2w, t2f"):
        prepare(tmp_path / "in", tmp_path / "all", size=8, progress=False)
    skipped = prepare(tmp_path / "in", tmp_path / "all", size=8, on_error="skip", progress=False)
    assert len(skipped) == 2 and skipped.channels == 4 and "00002-000" in skipped.left_out[0]["problem"]
    for order in (("t1c", "t1n"), ("t1n", "t1c")):
        pair = open_cohort(tmp_path / "in", modalities=order)
        store = prepare(pair, tmp_path / order[0], size=8, progress=False)
        assert len(store) == 3 and store.channel_names == list(order)
        first = store.cases["BraTS-GLI-00001-000"]["files"]
        assert [f.split("-")[-1] for f in first] == [f"{m}.nii.gz" for m in order]
        for channel, file in enumerate(first):
            assert np.allclose(
                store.image("BraTS-GLI-00001-000")[channel], scale(resize(read_scan(file), (8,) * 3))[0], atol=1e-3
            )
    with pytest.raises(InputError, match="no separate files for 'dwi'"):
        open_cohort(tmp_path / "in", modalities=("dwi",))


def test_uk_biobank(tmp_path):
    for eid in ("1000015", "1000027"):
        volumes(
            tmp_path,
            f"{eid}_20252_2_0/T1/T1",
            f"{eid}_20252_2_0/T1/T1_brain",
            f"{eid}_20253_2_0/T2_FLAIR/T2_FLAIR_brain",
            mask=[f"{eid}_20252_2_0/T1/T1_fast/T1_brain_seg"],
            codes=(0, 1, 2, 3),
        )
    volumes(tmp_path, "1000015_20252_3_0/T1/T1_brain", "1000015_20253_3_0/T2_FLAIR/T2_FLAIR_brain")
    cohort = open_cohort(tmp_path)
    assert cohort.layout == "ukb" and [c.id for c in cohort.cases] == ["1000015-2", "1000015-3", "1000027-2"]
    assert cohort.cases[0].subject == cohort.cases[1].subject != cohort.cases[2].subject
    assert all(f.name.endswith("_brain.nii.gz") for c in cohort.cases for f in c.images)
    assert prepare(cohort, tmp_path.parent / f"{tmp_path.name}-store", size=8, progress=False).channels == 2


def test_ixi_with_its_table(tmp_path):
    volumes(tmp_path, "IXI-T1/IXI002-Guys-0828-T1", "IXI-T1/IXI012-HH-1211-T1", "IXI-T2/IXI012-HH-1211-T2")
    (tmp_path / "IXI.csv").write_text('IXI_ID,"SEX_ID (1=m, 2=f)",HEIGHT,AGE\n2,2,164,35.8\n12,1,175,38.78\n')
    cohort = open_cohort(tmp_path, modalities=("T1",))
    assert cohort.layout == "ixi" and len(cohort) == 2
    assert [(c.id, c.subject, c.sex, c.age) for c in cohort.cases] == [
        ("IXI002-Guys-0828", "IXI002", "F", 35.8),
        ("IXI012-HH-1211", "IXI012", "M", 38.78),
    ]


def test_bids_with_sessions_runs_and_derivatives(tmp_path):
    volumes(
        tmp_path,
        "sub-01/ses-a/anat/sub-01_ses-a_T1w",
        "sub-01/ses-b/anat/sub-01_ses-b_T1w",
        "sub-02/anat/sub-02_run-1_T1w",
        "sub-02/anat/sub-02_run-2_T1w",
        "sub-02/func/sub-02_task-rest_bold",
        "derivatives/prep/sub-02/anat/sub-02_run-1_desc-preproc_T1w",
        mask=[
            "derivatives/prep/sub-01/ses-a/anat/sub-01_ses-a_space-MNI_dseg",
            "derivatives/prep/sub-01/ses-a/anat/sub-01_ses-a_desc-brain_mask",
            "derivatives/hand/sub-01/ses-a/anat/sub-01_ses-a_label-lesion_mask",
            "derivatives/hand/sub-01/ses-b/anat/sub-01_ses-b_label-lesion_mask",
        ],
    )
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t33\tM\nsub-02\tn/a\tF\n")
    cohort = open_cohort(tmp_path)
    assert cohort.layout == "bids" and cohort.channels == ("T1w",)
    assert [c.id for c in cohort.cases] == ["sub-01_ses-a", "sub-01_ses-b", "sub-02_run-1", "sub-02_run-2"]
    assert [c.mask and c.mask.parts[-5 if "ses" in c.id else -4] for c in cohort.cases] == ["hand", "hand", None, None]
    assert [(c.age, c.sex) for c in cohort.cases] == [(33, "M"), (33, "M"), (None, "F"), (None, "F")]


def photographs(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(RNG.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(folder / name)


def test_aptos_and_idrid(tmp_path):
    photographs(tmp_path / "aptos/train_images", "000c1434d8d7.png", "001639a390f0.png", "0024cdab0c1e.png")
    photographs(tmp_path / "aptos/test_images", "0005cfc8afb6.png")
    (tmp_path / "aptos/train.csv").write_text("id_code,diagnosis\n000c1434d8d7,2\n001639a390f0,4\n0024cdab0c1e,1\n")
    (tmp_path / "aptos/test.csv").write_text("id_code\n0005cfc8afb6\n")
    cohort = open_cohort(tmp_path / "aptos")
    assert cohort.layout == "aptos" and [c.grade for c in cohort.cases] == [None, 2, 4, 1]
    grading = tmp_path / "B. Disease Grading"
    for part, letter, grade in (("Training", "a", 3), ("Testing", "b", 0)):
        photographs(grading / "1. Original Images" / f"{letter}. {part} Set", "IDRiD_001.jpg", "IDRiD_002.jpg")
        table = grading / "2. Groundtruths" / f"{letter}. IDRiD_Disease Grading_{part} Labels.csv"
        table.parent.mkdir(exist_ok=True)
        table.write_text(
            f"Image name,Retinopathy grade,Risk of macular edema ,,\nIDRiD_001,{grade},2,,\n"
            f"IDRiD_002,{grade},0,,\n,,,,\n"
        )
    for place in (grading, tmp_path):
        cohort = open_cohort(place, "idrid")
        assert [(c.id, c.grade) for c in cohort.cases] == [
            ("test-IDRiD_001", 0),
            ("test-IDRiD_002", 0),
            ("train-IDRiD_001", 3),
            ("train-IDRiD_002", 3),
        ]
    (tmp_path / "aptos/train.csv").write_text("id_code,diagnosis\nffffffffffff,2\n000c1434d8d7,2\n")
    with pytest.raises(InputError, match="ffffffffffff.*no such file"):
        open_cohort(tmp_path / "aptos")


def test_patterns_and_a_table(tmp_path):
    for person in ("anna", "bert"):
        for visit in "12":
            volumes(tmp_path, f"{person}_{visit}_T1", mask=[f"seg/{person}_{visit}"])
    (tmp_path / "people.tsv").write_text("name\tage\tgender\tgrade\nanna\t61\tfemale\t2\nbert\t47\tmale\t0\n")
    cohort = open_cohort(
        tmp_path, images="{subject}_{session}_T1.nii*", masks="seg/{subject}_{session}.nii*", table="people.tsv"
    )
    assert [(c.id, c.subject, c.grade, c.age, c.sex) for c in cohort.cases] == [
        ("anna-1", "anna", 2, 61, "F"),
        ("anna-2", "anna", 2, 61, "F"),
        ("bert-1", "bert", 0, 47, "M"),
        ("bert-2", "bert", 0, 47, "M"),
    ]
    assert all(c.mask for c in cohort.cases)
    (tmp_path / "others.csv").write_text("name,age\ncarl,3\n")
    for wrong, said in (
        (dict(images="T1.nii"), "names a case"),
        (dict(images="{name}.nii"), "not known"),
        (dict(images="x/{id}.nii"), "no file for images"),
        (dict(masks="{id}.nii"), "images"),
        (dict(images="{id}_T1.nii.gz", masks="{id}_seg.nii.gz"), "no file for masks"),
        (dict(images="{subject}_*.nii.gz"), "fits"),
        (dict(layout="nifti"), "not a layout"),
        (dict(images="{id}_T1.nii.gz", table="others.csv"), "no column with the ids"),
        (dict(images="{id}_T1.nii.gz", table="none.csv"), "none.csv"),
        (dict(on_error="go"), "on_error"),
    ):
        with pytest.raises(InputError, match=said):
            open_cohort(tmp_path, **wrong)


def test_a_csv_with_columns_of_other_names_and_several_modalities(tmp_path):
    volumes(tmp_path, "a/t1", "a/flair", "b/t1", "b/flair")
    (tmp_path / "t.csv").write_text(
        "image_t1,image_flair,dr_grade,Person\na/t1.nii.gz,a/flair.nii.gz,3,A\nb/t1.nii.gz,b/flair.nii.gz,,B\n"
    )
    cohort = open_cohort(tmp_path / "t.csv", columns={"grade": "dr_grade", "subject": "person"})
    assert cohort.channels == ("t1", "flair")
    assert [(c.id, c.grade, c.subject, len(c.images)) for c in cohort.cases] == [
        ("a-t1", 3, "A", 2),
        ("b-t1", None, "B", 2),
    ]
    with pytest.raises(InputError, match="'points' for 'grade'.*dr_grade"):
        open_cohort(tmp_path / "t.csv", columns={"grade": "points"})


def test_a_decathlon_task_is_fetched(tmp_path, monkeypatch):
    from monai.apps import DecathlonDataset

    task = volumes(tmp_path / "Task04_Hippocampus", "imagesTr/a", "imagesTr/b", mask=["labelsTr/a", "labelsTr/b"])
    pairs = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in "ab"]
    (task / "dataset.json").write_text(json.dumps({"training": pairs}))
    with tarfile.open(tmp_path / "Task04_Hippocampus.tar", "w") as tar:
        tar.add(task, "Task04_Hippocampus")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setitem(DecathlonDataset.resource, task.name, f"{here}/Task04_Hippocampus.tar")
    monkeypatch.setitem(DecathlonDataset.md5, task.name, None)
    assert len(open_cohort(download_msd(task.name, tmp_path / "here", progress=False))) == 2
    with pytest.raises(InputError, match="no task of the Decathlon"):
        download_msd("Task99", tmp_path)
    monkeypatch.setitem(DecathlonDataset.resource, task.name, f"{here}/gone.tar")
    with pytest.raises(InputError, match="Is there a network"):
        download_msd(task.name, tmp_path / "there", progress=False)
    server.shutdown()


@pytest.mark.parametrize("seed", range(5))
def test_each_side_and_each_subset_has_its_share_of_the_grades(seed):
    grades = [0] * 50 + [1] * 30 + [2] * 15 + [3] * 5
    people = [f"p{i:03d}" for i in range(100)]
    for test in (0.1, 0.2, 0.5):
        chosen = set(split_subjects(people, test, seed, grades)["test"])
        assert len(chosen) == round(100 * test)
        for grade in range(4):
            share = sum(g == grade and p in chosen for p, g in zip(people, grades))
            assert abs(share - test * grades.count(grade)) <= 1
    cases = dict(zip(people, people))
    subsets = [label_subset(cases, f, seed, dict(zip(people, grades))) for f in (0.05, 0.1, 0.25, 0.5, 1)]
    assert all(set(a) < set(b) for a, b in zip(subsets, subsets[1:])) and [len(s) for s in subsets] == [
        5,
        10,
        25,
        50,
        100,
    ]
    assert all(abs(sum(grades[people.index(p)] == 1 for p in s) - 0.3 * len(s)) <= 1 for s in subsets)


def test_a_split_is_written_with_a_hash(tmp_path):
    write_split(tmp_path / "split.json", {"train": ["a", "b"], "test": ["c"]}, seed=3)
    assert read_split(tmp_path / "split.json") == {"train": ["a", "b"], "test": ["c"]}
    changed = json.loads((tmp_path / "split.json").read_text()) | {"test": []}
    (tmp_path / "split.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match="split.json.*hash"):
        read_split(tmp_path / "split.json")


def test_copies_count_as_one_person(tmp_path):
    volumes(tmp_path / "in", *"abcdef")
    (tmp_path / "in/g.nii.gz").write_bytes((tmp_path / "in/b.nii.gz").read_bytes())
    for seed in range(8):
        store = prepare(tmp_path / "in", tmp_path / f"s{seed}", size=8, test=0.4, seed=seed, progress=False)
        assert store.cases["g"]["subject"] == "b" and store.copies == 1 and "copies: 1" in str(store)
        assert ("g" in store.split("test")) == ("b" in store.split("test"))
    assert merge_copies({"a": "p", "b": "q", "c": "q", "d": "r"}, {"a": "1", "b": "1", "c": "2", "d": "2"}) == {
        name: "p" for name in "abcd"
    }


def test_a_cohort_to_pretrain_on_only(tmp_path):
    volumes(tmp_path / "in", "a")
    with pytest.raises(InputError, match="leaves nobody"):
        prepare(tmp_path / "in", tmp_path / "store", size=8, progress=False)
    store = prepare(tmp_path / "in", tmp_path / "store", size=8, test=0, progress=False)
    assert store.split("train") == ["a"] and store.split("test") == []


def test_numbers_kept_in_eight_bits(tmp_path):
    volumes(tmp_path / "in", "a", "b", mask=[])
    half, byte = (
        prepare(tmp_path / "in", tmp_path / dtype, size=16, dtype=dtype, progress=False)
        for dtype in ("float16", "uint8")
    )
    for name in "ab":
        assert byte.image(name).dtype == np.uint8 and byte.image(name).nbytes * 2 == half.image(name).nbytes
        assert np.abs(byte.image(name) / 255 - half.image(name).astype(float)).max() < 1 / 510 + 2**-11
        assert byte.cases[name]["rounding"] <= 1 / 510 + 1e-6 and half.cases[name]["rounding"] <= 2**-12
    from ssl3d.training.loop import read_batch

    batches = [read_batch(store, ["a", "b"]).image for store in (half, byte)]
    assert batches[1].max() == 1 and (batches[0] - batches[1]).abs().max() < 1 / 510 + 2**-11
    with pytest.raises(InputError, match="dtype"):
        prepare(tmp_path / "in", tmp_path / "x", dtype="int16", progress=False)


def test_threads_change_no_number(tmp_path):
    volumes(tmp_path / "in", *"abcdefgh")
    one, four = (prepare(tmp_path / "in", tmp_path / str(n), size=12, workers=n, progress=False) for n in (1, 4))
    assert one.hash == four.hash and all(np.array_equal(one.image(n), four.image(n)) for n in one.cases)


def test_the_manifest_says_where_each_case_came_from(tmp_path):
    volumes(tmp_path / "in", "a", "b")
    store = prepare(tmp_path / "in", tmp_path / "store", size=8, progress=False)
    manifest, case = json.loads((tmp_path / "store/manifest.json").read_text()), store.cases["a"]
    assert set(manifest["versions"]) == {"ssl3d", "torch", "monai", "numpy", "nibabel"}
    assert case["files"] == [str(tmp_path / "in/a.nii.gz")] and len(case["fingerprint"]) == 16
    assert case["shape"] == [8, 9, 10] and case["spacing"] == [1, 1, 1] and case["axes"] == "RAS"
    assert len(case["percentiles"][0]) == 5 and case["box"] and set(case["arrays"]) <= {"images", "content"}
    need = forecast(tmp_path / "in", size=8, workers=1)
    made = sum(f.stat().st_size - 128 for f in (tmp_path / "store").rglob("*.npy"))
    assert need["cases"] == 2 and need["bytes"] == made and need["hours"] > 0


def test_a_flipped_bit_is_found(tmp_path):
    volumes(tmp_path / "in", "a", "b")
    store = prepare(tmp_path / "in", tmp_path / "store", size=8, progress=False)
    store.check(progress=False)
    file = tmp_path / "store/images/b.npy"
    data = bytearray(file.read_bytes())
    data[-7] ^= 4
    file.write_bytes(data)
    with pytest.raises(InputError, match="b.npy: is damaged, 1 file"):
        store.check(progress=False)


def test_a_full_disk_is_noticed_before_it_is_full(tmp_path, monkeypatch):
    import shutil

    volumes(tmp_path / "in", *"abcdef")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(InputError, match="the disk has 0.0 GB left"):
        prepare(tmp_path / "in", tmp_path / "store", size=16, progress=False)
    monkeypatch.undo()
    assert len(prepare(tmp_path / "in", tmp_path / "store", size=16, progress=False)) == 6


def test_a_survey_goes_on_after_a_bad_file(tmp_path):
    volumes(tmp_path, "a", "b", "c")
    (tmp_path / "b.nii.gz").write_bytes(b"nothing")
    rows = survey(open_cohort(tmp_path), progress=False)
    assert [set(row) >= {"shape"} for row in rows] == [True, False, True] and "b.nii.gz" in rows[1]["problem"]
    assert len(survey(open_cohort(tmp_path), most=2, progress=False)) == 2


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
    "synthseg_labelmaps_2mm": ({}, "folder", 20, 0, {}, 1),
    "totalsegmentator_ct": ({}, "folder", 5, 0, {}, 1),
}


@pytest.mark.parametrize("name", REAL)
def test_every_real_folder_opens_and_pretrains(real_data, tmp_path, name):
    how, layout, cases, masks, grades, channels = REAL[name]
    cohort = open_cohort(real_data / name, **how)
    found = [c.grade for c in cohort.cases if c.grade is not None]
    assert (cohort.layout, len(cohort), sum(c.mask is not None for c in cohort.cases)) == (layout, cases, masks)
    assert {g: found.count(g) for g in set(found)} == grades
    flat = "retina" in name or "idrid" in name
    size = 48 if flat else 32
    store = prepare(cohort, tmp_path / "store", size=size, test=0.8 if cases > 20 else 0.2, progress=False)
    assert (len(store), store.channels, store.spatial_dims) == (cases, channels, 2 if flat else 3)
    for task in NAMES:
        pretrain(
            task,
            tmp_path / "store",
            tmp_path / task,
            epochs=1,
            batch_size=min(16, len(store.split("train"))),
            widths=(4, 8, 16),
            progress=False,
            accelerator="cpu",
        )
        assert (tmp_path / task / "encoder.safetensors").exists()


def test_real_people(real_data):
    brains = open_cohort(real_data / "ixi_t1_brain_2mm", images="{id}_T1brain.nii.gz", table="participants.csv")
    known = [c for c in brains.cases if c.age is not None]
    first = brains.cases[0]
    assert len(known) == 155 and (first.id, first.age, first.sex) == ("IXI012-HH-1211", 38.78, "M")
    tumours = open_cohort(real_data / "brats_mini_2mm")
    assert len({c.subject for c in tumours.cases}) == 8 and sum(len(c.images) == 4 for c in tumours.cases) == 4
    ct = open_cohort(real_data / "totalsegmentator_ct" / "example_ct_dicom")
    assert ct.layout == "dicom" and len(ct) == 1 and ct.channels == ("CT Body 3.0",)


def test_real_copies(real_data, tmp_path):
    store = prepare(
        open_cohort(real_data / "idrid_grading_512/labels.csv", columns={"grade": "dr_grade"}),
        tmp_path / "eyes",
        size=16,
        crop=False,
        progress=False,
    )
    people = {part: {store.cases[n]["fingerprint"] for n in store.split(part)} for part in ("train", "test")}
    assert store.copies == 5 and not people["train"] & people["test"]
    assert Store(tmp_path / "eyes").hash == store.hash


def people_folder(folder):
    return volumes(folder, "001_a", "001_b", "002_a", "003_a")


@pytest.mark.parametrize(
    "table, columns, said",
    [
        ("No,Patient,Grade\n1,003,0\n2,001,1\n3,002,2\n", None, "equally well"),
        ("Patient,Grade\n001,0\n001,1\n002,2\n", None, "several rows for '001' that differ"),
        ("Patient,Grade\n001,HGG\n", None, "grade 'HGG'"),
        ("Patient,Age\n001,forty\n", None, "age 'forty'"),
        ("Patient,Grade\n001,-1\n", None, "grade '-1'"),
        ("Patient,Sex\n001,x\n", None, "sex 'x'"),
        ("Patient,Grade\n001,1\n", {"id": "Name"}, "'Name' for 'id'"),
    ],
)
def test_a_table_is_never_guessed_at(tmp_path, table, columns, said):
    people_folder(tmp_path)
    (tmp_path / "people.csv").write_text(table)
    with pytest.raises(InputError, match=f"people.csv.*{said}"):
        open_cohort(tmp_path, images="{subject}_{session}.nii.gz", table="people.csv", columns=columns)


def test_a_table_as_excel_writes_it(tmp_path):
    people_folder(tmp_path)
    table = "sep=;\nNo;Patient;Age;Sex;Who\n1;1;41,5;w;A\n2;2;n/a;m;B\n3;3;60;;A\n"
    (tmp_path / "people.csv").write_text(table, encoding="utf-8-sig")
    columns = {"id": "patient", "subject": "Who"}
    cohort = open_cohort(tmp_path, images="{subject}_{session}.nii.gz", table="people.csv", columns=columns)
    assert [(c.id, c.age, c.sex, c.subject) for c in cohort.cases] == [
        ("001-a", 41.5, "F", "A"),
        ("001-b", 41.5, "F", "A"),
        ("002-a", None, "M", "B"),
        ("003-a", 60, None, "A"),
    ]
    assert "sex:      F: 2, M: 1 (known for 3 of 4)" in str(cohort)
    (tmp_path / "old.csv").write_bytes("Patient;Ort\n1;Köln\n".encode("cp1252"))
    with pytest.raises(InputError, match="old.csv.*CSV UTF-8"):
        open_cohort(tmp_path, images="{subject}_{session}.nii.gz", table="old.csv")


def test_what_a_plain_folder_would_pass_over_in_silence(tmp_path):
    volumes(tmp_path, "p1/t1", "p2/t1", mask=["p1/lesion_mask", "p2/seg"])
    (tmp_path / "p3.nrrd").touch()
    cohort = open_cohort(tmp_path, on_error="skip")
    assert [c.id for c in cohort.cases] == ["p1-t1", "p2-t1"]
    assert [w in str(e) for e, w in zip(cohort.left_out, ("lesion_mask", "seg", "p3.nrrd"))].count(True) >= 1
    assert len(cohort.left_out) == 3
    with pytest.raises(InputError, match="mask by its name|kind that is not read"):
        open_cohort(tmp_path)


def test_bids_does_not_choose_for_the_user(tmp_path):
    volumes(
        tmp_path,
        "sub-1/anat/sub-1_acq-ax_T1w",
        "sub-1/anat/sub-1_acq-sag_T1w",
        "sub-2/anat/sub-2_acq-ax_T1w",
        mask=["derivatives/a/sub-1/anat/sub-1_dseg", "derivatives/b/sub-1/anat/sub-1_label-lesion_mask"],
    )
    cohort = open_cohort(tmp_path, on_error="skip", modalities="acq-ax_T1w")
    assert len(cohort) == 2 and all(c.modalities == ("acq-ax_T1w",) and c.mask is None for c in cohort.cases)
    with pytest.raises(InputError, match="masks of 2 kinds"):
        open_cohort(tmp_path)


def test_a_finished_store_notices_other_people_and_other_voxels(tmp_path):
    people_folder(tmp_path / "in")
    by_file = open_cohort(tmp_path / "in", images="{id}.nii.gz")
    by_person = open_cohort(tmp_path / "in", images="{subject}_{session}.nii.gz")
    first = prepare(by_file, tmp_path / "a", size=8, progress=False)
    with pytest.raises(InputError, match="other scans"):
        prepare(by_person, tmp_path / "a", size=8, progress=False)
    for file in (tmp_path / "in").iterdir():
        file.touch()  # another time of change, the same bytes
    assert prepare(by_file, tmp_path / "a", size=8, progress=False).hash == first.hash
    write_nifti(tmp_path / "in/002_a.nii.gz", RNG.random((8, 9, 10)))
    with pytest.raises(InputError, match="other scans"):
        prepare(by_file, tmp_path / "a", size=8, progress=False)


def test_a_class_that_gets_lost_is_told(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(3):
        write_nifti(tmp_path / f"in/{i}_t.nii.gz", RNG.random((32, 32, 32)))
        spot = np.zeros((32, 32, 32), np.uint8)
        spot[4:20, 4:20, 4:20], spot[1, 1, 1] = 1, 2
        write_nifti(tmp_path / f"in/{i}_m.nii.gz", spot)
    cohort = open_cohort(tmp_path / "in", images="{id}_t.nii.gz", masks="{id}_m.nii.gz")
    assert "too small: 3 mask(s)" in str(prepare(cohort, tmp_path / "s", size=8, progress=False))
    assert "too small" not in str(prepare(cohort, tmp_path / "l", size=32, progress=False))


def test_two_processes_do_not_make_one_store(tmp_path):
    volumes(tmp_path / "in", "a", "b")
    (tmp_path / "store").mkdir()
    with FileLock(tmp_path / "store/prepare.lock"), pytest.raises(InputError, match="made by another process"):
        prepare(tmp_path / "in", tmp_path / "store", size=8, progress=False)
    assert len(prepare(tmp_path / "in", tmp_path / "store", size=8, progress=False)) == 2
    assert not (tmp_path / "store/prepare.lock").exists()


def test_what_is_finished_is_noted_at_once(tmp_path, monkeypatch):
    volumes(tmp_path / "in", *"abcde")
    honest = prepare_module._prepare_case

    def slow_first(case, *rest):
        if case.id == "a":
            for _ in range(200):
                if len((tmp_path / "store/unfinished.jsonl").read_text().splitlines()) == 5:
                    raise KeyboardInterrupt
                time.sleep(0.05)
        return honest(case, *rest)

    monkeypatch.setattr(prepare_module, "_prepare_case", slow_first)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "in", tmp_path / "store", size=8, workers=2, progress=False)
    monkeypatch.setattr(prepare_module, "_prepare_case", honest)
    made = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "store/images").iterdir()}
    (tmp_path / "store/images/c.npy").unlink()  # lost before the second try
    store = prepare(tmp_path / "in", tmp_path / "store", size=8, progress=False)
    store.check(progress=False)
    again = {name: (tmp_path / "store/images" / name).stat().st_mtime_ns == made[name] for name in made}
    assert again == {"b.npy": True, "c.npy": False, "d.npy": True, "e.npy": True}


def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
    volumes(tmp_path / "in", "a", "b")
    monkeypatch.setattr("ssl3d.data.scans.fingerprint", lambda paths: [p.touch() for p in paths] and "0")
    with pytest.raises(InputError, match="changed while it was read"):
        prepare(tmp_path / "in", tmp_path / "store", size=8, progress=False)


def test_an_odd_case_that_was_removed_is_forgotten(tmp_path):
    volumes(tmp_path / "in", "b", "c")
    np.save(tmp_path / "in/a.npy", RNG.random((20, 30)))
    with pytest.raises(InputError, match="one kind of image"):
        prepare(tmp_path / "in", tmp_path / "store", size=8, workers=1, progress=False)
    (tmp_path / "in/a.npy").unlink()
    assert len(prepare(tmp_path / "in", tmp_path / "store", size=8, progress=False)) == 2


def test_threads_and_warnings_are_as_before(tmp_path):
    volumes(tmp_path / "in", *"abcd")
    threads, filters = torch.get_num_threads(), list(warnings.filters)
    prepare(tmp_path / "in", tmp_path / "store", size=8, workers=4, progress=False)
    assert torch.get_num_threads() == threads and warnings.filters == filters


def test_the_hash_is_of_people_and_grades_too(tmp_path):
    volumes(tmp_path, "a", "b", "c")
    tables = {
        "plain": "image\na\nb\nc\n",
        "graded": "image,label\na,0\nb,1\nc,1\n",
        "other": "image,label\na,0\nb,0\nc,1\n",
        "people": "image,subject\na,x\nb,x\nc,y\n",
        "aged": "image,age\na,1\nb,2\nc,3\n",
    }
    hashes = set()
    for name, text in tables.items():
        (tmp_path / f"{name}.csv").write_text(text)
        hashes.add(
            prepare(
                tmp_path / f"{name}.csv", tmp_path.parent / f"{tmp_path.name}-{name}", size=8, test=0, progress=False
            ).hash
        )
    assert len(hashes) == len(tables)


def test_both_sides_of_a_store_have_masks_and_grades(tmp_path):
    volumes(tmp_path, *[f"i{n:02d}" for n in range(40)], mask=[f"m{n}" for n in range(8)])
    rows = [f"i{n:02d},{f'm{n}' if n < 8 else ''},{n % 2 if n >= 20 else ''}" for n in range(40)]
    (tmp_path / "t.csv").write_text("image,mask,grade\n" + "\n".join(rows))
    for seed in range(6):
        store = prepare(
            tmp_path / "t.csv",
            tmp_path.parent / f"{tmp_path.name}-{seed}",
            size=8,
            test=0.25,
            seed=seed,
            progress=False,
        )
        test = [store.cases[n] for n in store.split("test")]
        assert len(test) == 10 and sum(bool(c["classes"]) for c in test) == 2
        assert 2 <= sum(c["grade"] == 0 for c in test) <= 3 and 2 <= sum(c["grade"] == 1 for c in test) <= 3


def test_shrinking_blurs_first(tmp_path):
    fine = np.indices((64, 64, 64)).sum(0) % 2
    write_nifti(tmp_path / "a.nii", fine.astype(np.float32))
    small = resize(read_scan(tmp_path / "a.nii"), (15, 15, 15))[0, 2:-2, 2:-2, 2:-2]
    assert (small - 0.5).abs().max() < 0.02, "a checkerboard is grey from afar"
    step = np.zeros((64, 64, 64), np.float32)
    step[32:] = 1
    write_nifti(tmp_path / "b.nii", step)
    edge = resize(read_scan(tmp_path / "b.nii"), (16, 16, 16))[0, :, 8, 8]
    assert edge[0] == 0 and edge[-1] == 1 and 0.02 < edge[7] < 0.4, "blurred as much as four voxels become one, no more"


def test_every_slice_counts_in_a_fingerprint(tmp_path):
    folder = write_series(tmp_path / "s")
    before = fingerprint((folder,))
    last = sorted(folder.iterdir())[-1]
    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    last.write_bytes(data)
    assert fingerprint((folder,)) != before


def test_a_mask_on_another_grid_by_little(tmp_path):
    for i, shift in enumerate((0.4, 0.6)):
        write_nifti(tmp_path / f"{i}_t.nii", RNG.random((8, 9, 10)))
        away = np.eye(4)
        away[0, 3] = shift
        write_nifti(tmp_path / f"{i}_m.nii", RNG.integers(0, 2, (8, 9, 10)).astype(np.uint8), away)
    cohort = open_cohort(tmp_path, images="{id}_t.nii", masks="{id}_m.nii")
    store = prepare(cohort, tmp_path.parent / f"{tmp_path.name}-s", size=8, test=0, on_error="skip", progress=False)
    assert list(store.cases) == ["0"] and "0.6 mm away" in store.left_out[0]["problem"]
    with pytest.raises(InputError, match="made without 1 case"):
        prepare(cohort, tmp_path.parent / f"{tmp_path.name}-s", size=8, test=0, progress=False)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": -1},
        {"workers": -1},
        {"workers": 0},
        {"percentiles": (1,)},
        {"test": "0.2"},
        {"size": 12.5},
        {"size": True},
        {"percentiles": ("a", "b")},
        {"on_error": "go"},
    ],
)
def test_settings_that_make_no_sense(tmp_path, wrong):
    volumes(tmp_path / "in", "a", "b")
    with pytest.raises(InputError, match=next(iter(wrong)).replace("test", "share")):
        prepare(tmp_path / "in", tmp_path / "store", **wrong, progress=False)


def test_uk_biobank_without_a_brain(tmp_path):
    volumes(tmp_path, "1/T1/T1", "1/T1/T1_brain", "2/T1/T1")
    with pytest.raises(InputError, match="2/T1/T1.nii.gz: has no T1_brain"):
        open_cohort(tmp_path)
    (tmp_path / "1/T1/T1_brain.nii.gz").unlink()
    assert len(open_cohort(tmp_path)) == 2


def test_a_mask_is_no_second_scan(tmp_path):
    volumes(tmp_path, "a", "b", mask=["a_seg", "b_seg"])
    cohort = open_cohort(tmp_path, images="{id}.nii.gz", masks="{id}_seg.nii.gz")
    assert [c.id for c in cohort.cases] == ["a", "b"] and all(c.mask for c in cohort.cases)


def test_a_large_cohort_is_split_in_no_time():
    people = {f"c{i}": f"p{i // 2}" for i in range(44_000)}
    start = time.perf_counter()
    label_subset(people, 0.5)
    merge_copies(people, {name: name for name in people})
    split_subjects([*people.values()], 0.2)
    assert time.perf_counter() - start < 20, "minutes where each person is looked up among all others"
