"""Checkpoints of others: what is read, what is told, what is refused, and where an imported encoder can go."""

import os
import pickle
import re
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from conftest import SMALL
from monai.networks.nets import DynUNet, SegResNet, SwinUNETR, resnet18, resnet34

import ssl3d
from ssl3d.data.voxels import fingerprint
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


def read(weights, encoder, folder, **how):
    """An encoder with some weights, read from a file, and the warnings about it."""
    torch.save(weights, folder / "read.pth")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        made = read_checkpoint(folder / "read.pth", encoder, **how)
    return made, [str(each.message) for each in told if "read.pth" in str(each.message)]


def nnunet(name, dims):
    return nnunet_network(name, 1, 2, nnunet_plan(name, dims, SMALL))


OTHERS = {  # name -> a network as its library makes it, and an encoder for it
    "DynUNet": lambda: (dynunet(), make_encoder("dynunet", 3, 1, SMALL)),
    "DynUNet as it is by default": lambda: (
        DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=SMALL), make_encoder("dynunet-basic", 3, 1, SMALL)),
    "SegResNet": lambda: (SegResNet(2, init_filters=32, in_channels=1), make_encoder("segresnet", 2, 1)),
    "SegResNet of 16": lambda: (
        SegResNet(2, init_filters=16, in_channels=1), make_encoder("segresnet", 2, 1, (16, 32, 64, 128))),
    "SwinUNETR": lambda: (SwinUNETR(1, 2, spatial_dims=2), make_encoder("swinunetr", 2, 1)),
    "SwinUNETR of 48": lambda: (
        SwinUNETR(1, 2, spatial_dims=2, feature_size=48), make_encoder("swinunetr", 2, 1, (48, 96, 192, 384, 768))),
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
    assert len(made.imported.cautions) == (name == "ResNet"), "of batch normalisation"
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


def test_a_file_with_shortcuts_is_not_taken_for_one_without(tmp_path):
    plain, basic = DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=SMALL), ("dynunet-basic", 3, 1, SMALL)
    _, told = read(dynunet().state_dict(), make_encoder(*basic), tmp_path)
    assert any("input_block.conv3" in each for each in told)
    with pytest.raises(InputError, match="'dynunet-basic'"):
        read(plain.state_dict(), make_encoder("dynunet", 3, 1, SMALL), tmp_path)
    with torch.no_grad():
        x = torch.rand(1, 1, 16, 16, 16)
        made, told = read(plain.state_dict(), make_encoder(*basic), tmp_path)
        assert not told and torch.allclose(made.eval()(x)[0], plain.eval().input_block(x), atol=1e-5)


@pytest.mark.parametrize("name, widths", [("SegResNet of 16", (16, 32, 64, 128)),
                                          ("SwinUNETR of 48", (48, 96, 192, 384, 768))])
def test_an_encoder_of_other_widths_is_kept_and_made_again(name, widths, tmp_path):
    network, encoder = OTHERS[name]()
    torch.save(network.state_dict(), tmp_path / "a.pth")
    made = read_checkpoint(tmp_path / "a.pth", encoder, out=tmp_path / "kept")
    again = load_encoder(tmp_path / "kept")
    assert again.channels == widths and all(map(torch.equal, again.parameters(), made.parameters()))


def further(name):
    """A network with more than one of our encoders has, that encoder, and what its own network is as an encoder."""
    if name == "shortcut":
        return dynunet(), make_encoder("dynunet", 3, SMALL[0], SMALL), make_encoder("dynunet", 3, 1, SMALL)
    if name == "swin":
        network = SwinUNETR(1, 2, spatial_dims=2, use_v2=True)
        own = as_encoder(network.swinViT, torch.rand(1, 1, 64, 64))
        return network, make_encoder("swinunetr", 2, 1), own
    kind = {"batchnorm": resnet18, "deeper": resnet34}[name]
    network = kind(spatial_dims=2, n_input_channels=1)
    own = as_encoder(kind(spatial_dims=2, n_input_channels=1), torch.rand(2, 1, 64, 64), layers=["layer1", "layer4"])
    return network, make_encoder("resnet18", 2, 1), own


@pytest.mark.parametrize("name, named", [
    ("shortcut", "input_block.conv3.conv.weight"), ("swin", "layers1c.0.layer.conv1"),
    ("deeper", "layer1.2.conv1.weight"), ("batchnorm", "20 layers .* as bn1"),
])  # fmt: skip
def test_what_the_file_has_beyond_the_encoder_is_told_and_its_own_network_takes_it(name, named, tmp_path):
    network, encoder, own = further(name)
    made, told = read(network.state_dict(), encoder, tmp_path)
    assert made.imported.covered == 1 and any(re.search(named, each) for each in told), told
    assert all("as_encoder(network, example)" in each for each in told) and told[0].endswith(made.imported.cautions[0])
    again, told = read(network.state_dict(), own, tmp_path)
    assert again.imported.covered == 1 and told == [], "the advice was followed"


def test_a_fresh_first_convolution_is_refused_and_told(tmp_path):
    encoder, weights = make_encoder("dynunet", 3, 1, SMALL), dynunet().state_dict()
    stem = weights.pop("input_block.conv1.conv.weight")
    basic = DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=SMALL).state_dict()  # no shortcuts
    for given, cure in ((weights, "rename="), (basic, "as 'dynunet-basic'")):
        with pytest.raises(InputError, match=rf"(?s)covers 9\d.\d% .*{cure}.*least=0.9") as e:
            read(given, encoder, tmp_path)
        assert ": missing" in str(e.value) and "A convolution that reads the image" in str(e.value)
        least = float(re.search(r"give least=([\d.]+)", str(e.value))[1])
        assert "does not come from the file" in read(given, encoder, tmp_path, least=least)[1][0]
    renamed = weights | {"input_block.first.conv.weight": stem}
    made, told = read(renamed, encoder, tmp_path, rename={"input_block.first": "input_block.conv1"})
    assert made.imported.covered == 1 and told == [], "the advice was followed"
    assert "Strides, activations and kinds of normalisation are not stored" in str(made.imported)


@pytest.mark.parametrize("other, taken", [
    ("ema.module.", "model."), ("teacher.", "student_network."), ("state_dict_ema.", "state_dict."), ("a.", "bb."),
])  # fmt: skip
def test_of_two_networks_in_one_file_either_can_be_taken(other, taken, tmp_path):
    ours, theirs = (make_encoder("unet", 3, 1, SMALL, seed=k).state_dict() for k in (1, 2))
    both = {other + k: v.half() for k, v in theirs.items()} | {taken + k: v for k, v in ours.items()}
    both |= {f"optimizer.exp_avg.{k}": v * 0 for k, v in ours.items()}
    made, told = read(both, make_encoder("unet", 3, 1, SMALL), tmp_path)
    first = min(other, taken, key=len) if other == "a." else taken  # of an average, the other one
    assert made.imported.prefix == first and len(told) == 1 and repr(other) in told[0] and repr(taken) in told[0]
    for prefix in re.findall(r"prefix='([^']+)'", told[0]):
        made, told = read(both, make_encoder("unet", 3, 1, SMALL), tmp_path, prefix=prefix)
        assert made.imported.prefix == prefix and told == [], "the advice was followed"
        assert all(torch.equal(both[prefix + k].float(), v) for k, v in made.state_dict().items())
    with pytest.raises(InputError, match=f"under prefix 'none.' is no weight .* Most are found under '{first}'"):
        read(both, make_encoder("unet", 3, 1, SMALL), tmp_path, prefix="none.")


def test_wrappers_inside_names_and_lists_are_no_obstacle_and_optimisers_are_no_weights(tmp_path):
    ours = make_encoder("unet", 3, 1, SMALL, seed=1).state_dict()
    for old, new in (("stages.0", "stages.module.0"), ("conv1.", "conv1._orig_mod."), ("stages", "net.module.stages")):
        wrapped = {k.replace(old, new): v for k, v in ours.items()}
        made, told = read(wrapped, make_encoder("unet", 3, 1, SMALL), tmp_path)
        assert told == [] and all(torch.equal(ours[k], v) for k, v in made.state_dict().items())
    named = torch.nn.ModuleDict({"module": torch.nn.Conv2d(1, 4, 3, 1, 1), "head": torch.nn.Conv2d(4, 4, 3, 2, 1)})
    own = as_encoder(torch.nn.Sequential(named["module"], named["head"]), torch.rand(1, 1, 16, 16))
    own.network = named  # an encoder that itself has a part called module
    own.maps = lambda network, x: [network["head"](network["module"](x))]
    for before in ("", "module."):
        weights = {before + k: torch.rand_like(v) for k, v in named.state_dict().items()}
        made = read(weights, own, tmp_path)[0]
        assert all(torch.equal(weights[before + k], v) for k, v in made.network.state_dict().items())
    assert read({"networks": [ours]}, make_encoder("unet", 3, 1, SMALL), tmp_path)[0].imported.prefix == "networks.0."
    with pytest.raises(InputError, match="covers 0.0%"):
        read({"optimizer": {"exp_avg": ours}}, make_encoder("unet", 3, 1, SMALL), tmp_path)
    with pytest.raises(InputError, match="two of its tensors are called a.b"):
        read({"a.b": torch.ones(1), "a": {"b": torch.ones(2)}}, make_encoder("unet", 3, 1, SMALL), tmp_path)


@pytest.mark.parametrize("kind, fault", [
    (lambda v: (10 * v).to(torch.int8), "torch.int8, and weights are decimal"), (lambda v: v > 0, "torch.bool, and"),
    (lambda v: v.to(torch.complex64), "torch.complex64, and"), (torch.Tensor.to_sparse, "no plain array .*sparse_coo"),
    (lambda v: v.to("meta"), "no plain array .* on meta"), (lambda v: v * 0, "each of its kernels, as stages.0.conv1"),
    (lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8), "no plain array .*qint8"),
    (lambda v: v * float("inf"), "are not finite"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:torch.quantize|TypedStorage")
def test_what_is_no_trained_weight_is_refused(kind, fault, tmp_path):
    weights = {k: kind(v) for k, v in make_encoder("unet", 3, 1, SMALL).state_dict().items()}
    with pytest.raises(InputError, match=f"read.pth: .*{fault}"):
        read(weights, make_encoder("unet", 3, 1, SMALL), tmp_path)


def test_whom_the_weights_that_stay_have_seen_is_kept(tmp_path):
    seen = make_encoder("unet", 3, 1, SMALL)
    seen.card = {"task": "rotation", "trained_on": ["scan"], "people": ["somebody"], "sealed": [], "store": "1"}
    weights = make_encoder("unet", 3, 1, SMALL, seed=1).state_dict()
    assert read(weights, seen, tmp_path)[0].card["people"] == [], "all of it is replaced"
    weights.pop("stages.1.conv1.conv.weight")
    card = read(weights, seen, tmp_path, least=0.1)[0].card
    assert card["people"] == ["somebody"] and card["trained_on"] == ["scan"] and card["task"] == "imported"


def test_short_floats_are_cast_and_a_constant_kernel_is_told(tmp_path):
    weights = make_encoder("unet", 3, 1, SMALL, seed=1).state_dict()
    for kind in (torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn):
        made, told = read({k: v.to(kind) for k, v in weights.items()}, make_encoder("unet", 3, 1, SMALL), tmp_path)
        assert told == [] and all(torch.equal(weights[k].to(kind).float(), v) for k, v in made.state_dict().items())
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)  # as PyTorch before 1.6
    assert read_tensors(tmp_path / "old.pth").keys() == weights.keys()
    weights["stages.1.conv1.conv.weight"].zero_()
    told = read(weights, make_encoder("unet", 3, 1, SMALL), tmp_path)[1]
    assert len(told) == 1 and "1 of 9 kernels, as stages.1.conv1.conv.weight, hold one and the same number" in told[0]
    both = {"a": {k: v * 0 for k, v in weights.items()}, "model": weights}
    with pytest.raises(InputError, match="each of its kernels.*others lie under 'model.'. Say which: prefix='a.' or"):
        read(both, make_encoder("unet", 3, 1, SMALL), tmp_path)


@pytest.mark.parametrize("how", [
    {"rename": "a"}, {"rename": ["a"]}, {"rename": {1: "a"}}, {"rename": {"stages": 3}}, {"rename": {"": "a"}},
    {"sources": 0}, {"sources": "0"}, {"sources": (True,)}, {"sources": (0.0,)}, {"sources": ()}, {"sources": (-1,)},
    {"transpose": "yes"}, {"least": "all"}, {"prefix": 3},
], ids=str)  # fmt: skip
def test_an_option_of_the_wrong_kind_is_named(how, tmp_path):
    weights = make_encoder("unet", 3, 3, SMALL).state_dict()
    with pytest.raises(InputError, match=next(iter(how))):
        read(weights, make_encoder("unet", 3, 1, SMALL), tmp_path, **how)


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
    assert re.search(r"covers \d.\d% of the encoder, and least is 100.0%", str(e.value)) and ": missing" in str(e.value)
    assert "network.down_layers.0.1.conv1.conv.weight" in str(e.value) and "rename={old: new}" in str(e.value)
    assert read_checkpoint(tmp_path / "a.pth", encoder, rename={"down.": "down_layers."}).imported.covered == 1
    part = read_checkpoint(tmp_path / "a.pth", encoder, least=0)
    assert 0 < part.imported.covered < 0.1 and "missing" in str(part.imported)
    with pytest.raises(InputError, match="no name in it has 'dwon', which rename replaces"):
        read_checkpoint(tmp_path / "a.pth", encoder, rename={"dwon": "down"})
    with pytest.raises(InputError, match="two tensors would be called"):
        read_checkpoint(tmp_path / "a.pth", encoder, rename={"down.0": "down.1"})
    torch.save({"other.weight": torch.zeros(3)}, tmp_path / "b.pth")
    with pytest.raises(InputError, match="covers 0.0%"):
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
    (tmp_path / "old.pkl").write_bytes(pickle.dumps({"a": Planted()}))
    (tmp_path / "cut.pth").write_bytes((tmp_path / "list.pth").read_bytes()[:-100])
    faults = {"text.pth": "begins with b'these are', as no file", "empty.pth": "is empty. It was not copied to its end",
              "list.pth": "holds no tensor under a name, but a list. Save the weights with their names",
              "script.pt": ".* with TorchScript archives .* save the weights alone", "none.pth": "is no file. Give",
              "cut.safetensors": "cannot be read as safetensors: .* get it again", "old.pkl": ".* operand 149.*alone",
              "cut.pth": ".* failed finding central directory.*get it again"}
    for name, fault in faults.items():
        with pytest.raises(InputError, match=f"{name}: {fault}"):
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


@pytest.fixture(scope="module")
def kept(store, tmp_path_factory):
    """An encoder that was read from a file of MONAI's, and the folder that it is kept in."""
    folder = tmp_path_factory.mktemp("imported")
    network = DynUNet(3, store.channels, 2, [3] * 3, [1, 2, 2], [2, 2], filters=SMALL, res_block=True)
    torch.save({"module": network.state_dict()}, folder / "a.pth")
    empty = make_encoder("dynunet", 3, store.channels, SMALL)
    return read_checkpoint(folder / "a.pth", empty, out=folder / "kept"), folder / "kept"


def test_a_kept_encoder_is_a_run_that_can_be_loaded_fine_tuned_and_exported(store, kept, tmp_path):
    encoder, folder = kept
    run, again = ssl3d.Run(folder), load_encoder(folder)
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), again.parameters()))
    assert again.card["task"] == "imported" and again.card["imported"] == {
        "file": "a.pth", "from": fingerprint((folder.parent / "a.pth",)), "prefix": "module.", "covered": 1.0,
        "cautions": []}  # fmt: skip
    assert run.settings["command"] == "import" and run.settings["least"] == 1
    assert "the weights of another program, from a.pth" in run.summary()
    for out, fault in ((folder, "not empty"), (folder.parent / "a.pth" / "in", "is a file, and no folder")):
        with pytest.raises(InputError, match=fault):
            read_checkpoint(folder.parent / "a.pth", make_encoder("dynunet", 3, 4, SMALL), out=out)
    with pytest.warns(UserWarning, match=re.escape(f"Take load_encoder({str(folder)!r})")):
        read_checkpoint(folder / "encoder.safetensors", make_encoder("dynunet", 3, store.channels, SMALL))

    with pytest.warns(UserWarning, match="licence: unknown, check it"):
        hub = run.export("hub", tmp_path / "hub", licence="mit")
    page = (hub / "README.md").read_text()
    assert "# An encoder with the weights of another program" in page and "licence: unknown, check it" in page
    assert "self-supervised" not in page and "cannot refuse to test" in page
    shared = load_encoder(hub)
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), shared.parameters()))
    for what in ("monai", "nnunet"):
        with pytest.raises(InputError):
            run.export(what, tmp_path / what)

    how = {"steps": 1, "progress": False}
    starts = {"module": encoder, "folder": folder}
    runs = [finetune(store, tmp_path / name, encoder=each, **how) for name, each in starts.items()]
    pair = [run.encoder.state_dict() for run in runs]
    assert all(torch.equal(a, b) for a, b in zip(*(each.values() for each in pair)))


def test_a_kept_encoder_is_an_arm_of_an_experiment(store, kept, tmp_path):
    encoder, folder = kept
    what = {"cohort": {"source": str(store.folder)}, "arms": {"scratch": {}, "theirs": {"encoder": str(folder)}},
            "label_fractions": [1.0], "seeds": 1, "network": {"architecture": "dynunet", "widths": [*SMALL]},
            "finetuning": {"steps": 1, "lr": 1e-9}}  # fmt: skip
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(what))
    answer = ssl3d.experiment(tmp_path / "e.yaml", tmp_path / "experiment", progress=False)
    assert "theirs" in str(answer) and "scratch" in str(answer)
    (run,) = [each.parent for each in (tmp_path / "experiment").rglob("encoder.json") if "theirs" in str(each)]
    near = zip(encoder.parameters(), ssl3d.Run(run).encoder.parameters())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in near), "it began with the weights of the file"


@pytest.mark.parametrize("architecture, theirs, ours, said", [
    ("segresnet", (16, 32, 64, 128), (32, 64, 128, 256), r"begins? with|widths \[16, 32, 64, 128\]"),
    ("swinunetr", (48, 96, 192, 384, 768), (24, 48, 96, 192, 384), r"widths \[48, 96, 192, 384, 768\]"),
    ("unet", (16, 32, 48), SMALL, "levels have 16, 32, 48 filters"),
])  # fmt: skip
def test_a_file_of_other_widths_says_which(architecture, theirs, ours, said, tmp_path):
    with pytest.raises(InputError, match=said):
        read(make_encoder(architecture, 2, 1, theirs).state_dict(), make_encoder(architecture, 2, 1, ours), tmp_path)


def test_the_names_of_a_dynunet_in_a_unet_are_told(tmp_path):
    made, told = read(dynunet().state_dict(), make_encoder("unet", 3, 1, SMALL), tmp_path)
    assert made.imported.covered == 1 and "make the encoder as 'dynunet'" in told[0]


def test_an_encoder_of_ones_own_gets_weights_and_a_folder(tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, 2, 1), torch.nn.ReLU())
    encoder = as_encoder(network, torch.rand(1, 1, 16, 16))
    weight = torch.arange(36.0).reshape(4, 1, 3, 3)
    torch.save({"backbone.0.weight": weight, "backbone.0.bias": torch.zeros(4)}, tmp_path / "a.pth")
    made = read_checkpoint(tmp_path / "a.pth", encoder)
    assert torch.equal(made.network[0].weight, weight) and not torch.equal(network[0].weight, weight)
    read_checkpoint(tmp_path / "a.pth", encoder, out=tmp_path / "out")
    assert torch.equal(load_encoder(tmp_path / "out", encoder).network[0].weight, weight)
    with pytest.raises(InputError, match="a network of its owner"):
        load_encoder(tmp_path / "out")
    with pytest.raises(InputError, match="as_encoder"):
        read_checkpoint(tmp_path / "a.pth", network)
