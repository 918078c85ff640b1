"""How fast each task makes its questions: beside a plain copy, NumPy, MONAI, and the encoder's own step.

Run by `make bench`, which writes results/bench/tasks.csv and results/bench/steps.csv. Rates are GB/s of output in
float32. The limit is `out.copy_(x)` on buffers larger than the cache. Everything is a mean over fixed seeds, after a
warm-up; `make` is timed on images of noise, whose values do not matter to it. The time per image of the exemplar is
that of one view. MONAI has no location, cuts its grids without gaps, and resamples twice for rotation and zoom.
"""

import argparse
import csv
import os
import platform
import time
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does it

import monai.transforms as mt  # noqa: E402
import numpy as np
import torch
from scipy import ndimage

from ssl3d.networks.encoders import make_encoder
from ssl3d.tasks import TASKS
from ssl3d.tasks.base import Batch

SIDE, IMAGES = {3: 128, 2: 224}, {3: 4, 2: 32}
OPTIONS = {"cpc": {"grid": 7, "overlap": 0.5}}  # half-overlapping patches of 32 (56) voxels, as in the other ways
VIEWS = {"exemplar": 2}  # images made of each image


def mean_time(work, n: int, device: str, warm_up: int = 2) -> float:
    """Seconds per call of `work(seed)`, over n seeds."""
    for seed in range(warm_up):
        work(seed)
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for seed in range(n):
        work(seed)
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / n


def copy_rate(device: str) -> tuple[float, float]:
    """GB/s of `out.copy_(x)` on 256 MB, and of `x.clone()`, whose memory is fresh from the operating system."""
    x = torch.rand(64 * 2**20, device=device)
    out = torch.empty_like(x)
    return tuple(x.nbytes / mean_time(work, 20, device) / 1e9 for work in (lambda _: out.copy_(x), lambda _: x.clone()))


def images_of(dims: int, channels: int, device: str) -> Batch:
    shape = (IMAGES[dims], channels, *[SIDE[dims]] * dims)
    return Batch(torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device), torch.arange(IMAGES[dims]))


def new_task(name: str, encoder):
    return TASKS[name](encoder, **OPTIONS.get(name, {}))


# The plain way in NumPy, one image at a time as a data loader would.


def numpy_rotation(images, seed):
    rng, dims = np.random.default_rng(seed), images.ndim - 2
    axes = [(1, 2), (2, 3), (1, 3)][: 1 if dims == 2 else 3]
    return np.stack([np.rot90(image, rng.integers(4), axes[rng.integers(len(axes))]) for image in images])


def numpy_location(images, seed):
    rng, patch = np.random.default_rng(seed), int(0.7 * (images.shape[-1] // 3))
    places = [[rng.integers(0, side - patch, size=2) for side in images.shape[2:]] for _ in images]
    return np.stack([np.stack([image[(slice(None), *(slice(p[i], p[i] + patch) for p in place))] for i in (0, 1)])
                     for image, place in zip(images, places)])


def numpy_grid(images, patch, step, order):
    """All patches of a regular grid, in the order of their numbers in `order`."""
    starts = [range(0, side - patch + 1, step) for side in images.shape[2:]]
    corners = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, len(starts))
    corners = corners[order(len(corners))]
    return np.stack([np.stack([image[(slice(None), *(slice(c, c + patch) for c in corner))] for corner in corners])
                     for image in images])


def numpy_jigsaw(images, seed):
    cell = images.shape[-1] // 3
    return numpy_grid(images, int(0.7 * cell), cell, np.random.default_rng(seed).permutation)


def numpy_cpc(images, seed):
    return numpy_grid(images, images.shape[-1] // 4, images.shape[-1] // 8, np.arange)


def numpy_exemplar(images, seed):
    """Flips, one composed linear resampling for rotation and zoom, brightness and contrast, at the paper's rates."""
    rng, dims, views = np.random.default_rng(seed), images.ndim - 2, []
    for image in np.repeat(images, 2, axis=0):
        matrix = np.eye(dims)
        if rng.random() < 0.5:
            image = np.flip(image, 1 + rng.integers(dims))
        if rng.random() < 0.5:
            if rng.random() < 0.5:
                image = np.rot90(image, rng.integers(1, 4), tuple(1 + rng.permutation(dims)[:2]))
            else:
                matrix = np.linalg.qr(rng.standard_normal((dims, dims)))[0]
        if rng.random() < 0.2:
            matrix = matrix @ np.diag(rng.uniform(0.8, 1.2, dims))
        if not np.array_equal(matrix, np.eye(dims)):
            middle = (np.array(image.shape[1:]) - 1) / 2
            image = np.stack([ndimage.affine_transform(c, matrix, middle - matrix @ middle, order=1) for c in image])
        if rng.random() < 0.5:
            image = np.clip((image - image.mean()) * rng.uniform(0.5, 1.5) + image.mean() + rng.uniform(-0.125, 0.125),
                            0, 1)
        views.append(np.ascontiguousarray(image))
    return np.stack(views)


NUMPY = {"rotation": numpy_rotation, "location": numpy_location, "jigsaw": numpy_jigsaw, "cpc": numpy_cpc,
         "exemplar": numpy_exemplar}


def monai_way(name: str, dims: int, side: int):
    """MONAI's own transform of one image (C, *space), where it has one for the job."""
    if name == "rotation":
        planes = [(0, 1), (0, 2), (1, 2)][: 3 if dims == 3 else 1]
        return mt.OneOf([mt.RandRotate90(prob=0.75, spatial_axes=plane) for plane in planes])
    if name in ("jigsaw", "cpc"):
        patch, overlap = (side // 3, 0.0) if name == "jigsaw" else (side // 4, 0.5)
        return mt.GridPatch(patch_size=(patch,) * dims, overlap=overlap, pad_mode=None)
    if name == "exemplar":
        turn = {f"range_{axis}": np.pi for axis in "xyz"[: 3 if dims == 3 else 1]}
        rotate = mt.OneOf([mt.RandRotate90(prob=0.5), mt.RandRotate(prob=0.5, padding_mode="zeros", **turn)])
        zoom = mt.RandZoom(prob=0.2, min_zoom=0.8, max_zoom=1.2, padding_mode="constant")
        return mt.Compose([mt.RandFlip(prob=0.5, spatial_axis=0), rotate, zoom,
                           mt.RandScaleIntensity(factors=0.5, prob=0.5), mt.RandShiftIntensity(0.125, prob=0.5)])
    return None


def monai_time(name: str, batch: Batch, n: int, device: str) -> tuple[float, int] | None:
    """Seconds and bytes of MONAI's transform over a batch; both views of each image for the exemplar."""
    transform = monai_way(name, batch.image.ndim - 2, batch.image.shape[-1])
    if transform is None:
        return None
    images = [image for image in batch.image for _ in range(2 if name == "exemplar" else 1)]

    def work(seed):
        if isinstance(transform, (mt.Randomizable, mt.Compose)):
            transform.set_random_state(seed)
        return [transform(image).as_tensor().contiguous() for image in images]
    return mean_time(work, n, device), sum(x.nbytes for x in work(0))


def time_making(dims: int, channels: int, device: str, threads: int, n: int) -> list[dict]:
    """Rates of `make` of every task, of NumPy and of MONAI."""
    torch.set_num_threads(threads)
    batch, (copy, clone), lines = images_of(dims, channels, device), copy_rate(device), []
    arrays = batch.image.cpu().numpy()
    for name in TASKS:
        encoder = make_encoder("unet", dims, channels, (8, 16, 32, 64, 128), seed=0)
        task = new_task(name, encoder).to(device)
        more = 8 * n if name == "exemplar" and device == "cpu" and threads == 1 else n  # what it does differs
        ways = {"ssl3d": (mean_time(lambda s, t=task: t.make(batch, torch.Generator().manual_seed(s)), more, device),
                          task.make(batch, torch.Generator().manual_seed(0)).inputs.nbytes)}
        if device == "cpu" and name in NUMPY:
            ways["numpy"] = (mean_time(lambda s, f=NUMPY[name]: f(arrays, s), n, device), NUMPY[name](arrays, 0).nbytes)
        if (monai := monai_time(name, batch, n, device)) is not None:
            ways["monai"] = monai
        for way, (seconds, size) in ways.items():
            rate = size / seconds / 1e9
            lines.append({"task": name, "dims": dims, "channels": channels, "device": device, "threads": threads,
                          "way": way, "ms_per_image": 1e3 * seconds / len(batch.image) / VIEWS.get(name, 1),
                          "GB_per_s": rate, "copy_GB_per_s": copy, "clone_GB_per_s": clone, "times_copy": copy / rate,
                          "times_clone": clone / rate})
    return lines


def time_steps(dims: int, device: str, threads: int, n_images: int, compiled: bool, precision: str) -> list[dict]:
    """`make` as a share of the whole step (make, forward, loss, backward) with the paper's encoder."""
    torch.set_num_threads(threads)
    lines, images = [], images_of(dims, 1 if dims == 3 else 3, device)
    for name in TASKS:
        n = 1 if name == "cpc" and dims == 3 else n_images  # its overlapping patches hold five times the image
        batch = Batch(images.image[:n], images.subject[:n])
        encoder = make_encoder("unet" if dims == 3 else "densenet121", dims, batch.image.shape[1])
        task = new_task(name, encoder).to(device)
        if compiled:
            task.encoder.forward = torch.compile(task.encoder.forward)

        def make(seed, task=task, batch=batch):
            return task.make(batch, torch.Generator().manual_seed(seed))

        def step(seed, task=task, make=make):
            inputs, targets = make(seed)
            with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
                task.loss(task(inputs), targets).backward()

        making = mean_time(make, 10, device)
        whole = mean_time(step, 1 if device == "cpu" and dims == 3 else 5, device, warm_up=1)
        lines.append({"task": name, "dims": dims, "images": n, "device": device, "threads": threads,
                      "precision": precision, "compiled": compiled, "make_ms": 1e3 * making, "step_ms": 1e3 * whole,
                      "share": making / whole})
    return lines


def show(lines: list[dict], file: Path) -> None:
    """Print a table, and write it as CSV."""
    def cell(value):
        return f"{value:.3g}" if isinstance(value, float) else str(value)
    widths = {k: max(len(k), *(len(cell(line[k])) for line in lines)) for k in lines[0]}
    print("  ".join(k.rjust(w) for k, w in widths.items()))
    for line in lines:
        print("  ".join(cell(line[k]).rjust(w) for k, w in widths.items()))
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(lines[0]))
        writer.writeheader()
        writer.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in line.items()} for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeat", type=int, default=5, help="seeds per timing")
    parser.add_argument("--no-steps", action="store_true", help="leave out the encoder's steps, which take minutes")
    parser.add_argument("--compile", action="store_true", help="compile the encoder in the steps")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the steps")
    args = parser.parse_args()
    machine = torch.cuda.get_device_name() if args.device == "cuda" else f"{os.cpu_count()} cores, {platform.machine()}"
    print(f"{machine}, torch {torch.__version__}")
    making = []
    for threads in (1,) if args.device == "cuda" else (1, 2):
        for dims, channels in ((3, 1), (3, 4), (2, 1), (2, 3)):
            making += time_making(dims, channels, args.device, threads, args.repeat)
    show(making, args.out / "tasks.csv")
    if not args.no_steps:
        torch.cuda.empty_cache()
        threads = min(2, os.cpu_count() or 1)
        steps = [line for dims, n_images in ((3, 2), (2, 8))
                 for line in time_steps(dims, args.device, threads, n_images, args.compile, args.precision)]
        show(steps, args.out / "steps.csv")


if __name__ == "__main__":
    main()
