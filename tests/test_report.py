"""Curves and the report: drawn from the numbers, one page, nothing from outside, whatever is missing."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import ROOT

from ssl3d.downstream.metrics import read_scores
from ssl3d.evidence.answer import Answer
from ssl3d.evidence.curves import (
    convergence,
    convergence_per_method,
    data_efficiency,
    loss_curves,
    losses_of,
    per_method,
)
from ssl3d.evidence.report import (
    html_report,
    in_short,
    in_words,
    keep_answer,
    page_line,
    poor_baseline,
    show_page,
    speed_in_words,
)
from ssl3d.evidence.statistics import control_in_words, steps_to_reach, surface_table, verdict, verdict_table
from ssl3d.files import write_table


def rows_of(arms, label_fractions=(0.1, 1.0), seeds=3, people=4, gain=0.0):
    rng = np.random.default_rng(0)
    return [
        {"arm": a, "label_fraction": sh, "seed": s, "fold": "", "subject": f"p{p}", "case": f"c{p}", "class": "x",
         "metric": "Dice", "dice": 0.4 + gain * (i > 0) + 0.02 * rng.normal(), "hausdorff95": 1.0}
        for i, a in enumerate(arms) for sh in label_fractions for s in range(seeds) for p in range(people)
    ]  # fmt: skip


def learning_curves_of(arms, paces, label_fraction=0.1, seeds=3):
    return [
        {"arm": a, "label_fraction": label_fraction, "seed": s, "fold": "", "step": t,
         "score": min(0.8, 0.8 * t / pace)}
        for a, pace in zip(arms, paces) for s in range(seeds) for t in range(0, 101, 10)
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_points_and_intervals_are_those_of_the_table():
    rows = rows_of(["scratch", "a", "b"])
    left, right = data_efficiency(rows)
    answers = {(a["label_fraction"], a["arm"]): a for a in verdict(rows)}
    lines = {line.get_label(): line for line in left.lines if not line.get_label().startswith("_")}
    assert {"scratch", "a", "b"} <= set(lines)
    drawn = sorted(float(c.lines[0].get_ydata()[0]) for c in right.containers)
    assert np.allclose(drawn, sorted(a["difference"] for a in answers.values()))
    ends = sorted(tuple(seg[:, 1]) for c in right.containers for seg in c.lines[2][0].get_segments())
    assert np.allclose(ends, sorted((a["low"], a["high"]) for a in answers.values()))
    assert "3 seeds" in left.get_title() and "4 test subjects" in right.get_title()


@pytest.mark.parametrize("arms", [["scratch"], ["scratch", "a"], ["scratch", "scratch 2D", "a", "a 2D", "b"],
                                  [f"arm {i}" for i in range(12)]])  # fmt: skip
def test_any_arms_can_be_drawn(arms):
    rows = rows_of(arms, seeds=1)
    data_efficiency(rows)
    panels = per_method(rows)
    tasks = {a.removesuffix(" 2D") for a in arms} - {arms[0]} or {arms[0]}
    assert [ax.get_title() for ax in panels] and {ax.get_title() for ax in panels} == tasks
    plt.gcf().canvas.draw()


def test_who_is_faster():
    learning_curves = learning_curves_of(["scratch", "fast", "never"], [100, 50, 400])
    assert steps_to_reach(learning_curves, "fast", "scratch", 0.1) == {0: 50, 1: 50, 2: 50}
    assert "in 3 of 3 seeds, at step 50 in the median" in speed_in_words(learning_curves, "fast", "scratch", 0.1)
    assert speed_in_words(learning_curves, "never", "scratch", 0.1).endswith("in 0 of 3 seeds.")
    ax = convergence(learning_curves, 0.1)
    marks = [line for line in ax.lines if line.get_marker() == "^" and len(line.get_xdata()) == 1]
    assert [float(m.get_xdata()[0]) for m in marks] == [50], "the one that never gets there has no mark"
    folds = [t | {"fold": f, "score": t["score"] + 0.1 * f} for t in learning_curves for f in (0, 1)]
    assert steps_to_reach(folds, "fast", "scratch", 0.1) == {0: 50, 1: 50, 2: 50}, "folds are averaged"
    worse = [t | {"score": 0.4} if (t["arm"], t["step"]) == ("scratch", 100) else t for t in learning_curves]
    assert steps_to_reach(worse, "fast", "scratch", 0.1) == {0: 30, 1: 30, 2: 30}, "its end, not its best step"


@pytest.mark.parametrize("steps", [{"scratch": 0, "a": 0}, {"scratch": 30, "a": 30}, {"scratch": 0, "a": 25}, None])
def test_what_was_frozen_is_shaded_and_said(tmp_path, monkeypatch, steps):
    monkeypatch.setattr(plt, "savefig", lambda file, **how: file.write(b"a picture"))
    curves = learning_curves_of(["scratch", "a"], [100, 50])
    if steps is not None:
        curves = [c | {"frozen": "yes" if 0 < steps[c["arm"]] >= c["step"] else "no", "frozen_steps": steps[c["arm"]]}
                  for c in curves]  # fmt: skip
    ax = convergence(curves, 0.1)
    shaded = sorted(patch.get_x() + patch.get_width() for patch in ax.patches)
    assert shaded == sorted({n for n in (steps or {}).values() if n})
    words = {
        (): "",
        (0, 0): "no frozen phase",
        (30, 30): "frozen for the first 30 steps in every arm",
        (0, 25): "not alike in all arms",
    }[tuple((steps or {}).values())]
    assert words in ax.get_title() and (steps is not None or ax.get_title() == "10 % of the labels")
    write_table(tmp_path / "results.csv", rows_of(["scratch", "a"], label_fractions=(0.1,)))
    write_table(tmp_path / "learning_curves.csv", curves)
    page = html_report(tmp_path, "t")
    assert words in page and ("shaded" in page) == bool(shaded)


def test_the_page_stands_alone(tmp_path):
    rows = rows_of(["scratch", "<b>sly</b> & co"], gain=0.2)
    write_table(tmp_path / "results.csv", rows)
    write_table(tmp_path / "learning_curves.csv", learning_curves_of(["scratch", "<b>sly</b> & co"], [100, 50]))
    told = (("c0", "done", ""), ("c1", "failed", "no <luck>"), ("c2", "failed", "x"), ("c2", "done", ""))
    diary = [{"cell": c, "hash": "x", "state": s, "seconds": 36.0, "error": e} for c, s, e in told]
    write_table(tmp_path / "cells.csv", diary)
    keep_answer(rows, tmp_path, "title <x>")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=.(?!data:)", page) and "http" not in page
    assert "<b>sly" not in page and "&lt;b&gt;sly&lt;/b&gt; &amp; co" in page and "title &lt;x&gt;" in page
    assert "no &lt;luck&gt;" in page and "c2: x" not in page and page.count("<img ") == 2
    assert "better" in page and "3 runs, 0.04 hours" in page
    assert html_report(tmp_path, "t") == html_report(tmp_path, "t"), "the same bytes"


def test_what_is_missing_is_no_error(tmp_path):
    for rows in (rows_of(["scratch"]), rows_of(["scratch", "a"], seeds=1, people=1)):
        write_table(tmp_path / "results.csv", rows)
        keep_answer(rows, tmp_path)
        page = (tmp_path / "report.html").read_text()
        assert "no two arms" in page or "nothing to be said" in page


def test_the_first_line_tells_whether_a_gain_could_be_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "savefig", lambda file, **how: file.write(b"a picture"))
    for gain, word in ((0.3, "This set-up can see a gain"), (0.001, "This set-up was not shown to be able")):
        rows = rows_of(["scratch", "a", "control"])
        rows = [row | {"dice": 0.4 + gain * (row["arm"] == "control")} for row in rows]
        write_table(tmp_path / "results.csv", rows)
        write_table(tmp_path / "trainings.csv", [
            {"arm": row["arm"], "label_fraction": row["label_fraction"], "seed": row["seed"], "fold": "", "labels": 4,
             "elsewhere": 0, "frozen_steps": 0, "tried": 0, "pretraining": "",
             "steps": int(400 * row["label_fraction"])}
            for row in rows])  # fmt: skip
        text = "arms: {scratch: {}, a: {}, control: {}}\ncontrol: control\nprimary: [{arm: a, label_fraction: 0.1}]\n"
        (tmp_path / "experiment.yaml").write_text(text)
        said = keep_answer(rows, tmp_path)
        page = (tmp_path / "report.html").read_text()
        assert said.startswith(word) and page.index(word) < page.index("What was found")
        assert "one declared comparison" in said and "exploratory" in said and "1 declared comparison" in page
        assert "differ in steps, too (10 %: 40, 100 %: 400)" in said
        assert "foreseen" in said if len({row["seed"] for row in rows}) > 2 else True


def test_words_say_what_the_numbers_say():
    rows = rows_of(["scratch", "up", "down"], seeds=5, label_fractions=(0.1,))
    rows = [r | {"dice": r["dice"] + {"scratch": 0, "up": 0.3, "down": -0.3}[r["arm"]]} for r in rows]
    up, down = verdict(rows)
    assert "up was better" in in_words(up) and "down was worse" in in_words(down)
    assert in_short([up, down]) == (
        "In 2 comparisons with scratch: better in 1 (up with 10 %), worse in 1 (down with 10 %)."
    )
    one, other = verdict(rows, primary=[(0.1, "up")])
    assert in_short([one, other]) == (
        "In 1 declared comparison with scratch: better in 1 (up with 10 %). 1 more comparison is exploratory and "
        "without a verdict."
    )
    assert "(exploratory)" in in_words(other) and "down was worse" not in in_words(other)
    assert f"{up['difference']:+.3f}" in in_words(up) and f"{up['low']:+.3f}" in in_words(up)


def test_committed_answers_follow_from_their_tables():
    for folder in sorted(p.parent for p in (ROOT / "results").glob("*/results.csv")):
        from ssl3d.evidence.statistics import verdict_table

        summary = Path(folder / "summary.txt").read_text()
        told = re.search(r"shown to be below ([\d.]+),", summary)
        delta = float(told[1]) if told else None  # as the experiment declared it
        table = verdict_table(verdict(read_scores(folder / "results.csv"), "scratch", delta=delta))
        assert table in summary, folder.name


@pytest.mark.parametrize("folder", sorted((ROOT / "results").glob("*/results.csv")), ids=lambda file: file.parent.name)
def test_committed_results_make_a_page(folder, monkeypatch):
    """Also those of earlier versions, which keep neither masks nor logs: the page says what is not there."""
    monkeypatch.setattr(plt, "savefig", lambda file, **how: file.write(b"a picture"))
    page, rows = html_report(folder.parent, "t", "scratch"), read_scores(folder)
    masks = rows[0]["metric"] == "Dice" and not (folder.parent / "examples.npz").exists()
    assert "logs of the trainings are not in this folder" in page and ("keeps no example masks" in page) == masks
    found = re.sub(r"<style>.*</style>|data:image[^\"]*", "", page, flags=re.S).partition("How it was done")[0]
    assert not lonely(found)


def test_each_method_has_its_curve_beside_the_baseline():
    """The baseline is in every panel, an arm in its own; a panel says when its arm was where the baseline ends."""
    paces = {"scratch": 200, "rotation": 100, "jigsaw": 400}
    curves = [{"arm": arm, "label_fraction": 0.1, "seed": seed, "fold": "", "step": step,
               "score": min(0.8, (step + seed) / pace), "frozen": "yes" if step <= 20 else "", "frozen_steps": 20}
              for arm, pace in paces.items() for seed in range(3) for step in range(0, 161, 20)]
    panels = convergence_per_method(curves, 0.1, ylabel="mean Dice")
    assert [ax.get_title().splitlines()[0] for ax in panels] == ["rotation", "jigsaw"]
    assert [ax.get_title().splitlines()[1:] for ax in panels] == [
        ["3 of 3 seeds there,", "step 80 (80 to 80)"], ["0 of 3 seeds there"]], "a median with its range"
    for ax, arm in zip(panels, ("rotation", "jigsaw")):
        for line, name in zip((ax.lines[0], ax.lines[2]), ("scratch", arm)):
            mean = [np.mean([min(0.8, (step + seed) / paces[name]) for seed in range(3)]) for step in range(0, 161, 20)]
            assert np.allclose(line.get_ydata(), mean), name
        assert np.allclose(ax.lines[1].get_ydata(), np.mean([min(0.8, (160 + s) / 200) for s in range(3)])), "dotted"
        assert any(np.isclose(patch.get_width(), 20) for patch in ax.patches), "frozen steps are shaded"
    one = convergence_per_method([row for row in curves if row["arm"] == "scratch"], 0.1)
    assert len(one) == 1 and len(one[0].lines) >= 2
    plt.close("all")


def lonely(text):
    """The differences of a text that no interval follows: signed numbers that are no ends of one."""
    text = re.sub(r"<[^>]*>", " ", text)
    text = re.sub(r"[+-]\d+\.\d+\s+\(?(95 % interval )?[+-]\d+\.\d+ to [+-]\d+\.\d+\)?", " ", text)
    return re.findall(r"(?<![\d.\w])[+-]\d+\.\d+", text)


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_no_difference_stands_without_its_interval(tmp_path, seeds):
    """Neither in the page nor in the summary, in a table of surfaces, or beside a control: and no effect size does."""
    assert lonely("a -0.012  -0.1 to +0.2") == [] and lonely("a +0.012  none") == ["+0.012"]
    rows = rows_of(["scratch", "a", "control"], seeds=seeds)
    rows = [row | {"surface_dice": row["dice"], "hausdorff95": 1 + row["dice"]} for row in rows]
    write_table(tmp_path / "results.csv", rows)
    (tmp_path / "experiment.yaml").write_text("arms: {scratch: {}, a: {}, control: {}}\ncontrol: control\n")
    said = keep_answer(rows, tmp_path)
    page = (tmp_path / "report.html").read_text()
    page = re.sub(r"<style>.*</style>|data:image[^\"]*|ssl3d [\d.]+,.*cores", "", page, flags=re.S)
    answers = verdict(rows, control="control")
    texts = [said, page, verdict_table(answers), surface_table(rows), control_in_words(answers, "control"),
             *map(in_words, answers)]
    for text in texts:
        assert not lonely(text), lonely(text)
    told = f"{answers[0]['difference']:+.3f}"
    assert all((told in text) == (seeds > 1) for text in (said, page, verdict_table(answers), in_words(answers[0])))
    assert ("No difference is given where there is no interval" in said) == (seeds == 1)
    assert ("effect size" in page.replace("Effect", "")) == (seeds > 1), "a column of nothing is left out"
    _, right = data_efficiency(rows)
    assert bool(right.containers) == (seeds > 1) and bool(right.texts) == (seeds == 1)


def test_an_effect_size_has_the_interval_of_its_difference():
    for a in verdict(rows_of(["scratch", "a"], seeds=4, gain=0.1)):
        unit = a["difference"] / a["effect"]
        assert np.isclose(a["effect_low"], a["low"] / unit) and np.isclose(a["effect_high"], a["high"] / unit)


@pytest.mark.parametrize(
    "metric, score, floors, said",
    [
        ("Dice", 0.5, {}, ""),
        ("Dice", 0.5, {"position": 0.4}, ""),
        ("Dice", 0.5, {"position": 0.4, "other": 0.5}, "not above the floor that needs no network (other: 0.500)"),
        ("Dice", 0.5, {"position": 0.6}, "not above the floor that needs no network (position: 0.600)"),
        ("Dice", 0.11, {}, ""),
        ("Dice", 0.1, {}, "which is near 0"),
        ("Dice", 0.02, {"position": 0.3}, "near 0 and not above the floor that needs no network (position: 0.300)"),
    ],
)
def test_a_poor_baseline_is_told(tmp_path, metric, score, floors, said):
    """With the most labels, and there alone: what fewer labels bring is what is asked."""
    rows = [{**row, "dice": (score if row["label_fraction"] == 1 else 0.0) + 0.4 * (row["arm"] != "scratch")}
            for row in rows_of(["scratch", "a"])]  # fmt: skip
    table = [{"label_fraction": share, "seed": seed, "fold": "", "floor": name, "score": value + (share < 1)}
             for share in (0.1, 1.0) for seed in range(3) for name, value in floors.items()]  # fmt: skip
    told = poor_baseline(rows, "scratch", table)
    assert bool(told) == bool(said) and said in told
    assert not told or told.startswith("Caution: scratch itself is poor. With 100 % of the labels"), told
    write_table(tmp_path / "results.csv", rows)
    if table:
        write_table(tmp_path / "floors.csv", table)
    summary, page = keep_answer(rows, tmp_path), (tmp_path / "report.html").read_text()
    assert ("itself is poor" in summary) == ("itself is poor" in page) == bool(said)
    assert not said or page.index("itself is poor") < page.index("What was found"), "before what it is about"


def test_answers_about_whole_images_are_shown(tmp_path):
    rng = np.random.default_rng(0)
    rows = [{"arm": arm, "label_fraction": share, "seed": seed, "fold": "", "subject": f"p{p}", "case": f"c{p}",
             "metric": "kappa of grade", "grade": p % 3, "predicted": int(rng.integers(3))}
            for arm in ("scratch", "a") for share in (0.1, 1.0) for seed in range(3) for p in range(9)]  # fmt: skip
    write_table(tmp_path / "results.csv", rows)
    page = html_report(tmp_path, "t")
    assert "What the networks answer" in page and "10 % of the labels (seed 0)" in page and "masks look" not in page
    ages = [{k: v for k, v in row.items() if k not in ("grade", "predicted")}
            | {"metric": "R² of age", "age": 20.0 + row["grade"], "guess": 20.5} for row in rows]  # fmt: skip
    write_table(tmp_path / "results.csv", ages)
    assert "What the networks answer" in html_report(tmp_path, "t")


def write_log(run, losses):
    run.mkdir(parents=True)
    (run / "settings.yaml").write_text("command: finetune\n")
    write_table(run / "log.csv", [{"step": i + 1, "loss": loss} for i, loss in enumerate(losses)])


def test_every_training_has_its_loss_curve(tmp_path):
    """Each seed and share is a line of its own, in the panel of its arm; names of arms may hold anything."""
    rows = rows_of(["scratch", "a-1"], seeds=2)
    for row in rows:
        run = tmp_path / "cells" / f"{row['arm']}-{row['label_fraction']:g}-{row['seed']}"
        if not run.exists():
            write_log(run, np.linspace(1 + row["seed"], row["label_fraction"], 80))
    for seed in (0, 1):
        write_log(tmp_path / f"pretraining/a-1-{seed}", np.full(20, 3.0 + seed))
    before, after = losses_of(tmp_path, rows)
    assert [*before] == ["a-1"] and [*after] == ["scratch", "a-1"]
    assert {name: len(logs) for name, logs in after["scratch"].items()} == {"10 %": 2, "100 %": 2}
    panels = loss_curves(after, shared=True)
    ends = sorted(round(float(line.get_ydata()[-1]), 2) for line in panels[0].lines if len(line.get_ydata()))
    assert len(ends) == 4 and np.allclose(ends, [0.1, 0.1, 1, 1], atol=0.03), "smoothed, but at its own end"
    assert {float(line.get_ydata()[-1]) for line in loss_curves(before, shared=False)[0].lines} == {3.0, 4.0}
    write_table(tmp_path / "results.csv", rows)
    page = html_report(tmp_path, "t")
    assert "Pretraining: 2 trainings" in page and "Fine-tuning: 8 trainings" in page
    (tmp_path / "old").mkdir()
    write_table(tmp_path / "old/results.csv", rows)
    assert "The logs of the trainings are not in this folder" in html_report(tmp_path / "old", "t")


def test_folds_have_their_loss_curves(tmp_path):
    whole = rows_of(["scratch", "a"], label_fractions=(1.0,), seeds=1)
    rows = [row | {"fold": fold} for row in whole for fold in (0, 1)]
    for fold in (0, 1):
        write_log(tmp_path / f"cells/a-1-0-fold{fold}", np.ones(9))
        write_log(tmp_path / f"pretraining/a-0-fold{fold}", np.ones(9))
    before, after = losses_of(tmp_path, rows)
    assert len(before["a"][""]) == 2 == len(after["a"]["100 %"]) and "scratch" not in after


@pytest.mark.parametrize("far", [False, True])
def test_a_console_is_told_where_the_page_lies(tmp_path, monkeypatch, capsys, far):
    for name in ("SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY"):
        monkeypatch.delenv(name, raising=False)
    if far:
        monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 22")
    folder = tmp_path / "a folder"
    assert page_line(folder / "report.html").startswith(f"report: {folder}/report.html")
    answer = Answer(folder, [], [], [], "")
    assert answer.report() == folder / "report.html", "a path, too"
    line = capsys.readouterr().out.splitlines()[-1]
    address = (folder / "report.html").as_uri()
    assert line == page_line(folder / "report.html") and (address in line) != far and " folder" not in address


def test_a_notebook_gets_a_link(tmp_path, monkeypatch, capsys):
    import IPython
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: type("Shell", (), {"kernel": object()})())
    monkeypatch.setattr(IPython.display, "display", lambda bundle, raw: shown.append(bundle))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nbs").mkdir()
    monkeypatch.chdir(tmp_path / "nbs")
    show_page(Path("../runs/a <b>/report.html"))
    (bundle,) = shown
    assert 'href="../runs/a%20%3Cb%3E/report.html"' in bundle["text/html"] and "<b>" not in bundle["text/html"]
    assert bundle["text/plain"].startswith("report: ") and capsys.readouterr().out == ""
