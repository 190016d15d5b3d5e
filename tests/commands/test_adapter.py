"""`minilora adapter`: what it prints, and that every mistake is one line and leaves nothing behind."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from adapter_making import draw, kohya_file, peft_folder, two
from lines import the_error
from safetensors.numpy import save_file

from minilora.commands.main import main

KEYS = [
    "name", "shape", "rank", "frobenius_norm", "spectral_norm", "effective_rank", "stable_rank", "rank_90", "rank_99",
]  # fmt: skip


def layers(count: int, kinds=("self_attn.q_proj", "mlp.up_proj"), **how) -> dict:
    """{module: (B, A)} of kinds of matrices in so many layers."""
    names = [f"model.layers.{i}.{kind}" for i in range(count) for kind in kinds]
    return {name: draw(seed=i, **how) for i, name in enumerate(names)}


def test_show_prints_one_object(here, capsys):
    """Its keys are those that were asked for, in their order; the numbers those of the dense matrix."""
    peft_folder(here / "a", two())
    assert main(["adapter", "show", "a", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == "" and list(found) == ["rank", "alpha", "scale", "matrices"]
    assert (found["rank"], found["alpha"], found["scale"]) == (2, 8, 4.0)
    for row, (B, A) in zip(found["matrices"], two().values(), strict=True):
        assert list(row) == KEYS and (row["shape"], row["rank"]) == ([6, 5], 2)
        assert row["frobenius_norm"] == pytest.approx(np.linalg.norm(4 * B.astype(float) @ A), rel=1e-12)


@pytest.mark.parametrize("count", [1, 3, 60])
def test_show_fits_a_terminal(here, capsys, count):
    """80 columns, whatever the names' lengths; beyond a page the largest matrices stand for the rest."""
    peft_folder(here / "a", layers(count), {"score.weight": np.ones((3, 4), "f")})
    assert main(["adapter", "show", "a"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[3:])) <= 80 and lines[-1].startswith("Rank 2 ")
    assert f"matrices          {2 * count}: rank 2, alpha 8, scale 4; {2 * count * 22:,} numbers" in lines
    assert "beside them       score.weight" in lines
    assert any("more; --json has all" in line for line in lines) == (count == 60)
    assert len([line for line in lines if " 6x5 " in line]) == (10 if count == 60 else 2 * count)


def test_long_names_are_told_apart(here, capsys):
    """Two text encoders, an encoder beside a decoder: what differs may be the names' beginnings. Within 80 columns."""
    ends = "text_model_encoder_layers_0_self_attn_q_proj"
    kohya_file(here / "k.safetensors", {f"lora_te{i}_{ends}": draw(seed=i) for i in (1, 2)})
    names = [f"{part}.block.{i}.layer.0.SelfAttention.q" for part in ("encoder", "decoder") for i in (0, 1)]
    biases = {f"bert.encoder.layer.{i}.attention.self.query.base_layer.bias": np.ones(6, "f") for i in range(4)}
    peft_folder(here / "p", {name: draw(seed=i) for i, name in enumerate(names)}, biases)
    for words, told in (
        (["show", "k.safetensors"], [f"te{i}_{ends}" for i in (1, 2)]),
        (["resize", "k.safetensors", "--rank", "1", "--output", "s.safetensors"], [f"te{i}_{ends}" for i in (1, 2)]),
        (["show", "p"], names),
        (["compare", "p", "p"], names),
    ):
        assert main(["adapter", *words]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        assert all(any(line.startswith(name) for line in lines) for name in told)


def test_every_example_is_one_that_runs(here, capsys):
    """But for its files, which are not there: nothing is wrong with its words."""
    for word in ("show", "compare", "resize", "combine", "extract", "merge", "convert"):
        assert main(["adapter", word, "--help"]) == 0
        example = capsys.readouterr().out.split("example:")[1].split()
        assert example[:3] == ["minilora", "adapter", word]
        assert "there is no " in the_error(capsys, *example[1:])


def test_show_says_what_the_rank_is_worth(here, capsys):
    """An adapter of rank 3 whose third direction holds next to nothing; and one matrix that was not trained."""
    B, A = draw(r=3)
    B, A = np.linalg.qr(B)[0] * [3, 2, 0.01], np.linalg.qr(A.T)[0].T
    kohya_file(here / "a.safetensors", {"x.layers.0.q": (B, A), "x.layers.0.k": (0 * B, A)}, 3.0)
    assert main(["adapter", "show", "a.safetensors"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Rank 3 holds what rank 2 would: 99 % of the energy of Delta W" in said
    assert "1 of 2 matrices are not changed at all, x.layers.0.k for one" in said
    kohya_file(here / "b.safetensors", {"x.layers.0.q": (np.eye(3), np.eye(3))}, 3.0)
    assert main(["adapter", "show", "b.safetensors"]) == 0
    assert "Rank 3 is used: rank 2 would hold less than 99 %" in capsys.readouterr().out


def test_show_beside_a_base_and_without_the_one_it_needs(here, capsys):
    """A table more, in 80 columns, and a number for each matrix; DoRA alone says what its numbers are of."""
    (here / "base").mkdir()
    lengths = {f"{name}.lora_magnitude_vector": np.ones(6, "float32") for name in two()}
    peft_folder(here / "a", two(), lengths, use_dora=True)
    save_file({f"{name}.weight": np.eye(6, 5) for name in two()}, here / "base" / "model.safetensors")
    assert main(["adapter", "show", "a"]) == 0
    assert "note              DoRA turns and stretches the rows of W" in capsys.readouterr().out
    assert main(["adapter", "show", "a", "--base", "base"]) == 0
    out = capsys.readouterr().out
    assert "A and B have rank 2, and Delta W more: rank " in out
    assert "DoRA turns" not in out and "beside the base" in out and max(map(len, out.splitlines())) <= 80
    assert main(["adapter", "show", "a", "--base", "base", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["matrices"][0]
    assert list(row) == [*KEYS, "weight_norm", "relative_norm", "amplification", "intruders"]
    assert row["weight_norm"] == pytest.approx(5**0.5)


def test_show_says_what_can_be_said_of_other_methods(here, capsys):
    prompt = {"prompt_embeddings": np.full((4, 5), 2.0, "float32")}
    peft_folder(here / "a", {}, prompt, peft_type="PROMPT_TUNING")
    assert main(["adapter", "show", "a"]) == 0
    out = capsys.readouterr().out
    assert "a prompt_tuning adapter is not a product" in out and "prompt_embeddings" in out and "4x5 norm 8.94" in out
    assert main(["adapter", "show", "a", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "prompt_tuning" and found["matrices"] == [] and found["tensors"][0]["shape"] == [4, 5]


@pytest.mark.slow
def test_pictures_are_drawn(here, capsys):
    """In the format of their ending, with all sorts of layers and kinds, and the same bytes each time."""
    peft_folder(here / "a", layers(3) | {"lm_head": draw(9, 5)})
    peft_folder(here / "b", layers(2) | {"model.layers.1.mlp.up_proj": draw(seed=9)})
    assert main(["adapter", "show", "a", "--figure", "a.png"]) == 0
    assert main(["adapter", "show", "a", "--figure", "b.svg"]) == 0
    assert main(["adapter", "compare", "a", "b", "--figure", "c.png"]) == 0
    assert (here / "a.png").read_bytes()[:4] == b"\x89PNG" and b"<svg" in (here / "b.svg").read_bytes()
    first = (here / "c.png").read_bytes()
    assert main(["adapter", "compare", "a", "b", "--figure", "c.png", "--json"]) == 0
    assert (here / "c.png").read_bytes() == first


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="a process's largest memory is read as Linux tells it"
)
def test_a_large_adapter_is_looked_into_a_matrix_at_a_time(here):
    """8 of Llama 2's 80 layers of 70 billion parameters, r = 16, 83 MB: the process never holds them."""
    shapes = {"q": (8192, 8192), "k": (1024, 8192), "v": (1024, 8192), "o": (8192, 8192), "gate": (28672, 8192),
              "up": (28672, 8192), "down": (8192, 28672)}  # fmt: skip
    one = {kind: draw(m, n, 16) for kind, (m, n) in shapes.items()}
    peft_folder(here / "a", {f"layers.{i}.{kind}": pair for i in range(8) for kind, pair in one.items()}, r=16)
    code = (
        "import re; from minilora.commands.main import main; code = main(['adapter', 'show', 'a', '--json']);"
        r"print(code, re.search(r'VmHWM:\s+(\d+)', open('/proc/self/status').read())[1])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    code, most = out.splitlines()[-1].split()
    assert code == "0" and int(most) < 130 * 1024  # KiB


def test_compare_says_it_in_words(here, capsys):
    """An adapter and its half; the matrices that one alone has; and the numbers as JSON."""
    peft_folder(here / "a", layers(2))
    halved = {name: (0.5 * B, A) for name, (B, A) in layers(2).items()}
    peft_folder(here / "b", halved | {"lm_head": draw()})
    assert main(["adapter", "compare", "a", "b"]) == 0
    out = capsys.readouterr().out
    assert "In all, cosine 1.000 and norm ratio 0.500: B has the same direction, half the size" in " ".join(out.split())
    assert "b alone changes 1 more, as lm_head" in out and max(map(len, out.splitlines())) <= 80
    assert main(["adapter", "compare", "a", "b", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["only_first"], found["only_second"]) == ([], ["lm_head"])
    name, *numbers = found["matrices"][0].values()
    assert name.startswith("model.layers.0.") and numbers == pytest.approx([1, 0.5, 1, 1])
    assert list(found["matrices"][0]) == ["name", "cosine", "norm_ratio", "similarity_A", "similarity_B"]


def test_resize_says_what_was_lost_and_writes_what_peft_reads(here, capsys):
    """A line a matrix, all together, and the sizes; the numbers as JSON."""
    peft_folder(here / "a", layers(25))
    assert main(["adapter", "resize", "a", "--rank", "1", "--output", "b"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines()[:-1])) <= 80 and "... and 10 more; --json has all" in out
    assert "2 -> 1" in out and "of the energy" in out and "saved             b, " in out
    assert sorted(path.name for path in (here / "b").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert main(["adapter", "resize", "a", "--energy", "0.9", "--output", "c", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["rank", "norm", "lost", "matrices"] and found["lost"] ** 2 <= 0.1 * found["norm"] ** 2
    assert main(["adapter", "show", "c"]) == 0 and "rank 1 to 2" in capsys.readouterr().out


def test_combine_says_what_it_added(here, capsys):
    """Weights after the names, negative ones too; another form's adapter beside one of PEFT's."""
    peft_folder(here / "a", layers(2))
    peft_folder(here / "b:c", layers(2, r=1) | {"lm_head": draw(r=1)}, r=1)
    kohya_file(here / "k.safetensors", {f"lora_te_{name.replace('.', '_')}": pair for name, pair in layers(1).items()})
    assert main(["adapter", "combine", "a:0.7", "b:c:-0.3", "k.safetensors:1e-1", "--output", "d"]) == 0
    out = capsys.readouterr().out
    assert "2+1+2 -> 5" in out and " 1 -> 1" in out and "saved             d, " in out
    assert main(["adapter", "combine", "a:0.7", "b:c:-0.3", "--rank", "2", "--output", "e", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rank"] == 2 and found["matrices"][0]["ranks"] == [2, 1] and found["lost"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("show none", "there is no file or folder 'none'"),
        ("show .", "there is no adapter_config.json in '.'; its folder 'a' has one"),
        ("show text.txt", "text.txt is no adapter: expected PEFT's folder"),
        ("show zero", "zero: every Delta W is zero, as B is before training"),
        ("show a --base none", "there is no checkpoint 'none'"),
        ("show a --figure no/", "is a folder, expected a file"),
        ("show prompt --figure b.png", "--figure: prompt is a prompt_tuning adapter, which has no spectra to draw"),
        ("compare a", "the following arguments are required: B"),
        ("compare a zero", "zero: every Delta W is zero"),
        (
            "compare a other",
            "a and other have no matrix in common: one adapts model.layers.0.self_attn.q_proj, one wte",
        ),
        ("compare a wide", "a and wide are of different bases: model.layers.0.self_attn.q_proj is (6, 5) and (7, 5)"),
        ("compare a prompt", "prompt: a prompt_tuning adapter has no Delta W = s B A to compare"),
        ("compare a dora", "DoRA turns and stretches the rows of W"),
        ("resize a --rank 1", "the following arguments are required: --output"),
        ("resize a --output b", "give one of --rank and --energy: --rank 4, or --energy 0.99"),
        ("resize a --rank 1 --energy 0.5 --output b", "give one of --rank and --energy"),
        ("resize a --rank 0 --output b", "--rank: got '0', expected a whole number, 1 or more"),
        ("resize a --rank 9 --output b", "has more than 2: nothing to cut"),
        (
            "resize a --energy 1.5 --output b",
            "--energy: got '1.5', expected a share of the energy, above 0 and up to 1",
        ),
        ("resize a --energy nan --output b", "--energy: got 'nan', expected a share"),
        ("resize a --rank 1 --output a", "the output 'a' is an input; choose another name"),
        ("resize a --rank 1 --output ./a/", "the output 'a' is an input"),
        ("resize a --rank 1 --output text.txt", "'text.txt' names a file, and a PEFT adapter is a folder"),
        ("resize a --rank 1 --output text.txt/b", "cannot write to 'text.txt': it is a file"),
        ("resize zero --rank 1 --output b", "zero: every Delta W is zero; nothing is written"),
        ("resize prompt --rank 1 --output b", "a prompt_tuning adapter has no Delta W = s B A to resize"),
        ("resize dora --rank 1 --output b", "give the checkpoint it was trained on: --base FOLDER"),
        ("combine a --output b", "ADAPTER:WEIGHT: got 'a', expected an adapter and a weight, as in runs/docs.npz:0.7"),
        ("combine a:x --output b", "got 'a:x', expected an adapter and a weight"),
        ("combine a:inf --output b", "got 'a:inf', expected an adapter and a weight"),
        ("combine a:1 a:2 --output b", "an adapter is named twice; add its weights"),
        ("combine a:1 other:1 --output b", "a and other have no matrix in common"),
        ("combine a:1 wide:1 --output b", "is (6, 5) and (7, 5): adapters of different bases"),
        ("combine a:1 none:1 --output b", "there is no file or folder 'none'"),
        ("combine a:1 zero:1 --output zero", "the output 'zero' is an input"),
        ("comb a:1 --output b", "no command 'adapter comb'; did you mean 'combine'?"),
    ],
)
def test_a_mistake_is_one_line(here, capsys, words, said):
    peft_folder(here / "a", two())
    peft_folder(here / "zero", {name: (0 * B, A) for name, (B, A) in two().items()})
    peft_folder(here / "other", {"wte": draw()})
    peft_folder(here / "wide", two(m=7))
    peft_folder(here / "prompt", {}, {"prompt_embeddings": np.ones((2, 2), "f")}, peft_type="PROMPT_TUNING")
    lengths = {f"{name}.lora_magnitude_vector": np.ones(6, "float32") for name in two()}
    peft_folder(here / "dora", two(), lengths, use_dora=True)
    before = sorted(path.name for path in here.rglob("*"))
    assert said in the_error(capsys, "adapter", *words.split())
    assert sorted(path.name for path in here.rglob("*")) == before


def test_nan_is_named_with_its_place(here, capsys):
    matrices = two()
    next(iter(matrices.values()))[1][1, 3] = np.nan
    peft_folder(here / "a", matrices)
    error = the_error(capsys, "adapter", "show", "a")
    assert "A of model.layers.0.self_attn.q_proj: entry (1, 3) is nan" in error
    shutil.rmtree(here / "a")
