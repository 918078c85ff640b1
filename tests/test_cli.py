"""The `ssl3d` command, as a user types it."""

import io
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import SAMPLES, ssl3d, volumes, write_nifti

from ssl3d.cli import main

WIDTHS = "8,16,32"


def shell(*args):
    """The command as it is installed, in a Python of its own."""
    line = [Path(sys.executable).parent / "ssl3d", *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, cwd="/")


def test_help_lists_the_commands():
    said = shell("--help")
    assert said.returncode == 0 and all(c in said.stdout for c in ("prepare", "pretrain", "finetune", "demo"))
    said = shell("pretrain", "--help").stdout
    assert "--epochs" in said and "passes over the training cases" in said


def walk(source, folder, size, labels, long=("--epochs", 2), by_shell=()):
    """The four commands of the README, on any cohort with masks."""
    store = folder / "store"
    for command in (
        ("prepare", source, "--out", store, "--size", size),
        ("pretrain", "rotation", store, "--out", folder / "rot", *long, "--widths", WIDTHS),
        ("finetune", store, "--encoder", folder / "rot", "--labels", labels, *long, "--out", folder / "ft"),
        ("finetune", store, "--labels", labels, *long, "--out", folder / "scratch", "--widths", WIDTHS),
    ):
        done = shell(*command) if command[0] in by_shell else ssl3d(*command, folder=folder)
        assert done.returncode == 0, done.stderr
        assert "100%" in done.stdout + done.stderr, "a progress bar was shown"
    return store


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """The folder in which the four commands were given for the sample brains, the first of them in a shell."""
    folder = tmp_path_factory.mktemp("walk")
    walk(SAMPLES, folder, 16, 0.2, by_shell=("prepare",))
    return folder


def test_four_commands(walked):
    assert (walked / "ft/scores.csv").exists() and (walked / "rot/encoder.safetensors").exists()


def test_predicting_checking_and_grading(walked, tmp_path):
    rows = [f"{SAMPLES / 'imagesTr' / f'brain_{i:03d}.nii.gz'},{i % 2}" for i in range(1, 13)]
    (tmp_path / "graded.csv").write_text("image,grade\n" + "\n".join(rows))
    store = walked / "store"
    for command, said in (
        (("predict", walked / "ft", store, "--out", tmp_path / "masks"), "6 file(s)"),
        (("features", walked / "rot", store, "--out", tmp_path / "f.csv"), "6 vectors of 32 numbers"),
        (("check", store), "32 cases"),
        (("prepare", tmp_path / "graded.csv", "--out", tmp_path / "graded", "--size", 16, "--plan"), "GB and"),
        (("prepare", tmp_path / "graded.csv", "--out", tmp_path / "graded", "--size=16", "--dtype=uint8"), "as uint8"),
        (
            (
                "finetune",
                tmp_path / "graded",
                "--goal",
                "classification",
                "--epochs",
                1,
                "--widths",
                WIDTHS,
                "--ordinal",
                "--out",
                tmp_path / "c",
            ),
            "kappa",
        ),
    ):
        done = ssl3d(*command, folder=tmp_path)
        assert done.returncode == 0 and said in done.stdout, done.stderr
    masks = sorted((tmp_path / "masks").glob("*.nii.gz"))
    shapes = {nib.load(file).shape for file in masks}
    assert len(masks) == 6 and shapes == {(48, 48, 48)}
    assert (tmp_path / "c/predictions.csv").exists()


def test_runs_stores_and_experiments_are_shown(walked, tmp_path):
    for name, said in (("rot", "12 steps are too few"), ("ft", "Dice on the scans of 6 test"), ("store", "32 cases")):
        done = ssl3d("show", walked / name, "--out", tmp_path / f"{name}.png", folder=tmp_path)
        assert done.returncode == 0 and said in done.stdout and f"{name}.png: how it looks" in done.stdout, done.stderr
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not (walked / "ft/plot.png").exists()
    assert ssl3d("show", walked / "ft", folder=tmp_path).returncode == 0 and (walked / "ft/plot.png").exists()
    (tmp_path / "e").mkdir()
    (tmp_path / "e/experiment.yaml").touch()
    for name, file in (("begun", "unfinished.jsonl"), ("another", "settings.yaml")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("theme: dark\n")
    for place, more, said in (
        (tmp_path, (), "no run, no store"),
        (tmp_path / "begun", (), "begun: is an unfinished store. `ssl3d prepare"),
        (tmp_path / "another", (), "settings.yaml: names no command of ssl3d"),
        (tmp_path / "e", (), "not finished"),
        (walked / "ft", ("--out", tmp_path / "x.jpg"), "x.jpg: is no name for a picture"),
    ):
        done = ssl3d("show", place, *more, folder=tmp_path)
        assert done.returncode == 1 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    (tmp_path / "e/report.html").touch()
    (tmp_path / "e/summary.txt").write_text("rotation is better")
    done = ssl3d("show", tmp_path / "e", folder=tmp_path)
    assert "rotation is better" in done.stdout and "report.html" in done.stdout
    (tmp_path / "e/summary.txt").unlink()
    assert "has lost its summary.txt" in ssl3d("show", tmp_path / "e", folder=tmp_path).stderr
    assert "Leave out" in ssl3d("show", tmp_path / "e", "--out", "x.png", folder=tmp_path).stderr


def test_mistakes_end_in_one_line(tmp_path, store):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    whole = (SAMPLES / "imagesTr/brain_001.nii.gz").read_bytes()
    for i in range(3):
        (tmp_path / f"broken/b{i}.nii.gz").write_bytes(whole[:4000] if i == 1 else whole)
    (tmp_path / "masks").mkdir()
    for i in range(3):
        write_nifti(tmp_path / f"masks/i{i}.nii", np.random.default_rng(i).random((6, 6, 6)))
        write_nifti(tmp_path / f"masks/m{i}.nii", np.ones((6, 6, 5), np.uint8))
    (tmp_path / "masks/t.csv").write_text("image,mask\n" + "".join(f"i{i}.nii,m{i}.nii\n" for i in range(3)))
    out = tmp_path / "out"
    for command, said in (
        (("prepare", tmp_path / "nowhere", "--out", out), "nowhere"),
        (("prepare", tmp_path / "empty", "--out", out), "empty"),
        (("prepare", tmp_path / "broken", "--out", out, "--size", 8), "b1.nii.gz"),
        (("prepare", tmp_path / "masks/t.csv", "--out", tmp_path / "out2"), "m0.nii"),
        (("pretrain", "rotate", store.folder, "--out", out), "rotate"),
        (("pretrain", "rotation", tmp_path / "empty", "--out", out), "empty"),
        (("finetune", store.folder, "--encoder", tmp_path / "empty", "--out", out), "empty"),
        (("demo", tmp_path / "nowhere"), "nowhere"),
    ):
        done = ssl3d(*command, folder=tmp_path)
        assert done.returncode == 1, (command, done.stderr)
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("ssl3d: ") and said in last and "Traceback" not in done.stderr, done.stderr
    for wrong, said in (
        (("prepare", SAMPLES, "--out", out, "--sizes", 8), "Did you mean --size?"),
        (("finetune", store.folder, "--labels", 0, "--out", out), "labels is 0"),
        (("prepare", SAMPLES), "required: --out"),
        (("pretrain", "rotation", store.folder, "--out", out, "--widths", "8,x"), "a list of whole numbers"),
        (("classify", store.folder, "--out", out), "invalid choice: 'classify'"),
    ):
        done = shell(*wrong)
        assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("coding", ["ascii", "cp932", "cp1252"])
def test_a_console_that_does_not_know_a_letter_costs_no_result(tmp_path, monkeypatch, coding):
    rows = ["image,age"]
    for i in range(8):
        write_nifti(tmp_path / f"ü{i}.nii.gz", np.random.default_rng(i).random((8, 9, 10)))
        rows.append(f"ü{i}.nii.gz,{30 + i}")
    (tmp_path / "t.csv").write_text("\n".join(rows), encoding="utf-8")
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=coding, write_through=True) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    store, run = (tmp_path.parent / f"{tmp_path.name}-{name}" for name in ("störe", "漢²"))
    main(["prepare", str(tmp_path / "t.csv"), "--out", str(store), "--size", "16", "--test", "0.4"])
    main(["finetune", str(store), "--out", str(run), "--goal", "regression", "--target", "age", "--steps", "2",
          "--widths", "4,8,16", "--batch-size", "2"])
    with pytest.raises(SystemExit) as ended:
        main(["check", "no-漢\udcff"])
    said, warned = (stream.buffer.getvalue().decode(coding) for stream in (out, err))
    assert ended.value.code == 1 and "no-" in warned.splitlines()[-1] and "\\udcff" in warned.splitlines()[-1]
    assert "mean error" in said.splitlines()[-1] and (run / "scores.csv").exists()
    assert "100%" in said + warned, "progress bars, too"


def test_two_options_of_one_name_in_a_shell(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "jigsaw", "STORE", "--out", "RUN", "--options", "{grid: 2, grid: 3}"])
    assert ended.value.code == 2 and "line 1 has 'grid' again" in capsys.readouterr().err


@pytest.mark.parametrize("modalities", ["T1,T2", "T1, T2", "[T1, T2]", "['T1','T2']"])
@pytest.mark.parametrize("images", ["{T1: {id}_T1.nii.gz, T2: {id}_T2.nii.gz}",
                                    "{T1: '{id}_T1.nii.gz', T2: \"{id}_T2.nii.gz\"}"])  # fmt: skip
def test_several_modalities_in_a_shell(tmp_path, capsys, modalities, images):
    volumes(tmp_path / "in", *(f"p{i}_{m}" for i in range(3) for m in ("T1", "T2", "PD")))
    main(["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "store"), "--size", "8", "--images", images,
          "--modalities", modalities])
    assert "channels: T1, T2" in capsys.readouterr().out


@pytest.mark.parametrize(("option", "value"), [("window", "-175,250"), ("percentiles", "-1,99")])
def test_a_list_that_begins_with_a_minus_is_told_where_it_goes(capsys, option, value):
    with pytest.raises(SystemExit) as ended:
        main(["prepare", "SCANS", f"--{option}", value, "--out", "store"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and f"goes behind an equals sign: --{option}={value} " in said
    with pytest.raises(SystemExit):
        main(["prepare", "SCANS", f"--{option}", "--out", "store"])
    assert "expected one argument" in (said := capsys.readouterr().err) and "equals" not in said
