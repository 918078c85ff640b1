"""Files: whole or not there, whoever writes at once; disks that take no more; YAML as people write it; consoles."""

import errno
import io
import os
import sys
import threading

import numpy as np
import pytest
import torch

from ssl3d.errors import InputError
from ssl3d.files import (
    disk_troubles,
    is_free,
    new_folder,
    read_table,
    read_text,
    read_yaml,
    say,
    sweep,
    write_table,
    write_whole,
)
from ssl3d.settings import Pretraining, from_text, options_of
from ssl3d.training.runs import append_log

pytestmark = pytest.mark.quick


# YAML


@pytest.mark.parametrize(
    "text, name, line",
    [
        ("a: 1\nb: 2\na: 3", "'a'", 3),
        ("cohort: {source: X}\narms: {}\ncohort: {source: Y}", "'cohort'", 3),
        ("arms:\n  x: {}\n  'x': {}", "'x'", 3),
        ("arms:\n  x: {lr: 1, lr: 1}", "'lr'", 2),
        ("a:\n- b:\n    c: 1\n    d: 2\n    c: 1", "'c'", 5),
        ("1: a\n1.0: b", "1.0", 2),
        ("{a: 1, a: 2}", "'a'", 1),
        ("x: &x {a: 1, a: 2}\ny: *x", "'a'", 1),
    ],
)
def test_two_equal_keys_are_refused_with_their_line(text, name, line):
    with pytest.raises(ValueError, match=f"line {line} has {name} again"):
        read_yaml(text)


def test_anchors_and_merge_keys_go_on_working():
    text = """
base: &base {lr: 1e-3, steps: 5}
more: &more {<<: *base, lr: 2.e-3}
arm: {<<: *more, steps: 7}
both: {<<: [*base, {widths: [4]}], seed: 1}
again: *more
"""
    found = read_yaml(text)
    assert found["more"] == found["again"] == {"lr": 0.002, "steps": 5} and found["arm"] == {"lr": 0.002, "steps": 7}
    assert found["both"] == {"lr": 0.001, "steps": 5, "widths": [4], "seed": 1}


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", "1.0e-3", ".001", "0.001", "+1e-3", ".1e-2", "10e-4"])
def test_a_number_is_a_number(text):
    assert read_yaml(f"lr: {text}")["lr"] == pytest.approx(0.001)
    assert read_yaml(f"lr: '{text}'")["lr"] == text, "in quotes it is a text"


@pytest.mark.parametrize("text", ["e-3", "1e", ".", "-", ".e3", "1e-3x", "v1.5", "1-3"])
def test_a_text_is_a_text(text):
    assert read_yaml(f"[x{text}, '{text}']")[1] == text and isinstance(read_yaml(f"a: {text}x")["a"], str)


@pytest.mark.parametrize(
    "raw",
    [
        b"\xef\xbb\xbfa: \xc3\xbc\r\nb: 2\r\n",
        "a: ü\r\nb: 2\r\n".encode("utf-16"),
        "\ufeffa: ü\nb: 2\n".encode("utf-16-be"),
        "a: ü\nb: 2".encode(),
    ],
)
def test_texts_as_editors_write_them(tmp_path, raw):
    (tmp_path / "e.yaml").write_bytes(raw)
    assert read_yaml(read_text(tmp_path / "e.yaml")) == {"a": "ü", "b": 2}


def test_another_encoding_and_tabs_are_said(tmp_path):
    (tmp_path / "e.yaml").write_bytes("a: 1\nb: Bäuche\n".encode("latin-1"))
    with pytest.raises(InputError, match="e.yaml: line 2 has the byte 0xe4.*Save the file as UTF-8"):
        read_text(tmp_path / "e.yaml")
    for text in ("a:\n\tb: 1", "a: 1\n\tb: 2", "arms:\n  x: {}\n\ty: {}"):
        with pytest.raises(ValueError, match="line . has a tab.*spaces"):
            read_yaml(text)


def test_options_of_a_task_in_a_shell_have_each_name_once():
    kind = options_of(Pretraining)["options"][1]
    assert from_text(kind, "{grid: 2, gap: 1}") == {"grid": 2, "gap": 1}
    with pytest.raises(InputError, match="line 1 has 'grid' again"):
        from_text(kind, "{grid: 2, grid: 3}")


# Writing


def test_many_may_write_one_file_and_leave_one(tmp_path):
    wrong, names = [], [f"{'ü' * 117}.npy", "settings.yaml"]

    def write(i):
        try:
            for name in names * 20:
                write_whole(tmp_path / name, lambda f: f.write(bytes([65 + i]) * 5000))
        except Exception as e:
            wrong.append(e)

    writers = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not wrong and sorted(f.name for f in tmp_path.iterdir()) == sorted(names)
    assert all(len(set(file.read_bytes())) == 1 and file.stat().st_size == 5000 for file in tmp_path.iterdir())


def test_what_was_cut_off_is_taken_for_nothing_and_swept(tmp_path):
    seen = []

    def look(f):
        seen.extend(tmp_path.iterdir())
        assert is_free(tmp_path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "last.ckpt", look)
    assert len(seen) == 1 and not list(tmp_path.iterdir()), "nothing is left where writing failed"
    seen[0].write_bytes(b"killed")
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_folder_is_free_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for taken in ("file", "file/a", "file/a/b", "link", "link/a"):
        assert not is_free(tmp_path / taken)
        with pytest.raises(InputError, match=rf"{taken}: \S+/(file|link) is a file, and no folder. Name a new folder"):
            new_folder(tmp_path / taken)
    with pytest.raises(InputError, match="is not empty. Name a new folder"):
        new_folder(tmp_path)
    assert new_folder(str(tmp_path / "new/a")) == tmp_path / "new/a" and not (tmp_path / "new").exists()


class Full(io.BytesIO):
    """A file on a disk that has room for nothing."""

    number = errno.ENOSPC

    def write(self, data):
        raise OSError(self.number, os.strerror(self.number))


def save_as(f, write, number):
    f.file = Full()
    f.file.number = number
    write(f)


WRITERS = {
    "bytes": lambda f: f.write(b"1"),
    "array": lambda f: np.save(f, np.zeros(100_000)),
    "arrays": lambda f: np.savez(f, a=np.zeros(1000)),
    "weights": lambda f: torch.save({"a": torch.zeros(100_000)}, f),
}
SAID = {
    errno.ENOSPC: r"no space left on the disk of {}, \d+ MB are free .*Make room and run the same command again",
    errno.EDQUOT: "your quota on the disk of {} is used up .*Make room and run the same command again",
    errno.EROFS: "the disk of {} can be read only .*Name a folder on another disk",
    errno.EACCES: "you have no permission .*or name another folder",
}


@pytest.mark.parametrize("number", SAID)
@pytest.mark.parametrize("what", WRITERS)
def test_a_disk_that_takes_no_more_is_named_whatever_a_library_says(tmp_path, what, number):
    """PyTorch says "unexpected pos", and NumPy how many bytes were written."""
    (tmp_path / "x").write_text("as it was")
    with pytest.raises(InputError, match=f"{tmp_path}/x: .*" + SAID[number].format(tmp_path)):
        with disk_troubles():
            write_whole(tmp_path / "x", lambda f: save_as(f, WRITERS[what], number))
    assert [f.name for f in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_text() == "as it was"


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="mine"), disk_troubles():
        write_whole(tmp_path / "x", lambda f: (_ for _ in ()).throw(RuntimeError("mine")))
    with pytest.raises(FileNotFoundError), disk_troubles():
        open(tmp_path / "nowhere")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no disk that is always full")
def test_a_log_on_a_full_disk_is_named(tmp_path):
    (tmp_path / "log.csv").symlink_to("/dev/full")
    with pytest.raises(InputError, match="log.csv: no space left on the disk of"), disk_troubles():
        append_log(tmp_path, {"step": 1, "loss": 2.0})


# Consoles


@pytest.mark.parametrize("coding", ["ascii", "cp932", "cp1252", "utf-8"])
def test_every_console_can_be_spoken_to(monkeypatch, coding):
    console = io.TextIOWrapper(io.BytesIO(), encoding=coding, write_through=True)
    monkeypatch.setattr(sys, "stdout", console)
    say("R² of Bäuche, 漢字, b\udcff.nii")
    heard = console.buffer.getvalue().decode(coding)
    assert heard.startswith("R") and "of B" in heard and "\\udcff.nii" in heard


def test_names_that_are_no_letters_stay_in_tables(tmp_path):
    rows = [{"case": "b\udcff", "dice": 0.5}, {"case": "ü", "dice": 1.0}]
    for name in ("scores.csv", "scores.csv.gz"):
        write_table(tmp_path / name, rows)
        assert read_table(tmp_path / name) == rows


def test_rows_of_two_versions_make_one_table(tmp_path):
    write_table(tmp_path / "t.csv", [{"case": "a", "dice": 0.5}, {"case": "b", "dice": 0.25, "surface_dice": 0.75}])
    first, second = read_table(tmp_path / "t.csv")
    assert first["surface_dice"] == "" and second["surface_dice"] == 0.75 and second["dice"] == 0.25
