"""Networks that see a part of a volume: windows, slices, folds, weights and regions in fine-tuning runs."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from conftest import SAMPLES, SMALL, write_nifti
from monai.inferers import sliding_window_inference

from ssl3d.data.layouts import open_cohort
from ssl3d.data.prepare import prepare
from ssl3d.data.splits import fold_subjects
from ssl3d.data.store import Store
from ssl3d.downstream.finetune import finetune, load_network, summary
from ssl3d.downstream.predict import predict
from ssl3d.downstream.segmentation import Segmented, score, segment
from ssl3d.errors import InputError
from ssl3d.files import read_table
from ssl3d.networks.cards import read_card
from ssl3d.networks.encoders import make_encoder
from ssl3d.networks.unet import Segmenter
from ssl3d.networks.weights import load_encoder
from ssl3d.networks.windows import (
    SliceBySlice,
    SlidingWindow,
    from_pictures,
    random_crop,
    random_window,
    tiles,
    to_pictures,
    window_of,
)
from ssl3d.training.loop import read_batch
from ssl3d.training.pretrain import pretrain
from ssl3d.training.runs import read_log

QUICK = {"steps": 3, "warmup": 1, "labels": 0.2, "widths": SMALL, "progress": False}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def encoder(store, tmp_path_factory):
    return pretrain(
        "rotation", store.folder, tmp_path_factory.mktemp("e") / "rot", steps=2, widths=SMALL, progress=False
    )


@pytest.mark.parametrize("shape", [(12, 9, 20), (9, 9, 9), (16, 11)])
def test_windows_lie_inside(shape):
    mask = np.zeros(shape, np.uint8)
    mask[tuple(n - 1 for n in shape)] = 1  # in the farthest corner
    g = generator()
    windows = [random_window(mask, 9, g) for _ in range(100)]
    assert all(mask[w].shape == (9,) * mask.ndim for w in windows)
    assert all(0 <= s.start and s.stop <= n for w in windows for s, n in zip(w, shape))
    seen = np.mean([mask[w].any() for w in windows])
    assert seen > 0.4, "a lone voxel in a corner is in every other window"
    assert len({tuple(s.start for s in w) for w in windows}) > 1 or min(shape) == max(shape) == 9


def test_every_other_window_has_a_labelled_voxel_in_its_middle():
    mask = np.zeros((40, 40), np.uint8)
    mask[20, 20], g = 3, generator()
    starts = [tuple(s.start for s in random_window(mask, 8, g)) for _ in range(400)]
    assert 170 < starts.count((16, 16)) < 235
    assert random_window(mask, 45, g) == (slice(-3, 42),) * 2, "a small image lies in the middle of its window"


@pytest.mark.parametrize("shape", [(2, 30, 25, 40), (1, 30, 9, 40), (1, 60, 50)])
def test_crops_lie_inside_and_a_third_of_them_on_something(shape):
    image, g, side = np.zeros(shape, np.float16), generator(), 12
    image[0, :9, :4, ...] = 0.5  # in a corner
    image += 0.04  # noise in the air
    crops = [random_crop(image, side, g) for _ in range(600)]
    for window in crops:
        assert window_of(image, window).shape == (shape[0], *(side,) * (len(shape) - 1))
        assert all(0 <= s.start and s.stop <= n for s, n in zip(window, shape[1:]) if n >= side)
    corner = np.mean([all(s.start <= 2 for s in window[:2]) for window in crops])
    uniform = np.prod([3 / (n - side + 1) for n in shape[1:3] if n > side])
    assert corner > uniform + 0.07, "more than by chance: crops are put on what is there"
    eight = [random_crop((255 * image).astype(np.uint8), side, generator(i), unit=255) for i in range(50)]
    assert eight == [random_crop(image, side, generator(i)) for i in range(50)], "whatever it is kept as"
    assert len({str(random_crop(image * 0, side, g)) for _ in range(20)}) > 1, "an empty image has crops, too"


def test_a_third_of_the_crops_have_something_in_their_middle():
    image, g = np.zeros((1, 41, 41, 41), np.float16), generator()
    image[:, 18:23, 18:23, 18:23] = 1
    image[:, 18:23] += 0.2  # a plate, so that most looks find something
    middle = [image[(0, *((s.start + s.stop) // 2 for s in random_crop(image, 8, g)))] > 0.05 for _ in range(1500)]
    by_chance = 5 / 34
    assert abs(np.mean(middle) - (1 / 3 + 2 / 3 * by_chance)) < 0.05


def test_tiles_cover_a_volume_and_no_more():
    for shape, side in (((20, 33, 7), 8), ((8, 8, 8), 8), ((9,), 8), ((100,), 33)):
        seen, windows = np.zeros(shape), tiles(shape, side)
        for window in windows:
            assert all(s.stop - s.start == side for s in window)
            seen[tuple(slice(max(0, s.start), s.stop) for s in window)] += 1
        assert seen.min() >= 1 and len(windows) == np.prod([-(-n // side) for n in shape])


def test_windows_of_masks_with_nothing_or_all():
    for value in (0, 1):
        mask = np.full((12, 12, 12), value, np.uint8)
        starts = {tuple(s.start for s in random_window(mask, 8, generator(i))) for i in range(30)}
        assert len(starts) > 10 and all(0 <= x <= 4 for s in starts for x in s)


def test_every_place_can_be_drawn():
    g, mask = generator(), np.zeros((6, 6), np.uint8)
    assert {tuple(s.start for s in random_window(mask, 4, g)) for _ in range(300)} == {
        (i, j) for i in range(3) for j in range(3)
    }


def test_a_window_is_read_where_its_mask_is(store):
    from ssl3d.downstream.segmentation import read_masked

    names = store.split("train")[:3]
    images, masks = read_masked(store, names, 8, generator(3))
    assert images.shape == (3, 4, 8, 8, 8) and masks.shape == (3, 1, 8, 8, 8)
    g = generator(3)
    for i, name in enumerate(names):
        where = random_window(store.mask(name), 8, g)
        assert np.array_equal(images[i].numpy(), np.array(store.image(name)[:, *where], np.float32))
        assert np.array_equal(masks[i, 0].numpy(), store.mask(name)[where])


def test_slices_are_those_of_pretraining(store):
    name = store.split("train")[0]
    volume = torch.from_numpy(np.array(store.image(name), np.float32))
    pictures = to_pictures(volume)
    for seed in range(4):
        height = torch.randint(volume.shape[-1], (1,), generator=generator(seed)).item()
        drawn = read_batch(store, [name], slices=generator(seed)).image[0]
        assert torch.equal(drawn, pictures[height])
    assert torch.equal(from_pictures(pictures), volume)


def test_slice_by_slice_is_each_slice_alone():
    network = SliceBySlice(Segmenter(make_encoder("unet", 2, 2, SMALL), 3)).eval()
    x = torch.rand(2, 2, 8, 12, 5, generator=generator())
    with torch.no_grad():
        scores = network(x)
        assert scores.shape == (2, 3, 8, 12, 5)
        for b in range(2):
            for z in range(5):
                alone = network.network(x[b, :, :, :, z].transpose(1, 2).flip(1)[None])[0]
                assert torch.allclose(scores[b, :, :, :, z], alone.flip(1).transpose(1, 2), atol=1e-5)


def test_a_sliding_window_forgets_nothing():
    class Here(torch.nn.Module):  # says where in its window a voxel is, and what it is
        def forward(self, x):
            return torch.cat([x, x.mean(dim=(2, 3, 4), keepdim=True).expand_as(x)], dim=1)

    x = torch.rand(1, 1, 21, 16, 30, generator=generator())
    scores = SlidingWindow(Here(), 16)(x)
    assert torch.allclose(scores[:, :1], x, atol=1e-5) and torch.isfinite(scores).all()
    blended = sliding_window_inference(x, (16, 16, 16), 2, Here(), overlap=0.5, mode="gaussian")
    assert torch.allclose(scores, blended, atol=1e-5)
    small = x[:, :, :, :11, :9]
    assert torch.allclose(SlidingWindow(Here(), 16)(small)[:, :1], small, atol=1e-5), "and of a small volume all"


def test_trained_on_windows_predicts_whole_scans(store, encoder, tmp_path):
    run = finetune(store.folder, tmp_path / "run", encoder=encoder, patch=8, **QUICK)
    network = load_network(run)
    assert isinstance(network, SlidingWindow) and network.side == 8
    test = store.split("test")
    found = segment(network, store, test)
    assert [str(r) for r in score(found, store)] == [str(r) for r in read_table(run / "scores.csv")]
    masks = predict(run, store.folder, tmp_path / "masks", progress=False)
    scan = nib.load(SAMPLES / "imagesTr" / f"{test[0]}.nii.gz")
    assert nib.load(masks[0]).shape == scan.shape[:3] and np.allclose(nib.load(masks[0]).affine, scan.affine)
    again = finetune(store.folder, tmp_path / "again", encoder=encoder, patch=8, **QUICK)
    for name in ("network.safetensors", "scores.csv"):
        assert (run / name).read_bytes() == (again / name).read_bytes()


def test_trained_on_slices_predicts_whole_scans(store, tmp_path):
    flat = pretrain(
        "rotation", store.folder, tmp_path / "flat", steps=2, slices=True, batch_size=8, widths=SMALL, progress=False
    )
    run = finetune(store.folder, tmp_path / "run", encoder=flat, slices=True, **QUICK | {"warmup": 3})
    network = load_network(run)
    before, after = load_encoder(flat).state_dict(), network.encoder.state_dict()
    assert network.encoder.spatial_dims == 2 and all(torch.equal(before[k], after[k]) for k in before), "frozen"
    assert len(read_table(run / "scores.csv")) == 3 * len(store.split("test"))
    assert len(predict(run, store.folder, tmp_path / "masks", progress=False)) == len(store.split("test"))
    with pytest.raises(InputError, match="slices=True"):
        finetune(store.folder, tmp_path / "x", encoder=flat, **QUICK)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"patch": 32}, "does not fit"),
        ({"patch": 10}, "multiple of 4. Give such a patch .--patch.[.]$"),
        ({"patch": 4}, "from 8"),
        ({"patch": 8, "slices": True}, "not both"),
        ({"class_weights": (1, 2)}, "class_weights"),
        ({"class_weights": (0, 0, 0, 0)}, "only zeros"),
        ({"class_weights": (1, 1, 1, -1)}, "class_weights"),
        ({"regions": {"all": (1, 7)}}, "'all'"),
        ({"regions": {"none": ()}}, "'none'"),
        ({"regions": {"one": 1}}, "regions"),
        ({"regions": ["WT"]}, "regions"),
        ({"class_weights": 3}, "class_weights"),
        ({"class_weights": ("a", "b", "c", "d")}, "class_weights"),
        ({"labels": "all"}, "labels is 'all'"),
        ({"fold": (4, 4)}, "fold"),
        ({"fold": (0, 1)}, "fold"),
        ({"fold": (0, 99)}, "fold"),
        ({"fold": 3}, "fold"),
    ],
)
def test_what_cannot_be_is_refused(store, tmp_path, wrong, said):
    with pytest.raises(InputError, match=said):
        finetune(store.folder, tmp_path / "x", **QUICK | wrong)
    assert not (tmp_path / "x").exists()


def test_pictures_have_no_slices(tmp_path):
    (tmp_path / "scans").mkdir()
    for i in range(4):
        np.save(tmp_path / f"scans/{i}.npy", np.random.default_rng(i).random((16, 16)))
    store = prepare(tmp_path / "scans", tmp_path / "store", size=16, progress=False)
    with pytest.raises(InputError, match="pictures already"):
        pretrain("rotation", store.folder, tmp_path / "x", steps=1, slices=True, widths=SMALL, progress=False)


def test_class_weights_reach_the_loss(store, tmp_path):
    from ssl3d.downstream.segmentation import Segmentation

    facts = {"classes": {"0": "background", "1": "a", "2": "b"}}
    network = torch.nn.Conv3d(1, 3, 1)
    truth = torch.zeros(1, 1, 4, 4, 4)
    truth[..., 0] = 2
    outputs = network(torch.rand(1, 1, 4, 4, 4, generator=generator()))
    plain, same, other = (
        Segmentation(class_weights=w).loss(facts)(outputs, truth) for w in (None, (1, 1, 1), (1, 1, 9))
    )
    assert torch.allclose(plain, same) and abs(plain - other) > 0.05
    run = finetune(store.folder, tmp_path / "run", class_weights=(1, 1, 2, 5), **QUICK)
    assert yaml.safe_load((run / "settings.yaml").read_text())["class_weights"] == [1, 1, 2, 5]
    plain = finetune(store.folder, tmp_path / "plain", **QUICK)
    patch = finetune(store.folder, tmp_path / "patch", patch=8, **QUICK)
    losses = {read_log(r)["loss"][0] for r in (run, plain, patch)}
    assert len(losses) == 3, "weights and windows change what is trained on"


def test_regions_are_scored_beside_the_classes(store, tmp_path):
    table = {"whole": (1, 2, 3), "core": (1, 3)}
    run = finetune(store.folder, tmp_path / "run", regions=table, **QUICK)
    rows, test = read_table(run / "regions.csv"), store.split("test")
    assert [(r["case"], r["class"]) for r in rows] == [(n, r) for n in test for r in table]
    found = segment(load_network(run), store, test)
    for row in rows:
        case, one = row["case"], found[row["case"]]
        pairs = {"dice": (one.on_scan, store.truth(case)), "dice_store": (one.on_store, store.mask(case))}
        for column, pair in pairs.items():
            a, b = (np.isin(m, table[row["class"]]) for m in pair)
            expected = 2 * (a & b).sum() / max(1, a.sum() + b.sum()) if (a | b).any() else 1
            assert abs(row[column] - expected) < 1e-6
    assert "whole" in summary(run) and "oedema" in summary(run)


def test_the_layout_of_brats_has_its_regions(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(5):
        case = tmp_path / f"scans/BraTS-GLI-{i:05d}-000"
        case.mkdir(parents=True)
        for modality in ("t1n", "t1c", "t2w", "t2f"):
            write_nifti(case / f"{case.name}-{modality}.nii.gz", rng.random((12, 12, 12), dtype=np.float32))
        mask = np.zeros((12, 12, 12), np.uint8)
        mask[3:9, 3:9, 3:9], mask[5:8, 5:8, 5:8], mask[6, 6, 6] = 2, 3, 1
        write_nifti(case / f"{case.name}-seg.nii.gz", mask)
    store = prepare(open_cohort(tmp_path / "scans"), tmp_path / "store", size=8, progress=False)
    run = finetune(store.folder, tmp_path / "run", **QUICK | {"labels": 1.0, "widths": (4, 8)})
    assert {row["class"] for row in read_table(run / "regions.csv")} == {"WT", "TC", "ET"}
    assert len(read_table(run / "scores.csv")) == 3 * len(store.split("test"))


def test_distances_are_in_mm_of_the_scan(tmp_path):
    (tmp_path / "scans").mkdir()
    lines = ["image,mask"]
    for i in range(4):
        mask = np.zeros((16, 8, 32), np.uint8)
        mask[4:8, 2:4, 8:16] = 1
        affine = np.diag([1.0, 2.0, 0.5, 1])  # 16 x 16 x 16 mm
        write_nifti(tmp_path / f"scans/i{i}.nii", np.random.default_rng(i).random((16, 8, 32)), affine)
        write_nifti(tmp_path / f"scans/m{i}.nii", mask, affine)
        lines.append(f"i{i}.nii,m{i}.nii")
    (tmp_path / "scans/t.csv").write_text("\n".join(lines))
    store = prepare(tmp_path / "scans/t.csv", tmp_path / "store", size=8, progress=False)
    name = store.split("test")[0]
    assert store.spacing(name) == (2.0, 2.0, 2.0)
    truth, on_scan = np.array(store.mask(name)), store.truth(name)
    for axis, spacing in enumerate((1.0, 2.0, 0.5)):
        moved = Segmented(np.roll(truth, 1, axis=axis), np.roll(on_scan, 1, axis=axis))
        (row,) = score({name: moved}, store)
        assert row["hausdorff95_store"] == 2.0 and row["hausdorff95"] == spacing and row["dice"] < 1


def test_folds_test_everybody_once(store, tmp_path):
    folds = [Store(store.folder, (i, 3)) for i in range(3)]
    assert sorted(n for f in folds for n in f.split("test")) == sorted(store.cases)
    assert all(sorted(f.split("train") + f.split("test")) == sorted(store.cases) for f in folds)
    with pytest.raises(InputError, match="fold"):
        Store(store.folder, (3, 3))
    assert Store(store.folder, [np.int64(1), np.int64(3)]).fold == (1, 3)
    encoder = pretrain("rotation", store.folder, tmp_path / "e", steps=1, fold=(0, 3), widths=SMALL, progress=False)
    seen = {store.cases[n]["fingerprint"] for n in folds[0].split("train")}
    assert set(read_card(encoder)["trained_on"]) == seen and read_card(encoder)["fold"] == [0, 3]
    run = finetune(store.folder, tmp_path / "ft", encoder=encoder, fold=(0, 3), **QUICK)
    assert {r["case"] for r in read_table(run / "scores.csv")} == set(folds[0].split("test"))
    masks = predict(run, store.folder, tmp_path / "masks", progress=False)
    assert {m.name for m in masks} == {f"{n}.nii.gz" for n in folds[0].split("test")}
    with pytest.raises(InputError, match="keeps for"):
        finetune(store.folder, tmp_path / "leak", encoder=encoder, fold=(1, 3), **QUICK)
    assert set(store.split("test")) <= set(folds[0].split("test")), "one order of the people serves both"


def test_folds_are_stratified_and_keep_people_together():
    rng = np.random.default_rng(0)
    people = [f"p{i}" for i in range(57)]
    cases = people + [people[i] for i in rng.integers(57, size=40)]
    grade = {p: int(g) for p, g in zip(people, rng.choice(4, size=57, p=(0.5, 0.3, 0.15, 0.05)))}
    grades = [grade[c] for c in cases]
    parts = [fold_subjects(cases, (i, 5), seed=3, grades=grades)["test"] for i in range(5)]
    assert sorted(sum(parts, [])) == sorted(people) and {len(p) for p in parts} <= {11, 12}
    for g in range(4):
        counts = [sum(grade[p] == g for p in part) for part in parts]
        assert max(counts) - min(counts) <= 1
    assert fold_subjects(cases[::-1], (2, 5), 3, grades[::-1])["test"] == parts[2]
    assert fold_subjects(cases, (2, 5), 4, grades)["test"] != parts[2]
    alternating = [i % 2 for i in range(20)]
    for i in range(2):
        part = fold_subjects(people[:20], (i, 2), grades=alternating)["test"]
        assert sum(alternating[people.index(p)] for p in part) == 5


def test_the_encoder_of_a_fine_tuning_run_begins_another(store, encoder, tmp_path):
    first = finetune(store.folder, tmp_path / "first", encoder=encoder, **QUICK)
    card, before = read_card(first), read_card(encoder)
    assert card["task"] == "segmentation" and set(before["trained_on"]) <= set(card["trained_on"])
    trained = json.loads((first / "network.json").read_text())["trained_on"]
    alone = finetune(store.folder, tmp_path / "alone", **QUICK)
    assert set(read_card(alone)["trained_on"]) == {store.cases[n]["fingerprint"] for n in trained}
    second = finetune(store.folder, tmp_path / "second", encoder=first, **QUICK | {"steps": 1})
    want, got = load_encoder(first).state_dict(), load_network(second).encoder.state_dict()
    assert all(torch.equal(want[k], got[k]) for k in want), "its one step was warm-up"
    other = Store(store.folder, (1, 2))
    assert {store.cases[n]["fingerprint"] for n in other.split("test")} & set(card["trained_on"])
    with pytest.raises(InputError, match="keeps for testing"):
        finetune(store.folder, tmp_path / "leak", encoder=first, fold=(1, 2), **QUICK)


def test_validation_takes_from_training_only(store, tmp_path):
    for opened in (store, Store(store.folder, (1, 4))):
        held, train, test = (opened.split(p) for p in ("validation", "train", "test"))
        assert set(held) < set(train) and not set(held) & set(test) and abs(len(held) - len(train) / 5) < 1
    run = finetune(store.folder, tmp_path / "run", validate=True, **QUICK | {"labels": 1.0})
    trained = json.loads((run / "network.json").read_text())["trained_on"]
    held, train = store.split("validation"), store.split("train")
    assert {r["case"] for r in read_table(run / "scores.csv")} == set(held)
    assert sorted(trained) == sorted(set(train) - set(held))
