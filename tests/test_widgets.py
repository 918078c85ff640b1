"""Widgets answer to their controls, on pictures and volumes, with a network beside them and without."""

import sys
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import SMALL, python

from ssl3d.errors import InputError
from ssl3d.networks.encoders import make_encoder
from ssl3d.plots.widgets import snapshot, stage, view
from ssl3d.tasks.jigsaw import Jigsaw, deal, draw_attempt, in_place, play_jigsaw, shuffle, solve

widgets = pytest.importorskip("ipywidgets")


def images(dims, n=3, side=36):
    return torch.rand(n, 1, *[side] * dims, generator=torch.Generator().manual_seed(0))


def parts(box, kind):
    """All widgets of one kind in a box, however deep."""
    inside = [w for child in getattr(box, "children", ()) for w in parts(child, kind)]
    return ([box] if isinstance(box, kind) else []) + inside


def drive(box):
    """Move every control once, and four buttons; returns how many pictures were seen, and the last message."""
    (picture,), seen = parts(box, widgets.Image), []
    seen.append(bytes(picture.value))
    for control in parts(box, widgets.ValueWidget):
        if isinstance(control, (widgets.IntSlider, widgets.FloatSlider)):
            control.value = control.max if control.value < control.max else control.min
        elif isinstance(control, (widgets.Dropdown, widgets.ToggleButtons)):
            control.value = [v for _, v in control._options_full][-1]
        elif isinstance(control, widgets.Checkbox):
            control.value = not control.value
        seen.append(bytes(picture.value))
    for button in parts(box, widgets.Button)[:4]:
        button.click()
        seen.append(bytes(picture.value))
    assert not plt.get_fignums() and all(value.startswith(b"\x89PNG") for value in seen)
    return len(set(seen)), parts(box, widgets.HTML)[0].value


def with_head(kind, dims, **options):
    return kind(make_encoder("unet", dims, 1, SMALL, 0), **options)


@pytest.mark.parametrize("dims", [2, 3])
def test_every_task_can_be_played_with(dims):
    image = images(dims)[0]
    boxes = {
        "jigsaw": play_jigsaw(image, with_head(Jigsaw, dims, n_permutations=20)),
        "jigsaw alone": play_jigsaw(image, grid=2),
    }
    pictures = {name: drive(box) for name, box in boxes.items()}
    assert all(n >= 2 for n, _ in pictures.values()), pictures


@pytest.mark.parametrize("dims", [2, 3])


def test_a_jigsaw_is_solved_by_hand():
    task, image = with_head(Jigsaw, 2, grid=2, n_permutations=24), images(2)[0]
    box = play_jigsaw(image, task)
    (first, second), (button,) = parts(box, widgets.Dropdown), parts(box, widgets.Button)
    (moves,), (picture,) = parts(box, widgets.IntText), parts(box, widgets.Image)
    first.value = second.value = 1
    button.click()
    assert moves.value == 0, "to exchange a tile with itself is no move"
    tiles, right, _ = deal(image, task, 0)
    order = task.permutations[right].tolist()
    for place in range(4):
        if order[place] != place:
            first.value, second.value = place, order.index(place)
            button.click()
            order[second.value], order[place] = order[place], place
    apart = (task.permutations != task.permutations[right]).sum(dim=1).numpy()
    title = f"4 of 4 in place after {moves.value} moves"
    draw_attempt(solve(tiles, task.permutations[right]), 2, apart[apart > 0], title, side=3.2)
    assert 0 < moves.value < 4 and bytes(picture.value) == snapshot()


def test_the_answer_to_a_jigsaw_is_about_what_was_dealt():
    task, image = with_head(Jigsaw, 3, grid=2, n_permutations=20), images(3)[0]
    box = play_jigsaw(image, task)
    (network,), (button,) = parts(box, widgets.Checkbox), parts(box, widgets.Button)
    (moves,), (picture,), (puzzle,) = (parts(box, w) for w in (widgets.IntText, widgets.Image, widgets.IntSlider))
    tiles, right, said = deal(image, task, 0)
    apart = (task.permutations != task.permutations[right]).sum(dim=1).numpy()
    answer = solve(tiles, task.permutations[said])
    n = in_place(answer, solve(tiles, task.permutations[right]))
    draw_attempt(answer, 2, apart[apart > 0], f"{n} of 8 in place by the network's answer")
    expected = snapshot()
    for n_moves in range(3):
        network.value = True
        assert bytes(picture.value) == expected and moves.value == n_moves
        button.click()
        assert not network.value, "who exchanges tiles sees their own"
    network.value = True
    puzzle.value = 1
    assert moves.value == 0 and not network.value, "a new puzzle begins anew"


@pytest.mark.parametrize("dims", [2, 3])
def test_tiles_that_look_the_same_are_right_in_each_others_place(dims):
    solved = torch.rand(9 if dims == 2 else 27, 1, *[6] * dims, generator=torch.Generator().manual_seed(0))
    solved[[0, 4, 8]] = torch.tensor([0.0, 0.0, 0.3]).reshape(-1, *[1] * (dims + 1))  # air, however bright it is drawn
    order = torch.arange(len(solved))
    order[[0, 4, 8]] = order[[4, 8, 0]]
    assert in_place(shuffle(solved, order), solved) == len(solved)
    order[[1, 2]] = order[[2, 1]]
    assert in_place(shuffle(solved, order), solved) == len(solved) - 2
    if dims == 3:
        beside = solved.clone()
        beside[3, ..., 0] = 0  # below the slice that is drawn
        assert in_place(beside, solved) == len(solved)


def test_what_cannot_be_drawn_is_said_in_words():
    def draw(n):
        if n == 2:
            raise InputError("two is <too> many")
        plt.figure(figsize=(1, 1))
        plt.text(0, 0, str(n))

    slider = widgets.IntSlider(0, 0, 3)
    box = stage(draw, n=slider)
    picture, message = box.children[1:]
    kept = picture.value
    slider.value = 2
    assert "two is &lt;too&gt; many" in message.value and picture.value == kept and not plt.get_fignums()
    slider.value = 3
    assert message.value == "" and picture.value != kept


def test_nothing_draws_before_it_is_asked():
    code = "import sys, ssl3d.tasks.jigsaw, ssl3d.tasks.cpc; print({'ipywidgets', 'matplotlib'} & set(sys.modules))"
    assert python(code).stdout == "set()\n"


def test_a_volume_is_viewed_by_what_there_is(monkeypatch):
    volume = torch.rand(12, 10, 8, generator=torch.Generator().manual_seed(0))
    labels = (volume > 0.9).int()
    ipyniivue = pytest.importorskip("ipyniivue")
    (shown,) = parts(view(volume, labels, spacing=(1, 1, 4)), ipyniivue.NiiVue)
    assert [v.name for v in shown.volumes] == ["volume.nii", "labels.nii"]
    middle = [float((a.float().mean() + 0.5) / n) for a, n in zip(labels.nonzero().T, labels.shape)]
    assert shown.scene.crosshair_pos == pytest.approx(middle, abs=1e-3), "it begins where the labels are"
    drive(view(volume, labels, viewer="slices"))
    monkeypatch.setattr("ssl3d.plots.widgets.find_spec", lambda package: None)
    assert "ipyniivue" in parts(view(volume), widgets.HTML)[0].value, "says what is missing"
    for words, given in (
        ("needs itkwidgets", {"viewer": "itk"}),
        ("needs ipyniivue", {"viewer": "niivue"}),
        ("viewer is 'vtk'", {"viewer": "vtk"}),
        ("the same grid", {"labels": labels[:5]}),
    ):
        with pytest.raises(InputError, match=words):
            view(volume, **given)
    with pytest.raises(InputError, match="without its axis"):
        view(volume[None])


def test_the_itk_viewer_gets_the_volume_upright(monkeypatch):
    seen = {}

    class Viewer:
        def __init__(self, image, **more):
            seen.update(more, image=image)

        def set_view_mode(self, mode):
            seen["mode"] = mode

        def set_z_slice(self, place):
            seen["place"] = place

    monkeypatch.setitem(sys.modules, "itkwidgets", SimpleNamespace(view=Viewer))
    packed = SimpleNamespace(to_ngff_image=lambda array, **more: SimpleNamespace(array=array, **more))
    monkeypatch.setitem(sys.modules, "ngff_zarr", packed)
    monkeypatch.setattr("ssl3d.plots.widgets.find_spec", lambda package: "there")
    volume, labels = np.zeros((4, 5, 6), np.float16), np.zeros((4, 5, 6), np.int64)
    volume[0, -1, 2] = labels[0, -1, 2] = 1  # patient's left, front
    header = {"header": {}}
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(parent_header=header))
    for name in ("", "someone"):  # outside a kernel there is no name, and a program that runs notebooks gives one
        header["header"] = {"username": name} if name else {}
        with pytest.raises(InputError, match="in JupyterLab only"):
            view(volume, labels, viewer="itk")
    header["header"] = {"username": ""}
    view(volume, labels, viewer="itk", spacing=(1, 2, 3))
    assert seen["mode"] == "ZPlane" and seen["place"] == 6.0
    for image in (seen["image"], seen["label_image"]):
        assert image.dims == ("z", "y", "x") and image.scale == {"x": 1.0, "y": 2.0, "z": 3.0}
        assert image.array[2, 0, -1] == 1 and image.array.sum() == 1, "x points to the left, y to the back"
    seen.clear()
    view(volume, viewer="itk")
    assert "label_image" not in seen and seen["place"] == 2.5


WITHOUT = """
import sys

for name in sys.argv[1].split(","):
    sys.modules[name] = None  # as where it is not installed
import numpy as np
import torch

from ssl3d.errors import InputError
from ssl3d.plots.slices import planes
from ssl3d.plots.widgets import stage, view
from ssl3d.tasks import cpc, exemplar, jigsaw, location, rotation
from ssl3d.training.monitor import live

volume, image = np.random.default_rng(0).random((12, 12, 12)), torch.rand(1, 36, 36, 36)
calls = [lambda viewer=viewer: view(volume, viewer=viewer) for viewer in ("auto", "slices", "niivue", "itk")]
if "ipywidgets" in sys.argv[1]:
    calls += [lambda: stage(print), lambda: live({"a": "ssl3d pretrain rotation s --out r"})]
    calls += [lambda: cpc.play_cpc(image, None), lambda: exemplar.play_exemplar(image, None)]
    calls += [lambda: jigsaw.play_jigsaw(image), lambda: location.play_location(image, None)]
    calls += [lambda: rotation.play_rotation(image)]
for call in calls:
    try:
        call()
        print("it shows")
    except InputError as e:
        print(e)
planes(volume)
"""


@pytest.mark.parametrize("missing", ["ipywidgets,ipyniivue,itkwidgets,IPython", "ipyniivue,itkwidgets"])
def test_what_is_not_installed_is_named_with_its_cure(missing):
    said = python(WITHOUT, missing).stdout.splitlines()
    auto, slices, niivue, itk, *others = said
    assert "pip install 'ssl3d[notebooks]'" in niivue and "pip install 'ssl3d[itk]'" in itk
    if "ipywidgets" in missing:
        assert len(others) == 7
        needed = "needs ipywidgets, which is not installed: pip install 'ssl3d[notebooks]'"
        assert all(needed in line for line in [slices, *others])
        assert "viewer='slices'" not in niivue + itk, "it would not show either"
        assert "ssl3d.plots.slices.planes" in niivue and "ssl3d.plots.slices.planes" in auto
    else:
        assert slices == auto == "it shows" and "viewer='slices' needs nothing more" in niivue
