"""`make lab` as a new user starts it: the index opens in a browser, without a pop-up, and its links open, too."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(CHROMIUM is None, reason="the browser tests need Chromium (apt-get install chromium)"),
    pytest.mark.skipif(shutil.which("make") is None, reason="there is no make"),
]
LINKS = ("44_jigsaw.ipynb", "lessons/brain_tumour.ipynb", "../CONTRIBUTING.md")  # in nbs/, below it, and above it


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of what `make lab` needs, since JupyterLab writes beside what it opens."""
    folder = tmp_path_factory.mktemp("clone") / "ssl3d kit"
    for name in ("nbs", "tools", "data_samples"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("Makefile", "CONTRIBUTING.md", "settings.ini", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "ready").touch()
    return folder


@pytest.fixture
def started(clone, tmp_path):
    """`make lab` of a user who has never started it; gives what it prints, and the page that it opened."""
    opened, said = tmp_path / "opened", tmp_path / "said"
    browser = tmp_path / "browser.sh"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)
    (tmp_path / "home").mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "OMP_NUM"))}
    env |= {"HOME": str(tmp_path / "home"), "BROWSER": f"{browser} %s", "PYTHONPATH": str(ROOT)}
    env |= {"PYTHONUNBUFFERED": "1"}
    line = ["make", "-C", str(clone), "--no-print-directory", "lab", f"BIN={Path(sys.executable).parent}",
            "READY=ready", f"ARGS=--port {free_port()}"]  # fmt: skip
    with open(said, "w") as out:
        make = subprocess.Popen(line, env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        begun = time.time()
        while not (opened.exists() and opened.read_text() and "is ready" in said.read_text()):
            assert make.poll() is None and time.time() - begun < 180, said.read_text()
            time.sleep(0.1)
        yield said, opened.read_text().strip()
    finally:
        if make.poll() is None:
            os.killpg(make.pid, signal.SIGTERM)
        make.wait(30)


def test_the_index_opens_without_a_pop_up(started, clone):
    said, page_file = started
    assert page_file.startswith("file://"), "the page with the token, which goes on to the index"
    lines = said.read_text().splitlines()
    assert lines[0].startswith("Starting JupyterLab at nbs/index.ipynb"), lines
    ready = next(line for line in lines if "JupyterLab is ready after" in line)
    address = lines[lines.index(ready) + 1].strip()
    assert re.fullmatch(r"http://localhost:\d+/lab/tree/nbs/index.ipynb\?token=\w+", address), lines
    assert not [line for line in lines if "Traceback" in line or line.startswith("[")], "nothing of the log"
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, headless=True, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        begun = time.time()
        page.goto(page_file)
        page.wait_for_selector('.jp-Notebook h1:has-text("ssl3d")', timeout=60000)
        print(f"{ready}; the index stood in the browser after {time.time() - begun:.1f} s more")
        page.wait_for_timeout(8000)  # pop-ups come late
        found = page.eval_on_selector_all(".jp-Dialog, .Toastify__toast", "all => all.map(e => e.innerText)")
        assert not found, found
        for link in LINKS:
            page.click(f'.jp-Notebook a[href*="{link.removeprefix("../")}"] >> nth=0')
            name = link.rpartition("/")[2]
            page.wait_for_selector(f'.lm-TabBar-tab.lm-mod-current[title*="{name}"]', timeout=30000)
            page.click('.lm-TabBar-tab[title*="index.ipynb"]')
        assert not page.query_selector(".jp-Dialog"), "no link led nowhere"
        browser.close()
    assert not [*clone.rglob(".ipynb_checkpoints")], "no copies among the notebooks, which tests would take for some"


@pytest.fixture
def notebook(clone):
    """A notebook beside others that shows where a report lies, which lies in runs/, too."""
    folder = clone / "runs" / "test_make_lab"
    (folder / "a question").mkdir(parents=True, exist_ok=True)
    (folder / "a question/report.html").write_text("<!doctype html><title>t</title><h1>Does pretraining help?</h1>")
    code = ["from pathlib import Path\n", "from ssl3d.evidence.report import show_page\n",
            "show_page(Path('a question/report.html'))"]  # fmt: skip
    cell = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": [], "source": code, "id": "a"}
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    text = json.dumps({"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})
    (folder / "link.ipynb").write_text(text)
    return "runs/test_make_lab/link.ipynb"


def test_the_link_to_a_report_opens_it(started, notebook):
    address = next(line for line in started[0].read_text().splitlines() if "lab/tree/nbs" in line).strip()
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, headless=True, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address.replace("nbs/index.ipynb", notebook))
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60000)
        page.wait_for_selector("text=| Idle", timeout=120000)  # a cell that is run before is not run at all
        page.click(".jp-Notebook .jp-Cell .cm-content >> nth=0")
        page.keyboard.press("Shift+Enter")
        page.click('.jp-OutputArea-output a:has-text("a question/report.html")', timeout=120000)
        page.wait_for_selector('.lm-TabBar-tab.lm-mod-current[title*="report.html"]', timeout=30000)
        shown = page.frame_locator("iframe").locator("h1")
        assert shown.inner_text(timeout=30000) == "Does pretraining help?"
        browser.close()


@pytest.mark.parametrize("wrong", ["--ServerApp.root_dir=/nowhere", "--no-such-option=1"])
def test_a_start_that_fails_tells_why(clone, tmp_path, wrong):
    line = ["make", "-C", str(clone), "lab", f"BIN={Path(sys.executable).parent}", "READY=ready", f"ARGS={wrong}"]
    (tmp_path / "home").mkdir()
    env = os.environ | {"HOME": str(tmp_path / "home"), "BROWSER": "true", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode and "JupyterLab did not start. runs/lab.log tells why" in done.stderr, done.stdout
    assert wrong.split()[0].lstrip("-").partition("=")[0].replace("-", "_") in done.stderr.replace("-", "_")
