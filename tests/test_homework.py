"""The homework, graded by the real nbgrader: the door, what is put back, and problem sets 1 and 2."""

import csv
import shutil
import sqlite3
import sys
from pathlib import Path

import homework_grading as grading
import nbformat
import pytest
from homework_grading import COURSE
from homework_wrong import WRONG

from minilora import homework
from minilora.commands.main import main
from minilora.homework import course, submissions
from minilora.homework import grading as grading_steps

SETS = {"ps1": "gradients", "ps2": "lora"}

MISTAKES = {name: [next(w for w in WRONG[name] if w.cell == cell) for cell in cells] for name, cells in {
    "ps1": ["masked_mean_vjp", "sink_softmax_vjp", "head_norm_vjp", "attention_backward"],
    "ps2": ["shared_init", "shared_backward", "merge_shared", "gradient_norm"],
}.items()}  # fmt: skip
HEAD_NORM = ["test_head_norm_dx", "test_head_norm_eps", "test_head_norm_dw"]
LOOP = "def sink_softmax_vjp(z, sink, scale, g):\n    while True:\n        pass\n"
RAISE = "def head_norm_vjp(x, w, heads, g, eps=1e-6):\n    return x / undefined\n"


def tampered(notebook):
    """What a cheat does to tests: one edited, one emptied, one deleted, one turned to text, one worth more, two that
    the kernel is told to skip, one declared an answer, one declared no test, one doubled, and an own one added."""
    cell = {name: grading.cell(notebook, name) for name in grading.maxima("ps1", by_hand=False)}
    cell["test_masked_mean"].source = "pass"
    cell["test_bilinear_da"].source = ""
    notebook.cells.remove(cell["test_bilinear_dM"])
    cell["test_sink_softmax"].cell_type = "raw"
    cell["test_sink_softmax"].source = "passed"
    cell["test_sink_softmax_large"].metadata.nbgrader.points = 90
    cell["test_sink_dz"].metadata.tags = ["skip-execution"]
    cell["test_head_norm_dx"].metadata.nbgrader.update(solution=True, locked=False)
    cell["test_head_norm_dw"].metadata.nbgrader.grade = False
    cell["test_z_loss"].metadata = {}
    twin = nbformat.from_dict({**cell["test_attention_v"], "source": "pass", "id": "twin"})
    own = nbformat.from_dict({**twin, "id": "own"})
    own.metadata = {"nbgrader": {**twin.metadata.nbgrader, "grade_id": "my_test", "points": 100}}
    notebook.cells += [twin, own]
    for c in notebook.cells:
        c.pop("id")
    notebook.nbformat_minor = 4  # as an older editor saves it
    return notebook


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """{problem set: {student: row}}: all students of this file, graded by nbgrader."""
    students = {
        name: {
            "solved": grading.solved(name),
            "untouched": grading.released(name),
            "wrong": grading.with_mistakes(name, MISTAKES[name]),
        }
        for name in SETS
    }
    answers = {**grading.answers("ps1"), "sink_softmax_vjp": LOOP, "head_norm_vjp": RAISE}
    students["ps1"]["unlucky"] = tampered(grading.answered("ps1", answers))
    students["ps1"]["cheat"] = tampered(grading.released("ps1"))
    folder = tmp_path_factory.mktemp("homework")
    return {name: grading.grade(name, students[name], folder / name, timeout=4) for name in SETS}


@pytest.mark.parametrize("name", SETS)
def test_a_problem_set_is_complete(name):
    grading.check_form(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_the_solved_source_has_full_marks(rows, name):
    row = rows[name]["solved"]
    assert grading.lost(row) == {}
    assert {key: c.maximum for key, c in row.cells.items() if not c.by_hand} == grading.maxima(name, by_hand=False)
    assert row.waiting == sum(grading.maxima(name, by_hand=True).values())
    assert row.note == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_the_untouched_release_has_no_points(rows, name):
    row = rows[name]["untouched"]
    assert row.cells.keys() == {*grading.maxima(name, by_hand=False), *grading.maxima(name, by_hand=True)}
    assert all(c.points == 0 and not c.waiting for c in row.cells.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wrong"), [pytest.param(n, w, id=f"{n}-{w.cell}-{w.name}") for n in SETS for w in WRONG[n]]
)
def test_a_wrong_answer_loses_exactly_its_points(name, wrong):
    points = grading.maxima(name, by_hand=False)
    assert grading.lost_here(name, grading.changed(name, wrong)) == {test: points[test] for test in wrong.loses}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_nbgrader_takes_the_same_points(rows, name):
    points = grading.maxima(name, by_hand=False)
    assert grading.lost(rows[name]["wrong"]) == {test: points[test] for w in MISTAKES[name] for test in w.loses}


@pytest.mark.slow
def test_an_endless_loop_and_an_error_cost_their_own_points_and_lost_tests_none(rows):
    points, row = grading.maxima("ps1", by_hand=False), rows["ps1"]["unlucky"]
    lost = ["test_sink_dz", "test_sink_dsink", "test_sink_memory", *HEAD_NORM]
    assert grading.lost(row) == {test: points[test] for test in lost}
    assert "test_bilinear_dM" in row.note


@pytest.mark.slow
def test_tampering_with_tests_gains_nothing(rows):
    row = rows["ps1"]["cheat"]
    assert (row.points(by_hand=False), row.maximum(by_hand=False)) == (0, 75)
    assert "test_sink_dz" in row.note and "test_attention_x" not in row.note


def notebook_of(*cells):
    """A notebook of (name, source, is an answer) cells; without a name it is a cell like any other."""
    made = []
    for name, source, answer in cells:
        made.append(nbformat.v4.new_code_cell(source))
        if name:
            made[-1].metadata.nbgrader = {
                "grade_id": name,
                "solution": answer,
                "grade": not answer,
                "locked": not answer,
            }
    return nbformat.v4.new_notebook(cells=made)


def test_an_answer_is_taken_and_everything_else_put_back():
    released = notebook_of((None, "text", 0), ("f", "stub", True), ("test_f", "assert f", False), ("g", "stub", True))
    handed_in = notebook_of(
        (None, "text", 0), ("f", "first try", True), (None, "helper", 0), ("f", "answer", True),
        ("test_f", "pass", False), (None, "mine", 0),
    )  # fmt: skip
    handed_in.cells[-1].metadata = {"tags": ["skip-execution"], "nbgrader": {"grade_id": ["own"], "grade": True}}
    for cell in handed_in.cells:
        del cell["id"]  # as older editors write it
    mended, changed = submissions.put_back(handed_in, released)
    assert [c.source for c in mended.cells] == ["text", "first try", "helper", "answer", "assert f", "mine", "stub"]
    assert [submissions.name_of(c) for c in mended.cells] == [None, None, None, "f", "test_f", None, "g"]
    assert changed == ["test_f", "g"]
    assert mended.cells[5].metadata == {}
    nbformat.validate(mended)
    assert len({c.id for c in mended.cells}) == 7
    assert submissions.put_back(mended, released) == (mended, [])


def test_ctrl_c_inside_nbgrader_is_ctrl_c_here():
    with pytest.raises(KeyboardInterrupt):
        course.cause({"success": False, "error": "Traceback (most recent call last):\n  ...\nKeyboardInterrupt\n"})


@pytest.mark.slow
def test_the_door_from_release_to_the_grade_by_hand(tmp_path, monkeypatch, capsys):
    """Release, a flat folder with a broken file and a dying kernel beside a good one, points by hand, a second run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(COURSE / "source/ps2", "notebooks/homework/source/ps2")  # where the command looks for a course
    shutil.copy(COURSE / "nbgrader_config.py", "notebooks/homework")
    before = sorted(Path("notebooks").rglob("*"))
    assert main(["homework", "release"]) == 0
    assert capsys.readouterr().out.split() == ["homework/release/ps2/lora.ipynb"]
    text = Path("homework/release/ps2/lora.ipynb").read_text()
    assert "raise NotImplementedError()" in text and "BEGIN" not in text and "By hand: x A^T = 3" in text

    for student in ("ada", "bob", "cyd"):
        (tmp_path / "in" / student).mkdir(parents=True)
    nbformat.write(grading.solved("ps2"), tmp_path / "in/ada/ps2.ipynb")
    (tmp_path / "in/bob/lora.ipynb").write_text("this is no notebook")
    nbformat.write(grading.answered("ps2", {"shared_init": "import os\nos._exit(1)"}), tmp_path / "in/cyd/ps2.ipynb")
    assert main(["homework", "grade", "in"]) == 1  # bob and cyd could not be graded
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["ada", "ps2", "75", "75", "0", "25", "25", "75", "100"]
    assert "no notebook" in lines[2] and "Kernel died" in lines[3]

    with sqlite3.connect("homework/gradebook.db") as gradebook:  # as nbgrader's formgrader writes it
        gradebook.execute("UPDATE grade SET manual_score = 7, needs_manual_grade = 0 WHERE needs_manual_grade = 1 "
                          "AND auto_score IS NULL")  # fmt: skip
    for broken in ("in/bob/lora.ipynb", "in/cyd/ps2.ipynb"):
        Path(broken).unlink()
    with monkeypatch.context() as patched:
        patched.setattr(grading_steps, "write_beside", lambda path, write: pytest.fail(f"{path} is graded again"))
        patched.setattr(homework, "save_table", lambda rows, path: path)
        assert main(["homework", "grade", "in"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["ada", "ps2", "75", "75", "21", "25", "0", "96", "100"]
    assert sorted(Path("notebooks").rglob("*")) == before

    path = Path("notebooks/homework/source/ps2/lora.ipynb")  # a test is changed, so that nobody passes it
    source = nbformat.read(path, as_version=4)
    grading.cell(source, "test_start_at_base").source += "\nassert False"
    nbformat.write(source, path)
    assert main(["homework", "grade", "in"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:9] == [
        "ada",
        "ps2",
        "69",
        "75",
        "21",
        "25",
        "25",
        "90",
        "100",
    ]


def test_where_a_submission_may_lie(tmp_path):
    names = ["ada/ps1/gradients.ipynb", "ada/ps2/ps2.ipynb", "bob/ps1.ipynb", "bob/lora.ipynb"]
    for name in [*names, "bob/.ipynb_checkpoints/x.ipynb", "ada/ps1/picture.png", "list.csv"]:
        (tmp_path / "submitted" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "submitted" / name).touch()
    found = [("ada", "ps1"), ("ada", "ps2"), ("bob", "ps1"), ("bob", "ps2")]
    for folder in (tmp_path, tmp_path / "submitted"):  # a course folder, or the submissions themselves
        paths = {
            (s, n): p.relative_to(tmp_path / "submitted") for s, n, p in submissions.find_submissions(folder, SETS)
        }
        assert sorted(paths) == found
        assert [str(paths[key]) for key in found] == names[:2] + names[2:]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "no notebooks in 'in', expected STUDENT/ps1/NAME.ipynb"),
        (["ada/notes.txt"], "no notebooks in 'in'"),
        (["ada/ps9/gradients.ipynb"], "in/ada/ps9: no problem set 'ps9'; there are ps1, ps2"),
        (["ada/ps1/Untitled.ipynb"], "in/ada/ps1/Untitled.ipynb: expected gradients.ipynb; rename it"),
        (["ada/homework.ipynb"], "in/ada/homework.ipynb: no problem set of this name; expected ps1.ipynb, ps2.ipynb"),
        (["ada/ps1.ipynb", "ada/ps1/gradients.ipynb"], "two notebooks for ps1"),
        (["ps1/gradients.ipynb"], "in/ps1 is a problem set, expected a folder for each student"),
        (["ps1.ipynb"], "in/ps1.ipynb: expected it in a folder with the student's name"),
        (["a+b/ps1.ipynb"], "a student's name cannot have + in it"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_line(files, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grading_steps, "problem_sets", lambda course: SETS)
    monkeypatch.setattr(grading_steps, "open_course", lambda *_: pytest.fail("nothing may be graded"))
    (tmp_path / "in").mkdir()
    for name in files:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    assert main(["homework", "grade", "in", "--course", str(COURSE)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("minilora: error: ") and said in line


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["homework"], "release|grade"),
        (["homework", "mark"], "got 'mark'"),
        (["homework", "grade"], "grade what?"),
        (["homework", "grade", "nowhere"], "no folder 'nowhere'"),
        (["homework", "release", "--course", "nowhere"], "'nowhere': expected a course folder with source/ps1/NAME"),
        (["homework", "release", "--output", str(COURSE / "out")], "is in the course folder, which stays as it is"),
        (["homework", "release", "--output", "odd[1]"], "nbgrader takes no path with [ ] in it"),
    ],
)
def test_a_mistake_is_one_line(argv, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("minilora: error: ") and said in line
    assert not (COURSE / "out").exists()


def test_without_nbgrader_it_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nbgrader.apps", None)
    assert main(["homework", "release", "--output", str(tmp_path)]) == 2
    assert 'pip install "minilora[homework]"' in capsys.readouterr().err


def test_the_table_is_aligned_and_saved(tmp_path):
    cells = {"test": homework.Cell(40, 75, False, False), "why": homework.Cell(0, 25, True, True)}
    rows = [homework.Row("ada", "ps1", cells), homework.Row("Zoë van den Berg", "ps2", {}, "not graded: no notebook")]
    lines = homework.table(rows).splitlines()
    assert [line.index(word) for line, word in zip(lines, ("set", "ps1", "ps2"), strict=True)] == [18] * 3
    assert lines[1].split() == ["ada", "ps1", "40", "75", "0", "25", "25", "40", "100"]
    with open(homework.save_table(rows, tmp_path / "grades.csv"), newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert (first["tests"], first["tests_of"], first["waiting"], first["total_of"]) == ("40", "75", "25", "100")
    assert (second["student"], second["tests"], second["note"]) == ("Zoë van den Berg", "", "not graded: no notebook")


@pytest.mark.slow
def test_model_answers_and_rubrics_are_in_formgrader_and_in_the_feedback(tmp_path):
    """What formgrader shows is made from the graded notebook by its own template; the feedback by nbgrader."""
    from nbconvert.exporters import HTMLExporter
    from nbgrader.server_extensions.formgrader import handlers

    answered = grading.solved("ps2")
    grading.cell(answered, "merge_reasoning").source = "My own words."
    grading.grade("ps2", {"ada": answered}, tmp_path)
    place = tmp_path / "out/autograded/ada/ps2/lora.ipynb"
    result = course.course_api(tmp_path / "out").generate_feedback("ps2", "ada")
    assert result["success"], result
    templates = Path(handlers.__file__).parent / "templates"
    shown = HTMLExporter(template_name="formgrade", extra_template_basedirs=[str(templates)])
    resources = {
        "total": 1,
        "submission_id": "x",
        "assignment_id": "ps2",
        "notebook_id": "lora",
        "base_url": "",
        "mathjax_url": "",
        "index": 0,
    }
    pages = {
        "formgrader": shown.from_filename(str(place), resources=resources)[0],
        "feedback": (tmp_path / "out/feedback/ada/ps2/lora.html").read_text(),
    }
    for name, page in pages.items():
        assert page.count("Model answer") == len(grading.maxima("ps2", by_hand=True)), name
        answer = page.index("My own words.")
        model = page.index("Model answer", answer)
        assert answer < model < page.index("<strong>Rubric</strong> (8 points)", model), name
        assert model < page.index("the transposed weight, with both tests"), name


def test_the_course_is_found_beside_the_package_where_there_is_no_checkout(tmp_path, monkeypatch):
    """As the wheel installs it: minilora/course/homework (pyproject.toml, force-include)."""
    site = tmp_path / "site-packages/minilora"
    shutil.copytree(COURSE, site / "course/homework")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(course, "__file__", str(site / "homework/course.py"))
    assert course.find_course() == site / "course/homework"
    assert list(course.problem_sets(course.find_course())) == ["ps1", "ps2", "ps3", "ps4"]


@pytest.mark.parametrize("name", ["ps1", "ps2", "ps3", "ps4"])
def test_the_first_cell_says_what_to_install_and_checks_it(name, monkeypatch, capsys):
    cells = [c for c in grading.source(name).cells if c.cell_type == "code"]
    told = next(c.source for c in grading.source(name).cells if submissions.name_of(c) == "install")
    assert submissions.name_of(cells[0]) == "needs" and 'pip install "minilora[notebooks]"' in told
    exec(cells[0].source, {})
    assert capsys.readouterr().out.endswith(": ready\n")
    for module, words in {"minilora": "minilora is not here", "minilora.homework.checks": "checks is not here"}.items():
        with monkeypatch.context() as patched, pytest.raises(ImportError) as error:
            patched.setitem(sys.modules, module, None)
            exec(cells[0].source, {})
        assert words in str(error.value) and '-m pip install --upgrade "minilora[notebooks]"' in str(error.value)
    with (
        monkeypatch.context() as patched,
        pytest.raises(ImportError, match=r"minilora is 0\.0\.9, expected 0\.1 or newer"),
    ):
        patched.setattr("minilora.__version__", "0.0.9")
        exec(cells[0].source, {})
