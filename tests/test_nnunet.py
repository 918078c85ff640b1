"""An encoder of ours in nnU-Net: what is written, what does not fit, and nnU-Net 2.8.1 itself, which trains with it."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import SMALL

from ssl3d.data.prepare import prepare
from ssl3d.data.scans import orient, read_scan
from ssl3d.downstream.finetune import finetune, load_network
from ssl3d.downstream.nnunet import axes_in, export_nnunet
from ssl3d.errors import InputError
from ssl3d.networks.checkpoints import read_checkpoint
from ssl3d.networks.encoders import make_encoder, nnunet_kind, nnunet_network
from ssl3d.networks.exchange import nnunet_weights, shape_for_nnunet
from ssl3d.networks.weights import save_encoder
from ssl3d.training.pretrain import pretrain

pytestmark = pytest.mark.skipif(
    find_spec("dynamic_network_architectures") is None, reason="dynamic-network-architectures is not installed"
)
CARD = {"task": "rotation", "steps": 4, "trained_on": ["0", "1"], "people": ["0"], "voxel_mm": [1.0, 1.0, 1.0]}


def plans_of(encoder, folder, forward=(0, 1, 2), **changed):
    """Plans of nnU-Net that fit an encoder, but for what is changed in the arguments of the network."""
    shape = shape_for_nnunet(encoder, axes_in({"transpose_forward": forward}, encoder.spatial_dims)) | changed
    kind = {"resenc": "ResidualEncoderUNet", "plainunet": "PlainConvUNet"}[nnunet_kind(encoder)]
    full = {
        "spacing": [1.0] * encoder.spatial_dims,
        "normalization_schemes": ["ZScoreNormalization"] * encoder.in_channels,
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
            "arch_kwargs": shape,
        },
    }
    plans = {
        "dataset_name": "Dataset001_Some",
        "plans_name": "somePlans",
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": list(forward),
        "configurations": {"3d_fullres" if encoder.spatial_dims == 3 else "2d": full},
    }
    (folder / "plans.json").write_text(json.dumps(plans))
    return plans, folder / "plans.json"


def disturbed(encoder, seed=0):
    """An encoder none of whose weights is as it was made: nnU-Net begins some at zero."""
    generator = torch.Generator().manual_seed(seed)
    for weight in encoder.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return encoder.eval()


def in_nnunet(folder, encoder, axes, n_classes=5):
    """nnU-Net's network for other classes with the exported weights, read as nnU-Net reads them."""
    network = nnunet_network(nnunet_kind(encoder), encoder.in_channels, n_classes, shape_for_nnunet(encoder, axes))
    given = torch.load(folder / "nnunet_weights.pth", weights_only=True)["network_weights"]
    for name, weight in network.state_dict().items():  # as nnU-Net's `load_pretrained_weights` asserts it
        assert ".seg_layers." in name or given[name].shape == weight.shape, name
    network.load_state_dict(given, strict=False)
    return network.eval()


@pytest.mark.parametrize("forward", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
@pytest.mark.parametrize("name", ["resenc", "plainunet"])
def test_maps_of_an_asymmetric_scan_are_the_same_there(name, forward, tmp_path):
    """A file whose axes are P, S, R and of three lengths, read by ours and by SimpleITK as nnU-Net's reader does."""
    sitk = pytest.importorskip("SimpleITK")
    file = tmp_path / "scan.nii.gz"
    affine = np.array([[0, 0, 3.0, 5], [-1, 0, 0, 9], [0, 2, 0, -4], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((16, 24, 12), dtype=np.float32), affine), file)
    ours = orient(read_scan(file)).as_tensor()[None]
    theirs = torch.from_numpy(sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(file)), "RAS")))[None, None]
    theirs = theirs.permute(0, 1, *[2 + axis for axis in forward]).contiguous()

    encoder = disturbed(make_encoder(name, 3, 1, SMALL))
    _, plans = plans_of(encoder, tmp_path, forward)
    save_encoder(encoder, tmp_path, CARD)
    axes = axes_in({"transpose_forward": forward}, 3)
    network = in_nnunet(export_nnunet(tmp_path, tmp_path / "out", plans), encoder, axes)
    back = [2 + axes.index(axis) for axis in range(3)]
    with torch.no_grad():
        for wanted, found in zip(encoder(ours), network.encoder(theirs)):
            torch.testing.assert_close(found.permute(0, 1, *back), wanted, rtol=1e-4, atol=1e-4)
        wrong = network.encoder(theirs.transpose(2, 4))[1]
    assert wrong.shape != wanted.shape or not torch.allclose(wrong, wanted, atol=0.1)


def test_pictures_keep_their_axes(tmp_path):
    encoder = disturbed(make_encoder("plainunet", 2, 3, SMALL))
    _, plans = plans_of(encoder, tmp_path)
    network = in_nnunet(export_nnunet(encoder, tmp_path / "out", plans), encoder, (0, 1))
    x = torch.rand(1, 3, 32, 16)
    with torch.no_grad():
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(encoder(x), network.encoder(x)))


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"n_stages": 4}, "number of stages: 4 in the plans, 3 here"),
        ({"features_per_stage": [32, 64, 128]}, "channels per stage: 32, 64, 128 in the plans, 8, 16, 32 here"),
        ({"kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]]}, "kernels: 1x3x3, 3x3x3, 3x3x3 in the plans"),
        ({"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}, "strides: 1x1x1, 1x2x2, 2x2x2 in the plans"),
        ({"n_blocks_per_stage": [1, 3, 5]}, "blocks per stage: 1, 3, 5 in the plans, 1, 3, 4 here"),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_is_written(changed, said, tmp_path):
    encoder = make_encoder("resenc", 3, 1, SMALL)
    _, plans = plans_of(encoder, tmp_path, **changed)
    with pytest.raises(InputError, match="so nothing is exported") as e:
        export_nnunet(encoder, tmp_path / "out", plans)
    assert said in str(e.value) and not (tmp_path / "out").exists()
    cure = "wrap its encoder by ssl3d.as_encoder" if {"kernel_sizes", "strides"} & set(changed) else "--architecture"
    assert cure in str(e.value)


def test_another_network_channels_and_dimensions_do_not_fit(tmp_path):
    encoder = make_encoder("resenc", 3, 1, SMALL)
    _, plans = plans_of(make_encoder("plainunet", 3, 1, SMALL), tmp_path)
    with pytest.raises(InputError, match="PlainConvUNet in the plans, ResidualEncoderUNet here"):
        export_nnunet(encoder, tmp_path / "out", plans)
    _, plans = plans_of(make_encoder("resenc", 3, 4, SMALL), tmp_path)
    with pytest.raises(InputError, match="input channels: 4 in the plans, 1 here"):
        export_nnunet(encoder, tmp_path / "out", plans)
    _, plans = plans_of(make_encoder("resenc", 2, 1, SMALL), tmp_path)
    with pytest.raises(InputError, match="no configuration for images of 3 dimensions"):
        export_nnunet(encoder, tmp_path / "out", plans)
    with pytest.raises(InputError, match="nnU-Net reads its own only"):
        export_nnunet(make_encoder("unet", 3, 1, SMALL), tmp_path / "out")


def test_spacing_and_orientation_are_warned_of(tmp_path):
    encoder = make_encoder("resenc", 3, 1, SMALL)
    encoder.card = CARD | {"voxel_mm": [1.0, 1.0, 3.0]}
    plans, file = plans_of(encoder, tmp_path)
    file.write_text(json.dumps(plans | {"image_reader_writer": "SimpleITKIO"}))
    with pytest.warns(UserWarning) as told:
        out = export_nnunet(encoder, tmp_path / "out", file)
    said = " ".join(str(each.message) for each in told)
    assert "1 x 1 x 1 mm in the plans, 3 x 1 x 1 mm in pretraining" in said and "NibabelIOWithReorient" in said
    assert "3 x 1 x 1 mm in pretraining" in (out / "README.md").read_text()
    encoder.card = CARD
    plans_of(encoder, tmp_path)
    assert "None is known." in (export_nnunet(encoder, tmp_path / "more", file) / "README.md").read_text()


@pytest.mark.parametrize("content, said", [("{", "holds no plans"), ("[1]", "holds no plans"), ("{}", "holds no plans"),
                                           ('{"configurations": {"2d": {}}, "transpose_forward": [0, 1, 2]}',
                                            "an earlier nnU-Net")])  # fmt: skip
def test_files_that_are_no_plans_are_refused(content, said, tmp_path):
    (tmp_path / "plans.json").write_text(content)
    with pytest.raises(InputError, match=said):
        export_nnunet(make_encoder("resenc", 3, 1, SMALL), tmp_path / "out", tmp_path / "plans.json")
    with pytest.raises(InputError, match="is no file"):
        export_nnunet(make_encoder("resenc", 3, 1, SMALL), tmp_path / "out", tmp_path / "none.json")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        export_nnunet(make_encoder("resenc", 3, 1, SMALL), tmp_path / "taken")


def test_a_trained_decoder_goes_along(store, tmp_path):
    how = {"architecture": "resenc", "widths": SMALL, "steps": 2, "progress": False}
    run = finetune(store, tmp_path / "run", upward="nnunet", **how)
    out = export_nnunet(run, tmp_path / "out")
    network, ours = in_nnunet(out, run.encoder, (2, 1, 0), 4), load_network(run).eval()
    network.decoder.seg_layers[-1].load_state_dict(ours.decoder.out.state_dict())
    x = torch.rand(1, run.encoder.in_channels, 16, 16, 16)
    with torch.no_grad():
        found = network(x.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)
        torch.testing.assert_close(found, ours(x), rtol=1e-3, atol=1e-4)
    assert "Its decoder is trained, too" in (out / "README.md").read_text()
    assert "nnUNetv2_train 1 3d_fullres 0 -p nnUNetResEncUNetMPlans" in (out / "README.md").read_text()


# --------------------------------------------------------------------------------------- nnU-Net itself

TRAINER = '''
from os.path import join

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class TrainerOfOneEpoch(nnUNetTrainer):
    """One short epoch; the checkpoint before its first step is kept."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cpu")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 3, 1
        self.configuration_manager.configuration["batch_size"] = 2

    def on_train_start(self):
        super().on_train_start()
        self.save_checkpoint(join(self.output_folder, "before.pth"))
'''
READS = '''
import sys, numpy as np
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
np.save(sys.argv[2], NibabelIOWithReorient().read_images((sys.argv[1],))[0])
'''


@pytest.fixture(scope="module")
def nnunet_python() -> Path:
    """The Python of a virtual environment that has nnU-Net 2.8.1: $SSL3D_NNUNET, or this one."""
    python = Path(os.environ.get("SSL3D_NNUNET", ""), "bin", "python") if "SSL3D_NNUNET" in os.environ else None
    python = python or Path(sys.executable)
    code = "import importlib.metadata as m, nnunetv2.run.run_training; print(m.version('nnunetv2'))"
    asked = subprocess.run([python, "-c", code], capture_output=True, text=True) if python.exists() else None
    found = asked.stdout.split()[-1:] if asked and asked.returncode == 0 else []
    if found != ["2.8.1"]:
        pytest.skip(f"{python} has no nnunetv2 2.8.1: python -m venv VENV; VENV/bin/pip install nnunetv2==2.8.1; and "
                    "set SSL3D_NNUNET=VENV")
    return python


def eight_cases(source: Path, raw: Path) -> Path:
    """Eight scans of the hippocampus in nnU-Net's layout; every second file with its axes turned and mirrored."""
    data = raw / "Dataset004_Hippocampus"
    names = sorted(file.name for file in (source / "imagesTr").glob("*.nii.gz"))[:8]
    for kind, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (data / kind).mkdir(parents=True)
        for number, name in enumerate(names):
            image = nib.load(source / kind / name)
            if number % 2:
                image = image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
            nib.save(image, data / kind / name.replace(".nii.gz", ending))
    about = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "Anterior": 1, "Posterior": 2},
             "numTraining": 8, "file_ending": ".nii.gz", "overwrite_image_reader_writer": "NibabelIOWithReorient"}
    (data / "dataset.json").write_text(json.dumps(about))
    return data


@pytest.mark.long
def test_nnunet_trains_from_a_file_of_ours(nnunet_python, real_data, tmp_path):
    raw, work = tmp_path / "raw", {name: tmp_path / name for name in ("preprocessed", "results", "trainers")}
    data = eight_cases(real_data / "Task04_Hippocampus", raw)
    work["trainers"].mkdir()
    (work["trainers"] / "TrainerOfOneEpoch.py").write_text(TRAINER)
    env = os.environ | {
        "nnUNet_raw": str(raw),
        "nnUNet_preprocessed": str(work["preprocessed"]),
        "nnUNet_results": str(work["results"]),
        "nnUNet_extTrainer": str(work["trainers"]),
        "nnUNet_def_n_proc": "1",
        "nnUNet_n_proc_DA": "1",
    }
    env = {name: value for name, value in env.items() if name != "PYTHONPATH"}

    def nnunet(command, *args, cwd=tmp_path):
        said = subprocess.run([nnunet_python, nnunet_python.parent / command, *map(str, args)], cwd=cwd, env=env,
                              capture_output=True, text=True)  # fmt: skip
        assert said.returncode == 0, said.stdout[-3000:] + said.stderr[-3000:]
        return said.stdout

    nnunet("nnUNetv2_plan_and_preprocess", "-d", "4", "-pl", "nnUNetPlannerResEncM", "-c", "3d_fullres",
           "-np", "1", "-npfp", "1", "--verify_dataset_integrity")  # fmt: skip
    plans = work["preprocessed"] / data.name / "nnUNetResEncUNetMPlans.json"

    store = prepare(data, tmp_path / "store", size=32, progress=False, layout="nnunet")
    widths = json.loads(plans.read_text())["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    run = pretrain("rotation", store, tmp_path / "run", architecture="resenc", steps=2, batch_size=2, progress=False,
                   widths=tuple(widths["features_per_stage"]))  # fmt: skip
    out = export_nnunet(run, tmp_path / "out", plans)
    command = next(line for line in (out / "README.md").read_text().splitlines() if line.startswith("nnUNetv2_train"))
    told = nnunet(*command.split(), "-tr", "TrainerOfOneEpoch", "-device", "cpu", cwd=out)
    assert "Loading pretrained weights from file" in told

    fold = next(work["results"].glob("*/TrainerOfOneEpoch__*/fold_0"))
    # nnU-Net's checkpoints hold more than weights; these are of our own making
    before, after = (torch.load(fold / name, weights_only=False, map_location="cpu")["network_weights"]
                     for name in ("before.pth", "checkpoint_final.pth"))  # fmt: skip
    ours = {f"encoder.{name.removeprefix('network.')}": weight for name, weight in run.encoder.state_dict().items()}
    encoder = [name for name in before if name.startswith("encoder.")]
    assert len(ours) > 100 and set(ours) < set(encoder)
    for name, weight in ours.items():
        assert torch.equal(before[name], weight.permute(0, 1, 4, 3, 2) if weight.ndim == 5 else weight), name
    assert all(torch.equal(before[name], weight) for name, weight in nnunet_weights(run.encoder, (2, 1, 0)).items())
    assert any(not torch.equal(before[name], after[name]) for name in ours), "and it has trained"
    assert any(not torch.equal(weight, weight.transpose(2, 4)) for weight in ours.values() if weight.ndim == 5)
    assert (fold / "validation" / "summary.json").is_file()

    # and back: nnU-Net's checkpoint is read as an encoder, without executing anything in it
    again = read_checkpoint(fold / "before.pth", make_encoder("resenc", 3, 1, run.encoder.channels), transpose=True)
    assert again.imported.covered == 1 and again.imported.prefix == "network_weights.encoder."
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), run.encoder.parameters()))

    # nnU-Net's own reader gives our arrays, transposed, of a file that is turned and mirrored
    file = sorted((data / "imagesTr").iterdir())[1]
    assert nib.aff2axcodes(nib.load(file).affine) != ("R", "A", "S")
    subprocess.run([nnunet_python, "-c", READS, file, tmp_path / "read.npy"], check=True, env=env)
    theirs = torch.from_numpy(np.load(tmp_path / "read.npy")).float()
    assert torch.equal(orient(read_scan(file)).as_tensor(), theirs.permute(0, 3, 2, 1))
    shutil.rmtree(work["results"])
