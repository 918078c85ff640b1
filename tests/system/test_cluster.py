"""Experiments on a real Ray cluster on this machine: the same bytes, and a worker that is killed."""

import os
import shutil
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SAMPLES, SSL3D, begin, ended

from ssl3d.cli import main
from ssl3d.errors import InputError
from ssl3d.evidence.cluster import run_on_ray
from ssl3d.evidence.experiments import (
    Experiment,
    cells_of,
    failed_cells,
    read_diary,
    run_experiment,
    write_experiment,
)
from ssl3d.files import read_table

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'ssl3d[ray]'")

TOY = Experiment(
    {"source": str(SAMPLES), "size": 16},
    {"scratch": {}, "rotation": {"task": "rotation", "steps": 20}, "lost": {"finetuning": {"lr": 1e20}}},
    label_fractions=[0.2],
    seeds=2,
    network={"widths": [8, 16, 32]},
    finetuning={"steps": 60, "warmup": 5},
)

QUICKLY = "import os\nos.environ['RAY_CLIENT_INITIAL_CONNECTION_TIMEOUT_S'] = '1'\n"


@pytest.fixture(scope="module")
def cluster():
    """Who begins a cluster keeps it for the tests that follow: its workers take seconds to import PyTorch."""
    threads, closed, init, shutdown = torch.get_num_threads(), [], ray.init, ray.shutdown

    def patient(**how):
        for _ in range(3):  # Ray waits for its own processes for 30 s, which a busy machine may exceed
            try:
                return init(**how)
            except Exception as e:
                if "timed out during startup" not in str(e):
                    raise
                shutdown()
        raise AssertionError("Ray does not start")

    torch.set_num_threads(1)  # as in a worker: sums depend on it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(ray, "init", patient)
        patch.setattr(ray, "shutdown", lambda: closed.append("it was"))
        yield closed
    shutdown()
    torch.set_num_threads(threads)


def workers(driver: int) -> list[int]:
    """The processes that are at a cell now, of the cluster that this process has started."""
    parents, busy = {}, []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            stat = (process / "stat").read_text().rsplit(")", 1)[1].split()
            parents[int(process.name)] = int(stat[1])
            if b"ray::_work" in (process / "cmdline").read_bytes():
                busy.append(int(process.name))
        except (OSError, IndexError):
            continue

    def ancestors(pid):
        while pid in parents:
            yield pid
            pid = parents[pid]

    return [pid for pid in busy if driver in ancestors(pid)]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the workers")
def test_a_killed_worker_changes_nothing(cluster, tmp_path, capsys):
    run_experiment(TOY, tmp_path / "here", progress=False)
    write_experiment(TOY, tmp_path / "e.yaml")
    killed, over = set(), threading.Event()

    def kill():
        while not killed and not over.wait(0.02):
            if list((tmp_path / "dealt" / "cells").glob("*/log.csv")) and (busy := workers(os.getpid())):
                os.kill(busy[0], signal.SIGKILL)
                killed.add(busy[0])

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(SystemExit) as stopped:
            main(["experiment", str(tmp_path / "e.yaml"), "--out", str(tmp_path / "dealt"), "--ray", "local"])
    finally:
        over.set()
        killer.join()
    assert killed, "a worker was killed in the middle"
    assert stopped.value.code == 1 and "2 cell(s) failed, the first is lost" in capsys.readouterr().err
    assert cluster, "who begins a cluster ends it"
    assert (tmp_path / "here/results.csv").read_bytes() == (tmp_path / "dealt/results.csv").read_bytes()
    made = [line["cell"] for line in read_diary(tmp_path / "dealt") if line["state"] == "done"]
    assert sorted(made) == sorted(c.name for c in cells_of(TOY) if c.arm != "lost"), "every cell once"
    assert {line["cell"] for line in failed_cells(TOY, tmp_path / "dealt")} == {
        c.name for c in cells_of(TOY) if c.arm == "lost"
    }


def test_begun_here_and_ended_there_from_a_shell(cluster, tmp_path, capsys):
    arms = {"scratch": {}, "b": {"finetuning": {"lr": 0.002}}}
    few = replace(TOY, arms=arms, finetuning={"steps": 2})
    run_experiment(replace(few, seeds=1), tmp_path / "out", progress=False)
    write_experiment(few, tmp_path / "e.yaml")
    main(["experiment", str(tmp_path / "e.yaml"), "--out", str(tmp_path / "out"), "--ray", "local"])
    assert "Seeds: 2" in capsys.readouterr().out
    assert len(read_diary(tmp_path / "out")) == 4 and len(read_table(tmp_path / "out/results.csv")) == 4 * 6 * 3
    shutil.rmtree(tmp_path / "out")


def test_a_cluster_that_is_not_there(tmp_path):
    write_experiment(TOY, tmp_path / "e.yaml")
    line = ["experiment", tmp_path / "e.yaml", "--out", tmp_path / "out", "--ray", "ray://127.0.0.1:1"]
    asked = begin(QUICKLY + SSL3D, *line, said=tmp_path)
    assert ended(asked) == 1
    said = (tmp_path / "stderr").read_text()
    assert "no Ray cluster" in said and "Traceback" not in said


def test_without_ray_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="ssl3d\\[ray\\]"):
        run_on_ray(TOY, tmp_path / "out", progress=False)
