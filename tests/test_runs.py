"""Runs: what is in their folders, who gets which images and numbers, and what is damaged."""

import io
import json
import re
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import yaml
from conftest import SMALL, python
from filelock import FileLock
from lightning.pytorch.loggers import Logger
from torch import nn

from ssl3d.downstream.finetune import finetune
from ssl3d.errors import InputError
from ssl3d.files import write_table
from ssl3d.networks.cards import read_card
from ssl3d.training.loop import images_of_step, steps_per_epoch, train
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
    orders = [[i for s in range(3) for i in images_of_step(30, 10, seed, 3 * epoch + s)]
              for seed in (0, 1) for epoch in range(3)]
    assert len({*map(tuple, orders)}) == 6, "in another order, in each epoch and with each seed"
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
            how = {"command": "pretrain", "steps": 0 if same else who}
            with begun_run(folder / str(n), how, "encoder.json") as to_be_made:
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
    with pytest.raises(InputError, match="not empty"), begun_run(tmp_path, {"command": "pretrain"}, "encoder.json"):
        pass
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_a_killed_process_left_is_swept(tmp_path):
    with begun_run(tmp_path, {"command": "pretrain", "steps": 1}, "encoder.json"):
        (tmp_path / "last.0123456789ab.part").write_bytes(b"killed")
    with begun_run(tmp_path, {"command": "pretrain", "steps": 1}, "encoder.json"):
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


class Killed(BaseException):
    """What ends a process in the middle of a step."""


class Notes(Logger):
    """A logger that keeps what it is told, draws random numbers meanwhile, and may end the training in a step."""

    name, version = "notes", 0

    def __init__(self, killed_in=None):
        super().__init__()
        self.killed_in, self.settings, self.numbers, self.pictures = killed_in, [], [], {}

    def log_hyperparams(self, params):
        self.settings.append(dict(params))

    def log_metrics(self, metrics, step=None):
        torch.rand(3)
        self.numbers.append({"step": step, **metrics})
        if step == self.killed_in and "loss" in metrics:
            raise Killed

    def log_image(self, key, images, step=None):
        self.pictures[step] = images[0].size

    def steps(self, name):
        return [told["step"] for told in self.numbers if name in told]


class Board(Notes):
    """A logger that takes figures, as TensorBoard's; `experiment` is what it writes with."""

    @property
    def experiment(self):
        return self

    def add_figure(self, name, figure, global_step, close):
        self.pictures[global_step] = len(figure.axes)


def same_files(a, b, *names):
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_watched_killed_and_continued_is_never_watched(store, tmp_path):
    how = {"steps": 60, "widths": SMALL, "batch_size": 2, "probe": "mask", "probe_every": 30, "progress": False}
    alone = pretrain("rotation", store, tmp_path / "alone", **how)
    figures, notes, more = plt.get_fignums(), Notes(killed_in=55), Notes()
    with pytest.raises(Killed):
        pretrain("rotation", store, tmp_path / "watched", logger=notes, **how)
    watched = pretrain("rotation", store, tmp_path / "watched", logger=("csv", more), **how)
    same_files(alone, watched, "encoder.safetensors", "log.csv", "observed.csv", "settings.yaml", "encoder.json")
    assert notes.steps("loss") == [*range(1, 56)] and more.steps("loss") == [*range(51, 61)]
    assert notes.steps("observed/linear") == [0, 30] and more.steps("observed/linear") == [60]
    log, told = read_log(watched), next(told for told in more.numbers if told["step"] == 60 and "loss" in told)
    assert told == {"step": 60, "lr": 1e-3, **{name: log[name][-1] for name in ("loss", "accuracy", "chance")}}
    assert notes.settings == more.settings == [watched.settings]
    assert sorted(notes.pictures) == [1, *range(6, 55, 6)] and sorted(more.pictures) == [54, 60]
    assert plt.get_fignums() == figures, "every figure is closed"


def test_a_fine_tuning_shows_what_it_marks(store, tmp_path, encoder):
    how = {"encoder": encoder, "labels": 0.2, "steps": 6, "warmup": 0, "track": 3, "progress": False}
    board = Board()
    runs = [finetune(store, tmp_path / str(n), **how, **more) for n, more in enumerate(({}, {"logger": board}))]
    same_files(*runs, "network.safetensors", "scores.csv", "log.csv", "observed.csv", "settings.yaml")
    assert board.pictures == {step: 3 for step in range(1, 7)}, "image, truth and what is marked"
    assert board.steps("observed/dice") == [0, 3, 6]


def test_a_logger_touches_no_random_number(tmp_path):
    def weights(name, **watched):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        (tmp_path / name).mkdir()
        train(network, lambda network, batch, step: (batch, batch), lambda network, outputs, targets: {
            "loss": ((outputs - targets) ** 2).mean()}, lambda step: torch.full((8, 1), step / 5), tmp_path / name,
            n_steps=5, lr=0.1, progress=False, accelerator="cpu", **watched)
        return torch.cat([w.flatten() for w in network.parameters()])

    def picture(network, batch, step):
        assert not network.training and not network(batch).requires_grad
        torch.rand(5)
        return [plt.subplots()[1]]

    board = Board()
    assert torch.equal(weights("alone"), weights("watched", logger=board, picture=picture)) and len(board.pictures) == 5


class Unreachable(Notes):
    """A logger whose server is gone after some steps."""

    def log_metrics(self, metrics, step=None):
        super().log_metrics(metrics, step)
        if step == 3:
            raise ConnectionError("no route to host")


def test_a_logger_that_fails_ends_no_training(store, tmp_path):
    lost, other = Unreachable(), Notes()
    how = {"steps": 6, "widths": SMALL, "batch_size": 2, "progress": False}
    with pytest.warns(UserWarning, match="Unreachable failed .ConnectionError: no route to host.*goes on"):
        run = pretrain("rotation", store, tmp_path / "run", logger=[lost, other], **how)
    assert lost.steps("loss") == [1, 2, 3] and other.steps("loss") == [*range(1, 7)]
    assert read_log(run)["step"].tolist() == [*range(1, 7)]
    assert sorted(lost.pictures) == [1, 2, 3] and sorted(other.pictures) == [*range(1, 7)], "it is not called again"


@pytest.mark.parametrize("logger", [Notes, object(), print, [Notes]], ids=["class", "object", "function", "classes"])
def test_what_is_no_logger_is_refused(store, tmp_path, logger):
    with pytest.raises(InputError, match="logger is .*a logger of Lightning"):
        pretrain("rotation", store, tmp_path / "run", logger=logger, steps=2, widths=SMALL, progress=False)
    assert not (tmp_path / "run").exists()


def test_tensorboard_lies_in_the_run_and_forgets_the_steps_that_are_made_again(store, tmp_path, monkeypatch):
    def board(**where):
        boards.append(where)
        return Notes(killed_in=53)

    boards, how = [], {"steps": 54, "widths": SMALL, "batch_size": 2, "progress": False, "logger": "tensorboard"}
    monkeypatch.setattr("ssl3d.settings.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'ssl3d\[watch\]'"):
        pretrain("rotation", store, tmp_path / "run", **how)
    assert not (tmp_path / "run").exists(), "said before anything is written"
    monkeypatch.setattr("ssl3d.settings.find_spec", lambda name: name)
    monkeypatch.setattr("ssl3d.training.loop.TensorBoardLogger", board)
    for _ in range(2):
        with pytest.raises(Killed):
            pretrain("rotation", store, tmp_path / "run", **how)
    assert [where.pop("purge_step") for where in boards] == [0, 51]
    assert boards[0] == {"save_dir": tmp_path / "run", "name": "", "version": "tensorboard"}
    with pytest.raises(InputError, match="logger is 'wandb'.*'tensorboard' or a logger of Lightning"):
        pretrain("rotation", store, tmp_path / "run", **how | {"logger": "wandb"})


def made_run(folder, steps, settings, observed=(), tables=None):
    """A run folder without a network: so many steps of its log, what was observed, and its tables."""
    begin_run(folder, {"probe": None, "validate": False, "steps": 40} | settings)
    for step in range(1, steps + 1):
        more = {"accuracy": 0.5, "chance": 0.1} if settings["command"] == "pretrain" else {}
        append_log(folder, {"step": step, "loss": 1 / step, **more, "lr": 1e-3 * (40 - step)})
    for row in observed:
        append_log(folder, row, "observed.csv")
    for name, rows in (tables or {}).items():
        write_table(folder / name, rows)
    return Run(folder)


def test_a_run_is_drawn_as_far_as_it_is(tmp_path):
    probed = made_run(tmp_path / "a", 25, {"command": "pretrain", "task": "rotation", "probe": "age"},
                      [{"step": 0, "linear": 0.1, "neighbours": 0.2}, {"step": 20, "linear": 0.3, "neighbours": 0.1}])
    axes = probed.plot(tmp_path / "a.png")
    assert [ax.get_ylabel() for ax in axes] == ["loss (mean of 10)", "accuracy (mean of 10)",
                                                "linear probe of age,\nvalidation cases", "learning rate"]
    assert all(ax.get_xlim() == (0, 40) for ax in axes) and "step 25 of 40" in axes[0].figure.get_suptitle()
    assert axes[1].lines[-1].get_ydata().tolist() == [0.1] * 25, "chance"
    assert [line.get_ydata().tolist() for line in axes[2].lines] == [[0.1, 0.3], [0.2, 0.1]]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="a.jpg.*ends in .png"):
        probed.plot(tmp_path / "a.jpg")
    begun = made_run(tmp_path / "b", 0, {"command": "finetune", "goal": "segmentation"})
    assert begun.plot()[0].get_title() == "no step is logged" and "no step is logged yet" in begun.summary()
    going = made_run(tmp_path / "c", 20, {"command": "finetune", "goal": "segmentation"}, [{"step": 20, "dice": 0.75}])
    assert re.search("20 of 40 steps: .*0.067; mean Dice, test cases, at step 20: 0.750", going.summary())
    plt.close("all")


def test_final_scores_are_drawn_case_by_case(tmp_path):
    dice = [{"case": case, "class": name, "dice": value} for case, name, value in (
        ("a", "core", 0.5), ("b", "core", 0.25), ("a", "rim", float("nan")), ("b", "rim", 1.0))]  # fmt: skip
    masks = made_run(tmp_path / "m", 40, {"command": "finetune", "goal": "segmentation"}, (), {"scores.csv": dice})
    ax = masks.plot()[-1]
    assert [line.get_ydata().tolist() for line in ax.lines] == [[0.25, 0.5], [0.375, 0.375], [1.0], [1.0, 1.0]]
    assert [text.get_text() for text in ax.texts] == ["0.38", "1.00"] and ax.get_title() == "2 test cases"
    graded = made_run(tmp_path / "g", 40, {"command": "finetune", "goal": "classification", "metric": "kappa of grade"},
                      (), {"predictions.csv": [{"case": c, "grade": g, "predicted": p} for c, g, p in (
                          ("a", 0, 0), ("b", 2, 1), ("c", 2, 1), ("d", "", 1))],
                           "scores.csv": [{"cases": 3, "kappa": 0.4, "accuracy": 1 / 3}]})  # fmt: skip
    ax = graded.plot()[-1]
    counts = {(text.get_position(), text.get_text()) for text in ax.texts if text.get_text()}
    assert counts == {((0, 0), "1"), ((1, 2), "2")}, "the answer to the right, the truth downwards"
    assert ax.get_title() == "kappa of grade 0.40,\n3 test cases"
    aged = made_run(tmp_path / "r", 40, {"command": "finetune", "goal": "regression", "metric": "R² of age"}, (), {
        "predictions.csv": [{"case": "a", "age": 50.0, "guess": 40.5}], "scores.csv": [{"cases": 1, "r2": -1.0}]})
    assert aged.plot()[-1].lines[-1].get_xydata().tolist() == [[50.0, 40.5]]
    plt.close("all")


def test_the_rate_that_is_drawn_is_the_optimisers(store, tmp_path):
    how = {"steps": 6, "widths": SMALL, "progress": False, "lr_warmup": 2}
    for name, made in (
        ("polynomial", lambda out, **more: finetune(store, out, labels=0.2, **how | more)),
        ("constant", lambda out, **more: pretrain("rotation", store, out, batch_size=2, **how | more)),
    ):
        notes = Notes()
        ax = made(tmp_path / name, schedule=name, logger=notes).plot()[1 if name == "polynomial" else 2]
        told = [(each["step"], each["lr"]) for each in notes.numbers if "lr" in each]
        assert ax.get_ylabel() == "learning rate" and [tuple(at) for at in ax.lines[0].get_xydata()] == told
        assert len(told) == 6 and len({rate for _, rate in told}) > 1
    steady = made(tmp_path / "steady", schedule="constant", lr_warmup=0)
    assert "learning rate" not in [ax.get_ylabel() for ax in steady.plot()], "a rate that stays is not drawn"
    plt.close("all")


@pytest.mark.parametrize("text", ["theme: dark\n", "command: python train.py\n", "- theme\n", "theme: [dark\n", ""])
@pytest.mark.parametrize("begun", [False, True])
def test_what_another_program_has_set_is_not_overwritten(store, tmp_path, text, begun):
    (tmp_path / "settings.yaml").write_text(text)
    (tmp_path / "thesis.docx").write_text("years of work")
    if begun:
        (tmp_path / "log.csv").write_text("2024: begun\n")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for use in (lambda: finetune(store, tmp_path, steps=2, progress=False), lambda: Run(tmp_path)):
        with pytest.raises(InputError, match=r"settings.yaml: (is no run's|.* so it is no run's).* a new one"):
            use()
    assert before == {file.name: file.read_bytes() for file in tmp_path.iterdir()}


MASKS = {"command": "finetune", "goal": "segmentation", "metric": "mean Dice", "lr": 1e-3}
DICE = [{"case": case, "class": "core", "dice": 0.5, "surface_dice": 0.5} for case in "ab"]
TASK = {"command": "pretrain", "task": "rotation", "probe": "mask", "lr": 1e-3}
GRADES = {"command": "finetune", "goal": "classification", "metric": "kappa of grade", "lr": 1e-3}


@pytest.mark.parametrize("settings, file, content", [
    (MASKS, "scores.csv", ""), (MASKS, "scores.csv", "case,class,dice\n"),
    (MASKS, "scores.csv", "case,class,dice\na,core,0.5\nb,co"), (MASKS, "scores.csv", "case,class,dice\na,core,\n"),
    (MASKS, "scores.csv", "much nonsense\nhere\n"), (MASKS, "scores.csv", "case,class,dice\na,core,0.5x\n"),
    (MASKS, "scores.csv", b"\xff\xfe\x00nonsense"), (MASKS, "origins.json", "{"), (MASKS, "origins.json", None),
    (MASKS, "settings.yaml", "command: finetune\n"), (TASK, "settings.yaml", "command: pretrain\n"),
    (TASK, "log.csv", "stop,loss\n1,2\n"), (TASK, "log.csv", "step,loss\n1,2\n40,0.1\n"),
    (TASK, "log.csv", "step,loss,accuracy\n40,0.1,x\n"), (TASK, "log.csv", b"\xff\xfe\n\x00"),
    (TASK, "observed.csv", "step\n40\n"), (TASK, "observed.csv", "step,linear,floor\n40,a,b\n"),
    (GRADES, "scores.csv", "kappa,accuracy\n1,1\n"), (GRADES, "predictions.csv", ""),
    (GRADES, "predictions.csv", None), (GRADES, "predictions.csv", "case,grade,predicted\na,1,\n"),
])  # fmt: skip
def test_damage_in_a_run_names_its_file(tmp_path, settings, file, content):
    run = made_run(tmp_path, 40, settings, [{"step": 40, "linear": 0.5, "floor": 0.4}] * (settings is TASK))
    if settings is not TASK:
        write_table(run / "scores.csv", DICE if settings is MASKS else [{"cases": 2, "kappa": 0.4, "accuracy": 0.5}])
        write_table(run / "predictions.csv", [{"case": case, "grade": 1, "predicted": 0} for case in "ab"])
    for name in ("origins.json", "encoder.json"):
        (run / name).write_text("{}")
    assert run.summary() and run.plot(), "it is whole"
    (run / file).unlink() if content is None else (run / file).write_bytes(
        content if isinstance(content, bytes) else content.encode())
    told = []
    for ask in (lambda: Run(tmp_path).summary(), lambda: Run(tmp_path).plot()):
        try:
            ask()
        except InputError as e:
            told.append(str(e))
    assert told and all(f"{tmp_path / file}: " in each and each.endswith(".") for each in told), told
    plt.close("all")


def test_a_finished_run_without_its_log_is_not_told_to_go_on(tmp_path):
    for steps in (0, 20):
        run = made_run(tmp_path / str(steps), steps, TASK)
        assert "goes on" in run.summary()
        (run / "encoder.json").write_text("{}")
        said = run.summary()
        assert f"is finished, but its log.csv ends at step {steps} of 40" in said and "goes on" not in said
        assert "40 steps" in run.plot()[0].figure.get_suptitle()
    made = made_run(tmp_path / "m", 0, MASKS, (), {"scores.csv": DICE})
    (made / "origins.json").write_text("{}")
    assert "of 2 test cases: core 0.5" in made.summary() and "yet" not in made.plot()[0].get_title()
    plt.close("all")
