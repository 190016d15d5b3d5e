"""`minilora generate`: its text and its choices."""

from minilora.commands.main import main


def test_generate_is_seeded_and_writes_several(base, capsys):
    def text(*more):
        assert main(["generate", "--model", "base.npz", "--tokens", "30", *more]) == 0
        return capsys.readouterr().out

    capsys.readouterr()
    assert text("--seed", "3") == text("--seed", "3") != text("--seed", "4")
    assert text("--samples", "3").count("-" * 40) == 2


def test_several_prompts_are_continued_each_as_it_is_alone(base, capsys, tmp_path):
    def text(*more):
        assert main(["generate", "--model", "base.npz", "--tokens", "20", "--temperature", "0", *more]) == 0
        return capsys.readouterr().out.split("\n" + "-" * 40 + "\n")

    capsys.readouterr()
    words = ["The class ", "a", "of the values that are"]
    alone = [text("--prompt", word)[0].strip("\n") for word in words]
    together = text(*[part for word in words for part in ("--prompt", word)])
    assert [said.strip("\n") for said in together] == alone and len(set(alone)) == 3
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n\n".join(words).encode())
    assert text("--prompts", str(tmp_path / "prompts.txt")) == together
    assert [said.strip("\n") for said in text("--prompt", words[0], "--prompt", words[1], "--samples", "2")] == [
        alone[0], alone[0], alone[1], alone[1]
    ]  # fmt: skip


def test_prompts_that_cannot_be_read_are_one_line(base, capsys, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bytes.txt").write_bytes(b"a\xff")
    capsys.readouterr()
    for words, said in (
        (["--prompts", str(tmp_path / "empty.txt")], "the file is empty, expected a text to continue in each line"),
        (["--prompts", str(tmp_path / "bytes.txt")], "is no UTF-8 text: invalid start byte at byte 1"),
        (["--prompts", str(tmp_path / "absent.txt")], "no prompts file"),
        (["--prompts", str(tmp_path)], "is a folder"),
        (["--prompts", "a", "--prompt", "b"], "--prompt and --prompts: give the texts in one of them"),
    ):
        assert main(["generate", "--model", "base.npz", "--tokens", "1", *words]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_a_warning_is_one_line(base, capsys):
    capsys.readouterr()
    assert main(["generate", "--model", "base.npz", "--prompt", "été", "--tokens", "1"]) == 0
    error = capsys.readouterr().err
    assert error == "minilora: warning: the prompt has 2 characters outside the vocabulary; they read '?'\n"
