"""Facts of augmentation: image and mask together, the same seed the same bytes, sides, ranges, and trainings."""

from dataclasses import fields, replace
from functools import partial

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import SMALL
from PIL import Image
from scipy.ndimage import affine_transform, gaussian_filter

from ssl3d.data.prepare import prepare
from ssl3d.data.store import Store
from ssl3d.downstream import finetune as finetune_module
from ssl3d.downstream.finetune import filled, finetune
from ssl3d.downstream.goals import make_goal
from ssl3d.errors import InputError
from ssl3d.evidence.experiments import Experiment, check_experiment
from ssl3d.settings import Finetuning, Pretraining
from ssl3d.tasks.augment import (
    AUGMENTATIONS,
    BENDS,
    FULL,
    LIGHT,
    Augmentation,
    Chance,
    affine_matrix,
    are_photographs,
    augment,
    bias_field,
    blur,
    colour,
    elastic_field,
    gamma,
    low_resolution,
    noise,
    of_images,
    of_step,
    warp,
)
from ssl3d.tasks.base import Batch
from ssl3d.training import pretrain as pretrain_module
from ssl3d.training.pretrain import pretrain
from ssl3d.training.runs import read_log

ELASTIC = replace(FULL, elastic=Chance(0.5, 0.0, 0.4))
ALWAYS = Augmentation(**{f.name: getattr(ELASTIC, f.name)._replace(rate=1.0) for f in fields(ELASTIC)})
SPATIAL = Augmentation(**{name: getattr(ALWAYS, name) for name in ("rotation", "scale", "shear", "shift", "elastic")})
GREY = replace(ALWAYS, **{f.name: Chance() for f in fields(SPATIAL) if getattr(SPATIAL, f.name).rate})
SPACES = [(18, 18), (14, 20), (16, 16, 16), (12, 16, 14)]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def noises(n, channels, space, seed=0):
    return torch.rand(n, channels, *space, generator=rng(seed))


def smooth(n, space, seed=0):
    """Images that change slowly from voxel to voxel."""
    drawn = np.random.default_rng(seed).random((n, 1, *space))
    image = torch.tensor(np.stack([gaussian_filter(one, (0, *[2] * len(space))) for one in drawn])).float()
    return (image - image.amin()) / (image.amax() - image.amin())


def column(*values):
    return torch.tensor(values)[:, None]


@pytest.mark.quick
@pytest.mark.parametrize("space", SPACES)
def test_image_and_mask_stay_together_to_the_voxel(space):
    """The mask is the image's own grey values: what it says of a voxel is what the image has there."""
    image = smooth(8, space)
    codes = (255 * image).round().long()
    step = max(image.diff(dim=axis).abs().max().item() for axis in range(2, image.ndim))
    for seed in range(3):
        moved, mask = augment(image, codes, SPATIAL, rng(seed), mirror=range(len(space)))
        inside = augment(torch.ones_like(image), None, SPATIAL, rng(seed), mirror=range(len(space)))[0] == 1
        assert inside.float().mean() > 0.3
        apart = (moved - mask / 255).abs()[inside]
        assert apart.max() < step * len(space) / 2 + 1 / 255, "nearest and linear differ by half a voxel on each axis"
        assert apart.mean() < step * len(space) / 8, "and most by far less"


@pytest.mark.quick
@pytest.mark.parametrize("space", SPACES)
def test_the_mask_of_a_threshold_is_the_threshold_of_the_moved_image(space):
    image = smooth(24, space)
    moved, mask = augment(image, (image > 0.5).long(), SPATIAL, rng(), mirror=range(len(space)))
    step = max(image.diff(dim=axis).abs().max().item() for axis in range(2, image.ndim)) * len(space) / 2
    sure = (moved - 0.5).abs() > step
    inside = augment(torch.ones_like(image), None, SPATIAL, rng(), mirror=range(len(space)))[0] == 1
    assert torch.equal((moved > 0.5)[sure & inside], (mask > 0)[sure & inside])
    both = [part & inside for part in (moved > 0.5, mask > 0)]
    assert 2 * (both[0] & both[1]).sum() / (both[0].sum() + both[1].sum()) > 0.92
    middles = [torch.stack([place.float().mean() for place in torch.where(part)[2:]]) for part in both]
    assert (middles[0] - middles[1]).abs().max() < 0.15, "of a voxel: none is half a voxel off"


@pytest.mark.quick
def test_a_warp_is_the_one_of_scipy_in_its_own_direction():
    """For unequal sides, with every part of the matrix and a shift that is no whole number."""
    for space, angles, shear in (((13, 17, 15), (10, -20, 30), (0.1, 0.05, -0.1)), ((15, 19), (25,), (0.1,))):
        image, dims = noises(1, 1, space), len(space)
        matrix, shift = affine_matrix(angles, 1.2, shear, dims), np.array([1.5, -2.25, 0.5])[:dims]
        moved, _ = warp(image, None, [matrix], shift[None])
        back, middle = np.linalg.inv(matrix), (np.array(space) - 1) / 2
        expected = affine_transform(image[0, 0].numpy(), back, middle - back @ (middle + shift), order=1)
        inside = warp(torch.ones_like(image), None, [matrix], shift[None])[0][0, 0] > 1 - 1e-6
        assert inside.float().mean() > 0.4
        assert np.allclose(moved[0, 0][inside], expected[inside], atol=1e-4)


@pytest.mark.quick
def test_a_shift_by_whole_voxels_moves_and_changes_nothing():
    image = noises(1, 2, (8, 9, 10))
    moved, mask = warp(image, (9 * image[:, :1]).long(), [np.eye(3)], np.array([[2, -1, 0]]))
    assert torch.allclose(moved[:, :, 2:, :-1], image[:, :, :-2, 1:], atol=1e-5) and (moved[:, :, :2] == 0).all()
    assert torch.equal(mask[:, :, 2:, :-1], (9 * image[:, :1]).long()[:, :, :-2, 1:])


@pytest.mark.quick
@pytest.mark.parametrize("how", [LIGHT, FULL], ids=["light", "full"])
def test_a_ball_stays_a_ball_where_voxels_are_no_cubes(how):
    """In voxels of 1 x 1 x 5 mm, rotated as far as a set goes, about all axes; without the spacing it is stretched."""
    thick, high = (1.0, 1.0, 5.0), how.rotation.high
    places = np.stack(np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip((96, 96, 19), thick)],
                                  indexing="ij"))
    ball = torch.tensor((16.5 - np.sqrt((places**2).sum(axis=0))).clip(0, 1)).float().expand(2, 1, 96, 96, 19)
    always = Augmentation(rotation=Chance(1.0, high, high))

    def lengths(moved):  # in mm, along the axes of each body: the shortest first
        bodies = [np.cov(places.reshape(3, -1), aweights=each.double().numpy().ravel()) for each in moved]
        return np.sqrt([np.linalg.eigvalsh(body) for body in bodies])

    round_, mask = augment(ball, (ball > 0.5).long(), always, rng(), spacing=thick)
    assert np.allclose(lengths(round_) / lengths(ball), 1, atol=0.06)
    assert np.allclose(lengths(mask) / lengths((ball > 0.5).long()), 1, atol=0.06)
    stretched, _ = augment(ball, None, always, rng())
    assert (lengths(stretched)[:, -1] / lengths(ball)[:, -1] > 1.5).all()


@pytest.mark.quick
@pytest.mark.parametrize("space", SPACES)
def test_cubes_have_the_same_bytes_whatever_their_size(space):
    image, mask = noises(4, 1, space), torch.randint(3, (4, 1, *space), generator=rng())
    plain = augment(image, mask, ALWAYS, rng())
    for mm in (1.0, 0.7):
        cubes = augment(image, mask, ALWAYS, rng(), spacing=(mm,) * len(space))
        assert all(torch.equal(a, b) for a, b in zip(plain, cubes))
        step = of_step("full", 3, spacing=[mm] * len(space))
        assert torch.equal(step(image, mask, 5)[0], of_step("full", 3)(image, mask, 5)[0])
    longer = augment(image, mask, ALWAYS, rng(), spacing=(*[1.0] * (len(space) - 1), 5.0))
    assert not torch.equal(plain[0], longer[0])


@pytest.mark.quick
def test_shift_and_elastic_are_shares_of_the_side_whatever_the_voxels_are():
    image = smooth(3, (12, 16, 8))
    how = Augmentation(shift=Chance(1.0, -0.1, 0.1), elastic=Chance(1.0, 0.0, 0.4))
    assert torch.equal(augment(image, None, how, rng())[0], augment(image, None, how, rng(), spacing=(1, 1, 5))[0])


@pytest.mark.quick
@pytest.mark.parametrize("dims", [2, 3])
def test_the_strongest_bend_folds_nowhere(dims):
    space = (33,) * dims
    pulls = 0.4 * torch.sign(2 * torch.rand(20, dims, *[BENDS] * dims, generator=rng()) - 1)
    bend = elastic_field(pulls, space).double()
    slopes = torch.stack([torch.stack(torch.gradient(bend[:, i], dim=tuple(range(1, dims + 1))), -1)
                          for i in range(dims)], -2)
    assert torch.linalg.det(torch.eye(dims) + slopes).min() > 0
    assert bend.abs().max() > 1, "voxels"


@pytest.mark.quick
def test_a_bend_moves_what_it_says():
    """A field of one value everywhere is a shift: places are asked that far on."""
    image, bend = noises(1, 1, (8, 9, 10)), torch.zeros(1, 3, 8, 9, 10)
    bend[:, 1] = 2
    assert torch.allclose(warp(image, None, [np.eye(3)], None, bend)[0][:, :, :, :-2], image[:, :, :, 2:], atol=1e-5)


@pytest.mark.quick
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("how", [LIGHT, FULL, ALWAYS], ids=["light", "full", "always"])
def test_a_seed_gives_the_same_bytes_whatever_else_is_random(space, how):
    image, mask = noises(6, 3, space), torch.randint(5, (6, 1, *space), generator=rng())
    before = image.clone(), mask.clone()
    changes = []
    for seed in (3, 3, 4):
        torch.rand(seed)  # the global generator is not asked
        changes.append(augment(image, mask, how, rng(seed), mirror=(0,), photographs=len(space) == 2))
    assert all(torch.equal(a, b) for a, b in zip(*changes[:2])) and not torch.equal(changes[0][0], changes[2][0])
    assert torch.equal(image, before[0]) and torch.equal(mask, before[1]), "the batch stays as it is"
    for changed, classes in changes:
        assert changed.isfinite().all() and changed.min() >= 0 and changed.max() <= 1
        assert classes.dtype == mask.dtype and set(classes.unique().tolist()) <= set(mask.unique().tolist())
        assert changed.shape == image.shape and changed.dtype == image.dtype


@pytest.mark.quick
def test_a_mask_changes_nothing_of_its_image_and_autocast_nothing_at_all():
    image = noises(4, 2, (12, 12, 12))
    alone = augment(image, None, ALWAYS, rng())[0]
    assert torch.equal(alone, augment(image, (image[:, :1] > 0.5).long(), ALWAYS, rng())[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(alone, augment(image, None, ALWAYS, rng())[0])
    half = augment(image.half(), None, ALWAYS, rng())[0]
    assert half.dtype == torch.float16 and torch.allclose(half.float(), alone, atol=0.01)


@pytest.mark.quick
@pytest.mark.parametrize("axis", range(3))
def test_sides_are_swapped_only_where_it_is_asked_for(axis):
    """Each image is brighter in its first half; a class is there, too."""
    image = torch.zeros(40, 1, 12, 12, 12)
    image.movedim(axis + 2, 0)[:5] = 1
    mask = image.long()

    def swapped(mirror, how=AUGMENTATIONS["full"]):
        found = []
        for one in augment(image, mask, how, rng(), mirror=mirror):
            first, last = one.float().movedim(axis + 2, 0).chunk(2)
            found.append(last.sum(dim=(0, 2, 3, 4)) > first.sum(dim=(0, 2, 3, 4)))
        assert torch.equal(*found), "image and mask alike"
        return found[0].float().mean().item()
    others = tuple({0, 1, 2} - {axis})
    assert swapped(()) == swapped(others) == swapped((), ALWAYS) == 0
    assert 0.3 < swapped((axis,)) < 0.7
    exact, _ = augment(image, mask, Augmentation(), rng(), mirror=(axis,))
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(axis + 1)) for a, b in zip(exact, image))


@pytest.mark.quick
@pytest.mark.parametrize("space", SPACES)
def test_what_is_outside_stays_black(space):
    image = noises(6, 3, space)
    image[(slice(None), slice(None), slice(0, 6))] = 0
    sharp = replace(GREY, low_resolution=Chance(), blur=Chance())  # those two carry light over an edge
    changed, _ = augment(image, None, sharp, rng(), photographs=False)
    assert (changed[image == 0] == 0).all() and not torch.equal(changed, image)
    assert (changed[image > 0] > 0).float().mean() > 0.7


@pytest.mark.quick
def test_each_image_draws_for_itself_and_not_for_the_next():
    """An image that something happens to leaves the numbers of the others as they are."""
    image, how = noises(4, 1, (12, 12)), replace(Augmentation(), gamma=Chance(0.5, 0.7, 1.5))
    some, _ = augment(image, None, how, rng(2))
    every, _ = augment(image, None, replace(how, gamma=Chance(1.0, 0.7, 1.5)), rng(2))
    changed = [not torch.equal(a, b) for a, b in zip(some, image)]
    assert True in changed and False in changed
    for i, was in enumerate(changed):
        assert torch.equal(some[i], (every if was else image)[i])
    powers = [(every[i].log() / image[i].log()).median().item() for i in range(4)]
    assert len({round(power, 3) for power in powers}) == 4 and 0.7 < min(powers) < max(powers) < 1.5


@pytest.mark.quick
def test_rates_and_strengths_are_kept():
    image = 0.5 * noises(1, 1, (6, 6)).expand(4000, 1, 6, 6)
    moved, _ = augment(image, None, replace(Augmentation(), brightness=FULL.brightness), rng())
    factors = (moved / image).mean(dim=(1, 2, 3))
    drawn = factors[(factors - 1).abs() > 1e-6]
    assert abs(len(drawn) / 4000 - 0.15) < 0.02 and 0.74 < drawn.min() < 0.77 and 1.2 < drawn.max() < 1.26
    assert abs(drawn.log().mean()) < 0.04, "as often darker as brighter"


@pytest.mark.quick
def test_modalities_differ_and_colours_of_a_photograph_do_not():
    image, how = noises(3, 3, (8, 8)) * 0.5, replace(Augmentation(), brightness=Chance(1.0, 0.75, 1.25))
    apart, _ = augment(image, None, how, rng())
    together, _ = augment(image, None, how, rng(), photographs=True)
    factors = [(one / image).mean(dim=(2, 3)) for one in (apart, together)]
    assert factors[0].std(dim=1).min() > 0.01 and factors[1].std(dim=1).max() < 1e-5
    tinted = replace(Augmentation(), colour=FULL.colour._replace(rate=1.0))
    assert torch.equal(augment(image, None, tinted, rng())[0], image), "three modalities are no colours"
    assert not torch.equal(augment(image, None, tinted, rng(), photographs=True)[0], image)


@pytest.mark.quick
def test_grey_values_are_what_their_names_say():
    image = noises(2, 1, (16, 16, 16))
    assert torch.allclose(gamma(image, column(2.0, 0.5))[0], image[0] ** 2)
    assert torch.allclose(1 - gamma(image, column(2.0, 0.5), inverted=True)[1], (1 - image[1]) ** 0.5)
    field = bias_field(torch.ones(2, 2, 16, 16), column(0.1, 0.3), 2 * torch.rand(2, 1, 4, 4, generator=rng()) - 1)
    assert torch.allclose(field.log().abs().amax(dim=(1, 2, 3)), torch.tensor([0.1, 0.3]), atol=1e-5)
    assert torch.equal(field[:, 0], field[:, 1]) and field.log().diff(dim=2).abs().max() < 0.1, "slow, for all channels"
    loud = noise(image, column(0.1, 0.0), rng(7))
    assert torch.equal(loud[1], image[1]) and abs(loud[0].var() / image[0].var() - 1.1) < 0.03
    grey = colour(torch.rand(1, 3, 8, 8, generator=rng()), torch.tensor([[1.0, 1.0, 1.0, 0.0]]))
    assert torch.allclose(grey[:, 0], grey[:, 2], atol=1e-6), "without any colour"


@pytest.mark.quick
def test_blur_is_scipys_and_low_resolution_keeps_every_other():
    image = noises(2, 1, (16, 20, 18))
    blurred = blur(image, column(0.6, 1.0))
    for one, before, sigma in zip(blurred, image, (0.6, 1.0)):
        inner = (slice(5, -5),) * 3
        expected = gaussian_filter(before[0].numpy(), sigma, truncate=4)
        assert np.allclose(one[0][inner], expected[inner], atol=2e-3)
    coarse = low_resolution(image, column(0.5, 1.0))
    assert torch.equal(coarse[1], image[1])
    assert coarse[0].diff(dim=1).std() < 0.75 * image[0].diff(dim=1).std()


@pytest.mark.quick
@pytest.mark.parametrize(
    "wrong, said",
    [
        (lambda: augment(noises(2, 1, (8, 8)), torch.zeros(2, 8, 8).long(), FULL, rng()), "masks are of shape"),
        (lambda: augment(noises(2, 1, (8, 8)), None, FULL, rng(), mirror=(2,)), "axes 0 .up and down. and 1"),
        (lambda: augment(noises(2, 1, (8, 8, 8)), None, FULL, rng(), mirror=(-1,)), "--mirror 0"),
        (lambda: Augmentation(gamma=Chance(1.5, 0.7, 1.5)), "gamma .* a rate from 0 to 1"),
        (lambda: Augmentation(blur=Chance(0.5, 1.0, 0.5)), "the smaller one first"),
        (lambda: Augmentation(elastic=Chance(0.5, 0.0, 0.5)), "up to 0.4"),
        (lambda: Augmentation(blur=Chance(0.5, 0.0, 0.5)), "above 0"),
        (lambda: Augmentation(noise=Chance(0.5, -0.1, 0.5)), "noise is"),
        (lambda: Augmentation(noise=(1, 0, 1)), "noise is .1, 0, 1.: give Chance"),
        (lambda: Augmentation(noise=Chance(0.5, 0.0, float("inf"))), "finite"),
        (lambda: Augmentation(noise=Chance("0.5", 0.0, 0.5)), "noise is"),
        (lambda: augment(noises(2, 1, (8, 8)), None, "heavy", rng()), "'heavy', and has to be one of none"),
        (lambda: augment(noises(2, 1, (8, 8)), None, 5, rng()), "has to be one of none, light, full"),
        (lambda: of_step("heavy", 0), "has to be one of none, light, full"),
        (lambda: augment(noises(2, 1, (8, 8)), None, FULL, 5), "generator is 5"),
        (lambda: augment(noises(2, 1, (8, 8)), None, FULL, rng(), mirror=0), "mirror is 0.*mirror=.0,."),
        (lambda: augment(noises(2, 1, (8, 8)), None, FULL, rng(), mirror=None), "mirror is None"),
        (lambda: augment(noises(2, 1, (8, 8))[0], None, FULL, rng()), "image.None. a batch of one image"),
        (lambda: augment(noises(2, 1, (8, 8)).numpy(), None, FULL, rng()), "images are a .*ndarray"),
        (lambda: augment(noises(2, 1, (8, 8))[:0], None, FULL, rng()), "nothing in them"),
        (lambda: augment(noises(2, 1, (8, 8)), np.zeros((2, 8, 8)), FULL, rng()), "masks are"),
        (lambda: augment(noises(2, 1, (8, 8)), np.zeros((2, 1, 8, 8)), FULL, rng()), "masks are"),
        (lambda: augment(noises(2, 1, (8, 8)), None, FULL, rng(), photographs=True), "Leave photographs=True out"),
        (lambda: augment(noises(2, 3, (8, 8, 8)), None, FULL, rng(), photographs=True), "Leave photographs=True out"),
        (lambda: augment((255 * noises(2, 1, (8, 8))).byte(), None, FULL, rng()), "float.. / 255"),
        (lambda: augment(255 * noises(2, 1, (8, 8)), None, FULL, rng()), "divide them by 255"),
        (lambda: augment(noises(2, 1, (8, 8)) - 0.5, None, FULL, rng()), "numbers from 0 to 1"),
        (lambda: augment(noises(2, 1, (8, 8)) / 0, None, FULL, rng()), "finite"),
        (lambda: augment(noises(2, 1, (8, 8)), None, FULL, rng(), spacing=(1, 1, 5)), "along each of 2 axes"),
        (lambda: augment(noises(2, 1, (8, 8)), None, FULL, rng(), spacing=(1, 0)), "spacing is"),
        (lambda: augment(noises(2, 1, (8, 8)), None, FULL, rng(), spacing=2.0), "spacing is"),
        (lambda: augment(noises(2, 1, (8, 8)), None, FULL, rng(), spacing=("1", "1")), "spacing is"),
    ],
)
def test_what_cannot_be_is_refused(wrong, said):
    with pytest.raises(InputError, match=said):
        wrong()


@pytest.mark.quick
def test_a_set_may_be_given_by_its_name():
    image = noises(2, 1, (8, 8))
    assert torch.equal(augment(image, None, "full", rng())[0], augment(image, None, FULL, rng())[0])
    for nothing in ("none", None):
        assert torch.equal(augment(image, None, nothing, rng())[0], image)


# In trainings


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Stores of pictures: three modalities of a person in three files, and photographs."""
    folder, drawn = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for kind in ("modalities", "photographs"):
        (folder / kind).mkdir()
    for i in range(8):
        colours = drawn.integers(256, size=(16, 16, 3), dtype=np.uint8)
        Image.fromarray(colours).save(folder / f"photographs/p{i}.png")
        Image.fromarray(255 * (colours[..., 0] > 127).astype(np.uint8) // 255).save(folder / f"modalities/p{i}_seg.png")
        for k, name in enumerate(("T1", "T2", "FLAIR")):
            Image.fromarray(colours[..., k]).save(folder / f"modalities/p{i}_{name}.png")
    files = {name: f"{{subject}}_{name}.png" for name in ("T1", "T2", "FLAIR")}
    return [prepare(folder / kind, folder / f"{kind}.store", size=16, progress=False, **how) for kind, how in (
        ("modalities", {"images": files, "masks": "{subject}_seg.png"}),
        ("photographs", {"images": "{subject}.png"}))]


def test_pictures_of_three_modalities_are_no_photographs(pictures, tmp_path, monkeypatch):
    """Fine-tuning and pretraining ask one function, and hand on what it says."""
    modalities, photographs = pictures
    assert (modalities.spatial_dims, modalities.channels) == (photographs.spatial_dims, photographs.channels) == (2, 3)
    assert not of_images(2, 3, modalities)["photographs"] and of_images(2, 3, photographs)["photographs"]
    assert of_images(2, 3)["photographs"] and not of_images(2, 1)["photographs"], "of tensors there is no name"
    assert are_photographs(2, 3, ("R", "G", "B")) and not are_photographs(2, 3, ("T1", "T2", "FLAIR"))
    modalities.channel_names = []
    assert not of_images(2, 3, modalities)["photographs"], "three files are no photograph, either"
    seen = []

    def watched(*args, **more):
        seen.append(more["photographs"])
        return of_step(*args, **more)

    for module in (pretrain_module, finetune_module):
        monkeypatch.setattr(module, "of_step", watched)
    how = {"augment": "light", "steps": 1, "widths": SMALL, "progress": False, "accelerator": "cpu"}
    for store in pictures:
        pretrain("rotation", store.folder, tmp_path / f"{store.folder.name}.run", batch_size=2, **how)
    finetune(modalities.folder, tmp_path / "masks", **how)
    assert seen == [False, True, False]


def test_trainings_rotate_in_the_millimetres_of_their_store(tmp_path):
    (tmp_path / "scans").mkdir()
    for i, image in enumerate(smooth(4, (24, 20, 6))):
        nib.save(nib.Nifti1Image(image[0].numpy(), np.diag([4.0, 5.0, 12.0, 1.0])), tmp_path / f"scans/p{i}.nii.gz")
    thick = prepare(tmp_path / "scans", tmp_path / "thick", size=16, spacing=(4, 5, 12), progress=False)
    assert of_images(3, thick.channels, thick)["spacing"] == [4, 5, 12]
    assert of_images(2, thick.channels, thick)["spacing"] == [5, 4], "rows of a slice are the second axis"

    class Asks:  # a task that hands on what it gets
        def make(self, batch, generator):
            return batch.image
    image = smooth(4, (16, 16, 16))
    batch = Batch(image, torch.arange(4))
    how = Pretraining(augment="full")
    asked = [pretrain_module._question(how, 3, 1, store)(Asks(), batch, 2) for store in (thick, None)]
    expected = [of_step("full", how.seed, spacing=mm)(image, None, 2)[0] for mm in ((4, 5, 12), None)]
    assert all(torch.equal(a, b) for a, b in zip(asked, expected)) and not torch.equal(*asked)


def cut(module, run, monkeypatch, name, call):
    """Make `run()` in one go, and again with a failure at some reading; both have to end alike."""
    monkeypatch.setattr(module, "train", partial(module.train, checkpoint_every=3))
    whole, read, calls = run("whole"), getattr(module, name), []

    def fails_once(*args, **more):
        calls.append(1)
        if len(calls) == call:
            raise RuntimeError("the power went off")
        return read(*args, **more)
    monkeypatch.setattr(module, name, fails_once)
    with pytest.raises(RuntimeError, match="power"):
        run("cut")
    return whole, run("cut")


@pytest.mark.parametrize("slices, mirror", [(False, (0,)), (True, (1,))])
def test_pretraining_goes_on_to_the_same_bytes(store, tmp_path, monkeypatch, slices, mirror):
    def run(name, **other):
        how = {"augment": "light", "mirror": mirror, "slices": slices, "steps": 7, "batch_size": 4, "widths": SMALL}
        return pretrain("rotation", store.folder, tmp_path / name, progress=False, accelerator="cpu", **how | other)
    whole, again = cut(pretrain_module, run, monkeypatch, "read_batch", 7)
    assert (whole / "encoder.safetensors").read_bytes() == (again / "encoder.safetensors").read_bytes()
    assert (whole / "log.csv").read_bytes() == (again / "log.csv").read_bytes()
    assert whole.settings["augment"] == "light" and whole.settings["mirror"] == list(mirror)
    plain = run("plain", augment="none", mirror=None)
    assert (plain / "log.csv").read_bytes() != (whole / "log.csv").read_bytes()
    with pytest.raises(InputError, match="augment was 'light' and is now 'full'"):
        run("whole", augment="full")


def test_fine_tuning_goes_on_to_the_same_bytes(store, tmp_path, monkeypatch):
    def run(name, **other):
        how = {"augment": "full", "steps": 7, "labels": 0.2, "widths": SMALL, "mirror": (0, 1), "slices": True}
        return finetune(store.folder, tmp_path / name, progress=False, accelerator="cpu", **how | other)
    whole, again = cut(finetune_module, run, monkeypatch, "images_of_step", 7)
    for file in ("network.safetensors", "log.csv", "scores.csv"):
        assert (whole / file).read_bytes() == (again / file).read_bytes(), file
    assert whole.settings["augment"] == "full"
    plain = run("plain", augment="none", mirror=None)
    assert (plain / "log.csv").read_bytes() != (whole / "log.csv").read_bytes()


def test_a_mask_is_augmented_with_its_image_and_a_grade_stays(store):
    image = smooth(2, (16, 16, 16))
    mask, grade = (image > 0.5).long(), torch.tensor([1, 2])
    network = torch.nn.Module()
    network.encoder = torch.nn.Identity()
    change = of_step("full", 0)
    steps = range(30)
    asked = [finetune_module.warm_up(0, change, masks=True)(network, (image, mask), step) for step in steps]
    assert any(not torch.equal(one, mask) for _, one in asked)
    alone = [finetune_module.warm_up(0, change)(network, (image, grade), step) for step in steps]
    for (images, moved), (same, kept), step in zip(asked, alone, steps):
        assert torch.equal(images, same) and kept is grade
        assert torch.equal(moved, change(image, mask, step)[1]), "a function of the step"
    question = finetune_module.warm_up(0, of_step("none", 0), masks=True)
    assert question(network, (image, mask), 3)[0] is image, "without augmentation the batch itself"


def test_the_axes_of_a_slice_are_those_of_its_volume(store):
    """Left and right are the columns of a slice, and the first axis of a volume."""
    from ssl3d.training.loop import read_batch
    how = Pretraining(slices=True, augment="light", mirror=(0,))
    assert pretrain_module._axes(how, 2) == (1,)
    name = Store(store.folder).split("train")[0]
    volume = read_batch(store, [name]).image
    picture = read_batch(store, [name], slices=rng()).image
    heights = torch.randint(volume.shape[-1], (1,), generator=rng())
    assert torch.equal(picture[0, 0, 0, :], volume[0, 0, :, -1, heights[0]]), "columns are the first axis"


@pytest.mark.parametrize(
    "task, how, said",
    [
        ("exemplar", {"augment": "light"}, "is its question"),
        ("rotation", {"augment": "light", "mirror": (0, 1)}, "turned by half"),
        ("location", {"mirror": (0,)}, "nothing is augmented"),
        ("location", {"augment": "light", "mirror": (2,), "slices": True}, "0 .left and right. and 1 .back and front."),
        ("location", {"augment": "strong"}, "one of|'none' or 'light'|none, light, full"),
    ],
)
def test_what_a_task_does_not_bear_is_refused(store, tmp_path, task, how, said):
    with pytest.raises(InputError, match=said):
        pretrain(task, store.folder, tmp_path / "x", steps=1, widths=SMALL, progress=False, **how)
    assert not (tmp_path / "x").exists()


def test_fine_tuning_refuses_axes_that_are_not_there(store, tmp_path):
    with pytest.raises(InputError, match="--augment light"):
        finetune(store.folder, tmp_path / "x", steps=1, widths=SMALL, progress=False, augment="none", mirror=(0,))
    with pytest.raises(InputError, match="mirror"):
        finetune(store.folder, tmp_path / "x", steps=1, widths=SMALL, progress=False, augment="full", mirror=(3,))


def test_masks_of_volumes_are_augmented_and_the_rate_falls_unless_told_otherwise(store, tmp_path):
    def settings(**how):
        run = finetune(store.folder, tmp_path / "-".join(map(str, how.values())), steps=1, widths=SMALL, progress=False,
                       **how)  # fmt: skip
        return run.settings["augment"], run.settings["schedule"]

    assert settings(seed=1) == ("light", "polynomial") == settings(seed=1, slices=True)
    assert settings(seed=1, augment="none", schedule="constant") == ("none", "constant")
    assert settings(preset="paper", warmup=0) == ("none", "constant"), "the paper has neither"
    assert filled(Finetuning(), make_goal("classification")).augment == "none"
    assert filled(Finetuning(), make_goal("segmentation"), 2).schedule == "constant", "of pictures"
    run = pretrain("rotation", store.folder, tmp_path / "rotation", steps=1, widths=SMALL, progress=False)
    assert (run.settings["augment"], run.settings["schedule"]) == ("none", "constant")


def test_an_experiment_says_at_once_what_a_task_does_not_bear():
    cohort, arms = {"source": "scans"}, {"scratch": {}, "exemplar": {"task": "exemplar"}}
    described = Experiment(cohort, arms, pretraining={"augment": "light"}, finetuning={"augment": "full"})
    with pytest.raises(InputError, match="exemplar.*its question"):
        check_experiment(described)
    check_experiment(replace(described, arms=arms | {"exemplar": {"task": "exemplar", "augment": "none"}}))


def test_every_other_task_learns_from_augmented_images(store, tmp_path):
    for task, options in (("location", {}), ("cpc", {"context_size": 16}), ("jigsaw", {"n_permutations": 20})):
        run = pretrain(task, store.folder, tmp_path / task, steps=2, augment="full", widths=SMALL, options=options,
                       progress=False)
        assert np.isfinite(read_log(run)["loss"]).all()
