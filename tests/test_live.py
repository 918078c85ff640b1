"""A run is watched from outside: it starts, is stopped, goes on, and ends as if nobody had looked."""

import asyncio
import re

import numpy as np
import pytest
from test_widgets import parts

from ssl3d.cohorts import InputError
from ssl3d.finetune import finetune, load_segmenter, segment
from ssl3d.live import draw_case, draw_progress, live, progress_of, segmenter_so_far
from ssl3d.pretrain import pretrain
from ssl3d.runs import read_log
from ssl3d.widgets import snapshot

widgets = pytest.importorskip("ipywidgets")


async def until(true, seconds=120):
    for _ in range(10 * seconds):
        if true():
            return
        await asyncio.sleep(0.1)
    raise TimeoutError


def test_a_run_is_watched_stopped_and_goes_on(store, tmp_path):
    command = f"ssl3d pretrain rotation '{store.folder}' --out '{tmp_path / 'a run'}' --steps 400 --widths [4,8]"
    pictures = []

    async def watch():
        box = live({"rotation": command}, lambda runs: pictures.append(draw_progress(runs)))
        (start, stop), (bar,), (curves, extra) = (parts(box, k) for k in (widgets.Button, widgets.IntProgress,
                                                                         widgets.Image))
        (words,), before = parts(box, widgets.HTML), bytes(curves.value)
        assert before.startswith(b"\x89PNG") and words.value == "not begun" and stop.disabled
        start.click()
        assert start.disabled and not stop.disabled and start.description == "go on"
        await until(lambda: bar.value > 60)
        assert bar.max == 400 and re.fullmatch(r"step \d+ of 400(, \d+ s left)?", words.value), words.value
        assert bytes(curves.value) != before and bytes(extra.value).startswith(b"\x89PNG") and pictures
        stop.click()
        await until(lambda: not start.disabled)
        assert words.value == f"stopped at step {bar.value} of 400" and 60 < bar.value < 400
        start.click()
        await until(lambda: not start.disabled)
        assert words.value == str(tmp_path / "a run") and bar.value == 400

    asyncio.run(watch())
    pretrain("rotation", store.folder, tmp_path / "unwatched", steps=60, widths=(4, 8), progress=False)
    watched, other = (read_log(tmp_path / name) for name in ("a run", "unwatched"))
    assert watched["step"].tolist() == list(range(1, 401)), "every step once, whatever was made twice"
    assert np.allclose(watched["loss"][:60], other["loss"], atol=0.02), "who looks changes nothing"


def test_a_command_that_fails_says_why(store, tmp_path):
    async def watch():
        box = live({"x": f"ssl3d pretrain rotation {store.folder} --out {tmp_path} --steps 0"})
        parts(box, widgets.Button)[0].click()
        await until(lambda: not parts(box, widgets.Button)[0].disabled)
        return parts(box, widgets.HTML)[0].value

    assert "steps is 0" in asyncio.run(watch())


@pytest.mark.parametrize("command", ["prepare x --out y", "ssl3d pretrain x", "ssl3d check --out", ""])
def test_what_cannot_be_watched_is_refused(command):
    with pytest.raises(InputError, match="cannot be watched"):
        live({"x": command})


@pytest.mark.parametrize("how", [{}, {"slices": True}, {"patch": 8}])
def test_a_run_can_be_asked_before_it_is_finished(store, tmp_path, how):
    few = {"widths": (4, 8), "progress": False, "accelerator": "cpu"} | how
    with pytest.raises(InputError, match="no checkpoint yet"):
        segmenter_so_far(tmp_path / "run", store)
    run = finetune(store.folder, tmp_path / "run", steps=6, track=2, **few)
    names = store.split("test")
    finished = segment(load_segmenter(run, store), store, names)
    for name in ("segmenter.json", "scores.csv"):
        (run / name).unlink()
    so_far = segment(segmenter_so_far(run, store), store, names)
    assert all(np.array_equal(so_far[name], finished[name]) for name in names)
    draw_case(store, {"so far": run, "not begun": tmp_path / "none"})
    assert snapshot().startswith(b"\x89PNG")
    assert progress_of(run) == (6, 6) and progress_of(tmp_path / "none") == (0, 0)


def test_a_log_that_is_being_written_is_read_as_far_as_it_is_whole(tmp_path):
    (tmp_path / "settings.yaml").write_text("steps: 9\n")
    assert progress_of(tmp_path) == (0, 9)
    for text, steps in (("", 0), ("step,loss\r\n", 0), ("step,loss\r\n1,2.5\r\n2", 1)):
        (tmp_path / "log.csv").write_text(text)
        assert progress_of(tmp_path) == (steps, 9)
        draw_progress({"x": tmp_path})
        assert snapshot().startswith(b"\x89PNG")
