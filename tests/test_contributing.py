"""CONTRIBUTING shows how a task is added. Here its example becomes a task."""

import importlib.util
import re
import sys
import types

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL

from ssl3d import tasks
from ssl3d.data.prepare import prepare
from ssl3d.downstream import finetune as finetune_module
from ssl3d.downstream import goals
from ssl3d.downstream.metrics import read_scores
from ssl3d.errors import InputError
from ssl3d.evidence.statistics import verdict
from ssl3d.files import read_table
from ssl3d.networks.encoders import make_encoder
from ssl3d.networks.weights import load_encoder
from ssl3d.tasks.base import evaluate, fit_plainly
from ssl3d.training import pretrain as pretrain_module
from ssl3d.training.pretrain import pretrain
from ssl3d.training.runs import read_log


def from_page(package, place, monkeypatch):
    """The name, the class and the module of the code at a place of the page, and of the line after it."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code, line = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[place : place + 2]
    (name, kind), *more = eval("{" + line + "}").items()
    assert not more
    module = types.ModuleType(f"{package}.{name}")
    exec(compile(code, "CONTRIBUTING.md", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return name, kind, module


@pytest.fixture
def mirror(monkeypatch):
    """The class from the page, under the name that the page's line gives to it."""
    name, kind, module = from_page("ssl3d.tasks", 0, monkeypatch)
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


@pytest.fixture
def volume(monkeypatch):
    """The fourth goal of the page, in the list of goals, and `finetune` as it is with that list."""
    name, kind, module = from_page("ssl3d.downstream", 2, monkeypatch)
    monkeypatch.setitem(goals.GOALS, name, kind)
    importlib.reload(finetune_module)
    yield getattr(module, kind)
    monkeypatch.undo()
    importlib.reload(finetune_module)


def test_the_fourth_goal_is_fine_tuned_and_predicts(volume, store, tmp_path):
    finetune = finetune_module.finetune
    assert "first_code: count the codes of the mask from this one" in finetune.__doc__
    how = {"goal": "volume", "widths": SMALL, "warmup": 0, "batch_size": 8, "lr": 1e-2, "progress": False}
    run = finetune(store, tmp_path / "run", steps=120, track=60, **how)
    rows = read_table(run / "predictions.csv")
    truth = {name: 100 * float((store.mask(name) > 0).mean()) for name in store.split("test")}
    assert {row["case"]: float(row["volume"]) for row in rows} == pytest.approx(truth)
    seen = finetune_module.goal_of(run.settings).track(
        run.network, store, store.split("validation"), run.settings["facts"]
    )
    assert run.scores[0]["cases"] == 6
    assert read_log(run, "observed.csv")["r2"][-1] == pytest.approx(seen["r2"], abs=1e-3), "of validation people"
    assert "r2" in run.summary() and "6 test cases" in run.summary()
    (file,) = run.predict(store, tmp_path / "out", progress=False)
    again = {row["case"]: row["guess"] for row in read_table(file)}
    assert again == pytest.approx({row["case"]: row["guess"] for row in rows}, abs=1e-3)
    other = finetune(store, tmp_path / "other", steps=1, first_code=3, **how)
    assert other.settings["first_code"] == 3 and other.settings["facts"]["mean"] < run.settings["facts"]["mean"]
    with pytest.raises(InputError, match="first_code is an option of volume, and the goal is segmentation"):
        finetune(store, tmp_path / "x", first_code=3)


def test_the_fourth_goal_is_compared_in_an_experiment(volume, tmp_path, monkeypatch):
    from ssl3d.evidence import experiments

    monkeypatch.setattr(experiments, "finetune", finetune_module.finetune)
    cohort = {"source": str(ROOT / "data_samples" / "Task01_TumourBrains"), "size": 16}
    described = experiments.Experiment(
        cohort,
        {"scratch": {}, "rotation": {"task": "rotation", "steps": 2}},
        "volume",
        label_fractions=[0.5],
        seeds=1,
        network={"widths": list(SMALL)},
        finetuning={"steps": 2, "first_code": 2},
    )
    rows = experiments.run_experiment(described, tmp_path / "out", progress=False)
    assert {row["arm"] for row in rows} == {"scratch", "rotation"} and len(rows) == 12
    assert {row["metric"] for row in rows} == {"R² of volume"}
    (answer,) = verdict(read_scores(tmp_path / "out/results.csv"))
    assert answer["metric"] == "R²" and np.isfinite(answer["difference"])


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
