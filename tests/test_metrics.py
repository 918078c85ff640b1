"""Scores of masks and of grades, beside independent implementations: NumPy, SciPy and scikit-learn."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.distance import cdist
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from ssl3d.downstream.metrics import (
    BRATS_REGIONS,
    age_scores,
    confusion,
    dice_per_class,
    dice_per_region,
    grading_scores,
    hausdorff95,
    regions,
    surface_dice,
)
from ssl3d.errors import InputError
from ssl3d.files import read_table, write_table

pytestmark = pytest.mark.quick

SHAPES = {(9, 11): (0.7, 2.5), (7, 8, 6): (1.0, 0.4, 3.0)}  # -> mm


def blobs(shape, seed, n_codes=4, smooth=1.2):
    """A random mask of connected pieces in codes 0 to n_codes - 1; some of them touch the border."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((n_codes, *shape)), [0] + [smooth] * len(shape))
    return noise.argmax(axis=0)


def counted_dice(a, b):
    """2 |A and B| / (|A| + |B|); 1 where both are empty."""
    return 2 * (a & b).sum() / (a.sum() + b.sum()) if a.any() or b.any() else 1


def surface_points(mask):
    """Indices of the voxels with a face neighbour outside, found one direction at a time."""
    padded = np.pad(mask, 1)
    inside = np.ones_like(mask)
    for axis in range(mask.ndim):
        for step in (-1, 1):
            inside &= np.roll(padded, step, axis)[(slice(1, -1),) * mask.ndim]
    return np.argwhere(mask & ~inside)


def brute_force(a, b, spacing):
    """All distances between two surfaces; the larger of the 95th percentiles of either direction."""
    distances = cdist(surface_points(a) * np.array(spacing), surface_points(b) * np.array(spacing))
    return max(np.percentile(distances.min(axis=1), 95), np.percentile(distances.min(axis=0), 95))


def by_distance_maps(a, b, spacing):
    """The same from distance maps."""
    a, b = (mask ^ ndimage.binary_erosion(mask) for mask in (a, b))
    from_a, from_b = (ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in (a, b))
    return max(np.percentile(from_b[a], 95), np.percentile(from_a[b], 95))


def test_dice_agrees_with_counting():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (2, 6, 8, 8, 8))
    a[0][a[0] == 2] = 0  # a class absent from the prediction
    a[1][a[1] == 3] = b[1][b[1] == 3] = 0  # absent from both
    b[2] = 0  # empty truth
    a[3] = b[3] = 0  # both empty
    expected = [[counted_dice(x == c, y == c) for c in (1, 2, 3)] for x, y in zip(a, b)]
    assert np.allclose(dice_per_class(torch.tensor(a), torch.tensor(b), 4), expected, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(12))
def test_hausdorff_agrees_with_brute_force(shape, seed):
    spacing, a, b = SHAPES[shape], blobs(shape, seed), blobs(shape, seed + 100, smooth=0.6 + seed / 10)
    b[a == 3] = np.where(seed % 2, 0, b[a == 3])
    found = hausdorff95(a, b, (1, 2, 3), spacing)
    for code in (1, 2, 3):
        x, y = a == code, b == code
        if x.any() and y.any():
            expected = brute_force(x, y, spacing)
            assert np.isclose(expected, by_distance_maps(x, y, spacing)), "the two references agree"
            assert np.isclose(found[code], expected, rtol=1e-5)
        else:
            assert (math.isinf if x.any() or y.any() else math.isnan)(found[code])
    assert np.allclose(list(hausdorff95(b, a, (1, 2, 3), spacing).values()), list(found.values()), equal_nan=True)
    assert all(mm == 0 for code, mm in hausdorff95(a, a, (1, 2, 3), spacing).items() if (a == code).any())


@pytest.mark.parametrize("shape", SHAPES)
def test_hausdorff_of_points_planes_and_everything(shape):
    spacing, everything = SHAPES[shape], np.ones(shape, bool)
    point, other, plane = (np.zeros(shape, bool) for _ in range(3))
    point[(0,) * len(shape)] = other[tuple(n - 1 for n in shape)] = plane[2] = True
    far = math.dist([0] * len(shape), [mm * (n - 1) for mm, n in zip(spacing, shape)])
    assert np.isclose(hausdorff95(point, other, [1], spacing)[1], far)
    for a, b in ((point, plane), (point, everything), (plane, everything)):
        assert np.isclose(hausdorff95(a, b, [1], spacing)[1], brute_force(a, b, spacing), rtol=1e-5)


def test_hausdorff_ignores_a_few_voxels_and_not_many():
    truth = np.zeros((40, 40), int)
    truth[5:25, 5:25] = 1  # 76 voxels on the surface
    few, many = truth.copy(), truth.copy()
    few[35, 35], many[33:36, 33:36] = 1, 1
    assert hausdorff95(few, truth, [1], (1, 1)) == {1: 0}
    assert hausdorff95(many, truth, [1], (1, 1))[1] > 12
    assert hausdorff95(truth, many, [1], (1, 1)) == hausdorff95(many, truth, [1], (1, 1)), "the larger direction"


def test_empty_masks_have_no_distance_and_no_class_shifts():
    mask, empty = np.zeros((2, 5, 6, 7), int)
    mask[1], mask[3] = 1, 3  # class 2 is nowhere
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(hausdorff95(empty, empty, [1], (1, 1, 1))[1])
        assert hausdorff95(empty, mask, (1, 3), (1, 1, 1)) == {1: math.inf, 3: math.inf}
        assert hausdorff95(mask, empty, (1, 3), (1, 1, 1), missed=374) == {1: 374, 3: 374}
        found = hausdorff95(np.where(mask == 1, 2, mask), mask, (1, 2, 3), (1, 1, 1), missed=50)
        assert found == {1: 50, 2: 50, 3: 0}
        found = hausdorff95(mask, mask, (3, 2, 1), (1, 1, 1), missed=50)
    assert list(found) == [3, 2, 1] and found[1] == found[3] == 0 and math.isnan(found[2])


def near_enough(a, b, spacing, tolerance):
    """The share of all surface voxels whose nearest voxel of the other surface is within the tolerance."""
    distances = cdist(surface_points(a) * np.array(spacing), surface_points(b) * np.array(spacing))
    ways = np.concatenate([distances.min(axis=1), distances.min(axis=0)])
    return (ways <= tolerance * (1 + 1e-9)).mean()


def test_surface_dice_of_a_cube_that_is_shifted_counted_by_hand():
    """A cube of 4 voxels a side has 64 - 8 = 56 on its surface. One voxel along the first axis is 3 mm, else 1 mm."""
    truth, spacing = np.zeros((12, 12, 12), int), (3.0, 1.0, 1.0)
    truth[4:8, 4:8, 4:8] = 1
    shifted = {axis: np.roll(truth, 1, axis) for axis in (0, 1)}
    assert surface_dice(shifted[0], truth, [1], spacing, tolerance=3) == {1: 1}, "a distance at the tolerance is within"
    assert surface_dice(shifted[1], truth, [1], spacing, tolerance=1) == {1: 1}
    assert surface_dice(shifted[0], truth, [1], spacing) == {1: 1}, "the largest spacing, if not given"
    # Of the 56, the rims of the 3 layers that both cubes have are on the other surface: 3 * 12.
    assert surface_dice(shifted[0], truth, [1], spacing, tolerance=0) == {1: round(36 / 56, 6)}
    # The inner 4 of the end layer inside of the other cube are 1 mm from its rim; the 16 outside are 3 mm away.
    assert surface_dice(shifted[0], truth, [1], spacing, tolerance=2.9) == {1: round(40 / 56, 6)}
    assert surface_dice(shifted[1], truth, [1], spacing, tolerance=0.9) == {1: round(36 / 56, 6)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(6))
def test_surface_dice_agrees_with_brute_force(shape, seed):
    spacing, a, b = SHAPES[shape], blobs(shape, seed), blobs(shape, seed + 100, smooth=0.6 + seed / 10)
    b[a == 3] = np.where(seed % 2, 0, b[a == 3])
    for tolerance in (0, min(spacing), 1.3, max(spacing), 50):
        found = surface_dice(a, b, (1, 2, 3), spacing, tolerance)
        for code in (1, 2, 3):
            x, y = a == code, b == code
            both = x.any() and y.any()
            expected = near_enough(x, y, spacing, tolerance) if both else float(not (x.any() or y.any()))
            assert np.isclose(found[code], expected, atol=1e-6), "the border of the image is surface, too"
        assert found == surface_dice(b, a, (1, 2, 3), spacing, tolerance)
        assert tolerance < 50 or all(found[code] == 1 for code in (1, 2, 3) if (a == code).any() and (b == code).any())
    assert surface_dice(a, b, (1, 2, 3), spacing) == surface_dice(a, b, (1, 2, 3), spacing, max(spacing))


def test_a_miss_is_a_surface_dice_of_zero_and_never_left_out():
    mask, empty = np.zeros((2, 5, 6, 7), int)
    mask[1], mask[3] = 1, 3  # class 2 is nowhere
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert surface_dice(empty, mask, (1, 2, 3), (1, 1, 1), 1e6) == {1: 0, 2: 1, 3: 0}
        assert surface_dice(mask, empty, (1, 2, 3), (1, 1, 1), 1e6) == {1: 0, 2: 1, 3: 0}
        assert surface_dice(mask, mask, BRATS_REGIONS, (1, 1, 1), 0) == {"WT": 1, "TC": 1, "ET": 1}
    for code, dice in dice_per_region(empty, mask, {1: (1,), 2: (2,), 3: (3,)}).items():
        assert surface_dice(empty, mask, [code], (1, 1, 1)) == {code: dice}, "as Dice where there is no surface"
    for wrong, said in ((-1, "tolerance"), (math.inf, "tolerance"), ("2", "tolerance")):
        with pytest.raises(InputError, match=said):
            surface_dice(mask, mask, [1], (1, 1, 1), wrong)
    with pytest.raises(InputError, match="spacing"):
        surface_dice(mask, mask, [1], (1, 1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("empties", [(), (1, 3), (3,), (1, 2, 3)])
def test_regions_agree_with_counting(shape, empties):
    a, b = blobs(shape, 1), blobs(shape, 2)
    a[np.isin(a, empties)] = 0
    tests = {"WT": lambda m: m > 0, "TC": lambda m: (m == 1) | (m >= 3), "ET": lambda m: m >= 3}
    for truth in (b, np.where(b == 3, 4, b), 0 * b):
        found, dice = regions(truth), dice_per_region(a, truth)
        distance = hausdorff95(a, truth, BRATS_REGIONS, SHAPES[shape])
        assert list(found) == list(dice) == list(distance) == ["WT", "TC", "ET"]
        for name, test in tests.items():
            assert found[name].dtype == bool and (found[name] == test(truth)).all()
            assert np.isclose(dice[name], counted_dice(test(a), test(truth)), atol=1e-6)
            if test(a).any() and test(truth).any():
                assert np.isclose(distance[name], brute_force(test(a), test(truth), SHAPES[shape]), rtol=1e-5)
            else:
                assert not math.isfinite(distance[name])


def test_regions_of_other_tables():
    mask = np.arange(6).reshape(2, 3)
    assert regions(mask, {"organ": (1, 4, 5), "lesion": (4,)})["organ"].tolist() == [[0, 1, 0], [0, 1, 1]]
    assert regions(mask, {"three": (3,)})["three"].sum() == 1, "only the table of BraTS takes 4 for 3"
    assert dice_per_region(mask, mask, {"nowhere": (9,)}) == {"nowhere": 1}
    for wrong, table in (
        (mask, BRATS_REGIONS),  # a code of 5
        (np.array([[3, 4]]), BRATS_REGIONS),  # after treatment
        (-mask, BRATS_REGIONS),
        (mask / 2, {"organ": (1,)}),
        (np.full((2, 2), np.nan), {"organ": (1,)}),
        (np.full((2, 2), np.inf), {"organ": (1,)}),
        (mask, {1: "organ"}),  # the classes of a store
        (mask, {"organ": ()}),
    ):
        with pytest.raises(InputError):
            regions(wrong, table)


def test_masks_of_any_kind_and_masks_that_do_not_fit():
    a, b = blobs((7, 8, 6), 3), blobs((7, 8, 6), 4)
    expected = hausdorff95(a, b, (1, 2, 3), (1, 1, 2))
    for kind in (torch.tensor, np.float32, np.uint8, lambda m: torch.tensor(m).bfloat16()):
        assert hausdorff95(kind(a), kind(b), (1, 2, 3), (1, 1, 2)) == expected
    for p, t, spacing, said in (
        (a, b[1:], (1, 1, 1), "one grid"),
        (a[None], b[None], (1, 1, 1), "4 axes"),
        (a[None], b[None], (1, 1, 1, 1), "4 axes"),
        (a, b, (1, 1), "spacing"),
        (a, b, 1, "spacing"),
        (a, b, (1, 0, 1), "spacing"),
        (a, b, (1, math.nan, 1), "spacing"),
        (a + 0.5, b, (1, 1, 1), "no class codes"),
    ):
        with pytest.raises(InputError, match=said):
            hausdorff95(p, t, (1, 2, 3), spacing)
    with pytest.raises(InputError, match="one grid"):
        dice_per_region(a, b[1:])


@pytest.mark.parametrize("n_classes", [2, 5])
@pytest.mark.parametrize("seed", range(8))
def test_grading_agrees_with_scikit_learn(n_classes, seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, n_classes, 5 + 40 * seed)
    for given in (
        rng.integers(0, n_classes, len(truth)),
        np.clip(truth + rng.integers(-1, 2, len(truth)), 0, n_classes - 1),
        n_classes - 1 - truth,
        np.where(truth == 1, 0, truth),  # a grade that is never answered
    ):
        found = grading_scores(given, truth, n_classes)
        labels = range(n_classes)
        expected = cohen_kappa_score(truth, given, labels=labels, weights="quadratic")
        assert np.isclose(found["kappa"], expected, atol=1e-5)
        assert np.isclose(found["accuracy"], np.mean(truth == given))
        assert (confusion(given, truth, n_classes) == confusion_matrix(truth, given, labels=labels)).all()


def test_degenerate_gradings():
    zeros, ones, mixed = np.zeros(6, int), np.ones(6, int), np.array([0, 1, 2, 3, 4, 4])
    for given, truth, kappa in (
        (zeros, zeros, math.nan),
        (ones, ones, math.nan),
        (zeros, ones, 0),
        (zeros, mixed, 0),
        (mixed, ones, 0),
        (mixed, mixed, 1),
        ([3], [3], math.nan),
        ([3], [2], 0),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = cohen_kappa_score(truth, given, labels=range(5), weights="quadratic")
        found = grading_scores(given, truth, 5)
        assert np.allclose([found["kappa"], expected], kappa, atol=1e-6, equal_nan=True)
        assert np.isclose(found["accuracy"], np.mean(np.equal(given, truth)))
    counts = confusion([4, 4, 2], [2, 4, 4], 5)
    assert counts.shape == (5, 5) and counts[2, 4] == counts[4, 4] == counts[4, 2] == 1 and counts.sum() == 3


def test_no_prediction_is_dropped():
    rng = np.random.default_rng(0)
    truth, probabilities = rng.integers(0, 5, 200), rng.dirichlet(np.ones(5), 200)
    assert (probabilities.max(axis=1) < 0.5).sum() > 50, "many that some would not count"
    given = [max(range(5), key=lambda k: row[k]) for row in probabilities.tolist()]
    for kind in (np.asarray, torch.tensor, lambda p: torch.tensor(p, requires_grad=True).float()):
        assert confusion(kind(probabilities), truth, 5).sum() == 200
        expected = cohen_kappa_score(truth, given, weights="quadratic")
        assert np.isclose(grading_scores(kind(probabilities), truth, 5)["kappa"], expected, atol=1e-5)
    assert confusion([[0.2] * 5, [0, 0.5, 0.5, 0, 0]], [4, 4], 5)[4].tolist() == [1, 1, 0, 0, 0], "ties: the first"
    one = probabilities.copy()
    for value in (np.nan, np.inf):
        one[7, 2] = value
        with pytest.raises(InputError, match="1 of 200 predictions .* row 7 is nan"):
            grading_scores(one, truth, 5)


@pytest.mark.parametrize(
    "given, truth, n_classes",
    [
        ([0, 1, -1], [0, 1, 2], 3),  # -1 stands for "invalid" in some programs
        ([0, 1, 3], [0, 1, 2], 3),
        ([0, 1, 2], [0, 1, 3], 3),
        ([0, 1, 2], [0, 1, -1], 3),
        ([0, 1, 1.5], [0, 1, 2], 3),
        ([0, 1, math.nan], [0, 1, 2], 3),
        ([0, 1, 2], [0, 1, None], 3),
        ([0, 1], [0, 1, 2], 3),
        ([[0.5, 0.5]] * 3, [0, 1, 2], 3),
        ([[0], [1], [2]], [0, 1, 2], 3),
        ([0, 1, 2], [[0], [1], [2]], 3),
        ([], [], 3),
        ([0, 0], [0, 0], 1),
    ],
)
def test_gradings_that_are_refused(given, truth, n_classes):
    for function in (grading_scores, confusion):
        with pytest.raises(InputError):
            function(given, truth, n_classes)


def test_a_table_keeps_every_score(tmp_path):
    rows = [
        {"case": "a", "class": "WT", "label_fraction": 0.1, "seed": 3, "dice": 1 / 3, "hausdorff95": 1 / 7,
         "surface_dice": 2 / 3},
        {"case": "b", "class": "ET", "label_fraction": 1.0, "seed": 4, "dice": 0.0, "hausdorff95": math.inf,
         "surface_dice": 0.0},
    ]
    write_table(tmp_path / "scores.csv", rows)
    assert read_table(tmp_path / "scores.csv") == rows
    write_table(tmp_path / "scores.csv", [{"seed": 0, "kappa": math.nan, "accuracy": 1.0}])
    (row,) = read_table(tmp_path / "scores.csv")
    assert math.isnan(row["kappa"]) and row["accuracy"] == 1.0 and row["seed"] == 0


def test_dice_per_class_agrees_with_counting():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (2, 6, 8, 8, 8))
    a[0][a[0] == 2] = 0  # a class absent from the prediction
    a[1][a[1] == 3] = b[1][b[1] == 3] = 0  # absent from both
    b[2] = 0  # empty truth
    a[3] = b[3] = 0  # both empty
    expected = np.array(
        [
            [
                2 * ((x == c) & (y == c)).sum() / max(1, (x == c).sum() + (y == c).sum())
                if ((x == c) | (y == c)).any()
                else 1
                for c in (1, 2, 3)
            ]
            for x, y in zip(a, b)
        ]
    )
    assert np.allclose(dice_per_class(torch.tensor(a), torch.tensor(b), 4), expected, atol=1e-6)


def test_scores_have_the_digits_that_mean_something():
    """As float32 they were 0.7721226215362549 in every table."""
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 3, (9, 10, 11)) for _ in range(2))
    scores = [*dice_per_region(one, other, {"a": (1,), "b": (1, 2)}).values(),
              *hausdorff95(one, other, (1, 2), (0.7, 0.9, 1.1)).values(),
              *grading_scores(rng.integers(0, 3, 70), rng.integers(0, 3, 70), 3).values(),
              *age_scores(rng.random(70), rng.random(70)).values()]
    assert all(score == round(score, 6) and type(score) is float for score in scores) and len(scores) == 8
