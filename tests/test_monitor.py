"""A run is watched from outside: it starts, is stopped, goes on, and ends as if nobody had looked."""

import asyncio
import os
import re
import time

import numpy as np
import pytest
import torch
from filelock import FileLock

from ssl3d.data.store import Store
from ssl3d.downstream.finetune import draw_case, finetune, load_network, network_so_far, validation_cases
from ssl3d.downstream.segmentation import segment
from ssl3d.errors import InputError
from ssl3d.training.monitor import _look, _Watched, draw_progress, live, progress_of, scored_after, snapshot, time_left
from ssl3d.training.pretrain import pretrain
from ssl3d.training.runs import read_log, read_settings

widgets = pytest.importorskip("ipywidgets")


REFUSED = [
    "pretrain x --out y",
    "ssl3d pretrain x",
    "ssl3d pretrain --out",
    "ssl3d experiment e --out x",
    "ssl3d pretrain 'x --out y",
    "",
]


def parts(box, kind):
    """All widgets of one kind in a box, however deep."""
    inside = [w for child in getattr(box, "children", ()) for w in parts(child, kind)]
    return ([box] if isinstance(box, kind) else []) + inside


async def until(true, seconds=120):
    for _ in range(10 * seconds):
        if true():
            return
        await asyncio.sleep(0.1)
    raise TimeoutError


def test_a_run_is_watched_stopped_and_goes_on(store, tmp_path):
    how = f"pretrain rotation '{store.folder}' --out '{tmp_path / 'a run'}' --steps 3000 --widths [4,8]"
    pictures = []

    async def watch():
        box = live({"rotation": f"ssl3d {how}"}, lambda runs: pictures.append(draw_progress(runs)))
        (start, stop), (bar,), (curves, extra) = (
            parts(box, k) for k in (widgets.Button, widgets.IntProgress, widgets.Image)
        )
        words, before = parts(box, widgets.HTML)[0], bytes(curves.value)
        assert before.startswith(b"\x89PNG") and words.value == "not begun" and stop.disabled
        assert extra.layout.display == "none" and not extra.value, "a picture without bytes is not shown"
        assert "first checkpoint" in parts(box, widgets.HTML)[1].value
        start.click()
        assert start.disabled and not stop.disabled and start.description == "go on"
        await until(lambda: bar.value > 60)
        told = r"step \d+ of 3000(, about [\d.]+ (s|min|h) left)?"
        assert bar.max == 3000 and re.fullmatch(told, words.value), words.value
        assert extra.layout.display is None and not parts(box, widgets.HTML)[1].value
        assert bytes(curves.value) != before and bytes(extra.value).startswith(b"\x89PNG") and pictures
        stop.click()
        await until(lambda: not start.disabled)
        stopped = bar.value
        assert words.value == f"stopped at step {stopped} of 3000" and 60 < stopped < 3000
        kept = torch.load(tmp_path / "a run" / "last.ckpt", weights_only=True)
        assert kept["global_step"] == stopped, "nothing is lost, and it can be used"
        start.click()
        await until(lambda: bar.value > stopped + 60)
        live({"again": f"ssl3d {how}"})  # shown once more, it stops what it had started
        await until(lambda: not start.disabled)
        assert words.value == f"stopped at step {bar.value} of 3000"
        return bar.value

    made = min(asyncio.run(watch()), 200)
    pretrain("rotation", store.folder, tmp_path / "unwatched", steps=made, widths=(4, 8), progress=False)
    watched, other = (read_log(tmp_path / name) for name in ("a run", "unwatched"))
    assert (np.diff(watched["step"]) == 1).all(), "every step once, whatever was made twice"
    assert np.allclose(watched["loss"][:made], other["loss"], atol=0.02), "who looks and stops changes nothing"


def test_a_picture_that_cannot_be_drawn_does_not_end_the_watching(store, tmp_path):
    command = f"ssl3d pretrain rotation {store.folder} --out {tmp_path / 'run'} --steps 2 --widths [4,8]"

    async def watch():
        box = live({"rotation": command}, lambda runs: draw_case(store, runs, part="validation"))
        (start, stop), said = parts(box, widgets.Button), parts(box, widgets.HTML)
        start.click()
        await until(lambda: not start.disabled)
        return [each.value for each in said], stop.disabled

    (words, trouble), idle = asyncio.run(watch())
    assert words.startswith(f"{tmp_path / 'run'}: ") and "no fine-tuning run" in trouble and idle


def test_two_processes_do_not_train_into_one_folder(store, tmp_path):
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / "train.lock"), pytest.raises(InputError, match="trained by another process"):
        pretrain("rotation", store.folder, tmp_path / "run", steps=1, widths=(4, 8), progress=False)
    pretrain("rotation", store.folder, tmp_path / "run", steps=1, widths=(4, 8), progress=False)


def test_a_command_that_fails_says_why(store, tmp_path):
    async def watch():
        box = live({"x": f"ssl3d pretrain rotation {store.folder} --out={tmp_path} --steps 0"})
        parts(box, widgets.Button)[0].click()
        await until(lambda: not parts(box, widgets.Button)[0].disabled)
        return parts(box, widgets.HTML)[0].value

    assert re.match(r"failed \(exit status 2\): .*steps is 0", asyncio.run(watch()))


@pytest.mark.parametrize("command", REFUSED)
def test_what_cannot_be_watched_is_refused(command):
    with pytest.raises(InputError, match="cannot be watched"):
        live({"x": command})


@pytest.mark.parametrize("commands", [{}, {name: "ssl3d pretrain rotation s --out x" for name in "ab"}])
def test_each_command_has_a_folder_of_its_own(commands):
    with pytest.raises(InputError, match="a folder of its own"):
        live(commands)


@pytest.mark.parametrize("how", [{}, {"slices": True}, {"patch": 8}])
def test_a_run_can_be_asked_before_it_is_finished(store, tmp_path, how):
    few = {"widths": (4, 8), "progress": False, "accelerator": "cpu"} | how
    run = finetune(store.folder, tmp_path / "run", steps=6, track=2, **few)
    names = store.split("test")
    finished = segment(load_network(run), store, names)
    (run / "network.json").unlink()
    so_far = segment(network_so_far(run, store), store, names)
    assert all(np.array_equal(so_far[name].on_scan, finished[name].on_scan) for name in names)
    draw_case(store, {"so far": run, "not begun": tmp_path / "none"}, part="validation")
    assert snapshot().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="another store or fold"):
        network_so_far(run, Store(store.folder, (0, 3)))
    (run / "last.ckpt").unlink()
    with pytest.raises(InputError, match="no checkpoint yet"):
        network_so_far(run, store)
    assert progress_of(run) == (6, 6) and progress_of(tmp_path / "none") == (0, 0)


def test_who_watches_a_training_sees_validation_people_and_no_others(store, tmp_path):
    few = {"steps": 1, "widths": (4, 8), "progress": False}
    tracked, half, blind = (finetune(store.folder, tmp_path / name, **few, **how) for name, how in (
        ("tracked", {"track": 1}), ("half", {"validate": True, "labels": 0.5}), ("blind", {})))
    for run in (tracked, half):
        cases = validation_cases(run, store)
        assert cases and not {*cases} & {*store.split("test"), *run.card["trained_on"]}
    assert {row["case"] for row in half.scores} == {*validation_cases(half, store)}
    assert validation_cases(blind, store) == []
    draw_case(store, {"tracked": tracked, "blind": blind})  # both are finished
    with pytest.raises(InputError, match="blind: has no validation people.*track=50"):
        draw_case(store, {"tracked": tracked, "blind": blind}, part="validation")
    (tracked / "network.json").unlink()
    with pytest.raises(InputError, match="tracked: is not finished, and test cases wait.*part='validation'"):
        draw_case(store, {"tracked": tracked})
    draw_case(store, {"tracked": tracked}, part="validation")
    with pytest.raises(InputError, match="no run on it has a checkpoint yet"):
        draw_case(store, {"none": tmp_path / "none"}, part="validation")
    with pytest.raises(InputError, match="part is 'train'"):
        draw_case(store, {"tracked": tracked}, part="train")
    snapshot()


@pytest.mark.parametrize("pause", [0.0, 1.0, 17.0])
@pytest.mark.parametrize(("step", "frozen", "quick"), [(0.02, 0, 1.0), (0.3, 30, 0.33), (0.3, 30, 0.9), (4.0, 8, 0.33)])
@pytest.mark.parametrize(("every", "scoring"), [(10**6, 0.0), (25, 0.05), (25, 30.0), (2, 0.5)])
def test_the_time_that_is_left_is_right_within_a_factor_of_two(step, frozen, quick, every, scoring, pause):
    n, rng = 300, np.random.default_rng(0)
    took = step * np.where(np.arange(n) < frozen, quick, 1.0) * rng.uniform(0.8, 1.2, n)
    took[0] += 20 * step + 3 + scoring  # the first step has everything to prepare, and is scored before it
    scored = [*range(every, n, every), n]
    took[[each for each in scored if each < n]] += scoring
    at, end = took.cumsum(), took.sum() + scoring
    looks = np.arange(0, at[-1], pause)[:, None] if pause else at[:, None]  # how often somebody looks, in s
    seen = [(int(made), at[made - 1]) for made in np.unique((at <= looks).sum(axis=1)) if made]
    checked = 0
    for k, (made, when) in enumerate(seen):
        left = time_left(seen[: k + 1], n, scored, frozen, scoring)
        if made - seen[0][0] < 10 or made == n:
            continue
        assert 0.5 < left / (end - when) < 2, (made, left, end - when)
        checked += 1
    assert checked or pause * 3 > end, "somebody looked after ten steps"


def test_scorings_are_those_that_a_run_makes(store, tmp_path):
    few = {"steps": 7, "widths": (4, 8), "progress": False}
    runs = [finetune(store.folder, tmp_path / "a", track=3, **few), finetune(store.folder, tmp_path / "b", **few),
            finetune(store.folder, tmp_path / "c", track=(2, 5), **few),
            pretrain("rotation", store, tmp_path / "d", probe="mask", probe_every=4, **few)]
    for run in runs:
        made = [] if run == runs[1] else read_log(run, "observed.csv")["step"].astype(int).tolist()[1:]
        assert scored_after(read_settings(run)) == made


def test_a_pause_is_no_step_and_a_step_that_is_made_again_counts_anew(tmp_path, monkeypatch):
    watched = _Watched(f"ssl3d pretrain rotation s --out {tmp_path}")
    monkeypatch.setattr(watched, "running", lambda: True)
    (tmp_path / "settings.yaml").write_text("command: pretrain\nsteps: 90\n")

    def log(step, at):
        (tmp_path / "log.csv").write_text("step,loss\n" + "".join(f"{k + 1},1.0\n" for k in range(step)))
        os.utime(tmp_path / "log.csv", (at, at))
        assert _look(watched) == (step, 90)

    watched.before = 100.0
    log(60, 100)
    assert watched.seen == [], "the log is as it was before the command was started"
    for step, at in ((61, 205), (61, 206), (64, 211)):
        log(step, at)
    assert watched.seen == [(61, 205), (64, 211)] and time_left(watched.seen, 90) == 52
    log(50, 300)
    assert watched.seen == [(50, 300)], "it went back to a checkpoint"


@pytest.mark.long  # it depends on how busy the machine is
@pytest.mark.parametrize("more", ["--track 20", "--track 10 --warmup 40", "--goal classification --warmup 60"])
def test_the_time_left_of_a_real_training(store, tmp_path, more):
    watched = _Watched(f"ssl3d finetune {store.folder} --steps 200 --widths [8,16] {more} --out {tmp_path / 'run'}")
    watched.start(1)
    told, frozen = [], 0
    while watched.running():
        step, total = _look(watched)
        if step - (watched.seen or [(step, 0)])[0][0] >= 10 and step < total:
            settings = read_settings(watched.out)
            frozen = settings["warmup_steps"]
            left = time_left(watched.seen, total, scored_after(settings), frozen, watched.scoring)
            told.append((step, watched.seen[-1][1], left))
        time.sleep(0.2)
    files = [watched.out / name for name in ("log.csv", "observed.csv")]
    end = max(file.stat().st_mtime for file in files if file.exists())
    ratios = {step: left / (end - at) for step, at, left in told if end - at > 1}
    assert ratios and all(0.5 < ratio < 2 for ratio in ratios.values()), (frozen, ratios)


def test_a_log_that_is_being_written_is_read_as_far_as_it_is_whole(tmp_path):
    (tmp_path / "settings.yaml").write_text("command: pretrain\nsteps: 9\n")
    assert progress_of(tmp_path) == (0, 9)
    for text, steps in (("", 0), ("step,loss\r\n", 0), ("step,loss\r\n1,2.5\r\n2", 1)):
        (tmp_path / "log.csv").write_text(text)
        assert progress_of(tmp_path) == (steps, 9)
        draw_progress({"x": tmp_path})
        assert snapshot().startswith(b"\x89PNG")
