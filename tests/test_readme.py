"""What the README promises, and the pages on which it is detailed."""

import json
import os
import re
import shutil
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import ROOT, SAMPLES, SMALL

import ssl3d

README = (ROOT / "README.md").read_text(encoding="utf-8")
(TEN_LINES,) = re.findall(r"```python\n(.*?)```", README, re.S)


def cells(name):
    return json.loads((ROOT / "nbs" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def words_of(name):
    return ["".join(cell["source"]) for cell in cells(name) if cell["cell_type"] == "markdown"]


BLOCKS = re.findall(r"```python\n(.*?)```", "\n".join(words_of("82_reference")), re.S)


@pytest.mark.quick
def test_the_front_door_is_short():
    assert len(README.split()) < 900
    for page in ("index", "06_glossary", "82_reference"):
        long = [text[:40] for text in words_of(page) if len(text.split()) > 200]
        assert not long, f"{page}: more than 200 words in {long}"


@pytest.mark.quick
def test_the_index_trains_nothing_and_begins_with_a_game():
    code = ["".join(cell["source"]) for cell in cells("index") if cell["cell_type"] == "code"]
    trained = [line for text in code for line in text.splitlines()
               if re.search(r"\b(pretrain|finetune|prepare|experiment|demo|fit_plainly)\(", line)]  # fmt: skip
    assert not trained, trained
    place = next(k for k, cell in enumerate(cells("index")) if "play_jigsaw(" in "".join(cell["source"])[-60:])
    above = cells("index")[:place]
    assert sum(len("".join(cell["source"]).split()) for cell in above if cell["cell_type"] == "markdown") < 250
    kinds = {kind for cell in above for out in cell.get("outputs", []) for kind in out.get("data", {})}
    assert "image/png" in kinds, "a picture stands above the game"


@pytest.mark.quick
def test_what_was_found_says_no_more_than_was_shown():
    """The words of the table, beside the verdicts of the committed results."""
    from ssl3d.downstream.metrics import read_scores
    from ssl3d.evidence.statistics import verdict

    rows = [line for line in README.splitlines() if line.startswith("| ")]
    found = {name: verdict([row for row in read_scores(ROOT / f"results/{name}/results.csv.gz")
                            if row["arm"] != "scratch_fast"])
             for name in ("hippocampus", "ixi_tissue", "ixi_age", "ixi_sex")}  # fmt: skip
    alike = [answer["verdict"] for answer in found["hippocampus"]].count("equivalent within 0.02")
    assert sum(f"**Equivalent within 0.02** in {alike} of 20" in row for row in rows) == 1
    blind = [answer["verdict"] for name in ("ixi_tissue", "ixi_age", "ixi_sex") for answer in found[name]]
    assert set(blind) == {"inconclusive"} and len(blind) == 50
    assert sum("**Could not be seen** in 20" in row for row in rows) == 1
    assert sum("**Could not be seen** in 30" in row for row in rows) == 1
    assert not re.search(r"\*\*(Better|Worse|No)\b", README)


def few_steps(monkeypatch, tmp_path):
    """Work in an empty folder, with a small network and two steps in each training."""
    short = {"progress": False, "accelerator": "cpu"}
    pretrain, finetune = ssl3d.pretrain, ssl3d.finetune
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ssl3d, "pretrain", lambda *args, **more: pretrain(
        *args, **more | short | {"epochs": 1, "steps": 2, "widths": SMALL}))  # fmt: skip
    monkeypatch.setattr(ssl3d, "finetune", lambda *args, **more: finetune(*args, **more | short | {"steps": 2}))


def test_the_ten_lines_fit_into_one_another(tmp_path, monkeypatch):
    assert len([line for line in TEN_LINES.splitlines() if line.strip()]) <= 10 and "predict(" in TEN_LINES
    few_steps(monkeypatch, tmp_path)
    names: dict = {}
    exec(TEN_LINES, names)
    assert [file.name for file in (tmp_path / "masks").glob("*.nii.gz")] == ["brain_006.nii.gz"]
    assert "brain_006" in names["store"].split("test"), "it is not predicted on a scan that was trained on"


@pytest.mark.long
def test_the_ten_lines_run_as_written(tmp_path):
    os.symlink(ROOT / "data_samples", tmp_path / "data_samples")
    said = subprocess.run([sys.executable, "-c", TEN_LINES], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Dice on the scans of 6 test cases" in said.stdout and (tmp_path / "masks/brain_006.nii.gz").exists()


def test_the_steps_of_the_reference_fit_into_one_another(tmp_path, monkeypatch):
    """The first block as it is written; only the steps are fewer and the network smaller than by default."""
    code = BLOCKS[0]
    assert len([line for line in code.splitlines() if "ssl3d.prepare" in line or "predict(" in line]) == 2
    few_steps(monkeypatch, tmp_path)
    shutil.copytree(SAMPLES, "SCANS")
    shutil.copytree(SAMPLES / "imagesTr", "NEW_SCANS", ignore=lambda _, names: sorted(names)[2:])
    (tmp_path / "my.yaml").write_text(
        "cohort: {source: SCANS, size: 16}\narms: {scratch: {}, rotation: {task: rotation, steps: 2}}\n"
        "label_fractions: [0.5]\nseeds: 1\nnetwork: {widths: [8, 16, 32]}\nfinetuning: {steps: 2}\n"
    )
    names: dict = {}
    exec(code, names)
    plt.close("all")
    assert sorted(file.name for file in (tmp_path / "masks").glob("*.nii.gz")) == [f"{n}.nii.gz" for n in names["ids"]]
    assert names["features"].shape == (2, SMALL[-1]) and np.isfinite(names["features"]).all()
    assert names["answer"].report().exists() and names["answer"].verdicts


@pytest.mark.quick
def test_the_loop_of_the_reference_runs_with_a_network_of_ones_own():
    images = torch.rand(4, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv3d(4, 8, 3, 2, 1))
    names = {"ssl3d": ssl3d, "images": images, "my_network": network, "my_loader": [images, images]}
    exec(BLOCKS[1], names)
    names["loss"].backward()
    assert torch.isfinite(names["loss"]) and all(p.grad is not None for p in network.parameters())


@pytest.mark.quick
def test_the_description_of_the_reference_can_be_read(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", "\n".join(words_of("82_reference")), re.S)
    (tmp_path / "my.yaml").write_text(text, encoding="utf-8")
    described = ssl3d.read_experiment(tmp_path / "my.yaml")
    assert described.label_fractions == [0.05, 0.25, 1.0] and described.delta == 0.02


@pytest.mark.quick
def test_every_command_of_the_reference_is_one():
    from ssl3d.cli import commands

    lines = re.findall(r"^ssl3d (\w+)", "\n".join(words_of("82_reference")), re.M)
    assert set(lines) == set(commands()), "each command once, and no other"


def test_links_and_pictures_are_there():
    links = re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", README)
    assert links and not [link for link in links if not (ROOT / link).exists()]
    assert any(link.endswith(".png") for link in links)
