"""The jigsaw as a game, and what all games share: their JavaScript without a browser, and what Python hands them."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import SMALL
from games import run_js

from ssl3d.errors import InputError
from ssl3d.networks.encoders import make_encoder
from ssl3d.plots.widgets import game, packed
from ssl3d.tasks.jigsaw import Jigsaw, _face, cut_tiles, deal, look_alike, play_jigsaw
from ssl3d.tasks.patches import standardise

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}


def image(dims, channels=1, side=36):
    return torch.rand(channels, *[side] * dims, generator=torch.Generator().manual_seed(0))


def task(dims, channels=1, **options):
    return Jigsaw(make_encoder("unet", dims, channels, SMALL, 0), **{"grid": 2, "n_permutations": 20} | options)


def sent(array):
    """An array of bytes as JavaScript gets it."""
    return json.dumps({"shape": list(array.shape), "bytes": array.flatten().tolist()})


def test_two_tiles_change_places():
    assert run_js("jigsaw", "m.swapped([3, 1, 2, 0], 0, 3)") == [0, 1, 2, 3]
    assert run_js("jigsaw", "(() => { const order = [1, 0]; m.swapped(order, 0, 1); return order; })()") == [1, 0]


def test_tiles_that_look_the_same_are_right_in_each_others_place():
    assert run_js("jigsaw", "m.inPlace([0, 1, 2, 3], [0, 1, 2, 3])") == 4
    assert run_js("jigsaw", "m.inPlace([3, 1, 2, 0], [0, 1, 2, 0])") == 4, "tiles 0 and 3 are air"
    assert run_js("jigsaw", "m.inPlace([1, 0, 2, 3], [0, 1, 2, 0])") == 2


def test_each_hint_brings_a_tile_home_until_the_puzzle_is_solved():
    rng = np.random.default_rng(0)
    orders = [rng.permutation(9).tolist() for _ in range(40)]
    looks = [0, 1, 2, 0, 4, 5, 6, 6, 0]
    homes = run_js("jigsaw", f"""{json.dumps(orders)}.map((order) => {{
        const looks = {looks}, homes = [m.inPlace(order, looks)];
        for (let two; (two = m.hint(order, looks)) !== null; homes.push(m.inPlace(order, looks)))
            order = m.swapped(order, ...two);
        return homes;
    }})""")
    assert len(homes) == 40 and all(each[-1] == 9 and (np.diff(each) >= 1).all() for each in homes)


@pytest.mark.parametrize("grid", [2, 3])
def test_places_are_laid_out_as_pictures_of_volumes_are(grid):
    flat = run_js("slices", f"m.layout({grid}, 2)")
    assert np.array_equal(flat, np.arange(grid**2).reshape(1, grid, grid))
    places = np.arange(grid**3).reshape(grid, grid, grid)  # x to the right, y to the front, z to the head
    layers = np.array(run_js("slices", f"m.layout({grid}, 3)"))
    for z in range(grid):
        assert np.array_equal(layers[z], places[:, ::-1, z].T), "the front above, the left at the left"
    names = {2: ["feet end", "head end"], 3: ["feet end", "middle", "head end"]}
    assert run_js("jigsaw", f"m.layerNames({grid}, 3)") == names[grid]


def test_a_score_counts_the_last_answer_to_each_question():
    given = ((0, True), (1, False), (0, False), (2, True))
    answers = [{"question": question, "answer": 0, "right": right} for question, right in given]
    assert run_js("slices", f"m.scored({json.dumps(answers)})") == {"right": 1, "asked": 3}
    played = game("viewer", "a point", image=packed(np.zeros((1, 1, 1))))
    played.answers = answers
    assert played.score == (1, 3)


@pytest.mark.parametrize("plane", AXES)
def test_a_slice_is_seen_from_the_same_side_as_in_our_pictures(plane):
    volume = np.random.default_rng(0).integers(0, 255, (3, 4, 5), np.uint8)
    for at in (0, 2):
        seen = run_js("slices", f"""(() => {{ const s = m.slice(m.unpack({sent(volume)}), "{plane}", {at});
            return [s.width, s.height, [...s.values]]; }})()""")
        expected = np.take(volume, at, AXES[plane]).T[::-1]  # as ssl3d.plots.slices draws it, its first row above
        assert seen == [expected.shape[1], expected.shape[0], expected.flatten().tolist()]
    ends = {"sagittal": "PAIS", "coronal": "LRIS", "axial": "LRPA"}[plane]
    letters = run_js("slices", f'm.directions("{plane}")')
    assert "".join(letters[where] for where in ("left", "right", "below", "above")) == ends


def test_bytes_are_read_however_a_page_got_them():
    for held in ("new Uint8Array([9, 1, 2, 3, 4])", "new Uint8Array([9, 1, 2, 3, 4]).buffer", "[9, 1, 2, 3, 4]"):
        assert run_js("slices", f"[...m.unpack({{shape: [1, 1, 5], bytes: {held}}}).data]") == [9, 1, 2, 3, 4]
    view = "new DataView(new Uint8Array([9, 1, 2, 3, 4]).buffer, 1, 3)"  # what JupyterLab hands over
    assert run_js("slices", f"[...m.unpack({{shape: [1, 1, 3], bytes: {view}}}).data]") == [1, 2, 3]
    shapes = ("[4, 5, 3], flat: true", "[4, 5, 3], flat: false", "[4, 5]")
    kinds = [run_js("slices", f"(({{flat, colours}}) => [flat, colours])(m.unpack({{shape: {shape}, bytes: []}}))")
             for shape in shapes]
    assert kinds == [[True, 3], [False, 1], [True, 1]]


def test_a_viewer_begins_at_the_slice_with_most_of_the_classes():
    volume, classes = np.zeros((4, 5, 6), np.uint8), np.zeros((4, 5, 6), np.uint8)
    begin = "((v, c) => [m.bestSlice(v, null, 'axial'), m.bestSlice(v, c, 'axial'), m.bestSlice(v, c, 'sagittal')])"

    def unpacked(array):
        return f"{{shape: {list(array.shape)}, data: Uint8Array.from({array.flatten().tolist()})}}"

    assert run_js("viewer", f"{begin}({unpacked(volume)}, {unpacked(classes)})") == [3, 3, 2], "nothing is marked"
    classes[1, :3, 4], classes[0, 0, 5] = 2, 1
    assert run_js("viewer", f"{begin}({unpacked(volume)}, {unpacked(classes)})") == [3, 4, 1]


@pytest.mark.parametrize(("dims", "channels"), [(2, 1), (2, 3), (3, 1)])
def test_the_game_has_the_tiles_in_their_places_and_deals_them_as_the_task_does(dims, channels):
    player, picture = task(dims, channels), image(dims, channels)
    state = play_jigsaw(picture, player, n_puzzles=2).state
    assert (state["grid"], state["dims"], len(state["puzzles"])) == (2, dims, 2)
    for seed, puzzle in enumerate(state["puzzles"]):
        dealt, right, chances = deal(picture, player, seed)
        order = player.permutations[right]
        assert puzzle["dealt"] == order.tolist() and puzzle["looks"] == list(range(2**dims))
        shown = [dealt[place] if channels == 3 else _face(dealt[place]) for place in range(2**dims)]
        for place, tile in enumerate(puzzle["dealt"]):
            assert puzzle["tiles"][tile] == packed(shown[place], (-2, 2)), "it lies where the network got it"


def test_the_networks_order_is_right_where_the_network_is(monkeypatch):
    player, picture = task(3), image(3)
    right = deal(picture, player, 0)[1]
    for answer in (right, (right + 1) % 20):
        logits = torch.eye(20)[[answer]] * 5
        monkeypatch.setattr(player, "forward", lambda inputs, logits=logits: logits)
        network = play_jigsaw(picture, player, n_puzzles=1).state["puzzles"][0]["network"]
        back = [None] * 8
        for place, tile in enumerate(player.permutations[right].tolist()):
            back[int(player.permutations[answer][place])] = tile
        assert network["order"] == back, "the tile that lies in a place is put where the answer says that it is from"
        assert (network["order"] == list(range(8))) == (answer == right)
        rows = network["chances"]
        assert rows[0]["name"] == f"shuffle {answer}" and len(rows) == 5
        assert [row["right"] for row in rows] == [row["name"] == f"shuffle {right}" for row in rows]
        assert rows[0]["chance"] == pytest.approx(float(logits[0].softmax(0).max()))


def test_without_a_network_the_puzzles_are_seeded_and_all_different():
    one, two = (play_jigsaw(image(2), grid=3).state["puzzles"] for _ in range(2))
    assert one == two and len({tuple(puzzle["dealt"]) for puzzle in one}) == 3
    assert all(sorted(puzzle["dealt"]) == list(range(9)) and puzzle["network"] is None for puzzle in one)


def test_air_looks_like_air_however_bright_it_is_drawn():
    tiles = cut_tiles(image(2), 3)
    tiles[[0, 4]] = 0.0
    tiles[8] = 0.3
    assert look_alike(tiles) == [0, 1, 2, 3, 0, 5, 6, 7, 0]
    assert look_alike(standardise(tiles)) == [0, 1, 2, 3, 0, 5, 6, 7, 0]
    cubes = cut_tiles(image(3), 2)
    cubes[3] = cubes[1]
    cubes[3, ..., 0] = 0  # below the slice that is drawn
    assert look_alike(cubes) == [0, 1, 2, 1, 4, 5, 6, 7]


def test_playing_changes_no_weights_and_no_random_numbers():
    player, state = task(3), torch.get_rng_state()
    before = {name: weight.clone() for name, weight in player.state_dict().items()}
    play_jigsaw(image(3), player)
    assert all(torch.equal(weight, before[name]) for name, weight in player.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_without_the_notebook_packages_a_game_says_what_to_install(monkeypatch):
    from ssl3d.plots import widgets

    widgets._game_class.cache_clear()
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(InputError, match=r"needs anywidget, which is not installed: pip install 'ssl3d\[notebooks\]'"):
        play_jigsaw(image(2))
    monkeypatch.undo()
    assert play_jigsaw(image(2)).answers == []
