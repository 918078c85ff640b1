"""The voxels of any file: as the library of its format reads them, in millimetres, or refused with a cure."""

import bz2
import gzip
import shutil
import sys
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import write_nifti
from PIL import Image, ImageOps
from test_dicom import write_enhanced

from ssl3d.data.scans import orient, prepare_scan, read_scan
from ssl3d.data.voxels import fingerprint, is_picture, read_voxels
from ssl3d.downstream.predict import _ending, read_grid, to_scan, write_prediction
from ssl3d.errors import InputError

sitk = pytest.importorskip("SimpleITK")

RNG = np.random.default_rng(0)
SHAPE = (7, 6, 5)
SPACING = np.array([0.8, 1.7, 2.9])
TURN = np.linalg.qr([[3.0, 1, 0.5], [-1, 3, 1], [0.2, -1, 3]])[0]
TURN[:, 0] *= np.sign(np.linalg.det(TURN))
AFFINE = np.eye(4)
AFFINE[:3, :3], AFFINE[:3, 3] = TURN * SPACING, [-30.5, 40.25, 7]
LPS = np.diag([-1.0, -1, 1, 1])


def values(*shape, dtype=np.int16):
    return RNG.integers(-500 if np.dtype(dtype).kind == "i" else 0, 900, shape or SHAPE).astype(dtype)


def itk_image(array, affine=AFFINE, channels=False):
    """A SimpleITK image of (X, Y, Z[, C]) that lies where an affine in RAS says."""
    image = sitk.GetImageFromArray(np.moveaxis(array, [0, 1, 2], [2, 1, 0]), isVector=channels)
    lps = LPS @ affine
    size = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(size.tolist())
    image.SetDirection((lps[:3, :3] / size).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def save_itk(file, array, affine=AFFINE, channels=False, packed=True):
    sitk.WriteImage(itk_image(array, affine, channels), str(file), packed)
    return file


def refused(file, mask=False):
    with pytest.raises(InputError) as error:
        read_scan(file, mask)
    assert "\n" not in str(error.value)
    return str(error.value)


# What SimpleITK reads


@pytest.mark.parametrize("ending", ["nrrd", "nhdr", "mha", "mhd", "NRRD", "Mha"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_every_voxel_has_the_value_and_the_place_that_simpleitk_gives_it(tmp_path, ending, packed, dtype):
    array = values(dtype=dtype)
    file = save_itk(tmp_path / f"a.{ending.lower()}", array, packed=packed).rename(tmp_path / f"a.{ending}")
    theirs, found = itk_image(array), read_voxels(file)
    assert found.oriented and np.array_equal(found.array[0], array) and found.array.dtype == dtype
    assert np.allclose(found.affine, AFFINE, atol=1e-9), "RAS"
    for corner in np.ndindex(2, 2, 2):
        index = [int(c * (n - 1)) for c, n in zip(corner, SHAPE)]
        x, y, z = theirs.TransformIndexToPhysicalPoint(index)
        assert np.allclose((found.affine @ [*index, 1])[:3], [-x, -y, z], atol=1e-9)
    scan = read_scan(file)
    assert scan.shape == (1, *SHAPE) and scan.dtype == torch.float32
    same = write_nifti(tmp_path / "a.nii", array.astype(np.float64), AFFINE)
    ours, nifti = orient(scan), orient(read_scan(same))
    assert torch.equal(ours.as_tensor(), nifti.as_tensor()) and torch.allclose(ours.affine, nifti.affine, atol=1e-4)


@pytest.mark.parametrize("ending", ["nrrd", "mha", "mhd"])
@pytest.mark.parametrize("n", [2, 3, 16, 17])
def test_vectors_are_channels(tmp_path, ending, n):
    array = values(*SHAPE, n)
    file = save_itk(tmp_path / f"a.{ending}", array, channels=True)
    if n > 16:
        assert "is a film, not a scan" in refused(file)
        return
    found = read_voxels(file)
    assert np.array_equal(found.array, np.moveaxis(array, -1, 0)) and np.allclose(found.affine, AFFINE)


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_a_fourth_axis_is_channels(tmp_path, ending):
    array = values(*SHAPE, 3)
    image = sitk.JoinSeries([itk_image(array[..., k]) for k in range(3)])
    sitk.WriteImage(image, str(tmp_path / f"a.{ending}"))
    found = read_voxels(tmp_path / f"a.{ending}")
    assert np.array_equal(found.array, np.moveaxis(array, -1, 0)) and np.allclose(found.affine, AFFINE)


@pytest.mark.parametrize("ending", ["nrrd", "nhdr", "mha", "mhd"])
def test_pictures_of_these_formats_keep_rows_and_columns(tmp_path, ending):
    grey, colour = values(20, 30, dtype=np.uint8), values(20, 30, 3, dtype=np.uint8)
    for name, array in (("grey", grey), ("colour", colour)):
        sitk.WriteImage(sitk.GetImageFromArray(array, isVector=array.ndim == 3), str(tmp_path / f"{name}.{ending}"))
        Image.fromarray(array).save(tmp_path / f"{name}.png")
        ours, png = read_scan(tmp_path / f"{name}.{ending}"), read_scan(tmp_path / f"{name}.png")
        assert torch.equal(ours.as_tensor(), png.as_tensor()) and ours.ndim == 3
        assert is_picture(tmp_path / f"{name}.{ending}")
    assert not is_picture(save_itk(tmp_path / f"v.{ending}", values()))


def test_a_volume_of_one_slice_is_refused(tmp_path):
    for ending in ("nrrd", "mha"):
        assert "a single slice" in refused(save_itk(tmp_path / f"a.{ending}", values(7, 6, 1)))


def test_complex_numbers_are_refused(tmp_path):
    image = sitk.Cast(itk_image(values().astype(np.float32)), sitk.sitkComplexFloat32)
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    assert "complex" in refused(tmp_path / "a.nrrd")


@pytest.mark.parametrize("ending", ["nrrd", "mha", "mgz"])
def test_image_and_mask_of_other_formats(tmp_path, ending):
    """Each format beside each: the same place is the same place, along other axes, too."""
    array, mask = values(), (RNG.random(SHAPE) > 0.5).astype(np.uint8)
    turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt("PSR"))
    turned = nib.Nifti1Image(mask, AFFINE).as_reoriented(turn)
    image = write_nifti(tmp_path / "i.nii.gz", array, AFFINE)
    if ending == "mgz":
        nib.save(nib.MGHImage(np.asarray(turned.dataobj), turned.affine), tmp_path / "m.mgz")
    else:
        save_itk(tmp_path / f"m.{ending}", np.asarray(turned.dataobj), turned.affine)
    plain = prepare_scan((image,), write_nifti(tmp_path / "m.nii", mask, AFFINE), size=16)
    assert torch.equal(prepare_scan((image,), tmp_path / f"m.{ending}", size=16).mask, plain.mask)


def test_a_false_ending_starts_no_other_reader(tmp_path):
    png = tmp_path / "a.png"
    Image.fromarray(values(20, 30, dtype=np.uint8)).save(png)
    nifti = write_nifti(tmp_path / "a.nii", values())
    for other in (png, nifti, save_itk(tmp_path / "b.mha", values()), save_itk(tmp_path / "b.nrrd", values())):
        for ending in ("nrrd", "nhdr", "mha", "mhd", "mgz", "mgh", "nii", "png"):
            file = tmp_path / "false" / f"x.{ending}"
            file.parent.mkdir(exist_ok=True)
            shutil.copy(other, file)
            if other.suffix[1:] not in (ending, {"nhdr": "nrrd", "mhd": "mha"}.get(ending)):
                assert str(file) in refused(file)


# Text and voxels in several files


def nrrd(file, *lines, body=bytes(60), sizes="5 3 4", kind="uchar", encoding="raw"):
    head = ["NRRD0005", f"type: {kind}", f"dimension: {len(sizes.split())}", f"sizes: {sizes}", "endian: little"]
    file.write_bytes("\n".join([*head, f"encoding: {encoding}", *lines, "", ""]).encode() + body)
    return file


def metaimage(file, *lines, body=b"", data="LOCAL", size="5 3 4", kind="MET_UCHAR"):
    head = ["ObjectType = Image", "NDims = 3", f"DimSize = {size}", f"ElementType = {kind}", *lines]
    file.write_bytes("\n".join([*head, f"ElementDataFile = {data}", ""]).encode() + body)
    return file


COUNTED = np.arange(60, dtype=np.uint8)


def in_pieces(folder, n):
    folder.mkdir(parents=True, exist_ok=True)
    for k, piece in enumerate(np.split(COUNTED, n)):
        (folder / f"p{k}.raw").write_bytes(piece.tobytes())
    return folder


@pytest.mark.parametrize(
    "write",
    [
        lambda f, place: nrrd(f / "a.nhdr", f"data file: {place}/p0.raw", body=b""),
        lambda f, place: nrrd(f / "a.nhdr", f"datafile: {place}/../{Path(place).name}/p0.raw", body=b""),
        lambda f, place: nrrd(f / "a.nrrd", f"data file: {place}/p0.raw", body=b""),
        lambda f, place: metaimage(f / "a.mhd", data=f"{place}/p0.raw"),
        lambda f, place: metaimage(f / "a.mha", "HeaderSize = -1", data=f"{place}/p0.raw"),
    ],
)
@pytest.mark.parametrize("place", ["d", "../outside/d", "absolute"])
def test_voxels_in_another_file(tmp_path, write, place):
    folder = tmp_path / "inside"
    folder.mkdir()
    where = in_pieces(tmp_path / "far" if place == "absolute" else folder / place, 1)
    file = write(folder, where if place == "absolute" else place)
    found = read_voxels(file).array[0]
    assert np.array_equal(found.ravel(order="F"), COUNTED)
    before = fingerprint((file,))
    (where / "p0.raw").write_bytes(COUNTED[::-1].tobytes())
    assert fingerprint((file,)) != before, "the voxels count, not the header alone"
    (where / "p0.raw").write_bytes(COUNTED[:-1].tobytes())
    assert str(file) in refused(file)
    (where / "p0.raw").unlink()
    assert str(file) in refused(file) and "p0.raw, and there is no such file" in refused(file)
    with pytest.raises(InputError, match="no such file"):
        fingerprint((file,))
    (where / "p0.raw").mkdir()
    assert "no such file" in refused(file), "a folder is none"


@pytest.mark.parametrize(
    "write",
    [
        lambda f: nrrd(f / "a.nhdr", "data file: p%d.raw 0 3 1", body=b""),
        lambda f: nrrd(f / "a.nhdr", "data file: LIST", body=b"p0.raw\np1.raw\np2.raw\np3.raw\n"),
        lambda f: metaimage(f / "a.mhd", data="LIST\np0.raw\np1.raw\np2.raw\np3.raw"),
        lambda f: metaimage(f / "a.mhd", data="p%d.raw 0 3 1"),
    ],
)
def test_voxels_in_several_files(tmp_path, write):
    in_pieces(tmp_path, 4)
    file = write(tmp_path)
    if "LIST" in file.read_text() and file.suffix == ".nhdr":  # the list follows at once
        file.write_text(file.read_text().replace("LIST\n\n", "LIST\n"))
    assert np.array_equal(read_voxels(file).array[0].ravel(order="F"), COUNTED)
    before = fingerprint((file,))
    (tmp_path / "p2.raw").write_bytes(bytes(15))
    assert fingerprint((file,)) != before
    (tmp_path / "p2.raw").unlink()
    assert "p2.raw, and there is no such file" in refused(file)


def test_packed_voxels_in_another_file(tmp_path):
    (tmp_path / "a.zraw").write_bytes(zlib.compress(COUNTED.tobytes()))
    for lines in ([], [f"CompressedDataSize = {(tmp_path / 'a.zraw').stat().st_size}"]):
        file = metaimage(tmp_path / "a.mhd", "CompressedData = True", *lines, data="a.zraw")
        assert np.array_equal(read_voxels(file).array[0].ravel(order="F"), COUNTED)
    (tmp_path / "a.zraw").write_bytes(zlib.compress(COUNTED.tobytes())[:-1])
    assert "cut short" in refused(file)


def test_devices_are_no_data_files(tmp_path):
    assert "no such file" in refused(metaimage(tmp_path / "a.mhd", data="/dev/zero"))
    assert "no such file" in refused(nrrd(tmp_path / "a.nhdr", "data file: /dev/zero", body=b""))


def test_voxels_as_text(tmp_path):
    text = " ".join(map(str, COUNTED)).encode()
    file = nrrd(tmp_path / "a.nrrd", body=text, encoding="ascii")
    assert np.array_equal(read_voxels(file).array[0].ravel(order="F"), COUNTED)
    assert "BinaryData = True" in refused(metaimage(tmp_path / "a.mha", "BinaryData = False", body=text))


@pytest.mark.parametrize(
    "file, words",
    [
        (lambda f: nrrd(f / "a.nrrd", sizes="3000 3000 3000"), "claims 27000000000 bytes"),
        (lambda f: nrrd(f / "a.nrrd", sizes="3000 3000 3000", encoding="gzip", body=gzip.compress(bytes(9))), "claims"),
        (lambda f: nrrd(f / "a.nrrd", encoding="gzip", body=gzip.compress(bytes(59))), "lacks the last 1 bytes"),
        (lambda f: nrrd(f / "a.nrrd", encoding="gzip", body=gzip.compress(bytes(60))[:-6]), "cut short"),
        (lambda f: nrrd(f / "a.nrrd", encoding="gzip", body=gzip.compress(bytes(10**6))), "not the 60 bytes"),
        (lambda f: nrrd(f / "a.nrrd", encoding="bzip2", body=bz2.compress(bytes(60))), "Save it with gzip"),
        (lambda f: nrrd(f / "a.nrrd", body=bytes(59)), "claims 60 bytes"),
        (lambda f: metaimage(f / "a.mha", body=bytes(59)), "claims 60 bytes"),
        (lambda f: metaimage(f / "a.mha", size="3000 3000 3000", body=bytes(60)), "claims 27000000000 bytes"),
        (lambda f: metaimage(f / "a.mha", "CompressedData = True", body=bytes(60)), "CompressedDataSize"),
        (
            lambda f: metaimage(f / "a.mha", "CompressedData = True", body=zlib.compress(bytes(60))),
            "CompressedDataSize",  # without it, ITK takes the wrong bytes
        ),
        (lambda f: metaimage(f / "a.mha", size="5 3", body=bytes(60)), "DimSize"),
        (lambda f: metaimage(f / "a.mha", size="5 3 x", body=bytes(60)), "DimSize"),
        (lambda f: metaimage(f / "a.mha", kind="MET_STRING", body=bytes(60)), "ElementType"),
        (lambda f: metaimage(f / "a.mha", "Offset = 1 2", body=bytes(60)), "Offset"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(tmp_path, file, words):
    message = refused(file(tmp_path))
    assert message.startswith(str(tmp_path / "a.")) and words in message, message


def test_without_simpleitk_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    files = [save_itk(tmp_path / f"a.{ending}", values()) for ending in ("nrrd", "mha", "mhd", "nhdr")]
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    for file in files:
        assert f"{file}: is read with SimpleITK. To get it: pip install 'ssl3d[formats]'" in refused(file)
    nib.save(nib.MGHImage(values(), AFFINE), tmp_path / "a.mgz")
    assert read_scan(tmp_path / "a.mgz").shape == (1, *SHAPE), "FreeSurfer's files need no extra"


# Which way is up, and how long a millimetre is


DIRECTIONS = "space directions: (0,2,0) (1,0,0) (0,0,3)"


@pytest.mark.parametrize(
    "write, axes",
    [
        (lambda f: nrrd(f / "a.nrrd", "space: left-posterior-superior", DIRECTIONS), "PLS"),
        (lambda f: nrrd(f / "a.nrrd", "space: RAS", DIRECTIONS), "ARS"),
        (lambda f: nrrd(f / "a.nrrd", "space: LAS", DIRECTIONS), "ALS"),
        (lambda f: nrrd(f / "a.nrrd", "space: scanner-xyz", DIRECTIONS), "unknown"),
        (lambda f: nrrd(f / "a.nrrd", "space dimension: 3", DIRECTIONS), "unknown"),
        (lambda f: nrrd(f / "a.nrrd", "spacings: 2 1 3"), "unknown"),
        (lambda f: metaimage(f / "a.mha", "ElementSpacing = 2 1 3", body=bytes(60)), "unknown"),
        (
            lambda f: metaimage(
                f / "a.mha", "ElementSpacing = 2 1 3", "TransformMatrix = 0 1 0 1 0 0 0 0 1", body=bytes(60)
            ),
            "PLS",
        ),
    ],
)
def test_what_the_text_says_of_the_axes(tmp_path, write, axes):
    file = write(tmp_path)
    data = file.read_bytes()
    file.write_bytes(data[:-60] + COUNTED.tobytes())
    facts = prepare_scan((file,), size=8).facts
    assert facts["axes"] == axes and sorted(facts["spacing"]) == [1, 2, 3]
    assert facts["shape"] == ([5, 3, 4] if axes == "unknown" else [3, 5, 4])


@pytest.mark.parametrize("unit, mm", [("mm", 1), ("um", 1e-3), ("µm", 1e-3), ("cm", 10), ("m", 1000), ("", 1)])
def test_lengths_of_nrrd_and_metaimage(tmp_path, unit, mm):
    space = ("space: LPS", "space directions: (1,0,0) (0,2,0) (0,0,3)", f'space units: "{unit}" "{unit}" "{unit}"')
    files = [nrrd(tmp_path / "a.nrrd", *space)]
    files += [] if unit == "" else [metaimage(tmp_path / "a.mha", f"DistanceUnits = {unit}", "ElementSpacing = 1 2 3")]
    for file in files:
        file.write_bytes(file.read_bytes().removesuffix(bytes(60)) + COUNTED.tobytes())
        assert np.allclose(read_scan(file).pixdim.numpy(), np.multiply([1, 2, 3], mm))
    assert "Save it in millimetres" in refused(
        nrrd(tmp_path / "b.nrrd", *space[:2], 'space units: "inch" "inch" "inch"')
    )


def nifti(file, array, affine=AFFINE, unit="mm", codes=(1, 1), kind=nib.Nifti1Image):
    image = kind(array, affine, dtype=array.dtype)
    image.set_qform(affine if codes[0] else None, codes[0])
    image.set_sform(affine if codes[1] else None, codes[1])
    image.header.set_xyzt_units(unit)
    nib.save(image, file)
    return file


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 1), (0, 0)])
@pytest.mark.parametrize("unit, mm", [("meter", 1000), ("micron", 0.001), ("mm", 1), ("unknown", 1)])
def test_lengths_of_nifti_are_those_of_simpleitk(tmp_path, kind, codes, unit, mm):
    """And of the mask that is written for it, in the units of the file."""
    file = nifti(tmp_path / "a.nii.gz", values(), unit=unit, codes=codes, kind=kind)
    scan = read_scan(file)
    assert np.allclose(scan.pixdim.numpy(), SPACING * mm, rtol=1e-5)
    if kind is nib.Nifti1Image:
        assert np.allclose(sitk.ReadImage(str(file)).GetSpacing(), SPACING * mm, rtol=1e-5)
    if any(codes):
        assert np.allclose(scan.affine.numpy(), np.diag([mm, mm, mm, 1]) @ AFFINE, rtol=1e-5, atol=1e-5 * mm)
    else:
        assert np.allclose(scan.affine.numpy(), np.diag([*SPACING * mm, 1]), rtol=1e-5)
        assert torch.equal(orient(scan).as_tensor(), scan.as_tensor())
    facts = prepare_scan((file,), size=16).facts
    assert facts["axes"] == ("".join(nib.aff2axcodes(AFFINE)) if any(codes) else "unknown")


def predicted(file, truth, folder):
    """A mask as a perfect network would mark it, written on the grid of a scan."""
    size = max(truth.shape)
    (folder / "t").mkdir(parents=True, exist_ok=True)
    seen = prepare_scan((file,), write_like(file, truth, folder / "t"), size=size)
    classes = torch.nn.functional.one_hot(seen.mask[0].as_tensor().long(), 3).movedim(-1, 0).float()
    out, grid = folder / f"out{_ending(file)}", read_grid(file)
    write_prediction(to_scan(classes, grid), grid, out)
    return out


def write_like(file, truth, folder):
    """A mask that lies voxel by voxel on a file of NIfTI."""
    np.save(folder / "truth.npy", truth)
    if not file.name.endswith((".nii", ".nii.gz")):
        return write_nifti(folder / "truth.nii.gz", truth, read_scan(file).affine.numpy())
    stored = nib.load(file)
    mask = type(stored)(truth, None, stored.header)
    mask.header.set_data_dtype(np.uint8)
    nib.save(mask, folder / "truth.nii.gz")
    return folder / "truth.nii.gz"


TRUTH = np.zeros((8, 8, 8), np.uint8)
TRUTH[1:4, 2:7, 3:5], TRUTH[5:7, 1:3, 6:8] = 1, 2


@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 1), (0, 0)])
@pytest.mark.parametrize("unit", ["meter", "micron", "mm", "unknown"])
def test_a_predicted_mask_overlays_its_nifti_scan_in_every_program(tmp_path, codes, unit):
    file = nifti(tmp_path / "a.nii.gz", values(8, 8, 8), unit=unit, codes=codes)
    out = predicted(file, TRUTH, tmp_path / "p")
    ours, scan = nib.load(out), nib.load(file)
    assert np.array_equal(np.asarray(ours.dataobj), TRUTH) and np.array_equal(ours.affine, scan.affine)
    assert ours.header["xyzt_units"] == scan.header["xyzt_units"]
    assert (ours.header["qform_code"], ours.header["sform_code"]) == codes
    ours, scan = sitk.ReadImage(str(out)), sitk.ReadImage(str(file))
    assert ours.GetSpacing() == scan.GetSpacing() and ours.GetOrigin() == scan.GetOrigin()
    assert ours.GetDirection() == scan.GetDirection()
    assert np.array_equal(sitk.GetArrayFromImage(ours).T, TRUTH)
    assert torch.equal(prepare_scan((file,), out, size=8).mask, prepare_scan((file,), _truth(tmp_path), size=8).mask)


def _truth(folder):
    return folder / "p" / "t" / "truth.nii.gz"


@pytest.mark.parametrize("ending", ["nrrd", "mhd", "mgz", "dcm"])
def test_a_predicted_mask_overlays_a_scan_of_another_format(tmp_path, ending):
    file = tmp_path / f"a.{ending}"
    if ending == "mgz":
        nib.save(nib.MGHImage(values(8, 8, 8), AFFINE), file)
    elif ending == "dcm":
        pytest.importorskip("highdicom")
        write_enhanced(tmp_path / "s" / "a.dcm", values(6, 8, 8), plane="oblique").rename(file)
    else:
        save_itk(file, values(8, 8, 8))
    scan, truth = read_scan(file), TRUTH[:, :, : 6 if ending == "dcm" else 8]
    out = predicted(file, truth, tmp_path / "p")
    assert out.name == "out.nii.gz" and np.allclose(nib.load(out).affine, scan.affine.numpy(), atol=1e-5)
    there = np.asarray(nib.load(out).dataobj)
    assert there.shape == truth.shape and (ending == "dcm" or np.array_equal(there, truth))
    if ending in ("nrrd", "mhd"):
        image, mask = sitk.ReadImage(str(file)), sitk.ReadImage(str(out))
        assert np.allclose(image.GetOrigin(), mask.GetOrigin(), atol=1e-5)
        assert np.allclose(image.GetDirection(), mask.GetDirection(), atol=1e-5)
        assert np.allclose(image.GetSpacing(), mask.GetSpacing())


def test_a_predicted_mask_of_a_picture_in_metaimage_is_a_png(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(values(20, 30, dtype=np.uint8)), str(tmp_path / "a.mha"))
    grid, marked = read_grid(tmp_path / "a.mha"), torch.zeros(2, 20, 30)
    marked[1, :5] = 1
    assert _ending(tmp_path / "a.mha") == ".png"
    write_prediction(to_scan(marked, grid), grid, tmp_path / "m.png")
    assert np.asarray(Image.open(tmp_path / "m.png")).shape == (20, 30)


# No orientation


UNKNOWN = {"codes": (0, 0)}


def test_a_mask_that_itk_wrote_for_a_scan_without_orientation(tmp_path):
    array = values()
    image = nifti(tmp_path / "i.nii.gz", array, **UNKNOWN)
    mask = sitk.Cast(sitk.ReadImage(str(image)) > 100, sitk.sitkUInt8)
    sitk.WriteImage(mask, str(tmp_path / "m.nii.gz"))
    assert nib.load(tmp_path / "m.nii.gz").header["qform_code"] > 0
    ready = prepare_scan((image,), tmp_path / "m.nii.gz", size=8)
    assert ready.facts["axes"] == "unknown" and ready.facts["voxels"]["1"] == (array > 100).sum()
    stored = write_nifti(tmp_path / "n.nii.gz", (array > 100).astype(np.uint8), np.diag([*SPACING, 1]))
    assert torch.equal(prepare_scan((image,), stored, size=8).mask, ready.mask), "unturned, both of them"


@pytest.mark.parametrize("kind", ["nii", "npy", "nrrd", "mgz"])
def test_a_mask_without_orientation_takes_the_place_of_its_image(tmp_path, kind):
    mask = (RNG.random(SHAPE) > 0.5).astype(np.uint8)
    image = nifti(tmp_path / "i.nii.gz", values())
    file = tmp_path / f"m.{kind}"
    if kind == "nii":
        nifti(file, mask, **UNKNOWN)
    elif kind == "npy":
        np.save(file, mask)
    elif kind == "nrrd":
        spacings = " ".join(map(str, SPACING))
        nrrd(file, f"spacings: {spacings}", sizes="7 6 5", body=mask.tobytes(order="F"))
    else:
        stored = bytearray(gzip.decompress(nib_bytes(mask)))
        stored[28:30] = b"\0\0"
        stored[30:42] = np.array(SPACING, ">f4").tobytes()
        file.write_bytes(gzip.compress(bytes(stored)))
    if kind == "mgz":  # which then knows no size of its voxels either, and says 1 mm
        with pytest.raises(InputError, match="has voxels of 1 x 1 x 1 mm, but"):
            prepare_scan((image,), file, size=8)
        return
    known = prepare_scan((image,), nifti(tmp_path / "k.nii.gz", mask), size=8)
    assert torch.equal(prepare_scan((image,), file, size=8).mask, known.mask)


def nib_bytes(array):
    return gzip.compress(nib.MGHImage(array, AFFINE).to_bytes())


def test_scans_without_orientation_are_still_compared(tmp_path):
    image = nifti(tmp_path / "i.nii.gz", values(), **UNKNOWN)
    mask = np.ones(SHAPE, np.uint8)
    stretched = nifti(tmp_path / "m.nii.gz", mask, np.diag([0.8, 1.7, 5, 1]))
    with pytest.raises(InputError, match="m.nii.gz: has voxels of 0.8 x 1.7 x 5 mm, but .*i.nii.gz has 0.8"):
        prepare_scan((image,), stretched, size=8)
    with pytest.raises(InputError, match=r"m.nii.gz: has \(5, 6, 7\) voxels"):
        prepare_scan((image,), nifti(tmp_path / "m.nii.gz", mask.T.copy()), size=8)
    with pytest.raises(InputError, match="b.nii.gz: has voxels"):
        prepare_scan((image, nifti(tmp_path / "b.nii.gz", values(), np.diag([2, 2, 2, 1]))), size=8)
    both = prepare_scan((image, nifti(tmp_path / "b.nii.gz", values())), size=8)
    assert both.image.shape == (2, 8, 8, 8) and both.facts["axes"] == "unknown"


def test_arrays_and_pictures_have_the_axes_that_they_had(tmp_path):
    np.save(tmp_path / "a.npy", values())
    Image.fromarray(values(20, 30, dtype=np.uint8)).save(tmp_path / "a.png")
    assert prepare_scan((tmp_path / "a.npy",), size=8).facts["axes"] == "RAS"
    assert prepare_scan((tmp_path / "a.png",), size=8).facts["axes"] == ""
    assert not read_voxels(tmp_path / "a.npy").oriented and not read_voxels(tmp_path / "a.png").oriented


# Two answers to which way is up


def two_forms(file, qform, sform):
    image = nib.Nifti1Image(values(), sform)
    image.set_qform(qform, 1)
    image.set_sform(sform, 2)
    nib.save(image, file)
    return file


def about_z(degrees):
    t = np.radians(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]
    return turn


@pytest.mark.parametrize("flip", [np.diag([-1.0, 1, 1, 1]), np.diag([-1.0, -1, 1, 1]), about_z(90), about_z(60)])
@pytest.mark.parametrize("base", [np.diag([2.0, 2, 3, 1]), AFFINE])
def test_a_qform_against_its_sform(tmp_path, flip, base):
    file = two_forms(tmp_path / "a.nii", flip @ base, base)
    message = refused(file)
    names = ["".join(nib.aff2axcodes(form)) for form in (flip @ base, base)]
    assert message.startswith(f"{file}: says in its qform that its axes are {names[0]}, and in its sform {names[1]}")
    assert "set_qform" in message and "set_sform" in message
    with pytest.raises(InputError, match="qform"):
        read_grid(file)


@pytest.mark.parametrize("degrees", [0.0001, 10, 30])
@pytest.mark.parametrize("base", [np.diag([2.0, 2, 3, 1]), AFFINE, about_z(44.99999) @ np.diag([2, 2, 3, 1])])
def test_a_qform_near_its_sform(tmp_path, degrees, base):
    file = two_forms(tmp_path / "a.nii", about_z(degrees) @ base, base)
    assert np.allclose(read_scan(file).affine.numpy(), base, atol=1e-4), "the sform counts"


# FreeSurfer


@pytest.mark.parametrize("ending", ["mgz", "mgh"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
@pytest.mark.parametrize("channels", [1, 3, 17])
def test_freesurfer_files_are_read_as_nibabel_reads_them(tmp_path, ending, dtype, channels):
    array = values(*SHAPE, channels, dtype=dtype)[..., 0 if channels == 1 else slice(None)]
    nib.save(nib.MGHImage(array, AFFINE), tmp_path / f"a.{ending}")
    if channels > 16:
        assert "is a film" in refused(tmp_path / f"a.{ending}")
        return
    theirs, found = nib.load(tmp_path / f"a.{ending}"), read_voxels(tmp_path / f"a.{ending}")
    expected = np.asarray(theirs.dataobj).reshape(*SHAPE, channels)
    assert np.array_equal(found.array, np.moveaxis(expected, -1, 0)) and found.oriented
    assert np.array_equal(found.affine, theirs.affine) and np.allclose(found.affine, AFFINE, atol=1e-4)
    assert np.allclose(read_scan(tmp_path / f"a.{ending}").pixdim.numpy(), theirs.header.get_zooms()[:3])


def test_freesurfer_files_that_are_not_whole(tmp_path):
    whole = nib.MGHImage(values(), AFFINE).to_bytes()
    claim = bytearray(whole)
    claim[4:16] = np.array([3000] * 3, ">i4").tobytes()
    packed = bytearray(gzip.compress(whole))
    packed[-5] ^= 1  # the check sum
    for data, words in (
        (whole[:300], "claims 7x6x5x1 voxels"),
        (bytes(claim), "claims 3000x3000x3000x1 voxels"),
        (gzip.compress(bytes(claim)), "claims 3000"),
        (gzip.compress(whole[:-100]), "ends after"),
        (bytes(packed), "CRC"),
        (b"nothing" * 100, "is not an MGH file"),
        (b"", "a.mgz"),
    ):
        (tmp_path / "a.mgz").write_bytes(data)
        assert words in refused(tmp_path / "a.mgz"), refused(tmp_path / "a.mgz")


# 45 degrees


def turned(degrees, axis=2, spacing=(2, 2, 3)):
    t, turn = np.radians(degrees), np.eye(3)
    i, j = [k for k in range(3) if k != axis]
    turn[[i, i, j, j], [i, j, i, j]] = np.cos(t), -np.sin(t), np.sin(t), np.cos(t)
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    return affine


def about_all(tiny):
    return turned(45 + tiny, 0) @ turned(45 - tiny, 1, (1, 1, 1)) @ turned(45 + 2 * tiny, 2, (1, 1, 1))


@pytest.mark.parametrize(
    "place", [lambda d: turned(45 + d), lambda d: turned(-45 + d, 0), lambda d: turned(135 + d, 1), about_all]
)
@pytest.mark.parametrize("axes", [None, "LPS", "PSR", "SAL"])
def test_affines_that_differ_in_the_last_digits(tmp_path, place, axes):
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:3, 2:5, 1:4] = 1
    image = write_nifti(tmp_path / "i.nii.gz", values(), place(-1e-5))
    same = prepare_scan((image,), write_nifti(tmp_path / "s.nii.gz", mask, place(-1e-5)), size=16)
    near = nib.Nifti1Image(mask, place(1e-5))
    if axes:
        turn = nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), nib.orientations.axcodes2ornt(axes))
        near = near.as_reoriented(turn)
    nib.save(near, tmp_path / "m.nii.gz")
    ready = prepare_scan((image,), tmp_path / "m.nii.gz", size=16)
    assert torch.equal(ready.mask, same.mask) and torch.equal(ready.image, same.image)
    other = nib.Nifti1Image(np.asarray(nib.load(image).dataobj), place(1e-5))
    nib.save(other.as_reoriented(turn) if axes else other, tmp_path / "b.nii.gz")
    both = prepare_scan((image, tmp_path / "b.nii.gz"), size=16)
    assert torch.equal(both.image[0], both.image[1]), "each modality, too"


# Numbers


@pytest.mark.parametrize(
    "array, offset",
    [
        (np.arange(210, dtype=np.int32).reshape(SHAPE), 2**30),
        (np.arange(210, dtype=np.int64).reshape(SHAPE), 2**60),
        (np.arange(210, dtype=np.uint32).reshape(SHAPE), 2**31 + 5),
        (np.linspace(0, 1, 210).reshape(SHAPE), 1e6),
        (np.linspace(0, 1, 210).reshape(SHAPE), -1e12),
        (np.linspace(0, 1e-46, 210).reshape(SHAPE), 0),
    ],
)
def test_numbers_that_float32_cannot_tell_apart(tmp_path, array, offset):
    np.save(tmp_path / "a.npy", array + np.array(offset, array.dtype))
    message = refused(tmp_path / "a.npy")
    assert f"{tmp_path / 'a.npy'}: has values from" in message and "Subtract their smallest value" in message


@pytest.mark.parametrize(
    "array",
    [
        np.arange(210, dtype=np.int32).reshape(SHAPE) * 2**20 + 2**24 + 1,
        np.arange(210, dtype=np.int64).reshape(SHAPE) * 1024 + 2**33,
        np.linspace(0, 1, 210).reshape(SHAPE) + 1000,
        np.linspace(0, 1704295, 210).reshape(SHAPE),
        np.arange(210, dtype=np.uint16).reshape(SHAPE) + 60000,
        np.linspace(-1e30, 1e30, 210).reshape(SHAPE),
    ],
)
def test_numbers_that_float32_holds_well_enough(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    assert read_scan(tmp_path / "a.npy").shape == (1, *SHAPE)


@pytest.mark.parametrize("ending", ["npy", "nii", "nrrd", "mha", "mgz"])
@pytest.mark.parametrize("code", [16777217, 123456789, 1035, -1])
def test_codes_that_are_too_large_are_named_truly(tmp_path, ending, code):
    mask = np.zeros(SHAPE, np.int32)
    mask[2] = code
    file = tmp_path / f"m.{ending}"
    if ending == "npy":
        np.save(file, mask)
    elif ending in ("nii", "mgz"):
        nib.save((nib.Nifti1Image if ending == "nii" else nib.MGHImage)(mask, AFFINE), file)
    else:
        save_itk(file, mask)
    image = write_nifti(tmp_path / "i.nii.gz", values(), AFFINE)
    with pytest.raises(InputError, match=f"m.{ending}: is not a mask, it has {code}. A mask has one channel"):
        prepare_scan((image,), file, size=8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("off", [1e-6, -1e-7, 9e-4, -9e-4])
def test_codes_that_are_nearly_whole_are_whole(tmp_path, dtype, off):
    mask = RNG.integers(0, 4, SHAPE)
    image = write_nifti(tmp_path / "i.nii.gz", values())
    for k, file in enumerate((tmp_path / "m.nii.gz", tmp_path / "m.npy")):
        array = (mask + off).astype(dtype)
        np.save(file, array) if k else write_nifti(file, array)
        ready = prepare_scan((image,), file, size=8, classes=(0, 1, 2, 3))
        assert set(ready.mask.unique().tolist()) <= {0, 1, 2, 3} and not torch.signbit(ready.mask).any()
        assert ready.facts["voxels"] == {str(c): int((mask == c).sum()) for c in range(4)}
        mixed = np.where(RNG.random(SHAPE) > 0.9, mask + 0.5, mask + off).astype(dtype)
        np.save(file, mixed) if k else write_nifti(file, mixed)
        with pytest.raises(InputError, match="is not a mask, it has"):
            prepare_scan((image,), file, size=8)


def test_codes_through_a_slope(tmp_path):
    stored = nib.Nifti1Image(np.array(RNG.integers(0, 4, SHAPE) * 10000, np.int16), np.eye(4))
    stored.header.set_slope_inter(1 / 10000.01, 0)
    nib.save(stored, tmp_path / "m.nii")
    image = write_nifti(tmp_path / "i.nii.gz", values())
    assert set(prepare_scan((image,), tmp_path / "m.nii", size=8).mask.unique().tolist()) <= {0, 1, 2, 3}


# Pictures


def photo(file, orientation, array):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(array).save(file, exif=exif, **({"quality": 100} if file.suffix != ".png" else {}))
    return file


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_upright(tmp_path, suffix, orientation):
    upright = np.zeros((20, 30), np.uint8)
    upright[:] = np.arange(30) + np.arange(20)[:, None]
    upright[:6, :12] += 150  # bright at the top left
    back = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    lying = ImageOps.exif_transpose(Image.open(photo(tmp_path / "x.png", back, upright)))
    file = photo(tmp_path / f"i{suffix}", orientation, np.asarray(lying))
    scan = read_scan(file)
    assert scan.shape == (1, 20, 30) and np.abs(scan[0].numpy() - upright).max() < 20
    Image.fromarray((upright > 100).astype(np.uint8)).save(tmp_path / "m.png")
    photo(tmp_path / "n.png", orientation, (np.asarray(lying) > 100).astype(np.uint8))
    masks = [prepare_scan((file,), tmp_path / name, size=16).mask for name in ("m.png", "n.png")]
    assert torch.equal(*masks) and masks[0][0, 0, 0] == 1
    assert to_scan(torch.rand(2, 16, 16), read_grid(file)).shape == (20, 30)


def test_masks_in_jpeg_are_refused_whatever_their_name(tmp_path):
    mask = Image.fromarray((values(20, 30, dtype=np.uint8) > 100).astype(np.uint8))
    for name in ("m.jpg", "m.jpeg", "M.JPG"):
        mask.save(tmp_path / name)
        assert f"{tmp_path / name}: is a mask in JPEG" in refused(tmp_path / name, mask=True)
        assert "Save it as .png" in refused(tmp_path / name, mask=True)
        assert read_scan(tmp_path / name).shape == (1, 20, 30), "an image may be"
    (tmp_path / "m.jpg").rename(tmp_path / "false.png")
    assert "is a mask in JPEG" in refused(tmp_path / "false.png", mask=True)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "1"])
def test_a_mask_that_is_grey_in_colour_is_one_channel(tmp_path, mode):
    codes = RNG.integers(0, 3, (20, 30), dtype=np.uint8)
    codes = (codes > 0).astype(np.uint8) * 255 if mode == "1" else codes
    image = Image.fromarray(codes)
    if mode == "P":
        image = Image.fromarray(codes, mode="P")
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    else:
        image = image.convert(mode)
    image.save(tmp_path / "m.png")
    expected = codes / 255 if mode == "1" else codes
    scan = read_scan(tmp_path / "m.png", mask=True)
    assert scan.shape == (1, 20, 30) and np.array_equal(scan[0].numpy(), expected)


@pytest.mark.parametrize("name", ["m.png", "m.npy", "m.mha"])
def test_a_mask_in_colours_is_refused(tmp_path, name):
    colours = np.zeros((20, 30, 3), np.uint8)
    colours[:5, :, 0] = 255
    if name == "m.png":
        Image.fromarray(colours).save(tmp_path / name)
    elif name == "m.npy":
        np.save(tmp_path / name, colours)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / name))
    message = refused(tmp_path / name, mask=True)
    assert f"{tmp_path / name}: is a mask in colours" in message and "one channel" in message


# What is not read


@pytest.mark.parametrize(
    "name, cure",
    [
        ("a.hdr", "nib.save"),
        ("a.img", "nib.save"),
        ("a.img.gz", "nib.save"),
        ("a.tif", ".png"),
        ("a.TIFF", ".nii.gz"),
        ("a.nii.bz2", "Unpack"),
        ("a.mha.gz", "Unpack"),
        ("a.dcm.gz", "Unpack"),
        ("a.mnc", "mnc2nii"),
        ("a.par", "dcm2niix"),
        ("a.bmp", ".png"),
        ("a.h5", ".npy"),
        ("a.gipl", "SimpleITK"),
        ("a.vti", "VTK"),
    ],
)
def test_kinds_that_are_not_read_have_a_way_out(tmp_path, name, cure):
    (tmp_path / name).write_bytes(b"x" * 400)
    assert f"{tmp_path / name}: is of a kind that is not read" in refused(tmp_path / name)
    assert cure in refused(tmp_path / name)


def test_half_of_a_nifti_pair(tmp_path):
    nib.save(nib.Nifti1Pair(values(), AFFINE), tmp_path / "a.hdr")
    (tmp_path / "a.hdr").rename(tmp_path / "a.nii")
    message = refused(tmp_path / "a.nii")
    assert "is not a NIfTI file in one piece" in message and "Convert" in message


def test_a_metaimage_that_simpleitk_made_of_a_nifti_is_read(tmp_path):
    """It carries the fields of the NIfTI header, as dim[0]."""
    volume = np.random.default_rng(0).integers(0, 900, (9, 8, 7)).astype(np.int16)
    nib.save(nib.Nifti1Image(volume, np.diag([2.0, 2.0, 3.0, 1.0])), tmp_path / "a.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nii.gz")), str(tmp_path / "a.mha"))
    assert b"dim[0]" in (tmp_path / "a.mha").read_bytes()[:4000]
    made, source = read_scan(tmp_path / "a.mha"), read_scan(tmp_path / "a.nii.gz")
    assert np.array_equal(made, source) and np.allclose(made.affine, source.affine)
