"""From a table of cases to a prepared store: whatever happens on the way."""

import gzip
import json
import re
import time
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import RNG, msd, volumes, write_nifti
from filelock import FileLock
from PIL import Image
from test_dicom import write as write_series
from test_layouts import people_folder

from ssl3d.data import prepare as prepare_module
from ssl3d.data.layouts import open_cohort
from ssl3d.data.prepare import forecast, prepare
from ssl3d.data.scans import median_spacing
from ssl3d.data.splits import merge_copies
from ssl3d.data.store import Store
from ssl3d.errors import InputError
from ssl3d.files import read_json, write_sealed

pytestmark = pytest.mark.quick


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
    made = sum(f.stat().st_size for f in (tmp_path / "store").rglob("*.npy"))
    assert need["cases"] == 2 and need["bytes"] == made and need["hours"] > 0


def test_a_full_disk_is_noticed_before_it_is_full(tmp_path, monkeypatch):
    import shutil

    volumes(tmp_path / "in", *"abcdef")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(InputError, match="the disk has 0.0 GB left"):
        prepare(tmp_path / "in", tmp_path / "store", size=16, progress=False)
    monkeypatch.undo()
    assert len(prepare(tmp_path / "in", tmp_path / "store", size=16, progress=False)) == 6


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
    monkeypatch.setattr("ssl3d.data.prepare.fingerprint", lambda paths: [p.touch() for p in paths] and "0")
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


def copies_of(file, folder):
    """The voxels of a NIfTI file in other files: by what was done to it."""
    folder.mkdir(parents=True, exist_ok=True)
    image, raw = nib.load(file), gzip.decompress(file.read_bytes())
    voxels = np.asarray(image.dataobj)
    with open(folder / "time.nii.gz", "wb") as f, gzip.GzipFile("x.nii", "wb", fileobj=f, mtime=123456) as g:
        g.write(raw)
    (folder / "level.nii.gz").write_bytes(gzip.compress(raw, 1, mtime=0))
    (folder / "unpacked.nii").write_bytes(raw)
    named = nib.Nifti1Image(voxels, image.affine)
    named.header["descrip"] = "anonymised"
    nib.save(named, folder / "header.nii.gz")
    nib.save(nib.Nifti1Image(voxels.astype(np.float64), image.affine), folder / "type.nii.gz")
    nib.save(nib.Nifti2Image(voxels, image.affine), folder / "nifti2.nii.gz")
    to_psr = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("PSR"))
    nib.save(image.as_reoriented(to_psr), folder / "axes.nii.gz")
    np.save(folder / "array.npy", voxels)
    np.save(folder / "zyx.npy", voxels.T)  # as SimpleITK gives it
    return folder


def whole_numbers(*shape):
    return RNG.integers(-500, 500, shape).astype(np.int16)


def test_the_same_voxels_in_another_file_are_the_same_person(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "abcd":
        write_nifti(tmp_path / f"in/{name}.nii.gz", whole_numbers(12, 14, 16))
    copies = {
        f"copies-{f.name.split('.')[0]}" for f in copies_of(tmp_path / "in/b.nii.gz", tmp_path / "in/copies").iterdir()
    }
    write_nifti(tmp_path / "in/e.nii.gz", np.asarray(nib.load(tmp_path / "in/b.nii.gz").dataobj)[::-1])  # a mirror
    for seed in range(4):
        store = prepare(tmp_path / "in", tmp_path / f"s{seed}", size=8, test=0.4, seed=seed, progress=False)
        together = {name for name, case in store.cases.items() if case["subject"] == store.cases["b"]["subject"]}
        assert together == {"b", "e", *copies} and store.copies == 10 and "copies: 10" in str(store)
        assert len({name in store.split("test") for name in together}) == 1
    with pytest.raises(InputError, match="other scans"):
        write_nifti(tmp_path / "in/c.nii.gz", whole_numbers(12, 14, 16))
        prepare(tmp_path / "in", tmp_path / "s0", size=8, test=0.4, seed=0, progress=False)


def test_a_copy_of_one_modality_is_the_same_person(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "abc":
        for kind in ("T1", "T2"):
            write_nifti(tmp_path / f"in/{name}_{kind}.nii.gz", whole_numbers(8, 9, 10))
    (tmp_path / "in/c_T2.nii.gz").write_bytes(
        gzip.compress(gzip.decompress((tmp_path / "in/a_T2.nii.gz").read_bytes()), 1)
    )
    cohort = open_cohort(tmp_path / "in", images={kind: f"{{id}}_{kind}.nii.gz" for kind in ("T1", "T2")})
    store = prepare(cohort, tmp_path / "store", size=8, test=0.5, progress=False)
    assert [case["subject"] for case in store.cases.values()] == ["a", "b", "a"] and store.copies == 1


def test_a_store_of_an_earlier_version_says_nothing_of_copies_in_other_files(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "abcd":
        write_nifti(tmp_path / f"in/{name}.nii.gz", whole_numbers(8, 9, 10))
    (tmp_path / "in/e.nii").write_bytes(gzip.decompress((tmp_path / "in/b.nii.gz").read_bytes()))
    prepare(tmp_path / "in", tmp_path / "store", size=8, progress=False)
    manifest = read_json(tmp_path / "store/manifest.json")
    for case in manifest["cases"]:
        del case["voxel_digests"]
        case["subject"] = case["named"]
    write_sealed(tmp_path / "store/manifest.json", manifest | {"copies": 0})
    old = Store(tmp_path / "store")
    assert (
        "copies" not in str(old)
        and prepare(tmp_path / "in", tmp_path / "store", size=8, progress=False).hash == old.hash
    )
    lines = [manifest["settings"], *manifest["cases"]]  # an earlier version began, this one goes on
    (tmp_path / "store/unfinished.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("manifest.json", "manifest.sha256", "split.json"):
        (tmp_path / "store" / name).unlink()
    assert prepare(tmp_path / "in", tmp_path / "store", size=8, progress=False).copies == 1


def people(folder, *subjects):
    """A table of scans with a subject for each."""
    volumes(folder, *[f"c{i}" for i in range(len(subjects))])
    rows = "".join(f"c{i},{who}\n" for i, who in enumerate(subjects))
    (folder / "cases.csv").write_text("image,subject\n" + rows)
    return folder / "cases.csv"


def test_a_cohort_of_one_name_says_why_it_cannot_be_split(tmp_path):
    table = people(tmp_path / "in", *["ANON"] * 4)
    with pytest.raises(
        InputError, match="all 4 cases have the subject 'ANON'.*columns id and subject.*--table.*--test 0"
    ):
        prepare(table, tmp_path / "store", size=8, progress=False)
    assert not (tmp_path / "store").exists(), "nothing was read for it"
    assert prepare(table, tmp_path / "store", size=8, test=0, progress=False).split("test") == []
    scans = volumes(tmp_path / "copied", "a")
    for i in range(3):
        (scans / f"b{i}.nii.gz").write_bytes((scans / "a.nii.gz").read_bytes())
    with pytest.raises(InputError, match="all 4 cases hold copies of the same image.*--test 0"):
        prepare(scans, tmp_path / "copies", size=8, progress=False)
    (tmp_path / "who.csv").write_text("id,subject\n" + "".join(f"c{i},p{i}\n" for i in range(4)))
    told = open_cohort(table, table=str(tmp_path / "who.csv"))
    assert len(prepare(told, tmp_path / "told", size=8, progress=False).subjects) == 4, "the cure that is named"


@pytest.mark.parametrize("subjects, said", [
    (["ANON"] * 5 + ["b", "c"], "5 of 7 cases have the subject 'ANON'.*--table"),
    (["a", "b", "0", "0", "0", "0"], "4 of 6 cases have the subject '0'"),
    (["a"] * 3 + ["b"] * 3, None),  # half of them
    (["a"] * 4 + ["b"], None),  # few cases: two visits each are common
])  # fmt: skip
def test_one_name_for_most_cases_is_pointed_out(tmp_path, subjects, said):
    table = people(tmp_path / "in", *subjects)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        store = prepare(table, tmp_path / "store", size=8, progress=False)
    texts = [str(each.message) for each in told if "have the subject" in str(each.message)]
    assert len(texts) == (said is not None) and ("have the subject" in str(store)) == (said is not None)
    if said:
        assert re.search(said, texts[0]) and re.search(said, str(store)) and str(tmp_path / "store") in texts[0]


def test_a_case_without_a_modality_names_the_ways_out(tmp_path):
    volumes(tmp_path / "in", "a_T1", "a_T2", "b_T1", "c_T1", "c_T2")
    images = {kind: f"{{id}}_{kind}.nii.gz" for kind in ("T1", "T2")}
    with pytest.raises(InputError, match="'b' has no T2.*--modalities T1.*--on-error skip"):
        prepare(tmp_path / "in", tmp_path / "store", images=images, size=8, progress=False)
    assert len(prepare(tmp_path / "in", tmp_path / "one", images=images, modalities="T1", size=8, progress=False)) == 3
    some = prepare(tmp_path / "in", tmp_path / "two", images=images, on_error="skip", size=8, progress=False)
    assert [*some.cases] == ["a", "c"]


def ct_like(folder, names, mask=True):
    """Volumes in HU: air around a body; with `mask`, an organ is marked."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(names):
        values = np.random.default_rng(k).integers(-1024, -960, (20, 21, 22)).astype(np.int16)
        values[4:16, 4:16, 4:16] = 60 + 10 * k
        values[8, 8, 8:12] = 900 + 500 * k  # bone, or metal
        write_nifti(folder / f"{name}.nii.gz", values)
        if mask:
            write_nifti(folder / f"{name}_seg.nii.gz", (values > 0).astype(np.uint8))


def test_a_declared_ct_has_a_window_in_hounsfield_units(tmp_path):
    ct_like(tmp_path / "in", "abcde", mask=False)
    with pytest.warns(UserWarning, match="look like those of a CT.*window=.-1000, 1000.*--window=-1000,1000"):
        plain = prepare(tmp_path / "in", tmp_path / "plain", size=16, progress=False)
    assert plain.settings["window"] is None and len({case["limits"][0][1] for case in plain.cases.values()}) == 5
    named = prepare(tmp_path / "in", tmp_path / "named", images={"CT": "{id}.nii.gz"}, size=16, progress=False)
    assert named.settings["window"] == [[-1000, 1000]]
    given = prepare(tmp_path / "in", tmp_path / "given", window=(-200, 300), size=16, progress=False)
    assert given.settings["window"] == [[-200, 300]] and named.hash != given.hash
    for name, k in zip("abcde", range(5)):
        assert named.image(name)[0, 10, 10, 10] == pytest.approx((1060 + 10 * k) / 2000, abs=1e-3)
        assert given.image(name)[0, 10, 10, 10] == pytest.approx((260 + 10 * k) / 500, abs=1e-3)
        assert given.cases[name]["limits"] == [[-200, 300]]
    assert forecast(tmp_path / "in", size=16, window=(-200, 300))["cases"] == 5, "a plan takes the same window"
    with pytest.raises(InputError, match="window is .300.*the lower one first"):
        prepare(tmp_path / "in", tmp_path / "x", window=(300, -200), size=16, progress=False)


def test_only_the_ct_of_two_channels_has_a_window(tmp_path):
    ct_like(tmp_path / "in", ["a_CT", "b_CT", "c_CT"], mask=False)
    for name in "abc":
        values = np.asarray(nib.load(tmp_path / "in" / f"{name}_CT.nii.gz").dataobj)
        write_nifti(tmp_path / "in" / f"{name}_PT.nii.gz", (values > 0) * 3.5 + RNG.random(values.shape))
    patterns = {"ct": "{id}_CT.nii.gz", "PET": "{id}_PT.nii.gz"}
    store = prepare(tmp_path / "in", tmp_path / "store", images=patterns, size=16, progress=False)
    assert store.channel_names == ["ct", "PET"] and store.settings["window"] == [[-1000, 1000], None]
    assert store.image("a")[0].max() < 1 and store.image("a")[1].max() == 1


def of_kind(kind, person):
    """An edit of a DICOM slice: what its header declares."""
    def edit(k, ds):
        ds.Modality, ds.PatientID, ds.SeriesDescription = kind, person, "scan"
    return edit


def told(function, *args, **options):
    """What a function returns, and what it warns of."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        return function(*args, progress=False, **options), "\n".join(str(each.message) for each in said)


def test_a_ct_in_dicom_has_a_window_and_a_cohort_of_several_modalities_is_told(tmp_path):
    series = {name: RNG.integers(-1000, 900, (6, 10, 12)).astype(np.int16) for name in "abc"}
    (tmp_path / "in").mkdir()
    for name, stack in series.items():
        write_series(tmp_path / "in" / name, stack, edit=of_kind("CT", name), series=f"2.25.{ord(name)}")
    store, said = told(prepare, tmp_path / "in", tmp_path / "ct", size=8)
    assert store.settings["window"] == [[-1000, 1000]] and "modality" not in said
    write_series(tmp_path / "in/a", series["a"], edit=of_kind("MR", "a"), series="2.25.97")
    store, said = told(prepare, tmp_path / "in", tmp_path / "mixed", size=8)
    assert store.settings["window"] == [[-1000, 1000]], "most of the cases decide, not the first one"
    assert "CT: b, c; MR: a" in said and "One window, -1000 to 1000" in said and "--images PATTERN" in said
    write_nifti(tmp_path / "in/n.nii.gz", series["a"])
    assert "CT: b, c; MR: a" in told(prepare, tmp_path / "in", tmp_path / "more", size=8)[1]


@pytest.mark.parametrize(("name", "is_ct"), [
    ("CT scan", True), ("CT (HU)", True), ("CT_venous", True), ("ct", True), ("CTA", True), ("NAC-CT", True),
    ("CT1", False), ("ACT", False), ("T1", False), ("PET/CT", False), ("T1ct", False)])
def test_a_channel_is_a_ct_where_its_name_has_the_word(tmp_path, name, is_ct):
    ct_like(tmp_path / "in", "ab", mask=False)
    store, _ = told(prepare, tmp_path / "in", tmp_path / "store", images={name: "{id}.nii.gz"}, size=16)
    assert store.settings["window"] == ([[-1000, 1000]] if is_ct else None)


def test_percentiles_are_never_given_for_nothing(tmp_path):
    ct_like(tmp_path / "in", ["a_CT", "b_CT"], mask=False)
    for name in "ab":
        write_nifti(tmp_path / f"in/{name}_PT.nii.gz", RNG.random((20, 21, 22)).astype(np.float32))
    ct = {"images": {"CT": "{id}_CT.nii.gz"}, "size": 16, "percentiles": (1, 99)}
    both = ct | {"images": {"CT": "{id}_CT.nii.gz", "PET": "{id}_PT.nii.gz"}}
    with pytest.raises(InputError, match="window .-200.*percentiles .1.*--window or --percentiles"):
        prepare(tmp_path / "in", tmp_path / "x", window=(-200, 300), progress=False, **ct)
    with pytest.raises(InputError, match="window .-200.*percentiles"):
        forecast(tmp_path / "in", window=(-200, 300), **ct | {"images": "{id}_CT.nii.gz"})
    store, said = told(prepare, tmp_path / "in", tmp_path / "ct", **ct)
    assert store.settings["window"] is None and "look like those of a CT" not in said, "it was said, and is wanted"
    low, high = store.cases["a"]["limits"][0]
    assert high < 900, "the percentiles are used"
    for window in (None, (-200, 300)):
        store = prepare(tmp_path / "in", tmp_path / f"both{window}", window=window, progress=False, **both)
        assert store.settings["window"] == [[*(window or (-1000, 1000))], None]
        assert store.cases["a"]["limits"][1][1] < 0.995


@pytest.mark.parametrize(("change", "window", "odd"), [
    (lambda hu: hu, None, False), (lambda hu: hu, (0, 80), False), (lambda hu: hu + 1024, None, True),
    (lambda hu: (hu + 1024) / 40, None, True), (lambda hu: 10 * hu, (-175, 250), True),
    (lambda hu: (hu + 1024) / 4000, (0, 200), True), (lambda hu: hu + 1100, (0, 3000), False)])
def test_scans_whose_values_a_window_is_not_for_are_named(tmp_path, change, window, odd):
    ct_like(tmp_path / "in", "abc", mask=False)
    hu = np.asarray(nib.load(tmp_path / "in/b.nii.gz").dataobj).astype(np.float32)
    others = {(0, 200): lambda hu: (hu + 1024) / 10, (0, 3000): lambda hu: hu + 1024}.get(window)
    for name in "abc" if others else "":
        write_nifti(tmp_path / f"in/{name}.nii.gz", others(hu))
    hu[0, :, :8] = 6000 if change(1) == 10 else hu[0, :, :8]
    write_nifti(tmp_path / "in/b.nii.gz", change(hu))
    _, said = told(prepare, tmp_path / "in", tmp_path / "store", images={"CT": "{id}.nii.gz"}, size=16, window=window)
    assert ("1 of 3 scans do not fit the window" in said and ": b." in said) == odd
    assert odd or "do not fit" not in said


def test_copies_are_named(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "abcd":
        write_nifti(tmp_path / f"in/{name}.nii.gz", whole_numbers(8, 9, 10))
    for name, of in {"x": "b", "y": "b", "z": "c"}.items():
        write_nifti(tmp_path / f"in/{name}.nii.gz", np.asarray(nib.load(tmp_path / f"in/{of}.nii.gz").dataobj)[::-1])
    store = prepare(tmp_path / "in", tmp_path / "store", size=8, progress=False)
    assert read_json(tmp_path / "store/manifest.json")["copied"] == [["b", "x"], ["b", "y"], ["c", "z"], ["x", "y"]]
    assert store.copied[0] == ("b", "x") and store.copies == 3
    assert "(as stored or mirrored), as 'b' and 'x', and count" in str(store)


def test_scans_that_are_scaled_very_differently_are_told(tmp_path):
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for i in range(10):
        values = rng.normal(100, 20, (16, 16, 16)).clip(1)
        values[8, 8, 8] = 20000 if i < 3 else 200
        write_nifti(tmp_path / f"in/s{i}.nii.gz", values.astype(np.float32))
    with pytest.warns(UserWarning, match="3 of 10 scans are dark.*percentiles=.0.5, 99.5.*--percentiles 0.5,99.5"):
        prepare(tmp_path / "in", tmp_path / "store", size=16, progress=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        prepare(tmp_path / "in", tmp_path / "clipped", percentiles=(0.5, 99.5), size=16, progress=False)
    assert not any("are dark" in str(warning.message) for warning in said)


def test_the_masks_of_the_scans_are_kept_whole(tmp_path):
    ct_like(tmp_path / "in", "abcd")
    store = prepare(tmp_path / "in", tmp_path / "store", size=8, masks="{id}_seg.nii.gz", images={"CT": "{id}.nii.gz"},
                    progress=False)
    for name, case in store.cases.items():
        mask = np.asarray(nib.load(tmp_path / "in" / f"{name}_seg.nii.gz").dataobj)
        assert np.array_equal(store.truth(name), mask) and case["voxels"]["1"] == mask.sum()
        assert abs(int(store.mask(name).sum()) * mask.size / 512 / mask.sum() - 1) < 0.01, "its volume is kept"
    store.check(progress=False)
    file = tmp_path / "store/truths/a.npz"
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    with pytest.raises(InputError, match="a.npz: is missing or damaged"):
        store.truth("a")
    with pytest.raises(InputError, match="a.npz: is damaged, 1 file"):
        store.check(progress=False)
    again = prepare(tmp_path / "in", tmp_path / "twice", size=8, masks="{id}_seg.nii.gz", images={"CT": "{id}.nii.gz"},
                    progress=False)
    assert (tmp_path / "twice/truths/a.npz").read_bytes() == whole and again.hash == store.hash


# Millimetres


def ball_scans(folder, n=4):
    """Scans of other shapes, spacings and axes, each with a ball of 40 mm and a mask of it."""
    from test_predict import oblique

    ways = [("RAS", (1.5, 2.0, 5.0)), ("LPS", (1.0, 1.0, 3.0)), ("PSR", (2.0, 2.0, 2.0)), ("AIL", (3.0, 1.5, 1.5))]
    folder.mkdir()
    for i, (axes, mm) in enumerate(ways[:n]):
        shape = tuple(round((70 + 6 * i + 4 * k) / side) for k, side in enumerate(mm))
        at = np.indices(shape) * np.reshape(mm, (3, 1, 1, 1)) - np.reshape([36, 38, 33], (3, 1, 1, 1))
        ball = (at**2).sum(axis=0) < 20**2
        write_nifti(folder / f"{i}_t.nii.gz", 100 * ball.astype(np.float32) + (at[0] > -30), oblique(axes, mm))
        write_nifti(folder / f"{i}_m.nii.gz", ball.astype(np.uint8), oblique(axes, mm))
    return open_cohort(folder, images="{id}_t.nii.gz", masks="{id}_m.nii.gz")


BALL = 4 / 3 * np.pi * 20**3  # mm³


@pytest.mark.parametrize("size", [None, 40])
def test_a_ball_keeps_its_millimetres(tmp_path, size):
    cohort = ball_scans(tmp_path / "in")
    store = prepare(cohort, tmp_path / "store", spacing=(2, 2.5, 3), size=size, test=0.5, progress=False)
    assert store.settings["spacing"] == [2, 2.5, 3] and store.settings["size"] == size
    assert store.own_shapes == (not size)
    for name, case in store.cases.items():
        image, mask, mm = store.image(name), store.mask(name), store.spacing(name)
        extent = np.multiply(case["shape"], case["spacing"])
        assert np.abs(case["resampled"] - extent / (2, 2.5, 3)).max() <= 0.501, "to within half a voxel"
        assert np.allclose(np.multiply(case["resampled"], mm), extent), "the field of view is that of the scan"
        assert image.shape == (1, *mask.shape) and mask.shape == ((size,) * 3 if size else tuple(case["resampled"]))
        assert abs(mask.sum() * np.prod(mm) / BALL - 1) < 0.04 and case["beyond"] == 0
        sides = [np.ptp(np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {k})))) + 1 for k in range(3)]
        assert np.abs(np.multiply(sides, mm) - 40).max() < 5, "as wide as high"
        bright = (image[0].astype(float) > 0.5).sum() * np.prod(mm)
        assert abs(bright / BALL - 1) < 0.1 and set(case["arrays"]) == {"images", "masks", "truths"}
        middles = [np.argwhere(m).mean(axis=0) + 0.5 for m in (mask, store.truth(name))]
        there = (middles[0] + case["offset"]) * mm
        assert np.abs(there - middles[1] * case["spacing"]).max() < 0.5, "the box lies where the manifest says"
    store.check(progress=False)
    assert len({store.image(name).shape for name in store.cases}) == (1 if size else 4)
    assert "of 2 x 2.5 x 3 mm" in str(store)
    again = prepare(cohort, tmp_path / "store", spacing=(2, 2.5, 3), size=size, test=0.5, progress=False)
    assert again.hash == store.hash
    with pytest.raises(InputError, match="spacing was"):
        prepare(cohort, tmp_path / "store", spacing=(2, 2, 3), size=size, test=0.5, progress=False)


def test_the_content_of_a_whole_scan_is_a_part_of_it(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "ab":
        image = np.zeros((40, 30, 20), np.float32)
        image[10:30, 6:18, 5:9] = 1 + RNG.random((20, 12, 4))
        write_nifti(tmp_path / f"in/{name}.nii.gz", image, np.diag([2, 2, 3, 1]))
    store = prepare(tmp_path / "in", tmp_path / "store", spacing=(4, 4, 3), test=0.5, progress=False)
    assert store.cases["a"]["inside"] == [[5, 3, 5], [15, 9, 9]] and not store.cases["a"]["cropped"]
    assert np.array_equal(store.content("a"), store.image("a")[:, 5:15, 3:9, 5:9]) and store.content("a").min() > 0
    assert isinstance(store.content("a"), np.memmap), "mapped, and not kept twice"
    plain = prepare(tmp_path / "in", tmp_path / "plain", spacing=(4, 4, 3), test=0.5, crop=False, progress=False)
    assert plain.content("a").shape == plain.image("a").shape == (1, 20, 15, 20)
    boxed = prepare(tmp_path / "in", tmp_path / "boxed", spacing=(4, 4, 3), size=16, test=0.5, progress=False)
    assert boxed.cases["a"]["offset"] == [2, -2, -1] and np.array_equal(boxed.content("a"), boxed.image("a"))
    assert (boxed.image("a")[0, :, :2] == 0).all(), "what lies beyond the scan is 0"


def test_the_median_spacing_stands_in_numbers(tmp_path):
    cohort = ball_scans(tmp_path / "in", 3)  # in RAS: 1.5 x 2 x 5, 1 x 1 x 3, 2 x 2 x 2
    store = prepare(cohort, tmp_path / "store", spacing="median", test=0.4, progress=False)
    assert store.settings["spacing"] == [1.5, 2, 3] == read_json(store.folder / "manifest.json")["settings"]["spacing"]
    assert prepare(cohort, tmp_path / "store", spacing="median", test=0.4, progress=False).hash == store.hash
    assert forecast(cohort, spacing="median", tries=3)["bytes"] == sum(
        sum(case["bytes"].values()) for case in store.cases.values())


def test_a_store_without_a_spacing_is_as_it_was(tmp_path):
    volumes(tmp_path / "in", "a", "b")
    store = prepare(tmp_path / "in", tmp_path / "store", size=8, test=0.5, progress=False)
    manifest = read_json(store.folder / "manifest.json")
    assert "spacing" not in manifest["settings"] and manifest["settings"]["size"] == 8
    assert not {"resampled", "offset", "inside", "beyond"} & {*store.cases["a"]} and not store.own_shapes
    assert store.spacing("a") == (1, 9 / 8, 10 / 8)


def test_what_a_box_cuts_off_is_told(tmp_path):
    cohort = ball_scans(tmp_path / "in", 2)
    with pytest.warns(UserWarning, match="2 mask.s. a part lies beyond the box.*larger size") as told:
        store = prepare(cohort, tmp_path / "store", spacing=(2, 2, 2), size=8, test=0.5, progress=False)
    assert store.cases["0"]["beyond"] > 0.5 and "more than a hundredth" in str(store) and len(told) == 1


def test_scans_that_have_no_millimetres(tmp_path):
    for folder, write in (("pictures", lambda f: Image.fromarray(RNG.integers(0, 255, (20, 20), np.uint8)).save(f)),
                          ("arrays", lambda f: np.save(f, RNG.random((9, 9, 9))))):
        (tmp_path / folder).mkdir()
        for name in "ab":
            write(tmp_path / folder / f"{name}.{'png' if folder == 'pictures' else 'npy'}")
    for i, (folder, spacing, said) in enumerate((
        ("pictures", (1, 1, 1), "a.png: is a picture.*spacing"),
        ("arrays", (1, 1, 1), "a.npy: does not say how large its voxels are.*NIfTI.*--spacing"),
        ("arrays", "median", "a.npy: does not say"),
        ("pictures", "median", "a picture"),
    )):
        with pytest.raises(InputError, match=said):
            prepare(tmp_path / folder, tmp_path / f"x{i}", spacing=spacing, test=0.5, progress=False)
    with pytest.raises(InputError, match="spacing is .* 3 numbers or 'median'"):
        prepare(tmp_path / "arrays", tmp_path / "x", spacing=(1, 1))


def test_a_thin_scan_lies_in_the_middle_of_eight_voxels(tmp_path):
    for name in "ab":
        write_nifti(tmp_path / f"{name}.nii.gz", 1 + RNG.random((20, 20, 6)), np.diag([2, 2, 1, 1]))
    store = prepare(tmp_path, tmp_path.parent / "thin", spacing=(4, 4, 2), test=0.5, progress=False)
    case, image = store.cases["a"], store.image("a")
    assert case["resampled"] == [10, 10, 3] and case["offset"] == [0, 0, -3] and image.shape == (1, 10, 10, 8)
    assert (image[..., :3] == 0).all() and (image[..., 6:] == 0).all() and image[..., 3:6].mean() > 0.2


def test_a_spacing_in_another_unit_is_told(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "ab":
        write_nifti(tmp_path / f"in/{name}.nii.gz", RNG.random((24, 24, 24)), np.eye(4))
    how = {"test": 0.5, "progress": False}
    for i, (grid, said) in enumerate((
        ({"spacing": (500, 500, 500)}, "24 x 24 x 24 mm large.* 1 x 1 x 1 mm.*500 x 500.*1 x 1 x 1 voxels of it"),
        ({"spacing": (1e-5, 1e-5, 1e-5)}, "2.4e.06 x .* GB, and this machine has .* GB.*larger spacing"),
        ({"spacing": (1e-320, 1, 1)}, "larger spacing"),
        ({"spacing": (2, 2, 2), "size": 10**7}, "GB, and this machine has .* smaller size"),
        ({"size": 10**7}, "smaller size"),
    )):
        with pytest.raises(InputError, match=f"a.nii.gz: .*{said}"):
            prepare(tmp_path / "in", tmp_path / f"x{i}", **grid, **how)
    with pytest.warns(UserWarning, match="2 of 2 arrays less than an eighth.*2 x 2 x 2 of 8 x 8 x 8 voxels.*12 x 12"):
        prepare(tmp_path / "in", tmp_path / "coarse", spacing=(12, 12, 12), **how)
    with pytest.warns(UserWarning, match="12 x 12 x 12 of 32 x 32 x 32 voxels.*a smaller size"):
        prepare(tmp_path / "in", tmp_path / "large", spacing=(2, 2, 2), size=32, **how)


def test_the_median_spacing_leaves_out_a_damaged_header(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "abc":
        write_nifti(tmp_path / f"in/{name}.nii.gz", RNG.random((12, 12, 12)), np.eye(4))
    whole = (tmp_path / "in/a.nii.gz").read_bytes()
    plain = gzip.decompress(whole)
    packed = gzip.compress(plain)
    damages = {"empty": b"", "garbage": RNG.bytes(500), "short": gzip.compress(b"abc"), "half": whole[:60],
               "flipped": packed[:10] + bytes([packed[10] ^ 255]) + packed[11:], "zeros": gzip.compress(bytes(9000)),
               "no voxel": gzip.compress(plain[:280] + bytes(48) + plain[328:]),
               "only magic": gzip.compress(bytes(344) + b"n+1\0" + bytes(9000))}
    for what, damage in damages.items():
        (tmp_path / "in/a.nii.gz").write_bytes(damage)
        cohort = open_cohort(tmp_path / "in")
        with pytest.raises(InputError, match="a.nii.gz: "):
            print(what, median_spacing(cohort))
        assert median_spacing(cohort, skip=True) == [1, 1, 1], what
    store = prepare(tmp_path / "in", tmp_path / "store", spacing="median", on_error="skip", test=0.5, progress=False)
    assert [*store.cases] == ["b", "c"] and store.left_out[0]["case"] == "a"
