"""Any network as an encoder: what `as_encoder` finds out, what it leaves alone, and what may be done with it."""

import copy
import io
from collections import OrderedDict

import pytest
import torch
from monai.networks.nets import BasicUNet, DynUNet, SegResNet, UNet, ViT, resnet18
from torch import nn

from ssl3d.errors import InputError
from ssl3d.networks.encoders import as_encoder, make_encoder, maps_of
from ssl3d.networks.unet import Segmenter, halvings
from ssl3d.networks.weights import load_encoder, load_weights, save_encoder, widen
from ssl3d.tasks import NAMES, TASKS
from ssl3d.tasks.base import Batch

CONV, NORM = {2: nn.Conv2d, 3: nn.Conv3d}, {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def block(dims, before, after, stride, size=3):
    return nn.Sequential(CONV[dims](before, after, size, stride, size // 2), NORM[dims](after), nn.ReLU(), nn.Dropout())


class Pyramid(nn.Module):
    """Stages, given as a list, a tuple with the image first, or a dictionary; a classifier where it is to answer."""

    def __init__(self, dims, strides=(4, 2, 2), give=list):
        super().__init__()
        widths = [1, *(8 * 2**k for k in range(len(strides)))]
        self.stages = nn.ModuleList(block(dims, *pair, step) for *pair, step in zip(widths, widths[1:], strides))
        self.head, self.give, self.answered = nn.Linear(widths[-1], 2), give, 0

    def forward(self, x):
        maps = [x]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        if self.give == "answer":
            self.answered += 1
            return self.head(maps[-1].flatten(2).mean(dim=2))
        return maps[1:] if self.give is list else maps if self.give is tuple else self.give(enumerate(maps[1:]))


class Tokens(nn.Module):
    """A vision transformer whose tokens are made a map; it takes one size only."""

    def __init__(self, dims):
        super().__init__()
        self.vit = ViT(1, [32] * dims, [8] * dims, 32, 64, 2, 4, spatial_dims=dims)

    def forward(self, x):
        tokens, _ = self.vit(x)
        return tokens.transpose(1, 2).unflatten(2, [4] * (x.ndim - 2))


def dynunet(dims):
    return DynUNet(dims, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=(8, 16, 32))


NETWORKS = {  # name: (makes the network in so many dimensions, layers, strides of the maps)
    "one map of an eighth": (lambda dims: block(dims, 1, 8, 8, 7), None, (8,)),
    "list": (Pyramid, None, (4, 8, 16)),
    "the image first": (lambda dims: Pyramid(dims, (2, 2, 1, 2), tuple), None, (2, 4, 8)),
    "dictionary": (lambda dims: Pyramid(dims, give=OrderedDict), None, (4, 8, 16)),
    "odd": (lambda dims: Pyramid(dims, (2, 3)), None, (2, 6)),
    "classifier": (lambda dims: Pyramid(dims, give="answer"), ["stages.0", "stages.2"], (4, 16)),
    "tokens": (Tokens, None, (8,)),
    "resnet18": (
        lambda dims: resnet18(spatial_dims=dims, n_input_channels=1, conv1_t_stride=2, num_classes=2),
        ["layer1", "layer2", "layer3", "layer4"],
        (4, 8, 16, 32),
    ),
    "basicunet": (
        lambda dims: BasicUNet(dims, features=(8, 8, 16, 16, 32, 8)),
        ["conv_0", "down_1", "down_2"],
        (1, 2, 4),
    ),
    "dynunet": (dynunet, ["input_block", "downsamples.0", "bottleneck"], (1, 2, 4)),
    "unet": (
        lambda dims: UNet(dims, 1, 2, (8, 16, 32), (2, 2)),
        ["model.0", "model.1.submodule.0", "model.1.submodule.1.submodule"],
        (2, 4),  # the lowest two are of one size
    ),
    "segresnet": (lambda dims: SegResNet(dims, 8, 1), ["down_layers.0", "down_layers.1", "down_layers.2"], (1, 2, 4)),
}


def image(dims, side=32, n=1, seed=0):
    return torch.rand(n, 1, *[side] * dims, generator=torch.Generator().manual_seed(seed))


def side_of(name):
    return {"resnet18": 64, "odd": 36}.get(name, 32)


def own(name, dims):
    torch.manual_seed(0)
    make, layers, _ = NETWORKS[name]
    network = make(dims)
    return network, as_encoder(network, image(dims, side_of(name)), layers)


def state(network):
    """All that a trial must leave alone."""
    return (
        {k: v.clone() for k, v in network.state_dict().items()},
        [id(t) for m in network.modules() for t in (*m._parameters.values(), *m._buffers.values())],
        [m.training for m in network.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules()],
        torch.random.get_rng_state(),
    )


def same(a, b):
    return a[0].keys() == b[0].keys() and all(torch.equal(a[0][k], b[0][k]) for k in a[0]) and (
        a[1:4] == b[1:4] and torch.equal(a[4], b[4])
    )


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
class TestEveryNetwork:
    def test_it_finds_out_what_tasks_have_to_know_and_leaves_no_trace(self, name, dims):
        make, layers, strides = NETWORKS[name]
        network, side = make(dims).train(), side_of(name)
        next(m for m in network.modules() if not list(m.children())).eval()  # one is frozen
        before = state(network)
        encoder = as_encoder(network, image(dims, side), layers)
        assert same(before, state(network))
        assert (encoder.spatial_dims, encoder.in_channels, encoder.architecture) == (dims, 1, "own")
        assert encoder.strides == tuple((s,) * dims for s in strides)
        maps = maps_of(encoder, image(dims, side, n=3))
        assert same(before, state(network))
        assert [m.shape[:2] for m in maps] == [(3, k) for k in encoder.channels]
        assert [m.shape[2:] for m in maps] == [tuple(side // s for s in stride) for stride in encoder.strides]
        assert encoder.min_side <= side
        assert len(maps_of(encoder, image(dims, encoder.min_side))) == len(maps)
        assert list(encoder.state_dict()) == [f"network.{key}" for key in network.state_dict()]

    def test_it_can_be_copied_and_saved(self, name, dims):
        network, encoder = own(name, dims)
        file, x = io.BytesIO(), image(dims, side_of(name))
        torch.save(encoder, file)
        file.seek(0)
        wanted = maps_of(encoder, x)
        for again in (copy.deepcopy(encoder), torch.load(file, weights_only=False)):
            assert all(torch.equal(a, b) for a, b in zip(wanted, maps_of(again, x)))
            with torch.no_grad():
                next(again.parameters()).add_(1)
            assert all(torch.equal(a, b) for a, b in zip(wanted, maps_of(encoder, x))), "a copy has its own weights"

    def test_it_segments(self, name, dims):
        _, encoder = own(name, dims)
        network = Segmenter(encoder, n_classes=3)
        side = side_of(name)
        scores = network(image(dims, side, n=2))
        assert scores.shape == (2, 3, *[side] * dims) and side % network.step == 0
        scores.mean().backward()
        assert all(p.grad is not None for p in network.decoder.parameters())
        assert next(p for n, p in encoder.named_parameters() if "cls_token" not in n).grad is not None
        if network.step > 1:
            with pytest.raises(InputError, match=f"multiple of {network.step}"):
                network(image(dims, side + 1))


@pytest.mark.quick
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("network", ["list", "classifier", "dynunet"])
@pytest.mark.parametrize("name", NAMES)
def test_every_task_trains_it(name, network, dims):
    options = {"jigsaw": {"n_permutations": 24, "grid": 2}, "cpc": {"grid": 3, "overlap": 0.0, "context_size": 32}}
    network, encoder = own(network, dims)
    task = TASKS[name](encoder, **options.get(name, {}))
    inputs, targets = task.make(image(dims, 66, n=2), torch.Generator().manual_seed(0), subjects=[0, 1])
    before = {k: v.clone() for k, v in network.named_parameters()}
    optimiser = torch.optim.Adam(task.parameters(), lr=1e-3)
    loss = task.loss(task(inputs), targets)
    loss.backward()
    optimiser.step()
    assert torch.isfinite(loss) and 0 <= task.scores(task(inputs), targets)["accuracy"] <= 1
    moved = {k for k, v in network.named_parameters() if not torch.equal(before[k], v)}
    assert {k for k in before if k.startswith(("stages.0", "input_block"))} - {"stages.0.0.bias"} <= moved
    assert not any(k.startswith(("head", "upsamples", "output_block")) for k in moved), "they are not in use"


def test_what_comes_after_the_layers_is_not_run():
    network = Pyramid(2, give="answer")
    encoder = as_encoder(network, image(2), ["stages.0", "stages.1"])
    assert network.answered == 1, "once, to see whether a layer is called again"
    encoder(image(2))
    assert network.answered == 1
    network.head = nn.Linear(1000, 2)  # as one that takes images of another size only
    assert len(as_encoder(network, image(2), "stages.2")(image(2))) == 1


def test_a_network_that_minds_no_mode_and_fails_is_left_as_it_was():
    class Restless(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.drop = nn.Conv2d(1, 4, 3, 2, 1), nn.Dropout().eval()
            self.register_buffer("seen", torch.zeros(1))
            self.register_buffer("other", torch.zeros(1), persistent=False)
            self.fails = False

        def forward(self, x):
            self.seen += 1
            self.other = self.other + 1
            x.mul_(0)
            assert not self.fails, "on purpose"
            return self.conv(x + torch.rand(1)) * self.seen

    network, x = Restless(), image(2)
    for network.fails in (False, True):
        before, example = state(network), x.clone()
        if network.fails:
            with pytest.raises(InputError, match="Restless.*1, 1, 32, 32.*AssertionError: on purpose"):
                as_encoder(network, x)
        else:
            as_encoder(network, x)
        assert same(before, state(network)) and torch.equal(x, example) and network.other == 0


class Gives(nn.Module):
    def __init__(self, give):
        super().__init__()
        self.act, self.conv, self.give = nn.ReLU(), nn.Conv2d(1, 4, 2, 2), give

    def forward(self, x):
        return self.give(self, self.act(self.conv(self.act(x))))


@pytest.mark.parametrize(
    "give, layers, said",
    [
        (lambda net, y: y.mean(dim=(2, 3)), None, "shape .1, 4..*layers=.*Its layers: act, conv"),
        (lambda net, y: y.flatten(2).transpose(1, 2), None, "tokens.*made maps"),
        (lambda net, y: y[0], None, "shape .4, 16, 16."),
        (lambda net, y: [y, y.argmax(dim=1, keepdim=True)], None, "torch.int64"),
        (lambda net, y: [y[:, :, ::2, ::2], y], None, "fine to coarse"),
        (lambda net, y: nn.functional.interpolate(y, scale_factor=4), None, "none is finer than the image"),
        (lambda net, y: [], None, "no map"),
        (lambda net, y: y.movedim(1, -1).repeat(1, 1, 1, 5), None, "channels came last.*movedim"),
        (lambda net, y: {"maps": y, "loss": None}, None, "gives a NoneType"),
        (lambda net, y: y, ["cnov"], "no layer 'cnov'.*: conv"),
        (lambda net, y: y, ["act"], "'act' is called 2 times"),
        (lambda net, y: y, [], "empty"),
    ],
)
def test_what_is_no_map_is_refused(give, layers, said):
    network = Gives(give)
    with pytest.raises(InputError, match=said):
        as_encoder(network, image(2), layers)
    assert not any(m._forward_hooks for m in network.modules()) and network.training


def test_a_layer_that_is_never_called_is_named():
    network = Gives(lambda net, y: y)
    network.spare = nn.Conv2d(4, 4, 3)
    with pytest.raises(InputError, match="'spare' is called 0 times"):
        as_encoder(network, image(2), ["conv", "spare"])


@pytest.mark.parametrize(
    "network, example, said",
    [
        (nn.Conv2d, image(2), "nn.Module, made, not its class"),
        (nn.Conv2d(1, 4, 3), [1], "the example is none"),
        (nn.Conv2d(1, 4, 3), image(2)[0], r"shape \(1, 32, 32\)"),
        (nn.Conv2d(1, 4, 3), (image(2) * 255).byte(), "torch.uint8"),
        (nn.Conv2d(3, 4, 3), image(2), "Conv2d.*to have 3 channels"),
        (nn.LazyConv2d(4, 3), image(2), "not made yet"),
    ],
)
def test_what_is_no_network_or_no_image_is_refused(network, example, said):
    with pytest.raises(InputError, match=said):
        as_encoder(network, example)


@pytest.mark.quick
def test_lists_within_lists_and_an_encoder_itself():
    network = Gives(lambda net, y: {"maps": (y, [y[:, :, ::2, ::2]])})
    assert as_encoder(network, image(2)).strides == ((2, 2), (4, 4))
    assert as_encoder(Gives(lambda net, y: [y[:, :0], y]), image(2)).channels == (4,), "a level filled with nothing"
    encoder = make_encoder("unet", 2, 1, (4, 8))
    assert as_encoder(encoder, image(2)) is encoder


@pytest.mark.parametrize("side, least", [(32, 4), (33, 4), (50, 4)])
def test_sides_that_are_no_multiples(side, least):
    encoder = as_encoder(Pyramid(2, (1, 2, 2)), image(2, side))
    assert encoder.strides == ((1, 1), (2, 2), (4, 4)) and encoder.min_side == least
    assert Segmenter(encoder, 2)(image(2, 36)).shape == (1, 2, 36, 36)


def test_anisotropic_steps():
    network = nn.Sequential(nn.Conv3d(1, 8, (1, 3, 3), (1, 2, 2), (0, 1, 1)), nn.ReLU(), nn.Conv3d(8, 16, 3, 2, 1))
    encoder = as_encoder(network, torch.rand(1, 1, 8, 32, 16), ["0", "2"])
    assert encoder.strides == ((1, 2, 2), (2, 4, 4))
    segmenter = Segmenter(encoder, 2)
    assert segmenter.step == 4 and segmenter(torch.rand(1, 1, 6, 16, 32)).shape == (1, 2, 6, 16, 32)
    assert halvings((4, 2, 1)) == [(2, 2, 1), (2, 1, 1)] and halvings((12, 5)) == [(2, 1), (2, 1), (3, 5)]


def test_maps_that_are_no_whole_fractions_are_not_segmented():
    narrow = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 2, 2))
    for layers in (None, ["0", "1"]):
        with pytest.raises(InputError, match="whole fractions"):
            Segmenter(as_encoder(narrow, image(2), layers), 2)
    unseen = Segmenter(as_encoder(nn.Conv2d(1, 8, 4, 2), image(2, 33)), 2)  # of 33 nobody can tell
    with pytest.raises(InputError, match="maps of .15, 15., and a decoder"):
        unseen(image(2, 32))
    with pytest.raises(InputError, match="Conv2d does not say.*as_encoder"):
        bare = nn.Conv2d(1, 4, 3)
        bare.spatial_dims, bare.channels = 2, (4,)
        Segmenter(bare, 2)


def test_it_is_widened():
    network, encoder = own("classifier", 3)
    encoder.eval()
    x = image(3, n=2)
    with torch.no_grad():
        wanted = encoder(x)
        assert widen(encoder, 4) == ["network.stages.0.0.weight"] and encoder.in_channels == 4
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(wanted, encoder(x.expand(-1, 4, -1, -1, -1))))
    scaled = as_encoder(Gives(lambda net, y: net.conv(net.act(y[:, :1]))), image(2))
    with pytest.raises(InputError, match="no convolution.*as_encoder"):
        widen(scaled, 2)

    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, 1, 1)

        def forward(self, x):
            return x + self.conv(x)

    adds = as_encoder(Adds(), torch.rand(1, 2, 8, 8))
    with pytest.raises(InputError, match="does not take 3 channels.*left as it was"):
        widen(adds, 3)
    assert adds.in_channels == 2 and adds(torch.rand(1, 2, 8, 8))[0].shape == (1, 2, 8, 8)


def test_its_weights_are_kept_and_come_back(tmp_path):
    _, encoder = own("list", 2)
    save_encoder(encoder, tmp_path, {"task": "none", "trained_on": [], "people": []})
    with pytest.raises(InputError, match="owner .Pyramid.*as_encoder.*ssl3d.Run.folder, encoder=encoder"):
        load_encoder(tmp_path)
    again = as_encoder(Pyramid(2), image(2))
    load_weights(again, tmp_path / "encoder.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(maps_of(encoder, image(2)), maps_of(again, image(2))))


def test_autocast_and_batches():
    _, encoder = own("dictionary", 2)
    task = TASKS["rotation"](encoder)
    inputs, targets = task.make(Batch(image(2, n=3), torch.arange(3)), torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(task.loss(task(inputs), targets))


def test_images_of_another_precision_and_kind_are_taken():
    from monai.data import MetaTensor

    encoder = make_encoder("unet", 3, 1, (4, 8), seed=0)
    task = TASKS["rotation"](encoder)
    images = torch.rand(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    expected = task.make(images.float(), torch.Generator().manual_seed(0)).inputs
    for given in (images, images.double(), MetaTensor(images)):
        inputs, _ = task.make(given, torch.Generator().manual_seed(0))
        assert type(inputs) is torch.Tensor and torch.equal(inputs, expected) and task(inputs).shape == (2, 10)
    with pytest.raises(InputError, match="does not say the strides"):
        Segmenter(torch.nn.Conv3d(1, 4, 3), 2)
