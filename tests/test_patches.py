"""Location and jigsaw, and the patches that they are cut into."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import SMALL

from ssl3d.errors import InputError
from ssl3d.networks.encoders import make_encoder
from ssl3d.tasks.base import Batch
from ssl3d.tasks.jigsaw import Jigsaw, assemble, hamming, mean_bound, permutation_set, shuffle, solve
from ssl3d.tasks.location import Location, cell_of_class, describe_cell
from ssl3d.tasks.patches import (
    cut,
    first_apart,
    grid_corners,
    overlapping_corners,
    overlapping_sides,
    patch_sides,
    standardise,
)


def encoder(dims, channels=1):
    return make_encoder("unet", dims, channels, SMALL, seed=0)


def coordinates(space, n=1):
    """Images whose voxels say where they are."""
    return torch.arange(math.prod(space), dtype=torch.float64).reshape(1, 1, *space).expand(n, 1, *space)


def first_voxels(patches, space):
    """Where the patches (..., C, *patch) were cut."""
    corner = patches[(..., 0, *[0] * len(space))].long().numpy()
    return np.stack(np.unravel_index(corner, space), axis=-1)


# Grids


@pytest.mark.parametrize("space", [(64, 51), (40, 45, 38)])
@pytest.mark.parametrize(
    "grid, gap, jitter, extent", [(3, 0, 3, 1.0), (3, 3, 0, 1.0), (2, 4, 2, 0.7), (3, None, None, 0.8)]
)
def test_patches_keep_their_gap_and_stay_inside(space, grid, gap, jitter, extent):
    sides = patch_sides(space, grid, gap, jitter, extent, least=1)
    corners = grid_corners(space, grid, sides, 300, torch.Generator().manual_seed(0))
    corners = corners.reshape(300, *[grid] * len(space), len(space))
    for axis, (patch, cell, moves) in enumerate(sides):
        begin, keeps = corners[..., axis], cell - patch - moves
        apart = begin.diff(dim=1 + axis) - patch
        assert begin.min() >= 0 and begin.max() + patch <= space[axis]
        assert apart.min() >= keeps and apart.max() <= keeps + 2 * moves
        assert begin.min() == 0 and begin.max() + patch >= space[axis] - keeps, "the whole image is seen"
        assert gap is None or keeps == gap


def test_the_papers_patches():
    assert patch_sides((128, 128, 128), 3, 0, 3, 1.0, least=1) == [(39, 42, 3)] * 3
    corners = grid_corners((128,) * 3, 3, [(39, 42, 3)] * 3, 500, torch.Generator().manual_seed(0))
    assert corners.max() + 39 == 128, "the last plane counts"


@pytest.mark.parametrize("overlap", [0, 0.2, 1 / 3, 0.5, 2 / 3, 0.75])
@pytest.mark.parametrize("space", [(60, 49), (40, 33, 37)])
def test_overlapping_patches(space, overlap):
    for grid in (2, 3, 4):
        sides = overlapping_sides(space, grid, overlap, least=1)
        corners = overlapping_corners(space, grid, sides, 50, torch.Generator().manual_seed(0))
        corners = corners.reshape(50, *[grid] * len(space), len(space))
        for axis, (patch, step) in enumerate(sides):
            begin = corners[..., axis]
            assert begin.min() >= 0 and begin.max() + patch <= space[axis]
            assert (begin.diff(dim=1 + axis) == step).all() and first_apart(overlap) * step >= patch
            larger = patch + 1
            assert (grid - 1) * math.ceil(round(larger * (1 - overlap), 6)) + larger > space[axis], "as large as can be"


def test_cut_copies_what_it_says():
    images = torch.rand(2, 3, 9, 8, 7, generator=torch.Generator().manual_seed(0))
    corners = torch.tensor([[[0, 0, 0], [5, 4, 3]], [[1, 2, 3], [4, 0, 2]]])
    out = cut(images, torch.tensor([1, 0]), corners, (4, 4, 4))
    assert torch.equal(out[0, 1], images[1, :, 5:9, 4:8, 3:7]) and torch.equal(out[1, 0], images[0, :, 1:5, 2:6, 3:7])


def test_a_larger_image_has_no_smaller_patches():
    for grid in (2, 3, 4):
        sides = [patch_sides((side,), grid, None, None, 1.0, least=-9)[0][0] for side in range(8 * grid, 700)]
        assert sides == sorted(sides)


def test_impossible_grids_say_so():
    for gap, extent in ((5000, 1.0), (0, 0.01)):
        with pytest.raises(InputError, match="at least|no image is large enough"):
            patch_sides((64, 64), 3, gap, 0, extent, least=30)
    with pytest.raises(InputError, match="leave images"):
        cut(torch.zeros(1, 1, 4, 4), torch.tensor([0]), torch.tensor([[[2, 2]]]), (3, 3))


def test_standardise_takes_brightness_and_contrast_away():
    x = torch.rand(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(standardise(x * 0.4 + 0.3), standardise(x), atol=1e-4)
    assert torch.isfinite(standardise(torch.zeros(1, 1, 4, 4))).all()
    assert standardise(x.half()).dtype == torch.float32


# Location


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


# Jigsaw


@pytest.mark.parametrize(
    "n_tiles, n, least",
    [(27, 27, 27), (27, 100, 26), (27, 702, 26), (27, 703, 24), (27, 1000, 24), (27, 2106, 24), (9, 9, 9), (9, 72, 8)]
    + [(9, 504, 7), (9, 1000, 6), (9, 1512, 6), (8, 8, 8), (8, 56, 7), (8, 336, 6), (4, 4, 4), (4, 12, 3), (4, 24, 2)],
)
@pytest.mark.parametrize("seed", [0, 5])
def test_permutations_from_groups(n_tiles, n, least, seed):
    found = permutation_set(n_tiles, n, seed)
    assert found.shape == (n, n_tiles) and (np.sort(found) == np.arange(n_tiles)).all()
    mean, minimum = hamming(found)
    assert minimum >= least and abs(mean - mean_bound(n_tiles, n)) < 1e-3
    assert np.array_equal(found, permutation_set(n_tiles, n, seed))


@pytest.mark.parametrize("n_tiles, n, least", [(8, 1000, 4), (9, 2000, 4), (16, 300, 12), (27, 2500, 22), (6, 720, 2)])
def test_greedy_permutations_are_better_than_random(n_tiles, n, least):
    found = permutation_set(n_tiles, n)
    assert len(np.unique(found, axis=0)) == n and hamming(found)[1] >= least
    for seed in range(3):
        blind = np.random.default_rng(100 + seed).permuted(np.tile(np.arange(n_tiles), (n, 1)), axis=1)
        assert hamming(found)[1] > hamming(blind)[1]


def test_hamming_by_counting():
    some = np.random.default_rng(0).permuted(np.tile(np.arange(5), (40, 1)), axis=1)
    apart = [(a != b).sum() for a, b in itertools.combinations(some, 2)]
    assert hamming(some) == (pytest.approx(np.mean(apart)), min(apart))


def test_more_permutations_than_exist_are_refused():
    with pytest.raises(InputError, match="only 24"):
        permutation_set(4, 25)
    with pytest.raises(InputError, match="only 24"):
        Jigsaw(encoder(2), grid=2)
    with pytest.raises(InputError, match="n_permutations"):
        permutation_set(27, 1)


@pytest.mark.parametrize("dims, grid", [(2, 2), (2, 3), (3, 2), (3, 3)])
def test_a_puzzle_can_be_solved(dims, grid):
    space = (40, 37, 39)[:dims]
    task = Jigsaw(encoder(dims), grid=grid, n_permutations=20, samples_per_image=20)
    inputs, classes = task.make(Batch(coordinates(space), torch.tensor([0])), torch.Generator().manual_seed(1))
    cells = [space[axis] // grid for axis in range(dims)]
    for tiles, number in zip(inputs, classes):
        order = task.permutations[number]
        solved = solve(tiles, order)
        assert torch.equal(shuffle(solved, order), tiles)
        starts = first_voxels(solved, space)
        cell = [np.minimum(starts[:, axis] // cells[axis], grid - 1) for axis in range(dims)]
        assert np.array_equal(np.ravel_multi_index(cell, [grid] * dims), np.arange(grid**dims))
    assert len(classes.unique()) > 8


def test_assemble_puts_tiles_in_their_places():
    tiles = torch.arange(8.0).reshape(8, 1, 1, 1, 1).expand(8, 1, 2, 2, 2)
    whole = assemble(tiles, 2, border=0)
    assert whole.shape == (1, 4, 4, 4) and whole[0, 0, 0, 3] == 1 and whole[0, 0, 3, 0] == 2 and whole[0, 3, 0, 0] == 4
