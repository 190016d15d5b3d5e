"""The weight under an adapter, out of whatever file the base is in: the one that the model itself computes with."""

import json
from pathlib import Path

import numpy as np
import pytest
from adapter_making import draw, peft_folder
from safetensors.numpy import save_file

import minilora as ml
from minilora.adapters.quantization import half
from minilora.interop.adapter_files import read_adapter
from minilora.interop.base_weights import from_source, open_base
from minilora.interop.sources import Source
from minilora.nn.architectures import find, parameters

LLAMA = {
    "model_type": "llama", "vocab_size": 32, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 12, "max_position_embeddings": 16, "num_key_value_heads": 1, "tie_word_embeddings": True,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "vocab_size": 32, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}


def model(folder: Path, config: dict) -> ml.Transformer:
    """A tiny model in a Hugging Face folder."""
    (folder / "config.json").write_text(json.dumps(config))
    made = ml.Transformer(find(str(folder / "config.json")), rng=0)
    ml.save_pretrained(made, folder)
    return made


def weight_under(base, folder: Path, name: str, shape: tuple, **config) -> np.ndarray:
    """What `base` has under an adapter of one matrix (d_out, d_in)."""
    adapter = read_adapter(peft_folder(folder / "adapter", {name: draw(*shape)}, **config))
    base.check(adapter)
    return base.weight(adapter.matrices[name], adapter)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("self_attn.q_proj", "attn.q_proj"), ("mlp.down_proj", "mlp.down_proj"), ("self_attn.v_proj", "attn.v_proj")],
)
def test_a_folder_by_their_names(tmp_path, theirs, ours):
    made = model(tmp_path, LLAMA)
    W = made.get_module(f"blocks.1.{ours}").weight.data
    found = weight_under(open_base(tmp_path), tmp_path, f"model.layers.1.{theirs}", W.shape)
    np.testing.assert_array_equal(found, W)


def test_gpt2_s_are_fused_and_transposed(tmp_path):
    """Whatever fan_in_fan_out says, as in PEFT, which looks at the module; also a square matrix, and a bare model's."""
    made = model(tmp_path, GPT2)
    attention = made.blocks[0].attn
    fused = np.concatenate([m.weight.data for m in (attention.q_proj, attention.k_proj, attention.v_proj)])
    for flag in (True, False):
        for name in ("transformer.h.0.attn.c_attn", "h.0.attn.c_attn"):
            found = weight_under(open_base(tmp_path), tmp_path, name, (24, 8), fan_in_fan_out=flag)
            np.testing.assert_array_equal(found, fused)
        found = weight_under(open_base(tmp_path), tmp_path, "transformer.h.0.attn.c_proj", (8, 8), fan_in_fan_out=flag)
        np.testing.assert_array_equal(found, attention.o_proj.weight.data)


@pytest.mark.filterwarnings("ignore:add_lora. wte.weight is read directly")
@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_our_adapter_on_their_folder(tmp_path, config):
    """By our names, through the table of names: the rows of what is fused, the transpose of what is turned."""
    made = ml.add_lora(model(tmp_path, config), ml.LoRAConfig(rank=2, target_modules=("q_proj", "v_proj", "wte")))
    adapter = read_adapter(ml.save_adapter(made, tmp_path / "a.npz"))
    base = open_base(tmp_path)
    base.check(adapter)
    for name, pair in adapter.matrices.items():
        W = made.get_module(name).weight.data
        np.testing.assert_array_equal(base.weight(pair, adapter), W.T if name == "wte" else W)


def test_our_own_model_files(tmp_path):
    made = ml.GPT(ml.GPTConfig(vocab_size=96, block_size=8, n_layer=1, n_head=2, n_embd=8))
    base = open_base(ml.save_model(made, tmp_path / "base.npz"))
    W = made.blocks[0].attn.k_proj.weight.data
    np.testing.assert_array_equal(weight_under(base, tmp_path, "blocks.0.attn.k_proj", (8, 8)), W)
    assert "wte.weight" in open_base("base").tensors


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_a_source_of_another_format_has_both_names(tmp_path, config):
    """What a GGUF file gives, tensor by tensor and in few bits: by our names, and joined by those of a folder."""
    made = model(tmp_path, config)
    values = {name: p.data for name, p in made.named_parameters() if name in parameters(made.architecture)}
    reads = {n: (lambda v=v: half(v, "float16") if v.ndim == 2 else v) for n, v in values.items()}
    source, folder = from_source(Source("a.gguf", made.architecture, reads, lambda: None)), open_base(tmp_path)
    for name, stored in folder.tensors.items():
        if name in source.tensors and name.endswith("weight") and len(stored.shape) == 2:
            turned = config is GPT2 and ".h." in name and ("attn" in name or "mlp" in name)
            expected = stored.read().T if turned else stored.read()
            np.testing.assert_allclose(source.tensors[name].read(), expected, atol=1e-3)
    name = "model.layers.0.self_attn.q_proj" if config is LLAMA else "transformer.h.0.attn.c_attn"
    shape = (8, 8) if config is LLAMA else (24, 8)
    first = weight_under(source, tmp_path, name, shape, fan_in_fan_out=config is GPT2)
    np.testing.assert_allclose(first, weight_under(folder, tmp_path, name, shape), atol=1e-3)


def test_shards_are_read_through_their_index(tmp_path):
    W = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")
    save_file({"a.q.weight": W}, tmp_path / "model-1.safetensors")
    save_file({"a.v.weight": W + 1}, tmp_path / "model-2.safetensors")
    places = {"a.q.weight": "model-1.safetensors", "a.v.weight": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    np.testing.assert_array_equal(weight_under(open_base(tmp_path), tmp_path, "a.v", (6, 5)), W + 1)


def test_a_folder_is_read_alike_wherever_it_is_opened(tmp_path):
    """Where there is one file and an index beside it, transformers takes the file; a tensor of a shard that the index
    forgot is there as well; and of one in two shards it is the one that the index names."""
    W = np.ones((6, 5), "float32")
    save_file({"q.weight": W, "v.weight": W}, tmp_path / "model-1.safetensors")
    save_file({"q.weight": 2 * W, "k.weight": W}, tmp_path / "model-2.safetensors")
    places = {"q.weight": "model-1.safetensors", "k.weight": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert {*open_base(tmp_path).tensors} == {"q.weight", "v.weight", "k.weight"}
    assert open_base(tmp_path).tensors["q.weight"].read().max() == 1
    save_file({"q.weight": 3 * W}, tmp_path / "model.safetensors")
    assert {*open_base(tmp_path).tensors} == {"q.weight"} and open_base(tmp_path).tensors["q.weight"].read().max() == 3


def test_kernels_and_tables_lie_as_their_updates_do(tmp_path):
    """A convolution's weight is flattened, an embedding's transposed."""
    kernel, table = np.random.default_rng(0).normal(size=(5, 3, 2, 2)), np.random.default_rng(1).normal(size=(7, 4))
    save_file({"conv.weight": kernel, "wte.weight": table}, tmp_path / "model.safetensors")
    rng = np.random.default_rng(2)
    matrices = {"conv": (rng.normal(size=(5, 2, 1, 1)), rng.normal(size=(2, 3, 2, 2)))}
    others = {"wte.lora_embedding_A": rng.normal(size=(2, 7)), "wte.lora_embedding_B": rng.normal(size=(4, 2))}
    adapter, base = read_adapter(peft_folder(tmp_path / "a", matrices, others)), open_base(tmp_path)
    base.check(adapter)
    np.testing.assert_array_equal(base.weight(adapter.matrices["conv"], adapter), kernel.reshape(5, 12))
    np.testing.assert_array_equal(base.weight(adapter.matrices["wte"], adapter), table.T)


def test_what_is_no_base_is_one_line(tmp_path):
    adapter = peft_folder(tmp_path / "a", {"q": draw()})
    with pytest.raises(ValueError, match=r"a.npz holds 'adapter', expected a model"):
        open_base(ml.save_adapter(ml.add_lora(ml.load_model(), ml.LoRAConfig()), tmp_path / "a.npz"))
    with pytest.raises(
        FileNotFoundError, match=r"a has no model.safetensors; a model's folder has model.safetensors, or"
    ):
        open_base(adapter)
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint 'nowhere'"):
        open_base("nowhere")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"x.gguf"):
        open_base(tmp_path / "x.gguf")
    save_file({"q.weight": np.full((6, 5), np.inf)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"q.weight: entry \(0, 0\) is inf"):
        weight_under(open_base(tmp_path), tmp_path, "q", (6, 5))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config.json holds a list, expected a table"):
        open_base(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for words, told in (('{"weight_map": 3}', "is no index of tensors"), ('{"weight_map": {"x": "../x"}}', "'../x'")):
        (tmp_path / "model.safetensors.index.json").write_text(words)
        with pytest.raises(ValueError, match=told):
            open_base(tmp_path)
