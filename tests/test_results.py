"""The committed results keep the values that they were found with, whatever their columns are called."""

import csv
import gzip
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from ssl3d import InputError, read_experiment
from ssl3d.files import read_table

with open(Path(__file__).with_name("results_before.csv"), newline="") as f:
    BEFORE = list(csv.DictReader(f))  # of each table before its columns were renamed: columns, lines, hash of the lines

RENAMED = {"share": "label_fraction"}


def content(file: Path) -> tuple[list[str], bytes]:
    """The columns of a table, and the bytes of the lines below."""
    whole = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    header, _, lines = whole.partition(b"\n")
    return header.decode().strip().split(","), lines


@pytest.mark.parametrize("before", BEFORE, ids=lambda row: row["file"])
def test_values_are_those_that_were_found(before):
    if before["file"].startswith("results/bench"):
        pytest.skip("timings are made again by `make bench`")
    columns, lines = content(ROOT / before["file"].replace("tracks.csv", "learning_curves.csv"))
    assert hashlib.sha256(lines).hexdigest() == before["sha256"] and len(lines.splitlines()) == int(before["lines"])
    sex = {"grade": "sex"} if "_sex/" in before["file"] else {}
    assert columns == [(RENAMED | sex).get(name, name) for name in before["columns"].split(",")]


def test_no_table_has_an_old_name():
    for file in [*ROOT.glob("results/*/*.csv"), *ROOT.glob("results/*/*.csv.gz")]:
        columns, _ = content(file)
        assert file.parent.name == "bench" or "share" not in columns, file
        assert file.name != "tracks.csv", file
        if "grade" in columns:
            assert len({row["grade"] for row in read_table(file)}) > 2, f"{file}: a grade with two values is a sex"


def test_every_description_can_be_read():
    files = sorted(ROOT.glob("experiments/*.yaml"))
    assert len(files) >= 9
    for file in files:
        assert read_experiment(file).label_fractions and "shares" not in yaml.safe_load(file.read_text())


def test_an_experiment_of_before_is_refused_with_the_new_name(tmp_path):
    old = tmp_path / "experiment.yaml"
    old.write_text("cohort: {source: scans}\narms: {scratch: {}}\nshares: [0.1]\n")
    with pytest.raises(InputError, match="'shares' is called 'label_fractions' now"):
        read_experiment(old)
    subprocess.run([sys.executable, ROOT / "tools/rename_results.py", old], check=True)
    assert read_experiment(old).label_fractions == [0.1]
