"""What a training step takes, of every task and of fine-tuning, beside the machine's own rate and a plain loop.

Run as `python benchmarks/steps.py` (about ten minutes on one core), which writes results/bench/step_rates.csv, a line
at a time; `--resume` keeps the lines that are there. `--quick` measures tiny networks, in a minute or two.

- `s_step`: seconds of one step of `ssl3d.training.loop.train`, the best of a few: reading, asking, forward, backward,
  Adam, log. On a CPU these are CPU seconds of one thread, so that other programs disturb them little; on a GPU they
  are wall time.
- `read`, `ask`: the shares of a step in which the network waits for images and for the task's questions.
- `rate`: multiplications of a step per second, as a share of what one large convolution reaches in the same run.
- `peak_MB`: memory above what the program had before the network.
- `s_peer`, `times_peer`: the same questions in a plain PyTorch loop, with the plain U-Net of nnU-Net's
  `dynamic-network-architectures` of the same widths where it is installed, and the ratio of the two times. Where it is
  not, the peer is the same network with PyTorch's own convolutions. Above 1, `kernel` names what took most of our step.
"""

import argparse
import csv
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does it

import numpy as np  # noqa: E402
import torch
from monai.losses import DiceCELoss
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ssl3d.networks.encoders import as_encoder, make_encoder
from ssl3d.networks.unet import Segmenter
from ssl3d.tasks import NAMES, TASKS
from ssl3d.tasks.base import Batch
from ssl3d.training.loop import train

SIZES = {48: (8, 16, 32, 64, 128), 128: (32, 64, 128, 256, 512), 24: (4, 8, 16)}  # side -> widths
FINETUNING = "segmentation"
KEY = ("task", "side", "batch", "device", "precision", "compiled")
PEER = "dynamic_network_architectures"


def clock(device: str) -> float:
    """CPU seconds of this program, or on a GPU the time when it has done all its work."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


# The two networks and their step.


def new_encoder(side: int, peer: bool, patch: int = 0) -> nn.Module:
    """The kit's U-Net encoder, or the peer's; the peer halves what it is given, `patch` voxels, while 3 are left."""
    widths = SIZES[side]
    if not peer:
        return make_encoder("unet", 3, 1, widths)
    if importlib.util.find_spec(PEER) is None:
        return plain_convolutions(make_encoder("unet", 3, 1, widths))
    from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder

    left = patch or side
    strides = [1]
    for _ in widths[1:]:
        strides.append(2 if left > 2 else 1)
        left = -(-left // strides[-1])
    made = PlainConvEncoder(1, len(widths), list(widths), nn.Conv3d, 3, strides, 2, conv_bias=True,
                            norm_op=nn.InstanceNorm3d, norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU,
                            nonlin_kwargs={"inplace": True}, return_skips=True)
    return as_encoder(made, torch.zeros(1, 1, *[min(patch or side, max(side // 2, 16))] * 3))


def plain_convolutions(network: nn.Module) -> nn.Module:
    """The same network with PyTorch's own convolutions."""
    for layer in network.modules():
        for kind in (nn.Conv3d, nn.ConvTranspose3d):
            if isinstance(layer, kind):
                layer.__class__ = kind
    return network


def new_network(task: str, side: int, peer: bool) -> nn.Module:
    torch.manual_seed(0)
    patch = side
    if peer and task != FINETUNING:  # what a question of this task is cut into
        some = Batch(torch.rand(2, 1, *[side] * 3), torch.arange(2))
        asked = TASKS[task](new_encoder(side, False)).make(some)
        patch = asked[0].shape[-1]
    encoder = new_encoder(side, peer, patch)
    if task != FINETUNING:
        return TASKS[task](encoder)
    network = Segmenter(encoder, n_classes=3)
    return plain_convolutions(network) if peer else network


def question(network: nn.Module, batch, step: int):
    """What a network is asked: of fine-tuning the images and their masks."""
    made = batch if isinstance(network, Segmenter) else network.make(batch, torch.Generator().manual_seed(step))
    return made[0], made[1]


CRITERION = DiceCELoss(softmax=True, to_onehot_y=True, squared_pred=True)


def loss_of(network: nn.Module, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return CRITERION(outputs.float(), targets) if isinstance(network, Segmenter) else network.loss(outputs, targets)


def reader(task: str, side: int, n: int, folder: Path):
    """A function that reads the images of a step as a store keeps them, mapped and in half precision."""
    rng = np.random.default_rng(0)
    files = [folder / f"{i}.npy" for i in range(2 * n)]
    for file in files:
        np.save(file, rng.random((1, *[side] * 3), np.float32).astype(np.float16))
        np.save(file.with_suffix(".mask.npy"), rng.integers(0, 3, (1, *[side] * 3), np.uint8))

    def read(step: int):
        chosen = [files[(step * n + i) % len(files)] for i in range(n)]
        image = torch.from_numpy(np.stack([np.load(file, mmap_mode="r") for file in chosen])).float()
        if task != FINETUNING:
            return Batch(image, torch.arange(n))
        masks = np.stack([np.load(file.with_suffix(".mask.npy"), mmap_mode="r") for file in chosen])
        return image, torch.from_numpy(masks.astype(np.int64))
    return read


def moved(batch, device: str):
    """Images and what belongs to them, on the device."""
    there = [each if each is None else each.to(device) for each in batch]
    return Batch(*there) if isinstance(batch, Batch) else there


# Measuring.


def timed(work, spent: dict, name: str, device: str):
    """A function that adds up what it takes, in `spent`, call by call."""
    def call(*args):
        start = clock(device)
        made = work(*args)
        spent.setdefault(name, []).append(clock(device) - start)
        return made
    return call


def time_ours(network: nn.Module, read, steps: int, device: str, precision: str) -> dict[str, float]:
    """Seconds of a step of the kit's own loop, and of its parts."""
    spent: dict[str, list[float]] = {}
    begins: list[float] = []
    slow_read = timed(read, spent, "read", device)

    def begin(step: int):
        begins.append(clock(device))
        return slow_read(step)

    def measure(network, outputs, targets):
        return {"loss": loss_of(network, outputs, targets)}

    with tempfile.TemporaryDirectory() as out:
        train(network, timed(question, spent, "ask", device), measure, begin, Path(out), n_steps=steps + 2, lr=1e-3,
              progress=False, checkpoint_every=10**6, accelerator="gpu" if device == "cuda" else device,
              precision=precision)
    whole = np.diff(begins)[1:]  # not the first step, nor the last with its checkpoint
    return {"s_step": float(whole.min()), **{name: float(np.median(each[1:]) / np.median(whole))
                                             for name, each in spent.items()}}


def plain_step(network: nn.Module, made, optimizer, device: str, precision: str) -> None:
    kind = torch.bfloat16 if precision == "bf16-mixed" else torch.float16
    with torch.autocast(device, kind, enabled=precision != "32-true"):
        loss = loss_of(network, network(made[0]), made[1])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def time_plain(network: nn.Module, read, steps: int, device: str, precision: str) -> float:
    """Seconds of a step of a plain loop, its questions asked before."""
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    times = []
    for step in range(steps + 1):
        batch = read(step)
        batch = moved(batch, device)
        made = question(network, batch, step)
        start = clock(device)
        plain_step(network, made, optimizer, device, precision)
        times.append(clock(device) - start)
    return min(times[1:])


def multiplications(network: nn.Module, made) -> float:
    """Of a forward and backward pass."""
    with FlopCounterMode(display=False) as counter:
        loss_of(network, network(made[0]), made[1]).backward()
    network.zero_grad()
    return counter.get_total_flops() / 2


def machine_rate(device: str, precision: str, quick: bool) -> float:
    """Multiplications a second of one large convolution, forward and backward: the best of a few."""
    side = 24 if quick else 48
    layer = nn.Conv3d(64, 64, 3, padding=1).to(device)
    x = torch.rand(2, 64, side, side, side, device=device, requires_grad=True)
    best = 0.0
    for _ in range(4):
        start = clock(device)
        with torch.autocast(device, torch.bfloat16, enabled=precision != "32-true"):
            layer(x).mean().backward()
        best = max(best, 3 * 27 * 64 * x.numel() / (clock(device) - start))
    return best


def heaviest(network: nn.Module, made, device: str) -> str:
    """The kernel that takes most of a forward and backward pass, with its share."""
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=kinds) as seen:
        loss_of(network, network(made[0]), made[1]).backward()
    name = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    found = seen.key_averages()
    most = max(found, key=lambda each: getattr(each, name))
    return f"{most.key} {getattr(most, name) / sum(getattr(each, name) for each in found):.0%}"


def memory(device: str) -> float:
    """The most memory so far, in MB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def measure_line(line: dict, steps: int, quick: bool) -> dict:
    """One line of the table."""
    device, precision, task, side = line["device"], line["precision"], line["task"], line["side"]
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        read = reader(task, side, line["batch"], Path(folder))
        before = memory(device) if device == "cpu" else 0.0
        network = new_network(task, side, peer=False).to(device)
        if line["compiled"]:
            network.encoder.forward = torch.compile(network.encoder.forward)
        ours = time_ours(network, read, steps, device, precision)
        peak, rate = memory(device) - before, machine_rate(device, precision, quick)

        batch = read(0)
        batch = moved(batch, device)
        counted = new_network(task, side, peer=False).to(device)
        made = question(counted, batch, 0)
        counted.train()
        work = multiplications(counted, made)
        peer = time_plain(new_network(task, side, peer=True).to(device), read, steps, device, precision)
        times = ours["s_step"] / peer
        kernel = heaviest(counted, made, device) if times > 1 else ""
    installed = importlib.util.find_spec(PEER) is not None
    return line | {"widths": "-".join(map(str, (SIZES[side][0], SIZES[side][-1]))), "s_step": ours["s_step"],
                   "volumes_per_s": line["batch"] / ours["s_step"], "read": ours["read"], "ask": ours["ask"],
                   "GMul": work / 1e9, "rate": work / ours["s_step"] / rate, "machine_GMul_per_s": rate / 1e9,
                   "peak_MB": peak, "peer": PEER if installed else "the same, PyTorch's convolutions",
                   "s_peer": peer, "times_peer": times, "kernel": kernel, "note": ""}


# The table.


def rounded(line: dict) -> dict:
    return {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in line.items()}


def measured_apart(line: dict, args: argparse.Namespace) -> dict:
    """A line measured by a program of its own on a CPU, whose memory is then its own; here on a GPU."""
    if line["device"] != "cpu":
        try:
            return measure_line(line, args.steps, args.quick)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return line | {"note": "out of memory"}
    needed, free = 9 * line["batch"] * (line["side"] / 128) ** 3, free_memory()  # GB
    if needed > free:
        return line | {"note": f"left out: about {needed:.0f} GB needed, {free:.0f} GB free"}
    program = [sys.executable, __file__, "--line", json.dumps(line), "--steps", str(args.steps)]
    done = subprocess.run(program + ["--quick"] * args.quick, capture_output=True, text=True)
    if done.returncode:
        return line | {"note": f"failed: {done.stderr.strip().splitlines()[-1:]}"}
    return json.loads(done.stdout.splitlines()[-1])


def free_memory() -> float:
    """GB."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9


def write(lines: list[dict], file: Path) -> None:
    names = list(dict.fromkeys(name for line in sorted(lines, key=len, reverse=True) for name in line))
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    with open(part, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, names)
        writer.writeheader()
        writer.writerows(lines)
    part.replace(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/bench/step_rates.csv"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tasks", nargs="+", default=[*NAMES, FINETUNING])
    parser.add_argument("--sides", nargs="+", type=int, default=[48, 128], help="voxels, of 48, 128 and 24")
    parser.add_argument("--batch", nargs="+", type=int, help="volumes a step; 1 and 2, and at 128³ 1")
    parser.add_argument("--precision", nargs="+", default=["32-true"], help="32-true, bf16-mixed")
    parser.add_argument("--compile", action="store_true", help="compile the encoder")
    parser.add_argument("--steps", type=int, default=3, help="steps that are timed")
    parser.add_argument("--resume", action="store_true", help="keep the lines that are in the table")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to try it")
    parser.add_argument("--line", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.line:
        print(json.dumps(rounded(measure_line(json.loads(args.line), args.steps, args.quick))))
        return
    if importlib.util.find_spec(PEER) is None:
        print(f"{PEER} is not installed: the peer is the same network with PyTorch's own convolutions.")
    lines = list(csv.DictReader(args.out.open())) if args.resume and args.out.exists() else []
    for side in [24] if args.quick else args.sides:
        for n in args.batch or ([1] if side == 128 else [1, 2]):
            for precision in args.precision:
                for task in args.tasks:
                    n_here = max(n, 2 if task == "exemplar" else 1)  # it compares two people
                    line = dict(zip(KEY, (task, side, n_here, args.device, precision, args.compile)))
                    if any(all(old[name] == str(line[name]) for name in KEY) for old in lines):
                        continue
                    lines.append(rounded(measured_apart(line, args)))
                    write(lines, args.out)
                    print({k: v for k, v in lines[-1].items() if v}, flush=True)


if __name__ == "__main__":
    main()
