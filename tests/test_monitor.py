"""A run is watched from outside: it starts, is stopped, goes on, and ends as if nobody had looked."""

import asyncio
import re

import numpy as np
import pytest
import torch
from filelock import FileLock
from test_widgets import parts

from ssl3d.data.store import Store
from ssl3d.downstream.finetune import draw_case, finetune, load_network, network_so_far
from ssl3d.downstream.segmentation import segment
from ssl3d.errors import InputError
from ssl3d.plots.widgets import snapshot
from ssl3d.training.monitor import draw_progress, live, progress_of
from ssl3d.training.pretrain import pretrain
from ssl3d.training.runs import read_log

widgets = pytest.importorskip("ipywidgets")


REFUSED = [
    "pretrain x --out y",
    "ssl3d pretrain x",
    "ssl3d pretrain --out",
    "ssl3d experiment e --out x",
    "ssl3d pretrain 'x --out y",
    "",
]


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
        start.click()
        assert start.disabled and not stop.disabled and start.description == "go on"
        await until(lambda: bar.value > 60)
        assert bar.max == 3000 and re.fullmatch(r"step \d+ of 3000(, \d+ s left)?", words.value), words.value
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
        box = live({"rotation": command}, lambda runs: draw_case(store, runs))
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
    draw_case(store, {"so far": run, "not begun": tmp_path / "none"})
    assert snapshot().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="another store or fold"):
        network_so_far(run, Store(store.folder, (0, 3)))
    (run / "last.ckpt").unlink()
    with pytest.raises(InputError, match="no checkpoint yet"):
        network_so_far(run, store)
    assert progress_of(run) == (6, 6) and progress_of(tmp_path / "none") == (0, 0)


def test_a_log_that_is_being_written_is_read_as_far_as_it_is_whole(tmp_path):
    (tmp_path / "settings.yaml").write_text("steps: 9\n")
    assert progress_of(tmp_path) == (0, 9)
    for text, steps in (("", 0), ("step,loss\r\n", 0), ("step,loss\r\n1,2.5\r\n2", 1)):
        (tmp_path / "log.csv").write_text(text)
        assert progress_of(tmp_path) == (steps, 9)
        draw_progress({"x": tmp_path})
        assert snapshot().startswith(b"\x89PNG")
