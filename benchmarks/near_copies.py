"""How well near copies of an image are told from images of other people, on real cohorts.

Run as `SSL3D_DATA=FOLDER python benchmarks/near_copies.py` (about five minutes), which writes
results/bench/near_copies.csv. Its lines with the change "none" compare the images of a cohort with one another: `told`
of `of` pairs are taken for near copies though their voxels differ. Its other lines change up to 40 images of a cohort,
as somebody might who passes them on, and count how many are told as near copies of their originals. `bits` is how many
bits of two signatures may differ, or "pieces" where pieces are compared, or "both" as `ssl3d.prepare` does it.
"""

import csv
import io
import os
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ssl3d.data.scans import marks_of, orient, read_scan
from ssl3d.data.splits import MOST_BITS, like_signatures, shared_pieces

DATA = Path(os.environ.get("SSL3D_DATA", "."))
COHORTS = {"hippocampus": "Task04_Hippocampus/imagesTr/*.nii.gz", "IXI brains": "ixi_t1_brain_2mm/*_T1brain.nii.gz",
           "IXI heads": "ixi_t1_head_2mm_10/*_T1.nii.gz", "BraTS, FLAIR": "brats_mini_2mm/*/*t2f.nii.gz",
           "IDRiD": "idrid_grading_512/images/*.jpg", "RetinaMNIST": "retinamnist/retinamnist.npz",
           "AdrenalMNIST": "adrenalmnist3d/adrenalmnist3d_64.npz"}
BITS = (15, 20, MOST_BITS, 30, 35, 40)


def images_of(pattern: str) -> list[torch.Tensor]:  # (C, *space) each
    """The images of a cohort, oriented."""
    if not pattern.endswith(".npz"):
        return [orient(read_scan(file)).as_tensor() for file in sorted(DATA.glob(pattern))]
    arrays = np.load(DATA / pattern)["train_images"].astype(np.float32)
    return [torch.from_numpy(array[None] if array.shape[-1] != 3 else np.moveaxis(array, -1, 0).copy())
            for array in arrays]


def changed(image: torch.Tensor, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """What may become of an image that is passed on."""
    low, high = image.min(), image.max()
    flat, sizes = image.ndim == 3, image.shape[1:]
    mode = "bilinear" if flat else "trilinear"
    grey = ((image - low) / (high - low) * 255).round()
    made = {"uint8": grey, "x 2 + 3": image * 2 + 3, "padded": F.pad(image, (5, 3) * len(sizes), value=float(low)),
            "half the size": F.interpolate(image[None], scale_factor=0.5, mode="area")[0],
            "1.3 times the size": F.interpolate(image[None], scale_factor=1.3, mode=mode)[0],
            "mirrored": image.flip(1), "mirrored, uint8": grey.flip(1),
            "axes swapped, x 2 + 3": image.transpose(1, 2) * 2 + 3}
    for share in (0.05, 0.1, 0.25, 0.4):
        starts = [int(rng.integers(0, int(n * share) + 1)) for n in sizes]
        ends = [start + n - int(n * share) for start, n in zip(starts, sizes)]
        made[f"{share:.0%} of each axis cut off"] = image[(slice(None), *map(slice, starts, ends))]
    if flat and len(image) == 3:
        file = io.BytesIO()
        Image.fromarray(grey.byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=75)
        made["JPEG"] = torch.from_numpy(np.array(Image.open(file), np.float32)).permute(2, 0, 1)
    return made


def lines_of(cohort: str, images: list[torch.Tensor]) -> list[dict]:
    """The lines of one cohort."""
    marks = [marks_of(image) for image in images]
    equal = {(i, j) for i, j in combinations(range(len(marks)), 2)
             if {*marks[i]["voxel_digests"]} & {*marks[j]["voxel_digests"]}}
    n, axes = len(images[0]), images[0].ndim - 1
    ways = {str(bits): lambda one, two, bits=bits: like_signatures(one["signatures"], two["signatures"], bits, axes)
            for bits in BITS} | {"pieces": lambda one, two: shared_pieces(one["pieces"], two["pieces"])}
    every = {what: [mark for each in marks for mark in each[what]] for what in ("signatures", "pieces")}
    lines, told = [], {}
    for way, compare in ways.items():
        told[way] = {(i // n, j // n) for i, j in compare(every, every) if i // n < j // n} - equal
    told["both"] = told[str(MOST_BITS)] | told["pieces"]
    pairs = len(marks) * (len(marks) - 1) // 2 - len(equal)
    lines += [{"cohort": cohort, "images": len(marks), "change": "none", "bits": way, "told": len(found), "of": pairs}
              for way, found in told.items()]
    counts: dict[tuple[str, str], int] = {}
    chosen = np.unique(np.linspace(0, len(images) - 1, min(40, len(images))).round().astype(int))
    rng = np.random.default_rng(0)
    for i in chosen:
        for change, image in changed(images[i], rng).items():
            other = marks_of(image)
            hits = {way for way, compare in ways.items() if compare(marks[i], other)}
            hits |= {"both"} if hits & {str(MOST_BITS), "pieces"} else set()
            for way in (*ways, "both"):
                counts[change, way] = counts.get((change, way), 0) + (way in hits)
    return lines + [{"cohort": cohort, "images": len(marks), "change": change, "bits": way, "told": hits,
                     "of": len(chosen)} for (change, way), hits in counts.items()]


def main() -> None:
    if not (DATA / "ixi_t1_brain_2mm").is_dir():
        sys.exit("SSL3D_DATA is not the folder of real cohorts. Set it, and run again.")
    lines = []
    for cohort, pattern in COHORTS.items():
        lines += lines_of(cohort, images_of(pattern))
        print(cohort, [line for line in lines if line["cohort"] == cohort and line["bits"] == "both"], flush=True)
    with open(Path(__file__).parents[1] / "results" / "bench" / "near_copies.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    main()
