"""Whatever is killed, or asked to stop, at any moment loses nothing, and ends as if it had never been."""

import json
import os
import random
import signal
import time

import numpy as np
import pytest
from conftest import SAMPLES, SMALL, SSL3D, begin, checkpoint_step, ended

from ssl3d.data.prepare import prepare
from ssl3d.data.store import Store
from ssl3d.errors import InputError
from ssl3d.networks.cards import read_card
from ssl3d.training.runs import read_log

PRETRAIN = """
import sys
from ssl3d.training.pretrain import pretrain
pretrain("rotation", sys.argv[1], sys.argv[2], epochs=int(sys.argv[3]), batch_size=2, widths=(8, 16, 32),
         progress=False, accelerator="cpu")
"""
FINETUNE = """
import sys
from ssl3d.downstream.finetune import finetune
finetune(sys.argv[1], sys.argv[2], encoder=sys.argv[4], labels=0.3, epochs=int(sys.argv[3]), warmup=20, progress=False,
         accelerator="cpu")
"""


def run(code, *args):
    assert ended(begin(code, *args)) == 0


def kill_once(code, when, *args):
    """Start a run and kill it as soon as `when()` is true; False where it had ended before."""
    process = begin(code, *args)
    while process.is_alive() and not when():
        time.sleep(0.01)
    process.kill()
    return ended(process) == -signal.SIGKILL


def logged(out, step):
    try:
        return read_log(out)["step"][-1] >= step
    except (InputError, IndexError, OSError, ValueError):
        return False


def test_killed_and_continued_is_never_killed(store, tmp_path):
    run(PRETRAIN, store.folder, tmp_path / "a", 12)
    assert kill_once(PRETRAIN, lambda: logged(tmp_path / "b", 60), store.folder, tmp_path / "b", 12)
    assert (tmp_path / "b" / "last.ckpt").exists() and not (tmp_path / "b" / "encoder.json").exists()
    with pytest.raises(InputError, match="not finished"):
        read_card(tmp_path / "b")
    run(PRETRAIN, store.folder, tmp_path / "b", 12)
    for name in ("encoder.safetensors", "encoder.json", "log.csv", "settings.yaml"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.long
@pytest.mark.parametrize("what", ["pretrain", "finetune"])
def test_killed_at_many_random_moments(store, encoder, tmp_path, what):
    code, args = (PRETRAIN, (60,)) if what == "pretrain" else (FINETUNE, (200, encoder))
    weights = "encoder.safetensors" if what == "pretrain" else "network.safetensors"
    run(code, store.folder, tmp_path / "a", *args)
    rng, kills = random.Random(0), 0
    for attempt in range(14):
        last = int(read_log(tmp_path / "b")["step"][-1]) if logged(tmp_path / "b", 1) else 0
        step, end = last + rng.randint(5, 60), time.time() + (rng.uniform(0, 1) if attempt % 3 == 0 else 600)
        when = lambda step=step, end=end: time.time() > end or logged(tmp_path / "b", step)  # noqa: E731
        if not kill_once(code, when, store.folder, tmp_path / "b", *args):
            break
        kills += 1
    run(code, store.folder, tmp_path / "b", *args)
    assert kills > 4
    assert (tmp_path / "a" / weights).read_bytes() == (tmp_path / "b" / weights).read_bytes()
    assert (tmp_path / "a" / "log.csv").read_bytes() == (tmp_path / "b" / "log.csv").read_bytes()


SHARED = """
import os, signal, sys
from ssl3d.training import pretrain as module

read, calls = module.read_batch, []

def read_and_ask(*args, **more):
    calls.append(1)
    if len(calls) == 5 and os.environ.get("LOCAL_RANK", "0") == sys.argv[3]:
        signal.raise_signal(signal.SIGTERM)
    return read(*args, **more)

module.read_batch = read_and_ask
module.pretrain("rotation", sys.argv[1], sys.argv[2], steps=8, batch_size=2, widths=(8, 16, 32), devices=2,
                accelerator="cpu", progress=False)
"""


def test_processes_that_share_a_step_end_in_the_same_one(store, tmp_path):
    """And the same command, from a shell, goes on with as many."""
    (tmp_path / "program.py").write_text(SHARED)
    asked = begin(tmp_path / "program.py", store.folder, tmp_path / "run", 1)  # the helper is, the first process is not
    assert ended(asked) == 143 and checkpoint_step(tmp_path / "run") == 4
    (tmp_path / "ssl3d_command.py").write_text("from ssl3d.cli import main\nmain()\n")
    line = ["pretrain", "rotation", store.folder, "--out", tmp_path / "run", "--steps", "8", "--batch_size", "2"]
    line += ["--widths", json.dumps(SMALL), "--accelerator", "cpu", "--devices", "2"]
    assert ended(begin(tmp_path / "ssl3d_command.py", *line, said=tmp_path)) == 0
    assert (tmp_path / "stdout").read_text().count(str(tmp_path / "run")) == 1
    assert read_log(tmp_path / "run")["step"].tolist() == list(range(1, 9)) and read_card(tmp_path / "run")


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_asked_to_stop(store, tmp_path, number, status):
    line = ["pretrain", "rotation", store.folder, "--out", tmp_path / "x", "--epochs", "500", "--widths", "[8,16,32]"]
    process = begin(SSL3D, *line, said=tmp_path)
    while not logged(tmp_path / "x", 3):
        time.sleep(0.02)
        assert process.is_alive()
    os.kill(process.pid, number)
    assert ended(process) == status
    said = (tmp_path / "stderr").read_text()
    assert "Traceback" not in said
    assert number == signal.SIGTERM or "goes on where it stopped" in said
    assert checkpoint_step(tmp_path / "x") == read_log(tmp_path / "x")["step"][-1]


def test_killed_while_preparing(tmp_path):
    code = "import sys, ssl3d; ssl3d.prepare(sys.argv[1], sys.argv[2], size=16, progress=False)"
    assert kill_once(code, (tmp_path / "store/images/brain_004.npy").exists, SAMPLES, tmp_path / "store")
    with pytest.raises(InputError, match="unfinished"):
        Store(tmp_path / "store")
    store = prepare(SAMPLES, tmp_path / "store", size=16, progress=False)
    fresh = prepare(SAMPLES, tmp_path / "fresh", size=16, progress=False)
    assert store.hash == fresh.hash
    assert all(
        np.array_equal(store.image(n), fresh.image(n)) and np.array_equal(store.mask(n), fresh.mask(n))
        for n in store.cases
    )
