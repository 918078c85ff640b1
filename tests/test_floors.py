"""Floors: what is told without a network is told as well as it can be, and from the labels of the fit alone."""

import json

import numpy as np
import pytest
from conftest import SMALL, write_nifti

from ssl3d.data.prepare import prepare
from ssl3d.data.store import Store
from ssl3d.downstream.finetune import finetune
from ssl3d.errors import InputError
from ssl3d.files import read_table
from ssl3d.networks.encoders import make_encoder
from ssl3d.networks.floors import (
    added,
    common_mask,
    floor_readings,
    floors_of,
    kappa_of,
    mean_dice,
    position_dice,
    position_masks,
    read_off,
    summaries,
    summary_of,
)
from ssl3d.training.pretrain import _look, make_task, pretrain
from ssl3d.training.runs import Run, append_log, read_log


def made(folder, n=40, shape=(16, 16, 16), channels=1, seed=0):
    """A store of people on black: old ones are brighter, men larger; each wears a mask at one of two places."""
    rng, lines = np.random.default_rng(seed), ["image,mask,age,sex,grade"]
    places = np.stack(np.meshgrid(*[np.arange(side) - side / 2 + 0.5 for side in shape], indexing="ij"))
    for i in range(n):
        radius = (0.26, 0.34)[i % 2] * shape[0] + 0.1 * rng.random()
        inside = ((places + 0.6 * rng.random() - 0.3) ** 2).sum(axis=0) < radius**2
        image = inside * (0.3 + 0.5 * i / n + 0.1 * rng.random((channels, *shape)))
        image[:, *[side // 2 for side in shape]] = 1
        mask = np.zeros(shape, np.uint8)
        mask[4:10, 5:11] = 1 + i % 2
        if len(shape) == 3:
            write_nifti(folder / f"m{i:02d}.nii", mask)
        name = f"i{i:02d}.npy"
        np.save(folder / name, np.moveaxis(image, 0, -1).astype(np.float32) if len(shape) == 2 else
                image[0].astype(np.float32))
        lines.append(f"{name},{f'm{i:02d}.nii' if len(shape) == 3 else ''},{20 + i},{'FM'[i % 2]},{i * 3 // n}")
    (folder / "people.csv").write_text("\n".join(lines))
    return folder / "people.csv"


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    return prepare(made(folder), folder / "store", size=16, crop=False, progress=False)


def shared_out(store):
    """Every third person is held."""
    names = [*store.cases]
    return [n for i, n in enumerate(names) if i % 3], names[::3]


def test_age_is_told_by_intensity_and_sex_by_size(people):
    fit, held = shared_out(people)
    age, auc = floors_of(people, fit, held, "age"), floors_of(people, fit, held, "sex", "auc")
    assert age["histogram"] > 0.9 and age["together"] > 0.9 and age["volume"] < 0.3
    assert auc["volume"] == 1 and auc["together"] > 0.95
    assert floors_of(people, fit, held, "sex", "accuracy")["volume"] == 1
    assert set(age) == {"histogram", "volume", "blocks", "together"}
    assert floors_of(people, fit, held, "age", "mae")["histogram"] < 3


def test_a_constant_encoder_adds_nothing_and_one_that_knows_adds(people):
    fit, held = shared_out(people)
    values, truth = {n: people.cases[n]["age"] for n in fit}, [people.cases[n]["age"] for n in held]
    floor = floor_readings(people, values, held, True)["volume"].scores(truth)["r2"]
    together = floor_readings(people, values, held, True)["together"].scores(truth)["r2"]
    constant = np.ones((len(fit), 64)), np.ones((len(held), 64))
    assert added(people, values, held, True, constant).scores(truth)["r2"] - together <= 1e-9
    knows = np.array([*values.values()], float)[:, None], np.array(truth, float)[:, None]
    assert added(people, values, held, True, knows).scores(truth)["r2"] > max(floor, 0.95)


def test_labels_of_those_who_are_held_go_in_nowhere(people, tmp_path):
    fit, held = shared_out(people)
    values = {n: people.cases[n]["age"] for n in fit}
    before = {what: one.said.copy() for what, one in floor_readings(people, values, held, True).items()}
    other = Store(people.folder)
    for name in held:
        other.cases[name] |= {"age": -999.0, "sex": "F", "grade": 9}
    after = floor_readings(other, values, held, True)
    assert all(np.array_equal(before[what], after[what].said) for what in before)
    assert floors_of(other, fit, held, "age") != floors_of(people, fit, held, "age"), "they are scored by them"
    changed = values | {fit[0]: 70.0}
    assert not np.array_equal(floor_readings(people, changed, held, True)["histogram"].said, before["histogram"])


def test_whoever_else_is_asked_about_changes_nothing(people):
    fit, held = shared_out(people)
    values = {n: people.cases[n]["sex"] for n in fit}
    every, some = (floor_readings(people, values, names, False) for names in (held, held[:3]))
    for what in every:
        assert np.allclose(every[what].said[:3], some[what].said)
    backwards = floor_readings(people, dict(reversed(values.items())), held, False)
    assert all(np.array_equal(every[what].said, backwards[what].said) for what in every), "nor who comes first"


def test_an_image_is_summed_up():
    image = np.zeros((2, 16, 16, 16), np.float32)
    image[0, 4:12, 4:12, 4:12], image[1, 4:12, 4:12, 4:12] = 0.5, 1
    found = summary_of(image, (1.0, 2.0, 3.0))
    assert np.isclose(np.exp(found["volume"][0]), 8**3 * 6)
    assert found["histogram"].shape == (64,) and found["histogram"][16] == 1 and found["histogram"][-1] == 1
    blocks = found["blocks"].reshape(2, 8, 8, 8)
    assert blocks[0, 3, 3, 3] == 0.5 and blocks[1, 3, 3, 3] == 1 and blocks[0, 0, 0, 0] == 0
    grey = summary_of(np.full((1, 9, 9), 0.2, np.float32), (1.0, 1.0))
    assert np.isclose(np.exp(grey["volume"][0]), 81) and all(np.isfinite(v).all() for v in grey.values())


def test_a_volume_is_in_mm_however_large_the_voxels_are(tmp_path):
    lines = ["image,age"]
    for i, mm in enumerate((1.0, 2.0, 1.0, 2.0)):
        ball = np.zeros((12, 12, 12))
        ball[3:9, 3:9, 3:9] = 1 + np.random.default_rng(i).random((6, 6, 6))
        write_nifti(tmp_path / f"{i}.nii", ball, np.diag([mm, mm, mm, 1]))
        lines.append(f"{i}.nii,{i}")
    (tmp_path / "people.csv").write_text("\n".join(lines))
    store = prepare(tmp_path / "people.csv", tmp_path / "store", size=12, crop=False, progress=False)
    volumes = np.exp(summaries(store, [*store.cases])["volume"][:, 0])
    assert np.allclose(volumes, [216, 8 * 216, 216, 8 * 216])


def test_reading_is_no_straw_man_and_does_not_overfit():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(140, 1))
    y = 50 + 10 * x[:, 0]
    noise = rng.normal(size=(140, 512))
    for n in (10, 40):
        alone, drowned = (read_off([a[:n] for a in of], [a[n:] for a in of], y[:n], True).scores(y[n:])["r2"]
                          for of in ([noise], [noise, x]))
        assert -0.5 < alone < 0.1 and drowned > 0.35, n
        assert read_off([x[:n]], [x[n:]], y[:n], True).scores(y[n:])["r2"] > 0.9
    sexes = np.where(x[:, 0] > 0, "M", "F")
    assert read_off([x[:40]], [x[40:]], sexes[:40], False).scores(sexes[40:])["accuracy"] > 0.9
    rare = np.concatenate([np.zeros((40, 1)), [[1e6]]]) + 1e-9 * rng.random((41, 1))
    said = read_off([rare[:40], x[:40]], [rare[40:], x[40:41]], y[:40], True).said
    with_nothing = read_off([x[:40]], [x[40:41]], y[:40], True).said
    assert abs(said - with_nothing) < 25 and y[:40].min() <= said[0] <= y[:40].max()


@pytest.mark.parametrize("number", [True, False])
def test_nothing_is_ever_nan(people, number):
    known = [1.0, 2.0] if number else ["F", "M"]
    for fit, held, values in (
        (np.ones((2, 5)), np.ones((3, 5)), known),  # constant inputs, two people
        (np.array([[0.0], [1.0]]), np.ones((3, 1)), known),
        (np.ones((1, 5)), np.ones((1, 5)), known[:1]),  # one person
        (np.random.default_rng(0).random((6, 3)), np.ones((3, 3)), known[:1] * 6),  # one answer
        (np.random.default_rng(0).random((6, 3)), np.ones((3, 3)), known[:1] * 5 + known[1:]),  # one of one class
    ):
        said = read_off([fit], [held], values, number)
        scores = said.scores([known[-1]] * len(held)) | said.scores([*known, known[0]][:len(held)])
        assert np.isfinite(said.said).all() and all(np.isfinite(value) for value in scores.values())
    if not number:
        assert np.allclose(said.said.sum(axis=1), 1)
    fit, held = [*people.cases][:2], [*people.cases][2:4]
    for target in ("age", "sex", "grade"):
        assert all(np.isfinite(v) for v in floors_of(people, fit, held, target).values())


def test_grades_are_read_off_in_their_order(people):
    fit, held = shared_out(people)
    values, truth = {n: people.cases[n]["grade"] for n in fit}, [people.cases[n]["grade"] for n in held]
    found = floors_of(people, fit, held, "grade")
    assert found["histogram"] > 0.8
    assert found["histogram"] == kappa_of(floor_readings(people, values, held, True)["histogram"], truth)
    assert floors_of(people, fit, held, "grade", "accuracy")["histogram"] > 0.7


def test_a_grade_that_nobody_has_keeps_its_place():
    said = read_off([np.array([[0.0], [4.0]])], [np.array([[0.0], [4.0]])], [0, 4], True)._replace(
        said=np.array([0.0, 1.0, 4.0, 4.0]))
    assert kappa_of(said, [0, 0, 4, 4]) > 0.8, "1 for 0 is a small error where grades go to 4"


def test_photographs_have_floors(tmp_path):
    store = prepare(made(tmp_path, shape=(16, 16), channels=3), tmp_path / "store", size=16, crop=False, progress=False)
    assert store.channels == 3 and store.spatial_dims == 2
    found = summaries(store, [*store.cases])
    assert found["histogram"].shape == (40, 96) and found["blocks"].shape == (40, 192)
    fit, held = shared_out(store)
    assert floors_of(store, fit, held, "age")["together"] > 0.8
    assert floors_of(store, fit, held, "sex", "auc")["volume"] > 0.9


def square(at, side=24, n=8):
    mask = np.zeros((side, side, side), np.uint8)
    mask[at:at + n, 8:8 + n, 8:8 + n] = 1
    return mask


def test_the_place_alone_has_the_dice_of_the_overlap():
    assert np.array_equal(common_mask([square(8)] * 3, [0, 1]), square(8))
    one = common_mask([square(6)], [0, 1])
    assert 0.7 < mean_dice(one, square(8), [1]) <= 0.76, "six of eight slices are shared"
    assert mean_dice(square(6), square(8), [1]) == 0.75
    several = common_mask([square(at) for at in (5, 7, 9, 11)], [0, 1])
    assert 0.85 < several.sum() / 512 < 1.15, "each class keeps its volume"
    assert mean_dice(several, square(8), [1]) > 0.85
    scattered = common_mask([square(at, n=4) for at in (1, 6, 11, 16)], [0, 1])
    assert scattered.any(), "a class that is rare everywhere is marked somewhere"
    assert np.array_equal(common_mask([square(8) * 0] * 2, [0, 1]), square(8) * 0), "background alone"


def test_masks_of_a_store_are_told_by_their_place(people):
    fit, held = shared_out(people)
    masks = position_masks(people, fit, held)
    assert {*masks} == {*held} and all(np.array_equal(one, masks[held[0]]) for one in masks.values())
    expected = np.mean([mean_dice(masks[n], people.mask(n), [1, 2]) for n in held])
    assert np.isclose(floors_of(people, fit, held, "mask")["position"], expected, atol=1e-6) and 0 < expected < 0.9
    men = [n for n in people.cases if people.cases[n]["sex"] == "M"]
    both_right = position_dice(people, men[:10], men[10:])
    assert both_right == 1, "where all have one mask, the place tells all; the other class is nowhere"
    assert position_dice(people, fit, held, (8, 8, 8)) > 0, "on another grid"


def test_a_place_in_scans_of_their_own_shapes_is_one_in_their_content(tmp_path):
    lines = ["image,mask"]
    for i, side in enumerate((16, 20, 24, 18, 22, 26)):
        image, mask = np.zeros((side + 4,) * 3), np.zeros((side + 4,) * 3, np.uint8)
        image[2:-2, 2:-2, 2:-2] = 1 + np.random.default_rng(i).random((side,) * 3)
        mask[2 + side // 4:2 + side // 2, 2:2 + side // 2, 2:2 + side // 2] = 1
        write_nifti(tmp_path / f"i{i}.nii", image)
        write_nifti(tmp_path / f"m{i}.nii", mask)
        lines.append(f"i{i}.nii,m{i}.nii")
    (tmp_path / "people.csv").write_text("\n".join(lines))
    store = prepare(tmp_path / "people.csv", tmp_path / "store", size=None, spacing=(1, 1, 1), progress=False)
    assert store.own_shapes
    names = [*store.cases]
    found = position_masks(store, names[:4], names[4:])
    assert all(found[n].shape == store.mask(n).shape for n in names[4:])
    assert position_dice(store, names[:4], names[4:]) > 0.75


def test_what_cannot_be_asked_is_said(people):
    names = [*people.cases]
    for wrong in (lambda: floors_of(people, [], names, "age"), lambda: floors_of(people, names, [], "sex"),
                  lambda: floors_of(people, names, [], "mask"), lambda: floors_of(people, names, names, "height")):
        with pytest.raises(InputError):
            wrong()


def test_fine_tuning_says_its_floor_and_older_runs_stay_readable(people, tmp_path):
    more = {"widths": SMALL, "progress": False, "steps": 2}
    age = finetune(people.folder, tmp_path / "age", goal="regression", **more)
    grade = finetune(people.folder, tmp_path / "grade", goal="classification", labels=0.5, **more)
    held = people.split("test")
    for run, target, metric in ((age, "age", "r2"), (grade, "grade", "kappa")):
        fit = json.loads((run / "network.json").read_text())["trained_on"]
        rows = {row["floor"]: row for row in read_table(run / "floors.csv")}
        for what, score in floors_of(people, fit, held, target).items():
            assert np.isclose(rows[what][metric], score, atol=2e-3), (target, what)
        assert rows["together"]["cases"] == len(held)
        assert f"floor, from the same labels without a network: {rows['together'][metric]:.3f}" in run.summary()
    (age / "floors.csv").unlink()
    assert "floor" not in Run(age).summary() and "R²" in Run(age).summary()
    masks = finetune(people.folder, tmp_path / "masks", **more)
    assert not (masks / "floors.csv").exists() and "floor" not in masks.summary()


def test_a_run_that_was_begun_without_floors_goes_on(people, tmp_path):
    how = {"steps": 4, "probe": "age", "probe_every": 2, "widths": SMALL, "progress": False}
    run = pretrain("rotation", people.folder, tmp_path / "new", **how)
    seen = read_log(run, "observed.csv")
    assert {"linear", "chance", "histogram", "volume", "blocks", "floor", "added"} < {*seen}
    assert len({*seen["floor"]}) == 1, "the floor does not train"
    assert f"histogram, volume and coarse blocks of the images: {seen['floor'][0]:.2f}" in run.summary()
    before = ("linear", "neighbours", "chance", "rank")
    old = tmp_path / "old"
    old.mkdir()
    append_log(old, {"step": 0} | dict.fromkeys(before, 0.0), "observed.csv")
    found = _look(people, "age", old, None)(make_task("rotation", make_encoder("unet", 3, 1, SMALL)), 2)
    assert tuple(found) == before, "the columns that the log began with"
