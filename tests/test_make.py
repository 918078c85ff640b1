"""What `make` tells while it installs, and how it starts JupyterLab."""

import importlib.util
import shutil
import subprocess
import sys
from types import ModuleType

import pytest
from conftest import ROOT

pytestmark = pytest.mark.quick


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("root_user", [False, True])
def test_the_command_line_of_jupyterlab(root_user):
    line = tool("lab").command(["--port", "9999"], root_user)
    assert line[:4] == [sys.executable, "-m", "jupyterlab", str(ROOT / "nbs/index.ipynb")]
    assert f"--ServerApp.root_dir={ROOT}" in line, "so that ../CONTRIBUTING.md is inside"
    assert ("--allow-root" in line) == root_user and line[-2:] == ["--port", "9999"], "options of the user win"
    assert "--LabApp.news_url=None" in line and any("NeverCheckForUpdate" in word for word in line)


def test_each_kernel_has_one_thread_unless_told_otherwise():
    environment = tool("lab").environment
    assert environment({"PATH": "/bin"}) == {"PATH": "/bin", "OMP_NUM_THREADS": "1"}
    assert environment({"OMP_NUM_THREADS": "4"})["OMP_NUM_THREADS"] == "4"


def test_the_address_of_the_index():
    server = {"url": "http://localhost:9999/", "token": "abc"}
    assert tool("lab").address(server) == "http://localhost:9999/lab/tree/nbs/index.ipynb?token=abc"
    assert tool("lab").address(server | {"token": ""}).endswith("index.ipynb")


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(
    "target, said",
    [("lab", ["tools/lab.py --port 9999"]), ("demo", ["ssl3d demo --out runs/demo"]),
     (".venv/.ready", ["tools/install.py .venv", "touch .venv/.ready"])],
)  # fmt: skip
def test_what_make_runs(target, said):
    line = ["make", "-C", str(ROOT), "--no-print-directory", "-n", "-B", target, "ARGS=--port 9999"]
    found = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert all(words in found for words in said), found
    assert "tools/install.py" in found and "pip install -q" not in found.partition("tools/install.py")[0]


def test_how_far_an_installation_is():
    progress = tool("install").Progress(4)
    assert progress.told(1, 0) == "0:01  fetched 0 of about 4 packages: what is needed"
    for line in (
        "Obtaining file:///somewhere",
        "Collecting torch>=2.8 (from ssl3d==0.1.0)",
        "  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (190.2 MB)",
        "Processing /opt/files/scikit_learn-1.9.1-cp311-cp311-manylinux_2_27_x86_64.whl (from ssl3d==0.1.0)",
        "  Using cached numpy-2.4.6-cp311-cp311-manylinux.whl (16.9 MB)",
    ):
        progress.take(line)
    assert progress.told(70, 0) == "1:10  fetched 2 of about 4 packages: numpy (16.9 MB); about 8 min left"
    progress.take("Installing collected packages: a, b, c, d")
    assert progress.told(100, 2) == "1:40  unpacked 2 of 4 packages; about 3 min left"
    shares = [progress.done(n) for n in range(5)]
    assert shares == sorted(shares) and shares[-1] == 1.0 and progress.told(130, 9) == "2:10  unpacked 4 of 4 packages"


def test_an_installation_that_fails_tells_why(tmp_path, monkeypatch, capsys):
    install = tool("install")
    (tmp_path / "venv/bin").mkdir(parents=True)
    pip = tmp_path / "venv/bin/pip"
    pip.write_text("#!/bin/sh\necho Collecting torch\necho 'ERROR: no space left'\nexit 3\n")
    pip.chmod(0o755)
    monkeypatch.setattr(install.subprocess, "run", lambda *line, **how: None)  # no environment is made
    assert install.main(str(tmp_path / "venv")) == 3
    said = capsys.readouterr()
    assert "This is done once" in said.out and "no space left" in said.err and "install.log" in said.err
    pip.write_text("#!/bin/sh\necho asked: $@\nexit 0\n")
    assert install.main(str(tmp_path / "venv")) == 0 and "Installed in 0:0" in capsys.readouterr().out
    asked = (tmp_path / "venv/install.log").read_text().splitlines()
    assert len(asked) == 2 and asked[0].endswith("-e .[dev]")
    assert asked[1].endswith("--no-deps dynamic-network-architectures"), "without timm and torchvision"
