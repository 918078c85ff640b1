"""Which rule brings a mask to the grid of a store and back with the least harm? No network is involved.

    SSL3D_DATA=FOLDER python experiments/masks_round_trip.py      (to results/masks/round_trip.csv, about ten minutes)

Masks of real scans go to a store's grid by each rule, and come back as a prediction does: each class as a map of 0 and
1, interpolated linearly (with the blur of images where the grid shrinks), and the most probable class taken, with its
volume kept or without. Scores are on the voxels of the scan, over all structures of 20 voxels or more.
"""

import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from torch.nn import functional as F

from ssl3d.data.scans import resize
from ssl3d.downstream.metrics import dice_per_region, hausdorff95
from ssl3d.files import write_table
from ssl3d.grids import Contest, _along_axes, _overlaps, _surroundings, resize_labels

DATA, OUT = Path(os.environ["SSL3D_DATA"]), Path("results/masks/round_trip.csv")
COHORTS = {  # title -> masks, how many of them, voxels per axis
    "hippocampus on 32³ (about one to one)": ("Task04_Hippocampus/labelsTr/*.nii.gz", 24, 32),
    "hippocampus on 64³ (grows)": ("Task04_Hippocampus/labelsTr/*.nii.gz", 24, 64),
    "brain tumours on 60³ (half)": ("brats_mini_2mm/*/*seg.nii.gz", 8, 60),
    "brain tumours on 32³": ("brats_mini_2mm/*/*seg.nii.gz", 8, 32),
    "IXI tissue on 48³": ("ixi_t1_brain_2mm/*_tissue.nii.gz", 8, 48),
    "IXI regions on 48³": ("ixi_t1_brain_2mm/*_regions.nii.gz", 3, 48),
    "organs in a CT on 64³": ("totalsegmentator_ct/example_seg_fast*.nii.gz", 1, 64),
}


def nearest(mask: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """The nearest voxel; of two, the later one."""
    tensor = torch.from_numpy(mask.astype(np.float32))[None, None]
    return F.interpolate(tensor, size, mode="nearest-exact")[0, 0].numpy().astype(np.uint8)


def filled(mask: np.ndarray, size: tuple[int, ...], nearby: float, lift: float) -> np.ndarray:
    """The class that fills most of a voxel; ties by surroundings (`nearby`), or to what is not background (`lift`)."""
    codes = np.unique(mask)
    shares, around = ([rule(o, n) for o, n in zip(mask.shape, size)] for rule in (_overlaps, _surroundings))
    scores = [_along_axes(np.float32(mask == code), shares).round(5) +
              nearby * _along_axes(np.float32(mask == code), around) + lift * (code > 0) for code in codes]
    return codes[np.argmax(scores, axis=0)].astype(np.uint8)


def blurred(mask: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """The most probable class after each one was resized as an image is."""
    codes = np.unique(mask)
    scores = [resize(MetaTensor(torch.from_numpy(np.float32(mask == code))[None]), size)[0].numpy() for code in codes]
    return codes[np.argmax(scores, axis=0)].astype(np.uint8)


def back(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """As `blurred`, with the volume of each class kept."""
    codes, contest = np.unique(mask), Contest(shape)
    for k, code in enumerate(codes):
        contest.enter(k, resize(MetaTensor(torch.from_numpy(np.float32(mask == code))[None]), shape)[0].numpy())
    wanted = np.array([(mask == code).sum() for code in codes]) * (np.prod(shape) / mask.size)
    return codes[contest.labels(wanted)].astype(np.uint8)


WAYS: list[tuple[str, str, Callable, Callable]] = [
    ("nearest", "most probable", nearest, blurred),
    ("blur and interpolate", "most probable", blurred, blurred),
    ("majority, ties: lowest", "most probable", lambda m, s: filled(m, s, 0, 0), blurred),
    ("majority, ties: structure", "most probable", lambda m, s: filled(m, s, 0, 1e-4), blurred),
    ("majority, ties: nearby", "most probable", lambda m, s: filled(m, s, 1e-3, 0), blurred),
    ("nearest", "volume kept", nearest, back),
    ("majority, ties: nearby", "volume kept", lambda m, s: filled(m, s, 1e-3, 0), back),
    ("volume kept", "nearest", resize_labels, nearest),
    ("volume kept", "most probable", resize_labels, blurred),
    ("volume kept", "volume kept", resize_labels, back),
]


def scored(mask: np.ndarray, again: np.ndarray, spacing: tuple[float, ...], distances: bool) -> np.ndarray:
    """Dice, relative error of the volume, and the distance (mm) of each structure."""
    codes, counts = np.unique(mask, return_counts=True)
    large = {str(code): (int(code),) for code, n in zip(codes, counts) if code and n >= 20}
    dice = dice_per_region(again, mask, large)
    far = hausdorff95(again, mask, large, spacing, missed=np.nan) if distances else dict.fromkeys(large, np.nan)
    return np.array([[dice[k], np.isin(again, large[k]).sum() / np.isin(mask, large[k]).sum() - 1, far[k]]
                     for k in large])


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for cohort, (pattern, most, side) in COHORTS.items():
        files = sorted(DATA.glob(pattern))[:most]
        for down, up, there, again in WAYS:
            found = []
            for file in files:
                volume = nib.as_closest_canonical(nib.load(file))
                mask = np.asarray(volume.dataobj).astype(np.uint8)
                small = there(mask, (side,) * 3)
                distances = len(np.unique(mask)) < 10
                found.append(scored(mask, again(small, mask.shape), volume.header.get_zooms()[:3], distances))
            dice, volume, far = np.concatenate(found).T
            known = far[np.isfinite(far)]
            rows.append({"cohort": cohort, "down": down, "back": up, "structures": len(dice),
                         "dice": round(dice.mean(), 4), "worst": round(dice.min(), 4),
                         "volume": round(volume.mean(), 4), "absolute": round(abs(volume).mean(), 4),
                         "hd95": round(known.mean(), 3) if len(known) else ""})
            print(rows[-1], flush=True)
            write_table(OUT, rows)


if __name__ == "__main__":
    OUT.parent.mkdir(parents=True, exist_ok=True)
    main()
