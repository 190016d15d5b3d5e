"""PEFT's folders without PEFT: what is read, refused by name, and written. `tests/peers` asks PEFT itself."""

import json

import numpy as np
import pytest
from adapter_making import draw, peft_folder
from adapters.test_adapter import EXAMPLES, assert_same, base, logits, shake, snapshot
from adapters.test_bypass import Shared

import minilora as ml
from minilora.adapters.state import adapter_parameters
from minilora.interop.peft_config import check_fields, meant, written_targets

safetensors = pytest.importorskip("safetensors.numpy", reason="needs safetensors: pip install 'minilora[models]'")
C = 8  # the width of `base`, of two blocks
C_ATTN = "transformer.h.0.attn.c_attn"
FUSED = {"target_modules": ["h.0.attn.c_attn"], "fan_in_fan_out": True}


def fused(folder, others=None, **config):
    return peft_folder(folder, {C_ATTN: draw(3 * C, C)}, others, **{**FUSED, **config})


def tensors_of(folder):
    return safetensors.load_file(folder / "adapter_model.safetensors")


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def test_a_fused_matrix_is_three_of_ours_and_one_again(tmp_path):
    folder, model = fused(tmp_path / "a"), base("float32")
    ml.load_adapter(model, folder)
    B, A = draw(3 * C, C)
    for i, part in enumerate("qkv"):
        layer = getattr(model.blocks[0].attn, f"{part}_proj")
        np.testing.assert_array_equal(layer.lora_A.data, A)
        np.testing.assert_array_equal(layer.delta(), 4 * B[i * C : (i + 1) * C] @ A)
    assert model.adapters["default"].configs[0].alpha == 8
    written = ml.save_adapter(model, tmp_path / "b", format="peft")
    assert tensors_of(written).keys() == tensors_of(folder).keys()
    assert all(np.array_equal(value, tensors_of(folder)[name]) for name, value in tensors_of(written).items())
    assert config_of(written)["target_modules"] == [C_ATTN]


@pytest.mark.parametrize("kind", ["lora", "dora", "pissa", "rslora", "unequal"])
@pytest.mark.parametrize("targets", ["q_proj", ("q_proj", "v_proj", "down_proj"), "*"])
def test_trained_apart_they_are_blocks_of_a_larger_rank(tmp_path, kind, targets):
    settings = {"rank": 2, "alpha": 3, "target_modules": targets}
    settings |= {"pissa": {"init": "pissa"}, "rslora": {"rank_stabilized": True}}.get(kind, {})
    if kind == "unequal":
        settings |= {"rank_pattern": {"blocks.0.attn.q_proj": 1}, "alpha_pattern": {"blocks.1.attn.q_proj": 5}}
    model = shake(ml.add_adapter(base(), (ml.DoRAConfig if kind == "dora" else ml.LoRAConfig)(**settings)))
    folder = ml.save_adapter(model, tmp_path / "peft", format="peft")
    ml.load_adapter(other := base(), folder)
    np.testing.assert_allclose(logits(other), logits(model), rtol=1e-11, atol=1e-12)
    for path, delta in ml.delta_weights(model).items():
        np.testing.assert_allclose(ml.delta_weights(other)[path], delta, atol=1e-12)


def test_what_is_trained_beside_comes_along(tmp_path):
    for bias, saved in (
        ("none", ("ln_f", "blocks.1.mlp")),
        ("lora_only", ()),
        ("all", ("ln_1",)),
        ("none", ("wte", "k_proj")),
    ):
        config = ml.LoRAConfig(2, target_modules=("o_proj",), bias=bias, modules_to_save=saved)
        model = shake(ml.add_lora(base(), config))
        ml.load_adapter(other := base(), ml.save_adapter(model, tmp_path / f"{bias} {len(saved)}", format="peft"))
        np.testing.assert_allclose(logits(other), logits(model), rtol=1e-11, atol=1e-12)
        if saved != ("wte", "k_proj"):  # of c_attn the file holds q and v, too
            assert adapter_parameters(other).keys() == adapter_parameters(model).keys()


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_virtual_tokens(tmp_path, kind):
    model = shake(ml.add_adapter(base(), EXAMPLES[kind]))
    ml.load_adapter(other := base(), ml.save_adapter(model, tmp_path / "peft", format="peft"))
    np.testing.assert_array_equal(logits(other), logits(model))


def test_numbers_of_16_bits(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="needs ml_dtypes: pip install 'minilora[models]'")
    folder = peft_folder(tmp_path, {C_ATTN: [x.astype(ml_dtypes.bfloat16) for x in draw(3 * C, C)]}, **FUSED)
    ml.load_adapter(model := base("float32"), folder)
    assert {p.dtype for p in adapter_parameters(model).values()} == {np.dtype("float32")}
    expected = draw(3 * C, C)[1].astype(ml_dtypes.bfloat16).astype("float32")
    np.testing.assert_array_equal(model.blocks[0].attn.v_proj.lora_A.data, expected)


def check_refused(path, message, model=None):
    model = model or base()
    before = snapshot(model)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        ml.load_adapter(model, path)
    assert "\n" not in str(error.value)
    assert_same(model, before)


@pytest.mark.parametrize(
    "field",
    [
        {"trainable_token_indices": [1]}, {"target_parameters": ["w"]}, {"alora_invocation_tokens": [1]},
        {"layer_replication": [[0, 1]]}, {"use_qalora": True}, {"lora_bias": True}, {"use_bdlora": {"a": 1}},
        {"megatron_config": {"a": 1}}, {"arrow_config": {"a": 1}}, {"kasa_config": {"a": 1}}, {"of_tomorrow": 7},
        {"monteclora_config": {"a": 1}},
    ],
)  # fmt: skip
def test_a_field_that_is_not_acted_on_is_refused_by_its_name(tmp_path, field):
    check_refused(fused(tmp_path, **field), next(iter(field)))
    nothing = {name: None if not isinstance(value, bool) else False for name, value in field.items()}
    ml.load_adapter(base(), fused(tmp_path / "b", **nothing))


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga", "loftq"])
def test_a_start_that_changes_the_base_is_refused_with_the_way_to_convert_it(tmp_path, start):
    check_refused(fused(tmp_path, init_lora_weights=start), f"{start}.*path_initial_model_for_weight_conversion")
    for harmless in (True, False, "gaussian", "eva", "orthogonal"):
        check_fields({"peft_type": "LORA", "init_lora_weights": harmless})


def test_what_does_not_fit_is_one_line_and_changes_nothing(tmp_path):
    unsure = ".*names and shapes are all that can be checked"
    llama = {"model.layers.0.self_attn.q_proj": draw(C, C)}
    check_refused(peft_folder(tmp_path / "names", llama), f"model.layers.0.self_attn.q_proj, .*transformer.*{unsure}")
    check_refused(
        peft_folder(tmp_path / "wide", {C_ATTN: draw(48, 16)}, **FUSED), rf"\(48, 16\), here it is \(24, 8\){unsure}"
    )
    deep = {"transformer.h.9.attn.c_attn": draw(24, 8)}
    check_refused(
        peft_folder(tmp_path / "deep", deep, target_modules=["c_attn"]), f"transformer.h.9.attn.c_attn{unsure}"
    )
    check_refused(fused(tmp_path / "rank", r=3), "has rank 2, its configuration says 3")
    check_refused(
        fused(tmp_path / "more", target_modules=["c_attn"]), r"means transformer\.h\.1\.attn\.c_attn, .* missing"
    )
    check_refused(fused(tmp_path / "less", target_modules=["c_fc"]), r"does not mean transformer\.h\.0\.attn\.c_attn")
    check_refused(fused(tmp_path / "loha", peft_type="LOHA"), "peft_type = 'LOHA' is not known here; LORA, ")
    check_refused(fused(tmp_path / "ia3", peft_type="IA3"), "r = 2 is not acted on here")
    half = fused(tmp_path / "half")
    tensors = tensors_of(half)
    tensors.pop(f"base_model.model.{C_ATTN}.lora_B.weight")
    safetensors.save_file(tensors, half / "adapter_model.safetensors")
    check_refused(half, "lora_A without lora_B")
    norm = {"transformer.ln_f.weight": np.ones(C, "float32")}
    check_refused(fused(tmp_path / "unnamed", norm), r"transformer\.ln_f\.weight, .*does not name in modules_to_save")
    check_refused(fused(tmp_path / "part", norm, modules_to_save=["ln_f"]), r"it has nothing for ln_f\.bias")
    check_refused(fused(tmp_path / "lost", modules_to_save=["ln_f"]), r"transformer\.ln_f in full .*does not hold it")
    check_refused(
        fused(tmp_path / "no_head", modules_to_save=["lm_head"]), r"trains lm_head in full .*does not hold it"
    )
    score = {"score.weight": np.ones((2, C), "float32")}
    check_refused(
        fused(tmp_path / "head", score, modules_to_save=["score"]),
        r"it holds score, a head for labels: ml\.add_classifier",
    )
    for bad in (tmp_path / "nothing", tmp_path / "none.npz"):
        check_refused(bad, "there is no file")
    (tmp_path / "empty").mkdir()
    check_refused(tmp_path / "empty", r"no adapter_config\.json")


def test_what_is_pickled_is_refused_with_the_command_that_converts_it(tmp_path):
    folder = fused(tmp_path)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    for path in (folder, folder / "adapter_model.bin"):
        check_refused(path, r"is pickled, .*safetensors\.torch\.save_file\(torch\.load")
    (tmp_path / "alone.bin").write_bytes(b"\x80\x02}q\x00.")
    check_refused(tmp_path / "alone.bin", "alone.bin is pickled")


def test_a_file_of_the_folder_is_as_good_as_the_folder(tmp_path):
    folder = fused(tmp_path / "a")
    expected = logits(ml.load_adapter(base("float32"), folder))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        np.testing.assert_array_equal(logits(ml.load_adapter(base("float32"), folder / name)), expected)
    alone = (folder / "adapter_model.safetensors").rename(tmp_path / "alone.safetensors")
    check_refused(alone, r"no adapter_config\.json beside it", base("float32"))


def test_a_sum_of_adapters_is_one(tmp_path):
    model = base()
    for i, rank in enumerate((1, 2)):
        shake(ml.add_lora(model, ml.LoRAConfig(rank, target_modules=("q_proj", "o_proj")), name=str(i)), rng=i)
    ml.combine_adapters(model, {"0": 0.5, "1": -1.0})
    ml.load_adapter(other := base(), ml.save_adapter(model, tmp_path / "a", format="peft"))
    np.testing.assert_allclose(logits(other), logits(model), rtol=1e-11, atol=1e-12)
    ml.save_adapter(model, tmp_path / "b", "1", format="peft")
    ml.set_adapter(model, "1")
    np.testing.assert_allclose(logits(ml.load_adapter(base(), tmp_path / "b")), logits(model), rtol=1e-11, atol=1e-12)


def test_on_few_bits(tmp_path):
    model = ml.quantize_model(base("float32"), "nf4", block=8)
    ml.load_adapter(model, fused(tmp_path))
    assert model.blocks[0].attn.k_proj.lora_A.shape == (2, C)
    assert (logits(model) != logits(ml.quantize_model(base("float32"), "nf4", block=8))).any()
    with pytest.raises(ValueError, match=r"DoRA.* needs floating-point weights"):
        magnitude = {f"{C_ATTN}.lora_magnitude_vector": np.ones(3 * C, "float32")}
        ml.load_adapter(model, fused(tmp_path / "dora", magnitude, use_dora=True), "dora")


def test_a_tie_is_kept_or_the_file_refused(tmp_path):
    wte = np.random.default_rng(0).normal(size=(11, C)).astype("float32")
    alone, other = {"transformer.wte.weight": wte}, wte + 1
    saved = {"modules_to_save": ["wte", "lm_head"]}
    check_refused(fused(tmp_path / "alone", alone, modules_to_save=["wte"]), "trained apart from the head")
    check_refused(fused(tmp_path / "apart", {**alone, "lm_head.weight": other}, **saved), "trained apart")
    ml.load_adapter(model := base("float32"), fused(tmp_path / "both", {**alone, "lm_head.weight": wte}, **saved))
    np.testing.assert_array_equal(model.wte.weight.data, wte)
    head = {"target_modules": ["lm_head"]}
    check_refused(peft_folder(tmp_path / "head", {"lm_head": draw(11, C)}, **head), "lm_head, which this model ties")
    base_weight = {"transformer.wte.base_layer.weight": wte}
    check_refused(fused(tmp_path / "base", base_weight), r"wte\.base_layer\.weight is another base model's")
    own = {"transformer.wte.base_layer.weight": base("float32").wte.weight.data}
    ml.load_adapter(base("float32"), fused(tmp_path / "own", own))


def test_what_peft_has_no_form_for_is_not_written(tmp_path):
    for config, why in (
        (EXAMPLES["houlsby"], "PEFT has no form for houlsby; format='minilora'"),
        ([ml.LoRAConfig(2, target_modules="q_proj"), ml.DoRAConfig(2, target_modules="v_proj")], "lora.dora"),
        (ml.LoRAConfig(2, target_modules="q_proj", modules_to_save=("k_proj",)), "in part adapted and in part trained"),
    ):
        with pytest.raises(ValueError, match=why):
            ml.save_adapter(ml.add_adapter(base(), config), tmp_path / "x", format="peft")
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="a Shared has no names in PEFT's files"):
        ml.save_adapter(ml.add_lora(Shared(), ml.LoRAConfig(2, target_modules="a")), tmp_path / "x", format="peft")
    model, file = ml.add_lora(base(), ml.LoRAConfig(2)), tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match="is a file; PEFT's form of an adapter is a folder"):
        ml.save_adapter(model, file, format="peft")
    with pytest.raises(ValueError, match="save_adapter: format = 'pt', expected 'minilora' or 'peft'"):
        ml.save_adapter(model, tmp_path / "x", format="pt")
    assert file.read_text() == "mine"


def test_targets_are_read_as_peft_reads_them():
    modules = {f"transformer.h.{i}.{name}": "linear" for i in range(12) for name in ("attn.c_attn", "mlp.c_fc")}
    modules |= {"transformer.wte": "table", "lm_head": "output"}
    of = lambda **config: meant({"target_modules": ["c_attn"], **config}, modules)
    assert len(of()) == 12
    assert len(of(target_modules="all-linear")) == len(of(target_modules="ALL-linear")) == 24
    assert (
        of(layers_to_transform=1) == of(layers_to_transform=[1], layers_pattern="h") == {"transformer.h.1.attn.c_attn"}
    )
    assert of(layers_to_transform=[1], layers_pattern=["layers"]) == set()
    assert len(of(target_modules=r".*\.(c_attn|c_fc)", exclude_modules=r".*\.h\.1\d?\..*")) == 18
    assert of(target_modules=["attn", "c"]) == set()
    assert len(of(target_modules=["c_attn", "c_fc"], exclude_modules=["c_fc"], modules_to_save=["wte"])) == 12
    assert of(target_modules=["wte", "lm_head"], modules_to_save=["lm_head"]) == {"transformer.wte"}
    with pytest.raises(ValueError, match="is no regular expression"):
        of(target_modules="(")
    assert written_targets(sorted(of()), modules) == ["attn.c_attn"]
    assert written_targets(["transformer.h.1.mlp.c_fc", "transformer.wte"], modules) == [
        "transformer.h.1.mlp.c_fc",
        "transformer.wte",
    ]
