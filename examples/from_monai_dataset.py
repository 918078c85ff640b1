"""Pretraining on a MONAI dataset with transforms of your own, and one feature vector for each scan.

    python examples/from_monai_dataset.py [SCANS] [OUT]

SCANS is a folder of scans (the sample brains if not given), OUT is where everything goes (runs/from_monai_dataset).
"""

import sys
from pathlib import Path

import torch
from monai.data import CacheDataset
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    Resized,
    ScaleIntensityd,
)

import ssl3d
from ssl3d.demo_cohort import find_samples

scans = sys.argv[1] if len(sys.argv) > 1 else find_samples()
out = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/from_monai_dataset")

# `pretrain` takes any PyTorch Dataset whose items are tensors (C, x, y, z) with values from 0 to 1, or dictionaries
# with such a tensor as "image". Its task "exemplar" compares people and wants to know whom an image shows: "subject".
transforms = Compose(
    [
        LoadImaged("image"),
        EnsureChannelFirstd("image"),
        Orientationd("image", axcodes="RAS", labels=None),
        Resized("image", spatial_size=(32, 32, 32)),
        ScaleIntensityd("image", channel_wise=True),
    ]
)
items = [{"image": case.images[0], "subject": case.subject} for case in ssl3d.open_cohort(scans).cases]
dataset = CacheDataset(items, transforms, progress=False)

# The tiles of a brain were shuffled in one of 24 ways: which one was it? The encoder is a small U-Net's.
options, widths = {"grid": 2, "n_permutations": 24}, (8, 16, 32, 64)
run = ssl3d.pretrain(
    "jigsaw", dataset, out / "run", options=options, widths=widths, steps=80, batch_size=8, seed=0, progress=False
)
print(run.summary())
run.plot()[0].figure.savefig(out / "curve.png")

# One vector for each image: the mean over space of the encoder's coarsest map.
_, features = run.features(torch.stack([item["image"] for item in dataset]))
kept = {"subject": [item["subject"] for item in items], "features": torch.from_numpy(features)}
torch.save(kept, out / "features.pt")
print(f"{out / 'features.pt'}: one vector for each of {len(features)} scans, of {features.shape[1]} numbers")
