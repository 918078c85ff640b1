"""The steps fit into one another: each takes what the one before returned, or its path, and refuses anything else."""

import os
import pickle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import SAMPLES, SMALL

import ssl3d
from ssl3d.evidence.answer import Answer

pytestmark = pytest.mark.quick

QUICK = {"widths": SMALL, "progress": False, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """Store, pretraining run and fine-tuning run, handed on as objects."""
    folder = tmp_path_factory.mktemp("steps")
    store = ssl3d.prepare(SAMPLES, folder / "store", size=16, progress=False)
    run = ssl3d.pretrain("rotation", store, folder / "rotation", steps=12, **QUICK)
    few = ssl3d.finetune(store, folder / "few", encoder=run, labels=0.2, steps=4, warmup=1, **QUICK)
    return store, run, few


def test_objects_and_paths_are_one(walked):
    store, run, few = walked
    assert os.fspath(store) == str(store.folder) and Path(run) == run.folder
    assert few / "log.csv" == few.folder / "log.csv"
    again = ssl3d.finetune(str(store.folder), str(few), encoder=str(run), labels=0.2, steps=4, warmup=1, **QUICK)
    assert again.settings == few.settings, "the same run by its path"
    masks = few.predict(store, few / "masks", progress=False)
    assert len(masks) == 6 and all(mask.exists() for mask in masks)


def test_a_store_keeps_its_fold(walked, tmp_path):
    store = ssl3d.Store(walked[0], fold=(1, 4))
    run = ssl3d.pretrain("rotation", store, tmp_path / "fold", steps=1, **QUICK)
    assert run.settings["fold"] == [1, 4] and ssl3d.Store(store).split("test") == store.split("test")
    assert ssl3d.Store(store, fold=(0, 4)).split("test") != store.split("test")


def test_a_run_knows_what_lies_in_its_folder(walked):
    store, run, few = walked
    assert run.settings["task"] == "rotation" and run.log["step"].tolist() == [*range(1, 13)]
    assert run.card["task"] == "rotation" and run.encoder.channels == SMALL and run.name == "rotation"
    assert {row["case"] for row in few.scores} == set(store.split("test"))
    assert few.summary() == ssl3d.Run(str(few)).summary() and "Dice on the scans of 6 test cases" in few.summary()
    assert len(few.plot()) == 3 and len(run.plot()) == 2, "loss, rate and scores; loss and accuracy"
    assert run == ssl3d.Run(str(run)) == pickle.loads(pickle.dumps(run)) != few and len({run, ssl3d.Run(run)}) == 1
    assert repr(store) == f"Store({str(store.folder)!r})" and repr(run) == f"Run({str(run.folder)!r})"
    plt.close("all")
    with pytest.raises(ssl3d.InputError, match="no scores.csv"):
        run.scores  # noqa: B018
    with pytest.raises(ssl3d.InputError, match="no settings.yaml"):
        ssl3d.Run(store)


def test_a_run_says_in_a_line_whether_anything_was_learned(walked, tmp_path, capsys):
    store, run, _ = walked
    for accuracy, said in ((0.1, "no learning was shown"), (0.6, "learned rotation in 40 steps: 0.60")):
        made = tmp_path / said[:7]
        made.mkdir()
        rows = [f"{step},1.0,{accuracy + 0.05 * (-1) ** step:.3f},0.1" for step in range(1, 41)]
        (made / "log.csv").write_text("step,loss,accuracy,chance\n" + "\n".join(rows) + "\n")
        settings = (run / "settings.yaml").read_text()
        (made / "settings.yaml").write_text(settings.replace("steps: 12\n", "steps: 40\n"))
        assert said in ssl3d.Run(made).summary()
    (made / "settings.yaml").write_text(settings.replace("steps: 12\n", "steps: 2000\n"))
    assert "not finished, 40 of 2000 steps" in ssl3d.Run(made).summary()
    validated = ssl3d.finetune(store, tmp_path / "v", validate=True, steps=1, **QUICK)
    assert "validation cases" in validated.summary() and "test cases" not in validated.summary()
    again = ssl3d.pretrain("rotation", store, run, steps=12, **QUICK | {"progress": True})
    assert again.summary() in capsys.readouterr().out, "a finished step ends with its line"


@pytest.mark.parametrize("wrong", [5, None, 2.5, ["runs/a"], np.zeros(3)], ids=str)
def test_what_stands_for_no_folder_is_refused(walked, wrong, tmp_path):
    store, run, few = walked
    calls = {
        "store": lambda: ssl3d.finetune(wrong, tmp_path / "x", steps=1, **QUICK),
        "out": lambda: ssl3d.finetune(store, wrong, steps=1, **QUICK),
        "run": lambda: ssl3d.predict(wrong, store, tmp_path / "masks"),
        "description": lambda: ssl3d.experiment(wrong, tmp_path / "x"),
    }
    for what, call in calls.items():
        with pytest.raises(ssl3d.InputError, match=f"{what} is of type {type(wrong).__name__}. Give a path"):
            call()
    if wrong is not None:
        with pytest.raises(ssl3d.InputError, match="encoder is .*, and has to be a path, a run or a module"):
            ssl3d.finetune(store, tmp_path / "x", encoder=wrong, steps=1, **QUICK)
    with pytest.raises(ssl3d.InputError, match="images are of type|the dataset gives a"):
        ssl3d.pretrain("rotation", wrong, tmp_path / "x", steps=1, **QUICK)
    assert not (tmp_path / "x").exists()


def test_the_wrong_kind_of_folder_is_refused(walked, tmp_path):
    store, run, few = walked
    for call, said in (
        (lambda: ssl3d.pretrain("rotation", run, tmp_path / "x", steps=1, **QUICK), "rotation: is a run, and no store"),
        (lambda: ssl3d.finetune(store, tmp_path / "x", encoder=store, steps=1, **QUICK), "prepared store, and no run"),
        (lambda: ssl3d.predict(run, store, tmp_path / "x"), "rotation: holds no network"),
        (lambda: ssl3d.predict(store, few, tmp_path / "x"), "store: has no settings.yaml"),
        (lambda: ssl3d.prepare(store, tmp_path / "x"), "is a prepared store already"),
    ):
        with pytest.raises(ssl3d.InputError, match=said) as error:
            call()
        assert "\n" not in str(error.value), "one line, not the whole store"


def test_an_experiment_ends_in_an_answer(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        f"cohort: {{source: '{SAMPLES}', size: 16}}\n"
        "arms: {scratch: {}, rotation: {task: rotation, steps: 2}, lost: {finetuning: {lr: 1.0e+20}}}\n"
        "label_fractions: [0.5]\nseeds: 1\nnetwork: {widths: [8, 16, 32]}\nfinetuning: {steps: 2}\n"
    )
    answer = ssl3d.experiment(tmp_path / "mine.yaml", tmp_path / "out", progress=False)
    assert isinstance(answer, Answer) and os.fspath(answer) == str(tmp_path / "out")
    assert [found["arm"] for found in answer.verdicts] == ["rotation"]
    assert {line["cell"] for line in answer.failed} == {"lost-0.5-0"} and "failed: lost-0.5-0" in str(answer)
    assert answer.report().read_text().startswith("<") and str(answer) == (tmp_path / "out/summary.txt").read_text()
    described = ssl3d.read_experiment(tmp_path / "mine.yaml")
    again = ssl3d.experiment(described, tmp_path / "out", progress=False)
    assert str(again.rows) == str(answer.rows), "as text, for no surface has a distance that is no number"


def test_bare_mistakes_are_named(walked, tmp_path):
    store, _, few = walked
    row = {"label_fraction": 1, "seed": 0, "subject": "p", "dice": 1}
    for call, said in (
        (lambda: store.split("tset"), "part is 'tset', and has to be one of train, test, validation"),
        (lambda: store.image("brain_01"), "has no case 'brain_01'. There are 32, one of them 'brain_0"),
        (lambda: store.spacing(3), "has no case 3"),
        (lambda: ssl3d.read_log(3), "run is of type int"),
        (lambda: ssl3d.open_cohort(""), "source is an empty path"),
        (lambda: ssl3d.prepare("", tmp_path / "x"), "source is an empty path"),
        (lambda: ssl3d.run_experiment("my.yaml", tmp_path / "x"), "the experiment is of type str"),
        (lambda: ssl3d.make_encoder("unet", 5, 1), "spatial_dims is 5, and has to be one of 2, 3"),
        (lambda: ssl3d.planes(store.image("brain_001")), "give .X, Y, Z."),
        (lambda: ssl3d.verdict([]), "There are: none"),
        (lambda: ssl3d.verdict([row | {"arm": arm} for arm in "ab"]), "have no metric"),
        (lambda: ssl3d.Run(few).prepare("nowhere.nii"), "nowhere.nii"),
    ):
        with pytest.raises(ssl3d.InputError, match=said):
            call()


def test_a_file_is_no_run(tmp_path):
    file = tmp_path / "network.pt"
    file.write_bytes(b"weights")
    for act in (lambda: ssl3d.Run(file), lambda: ssl3d.predict(file, tmp_path, tmp_path / "out")):
        with pytest.raises(ssl3d.InputError, match="network.pt: is a file. Give the folder of a run"):
            act()
