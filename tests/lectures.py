"""What the tests of the lectures share: where they are, their cells, and a kernel that runs them."""

import ast
import copy
import os
import tempfile
from pathlib import Path
from unittest import mock

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
LECTURES = sorted(FOLDER.glob("[0-9][0-9]*_*.ipynb"))
REAL = FOLDER / "10_a_real_language_model.ipynb"  # which needs a model that is fetched

Notebook = dict
Complaints = list[str]


def cells(notebook: Notebook, kind: str) -> list[tuple[int, dict, str]]:
    """(place, cell, its text) of every cell of a kind."""
    return [(i, c, "".join(c["source"])) for i, c in enumerate(notebook["cells"]) if c["cell_type"] == kind]


def parsed(source: str) -> ast.Module:
    """A code cell's syntax tree, without its magics."""
    return ast.parse("\n".join(line for line in source.split("\n") if not line.startswith(("%", "!"))))


def told(output: dict) -> str:
    """What a text output says."""
    return "".join(output.get("text", "")) + "".join(output.get("data", {}).get("text/plain", ""))


def is_tagged(cell: dict, tag: str) -> bool:
    """Whether a cell has this tag."""
    return tag in cell["metadata"].get("tags", [])


def run(path: Path, changed: dict[str, object] | None = None) -> tuple[Notebook, Notebook]:
    """A lecture as committed, and as a new kernel makes it in an empty folder, with parameters changed if so asked.

    Its claims are strict on the committed parameters. It leaves no file, neither there nor beside the notebooks.
    """
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipywidgets")
    committed = nbformat.read(path, as_version=4)
    fresh = copy.deepcopy(committed)
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    for name, value in (changed or {}).items():
        set_parameter(fresh, name, value)
    before = _written(FOLDER)
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONOPTIMIZE", "MINILORA_CLAIMS")}
    strict = {} if changed else {"MINILORA_CLAIMS": "strict"}
    with tempfile.TemporaryDirectory() as empty, mock.patch.dict(os.environ, {**kept, **strict}, clear=True):
        there = {"metadata": {"path": empty}}
        nbclient.NotebookClient(fresh, timeout=900, kernel_name="python3", resources=there).execute()
        assert list(Path(empty).iterdir()) == [], "the lecture left files behind"
    assert _written(FOLDER) == before, "the lecture left files behind, or changed some"
    return committed, fresh


def parameters(notebook: Notebook) -> dict[str, object]:
    """{"RANK": 8, ...}: what a lecture's cell of parameters assigns."""
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if is_tagged(cell, "parameters")]
    statements = parsed(sources[0]).body if sources else []
    return {s.targets[0].id: ast.literal_eval(s.value) for s in statements if isinstance(s, ast.Assign)}  # type: ignore


def set_parameter(notebook: Notebook, name: str, value: object) -> None:
    """Write another value into the cell of parameters."""
    (cell,) = (cell for cell in notebook["cells"] if is_tagged(cell, "parameters"))
    lines = "".join(cell["source"]).split("\n")
    (place,) = (i for i, line in enumerate(lines) if line.startswith(f"{name} = "))
    cell["source"] = "\n".join([*lines[:place], f"{name} = {value!r}", *lines[place + 1 :]])


def _written(folder: Path) -> dict[Path, int]:
    """When each file beside the notebooks was written; Python's own may come and go, of other tests, too."""
    files = (f for f in folder.rglob("*") if "__pycache__" not in f.parts and f.suffix != ".ipynb")
    return {f: f.stat().st_mtime_ns for f in files if f.is_file()}
