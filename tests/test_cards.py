"""What an encoder's card says when it meets a store: who was seen, whose labels, which channels, and how prepared."""

import json
import re
import warnings
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import SAMPLES, SMALL
from PIL import Image

from ssl3d.data.layouts import open_cohort
from ssl3d.data.prepare import prepare
from ssl3d.downstream.finetune import finetune, starting_encoder, summary
from ssl3d.errors import InputError
from ssl3d.networks.cards import channel_key, check_card, fit_images, match_channels, provenance, read_card
from ssl3d.networks.encoders import make_encoder
from ssl3d.networks.weights import load_encoder, save_encoder
from ssl3d.settings import Finetuning
from ssl3d.training.pretrain import pretrain

QUICK = {"steps": 1, "batch_size": 2, "progress": False}
NAMES = ("t1n", "t1c", "t2w", "t2f")


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Eight of the sample brains, one file for each modality, and masks."""
    folder = tmp_path_factory.mktemp("scans")
    for case in open_cohort(SAMPLES).cases[:8]:
        image, place = nib.load(case.images[0]), folder / case.id
        place.mkdir()
        for k, name in enumerate(NAMES):
            nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[..., k], image.affine), place / f"{name}.nii.gz")
        nib.save(nib.load(case.mask), place / "mask.nii.gz")
    return folder


def opened(scans, names):
    """A cohort of these channels: the name of each, and the file that it is in."""
    return open_cohort(scans, images={name: f"{{id}}/{file}.nii.gz" for name, file in names.items()},
                       masks="{id}/mask.nii.gz")


@pytest.fixture(scope="module")
def four(scans, tmp_path_factory):
    """The store of these brains."""
    return prepare(opened(scans, dict(zip(NAMES, NAMES))), tmp_path_factory.mktemp("stores") / "four", size=16,
                   progress=False)


def keep(folder, store, encoder=None, labelled=(), **changed):
    """An encoder that says that it was trained on a store."""
    encoder = encoder or make_encoder("unet", store.spatial_dims, store.channels, SMALL, seed=1)
    card = provenance(store, store.split("train"), None, labelled)
    save_encoder(encoder, folder, {"task": "rotation"} | card | changed)
    return folder


def told(call, *given, **more):
    """What is returned, and what is warned of meanwhile."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return call(*given, **more), "\n".join(str(each.message) for each in caught)


# copies

def other_files(x, affine):
    """The same person in other files: by what was done to the scan."""
    low, high = x.min(), x.max()
    halved = x[: x.shape[0] // 2 * 2, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2].astype(float)
    halved = halved.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, x.shape[2] // 2, 2).mean(axis=(1, 3, 5))
    return {"rounded": (np.rint((x - low) / (high - low) * 255).astype(np.uint8), affine),
            "rescaled": (x.astype(np.float32) * 2 + 3, affine),
            "cut": (np.ascontiguousarray(x[3:, 2:-2, :-4]), affine),
            "padded": (np.pad(x, ((4, 0), (2, 7), (1, 1)), constant_values=low), affine),
            "half": (halved.astype(np.float32), affine @ np.diag([2, 2, 2, 1]))}


def test_near_copies_of_a_brain_are_told_when_a_store_is_made(real_data, tmp_path):
    files = sorted((real_data / "ixi_t1_brain_2mm").glob("*_T1brain.nii.gz"))[:12]
    (tmp_path / "in").mkdir()
    for i, file in enumerate(files):
        (tmp_path / f"in/p{i:02d}.nii.gz").symlink_to(file)
    store, said = told(prepare, tmp_path / "in", tmp_path / "alone", size=8, progress=False)
    assert store.near_copies == [] and "look like" not in said + str(store), "twelve brains of twelve people"
    image = nib.load(files[3])
    for name, (voxels, affine) in other_files(np.asarray(image.dataobj), image.affine).items():
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / f"in/{name}.nii.gz")
    store, said = told(prepare, tmp_path / "in", tmp_path / "copied", size=8, progress=False)
    for name in ("rounded", "rescaled", "cut", "padded", "half"):
        assert ("p03", name) in {*store.near_copies, *((b, a) for a, b in store.near_copies)} or \
            store.cases[name]["subject"] == store.cases["p03"]["subject"], name
    assert not {name for pair in store.near_copies for name in pair} & {f"p{i:02d}" for i in range(12) if i != 3}
    assert "look like one image" in said and "columns id and subject" in said and "near copies" in str(store)


def test_a_photograph_saved_as_jpeg_and_one_eye_taken_twice(real_data, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in ("001", "005", "013", "020", "397"):
        image = Image.open(real_data / f"idrid_grading_512/images/train_IDRiD_{number}.jpg")
        image.save(folder / f"eye{number}.png")
    Image.open(folder / "eye001.png").save(folder / "again.png", compress_level=1)
    Image.open(folder / "eye001.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "mirror.png")
    Image.open(folder / "eye005.png").save(folder / "packed.jpg", quality=80)
    store = told(prepare, folder, tmp_path / "s", size=16, progress=False)[0]
    assert len({store.cases[name]["subject"] for name in ("eye001", "again", "mirror")}) == 1, "the same pixels"
    assert store.near_copies == [("eye005", "packed"), ("eye013", "eye397")]
    table = tmp_path / "t.csv"
    same = {"packed": "eye005", "eye397": "eye013"}
    rows = [f"{f.name},{f.stem},{same.get(f.stem, f.stem)}" for f in folder.iterdir()]
    table.write_text("image,id,subject\n" + "\n".join(f"in/{row}" for row in rows) + "\n")
    mended, said = told(prepare, open_cohort(table), tmp_path / "m", size=16, progress=False)
    assert mended.near_copies == [] and "look like" not in said, "the table says that they are one person"


def test_a_copy_of_a_test_scan_that_an_encoder_was_trained_on(scans, four, tmp_path):
    test = four.split("test")[0]
    image = nib.load(scans / test / "t2f.nii.gz")
    x = np.asarray(image.dataobj)
    made = {"turned": x.T[::-1], "cut": x[2:, 1:-2, :-3], "scaled": x.astype(np.float32) * 0.7 - 20}
    for kind, voxels in made.items():
        (tmp_path / kind).mkdir()
        if kind == "turned":
            np.save(tmp_path / kind / "x.npy", np.ascontiguousarray(voxels))
        else:
            nib.save(nib.Nifti1Image(np.ascontiguousarray(voxels), image.affine), tmp_path / kind / "x.nii.gz")
        store = prepare(tmp_path / kind, tmp_path / f"s_{kind}", size=16, test=0, progress=False)
        first = keep(tmp_path / f"e_{kind}", store)
        own = prepare(opened(scans, {"t1": "t1n"}), tmp_path / f"o_{kind}", size=16, progress=False)
        second = pretrain("rotation", own, tmp_path / f"g_{kind}", encoder=first, **QUICK)  # on other images
        for run in (first, second):
            if kind == "turned":
                said = f"pretrained on 1 image.*keeps for testing.*the same voxels.*'{test}'.*allow_seen='all'"
                with pytest.raises(InputError, match=said):
                    check_card(read_card(run), four, run)
            else:
                said = told(starting_encoder, four, Finetuning(encoder=run, scaled=True))[1]
                assert f"look like 1 case(s) that {four.folder} keeps for testing, the first is '{test}'" in said


def test_a_card_tells_no_more_than_hashes(four):
    card = provenance(four, four.split("train"), None, four.split("train"))
    marks = [mark for what in ("trained_on", "voxel_digests", "signatures", "pieces", "people", "labelled")
             for mark in card[what]]
    assert all(len(mark) <= 64 and set(mark) <= set("0123456789abcdef") for mark in marks)
    assert not any(case["subject"] in json.dumps(card) for case in four.cases.values())


# channels

@pytest.mark.parametrize(("one", "other"), [
    ("t1n", "T1"), ("T1w", "t1"), ("T1ce", "t1c"), ("t1gd", "T1-Gd"), ("T1+C", "t1c"), ("T2w", "t2"), ("FLAIR", "t2f"),
    ("T2-FLAIR", "flair"), ("T1 weighted", "t1n"), ("PET", "pet")])
def test_names_of_one_modality(one, other):
    assert channel_key(one) == channel_key(other)


def test_names_of_different_modalities():
    keys = [channel_key(name) for name in ("t1", "t1c", "t2", "flair", "ct", "adc", "dwi", "pd", "t2star")]
    assert len({*keys}) == len(keys)
    assert match_channels(["flair", "T2"], ["t1c", "t2f"]) == [(None, "in turn"), (0, "the same")]


@pytest.mark.parametrize("names", [("t2f", "t2w", "t1c", "t1n"), ("FLAIR", "T1", "T1Gd", "T2w"), ("t1c", "t2f"),
                                   ("Flair",)])
def test_an_encoder_sees_channels_by_their_names_in_any_order(scans, four, tmp_path, names):
    files = {name: {"flair": "t2f", "t2": "t2w", "t1": "t1n"}.get(channel_key(name), "t1c") for name in names}
    store = prepare(opened(scans, files), tmp_path / "s", size=16, progress=False)
    run = keep(tmp_path / "e", four)
    moved, _ = starting_encoder(store, Finetuning(encoder=run, scaled=True))
    case = store.split("train")[0]
    there, here = (torch.tensor(np.array(s.image(case), np.float32))[None] for s in (four, store))
    blank = torch.zeros_like(there)
    for name in files.values():
        blank[:, NAMES.index(name)] = there[:, NAMES.index(name)]
    first = [one.stages[0].conv1.conv for one in (load_encoder(run), moved)]
    assert torch.allclose(*(layer(image) for layer, image in zip(first, (blank, here))), atol=1e-4)


def test_more_channels_begin_with_a_related_one(scans, four, tmp_path):
    two = prepare(opened(scans, {"FLAIR": "t2f", "T1": "t1n"}), tmp_path / "s", size=16, progress=False)
    run = keep(tmp_path / "e", two)
    moved, widened = starting_encoder(four, Finetuning(encoder=run, scaled=False))
    old, new = (one.stages[0].conv1.conv.weight for one in (load_encoder(run), moved))
    assert widened and torch.equal(new, old[:, [1, 1, 0, 0]]), "t1n and t1c from T1, t2w and t2f from FLAIR"
    out = finetune(four, tmp_path / "f", encoder=run, widths=SMALL, **QUICK)
    line = "channels by name: t1n from T1, t1c from T1 (related), t2w from FLAIR (related), t2f from FLAIR"
    assert line in summary(out) and line in json.loads((tmp_path / "f/origins.json").read_text())["told"]


def test_one_unnamed_channel_is_widened_as_in_the_paper(four, tmp_path):
    run = keep(tmp_path / "e", four, make_encoder("unet", 3, 1, SMALL, seed=2), channel_names=[], image_channels=1)
    (moved, widened), said = told(starting_encoder, four, Finetuning(encoder=run, scaled=True))
    assert moved.in_channels == 4 and len(widened) == 2 and said == ""


def test_names_that_tell_nothing_are_refused(scans, four, tmp_path):
    run = keep(tmp_path / "e", four, channel_names=["ct", "pet", "adc", "dwi"])
    said = r"e: its encoder reads ct, pet.*four has t1n.*no name is common.*sources=\[0, 1, 2, 3\].*--sources 0,1,2,3"
    with pytest.raises(InputError, match=said):
        starting_encoder(four, Finetuning(encoder=run, scaled=True))
    starting_encoder(four, Finetuning(encoder=run, sources=(0, 1, 2, 3), scaled=True))
    with pytest.raises(InputError, match="no name is common.*Open the scans under the names"):
        pretrain("rotation", four, tmp_path / "p", encoder=run, **QUICK)
    (tmp_path / "few").mkdir()
    less = prepare(opened(scans, {"pd": "t1n", "t1": "t1c"}), tmp_path / "few/s", size=16, progress=False)
    with pytest.raises(InputError, match=r"reads 4 channels \(t1n, t1c, t2w, t2f\).*has 2 \(pd, t1\).*sources=\[0\]"):
        starting_encoder(less, Finetuning(encoder=keep(tmp_path / "g", four), scaled=True))


def test_pretraining_goes_on_with_channels_in_another_order(scans, four, tmp_path):
    turned = prepare(opened(scans, {"FLAIR": "t2f", "T1": "t1n", "T1ce": "t1c", "T2": "t2w"}), tmp_path / "s", size=16,
                     progress=False)
    run = keep(tmp_path / "e", four)
    on = pretrain("rotation", turned, tmp_path / "p", encoder=run, lr=1e-9, **QUICK)
    old, new = (load_encoder(one).stages[0].conv1.conv.weight for one in (run, on))
    assert torch.allclose(new, old[:, [3, 0, 1, 2]], atol=1e-6)
    assert "FLAIR from t2f" in on.card["start"][0] and on.card["channel_names"] == ["FLAIR", "T1", "T1ce", "T2"]


# preparation

@pytest.mark.parametrize(("changed", "said"), [
    ({"percentiles": [0.5, 99.5]}, r"scaled by percentiles 0.5,99.5.*minimum to maximum.*percentiles=\(0.5, 99.5\).*"
                                   "--percentiles=0.5,99.5"),
    ({"window": [[-1000, 400]]}, r"window=\(-1000, 400\), in a shell --window=-1000,400"),
    ({"window": [None, None, None, [0, 80]]}, "scaled by window 0,80.*for t2f"),
    ({"size": 32}, r"size 32 \(here 16\)"),
    ({"dtype": "uint8"}, r"dtype uint8 \(here float16\), which matters little")])
def test_another_preparation_is_told(four, tmp_path, changed, said):
    run = keep(tmp_path / "e", four, preparation=four.settings | changed)
    words = told(starting_encoder, four, Finetuning(encoder=run, scaled=True))[1]
    assert len(words.splitlines()) == 1 and "e: its encoder" in words and "four" in words and re.search(said, words)


def test_voxels_of_another_size_are_told_and_kept(four, tmp_path):
    mm = four.spacing(four.split("train")[0])
    run = keep(tmp_path / "e", four, voxel_mm=[2 * mm[0], *mm[1:]])
    words = told(finetune, four, tmp_path / "f", encoder=run, widths=SMALL, **QUICK)[1]
    assert f"voxels of {2 * mm[0]:.3g} x {mm[1]:.3g}" in words and f"(here {mm[0]:.3g} x" in words
    assert "voxels of" in json.loads((tmp_path / "f/origins.json").read_text())["cautions"][0]
    words = told(pretrain, "rotation", four, tmp_path / "p", encoder=run, **QUICK)[1]
    assert "voxels of" in words and "voxels of" in read_card(tmp_path / "p")["start"][0]
    same = keep(tmp_path / "same", four, voxel_mm=[1.4 * length for length in mm])
    assert told(starting_encoder, four, Finetuning(encoder=same, scaled=True))[1] == ""


# labels

def test_labels_of_validation_people_are_not_learned_before(four, tmp_path):
    held = four.split("validation")
    supervised = finetune(four, tmp_path / "all", widths=SMALL, **QUICK)
    said = f"all: its encoder has learned from the labels of {len(held)} of the {len(held)} validation.*'{held[0]}'.*" \
        "leave validate.*allow_seen='all'"
    with pytest.raises(InputError, match=said):
        finetune(four, tmp_path / "v", encoder=supervised, validate=True, **QUICK)
    finetune(four, tmp_path / "t", encoder=supervised, **QUICK)  # test people are new to it
    finetune(four, tmp_path / "a", encoder=supervised, validate=True, allow_seen="all", **QUICK)
    later = pretrain("rotation", four, tmp_path / "later", encoder=supervised, **QUICK)
    with pytest.raises(InputError, match="learned from the labels"):
        finetune(four, tmp_path / "w", encoder=later, validate=True, **QUICK)
    begun = finetune(four, tmp_path / "held", widths=SMALL, validate=True, **QUICK)
    finetune(four, tmp_path / "x", encoder=begun, validate=True, **QUICK)  # it has held the same people out


def test_images_without_labels_may_be_seen_before_validation_and_that_is_said(four, tmp_path):
    n = len(four.split("validation"))
    run = finetune(four, tmp_path / "f", encoder=keep(tmp_path / "e", four), validate=True, **QUICK)
    assert f"has seen images of {n} of {n} validation cases, without their labels" in summary(run)
    assert "validation cases, without" not in summary(finetune(four, tmp_path / "t", encoder=tmp_path / "e", **QUICK))


def test_an_encoder_that_a_probe_chose_knows_the_labels(scans, tmp_path, store):
    kept = pretrain("rotation", store, tmp_path / "p", widths=SMALL, probe="mask", probe_every=1, keep="probe",
                    **QUICK | {"steps": 2})
    watched = pretrain("rotation", store, tmp_path / "w", widths=SMALL, probe="mask", probe_every=1,
                       **QUICK | {"steps": 2})
    held = store.split("validation")
    assert not watched.card["labelled"] and set(kept.card["labelled"])
    check_card(watched.card, store, "w", scored=held)
    with pytest.raises(InputError, match="labels of"):
        check_card(kept.card, store, "p", scored=held)


def test_names_of_others_are_allowed_where_that_is_said(four):
    held = four.split("validation")
    again = provenance(four, four.split("train"), None, four.split("train"))
    card = again | {"spatial_dims": 3, "in_channels": 4, "labelled": []}
    people = card | {"labelled": [key for key in again["labelled"] if key in again["people"]]}
    with pytest.raises(InputError, match="learned from the labels"):
        check_card(people, four, "r", scored=held)
    check_card(people, four, "r", "names", scored=held)
    with pytest.raises(InputError, match="learned from the labels"):
        check_card(card | {"labelled": again["labelled"]}, four, "r", "names", scored=held)


@pytest.mark.parametrize("names", [("T2", "T2*"), ("T1w", "MPRAGE"), ("b-100", "b100"), ("T1", "T1c", "CT1", "CT2")])
def test_two_channels_of_like_names_stay_two(names):
    assert match_channels(names, names) == [(k, "the same") for k in range(len(names))]
    assert match_channels(names, names[::-1]) == [(k, "the same") for k in range(len(names))][::-1]


def test_a_phase_of_a_ct_is_no_contrast_of_an_mr():
    assert channel_key("CT1") != channel_key("T1c") == channel_key("cT1") and channel_key("T2*") != channel_key("T2")
    assert match_channels(["T2*"], ["T2"]) == [(None, "in turn")]
    assert match_channels(["T2"], ["T2", "T2*"]) == [(0, "the same"), (0, "related")]


def test_an_unknown_channel_takes_what_is_left_and_is_told():
    card = {"in_channels": 4, "channel_names": ["T1", "T1c", "T2", "FLAIR"], "preparation": None}
    store = SimpleNamespace(channel_names=("ADC", "T1", "T2", "FLAIR"), channels=4, folder="store")
    fit = fit_images(card, store, "run")
    assert fit.sources == (1, 0, 2, 3) and "ADC from T1c (in turn)" in fit.cautions[0]
    with pytest.raises(InputError, match="--sources.*4 channel.*0 to 3"):
        fit_images(card, store, "run", sources=(0, 1))
