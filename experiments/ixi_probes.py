"""What do linear models read from the encoders of an experiment: age and sex of its test people, from few labels?

    python experiments/ixi_probes.py runs/ixi_tissue       (writes results/ixi_probe_age and results/ixi_probe_sex)

The encoders are those that `experiments/ixi_tissue.yaml` pretrained, and they stay as they are. For scratch they have
random weights. Ridge regression and logistic regression see the mean of the coarsest map of some training people, the
same ones for every arm, and answer for the test people. A guessed age is kept between the youngest and the oldest of
those people: without that, one scan was guessed to be 355 years off. The rows are those of an experiment.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ssl3d.data.splits import label_subset
from ssl3d.data.store import Store
from ssl3d.evidence.experiments import read_experiment
from ssl3d.evidence.statistics import verdict, verdict_table
from ssl3d.files import write_table
from ssl3d.networks.encoders import make_encoder
from ssl3d.networks.weights import load_encoder
from ssl3d.training.probes import pooled_features

SHARES = (0.08, 0.2, 0.4, 1.0)


def answers(features: dict[str, np.ndarray], store: Store, target: str, label_fraction: float, seed: int) -> list[dict]:
    """What a linear model says of each test person after a fit on a share of the training people."""
    truth = {name: case[target] for name, case in store.cases.items() if case[target] is not None}
    train = {n: store.cases[n]["subject"] for n in store.split("train") if n in truth}
    test = [n for n in store.split("test") if n in truth]
    names = label_subset(train, label_fraction, seed, {n: truth[n] for n in train} if target == "sex" else None)
    model = RidgeCV(np.logspace(-2, 4, 13)) if target == "age" else LogisticRegression(C=0.1, max_iter=2000)
    model = make_pipeline(StandardScaler(), model).fit([features[n] for n in names], [truth[n] for n in names])
    said = dict(zip(test, model.predict([features[n] for n in test])))
    if target == "age":
        ages = [truth[n] for n in names]
        said = {n: np.clip(guess, min(ages), max(ages)) for n, guess in said.items()}
    code = {"F": 0, "M": 1}
    return [{"subject": store.cases[n]["subject"], "case": n} | (
        {"metric": "R² of age", "age": truth[n], "guess": round(float(said[n]), 3)} if target == "age" else
        {"metric": "kappa of sex", "sex": code[truth[n]], "predicted": code[said[n]]}) for n in test]


def main(run: Path) -> None:
    experiment, store = read_experiment(run / "experiment.yaml"), Store(run / "store")
    rows, begin = {"age": [], "sex": []}, time.perf_counter()
    for arm in experiment.arms:
        for seed in range(experiment.seeds):
            encoder = make_encoder("unet", 3, store.channels, tuple(experiment.network["widths"]), seed) \
                if arm == "scratch" else load_encoder(run / "pretraining" / f"{arm}-{seed}")
            names = [*store.split("train"), *store.split("test")]
            encoder.to("cuda" if torch.cuda.is_available() else "cpu")
            features = dict(zip(names, pooled_features(encoder, store, names)))
            for target, table in rows.items():
                for label_fraction in SHARES:
                    table += [{"arm": arm, "label_fraction": label_fraction, "seed": seed, "fold": ""} | row
                              for row in answers(features, store, target, label_fraction, seed)]
    for target, table in rows.items():
        out = Path(f"results/ixi_probe_{target}")
        out.mkdir(parents=True, exist_ok=True)
        write_table(out / "results.csv.gz", table)
        (out / "summary.txt").write_text(verdict_table(verdict(table, "scratch")) + "\n")
        people = ", ".join(f"{len({row['subject'] for row in of})} {part}" for part, of in (
            ("train", [store.cases[name] for name in store.split("train")]), ("test", table)))
        (out / "about.txt").write_text(
            f"command   python experiments/ixi_probes.py {run}\npeople    {people}\n"
            f"seeds     {', '.join(map(str, range(experiment.seeds)))}\n"
            f"runs      {len(experiment.arms) * experiment.seeds * len(SHARES)} fits, to the encoders of {run}\n"
            f"hours     {(time.perf_counter() - begin) / 3600:.2f}, for age and sex together\n"
            f"machine   and versions as in results/{run.name}/about.txt\n")
        print((out / "summary.txt").read_text())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
