"""Take out of the notebooks' outputs what differs from run to run: widgets, and where printed text happens to be cut.

Widgets carry random numbers, and are empty without a kernel.
"""

import json
from pathlib import Path

WIDGET = "application/vnd.jupyter.widget-view+json"



def joined(outputs: list[dict]) -> list[dict]:
    """Outputs with text that was printed in pieces as one."""
    whole = []
    for out in outputs:
        if whole and out["output_type"] == "stream" == whole[-1]["output_type"] and out["name"] == whole[-1]["name"]:
            whole[-1]["text"] = [*whole[-1]["text"], *out["text"]]
        else:
            whole.append(out)
    return whole


for file in sorted((Path(__file__).resolve().parents[1] / "nbs").rglob("*.ipynb")):
    notebook = json.loads(file.read_text(encoding="utf-8"))
    had = json.dumps(notebook)
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        if "outputs" in cell:
            cell["outputs"] = joined([out for out in cell["outputs"] if WIDGET not in out.get("data", {})])
    if json.dumps(notebook) != had:
        file.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
