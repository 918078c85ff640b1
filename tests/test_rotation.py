"""Rotation: which turns there are, and what they do."""

import numpy as np
import pytest
import torch
from test_tasks import batch, make_task

from ssl3d.errors import InputError
from ssl3d.tasks.base import Batch
from ssl3d.tasks.rotation import describe, rotations, turn

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("dims, n", [(2, 4), (3, 24)])
def test_rotations_are_proper_and_all(dims, n):
    table = rotations(dims)
    assert len({m.tobytes() for m in table}) == len(table) == n
    assert all(round(np.linalg.det(m)) == 1 for m in table)


def test_the_ten_rotations_are_those_of_numpy():
    x = np.random.default_rng(0).random((4, 4, 4)).astype(np.float32)
    ours = [turn(torch.tensor(x), m).numpy() for m in rotations(3)[:10]]
    expected = [x] + [np.rot90(x, k, plane) for plane in ((1, 2), (2, 0), (0, 1)) for k in (1, 2, 3)]
    assert all(np.array_equal(a, b) for a, b in zip(ours, expected))
    angles = [describe(m).split("°")[0] for m in rotations(3)[:10]]
    assert (angles.count("no turn"), angles.count("90") + angles.count("270"), angles.count("180")) == (1, 6, 3)


def test_cube_group_by_angle():
    angles = [describe(m).split("°")[0] for m in rotations(3)]
    assert angles.count("no turn") == 1 and angles.count("180") == 9
    assert angles.count("90") + angles.count("270") == 6 and angles.count("120") + angles.count("240") == 8


def test_a_turned_voxel_goes_where_its_matrix_sends_it():
    for matrix in rotations(3):
        x = torch.zeros(5, 5, 5)
        x[4, 3, 1] = 1
        at = np.argwhere(turn(x, matrix).numpy())[0] - 2
        assert np.array_equal(at, matrix @ (np.array([4, 3, 1]) - 2))


def test_unequal_sides_are_refused():
    with pytest.raises(InputError, match="equal"):
        make_task("rotation", 3).make(torch.rand(1, 2, 16, 16, 8))
    with pytest.raises(InputError, match="10 or 24"):
        make_task("rotation", 3, n_rotations=12)


@pytest.mark.parametrize("dims, side", [(2, 5), (2, 33), (3, 5), (3, 33)])
def test_images_are_turned_as_their_class_says(dims, side):
    task = make_task("rotation", dims, n_rotations=24 if dims == 3 else 4, samples_per_image=2)
    images = torch.rand(12, 2, *[side] * dims, generator=torch.Generator().manual_seed(0)).transpose(2, 3)  # strided
    inputs, classes = task.make(Batch(images, torch.arange(12)), torch.Generator().manual_seed(1))
    assert len(classes.unique()) > (12 if dims == 3 else 3)
    for i, k in enumerate(classes):
        assert torch.equal(inputs[i], turn(images[i // 2], task.matrices[k]))


def test_twenty_four_rotations():
    task = make_task("rotation", 3, n_rotations=24)
    targets = torch.cat(
        [task.make(batch(3, n=50, size=2), torch.Generator().manual_seed(s)).targets for s in range(10)]
    )
    assert targets.unique().numel() == 24 and task.scores(torch.rand(4, 24), torch.arange(4))["chance"] == 1 / 24
