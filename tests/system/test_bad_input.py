"""Whatever is wrong with a file: one message that names it, before any training, and the rest goes on when asked to."""

import builtins
import csv
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import time
import zipfile
import zlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import nibabel as nib
import numpy as np
import pytest
from conftest import python, write_nifti
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from ssl3d.cli import main
from ssl3d.data.layouts import download_msd, open_cohort
from ssl3d.data.prepare import prepare
from ssl3d.data.scans import read_scan
from ssl3d.data.store import Store
from ssl3d.errors import InputError

SHAPE, HUGE = (8, 9, 10), (2714, 2714, 2714)  # 20 GB of bytes
IMAGE, MASK = "imagesTr/c2.nii.gz", "labelsTr/c2.nii.gz"
TASK = "Task04_Hippocampus"
OTHERS = ["c0", "c1", "c3", "c4"]


# A small good cohort


def pair(folder, name, seed=0):
    """One image and its mask."""
    rng = np.random.default_rng([seed, *name.encode()])
    write_nifti(folder / f"imagesTr/{name}.nii.gz", rng.random(SHAPE, dtype=np.float32))
    write_nifti(folder / f"labelsTr/{name}.nii.gz", rng.integers(0, 3, SHAPE).astype(np.uint8))


def index(folder, names, **rows):
    """Write dataset.json; `rows` says where the image or the mask of a case lies if not where it should."""
    training = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} | rows.get(n, {}) for n in names]
    info = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "a", "2": "b"}, "training": training}
    (folder / "dataset.json").write_text(json.dumps(info))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Five cases, c0 to c4, as a Decathlon task."""
    folder = tmp_path_factory.mktemp("good") / "task"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for i in range(5):
        pair(folder, f"c{i}")
    index(folder, [f"c{i}" for i in range(5)])
    return folder


@pytest.fixture(scope="module")
def without(good, tmp_path_factory):
    """The store of the cohort in which c2 was never there."""
    folder = shutil.copytree(good, tmp_path_factory.mktemp("without") / "task")
    index(folder, OTHERS)
    return prepare(folder, folder.parent / "store", size=8, progress=False)


@pytest.fixture
def task(good, tmp_path):
    return shutil.copytree(good, tmp_path / "task")


# What can be wrong with c2


def nifti_claim(shape, code=2, bits=8, body=b"\0" * 720):
    """A NIfTI file whose header claims more than it holds."""
    header = nib.Nifti2Header()
    header.set_data_shape(shape)
    header["datatype"], header["bitpix"], header["vox_offset"] = code, bits, 544
    return header.binaryblock + b"\0" * 4 + body


def npy_claim(shape, descr="|u1", body=b"\0" * 720):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue() + body


def png_claim(width, height, colour=0):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def jpeg_claim(width, height):
    stream = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(stream, "JPEG")
    data = bytearray(stream.getvalue())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def series(folder, rows=None, n=3, syntax=uid.ExplicitVRLittleEndian, **tags):
    """A small DICOM series; `rows` is what the headers claim."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 999, (n, 10, 9), dtype=np.uint16)
    for k in range(n):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = uid.CTImageStorage, f"2.25.7.{k}", "2.25.7"
        ds.Modality, ds.PatientID, ds.PixelSpacing = "CT", "a", [1, 1]
        ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, k]
        ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 10, 9, 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.add_new("PixelData", "OW", pixels[k].tobytes())
        if syntax != uid.ExplicitVRLittleEndian:
            ds.compress(syntax, generate_instance_uid=False)
        ds.Rows, ds.Columns = (rows, rows) if rows else (ds.Rows, ds.Columns)
        ds.update(tags)
        ds.save_as(folder / f"IM{k}.dcm", enforce_file_format=True)
    return folder


def voxels(array, file=IMAGE, affine=None):
    return lambda task, patch: write_nifti(task / file, array, affine)


def put(data, file=IMAGE):
    """Another file in the place of c2's."""
    return lambda task, patch: (task / file).write_bytes(data)


def change(how, file=IMAGE):
    return lambda task, patch: (task / file).write_bytes(how((task / file).read_bytes()))


def unpacked(how):
    return change(lambda b: gzip.compress(how(gzip.decompress(b))))


def instead(name, data):
    """An image of another format as the image of c2."""

    def spoil(task, patch):
        (task / "imagesTr" / name).write_bytes(data)
        index(task, ["c0", "c1", "c2", "c3", "c4"], c2={"image": f"imagesTr/{name}"})

    return spoil


def with_value(value):
    array = np.random.default_rng(1).random(SHAPE, dtype=np.float32)
    array[3, 4, 5] = value
    return voxels(array)


def rgb(task, patch):
    kinds = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    write_nifti(task / IMAGE, np.zeros(SHAPE, kinds))


def flat(task, patch):
    """Two axes, the mask too."""
    write_nifti(task / IMAGE, np.random.default_rng(1).random((8, 9)))
    write_nifti(task / MASK, np.ones((8, 9), np.uint8))


def twice(task, patch):
    """The person's scan is listed a second time, from another folder."""
    (task / "imagesTr/again").mkdir()
    shutil.copy(task / IMAGE, task / "imagesTr/again/c2.nii.gz")
    info = json.loads((task / "dataset.json").read_text())
    info["training"].append({"image": "imagesTr/again/c2.nii.gz", "label": MASK})
    (task / "dataset.json").write_text(json.dumps(info))


def link(target, file=IMAGE):
    def spoil(task, patch):
        (task / file).unlink()
        (task / file).symlink_to(target)

    return spoil


def ring(task, patch):
    """Two links that name each other."""
    link("d2.nii.gz")(task, patch)
    (task / "imagesTr/d2.nii.gz").symlink_to("c2.nii.gz")


def forbid(patch, wanted):
    """Let every way to open a path fail, as for somebody who may not read it; root may read anything."""

    def guard(function):
        def guarded(path, *args, **kwargs):
            if isinstance(path, (str, os.PathLike)) and Path(path) == wanted:
                raise PermissionError(13, "Permission denied", str(path))
            return function(path, *args, **kwargs)

        return guarded

    for module, name in ((builtins, "open"), (io, "open"), (os, "open"), (os, "listdir"), (os, "scandir")):
        patch.setattr(module, name, guard(getattr(module, name)))


def unreadable(file):
    return lambda task, patch: forbid(patch, task / file)


def slices(**options):
    """A DICOM series as the image of c2, without a mask."""

    def spoil(task, patch):
        series(task / "imagesTr/c2", **options)
        index(task, ["c0", "c1", "c2", "c3", "c4"], c2={"image": "imagesTr/c2"})

    return spoil


class Payload:
    """Unpickling this would make a folder."""

    place = Path("unset")

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def pickled(task, patch):
    patch.setattr(Payload, "place", task / "payload-ran")
    stream = io.BytesIO()
    np.save(stream, np.array([Payload()], dtype=object), allow_pickle=True)
    instead("c2.npy", stream.getvalue())(task, patch)


def bare_pickle(task, patch):
    patch.setattr(Payload, "place", task / "payload-ran")
    instead("c2.npy", pickle.dumps(Payload()))(task, patch)


shifted = np.eye(4) + np.array([[0, 0, 0, 9], [0] * 4, [0] * 4, [0] * 4])
BAD = {  # what is wrong with c2: what spoils it, the file of the message, words of the message
    "truncated gzip": (change(lambda b: b[:400]), IMAGE, "cannot be read (EOFError", "Is the file whole"),
    "gzip header only": (change(lambda b: b[:12]), IMAGE, "cannot be read", "Is the file whole"),
    "damaged gzip": (change(lambda b: b[:500] + b"\xff" * 200 + b[700:]), IMAGE, "cannot be read", "whole"),
    "wrong check sum": (change(lambda b: b[:-8] + b"\1\2\3\4" + b[-4:]), IMAGE, "CRC check failed"),
    "gzip of a short file": (unpacked(lambda b: b[:1000]), IMAGE, "ends after 1000 of", "cut short"),
    "empty file": (put(b""), IMAGE, "cannot be read", "whole"),
    "wrong magic": (unpacked(lambda b: b.replace(b"n+1\0", b"abc\0")), IMAGE, "magic string"),
    "header of a pair": (unpacked(lambda b: b.replace(b"n+1\0", b"ni1\0")), IMAGE, "is not a NIfTI file in one piece"),
    "text": (put(b"<html>404 not found</html>" * 40), IMAGE, "cannot be read", "what its name says"),
    "packed text": (put(gzip.compress(b"not a scan " * 100)), IMAGE, "cannot be read", "what its name says"),
    "claims 20 GB": (put(gzip.compress(nifti_claim(HUGE))), IMAGE, "claims 2714x2714x2714 voxels"),
    "claims 20 GB, plain": (put(nifti_claim(HUGE)), IMAGE, "claims 2714x2714x2714 voxels"),
    "claims more than memory": (put(nifti_claim((2**40,) * 3)), IMAGE, "claims 1099511627776x", "voxels"),
    "claims a little more": (put(nifti_claim((8, 9, 11))), IMAGE, "claims 8x9x11 voxels"),
    "no voxels": (put(nifti_claim((8, 0, 10))), IMAGE, "claims 8x0x10 voxels"),
    "NaN": (with_value(np.nan), IMAGE, "holds NaN or infinite values"),
    "infinity": (with_value(-np.inf), IMAGE, "holds NaN or infinite values"),
    "constant": (voxels(np.full(SHAPE, 7.0)), IMAGE, "same value everywhere"),
    "no place": (unpacked(lambda b: b[:280] + bytes(16) + b[296:]), IMAGE, "an affine that maps its voxels to no"),
    "2D": (flat, IMAGE, "2 axes of space", "one kind of image"),
    "single slice": (voxels(np.random.default_rng(0).random((8, 9, 1))), IMAGE, "a single slice"),
    "RGB": (rgb, IMAGE, "in colour or complex"),
    "complex": (voxels(np.zeros(SHAPE, np.complex64)), IMAGE, "in colour or complex"),
    "time series": (voxels(np.random.default_rng(0).random((*SHAPE, 20))), IMAGE, "(8, 9, 10, 20)", "a film"),
    "short time series": (voxels(np.random.default_rng(0).random((*SHAPE, 5))), IMAGE, "5 channel(s)"),
    "five axes": (voxels(np.random.default_rng(0).random((*SHAPE, 2, 2))), IMAGE, "(8, 9, 10, 2, 2)"),
    "picture": (instead("c2.png", b"no picture"), "imagesTr/c2.png", "cannot be read (UnidentifiedImageError"),
    "claims 20 GB, picture": (instead("c2.png", png_claim(140000, 140000)), "imagesTr/c2.png", "cannot be read"),
    "claims 20 GB, npy": (instead("c2.npy", npy_claim(HUGE)), "imagesTr/c2.npy", "cannot be read (ValueError"),
    "pickled objects": (pickled, "imagesTr/c2.npy", "Python objects in dtype"),
    "bare pickle": (bare_pickle, "imagesTr/c2.npy", "pickled"),
    "empty mask": (voxels(np.zeros(SHAPE, np.uint8), MASK), MASK, "is empty: nothing in it is marked"),
    "mask of fractions": (voxels(np.full(SHAPE, 0.5), MASK), MASK, "is not a mask, it has 0.5"),
    "negative mask": (voxels(np.full(SHAPE, -1.0), MASK), MASK, "is not a mask, it has -1"),
    "unknown class": (voxels(np.full(SHAPE, 7, np.uint8), MASK), MASK, "has the value(s) [7]", "[0, 1, 2]"),
    "mask with NaN": (voxels(np.full(SHAPE, np.nan), MASK), MASK, "holds NaN or infinite values"),
    "mask of two channels": (voxels(np.ones((*SHAPE, 2), np.uint8), MASK), MASK, "is not a mask, it has 2 channels"),
    "mask of another size": (voxels(np.ones((8, 9, 11), np.uint8), MASK), MASK, "has (8, 9, 11) voxels", IMAGE),
    "mask of another place": (voxels(np.ones(SHAPE, np.uint8), MASK, shifted), MASK, "9 mm away from"),
    "mask of another spacing": (voxels(np.ones(SHAPE, np.uint8), MASK, np.diag([1, 1, 2, 1])), MASK, "mm away from"),
    "truncated mask": (change(lambda b: b[:150], MASK), MASK, "cannot be read"),
    "duplicate subject": (twice, "imagesTr/again/c2.nii.gz", "is a second case 'c2'", IMAGE),
    "unreadable": (unreadable(IMAGE), IMAGE, "PermissionError"),
    "unreadable mask": (unreadable(MASK), MASK, "PermissionError"),
    "missing": (lambda task, patch: (task / IMAGE).unlink(), IMAGE, "no such file"),
    "broken link": (link("nowhere.nii.gz"), IMAGE, "no such file"),
    "link to itself": (link("c2.nii.gz"), IMAGE, "no such file"),
    "ring of links": (ring, IMAGE, "no such file"),
    "link to its folder": (link("."), IMAGE, "holds no DICOM image"),
    "broken link as a mask": (link("nowhere.nii.gz", MASK), MASK, "no such file"),
    "slices claim": (slices(rows=65535), "imagesTr/c2/IM0.dcm", "claims 65535 x 65535 pixels", "8589672450 bytes"),
    "packed slices claim": (slices(rows=60000, syntax=uid.RLELossless), "imagesTr/c2", "claims 21600000000 bytes"),
    "slice with another size": (
        lambda task, patch: (slices()(task, patch), series(task / "imagesTr/c2", n=1, rows=11)),
        "imagesTr/c2/IM1.dcm",
        "rows x columns",
        "IM0.dcm has (11, 11)",
    ),
    "unreadable slice": (
        lambda task, patch: (slices()(task, patch), unreadable("imagesTr/c2/IM1.dcm")(task, patch)),
        "imagesTr/c2/IM1.dcm",
        "PermissionError",
    ),
    "unreadable folder": (
        lambda task, patch: (slices()(task, patch), unreadable("imagesTr/c2")(task, patch)),
        "imagesTr/c2",
        "PermissionError",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named_and_stops(task, tmp_path, monkeypatch, name):
    spoil, file, *words = BAD[name]
    spoil(task, monkeypatch)
    with pytest.raises(InputError) as error:
        prepare(task, tmp_path / "store", size=8, progress=False)
    said = str(error.value)
    assert str(task / file) in said and "\n" not in said, said
    for word in words:
        assert word in said, said
    assert not (tmp_path / "store/manifest.json").exists() and not list(tmp_path.rglob("*.part"))
    assert not (task / "payload-ran").exists()


@pytest.mark.parametrize("name", BAD)
def test_the_rest_goes_on_when_asked_to(task, tmp_path, monkeypatch, without, name):
    spoil, file, *words = BAD[name]
    spoil(task, monkeypatch)
    store = prepare(task, tmp_path / "store", size=8, on_error="skip", progress=False)
    [row] = store.left_out
    assert str(task / file) in row["problem"] and all(word in row["problem"] for word in words), row
    with open(tmp_path / "store/left_out.csv", newline="", encoding="utf-8") as f:
        assert list(csv.DictReader(f)) == [row] == Store(tmp_path / "store").left_out
    if name == "duplicate subject":  # the first of the two stays
        assert sorted(store.cases) == ["c0", "c1", "c2", "c3", "c4"]
    else:
        assert sorted(store.cases) == OTHERS and row["case"] in ("c2", "")
        assert not list((tmp_path / "store").rglob("c2*")) or name in ("2D", "short time series")
        split = json.loads((tmp_path / "store/split.json").read_text())
        assert {p: split[p] for p in ("train", "test")} == {p: without.split(p) for p in ("train", "test")}
        assert store.hash == without.hash, "as if c2 had never been there"
    for case in OTHERS:
        assert np.array_equal(store.image(case), without.image(case))
        assert np.array_equal(store.mask(case), without.mask(case))
    assert len(prepare(task, tmp_path / "store", size=8, on_error="skip", progress=False)) == len(store), "it is done"


def test_the_good_cohort_is_good(good, tmp_path):
    """Else the tests above could fail for another reason than the one they name."""
    store = prepare(good, tmp_path / "store", size=8, progress=False)
    assert sorted(store.cases) == ["c0", "c1", "c2", "c3", "c4"] and not store.left_out
    assert not (tmp_path / "store/left_out.csv").exists()


def test_nothing_of_a_case_of_another_kind_stays(task, tmp_path):
    """It is found out last, when its arrays are written."""
    flat(task, None)
    prepare(task, tmp_path / "store", size=8, on_error="skip", progress=False)
    assert not list((tmp_path / "store").rglob("c2*"))


# Cohorts of which nothing is left


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_zero_files(tmp_path, on_error):
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.csv").write_text("image,mask\n")
    (tmp_path / "blank.csv").write_text("")
    (tmp_path / "task").mkdir()
    index(tmp_path / "task", [])
    for name in ("empty", "t.csv", "blank.csv", "task"):
        with pytest.raises(InputError, match="holds no scan") as error:
            prepare(tmp_path / name, tmp_path / "store", size=8, on_error=on_error, progress=False)
        assert str(tmp_path / name) in str(error.value) and not (tmp_path / "store").exists()


def test_no_case_can_be_used(task, tmp_path):
    for image in (task / "imagesTr").iterdir():
        image.write_bytes(b"")
    with pytest.raises(InputError, match="no case of it can be used") as error:
        prepare(task, tmp_path / "store", size=8, on_error="skip", progress=False)
    assert str(task) in str(error.value) and ".nii.gz" in str(error.value)
    assert not (tmp_path / "store/manifest.json").exists()


def test_one_subject_is_too_few(task, tmp_path):
    for i in range(4):
        (task / f"imagesTr/c{i}.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match="leaves nobody on one side"):
        prepare(task, tmp_path / "store", size=8, on_error="skip", progress=False)
    assert not (tmp_path / "store/manifest.json").exists()


# Tables


def table(folder, text, name="t.csv"):
    """A CSV beside five scans, s0 to s4."""
    for i in range(5):
        write_nifti(folder / f"s{i}.nii.gz", np.random.default_rng(i).random(SHAPE))
    (folder / name).write_text(text)
    return folder / name


def test_a_table_with_stray_spaces_and_columns(tmp_path):
    rows = "".join(f"  s{i}.nii.gz ,, p{i} ,x,\t{i}.0 , 61 ,w\n" for i in range(5))
    file = table(tmp_path, "\ufeff Image ,, SUBJECT , site, Grade , AGE , Sex ,\n" + rows + ",,,,,,\n\n")
    cohort = open_cohort(file)
    assert [(c.id, c.subject, c.grade, c.age) for c in cohort.cases] == [(f"s{i}", f"p{i}", i, 61.0) for i in range(5)]


@pytest.mark.parametrize(
    "cell, said",
    [
        ("", "t.csv"),
        ("nowhere.nii.gz", "nowhere.nii.gz"),
        ("x" * 300, "x" * 200),
        ("a/" * 3000, "t.csv"),
        (".", "t.csv"),
        ("..", "t.csv"),
    ],
)
@pytest.mark.parametrize("n", [1, 2])
def test_a_cell_that_names_no_scan(tmp_path, cell, said, n):
    (tmp_path / "t").mkdir()
    file = table(tmp_path / "t", "image,grade\n" + f"{cell},1\n" * n + "s0.nii.gz,1\ns1.nii.gz,2\n")
    with pytest.raises(InputError) as error:
        prepare(file, tmp_path / "store", size=8, progress=False)
    assert said in str(error.value) or str(tmp_path / "t") in str(error.value)
    store = prepare(file, tmp_path / "skip", size=8, on_error="skip", progress=False)
    assert sorted(store.cases) == ["s0", "s1"] and len(store.left_out) == n


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfe\x00image",
        b'image,mask\n"' + b"x" * 200_000 + b'"\n',
        b"\x00\x01\x02",
        b"file;label\ns0.nii.gz;1\n",
        b"\n\n\n",
        b",,,\n,,,\n",
    ],
)
def test_tables_that_are_none(tmp_path, data):
    file = table(tmp_path, "")
    file.write_bytes(data)
    with pytest.raises(InputError, match="t.csv"):
        open_cohort(file)


def test_an_unreadable_table(tmp_path, monkeypatch):
    file = table(tmp_path, "image\ns0.nii.gz\n")
    forbid(monkeypatch, file)
    with pytest.raises(InputError, match=r"t\.csv: cannot be read as a table"):
        open_cohort(file)


@pytest.mark.parametrize(
    "test",
    [
        '["\\ud800.nii"]',
        '["\\u0000.nii"]',
        "null",
        "5",
        '[{"image": 5}]',
        '[{"image": null}]',
        '["' + "x" * 300 + '.nii.gz"]',
    ],
)
def test_an_index_that_names_no_file(good, tmp_path, test):
    shutil.copytree(good, tmp_path / "task")
    text = (good / "dataset.json").read_text()
    (tmp_path / "task/dataset.json").write_text(text[:-1] + f', "test": {test}}}')
    with pytest.raises(InputError) as error:
        open_cohort(tmp_path / "task")
    assert str(tmp_path / "task") in str(error.value)


# Names


NAMES = ["Müller", "e\u0301tude", "\u00e9tude", "脳_01", "🧠", "Ελένη κ", "a b'\"c", "%s{id}*[x]"]  # NFD and NFC both


def test_names_that_are_not_ascii(tmp_path):
    folder = tmp_path / "sçäns 脳"
    for i, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        write_nifti(folder / name / f"{name}.nii.gz", np.random.default_rng(i).random(SHAPE))
    ids = sorted(f"{name}-{name}" for name in NAMES)
    store = prepare(folder, tmp_path / "störe 🧠", size=8, progress=False)
    assert sorted(store.cases) == ids and sorted(store.split("train") + store.split("test")) == ids
    again = Store(tmp_path / "störe 🧠")
    again.check(progress=False)
    assert len({again.image(name).tobytes() for name in ids}) == len(NAMES), "no file was written over another"
    cohort = open_cohort(folder, images="{subject}/*.nii.gz")
    assert sorted(c.subject for c in cohort.cases) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_file_is_named_in_any_script(tmp_path, name):
    for i in range(3):
        (tmp_path / "s").mkdir(exist_ok=True)
        write_nifti(tmp_path / f"s/{i}.nii.gz", np.random.default_rng(i).random(SHAPE))
    (tmp_path / f"s/{name}.nii.gz").write_bytes(b"no scan")
    store = prepare(tmp_path / "s", tmp_path / "store", size=8, on_error="skip", progress=False)
    with open(tmp_path / "store/left_out.csv", newline="", encoding="utf-8") as f:
        [row] = csv.DictReader(f)
    assert row["case"] == name and str(tmp_path / f"s/{name}.nii.gz") in row["problem"] and [row] == store.left_out


def test_a_name_that_is_not_utf8(tmp_path):
    for i in range(3):
        (tmp_path / "s").mkdir(exist_ok=True)
        write_nifti(tmp_path / f"s/{i}.nii.gz", np.random.default_rng(i).random(SHAPE))
    (tmp_path / "s" / os.fsdecode(b"M\xfcller.nii.gz")).write_bytes(b"no scan")
    store = prepare(tmp_path / "s", tmp_path / "store", size=8, on_error="skip", progress=False)
    assert len(store) == 3 and len(store.left_out) == 1 and "ller.nii.gz" in store.left_out[0]["problem"]
    assert "ller.nii.gz" in (tmp_path / "store/left_out.csv").read_text(encoding="utf-8")


def test_a_case_whose_id_is_too_long_for_a_file(tmp_path):
    deep = tmp_path / "s" / ("a" * 100) / ("b" * 100) / ("c" * 100)
    deep.mkdir(parents=True)
    for i in range(3):
        write_nifti(tmp_path / f"s/{i}.nii.gz", np.random.default_rng(i).random(SHAPE))
    write_nifti(deep / "d.nii.gz", np.random.default_rng(9).random(SHAPE))
    store = prepare(tmp_path / "s", tmp_path / "store", size=8, on_error="skip", progress=False)
    assert len(store) == 4 or len(store) == 3 and str(deep / "d.nii.gz") in store.left_out[0]["problem"]


# Links


def test_a_folder_link_to_its_parent_is_not_followed_forever(tmp_path):
    (tmp_path / "s").mkdir()
    for i in range(3):
        write_nifti(tmp_path / f"s/{i}.nii.gz", np.random.default_rng(i).random(SHAPE))
    (tmp_path / "s/up").symlink_to(tmp_path)
    with pytest.raises(InputError, match="s/up: is a link to a folder that it lies in"):
        open_cohort(tmp_path / "s")
    store = prepare(tmp_path / "s", tmp_path.parent / f"{tmp_path.name}-store", size=8, on_error="skip", progress=False)
    assert len(store) == 3 and "s/up" in store.left_out[0]["problem"]


@pytest.mark.parametrize("links", [1, 2])
def test_folders_that_link_to_each_other(tmp_path, links):
    for name, other in ("ab", "ba"):
        (tmp_path / "s" / name).mkdir(parents=True)
        write_nifti(tmp_path / f"s/{name}/{name}.nii.gz", np.random.default_rng(ord(name)).random(SHAPE))
        for k in range(links):
            (tmp_path / f"s/{name}/link{k}").symlink_to(tmp_path / "s" / other)
    code = """import sys; from ssl3d.data.layouts import open_cohort
print(len(open_cohort(sys.argv[1], on_error="skip")))"""
    done = python(code, tmp_path / "s", timeout=20)
    assert int(done.stdout) <= 4, "each file once, or once below each name of its folder"


@pytest.mark.parametrize("target", ["itself", "nowhere"])
def test_a_source_that_is_a_dead_link(tmp_path, target):
    (tmp_path / "itself").symlink_to(target)
    with pytest.raises(InputError, match="itself: is a broken link"):
        open_cohort(tmp_path / "itself")


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    for i in range(3):
        (tmp_path / f"s/{i}").mkdir(parents=True)
        write_nifti(tmp_path / f"s/{i}/a.nii.gz", np.random.default_rng(i).random(SHAPE))
    forbid(monkeypatch, tmp_path / "s/1")
    with pytest.raises(InputError, match="s/1: cannot be listed"):
        open_cohort(tmp_path / "s")
    assert [c.id for c in open_cohort(tmp_path / "s", on_error="skip").cases] == ["0-a", "2-a"]


# Memory and time


def lying_archive(file, directory_too):
    """An archive whose array claims 20 GB; so does its directory where told to."""
    body = npy_claim((20_000_000_000,))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("train_images.npy", body)
    if directory_too:
        data = bytearray(file.read_bytes())
        at = data.index(b"PK\1\2") + 20  # packed and unpacked size
        data[at : at + 8] = struct.pack("<II", 4_000_000_000, 4_000_000_000)
        old = b"(20000000000,), "
        data[data.index(old) : data.index(old) + len(old)] = b"(3900000000,),  "
        file.write_bytes(data)
    return file


CLAIMS = {
    "a.nii": lambda f: (f / "a.nii").write_bytes(nifti_claim(HUGE)),
    "f.nii": lambda f: (f / "f.nii").write_bytes(nifti_claim((1, 20_000, 20_000), 64, 64)),
    "a.nii.gz": lambda f: (f / "a.nii.gz").write_bytes(gzip.compress(nifti_claim(HUGE))),
    "long.nii.gz": lambda f: (f / "long.nii.gz").write_bytes(gzip.compress(nifti_claim(HUGE, body=bytes(10**6)))),
    "a.npy": lambda f: (f / "a.npy").write_bytes(npy_claim(HUGE)),
    "f.npy": lambda f: (f / "f.npy").write_bytes(npy_claim((3, 20_000, 20_000), "<f8")),
    "a.npz/train_images/0": lambda f: lying_archive(f / "a.npz", False),
    "a.png": lambda f: (f / "a.png").write_bytes(png_claim(140_000, 140_000)),
    "a.jpg": lambda f: (f / "a.jpg").write_bytes(jpeg_claim(65_500, 65_500)),
    "plain": lambda f: series(f / "plain", rows=65535),
    "packed": lambda f: series(f / "packed", rows=60000, syntax=uid.RLELossless),
    "b.npz/train_images/0": lambda f: lying_archive(f / "b.npz", True),
    "b.png": lambda f: (f / "b.png").write_bytes(png_claim(13_000, 13_000, colour=2)),
    "b.jpg": lambda f: (f / "b.jpg").write_bytes(jpeg_claim(13_000, 13_000)),
}
READ_ALL = """
import json, resource, sys
import torch
from ssl3d.errors import InputError
from ssl3d.data.scans import read_scan
torch.set_num_threads(1)
size = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + 200 * 2**20,) * 2)
said = {}
for path in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        said[path] = [f"read: {read_scan(path).shape}"]
    except InputError as e:
        said[path] = [str(e)]
    said[path].append((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def claims(tmp_path_factory):
    """What is said of each file with a false claim by a process that may take 200 MB, and how many MB it took."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux")
    folder = tmp_path_factory.mktemp("claims")
    for make in CLAIMS.values():
        make(folder)
    done = python(READ_ALL, *(folder / name for name in CLAIMS), timeout=120)
    return {str(Path(path).relative_to(folder)): said for path, said in json.loads(done.stdout).items()}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_false_claim_is_refused_before_memory_is_taken(claims, name):
    said, megabytes = claims[name]
    assert f"/{name.split('/')[0]}" in said and not said.startswith("read"), said
    assert "MemoryError" not in said, f"it was asked for: {said}"
    assert megabytes < 64


def bomb(file, header, gigabytes):
    """A gzip stream that begins like a small scan, and goes on with zeros."""
    packer = zlib.compressobj(9, wbits=31)
    start = packer.compress(header) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 26)) + packer.flush(zlib.Z_FULL_FLUSH)
    file.write_bytes(start + block * (gigabytes << 4) + packer.flush())
    return file


def test_a_bomb_is_unpacked_to_the_claimed_bytes_only(tmp_path, monkeypatch):
    unpacked, read = [], gzip._GzipReader.read

    def counted(self, size=-1):
        piece = read(self, size)
        unpacked.append(len(piece))
        return piece

    monkeypatch.setattr(gzip._GzipReader, "read", counted)
    file = bomb(tmp_path / "a.nii.gz", nifti_claim((8, 9, 10)), 10)
    assert file.stat().st_size > 9_000_000, "10 GB of zeros"
    start = time.perf_counter()
    try:
        assert read_scan(file).shape == (1, 8, 9, 10)
    except InputError as e:  # as well
        assert str(file) in str(e)
    assert 544 + 720 <= sum(unpacked) <= 544 + 720 + (1 << 20) and time.perf_counter() - start < 5


def test_damage_that_unpacks_to_more_is_noticed(task):
    data = (task / IMAGE).read_bytes()
    (task / IMAGE).write_bytes(data[:500] + bytes(200) + data[700:])
    with pytest.raises(InputError, match="c2.nii.gz"):
        read_scan(task / IMAGE)


# What could run, and what could write elsewhere


@pytest.mark.parametrize("labels", [False, True])
def test_a_pickled_archive_is_not_unpickled(tmp_path, monkeypatch, labels):
    monkeypatch.setattr(Payload, "place", tmp_path / "payload-ran")
    arrays = {
        f"{p}_{kind}": np.zeros((2, 8, 8), np.uint8) if kind == "images" else np.zeros((2, 1), int)
        for p in ("train", "val", "test")
        for kind in ("images", "labels")
    }
    arrays["train_labels" if labels else "train_images"] = np.array([Payload(), Payload()], dtype=object)
    np.savez(tmp_path / "m.npz", **arrays)
    with pytest.raises(InputError, match="m.npz"):
        if labels:
            open_cohort(tmp_path / "m.npz")
        else:
            read_scan(tmp_path / "m.npz/train_images/0")
    assert not (tmp_path / "payload-ran").exists()


def test_a_pickled_array_of_a_store_is_not_unpickled(good, tmp_path, monkeypatch):
    store = prepare(good, tmp_path / "store", size=8, progress=False)
    monkeypatch.setattr(Payload, "place", tmp_path / "payload-ran")
    np.save(tmp_path / "store/images/c1.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="c1.npy"):
        store.image("c1")
    assert not (tmp_path / "payload-ran").exists()


@pytest.mark.parametrize("kind", ["EPS", "TIFF", "GIF", "BMP"])
def test_a_picture_is_what_its_name_says(tmp_path, monkeypatch, kind):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gs").write_text(f"#!/bin/sh\ntouch '{tmp_path / 'ghostscript-ran'}'\n")
    (tmp_path / "bin/gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None, raising=False)
    Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(tmp_path / "a.png", kind)
    with pytest.raises(InputError, match="a.png"):
        read_scan(tmp_path / "a.png")
    assert not (tmp_path / "ghostscript-ran").exists()


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_table_cannot_write_outside_the_store(tmp_path, on_error):
    folder = tmp_path / "cohort"
    (folder / "train_images").mkdir(parents=True)
    for name in ("train_images/p0", "train_images/p1", "x"):
        picture = np.random.default_rng([*name.encode()]).integers(0, 255, (20, 30), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{name}.png")
    (folder / "train.csv").write_text("id_code,diagnosis\np0,1\np1,0\n../train_images/../../cohort/x.png,2\n")
    before = set(tmp_path.rglob("*"))
    try:
        prepare(folder, tmp_path / "store", size=8, on_error=on_error, progress=False)
    except InputError as e:
        assert on_error == "raise" and "x.png" in str(e)
    outside = {p for p in set(tmp_path.rglob("*")) - before if not p.is_relative_to(tmp_path / "store")}
    assert not outside


def test_a_series_cannot_write_outside_the_store(tmp_path):
    """Two series of a folder are told apart by their identifiers, and one of them is a path."""
    cohort = tmp_path / "a/b/cohort"
    series(cohort / "s", SeriesInstanceUID="1.2.3.8", PatientID="b")
    series(cohort / "t", SeriesInstanceUID="1.2.3.7", PatientID="c")
    evil = series(tmp_path / "evil", SeriesInstanceUID="../../../../a/b/cohort/t/1.2.3.7", PatientID="e")
    for k in range(3):
        shutil.move(evil / f"IM{k}.dcm", cohort / f"s/evil{k}.dcm")
    before = set(tmp_path.rglob("*"))
    store = prepare(cohort, tmp_path / "store", size=8, test=0, on_error="skip", progress=False)
    assert len(store) >= 2
    assert not {p for p in set(tmp_path.rglob("*")) - before if not p.is_relative_to(tmp_path / "store")}


def test_two_series_of_one_folder_whose_identifiers_are_uuids(tmp_path):
    for uid_, person in (("2.25.113059749145936325402354257176981405696", "a"), ("2.25.8", "b")):
        made = series(tmp_path / person, SeriesInstanceUID=uid_, PatientID=person)
        (tmp_path / "s").mkdir(exist_ok=True)
        for k in range(3):
            shutil.move(made / f"IM{k}.dcm", tmp_path / f"s/{person}{k}.dcm")
        made.rmdir()
    assert len(prepare(tmp_path / "s", tmp_path / "store", size=8, test=0, progress=False)) == 2


def archive(file, task, *members):
    """A tar of a task with more members."""
    with tarfile.open(file, "w") as tar:
        tar.add(task, arcname=TASK)
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, 4 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"evil"))
    return file


@pytest.fixture
def offer(tmp_path, monkeypatch):
    """A function that lets the Decathlon's hippocampi be fetched from a file below tmp_path, through a server here."""
    from monai.apps import DecathlonDataset

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path))
    Thread(target=server.serve_forever, daemon=True).start()

    def offered(file):
        digest = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
        monkeypatch.setitem(DecathlonDataset.resource, TASK, f"http://127.0.0.1:{server.server_port}/{file.name}")
        monkeypatch.setitem(DecathlonDataset.md5, TASK, digest)
        return file

    yield offered
    server.shutdown()
    server.server_close()


def test_a_task_is_fetched(good, tmp_path, offer):
    offer(archive(tmp_path / f"{TASK}.tar", good))
    folder = download_msd(TASK, tmp_path / "data", progress=False)
    assert folder == tmp_path / "data" / TASK and len(open_cohort(folder)) == 5


EVIL = {
    "up": ("../evil", tarfile.REGTYPE, ""),
    "up from within": ("Task04_Hippocampus/../../evil", tarfile.REGTYPE, ""),
    "absolute": ("{tmp}/evil", tarfile.REGTYPE, ""),
    "link": ("Task04_Hippocampus/link", tarfile.SYMTYPE, "../../.."),
    "hard link": ("Task04_Hippocampus/link", tarfile.LNKTYPE, "../../secret"),
}


@pytest.mark.parametrize("name", EVIL)
def test_an_archive_cannot_write_outside_its_folder(good, tmp_path, offer, name):
    (tmp_path / "secret").write_text("mine")
    path, kind, target = EVIL[name]
    members = [(path.format(tmp=tmp_path), kind, target)]
    if "link" in name:
        members.append((f"{path}/evil", tarfile.REGTYPE, ""))
    offer(archive(tmp_path / f"{TASK}.tar", good, *members))
    before = set(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=f"{TASK}: could not be fetched .*(Unsafe path|link detected)"):
        download_msd(TASK, tmp_path / "data", progress=False)
    made = set(tmp_path.rglob("*")) - before
    assert all(p.is_relative_to(tmp_path / "data") and not p.is_symlink() for p in made)
    assert (tmp_path / "secret").read_text() == "mine" and not list(tmp_path.rglob("evil"))


def test_a_half_unpacked_task_is_not_taken_for_a_whole_one(good, tmp_path, offer):
    offer(archive(tmp_path / f"{TASK}.tar", good, EVIL["up"]))
    for _ in range(2):
        with pytest.raises(InputError, match="could not be fetched"):
            download_msd(TASK, tmp_path / "data", progress=False)


@pytest.mark.parametrize("how", ["gone", "cut", "changed", "text"])
def test_a_task_that_does_not_arrive_whole(good, tmp_path, offer, how):
    file = archive(tmp_path / f"{TASK}.tar", good)
    whole = file.read_bytes()
    if how == "text":
        file.write_bytes(b"<html>" * 100)
    offer(file)
    if how == "gone":
        file.unlink()
    elif how != "text":
        file.write_bytes(whole[:3000] if how == "cut" else whole[:-1] + b"x")
    with pytest.raises(InputError, match=f"{TASK}: could not be fetched"):
        download_msd(TASK, tmp_path / "data", progress=False)


# Labels of an archive


def medmnist(file, **changes):
    """Three pictures in each of the three parts."""
    arrays = {}
    for part in ("train", "val", "test"):
        arrays[f"{part}_images"] = np.random.default_rng(len(part)).integers(0, 255, (3, 8, 8), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.zeros((3, 1), int)
    np.savez(file, **(arrays | changes))
    return file


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["a", "b", "c"]),
        np.array([1, np.nan, 2]),
        np.array([1, np.inf, 2]),
        np.array(3),
        np.array([1, 2, 3], dtype="M8[s]"),
        np.array([1j, 2, 3]),
    ],
    ids=lambda labels: str(labels.dtype),
)
def test_labels_of_an_archive_that_are_no_grades(tmp_path, labels):
    file = medmnist(tmp_path / "m.npz", train_labels=labels)
    try:
        cohort = open_cohort(file)
    except InputError as e:
        assert str(file) in str(e)
    else:
        assert all(c.grade is None or type(c.grade) is int for c in cohort.cases)


def test_an_archive_with_more_labels_than_images(tmp_path):
    medmnist(tmp_path / "m.npz", val_labels=np.zeros((5, 1), int))
    with pytest.raises(InputError, match="m.npz/val_images/[34]"):
        prepare(tmp_path / "m.npz", tmp_path / "store", size=8, progress=False)
    store = prepare(tmp_path / "m.npz", tmp_path / "skip", size=8, on_error="skip", progress=False)
    assert len(store) == 9 and {row["case"] for row in store.left_out} == {"val-000003", "val-000004"}


def test_a_mended_archive_is_read_anew(tmp_path):
    images = np.random.default_rng(1).random((3, 8, 8))
    images[1] = np.nan
    medmnist(tmp_path / "m.npz", train_images=images)
    with pytest.raises(InputError, match="m.npz/train_images/1"):
        read_scan(tmp_path / "m.npz/train_images/1")
    medmnist(tmp_path / "m.npz")
    assert read_scan(tmp_path / "m.npz/train_images/1").max() > 1


# A damaged store


@pytest.mark.parametrize("data", [b"", b"PK\3\4", b"\x93NUMPY", b"text", npy_claim(HUGE), "archive"])
def test_a_damaged_array_is_named(good, tmp_path, data):
    store = prepare(good, tmp_path / "store", size=8, progress=False)
    file = tmp_path / "store/images/c1.npy"
    if data == "archive":
        np.savez(tmp_path / "x.npz", a=np.zeros(3))
        data = (tmp_path / "x.npz").read_bytes()
    file.write_bytes(data)
    with pytest.raises(InputError, match="c1.npy"):
        store.image("c1")
    with pytest.raises(InputError, match="c1.npy"):
        store.check(progress=False)


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", "[" * 100_000, '{"a":' * 100_000, "\x00", '"x"'])
def test_a_damaged_manifest_is_named(good, tmp_path, text):
    prepare(good, tmp_path / "store", size=8, progress=False)
    for name, read in (("manifest.json", Store), ("split.json", lambda folder: Store(folder).split("train"))):
        file = tmp_path / "store" / name
        whole = file.read_text()
        file.write_text(text)
        with pytest.raises(InputError, match=name):
            read(tmp_path / "store")
        file.write_text(whole)


# Going on


@pytest.mark.parametrize("name", ["truncated gzip", "NaN", "unknown class", "missing", "broken link", "2D"])
def test_going_on_after_the_file_is_mended(good, task, tmp_path, name):
    whole = {file: (good / file).read_bytes() for file in (IMAGE, MASK)}
    BAD[name][0](task, None)
    with pytest.raises(InputError):
        prepare(task, tmp_path / "store", size=8, workers=1, progress=False)
    store = tmp_path / "store"
    made = {f: f.stat().st_mtime_ns for case in ("c0", "c1") for f in store.rglob(f"{case}.npy")}
    assert len(made) == 4 or name in ("missing", "broken link"), "two were done before it; and images, masks each"
    for file, data in whole.items():
        (task / file).unlink(missing_ok=True)
        (task / file).write_bytes(data)
    store = prepare(task, tmp_path / "store", size=8, workers=1, progress=False)
    assert sorted(store.cases) == ["c0", "c1", "c2", "c3", "c4"] and not store.left_out
    assert {f: f.stat().st_mtime_ns for f in made} == made
    assert store.hash == prepare(good, tmp_path / "fresh", size=8, progress=False).hash
    assert not list(tmp_path.rglob("*.part"))


def test_a_full_disk_leaves_nothing_half_written_in_the_end(task, tmp_path, monkeypatch):
    save = np.save

    def full(file, arr):
        if "c2" in file.name:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(file, arr)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises((InputError, OSError), match="No space left"):
        prepare(task, tmp_path / "store", size=8, progress=False)
    assert not (tmp_path / "store/images/c2.npy").exists()
    monkeypatch.setattr(np, "save", save)
    assert len(prepare(task, tmp_path / "store", size=8, progress=False)) == 5
    assert not list(tmp_path.rglob("*.part"))


# The command


def beside_the_bar(err):
    return [line for line in err.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]


@pytest.mark.parametrize("name", BAD)
def test_the_command_says_one_line(task, tmp_path, monkeypatch, capfd, name):
    spoil, file, *words = BAD[name]
    spoil(task, monkeypatch)
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", str(task), "--out", str(tmp_path / "store"), "--size", "8"])
    err = beside_the_bar(capfd.readouterr().err)
    assert stopped.value.code == 1 and len(err) == 1, err
    assert err[0].startswith("ssl3d: ") and str(task / file) in err[0] and all(word in err[0] for word in words)


@pytest.mark.parametrize("name", ["truncated gzip", "NaN", "2D", "unknown class"])
def test_the_command_goes_on_when_asked_to(task, tmp_path, monkeypatch, capfd, name):
    BAD[name][0](task, monkeypatch)
    main(["prepare", str(task), "--out", str(tmp_path / "store"), "--size", "8", "--on-error", "skip"])
    said = capfd.readouterr()
    left = [line for line in said.out.splitlines() if line.startswith("left out: ")]
    assert len(left) == 1 and left[0].startswith("left out: 1 (see left_out.csv)") and BAD[name][1] in left[0]
    assert not beside_the_bar(said.err)
