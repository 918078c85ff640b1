"""Notebooks in a real JupyterLab, in a real browser without a network; widgets are moved, and their pictures change."""

import io
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from conftest import ROOT
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("the browser tests need Chromium (Debian: apt-get install chromium)", allow_module_level=True)

FLAGS = "--no-sandbox --disable-background-networking --disable-dev-shm-usage --ignore-gpu-blocklist --use-gl=angle "
FLAGS += "--use-angle=swiftshader --enable-unsafe-swiftshader"
PLAY = """
import torch
from ssl3d.networks.encoders import make_encoder
from ssl3d.tasks import TASKS
from ssl3d.tasks.cpc import play_cpc
from ssl3d.tasks.exemplar import play_exemplar
from ssl3d.tasks.jigsaw import play_jigsaw
from ssl3d.tasks.location import play_location
from ssl3d.tasks.rotation import play_rotation
from ssl3d.plots.widgets import view

images = torch.rand(3, 1, 36, 36, 36, generator=torch.Generator().manual_seed(0))
task = {name: TASKS[name](make_encoder("unet", 3, 1, (8, 16, 32), 0), **{"jigsaw": {"n_permutations": 20},
        "cpc": {"grid": 3, "overlap": 0.0}}.get(name, {})) for name in TASKS}
%%
play_rotation(images[0], task["rotation"])
%%
play_location(images[0], task["location"])
%%
play_jigsaw(images[0], task["jigsaw"])
%%
play_exemplar(images, task["exemplar"])
%%
play_cpc(images[0], task["cpc"])
%%
odd = images[0, 0, ..., 1:]  # of an even number of slices, the one in the middle would still be the nearest
view(odd, odd > 0.9, viewer="slices")
%%
view(images[0, 0], images[0, 0] > 0.9)
"""
NOTEBOOKS = sorted(str(file.relative_to(ROOT / "nbs")) for file in (ROOT / "nbs").rglob("*.ipynb"))
KINDS = {
    "slider": ".noUi-handle",
    "toggle": ".widget-toggle-button:not(.mod-active)",
    "dropdown": "select",  # after the toggles: turned by 0° about another axis, a brain is the same
    "checkbox": "input[type=checkbox]",
    "button": "button.jupyter-button:not(.widget-toggle-button)",
}
CONTROLS = {  # how many there are to move, widget by widget; in all other notebooks none
    "play.ipynb": 4 + 30 + 5 + 7 + 4 + 3 + 1,  # the one above, in its order
    "22_widgets.ipynb": 2 + 1,
    "41_rotation.ipynb": 4,
    "43_location.ipynb": 30,
    "44_jigsaw.ipynb": 4 + 4 + 5 + 5,
    "46_exemplar.ipynb": 7,
    "47_cpc.ipynb": 4,
    "54_monitor.ipynb": 2,
    "lessons/brain_tumour.ipynb": 1 + 4 + 30 + 2 + 2,
    "lessons/pancreas.ipynb": 4 + 30 + 2 + 2,
    "lessons/retinopathy.ipynb": 5 + 6 + 2,
    "lessons/your_own_scans.ipynb": 4 + 2,
}
IDLE = {  # those that need not change their picture
    ("dropdown", "place"): "says what 'exchange' is to move",
    ("dropdown", "with"): "says what 'exchange' is to move",
    ("button", "start"): "its run makes no step as soon as that; a test of its own waits",
    ("button", "stop"): "as start",
}
LABEL = """e => e.tagName == 'BUTTON' ? e.textContent.trim() :
    [...(e.closest('.widget-inline-hbox') || e).querySelectorAll('.widget-label, .widget-label-basic')]
        .map(x => x.textContent).join('').trim()"""
CELLS = """() => [...document.querySelectorAll('.jp-CodeCell')].map(c => ({
    prompt: c.querySelector('.jp-InputPrompt')?.textContent || '',
    empty: !c.querySelector('.cm-content')?.textContent.trim(),
    error: [...c.querySelectorAll('.jp-OutputArea-output[data-mime-type^="application/vnd.jupyter."]')]
        .map(x => x.textContent).filter(t => t.includes('Traceback (most recent call last)')).join('').slice(-600)}))"""
BROKEN = """() => [...document.querySelectorAll('.jp-OutputArea-output')].map(e => e.textContent)
    .filter(t => /Error displaying widget|Error creating widget|Failed to load|Loading widget/.test(t))"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab of its own on a copy of the notebooks; gives its address and its folder."""
    folder = tmp_path_factory.mktemp("lab")
    for name in ("nbs", "results", "data_samples", "experiments"):
        shutil.copytree(ROOT / name, folder / name)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    token, own = secrets.token_hex(16), folder / "jupyter"
    places = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")
    env = os.environ | {f"JUPYTER_{p}": str(own / p) for p in places} | {"IPYTHONDIR": str(own / "ipython")}
    env |= {"JUPYTERLAB_SETTINGS_DIR": str(own / "set"), "JUPYTERLAB_WORKSPACES_DIR": str(own / "work")}
    env |= {"OMP_NUM_THREADS": "1"}  # as the notebooks were run; two threads on two busy cores wait for each other
    news = own / "set/@jupyterlab/apputils-extension"
    news.mkdir(parents=True)
    (news / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    line = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    line += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"]
    line += [f"--ServerApp.root_dir={folder / 'nbs'}", "--LabApp.news_url=None"]
    line += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with open(folder / "server.log", "w") as log:
        server = subprocess.Popen(line, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token={token}", timeout=2)
                break
            except OSError:
                assert server.poll() is None, (folder / "server.log").read_text()[-3000:]
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}", token, folder / "nbs"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def opened(page, address, token, notebook, seconds):
    """Run all cells of a notebook, and wait until they ran; errors of cells and of widgets fail the test."""
    page.goto(f"{address}/doc/tree/{notebook}?token={token}&reset", wait_until="load")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60000)
    page.wait_for_timeout(3000)
    page.click(".jp-Notebook .jp-Cell >> nth=0")
    page.click('.lm-MenuBar-item:has-text("Run")')
    page.click('.lm-Menu-item[data-command="runmenu:run-all"]')
    begun = time.time()
    while time.time() - begun < seconds:
        cells = page.evaluate(CELLS)
        assert not any(c["error"] for c in cells), [c["error"] for c in cells if c["error"]]
        if cells and all(re.search(r"\d", c["prompt"]) or c["empty"] for c in cells):
            break
        page.wait_for_timeout(500)
    else:
        pytest.fail(f"{notebook}: not all cells ran in {seconds} s: {[c['prompt'] for c in page.evaluate(CELLS)]}")
    page.wait_for_timeout(4000)
    assert not page.evaluate(BROKEN), page.evaluate(BROKEN)


def move(page, control):
    """What a hand would do to one control."""
    kind = control.evaluate("e => e.className")
    control.scroll_into_view_if_needed()
    if "noUi-handle" in kind:
        control.focus()
        full = control.get_attribute("aria-valuenow") == control.get_attribute("aria-valuemax")
        for _ in range(2):  # one step may be too small to be seen
            page.keyboard.press("ArrowLeft" if full else "ArrowRight")
    elif control.evaluate("e => e.tagName") == "SELECT":
        control.select_option(index=control.evaluate("e => (e.selectedIndex + 1) % e.options.length"))
    else:
        control.click()


def settle(page, picture):
    """Wait until a picture has been the same for half a second: a late one would be taken for the next control's."""
    before, same = picture.get_attribute("src"), 0
    while same < 5:
        page.wait_for_timeout(100)
        now = picture.get_attribute("src")
        before, same = now, same + 1 if now == before else 0


def colours(canvas):
    """How many colours NiiVue shows, and all that it shows, as the browser has put it on the screen."""
    canvas.scroll_into_view_if_needed()
    shown = Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")
    return len(shown.getcolors(shown.width * shown.height)), shown.tobytes()


def drive(page):
    """Move every control of every widget with a picture; gives those that changed it, and did not: kind and label."""
    changed, idle = [], []
    for box in page.query_selector_all(".jp-OutputArea-output .widget-vbox"):
        picture = box.query_selector(":scope > img.widget-image")
        for kind, selector in KINDS.items() if picture else ():
            for i in range(len(box.query_selector_all(selector))):
                controls = box.query_selector_all(selector)  # anew, since a toggle that was pressed is none any more
                before, control = picture.get_attribute("src"), controls[min(i, len(controls) - 1)]
                what = kind, control.evaluate(LABEL)
                move(page, control)
                for _ in range(20 if what in IDLE else 150):
                    page.wait_for_timeout(100)
                    if picture.get_attribute("src") != before:
                        break
                settle(page, picture)
                (idle if picture.get_attribute("src") == before else changed).append(what)
    for canvas in page.query_selector_all(".jp-OutputArea-output canvas"):
        many, before = colours(canvas)
        assert many > 50, f"NiiVue has drawn {many} colours"
        room = canvas.bounding_box()
        canvas.click(position={"x": room["width"] / 6, "y": room["height"] / 3})  # the cross hair goes there
        page.wait_for_timeout(1000)
        (idle if colours(canvas)[1] == before else changed).append(("canvas", "NiiVue"))
    for button in page.query_selector_all('button.jupyter-button:has-text("stop")'):
        if button.is_enabled():
            button.click()
    return changed, idle


def check_controls(notebook, changed, idle):
    """Every control that is expected is there, and each of them is answered by its picture, but for a few."""
    assert len(changed) + len(idle) == CONTROLS.get(notebook, 0), (notebook, changed, idle)
    assert not set(idle) - set(IDLE), (notebook, sorted(set(idle) - set(IDLE)))


def guard(context):
    """Let a browser reach nothing but this machine; gives the list of what it asked for elsewhere."""
    outside, here = [], re.compile(r"^(https?|wss?)://(127\.0\.0\.1|localhost)[:/]")

    def route(request):
        url = request.request.url
        if here.match(url) or not url.startswith("http"):
            request.continue_()
        else:
            outside.append(url)
            request.abort()

    def refuse(socket):
        outside.append(socket.url)
        socket.close()

    context.route("**/*", route)
    context.route_web_socket(lambda url: not here.match(url), refuse)
    return outside


def end_kernels(address, token):
    """End what runs behind the notebooks: forty kernels at once do not fit into the memory."""
    with urllib.request.urlopen(f"{address}/api/kernels?token={token}") as found:
        kernels = json.load(found)
    for kernel in kernels:
        end = urllib.request.Request(f"{address}/api/kernels/{kernel['id']}?token={token}", method="DELETE")
        urllib.request.urlopen(end).close()


def browse(lab, notebook, seconds, then):
    """Open a notebook in a browser that reaches nothing but JupyterLab, and do something with the page."""
    address, token, _ = lab
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS.split())
        context = browser.new_context(viewport={"width": 1280, "height": 1600})
        outside, page = guard(context), context.new_page()
        try:
            opened(page, address, token, notebook, seconds)
            found = then(page)
        finally:
            browser.close()
            end_kernels(address, token)
    assert outside == [], "no request leaves the machine"
    return found


def write_notebook(file, text):
    """A notebook of the cells that lie between lines of %%."""
    empty = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": []}
    cells = [empty | {"source": part.strip()} for part in text.split("%%")]
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    file.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 4}))


def test_widgets_of_every_kind(lab):
    write_notebook(lab[2] / "play.ipynb", PLAY)

    def then(page):
        canvas = page.evaluate("() => [...document.querySelectorAll('.jp-OutputArea-output canvas')].map(c => c.width)")
        return canvas, *drive(page)

    canvas, changed, idle = browse(lab, "play.ipynb", 240, then)
    assert len(canvas) == 1 and canvas[0] > 300, "NiiVue has room to draw"
    assert {*KINDS, "canvas"} == {kind for kind, _ in changed}, (changed, idle)
    check_controls("play.ipynb", changed, idle)


def test_a_cell_that_fails_is_noticed(lab):
    write_notebook(lab[2] / "broken.ipynb", "import sys\nprint('a warning', file=sys.stderr)\n%%\nprint(1)\n1 / 0")
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        browse(lab, "broken.ipynb", 60, lambda page: None)


def test_what_leaves_the_machine_is_caught():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS.split())
        context = browser.new_context()
        outside, page = guard(context), context.new_page()
        page.evaluate("() => fetch('http://192.0.2.1/x').catch(() => 0)")
        page.evaluate("() => new Promise(done => { new WebSocket('ws://192.0.2.1/y').onclose = done })")
        browser.close()
    assert outside == ["http://192.0.2.1/x", "ws://192.0.2.1/y"]


def test_news_of_a_run_arrive_when_no_cell_runs(lab):
    command = f"ssl3d pretrain rotation /nowhere --out {lab[2] / 'never'}"
    write_notebook(lab[2] / "news.ipynb", f"from ssl3d import live\n%%\nlive({{'rotation': '{command}'}})")

    def then(page):
        told = ".jp-OutputArea-output .widget-html-content >> nth=0"
        before = page.inner_text(told).strip()
        page.click('button.jupyter-button:has-text("start")')
        for _ in range(600):
            page.wait_for_timeout(100)
            if page.inner_text(told).strip().startswith("failed"):
                break
        return before, page.inner_text(told).strip()

    before, after = browse(lab, "news.ipynb", 120, then)
    assert before == "not begun" and re.match(r"failed \(exit status 1\): .*/nowhere", after)


@pytest.mark.long  # the whole of it, in a browser; by hand it is in test_monitor, and news and widgets are above
def test_a_training_is_watched_stopped_and_goes_on(lab, store):
    command = f"ssl3d pretrain rotation {store.folder} --out {lab[2] / 'run'} --steps 3000 --widths [4,8]"
    write_notebook(lab[2] / "watch.ipynb", f"from ssl3d import live\n%%\nlive({{'rotation': '{command}'}})")

    def then(page):
        def press(name):
            page.click(f'button.jupyter-button:has-text("{name}")')

        def wait(pattern):
            told = ".jp-OutputArea-output .widget-html-content >> nth=0"
            for _ in range(900):
                found = re.fullmatch(pattern, page.inner_text(told).strip())
                if found:
                    return int(found[1]), page.get_attribute(".jp-OutputArea-output img.widget-image", "src")
                page.wait_for_timeout(100)
            pytest.fail(f"waited for {pattern}: {page.inner_text(told)}")

        press("start")
        begun = wait(r"step (\d{3,}) of 3000.* s left")
        later = begun
        while later[0] == begun[0] or later[1] == begun[1]:
            page.wait_for_timeout(500)
            later = wait(r"step (\d+) of 3000.* s left")
        press("stop")
        stopped = wait(r"stopped at step (\d+) of 3000")
        press("go on")
        gone_on = wait(r"step (\d+) of 3000.* s left")
        press("stop")
        wait(r"stopped at step (\d+) of 3000")
        return begun, later, stopped, gone_on

    begun, later, stopped, gone_on = browse(lab, "watch.ipynb", 120, then)
    assert 100 <= begun[0] < later[0] <= stopped[0] and begun[1] != later[1], "the bar and the picture grow"
    assert stopped[0] <= gone_on[0], "it goes on from where it stopped"


@pytest.mark.lab
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_notebook(lab, notebook):
    check_controls(notebook, *browse(lab, notebook, 600, drive))
