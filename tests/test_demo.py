"""The demo, with few steps: the whole story in 80 columns, its numbers measured and its pictures there."""

import re

import pytest

from minilora import demo
from minilora.commands.main import main


@pytest.mark.slow
def test_the_demo_tells_its_story(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--steps", "8"]) == 0
    captured = capsys.readouterr()
    out = captured.out
    assert captured.err == ""  # a progress bar is for a terminal
    assert max(map(len, out.splitlines())) <= 80
    assert re.findall(r"^(\d)\. ", out, re.MULTILINE) == list("12345678")
    assert "gradcheck, central: pass" in out
    assert "73,728 of 822,016 parameters" in out
    for before, after in re.findall(r"loss, before and after +([\d.]+) -> ([\d.]+)", out):
        assert float(after) < float(before) - 0.2
    assert float(re.search(r"largest difference in outputs +(\S+)", out)[1]) < 1e-4
    assert "every bit as before" in out
    ninth = re.search(r"singular value 9 +(\S+) +(\S+)", out)
    assert float(ninth[1]) < 1e-4 < float(ninth[2])  # LoRA's change has rank 8, the other has not
    named = re.findall(r"^  (runs/demo/\S+)$", out, re.MULTILINE)
    assert len(named) == 6 and all((tmp_path / name).stat().st_size > 1000 for name in named)


@pytest.mark.parametrize("folder", ["file", "file/figures"])
def test_an_unwritable_folder_is_said_before_any_work(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(demo.ml, "load_model", lambda *args: pytest.fail("began to work"))
    assert main(["demo", "--output", folder]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("minilora: error: cannot write to ")
    assert captured.err.count("\n") == 1


def test_a_failed_gradient_check_stops_the_demo(monkeypatch, capsys):
    right = demo.ml.ops.lora_linear
    monkeypatch.setattr(demo.ml.ops, "lora_linear", lambda x, W, b, A, B, s: right(x, W, b, A.detach(), B, s))
    with pytest.raises(ArithmeticError, match="gradient check"):
        demo.check_the_gradients(demo.Story(1, 0, False))


def test_ctrl_c_ends_the_demo(monkeypatch):
    def stopped(run, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo.ml, "train", stopped)
    story = demo.Story(2, 0, False)
    story.corpus = demo.ml.load_corpus("unicode-names")
    model = demo.ml.GPT(demo.ml.GPTConfig(96, 8, 1, 1, 8))
    with pytest.raises(KeyboardInterrupt):
        demo.train(story, "LoRA", model, 1e-3)


def test_quoted_text_fits():
    text = demo.quoted("\n" + "word " * 40 + "\n\nend\n", 4)
    assert text.splitlines()[-1] == "  |" and max(map(len, text.splitlines())) <= 80
