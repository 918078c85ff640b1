"""Does the foreground of real scans hold their tissue? For every cohort of the tests, how much of it is lost.

    SSL3D_DATA=FOLDER python experiments/foregrounds.py           (to results/foreground/cohorts.csv, about two minutes)

Tissue is what a label map marks; of photographs of eyes the disc: pixels brighter than 30 of 255, and holes in them.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import binary_fill_holes

from ssl3d.data.scans import foreground, read_scan
from ssl3d.files import write_table

DATA, OUT = Path(os.environ["SSL3D_DATA"]), Path("results/foreground/cohorts.csv")
VOLUMES = {  # title -> images (several channels where several files lie in one folder), and what is replaced for labels
    "hippocampus crops": ("Task04_Hippocampus/imagesTr/*.nii.gz", "imagesTr", "labelsTr"),
    "IXI brains": ("ixi_t1_brain_2mm/*_T1brain.nii.gz", "T1brain", "regions"),
    "IXI heads": ("ixi_t1_head_2mm_10/*_T1.nii.gz", "_T1.nii", "_T1_DLMUSE.nii"),
    "CT (organs)": ("totalsegmentator_ct/example_ct.nii.gz", "example_ct", "example_seg_fast_force_split"),
    "MR (organs)": ("totalsegmentator_ct/example_mr_sm.nii.gz", "example_mr_sm", "example_seg_mr"),
}


def volumes(pattern: str, old: str, new: str) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """Scans (1, *space) and where their tissue is."""
    for file in sorted(DATA.glob(pattern)):
        labels = Path(str(file).replace(old, new))
        yield read_scan(file).as_tensor(), read_scan(labels, mask=True)[0].numpy() > 0


def tumours() -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """Brains with several modalities, and their tumours."""
    for folder in sorted(path for path in (DATA / "brats_mini_2mm").iterdir() if path.is_dir()):
        files = [file for file in sorted(folder.glob("*.nii.gz")) if "seg" not in file.name]
        truth = read_scan(next(folder.glob("*seg*")), mask=True)[0].numpy() > 0
        yield torch.cat([read_scan(file).as_tensor() for file in files]), truth


def eyes(pictures: Iterator[np.ndarray]) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """Photographs (3, H, W), and their discs."""
    for picture in pictures:
        disc = binary_fill_holes(picture.max(axis=-1) > 30)
        yield torch.from_numpy(np.float32(picture)).movedim(-1, 0), disc


def glands() -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """Shapes of adrenal glands, which are all that there is."""
    for shape in np.load(DATA / "adrenalmnist3d/adrenalmnist3d_64.npz")["train_images"][::10]:
        yield torch.from_numpy(np.float32(shape))[None], shape > 0


def main() -> None:
    idrid = (np.asarray(Image.open(file)) for file in sorted(DATA.glob("idrid_grading_512/**/*.jpg"))[::4])
    retinas = iter(np.load(DATA / "retinamnist/retinamnist.npz")["train_images"][::4])
    cohorts = {title: volumes(*where) for title, where in VOLUMES.items()}
    cohorts |= {"brain tumours": tumours(), "IDRiD (eyes)": eyes(idrid), "RetinaMNIST (eyes, 28 x 28)": eyes(retinas),
                "AdrenalMNIST (shapes)": glands()}
    rows = []
    for title, cases in cohorts.items():
        found = []
        for scan, tissue in cases:
            inside = foreground(scan)
            found.append((inside.mean(), (~inside & tissue).sum() / tissue.sum(), inside.all()))
        share, lost, whole = np.array(found).T
        rows.append({"cohort": title, "scans": len(found), "foreground": f"{share.mean():.3f}",
                     "lost": f"{lost.mean():.4f}", "lost_most": f"{lost.max():.4f}", "without_air": int(whole.sum())})
        print(rows[-1], flush=True)
        write_table(OUT, rows)


if __name__ == "__main__":
    OUT.parent.mkdir(parents=True, exist_ok=True)
    main()
