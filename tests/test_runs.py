"""Runs: what is in their folders, who gets which images and numbers, and what is damaged."""

import io
import json
import re
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import SMALL, python
from filelock import FileLock

from ssl3d.errors import InputError
from ssl3d.networks.cards import read_card
from ssl3d.training.loop import images_of_step, steps_per_epoch
from ssl3d.training.pretrain import pretrain
from ssl3d.training.runs import (
    FEWEST,
    Run,
    append_log,
    begin_run,
    begun_run,
    finished_run,
    judged,
    read_log,
    trim_log,
)

pytestmark = pytest.mark.quick


def test_every_epoch_deals_out_every_image():
    for n, size in ((10, 3), (8, 4), (5, 5)):
        per = steps_per_epoch(n, size)
        for epoch in range(3):
            seen = [i for s in range(per) for i in images_of_step(n, size, seed=1, step=epoch * per + s)]
            assert len(seen) == len(set(seen)) == per * size
    assert steps_per_epoch(3, 8) == 1 and sorted(images_of_step(3, 8, 0, 5)) == [0, 1, 2]


def test_run_folder(store, encoder):
    assert {p.name for p in encoder.folder.iterdir()} == {
        "settings.yaml",
        "train.lock",
        "log.csv",
        "last.ckpt",
        "encoder.safetensors",
        "encoder.json",
    }
    settings, card, log = yaml.safe_load((encoder / "settings.yaml").read_text()), read_card(encoder), read_log(encoder)
    assert settings["task"] == card["task"] == "rotation" and settings["store"] == card["store"] == store.hash
    assert (card["in_channels"], card["spatial_dims"], card["widths"]) == (4, 3, list(SMALL))
    assert set(log) == {"step", "loss", "accuracy", "chance"} and log["step"][-1] == card["steps"]
    seen = {store.cases[n]["fingerprint"] for n in store.split("test")}
    assert not seen & set(card["trained_on"]), "no test image was looked at"


def test_finished_runs_return_and_other_settings_are_refused(store, encoder):
    before = (encoder / "encoder.safetensors").stat().st_mtime_ns
    pretrain("rotation", store.folder, encoder, epochs=2, widths=SMALL, progress=False)
    assert (encoder / "encoder.safetensors").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="seed was 0 and is now 1"):
        pretrain("rotation", store.folder, encoder, epochs=2, widths=SMALL, seed=1, progress=False)
    with pytest.raises(InputError, match="not empty"):
        pretrain("rotation", store.folder, store.folder, epochs=2, widths=SMALL, progress=False)


def test_streams_of_random_numbers_are_apart():
    from ssl3d.seeds import generator_for

    streams = [
        torch.rand(4, generator=generator_for(seed, *purpose)).tolist()
        for seed in range(4)
        for purpose in (("order", 0), ("questions", 0), ("order", 1), ("questions", 1), ("order",), ("order", 0, 0))
    ]
    assert len({tuple(s) for s in streams}) == len(streams)


def test_damaged_checkpoint_and_settings_are_named(store, tmp_path):
    out = pretrain("rotation", store.folder, tmp_path / "x", epochs=1, widths=SMALL, progress=False)
    (out / "encoder.json").unlink()
    (out / "last.ckpt").write_bytes((out / "last.ckpt").read_bytes()[:5000])
    with pytest.raises(InputError, match="last.ckpt"):
        pretrain("rotation", store.folder, out, epochs=1, widths=SMALL, progress=False)
    (out / "settings.yaml").write_text("{")
    with pytest.raises(InputError, match="settings.yaml"):
        pretrain("rotation", store.folder, out, epochs=1, widths=SMALL, progress=False)


def test_a_log_cut_at_its_header_is_begun_again(tmp_path):
    (tmp_path / "log.csv").write_text("step,lo")
    trim_log(tmp_path, 0)
    append_log(tmp_path, {"step": 1, "loss": 2.0})
    assert read_log(tmp_path)["step"].tolist() == [1]


AT_ONCE = """
import multiprocessing, sys
from pathlib import Path

from ssl3d.errors import InputError
from ssl3d.training.runs import begun_run, read_settings

folder, same = Path(sys.argv[1]), sys.argv[2] == "same"
forks = multiprocessing.get_context("fork")
barrier, found = forks.Barrier(2), forks.Queue()


def begin(who):
    for n in range(25):
        barrier.wait()
        try:
            with begun_run(folder / str(n), {"steps": 0 if same else who}, "encoder.json") as to_be_made:
                barrier.wait(20)
                found.put(read_settings(folder / str(n))["steps"] in (0, who) and to_be_made)
        except InputError as e:
            barrier.wait(20)
            found.put(str(e))


both = [forks.Process(target=begin, args=(who,)) for who in (1, 2)]
[each.start() for each in both]
said = [found.get(timeout=60) for _ in range(50)]
[each.join() for each in both]
assert said.count(True) == 25, said
assert sum("is being trained by another process" in str(each) for each in said) == 25, said
"""


@pytest.mark.parametrize("settings", ["same", "different"])
def test_of_two_that_begin_a_run_at_once_one_trains(tmp_path, settings):
    python(AT_ONCE, tmp_path, settings)


@pytest.mark.parametrize("started", [{}, {"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"}, {"SLURM_LOCALID": "1"}])
def test_a_second_process_is_refused_whoever_started_it(store, tmp_path, monkeypatch, started):
    """By torchrun, by srun, or by hand in a second window."""
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "run").mkdir()
    said = "trained by another process.*devices=2"
    with FileLock(tmp_path / "run/train.lock"), pytest.raises(InputError, match=said):
        pretrain("rotation", store, tmp_path / "run", steps=1, widths=SMALL, progress=False)
    assert [f.name for f in (tmp_path / "run").iterdir()] == ["train.lock"], "its settings are not those of the second"
    run = pretrain("rotation", store, tmp_path / "run", steps=1, widths=SMALL, progress=False)
    with FileLock(run / "train.lock"):  # many may read what is finished
        assert pretrain("rotation", store, run, steps=1, widths=SMALL, progress=False) == run


def test_a_folder_that_is_refused_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not empty"), begun_run(tmp_path, {"steps": 1}, "encoder.json"):
        pass
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_a_killed_process_left_is_swept(tmp_path):
    with begun_run(tmp_path, {"steps": 1}, "encoder.json"):
        (tmp_path / "last.0123456789ab.part").write_bytes(b"killed")
    with begun_run(tmp_path, {"steps": 1}, "encoder.json"):
        assert sorted(f.name for f in tmp_path.iterdir()) == ["settings.yaml", "train.lock"]


@pytest.mark.parametrize("rise, early", [(0.3, True), (0.01, False)])
def test_what_is_learned_early_is_said(tmp_path, rise, early):
    begin_run(tmp_path, {"command": "pretrain", "task": "jigsaw", "steps": 100})
    for step in range(1, 101):
        append_log(tmp_path, {"step": step, "loss": 0.1, "accuracy": min(1, 0.1 + rise * step), "chance": 0.1})
    said = Run(tmp_path).summary()
    assert "learned jigsaw in 100 steps" in said and ("learned early" in said and "shortcut" in said) == early


@pytest.mark.parametrize("coding", ["ascii", "cp932"])
def test_a_run_says_what_it_learned_on_any_console(tmp_path, monkeypatch, coding):
    run = begin_run(tmp_path / "Bäuche²", {"command": "pretrain", "task": "jigsaw", "steps": 40})
    for step in range(1, 41):
        append_log(run, {"step": step, "loss": 0.1, "accuracy": 0.8, "chance": 0.1})
    console = io.TextIOWrapper(io.BytesIO(), encoding=coding, write_through=True)
    monkeypatch.setattr(sys, "stdout", console)
    finished_run(run, progress=True)
    assert "learned jigsaw in 40 steps" in console.buffer.getvalue().decode(coding)


# Verdicts


def log_of(accuracies, steps=200, rows=8, seed=0, chance=0.1):
    """A log in which so many questions a step are answered right with these probabilities, one after the other."""
    likely = np.resize(np.repeat(accuracies, steps // len(accuracies)), steps)
    right = np.random.default_rng(seed).binomial(rows, likely)
    return {"step": np.arange(1, steps + 1), "loss": np.ones(steps), "accuracy": right / rows,
            "chance": np.full(steps, chance)}  # fmt: skip


LOGS = [
    ("learned", (0.1, 0.3, 0.6, 0.8), 0.1),
    ("learned", (0.1, 0.3, 0.3, 0.35), 0.1),
    ("learned", (0.5, 0.9, 0.85, 0.9), 0.5),
    ("learned", (0.1, 0.5, 1.0, 1.0), 0.1),
    ("learned", (0.0, 0.02, 0.05, 0.1), 0.001),
    ("solved early", (0.3, *[1.0] * 19), 0.1),
    ("solved early", (0.5, *[0.99] * 19), 0.5),
    ("lost", (0.1, 0.8, 0.8, 0.1), 0.1),
    ("lost", (1.0, 1.0, 1.0, 0.5), 0.5),
    ("lost", (0.1, 0.9, 0.8, 0.3), 0.1),
    ("at chance", (0.1,), 0.1),
    ("at chance", (0.5,), 0.5),
    ("at chance", (0.1, 0.0, 0.05, 0.1), 0.1),
]


@pytest.mark.parametrize("steps, rows", [(80, 16), (200, 8), (2000, 2)])
@pytest.mark.parametrize("verdict, accuracies, chance", LOGS)
def test_a_verdict_says_what_the_log_shows(verdict, accuracies, chance, steps, rows):
    rows = rows if chance > 0.01 else 64  # with few questions a step, one in a thousand is not told from one in ten
    for seed in range(3):
        found = judged(log_of(accuracies, steps, rows, seed, chance))
        assert found["verdict"] == verdict, found
        assert found["chance"] == chance and json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("steps", [30, 45, 100, 1000])
@pytest.mark.parametrize("chance, rows", [(0.1, 4), (0.5, 4), (0.04, 16), (0.25, 1)])
def test_luck_is_not_taken_for_learning(steps, chance, rows):
    verdicts = [judged(log_of((chance,), steps, rows, seed, chance))["verdict"] for seed in range(200)]
    assert verdicts.count("at chance") >= 196, {each: verdicts.count(each) for each in set(verdicts)}


def test_of_few_steps_nothing_is_told():
    for accuracies in ((0.1,), (1.0,), (0.1, 1.0)):
        assert judged(log_of(accuracies, FEWEST - 1))["verdict"] == "too short"
        assert judged(log_of(accuracies, FEWEST))["verdict"] != "too short"


def closing_line(folder, log, health=None, **settings):
    """What is said of a finished run with such a log, and with this on its encoder's card."""
    steps = len(log["step"])
    begin_run(folder, {"command": "pretrain", "task": "jigsaw", "steps": steps, "lr": 0.003} | settings)
    for row in zip(*log.values()):
        append_log(folder, dict(zip(log, row)))
    if health is not None:
        (folder / "encoder.json").write_text(json.dumps({"health": health}))
    return Run(folder).summary()


@pytest.mark.parametrize(
    "accuracies, said",
    [
        ((0.1, 0.8), "learned jigsaw in 100 steps: 0.[78]"),
        ((0.1,), "no learning was shown in 100 steps.*Try more steps, or another learning rate"),
        ((0.1, 0.9, 0.9, 0.1), "jigsaw was lost again in 100 steps.*at its best.*lower learning rate than 0.003 .lr="),
        ((0.4, *[1.0] * 19), "learned early, within the first [0-9]+ steps.*shortcut.*harder question .options="),
    ],
)  # fmt: skip
def test_the_closing_line_gives_the_verdict_and_a_cure(tmp_path, accuracies, said):
    log = log_of(accuracies, 100, seed=1)
    old = closing_line(tmp_path / "old", log)  # of a version that gave no verdicts
    new = closing_line(tmp_path / "new", log, judged(log))
    for line in (old, new):
        assert re.search(said, line), line
    assert old.replace("/old:", "/new:") == new


def test_the_closing_line_of_a_collapse_and_of_a_short_run(tmp_path):
    log = log_of((0.1, 0.2), 100)
    for what in ("features", "code"):
        said = closing_line(tmp_path / what, log, judged(log, alike=True) | {"same": what})
        assert f"different images get nearly the same {what}" in said and "lower learning rate than 0.003" in said
    said = closing_line(tmp_path / "short", log_of((0.5,), 12))
    assert "12 steps are too few to tell" in said and "learned jigsaw" not in said and "nothing was" not in said
