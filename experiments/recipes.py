"""What augmentation, a falling rate and the head's first bias change, in scratch and in a pretrained arm alike.

    SSL3D_DATA=FOLDER OMP_NUM_THREADS=1 python experiments/recipes.py [PART ...]    (to results/recipes/curves.csv)

Parts: hippocampus, tissue, brains (a hundred sample scans) and eyes; all if none is named. The people whom the store of
a whole cohort keeps for testing are left out before anything is prepared. Of the others some are scored, a few bring
labels, always the same ones, and all who are not scored serve to pretrain by location (250 steps). So two trainings of
one arm differ in their seed alone. Each is scored while it goes on: a line of the table is a score after a number of
steps. A training whose lines are there is not made again; one that was stopped goes on.
"""

import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ssl3d.data.cohorts import Cohort
from ssl3d.data.layouts import open_cohort
from ssl3d.data.prepare import prepare
from ssl3d.data.splits import split_subjects
from ssl3d.data.store import Store, labels_of
from ssl3d.downstream.finetune import finetune
from ssl3d.files import read_table, write_table
from ssl3d.samples import sample_brains
from ssl3d.training.pretrain import pretrain

DATA, OUT, RUNS = Path(os.environ.get("SSL3D_DATA", "")), Path("results/recipes/curves.csv"), Path("runs/recipes")
WIDTHS, STEPS, TRACK, BRAINS = (8, 16, 32, 64, 128), 1600, 100, RUNS / "hundred_brains"
KEYS = ("cohort", "labels", "arm", "head_bias", "augment", "schedule", "seed")

# part -> where the scans are, how they are read, scored people, numbers of labelled people, options of fine-tuning
PARTS: dict[str, tuple[Path, dict, int, tuple[int, ...], dict]] = {
    "hippocampus": (DATA / "Task04_Hippocampus", {}, 40, (10, 20, 150), {"lr": 3e-3}),
    "tissue": (DATA / "ixi_t1_brain_2mm", {"images": "{id}_T1brain.nii.gz", "masks": "{id}_tissue.nii.gz"}, 30, (1, 5),
               {"lr": 1e-2}),
    "brains": (BRAINS, {}, 50, (16,), {"lr": 5e-3}),
    "eyes": (DATA / "idrid_grading_512", {}, 100, (40, 200), {"goal": "classification", "ordinal": True, "lr": 1e-3}),
}


def those(cohort: Cohort, subjects: Iterable[str]) -> Cohort:
    """The cases of some people."""
    wanted = {*subjects}
    return replace(cohort, cases=tuple(case for case in cohort.cases if case.subject in wanted))


def stores_of(part: str, n_labelled: int) -> tuple[Store, Store]:
    """A store of labelled people for training and scored ones for testing, and one of all who may be pretrained on."""
    source, reading, n_scored, _, _ = PARTS[part]
    whole = open_cohort(source, **reading)
    labels = [labels_of(case.mask, case.grade) for case in whole.cases]
    kept = {*split_subjects([case.subject for case in whole.cases], 0.2, 0, labels)["train"]}
    known = {case.subject for case, (mask, grade) in zip(whole.cases, labels) if mask or grade >= 0}
    people = sorted(known & kept)
    order = torch.randperm(len(people), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = [people[i] for i in order[: n_scored + n_labelled]]
    size, folder = 64 if part == "eyes" else 32, RUNS / part / f"{n_labelled}"
    store = prepare(those(whole, chosen), folder / "labelled", size=size, test=n_scored / len(chosen))
    tested = {store.cases[name]["subject"] for name in store.split("test")}
    return store, prepare(those(whole, kept - tested), folder / "all", size=size, test=0)


def combinations(part: str) -> list[dict[str, Any]]:
    """What is compared, the most telling first: bias, then augmentation and schedule, then seeds."""
    numbers, arms, found = PARTS[part][3], ("scratch", "location"), []
    for n_labelled in numbers:
        usual = {"labels": n_labelled, "seed": 0, "head_bias": "frequency"}
        found += [usual | {"arm": "scratch", "head_bias": bias, "augment": "none", "schedule": "constant"}
                  for bias in ("zero", "frequency")]
        found += [usual | {"arm": arm, "augment": augment, "schedule": schedule} for arm in arms
                  for augment in ("none", "light", "full") for schedule in ("constant", "polynomial")]
    for seed in (1, 2, 3, 4):  # the spread between seeds, before and after
        found += [{"labels": numbers[0], "seed": seed, "arm": "scratch", "head_bias": bias, "augment": augment,
                   "schedule": schedule}
                  for bias, augment, schedule in (("zero", "none", "constant"), ("frequency", "light", "polynomial"))]
    return [*{tuple(each.items()): each for each in found}.values()]


def curve(part: str, how: dict[str, Any]) -> list[dict[str, Any]]:
    """The scores of one training, a line for each look."""
    (store, everybody), encoder = stores_of(part, how["labels"]), None
    if how["arm"] == "location":
        folder = RUNS / part / f"{how['labels']}" / f"location{how['seed']}"
        encoder = pretrain("location", everybody, folder, steps=250, batch_size=8, widths=WIDTHS, seed=how["seed"])
    out = RUNS / part / "_".join(f"{how[key]}" for key in KEYS[1:])
    wanted = {key: how[key] for key in ("head_bias", "augment", "schedule", "seed")}
    run = finetune(store, out, encoder=encoder, steps=STEPS, track=TRACK, widths=WIDTHS, **wanted, **PARTS[part][4])
    looks = read_table(run / "observed.csv")
    shutil.rmtree(run)
    about = {"cohort": part} | {key: how[key] for key in KEYS[1:]}
    return [about | {"step": int(look["step"]), "score": round(float(look["dice" if "dice" in look else "kappa"]), 4)}
            for look in looks]


def main(parts: list[str]) -> None:
    if "brains" in (parts or PARTS) and not BRAINS.exists():
        sample_brains(BRAINS, 100)
    for part in parts or PARTS:
        for how in combinations(part):
            rows = read_table(OUT) if OUT.exists() else []
            known = {tuple(str(row[key]) for key in KEYS) for row in rows}
            if (part, *(str(how[key]) for key in KEYS[1:])) in known:
                continue
            made = curve(part, how)
            write_table(OUT, read_table(OUT) + made if OUT.exists() else made)
            print({key: made[-1][key] for key in (*KEYS, "score")}, flush=True)


if __name__ == "__main__":
    OUT.parent.mkdir(parents=True, exist_ok=True)
    main(sys.argv[1:])
