"""Experiments that two processes share, or that are killed."""

import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import replace

import pytest
from conftest import begin, ended
from test_experiments import TOY

from ssl3d.evidence.experiments import (
    cells_of,
    read_diary,
    run_experiment,
    write_experiment,
)

RUN = """
import sys
from ssl3d.evidence.experiments import read_experiment, run_experiment
run_experiment(read_experiment(sys.argv[1]), sys.argv[2])
"""


def test_two_processes_share_the_work(toy, tmp_path):
    write_experiment(TOY, tmp_path / "e.yaml")
    both = [begin(RUN, tmp_path / "e.yaml", tmp_path / "out") for _ in range(2)]
    assert [ended(p) for p in both] == [0, 0]
    made = [line["cell"] for line in read_diary(tmp_path / "out")]
    assert sorted(made) == sorted(c.name for c in cells_of(TOY)), "every cell once"
    assert (tmp_path / "out/results.csv").read_bytes() == (toy[0] / "results.csv").read_bytes()


BESIDE = """
import sys
from ssl3d.evidence.cluster import run_side_by_side
from ssl3d.evidence.experiments import read_experiment
run_side_by_side(read_experiment(sys.argv[1]), sys.argv[2], processes=3, progress=False)
"""


def others(folder):
    """Processes that make cells of the experiment in a folder, as the system lists them."""
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "args"], capture_output=True, text=True).stdout.splitlines()
    return [line for line in listed if "_share" in line and str(folder) in line]


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps, the list of processes")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_processes_side_by_side_end_with_the_first(toy, tmp_path, number):
    write_experiment(TOY, tmp_path / "e.yaml")
    first = begin(BESIDE, tmp_path / "e.yaml", tmp_path / "out")
    while len(others(tmp_path)) < 2:
        time.sleep(0.05)
        assert first.is_alive()
    os.kill(first.pid, number)
    assert ended(first) != 0
    for _ in range(600):
        if not others(tmp_path):
            break
        time.sleep(0.1)
    assert not others(tmp_path), "nobody is left at work"
    assert ended(begin(BESIDE, tmp_path / "e.yaml", tmp_path / "out")) == 0
    assert (tmp_path / "out/results.csv").read_bytes() == (toy[0] / "results.csv").read_bytes()


def kills(experiment, undisturbed, tmp_path, moments):
    """Kill an experiment at these moments (seconds of work), let it end, and compare it with one left alone."""
    write_experiment(experiment, tmp_path / "e.yaml")
    for moment in moments:
        process = begin(RUN, tmp_path / "e.yaml", tmp_path / "out")
        time.sleep(moment)
        process.kill()
        assert ended(process) == -signal.SIGKILL, "it was still at it"
    assert ended(begin(RUN, tmp_path / "e.yaml", tmp_path / "out")) == 0
    assert (tmp_path / "out/results.csv").read_bytes() == (undisturbed / "results.csv").read_bytes()
    made = [line["cell"] for line in read_diary(tmp_path / "out") if line["state"] == "done"]
    assert sorted(made) == sorted(c.name for c in cells_of(experiment)), "no cell twice, none lost"


def test_killed_twice(toy, tmp_path):
    kills(TOY, toy[0], tmp_path, (0.7, 1.3))


@pytest.mark.long
def test_killed_ten_times(tmp_path):
    longer = {"finetuning": {"steps": 300, "warmup": 10}, "pretraining": {"steps": 600}}
    longer = replace(TOY, arms={"scratch": {}, "rotation": {"task": "rotation"}}, **longer)
    run_experiment(longer, tmp_path / "undisturbed", progress=False)
    rng = random.Random(0)
    kills(longer, tmp_path / "undisturbed", tmp_path, [rng.uniform(0, 5) for _ in range(10)])
