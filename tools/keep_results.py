"""Keep what an experiment found, small enough for the repository: from runs/NAME to results/NAME.

    python tools/keep_results.py runs/ixi_tissue
    python tools/keep_results.py runs/ixi_sex "one NVIDIA H100, 16 cores; Python 3.12, torch 2.11.0+cu130, monai 1.6.1"

Kept are its scores, learning curves and trainings, the summary and the figure, and about.txt: the command, the seeds,
the versions, the machine and the hours. Its description is experiments/NAME.yaml. The second form is for what was made
on another machine: the machine, a semicolon, the versions.
"""

import os
import platform
import shutil
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from ssl3d.data.store import Store
from ssl3d.downstream.metrics import read_scores
from ssl3d.evidence.experiments import cells_of, read_diary, read_experiment, stores_of_seed
from ssl3d.files import write_table
from ssl3d.training.runs import read_settings

KEPT = ("arm", "label_fraction", "seed", "fold", "subject", "metric", "class", "dice", "surface_dice", "hausdorff95",
        "grade", "sex", "predicted", "age", "guess")


def processor() -> str:
    """The name of the machine's processor, and how many cores there are."""
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")] \
        if Path("/proc/cpuinfo").exists() else [platform.processor()]
    return f"{os.cpu_count()} cores, {(names or [platform.machine()])[0]}"


def chosen(run: Path) -> str:
    """A line with the learning rates that the trainings of each arm chose, and how often; none without a choice."""
    experiment = read_experiment(run / "experiment.yaml")
    if not experiment.lrs:
        return ""
    rates: dict[str, Counter] = {arm: Counter() for arm in experiment.arms}
    for cell in cells_of(experiment):
        rates[cell.arm][read_settings(run / "cells" / cell.name)["lr"]] += 1
    told = (f"{arm} " + " ".join(f"{lr:g} ({n})" for lr, n in found.most_common()) for arm, found in rates.items())
    return "rates     " + ", ".join(told) + " (trainings; each chose by a part of its own labelled people)\n"


def here() -> str:
    """This machine and its versions."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("ssl3d", "torch", "monai", "lightning", "numpy"))
    return f"{platform.system()} {platform.machine()}, {processor()}; Python {platform.python_version()}, {packages}"


def about(run: Path, where: str) -> str:
    """How it was done, in lines."""
    machine, versions = where.split("; ")
    experiment, store = read_experiment(run / "experiment.yaml"), Store(run / "store")
    seconds = [line["seconds"] for line in read_diary(run) if line["state"] == "done"]
    people = [(part, store, part) for part in ("train", "test")]
    if experiment.halves is not None:  # each seed has its own, and as many
        drawn = stores_of_seed(experiment, {"cohort": store}, 0)
        people = [("to pretrain on", drawn["pretraining_cohort"], "train"), ("train", drawn["cohort"], "train"),
                  ("test, drawn anew for each seed", drawn["cohort"], "test")]
    parts = ", ".join(f"{len({one.cases[n]['subject'] for n in one.split(part)})} {what}" for what, one, part in people)
    if experiment.folds is not None:
        everybody = {case["subject"] for case in store.cases.values()}
        parts = f"{len(everybody)}, each tested once, in {experiment.folds} parts"
    data = "SSL3D_DATA=FOLDER " if "$SSL3D_DATA" in str(experiment.cohort["source"]) else ""
    return (f"command   {data}ssl3d experiment experiments/{run.name}.yaml --out runs/{run.name}\n"
            f"people    {parts}\n"
            f"seeds     {', '.join(map(str, range(experiment.seeds)))}\n"
            f"runs      {len(seconds)} fine-tunings with what was pretrained for them\n{chosen(run)}"
            f"hours     {sum(seconds) / 3600:.1f} of one process, added up; several processes shared the machine\n"
            f"machine   {machine}\n"
            f"versions  {versions}\n")


def main(run: Path, where: str) -> None:
    out = Path("results") / run.name
    out.mkdir(parents=True, exist_ok=True)
    rows = [{key: f"{row[key]:.4g}" if isinstance(row[key], float) else row[key] for key in KEPT if key in row}
            for row in read_scores(run / "results.csv")]
    write_table(out / "results.csv.gz", rows)
    for name in ("learning_curves.csv", "trainings.csv", "floors.csv", "summary.txt", "curves.png", "position.csv",
                 "position.png"):
        if (run / name).exists():
            shutil.copy(run / name, out / name)
    (out / "about.txt").write_text(about(run, where), encoding="utf-8")
    print((out / "about.txt").read_text(), (out / "summary.txt").read_text(), sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else here())
