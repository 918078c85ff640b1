"""How the cores of a machine are best shared by an experiment: more threads for each step, or more processes.

    python benchmarks/processes.py    (some minutes; to results/bench/processes.csv)

The experiment is that of `ssl3d demo` with fewer steps. Each way of sharing makes it once, from prepared scans; then
all ways make it again, so that a machine that is slow for a while is slow for all. Seconds are those of a clock on the
wall, from the call to the table of results, and the shorter of two counts.
"""

import os
import tempfile
import time
from pathlib import Path

import torch

from ssl3d.data.layouts import open_cohort
from ssl3d.demo_cohort import demo_experiment, find_samples
from ssl3d.evidence.cluster import run_side_by_side
from ssl3d.files import write_table
from ssl3d.settings import Demonstrating

OUT = Path("results/bench/processes.csv")
SEEDS, STEPS, ROUNDS = 4, 120, 2


def ways(cores: int) -> list[int]:
    """Numbers of processes that divide the cores."""
    return [n for n in range(1, cores + 1) if cores % n == 0]


def main() -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    samples = find_samples()
    asked = demo_experiment(open_cohort(samples), samples, Demonstrating(seeds=SEEDS, steps=STEPS))
    took: dict[int, list[float]] = {n: [] for n in ways(cores)}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(ROUNDS):
            for n in took:
                out = Path(folder) / f"{n}-{turn}"
                torch.set_num_threads(cores // n)
                begin = time.perf_counter()
                run_side_by_side(asked, out, processes=n, progress=False)
                took[n].append(time.perf_counter() - begin)
                print(f"{n} process(es) of {cores // n} thread(s): {took[n][-1]:.0f} s", flush=True)
    best = min(min(seconds) for seconds in took.values())
    rows = [{"cores": cores, "processes": n, "threads_each": cores // n, "seconds": round(min(seconds), 1),
             "times_best": round(min(seconds) / best, 2)} for n, seconds in took.items()]
    write_table(OUT, rows)


if __name__ == "__main__":
    main()
