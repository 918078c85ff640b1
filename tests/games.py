"""The games' JavaScript, run by node: the one that playwright brings."""

import json
import subprocess

import pytest
from conftest import ROOT


def run_js(game: str, expression: str) -> object:
    """The value of a JavaScript expression about a game of ssl3d/games, whose exported functions are in `m`."""
    driver = pytest.importorskip("playwright._impl._driver", reason="games are run by the node that playwright brings")
    node, _ = driver.compute_driver_executable()
    file = (ROOT / "ssl3d" / "games" / f"{game}.js").as_uri()
    code = f'import * as m from "{file}"; console.log(JSON.stringify({expression}))'
    done = subprocess.run([node, "--input-type=module", "-e", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
