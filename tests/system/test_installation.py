"""The package as a user installs it: what is in it, what it needs, and how quickly it answers."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from conftest import ROOT, python

import ssl3d

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


def without_our_path() -> dict[str, str]:
    """The environment of a user, who has no PYTHONPATH: pip would find the package there and install nothing."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


@pytest.fixture(scope="module")
def user(tmp_path_factory) -> Path:
    """A fresh virtual environment with the wheel; what the wheel requires is taken from this one."""
    place = tmp_path_factory.mktemp("user")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(place), str(ROOT)],
        check=True,
        env=without_our_path(),
    )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place / "env")], check=True)
    wheel = next(place.glob("*.whl"))
    home = place / "env" / "bin" / "python"
    install = [*pip, "--python", str(home), "install", "-q", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, env=without_our_path())
    packages = next((place / "env" / "lib").glob("python*")) / "site-packages"
    (packages / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (packages / "sitecustomize.py").write_text(OFFLINE)
    return place


def run(user: Path, *command: str) -> subprocess.CompletedProcess:
    env = without_our_path() | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=user, env=env, capture_output=True, text=True, timeout=600)


def test_tests_import_the_installed_package():
    assert ROOT / "ssl3d" != Path(ssl3d.__file__).parent


def test_wheel_holds_the_package_only(user):
    names = zipfile.ZipFile(next(user.glob("*.whl"))).namelist()
    assert any(n == "ssl3d/tasks/rotation.py" for n in names)
    assert all(n.startswith(("ssl3d/", f"ssl3d-{ssl3d.__version__}.dist-info/")) for n in names), names
    typed = ("ssl3d/py.typed", "ssl3d/__init__.pyi")
    others = [n for n in names if n.startswith("ssl3d/") and not n.endswith(".py") and n not in typed]
    games = [n for n in others if n.startswith("ssl3d/games/")]
    assert {n.rpartition(".")[2] for n in games} == {"js", "css"} and "ssl3d/games/slices.js" in games
    rest = [n for n in others if n not in games]
    assert rest and all(n.startswith("ssl3d/demo_scans/") for n in rest), "the scans of the demo, games, and no more"


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
        "from ssl3d.cli import main; main(['prepare', '/no/such/folder', '--out', '/tmp/never'])",
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


def test_the_demo_needs_no_clone(user):
    bin = user / "env" / "bin"
    where = run(user, str(bin / "python"), "-c", "import ssl3d; print(ssl3d.__file__)")
    assert where.stdout.startswith(str(user)), where.stderr
    blocked = run(user, str(bin / "python"), "-c", "import nilearn")
    assert "nilearn is blocked" in blocked.stderr
    online = run(user, str(bin / "python"), "-c", "import urllib.request as r; r.urlopen('http://example.org')")
    assert "the network is blocked" in online.stderr
    demo = run(user, str(bin / "ssl3d"), "demo", "--out", "demo", "--seeds", "1", "--steps", "2")
    assert demo.returncode == 0, demo.stderr
    assert "demo_scans" in demo.stdout and "32 cases of 32 subjects" in demo.stdout
    assert (user / "demo" / "results.csv").exists() and (user / "demo" / "report.html").exists()


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
    clean = without_our_path()
    install = [*pip, "install", "-q", "--no-deps", "--no-build-isolation", "-e", str(clone)]
    subprocess.run(install, check=True, env=clean)
    code = "import ssl3d; print(ssl3d.__file__, ssl3d.__version__, ssl3d.InputError.__name__)"
    for place in (tmp_path, clone, Path("/")):
        said = subprocess.run(
            [str(env / "bin" / "python"), "-c", code], cwd=place, env=clean, capture_output=True, text=True
        )
        assert said.stdout.split()[0] == str(clone / "ssl3d" / "__init__.py"), (place, said.stdout, said.stderr)
