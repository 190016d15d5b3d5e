"""Made-up students for a problem set: what the homework's tests share.

    students = {"solved": solved("ps1"), "untouched": released("ps1"), "wrong": with_mistakes("ps1", WRONG["ps1"][:1])}
    rows = grade("ps1", students, tmp_path)          # by the real nbgrader: {student: Row}, Row.cells[name].points
    lost_here("ps1", changed("ps1", wrong))          # the same cells run in this process: {test: points lost}

An answer is the source of a solution cell.
"""

import contextlib
import functools
import io
import re
import shutil
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("nbgrader", reason="the extra `homework` is not installed")
import nbformat

from minilora import homework
from minilora.homework import course, submissions

COURSE = Path(__file__).parents[1] / "notebooks" / "homework"
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"


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


def changed(name, wrong):
    """{solution cell: source} with one wrong answer among the right ones."""
    sources = answers(name)
    assert wrong.right in sources[wrong.cell], f"{wrong.name}: the solution of {wrong.cell} has no {wrong.right!r}"
    return {**sources, wrong.cell: sources[wrong.cell].replace(wrong.right, wrong.wrong)}


def with_mistakes(name, wrongs):
    """The solved version with these wrong answers in it, each in a cell of its own."""
    return answered(name, {**answers(name), **{wrong.cell: changed(name, wrong)[wrong.cell] for wrong in wrongs}})


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


# --- Without nbgrader: the cells of a problem set, run one after the other in this process.

SLOW = {"needs", "fine-tuning", "fine-tuning-again", "inputs"}  # given cells that depend on no answer: run once


@functools.cache
def code_of(name):
    """[(cell's name, compiled source, points of a test or None)] of the code cells that nbgrader knows."""
    cells = [c for c in source(name).cells if c.cell_type == "code" and submissions.name_of(c)]
    points = maxima(name, by_hand=False)
    return [(key, compile(c.source, key, "exec"), points.get(key)) for c in cells for key in [submissions.name_of(c)]]


@functools.cache
def defined_by(name, key):
    """What a slow cell defines; with what the cells before it do."""
    space = {"__name__": "__main__"}
    for other, code, points in code_of(name):
        if other == key or (points is None and other not in answers(name)):
            before = set(space)
            exec(code, space)
        if other == key:
            return {one: space[one] for one in space if one not in before}
    raise KeyError(key)


def run_here(name, sources):
    """Run the set with these answers, {solution cell: source}: -> ({test: (points lost, what it said)}, the names)."""
    space, said = {"__name__": "__main__"}, {}
    with contextlib.redirect_stdout(io.StringIO()):
        for key, code, points in code_of(name):
            if key in SLOW:
                space.update(defined_by(name, key))
                continue
            try:
                exec(compile(sources[key], key, "exec") if key in sources else code, space)
            except Exception as error:
                if points is not None:
                    said[key] = points, f"{type(error).__name__}: {error}"
    return said, space


def lost_here(name, sources):
    """{test: points lost} with these answers."""
    return {key: points for key, (points, _) in run_here(name, sources)[0].items()}


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
        if c.metadata.nbgrader.solution and c.metadata.nbgrader.grade:
            rubric = re.findall(r"^\* \*\*(\d+)\*\*: ", c.source.partition("**Rubric**")[2], re.M)
            assert sum(map(int, rubric)) == c.metadata.nbgrader.points, f"the rubric of {submissions.name_of(c)}"
        if c.metadata.nbgrader.solution:
            assert c.source.count(BEGIN) == c.source.count(END) >= 1, submissions.name_of(c)
        elif c.metadata.nbgrader.grade:
            assert "### BEGIN HIDDEN TESTS" in c.source and "### END HIDDEN TESTS" in c.source, submissions.name_of(c)
            assert hidden_out(c.source).strip(), f"{submissions.name_of(c)} has no visible test"
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert all(not c.outputs and c.execution_count is None for c in code)
