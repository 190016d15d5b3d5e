"""An adapter in a checkpoint's files: sums by hand, precision, what is copied, and every refusal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from adapter_making import draw, kohya_file, peft_folder
from safetensors.numpy import load_file, save_file

import minilora as ml
from minilora.interop.merging import merge

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
DATA = Path(os.environ.get("MINILORA_DATA", "../shared/data")) / "adapters"
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "float32", "vocab_size": 7,
          "tie_word_embeddings": False}  # fmt: skip


def checkpoint(folder: Path, dtype: str = "float32", more: dict | None = None, shards: int = 1, **config) -> dict:
    """A folder with a table, two matrices, a norm, a bias and a head, and other files. -> its tensors"""
    rng = np.random.default_rng(9)
    shapes = {"model.embed_tokens.weight": (7, 5), f"{Q}.weight": (6, 5), f"{Q}.bias": (6,), f"{V}.weight": (6, 5),
              "model.norm.weight": (5,), "lm_head.weight": (7, 5)}  # fmt: skip
    tensors = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()} | (more or {})
    tensors = {name: value for name, value in tensors.items() if value is not None}
    folder.mkdir(parents=True)
    names = list(tensors)
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    files = ["model.safetensors"] if shards == 1 else files
    for i, file in enumerate(files):
        save_file({name: tensors[name] for name in names[i::shards]}, folder / file, {"format": "pt"})
    if shards > 1:
        index = {"metadata": {}, "weight_map": {name: files[i % shards] for i, name in enumerate(names)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text("[]")
    (folder / "pytorch_model.bin").write_bytes(b"stale")
    (folder / ".gitattributes").write_text("")
    return tensors


def tree(folder: Path) -> dict:
    """{path: bytes} of every file under a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def written(folder: Path) -> dict:
    """{name: array} of all shards."""
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.fixture
def pairs() -> dict:
    return {Q: draw(), V: draw(seed=1)}


@pytest.mark.parametrize("shards", [1, 3])
def test_the_sum_is_in_its_place_and_all_else_is_as_it_was(tmp_path, pairs, shards):
    """W + 4 B A by hand; other tensors bit for bit; other files copied, weights of other forms and hidden ones not."""
    tensors = checkpoint(tmp_path / "base", shards=shards)
    peft_folder(tmp_path / "a", pairs)
    found = merge(tmp_path / "base", tmp_path / "a", tmp_path / "out")
    there = written(tmp_path / "out")
    assert there.keys() == tensors.keys()
    for name, value in tensors.items():
        if (module := name.removesuffix(".weight")) in pairs:
            B, A = (x.astype(float) for x in pairs[module])
            np.testing.assert_array_equal(there[name], (value + 4 * B @ A).astype("f"))
        else:
            np.testing.assert_array_equal(there[name], value)
    weights = {path.name for path in (tmp_path / "base").glob("*.safetensors*")}
    assert tree(tmp_path / "out").keys() == {"config.json", "tokenizer.json", "1_Pooling/config.json"} | weights
    assert json.loads((tmp_path / "out/config.json").read_text()) == CONFIG
    row = found["matrices"][0]
    assert (row["name"], row["tensor"], row["shape"], row["rank"]) == (Q, f"{Q}.weight", [6, 5], 2)
    B, A = pairs[Q]
    assert row["frobenius_norm"] == pytest.approx(np.linalg.norm(4 * B.astype(float) @ A), rel=1e-12)
    assert row["kept"] == pytest.approx(1, abs=1e-6) and row["changed"] == 1 and found["dtype"] == "float32"


@pytest.mark.parametrize("size", [1e-5, 1e-2])
def test_what_bfloat16_keeps_is_told_and_float32_keeps_all(tmp_path, size):
    """A small update vanishes in the spacing of bfloat16's numbers: counted entry by entry, beside NumPy's own sums."""
    tensors = checkpoint(tmp_path / "base", "bfloat16")
    B, A = draw()
    peft_folder(tmp_path / "a", {Q: (B * size, A)})
    found = merge(tmp_path / "base", tmp_path / "a", tmp_path / "out")
    old = tensors[f"{Q}.weight"].astype(float)
    delta = 4 * (B * np.float32(size)).astype(float) @ A
    new = (old + delta).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(written(tmp_path / "out")[f"{Q}.weight"], new)
    added = new.astype(float) - old
    row = found["matrices"][0]
    assert row["kept"] == pytest.approx(np.linalg.norm(added) / np.linalg.norm(delta), rel=1e-9)
    assert row["changed"] == pytest.approx((added != 0).mean()) and row["changed"] < (0.2 if size < 1e-3 else 1)
    assert row["lost"] == pytest.approx(np.linalg.norm(added - delta), rel=1e-9)
    whole = merge(tmp_path / "base", tmp_path / "a", tmp_path / "wide", dtype="float32")
    assert whole["kept"] == pytest.approx(1, abs=1e-2 if size < 1e-3 else 1e-5) and whole["dtype"] == "float32"
    there = written(tmp_path / "wide")
    assert {value.dtype.name for value in there.values()} == {"float32"}
    np.testing.assert_array_equal(there["model.norm.weight"], tensors["model.norm.weight"].astype("f"))
    assert json.loads((tmp_path / "wide/config.json").read_text())["torch_dtype"] == "float32"


@pytest.mark.parametrize("turned", [False, True])
def test_large_matrices_go_by_in_stretches(tmp_path, monkeypatch, turned):
    """Of one row each: DoRA, whose lengths are of W's rows, which the file's columns may be."""
    monkeypatch.setattr("minilora.interop.edits.STRETCH", 5)
    rng, (B, A) = np.random.default_rng(0), draw()
    W, m = rng.normal(size=(6, 5)), np.abs(rng.normal(size=6)).astype("f")
    (tmp_path / "base").mkdir()
    name = "transformer.h.0.mlp.c_fc"
    save_file({f"{name}.weight": np.ascontiguousarray(W.T if turned else W)}, tmp_path / "base/model.safetensors")
    (tmp_path / "base/config.json").write_text(json.dumps({"model_type": "gpt2" if turned else "llama"}))
    peft_folder(tmp_path / "a", {name: (B, A)}, {f"{name}.lora_magnitude_vector": m}, use_dora=True)
    merge(tmp_path / "base", tmp_path / "a", tmp_path / "out")
    V = W + 4 * B.astype(float) @ A
    expected = (m / np.linalg.norm(V, axis=1))[:, None] * V
    there = written(tmp_path / "out")[f"{name}.weight"]
    np.testing.assert_allclose(there.T if turned else there, expected, rtol=1e-12)


def test_what_was_trained_beside_takes_its_place(tmp_path, pairs):
    """Biases, a norm, a head; one name twice in the list, and PEFT's older names; what has no place is told."""
    tensors = checkpoint(tmp_path / "base")
    others = {f"{Q}.base_layer.bias": np.full(6, 2, "f"), "model.norm.modules_to_save.weight": np.full(5, 3, "f"),
              "model.norm.original_module.weight": np.zeros(5, "f"),
              "lm_head.weight": np.ones((7, 5), "f")}  # fmt: skip
    peft_folder(tmp_path / "a", pairs, others, modules_to_save=["norm", "lm_head", "lm_head"])
    merge(tmp_path / "base", tmp_path / "a", tmp_path / "out")
    there = written(tmp_path / "out")
    assert there.keys() == tensors.keys()
    for name, value in ((f"{Q}.bias", 2), ("model.norm.weight", 3), ("lm_head.weight", 1)):
        assert (there[name] == value).all()
    peft_folder(tmp_path / "lost", pairs, modules_to_save=["norm", "lm_head", "score"])  # a score is nowhere
    with pytest.raises(
        ValueError, match=r"^merge: .*lost: its configuration trains lm_head in full .*does not hold it"
    ):
        merge(tmp_path / "base", tmp_path / "lost", tmp_path / "no")
    tokens = {"model.embed_tokens.token_adapter.trainable_tokens_delta": np.ones((2, 5), "f")}
    peft_folder(tmp_path / "b", pairs, tokens)
    with pytest.raises(ValueError, match=r"^merge: .* has no place for model.embed_tokens.token_adapter"):
        merge(tmp_path / "base", tmp_path / "b", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_single_file_and_image_tools_names(tmp_path, pairs):
    """A base that is one file of another name; an adapter whose names have lost their dots."""
    tensors = checkpoint(tmp_path / "base")
    save_file(tensors, tmp_path / "all.safetensors")
    kohya_file(tmp_path / "k.safetensors", {f"lora_te_{name.replace('.', '_')}": pair for name, pair in pairs.items()})
    merge(tmp_path / "all.safetensors", tmp_path / "k.safetensors", tmp_path / "out")
    assert [*tree(tmp_path / "out")] == ["model.safetensors"]
    B, A = (x.astype(float) for x in pairs[V])
    there = written(tmp_path / "out")[f"{V}.weight"]
    np.testing.assert_array_equal(there, (tensors[f"{V}.weight"] + 2 * B @ A).astype("f"))


def test_minilora_s_own_adapter_goes_into_a_folder_of_its_base(tmp_path):
    """Fused and turned in the file, apart in ours; another base's fingerprint is refused."""
    config = ml.GPTConfig(vocab_size=9, block_size=8, n_layer=1, n_head=2, n_embd=4)
    model = ml.GPT(config, rng=1)
    ml.save_pretrained(model, tmp_path / "base")
    ml.save_pretrained(ml.GPT(config, rng=2), tmp_path / "other")
    ml.add_lora(model, ml.LoRAConfig(rank=2, target_modules=("q_proj", "v_proj", "up_proj")))
    for p in model.parameters(trainable=True):
        p.data = p.data + 0.1
    ml.save_adapter(model, tmp_path / "a.npz")
    merge(tmp_path / "base", tmp_path / "a.npz", tmp_path / "out")
    tokens = np.arange(8)[None] % 9
    merged = ml.load_pretrained(tmp_path / "out")
    np.testing.assert_allclose(merged(tokens).numpy(), model(tokens).numpy(), atol=1e-5)
    with pytest.raises(ValueError, match="was trained on another base"):
        merge(tmp_path / "other", tmp_path / "a.npz", tmp_path / "no")


def faults(tmp_path: Path) -> dict:
    """{name: (base, adapter, output, what is said)}"""
    pairs = {Q: draw()}
    checkpoint(tmp_path / "base")
    checkpoint(tmp_path / "nan", more={f"{Q}.weight": np.full((6, 5), np.nan, "f")})
    checkpoint(tmp_path / "few", quantization_config={"quant_method": "gptq"})
    checkpoint(tmp_path / "int", more={f"{Q}.weight": np.ones((6, 5), "int8")})
    checkpoint(tmp_path / "pickled")
    (tmp_path / "pickled/model.safetensors").unlink()
    good = peft_folder(tmp_path / "a", pairs)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    peft_folder(tmp_path / "zero", {Q: (np.zeros((6, 2), "f"), draw()[1])})
    peft_folder(tmp_path / "nana", {Q: (np.full((6, 2), np.nan, "f"), draw()[1])})
    peft_folder(tmp_path / "wide", {Q: draw(n=4), V: draw(m=3)})
    peft_folder(tmp_path / "acts", pairs, alora_invocation_tokens=[1, 2])
    peft_folder(tmp_path / "start", pairs, init_lora_weights="olora")
    peft_folder(tmp_path / "long", pairs, {"model.embed_tokens.weight": np.ones((9, 5), "f")})
    peft_folder(tmp_path / "prompt", {}, {"prompt_embeddings": np.ones((2, 5), "f")}, peft_type="PROMPT_TUNING")
    base, out = tmp_path / "base", tmp_path / "out"
    return {
        "gguf": (tmp_path / "x.gguf", good, out, "is a GGUF file; a folder can be merged into: ml.save_pretrained"),
        "own model": ("base", good, out, "minilora merge --model base"),
        "pickled base": (tmp_path / "pickled", good, out, "is pickled"),
        "few bits": (tmp_path / "few", good, out, "few bits (gptq)"),
        "integers": (tmp_path / "int", good, out, "is int8, expected floats"),
        "NaN in W": (tmp_path / "nan", good, out, "would hold nan"),
        "NaN in B": (base, tmp_path / "nana", out, "is nan"),
        "zero": (base, tmp_path / "zero", out, "every Delta W is zero"),
        "shapes": (base, tmp_path / "wide", out, f"{Q} is (6, 4), the base's weight (6, 5); {V} is (3, 5)"),
        "longer table": (base, tmp_path / "long", out, "resize_token_embeddings"),
        "aLoRA": (base, tmp_path / "acts", out, "invocation tokens"),
        "start": (base, tmp_path / "start", out, "it started from olora"),
        "prompt": (base, tmp_path / "prompt", out, "has no Delta W = s B A to merge"),
        "output is base": (base, good, base, "is an input"),
        "output is adapter": (base, good, good, "is an input"),
        "inside": (base, good, base / "merged", "is inside"),
        "full": (base, good, tmp_path / "full", "holds other things"),
        "a file": (base, good, tmp_path / "file", "is a file"),
        "no base": (tmp_path / "none", good, out, "there is no checkpoint"),
        "no adapter": (base, tmp_path / "none", out, "there is no file or folder"),
    }  # fmt: skip


def test_every_fault_is_one_line_and_writes_nothing(tmp_path):
    for name, (base, adapter, output, words) in faults(tmp_path).items():
        before = tree(tmp_path)
        with pytest.raises((ValueError, OSError)) as error:
            merge(base, adapter, output)
        assert words in str(error.value) and "\n" not in str(error.value), name
        assert tree(tmp_path) == before and not (tmp_path / "out").exists(), name
    with pytest.raises(ValueError, match=r"^merge: .*float8"):
        merge(tmp_path / "base", tmp_path / "a", tmp_path / "out", dtype="float8")


def test_too_large_for_float16_is_refused(tmp_path, pairs):
    checkpoint(tmp_path / "base", more={"model.norm.weight": np.full(5, 1e6, "f")})
    peft_folder(tmp_path / "a", pairs)
    with pytest.raises(ValueError, match=r"model.norm.weight would hold 1000000.0, too large for float16"):
        merge(tmp_path / "base", tmp_path / "a", tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists() and not [*tmp_path.glob(".out*")]


def test_an_interrupt_leaves_nothing(tmp_path, pairs, monkeypatch):
    checkpoint(tmp_path / "base", shards=3)
    peft_folder(tmp_path / "a", pairs)

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("minilora.interop.edits.rounded", stop)
    before = tree(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        merge(tmp_path / "base", tmp_path / "a", tmp_path / "out")
    assert tree(tmp_path) == before and not (tmp_path / "out").exists()


def test_an_empty_folder_is_written_into(tmp_path, pairs):
    checkpoint(tmp_path / "base")
    peft_folder(tmp_path / "a", pairs)
    (tmp_path / "out").mkdir()
    merge(tmp_path / "base", tmp_path / "a", tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the published adapters: set MINILORA_DATA to their folder")
@pytest.mark.parametrize("name", ["emotion-distilbert", "tigrinya-gpt2"])
def test_published_adapters_go_into_a_base_of_their_shapes(tmp_path, name):
    """Drawn in float16: GPT-2's matrices lie turned there, q over k over v side by side. Beside NumPy's own sum."""
    found = load_file(DATA / name / "adapter_model.safetensors")
    config = json.loads((DATA / name / "adapter_config.json").read_text())
    rng, gpt2, base = np.random.default_rng(0), "gpt2" in name, {}
    modules = [key.split(".lora_A")[0].removeprefix("base_model.model.") for key in found if "lora_A" in key]
    drawn = 0.02 * rng.standard_normal((3072, 2304), "f")
    for module in modules:
        A, B = (found[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
        shape = (A.shape[1], len(B)) if gpt2 else (len(B), A.shape[1])
        base[f"{module}.weight"] = np.ascontiguousarray(drawn[: shape[0], : shape[1]].astype("float16"))
    (tmp_path / "base").mkdir()
    save_file(base, tmp_path / "base/model.safetensors")
    kinds = ("gpt2", "GPT2LMHeadModel") if gpt2 else ("distilbert", "DistilBertModel")
    kinds = {"model_type": kinds[0], "architectures": [kinds[1]]}
    (tmp_path / "base/config.json").write_text(json.dumps(kinds))
    said = merge(tmp_path / "base", DATA / name, tmp_path / "out", dtype="float32")
    there = written(tmp_path / "out")
    for module in modules[::11]:
        A, B = (found[f"base_model.model.{module}.lora_{x}.weight"].astype(float) for x in "AB")
        delta = config["lora_alpha"] / config["r"] * B @ A
        expected = base[f"{module}.weight"] + (delta.T if gpt2 else delta)
        np.testing.assert_allclose(there[f"{module}.weight"], expected, rtol=1e-6, atol=1e-9)
    assert len(said["matrices"]) == len(modules) and said["kept"] == pytest.approx(1, abs=1e-4)
    if not gpt2:
        assert there["classifier.weight"].shape == (6, 768)
        assert len(json.loads((tmp_path / "out/config.json").read_text())["id2label"]) == 6


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a process's memory is read as Linux tells it")
def test_memory_does_not_grow_with_the_checkpoint(tmp_path):
    """A table of 59 MiB, adapted, and a matrix: less is held than Python, NumPy and the table take."""
    table = np.zeros((30_000, 512), "f")
    matrix = np.full((2048, 2048), 0.5, "f")
    checkpoint(tmp_path / "base", more={"model.embed_tokens.weight": table, f"{Q}.weight": matrix, f"{Q}.bias": None})
    others = {"lora_embedding_A": draw(8, 30_000, 8)[1], "lora_embedding_B": draw(512, 8, 8)[0]}
    others = {f"model.embed_tokens.{name}": value for name, value in others.items()}
    peft_folder(tmp_path / "a", {Q: draw(2048, 2048, 8)}, others, r=8)
    code = (
        "import sys, re; from minilora.interop.merging import merge; merge(*sys.argv[1:]);"
        r"print(re.search(r'VmHWM:\s+(\d+)', open('/proc/self/status').read())[1])"
    )
    places = [str(tmp_path / name) for name in ("base", "a", "out")]
    out = subprocess.run([sys.executable, "-c", code, *places], capture_output=True, text=True, check=True).stdout
    assert int(out) < 120 * 1024, out  # KiB


@pytest.mark.model
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a process's memory is read as Linux tells it")
def test_a_model_of_135_million_parameters(tmp_path, smollm2):
    """Peak memory is at most 1.5 times its largest tensor, the table of 108 MiB, and 200 MiB; the folder opens."""
    model = ml.load_pretrained(smollm2)
    ml.save_pretrained(model, tmp_path / "base")
    shapes = {"self_attn.q_proj": (576, 576), "self_attn.v_proj": (192, 576), "mlp.down_proj": (576, 1536)}
    pairs = {f"model.layers.{i}.{kind}": draw(*shape, 16) for i in range(30) for kind, shape in shapes.items()}
    peft_folder(tmp_path / "a", {name: (B * np.float32(1e-4), A) for name, (B, A) in pairs.items()}, r=16)
    code = (
        "import sys, re; from minilora.interop.merging import merge; merge(*sys.argv[1:]);"
        r"print(re.search(r'VmHWM:\s+(\d+)', open('/proc/self/status').read())[1])"
    )
    places = [str(tmp_path / name) for name in ("base", "a", "out")]
    out = subprocess.run([sys.executable, "-c", code, *places], capture_output=True, text=True, check=True).stdout
    assert int(out) < 1.5 * 49152 * 576 * 4 / 1024 + 200 * 1024  # KiB
    merged = ml.load_pretrained(tmp_path / "out")
    B, A = pairs["model.layers.3.mlp.down_proj"]
    delta = merged.blocks[3].mlp.down_proj.weight.data - model.blocks[3].mlp.down_proj.weight.data
    np.testing.assert_allclose(delta, 0.5e-4 * B @ A, atol=1e-6)
