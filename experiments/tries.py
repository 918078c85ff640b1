"""Which settings of each task are worth pretraining with on this cohort? No test subject is looked at.

    SSL3D_DATA=FOLDER python experiments/tries.py ixi          (to results/ixi/tries.csv)
    SSL3D_DATA=FOLDER python experiments/tries.py hippocampus  (to results/hippocampus/tries.csv)

Each try trains one task (seed 100) on the training people without the validation people, a fifth of them. A line of
the table says how often it was right on those, and what linear models read from its encoder. IXI: age (R²) and sex
(accuracy) in five-fold cross-validation over all training people, with the error of both over ten ways to fold them.
Hippocampus: Dice on the validation people after a fit on 20 others. A try whose line is there is not made again.
"""

import csv
import json
import os
import shutil
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.transforms import SpatialPad
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ssl3d.data.layouts import open_cohort
from ssl3d.data.prepare import prepare
from ssl3d.data.scans import content_box, crop, read_scan
from ssl3d.data.store import Store
from ssl3d.errors import InputError
from ssl3d.networks.encoders import make_encoder
from ssl3d.tasks.base import Batch, evaluate, fit_plainly
from ssl3d.training.loop import read_batch
from ssl3d.training.pretrain import make_task
from ssl3d.training.probes import pooled_features, probe, rank_me

WIDTHS, SEED, SIZES = (8, 16, 32, 64, 128), 100, {"ixi": 48, "hippocampus": 32}
LOOKS = {"ixi": (250, 500, 1000), "hippocampus": (250, 500)}  # exemplar, the slowest, is left after the first
TRIES = [  # task, options (and a learning rate other than 1e-3): the paper's or ours, then one cure at a time
    ("location", {}),
    ("location", {"gap": 4, "jitter": 2}),
    ("location", {"extent": 0.75}),
    ("location", {"even": False}),
    ("location", {"samples_per_image": 8}),
    ("jigsaw", {"n_permutations": 20}),
    ("jigsaw", {"n_permutations": 100}),
    ("jigsaw", {"n_permutations": 1000}),
    ("jigsaw", {"grid": 2, "n_permutations": 24}),
    ("rotation", {}),
    ("rotation", {"n_rotations": 24}),
    ("rotation", {"cubes": True}),
    ("cpc", {"grid": 3, "overlap": 0.0}),
    ("cpc", {"grid": 3, "overlap": 0.0, "negatives": "batch"}),
    ("exemplar", {"loss": "contrastive"}),
    ("exemplar", {"loss": "contrastive", "lr": 1e-4}),
    ("exemplar", {"loss": "triplet", "negatives": "random", "lr": 1e-4}),
    ("exemplar", {"loss": "triplet", "negatives": "hard", "lr": 1e-4}),
]


def scans(cohort: str) -> Store:
    """The prepared scans of a cohort."""
    data, folder = os.environ["SSL3D_DATA"], f"runs/{cohort}_tries/store"
    brains = {"images": "{id}_T1brain.nii.gz", "masks": "{id}_tissue.nii.gz", "table": "participants.csv"}
    found = open_cohort(f"{data}/ixi_t1_brain_2mm", **brains) if cohort == "ixi" else \
        open_cohort(f"{data}/Task04_Hippocampus")
    return prepare(found, folder, size=SIZES[cohort])


def cubes() -> Store:
    """Whole brains with as many millimetres a side as their longest has, so that a turn does not change their shape."""
    source, out = Path(os.environ["SSL3D_DATA"]) / "ixi_t1_brain_2mm", Path("runs/ixi_tries/cubes")
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "participants.csv", out)
    for file in sorted(source.glob("*_T1brain.nii.gz")):
        brain = read_scan(file)
        brain = crop(brain, content_box(brain))
        brain = SpatialPad([max(brain.shape[1:])] * 3)(brain)
        nib.save(nib.Nifti1Image(brain[0].numpy(), brain.affine.numpy()), out / file.name)
    found = open_cohort(out, images="{id}_T1brain.nii.gz", table="participants.csv")
    return prepare(found, "runs/ixi_tries/store_cubes", size=SIZES["ixi"], crop=False)


def age_and_sex(encoder: torch.nn.Module, store: Store) -> dict[str, float]:
    """What linear models read from features: mean, and standard deviation over ten ways to fold the people."""
    found = {}
    for target, model in (("age", RidgeCV(np.logspace(-2, 4, 13))), ("sex", LogisticRegression(C=0.1, max_iter=2000))):
        names = [n for n in store.split("train") if store.cases[n][target] is not None]
        features, truth = pooled_features(encoder, store, names), np.array([store.cases[n][target] for n in names])
        folds = [KFold(5, shuffle=True, random_state=k) for k in range(10)]
        model = make_pipeline(StandardScaler(), model)
        guesses = [cross_val_predict(model, features, truth, cv=fold) for fold in folds]
        scores = [r2_score(truth, g) if target == "age" else (g == truth).mean() for g in guesses]
        found |= {target: np.mean(scores), f"{target}_sd": np.std(scores)}
    return found | {"rank": rank_me(features)}


def read(encoder: torch.nn.Module, store: Store) -> dict[str, float]:
    """What linear models read from an encoder: age and sex where they are known, else the masks."""
    if any(case["age"] is not None for case in store.cases.values()):
        return age_and_sex(encoder, store)
    found = probe(encoder, store, "mask", n=20)
    return {"dice": found["linear"], "rank": found["rank"]}


def attempt(task: str, options: dict, store: Store, looks: tuple[int, ...]) -> list[dict]:
    """One try: a row for each look, at the accuracy on unseen people and at the encoder."""
    own = {name: options[name] for name in ("lr", "cubes") if name in options}  # of the try, not of the task
    options = {name: value for name, value in options.items() if name not in own}
    store = cubes() if "cubes" in own else store
    held = store.split("validation")
    images = read_batch(store, [n for n in store.split("train") if n not in set(held)], content=True)
    unseen, rows, done, begun = read_batch(store, held, content=True), [], 0, time.process_time()
    lr = {"lr": own["lr"]} if "lr" in own else {}
    network = make_task(task, make_encoder("unet", 3, 1, WIDTHS, SEED), SEED, options)
    for steps in looks[:1] if task == "exemplar" else looks:
        log = fit_plainly(network, Batch(*images), steps - done, batch_size=8, seed=SEED + steps, **lr)
        done, score = steps, evaluate(network, unseen, n_rounds=4)
        row = {"task": task, "options": json.dumps(options | own), "steps": steps, "chance": score.chance,
               "accuracy": log["accuracy"][-50:].mean(), "held_out": score.accuracy, "low": score.low,
               "high": score.high}
        if "query_only" in log:
            row["query_only"] = log["query_only"][-50:].mean()
        rows.append(row | read(network.encoder, store) | {"seconds": round(time.process_time() - begun)})
    return rows


def main(cohort: str) -> None:
    store, file = scans(cohort), Path(f"results/{cohort}/tries.csv")
    columns = ["task", "options", "steps", "accuracy", "held_out", "low", "high", "chance", "query_only",
               *(("age", "age_sd", "sex", "sex_sd") if cohort == "ixi" else ("dice",)), "rank", "seconds"]
    file.parent.mkdir(parents=True, exist_ok=True)
    known = {(r["task"], r["options"]) for r in csv.DictReader(open(file))} if file.exists() else set()
    random = [("random encoder", {"seed": SEED + k}) for k in range(3)]
    for task, options in random + TRIES:
        if (task, json.dumps(options)) in known or "cubes" in options and cohort != "ixi":
            continue
        try:
            rows = [{"task": task, "options": json.dumps(options), "steps": 0} | read(
                make_encoder("unet", 3, 1, WIDTHS, options["seed"]), store)] if task == "random encoder" else \
                attempt(task, options, store, LOOKS[cohort])
        except InputError as e:  # patches that are too small for the encoder
            print(f"{task} {options} cannot be tried: {e}")
            continue
        new = not file.exists()
        with open(file, "a", newline="") as f:
            writer = csv.DictWriter(f, columns)
            if new:
                writer.writeheader()
            for row in rows:
                writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})
                print({k: f"{v:.3g}" if isinstance(v, float) else v for k, v in row.items()}, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
