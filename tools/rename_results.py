"""Rename columns, keys and files of what experiments keep, to the names of version 0.1.0; values stay as they are.

    python tools/rename_results.py FOLDER ...        (a folder with results.csv or experiment.yaml, or a .yaml file)

The committed `results/` and `experiments/` went through it once; so can an experiment of yours that was made before.
"""

import csv
import gzip
import io
import re
import sys
from pathlib import Path

COLUMNS = {"share": "label_fraction"}
KEYS = {"shares": "label_fractions", "elsewhere": "pretraining_cohort"}
FILES = {"tracks.csv": "learning_curves.csv"}
OF_SEX = ("ixi_sex", "ixi_probe_sex")  # experiments whose column `grade` held the sex, 0 for F and 1 for M


def rename_table(file: Path, columns: dict[str, str]) -> None:
    """Rename columns of a CSV, packed or not; the lines below the header keep their bytes."""
    packed = file.suffix == ".gz"
    content = gzip.decompress(file.read_bytes()) if packed else file.read_bytes()
    header, end, rest = content.partition(b"\n")
    end = b"\r\n" if header.endswith(b"\r") else end
    names = next(csv.reader(io.StringIO(header.decode().rstrip("\r"))))
    renamed = [columns.get(name, name) for name in names]
    if renamed != names:
        content = ",".join(renamed).encode() + end + rest
        file.write_bytes(gzip.compress(content, mtime=0) if packed else content)


def rename_description(file: Path) -> None:
    """Rename keys of an experiment's YAML at the beginning of a line; comments and order stay."""
    text = file.read_text(encoding="utf-8")
    renamed = re.sub(rf"(?m)^({'|'.join(KEYS)}):", lambda key: f"{KEYS[key[1]]}:", text)
    if renamed != text:
        file.write_text(renamed, encoding="utf-8")


def main(places: list[Path]) -> None:
    for place in places:
        if place.is_file():
            rename_description(place)
            continue
        for old, new in FILES.items():
            if (place / old).exists():
                (place / old).rename(place / new)
        columns = COLUMNS | ({"grade": "sex"} if place.name in OF_SEX else {})
        for file in sorted([*place.glob("*.csv"), *place.glob("*.csv.gz")]):
            rename_table(file, columns)
        for file in place.glob("*.yaml"):
            rename_description(file)


if __name__ == "__main__":
    main([Path(place) for place in sys.argv[1:]])
