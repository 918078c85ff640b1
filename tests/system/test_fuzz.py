"""Damaged files of every kind are read or refused: no hang, no crash, no exception without a name.

The budget is fixed and the draws are, too: mutated bytes come from seeds, Hypothesis is derandomised.
"""

import gzip
import io
import json
import shutil
import signal
import struct
import warnings
import zipfile
import zlib
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import begin, ended, write_nifti
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmread, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from ssl3d.data.layouts import open_cohort
from ssl3d.data.prepare import prepare
from ssl3d.data.scans import prepare_scan, read_scan
from ssl3d.data.store import Store
from ssl3d.data.voxels import fingerprint
from ssl3d.errors import InputError

SHAPE = (6, 7, 5)
SECONDS = 5  # for one damaged file; a whole one takes a few milliseconds
FIXED = dict(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


# The property


class Hang(BaseException):
    """Nothing that catches `Exception` can swallow it."""


@contextmanager
def limited(seconds=SECONDS):
    """Stop whatever takes longer; where there are no alarms (Windows) a hang hangs."""

    def stop(*_):
        raise Hang(f"took more than {seconds} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(function, *names):
    """ "read", or "refused" by an `InputError` that holds one of the names; anything else fails."""
    try:
        with limited(), warnings.catch_warnings(action="ignore"):
            function()
        return "read"
    except InputError as e:
        assert any(str(name) in str(e) for name in names), f"names none of {[*map(str, names)]}: {e}"
        assert "MemoryError" not in str(e), str(e)
        str(e).encode("utf-8", "backslashreplace")
        return "refused"


def scan_or_refusal(path, *names):
    def read():
        scan = read_scan(path)
        assert scan.dtype == torch.float32 and scan.ndim in (3, 4) and scan.numel() < 10**7
        assert torch.isfinite(scan).all() and torch.isfinite(scan.affine).all()

    return outcome(read, path, *names)


# Byte-level mutation


EXTREMES = [
    b"\0" * 8,
    b"\xff" * 8,
    b"\x7f" + b"\xff" * 7,
    b"\x80" + b"\0" * 7,
    b"\xff" * 7 + b"\x7f",
    b"\xff\x7f" * 4,
    struct.pack("<d", np.nan),
    struct.pack("<d", np.inf),
    struct.pack("<f", np.nan),
    struct.pack("<f", 1e38),
    struct.pack("<d", 1e308),
    struct.pack("<q", -1),
    struct.pack("<q", 2**40),
    struct.pack(">I", 2**31 - 1),
]


def mutated(data, rng, head):
    """The bytes with one to three changes, half of them in the first `head` bytes."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        n = max(len(data), 1)
        at = int(rng.integers(min(head, n) if rng.random() < 0.5 else n))
        match rng.integers(7):
            case 0:
                data[at : at + 1] = bytes([data[at] ^ (1 << int(rng.integers(8)))]) if data else b""
            case 1:
                del data[at:]
            case 2:
                data[at:at] = rng.bytes(int(rng.integers(1, 20)))
            case 3:
                del data[at : at + int(rng.integers(1, 20))]
            case 4:
                data[at : at + 1] = rng.bytes(1)
            case _:
                extreme = EXTREMES[rng.integers(len(EXTREMES))][: int(rng.choice([1, 2, 4, 8]))]
                data[at : at + len(extreme)] = extreme
    return bytes(data)


def as_gzip(change):
    """Damage inside of the stream, and a check sum that fits."""
    return lambda data: gzip.compress(change(gzip.decompress(data)), 1)


def as_png(change):
    """Damage inside of the chunks, and check sums that fit."""

    def changed(data):
        data, out, at = bytearray(change(data)), bytearray(), 8
        while at + 12 <= len(data):
            end = at + 8 + int.from_bytes(data[at : at + 4], "big")
            data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
            at = end + 4
        return bytes(out or data)

    return changed


def as_npz(change):
    """Damage inside of the arrays, and a directory that fits."""

    def changed(data):
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                array = old.read(name)
                new.writestr(name, change(array) if name.startswith("train") else array)
        return out.getvalue()

    return changed


def raw(change):
    return change


def nifti(kind=nib.Nifti1Image, dtype=np.int16):
    image = kind((np.random.default_rng(0).random(SHAPE) * 1000).astype(dtype), np.diag([1, 2, 3, 1]))
    image.header.set_slope_inter(1.5, -10)
    return image.to_bytes()


def picture(form, channels=3):
    stream = io.BytesIO()
    shape = (14, 11, 3)[: 3 if channels == 3 else 2]
    Image.fromarray(np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)).save(stream, form)
    return stream.getvalue()


def npy(array=None):
    stream = io.BytesIO()
    np.save(stream, np.random.default_rng(0).random(SHAPE) if array is None else array)
    return stream.getvalue()


def medmnist():
    stream, rng = io.BytesIO(), np.random.default_rng(0)
    np.savez(
        stream,
        **{
            f"{part}_{kind}": rng.integers(0, 5, (3, 8, 8) if kind == "images" else (3, 1), dtype=np.uint8)
            for part in ("train", "val", "test")
            for kind in ("images", "labels")
        },
    )
    return stream.getvalue()


def metaimage(packed, ending="mha"):
    """A MetaImage, or the header of one whose voxels lie in another file."""
    rng, body = np.random.default_rng(0), None
    body = rng.integers(0, 999, SHAPE[::-1]).astype(np.int16).tobytes()
    body = zlib.compress(body) if packed else body
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        f"CompressedData = {packed}",
        *([f"CompressedDataSize = {len(body)}"] if packed else []),
        "TransformMatrix = 1 0 0 0 1 0 0 0 1",
        "Offset = 0 0 0",
        "CenterOfRotation = 0 0 0",
        "AnatomicalOrientation = RAI",
        "ElementSpacing = 1 2 3",
        f"DimSize = {' '.join(map(str, SHAPE))}",
        "ElementType = MET_SHORT",
        f"ElementDataFile = {'LOCAL' if ending == 'mha' else 'a.raw'}",
        "",
    ]
    return "\n".join(lines).encode() + (body if ending == "mha" else b"")


def nrrd(packed, ending="nrrd"):
    body = np.random.default_rng(0).integers(0, 999, SHAPE[::-1]).astype(np.int16).tobytes()
    lines = [
        "NRRD0004",
        "# Complete NRRD file format specification at:",
        "type: short",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, SHAPE))}",
        "space directions: (1,0,0) (0,2,0) (0,0,3)",
        "kinds: domain domain domain",
        "endian: little",
        f"encoding: {'gzip' if packed else 'raw'}",
        "space origin: (0,0,0)",
        *(["data file: a.raw"] if ending == "nhdr" else []),
        "",
        "",
    ]
    return "\n".join(lines).encode() + (b"" if ending == "nhdr" else gzip.compress(body) if packed else body)


def mgh():
    voxels = np.random.default_rng(0).integers(0, 999, SHAPE).astype(np.int16)
    return nib.MGHImage(voxels, np.diag([1, 2, 3, 1])).to_bytes()


def photo():
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "sideways"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (14, 11, 3), dtype=np.uint8)).save(
        stream, "JPEG", exif=exif
    )
    return stream.getvalue()


FILES = {  # what is damaged: its bytes, its name, how, and how many bytes are its head
    "NIfTI-1": (nifti, "a.nii", raw, 352),
    "NIfTI-1 of floats": (lambda: nifti(dtype=np.float64), "a.nii", raw, 352),
    "NIfTI-2": (lambda: nifti(nib.Nifti2Image), "a.nii", raw, 544),
    "gzip": (lambda: gzip.compress(nifti()), "a.nii.gz", raw, 32),
    "NIfTI in gzip": (lambda: gzip.compress(nifti()), "a.nii.gz", as_gzip, 352),
    "NPY": (npy, "a.npy", raw, 128),
    "NPY of bytes": (lambda: npy(np.arange(60, dtype=np.uint8).reshape(3, 4, 5)), "a.npy", raw, 128),
    "PNG": (lambda: picture("PNG"), "a.png", raw, 64),
    "PNG, check sums fit": (lambda: picture("PNG"), "a.png", as_png, 64),
    "grey PNG, check sums fit": (lambda: picture("PNG", 1), "a.png", as_png, 64),
    "JPEG": (lambda: picture("JPEG"), "a.jpg", raw, 640),
    "grey JPEG": (lambda: picture("JPEG", 1), "a.jpg", raw, 350),
    "sideways JPEG": (photo, "a.jpg", raw, 120),
    "MGH": (mgh, "a.mgh", raw, 100),
    "MGH in gzip": (lambda: gzip.compress(mgh()), "a.mgz", as_gzip, 100),
    "gzip of MGH": (lambda: gzip.compress(mgh()), "a.mgz", raw, 32),
}


@pytest.mark.parametrize("kind", FILES)
def test_damaged_scans(tmp_path, kind):
    make, name, wrap, head = FILES[kind]
    whole, file, rng, seen = make(), tmp_path / name, np.random.default_rng(sum(kind.encode())), set()
    file.write_bytes(whole)
    assert scan_or_refusal(file) == "read", "the undamaged one is good"
    for k in range(300):
        data = wrap(lambda data: mutated(data, rng, head))(whole)
        file.write_bytes(data)
        try:
            seen.add(scan_or_refusal(file))
        except BaseException as e:
            raise AssertionError(f"{kind}, draw {k}: {type(e).__name__}: {e}; bytes {data[:600]!r}") from e
    always = kind in ("gzip", "PNG", "gzip of MGH")  # they have check sums
    assert seen == {"read", "refused"} or always, "else the damage is too small or too great"


@pytest.mark.parametrize("kind", ["NIfTI-1", "NIfTI in gzip", "NPY", "JPEG"])
def test_damaged_scans_are_prepared_or_refused(tmp_path, kind):
    """What can be read may still have no directions, no extent or no contrast."""
    make, name, wrap, head = FILES[kind]
    whole, file, rng = make(), tmp_path / name, np.random.default_rng(7)
    for k in range(60):
        data = wrap(lambda data: mutated(data, rng, head))(whole)
        file.write_bytes(data)
        try:
            outcome(lambda: prepare_scan((file,), size=8), file)
        except BaseException as e:
            raise AssertionError(f"{kind}, draw {k}: {type(e).__name__}: {e}; bytes {data[:600]!r}") from e


@pytest.mark.parametrize("wrap", [raw, as_npz])
def test_damaged_archives(tmp_path, wrap):
    whole, rng, seen = medmnist(), np.random.default_rng(3), set()
    for k in range(150):
        file = tmp_path / f"{k}.npz"  # arrays are kept by the name of their archive
        data = wrap(lambda data: mutated(data, rng, 128))(whole)
        file.write_bytes(data)
        try:
            seen.add(outcome(partial(open_cohort, file), file))
            seen.add(scan_or_refusal(file / "train_images/1", file))
        except BaseException as e:
            raise AssertionError(f"draw {k}: {type(e).__name__}: {e}; bytes {data[:600]!r}") from e
    assert seen == {"read", "refused"}


# What SimpleITK reads: in a process of its own, since its readers may end it or write to the terminal


EXCHANGED = {
    "NRRD": (lambda: nrrd(False), "a.nrrd", 330),
    "NRRD in gzip": (lambda: nrrd(True), "a.nrrd", 330),
    "NHDR": (lambda: nrrd(False, "nhdr"), "a.nhdr", 400),
    "MHA": (lambda: metaimage(False), "a.mha", 330),
    "MHA in zlib": (lambda: metaimage(True), "a.mha", 330),
    "MHD": (lambda: metaimage(False, "mhd"), "a.mhd", 400),
}
DAMAGE_FILES = """
import faulthandler, json, resource, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent)]
faulthandler.enable()
from test_fuzz import EXCHANGED, damage_file
damage_file(Path(sys.argv[2]) / "first", "MHA", 1)  # which imports SimpleITK
for kind in EXCHANGED:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen = damage_file(Path(sys.argv[2]) / kind, kind, int(sys.argv[3]))
    seen["more memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(kind, json.dumps(seen), sep="|", flush=True)
"""


def damage_file(folder, kind, n):
    """Damage a file n times; return how often it was read and refused."""
    make, name, head = EXCHANGED[kind]
    whole, file, rng, seen = make(), folder / name, np.random.default_rng(sum(kind.encode())), {"read": 0, "refused": 0}
    folder.mkdir()
    voxels = np.random.default_rng(0).integers(0, 999, SHAPE[::-1]).astype(np.int16).tobytes()
    for k in range(n):
        data, beside = mutated(whole, rng, head) if k else whole, voxels
        if k % 5 == 1 and name in ("a.nhdr", "a.mhd"):
            data, beside = whole, mutated(voxels, rng, len(voxels))
        file.write_bytes(data)
        (folder / "a.raw").write_bytes(beside)
        try:
            seen[scan_or_refusal(file)] += 1
            assert k or seen["read"] == 1, "the undamaged one is good"
            outcome(lambda: fingerprint((file,)), file)
        except BaseException as e:
            raise AssertionError(f"{kind}, draw {k}: {type(e).__name__}: {e}; bytes {data[:600]!r}") from e
    return seen


@pytest.fixture(scope="module")
def damaged_files(tmp_path_factory):
    said = tmp_path_factory.mktemp("exchanged")
    status = ended(begin(DAMAGE_FILES, Path(__file__).parent, said, 400, said=said), 300)
    lines = [line.split("|") for line in (said / "stdout").read_text().splitlines()]
    return {name: json.loads(seen) for name, seen in lines}, status, (said / "stderr").read_text()


@pytest.mark.parametrize("kind", EXCHANGED)
def test_damaged_files_that_simpleitk_reads(damaged_files, kind):
    pytest.importorskip("SimpleITK")
    seen, status, said = damaged_files
    assert status == 0 or kind in seen, said[-3000:]
    assert said == "", "nothing is written to the terminal"
    assert min(seen[kind]["read"], seen[kind]["refused"]) > 5 and seen[kind]["more memory"] < 100_000, seen[kind]


# DICOM


def jpeg2000(ds, pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG2000", no_jp2=True)
    ds.file_meta.TransferSyntaxUID, ds.PixelData = uid.JPEG2000Lossless, encapsulate([stream.getvalue()])
    ds["PixelData"].is_undefined_length = True


def jpeg(ds, pixels):
    stream = io.BytesIO()
    Image.fromarray((pixels // 4).astype(np.uint8)).save(stream, "JPEG")
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.file_meta.TransferSyntaxUID, ds.PixelData = uid.JPEGBaseline8Bit, encapsulate([stream.getvalue()])
    ds["PixelData"].is_undefined_length = True


CODES = {
    "plain": lambda ds, pixels: None,
    "RLE": lambda ds, pixels: ds.compress(uid.RLELossless, generate_instance_uid=False),
    "JPEG-LS": lambda ds, pixels: ds.compress(uid.JPEGLSLossless, generate_instance_uid=False),
    "JPEG 2000": jpeg2000,
    "JPEG": jpeg,
    "without a preamble": None,
    "multi-frame": None,
    "multi-frame, RLE": None,
}


def series(folder, code):
    """Three slices; the second one is damaged later."""
    folder.mkdir(parents=True)
    if code.startswith("multi-frame"):
        from test_dicom import real_world, write_enhanced

        write_enhanced(folder / "IM1.dcm", kind="MR", edit=real_world)
        if code.endswith("RLE"):
            ds = dcmread(folder / "IM1.dcm")
            ds.compress(uid.RLELossless, generate_instance_uid=False)
            ds.save_as(folder / "IM1.dcm")
        return folder
    for k in range(3):
        pixels = np.random.default_rng(k).integers(0, 1000, (20, 18), dtype=np.uint16)
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = uid.CTImageStorage, f"1.2.3.7.{k}", "1.2.3.7"
        ds.Modality, ds.PatientID, ds.PixelSpacing, ds.PatientAge, ds.PatientSex = "CT", "a", [1, 1], "061Y", "F"
        ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, k]
        ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 20, 18, 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1000
        ds.add_new("PixelData", "OW", pixels.tobytes())
        if CODES[code] is not None:
            CODES[code](ds, pixels)
        ds.save_as(folder / f"IM{k}.dcm", enforce_file_format=True)
        if code == "without a preamble":
            data = (folder / f"IM{k}.dcm").read_bytes()
            (folder / f"IM{k}.dcm").write_bytes(data[144 + int.from_bytes(data[140:144], "little") :])
    return folder


DAMAGE_SERIES = """
import faulthandler, json, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent)]
faulthandler.enable()
from test_fuzz import damage_series
for file in sys.argv[3:]:
    print(Path(file).parent.name, json.dumps(damage_series(Path(file), int(sys.argv[2]))), sep="|", flush=True)
"""


def damage_series(file, n):
    """Damage one slice n times, mostly its pixels; return how often its series was read and refused."""
    folder, seen = file.parent, {"read": 0, "refused": 0}
    whole, rng = file.read_bytes(), np.random.default_rng(5)
    pixels = whole.rindex(b"\xe0\x7f\x10\x00")
    for k in range(n):
        begin = pixels if rng.random() < 0.6 else 128 if whole[128:132] == b"DICM" else 0
        data = whole[:begin] + mutated(whole[begin:], rng, 120)
        file.write_bytes(data)
        try:
            seen[scan_or_refusal(folder, folder)] += 1
            if k % 3 == 0:
                outcome(lambda: open_cohort(folder), folder)
        except BaseException as e:
            raise AssertionError(f"draw {k}: {type(e).__name__}: {e}; bytes {data[begin : begin + 600]!r}") from e
    file.write_bytes(whole)
    return seen


def damage_elsewhere(n, *files):
    """The same in a process of its own: what it returned for each folder, its exit status, what it said."""
    said = files[0].parents[1]
    status = ended(begin(DAMAGE_SERIES, Path(__file__).parent, n, *files, said=said), 200)
    lines = [line.split("|") for line in (said / "stdout").read_text().splitlines()]
    return {name: json.loads(seen) for name, seen in lines}, status, (said / "stderr").read_text()[-3000:]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """All ways to pack the pixels, damaged in one process, since it takes seconds to begin one."""
    folder = tmp_path_factory.mktemp("series")
    return damage_elsewhere(100, *(series(folder / code, code) / "IM1.dcm" for code in CODES))


@pytest.mark.parametrize("code", CODES)
def test_damaged_series_do_not_crash_the_interpreter(damaged, tmp_path, code):
    file = dcmread(series(tmp_path / "s", code) / "IM1.dcm", force=True)
    plain = code in ("plain", "without a preamble", "multi-frame")
    assert plain or file.file_meta.TransferSyntaxUID.is_compressed
    seen, status, said = damaged
    assert status == 0 or code in seen, said
    assert min(seen[code].values()) > 5, seen[code]


def test_a_damaged_series_of_a_real_scan(real_data, tmp_path):
    theirs = real_data / "totalsegmentator_ct/example_ct_dicom"
    if not theirs.is_dir():
        pytest.skip(f"{theirs} is not there")
    folder = tmp_path / "s"
    folder.mkdir()
    height = {file: dcmread(file, stop_before_pixels=True).ImagePositionPatient[2] for file in theirs.iterdir()}
    for file in sorted(height, key=height.get)[:6]:  # neighbours
        shutil.copy(file, folder)
    assert scan_or_refusal(folder) == "read", "the undamaged one is good"
    seen, status, said = damage_elsewhere(20, sorted(folder.iterdir())[3])
    assert status == 0 and sum(seen["s"].values()) == 20, said


# Tables and indices


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A folder with three scans and their masks, and a few layouts beside them."""
    folder = tmp_path_factory.mktemp("scans")
    for i in range(3):
        write_nifti(folder / f"s{i}.nii.gz", np.random.default_rng(i).random(SHAPE))
        write_nifti(folder / f"m{i}.nii.gz", np.ones(SHAPE, np.uint8))
    return folder


INDEX = {
    "name": "x",
    "modality": {"0": "MRI"},
    "labels": {"0": "background", "1": "a"},
    "training": [{"image": f"./s{i}.nii.gz", "label": f"./m{i}.nii.gz"} for i in range(2)],
    "test": ["./s2.nii.gz"],
}
TEXTS = {
    "dataset.json": json.dumps(INDEX),
    "t.csv": "Image, mask ,subject,grade,age,sex\ns0.nii.gz,m0.nii.gz,a,1,60,F\n s1.nii.gz , ,b,,61.5,m\n"
    "s2.nii.gz,,c,0,,\n",
    "t.tsv": "image\tgrade\ns0.nii.gz\t1\ns1.nii.gz\t2\n",
    "participants.tsv": "participant_id\tage\tsex\nsub-0\t60\tF\nsub-1\t61\tM\n",
}


def place(folder, name, scans):
    """The source that reads a table of this name, which may then be overwritten."""
    if name == "participants.tsv":
        for i in range(2):
            (folder / f"sub-{i}/anat").mkdir(parents=True, exist_ok=True)
            shutil.copy(scans / f"s{i}.nii.gz", folder / f"sub-{i}/anat/sub-{i}_T1w.nii.gz")
        return folder
    for file in scans.glob("*.nii.gz"):
        shutil.copy(file, folder)
    return folder if name == "dataset.json" else folder / name


@pytest.mark.parametrize("name", TEXTS)
def test_damaged_tables(tmp_path, scans, name):
    source, rng, seen = place(tmp_path, name, scans), np.random.default_rng(2), set()
    (tmp_path / name).write_text(TEXTS[name])
    assert outcome(lambda: open_cohort(source), tmp_path) == "read"
    for k in range(250):
        data = mutated(TEXTS[name].encode(), rng, 60)
        (tmp_path / name).write_bytes(data)
        try:
            seen.add(outcome(lambda: str(open_cohort(source)), tmp_path))
            assert outcome(lambda: str(open_cohort(source, on_error="skip")), tmp_path)
        except BaseException as e:
            raise AssertionError(f"draw {k}: {type(e).__name__}: {e}; bytes {data!r}") from e
    assert seen == {"read", "refused"} - ({"refused"} if name == "participants.tsv" else set())  # nobody asked for it


PATHS = st.sampled_from(
    [
        "s0.nii.gz",
        "./s1.nii.gz",
        "m0.nii.gz",
        "",
        ".",
        "..",
        "/",
        "s0.nii.gz/x",
        "nowhere",
        "\0",
        "x" * 300,
        "~",
        "*",
        "s0",
    ]
) | st.text(max_size=8)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | PATHS
ANY = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PATHS, inner, max_size=3), max_leaves=6
)
ROWS = st.lists(st.fixed_dictionaries({"image": SCALARS, "label": SCALARS}) | PATHS | ANY, max_size=3)
NUMBERED = st.dictionaries(st.sampled_from(["0", "1", "-1", "255", "1e9", "a", "9" * 5000, "١"]), SCALARS, max_size=3)
GOOD = st.just(INDEX["training"])
INDICES = st.one_of(
    ANY,
    st.fixed_dictionaries({"training": ROWS}),
    st.fixed_dictionaries({"training": GOOD, "test": ROWS | ANY}),
    st.fixed_dictionaries({"training": GOOD, "modality": NUMBERED | ANY, "labels": NUMBERED | ANY}),
)


@settings(max_examples=400, **FIXED)
@given(info=INDICES)
def test_any_json_as_an_index(scans, info):
    (scans / "dataset.json").write_text(json.dumps(info))
    try:
        outcome(lambda: open_cohort(scans, layout="msd"), scans, "/: ")
        outcome(lambda: open_cohort(scans, layout="msd", on_error="skip"), scans, "/: ")
    finally:
        (scans / "dataset.json").unlink()


CELLS = st.sampled_from(
    [
        "s0.nii.gz",
        " s1.nii.gz ",
        "m0.nii.gz",
        "",
        " ",
        "1",
        "1e999",
        "nan",
        "-1",
        "F",
        "x" * 300,
        '"',
        '"\n"',
        "\t",
        "\r",
        "..",
        "/",
        "9" * 5000,
    ]
) | st.text(max_size=6)
COLUMNS = st.sampled_from(
    [
        "image",
        "Image ",
        "image_a",
        "image_b",
        "image_",
        "mask",
        "label",
        "grade",
        "subject",
        "age",
        "sex",
        "",
        "id_code",
        "x",
        "\ufeffimage",
    ]
)


@settings(max_examples=200, **FIXED)
@given(head=st.lists(COLUMNS, min_size=1, max_size=5), rows=st.lists(st.lists(CELLS, max_size=6), max_size=4))
def test_any_table(scans, head, rows):
    file = scans / "any.csv"
    text = "\n".join(",".join(row) for row in [head, *rows])
    file.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
    outcome(lambda: open_cohort(file), scans, "/: ")
    outcome(lambda: open_cohort(file, on_error="skip"), scans, "/: ")


@settings(max_examples=100, **FIXED)
@given(head=st.lists(COLUMNS, min_size=1, max_size=4), rows=st.lists(st.lists(CELLS, max_size=4), max_size=3))
def test_any_table_beside_a_cohort(scans, head, rows):
    (scans / "more.csv").write_text(
        "\n".join(",".join(row) for row in [head, *rows]), encoding="utf-8", errors="surrogatepass", newline=""
    )
    outcome(lambda: open_cohort(scans, layout="folder", table="more.csv"), scans)


PIECES = st.sampled_from(
    [
        "{id}",
        "{subject}",
        "{session}",
        "{x}",
        "{",
        "}",
        "*",
        "**",
        "**/",
        "/",
        "?",
        "[",
        "]",
        "(",
        ")",
        "\\",
        "|",
        "^",
        "$",
        "+",
        ".nii.gz",
        "s",
        "m",
        "{id",
        "",
        "..",
        "{}",
        "\n",
    ]
)
PATTERNS = st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=10)


@settings(max_examples=300, **FIXED)
@given(images=PATTERNS | st.dictionaries(st.text(max_size=3), PATTERNS, max_size=3), masks=st.none() | PATTERNS)
def test_any_pattern(scans, images, masks):
    texts = [masks, *(images.values() if isinstance(images, dict) else [images])]
    names = [scans, "patterns are a layout of their own", *(f"'{text}'" for text in texts if text is not None)]
    outcome(lambda: open_cohort(scans, images=images, masks=masks), *names)


@pytest.mark.parametrize(
    "pattern",
    ["*" * 30 + "{id}.nii", "{id}" + "*a" * 12 + ".nii", "**/" * 12 + "{id}.nii", "{subject}{session}" * 6 + "x"],
)
def test_no_pattern_takes_forever(tmp_path, pattern):
    deep = tmp_path / "/".join("a" * 30)
    deep.mkdir(parents=True)
    write_nifti(deep / ("a" * 60 + ".nii.gz"), np.random.default_rng(0).random(SHAPE))
    outcome(lambda: open_cohort(tmp_path, images=pattern), tmp_path, f"'{pattern}'")


# Headers


@st.composite
def headers(draw):
    """A NIfTI header in which a few fields hold anything, before 720 bytes of voxels."""
    kind = draw(st.sampled_from([nib.Nifti1Header, nib.Nifti2Header]))
    header = kind()
    header.set_data_shape(SHAPE)
    header.set_data_dtype(draw(st.sampled_from([np.uint8, np.int16, np.float32, np.float64])))
    header["vox_offset"] = kind.sizeof_hdr + 4
    header.set_sform(np.diag([1, 2, 3, 1]), 1)
    fields = st.sampled_from(
        [
            "dim",
            "datatype",
            "bitpix",
            "vox_offset",
            "scl_slope",
            "scl_inter",
            "pixdim",
            "srow_x",
            "srow_y",
            "srow_z",
            "quatern_b",
            "quatern_c",
            "quatern_d",
            "qoffset_x",
            "sform_code",
            "qform_code",
            "magic",
            "sizeof_hdr",
            "intent_code",
            "xyzt_units",
        ]
    )
    for name in draw(st.lists(fields, min_size=1, max_size=3)):
        field = header.structarr[name]
        if field.dtype.kind == "S":
            header.structarr[name] = draw(st.binary(max_size=field.dtype.itemsize))
            continue
        if field.dtype.kind == "f":
            number = st.floats(width=8 * field.dtype.itemsize) | st.sampled_from([0.0, 1e-30, 1e30, -1.0])
        else:
            low, high = int(np.iinfo(field.dtype).min), int(np.iinfo(field.dtype).max)
            number = st.integers(low, high) | st.integers(max(low, -1), 20)
        values = draw(st.lists(number, min_size=field.size, max_size=field.size))
        header.structarr[name] = values if field.ndim else values[0]
    return header.structarr.tobytes() + b"\0" * 4 + np.random.default_rng(0).bytes(SHAPE[0] * SHAPE[1] * SHAPE[2] * 4)


@settings(max_examples=300, **FIXED)
@given(data=headers(), packed=st.booleans())
def test_any_header(tmp_path, data, packed):
    file = tmp_path / ("a.nii.gz" if packed else "a.nii")
    file.write_bytes(gzip.compress(data, 1) if packed else data)
    if scan_or_refusal(file) == "read":
        outcome(lambda: prepare_scan((file,), size=8), file)


@settings(max_examples=150, **FIXED)
@given(affine=st.lists(st.floats(width=32) | st.sampled_from([0.0, 1.0, -1.0, 1e-20]), min_size=12, max_size=12))
def test_any_affine(tmp_path, affine):
    header = nib.Nifti1Header()
    header.set_data_shape(SHAPE)
    header["vox_offset"], header["sform_code"] = 352, 1
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        header[name] = affine[4 * row : 4 * row + 4]
    voxels = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    (tmp_path / "a.nii").write_bytes(header.binaryblock + b"\0" * 4 + voxels.tobytes())
    outcome(lambda: prepare_scan((tmp_path / "a.nii",), size=8), tmp_path / "a.nii")


SHAPES = st.lists(st.sampled_from([0, 1, 3, 5, 8, 2**31, 2**63 - 1, -1]), max_size=6).map(tuple)
DTYPES = st.sampled_from(
    ["<f8", ">f4", "|u1", "|b1", "<c8", "|O", "<U3", "|S0", "|V0", "<M8[s]", "<f2", "<i8", "x", ""]
)


@settings(max_examples=200, **FIXED)
@given(shape=SHAPES, descr=DTYPES, order=st.booleans(), body=st.integers(0, 8), version=st.sampled_from([1, 2, 3, 9]))
def test_any_npy_header(tmp_path, shape, descr, order, body, version):
    text = repr({"descr": descr, "fortran_order": order, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY" + bytes([version, 0]) + size + text + bytes(range(256)) * body)
    scan_or_refusal(tmp_path / "a.npy")


# Stores


@pytest.fixture(scope="module")
def small_store(scans, tmp_path_factory):
    return prepare(
        open_cohort(scans, images="s{id}.nii.gz", masks="m{id}.nii.gz"),
        tmp_path_factory.mktemp("stores") / "store",
        size=8,
        progress=False,
    )


def use(folder):
    """Everything that a run asks of a store."""
    store = Store(folder)
    assert str(store) and len(store) >= 0
    for part in ("train", "test"):
        for name in store.split(part):
            assert store.image(name).shape and store.content(name).shape
            if store.cases[name]["classes"]:
                store.mask(name)
    store.check(progress=False)


@pytest.mark.parametrize("name", ["manifest.json", "split.json", "images/1.npy"])
def test_damaged_stores(small_store, tmp_path, name):
    folder = shutil.copytree(small_store.folder, tmp_path / "store")
    use(folder)
    whole, rng, seen = (folder / name).read_bytes(), np.random.default_rng(4), set()
    for k in range(250):
        data = mutated(whole, rng, 128)
        (folder / name).write_bytes(data)
        try:
            seen.add(outcome(lambda: use(folder), folder))
        except BaseException as e:
            raise AssertionError(f"draw {k}: {type(e).__name__}: {e}; bytes {data[:300]!r}") from e
    assert "refused" in seen


@settings(max_examples=150, **FIXED)
@given(data=st.data())
def test_any_value_in_a_manifest(small_store, data):
    file = small_store.folder / "manifest.json"
    whole = file.read_text()
    manifest = json.loads(whole)
    where = data.draw(st.sampled_from([manifest, manifest["settings"], manifest["cases"][0]]))
    key = data.draw(st.sampled_from(sorted(where)))
    where[key] = data.draw(ANY)
    file.write_text(json.dumps(manifest))
    try:
        outcome(lambda: use(small_store.folder), small_store.folder)
    finally:
        file.write_text(whole)


def test_the_watchdog_bites():
    """Else a hang would go unnoticed, and the tests above could not fail for it."""
    with pytest.raises(Hang), limited(0.2):
        while True:
            try:
                sum(range(1000))
            except Exception:
                pass
