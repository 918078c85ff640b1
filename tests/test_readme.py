"""What the README promises."""

import os
import re
import shutil
import subprocess
import sys
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import ROOT, SAMPLES, SMALL

import ssl3d

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_steps_of_the_readme_fit_into_one_another(tmp_path, monkeypatch):
    """The first block as it is written; only the steps are fewer and the network smaller than by default."""
    code, short = BLOCKS[0], {"progress": False, "accelerator": "cpu", "steps": 2}
    assert len([line for line in code.splitlines() if "ssl3d.prepare" in line or "predict(" in line]) == 2
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ssl3d, "pretrain", partial(ssl3d.pretrain, widths=SMALL, **short))
    monkeypatch.setattr(ssl3d, "finetune", partial(ssl3d.finetune, **short))
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
def test_the_loop_of_the_readme_runs_with_a_network_of_ones_own():
    images = torch.rand(4, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv3d(4, 8, 3, 2, 1))
    names = {"ssl3d": ssl3d, "images": images, "my_network": network, "my_loader": [images, images]}
    exec(BLOCKS[1], names)
    names["loss"].backward()
    assert torch.isfinite(names["loss"]) and all(p.grad is not None for p in network.parameters())


@pytest.mark.long
def test_the_python_example_runs_as_written(tmp_path):
    os.symlink(ROOT / "data_samples", tmp_path / "data_samples")
    code = BLOCKS[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said in README.replace("\n    ", "\n") or "Dice on the scans of 6 test cases" in said


def test_links_and_pictures_are_there():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links and not [link for link in links if not (ROOT / link).exists()]
    assert any(link.endswith(".png") for link in links)
