"""The face: what `import ssl3d` gives, how quickly, and whether mypy and editors know it."""

import ast
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from conftest import ROOT, python

import ssl3d
from ssl3d.settings import Reading, Training, options_of

pytestmark = pytest.mark.quick

HEAVY = ("torch", "monai", "lightning", "numpy", "matplotlib", "nibabel")


def test_importing_it_loads_nothing_heavy():
    code = f"import sys, ssl3d; dir(ssl3d); ssl3d.__version__; assert not {HEAVY} & sys.modules.keys()"
    python(code.replace(str(HEAVY), str(set(HEAVY))))


def test_reading_its_help_loads_no_torch():
    python("import sys, ssl3d; assert 'prepare ' in ssl3d.__doc__; assert 'torch' not in sys.modules")


def test_every_name_is_there_and_explained():
    assert 20 <= len(ssl3d.__all__) <= 31
    assert dir(ssl3d) == sorted([*ssl3d.__all__, "__version__"])
    for name in ssl3d.__all__:
        assert getattr(ssl3d, name).__doc__, name
        lines = [line for line in ssl3d.__doc__.splitlines() if name in line.replace(",", " ").split()[:3]]
        assert lines, f"help(ssl3d) has no line on {name}"
    with pytest.raises(AttributeError, match="no attribute 'finetoon'"):
        ssl3d.finetoon  # noqa: B018


def test_no_module_has_a_name_of_the_face():
    modules = {file.stem for file in Path(ssl3d.__file__).parent.iterdir() if not file.name.startswith("_")}
    assert not modules & set(ssl3d.__all__) - {"tasks"}
    assert callable(ssl3d.prepare) and callable(ssl3d.pretrain) and callable(ssl3d.predict) and callable(ssl3d.demo)


def test_tasks_are_there_by_name():
    from ssl3d.tasks import NAMES, TASKS, Rotation

    assert ssl3d.tasks.Rotation is Rotation is TASKS["rotation"]
    assert set(NAMES.values()) < set(dir(ssl3d.tasks)) and ssl3d.tasks.CPC.__name__ == "CPC"
    with pytest.raises(AttributeError, match="no attribute 'Mirror'"):
        ssl3d.tasks.Mirror  # noqa: B018


def test_editors_see_the_same_names():
    tree = ast.parse((ROOT / "ssl3d/__init__.pyi").read_text(encoding="utf-8"))
    names = [alias for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    imported = {alias.name for alias in names if alias.asname}
    made = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert imported | made == set(ssl3d.__all__) and not imported & made


STEPS = ("open_cohort", "prepare", "pretrain", "finetune", "predict", "plan_experiment", "experiment", "demo")


def test_every_option_has_its_default_and_its_help():
    for name in STEPS:
        step = getattr(ssl3d, name)
        options = options_of(*step.__options__)
        shown = inspect.signature(step).parameters
        assert len(options) > 2 and set(options) <= set(shown), name
        assert all(shown[option].default == f.default for option, (f, _) in options.items())
        words = " ".join((inspect.getdoc(step) or "").split())
        assert all(f"{option}: {f.metadata['help'][:40]}" in words for option, (f, _) in options.items()), name
    assert inspect.signature(ssl3d.finetune).parameters["patch"].default is None, "a goal's own options are there"
    assert inspect.signature(ssl3d.finetune).parameters["batch_size"].default is None
    assert inspect.signature(ssl3d.pretrain).parameters["batch_size"].default == 4


def test_wrong_names_and_values_are_named(tmp_path):
    for call, said in (
        (lambda: ssl3d.pretrain("rotation", "s", tmp_path / "x", epoch=3), "no option 'epoch'. Did you mean 'epochs'?"),
        (lambda: ssl3d.prepare("s", tmp_path / "x", crop="no"), "crop is 'no', and has to be True or False"),
        (lambda: ssl3d.finetune("s", tmp_path / "x", seed=None), "seed is None, and has to be a whole number from 0"),
        (lambda: ssl3d.finetune("s", tmp_path / "x", patches=8), "no option 'patches'"),
        (lambda: ssl3d.finetune("s", tmp_path / "x", None, 0.1), "only store, out by position"),
        (lambda: ssl3d.open_cohort(None), "source is of type NoneType"),
        (lambda: ssl3d.prepare(3, tmp_path / "x"), "source is of type int"),
    ):
        with pytest.raises(ssl3d.InputError, match=re.escape(said)):
            call()


def test_help_of_a_command_loads_no_torch():
    code = """
import sys
from ssl3d.cli import commands, main
for name in commands():
    try:
        main([name, "--help"])
    except SystemExit as e:
        assert e.code == 0
assert not {"torch", "monai", "lightning"} & sys.modules.keys()"""
    said = python(code).stdout
    assert "start from:" in said and "who is tested:" in said and "--widths N,..." in said and "--slices " in said


def checked(script):
    """What `mypy --strict` has to say about a script, and its exit status."""
    mypy = pytest.importorskip("mypy.api", reason="mypy is not installed")
    options = ["--strict", "--no-incremental", "--config-file", str(ROOT / "mypy.ini")]
    said, _, status = mypy.run([*options, str(script)])
    return said, status


def test_a_script_of_three_lines_passes_strict_mypy(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import ssl3d\n"
        'run = ssl3d.pretrain("rotation", "runs/store", "runs/rotation")\n'
        'ssl3d.finetune("runs/store", "runs/few", encoder=run, labels=0.1)\n'
    )
    said, status = checked(script)
    assert status == 0 or not [line for line in said.splitlines() if "script.py" in line], said
    script.write_text(script.read_text().replace("labels=0.1", "label=0.1"))
    script.write_text(script.read_text() + "ssl3d.finetoon\n")
    said, _ = checked(script)
    assert "script.py:4" in said and "finetoon" in said, "a name that is not there is found"
    assert "script.py:3" in said and "label" in said, "a wrong name is found"


def test_the_methods_of_a_run_are_typed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\nimport ssl3d\n"
        "data = torch.utils.data.TensorDataset(torch.rand(4, 1, 16, 16, 16))\n"
        'run = ssl3d.pretrain("rotation", data, "runs/rotation", steps=1, widths=[8, 16])\n'
        'few = ssl3d.finetune("runs/store", "runs/few", encoder=run, goal="regression", fold=(0, 5))\n'
        'masks = few.predict("SCANS", "masks", accelerator="cpu")\n'
        'ids, features = run.features(["a.nii", "b.nii"], progress=False)\n'
        'few.predict("SCANS")\n'
        'few.predict("SCANS", "masks", probability=True)\n'
        'few.predict(5, "masks")\n'
        'ssl3d.pretrain("rotation", data, "x", architecture="resnet")\n'
    )
    said, _ = checked(script)
    wrong = sorted({int(line.split(":")[1]) for line in said.splitlines() if "script.py:" in line and "error" in line})
    assert wrong == [8, 9, 10, 11], said


def test_fixed_lists_are_those_of_the_code():
    from ssl3d.data.layouts import LAYOUTS
    from ssl3d.networks.encoders import ENCODERS

    def choices(kind, name):
        return [c for part in typing.get_args(options_of(kind)[name][1]) for c in (typing.get_args(part) or [part])]

    assert choices(Training, "architecture") == [*ENCODERS, type(None)]
    assert set(choices(Reading, "layout")) - {type(None)} == {*LAYOUTS, "csv"}


def test_as_a_module():
    shown = subprocess.run([sys.executable, "-m", "ssl3d", "--help"], capture_output=True, text=True, check=True)
    assert "pretrain" in shown.stdout


def test_the_ground_is_free_of_torch():
    python("import sys, ssl3d.errors, ssl3d.files, ssl3d.seeds; assert 'torch' not in sys.modules")
