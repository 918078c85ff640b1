"""The words of the field stand in the glossary and in the lessons; names that mislead are gone from the code."""

import ast
import json
import re
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.quick

BOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
GLOSSARY = ROOT / "nbs" / "06_glossary.ipynb"
TERMS = ("pretext task", "proxy task", "downstream task", "augmentation", "overfitting", "generalisation",
         "cross-validation", "stratified", "confidence interval", "linear probe", "deterministic", "reproducible",
         "backbone", "encoder", "label fraction", "ablation")  # fmt: skip
BANNED = {"views", "shares", "tracks", "elsewhere", "practise", "examine"}  # names of options and modules that misled
RIDDLES = ("The paper's ten are not closed", "level to beat", "all that is bright is mistaken", "none the wiser",
           "nobody can be much quicker", "lie on one another")  # fmt: skip
LESSONS = [book for book in BOOKS if book.parent.name == "lessons" or
           book.stem in ("41_rotation", "43_location", "44_jigsaw", "46_exemplar", "47_cpc", "index")]  # fmt: skip
MODULES = sorted((ROOT / "ssl3d").rglob("*.py"))


def text_of(book: Path) -> str:
    cells = json.loads(book.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def rows() -> list[list[str]]:
    """The rows of the glossary: plain word, term, what it is, section of the paper, notebooks."""
    lines = [line for line in text_of(GLOSSARY).splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if row[0] != "plain word"]


@pytest.mark.parametrize("term", TERMS)
def test_each_term_is_in_the_glossary_and_in_a_lesson(term):
    assert any(term in row[1].lower() for row in rows()), f"the glossary has no row for {term!r}"
    used = [book.stem for book in BOOKS if book != GLOSSARY and term in text_of(book).lower()]
    assert used, f"no notebook but the glossary has {term!r}: put it beside the plain word"


def test_a_row_of_the_glossary_is_whole():
    assert len(rows()) >= 40
    for plain, term, meaning, paper, here in rows():
        assert plain and re.fullmatch(r"\*\*.+\*\*", term) and meaning.endswith("."), plain
        assert len(meaning.split()) <= 35, f"{plain}: one or two short sentences"
        assert not paper or re.fullmatch(r"([1-4](\.[1-5])?|A)(, ([1-4](\.[1-5])?|A))*", paper), f"{plain}: {paper}"
        assert re.search(r"\[\w+\]\(\w+\.ipynb\)", here), f"{plain}: in which notebook?"


def test_each_term_is_in_the_notebook_that_its_row_names():
    for _, term, _, _, here in rows():
        names = [part.strip() for part in re.sub(r"\(.*?\)|\*", "", term).split(",")]
        names += re.findall(r"\((\w+)\)", term)
        books = [ROOT / "nbs" / book for book in re.findall(r"\((\w+\.ipynb)\)", here)]
        found = "\n".join(book.read_text(encoding="utf-8").lower() for book in books)
        stems = [word.lower().split()[0][:7] for word in names]
        assert any(stem in found for stem in stems), f"{term}: neither of {names} is in {here}"


@pytest.mark.parametrize("book", LESSONS, ids=lambda book: book.stem)
def test_each_lesson_links_to_the_glossary(book):
    assert "06_glossary.ipynb)" in text_of(book)


def test_the_index_lists_every_notebook():
    listed = text_of(ROOT / "nbs" / "index.ipynb").partition("## All notebooks")[2]
    missing = [book.stem for book in BOOKS if book.stem != "index" and f"{book.name})" not in listed]
    assert not missing, f"the list at the end of the index lacks {missing}"


def named(module: Path) -> list[tuple[str, int]]:
    """The names of functions, classes, parameters and fields of a module, with their lines."""
    found = []
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.append((node.name, node.lineno))
        elif isinstance(node, ast.arg):
            found.append((node.arg, node.lineno))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.append((node.target.id, node.lineno))
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.relative_to(ROOT / "ssl3d").as_posix())
def test_names_do_not_mislead(module):
    wrong = [f"{name} (line {line})" for name, line in named(module) if name.strip("_") in BANNED]
    assert not wrong and module.stem not in BANNED, f"{module.name}: {wrong}"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.relative_to(ROOT / "ssl3d").as_posix())
def test_names_are_no_ids_and_draw_is_no_sampling(module):
    """Who reads cases of a store takes `case_ids`; a function that is called draw makes a picture."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            arguments = [arg.arg for arg in (*node.args.args, *node.args.kwonlyargs)]
            assert not {"store", "names"} <= set(arguments), f"{node.name}: ids of cases are called case_ids"
            picture = {"rng", "generator"} & set(arguments) and ast.unparse(node.returns or ast.Constant("")) == "dict"
            assert not (re.match(r"_?draw", node.name) and picture), f"{node.name}: call it sample_..."


def test_no_riddles_in_the_pages_of_the_rooms():
    others = {"41_rotation", "47_cpc"}  # their own rewriting comes with their games
    for book in BOOKS:
        found = [riddle for riddle in RIDDLES if riddle in text_of(book)]
        assert book.stem in others or not found, f"{book.stem}: {found}"
