"""Make README.md and its pictures (nbs/pictures/index_*) from the committed outputs of nbs/index.ipynb.

The index has more than the README: text cells that begin with ONLY_HERE and code cells with `#| hide` are left out.
"""

import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
PICTURES = Path("nbs") / "pictures"
ONLY_HERE = "<!-- not in README -->"


def shown(cell):
    """The cell as a reader of the README sees it, or None for one that is left out."""
    if cell.source.startswith(ONLY_HERE):
        return None
    directives = [line for line in cell.source.splitlines() if line.startswith("#|")]
    if any("hide" in line for line in directives):
        return None
    if cell.cell_type == "code":
        echo = not any("echo: false" in line for line in directives)
        code = [line for line in cell.source.splitlines() if not line.startswith("#|")]
        cell.source = "\n".join(code).strip() if echo else ""
    return cell


def main() -> None:
    notebook = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    notebook.metadata["language_info"] = {"name": "python"}  # cleaning takes it out
    captions = iter(re.findall(r"#\| fig-alt: (.*)", "\n".join(cell.source for cell in notebook.cells)))
    notebook.cells = [cell for cell in map(shown, notebook.cells) if cell is not None]
    where = {"unique_key": "index", "output_files_dir": PICTURES.as_posix()}
    text, resources = MarkdownExporter().from_notebook_node(notebook, where)
    text = re.sub(r"```python\s*```", "", text)
    text = re.sub(r"!\[png\]", lambda _: f"![{next(captions)}]", text)
    text = re.sub(r"\]\(([\w/]+\.ipynb(#[\w-]+)?)\)", r"](nbs/\1)", text)  # the README lies one folder up
    text = text.replace("](../", "](")
    for picture in (ROOT / PICTURES).glob("index_*"):
        picture.unlink()
    for name, data in resources.get("outputs", {}).items():
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_bytes(data)
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.splitlines()))
    (ROOT / "README.md").write_text(text.strip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
