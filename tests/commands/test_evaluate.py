"""`minilora evaluate`: held-out questions, answers that are run, and the share of right ones."""

import re

import pytest
from lines import finetune, the_error

from minilora.commands.main import main

FEW = ["--questions", "3", "--examples", "1"]


@pytest.mark.parametrize("task", ["sql", "repair"])
@pytest.mark.filterwarnings("ignore:prompts have up to")
def test_a_model_that_has_learnt_nothing_of_it_is_wrong(task, base, capsys):
    capsys.readouterr()
    assert main(["evaluate", "--task", task, "--model", "base.npz", *FEW]) == 0
    said = capsys.readouterr()
    assert f"task              {task}: 3 held-out questions, seed 0\n" in said.out
    assert "right             0 of 3, 0.0 % (95 % interval 0.0 to 56.1 %)\n" in said.out
    assert re.search(r"\nwrong\n.*\n  answer: .*\n  known:  (SELECT|def)", said.out, re.DOTALL)
    assert "the model sees the last 16 of them" in said.err


def test_the_seed_is_of_the_questions(base, capsys):
    def asked(*more):
        capsys.readouterr()
        assert main(["evaluate", "--model", "base.npz", "--questions", "1", *more]) == 0
        return capsys.readouterr().out

    assert asked() == asked("--seed", "0") != asked("--seed", "1")
    assert "known" not in asked("--examples", "0")


def test_an_adapter_is_put_on(base, capsys):
    assert finetune("--output", "a.npz") == 0
    assert main(["evaluate", "--model", "base.npz", "--adapter", "a.npz", "--questions", "1"]) == 0


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--task", "sq"], "--task: got 'sq'; did you mean 'sql'?"),
        (["--questions", "0"], "--questions: got '0', expected a whole number, 1 or more"),
        (["--examples", "-1"], "--examples: got '-1', expected a whole number, 0 or more"),
        (["--model", "nowhere.npz"], "no model file 'nowhere.npz'"),
        (["--adapter", "nowhere.npz"], "no adapter file 'nowhere.npz'"),
    ],
)
def test_mistakes_are_one_line(argv, words, here, capsys):
    assert words in the_error(capsys, "evaluate", *argv)
