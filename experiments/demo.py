"""Whether the demo answers the same when it is made again: with other seeds, and with another number of threads.

    python experiments/demo.py    (about half an hour on 2 cores; to results/demo/stability.csv)

The demo makes five repetitions, with the seeds 0 to 4. Here are 25 of them, in five groups: five demos, each with other
halves of the people, other labelled brains and other first weights. And the first group is made again, by one process
with two threads, where sums have other last digits. A command that was stopped goes on.
"""

from dataclasses import replace
from pathlib import Path

import torch

from ssl3d.data.layouts import open_cohort
from ssl3d.demo_cohort import demo_experiment, find_samples
from ssl3d.evidence.cluster import run_side_by_side
from ssl3d.evidence.experiments import Experiment, declared
from ssl3d.evidence.statistics import verdict
from ssl3d.files import write_table
from ssl3d.settings import Demonstrating

OUT, RUNS, GROUPS = Path("results/demo/stability.csv"), Path("runs/demo_stability"), 5


def answers(rows: list, asked: Experiment, threads: int) -> list[dict]:
    """The verdict of each group of seeds, as many as the demo has."""
    found, seeds = [], asked.seeds
    for first in range(0, len({row["seed"] for row in rows}), seeds):
        group = range(first, first + seeds)
        (answer,) = verdict([row for row in rows if row["seed"] in group], **declared(asked))
        numbers = {name: round(answer[name], 4) for name in ("score", "baseline_score", "difference", "low", "high")}
        found.append({"seeds": f"{group[0]} to {group[-1]}", "threads": threads} | numbers |
                     {"verdict": answer["verdict"]})
    return found


def main() -> None:
    samples, how = find_samples(), Demonstrating()
    asked = demo_experiment(open_cohort(samples), samples, how)
    torch.set_num_threads(1)
    often = run_side_by_side(replace(asked, seeds=GROUPS * how.seeds), RUNS / "one_thread")
    torch.set_num_threads(2)
    again = run_side_by_side(asked, RUNS / "two_threads", processes=1)
    write_table(OUT, answers(often, asked, 1) + answers(again, asked, 2))


if __name__ == "__main__":
    main()
