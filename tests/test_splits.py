"""Splits: nobody on both sides, shares of grades on each, subsets that are nested."""

import time
from itertools import permutations, product

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from ssl3d.data.scans import marks_of
from ssl3d.data.splits import (
    copied_pairs,
    halve_subjects,
    label_subset,
    merge_copies,
    near_cases,
    near_pairs,
    split_subjects,
)
from ssl3d.errors import InputError

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("seed", range(5))
def test_no_subject_is_on_both_sides(seed):
    subjects = [f"p{i // 3}" for i in range(60)]
    split = split_subjects(subjects, 0.25, seed)
    assert len(split["test"]) == 5 and not set(split["train"]) & set(split["test"])
    assert sorted(split["train"] + split["test"]) == sorted(set(subjects))


@pytest.mark.parametrize("seed", range(5))
def test_nobody_is_in_both_halves(seed):
    subjects, grades = [f"p{i // 2:02d}" for i in range(159)], [i // 2 % 2 for i in range(159)]
    halves = halve_subjects(subjects, 20, seed, grades)
    parts = [halves[which][part] for which in "AB" for part in ("train", "test")]
    assert sorted(sum(parts, [])) == sorted(set(subjects)) and [len(part) for part in parts] == [36, 4, 20, 20]
    assert all(abs(sum(int(p[1:]) % 2 for p in part) - len(part) / 2) <= 1 for part in parts), "grades in each part"
    assert halves == halve_subjects(subjects[::-1], 20, seed, grades[::-1])
    assert halves != halve_subjects(subjects, 20, seed + 1, grades)


def test_label_subsets_are_nested():
    ids = {f"c{i}": f"c{i}" for i in range(37)}
    subsets = [set(label_subset(ids, share, seed=3)) for share in (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)]
    assert all(a <= b for a, b in zip(subsets, subsets[1:])) and [len(s) for s in subsets] == [1, 2, 4, 9, 18, 37]
    for wrong in (0, -1, 1.5):
        with pytest.raises(InputError):
            label_subset(ids, wrong)


def test_a_subject_comes_into_a_subset_with_all_its_cases():
    cases = {f"c{i}": f"p{i // 3}" for i in range(30)}
    for share in (0.1, 0.3, 0.7):
        chosen = label_subset(cases, share, seed=1)
        people = {cases[name] for name in chosen}
        assert len(people) == round(10 * share) and len(chosen) == 3 * len(people)


@pytest.mark.parametrize("seed", range(5))
def test_each_side_and_each_subset_has_its_share_of_the_grades(seed):
    grades = [0] * 50 + [1] * 30 + [2] * 15 + [3] * 5
    people = [f"p{i:03d}" for i in range(100)]
    for test in (0.1, 0.2, 0.5):
        chosen = set(split_subjects(people, test, seed, grades)["test"])
        assert len(chosen) == round(100 * test)
        for grade in range(4):
            share = sum(g == grade and p in chosen for p, g in zip(people, grades))
            assert abs(share - test * grades.count(grade)) <= 1
    cases = dict(zip(people, people))
    subsets = [label_subset(cases, f, seed, dict(zip(people, grades))) for f in (0.05, 0.1, 0.25, 0.5, 1)]
    assert all(set(a) < set(b) for a, b in zip(subsets, subsets[1:])) and [len(s) for s in subsets] == [
        5,
        10,
        25,
        50,
        100,
    ]
    assert all(abs(sum(grades[people.index(p)] == 1 for p in s) - 0.3 * len(s)) <= 1 for s in subsets)


def test_a_large_cohort_is_split_in_no_time():
    people = {f"c{i}": f"p{i // 2}" for i in range(44_000)}
    start = time.perf_counter()
    label_subset(people, 0.5)
    merge_copies(people, {name: name for name in people})
    split_subjects([*people.values()], 0.2)
    assert time.perf_counter() - start < 20, "minutes where each person is looked up among all others"


def test_one_common_mark_of_several_makes_two_cases_one_person():
    people = {"a": "anna", "b": "bert", "c": "carl", "d": "dora"}
    marks = {
        "a": ["file a", "T1 x", "T2 y"],
        "b": ["file b", "T1 z", "T2 w"],
        "c": ["file c", "T1 q", "T2 y"],
        "d": "d",
    }
    assert merge_copies(people, marks) == people | {"c": "anna"}
    chain = {name: [f"m{i}", f"m{i + 1}"] for i, name in enumerate("abcd")}
    assert set(merge_copies(people, chain).values()) == {"anna"}


@pytest.mark.parametrize("shape", [(20, 24, 30), (40, 50)])
def test_a_copy_with_other_values_is_found_however_it_was_turned(shape):
    """The order of the waves is written in two modules, and this holds them together."""
    values = gaussian_filter(np.random.default_rng(0).normal(size=(2, *shape)), (0, *[3] * len(shape)))
    one, other = (marks_of(torch.from_numpy(image[None].astype(np.float32))) | {"shape": shape} for image in values)
    for order in permutations(range(len(shape))):
        for steps in product((1, -1), repeat=len(shape)):
            turned = values[0].transpose(order)[tuple(slice(None, None, step) for step in steps)]
            copy = marks_of(torch.from_numpy(np.rint(700 + 90 * turned)[None].astype(np.float32))) | {"shape": shape}
            cases = {"copy": copy, "one": one, "other": other}
            assert near_pairs(cases, {name: name for name in cases}) == [("copy", "one")]
            assert near_cases({"copy": copy}, one) == ["copy"] and not near_cases({"copy": copy}, other)


def test_each_copy_is_named_beside_the_first_case_that_it_is_one_of():
    subjects = {"a": "p", "b": "q", "c": "q", "d": "r", "e": "s"}
    marks = {"a": ["1", "x"], "b": "2", "c": ["2", "x"], "d": ["3", "2"], "e": "4"}
    assert copied_pairs(subjects, marks) == [("a", "c"), ("b", "d")], "b and c are of one person"
