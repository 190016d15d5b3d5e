"""`minilora adapter extract`: what it prints, and that every mistake is one line and leaves nothing behind."""

import json

import numpy as np
from lines import the_error
from safetensors.numpy import save_file

from minilora.commands.main import main

NAMES = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(50)]


def two(low: int | None):
    """Two files of 50 matrices (30, 20), whose change has a rank, or is random; and a norm that changed."""
    rng = np.random.default_rng(0)
    old = {name: rng.normal(size=(30, 20)).astype("f") for name in NAMES}
    change = lambda: rng.normal(size=(30, low or 20)) @ (rng.normal(size=(low, 20)) if low else np.eye(20))
    new = {name: value + change().astype("f") for name, value in old.items()}
    save_file(old | {"model.norm.weight": np.ones(20, "f")}, "a.safetensors")
    save_file(new | {"model.norm.weight": np.full(20, 2, "f"), "score.weight": np.ones((2, 20), "f")}, "b.safetensors")


def test_extract_says_what_it_holds(here, capsys):
    """80 columns, of many matrices a page; a low-rank change and a random one; the numbers as JSON."""
    two(2)
    words = ["adapter", "extract", "a.safetensors", "b.safetensors", "--output"]
    assert main([*words, "out", "--rank", "2"]) == 0
    out = capsys.readouterr().out
    said = " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80 and "... and 10 more; --json has all" in out
    assert "Rank 2 holds 100.0% of the energy of the change" in said and "saved out, " in said
    assert "left out 1 changed" in said and "model.norm.weight" in said and "in TUNED alone 1, as score.weight" in said
    two(None)
    assert main([*words, "random", "--rank", "2"]) == 0
    assert "an adapter is a bad idea" in " ".join(capsys.readouterr().out.split())
    assert main([*words, "json", "--energy", "0.9", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    keys = ["name", "shape", "rank", "frobenius_norm", "lost", "energy", "random", "error", "bound"]
    assert [*found["matrices"][0]] == keys and found["energy"] >= 0.9 and found["rank"] > 10


def test_mistakes_are_one_line(here, capsys):
    two(1)
    for words, said in (
        (["--output", "out"], "give one of --rank and --energy"),
        (["--rank", "2", "--energy", "0.9", "--output", "out"], "give one of --rank and --energy"),
        (["--energy", "1.5", "--output", "out"], "--energy: got '1.5', expected a share"),
        (["--rank", "0", "--output", "out"], "--rank: got '0'"),
        (["--rank", "2"], "--output"),
        (["--rank", "2", "--output", "a.safetensors"], "a.safetensors"),
    ):
        before = sorted(here.rglob("*"))
        assert said in the_error(capsys, "adapter", "extract", "a.safetensors", "b.safetensors", *words)
        assert sorted(here.rglob("*")) == before
