"""Adapters in another form of file, there and back: the same Delta W, the same names, and every refusal."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from adapter_making import draw, kohya_file, peft_folder, two
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import minilora as ml
from minilora.interop import workbench
from minilora.interop.adapter_files import read_adapter
from minilora.interop.convert import convert

CONFIG = ml.GPTConfig(vocab_size=9, block_size=8, n_layer=2, n_head=2, n_embd=4)
DATA = Path(os.environ.get("MINILORA_DATA", "../shared/data")) / "adapters"


def deltas(path: Path) -> dict:
    """{module: Delta W}"""
    return {name: B @ A for name, pair in read_adapter(path).matrices.items() for B, A in (pair.factors(),)}


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=1e-6, atol=1e-12, err_msg=name)


def config_of(folder: Path) -> dict:
    return json.loads((folder / "adapter_config.json").read_text())


SETTINGS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "ranks": {"rank_pattern": {"v_proj": 3}, "alpha_pattern": {"q_proj": 7}},
    "float16": {"dtype": "float16"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_peft_s_folder_there_and_back(tmp_path, name):
    """Through the single file: tensors bit for bit, the same Delta W and the same configuration, to its last number."""
    settings = dict(SETTINGS[name])
    pairs = two(dtype=settings.pop("dtype", "float32"))
    if name == "ranks":
        pairs["model.layers.1.self_attn.v_proj"] = draw(r=3)
    a = peft_folder(tmp_path / "a", pairs, **settings)
    found = convert(a, "kohya", tmp_path / "k.safetensors")
    assert (found["from"], found["to"], found["notes"]) == ("peft", "kohya", []) and found["lost"] < 1e-6 * found[
        "norm"
    ]
    names = load_file(tmp_path / "k.safetensors").keys()
    assert {n.partition(".")[0] for n in names} == {f"lora_te_{module.replace('.', '_')}" for module in pairs}
    np.testing.assert_allclose([*deltas(tmp_path / "k.safetensors").values()], [*deltas(a).values()], rtol=1e-6)
    convert(tmp_path / "k.safetensors", "peft", tmp_path / "b")
    assert_same(deltas(tmp_path / "b"), deltas(a))
    for key, value in load_file(a / "adapter_model.safetensors").items():
        np.testing.assert_array_equal(load_file(tmp_path / "b/adapter_model.safetensors")[key], value)
    before, after = config_of(a), config_of(tmp_path / "b")
    scales = [[pair.scale for pair in read_adapter(path).matrices.values()] for path in (a, tmp_path / "b")]
    assert scales[0] == scales[1] and (name == "ranks" or {key: after[key] for key in before} == before)


def test_dora_keeps_its_lengths(tmp_path):
    """(d_out,) of PEFT's is (d_out, 1) of image tools', of a kernel (1, d_out, 1, 1) and (d_out, 1, 1, 1)."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(2, 4, 3, 3)).astype("f"), rng.normal(size=(6, 2, 1, 1)).astype("f")
    lengths = {"a.q": rng.normal(size=6).astype("f"), "a.conv": rng.normal(size=(1, 6, 1, 1)).astype("f")}
    others = {f"{name}.lora_magnitude_vector": value for name, value in lengths.items()}
    a = peft_folder(tmp_path / "a", {"a.q": draw(), "a.conv": kernel[::-1]}, others, use_dora=True)
    convert(a, "kohya", tmp_path / "k.safetensors")
    there = load_file(tmp_path / "k.safetensors")
    assert there["lora_te_a_q.dora_scale"].shape == (6, 1) and there["lora_te_a_conv.dora_scale"].shape == (6, 1, 1, 1)
    convert(tmp_path / "k.safetensors", "peft", tmp_path / "b")
    back = load_file(tmp_path / "b/adapter_model.safetensors")
    assert back.keys() == load_file(a / "adapter_model.safetensors").keys() and config_of(tmp_path / "b")["use_dora"]
    for name, value in lengths.items():
        np.testing.assert_array_equal(back[f"base_model.model.{name}.lora_magnitude_vector"], value)


def test_names_of_others_files(tmp_path):
    """They stay where nothing tells more; a base's modules give them back, dots, underscores and all."""
    flat = {"lora_te_model_layers_0_self_attn_q_proj": draw(), "lora_te_model_layers_1_self_attn_v_proj": draw(seed=1)}
    k = kohya_file(tmp_path / "k.safetensors", flat)
    found = convert(k, "peft", tmp_path / "a")
    assert [row["name"] for row in found["matrices"]] == [*flat] and "--base CHECKPOINT" in found["notes"][0]
    (tmp_path / "base").mkdir()
    save_file({f"{name}.weight": np.ones((6, 5), "f") for name in two()}, tmp_path / "base/model.safetensors")
    found = convert(k, "peft", tmp_path / "b", base=tmp_path / "base")
    assert [row["name"] for row in found["matrices"]] == [*two()] and found["notes"] == []
    np.testing.assert_array_equal([*deltas(tmp_path / "b").values()], [*deltas(k).values()])
    save_file(
        {"a.b_c.weight": np.ones((6, 5), "f"), "a_b.c.weight": np.ones((6, 5), "f")}, tmp_path / "twice.safetensors"
    )
    text = kohya_file(tmp_path / "te.safetensors", {"lora_te_text_model_encoder_layers_0_mlp_fc1": draw()})
    save_file(
        {"encoder.layers.0.mlp.fc1.weight": np.ones((6, 5), "f")}, tmp_path / "clip.safetensors"
    )  # by transformers 5
    found = convert(text, "peft", tmp_path / "te", base=tmp_path / "clip.safetensors")
    assert [row["name"] for row in found["matrices"]] == ["encoder.layers.0.mlp.fc1"]
    odd = kohya_file(tmp_path / "odd.safetensors", {"lora_te_a_b_c": draw(), "lora_te_x": draw()})
    with pytest.raises(ValueError, match=r"lora_te_a_b_c \(several modules\), lora_te_x \(no module\)"):
        convert(odd, "peft", tmp_path / "c", base=tmp_path / "twice.safetensors")
    assert not (tmp_path / "c").exists()


def test_lycoris_middles_are_multiplied_out(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"lora_down.weight": (2, 4, 1, 1), "lora_mid.weight": (2, 2, 3, 3), "lora_up.weight": (6, 2, 1, 1)}
    save_file({f"a.{name}": rng.normal(size=s).astype("f") for name, s in shapes.items()}, tmp_path / "k.safetensors")
    convert(tmp_path / "k.safetensors", "peft", tmp_path / "a")
    assert_same(deltas(tmp_path / "a"), deltas(tmp_path / "k.safetensors"))
    assert read_adapter(tmp_path / "a").matrices["a"].a.shape == (2, 4, 3, 3)


def adapted(**settings) -> ml.GPT:
    """A model with an adapter whose numbers were moved."""
    model = ml.GPT(CONFIG, rng=1)
    ml.add_lora(model, ml.LoRAConfig(**{"rank": 2, "target_modules": ("q_proj", "v_proj", "up_proj"), **settings}))
    rng = np.random.default_rng(0)
    for p in model.parameters(trainable=True):
        p.data = p.data + 0.1 * rng.normal(size=p.shape).astype("f")
    return model


@pytest.mark.parametrize("settings", [{}, {"rank_stabilized": True}, {"rank_pattern": {"q_proj": 3}}])
def test_minilora_s_file_through_the_single_file(tmp_path, settings):
    """No base is needed: the header goes along, with its fingerprint, and the model takes what comes back."""
    model = adapted(**settings)
    ml.save_adapter(model, tmp_path / "a.npz")
    convert(tmp_path / "a.npz", "kohya", tmp_path / "k.safetensors")
    found = convert(tmp_path / "k.safetensors", "minilora", tmp_path / "b.npz")
    assert_same(deltas(tmp_path / "b.npz"), deltas(tmp_path / "a.npz"))
    assert "fingerprint" in found["notes"][0]
    again = ml.load_adapter(ml.GPT(CONFIG, rng=1), tmp_path / "b.npz")
    tokens = np.arange(8)[None]
    np.testing.assert_allclose(again(tokens).numpy(), model(tokens).numpy(), atol=1e-6)


@pytest.mark.slow
def test_minilora_s_file_through_peft_s(tmp_path):
    """Over the base, from a folder and from our own model file: q, k and v are one matrix there and three here."""
    model = adapted()
    ml.save_pretrained(ml.GPT(CONFIG, rng=1), tmp_path / "base")
    ml.save_model(ml.GPT(CONFIG, rng=1), tmp_path / "base.npz")
    ml.save_adapter(model, tmp_path / "a.npz")
    tokens = np.arange(8)[None]
    for base in (tmp_path / "base.npz", tmp_path / "base"):
        at = tmp_path / f"at-{base.suffix}"
        at.mkdir()
        convert(tmp_path / "a.npz", "peft", at / "peft", base=base)
        assert "transformer.h.0.attn.c_attn" in read_adapter(at / "peft").matrices
        convert(at / "peft", "kohya", at / "k.safetensors")
        convert(at / "k.safetensors", "minilora", at / "b.npz", base=base)
        convert(at / "peft", "minilora", at / "c.npz", base=base)
        for name in ("b.npz", "c.npz"):
            again = ml.load_adapter(ml.GPT(CONFIG, rng=1), at / name)
            np.testing.assert_allclose(again(tokens).numpy(), model(tokens).numpy(), atol=1e-6)
    convert(tmp_path / "a.npz", "kohya", tmp_path / "k.safetensors")
    convert(tmp_path / "k.safetensors", "peft", tmp_path / "d", base=tmp_path / "base")
    assert "transformer.h.0.attn.c_attn" in read_adapter(tmp_path / "d").matrices


def test_what_a_form_cannot_hold_is_refused_by_name(tmp_path):
    head = {"score.weight": np.ones((2, 5), "f")}
    a = peft_folder(tmp_path / "a", two(), head, modules_to_save=["score", "score"])
    with pytest.raises(ValueError, match=r"^convert: .* holds score.weight beside its matrices, .* --matrices-only"):
        convert(a, "kohya", tmp_path / "k.safetensors")
    assert not (tmp_path / "k.safetensors").exists()
    found = convert(a, "kohya", tmp_path / "k.safetensors", matrices_only=True)
    assert found["notes"] == ["left out: score.weight"]
    convert(tmp_path / "k.safetensors", "peft", tmp_path / "b")
    assert config_of(tmp_path / "b")["modules_to_save"] is None
    table = {"wte.lora_embedding_A": np.ones((2, 9), "f"), "wte.lora_embedding_B": np.ones((5, 2), "f")}
    with pytest.raises(ValueError, match="wte is a table"):
        convert(peft_folder(tmp_path / "t", two(), table), "kohya", tmp_path / "t.safetensors")


def test_every_fault_is_one_line_and_writes_nothing(tmp_path):
    a = peft_folder(tmp_path / "a", two())
    nan = peft_folder(tmp_path / "nan", {"x.q": (np.full((6, 2), np.nan, "f"), draw()[1])})
    prompt = peft_folder(tmp_path / "p", {}, {"prompt_embeddings": np.ones((2, 5), "f")}, peft_type="PROMPT_TUNING")
    acts = peft_folder(tmp_path / "acts", two(), alora_invocation_tokens=[1])
    pissa = peft_folder(tmp_path / "pissa", two(), init_lora_weights="pissa")
    both = peft_folder(tmp_path / "both", {"a.b_c": draw(), "a_b.c": draw()})
    k = kohya_file(tmp_path / "k.safetensors", {"lora_te_x": draw()})
    zero = kohya_file(tmp_path / "zero.safetensors", {"lora_te_x": (np.zeros((6, 2), "f"), draw()[1])})
    before_training = peft_folder(tmp_path / "start", {name: (0 * B, A) for name, (B, A) in two().items()})
    rest = kohya_file(tmp_path / "rest.safetensors", {"lora_te_x": draw()}, others={"y.diff": np.ones(3, "f")})
    columns = kohya_file(tmp_path / "cols.safetensors", {"x": draw()}, others={"x.dora_scale": np.ones((1, 5), "f")})
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x02")
    base = tmp_path / "base"
    base.mkdir()
    save_file({"y.weight": np.ones((6, 5), "f")}, base / "model.safetensors")
    out, file = tmp_path / "out", tmp_path / "out.safetensors"
    for path, to, output, how, words in (
        (a, "peft", out, {}, "has this form already: peft"),
        (a, "lora", out, {}, "lora"),
        (a, "kohya", a, {}, "is an input"),
        (a, "kohya", a / "x.safetensors", {}, "is inside"),
        (k, "peft", k, {}, "is an input"),
        (a, "kohya", out, {}, "should end in .safetensors"),
        (a, "minilora", out, {}, "should end in .npz"),
        (k, "peft", tmp_path / "out.npz", {}, "names a file"),
        (a, "minilora", tmp_path / "out.npz", {}, "give its base: --base CHECKPOINT"),
        (k, "minilora", tmp_path / "out.npz", {}, "give its base: --base CHECKPOINT"),
        (nan, "kohya", file, {}, "B of x.q: entry (0, 0) is nan"),
        (prompt, "kohya", file, {}, "has no Delta W = s B A to write as kohya"),
        (acts, "kohya", file, {}, "invocation tokens"),
        (pissa, "kohya", file, {}, "--base FOLDER"),
        (both, "kohya", file, {}, "would both be called lora_te_a_b_c"),
        (zero, "peft", out, {}, "every Delta W is zero"),
            (before_training, "kohya", file, {}, "every Delta W is zero"),
        (rest, "peft", out, {}, "holds y.diff beside its matrices"),
        (columns, "peft", out, {}, "expected one for each of 6 rows"),
        (k, "peft", out, {"base": base}, "lora_te_x (no module)"),
        (tmp_path / "adapter_model.bin", "kohya", file, {}, "is pickled"),
        (tmp_path / "none", "kohya", file, {}, "there is no file or folder"),
    ):  # fmt: skip
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises((ValueError, OSError)) as error:
            convert(path, to, output, **how)
        assert words in str(error.value) and "\n" not in str(error.value), (words, str(error.value))
        assert sorted(tmp_path.rglob("*")) == before, words


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the published adapters: set MINILORA_DATA to their folder")
@pytest.mark.parametrize("name", ["emotion-distilbert", "tigrinya-gpt2"])
def test_published_adapters_come_back(tmp_path, name):
    """Every number that `show` gives is the same after the way there and back; the head is refused by name."""
    if name == "emotion-distilbert":
        with pytest.raises(ValueError, match=r"classifier\.bias, classifier\.weight, pre_classifier\.bias and 1 more"):
            convert(DATA / name, "kohya", tmp_path / "k.safetensors")
    convert(DATA / name, "kohya", tmp_path / "k.safetensors", matrices_only=True)
    with safe_open(tmp_path / "k.safetensors", "np") as file:
        assert file.metadata()["ss_network_dim"] == "8"
    convert(tmp_path / "k.safetensors", "peft", tmp_path / "b")
    assert workbench.show(tmp_path / "b") == workbench.show(DATA / name)
