"""Experiments: described in a file, the same for every arm, stopped and continued, failing in one cell only."""

import csv
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from conftest import ROOT, SAMPLES, SMALL, ssl3d
from filelock import FileLock, Timeout
from PIL import Image

from ssl3d.data.prepare import prepare
from ssl3d.data.splits import person_key
from ssl3d.data.store import Store
from ssl3d.downstream.extremes import extremes, mean_scores, read_examples
from ssl3d.downstream.finetune import load_network
from ssl3d.downstream.metrics import read_scores
from ssl3d.downstream.segmentation import segment
from ssl3d.errors import InputError
from ssl3d.evidence import experiments
from ssl3d.evidence.answer import experiment
from ssl3d.evidence.experiments import (
    Experiment,
    cells_of,
    check_experiment,
    collect,
    failed_cells,
    forecast,
    make_cell,
    met_with_labels,
    open_experiment,
    read_diary,
    read_experiment,
    run_experiment,
    stores_of_seed,
    write_experiment,
)
from ssl3d.evidence.report import html_report, keep_answer, page_line, unlike_in_words
from ssl3d.evidence.statistics import verdict
from ssl3d.files import read_json, read_table
from ssl3d.networks.cards import image_keys, provenance, read_card
from ssl3d.networks.encoders import make_encoder
from ssl3d.networks.floors import floors_of
from ssl3d.networks.weights import keep_encoder
from ssl3d.training import loop
from ssl3d.training.pretrain import pretrain
from ssl3d.training.runs import read_log

TOY = Experiment(
    {"source": str(SAMPLES), "size": 16},
    {"scratch": {}, "rotation": {"task": "rotation", "steps": 2}},
    label_fractions=[0.2, 1.0],
    seeds=2,
    network={"widths": [*SMALL]},
    finetuning={"steps": 4, "warmup": 1},
)


def settings_of(out, cell):
    return yaml.safe_load((out / "cells" / cell / "settings.yaml").read_text())


def test_encoders_of_another_experiment_are_used_again(toy, tmp_path):
    place = tmp_path / "other" / "pretraining"
    shutil.copytree(toy[0] / "pretraining", place)
    before = {file: file.stat().st_mtime_ns for file in place.rglob("encoder.*")}
    other = replace(TOY, finetuning={"steps": 2, "warmup": 0}, label_fractions=[1.0], seeds=2)
    run_experiment(other, tmp_path / "other", progress=False)
    assert len(before) == 4 and all(file.stat().st_mtime_ns == at for file, at in before.items())
    (tmp_path / "other" / "experiment.yaml").unlink()
    with pytest.raises(InputError, match="is no experiment"):
        run_experiment(other, tmp_path / "other", progress=False)


def test_every_arm_gets_the_same(toy):
    out, rows = toy
    names = [c.name for c in cells_of(TOY)]
    assert len(names) == len(set(names)) == 8 == len(read_diary(out))
    runs = {arm: [settings_of(out, n) for n in sorted(names) if n.startswith(arm)] for arm in TOY.arms}
    without = {arm: [{k: v for k, v in r.items() if k != "encoder"} for r in mine] for arm, mine in runs.items()}
    assert without["scratch"] == without["rotation"]
    encoders = [load_network(out / "cells" / f"{arm}-1-0").encoder.channels for arm in TOY.arms]
    assert encoders == [SMALL, SMALL]
    assert len({r["encoder"] for r in runs["rotation"]}) == 2, "each seed has its own pretraining, used at each share"
    trained = {n: json.loads((out / "cells" / n / "network.json").read_text())["trained_on"] for n in names}
    for seed in (0, 1):
        few, many = (trained[f"scratch-{label_fraction}-{seed}"] for label_fraction in ("0.2", "1"))
        assert set(few) < set(many) and trained[f"rotation-0.2-{seed}"] == few
    assert trained["scratch-0.2-0"] != trained["scratch-0.2-1"]
    assert {read_log(out / "cells" / n)["step"][-1] for n in names} == {4}
    tested = {(r["arm"], r["label_fraction"], r["seed"]): set() for r in rows}
    for r in rows:
        tested[r["arm"], r["label_fraction"], r["seed"]].add(r["case"])
    assert len(tested) == 8 and len(set(map(frozenset, tested.values()))) == 1
    assert not list((out / "cells").glob("*/last.ckpt")) and (out / "cells/scratch-1-1/network.safetensors").exists()


def test_what_is_declared_is_checked_and_stays(toy, tmp_path):
    one = {"arm": "rotation", "label_fraction": 0.2}
    for wrong, said in (
        ({"primary": []}, "primary"),
        ({"primary": [{"arm": "scratch", "label_fraction": 0.2}]}, "other than scratch"),
        ({"primary": [{"arm": "rotation", "label_fraction": 0.3}]}, "primary"),
        ({"primary": [one, one]}, "different"),
        ({"primary": "rotation"}, "primary"),
        ({"primary": [one], "control": "rotation"}, "and the control: there is none"),
        ({"control": "scratch"}, "compared with scratch"),
        ({"control": "lost"}, "control is 'lost'"),
        ({"delta": 0}, "delta"),
        ({"delta": True}, "delta"),
        ({"delta": "0.02"}, "delta"),
    ):
        with pytest.raises(InputError, match=said):
            check_experiment(replace(TOY, **wrong))
    declared = replace(TOY, primary=[one], delta=0.1)
    write_experiment(declared, tmp_path / "e.yaml")
    assert read_experiment(tmp_path / "e.yaml") == declared
    shutil.copytree(toy[0], tmp_path / "toy")
    with pytest.raises(InputError, match="primary|delta"):
        run_experiment(declared, tmp_path / "toy", progress=False)  # the results are known already


def test_a_declared_comparison_has_the_only_verdict(toy, tmp_path):
    shutil.copytree(toy[0], tmp_path / "toy")
    description = yaml.safe_load((tmp_path / "toy/experiment.yaml").read_text())
    description["primary"] = [{"arm": "rotation", "label_fraction": 0.2}]
    description["arms"] = {name: description["arms"][name] for name in ("scratch", "rotation")}  # the baseline first
    (tmp_path / "toy/experiment.yaml").write_text(yaml.safe_dump(description, sort_keys=False))
    answer = experiment(tmp_path / "toy/experiment.yaml", tmp_path / "toy", progress=False)
    assert [(a["label_fraction"], a["role"]) for a in answer.verdicts] == [(0.2, "primary"), (1.0, "exploratory")]
    assert "one declared comparison" in answer.summary
    assert len(read_diary(tmp_path / "toy")) == 8, "no cell is made again"


def test_every_share_has_as_many_steps_unless_epochs_are_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr("ssl3d.evidence.experiments.STEPS", 3)
    plain = replace(TOY, arms={"scratch": {}}, seeds=1, finetuning={})
    run_experiment(plain, tmp_path / "plain", progress=False)
    trained = {row["label_fraction"]: row["steps"] for row in read_table(tmp_path / "plain/trainings.csv")}
    assert trained == {0.2: "3", 1.0: "3"}
    run_experiment(replace(plain, finetuning={"warmup": 0}), tmp_path / "unfrozen", progress=False)
    assert {row["steps"] for row in read_table(tmp_path / "unfrozen/trainings.csv")} == {"3"}, "no frozen phase is none"
    run_experiment(replace(plain, finetuning={"epochs": 1}), tmp_path / "epochs", progress=False)
    trained = {row["label_fraction"]: row["steps"] for row in read_table(tmp_path / "epochs/trainings.csv")}
    assert int(trained[0.2]) < int(trained[1.0])
    assert "differ in steps, too" in keep_answer(read_scores(tmp_path / "epochs/results.csv"), tmp_path / "epochs")


def test_each_share_and_seed_has_its_floor(toy, tmp_path, monkeypatch):
    floors = read_table(toy[0] / "floors.csv")
    named = "position (classes, on the store's grid)"
    assert {(row["label_fraction"], row["seed"], row["floor"]) for row in floors} == {
        (share, seed, named) for share in (0.2, 1.0) for seed in (0, 1)}  # fmt: skip
    store = Store(toy[0] / "store")
    labelled = json.loads((toy[0] / "cells/scratch-0.2-1/network.json").read_text())["trained_on"]
    (mine,) = [float(row["score"]) for row in floors if (row["label_fraction"], row["seed"]) == (0.2, 1)]
    assert mine == pytest.approx(floors_of(store, labelled, store.split("test"), "mask")["position"], abs=1e-6)
    shutil.copytree(toy[0], tmp_path / "toy")
    said = keep_answer(read_scores(tmp_path / "toy/results.csv"), tmp_path / "toy")
    line = "Floor with 20 % of the labels, without a network: position (classes, on the store's grid) 0."
    assert line in said
    assert "Floor with 20 %" in (tmp_path / "toy/report.html").read_text()
    monkeypatch.setattr("ssl3d.evidence.experiments.floors_of", lambda *given: 1 / 0)
    run_experiment(TOY, tmp_path / "toy", progress=False)  # they are not computed again
    assert read_table(tmp_path / "toy/floors.csv") == floors


def test_three_test_cases_are_kept_with_their_masks(toy, tmp_path, monkeypatch):
    """Best, median and worst of the arm beside the baseline, with the fewest labels and the first seed."""
    out, rows = toy
    examples, about = read_examples(out / "examples.npz")
    assert [*examples[0].marked] == ["scratch", "rotation"] and about["label_fraction"] == 0.2 and about["seed"] == 0
    mine = [r for r in rows if (r["arm"], r["label_fraction"], r["seed"]) == ("rotation", 0.2, 0)]
    scores = mean_scores(mine)
    assert {one.which: one.case for one in examples} == extremes(scores)
    store, network = Store(out / "store"), load_network(out / "cells/rotation-0.2-0")
    for one in examples:
        found = segment(network, store, [one.case])[one.case].on_store
        at = int((np.asarray(store.mask(one.case)) > 0).sum(axis=(0, 1)).argmax())
        assert np.array_equal(one.marked["rotation"][0], found[:, ::-1, at].T)
        assert one.marked["rotation"][1] == pytest.approx(scores[one.case], abs=1e-6)
    assert (out / "examples.npz").stat().st_size < 100_000
    shutil.copytree(out, tmp_path / "toy")
    page = html_report(tmp_path / "toy", "toy")
    assert "What the masks look like" in page and "worst mean Dice of rotation" in page and "20 % of the labels" in page
    monkeypatch.setattr("ssl3d.evidence.experiments.examples_of", lambda *given: 1 / 0)
    run_experiment(TOY, tmp_path / "toy", progress=False)  # nothing is made again where nothing has changed


def test_the_last_line_of_the_command_names_the_report(toy, tmp_path):
    shutil.copytree(toy[0], tmp_path / "toy")
    write_experiment(TOY, tmp_path / "toy.yaml")
    done = ssl3d("experiment", tmp_path / "toy.yaml", "--out", tmp_path / "toy", folder=tmp_path)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == page_line(tmp_path / "toy/report.html"), done.stderr


def test_a_folder_without_weights_says_that_it_has_no_masks_to_show(toy, tmp_path):
    """As one of an earlier version; with weights they are made, and nothing is trained again."""
    shutil.copytree(toy[0], tmp_path / "toy")
    before = (tmp_path / "toy/examples.npz").read_bytes()
    (tmp_path / "toy/examples.npz").unlink()
    assert "keeps no example masks" in html_report(tmp_path / "toy", "toy")
    run_experiment(TOY, tmp_path / "toy", progress=False)
    assert (tmp_path / "toy/examples.npz").read_bytes() == before and len(read_diary(tmp_path / "toy")) == 8
    (tmp_path / "toy/examples.npz").write_bytes(b"broken")
    (tmp_path / "toy/cells/scratch-0.2-0/network.safetensors").unlink()
    rows = run_experiment(TOY, tmp_path / "toy", progress=False)
    assert str(rows) == str(toy[1]) and not (tmp_path / "toy/examples.npz").exists()
    assert "keeps no example masks" in html_report(tmp_path / "toy", "toy")


def test_each_seed_draws_its_own_folds(tmp_path):
    one = replace(TOY, arms={"scratch": {}}, folds=2, label_fractions=[1.0], finetuning={"steps": 1})
    rows = run_experiment(one, tmp_path / "out", progress=False)
    folds = {seed: {row["subject"]: row["fold"] for row in rows if row["seed"] == seed} for seed in (0, 1)}
    assert folds[0].keys() == folds[1].keys() == Store(tmp_path / "out/store").subjects.keys(), "everybody, each time"
    assert folds[0] != folds[1]
    trained = json.loads((tmp_path / "out/cells/scratch-1-1-fold0/network.json").read_text())["trained_on"]
    assert not {*trained} & {row["case"] for row in rows if (row["seed"], row["fold"]) == (1, 0)}
    examples, about = read_examples(tmp_path / "out/examples.npz")
    assert sorted(about["trainings"]) == ["scratch-1-0-fold0", "scratch-1-0-fold1"]
    assert {one.which: one.case for one in examples} == extremes(mean_scores([r for r in rows if r["seed"] == 0]))


def test_a_finished_experiment_is_read_and_not_made(toy, monkeypatch):
    out, rows = toy
    before, diary = (out / "results.csv").read_bytes(), read_diary(out)
    monkeypatch.setattr("ssl3d.evidence.experiments.run_cell", lambda *args: 1 / 0)
    same = replace(
        TOY, cohort=TOY.cohort | {"source": Path(SAMPLES)}, label_fractions=(0.2, 1.0), network={"widths": SMALL}
    )
    assert str(run_experiment(same, out, progress=False)) == str(rows), "paths and tuples are those of the file"
    assert (out / "results.csv").read_bytes() == before and read_diary(out) == diary


def test_it_may_grow_but_not_change(toy, tmp_path):
    shutil.copytree(toy[0], tmp_path / "toy")
    more = TOY.arms | {"location": {"task": "location", "steps": 1}}
    grown = replace(TOY, seeds=3, label_fractions=[0.2, 0.5], arms=more)
    rows = run_experiment(grown, tmp_path / "toy", progress=False)
    made = [line["cell"] for line in read_diary(tmp_path / "toy")]
    assert len(made) == len(set(made)) and {r["label_fraction"] for r in rows} == {0.2, 0.5}
    old = [r for r in rows if r["seed"] < 2 and r["label_fraction"] == 0.2 and r["arm"] != "location"]
    assert [str(r) for r in old] == [str(r) for r in toy[1] if r["label_fraction"] == 0.2]
    for change in (
        {"finetuning": {"steps": 5}},
        {"arms": {"scratch": {}, "rotation": {"task": "rotation", "steps": 3}}},
        {"cohort": TOY.cohort | {"size": 32}},
        {"goal": "classification"},
    ):
        with pytest.raises(InputError, match="was"):
            run_experiment(replace(TOY, **change), tmp_path / "toy", progress=False)


@pytest.mark.quick
def test_the_file_says_all_of_it(tmp_path):
    write_experiment(TOY, tmp_path / "e.yaml")
    assert read_experiment(tmp_path / "e.yaml") == TOY
    for file in sorted((ROOT / "experiments").glob("*.yaml")):
        described = read_experiment(file)
        source = described.cohort["source"]
        made_first = source.startswith("runs/") and f"scans {source}" in file.read_text()  # by a command at its head
        assert next(iter(described.arms)) == "scratch"
        assert "$SSL3D_DATA" in source or (ROOT / source).is_dir() or made_first


@pytest.mark.quick
@pytest.mark.parametrize(
    "change, said",
    [
        ({"goal": "detection"}, "goal"),
        ({"goal": "classification", "finetuning": {"target": "age"}}, "goal regression"),
        ({"goal": "regression", "finetuning": {"ordinal": True}}, "'ordinal'"),
        ({"arms": {}}, "arms"),
        ({"arms": {"a/b": {}}}, "a/b"),
        ({"arms": {"x": {"task": "rotate"}}}, "rotate"),
        ({"arms": {"x": {"task": "rotation", "encoder": "y"}}}, "x"),
        ({"arms": {"x": {"task": "rotation", "step": 3}}}, "'step'"),
        ({"arms": {"x": {"task": "rotation", "seed": 3}}}, "'seed'"),
        ({"arms": {"x": {"task": "supervised"}}}, "pretraining_cohort.*halves"),
        ({"halves": 0}, "halves"),
        ({"halves": 4, "folds": 3}, "halves say who is pretrained on.*folds"),
        ({"halves": 4, "pretraining_cohort": TOY.cohort}, "halves say who .*pretraining_cohort"),
        ({"arms": {"x": {"decoder": True}}}, "arm 'x' has a decoder, which only a pretraining on masks"),
        ({"arms": {"x": {"task": "rotation", "decoder": True}}}, "arm 'x' has a decoder"),
        ({"arms": {"x": {"task": "supervised", "decoder": 1}}, "halves": 4}, "decoder"),
        ({"arms": {"x": {"task": "supervised", "decoder": True}}, "halves": 4, "goal": "classification"}, "a decoder"),
        ({"finetuning": {"decoder": True}}, "'decoder'"),
        ({"arms": {"x": {"steps": 3}}}, "'steps'"),
        ({"arms": {"x": {"finetuning": {"epoch": 3}}}}, "'epoch'"),
        ({"arms": {"x": "rotation"}}, "x"),
        ({"arms": {"x": {"encoder": None}}}, "x"),
        ({"arms": {"x": {"task": "rotation", "widths": [4, 8]}}}, "'widths'"),
        ({"arms": {"x": {"task": "rotation", "epochs": 0}}}, "epochs"),
        ({"goal": "classification", "arms": {"x": {"slices": True}}}, "slices"),
        ({"network": {"architecture": "vgg"}}, "vgg"),
        ({"network": {"widths": 3}}, "widths"),
        ({"finetuning": {"batch_size": 0}}, "batch_size"),
        ({"finetuning": {"widths": [4, 8]}}, "'widths'"),
        ({"finetuning": {"validate": True}}, "'validate'"),
        ({"pretraining": {"slices": True}}, "'slices'"),
        ({"pretraining_cohort": {}}, "pretraining_cohort"),
        ({"cohort": {"source": None}}, "source"),
        ({"label_fractions": 0.5}, "label_fractions"),
        ({"label_fractions": [0.1, 0.10000001]}, "label_fractions"),
        ({"lrs": 0.001}, "lrs"),
        ({"lrs": []}, "lrs"),
        ({"lrs": [0.001], "finetuning": {"lr": 0.1}}, "lr"),
        ({"label_fractions": []}, "label_fractions"),
        ({"label_fractions": [0.0]}, "label_fractions"),
        ({"label_fractions": [1.5]}, "label_fractions"),
        ({"seeds": 0}, "seeds"),
        ({"folds": 1}, "folds"),
        ({"cohort": {"size": 16}}, "source"),
        ({"cohort": TOY.cohort | {"sizes": 16}}, "'sizes'"),
        ({"finetuning": {"labels": 0.5}}, "'labels'"),
        ({"pretraining": {"out": "x"}}, "'out'"),
        ({"network": {"width": [4, 8]}}, "'width'"),
        ({"arms": {"x": {"finetuning": {"warmup": 3}}}}, "arm 'x' has its own warmup.*random one"),
        ({"arms": {"x": {"finetuning": {"warmup": 0}}}}, "arm 'x' has its own warmup"),
        ({"arms": {"x": {"task": "rotation", "warmup": 1}}}, "'x' has its own warmup.*Pretraining is never frozen"),
        ({"arms": {"x": {"task": "supervised", "warmup": 1}}, "pretraining_cohort": TOY.cohort}, "its own warmup"),
        ({"arms": {"x": {"finetuning": {"preset": "paper"}}}, "finetuning": {"epochs": 50}}, "'x' has its own preset"),
        ({"arms": {"x": {"finetuning": {"steps": 9}}}, "finetuning": {"warmup": 1}}, "'x' has its own steps"),
        ({"arms": {"x": {"finetuning": {"batch_size": 9}}}, "finetuning": {"warmup": 1}}, "'x' has its own batch_size"),
        ({"pretraining": {"probe": "mask"}}, "'rotation' has probe: mask.*s is 0.2.*pretraining_cohort"),
        ({"pretraining": {"probe": "mask", "keep": "probe"}}, "arm 'rotation' has probe: mask"),
        ({"arms": {"x": {"task": "rotation", "probe": "age"}}}, "arm 'x' has probe: age"),
        ({"arms": {"x": {"task": "jigsaw", "keep": "probe"}}}, "arm 'x' has keep: probe"),
    ],
)
def test_a_mistake_is_said_before_anything_is_made(tmp_path, change, said):
    wrong = replace(TOY, **change)
    with pytest.raises(InputError, match=said):
        run_experiment(wrong, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    write_experiment(wrong, tmp_path / "wrong.yaml")
    with pytest.raises(InputError, match=f"wrong.yaml.*{said}"):
        read_experiment(tmp_path / "wrong.yaml")


@pytest.mark.quick
def test_what_all_arms_have_alike_and_probes_that_take_nothing_are_let_through():
    arms = {"scratch": {}, "x": {"task": "rotation", "finetuning": {"steps": 9, "lr": 0.1}}}
    check_experiment(replace(TOY, arms=arms, finetuning={"steps": 4, "warmup": 2}))
    check_experiment(replace(TOY, arms=arms, finetuning={"epochs": 40, "preset": "paper", "warmup": 0}))
    probed = replace(TOY, pretraining={"probe": "mask", "keep": "probe"})
    check_experiment(replace(probed, label_fractions=[1.0]))
    check_experiment(replace(probed, pretraining_cohort={"source": "somewhere"}))
    check_experiment(replace(probed, arms={"scratch": {}}))


@pytest.mark.quick
@pytest.mark.parametrize(
    "text",
    ["", "- 1", "arms: [", "arms: {a: {}}"]
    + [f"cohort: {{source: x}}\narms: {{{arm}: {{}}}}\n{more}" for arm, more in (("a", "more: 1"), ("3", ""))],
)
def test_files_that_are_no_experiment(tmp_path, text):
    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(InputError, match="e.yaml"):
        read_experiment(tmp_path / "e.yaml")
    with pytest.raises(InputError, match="nowhere.yaml"):
        read_experiment(tmp_path / "nowhere.yaml")


@pytest.mark.quick
def test_a_variable_that_is_not_set_and_a_taken_folder(tmp_path):
    with pytest.raises(InputError, match="NO_SUCH_PLACE"):
        run_experiment(replace(TOY, cohort={"source": "$NO_SUCH_PLACE/x"}), tmp_path / "out", progress=False)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/thesis.tex").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        run_experiment(TOY, tmp_path / "taken", progress=False)


def test_one_cell_fails_and_the_others_go_on(tmp_path, monkeypatch):
    assert run_experiment(replace(TOY, seeds=1), tmp_path / "made", progress=False)
    arms = {"scratch": {}, "lost": {"encoder": str(tmp_path / "made/pretraining/rotation-0")}}
    broken, real = replace(TOY, arms=arms, label_fractions=[0.2]), experiments.finetune

    def full(store, out, **how):
        if how["encoder"] is not None:
            raise RuntimeError("no room on the device")
        return real(store, out, **how)

    monkeypatch.setattr(experiments, "finetune", full)
    rows = run_experiment(broken, tmp_path / "out", progress=False)
    assert {r["arm"] for r in rows} == {"scratch"} and len(read_diary(tmp_path / "out")) == 4
    failed = failed_cells(broken, tmp_path / "out")
    assert [f["cell"] for f in failed] == ["lost-0.2-0", "lost-0.2-1"] and "no room" in failed[0]["error"]
    said = (tmp_path / "out/cells/lost-0.2-0.error.txt").read_text()
    assert "Traceback" in said and "no room" in said
    with pytest.raises(InputError, match="no cell of 2 could be made.*no room"):
        run_experiment(replace(broken, arms={"lost": arms["lost"]}), tmp_path / "nothing", progress=False)

    monkeypatch.setattr(experiments, "finetune", real)
    rows = run_experiment(broken, tmp_path / "out", progress=False)
    assert {r["arm"] for r in rows} == {"scratch", "lost"} and not failed_cells(broken, tmp_path / "out")
    assert len(read_diary(tmp_path / "out")) == 6, "what was made is not made again"


@pytest.mark.parametrize("wrong, said", [
    ({"finetuning": {"steps": 2, "lr_warmup": 5}}, "arm 'scratch'.*rises for 5 steps"),
    ({"finetuning": {"steps": 2, "augment": "none", "mirror": [0]}}, "arm 'scratch'.*mirror"),
    ({"finetuning": {"steps": 2, "patch": 17}}, "arm 'scratch'.*17"),
    ({"pretraining": {"steps": 2, "lr_warmup": 9}}, "arm 'rotation'.*rises for 9 steps"),
    ({"pretraining": {"steps": 2, "mirror": [0]}}, "arm 'rotation'.*mirror"),
    ({"arms": {"scratch": {}, "lost": {"encoder": "nowhere"}}}, "arm 'lost'.*nowhere: no such folder"),
])  # fmt: skip
def test_an_option_that_cannot_be_is_refused_before_anything_is_trained(wrong, said, tmp_path):
    with pytest.raises(InputError, match=said):
        run_experiment(replace(TOY, **wrong), tmp_path, progress=False)
    assert not (tmp_path / "pretraining").exists() and not (tmp_path / "cells").exists()


def test_slices_supervised_elsewhere_and_folds(tmp_path):
    lines = (SAMPLES / "imagesTr").glob("brain_00*.nii.gz")
    few = ["image,mask", *(f"{f},{str(f).replace('imagesTr', 'labelsTr')}" for f in sorted(lines))]
    (tmp_path / "few.csv").write_text("\n".join(few[:7]))
    names = {Path(line.split(",")[0]).name.removesuffix(".nii.gz") for line in few[1:7]}
    others = [f for f in sorted((SAMPLES / "imagesTr").glob("*.nii.gz")) if f.name.removesuffix(".nii.gz") not in names]
    (tmp_path / "others.csv").write_text(
        "\n".join(["image,mask", *(f"{f},{str(f).replace('imagesTr', 'labelsTr')}" for f in others[:8])])
    )
    experiment = replace(
        TOY,
        cohort={"source": str(tmp_path / "few.csv"), "size": 16},
        pretraining_cohort={"source": str(tmp_path / "others.csv"), "size": 16},
        arms={
            "scratch": {},
            "rotation 2D": {"task": "rotation", "slices": True, "steps": 1},
            "supervised": {"task": "supervised", "steps": 2},
        },
        finetuning={"steps": 2, "warmup": 2},
        folds=3,
        seeds=1,
        label_fractions=[1.0],
    )
    rows, out = run_experiment(experiment, tmp_path / "out", progress=False), tmp_path / "out"
    assert not failed_cells(experiment, out)
    for arm in experiment.arms:
        mine = [r for r in rows if r["arm"] == arm]
        assert {r["case"] for r in mine} == names and {r["fold"] for r in mine} == {0, 1, 2}
        assert len(mine) == 6 * 3, "everybody is tested once"
    assert len(list((out / "pretraining").glob("*/encoder.json"))) == 2, "pretrained elsewhere, so once for all folds"
    assert read_card(out / "pretraining/supervised-0")["task"] == "segmentation"
    assert settings_of(out, "rotation 2D-1-0-fold1")["slices"] is True
    assert {settings_of(out, f"{arm}-1-0-fold1")["warmup_steps"] for arm in experiment.arms} == {2}, "all alike"
    supervised = yaml.safe_load((out / "pretraining/supervised-0/settings.yaml").read_text())
    assert supervised["warmup_steps"] == 0, "as the tasks, it learns in every step of its pretraining"
    arms = {"scratch": {}, "rotation": {"task": "rotation", "steps": 1}}
    labels = {(row["arm"], row["labels"], row["elsewhere"]) for row in read_table(out / "trainings.csv")}
    elsewhere = len(Store(out / "store-pretraining").split("train"))
    expected = {(arm, "4", str(elsewhere if arm == "supervised" else 0)) for arm in experiment.arms}
    assert labels == expected, "two of six are tested in each fold"
    said = f"labelled cases seen: scratch 4; rotation 2D 4; supervised 4 + {elsewhere} elsewhere"
    frozen = "he encoder was frozen for the first 2 steps in every arm"
    assert said in keep_answer(rows, out) and frozen in keep_answer(rows, out)
    assert said in (out / "report.html").read_text() and frozen in (out / "report.html").read_text()
    here = replace(experiment, pretraining_cohort=None, arms=arms)
    run_experiment(here, tmp_path / "here", progress=False)
    assert not failed_cells(here, tmp_path / "here")
    for i in range(3):  # pretrained here, so once for each fold, without those it tests
        seen = set(read_card(tmp_path / f"here/pretraining/rotation-0-fold{i}")["people"])
        tested = Store(tmp_path / "here/store", (i, 3)).split("test")
        assert len(seen) == 4 and not seen & {person_key(name) for name in tested}


@pytest.mark.quick
def test_a_pretraining_on_masks_is_not_frozen_by_the_preset_either():
    described = replace(TOY, pretraining={"preset": "paper"}, halves=8)
    how = experiments._pretraining(described, {"task": "supervised"}, {"cohort": SimpleNamespace(spatial_dims=3)})
    assert how["preset"] == "paper" and how["warmup"] == 0


def test_grades(tmp_path):
    lines = [f"{f},{i % 3},{20 + i}" for i, f in enumerate(sorted((SAMPLES / "imagesTr").glob("*.nii.gz"))[:15])]
    (tmp_path / "g.csv").write_text("\n".join(["image,grade,age", *lines]))
    experiment = replace(
        TOY,
        goal="classification",
        cohort={"source": str(tmp_path / "g.csv"), "size": 16},
        finetuning={"steps": 2, "ordinal": True},
        label_fractions=[1.0],
    )
    rows = run_experiment(experiment, tmp_path / "out", progress=False)
    assert all(r["grade"] in (0, 1, 2) and r["predicted"] in (0, 1, 2) for r in rows)
    assert str(read_table(tmp_path / "out/results.csv")) == str(rows)
    ages = replace(experiment, goal="regression", finetuning={"steps": 2, "track": 1, "warmup": 1}, lrs=[1e-3, 1e-2])
    rows = run_experiment(ages, tmp_path / "ages", progress=False)
    assert all(20 <= r["age"] < 35 and isinstance(r["guess"], float) for r in rows)
    assert {a["metric"] for a in verdict(rows)} == {"R²"} and "(R²)" in keep_answer(rows, tmp_path / "ages")
    looks = [(r["step"], r["frozen"], r["frozen_steps"]) for r in read_table(tmp_path / "ages/learning_curves.csv")]
    assert {*looks} == {(0, "yes", "1"), (1, "yes", "1"), (2, "no", "1")} and len(rows) == 2 * 2 * 3
    unfinished = next((tmp_path / "ages/cells").glob("*-1"))  # as one that another process is still making
    (unfinished / "scores.csv").unlink()
    collect(ages, {"cohort": Store(tmp_path / "ages/store")}, tmp_path / "ages")
    assert {line["seed"] for line in read_table(tmp_path / "ages/results.csv")} == {0, 1}
    left = [(line["arm"], line["seed"]) for line in read_table(tmp_path / "ages/learning_curves.csv")]
    assert left and unfinished.name not in {f"{arm}-1-{seed}" for arm, seed in left}
    sexes = replace(ages, goal="classification", finetuning={"target": "sex"})
    with pytest.raises(InputError, match="has no label of target sex"):
        run_experiment(sexes, tmp_path / "sex", progress=False)
    with pytest.raises(InputError, match="'target'"):
        check_experiment(replace(ages, arms={"a": {"finetuning": {"target": "age"}}}))


def test_who_would_wait_for_an_encoder_goes_on_with_other_cells(toy, tmp_path):
    stores = open_experiment(TOY, tmp_path, progress=False)
    (tmp_path / "pretraining").mkdir()
    first, later = (next(c for c in cells_of(TOY) if (c.arm, c.seed) == ("rotation", seed)) for seed in (0, 1))
    with FileLock(tmp_path / "pretraining/rotation-0.lock"):
        with pytest.raises(Timeout):
            make_cell(TOY, first, stores, tmp_path)
        make_cell(TOY, later, stores, tmp_path)
    assert [line["cell"] for line in read_diary(tmp_path)] == [later.name], "not a failure that is noted"


def test_the_diary_is_whole_or_not_there(toy):
    with open(toy[0] / "cells.csv", newline="") as f:
        lines = list(csv.DictReader(f))
    assert {line["state"] for line in lines} == {"done"} and len({line["hash"] for line in lines}) == 8
    assert all(float(line["seconds"]) > 0 for line in lines)


def test_from_a_shell(tmp_path):
    write_experiment(replace(TOY, seeds=1, label_fractions=[0.2], arms={"scratch": {}, "b": {}}), tmp_path / "e.yaml")
    done = ssl3d("experiment", tmp_path / "e.yaml", "--out", tmp_path / "out", folder=tmp_path)
    assert done.returncode == 0 and "nothing can be said" in done.stdout, done.stderr
    assert "with 1 seed no verdict is possible" in done.stdout, "before it begins"
    assert {"results.csv", "curves.png", "summary.txt", "cells.csv", "experiment.yaml"} <= {
        f.name for f in (tmp_path / "out").iterdir()
    }
    (tmp_path / "e.yaml").write_text("arms: {}")
    done = ssl3d("experiment", tmp_path / "e.yaml", "--out", tmp_path / "x", folder=tmp_path)
    assert done.returncode == 1 and "e.yaml" in done.stderr and "Traceback" not in done.stderr


def test_an_encoder_of_another_network_is_refused(toy, tmp_path):
    encoder = toy[0] / "pretraining/rotation-0"
    arms = {"scratch": {}, "given": {"encoder": str(encoder)}}
    other = replace(TOY, arms=arms, seeds=1, label_fractions=[0.2], network={"widths": [4, 8, 16]})
    with pytest.raises(InputError, match="arm 'given'.*All arms have the same one: give network: .*widths: .8, 16, 32"):
        run_experiment(other, tmp_path / "out", progress=False)
    unset = replace(other, arms={"scratch": {}, "given": {"encoder": "$NO_SUCH_PLACE/x"}})
    with pytest.raises(InputError, match="arm 'given'.*NO_SUCH_PLACE"):
        run_experiment(unset, tmp_path / "unset", progress=False)


def test_another_checkpoint_in_the_same_place_is_another_cell(toy, tmp_path):
    place = tmp_path / "encoder"
    shutil.copytree(toy[0] / "pretraining/rotation-0", place)
    given = replace(TOY, arms={"given": {"encoder": str(place)}}, seeds=1, label_fractions=[0.2])
    run_experiment(given, tmp_path / "out", progress=False)
    shutil.rmtree(place)
    shutil.copytree(toy[0] / "pretraining/rotation-1", place)
    with pytest.raises(InputError, match="encoder was"):
        run_experiment(given, tmp_path / "out", progress=False)


def test_regions_are_what_counts_where_there_are_any(tmp_path):
    regions = replace(
        TOY,
        arms={"scratch": {}},
        seeds=1,
        label_fractions=[0.2],
        finetuning={"steps": 1, "regions": {"whole": [1, 2, 3]}},
    )
    assert {r["class"] for r in run_experiment(regions, tmp_path / "out", progress=False)} == {"whole"}


def test_the_first_arm_stays_the_baseline_when_it_fails(toy, tmp_path, monkeypatch):
    from ssl3d.evidence import experiments

    real = experiments.run_cell

    def sometimes(experiment, cell, stores, out):
        if cell.arm == "scratch" and cell.seed == 0:
            raise RuntimeError("no luck")
        return real(experiment, cell, stores, out)

    monkeypatch.setattr(experiments, "run_cell", sometimes)
    rows = run_experiment(replace(TOY, label_fractions=[0.2]), tmp_path / "out", progress=False)
    assert rows[0]["arm"] == "scratch" and rows[0]["seed"] == 1
    (answer,) = verdict(rows)
    assert answer["baseline"] == "scratch" and answer["seeds"] == 1


def test_every_arm_and_fold_chooses_its_learning_rate(tmp_path):
    brains = sorted((SAMPLES / "imagesTr").glob("*.nii.gz"))[:12]
    lines = ["image,mask", *(f"{f},{str(f).replace('imagesTr', 'labelsTr')}" for f in brains)]
    (tmp_path / "few.csv").write_text("\n".join(lines))
    cohort = {"source": str(tmp_path / "few.csv"), "size": 16}
    searched = replace(
        TOY,
        cohort=cohort,
        seeds=1,
        label_fractions=[0.7],
        folds=2,
        lrs=[1e-7, 1e-2],
        finetuning={"steps": 4},
    )
    out = tmp_path / "out"
    rows = run_experiment(searched, out, progress=False)
    assert rows and not failed_cells(searched, out)
    for cell in cells_of(searched):
        tried = {lr: read_table(out / f"choosing/{cell.name}-{lr:g}/scores.csv") for lr in searched.lrs}
        own = set(json.loads((out / "cells" / cell.name / "network.json").read_text())["trained_on"])
        few = set(json.loads((out / f"choosing/{cell.name}-0.01/network.json").read_text())["trained_on"])
        held = {r["case"] for table in tried.values() for r in table}
        assert held and few and few | held == own and not few & held, "a part of its own labelled people"
        best = max(tried, key=lambda lr: sum(r["dice"] for r in tried[lr]))
        assert settings_of(out, cell.name)["lr"] == best
    expected = forecast(searched, {"cohort": Store(out / "store")})
    assert expected["runs"] == 2 * 2 + 2 + 2 * 2 * 2, "cells, pretrainings, searches"


def test_interrupted_means_stopped(tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("ssl3d.evidence.experiments.run_cell", stop)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(replace(TOY, seeds=1), tmp_path / "out", progress=False)
    assert read_diary(tmp_path / "out") == [], "it is not a failure of the cell"


def test_a_cell_whose_loss_is_no_number_fails_and_the_others_go_on(tmp_path):
    few = {"seeds": 1, "label_fractions": [1.0], "finetuning": {"steps": 4}}
    arms = {"scratch": {}, "wild": {"finetuning": {"lr": 1e30}}, "far": {"task": "rotation", "steps": 4, "lr": 1e30}}
    experiment = replace(TOY, arms=arms, **few)
    rows = run_experiment(experiment, tmp_path, progress=False)
    assert {row["arm"] for row in rows} == {"scratch"}
    failed = {line["cell"]: line["error"] for line in failed_cells(experiment, tmp_path)}
    assert [*failed] == ["wild-1-0", "far-1-0"] and all("the loss is nan in step" in said for said in failed.values())
    for folder in (tmp_path / "cells/wild-1-0", tmp_path / "pretraining/far-0"):
        assert not {"encoder.json", "encoder.safetensors", "scores.csv"} & {file.name for file in folder.iterdir()}


def test_a_full_disk_stops_an_experiment_at_once(tmp_path, monkeypatch):
    """Not one cell after the other, each with its own error."""
    write, tried = loop.write_whole, []

    def full(path, write_it):
        tried.append(path)
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(loop, "write_whole", full)
    experiment = replace(TOY, arms={"scratch": {}}, seeds=2, label_fractions=[1.0], finetuning={"steps": 2})
    with pytest.raises(InputError, match="last.ckpt: no space left on the disk of"):
        run_experiment(experiment, tmp_path, progress=False)
    assert len(tried) == 1 and not read_diary(tmp_path)
    monkeypatch.setattr(loop, "write_whole", write)
    assert run_experiment(experiment, tmp_path, progress=False)


FILE = "cohort: {source: SCANS}\narms:\n  scratch: {}\n  rotation: {task: rotation}\n"
WRONG = {
    "two arms of one name": (FILE + "  rotation: {task: jigsaw}\n", "line 5 has 'rotation' again, after line 4"),
    "two cohorts": (FILE + "cohort: {source: OTHER}\n", "line 5 has 'cohort' again, after line 1"),
    "an option twice": (FILE + "finetuning: {lr: 1e-3,\n  lr: 1e-4}\n", "line 6 has 'lr' again"),
    "a tab": (FILE + "finetuning:\n\tlr: 1e-3\n", "line 6 has a tab"),
    "Latin-1": ((FILE + "# für\n").encode("latin-1"), "line 5 has the byte 0xfc.*UTF-8"),
    "nothing": ("", "it holds nothing"),
    "a list": ("- a\n", "it holds list"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_says_two_things_is_refused_with_its_line(tmp_path, name):
    text, words = WRONG[name]
    (tmp_path / "e.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=f"e.yaml: .*{words}"):
        read_experiment(tmp_path / "e.yaml")


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_files_from_every_editor(tmp_path, coding, ends):
    text = FILE + "finetuning: {lr: 1E-3}\nseeds: 2  # für\n"
    (tmp_path / "e.yaml").write_bytes(text.replace("\n", ends).encode(coding))
    described = read_experiment(tmp_path / "e.yaml")
    assert described.finetuning == {"lr": 0.001} and described.seeds == 2 and len(described.arms) == 2


# Halves of the people, and a decoder that is handed on

HALVED = replace(
    TOY,
    arms={"scratch": {}, "control": {"task": "supervised", "decoder": True, "steps": 2},
          "rotation": {"task": "rotation", "steps": 2}},
    halves=8,
    label_fractions=[0.13],
    finetuning={"steps": 2},
)


@pytest.fixture(scope="module")
def halved(tmp_path_factory):
    out = tmp_path_factory.mktemp("halved") / "out"
    return out, run_experiment(HALVED, out, progress=False)


def test_each_seed_draws_its_own_halves_and_every_arm_has_the_same(halved):
    out, rows = halved
    assert not failed_cells(HALVED, out)
    store, seen = Store(out / "store"), {}
    for seed in range(HALVED.seeds):
        mine = stores_of_seed(HALVED, {"cohort": store}, seed)
        half_a, half_b = (set(mine[name].cases) for name in ("pretraining_cohort", "cohort"))
        assert not half_a & half_b and half_a | half_b == set(store.cases) and abs(len(half_a) - len(half_b)) <= 1
        tested = {arm: {r["case"] for r in rows if (r["arm"], r["seed"]) == (arm, seed)} for arm in HALVED.arms}
        trained = {arm: read_json(out / f"cells/{arm}-0.13-{seed}/network.json")["trained_on"] for arm in HALVED.arms}
        assert len({*map(frozenset, tested.values())}) == 1 and len({*map(tuple, trained.values())}) == 1
        assert len(tested["scratch"]) == 8 and len(trained["scratch"]) == 1, "one of the 8 who are not tested"
        assert tested["scratch"] | {*trained["scratch"]} <= half_b and not tested["scratch"] & {*trained["scratch"]}
        for arm in ("control", "rotation"):
            people = set(read_card(out / f"pretraining/{arm}-{seed}")["people"])
            assert people == {person_key(store.cases[n]["subject"]) for n in mine["pretraining_cohort"].split("train")}
            assert not people & {person_key(store.cases[name]["subject"]) for name in half_b}
        seen[seed] = (half_a, tested["scratch"], *trained["scratch"])
    assert seen[0][0] != seen[1][0] and seen[0][1] != seen[1][1], "the halves of another seed are others"


def test_the_control_gets_its_decoder_and_its_labels_are_counted_elsewhere(halved):
    out, rows = halved
    for seed in range(2):
        first = settings_of(out, f"control-0.13-{seed}")
        assert first["decoder_from"].startswith("segmentation") and first["encoder"].startswith("segmentation")
        assert "half B of seed" in first["store"] and "decoder_from" not in settings_of(out, f"rotation-0.13-{seed}")
        origins = read_json(out / f"cells/control-0.13-{seed}/origins.json")
        assert len(origins["new"]) == 2, "its last layer alone"
    pretrained = yaml.safe_load((out / "pretraining/control-0/settings.yaml").read_text())
    assert "half A of seed 0" in pretrained["store"] and "decoder_from" not in pretrained
    n = len(stores_of_seed(HALVED, {"cohort": Store(out / "store")}, 0)["pretraining_cohort"].split("train"))
    told = {(row["arm"], row["labels"], row["elsewhere"]) for row in read_table(out / "trainings.csv")}
    assert told == {("scratch", "1", "0"), ("rotation", "1", "0"), ("control", "1", str(n))}
    assert len(rows) == 3 * 2 * 8 * 3


def test_an_encoder_that_knows_half_b_is_refused(halved, tmp_path):
    """The encoder of seed 0 has met people whom seed 1 tests, and learned from masks of theirs."""
    out, _ = halved
    given = {"encoder": str(out / "pretraining/control-0"), "decoder": True}
    known = replace(HALVED, cohort={"source": str(out / "store")}, arms={"scratch": {}, "x": given})
    with pytest.raises(InputError, match=r"arm 'x': its encoder was pretrained with labels of \d+ case"):
        run_experiment(known, tmp_path / "labels", progress=False)
    run_experiment(replace(known, seeds=1), tmp_path / "one", progress=False)
    assert not failed_cells(replace(known, seeds=1), tmp_path / "one"), "nobody of its own half B was met"
    images = replace(known, arms={"scratch": {}, "x": {"encoder": str(out / "pretraining/rotation-0")}})
    run_experiment(images, tmp_path / "images", progress=False)
    (failed,) = failed_cells(images, tmp_path / "images")
    assert failed["cell"] == "x-0.13-1" and "keeps for testing" in failed["error"]


def test_an_experiment_with_halves_goes_on_and_may_grow(halved, tmp_path):
    out, rows = halved
    shutil.copytree(out, tmp_path / "out")
    grown = run_experiment(replace(HALVED, seeds=3), tmp_path / "out", progress=False)
    assert [str(r) for r in grown if r["seed"] < 2] == [str(r) for r in rows]
    made = [line["cell"] for line in read_diary(tmp_path / "out")]
    assert len(made) == len(set(made)) == 9
    with pytest.raises(InputError, match="halves was 8"):
        run_experiment(replace(HALVED, halves=4), tmp_path / "out", progress=False)
    stores = open_experiment(HALVED, tmp_path / "out", progress=False)
    assert forecast(HALVED, stores)["runs"] == 3 * 2 + 2 * 2


def test_a_cell_of_an_experiment_without_halves_is_the_one_that_it_was(toy):
    """The diary of an earlier version knows its cells by a hash of the description, which had no halves."""
    digest = experiments._hash(TOY, cells_of(TOY)[0], {"cohort": Store(toy[0] / "store")})
    old = {"goal", "seeds", "folds", "network", "pretraining", "finetuning", "lrs", "arms", "label_fractions", "cohort",
           "pretraining_cohort"}
    known = {k: v for k, v in experiments._plain(TOY).items() if k in old - {"seeds", "cohort", "pretraining_cohort"}}
    known |= {"arms": {}, "cell": cells_of(TOY)[0], "stores": [Store(toy[0] / "store").hash], "encoder": None,
              "label_fractions": None, "usual recipe": {"augment": None, "schedule": None}}
    assert digest == hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]


# Labels beyond a share


def test_labels_of_the_same_people_are_not_read_elsewhere(toy, tmp_path):
    """A cohort to pretrain on that holds the scans of the cohort itself, and an encoder that has seen their masks."""
    arms = {"scratch": {}, "x": {"task": "supervised", "steps": 1}}
    here = {"source": str(toy[0] / "store")}
    same = replace(TOY, arms=arms, cohort=here, pretraining_cohort=here)
    probed = replace(same, arms={"x": {"task": "rotation", "steps": 1, "probe": "mask"}})
    given = replace(TOY, cohort=here, arms={"x": {"encoder": str(toy[0] / "cells/scratch-1-0")}})
    for k, wrong in enumerate((same, probed, given)):
        with pytest.raises(InputError, match=r"arm 'x': .*pretrained with labels of \d+ case.*label_fractions is 0.2"):
            run_experiment(wrong, tmp_path / str(k), progress=False)
        assert not (tmp_path / str(k) / "cells").exists(), "before anything is trained"
    open_experiment(replace(same, label_fractions=[1.0]), tmp_path / "all", progress=False)
    for kept in ({"task": "supervised"}, {"task": "rotation", "probe": "mask", "keep": "probe"}):
        searched = replace(same, arms={"x": kept | {"steps": 1}}, label_fractions=[1.0], lrs=[1e-3, 1e-2],
                           pretraining_cohort=here if kept["task"] == "supervised" else None)
        with pytest.raises(InputError, match=r"arm 'x': .*labels of the validation people.*\(lrs\)"):
            run_experiment(searched, tmp_path / f"searched {kept['task']}", progress=False)
    plain = replace(same, arms={"x": {"task": "rotation", "steps": 1}})
    open_experiment(plain, tmp_path / "plain", progress=False)


def test_labels_that_an_encoder_has_read_long_before_are_known(toy, tmp_path):
    """A task that went on from an encoder that had learned from masks; people who are known by name alone."""
    store, first = Store(toy[0] / "store"), toy[0] / "cells/scratch-1-0"
    chained = pretrain("rotation", store, tmp_path / "chained", encoder=first, steps=1, progress=False)
    later = replace(TOY, cohort={"source": str(store.folder)}, arms={"x": {"encoder": str(chained)}})
    with pytest.raises(InputError, match=r"arm 'x': .*pretrained with labels of \d+ case"):
        run_experiment(later, tmp_path / "out", progress=False)
    rows = replace(later, label_fractions=[1.0])
    run_experiment(rows, tmp_path / "all", progress=False)
    seen = read_table(tmp_path / "all" / "trainings.csv")
    assert {int(row["labels"]) for row in seen} == {len(store.split("train"))}

    train = store.split("train")
    names = {*provenance(store, train, labelled=train)["labelled"]} - {m for c in store.cases.values()
                                                                        for m in image_keys(c)}
    assert met_with_labels(later, "x", store, names) == sorted(train), "the names alone are enough"
    allowed = replace(later, finetuning=TOY.finetuning | {"allow_seen": "names"})
    assert not met_with_labels(allowed, "x", store, names)


@pytest.mark.parametrize("goal, needed, fraction", [("segmentation", "two", 0.04), ("regression", "three", 0.14)])
def test_a_share_that_is_too_small_for_a_search_is_refused_at_once(tmp_path, goal, needed, fraction):
    images = sorted((SAMPLES / "imagesTr").glob("*.nii.gz"))[:18]
    lines = [f"{f},{str(f).replace('imagesTr', 'labelsTr')},{20 + i}" for i, f in enumerate(images)]
    (tmp_path / "t.csv").write_text("\n".join(["image,mask,age", *lines]))
    few = replace(TOY, goal=goal, cohort={"source": str(tmp_path / "t.csv"), "size": 16}, finetuning={"steps": 1})
    few = replace(few, arms={"scratch": {}}, lrs=[1e-3, 1e-2], label_fractions=[1.0, fraction])
    with pytest.raises(InputError, match=f"lrs need {needed} labelled people at the smallest share"):
        run_experiment(few, tmp_path / "out", progress=False)
    assert not {"cells", "choosing", "pretraining"} & {file.name for file in (tmp_path / "out").iterdir()}
    open_experiment(replace(few, label_fractions=[1.0]), tmp_path / "whole", progress=False)


def test_a_frozen_phase_that_is_too_long_is_refused_at_once(toy, tmp_path):
    long = replace(TOY, cohort={"source": str(toy[0] / "store")}, finetuning={"preset": "paper", "steps": 100})
    said = "arm 'scratch': fine-tuning on 100 % of the labels: .*25 epochs, which are 325 steps .* 100 steps"
    with pytest.raises(InputError, match=said):
        run_experiment(long, tmp_path / "out", progress=False)
    assert not (tmp_path / "out/cells").exists()


def test_all_arms_have_the_network_of_the_preset(tmp_path):
    """A preset under pretraining alone would give pretrained arms another network than scratch."""
    for i in range(8):
        colours = np.random.default_rng(i).integers(0, 255, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(colours).save(tmp_path / f"p{i}.png")
    (tmp_path / "t.csv").write_text("\n".join(["image,grade", *(f"p{i}.png,{i % 2}" for i in range(8))]))
    paper = Experiment(
        {"source": str(tmp_path / "t.csv"), "size": 32},
        {"scratch": {}, "rotation": {"task": "rotation"}},
        "classification",
        label_fractions=[1.0],
        seeds=1,
        pretraining={"preset": "paper", "steps": 1},
        finetuning={"steps": 1},
    )
    run_experiment(paper, tmp_path / "out", progress=False)
    assert not failed_cells(paper, tmp_path / "out")
    used = {settings_of(tmp_path / "out", f"{arm}-1-0")["architecture"] for arm in paper.arms}
    assert used == {"densenet121-batchnorm"}
    said = keep_answer(read_scores(tmp_path / "out/results.csv"), tmp_path / "out")
    assert "No frozen phase: every encoder learned from the first step" in said
    assert "No frozen phase" in (tmp_path / "out/report.html").read_text()


def test_numbers_of_numpy_can_be_written(tmp_path):
    given = replace(TOY, label_fractions=[np.float32(0.5), np.float64(1)], seeds=np.int64(2), lrs=(np.float32(0.5),),
                    network={"widths": [np.int64(8), np.int64(16)]},
                    cohort={"source": str(SAMPLES), "window": (np.float32(0), np.int64(200))})
    check_experiment(given)
    write_experiment(given, tmp_path / "x.yaml")
    again = read_experiment(tmp_path / "x.yaml")
    assert again.label_fractions == [0.5, 1] and again.cohort["window"] == [0, 200] and again.seeds == 2
    assert [cell.name for cell in cells_of(given)] == [cell.name for cell in cells_of(again)]


def test_an_experiment_that_is_refused_can_be_mended_in_its_folder(tmp_path, encoder_of_unet):
    wrong = replace(TOY, arms={"scratch": {}, "theirs": {"encoder": str(encoder_of_unet)}}, network={"widths": [4, 8]},
                    seeds=1, label_fractions=[1.0])  # fmt: skip
    with pytest.raises(InputError, match=r"arm 'theirs': .*widths 8, 16, 32, .* widths 4, 8\. .*: \{arch"):
        run_experiment(wrong, tmp_path / "out", progress=False)
    assert not (tmp_path / "out/experiment.yaml").exists() and not (tmp_path / "out/cells").exists()
    mended = replace(wrong, network={"widths": [*SMALL]}, cohort={"source": str(SAMPLES), "size": 24})
    rows = run_experiment(mended, tmp_path / "out", progress=False)
    assert {row["arm"] for row in rows} == {"scratch", "theirs"}
    assert Store(tmp_path / "out/store").settings["size"] == 24


def test_a_store_that_lies_in_the_folder_of_somebody_is_left_alone(tmp_path):
    mine = prepare(SAMPLES, tmp_path / "out/store", size=24, progress=False)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out/store").rglob("*")}
    with pytest.raises(InputError, match="is not empty and is no experiment"):
        run_experiment(replace(TOY, cohort={"source": str(SAMPLES), "size": 16}), tmp_path / "out", progress=False)
    assert before == {file: file.stat().st_mtime_ns for file in mine.folder.rglob("*")}


@pytest.fixture
def encoder_of_unet(tmp_path):
    return keep_encoder(make_encoder("unet", 3, 4, SMALL), tmp_path / "kept")


def test_a_logger_belongs_to_no_description(tmp_path):
    class Told:
        log_metrics = log_hyperparams = log_graph = save = finalize = print

    with pytest.raises(InputError, match="its logger is a name: csv or tensorboard"):
        check_experiment(replace(TOY, finetuning={"steps": 4, "logger": Told()}))
    for given in ({"logger": "csv"}, {}):  # one that is watched goes on without
        arms = {"scratch": {"finetuning": given} if given else {}}
        experiments._begin(replace(TOY, arms=arms, finetuning=given), tmp_path)


def test_arms_with_other_options_are_told(tmp_path):
    arms = {"scratch": {}, "strong": {"finetuning": {"augment": "full", "clip": 12}}, "same": {"finetuning": {
        "augment": "light", "mirror": [], "weight_decay": 0}}}  # fmt: skip
    some = replace(TOY, arms=arms, finetuning={"steps": 2}, seeds=1, label_fractions=[1.0])
    run_experiment(some, tmp_path / "out", progress=False)
    told = unlike_in_words(read_table(tmp_path / "out/trainings.csv"))
    assert "augment (scratch light, strong full, same light)" in told and "clip (scratch none, strong 12" in told
    assert "weight_decay" not in told and "mirror" not in told
