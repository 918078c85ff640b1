"""A positive control: what does a set-up see where there is a gain for certain? Its scans, and its floor of position.

    export SSL3D_DATA=FOLDER OMP_NUM_THREADS=1
    python experiments/ixi_control.py scans runs/ixi_deep          (masks of 13 deep structures, links to the scans)
    ssl3d experiment experiments/ixi_control.yaml --out runs/ixi_control
    python experiments/ixi_control.py floor runs/ixi_control       (position.csv, position.png)

The floor of position is what somebody scores who never looks at the image: the labels of the labelled brain, copied to
every test brain at their places in the box. It is on the grid of the scans, as the scores of the arms are.
"""

import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import nn

from ssl3d.data.store import Store
from ssl3d.downstream.segmentation import score, segment
from ssl3d.evidence.curves import convergence
from ssl3d.evidence.experiments import Experiment, cells_of, read_experiment, stores_of_seed
from ssl3d.files import read_json, read_table, write_json, write_table

DEEP = (31, 32, 35, 36, 37, 47, 48, *range(55, 61))  # amygdalae to thalami, left and right, and the brain stem


def write_scans(cohort: Path, out: Path) -> int:
    """Write the deep structures of each brain as a mask, beside a link to its scan; returns how many brains.

    The folder is in the layout of the Decathlon, whose `dataset.json` names the codes.
    """
    names = {int(row["code"]): row["name"] for row in read_table(cohort / "regions.csv")}
    for part in ("imagesTr", "labelsTr"):
        (out / part).mkdir(parents=True, exist_ok=True)
    pairs = []
    for file in sorted(cohort.glob("*_regions.nii.gz")):
        case = file.name.removesuffix("_regions.nii.gz")
        regions = nib.load(file)
        codes = np.asarray(regions.dataobj)
        deep = np.where(np.isin(codes, DEEP), codes, 0).astype(np.uint8)
        nib.save(nib.Nifti1Image(deep, regions.affine), out / "labelsTr" / f"{case}.nii.gz")
        link = out / "imagesTr" / f"{case}.nii.gz"
        link.unlink(missing_ok=True)
        link.symlink_to((cohort / f"{case}_T1brain.nii.gz").resolve())
        pairs.append({"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"})
    labels = {"0": "background"} | {str(code): names[code] for code in DEEP}
    write_json(out / "dataset.json", {"name": "deep structures of IXI", "modality": {"0": "T1"}, "labels": labels,
                                      "training": pairs, "test": []})
    return len(pairs)


class Position(nn.Module):
    """Answers for each voxel how often each class lies there in some masks, whatever the image shows."""

    def __init__(self, store: Store, case_ids: list[str]):
        super().__init__()
        codes = np.array(sorted(store.classes))
        masks = [np.searchsorted(codes, store.mask(name)) for name in case_ids]
        often = np.mean([np.eye(len(codes), dtype=np.float32)[mask] for mask in masks], axis=0)  # (*size, K)
        self.scores = nn.Parameter(torch.from_numpy(np.moveaxis(np.log(often + 1e-6), -1, 0)), requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # (B, C, *size) to class scores (B, K, *size)
        return self.scores.expand(len(images), *self.scores.shape)


def floors(experiment: Experiment, run: Path) -> list[dict]:  # seed, case, class, dice and dice_store
    """What position alone scores on the test people of each seed that is made."""
    rows, store = [], Store(run / "store")
    for cell in cells_of(experiment):
        made = run / "cells" / cell.name / "network.json"
        if cell.arm == "scratch" and made.exists():
            half = stores_of_seed(experiment, {"cohort": store}, cell.seed)["cohort"]
            network = Position(half, read_json(made)["trained_on"])
            found = score(segment(network, half, half.split("test")), half, distances=False)
            rows += [{"seed": cell.seed} | row for row in found]
    return rows


def add_floor(run: Path) -> None:
    """Write the floor beside the results of an experiment, and draw it into its learning curves."""
    experiment = read_experiment(run / "experiment.yaml")
    rows = floors(experiment, run)
    write_table(run / "position.csv", rows)
    seeds = sorted({row["seed"] for row in rows})
    means = [np.mean([row["dice"] for row in rows if row["seed"] == seed]) for seed in seeds]
    print("position alone, mean Dice of each seed:", " ".join(f"{mean:.3f}" for mean in means))
    curves = read_table(run / "learning_curves.csv")
    ax = convergence(curves, experiment.label_fractions[0], "scratch", "mean Dice")
    ax.axhspan(min(means), max(means), color="0.4", alpha=0.3, lw=0)
    ax.axhline(np.mean(means), color="0.3", lw=1, ls="-.", label=f"position alone ({len(means)} seeds)")
    ax.set_ylim(0, max(ax.get_ylim()[1], max(means) + 0.03))
    ax.set_xscale("symlog", linthresh=50)
    steps = sorted({int(row["step"]) for row in curves})
    ax.set_xticks(steps, [str(step) for step in steps])
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    ax.figure.savefig(run / "position.png")


if __name__ == "__main__":
    what, place = sys.argv[1], Path(sys.argv[2])
    if what == "scans":
        print(write_scans(Path(os.environ["SSL3D_DATA"]) / "ixi_t1_brain_2mm", place), "brains in", place)
    else:
        add_floor(place)
