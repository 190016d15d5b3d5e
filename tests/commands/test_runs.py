"""Runs that are stopped and go on."""

import signal

import numpy as np
import pytest
from lines import QUICK, SIZES, finetune, the_error

import minilora as ml
from minilora.commands.main import main


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
