"""Shared pieces: the sample cohort, small stores, and the folder of real scans where there is one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ssl3d.data.prepare import prepare
from ssl3d.data.store import Store

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "data_samples" / "Task01_TumourBrains"
SMALL = (8, 16, 32)  # filters of a network that trains in seconds

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what is to run in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # or Ctrl-C could not be tested


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Store:
    """The sample brains at 16 voxels a side."""
    return prepare(SAMPLES, tmp_path_factory.mktemp("stores") / "brains", size=16, progress=False)


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


def write_nifti(path: Path, array: np.ndarray, affine=None) -> Path:
    """Write an array as NIfTI."""
    import nibabel as nib

    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path
