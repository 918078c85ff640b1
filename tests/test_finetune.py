"""Fine-tuning: what is frozen, whose labels are read, which network a preset means, and what a failed training says."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import RNG, SMALL, volumes
from PIL import Image

from ssl3d.data.prepare import prepare
from ssl3d.data.store import Store
from ssl3d.downstream import finetune as module
from ssl3d.downstream.classification import Classification
from ssl3d.downstream.finetune import cases_of, filled, finetune, plan_steps
from ssl3d.downstream.goals import make_goal, one_answer
from ssl3d.downstream.regression import Regression
from ssl3d.errors import InputError
from ssl3d.files import read_json, write_table
from ssl3d.settings import Finetuning
from ssl3d.training.pretrain import pretrain

QUICK = {"widths": SMALL, "progress": False}


@pytest.mark.quick
@pytest.mark.parametrize("goal, epochs", [("segmentation", 25), ("classification", 5), ("regression", 5)])
def test_the_warmup_of_the_preset_counts_in_epochs_however_long_the_training_is(goal, epochs):
    chosen = make_goal(goal)
    for length in ({}, {"steps": 200}, {"epochs": 50}):
        how = filled(Finetuning(preset="paper", batch_size=4, **length), chosen)
        assert plan_steps(12, how, chosen)[1] == 3 * epochs, "three steps an epoch"
    assert plan_steps(12, filled(Finetuning(preset="paper", steps=200, warmup=7), chosen), chosen) == (200, 7)
    assert plan_steps(12, filled(Finetuning(steps=200), chosen), chosen) == (200, 0)
    with pytest.raises(InputError, match=rf"longer than the training.*{epochs} epochs.* {3 * epochs} steps.* 14 steps"):
        plan_steps(12, filled(Finetuning(preset="paper", batch_size=4, steps=14), chosen), chosen)


def test_a_run_with_the_preset_says_how_long_it_was_frozen(store, tmp_path):
    with pytest.warns(UserWarning, match="the paper had images of 128 voxels a side, and these have 16"):
        run = finetune(store, tmp_path / "x", preset="paper", steps=27, labels=0.08, **QUICK)
    assert run.settings["warmup_steps"] == 25, "one step an epoch"
    with pytest.raises(InputError, match="25 epochs.*--warmup 0"):
        finetune(store, tmp_path / "y", preset="paper", steps=20, labels=0.08, **QUICK)


# Whose labels are read


def poisoned(store, out, spared):
    """A copy of a store in which nobody can read a mask but those of some cases."""
    shutil.copytree(store.folder, out)
    for file in (out / "masks").glob("*.npy"):
        if file.stem not in spared:
            file.write_bytes(b"nothing")
    return Store(out)


@pytest.mark.parametrize("labels, n", [(0.1, 1), (0.25, 1), (0.5, 3)])
def test_a_share_is_validated_on_its_own_people(store, labels, n):
    goal = make_goal("segmentation")
    how = filled(Finetuning(labels=labels, validate=True, seed=3), goal)
    _, share, _ = cases_of(store, goal, filled(Finetuning(labels=labels, seed=3), goal))
    truths, few, held = cases_of(store, goal, how)
    assert {*few, *held} == {*share} and not {*few} & {*held} and len(held) == n == len(truths["test"])
    whole = cases_of(store, goal, filled(Finetuning(validate=True), goal))[2]
    assert whole == store.split("validation"), "with all labels it is what it was"


def test_nobody_elses_mask_is_read(store, tmp_path):
    how, goal = {"labels": 0.2, "validate": True, "steps": 3, "track": 1}, make_goal("segmentation")
    _, few, held = cases_of(store, goal, filled(Finetuning(labels=0.2, validate=True), goal))
    run = finetune(store, tmp_path / "run", **how, **QUICK)
    blind = finetune(poisoned(store, tmp_path / "blind", {*few, *held}), tmp_path / "again", **how, **QUICK)
    assert (run / "scores.csv").read_bytes() == (blind / "scores.csv").read_bytes()
    assert {row["case"] for row in run.scores} == {*held} and read_json(run / "network.json")["trained_on"] == few


@pytest.mark.quick
@pytest.mark.parametrize("goal, n, needed", [("segmentation", 1, 2), ("classification", 1, 2), ("regression", 2, 3)])
def test_too_few_to_hold_anybody_back(tmp_path, goal, n, needed):
    names = [f"s{i:02d}" for i in range(12)]
    volumes(tmp_path, *names, mask=[f"m{name}" for name in names])
    lines = [f"{s}.nii.gz,m{s}.nii.gz,{i % 2},{30 + i}" for i, s in enumerate(names)]
    (tmp_path / "t.csv").write_text("\n".join(["image,mask,grade,age", *lines]))
    store, chosen = prepare(tmp_path / "t.csv", tmp_path / "store", size=16, progress=False), make_goal(goal)
    with pytest.raises(InputError, match=f"validate needs {needed} labelled people.*this share has {n}.*--labels"):
        cases_of(store, chosen, filled(Finetuning(goal=goal, labels=n / 10, validate=True), chosen))
    _, few, held = cases_of(store, chosen, filled(Finetuning(goal=goal, labels=needed / 10, validate=True), chosen))
    assert (len(few), len(held)) == (1, needed - 1)


@pytest.mark.quick
def test_a_score_of_people_who_are_all_alike_is_defined(tmp_path):
    """Kappa and R² say nothing where all have one grade or age, and the right answers would count as the worst."""
    write_table(tmp_path / "predictions.csv", [{"case": "a", "grade": 2, "predicted": 2, "age": 40.0, "guess": 41.0}])
    write_table(tmp_path / "scores.csv", [{"cases": 1, "kappa": float("nan"), "accuracy": 1.0, "r2": 0.0, "mae": 1.0}])
    assert Classification().score(tmp_path) == 1 and Regression().score(tmp_path) == -1


# The network of the preset


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures of 32 pixels with grades."""
    folder, lines = tmp_path_factory.mktemp("pictures"), []
    for i in range(10):
        Image.fromarray(RNG.integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(folder / f"p{i}.png")
        lines.append(f"p{i}.png,{i % 2}")
    (folder / "t.csv").write_text("\n".join(["image,grade", *lines]))
    return prepare(folder / "t.csv", folder / "store", size=32, progress=False)


def test_the_preset_has_a_densenet_for_pictures(pictures, tmp_path):
    how = {"goal": "classification", "preset": "paper", "steps": 1, "warmup": 0, "progress": False}
    with pytest.warns(UserWarning, match="the paper had images of 224 pixels a side, and these have 32"):
        run = finetune(pictures, tmp_path / "paper", **how)
    assert run.settings["architecture"] == "densenet121-batchnorm" == run.card["architecture"]
    own = finetune(pictures, tmp_path / "own", **how | {"widths": SMALL, "architecture": "unet"})
    assert own.settings["architecture"] == "unet", "what is given goes first"
    with pytest.warns(UserWarning, match="224 pixels"):
        first = pretrain("rotation", pictures, tmp_path / "rot", preset="paper", steps=1, progress=False)
    assert first.settings["architecture"] == "densenet121-batchnorm"
    last = finetune(pictures, tmp_path / "last", encoder=own, **how)
    assert last.settings["architecture"] == "unet", "it comes with the encoder"


# Trainings that failed


def test_a_network_that_never_marks_a_class_says_so(store, tmp_path, monkeypatch, capsys):
    marked = {
        "all": (lambda mask: mask, ()),
        "no 2": (lambda mask: np.where(mask == 2, 0, mask), (2,)),
        "nothing": (lambda mask: mask * 0, (1, 2, 3)),
    }
    for name, (change, codes) in marked.items():

        def probabilities_of(network, store, names, change=change):
            for name in names:
                numbers = torch.from_numpy(np.array(change(store.mask(name)))).long()  # codes 0 to 3, as classes
                yield name, torch.nn.functional.one_hot(numbers, 4).movedim(-1, 0).float()

        monkeypatch.setattr(module, "probabilities_of", probabilities_of)
        how = QUICK | {"progress": name != "all"}
        run = finetune(store, tmp_path / name, steps=1, labels=0.3, **how)
        missed = [store.classes[code] for code in codes]
        assert json.loads((run / "network.json").read_text())["never_predicted"] == missed
        said = capsys.readouterr().out if how["progress"] else run.summary()
        assert (f"It never predicts {' or '.join(missed)} " in said) == bool(missed), said
        assert not missed or all(cure in said for cure in ("--seed", "--lr", "--class-weights"))
    old = tmp_path / "all/network.json"
    old.write_text(json.dumps({k: v for k, v in read_json(old).items() if k != "never_predicted"}))
    assert "It never" not in module.summary(tmp_path / "all"), "of an earlier version"


@pytest.mark.quick
@pytest.mark.parametrize("column, truth", [("predicted", "grade"), ("predicted", "sex"), ("guess", "age")])
def test_one_answer_for_everybody_is_a_failed_training(column, truth):
    for answers, truths, failed in (
        ([1, 1, 1], [0, 1, 2], True),
        ([1, 1, 1], [1, 1, 1], False),
        ([0, 1, 1], [0, 1, 2], False),
        ([1], [1], False),
        ([1, 1, 1], [0, 1, ""], True),
        ([1, 1, 2], [0, 1, ""], True),
    ):
        rows = [{column: answer, truth: true} for answer, true in zip(answers, truths)]
        assert one_answer(rows, truth) == failed, (answers, truths)
    assert one_answer([{"age": 20 + 10 * k, "guess": 40 + 0.05 * k} for k in range(5)], "age"), "the same for years"
    assert not one_answer([{"age": 20 + 10 * k, "guess": 40 + 0.2 * k} for k in range(5)], "age")


def test_a_network_that_gives_one_grade_says_so(pictures, tmp_path, monkeypatch):
    same = Classification.answer
    monkeypatch.setattr(Classification, "answer", lambda *args: same(*args) | {"predicted": 0})
    run = finetune(pictures, tmp_path / "x", goal="classification", steps=1, **QUICK)
    said = run.summary()
    assert "never predicts any grade but 0 for its own training cases" in said and "--balanced" in said
