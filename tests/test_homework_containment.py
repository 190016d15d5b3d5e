"""What a submission can do to the one who grades it: each mischief is handed in, beside a solution.

They run in the real nbgrader, all in one grading; the isolated ones in another, where this system can isolate.
"""

import csv
import os
import socket
import sys
from pathlib import Path

import homework_grading as grading
import nbformat
import pytest
from homework_grading import COURSE

from minilora import homework
from minilora.homework import containment
from minilora.homework.containment import Limits
from minilora.homework.grading import LARGEST, read_submission

CODE = {
    "nosy": "import os\nprint(sorted(os.environ), os.listdir(os.path.expanduser('~')))",
    "killer": "import os\nos.kill(os.getppid(), 9)",
    "rich": "import sqlite3, pathlib\nup = pathlib.Path().resolve().parents\n"
    "book = next(p / 'gradebook.db' for p in up if (p / 'gradebook.db').exists())\n"
    "with sqlite3.connect(book) as db:\n    db.execute('UPDATE grade_cells SET max_score = 1937')",
    "loud": "for _ in range(30):\n    print('x' * 10**6)",
    "greedy": "memory = bytearray(3 * 2**30)",
    "many": "import subprocess, time\nthem = [subprocess.Popen(['sleep', '60']) for _ in range(70)]\ntime.sleep(20)",
    "lingering": "import subprocess, pathlib\nsubprocess.Popen(['setsid', 'sh', '-c', 'sleep 7654 & sleep 7654'])",
}  # fmt: skip


def cell_with(code):
    """The solved problem set with `code` at the head of an answer that nothing before it needs."""
    answers = grading.answers("ps2")
    return grading.answered("ps2", {**answers, "gradient_norm": f"{code}\n{answers['gradient_norm']}"})


def outputs(folder, student):
    """All that a student's cells printed, from the notebook that nbgrader keeps."""
    (path,) = Path(folder, "autograded", student).rglob("*.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    return "".join(out.get("text", "") for c in cells for out in c.get("outputs", []))


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """(the rows by student, the output folder): the mischief and a solution, graded in one go."""
    folder = tmp_path_factory.mktemp("contained")
    students = {"zoe": grading.solved("ps2"), "=cmd|' C calc'!A0": grading.solved("ps2")}
    students |= {name: cell_with(code) for name, code in CODE.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECRET_TOKEN", "hunter2")
        patch.setattr("minilora.homework.grading.SECONDS", 120)
        for name in ("linked", "piped"):
            (folder / "in" / name).mkdir(parents=True)
        nbformat.write(grading.solved("ps2"), folder / "solution.ipynb")
        (folder / "in/linked/ps2.ipynb").symlink_to(folder / "solution.ipynb")
        os.mkfifo(folder / "in/piped/ps2.ipynb")
        rows = grading.grade("ps2", students, folder, timeout=30)
    return rows, folder / "out"


@pytest.mark.slow
def test_the_solution_beside_them_has_full_marks(graded):
    assert grading.lost(graded[0]["zoe"]) == {} and graded[0]["zoe"].note == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student", "said"),
    [
        ("killer", "not graded: its process was ended by signal 9"),
        ("rich", "not graded: TamperingError: the gradebook changed while the submission ran"),
        ("many", "not graded: more than 64 processes"),
        ("linked", "not graded: ps2.ipynb is a symbolic link, expected a file"),
        ("piped", "not graded: ps2.ipynb is a device, a pipe or a folder, expected a file"),
    ],
)
def test_what_is_not_graded_says_why(graded, student, said):
    row = graded[0][student]
    assert row.note == said and not row.cells


@pytest.mark.slow
def test_the_graders_environment_and_home_are_not_there(graded):
    said = outputs(graded[1], "nosy")
    assert "'PATH'" in said and "SECRET_TOKEN" not in said and "hunter2" not in said
    assert "authorized_keys" not in said and ".ssh" not in said


@pytest.mark.slow
def test_output_is_cut_and_memory_is_limited(graded):
    rows, folder = graded
    (kept,) = Path(folder, "autograded", "loud").rglob("*.ipynb")
    assert kept.stat().st_size < 3 * 2**20 and "output cut at 1,048,576 characters" in outputs(folder, "loud")
    assert {"test_gradient_norm", "test_gradient_norm_memory"} <= set(
        grading.lost(rows["greedy"])
    )  # and the rest stands
    assert "test_forward" not in grading.lost(rows["greedy"])


@pytest.mark.slow
def test_nothing_is_left_running(graded):
    import psutil

    assert grading.lost(graded[0]["lingering"]) == {}
    assert [p for p in psutil.process_iter(["cmdline"]) if "7654" in (p.info["cmdline"] or [])] == []


@pytest.mark.slow
def test_a_name_is_no_formula(graded, tmp_path):
    rows = list(graded[0].values())
    with open(homework.save_table(rows, tmp_path / "grades.csv"), newline="", encoding="utf-8") as file:
        names = [row["student"] for row in csv.DictReader(file)]
    assert "'=cmd|' C calc'!A0" in names and not any(name.startswith(("=", "+", "-", "@")) for name in names)


@pytest.mark.slow
def test_isolated_there_is_no_network_no_disk_and_no_solution(tmp_path):
    try:
        containment.isolating(tmp_path, [])
    except ValueError as error:
        pytest.skip(str(error))
    with socket.create_server(("127.0.0.1", 0)) as server:
        attempts = {
            "network": f"__import__('socket').create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)",
            "disk": f"open({str(tmp_path / 'written')!r}, 'w')",
            "solutions": f"open({str(COURSE / 'source/ps2/lora.ipynb')!r})",
            "others": f"open({str(tmp_path / 'in/ada/ps2/lora.ipynb')!r})",
            "remount": "__import__('subprocess').run(['mount', '-o', 'remount,rw', '/'], check=True)",
        }
        code = "".join(
            f"\ntry:\n    {attempt}\n    print('{name}: done')\nexcept Exception:\n    print('{name}: refused')"
            for name, attempt in attempts.items()
        ) + "\nprint(sum(p.isdigit() for p in __import__('os').listdir('/proc')), 'processes')"  # fmt: skip
        folder = grading.hand_in("ps2", {"ada": cell_with(code)}, tmp_path / "in")
        with pytest.warns(UserWarning, match="isolated, the students' code can still read the hidden tests"):
            (row,) = homework.grade(folder, tmp_path / "out", COURSE, 30, isolate=True)
    assert grading.lost(row) == {}, row.note
    said = outputs(tmp_path / "out", "ada")
    assert [line for line in said.splitlines() if line.endswith((": done", ": refused"))] == [
        f"{name}: refused" for name in attempts
    ]
    assert int(said.split(" processes")[0].split()[-1]) < 10
    assert not (tmp_path / "written").exists()


def test_what_cannot_isolate_says_so_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(containment.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="--isolate needs Linux's unshare, which is not here"):
        containment.run_contained(["-c", "open('ran', 'w')"], tmp_path, Limits(5), hidden=[])
    assert not (tmp_path / "ran").exists()


FORKS = """
import os, time
held = b"1" * 2**27
for _ in range(2):  # they share what their parent holds
    if not os.fork():
        time.sleep(3)
        os._exit(0)
time.sleep(2)
"""


@pytest.mark.parametrize(
    ("code", "limits", "said"),
    [
        ("import time; time.sleep(60)", Limits(1), "more than 1 seconds"),
        ("x = b'1' * 2**28; import time; time.sleep(60)", Limits(30, memory=2**27), "more than 128 MiB of memory"),
        ("pass", Limits(30), ""),
        (FORKS, Limits(30, memory=2**28), "" if sys.platform == "linux" else "more than 256 MiB of memory"),
    ],
)
def test_a_process_is_watched(code, limits, said, tmp_path):
    assert containment.run_contained(["-c", code], tmp_path, limits) == said


def test_only_a_file_of_the_folder_is_read(tmp_path):
    source, folder = tmp_path / "source.ipynb", tmp_path / "in"
    source.write_text("solution")
    (folder / "ada").mkdir(parents=True)
    (folder / "bob").symlink_to(tmp_path)  # a folder that leads out
    os.link(source, folder / "ada/hard.ipynb")
    (folder / "ada/plain.ipynb").write_text("mine")
    with open(folder / "ada/large.ipynb", "wb") as file:
        file.truncate(LARGEST + 1)
    assert read_submission(folder / "ada/plain.ipynb", folder, source) == "mine"
    for path, said in [
        ("bob/source.ipynb", "bob is a symbolic link"),
        ("ada/hard.ipynb", "link to the solutions"),
        ("ada/large.ipynb", "50 MiB, expected at most 50"),
    ]:
        with pytest.raises(OSError, match=said):
            read_submission(folder / path, folder, source)


def test_more_points_than_there_are_and_odd_names_are_seen():
    cells = {"test": homework.Cell(1937, 75, False, False)}
    assert cells["test"].too_many and not homework.Cell(75, 75, False, False).too_many
    text = homework.table([homework.Row("a\x1b[2Jb", "ps1", cells)])
    assert "\x1b" not in text and "a\\x1b[2Jb" in text
