"""Runs: what is in their folders, who gets which images and numbers, and what is damaged."""

import pytest
import torch
import yaml
from conftest import SMALL

from ssl3d.errors import InputError
from ssl3d.networks.cards import read_card
from ssl3d.training.loop import images_of_step, steps_per_epoch
from ssl3d.training.pretrain import pretrain
from ssl3d.training.runs import append_log, read_log, trim_log

pytestmark = pytest.mark.quick


def test_every_epoch_deals_out_every_image():
    for n, size in ((10, 3), (8, 4), (5, 5)):
        per = steps_per_epoch(n, size)
        for epoch in range(3):
            seen = [i for s in range(per) for i in images_of_step(n, size, seed=1, step=epoch * per + s)]
            assert len(seen) == len(set(seen)) == per * size
    assert steps_per_epoch(3, 8) == 1 and sorted(images_of_step(3, 8, 0, 5)) == [0, 1, 2]


def test_run_folder(store, encoder):
    assert {p.name for p in encoder.folder.iterdir()} == {
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


def test_streams_of_random_numbers_are_apart():
    from ssl3d.seeds import generator_for

    streams = [
        torch.rand(4, generator=generator_for(seed, *purpose)).tolist()
        for seed in range(4)
        for purpose in (("order", 0), ("questions", 0), ("order", 1), ("questions", 1), ("order",), ("order", 0, 0))
    ]
    assert len({tuple(s) for s in streams}) == len(streams)


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
