"""Experiments on a real Ray cluster on this machine: the same bytes, and a worker that is killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import SAMPLES

from ssl3d.errors import InputError
from ssl3d.evidence.experiments import Experiment, cells_of, failed_cells, read_diary, write_experiment
from ssl3d.files import read_table

pytest.importorskip("ray", reason="ray is not installed: pip install 'ssl3d[ray]'")

TOY = Experiment(
    {"source": str(SAMPLES), "size": 16},
    {"scratch": {}, "rotation": {"task": "rotation", "steps": 60}, "lost": {"encoder": "/nowhere"}},
    label_fractions=[0.2, 1.0],
    seeds=2,
    network={"widths": [8, 16, 32]},
    finetuning={"steps": 80, "warmup": 5},
)
RUN = """
import sys
from ssl3d.evidence.experiments import *
from ssl3d.evidence.cluster import run_on_ray
experiment = read_experiment(sys.argv[1])
if sys.argv[3] == "ray":
    import ray
    ray.init(num_cpus=3, log_to_driver=False, include_dashboard=False)
    run_on_ray(experiment, sys.argv[2], progress=False)
else:
    run_experiment(experiment, sys.argv[2], progress=False)
"""


def begin(tmp_path, out, how):
    env = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.Popen([sys.executable, "-c", RUN, tmp_path / "e.yaml", out, how], cwd="/", env=env)


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
def test_a_killed_worker_changes_nothing(tmp_path):
    write_experiment(TOY, tmp_path / "e.yaml")
    assert begin(tmp_path, tmp_path / "here", "here").wait() == 0
    cluster = begin(tmp_path, tmp_path / "dealt", "ray")
    killed, end = set(), time.time() + 600
    while cluster.poll() is None and time.time() < end:
        logs = list((tmp_path / "dealt" / "cells").glob("*/log.csv"))
        if logs and len(killed) < 1 and (busy := workers(cluster.pid)):
            killed.add(busy[0])
            os.kill(busy[0], signal.SIGKILL)
        time.sleep(0.05)
    assert cluster.wait(60) == 0 and killed, "a worker was killed in the middle"
    assert (tmp_path / "here/results.csv").read_bytes() == (tmp_path / "dealt/results.csv").read_bytes()
    made = [line["cell"] for line in read_diary(tmp_path / "dealt") if line["state"] == "done"]
    assert sorted(made) == sorted(c.name for c in cells_of(TOY) if c.arm != "lost"), "every cell once"
    assert {line["cell"] for line in failed_cells(TOY, tmp_path / "dealt")} == {
        c.name for c in cells_of(TOY) if c.arm == "lost"
    }


def test_begun_here_and_ended_there_from_a_shell(tmp_path):
    arms = {"scratch": {}, "b": {"finetuning": {"warmup": 0}}}
    few = replace(TOY, arms=arms, label_fractions=[0.2], finetuning={"steps": 2})
    write_experiment(replace(few, seeds=1), tmp_path / "e.yaml")
    assert begin(tmp_path, tmp_path / "out", "here").wait() == 0
    write_experiment(few, tmp_path / "e.yaml")
    ssl3d = Path(sys.executable).parent / "ssl3d"
    command = [ssl3d, "experiment", tmp_path / "e.yaml", "--out", tmp_path / "out", "--ray", "local"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "Seeds: 2" in done.stdout, done.stderr
    assert len(read_diary(tmp_path / "out")) == 4 and len(read_table(tmp_path / "out/results.csv")) == 4 * 6 * 3
    done = subprocess.run([*command[:-1], "ray://127.0.0.1:1"], capture_output=True, text=True)
    assert done.returncode == 1 and "no Ray cluster" in done.stderr and "Traceback" not in done.stderr
    shutil.rmtree(tmp_path / "out")


def test_without_ray_it_says_how_to_get_it(tmp_path, monkeypatch):
    from ssl3d.evidence.cluster import run_on_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="ssl3d\\[ray\\]"):
        run_on_ray(TOY, tmp_path / "out", progress=False)
