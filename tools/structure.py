"""Print the structure of the house in figures: floors, cells, options, words. Only the floors can fail.

A notebook's number is the floor of its module (`41_rotation` is ssl3d.tasks.rotation). A module imports from lower
numbers only. The few imports inside functions that go up have to be named in UPWARDS, each with its reason.
"""

import ast
import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
UPWARDS = {  # (module, what it imports inside a function) -> why
    ("ssl3d.downstream.export", "ssl3d.downstream.nnunet"): "an export names the program that it is for",
    ("ssl3d.training.runs", "ssl3d.downstream.export"): "a Run is written in the form of other programs",
    ("ssl3d.training.runs", "ssl3d.downstream.finetune"): "a Run has a network, and says what it reached",
    ("ssl3d.training.runs", "ssl3d.downstream.predict"): "a Run is applied to other scans",
    ("ssl3d.training.runs", "ssl3d.training.inputs"): "a Run prepares scans, and gives their features",
    ("ssl3d.training.runs", "ssl3d.training.loop"): "a Run draws the learning rate as the loop computes it",
}
_FACE_CODE = ast.parse((ROOT / "ssl3d" / "__init__.py").read_text("utf-8"))
_MODULES = next(ast.literal_eval(node.value) for node in _FACE_CODE.body if isinstance(node, ast.Assign)
                and ast.unparse(node.targets[0]) == "_MODULES")
FACE = {f"ssl3d.{name}": f"ssl3d.{module}" for module, names in _MODULES.items() for name in names}
LONG, SHORT = 60, 15  # lines: no function is longer than the first; most exported cells are no longer than the second


ROOMS = {"0": ("errors", "files", "seeds", "settings", "grids"), "1": ("data",), "2": ("plots",), "3": ("networks",),
         "4": ("tasks",), "5": ("training",), "6": ("downstream",), "7": ("evidence",),
         "8": ("demo_cohort", "cli"), "9": ("samples",)}  # first digit -> package, or modules beside the packages


class Book(NamedTuple):
    """One notebook."""

    name: str  # as 41_rotation
    module: str  # as ssl3d.tasks.rotation; empty where it exports nothing
    exported: list[str]  # code of its exported cells
    words: int  # in its text


def read_book(file: Path) -> Book:
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(file.read_text("utf-8"))["cells"]]
    first = next((text for _, text in cells if text.startswith("#| default_exp")), "")
    module = "ssl3d." + first.split()[-1].removesuffix(".__init__") if first else ""
    exported = [text.partition("\n")[2] for _, text in cells if re.match(r"#\| exporti?\n", text)]
    words = sum(len(re.findall(r"\w+", text)) for kind, text in cells if kind == "markdown")
    return Book(file.relative_to(ROOT / "nbs").with_suffix("").as_posix(), module, exported, words)


def books() -> list[Book]:
    """All notebooks, in the order of their numbers; index and lessons last."""
    return [read_book(file) for file in sorted((ROOT / "nbs").glob("*.ipynb"))] + \
        [read_book(file) for file in sorted((ROOT / "nbs" / "lessons").glob("*.ipynb"))]


def imports(code: str, modules: set[str]) -> list[tuple[str, bool]]:
    """The modules of the kit that a piece of code imports, and whether inside a function; types alone do not count."""
    tree = ast.parse(code)
    typing_only = {id(n) for node in ast.walk(tree) if isinstance(node, ast.If)
                   and ast.unparse(node.test) == "TYPE_CHECKING" for n in ast.walk(node)}
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        names = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ssl3d"):
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else FACE.get(name, node.module) for name in whole]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found += [(name, id(node) not in top) for name in names]
    return sorted({(name, inside) for name, inside in found if name in modules})


def upward_imports(shelf: list[Book]) -> tuple[list[str], list[tuple[str, str]]]:
    """What breaks the order of the floors, in words; and the imports inside functions that go up."""
    floor = {book.module: book.name for book in shelf if book.module}
    broken, inside_functions = [], []
    for book in shelf:
        for code in book.exported:
            for name, inside in imports(code, set(floor)):
                if book.module.startswith("ssl3d.tasks") and name.startswith("ssl3d.data"):
                    broken.append(f"{book.name} imports {name}, and a task needs nothing of the data room")
                elif floor[name] < book.name or name == book.module:
                    continue
                elif inside and (book.module, name) in UPWARDS:
                    inside_functions.append((book.module, name))
                else:
                    broken.append(f"{book.name} imports {name}, which is {floor[name]}: move one of them")
    return broken, inside_functions


def misnamed(shelf: list[Book]) -> list[str]:
    """What is wrong with the numbers and names of notebooks, in words: one number, one module, one room each."""
    numbers, modules, wrong = defaultdict(list), defaultdict(list), []
    for book in shelf:
        if book.name[0].isdigit():
            numbers[book.name[:2]].append(book.name)
        if book.module:
            modules[book.module].append(book.name)
    wrong += [f"{' and '.join(names)} have one number: give one of them a free one" for names in numbers.values()
              if len(names) > 1]
    wrong += [f"{' and '.join(names)} both make {module}: the later one overwrites it"
              for module, names in modules.items() if len(names) > 1]
    for book in shelf:
        room, _, last = book.module.removeprefix("ssl3d").lstrip(".").rpartition(".")
        if book.module and book.name[3:] != last:
            wrong.append(f"{book.name} makes {book.module}: call it {book.name[:2]}_{last}")
        if book.module and (room or last) not in ROOMS[book.name[0]]:
            rooms = " or ".join(ROOMS[book.name[0]])
            wrong.append(f"{book.name} makes {book.module}, and room {book.name[0]}x is {rooms}")
    return wrong


def lengths(code: str) -> list[tuple[str, int]]:
    """The functions of a cell with their lines; a class counts by its methods."""
    return [(node.name, node.end_lineno - node.lineno + 1) for node in ast.walk(ast.parse(code))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def options(shelf: list[Book]) -> dict[str, list[str]]:
    """Options -> where they are declared: fields made by `option(...)`, and defaults that a step has beside them."""
    declared, steps = defaultdict(list), []
    for book in shelf:
        for code in book.exported:
            for node in ast.walk(ast.parse(code)):
                if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call) and \
                        ast.unparse(node.value.func) == "option":
                    declared[ast.unparse(node.target)].append(f"{book.module}.{ast.unparse(node.target)}")
                elif isinstance(node, ast.FunctionDef) and any("takes(" in ast.unparse(d) for d in node.decorator_list):
                    steps.append((book, node))
    for book, node in steps:
        for argument in [*node.args.args[len(node.args.args) - len(node.args.defaults):], *node.args.kwonlyargs]:
            if argument.arg in declared:
                declared[argument.arg].append(f"{book.module}.{node.name}")
    return declared


def main() -> None:
    shelf = books()
    broken, up = upward_imports(shelf)
    cells = [code for book in shelf for code in book.exported]
    lines = [len(code.splitlines()) for code in cells]
    long = [(book.name, *pair) for book in shelf for code in book.exported for pair in lengths(code) if pair[1] > LONG]
    twice = {name: where for name, where in options(shelf).items() if len(where) > 1}
    print(f"floors    {sum(bool(book.module) for book in shelf)} modules, {len(up)} imports inside functions go up")
    for module, name in up:
        print(f"          {module} -> {name}: {UPWARDS[module, name]}")
    print(f"cells     {len(cells)} exported, median {statistics.median(lines):g} lines, "
          f"{sum(n <= SHORT for n in lines) / len(lines):.0%} of {SHORT} or fewer")
    print(f"functions {len(long)} of over {LONG} lines: {', '.join(f'{n} {k} ({b})' for b, n, k in long) or 'none'}")
    print(f"options   {len(options(shelf))} declared, {len(twice)} of them more than once{': ' * bool(twice)}"
          f"{', '.join(twice)}")
    words = sorted(((book.words, book.name) for book in shelf), reverse=True)
    print(f"words     {sum(n for n, _ in words)} in {len(shelf)} pages; most: "
          f"{', '.join(f'{name} {n}' for n, name in words[:3])}")
    if broken or misnamed(shelf):
        sys.exit("the floors are not in order:\n" + "\n".join(broken + misnamed(shelf)))


if __name__ == "__main__":
    main()
