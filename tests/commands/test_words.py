"""Nobody has to listen: a closed pipe, a full disk or a narrow alphabet behind stdout costs no work."""

import contextlib
import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from lines import QUICK, the_error

import minilora as ml
from minilora.commands.main import main
from minilora.commands.words import Heard, heard, reason, say_error

posix = pytest.mark.skipif(os.name == "nt", reason="shells and devices as POSIX has them")
MINILORA = f"{sys.executable} -m minilora"
FINETUNE = f"{MINILORA} finetune --model base.npz --corpus text.txt {' '.join(QUICK)}"


def shell(line, **environment):
    """What a line of the shell came to; its exit code is the first command's."""
    words = ["bash", "-c", f"set -o pipefail; {line}"]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})


QUICKLY = ["| true", "> /dev/full", ">&-"]
TOO = ["| head -1", ">&- 2>&-", "2>&1 | true", "2>/dev/full >/dev/full", "< /dev/null >&-"]


@pytest.mark.slow
@posix
@pytest.mark.parametrize("where", [*QUICKLY, *(pytest.param(where, marks=pytest.mark.slow) for where in TOO)])
def test_a_result_is_saved_though_nobody_listens(where, base):
    done = shell(f"{FINETUNE} --output a.npz {where}")
    assert ml.load_adapter(ml.load_model("base.npz"), "a.npz").count(trainable=True)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    if where == "> /dev/full":
        assert done.returncode == 2 and done.stderr == "minilora: error: standard output: No space left on device\n"
    elif "full" not in where:
        assert (done.returncode, done.stderr) == (0, "")
    assert sorted(os.listdir()) == ["a.npz", "base.json", "base.npz", "text.txt"]


@posix
@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "where"),
    [
        ("--help", "| true"),
        ("gradcheck --primitive exp", "| true"),
        ("count", ">&-"),
        ("mege", ">&- 2>&-"),
        ("mege", "2>&-"),
    ],
)
def test_no_command_ends_in_a_traceback_when_nobody_listens(command, where, here):
    done = shell(f"{MINILORA} {command} {where}")
    assert "Traceback" not in done.stderr + done.stdout and "Exception ignored" not in done.stderr
    assert done.returncode == (2 if command == "mege" else 0)


@pytest.mark.slow
@posix
def test_a_narrow_alphabet_is_no_error(base):
    """LC_ALL=C alone is UTF-8 to Python, unless told otherwise."""
    os.rename("text.txt", "café-Ω.txt")
    command = f"{FINETUNE.replace('text.txt', 'café-Ω.txt')} --output a.npz"
    narrow = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for done in (shell(command, **narrow), shell(command, LC_ALL="C", PYTHONIOENCODING="ascii")):
        assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("corpus            caf")
    records = Path(__file__).parents[2] / "figures" / "data"
    for words in (f"study methods --table --output {records}", "count --paper"):
        done = shell(f"{MINILORA} {words}", **narrow)
        assert (done.returncode, done.stderr) == (0, ""), words


def test_signs_become_their_like_in_ascii():
    raw = io.BytesIO()
    stream = Heard(io.TextIOWrapper(raw, encoding="ascii"))
    assert stream.write("2 × 3 ± 1 – Ω\udcc3\n") and stream.encoding == "ascii"
    stream.flush()
    assert raw.getvalue() == b"2 x 3 +- 1 - ??\n" and stream.lost is None


def test_what_is_lost_is_lost_once_and_said_why():
    class Full(io.StringIO):
        calls = 0

        def write(self, text):
            self.calls += 1
            raise OSError(28, "No space left on device")

    stream = Heard(Full())
    assert stream.write("one") == 3
    stream.flush()
    assert stream.lost.errno == 28 and Heard(None).write("two") == 3


def test_the_streams_are_given_back(monkeypatch):
    before = sys.stdout, sys.stderr
    with pytest.raises(KeyError), heard() as out:
        assert sys.stdout is out
        raise KeyError
    assert (sys.stdout, sys.stderr) == before


def test_a_note_beside_an_error_is_part_of_its_line(capsys):
    error = OSError(28, "No space left on device", "a.npz")
    error.add_note("the run is kept in b.npz")
    assert reason(error) == "a.npz: No space left on device; the run is kept in b.npz"
    say_error("two\nlines")
    assert capsys.readouterr().err == "minilora: two lines\n"


def test_a_reader_that_ends_at_once_is_no_mistake(capsys, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Closed())
    assert main(["count", "gpt2"]) == 0
    assert "no command" in the_error(capsys, "cont")


@pytest.mark.slow
@posix
@pytest.mark.parametrize("columns", [60, *(pytest.param(columns, marks=pytest.mark.slow) for columns in (30, 100))])
def test_a_progress_bar_takes_one_line_of_any_terminal(columns, base):
    """A line that is too long is two on the screen, and the next one does not go over it."""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    argv = [*FINETUNE.split()[1:], "--output", "a.npz"]
    argv[argv.index("--steps") + 1] = "40"
    with subprocess.Popen([sys.executable, *argv], stdout=subprocess.DEVNULL, stderr=theirs) as child:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while some := os.read(ours, 4096):
                shown += some
    os.close(ours)
    lines = shown.decode().replace("\r", "\n").split("\n")
    assert child.returncode == 0 and any("/40" in line or "%" in line for line in lines)
    assert max(map(len, lines)) <= columns
