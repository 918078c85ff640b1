"""CONTRIBUTING shows how a task is added. Here its example becomes a task."""

import importlib.util
import re
import sys
import types

import pytest
import torch
from conftest import ROOT, SMALL

from ssl3d import tasks
from ssl3d.data.prepare import prepare
from ssl3d.networks.encoders import make_encoder
from ssl3d.networks.weights import load_encoder
from ssl3d.tasks.base import evaluate, fit_plainly
from ssl3d.training import pretrain as pretrain_module
from ssl3d.training.pretrain import pretrain
from ssl3d.training.runs import read_log


@pytest.fixture
def mirror(monkeypatch):
    """The class from the page, under the name that the page's line gives to it."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code, line = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (name, kind), *more = eval("{" + line + "}").items()
    assert not more
    module = types.ModuleType(f"ssl3d.tasks.{name}")
    exec(compile(code, "CONTRIBUTING.md", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(tasks.NAMES, name, kind)
    monkeypatch.delitem(vars(tasks), "TASKS", raising=False)  # it is put together anew from the names ...
    monkeypatch.setattr(pretrain_module, "TASKS", tasks.TASKS)  # ... and pretrain has an old one
    assert tasks.TASKS[name] is getattr(module, kind)
    yield tasks.TASKS[name]
    vars(tasks).pop("TASKS")


@pytest.mark.parametrize("dims", [2, 3])
def test_the_sixth_task_can_be_learned(mirror, dims):
    images = torch.rand(12, 1, *[16] * dims, generator=torch.Generator().manual_seed(0)) * 0.2
    images[:, :, :8] += 0.8  # something lies on the left
    torch.manual_seed(0)
    task = mirror(make_encoder("unet", dims, 1, SMALL, seed=0))
    fit_plainly(task, images[:8], n_steps=40)
    unseen = evaluate(task, images[8:])
    assert unseen.low > unseen.chance - 0.01 and unseen.accuracy > 0.9
    assert len(task.show(images)) == 2


def test_the_sixth_task_pretrains(mirror, tmp_path):
    store = prepare(ROOT / "data_samples" / "Task01_TumourBrains", tmp_path / "store", size=16, progress=False)
    run = pretrain(
        "mirror",
        store.folder,
        tmp_path / "run",
        epochs=1,
        batch_size=8,
        widths=SMALL,
        progress=False,
        options={"samples_per_image": 2},
    )
    assert load_encoder(run).channels == SMALL and read_log(run)["chance"][0] == 0.5


def test_the_benchmark_runs(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("bench_tasks", ROOT / "benchmarks" / "tasks.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    monkeypatch.setattr(bench, "SIDE", {3: 40, 2: 64})
    monkeypatch.setattr(bench, "IMAGES", {3: 2, 2: 2})
    monkeypatch.setattr(bench, "copy_rate", lambda device: (10.0, 5.0))  # not on 256 MB
    threads = torch.get_num_threads()
    for dims in (2, 3):
        lines = bench.time_making(dims, 1, "cpu", 1, n=1)
        assert {line["task"] for line in lines if line["way"] == "ssl3d"} == set(tasks.NAMES)
        assert all(line["GB_per_s"] > 0 for line in lines)
    torch.set_num_threads(threads)
    bench.show(lines, tmp_path / "table.csv")
    assert len((tmp_path / "table.csv").read_text().splitlines()) == len(lines) + 1
