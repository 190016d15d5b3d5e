"""gguf_file.py and gguf_config.py: what a GGUF file says, how it is held, and whatever may be wrong with one."""

import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from gguf_writing import write_gguf

import minilora as ml
from minilora.adapters.qlora import QuantizedEmbedding, QuantizedLinear
from minilora.adapters.quantization import Half
from minilora.interop.gguf_blocks import KINDS, Blocks
from minilora.interop.gguf_file import read_gguf
from minilora.interop.names import module_names
from minilora.interop.pretrained import load_pretrained
from minilora.nn.architectures import from_hugging_face, parameters

gguf = pytest.importorskip("gguf", reason="needs gguf: pip install 'minilora[models]'")

TOKENS = np.arange(10).reshape(2, 5)
CONFIG = {
    "model_type": "llama", "vocab_size": 40, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}  # fmt: skip
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=8192)  # fmt: skip


def drawn(config=CONFIG, seed=0):
    """(config as an object, {name in a Hugging Face file: array}) of a small Llama."""
    a, rng = from_hugging_face(config, "small"), np.random.default_rng(seed)
    places = module_names(a)
    state = {}
    for name, shape in parameters(a).items():
        path, _, last = name.rpartition(".")
        state[f"{places[path].module}.{last}"] = rng.normal(0, 0.2, shape).astype(np.float32)
    rope = {"rope_theta": 10000.0}
    return SimpleNamespace(**config, rope_parameters=rope), state


def written(path, kind="F32", config=CONFIG, **other):
    return write_gguf(path, *drawn(config), kind, **other)


@pytest.fixture
def path(tmp_path):
    return written(tmp_path / "small.gguf")


def test_a_file_says_the_same_to_ggufs_own_reader(path):
    facts, entries = read_gguf(path)
    theirs = gguf.GGUFReader(path)
    assert facts == {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert {name: entry.start for name, entry in entries.items()} == {t.name: t.data_offset for t in theirs.tensors}
    assert {name: entry.shape[::-1] for name, entry in entries.items()} == {t.name: (*t.shape,) for t in theirs.tensors}


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_a_file_is_held_as_it_is_or_made_floats(kind, tmp_path):
    path = written(tmp_path / "m.gguf", kind)
    plain, held = load_pretrained(path), load_pretrained(path, "file")
    assert not any(hasattr(m, "quantized") for _, m in plain.named_modules())
    weights = {name: m.quantized for name, m in held.named_modules() if hasattr(m, "quantized")}
    assert len(weights) == (0 if kind == "F32" else 15) and plain.count() == held.count()
    for name, weight in weights.items():
        assert isinstance(weight, Half if kind.endswith("F16") else Blocks)
        np.testing.assert_array_equal(weight.dequantize(), plain.get_module(name).weight.data)
    np.testing.assert_allclose(held(TOKENS).data, plain(TOKENS).data, rtol=1e-5, atol=1e-6)
    targets = TOKENS[:, ::-1]
    np.testing.assert_allclose(held.loss(TOKENS, targets).item(), plain.loss(TOKENS, targets).item(), rtol=1e-6)


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
def test_kinds_of_256_weights_are_read(kind, tmp_path):
    config = CONFIG | {"hidden_size": 256}
    rng, record = np.random.default_rng(0), KINDS[kind].record
    raw = rng.integers(0, 256, (96, record.itemsize), np.uint8)
    for name in {"d", "m"} & {*record.names}:
        raw.view(record)[name] = rng.normal(0, 1e-4, (96, 1))
    blocks = {"blk.1.ffn_up.weight": (raw, gguf.GGMLQuantizationType[kind])}
    path = written(tmp_path / "m.gguf", config=config, blocks=blocks)
    up = load_pretrained(path, "file").blocks[1].mlp.up_proj
    assert up.quantized.kind == kind
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(load_pretrained(path).blocks[1].mlp.up_proj.weight.data, expected)


def test_lora_on_a_files_blocks_is_lora_on_the_floats_they_stand_for(tmp_path):
    path, losses, states = written(tmp_path / "m.gguf", "Q4_1"), [], []
    for dtype in ("file", "float32"):
        model = ml.add_lora(load_pretrained(path, dtype), ml.LoRAConfig(rank=2), rng=0)
        assert isinstance(model.wte, QuantizedEmbedding if dtype == "file" else ml.nn.layers.Embedding)
        optimizer = ml.AdamW(model.named_parameters(), lr=0.01)
        losses.append([ml.train_step(model, optimizer, TOKENS, TOKENS) for _ in range(3)])
        states.append({name: p.data for name, p in model.named_parameters() if p.requires_grad})
    np.testing.assert_allclose(*losses, rtol=1e-5)
    for name, p in states[0].items():
        np.testing.assert_allclose(p, states[1][name], rtol=1e-3, atol=1e-5)
    model = load_pretrained(path, "file")
    ml.merge_lora(ml.add_lora(model, ml.LoRAConfig(rank=2), rng=0))
    with pytest.raises(ValueError, match="Q4_1 is read from GGUF files and not written"):
        ml.requantize(model)
    assert isinstance(model.blocks[0].attn.q_proj, QuantizedLinear)


def test_factors_of_llama_3_are_recognised_and_others_refused(tmp_path):
    config, state = drawn()
    theta = 1e4 ** (-np.arange(0, 16, 2) / 16)
    turns = 8192 * theta / (2 * np.pi)
    smooth = np.clip((turns - 1) / 3, 0, 1)
    state["rope_freqs.weight"] = (1 / ((1 - smooth) / 8 + smooth)).astype(np.float32)
    a = load_pretrained(write_gguf(tmp_path / "m.gguf", config, state)).architecture
    assert (a.rope_scaling, a.rope_factor, a.rope_original) == ("llama3", 8.0, 8192)
    assert a == from_hugging_face(CONFIG | {"head_dim": 16, "rope_scaling": LLAMA3, "rms_norm_eps": a.norm_eps}, "m")
    state["rope_freqs.weight"] = np.linspace(1, 8, 8).astype(np.float32)
    with pytest.raises(ValueError, match=r"its rope_freqs are not those of Llama 3 with factor 8"):
        load_pretrained(write_gguf(tmp_path / "m.gguf", config, state))


def test_linear_scaling_and_a_window_are_read(tmp_path):
    facts = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0, "llama.attention.sliding_window": 9}
    a = load_pretrained(written(tmp_path / "m.gguf", facts=facts)).architecture
    assert (a.rope_scaling, a.rope_factor, a.window, a.family) == ("linear", 2.0, 9, "mistral")


# --- what may be wrong -----------------------------------------------------------------------------------------------

WRONG = {
    "architecture": (
        dict(facts={"general.architecture": "mamba"}),
        r"architecture is 'mamba', .* known; gemma, gemma3, gpt2",
    ),
    "experts": (
        dict(facts={"llama.expert_count": 8}),
        r"llama.expert_count = 8 would change the model, and is not acted on",
    ),
    "scaling": (dict(facts={"llama.rope.scaling.type": "yarn"}), r"llama.rope.scaling.type = 'yarn' is not known"),
    "no size": (dict(facts={"llama.block_count": None}), r"it does not say llama.block_count"),
    "not a size": (
        dict(facts={"llama.attention.head_count": "four"}),
        r"llama.attention.head_count = 'four', expected a pos",
    ),
    "sizes of each layer": (
        dict(facts={"llama.feed_forward_length": [96, 64]}),
        r"feed_forward_length = \[96, 64\], expected",
    ),
    "zero heads": (
        dict(facts={"llama.attention.head_count": 0}),
        r"llama.attention.head_count = 0, expected a positive",
    ),
    "vocabulary": (dict(facts={"llama.vocab_size": 41}), r"llama.vocab_size = 41, expected 40"),
    "missing": (dict(drop=["blk.1.ffn_up.weight"]), r"small.gguf: missing blk.1.ffn_up.weight$"),
    "layers": (dict(facts={"llama.block_count": 1}), r"unexpected blk.1.attn_norm.weight; .* \(and \d+ more\)$"),
    "shape": (
        dict(facts={"llama.feed_forward_length": 64}),
        r"ffn_gate.weight has shape \(96, 64\), expected \(64, 64\)",
    ),
    "kind": (
        dict(blocks={"blk.0.ffn_up.weight": (np.zeros((96, 44), np.uint8), gguf.GGMLQuantizationType.Q5_0)}),
        r"ffn_up.weight is of the kind Q5_0, which is not read; F32, F16, BF16, F64, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K are",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_line_says_what_is_wrong_with_a_file(case, tmp_path):
    options, message = WRONG[case]
    path = written(tmp_path / "small.gguf", **options)
    with pytest.raises(ValueError, match=message) as error:
        load_pretrained(path)
    assert "\n" not in str(error.value) and str(error.value).startswith("load_pretrained: ")


@pytest.mark.parametrize("left", [0, 3, 4, 20, 100, 0.3, 0.9, -1])
def test_a_file_that_was_cut_off_is_refused(left, path):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(left * len(whole)) if isinstance(left, float) else left])
    with pytest.raises(ValueError, match=r"small.gguf is no complete GGUF file: .") as error:
        load_pretrained(path)
    assert "\n" not in str(error.value)


def header(*parts):
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + b"".join(parts)


NAMED = struct.pack("<Q", 1) + b"k"


@pytest.mark.parametrize(
    "content, message",
    [
        (b"PK\3\4" + bytes(60), r"it begins with b'PK\\x03\\x04', expected b'GGUF'"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(60), r"its version is 1, expected 2 or 3"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(60), r"its version is 50331648, expected 2 or 3"),
        (header(NAMED, struct.pack("<I", 99)), r"a fact is of type 99"),
        (header(NAMED, struct.pack("<IIQ", 9, 4, 2**62)), r"its end is missing"),
        (header(NAMED, struct.pack("<IIQ", 9, 8, 2**63)), r"its end is missing"),
        (header(NAMED, struct.pack("<IQ", 8, 2**64 - 1)), r"its end is missing"),
        (header(NAMED, struct.pack("<I", 9), *[struct.pack("<IQ", 9, 1)] * 5000), r"is no complete GGUF file"),
        (header(NAMED, struct.pack("<IQ", 8, 2), b"\xff\xfe"), r"can't decode"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), r"its end is missing"),
    ],
)
def test_a_header_that_lies_is_refused(content, message, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_pretrained(path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_no_flipped_byte_does_more_than_raise_one_line(seed, path):
    whole, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
    end = whole.index(b"blk.0") + 400
    for _ in range(60):
        spoiled = whole.copy()
        spoiled[int(rng.integers(4, end))] = int(rng.integers(256))
        path.write_bytes(spoiled)
        try:
            load_pretrained(path)
        except ValueError as error:
            assert "\n" not in str(error) and "small" in str(error)


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0"])
@pytest.mark.parametrize("dtype", ["float32", "file"])
def test_numbers_that_are_none_are_found(kind, dtype, tmp_path):
    path = written(tmp_path / "m.gguf", kind)
    entry = read_gguf(path)[1]["blk.1.ffn_up.weight"]
    content = bytearray(path.read_bytes())
    content[entry.start : entry.start + 4] = b"\xff\xff\xff\x7f" if kind == "F32" else b"\xff\x7f\xff\x7f"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"blocks.1.mlp.up_proj.weight: entry \(0, 0\) is nan"):
        load_pretrained(path, dtype)


def test_without_the_library_one_line_says_what_to_install(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r'a .gguf file needs gguf: pip install "minilora\[models\]"'):
        load_pretrained(path)
