"""The package as a user installs it: what is in it, what it needs, and how quickly it answers."""

import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from conftest import ROOT, python

import ssl3d


def test_tests_import_the_installed_package():
    assert ROOT / "ssl3d" != Path(ssl3d.__file__).parent


def test_wheel_holds_the_package_only(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT],
        check=True,
    )
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert any(n == "ssl3d/tasks/rotation.py" for n in names)
    assert all(n.startswith(("ssl3d/", f"ssl3d-{ssl3d.__version__}.dist-info/")) for n in names), names
    assert all(n.endswith(".py") for n in names if n.startswith("ssl3d/"))


# Blocks every distribution that is not needed, directly or through others, by ssl3d without extras.
ONLY_RUNTIME = """
import sys, re, importlib.metadata as md
from packaging.requirements import Requirement

def closure(name, extras=(), seen=None):
    seen = set() if seen is None else seen
    key = (re.sub(r"[-_.]+", "-", name).lower(), tuple(sorted(extras)))
    if key in seen: return seen
    seen.add(key)
    try: needs = md.requires(name) or []
    except md.PackageNotFoundError: return seen
    for text in needs:
        r = Requirement(text)
        if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in ("", *extras)):
            closure(r.name, r.extras, seen)
    return seen

allowed = {name for name, _ in closure("ssl3d")}
owners = {top: {re.sub(r"[-_.]+", "-", d).lower() for d in dists} for top, dists in md.packages_distributions().items()}

class Only:  # finds what the runtime requirements own, and nothing else
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in owners and top != "ssl3d" and not owners[top] & allowed:
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Only(finder) for finder in sys.meta_path]
for blocked in ("nbdev", "fastcore", "jupyterlab", "nilearn", "pytest"):
    try: __import__(blocked)
    except ModuleNotFoundError: pass
    else: raise SystemExit(f"{blocked} should have been blocked")
import pkgutil, importlib, ssl3d
for module in pkgutil.walk_packages(ssl3d.__path__, "ssl3d."):
    importlib.import_module(module.name)
print("all modules imported")
"""


def test_every_module_imports_with_the_runtime_requirements_only():
    assert "all modules imported" in python(ONLY_RUNTIME).stdout


def test_nbdev_is_for_developers_only():
    runtime = [r for r in requires("ssl3d") if "extra" not in r]
    assert not any(name in r for r in runtime for name in ("nbdev", "fastcore", "jupyter", "nilearn"))


@pytest.mark.parametrize(
    "code",
    [
        "import ssl3d",
        "from ssl3d.tasks import NAMES",
        "from ssl3d.cli import main; main(['--help'])",
        "from ssl3d.cli import main; main(['pretrain', '--help'])",
        "from ssl3d.cli import main; main(['prepare', '/no/such/folder', '/tmp/never'])",
        "from ssl3d.cli import main; main(['pretrain', 'rotation', '/no/such/store', '--out', '/tmp/never'])",
        "from ssl3d.cli import main; main(['finetune', '/no/such/store', '--out', '/tmp/never'])",
    ],
)
def test_torch_is_not_loaded_where_it_is_not_needed(code):
    check = f"""
import sys
try:
    {code}
except SystemExit:
    pass
heavy = [m for m in ("torch", "monai", "lightning", "matplotlib") if m in sys.modules]
assert not heavy, heavy
"""
    python(check)


def test_listing_tasks_loads_neither_monai_nor_lightning():
    python(
        "import sys; from ssl3d.tasks import TASKS; assert TASKS['rotation']\n"
        "assert not {'monai', 'lightning', 'matplotlib'} & set(sys.modules)"
    )
