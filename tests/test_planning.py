"""The description of an experiment that is written for a folder: true to the folder, and run as it is."""

import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import RNG, ROOT, SAMPLES, msd, python, volumes, write_nifti
from PIL import Image

import ssl3d
from ssl3d.data.store import Store
from ssl3d.errors import InputError
from ssl3d.evidence import planning
from ssl3d.evidence.experiments import Experiment, check_experiment, open_experiment, read_experiment
from ssl3d.evidence.planning import Labels, Seen, arms_for, plan_experiment, shares_of, who_is_tested
from ssl3d.files import read_json, read_table, read_text, read_yaml

PATTERNS = {"images": "{id}/scan.nii.gz", "masks": "{id}/mask.nii.gz"}
HOURS = "9 runs, about 3 hours one after the other on this machine"


@pytest.fixture
def unmeasured(monkeypatch):
    """Time is not measured: one test does."""
    monkeypatch.setattr(planning, "time_in_words", lambda *_: HOURS)


def people(folder: Path, n: int, mask: bool = True) -> Path:
    """A folder with a scan, and a mask, of each of so many people."""
    for i in range(n):
        volumes(folder / f"P{i:02d}", "scan", mask=("mask",) if mask else ())
    return folder


def told(file: Path) -> str:
    """The words of a description, without its lines."""
    return " ".join(file.read_text(encoding="utf-8").replace("#", "").split())


def shortened(file: Path, size: int) -> Path:
    """The same description, with everything that takes time as small as can be."""
    text, few = file.read_text(encoding="utf-8"), min(read_experiment(file).label_fractions)
    for was, now in (
        (r"\bsize: \d+", f"size: {size}"),
        (r"\bsteps: \d+", "steps: 2"),
        (r"\bbatch_size: \d+", "batch_size: 2"),
        (r"\bseeds: 5\n", "seeds: 1\n"),
        (r"\bwidths: .*", "widths: [4, 8, 16]"),
        (r"\nlabel_fractions: .*", f"\nlabel_fractions: [{few}]"),
    ):
        text, n = re.subn(was, now, text)
        assert n or was.startswith((r"\bsize", r"\bwidths")), was
    short = file.with_name(f"short-{file.name}")
    short.write_text(text, encoding="utf-8")
    return short


def check_run(file: Path, out: Path, size: int) -> ssl3d.Answer:
    """A description is run, short, and has the people that its comments promise; what was found."""
    said = told(file)
    answer = ssl3d.experiment(shortened(file, size), out, progress=False)
    assert not answer.failed and len(answer.verdicts) == 2 and answer.report().exists()
    made = (out / "store").exists()
    store = Store(out / "store" if made else read_yaml(read_text(out / "experiment.yaml"))["cohort"]["source"])
    tested = {row["subject"] for row in answer.rows}
    promised = int(re.search(r"Who is tested: (?:all|about) (\d+) labelled people", said)[1])
    assert abs(len(tested) - promised) <= 1
    few = int(re.search(r"have their labels used, about (\d+)", said)[1])
    for run in (out / "cells").iterdir():
        if (run / "network.json").exists():
            card, rows = read_json(run / "network.json"), read_table(run / "scores.csv")
            taught = {store.cases[name]["subject"] for name in card["trained_on"]}
            assert abs(len(taught) - few) <= 1 and len(taught) >= 2
            assert not taught & {store.cases[row["case"]]["subject"] for row in rows if "case" in row}
    return answer


@pytest.mark.parametrize("name, size", [("Task01_TumourBrains", 16), ("Task07_Pancreas", 16), ("aptos_generated", 32)])
def test_the_file_of_each_sample_folder_is_run(unmeasured, tmp_path, name, size):
    file = ssl3d.plan_experiment(ROOT / "data_samples" / name, tmp_path / "my.yaml", progress=False)
    planned = read_experiment(file)
    flat = name == "aptos_generated"
    assert planned.goal == ("classification" if flat else "segmentation") and planned.seeds == 5
    assert planned.delta == (0.05 if flat else 0.02) and [*planned.arms] == ["scratch", "rotation", "location"]
    few = planned.label_fractions[0]
    assert planned.primary == [{"arm": arm, "label_fraction": few} for arm in ("rotation", "location")]
    assert (planned.folds, planned.cohort.get("test")) == ((None, 0.38) if flat else (3, None))
    said = file.read_text(encoding="utf-8")
    assert HOURS in said and "What it can show: with 5 seeds and" in said and max(map(len, said.splitlines())) < 121
    answer = check_run(file, tmp_path / "out", size)
    assert {row["metric"] for row in answer.rows} == {"kappa of grade" if flat else "Dice"}
    if planned.folds:
        run = ssl3d.Run(Path(answer) / "cells" / f"scratch-{few:g}-0-fold0")
        new = sorted((ROOT / "data_samples" / name / "imagesTr").glob("*.gz"))[:2]
        masks = run.predict(new, tmp_path / "masks", progress=False)
        assert [nib.load(mask).shape for mask in masks] == [nib.load(scan).shape[:3] for scan in new]


def test_the_file_is_taken_as_it_is(unmeasured, tmp_path):
    file = plan_experiment(SAMPLES, tmp_path / "my.yaml", progress=False)
    stores = open_experiment(read_experiment(file), tmp_path / "out", progress=False)
    assert stores["cohort"].settings["size"] == 48 and len(stores["cohort"]) == 32


def test_what_is_a_comment_can_be_taken_in(unmeasured, tmp_path):
    file = plan_experiment(people(tmp_path / "scans", 9), tmp_path / "my.yaml", progress=False)
    text = file.read_text(encoding="utf-8").replace("  # jigsaw:", "  jigsaw:").replace("# lrs:", "lrs:")
    file.write_text(text, encoding="utf-8")
    more = read_experiment(file)
    assert [*more.arms] == ["scratch", "rotation", "location", "jigsaw"] and more.lrs == [0.0003, 0.001, 0.003]


REAL = {  # what is planned -> options, and what the file has to hold: goal, folds, size
    "Task04_Hippocampus": ({}, "segmentation", None, 48),
    "ixi_t1_brain_2mm": ({"images": "{id}_T1brain.nii.gz", "table": "participants.csv"}, "regression", None, 48),
    "idrid_grading_512/labels.csv": ({"columns": {"grade": "dr_grade"}}, "classification", None, 128),
}


@pytest.mark.parametrize("name", REAL)
def test_the_files_of_real_cohorts_are_run(real_data, unmeasured, tmp_path, name):
    if not (real_data / name).exists():
        pytest.skip(f"SSL3D_DATA has no {name}")
    options, goal, folds, size = REAL[name]
    file = plan_experiment(real_data / name, tmp_path / "my.yaml", progress=False, **options)
    planned = read_experiment(file)
    assert (planned.goal, planned.folds, planned.cohort["size"]) == (goal, folds, size)
    assert {key: planned.cohort[key] for key in options} == options
    if "Hippocampus" in name:
        assert planned.cohort["percentiles"] == [0.5, 99.5], "a few bright voxels decide the scale of many of its crops"
    check_run(file, tmp_path / "out", 32 if goal == "classification" else 16)
    if goal == "regression":  # the same people, from their store, for another label
        again = plan_experiment(tmp_path / "out/store", tmp_path / "sex.yaml", progress=False, goal="classification")
        assert read_experiment(again).finetuning["target"] == "sex" and "M: " in again.read_text()
        answer = check_run(again, tmp_path / "sex", 16)
        assert {row["metric"] for row in answer.rows} == {"kappa of sex"}


LETTERS = [*"aZ09 _-:#'\"$&*!%@`,[]{}|>?=~éøß漢字"]
DRAWN = ["".join(np.random.default_rng(seed).choice(LETTERS, 12)).strip() + "x" for seed in range(4)]
ODD = ["Ärzte & Söhne", "a: b #c", "it's \"quoted\"", "日本 語", "- [x, {y}", "$HOME ~", "2\nlines", "no", "1e3", "🧠"]


@pytest.mark.parametrize("name", ODD + DRAWN)
def test_names_of_every_kind_are_kept(unmeasured, tmp_path, name):
    scans = tmp_path / name
    for i in range(9):
        volumes(scans / f"{name} {i}".replace("\n", " "), "scan", mask=("mask",))
    file = plan_experiment(scans, tmp_path / f"{name}.yaml", progress=False)
    planned = read_experiment(file)
    assert planned.cohort["source"] == str(scans)
    stores = open_experiment(planned, tmp_path / "out", progress=False)
    assert len(stores["cohort"]) == 9 and len(stores["cohort"].subjects) == 9


def test_time_is_measured(tmp_path):
    file = plan_experiment(people(tmp_path / "scans", 9), tmp_path / "my.yaml", progress=False)
    said = re.search(r"What it takes: (\d+) runs, about (\S+) (?:minutes|hours) one after the other", file.read_text())
    planned = read_experiment(file)
    cells = 5 * 3 * len(planned.arms) * len(planned.label_fractions)
    assert int(said[1]) == cells + 5 * 3 * 2 and 0 < float(said[2]) < 1000, "every training, and two pretrainings"
    assert not list(tmp_path.glob("store")), "what was made to measure is gone"


def test_a_store_is_planned_for(unmeasured, store, tmp_path):
    planned = read_experiment(plan_experiment(store, tmp_path / "my.yaml", progress=False))
    assert planned.cohort == {"source": str(store.folder)} and planned.folds == 3
    with pytest.raises(InputError, match="is a store already, so images cannot be set any more"):
        plan_experiment(store.folder, tmp_path / "other.yaml", images="{id}.nii.gz")


def test_a_file_that_is_there_is_not_touched(tmp_path):
    for name in ("mine.yaml", "link.yaml", "folder.yaml"):
        (tmp_path / name).mkdir() if name.startswith("folder") else None
        (tmp_path / name).write_text("mine") if name.startswith("mine") else None
        (tmp_path / name).symlink_to("nowhere") if name.startswith("link") else None
        with pytest.raises(InputError, match=f"{name}: is there already, and is not overwritten"):
            plan_experiment(SAMPLES, tmp_path / name)
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    with pytest.raises(InputError, match="my.txt: does not end in .yaml"):
        plan_experiment(SAMPLES, tmp_path / "my.txt")


def graded(folder: Path, grades: list[object], column: str = "grade") -> Path:
    """Pictures with a table."""
    folder.mkdir()
    lines = ["image," + column]
    for i, grade in enumerate(grades):
        Image.fromarray(RNG.integers(0, 255, (40, 40, 3)).astype(np.uint8)).save(folder / f"e{i:03d}.png")
        lines.append(f"e{i:03d}.png,{grade}")
    (folder / "table.csv").write_text("\n".join(lines))
    return folder / "table.csv"


def test_what_cannot_be_planned_is_told(unmeasured, tmp_path):
    empty = people(tmp_path / "zeros", 9)
    for file in empty.rglob("mask.nii.gz"):
        write_nifti(file, np.zeros((8, 9, 10), np.uint8))
    bare = people(tmp_path / "bare", 9, mask=False)
    (bare / "table.csv").write_text("id,age\n" + "\n".join(f"P{i:02d},{20 + i}" for i in range(9)))
    for scans, options, said in (
        (tmp_path / "nowhere", {}, "nowhere: no such file or folder"),
        (bare, {}, "neither masks nor grades, ages or sexes.*--table table.csv takes age from it"),
        (people(tmp_path / "few", 8), {}, "knows the mask of 8 people, and an experiment takes 9 at least"),
        (graded(tmp_path / "one", [0] * 20 + [1, 1]), {}, r"two different grades that 3 people .*\(0: 20, 1: 2\)"),
        (graded(tmp_path / "ages", [50] * 20, "age"), {}, "has one age only, 50"),
        (SAMPLES, {"goal": "regression"}, "no label for the goal regression. It has: mask"),
        (SAMPLES, {"goal": "fame"}, "goal is 'fame', and has to be one of segmentation"),
        (empty, PATTERNS, r"nothing in it is marked.*\(8 more such"),
    ):
        with pytest.raises(InputError, match=said):
            plan_experiment(scans, tmp_path / "my.yaml", progress=False, **options)
    assert not (tmp_path / "my.yaml").exists(), "nothing is written"


def test_scans_that_cannot_be_used_stop_it_or_are_left_out(unmeasured, tmp_path):
    scans = people(tmp_path / "scans", 11)
    (scans / "P03/scan.nii.gz").write_bytes((scans / "P03/scan.nii.gz").read_bytes()[:300])
    write_nifti(scans / "P04/scan.nii.gz", RNG.random((8, 9, 10, 2)))
    with pytest.raises(InputError, match=r"P03.*\(1 more such problems.\).*--on-error skip"):
        plan_experiment(scans, tmp_path / "my.yaml", progress=False, **PATTERNS)
    file = plan_experiment(scans, tmp_path / "my.yaml", progress=False, on_error="skip", **PATTERNS)
    planned = read_experiment(file)
    assert planned.cohort["on_error"] == "skip" and "a mask for each of 9 people" in file.read_text()
    assert len(open_experiment(planned, tmp_path / "out", progress=False)["cohort"]) == 9
    (scans / "P05/scan.nii.gz").write_bytes(b"x")
    with pytest.raises(InputError, match="mask of 8 people"):
        plan_experiment(scans, tmp_path / "other.yaml", progress=False, on_error="skip", **PATTERNS)


def test_masks_come_first_and_the_others_are_named(unmeasured, tmp_path):
    folder = msd(tmp_path / "task", 12)
    table = "id,age,sex\n" + "\n".join(f"c{i},{30 + i},{'FM'[i % 2]}" for i in range(12))
    (folder / "people.csv").write_text(table)
    file = plan_experiment(folder, tmp_path / "my.yaml", table="people.csv", progress=False)
    assert read_experiment(file).goal == "segmentation"
    assert "Known as well: age (12 cases, goal: regression), sex (12 cases, goal: classification)" in told(file)
    sexes = read_experiment(plan_experiment(folder, tmp_path / "sex.yaml", table="people.csv", progress=False,
                                            goal="classification"))  # fmt: skip
    assert sexes.finetuning["target"] == "sex" and sexes.cohort["table"] == "people.csv" and sexes.delta == 0.05


def known(n: int, what: str, labelled: int | None = None) -> tuple[Seen, Labels]:
    """So many people, of whom some are labelled."""
    labels = ({"mask": "m", "grade": i % 3, "age": i}[what] for i in range(n if labelled is None else labelled))
    truths = {f"c{i:04d}": label for i, label in enumerate(labels)}
    cases = {
        name: {"subject": name, "mask": None, "grade": None, "age": None, "sex": None, what: truths.get(name)}
        for name in (f"c{i:04d}" for i in range(n))
    }
    goal = {"mask": "segmentation", "grade": "classification", "age": "regression"}[what]
    return Seen(Path("scans"), None, cases, []), Labels(goal, what, truths)


@pytest.mark.parametrize("what, enough", [("mask", 20), ("grade", 60), ("age", 60)])
def test_enough_people_are_tested_and_two_are_taught(what, enough):
    for n in (9, 10, 14, 20, 49, 50, 51, 99, 100, 149, 150, 160, 300, 1000):
        for all_of in (n, 2 * n):
            tested = who_is_tested(*known(all_of, what, n))
            assert tested.people + (0 if "folds" in tested.settings else tested.taught) == n
            assert tested.people >= 0.9 * enough or tested == ({"folds": 3}, n, tested.taught)
            shares = shares_of(tested.taught)
            assert min(shares.values()) >= 2 and [*shares] == sorted(shares) and max(shares) == 1
            assert round(min(shares) * (tested.taught - 1)) >= 2


def test_the_most_that_is_needed_is_not_overdone():
    tested = who_is_tested(*known(100, "mask"))
    assert tested.settings == {"test": 0.2}, "as prepare does it by itself"
    assert who_is_tested(*known(49, "mask")).settings == {"folds": 3}


def test_the_arms_are_those_that_fit():
    row = {"shape": [8, 8, 8], "axes": "RAS"}
    for axes, boxed, names in (
        ("RAS", False, ["scratch", "rotation", "location"]),
        ("RAS", True, ["scratch", "rotation", "jigsaw"]),
        ("unknown", False, ["scratch", "location", "jigsaw"]),
        ("unknown", True, ["scratch", "jigsaw", "exemplar"]),
    ):
        arms, spare = arms_for([row | {"axes": axes}] * 9, boxed)
        assert [*arms] == names
        check_experiment(Experiment({"source": "x"}, arms | spare))


def test_a_name_with_a_dollar_is_a_name_where_it_is_there(monkeypatch, tmp_path):
    from ssl3d.evidence.experiments import _folder

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHERE", "elsewhere")
    assert _folder("$WHERE/x") == "elsewhere/x"
    Path("$WHERE").mkdir()
    assert _folder("$WHERE") == "$WHERE"


def test_a_mistake_in_the_line_is_told_before_torch_is_loaded(tmp_path):
    (tmp_path / "my.yaml").write_text("mine")
    code = """
import sys
from ssl3d.cli import main
try:
    main(sys.argv[1:])
except SystemExit as e:
    assert e.code == 1 and not {"torch", "monai"} & sys.modules.keys()"""
    there = (SAMPLES, tmp_path / "my.yaml")
    for line, said in ((("nowhere", "x.yaml"), "nowhere: no such file"), (there, "is there already")):
        done = python(code, "init", *line)
        assert said in done.stderr and len(done.stderr.splitlines()) == 1


def test_in_a_shell(tmp_path, capsys, monkeypatch):
    from ssl3d.cli import main

    monkeypatch.setattr(planning, "time_in_words", lambda *_: HOURS)
    people(tmp_path / "my scans", 9)
    monkeypatch.chdir(tmp_path)
    main(["init", "my scans", "my file.yaml"])
    said = capsys.readouterr().out
    assert "9 cases of 9 subjects" in said and "ssl3d experiment 'my file.yaml' --out 'runs/my file'" in said
    assert read_experiment(tmp_path / "my file.yaml").cohort["source"] == str(tmp_path / "my scans")
    shutil.rmtree(tmp_path / "my scans")
    with pytest.raises(SystemExit):
        main(["init", "my scans", "other.yaml"])
    assert "no such file or folder" in capsys.readouterr().err
