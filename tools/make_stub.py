"""Write ssl3d/__init__.pyi: the names of the face for mypy and editors, each option of a step with its type.

The steps' signatures are made when they are loaded (`ssl3d.settings.takes`), so a type checker cannot read them from
the code. This tool writes them down; `tools/check_sync.py` compares.
"""

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import ssl3d
from ssl3d.downstream.goals import GOALS
from ssl3d.tasks import NAMES

HEAD = '''"""The face of the package, for type checkers and editors. Made by tools/make_stub.py; do not edit."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Optional, Union

import numpy as np
import torch
from torch.utils.data import Dataset

from ssl3d import tasks as tasks
from ssl3d.files import Folder
from ssl3d.settings import Logger
from ssl3d.training.runs import Run as _Run
'''
GENERIC = {"Dataset": "[Any]", "Callable": "[..., Any]", "Sequence": "[Any]", "Iterable": "[Any]"}
CHOICES = {"task": NAMES, "goal": GOALS}  # what is a text in the code, and one of these names for a type checker


def annotation(kind: Any, name: str = "") -> str:
    """A type as it is written."""
    if name in CHOICES:
        none = " | None" if "None" in inspect.formatannotation(kind) else ""
        return f"Literal[{', '.join(repr(known) for known in CHOICES[name])}]{none}"
    if isinstance(kind, str):
        return kind
    text = inspect.formatannotation(kind).replace("NoneType", "None")
    text = re.sub(r"tuple\[(\w+), \.\.\.\]", r"Sequence[\1]", text)
    text = re.sub(r"\b(collections\.abc|typing|pathlib|torch\.utils\.data\.dataset)\.", "", text)
    text = text.replace("numpy.", "np.")
    text = re.sub(r"\b(Dataset|Callable|Sequence|Iterable)(?!\[|\w)", lambda m: m.group(1) + GENERIC[m.group(1)], text)
    return re.sub(r"\bssl3d(\.\w+)+\.(\w+)", r"\2", text)


def definition(name: str, function: Any) -> str:
    """One step as a stub: a parameter a line, then the docstring."""
    signature, lines, starred = inspect.signature(function), [f"def {name}("], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            lines.append("    *,")
            starred = True
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        known = parameter.annotation is not parameter.empty
        kind = f": {annotation(parameter.annotation, parameter.name)}" if known else ""
        lines.append(f"    {parameter.name}{kind}{default},")
    lines.append(f") -> {annotation(signature.return_annotation)}:")
    text = "\n".join("    " + line if line else "" for line in (inspect.getdoc(function) or "").splitlines())
    lines += ['    """' + text.strip() + '\n    """', "    ..."]
    return "\n".join(lines)


def with_steps(kind: type) -> str:
    """A class whose methods take options, as a subclass of itself that has their signatures."""
    methods = [definition(name, method) for name, method in vars(kind).items() if hasattr(method, "__options__")]
    body = "\n\n".join("    " + line if line else "" for method in methods for line in [*method.splitlines(), ""])
    return f"class {kind.__name__}(_{kind.__name__}):\n" + re.sub(r"\n\n", "\n", body).rstrip()


def stub() -> str:
    """The whole file."""
    imports, steps = [], []
    for name, home in sorted(ssl3d._HOME.items(), key=lambda pair: (pair[1], pair[0])):
        found = getattr(ssl3d, name)
        if name == "Run":
            steps.append(with_steps(found))
        elif hasattr(found, "__options__"):
            steps.append(definition(name, found))
        else:
            imports.append(f"from ssl3d.{home} import {name} as {name}")
    return HEAD + "\n".join(imports) + "\n\n__version__: str\n__all__: list[str]\n\n" + "\n\n".join(steps) + "\n"


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else Path(ssl3d.__file__).parent / "__init__.pyi")
    target.write_text(stub(), encoding="utf-8")
