"""Contrastive predictive coding: what is asked, what may be seen, and what a guess costs."""

import math
from itertools import product

import pytest
import torch
from conftest import SMALL
from torch import nn
from torch.nn import functional as F

from ssl3d.errors import InputError
from ssl3d.networks.encoders import make_encoder
from ssl3d.seeds import seeded
from ssl3d.tasks.base import Batch, evaluate, fit_plainly
from ssl3d.tasks.cpc import (
    CONTEXTS,
    CPC,
    DIRECTIONS,
    ConvolutionContext,
    GRUContext,
    disjoint,
    draw_predictions,
    infonce,
    pairwise,
    pyramid,
    sample_distinct,
    scan_order,
)

pytestmark = pytest.mark.quick


class Plain(nn.Module):
    """The smallest encoder: one convolution, whose map has the patch's sides; counts what goes through it."""

    def __init__(self, dims, in_channels=1, width=8):
        super().__init__()
        self.spatial_dims, self.channels, self.rows = dims, (width,), 0
        with seeded(0, "plain"):
            self.layer = (nn.Conv2d, nn.Conv3d)[dims - 2](in_channels, width, 3, padding=1)

    def forward(self, x):
        self.rows += len(x)
        return [self.layer(x).relu()]


def seed(n=0):
    return torch.Generator().manual_seed(n)


def images(dims, n=3, channels=2, size=16, number=0):
    return Batch(torch.rand(n, channels, *[size] * dims, generator=seed(number)), torch.arange(n))


def numbered(dims, size, n=1):
    """Images in which each voxel holds its own number, so that a patch tells where it was cut."""
    image = torch.arange(float(size**dims)).reshape(1, 1, *[size] * dims).repeat(n, *[1] * (dims + 1))
    return Batch(image, torch.arange(n))


def new_task(dims, encoder=None, **options):
    with seeded(0, "head"):
        return CPC(encoder or Plain(dims), **{"context_size": 16, "code_size": 8, **options})


def small_task(dims, **options):
    return new_task(dims, make_encoder("unet", dims, 2, SMALL, seed=0), **options)


def question_of(task, place):
    """Own places of all questions, from the rule alone: for each step, every place whose target is in the grid."""
    width = task.grid ** (len(place) - 1)
    return [own for step in range(task.first, task.grid) for own in range((task.grid - step) * width)]


# The grid and the order of the scan


def test_full_pyramids_have_the_known_sizes():
    for grid, n in ((4, 10), (5, 10), (6, 35), (7, 35), (8, 84)):
        middle = grid // 2 - 1
        assert len(pyramid((middle, middle, middle), grid)) == n
        assert len(pyramid((middle, middle), grid)) == sum(2 * d + 1 for d in range(grid // 2))


@pytest.mark.parametrize("dims", [2, 3])
def test_a_pyramid_is_above_in_the_grid_and_in_reading_order(dims):
    for grid in (2, 3, 5):
        for place in product(range(grid), repeat=dims):
            row, *beside = place
            expected = [
                p
                for p in product(range(grid), repeat=dims)  # which is reading order
                if p[0] <= row and all(abs(a - b) <= row - p[0] for a, b in zip(p[1:], beside))
            ]
            assert pyramid(place, grid) == expected and expected[-1] == place


@pytest.mark.parametrize(
    "dims, direction, axis, sign",
    [(2, "down", 0, 1), (2, "up", 0, -1), (2, "right", 1, 1), (2, "left", 1, -1)]
    + [(3, d, axis, sign) for axis, pair in enumerate(("LR", "PA", "IS")) for d, sign in zip(pair, (-1, 1))],
)
def test_targets_lie_in_the_direction_of_the_scan(dims, direction, axis, sign):
    task = new_task(dims, grid=4, overlap=0.4, direction=direction)
    batch = numbered(dims, 20, n=2)
    inputs, targets = task.make(batch, seed())
    place = torch.stack(torch.unravel_index(inputs.long(), batch.image.shape[2:]), dim=-1)  # voxel -> its coordinates
    centre = place.flatten(2, -2).double().mean(dim=2).flatten(0, 1)  # (rows * places, dims)
    own = torch.tensor(question_of(task, (0,) * dims))
    moved = centre[targets[0, :, 0]] - centre[own]
    beside = [a for a in range(dims) if a != axis]
    assert (sign * moved[:, axis] > 0).all() and (moved[:, beside] == 0).all()
    for a in range(dims):  # inside a patch nothing is turned or flipped
        assert (place[..., a].diff(dim=3 + a) == 1).all()


def test_scanning_down_is_the_default():
    assert new_task(3).direction == "I" and new_task(2).direction == "down"
    assert scan_order(2, 2, "up").tolist() == [2, 3, 0, 1] and scan_order(2, 2, "left").tolist() == [1, 3, 0, 2]
    assert scan_order(2, 3, "I").tolist() == [1, 3, 5, 7, 0, 2, 4, 6]


# No peeking


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("overlap", [0, 0.1, 0.25, 1 / 3, 0.4, 0.5, 0.6, 2 / 3, 0.75])
def test_no_voxel_of_a_target_is_in_its_context_or_in_a_negative(dims, overlap):
    sides = (17, 24, 31) if dims == 2 else (16, 23)
    accepted = 0
    for grid, size in product((2, 3, 4, 5, 6), sides):
        try:
            task = new_task(dims, grid=grid, overlap=overlap, direction=list(DIRECTIONS[dims])[grid % 4])
        except InputError:
            continue
        accepted += 1
        inputs, targets = task.make(numbered(dims, size), seed())
        seen = torch.zeros(grid**dims, size**dims, dtype=torch.bool)  # which voxels each patch holds
        seen.scatter_(1, inputs[0].flatten(1).long(), True)
        shared = seen.float() @ seen.float().T > 0
        number = {place: i for i, place in enumerate(product(range(grid), repeat=dims))}
        context = torch.zeros(grid**dims, grid**dims, dtype=torch.bool)
        for place, i in number.items():
            context[i, [number[p] for p in pyramid(place, grid)]] = True
        own = torch.tensor(question_of(task, place))
        assert len(own) == len(targets[0])
        right = targets[0, :, 0]
        assert not (context[own] & shared[right]).any(), "a target in its context"
        assert not shared[right].gather(1, targets[0, :, 1:]).any(), "a negative that overlaps the target"
    assert accepted >= 4


@pytest.mark.parametrize("overlap, first", [(0, 1), (0.1, 2), (0.4, 2), (0.5, 2), (0.6, 3), (2 / 3, 3), (0.75, 4)])
def test_the_first_step_is_the_lowest_legal_one(overlap, first):
    task = new_task(2, grid=6, overlap=overlap)
    inputs, targets = task.make(numbered(2, 60), seed())
    rows = [set(patch.flatten().tolist()) for patch in inputs[0, ::6]]  # the first column, from the top
    assert not rows[0] & rows[first] and (first == 1 or rows[0] & rows[first - 1])
    assert targets[0, 0, 0] == first * 6 and targets[0, :, 0].max() == 35
    assert len(targets[0]) == 6 * sum(6 - step for step in range(first, 6))


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("dims, direction", [(d, name) for d, names in DIRECTIONS.items() for name in names])
def test_a_prediction_depends_on_the_voxels_of_its_pyramid_and_on_no_others(dims, direction, context):
    grid = 4
    task = new_task(dims, grid=grid, overlap=0.4, direction=direction, context=context, even=False)
    voxels, targets = task.make(numbered(dims, 13), seed())
    places = list(product(range(grid), repeat=dims))
    inputs = (voxels / voxels.max()).requires_grad_()
    outputs = task(inputs)
    own = question_of(task, places[0])
    for question in range(0, len(own), 1 if dims == 2 else 7):
        (gradient,) = torch.autograd.grad(outputs[0, question].square().sum(), inputs, retain_graph=True)
        seen = set(voxels[gradient != 0].tolist())
        above = [places.index(p) for p in pyramid(places[own[question]], grid)]
        assert seen == set(voxels[0, above].flatten().tolist())
        assert not seen & set(voxels[0, targets[0, question, 0]].flatten().tolist())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", [GRUContext, ConvolutionContext])
def test_a_context_reads_its_pyramid_and_nothing_else(kind, dims):
    grid, rows = 5, 4
    with seeded(0, "context"):
        context = kind(grid, dims, rows, code_size=3, size=12)
    places = list(product(range(grid), repeat=dims))
    codes = torch.rand(2, grid**dims, 3, generator=seed()).requires_grad_()
    out = context(codes)
    assert out.shape == (2, rows * grid ** (dims - 1), 12)
    for i in range(0, out.shape[1], 1 if dims == 2 else 9):
        (gradient,) = torch.autograd.grad(out[1, i].square().sum(), codes, retain_graph=True)
        seen = gradient.abs().sum(dim=2)
        assert seen[0].sum() == 0, "another image of the batch"
        assert seen[1].nonzero().flatten().tolist() == [places.index(p) for p in pyramid(places[i], grid)]


@pytest.mark.parametrize("dims", [2, 3])
def test_the_gru_reads_the_pyramid_as_a_text_and_leaves_out_what_is_outside(dims):
    with seeded(0, "context"):
        context = GRUContext(4, dims, 3, code_size=3, size=12)
    places = list(product(range(4), repeat=dims))
    codes = torch.rand(2, 4**dims, 3, generator=seed())
    out = context(codes)
    for i in range(out.shape[1]):
        text = codes[:, [places.index(p) for p in pyramid(places[i], 4)]]
        assert torch.allclose(out[:, i], context.gru(text)[1][0], atol=1e-6)


def test_convolutions_see_zeros_outside():
    """The same codes in a larger grid, surrounded by codes that `begin` maps to zero, give the same contexts."""
    with seeded(0, "context"):
        small, large = (ConvolutionContext(grid, 2, 3, code_size=3, size=8) for grid in (3, 5))
    large.load_state_dict(small.state_dict())
    for net in (small, large):
        nn.init.zeros_(net.begin.bias)
    for layer in [*small.own, *large.own]:
        nn.init.zeros_(layer.bias)  # else places without a code would come to hold something
    codes = torch.rand(1, 3, 3, 3, generator=seed())
    wide = F.pad(codes, (0, 0, 1, 1, 0, 2))
    a, b = small(codes.flatten(1, 2)), large(wide.flatten(1, 2))
    first, second = a.reshape(3, 3, 8)[:1], b.reshape(3, 5, 8)[:1, 1:4]
    assert torch.allclose(first, second, atol=1e-6)


def test_nothing_can_be_learned_about_noise():
    """Voxels that know nothing of each other: whoever does better than a guess on new images has peeked.

    The negatives are other images', because those of the same image can be told where they belong to the context.
    """
    task = new_task(2, make_encoder("unet", 2, 1, (8, 16), seed=0), grid=4, overlap=0.5, negatives="batch")
    noise = [images(2, n, channels=1, size=20, number=n) for n in (400, 300)]
    fit_plainly(task, noise[0], 200, lr=5e-3, batch_size=16)
    result = evaluate(task, noise[1], n_rounds=1)
    assert abs(result.accuracy - result.chance) < 0.02


# What is encoded, and what is asked


@pytest.mark.parametrize("dims", [2, 3])
def test_each_patch_is_encoded_once(dims):
    task = new_task(dims, grid=5, samples_per_image=2)
    inputs, targets = task.make(images(dims, channels=1), seed())
    assert inputs.shape[:2] == (6, 5**dims) and targets.shape == (6, 5 ** (dims - 1) * 6, task.n_classes)
    outputs = task(inputs)
    task.scores(outputs, targets)
    task.loss(outputs, targets)
    assert task.encoder.rows == 6 * 5**dims
    assert outputs.shape == (6, targets.shape[1] + 5**dims, 8)


def test_rows_are_in_the_order_of_the_images():
    task = new_task(2, grid=4, samples_per_image=3)
    batch = Batch(torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 1, 22, 22).clone(), torch.arange(4))
    inputs, targets = task.make(batch, seed())
    assert inputs.flatten(1).unique(dim=1).flatten().tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert task.hits(task(inputs), targets).shape == targets.shape[:2]


@pytest.mark.parametrize("dims", [2, 3])
def test_the_right_one_comes_first_and_lies_straight_below(dims):
    task = new_task(dims, grid=5)
    _, targets = task.make(images(dims, channels=1, n=2), seed())
    width, n_places = 5 ** (dims - 1), 5**dims
    own = torch.tensor(question_of(task, (0,) * dims))
    for row in (0, 1):
        places = targets[row] - row * n_places
        step = (places[:, 0] - own) // width
        assert ((places[:, 0] - own) % width == 0).all() and step.min() == 2 and step.max() == 4
        assert (places >= 0).all() and (places < n_places).all(), "negatives of the same image"
        assert all(len(set(line)) == task.n_classes for line in places.tolist())


def test_scores_are_the_products_of_prediction_and_code():
    task = new_task(2, grid=4)
    inputs, targets = task.make(images(2, channels=1), seed())
    outputs = task(inputs)
    n = targets.shape[1]
    flat = outputs[:, n:].flatten(0, 1)
    scores = task.logits(outputs, targets)
    for row, question, k in ((0, 0, 0), (1, 3, 0), (2, n - 1, 4), (1, n - 1, task.n_negatives)):
        expected = outputs[row, question] @ flat[targets[row, question, k]]
        assert torch.allclose(scores[row, question, k], expected, atol=1e-6)
    assert torch.allclose(task.loss(outputs, targets), -scores.log_softmax(-1)[..., 0].mean())


def test_one_predictor_for_each_step():
    task = new_task(2, grid=5, context_size=7)
    assert [tuple(p.weight.shape) for p in task.predict] == [(8, 7)] * 3
    inputs, _ = task.make(images(2, channels=1), seed())
    before = task(inputs)
    with torch.no_grad():
        task.predict[1].bias += 1
    changed = (task(inputs) != before).any(dim=2)[0].nonzero().flatten()
    assert changed.tolist() == list(range(15, 25)), "the ten questions three steps down"


def test_drawing_is_even_and_without_repeats():
    counts = torch.tensor([4, 9, 31, 1000]).repeat(5000, 1)
    drawn = sample_distinct(counts, 4, seed())
    assert (drawn >= 0).all() and (drawn < counts[..., None]).all()
    assert (drawn.sort(dim=-1).values.diff(dim=-1) > 0).all()
    for column, n in enumerate((4, 9, 31)):
        often = torch.bincount(drawn[:, column].flatten(), minlength=n)
        assert (often - 20000 / n).abs().max() < 5 * math.sqrt(20000 / n) + 1


def test_negatives_are_drawn_from_all_that_share_nothing():
    task = new_task(2, grid=4, overlap=0.5, n_negatives=3)
    batch = Batch(torch.zeros(500, 1, 12, 12), torch.arange(500))
    places = task.make(batch, seed()).targets % 16
    for question in range(places.shape[1]):
        row, column = divmod(int(places[0, question, 0]), 4)
        allowed = [4 * r + c for r, c in product(range(4), repeat=2) if max(abs(r - row), abs(c - column)) >= 2]
        often = torch.bincount(places[:, question, 1:].flatten(), minlength=16)
        assert often.nonzero().flatten().tolist() == allowed
        expected = 1500 / len(allowed)
        assert (often[allowed] - expected).abs().max() < 5 * math.sqrt(expected)


def test_how_many_negatives_there_are():
    assert new_task(3).n_classes == 32 and new_task(3, n_negatives=98).n_classes == 99
    assert new_task(2).n_classes == 17 and new_task(2, negatives="batch").n_classes == 26
    assert new_task(2, overlap=0, grid=2).n_negatives == 3
    assert new_task(2, n_negatives=7).scores(*_answered(new_task(2, n_negatives=7)))["chance"] == 1 / 8
    others, counts = disjoint(5, 3, 2)
    assert counts.min() == 125 - 27 and counts.max() == 125 - 8 and others.shape == (125, 125)


def _answered(task):
    inputs, targets = task.make(images(task.encoder.spatial_dims, channels=1), seed())
    return task(inputs), targets


def test_negatives_of_other_subjects():
    task = new_task(2, grid=4, negatives="batch", samples_per_image=2)
    batch = images(2, n=5, channels=1)._replace(subject=torch.tensor([7, 3, 7, 3, 5]))
    inputs, targets = task.make(batch, seed())
    subject = batch.subject.repeat_interleave(2)
    assert inputs.shape[:2] == (10, 16) and targets.shape[2] == 1 + 16
    who = subject[targets // 16]
    assert (targets[..., 0] // 16 == torch.arange(10)[:, None]).all(), "the right one is in the own image"
    assert (who[..., 1:] != subject[:, None, None]).all()
    assert all(len(set(line)) == 17 for line in targets.flatten(0, 1).tolist())
    for row in (0, 4):  # every patch of every other subject has its turn
        pool = torch.cat([task.make(batch, seed(n)).targets[row, :, 1:].flatten() for n in range(60)]).unique()
        assert pool.numel() == 16 * int((subject != subject[row]).sum())
    assert torch.isfinite(task.loss(task(inputs), targets))
    with pytest.raises(InputError, match="two subjects"):
        task.make(batch._replace(subject=torch.zeros(5, dtype=torch.int64)), seed())


# The loss


def test_infonce_by_hand():
    scores = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 2.0]])
    by_hand = [-math.log(math.exp(1) / (math.exp(1) + 1 + math.exp(-1))), -math.log(1 / (1 + 2 * math.exp(2)))]
    assert math.isclose(infonce(scores), sum(by_hand) / 2, rel_tol=1e-6)
    assert torch.allclose(infonce(scores + 50), infonce(scores), atol=1e-5), "only differences count"
    assert torch.isfinite(infonce(torch.tensor([[-1e4, 1e4]]))), "no overflow"


def test_binary_by_hand():
    def log_sigmoid(x):
        return -math.log(1 + math.exp(-x))

    scores = torch.tensor([[1.0, 0.5, -1.0]])
    by_hand = -(log_sigmoid(1) + (log_sigmoid(-0.5) + log_sigmoid(1)) / 2) / 2
    assert math.isclose(pairwise(scores), by_hand, rel_tol=1e-6)
    assert math.isclose(pairwise(torch.zeros(5, 32)), math.log(2), rel_tol=1e-6)


@pytest.mark.parametrize("level", [0.0, -1.0, -50.0, 50.0])
def test_equal_scores_cost_a_guess(level):
    assert math.isclose(infonce(torch.full((4, 7, 32), level)), math.log(32), rel_tol=1e-5)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("dims", [2, 3])
def test_codes_that_collapsed_cost_a_guess(dims, context):
    """Whatever is predicted, and however long the codes are: equation 1 as printed would fall to 0 here."""
    task = new_task(dims, grid=4, context=context)
    with torch.no_grad():
        task.head.layers[-1].weight.zero_()
        task.head.layers[-1].bias.fill_(3.0)
        for predict in task.predict:
            predict.bias.fill_(-3.0)
    outputs, targets = _answered(task)
    assert task.logits(outputs, targets).max() < -20
    assert math.isclose(task.loss(outputs, targets).item(), math.log(task.n_classes), rel_tol=1e-5)
    assert math.isclose(task.scores(outputs, targets)["accuracy"], 1 / task.n_classes, rel_tol=1e-5)


@pytest.mark.parametrize("negatives", ["image", "batch"])
@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_constant_image_gives_chance(dims, even, negatives):
    for grid, n in ((3, 1 + (negatives == "batch")), (5, 3)):  # few rows, and many
        task = small_task(dims, grid=grid, even=even, negatives=negatives).eval()
        batch = Batch(torch.full((n, 2, *[18] * dims), 0.5), torch.arange(n))
        with torch.no_grad():
            inputs, targets = task.make(batch, seed())
            outputs = task(inputs)
            assert math.isclose(task.loss(outputs, targets).item(), math.log(task.n_classes), rel_tol=1e-5)
            hit = task.hits(outputs, targets)
            assert torch.allclose(hit, torch.full_like(hit, 1 / task.n_classes))


def test_what_only_rounding_tells_apart_is_a_tie():
    task = new_task(2, grid=4)
    _, targets = task.make(images(2, channels=1), seed())
    n = targets.shape[1]
    rounded = 1 + 1e-7 * torch.randn(3, 16, 8, generator=seed())
    for prediction in (torch.ones(3, n, 8), -1e4 * torch.ones(3, n, 8)):
        hit = task.hits(torch.cat([prediction, rounded], dim=1), targets)
        assert torch.allclose(hit, torch.full_like(hit, 1 / task.n_classes))


def test_a_perfect_prediction_is_a_hit():
    task = new_task(2, grid=4, code_size=16)
    _, targets = task.make(images(2, channels=1), seed())
    codes = torch.eye(16).repeat(3, 1, 1)
    outputs = torch.cat([codes[0, targets[..., 0] % 16] * 20, codes], dim=1)
    assert task.scores(outputs, targets)["accuracy"] == 1 and task.loss(outputs, targets) < 1e-3
    wrong = torch.cat([codes[0, targets[..., 1] % 16] * 20, codes], dim=1)
    assert task.scores(wrong, targets)["accuracy"] == 0


# Options


@pytest.mark.parametrize(
    "dims, options, said",
    [
        (3, {"grid": 2, "overlap": 0.5}, "at least 3"),
        (2, {"grid": 4, "overlap": 0.75}, "at least 5"),
        (2, {"grid": 1, "overlap": 0}, "grid is 1"),
        (2, {"grid": 2.5}, "grid is 2.5"),
        (2, {"overlap": 1}, "overlap is 1"),
        (2, {"overlap": 0.9999}, "overlap is 0.9999"),
        (2, {"overlap": -0.1}, "overlap is -0.1"),
        (2, {"overlap": float("nan")}, "overlap is nan"),
        (2, {"overlap": "half"}, "overlap is 'half'"),
        (2, {"n_negatives": 17}, "only 16"),
        (2, {"n_negatives": 0}, "n_negatives is 0"),
        (2, {"n_negatives": 26, "negatives": "batch"}, "only 25"),
        (3, {"n_negatives": 99}, "only 98"),
        (2, {"negatives": "others"}, "image, batch"),
        (2, {"loss": "triplet"}, "infonce, binary"),
        (2, {"context": "lstm"}, "gru, conv"),
        (2, {"direction": "I"}, "down, up, right, left"),
        (3, {"direction": "down"}, "I, S, P, A, L, R"),
        (3, {"direction": ""}, "direction is ''"),
        (2, {"code_size": 0}, "code_size is 0"),
        (2, {"context_size": 0}, "context_size is 0"),
        (2, {"samples_per_image": 0}, "samples_per_image is 0"),
    ],
)
def test_what_cannot_be_had_is_refused(dims, options, said):
    with pytest.raises(InputError, match=said):
        new_task(dims, **options)


@pytest.mark.parametrize("dims", [2, 3])
def test_patches_too_small_for_the_encoder_are_refused(dims):
    encoder = Plain(dims)
    encoder.min_side = 9
    task = new_task(dims, encoder)
    with pytest.raises(InputError, match="at least 33 a side"):
        task.make(images(dims, channels=1, n=1, size=32), seed())
    assert task.make(images(dims, channels=1, n=1, size=33), seed()).inputs.shape[-1] == 9


def test_the_paper_preset():
    task = CPC(make_encoder("unet", 3, 1, SMALL, seed=0), **CPC.PAPER)
    assert task.overlap == 0.5 and task.first == 2 and not task.even
    assert task.context.gru.hidden_size == 1024 and task.context.gru.input_size == 64
    assert [tuple(p.weight.shape) for p in task.predict] == [(64, 1024)] * 3
    assert task.places((128, 128, 128), 1)[1:] == ((42, 42, 42), (21, 21, 21))
    assert task.criterion is infonce and any(isinstance(m, nn.ReLU) for m in task.head.modules())


def test_default_patches_keep_a_distance():
    for size in range(24, 140, 9):
        _, (patch, _), (step, _) = new_task(2).places((size, size), 1)
        assert 2 * step - patch >= patch / 5


def test_an_even_patch_does_not_tell_its_brightness():
    batch, brighter = images(2), images(2)
    brighter = brighter._replace(image=0.4 * brighter.image + 0.3)
    for even in (True, False):
        task = small_task(2, even=even)
        a, b = (task(task.make(x, seed()).inputs) for x in (batch, brighter))
        assert torch.allclose(a, b, atol=1e-3) is even


# Facts of every task


@pytest.mark.parametrize("dims", [2, 3])
class TestAsEveryTask:
    def test_a_seed_gives_the_same_bytes(self, dims):
        for negatives in ("image", "batch"):
            task = small_task(dims, negatives=negatives)
            a, b, c = (task.make(images(dims, size=18), seed(n)) for n in (0, 0, 1))
            assert torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)
            assert not torch.equal(a.targets, c.targets) and not a.inputs.requires_grad
            assert len({task.make(images(dims, size=18), seed(n)).inputs.numpy().tobytes() for n in range(9)}) > 1

    def test_the_gradient_is_the_same_every_time(self, dims):
        gradients = []
        for _ in range(3):
            task = small_task(dims)
            inputs, targets = task.make(images(dims), seed())
            task.loss(task(inputs), targets).backward()
            gradients.append(torch.cat([p.grad.flatten() for p in task.parameters()]).numpy().tobytes())
        assert len(set(gradients)) == 1

    def test_make_leaves_its_images_alone(self, dims):
        batch = images(dims)
        before = batch.image.clone()
        small_task(dims).make(batch, seed()).inputs.zero_()
        assert torch.equal(batch.image, before)

    @pytest.mark.parametrize("options", [{}, {"context": "conv"}, {"loss": "binary"}, {"negatives": "batch"}])
    def test_gradients_reach_encoder_and_head(self, dims, options):
        task = small_task(dims, **options)
        inputs, targets = task.make(images(dims), seed())
        task.loss(task(inputs), targets).backward()
        silent = [n for n, p in task.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not silent, silent

    @pytest.mark.parametrize("context", CONTEXTS)
    def test_other_rows_do_not_change_an_answer(self, dims, context):
        task = small_task(dims, context=context)
        inputs, targets = task.make(images(dims), seed())
        with torch.no_grad():
            before = task(inputs)
            inputs[1:] = 0.3
            after = task(inputs)
        assert torch.allclose(before[0], after[0], atol=1e-6)
        assert torch.allclose(task.logits(before, targets)[0], task.logits(after, targets)[0], atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("context", CONTEXTS)
    @pytest.mark.parametrize("loss", ["infonce", "binary"])
    def test_autocast(self, dims, loss, context, dtype):
        task = small_task(dims, loss=loss, context=context)
        inputs, targets = task.make(images(dims), seed())
        with torch.autocast("cpu", dtype=dtype):
            outputs = task(inputs)
            inside = task.loss(outputs, targets)
            assert task.logits(outputs, targets).dtype == inside.dtype == torch.float32
        assert torch.equal(inside, task.loss(outputs.float(), targets)), "the scores are those of float32"
        inside.backward()
        # Not the encoder's: on CPUs, PyTorch 2.13's bfloat16 Conv3d may give NaN as gradient on maps of 2 x 2 x 2.
        ours = [p.grad for name, p in task.named_parameters() if not name.startswith("encoder.")]
        assert torch.isfinite(inside) and all(torch.isfinite(gradient).all() for gradient in ours)

    def test_show(self, dims):
        import matplotlib

        matplotlib.use("Agg")
        for direction in DIRECTIONS[dims]:
            for grid, overlap in ((5, 0.4), (2, 0)):
                axes = small_task(dims, grid=grid, overlap=overlap, direction=direction).show(images(dims))
                assert len(axes) == (3 if dims == 3 else 1)
        assert small_task(dims, negatives="batch", samples_per_image=2).show(images(dims))
        matplotlib.pyplot.close("all")


TOWARDS = {"I": (0, -1), "S": (0, 1), "P": (-1, 0), "A": (1, 0), "L": (-1, 0), "R": (1, 0)}  # in a slice, y upwards
TOWARDS |= {"down": (0, 1), "up": (0, -1), "right": (1, 0), "left": (-1, 0)}  # in a picture, y downwards


@pytest.mark.parametrize("dims, direction", [(dims, direction) for dims in (2, 3) for direction in DIRECTIONS[dims]])
def test_a_perfect_prediction_is_bright_in_the_frame_alone(dims, direction):
    import matplotlib

    matplotlib.use("Agg")
    task = new_task(dims, grid=4, direction=direction, negatives="batch")
    codes = torch.eye(task.n_places)
    task.forward = lambda patches: torch.cat([30 * codes[task.positives], codes])[None]
    axes = draw_predictions(images(dims, n=1).image[0], task, (0, 1, 2)[:dims])
    maps = [ax for ax in axes if ax.collections]
    framed = [ax for ax in maps if ax.patches]
    assert len(maps) == (8 if dims == 3 else 2) and len(framed) == 2, "two targets, in each of the planes"
    for ax in maps:
        mesh, own = ax.collections[0], ax in framed
        assert mesh.get_array().shape == (4, 4) and math.isclose(mesh.get_array().sum(), own, abs_tol=1e-5)
        if own:
            brightest = mesh.get_array().argmax()
            middle = mesh.get_coordinates()[brightest // 4 :, brightest % 4 :][:2, :2].mean(axis=(0, 1))
            dot, frame = ax.lines[0].get_xydata()[0], ax.patches[0].get_bbox()
            assert middle.tolist() == pytest.approx([(frame.x0 + frame.x1) / 2, (frame.y0 + frame.y1) / 2])
            way = torch.tensor(middle - dot)
            assert torch.allclose(way / way.norm(), torch.tensor(TOWARDS[direction], dtype=way.dtype), atol=1e-4)
    words = {text.get_text() for ax in axes for text in ax.texts}
    assert words == ({*"ISPA"} if direction in ("A", "P") else {*"ISLR"} if dims == 3 else set())
    matplotlib.pyplot.close("all")


def test_images_that_are_not_cubes():
    task = new_task(3, Plain(3, in_channels=2), grid=3)
    inputs, targets = task.make(Batch(torch.rand(2, 2, 14, 20, 11), torch.arange(2)), seed())
    assert inputs.shape == (2, 27, 2, 6, 8, 5) and torch.isfinite(task.loss(task(inputs), targets))


def test_densenet():
    task = new_task(2, make_encoder("densenet121", 2, 3, seed=0), grid=3)
    with pytest.raises(InputError, match="at least 72"):
        task.make(images(2, channels=3, size=71), seed())
    inputs, targets = task.make(images(2, n=2, channels=3, size=72), seed())
    assert torch.isfinite(task.loss(task(inputs), targets))


def test_it_learns_what_can_be_learned():
    """Vertical stripes of a width that differs between columns: what is above tells what is below."""

    def stripes(n, number):
        width = torch.randint(1, 9, (n, 1, 1, 4), generator=seed(number)).float().repeat_interleave(8, dim=3)
        wave = torch.sin(torch.arange(32.0) * width * math.pi / 8).expand(n, 1, 32, 32)
        return Batch(wave + 0.1 * torch.rand(n, 1, 32, 32, generator=seed(number + 1)), torch.arange(n))

    task = new_task(2, make_encoder("unet", 2, 1, (8, 16), seed=0), grid=4, code_size=32, context_size=32)
    fit_plainly(task, stripes(64, 0), 60, lr=3e-3, batch_size=16)
    result = evaluate(task, stripes(40, 5), n_rounds=1)
    assert result.low > result.chance, result
