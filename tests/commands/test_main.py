"""The door: every mistake is one line and exit code 2, and every command explains itself."""

import shlex
import subprocess
import sys

import pytest
from lines import the_error

import minilora as ml
from minilora.commands import generate
from minilora.commands.main import COMMANDS, main, parse


def test_without_a_command_it_prints_the_help(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("columns", ["40", "60", "80", "200"])
def test_the_help_says_whole_sentences_in_any_width(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    assert main([]) == 0
    out = capsys.readouterr().out
    told = " ".join(out.split())
    assert max(map(len, out.splitlines())) <= int(columns)
    for name, entry in COMMANDS.items():
        sentence = " ".join(entry.run.__doc__.split("\n\n")[0].split())
        assert f"{name} {sentence}" in told
        assert main([name, "--help"]) == 0
        description = capsys.readouterr().out.partition("\n\n")[2].partition("\n\noptions:")[0]
        assert max(map(len, description.splitlines())) <= int(columns)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"minilora {ml.__version__}"


UNDER = {f"{word} {name}": one for word, entry in COMMANDS.items() for name, one in entry.commands.items()}


@pytest.mark.parametrize("name", [*(name for name, entry in COMMANDS.items() if not entry.commands), *UNDER])
def test_help_explains_with_an_example_that_parses(name, capsys, here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    entry, names = (COMMANDS | UNDER)[name], name.split()
    assert main([*names, "--help"]) == 0
    out = capsys.readouterr().out
    example = out.split("example:\n")[1].strip()
    assert max(map(len, out.splitlines())) <= 80
    shown = [flag if flag.startswith("-") else how.get("metavar", flag) for flag, how in entry.options]
    assert all(word in out for word in shown)
    words = shlex.split(example)
    assert words[: 1 + len(names)] == ["minilora", *names]
    assert parse(words[1:]).command is entry


def test_a_word_for_several_commands_lists_them(capsys):
    """Alone it is its help, whose example is of one of them."""
    for word in (word for word, entry in COMMANDS.items() if entry.commands):
        assert main([word]) == 0
        out = capsys.readouterr().out
        assert all(name.removeprefix(word) in out for name in UNDER if name.startswith(f"{word} "))
        example = shlex.split(out.split("example:\n")[1])
        assert parse(example[1:]).command in COMMANDS[word].commands.values()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["finetun"], "did you mean 'finetune'?"),
        (["zzz"], "there are demo, pretrain"),
        (["adapter", "shwo"], "no command 'adapter shwo'; did you mean 'show'?"),
        (["adapter", "show"], "the following arguments are required: PATH"),
        (["adapter", "show", "a", "--figre", "b"], "did you mean '--figure'?"),
        (["adapter", "show", "a", "b"], "unknown word 'b'; minilora adapter show --help lists the options"),
        (["adapter", "show", "a", "--figure", "b.gif"], "--figure: got 'b.gif', expected a file that ends in .png"),
        (["--versio"], "did you mean '--version'?"),
        (["generate", "--promt", "x"], "did you mean '--prompt'?"),
        (["generate", "--top-k=0"], "--top-k: got '0', expected a whole number, 1 or more"),
        (["generate", "--tokens", "many"], "--tokens: got 'many', expected a whole number"),
        (["generate", "--temperature", "-1"], "--temperature: got '-1', expected 0 or more"),
        (["generate", "--temperature", "nan"], "--temperature: got 'nan', expected 0 or more"),
        (["generate", "--prompt"], "--prompt: expected one argument"),
        (["generate", "--model", "bas"], "no model file 'bas'; did you mean 'base'?"),
        (["generate", "--model", "."], ". is a folder, expected a model file"),
        (["gradcheck", "--primitive", "gellu"], "did you mean 'gelu'?"),
        (["gradcheck", "--method", "centre"], "did you mean 'central'?"),
        (["finetune", "--method", "lara"], "did you mean 'lora'?"),
        (["finetune", "--lr", "0"], "--lr: got '0', expected a number above 0"),
        (["finetune", "--lora-dropout", "1"], "expected a number from 0 to 0.999"),
        (["pretrain", "--corpus", "python-doc"], "did you mean 'python-docs'?"),
        (["pretrain", "--width", "7"], "n_embd = 7 is not divisible by n_head = 4"),
        (["pretrain", "--corpus", "text.txt", "--context", "500"], "too short"),
        (["pretrain", "--output", "."], "is a folder, expected a file"),
        (["pretrain", "--output", "text.txt/base.npz"], "cannot write to 'text.txt': it is a file"),
        (["demo", "--output", "text.txt/figures"], "text.txt"),
        (["demo", "--steps", "1.5"], "--steps: got '1.5', expected a whole number"),
        (["merge", "--adapter", "no.npz"], "no adapter file 'no.npz'; minilora finetune writes one"),
        (["finetune", "--resume", "no.npz"], "no checkpoint file 'no.npz'"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(argv, said, here, capsys):
    assert said in the_error(capsys, *argv)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["count", "gpt5"], "unknown model 'gpt5' (did you mean 'gpt2'?)"),
        (["count", "--method", "lore"], "unknown method 'lore' (did you mean 'lora'?)"),
        (["count", "--rank", "0"], "expected a whole number, 1 or more"),
        (["study", "rank"], "no study 'rank'; did you mean 'ranks'?"),
        (["figures", "spectr"], "no figure 'spectr'"),
    ],
)
def test_mistakes_in_the_analysis_commands(words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    err = capsys.readouterr().err
    assert expected in err and err.count("\n") == 1


def test_traceback_shows_where(here):
    with pytest.raises(FileNotFoundError):
        main(["--traceback", "pretrain", "--corpus", "nowhere"])


def test_ctrl_c_anywhere_is_one_line(capsys, monkeypatch, here):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "load_model", interrupt)
    assert the_error(capsys, "generate", code=130) == "minilora: interrupted"


@pytest.mark.slow
def test_python_m_minilora_and_a_closed_pipe():
    run = subprocess.run([sys.executable, "-m", "minilora", "mege"], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "minilora: error: no command 'mege'; did you mean 'merge'?\n"
    piped = subprocess.Popen([sys.executable, "-m", "minilora"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    piped.stdout.close()
    assert piped.stderr.read() == b""
    piped.stderr.close()
    piped.wait()


def test_the_door_opens_without_matplotlib():
    code = "import sys, minilora.commands.main; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
