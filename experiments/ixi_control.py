"""A positive control: what does a set-up see where there is a gain for certain? Its scans, and its floor of position.

    export SSL3D_DATA=FOLDER OMP_NUM_THREADS=1
    python experiments/ixi_control.py scans runs/ixi_deep          (masks of 13 deep structures, links to the scans)
    ssl3d experiment experiments/ixi_control.yaml --out runs/ixi_control
    python experiments/ixi_control.py floor runs/ixi_control       (position.csv, position.png)

The floor of position is what somebody scores who never looks at the image: the labels of the labelled brain, copied to
every test brain at their places in the box. It is on the grid of the scans, as the scores of the arms are.
"""

import json
import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from ssl3d.downstream.segmentation import score, segment
from ssl3d.errors import InputError
from ssl3d.files import as_folder, read_json, read_table, write_json, write_table

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


if __name__ == "__main__":
    what, place = sys.argv[1], Path(sys.argv[2])
    if what == "scans":
        print(write_scans(Path(os.environ["SSL3D_DATA"]) / "ixi_t1_brain_2mm", place), "brains in", place)
