"""Homework: hand out the students' version, grade what comes back, make a table. nbgrader does both.

This file lays the folders out as nbgrader wants them. The course, `notebooks/homework`, is only read: everything is
written to an output folder, which is a complete nbgrader course of its own (nbgrader formgrader opens it):

    source/ release/ submitted/ autograded/ gradebook.db nbgrader_config.py grades.csv

A submission is put back on the released notebook before it is graded: the answers are the student's, and every cell
that is not an answer is as it was handed out, whatever became of it on the way.
"""

import copy
import csv
import io
import os
import re
import shutil
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .nn.storage import write_beside

COURSE = Path("notebooks/homework")
CONFIG = "nbgrader_config.py"
NOT_IN_A_NAME = set("*?[]{}+")  # nbgrader reads these as patterns or as separators


@dataclass(frozen=True)
class Cell:
    """The points of one graded cell: given so far, at most, and whether a person has yet to look at it."""

    points: float
    maximum: float
    waiting: bool
    by_hand: bool


@dataclass(frozen=True)
class Row:
    """One line of the table: a student's problem set. `note` says what was put back, or why there are no points."""

    student: str
    problem_set: str
    cells: dict[str, Cell]
    note: str = ""

    def points(self, by_hand: bool) -> float:
        """Given so far in the cells that a person grades, or in those that tests grade."""
        return sum(cell.points for cell in self.cells.values() if cell.by_hand == by_hand)

    def maximum(self, by_hand: bool) -> float:
        """The most that those cells can give."""
        return sum(cell.maximum for cell in self.cells.values() if cell.by_hand == by_hand)

    @property
    def waiting(self) -> float:
        """The points that wait for a person."""
        return sum(cell.maximum for cell in self.cells.values() if cell.waiting)


def find_course(folder: str | Path | None = None) -> Path:
    """The course folder: the given one, or notebooks/homework here or in the checkout that this package runs from.

    Raises FileNotFoundError when there is no source/ with problem sets in it.
    """
    places = [Path(folder)] if folder else [COURSE, Path(__file__).parents[1] / COURSE]
    for place in places:
        if any(place.glob("source/*/*.ipynb")):
            return place
    looked = f"{str(folder)!r}" if folder else f"no {COURSE} here"
    raise FileNotFoundError(
        f"{looked}: expected a course folder with source/ps1/NAME.ipynb in it; --course takes notebooks/homework "
        "of a checkout of minilora"
    )


def problem_sets(course: Path) -> dict[str, str]:
    """{problem set: the name of its notebook}, such as {"ps1": "gradients"}. Raises ValueError for two in one set."""
    found: dict[str, str] = {}
    for path in sorted(course.glob("source/*/*.ipynb")):
        if path.parent.name in found:
            raise ValueError(f"{path.parent} has two notebooks, expected one a problem set")
        found[path.parent.name] = path.stem
    return found


def release(output: str | Path, course: str | Path | None = None) -> list[Path]:
    """Write the students' version of every problem set: -> the notebooks to hand out.

    Raises ImportError without nbgrader, FileNotFoundError without a course, ValueError when nbgrader refuses.
    """
    output, course = Path(output), find_course(course)
    sets = problem_sets(course)
    open_course(output, course, sets)
    return [output / "release" / name / f"{notebook}.ipynb" for name, notebook in sets.items()]


def grade(
    submissions: str | Path,
    output: str | Path,
    course: str | Path | None = None,
    timeout: int | None = None,
    progress: bool = False,
) -> list[Row]:
    """Grade a folder of submissions: -> the table of everything graded in `output` so far, by student and set.

    What was graded before and has not changed is not run again. timeout: seconds a cell, by default the course's.
    Raises ImportError without nbgrader, OSError and ValueError for folders and names that do not fit; a submission that
    cannot be graded stops nothing: its row says why.
    """
    output, course = Path(output), find_course(course)
    sets = problem_sets(course)
    found = find_submissions(Path(submissions), sets)
    api = open_course(output, course, {name: sets[name] for _, name, _ in found}, timeout)
    notes: dict[tuple[str, str], str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nbgrader about its database, of nbformat about old notebooks
        for student, name, path in tqdm(found, "grading", unit=" notebooks", disable=not progress):
            notes[student, name] = grade_one(api, output, student, name, sets[name], path)
    rows = {(row.student, row.problem_set): row for row in read_gradebook(api, output, notes)}
    for key, note in notes.items():
        rows.setdefault(key, Row(*key, {}, note))
    return [rows[key] for key in sorted(rows)]


# --- Finding the submissions.


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


# --- nbgrader.


def open_course(output: Path, course: Path, sets: dict[str, str], timeout: int | None = None) -> Any:
    """nbgrader's own interface to `output`, in which these problem sets of the course have been released."""
    try:
        from nbgrader.apps import NbGraderAPI
        from traitlets.config.loader import PyFileConfigLoader
    except ImportError:
        raise ImportError('homework is graded by nbgrader: pip install "minilora[homework]"') from None
    if output.resolve().is_relative_to(course.resolve()):
        raise ValueError(f"{output} is in the course folder, which stays as it is; --output takes a folder elsewhere")
    if bad := sorted(NOT_IN_A_NAME & set(str(output.resolve()))):
        raise ValueError(f"{output.resolve()}: nbgrader takes no path with {' '.join(bad)} in it; --output elsewhere")
    output.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(course / CONFIG, output / CONFIG)
    config = PyFileConfigLoader(CONFIG, path=str(output)).load_config()
    config.CourseDirectory.root = str(output.resolve())
    config.NbGraderAPI.log_level = "ERROR"
    find_programs()
    if timeout is not None:
        config.Execute.timeout = timeout
    api = NbGraderAPI(config=config)
    for name, notebook in sets.items():
        release_one(api, output, course, f"{name}/{notebook}.ipynb")
    return api


def find_programs() -> None:
    """Let nbgrader find alembic, which it runs by name, beside this Python: its environment need not be active."""
    here, path = sysconfig.get_path("scripts"), os.environ.get("PATH", "")
    if here not in path.split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([here, path])


def release_one(api: Any, output: Path, course: Path, path: str) -> None:
    """Release a problem set unless it is there already; changed since, it is released anew, to be graded anew."""
    ours, theirs, name = course / "source" / path, output / "source" / path, Path(path).parent.name
    same = theirs.exists() and theirs.read_bytes() == ours.read_bytes()
    if same and (output / "release" / path).exists():
        return
    for stale in [output / "release" / name, *output.glob(f"autograded/*/{name}")]:
        shutil.rmtree(stale, ignore_errors=True)
    shutil.rmtree(theirs.parent, ignore_errors=True)
    shutil.copytree(ours.parent, theirs.parent, ignore=shutil.ignore_patterns(".*"))
    result = api.generate_assignment(name)
    if not result["success"]:
        raise ValueError(f"nbgrader cannot release {name}: {cause(result)}; a new --output starts a new gradebook")


def grade_one(api: Any, output: Path, student: str, name: str, notebook: str, path: Path) -> str:
    """Grade one submission, unless this very one was graded before: -> what is to be said about it."""
    import nbformat

    place = Path(student, name, f"{notebook}.ipynb")
    released = nbformat.read(output / "release" / name / f"{notebook}.ipynb", as_version=4)
    try:
        mended, changed = put_back(nbformat.read(path, as_version=4), released)
        text = nbformat.writes(mended)
    except Exception as error:  # whatever a broken file makes nbformat raise, the next student waits
        return f"not graded: {path.name} is no notebook ({type(error).__name__})"
    note = f"put back as released: {', '.join(changed)}" if changed else ""
    taken, graded = output / "submitted" / place, output / "autograded" / place
    if graded.exists() and taken.exists() and taken.read_text(encoding="utf-8") == text:
        return note
    shutil.rmtree(graded.parent, ignore_errors=True)
    write_beside(taken, lambda file: file.write(text.encode()))
    result = api.autograde(name, student)
    return note if result["success"] else f"not graded: {cause(result)}"


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


def cause(result: dict) -> str:
    """The last error in what nbgrader has to say. Raises KeyboardInterrupt when that was it: nbgrader catches it."""
    said = result.get("log", "") + result.get("error", "")
    if re.search(r"^KeyboardInterrupt", said, re.M):
        raise KeyboardInterrupt
    errors = re.findall(r"^ *(?:\w+\.)*(\w*Error\b.*)", said, re.M)
    return errors[-1] if errors else said.strip().rpartition("\n")[2]


def read_gradebook(api: Any, output: Path, notes: dict[tuple[str, str], str]) -> list[Row]:
    """A row for every submission in the gradebook."""
    rows = []
    with api.gradebook as gradebook:
        for assignment in gradebook.assignments:
            for submission in assignment.submissions:
                key = submission.student.id, assignment.name
                graded = any(output.glob(f"autograded/{key[0]}/{key[1]}/*.ipynb"))
                grades = [g for notebook in submission.notebooks for g in notebook.grades] if graded else []
                rows.append(Row(*key, {g.name: read_cell(g) for g in grades}, notes.get(key, "")))
    return rows


def read_cell(grade: Any) -> Cell:
    """The points of a cell, from the gradebook. Tests are code; what a person grades is an answer, mostly text."""
    answers = {cell.name for cell in grade.cell.notebook.solution_cells}
    return Cell(grade.score, grade.max_score, grade.needs_manual_grade, grade.name in answers)


# --- The table.

TITLES = ("student", "set", "tests", "of", "by hand", "of", "waiting", "total", "of")


def figures(row: Row) -> list[float]:
    """The numbers of a row, in the order of the titles."""
    tests, by_hand = (row.points(hand) for hand in (False, True))
    of_tests, of_hand = (row.maximum(hand) for hand in (False, True))
    return [tests, of_tests, by_hand, of_hand, row.waiting, tests + by_hand, of_tests + of_hand]


def table(rows: list[Row]) -> str:
    """The rows as aligned text. `waiting` are the points that a person has yet to give."""
    wide = max([7, *(len(row.student) for row in rows)])
    layout = f"{{:<{wide}}}  {{:<4}}{{:>7}}{{:>5}}{{:>9}}{{:>5}}{{:>9}}{{:>8}}{{:>5}}"
    lines = [layout.format(*TITLES)]
    for row in rows:
        numbers = [f"{x:g}" for x in figures(row)] if row.cells else ["-"] * 7
        lines.append(layout.format(row.student, row.problem_set, *numbers) + (f"  {row.note}" if row.note else ""))
    return "\n".join(lines)


def save_table(rows: list[Row], path: str | Path) -> Path:
    """The rows as CSV; a submission that was not graded has empty figures."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    titles = ["tests", "tests_of", "by_hand", "by_hand_of", "waiting", "total", "total_of"]
    writer.writerow(["student", "problem_set", *titles, "note"])
    for row in rows:
        numbers = [f"{x:g}" for x in figures(row)] if row.cells else [""] * 7
        writer.writerow([row.student, row.problem_set, *numbers, row.note])
    return write_beside(path, lambda file: file.write(text.getvalue().encode()))
