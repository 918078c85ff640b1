"""One training on several devices: the same losses and weights as on one, and nothing done twice."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import SMALL, begin, ended

from ssl3d.errors import InputError
from ssl3d.files import read_table
from ssl3d.training.pretrain import pretrain
from ssl3d.training.runs import read_log

PROGRAM = """
import json, os, sys
from pathlib import Path

import torch

from ssl3d.downstream.finetune import finetune
from ssl3d.training.pretrain import pretrain

devices, store, out, runs = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4])
before, threads = set(os.environ), torch.get_num_threads()
for name, (task, settings) in runs.items():  # short steps: Adam would make much of a rounding of a gradient near zero
    settings |= {"widths": (8, 16, 32), "lr": 1e-4, "accelerator": "cpu", "devices": devices, "progress": False}
    run = finetune(store, out / name, **settings) if task is None else pretrain(task, store, out / name, **settings)
    print("made", run.name)
assert set(os.environ) == before and torch.get_num_threads() == threads
"""
RUNS = {
    "triplets": ("exemplar", {"steps": 4, "batch_size": 6, "options": {"negatives": "random", "samples_per_image": 2}}),
    "whole set": ("exemplar", {"steps": 4, "batch_size": 4, "options": {"loss": "triplet", "negatives": "dataset"}}),
    "nt-xent": ("exemplar", {"steps": 4, "batch_size": 4, "options": {"loss": "contrastive", "memory": 16}}),
    "cpc": ("cpc", {"steps": 4, "batch_size": 4, "options": {"grid": 3, "negatives": "batch"}, "probe": "mask"}),
    "dice": (None, {"steps": 4, "warmup": 2, "batch_size": 4, "class_weights": (1, 1, 2, 5), "track": 2}),
}


def train_apart(devices, store, out, runs, program=PROGRAM):
    """Run the program above in processes of its own; its exit status, and what it said."""
    (out / "program.py").write_text(program)
    status = ended(begin(out / "program.py", devices, store.folder, out, json.dumps(runs), said=out), 600)
    return status, (out / "stdout").read_text(), (out / "stderr").read_text()


@pytest.fixture(scope="module")
def both(store, tmp_path_factory):
    """The folders of all runs, by one process and by two; and what the programs printed."""
    folders = [tmp_path_factory.mktemp(f"by{devices}") for devices in (1, 2)]
    done = [train_apart(devices, store, folder, RUNS) for devices, folder in zip((1, 2), folders)]
    assert [status for status, *_ in done] == [0, 0], done
    return folders, [printed.splitlines() for _, printed, _ in done]


@pytest.mark.parametrize("name", RUNS)
def test_as_one(both, name):
    one, two = (folder / name for folder in both[0])
    losses = [read_log(run)["loss"] for run in (one, two)]
    assert len(losses[0]) == 4 and len(set(losses[0])) == 4
    assert np.allclose(*losses, rtol=1e-4), losses
    states = [torch.load(run / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"] for run in (one, two)]
    assert states[0].keys() == states[1].keys()
    means = [torch.cat([state[k]["exp_avg"].flatten() for k in state]) for state in states]  # of the gradients
    assert (means[0] - means[1]).norm() < 0.01 * means[0].norm(), "the gradients are those of the whole batch"


def test_one_result(both, store):
    (one, two), printed = both
    assert printed[0] == [f"made {name}" for name in RUNS]
    assert [line for line in dict.fromkeys(printed[1])] == printed[0] and printed[1].count("made dice") == 1
    scores = [read_table(folder / "dice" / "scores.csv") for folder in (one, two)]
    assert [(r["case"], r["class"]) for r in scores[0]] == [(r["case"], r["class"]) for r in scores[1]]
    assert np.allclose(*[[r["dice"] for r in rows] for rows in scores], atol=0.02)
    for name, column in (("dice", "dice"), ("cpc", "linear")):
        seen = [read_log(folder / name, "observed.csv") for folder in (one, two)]
        assert seen[0]["step"].tolist() == seen[1]["step"].tolist() == ([0, 2, 4] if name == "dice" else [0, 4])
        assert np.allclose(seen[0][column], seen[1][column], atol=0.02)


def test_the_number_of_devices_may_change(both, store, tmp_path):
    """A run that two processes left in the middle is finished by one, with the losses of one that never stopped."""
    broken = PROGRAM.replace("import torch\n", "import torch\nfrom ssl3d.tasks.exemplar import Exemplar\n").replace(
        "for name,",
        "calls, make = [], Exemplar.make\n"
        "def fail(*given):\n"
        "    calls.append(1)\n"
        "    if len(calls) > 53:\n"
        "        raise RuntimeError('the power is gone')\n"
        "    return make(*given)\n"
        "Exemplar.make = fail\n"
        "for name,",
        1,
    )
    long = {"nt-xent": (RUNS["nt-xent"][0], RUNS["nt-xent"][1] | {"steps": 56})}
    status, printed, said = train_apart(2, store, tmp_path, long, broken)
    assert status != 0 and "the power is gone" in said and "made" not in printed
    assert len(read_log(tmp_path / "nt-xent")["loss"]) == 52 and (tmp_path / "nt-xent" / "last.ckpt").exists()
    assert train_apart(1, store, tmp_path, long)[0] == 0
    losses = read_log(tmp_path / "nt-xent")["loss"]
    assert len(losses) == 56 and np.allclose(losses[:4], read_log(both[0][0] / "nt-xent")["loss"], rtol=1e-4)


def test_what_cannot_be_shared(store, tmp_path, monkeypatch):
    def refused(words, **settings):
        with pytest.raises(InputError, match=words):
            pretrain("rotation", store.folder, tmp_path / "run", widths=SMALL, steps=2, progress=False, **settings)
        assert not (tmp_path / "run").exists()

    refused("5 images per step cannot be shared evenly by 2 devices", batch_size=5, devices=2)
    refused("26 images per step cannot .* by 4", batch_size=64, devices=4)  # all that there are
    refused("devices is 0", devices=0)
    monkeypatch.setattr(sys, "argv", ["-c"])
    refused("put the call into a script", batch_size=4, devices=2)


def test_a_loss_that_is_no_number_ends_all_processes(store, tmp_path):
    line = ["pretrain", "rotation", str(store.folder), "--out", str(tmp_path / "run"), "--steps", "9", "--lr", "1e30"]
    line += ["--batch-size", "2", "--widths", "4,8", "--accelerator", "cpu", "--devices", "2"]
    (tmp_path / "program.py").write_text("from ssl3d.cli import main\nmain()\n")
    assert ended(begin(tmp_path / "program.py", *line, said=tmp_path), 120) == 1
    said = (tmp_path / "stderr").read_text()
    assert said.count("ssl3d: the loss is nan in step 2") == 1 and "Traceback" not in said
    assert {f.name for f in (tmp_path / "run").iterdir()} == {"settings.yaml", "train.lock", "log.csv", "failed.txt"}
