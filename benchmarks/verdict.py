"""The time from a folder of scans to an answer, and where it goes.

Run as `SSL3D_DATA=FOLDER OMP_NUM_THREADS=1 python benchmarks/verdict.py` (about ten minutes of one core). It adds a
line to results/bench/verdict.csv: CPU seconds of one thread for an experiment on hippocampus (rotation, location,
jigsaw and scratch; a tenth of the labels and all; 5 seeds) with a few steps in each training, all made by one process.
With `--quick` there is one seed and three steps. An older version of ssl3d is measured by its folder:

    git worktree add /tmp/before 343f97e
    python benchmarks/verdict.py --source /tmp/before --name before

`waiting` is what trainings read and ask, while the network does nothing; `scoring` is what fine-tuning does beside its
steps: scores, masks and tables; `other` is the rest: opening stores, hashes, forecast, statistics.
"""

import argparse
import csv
import inspect
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
DESCRIPTION = """cohort: {{source: {data}/Task04_Hippocampus, size: {size}}}
arms:
  scratch: {{}}
  rotation: {{task: rotation}}
  jigsaw: {{task: jigsaw, options: {{grid: 2, n_permutations: 24}}}}
  location: {{task: location}}
label_fractions: [0.1, 1.0]
seeds: {seeds}
network: {{widths: [8, 16, 32, 64, 128]}}
pretraining: {{steps: {steps}, batch_size: {batch}}}
finetuning: {{steps: {steps}, batch_size: {batch}}}
"""
PARTS = ("preparing", "pretraining", "finetuning", "scoring", "waiting", "other", "whole")


def timed(work, spent: dict[str, float], name: str):
    """A function that adds the CPU seconds that it takes to `spent`."""
    def call(*args, **given):
        start = time.process_time()
        try:
            return work(*args, **given)
        finally:
            spent[name] = spent.get(name, 0.0) + time.process_time() - start
    return call


def watched(train, spent: dict[str, float], name: str):
    """The loop of a training, with what it reads and asks counted apart."""
    def call(network, question, measure, read, out, **how):
        return train(network, timed(question, spent, "waiting"), measure, timed(read, spent, "waiting"), out, **how)
    return timed(call, spent, name)


def measure(description: Path, out: Path) -> dict[str, float]:
    """CPU seconds of one experiment by parts; in a program of its own, for its modules are watched."""
    import torch

    import ssl3d
    from ssl3d.downstream import finetune
    from ssl3d.evidence import experiments
    from ssl3d.training import pretrain

    torch.set_num_threads(1)
    spent: dict[str, float] = {}
    pretrain.train = watched(pretrain.train, spent, "pretraining")
    finetune.train = watched(finetune.train, spent, "steps")
    experiments.finetune = timed(experiments.finetune, spent, "finetune")
    experiments.prepare = timed(experiments.prepare, spent, "preparing")
    start = time.process_time()
    waited = {"pretraining": 0.0}

    def kept(work):
        def call(*args, **given):
            before = spent.get("waiting", 0.0)
            made = work(*args, **given)
            waited["pretraining"] += spent.get("waiting", 0.0) - before
            return made
        return call
    pretrain.train = kept(pretrain.train)
    alone = {"processes": 1} if "processes" in inspect.signature(ssl3d.experiment).parameters else {}
    ssl3d.experiment(description, out, progress=False, **alone)
    whole = time.process_time() - start
    waiting = spent["waiting"]
    parts = {"preparing": spent["preparing"], "pretraining": spent["pretraining"] - waited["pretraining"],
             "finetuning": spent["steps"] - (waiting - waited["pretraining"]),
             "scoring": spent["finetune"] - spent["steps"], "waiting": waiting}
    return parts | {"other": whole - sum(parts.values()), "whole": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=ROOT, help="folder of the ssl3d that is measured")
    parser.add_argument("--name", default="now", help="what the line is called")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench" / "verdict.csv")
    parser.add_argument("--batch", type=int, default=1, help="volumes a step")
    parser.add_argument("--size", type=int, default=32, help="voxels a side")
    parser.add_argument("--steps", type=int, default=20, help="of each training")
    parser.add_argument("--quick", action="store_true", help="one seed and 3 steps, to try it")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    args = parser.parse_args()
    data = os.environ.get("SSL3D_DATA", "")
    if not Path(data, "Task04_Hippocampus").is_dir():
        sys.exit("SSL3D_DATA is not the folder of real cohorts. Set it, and run again.")
    seeds, steps = (1, 3) if args.quick else (5, args.steps)
    if args.inside:
        parts = measure(Path(args.inside), Path(args.inside).parent / "out")
        print(",".join(f"{parts[name]:.4g}" for name in PARTS))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "experiment.yaml")
        file.write_text(DESCRIPTION.format(data=data, seeds=seeds, steps=steps, batch=args.batch, size=args.size))
        there = {**os.environ, "PYTHONPATH": str(args.source.resolve()), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, __file__, "--inside", str(file)], env=there, stdout=subprocess.PIPE,
                              text=True, check=True)
    line = {"name": args.name, "size": args.size, "batch": args.batch, "steps": steps, "seeds": seeds}
    line |= dict(zip(PARTS, done.stdout.split()[-1].split(",")))
    new = not args.out.exists()
    with args.out.open("a", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, [*line])
        if new:
            writer.writeheader()
        writer.writerow(line)
    print(line)


if __name__ == "__main__":
    main()
