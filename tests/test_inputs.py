"""Scans in any form, as a run saw them: prepared alike, one feature vector each, masks and tables without a store."""

import json
import shutil

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
    assert (np.asarray(mask.dataobj) == values.argmax(axis=-1)).mean() > 0.999
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
