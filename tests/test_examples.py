"""The scripts in examples/: they run as they stand, say what they promise, and need only the face of the library."""

import ast
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from conftest import ROOT, SAMPLES, begin, ended

import ssl3d

SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
THERE = "import os, runpy, sys; os.chdir(sys.argv[1]); del sys.argv[:2]; runpy.run_path(*sys.argv[:1], {}, '__main__')"


def said_by(name: str, folder: Path, *args: object) -> str:
    """Run a script in a process of its own, from a folder; what it says."""
    status = ended(begin(THERE, folder, ROOT / "examples" / name, *args, said=folder))
    assert status == 0, (folder / "stderr").read_text()
    return (folder / "stdout").read_text()


def numbers(pattern: str, text: str) -> list[float]:
    """The numbers in the last place of a text that fits a pattern."""
    return [float(found) for found in re.findall(pattern, text)[-1]]


def test_the_plain_loop_learns_and_its_weights_stay_the_users(tmp_path):
    said, out = said_by("plain_loop.py", tmp_path), tmp_path / "runs" / "plain_loop"
    loss, accuracy, chance = numbers(r"epoch \d+: loss (\S+), accuracy (\S+), chance (\S+)\n", said)
    assert chance == 0.1 and 3 * chance < accuracy <= 1 and 0 < loss < np.log(10)
    weights = torch.load(out / "mine.pt", weights_only=True)
    assert list(weights)[0] == "0.0.weight" and weights["0.0.weight"].shape == (16, 4, 3, 3, 3)
    assert all(weight.isfinite().all() for weight in weights.values())
    assert f"mine.pt: {len(weights)} weights; a fresh network with them gives the same maps" in said


def test_lightning_learns_and_its_encoder_segments(tmp_path):
    out = tmp_path / "out"
    said = said_by("with_lightning.py", tmp_path, SAMPLES, out)
    loss, accuracy, chance = numbers(r"rotation, loss (\S+), accuracy (\S+), chance (\S+)\n", said)
    assert chance == 0.1 and 3 * chance < accuracy <= 1 and 0 < loss < np.log(10)
    run = ssl3d.Run(out / "masks")
    dice = np.array([row["dice"] for row in run.scores])
    assert len(dice) == 6 * 3 and np.isfinite(dice).all() and 0 < dice.max() <= 1
    scored = r"Dice on the scans of 6 test cases: .*oedema 0\.\d+"
    assert re.search(rf"masks: weights \d+ loaded, 0 widened, \d+ new\. {scored}", said)
    assert "scores of the classes of a brain: (1, 4, 24, 24, 24)" in said
    assert len(run.log["loss"]) == run.settings["steps"] == 60


def test_a_monai_dataset_gives_a_curve_and_features(tmp_path):
    said, out = said_by("from_monai_dataset.py", tmp_path, SAMPLES), tmp_path / "runs" / "from_monai_dataset"
    right, chance = numbers(r"learned jigsaw in 80 steps: (\S+) of .* right at the end, (\S+) would be by chance", said)
    assert chance == 0.04 and 3 * chance < right <= 1
    assert matplotlib.image.imread(out / "curve.png").std() > 0
    kept = torch.load(out / "features.pt", weights_only=True)
    assert kept["features"].shape == (32, 64) and kept["features"].isfinite().all()
    assert len(kept["features"].unique(dim=0)) == len(set(kept["subject"])) == 32, "each brain has a vector of its own"
    again = ssl3d.load_encoder(out / "run")
    assert again.channels[-1] == 64 and again.card["task"] == "jigsaw"


@pytest.mark.quick
def test_there_are_three_and_the_pages_name_them():
    assert [script.name for script in SCRIPTS] == ["from_monai_dataset.py", "plain_loop.py", "with_lightning.py"]
    page = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert all(f"({script.name})" in page for script in SCRIPTS)
    assert "`examples/`" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.quick
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
class TestEveryScript:
    def test_it_is_short_and_says_how_to_run_it(self, script):
        text = script.read_text(encoding="utf-8")
        assert len(text.splitlines()) < 60
        assert f"python examples/{script.name} [SCANS] [OUT]\n" in ast.get_docstring(ast.parse(text))
        assert "\nscans = sys.argv[1] if len(sys.argv) > 1 else find_samples()\n" in text
        assert f'\nout = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/{script.stem}")\n' in text

    def test_it_uses_the_face_only(self, script):
        roots, deep, used = set(), set(), set()
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                deep |= {alias.name for alias in node.names if alias.name.startswith("ssl3d.")}
                roots |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                roots.add(node.module.split(".")[0])
                if node.module.split(".")[0] == "ssl3d":
                    deep |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ssl3d":
                used.add(node.attr)
        assert deep == {"ssl3d.demo_cohort.find_samples"}
        assert roots <= {"sys", "pathlib", "torch", "monai", "lightning", "ssl3d"}
        assert used and used <= {*dir(ssl3d)}
