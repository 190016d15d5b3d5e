"""An adapter out of two checkpoints: beside dense SVD, within its bound, and every refusal."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from minilora.interop.adapter_files import read_adapter
from minilora.interop.extract import extract
from minilora.interop.merging import merge

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 7}


def folder(path: Path, tensors: dict, shards: int = 1, **config) -> Path:
    """A checkpoint."""
    path.mkdir(parents=True)
    files = (
        [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)] if shards > 1 else ["model.safetensors"]
    )
    names = list(tensors)
    for i, file in enumerate(files):
        save_file({n: np.ascontiguousarray(tensors[n]) for n in names[i::shards]}, path / file)
    if shards > 1:
        index = {"weight_map": {name: files[i % shards] for i, name in enumerate(names)}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "config.json").write_text(json.dumps(CONFIG | config))
    return path


def weights(seed: int = 0, m: int = 60, n: int = 40) -> dict:
    """A table, two matrices, a norm and a bias."""
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (7, n), f"{Q}.weight": (m, n), f"{Q}.bias": (m,), f"{UP}.weight": (m, n),
              "model.norm.weight": (n,)}  # fmt: skip
    return {name: rng.normal(size=shape).astype("f") for name, shape in shapes.items()}


def low_rank(m: int, n: int, r: int, seed: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(m, r)) @ rng.normal(size=(r, n))).astype("f")


def delta(path: Path, name: str) -> np.ndarray:
    """B A of a matrix of a folder."""
    B, A = read_adapter(path).matrices[name].factors()
    return B @ A


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_change_of_rank_8_comes_back_within_the_bound(tmp_path, shards, noise):
    """W + a rank-8 change + noise: ||D - B A||_2 is below the bound, and nearly the best that rank 8 can do."""
    old = weights()
    rng = np.random.default_rng(1)
    new = dict(old)
    for seed, name in enumerate((Q, UP)):
        new[f"{name}.weight"] = old[f"{name}.weight"] + low_rank(60, 40, 8, seed)
        new[f"{name}.weight"] += noise * rng.normal(size=(60, 40)).astype("f")
    found = extract(folder(tmp_path / "a", old, shards), folder(tmp_path / "b", new), tmp_path / "out", rank=8)
    assert [row["name"] for row in found["matrices"]] == [Q, UP] and found["unchanged"] == 3
    for seed, row in enumerate(found["matrices"]):
        name = row["name"]
        D = (new[f"{name}.weight"] - old[f"{name}.weight"]).astype(float)
        there, s = delta(tmp_path / "out", name), np.linalg.svd(D, compute_uv=False)
        error = np.linalg.norm(D - there, 2)
        assert error <= row["bound"] and error <= 1.01 * s[8] + 1e-4
        assert row["error"] == pytest.approx(error, rel=0.05, abs=1e-4) and row["rank"] == 8
        assert row["lost"] == pytest.approx(np.linalg.norm(D - there), rel=1e-3, abs=1e-4)
        assert np.linalg.norm(there - low_rank(60, 40, 8, seed), 2) <= row["bound"] + np.linalg.norm(
            D - low_rank(60, 40, 8, seed), 2
        )
        assert row["energy"] == pytest.approx(1 - (np.linalg.norm(D - there) / np.linalg.norm(D)) ** 2, abs=1e-6)
    merge(tmp_path / "a", tmp_path / "out", tmp_path / "back")


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 1.0])
def test_energy_takes_the_smallest_rank_that_holds_it(tmp_path, share):
    """As a dense SVD counts it, matrix by matrix; of a matrix where randomised directions do not suffice, too."""
    old = weights(m=90, n=80)
    new = old | {f"{Q}.weight": old[f"{Q}.weight"] + low_rank(90, 80, 5),
                 f"{UP}.weight": weights(3, 90, 80)[f"{UP}.weight"]}  # fmt: skip
    found = extract(folder(tmp_path / "a", old), folder(tmp_path / "b", new), tmp_path / "out", energy=share)
    for row in found["matrices"]:
        D = (new[f"{row['name']}.weight"] - old[f"{row['name']}.weight"]).astype(float)
        s = np.linalg.svd(D, compute_uv=False) ** 2
        least = int(np.searchsorted(np.cumsum(s), share * s.sum() * (1 - 1e-9))) + 1
        assert abs(row["rank"] - least) <= (share == 1.0) * least and row["energy"] >= share - 1e-5
        assert np.linalg.norm(D - delta(tmp_path / "out", row["name"]), 2) <= row["bound"]


def test_what_is_no_linear_layer_is_listed(tmp_path):
    """Norms, biases and tables by their change; what one alone has; a random change is told from a low-rank one."""
    old, other = weights(), weights(1)
    new = old | {
        name: other[name] for name in (f"{Q}.weight", f"{Q}.bias", "model.norm.weight", "model.embed_tokens.weight")
    }
    new["score.weight"] = np.ones((2, 40), "f")
    found = extract(folder(tmp_path / "a", old), folder(tmp_path / "b", new), tmp_path / "out", rank=4)
    assert {row["name"] for row in found["beside"]} == {f"{Q}.bias", "model.norm.weight", "model.embed_tokens.weight"}
    row = next(row for row in found["beside"] if row["name"] == "model.norm.weight")
    change = new["model.norm.weight"].astype(float) - old["model.norm.weight"]
    assert row["frobenius_norm"] == pytest.approx(np.linalg.norm(change), rel=1e-6)
    assert (found["only_base"], found["only_tuned"]) == ([], ["score.weight"])
    assert found["energy"] == pytest.approx(found["random"], abs=0.05)


def test_a_head_that_is_tied_is_no_linear_layer(tmp_path):
    old = weights() | {"lm_head.weight": np.ones((7, 40), "f")}
    new = old | {"lm_head.weight": np.full((7, 40), 2, "f"), f"{Q}.weight": old[f"{Q}.weight"] + 1}
    for tied, names in ((False, {Q, "lm_head"}), (True, {Q})):
        at = tmp_path / str(tied)
        extract(folder(at / "a", old, tie_word_embeddings=tied), folder(at / "b", new), at / "out", rank=1)
        assert read_adapter(at / "out").matrices.keys() == names


def test_bfloat16_and_a_bare_model_s_names(tmp_path):
    """Differences are taken in float32; names are those of the model with a head."""
    half = {name: value.astype(ml_dtypes.bfloat16) for name, value in weights().items()}
    bare = {name.removeprefix("model."): value for name, value in half.items()}
    new = half | {f"{Q}.weight": (half[f"{Q}.weight"].astype("f") + low_rank(60, 40, 2)).astype(ml_dtypes.bfloat16)}
    found = extract(folder(tmp_path / "a", bare), folder(tmp_path / "b", new), tmp_path / "out", rank=40)
    D = new[f"{Q}.weight"].astype(float) - half[f"{Q}.weight"].astype(float)
    np.testing.assert_allclose(delta(tmp_path / "out", Q), D, atol=1e-4)
    assert found["matrices"][0]["rank"] == 40 and found["energy"] == pytest.approx(1)


def test_every_fault_is_one_line_and_writes_nothing(tmp_path):
    old = weights()
    new = old | {f"{Q}.weight": old[f"{Q}.weight"] + low_rank(60, 40, 2)}
    a, b, out = folder(tmp_path / "a", old), folder(tmp_path / "b", new), tmp_path / "out"
    odd = folder(tmp_path / "odd", old | {f"{Q}.weight": np.ones((60, 41), "f")})
    nan = folder(tmp_path / "nan", new | {f"{UP}.weight": np.full((60, 40), np.nan, "f")})
    far = folder(tmp_path / "far", {"x.weight": np.ones((2, 2), "f")})
    norms = folder(tmp_path / "norms", old | {"model.norm.weight": np.ones(40, "f")})
    few = folder(tmp_path / "few", old, quantization_config={"quant_method": "gptq"})
    whole = folder(tmp_path / "int", old | {f"{Q}.weight": np.ones((60, 40), "int8")})
    eight = {kind: {f"l.{i}.q.weight": np.ones((3, 4), kind) for i in range(8)} for kind in ("float32", "int8")}
    floats, eighths = (folder(tmp_path / kind, tensors) for kind, tensors in eight.items())
    pickled = folder(tmp_path / "pickled", old)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    for base, tuned, output, how, words in (
        (a, odd, out, {}, f"differ in shape: {Q}.weight is (60, 40) and (60, 41)"),
        (a, nan, out, {}, f"{UP}.weight holds numbers that are not finite"),
        (a, far, out, {}, "have no tensor in common"),
        (a, a, out, {}, "no linear layer changed"),
        (a, norms, out, {}, "though model.norm.weight did"),
        (a, few, out, {}, "in few bits"),
        (a, whole, out, {}, "not both in floats"),
        (floats, eighths, out, {}, "l.5.q.weight is int8 (and 2 more)"),
        (a, pickled, out, {}, "is pickled"),
        (a, tmp_path / "x.gguf", out, {}, "is a GGUF file"),
        (a, tmp_path / "none", out, {}, "there is no checkpoint"),
        (a, b, a, {}, "is an input"),
        (a, b, b / "x", {}, "is inside"),
        (a, b, tmp_path / "full", {}, "holds other things"),
        (a, b, tmp_path / "x.safetensors", {}, "names a file"),
        (a, b, out, {"rank": 0}, "rank = 0, expected"),
        (a, b, out, {"rank": True}, "rank = True, expected a positive integer"),
        (a, b, out, {"rank": 1.5}, "rank = 1.5, expected"),
        (a, b, out, {"rank": None, "energy": 1.5}, "energy = 1.5, expected 0 < energy <= 1"),
        (a, b, out, {"energy": 0.5}, "give one of the two"),
    ):  # fmt: skip
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises((ValueError, OSError)) as error:
            extract(base, tuned, output, **{"rank": 4, **how})
        assert words in str(error.value) and "\n" not in str(error.value)
        assert sorted(tmp_path.rglob("*")) == before, words


@pytest.mark.slow
def test_a_change_in_a_large_matrix_comes_back(tmp_path):
    """4096 x 11008 in float32, a rank-8 change and noise: within the bound that is told, and the noise."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal((4096, 11008), np.float32)
    change = low_rank(4096, 11008, 8)
    save_file({f"{UP}.weight": W}, tmp_path / "a.safetensors")
    noise = 0.01 * rng.standard_normal(W.shape, np.float32)
    save_file({f"{UP}.weight": W + change + noise}, tmp_path / "b.safetensors")
    found = extract(tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "out", rank=8)
    B, A = read_adapter(tmp_path / "out").matrices[UP].factors()
    x = rng.normal(size=(11008, 5))
    rest = np.linalg.norm(B @ (A @ x) - change @ x, axis=0) / np.linalg.norm(x, axis=0)
    assert rest.max() < found["matrices"][0]["bound"] + 0.01 * (np.sqrt(4096) + np.sqrt(11008))
    assert found["energy"] > 0.99 and found["random"] < 0.01
