"""`minilora evaluate`: held-out questions, answers that are run, and the share of right ones."""

import re

import pytest
from lines import finetune, the_error

import minilora as ml
from minilora.commands.main import main

FEW = ["--questions", "3", "--examples", "1"]


@pytest.mark.parametrize("task", ["sql", "repair"])
@pytest.mark.filterwarnings("ignore:prompts have up to")
def test_a_model_that_has_learnt_nothing_of_it_is_wrong(task, base, capsys):
    capsys.readouterr()
    assert main(["evaluate", "--task", task, "--model", "base.npz", *FEW]) == 0
    said = capsys.readouterr()
    assert f"task              {task}: 3 held-out questions, seed 0\n" in said.out
    assert "right             0.0 % of 3 (95 % interval 0.0 to 56.1)\n" in said.out
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


@pytest.fixture
def long(here):
    """A small model with room for questions."""
    (here / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 100)
    sizes = ["--layers", "1", "--heads", "2", "--width", "8", "--context", "400"]
    assert main(["pretrain", "--corpus", "text.txt", *sizes, "--steps", "1", "--batch", "2", "--output", "m.npz"]) == 0
    return ["--model", "m.npz"]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sql", "repair"])
def test_a_task_is_learnt_and_asked_and_a_run_of_it_goes_on(task, long, here, capsys):
    options = ["finetune", "--task", task, *long, "--rank", "2", "--batch", "2", "--checkpoint", "c.npz"]
    assert main([*options, "--steps", "3", "--output", "a.npz"]) == 0
    said = capsys.readouterr().out
    assert f"corpus            {task}: 2,000 pairs, 64 held out" in said and "nats per token of the answers" in said
    line = f"minilora evaluate --task {task} --model m.npz --adapter a.npz"
    assert line in said
    assert main([*line.split()[1:], "--questions", "2"]) == 0
    assert main(["finetune", "--resume", "c.npz", "--output", "b.npz"]) == 0
    assert ml.load_adapter(ml.load_model("m.npz"), "b.npz").state_dict().keys()


@pytest.mark.slow
def test_a_task_makes_its_own_questions_and_needs_room_for_them(base, long, capsys):
    line = the_error(capsys, "finetune", "--task", "repair", *long, "--corpus", "text.txt")
    assert "--corpus cannot be given with --task repair, which makes its own questions" in line
    line = the_error(capsys, "finetune", "--task", "repair", "--model", "base.npz")
    assert "repair: 2,064 pairs are longer than the model's context of 16 tokens" in line


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


@pytest.mark.model
def test_the_fetched_model_knows_little_of_it_before(smollm2, here, capsys):
    assert main(["evaluate", "--model", str(smollm2), "--questions", "8", "--examples", "1"]) == 0
    said = capsys.readouterr().out
    assert float(re.search(r"right +([\d.]+) % of 8 ", said)[1]) <= 25
    assert "\nwrong\n" in said
