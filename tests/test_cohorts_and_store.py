"""From a folder to a table of cases, and from the table to a prepared store."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, SAMPLES, write_nifti
from PIL import Image

from ssl3d.data.layouts import open_cohort
from ssl3d.data.prepare import prepare
from ssl3d.data.splits import label_subset, split_subjects
from ssl3d.data.store import Store
from ssl3d.errors import InputError

RNG = np.random.default_rng(0)


def msd(folder, n=3, **changes):
    """A small Decathlon task."""
    for i in range(n):
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        write_nifti(folder / f"imagesTr/c{i}.nii.gz", RNG.random((8, 9, 10)))
        write_nifti(folder / f"labelsTr/c{i}.nii.gz", RNG.integers(0, 3, (8, 9, 10)).astype(np.uint8))
    info = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "a", "2": "b"},
        "training": [{"image": f"./imagesTr/c{i}.nii.gz", "label": f"./labelsTr/c{i}.nii.gz"} for i in range(n)],
    }
    (folder / "dataset.json").write_text(json.dumps(info | changes))
    return folder


def test_samples_are_a_decathlon_task():
    cohort = open_cohort(SAMPLES)
    assert cohort.layout == "msd" and len(cohort) == 32 and len(cohort.channels) == 4 and len(cohort.classes) == 4


def test_unlabelled_images_of_a_task_are_cases(tmp_path):
    msd(tmp_path)
    write_nifti(tmp_path / "imagesTr/extra.nii.gz", RNG.random((8, 9, 10)))
    msd(tmp_path, test=["./imagesTr/extra.nii.gz"])
    assert [c.mask is None for c in open_cohort(tmp_path).cases] == [False, False, False, True]


@pytest.mark.parametrize(
    "index, said",
    [
        ("{", "dataset.json"),
        ("[]", "dataset.json"),
        ('{"training": [1]}', "training"),
        ('{"training": []}', "no scan"),
        ('{"training": [{"image": "x.nii", "label": "y.nii"}]}', "x.nii"),
    ],
)
def test_a_broken_index_is_named(tmp_path, index, said):
    (tmp_path / "dataset.json").write_text(index)
    with pytest.raises(InputError, match=said):
        open_cohort(tmp_path)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(InputError, match="no such"):
        open_cohort(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no scan"):
        open_cohort(tmp_path)
    with pytest.raises(InputError, match="not a layout"):
        open_cohort(tmp_path, layout="nifti")


def test_two_cases_of_one_name_are_refused(tmp_path):
    write_nifti(tmp_path / "a.nii", RNG.random((4, 4, 4)))
    np.save(tmp_path / "a.npy", RNG.random((4, 4, 4)))
    with pytest.raises(InputError, match="'a'"):
        open_cohort(tmp_path)


def test_csv_with_stray_spaces_masks_and_subjects(tmp_path):
    for i in range(3):
        write_nifti(tmp_path / f"s{i}.nii.gz", RNG.random((6, 6, 6)))
        write_nifti(tmp_path / f"m{i}.nii.gz", np.eye(6, dtype=np.uint8)[..., None].repeat(6, 2))
    (tmp_path / "t.csv").write_text(
        " Image , mask,subject,site\n" + "".join(f" s{i}.nii.gz, m{i}.nii.gz ,p{i // 2}, x\n" for i in range(3))
    )
    cohort = open_cohort(tmp_path / "t.csv")
    assert [(c.id, c.subject, c.mask.name) for c in cohort.cases] == [
        ("s0", "p0", "m0.nii.gz"),
        ("s1", "p0", "m1.nii.gz"),
        ("s2", "p1", "m2.nii.gz"),
    ]
    (tmp_path / "bad.csv").write_text("file,label\ns0.nii.gz,1\n")
    with pytest.raises(InputError, match="no column 'image'"):
        open_cohort(tmp_path / "bad.csv")


@pytest.mark.parametrize("seed", range(5))
def test_no_subject_is_on_both_sides(seed):
    subjects = [f"p{i // 3}" for i in range(60)]
    split = split_subjects(subjects, 0.25, seed)
    assert len(split["test"]) == 5 and not set(split["train"]) & set(split["test"])
    assert sorted(split["train"] + split["test"]) == sorted(set(subjects))


def test_label_subsets_are_nested():
    ids = {f"c{i}": f"c{i}" for i in range(37)}
    subsets = [set(label_subset(ids, share, seed=3)) for share in (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)]
    assert all(a <= b for a, b in zip(subsets, subsets[1:])) and [len(s) for s in subsets] == [1, 2, 4, 9, 18, 37]
    for wrong in (0, -1, 1.5):
        with pytest.raises(InputError):
            label_subset(ids, wrong)


def test_a_subject_comes_into_a_subset_with_all_its_cases():
    cases = {f"c{i}": f"p{i // 3}" for i in range(30)}
    for share in (0.1, 0.3, 0.7):
        chosen = label_subset(cases, share, seed=1)
        people = {cases[name] for name in chosen}
        assert len(people) == round(10 * share) and len(chosen) == 3 * len(people)


def test_csv_names_and_grades(tmp_path):
    for folder in ("sub1", "sub2"):
        (tmp_path / folder).mkdir()
        write_nifti(tmp_path / folder / "T1.nii", RNG.random((4, 4, 4)))
    (tmp_path / "t.csv").write_text("image,label\nsub1/T1.nii,1.0\nsub2/T1.nii,\n")
    assert [(c.id, c.grade, c.mask) for c in open_cohort(tmp_path / "t.csv").cases] == [
        ("sub1-T1", 1, None),
        ("sub2-T1", None, None),
    ]
    for layout in ("msd", "csv", "medmnist"):
        with pytest.raises(InputError, match=layout):
            open_cohort(tmp_path / "sub1", layout=layout)


def test_store_holds_what_was_prepared(tmp_path):
    store = prepare(msd(tmp_path / "task", n=5), tmp_path / "store", size=12, progress=False)
    assert (store.spatial_dims, store.channels, len(store)) == (3, 1, 5) and store.classes == {
        0: "background",
        1: "a",
        2: "b",
    }
    for name in store.cases:
        assert store.image(name).shape == (1, 12, 12, 12) and store.mask(name).shape == (12, 12, 12)
        assert 0 <= store.image(name).min() and store.image(name).max() == 1
    assert Store(tmp_path / "store").hash == store.hash


def test_pictures_and_archives(tmp_path):
    for i in range(4):
        Image.fromarray(RNG.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(tmp_path / f"p{i}.png")
    store = prepare(tmp_path, tmp_path.parent / f"{tmp_path.name}-store", size=16, progress=False)
    assert (store.spatial_dims, store.channels) == (2, 3) and store.image("p0").shape == (3, 16, 16)
    arrays = {f"{p}_images": RNG.integers(0, 255, (3, 8, 8, 3), dtype=np.uint8) for p in ("train", "val", "test")}
    arrays |= {f"{p}_labels": RNG.integers(0, 5, (3, 1)) for p in ("train", "val", "test")}
    (tmp_path / "arch").mkdir()
    np.savez(tmp_path / "arch" / "m.npz", **arrays)
    store = prepare(tmp_path / "arch", tmp_path / "s2", size=8, crop=False, progress=False)
    assert len(store) == 9 and store.cases["val-000002"]["grade"] == int(arrays["val_labels"][2, 0])
    first = arrays["test_images"][1].transpose(2, 0, 1).astype(np.float32)
    low, high = first.min((1, 2), keepdims=True), first.max((1, 2), keepdims=True)
    assert np.allclose(store.image("test-000001"), (first - low) / (high - low), atol=1e-3)


def test_one_kind_of_image_only(tmp_path):
    write_nifti(tmp_path / "a.nii", RNG.random((6, 6, 6)))
    write_nifti(tmp_path / "b.nii", RNG.random((6, 6, 6)))
    Image.fromarray(RNG.integers(0, 255, (9, 9), dtype=np.uint8)).save(tmp_path / "c.png")
    with pytest.raises(InputError, match="c.png"):
        prepare(tmp_path, tmp_path.parent / f"{tmp_path.name}-store", size=8, progress=False)


def test_mask_values_without_a_name_are_refused(tmp_path):
    msd(tmp_path / "task", labels={"0": "background", "1": "a"})
    with pytest.raises(InputError, match=r"c0.*\[2\]"):
        prepare(tmp_path / "task", tmp_path / "store", size=8, progress=False)


def test_nothing_is_lost_on_a_bad_file(tmp_path):
    task = msd(tmp_path / "task", n=4)
    whole = (task / "imagesTr/c2.nii.gz").read_bytes()
    (task / "imagesTr/c2.nii.gz").write_bytes(whole[:200])
    with pytest.raises(InputError, match="c2.nii.gz"):
        prepare(task, tmp_path / "store", size=8, progress=False)
    with pytest.raises(InputError, match="unfinished"):
        Store(tmp_path / "store")
    made = (tmp_path / "store/images/c0.npy").stat().st_mtime_ns
    (task / "imagesTr/c2.nii.gz").write_bytes(whole)
    assert len(prepare(task, tmp_path / "store", size=8, progress=False)) == 4
    assert (tmp_path / "store/images/c0.npy").stat().st_mtime_ns == made
    assert not list((tmp_path / "store").rglob("*.part"))


def test_other_settings_and_other_folders_are_refused(tmp_path):
    task = msd(tmp_path / "task")
    prepare(task, tmp_path / "store", size=8, progress=False)
    with pytest.raises(InputError, match="size was 8 and is now 9"):
        prepare(task, tmp_path / "store", size=9, progress=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not empty"):
        prepare(task, tmp_path / "full", size=8, progress=False)


def test_a_store_knows_its_split_and_its_masks(tmp_path):
    task = msd(tmp_path / "task", n=8)
    a, b = (prepare(task, tmp_path / f"s{seed}", size=8, seed=seed, progress=False) for seed in (0, 3))
    assert a.split("test") != b.split("test") and a.hash != b.hash
    again = prepare(task, tmp_path / "again", size=8, progress=False)
    assert again.hash == a.hash
    write_nifti(task / "labelsTr/c3.nii.gz", np.eye(8, 9, dtype=np.uint8)[..., None].repeat(10, 2))
    assert prepare(task, tmp_path / "mask", size=8, progress=False).hash != a.hash
    write_nifti(task / "imagesTr/new.nii.gz", RNG.random((8, 9, 10)))
    info = json.loads((task / "dataset.json").read_text()) | {"test": [{"image": "./imagesTr/new.nii.gz"}]}
    (task / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match="other scans"):
        prepare(task, tmp_path / "s0", size=8, progress=False)


def test_a_mended_mask_is_taken(tmp_path):
    task = msd(tmp_path / "task", n=3)
    write_nifti(task / "labelsTr/c1.nii.gz", np.full((8, 9, 10), 7, np.uint8))
    with pytest.raises(InputError, match=r"c1.*\[7\]"):
        prepare(task, tmp_path / "store", size=8, progress=False)
    write_nifti(task / "labelsTr/c1.nii.gz", np.full((8, 9, 10), 2, np.uint8))
    write_nifti(task / "imagesTr/c0.nii.gz", np.arange(720.0).reshape(8, 9, 10))  # changed after it was prepared
    store = prepare(task, tmp_path / "store", size=8, progress=False)
    assert set(np.unique(store.mask("c1"))) == {2} and store.classes[0] == "background"
    fresh = prepare(task, tmp_path / "fresh", size=8, progress=False)
    assert store.hash == fresh.hash and np.array_equal(store.image("c0"), fresh.image("c0"))


def test_a_store_does_not_go_into_its_source(tmp_path):
    write_nifti(tmp_path / "a.nii", RNG.random((8, 8, 8)))
    write_nifti(tmp_path / "b.nii", RNG.random((8, 8, 8)))
    with pytest.raises(InputError, match="inside"):
        prepare(tmp_path, tmp_path / "store", size=8, progress=False)


def test_a_folder_with_a_half_written_file_is_free(tmp_path):
    task = msd(tmp_path / "task")
    (tmp_path / "store").mkdir()
    (tmp_path / "store/unfinished.jsonl.part").write_text("{")
    assert len(prepare(task, tmp_path / "store", size=8, progress=False)) == 3


@pytest.mark.filterwarnings("ignore:Divide by zero")  # MONAI says it first, in fewer words
@pytest.mark.parametrize(
    "settings, said",
    [
        ({"size": 4}, "size"),
        ({"percentiles": (99, 1)}, "percentiles"),
        ({"percentiles": (-5, 120)}, "percentiles"),
        ({"test": 1}, "share"),
        ({"percentiles": (1, 95)}, "scaling"),
    ],
)
def test_useless_settings_are_refused(tmp_path, settings, said):
    for i in range(3):
        sparse = np.zeros((20, 20, 20))
        sparse[i, :4, :4] = RNG.random((4, 4)) + 1
        (tmp_path / "s").mkdir(exist_ok=True)
        write_nifti(tmp_path / f"s/{i}.nii", sparse)
    with pytest.raises(InputError, match=said):
        prepare(tmp_path / "s", tmp_path / "store", **({"size": 8} | settings), progress=False)


def test_damage_is_named(tmp_path):
    store = prepare(msd(tmp_path / "task"), tmp_path / "store", size=8, progress=False)
    file = tmp_path / "store/images/c1.npy"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="c1.npy"):
        store.image("c1")
    file.unlink()
    with pytest.raises(InputError, match="c1.npy"):
        store.image("c1")
    for text in ("{", "{}", "[]"):
        (tmp_path / "store/manifest.json").write_text(text)
        with pytest.raises(InputError, match="manifest.json"):
            Store(tmp_path / "store")


def test_killed_while_preparing(tmp_path):
    code = "import sys, ssl3d; ssl3d.prepare(sys.argv[1], sys.argv[2], size=16, progress=False)"
    process = subprocess.Popen([sys.executable, "-c", code, str(SAMPLES), str(tmp_path / "store")], cwd="/")
    while not (tmp_path / "store/images/brain_004.npy").exists():
        time.sleep(0.02)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(InputError, match="unfinished"):
        Store(tmp_path / "store")
    store = prepare(SAMPLES, tmp_path / "store", size=16, progress=False)
    fresh = prepare(SAMPLES, tmp_path / "fresh", size=16, progress=False)
    assert store.hash == fresh.hash
    assert all(
        np.array_equal(store.image(n), fresh.image(n)) and np.array_equal(store.mask(n), fresh.mask(n))
        for n in store.cases
    )


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


def test_nothing_imports_upwards():
    order = [
        "cohorts",
        "dicom",
        "scans",
        "splits",
        "store",
        "views",
        "widgets",
        "fundus",
        "samples",
        "abdomen",
        "runs",
        "networks",
        "patches",
        "windows",
        "tasks.task",
        "tasks.rotation",
        "tasks.location",
        "tasks.jigsaw",
        "tasks.exemplar",
        "tasks.cpc",
        "tasks",
        "training",
        "probes",
        "pretrain",
        "metrics",
        "finetune",
        "predict",
        "classify",
        "live",
        "experiments",
        "cluster",
        "statistics",
        "curves",
        "report",
        "demo",
        "cli",
    ]
    place = {name: i for i, name in enumerate(order)}
    for name in order:
        file = ROOT / "ssl3d" / (name.replace(".", "/") + ("/__init__.py" if name == "tasks" else ".py"))
        for line in file.read_text().splitlines():
            if line.strip().startswith(("from .", "from ssl3d")):
                module = line.split()[1]
                if module.startswith("ssl3d") or module.startswith("..") or "." not in name:
                    target = module.removeprefix("ssl3d").lstrip(".")
                else:
                    target = f"tasks.{module.lstrip('.')}"
                if target:
                    assert place[target] < place[name], f"{name} imports {target}"
