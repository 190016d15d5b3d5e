"""DoRA: the formula, the exact start, the norm as a constant and differentiated, and what every method must do."""

import math

import numpy as np
import pytest
from adapters.variants import GPT, TARGETS, TOKENS, base, shake

import minilora as ml
from minilora.adapters.dora import DoRAConfig, DoRALinear
from minilora.adapters.state import adapter_parameters
from minilora.analysis.methods import plan

SETTINGS = {"rank": 2, "alpha": 3}
METHODS = ("central", "complex-step", "directional")


def adapted(dtype="float64", rng=5, **settings):
    return shake(ml.add_adapter(base(dtype), DoRAConfig(**{**SETTINGS, **settings})), rng)


def layers(model):
    return {path: m for path, m in model.named_modules() if isinstance(m, DoRALinear)}


def formula(x, layer, s):
    """W' row by row, each a unit vector times its magnitude; then y = x W'^T + b."""
    W, A, B, m, b = (p.data for p in (layer.weight, layer.lora_A, layer.lora_B, layer.magnitude, layer.bias))
    rows = [W[o] + s * sum(B[o, k] * A[k] for k in range(len(A))) for o in range(len(W))]
    adapted = np.array([length * v / math.sqrt(sum(v**2)) for length, v in zip(m, rows, strict=True)])
    return adapted, x @ adapted.T + b


@pytest.mark.parametrize("settings, s", [({}, 1.5), ({"rank": 4, "alpha": 3, "rank_stabilized": True}, 1.5)])
def test_the_layer_is_its_formula(settings, s):
    model = adapted(**settings)
    x = np.random.default_rng(0).standard_normal((4, 5, 8))
    for path, layer in layers(model).items():
        weight, y = formula(x, layer, s)
        np.testing.assert_allclose(layer(ml.Tensor(x)).data, y, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(layer.weight.data + ml.delta_weights(model)[path], weight, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(np.linalg.norm(weight, axis=1), abs(layer.magnitude.data), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("settings", [{}, {"target_modules": "*", "init": "gaussian", "rank": 8}, {"dropout": 0.5}])
@pytest.mark.parametrize("bias", [True, False])
def test_it_starts_exactly_at_the_base_model(dtype, settings, bias):
    model = base(dtype, bias)
    state, logits = model.state_dict(), model(TOKENS).data
    ml.add_lora(model, DoRAConfig(**settings))
    np.testing.assert_array_equal(model(TOKENS).data, logits)
    np.testing.assert_array_equal(model(TOKENS, np.random.default_rng(0)).data, logits)  # with dropout, if any
    assert all(not delta.any() for delta in ml.delta_weights(model).values())
    assert {p.dtype for p in model.parameters()} == {np.dtype(dtype)}
    ml.merge_lora(model)
    for name, value in state.items():
        np.testing.assert_array_equal(model.state_dict()[name], value)


# Gradients


def hold_norms(model):
    """Each layer's norm as it is now, whatever A and B become: the function that section 4.3 differentiates."""
    for layer in layers(model).values():
        norm = layer.norm().detach()
        layer.norm = lambda norm=norm: norm
    return model


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("exact_norm", [False, True])
def test_gradients(method, exact_norm):
    model = adapted(exact_norm=exact_norm, target_modules=("v_proj", "up_proj"))
    if not exact_norm:
        hold_norms(model)
    names, parameters = zip(*adapter_parameters(model).items(), strict=True)
    report = ml.gradcheck(lambda *_: model.loss(TOKENS, TARGETS), parameters, method=method, names=names)
    assert report.passed, str(report)


def test_dropout_has_the_right_gradients():
    model = adapted(exact_norm=True, dropout=0.4)
    loss = lambda *_: model.loss(TOKENS, TARGETS, np.random.default_rng(0))
    report = ml.gradcheck(loss, model.parameters(trainable=True), method="complex-step")
    assert report.passed, str(report)


def test_the_norm_is_a_constant_unless_asked():
    """Same outputs, same dm; dA and dB differ, and each row of the exact dV is at right angles to that row of V."""
    held, exact = adapted(), adapted(exact_norm=True)
    np.testing.assert_array_equal(held(TOKENS).data, exact(TOKENS).data)
    one, two = held.blocks[1].attn.v_proj, exact.blocks[1].attn.v_proj
    constant = ml.grad(held.loss(TOKENS, TARGETS), [one.lora_A, one.lora_B, one.magnitude])
    exactly = ml.grad(exact.loss(TOKENS, TARGETS), [two.lora_A, two.lora_B, two.magnitude])
    np.testing.assert_array_equal(constant[2], exactly[2])
    A, B, s = two.lora_A.data, two.lora_B.data, two.config.scale
    V = two.weight.data + s * B @ A
    along = exactly[2] * two.magnitude.data  # V . dV of each row, with its length a constant
    lost = (along / (V * V).sum(axis=1))[:, None] * V
    np.testing.assert_allclose(constant[1] - exactly[1], s * lost @ A.T, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(constant[0] - exactly[0], s * B.T @ lost, rtol=1e-9, atol=1e-13)
    assert abs(constant[1] - exactly[1]).max() > 1e-3 * abs(exactly[1]).max()


def test_the_base_gets_no_gradient_and_does_not_move():
    model = ml.add_adapter(base("float32"), DoRAConfig(rank=4, target_modules="*"))
    state, own = model.state_dict(), adapter_parameters(model)
    optimizer = ml.AdamW(model.named_parameters(), lr=0.03)
    losses = [ml.train_step(model, optimizer, TOKENS, TARGETS) for _ in range(60)]
    assert losses[-1] < 0.8 * losses[0]
    for name, value in model.state_dict().items():
        assert (name in own) == bool((value != state[name]).any()), name
    model.loss(TOKENS, TARGETS).backward()
    assert all((p.grad is not None) == (name in own) for name, p in model.named_parameters())


# What every method must do


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("*",)])
def test_names_and_counts_are_those_of_the_formula(targets):
    model = ml.add_adapter(base(), DoRAConfig(rank=3, target_modules=targets))
    trained = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    chosen = plan(GPT, "dora", rank=3, target_modules=targets)
    assert trained == chosen.added == {name: p.shape for name, p in adapter_parameters(model).items()}
    assert not chosen.trained


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_saved_and_loaded_it_has_the_same_bits(tmp_path, dtype):
    model = adapted(dtype, exact_norm=True, target_modules=("q_proj", "*.mlp.*"))
    loaded = ml.load_adapter(base(dtype), ml.save_adapter(model, tmp_path / "dora.npz"))
    np.testing.assert_array_equal(loaded(TOKENS).data, model(TOKENS).data)
    assert loaded.blocks[0].attn.q_proj.config == model.blocks[0].attn.q_proj.config
    assert loaded.blocks[0].attn.q_proj.config.exact_norm


def test_merging_keeps_the_outputs_and_unmerging_restores_every_bit():
    model = adapted(target_modules="*")
    before, state, deltas = model(TOKENS).data, model.state_dict(), ml.delta_weights(model)
    ml.merge_lora(model)
    np.testing.assert_allclose(model(TOKENS).data, before, rtol=1e-12, atol=1e-12)
    assert model.blocks[0].attn.q_proj(ml.Tensor(np.ones((2, 8)))).node is None  # a plain linear layer
    for path, delta in ml.delta_weights(model).items():
        np.testing.assert_array_equal(delta, deltas[path])
    with ml.lora_disabled(model):
        np.testing.assert_array_equal(model(TOKENS).data, base()(TOKENS).data)
        np.testing.assert_array_equal(ml.delta_weights(model)["blocks.0.attn.q_proj"], deltas["blocks.0.attn.q_proj"])
    ml.unmerge_lora(model)
    assert all((value == state[name]).all() for name, value in model.state_dict().items())
    np.testing.assert_array_equal(model(TOKENS).data, before)


def test_disabling_switching_and_removing_give_the_base_back_bitwise():
    plain, model = base()(TOKENS).data, adapted(rng=1)
    one = model(TOKENS).data
    shake(ml.add_lora(model, ml.LoRAConfig(rank=2, target_modules="*"), name="lora"), rng=2)
    two = model(TOKENS).data
    assert (one != plain).any() and (two != one).any()
    for name, expected in (("default", one), ("lora", two), (None, plain), ("default", one)):
        ml.set_adapter(model, name)
        np.testing.assert_array_equal(model(TOKENS).data, expected)
    with ml.lora_disabled(model):
        np.testing.assert_array_equal(model(TOKENS).data, plain)
    state = base().state_dict()
    ml.remove_lora(model)
    assert model.state_dict().keys() == state.keys()
    np.testing.assert_array_equal(model(TOKENS).data, plain)
    assert all(p.requires_grad for p in model.parameters())


def test_a_base_checkpoint_loads_beside_it_and_text_is_generated_with_and_without_cache():
    model = adapted("float32")
    model.load_state_dict(base("float32").state_dict())
    texts = [model.generate(TOKENS[:, :2], 8, temperature=0, use_cache=cache) for cache in (True, False)]
    np.testing.assert_array_equal(*texts)


def test_dropout_spares_the_base():
    """y = x W^T + b + (c - 1) x' W^T + c s (x' A^T) B^T, with x' = dropout(x)"""
    layer = adapted(dropout=0.5).blocks[0].attn.q_proj
    x = np.random.default_rng(0).standard_normal((50, 8))
    dropped = ml.ops.dropout(x, 0.5, np.random.default_rng(3)).data
    _, full = formula(x, layer, 1.5)
    _, update = formula(dropped, layer, 1.5)
    W, b = layer.weight.data, layer.bias.data
    expected = x @ W.T + b + (update - b - dropped @ W.T)
    y = layer(ml.Tensor(x), np.random.default_rng(3)).data
    np.testing.assert_allclose(y, expected, rtol=1e-11, atol=1e-12)
    assert abs(y - full).max() > 0.1
    np.testing.assert_allclose(layer(ml.Tensor(x)).data, full, rtol=1e-11, atol=1e-12)


# Errors


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rank": 0}, "DoRAConfig: rank = 0"),
        ({"alpha": -1}, "DoRAConfig: alpha = -1"),
        ({"init": "pissa"}, "DoRAConfig: init = 'pissa', expected 'kaiming' or 'gaussian'"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        DoRAConfig(**settings)


@pytest.mark.parametrize("value, length", [(0.0, "0.0"), (np.nan, "nan"), (1e300, "inf")])
def test_a_row_without_direction_is_refused_and_nothing_changes(value, length):
    model = base()
    model.blocks[1].attn.v_proj.weight.data[3] = value
    state, names = model.state_dict(), sorted(vars(model))
    with (
        np.errstate(over="ignore"),
        pytest.raises(ValueError, match=rf"row 3 of blocks\.1\.attn\.v_proj\.weight has length {length}"),
    ):
        ml.add_adapter(model, DoRAConfig(rank=2))
    with pytest.raises(ValueError, match="rank 9 exceeds"):
        ml.add_adapter(model, DoRAConfig(rank=9))
    assert sorted(vars(model)) == names
    assert all(p.requires_grad for p in model.parameters())
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, state[name])
