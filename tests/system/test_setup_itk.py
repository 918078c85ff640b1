"""tools/setup_itk.py changes copies, says what it misses, and may be run again; here with packs of a few bytes."""

import base64
import hashlib
import importlib.util
import io
import json
import tarfile

import pytest
from conftest import ROOT


@pytest.fixture
def tool(monkeypatch):
    """The script, with a registry of small packs that hold what is to be replaced."""
    spec = importlib.util.spec_from_file_location("setup_itk", ROOT / "tools" / "setup_itk.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    packs, registry = {}, {}
    for name, (version, _) in tool.PACKS.items():
        inside = f"static/packs/{name}/"
        files = {"LICENSE": "words", "README.md": "more words", "dist/a.js": "a", "dist/a.js.map": "a"}
        files |= {k[len(inside) :]: "|".join(v) for k, v in tool.EDITS.items() if k.startswith(inside)}
        held = io.BytesIO()
        with tarfile.open(fileobj=held, mode="w:gz") as archive:
            for path, text in files.items():
                member = tarfile.TarInfo(f"package/{path}")
                member.size = len(text.encode())
                archive.addfile(member, io.BytesIO(text.encode()))
        registry[name, version] = held.getvalue()
        packs[name] = (version, base64.b64encode(hashlib.sha512(held.getvalue()).digest()).decode())
    monkeypatch.setattr(tool, "PACKS", packs)
    monkeypatch.setattr(tool, "asked", lambda name, version: registry[name, version])
    return tool


@pytest.fixture
def environment(tool, tmp_path):
    """An environment in which only the extension is installed."""
    for pattern, changes in tool.EDITS.items():
        if "packs" not in pattern:
            file = tmp_path / "env" / tool.INSTALLED / pattern.replace("*", "0123")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("|".join(changes))
    return tmp_path / "env"


def held(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_script_changes_copies_and_may_be_run_again(tool, environment):
    config = environment / tool.CONFIG
    config.parent.mkdir(parents=True)
    config.write_text('{"LabApp": {"open_browser": false}, "ServerApp": {"port": 1}}')
    before = held(environment / tool.INSTALLED)
    tool.main(environment)
    made = held(environment)
    assert held(environment / tool.INSTALLED) == before
    settings = {"open_browser": False, "extra_labextensions_path": [str(environment / tool.SHARE)]}
    assert json.loads(config.read_text()) == {"LabApp": settings, "ServerApp": {"port": 1}}
    copies = held(environment / tool.SHARE / tool.EXTENSION)
    assert b"https://" not in b"".join(copies.values()) and b"packs/itk-vtk-viewer" in b"".join(copies.values())
    vue = {name.rpartition("packs/vue/")[2] for name in copies if "packs/vue/" in name}
    assert vue == {"LICENSE", "dist/a.js"}
    tool.main(environment)
    assert held(environment) == made


def test_what_is_missing_is_named(tool, environment):
    text = tool.replaced("one two two", {"two": "2"}, "numbers.js")
    assert text == "one 2 2"
    with pytest.raises(SystemExit, match="numbers.js: expected to find 'three'"):
        tool.replaced("one two two", {"two": "2", "three": "3"}, "numbers.js")
    tool.main(environment)
    made = held(environment)
    file = environment / tool.INSTALLED / "static" / "lib_index_js.0123.js"
    file.write_text("another version")
    with pytest.raises(SystemExit, match="lib_index_js.0123.js: expected to find 'process_url_query: true,'"):
        tool.main(environment)
    assert held(environment / tool.SHARE) == {  # what was set up before is still there
        name.removeprefix(f"{tool.SHARE}/"): data for name, data in made.items() if name.startswith(f"{tool.SHARE}/")
    }
    file.unlink()
    with pytest.raises(SystemExit, match="expected one file, found 0"):
        tool.main(environment)
    with pytest.raises(SystemExit, match="pip install"):
        tool.main(environment / "elsewhere")


def test_another_pack_is_refused(tool, environment, monkeypatch):
    version, _ = tool.PACKS["vue"]
    monkeypatch.setitem(tool.PACKS, "vue", (version, "A" * 86 + "=="))
    with pytest.raises(SystemExit, match="vue@2.6.10: its checksum"):
        tool.main(environment)
    assert not (environment / tool.SHARE).exists() and not (environment / tool.CONFIG).exists()
