"""`minilora adapter merge`: what it prints, and that every mistake is one line and leaves nothing behind."""

import json

import ml_dtypes
import numpy as np
from adapter_making import draw, peft_folder
from lines import the_error
from safetensors.numpy import load_file, save_file

from minilora.commands.main import main


def base(folder, count: int = 1, dtype="float32"):
    """A checkpoint of so many matrices (6, 5), and an adapter of half of them."""
    folder.mkdir()
    names = [f"model.layers.{i}.self_attn.q_proj" for i in range(count)]
    rng = np.random.default_rng(0)
    save_file({f"{n}.weight": rng.normal(size=(6, 5)).astype(dtype) for n in names}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "torch_dtype": np.dtype(dtype).name}))
    return names


def test_merge_says_what_rounding_kept(here, capsys):
    """80 columns; of many matrices a page; where bfloat16 loses the update, and what keeps it."""
    names = base(here / "base", 50, ml_dtypes.bfloat16)
    B, A = draw()
    peft_folder(here / "a", {name: (B * np.float32(1e-4), A) for name in names})
    assert main(["adapter", "merge", "base", "a", "--output", "out"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 and "... and 10 more; --json has all" in out
    said = " ".join(out.split())
    assert "What arrived in bfloat16 has" in said and "--dtype float32 keeps it" in said and "saved out, " in said
    assert main(["adapter", "merge", "base", "a", "--output", "wide", "--dtype", "float32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    keys = ["name", "tensor", "shape", "rank", "frobenius_norm", "arrived", "kept", "changed", "lost"]
    assert [*found] == ["dtype", "norm", "arrived", "kept", "changed", "lost", "matrices", "notes"]
    assert [*found["matrices"][0]] == keys and abs(found["kept"] - 1) < 1e-3
    assert load_file(here / "wide/model.safetensors")[f"{names[0]}.weight"].dtype == np.float32
    assert json.loads((here / "wide/config.json").read_text())["torch_dtype"] == "float32"


def test_mistakes_are_one_line(here, capsys):
    names = base(here / "base")
    peft_folder(here / "a", {names[0]: draw()})
    peft_folder(here / "b", {"model.layers.7.self_attn.q_proj": draw(), names[0]: draw(n=7)})
    (here / "b/adapter_model.bin").write_bytes(b"")
    for words, said in (
        (["base", "b", "--output", "out"], "base is not the base of b"),
        (["base", "a", "--output", "base"], "is an input"),
        (["base", "a", "--output", "base/out"], "is inside"),
        (["base", "a"], "--output"),
        (["base", "a", "--output", "out", "--dtype", "int8"], "--dtype: got 'int8'"),
        (["base", "base", "--output", "out"], "adapter_config.json"),
        (["a", "a", "--output", "out"], "no model.safetensors"),
    ):
        before = sorted(here.rglob("*"))
        assert said in the_error(capsys, "adapter", "merge", *words) and sorted(here.rglob("*")) == before
