"""The rotation game: what the browser turns and counts, and what Python hands to it."""

import json
from importlib.resources import files

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import SMALL
from games import run_js

from ssl3d.errors import InputError
from ssl3d.networks.encoders import make_encoder
from ssl3d.tasks.rotation import Rotation, describe, draw_turned, ends_after, play_rotation, rotations, turn

ENDS = np.array([["L", "R"], ["P", "A"], ["I", "S"]])


def images(dims, n=3, side=24, channels=1):
    return torch.rand(n, channels, *[side] * dims, generator=torch.Generator().manual_seed(0))


def rotation_task(dims, **options):
    return Rotation(make_encoder("unet", dims, 1, SMALL, 0), **options)


def played(*given, **options):
    pytest.importorskip("anywidget")
    return play_rotation(*given, **options)


def turned_in_browser(array, flat, matrices):
    """An array of whole numbers after each turn, as the browser does it."""
    image = {"shape": array.shape, "data": array.flatten().tolist(), "flat": flat}
    volume = f"{{...image, data: Uint8Array.from(image.data), colours: {3 if array.ndim > 2 and flat else 1}}}"
    turns = json.dumps([matrix.tolist() for matrix in matrices])
    code = f"((image) => {turns}.map((matrix) => m.turned({volume}, matrix)))({json.dumps(image)})"
    made = run_js("rotation", f"{code}.map(({{shape, data}}) => ({{shape, data: Array.from(data)}}))")
    return [np.array(one["data"], np.uint8).reshape(one["shape"]) for one in made]


@pytest.mark.parametrize("shape", [(4, 4, 4), (2, 3, 4)])
def test_the_browser_turns_a_volume_as_python_does(shape):
    volume = np.random.default_rng(0).permutation(np.prod(shape)).astype(np.uint8).reshape(shape)
    shown = turned_in_browser(volume, False, rotations(3))
    for matrix, found in zip(rotations(3), shown):
        assert np.array_equal(found, turn(torch.tensor(volume), matrix).numpy()), describe(matrix)
    assert len({found.tobytes() + str(found.shape).encode() for found in shown}) == 24


@pytest.mark.parametrize("colours", [False, True])
def test_the_browser_turns_a_picture_as_python_does(colours):
    picture = np.random.default_rng(0).permutation(20 * (3 if colours else 1)).astype(np.uint8)
    picture = picture.reshape((4, 5, 3) if colours else (4, 5))
    planes = torch.tensor(np.moveaxis(picture, -1, 0) if colours else picture)
    for matrix, found in zip(rotations(2), turned_in_browser(picture, True, rotations(2))):
        expected = turn(planes, matrix).numpy()
        assert np.array_equal(np.moveaxis(found, -1, 0) if colours else found, expected), describe(matrix)


def test_directions_turn_with_the_volume():
    image = images(3, side=6)[0]
    for number, matrix in enumerate(rotations(3)):
        for axis, side in np.ndindex(3, 2):
            marked = torch.zeros(5, 5, 5)
            marked[tuple(4 * side if a == axis else 2 for a in range(3))] = 1
            gone_to = turn(marked, matrix).nonzero()[0]
            now = int((gone_to != 2).nonzero())
            assert ends_after(matrix)[now][gone_to[now] // 4] == ENDS[axis, side]
        written = [{text.get_text() for text in ax.texts} for ax in draw_turned(image, number)]
        plt.close("all")
        assert [set("LRPAIS") - letters for letters in written] == [set(pair) for pair in ends_after(matrix)]


@pytest.mark.parametrize("number", [0, 1, 9, 23])
def test_a_letter_stands_at_the_edge_where_its_voxel_is_drawn(number):
    matrix, drawing = rotations(3)[number], (files("ssl3d") / "games" / "slices.js").as_uri()
    ends = json.dumps(ends_after(matrix))
    for (axis, side), letter in np.ndenumerate(ENDS):
        marked = torch.zeros(5, 5, 5, dtype=torch.uint8)
        marked[tuple(4 * side if a == axis else 2 for a in range(3))] = 255
        volume = json.dumps({"shape": [5, 5, 5], "data": turn(marked, matrix).flatten().tolist()})
        cut = f'Array.from((await import("{drawing}")).slice({volume}, plane).values)'
        planes = '["sagittal", "coronal", "axial"]'
        code = f"await Promise.all({planes}.map(async (plane) => [{cut}, m.edges({ends}, plane)]))"
        seen = 0
        for values, letters in run_js("rotation", code):
            row, column = np.argwhere(np.array(values).reshape(5, 5) == max(values))[0]
            if max(values) and (row, column) != (2, 2):
                edge = {(2, 0): "left", (2, 4): "right", (4, 2): "below", (0, 2): "above"}[row, column]
                assert letters[edge] == letter
                seen += 1
        assert seen == 2, "a voxel far out is seen in two of the three cuts"


def test_the_score_counts_questions_that_were_answered():
    questions = [{"image": 0, "turn": 1}, {"image": 1, "turn": 0}, {"image": 0, "turn": 0}]
    chances = [[[0.9, 0.1], [0.2, 0.8]], [[0.4, 0.6], [0.5, 0.5]]]  # image 0 is known, image 1 unturned is mistaken
    given = f"{json.dumps(questions)}, [1, 1, null]"
    assert run_js("rotation", f"m.score({given}, {chances})") == {"asked": 2, "you": 1, "network": 1}
    assert run_js("rotation", f"m.score({given}, null)") == {"asked": 2, "you": 1, "network": None}
    words = run_js("rotation", f"[m.scoreWords(m.score({given}, {chances})), m.scoreWords(m.score({given}, null))]")
    assert words == ["Score after 2 questions: you 1, the network 1.", "Score after 2 questions: you 1."]
    assert run_js("rotation", "m.scoreWords({asked: 1, you: 0, network: 1})").startswith("Score after 1 question:")


def test_bars_show_the_likeliest_rotations_and_always_the_true_one():
    names = [{"name": str(k)} for k in range(24)]
    chances = [0.01] * 20 + [0.05, 0.1, 0.2, 0.45]
    code = f"m.shownBars({json.dumps(names)}, {chances}, %d, 5)"
    assert [row["name"] for row in run_js("rotation", code % 23)] == ["0", "20", "21", "22", "23"]
    rows = run_js("rotation", code % 7)
    assert [(row["name"], row["right"]) for row in rows] == [("7", True), *((str(k), False) for k in range(20, 24))]
    assert rows[-1]["chance"] == 0.45
    whole = run_js("rotation", f"m.shownBars({json.dumps(names[:10])}, {chances[:10]}, 3)")
    assert [row["name"] for row in whole] == [str(k) for k in range(10)]


@pytest.mark.parametrize("dims", [2, 3])
def test_the_buttons_of_a_game_are_sorted_by_axis(dims):
    turns = played(images(dims)[0]).state["turns"]
    rows = run_js("rotation", f"m.turnRows({json.dumps(turns)})")
    expected = {"": [0, 1, 2, 3]} if dims == 2 else {"": [0], "x": [1, 2, 3], "y": [4, 5, 6], "z": [7, 8, 9]}
    assert {row["axis"]: row["turns"] for row in rows} == expected


@pytest.mark.parametrize("dims, options", [(2, {}), (3, {}), (3, {"n_rotations": 24})])
def test_a_game_holds_what_the_browser_needs(dims, options):
    task, several = rotation_task(dims, **options), images(dims)
    state = played(several, task).state
    matrices = [np.array(one["matrix"]) for one in state["turns"]]
    assert all(np.array_equal(a, b) for a, b in zip(matrices, task.matrices)) and len(matrices) == task.n_classes
    assert [one["name"] for one in state["turns"]] == [describe(m) for m in task.matrices]
    assert [one["ends"] for one in state["turns"]] == [ends_after(m) if dims == 3 else None for m in task.matrices]
    assert len(state["images"]) == 3 and state["images"][0]["shape"] == [24] * dims
    assert len(state["questions"]) == 10 and {one["image"] for one in state["questions"]} == {0, 1, 2}
    chances = torch.tensor(state["chances"])
    assert chances.shape == (3, task.n_classes, task.n_classes)
    assert torch.allclose(chances.sum(dim=2), torch.ones(3, task.n_classes), atol=1e-5)
    with torch.no_grad():
        expected = task.eval()(turn(several[1], task.matrices[2])[None])[0].softmax(dim=0)
    assert torch.allclose(chances[1, 2], expected, atol=1e-5), "image 1, turned by rotation 2"
    json.dumps({key: value for key, value in state.items() if key != "images"})


def test_questions_come_from_their_seed():
    image = images(3)[0]
    first, again, other = (played(image, seed=seed).state["questions"] for seed in (0, 0, 1))
    assert first == again != other
    for seed in range(5):
        asked = [one["turn"] for one in played(image, seed=seed).state["questions"]]
        assert max(map(asked.count, asked)) <= 2 < len(set(asked))
    assert len(played(image, n_questions=30).state["questions"]) == 30


def test_a_game_without_a_network():
    game = played(images(3, channels=2)[0])
    assert game.state["chances"] is None and len(game.state["turns"]) == 10 and len(game.state["images"]) == 1
    assert len(played(images(2, channels=3)[0]).state["turns"]) == 4
    game.answers = [{"question": 0, "answer": "no turn", "right": False}, {"question": 1, "answer": "x", "right": True},
                    {"question": 0, "answer": "90° about x", "right": True}]
    assert game.score == (2, 2)


def test_playing_changes_neither_the_network_nor_random_numbers():
    task, image = rotation_task(3), images(3)[0]
    before = {name: values.clone() for name, values in task.state_dict().items()}
    state, was_training = torch.get_rng_state(), task.training
    played(image, task)
    assert all(torch.equal(values, before[name]) for name, values in task.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and task.training == was_training


def test_what_cannot_be_played_is_said_in_words():
    with pytest.raises(InputError, match="all sides have to be equal"):
        played(torch.rand(1, 8, 8, 6))
    with pytest.raises(InputError, match="3 axes of space"):
        played(images(2)[0], rotation_task(3))
    with pytest.raises(InputError, match="2 axes of space"):
        played(torch.rand(8, 8), rotation_task(2))
