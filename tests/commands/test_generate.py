"""`minilora generate`: its text and its choices."""

from minilora.commands.main import main


def test_generate_is_seeded_and_writes_several(base, capsys):
    def text(*more):
        assert main(["generate", "--model", "base.npz", "--tokens", "30", *more]) == 0
        return capsys.readouterr().out

    capsys.readouterr()
    assert text("--seed", "3") == text("--seed", "3") != text("--seed", "4")
    assert text("--samples", "3").count("-" * 40) == 2


def test_a_warning_is_one_line(base, capsys):
    capsys.readouterr()
    assert main(["generate", "--model", "base.npz", "--prompt", "été", "--tokens", "1"]) == 0
    error = capsys.readouterr().err
    assert error == "minilora: warning: the prompt has 2 characters outside the vocabulary; they read '?'\n"
