"""Predictions on the grid of the scan that they were made for."""

import gzip
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import SMALL, write_nifti
from monai.transforms import Compose, Orientation, Resize
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from test_dicom import write as write_series

from ssl3d.data.layouts import open_cohort
from ssl3d.data.prepare import prepare
from ssl3d.data.scans import prepare_scan, read_scan
from ssl3d.downstream import predict as module
from ssl3d.downstream.finetune import finetune, load_network
from ssl3d.downstream.predict import most_probable, predict, read_grid, to_scan, write_prediction
from ssl3d.downstream.segmentation import segment
from ssl3d.errors import InputError
from ssl3d.files import read_table

AXES = ["RAS", "PSR", "LPS", "ASL", "IRP", "SLA", "RIA", "AIL"]
CODES = (0, 1, 4)
SPACING = (0.8, 1.5, 3.0)  # mm
ROTATION = np.linalg.qr(np.array([[1, -0.2, 0.25], [0.2, 1, -0.15], [-0.25, 0.2, 1]]))[0]
ROTATION = ROTATION * np.sign(np.diag(ROTATION))  # 11 to 19 degrees off each axis of the patient


def oblique(axes, spacing=SPACING):
    """The affine of a tilted scan whose axes run roughly to these letters; exact in float32, as NIfTI keeps it."""
    affine = np.eye(4)
    for i, letter in enumerate(axes):
        row = next(k for k, ends in enumerate(("LR", "PA", "IS")) if letter in ends)
        affine[:3, i] = ROTATION[:, row] * (1 if letter in "RAS" else -1) * spacing[i]
    affine[:3, 3] = [-31.7, 12.3, 55.1]
    assert "".join(nib.aff2axcodes(affine)) == axes
    return affine.astype(np.float32).astype(np.float64)


def phantom(shape):
    """An image and its mask: a large ellipsoid of class 1, a smaller one of class 4 aside, far from any symmetry."""
    at = [(np.arange(n) + 0.5) / n for n in shape]
    x, y, z = np.meshgrid(*at, indexing="ij")
    mask = np.zeros(shape, np.uint8)
    mask[((x - 0.42) / 0.3) ** 2 + ((y - 0.58) / 0.26) ** 2 + ((z - 0.4) / 0.28) ** 2 < 1] = 1
    mask[((x - 0.62) / 0.22) ** 2 + ((y - 0.3) / 0.17) ** 2 + ((z - 0.64) / 0.24) ** 2 < 1] = 4
    return (100 * (mask > 0) + 40 * (mask == 4)).astype(np.float32), mask


def one_hot(mask, codes=CODES):
    """A prepared mask (1, *size) as the probabilities of a perfect network."""
    return torch.stack([mask[0].as_tensor() == code for code in codes]).float()


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def middle(mask):
    return np.argwhere(mask).mean(axis=0)


def scan_and_mask(folder, axes, shape=(60, 44, 20)):
    image, mask = phantom(shape)
    affine = oblique(axes)
    return write_nifti(folder / "a.nii.gz", image, affine), write_nifti(folder / "m.nii.gz", mask, affine), mask


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("axes", AXES)
def test_a_prediction_overlays_its_oblique_anisotropic_scan(tmp_path, axes, size):
    scan, truth, mask = scan_and_mask(tmp_path, axes)
    ready = prepare_scan((scan,), truth, size=size)
    grid = read_grid(scan)
    write_prediction(to_scan(one_hot(ready.mask), grid, CODES), grid, tmp_path / "p.nii.gz")
    source, written = nib.load(scan), nib.load(tmp_path / "p.nii.gz")
    assert written.shape == source.shape and written.get_data_dtype() == np.uint8
    assert np.array_equal(written.affine, source.affine) and np.array_equal(written.affine, oblique(axes))
    found = np.asarray(written.dataobj)
    assert set(np.unique(found)) == set(CODES)
    for code in CODES[1:]:
        assert dice(found == code, mask == code) > 0.95
        middles = [middle(found == code), middle(mask == code)]
        assert np.abs(middles[0] - middles[1]).max() < 0.2  # voxels, each axis
        world = [nib.affines.apply_affine(a, m) for a, m in zip((written.affine, oblique(axes)), middles)]
        assert np.linalg.norm(world[0] - world[1]) < 0.4  # mm, half of the least spacing
    turned = [np.flip(mask, axis) for axis in range(3)] + [np.roll(mask, 1, axis) for axis in range(3)]
    assert all(min(dice(found == code, wrong == code) for code in CODES[1:]) < 0.95 for wrong in turned)


@pytest.mark.parametrize("axes", AXES)
def test_at_the_size_of_the_scan_no_voxel_changes(tmp_path, axes):
    rng = np.random.default_rng(0)
    mask = rng.choice(CODES, (16, 16, 16)).astype(np.uint8)
    scan = write_nifti(tmp_path / "a.nii", rng.random((16, 16, 16), dtype=np.float32), oblique(axes))
    truth = write_nifti(tmp_path / "m.nii", mask, oblique(axes))
    ready = prepare_scan((scan,), truth, size=16)
    assert np.array_equal(to_scan(one_hot(ready.mask), read_grid(scan), CODES), mask)


def smooth_probabilities(size, classes=3):
    """Probabilities without a symmetry, smooth enough for no two ways of interpolating to differ by chance."""
    noise = np.random.default_rng(1).normal(size=(classes, *[size] * 3))
    return torch.from_numpy(gaussian_filter(noise, (0, 2, 2, 2), mode="nearest")).float().mul(30).softmax(dim=0)


@pytest.mark.parametrize("axes", AXES)
def test_every_voxel_asks_the_prediction_at_its_own_place_in_mm(tmp_path, axes):
    """Each voxel's middle in mm, looked up in the prepared cube by the affine that MONAI keeps for it."""
    scan = write_nifti(tmp_path / "a.nii", phantom((34, 26, 18))[0], oblique(axes))
    seen = smooth_probabilities(14)
    to_cube = np.linalg.inv(prepare_scan((scan,), size=14).image.affine.numpy()) @ nib.load(scan).affine
    places = nib.affines.apply_affine(to_cube, np.moveaxis(np.indices((34, 26, 18)), 0, -1))
    looked_up = np.stack([map_coordinates(one, np.moveaxis(places, -1, 0), order=1, mode="nearest") for one in seen])
    first, second = np.sort(looked_up, axis=0)[:-3:-1]
    clear = first - second > 1e-3
    found = to_scan(seen, read_grid(scan))
    best = looked_up.argmax(axis=0)
    assert clear.mean() > 0.98 and (found[clear] == best[clear]).mean() > 0.98, "but for volumes that are kept"
    for moved in (np.roll(best, 1, axis) for axis in range(3)):
        assert (found[clear] == best[clear]).mean() > (found[clear] == moved[clear]).mean() + 0.02


@pytest.mark.parametrize("axes", ["PSR", "AIL"])
def test_the_way_back_is_monais_inverse(tmp_path, axes):
    scan = write_nifti(tmp_path / "a.nii", phantom((34, 26, 18))[0], oblique(axes))
    labels = (("L", "R"), ("P", "A"), ("I", "S"))
    there = Compose([Orientation("RAS", labels=labels), Resize((14,) * 3, mode="trilinear")])
    cube = there(read_scan(scan))
    seen = smooth_probabilities(14)
    back = there.inverse(cube.__class__(seen, affine=cube.affine, applied_operations=cube.applied_operations))
    assert (back.argmax(dim=0).numpy() == to_scan(seen, read_grid(scan))).mean() > 0.98, "but for volumes that are kept"
    assert np.allclose(back.affine.numpy(), read_grid(scan).affine, atol=1e-4)


def test_where_the_scan_is_coarser_the_prediction_is_averaged(tmp_path):
    """One voxel in two is wrong in the prediction, in a checkerboard; the scan has a third of its voxels."""
    scan = write_nifti(tmp_path / "a.nii", phantom((12, 12, 12))[0])
    board = torch.from_numpy(np.indices((36, 36, 36)).sum(axis=0) % 2)
    probabilities = torch.stack([0.2 + 0.7 * board, 0.8 - 0.7 * board])  # on average 0.55 and 0.45
    assert (to_scan(probabilities, read_grid(scan))[1:-1, 1:-1, 1:-1] == 0).all()


def test_ties_go_to_the_first_class_and_many_classes_fit():
    assert (most_probable(torch.full((3, 8, 8, 8), 1 / 3), (11, 9, 8)) == 0).all()
    probabilities = torch.zeros(256, 8, 8, 8)
    probabilities[255] = 1
    assert (most_probable(probabilities, (9, 9, 9)) == 255).all()
    assert not most_probable(torch.zeros(2, 8, 8), (5, 9)).any()


def test_the_probabilities_stay_as_they_were():
    seen = smooth_probabilities(12)
    before = seen.clone()
    for shape in ((12, 12, 12), (20, 9, 12)):
        most_probable(seen, shape)
    assert torch.equal(seen, before)


def nifti2(image):
    return nib.Nifti2Image(np.asarray(image.dataobj), image.affine, image.header)


def big_endian(image):
    return nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header.as_byteswapped(">"))


def scaled(image):
    image.header.set_slope_inter(0.5, 10)
    image.header["cal_max"], image.header["descrip"] = 300, b"of someone"
    return image


def codes(qform, sform):
    def change(image):
        image.header.set_qform(image.affine, 1)
        image.header["qform_code"], image.header["sform_code"] = qform, sform
        return nib.Nifti1Image(np.asarray(image.dataobj), None, image.header)

    return change


@pytest.mark.parametrize(
    "change",
    [nifti2, big_endian, scaled, codes(1, 0), codes(0, 0), codes(2, 4), codes(1, 1)],
    ids=["NIfTI-2", "big-endian", "scaled", "qform only", "no form", "both forms", "scanner"],
)
def test_whatever_the_header_says_the_place_is_copied_to_the_last_digit(tmp_path, change):
    image = nib.Nifti1Image(phantom((12, 10, 9))[0].astype(np.int16), oblique("PSR"))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(change(image), tmp_path / "a.nii.gz")
    grid, source = read_grid(tmp_path / "a.nii.gz"), nib.load(tmp_path / "a.nii.gz")
    classes = np.random.default_rng(0).integers(0, 5, grid.shape).astype(np.uint8)
    write_prediction(classes, grid, tmp_path / "p.nii.gz")
    written = nib.load(tmp_path / "p.nii.gz")
    assert type(written) is type(source) and np.array_equal(np.asarray(written.dataobj), classes)
    placed = source.header["qform_code"] > 0 or source.header["sform_code"] > 0  # else nibabel assumes a place
    assert np.array_equal(written.affine, source.affine) and grid.oriented == placed
    assert np.array_equal(grid.affine, source.affine if placed else np.diag([*source.header.get_zooms()[:3], 1]))
    for form in ("get_qform", "get_sform"):
        ours, theirs = getattr(written, form)(coded=True), getattr(source, form)(coded=True)
        assert ours[1] == theirs[1] and (ours[0] is theirs[0] or np.array_equal(ours[0], theirs[0]))
    assert written.header.get_zooms() == source.header.get_zooms()
    assert written.header.get_xyzt_units() == source.header.get_xyzt_units()
    assert written.header["descrip"].item() == b"" and written.header["cal_max"] == 0
    assert (tmp_path / "p.nii.gz").read_bytes()[4:8] == bytes(4), "no time of day, so the same bytes each time"


@pytest.mark.parametrize("shape", [(9, 10, 11, 3), (9, 10, 11, 1, 2), (9, 10, 11, 1)])
def test_channels_are_no_part_of_the_grid(tmp_path, shape):
    grid = read_grid(write_nifti(tmp_path / "a.nii", np.random.default_rng(0).random(shape), oblique("LPS")))
    assert grid.shape == (9, 10, 11)
    classes = to_scan(one_hot(torch_mask((9, 10, 11)), (0, 1)), grid)
    write_prediction(classes, grid, tmp_path / "p.nii.gz")
    assert nib.load(tmp_path / "p.nii.gz").shape == (9, 10, 11)
    assert np.array_equal(nib.load(tmp_path / "p.nii.gz").affine, oblique("LPS"))


def torch_mask(shape):
    from monai.data import MetaTensor

    return MetaTensor(torch.ones(1, *shape))


def test_a_packed_file_under_a_plain_name(tmp_path):
    plain = write_nifti(tmp_path / "a.nii", phantom((12, 10, 9))[0], oblique("PSR"))
    affine = nib.load(plain).affine
    plain.write_bytes(gzip.compress(plain.read_bytes()))
    assert np.array_equal(read_grid(plain).affine, affine) and read_grid(plain).shape == (12, 10, 9)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"no scan at all" * 100])
def test_a_damaged_header_is_named(tmp_path, content):
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(InputError, match="a.nii.gz"):
        read_grid(tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="gone.nii"):
        read_grid(tmp_path / "gone.nii")


@pytest.mark.parametrize("plane", ["axial", "sagittal", "coronal", "oblique"])
def test_a_series_becomes_a_nifti_that_overlays_it(tmp_path, plane):
    stack = np.random.default_rng(0).integers(0, 1000, (10, 10, 10)).astype(np.int16)
    series = write_series(tmp_path / "s", stack=stack, plane=plane, order=range(10))
    source, grid = read_scan(series), read_grid(series)
    seen = prepare_scan((series,), size=10).image[0]
    high = (seen > 0.5).float().as_tensor()
    write_prediction(to_scan(torch.stack([1 - high, high]), grid), grid, tmp_path / "p.nii.gz")
    written = read_scan(tmp_path / "p.nii.gz", mask=True)
    assert torch.equal(written[0].as_tensor() > 0, (source[0] > source.max() / 2).as_tensor())
    assert torch.allclose(written.affine, source.affine, atol=1e-4)
    forms = [nib.load(tmp_path / "p.nii.gz").get_qform(), nib.load(tmp_path / "p.nii.gz").get_sform()]
    assert np.allclose(*forms, atol=1e-4)
    again = prepare_scan((series,), tmp_path / "p.nii.gz", size=10)  # refuses a mask that lies elsewhere
    assert torch.equal(again.mask[0].as_tensor(), high)


@pytest.mark.parametrize(
    "name, shape, expected",
    [
        ("a.png", (40, 30), (40, 30)),
        ("a.png", (40, 30, 3), (40, 30)),
        ("a.jpg", (40, 30, 3), (40, 30)),
        ("a.npy", (40, 30), (40, 30)),
        ("a.npy", (12, 11, 10, 2), (12, 11, 10)),
        ("a.npy", (2, 12, 11, 10), (12, 11, 10)),
    ],
)
def test_formats_without_a_place(tmp_path, name, shape, expected):
    values = (np.random.default_rng(0).random(shape) * 255).astype(np.uint8)
    np.save(tmp_path / name, values) if name.endswith("npy") else Image.fromarray(values).save(tmp_path / name)
    grid = read_grid(tmp_path / name)
    assert grid.shape == expected and grid.header is None
    probabilities = torch.zeros(2, *[16] * len(expected))
    probabilities[(0, ...)] = 0.5
    probabilities[(1, slice(0, 8))] = 1  # the upper half
    classes = to_scan(probabilities, grid, (0, 200))
    assert classes.shape == expected and (classes[: expected[0] // 2] == 200).all() and not classes[-3:].any()
    file = tmp_path / f"p{module._ending(tmp_path / name)}"
    write_prediction(classes, grid, file)
    assert np.array_equal(read_scan(file, mask=True)[0].numpy(), classes)
    with pytest.raises(InputError, match="p.nii.gz"):
        write_prediction(classes, grid, tmp_path / "p.nii.gz")


def test_what_does_not_fit_is_refused(tmp_path):
    grid = read_grid(write_nifti(tmp_path / "a.nii", phantom((12, 10, 9))[0]))
    for probabilities, codes_ in (
        (torch.zeros(2, 8, 8), None),
        (torch.zeros(2, 8, 8, 8), (0, 1, 2)),
        (torch.zeros(8, 8, 8), None),
        (torch.zeros(300, 2, 2, 2), None),
    ):
        with pytest.raises(InputError, match="do not fit"):
            to_scan(probabilities, grid, codes_)


# From a run to a folder of masks


def awkward_cohort(folder, people=6, start=0):
    """Phantoms with noise, each in other axes."""
    rng = np.random.default_rng(start)
    folder.mkdir()
    for i in range(start, start + people):
        image, mask = phantom((20, 16, 12))
        affine = oblique(AXES[i % len(AXES)])
        image += rng.random(image.shape, dtype=np.float32)
        image[:2] = 0  # so that the content is not the whole
        write_nifti(folder / f"{i}_t.nii.gz", image, affine)
        write_nifti(folder / f"{i}_m.nii.gz", mask, affine)
    return open_cohort(folder, images="{id}_t.nii.gz", masks="{id}_m.nii.gz")


@pytest.fixture(params=["float16", "uint8"])
def trained(tmp_path, request):
    """A cohort, its store and a run that has hardly learned anything."""
    cohort = awkward_cohort(tmp_path / "in")
    store = prepare(cohort, tmp_path / "store", size=16, test=0.5, dtype=request.param, progress=False)
    run = finetune(store.folder, tmp_path / "run", steps=1, warmup=0, widths=SMALL, progress=False)
    return cohort, store, run


def source_of(store, file):
    return Path(store.cases[file.name.removesuffix(".nii.gz")]["files"][0])


def test_a_run_writes_one_mask_per_test_case(trained, tmp_path, capfd):
    _, store, run = trained
    files = predict(run, store.folder, tmp_path / "out", accelerator="cpu", progress=False)
    assert [f.name for f in files] == [f"{name}.nii.gz" for name in store.split("test")] and len(files) == 3
    network = load_network(run)
    for file in files:
        name, source = file.name.removesuffix(".nii.gz"), nib.load(source_of(store, file))
        written = nib.load(file)
        assert np.array_equal(written.affine, source.affine) and written.shape == source.shape
        with torch.no_grad():
            image = torch.from_numpy(np.array(store.image(name))).float() / store.unit
            scores = network.eval()(image[None])[0]
        found = segment(network, store, [name])[name]
        assert np.array_equal(np.array(CODES)[scores.argmax(0)], found.on_store)
        ras = nib.as_closest_canonical(written)
        assert np.array_equal(np.asarray(ras.dataobj), found.on_scan), "what is written is what was scored"
        expected = to_scan(scores.softmax(dim=0), read_grid(source.get_filename()), CODES)
        assert np.array_equal(np.asarray(written.dataobj), expected)
    assert capfd.readouterr().out == ""


def test_probabilities_come_from_a_network_that_is_not_learning():
    network = torch.nn.Sequential(torch.nn.Conv3d(2, 3, 1), torch.nn.Dropout(0.5))
    image = torch.rand(2, 8, 8, 8)
    seen = module.class_probabilities(network, image)
    assert torch.equal(seen, module.class_probabilities(network, image)) and not seen.requires_grad
    assert seen.shape == (3, 8, 8, 8) and torch.allclose(seen.sum(dim=0), torch.ones(8, 8, 8))


def test_a_perfect_network_overlays_every_scan_of_a_run(trained, tmp_path, monkeypatch):
    _, store, run = trained
    perfect = {store.image(n).tobytes(): store.mask(n) for n in store.cases}

    def answer(network, image):
        mask = perfect[(image * store.unit).numpy().astype(store.settings["dtype"]).tobytes()]
        return torch.stack([torch.from_numpy(mask == code) for code in CODES]).float()

    monkeypatch.setattr(module, "class_probabilities", answer)
    for file in predict(run, store.folder, tmp_path / "out", progress=False):
        truth = np.asarray(nib.load(str(source_of(store, file)).replace("_t.", "_m.")).dataobj)
        found = np.asarray(nib.load(file).dataobj)
        assert min(dice(found == code, truth == code) for code in CODES[1:]) > 0.9


def test_what_is_there_is_kept_and_the_rest_is_made(trained, tmp_path):
    _, store, run = trained
    files = predict(run, store.folder, tmp_path / "out", progress=False)
    before = {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in files}
    files[1].unlink()
    assert predict(run, store.folder, tmp_path / "out", progress=False) == files
    assert all(f.read_bytes() == before[f][0] for f in files)
    assert [f.stat().st_mtime_ns == before[f][1] for f in files] == [True, False, True]
    other = finetune(store.folder, tmp_path / "other", steps=1, warmup=0, widths=SMALL, seed=1, progress=False)
    with pytest.raises(InputError, match="network was"):
        predict(other, store.folder, tmp_path / "out", progress=False)


def test_other_scans_are_prepared_as_the_store_was(trained, tmp_path):
    cohort, store, run = trained
    stored = predict(run, store.folder, tmp_path / "out", progress=False)
    fresh = predict(run, cohort, tmp_path / "fresh", progress=False)
    assert len(fresh) == 6
    for file in stored:
        assert (tmp_path / "fresh" / file.name).read_bytes() == file.read_bytes()
    more = awkward_cohort(tmp_path / "more", 2, start=6)
    assert [f.name for f in predict(run, more, tmp_path / "new", progress=False)] == [
        "6.nii.gz",
        "7.nii.gz",
    ]
    with pytest.raises(InputError, match="scans was"):
        predict(run, more, tmp_path / "out", progress=False)
    (tmp_path / "plain").mkdir()  # a folder as it is, without masks
    noisy = phantom((20, 16, 12))[0] + np.random.default_rng(0).random((20, 16, 12))
    scan = write_nifti(tmp_path / "plain" / "x.nii", noisy, oblique("SLA"))
    (file,) = predict(run, tmp_path / "plain", tmp_path / "plain_out", progress=False)
    assert file.name == "x.nii.gz" and np.array_equal(nib.load(file).affine, nib.load(scan).affine)


@pytest.mark.parametrize("wrong", ["changed", "gone", "header only"])
def test_a_source_that_is_not_as_it_was_is_refused(trained, tmp_path, wrong):
    _, store, run = trained
    source = Path(store.cases[store.split("test")[-1]]["files"][0])
    image = nib.load(source)
    voxels = np.asarray(image.dataobj)
    source.unlink()
    if wrong == "changed":
        nib.save(nib.Nifti1Image(voxels + 1, image.affine), source)
    elif wrong == "header only":
        nib.save(nib.Nifti1Image(voxels, oblique("LPI")), source)
    said = "cannot be read any more" if wrong == "gone" else "was changed"
    with pytest.raises(InputError, match=f"{source.name}: {said}"):
        predict(run, store.folder, tmp_path / "out", progress=False)
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2, "those before it are written"


def test_mistakes_are_named(trained, tmp_path):
    cohort, store, run = trained
    call = dict(run=run, scans=store.folder, out=tmp_path / "out", progress=False)
    other = prepare(cohort, tmp_path / "other", size=24, test=0.5, progress=False).folder
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x.txt").write_text("mine")
    (tmp_path / "two").mkdir()
    write_nifti(tmp_path / "two" / "x.nii", np.random.default_rng(0).random((9, 9, 9, 2)))
    for change, message in (
        (dict(scans=other), "prepared in another way.*size 16 .here 24."),
        (dict(run=tmp_path / "none"), "no settings.yaml"),
        (dict(scans=tmp_path / "none"), "no such file or folder"),
        (dict(out=tmp_path / "masks.nii.gz"), "is the name of a file"),
        (dict(out=tmp_path / "full"), "is not empty"),
        (dict(out=tmp_path / "in" / "out"), "lies inside"),
        (dict(scans=tmp_path / "two", out=tmp_path / "two" / "out"), "lies inside"),
        (dict(scans=tmp_path / "two"), r"x\.nii: has 2 channel"),
        (dict(scans=tmp_path / "none"), "none"),
        (dict(accelerator="abacus"), "accelerator is 'abacus'"),
    ):
        with pytest.raises(InputError, match=message):
            predict(**(call | change))
    assert not list(tmp_path.glob("*/*.part"))


def test_channels_in_another_order_are_refused(tmp_path, store):
    run = finetune(store.folder, tmp_path / "run", steps=1, warmup=0, widths=SMALL, progress=False)
    names = list(store.channel_names)
    cohort = open_cohort(store.settings["source"])
    swapped = cohort.__class__(cohort.source, cohort.layout, cohort.cases[:1], tuple(names[::-1]))
    with pytest.raises(InputError, match="in that order"):
        predict(run, swapped, tmp_path / "out", progress=False)


def test_pictures_get_pictures(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for i in range(6):
        mask = np.zeros((40, 30), np.uint8)
        mask[5:20, 8 + i : 20] = 200
        for kind, values in (("t", mask // 2 + rng.integers(0, 50, mask.shape)), ("m", mask)):
            Image.fromarray(values.astype(np.uint8)).save(tmp_path / "in" / f"{i}_{kind}.png")
    cohort = open_cohort(tmp_path / "in", images="{id}_t.png", masks="{id}_m.png")
    store = prepare(cohort, tmp_path / "store", size=16, test=0.5, progress=False)
    run = finetune(store.folder, tmp_path / "run", steps=40, warmup=0, lr=5e-3, widths=SMALL, progress=False)
    files = predict(run, store.folder, tmp_path / "out", progress=False)
    for file in files:
        found, truth = (np.asarray(Image.open(f)) for f in (file, tmp_path / "in" / f"{file.stem}_m.png"))
        assert file.suffix == ".png" and found.shape == (40, 30) and set(np.unique(found)) <= {0, 200}
        assert dice(found == 200, truth == 200) > 0.8


# At a spacing


@pytest.mark.parametrize("size", [None, 32, 12], ids=["whole", "box", "a box that cuts"])
def test_at_a_spacing_what_is_written_is_what_is_scored(tmp_path, monkeypatch, size):
    cohort = awkward_cohort(tmp_path / "in", 4)
    how = {"spacing": (1.2, 1.2, 1.2), "size": size, "test": 0.5, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the smallest box cuts masks
        store = prepare(cohort, tmp_path / "store", **how)
    assert len({store.image(name).shape for name in store.cases}) == (2 if size is None else 1)
    run = finetune(store, tmp_path / "run", steps=2, patch=None if size else 8, widths=SMALL, progress=False)
    files = run.predict(store, tmp_path / "out", progress=False)
    found = segment(run.network, store, store.split("test"))
    for file in files:
        one, written = found[file.name.removesuffix(".nii.gz")], nib.load(file)
        assert np.array_equal(written.affine, nib.load(source_of(store, file)).affine)
        assert np.array_equal(np.asarray(nib.as_closest_canonical(written).dataobj), one.on_scan)
    run.predict(cohort, tmp_path / "fresh", progress=False)
    for file in files:
        assert (tmp_path / "fresh" / file.name).read_bytes() == file.read_bytes(), "no store is needed"
    rows = {(row["case"], row["class"]): row["dice"] for row in read_table(run / "scores.csv")}
    for name, one in found.items():
        for code in CODES[1:]:
            same = dice(one.on_scan == code, store.truth(name) == code)
            assert abs(rows[name, store.classes[code]] - same) < 1e-6, "the scores are those of what is written"

    perfect = {store.image(n).tobytes(): store.mask(n) for n in store.cases}

    def answer(network, image):
        mask = perfect[(image * store.unit).numpy().astype(store.settings["dtype"]).tobytes()]
        return torch.stack([torch.from_numpy(mask == code) for code in CODES]).float()

    monkeypatch.setattr(module, "class_probabilities", answer)
    for file in run.predict(store, tmp_path / "perfect", progress=False):
        truth = np.asarray(nib.load(str(source_of(store, file)).replace("_t.", "_m.")).dataobj)
        marked = np.asarray(nib.load(file).dataobj)
        if size == 12:  # nothing is marked beyond the box
            kept = store.cases[file.name.removesuffix(".nii.gz")]["beyond"]
            assert 0.05 < kept < 0.9 and ((marked > 0) & (truth > 0)).sum() > 0.9 * (marked > 0).sum() > 0
            continue
        for code in CODES[1:]:
            assert dice(marked == code, truth == code) > 0.9
            assert np.abs(middle(marked == code) - middle(truth == code)).max() < 0.25, "nothing has moved"
