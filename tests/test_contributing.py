"""CONTRIBUTING shows how a task is added. Here its example becomes a task."""

import re

import pytest
import torch
from conftest import ROOT, SMALL

from ssl3d import tasks
from ssl3d.networks import load_encoder, make_encoder
from ssl3d.pretrain import pretrain
from ssl3d.runs import read_log
from ssl3d.store import prepare
from ssl3d.tasks.task import Batch, examine, practise


@pytest.fixture
def mirror(monkeypatch):
    """The class from the page, under the name that the page's line gives to it."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code, line = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    module = {}
    exec(compile(code, "CONTRIBUTING.md", "exec"), module)
    (name, kind), *more = eval("{" + line + "}").items()
    assert not more
    monkeypatch.setitem(tasks.NAMES, name, kind)
    monkeypatch.setitem(tasks.TASKS, name, module[kind])
    return module[kind]


@pytest.mark.parametrize("dims", [2, 3])
def test_the_sixth_task_can_be_learned(mirror, dims):
    images = torch.rand(12, 1, *[16] * dims, generator=torch.Generator().manual_seed(0)) * 0.2
    images[:, :, :8] += 0.8  # something lies on the left
    torch.manual_seed(0)
    task = mirror(make_encoder("unet", dims, 1, SMALL, seed=0))
    practise(task, Batch(images[:8], torch.arange(8)), n_steps=40)
    unseen = examine(task, Batch(images[8:], torch.arange(4)))
    assert unseen.low > unseen.chance - 0.01 and unseen.accuracy > 0.9
    assert len(task.show(Batch(images, torch.arange(12)))) == 2


def test_the_sixth_task_pretrains(mirror, tmp_path):
    store = prepare(ROOT / "data_samples" / "Task01_TumourBrains", tmp_path / "store", size=16, progress=False)
    run = pretrain("mirror", store.folder, tmp_path / "run", epochs=1, batch_size=8, widths=SMALL, progress=False,
                   options={"samples_per_image": 2})
    assert load_encoder(run).channels == SMALL and read_log(run)["chance"][0] == 0.5
