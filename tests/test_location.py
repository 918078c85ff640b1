"""Location: where the query lies, and what its head cannot see."""

import math

import numpy as np
import pytest
import torch
from conftest import SMALL

from ssl3d.errors import InputError
from ssl3d.networks.encoders import make_encoder
from ssl3d.tasks.base import Batch
from ssl3d.tasks.jigsaw import Jigsaw
from ssl3d.tasks.location import Location, cell_of_class, describe_cell
from ssl3d.tasks.patches import (
    patch_sides,
)

pytestmark = pytest.mark.quick


def encoder(dims, channels=1):
    return make_encoder("unet", dims, channels, SMALL, seed=0)


def coordinates(space, n=1):
    """Images whose voxels say where they are."""
    return torch.arange(math.prod(space), dtype=torch.float64).reshape(1, 1, *space).expand(n, 1, *space)


def first_voxels(patches, space):
    """Where the patches (..., C, *patch) were cut."""
    corner = patches[(..., 0, *[0] * len(space))].long().numpy()
    return np.stack(np.unravel_index(corner, space), axis=-1)


@pytest.mark.parametrize("dims, space", [(2, (48, 57)), (3, (33, 39, 36))])
def test_the_query_lies_where_its_class_says(dims, space):
    task = Location(encoder(dims), samples_per_image=300)
    inputs, classes = task.make(Batch(coordinates(space), torch.tensor([0])), torch.Generator().manual_seed(0))
    centre, query = (first_voxels(inputs[:, i], space) for i in (0, 1))
    sides = patch_sides(space, 3, None, None, 1.0, least=1)
    cells = np.array([side[1] for side in sides])
    steps = np.rint((query - centre) / cells).astype(int)
    expected = np.stack(np.unravel_index(cell_of_class(classes, task.n_classes).numpy(), [3] * dims), axis=1) - 1
    assert np.array_equal(steps, expected) and len(classes.unique()) == task.n_classes
    patch = np.array([side[0] for side in sides])
    assert ((abs(query - centre) >= patch + cells // 5) | (steps == 0)).all(), "neighbours keep the gap"


@pytest.mark.parametrize("dims, n", [(2, 8), (3, 26)])
def test_classes_of_location(dims, n):
    task = Location(encoder(dims))
    cells = cell_of_class(torch.arange(n), n)
    assert task.n_classes == n and n // 2 not in cells and len(cells.unique()) == n
    offsets = np.stack(np.unravel_index(cells.numpy(), [3] * dims)) - 1
    assert np.array_equal(offsets, -offsets[:, ::-1]), "opposite cells' labels sum to n - 1"
    assert len({describe_cell(int(c), dims) for c in cells}) == n


def test_the_query_head_is_a_spectator():
    task = Location(encoder(3))
    images = Batch(torch.rand(4, 1, 30, 30, 30, generator=torch.Generator().manual_seed(0)), torch.arange(4))
    inputs, targets = task.make(images, torch.Generator().manual_seed(0))
    outputs = task(inputs)
    loss = task.loss(outputs, targets)
    assert loss == torch.nn.functional.cross_entropy(outputs[:, 0], targets), "it adds nothing to the number"
    swapped = task.scores(outputs.detach().flip(1), targets)
    assert task.scores(outputs.detach(), targets)["query_only"] == swapped["accuracy"], "and is scored by itself"
    outputs[:, 1].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in task.encoder.parameters()), "and hands nothing back"
    before = outputs[:, 1].detach()
    inputs[:, 0] = 0.5
    assert torch.equal(task(inputs)[:, 1], before), "it does not see the centre"


def test_grids_that_mean_nothing_are_refused():
    for options in ({"gap": -1}, {"jitter": 1.5}, {"extent": 0}, {"extent": 1.2}, {"even": "false"}):
        with pytest.raises(InputError, match=next(iter(options))):
            Location(encoder(3), **options)
        with pytest.raises(InputError, match=next(iter(options))):
            Jigsaw(encoder(3), n_permutations=10, **options)
