"""Ctrl-C from the first moment on: one line, exit code 130 and no traceback."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minilora.interrupt import is_command

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("argv", "whole", "expected"),
    [
        (["-m", "demo"], ["python", "-m", "minilora", "demo"], True),
        (["-m"], ["python", "-X", "dev", "-m", "minilora"], True),
        (["-m"], ["python", "-mminilora"], True),
        (["/usr/bin/minilora", "demo"], ["python", "/usr/bin/minilora", "demo"], True),
        (["-m", "minilora"], ["python", "-m", "pytest", "minilora"], False),
        (["/x/pytest/__main__.py", "-m", "minilora"], ["python", "-m", "pytest", "-m", "minilora"], False),
        (["-c"], ["python", "-c", "import minilora"], False),
        ([""], ["python"], False),
        ([], ["python"], False),
    ],
)
def test_a_command_is_told_from_a_program_that_imports_minilora(argv, whole, expected):
    assert is_command(argv, whole) is expected


@pytest.fixture
def interrupted_at(tmp_path):
    """A command in whose process the import of one module is Ctrl-C's moment: -> how it ended."""

    def run(module, *argv):
        (tmp_path / f"{module}.py").write_text(
            "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(0.2)\n"
        )
        path = os.pathsep.join([str(tmp_path), str(ROOT)])
        command = [sys.executable, *argv]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})

    return run


@pytest.mark.parametrize("module", ["numpy", "argparse", pytest.param("hashlib", marks=pytest.mark.slow)])
def test_ctrl_c_during_the_imports_is_one_line(module, interrupted_at):
    done = interrupted_at(module, "-m", "minilora", "count")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "minilora: interrupted\n")


def test_a_program_that_imports_minilora_gets_its_own_ctrl_c(interrupted_at):
    done = interrupted_at("numpy", "-c", "import minilora")
    assert done.stderr.endswith("KeyboardInterrupt\n") and done.returncode != 130


@pytest.mark.slow
def test_ctrl_c_at_any_moment_is_one_line():
    for delay in (0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2):
        child = subprocess.Popen(
            [sys.executable, "-m", "minilora", "gradcheck"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        time.sleep(delay)
        child.send_signal(signal.SIGINT)
        error = child.communicate()[1].decode()
        if "Traceback" in error:  # in Python's own first milliseconds, or more where the machine is busy
            assert "minilora" not in error, (delay, error)
        else:
            assert error in ("minilora: interrupted\n", ""), (delay, error)


def test_an_ignored_ctrl_c_stays_ignored():
    """As in a shell's background jobs."""
    code = "import signal, subprocess, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    code += "import minilora.interrupt, minilora.commands.main as m; sys.argv = ['minilora', '--version']; m.run(); "
    code += "print(signal.getsignal(signal.SIGINT))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[1] == str(signal.SIG_IGN)
