"""pretrained.py: folders in Hugging Face's form, written and opened, and whatever may be wrong with one."""

import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import minilora as ml
from minilora.adapters.quantization import Half
from minilora.interop import fetch
from minilora.interop.config_out import CLASSES, config_for
from minilora.interop.pretrained import load_pretrained, save_pretrained
from minilora.interop.tensor_files import Stored, open_tensors, write_tensors
from minilora.nn.architectures import Architecture, find, from_hugging_face, labelled
from minilora.nn.transformer import Transformer

pytest.importorskip("safetensors", reason="needs safetensors: pip install 'minilora[models]'")

LLAMA = {
    "model_type": "llama", "vocab_size": 13, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16, "tie_word_embeddings": True,
}  # fmt: skip
TOKENS = np.arange(10).reshape(2, 5)


def model_of(config=LLAMA, rng=0):
    return Transformer(from_hugging_face(config, "small"), rng)


@pytest.fixture
def folder(tmp_path):
    """A folder with a small Llama."""
    return save_pretrained(model_of(), tmp_path / "small")


def rewrite(folder, change, name="model.safetensors"):
    """The folder's tensors, changed in a dictionary of arrays."""
    arrays = {key: np.array(tensor.read()) for key, tensor in open_tensors(folder / name)[0].items()}
    change(arrays)
    write_tensors(folder / name, {key: Stored.of(array) for key, array in arrays.items()})


def in_two(folder):
    """The folder with its weights in two shards and an index."""
    tensors = open_tensors(folder / "model.safetensors")[0]
    arrays = {name: Stored.of(np.array(tensor.read())) for name, tensor in tensors.items()}
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{1 + i % 2}.safetensors" for i, name in enumerate(arrays)}
    for shard in {*places.values()}:
        write_tensors(folder / shard, {name: arrays[name] for name in arrays if places[name] == shard})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def test_what_was_written_opens_with_the_same_numbers(folder):
    ours, again = model_of(), ml.load_pretrained(folder)
    assert replace(again.architecture, name="", head_dim=None) == replace(ours.architecture, name="", head_dim=None)
    for (name, p), (_, q) in zip(ours.named_parameters(), again.named_parameters(), strict=True):
        np.testing.assert_array_equal(p.data, q.data, err_msg=name)
        assert q.requires_grad and q.data.flags.writeable
    assert "lm_head.weight" not in open_tensors(folder / "model.safetensors")[0]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    optimizer = ml.AdamW(again.named_parameters(), lr=0.01)
    losses = [ml.train_step(again, optimizer, TOKENS, TOKENS) for _ in range(5)]
    assert losses[-1] < losses[0]


def test_shards_are_one_model(folder):
    expected = load_pretrained(folder)(TOKENS).data
    np.testing.assert_array_equal(load_pretrained(in_two(folder))(TOKENS).data, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "file"])
def test_the_precision_is_the_one_asked_for(folder, dtype):
    model = load_pretrained(folder, dtype)
    exact = load_pretrained(folder, "float64")(TOKENS).data
    held = {m.quantized.kind for _, m in model.named_modules() if hasattr(m, "quantized")}
    floats = {str(p.dtype) for p in model.parameters()}
    assert held == ({dtype} if dtype.endswith("16") else set())
    assert floats == {dtype if dtype == "float64" else "float32"}
    assert all(p.requires_grad == (not held) for p in model.parameters())
    tolerance = {"float16": 2e-3, "bfloat16": 2e-2, "float64": 0}.get(dtype, 1e-6)
    np.testing.assert_allclose(model(TOKENS).data, exact, rtol=0, atol=tolerance)
    assert model.count() == model_of().count()


def test_lora_trains_on_16_bits_and_folders_of_them_stay_so(folder, tmp_path):
    half = load_pretrained(folder, "bfloat16")
    save_pretrained(half, tmp_path / "half")
    tensors = open_tensors(tmp_path / "half" / "model.safetensors")[0]
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"bfloat16"}  # norms of ones lose nothing
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    again = load_pretrained(tmp_path / "half", "file")
    assert isinstance(again.wte.quantized, Half) and not again.wte.quantized.bits.flags.owndata  # mapped
    np.testing.assert_array_equal(again(TOKENS).data, half(TOKENS).data)
    again.ln_f.weight.data[0] = 1 + 2**-12  # which 16 bits do not hold
    save_pretrained(again, tmp_path / "more")
    kinds = {name: str(t.dtype) for name, t in open_tensors(tmp_path / "more" / "model.safetensors")[0].items()}
    assert kinds["model.norm.weight"] == "float32" and kinds["model.embed_tokens.weight"] == "bfloat16"
    losses = []
    for model in (again, load_pretrained(tmp_path / "more")):  # on what is held in 16 bits, and on the same in floats
        ml.add_lora(model, ml.LoRAConfig(rank=2), rng=0)
        optimizer = ml.AdamW(model.named_parameters(), lr=0.05)
        losses.append([ml.train_step(model, optimizer, TOKENS, TOKENS) for _ in range(5)])
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize("family", [family for family, head in CLASSES.values() if not head])
def test_a_config_is_read_as_the_architecture_it_was_written_for(family):
    given = LLAMA | {"model_type": family}
    given |= {"gemma3_text": {"head_dim": 4, "sliding_window": 3}, "mistral": {"sliding_window": 7}}.get(family, {})
    if family == "gpt2":
        given = {"model_type": "gpt2", "vocab_size": 13, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}
    if family in ("gemma", "phi3", "gemma3_text"):
        given["pad_token_id"] = 0
    a = from_hugging_face(given, "small")
    written = config_for(a)
    assert CLASSES[written["architectures"][0]] == (family, "") and written["model_type"] == family
    again = from_hugging_face(json.loads(json.dumps(written)), "small")
    assert config_for(again) == written and again.matrices == a.matrices


def test_what_a_config_cannot_say_is_refused(tmp_path):
    model = ml.GPT(ml.GPTConfig(13, 16, 1, 2, 8, bias=False))
    with pytest.raises(ValueError, match=r"save_pretrained: GPT has qkv_bias = False, which the config.json of a gpt2"):
        save_pretrained(model, tmp_path / "x")
    with pytest.raises(ValueError, match=r"is of the family 't5', expected gpt2, llama"):
        config_for(Architecture("x", 13, 8, 1, 2, 16, 16, family="t5"))
    assert not (tmp_path / "x").exists()


def test_a_gpt_is_written_as_gpt2_and_read_as_a_transformer(tmp_path):
    gpt = ml.load_model("base")
    save_pretrained(gpt, tmp_path)
    again = load_pretrained(tmp_path)
    assert isinstance(again, Transformer) and again.architecture.family == "gpt2"
    np.testing.assert_allclose(again(TOKENS).data, gpt(TOKENS).data, rtol=1e-4, atol=1e-4)
    names = [*open_tensors(tmp_path / "model.safetensors")[0]]
    assert "transformer.h.0.attn.c_attn.weight" in names and not any("q_proj" in name for name in names)


# --- what may be wrong -----------------------------------------------------------------------------------------------


def lacks(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def config_says(**fields):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def tensors(change):
    return lambda folder: rewrite(folder, change)


def cut_off(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def pickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def shards(change):
    return lambda folder: change(in_two(folder))


def index_says(text):
    def change(folder):
        in_two(folder)
        (folder / "model.safetensors.index.json").write_text(text)

    return change


def as_type(dtype):
    def change(arrays):
        arrays["model.norm.weight"] = arrays["model.norm.weight"].astype(dtype)

    return tensors(change)


def not_a_number(arrays):
    arrays["model.layers.1.mlp.up_proj.weight"][3, 2] = np.nan


WRONG = {
    "no config": (lacks("config.json"), r"small has no config.json; a model's folder has one"),
    "an adapter's": (
        lambda f: (f / "config.json").rename(f / "adapter_config.json"),
        r"holds an adapter: ml.load_adap",
    ),
    "no weights": (lacks("model.safetensors"), r"small has no model.safetensors; a model's folder has"),
    "no weights but a gguf": (
        lambda f: (f / "model.safetensors").rename(f / "m.gguf"),
        r"no model.safetensors; open .*gguf",
    ),
    "cut off": (cut_off, r"model.safetensors is no complete .safetensors file: "),
    "pickled": (pickled, r"pytorch_model.bin is pickled: opening it would run .* python -c \"from transformers import"),
    "no json": (lambda f: (f / "config.json").write_text("{"), r"is not a config.json"),
    "another family": (config_says(model_type="t5"), r"unknown model_type 't5'"),
    "experts": (config_says(num_local_experts=8), r"num_local_experts = 8 is not known for llama"),
    "scaling": (config_says(rope_scaling={"rope_type": "yarn", "factor": 2.0}), r"rope_type = 'yarn' is not known"),
    "quantised": (config_says(quantization_config={"bits": 4}), r"quantization_config = .* is not known"),
    "missing": (
        tensors(lambda a: a.pop("model.layers.0.mlp.up_proj.weight")),
        r"small: missing model.layers.0.mlp.up_pr",
    ),
    "unexpected": (tensors(lambda a: a.update(extra=np.ones(2))), r"small: unexpected extra$"),
    "shape": (
        tensors(lambda a: a.update({"model.norm.weight": np.ones(9)})),
        r"norm.weight has shape \(9,\), expected \(8,\)",
    ),
    "width": (
        config_says(hidden_size=4),
        r"embed_tokens.weight has shape \(13, 8\), expected \(13, 4\).* \(and \d+ more\)$",
    ),
    "untied": (config_says(tie_word_embeddings=False), r"missing lm_head.weight"),
    "not tied": (
        tensors(lambda a: a.update({"lm_head.weight": np.ones((13, 8), np.float32)})),
        r"lm_head.weight differs from",
    ),
    "integers": (as_type("int64"), r"model.norm.weight is of type int64, expected one of float64"),
    "nan": (tensors(not_a_number), r"blocks.1.mlp.up_proj.weight: entry \(3, 2\) is nan"),
    "no shard": (
        shards(lacks("model-2.safetensors")),
        r"small lacks model-2.safetensors, of 2 that model.safetensors.index",
    ),
    "empty shard": (
        shards(lambda f: rewrite(f, dict.clear, "model-2.safetensors")),
        r"model-2.safetensors has no .*index.json says",
    ),
    "index": (index_says("[]"), r"index.json is no index of tensors"),
    "index of another": (
        index_says('{"weight_map": {"a": "../x"}}'),
        r"names the file '../x', expected one in this folder",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_line_says_what_is_wrong_with_a_folder(case, folder):
    spoil, message = WRONG[case]
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_pretrained(folder)
    assert "\n" not in str(error.value) and str(error.value).startswith("load_pretrained: ")


def test_what_older_versions_wrote_beside_the_parameters_is_left_out(folder):
    expected = load_pretrained(folder)(TOKENS).data

    def add(arrays):
        arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
        arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"].copy()

    rewrite(folder, add)
    np.testing.assert_array_equal(load_pretrained(folder)(TOKENS).data, expected)


def test_the_causal_masks_of_old_gpt2_files_are_left_out_and_names_need_no_prefix(tmp_path):
    gpt = ml.GPT(ml.GPTConfig(13, 16, 2, 2, 8))
    save_pretrained(gpt, tmp_path)

    def bare(arrays):
        for name in [*arrays]:
            arrays[name.removeprefix("transformer.")] = arrays.pop(name)
        arrays["h.0.attn.bias"] = np.ones((1, 1, 16, 16), np.float32)
        arrays["h.1.attn.masked_bias"] = np.float32(-1e4)

    rewrite(tmp_path, bare)
    np.testing.assert_allclose(load_pretrained(tmp_path)(TOKENS).data, gpt(TOKENS).data, rtol=1e-5, atol=1e-6)


def test_places_that_are_none(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path))
    for place, error, message in (
        ("nowhere", FileNotFoundError, r"no folder or file 'nowhere'; names that `minilora fetch` knows: smollm2-135m"),
        ("./a/b", FileNotFoundError, r"no folder or file './a/b'"),
        ("smollm2-135m", FileNotFoundError, r"not on this machine yet; minilora fetch smollm2-135m gets it"),
        ("base", ValueError, r"'base' comes with minilora: ml.load_model\('base'\)"),
        (3, TypeError, r"load_pretrained: place = 3"),
    ):
        with pytest.raises(error, match=message):
            load_pretrained(place)
    path = ml.save_model(ml.GPT(ml.GPTConfig(13, 16, 1, 2, 8)), tmp_path / "own.npz")
    with pytest.raises(ValueError, match=r"own.npz is a file of minilora's own: ml.load_model\("):
        load_pretrained(path)
    assert "smollm2-135m" in fetch.MODELS


def test_a_part_of_a_model_is_not_the_model(folder, tmp_path):
    for name in ("model.safetensors", "config.json"):
        with pytest.raises(ValueError, match=rf"{name} is a part of a model: open its folder, .*small"):
            load_pretrained(folder / name)
    pickled(folder)
    with pytest.raises(ValueError, match=r"pytorch_model.bin is pickled"):
        load_pretrained(folder / "pytorch_model.bin")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(FileNotFoundError, match=r"has no config.json; open .*m.gguf"):
        load_pretrained(tmp_path)


def test_a_name_on_the_hub_needs_its_library_or_the_network(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r'no folder \'org/name\' here; .* pip install "minilora\[hub\]"'):
        load_pretrained("org/name")


def test_load_model_says_who_reads_the_others(folder, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    for place in (folder, tmp_path / "m.gguf"):
        with pytest.raises(ValueError, match=r"ml.load_pretrained reads others"):
            ml.load_model(place)


def test_dtypes_that_are_none(folder):
    for dtype in ("int8", "bf16", "float8"):
        with pytest.raises(ValueError, match=rf"load_pretrained: unknown dtype '{dtype}'.*there are float32, float64"):
            load_pretrained(folder, dtype)
    rewrite(folder, lambda a: a.update({"model.embed_tokens.weight": np.full((13, 8), 1e5, np.float32)}))
    with pytest.raises(ValueError, match=r"wte.weight: entry \(0, 0\) is 100000.0, too large for float16"):
        load_pretrained(folder, "float16")


def test_models_that_are_not_written(tmp_path):
    model = model_of()
    ml.add_lora(model, ml.LoRAConfig(rank=2))
    with pytest.raises(ValueError, match=r"the model has an adapter; ml.merge_lora\(model\), then ml.remove_lora"):
        save_pretrained(model, tmp_path / "x")
    ml.merge_lora(model)
    ml.remove_lora(model)
    save_pretrained(model, tmp_path / "merged")
    ml.quantize_model(model, "nf4")
    with pytest.raises(ValueError, match=r"blocks.0.attn.q_proj.weight is held as nf4, which is not written"):
        save_pretrained(model, tmp_path / "x")
    broken = model_of()
    broken.ln_f.weight.data[3] = np.inf
    with pytest.raises(ValueError, match=r"save_pretrained: ln_f.weight: entry \(3,\) is inf"):
        save_pretrained(broken, tmp_path / "x")
    with pytest.raises(TypeError, match=r"save_pretrained: "):
        save_pretrained(model.wte, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="is a file, expected a folder"):
        save_pretrained(model_of(), tmp_path / "file")


def test_a_write_that_fails_changes_nothing(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = model_of(rng=1)

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minilora.interop.pretrained.write_tensors", fails)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(model, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_without_the_library_one_line_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r'pip install "minilora\[models\]"'):
        load_pretrained(folder)


def test_a_folder_that_opens_may_be_written_over_while_it_is_mapped(folder):
    rewrite(folder, lambda a: a.update({name: array.astype("float16") for name, array in a.items()}))
    model = load_pretrained(folder, "file")
    expected = model(TOKENS).data
    save_pretrained(model, folder)
    np.testing.assert_array_equal(model(TOKENS).data, expected)
    np.testing.assert_array_equal(load_pretrained(folder)(TOKENS).data, expected)


@pytest.mark.slow
def test_16_bits_open_without_doubling_in_memory(tmp_path):
    """The peak of a process that opens 64 MiB of bfloat16, and looks at every number, above one that opens nothing."""
    a = from_hugging_face({**LLAMA, "vocab_size": 2**16, "hidden_size": 512, "num_hidden_layers": 1}, "wide")
    save_pretrained(load_pretrained(save_pretrained(Transformer(a), tmp_path / "32"), "bfloat16"), tmp_path / "16")
    shutil.rmtree(tmp_path / "32")
    code = (
        "import re, sys, minilora as ml, safetensors, ml_dtypes, numpy as np\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "start = peak()\n"
        "model = ml.load_pretrained(sys.argv[1], sys.argv[2]); model(np.arange(8)[None])\n"
        "print((peak() - start) // 1024)"
    )
    if sys.platform != "linux":
        pytest.skip("/proc says the peak")
    for dtype in ("file", "bfloat16"):
        words = [sys.executable, "-c", code, str(tmp_path / "16"), dtype]
        grown = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        assert 60 < grown < 64 * 1.5, grown


def test_find_is_given_a_model(folder):
    assert find(load_pretrained(folder)).family == "llama"


def test_where_a_model_is_from_is_kept_and_told_to_peft(folder, tmp_path):
    model = ml.add_lora(ml.load_pretrained(folder), ml.LoRAConfig(2))
    assert model.source == str(folder) and ml.GPT(ml.GPTConfig(13, 16, 1, 2, 8)).source == ""
    ml.save_adapter(model, tmp_path / "a", format="peft")
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(folder)


def test_names_of_labels_are_read_and_written_and_may_be_none(tmp_path):
    a = labelled(replace(find("bert-base"), vocab_size=13, width=8, layers=1, heads=2, mlp_width=12), 2)
    model = Transformer(a)
    says = lambda: json.loads((tmp_path / "b" / "config.json").read_text())
    assert load_pretrained(save_pretrained(model, tmp_path / "b")).labels == ()  # LABEL_0 and LABEL_1 are no names
    assert says()["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}
    ml.add_classifier(model, ["no", "yes"])
    assert load_pretrained(save_pretrained(model, tmp_path / "b")).labels == ("no", "yes")
    assert says()["label2id"] == {"no": 0, "yes": 1}
    for names, why in [
        ({"0": "no", "2": "yes"}, "expected a name for each of 0 to 1"),
        ({"0": "no", "1": "no"}, "no two alike"),
        ({"0": "no", "1": ["yes"]}, "expected texts"),
    ]:
        config_says(id2label=names)(tmp_path / "b")
        with pytest.raises(ValueError, match=rf"^load_pretrained: b: id2label = .*{why}"):
            load_pretrained(tmp_path / "b")


def test_a_folder_that_could_not_be_opened_again_is_not_written(folder, tmp_path):
    model = load_pretrained(folder)
    for name in ("x.npz", "x.gguf", "x.safetensors"):
        with pytest.raises(ValueError, match=r"^save_pretrained: folder = .*expected the name of a folder"):
            save_pretrained(model, tmp_path / name)
        assert not (tmp_path / name).exists()
    for use in (load_pretrained, lambda place: save_pretrained(model, place)):
        with pytest.raises(ValueError, match=r"^(load|save)_pretrained: (place|folder) = '', expected"):
            use("")


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "chat_template.jinja"])
def test_a_tokenizer_of_another_model_does_not_come_in_unsaid(folder, name):
    before = (folder / "model.safetensors").read_bytes()
    (folder / name).write_text("{}")
    with pytest.raises(ValueError, match=rf"^save_pretrained: .* holds {name} of another model; choose another folder"):
        save_pretrained(model_of(rng=1), folder)
    assert (folder / "model.safetensors").read_bytes() == before
