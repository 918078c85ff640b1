"""Jigsaw: sets of permutations, and puzzles that can be solved."""

import itertools

import numpy as np
import pytest
import torch
from test_location import coordinates, encoder, first_voxels

from ssl3d.errors import InputError
from ssl3d.tasks.base import Batch
from ssl3d.tasks.jigsaw import Jigsaw, assemble, hamming, mean_bound, permutation_set, shuffle, solve

pytestmark = pytest.mark.quick


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
