"""Fine-tuning: what is frozen, whose labels are read, which network a preset means, and what a failed training says."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import RNG, SMALL, new_network, volumes
from PIL import Image

from ssl3d.data.prepare import prepare
from ssl3d.data.store import Store
from ssl3d.downstream import finetune as module
from ssl3d.downstream.classification import Classification
from ssl3d.downstream.finetune import cases_of, filled, finetune, held_back, load_network, plan_steps, warm_up
from ssl3d.downstream.goals import make_goal, one_answer
from ssl3d.downstream.regression import Regression
from ssl3d.downstream.segmentation import Segmentation
from ssl3d.errors import InputError
from ssl3d.files import read_json, read_table, write_table
from ssl3d.networks.encoders import as_encoder
from ssl3d.networks.unet import HEAD
from ssl3d.networks.weights import load_decoder, load_encoder, save_encoder, save_weights
from ssl3d.settings import Finetuning
from ssl3d.training.pretrain import pretrain
from ssl3d.training.runs import read_log, score_name

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


@pytest.mark.quick
@pytest.mark.parametrize("frozen", [0, 1, 3])
def test_an_encoder_is_frozen_for_just_as_many_steps_as_the_run_says(frozen):
    network, learned = torch.nn.Module(), []
    network.encoder = torch.nn.Linear(2, 2)
    for step in range(5):
        warm_up(frozen)(network, (torch.zeros(1), torch.zeros(1)), step)
        learned.append(network.encoder.weight.requires_grad and network.encoder.training)
    assert learned == [step >= frozen for step in range(5)]


# Whose labels are read


def test_a_larger_share_holds_the_smaller_one_and_each_seed_draws_its_own(store):
    goal, drawn = make_goal("segmentation"), {}
    for seed in (0, 1, 2):
        shares = [set(cases_of(store, goal, filled(Finetuning(labels=labels, seed=seed), goal))[1])
                  for labels in (0.1, 0.25, 0.5, 1.0)]
        assert all(few < many for few, many in zip(shares, shares[1:]))
        drawn[seed] = shares[1]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


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


def test_both_eyes_of_a_person_are_held_back_together():
    cases = {f"p{i}{eye}": {"subject": f"p{i}", "mask": None, "grade": i % 2} for i in range(10) for eye in "lr"}
    known = SimpleNamespace(cases=cases, settings={"seed": 0}, folder="known")
    held = held_back(known, make_goal("classification"), [*cases])
    people = {cases[name]["subject"] for name in held}
    assert len(people) == 2 and held == [name for name in cases if cases[name]["subject"] in people]


def test_nobody_elses_mask_is_read(store, tmp_path):
    how, goal = {"labels": 0.2, "validate": True, "steps": 3, "track": 1}, make_goal("segmentation")
    _, few, held = cases_of(store, goal, filled(Finetuning(labels=0.2, validate=True, track=1), goal))
    run = finetune(store, tmp_path / "run", **how, **QUICK)
    blind = finetune(poisoned(store, tmp_path / "blind", {*few, *held}), tmp_path / "again", **how, **QUICK)
    assert (run / "scores.csv").read_bytes() == (blind / "scores.csv").read_bytes()
    assert {row["case"] for row in run.scores} == {*held} and read_json(run / "network.json")["trained_on"] == few


def test_validation_people_are_scored_on_the_way_and_never_trained_on(store, tmp_path):
    goal = make_goal("segmentation")
    aside, kept = {*store.split("validation")}, {*store.split("test")}
    for labels in (0.2, 1.0):
        _, plain, test = cases_of(store, goal, filled(Finetuning(labels=labels), goal))
        _, few, same = cases_of(store, goal, filled(Finetuning(labels=labels, track=1), goal))
        assert test == same and {*test} == kept and not {*few} & aside and {*plain} & aside
        searched, held = cases_of(store, goal, filled(Finetuning(labels=labels, track=1, validate=True), goal))[1:]
        assert {*searched} | ({*held} if labels < 1 else set()) == {*few}, "a rate is chosen by the share's own people"
    run = finetune(store, tmp_path / "run", labels=0.2, steps=2, track=1, **QUICK)
    blind = finetune(poisoned(store, tmp_path / "blind", {*few, *aside, *kept}), tmp_path / "again", labels=0.2,
                     steps=2, track=1, **QUICK)  # fmt: skip
    assert (run / "observed.csv").read_bytes() == (blind / "observed.csv").read_bytes()
    alone = finetune(store, tmp_path / "alone", labels=0.2, steps=2, **QUICK)
    assert {row["case"] for row in run.scores} == {row["case"] for row in alone.scores} == kept
    look = goal.track(load_network(run), store, sorted(aside), {})["dice"]
    assert float(read_table(run / "observed.csv")[-1]["dice"]) == pytest.approx(look, abs=1e-6)


def test_an_encoder_that_knows_their_labels_is_not_tracked_on_validation_people(store, tmp_path):
    whole = finetune(store, tmp_path / "whole", steps=1, **QUICK)
    with pytest.raises(InputError, match="has learned from the labels of"):
        finetune(store, tmp_path / "again", encoder=whole, steps=1, track=1, progress=False)
    run = finetune(store, tmp_path / "alone", steps=1, track=1, **QUICK)
    assert run.settings["tracked"] == "validation people", "a run of an earlier version is another one"
    assert score_name(run, "dice") == "mean Dice, validation cases"
    assert "tracked" not in whole.settings


def test_nobody_to_look_at_is_said(tmp_path):
    names = [f"s{i:02d}" for i in range(3)]
    volumes(tmp_path, *names, mask=[f"m{name}" for name in names])
    (tmp_path / "t.csv").write_text("\n".join(["image,mask", *(f"{s}.nii.gz,m{s}.nii.gz" for s in names)]))
    store = prepare(tmp_path / "t.csv", tmp_path / "store", size=16, test=0.67, progress=False)
    assert len(store.split("train")) == 1
    with pytest.raises(InputError, match="track .*validation people"):
        finetune(store, tmp_path / "run", steps=1, track=1, **QUICK)


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


# The decoder of a run


@pytest.fixture(scope="module")
def taught(store, tmp_path_factory):
    """A run on masks: its encoder and its decoder have learned."""
    return finetune(store, tmp_path_factory.mktemp("taught") / "run", steps=3, lr=0.01, labels=0.3, **QUICK)


@pytest.mark.parametrize("bias", ["frequency", "zero"])
def test_a_decoder_is_taken_bit_by_bit_and_its_last_layer_is_new(store, taught, tmp_path, bias):
    """One step at a rate of next to nothing: what is kept is what it began with."""
    how = {"encoder": taught, "labels": 0.2, "steps": 1, "lr": 1e-30, "head_bias": bias, "seed": 4}
    run = finetune(store, tmp_path / "run", decoder=True, progress=False, **how)
    before, after = (load_network(each).state_dict() for each in (taught, run))
    differ = {name for name in before if not torch.equal(before[name], after[name])}
    assert differ == {f"{HEAD}conv.conv.weight", f"{HEAD}conv.conv.bias"} and len(before) > 40
    plain = load_network(finetune(store, tmp_path / "plain", progress=False, **how)).state_dict()
    head = [torch.allclose(plain[name], after[name], rtol=0, atol=1e-20) for name in differ]  # zero has moved by 1e-30
    assert all(head), "the last layer is the one of a run without it, class bias included"
    assert not torch.equal(plain["decoder.ups.0.conv_block.conv1.conv.weight"],
                           after["decoder.ups.0.conv_block.conv1.conv.weight"])
    origins = read_json(run / "origins.json")
    assert origins["new"] == sorted(differ, reverse=True) and not origins["widened"]


def test_a_decoder_learns_while_the_encoder_is_frozen(store, taught, tmp_path):
    run = finetune(store, tmp_path / "run", encoder=taught, decoder=True, labels=0.2, steps=3, warmup=3, progress=False)
    before, after = (load_network(each).state_dict() for each in (taught, run))
    differ = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert differ == {"decoder"}


def test_a_run_says_whose_decoder_it_began_with(store, taught, tmp_path):
    how = {"encoder": taught, "labels": 0.2, "steps": 1, "progress": False}
    plain, run = finetune(store, tmp_path / "plain", **how), finetune(store, tmp_path / "run", decoder=True, **how)
    assert "decoder" not in plain.settings and "decoder_from" not in plain.settings, "the settings it always had"
    said = run.settings["decoder_from"]
    assert said.startswith("segmentation ") and read_json(run / "network.json")["decoder_from"] == said
    with pytest.raises(InputError, match="decoder_from was 'segmentation"):
        finetune(store, tmp_path / "run", **how)
    kept = set(taught.card["labelled"])
    assert kept and kept <= set(run.card["labelled"]), "whose masks the decoder has learned from is not forgotten"
    other = tmp_path / "other"
    shutil.copytree(taught, other)
    changed = load_network(other)
    with torch.no_grad():
        changed.decoder.ups[0].conv_block.conv1.conv.weight.add_(1)
    save_weights(changed, other / "network.safetensors")  # the same encoder, and another decoder
    with pytest.raises(InputError, match="decoder_from was"):
        finetune(store, tmp_path / "run", decoder=True, **how | {"encoder": other})


def test_a_run_with_a_decoder_goes_on_to_the_byte(store, taught, tmp_path, monkeypatch):
    how = {"encoder": taught, "decoder": True, "labels": 0.2, "steps": 55, "progress": False}
    whole, read, reads = finetune(store, tmp_path / "whole", **how), Segmentation.read, []

    def stumble(self, *args):
        reads.append(args)
        if len(reads) == 53:
            raise RuntimeError("the disk is gone")
        return read(self, *args)

    monkeypatch.setattr(Segmentation, "read", stumble)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        finetune(store, tmp_path / "cut", **how)
    assert (tmp_path / "cut/last.ckpt").exists() and not (tmp_path / "cut/scores.csv").exists()
    cut = finetune(store, tmp_path / "cut", **how)
    for name in ("network.safetensors", "log.csv", "scores.csv", "settings.yaml", "origins.json"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name


def test_what_has_no_decoder_is_refused(store, encoder, taught, pictures, tmp_path):
    kept = tmp_path / "kept"  # an encoder that was kept alone
    kept.mkdir()
    save_encoder(load_encoder(taught), kept, {k: v for k, v in taught.card.items() if k != "widths"})
    graded = finetune(pictures, tmp_path / "graded", goal="classification", steps=1, **QUICK)
    own = as_encoder(torch.nn.Conv3d(4, 4, 3, 2, 1), torch.zeros(1, 4, 16, 16, 16))
    wrong = [
        ({}, "none is given.*--decoder"),
        ({"encoder": encoder}, "has no decoder, since its encoder was trained on rotation"),
        ({"encoder": kept}, "has no decoder, since its encoder was trained on segmentation"),
        ({"encoder": graded}, "has no decoder, since its goal is classification"),
        ({"encoder": own}, "has none"),
        ({"encoder": taught, "goal": "classification"}, "decoder is for masks, and goal classification"),
    ]
    for options, said in wrong:
        with pytest.raises(InputError, match=said):
            finetune(store, tmp_path / "x", decoder=True, steps=1, progress=False, **options)
        assert not (tmp_path / "x").exists()


def test_a_decoder_of_another_shape_is_refused(store, taught, tmp_path):
    wide = new_network(store, widths=(8, 16, 32, 64))[0]
    save_weights(wide, tmp_path / "network.safetensors")
    before = new_network(store, widths=SMALL)[0]
    same = {name: weight.clone() for name, weight in before.state_dict().items()}
    with pytest.raises(InputError, match="network.safetensors: does not fit this network.*Nothing was loaded"):
        load_decoder(before, tmp_path / "network.safetensors")
    assert all(torch.equal(same[name], weight) for name, weight in before.state_dict().items())


def test_whom_the_decoder_was_taught_by_cannot_be_tested(store, taught, tmp_path):
    for decoder in (False, True):
        with pytest.raises(InputError, match="that .* keeps for testing"):
            finetune(store, tmp_path / "x", encoder=taught, decoder=decoder, fold=(0, 2), steps=1, progress=False)


def test_a_decoder_that_reads_the_image_is_widened_too(store, tmp_path):
    """The first map of a ResNet is smaller than the image, so its decoder has a block that sees the image itself."""
    few = ["image,mask"]
    for name in [f"other{i}" for i in range(8)]:
        volumes(tmp_path, name, mask=[f"m{name}"])
        few.append(f"{name}.nii.gz,m{name}.nii.gz")
    (tmp_path / "t.csv").write_text("\n".join(few))
    one = prepare(tmp_path / "t.csv", tmp_path / "one", size=32, progress=False)
    how = {"steps": 1, "architecture": "resnet18", "slices": True, "progress": False}
    first = finetune(one, tmp_path / "first", **how)
    four = prepare(store.settings["source"], tmp_path / "four", size=32, progress=False)
    for sources in (None, (0, 0, 0, 0)):
        run = finetune(four, tmp_path / f"{sources}", encoder=first, decoder=True, sources=sources, slices=True,
                       steps=1, lr=1e-30, labels=0.1, progress=False)
        origins = read_json(run / "origins.json")
        assert "full.conv1.conv.weight" in origins["widened"] and not any(k.startswith("full") for k in origins["new"])
        old, new = (load_network(each).network.full.conv1.conv.weight for each in (first, run))
        assert new.shape[1] == 4 and all(torch.allclose(new[:, k], old[:, 0] / 4) for k in range(4))


@pytest.mark.parametrize("track, steps", [(2, [0, 2, 4, 5]), ((1, 4), [0, 1, 4, 5]), ((5,), [0, 5])])
def test_a_run_is_scored_after_the_steps_that_are_named(store, tmp_path, track, steps):
    run = finetune(store, tmp_path / "x", steps=5, labels=0.1, track=track, **QUICK)
    assert [*read_log(run, "observed.csv")["step"]] == steps
