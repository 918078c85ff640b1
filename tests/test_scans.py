"""Reading and preparing single scans."""

import gzip

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import SAMPLES, volumes, write_nifti
from PIL import Image
from test_dicom import write as write_series

from ssl3d.data.layouts import open_cohort
from ssl3d.data.scans import (
    content_box,
    crop,
    foreground,
    limits_of,
    orient,
    prepare_scan,
    read_scan,
    resize,
    scale,
    survey,
)
from ssl3d.data.voxels import fingerprint
from ssl3d.errors import InputError

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(0)


def test_nifti_3d_and_4d(tmp_path):
    three, four = RNG.random((5, 6, 7), dtype=np.float32), RNG.random((5, 6, 7, 2), dtype=np.float32)
    assert torch.equal(read_scan(write_nifti(tmp_path / "a.nii.gz", three))[0].as_tensor(), torch.tensor(three))
    assert torch.equal(read_scan(write_nifti(tmp_path / "b.nii", four)).as_tensor(), torch.tensor(four).movedim(-1, 0))


def test_nifti_scale_and_slope(tmp_path):
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, tmp_path / "a.nii")
    expected = np.asarray(nib.load(tmp_path / "a.nii").dataobj, dtype=np.float32)
    assert np.array_equal(read_scan(tmp_path / "a.nii")[0].numpy(), expected)


@pytest.mark.parametrize(
    "shape, expected",
    [
        ((30, 20), (1, 30, 20)),
        ((30, 20, 3), (3, 30, 20)),
        ((9, 8, 7), (1, 9, 8, 7)),
        ((9, 8, 7, 2), (2, 9, 8, 7)),
        ((4, 9, 8, 7), (4, 9, 8, 7)),
    ],
)
def test_npy(tmp_path, shape, expected):
    np.save(tmp_path / "a.npy", RNG.random(shape))
    assert read_scan(tmp_path / "a.npy").shape == expected


def test_npy_is_never_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="a.npy"):
        read_scan(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "suffix, mode, channels",
    [(".png", "L", 1), (".png", "LA", 1), (".png", "RGB", 3), (".png", "RGBA", 3), (".png", "P", 3)]
    + [(".jpg", "L", 1), (".jpg", "RGB", 3), (".jpg", "CMYK", 3)],
)
def test_pictures_keep_rows_and_columns(tmp_path, suffix, mode, channels):
    picture = np.zeros((20, 30), np.uint8)
    picture[:5] = 200  # a bright bar on top
    Image.fromarray(picture).convert("RGB").convert(mode).save(tmp_path / f"a{suffix}")
    scan = read_scan(tmp_path / f"a{suffix}")
    assert scan.shape == (channels, 20, 30) and scan[:, 0].mean() > 150 > 50 > scan[:, -1].mean()


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "AIL", "SRA"])
def test_every_orientation_comes_to_ras_without_a_changed_voxel(tmp_path, codes):
    original = nib.Nifti1Image(RNG.random((5, 6, 7), dtype=np.float32), np.diag([1, 2, 3, 1]))
    turn = nib.orientations.ornt_transform(nib.io_orientation(original.affine), nib.orientations.axcodes2ornt(codes))
    nib.save(original.as_reoriented(turn), tmp_path / "a.nii")
    scan = orient(read_scan(tmp_path / "a.nii"))
    assert np.array_equal(scan[0].numpy(), np.asarray(original.dataobj, dtype=np.float32))
    assert np.allclose(scan.affine.numpy(), original.affine) and np.allclose(scan.pixdim.numpy(), [1, 2, 3])


def test_the_box_holds_the_last_plane():
    scan = torch.zeros(2, 5, 6, 7)
    scan[1, 4, 5, 6] = 1
    scan[0, 1, 1, 1] = 1
    assert content_box(scan) == ((1, 1, 1), (5, 6, 7))


def test_the_background_need_not_be_zero():
    scan = torch.full((1, 5, 6, 7), -1000.0)
    scan[0, 1:3, 2:4, 3:6] = 40
    assert content_box(scan) == ((1, 2, 3), (3, 4, 6))


@pytest.mark.parametrize("size", [8, 13, 40, 64])
def test_masks_never_get_a_new_class(tmp_path, size):
    mask = read_scan(write_nifti(tmp_path / "m.nii", (RNG.integers(0, 2, (20, 22, 18)) * 4).astype(np.uint8)))
    assert set(resize(mask, (size,) * 3, mask=True).unique().tolist()) == {0, 4}


def test_resize_keeps_the_field_of_view(tmp_path):
    scan = read_scan(write_nifti(tmp_path / "a.nii", RNG.random((20, 20, 20)), np.diag([2, 2, 2, 1])))
    small = resize(scan, (10, 10, 10))
    assert np.allclose(small.pixdim.numpy(), 4) and abs(float(small.mean() - scan.mean())) < 0.01


@pytest.mark.parametrize("size", [(7, 7, 7), (10, 30, 10), (33, 33, 33)])
def test_resize_does_not_darken_the_border(size):
    assert torch.allclose(resize(read_scan_like(torch.full((1, 20, 20, 20), 3.0)), size), torch.tensor(3.0))


def read_scan_like(array):
    from monai.data import MetaTensor

    return MetaTensor(array)


@pytest.mark.parametrize("percentiles", [None, (1, 99)])
def test_scale_is_per_channel_and_within_0_and_1(percentiles):
    scan = torch.stack([torch.rand(6, 6, 6) * 1000 - 500, torch.rand(6, 6, 6)])
    scaled = scale(scan, limits_of(scan, percentiles))
    assert scaled.flatten(1).min(1).values.tolist() == [0, 0] and scaled.flatten(1).max(1).values.tolist() == [1, 1]


def test_prepared_whole_and_content(tmp_path):
    image = np.zeros((20, 20, 20), np.float32)
    image[5:15, 5:15, 5:15] = RNG.random((10, 10, 10)) + 1
    mask = (image > 1.5).astype(np.uint8)
    ready = prepare_scan((write_nifti(tmp_path / "a.nii", image),), write_nifti(tmp_path / "m.nii", mask), size=20)
    assert ready.box == ((5, 5, 5), (15, 15, 15)) and ready.facts["shape"] == [20, 20, 20]
    assert np.array_equal(ready.mask[0].numpy(), mask), "the mask is on the grid of the whole scan"
    assert (ready.image == 0).float().mean() > 0.8 > 0.1 > (ready.content == 0).float().mean()
    again = crop(read_scan(tmp_path / "a.nii"), ready.box)
    assert torch.allclose(ready.content, scale(resize(again, (20, 20, 20)), ready.facts["limits"]), atol=1e-6)
    assert prepare_scan((tmp_path / "a.nii",), size=20, crop_content=False).content is None


def _cut(path, tmp_path):
    (tmp_path / "bad.nii.gz").write_bytes(path.read_bytes()[:3000])
    return tmp_path / "bad.nii.gz"


def _nonsense(path, tmp_path):
    (tmp_path / "bad.nii.gz").write_bytes(gzip.compress(b"not a scan" * 100))
    return tmp_path / "bad.nii.gz"


def _nan(path, tmp_path):
    return write_nifti(tmp_path / "bad.nii.gz", np.full((5, 5, 5), np.nan, np.float32))


def _flat(path, tmp_path):
    return write_nifti(tmp_path / "bad.nii.gz", np.ones((5, 5, 5), np.float32))


def _five(path, tmp_path):
    return write_nifti(tmp_path / "bad.nii.gz", RNG.random((3, 3, 3, 2, 2)))


def _absent(path, tmp_path):
    return tmp_path / "bad.nii.gz"


@pytest.mark.parametrize("spoil", [_cut, _nonsense, _nan, _flat, _five, _absent])
def test_bad_files_are_named(tmp_path, spoil):
    with pytest.raises(InputError, match="bad.nii.gz"):
        prepare_scan((spoil(SAMPLES / "imagesTr" / "brain_001.nii.gz", tmp_path),), size=8)


@pytest.mark.parametrize(
    "mask, affine, said",
    [
        (np.ones((5, 5, 6)), None, "voxels"),
        (np.full((5, 5, 5), 0.5), None, "is not a mask"),
        (np.full((5, 5, 5), -1.0), None, "is not a mask"),
        (np.ones((5, 5, 5)), np.diag([1, 1, 1, 1]) + np.array([[0, 0, 0, 9]] + [[0] * 4] * 3), "mm away"),
    ],
)
def test_a_mask_that_is_not_of_its_image_is_refused(tmp_path, mask, affine, said):
    image = write_nifti(tmp_path / "a.nii", RNG.random((5, 5, 5)))
    with pytest.raises(InputError, match=said) as error:
        prepare_scan((image,), write_nifti(tmp_path / "m.nii", mask, affine), size=8)
    assert "m.nii" in str(error.value)


def test_masks_as_pictures(tmp_path):
    image = Image.fromarray(RNG.integers(0, 255, (20, 30), dtype=np.uint8))
    image.save(tmp_path / "i.png")
    classes = RNG.integers(0, 3, (20, 30), dtype=np.uint8)
    indexed = Image.fromarray(classes, mode="P")
    indexed.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    indexed.save(tmp_path / "p.png")
    Image.fromarray(classes > 0).save(tmp_path / "one.png")
    np.save(tmp_path / "bool.npy", classes > 0)
    for name, expected in (("p.png", classes), ("one.png", classes > 0), ("bool.npy", classes > 0)):
        assert np.array_equal(read_scan(tmp_path / name, mask=True)[0].numpy(), expected)
    assert prepare_scan((tmp_path / "i.png",), tmp_path / "p.png", size=16).mask.max() == 2


def test_turned_and_stretched_grids_are_refused(tmp_path):
    a = write_nifti(tmp_path / "a.nii", RNG.random((20, 20, 20)))
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    for affine in (turn, np.diag([1, 1, 5, 1])):
        with pytest.raises(InputError, match="mm away"):
            prepare_scan((a,), write_nifti(tmp_path / "m.nii", np.ones((20, 20, 20)), affine), size=8)
        with pytest.raises(InputError, match="mm away"):
            prepare_scan((a, write_nifti(tmp_path / "b.nii", RNG.random((20, 20, 20)), affine)), size=8)


def test_modalities_of_a_case_are_stacked(tmp_path):
    files = tuple(write_nifti(tmp_path / f"{i}.nii", RNG.random((6, 6, 6))) for i in range(3))
    assert prepare_scan(files, size=8).image.shape == (3, 8, 8, 8)
    write_nifti(tmp_path / "2.nii", RNG.random((6, 6, 7)))
    with pytest.raises(InputError, match="2.nii"):
        prepare_scan(files, size=8)


def test_a_survey_goes_on_after_a_bad_file(tmp_path):
    volumes(tmp_path, "a", "b", "c")
    (tmp_path / "b.nii.gz").write_bytes(b"nothing")
    rows = survey(open_cohort(tmp_path), progress=False)
    assert [set(row) >= {"shape"} for row in rows] == [True, False, True] and "b.nii.gz" in rows[1]["problem"]
    assert len(survey(open_cohort(tmp_path), most=2, progress=False)) == 2


def test_shrinking_blurs_first(tmp_path):
    fine = np.indices((64, 64, 64)).sum(0) % 2
    write_nifti(tmp_path / "a.nii", fine.astype(np.float32))
    small = resize(read_scan(tmp_path / "a.nii"), (15, 15, 15))[0, 2:-2, 2:-2, 2:-2]
    assert (small - 0.5).abs().max() < 0.02, "a checkerboard is grey from afar"
    step = np.zeros((64, 64, 64), np.float32)
    step[32:] = 1
    write_nifti(tmp_path / "b.nii", step)
    edge = resize(read_scan(tmp_path / "b.nii"), (16, 16, 16))[0, :, 8, 8]
    assert edge[0] == 0 and edge[-1] == 1 and 0.02 < edge[7] < 0.4, "blurred as much as four voxels become one, no more"


def test_every_slice_counts_in_a_fingerprint(tmp_path):
    folder = write_series(tmp_path / "s")
    before = fingerprint((folder,))
    last = sorted(folder.iterdir())[-1]
    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    last.write_bytes(data)
    assert fingerprint((folder,)) != before


def brain_like(noise=0.0, side=40, seed=0):
    """Two tissues and a dark one within a ball, in a box of air."""
    rng = np.random.default_rng(seed)
    radius = np.linalg.norm(np.indices((side,) * 3) - (side - 1) / 2, axis=0)
    values = np.select([radius < 5, radius < 10, radius < 15], [40, 160, 110], 0).astype(np.float32)
    values += (values > 0) * rng.normal(0, 6, values.shape).astype(np.float32)
    return torch.from_numpy(values + noise * np.abs(rng.normal(0, 1, values.shape)).astype(np.float32))[None]


@pytest.mark.parametrize("noise", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("padding", [(40,) * 6, (0, 25, 3, 0, 60, 9)])
def test_air_around_a_scan_changes_no_grey(noise, padding):
    scan = brain_like(noise)
    air = noise * torch.randn(1, *(n + a + b for n, a, b in zip((40,) * 3, padding[4::-2], padding[5::-2]))).abs()
    begin = padding[4::-2]
    place = tuple(slice(b, b + 40) for b in begin)
    air[0][place] = scan[0]
    one, other = (limits_of(x, (0.5, 99.5))[0] for x in (scan, air))
    assert np.allclose(one, other, atol=0 if noise == 0 else 3), (one, other)
    everywhere = [np.percentile(x.numpy(), (0.5, 99.5)) for x in (scan, air)]
    assert abs(everywhere[0][1] - everywhere[1][1]) > 3, "over all voxels the greys do change"


def test_dark_tissue_is_no_air():
    for noise in (0.0, 2.0):
        inside = foreground(brain_like(noise))
        radius = np.linalg.norm(np.indices((40,) * 3) - 19.5, axis=0)
        assert inside[radius < 14].mean() > 0.995 and inside[radius > 16].mean() < 0.02


def test_a_crop_without_air_and_a_channel_that_cannot_tell():
    crop_of_brain = brain_like()[:, 10:30, 10:30, 10:30]
    assert foreground(crop_of_brain).all()
    noise = torch.from_numpy(np.random.default_rng(0).normal(100, 20, (1, 24, 24, 24)).astype(np.float32))
    assert foreground(noise).all()
    eye = torch.zeros(3, 80, 80)
    disc = np.linalg.norm(np.indices((80, 80)) - 39.5, axis=0) < 38
    eye[0][disc], eye[1][disc] = 150, 80
    eye += 2 * torch.rand(3, 80, 80, generator=torch.Generator().manual_seed(0))
    assert foreground(eye)[disc].all() and foreground(eye).mean() < 0.85, "the blue of an eye is dark everywhere"
    shape = torch.zeros(1, 12, 12, 12)
    shape[0, 3:7, 3:7, 3:7] = 1
    low, high = limits_of(shape, (0.5, 99.5))[0]
    assert low < high, "all of its tissue has one value"


def test_a_liver_has_one_grey_whatever_else_is_in_the_field(tmp_path):
    """By minimum and maximum it would be darker beside metal, and brighter where no air is seen."""
    body = np.full((24, 24, 24), 60, np.float32)
    body[:8] = -80
    scans = {"body": body, "air": body.copy(), "metal": body.copy()}
    scans["air"][:, :, :6] = -1024
    scans["metal"][20:, 20:, 20:] = 3000
    for name, values in scans.items():
        file = write_nifti(tmp_path / f"{name}.nii", values)
        fixed = prepare_scan((file,), size=24, windows=[(-1000, 1000)])
        assert abs(float(fixed.image[0, 14, 10, 12]) - 0.53) < 1e-3 and fixed.facts["limits"] == [[-1000, 1000]]
    free = {name: float(prepare_scan((tmp_path / f"{name}.nii",), size=24).image[0, 14, 10, 12]) for name in scans}
    assert max(free.values()) - min(free.values()) > 0.2
    with pytest.raises(InputError, match="body.nii: nothing is left.*2000 to 3000.*window"):
        prepare_scan((tmp_path / "body.nii",), size=24, windows=[(2000, 3000)])
    with pytest.raises(InputError, match="2 windows are given for 1 channel"):
        prepare_scan((tmp_path / "body.nii",), size=24, windows=[None, (0, 1)])


@pytest.mark.parametrize("percentiles", [None, (0.5, 99.5)])
def test_a_tissue_has_one_grey_in_the_whole_scan_and_in_its_content(tmp_path, percentiles):
    scan = brain_like()[0].numpy()
    scan[20, 20, 20] = 400
    ready = prepare_scan((write_nifti(tmp_path / "a.nii", scan),), size=40, percentiles=percentiles)
    greys = [np.median(version[version > 0.2]) for version in (ready.image.numpy(), ready.content.numpy())]
    assert ready.content is not None and abs(greys[0] - greys[1]) < 0.02
