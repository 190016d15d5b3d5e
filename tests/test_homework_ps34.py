"""Problem sets 3 (rank) and 4 (budget), graded by nbgrader: full marks for the solution, none for the released version,
and for typical wrong answers exactly the points that they should lose."""

import homework_grading as grading
import pytest
from homework_wrong import WRONG

pytestmark = pytest.mark.slow

SETS = ("ps3", "ps4")
CELLS = {
    "ps3": ["weighted_factors", "relative_errors", "allocate", "gains"],
    "ps4": ["shared_parameters", "memory", "normal_levels", "squeeze", "bits_per_number"],
}
MISTAKES = {name: [next(w for w in WRONG[name] if w.cell == cell) for cell in cells] for name, cells in CELLS.items()}


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """{problem set: {student: Row}}. One thread a kernel for linear algebra: two of them wait for one another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        yield {name: grade(name, tmp_path_factory.mktemp(name)) for name in SETS}


def grade(name, folder):
    """All students of a problem set."""
    wrong = grading.with_mistakes(name, MISTAKES[name])
    students = {"solved": grading.solved(name), "untouched": grading.released(name), "wrong": wrong}
    return grading.grade(name, students, folder, timeout=60)


@pytest.mark.parametrize("name", SETS)
def test_form(name):
    grading.check_form(name)


@pytest.mark.parametrize("name", SETS)
def test_the_solution_has_full_marks(graded, name):
    row = graded[name]["solved"]
    assert set(row.cells) >= set(grading.maxima(name, by_hand=False)), row.note
    assert grading.lost(row) == {}


@pytest.mark.parametrize("name", SETS)
def test_the_released_version_has_no_points(graded, name):
    row = graded[name]["untouched"]
    assert grading.lost(row) == grading.maxima(name, by_hand=False), row.note


@pytest.mark.parametrize("name", SETS)
def test_nbgrader_takes_the_points_of_wrong_answers(graded, name):
    points = grading.maxima(name, by_hand=False)
    assert grading.lost(graded[name]["wrong"]) == {test: points[test] for w in MISTAKES[name] for test in w.loses}


@pytest.mark.parametrize(
    ("name", "wrong"), [pytest.param(n, w, id=f"{n}-{w.cell}-{w.name}") for n in SETS for w in WRONG[n]]
)
def test_a_wrong_answer_loses_exactly_its_points(name, wrong):
    points = grading.maxima(name, by_hand=False)
    assert grading.lost_here(name, grading.changed(name, wrong)) == {test: points[test] for test in wrong.loses}
