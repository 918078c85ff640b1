"""Does a rare class come in time? Where the scores of a new head start, and what becomes of the rarest tissue.

    SSL3D_DATA=FOLDER OMP_NUM_THREADS=1 python experiments/rare_class.py    (to results/rare_class/runs.csv, 20 minutes)

Whole brains (IXI) on 32³, six tissues, of which the hippocampus has 0.2 % of the voxels. Five labelled brains, from
scratch, 200 steps at the rate of experiments/ixi_tissue.yaml, seeds 0 to 4; once with all scores starting equal, once
at the shares of the classes. Scores are Dice on validation people. A run whose line is there is not made again.
"""

import os
import shutil
from pathlib import Path

import numpy as np

from ssl3d.data.prepare import prepare
from ssl3d.downstream.finetune import finetune
from ssl3d.downstream.segmentation import score, segment
from ssl3d.files import read_json, read_table, write_table

DATA, OUT, RUNS = Path(os.environ["SSL3D_DATA"]), Path("results/rare_class/runs.csv"), Path("runs/rare_class")
STEPS = 200


def main() -> None:
    store = prepare(DATA / "ixi_t1_brain_2mm", RUNS / "store", images="{id}_T1brain.nii.gz",
                    masks="{id}_tissue.nii.gz", size=32)
    starts = {"equal": "zero", "class shares": "frequency"}
    rows = read_table(OUT) if OUT.exists() else []
    for seed in range(5):
        for start, head_bias in starts.items():
            if any(row["start"] == start and int(row["seed"]) == seed for row in rows):
                continue
            shutil.rmtree(RUNS / "run", ignore_errors=True)
            run = finetune(store, RUNS / "run", labels=0.04, steps=STEPS, lr=0.01, warmup=0, seed=seed,
                           head_bias=head_bias, widths=(8, 16, 32, 64, 128), progress=False)
            trained = read_json(run / "network.json")["trained_on"]
            names = [name for name in store.split("validation") if name not in trained]
            dice: dict[str, list[float]] = {}
            for row in score(segment(run.network, store, names), store, distances=False):
                dice.setdefault(row["class"], []).append(row["dice"])
            means = {name: round(float(np.mean(each)), 4) for name, each in dice.items()}
            mean = round(float(np.mean([*means.values()])), 4)
            rows.append({"start": start, "seed": seed, **means, "mean_dice": mean})
            print(rows[-1], flush=True)
            write_table(OUT, rows)


if __name__ == "__main__":
    OUT.parent.mkdir(parents=True, exist_ok=True)
    main()
