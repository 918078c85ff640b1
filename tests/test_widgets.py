"""Widgets answer to their controls, on pictures and volumes, with a network beside them and without."""

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import python

from ssl3d.errors import InputError
from ssl3d.plots.slices import CLASS_COLOURS
from ssl3d.plots.widgets import view

widgets = pytest.importorskip("ipywidgets")


def images(dims, n=3, side=36):
    return torch.rand(n, 1, *[side] * dims, generator=torch.Generator().manual_seed(0))


def parts(box, kind):
    """All widgets of one kind in a box, however deep."""
    inside = [w for child in getattr(box, "children", ()) for w in parts(child, kind)]
    return ([box] if isinstance(box, kind) else []) + inside


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
    assert view(volume, labels, viewer="slices").state["names"] == [{"code": 1, "name": "label 1"}]
    monkeypatch.setattr("ssl3d.plots.widgets.find_spec", lambda package: None)
    assert view(volume).state["image"]["shape"] == [12, 10, 8], "slices, where NiiVue is missing"
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


def test_niivue_shows_classes_in_our_colours_with_their_names_and_directions_below():
    ipyniivue = pytest.importorskip("ipyniivue")
    labels = np.zeros((6, 6, 6), int)
    labels[2:4, 2, 2], labels[4, 4, 4] = (1, 3), 9  # of nine classes, the ninth has the colour of the first
    box = view(np.zeros(labels.shape), labels, viewer="niivue", classes={1: "bone", 3: "<fat>"})
    (viewer,), (legend,) = parts(box, ipyniivue.NiiVue), parts(box, widgets.HTML)
    lut = np.array(viewer.volumes[1].colormap_label.lut).reshape(-1, 4)
    for code in (1, 3, 9):
        colour = CLASS_COLOURS[(code - 1) % 8]
        assert "#{:02X}{:02X}{:02X}".format(*lut[code]) == colour.upper() and lut[code, 3] == 255
        name = {1: "bone", 3: "&lt;fat&gt;", 9: "label 9"}[code]
        assert re.search(f"background: {colour}'></i>{name}<", legend.value), "beside its name"
    assert lut[0, 3] == 0 and "label 2" not in legend.value, "what is not there has no line"
    assert "var(--jp-ui-font-color1" in legend.value and "R are the patient" in legend.value
    assert viewer.opts.show_all_orientation_markers and not viewer.opts.is_radiological_convention
    (alone,) = parts(view(np.zeros((4, 4, 4)), viewer="niivue"), widgets.HTML)
    assert "background" not in alone.value and "Scroll" in alone.value


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
from ssl3d.plots.widgets import view
from ssl3d.tasks import cpc, exemplar, jigsaw, location, rotation
from ssl3d.training.monitor import live

volume, image = np.random.default_rng(0).random((12, 12, 12)), torch.rand(1, 36, 36, 36)
calls = [lambda viewer=viewer: view(volume, viewer=viewer) for viewer in ("auto", "slices", "niivue", "itk")]
if "ipywidgets" in sys.argv[1]:
    calls += [lambda: live({"a": "ssl3d pretrain rotation s --out r"})]
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
        assert len(others) == 6
        needed = "needs ipywidgets, which is not installed: pip install 'ssl3d[notebooks]'"
        assert all(needed in line for line in [slices, *others])
        assert "viewer='slices'" not in niivue + itk, "it would not show either"
        assert "ssl3d.plots.slices.planes" in niivue and "ssl3d.plots.slices.planes" in auto
    else:
        assert slices == auto == "it shows" and "viewer='slices' needs nothing more" in niivue
