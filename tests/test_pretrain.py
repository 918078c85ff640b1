"""Pretraining: every task, continued, refused."""

import signal
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from conftest import SAMPLES, SMALL, checkpoint_step

from ssl3d.data.prepare import prepare
from ssl3d.errors import InputError
from ssl3d.networks.cards import read_card
from ssl3d.networks.unet import Segmenter
from ssl3d.networks.weights import load_encoder
from ssl3d.tasks import NAMES
from ssl3d.training import pretrain as pretrain_module
from ssl3d.training.pretrain import pretrain
from ssl3d.training.runs import read_log


@pytest.mark.parametrize("slices", [False, True])
@pytest.mark.parametrize("task", NAMES)
def test_every_task_goes_on_to_the_same_bytes(store, tmp_path, monkeypatch, task, slices):
    options = {"jigsaw": {"n_permutations": 20}, "exemplar": {"memory": 10}, "cpc": {"context_size": 16}}
    how = {"epochs": 2, "batch_size": 4, "widths": SMALL, "slices": slices, "options": options.get(task), "seed": 3}
    monkeypatch.setattr(pretrain_module, "train", partial(pretrain_module.train, checkpoint_every=3))
    whole = pretrain(task, store.folder, tmp_path / "whole", progress=False, accelerator="cpu", **how)
    read, calls = pretrain_module.read_batch, []

    def fails_once(*args, **more):
        calls.append(1)
        if len(calls) == 10:
            raise RuntimeError("the power went off")
        return read(*args, **more)

    monkeypatch.setattr(pretrain_module, "read_batch", fails_once)
    with pytest.raises(RuntimeError, match="power"):
        pretrain(task, store.folder, tmp_path / "cut", progress=False, accelerator="cpu", **how)
    assert 3 <= len(read_log(tmp_path / "cut")["step"]) < len(read_log(whole)["step"])
    again = pretrain(task, store.folder, tmp_path / "cut", progress=False, accelerator="cpu", **how)
    for file in ("encoder.safetensors", "log.csv"):
        assert (again / file).read_bytes() == (whole / file).read_bytes(), file
    card = read_card(again)
    assert card["task"] == task and card["spatial_dims"] == (2 if slices else 3) and card["slices"] == slices


def test_presets_architectures_and_slices(store, tmp_path):
    few = {"epochs": 1, "batch_size": 8, "progress": False, "accelerator": "cpu"}
    large = prepare(SAMPLES, tmp_path / "large", size=32, progress=False).folder
    dense = pretrain("rotation", large, tmp_path / "dense", architecture="densenet121", slices=True, **few)
    assert load_encoder(dense).channels[-1] == 1024 and read_card(dense)["architecture"] == "densenet121"
    assert Segmenter(load_encoder(dense), 2)(torch.rand(1, 4, 32, 32)).shape == (1, 2, 32, 32)
    own = {"jitter": 1}
    paper = pretrain("location", store.folder, tmp_path / "p", preset="paper", options=own, widths=SMALL, **few)
    expected = {"gap": 0, "jitter": 1, "extent": 1.0, "even": False, "samples_per_image": 2}
    assert read_card(paper)["options"] == expected, "an option of the user goes before the preset's"
    for wrong, said in (
        ({"preset": "strict"}, "strict"),
        ({"architecture": "resnet"}, "resnet"),
        ({"architecture": "densenet121", "widths": SMALL}, "widths"),
        ({"architecture": "densenet121"}, "at least 135"),
        ({"task": "rotation", "architecture": "densenet121"}, "needs 32"),
        ({"task": "exemplar", "batch_size": 1}, "one person"),
        ({"options": {"grid": 3}}, "no option 'grid'"),
        ({"options": {"gap": "wide"}}, "gap"),
        ({"precision": "bf16-true", "widths": SMALL}, "precision"),
    ):
        usual = {"task": "location", "images": store.folder, "out": tmp_path / "wrong", "slices": True}
        with pytest.raises(InputError, match=said):
            pretrain(**usual | few | wrong)
        begun = "precision" in wrong  # Lightning's, so it is looked at when training begins
        assert begun or not (tmp_path / "wrong").exists(), "refused before anything is written"


def test_a_batch_of_one_person_is_foreseen(tmp_path):
    lines = ["image,subject"]
    for i in range(12):
        np.save(tmp_path / f"{i}.npy", np.random.default_rng(i).random((16, 16), dtype=np.float32))
        lines.append(f"{i}.npy,person{i // 3}")
    (tmp_path / "scans.csv").write_text("\n".join(lines))
    store = prepare(tmp_path / "scans.csv", tmp_path.parent / f"{tmp_path.name}_store", size=16, progress=False)
    few = {"batch_size": 2, "epochs": 200, "widths": SMALL, "progress": False, "accelerator": "cpu"}
    for options, task in (({}, "exemplar"), ({"negatives": "batch"}, "cpc")):
        with pytest.raises(InputError, match="batch_size"):
            pretrain(task, store.folder, tmp_path.parent / f"{tmp_path.name}_run", options=options, **few)
    assert not (tmp_path.parent / f"{tmp_path.name}_run").exists()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("task", NAMES)
def test_every_task_on_a_store_of_pictures(tmp_path, task, precision):
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(10):
        array = np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(array).save(folder / f"{i}.png")
    store = prepare(folder, tmp_path / "store", size=40, progress=False)
    options = {"jigsaw": {"n_permutations": 20}, "cpc": {"context_size": 16}}.get(task)
    run = pretrain(
        task,
        store.folder,
        tmp_path / "run",
        epochs=1,
        batch_size=4,
        widths=SMALL,
        options=options,
        progress=False,
        accelerator="cpu",
        precision=precision,
    )
    assert read_card(run)["spatial_dims"] == 2 and np.isfinite(read_log(run)["loss"]).all()
    with pytest.raises(InputError, match="pictures already"):
        pretrain(task, store.folder, tmp_path / "other", slices=True, progress=False)


def test_a_failed_first_try_does_not_spoil_the_folder(store, tmp_path):
    with pytest.raises(InputError, match="foo"):
        pretrain("rotation", store.folder, tmp_path / "x", epochs=1, widths=SMALL, precision="foo", progress=False)
    pretrain("rotation", store.folder, tmp_path / "x", epochs=1, widths=SMALL, progress=False)
    assert yaml.safe_load((tmp_path / "x/settings.yaml").read_text())["precision"] == "32-true"


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"epochs": -1},
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": -1.0},
        {"widths": ()},
        {"widths": (0, 4)},
        {"seed": -1},
        {"accelerator": "foo"},
        {"options": {"samples_per_image": 0}},
        {"options": {"samples_per_image": "2"}},
    ],
)
def test_numbers_that_make_no_run(store, tmp_path, wrong):
    with pytest.raises(InputError):
        pretrain(
            "rotation", store.folder, tmp_path / "x", **({"epochs": 1, "widths": SMALL, "progress": False} | wrong)
        )


@pytest.mark.parametrize("number, raised", [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_who_is_asked_to_stop_loses_nothing(store, tmp_path, monkeypatch, number, raised):
    how = {"steps": 9, "batch_size": 2, "widths": SMALL, "progress": False, "accelerator": "cpu"}
    how |= {"probe": "mask", "probe_every": 4}
    whole = pretrain("rotation", store.folder, tmp_path / "whole", **how)
    read, calls, before = pretrain_module.read_batch, [], [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]

    def read_and_ask(*args, **more):
        calls.append(1)
        if len(calls) in (5, 11):  # in the fourth step and, since each start reads one batch more, in the ninth
            signal.raise_signal(number)
        return read(*args, **more)

    monkeypatch.setattr(pretrain_module, "read_batch", read_and_ask)
    for step in (4, 9):
        with pytest.raises(raised) as stopped:
            pretrain("rotation", store.folder, tmp_path / "cut", **how)
        assert number == signal.SIGINT or stopped.value.code == 143
        assert checkpoint_step(tmp_path / "cut") == read_log(tmp_path / "cut")["step"][-1] == step
        with pytest.raises(InputError, match="not finished"):
            read_card(tmp_path / "cut")
        assert before == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)], "answered as before"
    pretrain("rotation", store.folder, tmp_path / "cut", **how)
    for name in ("encoder.safetensors", "encoder.json", "log.csv", "observed.csv", "settings.yaml"):
        assert (tmp_path / "cut" / name).read_bytes() == (whole / name).read_bytes(), name


def test_unknown_task_and_option(store, tmp_path):
    with pytest.raises(InputError, match="'rotate' is not a task"):
        pretrain("rotate", store.folder, tmp_path / "x")
    with pytest.raises(InputError, match="no option"):
        pretrain("rotation", store.folder, tmp_path / "x", options={"n_turns": 3})
    assert not (tmp_path / "x").exists()
