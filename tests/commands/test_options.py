"""The kinds of option: what is given and would change nothing is refused, whatever its value."""

import itertools

import lines
import pytest
from lines import QUICK, SIZES, the_error

from minilora.adapters.adapter import METHODS
from minilora.analysis import counting
from minilora.commands import count, finetune
from minilora.commands.main import COMMANDS, main, parse
from minilora.commands.options import refuse_other_methods

TAKES = {"finetune": finetune.TAKES, "count": count.TAKES}
METHODS_OF = {"finetune": list(METHODS), "count": list(counting.METHODS)}
PAIRS = [(name, method) for name, methods in METHODS_OF.items() for method in methods]


def words(name, flag):
    """An option with its own default as its value: what cannot be told from not giving it by looking at values."""
    how = dict(COMMANDS[name].options)[flag]
    return [flag] if how.get("action") else [flag, str(how["default"])]


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_an_option_of_another_method_is_refused_even_with_its_default(name, method, here, capsys):
    for flag in sorted(set(itertools.chain(*TAKES[name].values()))):
        argv = [name, "--method", method, *words(name, flag)]
        if flag in TAKES[name].get(method, ()):
            refuse_other_methods(parse(argv), method, TAKES[name])
        else:
            assert f"{flag} cannot be given with --method {method}" in the_error(capsys, *argv)


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_beside_resume_no_setting_is_given(name, base, capsys):
    sizes = ["--model", "base.npz"] if name == "finetune" else SIZES
    main([name, "--corpus", "text.txt", *QUICK, *sizes, "--checkpoint", "run.npz", "--output", "first.npz"])
    free = {"--resume", "--checkpoint", "--checkpoint-every", "--output", "--backend"}
    for flag, how in COMMANDS[name].options:
        if flag not in free:
            value = "1" if how["default"] is None else str(how["default"])
            value = {"--quantize": "nf4", "--task": "sql"}.get(flag, value)
            given = [flag] if how.get("action") else [flag, value]
            line = the_error(capsys, name, "--resume", "run.npz", "--output", "a.npz", *given)
            assert f"{flag} cannot change when a run goes on" in line
    assert "--lr and --seed cannot change" in the_error(capsys, name, "--resume", "run.npz", "--seed", "0", "--lr", "1")
    assert main([name, "--resume", "run.npz", "--output", "a.npz", "--backend", "numpy"]) == 0


def test_what_a_file_trained_is_not_said_again(base, capsys):
    """--rank 4 is count's default, and not what this adapter has."""
    lines.finetune("--output", "adapter.npz", "--checkpoint", "run.npz")
    for name in ("adapter.npz", "run.npz"):
        assert main(["count", name]) == 0
        for given in (["--rank", "4"], ["--method", "lora"], ["--tokens", "20"], ["--adapter-norm"]):
            assert f"{given[0]} cannot be given with {name}" in the_error(capsys, "count", name, *given)
    assert main(["count", "base.npz", "--rank", "2", "--length", "8"]) == 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["count", "--compare", "--method", "lora"], "--method cannot be given with --compare"),
        (["count", "--paper", "--rank", "4"], "--rank cannot be given with --paper"),
        (["count", "base", "--paper"], "model cannot be given with --paper"),
        (["study", "methods", "--table", "--force"], "--force cannot be given with --table"),
        (["study", "methods", "--table", "--cache", "runs/study"], "--cache cannot be given with --table"),
        (["homework", "release", "submissions"], "folder cannot be given with release"),
        (["homework", "release", "--timeout", "30"], "--timeout cannot be given with release"),
        (["bench", "--parts", "import", "--batch", "4"], "--batch cannot be given without training steps"),
        (["bench", "--parts", "scalars", "--profile"], "--profile cannot be given without training steps"),
    ],
)
def test_what_one_option_makes_idle_is_refused(argv, said, here, capsys):
    assert said in the_error(capsys, *argv)


def test_what_was_given_is_known_and_the_rest_has_its_default():
    args = parse(["count", "gpt2", "--rank", "4", "--json"])
    assert args.given >= {"model", "rank", "json"} and not args.given & {"targets", "method", "batch", "length"}
    assert (args.rank, args.targets, args.method, args.length) == (4, ("q_proj", "v_proj"), "lora", None)
    assert parse(["figures"]).names is None and parse(["figures", "a", "b"]).names == ["a", "b"]
