"""Submissions: where they may lie, and the answers of one put into the notebook that was handed out."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOT_IN_A_NAME = set("*?[]{}+")  # nbgrader reads these as patterns or as separators


def find_submissions(folder: Path, sets: dict[str, str]) -> list[tuple[str, str, Path]]:
    """[(student, problem set, notebook)], before anything is graded. A student's folder has one of

        ps1/gradients.ipynb    ps1/ps1.ipynb    ps1.ipynb    gradients.ipynb

    for each set; `folder` holds the students' folders, or has submitted/ which does. Raises FileNotFoundError when
    there is nothing, ValueError for a name that no problem set has, or two notebooks for one.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"no folder {str(folder)!r}, expected one with a folder for each student")
    if (folder / "submitted").is_dir():
        folder = folder / "submitted"
    found: dict[tuple[str, str], Path] = {}
    for student in sorted(visible(folder)):
        if not student.is_dir():
            if student.suffix == ".ipynb":
                raise ValueError(f"{student}: expected it in a folder with the student's name")
            continue
        check_student(student, sets)
        for path, name in notebooks_of(student, sets):
            if (student.name, name) in found:
                raise ValueError(f"{student}: two notebooks for {name}: {found[student.name, name].name}, {path.name}")
            found[student.name, name] = path
    if not found:
        raise FileNotFoundError(f"no notebooks in {str(folder)!r}, expected STUDENT/{next(iter(sets))}/NAME.ipynb")
    return [(student, name, path) for (student, name), path in found.items()]


def visible(folder: Path) -> Iterator[Path]:
    """What is in a folder, without hidden files such as .ipynb_checkpoints."""
    return (path for path in folder.iterdir() if not path.name.startswith("."))


def check_student(folder: Path, sets: dict[str, str]) -> None:
    """Raises ValueError when a student's folder cannot be one."""
    if folder.name in sets:
        raise ValueError(f"{folder} is a problem set, expected a folder for each student with {folder.name} inside")
    if bad := sorted(NOT_IN_A_NAME & set(folder.name)):
        raise ValueError(f"{folder}: a student's name cannot have {' '.join(bad)} in it; rename the folder")


def notebooks_of(student: Path, sets: dict[str, str]) -> Iterator[tuple[Path, str]]:
    """(notebook, problem set) of one student."""
    by_notebook = {notebook: name for name, notebook in sets.items()}
    for path in sorted(visible(student)):
        if path.is_dir():
            if path.name not in sets:
                raise ValueError(f"{path}: no problem set {path.name!r}; there are {', '.join(sets)}")
            for inside in sorted(visible(path)):
                if inside.suffix == ".ipynb":
                    if inside.stem not in (path.name, sets[path.name]):
                        raise ValueError(f"{inside}: expected {sets[path.name]}.ipynb; rename it")
                    yield inside, path.name
        elif path.suffix == ".ipynb":
            name = by_notebook.get(path.stem, path.stem)
            if name not in sets:
                expected = ", ".join(f"{name}.ipynb" for name in sets)
                raise ValueError(f"{path}: no problem set of this name; expected {expected}")
            yield path, name


def put_back(submitted: Any, released: Any) -> tuple[Any, list[str]]:
    """The released notebook with the student's answers in it: -> (notebook, names of the cells that are put back).

    Of an answer only what the student wrote is taken; of a test, nothing; what is gone comes back. Cells that the
    student added stay behind the cell they stood behind, without metadata: a tag there can tell the kernel to skip a
    cell. Of two cells with one name the last one is the answer, as in nbgrader.
    """
    names = {name_of(cell) for cell in released.cells} - {None}
    last = {name_of(cell): n for n, cell in enumerate(submitted.cells) if name_of(cell) in names}
    theirs: dict[str | None, Any] = {}
    behind: dict[str | None, list] = {None: []}
    here = None
    for n, cell in enumerate(submitted.cells):
        if last.get(name_of(cell)) == n:
            here = name_of(cell)
            theirs[here], behind[here] = cell, []
        else:
            behind[here].append(type(cell)(cell, id=f"added-{n}", metadata=type(cell)()))
    mended, changed = copy.deepcopy(released), []
    mended.cells = behind[None]
    for cell in released.cells:
        name = name_of(cell)
        if name is None:
            continue  # unnamed cells are the text between; the student's copy of it is among theirs
        cell, answer = copy.deepcopy(cell), theirs.get(name)
        if answer is None or not (cell.metadata.nbgrader.solution or signature(answer) == signature(cell)):
            changed.append(name)
        elif cell.metadata.nbgrader.solution:
            cell.source = answer.source
            if cell.cell_type == "markdown" and "attachments" in answer:  # pictures
                cell.attachments = answer.attachments
        mended.cells += [cell, *behind.get(name, [])]
    return mended, changed


def name_of(cell: Any) -> str | None:
    """The name that nbgrader knows a cell by; None for any other cell, and for metadata that make no sense."""
    about = cell.metadata.get("nbgrader")
    name = about.get("grade_id") if isinstance(about, dict) else None
    return name if isinstance(name, str) else None


def signature(cell: Any) -> tuple:
    """What cannot change in a cell that is not an answer."""
    return cell.cell_type, cell.source, cell.metadata.get("nbgrader"), cell.metadata.get("tags")
