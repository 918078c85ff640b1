"""An encoder of ours in nnU-Net: what is written, what does not fit, and nnU-Net 2.8.1 itself, which trains with it."""

import json
import os
import re
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
from ssl3d.downstream.nnunet import axes_in, encoder_for, export_nnunet, misfits, read_plans
from ssl3d.errors import InputError
from ssl3d.networks.checkpoints import read_checkpoint
from ssl3d.networks.encoders import as_encoder, make_encoder, nnunet_kind, nnunet_network
from ssl3d.networks.exchange import nnunet_weights, shape_for_nnunet
from ssl3d.networks.weights import save_encoder
from ssl3d.training.pretrain import pretrain

pytestmark = pytest.mark.skipif(
    find_spec("dynamic_network_architectures") is None, reason="dynamic-network-architectures is not installed"
)
GONE = object()
FULL, SHAPE = "configurations.3d_fullres", "configurations.3d_fullres.architecture.arch_kwargs"
CARD = {"task": "rotation", "steps": 4, "trained_on": ["0", "1"], "people": ["0"], "voxel_mm": [1.0, 1.0, 1.0]}


def plans_of(encoder, folder, forward=(0, 1, 2), **changed):
    """Plans of nnU-Net that fit an encoder, but for what is changed in the arguments of the network."""
    dims, kind = encoder.spatial_dims, {"resenc": "ResidualEncoderUNet", "plainunet": "PlainConvUNet"}
    how = {
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    full = {
        "spacing": [1.0] * dims,
        "patch_size": [32] * dims,
        "normalization_schemes": ["ZScoreNormalization"] * encoder.in_channels,
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind[nnunet_kind(encoder)]}",
            "arch_kwargs": shape_for_nnunet(encoder, axes_in(forward, dims)) | how | changed,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    plans = {
        "dataset_name": "Dataset001_Some",
        "plans_name": "somePlans",
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": list(forward),
        "configurations": {"3d_fullres" if dims == 3 else "2d": full},
    }
    (folder / "plans.json").write_text(json.dumps(plans))
    return plans, folder / "plans.json"


def with_value(plans, path, value):
    """Plans with another value at a place, as configurations.3d_fullres.spacing; without it where that is `GONE`."""
    plans = json.loads(json.dumps(plans))
    *above, last = path.split(".")
    part = plans
    for name in above:
        part = part[name]
    if value is GONE:
        del part[last]
    else:
        part[last] = value
    return plans


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
    axes = axes_in(forward, 3)
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
        ({"features_per_stage": [8, 16, 24]}, "channels per stage: 8, 16, 24 in the plans, 8, 16, 32 here"),
        ({"kernel_sizes": [[1, 3, 3], [3, 3, 3], 3]}, "kernels: 1x3x3, 3x3x3, 3x3x3 in the plans"),
        ({"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}, "strides: 1x1x1, 1x2x2, 2x2x2 in the plans"),
        ({"n_blocks_per_stage": [1, 3, 5]}, "blocks per stage: 1, 3, 5 in the plans, 1, 3, 4 here"),
        ({"n_conv_per_stage_decoder": 2}, "convolutions in the decoder: 2, 2 in the plans, 1, 1 here"),
        ({"conv_op": "torch.nn.Conv2d"}, "conv_op: torch.nn.modules.conv.Conv2d in the plans"),
        ({"conv_bias": False}, "conv_bias: False in the plans, True here"),
        ({"norm_op": "torch.nn.BatchNorm3d"}, "norm_op: torch.nn.modules.batchnorm.BatchNorm3d in the plans"),
        ({"norm_op_kwargs": {"eps": 1e-3, "affine": True}}, "norm_op_kwargs: eps 0.001, affine True in the plans"),
        ({"norm_op_kwargs": None}, "norm_op_kwargs: none in the plans, affine True here"),
        ({"dropout_op": "torch.nn.Dropout3d", "dropout_op_kwargs": {"p": 0.2}}, "dropout_op_kwargs: p 0.2"),
        ({"nonlin": "torch.nn.ReLU"}, "nonlin: torch.nn.modules.activation.ReLU in the plans"),
        ({"nonlin": "mine.ReLU"}, "nonlin: mine.ReLU in the plans"),
        ({"nonlin_kwargs": {"negative_slope": 0.2}}, "nonlin_kwargs: negative_slope 0.2 in the plans, none here"),
        ({"stem_channels": 4}, "stem_channels: 4 in the plans, none here"),
        ({"squeeze": 3}, "squeeze: 3 in the plans, none here"),
        ({"features_per_stage": 8, "nonlin": "torch.nn.ReLU"}, "channels per stage: 8, 8, 8 in the plans"),
    ],
)
def test_what_does_not_fit_is_said_and_its_cure_helps(changed, said, tmp_path):
    encoder = make_encoder("resenc", 3, 1, SMALL)
    encoder.card = CARD
    plans, file = plans_of(encoder, tmp_path, **changed)
    with pytest.raises(InputError, match="so nothing is exported") as e:
        export_nnunet(encoder, tmp_path / "out", file)
    assert said in str(e.value) and not (tmp_path / "out").exists()
    export_nnunet(cured(str(e.value), plans, file, encoder), tmp_path / "out", file)


def cured(said, plans, file, encoder):
    """The encoder after what an error says has been done, to the letter; the plans are changed where it says so."""
    how = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    for key, value in re.findall(r"set (\w+) to (.+?)(?=, set|, leave|\.(?: |$))", said):
        how[key] = json.loads(value)
    for key in re.findall(r"leave (\w+) out", said):
        del how[key]
    file.write_text(json.dumps(plans))
    if "encoder_for" in said:
        encoder = encoder_for(*re.findall(r"encoder_for\('(.+?)', '(.+?)'\)", said)[0])
        return disturbed(encoder)
    asked = re.findall(r"--architecture (\w+) --widths ([\d,]+), on scans of (\d) channel", said)
    for name, widths, channels in asked:
        encoder = make_encoder(name, 3, int(channels), tuple(map(int, widths.split(","))))
    return encoder


def test_another_network_channels_and_dimensions_do_not_fit(tmp_path):
    encoder = make_encoder("resenc", 3, 1, SMALL)
    _, plans = plans_of(make_encoder("plainunet", 3, 1, SMALL), tmp_path)
    with pytest.raises(InputError, match="PlainConvUNet in the plans, ResidualEncoderUNet.*--architecture plainunet"):
        export_nnunet(encoder, tmp_path / "out", plans)
    _, plans = plans_of(make_encoder("resenc", 3, 4, SMALL), tmp_path)
    with pytest.raises(InputError, match="input channels: 4 in the plans, 1 here.*on scans of 4 channel"):
        export_nnunet(encoder, tmp_path / "out", plans)
    _, plans = plans_of(make_encoder("resenc", 2, 1, SMALL), tmp_path)
    with pytest.raises(InputError, match="no configuration for images of 3 dimensions.*It has: 2d.*--slices"):
        export_nnunet(encoder, tmp_path / "out", plans)
    content, plans = plans_of(encoder, tmp_path)
    for name in ("MyNet", "mine.ResidualEncoderUNet"):
        plans.write_text(json.dumps(with_value(content, f"{FULL}.architecture.network_class_name", name)))
        with pytest.raises(InputError, match=f"network: {name} in the plans.*-pl nnUNetPlannerResEncM"):
            export_nnunet(encoder, tmp_path / "out", plans)
        with pytest.raises(InputError, match="3d_fullres is no network that ssl3d makes"):
            encoder_for(plans, "3d_fullres")
    with pytest.raises(InputError, match="nnU-Net reads its own only"):
        export_nnunet(make_encoder("unet", 3, 1, SMALL), tmp_path / "out")


def test_spacing_and_orientation_are_warned_of(tmp_path):
    encoder = make_encoder("resenc", 3, 1, SMALL)
    encoder.card = CARD | {"voxel_mm": [1.0, 1.0, 3.0]}
    plans, file = plans_of(encoder, tmp_path)
    plans["configurations"] |= {"3d_lowres": {"inherits_from": "3d_fullres", "spacing": [3.0, 1.0, 1.0]},
                                "3d_more": {"inherits_from": "3d_fullres", "batch_size": 9},
                                "3d_coarse": {"inherits_from": "3d_more", "spacing": [3.0, 2.0, 4.0]}}  # fmt: skip
    file.write_text(json.dumps(plans | {"image_reader_writer": "SimpleITKIO"}))
    with pytest.warns(UserWarning) as told:
        out = export_nnunet(encoder, tmp_path / "out", file)
    said = " ".join(str(each.message) for each in told)
    assert "voxels of 3d_fullres, 3d_more: 1 x 1 x 1 mm in the plans, 3 x 1 x 1 mm in pretraining" in said
    assert "spacing=(1, 1, 1)" in said and "NibabelIOWithReorient" in said
    assert "voxels of 3d_coarse: 3 x 2 x 4 mm in the plans" in said and "spacing=(4, 2, 3)" in said
    assert "of 3d_lowres" not in said, "its voxels are those of pretraining"
    page = (out / "README.md").read_text()
    assert "3 x 1 x 1 mm in pretraining" in page and page.count("nnUNetv2_train Dataset001_Some 3d_") == 4

    encoder.card = CARD
    plans_of(encoder, tmp_path)
    assert "None is known." in (export_nnunet(encoder, tmp_path / "more", file) / "README.md").read_text()
    encoder.card = {name: value for name, value in CARD.items() if name != "voxel_mm"}
    with pytest.warns(UserWarning, match="in pretraining is not known"):
        export_nnunet(encoder, tmp_path / "unknown", file)


def test_slices_are_compared_in_their_plane(tmp_path):
    encoder = make_encoder("plainunet", 2, 1, SMALL)
    encoder.card = CARD | {"image_dims": 3, "voxel_mm": [1.0, 2.0, 9.0]}
    plans, file = plans_of(encoder, tmp_path)
    for spacing, warned in (([2.0, 1.0], False), ([1.0, 2.0], True)):
        file.write_text(json.dumps(with_value(plans, "configurations.2d.spacing", spacing)))
        with pytest.warns(UserWarning, match="orientation") as told:
            export_nnunet(encoder, tmp_path / f"out{warned}", file)
        said = " ".join(str(each.message) for each in told)
        assert ("1 x 2 mm in the plans, 2 x 1 mm in pretraining" in said and "(2, 1, 9)" in said) == warned


def test_the_second_network_of_a_cascade_does_not_fit(tmp_path):
    """It sees the masks of the first one as further channels, and has the same arguments."""
    encoder = make_encoder("resenc", 3, 1, SMALL)
    encoder.card = CARD
    plans, file = plans_of(encoder, tmp_path)
    second = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    file.write_text(json.dumps(with_value(plans, "configurations.3d_cascade_fullres", second)))
    page = (export_nnunet(encoder, tmp_path / "out", file) / "README.md").read_text()
    assert "3d_fullres 0 -p" in page and "cascade" not in page
    file.write_text(json.dumps(with_value(plans, f"{FULL}.previous_stage", "3d_lowres")))
    with pytest.raises(InputError, match="also the masks of 3d_lowres.*Export for 3d_lowres"):
        export_nnunet(encoder, tmp_path / "more", file)


@pytest.mark.parametrize("name", ["resenc", "plainunet"])
def test_short_forms_and_earlier_plans_are_read_as_nnunet_reads_them(name, tmp_path):
    encoder = make_encoder(name, 3, 1, SMALL)
    encoder.card = CARD
    plans, file = plans_of(encoder, tmp_path)
    long, blocks = read_plans(file), "n_blocks_per_stage" if name == "resenc" else "n_conv_per_stage"
    shape = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    for key, short in (("kernel_sizes", 3), ("kernel_sizes", [3, 3, 3]), ("strides", [1, 2, [2, 2, 2]]),
                       ("n_conv_per_stage_decoder", shape["n_conv_per_stage_decoder"][0])):  # fmt: skip
        file.write_text(json.dumps(with_value(plans, f"{SHAPE}.{key}", short)))
        assert read_plans(file) == long, key
    if name == "plainunet":
        file.write_text(json.dumps(with_value(plans, f"{SHAPE}.{blocks}", 2)))
        assert read_plans(file) == long
    for key, given in (("strides", 2), ("features_per_stage", 8), (blocks, 5)):
        file.write_text(json.dumps(with_value(plans, f"{SHAPE}.{key}", given)))
        found = read_plans(file).configurations["3d_fullres"].arguments[key]
        assert found == [[2, 2, 2] if key == "strides" else given] * 3

    file.write_text(json.dumps(earlier(plans, blocks)))
    page = (export_nnunet(encoder, tmp_path / "out", file) / "README.md").read_text()
    assert "3d_fullres 0 -p" in page
    for key, wrong in (("UNet_base_num_features", GONE), ("conv_kernel_sizes", [3, 3]), ("n_conv_per_stage_encoder", 2),
                       ("unet_max_num_features", "x"), ("num_pool_per_axis", GONE)):  # fmt: skip
        file.write_text(json.dumps(with_value(earlier(plans, blocks), f"{FULL}.{key}", wrong)))
        with pytest.raises(InputError, match=f"plans.json: {FULL}.{key} is"):
            read_plans(file)


def earlier(plans, blocks):
    """Plans as nnU-Net wrote them before version 2.2."""
    full = plans["configurations"]["3d_fullres"]
    shape = full["architecture"]["arch_kwargs"]
    before = {
        "UNet_class_name": full["architecture"]["network_class_name"].rpartition(".")[2],
        "UNet_base_num_features": 8,
        "unet_max_num_features": 32,
        "n_conv_per_stage_encoder": shape[blocks],
        "n_conv_per_stage_decoder": shape["n_conv_per_stage_decoder"],
        "num_pool_per_axis": [2, 2, 2],
        "pool_op_kernel_sizes": shape["strides"],
        "conv_kernel_sizes": shape["kernel_sizes"],
    }
    rest = {key: value for key, value in full.items() if key != "architecture"}
    return with_value(plans, FULL, rest | before)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "5", "NaN", "\x00", '"x"', "[" * 9999, "1" * 9999])
def test_files_that_are_no_plans_are_refused(content, tmp_path):
    file, encoder = tmp_path / "plans.json", make_encoder("resenc", 3, 1, SMALL)
    file.write_text(content)
    with pytest.raises(InputError, match="plans.json: .*(cannot be read|its content is).*nnUNetv2_plan_experiment"):
        export_nnunet(encoder, tmp_path / "out", file)
    file.write_bytes(b"\xff\xfe\x80")
    for place in (file, tmp_path, tmp_path / "none.json", file / "below", tmp_path / ("long" * 99)):
        with pytest.raises(InputError, match="cannot be read.*nnUNetv2_plan_experiment"):
            export_nnunet(encoder, tmp_path / "out", place)
    assert not (tmp_path / "out").exists()


def test_an_index_of_a_data_set_is_no_plans(tmp_path):
    index = {"channel_names": {"0": "MRI"}, "labels": {"background": 0}, "numTraining": 1, "file_ending": ".nii.gz"}
    for content in (index, {"modality": {"0": "MRI"}, "training": [], "file_ending": ".nii.gz"}, {}):
        (tmp_path / "dataset.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"dataset.json: configurations is not there.*DATASET/nnUNetPlans.json"):
            read_plans(tmp_path / "dataset.json")


WRONG = {
    "configurations": [GONE, [], {}, 5, None, {"3d": 5}, {"": {}}],
    FULL: [None, 5, {}, []],
    f"{FULL}.inherits_from": ["nope", "3d_fullres", None, [], {}],
    f"{FULL}.spacing": [GONE, None, [], [0, 0, 0], [1, 1, 1, 1], ["a", "b", "c"], [1, 1, float("nan")],
                        [1, 1, float("inf")], [True, 1, 1], [1, 1, 10**400], "111"],
    f"{FULL}.patch_size": [GONE, None, [32, 32], 32],
    f"{FULL}.normalization_schemes": [GONE, None, [], [5], "x", {}],
    f"{FULL}.previous_stage": [5, []],
    f"{FULL}.architecture": [GONE, None, [], {}, "x"],
    f"{FULL}.architecture.network_class_name": [GONE, None, 5, "", []],
    f"{FULL}.architecture.arch_kwargs": [GONE, None, [], {}],
    f"{FULL}.architecture._kw_requires_import": [GONE, None, [], 5, ["conv_op"], [["conv_op"]], ["foo"]],
    f"{SHAPE}.n_stages": [GONE, None, 0, -1, 3.0, "3", True, 4, 10**9],
    f"{SHAPE}.features_per_stage": [GONE, None, [8, 16], [8, 16, "32"], [8, 16, 32.0], {}],
    f"{SHAPE}.kernel_sizes": [GONE, "x", None, 0, [3, 3], [[3, 3]] * 3, [[3, 3, 3]] * 4, [[3, 3, 0]] * 3],
    f"{SHAPE}.strides": [GONE, None, [[1, 1, 1]], [[[1]]] * 3],
    f"{SHAPE}.n_blocks_per_stage": [GONE, [1, 3], [1, 3, 0]],
    f"{SHAPE}.n_conv_per_stage_decoder": [GONE, [1, 1, 1], []],
    f"{SHAPE}.norm_op": [5, []],
    f"{SHAPE}.norm_op_kwargs": ["x", [1], 5],
    "transpose_forward": [GONE, None, "abc", [0, 0, 0], [0, 1], [5, 1, 0], [0.0, 1.0, 2.0], [[0], 1, 2], {}],
    "dataset_name": [GONE, None, 5, "", "a/b", "a\nb"],
    "plans_name": [GONE, None, 5, "a b; rm -rf /"],
    "image_reader_writer": [GONE, 5, None],
}  # fmt: skip


@pytest.mark.parametrize("path", WRONG)
def test_damaged_plans_are_refused_with_their_key(path, tmp_path):
    plans, file = plans_of(make_encoder("resenc", 3, 1, SMALL), tmp_path)
    for value in WRONG[path]:
        file.write_text(json.dumps(with_value(plans, path, value)))
        with pytest.raises(InputError) as e:
            read_plans(file)
        assert str(e.value).startswith(f"{file}: {path.removesuffix('.n_stages')}"), (value, str(e.value))
        assert "Give the plans that nnU-Net wrote" in str(e.value)


def test_configurations_in_a_circle_are_refused(tmp_path):
    plans, file = plans_of(make_encoder("resenc", 3, 1, SMALL), tmp_path)
    more = {"a": {"inherits_from": "b"}, "b": {"inherits_from": "c"}, "c": {"inherits_from": "a"}}
    file.write_text(json.dumps(plans | {"configurations": plans["configurations"] | more}))
    with pytest.raises(InputError, match=r"configurations.c.inherits_from is 'a'.*circle: 3d_fullres"):
        read_plans(file)
    more["c"] = {"inherits_from": "3d_fullres", "batch_size": 7}
    file.write_text(json.dumps(plans | {"configurations": plans["configurations"] | more}))
    assert read_plans(file).configurations["a"] == read_plans(file).configurations["3d_fullres"]


def test_names_are_quoted_for_a_shell(tmp_path):
    encoder = make_encoder("resenc", 3, 1, SMALL)
    encoder.card = CARD
    plans, file = plans_of(encoder, tmp_path)
    file.write_text(json.dumps(plans | {"dataset_name": "Dataset002_Some brains", "plans_name": "a; rm -rf ~"}))
    page = (export_nnunet(encoder, tmp_path / "out", file) / "README.md").read_text()
    assert "nnUNetv2_train 'Dataset002_Some brains' 3d_fullres 0 -p 'a; rm -rf ~' -pretrained_weights" in page


def test_a_place_that_is_taken_is_refused(tmp_path):
    encoder, taken = make_encoder("resenc", 3, 1, SMALL), tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    (tmp_path / "nowhere").symlink_to(tmp_path / "not there")
    for place, said in ((taken, "is not empty"), (taken / "mine.txt", "is a file"), (tmp_path / "nowhere", "is a file"),
                        (taken / "mine.txt" / "a" / "b", "is a file, and no folder")):  # fmt: skip
        with pytest.raises(InputError, match=f"{said}.*Name a new folder"):
            export_nnunet(encoder, place)
    assert [file.name for file in taken.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("forward", [(0, 1, 2), (1, 2, 0)])
def test_an_encoder_for_slabs_sees_there_what_it_sees_here(forward, tmp_path):
    """Its kernels and strides along each axis are those of the plans, whatever the order of the axes."""
    slabs = {"kernel_sizes": [[1, 3, 3], 3, 3], "strides": [1, [1, 2, 2], 2], "features_per_stage": [4, 8, 8]}
    plans, file = plans_of(make_encoder("resenc", 3, 1, SMALL), tmp_path, forward, **slabs)
    encoder, axes = disturbed(encoder_for(file, "3d_fullres")), axes_in(forward, 3)
    encoder.card = CARD
    thick = axes[0]
    assert encoder.network.kernel_sizes[0][thick] == encoder.network.strides[1][thick] == 1
    assert encoder.strides[-1][thick] == 2 and sum(encoder.strides[-1]) == 10
    network = in_nnunet(export_nnunet(encoder, tmp_path / "out", file), encoder, axes)
    ours = torch.rand(1, 1, 16, 24, 32)
    with torch.no_grad():
        theirs = network.encoder(ours.permute(0, 1, *[2 + axis for axis in axes]).contiguous())
        for wanted, found in zip(encoder(ours), theirs):
            found = found.permute(0, 1, *[2 + axes.index(axis) for axis in range(3)])
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    again, other = encoder_for(file, "3d_fullres"), encoder_for(file, "3d_fullres", seed=1)
    fresh = encoder_for(file, "3d_fullres").state_dict()
    assert all(torch.equal(weight, fresh[name]) for name, weight in again.state_dict().items())
    assert any(not torch.equal(weight, fresh[name]) for name, weight in other.state_dict().items())
    with pytest.raises(InputError, match="has no configuration '2d'. It has: 3d_fullres"):
        encoder_for(file, "2d")


def test_an_encoder_with_another_nonlinearity_fits_its_own_plans_only(tmp_path):
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from torch import nn

    like = make_encoder("plainunet", 3, 1, SMALL)
    how = {"conv_op": nn.Conv3d, "conv_bias": True, "norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"affine": True}}
    shape = shape_for_nnunet(like, (0, 1, 2))
    whole = PlainConvUNet(1, num_classes=2, nonlin=nn.ReLU, **how, **shape)
    own = as_encoder(whole.encoder, torch.rand(1, 1, 16, 8, 8))
    own.card = CARD
    _, file = plans_of(like, tmp_path, nonlin="torch.nn.ReLU", nonlin_kwargs=None)
    page = (export_nnunet(own, tmp_path / "out", file) / "README.md").read_text()
    assert "- nonlin: torch.nn.modules.activation.ReLU\n" in page
    _, file = plans_of(like, tmp_path)
    with pytest.raises(InputError, match="LeakyReLU in the plans, .*ReLU here. Pretrain with --architecture plainunet"):
        export_nnunet(own, tmp_path / "more", file)


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


TRANSLATES = '''
import json, sys
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
print(json.dumps(PlansManager(sys.argv[1]).get_configuration("3d_fullres").configuration["architecture"]))
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
@pytest.mark.parametrize("name", ["resenc", "plainunet"])
def test_nnunet_translates_earlier_plans_as_we_do(nnunet_python, name, tmp_path):
    encoder = make_encoder(name, 3, 1, SMALL)
    plans, file = plans_of(encoder, tmp_path)
    file.write_text(json.dumps(earlier(plans, "n_blocks_per_stage" if name == "resenc" else "n_conv_per_stage")))
    said = subprocess.run([nnunet_python, "-c", TRANSLATES, file], check=True, capture_output=True, text=True).stdout
    theirs = with_value(plans, f"{FULL}.architecture", json.loads(said.splitlines()[-1]))
    ours = misfits(encoder, read_plans(file), "3d_fullres")
    file.write_text(json.dumps(theirs))
    assert ours == misfits(encoder, read_plans(file), "3d_fullres") == []


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
