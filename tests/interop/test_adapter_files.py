"""Adapters in files: what is read is what is there, whoever wrote it; what does not fit is one line."""

import json
import math
import os
import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from adapter_making import draw, kohya_file, peft_folder, two

import minilora as ml
from minilora.interop.adapter_files import content, read_adapter

NAME = "model.layers.0.self_attn.q_proj"
DATA = Path(os.environ.get("MINILORA_DATA", "../shared/data")) / "adapters"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the adapters of others: MINILORA_DATA=FOLDER")


def delta(pair) -> np.ndarray:
    """Delta W from a pair's factors."""
    B, A = pair.factors()
    return B @ A


# --- PEFT's folder ---------------------------------------------------------------------------------------------------


def test_a_peft_folder(tmp_path):
    """A, B, r, alpha, s, the file's own precision, and what is beside the pairs."""
    head = np.ones((3, 5), "float32")
    found = read_adapter(peft_folder(tmp_path / "a", two(), {"score.weight": head}, modules_to_save=["score", "score"]))
    assert (found.form, found.method, found.rank, found.alpha, found.scale) == ("peft", "lora", 2, 8, 4.0)
    assert list(found.matrices) == list(two()) and list(found.others) == ["score.weight"]
    np.testing.assert_array_equal(found.others["score.weight"].read(), head)
    for name, (B, A) in two().items():
        pair = found.matrices[name]
        assert pair.shape == (6, 5) and pair.A.dtype == np.float32
        np.testing.assert_array_equal(pair.B, B)
        np.testing.assert_array_equal(pair.A, A)
        np.testing.assert_allclose(delta(pair), 4 * B.astype(float) @ A, rtol=1e-6)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_file_of_the_folder_stands_for_it(tmp_path, name):
    assert list(read_adapter(peft_folder(tmp_path, two()) / name).matrices) == list(two())


def test_patterns_are_peft_s(tmp_path):
    """The first pattern that means a module in full or by its last parts; rsLoRA's scale is alpha / sqrt(r)."""
    wide = {NAME: draw(r=3), "model.layers.1.self_attn.q_proj": draw(r=2), "model.layers.1.mlp.up": draw(r=4)}
    patterns = {"rank_pattern": {"layers.0.self_attn.q_proj": 3, r"mlp\.u.": 4}, "alpha_pattern": {"q_proj": 6}}
    found = read_adapter(peft_folder(tmp_path, wide, **patterns, use_rslora=True)).matrices
    assert [(p.rank, p.alpha) for p in found.values()] == [(3, 6), (4, 8), (2, 6)]  # layers in order
    assert [p.scale for p in found.values()] == pytest.approx([6 / math.sqrt(3), 8 / 2, 6 / math.sqrt(2)])


def test_layers_are_in_the_order_of_their_numbers(tmp_path):
    found = read_adapter(peft_folder(tmp_path, {f"h.{i}.q_proj": draw(seed=i) for i in (10, 2, 0)}))
    assert list(found.matrices) == ["h.0.q_proj", "h.2.q_proj", "h.10.q_proj"]


def test_embeddings_and_convolutions(tmp_path):
    """An embedding's A is (r, words) and its B (width, r); a kernel is flattened as a matrix's columns are."""
    B, A = draw(4, 30)
    down, up = np.random.default_rng(1).normal(size=(2, 3, 3, 3)), np.random.default_rng(2).normal(size=(5, 2, 1, 1))
    table = {"wte.lora_embedding_A": A, "wte.lora_embedding_B": B}
    found = read_adapter(peft_folder(tmp_path, {"conv": (up, down)}, table, target_modules=["wte", "conv"])).matrices
    assert (found["wte"].kind, found["wte"].shape) == ("embedding", (4, 30))
    np.testing.assert_allclose(delta(found["wte"]), 4 * B.astype(float) @ A, rtol=1e-6)
    assert (found["conv"].kind, found["conv"].shape) == ("convolution", (5, 27))
    np.testing.assert_allclose(
        delta(found["conv"]).reshape(5, 3, 3, 3), 4 * np.einsum("or,rcij->ocij", up[:, :, 0, 0], down)
    )


def test_bfloat16_and_an_adapter_s_name_in_the_keys(tmp_path):
    B, A = (array.astype(ml_dtypes.bfloat16) for array in draw())
    named = {f"{NAME}.lora_A.default.weight": A, f"{NAME}.lora_B.default.weight": B}
    pair = read_adapter(peft_folder(tmp_path, {}, named)).matrices[NAME]
    assert pair.A.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(delta(pair), 4 * B.astype(float) @ A.astype(float))


def test_dora_has_magnitudes_and_other_methods_no_pairs(tmp_path):
    lengths = {f"{name}.lora_magnitude_vector": np.ones(6, "float32") for name in two()}
    found = read_adapter(peft_folder(tmp_path / "dora", two(), lengths, use_dora=True))
    assert found.method == "dora" and found.matrices[NAME].magnitude.shape == (6,) and not found.others
    assert "DoRA" in found.needs
    prompt = {"prompt_embeddings": np.ones((4, 5), "float32")}
    found = read_adapter(peft_folder(tmp_path / "prompt", {}, prompt, peft_type="PROMPT_TUNING"))
    assert (found.method, found.matrices, list(found.others)) == ("prompt_tuning", {}, ["prompt_embeddings"])
    found = read_adapter(peft_folder(tmp_path / "pissa", two(), init_lora_weights="pissa"))
    assert "residual" in found.needs


@needs_data
def test_what_others_published():
    """Six emotions on DistilBERT, with a head of its own that is named twice; Tigrinya on GPT-2's fused c_attn."""
    emotion = read_adapter(DATA / "emotion-distilbert")
    assert (emotion.rank, emotion.alpha, emotion.scale, len(emotion.matrices)) == (8, 16, 2.0, 12)
    assert sorted(emotion.others) == [f"{n}.{w}" for n in ("classifier", "pre_classifier") for w in ("bias", "weight")]
    tigrinya = read_adapter(DATA / "tigrinya-gpt2")
    assert (tigrinya.scale, len(tigrinya.matrices), tigrinya.others) == (4.0, 36, {})
    assert tigrinya.matrices["transformer.h.0.attn.c_attn"].shape == (2304, 768)
    assert tigrinya.matrices["transformer.h.11.mlp.c_proj"].shape == (768, 3072)


# --- the single file, and ours ---------------------------------------------------------------------------------------


def test_a_single_file(tmp_path):
    """alpha is beside the matrices, and r where it is not; kernels of 1 x 1 and 3 x 3; what else is there is kept."""
    conv = np.random.default_rng(1).normal(size=(2, 3, 3, 3)), np.random.default_rng(2).normal(size=(5, 2, 1, 1))
    square = np.ones((2, 3, 1, 1)), np.ones((5, 2, 1, 1))
    matrices = {"lora_te_a_q": draw(), "lora_unet_conv": conv[::-1], "lora_unet_one": square[::-1]}
    found = read_adapter(
        kohya_file(tmp_path / "a.bin", matrices, 4.0, {"lora_x.alpha": np.ones(())}, ss_network_dim="2")
    )
    assert (found.form, found.method, found.scale, found.config) == ("kohya", "lora", 2.0, {"ss_network_dim": "2"})
    assert [p.shape for p in found.matrices.values()] == [(6, 5), (5, 27), (5, 3)] and list(found.others) == [
        "lora_x.alpha"
    ]
    np.testing.assert_allclose(
        delta(found.matrices["lora_unet_conv"]), 2 * conv[1].reshape(5, 2) @ conv[0].reshape(2, 27)
    )
    assert read_adapter(kohya_file(tmp_path / "b.safetensors", matrices, None)).scale == 1.0


def test_a_single_file_of_three_factors(tmp_path):
    """LyCORIS's lora_mid: W[o, i, k, l] = sum_r,s up[o, r] mid[r, s, k, l] down[s, i]"""
    rng = np.random.default_rng(0)
    up, mid, down = (rng.normal(size=shape) for shape in ((5, 2, 1, 1), (2, 2, 3, 3), (2, 4, 1, 1)))
    found = read_adapter(kohya_file(tmp_path / "a.safetensors", {"x": (up, down)}, 2.0, {"x.lora_mid.weight": mid}))
    expected = np.einsum("or,rskl,si->oikl", up[:, :, 0, 0], mid, down[:, :, 0, 0]).reshape(5, 36)
    assert found.matrices["x"].shape == (5, 36)
    np.testing.assert_allclose(delta(found.matrices["x"]), expected)


CONFIG = ml.GPTConfig(vocab_size=96, block_size=8, n_layer=2, n_head=2, n_embd=8)
OURS = {
    "lora": ml.LoRAConfig(rank=2, alpha=6),
    "patterns": ml.LoRAConfig(rank=2, target_modules="*", rank_pattern={"mlp.*": 3}, alpha_pattern={"q_proj": 4}),
    "regular": ml.LoRAConfig(rank=2, target_modules=r"blocks\.\d+\.attn\.(q|k)_proj", rank_stabilized=True, alpha=3),
    "pissa": ml.LoRAConfig(rank=2, init="pissa"),
    "beside": ml.LoRAConfig(rank=2, modules_to_save=("ln_f",), bias="lora_only"),
}


def moved(config, seed: int = 0):
    """A model with an adapter whose numbers have been moved."""
    model = ml.add_adapter(ml.GPT(CONFIG), config)
    rng = np.random.default_rng(seed)
    for p in model.parameters(trainable=True):
        p.data[...] += rng.normal(size=p.shape)
        p.changed()
    return model


@pytest.mark.parametrize("name", OURS)
def test_our_own_file(tmp_path, name):
    """The factors' product is `delta_weights`, whatever the configuration: one of two ways to read one file."""
    model = moved(OURS[name])
    found = read_adapter(ml.save_adapter(model, tmp_path / "a.npz"))
    expected = ml.delta_weights(model)
    assert found.form == "minilora" and found.matrices.keys() == expected.keys()
    for path, pair in found.matrices.items():
        np.testing.assert_allclose(delta(pair), expected[path], atol=1e-5)
    assert bool(found.others) == (name == "beside")


def test_our_own_files_of_other_methods(tmp_path):
    """Combined ones of several ranks, DoRA's magnitudes, and methods without Delta W."""
    model = moved(OURS["patterns"])
    ml.combine_adapters(model, {"default": -0.5}, how="concatenate")
    found = read_adapter(ml.save_adapter(model, tmp_path / "a.npz", name="combined"))
    for path, update in ml.delta_weights(model).items():
        np.testing.assert_allclose(delta(found.matrices[path]), update, atol=1e-5)
    dora = read_adapter(ml.save_adapter(moved(ml.DoRAConfig(rank=2)), tmp_path / "b.npz"))
    assert dora.method == "dora" and all(pair.magnitude.shape == (8,) for pair in dora.matrices.values())
    prompt = read_adapter(ml.save_adapter(moved(ml.PromptConfig(tokens=2)), tmp_path / "c.npz"))
    assert prompt.method == "prompt" and not prompt.matrices and prompt.others
    with pytest.raises(ValueError, match=r"c\.npz: a prompt adapter has no Delta W = s B A to resize$"):
        prompt.require_matrices("resize")


# --- what is refused -------------------------------------------------------------------------------------------------


def peft_faults(folder: Path) -> dict:
    """{what the line says: what makes such a folder}"""
    B, A = draw()
    one = {NAME: (B, A)}
    odd = np.full_like(A, np.nan)
    alone = {f"{NAME}.lora_A.weight": A}
    twice = {f"{NAME}.lora_A.default.weight": A}
    return {
        "has lora_A without lora_B": lambda: peft_folder(folder, {}, alone),
        "has lora_B without lora_A": lambda: peft_folder(folder, {}, {f"{NAME}.lora_B.weight": B}),
        "q_proj has rank 2, its configuration says 4": lambda: peft_folder(folder, one, r=4),
        "rank 2, its configuration says 3": lambda: peft_folder(folder, one, rank_pattern={"q_proj": 3}),
        "lora_A (2, 5) and lora_B (6, 3) do not fit": lambda: peft_folder(folder, {NAME: (draw(r=3)[0], A)}),
        "A of model.layers.0.self_attn.q_proj: entry (0, 0) is nan": lambda: peft_folder(folder, {NAME: (B, odd)}),
        "was it gathered?": lambda: peft_folder(folder, {NAME: (np.ones((0,), "f"), np.ones((0,), "f"))}),
        "did you mean 'LORA'?": lambda: peft_folder(folder, one, peft_type="LORAX"),
        "is no method of PEFT 0.21": lambda: peft_folder(folder, one, peft_type="SOMETHING"),
        "has no peft_type": lambda: peft_folder(folder, one, peft_type=None),
        "r = 'eight', expected a positive integer": lambda: peft_folder(folder, one, r="eight"),
        "lora_alpha = '8', expected a number": lambda: peft_folder(folder, one, lora_alpha="8"),
        "rank_pattern = [3], expected {module: number}": lambda: peft_folder(folder, one, rank_pattern=[3]),
        "'(' is no regular expression": lambda: peft_folder(folder, one, rank_pattern={"(": 3}),
        "use_qalora = True: its update is no s B A": lambda: peft_folder(folder, one, use_qalora=True),
        "has no lora_magnitude_vector": lambda: peft_folder(folder, one, use_dora=True),
        "has lora_A twice": lambda: peft_folder(folder, one, twice),
        "holds no lora_A and lora_B, among 1": lambda: peft_folder(folder, {}, {"score.weight": A}),
        "expected real numbers": lambda: peft_folder(folder, {NAME: (B.astype(int), A.astype(int))}),
    }


@pytest.mark.parametrize("words", peft_faults(Path()))
def test_a_peft_folder_that_does_not_fit_is_one_line(tmp_path, words):
    folder = peft_faults(tmp_path / "a")[words]()
    with pytest.raises(ValueError) as caught:
        for pair in read_adapter(folder).matrices.values():
            pair.factors()
    assert words in str(caught.value) and str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_lacks_a_file_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file or folder '.*none'"):
        read_adapter(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no adapter_config.json in '[^']*'$"):
        read_adapter(tmp_path)
    peft_folder(tmp_path / "inside", two())
    with pytest.raises(FileNotFoundError, match="its folder 'inside' has one"):
        read_adapter(tmp_path)
    (tmp_path / "inside" / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no adapter_model.safetensors"):
        read_adapter(tmp_path / "inside")
    (tmp_path / "inside" / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config.json is no JSON"):
        read_adapter(tmp_path / "inside")


class Bomb:
    """Unpickled, it would say so."""

    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


@pytest.mark.parametrize("name", ["a.bin", "a.pt", "a.ckpt", "a.safetensors", "a.npz", "a"])
@pytest.mark.parametrize("protocol", [2, 4, "zip"])
def test_what_is_pickled_is_never_opened(tmp_path, name, protocol):
    """Under any name, old and new forms of torch.save; the line says why, and what converts it."""
    path = tmp_path / name
    if protocol == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    else:
        path.write_bytes(pickle.dumps(Bomb(), protocol=protocol))
    with pytest.raises(ValueError, match=r"is pickled, .* may run any program .*torch.load\(FILE, weights_only=True\)"):
        read_adapter(path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    path.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model.bin is pickled"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.bin").rename(tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"adapter_model.safetensors is pickled"):
        read_adapter(tmp_path)


def test_other_files_are_one_line(tmp_path):
    from safetensors.numpy import save_file

    peft_folder(tmp_path / "a", two())
    lonely = tmp_path / "lonely.safetensors"
    (tmp_path / "a" / "adapter_model.safetensors").rename(lonely)
    with pytest.raises(
        ValueError, match=r"lonely.safetensors holds PEFT's lora_A and lora_B, and alpha is in adapter_config"
    ):
        read_adapter(lonely)
    save_file({"wte.weight": np.ones((2, 2))}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"is no adapter: it holds 1 tensors, as wte.weight"):
        read_adapter(tmp_path / "model.safetensors")
    save_file({"x.hada_w1_a": np.ones((2, 2))}, tmp_path / "loha.safetensors")
    with pytest.raises(ValueError, match=r"is no LoRA: x.hada_w1_a"):
        read_adapter(tmp_path / "loha.safetensors")
    with pytest.raises(ValueError, match=r"base.npz holds 'model', expected 'adapter'"):
        read_adapter(Path(ml.__file__).parent / "base.npz")
    np.savez(tmp_path / "plain.npz", x=np.ones(3))
    with pytest.raises(ValueError, match=r"plain.npz is no complete minilora file: it has no header"):
        read_adapter(tmp_path / "plain.npz")
    for name in ("a.txt", "b.safetensors", "c.npz"):
        (tmp_path / name).write_text("hello, this is a text")
        with pytest.raises(ValueError, match=rf"{name} is no "):
            read_adapter(tmp_path / name)
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ValueError, match="empty is no adapter"):
        read_adapter(tmp_path / "empty")
    with pytest.raises(TypeError, match="read_adapter: path = 3"):
        read_adapter(3)


def test_single_files_that_do_not_fit_are_one_line(tmp_path):
    path, (B, A) = tmp_path / "a.safetensors", draw()
    for words, make in {
        "x has lora_down.weight without lora_up.weight": lambda: kohya_file(path, {}, others={"x.lora_down.weight": A}),
        "do not fit; expected": lambda: kohya_file(path, {"x": (draw(r=3)[0], A)}),
        "x.alpha is nan": lambda: kohya_file(path, {"x": (B, A)}, math.nan),
        "x.alpha has shape": lambda: kohya_file(path, {"x": (B, A)}, None, {"x.alpha": np.ones(2)}),
        "x has \\(1, 6\\) lengths, expected one for each of 6 rows": lambda: kohya_file(  # LyCORIS's, of the columns
            path, {"x": draw(6, 6)}, others={"x.dora_scale": np.ones((1, 6), "f")}
        ),
        "lora_mid": lambda: kohya_file(path, {"x": (B, A)}, 1.0, {"x.lora_mid.weight": np.ones((2, 2, 3, 3))}),
    }.items():
        make()
        with pytest.raises(ValueError, match=words):
            read_adapter(path)


def test_a_header_may_begin_as_a_pickle_does(tmp_path):
    """A .safetensors file whose header is 640 bytes long begins with the two bytes of a pickle."""
    B, A = draw()
    made = lambda n: kohya_file(tmp_path / "a", {"x": (B, A)}, None, note="x" * n)
    missing = 640 - int.from_bytes(made(1).read_bytes()[:8], "little")
    for n in range(missing - 8, missing + 8):  # the header is padded
        path = made(n)
        if path.read_bytes()[:2] == b"\x80\x02":
            assert content(path) == "safetensors" and list(read_adapter(path).matrices) == ["x"]
            return
    pytest.fail("no length of the header begins so")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["adapter_model.safetensors", "adapter_config.json", "single.safetensors", "ours.npz"])
def test_damage_is_one_line_that_names_the_file_or_leaves_numbers(tmp_path, form):
    """Cut, overwritten, with bytes put in or left out, at 100 places drawn: never another kind of error."""
    peft_folder(tmp_path, two())
    kohya_file(tmp_path / "single.safetensors", two())
    ml.save_adapter(moved(OURS["lora"]), tmp_path / "ours.npz")
    path, rng = tmp_path / form, np.random.default_rng(0)
    whole = path.read_bytes()
    for case in range(100):
        start, length = int(rng.integers(len(whole) if case % 2 else min(len(whole), 400))), int(rng.integers(8))
        damaged = {
            0: whole[:start],
            1: whole[:start] + rng.bytes(length) + whole[start + length :],
            2: whole[:start] + rng.bytes(length) + whole[start:],
            3: whole[:start] + whole[start + 1 + length :],
        }[case % 4]
        path.write_bytes(damaged)
        try:
            for pair in read_adapter(path).matrices.values():
                pair.factors()
        except (ValueError, FileNotFoundError) as error:
            assert str(tmp_path) in str(error) and "\n" not in str(error), (case, error)
