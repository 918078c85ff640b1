"""The wheel in an environment of its own, without a clone, without developers' packages and without a network."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import ROOT

OFFLINE = """
import socket, sys


def refused(*args, **kwargs):
    raise OSError("the network is blocked")


socket.socket.connect = socket.getaddrinfo = socket.create_connection = refused


class Blocked:  # what a user without extras does not have
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("nilearn", "nbdev", "fastcore", "jupyterlab", "ipyniivue", "ray", "pytest"):
            raise ModuleNotFoundError(f"{name} is blocked")


sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture(scope="module")
def user(tmp_path_factory) -> Path:
    """A fresh virtual environment with the wheel; what the wheel requires is taken from this one."""
    place = tmp_path_factory.mktemp("user")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(place), str(ROOT)], check=True
    )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place / "env")], check=True)
    wheel = next(place.glob("*.whl"))
    home = place / "env" / "bin" / "python"
    subprocess.run([*pip, "--python", str(home), "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    packages = next((place / "env" / "lib").glob("python*")) / "site-packages"
    (packages / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (packages / "sitecustomize.py").write_text(OFFLINE)
    return place


def run(user: Path, *command: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        command, cwd=user, env=clean | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600
    )


def test_the_demo_needs_no_clone(user):
    bin = user / "env" / "bin"
    where = run(user, str(bin / "python"), "-c", "import ssl3d; print(ssl3d.__file__)")
    assert where.stdout.startswith(str(user)), where.stderr
    blocked = run(user, str(bin / "python"), "-c", "import nilearn")
    assert "nilearn is blocked" in blocked.stderr
    online = run(user, str(bin / "python"), "-c", "import urllib.request as r; r.urlopen('http://example.org')")
    assert "the network is blocked" in online.stderr
    demo = run(user, str(bin / "ssl3d"), "demo", "--out", "demo", "--seeds", "1", "--steps", "2", "--epochs", "1")
    assert demo.returncode == 0, demo.stderr
    assert "demo_scans" in demo.stdout and "32 cases of 32 subjects" in demo.stdout
    assert (user / "demo" / "results.csv").exists() and (user / "demo" / "case.png").exists()


def test_the_notice_of_the_scans_comes_with_them(user):
    scans = next((user / "env" / "lib").glob("python*/site-packages/ssl3d/demo_scans"))
    assert "McConnell Brain Imaging Centre" in (scans / "NOTICE.txt").read_text()
    assert len(list(scans.glob("imagesTr/*.nii.gz"))) == len(list(scans.glob("labelsTr/*.nii.gz"))) == 32
    assert sum(file.stat().st_size for file in scans.rglob("*")) < 4e6


def test_a_folder_named_as_the_package_does_not_hide_it(tmp_path):
    """A clone is called ssl3d; Python that is started beside it, in it, or anywhere, imports the same package."""
    clone = tmp_path / "ssl3d"
    clone.mkdir()
    for name in ("ssl3d", "setup.py", "settings.ini", "README.md", "LICENSE", "data_samples"):
        (clone / name).symlink_to(ROOT / name)
    env = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(env / "bin" / "python")]
    packages = next((env / "lib").glob("python*")) / "site-packages"
    (packages / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-build-isolation", "-e", str(clone)], check=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    code = "import ssl3d; print(ssl3d.__file__, ssl3d.__version__, ssl3d.InputError.__name__)"
    for place in (tmp_path, clone, Path("/")):
        said = subprocess.run(
            [str(env / "bin" / "python"), "-c", code], cwd=place, env=clean, capture_output=True, text=True
        )
        assert said.stdout.split()[0] == str(clone / "ssl3d" / "__init__.py"), (place, said.stdout, said.stderr)
