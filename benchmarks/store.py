"""How a prepared volume is best kept and read, what keeping it saves, and what preparing a large cohort takes.

Run as `python benchmarks/store.py` (two to three minutes), which writes results/bench/store.csv. Volumes are brains of
128 voxels a side, from IXI where SSL3D_DATA is set and from data_samples/ otherwise, enlarged without noise, which
flatters whatever compresses. Each is a file of its own, the files together exceed the CPU's cache, all are in the page
cache, and one thread reads them. `ms` is per volume, the median over files and rounds; `best_ms` that of the quietest
round. The parts of the table, and their limits:

- read: a volume in one of several formats, into warm memory (float32: as a tensor). The limit is `readinto` of the same
  bytes into warm memory, 1 in `times_raw`; reading the store should stay below 2.
- scan: a NIfTI file read and prepared, which is what a store saves. `scan_over_this` is the time of a scan at 1 mm of
  which only the image is made, over the time of the line; reading the store should reach 20.
- crop: what a step of training reads of one case, with read_batch's widening to float32: a whole cube, or a crop of a
  whole scan of 256 x 256 x 160 voxels that is mapped and not loaded. `MB` is what comes from the disk where nothing of
  the file is in the page cache (0 where the system does not say). A crop should cost no more than a cube of its size,
  and read a part of the file.
- prepare: that scan prepared (image and content) and saved, by one worker, threads and processes. The limit is one
  worker's rate times the number of cores.

Blosc2 and Zarr are no part of ssl3d: their lines are left out where they are not installed.
"""

import argparse
import importlib
import multiprocessing
import os
import platform
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does it

import monai  # noqa: E402
import nibabel as nib
import numpy as np
import torch

from ssl3d.data.cohorts import Case, Cohort
from ssl3d.data.prepare import _prepare_case
from ssl3d.data.scans import orient, prepare_scan, read_scan, resize, scale
from ssl3d.networks.windows import random_crop, window_of

SIDE, FILES, SCANS, WORKERS = 128, 24, 16, 2
BRAIN, MARGIN = (144, 176, 144), 8  # voxels of a brain at 1 mm, and of the air around it


def time_ways(ways: dict, rounds: int, n: int = FILES, warm_up: int = 2) -> dict[str, tuple[float, float]]:
    """Milliseconds per call of each `work(i)`, i < n: the median, and that of the best round; the ways take turns."""
    medians, every = {way: [] for way in ways}, {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, work in ways.items():
            times = []
            for i in range(n if turn else warm_up):
                start = time.perf_counter()
                work(i)
                times.append(1e3 * (time.perf_counter() - start))
            if turn:
                medians[way].append(median(times))
                every[way] += times
    return {way: (median(every[way]), min(medians[way])) for way in ways}


def optional(name: str):
    """A module, or None and a note."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"{name} is not installed: its lines are left out")


def write_volumes(folder: Path) -> str:
    """FILES brains, each as float16, uint8, NIfTI of 128 voxels a side and NIfTI at 1 mm; returns their origin."""
    data = os.environ.get("SSL3D_DATA")
    brains = sorted(Path(data, "ixi_t1_brain_2mm").glob("*_T1brain.nii.gz")) if data else \
        sorted(Path(__file__).parents[1].glob("data_samples/*/imagesTr/*.nii.gz"))
    for i in range(FILES):
        brain = orient(read_scan(brains[i % len(brains)]))
        brain = brain[i // len(brains) % len(brain)][None]  # few brains: their next channel
        image, large = scale(resize(brain, (SIDE,) * 3)).numpy()[0], scale(resize(brain, BRAIN)).numpy()[0]
        large = np.pad(large, MARGIN)
        for name, array in (("half", image.astype(np.float16)), ("byte", np.uint8(np.rint(255 * image)))):
            np.save(folder / f"{i}.{name}.npy", array)
            array.tofile(folder / f"{i}.{name}.raw")
        for name, array in (("float32", image), ("int16", np.int16(4095 * image)), ("1mm", np.int16(4095 * large))):
            nib.save(nib.Nifti1Image(array, np.eye(4)), folder / f"{i}.{name}.nii.gz")
    return str(brains[0].parent)


# Reading what is prepared.


def read_raw(buffer: np.ndarray, path: Path) -> None:
    with open(path, "rb", buffering=0) as f:
        assert f.readinto(buffer) == buffer.nbytes


def stored_ways(folder: Path) -> dict:
    """(way, type) -> its name in the folder, and a function that reads file i."""
    half, byte = np.empty((SIDE,) * 3, np.float16), np.empty((SIDE,) * 3, np.uint8)
    full = torch.zeros(SIDE, SIDE, SIDE)

    def copied(i, name="half", buffer=half):
        path = folder / f"{i}.{name}.npy"
        buffer[...] = np.memmap(path, buffer.dtype, "r", path.stat().st_size - buffer.nbytes, buffer.shape)  # as Store
        return buffer

    return {
        ("raw read, the limit", "float16"): ("half.raw", lambda i: read_raw(half.ravel(), folder / f"{i}.half.raw")),
        ("raw read, the limit", "uint8"): ("byte.raw", lambda i: read_raw(byte.ravel(), folder / f"{i}.byte.raw")),
        ("npy map, copied", "float16"): ("half.npy", copied),
        ("npy map, copied", "uint8"): ("byte.npy", lambda i: copied(i, "byte", byte)),
        ("npy map, float32 in fresh memory (read_batch)", "float16"): (
            "half.npy", lambda i: torch.from_numpy(copied(i)).float()),
        ("npy map, float32 in fresh memory (read_batch)", "uint8"): (
            "byte.npy", lambda i: torch.from_numpy(copied(i, "byte", byte)).float().div_(255)),
        ("npy map, float32 in warm memory", "float16"): (
            "half.npy", lambda i: full.copy_(torch.from_numpy(copied(i)))),
    }


def blosc2_ways(folder: Path, blosc2) -> dict:
    """One chunk per volume, decompressed into warm memory: the shortest way of Blosc2."""
    blosc2.set_nthreads(1)
    half, ways = np.empty((SIDE,) * 3, np.float16), {}
    for codec in ("ZSTD", "LZ4"):
        for i in range(FILES):
            array = np.load(folder / f"{i}.half.npy")
            blosc2.SChunk(chunksize=array.nbytes, data=array, urlpath=str(folder / f"{i}.{codec}.b2frame"), cparams={
                "codec": blosc2.Codec[codec], "typesize": 2, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1})

        def read(i, codec=codec):
            path = str(folder / f"{i}.{codec}.b2frame")
            blosc2.open(path, mode="r", dparams={"nthreads": 1}).decompress_chunk(0, dst=half)

        read(1)
        assert (half == np.load(folder / "1.half.npy")).all()
        ways[f"blosc2 {codec.lower()}, shuffle", "float16"] = f"{codec}.b2frame", read
    return ways


def zarr_ways(folder: Path, zarr) -> dict:
    """Zarr 3 with its own chunks and compression, and as one plain chunk."""
    zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1})
    half, ways = np.empty((SIDE,) * 3, np.float16), {}
    for way, options in (("uncompressed", {"chunks": (SIDE,) * 3, "compressors": None}), ("default", {})):
        for i in range(FILES):
            zarr.create_array(folder / f"{i}.{way}.zarr", data=np.load(folder / f"{i}.half.npy"), **options)

        def read(i, way=way):
            half[...] = zarr.open_array(folder / f"{i}.{way}.zarr", mode="r")[:]

        ways[f"zarr {way}", "float16"] = f"{way}.zarr", read
    return ways


def size_on_disk(path: Path) -> float:
    """MB of a file, or of all files of a folder."""
    return sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file()) / 1e6


def time_reading(folder: Path, rounds: int) -> list[dict]:
    ways = stored_ways(folder)
    for name, more in (("blosc2", blosc2_ways), ("zarr", zarr_ways)):
        if module := optional(name):
            ways |= more(folder, module)
    times = time_ways({way: work for way, (_, work) in ways.items()}, rounds)
    return [{"part": "read", "way": way, "type": kind, "ms": ms, "best_ms": best,
             "MB": sum(size_on_disk(folder / f"{i}.{ways[way, kind][0]}") for i in range(FILES)) / FILES,
             "times_raw": ms / times["raw read, the limit", kind][0]} for (way, kind), (ms, best) in times.items()]


# Crops of whole scans.

WHOLE, N_WHOLE = (1, 256, 256, 160), 8  # voxels of a scan that is kept whole; how many


def read_from_disk(path: Path, work) -> float:
    """MB that come from the disk when a file is used that is not in the page cache; 0 where the system is silent."""
    try:
        with open(path, "rb") as f:
            os.fsync(f.fileno())
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before = _bytes_read()
        work()
        return (_bytes_read() - before) / 1e6
    except (OSError, AttributeError):
        return 0.0


def _bytes_read() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def time_crops(folder: Path, rounds: int) -> list[dict]:
    """A cube of SIDE, and crops of whole scans, as read_batch reads them."""
    rng = np.random.default_rng(0)
    for i in range(N_WHOLE):
        np.save(folder / f"{i}.whole.npy", rng.random(WHOLE, dtype=np.float32).astype(np.float16))
    generator = torch.Generator().manual_seed(0)

    def cube(i):
        torch.from_numpy(np.array(np.load(folder / f"{i}.half.npy", "r"))).float()

    def crop(i, side):
        scan = np.load(folder / f"{i}.whole.npy", "r")
        torch.from_numpy(np.array(window_of(scan, random_crop(scan, side, generator)))).float()

    ways = {f"a whole cube of {SIDE}³": (cube, "half")}
    for side in (64, 96, 128):
        ways[f"a crop of {side}³ of 256 x 256 x 160"] = partial(crop, side=side), "whole"
    times = time_ways({way: work for way, (work, _) in ways.items()}, rounds, n=N_WHOLE)
    cold = {way: median(read_from_disk(folder / f"{i}.{name}.npy", lambda i=i, work=work: work(i))
                        for i in range(N_WHOLE)) for way, (work, name) in ways.items()}
    return [{"part": "crop", "way": way, "type": "float16", "ms": ms, "best_ms": best, "MB": cold[way], "times_raw": ""}
            for way, (ms, best) in times.items()]


# Preparing.


def time_scans(folder: Path, rounds: int) -> list[dict]:
    def work(name, crop):
        return lambda i: prepare_scan((folder / f"{i}.{name}.nii.gz",), size=SIDE, crop_content=crop)
    times = time_ways({("float32", False): work("float32", False), ("int16", False): work("int16", False),
                       ("1mm", False): work("1mm", False), ("1mm", True): work("1mm", True)}, rounds)
    return [{"part": "scan", "way": f"nii.gz {'at 1 mm' if name == '1mm' else '128³'}, image{' and content' * crop}",
             "type": "int16" if name == "1mm" else name, "ms": ms, "best_ms": best,
             "MB": sum(size_on_disk(folder / f"{i}.{name}.nii.gz") for i in range(FILES)) / FILES, "times_raw": ""}
            for (name, crop), (ms, best) in times.items()]


def prepare_one(folder: Path, i: int) -> None:
    """One case of a store, with its hashes, as `ssl3d prepare` makes it."""
    case = Case(f"{i}.prepared", (folder / f"{i}.1mm.nii.gz",))
    settings = {"size": SIDE, "crop": True, "percentiles": None, "dtype": "float16"}
    _prepare_case(case, Cohort(folder, "folder", (case,)), folder, settings)


def begin_worker(folder: Path, i: int, barrier) -> None:
    """What a process does before it can prepare scans at full speed; returns when all are so far."""
    torch.set_num_threads(1)
    prepare_one(folder, i)
    barrier.wait()


def time_preparing(folder: Path, rounds: int) -> list[dict]:
    """Milliseconds per scan when SCANS scans are prepared, and until the processes were ready."""
    spawn = multiprocessing.get_context("spawn")
    barrier, start = spawn.Barrier(WORKERS + 1), time.perf_counter()
    threads = ThreadPoolExecutor(WORKERS, initializer=torch.set_num_threads, initargs=(1,))
    processes = ProcessPoolExecutor(WORKERS, spawn, begin_worker, (folder, 0, barrier))
    for _ in range(WORKERS):
        processes.submit(os.getpid)  # a process starts when there is work for it
    barrier.wait(timeout=300)
    started = 1e3 * (time.perf_counter() - start)
    work = [[folder] * SCANS, range(SCANS)]

    def alone(n_threads):
        torch.set_num_threads(n_threads)
        for i in range(SCANS):
            prepare_one(folder, i)
        torch.set_num_threads(1)

    with threads, processes:
        times = time_ways({"1 worker": lambda _: alone(1),
                           f"1 worker, torch on {WORKERS} cores": lambda _: alone(WORKERS),
                           f"{WORKERS} threads": lambda _: list(threads.map(prepare_one, *work)),
                           f"{WORKERS} processes": lambda _: list(processes.map(prepare_one, *work))},
                          rounds, n=1, warm_up=0)
    lines = [(f"{way}, per scan", ms / SCANS, best / SCANS) for way, (ms, best) in times.items()]
    return [{"part": "prepare", "way": way, "type": "int16", "ms": ms, "best_ms": best, "MB": "", "times_raw": ""}
            for way, ms, best in [*lines, (f"{WORKERS} processes, until they are ready", started, started)]]


def print_plan(ms_per_scan: float, way: str, cases: int = 22_000, modalities: int = 2) -> None:
    """Disk and hours for a cohort of UK Biobank's size."""
    print(f"\n{cases} cases of {modalities} modalities at {SIDE}³, from {way}:")
    for kind, size in (("float16", 2), ("uint8", 1)):
        total = cases * modalities * size * SIDE**3 / 1e9
        print(f"  {kind}: {total:.0f} GB, with a version cropped to its content {2 * total:.0f} GB")
    hours = cases * modalities * ms_per_scan / 3.6e6
    print(f"  {hours:.1f} hours with {WORKERS} workers, {hours * WORKERS / 16:.1f} with 16 (linear: not measured, and "
          "only where the disk keeps up)")


def main() -> None:
    from tasks import show

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    parser.add_argument("--repeat", type=int, default=8, help="rounds of reading; a quarter of it for what is slow")
    args = parser.parse_args()
    torch.set_num_threads(1)
    versions = ", ".join(f"{m.__name__} {m.__version__}" for m in (torch, monai, np, nib))
    print(f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}, {versions}")
    with tempfile.TemporaryDirectory() as folder:
        print(f"{FILES} volumes, from {write_volumes(Path(folder))}")
        slow = max(1, args.repeat // 4)
        crops = time_crops(Path(folder), args.repeat)
        lines = time_reading(Path(folder), args.repeat) + time_scans(Path(folder), slow)
        whole = next(line["ms"] for line in lines if line["way"] == "nii.gz at 1 mm, image")
        lines = [line | {"scan_over_this": whole / line["ms"]} for line in lines]
        prepared = time_preparing(Path(folder), slow)
        show(lines + [line | {"scan_over_this": ""} for line in crops + prepared], args.out / "store.csv")
    threads = next(line for line in prepared if line["way"].startswith(f"{WORKERS} threads"))
    print(f"load at the end: {os.getloadavg()[0]:.1f} (much above {WORKERS}: others were at work, so measure again)")
    print_plan(threads["best_ms"], threads["way"])


if __name__ == "__main__":
    main()
