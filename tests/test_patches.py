"""The patches that location, jigsaw and CPC cut images into."""

import math

import pytest
import torch

from ssl3d.errors import InputError
from ssl3d.tasks.patches import (
    cut,
    first_apart,
    grid_corners,
    overlapping_corners,
    overlapping_sides,
    patch_sides,
    standardise,
)

pytestmark = pytest.mark.quick


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
