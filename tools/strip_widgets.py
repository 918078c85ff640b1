"""Take the widgets out of the notebooks' outputs: they carry random numbers, and are empty without a kernel."""

import json
from pathlib import Path

WIDGET = "application/vnd.jupyter.widget-view+json"

for file in sorted((Path(__file__).resolve().parents[1] / "nbs").rglob("*.ipynb")):
    notebook = json.loads(file.read_text(encoding="utf-8"))
    had = json.dumps(notebook)
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        if "outputs" in cell:
            cell["outputs"] = [out for out in cell["outputs"] if WIDGET not in out.get("data", {})]
    if json.dumps(notebook) != had:
        file.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
