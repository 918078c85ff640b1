"""Fine-tuning for segmentation: frozen, refused, scored."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from conftest import SAMPLES, SMALL, new_network

import ssl3d
from ssl3d.data.prepare import prepare
from ssl3d.data.store import Store
from ssl3d.downstream.finetune import finetune, load_network
from ssl3d.downstream.segmentation import Segmentation, Segmented, class_shares, probabilities_of, score, segment
from ssl3d.errors import InputError
from ssl3d.files import read_table, write_table
from ssl3d.networks.cards import check_card, read_card
from ssl3d.networks.weights import load_encoder


@pytest.mark.parametrize(
    "wrong", [{"labels": 0}, {"labels": 2}, {"steps": 0}, {"steps": 3, "warmup": 4}, {"warmup": -1}]
)
def test_numbers_that_make_no_fine_tuning(store, tmp_path, wrong):
    with pytest.raises(InputError):
        finetune(store.folder, tmp_path / "x", **({"epochs": 1, "widths": SMALL, "progress": False} | wrong))


def test_nothing_is_frozen_unless_it_is_asked_for(store, tmp_path):
    """A random encoder that is frozen for a quarter of its steps is a handicapped baseline."""
    out = finetune(store.folder, tmp_path / "x", epochs=2, labels=0.2, widths=SMALL, progress=False)
    settings = yaml.safe_load((out / "settings.yaml").read_text())
    assert settings["warmup_steps"] == 0
    out = finetune(store.folder, tmp_path / "one", steps=1, labels=0.2, widths=SMALL, progress=False)
    fresh = new_network(store, widths=SMALL)[0].encoder.state_dict()
    assert any(not torch.equal(fresh[k], v) for k, v in load_network(out).encoder.state_dict().items())


def test_frozen_means_frozen(store, encoder, tmp_path):
    out = finetune(store.folder, tmp_path / "warm", encoder=encoder, labels=0.2, epochs=3, warmup=3, progress=False)
    before, after = load_encoder(encoder).state_dict(), load_network(out).encoder.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    decoder = new_network(store, encoder)[0].decoder.state_dict()
    assert any(not torch.equal(decoder[k], v) for k, v in load_network(out).decoder.state_dict().items())
    out = finetune(store.folder, tmp_path / "free", encoder=encoder, labels=0.2, epochs=3, warmup=2, progress=False)
    after = load_network(out).encoder.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)


def test_the_encoder_is_used(store, encoder):
    loaded = safetensors.torch.load_file(encoder / "encoder.safetensors")
    assert all(torch.equal(v, loaded[k]) for k, v in new_network(store, encoder)[0].encoder.state_dict().items())


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
        case["voxel_digests"] = []
    with pytest.raises(InputError, match="subject.*keeps for testing.*brain_"):
        check_card(read_card(encoder), again, encoder)
    check_card(read_card(encoder), again, encoder, allow_seen="names")


def test_scores_are_those_of_the_kept_network(store, encoder, tmp_path):
    out = finetune(store.folder, tmp_path / "ft", encoder=encoder, labels=0.2, epochs=2, warmup=1, progress=False)
    again = score(segment(load_network(out), store, store.split("test")), store)
    assert str(read_table(out / "scores.csv")) == str(again)
    assert {r["case"] for r in again} == set(store.split("test"))


def test_the_loss_is_dice_of_all_classes_background_included_plus_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, 3, 4, 4, 4, generator=generator)
    truth = torch.randint(3, (2, 1, 4, 4, 4), generator=generator)
    found = outputs.softmax(dim=1).flatten(2)
    true = torch.nn.functional.one_hot(truth[:, 0], 3).movedim(-1, 1).flatten(2)
    dice = 2 * (found * true).sum(dim=2) / (found.square() + true).sum(dim=2)
    expected = 1 - dice.mean() + torch.nn.functional.cross_entropy(outputs, truth[:, 0])
    loss = Segmentation().loss({"classes": {"0": "background", "1": "a", "2": "b"}})
    assert loss(outputs, truth).item() == pytest.approx(expected.item(), abs=1e-4)


def test_a_network_does_not_learn_from_whom_it_segments(store):
    """Its running statistics stay, and whoever else is segmented changes nothing."""
    names = store.split("test")[:3]
    network = torch.nn.Sequential(torch.nn.Conv3d(store.channels, 4, 3, padding=1), torch.nn.BatchNorm3d(4),
                                  torch.nn.Dropout()).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    together = dict(probabilities_of(network, store, names))
    alone = dict(probabilities_of(network.train(), store, names[:1]))
    assert torch.allclose(together[names[0]], alone[names[0]])
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_same_command_same_bytes(store, encoder, tmp_path):
    for name in ("a", "b"):
        finetune(store.folder, tmp_path / name, encoder=encoder, labels=0.2, epochs=2, warmup=1, progress=False)
    for name in ("network.safetensors", "scores.csv", "log.csv"):
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


def labelled(folder, header, cells, test=0.4):
    """A store of a table with one column of labels."""
    folder.mkdir()
    rows = [f"image,{header}"]
    for i, cell in enumerate(cells):
        np.save(folder / f"a{i}.npy", np.random.default_rng(i).random((16, 16, 16)))
        rows.append(f"a{i}.npy,{cell}")
    (folder / "t.csv").write_text("\n".join(rows))
    return prepare(folder / "t.csv", folder.parent / f"{folder.name}-store", size=16, test=test, progress=False)


def test_a_refusal_names_the_option_that_helps(store, tmp_path):
    """In a shell as well, where it is spelled with two dashes."""
    ages, sexes = labelled(tmp_path / "ages", "age", range(30, 38)), labelled(tmp_path / "sexes", "sex", "MFMFMFMF")
    untested = labelled(tmp_path / "untested", "age", range(30, 38), test=0)
    for opened, how, words in (
        (ages, {}, "masks for 0 .*--goal regression --target age"),
        (sexes, {}, "masks for 0 .*--goal classification --target sex"),
        (ages, {"goal": "classification"}, "--goal regression --target age"),
        (store, {"goal": "regression", "target": "age"}, "--goal segmentation"),
        (untested, {"goal": "regression"}, "nobody for testing.*--test 0.2.*--fold 0,5"),
    ):
        with pytest.raises(InputError, match=words):
            finetune(opened, tmp_path / "x", steps=1, progress=False, **how)
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("goal", ["segmentation", "regression"])
def test_fine_tuning_ends_where_its_loss_is_no_number(store, tmp_path, goal):
    opened = store if goal == "segmentation" else labelled(tmp_path / "ages", "age", range(30, 38))
    how = {"goal": goal, "steps": 6, "warmup": 0, "lr": 1e30, "batch_size": 2, "widths": (4, 8, 16), "progress": False}
    for _ in range(2):
        with pytest.raises(InputError, match="the loss is (nan|inf) in step 2.*It was shown .*, .*Try a lower"):
            finetune(opened, tmp_path / "x", **how)
        assert {f.name for f in (tmp_path / "x").iterdir()} == {"settings.yaml", "train.lock", "log.csv", "failed.txt"}


def test_scores_start_at_the_shares_of_the_labelled_masks(store, tmp_path):
    """A step of a rate near zero changes nothing, so what is kept is the start; the paper starts all classes equal."""
    still = {"steps": 1, "lr": 1e-12, "widths": SMALL, "progress": False}
    run = finetune(store, tmp_path / "run", labels=0.1, **still)
    trained = json.loads((run / "network.json").read_text())["trained_on"]
    shares = class_shares(store, trained)
    masks = np.concatenate([np.array(store.mask(name)).ravel() for name in trained])
    counts = np.bincount(masks, minlength=4)
    assert np.allclose(shares, counts.clip(min=1) / counts.sum()) and 0 < shares.min() < 0.05 and 0 < len(trained) < 5
    bias = load_network(run).decoder.out.conv.conv.bias
    assert np.allclose(bias.softmax(dim=0).detach().numpy(), shares, atol=1e-4)
    paper = finetune(store, tmp_path / "paper", preset="paper", warmup=0, **still)
    assert load_network(paper).decoder.out.conv.conv.bias.abs().max() < 1e-9, "zero"


def test_scores_are_those_of_the_scan(store, tmp_path):
    """A mask that is half a voxel late on the scan has a lower Dice there, which the grid of the store cannot show."""
    name = store.split("test")[0]
    exact = Segmented(np.array(store.mask(name)), store.truth(name))
    late = Segmented(np.array(store.mask(name)), np.roll(store.truth(name), 1, axis=0))
    rows = [score({name: one}, store) for one in (exact, late)]
    assert all(row["dice"] == row["dice_store"] == 1 and row["hausdorff95"] == 0 for row in rows[0])
    assert all(row["dice"] < 1 == row["dice_store"] and row["hausdorff95"] == 4 for row in rows[1])
    assert all(row["surface_dice"] == 1 for row in rows[1]), "a voxel of 4 mm is within the tolerance"
    assert all(row["surface_dice"] < 1 for row in score({name: late}, store, tolerance=3.9))


def test_surface_dice_is_kept_for_every_run_and_its_tolerance_is_an_option(store, tmp_path):
    quick = {"steps": 2, "widths": SMALL, "warmup": 0, "progress": False}
    run = finetune(store, tmp_path / "run", tolerance=1e4, **quick)
    rows = run.scores
    assert all(row["surface_dice"] == (0 if np.isinf(row["hausdorff95"]) else 1) for row in rows), "a miss is in it"
    assert "; surface Dice (within 10000 mm) " in run.summary()
    usual = finetune(store, tmp_path / "usual", **quick)
    known = [row for row in usual.scores if np.isfinite(row["hausdorff95"])]
    assert "; surface Dice (within a voxel) " in usual.summary() and len(usual.scores) == len(rows)
    assert all(0 <= row["surface_dice"] < 1 for row in known if row["hausdorff95"] > 4)
    with pytest.raises(InputError, match="tolerance"):
        finetune(store, tmp_path / "wrong", tolerance=-1, **quick)


def test_a_run_of_an_earlier_version_has_no_surface_dice_and_stays_readable(store, tmp_path):
    run = finetune(store, tmp_path / "run", steps=2, widths=SMALL, warmup=0, progress=False)
    rows = [{name: value for name, value in row.items() if name != "surface_dice"}
            for row in read_table(run / "scores.csv")]
    write_table(run / "scores.csv", rows)
    for name in ("settings.yaml", "network.json"):
        kept = yaml.safe_load((run / name).read_text())
        assert kept.pop("tolerance", "none") is None
        (run / name).write_text(json.dumps(kept))
    again = ssl3d.Run(run.folder)
    assert "Dice on the scans of" in again.summary() and "surface" not in again.summary()
    assert again.network is not None and len(again.scores) == len(rows)
    assert finetune(store, run.folder, steps=2, widths=SMALL, warmup=0, progress=False) == run
