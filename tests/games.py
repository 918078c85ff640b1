"""The JavaScript of a game without a browser, by the node that playwright brings."""

import json
import subprocess
from importlib.resources import files

import pytest


def run_js(game: str, expression: str) -> object:
    """The value of an expression in which `m` is the module ssl3d/games/GAME.js."""
    driver = pytest.importorskip("playwright._impl._driver", reason="node comes with playwright, which is missing")
    module = (files("ssl3d") / "games" / f"{game}.js").as_uri()
    code = f'import * as m from "{module}"; console.log(JSON.stringify({expression}))'
    node = str(driver.compute_driver_executable()[0])
    done = subprocess.run([node, "--input-type=module"], input=code, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
