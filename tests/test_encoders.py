"""Every architecture: pretrained by every task, widened, moved to and from MONAI, and fine-tuned."""

import copy
import json
import pickle
import re
import sys
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import yaml
from conftest import new_network, write_nifti
from monai.networks.nets import DynUNet
from torch import nn
from torch.utils.data import DataLoader

from ssl3d.data.layouts import open_cohort
from ssl3d.data.prepare import prepare
from ssl3d.downstream.finetune import finetune, load_network
from ssl3d.errors import InputError
from ssl3d.networks.encoders import ANY_WIDTHS, ENCODERS, as_encoder, check_shown, make_encoder, quick_convolutions
from ssl3d.networks.exchange import dynunet_names, load_dynunet
from ssl3d.networks.unet import Segmenter
from ssl3d.networks.weights import input_convolutions, load_encoder, save_encoder, widen
from ssl3d.tasks import NAMES, TASKS
from ssl3d.tasks.base import Batch, fit_plainly
from ssl3d.training.pretrain import make_task, pretrain
from ssl3d.training.runs import read_log

SMALL = (4, 8, 16)
NNUNET = ("resenc", "plainunet")
HAS_NNUNET = find_spec("dynamic_network_architectures") is not None
needs_nnunet = pytest.mark.skipif(not HAS_NNUNET, reason="dynamic-network-architectures is not installed")
ALL = [pytest.param(name, marks=needs_nnunet) if name in NNUNET else name for name in ENCODERS]
RNG = np.random.default_rng(0)


def widths_of(name):
    return {"widths": SMALL} if name in ANY_WIDTHS else {}


@pytest.mark.parametrize("task", NAMES)
@pytest.mark.parametrize("name", ALL)
def test_every_encoder_learns_every_task(name, task):
    encoder = make_encoder(name, 2, 1, **widths_of(name))
    network = make_task(task, encoder, seed=0, options={"grid": 3, "overlap": 0.0} if task == "cpc" else None)
    size = 160 if "dense" in name else 64
    batch = Batch(torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1]))
    example = network.make(batch, torch.Generator().manual_seed(0))
    network.loss(network(example.inputs), example.targets).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters()), (
        "all of it is trained"
    )


@pytest.mark.parametrize("name", [n for n in ALL if n != "resnet50"])
def test_every_encoder_works_in_3d_and_segments(name):
    encoder = make_encoder(name, 3, 2, **widths_of(name))
    network = Segmenter(encoder, n_classes=3)
    side = max(32, network.step)
    scores = network(torch.rand(2, 2, side, side, side))
    assert scores.shape == (2, 3, side, side, side)
    norms = {type(m).__name__ for m in encoder.modules() if "Norm" in type(m).__name__}
    assert any("BatchNorm" in n for n in norms) == ("batchnorm" in name), "images of a batch do not see each other"
    scores.mean().backward()
    assert all(p.grad is not None for p in network.parameters())
    with pytest.raises(InputError, match=f"multiple of {network.step}"):
        network(torch.rand(1, 2, side + 1, side, side))


@pytest.mark.parametrize("name, widths, near", [
    ("swinunetr", (50, 100, 200, 400, 800), "[48, 96, 192, 384, 768]"), ("segresnet", (16, 32), "[16, 32, 64, 128]"),
    ("segresnet", (4, 8, 16, 32), "[8, 16, 32, 64]"), ("swinunetr", (24, 48, 96, 192, 385), "[24, 48, 96, 192, 384]"),
    ("resnet18", (8, 16), "are for"), ("swinunetr", (), "two numbers at least"), ("segresnet", None, "two numbers"),
    ("dynunet-basic", (0, 0), "a whole number from 1"), ("unet", (8.0, 16.0), "a whole number from 1"),
    ("swinunetr", (-24, -48, -96, -192, -384), "a whole number from 1"), ("unet", "24", "two numbers at least"),
])  # fmt: skip
def test_widths_that_an_encoder_cannot_have_are_refused(name, widths, near):
    with pytest.raises(InputError, match=re.escape(near)):
        make_encoder(name, 3, 1, widths)


@needs_nnunet
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("task", NAMES)
@pytest.mark.parametrize("name", NNUNET)
def test_every_task_trains_the_encoders_of_nnunet(name, task, dims):
    encoder = make_encoder(name, dims, 2, SMALL)
    network = make_task(task, encoder, seed=0, options={"grid": 3, "overlap": 0.0} if task == "cpc" else None)
    before = copy.deepcopy(encoder.state_dict())
    images = torch.rand(2, 2, *[45 if dims == 2 else 33] * dims, generator=torch.Generator().manual_seed(0))
    inputs, targets = network.make(Batch(images, torch.tensor([0, 1])), torch.Generator().manual_seed(0))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    network.loss(network(inputs), targets).backward()
    optimiser.step()
    moved = [k for k, v in encoder.state_dict().items() if not torch.equal(v, before[k])]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert any(k.startswith("network.stages.0") for k in moved) and any(k.startswith("network.stages.2") for k in moved)


@needs_nnunet
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NNUNET)
def test_an_encoder_of_nnunet_is_theirs(name, dims):
    """Their class with the same weights gives the same maps and, with their decoder, the same scores."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

    depth = {"n_blocks_per_stage": (1, 3, 4)} if name == "resenc" else {"n_conv_per_stage": 2}
    theirs = (ResidualEncoderUNet if name == "resenc" else PlainConvUNet)(
        2, 3, SMALL, nn.Conv2d if dims == 2 else nn.Conv3d, 3, (1, 2, 2), num_classes=3, conv_bias=True,
        n_conv_per_stage_decoder=1 if name == "resenc" else 2, norm_op=(nn.InstanceNorm2d, nn.InstanceNorm3d)[dims - 2],
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU, **depth).eval()  # fmt: skip
    ours = Segmenter(make_encoder(name, dims, 2, SMALL), n_classes=3, upward="nnunet").eval()
    renamed = {k.replace("encoder.network.", "encoder."): k for k in ours.state_dict()}
    last = {f"decoder.seg_layers.1.{kind}": f"decoder.out.{kind}" for kind in ("weight", "bias")}
    names = {k: renamed.get(k, last.get(k)) for k in theirs.state_dict()}
    assert set(names.values()) - {None} == set(ours.state_dict()), "each weight of ours is one of theirs"
    ours.load_state_dict({names[k]: v for k, v in theirs.state_dict().items() if names[k]})
    x = torch.rand(2, 2, *[16] * dims)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


@needs_nnunet
def test_an_encoder_of_nnunet_is_copied_pickled_and_takes_odd_sides():
    encoder = make_encoder("resenc", 3, 1, SMALL)
    again = pickle.loads(pickle.dumps(copy.deepcopy(encoder)))
    assert [tuple(m.shape[2:]) for m in again(torch.rand(1, 1, 13, 11, 5))] == [(13, 11, 5), (7, 6, 3), (4, 3, 2)]
    assert encoder.min_side == 5 and encoder.strides == ((1, 1, 1), (2, 2, 2), (4, 4, 4))


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures", None)
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures.architectures", None)
    with pytest.raises(InputError, match=r"pip install 'ssl3d\[nnunet\]'"):
        make_encoder("resenc", 3, 1, SMALL)


@needs_nnunet
def test_fine_tuning_with_the_decoder_of_nnunet(store, tmp_path):
    how = {"widths": SMALL, "steps": 2, "progress": False}
    run = finetune(store, tmp_path / "run", architecture="plainunet", upward="nnunet", **how)
    network = load_network(run)
    assert "decoder.transpconvs.0.weight" in network.state_dict() and run.settings["upward"] == "nnunet"
    more = finetune(store, tmp_path / "more", encoder=run, decoder=True, upward="nnunet", steps=1, progress=False)
    origins = json.loads((more / "origins.json").read_text())
    assert "decoder.transpconvs.0.weight" in origins["loaded"] and "decoder.out.weight" in origins["new"]
    usual = finetune(store, tmp_path / "usual", architecture="resenc", **how)
    assert "upward" not in usual.settings
    assert "decoder.ups.0.transp_conv.conv.weight" in load_network(usual).state_dict()
    with pytest.raises(InputError, match="this one is 'unet'"):
        finetune(store, tmp_path / "wrong", upward="nnunet", **how)


@pytest.mark.parametrize("name", ALL)
def test_an_encoder_is_kept_and_comes_back(name, tmp_path):
    encoder = make_encoder(name, 2, 3, **widths_of(name), seed=1).eval()
    save_encoder(encoder, tmp_path, {"task": "none", "trained_on": [], "people": []})
    again, x = load_encoder(tmp_path).eval(), torch.rand(1, 3, 64, 64)
    assert again.architecture == name
    assert all(torch.equal(a, b) for a, b in zip(encoder(x), again(x)))


@pytest.mark.parametrize("old, new", [(1, 4), (2, 4), (2, 3), (3, 7), (2, 2)])
@pytest.mark.parametrize("name", ALL)
def test_widened_means_equal(name, old, new):
    encoder = make_encoder(name, 2, old, **widths_of(name)).eval()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    x = torch.rand(2, old, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = encoder(x)
        changed = widen(encoder, new)
        found = encoder(x[:, [k % old for k in range(new)]])
    assert all((a - b).abs().max() < 1e-4 * (1 + a.abs().max()) for a, b in zip(wanted, found))
    after = encoder.state_dict()
    assert encoder.in_channels == new and set(changed) == {
        k for k in after if after[k].shape[1:2] == (new,) and before[k].shape[1:2] == (old,) and k in changed
    }
    assert all(torch.equal(before[k], after[k]) for k in after if k not in changed), "nothing else has changed"
    assert len(changed) == (2 if name in ("unet", "dynunet") else 1)


def test_widening_as_the_paper_does_it_grows_the_response():
    scaled, copied = (make_encoder("unet", 3, 1, SMALL) for _ in range(2))
    weight = scaled.stages[0].conv1.conv.weight.detach().clone()
    widen(scaled, 4)
    widen(copied, 4, scaled=False)
    for channel in range(4):
        assert torch.allclose(scaled.stages[0].conv1.conv.weight[:, channel], weight[:, 0] / 4)
        assert torch.equal(copied.stages[0].conv1.conv.weight[:, channel], weight[:, 0])
    with pytest.raises(InputError, match="fewer"):
        widen(copied, 2)
    for wrong in ((0,), (0, 9), (0, -1)):
        with pytest.raises(InputError, match="sources"):
            widen(copied, 2, wrong)
    named = make_encoder("unet", 3, 5, SMALL)
    weight = named.stages[0].conv3.conv.weight.detach().clone()
    widen(named, 3, sources=(3, 1, 3))
    assert torch.allclose(
        named.stages[0].conv3.conv.weight, weight[:, [3, 1, 3]] / torch.tensor([2, 1, 2.0])[None, :, None, None, None]
    )


def test_a_block_without_a_shortcut_convolution_is_not_widened():
    with pytest.raises(InputError, match="first block adds the image"):
        widen(make_encoder("unet", 3, 4, SMALL), 5)


def test_input_convolutions_leave_no_trace():
    encoder = make_encoder("densenet121-batchnorm", 2, 3).train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    assert list(input_convolutions(encoder)) == ["network.conv0"] and encoder.training
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items()), "running statistics included"
    assert not any(m._forward_pre_hooks for m in encoder.modules())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("norm", ["group", "instance"])
def test_weights_of_a_dynunet_there_and_back(norm, dims):
    names = {"group": ("group", {"num_groups": 4, "affine": True}), "instance": ("INSTANCE", {"affine": True})}
    theirs = DynUNet(
        dims, 2, 3, [3] * 3, [1, 2, 2], [2, 2], filters=SMALL, res_block=True, norm_name=names[norm]
    ).eval()
    architecture = {"group": "unet", "instance": "dynunet"}[norm]
    whole = Segmenter(make_encoder(architecture, dims, 2, SMALL), n_classes=3).eval()
    alone = make_encoder(architecture, dims, 2, SMALL, seed=5).eval()
    assert load_dynunet(whole, theirs.state_dict()) == []
    left = load_dynunet(alone, theirs.state_dict())
    assert left and all(name.startswith(("upsamples", "output_block")) for name in left)
    x = torch.rand(1, 2, *[32] * dims)
    with torch.no_grad():
        assert torch.allclose(whole(x), theirs(x), rtol=1e-4, atol=1e-5)  # sums in another order
        assert all(torch.equal(a, b) for a, b in zip(alone(x), whole.encoder(x)))
        fresh = DynUNet(dims, 2, 3, [3] * 3, [1, 2, 2], [2, 2], filters=SMALL, res_block=True, norm_name=names[norm])
        fresh.load_state_dict(
            {theirs: whole.state_dict()[ours] for ours, theirs in dynunet_names(whole).items()}, strict=False
        )
        assert torch.equal(fresh.eval()(x), theirs(x))
    before = {k: v.clone() for k, v in alone.state_dict().items()}
    wrong = theirs.state_dict() | {"bottleneck.conv1.conv.weight": torch.zeros(1)}
    with pytest.raises(InputError, match="1 weight.*bottleneck.conv1.conv.weight.*Nothing was loaded"):
        load_dynunet(alone, wrong)
    assert all(torch.equal(before[k], v) for k, v in alone.state_dict().items())
    with pytest.raises(InputError, match="only a U-Net"):
        load_dynunet(make_encoder("resnet18", 2, 1), {})


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory):
    """A store of one modality and one of three, with masks, of other people."""
    folder = tmp_path_factory.mktemp("cohorts")
    stores = {}
    for name, channels in (("one", 1), ("three", 3)):
        (folder / name).mkdir()
        for i in range(6):
            write_nifti(folder / name / f"{name}{i}_t.nii", RNG.random((16, 16, 16, channels)).astype(np.float32))
            write_nifti(folder / name / f"{name}{i}_m.nii", RNG.integers(0, 2, (16, 16, 16)).astype(np.uint8))
        cohort = open_cohort(folder / name, images="{id}_t.nii", masks="{id}_m.nii")
        stores[name] = prepare(cohort, folder / f"{name}-store", size=16, progress=False)
    pretrain("rotation", folder / "one-store", folder / "rot", epochs=1, widths=SMALL, progress=False)
    pretrain("rotation", folder / "three-store", folder / "rot3", epochs=1, widths=SMALL, progress=False)
    return stores | {"rot": folder / "rot", "rot3": folder / "rot3"}


def test_fine_tuning_with_more_modalities_says_what_came_from_where(cohorts, tmp_path):
    run = finetune(cohorts["three"].folder, tmp_path / "ft", encoder=cohorts["rot"], epochs=1, warmup=1, progress=False)
    origins = json.loads((run / "origins.json").read_text())
    assert origins["widened"] == ["encoder.stages.0.conv1.conv.weight", "encoder.stages.0.conv3.conv.weight"]
    network = load_network(run)
    assert sorted(sum(origins.values(), [])) == sorted(network.state_dict())
    assert all(name.startswith("decoder") for name in origins["new"])
    encoder = load_encoder(cohorts["rot"]).state_dict()
    for name in origins["loaded"]:
        assert torch.equal(network.state_dict()[name], encoder[name.removeprefix("encoder.")]), "frozen all along"
    thirds = network.encoder.stages[0].conv1.conv.weight
    assert torch.allclose(thirds[:, :1] * 3, encoder["stages.0.conv1.conv.weight"])


def test_fewer_modalities_have_to_be_named(cohorts, tmp_path):
    with pytest.raises(InputError, match="reads 3 channels.*has 1.*sources"):
        finetune(cohorts["one"].folder, tmp_path / "ft", encoder=cohorts["rot3"], epochs=1, progress=False)
    network, origins = new_network(cohorts["one"], cohorts["rot3"], sources=(2,))
    kept = load_encoder(cohorts["rot3"]).stages[0].conv1.conv.weight
    assert torch.equal(network.encoder.stages[0].conv1.conv.weight[:, 0], kept[:, 2]) and len(origins["widened"]) == 2


def test_another_architecture_from_scratch(cohorts, tmp_path):
    run = finetune(cohorts["three"].folder, tmp_path / "ft", architecture="segresnet", epochs=1, progress=False)
    assert load_network(run).encoder.architecture == "segresnet"
    assert json.loads((run / "origins.json").read_text())["loaded"] == []
    with pytest.raises(InputError, match="multiple of 32"):
        new_network(cohorts["one"], architecture="resnet18")


def test_the_paper_is_a_preset_and_the_user_goes_first(cohorts, tmp_path):
    store, few = cohorts["three"].folder, {"widths": SMALL, "progress": False, "batch_size": 4}
    run = finetune(store, tmp_path / "paper", preset="paper", epochs=25, **few)
    settings = yaml.safe_load((run / "settings.yaml").read_text())
    assert (settings["lr"], settings["scaled"]) == (1e-5, False)
    assert settings["warmup_steps"] == settings["steps"], "25 epochs of warm-up are all of them here"
    run = finetune(store, tmp_path / "own", preset="paper", epochs=2, warmup=0, lr=1e-2, scaled=True, **few)
    settings = yaml.safe_load((run / "settings.yaml").read_text())
    assert (settings["lr"], settings["scaled"], settings["warmup_steps"]) == (1e-2, True, 0)
    with pytest.raises(InputError, match="longer than the training"):
        finetune(store, tmp_path / "short", preset="paper", epochs=3, **few)
    with pytest.raises(InputError, match="preset"):
        finetune(store, tmp_path / "x", preset="article", epochs=3, **few)


# Maps of one voxel


def loader(n, *shape):
    return DataLoader(torch.rand(n, *shape), batch_size=2)


SMALL_MAPS = {
    "rotation": ("rotation", "dynunet", (6, 1, 16, 16, 16), 2, {}, r"\(16, 16, 16\)"),
    "exemplar": ("exemplar", "dynunet", (6, 1, 16, 16, 16), 2, {}, r"\(16, 16, 16\)"),
    "tiles": ("jigsaw", "dynunet", (2, 1, 64, 64, 64), 2, {}, r"\(15, 15, 15\)"),
    "places": ("location", "dynunet", (2, 1, 64, 64, 64), 1, {}, r"\(15, 15, 15\)"),
    "overlapping patches": ("cpc", "dynunet", (2, 1, 48, 48, 48), 2, {"context_size": 16}, r"\(13, 13, 13\)"),
    "one picture": ("rotation", "densenet121-batchnorm", (2, 1, 32, 32), 1, {}, r"\(32, 32\)"),
}


@pytest.mark.parametrize("name", SMALL_MAPS)
def test_a_map_of_one_voxel_is_refused_before_the_first_step(tmp_path, name):
    task, architecture, shape, batch_size, options, size = SMALL_MAPS[name]
    widths = {"widths": (4, 8, 16, 32, 64)} if architecture == "dynunet" else {}
    images = [{"image": image, "subject": i} for i, image in enumerate(torch.rand(shape))]
    with pytest.raises(InputError) as error:
        pretrain(task, images, tmp_path / "x", steps=1, batch_size=batch_size, architecture=architecture,
                 options=options, progress=False, **widths)
    said = str(error.value)
    assert re.search(f"'{architecture}' makes .*{size} a map of 1 voxel", said) and "--architecture unet" in said
    assert ("--batch-size 2" in said) == (name == "one picture") and ("--widths" in said) == bool(widths)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("how", [{"batch_size": 2}, {"options": {"samples_per_image": 2}}])
def test_batch_normalisation_takes_two_rows_of_one_voxel(tmp_path, how):
    run = pretrain("rotation", [torch.rand(1, 32, 32)] * 2, tmp_path / "x", steps=1,
                   architecture="densenet121-batchnorm", progress=False, **how)
    assert run.encoder.channels


def test_a_last_batch_of_one_is_said_in_its_step(tmp_path):
    with pytest.raises(InputError, match="map of 1 voxel.*--batch-size 2"):
        pretrain("rotation", loader(3, 1, 32, 32), tmp_path / "x", steps=2, architecture="densenet121-batchnorm",
                 progress=False)
    assert read_log(tmp_path / "x")["step"].tolist() == [1]


@pytest.mark.parametrize("norm, few", [(nn.InstanceNorm2d, 1), (nn.BatchNorm2d, 1), (partial(nn.GroupNorm, 4), 1)])
def test_a_network_of_ones_own_says_the_same_also_in_a_loop_of_ones_own(norm, few):
    own = as_encoder(nn.Sequential(nn.Conv2d(1, 4, 3, 8, 1), norm(4)), torch.zeros(1, 1, 32, 32))
    with pytest.raises(InputError, match="'Sequential' makes .*8, 8. a map of 1 voxel"):
        fit_plainly(TASKS["rotation"](own), torch.rand(few, 1, 8, 8), n_steps=1)
    before = [buffer.clone() for buffer in own.buffers()]
    with pytest.raises(InputError, match="map of 1 voxel"):
        check_shown(own, (few, 1, 8, 8))
    check_shown(own, (few, 1, 16, 16))
    assert own.training and all(torch.equal(a, b) for a, b in zip(before, own.buffers())), "and nothing has moved"


def test_fine_tuning_on_too_small_windows_is_refused_before_the_first_step(store, tmp_path):
    how = {"architecture": "dynunet", "steps": 1, "progress": False}
    for more in ({"widths": (4, 8, 16, 32, 64)}, {"widths": (4, 8, 16, 32), "patch": 8}):
        with pytest.raises(InputError, match="'dynunet' makes .*map of 1 voxel.*--patch"):
            finetune(store, tmp_path / "x", **how, **more)
        assert not (tmp_path / "x").exists()
    run = finetune(store, tmp_path / "y", widths=(4, 8, 16), patch=8, **how)
    assert run.scores


def as_pytorch_has_it(network):
    """A copy with PyTorch's own convolutions."""
    plain = copy.deepcopy(network)
    for layer in plain.modules():
        own = [kind for kind in (nn.Conv3d, nn.ConvTranspose3d) if isinstance(layer, kind)]
        layer.__class__ = own[0] if own else type(layer)
    return plain


def answer_and_gradients(network, images):
    answer = network(images)
    answer.square().mean().backward()
    return answer.detach(), [p.grad for p in network.parameters()]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", ["unet", "segresnet"])
def test_quick_convolutions_say_what_pytorchs_say(name, rows):
    network = Segmenter(make_encoder(name, 3, 1, **widths_of(name)), n_classes=3)
    plain = as_pytorch_has_it(network)
    assert any(type(layer) is nn.Conv3d for layer in plain.modules())
    assert not any(type(layer) in (nn.Conv3d, nn.ConvTranspose3d) for layer in network.modules())
    assert list(network.state_dict()) == list(plain.state_dict())
    images = torch.rand(rows, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(images), plain(images), rtol=1e-3, atol=1e-4)

    # in double precision: in single, a ReLU at the edge of zero may open in one of the two and not in the other
    (answer, gradients), (wanted, theirs) = (answer_and_gradients(each.double(), images.double())
                                             for each in (network, plain))
    torch.testing.assert_close(answer, wanted)
    for own, other in zip(gradients, theirs):
        torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-9 * float(other.abs().max()) + 1e-12)


@pytest.mark.parametrize(("side", "how"), [
    (9, {"kernel_size": 3, "padding": 1}), (8, {"kernel_size": 3, "stride": 2, "padding": 1}),
    (11, {"kernel_size": 5, "stride": 3}), (10, {"kernel_size": 3, "dilation": 2, "padding": 2}),
    (7, {"kernel_size": (3, 1, 3), "padding": (1, 0, 1), "bias": False}), (8, {"kernel_size": 3, "padding": "same"}),
    (8, {"kernel_size": 3, "groups": 2}), (4, {"kernel_size": 4}), (5, {"kernel_size": 2, "stride": 2}),
    (6, {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"})])
def test_a_volume_in_two_halves_is_the_same_volume(side, how):
    plain = nn.Conv3d(2, 4, **how)
    quick = quick_convolutions(copy.deepcopy(plain))
    volume = torch.rand(1, 2, side, side, side)
    torch.testing.assert_close(quick(volume), plain(volume), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(quick(volume[0]), plain(volume[0]), rtol=1e-4, atol=1e-5)  # without the axis of images
    torch.testing.assert_close(quick.double()(volume.double()), plain.double()(volume.double()))


def test_one_volume_does_not_take_the_slow_way():
    network = Segmenter(make_encoder("unet", 3, 1, (8, 16)), n_classes=3)
    slow = {}
    for each in (network, as_pytorch_has_it(network)):
        with torch.profiler.profile(record_shapes=True) as profile:
            each(torch.rand(1, 1, 32, 32, 32)).mean().backward()
        calls = [event for event in profile.events() if "slow_conv" in event.name or "slow_transpose" in event.name]
        slow[each] = [event.input_shapes[:2] for event in calls if max(event.input_shapes[1][2:], default=0) > 1]
    mine, theirs = slow.values()
    assert theirs and not mine, "but for kernels of one voxel, which are as quick so"
