"""Intervals and p values keep what they promise: how often, in many worlds whose truth is known."""

import numpy as np
import pytest
from test_statistics import WORLDS, world

from ssl3d.evidence.statistics import (
    bootstrap_interval,
    holm,
    p_value,
    smallest_difference,
)


def coverage(trials, worlds, shape="normal"):
    held = {}
    for parts in worlds:
        rng = np.random.default_rng(0)
        found = [bootstrap_interval(world(rng, 5, 60, *parts, 0.05, shape), i, 500) for i in range(trials)]
        held[parts] = np.mean([low <= 0.05 <= high for low, high in found])
    return held


def false_alarms(trials, arms, parts):
    """Share of experiments without any effect in which some arm is said to differ; all arms share the baseline."""
    rng, wrong = np.random.default_rng(1), 0
    for i in range(trials):
        scores = [world(rng, 5, 60, *parts) for _ in range(arms + 1)]
        wrong += min(holm([p_value(s - scores[0], i, 500) for s in scores[1:]])) < 0.05
    return wrong / trials


def found_at(times, trials, arms, parts):
    """How often a true difference of so many times the smallest detectable one is shown."""
    rng = np.random.default_rng(2)
    smallest = np.mean([smallest_difference(world(rng, 5, 60, *parts), arms) for _ in range(200)])
    shown = [
        holm([p_value(world(rng, 5, 60, *parts, times * smallest * (k == 0)), i, 500) for k in range(arms)])[0] < 0.05
        for i in range(trials)
    ]
    return np.mean(shown)


def test_calibrated_in_short():
    held = coverage(200, WORLDS[1:3])
    assert all(0.9 <= label_fraction <= 0.99 for label_fraction in held.values()), held
    for parts in (WORLDS[1], WORLDS[3]):  # where people differ most, and where seeds do
        assert false_alarms(150, 5, parts) <= 0.08 and found_at(2, 60, 5, parts) >= 0.8
        assert 0.6 < found_at(1, 150, 1, parts) < 0.92, "about 80 % at the smallest detectable difference itself"


@pytest.mark.long
def test_calibrated():
    held = coverage(1000, WORLDS)
    assert all(0.92 <= label_fraction <= 0.98 for label_fraction in held.values()), held
    for parts in WORLDS:
        alarms, found = false_alarms(4000, 5, parts), found_at(2, 1000, 5, parts)  # of 1000 alone, 5 % may be 4 or 6
        assert alarms <= 0.05 and found >= 0.8, (parts, alarms, found)


def test_what_the_interval_cannot_know():
    held = coverage(200, [(0.12, 0.05, 0.1)], shape="skewed")
    assert 0.8 < held[0.12, 0.05, 0.1] < 0.95, "the notebook says so"
