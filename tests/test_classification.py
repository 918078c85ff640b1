"""Grading whole images: bits, probabilities, scores, frozen encoders, and real retinas."""

import json

import numpy as np
import pytest
import torch
from conftest import write_nifti
from sklearn.metrics import cohen_kappa_score, r2_score

from ssl3d.data.prepare import prepare
from ssl3d.downstream.classification import (
    Classification,
    Classifier,
    balance,
    grade_bits,
    grade_probabilities,
    likely_grade,
    outputs_of,
)
from ssl3d.downstream.finetune import (
    cases_of,
    filled,
    finetune,
    freeze,
    goal_of,
    load_network,
    starting_network,
    summary,
)
from ssl3d.downstream.regression import Regression
from ssl3d.downstream.segmentation import Segmentation
from ssl3d.errors import InputError
from ssl3d.files import read_table
from ssl3d.networks.encoders import make_encoder
from ssl3d.networks.weights import load_encoder
from ssl3d.settings import Finetuning
from ssl3d.training.loop import read_batch
from ssl3d.training.pretrain import pretrain
from ssl3d.training.runs import read_log

SMALL = (4, 8, 16)


def classify(store, out, goal="classification", **how):
    return finetune(store, out, goal=goal, **how)


def told(run, store):
    """The rows that the network of a run, opened again, gives to the test cases of a store."""
    return goal_of(run.settings).rows(load_network(run), store, store.split("test"), run.settings["facts"])


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """Volumes whose grade is how bright their ball is beside a bright corner; three in ten are not graded."""
    folder, rng, rows = tmp_path_factory.mktemp("graded"), np.random.default_rng(0), []
    for i in range(30):
        volume = rng.random((16, 16, 16)).astype(np.float32) * 0.1
        volume[0, 0, 0] = 3
        volume[4:12, 4:12, 4:12] += i % 3
        write_nifti(folder / f"b{i:02d}.nii", volume)
        known = f"{i % 3},{20 + 15 * (i % 3)},{'FFM'[i % 3]}" if i < 21 else ",,"
        rows.append(f"b{i:02d}.nii,{known}")
    (folder / "t.csv").write_text("image,grade,age,sex\n" + "\n".join(rows))
    return prepare(folder / "t.csv", folder / "store", size=16, test=0.34, crop=False, progress=False)


@pytest.mark.parametrize("ordinal", [False, True])
def test_grades_are_learned_and_written(graded, tmp_path, ordinal):
    run = classify(
        graded.folder,
        tmp_path / "run",
        widths=SMALL,
        epochs=40,
        warmup=0,
        batch_size=4,
        lr=1e-2,
        ordinal=ordinal,
        progress=False,
    )
    rows = read_table(run / "predictions.csv")
    assert [r["case"] for r in rows] == graded.split("test"), "every test case is there, graded or not"
    assert all(abs(sum(float(r[f"p{k}"]) for k in range(3)) - 1) < 1e-5 for r in rows)
    known = [r for r in rows if r["grade"] != ""]
    assert 0 < len(known) < len(rows)
    scores = read_table(run / "scores.csv")[0]
    truth, answers = ([r[k] for r in known] for k in ("grade", "predicted"))
    assert scores["kappa"] == pytest.approx(cohen_kappa_score(truth, answers, weights="quadratic"), abs=1e-5)
    assert scores["kappa"] > 0.9 and scores["cases"] == len(known), "three brightnesses are easy"
    again = told(run, graded)
    assert [r["predicted"] for r in again] == [r["predicted"] for r in rows]
    assert "kappa" in summary(run) and "0 loaded" in summary(run) and "never" not in summary(run)


QUICK = {"widths": SMALL, "steps": 150, "warmup": 0, "batch_size": 4, "lr": 1e-2, "progress": False}


def test_ages_are_regressed_and_sexes_told(graded, tmp_path):
    run = classify(graded, tmp_path / "age", "regression", track=75, **QUICK)
    rows, scores = read_table(run / "predictions.csv"), read_table(run / "scores.csv")[0]
    assert [r["case"] for r in rows] == graded.split("test") and all(isinstance(r["guess"], float) for r in rows)
    known = [r for r in rows if r["age"] != ""]
    assert 0 < len(known) < len(rows) and scores["cases"] == len(known)
    truth, guess = (np.array([r[k] for r in known]) for k in ("age", "guess"))
    assert scores["r2"] == pytest.approx(r2_score(truth, guess), abs=1e-4) and scores["r2"] > 0.8
    assert scores["mae"] == pytest.approx(abs(truth - guess).mean(), abs=1e-4)
    looks = goal_of(run.settings).track(load_network(run), graded, graded.split("validation"), run.settings["facts"])
    assert read_log(run, "observed.csv")["r2"][-1] == pytest.approx(looks["r2"], abs=1e-4), "validation people"
    card = json.loads((run / "network.json").read_text())
    ages = [graded.cases[n]["age"] for n in card["trained_on"]]
    assert (card["facts"]["mean"], card["facts"]["spread"]) == pytest.approx((np.mean(ages), np.std(ages)))
    again = told(run, graded)
    assert [r["guess"] for r in again] == [r["guess"] for r in rows] and "years" in summary(run)

    run = classify(graded.folder, tmp_path / "sex", target="sex", **QUICK)
    rows = read_table(run / "predictions.csv")
    truth = {n: graded.cases[n]["sex"] for n in graded.split("test")}
    assert {r["case"]: r["sex"] for r in rows} == {n: "" if s is None else "FM".index(s) for n, s in truth.items()}
    assert read_table(run / "scores.csv")[0]["accuracy"] > 0.9 and "p1" in rows[0] and "p2" not in rows[0]


def test_what_cannot_be_told_is_refused(graded, store, tmp_path):
    for words, folder, settings in (
        ("target is 'height'", graded.folder, {"target": "height"}),
        ("target is 'age', which is a number", graded.folder, {"target": "age"}),
        ("ordinal is an option of classification", graded.folder, {"goal": "regression", "ordinal": True}),
        ("balanced is an option of classification", graded.folder, {"goal": "regression", "balanced": True}),
        ("patch is for masks, and goal classification", graded.folder, {"patch": 8}),
        ("slices are for masks", graded.folder, {"slices": True}),
        ("knows the age of 0 training and 0 test", store.folder, {"goal": "regression"}),
        ("knows the sex of 0 training", store.folder, {"target": "sex"}),
    ):
        with pytest.raises(InputError, match=words):
            classify(folder, tmp_path / "x", **settings)
    assert not (tmp_path / "x").exists()


def test_bits_and_probabilities():
    for n in (2, 3, 5):
        grades = torch.arange(n)
        bits = grade_bits(grades, n)
        assert bits.shape == (n, n - 1) and bits.sum(1).tolist() == grades.tolist()
        sure = grade_probabilities((bits * 2 - 1) * 30, ordinal=True)
        assert torch.allclose(sure, torch.eye(n), atol=1e-5) and likely_grade(sure, True).tolist() == grades.tolist()
    scores = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * 4
    for ordinal, n in ((True, 5), (False, 4)):
        found = grade_probabilities(scores, ordinal)
        assert found.shape == (500, n) and (found >= 0).all() and torch.allclose(found.sum(1), torch.ones(500))
        assert likely_grade(found, ordinal).min() >= 0 and likely_grade(found, ordinal).max() < n
    chances = scores.sigmoid().cummin(1).values
    assert torch.equal(likely_grade(grade_probabilities(scores, True), True), (chances > 0.5).sum(1))


FIVE = {"n_grades": 5, "weights": None}


def test_ordinal_probabilities_are_those_of_the_grades():
    """A network that cannot see the images learns how frequent the grades are, and nothing else."""
    grades = torch.tensor([0] * 4 + [1] * 1 + [2] * 2 + [3] * 2 + [4] * 1)
    scores = torch.nn.Parameter(torch.zeros(1, 4))
    optimiser, loss = torch.optim.Adam([scores], lr=0.1), Classification(ordinal=True).loss(FIVE)
    for _ in range(400):
        optimiser.zero_grad()
        loss(scores.expand(10, -1), grades).backward()
        optimiser.step()
    found = grade_probabilities(scores.detach(), True)
    assert torch.allclose(found, torch.tensor([[0.4, 0.1, 0.2, 0.2, 0.1]]), atol=0.01)


def test_rare_grades_get_their_share():
    grades = [0] * 6 + [1] * 3 + [2]
    weights = balance(grades, 3, ordinal=False)
    assert torch.allclose(torch.stack([weights[g] * grades.count(g) for g in range(3)]), torch.full((3,), 10 / 3))
    assert balance(grades, 3, ordinal=True).tolist() == pytest.approx([6 / 4, 9 / 1])


@pytest.mark.parametrize("ordinal", [False, True])
def test_a_balanced_loss_makes_up_for_rare_grades(ordinal):
    """A network that cannot see the images learns the frequencies; balanced, that all grades are as frequent."""
    grades = [0] * 6 + [1] * 3 + [2]
    goal = Classification(balanced=True, ordinal=ordinal)
    truths = {"train": {str(i): grade for i, grade in enumerate(grades)}, "test": {}}
    loss = goal.loss(goal.facts(None, truths, [*truths["train"]]))
    scores = torch.zeros(1, 3 - ordinal, requires_grad=True)
    loss(scores.expand(10, -1), torch.tensor(grades)).backward()
    assert scores.grad.abs().max() < 1e-6, "equal scores are where it ends"


def test_each_share_has_its_part_of_each_grade(graded):
    goal = Classification()

    def counted(labels, seed):
        how = filled(Finetuning(goal="classification", labels=labels, seed=seed), goal)
        return np.bincount([graded.cases[name]["grade"] for name in cases_of(graded, goal, how)[1]], minlength=3)

    whole = counted(1.0, 0)
    for seed in range(12):
        few = counted(0.45, seed)
        assert (np.abs(few - few.sum() * whole / whole.sum()) < 1).all(), "less than one person off"


def test_facts_are_of_the_labels_that_are_learned_from(graded):
    """Not of those that nobody should know, who are all others."""
    few, others = {"a": 0, "b": 1, "c": 1}, {"d": 2, "e": 2, "f": 2}
    truths = {"train": few | others, "test": {"g": 0, "h": 2}}
    facts = Classification(balanced=True).facts(graded, truths, [*few])
    assert facts["weights"] == pytest.approx(balance([0, 1, 1], 3, False).tolist()) and facts["n_grades"] == 3
    facts = Regression().facts(graded, {"train": {k: 20.0 + 10 * v for k, v in (few | others).items()}}, [*few])
    assert (facts["mean"], facts["spread"]) == pytest.approx((np.mean([20, 30, 30]), np.std([20, 30, 30])))


def test_a_network_does_not_learn_from_whom_it_is_scored_on(graded):
    """Its running statistics stay, and whoever else is scored changes nothing."""
    names = graded.split("test")[:3]
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.BatchNorm3d(2), torch.nn.Dropout(),
                                  torch.nn.AdaptiveAvgPool3d(1), torch.nn.Flatten()).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    together, alone = outputs_of(network, graded, names), outputs_of(network.train(), graded, names[:1])
    assert torch.allclose(together[names[0]], alone[names[0]])
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_an_encoder_that_is_frozen_moves_in_nothing(graded, tmp_path):
    few = {"epochs": 1, "batch_size": 4, "progress": False}
    encoder = pretrain("rotation", graded.folder, tmp_path / "rot", widths=SMALL, **few)
    run = classify(
        graded.folder, tmp_path / "frozen", encoder=encoder, epochs=2, warmup=2, head="linear", progress=False
    )
    before, after = load_encoder(encoder).state_dict(), load_network(run).encoder.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    goal = Classification(head="linear")
    how = filled(Finetuning(encoder=encoder), goal)
    fresh = starting_network(graded, goal, {"n_grades": 3, "weights": None}, how)[0].head.state_dict()
    assert not all(torch.equal(fresh[k], v) for k, v in load_network(run).head.state_dict().items())
    origins = json.loads((run / "origins.json").read_text())
    assert origins["new"] == ["head.0.weight", "head.0.bias"] and len(origins["loaded"]) == len(before)
    moved = classify(graded.folder, tmp_path / "moved", encoder=encoder, epochs=2, warmup=0, progress=False)
    assert not all(torch.equal(before[k], v) for k, v in load_network(moved).encoder.state_dict().items())


def test_running_statistics_stay_while_frozen(tmp_path):
    for i in range(4):
        (tmp_path / "in").mkdir(exist_ok=True)
        np.save(tmp_path / f"in/{i}.npy", np.random.default_rng(i).random((40, 40)))
    (tmp_path / "in/t.csv").write_text("image,grade\n" + "".join(f"{i}.npy,{i % 2}\n" for i in range(4)))
    store = prepare(tmp_path / "in/t.csv", tmp_path / "store", size=32, test=0.5, progress=False)
    goal, base = Regression(), make_encoder("densenet121-batchnorm", 2, 1)
    network = goal.network(base, {"mean": 0.0, "spread": 1.0}, 32)
    before = {k: v.clone() for k, v in network.encoder.state_dict().items()}
    freeze(network.encoder)
    network(read_batch(store, store.split("train")).image).sum().backward()
    assert all(torch.equal(before[k], v) for k, v in network.encoder.state_dict().items())
    freeze(network.encoder, False)
    network(read_batch(store, store.split("train")).image)
    assert not all(torch.equal(before[k], v) for k, v in network.encoder.state_dict().items())


def test_stopped_and_continued(graded, tmp_path):
    how = {"widths": SMALL, "steps": 12, "batch_size": 4, "progress": False, "ordinal": True, "balanced": True}
    whole = classify(graded.folder, tmp_path / "whole", **how)
    again = classify(graded.folder, tmp_path / "again", **how)
    for name in ("network.safetensors", "predictions.csv", "log.csv"):
        assert (whole / name).read_bytes() == (again / name).read_bytes()
    with pytest.raises(InputError, match="ordinal was True and is now False"):
        classify(graded.folder, tmp_path / "whole", **how | {"ordinal": False})


@pytest.mark.parametrize(
    "how, said",
    [
        ({"head": "deep"}, "head"),
        ({"labels": 0}, "labels is 0, and has to be a number above 0"),
        ({"warmup": 99}, "longer"),
        ({"architecture": "densenet121"}, "32"),
        ({"architecture": "net"}, "architecture is .net., and has to be one of unet"),
    ],
)
def test_what_cannot_be_is_refused(graded, tmp_path, how, said):
    with pytest.raises(InputError, match=said):
        classify(graded.folder, tmp_path / "x", **{"epochs": 1, "progress": False} | how)
    assert not (tmp_path / "x").exists()


def test_no_grades_no_classes(tmp_path):
    for i in range(4):
        (tmp_path / "in").mkdir(exist_ok=True)
        write_nifti(tmp_path / f"in/{i}.nii", np.random.default_rng(i).random((8, 8, 8)))
    store = prepare(tmp_path / "in", tmp_path / "store", size=8, progress=False)
    with pytest.raises(InputError, match="knows the grade of 0 training"):
        classify(store.folder, tmp_path / "x", progress=False)


@pytest.mark.parametrize("ordinal", [False, True])
def test_a_fresh_head_answers_as_often_as_the_labels_do(graded, ordinal):
    store, goal = graded, Classification(ordinal=ordinal)
    train = [name for name in store.split("train") if store.cases[name]["grade"] is not None]
    facts = goal.facts(store, {"train": goal.labelled(store, train), "test": {}}, train)
    network = goal.network(make_encoder("unet", 3, store.channels, SMALL, seed=0), facts, store.settings["size"])
    goal.begin(network, store, train)
    grades = np.array([store.cases[name]["grade"] for name in train])
    found = grade_probabilities(network.head[-1].bias[None], ordinal)[0].detach().numpy()
    known = np.bincount(grades, minlength=facts["n_grades"])
    there = known > 0
    np.testing.assert_allclose(found[there] / found[there].sum(), known[there] / len(grades), atol=0.02)


@pytest.mark.parametrize("head", ["linear", "hidden"])
def test_a_head_is_at_zero_until_it_begins(head):
    """So that head_bias="zero", with which nothing begins, is what it says."""
    encoder = make_encoder("unet", 3, 1, SMALL)
    for goal, facts in ((Classification(head=head), {"n_grades": 3}), (Regression(head=head), {}),
                        (Segmentation(), {"classes": {"0": "background", "1": "ball"}})):
        network = goal.network(encoder, facts, 16)
        last = network.decoder.out.conv.conv if isinstance(goal, Segmentation) else network.head[-1]
        assert (last.bias == 0).all() and last.weight.any(), type(goal)


def test_a_balanced_loss_and_ages_begin_at_zero(graded):
    store = graded
    for goal in (Classification(balanced=True), Regression()):
        network = Classifier(make_encoder("unet", 3, store.channels, SMALL, seed=0), 3)
        network.head[-1].bias.data.fill_(1)
        goal.begin(network, store, store.split("train"))
        assert (network.head[-1].bias == 0).all()
