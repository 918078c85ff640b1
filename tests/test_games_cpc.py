"""The game of contrastive predictive coding: its logic in JavaScript, and what Python gives it."""

import json

import pytest
import torch
from conftest import ROOT, SMALL
from games import run_js

from ssl3d.errors import InputError
from ssl3d.networks.encoders import make_encoder
from ssl3d.seeds import seeded
from ssl3d.tasks.base import Batch
from ssl3d.tasks.cpc import CPC, DIRECTIONS, _game_state, play_cpc

pytest.importorskip("anywidget", reason="games need the notebook packages")
GAME = (ROOT / "ssl3d" / "games" / "cpc.js").read_text("utf-8")


def new_task(dims, channels=1, **options):
    with seeded(0, "head"):
        return CPC(make_encoder("unet", dims, channels, SMALL, 0), **{"context_size": 16, "code_size": 8, **options})


def head(size=40):
    """A bright ball in air: corners of the volume hold no tissue."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 3, indexing="ij")
    inside = torch.stack(axes).square().sum(dim=0) < 0.8
    noise = torch.rand(size, size, size, generator=torch.Generator().manual_seed(0))
    return (inside * (0.5 + 0.5 * noise))[None]


def js(expression, state, **more):
    """A JavaScript value in which `state` and others are given; bytes are left out."""
    given = {"state": {name: value for name, value in state.items() if name not in ("layers", "faces")}} | more
    lines = "".join(f"const {name} = {json.dumps(value)};" for name, value in given.items())
    return run_js("cpc", f"(() => {{{lines} return {expression};}})()")


@pytest.fixture(scope="module")
def state():
    return _game_state(head(), new_task(3))


def begun(state):
    """The first place that is asked about."""
    return state["places"][state["asked"][0]]


# What Python gives


def pixels(picture):
    """A packed picture as a tensor (rows, columns)."""
    return torch.frombuffer(bytearray(picture["bytes"]), dtype=torch.uint8).reshape(picture["shape"])


def tissue(state, number):
    """The share of a patch, where it lies in its slice, that is not air."""
    (width, height), patch = state["patch"], state["patches"][number]
    shown = pixels(state["layers"][patch["layer"]])
    return float((shown[patch["top"] :, patch["left"] :][:height, :width] > 25).float().mean())


def test_the_game_begins_on_tissue(state):
    first = begun(state)
    assert len(first["context"]) > 1, "with patches above it"
    for place in (state["places"][number] for number in state["asked"]):
        context = sum(tissue(state, k) for k in place["context"]) / len(place["context"])
        assert min(tissue(state, place["own"]), tissue(state, place["target"]), 2 * context) > 0.45
    assert 10 <= len(state["asked"]) < len(state["places"]), "some places show too much air to be asked about"


def test_every_place_has_a_target_and_the_right_candidate_is_one(state):
    task = new_task(3)
    pairs = set(zip(task.own.tolist(), task.positives.tolist()))
    assert [place["own"] for place in state["places"]] == sorted({own for own, _ in pairs})
    for place in state["places"]:
        assert place["candidates"][place["right"]] == place["target"] and (place["own"], place["target"]) in pairs
        assert place["targets"] == sorted(target for own, target in pairs if own == place["own"])
        assert place["context"][-1] == place["own"] and not set(place["context"]) & set(place["targets"])
        assert len(set(place["candidates"])) == 6
    places = [place["right"] for place in state["places"]]
    assert set(places) == set(range(6)), "the right one may stand anywhere"


def test_no_wrong_candidate_shares_a_voxel_with_the_target_or_is_seen(state):
    task = new_task(3)
    at = torch.cartesian_prod(*[torch.arange(task.grid)] * 3)
    for place in state["places"]:
        wrong = [k for k in place["candidates"] if k != place["target"]]
        assert (at[wrong] - at[place["target"]]).abs().amax(dim=1).min() >= task.first
        assert not set(wrong) & set(place["context"])


@pytest.mark.parametrize("options", [{}, {"negatives": "batch"}, {"even": False}, {"context": "conv"}])
def test_chances_are_those_of_the_tasks_own_scores(options):
    image, task = head(), new_task(3, grid=4, **options)
    state = _game_state(image, task)
    corners, patch, _ = task.places(image.shape[1:], 1, torch.Generator().manual_seed(0))
    starts = corners[0].tolist()
    cubes = torch.stack([image[:, x : x + patch[0], y : y + patch[1], z : z + patch[2]] for x, y, z in starts])
    with torch.no_grad():
        outputs = task(cubes[None])
    questions = list(zip(task.own.tolist(), task.positives.tolist()))
    for place in state["places"]:
        assert sum(place["chances"]) == pytest.approx(1, abs=1e-5)
        question = questions.index((place["own"], place["target"]))
        asked = torch.tensor(place["candidates"]).repeat(1, len(questions), 1)
        expected = task.logits(outputs, asked)[0, question].softmax(dim=0)
        assert place["chances"] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("dims, direction", [(dims, name) for dims, names in DIRECTIONS.items() for name in names])
def test_targets_lie_where_the_direction_points(dims, direction):
    task = new_task(dims, grid=4, direction=direction)
    image = torch.rand(1, *[36] * dims, generator=torch.Generator().manual_seed(0))
    state = _game_state(image, task)
    towards = {"I": (0, 1), "S": (0, -1), "P": (-1, 0), "A": (1, 0), "L": (-1, 0), "R": (1, 0)}  # rows run downwards
    towards |= {"down": (0, 1), "up": (0, -1), "right": (1, 0), "left": (-1, 0)}
    across, down = towards[direction]
    assert (state["plane"] is None) == (dims == 2) and len(state["layers"]) == (4 if dims == 3 else 1)
    for place in state["places"]:
        own, target = (state["patches"][place[name]] for name in ("own", "target"))
        assert own["layer"] == target["layer"], "the direction can be followed in the slice"
        apart = ((target["left"] - own["left"]) * across, (target["top"] - own["top"]) * down)
        least = [task.first * side for side in state["step"]]
        assert apart[0] >= least[0] * abs(across) and apart[1] >= least[1] * abs(down) and sum(apart) > 0
        assert (across or target["left"] == own["left"]) and (down or target["top"] == own["top"])
    for patch in state["patches"]:
        for side, begin, whole in zip(state["patch"], (patch["left"], patch["top"]), (36, 36)):
            assert 0 <= begin <= whole - side


def test_pictures_and_pictures_in_colours():
    grey, colour = torch.rand(1, 36, 30), torch.rand(3, 36, 30)
    for image, task in ((grey, new_task(2, grid=3, overlap=0.0)), (colour, new_task(2, 3, grid=3, overlap=0.0))):
        state = _game_state(image, task)
        assert state["layers"][0]["shape"][:2] == [36, 30] and state["layers"][0]["flat"]
        assert state["faces"]["shape"][:2] == [9 * state["patch"][1], state["patch"][0]]
        assert state["plane"] is None and state["asked"]


def test_small_grids_offer_fewer_candidates():
    state = _game_state(torch.rand(1, 24, 24), new_task(2, grid=2, overlap=0.0))
    assert len(state["places"]) == 2 and all(len(place["candidates"]) == 4 for place in state["places"])


def test_playing_changes_no_weights_no_random_numbers_and_no_mode():
    task = new_task(3, grid=4)
    before, drawn = {name: values.clone() for name, values in task.state_dict().items()}, torch.get_rng_state()
    played, again = play_cpc(head(), task), play_cpc(head(), task)
    assert all(torch.equal(values, before[name]) for name, values in task.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn) and task.training
    assert played.state == again.state, "the same questions each time"


def test_answers_are_counted():
    played = play_cpc(head(), new_task(3, grid=4))
    assert played.score == (0, 0)
    played.answers = [{"question": 3, "answer": 2, "right": True}, {"question": 5, "answer": 0, "right": False}]
    assert played.score == (1, 2)


def test_an_image_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="shape"):
        play_cpc(torch.rand(1, 36, 36), new_task(3))


def test_it_is_the_task_of_training_that_plays():
    """The first candidate of a question in training is the target of the game's question."""
    task = new_task(3, grid=4)
    _, targets = task.make(Batch(head()[None], torch.tensor([0])), torch.Generator().manual_seed(0))
    asked = dict(zip(zip(task.own.tolist(), task.positives.tolist()), targets[0, :, 0].tolist()))
    for place in _game_state(head(), task)["places"]:
        assert asked[place["own"], place["target"]] == place["target"]


# The logic of the browser


def test_a_part_of_a_picture():
    grey = {"width": 4, "height": 2, "colours": 1}
    numbers = "{...p, values: Uint8Array.from([...Array(8).keys()])}"
    cropped = js(f"m.crop({numbers}, 1, 0, 2, 2)", {}, p=grey)
    assert (cropped["width"], cropped["height"], list(cropped["values"].values())) == (2, 2, [1, 2, 5, 6])
    colour = "{width: 2, height: 1, colours: 3, values: Uint8Array.from([0, 1, 2, 3, 4, 5])}"
    assert list(js(f"m.crop({colour}, 1, 0, 1, 1)", {})["values"].values()) == [3, 4, 5]


def test_only_patches_of_the_same_slice_are_marked(state):
    number = state["asked"][0]
    place = state["places"][number]
    shown = js(f"m.roles(state, {number}, [{place['target']}])", state)
    layer = state["patches"][place["own"]]["layer"]
    expected = [k for k in place["context"] if state["patches"][k]["layer"] == layer and k != place["own"]]
    assert shown == {"own": [place["own"]], "context": expected, "target": [place["target"]]}
    assert 1 <= len(expected) < len(place["context"]) - 1


def test_a_click_takes_the_nearest_place_and_never_one_without_a_target(state):
    width, height = state["patch"]
    for number, place in enumerate(state["places"][::7]):
        patch = state["patches"][place["own"]]
        at = f"{patch['layer']}, {patch['left'] + width / 2 + 1}, {patch['top'] + height / 2 - 1}"
        assert js(f"m.nearest(state, {at})", state) == 7 * number
    bottom = js(f"m.nearest(state, 2, 20, {max(p['top'] for p in state['patches']) + height})", state)
    rows = sorted({patch["top"] for patch in state["patches"]})
    assert state["patches"][state["places"][bottom]["own"]]["top"] == rows[2], "the lowest row with a target"


def test_arrow_keys_walk_and_stop_at_the_end(state):
    middle = next(k for k, place in enumerate(state["places"]) if place["own"] == 25 + 12)  # second row, in the middle
    keys = ("ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight")
    own = {key: state["places"][js(f"m.moved(state, {middle}, '{key}')", state)]["own"] for key in keys}
    here = state["patches"][state["places"][middle]["own"]]
    for key, (across, down) in zip(keys, ((0, -1), (0, 1), (-1, 0), (1, 0))):
        there = state["patches"][own[key]]
        moved = (there["left"] - here["left"], there["top"] - here["top"], there["layer"] - here["layer"])
        assert moved == (across * state["step"][0], down * state["step"][1], 0)
    lowest = len(state["places"]) - 1
    assert js(f"m.moved(state, {lowest}, 'ArrowDown')", state) == lowest, "no target further down: it stays"


def test_scores_of_player_and_network():
    places = [{"right": 1, "chances": [0.2, 0.8]}, {"right": 0, "chances": [0.4, 0.6]}, {"right": 0, "chances": [1, 0]}]
    counted = js("m.tally(places, new Map([[0, 0], [1, 0]]))", {}, places=places)
    assert counted == {"asked": 2, "you": 1, "network": 1}, "each is right where the other is wrong"
    assert js("m.next([2, 0, 1], new Map([[2, 0]]), 3)", {}) == 0
    assert js("m.next([2, 0, 1], new Map([[2, 0], [0, 1]]), 2)", {}) is None, "after so many questions"
    begun = js("m.score({asked: 2, you: 2, network: 1}, 10, 6)", {})
    assert begun == "2 of 10 questions: you have 2 right, the network 1."
    end = js("m.score({asked: 10, you: 7, network: 8}, 10, 6)", {})
    assert end == "All 10 questions: you have 7 right, the network 8; guessing gives 1.7 on average."


def test_it_needs_no_network_and_no_library():
    imports = [line for line in GAME.split("\n") if line.startswith("import ")]
    assert len(imports) == 1 and imports[0].endswith('from "./slices.js";')
    assert "fetch(" not in GAME and "http" not in GAME
