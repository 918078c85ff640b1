"""The game "the same person?": its pairs and distances in Python, and its answers and scores in JavaScript."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import SMALL
from games import run_js

from ssl3d.errors import InputError
from ssl3d.networks.encoders import make_encoder
from ssl3d.plots.widgets import game_text
from ssl3d.seeds import seeded
from ssl3d.tasks.augment import rotation_about
from ssl3d.tasks.exemplar import (
    Exemplar,
    View,
    pair_distances,
    play_exemplar,
    sample_pairs,
    sample_views,
    transform,
    view_in_words,
)

pytest.importorskip("anywidget")

PAIRS = [
    {"same": same, "distance": distance, "done": done}
    for same, distance, done in ((True, 0.1, ["brighter"]), (False, 0.9, []), (False, 0.3, ["x", "y"]), (True, 0.6, []))
]


def js(call):
    return run_js("exemplar", call.replace("PAIRS", json.dumps(PAIRS)))


def images(n=4, dims=3, channels=1, side=16):
    return torch.rand(n, channels, *[side] * dims, generator=torch.Generator().manual_seed(0))


def task_for(dims=3, channels=1, **options):
    with seeded(0, "head"):
        return Exemplar(make_encoder("unet", dims, channels, SMALL, 0), code_size=8, **options)


# In the browser


def test_the_network_answers_the_same_below_its_limit():
    assert js("PAIRS.map((pair) => m.networkAnswer(pair, 0.5))") == [True, False, True, False]
    assert js("m.networkAnswer(PAIRS[0], 0.1)") is False, "at the limit is not below it"
    assert js("m.networkAnswer(PAIRS[0], null)") is None, "without a network"


def test_both_scores_count_the_pairs_that_were_answered():
    assert js("m.tally(PAIRS, 0.5, [])") == {"asked": 0, "mine": 0, "network": 0}
    assert js("m.tally(PAIRS, 0.5, [true, true])") == {"asked": 2, "mine": 1, "network": 2}
    assert js("m.tally(PAIRS, 0.5, [true, false, false, true])") == {"asked": 4, "mine": 4, "network": 2}
    assert js("m.tally(PAIRS, null, [false])") == {"asked": 1, "mine": 0, "network": None}


def test_a_dot_shows_who_it_is_only_after_the_answer():
    shown = js("m.dots(PAIRS, [true, true], 1)")
    assert [dot["kind"] for dot in shown] == ["same", "other", "open", "open"]
    assert [dot["now"] for dot in shown] == [False, True, False, False]
    assert [dot["at"] for dot in shown] == pytest.approx([100 / 9, 100, 100 / 3, 200 / 3])
    assert js("m.dots([{distance: 0}, {distance: 0}], [], 0).map((dot) => dot.at)") == [0, 0], "all codes are one"


def test_an_answer_is_told_in_words():
    assert js("m.answerWords(PAIRS[0], true)").startswith("Right. The second view shows the same person. ")
    assert js("m.answerWords(PAIRS[1], true)").startswith("Wrong. The second view shows another person. ")
    assert js("m.answerWords(PAIRS[2], false)").endswith("What was done to the second view: x; y.")
    words = js("m.networkWords(PAIRS[3], 0.5)")
    assert "0.60" in words and "0.50" in words and words.endswith("it answers: another person. That is wrong.")
    assert js("m.scoreWords({asked: 3, mine: 2, network: 1}, 10)") == "You: 2 of 3. Network: 1 of 3."
    assert js("m.scoreWords({asked: 3, mine: 2, network: null}, 10)") == "You: 2 of 3."
    end = js("m.scoreWords({asked: 10, mine: 7, network: 8}, 10)")
    assert end == "The end. You: 7 of 10. Network: 8 of 10. A guess: 5 of 10."


def test_one_text_without_imports_goes_to_the_browser():
    text = game_text("exemplar")
    assert not [line for line in text.split("\n") if line.startswith("import ")]
    assert text.count("export default") == 1 and "fetch(" not in text and "http" not in text


# The pairs


@pytest.mark.parametrize("n_people", [2, 3, 12, 30])
def test_half_of_the_pairs_show_the_same_person(n_people):
    for seed in range(5):
        pairs = sample_pairs(n_people, (8, 8, 8), seed=seed)
        assert len(pairs) == 10 and sum(pair.first == pair.second for pair in pairs) == 5
        assert all(0 <= each < n_people for pair in pairs for each in pair[:2])
        assert len({pair.first for pair in pairs}) == min(n_people, 10), "as many people as there are"
        assert all(view_in_words(pair.view) for pair in pairs), "the second view is always another picture"
    assert [pair[:2] for pair in sample_pairs(n_people, (8, 8, 8))] != [pair[:2] for pair in pairs]


def test_transformations_tell_nothing_of_the_answer():
    pairs = [pair for seed in range(300) for pair in sample_pairs(6, (8, 8, 8), seed=seed)]
    flips = {
        same: np.mean([np.linalg.det(p.view.matrix) < 0 for p in pairs if (p.first == p.second) == same])
        for same in (True, False)
    }
    assert abs(flips[True] - flips[False]) < 0.06, flips
    others = [pair for pair in pairs if pair.first != pair.second]
    counts = np.bincount([(pair.second - pair.first) % 6 for pair in others], minlength=6)
    assert counts[0] == 0 and counts[1:].min() > 240, "every other person comes up"


def test_where_nothing_may_happen_nothing_is_done():
    never = dict.fromkeys(("flip", "rotate", "right_angle", "colour", "zoom"), 0)
    assert all(np.array_equal(pair.view.matrix, np.eye(2)) for pair in sample_pairs(3, (8, 8), never))


# Views in words


@pytest.mark.parametrize("space", [(8, 8), (8, 8, 8)])
def test_each_part_of_a_view_is_named_if_and_only_if_it_is_there(space):
    for view in sample_views(300, space, torch.Generator().manual_seed(1)):
        words = " ".join(view_in_words(view))
        zooms = np.linalg.norm(view.matrix, axis=1)
        assert ("exchanged" in words) == (np.linalg.det(view.matrix) < 0)
        assert ("zoomed" in words) == (not np.allclose(zooms, 1))
        assert all(f"{zoom:.2f}" in words for zoom in zooms if "zoomed" in words)
        assert ("contrast" in words) == (view.contrast != 1)
        assert ("brighter" in words) == (view.brightness > 0) and ("darker" in words) == (view.brightness < 0)


@pytest.mark.parametrize(
    "matrix, words",
    [
        (np.eye(3), []),
        (np.diag([-1, 1, 1]), ["left and right exchanged"]),
        (np.diag([1, 1, -1]), ["head and feet exchanged"]),
        (np.diag([1, -1]), ["left and right exchanged"]),
        (rotation_about(np.eye(3)[2], 0.7), ["rotated by 40° about the axis from feet to head"]),
        (np.diag([-1, -1, 1]), ["rotated by 180° about the axis from feet to head"]),
        (np.eye(3)[[1, 2, 0]], ["rotated by 120° about an oblique axis"]),
        (rotation_about(None, np.pi / 2), ["rotated by 90°"]),
        (np.diag([0.8, 1.1, 1]), ["zoomed along its axes by 0.80, 1.10, 1.00"]),
        (
            1.1 * rotation_about(np.eye(3)[0], 0.5) @ np.diag([-1, 1, 1]),
            [
                "left and right exchanged",
                "rotated by 29° about the axis from left to right",
                "zoomed along its axes by 1.10, 1.10, 1.10",
            ],
        ),
    ],
)
def test_matrices_in_words(matrix, words):
    assert view_in_words(View(matrix)) == words


# The state of the game


@pytest.mark.parametrize("dims, channels", [(2, 1), (2, 3), (3, 1), (3, 4)])
def test_the_state_holds_pictures_answers_and_the_distances_of_the_task(dims, channels):
    several, task = images(5, dims, channels), task_for(dims, channels)
    state = play_exemplar(several, task).state
    pairs = sample_pairs(5, several.shape[2:], task.rates)
    assert [shown["same"] for shown in state["pairs"]] == [pair.first == pair.second for pair in pairs]
    assert sum(shown["same"] for shown in state["pairs"]) == 5
    for shown, pair in zip(state["pairs"], pairs):
        view = transform(several[pair.second], pair.view, torch.empty_like(several[0]))
        codes = task(torch.stack([several[pair.first], view])[None])[0]
        assert shown["distance"] == pytest.approx((codes[0] - codes[1]).norm().item(), abs=1e-4)
        assert shown["done"] == view_in_words(pair.view)
        for pictures, image in ((shown["first"], several[pair.first]), (shown["second"], view)):
            assert len(pictures) == (3 if dims == 3 else 1) and all(picture["flat"] for picture in pictures)
            top_left = pictures[0]["bytes"][0] / 255
            expected = image[0, 0, 0] if dims == 2 else image[0, 0, -1, image.shape[-1] // 2]  # axial: A is above
            assert top_left == pytest.approx(expected.item(), abs=0.003)
    below = sum(shown["distance"] < state["limit"] for shown in state["pairs"])
    assert below == 5, "the network knows, too, that five are the same"


def test_the_same_images_give_the_same_bytes_and_nothing_else_moves():
    several, task = images(), task_for().train()
    weights = {name: values.clone() for name, values in task.state_dict().items()}
    random = torch.get_rng_state()
    assert play_exemplar(several, task).state == play_exemplar(several, task).state
    assert torch.equal(random, torch.get_rng_state()), "the global generator did not move"
    assert task.training and all(torch.equal(values, weights[name]) for name, values in task.state_dict().items())


def test_without_a_task_there_is_no_network():
    state = play_exemplar(images(2, 2, 3)).state
    assert state["limit"] is None and {pair["distance"] for pair in state["pairs"]} == {None}
    assert len(state["pairs"]) == 10 and state["pairs"][0]["first"][0]["shape"] == [16, 16, 3]


def test_the_rates_are_those_of_the_task():
    task = task_for(colour=0, zoom=0, right_angle=1)
    done = [words for pair in play_exemplar(images(), task).state["pairs"] for words in pair["done"]]
    assert done and all("exchanged" in words or "rotated" in words for words in done)


def test_a_network_that_gives_everybody_the_same_code_never_answers_the_same():
    state = play_exemplar(torch.zeros(3, 1, 16, 16, 16), task_for(colour=0)).state
    assert state["limit"] == 0 and not any(pair["distance"] < 0 for pair in state["pairs"])


def test_distances_are_those_in_evaluation():
    task = task_for()
    task.head.layers.append(torch.nn.Dropout(0.5))
    first, second = images(3), images(3).flip(0)
    assert torch.equal(pair_distances(task, first, second), pair_distances(task, first, second))
    assert pair_distances(task, first, first).max() < 1e-4 and task.training


def test_one_person_alone_is_refused():
    with pytest.raises(InputError, match="two people at least"):
        play_exemplar(images(1))


def test_python_counts_the_answers_of_the_browser():
    game = play_exemplar(images())
    same = [pair["same"] for pair in game.state["pairs"]]
    game.answers = [{"question": k, "answer": True, "right": right} for k, right in enumerate(same)]
    assert game.score == (5, 10)


def test_what_is_missing_is_named_first(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(InputError, match=r"anywidget.*pip install 'ssl3d\[notebooks\]'"):
        play_exemplar(images(1))
