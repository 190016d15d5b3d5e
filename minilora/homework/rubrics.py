"""What the person who grades by hand sees beside each written answer: the model answer and the rubric.

Both stand in the instructor's notebook, in the place of the solution, which nbgrader shows nobody. So they are put into
the graded copy, in a cell behind the student's: formgrader shows that copy, and the feedback is made from it.
"""

from pathlib import Path
from typing import Any

from ..nn.storage import write_beside
from .submissions import name_of

TITLE = "**Model answer**"
MARKS = ("### BEGIN SOLUTION", "### END SOLUTION")


def show_answers(graded: Path, source: Path) -> None:
    """Put a model answer behind every answer of a graded notebook that a person grades."""
    import nbformat

    notebook = nbformat.read(graded, as_version=4)
    models = {name_of(cell): model(cell) for cell in nbformat.read(source, as_version=4).cells if by_hand(cell)}
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if name_of(cell) in models:
            text = models[name_of(cell)]
            cells.append(nbformat.v4.new_markdown_cell(text, id=f"model-{len(cells)}"))
    notebook.cells = cells
    write_beside(graded, lambda file: file.write(nbformat.writes(notebook).encode()))


def by_hand(cell: Any) -> bool:
    """Whether a person grades this cell: an answer that has points itself."""
    about = cell.metadata.get("nbgrader", {})
    return bool(about.get("grade") and about.get("solution"))


def model(cell: Any) -> str:
    """The solution in a cell, as it is shown: set off from the student's words."""
    lines = [line for line in cell.source.split("\n") if line.strip() not in MARKS]
    return "\n".join(f"> {line}".rstrip() for line in [TITLE, "", *lines])
