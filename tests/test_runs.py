"""Training runs: killed and continued, refused, frozen, compared."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from conftest import SAMPLES, SMALL

from ssl3d.data.prepare import prepare
from ssl3d.data.store import Store
from ssl3d.downstream.metrics import dice_per_class
from ssl3d.downstream.segmentation import finetune, load_segmenter, make_segmenter, score, segment
from ssl3d.errors import InputError
from ssl3d.files import read_table
from ssl3d.networks.cards import check_card, read_card
from ssl3d.networks.unet import Segmenter
from ssl3d.networks.weights import load_encoder
from ssl3d.tasks import NAMES
from ssl3d.training import pretrain as pretrain_module
from ssl3d.training.loop import images_of_step, steps_per_epoch
from ssl3d.training.pretrain import pretrain
from ssl3d.training.runs import append_log, read_log, trim_log

PRETRAIN = """
import sys
from ssl3d.training.pretrain import pretrain
pretrain("rotation", sys.argv[1], sys.argv[2], epochs=25, batch_size=2, widths=(8, 16, 32), progress=False,
         accelerator="cpu")
"""
FINETUNE = """
import sys
from ssl3d.downstream.segmentation import finetune
finetune(sys.argv[1], sys.argv[2], encoder=sys.argv[3], labels=0.3, epochs=80, warmup=20, progress=False,
         accelerator="cpu")
"""


@pytest.fixture(scope="session")
def encoder(store, tmp_path_factory):
    """A short pretraining run on the sample brains."""
    return pretrain(
        "rotation", store.folder, tmp_path_factory.mktemp("runs") / "rot", epochs=2, widths=SMALL, progress=False
    )


def run(code, *args):
    subprocess.run([sys.executable, "-c", code, *map(str, args)], check=True, cwd="/")


def kill_once(code, out, when, *args):
    """Start a run and kill it as soon as `when()` is true; False where it had ended before."""
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, args)], cwd="/")
    while process.poll() is None and not when():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL) if process.poll() is None else None
    return process.wait() == -signal.SIGKILL


def logged(out, step):
    try:
        return read_log(out)["step"][-1] >= step
    except (InputError, IndexError, OSError, ValueError):
        return False


def test_killed_and_continued_is_never_killed(store, tmp_path):
    run(PRETRAIN, store.folder, tmp_path / "a")
    assert kill_once(PRETRAIN, tmp_path / "b", lambda: logged(tmp_path / "b", 70), store.folder, tmp_path / "b")
    assert (tmp_path / "b" / "last.ckpt").exists() and not (tmp_path / "b" / "encoder.json").exists()
    with pytest.raises(InputError, match="not finished"):
        read_card(tmp_path / "b")
    run(PRETRAIN, store.folder, tmp_path / "b")
    for name in ("encoder.safetensors", "encoder.json", "log.csv", "settings.yaml"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


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
        usual = {"task": "location", "store": store.folder, "out": tmp_path / "wrong", "slices": True}
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


@pytest.mark.parametrize("task", NAMES)
def test_every_task_on_real_images(real_data, tmp_path_factory, task):
    folder = tmp_path_factory.getbasetemp() / "real"
    sources = {"hippocampus": ("Task04_Hippocampus", 32), "retina": ("retinamnist/retinamnist.npz", 64)}
    for name, (source, size) in sources.items():
        store = prepare(real_data / source, folder / name, size=size, progress=False).folder
        for slices in (False, True) if name == "hippocampus" else (False,):
            run = pretrain(
                task,
                store,
                folder / f"{name}-{task}-{slices}",
                epochs=1,
                batch_size=64,
                widths=SMALL,
                slices=slices,
                progress=False,
                accelerator="cpu",
            )
            assert np.isfinite(read_log(run)["loss"]).all() and load_encoder(run).channels == SMALL


@pytest.mark.long
@pytest.mark.parametrize("what", ["pretrain", "finetune"])
def test_killed_at_many_random_moments(store, encoder, tmp_path, what):
    code, args = (PRETRAIN, ()) if what == "pretrain" else (FINETUNE, (encoder,))
    weights = "encoder.safetensors" if what == "pretrain" else "segmenter.safetensors"
    run(code, store.folder, tmp_path / "a", *args)
    rng, kills = random.Random(0), 0
    for attempt in range(14):
        last = int(read_log(tmp_path / "b")["step"][-1]) if logged(tmp_path / "b", 1) else 0
        step, end = last + rng.randint(5, 60), time.time() + (rng.uniform(0, 12) if attempt % 3 == 0 else 600)
        when = lambda step=step, end=end: time.time() > end or logged(tmp_path / "b", step)  # noqa: E731
        if not kill_once(code, tmp_path / "b", when, store.folder, tmp_path / "b", *args):
            break
        kills += 1
    run(code, store.folder, tmp_path / "b", *args)
    assert kills > 4
    assert (tmp_path / "a" / weights).read_bytes() == (tmp_path / "b" / weights).read_bytes()
    assert (tmp_path / "a" / "log.csv").read_bytes() == (tmp_path / "b" / "log.csv").read_bytes()


def test_every_epoch_deals_out_every_image():
    for n, size in ((10, 3), (8, 4), (5, 5)):
        per = steps_per_epoch(n, size)
        for epoch in range(3):
            seen = [i for s in range(per) for i in images_of_step(n, size, seed=1, step=epoch * per + s)]
            assert len(seen) == len(set(seen)) == per * size
    assert steps_per_epoch(3, 8) == 1 and sorted(images_of_step(3, 8, 0, 5)) == [0, 1, 2]


def test_run_folder(store, encoder):
    assert {p.name for p in encoder.iterdir()} == {
        "settings.yaml",
        "train.lock",
        "log.csv",
        "last.ckpt",
        "encoder.safetensors",
        "encoder.json",
    }
    settings, card, log = yaml.safe_load((encoder / "settings.yaml").read_text()), read_card(encoder), read_log(encoder)
    assert settings["task"] == card["task"] == "rotation" and settings["store"] == card["store"] == store.hash
    assert (card["in_channels"], card["spatial_dims"], card["widths"]) == (4, 3, list(SMALL))
    assert set(log) == {"step", "loss", "accuracy", "chance"} and log["step"][-1] == card["steps"]
    seen = {store.cases[n]["fingerprint"] for n in store.split("test")}
    assert not seen & set(card["trained_on"]), "no test image was looked at"


def test_finished_runs_return_and_other_settings_are_refused(store, encoder):
    before = (encoder / "encoder.safetensors").stat().st_mtime_ns
    pretrain("rotation", store.folder, encoder, epochs=2, widths=SMALL, progress=False)
    assert (encoder / "encoder.safetensors").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="seed was 0 and is now 1"):
        pretrain("rotation", store.folder, encoder, epochs=2, widths=SMALL, seed=1, progress=False)
    with pytest.raises(InputError, match="not empty"):
        pretrain("rotation", store.folder, store.folder, epochs=2, widths=SMALL, progress=False)


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


@pytest.mark.parametrize(
    "wrong", [{"labels": 0}, {"labels": 2}, {"steps": 0}, {"steps": 3, "warmup": 4}, {"warmup": -1}]
)
def test_numbers_that_make_no_fine_tuning(store, tmp_path, wrong):
    with pytest.raises(InputError):
        finetune(store.folder, tmp_path / "x", **({"epochs": 1, "widths": SMALL, "progress": False} | wrong))


def test_the_default_warmup_ends(store, tmp_path):
    out = finetune(store.folder, tmp_path / "x", epochs=2, labels=0.2, widths=SMALL, progress=False)
    settings = yaml.safe_load((out / "settings.yaml").read_text())
    assert 0 < 4 * settings["warmup_steps"] <= settings["steps"]
    fresh = make_segmenter(store, widths=SMALL)[0].encoder.state_dict()
    assert any(not torch.equal(fresh[k], v) for k, v in load_segmenter(out, store).encoder.state_dict().items())


def test_streams_of_random_numbers_are_apart():
    from ssl3d.seeds import generator_for

    streams = [
        torch.rand(4, generator=generator_for(seed, *purpose)).tolist()
        for seed in range(4)
        for purpose in (("order", 0), ("questions", 0), ("order", 1), ("questions", 1), ("order",), ("order", 0, 0))
    ]
    assert len({tuple(s) for s in streams}) == len(streams)


SHARED = """
import os, signal, sys
from ssl3d.training import pretrain as module

read, calls = module.read_batch, []

def read_and_ask(*args, **more):
    calls.append(1)
    if len(calls) == 5 and os.environ.get("LOCAL_RANK", "0") == sys.argv[3]:
        signal.raise_signal(signal.SIGTERM)
    return read(*args, **more)

module.read_batch = read_and_ask
module.pretrain("rotation", sys.argv[1], sys.argv[2], steps=8, batch_size=2, widths=(8, 16, 32), devices=2,
                accelerator="cpu", progress=False)
"""


def checkpoint_step(out):
    return torch.load(out / "last.ckpt", weights_only=True, map_location="cpu")["global_step"]


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


def test_processes_that_share_a_step_end_in_the_same_one(store, tmp_path):
    (tmp_path / "program.py").write_text(SHARED)
    line = [sys.executable, tmp_path / "program.py", store.folder, tmp_path / "run"]
    asked = subprocess.run([*line, "1"], cwd="/", timeout=300)  # the helper is, the first process is not
    assert asked.returncode == 143 and checkpoint_step(tmp_path / "run") == 4
    subprocess.run([*line, "nobody"], cwd="/", timeout=300, check=True)
    assert read_log(tmp_path / "run")["step"].tolist() == list(range(1, 9)) and read_card(tmp_path / "run")


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_asked_to_stop(store, tmp_path, number, status):
    program = str(sys.executable.replace("python3", "ssl3d").replace("python", "ssl3d"))
    line = [program, "pretrain", "rotation", str(store.folder), "--out", str(tmp_path / "x"), "--epochs", "500"]
    line += ["--widths", "[8,16,32]"]
    process = subprocess.Popen(line, cwd="/", stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not logged(tmp_path / "x", 3):
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(number)
    said = process.communicate()[1]
    assert process.returncode == status and "Traceback" not in said
    assert number == signal.SIGTERM or "goes on where it stopped" in said
    assert checkpoint_step(tmp_path / "x") == read_log(tmp_path / "x")["step"][-1]


def test_damaged_checkpoint_and_settings_are_named(store, tmp_path):
    out = pretrain("rotation", store.folder, tmp_path / "x", epochs=1, widths=SMALL, progress=False)
    (out / "encoder.json").unlink()
    (out / "last.ckpt").write_bytes((out / "last.ckpt").read_bytes()[:5000])
    with pytest.raises(InputError, match="last.ckpt"):
        pretrain("rotation", store.folder, out, epochs=1, widths=SMALL, progress=False)
    (out / "settings.yaml").write_text("{")
    with pytest.raises(InputError, match="settings.yaml"):
        pretrain("rotation", store.folder, out, epochs=1, widths=SMALL, progress=False)


def test_a_log_cut_at_its_header_is_begun_again(tmp_path):
    (tmp_path / "log.csv").write_text("step,lo")
    trim_log(tmp_path, 0)
    append_log(tmp_path, {"step": 1, "loss": 2.0})
    assert read_log(tmp_path)["step"].tolist() == [1]


def test_a_network_of_other_classes_is_refused(store, tmp_path):
    out = finetune(store.folder, tmp_path / "x", steps=1, warmup=0, widths=SMALL, progress=False)
    (out / "segmenter.json").write_text(
        json.dumps(json.loads((out / "segmenter.json").read_text()) | {"classes": {"0": "background", "3": "x"}})
    )
    with pytest.raises(InputError, match="apart"):
        load_segmenter(out, store)


def test_unknown_task_and_option(store, tmp_path):
    with pytest.raises(InputError, match="'rotate' is not a task"):
        pretrain("rotate", store.folder, tmp_path / "x")
    with pytest.raises(InputError, match="no option"):
        pretrain("rotation", store.folder, tmp_path / "x", options={"n_turns": 3})
    assert not (tmp_path / "x").exists()


def test_frozen_means_frozen(store, encoder, tmp_path):
    out = finetune(store.folder, tmp_path / "warm", encoder=encoder, labels=0.2, epochs=3, warmup=3, progress=False)
    before, after = load_encoder(encoder).state_dict(), load_segmenter(out, store).encoder.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    decoder = make_segmenter(store, encoder)[0].decoder.state_dict()
    assert any(not torch.equal(decoder[k], v) for k, v in load_segmenter(out, store).decoder.state_dict().items())
    out = finetune(store.folder, tmp_path / "free", encoder=encoder, labels=0.2, epochs=3, warmup=2, progress=False)
    after = load_segmenter(out, store).encoder.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)


def test_the_encoder_is_used(store, encoder):
    loaded = safetensors.torch.load_file(encoder / "encoder.safetensors")
    assert all(torch.equal(v, loaded[k]) for k, v in make_segmenter(store, encoder)[0].encoder.state_dict().items())


@pytest.mark.parametrize(
    "change, said",
    [
        ({"in_channels": 2}, "of another shape.*Nothing was loaded"),
        ({"in_channels": 5}, "5 channels"),
        ({"spatial_dims": 2}, "2 dimension"),
        ({"widths": [8, 16]}, "Nothing was loaded"),
    ],
)
def test_an_encoder_of_another_shape_is_refused(store, encoder, tmp_path, change, said):
    (tmp_path / "e").mkdir()
    (tmp_path / "e/encoder.safetensors").write_bytes((encoder / "encoder.safetensors").read_bytes())
    (tmp_path / "e/encoder.json").write_text(json.dumps(read_card(encoder) | change))
    with pytest.raises(InputError, match=said):
        finetune(store.folder, tmp_path / "ft", encoder=tmp_path / "e", epochs=1, progress=False)
    assert not (tmp_path / "ft").exists()


def test_an_encoder_that_saw_a_test_image_is_refused(store, encoder, tmp_path):
    (tmp_path / "e").mkdir()
    (tmp_path / "e/encoder.safetensors").write_bytes((encoder / "encoder.safetensors").read_bytes())
    leaked = store.cases[store.split("test")[0]]["fingerprint"]
    card = read_card(encoder)
    (tmp_path / "e/encoder.json").write_text(json.dumps(card | {"trained_on": [*card["trained_on"], leaked]}))
    with pytest.raises(InputError, match="keeps for testing"):
        finetune(store.folder, tmp_path / "ft", encoder=tmp_path / "e", epochs=1, progress=False)
    finetune(store.folder, tmp_path / "ft", encoder=tmp_path / "e", epochs=1, allow_seen="all", progress=False)
    assert yaml.safe_load((tmp_path / "ft/settings.yaml").read_text())["allow_seen"] == "all"


def test_an_encoder_that_saw_a_test_person_is_refused(encoder, tmp_path):
    again = prepare(SAMPLES, tmp_path / "again", size=16, seed=1, progress=False)  # who was trained on is tested here
    for case in again.cases.values():
        case["fingerprint"] += "scanned again"
    with pytest.raises(InputError, match="subject.*keeps for testing.*brain_"):
        check_card(read_card(encoder), again, encoder)
    check_card(read_card(encoder), again, encoder, allow_seen="names")


def test_scores_are_those_of_the_kept_network(store, encoder, tmp_path):
    out = finetune(store.folder, tmp_path / "ft", encoder=encoder, labels=0.2, epochs=2, warmup=1, progress=False)
    again = score(segment(load_segmenter(out, store), store, store.split("test")), store)
    assert read_table(out / "scores.csv") == again
    assert {r["case"] for r in again} == set(store.split("test"))


def test_dice_agrees_with_counting():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (2, 6, 8, 8, 8))
    a[0][a[0] == 2] = 0  # a class absent from the prediction
    a[1][a[1] == 3] = b[1][b[1] == 3] = 0  # absent from both
    b[2] = 0  # empty truth
    a[3] = b[3] = 0  # both empty
    expected = np.array(
        [
            [
                2 * ((x == c) & (y == c)).sum() / max(1, (x == c).sum() + (y == c).sum())
                if ((x == c) | (y == c)).any()
                else 1
                for c in (1, 2, 3)
            ]
            for x, y in zip(a, b)
        ]
    )
    assert np.allclose(dice_per_class(torch.tensor(a), torch.tensor(b), 4), expected, atol=1e-6)


def test_same_command_same_bytes(store, encoder, tmp_path):
    for name in ("a", "b"):
        finetune(store.folder, tmp_path / name, encoder=encoder, labels=0.2, epochs=2, warmup=1, progress=False)
    for name in ("segmenter.safetensors", "scores.csv", "log.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_store_without_masks_is_refused(tmp_path):
    from ssl3d.data.prepare import prepare

    for i in range(4):
        (tmp_path / "scans").mkdir(exist_ok=True)
        np.save(tmp_path / f"scans/{i}.npy", np.random.default_rng(i).random((8, 8, 8)))
    store = prepare(tmp_path / "scans", tmp_path / "store", size=8, progress=False)
    assert isinstance(store, Store)
    with pytest.raises(InputError, match="masks"):
        finetune(store.folder, tmp_path / "ft", epochs=1, progress=False)
