"""Fail unless the notebooks are clean and ssl3d/ and README.md are what they make.

The commands that would mend a difference are run on a copy, so a check never changes the checkout.
"""

import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
MADE = ("nbs", "ssl3d", "README.md")


def files(root: Path) -> set[Path]:
    """What `make sync` writes, relative to the root."""
    found = {p for name in MADE for p in ([root / name] if (root / name).is_file() else (root / name).rglob("*"))}
    return {
        p.relative_to(root) for p in found if p.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & set(p.parts)
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(
            ROOT,
            copy,
            ignore=shutil.ignore_patterns(
                ".git", ".venv", "runs", "build", "*.egg-info", "__pycache__", "data_samples"
            ),
        )
        export, *tools = ([BIN / "python", f"tools/{name}.py"] for name in ("export", "make_stub", "clean_outputs",
                                                                                           "make_readme"))
        for command in (export, [BIN / "nbdev_clean"], *tools):
            subprocess.run([str(part) for part in command], cwd=copy, check=True,
                           env=os.environ | {"PYTHONPATH": str(copy)})
        differ = [
            p
            for p in sorted(files(ROOT) | files(copy))
            if not ((ROOT / p).exists() and (copy / p).exists() and filecmp.cmp(ROOT / p, copy / p, shallow=False))
        ]
        left_over = [p for p in differ if not (copy / p).exists()]
    if left_over:
        sys.exit("made by no notebook: " + ", ".join(map(str, left_over)) + "\n`make sync` would delete it. Move what "
                 "you wrote by hand into a notebook's exported cell; what a moved notebook left behind may go.")
    if differ:
        sys.exit("not in sync: " + ", ".join(map(str, differ)) + "\nRun `make sync` and commit what it changes.")
    print("notebooks, ssl3d/ and README.md are in sync")


if __name__ == "__main__":
    main()
