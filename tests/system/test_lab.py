"""Notebooks in a real JupyterLab, in a real browser without a network: games are played while the kernel is busy.

`SSL3D_LAB_TIMES=FILE pytest -m lab` also writes how long each notebook with games took, from Run All on: to the first
picture of a game, to the first answer of a game, and to the end of its cells.
"""

import csv
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
from pathlib import Path
from typing import NamedTuple

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
view(images[0, 0], images[0, 0] > 0.9, viewer="slices")
%%
view(images[0, 0], images[0, 0] > 0.9)
"""
NOTEBOOKS = sorted(str(file.relative_to(ROOT / "nbs")) for file in (ROOT / "nbs").rglob("*.ipynb"))


class Seen(NamedTuple):
    """What a notebook shows; whoever adds a game, or takes one away, changes its line below."""

    games: int = 0  # drawn by the browser: .ssl3d-game
    live: int = 0  # trainings to start and to stop
    niivue: int = 0


SHOWN = {  # in all other notebooks nothing
    "play.ipynb": Seen(games=6, niivue=1),  # the one above
    "22_widgets.ipynb": Seen(games=1, niivue=1),
    "41_rotation.ipynb": Seen(games=1),
    "43_location.ipynb": Seen(games=1),
    "44_jigsaw.ipynb": Seen(games=3),
    "46_exemplar.ipynb": Seen(games=1),
    "47_cpc.ipynb": Seen(games=1),
    "54_monitor.ipynb": Seen(live=1),
    "index.ipynb": Seen(games=1),
    "lessons/brain_tumour.ipynb": Seen(games=2, live=2, niivue=1),
    "lessons/pancreas.ipynb": Seen(games=2, live=2),
    "lessons/retinopathy.ipynb": Seen(games=2, live=1),
    "lessons/your_own_scans.ipynb": Seen(games=1, live=1, niivue=1),
}
BUSY = """# this cell keeps the kernel busy
import pathlib, time
until = time.time() + 1200
while not pathlib.Path({file!r}).exists() and time.time() < until:
    time.sleep(0.1)
"""
TOLD = """# this cell prints the answers of all games that were shown
import json
from importlib.resources import files
from ipywidgets import Widget
from ssl3d.plots.widgets import game_text
kinds = [file.name[:-3] for file in (files("ssl3d") / "games").iterdir() if file.name.endswith(".js")]
kinds = {game_text(kind): kind for kind in kinds if kind != "slices"}
made = [w for w in Out.values() if type(w).__name__ == "Game"]  # Out: what the cells gave
print("ANSWERS", get_ipython().execution_count, json.dumps([(kinds[w._esm], w.answers, w.score) for w in made]))
"""
PRINTED = """() => [...document.querySelectorAll('.jp-OutputArea-output')].map(e => e.textContent)
    .filter(t => t.startsWith('ANSWERS ')).map(t => t.slice(8))[0] || ''"""
PARTS = "button, input, select, canvas[tabindex]"  # of a game: what can be pressed, moved or chosen
KEY = """e => [e.tagName, e.tagName == 'CANVAS' ? [...e.closest('.ssl3d-game').querySelectorAll('canvas')].indexOf(e)
    : e.getAttribute('aria-label') || e.textContent.trim(), e.type || '', JSON.stringify(e.dataset)].join(' ')"""
PICTURE = """g => [...g.querySelectorAll('canvas')].map(c => c.toDataURL()).join()
    + [...g.querySelectorAll('.told, .more, [role=status]')].map(e => e.textContent).join('|')"""
CLICKED = f"""g => {{
    const picture = {PICTURE}, before = picture(g);
    return [...g.querySelectorAll('button')].slice(0, 4).some(b => {{ b.click(); return picture(g) !== before; }});
}}"""  # the first buttons are clicked until one changes the picture: of a jigsaw, the second
DRAWN = """g => [...g.querySelectorAll('canvas')].some(c => c.width && new Set(
    c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size > 4)"""
CELLS = """() => [...document.querySelectorAll('.jp-CodeCell')].map(c => ({
    prompt: c.querySelector('.jp-InputPrompt')?.textContent || '',
    mine: (c.querySelector('.cm-content')?.textContent || '').startsWith('# this cell'),
    empty: !c.querySelector('.cm-content')?.textContent.trim(),
    error: [...c.querySelectorAll('.jp-OutputArea-output[data-mime-type^="application/vnd.jupyter."]')]
        .map(x => x.textContent).filter(t => t.includes('Traceback (most recent call last)')).join('').slice(-600)}))"""
BROKEN = """() => [...document.querySelectorAll('.jp-OutputArea-output')].map(e => e.textContent)
    .filter(t => /Error displaying widget|Error creating widget|Failed to load|Loading widget/.test(t))
    .concat([...document.querySelectorAll('.jp-OutputArea-output img')]
        .filter(i => i.offsetParent && i.complete && !i.naturalWidth).map(i => 'a picture without pixels'))"""


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


def begun(page, address, token, notebook):
    """Open a notebook and choose Run All; gives the time when it was chosen."""
    page.goto(f"{address}/doc/tree/{notebook}?token={token}&reset", wait_until="load")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60000)
    page.wait_for_timeout(3000)
    page.click(".jp-Notebook .jp-Cell >> nth=0")
    page.click('.lm-MenuBar-item:has-text("Run")')
    page.click('.lm-Menu-item[data-command="runmenu:run-all"]')
    return time.time()


def have_run(page, own=True):
    """Whether all cells have run, but for those that the test added where `own`; an error of a cell fails the test."""
    cells = page.evaluate(CELLS)
    assert not any(c["error"] for c in cells), [c["error"] for c in cells if c["error"]]
    waited_for = [c for c in cells if not (c["empty"] or own and c["mine"])]
    return bool(waited_for) and all(re.search(r"\d", c["prompt"]) for c in waited_for)


def until(page, true, seconds, what):
    """Wait until something is true; a test fails where it takes too long."""
    end = time.time() + seconds
    while not true():
        if time.time() > end:
            pytest.fail(f"waited {seconds} s until {what}: {[c['prompt'] for c in page.evaluate(CELLS)]}")
        page.wait_for_timeout(100)


def opened(page, address, token, notebook, seconds):
    """Run all cells of a notebook, and wait until they ran; errors of cells and of widgets fail the test."""
    begun(page, address, token, notebook)
    until(page, lambda: have_run(page, own=False), seconds, f"all cells of {notebook} had run")
    page.wait_for_timeout(4000)
    assert not page.evaluate(BROKEN), page.evaluate(BROKEN)


def busy(page):
    """Whether the kernel is running a cell: the page says so, and a cell has a star in place of its number."""
    said = "Busy" in page.inner_text("#jp-main-statusbar")
    return said and any("*" in cell["prompt"] for cell in page.evaluate(CELLS))


def press(page, part, times):
    """What a hand would do to one part of a game, that was pressed so often before: by keys, every second time."""
    kind = part.evaluate("e => e.tagName + (e.type || '')")
    part.scroll_into_view_if_needed()
    if kind in ("INPUTrange", "CANVAS"):
        part.focus()
        page.keyboard.press(("ArrowRight", "ArrowLeft")[times % 2])  # it may be at one end
    elif kind.startswith("SELECT"):
        part.select_option(index=part.evaluate("e => (e.selectedIndex + 1) % e.options.length"))
    elif times % 2:
        part.focus()
        page.keyboard.press("Enter")
    else:
        part.click()


def pressed(page, game, part, times=0):
    """Press a part of a game; gives whether the picture or the words changed, or at least how something looks."""
    before, looks = game.evaluate(PICTURE), game.evaluate("g => g.outerHTML")
    press(page, part, times)
    for _ in range(20):
        if game.evaluate(PICTURE) != before:
            return "picture"
        page.wait_for_timeout(25)
    return "look" if game.evaluate("g => g.outerHTML") != looks else ""


def play(page, game):
    """Press every part of a game, those first that were pressed least; gives what each of them changed at best."""
    best, times = {}, {}  # part -> what it changed, and how often it was pressed
    for _ in range(150):
        parts = [part for part in game.query_selector_all(PARTS) if part.is_visible() and part.is_enabled()]
        keys = [part.evaluate(KEY) for part in parts]
        least = min(range(len(parts)), key=lambda k: times.get(keys[k], 0) + 2 * (best.get(keys[k]) == "picture"))
        if times.get(keys[least], 0) > 2 or best.get(keys[least]) == "picture":
            break
        what = pressed(page, game, parts[least], times.get(keys[least], 0))
        times[keys[least]] = times.get(keys[least], 0) + 1
        best[keys[least]] = max(best.get(keys[least], ""), what)
    return best


def check_game(game, best):
    """Every part of a game answers; sliders and canvases do it by another picture."""
    dead = [key for key, what in best.items() if not what or key.startswith(("INPUT", "CANVAS")) and what != "picture"]
    assert best and "picture" in best.values() and not dead, (game.get_attribute("class"), dead, best)
    assert game.evaluate("g => g.querySelector('.board').getAttribute('aria-label').length") > 5, "it is told in words"


def colours(canvas):
    """How many colours NiiVue shows, and all that it shows, as the browser has put it on the screen."""
    canvas.scroll_into_view_if_needed()
    shown = Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")
    return len(shown.getcolors(shown.width * shown.height)), shown.tobytes()


def watch_niivue(page):
    """A click moves the cross hair of each NiiVue; below it stand the names of classes and how it is used."""
    boxes = page.query_selector_all(".jp-OutputArea-output .widget-vbox:has(canvas)")
    for box in boxes:
        canvas = box.query_selector("canvas")
        until(page, lambda canvas=canvas: colours(canvas)[0] > 50, 30, "NiiVue has drawn")
        before, room = colours(canvas)[1], canvas.bounding_box()
        assert room["width"] > 300, "it has room to draw"
        canvas.click(position={"x": room["width"] / 6, "y": room["height"] / 3})  # the cross hair goes there
        page.wait_for_timeout(1000)
        assert colours(canvas)[1] != before and "Scroll" in box.inner_text()
    return len(boxes)


def watch_live(page):
    """Each box that trains is started, begins, and is stopped."""
    starts = page.query_selector_all('.jp-OutputArea-output button.jupyter-button:has-text("start")')
    for start in starts:
        box = start.evaluate_handle("e => e.closest('.widget-vbox')").as_element()
        told = box.query_selector(".widget-html-content")
        assert told.text_content().strip() == "not begun", told.text_content()
        start.click()
        until(page, lambda told=told: re.match("begins|step", told.text_content().strip()), 60, "a training begins")
        box.query_selector('button:has-text("stop")').click()
        until(page, lambda told=told: "stopped" in told.text_content(), 120, "a training stops")
    return len(starts)


def first_answer(page, begin):
    """When the first game had its picture, and when it first answered a click, in s after Run All."""
    until(page, lambda: any(g.evaluate(DRAWN) for g in page.query_selector_all(".ssl3d-game")), 300, "a game is drawn")
    picture = time.time() - begin
    until(page, lambda: page.query_selector(".ssl3d-game").evaluate(CLICKED), 60, "the first game answered")
    answer = time.time() - begin
    until(page, lambda: busy(page), 5, "the kernel was seen busy: between two short cells the page calls it idle")
    return picture, answer


def played(page, lab, notebook, seconds):
    """Run all of a notebook with games, and play each of them while its last cell keeps the kernel busy."""
    address, token, folder = lab
    done = folder / f"{Path(notebook).stem}.done"
    add_cells(folder / notebook, BUSY.format(file=str(done)), TOLD)
    begin = begun(page, address, token, notebook)
    picture, answer = first_answer(page, begin)
    until(page, lambda: have_run(page), seconds, f"the cells of {notebook} had run")
    whole = time.time() - begin
    page.wait_for_timeout(2000)
    games = page.query_selector_all(".ssl3d-game")
    for game in games:
        check_game(game, play(page, game))
    assert busy(page) and not have_run(page, own=False), "all of it happened while a cell ran"
    done.touch()
    until(page, lambda: have_run(page, own=False), 60, "the kernel was free")
    check_answers(printed(page), len(games))
    return len(games), {"first_picture_s": picture, "first_answer_s": answer, "run_all_s": whole}


def printed(page):
    """What the last cell prints when it is run again: Run All asked for it before the answers that were given since."""
    until(page, lambda: page.evaluate(PRINTED), 60, "the last cell had printed")
    before = page.evaluate(PRINTED)
    page.click(".jp-CodeCell:has-text('# this cell prints') .cm-content")
    page.keyboard.press("Control+Enter")
    until(page, lambda: page.evaluate(PRINTED) not in ("", before), 60, "it had printed again")
    return json.loads(page.evaluate(PRINTED).partition(" ")[2])


def check_answers(answers, n_games):
    """Python has the answers of each game whose file tells it some."""
    assert len(answers) == n_games, "each game that a cell gave is on the page"
    for kind, given, score in answers:
        asks = "tell(model" in (ROOT / "ssl3d" / "games" / f"{kind}.js").read_text(encoding="utf-8")
        assert bool(given) == asks, (kind, given)
        assert not asks or score[1] >= 1 and {"question", "answer", "right"} <= set(given[0]), (kind, given, score)


def keep_times(notebook, n_games, times):
    """Put the times of a notebook into the table that SSL3D_LAB_TIMES names, and print them."""
    row = {"notebook": notebook, "games": n_games, **{name: f"{value:.1f}" for name, value in times.items()}}
    print(row)
    if "SSL3D_LAB_TIMES" not in os.environ:
        return
    file = ROOT / os.environ["SSL3D_LAB_TIMES"]
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines())) if file.exists() else []
    rows = sorted([each for each in rows if each["notebook"] != notebook] + [row], key=lambda each: each["notebook"])
    with open(file, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def shown(page, lab, notebook, seconds):
    """Run all of a notebook, play its games, and watch its other widgets; gives how many there are, and the times."""
    expected, n_games, times = SHOWN.get(notebook, Seen()), 0, {}
    if expected.games:
        n_games, times = played(page, lab, notebook, seconds)
        page.wait_for_timeout(2000)
    else:
        opened(page, *lab[:2], notebook, seconds)
        n_games = len(page.query_selector_all(".ssl3d-game"))
    assert not page.evaluate(BROKEN), page.evaluate(BROKEN)
    assert Seen(n_games, watch_live(page), watch_niivue(page)) == expected
    assert not page.evaluate(BROKEN), page.evaluate(BROKEN)
    return n_games, times


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


def browse(lab, then):
    """Do something with a page of a browser that reaches nothing but JupyterLab; an error of JavaScript fails."""
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS.split())
        context = browser.new_context(viewport={"width": 1280, "height": 1600})
        outside, page = guard(context), context.new_page()
        wrong = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        try:
            found = then(page)
        finally:
            browser.close()
            end_kernels(*lab[:2])
    assert outside == [], "no request leaves the machine"
    assert wrong == [], "no script of a page fails"
    return found


def write_notebook(file, text):
    """A notebook of the cells that lie between lines of %%."""
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    file.write_text(json.dumps({"cells": [], "metadata": kernel, "nbformat": 4, "nbformat_minor": 4}))
    add_cells(file, *(part.strip() for part in text.split("%%")))


def add_cells(file, *codes):
    """Put cells with code at the end of a notebook."""
    notebook = json.loads(file.read_text(encoding="utf-8"))
    numbered = (notebook["nbformat"], notebook["nbformat_minor"]) >= (4, 5)
    for code in codes:
        cell = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": [], "source": code}
        notebook["cells"].append(cell | ({"id": secrets.token_hex(4)} if numbered else {}))
    file.write_text(json.dumps(notebook), encoding="utf-8")


@pytest.mark.lab  # minutes long: each part of each game is pressed
def test_games_of_every_kind_answer_while_the_kernel_is_busy(lab):
    write_notebook(lab[2] / "play.ipynb", PLAY)
    _, times = browse(lab, lambda page: shown(page, lab, "play.ipynb", 240))
    assert times["first_picture_s"] <= times["first_answer_s"] <= times["run_all_s"] + 60


def test_a_cell_that_fails_is_noticed(lab):
    write_notebook(lab[2] / "broken.ipynb", "import sys\nprint('a warning', file=sys.stderr)\n%%\nprint(1)\n1 / 0")
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        browse(lab, lambda page: opened(page, *lab[:2], "broken.ipynb", 60))


DEAD = """from ssl3d.plots.widgets import _game_class
_game_class()(_esm='''export default { render({ model, el }) {
    el.className = "ssl3d-game";
    el.innerHTML = "<div class=board aria-label=nothing><canvas></canvas></div><p class=told></p>";
    for (const word of ["alive", "dead"]) {
        const button = document.createElement("button");
        button.textContent = word;
        button.onclick = () => { if (word == "alive") el.querySelector(".told").textContent += "!"; };
        el.append(button);
    }
} }''')"""


def test_a_button_that_does_nothing_is_noticed(lab):
    write_notebook(lab[2] / "dead.ipynb", DEAD)

    def then(page):
        opened(page, *lab[:2], "dead.ipynb", 120)
        game = page.query_selector(".ssl3d-game")
        best = play(page, game)
        with pytest.raises(AssertionError, match="BUTTON dead"):
            check_game(game, best)
        return sorted(best.values())

    assert browse(lab, then) == ["", "picture"]


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
        opened(page, *lab[:2], "news.ipynb", 120)
        told = ".jp-OutputArea-output .widget-html-content >> nth=0"
        before = page.inner_text(told).strip()
        page.click('button.jupyter-button:has-text("start")')
        for _ in range(600):
            page.wait_for_timeout(100)
            if page.inner_text(told).strip().startswith("failed"):
                break
        return before, page.inner_text(told).strip()

    before, after = browse(lab, then)
    assert before == "not begun" and re.match(r"failed \(exit status 1\): .*/nowhere", after)


@pytest.mark.long  # the whole of it, in a browser; by hand it is in test_monitor, and news and widgets are above
def test_a_training_is_watched_stopped_and_goes_on(lab, store):
    command = f"ssl3d pretrain rotation {store.folder} --out {lab[2] / 'run'} --steps 3000 --widths [4,8]"
    write_notebook(lab[2] / "watch.ipynb", f"from ssl3d import live\n%%\nlive({{'rotation': '{command}'}})")

    def then(page):
        opened(page, *lab[:2], "watch.ipynb", 120)

        def push(name):
            page.click(f'button.jupyter-button:has-text("{name}")')

        def wait(pattern):
            told = ".jp-OutputArea-output .widget-html-content >> nth=0"
            for _ in range(900):
                found = re.fullmatch(pattern, page.inner_text(told).strip())
                if found:
                    return int(found[1]), page.get_attribute(".jp-OutputArea-output img.widget-image", "src")
                page.wait_for_timeout(100)
            pytest.fail(f"waited for {pattern}: {page.inner_text(told)}")

        push("start")
        first = wait(r"step (\d{3,}) of 3000, about .* left")
        later = first
        while later[0] == first[0] or later[1] == first[1]:
            page.wait_for_timeout(500)
            later = wait(r"step (\d+) of 3000, about .* left")
        push("stop")
        stopped = wait(r"stopped at step (\d+) of 3000")
        push("go on")
        gone_on = wait(r"step (\d+) of 3000, about .* left")
        push("stop")
        wait(r"stopped at step (\d+) of 3000")
        return first, later, stopped, gone_on

    first, later, stopped, gone_on = browse(lab, then)
    assert 100 <= first[0] < later[0] <= stopped[0] and first[1] != later[1], "the bar and the picture grow"
    assert stopped[0] <= gone_on[0], "it goes on from where it stopped"


@pytest.mark.lab
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_notebook(lab, notebook):
    n_games, times = browse(lab, lambda page: shown(page, lab, notebook, 900))
    if n_games:
        keep_times(notebook, n_games, times)
