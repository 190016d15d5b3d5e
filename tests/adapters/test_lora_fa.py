"""LoRA-FA: A stays as it was drawn."""

import tracemalloc

import numpy as np
import pytest
from adapters.variants import TARGETS, TOKENS, base, shake

import minilora as ml
from minilora.adapters.lora import lora_layers
from minilora.adapters.lora_fa import corrected


def test_it_begins_and_ends_with_the_a_that_lora_would_begin_with(tmp_path):
    model, lora = ml.add_adapter(base(), ml.LoRAFAConfig(2), rng=4), ml.add_lora(base(), ml.LoRAConfig(2), rng=4)
    start = {path: layer.lora_A.data.copy() for path, layer in lora_layers(lora).items()}
    optimizer = ml.AdamW(model.named_parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        ml.train_step(model, optimizer, TOKENS, TARGETS)
    for path, layer in lora_layers(model).items():
        np.testing.assert_array_equal(layer.lora_A.data, start[path])
        assert layer.lora_B.data.any() and not layer.lora_A.requires_grad
    path = ml.save_adapter(model, tmp_path / "a.npz")
    loaded = ml.load_adapter(base(), path)
    assert loaded.count(trainable=True) == model.count(trainable=True) == 4 * 2 * 8
    ml.add_adapter(model, ml.LoRAConfig(1), name="other")
    ml.set_adapter(model, "default")
    assert not any(layer.lora_A.requires_grad for layer in lora_layers(model).values())


def test_the_tape_keeps_less_than_loras():
    """The layers' inputs are kept for dA alone."""

    def kept(config):
        model = ml.add_adapter(ml.GPT(ml.GPTConfig(11, 64, 2, 2, 64)), config)
        for name, p in model.named_parameters():
            p.data = p.data if "lora_B" not in name else p.data + 0.1
        tokens = np.random.default_rng(0).integers(0, 11, (16, 64))
        tracemalloc.start()
        loss = model.loss(tokens, tokens)
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert loss.requires_grad
        return held

    sizes = {kind: kept(kind(2, target_modules=("v_proj", "down_proj"))) for kind in (ml.LoRAConfig, ml.LoRAFAConfig)}
    inputs = 2 * 4 * 16 * 64 * (64 + 256)  # of v_proj and down_proj in two blocks
    assert sizes[ml.LoRAConfig] - sizes[ml.LoRAFAConfig] > 0.9 * inputs


def test_the_corrected_step_is_the_closest_to_full_fine_tunings():
    """Against least squares: D that minimises |s D A - G|_F, for G = g^T x."""
    rng, s = np.random.default_rng(0), 2.0
    G, A = rng.normal(size=(6, 9)), rng.normal(size=(3, 9))
    D = np.linalg.lstsq(s * A.T, G.T, rcond=None)[0].T
    np.testing.assert_allclose(corrected(s * G @ A.T, A, s), D, rtol=1e-12, atol=1e-13)
    A = np.linalg.qr(A.T)[0].T  # of orthonormal rows only a factor is left, which AdamW divides out
    np.testing.assert_allclose(corrected(s * G @ A.T, A, s), s * G @ A.T / s**2, rtol=1e-12, atol=1e-13)


def test_a_table_and_other_starts_are_refused():
    with pytest.raises(ValueError, match="lora-fa: an embedding table is no target: its A starts at zero"):
        ml.add_adapter(base(), ml.LoRAFAConfig(2, target_modules="wte"))
    with pytest.raises(ValueError, match="LoRAFAConfig: init = 'pissa', expected 'kaiming' or 'gaussian'"):
        ml.LoRAFAConfig(init="pissa")
    assert shake(ml.add_adapter(base(), ml.LoRAFAConfig(2, init="gaussian"))).count(trainable=True) == 64
