"""Grading: one submission after the other, each by a process of its own in a scratch copy of the course."""

import json
import os
import shutil
import stat
import tempfile
import warnings
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..nn.storage import write_beside
from .containment import Limits, run_contained
from .course import CONFIG, find_course, open_course, problem_sets
from .rubrics import show_answers
from .submissions import find_submissions, put_back
from .table import Cell, Row
from .worker import RESULT

WARNINGS = {  # isolated or not -> what to know before grading
    False: "grading runs the students' code with your rights; --isolate takes away the network, and the disk but for "
    "a scratch folder",
    True: "isolated, the students' code can still read the hidden tests and change what they use; look at full marks",
}
GRADEBOOK = "gradebook.db"
LARGEST = 50 * 2**20  # bytes of a notebook
SECONDS = 60  # that a submission may take beside its cells: nbgrader starts, and looks at its database


def grade(
    submissions: str | Path,
    output: str | Path,
    course: str | Path | None = None,
    timeout: int | None = None,
    progress: bool = False,
    isolate: bool = False,
    memory: int = Limits.memory,
) -> list[Row]:
    """Grade a folder of submissions: -> the table of everything graded in `output` so far, by student and set.

    What was graded before and has not changed is not run again. timeout: seconds a cell, by default the course's.
    memory: bytes a submission may take. isolate: no network, a read-only file system, no sight of solutions and grades.
    Raises ImportError without nbgrader, OSError and ValueError for folders and names that do not fit, and where
    `isolate` cannot be had; a submission that cannot be graded stops nothing: its row says why.
    """
    output, course, folder = Path(output), find_course(course), Path(submissions)
    sets = problem_sets(course)
    found = find_submissions(folder, sets)
    api = open_course(output, course, {name: sets[name] for _, name, _ in found}, timeout)
    hidden = [course, output, folder] if isolate else None
    notes: dict[tuple[str, str], str] = {}
    warnings.warn(WARNINGS[isolate], stacklevel=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nbgrader about its database, of nbformat about old notebooks
        for student, name, path in tqdm(found, "grading", unit=" notebooks", disable=not progress):
            place = Path(student, name, f"{sets[name]}.ipynb")
            try:
                text = read_submission(path, folder, course / "source" / name / place.name)
                notes[student, name] = grade_one(api, output, place, text, memory, hidden)
            except UnicodeDecodeError:
                notes[student, name] = f"not graded: {path.name} is no notebook (no UTF-8)"
            except OSError as error:
                notes[student, name] = f"not graded: {error}"
    rows = {(row.student, row.problem_set): row for row in read_gradebook(api, output, notes)}
    for key, note in notes.items():
        rows.setdefault(key, Row(*key, {}, note))
    return [rows[key] for key in sorted(rows)]


def read_submission(path: Path, folder: Path, source: Path | None = None) -> str:
    """A submission's text. Raises OSError for what is no regular file of the submission folder, such as a link."""
    steps = [path, *(parent for parent in path.parents if parent.is_relative_to(folder) and parent != folder)]
    if links := [step for step in steps if step.is_symlink()]:
        raise OSError(f"{links[-1].name} is a symbolic link, expected a file")
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
    with open(descriptor, "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError(f"{path.name} is a device, a pipe or a folder, expected a file")
        if source and os.path.samestat(about, source.stat()):
            raise OSError(f"{path.name} is a link to the solutions")
        if about.st_size > LARGEST:
            raise OSError(f"{path.name} has {about.st_size / 2**20:,.0f} MiB, expected at most {LARGEST / 2**20:.0f}")
        return file.read().decode("utf-8")


def grade_one(api: Any, output: Path, place: Path, text: str, memory: int, hidden: list[Path] | None) -> str:
    """Grade one submission, unless this very one was graded before: -> what is to be said about it.

    place: STUDENT/SET/NOTEBOOK.ipynb. The gradebook that the worker filled is taken over only where all went well, and
    ours is as it was.
    """
    import nbformat

    released = nbformat.read(output / "release" / Path(*place.parts[1:]), as_version=4)
    try:
        mended, changed = put_back(nbformat.reads(text, as_version=4), released)
        text = nbformat.writes(mended)
    except Exception as error:  # whatever a broken file makes nbformat raise, the next student waits
        return f"not graded: {place.name} is no notebook ({type(error).__name__})"
    note = f"put back as released: {', '.join(changed)}" if changed else ""
    taken, graded, gradebook = output / "submitted" / place, output / "autograded" / place, output / GRADEBOOK
    if graded.exists() and taken.exists() and taken.read_text(encoding="utf-8") == text:
        return note
    shutil.rmtree(graded.parent, ignore_errors=True)
    write_beside(taken, lambda file: file.write(text.encode()))
    before, seconds = gradebook.read_bytes(), int(api.config.Execute.get("timeout", 30))
    cells = sum(cell.cell_type == "code" for cell in mended.cells)
    with tempfile.TemporaryDirectory(prefix="minilora-") as name:
        scratch = scratch_course(output, place, Path(name).resolve())
        argv = ["-m", "minilora.homework.worker", str(scratch), *place.parts[:2], str(seconds), str(memory)]
        ended = run_contained(argv, scratch, Limits(SECONDS + cells * (seconds + 10), memory), hidden)
        result = scratch / RESULT
        said = json.loads(result.read_text(encoding="utf-8")) if not ended and result.is_file() else {}
        if gradebook.read_bytes() != before:
            return f"not graded: {gradebook} changed while the submission ran; look at it, and grade again"
        if not said.get("graded"):
            return f"not graded: {ended or said.get('said') or 'its process ended without a word'}"
        show_answers(scratch / "autograded" / place, output / "source" / Path(*place.parts[1:]))
        shutil.copytree((scratch / "autograded" / place).parent, graded.parent)
        write_beside(gradebook, lambda file: file.write((scratch / GRADEBOOK).read_bytes()))
    return note


def scratch_course(output: Path, place: Path, scratch: Path) -> Path:
    """A course with one problem set and one submission: all that is in the reach of the worker."""
    student, name = place.parts[:2]
    for part in (f"source/{name}", f"release/{name}", f"submitted/{student}/{name}"):
        shutil.copytree(output / part, scratch / part)
    for file in (CONFIG, GRADEBOOK):
        shutil.copyfile(output / file, scratch / file)
    return scratch


def read_gradebook(api: Any, output: Path, notes: dict[tuple[str, str], str]) -> list[Row]:
    """A row for every submission in the gradebook; its note says where there are more points than there can be."""
    rows = []
    with api.gradebook as gradebook:
        for assignment in gradebook.assignments:
            for submission in assignment.submissions:
                key = submission.student.id, assignment.name
                graded = any(output.glob(f"autograded/{key[0]}/{key[1]}/*.ipynb"))
                grades = [g for notebook in submission.notebooks for g in notebook.grades] if graded else []
                cells = {g.name: read_cell(g) for g in grades}
                above = [f"{name} has {c.points:g} of {c.maximum:g} points" for name, c in cells.items() if c.too_many]
                rows.append(Row(*key, cells, "; ".join(filter(None, [notes.get(key, ""), *above]))))
    return rows


def read_cell(grade: Any) -> Cell:
    """The points of a cell, from the gradebook. Tests are code; what a person grades is an answer, mostly text."""
    answers = {cell.name for cell in grade.cell.notebook.solution_cells}
    return Cell(grade.score, grade.max_score, grade.needs_manual_grade, grade.name in answers)
