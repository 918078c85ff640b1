"""Scans in any form, as a run saw them: prepared alike, one feature vector each, masks and tables without a store."""

import gzip
import json
import shutil
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import SAMPLES, SMALL, write_nifti

import ssl3d
from ssl3d.data.prepare import prepare
from ssl3d.downstream.finetune import finetune
from ssl3d.errors import InputError
from ssl3d.files import read_table
from ssl3d.networks.cards import check_card
from ssl3d.training.loop import read_batch
from ssl3d.training.pretrain import pretrain
from ssl3d.training.probes import pooled_features

QUICK = {"widths": SMALL, "progress": False, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def runs(store, tmp_path_factory):
    """A pretraining run, one on slices, and fine-tuning runs for masks and grades, on the sample brains at 16."""
    folder = tmp_path_factory.mktemp("runs")
    lines = [f"{f},{i % 3},{20 + i}" for i, f in enumerate(sorted((SAMPLES / "imagesTr").glob("*.nii.gz")))]
    (folder / "graded.csv").write_text("image,grade,age\n" + "\n".join(lines))
    graded = prepare(folder / "graded.csv", folder / "graded", size=16, percentiles=(1, 99), progress=False)
    return {
        "graded": graded,
        "rot": pretrain("rotation", store, folder / "rot", steps=2, **QUICK),
        "flat": pretrain("rotation", store, folder / "flat", steps=2, slices=True, **QUICK),
        "masks": finetune(store, folder / "masks", steps=2, warmup=0, **QUICK),
        "grades": finetune(graded, folder / "grades", goal="classification", steps=2, warmup=0, **QUICK),
        "ages": finetune(graded, folder / "ages", goal="regression", steps=2, warmup=0, **QUICK),
    }


def scan(name="brain_001"):
    return SAMPLES / "imagesTr" / f"{name}.nii.gz"


def test_a_file_is_prepared_as_its_store_was(store, runs):
    for name in store.split("test")[:2]:
        whole, content = (read_batch(store, [name], content=c).image[0] for c in (False, True))
        assert torch.equal(runs["masks"].prepare(scan(name)), whole), "fine-tuning sees the whole image"
        assert torch.equal(runs["rot"].prepare(str(scan(name))), content), "pretraining its content"
    graded = runs["graded"]
    image = read_batch(graded, ["brain_005"]).image[0]
    assert torch.equal(runs["grades"].prepare([scan("brain_005")]), image) and graded.settings["percentiles"] == [1, 99]


def test_features_are_the_same_from_wherever_the_scans_come(store, runs, tmp_path):
    test, run = store.split("test"), runs["masks"]
    expected = pooled_features(run.encoder, store, test)
    for name in test:
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copy(scan(name), tmp_path / "in")
    (tmp_path / "t.csv").write_text("image\n" + "\n".join(str(scan(name)) for name in test))
    for given in (store, str(store.folder), tmp_path / "in", [scan(name) for name in test], tmp_path / "t.csv",
                  ssl3d.open_cohort(tmp_path / "in")):  # fmt: skip
        ids, features = run.features(given, progress=False)
        assert ids == test and features.dtype == np.float32 and np.allclose(features, expected, atol=1e-5)
    ids, features = run.features(scan(test[0]), progress=False)
    assert ids == test[:1] and features.shape == (1, SMALL[-1]) and np.allclose(features[0], expected[0], atol=1e-5)
    _, flat = runs["flat"].features(store, progress=False)
    assert flat.shape == (len(test), SMALL[-1]) and np.isfinite(flat).all(), "a 2D encoder sees every slice"
    ids, _ = run.features(tmp_path / "in", images="{id}.nii.gz", progress=False)
    assert ids == test, "a folder is described as for `prepare`"


def test_another_store_has_to_be_prepared_alike(store, runs):
    with pytest.raises(InputError, match="prepared in another way.*percentiles .1, 99. .here None"):
        runs["grades"].features(store, progress=False)
    ids, _ = runs["ages"].features(runs["graded"], progress=False)
    assert ids == runs["graded"].split("test"), "of its own store the test cases"


def test_a_run_predicts_without_its_store(store, runs, tmp_path):
    run = ssl3d.Run(shutil.copytree(runs["masks"], tmp_path / "moved"))
    masks = run.predict(scan(), tmp_path / "masks", probabilities=True, progress=False)
    assert [m.name for m in masks] == ["brain_001.nii.gz", "brain_001_probabilities.nii.gz"]
    mask, probabilities = (nib.load(m) for m in masks)
    assert np.allclose(mask.affine, nib.load(scan()).affine) and probabilities.shape == (*mask.shape, 4)
    values = np.asarray(probabilities.dataobj)
    assert np.allclose(values.sum(axis=-1), 1, atol=1e-3) and values.dtype == np.float32
    assert (np.asarray(mask.dataobj) == values.argmax(axis=-1)).mean() > 0.9, "but for volumes that are kept"
    plain = run.predict([scan()], tmp_path / "plain", progress=False)
    assert plain[0].read_bytes() == masks[0].read_bytes()
    with pytest.raises(InputError, match="probabilities was False and is now True"):
        run.predict([scan()], tmp_path / "plain", probabilities=True, progress=False)


@pytest.mark.parametrize("kind", ["grades", "ages"])
def test_answers_for_whole_images_come_in_a_table(runs, tmp_path, monkeypatch, kind):
    run, graded = runs[kind], runs["graded"]
    (file,) = run.predict(SAMPLES / "imagesTr", tmp_path / "out", progress=False)
    rows = {row["case"]: row for row in read_table(file)}
    assert len(rows) == 32
    for kept in read_table(run / "predictions.csv"):
        shared = {k: v for k, v in kept.items() if k not in ("grade", "age")}
        assert {k: float(v) for k, v in rows[kept["case"]].items() if k != "case"} == pytest.approx(
            {k: float(v) for k, v in shared.items() if k != "case"}, abs=1e-3
        )
    noted = (tmp_path / "out/answers.jsonl").read_text().splitlines()
    (tmp_path / "out/answers.jsonl").write_text("\n".join(noted[:5]) + "\n" + noted[5][:9])  # as if it were stopped
    file.unlink()
    from ssl3d.training import inputs

    seen = []
    whole = inputs.Scans.image
    monkeypatch.setattr(inputs.Scans, "image", lambda self, case: seen.append(case.id) or whole(self, case))
    assert run.predict(SAMPLES / "imagesTr", tmp_path / "out", progress=False) == [file]
    assert len(seen) == 27 and {row["case"]: row for row in read_table(file)} == rows
    assert graded.classes == {} and json.loads((tmp_path / "out/predictions.json").read_text())["goal"]


def test_what_cannot_be_looked_at_is_refused(runs, tmp_path):
    run = runs["masks"]
    one = write_nifti(tmp_path / "one.nii", np.random.default_rng(0).random((9, 9, 9)))
    for call, said in (
        (lambda: run.predict(one, tmp_path / "x"), r"one.nii: has 1 channel\(s\) in 3D.*trained on 4 .T1, T1c, T2"),
        (lambda: run.predict(tmp_path / "none", tmp_path / "x"), "none: no such file or folder"),
        (lambda: run.predict([], tmp_path / "x"), "no scans are given"),
        (lambda: run.predict(3, tmp_path / "x"), "scans is of type int"),
        (lambda: run.predict(one, tmp_path / "x.csv"), "is the name of a file"),
        (lambda: run.predict(one, None), "out is of type NoneType"),
        (lambda: run.features(one, progres=True), "no option 'progres'. Did you mean 'progress'"),
        (lambda: run.prepare(3), "scan is of type int"),
        (lambda: runs["grades"].predict(one, tmp_path / "x", probabilities=True), "the goal of this run is classif"),
        (lambda: runs["rot"].predict(one, tmp_path / "x"), "rot: holds no network"),
        (lambda: runs["rot"].network, "rot: holds no network"),
    ):
        with pytest.raises(InputError, match=said):
            call()
    assert not (tmp_path / "x/one.nii.gz").exists()


def told_by(call, *args, **how):
    """What a call returns, and the texts of the warnings of this package that it gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call(*args, **how)
    return result, [str(each.message) for each in caught if each.filename == "ssl3d"]


def blob(seed, low=0, high=800, shape=(12, 14, 16)):
    """A body in air, with noise, from one intensity to the other."""
    values = np.random.default_rng(seed).random(shape) * 0.2
    values[3:-3, 3:-3, 3:-3] += 0.8
    return (low + values * (high - low)).astype(np.int16)


def many(folder, n=6, names=("",), affine=None, start=0, **how):
    """Scans of several people, a file for each modality; where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + n):
        for k, name in enumerate(names):
            write_nifti(folder / f"{i}{name and '_'}{name}.nii.gz", blob(100 * k + i, **how), affine)
    return folder


def patterns(*names):
    return {name: f"{{id}}_{name}.nii.gz" for name in names}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Runs on scans that begin at 0, on CT, and on two modalities; each with its folder of scans and its store."""
    folder, made = tmp_path_factory.mktemp("plain"), {}
    for name, low, high, kinds in (("mri", 0, 800, ("",)), ("ct", -1024, 1300, ("",)), ("two", 0, 800, ("T1", "T2"))):
        scans = many(folder / f"{name}-scans", names=kinds, low=low, high=high)
        images = patterns(*kinds) if len(kinds) > 1 else None
        store = prepare(scans, folder / f"{name}-store", images=images, size=8, progress=False)
        run = pretrain("rotation", store, folder / name, steps=1, widths=(4, 8), progress=False, accelerator="cpu")
        shutil.move(store.folder, folder / f"{name}-away")  # a run knows by itself what it was trained on
        made[name] = run
    return made


def features(run, scans, **how):
    return run.features(scans, progress=False, accelerator="cpu", **how)


@pytest.mark.parametrize("there, said", [
    (("FLAIR", "T1w"), "has the modalities FLAIR, T1w, but the run was trained on T1, T2.*images=.'T1': PATTERN.*--im"),
    (("T1", "T1w"), "T1, T1w, but the run was trained on T1, T2"),
    (("T2", "T1"), "T2, T1, but.*in that order: modalities=.'T1', 'T2'.*--modalities T1,T2"),
    (("t2", "t1"), "t2, t1, but.*modalities=.'t1', 't2'.*--modalities t1,t2"),  # as they are written there
    (("T1", "FLAIR", "T2"), "--modalities T1,T2"),
    (("T2",), "has the modalities T2, but the run was trained on T1, T2"),
    (("t1", "T2"), None),
])  # fmt: skip
def test_other_modalities_than_those_of_the_training_are_refused(plain, tmp_path, there, said):
    scans = many(tmp_path / "in", 2, there, start=50)
    if said is None:
        assert len(features(plain["two"], scans, images=patterns(*there))[0]) == 2
        return
    with pytest.raises(InputError, match=said):
        features(plain["two"], scans, images=patterns(*there))
    with pytest.raises(InputError, match=said):
        features(plain["two"], ssl3d.open_cohort(scans, images=patterns(*there)))
    with pytest.raises(InputError, match=said):
        features(plain["two"], prepare(scans, tmp_path / "s", images=patterns(*there), size=8, progress=False))


def test_the_cures_for_other_modalities_work(plain, tmp_path):
    scans = many(tmp_path / "in", 2, ("t2", "flair", "t1"), start=50)
    expected = features(plain["two"], scans, images=patterns("t1", "t2"))[1]
    named = features(plain["two"], scans, images={"T1": "{id}_t1.nii.gz", "T2": "{id}_t2.nii.gz"})[1]
    chosen = features(plain["two"], scans, images=patterns("t2", "flair", "t1"), modalities=("t1", "t2"))[1]
    assert np.array_equal(expected, named) and np.array_equal(expected, chosen)


def test_channels_without_names_are_noted_once(plain, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(3):
        both = np.stack([blob(60 + i), blob(70 + i)], axis=-1)
        write_nifti(tmp_path / f"in/new{i}.nii.gz", both)
    _, told = told_by(features, plain["two"], tmp_path / "in")
    assert len(told) == 1 and "which channel is which modality" in told[0] and "T1, T2, in this order" in told[0]
    assert told_by(features, plain["mri"], many(tmp_path / "one", 2, start=60))[1] == [], "one channel is plain"


def test_intensities_of_another_kind_are_refused(plain, tmp_path):
    mri, ct = many(tmp_path / "mri", 2, start=70), many(tmp_path / "ct", 2, low=-1024, high=1300, start=80)
    for run, scans, said in (("mri", ct, "80.nii.gz: looks like CT in HU: its values run from -1023 to 1"),
                             ("ct", mri, "70.nii.gz: is no CT in HU: its values run from 0 to 7")):  # fmt: skip
        first = sorted(scans.iterdir())[0]
        store = prepare(scans, tmp_path / f"s{run}", size=8, test=0, progress=False)
        for call, given in ((features, scans), (features, first), (features, store), (ssl3d.Run.prepare, first)):
            with pytest.raises(InputError, match=f"{said}.*trained on values from.*Give scans of the kind"):
                call(plain[run], given)
    for run, scans in (("mri", mri), ("ct", ct)):
        assert told_by(features, plain[run], scans)[1] == []


@pytest.mark.parametrize("trained, low, high, expected", [
    ("mri", 0, 255, "accepted"),  # as uint8
    ("mri", 0, 30_000, "accepted"),  # units of MRI are anybody's
    ("mri", -30, 800, "accepted"),  # bias correction leaves a little below zero
    ("mri", -5, 5, "accepted"),  # standardised
    ("mri", -900, 30_000, "accepted"),  # below zero, but not beside its largest
    ("mri", 0, 2300, "accepted"),  # a CT that begins at 0 cannot be told from MRI
    ("mri", -1000, 1000, "refused"),
    ("mri", -2000, 3000, "refused"),
    ("ct", -1000, 400, "accepted"),
    ("ct", 0, 2300, "noted"),  # a shifted CT gives the network the same image
    ("ct", -160, 240, "noted"),  # a window
    ("ct", 0, 255, "refused"),
    ("ct", -5, 5, "refused"),
    ("ct", -30, 800, "refused"),
    ("ct", 0, 30_000, "refused"),
])  # fmt: skip
def test_only_a_clear_difference_of_intensities_is_refused(plain, tmp_path, trained, low, high, expected):
    file = write_nifti(tmp_path / "new.nii.gz", blob(90, low, high))
    if expected == "refused":
        with pytest.raises(InputError, match="HU"):
            plain[trained].prepare(file)
        return
    _, told = told_by(plain[trained].prepare, file)
    assert len(told) == (expected == "noted") and all("values unlike those" in text for text in told)


def test_a_channel_is_named_by_its_modality(plain, tmp_path):
    for kind, low in (("T1", 0), ("T2", -1024)):
        write_nifti(tmp_path / f"{kind}.nii.gz", blob(91, low, 1000))
    with pytest.raises(InputError, match="T1.nii.gz: looks like CT.*in channel T2"):
        plain["two"].prepare([tmp_path / "T1.nii.gz", tmp_path / "T2.nii.gz"])


@pytest.mark.parametrize("affine, kinds", [
    (np.diag([1.4, 1, 1, 1]), ()),
    (np.diag([-1.0, -1, 1, 1]), ()),  # stored in other axes
    (np.diag([1, 1, 2.0, 1]), ("voxels of a size", "more or less of the body")),
    (np.diag([0.5, 1, 1, 1]), ("voxels of a size", "more or less of the body")),
    (np.diag([1, 1, 1.6, 1])[[2, 0, 1, 3]], ("voxels of a size",)),  # along the first axis of the patient
])  # fmt: skip
def test_unusual_voxels_are_told_once_for_all_scans(plain, tmp_path, affine, kinds):
    many(tmp_path / "in", 2, start=92)
    many(tmp_path / "in", 3, start=95, affine=affine, **({"shape": (14, 16, 12)} if affine[0, 2] else {}))
    (ids, found), told = told_by(features, plain["mri"], tmp_path / "in")
    kinds = kinds + (("more or less of the body",) if affine[0, 2] else ())
    assert len(ids) == 5 and len(told) == len(kinds)
    for kind, text in zip(kinds, told):
        assert "3 of 5 scans" in text and kind in text and "The first is 95: " in text and "trained on" in text


def test_what_a_scan_lacks_beside_the_training(plain):
    from ssl3d.networks.cards import ranges_of
    from ssl3d.training.inputs import unlike

    volume = {"shape": [9, 9, 9], "spacing": [1, 1, 1], "axes": "LPS", "percentiles": [[0, 0, 5, 9, 9]]}
    nowhere = volume | {"axes": "unknown", "spacing": [7, 7, 7]}
    assert unlike(nowhere, ranges_of([volume])).keys() == {"orientation"} and not unlike(nowhere, ranges_of([nowhere]))
    for file in ("x.npy", "x.npz/train_images/3"):
        array = volume | {"files": [file], "spacing": [5, 5, 5]}
        assert unlike(array, ranges_of([volume])).keys() == {"orientation"} and not unlike(array, ranges_of([array]))
    assert not unlike(volume, ranges_of([nowhere])) and not unlike(nowhere, ranges_of([volume, nowhere]))
    colour = {
        "shape": [9, 9],
        "spacing": [1, 1],
        "axes": "",
        "percentiles": [[0, 0, 5, 9, 9], [0, 0, 4, 8, 9], [0] * 5],
    }
    grey = colour | {"percentiles": [[0, 0, 5, 9, 9]] * 3}
    assert "trained on colour" in unlike(grey, ranges_of([colour, colour]))["colour"]
    assert "trained on grey" in unlike(colour | {"shape": [99, 9]}, ranges_of([grey]))["colour"]
    assert not unlike(grey, ranges_of([grey, colour])) and not unlike(colour, ranges_of([colour]))


def test_scans_that_were_trained_on_are_counted(plain, tmp_path):
    run, trained = plain["mri"], Path(plain["mri"].folder).parent / "mri-scans"
    store = Path(run.folder).parent / "mri-away"
    n = len(ssl3d.Store(store).split("train"))
    many(tmp_path / "in", 4, start=110)
    for i, name in enumerate(ssl3d.Store(store).split("train")[:3]):
        raw = gzip.decompress((trained / f"{name}.nii.gz").read_bytes())
        (tmp_path / f"in/copy{i}.nii").write_bytes(raw)
    _, told = told_by(features, run, tmp_path / "in")
    assert len(told) == 1 and "3 of 7 scans were trained on" in told[0] and "The first is copy0" in told[0]
    _, told = told_by(features, run, trained)
    assert len(told) == 1 and f"{n} of 6 scans were trained on" in told[0]
    assert told_by(features, run, ssl3d.Store(store))[1] == [], "the test cases of its own store"
    name = ssl3d.Store(store).split("train")[0]
    again = write_nifti(tmp_path / f"{name}.nii.gz", blob(111))  # another scan under the name of a person
    _, told = told_by(features, run, [again])
    assert len(told) == 1 and "1 of 1 scans have the name of a subject that was trained on" in told[0]
    _, told = told_by(run.prepare, trained / f"{name}.nii.gz")
    assert len(told) == 1 and "1 of 1 scans were trained on" in told[0]


def test_a_fine_tuned_run_remembers_what_its_encoder_saw(runs, store, tmp_path):
    run = finetune(store, tmp_path / "ft", encoder=runs["rot"], labels=0.05, steps=1, progress=False)
    seen = store.split("train")
    assert len(json.loads((run / "network.json").read_text())["trained_on"]) == 1 and run.card["scans"]["placed"]
    files, told = told_by(
        lambda: run.predict([scan(seen[3]), scan(store.split("test")[0])], tmp_path / "o", progress=False)
    )
    assert sum("1 of 2 scans were trained on, by this run or before it" in text for text in told) == 1
    rows = read_table(tmp_path / "o/notes.csv")
    assert {"case": seen[3], "kind": "trained on"}.items() <= rows[-1].items() and len(files) == 2


def test_notes_are_kept_beside_the_masks_and_go_on(runs, tmp_path):
    for i in range(3):
        image = nib.load(scan(f"brain_00{i + 1}"))
        wide = nib.Nifti1Image(np.asarray(image.dataobj) + i + 1, np.diag([4, 4, 9.0 + i, 1]))
        (tmp_path / "in").mkdir(exist_ok=True)
        nib.save(wide, tmp_path / f"in/new{i}.nii.gz")
    call = (runs["masks"].predict, tmp_path / "in", tmp_path / "out")
    files, told = told_by(*call, progress=False)
    before = read_table(tmp_path / "out/notes.csv")
    assert [(row["case"], row["kind"]) for row in before[1:]] == [
        (f"new{i}", kind) for i in range(3) for kind in ("looks trained on", "spacing", "field of view")
    ]
    assert sum("3 of 3 scans" in text for text in told) == 3 and "4 x 4 x 9 mm" in before[2]["note"]
    files[1].unlink()
    with open(tmp_path / "out/notes.csv", "a") as f:
        f.write("new1,spacing,4 x")  # stopped while writing
    again, told_again = told_by(*call, progress=False)
    assert again == files and told_again == told and read_table(tmp_path / "out/notes.csv") == before


def test_files_that_were_left_out_are_told(plain, tmp_path):
    many(tmp_path / "in", 2, start=120)
    (tmp_path / "in/x.mnc").write_bytes(b"NRRD0004")
    ids, told = told_by(features, plain["mri"], tmp_path / "in", on_error="skip")
    assert ids[0] == ["120", "121"] and len(told) == 1 and "1 problem left out" in told[0] and "x.mnc" in told[0]


def test_a_run_of_an_earlier_version_says_that_it_cannot_compare(plain, tmp_path):
    old = shutil.copytree(plain["mri"], tmp_path / "old")
    card = json.loads((old / "encoder.json").read_text())
    (old / "encoder.json").write_text(
        json.dumps({k: v for k, v in card.items() if k not in ("scans", "voxel_digests")})
    )
    ct = many(tmp_path / "ct", 2, low=-1024, high=1300, start=130)
    (ids, _), told = told_by(features, ssl3d.Run(old), ct)
    assert len(ids) == 2 and len(told) == 1 and "earlier version" in told[0] and "not compared" in told[0]
    trained = Path(plain["mri"].folder).parent / "mri-scans"
    assert any("were trained on" in text for text in told_by(features, ssl3d.Run(old), trained)[1])


def test_an_encoder_that_saw_a_test_scan_in_another_file_is_refused(plain, tmp_path):
    trained = Path(plain["mri"].folder).parent / "mri-scans"
    for i in range(6):
        raw = gzip.decompress((trained / f"{i}.nii.gz").read_bytes())
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"in/other{i}.nii").write_bytes(raw)
    store = prepare(tmp_path / "in", tmp_path / "s", size=12, percentiles=(1, 99), test=0.5, progress=False)
    with pytest.raises(InputError, match=r"keeps for testing \(. of them as the same voxels in another file\).*'other"):
        check_card(plain["mri"].card, store, "mri")
    check_card(plain["mri"].card, store, "mri", allow_seen="all")
    for case in store.cases.values():
        del case["voxel_digests"]  # as in a store of an earlier version
    check_card(plain["mri"].card, store, "mri")


def test_a_near_copy_of_a_scan_that_was_trained_on_is_noted(store, runs, tmp_path):
    """Its values are scaled and rounded, its margin is cut: no digest is the same."""
    for name, part in (("brain_a", "train"), ("brain_b", "test")):
        volume = nib.load(scan(store.split(part)[0]))
        values = np.asarray(volume.dataobj)[1:, :, 1:]
        path = tmp_path / "in" / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image((values / values.max() * 255).round().astype(np.uint8), volume.affine), path)
    for act in (lambda: runs["masks"].predict(tmp_path / "in", tmp_path / "out", progress=False),
                lambda: runs["rot"].features(tmp_path / "in", progress=False)):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            act()
        said = [str(each.message) for each in told if "look like a scan that was trained on" in str(each.message)]
        assert len(said) == 1 and "1 of 2 scans look like" in said[0] and "The first is brain_a" in said[0]
    rows = [row for row in read_table(tmp_path / "out/notes.csv") if row["kind"] == "looks trained on"]
    assert [row["case"] for row in rows] == ["brain_a"]
