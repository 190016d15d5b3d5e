"""LoRA-GA: A and B start from the loss's gradient."""

import numpy as np
import pytest
from adapters.variants import TARGETS, TOKENS, base, shake

import minilora as ml
from minilora.adapters.lora import lora_layers
from minilora.adapters.lora_ga import mean_gradients

BATCHES = [(TOKENS, TARGETS), (TARGETS, TOKENS)]


def adapted(rank=3, targets=("q_proj", "down_proj"), **settings):
    return ml.add_lora_ga(base(), ml.LoRAConfig(rank, 6, targets, **settings), BATCHES)


def test_it_starts_at_the_base_model_and_keeps_loras_promises(tmp_path):
    model, plain = adapted(), base()(TOKENS).data
    np.testing.assert_array_equal(model(TOKENS).data, plain)
    layer = model.blocks[0].attn.q_proj
    assert layer.lora_A.data.any() and layer.lora_B.data.any() and not layer.lora_A0.requires_grad
    gradients = ml.grad(model.loss(TOKENS, TARGETS), model.parameters(trainable=True))
    assert all(g.any() for g in gradients)  # both move at once
    moved = shake(model)(TOKENS).data
    path = ml.save_adapter(model, tmp_path / "a.npz")
    loaded = ml.load_adapter(base(), path)
    np.testing.assert_array_equal(loaded(TOKENS).data, moved)
    assert loaded.adapters["default"].configs[0].init == "lora-ga"
    for _ in range(2):
        ml.merge_adapter(model)
        np.testing.assert_allclose(model(TOKENS).data, moved, rtol=0, atol=1e-11)
        ml.unmerge_adapter(model)
    np.testing.assert_array_equal(ml.remove_adapter(model)(TOKENS).data, plain)
    record = ml.analysis.counting.count(path)
    assert record.trainable_parameters == loaded.count(trainable=True) and record.total_parameters == loaded.count()


def test_the_start_is_the_gradients_singular_vectors_scaled():
    model = adapted()
    gradients = mean_gradients(plain := base(), ml.LoRAConfig(3, 6, ("q_proj", "down_proj")).chosen(plain), BATCHES)
    for path, layer in lora_layers(model).items():
        U, _, Vt = np.linalg.svd(gradients[path])
        c = len(U) ** 0.25 / 4
        np.testing.assert_allclose(layer.lora_A.data, c * Vt[:3], rtol=0, atol=1e-9)
        np.testing.assert_allclose(layer.lora_B.data, c * U[:, 3:6], rtol=0, atol=1e-9)
        np.testing.assert_array_equal(layer.lora_A0.data, layer.lora_A.data)
    twice = ml.add_lora_ga(base(), ml.LoRAConfig(3, 6, ("q_proj", "down_proj")), BATCHES, gamma=64)
    np.testing.assert_allclose(2 * twice.blocks[0].attn.q_proj.lora_A.data, model.blocks[0].attn.q_proj.lora_A.data)


def test_the_gradient_is_full_fine_tunings_and_leaves_the_model_as_it_was():
    model = base()
    model.wpe.weight.requires_grad = False
    before = [(p, p.requires_grad, p.data.copy()) for p in model.parameters()]
    layers = ml.LoRAConfig(2).chosen(model)
    found = mean_gradients(model, layers, BATCHES)
    for (p, trained, data), q in zip(before, model.parameters(), strict=True):
        assert p is q and p.requires_grad == trained and (p.data == data).all() and p.grad is None
    each = [ml.grad(model.loss(*batch), [layer.weight for layer in layers.values()]) for batch in BATCHES]
    for i, path in enumerate(layers):
        np.testing.assert_allclose(found[path], (each[0][i] + each[1][i]) / 2, rtol=0, atol=1e-14)


def test_beside_another_adapter_the_gradient_is_the_base_models():
    model = ml.add_lora(base(), ml.LoRAConfig(2), name="first")
    shake(model)
    ml.add_lora_ga(model, ml.LoRAConfig(3, 6, ("q_proj", "down_proj")), iter(BATCHES), name="second")
    for path, layer in lora_layers(adapted()).items():
        np.testing.assert_array_equal(model.get_module(path).lora_A.data, layer.lora_A.data)
    assert model.adapters.active == ("second",)


REFUSED = {
    "no batches": (lambda: ml.add_lora_ga(base(), ml.LoRAConfig(2), []), r"batches = \[\], expected one or more"),
    "an array": (lambda: ml.add_lora_ga(base(), ml.LoRAConfig(2), TOKENS), "expected one or more, as in"),
    "a text": (lambda: ml.add_lora_ga(base(), ml.LoRAConfig(2), "names"), "batches = 'names', expected"),
    "rank": (lambda: adapted(5), "rank 5 needs 10 singular vectors, blocks.0.attn.q_proj has 8"),
    "a table": (lambda: adapted(2, ("wte", "q_proj")), "wte is an embedding table, and the start needs the gradient"),
    "few bits": (lambda: ml.add_lora_ga(ml.quantize_model(ml.GPT(ml.GPTConfig(11, 6, 1, 1, 64))), ml.LoRAConfig(2),
                                        BATCHES), "blocks.0.attn.q_proj is quantised"),
    "another method": (lambda: ml.add_lora_ga(base(), ml.DoRAConfig(2), BATCHES), "expected a LoRAConfig"),
    "gamma": (lambda: ml.add_lora_ga(base(), ml.LoRAConfig(2), BATCHES, gamma=0), "gamma = 0, expected a positive"),
    "tokens": (lambda: ml.add_lora_ga(base(), ml.LoRAConfig(2), [(TOKENS + 50, TARGETS)]), "expected 0 to 10"),
    "add_lora": (lambda: ml.add_lora(base(), ml.LoRAConfig(2, init="lora-ga")),
                 r"init = 'lora-ga' starts from the loss's gradient .*add_lora_ga\(model, config"),
    "dora": (lambda: ml.DoRAConfig(2, init="lora-ga"), "init = 'lora-ga', expected 'kaiming' or 'gaussian'"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_one_line(what):
    call, words = REFUSED[what]
    with pytest.raises((ValueError, TypeError), match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_what_failed_changed_nothing():
    model = ml.add_lora(base(), ml.LoRAConfig(2))
    before, held = model(TOKENS).data, [(p, p.requires_grad) for p in model.parameters()]
    with pytest.raises(ValueError, match="expected 0 to 10"):
        ml.add_lora_ga(model, ml.LoRAConfig(2), [(TOKENS + 50, TARGETS)], name="two")
    with pytest.raises(ValueError, match="has an adapter 'default' already"):
        ml.add_lora_ga(model, ml.LoRAConfig(2), BATCHES)
    np.testing.assert_array_equal(model(TOKENS).data, before)
    assert held == [(p, p.requires_grad) for p in model.parameters()] and list(model.adapters) == ["default"]
