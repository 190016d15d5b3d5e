"""Made-up students for a problem set, all graded in one run of the real nbgrader: what the homework's tests share.

    WRONG = [Wrong("no max", "softmax", "z - z.max(-1, keepdims=True)", "z", loses=["test_softmax_large"]), ...]
    students = {"solved": solved("ps1"), "untouched": released("ps1"), **wrong_students("ps1", WRONG)}
    rows = grade("ps1", students, tmp_path)          # {student: Row}, Row.cells[name].points
    check_wrong(rows, "ps1", WRONG, WRONG[0])        # lost exactly its points

An answer is the source of a solution cell. Wrong answers in different cells share a student, hence a kernel.
"""

import functools
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("nbgrader", reason="the extra `homework` is not installed")
import nbformat

from minilora import homework
from minilora.homework import course, submissions

COURSE = Path(__file__).parents[1] / "notebooks" / "homework"
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"


@dataclass(frozen=True)
class Wrong:
    """A typical wrong answer: in the solved cell `cell`, `right` becomes `wrong`. It loses the tests `loses` alone."""

    name: str
    cell: str
    right: str
    wrong: str
    loses: tuple[str, ...] | list[str]


def source(name):
    """The instructor's notebook of a problem set."""
    return nbformat.read(COURSE / "source" / name / f"{course.problem_sets(COURSE)[name]}.ipynb", as_version=4)


def cell(notebook, name):
    """The cell of a notebook that nbgrader knows by this name."""
    (found,) = (c for c in notebook.cells if submissions.name_of(c) == name)
    return found


def hidden_out(text):
    """A cell's source without hidden tests."""
    kept, hidden = [], False
    for line in text.split("\n"):
        hidden = hidden or "### BEGIN HIDDEN TESTS" in line
        if not hidden:
            kept.append(line)
        hidden = hidden and "### END HIDDEN TESTS" not in line
    return "\n".join(kept)


def answers(name):
    """{solution cell: its solved source}"""
    cells = [c for c in source(name).cells if submissions.name_of(c) and c.metadata.nbgrader.solution]
    return {submissions.name_of(c): c.source for c in cells}


@functools.cache
def course_folder():
    """A folder in which nbgrader has released the course once; every grading starts from a copy of it."""
    folder = tempfile.TemporaryDirectory(prefix="homework-")  # held by the cache, deleted at the end of the session
    homework.release(folder.name, COURSE)
    return folder


def released(name):
    """The students' version, made by nbgrader."""
    path = Path(course_folder().name, "release", name, f"{course.problem_sets(COURSE)[name]}.ipynb")
    return nbformat.read(path, as_version=4)


def answered(name, sources):
    """The students' version with answers: {solution cell: source}."""
    notebook = released(name)
    for key, text in sources.items():
        cell(notebook, key).source = text
    return notebook


def solved(name):
    """The students' version with every right answer."""
    return answered(name, answers(name))


def with_mistakes(name, wrongs):
    """The solved version with these wrong answers in it."""
    sources = answers(name)
    for wrong in wrongs:
        assert wrong.right in sources[wrong.cell], f"{wrong.name}: the solution of {wrong.cell} has no {wrong.right!r}"
        sources[wrong.cell] = sources[wrong.cell].replace(wrong.right, wrong.wrong)
    return answered(name, sources)


def packed(wrongs):
    """[[Wrong]]: as few students as go, one mistake a cell and a test in each."""
    students: list[list[Wrong]] = []
    for wrong in wrongs:
        fits = (s for s in students if all(w.cell != wrong.cell and not set(w.loses) & set(wrong.loses) for w in s))
        student = next(fits, None)
        if student is None:
            students.append(student := [])
        student.append(wrong)
    return students


def wrong_students(name, wrongs):
    """{student: notebook} for all wrong answers."""
    return {f"wrong{n}": with_mistakes(name, some) for n, some in enumerate(packed(wrongs))}


def hand_in(name, students, folder):
    """Write the notebooks as submissions: folder/STUDENT/psN/NOTEBOOK.ipynb."""
    for student, notebook in students.items():
        place = Path(folder, student, name)
        place.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, place / f"{course.problem_sets(COURSE)[name]}.ipynb")
    return Path(folder)


def grade(name, students, folder, timeout=8):
    """Grade {student: notebook} with nbgrader: -> {student: homework.Row}."""
    submissions = hand_in(name, students, Path(folder, "in"))
    shutil.copytree(course_folder().name, Path(folder, "out"))
    with pytest.warns(UserWarning, match="runs the students' code with your rights"):
        rows = homework.grade(submissions, Path(folder, "out"), COURSE, timeout)
    return {row.student: row for row in rows if row.problem_set == name}


def maxima(name, by_hand):
    """{graded cell: its points} of what tests grade, or of what a person grades, from the instructor's notebook."""
    cells = [c for c in source(name).cells if submissions.name_of(c) and c.metadata.nbgrader.grade]
    return {
        submissions.name_of(c): c.metadata.nbgrader.points
        for c in cells
        if bool(c.metadata.nbgrader.solution) == by_hand
    }


def lost(row):
    """{test: points lost} of a row."""
    tests = {key: c for key, c in row.cells.items() if not c.by_hand}
    return {key: c.maximum - c.points for key, c in tests.items() if c.points != c.maximum}


def check_wrong(rows, name, wrongs, wrong):
    """The student with this wrong answer lost all points of `loses`, and no other but for the answers beside it."""
    (n,) = (n for n, some in enumerate(packed(wrongs)) if wrong in some)
    points, row = maxima(name, by_hand=False), rows[f"wrong{n}"]
    expected = {test: points[test] for other in packed(wrongs)[n] for test in other.loses}
    assert set(row.cells) >= set(points), row.note
    assert lost(row) == expected, f"{wrong.name} (with {[w.name for w in packed(wrongs)[n]]})"


def check_form(name):
    """What every problem set must be: 100 points, nbgrader's metadata, no outputs, hidden tests, 20 to 30 by hand."""
    notebook = source(name)
    nbformat.validate(notebook)
    marked = [c for c in notebook.cells if submissions.name_of(c)]
    names = [submissions.name_of(c) for c in marked]
    assert len(set(names)) == len(names)
    assert all(c.metadata.nbgrader.schema_version == 3 for c in marked)
    assert sum(maxima(name, by_hand=False).values()) + sum(maxima(name, by_hand=True).values()) == 100
    assert 20 <= sum(maxima(name, by_hand=True).values()) <= 30
    for c in marked:
        if c.metadata.nbgrader.solution:
            assert c.source.count(BEGIN) == c.source.count(END) >= 1, submissions.name_of(c)
        elif c.metadata.nbgrader.grade:
            assert "### BEGIN HIDDEN TESTS" in c.source and "### END HIDDEN TESTS" in c.source, submissions.name_of(c)
            assert hidden_out(c.source).strip(), f"{submissions.name_of(c)} has no visible test"
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert all(not c.outputs and c.execution_count is None for c in code)
