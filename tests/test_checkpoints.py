"""Checkpoints of others: what is read, what is told, what is refused, and where an imported encoder can go."""

import os
import re
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import SMALL
from monai.networks.nets import DynUNet, SegResNet, SwinUNETR, resnet18

import ssl3d
from ssl3d.downstream.finetune import finetune
from ssl3d.errors import InputError
from ssl3d.networks.checkpoints import read_checkpoint, read_tensors
from ssl3d.networks.encoders import as_encoder, make_encoder, nnunet_network, nnunet_plan
from ssl3d.networks.exchange import permuted
from ssl3d.networks.weights import load_encoder

needs_nnunet = pytest.mark.skipif(
    find_spec("dynamic_network_architectures") is None, reason="dynamic-network-architectures is not installed"
)


def dynunet(channels=1):
    return DynUNet(3, channels, 2, [3] * 3, [1, 2, 2], [2, 2], filters=SMALL, res_block=True)


def nnunet(name, dims):
    return nnunet_network(name, 1, 2, nnunet_plan(name, dims, SMALL))


OTHERS = {  # name -> a network as its library makes it, and an encoder for it
    "DynUNet": lambda: (dynunet(), make_encoder("dynunet", 3, 1, SMALL)),
    "SegResNet": lambda: (SegResNet(2, init_filters=32, in_channels=1), make_encoder("segresnet", 2, 1)),
    "SwinUNETR": lambda: (SwinUNETR(1, 2, spatial_dims=2), make_encoder("swinunetr", 2, 1)),
    "ResNet": lambda: (resnet18(spatial_dims=2, n_input_channels=1), make_encoder("resnet18", 2, 1)),
    "resenc": lambda: (nnunet("resenc", 3), make_encoder("resenc", 3, 1, SMALL)),
    "plainunet": lambda: (nnunet("plainunet", 2), make_encoder("plainunet", 2, 1, SMALL)),
}
NAMES = [pytest.param(name, marks=needs_nnunet if name.islower() else ()) for name in OTHERS]


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("before", ["", "module.", "state_dict._orig_mod.net."])
@pytest.mark.parametrize("name", NAMES)
def test_networks_of_others_are_read_whatever_stands_before_their_names(name, before, ending, tmp_path):
    network, encoder = OTHERS[name]()
    fresh = {k: v.clone() for k, v in encoder.state_dict().items()}
    weights = {before + k: v.clone() for k, v in network.state_dict().items()} | {"lr": torch.tensor(0.1)}
    file = tmp_path / f"weights.{ending}"
    torch.save(weights, file) if ending == "pth" else safetensors.torch.save_file(weights, file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = read_checkpoint(file, encoder)
    assert made.imported.covered == 1 and made.imported.prefix.startswith(before)
    assert "lr" in made.imported.unused and {row["what"] for row in made.imported.rows} == {"loaded"}
    for row in made.imported.rows:
        assert torch.equal(made.state_dict()[row["name"]], weights[row["from"]]), row
    assert all(torch.equal(fresh[k], v) for k, v in encoder.state_dict().items()), "the one that was given is as it was"
    sums = [float(v.detach().double().sum()) for v in made.parameters()]
    assert sums != [float(v.detach().double().sum()) for v in encoder.parameters()]


def test_what_an_encoder_answers_is_what_the_network_answers(tmp_path):
    network, encoder = OTHERS["SwinUNETR"]()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "a.pth")
    made, x = read_checkpoint(tmp_path / "a.pth", encoder).eval(), torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(made(x), network.eval().swinViT(x)))


def test_batch_normalisation_without_a_place_is_told(tmp_path):
    network, encoder = OTHERS["ResNet"]()
    torch.save(network.state_dict(), tmp_path / "a.pth")
    with pytest.warns(UserWarning, match="20 layers of the file have batch normalisation, as bn1"):
        read_checkpoint(tmp_path / "a.pth", encoder)


def test_of_two_networks_in_one_file_the_other_can_be_taken(tmp_path):
    first, second = (make_encoder("unet", 3, 1, SMALL, seed=k).state_dict() for k in (1, 2))
    torch.save({"student": first, "teacher": second}, tmp_path / "a.pth")
    with pytest.warns(UserWarning, match="As much is found under 'teacher.'"):
        made = read_checkpoint(tmp_path / "a.pth", make_encoder("unet", 3, 1, SMALL))
    assert all(torch.equal(first[k], v) for k, v in made.state_dict().items())
    with warnings.catch_warnings(record=True):
        other = read_checkpoint(tmp_path / "a.pth", make_encoder("unet", 3, 1, SMALL), rename={"teacher.": ""})
    assert all(torch.equal(second[k], v) for k, v in other.state_dict().items())


def test_channels_are_widened_and_narrowed_by_name(tmp_path):
    one, four = dynunet(1), dynunet(4)
    torch.save(one.state_dict(), tmp_path / "one.pth")
    torch.save(four.state_dict(), tmp_path / "four.pth")
    kernel = "stages.0.conv1.conv.weight"
    made = read_checkpoint(tmp_path / "one.pth", make_encoder("dynunet", 3, 4, SMALL))
    theirs = one.input_block.conv1.conv.weight
    assert all(torch.allclose(made.state_dict()[kernel][:, k], theirs[:, 0] / 4) for k in range(4))
    assert sum(row["what"] == "widened" for row in made.imported.rows) == 2
    with pytest.raises(InputError, match=r"reads 4 channels and the encoder 1: say which they are, as sources=\(0,\)"):
        read_checkpoint(tmp_path / "four.pth", make_encoder("dynunet", 3, 1, SMALL))
    narrow = read_checkpoint(tmp_path / "four.pth", make_encoder("dynunet", 3, 1, SMALL), sources=(2,))
    assert torch.equal(narrow.state_dict()[kernel], four.input_block.conv1.conv.weight[:, 2:3])
    swapped = read_checkpoint(tmp_path / "four.pth", make_encoder("dynunet", 3, 4, SMALL), sources=(3, 2, 1, 0))
    assert torch.equal(swapped.state_dict()[kernel], four.input_block.conv1.conv.weight.flip(1))
    with pytest.raises(InputError, match="need as many numbers from 0 to 3"):
        read_checkpoint(tmp_path / "four.pth", make_encoder("dynunet", 3, 1, SMALL), sources=(4,))


def test_kernels_are_permuted_on_request(tmp_path):
    encoder = make_encoder("unet", 3, 1, SMALL, seed=4).eval()
    torch.save(permuted(encoder.state_dict(), (2, 1, 0)), tmp_path / "zyx.pth")
    fresh, x = make_encoder("unet", 3, 1, SMALL), torch.rand(1, 1, 8, 12, 20)
    made = read_checkpoint(tmp_path / "zyx.pth", fresh, transpose=True).eval()
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), encoder.parameters()))
    as_is = read_checkpoint(tmp_path / "zyx.pth", fresh).eval()
    with torch.no_grad():
        turned = as_is(x.permute(0, 1, 4, 3, 2))[-1].permute(0, 1, 4, 3, 2)
        torch.testing.assert_close(turned, encoder(x)[-1], rtol=1e-4, atol=1e-5)
    network, swin = OTHERS["SwinUNETR"]()
    torch.save(network.state_dict(), tmp_path / "swin.pth")
    with pytest.raises(InputError, match="transformer with windows"):
        read_checkpoint(tmp_path / "swin.pth", swin, transpose=True)


def test_too_little_is_refused_with_a_report_and_rename_closes_the_gap(tmp_path):
    network, encoder = OTHERS["SegResNet"]()
    renamed = {k.replace("down_layers", "down"): v for k, v in network.state_dict().items()}
    torch.save(renamed, tmp_path / "a.pth")
    with pytest.raises(InputError) as e:
        read_checkpoint(tmp_path / "a.pth", encoder)
    assert re.search(r"covers \d% of the encoder, and least is 90%", str(e.value)) and ": missing" in str(e.value)
    assert "network.down_layers.0.1.conv1.conv.weight" in str(e.value) and "rename={old: new}" in str(e.value)
    assert read_checkpoint(tmp_path / "a.pth", encoder, rename={"down.": "down_layers."}).imported.covered == 1
    part = read_checkpoint(tmp_path / "a.pth", encoder, least=0)
    assert 0 < part.imported.covered < 0.1 and "missing" in str(part.imported)
    with pytest.raises(InputError, match="no name in it has 'dwon', which rename replaces"):
        read_checkpoint(tmp_path / "a.pth", encoder, rename={"dwon": "down"})
    with pytest.raises(InputError, match="two tensors would be called"):
        read_checkpoint(tmp_path / "a.pth", encoder, rename={"down.0": "down.1"})
    torch.save({"other.weight": torch.zeros(3)}, tmp_path / "b.pth")
    with pytest.raises(InputError, match="covers 0%"):
        read_checkpoint(tmp_path / "b.pth", encoder, least=0)
    with pytest.raises(InputError, match="covers"):
        read_checkpoint(tmp_path / "a.pth", make_encoder("unet", 3, 1, SMALL))


class Planted:
    def __reduce__(self):
        return os.system, ("touch PLANTED",)


def test_nothing_is_run_and_what_is_no_file_of_weights_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "more": Planted()}, "planted.pth")
    with pytest.raises(InputError, match=r"planted.pth: is no plain file of weights: it asks for (posix|nt).system"):
        read_tensors("planted.pth")
    assert not (tmp_path / "PLANTED").exists()
    (tmp_path / "text.pth").write_text("these are no weights")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save([1, 2], "list.pth")
    torch.jit.script(torch.nn.ReLU()).save("script.pt")
    (tmp_path / "cut.safetensors").write_bytes(safetensors.torch.save({"a": torch.zeros(9)})[:-8])
    for name in ("text.pth", "empty.pth", "list.pth", "script.pt", "cut.safetensors", "none.pth"):
        with pytest.raises(InputError, match=name):
            read_tensors(name)


def test_single_numbers_of_numpy_are_no_obstacle(tmp_path):
    torch.save({"_best_ema": np.float64(0.5), "epoch": np.int64(2), "w": {"a": torch.ones(2)}}, tmp_path / "a.pth")
    assert [*read_tensors(tmp_path / "a.pth")] == ["w.a"]


def test_broken_weights_are_refused(tmp_path):
    weights = make_encoder("unet", 3, 1, SMALL).state_dict()
    weights["stages.1.conv1.conv.weight"][0] = float("nan")
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(InputError, match="stages.1.conv1.conv.weight are not finite"):
        read_checkpoint(tmp_path / "a.pth", make_encoder("unet", 3, 1, SMALL))


def test_an_imported_encoder_is_kept_fine_tuned_and_compared(store, tmp_path):
    from ssl3d.evidence.experiments import Experiment, run_experiment

    torch.save({"module": dynunet().state_dict()}, tmp_path / "a.pth")
    channels = ssl3d.Store(store).channels
    encoder = read_checkpoint(tmp_path / "a.pth", make_encoder("dynunet", 3, channels, SMALL), out=tmp_path / "kept")
    again = load_encoder(tmp_path / "kept")
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), again.parameters()))
    assert again.card["task"] == "imported" and len(again.card["imported"]["from"]) > 8
    with pytest.raises(InputError, match="not empty"):
        read_checkpoint(tmp_path / "a.pth", make_encoder("dynunet", 3, 1, SMALL), out=tmp_path / "kept")
    how = {"steps": 1, "progress": False}
    starts = {"module": encoder, "folder": tmp_path / "kept"}
    runs = [finetune(store, tmp_path / name, encoder=each, **how) for name, each in starts.items()]
    pair = [run.encoder.state_dict() for run in runs]
    assert all(torch.equal(a, b) for a, b in zip(*(each.values() for each in pair)))

    arms = {"scratch": {}, "theirs": {"encoder": str(tmp_path / "kept")}}
    network = {"architecture": "dynunet", "widths": list(SMALL)}
    what = Experiment(cohort={"source": str(store.folder)}, arms=arms, label_fractions=[1.0], seeds=1, network=network,
                      finetuning={"steps": 1})  # fmt: skip
    rows = run_experiment(what, tmp_path / "experiment", progress=False)
    assert {row["arm"] for row in rows} == {"scratch", "theirs"}


def test_an_encoder_of_ones_own_gets_weights_but_no_folder(tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, 2, 1), torch.nn.ReLU())
    encoder = as_encoder(network, torch.rand(1, 1, 16, 16))
    torch.save({"backbone.0.weight": torch.ones(4, 1, 3, 3), "backbone.0.bias": torch.zeros(4)}, tmp_path / "a.pth")
    made = read_checkpoint(tmp_path / "a.pth", encoder)
    assert (made.network[0].weight == 1).all() and not (network[0].weight == 1).all()
    with pytest.raises(InputError, match="network of your own, which a folder cannot describe"):
        read_checkpoint(tmp_path / "a.pth", encoder, out=tmp_path / "out")
    with pytest.raises(InputError, match="as_encoder"):
        read_checkpoint(tmp_path / "a.pth", network)
