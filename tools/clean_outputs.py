"""Take out of the notebooks' outputs what differs from run to run: widgets, bars, and where text was cut.

Widgets carry random numbers, and are empty without a kernel. Pictures are written with 256 colours where that is
smaller: a third of the bytes, and nothing that an eye can see.
"""

import base64
import io
import json
from pathlib import Path

from PIL import Image

WIDGET = "application/vnd.jupyter.widget-view+json"


def joined(outputs: list[dict]) -> list[dict]:
    """Outputs with text that was printed in pieces as one."""
    whole = []
    for out in outputs:
        if whole and out["output_type"] == "stream" == whole[-1]["output_type"] and out["name"] == whole[-1]["name"]:
            whole[-1]["text"] = [*whole[-1]["text"], *out["text"]]
        else:
            whole.append(out)
    for out in whole:
        if "text" in out:  # by lines, wherever it was cut
            out["text"] = "".join(out["text"]).splitlines(keepends=True)
    return whole


def small(picture: str) -> str:
    """A PNG in base64 with a palette of 256 colours, where that is smaller."""
    held = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(picture))) as shown:
        if shown.mode == "P":
            return picture
        flat = Image.new("RGB", shown.size, "white")
        flat.paste(shown, mask=shown.getchannel("A") if shown.mode == "RGBA" else None)
    flat.quantize(256, dither=Image.Dither.NONE).save(held, "PNG", optimize=True)
    smaller = base64.b64encode(held.getvalue()).decode()
    return min(picture, smaller, key=len)


def kept(output: dict) -> bool:
    """Whether an output is worth keeping: no widget, and no progress bar of a terminal."""
    bar = output.get("name") == "stderr" and "%|" in "".join(output["text"])
    return WIDGET not in output.get("data", {}) and not bar


for file in sorted((Path(__file__).resolve().parents[1] / "nbs").rglob("*.ipynb")):
    notebook = json.loads(file.read_text(encoding="utf-8"))
    had = json.dumps(notebook)
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        if "outputs" in cell:
            cell["outputs"] = joined([out for out in cell["outputs"] if kept(out)])
            for out in cell["outputs"]:
                if "image/png" in out.get("data", {}):
                    out["data"]["image/png"] = small("".join(out["data"]["image/png"]))
    if json.dumps(notebook) != had:
        file.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
