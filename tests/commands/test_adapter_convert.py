"""`minilora adapter convert`: what it prints, and that every mistake is one line and leaves nothing behind."""

import json

from adapter_making import draw, kohya_file, peft_folder, two
from lines import the_error

from minilora.commands.main import main


def test_convert_says_what_it_wrote(here, capsys):
    """80 columns, a line a matrix; a note where names stay; the numbers as JSON."""
    peft_folder(here / "a", {f"model.layers.{i}.self_attn.q_proj": draw(seed=i) for i in range(50)})
    assert main(["adapter", "convert", "a", "--to", "kohya", "--output", "k.safetensors"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 and "... and 10 more; --json has all" in out
    assert "peft to kohya; 0 of " in out and "saved             k.safetensors, " in out
    assert main(["adapter", "convert", "k.safetensors", "--to", "peft", "--output", "b", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [*found] == ["from", "to", "norm", "lost", "matrices", "notes"] and found["lost"] == 0
    assert [*found["matrices"][0]] == ["name", "shape", "rank", "alpha", "scale", "frobenius_norm"]
    kohya_file(here / "others.safetensors", {"lora_unet_x_y": draw()})
    assert main(["adapter", "convert", "others.safetensors", "--to", "peft", "--output", "c"]) == 0
    out = capsys.readouterr().out
    assert "modules keep the names" in " ".join(out.split()) and max(map(len, out.splitlines())) <= 80


def test_mistakes_are_one_line(here, capsys):
    peft_folder(here / "a", two(), {"score.weight": draw()[0]}, modules_to_save=["score"])
    for words, said in (
        (["--to", "peft", "--output", "b"], "has this form already"),
        (["--to", "lora", "--output", "b"], "--to: got 'lora'"),
        (["--output", "b"], "--to"),
        (["--to", "kohya", "--output", "b.safetensors"], "score.weight"),
        (["--to", "minilora", "--output", "b.npz"], "--base CHECKPOINT"),
        (["--to", "minilora", "--output", "b.npz", "--base", "none"], "none"),
        (["--to", "kohya", "--output", "a"], "is an input"),
    ):
        before = sorted(here.rglob("*"))
        assert said in the_error(capsys, "adapter", "convert", "a", *words)
        assert sorted(here.rglob("*")) == before
