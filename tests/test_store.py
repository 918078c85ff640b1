"""The store: what it holds, its split, and damage that it names."""

import json
import pickle

import numpy as np
import pytest
from conftest import RNG, msd, volumes, write_nifti

from ssl3d.data.prepare import prepare
from ssl3d.data.store import Store, read_split, write_split
from ssl3d.errors import InputError

pytestmark = pytest.mark.quick


def test_a_split_is_written_with_a_hash(tmp_path):
    write_split(tmp_path / "split.json", {"train": ["a", "b"], "test": ["c"]}, seed=3)
    assert read_split(tmp_path / "split.json") == {"train": ["a", "b"], "test": ["c"]}
    changed = json.loads((tmp_path / "split.json").read_text()) | {"test": []}
    (tmp_path / "split.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match="split.json.*hash"):
        read_split(tmp_path / "split.json")


def test_a_flipped_bit_is_found(tmp_path):
    volumes(tmp_path / "in", "a", "b")
    store = prepare(tmp_path / "in", tmp_path / "store", size=8, progress=False)
    store.check(progress=False)
    file = tmp_path / "store/images/b.npy"
    data = bytearray(file.read_bytes())
    data[-7] ^= 4
    file.write_bytes(data)
    with pytest.raises(InputError, match="b.npy: is damaged, 1 file"):
        store.check(progress=False)


def test_the_hash_is_of_people_and_grades_too(tmp_path):
    volumes(tmp_path, "a", "b", "c")
    tables = {
        "plain": "image\na\nb\nc\n",
        "graded": "image,label\na,0\nb,1\nc,1\n",
        "other": "image,label\na,0\nb,0\nc,1\n",
        "people": "image,subject\na,x\nb,x\nc,y\n",
        "aged": "image,age\na,1\nb,2\nc,3\n",
    }
    hashes = set()
    for name, text in tables.items():
        (tmp_path / f"{name}.csv").write_text(text)
        hashes.add(
            prepare(
                tmp_path / f"{name}.csv", tmp_path.parent / f"{tmp_path.name}-{name}", size=8, test=0, progress=False
            ).hash
        )
    assert len(hashes) == len(tables)


def test_store_holds_what_was_prepared(tmp_path):
    store = prepare(msd(tmp_path / "task", n=5), tmp_path / "store", size=12, progress=False)
    assert (store.spatial_dims, store.channels, len(store)) == (3, 1, 5) and store.classes == {
        0: "background",
        1: "a",
        2: "b",
    }
    for name in store.cases:
        assert store.image(name).shape == (1, 12, 12, 12) and store.mask(name).shape == (12, 12, 12)
        assert 0 <= store.image(name).min() and store.image(name).max() == 1
    assert Store(tmp_path / "store").hash == store.hash


def test_a_store_knows_its_split_and_its_masks(tmp_path):
    task = msd(tmp_path / "task", n=8)
    a, b = (prepare(task, tmp_path / f"s{seed}", size=8, seed=seed, progress=False) for seed in (0, 3))
    assert a.split("test") != b.split("test") and a.hash != b.hash
    again = prepare(task, tmp_path / "again", size=8, progress=False)
    assert again.hash == a.hash
    write_nifti(task / "labelsTr/c3.nii.gz", np.eye(8, 9, dtype=np.uint8)[..., None].repeat(10, 2))
    assert prepare(task, tmp_path / "mask", size=8, progress=False).hash != a.hash
    write_nifti(task / "imagesTr/new.nii.gz", RNG.random((8, 9, 10)))
    info = json.loads((task / "dataset.json").read_text()) | {"test": [{"image": "./imagesTr/new.nii.gz"}]}
    (task / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match="other scans"):
        prepare(task, tmp_path / "s0", size=8, progress=False)


def test_damage_is_named(tmp_path):
    store = prepare(msd(tmp_path / "task"), tmp_path / "store", size=8, progress=False)
    file = tmp_path / "store/images/c1.npy"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="c1.npy"):
        store.image("c1")
    file.unlink()
    with pytest.raises(InputError, match="c1.npy"):
        store.image("c1")
    for text in ("{", "{}", "[]"):
        (tmp_path / "store/manifest.json").write_text(text)
        with pytest.raises(InputError, match="manifest.json"):
            Store(tmp_path / "store")


def test_a_half_is_a_view_with_a_split_of_its_own(tmp_path):
    store = prepare(msd(tmp_path / "task", n=12), tmp_path / "store", size=8, progress=False)
    for seed in range(3):
        a, b = (store.half(which, seed, 3) for which in "AB")
        assert len(a) == len(b) == 6 and not set(a.cases) & set(b.cases)
        assert len(b.split("test")) == 3 and {*a.split("train"), *a.split("test")} == set(a.cases)
        again = pickle.loads(pickle.dumps(Store(b)))  # as a step opens it, and as a worker gets it
        assert again.hash == b.hash and again.split("test") == b.split("test") and set(again.cases) == set(b.cases)
        assert set(b.split("validation")) < set(b.split("train"))
        assert np.array_equal(b.image([*b.cases][0]), store.image([*b.cases][0]))
    assert len({store.half("B", seed, 3).hash for seed in range(3)} | {store.half("B", 0, 2).hash, store.hash}) == 5
    assert len({tuple(store.half("A", seed, 3).cases) for seed in range(6)}) > 1, "drawn anew"
    parts = [Store(b, (i, 3)).split("test") for i in range(3)]
    assert sorted(sum(parts, [])) == sorted(b.cases), "folds of a half are its own people"


def test_halves_that_there_are_not(tmp_path):
    store = prepare(msd(tmp_path / "task", n=8), tmp_path / "store", size=8, progress=False)
    for n in (0, 4, -1):
        with pytest.raises(InputError, match="store: .*half B has 4"):
            store.half("B", 0, n)
    with pytest.raises(InputError, match="which"):
        store.half("C", 0, 2)
    for part in (store.half("A", 0, 2), Store(store, (0, 2))):
        with pytest.raises(InputError, match="a part of a store already"):
            part.half("A", 0, 2)
