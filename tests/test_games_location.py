"""The game of places: what is on its buttons, what it tells, and that its questions are the task's."""

import json
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import SMALL
from games import run_js

from ssl3d.errors import InputError
from ssl3d.networks.encoders import make_encoder
from ssl3d.plots.widgets import game_text
from ssl3d.tasks.location import Location, cell_of_class, describe_cell, draw_question, play_location, questions_about
from ssl3d.tasks.patches import cut, standardise

pytest.importorskip("anywidget", reason="games need the notebook packages")


def image(dims, channels=1, side=36):
    return torch.rand(channels, *[side] * dims, generator=torch.Generator().manual_seed(0))


def task(dims, channels=1, **options):
    return Location(make_encoder("unet", dims, channels, SMALL, seed=0), **options)


def seen(packed):
    """The numbers that the browser gets of an image."""
    return np.frombuffer(packed["bytes"], np.uint8).reshape(packed["shape"])


# ---- JavaScript ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
def test_buttons_lie_where_their_names_say(dims):
    for z, layer in enumerate(run_js("slices", f"m.layout(3, {dims})")):
        for row, cells in enumerate(layer):
            for column, cell in enumerate(cells):
                front, back = ("above", "below") if dims == 2 else ("front", "back")
                words = [("left", "", "right")[column], (front, "", back)[row]]
                words += [("feet end", "", "head end")[z]] if dims == 3 else []
                found = describe_cell(cell, dims).split(", ")
                assert sorted(found) == sorted(filter(None, words)) or (found == ["centre"] and not any(words))


def test_arrow_keys_go_over_the_centre_and_from_layer_to_layer():
    def go(cell, key, dims):
        return run_js("location", f"m.neighbour({cell}, '{key}', {dims})")

    assert go(4, "ArrowRight", 3) == 22 and go(22, "ArrowLeft", 3) == 4 and go(10, "ArrowUp", 3) == 16
    assert go(21, "ArrowRight", 3) == 4, "from the right of the feet end to the left of the middle layer"
    assert go(0, "ArrowLeft", 3) == 0 and go(8, "ArrowUp", 3) == 8, "it ends at the edges"
    assert go(1, "ArrowDown", 2) == 7 and go(3, "ArrowRight", 2) == 5 and go(0, "Enter", 2) == 0


@pytest.mark.parametrize("plane, axis", [("axial", 2), ("coronal", 1), ("sagittal", 0), ("picture", None)])
def test_a_frame_lies_around_its_patch(plane, axis):
    space, corner, patch = ((20, 30, 40), (3, 5, 8), (6, 7, 9))
    if axis is None:
        space, corner, patch = space[:2], corner[:2], patch[:2]
    marked = np.zeros(space)
    marked[tuple(slice(c, c + p) for c, p in zip(corner, patch))] = 1
    shown = marked if axis is None else marked.take(corner[axis], axis=axis).T[::-1]  # as `slice` in slices.js has it
    rows, columns = shown.nonzero()
    arguments = ", ".join(json.dumps(x) for x in (corner, patch, space, plane))
    found = run_js("location", f"m.outline({arguments})")
    assert (found["left"], found["top"]) == (columns.min(), rows.min())
    assert (found["width"], found["height"]) == (np.ptp(columns) + 1, np.ptp(rows) + 1)


def test_answers_are_counted_beside_the_network():
    questions = [{"cell": 0, "chances": [0.9, 0.1, 0]}, {"cell": 1, "chances": [0.6, 0.4, 0]},
                 {"cell": 2, "chances": [0, 0, 1]}]
    given = json.dumps(questions)
    assert run_js("location", f"m.standing({given}, [0, 1])") == {"asked": 2, "mine": 2, "network": 1}
    assert run_js("location", f"m.standing({given}, [])") == {"asked": 0, "mine": 0, "network": 0}
    told = run_js("location", f"[m.score({given}, [1, 1]), m.score({given}, [1, 1, 1])]")
    assert told[0] == "You: 1 of 2 right. The network: 1 of 2 right."
    assert told[1] == "You: 1 of 3 right. The network: 2 of 3 right. A blind guess is right once in 2."


def test_an_answer_is_told_in_words():
    names = json.dumps(["left", "centre", "right"])
    sure, wrong = ('{cell: 0, chances: [0.75, 0, 0.25]}', '{cell: 0, chances: [0.38, 0, 0.62]}')
    told = run_js("location", f"[m.verdict({sure}, 0, {names}), m.verdict({wrong}, 2, {names})]")
    assert told[0] == "Right! The true place: left. The network chose the true place, with a chance of 75 %."
    assert told[1] == "Wrong: you chose right. The true place: left. The network chose right, with a chance of 62 %."
    assert run_js("location", "[0, 0.004, 0.006, 0.5, 1].map(m.percent)") == ["0", "0", "1 %", "50 %", "100 %"]


# ---- Python --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims, channels", [(2, 1), (2, 3), (3, 1), (3, 4)])
@pytest.mark.parametrize("even", [True, False])
def test_questions_are_those_of_the_task(dims, channels, even):
    asker, picture = task(dims, channels, even=even), image(dims, channels)
    state = play_location(picture, asker).state
    assert len(state["questions"]) == 10 and state["dims"] == dims
    assert state["names"] == [describe_cell(cell, dims) for cell in range(3**dims)]
    for question in state["questions"]:
        corners = torch.tensor(question["corners"])
        step = ((corners[1] - corners[0]).float() / 12).round().long() + 1
        assert question["cell"] == int(step @ torch.tensor([3**k for k in reversed(range(dims))])), "the true place"
        pieces = cut(picture[None], torch.tensor([0]), corners[None], tuple(state["patch"]))
        with torch.no_grad():
            chances = asker(pieces)[0, 0].softmax(dim=0)
        cells = cell_of_class(torch.arange(asker.n_classes), asker.n_classes)
        assert torch.allclose(torch.tensor(question["chances"])[cells], chances, atol=1e-5), "the network's own"
        assert sum(question["chances"]) == pytest.approx(1, abs=1e-5)
        assert question["chances"][asker.n_classes // 2] == 0, "none for the centre"
        shown = (standardise(pieces[0]).clamp(-2, 2) + 2) / 4 if even else pieces[0]
        for sent, piece in zip(question["pieces"], shown):
            drawn = piece.movedim(0, -1) if channels == 3 and dims == 2 else piece[0]
            assert np.abs(seen(sent) - 255 * drawn.numpy()).max() <= 0.51, "what is seen is what the network gets"
    whole = picture.movedim(0, -1) if channels == 3 and dims == 2 else picture[0]
    assert seen(state["image"]).shape == tuple(whole.shape)


@pytest.mark.parametrize("dims, n, different", [(3, 10, 10), (3, 26, 26), (2, 10, 8)])
def test_places_come_once_before_one_comes_twice(dims, n, different):
    asked = questions_about(image(dims), task(dims), n=n, seed=3)
    assert len(asked.cells) == n and len(set(asked.cells.tolist())) == different


def test_the_same_game_comes_twice():
    asker, picture = task(3), image(3)
    assert play_location(picture, asker).state == play_location(picture, asker).state
    assert len(play_location(picture, asker, n_questions=3).state["questions"]) == 3
    others = [questions_about(picture, asker, n=4, seed=seed).corners.tolist() for seed in (0, 1)]
    assert others[0] != others[1]


def test_playing_changes_no_weights_and_no_random_numbers():
    asker = task(3)
    asker.encoder = torch.nn.Sequential(torch.nn.BatchNorm3d(1), asker.encoder)
    asker.encoder.spatial_dims, asker.encoder.in_channels, asker.encoder.min_side = 3, 1, 1
    asker.train()
    before, state = {k: v.clone() for k, v in asker.state_dict().items()}, torch.get_rng_state()
    play_location(image(3), asker)
    draw_question(image(3), asker, question=3, guess=2)
    plt.close("all")
    assert all(torch.equal(v, before[k]) for k, v in asker.state_dict().items()), "running statistics, too"
    assert asker.gap is None and asker.jitter is None and asker.training
    assert torch.equal(torch.get_rng_state(), state)


def test_images_that_are_not_from_0_to_1_are_refused():
    with pytest.raises(InputError, match="from 0 to"):
        play_location(255 * image(3), task(3))


@pytest.mark.parametrize("dims", [2, 3])
def test_a_question_is_drawn_with_all_that_is_known(dims):
    asker = task(dims)
    axes = draw_question(image(dims), asker, question=1, guess=0)
    maps = [ax for ax in axes if ax.get_title() == "" and len(ax.images) and ax.images[0].get_array().shape == (3, 3)]
    asked = questions_about(image(dims), asker, n=1, seed=1)
    drawn = np.stack([ax.images[0].get_array().filled(0) for ax in sorted(maps, key=lambda ax: ax.get_position().y0)])
    expected = asked.chances[0].reshape([3] * dims).numpy()
    expected = expected[None] if dims == 2 else expected.transpose(2, 1, 0)[:, ::-1]
    assert np.allclose(drawn, expected, atol=1e-6), "the maps show the chances, the front above"
    legend = [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    assert legend == ["true place", "you", "network"]
    plt.close("all")


# ---- in a browser --------------------------------------------------------------------------------------------------

PAGE = """
const state = JSON.parse(document.getElementById("state").textContent), values = { state, answers: [] };
window.model = { get: (name) => values[name], set: (name, value) => { values[name] = value; }, save_changes: () => {} };
const text = document.getElementById("game").textContent;
const game = await import(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
game.default.render({ model: window.model, el: document.getElementById("here") });
"""


@pytest.fixture(scope="module")
def page():
    """A page of a real browser, without Jupyter."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, headless=True, args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


@pytest.mark.parametrize("dims", [2, 3])
def test_a_game_is_played_in_a_plain_page(page, dims):
    state = play_location(image(dims), task(dims), n_questions=2).state
    plain = json.dumps(state, default=list)  # bytes as lists of numbers
    page.set_content(f'<div id="here"></div><script type="text/plain" id="game">{game_text("location")}</script>'
                     f'<script type="text/plain" id="state">{plain}</script><script type="module">{PAGE}</script>')
    page.wait_for_selector(".ssl3d-game [data-cell]")
    buttons, (first, second) = page.query_selector_all("[data-cell]"), state["questions"]
    assert len(buttons) == 3**dims - 1
    for button in buttons:
        name = state["names"][int(button.get_attribute("data-cell"))]
        assert button.get_attribute("aria-label") == name and button.inner_text() == "", "no answer before one is given"
    sizes = [canvas.bounding_box() for canvas in page.query_selector_all(".piece canvas:first-child")]
    assert len(sizes) == 2 and all(max(size["width"], size["height"]) >= 200 for size in sizes)

    page.focus(f'[data-cell="{first["cell"]}"]')
    page.keyboard.press("Enter")
    assert "Right!" in page.inner_text(".told")
    right = page.get_attribute(f'[data-cell="{first["cell"]}"]', "aria-label")
    assert right.endswith("the true place, your answer") and "✓" in page.inner_text(f'[data-cell="{first["cell"]}"]')
    assert len(page.query_selector_all(".more canvas")) == dims - 1, "the whole image shows"
    assert page.evaluate("document.activeElement.textContent") == "next question", "Enter goes on"
    page.click(f'[data-cell="{second["cell"]}"]', force=True)
    assert len(page.evaluate("model.get('answers')")) == 1, "a question is answered once"

    page.click("text=next question")
    assert "Question 2 of 2" in page.inner_text(".told") and not page.query_selector(".more canvas")
    wrong = next(k for k in range(3**dims) if k not in (second["cell"], (3**dims - 1) // 2))
    page.click(f'[data-cell="{wrong}"]')
    assert "You: 1 of 2 right." in page.inner_text(".controls")
    assert page.evaluate("model.get('answers')") == [
        {"question": 0, "answer": first["cell"], "right": True}, {"question": 1, "answer": wrong, "right": False}]
    page.click("text=play again")
    assert "Question 1 of 2" in page.inner_text(".told") and "You:" not in page.inner_text(".controls")
