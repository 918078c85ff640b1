"""Pretraining: every task, continued, refused."""

import inspect
import json
import os
import re
import shutil
import signal
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from conftest import ROOT, SAMPLES, SMALL, checkpoint_step, write_nifti
from torch.utils.data import DataLoader

import ssl3d
from ssl3d.cli import main
from ssl3d.data.prepare import prepare
from ssl3d.errors import InputError
from ssl3d.files import read_table
from ssl3d.networks.cards import read_card
from ssl3d.networks.encoders import make_encoder
from ssl3d.networks.unet import Segmenter
from ssl3d.networks.weights import load_encoder, load_weights, save_weights
from ssl3d.settings import Pretraining
from ssl3d.tasks import NAMES
from ssl3d.tasks.base import evaluate, fit_plainly
from ssl3d.tasks.exemplar import Exemplar
from ssl3d.training import loop, runs
from ssl3d.training import pretrain as pretrain_module
from ssl3d.training.loop import images_of_step, train
from ssl3d.training.pretrain import images_from, make_task, pretrain
from ssl3d.training.runs import Run, read_log


@pytest.mark.parametrize("slices", [False, True])
@pytest.mark.parametrize("task", NAMES)
def test_every_task_goes_on_to_the_same_bytes(store, tmp_path, monkeypatch, task, slices):
    options = {"jigsaw": {"n_permutations": 20}, "exemplar": {"memory": 10}, "cpc": {"context_size": 16}}
    how = {"epochs": 2, "batch_size": 4, "widths": SMALL, "slices": slices, "options": options.get(task), "seed": 3}
    monkeypatch.setattr(pretrain_module, "train", partial(pretrain_module.train, checkpoint_every=3))
    for module in (pretrain_module, runs):  # as if these few steps were enough for a verdict
        monkeypatch.setattr(module, "FEWEST", 10)
    whole = pretrain(task, store.folder, tmp_path / "whole", progress=False, accelerator="cpu", **how)
    read, calls = pretrain_module.read_batch, []

    def fails_once(*args, **more):
        calls.append(1)
        if len(calls) == 14:  # five reads are of what is checked before, and of the images of the verdict
            raise RuntimeError("the power went off")
        return read(*args, **more)

    monkeypatch.setattr(pretrain_module, "read_batch", fails_once)
    with pytest.raises(RuntimeError, match="power"):
        pretrain(task, store.folder, tmp_path / "cut", progress=False, accelerator="cpu", **how)
    assert 3 <= len(read_log(tmp_path / "cut")["step"]) < len(read_log(whole)["step"])
    again = pretrain(task, store.folder, tmp_path / "cut", progress=False, accelerator="cpu", **how)
    for file in ("encoder.safetensors", "log.csv", "encoder.json"):
        assert (again / file).read_bytes() == (whole / file).read_bytes(), file
    card = read_card(again)
    assert card["health"]["images"] == 16 and card["health"]["rank"] >= 1 and card["health"]["spread"] > 0
    assert card["task"] == task and card["spatial_dims"] == (2 if slices else 3) and card["slices"] == slices


@pytest.fixture
def repeated(tmp_path):
    """A store of pictures, sixteen of four people."""
    folder, lines = tmp_path / "sixteen", ["image,subject"]
    folder.mkdir()
    for i in range(16):
        np.save(folder / f"{i}.npy", np.random.default_rng(i).random((16, 16), dtype=np.float32))
        lines.append(f"{i}.npy,person{i // 4}")
    (folder / "scans.csv").write_text("\n".join(lines))
    return prepare(folder / "scans.csv", tmp_path / "sixteen_store", size=16, test=0.25, progress=False)


def test_negatives_come_from_the_whole_set_and_never_from_the_same_person(repeated):
    how = Pretraining(batch_size=2, seed=5)
    seen = images_from(repeated.folder, how, True)
    case_ids, drawn, beyond = repeated.split("train"), {}, 0
    people = {name: repeated.cases[name]["subject"] for name in case_ids}
    of_image = {loop.read_batch(repeated, [name], content=True).image.numpy().tobytes(): name for name in case_ids}
    for step in range(600):
        others = seen.others(step).numpy()
        mine = [case_ids[i] for i in images_of_step(len(case_ids), 2, 5, step)]
        for name, image in zip(mine, others):
            other = of_image[image.tobytes()]
            assert people[other] != people[name], "never the same person, whichever of the images it is"
            drawn.setdefault(name, set()).add(other)
            beyond += other not in mine
        assert torch.equal(seen.others(step), seen.others(step)), "a function of seed and step"
    everybody_else = {name: {other for other in case_ids if people[other] != people[name]} for name in case_ids}
    assert drawn == everybody_else and beyond > 1000, "each other image comes, and most are not of the batch"
    assert not all(torch.equal(seen.others(step), images_from(repeated.folder, replace(how, seed=6), True).others(step))
                   for step in range(5))
    read = seen.read(3)
    assert read.others is None and torch.equal(read.image, images_from(repeated.folder, how, True).read(3).image)


@pytest.mark.parametrize("slices", [False, True])
def test_the_papers_exemplar_goes_on_to_the_same_bytes(store, tmp_path, monkeypatch, slices):
    """A batch of one person, whose negatives are other people of the whole set; killed in a step, and continued."""
    how = {"steps": 12, "batch_size": 1, "widths": SMALL, "slices": slices, "preset": "paper", "seed": 3,
           "options": {"code_size": 16}, "progress": False, "accelerator": "cpu"}
    monkeypatch.setattr(pretrain_module, "train", partial(pretrain_module.train, checkpoint_every=3))
    whole = pretrain("exemplar", store.folder, tmp_path / "whole", **how)
    assert whole.settings["options"]["negatives"] == "dataset"
    read, calls = pretrain_module.read_batch, []

    def fails_once(*args, **more):
        calls.append(args[1])
        if len(calls) == 15:
            raise RuntimeError("the power went off")
        return read(*args, **more)

    monkeypatch.setattr(pretrain_module, "read_batch", fails_once)
    with pytest.raises(RuntimeError, match="power"):
        pretrain("exemplar", store.folder, tmp_path / "cut", **how)
    assert 3 <= len(read_log(tmp_path / "cut")["step"]) < 12
    again = pretrain("exemplar", store.folder, tmp_path / "cut", **how)
    for file in ("encoder.safetensors", "log.csv", "encoder.json"):
        assert (again / file).read_bytes() == (whole / file).read_bytes(), file
    assert len(calls) > 20 and all(len(names) == 1 for names in calls)
    usual = pretrain("exemplar", store.folder, tmp_path / "usual", **how | {"batch_size": 4, "preset": None})
    assert usual.settings["options"]["negatives"] == "semi-hard", "the default is as it was"


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

# Images that are in no store


class Items(torch.utils.data.Dataset):
    """Ten volumes, as somebody's dataset has them."""

    def __init__(self, subject=False):
        self.subject = subject

    def __len__(self):
        return 10

    def __getitem__(self, i):
        image = torch.rand(2, 16, 16, 16, generator=torch.Generator().manual_seed(i))
        return {"image": image, "subject": f"p{i // 2}"} if self.subject else image


HOW = {"batch_size": 4, "widths": SMALL, "progress": False, "accelerator": "cpu"}


def bytes_of(run):
    return [(run / name).read_bytes() for name in ("encoder.safetensors", "log.csv")]


def verdict_of(run):
    return run.card["health"]["verdict"]


def test_a_dataset_a_list_and_a_tensor_are_one(tmp_path):
    items = Items()
    images = torch.stack([items[i] for i in range(10)])
    runs = [
        pretrain("rotation", given, tmp_path / str(i), epochs=2, **HOW)
        for i, given in enumerate((items, list(images), images, Items(subject=True)))
    ]
    assert all(bytes_of(run) == bytes_of(runs[0]) for run in runs) and len(runs[0].log["step"]) == 4
    card = runs[0].card
    assert card["in_channels"] == 2 and card["people"] == [] and card["trained_on"] == []
    assert "who was seen" in card["unknown"] and "Items of 10 images" in card["unknown"]
    with pytest.raises(InputError, match="not trained on a store"):
        runs[0].prepare("x.nii")
    assert runs[0].encoder(images[:1])[-1].shape[1] == SMALL[-1]


def test_a_run_on_a_dataset_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    whole = pretrain("rotation", Items(), tmp_path / "whole", steps=60, **HOW)
    from ssl3d.tasks.rotation import Rotation

    real, calls = Rotation.loss, []

    def stop_once(self, *args):
        calls.append(1)
        if len(calls) == 55:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Rotation, "loss", stop_once)
    with pytest.raises(KeyboardInterrupt):
        pretrain("rotation", Items(), tmp_path / "cut", steps=60, **HOW)
    assert not (tmp_path / "cut/encoder.json").exists() and (tmp_path / "cut/last.ckpt").exists()
    with pytest.raises(InputError, match="store was"):
        pretrain("rotation", [torch.rand(2, 16, 16, 16)] * 5, tmp_path / "cut", steps=60, **HOW)
    with pytest.raises(InputError, match="cannot be read again"):
        pretrain("rotation", iter([torch.rand(4, 2, 16, 16, 16)]), tmp_path / "cut", steps=60, **HOW)
    cut = pretrain("rotation", Items(), tmp_path / "cut", steps=60, **HOW)
    assert bytes_of(cut) == bytes_of(whole) and cut.card == whole.card and len(cut.card["health"]) > 5


def test_batches_of_a_loader(tmp_path):
    loader = torch.utils.data.DataLoader(Items(), batch_size=5)
    run = pretrain("rotation", loader, tmp_path / "loader", epochs=3, widths=SMALL, progress=False)
    assert len(run.log["step"]) == 6 and "DataLoader" in run.settings["store"]
    batches = (batch for batch in loader)
    with pytest.raises(InputError, match="does not say how many batches.*Give steps"):
        pretrain("rotation", batches, tmp_path / "g", widths=SMALL, progress=False)
    with pytest.raises(InputError, match="no batch for step 3"):
        pretrain("rotation", (b for b in loader), tmp_path / "h", steps=3, widths=SMALL, progress=False)
    twice = pretrain("rotation", (b for b in [*loader] * 2), tmp_path / "i", steps=3, widths=SMALL, progress=False)
    assert twice.log["loss"].tolist() == run.log["loss"][:3].tolist()


def test_who_is_seen_matters_where_people_are_compared(tmp_path):
    with pytest.raises(InputError, match="does not say whom an image shows.*'subject'"):
        pretrain("exemplar", Items(), tmp_path / "x", steps=1, **HOW)
    run = pretrain("exemplar", Items(subject=True), tmp_path / "y", steps=2, **HOW)
    assert len(run.log["step"]) == 2
    loader = torch.utils.data.DataLoader(Items(), batch_size=5)
    with pytest.raises(InputError, match="does not say whom an image shows"):
        pretrain("exemplar", loader, tmp_path / "z", steps=1, **HOW)


def test_negatives_of_a_dataset_and_of_a_loader(tmp_path, recwarn):
    """A dataset can be read anywhere; batches hold all that there is to compare with, which is said."""
    how = HOW | {"preset": "paper", "options": {"code_size": 8}, "widths": SMALL}
    run = pretrain("exemplar", Items(subject=True), tmp_path / "x", steps=2, **how | {"batch_size": 1})
    assert len(run.log["step"]) == 2 and not any("negatives" in str(each.message) for each in recwarn)
    loader = torch.utils.data.DataLoader(Items(subject=True), batch_size=5)
    with pytest.warns(UserWarning, match="come from the batch"):
        run = pretrain("exemplar", loader, tmp_path / "y", steps=2, **how | {"batch_size": None})
    assert len(run.log["step"]) == 2

    class Alone(Items):
        def __getitem__(self, i):
            return super().__getitem__(i) | {"subject": "the only one"}

    with pytest.raises(InputError, match="1000 draws none is of another person"):
        pretrain("exemplar", Alone(subject=True), tmp_path / "z", steps=2, **how)


@pytest.mark.parametrize(
    "images, how, said",
    [
        (Items(), {"slices": True}, "slices is about a prepared store"),
        (Items(), {"probe": "mask"}, "probe is about a prepared store"),
        (Items(), {"fold": (0, 2)}, "fold is about a prepared store"),
        ([], {}, "images are empty"),
        (["a.nii", "b.nii"], {}, "gives a str"),
        ([torch.zeros(1, 16, 16, 16, dtype=torch.int16)], {}, "floating point"),
        ([{"img": torch.rand(1, 8, 8, 8)}], {}, "dictionary with 'img'.*as 'image'"),
        ([torch.rand(1, 16, 16, 16), torch.rand(1, 24, 16, 16)], {}, "image . is of shape .*Give images of one size"),
        ([torch.rand(1, 16, 16, 16) * 255] * 2, {}, "values from .* to 25.*from 0 to 1"),
        ([torch.full((1, 16, 16, 16), torch.nan)] * 2, {}, "values from nan"),
        (7, {}, "images are of type int"),
        (iter([torch.rand(2, 1, 16, 16, 16)]), {"devices": 2, "steps": 1}, "several devices"),
        ([torch.rand(1, 4, 4, 4)] * 4, {"widths": (4, 8, 8, 8, 8)}, "needs 5 a side"),
    ],
)
def test_images_that_cannot_be_used(tmp_path, images, how, said):
    with pytest.raises(InputError, match=said):
        pretrain("rotation", images, tmp_path / "x", **{"epochs": 1, "widths": SMALL, "progress": False} | how)
    assert not (tmp_path / "x").exists()


def test_an_encoder_of_ones_own_is_copied_trained_and_used(store, tmp_path):
    import ssl3d

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv3d(4, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv3d(8, 16, 3, 2, 1))
    encoder = ssl3d.as_encoder(network, example=torch.rand(1, 4, 16, 16, 16))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    how = {"encoder": encoder, "steps": 2, "progress": False}
    run, again = (pretrain("rotation", store, tmp_path / name, **how) for name in ("a", "b"))
    assert bytes_of(run) == bytes_of(again), "the module itself does not move"
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    trained = run.encoder.network.state_dict()
    assert not all(torch.equal(before[k], v) for k, v in trained.items()) and run.card["network"] == "Sequential"
    few = ssl3d.finetune(store, tmp_path / "few", encoder=run.encoder, steps=2, warmup=2, progress=False)
    assert "4 loaded" in few.summary() and few.card["people"] == run.card["people"], "it remembers whom it saw"
    assert all(torch.equal(trained[k], v) for k, v in few.encoder.network.state_dict().items()), "it was frozen"
    (mask,) = few.predict(SAMPLES / "imagesTr/brain_001.nii.gz", tmp_path / "masks", progress=False)
    assert mask.name == "brain_001.nii.gz" and few.network is not None
    alone = ssl3d.Run(tmp_path / "few")
    with pytest.raises(InputError, match="network of its owner.*ssl3d.Run.folder, encoder=encoder"):
        alone.encoder  # noqa: B018
    with pytest.raises(InputError, match="network of its owner.*ssl3d.Run.folder, encoder=encoder"):
        alone.network  # noqa: B018
    filled = ssl3d.Run(tmp_path / "few", encoder=encoder)
    assert torch.equal(filled.encoder.network[0].weight, few.encoder.network[0].weight)
    assert torch.equal(filled.network.encoder.network[0].weight, few.encoder.network[0].weight)
    with pytest.raises(InputError, match="takes 4 channel.s. in 3D, and the images have 2 in 3D"):
        pretrain("rotation", Items(), tmp_path / "x", encoder=encoder, progress=False)
    with pytest.raises(InputError, match="without spatial_dims.*Wrap it"):
        pretrain("rotation", store, tmp_path / "x", encoder=network, progress=False)
    other = ssl3d.Store(store, fold=(0, 2))
    with pytest.raises(InputError, match="keeps for testing"):
        ssl3d.finetune(other, tmp_path / "leak", encoder=run.encoder, steps=1, progress=False)


def test_pretraining_goes_on_from_another_run(store, tmp_path):
    how = {"steps": 2, "progress": False}
    first = pretrain("rotation", store, tmp_path / "first", widths=SMALL, fold=(0, 3), **how)
    second = pretrain("location", store, tmp_path / "second", encoder=first, fold=(1, 3), **how)
    assert second.settings["encoder"].startswith("rotation ") and second.settings["widths"] == list(SMALL)
    assert set(first.card["people"]) < set(second.card["people"]), "it remembers whom the first one saw"
    with pytest.raises(InputError, match="widths is .4, 8., and the encoder that is given has .8, 16, 32."):
        pretrain("location", store, tmp_path / "x", encoder=first, widths=(4, 8), **how)


def test_monai_tensors_and_names_of_people(tmp_path):
    from monai.data import MetaTensor

    items = [{"image": MetaTensor(Items()[i]), "subject": f"p{i // 2}"} for i in range(10)]
    plain = pretrain("rotation", [item["image"].as_tensor() for item in items], tmp_path / "plain", epochs=1, **HOW)
    assert bytes_of(pretrain("rotation", items, tmp_path / "monai", epochs=1, **HOW)) == bytes_of(plain)
    loader = torch.utils.data.DataLoader(items, batch_size=5)
    run = pretrain("exemplar", loader, tmp_path / "names", steps=2, widths=SMALL, progress=False)
    assert len(run.log["step"]) == 2, "names of people stand for numbers"
    ids, features = run.features(torch.stack([item["image"] for item in items]), progress=False)
    assert ids == [str(i) for i in range(10)] and features.shape == (10, SMALL[-1])
    with pytest.raises(InputError, match="give features the tensor"):
        run.features("scans", progress=False)


def test_a_run_with_an_encoder_of_ones_own_begins_the_next_step(store, tmp_path):
    import ssl3d

    network = torch.nn.Sequential(torch.nn.Conv3d(4, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv3d(8, 16, 3, 2, 1))
    encoder = ssl3d.as_encoder(network, example=torch.rand(1, 4, 16, 16, 16))
    run = pretrain("rotation", store, tmp_path / "run", encoder=encoder, steps=1, progress=False)
    few = ssl3d.finetune(store, tmp_path / "few", encoder=run, steps=1, warmup=1, progress=False)
    assert "4 loaded" in few.summary() and few.network is not None
    assert torch.equal(few.encoder.network[0].weight, run.encoder.network[0].weight)
    with pytest.raises(InputError, match="Sequential without spatial_dims.*Wrap it"):
        ssl3d.Run(tmp_path / "run", encoder=network).encoder  # noqa: B018
    with pytest.raises(InputError, match="is not a task"):
        pretrain(ssl3d.tasks.Rotation(encoder), store, tmp_path / "x", steps=1, progress=False)


def refused(words, *args, **how):
    with pytest.raises(InputError, match=words) as error:
        pretrain(*args, progress=False, **how)
    return str(error.value)


def finite_checkpoint(run):
    if (run / "last.ckpt").exists():
        state = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
        assert all(weight.isfinite().all() for weight in state.values())


@pytest.mark.parametrize("task", ["rotation", "exemplar"])
def test_a_loss_that_is_no_number_ends_the_training(store, tmp_path, task):
    how = {"steps": 12, "lr": 1e30, "batch_size": 2, "widths": SMALL}
    for _ in range(2):
        said = refused("the loss is (nan|inf) in step [23],.*lower learning rate than 1e", task, store, tmp_path, **how)
        step = int(said.partition("in step ")[2].partition(",")[0])
        shown = [store.split("train")[i] for i in images_of_step(len(store.split("train")), 2, 0, step - 1)]
        assert f"It was shown {', '.join(shown)}." in said
        assert read_log(tmp_path)["step"].tolist() == [*range(1, step)], "the rows before it stay"
        assert {f.name for f in tmp_path.iterdir()} == {"settings.yaml", "train.lock", "log.csv", "failed.txt"}


def test_a_weight_decay_that_is_too_high_is_named(store, tmp_path):
    how = {"steps": 9, "widths": (4, 8), "batch_size": 2, "optimiser": "adamw", "weight_decay": 1e300, "clip": 3.0}
    words = "learning rate than .*, a lower weight_decay than 1e.300 .--weight-decay., a lower clip than 3 .--clip., or"
    refused(words, "rotation", store, tmp_path, **how)


def test_half_precision_is_named_where_it_may_be_the_reason(store, tmp_path):
    words = "the loss is nan.*precision='32-true' .--precision 32-true. in place of bf16-mixed"
    refused(words, "rotation", store, tmp_path, steps=9, lr=1e30, widths=(4, 8), precision="bf16-mixed")


def test_images_without_a_store_are_named_by_their_places(tmp_path):
    images, how = torch.rand(6, 1, 16, 16, 16), {"lr": 1e30, "widths": SMALL, "steps": 9}
    seen = images_of_step(6, 2, 0, 1)
    words = f"in step 2, .*It was shown image {seen[0]}, image {seen[1]}[.]"
    refused(words, "rotation", images, tmp_path / "a", batch_size=2, **how)
    batches = DataLoader(images, batch_size=2)
    said = refused("the loss is nan in step 2", "rotation", batches, tmp_path / "b", **how)
    assert "shown" not in said and "weight_decay" not in said and "clip" not in said


def test_weights_that_are_no_numbers_are_not_kept(tmp_path):
    """The loss does not show it, as where a layer is not used for it."""

    def poison(network, batch, step):
        if step == 4:
            network.weight.data[0] = torch.inf
        return torch.ones(2, 3), torch.zeros(2, 4)

    def measure(network, outputs, targets):
        return {"loss": outputs.nan_to_num(0, 0, 0).pow(2).mean()}

    network = torch.nn.Linear(3, 4)
    with pytest.raises(InputError, match="the weights weight are not finite in step 6"):
        train(network, poison, measure, lambda step: 0, tmp_path, n_steps=9, lr=0.1, checkpoint_every=3, progress=False)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3
    finite_checkpoint(tmp_path)
    with pytest.raises(InputError, match="weights weight are not finite"):
        save_weights(network, tmp_path / "encoder.safetensors")
    assert not (tmp_path / "encoder.safetensors").exists()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_an_encoder_with_weights_that_are_no_numbers_is_refused(store, encoder, tmp_path, bad):
    """From an old run, or one's own."""
    folder = tmp_path / "old"
    shutil.copytree(encoder, folder)
    weights = safetensors.torch.load_file(folder / "encoder.safetensors")
    name = [*weights][3]
    weights[name].view(-1)[0] = bad
    safetensors.torch.save_file(weights, folder / "encoder.safetensors")
    own = Run(encoder).encoder
    own.state_dict()[name].view(-1)[0] = bad
    for given in (folder, Run(folder), own):
        refused(f"weights {name} are not finite", "rotation", store, tmp_path / "x", steps=1, encoder=given)
        with pytest.raises(InputError, match=f"weights {name} are not finite"):
            ssl3d.finetune(store, tmp_path / "x", encoder=given, steps=1, progress=False)
    with pytest.raises(InputError, match="old/encoder.safetensors: its weights"):
        print(Run(folder).encoder)
    assert not (tmp_path / "x").exists()


def test_a_mask_among_the_buffers_may_be_infinite(tmp_path):
    network = torch.nn.Conv3d(1, 4, 3, 2, 1)
    network.register_buffer("mask", torch.full((2, 2), -torch.inf))
    save_weights(network, tmp_path / "x.safetensors")
    load_weights(network, tmp_path / "x.safetensors")


def test_several_devices_are_not_started_by_others(store, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    refused("started by torchrun.*Start it once", "rotation", store, tmp_path / "x", devices=2, batch_size=2, steps=1)
    assert not (tmp_path / "x").exists()


FULL = [(28, r"no space left on the disk of .*, \d+ MB are free"), (30, "read only")]


@pytest.mark.parametrize("number, words", FULL)
def test_a_disk_that_gets_full_loses_nothing(store, tmp_path, monkeypatch, capsys, number, words):
    line = ["pretrain", "rotation", store.folder, "--out", tmp_path / "run", "--steps", 60, "--widths", "4,8"]
    sync, calls = os.fsync, []

    def full(file):
        calls.append(file)
        if len(calls) > 2:  # after the settings and the first checkpoint
            raise OSError(number, os.strerror(number))
        sync(file)

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(SystemExit) as ended:
        main([*map(str, line)])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 1 and re.search(f"^ssl3d: {tmp_path}/run/last.ckpt: .*{words}", said), said
    assert not list(tmp_path.rglob("*.part")) and read_log(tmp_path / "run")["step"][-1] == 60
    assert torch.load(tmp_path / "run/last.ckpt", weights_only=True)["global_step"] == 50
    monkeypatch.setattr("os.fsync", sync)
    main([*map(str, line)])
    assert read_card(tmp_path / "run")["steps"] == 60


# Values


@pytest.mark.parametrize("bad", [torch.nan, 255.0, -0.5, 1.1, torch.inf])
def test_every_image_has_to_be_from_0_to_1_not_only_the_first(tmp_path, bad):
    images = [torch.rand(1, 16, 16, 16) for _ in range(6)]
    place = images_of_step(6, 2, 0, 2)[0]
    images[place][0, 3, 3, 3] = bad
    how = {"widths": SMALL, "steps": 3}
    refused(f"image {place} have values.*from 0 to 1", "rotation", images, tmp_path / "a", batch_size=2, **how)
    refused(f"image {place} have values", "rotation", torch.stack(images), tmp_path / "b", batch_size=2, **how)
    batches = DataLoader(torch.stack(images), batch_size=2)
    refused(f"images of step {place // 2 + 1} have values", "rotation", batches, tmp_path / "c", **how)
    task = make_task("rotation", make_encoder("unet", 3, 1, SMALL))
    for ask in (task.make, task.show, partial(fit_plainly, task, n_steps=1), partial(evaluate, task)):
        with pytest.raises(InputError, match="images have values.*from 0 to 1"):
            ask(images=torch.stack(images))
    rounded = torch.stack(images).nan_to_num(0.5).clamp(-5e-4, 1 + 5e-4)
    assert len(task.make(rounded).inputs) == 6, "rounding is no fault"


# Slices


@pytest.mark.parametrize("mm, thick", [((1, 1, 6), "6.0"), ((3, 1, 1), "3.0"), ((1, 1, 1), None), ((1, 1, 1.4), None)])
def test_rotation_is_told_from_thick_slices_and_says_so(tmp_path, recwarn, capsys, mm, thick):
    for i in range(5):
        noise = np.random.default_rng(i).integers(0, 1000, (16, 16, 16)).astype(np.int16)
        write_nifti(tmp_path / f"scans-{i}.nii.gz", noise, np.diag([*mm, 1.0]))
    store = ssl3d.prepare(tmp_path, tmp_path.parent / f"{tmp_path.name}-store", size=16, progress=False)
    for task in ("rotation", "exemplar"):
        run = pretrain(task, store, store.folder / task, steps=1, batch_size=2, widths=(4, 8))
        said = [str(each.message) for each in recwarn if "times as thick" in str(each.message)]
        assert len(said) == bool(thick), "only of rotation"
    rotation = Run(store.folder / "rotation")
    assert ("caution" in rotation.card) == bool(thick) and "caution" not in run.card
    if thick:
        assert f"slices are {thick} times as thick" in rotation.card["caution"] and thick in said[0]


@pytest.mark.parametrize("shape, how, patch, cure", [
    ((20, 20, 9), {}, 12, "patch=9"), ((20, 20, 9), {}, 9, None), ((20, 20, 20), {}, 24, None),
    ((12, 20, 20), {"size": 16}, None, "size=12"), ((12, 20, 20), {"size": 12}, None, None),
    ((12, 20, 20), {"size": 16}, 8, "size=12"), ((20, 20, 4), {"crop": False}, 8, "Compare it"),
])
def test_rotation_is_told_from_zeros_beside_scans_and_says_so(tmp_path, recwarn, shape, how, patch, cure):
    for i in range(5):
        noise = np.random.default_rng(i).integers(0, 1000, shape).astype(np.int16)
        write_nifti(tmp_path / f"scans-{i}.nii.gz", noise, np.eye(4))
    folder = tmp_path.parent / f"{tmp_path.name}-store"
    store = ssl3d.prepare(tmp_path, folder, spacing=(1, 1, 1), progress=False, **how)
    options = {"steps": 1, "batch_size": 2, "widths": (4, 8), "patch": patch, "progress": False}
    rotation = pretrain("rotation", store, folder / "rotation", **options)
    told = [str(each.message) for each in recwarn if "told from the zeros" in str(each.message)]
    assert len(told) == bool(cure) and ("caution" in rotation.card) == bool(cure)
    if cure:
        axis = "x" if shape[0] == 12 else "z"
        assert f"100% of the scans have more zeros beside them along {axis}" in rotation.card["caution"]
        assert cure in told[0] and ("at most" in told[0]) == (cure != "Compare it")


def test_dark_surroundings_are_no_zeros_that_tell(tmp_path, recwarn):
    """A body that ends before its scan does looks the same whatever is put around the scan."""
    for i in range(5):
        image = np.zeros((20, 20, 12), np.float32)
        image[4:16, 4:16, 3:9] = 1 + np.random.default_rng(i).random((12, 12, 6))
        write_nifti(tmp_path / f"scans-{i}.nii.gz", image, np.eye(4))
    store = ssl3d.prepare(tmp_path, tmp_path.parent / f"{tmp_path.name}-s", spacing=(1, 1, 1), size=16, progress=False)
    options = {"steps": 1, "batch_size": 2, "widths": (4, 8), "progress": False}
    assert "caution" not in pretrain("rotation", store, store.folder / "rotation", **options).card


def test_the_closing_line_repeats_a_caution(encoder, tmp_path):
    shutil.copytree(encoder, tmp_path / "run")
    card = read_card(encoder) | {"caution": "The scans' slices are 6.0 times as thick."}
    (tmp_path / "run/encoder.json").write_text(json.dumps(card))
    log = "step,loss,accuracy,chance\n" + "".join(f"{i},1,0.8,0.1\n" for i in range(1, card["steps"] + 1))
    (tmp_path / "run/log.csv").write_text(log)
    assert "6.0 times as thick" in Run(tmp_path / "run").summary()


# Verdicts

TINY = {"batch_size": 8, "widths": (8, 16), "progress": False, "accelerator": "cpu"}


def steep(n=16):
    """Volumes of noise, each with a floor and two walls that tell which way is up."""
    images = []
    for i in range(n):
        generator = torch.Generator().manual_seed(i)
        image, bright = 0.2 * torch.rand(1, 8, 8, 8, generator=generator), torch.rand(3, generator=generator)
        for axis, width in enumerate((4, 3, 2)):
            image.movedim(1 + axis, 1)[:, :width] += 0.1 + 0.2 * bright[axis]
        images.append(image.clamp(0, 1))
    return images


def twins(n=16):
    """People who hardly differ."""
    body = 0.95 * torch.rand(1, 8, 8, 8, generator=torch.Generator().manual_seed(99))
    own = [0.05 * torch.rand(1, 8, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(n)]
    return [{"image": body + each, "subject": i} for i, each in enumerate(own)]


class Noise:
    """New noise in every batch, in which there is nothing to learn."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        while True:
            yield torch.rand(8, 1, 8, 8, 8, generator=generator)


@pytest.mark.parametrize("lr", [1e-3, 1e-2])
def test_codes_that_have_become_one_are_told(tmp_path, capsys, lr):
    how = TINY | {"options": {"loss": "triplet"}, "progress": True}
    run = pretrain("exemplar", twins(), tmp_path / "run", steps=40, lr=lr, **how)
    assert verdict_of(run) == "collapsed" and run.card["health"]["same"] in ("code", "features")
    said = f"collapsed in 40 steps.*lower learning rate than {lr:g} .lr=, --lr"
    assert re.search(said, run.summary()) and run.summary() in capsys.readouterr().out


@pytest.mark.parametrize("task", ["rotation", "location"])
def test_noise_stays_at_chance(tmp_path, task):
    run = pretrain(task, Noise(), tmp_path / "run", steps=60, **TINY | {"widths": (4, 8)})
    assert verdict_of(run) == "at chance" and "no learning was shown in 60 steps" in run.summary()
    assert run.card["health"]["images"] == 8, "a stream is looked at once"


def test_what_is_learned_in_time_is_learned(tmp_path):
    run = pretrain("rotation", steep(), tmp_path / "run", steps=80, lr=3e-3, **TINY)
    health = run.card["health"]
    assert health["verdict"] == "learned" and health["accuracy"] > 0.8 and health["best"] <= 1, health
    assert health["rank"] > 1.1 and "shortcut" not in run.summary()


def test_an_encoder_whose_features_are_one_is_told_whatever_the_task(tmp_path, monkeypatch):
    """As where all units of the last level have died."""
    real = pretrain_module.train

    def dies(network, *args, **more):
        real(network, *args, **more)
        with torch.no_grad():
            for weights in network.encoder.stages[-1].parameters():
                weights.mul_(0).add_(0.5)

    monkeypatch.setattr(pretrain_module, "train", dies)
    run = pretrain("rotation", steep(), tmp_path / "run", steps=30, **TINY)
    assert verdict_of(run) == "collapsed" and run.card["health"]["same"] == "features"
    same = pretrain("rotation", steep(1) * 16, tmp_path / "same", steps=30, **TINY)
    assert verdict_of(same) != "collapsed", "of one image many times over nobody makes anything else"


def test_an_encoder_whose_mean_says_nothing_is_told(tmp_path):
    """After instance normalisation the mean of a map is the same for every image."""
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv3d(8, 16, 3, 1, 1),
                                  torch.nn.InstanceNorm3d(16))  # fmt: skip
    how = TINY | {"encoder": ssl3d.as_encoder(network, steep(1)[0][None])}
    how.pop("widths")
    run = pretrain("rotation", steep(), tmp_path / "run", steps=30, **how)
    assert verdict_of(run) == "collapsed" and "nearly the same features" in run.summary()


def pictures(n=16):
    """Pictures with a floor and a wall, which are told apart from their turned selves at once."""
    made = []
    for i in range(n):
        generator = torch.Generator().manual_seed(i)
        picture = 0.3 * torch.rand(1, 12, 12, generator=generator)
        picture[:, :6] += 0.2 + 0.3 * torch.rand(1, generator=generator)
        picture[:, :, :3] += 0.2
        made.append(picture.clamp(0, 1))
    return made


def test_what_is_solved_in_a_few_steps_is_told(tmp_path):
    run = pretrain("rotation", pictures(), tmp_path / "run", steps=250, lr=1e-2, **TINY)
    assert verdict_of(run) == "solved early" and run.card["health"]["solved_at"] <= 25
    assert re.search("within the first [0-9]+ steps: it may have found a shortcut.*harder question", run.summary())


def test_short_runs_are_not_judged(tmp_path):
    run = pretrain("rotation", steep(), tmp_path / "run", steps=29, **TINY)
    assert verdict_of(run) == "too short" and "29 steps are too few to tell" in run.summary()


@pytest.mark.parametrize(
    "task, how, dims, lr",
    [
        ("exemplar", {}, 3, 1e-4),
        ("exemplar", {}, 2, 1e-4),
        ("exemplar", {"preset": "paper"}, 3, 1e-3),
        ("exemplar", {"preset": "paper", "architecture": "unet"}, 2, 5e-4),
        ("exemplar", {"lr": 0.02, "preset": "paper"}, 3, 0.02),
        ("rotation", {}, 3, 1e-3),
        ("rotation", {}, 2, 5e-4),
    ],
)
def test_each_task_has_a_learning_rate(tmp_path, task, how, dims, lr):
    images = [{"image": torch.rand(1, *[8] * dims), "subject": i} for i in range(4)]
    run = pretrain(task, images, tmp_path / "run", steps=1, **TINY | {"batch_size": 4} | how)
    assert run.settings["lr"] == lr


def test_the_default_of_exemplar_is_one_that_did_not_collapse():
    table = read_table(ROOT / "results/exemplar/tries.csv")
    rows = [row | {name: float(row[name]) for name in ("lr", "rank")} for row in table]
    loss = inspect.signature(Exemplar).parameters["loss"].default
    mine = [row for row in rows if row["loss"] == loss and row["lr"] == Exemplar.lr]
    assert {row["cohort"] for row in mine} == {"ixi", "hippocampus", "idrid"}
    for row in mine:
        others = [r for r in rows if (r["cohort"], r["loss"]) == (row["cohort"], loss)]
        assert row["rank"] > 5 and row["rank"] >= max(other["rank"] for other in others if other["lr"] == 1e-3)
    assert Exemplar.PAPER["loss"] == "triplet"


def test_a_precision_that_the_machine_lacks(monkeypatch, recwarn):
    cpu = torch.device("cpu")
    monkeypatch.setattr(loop, "times_slower", lambda precision: 1.4)
    loop.check_precision("bf16-mixed", cpu)
    assert not recwarn.list
    monkeypatch.setattr(loop, "times_slower", lambda precision: 20.04)
    with pytest.warns(UserWarning, match="--precision bf16-mixed.*20.0 times as long.*Choose 32-true"):
        loop.check_precision("bf16-mixed", cpu)
    loop.check_precision("bf16-mixed", torch.device("cuda"))
    with pytest.raises(InputError, match="--precision 16-mixed.*needs a GPU.*Choose 32-true"):
        loop.check_precision("16-mixed", cpu)


def test_a_training_is_told_of_its_precision(store, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "times_slower", lambda precision: 3.0)
    with pytest.warns(UserWarning, match="3.0 times as long"):
        pretrain("rotation", store, tmp_path / "run", steps=1, widths=SMALL, precision="bf16-mixed", progress=False,
                 accelerator="cpu")
