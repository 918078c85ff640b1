"""Statistics: pairs, intervals that keep what they promise, corrections, kappa by person."""

import random

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import stats

from ssl3d.downstream.metrics import age_scores, grading_scores
from ssl3d.errors import InputError
from ssl3d.evidence.report import in_words, keep_answer
from ssl3d.evidence.statistics import (
    arm_rows,
    bootstrap_interval,
    bootstrap_means,
    effect_size,
    failed_trainings,
    failures,
    holm,
    in_common,
    p_value,
    paired,
    score_matrix,
    smallest_difference,
    standard_error,
    verdict,
    verdict_table,
)
from ssl3d.files import write_table

pytestmark = pytest.mark.quick


def dice_rows(gain, arms=("scratch", "x"), seeds=5, people=10, label_fractions=(0.1,)):
    return [
        {"arm": a, "label_fraction": f, "seed": s, "subject": f"p{c:02d}", "case": f"c{c}", "class": k}
        | {"metric": "Dice", "dice": gain(a, s, c)}
        for f in label_fractions
        for a in arms
        for s in range(seeds)
        for c in range(people)
        for k in "ab"
    ]


def world(rng, n_seeds, n_people, seeds, people, rest, effect=0.0, shape="normal"):
    def draw(*size):
        return rng.normal(size=size) if shape == "normal" else rng.exponential(size=size) - 1

    noise = seeds * draw(n_seeds, 1) + people * draw(1, n_people) + rest * draw(n_seeds, n_people)
    return effect + noise


WORLDS = [(0.005, 0.05, 0.1), (0.02, 0.05, 0.1), (0.05, 0.05, 0.1), (0.12, 0.05, 0.1), (0.02, 0.2, 0.02)]


def differences(rows, label_fraction=0.1):
    one, other = paired(rows, "x", "scratch", label_fraction)
    return one - other


def test_pairs_are_of_one_seed_and_person():
    rows = dice_rows(lambda a, s, c: s + 10 * c + 100 * (a == "x") * c, seeds=2, people=3)
    random.Random(0).shuffle(rows)
    assert differences(rows).tolist() == [[0, 100, 200]] * 2


def test_scans_of_one_person_are_one():
    rows = dice_rows(lambda a, s, c: 0.1 * c, people=4)
    for row in rows:
        row["subject"] = "p0" if row["case"] in ("c0", "c1") else row["subject"]
    table = arm_rows(rows, "x", 0.1)
    assert in_common(table) == ([0, 1, 2, 3, 4], ["p0", "p02", "p03"])
    assert np.allclose(score_matrix(table, *in_common(table)), [[0.05, 0.2, 0.3]] * 5)


def test_only_what_both_arms_have_is_compared():
    rows = dice_rows(lambda a, s, c: 1.0 * (a == "x") * (c < 6))
    rows = [r for r in rows if not (r["arm"] == "x" and r["seed"] == 3)]
    assert differences(rows).shape == (4, 10)
    ragged = [r for r in rows if not (r["arm"] == "x" and r["seed"] == 1 and r["case"] in ("c6", "c7", "c8", "c9"))]
    assert differences(ragged).shape == (4, 6)
    (answer,) = verdict(ragged)
    assert (answer["score"], answer["baseline_score"], answer["difference"]) == (1, 0, 1), "all of the same people"
    rows = [r for r in rows if not (r["arm"] == "x" and r["seed"] < 4 or r["arm"] == "scratch" and r["seed"] == 4)]
    assert paired(rows, "x", "scratch", 0.1) is paired(rows, "x", "scratch", 0.7) is None
    assert verdict(rows) == [] and "no two arms" in verdict_table([])


def test_what_is_not_defined_is_not_worse():
    grades, blind = [0, 0, 0, 0, 0, 1], [0] * 6
    rows = grade_rows(blind, grades) + grade_rows([0, 0, 0, 0, 0, 1], grades, "x")
    (answer,) = verdict(rows)
    assert answer["verdict"] == "nothing can be said" and np.isnan(answer["p"]), "without p5 kappa is not defined"
    assert "nothing can be said" in verdict_table([answer])
    (answer,) = verdict(dice_rows(lambda a, s, c: 0.3 + 0.03 * (a == "x"), seeds=1, people=1))
    assert answer["verdict"] == "nothing can be said", "one number says nothing of others"
    corrected = holm([0.01, float("nan"), 0.04])
    assert corrected[0] == 0.02 and np.isnan(corrected[1]) and corrected[2] == 0.04
    with pytest.raises(InputError, match="scratch, x"):
        verdict(dice_rows(lambda a, s, c: 0.1), "scrach")
    with pytest.raises(InputError):
        verdict([])


@pytest.mark.parametrize("value", [1 / 3, 0.1, 2 / 7, 1.0, 0.0])
@pytest.mark.parametrize("shape", [(2, 6), (3, 7), (5, 45), (1, 9)])
def test_equal_scores_have_an_interval_of_no_width(value, shape, tmp_path, monkeypatch):
    d = np.full(shape, value)
    low, high = bootstrap_interval(d)
    assert low <= d.mean() <= high and np.isclose(low, high) and smallest_difference(d) == 0
    assert p_value(d) == (1 if value == 0 else 0)
    rows = dice_rows(lambda a, s, c: value, seeds=shape[0], people=shape[1])
    write_table(tmp_path / "results.csv", rows)
    if value != 1 / 3:  # the others are drawn, too, but not painted: it would take a second each
        monkeypatch.setattr(plt, "savefig", lambda file, **how: file.write(b"a picture"))
    assert "no difference shown" in keep_answer(rows, tmp_path)


def test_one_seed_is_student_over_people_and_one_person_over_seeds():
    rng = np.random.default_rng(0)
    for shape in ((1, 20), (20, 1)):
        d = rng.normal(0.3, 1, shape)
        error, weight = standard_error(d)
        assert np.isclose(error, stats.sem(d.ravel())) and weight == (shape[0] > 1)
        t = stats.ttest_1samp(d.ravel(), 0).confidence_interval()
        low, high = bootstrap_interval(d)
        assert np.isclose(high - low, t.high - t.low, rtol=0.01) and abs(low - t.low) < 0.25 * (t.high - t.low)


def test_the_variance_is_the_sum_of_its_parts():
    rng = np.random.default_rng(0)
    for seeds, people, rest in WORLDS:
        found = [standard_error(world(rng, 8, 30, seeds, people, rest))[0] ** 2 for _ in range(300)]
        assert np.isclose(np.mean(found), seeds**2 / 8 + people**2 / 30 + rest**2 / 240, rtol=0.15)


def test_nothing_differs():
    zero = np.zeros((5, 8))
    assert bootstrap_interval(zero) == (0, 0) and p_value(zero) == 1 and smallest_difference(zero) == 0
    assert np.isnan(effect_size(zero)) and np.isnan(effect_size(np.ones((5, 1))))
    same = verdict(dice_rows(lambda a, s, c: 0.4))
    assert same[0]["verdict"] == "no difference shown" and "no difference" in verdict_table(same)


def test_same_seed_same_interval():
    d = np.random.default_rng(0).normal(size=(3, 4))
    assert bootstrap_interval(d) == bootstrap_interval(d) != bootstrap_interval(d, seed=1)
    means = bootstrap_means(d)
    assert np.isclose(np.ptp(np.percentile(means, [2.5, 97.5])), np.subtract(*bootstrap_interval(d)[::-1]))


def test_many_people_do_not_make_up_for_few_seeds():
    rng = np.random.default_rng(0)

    def width(n_seeds, n_people):
        found = [bootstrap_interval(world(rng, n_seeds, n_people, 1, 0.1, 0.1), n_resamples=500) for _ in range(20)]
        return np.mean([high - low for low, high in found])

    assert width(5, 20) > 0.8 * width(5, 5) and width(5, 20) > 1.5 * width(20, 20) > 0.3














def test_holm_against_its_definition():
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 9):
        p = rng.random(n) ** 3
        corrected = np.array(holm(p.tolist()))
        for level in (0.01, 0.05, 0.2, 0.5):
            rejected = np.zeros(n, bool)  # step down, until one is not small enough
            for k, i in enumerate(np.argsort(p)):
                if p[i] * (n - k) >= level:
                    break
                rejected[i] = True
            assert ((corrected < level) == rejected).all()
    assert holm([]) == []


def grade_rows(predicted, grades, arm="scratch", seed=0, label_fraction=1.0):
    return [
        {"arm": arm, "label_fraction": label_fraction, "seed": seed, "subject": f"p{i:03d}"}
        | {"metric": "kappa of grade", "grade": int(g), "predicted": int(p)}
        for i, (p, g) in enumerate(zip(predicted, grades))
    ]


def test_kappa_by_person_is_kappa():
    rng = np.random.default_rng(0)
    grades = rng.integers(5, size=80)
    rows = []
    for arm, noise in (("scratch", 3), ("x", 1)):
        for seed in range(5):
            rows += grade_rows(np.clip(grades + rng.integers(-noise, noise + 1, size=80), 0, 4), grades, arm, seed)
    for row in rows:  # every fourth person has two eyes
        i = int(row["subject"][1:])
        row["subject"] = f"p{i - 1:03d}" if i % 4 == 1 else row["subject"]
    for arm in ("scratch", "x"):
        table = arm_rows(rows, arm, 1.0)
        matrix = score_matrix(table, *in_common(table))
        assert matrix.shape == (5, 60)
        for seed, people in enumerate(matrix):
            answers, truth = (np.array([r[k] for r in table if r["seed"] == seed]) for k in ("predicted", "grade"))
            assert np.isclose(people.mean(), grading_scores(answers, truth, 5)["kappa"])
    (answer,) = verdict(rows)
    assert answer["metric"] == "kappa" and answer["verdict"] == "better" and answer["subjects"] == 60
    assert np.isclose(answer["difference"], answer["score"] - answer["baseline_score"])
    assert "quadratic weighted kappa" in verdict_table([answer])


def test_r2_by_person_is_r2():
    rng = np.random.default_rng(0)
    ages = rng.uniform(20, 80, size=40)
    rows = [
        {"arm": arm, "label_fraction": 0.1, "seed": s, "subject": f"p{i:02d}", "case": f"c{i}"}
        | {"metric": "R² of age", "age": age, "guess": age + off}
        for arm, noise in (("scratch", 12), ("x", 6))
        for s in range(5)
        for i, (age, off) in enumerate(zip(ages, rng.normal(size=40) * noise))
    ]
    for arm in ("scratch", "x"):
        table = arm_rows(rows, arm, 0.1)
        for seed, people in enumerate(score_matrix(table, *in_common(table))):
            mine = [r for r in table if r["seed"] == seed]
            assert np.isclose(people.mean(), age_scores([r["guess"] for r in mine], [r["age"] for r in mine])["r2"])
    (answer,) = verdict(rows)
    assert answer["metric"] == "R²" and answer["verdict"] == "better"
    assert "share of the variance" in verdict_table([answer])
    twice = rows + [r | {"case": r["case"] + "b"} for r in rows if r["subject"] < "p10"]  # ten have a second scan
    assert verdict(twice)[0]["difference"] == pytest.approx(answer["difference"], rel=0.1)
    same = [r | {"age": 50.0} for r in rows]
    assert verdict(same)[0]["verdict"] == "nothing can be said"


def test_the_jackknife_knows_how_kappa_varies():
    """Its standard error is that of kappa over new people, which is drawn here."""
    rng = np.random.default_rng(0)

    def draw():
        grades = np.repeat(rng.integers(5, size=40), 2)  # two eyes of forty people, alike
        errors = np.repeat(rng.integers(-1, 2, size=40), 2) + rng.integers(-1, 2, size=80)
        rows = grade_rows(np.clip(grades + errors, 0, 4), grades)
        return [row | {"subject": f"p{i // 2}"} for i, row in enumerate(rows)]

    found = [score_matrix(table, *in_common(table)) for table in (draw() for _ in range(200))]
    assert np.isclose(np.mean([standard_error(d)[0] for d in found]), np.std([d.mean() for d in found]), rtol=0.15)


def test_the_effect_is_in_units_of_people():
    d = np.array([[0.1, 0.3, 0.2], [0.3, 0.5, 0.4]])
    assert np.isclose(effect_size(d), 0.3 / 0.1) and np.isclose(effect_size(-d), -3)


def test_words_go_by_the_corrected_value():
    rng = np.random.default_rng(3)
    noise = {a: world(rng, 5, 20, 0.005, 0.01, 0.05) for a in "sabcde"}
    gain = {"s": 0.5, "a": 0.53, "b": 0.5, "c": 0.5, "d": 0.5, "e": 0.5}
    many = verdict(dice_rows(lambda a, s, c: gain[a] + noise[a][s, c], arms="sabcde", people=20))
    alone = verdict(dice_rows(lambda a, s, c: gain[a] + noise[a][s, c], arms="sa", people=20))
    assert many[0]["arm"] == alone[0]["arm"] == "a" and many[0]["p"] >= alone[0]["p"]
    assert many[0]["smallest"] > alone[0]["smallest"] and many[0]["low"] == alone[0]["low"]
    few = verdict(dice_rows(lambda a, s, c: 0.1 * (a == "x") + 0.001 * c * s * (a == "x"), seeds=4))
    assert few[0]["verdict"] == "better here, but too few seeds to claim it"
    more = verdict(dice_rows(lambda a, s, c: 0.1 * (a == "x") + 0.001 * c * s * (a == "x"), seeds=6))
    assert more[0]["verdict"] == "better"
    worse = verdict(dice_rows(lambda a, s, c: -0.1 * (a == "x") - 0.001 * c * (a == "x")))
    assert worse[0]["verdict"] == "worse"


def test_the_first_arm_or_another_is_the_baseline():
    rows = dice_rows(lambda a, s, c: 0.1 * ("s", "a", "b").index(a), arms=("s", "a", "b"), label_fractions=(0.1, 1.0))
    assert [(a["label_fraction"], a["arm"], a["baseline"]) for a in verdict(rows)] == [
        (0.1, "a", "s"), (0.1, "b", "s"), (1.0, "a", "s"), (1.0, "b", "s")]  # fmt: skip
    assert [a["arm"] for a in verdict(rows, "b")] == ["s", "a"] * 2
    assert "no two arms" in verdict_table(verdict(dice_rows(lambda a, s, c: 0.1, arms=("s",))))
    partly = [r for r in rows if not (r["arm"] == "b" and r["label_fraction"] == 1.0)]
    assert [(a["label_fraction"], a["arm"]) for a in verdict(partly)] == [(0.1, "a"), (0.1, "b"), (1.0, "a")]


# Trainings that failed


def masks_of(dice, arms=("scratch", "x"), seeds=5, people=6, folds=("",)):
    """Rows of two classes; `dice` of arm, seed, person and class."""
    return [
        {"arm": a, "label_fraction": 0.1, "seed": s, "fold": f, "subject": f"p{c}{f}", "case": f"c{c}{f}", "class": k}
        | {"metric": "Dice", "dice": dice(a, s, c, k)}
        for f in folds for a in arms for s in range(seeds) for c in range(people) for k in ("large", "small")
    ]  # fmt: skip


def test_a_class_that_is_never_predicted_is_counted_apart():
    rows = masks_of(lambda a, s, c, k: 0.0 if (a, s, k) == ("x", 4, "small") else 0.8)
    (failed,) = failed_trainings(rows)
    assert failed == {"arm": "x", "label_fraction": 0.1, "seed": 4, "fold": "", "missed": ["small"]}
    said = "1 of 5 trainings never predicted small: mean with it 0.720, without 0.800"
    assert failures(rows, "x", 0.1) == said and failures(rows, "scratch", 0.1) == ""
    (answer,) = verdict(rows)
    assert said in verdict_table([answer]) and said in in_words(answer)
    flipped = verdict([row | {"arm": {"x": "scratch", "scratch": "x"}[row["arm"]]} for row in rows], "scratch")
    assert f"scratch, {said}" in verdict_table(flipped) and f"Of scratch, {said}" in in_words(flipped[0])
    twice = verdict_table(verdict(rows + [row | {"arm": "y"} for row in rows if row["arm"] == "scratch"], "x"))
    assert twice.count(said) == 1, "the baseline's is said once"


def test_who_does_not_have_a_class_does_not_count():
    def dice(a, s, c, k):
        if k == "small" and c >= 2:  # nobody but the first two has it: 1 where it is not marked, 0 where it is
            return 0.0 if (a, c) == ("x", 3) else 1.0
        return 0.0 if (a, s, k) == ("scratch", 1, "small") else 0.7

    (failed,) = failed_trainings(masks_of(dice))
    assert (failed["arm"], failed["seed"], failed["missed"]) == ("scratch", 1, ["small"])
    assert not failed_trainings(masks_of(lambda a, s, c, k: 1.0 if k == "small" else 0.5)), "nobody has it"
    assert not failed_trainings(masks_of(lambda a, s, c, k: 0.0 if c else 0.2)), "one person is enough"


def test_folds_are_trainings_of_their_own_and_nothing_may_be_left():
    rows = masks_of(lambda a, s, c, k: 0.5, folds=(0, 1))
    rows = [row | {"dice": 0.0} if (row["arm"], row["seed"], row["fold"]) == ("x", 0, 1) else row for row in rows]
    said = failures(rows, "x", 0.1)
    assert said == "1 of 10 trainings never predicted large or small: mean with it 0.450, without 0.500"
    said = failures(masks_of(lambda a, s, c, k: 0.0, arms=["x"], seeds=2), "x", 0.1)
    assert said.startswith("2 of 2 trainings never predicted large or small") and "none is left" in said


def test_one_answer_for_everybody_is_no_small_kappa_or_r2(tmp_path):
    grades = [{"arm": a, "label_fraction": 1.0, "seed": s, "fold": "", "subject": f"p{c}", "case": f"c{c}",
               "grade": c % 3, "predicted": 2 if (a, s) == ("x", 1) else c % 3, "metric": "kappa of grade"}
              for a in ("scratch", "x") for s in range(3) for c in range(9)]  # fmt: skip
    assert [(f["arm"], f["seed"]) for f in failed_trainings(grades)] == [("x", 1)]
    assert "1 of 3 trainings" in failures(grades, "x", 1.0) and "without 1.000" in failures(grades, "x", 1.0)
    ages = [{"arm": a, "label_fraction": 1.0, "seed": s, "fold": "", "subject": f"p{c}", "case": f"c{c}", "age": 30 + c,
             "guess": 33.0 if (a, s) == ("x", 1) else 30 + 0.9 * c, "metric": "R² of age"}
            for a in ("scratch", "x") for s in range(3) for c in range(9)]  # fmt: skip
    assert [(f["arm"], f["seed"]) for f in failed_trainings(ages)] == [("x", 1)]
    alone = [row for row in ages if row["arm"] == "x"]
    write_table(tmp_path / "results.csv", alone)
    assert "1 of 3 trainings never predicted any answer but one" in keep_answer(alone, tmp_path), "one arm only"
    assert "1 of 3 trainings" in (tmp_path / "report.html").read_text()


@pytest.mark.quick
def test_seeds_that_test_their_own_people_count_one_number_each():
    """Halves are drawn anew for each seed: what differs between seeds decides, and how many people there are does not.

    The interval is that of Student's t over the seeds' means.
    """
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(60):
        rows = []
        for seed in range(5):
            luck = rng.normal(0, 0.03)
            rows += [{"arm": arm, "label_fraction": 1.0, "seed": seed, "subject": f"p{person}", "metric": "Dice",
                      "dice": 0.5 + 0.001 * person + (luck if arm == "x" else 0)}
                     for person in rng.choice(159, 40, replace=False) for arm in ("scratch", "x")]
        (answer,) = verdict(rows)
        each = [np.mean([r["dice"] * (1 if r["arm"] == "x" else -1) * 2 for r in rows if r["seed"] == s])
                for s in range(5)]
        half = stats.t.ppf(0.975, 4) * np.std(each, ddof=1) / np.sqrt(5)
        assert np.isclose(answer["difference"], np.mean(each)) and answer["seeds"] == 5
        assert np.isclose(answer["high"] - answer["low"], 2 * half, rtol=1e-6)
        assert answer["subjects"] == len({r["subject"] for r in rows}) > 100
        alarms += answer["p"] < 0.05
    assert alarms <= 8, "of 60 experiments without any difference; 3 are expected"


@pytest.mark.quick
def test_people_who_are_missing_in_a_seed_are_still_left_out():
    rows = [{"arm": arm, "label_fraction": 1.0, "seed": seed, "subject": f"p{k}", "metric": "Dice", "dice": 0.1 * k}
            for arm in ("scratch", "x") for seed in range(3) for k in range(1, 7) if (seed, k) != (1, 3)]
    one, _ = paired(rows, "x", "scratch", 1.0)
    assert one.shape == (3, 5), "not one column"
