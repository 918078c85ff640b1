"""What the README promises."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.long
def test_the_python_example_runs_as_written(tmp_path):
    os.symlink(ROOT / "data_samples", tmp_path / "data_samples")
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said in README.replace("\n    ", "\n") or "Dice over 6 test cases" in said


def test_links_and_pictures_are_there():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links and not [link for link in links if not (ROOT / link).exists()]
    assert any(link.endswith(".png") for link in links)
