"""Do brains of healthy people in two modalities help a network that marks tumours in four? For the lesson of that name.

    python experiments/lesson_brain_tumour.py        (in the root of a clone)

Makes the healthy people in `runs/biobank`, runs `experiments/lesson_brain_tumour.yaml`, and then one arm more: rotation
learned from the patients themselves, which has no other cohort. Both go to `results/lesson_brain_tumour`.
"""

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from ssl3d.evidence.curves import data_efficiency
from ssl3d.evidence.experiments import read_experiment, run_experiment
from ssl3d.evidence.statistics import verdict, verdict_table
from ssl3d.files import read_table, write_table
from ssl3d.samples.brains import NOTICE, bent_grid, paint, sample_tissues, save_scan, scan_affine, tissue_maps
from ssl3d.training.runs import read_settings

RESULTS = Path("results/lesson_brain_tumour")


def biobank(folder: str | Path, n: int = 96, seed: int = 2020) -> Path:
    """Healthy people by the generator of the sample brains, T1 and FLAIR, laid out as in UK Biobank."""
    folder, maps, size = Path(folder), tissue_maps(48), 48
    for k in range(n):
        rng = np.random.default_rng([seed, k])
        where = bent_grid(rng, size)
        tissues, brain = sample_tissues(maps, where)
        image = paint(rng, tissues, np.zeros_like(tissues), brain)  # no core, no oedema, no rim
        for channel, place in ((0, "20252_2_0/T1/T1_brain"), (3, "20253_2_0/T2_FLAIR/T2_FLAIR_brain")):
            file = folder / f"{9000001 + k}_{place}.nii.gz"  # a number that nobody has
            file.parent.mkdir(parents=True, exist_ok=True)
            save_scan(image[..., channel], scan_affine(size), file)
    (folder / "NOTICE.txt").write_text(NOTICE, encoding="utf-8")
    return folder


def main() -> None:
    """Make the cohort, both experiments, and what is kept of them."""
    if not Path("runs/biobank/NOTICE.txt").exists():  # it is written last
        biobank("runs/biobank")
    experiment = read_experiment("experiments/lesson_brain_tumour.yaml")
    own = replace(experiment, pretraining_cohort=None, arms={"own rotation": {"task": "rotation", "steps": 250}})
    rows, learning_curves, chosen = [], [], {}
    for part, name in ((experiment, "lesson_brain_tumour"), (own, "lesson_brain_tumour_own")):
        rows += run_experiment(part, f"runs/{name}")
        learning_curves += read_table(Path(f"runs/{name}/learning_curves.csv"))
        chosen |= {arm: read_settings(Path(f"runs/{name}/cells/{arm}-1-0"))["lr"] for arm in part.arms}
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_table(RESULTS / "results.csv", rows)
    write_table(RESULTS / "learning_curves.csv", learning_curves)
    data_efficiency(rows, "Generated brains: WT, TC and ET after pretraining elsewhere")
    plt.savefig(RESULTS / "curves.png")
    rates = ", ".join(f"{arm} {lr:g}" for arm, lr in chosen.items())
    table = f"{verdict_table(verdict(rows))}\nLearning rates, chosen on validation subjects: {rates}."
    (RESULTS / "summary.txt").write_text(table + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
