"""Statistics: pairs, intervals that keep what they promise, corrections, kappa by person."""

import random

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import ROOT
from scipy import stats

from ssl3d.downstream.metrics import age_scores, grading_scores, read_scores
from ssl3d.errors import InputError
from ssl3d.evidence.report import in_words, keep_answer
from ssl3d.evidence.statistics import (
    arm_rows,
    bootstrap_interval,
    bootstrap_means,
    compare_distances,
    control_in_words,
    effect_size,
    failed_trainings,
    failures,
    foreseen,
    foreseen_in_words,
    holm,
    in_common,
    interval_of_pairs,
    p_equivalent,
    p_value,
    paired,
    score_matrix,
    scores_by_class,
    smallest_difference,
    spread_in,
    standard_error,
    surface_answers,
    surface_table,
    table_one,
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
@pytest.mark.parametrize("shape", [(2, 6), (3, 7), (5, 45)])
def test_equal_scores_have_an_interval_of_no_width(value, shape, tmp_path, monkeypatch):
    d = np.full(shape, value)
    low, high = bootstrap_interval(d)
    assert low <= d.mean() <= high and np.isclose(low, high) and smallest_difference(d) == 0
    assert p_value(d) == (1 if value == 0 else 0)
    rows = dice_rows(lambda a, s, c: value, seeds=shape[0], people=shape[1])
    write_table(tmp_path / "results.csv", rows)
    if value != 1 / 3:  # the others are drawn, too, but not painted: it would take a second each
        monkeypatch.setattr(plt, "savefig", lambda file, **how: file.write(b"a picture"))
    said = keep_answer(rows, tmp_path)
    word = "equivalent within 0.02" if value > 0 else "nothing learned"
    assert (word if shape[0] > 2 else "too few seeds") in said


def test_one_person_is_student_over_seeds_and_one_seed_tells_nothing():
    rng = np.random.default_rng(0)
    d = rng.normal(0.3, 1, (20, 1))
    error, weight = standard_error(d)
    assert np.isclose(error, stats.sem(d.ravel())) and weight == 1
    t = stats.ttest_1samp(d.ravel(), 0).confidence_interval()
    low, high = bootstrap_interval(d)
    assert np.isclose(high - low, t.high - t.low, rtol=0.01) and abs(low - t.low) < 0.25 * (t.high - t.low)
    alone = rng.normal(0.3, 0.01, (1, 200))
    told = [*bootstrap_interval(alone), p_value(alone), p_equivalent(alone, 1), smallest_difference(alone)]
    assert np.isnan(told).all()


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
    assert same[0]["verdict"] == "equivalent within 0.02" and "equivalent within 0.02" in verdict_table(same)


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
    for seeds, word in ((1, "nothing can be said"), (2, "too few seeds"), (3, "better"), (6, "better")):
        found = verdict(dice_rows(lambda a, s, c: 0.1 * (a == "x") + 0.001 * c * s * (a == "x"), seeds=seeds))
        assert found[0]["verdict"] == word, "one seed has no interval, and two are too few"
        assert np.isnan(found[0]["low"]) == (seeds == 1)
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


# What was declared


def test_only_declared_comparisons_have_a_verdict_and_are_corrected_for():
    noise = world(np.random.default_rng(0), 5, 10, 0.01, 0.01, 0.01)
    gains = {"s": 0.0, "a": 0.03, "b": 0.3, "c": 0.0}
    rows = dice_rows(lambda a, s, c: 0.5 + gains[a] + (a != "s") * noise[s, c], arms="sabc", label_fractions=(0.1, 1.0))
    everything = verdict(rows)
    declared = verdict(rows, primary=[(0.1, "a"), (1.0, "b")])
    assert {a["comparisons"] for a in everything} == {6} and {a["comparisons"] for a in declared} == {2}
    words = {(a["label_fraction"], a["arm"]): a["verdict"] for a in declared}
    assert words.pop((0.1, "a")) != "exploratory" and words.pop((1.0, "b")) == "better"
    assert set(words.values()) == {"exploratory"}, "a large gain, too, where nothing was declared of it"
    one, other = (
        next(a for a in found if (a["label_fraction"], a["arm"]) == (0.1, "a")) for found in (declared, everything)
    )
    assert one["p"] < other["p"] and (one["low"], one["high"]) == (other["low"], other["high"])
    assert one["smallest"] < other["smallest"], "fewer comparisons see more"
    assert all(np.isnan(a["p"]) for a in declared if a["role"] == "exploratory")
    assert "2 declared comparisons" in verdict_table(declared) and "all 6 comparisons" in verdict_table(everything)


def test_equivalent_goes_by_the_interval_and_the_delta():
    noise = world(np.random.default_rng(1), 5, 40, 0.002, 0.002, 0.01)
    rows = dice_rows(lambda a, s, c: 0.5 + (a == "x") * (0.006 + noise[s, c]), people=40)
    (answer,) = verdict(rows)
    assert 0 < answer["low"] and answer["high"] < 0.02 and answer["verdict"] == "equivalent within 0.02"
    assert answer["p"] < 0.05, "shown to differ, and by less than matters"
    (fine,) = verdict(rows, delta=0.005)
    assert fine["verdict"] == "better" and fine["delta"] == 0.005
    (blind,) = verdict(dice_rows(lambda a, s, c: 0.5 + (a == "x") * 0.1 * (-1) ** s))
    assert blind["verdict"] == "inconclusive" and blind["smallest"] > 0.1
    for delta in (0.001, 0.02, 0.1, 1):
        d = noise + 0.006
        low, high = bootstrap_interval(d)
        assert (p_equivalent(d, delta) < 0.05) == (-delta < low and high < delta)
        assert np.isclose(p_equivalent(d, delta), p_equivalent(-d, delta), atol=0.01), "either way"


def test_equivalence_is_as_hard_to_show_for_a_loss_as_for_a_gain():
    """At a δ that is just missed: the side on which the mean lies decides, whichever it is."""
    d = world(np.random.default_rng(1), 5, 40, 0.002, 0.002, 0.01) + 0.006
    delta = (d.mean() + bootstrap_interval(d)[1]) / 2
    assert 0.05 < p_equivalent(d, delta) < 0.5 and 0.05 < p_equivalent(-d, delta) < 0.5
    assert np.isclose(p_equivalent(d, delta), p_equivalent(-d, delta), atol=0.05)


def test_a_control_costs_no_other_comparison_anything():
    noise = world(np.random.default_rng(0), 5, 10, 0.01, 0.01, 0.01)
    gains = {"s": 0.0, "a": 0.015, "k": 0.001}
    rows = dice_rows(lambda a, s, c: 0.5 + gains[a] + (a != "s") * noise[s, c], arms="sak")
    (alone,) = verdict([row for row in rows if row["arm"] != "k"])
    beside = verdict(rows, control="k")[0]
    assert beside == alone and 0 < alone["p"] < 1, "the control is no claim that would be corrected for"


def test_a_control_is_no_claim_and_says_whether_a_gain_could_be_seen():
    gains = {"s": 0, "a": 0.001, "k": 0.1}
    rows = dice_rows(lambda a, s, c: 0.5 + gains[a] + 0.002 * (a == "k") * (-1) ** s, arms="sak")
    found = verdict(rows, control="k")
    assert [(a["arm"], a["role"], a["comparisons"]) for a in found] == [("a", "primary", 1), ("k", "control", 1)]
    assert found[1]["verdict"] == "control: a gain above 0.02 was shown"
    assert control_in_words(found, "k").startswith("This set-up can see a gain: its control, k, differs by +0.1")
    for gain, seeds in ((0.021, 5), (0.01, 5), (0.1, 2), (0.1, 1), (-0.1, 5)):
        rows = dice_rows(lambda a, s, c, g=gain: 0.5 + (a == "k") * (g + 0.002 * (-1) ** s), arms="sk", seeds=seeds)
        assert "was not shown to be able to see a gain" in control_in_words(verdict(rows, control="k"), "k"), gain
    assert "has no results" in control_in_words(found, "lost") and control_in_words(found, None) == ""


def test_a_control_of_several_shares_is_corrected_for_them():
    rng, said = np.random.default_rng(0), 0
    for _ in range(100):  # its true gain is delta, no more
        noise = {share: world(rng, 5, 20, 0.01, 0.01, 0.02) for share in (0.1, 0.2, 0.3, 0.4, 0.5)}
        rows = [{"arm": arm, "label_fraction": share, "seed": seed, "subject": f"p{person}", "metric": "Dice",
                 "dice": 0.5 + (arm == "k") * (0.02 + noise[share][seed, person])}
                for arm in "sk" for share in noise for seed in range(5) for person in range(20)]  # fmt: skip
        said += control_in_words(verdict(rows, control="k"), "k").startswith("This set-up can see")
    assert said <= 8, "of 100; the largest of five intervals without correction would have about 12"


def test_who_learned_nothing_is_not_equivalent():
    rows = dice_rows(lambda a, s, c: 0.0)
    (answer,) = verdict(rows)
    assert answer["verdict"] == "nothing learned" and "equivalent" not in in_words(answer)
    (once,) = verdict(dice_rows(lambda a, s, c: 0.0 if (a, s) == ("x", 0) else 0.5))
    assert once["verdict"] == "inconclusive", "one failed training of five is counted, and the others stand"


def test_what_is_foreseen_comes_true():
    rng = np.random.default_rng(0)
    for parts in ((0.03, 0.0, 0.02), (0.2, 0.3, 0.6)):
        d = [world(rng, 5, 40, *parts) for _ in range(200)]
        spread = np.sqrt(np.mean([np.square(spread_in(each)) for each in d], axis=0))
        assert np.allclose(spread, parts, rtol=0.15, atol=0.005)
    for metric in ("Dice", "kappa", "R²"):
        few, many = foreseen(metric, 3, 20), foreseen(metric, 10, 200)
        assert all(many[where] < few[where] < foreseen(metric, 3, 20, 3)[where] for where in few)
    assert "no verdict is possible" in foreseen_in_words("Dice", 2, 40)
    assert "5 seeds" in foreseen_in_words("Dice", 5, 40)


@pytest.mark.parametrize("comparisons", [1, 4])
def test_what_is_detectable_has_a_power_of_80_percent(comparisons):
    """For one person alone it is the sum of two of Student's factors over seeds: of the level, and of the power."""
    d = np.random.default_rng(0).normal(0.3, 1, (12, 1))
    factors = stats.t.ppf([1 - 0.025 / comparisons, 0.8], 11)
    assert smallest_difference(d, comparisons) == pytest.approx(stats.sem(d.ravel()) * factors.sum())


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


# Surfaces, regions, and what was missed


def surface_rows(score, distance, arms=("scratch", "x"), seeds=4, people=6, classes="ab"):
    """Rows of masks; `score` and `distance` are functions of arm, seed, person and class."""
    return [
        {"arm": a, "label_fraction": 0.1, "seed": s, "subject": f"p{c}", "case": f"c{c}", "class": k, "metric": "Dice",
         "dice": 0.5, "surface_dice": score(a, s, c, k), "hausdorff95": distance(a, s, c, k)}
        for a in arms for s in range(seeds) for c in range(people) for k in classes
    ]


def test_surface_dice_is_paired_as_dice_is_and_a_miss_stays_in():
    rng = random.Random(0)
    noise = {(a, s, c, k): rng.random() for a in ("scratch", "x") for s in range(4) for c in range(6) for k in "ab"}
    rows = surface_rows(lambda *key: 0.0 if key[0] == "x" and key[2] == 1 else noise[key], lambda *key: 1.0)
    (answer,) = surface_answers(rows)
    as_dice = [{**row, "dice": row["surface_dice"]} for row in rows]
    (same,) = verdict(as_dice)
    for name in ("score", "baseline_score", "difference", "low", "high", "seeds", "subjects"):
        assert answer[name] == same[name], name
    mine = [row["surface_dice"] for row in rows if row["arm"] == "x"]
    assert np.isclose(answer["score"], np.mean(mine)) and answer["subjects"] == 6 and mine.count(0) == 8
    (back,) = surface_answers(rows, baseline="x")
    assert np.isclose(back["difference"], -answer["difference"]) and back["arm"] == "scratch"
    with pytest.raises(InputError, match="no surface_dice"):
        surface_answers([{name: value for name, value in row.items() if name != "surface_dice"} for row in rows])


def test_distances_are_compared_where_both_have_the_region_and_misses_are_counted():
    """x is nearer by 2 mm wherever it has the region; it misses the two hardest people's b, and scratch one seed's."""
    def distance(arm, seed, person, name):
        if name == "b" and (person >= 4 if arm == "x" else (seed, person) == (3, 0)):
            return np.inf
        if person == 3 and name == "a":
            return np.nan  # nobody has it
        return 10.0 + 5 * person - 2 * (arm == "x") + 0.1 * seed

    rows = surface_rows(lambda *key: 1.0, distance)
    a, b = compare_distances(rows, "x", "scratch", 0.1)
    assert (a["class"], a["pairs"], a["of"], a["missed"], a["baseline_missed"]) == ("a", 20, 24, 0, 0)
    assert (b["class"], b["pairs"], b["of"], b["missed"], b["baseline_missed"]) == ("b", 15, 24, 8, 1)
    for found in (a, b):
        assert np.isclose(found["difference"], -2) and np.isclose(found["low"], -2) and np.isclose(found["high"], -2)
        assert np.isclose(found["distance"] - found["baseline_distance"], -2), "the same people on both sides"
    assert b["baseline_distance"] < 20, "the people whom x missed are hard, and in neither mean"
    priced = compare_distances(rows, "x", "scratch", 0.1, missed=374)
    assert [each["pairs"] for each in priced] == [24, 24] and [each["missed"] for each in priced] == [0, 8]
    assert np.isclose(priced[0]["difference"], -2 * 5 / 6), "0 mm where nobody has the region, as in the challenges"
    by_hand = [[374 if np.isinf(d := distance(arm, s, c, "b")) else d for s in range(4)] for arm in ("x", "scratch")
               for c in range(6)]
    assert np.isclose(priced[1]["difference"], np.mean(by_hand[:6]) - np.mean(by_hand[6:]))
    swapped = compare_distances(rows, "scratch", "x", 0.1)[1]
    assert np.isclose(swapped["difference"], 2) and (swapped["missed"], swapped["baseline_missed"]) == (1, 8)


def test_a_region_that_nobody_has_in_common_has_no_distance_and_one_seed_no_interval():
    rows = surface_rows(lambda *key: 0.0, lambda arm, *key: np.inf if arm == "x" else 3.0, classes="a")
    (found,) = compare_distances(rows, "x", "scratch", 0.1)
    assert found["pairs"] == 0 and np.isnan(found["difference"]) and found["missed"] == 24 and np.isnan(found["low"])
    rows = surface_rows(lambda *key: 0.5, lambda arm, s, c, k: c + (arm == "x") * c / 10, seeds=1)
    found = compare_distances(rows, "x", "scratch", 0.1)[0]
    assert np.isclose(found["difference"], 0.25) and np.isnan([found["low"], found["high"]]).all()
    assert " - " in surface_table(rows), "no interval from one seed"


@pytest.mark.parametrize("left_out", [0.0, 0.4])
def test_intervals_of_pairs_keep_what_they_promise(left_out):
    """About 95 % of them hold the true difference, or more, whatever seeds and people do, and with pairs missing."""
    rng = np.random.default_rng(0)
    for seeds, people, rest in WORLDS:
        hit = 0
        for _ in range(300):
            differences = world(rng, 5, 12, seeds, people, rest, effect=0.3)
            keys = [(s, f"p{p}") for s in range(5) for p in range(12)]
            kept = {key: [differences[key[0], int(key[1][1:])]] for key in keys if rng.random() >= left_out}
            middle, low, high = interval_of_pairs(kept)
            assert low <= middle <= high
            hit += low <= 0.3 <= high
        assert hit >= 275, (seeds, people, rest, hit)


def test_each_person_counts_once_in_the_mean_of_pairs():
    pairs = {(0, "a"): [1.0], (1, "a"): [1.0], (2, "a"): [1.0, 1.0], (0, "b"): [4.0], (1, "c"): [4.0]}
    assert interval_of_pairs(pairs)[0] == 3, "not the mean of the six pairs"


def test_surface_table_says_what_a_table_has(tmp_path):
    rows = surface_rows(lambda a, *key: 0.25 if a == "x" else 0.5, lambda a, s, c, k: np.inf if c == 0 else 4.0)
    text = surface_table(rows)
    assert "Surface Dice; the baseline is scratch" in text and "0.250" in text and "-0.250" in text
    assert "20 of 24" in text and "where both have the region" in text
    assert "a miss costs 374 mm" in surface_table(rows, missed=374) and "24 of 24" in surface_table(rows, missed=374)
    old = [{k: v for k, v in row.items() if k != "surface_dice"} for row in rows]
    assert "Surface Dice" not in surface_table(old) and "20 of 24" in surface_table(old)
    bare = [{k: v for k, v in row.items() if k != "hausdorff95"} for row in old]
    assert surface_table(bare) == surface_table([]) == ""
    write_table(tmp_path / "results.csv", rows)
    assert surface_table(read_scores(tmp_path / "results.csv")) == text, "as it is kept"
    for file in ("brats/results.csv", "lesson_brain_tumour/results.csv", "hippocampus/results.csv.gz"):
        committed = read_scores(ROOT / "results" / file)
        assert bool(surface_table(committed)) == ("hausdorff95" in committed[0]), "tables of before stay readable"


def test_table_one_has_the_papers_columns_and_means_over_seeds():
    value = {"WT": 0.9, "TC": 0.5, "ET": 0.1, "RC": 0.3}
    rows = [
        row | {"dice": value[row["class"]] + 0.1 * (row["arm"] == "x") + 0.01 * row["seed"], "class": row["class"]}
        for row in surface_rows(lambda *key: 1.0, lambda *key: 1.0, classes=("WT", "TC", "ET", "RC"), seeds=3)
    ]
    text = table_one(rows)
    head, scratch, x = text.splitlines()
    assert head.split() == ["labels", "method", "ET", "WT", "TC", "RC"] and scratch.split()[1] == "scratch"
    assert scratch.split()[2] == "11.0" and x.split()[2] == "21.0" and " to 100.0)" in x, "scores end at 100"
    found = {(each["arm"], each["class"]): each for each in scores_by_class(rows)}
    assert len(found) == 8 and np.isclose(found["x", "TC"]["score"], 0.61) and found["x", "TC"]["seeds"] == 3
    assert found["x", "TC"]["low"] < 0.6 < 0.62 < found["x", "TC"]["high"]
    one = [row for row in rows if row["seed"] == 0]
    assert "(" not in table_one(one) and all(np.isnan(each["low"]) for each in scores_by_class(one)), "no interval"
    assert table_one([]) == "" and table_one(dice_rows(lambda *key: 0.5)).splitlines()[0].split()[2:] == ["a", "b"]
    graded = [{"arm": "scratch", "label_fraction": 1.0, "seed": 0, "subject": "p", "metric": "kappa of grade"}]
    assert table_one(graded) == ""


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
def test_regions_and_surfaces_of_seeds_that_test_their_own_people(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    rows = [{"arm": arm, "label_fraction": 1.0, "seed": seed, "fold": "", "subject": f"p{person}", "case": f"c{person}",
             "class": name, "metric": "Dice", "dice": 0.5 + 0.1 * seed, "surface_dice": 0.5, "hausdorff95": 2.0}
            for seed in range(5) for person in rng.choice(155, 40, replace=False) for arm in ("scratch", "x")
            for name in "ab"]  # fmt: skip
    assert not in_common(rows)[1], "nobody is tested in every seed"
    for each in scores_by_class(rows):
        assert np.isclose(each["score"], 0.7) and each["seeds"] == 5 and each["subjects"] > 100
    assert {each["subjects"] for each in surface_answers(rows)} == {len({row["subject"] for row in rows})}
    write_table(tmp_path / "results.csv", rows)
    monkeypatch.setattr(plt, "savefig", lambda file, **how: file.write(b"a picture"))
    keep_answer(rows, tmp_path)
    assert "70.0" in (tmp_path / "report.html").read_text()


@pytest.mark.quick
def test_people_who_are_missing_in_a_seed_are_still_left_out():
    rows = [{"arm": arm, "label_fraction": 1.0, "seed": seed, "subject": f"p{k}", "metric": "Dice", "dice": 0.1 * k}
            for arm in ("scratch", "x") for seed in range(3) for k in range(1, 7) if (seed, k) != (1, 3)]
    one, _ = paired(rows, "x", "scratch", 1.0)
    assert one.shape == (3, 5), "not one column"
