"""The `ssl3d` command, as a user types it."""

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from conftest import SAMPLES, write_nifti

SSL3D = Path(sys.executable).parent / "ssl3d"
WIDTHS = "[8,16,32]"


def ssl3d(*args, cwd="/"):
    return subprocess.run([str(SSL3D), *map(str, args)], capture_output=True, text=True, cwd=cwd)


def test_help_lists_the_commands():
    said = ssl3d("--help")
    assert said.returncode == 0 and all(c in said.stdout for c in ("prepare", "pretrain", "finetune", "demo"))
    said = ssl3d("pretrain", "--help").stdout
    assert "--epochs" in said and "passes over the training images" in said


def walk(source, folder, size, labels):
    """The four commands of the README, on any cohort with masks."""
    store = folder / "store"
    for command in (
        ("prepare", source, store, "--size", size),
        ("pretrain", "rotation", store, "--out", folder / "rot", "--epochs", 2, "--widths", WIDTHS),
        ("finetune", store, "--encoder", folder / "rot", "--labels", labels, "--epochs", 2, "--out", folder / "ft"),
        ("finetune", store, "--labels", labels, "--epochs", 2, "--out", folder / "scratch", "--widths", WIDTHS),
    ):
        done = ssl3d(*command)
        assert done.returncode == 0, done.stderr
        assert "100%" in done.stdout + done.stderr, "a progress bar was shown"
    return store


def test_four_commands(tmp_path):
    walk(SAMPLES, tmp_path, 16, 0.2)
    assert (tmp_path / "ft/scores.csv").exists() and (tmp_path / "rot/encoder.safetensors").exists()


def test_predicting_checking_and_grading(tmp_path):
    rows = [f"{SAMPLES / 'imagesTr' / f'brain_{i:03d}.nii.gz'},{i % 2}" for i in range(1, 13)]
    (tmp_path / "graded.csv").write_text("image,grade\n" + "\n".join(rows))
    store = walk(SAMPLES, tmp_path, 16, 0.2)
    for command, said in (
        (("predict", tmp_path / "ft", store, tmp_path / "masks"), "6 masks"),
        (("check", store), "32 cases"),
        (("prepare", tmp_path / "graded.csv", tmp_path / "graded", "--size", 16, "--plan", "true"), "GB and"),
        (("prepare", tmp_path / "graded.csv", tmp_path / "graded", "--size", 16, "--dtype", "uint8"), "kept as uint8"),
        (
            (
                "classify",
                tmp_path / "graded",
                "--epochs",
                1,
                "--widths",
                WIDTHS,
                "--ordinal",
                "true",
                "--out",
                tmp_path / "c",
            ),
            "kappa",
        ),
    ):
        done = ssl3d(*command)
        assert done.returncode == 0 and said in done.stdout, done.stderr
    masks = sorted((tmp_path / "masks").glob("*.nii.gz"))
    shapes = {nib.load(file).shape for file in masks}
    assert len(masks) == 6 and shapes == {(48, 48, 48)}
    assert (tmp_path / "c/predictions.csv").exists()


def test_four_commands_on_real_hippocampi(real_data, tmp_path):
    walk(real_data / "Task04_Hippocampus", tmp_path, 32, 0.1)


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
        (("prepare", tmp_path / "nowhere", out), "nowhere"),
        (("prepare", tmp_path / "empty", out), "empty"),
        (("prepare", tmp_path / "broken", out, "--size", 8), "b1.nii.gz"),
        (("prepare", tmp_path / "masks/t.csv", tmp_path / "out2"), "m0.nii"),
        (("pretrain", "rotate", store.folder, "--out", out), "rotate"),
        (("pretrain", "rotation", tmp_path / "empty", "--out", out), "empty"),
        (("finetune", store.folder, "--encoder", tmp_path / "empty", "--out", out), "empty"),
        (("finetune", store.folder, "--labels", 0, "--out", tmp_path / "out3"), "label_fraction"),
        (("demo", tmp_path / "nowhere"), "nowhere"),
    ):
        done = ssl3d(*command)
        assert done.returncode == 1, (command, done.stderr)
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("ssl3d: ") and said in last and "Traceback" not in done.stderr, done.stderr
    done = ssl3d("prepare", SAMPLES, out, "--sizes", 8)
    assert done.returncode == 2 and "Traceback" not in done.stderr
