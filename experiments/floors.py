"""What is told of the people of the committed results without any network? Floors for age, sex, grades and masks.

    SSL3D_DATA=FOLDER python experiments/floors.py          (to results/floors, three minutes; stores in runs/floors)

The people, the shares and the seeds are those of `experiments/ixi_probes.py`, `ixi_age.yaml`, `ixi_sex.yaml` and
`idrid.yaml`: the same labelled cases to fit on, the same test people to score on. The tables:

- `floors.csv`: the floors of each fit;
- `answers.csv.gz`: what the floor, all summaries together, says of each test person;
- `five_folds.csv`: the floors of all people whose age or sex is known. Each is answered for by a regression that was
  fitted on the other four parts; the parts are drawn five times;
- `tries.csv`: those of the people of `tries.py`, folded as there; and the place alone, after 20 crops, as there;
- `position.csv`: the Dice of the place alone for the cohorts with masks, on the grid of the store.
"""

import os
import time
from pathlib import Path

import numpy as np
from sklearn.model_selection import KFold

from ssl3d.data.prepare import prepare
from ssl3d.data.splits import fold_subjects, label_subset
from ssl3d.data.store import Store
from ssl3d.downstream.metrics import read_scores
from ssl3d.evidence.experiments import read_experiment
from ssl3d.files import write_table
from ssl3d.networks.floors import SUMMARIES, Reading, floor_readings, floors_of
from ssl3d.training.probes import probe_cases

OUT = Path("results/floors")
SETS = {  # result -> description of its cohort, what is asked
    "ixi_probe_age": ("ixi_age", "age"), "ixi_probe_sex": ("ixi_age", "sex"), "ixi_age": ("ixi_age", "age"),
    "ixi_sex": ("ixi_age", "sex"), "idrid": ("idrid", "grade")}
MASKS = {"ixi_tissue": "ixi_age", "hippocampus": "hippocampus"}  # result -> description of its cohort


def store_of(name: str) -> Store:
    """The store of an experiment's description, as it prepares it."""
    experiment = read_experiment(Path(f"experiments/{name}.yaml"))
    options = {key: value for key, value in experiment.cohort.items() if key != "source"}
    return prepare(os.path.expandvars(experiment.cohort["source"]), f"runs/floors/{name}", **options, progress=False)


def cells(result: str) -> tuple[list[tuple[float, int]], set[str]]:
    """The shares and seeds of a committed result, and the people that it was scored on."""
    file = next(Path(f"results/{result}").glob("results.csv*"))
    rows = read_scores(file)
    return sorted({(row["label_fraction"], int(row["seed"])) for row in rows}), {row["subject"] for row in rows}


def fitted_on(store: Store, target: str, label_fraction: float, seed: int) -> list[str]:
    """The labelled cases of a share and a seed; those of classes in strata, as fine-tuning draws them."""
    key = "classes" if target == "mask" else target
    known = {n: store.cases[n][key] for n in store.split("train") if store.cases[n][key] not in (None, [])}
    strata = known if target in ("sex", "grade") else None
    return label_subset({n: store.cases[n]["subject"] for n in known}, label_fraction, seed, strata)


def answers(store: Store, target: str, fit: list[str], test: list[str]) -> list[dict]:
    """What the floor says of each test person, as rows of an experiment's results."""
    values = {n: store.cases[n][target] for n in fit}
    said = floor_readings(store, values, test, target != "sex")["together"].answers
    codes = {"F": 0, "M": 1}
    told = {"age": lambda n, one: {"age": store.cases[n]["age"], "guess": round(float(one), 3)},
            "sex": lambda n, one: {"sex": codes[store.cases[n]["sex"]], "predicted": codes[one]},
            "grade": lambda n, one: {"grade": store.cases[n]["grade"], "predicted": int(np.rint(one))}}[target]
    empty = dict.fromkeys(("age", "guess", "sex", "grade", "predicted"), "")
    return [{"subject": store.cases[n]["subject"], "case": n} | empty | told(n, one) for n, one in zip(test, said)]


def of_result(result: str, target: str, store: Store) -> tuple[list[dict], list[dict]]:
    """The floors of every share and seed of a result, a row for each; and what the floor says of each person."""
    found, people = cells(result)
    test = [n for n in store.split("test") if store.cases[n][target] is not None]
    assert {store.cases[n]["subject"] for n in test} == people, f"{result}: was scored on other people"
    rows, said = [], []
    for label_fraction, seed in found:
        fit = fitted_on(store, target, label_fraction, seed)
        said += [{"result": result, "arm": "floor", "label_fraction": label_fraction, "seed": seed, "fold": ""} | row
                 for row in answers(store, target, fit, test)]
        for metric in {"age": ("r2", "mae"), "sex": ("kappa", "auc"), "grade": ("kappa",)}[target]:
            rows.append({"result": result, "asked": target, "label_fraction": label_fraction, "labels": len(fit),
                         "seed": seed, "people": len(people), "metric": metric,
                         **floors_of(store, fit, test, target, metric)})
    return rows, said


def in_folds(store: Store, target: str, known: list[str], folds: list[list[str]]) -> dict[str, dict[str, float]]:
    """The scores of people who are all answered for, part by part, by regressions that were fitted on the others."""
    values = {n: store.cases[n][target] for n in known}
    said: dict[str, dict[str, np.ndarray]] = {}
    for held in folds:
        fit = {n: value for n, value in values.items() if n not in set(held)}
        for what, one in floor_readings(store, fit, held, target == "age").items():
            said.setdefault(what, {}).update(zip(held, one.said))
    classes = None if target == "age" else np.unique([*values.values()])
    return {what: Reading(np.array([each[n] for n in known]), classes).scores([*values.values()])
            for what, each in said.items()}


def five_folds(store: Store, target: str) -> list[dict]:
    """The floors of everybody whose answer is known, in five parts that are drawn five times."""
    known = [n for n in store.cases if store.cases[n][target] is not None]
    whose, rows = {n: store.cases[n]["subject"] for n in known}, []
    for seed in range(5):
        parts = [set(fold_subjects([*whose.values()], (k, 5), seed)["test"]) for k in range(5)]
        scores = in_folds(store, target, known, [[n for n in known if whose[n] in part] for part in parts])
        rows += [{"cohort": "ixi", "asked": target, "seed": seed, "people": len(known), "metric": metric}
                 | {what: each[metric] for what, each in scores.items()}
                 for metric in (("r2", "mae") if target == "age" else ("accuracy", "kappa", "auc"))]
    return rows


def of_tries(brains: Store, crops: Store) -> list[dict]:
    """The floors of what `experiments/tries.py` asks: means over ten ways to fold the people, as there."""
    rows = []
    for target, metric in (("age", "r2"), ("sex", "accuracy")):
        known = [n for n in brains.split("train") if brains.cases[n][target] is not None]
        drawn = []
        for k in range(10):
            folds = [[known[i] for i in held] for _, held in KFold(5, shuffle=True, random_state=k).split(known)]
            drawn.append({what: each[metric] for what, each in in_folds(brains, target, known, folds).items()})
        rows.append({"cohort": "ixi", "asked": target, "people": len(known), "metric": metric, "position": "",
                     **{what: round(float(np.mean([each[what] for each in drawn])), 4) for what in drawn[0]}})
    fit, held = probe_cases(crops, "mask", 20)
    return rows + [{"cohort": "hippocampus", "asked": "mask", "people": len(held), "metric": "dice",
                    "position": floors_of(crops, fit, held, "mask")["position"],
                    **dict.fromkeys((*SUMMARIES, "together"), "")}]


def position(result: str, store: Store) -> list[dict]:
    """The Dice of the place alone for every share and seed of a result with masks."""
    found, people = cells(result)
    test, rows = store.split("test"), []
    assert {store.cases[n]["subject"] for n in test} == people, f"{result}: was scored on other people"
    for label_fraction, seed in found:
        fit = fitted_on(store, "mask", label_fraction, seed)
        rows.append({"result": result, "label_fraction": label_fraction, "labels": len(fit), "seed": seed,
                     "people": len(people), **floors_of(store, fit, test, "mask")})
    return rows


def main() -> None:
    begin, stores = time.perf_counter(), {name: store_of(name) for name in ("ixi_age", "idrid", "hippocampus")}
    made = [of_result(result, target, stores[name]) for result, (name, target) in SETS.items()]
    OUT.mkdir(parents=True, exist_ok=True)
    write_table(OUT / "floors.csv", [row for rows, _ in made for row in rows])
    write_table(OUT / "answers.csv.gz", [row for _, said in made for row in said])
    write_table(OUT / "five_folds.csv", [row for target in ("age", "sex") for row in
                                         five_folds(stores["ixi_age"], target)])
    write_table(OUT / "tries.csv", of_tries(stores["ixi_age"], stores["hippocampus"]))
    write_table(OUT / "position.csv", [row for result, name in MASKS.items() for row in position(result, stores[name])])
    print(f"{(time.perf_counter() - begin) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
