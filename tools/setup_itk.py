"""Let `ssl3d.plots.widgets.view(volume, labels, viewer="itk")` draw in JupyterLab without a network.

For whoever installed `pip install 'ssl3d[itk]'`, best in a virtual environment of its own, since it pins old packages:

    python tools/setup_itk.py

with the python of that environment, once, with a network and npm (of Node.js). Start JupyterLab anew afterwards, and
reload its page without the browser's cache (Ctrl+Shift+R). It may be run again at any time.

itkwidgets has no viewer of its own: when it draws, it asks servers on the web for one. This script fetches the same
programs by npm (about 53 MB; their checksums are below), puts them beside a copy of the JupyterLab
extension that loads them, replaces the addresses in the copies by that place, and tells JupyterLab to look there first.
What pip installed is not changed. It writes to the environment only: SHARE and CONFIG, below. To undo it, delete both
(in CONFIG, the line with the path). Nothing of it is part of ssl3d, and nothing of it is committed.

Licences: itk-vtk-viewer BSD-3-Clause (with parts that its dist/*.LICENSE.txt name), itk-viewer-bootstrap-ui Apache-2.0,
imjoy-core, vue and vue-js-modal MIT: the files with their words are kept beside them. The copied extension,
imjoy-jupyterlab-extension, is BSD-3-Clause; its words are where pip put them.
"""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

EXTENSION = "imjoy-jupyterlab-extension"
INSTALLED = Path("share/jupyter/labextensions") / EXTENSION  # these three are relative to the environment
SHARE = Path("share/jupyter/ssl3d-itk")
CONFIG = Path("etc/jupyter/jupyter_lab_config.json")

PACKS = {  # name -> version and SHA-512, as npm knows it ("integrity")
    "itk-vtk-viewer": (
        "14.51.0",
        "i1H0PfekLdCfL45lZ96aWCoh4thzxeexiGJ3NYC9euF1WefXW0P1JijBLIJfrDBvp5fhjncj/EEnIW1auBh+zw==",
    ),
    "itk-viewer-bootstrap-ui": (
        "0.30.0",
        "JfXAeCEgllRblolFwB4HaPQp+AyPzUt8s3g74LVnWLkvOyng4p24aO2Sjsk6ZIkWyZjdfZWAtvrdScKh/RPkKw==",
    ),
    "imjoy-core": (
        "0.14.5",
        "G0ybhLq57vOSM+4DhJ7A/3WSjJdbzk+WoEqg4+c5clkRhLOYY5VfI6oJ4MI664ZsVVgIinswsEJWbHAWQOBxFg==",
    ),
    "vue": (
        "2.6.10",
        "ImThpeNU9HbdZL3utgMCq0oiMzAkt1mcgy3/E6zWC/G6AaQoeuFdsl9nDhTDU3X1R6FK7nsIUuRACVcjI+A2GQ==",
    ),
    "vue-js-modal": (
        "1.3.35",
        "DKtxUCW/oprM/ndn9h/cnVgsmqjQ/ARy5rH4q/11Pas04og2td+sltl91H/rlwXTwJIqWyt+lJizK5o4ErjWIQ==",
    ),
}
WANTED = re.compile(r"(LICENSE|Copyright|dist/)")
UNWANTED = re.compile(r"/(image|mesh)-io/|CDN|\.map$")  # readers of files, versions for the web, source maps

# File (a pattern that one file has to match) -> what is replaced in it, and by what. In the extension's JavaScript the
# packs lie below its own address, which the browser knows and the kernel does not.
HERE = '__webpack_require__.p + "packs/'
EDITS = {
    "static/lib_index_js.*.js": {
        "process_url_query: true,": f'process_url_query: true, packs: {HERE}", base_url: {HERE}imjoy-core/dist/", '
        f'default_rpc_base_url: {HERE}imjoy-core/dist/",',
        "return await imjoy.pm.createWindow(": 'if (w.type === "itk-vtk-viewer") {\n'
        f'w.src = {HERE}itk-vtk-viewer/dist/index.html";\n'
        "if (w.config && w.config.uiMachineOptions) w.config.uiMachineOptions.href = "
        f'{HERE}itk-viewer-bootstrap-ui/dist/bootstrapUIMachineOptions.js.es.js";\n'
        "}\nreturn await imjoy.pm.createWindow(",
        "https://imjoy.io/static/img/imjoy-logo-black.svg": "${__webpack_require__.p}"
        "packs/itk-vtk-viewer/dist/favicon-32x32.png",
    },
    "static/vendors-node_modules_imjoy-core_*.js": {  # it holds JavaScript as a string, so its quotes have backslashes
        r"\"https://cdn.jsdelivr.net/npm/vue@2.6.10/dist/vue.min.js\"": r"config.packs + \"vue/dist/vue.min.js\"",
        r"\"https://imjoy-team.github.io/vue-js-modal/index.js\"": r"config.packs + \"vue-js-modal/dist/index.js\"",
        r"\"https://imjoy-team.github.io/vue-js-modal/styles.css\"": r"config.packs + \"vue-js-modal/dist/styles.css\"",
        # windows that can be dragged: not on npm, and a viewer inside a notebook needs none
        r"await injectScript(\"https://cdn.jsdelivr.net/npm/@oeway/vue-window@2.4.1-a/lib/index.js\")": (
            "window.VueWindow = { install() {} }"
        ),
    },
    "static/packs/imjoy-core/dist/imjoy-core.min.js": {'"startup":true': '"startup":false'},  # plug-ins from the web
    "static/packs/itk-vtk-viewer/dist/index.html": {
        "https://lib.imjoy.io/imjoy-loader.js": "../../imjoy-core/dist/imjoy-loader.min.js",
        "api_version: '0.2.3'": "api_version: '0.2.3', base_url: '../../imjoy-core/dist/'",
    },
}


def asked(name: str, version: str) -> bytes:
    """One pack, as npm fetches it."""
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("npm is not there, and fetches the viewer. Install Node.js, which brings it, and try again.")
    with tempfile.TemporaryDirectory() as folder:
        line = [npm, "pack", f"{name}@{version}", "--silent"]
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name}@{version}: npm cannot fetch it. {done.stderr.strip()}")
        return next(Path(folder).glob("*.tgz")).read_bytes()


def fetch(name: str, version: str, sha512: str) -> bytes:
    """One pack; stops when it is not the one that is expected."""
    print("fetching", name, version)
    pack = asked(name, version)
    if base64.b64encode(hashlib.sha512(pack).digest()).decode() != sha512:
        sys.exit(f"{name}@{version}: its checksum is not the expected one, {sha512}")
    return pack


def unpack(pack: bytes, folder: Path) -> None:
    """The files of a pack that are needed, and its licences."""
    with tarfile.open(fileobj=io.BytesIO(pack)) as archive:
        for member in archive:
            name = member.name.partition("/")[2]  # all of npm's files lie in package/
            if member.isfile() and WANTED.match(name) and not UNWANTED.search(name):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(archive.extractfile(member).read())


def replaced(text: str, changes: dict[str, str], file: str) -> str:
    """The text with every change made; stops when there is nothing to change."""
    for old, new in changes.items():
        if old not in text:
            sys.exit(f"{file}: expected to find {old!r}, which is not there: another version? Nothing was set up.")
        text = text.replace(old, new)
    return text


def edit(folder: Path, edits: dict[str, dict[str, str]] = EDITS) -> None:
    """Make all changes in the files of a folder."""
    for pattern, changes in edits.items():
        found = sorted(folder.glob(pattern))
        if len(found) != 1:
            sys.exit(f"{folder / pattern}: expected one file, found {len(found)}. Nothing was set up.")
        text = replaced(found[0].read_text(encoding="utf-8"), changes, found[0].name)
        found[0].write_text(text, encoding="utf-8", newline="")


def announce(config: Path, place: Path) -> None:
    """Tell JupyterLab to look for extensions in one more place, before all others; the rest of the file is kept."""
    held = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
    places = held.setdefault("LabApp", {}).setdefault("extra_labextensions_path", [])
    if str(place) not in places:
        places.insert(0, str(place))
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")


def main(environment: Path = Path(sys.prefix)) -> None:
    installed, share = environment / INSTALLED, environment / SHARE
    if not installed.is_dir():
        sys.exit(f"{installed} is not there. First: {sys.executable} -m pip install 'ssl3d[itk]'")
    fresh = share.with_name(share.name + ".part")  # what is there is kept until all went well
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        shutil.copytree(installed, fresh / EXTENSION)
        for name, (version, sha512) in PACKS.items():
            unpack(fetch(name, version, sha512), fresh / EXTENSION / "static" / "packs" / name)
        edit(fresh / EXTENSION)
        shutil.rmtree(share, ignore_errors=True)
        fresh.rename(share)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    announce(environment / CONFIG, share)
    print(f"The viewer is in {share}, and {environment / CONFIG} names it. Start JupyterLab anew.")


if __name__ == "__main__":
    main()
