"""DICOM series: read as SimpleITK reads them, or refused with the reason."""

import io
import random
import sys

import numpy as np
import pytest
from conftest import python
from PIL import Image
from pydicom import dcmread, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence

from ssl3d.data import dicom
from ssl3d.data.dicom import modality_of, read_series, series_files
from ssl3d.errors import InputError

N, ROWS, COLUMNS = 6, 12, 9
BETWEEN_ROWS, BETWEEN_COLUMNS, STEP = 0.7, 0.9, 2.5
TILTED = np.linalg.qr([[3.0, 1, 0.5], [-1, 3, 1], [0.2, -1, 3]])[0].round(6)
PLANES = {
    "axial": [1, 0, 0, 0, 1, 0],
    "sagittal": [0, 1, 0, 0, 0, -1],
    "coronal": [1, 0, 0, 0, 0, -1],
    "feet up": [-1, 0, 0, 0, 1, 0],
    "oblique": [*TILTED[0], *TILTED[1]],
}
ORDERS = {"upwards": range(N), "downwards": range(N)[::-1], "shuffled": [3, 0, 5, 1, 4, 2]}


def values(dtype=np.int16, bits=12):
    """A volume (slices, rows, columns) in which no two voxels are alike, and which a lossy code keeps nearly."""
    rows, columns, slices = np.arange(ROWS)[:, None], np.arange(COLUMNS), np.arange(N)[:, None, None]
    stack = 1 + columns + COLUMNS * rows + ROWS * COLUMNS * slices
    return (stack - (2 ** (bits - 1) if dtype == np.int16 else 0)).astype(dtype)


def write(
    folder, stack=None, plane="axial", order=range(N), edit=None, series="2.25.7", leave_out=(), encode=None, prefix=""
):
    """Write a series, slice k as file number order[k]; `edit(k, ds)` changes a slice before it is saved."""
    stack = values() if stack is None else stack
    folder.mkdir(exist_ok=True)
    axes = np.array(PLANES[plane], dtype=float).reshape(2, 3)
    for k in set(range(len(stack))) - set(leave_out):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = uid.CTImageStorage, f"{series}.{k}", series
        ds.Modality, ds.SeriesDescription, ds.PatientID, ds.StudyInstanceUID = "CT", f"of {series}", "a", "2.25.1"
        ds.InstanceNumber = int(order[k]) + 1
        ds.ImageOrientationPatient = axes.ravel().tolist()
        ds.ImagePositionPatient = ([-30.5, 40.25, 7] + k * STEP * np.cross(*axes)).round(8).tolist()
        ds.PixelSpacing, ds.SliceThickness = [BETWEEN_ROWS, BETWEEN_COLUMNS], STEP
        ds.Rows, ds.Columns = stack.shape[1:]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        bits = 8 * stack.itemsize
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
        ds.PixelRepresentation = int(stack.dtype.kind == "i")
        ds.add_new("PixelData", "OW", stack[k].tobytes() + b"\0" * (stack[k].nbytes % 2))
        if edit:
            edit(k, ds)
        if encode:
            encode(ds, stack[k])
        ds.save_as(folder / f"{prefix}IM{order[k]:03d}.dcm", enforce_file_format=True)
    return folder


def damage(path, change):
    path.write_bytes(change(path.read_bytes()))


def refused(path):
    """The message with which a series is refused."""
    with pytest.raises(InputError) as error:
        read_series(path)
    return str(error.value)


def assert_agree(folder, uid=""):
    """Every voxel has the value and the place in the room that SimpleITK gives it, which counts in LPS."""
    sitk = pytest.importorskip("SimpleITK")
    image, affine = read_series(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), uid))
    theirs = reader.Execute()
    assert [str(path) for path in series_files(folder)] == list(reader.GetFileNames())
    assert image.dtype == np.float32 and image.shape == (1, *theirs.GetSize()) and affine.shape == (4, 4)
    assert np.array_equal(image[0], sitk.GetArrayFromImage(theirs).transpose(2, 1, 0))
    for corner in np.ndindex(2, 2, 2):
        index = [int(c * (n - 1)) for c, n in zip(corner, theirs.GetSize())]
        x, y, z = theirs.TransformIndexToPhysicalPoint(index)
        assert np.allclose((affine @ [*index, 1])[:3], [-x, -y, z], atol=1e-3), "places differ by a micrometre"


# Order and place


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("plane", PLANES)
def test_values_and_places_are_those_of_simpleitk(tmp_path, plane, order):
    folder = write(tmp_path / "s", plane=plane, order=ORDERS[order])
    assert_agree(folder)
    image, affine = read_series(folder)
    assert np.array_equal(image[0], values().transpose(2, 1, 0))
    assert np.allclose(np.linalg.norm(affine[:3, :3], axis=0), [BETWEEN_COLUMNS, BETWEEN_ROWS, STEP], atol=1e-5)
    assert np.allclose(affine[:3, 3], [30.5, -40.25, 7])


def test_a_real_series_is_read_as_simpleitk_reads_it(real_data):
    folder = real_data / "totalsegmentator_ct" / "example_ct_dicom"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    assert_agree(folder)
    assert read_series(folder)[0].min() == -1024, "air, in Hounsfield units"


# Pixels


def through_simpleitk(compressor):
    """An encoder that is not ours: SimpleITK (GDCM) writes the slice, and its stream is taken over."""

    def encode(ds, pixels):
        sitk = pytest.importorskip("SimpleITK")
        writer, file = sitk.ImageFileWriter(), encode.folder / "encoded.dcm"
        writer.SetFileName(str(file))
        writer.SetImageIO("GDCMImageIO")
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.Execute(sitk.GetImageFromArray(pixels))
        theirs = dcmread(file)
        assert theirs.PixelRepresentation == ds.PixelRepresentation and theirs.BitsStored == ds.BitsStored
        ds.file_meta.TransferSyntaxUID, ds["PixelData"] = theirs.file_meta.TransferSyntaxUID, theirs["PixelData"]

    return encode


def through_pillow(syntax, **options):
    def encode(ds, pixels):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, **options)
        ds.file_meta.TransferSyntaxUID = syntax
        ds.PixelData = encapsulate([stream.getvalue()])
        ds["PixelData"].is_undefined_length = True

    return encode


def through_pydicom(syntax, **options):
    def encode(ds, pixels):
        ds.compress(syntax, generate_instance_uid=False, **options)

    return encode


ENCODERS = {  # name: encoder, the transfer syntax it must make, the largest error that is allowed
    "plain": (lambda ds, pixels: None, uid.ExplicitVRLittleEndian, 0),
    "RLE": (through_pydicom(uid.RLELossless), uid.RLELossless, 0),
    "JPEG-LS": (through_pydicom(uid.JPEGLSLossless), uid.JPEGLSLossless, 0),
    "JPEG-LS near": (through_pydicom(uid.JPEGLSNearLossless, jls_error=2), uid.JPEGLSNearLossless, 2),
    "JPEG 2000": (through_simpleitk("JPEG2000"), uid.JPEG2000Lossless, 0),
    "JPEG Lossless": (through_simpleitk("JPEG"), uid.JPEGLosslessSV1, 0),
}


@pytest.fixture(params=ENCODERS)
def encoder(request, tmp_path):
    encode, syntax, error = ENCODERS[request.param]
    encode.folder = tmp_path
    return encode, syntax, error


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_compressed_series(tmp_path, encoder, dtype):
    encode, syntax, error = encoder
    folder = write(tmp_path / "s", values(dtype), order=ORDERS["shuffled"], encode=encode)
    assert dcmread(series_files(folder)[0]).file_meta.TransferSyntaxUID == syntax
    image, _ = read_series(folder)
    off = np.abs(image[0] - values(dtype).transpose(2, 1, 0))
    assert off.max() <= error and (error == 0 or off.max() > 0), "the lossy ones are lossy"


def test_the_decoder_is_the_named_one_whatever_is_installed(tmp_path, encoder, monkeypatch):
    """GDCM would be pydicom's first choice, and damaged files crash it."""
    encode, syntax, _ = encoder
    used, read = [], dicom.iter_pixels
    monkeypatch.setattr(dicom, "iter_pixels", lambda ds, **options: used.append(options) or read(ds, **options))
    read_series(write(tmp_path / "s", encode=encode))
    named = {
        uid.RLELossless: "pydicom",
        uid.JPEGLSLossless: "pyjpegls",
        uid.JPEGLSNearLossless: "pyjpegls",
        uid.JPEG2000Lossless: "pillow",
        uid.ExplicitVRLittleEndian: "",
    }
    assert used == ([{"decoding_plugin": named[syntax]}] * N if syntax in named else [])


@pytest.mark.parametrize(
    "syntax, options",
    [
        (uid.JPEGBaseline8Bit, {"format": "JPEG", "quality": 95}),
        (uid.JPEG2000, {"format": "JPEG2000", "no_jp2": True, "irreversible": True, "quality_layers": [4]}),
    ],
)
def test_lossy_8_bit(tmp_path, syntax, options):
    stack = (values(np.uint16) // 4).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    image, _ = read_series(write(tmp_path / "s", stack, encode=through_pillow(syntax, **options)))
    off = np.abs(image[0] - stack.transpose(2, 1, 0))
    assert 0 < off.max() <= 8


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_noise_in_many_bits_survives_jpeg_lossless(tmp_path, dtype):
    """Differences of all sizes, the largest (16 bits) too, and streams of more than one block."""
    noise = np.random.default_rng(0).integers(np.iinfo(dtype).min, np.iinfo(dtype).max, (2, 200, 200), endpoint=True)
    noise = noise.astype(dtype)
    noise[:, :40] >>= 9
    noise[0, 0, :6] = np.array([0, 32768, 0, 65535, 32767, 0]).astype(dtype)
    encode, _, _ = ENCODERS["JPEG Lossless"]
    encode.folder = tmp_path
    image, _ = read_series(write(tmp_path / "s", noise, encode=encode))
    assert np.array_equal(image[0], noise.transpose(2, 1, 0))


def test_every_slice_has_its_own_slope(tmp_path):
    def edit(k, ds):
        ds.RescaleSlope, ds.RescaleIntercept = 0.5 * (k + 1), -10 * k

    image, _ = read_series(write(tmp_path / "s", edit=edit))
    for k, stored in enumerate(values()):
        assert np.array_equal(image[0, :, :, k], stored.T * (0.5 * (k + 1)) - 10 * k)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_bits_that_are_not_stored_are_not_read(tmp_path, dtype):
    def edit(k, ds):
        ds.BitsStored, ds.HighBit = 12, 11

    stack = values(dtype)
    garbage = (stack.view(np.uint16) & 0x0FFF | 0x5000).view(dtype)  # an overlay in the upper bits, as once was usual
    image, _ = read_series(write(tmp_path / "s", garbage, edit=edit))
    assert np.array_equal(image[0], stack.transpose(2, 1, 0))


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_other_ways_to_write_plain_pixels(tmp_path, syntax):
    def edit(k, ds):
        ds.file_meta.TransferSyntaxUID = syntax
        if syntax == uid.ExplicitVRBigEndian:
            ds.PixelData = values()[k].astype(">i2").tobytes()

    image, _ = read_series(write(tmp_path / "s", edit=edit))
    assert np.array_equal(image[0], values().transpose(2, 1, 0))


# What else lies in a folder


def other_object(path, sop_class, series="2.25.9", **tags):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = sop_class, "2.25.99", series
    ds.update(tags)
    ds.save_as(path, enforce_file_format=True)


def test_files_that_are_no_images_are_passed_over(tmp_path):
    folder = write(tmp_path / "s")
    other_object(folder / "DICOMDIR", uid.MediaStorageDirectoryStorage)
    other_object(folder / "report.dcm", uid.BasicTextSRStorage)
    other_object(folder / "contours.dcm", uid.RTStructureSetStorage, series="2.25.7")
    other_object(folder / "dose.dcm", uid.RTDoseStorage, Rows=4, Columns=4)
    other_object(folder / "private.dcm", "1.3.46.670589.11.0.0.12.2")
    for name in ("notes.txt", "LICENSE", ".DS_Store", "._IM000.dcm", "empty"):
        (folder / name).write_bytes(b"" if name == "empty" else b"no DICOM" * 50)
    (folder / "below").mkdir()
    write(folder / "below", series="2.25.8")
    assert len(series_files(folder)) == N and read_series(folder)[0].shape == (1, COLUMNS, ROWS, N)


def test_one_of_several_series(tmp_path):
    folder = write(tmp_path / "s")
    write(folder, values() + 1000, series="2.25.8", prefix="b", leave_out=[0])
    assert np.array_equal(read_series(folder / "2.25.8")[0][0], values()[1:].transpose(2, 1, 0) + 1000)
    assert np.array_equal(read_series(str(folder / "2.25.7"))[0][0], values().transpose(2, 1, 0))
    assert [path.name for path in series_files(folder / "2.25.8")][0] == "bIM001.dcm"
    message = refused(folder)
    assert message.startswith(f"{folder}: holds 2 series")
    assert "2.25.7: 6 slices, 'of 2.25.7'; 2.25.8: 5 slices, 'of 2.25.8'" in message
    assert f"{folder}: holds no series 2.25.6" in refused(folder / "2.25.6")


def test_paths_that_are_no_series(tmp_path):
    folder = write(tmp_path / "s")
    for path in (tmp_path / "no" / "such", folder / "IM000.dcm" / "2.25.7"):
        assert str(path) in refused(path) and "not a folder" in refused(path)
    assert f"{folder / 'IM000.dcm'}: is a single slice. Name the folder" in refused(folder / "IM000.dcm")
    (tmp_path / "empty").mkdir()
    assert "holds no DICOM image (0 files" in refused(tmp_path / "empty")


# What is refused


def put(k, **tags):
    """An edit that gives slice k (all slices where it is None) other tags; None takes a tag away."""

    def edit(i, ds):
        for tag, value in tags.items() if k in (None, i) else ():
            if value is None:
                del ds[tag]
            else:
                setattr(ds, tag, value)

    return edit


def at(position):
    """An edit that puts slice k at position(k)."""
    return lambda k, ds: setattr(ds, "ImagePositionPatient", list(map(float, position(k))))


def colour(k, ds):
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0


REFUSALS = {
    "missing slice": (None, {"leave_out": [2]}, "misses 1 slice(s) between IM001.dcm and IM003.dcm", "5.00 mm apart"),
    "missing slices": (
        None,
        {"leave_out": [1, 4]},
        "misses 1 slice(s) between IM000.dcm and IM002.dcm",
        "(2 missing in all)",
    ),
    "unequal spacing": (
        at(lambda k: (0, 0, k * (2 + 0.1 * k))),
        {},
        "unequal spacing, 2.10 mm after IM000.dcm",
        "2.90 mm after IM004.dcm",
    ),
    "a jump": (at(lambda k: (0, 0, 2.5 * k + 0.4 * (k > 2))), {}, "unequal spacing", "2.90 mm after IM002.dcm"),
    "two times": (at(lambda k: (0, 0, k // 2)), {}, "6 slices lie at 3 positions only", "times, phases or echoes"),
    "one copy": (at(lambda k: (0, 0, min(k, 4))), {}, "IM004.dcm and IM005.dcm share one", "copies"),
    "mixed directions": (
        put(3, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
        {},
        "IM003.dcm: has [0.0, 1.0, 0.0",
        "directions of rows and columns",
    ),
    "slightly turned": (
        put(3, ImageOrientationPatient=[0.99995, 0.01, 0, -0.01, 0.99995, 0]),
        {},
        "IM003.dcm: has",
        "directions",
    ),
    "mixed spacing": (
        put(5, PixelSpacing=[0.7, 0.91]),
        {},
        "IM005.dcm: has [0.7, 0.91] mm between pixels",
        "has [0.7, 0.9].",
    ),
    "mixed sizes": (put(4, Rows=6), {}, "IM004.dcm: has (6, 9) rows x columns", "IM000.dcm has (12, 9)"),
    "tilt": (at(lambda k: (0, k * 2.5 * np.tan(np.radians(15)), 2.5 * k)), {}, "tilted gantry", "15.0 degrees"),
    "small tilt": (at(lambda k: (0, k * 2.5 * np.tan(np.radians(1)), 2.5 * k)), {}, "tilted gantry", "1.0 degrees"),
    "single slice": (None, {"leave_out": [1, 2, 3, 4, 5]}, "IM000.dcm: is the single slice", "two at least"),
    "multi-frame": (put(2, NumberOfFrames=8), {}, "IM002.dcm: is multi-frame", "dcm2niix"),
    "colour": (colour, {}, "IM000.dcm: is in colour (RGB)", "screenshot"),
    "palette": (put(1, PhotometricInterpretation="PALETTE COLOR"), {}, "IM001.dcm: is in colour (PALETTE", "Leave out"),
    "no position": (
        put(2, ImagePositionPatient=None, PixelSpacing=None),
        {},
        "IM002.dcm: misses PixelSpacing, ImagePositionPatient,",
        "Export",
    ),
    "empty tag": (put(2, PixelSpacing=""), {}, "IM002.dcm: misses PixelSpacing,", "Export"),
    "two numbers": (
        put(2, ImagePositionPatient=[1, 2]),
        {},
        "IM002.dcm: has ImagePositionPatient [1.0, 2.0]",
        "3 finite",
    ),
    "skewed axes": (
        put(0, ImageOrientationPatient=[1, 0, 0, 0.5, 0.5, 0]),
        {},
        "IM000.dcm",
        "two perpendicular vectors",
    ),
    "no axes": (put(0, ImageOrientationPatient=[0] * 6), {}, "IM000.dcm", "two perpendicular vectors"),
    "no size": (put(3, PixelSpacing=[0, 1]), {}, "IM003.dcm: has 12 x 9 pixels, [0.0, 1.0] mm apart", "whole?"),
    "no slope": (put(3, RescaleSlope=0), {}, "IM003.dcm: has RescaleSlope 0", "one value"),
    "no rows": (put(3, Rows=None), {}, "IM003.dcm: says that it is a 'CT Image Storage', but has no Rows", "whole?"),
    "no pixels": (put(3, PixelData=None), {}, "IM003.dcm: has no pixels", "whole?"),
    "claims": (put(3, Rows=65535, Columns=65535), {}, "IM003.dcm: has (65535, 65535)", "IM000.dcm has (12, 9)"),
    "all claim": (
        put(None, Rows=65535, Columns=65535),
        {},
        "claims 65535 x 65535 pixels, 8589672450 bytes",
        "the file has",
    ),
    "few pixels": (put(None, Rows=13), {}, "IM000.dcm: cannot be read as DICOM (ValueError", "whole?"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_no_volume_is_refused_with_the_reason(tmp_path, case):
    edit, options, *words = REFUSALS[case]
    message = refused(write(tmp_path / "s", edit=edit, **options))
    assert message.startswith(str(tmp_path / "s"))
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    "edit",
    [
        at(lambda k: (-30.5, 40.25, round(7 + 0.625 * k, 1))),  # one digit, so off by 0.05 mm
        at(lambda k: (-30.5 + 0.05 * (k % 2), 40.25, 7 + 2.5 * k)),
        put(3, ImageOrientationPatient=[0.9999, 0.0004, 0, -0.0004, 0.9999, 0]),
        put(3, PixelSpacing=[0.7003, 0.9]),
    ],
)
def test_digits_that_were_cut_off_do_not_matter(tmp_path, edit):
    assert read_series(write(tmp_path / "s", edit=edit))[0].shape == (1, COLUMNS, ROWS, N)


def test_two_slices_are_a_volume(tmp_path):
    image, affine = read_series(write(tmp_path / "s", leave_out=[1, 2, 3, 4]))
    assert image.shape == (1, COLUMNS, ROWS, 2) and np.allclose(affine[2, 2], 5 * STEP)


def test_files_that_should_be_dicom(tmp_path):
    folder = write(tmp_path / "s")
    (folder / "IM005.dcm").write_bytes(b"")
    assert "IM005.dcm: is not DICOM, though its name says so" in refused(folder)
    folder = write(
        tmp_path / "t",
        edit=lambda k, ds: setattr(ds.file_meta, "TransferSyntaxUID", uid.DeflatedExplicitVRLittleEndian),
    )
    assert "IM000.dcm: is deflated as a whole" in refused(folder)


def test_kinds_of_compression_without_a_decoder(tmp_path, monkeypatch):
    def high_throughput(ds, pixels):
        ds.file_meta.TransferSyntaxUID = uid.HTJ2KLossless
        ds.PixelData = encapsulate([b"\xff\x4f\xff\x51"])

    message = refused(write(tmp_path / "s", encode=high_throughput))
    assert "compressed as High-Throughput JPEG 2000" in message and "dcm2niix" in message
    monkeypatch.setitem(dicom._DECODERS, uid.RLELossless, "pyjpegls")  # which reads no RLE
    message = refused(write(tmp_path / "t", encode=ENCODERS["RLE"][0]))
    assert "IM000.dcm: is compressed as RLE Lossless. To read it: pip install pyjpegls" in message


def test_12_bit_jpeg_is_refused(tmp_path):
    encode = through_pillow(uid.JPEGExtended12Bit, format="JPEG")
    folder = write(tmp_path / "s", (values(np.uint16) // 4).astype(np.uint8), encode=encode)
    assert read_series(folder)[0].shape == (1, COLUMNS, ROWS, N), "8 bits are read"

    def twelve(ds, pixels):
        encode(ds, (pixels // 4).astype(np.uint8))
        ds.BitsStored, ds.HighBit = 12, 11

    assert "12-bit precision" in refused(write(tmp_path / "t", values(np.uint16), encode=twelve))


# Damage


@pytest.mark.parametrize("share", [0.05, 0.15, 0.3, 0.6, 0.9, 0.99])
def test_a_cut_file_is_named(tmp_path, encoder, share):
    folder = write(tmp_path / "s", encode=encoder[0])
    damage(folder / "IM005.dcm", lambda data: data[: int(share * len(data))])
    message = refused(folder)
    assert str(folder) in message and ("IM005.dcm" in message or "2 series" in message)


@pytest.mark.parametrize("name", ["JPEG-LS", "JPEG 2000", "JPEG Lossless"])
def test_a_compressed_picture_has_the_size_of_its_header(tmp_path, name):
    encode = ENCODERS[name][0]
    encode.folder = tmp_path
    folder = write(tmp_path / "s", encode=encode)

    def grow(data):
        old, new = b"\x10\0\x0c\0\x09", b"\x10\xff\xff\xff\xff"
        if name == "JPEG 2000":  # the size, the offset, then the width of a tile
            old, new = (side + bytes(8) + b"\0\0\0\x09" for side in (b"\0\0\0\x09\0\0\0\x0c", b"\0\0\xff\xff" * 2))
        assert data.count(old) == 1
        return data.replace(old, new)

    damage(folder / "IM002.dcm", grow)
    message = refused(folder)
    assert "IM002.dcm" in message
    assert "the compressed picture has 65535 x 65535 pixels, its header says 12 x 9" in message


def test_more_than_any_compression_could_hold(tmp_path):
    claim = put(None, Rows=30000, Columns=30000)
    message = refused(write(tmp_path / "s", encode=lambda ds, pixels: (ENCODERS["RLE"][0](ds, pixels), claim(0, ds))))
    assert f"{tmp_path / 's'}: claims 10800000000 bytes of pixels (6 slices of 30000 x 30000)" in message


def test_random_damage_is_read_or_refused(tmp_path, encoder):
    """Never another exception than `InputError`, and never a volume of another size."""
    folder = write(tmp_path / "s", encode=encoder[0])
    whole, chance, seen = (folder / "IM002.dcm").read_bytes(), random.Random(0), set()
    for _ in range(120):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 3, 20))):
            data[chance.randrange(128, len(data))] = chance.randrange(256)
        (folder / "IM002.dcm").write_bytes(data)
        try:
            image, _ = read_series(folder)
            assert image.shape == (1, COLUMNS, ROWS, N)
            seen.add("read")
        except InputError as e:
            assert str(folder) in str(e)
            seen.add("refused")
    assert seen == {"read", "refused"}


# Files without a preamble


SYNTAXES = {
    "implicit": uid.ImplicitVRLittleEndian,
    "explicit": uid.ExplicitVRLittleEndian,
    "big endian": uid.ExplicitVRBigEndian,
}


def bare(file, syntax, meta=False, preamble=False):
    """Write a slice again without the preamble, and without the file meta information or with it."""
    read, ds = dcmread(file), Dataset()
    big = syntax == uid.ExplicitVRBigEndian
    ds.update(read)
    if big:
        ds.PixelData = read.pixel_array.astype(">i2").tobytes()
    ds.file_meta = read.file_meta
    ds.file_meta.TransferSyntaxUID = syntax
    whole = io.BytesIO()
    ds.save_as(whole, implicit_vr=syntax.is_implicit_VR, little_endian=not big, enforce_file_format=True)
    data = whole.getvalue()
    if not meta:  # the group 0002 says in its first element how long it is
        data = data[:132] + data[144 + int.from_bytes(data[140:144], "little") :]
    file.write_bytes(data if preamble else data[132:])


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("meta, preamble", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("name", ["IM{:03d}.dcm", "{:08d}"])
def test_files_without_a_preamble_or_what_follows_it(tmp_path, syntax, meta, preamble, name):
    folder = write(tmp_path / "s", order=ORDERS["shuffled"])
    for k, file in enumerate(sorted(folder.iterdir())):
        bare(file.rename(folder / name.format(k)), SYNTAXES[syntax], meta, preamble)
    image, affine = read_series(folder)
    whole, place = read_series(write(tmp_path / "t"))
    assert np.array_equal(image, whole) and np.array_equal(affine, place)


def test_a_series_of_which_half_has_no_preamble(tmp_path):
    folder = write(tmp_path / "s")
    for k, file in enumerate(sorted(folder.iterdir())[:4]):
        bare(file, list(SYNTAXES.values())[k % 3], meta=k == 3)
    other_object(folder / "DICOMDIR", uid.MediaStorageDirectoryStorage)
    other_object(folder / "report", uid.BasicTextSRStorage)
    other_object(folder / "letter", uid.EncapsulatedPDFStorage)
    for name in ("report", "letter"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[144 + int.from_bytes(data[140:144], "little") :])
    image, _ = read_series(folder)
    assert np.array_equal(image[0], values().transpose(2, 1, 0))


def test_compressed_pixels_of_a_file_that_does_not_say_how(tmp_path):
    folder = write(tmp_path / "s", encode=ENCODERS["RLE"][0])
    for file in folder.iterdir():
        data = file.read_bytes()
        file.write_bytes(data[144 + int.from_bytes(data[140:144], "little") :])
    assert "IM000.dcm" in refused(folder) and "does not say how" in refused(folder)


@pytest.mark.parametrize("data", [b"", b"no DICOM" * 50, bytes(500), b"\x08\x00" + bytes(300)])
def test_a_name_alone_makes_no_dicom(tmp_path, data):
    folder = write(tmp_path / "s")
    (folder / "IM005.dcm").write_bytes(data)
    assert "IM005.dcm: is not DICOM, though its name says so" in refused(folder)
    assert "IM005.dcm" in refused(folder / "IM005.dcm")
    (folder / "IM005.dcm").rename(folder / "other")
    assert read_series(folder)[0].shape[-1] == N - 1


# Which end is bright


def inverted(bits=12, **tags):
    """An edit that stores a slice the other way round, in so many bits."""

    def edit(k, ds):
        signed = ds.PixelRepresentation
        stack = np.frombuffer(ds.PixelData, np.int16 if signed else np.uint16).astype(np.int64)
        low = -(1 << bits - 1) if signed else 0
        ds.PixelData = (2 * low + (1 << bits) - 1 - stack).astype(np.int16 if signed else np.uint16).tobytes()
        ds.PhotometricInterpretation, ds.BitsStored, ds.HighBit = "MONOCHROME1", bits, bits - 1
        ds.update(tags)

    return edit


def of_kind(sop_class, modality, **tags):
    def edit(k, ds):
        ds.SOPClassUID, ds.Modality = sop_class, modality
        ds.update(tags)

    return edit


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
@pytest.mark.parametrize("scale", [{}, {"RescaleSlope": 0.5, "RescaleIntercept": -7}])
def test_bright_is_large_whichever_way_it_is_stored(tmp_path, dtype, scale):
    kind, turn = of_kind(uid.ComputedRadiographyImageStorage, "CR", **scale), inverted()
    plain = read_series(write(tmp_path / "a", values(dtype), edit=kind))[0]
    turned = read_series(write(tmp_path / "b", values(dtype), edit=lambda k, ds: (kind(k, ds), turn(k, ds))))[0]
    assert np.array_equal(plain, turned) and plain.max() > plain.min()

    def half(k, ds):
        kind(k, ds)
        if k % 2:
            turn(k, ds)

    assert np.array_equal(plain, read_series(write(tmp_path / "c", values(dtype), edit=half))[0])


def test_bright_is_large_through_a_table(tmp_path):
    """Where the numbers are mapped by a table and not by a slope."""

    def edit(k, ds):
        ds.SOPClassUID, ds.Modality = uid.MRImageStorage, "MR"
        ds.BitsStored, ds.HighBit = 12, 11
        ds.PhotometricInterpretation = "MONOCHROME1" if k % 2 else "MONOCHROME2"
        table = Dataset()
        table.LUTDescriptor, table.ModalityLUTType = [4096, 0, 16], "US"
        table.add_new("LUTData", "OW", np.arange(10, 4106, dtype=np.uint16).tobytes())
        ds.ModalityLUTSequence = Sequence([table])

    image = read_series(write(tmp_path / "s", values(np.uint16), edit=edit))[0][0]
    for k, stored in enumerate(values(np.uint16).astype(int)):
        assert np.array_equal(image[..., k], (4095 - stored if k % 2 else stored).T + 10)


@pytest.mark.parametrize(
    "kind",
    [
        of_kind(uid.CTImageStorage, "CT"),
        of_kind(uid.CTImageStorage, ""),
        of_kind(uid.PositronEmissionTomographyImageStorage, "PT"),
        of_kind(uid.XRayAngiographicImageStorage, "XA", RescaleType="HU"),
    ],
)
def test_measurements_keep_their_values(tmp_path, kind):
    def edit(k, ds):
        kind(k, ds)
        ds.PhotometricInterpretation, ds.RescaleSlope, ds.RescaleIntercept = "MONOCHROME1", 1, -1000

    image = read_series(write(tmp_path / "s", edit=edit))[0]
    assert np.array_equal(image[0], values().transpose(2, 1, 0) - 1000)


# Multi-frame files


def item(**tags):
    ds = Dataset()
    ds.update(tags)
    return ds


def groups(**sequences):
    """Functional groups, each with one item."""
    ds = Dataset()
    for name, tags in sequences.items():
        setattr(ds, name, Sequence([item(**tags)]))
    return ds


def write_enhanced(
    file, stack=None, plane="axial", order=range(N), edit=None, shared=True, kind="CT", encode=None, series="2.25.7"
):
    """Write a series as one file, slice k as frame order[k]; `edit(ds)` changes it before it is saved."""
    stack = values() if stack is None else stack
    axes, order = np.array(PLANES[plane], dtype=float).reshape(2, 3), np.argsort(order)[: len(stack)]
    classes = {"CT": uid.EnhancedCTImageStorage, "MR": uid.EnhancedMRImageStorage, "PT": uid.EnhancedPETImageStorage}
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = classes[kind], f"{series}.1", series
    ds.Modality, ds.PatientID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = kind, "a", "2.25.1", "2.25.3"
    ds.SeriesDescription, ds.InstanceNumber = f"of {series}", 1
    measures = {"PixelSpacing": [BETWEEN_ROWS, BETWEEN_COLUMNS], "SliceThickness": STEP}
    common = {
        "PixelMeasuresSequence": measures,
        "PlaneOrientationSequence": {"ImageOrientationPatient": axes.ravel().tolist()},
    }
    frames = []
    for k in order:
        position = ([-30.5, 40.25, 7] + k * STEP * np.cross(*axes)).round(8).tolist()
        frames.append(
            groups(
                PlanePositionSequence={"ImagePositionPatient": position},
                FrameContentSequence={"StackID": "1", "InStackPositionNumber": int(k) + 1},
                PixelValueTransformationSequence={
                    "RescaleSlope": 0.5 + int(k),
                    "RescaleIntercept": -10 * int(k),
                    "RescaleType": "HU",
                },
                **({} if shared else common),
            )
        )
    ds.SharedFunctionalGroupsSequence = Sequence([groups(**common) if shared else Dataset()])
    ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
    ds.NumberOfFrames, ds.SamplesPerPixel, ds.PhotometricInterpretation = len(stack), 1, "MONOCHROME2"
    ds.Rows, ds.Columns = stack.shape[1:]
    bits = 8 * stack.itemsize
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
    ds.PixelRepresentation = int(stack.dtype.kind == "i")
    ds.add_new("PixelData", "OW", stack[order].tobytes())
    if edit:
        edit(ds)
    if encode:
        encode(ds, stack[order])
    file.parent.mkdir(exist_ok=True)
    ds.save_as(file, enforce_file_format=True)
    return file


def rescaled(stack=None):
    """What a file of `write_enhanced` holds, (X, Y, Z)."""
    stack = values() if stack is None else stack
    return np.stack([s.T * (0.5 + k) - 10 * k for k, s in enumerate(stack.astype(float))], axis=-1)


@pytest.mark.parametrize("kind", ["CT", "MR", "PT"])
@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("order, shared", [("upwards", True), ("shuffled", False)])
def test_a_multi_frame_file_is_read_as_highdicom_reads_it(tmp_path, kind, plane, order, shared):
    highdicom = pytest.importorskip("highdicom")
    file = write_enhanced(tmp_path / "s" / "a.dcm", plane=plane, order=ORDERS[order], shared=shared, kind=kind)
    image, affine = read_series(file)
    assert image.dtype == np.float32 and np.allclose(image[0], rescaled(), rtol=1e-6)
    theirs = highdicom.imread(file).get_volume(apply_presentation_lut=False)  # (slice, row, column), in LPS
    for index in np.ndindex(*image.shape[1:]) if plane == "oblique" else [(0, 0, 0), (3, 5, 2), (8, 11, 5)]:
        place = np.diag([-1, -1, 1, 1]) @ affine @ [*index, 1]
        at = np.linalg.inv(theirs.affine) @ place
        assert np.allclose(at, at.round(), atol=1e-4)
        assert np.isclose(theirs.array[tuple(at[:3].round().astype(int))], image[0][index], rtol=1e-6)
    for other in (file.parent, file.parent / "2.25.7"):
        assert np.array_equal(read_series(other)[0], image) and series_files(other) == [file]


def test_a_multi_frame_file_holds_what_the_slices_hold(tmp_path):
    """Of any plane, and whether it is called one thing or the other."""

    def edit(k, ds):
        ds.RescaleSlope, ds.RescaleIntercept = 0.5 + k, -10 * k

    image, affine = read_series(write(tmp_path / "s", plane="oblique", edit=edit))
    for name in ("a.dcm", "noending", "1.2.3"):
        whole, place = read_series(write_enhanced(tmp_path / "t" / name, plane="oblique"))
        assert np.allclose(whole, image, rtol=1e-6) and np.allclose(affine, place)


def test_a_series_that_was_converted_to_one_file(tmp_path):
    """By highdicom, as archives do it: legacy converted enhanced CT."""
    legacy = pytest.importorskip("highdicom.legacy")

    def edit(k, ds):
        ds.RescaleSlope, ds.RescaleIntercept = 2, -1000
        ds.FrameOfReferenceUID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = "2.25.3", "a", "", ""
        ds.AccessionNumber, ds.StudyID, ds.StudyDate, ds.StudyTime, ds.ReferringPhysicianName = "", "", "", "", ""
        ds.SeriesNumber, ds.ImageType, ds.RescaleType = 1, ["ORIGINAL", "PRIMARY", "AXIAL"], "HU"
        ds.Manufacturer, ds.PositionReferenceIndicator, ds.AcquisitionNumber = "x", "", 1
        ds.Laterality = ""

    folder = write(tmp_path / "s", edit=edit, order=ORDERS["shuffled"])
    slices = [dcmread(file) for file in sorted(folder.iterdir())]
    converted = legacy.LegacyConvertedEnhancedCTImage(slices, "2.25.11", 1, "2.25.12", 1)
    converted.save_as(tmp_path / "c.dcm")
    (image, affine), (whole, place) = read_series(folder), read_series(tmp_path / "c.dcm")
    assert np.array_equal(image, whole) and np.allclose(affine, place)


@pytest.mark.parametrize("name", ["RLE", "JPEG-LS", "JPEG 2000", "JPEG Lossless"])
def test_compressed_multi_frame_files(tmp_path, name):
    def encode(ds, stack):
        if name in ("RLE", "JPEG-LS"):
            ds.compress(ENCODERS[name][1], generate_instance_uid=False)
            return
        streams = []
        for pixels in stack:
            one = Dataset()
            one.file_meta = FileMetaDataset()
            one.PixelRepresentation, one.BitsStored = ds.PixelRepresentation, ds.BitsStored
            through = ENCODERS[name][0]
            through.folder = tmp_path
            through(one, pixels)
            streams += list(generate_frames(one.PixelData, number_of_frames=1))
        ds.file_meta.TransferSyntaxUID, ds.PixelData = one.file_meta.TransferSyntaxUID, encapsulate(streams)
        ds["PixelData"].is_undefined_length = True

    file = write_enhanced(tmp_path / "s" / "a.dcm", order=ORDERS["shuffled"], encode=encode)
    assert np.allclose(read_series(file)[0][0], rescaled(), rtol=1e-6)


def real_world(ds, **changes):
    """Give each frame a map to real-world values."""
    for k, frame in enumerate(ds.PerFrameFunctionalGroupsSequence):
        unit = item(CodeValue="ms", CodingSchemeDesignator="UCUM", CodeMeaning="ms")
        tags = {"RealWorldValueFirstValueMapped": -32768, "RealWorldValueLastValueMapped": 32767}
        tags |= {"RealWorldValueSlope": 2.0 + k, "RealWorldValueIntercept": 1.0, "LUTLabel": "x"} | changes
        mapped = item(**tags)
        mapped.MeasurementUnitsCodeSequence = Sequence([unit])
        frame.RealWorldValueMappingSequence = Sequence([mapped])


def test_real_world_values_count_where_there_are_any(tmp_path):
    file = write_enhanced(tmp_path / "s" / "a.dcm", kind="MR", edit=real_world)
    expected = np.stack([s.T * (2.0 + k) + 1 for k, s in enumerate(values().astype(float))], axis=-1)
    assert np.allclose(read_series(file)[0][0], expected)


def test_bright_is_large_in_a_multi_frame_file_unless_it_is_measured(tmp_path):
    def inverted(ds):
        ds.PhotometricInterpretation = "MONOCHROME1"

    def shared_scale(ds):
        inverted(ds)
        for frame in ds.PerFrameFunctionalGroupsSequence:
            frame.PixelValueTransformationSequence[0].update({"RescaleSlope": 2, "RescaleIntercept": 3})

    assert np.allclose(read_series(write_enhanced(tmp_path / "a" / "a.dcm", edit=inverted))[0][0], rescaled())
    image = read_series(write_enhanced(tmp_path / "b" / "a.dcm", kind="MR", edit=shared_scale))[0][0]
    assert np.allclose(image, 2 * (-1 - values().astype(float).transpose(2, 1, 0)) + 3)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("meta, preamble", [(False, False), (True, False), (True, True)])
def test_multi_frame_files_without_a_preamble(tmp_path, syntax, meta, preamble):
    file = write_enhanced(tmp_path / "s" / "a.dcm", kind="MR", edit=real_world)
    image, affine = read_series(file)
    bare(file, SYNTAXES[syntax], meta, preamble)
    again, place = read_series(file)
    assert np.array_equal(again, image) and np.array_equal(place, affine)


def test_several_multi_frame_files_in_a_folder(tmp_path):
    write_enhanced(tmp_path / "s" / "a.dcm")
    write_enhanced(tmp_path / "s" / "b.dcm", values() + 1, series="2.25.8")
    assert f"{tmp_path / 's'}: holds 2 series" in refused(tmp_path / "s")
    assert np.allclose(read_series(tmp_path / "s" / "2.25.8")[0][0], rescaled(values() + 1))
    first, second = (write_enhanced(tmp_path / "t" / f"{k}.dcm", values()[k : k + 3]) for k in (0, 3))

    def higher(ds):
        for frame in ds.PerFrameFunctionalGroupsSequence:
            frame.PlanePositionSequence[0].ImagePositionPatient[2] += 3 * STEP

    write_enhanced(second, values()[3:], edit=higher)
    image, affine = read_series(tmp_path / "t")  # a series that was cut into two files
    assert image.shape == (1, COLUMNS, ROWS, N) and series_files(tmp_path / "t") == [first, second]
    assert np.allclose(affine[2, 2], STEP)


def place_of(ds, k):
    return ds.PerFrameFunctionalGroupsSequence[k].PlanePositionSequence[0].ImagePositionPatient


def two_times(ds):
    for k in range(N):
        place_of(ds, k)[2] = 2.5 * (k // 2)


def lost_frame(ds):
    for k in range(3, N):
        place_of(ds, k)[2] += STEP


def leaning(ds):
    for k in range(N):
        place_of(ds, k)[1] += k


def no_place(ds):
    del ds.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence


def other_axes(ds):
    turned = {"ImageOrientationPatient": [0.0, 1, 0, 0, 0, -1]}
    ds.PerFrameFunctionalGroupsSequence[2].PlaneOrientationSequence = Sequence([item(**turned)])


def film(ds):
    del ds.PerFrameFunctionalGroupsSequence, ds.SharedFunctionalGroupsSequence
    ds.SOPClassUID = uid.NuclearMedicineImageStorage


MULTI = {
    "two times": (two_times, "a.dcm: 6 slices lie at 3 positions only", "frame 2 of a.dcm share one", "dcm2niix"),
    "lost frame": (lost_frame, "a.dcm: misses 1 slice(s) between frame 3 of a.dcm and frame 4 of a.dcm", "Fetch"),
    "tilted": (leaning, "a.dcm: was scanned with a tilted gantry", "dcm2niix"),
    "no place": (no_place, "a.dcm: misses ImagePositionPatient", "Export"),
    "other axes": (other_axes, "a.dcm: frame 3: has [0.0, 1.0", "directions"),
    "film": (film, "a.dcm: is multi-frame DICOM without a place for each frame", "dcm2niix"),
    "too few": (lambda ds: setattr(ds, "NumberOfFrames", 9), "a.dcm: claims 9 frames, and describes 6", "whole?"),
    "claim": (lambda ds: setattr(ds, "Rows", 40), "a.dcm: claims 4320 bytes of pixels", "hold that"),
    "colour": (
        lambda ds: ds.update({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}),
        "a.dcm: is in colour (RGB)",
        "Leave out",
    ),
    "short map": (
        lambda ds: real_world(ds, RealWorldValueFirstValueMapped=0),
        "a.dcm: cannot be read as DICOM (ValueError: Array contains value outside the valid range",
        "whole?",
    ),
}


@pytest.mark.parametrize("case", MULTI)
def test_a_multi_frame_file_that_is_no_volume(tmp_path, case):
    edit, *words = MULTI[case]
    message = refused(write_enhanced(tmp_path / "s" / "a.dcm", edit=edit))
    assert message.startswith(str(tmp_path / "s" / "a.dcm"))
    for word in words:
        assert word in message, message


def test_without_highdicom_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    file = write_enhanced(tmp_path / "s" / "a.dcm")
    monkeypatch.setitem(sys.modules, "highdicom", None)
    assert f"{file}: is multi-frame DICOM. To read it: pip install 'ssl3d[formats]'" in refused(file)
    assert read_series(write(tmp_path / "t"))[0].shape == (1, COLUMNS, ROWS, N)


@pytest.mark.parametrize(
    "sop_class, words",
    [
        (uid.SegmentationStorage, "There is: Segmentation Storage. A segmentation object (SEG) is no image"),
        (uid.RTStructureSetStorage, "There is: RT Structure Set Storage. An RT structure set is no image"),
        (uid.BasicTextSRStorage, "There is: Basic Text SR Storage."),
    ],
)
def test_an_object_that_is_no_image_is_called_by_its_name(tmp_path, sop_class, words):
    (tmp_path / "s").mkdir()
    other_object(tmp_path / "s" / "x.dcm", sop_class, Rows=4, Columns=4)
    for path in (tmp_path / "s", tmp_path / "s" / "x.dcm"):
        message = refused(path)
        assert message.startswith(f"{path}: holds no DICOM image") and words in message


def test_the_cohorts_do_without_pydicom():
    done = python(
        "import sys, ssl3d.data.layouts; print('pydicom' in sys.modules); import ssl3d.data.dicom; "
        "print(*[m for m in ('torch', 'monai', 'SimpleITK', 'scipy') if m in sys.modules])"
    )
    assert done.stdout.split() == ["False"]


@pytest.mark.parametrize("kind", ["CT", "MR", "PT"])
def test_what_a_header_declares(tmp_path, kind):
    write(tmp_path / "slices", edit=lambda k, ds: setattr(ds, "Modality", kind), series="2.25.5")
    write_enhanced(tmp_path / "frames.dcm", kind=kind)
    for place in (tmp_path / "slices", tmp_path / "slices/2.25.5", tmp_path / "frames.dcm"):
        assert modality_of(place) == kind
    (tmp_path / "empty").mkdir()
    assert modality_of(tmp_path / "empty") == modality_of(tmp_path / "none.nii.gz") == ""
