"""At which learning rate, and with which loss, does the exemplar task not collapse? No test subject is looked at.

    SSL3D_DATA=FOLDER python experiments/exemplar_tries.py        (to results/exemplar/tries.csv)
    python experiments/exemplar_tries.py show                     (the table of that file, over the seeds)

Each try trains a small U-Net on the training people without the validation people, in batches of eight. A line says
what was found on the validation people: how many directions their features use (RankMe), how far features spread
around their mean beside its length, how far apart codes are, how many questions were answered right, and what a linear
model reads from the features, beside what it reads from those of the untrained encoder (in the lines of 0 steps): age
of brains (R²), masks of hippocampi (Dice), grades of retinas (accuracy). A try whose line is there is not made again.
The second seed was stopped after the retinas; the command goes on with it.
"""

import csv
import os
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch

from ssl3d.data.layouts import open_cohort
from ssl3d.data.prepare import prepare
from ssl3d.data.store import Store
from ssl3d.networks.encoders import make_encoder
from ssl3d.tasks.base import Batch, evaluate, fit_plainly
from ssl3d.training.loop import read_batch
from ssl3d.training.pretrain import make_task
from ssl3d.training.probes import pooled_features, probe, rank_me

FILE = Path(__file__).resolve().parents[1] / "results/exemplar/tries.csv"
WIDTHS, STEPS, SEEDS, RATES = (8, 16, 32, 64, 128), 120, (0, 1), (1e-3, 3e-4, 1e-4)
COHORTS = {  # where it is, how it is read, its size, what is read from features, how many are fitted on
    "idrid": ("idrid_grading_512", {"table": "labels.csv", "columns": {"grade": "dr_grade"}}, 64, "grade", 265),
    "hippocampus": ("Task04_Hippocampus", {}, 24, "mask", 20),
    "ixi": ("ixi_t1_brain_2mm", {"images": "{id}_T1brain.nii.gz", "masks": "{id}_tissue.nii.gz",
                                 "table": "participants.csv"}, 32, "age", 102),
}
COLUMNS = ["cohort", "loss", "lr", "seed", "steps", "rank", "spread", "positive_distance", "negative_distance",
           "training_loss", "accuracy", "chance", "probe", "target", "seconds"]


def store_of(cohort: str) -> Store:
    """The prepared images of a cohort."""
    folder, how, size, _, _ = COHORTS[cohort]
    return prepare(open_cohort(f"{os.environ['SSL3D_DATA']}/{folder}", **how), f"runs/exemplar_tries/{cohort}",
                   size=size, progress=False)


def read(encoder: torch.nn.Module, store: Store, target: str, n: int) -> dict[str, float]:
    """How many directions the features of the validation people use, and what is read from features."""
    features = pooled_features(encoder, store, store.split("validation"))
    middle = features.mean(axis=0)
    spread = np.sqrt(((features - middle) ** 2).sum(axis=1).mean()) / np.linalg.norm(middle)
    found = probe(encoder, store, target, n)
    return {"rank": rank_me(features), "spread": float(spread), "probe": found["linear"], "target": target}


def attempt(store: Store, loss: str, lr: float, seed: int, steps: int) -> tuple[torch.nn.Module, dict]:
    """Train on the people who are not for validation; the encoder, and how the task is answered on those who are."""
    held = store.split("validation")
    images = read_batch(store, [name for name in store.split("train") if name not in set(held)], content=True)
    encoder = make_encoder("unet", store.spatial_dims, store.channels, WIDTHS, seed)
    network, options = make_task("exemplar", encoder, seed, {"loss": loss}), {}
    if steps:
        log = fit_plainly(network, Batch(*images), steps, lr=lr, batch_size=8, seed=seed)
        options = {"training_loss": log["loss"][-30:].mean()}
        options |= {name: log[name][-30:].mean() for name in ("positive_distance", "negative_distance")}
    score = evaluate(network, read_batch(store, held, content=True), n_rounds=3, seed=seed)
    return encoder, options | {"accuracy": score.accuracy, "chance": score.chance}


def main() -> None:
    FILE.parent.mkdir(parents=True, exist_ok=True)
    key = ("cohort", "loss", "lr", "seed", "steps")
    known = {tuple(row[k] for k in key) for row in csv.DictReader(open(FILE))} if FILE.exists() else set()
    for seed, cohort in product(SEEDS, COHORTS):
        store, (*_, target, n) = store_of(cohort), COHORTS[cohort]
        for loss, lr in [("untrained", 0.0), *product(("triplet", "contrastive"), RATES)]:
            steps = STEPS if lr else 0
            mine = dict(zip(key, (cohort, loss, f"{lr:g}", str(seed), str(steps))))
            if tuple(mine.values()) in known:
                continue
            begun = time.process_time()
            encoder, found = attempt(store, loss if lr else "triplet", lr, seed, steps)
            row = mine | found | read(encoder, store, target, n) | {"seconds": round(time.process_time() - begun)}
            write(row)


def write(row: dict) -> None:
    """Add a line to the table."""
    new = not FILE.exists()
    row = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}
    with open(FILE, "a", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(row, flush=True)


def show() -> None:
    """The table: means over the seeds, and of the rank each seed's."""
    rows, kinds = sorted(csv.DictReader(open(FILE)), key=lambda row: row["cohort"]), {}
    for row in rows:
        kinds.setdefault((row["cohort"], row["loss"], row["lr"]), []).append(row)
    print("| cohort | loss | rate | RankMe of each seed | codes apart: same, other | accuracy | probe |")
    print("|---|---|---|---|---|---|---|")
    for (cohort, loss, lr), same in kinds.items():
        mean = {name: np.mean([float(row[name] or "nan") for row in same]) for name in COLUMNS[5:13]}
        ranks = ", ".join(f"{float(row['rank']):.1f}" for row in same)
        apart = "" if loss == "untrained" else f"{mean['positive_distance']:.2f}, {mean['negative_distance']:.2f}"
        print(f"| {cohort} | {loss} | {lr if float(lr) else ''} | {ranks} | {apart} "
              f"| {mean['accuracy']:.2f} | {same[0]['target']} {mean['probe']:.2f} |")


if __name__ == "__main__":
    show() if "show" in sys.argv else main()
