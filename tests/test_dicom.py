"""DICOM series: read as SimpleITK reads them, or refused with the reason."""

import io
import random

import numpy as np
import pytest
from conftest import python
from PIL import Image
from pydicom import dcmread, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from ssl3d.data import dicom
from ssl3d.data.dicom import read_series, series_files
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
    used, read = [], dicom.pixel_array
    monkeypatch.setattr(dicom, "pixel_array", lambda ds, **options: used.append(options) or read(ds, **options))
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
    for path in (folder / "IM000.dcm", tmp_path / "no" / "such", folder / "IM000.dcm" / "2.25.7"):
        assert str(path) in refused(path) and "not a folder" in refused(path)
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


def enhanced(k, ds):
    ds.SOPClassUID = uid.EnhancedCTImageStorage
    del ds.ImagePositionPatient


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
    "enhanced": (enhanced, {}, "IM000.dcm: is multi-frame (enhanced)", "dcm2niix"),
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


def test_the_cohorts_do_without_pydicom():
    done = python(
        "import sys, ssl3d.data.layouts; print('pydicom' in sys.modules); import ssl3d.data.dicom; "
        "print(*[m for m in ('torch', 'monai', 'SimpleITK', 'scipy') if m in sys.modules])"
    )
    assert done.stdout.split() == ["False"]
