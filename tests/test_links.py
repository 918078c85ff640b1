"""Links between notebooks can be clicked, and lead to a page, a file or a heading that is there."""

import json
import re
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.quick

BOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
NAMES = {book.stem for book in BOOKS if book.stem[0].isdigit()}


def texts(book: Path) -> list[str]:
    cells = json.loads(book.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]


def anchors(book: Path) -> set[str]:
    """The headings of a notebook as JupyterLab makes anchors of them: spaces become hyphens."""
    return {line.lstrip("#").strip().replace(" ", "-") for text in texts(book) for line in text.splitlines()
            if re.match(r"#+ ", line)}  # fmt: skip


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_every_link_leads_somewhere(book):
    for text in texts(book):
        for name, target in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", text):
            if re.match(r"https?://|mailto:", target):
                continue
            path, _, anchor = target.partition("#")
            place = (book.parent / path).resolve() if path else book
            assert place.exists(), f"[{name}]({target}): there is no such file; mend the link or its name"
            assert not anchor or anchor in anchors(place), f"[{name}]({target}): no such heading"
            named = re.fullmatch(r"(\d\d_\w+)", name)
            assert not named or place.stem == name, f"[{name}]({target}) leads to another notebook"


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_every_notebook_that_is_named_can_be_clicked(book):
    for text in texts(book):
        plain = re.sub(r"```.*?```|\[[^\]]*\]\([^)]*\)", "", text, flags=re.S)
        named = {name for name in re.findall(r"(?<![\w/])(\d\d_[a-z_]+)", plain) if name in NAMES}
        assert not named, f"{named} cannot be clicked in '{text[:60]}': write [NAME](NAME.ipynb)"
        old = re.findall(r"`(\d\d_[a-z]+)`", plain)
        assert not old, f"{old} is no notebook, or not a link"


def test_readme_and_contributing():
    for page in ("README.md", "CONTRIBUTING.md", "data_samples/README.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for _, target in re.findall(r"\[([^\]]*)\]\(([^)\s#]+)[^)]*\)", text):
            assert re.match(r"https?://", target) or (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"
        for name in re.findall(r"(?<![\w/])(\d\d_[a-z_]+)\b", text):
            known = name in NAMES or name in ("48_mirror", "67_volume")  # those of the page's examples
            assert known, f"{page} names {name}, and there is no such notebook"
