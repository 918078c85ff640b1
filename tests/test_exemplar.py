"""Facts of the exemplar task: its views, its negatives, its losses and its memory."""

import io

import numpy as np
import pytest
import torch
from conftest import SMALL
from scipy.ndimage import affine_transform
from torch import nn
from torch.nn import functional as F

from ssl3d.errors import InputError
from ssl3d.networks.encoders import make_encoder
from ssl3d.seeds import seeded
from ssl3d.tasks.base import Batch
from ssl3d.tasks.exemplar import (
    NEGATIVES,
    RATES,
    Exemplar,
    Memory,
    View,
    distances,
    hinge,
    pick_negatives,
    resample,
    rotation_about,
    sample_views,
    transform,
    turns_of,
)
from ssl3d.tasks.rotation import rotations, turn

pytestmark = pytest.mark.quick

SPACES = [(12, 12), (9, 14), (8, 8, 8), (8, 8, 5), (7, 6, 5)]
STILL = {"flip": 0, "rotate": 0, "colour": 0, "zoom": 0}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=rng(seed))


def make_task(dims=3, channels=2, loss="triplet", **options):
    with seeded(0, "head"):
        return Exemplar(make_encoder("unet", dims, channels, SMALL, seed=0), loss=loss, **options)


def images(n=4, dims=3, channels=2, size=12, subjects=None, seed=0):
    return Batch(noise(n, channels, *[size] * dims, seed=seed), torch.tensor(subjects or range(n)))


def asked(subjects, lots=None):
    """Targets of rows: whose they are, and the lot for a random negative."""
    return torch.tensor([[s, lot] for s, lot in zip(subjects, lots or [0] * len(subjects))])


def pairs(*rows):
    """Codes (rows, 2, 2) from points (anchor, positive) in the plane."""
    return torch.tensor(rows, dtype=torch.float32)


def view_of(image, view):
    return transform(image, view, torch.empty_like(image))


class Blind(nn.Module):
    """An encoder that gives the same map whatever it sees."""

    channels, spatial_dims = (4,), 3

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return [self.value.reshape(1, 4, 1, 1, 1).expand(len(x), 4, 2, 2, 2)]


# Views


@pytest.mark.parametrize("space", SPACES)
def test_flips_and_turns_change_no_value(space):
    image = noise(3, *space)
    for axis in range(len(space)):
        matrix = np.eye(len(space))
        matrix[axis, axis] = -1
        assert torch.equal(view_of(image, View(matrix)), image.flip(axis + 1))
    for matrix in turns_of(space):
        assert torch.equal(view_of(image, View(matrix)), turn(image, matrix))
    assert torch.equal(view_of(image, View(np.eye(len(space)))), image)


def test_a_quarter_is_that_of_rot90():
    image = noise(2, 6, 6, 6)
    for axis, plane in enumerate(((2, 3), (3, 1), (1, 2))):
        quarter = rotation_about(np.eye(3)[axis], np.pi / 2).round()
        assert torch.equal(view_of(image, View(quarter)), torch.rot90(image, 1, plane))
    assert torch.equal(
        view_of(image[:, 0], View(rotation_about(None, np.pi / 2).round())), torch.rot90(image[:, 0], 1, (1, 2))
    )


@pytest.mark.parametrize("space", SPACES)
def test_only_turns_that_keep_the_shape(space):
    turns = turns_of(space)
    expected = [m for m in rotations(len(space)) if turn(noise(1, *space), m).shape[1:] == space]
    assert len(turns) == len(expected) - 1 and not any((m == np.eye(len(space))).all() for m in turns)


@pytest.mark.parametrize("space", SPACES)
def test_right_angles_by_interpolation_agree_with_the_exact_turn(space):
    image = noise(2, *space)
    for matrix in turns_of(space):
        assert torch.allclose(resample(image, matrix.astype(float)), turn(image, matrix), atol=1e-4)
    for k in (1, 2, 3):
        if space[0] == space[1]:
            matrix = rotation_about(np.eye(3)[2] if len(space) == 3 else None, k * np.pi / 2)
            assert torch.allclose(resample(image, matrix), torch.rot90(image, k, (1, 2)), atol=1e-4)


@pytest.mark.parametrize("space", SPACES)
def test_resampling_is_that_of_scipy(space):
    """An independent reference for centres of voxels, linear interpolation and the zeros outside."""
    image = noise(2, *space)
    rates = {**RATES, "rotate": 1, "right_angle": 0, "zoom": 1}
    for view in sample_views(4, space, rng(3), rates):
        back = np.linalg.inv(view.matrix)
        middle = (np.array(space) - 1) / 2
        expected = [
            affine_transform(channel, back, middle - back @ middle, order=1, mode="grid-constant")
            for channel in image.double().numpy()
        ]
        assert np.allclose(resample(image, view.matrix).numpy(), expected, atol=1e-4)


def test_a_rotation_is_undone_by_its_inverse():
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 32)] * 3, indexing="ij"))
    smooth = 0.5 + 0.4 * torch.sin(2 * grid[:1]) * torch.cos(3 * grid[1:2] + grid[2:])
    for axis, angle in ((np.array([0.48, 0.6, 0.64]), 0.7), (np.array([0, 0, 1.0]), 2.0)):
        matrix = rotation_about(axis, angle)
        assert np.allclose(matrix @ matrix.T, np.eye(3)) and np.isclose(np.linalg.det(matrix), 1)
        assert np.allclose(matrix @ axis, axis) and np.isclose(np.trace(matrix), 1 + 2 * np.cos(angle))
        back = resample(resample(smooth, matrix), matrix.T)
        inside = grid.square().sum(dim=0) < 0.7
        assert (back - smooth)[0, inside].abs().max() < 0.01


@pytest.mark.parametrize("space", [(16, 16), (10, 10, 10)])
def test_all_interpolation_is_one_resampling(space, monkeypatch):
    calls = []
    real = F.grid_sample
    monkeypatch.setattr(F, "grid_sample", lambda *a, **k: calls.append(1) or real(*a, **k))
    for view in sample_views(60, space, rng()):
        calls.clear()
        view_of(noise(1, *space), view)
        assert len(calls) == (not np.isin(view.matrix, (-1, 0, 1)).all())
    there, back = rotation_about(None if len(space) == 2 else np.eye(3)[0], 0.4), np.diag([0.8] * len(space))
    for matrix in (there, back):  # a matrix and its inverse leave nothing to blur
        image = noise(1, *space)
        assert torch.allclose(view_of(image, View(np.linalg.inv(matrix) @ matrix)), image, atol=1e-4)


def test_contrast_and_brightness():
    image = noise(2, 6, 6, 6) * torch.tensor([0.2, 0.6]).reshape(2, 1, 1, 1) + 0.2
    mean = image.mean(dim=(1, 2, 3), keepdim=True)
    expected = (mean + 1.3 * (image - mean) + 0.1).clamp(0, 1)
    assert torch.allclose(view_of(image, View(np.eye(3), 1.3, 0.1)), expected, atol=1e-6)


@pytest.mark.parametrize("dims", [2, 3])
def test_values_stay_in_range(dims):
    lively = Batch(noise(40, 2, *[8] * dims).round(), torch.arange(40))  # black and white
    inputs = make_task(dims, colour=1).make(lively, rng()).inputs
    assert inputs.min() == 0 and inputs.max() == 1
    white = Batch(torch.ones(40, 2, *[8] * dims), torch.arange(40))
    assert make_task(dims, colour=0, rotate=1, zoom=1).make(white, rng()).inputs.max() <= 1


@pytest.mark.parametrize("space", [(8, 8), (8, 8, 8), (7, 6, 5)])
def test_rates_are_kept(space):
    n = 10_000
    views = sample_views(n, space, rng(1))

    def near(count, p, n=n):
        assert abs(count - n * p) < 4 * (n * p * (1 - p)) ** 0.5, (count, n * p)

    exact = [np.isin(v.matrix, (-1, 0, 1)).all() for v in views]
    near(sum(np.linalg.det(v.matrix) < 0 for v in views), 0.5)
    near(sum(v.contrast != 1 for v in views), 0.5)
    near(n - sum(exact), 0.5 * 0.5 + 0.75 * 0.2)
    near(sum(not np.isclose(abs(np.linalg.det(v.matrix)), 1) for v in views), 0.2)
    unflipped = [v.matrix for v, e in zip(views, exact) if e and np.linalg.det(v.matrix) > 0]
    still = sum((m == np.eye(len(space))).all() for m in unflipped)
    near(still, 0.5 / 0.75, len(unflipped))  # of the exact ones, a third is turned
    coloured = np.array([v[1:] for v in views if v.contrast != 1])
    assert np.allclose(coloured.min(axis=0), (0.5, -0.125), atol=0.01)
    assert np.allclose(coloured.max(axis=0), (1.5, 0.125), atol=0.01)


def test_each_rate_is_an_option():
    for name, what in (("flip", -1), ("rotate", 1)):
        views = sample_views(50, (6, 6, 6), rng(), {**RATES, **STILL, "right_angle": 1, name: 1})
        assert all(np.linalg.det(v.matrix) == what and v.contrast == 1 for v in views)
        assert not any((v.matrix == np.eye(3)).all() for v in views)
    flips = sample_views(200, (6, 6, 6), rng(), {**RATES, **STILL, "flip": 1})
    assert {tuple(np.diag(v.matrix)) for v in flips} == {(-1, 1, 1), (1, -1, 1), (1, 1, -1)}
    turned = sample_views(1000, (6, 6, 6), rng(), {**RATES, **STILL, "rotate": 1, "right_angle": 1})
    assert len({v.matrix.tobytes() for v in turned}) == 23
    zooms = np.array([v.matrix for v in sample_views(500, (6, 6, 6), rng(), {**RATES, **STILL, "zoom": 1})])
    factors = zooms[:, range(3), range(3)]
    assert np.allclose(zooms, factors[:, :, None] * np.eye(3)) and factors.min() < 0.81 and factors.max() > 1.19
    assert 0.8 <= factors.min() and factors.max() <= 1.2 and abs(np.corrcoef(factors.T)[0, 1]) < 0.2


def test_axes_and_angles_are_evenly_spread():
    views = sample_views(4000, (6, 6, 6), rng(), {**RATES, **STILL, "rotate": 1, "right_angle": 0})
    matrices = np.array([v.matrix for v in views])
    assert np.allclose(np.linalg.det(matrices), 1)
    angles = np.arccos(np.clip((np.trace(matrices, axis1=1, axis2=2) - 1) / 2, -1, 1))  # even in 0 to pi
    assert np.allclose(np.quantile(angles, (0.25, 0.5, 0.75)) / np.pi, (0.25, 0.5, 0.75), atol=0.03)
    skew = matrices - matrices.swapaxes(1, 2)
    axes = np.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], axis=1)
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    for k in range(3):  # each coordinate of a point on a sphere is even in -1 to 1
        assert np.allclose(np.quantile(axes[:, k], (0.25, 0.5, 0.75)), (-0.5, 0, 0.5), atol=0.06)


# make


@pytest.mark.parametrize("space", SPACES)
def test_rows_channels_and_shapes(space):
    image = noise(3, 4, *space)
    task = make_task(len(space), 4, samples_per_image=2)
    inputs, targets = task.make(Batch(image, torch.tensor([7, 8, 7])), rng())
    assert inputs.shape == (6, 2, 4, *space) and inputs.dtype == image.dtype
    assert targets.dtype == torch.int64 and targets[:, 0].tolist() == [7, 7, 8, 8, 7, 7]
    still = make_task(len(space), 4, samples_per_image=2, **STILL).make(Batch(image, torch.arange(3)), rng()).inputs
    assert torch.equal(still, image.repeat_interleave(2, dim=0)[:, None].expand(-1, 2, *image.shape[1:]))


def test_the_same_seed_gives_the_same_bytes_and_no_other_randomness():
    task, batch = make_task(), images()
    state = torch.random.get_rng_state()
    a, b, c = (task.make(batch, rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)
    assert not torch.equal(a.inputs, c.inputs) and not torch.equal(a.targets, c.targets)
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator did not move"


def test_paper_transforms_the_positive_only():
    batch = images(n=30, size=6)
    inputs = make_task(**Exemplar.PAPER).make(batch, rng()).inputs
    assert torch.equal(inputs[:, 0], batch.image)
    assert sum(not torch.equal(a, p) for a, p in inputs) > 15


def test_paper_is_the_papers():
    task = make_task(**Exemplar.PAPER)
    assert task.rates == {"flip": 0.5, "rotate": 0.5, "right_angle": 0.5, "colour": 0.5, "zoom": 0.2}
    assert task.margin == 1 and task.head.layers[-1].out_features == 1024 and not task.normalise
    assert isinstance(task.head.layers[1], nn.ReLU) and task.negatives == "dataset" and not task.contrastive
    assert task.needs_others and not make_task().needs_others and not make_task(loss="contrastive").needs_others


def with_others(n=4, subjects=None, **how):
    return images(n, subjects=subjects, **how)._replace(others=noise(n, 2, 12, 12, 12, seed=9))


def test_a_negative_from_beyond_the_batch_is_encoded_in_the_step():
    task, batch = make_task(**Exemplar.PAPER | {"samples_per_image": 2}), with_others()
    inputs, targets = task.make(batch, rng())
    without = task.make(batch._replace(others=None), rng())
    assert inputs.shape == (8, 3, 2, 12, 12, 12) and torch.equal(inputs[:, :2], without.inputs), "nothing else changes"
    assert torch.equal(inputs[:, 2], batch.others.repeat_interleave(2, dim=0)) and torch.equal(targets, without.targets)
    codes = task(inputs)
    assert torch.equal(codes[:, 2], task.head(task.encoder(inputs[:, 2]))), "by one and the same head"
    positive, negative = task.triplets(codes, targets)
    assert torch.allclose(negative, (codes[:, 0] - codes[:, 2]).norm(dim=1))
    assert torch.allclose(task.loss(codes, targets), hinge(positive, negative, task.margin).mean())
    task.loss(codes, targets).backward()
    assert all(p.grad is not None for p in task.parameters())
    less = codes.detach().clone()
    less[:, 2] = less[:, 0]
    assert np.isclose(task.loss(less, targets).item(), (positive + task.margin).mean().item()), "it alone is compared"


def test_the_drawn_negative_is_in_the_accuracy_and_one_person_is_enough():
    task = make_task(code_size=2, negatives="dataset")
    codes = torch.tensor([[[0.0, 0], [1, 0], [3, 0]]])  # anchor, positive, negative
    assert task.hits(codes, asked([7])).tolist() == [1] and task.scores(codes, asked([7]))["accuracy"] == 1
    codes[0, 2, 0] = 0.5
    assert task.hits(codes, asked([7])).tolist() == [0]
    codes[0, 2, 0] = -1
    assert task.hits(codes, asked([7])).tolist() == [0.5], "as near as the positive"
    for alone in (with_others(1), with_others(2, subjects=[5, 5])):
        inputs, targets = task.make(alone, rng())
        assert inputs.shape[:2] == (len(alone.image), 3) and torch.isfinite(task.loss(task(inputs), targets))
        assert task.show(alone)
        with pytest.raises(InputError, match="no negatives"):
            task.make(alone._replace(others=None), rng())


def test_the_negative_is_transformed_where_the_anchor_is():
    batch = with_others(n=4)
    for both, changed in ((True, True), (False, False)):
        task = make_task(negatives="dataset", both_transformed=both, zoom=1)
        inputs = task.make(batch, rng()).inputs
        assert [torch.equal(x, y) for x, y in zip(inputs[:, 2], batch.others)] == [not changed] * 4


def test_others_are_left_alone_where_they_are_not_needed_and_have_to_fit():
    for options in ({}, {"loss": "contrastive"}, {"loss": "contrastive", "negatives": "dataset"}):
        task = make_task(**options)
        one, other = task.make(with_others(), rng()), task.make(images(), rng())
        assert torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)
    with pytest.raises(InputError, match="one of another person for each image"):
        make_task(**Exemplar.PAPER).make(images()._replace(others=noise(3, 2, 12, 12, 12)), rng())
    with pytest.raises(InputError, match="memory keeps codes"):
        make_task(negatives="dataset", memory=30)


def test_anchor_and_positive_are_drawn_independently():
    batch = Batch(noise(400, 1, 4, 4), torch.arange(400))
    inputs = make_task(2, 1, **STILL | {"flip": 0.5}).make(batch, rng()).inputs
    moved = torch.tensor([[not torch.equal(view, image) for view in pair] for pair, image in zip(inputs, batch.image)])
    together = torch.bincount(moved.long() @ torch.tensor([1, 2]), minlength=4)
    assert together.min() > 70 and together.max() < 130, together  # a quarter each


def test_one_person_alone_is_refused():
    for options in ({}, {"memory": 64}, {"samples_per_image": 3}):
        for batch in (images(n=1), images(n=3, subjects=[4, 4, 4])):
            with pytest.raises(InputError, match="no negatives"):
                make_task(**options).make(batch, rng())


@pytest.mark.parametrize(
    "options, said",
    [
        ({"flip": 1.5}, "flip"),
        ({"zoom": -0.1}, "zoom"),
        ({"loss": "pairs"}, "triplet, contrastive"),
        ({"negatives": "easy"}, "semi-hard, hard, random, dataset"),
        ({"margin": 0}, "margin"),
        ({"temperature": -1}, "temperature"),
        ({"memory": -1}, "memory"),
        ({"memory": 2.5}, "memory"),
        ({"code_size": 0}, "code_size"),
        ({"samples_per_image": 0}, "samples_per_image"),
    ],
)
def test_what_cannot_be_is_refused(options, said):
    with pytest.raises(InputError, match=said):
        make_task(**options)


# Codes


def test_one_head_for_anchor_and_positive():
    task = make_task().eval()
    inputs, _ = task.make(images(), rng())
    with torch.no_grad():
        codes = task(inputs)
        assert codes.shape == (4, 2, 1024) and codes.dtype == torch.float32
        assert torch.allclose(task(inputs.flip(1)), codes.flip(1), atol=1e-6)
        assert torch.allclose(codes.norm(dim=2), torch.ones(4, 2), atol=1e-5)
        free = make_task(normalise=False)(inputs)
        assert torch.allclose(F.normalize(free, dim=2), codes, atol=1e-5) and free.norm(dim=2).std() > 0


def test_distance_is_euclidean_and_its_gradient_is_finite_at_zero():
    a, b = torch.randn(2, 30, 64, generator=rng()).unbind()
    assert torch.allclose(distances(a, b), torch.linalg.vector_norm(a[:, None] - b, dim=2), atol=1e-5)
    assert (distances(a, a).diagonal() == 0).all()
    same = a[:1].clone().requires_grad_()
    distances(same, same.detach()).sum().backward()
    assert (same.grad == 0).all()
    codes = torch.zeros(3, 2, 4, requires_grad=True)
    loss = make_task().loss(codes, asked([0, 1, 2]))
    loss.backward()
    assert loss == 1 and torch.isfinite(codes.grad).all()


def test_many_rows_tie_exactly():
    """With more than 25 rows the quick way to distances would round, and ties would be broken by chance."""
    point, other = torch.randn(2, 1024, generator=rng())
    codes = torch.stack([point.expand(40, -1), other.expand(40, -1)], dim=1).clone()
    codes[1::2] = codes[1::2].flip(1)  # anchors are alternately one and the other point
    targets = asked([0, 1] * 20)
    assert (make_task().hits(codes, targets) == 0.5).all()


# Negatives


def test_mining_rules_by_hand():
    positive = torch.tensor([1.0, 1.0, 1.0, 9.0])
    others = torch.tensor([[0.5, 1.2, 3.0, 1.1]] * 4)
    allowed = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 1, 0], [0, 1, 1, 1]]).bool()
    lot = torch.tensor([5, 4, 3, 2])
    assert pick_negatives("hard", positive, others, allowed, lot).tolist() == [0, 0, 0, 3]
    assert pick_negatives("semi-hard", positive, others, allowed, lot).tolist() == [3, 1, 2, 3]
    assert pick_negatives("random", positive, others, allowed, lot).tolist() == [1, 1, 2, 3]
    equal = torch.tensor([[1.0, 2.0, 5.0, 6.0]])
    everyone = torch.ones(1, 4, dtype=torch.bool)
    assert pick_negatives("semi-hard", positive[:1], equal, everyone, lot[:1]) == 1, "as far is not beyond"


@pytest.mark.parametrize("how", NEGATIVES)
def test_a_negative_is_never_the_same_subject(how):
    generator = rng()
    task = make_task(negatives=how, memory=40, code_size=3)
    for _ in range(30):
        subjects = torch.randint(3, (8,), generator=generator)
        subjects[:2] = torch.tensor([0, 1])
        codes = torch.randn(8, 2, 3, generator=generator)
        targets = torch.stack([subjects, torch.randint(2**40, (8,), generator=generator)], dim=1)
        task.memory.add(codes[:, 1], subjects)
        positive, others, allowed = task._apart(codes, targets, past=True)
        picked = pick_negatives(how, positive, others, allowed, targets[:, 1])
        whose = torch.cat([subjects, task.memory.subjects])[picked]
        assert (whose >= 0).all() and (whose != subjects).all()
        assert torch.equal(task.triplets(codes, targets)[1], others[torch.arange(8), picked])


@pytest.mark.parametrize("options", [{"loss": "contrastive"}, *({"negatives": how} for how in NEGATIVES)])
@pytest.mark.parametrize("memory", [0, 9])
def test_the_same_subjects_other_image_plays_no_part(options, memory):
    """Two images of one person with the same code would cost a lot if they counted; the other person is far away."""
    task = make_task(code_size=2, memory=memory, **options)
    codes = 3 * pairs([[1, 0], [1, 0]], [[1, 0], [1, 0]], [[-1, 0], [-1, 0]])
    for lot in range(3):
        targets = asked([5, 5, 2], [lot, lot, lot])
        assert task.loss(codes, targets) < 1e-6
        assert task.scores(codes, targets)["accuracy"] == 1


def test_random_negatives_are_even():
    task = make_task(negatives="random", samples_per_image=2)
    counts = torch.zeros(6, dtype=torch.int64)
    codes = torch.eye(12).reshape(6, 2, 12) * torch.arange(1, 7)[:, None, None]  # every distance is another one
    for seed in range(300):
        targets = task.make(Batch(torch.zeros(3, 2, 2, 2, 2), torch.arange(3)), rng(seed)).targets
        positive, others, allowed = task._apart(codes, targets, past=True)
        counts += torch.bincount(pick_negatives("random", positive, others, allowed, targets[:, 1]), minlength=6)
    assert counts.sum() == 1800 and abs(counts - 300).max() < 80, counts


# Losses and scores


def test_triplet_loss_by_hand():
    codes = pairs([[0, 0], [0.3, 0.4]], [[0, 0.8], [0, 2.8]], [[5, 0], [5, 0]])
    task = make_task()
    # row 0: positive 0.5, semi-hard 0.8; row 1: positive 2, beyond it only row 2; row 2: positive 0, nearest 5
    beyond = (25 + 0.64) ** 0.5
    expected = [0.5 - 0.8 + 1, 0, 0]
    assert np.isclose(task.loss(codes, asked([0, 1, 2])).item(), np.mean(expected))
    scores = task.scores(codes, asked([0, 1, 2]))
    assert np.isclose(scores["active"], 1 / 3) and np.isclose(scores["accuracy"], (1 + 0.5 + 1) / 3)
    assert np.isclose(scores["positive_distance"], 2.5 / 3)
    assert np.isclose(scores["negative_distance"], (0.8 + beyond + 5) / 3)
    hard = make_task(negatives="hard", margin=0.2).loss(codes, asked([0, 1, 2]))
    assert np.isclose(hard.item(), (0 + (2 - 0.8 + 0.2) + 0) / 3)
    assert hinge(torch.tensor(2.0), torch.tensor(0.5), 1.0) == 2.5


def test_training_pulls_the_positive_and_pushes_the_negative():
    codes = pairs([[0, 0], [1, 0]], [[0, 2], [1, 2]]).requires_grad_()
    loss = make_task(margin=3.0).loss(codes, asked([0, 1]))
    (gradient,) = torch.autograd.grad(loss, codes)
    after = (codes - 0.1 * gradient).detach()
    assert (after[:, 0] - after[:, 1]).norm(dim=1).max() < 1
    assert (after[0, 0] - after[1, 0]).norm() > 2


def test_contrastive_loss_by_hand():
    generator, temperature = rng(), 0.3
    codes = F.normalize(torch.randn(4, 2, 6, generator=generator), dim=2)
    subjects = [0, 1, 1, 2]
    views, whose = codes.flatten(0, 1).double().numpy(), np.repeat(subjects, 2)
    past, past_subjects = F.normalize(torch.randn(5, 6, generator=generator), dim=1), torch.tensor([0, 1, 2, 3, -1])
    for memory in (0, 9):
        task = make_task(loss="contrastive", temperature=temperature, memory=memory, code_size=6).eval()
        if memory:
            task.memory.codes[:5], task.memory.subjects[:5] = past, past_subjects
        total = 0
        for i in range(8):
            partner = i + 1 if i % 2 == 0 else i - 1
            up = np.exp(views[i] @ views[partner] / temperature)
            down = [np.exp(views[i] @ views[j] / temperature) for j in range(8) if whose[j] != whose[i]]
            if memory:
                old = zip(past.double().numpy(), past_subjects.tolist())
                down += [np.exp(views[i] @ c / temperature) for c, s in old if s not in (-1, whose[i])]
            total -= np.log(up / (up + sum(down)))
        assert np.isclose(task.loss(codes, asked(subjects)).item(), total / 8, rtol=1e-5)
        assert np.isclose(task.loss(3 * codes, asked(subjects)).item(), total / 8, rtol=1e-5), "cosines have no length"


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("normalise", [True, False])
def test_nothing_to_see_costs_the_margin(negatives, normalise):
    for value, options in ((0.0, {"colour": 0}), (0.5, {"colour": 0, "zoom": 0, "right_angle": 1})):
        task = make_task(negatives=negatives, normalise=normalise, margin=0.7, **options)
        inputs, targets = task.make(Batch(torch.full((5, 2, 8, 8, 8), value), torch.arange(5)), rng())
        codes = task(inputs)
        assert np.isclose(task.loss(codes, targets).item(), 0.7, atol=1e-6)
        scores = task.scores(codes, targets)
        assert scores["accuracy"] == scores["chance"] == 0.5 and scores["active"] == 1


@pytest.mark.parametrize("options", [{"loss": "triplet"}, Exemplar.PAPER])
def test_a_constant_encoder_cannot_reach_zero(options):
    task = Exemplar(Blind(), **options)
    optimiser = torch.optim.Adam(task.parameters(), lr=0.1)
    for step in range(30):
        inputs, targets = task.make(images(size=4), rng(step))
        codes = task(inputs)
        loss = task.loss(codes, targets)
        assert np.isclose(loss.item(), task.margin, atol=1e-5)
        assert task.scores(codes, targets)["accuracy"] == 0.5
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def test_a_constant_encoder_is_at_chance_in_the_contrastive_loss():
    task = Exemplar(Blind(), loss="contrastive")
    inputs, targets = task.make(images(n=5, size=4), rng())
    assert np.isclose(task.loss(task(inputs), targets).item(), np.log(9), atol=1e-5)  # a partner and 8 others


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("options", [{"loss": "contrastive"}, {"memory": 20}, {"negatives": "hard"}, Exemplar.PAPER])
def test_gradients_reach_encoder_and_head_under_autocast(dims, options):
    task = make_task(dims, **options)
    inputs, targets = task.make(images(dims=dims), rng())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = task(inputs)
        loss = task.loss(codes, targets)
        inside = task.scores(codes.detach(), targets)
        again = task.eval().loss(codes, targets)
    assert loss.dtype == codes.dtype == torch.float32 and inside == task.scores(codes.detach(), targets)
    assert torch.equal(again, task.loss(codes, targets)), "the loss is in float32 also inside"
    loss.backward()
    weights = {n: p for n, p in task.named_parameters() if p.ndim > 1}  # a last bias shifts all codes alike
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in weights.values())


def test_training_is_better_than_no_training():
    """Images with one bright half are told apart, whatever is flipped."""
    generator = rng()
    image = noise(12, 1, 16, 16, seed=4) * 0.3
    for i, size in enumerate(range(2, 14)):  # squares of different size are different people
        image[i, 0, 1 : 1 + size, 1 : 1 + size] += 0.7
    task, batch = make_task(2, 1, zoom=0, colour=0, right_angle=1), Batch(image, torch.arange(12))
    optimiser = torch.optim.Adam(task.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        inputs, targets = task.make(batch, generator)
        codes = task(inputs)
        losses.append(task.loss(codes, targets))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    scores = task.scores(codes.detach(), targets)
    assert torch.stack(losses[-5:]).mean() < 0.8 < torch.stack(losses[:3]).mean()
    assert scores["accuracy"] > 0.85 and scores["positive_distance"] < scores["negative_distance"]


# Memory


def test_the_oldest_codes_go_first():
    memory = Memory(5, 2)
    for first in range(0, 12, 3):
        new = torch.arange(first, first + 3)
        memory.add(new[:, None].expand(3, 2).float(), new)
        held = set(memory.subjects.tolist()) - {-1}
        assert held == set(range(max(0, first - 2), first + 3))
        kept = memory.subjects >= 0
        assert torch.equal(memory.codes[kept, 0].long(), memory.subjects[kept])
        codes, past = memory.past(3)
        assert set(past.tolist()) - {-1} == held - set(new.tolist()) and codes.shape == (5, 2)


def test_the_memory_fills_in_training_only_and_without_gradient():
    task = make_task(memory=10, code_size=8)
    codes = torch.randn(3, 2, 8, generator=rng()).requires_grad_()
    task.eval().loss(codes, asked([0, 1, 2]))
    assert (task.memory.subjects == -1).all()
    task.train().loss(codes, asked([0, 1, 2])).backward()
    assert task.memory.subjects.tolist() == [0, 1, 2] + [-1] * 7 and not task.memory.codes.requires_grad
    assert torch.equal(task.memory.codes[:3], codes[:, 0].detach())
    contrastive = make_task(memory=10, code_size=8, loss="contrastive")
    contrastive.loss(codes, asked([0, 1, 2]))
    assert contrastive.memory.subjects.tolist() == [0, 1, 2] + [-1] * 7


def test_past_codes_are_negatives_and_loss_and_scores_agree_on_them():
    for how in NEGATIVES:
        task = make_task(memory=8, code_size=2, negatives=how)
        active, used = [], 0
        for step in range(12):
            codes = torch.randn(3, 2, 2, generator=rng(step))
            targets = asked([step % 2, 2, 3 + step % 3], [step, 5 * step + 1, 7 * step])
            loss = task.loss(codes, targets)
            scores = task.scores(codes, targets)
            positive, negative = task.triplets(codes, targets)
            assert np.isclose(loss.item(), hinge(positive, negative, 1.0).mean().item())
            assert np.isclose(scores["negative_distance"], negative.mean().item())
            within = distances(codes[:, 0], codes[:, 0])
            used += sum(not torch.isclose(n, row).any() for n, row in zip(negative, within))
            active.append(scores["active"])
            assert not set(task.memory.past(3)[1].tolist()) & {-2}
        assert used > 5, "negatives come from the past, too"


def test_memory_survives_a_checkpoint():
    task = make_task(memory=8)
    for step in range(3):
        inputs, targets = task.make(images(n=3), rng(step))
        task.loss(task(inputs), targets)
    file = io.BytesIO()
    torch.save(task.state_dict(), file)
    file.seek(0)
    again = make_task(memory=8)
    again.load_state_dict(torch.load(file, weights_only=True))
    inputs, targets = task.make(images(n=3), rng(9))
    for _ in range(2):
        losses = [t.loss(t(inputs), targets) for t in (task, again)]
        assert torch.equal(*losses) and torch.equal(task.memory.codes, again.memory.codes)
        assert torch.equal(task.memory.subjects, again.memory.subjects) and task.memory.next == again.memory.next


def test_a_memory_that_holds_the_batch_alone_is_refused():
    task = make_task(memory=3, code_size=4)
    with pytest.raises(InputError, match="several times"):
        task.loss(torch.randn(3, 2, 4), asked([0, 1, 2]))


# Pictures


@pytest.mark.parametrize("dims, channels", [(2, 1), (2, 3), (3, 2)])
def test_show(dims, channels):
    import matplotlib

    matplotlib.use("Agg")
    axes = make_task(dims, channels).show(images(n=3, dims=dims, channels=channels))
    assert [ax.get_title() for ax in axes[:6]] == ["image", "flip", "right angle", "any angle", "zoom", "grey values"]
    assert [ax.get_title() for ax in axes[6:9]] == ["anchor 1", "positive 1", "negative 1"]
    matplotlib.pyplot.close("all")
