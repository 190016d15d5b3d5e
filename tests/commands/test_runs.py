"""Runs that are stopped, killed, or out of room: what was made is kept, and what was named is never removed."""

import errno
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from lines import QUICK, SIZES, finetune, the_error

import minilora as ml
from minilora.commands.main import main
from minilora.training.checkpoint import load_checkpoint


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_ctrl_c_saves_and_the_printed_command_goes_on(command, base, capsys, monkeypatch):
    def run(argv):
        assert main(argv) == 0
        with np.load("out.npz") as file:
            return {name: file[name] for name in file.files}

    argv = [command, "--corpus", "text.txt", *QUICK, "--output", "out.npz"]
    argv += SIZES if command == "pretrain" else ["--model", "base.npz", "--rank", "2"]
    whole = run(argv)

    step, calls = ml.training.loop.train_step, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return step(*args)

    monkeypatch.setattr(ml.training.loop, "train_step", interrupted)
    line = the_error(capsys, *argv, code=130)
    monkeypatch.undo()
    monkeypatch.chdir(base.parent)
    assert "stopped after step 2 of 4" in line
    words = line.split("to go on: minilora ")[1].split()
    assert words[0] == command
    went_on = run(words)
    assert whole.keys() == went_on.keys()
    assert all(np.array_equal(whole[name], went_on[name]) for name in whole)


def test_a_run_that_goes_on_keeps_its_settings(base, capsys):
    finetune("--checkpoint", "c.npz", "--output", "a.npz")
    assert "--lr cannot change" in the_error(capsys, "finetune", "--resume", "c.npz", "--lr", "0.1")
    assert "LoRA run" in the_error(capsys, "pretrain", "--resume", "c.npz", "--output", "p.npz")


def contents(*names):
    """{name: the arrays in a file}"""
    return {name: {key: value.tobytes() for key, value in np.load(name).items()} for name in names}


@pytest.fixture
def stop(monkeypatch):
    """Makes the n-th training step come with Ctrl-C."""

    def at(n):
        step, calls = ml.training.loop.train_step, []

        def interrupted(*args):
            calls.append(1)
            if len(calls) == n:
                signal.raise_signal(signal.SIGINT)
            return step(*args)

        monkeypatch.setattr(ml.training.loop, "train_step", interrupted)

    yield at


FINETUNE = ["finetune", "--model", "base.npz", "--corpus", "text.txt", "--rank", "2", *QUICK]


@pytest.mark.slow
def test_a_later_run_with_the_same_output_leaves_an_earlier_ones_checkpoint(base, capsys, stop, monkeypatch):
    """ "Saved; to go on ..." is a promise."""
    stop(2)
    words = the_error(capsys, *FINETUNE, "--output", "a.npz", code=130).split("to go on: minilora ")[1]
    monkeypatch.undo()
    monkeypatch.chdir(base.parent)
    assert "a.checkpoint.npz" in words
    kept = Path("a.checkpoint.npz").read_bytes()
    for _ in range(2):
        assert main([*FINETUNE, "--seed", "4", "--output", "a.npz"]) == 0
    stop(3)
    line = the_error(capsys, *FINETUNE, "--seed", "5", "--output", "a.npz", code=130)
    monkeypatch.undo()
    monkeypatch.chdir(base.parent)
    assert "--resume a.checkpoint-2.npz" in line and Path("a.checkpoint.npz").read_bytes() == kept
    assert main(shlex.split(words)) == 0
    whole = contents("a.npz")
    assert Path("a.checkpoint.npz").exists()  # it was named on the command line
    assert main([*FINETUNE, "--output", "a.npz"]) == 0
    assert contents("a.npz") == whole
    left = sorted(os.listdir())
    assert left == ["a.checkpoint-2.npz", "a.checkpoint.npz", "a.npz", "base.json", "base.npz", "text.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("named", ["k.npz", "a.checkpoint.npz"])
def test_a_checkpoint_that_was_named_is_never_removed(named, base, capsys, stop, monkeypatch):
    stop(2)
    line = the_error(capsys, *FINETUNE, "--output", "a.npz", "--checkpoint", named, code=130)
    assert f"--resume {named}" in line
    monkeypatch.undo()
    monkeypatch.chdir(base.parent)
    assert main(["finetune", "--resume", named, "--output", "a.npz"]) == 0
    assert load_checkpoint(named).step == 4
    assert main(["finetune", "--resume", named, "--output", "b.npz", "--checkpoint", "other.npz"]) == 0
    assert main([*FINETUNE, "--output", "c.npz", "--checkpoint", "new.npz"]) == 0
    assert {named, "other.npz", "new.npz"} <= set(os.listdir())
    assert contents("a.npz")["a.npz"] == contents("b.npz")["b.npz"] == contents("c.npz")["c.npz"]


def fail_with(error):
    def failing(*args, **kwargs):
        raise error

    return failing


@pytest.mark.slow
@pytest.mark.parametrize("command", ["pretrain", "finetune", "full"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: OSError(errno.EIO, "Input/output error", "a.npz"),
        KeyboardInterrupt,
        *(pytest.param(error, marks=pytest.mark.slow) for error in (MemoryError, ValueError)),
    ],
)
def test_a_result_that_cannot_be_saved_is_in_the_checkpoint(command, make, base, capsys, monkeypatch):
    argv = ["pretrain", "--corpus", "text.txt", *SIZES, *QUICK] if command == "pretrain" else list(FINETUNE)
    if command == "full":
        argv = [*FINETUNE[:5], *QUICK, "--method", "full"]
    assert main([*argv, "--output", "a.npz"]) == 0
    whole = contents("a.npz")
    os.remove("a.npz")
    monkeypatch.setattr(ml, "save_adapter" if command == "finetune" else "save_model", fail_with(make()))
    line = the_error(capsys, *argv, "--output", "a.npz", code=130 if make is KeyboardInterrupt else 2)
    monkeypatch.undo()
    monkeypatch.chdir(base.parent)
    assert "the training is done and saved; to go on: minilora" in line and not Path("a.npz").exists()
    assert main(shlex.split(line.split("to go on: minilora ")[1])) == 0
    assert contents("a.npz") == whole


@pytest.mark.parametrize("command", [FINETUNE, ["pretrain", "--corpus", "text.txt", *SIZES, *QUICK]])
def test_what_follows_the_saving_costs_nothing(command, base, capsys, monkeypatch):
    """Ctrl-C, or a failure, while the sample is written."""
    for error, code in ((KeyboardInterrupt(), 130), (MemoryError(), 2)):
        monkeypatch.setattr(ml.GPT, "generate", fail_with(error))
        the_error(capsys, *command, "--output", "a.npz", code=code)
        monkeypatch.undo()
        monkeypatch.chdir(base.parent)
        assert Path("a.npz").exists() and not list(base.parent.glob("*checkpoint*"))
        os.remove("a.npz")


KILLED = """
import os, signal, sys
import minilora as ml
from minilora.commands.main import main
from minilora.training.checkpoint import load_checkpoint
killed = lambda *args, **how: os.kill(os.getpid(), signal.SIGKILL)
setattr(ml.GPT if sys.argv[1] == "generate" else ml, sys.argv[1], killed)
main(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals for one process")
@pytest.mark.parametrize("moment", ["save_adapter", pytest.param("generate", marks=pytest.mark.slow)])
def test_a_run_that_is_killed_at_its_end_is_all_there(moment, base):
    assert main([*FINETUNE, "--output", "whole.npz"]) == 0
    command = [sys.executable, "-c", KILLED, moment, *FINETUNE, "--output", "a.npz"]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    if moment == "save_adapter":
        assert main(["finetune", "--resume", "a.checkpoint.npz", "--output", "a.npz"]) == 0
    assert contents("a.npz")["a.npz"] == contents("whole.npz")["whole.npz"]
    assert main([*FINETUNE, "--output", "a.npz"]) == 0  # the killed one's lock and what it left stop nobody


def limited(blocks, *argv):
    """A command that may write no file of more than so many KiB, as on a disk that is nearly full."""
    words = shlex.join([sys.executable, "-m", "minilora", *argv])
    return subprocess.run(["bash", "-c", f"ulimit -f {blocks}; {words}"], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="limits as POSIX has them")
def test_a_full_disk_costs_the_checkpoint_and_not_the_result(base):
    """The adapter has 5 KB, the checkpoint 18 and more."""
    done = limited(10, *FINETUNE, "--output", "a.npz", "--checkpoint-every", "1")
    assert done.returncode == 0 and Path("a.npz").exists()
    warned = done.stderr.splitlines()
    assert len(warned) == 4 and all("a.checkpoint.npz: File too large (the file needs about 1" in w for w in warned)
    assert [w.split("at step ")[1][0] for w in warned] == list("1234")
    done = limited(2, *FINETUNE, "--output", "b.npz")
    assert done.returncode == 2 and not Path("b.npz").exists()
    last = done.stderr.splitlines()[-1]
    assert "minilora: error: b.npz: File too large (the file needs about" in last and "nothing of it is saved" in last
    assert not list(base.parent.glob("*checkpoint*")) + list(base.parent.glob(".*"))


def test_the_result_takes_the_room_of_a_checkpoint_that_nobody_named(base, capsys, monkeypatch):
    save, room = ml.save_adapter, base.parent / "a.checkpoint.npz"

    def full(model, path):
        if room.exists():
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return save(model, path)

    monkeypatch.setattr(ml, "save_adapter", full)
    assert main([*FINETUNE, "--output", "a.npz"]) == 0 and (base.parent / "a.npz").exists()
    assert not room.exists()
    room.touch()  # someone's: it is not moved
    monkeypatch.setattr(ml, "save_adapter", fail_with(OSError(errno.ENOSPC, "No space left on device", "b.npz")))
    line = the_error(capsys, *FINETUNE, "--output", "b.npz")
    assert "b.npz: No space left on device; the training is done and saved; to go on: " in line
    assert load_checkpoint("b.checkpoint.npz").step == 4 and room.read_bytes() == b""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals for one process")
@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGHUP", marks=pytest.mark.slow)])
def test_a_signal_that_ends_programs_is_the_first_ctrl_c(name, base):
    if signal.getsignal(getattr(signal, name)) == signal.SIG_IGN:
        pytest.skip(f"{name} is ignored here, as under nohup, and what is started from here ignores it, too")
    argv = [*FINETUNE[:-4], "--steps", "100000", "--batch", "2", "--output", "a.npz"]
    argv += ["--checkpoint-every", "1"]
    with subprocess.Popen(
        [sys.executable, "-m", "minilora", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        while not Path("a.checkpoint.npz").exists():
            time.sleep(0.02)
        child.send_signal(getattr(signal, name))
        error = child.communicate(timeout=60)[1]
    assert child.returncode == 130
    assert "of 100,000 and saved; to go on: minilora finetune --resume a.checkpoint.npz --output a.npz" in error
    assert load_checkpoint("a.checkpoint.npz").settings.steps == 100_000


@pytest.mark.slow
def test_the_use_it_line_of_a_run_that_went_on_names_the_base(base, capsys, monkeypatch):
    main([*FINETUNE, "--quantize", "nf4", "--checkpoint", "run.npz", "--output", "a.npz"])
    said = capsys.readouterr().out
    assert "minilora generate --model base.npz --quantize nf4 --adapter a.npz" in said
    main(["finetune", "--resume", "run.npz", "--output", "a.npz"])
    assert capsys.readouterr().out.splitlines()[-1] == said.splitlines()[-1]
    (base.parent / "other").mkdir()
    monkeypatch.chdir(base.parent / "other")
    assert main(["finetune", "--resume", "../run.npz", "--output", "a.npz"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"--model {base} --quantize nf4 --adapter a.npz" in last
    assert main(shlex.split(last.partition("minilora ")[2])) == 0


def test_a_changed_text_is_refused_when_a_run_goes_on(base, capsys):
    main([*FINETUNE, "--checkpoint", "run.npz", "--output", "a.npz"])
    with open("text.txt", "a") as file:
        file.write("more")
    line = the_error(capsys, "finetune", "--resume", "run.npz", "--output", "b.npz")
    assert "another text than 'text.txt' is now" in line and "run.npz" in line


def test_how_often_a_run_is_saved_can_be_said(base, monkeypatch):
    saved, save = [], ml.training.loop.save_checkpoint
    monkeypatch.setattr(
        ml.training.loop, "save_checkpoint", lambda run, path: saved.append(run.step) or save(run, path)
    )
    main([*FINETUNE, "--output", "a.npz"])
    main([*FINETUNE, "--output", "a.npz", "--checkpoint-every", "2", "--checkpoint", "run.npz"])
    assert saved == [4, 2, 4]
    run = load_checkpoint("run.npz")
    run.settings.steps = 8
    save(run, "run.npz")
    main(["finetune", "--resume", "run.npz", "--output", "a.npz", "--checkpoint-every", "3"])
    assert saved[3:] == [6, 8]


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_diverges_says_what_is_kept(base, capsys):
    argv = [
        "finetune",
        "--model",
        "base.npz",
        "--corpus",
        "text.txt",
        "--method",
        "full",
        "--lr",
        "1e6",
        "--batch",
        "2",
    ]
    line = the_error(capsys, *argv, "--steps", "60", "--output", "x.npz", "--checkpoint-every", "1")
    assert "training diverged at step" in line and "is kept in x.checkpoint.npz" in line


def test_what_is_said_to_be_kept_is_there_whenever_a_run_is_stopped(base, capsys, monkeypatch):
    """Before the first step, between two savings, and insisted on: the printed command goes on to the same bits."""
    assert main([*FINETUNE, "--output", "whole.npz"]) == 0
    look, step = ml.training.loop.evaluate, ml.training.loop.train_step

    def ctrl_c(times, function):
        def interrupted(*args):
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
            return function(*args)

        return interrupted

    monkeypatch.setattr(ml.training.loop, "evaluate", ctrl_c(1, look))
    first = the_error(capsys, *FINETUNE, "--output", "a.npz", code=130)
    assert "stopped after step 0 of 4 and saved; to go on: minilora finetune --resume a.checkpoint.npz" in first
    monkeypatch.setattr(ml.training.loop, "evaluate", look)
    monkeypatch.setattr(ml.training.loop, "train_step", ctrl_c(2, step))
    again = the_error(capsys, "finetune", "--resume", "a.checkpoint.npz", "--output", "a.npz", code=130)
    assert again == first.replace(" and saved", "")
    nothing = the_error(capsys, *FINETUNE, "--output", "b.npz", code=130)
    assert "stopped after step 0 of 4, and nothing of it is saved" in nothing
    monkeypatch.setattr(ml.training.loop, "train_step", step)
    assert main(shlex.split(again.split("to go on: minilora ")[1])) == 0
    assert contents("a.npz")["a.npz"] == contents("whole.npz")["whole.npz"]
    assert main([*FINETUNE, "--output", "a.npz"]) == 0
    assert "kept              a.checkpoint.npz, of an earlier run; --resume goes on with it" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals for one process")
def test_a_run_that_is_killed_at_any_moment_goes_on_and_leaves_no_litter(base):
    argv = [*FINETUNE[:-4], "--steps", "60", "--batch", "2", "--checkpoint-every", "1"]
    assert main([*argv, "--output", "whole.npz"]) == 0
    moments = []
    for delay in np.random.default_rng(0).uniform(0, 0.5, 4):
        child = subprocess.Popen(
            [sys.executable, "-m", "minilora", *argv, "--output", "a.npz"], stdout=subprocess.DEVNULL
        )
        while child.poll() is None and not Path("a.checkpoint.npz").exists():
            time.sleep(0.01)
        time.sleep(delay)
        child.kill()
        child.wait()
        if Path("a.checkpoint.npz").exists():
            moments.append(load_checkpoint("a.checkpoint.npz").step)
            assert main(["finetune", "--resume", "a.checkpoint.npz", "--output", "a.npz"]) == 0
            os.remove("a.checkpoint.npz")
        assert contents("a.npz")["a.npz"] == contents("whole.npz")["whole.npz"]
        os.remove("a.npz")
    assert len(set(moments)) > 1  # they were not all killed at one place
    assert main([*argv, "--output", "a.npz", "--checkpoint", "a.checkpoint.npz"]) == 0
    assert not list(base.parent.glob(".*"))
