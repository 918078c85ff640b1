"""Pretraining on a MONAI dataset with transforms of your own, and one feature vector for each scan.

    python examples/from_monai_dataset.py [SCANS] [OUT]

SCANS is a folder of scans (the sample brains if not given), OUT is where everything goes (runs/from_monai_dataset).
"""

import sys
from pathlib import Path

import torch
from monai.data import CacheDataset
from monai.transforms import Compose, EnsureChannelFirstd, EnsureTyped, LoadImaged, Orientationd, Resized, ScaleIntensityd

import ssl3d
from ssl3d.demo_cohort import find_samples

scans = sys.argv[1] if len(sys.argv) > 1 else find_samples()
out = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/from_monai_dataset")

# Any PyTorch Dataset will do. Items are tensors (C, x, y, z) with values in [0, 1], or dictionaries with one as 'image'.
# This task compares people, so each item says with 'subject' whom it shows; most other tasks need no subject.
cohort = ssl3d.open_cohort(scans)
items = [{"image": case.images[0], "subject": case.subject} for case in cohort.cases]
transforms = Compose([
    LoadImaged("image"),
    EnsureChannelFirstd("image"),
    Orientationd("image", axcodes="RAS", labels=None),
    Resized("image", spatial_size=(32, 32, 32)),
    ScaleIntensityd("image", channel_wise=True),
    EnsureTyped("image", track_meta=False),  # a plain tensor
])
dataset = CacheDataset(items, transforms, progress=False)

run = ssl3d.pretrain("exemplar", dataset, out / "run", steps=60, batch_size=8, widths=(8, 16, 32, 64), seed=0,
                     progress=False)
print(run.summary())
run.plot()[0].figure.savefig(out / "curve.png")

encoder = run.encoder.eval()  # images (B, C, x, y, z) to maps, fine to coarse
images = torch.stack([item["image"] for item in dataset])
with torch.no_grad():
    features = encoder(images)[-1].mean(dim=(2, 3, 4))  # of the coarsest map, the mean over space
torch.save({"subjects": [item["subject"] for item in items], "features": features}, out / "features.pt")
print(f"{out / 'features.pt'}: {len(features)} scans, one vector of {features.shape[1]} numbers each")
