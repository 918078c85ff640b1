"""Probes and other observers: right on features that are known, and never seen by the training."""

import numpy as np
import pytest
import torch
import yaml
from conftest import SMALL, write_nifti

from ssl3d.data.prepare import prepare
from ssl3d.downstream.finetune import finetune, load_network
from ssl3d.downstream.goals import make_goal
from ssl3d.errors import InputError
from ssl3d.networks.cards import read_card
from ssl3d.networks.encoders import make_encoder
from ssl3d.networks.floors import added, floors_of
from ssl3d.networks.weights import load_encoder
from ssl3d.training import probes as probes_module
from ssl3d.training.pretrain import pretrain
from ssl3d.training.probes import (
    _answer,
    _voxels,
    pooled_features,
    probe,
    probe_cases,
    probe_images,
    probe_voxels,
    rank_me,
)
from ssl3d.training.runs import read_log


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Forty volumes as bright as their person is old; the sex is nowhere to be seen."""
    folder, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    lines = ["image,mask,age,sex,grade"]
    for i in range(40):
        volume = rng.random((16, 16, 16)) * 0.2
        mask = np.zeros((16, 16, 16), np.uint8)
        x = int(rng.integers(2, 8))
        mask[x : x + 6, 4:10, 5:9] = 1
        volume += i / 40 + 1.5 * mask
        volume[0, 0, 0], volume[0, 0, 1] = 0, 4
        write_nifti(folder / f"i{i:02d}.nii", volume)
        write_nifti(folder / f"m{i:02d}.nii", mask)
        lines.append(f"i{i:02d}.nii,m{i:02d}.nii,{20 + i},{'MF'[int(rng.integers(2))]},{i // 14}")
    (folder / "people.csv").write_text("\n".join(lines))
    return prepare(folder / "people.csv", folder / "store", size=16, crop=False, progress=False)


class Mean(torch.nn.Module):
    """An encoder that knows how bright an image is, and nothing else."""

    spatial_dims, in_channels, channels = 3, 1, (1, 1)

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return [x * self.scale, torch.nn.functional.avg_pool3d(x, 4)]


def test_what_is_there_is_read_and_what_is_not_is_not(people):
    found = {target: probe(Mean(), people, target) for target in ("age", "sex", "grade", "mask")}
    assert found["age"]["linear"] > 0.98 and found["age"]["neighbours"] > 0.9
    assert found["grade"]["linear"] > 0.8 > found["grade"]["chance"]
    assert found["sex"]["linear"] < 0.9, "nothing to be seen"
    assert found["mask"]["linear"] > 0.95, "a threshold over the mean of the place"
    assert all(0.999 < f["rank"] < 1.001 for f in found.values()), "one feature"
    for target, floors in (("age", floors_of(people, *probe_cases(people, "age"), "age")),
                           ("sex", floors_of(people, *probe_cases(people, "sex"), "sex", "accuracy"))):
        assert {what: found[target][what] for what in ("histogram", "volume", "blocks")} | \
            {"together": found[target]["floor"]} == floors
    assert found["age"]["floor"] > 0.95 and found["age"]["added"] < 0.05, "brightness is in the histogram, too"
    assert found["mask"]["floor"] == floors_of(people, *probe_cases(people, "mask"), "mask")["position"]
    assert 0 < found["mask"]["floor"] < 0.9 < found["mask"]["linear"], "the box lies somewhere else in everybody"


def test_nobody_for_testing_is_asked(people):
    for target in ("age", "mask"):
        fit, held = probe_cases(people, target, n=8)
        assert len(fit) == 8 and set(held) == set(people.split("validation"))
        assert not set(fit) & set(held) and not set(fit + held) & set(people.split("test"))


def test_targets_that_are_not_known(people, store):
    for target, said in (("age", "knows the age of 0"), ("height", "height")):
        with pytest.raises(InputError, match=said):
            probe_cases(store, target)
    with pytest.raises(InputError, match="dimensions"):
        probe(make_encoder("unet", 2, 1, SMALL), people, "mask")


def test_voxels_and_answers_are_of_one_mind():
    """Stacking all maps, coarse ones repeated, is what both ways stand for."""
    g = torch.Generator().manual_seed(0)
    maps = [torch.rand(1, c, n, n, n, generator=g) for c, n in ((3, 8), (5, 4), (2, 2))]
    stacked = torch.cat([m.repeat_interleave(8 // m.shape[2], 2).repeat_interleave(8 // m.shape[2], 3)
                         .repeat_interleave(8 // m.shape[2], 4) for m in maps], dim=1)  # fmt: skip
    places = torch.randint(8, (50, 3), generator=g)
    assert torch.equal(_voxels(maps, places), torch.stack([stacked[0, :, *p] for p in places.tolist()]))
    weights, bias = torch.randn(4, 10, generator=g), torch.randn(4, generator=g)
    whole = torch.einsum("kc,bcxyz->bkxyz", weights, stacked) + bias.reshape(1, 4, 1, 1, 1)
    assert torch.equal(_answer(maps, weights, bias), whole.argmax(1))


class Blind(Mean):
    """An encoder that sees nothing."""

    def forward(self, x):
        return [0 * one for one in super().forward(x)]


def test_a_probe_that_sees_nothing_answers_each_class_as_often_as_it_is_there(people, monkeypatch):
    """Not as often as its voxels were drawn, of which there are as many for a rare class as for a frequent one."""
    fit, held = probe_cases(people, "mask", 4)
    seen = []
    monkeypatch.setattr(probes_module, "_answer", lambda *given: seen.append(given[2]) or _answer(*given))
    probe_voxels(Blind(), people, fit, held, n_voxels=60)
    counts = sum(np.bincount(people.mask(name).ravel(), minlength=2) for name in fit)
    assert seen[0].softmax(dim=0).numpy() == pytest.approx(counts / counts.sum(), abs=1e-4)
    assert counts[1] < counts[0] / 20, "a rare one"


def test_chance_is_what_the_most_frequent_answer_of_the_fit_gets(people):
    fit, held = probe_cases(people, "grade", 5)
    known, asked = ([people.cases[name]["grade"] for name in names] for names in (fit, held))
    most = max(sorted({*known}), key=known.count)
    found = probe_images(Mean(), people, "grade", fit, held)
    assert found["chance"] == pytest.approx(asked.count(most) / len(held), abs=1e-6)
    assert found["chance"] != pytest.approx(known.count(most) / len(fit)), "or the fit's own share would do"


def test_what_features_add_is_what_both_have_together_beyond_the_floor(people):
    fit, held = probe_cases(people, "age", 8)
    known, asked = ([people.cases[name]["age"] for name in names] for names in (fit, held))
    vectors = [pooled_features(Mean(), people, names) for names in (fit, held)]
    both = added(people, dict(zip(fit, known)), held, True, vectors).scores(asked)["r2"]
    found = probe_images(Mean(), people, "age", fit, held)
    assert found["added"] == pytest.approx(both - found["floor"], abs=3e-6)
    assert found["added"] != pytest.approx(found["linear"] - found["floor"], abs=3e-5), "or the features alone would do"


def test_features_of_slices_are_averaged(people):
    flat, names = make_encoder("unet", 2, 1, SMALL), people.split("train")[:2]
    found = pooled_features(flat, people, names)
    image = torch.from_numpy(np.array(people.image(names[1]), np.float32))
    with torch.no_grad():
        alone = [flat.eval()(image[..., z].transpose(-1, -2).flip(-2)[None])[-1].mean((0, 2, 3)) for z in range(16)]
    assert found.shape == (2, SMALL[-1]) and np.allclose(found[1], torch.stack(alone).mean(0).numpy(), atol=1e-5)


def test_rank_counts_directions():
    rng = np.random.default_rng(0)
    for n in (1, 3, 7):
        basis, _ = np.linalg.qr(rng.normal(size=(20, n)))
        weights, _ = np.linalg.qr(rng.normal(size=(50, n)))
        assert np.isclose(rank_me(weights @ basis.T), n, rtol=0.01)
    assert rank_me(np.zeros((5, 4))) == 1
    shares = np.array([0.75, 0.25])  # of the singular values, and not of their squares
    assert rank_me(np.diag([3.0, 1.0])) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), abs=1e-5)


@pytest.mark.parametrize("what", ["pretrain", "segmentation", "classification"])
def test_an_observer_changes_nothing(people, tmp_path, what):
    more = {"widths": SMALL, "progress": False, "steps": 6}
    if what == "pretrain":
        run = [pretrain("exemplar", people.folder, tmp_path / n, **more, **o) for n, o in
               (("a", {}), ("b", {"probe": "age", "probe_every": 2}))]  # fmt: skip
    else:
        more |= {"goal": what, "warmup": 2}
        run = [finetune(people.folder, tmp_path / n, track=t, **more) for n, t in (("a", (6,)), ("b", 2))]
    assert (run[0] / "encoder.safetensors").read_bytes() == (run[1] / "encoder.safetensors").read_bytes()
    assert (run[0] / "log.csv").read_bytes() == (run[1] / "log.csv").read_bytes()
    observed = read_log(run[1], "observed.csv")
    assert observed["step"].tolist() == [0, 2, 4, 6]
    if what == "pretrain":
        with pytest.raises(InputError, match="observed.csv"):
            read_log(run[0], "observed.csv")
        return
    goal, held, settings = make_goal(what), people.split("validation"), run[1].settings
    found = goal.track(load_network(run[1]), people, held, settings["facts"])
    assert all(np.isclose(observed[name][-1], value) for name, value in found.items()), "validation people"


def test_interrupted_and_continued_it_observes_the_same(people, tmp_path, monkeypatch):
    how = {"steps": 120, "probe": "age", "probe_every": 20, "keep": "probe", "widths": SMALL, "progress": False}
    whole = pretrain("rotation", people.folder, tmp_path / "whole", **how)
    from ssl3d.training import pretrain as module

    real, calls = module.ask, []

    def stop_once(*args, **more):
        calls.append(1)
        if len(calls) == 5:  # at step 80, after the checkpoint of step 50
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr(module, "ask", stop_once)
    with pytest.raises(KeyboardInterrupt):
        pretrain("rotation", people.folder, tmp_path / "cut", **how)
    cut = pretrain("rotation", people.folder, tmp_path / "cut", **how)
    for name in ("encoder.safetensors", "encoder.json", "observed.csv", "log.csv"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
    observed, card = read_log(whole, "observed.csv"), read_card(whole)
    assert card["steps"] == observed["step"][1 + observed["linear"][1:].argmax()] > 0
    again = probe(load_encoder(whole), people, "age")
    assert np.isclose(again["linear"], observed["linear"][1:].max()), "the encoder of that step was kept"
    assert not (whole / "best.safetensors").exists()
    assert yaml.safe_load((whole / "settings.yaml").read_text())["keep"] == "probe"


def test_what_cannot_be_asked_is_said_at_once(store, people, tmp_path):
    for wrong, said in (
        ({"probe": "age"}, "knows the age of 0"),
        ({"keep": "probe"}, "no probe"),
        ({"keep": "best"}, "keep"),
        ({"probe": "mask", "probe_every": 0}, "probe_every"),
    ):
        with pytest.raises(InputError, match=said):
            pretrain("rotation", store.folder, tmp_path / "x", steps=2, widths=SMALL, progress=False, **wrong)
    assert not (tmp_path / "x").exists()


def test_two_classes_and_a_class_that_is_nowhere(people):
    fit, held = probe_cases(people, "mask", 5)
    encoder = make_encoder("unet", 3, 1, SMALL)
    assert probe_voxels(encoder, people, fit, held) == probe_voxels(encoder, people, fit, held)
    assert set(probe_images(encoder, people, "sex", *probe_cases(people, "sex"))) == {
        "linear", "neighbours", "chance", "rank", "histogram", "volume", "blocks", "floor", "added", "auc", "floor_auc"}
