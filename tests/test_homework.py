"""The homework, graded by the real nbgrader: the door, what is put back, and problem sets 1 and 2.

Every wrong answer is a line of the solution changed into what students write; it must lose its points and no others.
"""

import csv
import shutil
import sqlite3
import sys
from pathlib import Path

import homework_grading as grading
import nbformat
import pytest
from homework_grading import COURSE, Wrong

from minilora import homework
from minilora.commands.main import main
from minilora.homework import course, submissions
from minilora.homework import grading as grading_steps

SETS = {"ps1": "gradients", "ps2": "lora"}

PS1 = [
    Wrong("repeated axes not summed", "unbroadcast", "return g.sum(axis=repeated, keepdims=True)", "return g",
          loses=["test_unbroadcast", "test_matmul_batch"]),
    Wrong("not summed over the batch", "matmul_vjp", "unbroadcast(da, a.shape), unbroadcast(db, b.shape)", "da, db",
          loses=["test_matmul_batch"]),
    Wrong("transposed factor", "matmul_vjp", "a.swapaxes(-1, -2) @ g", "g.swapaxes(-1, -2) @ a",
          loses=["test_matmul", "test_matmul_batch"]),
    Wrong("transposes all axes", "matmul_vjp", "a.swapaxes(-1, -2) @ g", "a.T @ g", loses=["test_matmul_batch"]),
    Wrong("no maximum subtracted", "softmax", "np.exp(z - z.max(axis=-1, keepdims=True))", "np.exp(z)",
          loses=["test_softmax_large"]),
    Wrong("one maximum for all rows", "softmax", "z.max(axis=-1, keepdims=True)", "z.max()",
          loses=["test_softmax_large"]),
    Wrong("normalised over the wrong axis", "softmax", "e.sum(axis=-1", "e.sum(axis=0",
          loses=["test_softmax", "test_softmax_large"]),
    Wrong("the diagonal of the Jacobian alone", "softmax_vjp", "(g - (g * p).sum(axis=-1, keepdims=True))",
          "g * (1 - p)", loses=["test_softmax_vjp"]),
    Wrong("summed over all rows", "softmax_vjp", ".sum(axis=-1, keepdims=True)", ".sum()", loses=["test_softmax_vjp"]),
    Wrong("not through the mean", "layer_norm_vjp", "m - m.mean(axis=-1, keepdims=True)", "m",
          loses=["test_layer_norm_dx"]),
    Wrong("not through the variance", "layer_norm_vjp", " - n * (m * n).mean(axis=-1, keepdims=True)", "",
          loses=["test_layer_norm_dx"]),
    Wrong("w forgotten", "layer_norm_vjp", "m = g * w", "m = g", loses=["test_layer_norm_dx"]),
    Wrong("parameters not summed over the batch", "layer_norm_vjp", "rows = tuple(range(x.ndim - 1))", "rows = (0,)",
          loses=["test_layer_norm_parameters"]),
    Wrong("a sum in place of the mean", "cross_entropy_vjp", " / targets.size", "", loses=["test_cross_entropy"]),
    Wrong("a mean over the first axis", "cross_entropy_vjp", "targets.size", "len(targets)",
          loses=["test_cross_entropy"]),
    Wrong("uphill", "cross_entropy_vjp", "(p - np.eye(logits.shape[-1])[targets])",
          "(np.eye(logits.shape[-1])[targets] - p)", loses=["test_cross_entropy"]),
    Wrong("a one-sided difference", "numerical_gradient", "(loss(up) - loss(down)) / (2 * h)",
          "(loss(up) - loss(x)) / h", loses=["test_numerical_gradient"]),
    Wrong("x is not put back", "numerical_gradient", "x.copy(), x.copy()", "x, x.copy()",
          loses=["test_numerical_gradient"]),
    Wrong("the planted P", "attention_backward", "dv = p.T @ dout", "dv = p @ dout",
          loses=["test_values", "test_input"]),
    Wrong("the planted root", "attention_backward", "ds.T @ q / root", "ds.T @ q", loses=["test_keys", "test_input"]),
    Wrong("the planted residual", "attention_backward", "dx = g + dq", "dx = dq", loses=["test_input"]),
]  # fmt: skip

PS2 = [
    Wrong("alpha / r forgotten", "lora_forward", "alpha / len(A) * (x", "(x", loses=["test_scaling"]),
    Wrong("alpha without r", "lora_forward", "alpha / len(A)", "alpha",
          loses=["test_forward", "test_forward_batch", "test_scaling"]),
    Wrong("transposed factor", "lora_forward", "x @ W.T", "x @ W",
          loses=["test_forward", "test_forward_batch", "test_scaling"]),
    Wrong("B not zero", "lora_init", "np.zeros((d_out, r))", "rng.uniform(-bound, bound, (d_out, r))",
          loses=["test_start_at_base"]),
    Wrong("both zero", "lora_init", "rng.uniform(-bound, bound, (r, d_in))", "np.zeros((r, d_in))",
          loses=["test_init_A"]),
    Wrong("A too large", "lora_init", "1 / np.sqrt(d_in)", "1.0", loses=["test_init_A"]),
    Wrong("the generator ignored", "lora_init", "rng.uniform", "np.random.default_rng().uniform",
          loses=["test_init_A"]),
    Wrong("the way through W forgotten", "lora_backward", "cotangents @ W + dh @ A", "dh @ A",
          loses=["test_dx", "test_backward_batch"]),
    Wrong("scale applied twice", "lora_backward", "dA = dh.T", "dA = s * dh.T",
          loses=["test_dA", "test_backward_batch"]),
    Wrong("a mean over the batch", "lora_backward", "dB = s * cotangents.T @ h", "dB = s * cotangents.T @ h / len(h)",
          loses=["test_dB", "test_backward_batch"]),
    Wrong("the first text alone", "lora_backward",
          "rows, cotangents = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])",
          "rows, cotangents = (x, g) if x.ndim == 2 else (x[0], g[0])", loses=["test_backward_batch"]),
    Wrong("scale applied twice", "merge", "alpha / len(A)", "(alpha / len(A)) ** 2", loses=["test_merge"]),
    Wrong("written into W", "merge", "return W + alpha / len(A) * B @ A", "W += alpha / len(A) * B @ A\n    return W",
          loses=["test_merge"]),
    Wrong("scale missing", "merge", "alpha / len(A) * B", "B", loses=["test_merge"]),
    Wrong("added once more", "unmerge", "merged - ", "merged + ", loses=["test_unmerge"]),
    Wrong("A B in place of B A", "unmerge", "B @ A", "A.T @ B.T", loses=["test_unmerge"]),
    Wrong("B A formed on the way forward", "lora_fused", "x @ W.T + b + h @ B.T", "x @ (W + s * B @ A).T + b",
          loses=["test_fused_memory"]),
    Wrong("B A formed for dx", "lora_fused", "g @ W + dh @ A", "g @ (W + s * B @ A)", loses=["test_fused_memory"]),
    Wrong("the gradient of W formed", "lora_fused", "g.T @ h", "s * (g.T @ x) @ A.T", loses=["test_fused_memory"]),
    Wrong("scale applied twice", "lora_fused", "dh = s * (g @ B)", "dh = s * s * (g @ B)",
          loses=["test_fused_backward"]),
]  # fmt: skip

WRONG = {"ps1": PS1, "ps2": PS2}
LOOP = "def softmax_vjp(p, g):\n    while True:\n        pass\n"
RAISE = "def layer_norm_vjp(x, w, g, eps=1e-5):\n    return x / undefined\n"


def tampered(notebook):
    """What a cheat does to tests: one edited, one emptied, one deleted, one turned to text, one worth more, two that
    the kernel is told to skip, one declared an answer, one declared no test, one doubled, and an own one added."""
    cell = {name: grading.cell(notebook, name) for name in grading.maxima("ps1", by_hand=False)}
    cell["test_unbroadcast"].source = "pass"
    cell["test_matmul"].source = ""
    notebook.cells.remove(cell["test_matmul_batch"])
    cell["test_softmax"].cell_type = "raw"
    cell["test_softmax"].source = "passed"
    cell["test_softmax_large"].metadata.nbgrader.points = 90
    cell["test_softmax_vjp"].metadata.tags = ["skip-execution"]
    cell["test_layer_norm_dx"].metadata.nbgrader.update(solution=True, locked=False)
    cell["test_layer_norm_parameters"].metadata.nbgrader.grade = False
    cell["test_cross_entropy"].metadata = {}
    twin = nbformat.from_dict({**cell["test_values"], "source": "pass", "id": "twin"})
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
            **grading.wrong_students(name, WRONG[name]),
        }
        for name in SETS
    }
    answers = {**grading.answers("ps1"), "softmax_vjp": LOOP, "layer_norm_vjp": RAISE}
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
    ("name", "wrong"), [pytest.param(n, w, id=f"{n}-{w.cell}-{w.name}") for n, some in WRONG.items() for w in some]
)
def test_a_wrong_answer_loses_exactly_its_points(rows, name, wrong):
    grading.check_wrong(rows[name], name, WRONG[name], wrong)


@pytest.mark.slow
def test_an_endless_loop_and_an_error_cost_their_own_points_and_lost_tests_none(rows):
    points, row = grading.maxima("ps1", by_hand=False), rows["ps1"]["unlucky"]
    lost = ["test_softmax_vjp", "test_layer_norm_dx", "test_layer_norm_parameters"]
    assert grading.lost(row) == {test: points[test] for test in lost}
    assert "test_matmul_batch" in row.note


@pytest.mark.slow
def test_tampering_with_tests_gains_nothing(rows):
    row = rows["ps1"]["cheat"]
    assert (row.points(by_hand=False), row.maximum(by_hand=False)) == (0, 75)
    assert "test_softmax_vjp" in row.note and "test_input" not in row.note


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
    nbformat.write(grading.answered("ps2", {"lora_init": "import os\nos._exit(1)"}), tmp_path / "in/cyd/ps2.ipynb")
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
