"""What augmentation, a falling rate and the head's first bias change, in scratch and in a pretrained arm alike.

    SSL3D_DATA=FOLDER OMP_NUM_THREADS=1 python experiments/recipes.py [PART ...]    (to results/recipes/curves.csv)

Parts: hippocampus, tissue, brains (a hundred sample scans) and eyes; all if none is named. The people whom the store of
a whole cohort keeps for testing are left out before anything is prepared. Of the others some are scored, a few bring
labels, always the same ones, and all who are not scored serve to pretrain by location (250 steps). So two trainings of
one arm differ in their seed alone. Each is scored while it goes on: a line of the table is a score after a number of
steps. A training whose lines are there is not made again; one that was stopped goes on. The command may be given
several times at once, for as many cores.
"""

import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ssl3d.data.cohorts import Cohort
from ssl3d.data.layouts import open_cohort
from ssl3d.data.prepare import prepare
from ssl3d.data.splits import split_subjects
from ssl3d.data.store import Store, labels_of
from ssl3d.downstream import finetune as finetune_module
from ssl3d.downstream.finetune import finetune
from ssl3d.files import read_table, write_table
from ssl3d.samples import sample_brains
from ssl3d.training.pretrain import pretrain

DATA, OUT, RUNS = Path(os.environ.get("SSL3D_DATA", "")), Path("results/recipes/curves.csv"), Path("runs/recipes")
WIDTHS, STEPS, TRACK, BRAINS = (8, 16, 32, 64, 128), 1600, 100, RUNS / "hundred_brains"
KEYS = ("cohort", "labels", "arm", "head_bias", "augment", "schedule", "seed")

finetune_module.set_aside = lambda store, *_: store.split("test")  # validation people of the cohort: they are tracked

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
    if source == BRAINS and not source.exists():
        sample_brains(source, 100)
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


def combinations() -> list[tuple[str, dict[str, Any]]]:
    """The trainings to be made: part and what they are made with, the most telling first."""
    plain, both = ("none", "constant"), [(augment, schedule) for augment in ("none", "light", "full")
                                         for schedule in ("constant", "polynomial")]
    found: dict[tuple, tuple[int, str, dict[str, Any]]] = {}

    def want(turn: int, part: str, labels: int, arm: str, bias: str, recipe: tuple[str, str], seed: int) -> None:
        how = {"labels": labels, "arm": arm, "head_bias": bias, "augment": recipe[0], "schedule": recipe[1],
               "seed": seed}
        found.setdefault((part, *how.values()), (turn, part, how))

    for part, (_, _, _, numbers, _) in PARTS.items():
        later = 10 * (part in ("brains", "eyes"))
        for labels in numbers:
            for arm in ("scratch", "location"):  # what decides the default
                want(later, part, labels, arm, "frequency", plain, 0)
                want(later, part, labels, arm, "frequency", ("light", "polynomial"), 0)
            want(later + 1, part, labels, "scratch", "zero", plain, 0)
        for seed in (1, 2, 3, 4):  # the spread between seeds, before and after
            want(later // 5 + 1 + seed, part, numbers[0], "scratch", "zero", plain, seed)
            want(later // 5 + 1 + seed, part, numbers[0], "scratch", "frequency", ("light", "polynomial"), seed)
        for labels in numbers:
            for arm in ("scratch", "location"):
                for recipe in both:
                    want(later + 7, part, labels, arm, "frequency", recipe, 0)
    return [(part, how) for _, part, how in sorted(found.values(), key=lambda each: each[0])]


def curve(part: str, how: dict[str, Any]) -> list[dict[str, Any]]:
    """The scores of one training, a line for each look."""
    folder, encoder = RUNS / part / f"{how['labels']}", None
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "shared.lock"):
        store, everybody = stores_of(part, how["labels"])
        if how["arm"] == "location":
            encoder = pretrain("location", everybody, folder / f"location{how['seed']}", steps=250, batch_size=8,
                               widths=WIDTHS, seed=how["seed"], progress=False)
    out = RUNS / part / "_".join(f"{how[key]}" for key in KEYS[1:])
    wanted = {key: how[key] for key in ("head_bias", "augment", "schedule", "seed")}
    run = finetune(store, out, encoder=encoder, steps=STEPS, track=TRACK, widths=WIDTHS, progress=False,
                   **wanted, **PARTS[part][4])
    looks = read_table(run / "observed.csv")
    shutil.rmtree(run)
    about = {"cohort": part} | {key: how[key] for key in KEYS[1:]}
    return [about | {"step": int(look["step"]), "score": round(float(look["dice" if "dice" in look else "kappa"]), 4)}
            for look in looks]


def is_made(part: str, how: dict[str, Any]) -> bool:
    """Whether a training has its lines in the table."""
    rows = read_table(OUT) if OUT.exists() else []
    return any((row["cohort"], *(str(row[key]) for key in KEYS[1:])) == (part, *(str(how[key]) for key in KEYS[1:]))
               for row in rows)


def main(parts: list[str]) -> None:
    for part, how in combinations():
        if parts and part not in parts:
            continue
        RUNS.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(RUNS / f"{part}_{'_'.join(map(str, how.values()))}.lock", timeout=0):
                if is_made(part, how):
                    continue
                made = curve(part, how)
                with FileLock(RUNS / "table.lock"):
                    write_table(OUT, (read_table(OUT) if OUT.exists() else []) + made)
                print({key: made[-1][key] for key in (*KEYS, "score")}, flush=True)
        except Timeout:  # another process is making it
            continue


if __name__ == "__main__":
    OUT.parent.mkdir(parents=True, exist_ok=True)
    main(sys.argv[1:])
