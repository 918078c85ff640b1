"""What leaves the house: MONAI bundles and hub folders say the same as the run, and name nobody."""

import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
import types
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from conftest import SMALL, python, write_nifti
from safetensors.torch import load_file, save_file
from test_predict import oblique, phantom

import ssl3d
from ssl3d.cli import main
from ssl3d.data.prepare import prepare
from ssl3d.data.splits import person_key
from ssl3d.data.store import Store
from ssl3d.data.voxels import fingerprint
from ssl3d.downstream.export import _probe_store, as_dynunet, export, export_monai, transforms_script
from ssl3d.downstream.finetune import finetune
from ssl3d.errors import InputError
from ssl3d.networks import hub as shelf
from ssl3d.networks.cards import lineage_of, met, read_card
from ssl3d.networks.checkpoints import read_checkpoint
from ssl3d.networks.encoders import make_encoder
from ssl3d.networks.unet import Segmenter
from ssl3d.networks.weights import load_encoder
from ssl3d.training.pretrain import pretrain

WARD, HOUSE = "Ward-Zebra-7", "StKilda-Hospital"  # folders that nobody outside may read
FAST = {"progress": False, "accelerator": "cpu"}


def has(*modules):
    return all(importlib.util.find_spec(module) for module in modules)


def patient(i):
    return f"MRN77419{i:02d}"


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    """Twelve scans of twelve people with telling names: two ellipsoids, of another brightness in each."""
    folder = tmp_path_factory.mktemp(HOUSE) / WARD
    image, mask = phantom((30, 26, 22))
    rng = np.random.default_rng(0)
    lines = ["image,mask,subject,age,grade"]
    for i in range(12):
        (folder / patient(i)).mkdir(parents=True)
        affine = oblique("RAS", (1.0, 1.2, 1.5))
        noisy = (0.8 + i / 20) * image + 5 * rng.random(image.shape)
        write_nifti(folder / patient(i) / f"DOE_JANE_{i}_t1.nii.gz", noisy.astype(np.float32), affine)
        write_nifti(folder / patient(i) / f"DOE_JANE_{i}_seg.nii.gz", mask, affine)
        files = ",".join(f"{patient(i)}/DOE_JANE_{i}_{kind}.nii.gz" for kind in ("t1", "seg"))
        lines.append(f"{files},{patient(i)},{40 + i},{i % 2}")
    (folder / "cases.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def store(ward, tmp_path_factory):
    return prepare(ward / "cases.csv", tmp_path_factory.mktemp("stores") / "phantoms", size=24, progress=False)


@pytest.fixture(scope="module")
def pretrained(store, tmp_path_factory):
    return pretrain("rotation", store, tmp_path_factory.mktemp("runs") / "rotation", steps=4, widths=SMALL, **FAST)


@pytest.fixture(scope="module")
def few(store, pretrained, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "few"
    return finetune(store, out, encoder=pretrained, steps=60, lr=5e-3, augment="none", **FAST)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """An anisotropic, oblique scan of somebody new, stored with its first axis to the back."""
    image, _ = phantom((44, 20, 60))
    folder = tmp_path_factory.mktemp("new")
    return write_nifti(folder / "new.nii.gz", (image + 3).astype(np.float32), oblique("PSR", (0.8, 3.0, 0.7)))


def configured(bundle, scans, out, monkeypatch):
    """The configuration of a bundle, its steps made; as `monai.bundle run` makes them, but without its two packages."""
    from monai.bundle import ConfigParser

    monkeypatch.syspath_prepend(str(bundle))
    for name in ("scripts", "scripts.transforms"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    parser = ConfigParser()
    parser.read_config(bundle / "configs/inference.json")
    parser.update({"bundle_root": str(bundle), "dataset_dir": str(scans), "output_dir": str(out)})
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(bundle / "models/model.pt", weights_only=True))
    return parser, network


def masks_of(run, scan, tmp_path, monkeypatch, image=None):
    """What a run marks in a scan, and what its bundle does; the bundle may be shown an image that is prepared."""
    run.predict(scan, tmp_path / "ours", progress=False)
    if not (tmp_path / "bundle").exists():
        export_monai(run, tmp_path / "bundle")
    parser, network = configured(tmp_path / "bundle", scan.parent, tmp_path / "theirs", monkeypatch)
    item = parser.get_parsed_content("preprocessing")({"image": str(scan)})
    if image is not None:
        item["image"].copy_(image)
    with torch.no_grad():
        item["pred"] = parser.get_parsed_content("inferer")(item["image"][None], network)[0]
    parser.get_parsed_content("postprocessing")(item)
    ours, theirs = nib.load(tmp_path / "ours/new.nii.gz"), nib.load(tmp_path / "theirs/new_seg.nii.gz")
    assert np.allclose(ours.affine, theirs.affine, atol=1e-4) and theirs.get_data_dtype() == np.uint8
    return np.asarray(ours.dataobj), np.asarray(theirs.dataobj)


def dice(a, b, code):
    return 2 * ((a == code) & (b == code)).sum() / ((a == code).sum() + (b == code).sum())


@pytest.mark.quick
@pytest.mark.parametrize("architecture", ["unet", "dynunet", "dynunet-basic"])
def test_the_network_is_monais(architecture):
    network = Segmenter(make_encoder(architecture, 3, 2, SMALL, seed=1), 3).eval()
    image = torch.rand(1, 2, 16, 16, 16)
    with torch.no_grad():
        assert torch.allclose(as_dynunet(network)(image), network(image), atol=1e-5)


def test_a_bundle_marks_what_the_run_marks(few, scan, tmp_path, monkeypatch):
    ours, theirs = masks_of(few, scan, tmp_path, monkeypatch)
    assert {*np.unique(ours)} == {0, 1, 4}, "the codes of the training masks"
    scores = [dice(ours, theirs, code) for code in (1, 4)]
    assert np.mean(scores) >= 0.99 and min(scores) >= 0.98, scores
    # what remains comes from how MONAI blurs a scan that shrinks, and from float16: of the image that the run sees, the
    # same steps after it make the same mask, voxel for voxel
    ours, theirs = masks_of(few, scan, tmp_path, monkeypatch, image=few.prepare(scan))
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("axes", ["PIR", "ASL", "SAR", "ILP"])
def test_axes_in_another_order_are_no_trouble(few, axes, tmp_path, monkeypatch):
    """Upright scans in sagittal or coronal order: their affines have nothing but zeros on the diagonal."""
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    for i, letter in enumerate(axes):
        row = next(k for k, ends in enumerate(("LR", "PA", "IS")) if letter in ends)
        affine[row, i] = 2 if letter in "RAS" else -2
    image, _ = phantom((24, 26, 28))
    (tmp_path / "scans").mkdir()
    scan = write_nifti(tmp_path / "scans" / "new.nii.gz", image.astype(np.float32), affine)
    ours, theirs = masks_of(few, scan, tmp_path, monkeypatch)
    assert ours.shape == theirs.shape == (24, 26, 28) and dice(ours > 0, theirs > 0, True) >= 0.98


@pytest.mark.parametrize("how, trained", [
    ({"spacing": (1.5, 1.5, 1.5), "size": 24}, {}),
    ({"spacing": (1.5, 1.5, 1.5)}, {"patch": 16}),
    ({"size": 24, "percentiles": (1.0, 99.0)}, {}),
    ({"size": 24, "window": (0.0, 120.0)}, {}),
])  # fmt: skip
def test_other_preparations_say_the_same(ward, scan, tmp_path, monkeypatch, how, trained):
    store = prepare(ward / "cases.csv", tmp_path / "store", progress=False, **how)
    run = finetune(store, tmp_path / "run", steps=30, lr=5e-3, widths=SMALL, augment="none", **trained, **FAST)
    ours, theirs = masks_of(run, scan, tmp_path, monkeypatch)
    assert ours.any() and dice(ours > 0, theirs > 0, True) >= 0.99


def kinds(**names):
    """Entries of a schema by their kind."""
    return {name: {"type": kind} for kind, many in names.items() for name in many.split()}


# what MONAI's schema of 25 July 2024 asks for; the schema itself is behind a network, and was compared once by hand
TENSOR = {"type": "object", "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
          "properties": kinds(string="type format dtype", integer="num_channels", boolean="is_patch_data",
                              object="channel_def")
          | {"spatial_shape": {"type": "array", "items": {"type": ["string", "integer"]}},
             "value_range": {"type": "array", "items": {"type": "number"}}}}
TENSORS = {"type": "object", "minProperties": 1, "additionalProperties": TENSOR}
TEXTS = "schema version monai_version pytorch_version numpy_version task description authors copyright"
ASKED = {"type": "object", "required": [*TEXTS.split(), "required_packages_version", "network_data_format"],
         "properties": kinds(string=TEXTS + " data_source data_type image_classes label_classes pred_classes "
                             "intended_use", object="changelog required_packages_version eval_metrics",
                             array="references")
         | {"network_data_format": {"required": ["inputs", "outputs"], "type": "object",
                                    "properties": {"inputs": TENSORS, "outputs": TENSORS}}}}
ZOO = {"changelog", "data_source", "data_type", "image_classes", "label_classes", "pred_classes", "eval_metrics",
       "intended_use", "references"}  # what bundles of the model zoo have beyond what the schema asks for


@pytest.mark.skipif(not has("jsonschema"), reason="jsonschema is not installed")
def test_metadata_have_what_bundles_of_the_model_zoo_have(few, tmp_path):
    import jsonschema

    bundle = few.export("monai", tmp_path / "bundle", licence="CC BY 4.0", data="Two ellipsoids.")
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    jsonschema.validate(metadata, ASKED)
    for broken in ({"changelog": "none"}, {"network_data_format": {"inputs": {}, "outputs": {}}}, {"version": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(metadata | broken, ASKED)
    assert {*metadata} >= ZOO and metadata["version"] in metadata["changelog"]
    assert metadata["schema"].startswith("https://github.com/Project-MONAI/MONAI-extra-test-data/")
    assert 0 <= metadata["eval_metrics"]["dice"] <= 1 and metadata["copyright"] == "cc-by-4.0"
    assert "training by rotation, 4 steps" in metadata["description"], "the encoder had been trained before"
    assert (bundle / "docs/license.txt").read_text().startswith("cc-by-4.0\n")


@pytest.mark.skipif(not has("fire", "ignite", "jsonschema"), reason="fire and pytorch-ignite are not installed")
def test_monais_own_command_runs_a_bundle(few, scan, tmp_path):
    few.predict(scan, tmp_path / "ours", progress=False)
    bundle = few.export("monai", tmp_path / "bundle")
    (tmp_path / "schema.json").write_text(json.dumps(ASKED))

    def monai(*words):
        said = subprocess.run([sys.executable, "-m", "monai.bundle", *map(str, words)], cwd=bundle, text=True,
                              capture_output=True, env={"PATH": "", "OMP_NUM_THREADS": "1"})
        assert said.returncode == 0, said.stderr[-2000:]
        return said.stdout + said.stderr

    told = monai("verify_metadata", "--meta_file", "configs/metadata.json", "--filepath", tmp_path / "schema.json")
    assert "metadata is verified with no error" in told
    monai("verify_net_in_out", "--net_id", "network_def", "--config_file", "configs/inference.json", "--meta_file",
          "configs/metadata.json", "--device", "cpu")
    monai("run", "--config_file", "configs/inference.json", "--bundle_root", ".", "--dataset_dir", scan.parent,
          "--output_dir", tmp_path / "theirs")
    files = (tmp_path / "ours/new.nii.gz", tmp_path / "theirs/new_seg.nii.gz")
    ours, theirs = (np.asarray(nib.load(file).dataobj) for file in files)
    assert np.mean([dice(ours, theirs, code) for code in (1, 4)]) >= 0.99


@pytest.mark.quick
def test_the_script_of_a_bundle_needs_no_ssl3d():
    lines = [line for line in transforms_script().splitlines() if line.startswith(("import ", "from "))]
    assert lines and not [line for line in lines if "ssl3d" in line]


def exports(run, folder):
    """All that leaves of a run, each form in its folder."""
    made = [run.export("hub", folder / "hub", licence="cc-by-4.0", data="Two ellipsoids.")]
    if run.settings["command"] == "finetune":
        made.append(run.export("monai", folder / "monai"))
    if run.settings["architecture"] == "plainunet":
        made.append(run.export("nnunet", folder / "nnunet"))
    return made


def names_nobody(runs, store, ward, folder):
    """Look for every name, path and hash of the house in every byte of what leaves."""
    words = {WARD, HOUSE, "DOE_JANE", "MRN77", "cases.csv", str(folder), str(ward.parent), store.folder.name,
             store.folder.parent.name, *store.cases, *store.subjects, store.hash[:16]}
    keys = {person_key(patient(i)) for i in range(12)}
    for case in store.cases.values():
        keys |= {case["fingerprint"], case["mask_fingerprint"], *case["arrays"].values()}
        keys |= {*case["voxel_digests"], *case["signatures"], *case["pieces"]} - {""}
    for run in runs:
        made = exports(run, folder / run.name)
        files = [file for folder in made for file in folder.rglob("*") if file.is_file()]
        assert {file.name for file in files} >= {"config.json", "README.md", "model.safetensors"}
        for file in files:
            content = file.read_bytes().lower()
            found = [word for word in words | keys if word.lower().encode() in content]
            assert not found, (file, found)
            assert not [word for word in words if word.lower() in str(file.relative_to(folder)).lower()]


@pytest.fixture(scope="module")
def adopted(store, ward, tmp_path_factory):
    """A run that began with a checkpoint of somebody else, which lies beside the patients under the name of one."""
    file = ward / f"DOE_JANE_{patient(0)}.pt"
    torch.save(make_encoder("unet", 3, 1, SMALL, seed=7).state_dict(), file)
    given = read_checkpoint(file, make_encoder("unet", 3, 1, SMALL))
    middle = pretrain("rotation", store, tmp_path_factory.mktemp("runs") / "m", encoder=given, steps=1, **FAST)
    return finetune(store, tmp_path_factory.mktemp("runs") / "a", encoder=middle, steps=1, augment="none", **FAST)


def test_nothing_that_leaves_names_anybody(store, pretrained, few, adopted, ward, tmp_path):
    names_nobody([pretrained, few, adopted], store, ward, tmp_path)


def test_the_whole_lineage_is_named(pretrained, few, adopted, tmp_path):
    page, lineage = {}, {}
    for name, run in (("first", pretrained), ("second", few), ("adopted", adopted)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            hub = run.export("hub", tmp_path / name, licence="mit")
        page[name], lineage[name] = (hub / "README.md").read_text(), read_card(hub)["lineage"]
        said = "\n".join(str(each.message) for each in caught)
        assert ("began with weights from elsewhere" in said) == (name == "adopted"), said
    assert "It began with random weights." in page["first"] and lineage["first"] == []
    assert "1. training by rotation, 4 steps, " in page["second"] and "2. " not in page["second"]
    assert [step["task"] for step in lineage["adopted"]] == ["imported", "rotation"]
    assert "1. a checkpoint of a third party (hash " in page["adopted"] and "licence: unknown" in page["adopted"]
    assert "2. training by rotation, 1 steps" in page["adopted"]
    with pytest.warns(UserWarning, match="third party .*Check that you may hand them on at all"):
        bundle = adopted.export("monai", tmp_path / "bundle")
    assert "a checkpoint of a third party" in (bundle / "docs/README.md").read_text()
    shared = lineage_of(read_card(tmp_path / "second"))[-1]
    assert shared["licence"] == "mit" and shared["shared"] and shared["task"] == "segmentation"


@pytest.mark.parametrize("goal", ["regression", "classification"])
def test_goals_about_whole_images_go_to_the_hub_and_nowhere_else(store, tmp_path, goal, capsys):
    run = finetune(store, tmp_path / "run", goal=goal, steps=1, widths=SMALL, architecture="unet", **FAST)
    main(["export", str(run), "--to", "hub", "--out", str(tmp_path / "hub"), "--licence", "MIT"])
    page = (tmp_path / "hub/README.md").read_text()
    assert f"| fine-tuned network, test people | {run.settings['metric']} | " in page and " cases |" in page
    assert load_encoder(tmp_path / "hub").card["task"] == goal
    for to, said in (("monai", f"its goal is {goal}"), ("nnunet", "resenc")):
        with pytest.raises(SystemExit):
            main(["export", str(run), "--to", to, "--out", str(tmp_path / to)])
        assert said in capsys.readouterr().err and not (tmp_path / to).exists()


def test_the_search_would_find_a_name(pretrained, ward, store):
    run = (pretrained / "encoder.json").read_text()
    assert WARD in run and person_key(patient(0)) in run, "inside the house both are there"


def test_a_hub_folder_loads_where_nothing_is_unpickled_and_nothing_fetched(pretrained, tmp_path):
    hub = pretrained.export("hub", tmp_path / "hub", licence="mit")
    torch.manual_seed(0)
    images = torch.rand(1, 1, 24, 24, 24)
    with torch.no_grad():
        maps = pretrained.encoder.eval()(images)
    np.savez(tmp_path / "known.npz", images=images, **{f"map{k}": each for k, each in enumerate(maps)})
    code = (
        "import os, pickle, socket, sys\n"
        "os.environ['HF_HUB_OFFLINE'] = '1'\n"
        "import numpy as np, torch, ssl3d, ssl3d.networks.weights\n"
        "def never(*a, **k): raise AssertionError('unpickled, or fetched')\n"
        "torch.load = pickle.load = pickle.loads = pickle.Unpickler = never\n"
        "socket.socket.connect = socket.create_connection = never\n"
        "encoder = ssl3d.load_encoder(sys.argv[1]).eval()\n"
        "known = np.load(sys.argv[2], allow_pickle=False)\n"
        "with torch.no_grad():\n"
        "    maps = encoder(torch.from_numpy(known['images']))\n"
        "assert all(np.array_equal(m, known[f'map{k}']) for k, m in enumerate(maps))\n"
        "print(encoder.card['task'], len(maps))\n"
    )
    assert python(code, hub, tmp_path / "known.npz").stdout.split() == ["rotation", "3"]


def test_the_leak_check_knows_people_through_their_seals(store, pretrained, ward, tmp_path):
    hub = pretrained.export("hub", tmp_path / "hub", licence="mit")
    trained = {store.cases[name]["subject"] for name in store.split("train")}
    other = next(split for split in (prepare(ward / "cases.csv", tmp_path / f"split {seed}", size=24, seed=seed,
                                             progress=False) for seed in range(1, 9))
                 if trained & {split.cases[name]["subject"] for name in split.split("test")})
    tested = [other.cases[name] for name in other.split("test")]
    known = [case for case in tested if case["subject"] in trained]
    with pytest.raises(InputError, match=rf"pretrained on {len(known)} image\(s\).*'{known[0]['id']}'"):
        finetune(other, tmp_path / "leak", encoder=hub, steps=1, **FAST)
    with pytest.raises(InputError, match="pretrained on"):
        finetune(other, tmp_path / "leak", encoder=load_encoder(hub), steps=1, **FAST)

    next_run = finetune(store, tmp_path / "next", encoder=load_encoder(hub), steps=1, **FAST)  # its test people are new
    again = next_run.export("hub", tmp_path / "again", licence="mit")
    card = read_card(again)
    assert len(card["sealed"]) == 2, "its own people, and those of the encoder that it began with"
    first = [store.cases[name]["fingerprint"] for name in store.split("train")]
    assert met(card, ["trained_on"], first) == {*first} and not card["trained_on"]
    labelled = met(card, ["labelled"], first)
    assert labelled == {*first} and not met(read_card(hub), ["labelled"], first)
    with pytest.raises(InputError, match="pretrained on"):
        finetune(other, tmp_path / "leak", encoder=again, steps=1, **FAST)


def test_a_scan_that_was_trained_on_is_noticed_after_a_hub(store, pretrained, tmp_path):
    hub = pretrained.export("hub", tmp_path / "hub", licence="mit")
    run = finetune(store, tmp_path / "run", encoder=hub, labels=0.2, steps=1, **FAST)
    card = json.loads((run / "encoder.json").read_text())
    only_before = next(name for name in store.split("train")
                       if store.cases[name]["fingerprint"] not in card["trained_on"])
    with pytest.warns(UserWarning, match="were trained on, by this run or before it"):
        run.features(store.cases[only_before]["files"][0], progress=False)


@pytest.mark.quick
def test_the_hub_is_asked_for_one_commit_and_two_files(hub, monkeypatch):
    asked = []

    def download(name, file, revision):
        asked.append((name, file, revision))
        return str(hub / file)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=download))
    commit = "0123456789abcdef0123456789abcdef01234567"
    encoder = load_encoder("some-org/some-encoder", revision=commit)
    assert encoder.card["task"] == "rotation"
    assert asked == [("some-org/some-encoder", file, commit) for file in ("config.json", "model.safetensors")]
    asked.clear()
    for given, revision in (("https://huggingface.co/some-org/some-encoder", commit.upper()),
                            (f"hf.co/some-org/some-encoder/tree/{commit}/", None),
                            ("hf://some-org/some-encoder", commit)):
        assert load_encoder(given, revision=revision).card["task"] == "rotation"
    assert {*asked} == {("some-org/some-encoder", file, commit) for file in ("config.json", "model.safetensors")}
    for revision in (None, "main", "v1.0", commit[:12]):
        with pytest.raises(InputError, match="full hash of a commit"):
            load_encoder("some-org/some-encoder", revision=revision)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"ssl3d\[hub\]"):
        load_encoder("some-org/some-encoder", revision=commit)


@pytest.mark.quick
@pytest.mark.parametrize("change, said", [
    ({"library_name": "transformers"}, "no card of ssl3d"),
    ({"architecture": "os.system"}, "'os.system', and ssl3d makes unet"),
    ({"architecture": None}, "its architecture is None"),
    ({"architecture": "resnet18"}, "has widths of its own.*config.json"),
    ({"architecture": "dynunet"}, "its bytes are not those that config.json is about"),
    ({"widths": [8, 16, 65536]}, "a network of widths .* numbers"),
    ({"widths": [8, 16, 64]}, "does not fit this network.*config.json|numbers"),
    ({"widths": [8, -16, 32]}, r"its widths is \[8, -16, 32\]"),
    ({"widths": [1] * 3000}, "its widths is"),
    ({"widths": "8,16,32"}, "its widths is"),
    ({"spatial_dims": 7}, "its spatial_dims is 7"),
    ({"spatial_dims": 2}, "does not fit this network.*config.json"),
    ({"in_channels": -1}, "its in_channels is -1"),
    ({"in_channels": 2}, "its image_channels is 1"),
    ({"image_dims": "x"}, "its image_dims is 'x'"),
    ({"slices": True}, "its slices is True"),
    ({"channel_names": ["a", "b"]}, "its channel_names is"),
    ({"voxel_mm": [1.0, math.nan, 1.0]}, "its voxel_mm is"),
    ({"scans": 5}, "its scans is 5"),
    ({"health": 5}, "its health is 5"),
    ({"n_people": -1}, "its n_people is -1"),
    ({"n_people": 10**6}, "its n_people is 1000000"),
    ({"task": "rotation\n# evil"}, "its task is"),
    ({"preparation": {"size": "big"}}, "its preparation is"),
    ({"lineage": [{"steps": "many"}]}, "its lineage is"),
    ({"sealed": "all"}, "its sealed is 'all'"),
    ({"digest": ...}, "has no digest"),
    ({"preparation": ...}, "has no preparation"),
])  # fmt: skip
def test_a_changed_card_is_refused(pretrained, hub, tmp_path, change, said):
    place = shutil.copytree(hub, tmp_path / "hub")
    config = json.loads((place / "config.json").read_text()) | change
    (place / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    with pytest.raises(InputError, match="(?s)config.json.*") as e:
        load_encoder(place)
    assert re.search(f"(?s){said}", str(e.value)) and "Get " in str(e.value) or "another library" in str(e.value)


def test_an_encoder_of_a_loop_of_ones_own_is_kept_with_the_people_it_saw(store, ward, tmp_path):
    encoder = make_encoder("resenc", 3, 1, SMALL) if has("dynamic_network_architectures") else \
        make_encoder("unet", 3, 1, SMALL)  # fmt: skip
    kept = ssl3d.keep_encoder(encoder, tmp_path / "kept", store=store, task="puzzle")
    run = ssl3d.Run(kept)
    assert run.card["n_people"] == len(store.split("train")) and not run.card["labelled"]
    assert "trained elsewhere and kept here" in run.summary() and "by puzzle" in run.summary()
    with pytest.raises(InputError, match="was not trained here, so there is no curve"):
        run.plot()
    again = prepare(ward / "cases.csv", tmp_path / "again", size=24, seed=5, progress=False)
    with pytest.raises(InputError, match="keeps for testing"):
        finetune(again, tmp_path / "leak", encoder=kept, steps=1, **FAST)
    assert finetune(store, tmp_path / "few", encoder=run, steps=1, **FAST).settings["encoder"].startswith("puzzle")
    page = (run.export("hub", tmp_path / "hub", licence="mit", store=store) / "README.md").read_text()
    assert "third party" not in page and "Task: puzzle" in page and "another cohort" not in page
    assert f"{run.card['n_cases']} cases of {run.card['n_people']} people" in page and patient(0)[:6] not in page
    if has("dynamic_network_architectures"):
        text = (run.export("nnunet", tmp_path / "nnunet", licence="mit") / "README.md").read_text()
        assert f"task: puzzle, steps: not known, {run.card['n_cases']} scans" in text
    with pytest.raises(InputError, match="labels of"):  # told by the caller: the loop has read labels
        told = ssl3d.keep_encoder(encoder, tmp_path / "labelled", store=again, labelled=True)
        ssl3d.Run(told).export("hub", tmp_path / "hub2", licence="mit", store=store)


def test_an_encoder_of_which_nothing_is_known_is_kept_as_such(store, tmp_path):
    wrong = make_encoder("unet", 3, 2, SMALL)
    with pytest.raises(InputError, match="1 channel.*sees 3D and 2.*leave store out"):
        ssl3d.keep_encoder(wrong, tmp_path / "kept", store=store.folder)
    assert not (tmp_path / "kept").exists()
    kept = ssl3d.keep_encoder(make_encoder("unet", 3, 1, SMALL), tmp_path / "kept")
    assert load_encoder(kept).card["unknown"].startswith("who was seen") and ssl3d.Run(kept).card["task"] == "own"
    with pytest.raises(InputError, match="not empty"):
        ssl3d.keep_encoder(wrong, kept)


def test_the_encoder_of_a_fine_tuned_run_sees_whole_scans_after_a_hub_too(few, scan, tmp_path):
    shared = ssl3d.Run(few.export("hub", tmp_path / "hub", licence="mit"))
    assert np.array_equal(*(run.features([scan], progress=False)[1] for run in (few, shared)))


def test_a_hub_folder_is_as_good_as_a_run(pretrained, hub, scan, tmp_path):
    shared = ssl3d.Run(hub)
    assert "that was shared, unet, trained by rotation" in shared.summary()
    names, vectors = shared.features([scan], progress=False)
    assert np.array_equal(vectors, pretrained.features([scan], progress=False)[1]), "cropped, as in its training"
    with pytest.raises(InputError, match="is a hub folder already. To share it once more, copy it"):
        shared.export("hub", tmp_path / "again", licence="mit")
    with pytest.raises(InputError, match="holds an encoder, which has nothing to predict"):
        shared.export("monai", tmp_path / "bundle")
    with pytest.raises(InputError, match="is 'unet', and nnU-Net reads its own only"):
        shared.export("nnunet", tmp_path / "nnunet")
    kept = ssl3d.Run(ssl3d.keep_encoder(shared.encoder, tmp_path / "kept"))
    assert kept.card["sealed"] == shared.card["sealed"] and kept.card["task"] == "rotation"


@pytest.fixture(scope="module")
def hub(pretrained, tmp_path_factory):
    return pretrained.export("hub", tmp_path_factory.mktemp("hub") / "hub", licence="mit")


@pytest.mark.quick
def test_files_of_two_encoders_are_told(pretrained, few, hub, tmp_path):
    other = few.export("hub", tmp_path / "other", licence="mit")
    shutil.copy(hub / "model.safetensors", other)
    with pytest.raises(InputError, match="bytes are not those.*are they of different encoders.*Get both again"):
        load_encoder(other)
    both = shutil.copytree(hub, tmp_path / "both")
    shutil.copy(pretrained / "encoder.json", both)
    with pytest.raises(InputError, match="both: holds two encoders.*encoder.json.*Move"):
        load_encoder(both)
    for name in ("config.json", "model.safetensors"):
        half = shutil.copytree(hub, tmp_path / f"half {name}")
        (half / name).unlink()
        with pytest.raises(InputError, match=f"and no {name}.*Get both"):
            load_encoder(half)
    cut = shutil.copytree(hub, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((hub / "model.safetensors").read_bytes()[:-8])
    weights = load_file(hub / "model.safetensors")
    whole = shutil.copytree(hub, tmp_path / "whole numbers")
    save_file({name: weight.to(torch.int64) for name, weight in weights.items()}, whole / "model.safetensors")
    for place, said in ((cut, "cannot be read as safetensors"), (whole, "of another kind of number")):
        with pytest.raises(InputError, match=f"{said}.*Get both again"):
            load_encoder(place)


@pytest.mark.quick
@pytest.mark.parametrize("given, revision, said", [
    ("org/name", None, "revision is None"), ("org/name", 5, "revision is 5"), ("org/name", "main", "full hash"),
    ("https://huggingface.co/org/name/tree/main", None, "org/name: revision is 'main'"),
    ("https://huggingface.co/org/name/resolve/main/model.safetensors", None, "is an address.*'org/name', revision="),
    ("https://example.org/a.zip", "a" * 40, "is an address"), ("../x", "a" * 40, "taken for a folder. Leave revision"),
    ("org/na me", "a" * 40, "taken for a folder"), ("a/b/c", None, "no such folder.*load_encoder.'org/name', revision"),
    ("none", None, "no such folder"), (None, None, "is of type NoneType"), ("", None, "empty path"),
    (__file__, None, "is a file. Give the folder of a run .*read_checkpoint"),
])  # fmt: skip
def test_what_is_no_encoder_is_told_in_one_way(given, revision, said):
    with pytest.raises(InputError, match=said):
        load_encoder(given, revision=revision)


def test_a_step_says_how_an_encoder_of_the_hub_is_given(store, tmp_path):
    with pytest.raises(InputError, match=r"encoder=ssl3d.load_encoder\('org/name', revision='COMMIT'\).*hf download"):
        finetune(store, tmp_path / "run", encoder="org/name", steps=1, **FAST)
    assert not (tmp_path / "run").exists()


def test_the_page_of_an_encoder(store, pretrained, few, tmp_path):
    hub = pretrained.export("hub", tmp_path / "hub", licence="cc-by-4.0", data="Two ellipsoids.", store=store)
    page, n = (hub / "README.md").read_text(), len(store.split("train"))
    held = len(store.split("validation"))
    for words in ("license: cc-by-4.0", f"{n} cases of {n} people", "stretched to 24 x 24 x 24 voxels", "Seed: 0",
                  f"linear probe of mask, validation people, {held} of {held} cases seen in training without labels",
                  "- images: 3D volumes", f"| {held} people |", "Intended use", "Limits"):
        assert words in page, words
    assert "# An encoder pretrained without labels: rotation" in page and "self-supervised-learning" in page
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| linear probe")]
    low, high = map(float, rows[0][4].split(" to "))
    assert low <= float(rows[0][3]) <= high
    with pytest.warns(UserWarning, match="without a licence"):
        page = (few.export("hub", tmp_path / "free") / "README.md").read_text()
    assert "license: unknown" in page and "fine-tuned network, test people" in page
    assert "# An encoder trained with labels: segmentation" in page and "self-supervised-learning" not in page
    with pytest.warns(UserWarning, match="without a licence"):
        few.export("monai", tmp_path / "bundle")


def test_a_store_is_compared_with_the_card(store, pretrained, few, ward, tmp_path):
    def other(**changed):
        opened = Store(store.folder)
        for name, value in changed.items():
            setattr(opened, name, value)
        return opened

    with pytest.raises(InputError, match="learned from the labels of .* validation case.*leave store"):
        few.export("hub", tmp_path / "out", licence="mit", store=store)
    for changed, said in (({"spatial_dims": 2}, "holds images in 2D, .* images in 3D"),
                          ({"channels": 2, "channel_names": ["T1", "T2"]}, "has 2 channel.*trained on 1"),
                          ({"channel_names": ["pet"]}, "pet.*was trained on 1, ")):
        run = types.SimpleNamespace(card=pretrained.card | {"channel_names": ["T1"]}, folder=pretrained.folder)
        with pytest.raises(InputError, match=f"{said}.*leave store"):
            _probe_store(run, other(**changed), "mask")
    assert not (tmp_path / "out").exists()
    split = prepare(ward / "cases.csv", tmp_path / "split", size=16, seed=3, progress=False)
    with pytest.warns(UserWarning, match=r"size 24 \(here 16\)"):
        page = (pretrained.export("hub", tmp_path / "hub", licence="mit", store=split) / "README.md").read_text()
    assert "images of another cohort or split, prepared in another way" in page and "split/" not in page


def test_slices_and_pictures_are_called_what_they_are(pretrained, tmp_path):
    leaves = shelf.travelling_card(pretrained.card, b"weights")
    for dims, seen, words in ((3, 2, "axial 2D slices of 3D volumes"), (2, 2, "2D images"), (3, 3, "3D volumes")):
        page = shelf.model_card(leaves | {"spatial_dims": seen, "image_dims": dims}, shelf.About())
        assert f"- images: {words}\n" in page and f"unet for {words}" in page
        assert ("volume" in page) == (dims == 3) and ("voxels" in page) == (dims == 3)


@pytest.mark.quick
@pytest.mark.parametrize("licence", ["", " ", "\u65e5\u672c", "mit\nlicense: gpl-3.0", "a: b | `c`", "unknown", "---"])
def test_what_is_no_licence_is_refused_by_every_form(pretrained, few, tmp_path, licence):
    for run, to in ((pretrained, "hub"), (few, "monai")):
        with pytest.raises(InputError, match="licence .--licence.*leave it out"):
            run.export(to, tmp_path / to, licence=licence)
        assert not (tmp_path / to).exists()


def test_a_licence_that_the_hub_does_not_know(pretrained, tmp_path):
    with pytest.warns(UserWarning, match="does not know.*cc-by-4.0"):
        hub = pretrained.export("hub", tmp_path / "hub", licence="cc-by-40")
    header = yaml.safe_load((hub / "README.md").read_text().split("---\n")[1])
    assert header["license"] == "other" and header["license_name"] == "cc-by-40"


@pytest.mark.parametrize("file, content, said", [
    ("scores.csv", "", "scores.csv: is damaged"), ("scores.csv", "case,class,dice\n", "scores.csv: is damaged"),
    ("scores.csv", "case,class\na,b\n", "scores.csv: is damaged"),
    ("scores.csv", "case,class,dice\na,b,much\n", "scores.csv: is damaged"),
    ("scores.csv", "case,class,dice\na,b,7\n", "not from 0 to 1"),
    ("network.json", "{", "network.json: cannot be read"), ("network.json", "[1]", "network.json: is damaged"),
    ("network.json", {"facts": None}, "network.json: its facts is None"),
    ("network.json", {"widths": [8, 16, 64]}, "network.json: its widths"),
    ("network.json", {"patch": ...}, "network.json: is damaged .*'patch'"),
    ("encoder.json", {"widths": "8"}, "encoder.json: its widths is '8'"),
    ("encoder.json", {"widths": [8, 16, 64]}, "does not fit this network"),
    ("encoder.json", {"task": ...}, "encoder.json: has no task"),
    ("encoder.safetensors", "", "encoder.safetensors: has 0 bytes"),
    ("settings.yaml", "command: finetune\n", "settings.yaml: has no seed"),
    ("encoder.json", {"preparation": 5}, "encoder.json: its preparation is 5"),
    ("network.safetensors", "", "network.safetensors: cannot be read"),
])  # fmt: skip
def test_damage_in_a_run_is_told_and_nothing_is_written(few, tmp_path, file, content, said):
    run = shutil.copytree(few, tmp_path / "run")
    if isinstance(content, dict):
        whole = json.loads((run / file).read_text()) | content
        content = json.dumps({name: value for name, value in whole.items() if value is not ...})
    (run / file).write_text(content)
    forms = {"network": ["monai"], "encoder": ["hub"]}.get(file.split(".")[0], ["hub", "monai"])  # who reads it
    for to in forms:
        with pytest.raises(InputError, match=said):
            export(run, to, tmp_path / "out", licence="mit")
        assert not (tmp_path / "out").exists()


def failing(write_whole, trouble):
    """What writes two files, and fails at the third."""
    written = []

    def write(path, content):
        if len(written) == 2:
            raise trouble
        written.append(path)
        write_whole(path, content)
    return write


@pytest.mark.quick
def test_a_folder_that_cannot_be(pretrained, few, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    for run, to in ((pretrained, "hub"), (few, "monai")):
        for place, said in (("file", "is a file"), ("file/a/b", "file is a file, and no folder"),
                            ("x" * 300, "cannot be written"), ("a\0b", "cannot be written")):
            with pytest.raises(InputError, match=said):
                run.export(to, tmp_path / place, licence="mit")
        for trouble in (KeyboardInterrupt, OSError(5, "Input/output error")):
            with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, InputError)):
                patch.setattr(shelf, "write_whole", failing(shelf.write_whole, trouble))
                run.export(to, tmp_path / "out", licence="mit")
            assert not (tmp_path / "out").exists(), "all of it or nothing"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not has("huggingface_hub"), reason="huggingface_hub is not installed")
def test_the_hub_reads_the_header(store, pretrained, tmp_path):
    from huggingface_hub import ModelCard, metadata_load

    hub = pretrained.export("hub", tmp_path / "hub", licence="CC BY 4.0", data="Two ellipsoids.", store=store)
    card = ModelCard((hub / "README.md").read_text())
    assert card.data.license == "cc-by-4.0" and card.data.library_name == "ssl3d"
    found = card.data.eval_results
    assert len(found) == 1 and all("95 % interval" in row.metric_name for row in found)
    assert metadata_load(hub / "README.md")["tags"][0] == "medical-imaging"
    # ModelCard.validate asks the Hub itself, which a test does not


def test_the_same_run_gives_the_same_bytes(pretrained, tmp_path):
    one, two = (pretrained.export("hub", tmp_path / name, licence="mit") for name in ("one", "two"))
    for file in one.iterdir():
        assert file.read_bytes() == (two / file.name).read_bytes(), file.name


def test_what_cannot_go_there_is_refused(store, pretrained, few, tmp_path):
    small = finetune(store, tmp_path / "small", widths=(8, 16), steps=1, **FAST)
    for run, to, more, said in (
        (pretrained, "monai", {}, "nothing to predict"),
        (small, "monai", {}, "cannot build by name"),
        (few, "onnx", {}, "has to be one of monai, hub, nnunet"),
        (few, "monai", {"store": store}, "is for an export to hub"),
        (few, "hub", {"plans": "plans.json"}, "is for an export to nnunet"),
    ):
        with pytest.raises(InputError, match=said):
            export(run, to, tmp_path / "out", **more)
        assert not (tmp_path / "out").exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/thesis.txt").write_text("mine")
    for to in ("monai", "hub"):
        with pytest.raises(InputError, match="is not empty"):
            few.export(to, tmp_path / "taken", licence="mit")


def test_the_shell(few, tmp_path, capsys):
    main(["export", str(few), "--to", "hub", "--out", str(tmp_path / "hub"), "--licence", "mit"])
    assert load_encoder(tmp_path / "hub").card["task"] == "segmentation"
    main(["export", str(few), "--to", "monai", "--out", str(tmp_path / "bundle")])
    assert (tmp_path / "bundle/configs/inference.json").exists()
    with pytest.raises(SystemExit):
        main(["export", str(few), "--out", str(tmp_path / "else")])
    assert "Give --to monai, --to hub or --to nnunet" in capsys.readouterr().err


@pytest.mark.skipif(not has("ssl3d.downstream.nnunet"), reason="ssl3d.downstream.nnunet is not there yet")
def test_what_goes_to_nnunet_names_nobody(store, ward, tmp_path):
    plain = pretrain("rotation", store, tmp_path / "plain", steps=1, architecture="plainunet", widths=SMALL, **FAST)
    (tmp_path / "out").mkdir()
    names_nobody([plain], store, ward, tmp_path / "out")
    assert any((tmp_path / "out/plain/nnunet").iterdir())


def test_fingerprints_are_those_of_the_store(store):
    case = next(iter(store.cases.values()))
    assert fingerprint((type(store.folder)(case["files"][0]),)) == case["fingerprint"], "what the search looks for"
