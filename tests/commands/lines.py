"""Command lines on tiny settings, and the one line that a mistake is."""

from minilora.commands.main import main

SIZES = ["--layers", "1", "--heads", "2", "--width", "8", "--context", "16"]
QUICK = ["--steps", "4", "--batch", "2"]


def finetune(*more):
    rank = [] if {"--method", "--resume"} & set(more) else ["--rank", "2"]
    return main(["finetune", "--model", "base.npz", "--corpus", "text.txt", *rank, *QUICK, *more])


def the_error(capsys, *argv, code=2):
    """Run a command that must fail: -> its one line."""
    capsys.readouterr()
    assert main(list(argv)) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("minilora: error: " if code == 2 else "minilora: ")
    return lines[0]
