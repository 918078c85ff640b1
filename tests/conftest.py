"""Shared pieces: small cohorts, stores and runs, the folder of real scans where there is one, and other processes.

What takes seconds to import is imported where it is needed.
"""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "data_samples" / "Task01_TumourBrains"
SMALL = (8, 16, 32)  # filters of a network that trains in seconds
SSL3D = "import sys\nfrom ssl3d.cli import main\nmain(sys.argv[1:])"  # what the command does once it is imported
RNG = np.random.default_rng(0)

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what is to run in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # or Ctrl-C could not be tested


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """The sample brains at 16 voxels a side."""
    from ssl3d.data.prepare import prepare

    return prepare(SAMPLES, tmp_path_factory.mktemp("stores") / "brains", size=16, progress=False)


@pytest.fixture(scope="session")
def encoder(store, tmp_path_factory) -> Path:
    """A short pretraining run on the sample brains."""
    from ssl3d.training.pretrain import pretrain

    out = tmp_path_factory.mktemp("runs") / "rot"
    return pretrain("rotation", store.folder, out, epochs=2, widths=SMALL, progress=False)


def new_network(store, encoder=None, **how):
    """A network for the masks of a store before its first step, and where its weights come from."""
    from ssl3d.downstream.finetune import filled, starting_network
    from ssl3d.downstream.segmentation import Segmentation
    from ssl3d.settings import Finetuning

    goal = Segmentation()
    return starting_network(store, goal, goal.facts(store, {}, []), filled(Finetuning(encoder=encoder, **how), goal))


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> tuple[Path, list[dict]]:
    """A finished toy experiment and its rows."""
    from test_experiments import TOY

    from ssl3d.evidence.experiments import run_experiment

    out = tmp_path_factory.mktemp("toy") / "toy"
    return out, run_experiment(TOY, out, progress=False)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real cohorts that $SSL3D_DATA names; the test is skipped where it names none."""
    folder = os.environ.get("SSL3D_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SSL3D_DATA does not name a folder of real cohorts")
    return Path(folder).resolve()


def python(code: str, *args: str, check: bool = True, **kwargs) -> subprocess.CompletedProcess:
    """Run a piece of Python in a process of its own, away from the checkout."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        check=check,
        capture_output=True,
        text=True,
        cwd=kwargs.pop("cwd", "/"),
        **kwargs,
    )


def begin(code: str | Path, *args: object, said: Path | None = None) -> multiprocessing.Process:
    """Begin a piece or a file of Python in a process of its own, which finds PyTorch and the package imported.

    It is forked from a process that has done nothing else, since each import takes seconds. What it says goes into the
    files stdout and stderr of the folder `said`.
    """
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["pytest", "ssl3d.cli", "ssl3d.evidence.experiments", "ssl3d.evidence.report"])
    process = forks.Process(target=_run, args=(code, [*map(str, args)], said))
    process.start()
    return process


def _run(code: str | Path, args: list[str], said: Path | None) -> None:
    os.chdir("/")
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(said / name if said else os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    sys.argv = [str(code) if isinstance(code, Path) else "-c", *args]
    sys.modules["__main__"] = main = ModuleType("__main__")
    exec(compile(code.read_text() if isinstance(code, Path) else code, sys.argv[0], "exec"), vars(main))


def ended(process: multiprocessing.Process, seconds: float = 300) -> int:
    """Wait for a process; its exit status, -9 if it was killed."""
    process.join(seconds)
    assert process.exitcode is not None, f"it goes on after {seconds} s"
    return process.exitcode


def checkpoint_step(out: Path) -> int:
    """The step after which the checkpoint of a run was written."""
    import torch

    return torch.load(out / "last.ckpt", weights_only=True, map_location="cpu")["global_step"]


def ssl3d(*args: object, folder: Path) -> subprocess.CompletedProcess:
    """The command in a process of its own; what it says passes through files in this folder."""
    status = ended(begin(SSL3D, *args, said=folder), 600)
    out, err = ((folder / name).read_text() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess([*map(str, args)], status, out, err)


def write_nifti(path: Path, array: np.ndarray, affine=None) -> Path:
    """Write an array as NIfTI."""
    import nibabel as nib

    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def volumes(folder: Path, *names: str, mask=(), codes=(0, 1, 2)) -> Path:
    """Volumes under these names, and masks with these codes."""
    for name in (*names, *mask):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        write_nifti(folder / f"{name}.nii.gz", RNG.random((8, 9, 10)))
    for name in mask:
        write_nifti(folder / f"{name}.nii.gz", RNG.choice(codes, (8, 9, 10)).astype(np.uint8))
    return folder


def msd(folder: Path, n: int = 3, **changes) -> Path:
    """A small Decathlon task."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for i in range(n):
        write_nifti(folder / f"imagesTr/c{i}.nii.gz", RNG.random((8, 9, 10)))
        write_nifti(folder / f"labelsTr/c{i}.nii.gz", RNG.integers(0, 3, (8, 9, 10)).astype(np.uint8))
    info = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "a", "2": "b"},
        "training": [{"image": f"./imagesTr/c{i}.nii.gz", "label": f"./labelsTr/c{i}.nii.gz"} for i in range(n)],
    }
    (folder / "dataset.json").write_text(json.dumps(info | changes))
    return folder
