"""`minilora adapter`: what it prints, and that every mistake is one line and leaves nothing behind."""

import json
import shutil

import numpy as np
import pytest
from adapter_making import draw, kohya_file, peft_folder, two
from lines import the_error

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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("show none", "there is no file or folder 'none'"),
        ("show .", "there is no adapter_config.json in '.'; its folder 'a' has one"),
        ("show text.txt", "text.txt is no adapter: expected PEFT's folder"),
        ("show zero", "zero: every Delta W is zero, as B is before training"),
        ("show a --base none", "there is no checkpoint 'none'"),
        ("show a --figure no/", "is a folder, expected a file"),
        ("compare a", "the following arguments are required: B"),
        ("compare a zero", "zero: every Delta W is zero"),
        (
            "compare a other",
            "a and other have no matrix in common: one adapts model.layers.0.self_attn.q_proj, one wte",
        ),
        ("compare a wide", "a and wide are of different bases: model.layers.0.self_attn.q_proj is (6, 5) and (7, 5)"),
        ("compare a prompt", "prompt: a prompt_tuning adapter has no Delta W = s B A to compare"),
        ("compare a dora", "DoRA turns and stretches the rows of W"),
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
