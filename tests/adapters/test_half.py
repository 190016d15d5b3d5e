"""A base of 16 bits: its adapters have 32, start exactly at it, train, merge and come back."""

import warnings

import numpy as np
import pytest
from adapters.test_attach import TOKENS, base, logits, shake

import minilora as ml

EXACT = {
    "lora": ml.LoRAConfig(rank=2, target_modules="*"),
    "pissa": ml.LoRAConfig(rank=2, init="pissa"),
    "dora": ml.DoRAConfig(rank=2),
    "dropout": ml.LoRAConfig(rank=2, dropout=0.5),
    "lora-fa": ml.LoRAFAConfig(rank=2),
    "ia3": ml.IA3Config(),
    "vera": ml.VeRAConfig(rank=4),
    "miss": ml.MiSSConfig(rank=2),
}
OTHERS = {
    "bitfit": ml.BitFitConfig(), "full": ml.FullConfig(), "pfeiffer": ml.PfeifferConfig(2),
    "prompt": ml.PromptConfig(1), "prefix": ml.PrefixConfig(1),
    "beside": ml.LoRAConfig(rank=2, bias="all", modules_to_save="ln_f"),
}  # fmt: skip


@pytest.mark.parametrize("kind", EXACT | OTHERS)
def test_adapters_have_32_bits_and_the_base_keeps_its_16(kind, tmp_path):
    model, config = base("float16"), (EXACT | OTHERS)[kind]
    plain = logits(model)
    ml.add_adapter(model, config)
    assert {str(p.dtype) for p in model.parameters(trainable=True)} == {"float32"}
    if kind in EXACT:
        assert logits(model).dtype == np.float16
        np.testing.assert_array_equal(logits(model), plain)
    optimizer, rng = ml.AdamW(model.named_parameters(), lr=0.02), np.random.default_rng(0)
    losses = [ml.train_step(model, optimizer, TOKENS, TOKENS, rng) for _ in range(12)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]  # in float16 the second step was NaN
    path, outputs = ml.save_adapter(model, tmp_path / "a.npz"), logits(model)
    np.testing.assert_array_equal(logits(ml.load_adapter(base("float16"), path)), outputs)
    if kind not in ("pfeiffer", "prompt", "prefix"):
        ml.merge_adapter(model)
        assert np.abs(logits(model).astype(float) - outputs).max() <= 0.02 * np.abs(outputs).max()
        ml.unmerge_adapter(model)
        np.testing.assert_array_equal(logits(model), outputs)
    ml.remove_adapter(model)
    assert {str(p.dtype) for p in model.parameters()} == {"float16"}
    np.testing.assert_array_equal(logits(model), plain)


@pytest.mark.parametrize("size, told", [(1e-1, False), (1e-5, True)])
def test_an_update_that_16_bits_have_no_room_for_is_not_rounded_away_unsaid(size, told):
    outputs = {}
    for dtype in ("float32", "float16"):
        model = ml.add_lora(base().astype("float16").astype(dtype), ml.LoRAConfig(rank=2))
        for module in model.adapters["default"].modules.values():
            module.lora_B.data += np.float32(size)
        before = {path: m.base_parameter("weight").data.copy() for path, m in model.adapters["default"].modules.items()}
        delta = ml.delta_weights(model)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ml.merge_lora(model)
        off = sum(np.sum((m.weight.data - before[path].astype(float) - delta[path]) ** 2)
                  for path, m in model.adapters["default"].modules.items())  # fmt: skip
        outputs[dtype] = (off / sum(np.sum(d.astype(float) ** 2) for d in delta.values())) ** 0.5
        words = [str(one.message) for one in caught]
        assert len(words) == (told and dtype == "float16")
        assert all(f"off by {outputs[dtype]:.0%} of the update's norm; model.astype('float32')" in w for w in words)
    assert outputs["float32"] < 0.1 and (outputs["float16"] > 0.1) == told
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ml.lora_disabled(model):  # and when it is folded in again it is not said again
            pass


def test_converting_a_model_leaves_its_adapters_at_32_bits():
    model = base("float64")
    for name in "ab":
        shake(ml.add_lora(model, ml.LoRAConfig(rank=2), name=name))
    ml.set_adapter(model, "a")
    for dtype, wanted in (
        ("float16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
        ("float16", "float32"),
    ):
        model.astype(dtype)
        for name in ("b", "a"):  # in use or aside
            ml.set_adapter(model, name)
            assert {str(p.dtype) for p in model.parameters() if p.requires_grad} == {wanted}
            assert {str(p.dtype) for p in model.parameters() if not p.requires_grad} == {dtype}
    with ml.rows_use(model, ["a", None]):
        assert logits(model).dtype == np.float16
    ml.set_adapter(model, ["a", "b"])
    assert logits(model).dtype == np.float16


def test_on_codes_and_16_bits():
    model = ml.quantize_model(base("float16"), block=16)
    plain = logits(model)
    ml.add_lora(model, ml.LoRAConfig(rank=2))
    np.testing.assert_array_equal(logits(model), plain)
    assert {str(p.dtype) for p in model.parameters(trainable=True)} == {"float32"}
    optimizer = ml.AdamW(model.named_parameters(), lr=0.02)
    losses = [ml.train_step(model, optimizer, TOKENS, TOKENS) for _ in range(12)]
    assert losses[-1] < losses[0]
