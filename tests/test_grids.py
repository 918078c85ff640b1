"""Masks on grids of other sizes: nothing moves, nothing grows or shrinks, and no class is invented."""

import numpy as np
import pytest
import torch
from conftest import write_nifti
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter
from test_scans import read_scan_like

from ssl3d.data.prepare import prepare
from ssl3d.data.scans import most_probable, resize
from ssl3d.errors import InputError
from ssl3d.grids import Contest, resize_labels
from ssl3d.networks.encoders import as_encoder
from ssl3d.training.probes import _maps

RATIOS = [(64, 16), (48, 24), (60, 30), (48, 36), (45, 30), (40, 17), (24, 60)]


def ball(side, radius, offset=(0.0, 0.0, 0.0)):
    """A ball about the middle of a volume, or beside it."""
    places = np.indices((side,) * 3) - (side - 1) / 2
    return (sum((x - o) ** 2 for x, o in zip(places, offset)) <= radius**2).astype(np.uint8)


def middle(mask):
    """The middle of a structure, as a share of the side of its grid."""
    return (np.argwhere(mask).mean(axis=0) + 0.5) / mask.shape


@pytest.mark.parametrize(("old", "new"), RATIOS)
def test_masks_do_not_move(old, new):
    for offset in ((0, 0, 0), (0.3, -0.2, 0.45), (1.4, 0.5, -0.7)):
        mask = ball(old, 0.3 * old, offset)
        small = resize_labels(mask, (new,) * 3)
        assert np.abs(middle(small) - middle(mask)).max() * new < 0.06, "a voxel of the new grid is 1"


@pytest.mark.parametrize("radius", [4, 6, 10])
@pytest.mark.parametrize("offset", [(0, 0, 0), (0.3, 0.1, 0.45), (0.5, 0.5, 0.5)])
def test_balls_keep_their_volume_there_and_back(radius, offset):
    """Ties given to one class by its number shrink such balls by up to 16 %, or make them larger."""
    mask = ball(48, radius, offset)
    small = resize_labels(mask, (24,) * 3)
    assert abs(8 * small.sum() / mask.sum() - 1) < 0.02
    maps = torch.from_numpy(np.stack([1 - small, small])).float()
    again = most_probable(maps, mask.shape)
    assert abs(again.sum() / mask.sum() - 1) < 0.02
    assert 2 * (again & mask).sum() / (again.sum() + mask.sum()) > (0.79, 0.86, 0.91)[(4, 6, 10).index(radius)]


@pytest.mark.parametrize("swap", [False, True])
def test_the_number_of_a_class_decides_nothing(swap):
    mask = ball(48, 9.3, (0.2, 0.1, 0.4))
    codes = np.array([7, 3] if swap else [3, 7], np.uint8)
    small = resize_labels(codes[mask], (24,) * 3)
    assert np.array_equal(small == codes[1], resize_labels(mask, (24,) * 3) == 1)


def test_a_sheet_of_one_voxel_neither_vanishes_nor_doubles():
    for at in (20, 21):
        sheet = np.zeros((48,) * 3, np.uint8)
        sheet[4:44, 4:44, at] = 1
        small = resize_labels(sheet, (24,) * 3)
        assert abs(8 * small.sum() / sheet.sum() - 1) < 0.01 and small[..., 10].sum() == small.sum()
        quarter = small[2:12, 2:12, 10].sum() / small[..., 10].sum()
        assert 0.2 < quarter < 0.3, "what is left of it is spread evenly"


def test_many_classes_keep_their_volumes_together():
    rng = np.random.default_rng(0)
    seeds = rng.uniform(0, 48, (30, 3))
    places = np.moveaxis(np.indices((48,) * 3), 0, -1)
    mask = np.argmin([((places - seed) ** 2).sum(axis=-1) for seed in seeds], axis=0).astype(np.uint8)
    small = resize_labels(mask, (20, 22, 24))
    counts, kept = (np.bincount(m.ravel(), minlength=30) / m.size for m in (mask, small))
    assert np.abs(kept / counts - 1).max() < 0.02


@pytest.mark.parametrize("shape", [(9, 11), (12, 9, 7)])
def test_no_class_is_invented_and_the_same_grid_changes_nothing(shape):
    mask = np.random.default_rng(1).choice([0, 4, 255], shape).astype(np.uint8)
    assert np.array_equal(resize_labels(mask, shape), mask)
    for size in (5, 8, 13):
        assert set(np.unique(resize_labels(mask, (size,) * len(shape)))) <= {0, 4, 255}
    assert (resize_labels(np.full(shape, 6), (5,) * len(shape)) == 6).all()


def test_a_mask_without_background_has_none_afterwards():
    mask = 1 + ball(32, 8)
    assert set(np.unique(resize_labels(mask, (12,) * 3))) == {1, 2}


def test_the_mask_of_a_scan_lies_where_its_image_lies():
    mask = ball(64, 12, (0.2, 0.1, -0.3))
    scan = MetaTensor(torch.from_numpy(mask)[None].float(), affine=np.diag([2.0, 2, 2, 1]))
    image, small = resize(scan, (32,) * 3), resize(scan, (32,) * 3, mask=True)
    assert torch.allclose(image.affine, small.affine)
    weights = image[0].numpy()
    bright = (np.indices(weights.shape) * weights).sum(axis=(1, 2, 3)) / weights.sum()
    assert np.abs(bright - np.argwhere(small[0].numpy()).mean(axis=0)).max() < 0.06
    assert resize(read_scan_like(torch.ones(1, 6, 9)), (4, 4), mask=True).shape == (1, 4, 4)


def test_noise_of_a_prediction_does_not_come_back_where_the_scan_is_coarser():
    noise = (torch.rand(40, 40, 40, generator=torch.Generator().manual_seed(0)) < 0.15).float()
    assert not most_probable(torch.stack([1 - noise, noise]), (12, 12, 12)).any()


@pytest.mark.parametrize("radius", [6, 8, 12])
def test_soft_probabilities_keep_their_volume_in_a_scan_of_thick_slices(radius):
    """Counted after the blur along the slices, a ball of 6 mm lost a quarter of its volume."""
    places = (np.indices((64,) * 3) + 0.5) * np.array([1.5, 1.5, 1.25])[:, None, None, None]
    cube = ((places - np.array([47.3, 49.1, 38.4])[:, None, None, None]) ** 2).sum(axis=0) <= radius**2
    soft = torch.from_numpy(np.float32([gaussian_filter(np.float32(cube == k), 1) for k in (0, 1)]))
    seen = soft.argmax(dim=0).float().mean()
    written = most_probable(soft, (96, 96, 10))
    assert abs(written.mean() / seen - 1) < 0.01


@pytest.mark.parametrize(("value", "told"), [(300, "300"), (256, "256"), (-1, "-1"), (0.6, "0.6"), (np.nan, "nan")])
def test_what_is_no_code_is_refused(value, told):
    mask = np.zeros((4, 4, 4), np.int16 if isinstance(value, int) else np.float32)
    mask[1, 2, 3] = value
    with pytest.raises(InputError, match=f"{told}.*0 to 255"):
        resize_labels(mask, (2, 2, 2))


@pytest.mark.parametrize(("shape", "size"), [
    ((4, 4), (2, 0)), ((4, 4), (2, -1)), ((4, 4), (2, 2, 2)), ((4, 4), (2.0, 2)), ((4, 4), 2), ((4,), (2,)),
    ((1, 4, 4, 4), (1, 2, 2, 2)), ((0, 4), (2, 2))])
def test_a_grid_that_cannot_be_is_refused(shape, size):
    with pytest.raises(InputError, match="Give"):
        resize_labels(np.zeros(shape, np.uint8), size)


def test_truth_values_and_whole_floats_are_codes():
    disc = ball(12, 4)[6]
    for same in (disc.astype(bool), disc.astype(np.float32), disc.astype(np.int64)):
        assert np.array_equal(resize_labels(same, (6, 6)), resize_labels(disc, (6, 6)))


def test_what_is_not_in_doubt_does_not_change_sides():
    contest = Contest((100,))
    contest.enter(0, np.full(100, 0.97, np.float32))
    contest.enter(1, np.full(100, 0.03, np.float32))
    assert not contest.labels(np.array([20, 80])).any()


def test_a_probe_of_voxels_reads_masks_that_lie_where_the_maps_lie(tmp_path):
    """The maps of many networks are coarser than the image, by a factor of two at least."""
    mask = ball(24, 6, (0.2, 0.4, -0.1))
    for name in "abcd":
        noise = np.random.default_rng(ord(name)).random(mask.shape)
        write_nifti(tmp_path / f"{name}.nii.gz", (mask + noise).astype(np.float32))
        write_nifti(tmp_path / f"{name}_seg.nii.gz", mask)
    store = prepare(tmp_path, tmp_path.parent / "probed", size=24, masks="{id}_seg.nii.gz", images="{id}.nii.gz",
                    progress=False)
    encoder = as_encoder(torch.nn.Conv3d(1, 4, 2, 2), torch.zeros(1, 1, 24, 24, 24))
    maps, coarse = next(_maps(encoder, store, "a"))
    assert maps[0].shape[2:] == coarse.shape[1:] == (12, 12, 12)
    assert np.abs(middle(coarse[0].numpy()) - middle(mask)).max() * 12 < 0.12, "half a voxel of the image would be 0.25"
