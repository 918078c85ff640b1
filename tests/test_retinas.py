"""Generated fundus photographs: where things are, what belongs to which grade, and that they can be opened."""

import csv

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from ssl3d.data.layouts import open_cohort
from ssl3d.data.prepare import prepare
from ssl3d.errors import InputError
from ssl3d.samples.retinas import BLOOD, KINDS, amounts, fundus, murray, positions, sample_retinas

COHORT = ROOT / "data_samples" / "aptos_generated"


@pytest.fixture(scope="module")
def drawn():
    """Two eyes of each grade, at 64 pixels."""
    return [fundus(index, size=64, seed=5, grade=index % 5) for index in range(10)]


def near(place, radius, size):
    """The pixels of a disc."""
    x, y = positions(size)
    return np.hypot(x - place[0], y - place[1]) < radius


def test_a_seed_gives_the_same_bytes(tmp_path):
    for name, n in (("one", 1), ("two", 2), ("again", 2)):
        sample_retinas(tmp_path / name, n=n, size=48, seed=3)
    one, two, again = (
        {f.name: f.read_bytes() for f in sorted((tmp_path / name / "train_images").iterdir())}
        for name in ("one", "two", "again")
    )
    assert two == again and one["eye_001.png"] == two["eye_001.png"] != two["eye_002.png"]
    assert not np.array_equal(fundus(0, 48, seed=4)[0], fundus(0, 48, seed=3)[0])
    grades = [(tmp_path / name / "train.csv").read_text().splitlines() for name in ("one", "two")]
    assert grades[0] == grades[1][:2]


def test_the_nose_side_belongs_to_the_eye(drawn):
    assert {eye["eye"] for _, _, eye in drawn} == {"left", "right"}
    for picture, _, eye in drawn:
        way = eye["disc"] - eye["fovea"]
        assert (way[0] > 0) == (eye["eye"] == "right") and way[1] < 0, "the fovea is to the temple, and lower"
        assert 2.1 < np.hypot(*way) / eye["disc_diameter"] < 2.9
        disc, fovea, opposite = (near(p, 0.08, 64) for p in (eye["disc"], eye["fovea"], eye["disc"] * (-1, 1)))
        assert picture[disc].mean() > 1.25 * picture[fovea].mean()
        assert picture[disc].mean() > 1.1 * picture[opposite].mean(), "the picture is mirrored as the plan is"


def test_vessels_come_from_the_disc_and_leave_the_fovea_free(drawn):
    for _, maps, eye in drawn:
        for kind in BLOOD:
            assert not maps[kind][near(eye["fovea"], 0.35 * eye["disc_diameter"], 64)].any()
            assert maps[kind][near(eye["disc"], 0.5 * eye["disc_diameter"], 64)].mean() > 0.02
            above, below = np.array_split(maps[kind], 2)
            assert min(above.mean(), below.mean()) > 0.002
        share = sum(maps[kind][near((0, 0), 1, 64)].mean() for kind in BLOOD)
        assert 0.03 < share < 0.35


def test_widths_follow_murray():
    rng = np.random.default_rng(0)
    parents = np.array([-1, *(rng.integers(0, k) for k in range(1, 60))])
    ends = np.where(np.isin(np.arange(60), parents), 0, rng.uniform(1, 2, 60))
    radii = murray(parents, ends)
    for node in set(parents.tolist()) - {-1}:
        assert np.isclose(radii[node] ** 3, (radii[parents == node] ** 3).sum())


def test_lesions_follow_the_scale(drawn):
    for _, maps, eye in drawn:
        assert set(maps) == {*KINDS, *BLOOD} and all(m.min() >= 0 and m.max() <= 1 for m in maps.values())
        found = {kind for kind in KINDS if maps[kind].any()}
        if eye["grade"] < 2:
            assert found == ({"microaneurysms"} if eye["grade"] else set())
        else:
            assert {"microaneurysms", "haemorrhages"} <= found
        assert ("new vessels" in found) == (eye["grade"] == 4)
        if eye["grade"] == 2:
            assert not found & {"beading", "irma", "preretinal"}


def test_grades_differ_by_the_rules_and_not_by_the_number_alone():
    many = {grade: [amounts(np.random.default_rng([k, grade]), grade) for k in range(300)] for grade in range(5)}
    severe = [m["haemorrhages"].min() > 20 or m["beading"] >= 2 or m["irma"] >= 1 for m in many[3]]
    assert all(severe) and not any(m["haemorrhages"].min() > 20 or m["beading"] or m["irma"] for m in many[2])
    total = {grade: [m["haemorrhages"].sum() for m in many[grade]] for grade in many}
    assert np.median(total[2]) < np.median(total[3]) and max(total[2]) > min(total[3]) and min(total[4]) < 10
    for rule in ("beading", "irma"):
        assert 0.2 < np.mean([m[rule] > 0 for m in many[3]]) < 0.9, "each of the rules occurs, none always"


def test_the_same_eye_can_have_any_grade():
    eyes = [fundus(1, 64, grade=grade) for grade in (0, 2)]
    (healthy, _, plan), (ill, maps, other) = eyes
    assert all(np.array_equal(plan[key], other[key]) for key in ("disc", "fovea", "eye", "cut"))
    changed = np.abs(healthy.astype(int) - ill).max(2) > 12
    lesions = sum(maps[kind] for kind in KINDS) > 0
    assert changed.any() and (changed & lesions).sum() > 0.8 * changed.sum()


@pytest.mark.parametrize("size", [48, 96])
def test_pictures_are_black_outside_the_field_and_bright_inside(size):
    for index in range(3):
        picture, _, eye = fundus(index, size, seed=2)
        x, y = positions(size)
        far = (np.hypot(x, y) > 1.06) | (np.abs(y) > eye["cut"] + 4 / size)
        assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
        assert not picture[far].any() and 30 < picture[near((0, 0), 0.75, size)].mean() < 230
        red, green, blue = picture[near((0, 0), 0.75, size)].mean(0)
        assert red > green > blue


def test_the_cohort_that_ships_is_what_the_generator_makes():
    with open(COHORT / "train.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id_code", "diagnosis"]
    assert "No eye was photographed" in (COHORT / "NOTICE.txt").read_text(encoding="utf-8")
    assert sum(f.stat().st_size for f in COHORT.rglob("*") if f.is_file()) < 4e6
    for index in range(3):
        shipped = np.asarray(Image.open(COHORT / "train_images" / f"{rows[index]['id_code']}.png")).astype(int)
        made, _, eye = fundus(index)
        assert int(rows[index]["diagnosis"]) == eye["grade"]
        assert shipped.shape == made.shape and (np.abs(shipped - made) <= 3).mean() > 0.999


def test_it_opens_as_aptos_and_can_be_prepared(tmp_path):
    cohort = open_cohort(COHORT)
    grades = np.bincount([case.grade for case in cohort.cases], minlength=5)
    assert cohort.layout == "aptos" and len(cohort.cases) == grades.sum() == 160
    assert len(grades) == 5 and grades.min() >= 8 and grades.argmax() == 0
    sample_retinas(tmp_path / "few", n=3, size=48)
    store = prepare(tmp_path / "few", tmp_path / "store", size=32, progress=False)
    assert store.image("eye_001").shape[0] == 3
    assert {case["grade"] for case in store.cases.values()} <= set(range(5))


@pytest.mark.parametrize("wrong", [{"n": 0}, {"size": 8}, {"size": 4000}])
def test_wrong_numbers_are_refused(tmp_path, wrong):
    with pytest.raises(InputError, match="a cohort needs"):
        sample_retinas(tmp_path / "none", **wrong)
    assert not (tmp_path / "none").exists()
