"""PiSSA: the singular vectors it starts from, the exact start, and that its update is the paper's."""

import numpy as np
import pytest
import scipy.linalg
from adapters.variants import GPT, TARGETS, TOKENS, base, shake

import minilora as ml
from minilora.adapters.lora import LoRALinear
from minilora.adapters.state import adapter_parameters
from minilora.analysis.methods import plan

SETTINGS = {"rank": 2, "alpha": 3, "init": "pissa"}


def adapted(dtype="float64", rng=5, **settings):
    return shake(ml.add_lora(base(dtype), ml.LoRAConfig(**{**SETTINGS, **settings})), rng)


def layers(model):
    return {path: m for path, m in model.named_modules() if isinstance(m, LoRALinear) and m.corrected}


@pytest.mark.parametrize("stabilized", [False, True])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_and_b_start_as_the_largest_singular_directions_evenly_shared(rank, stabilized):
    config = ml.LoRAConfig(rank, 3, "*", init="pissa", rank_stabilized=stabilized)
    model = ml.add_lora(base(), config)
    assert len(layers(model)) == 12
    for layer in layers(model).values():
        A, B, s = layer.lora_A.data, layer.lora_B.data, config.scale
        U, S, Vt = scipy.linalg.svd(layer.weight.data, full_matrices=False, lapack_driver="gesvd")
        np.testing.assert_allclose(s * B @ A, U[:, :rank] * S[:rank] @ Vt[:rank], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(s * A @ A.T, np.diag(S[:rank]), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(s * B.T @ B, np.diag(S[:rank]), rtol=1e-12, atol=1e-13)
        residual = np.linalg.svd(layer.weight.data - s * B @ A, compute_uv=False)
        np.testing.assert_allclose(residual[: len(S) - rank], S[rank:], rtol=1e-10)
        assert layer.lora_A.data is not layer.lora_A0.data


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("settings", [{}, {"target_modules": "*", "rank": 8}, {"dropout": 0.5}])
def test_it_starts_exactly_at_the_base_model(dtype, settings):
    model = base(dtype)
    logits, state = model(TOKENS).data, model.state_dict()
    ml.add_lora(model, ml.LoRAConfig(**{**SETTINGS, **settings}))
    np.testing.assert_array_equal(model(TOKENS).data, logits)
    np.testing.assert_array_equal(model(TOKENS[:1, :1]).data, base(dtype)(TOKENS[:1, :1]).data)
    np.testing.assert_array_equal(model(TOKENS, np.random.default_rng(0)).data, logits)  # with dropout, if any
    assert {p.dtype for p in model.parameters()} == {np.dtype(dtype)}
    assert all((model.state_dict()[name] == value).all() for name, value in state.items())  # W itself is untouched
    assert all(not delta.any() for delta in ml.delta_weights(model).values())


def test_both_gradients_are_there_from_the_first_step():
    """LoRA's dA is zero at the start; here neither is."""
    model = ml.add_lora(base(), ml.LoRAConfig(**SETTINGS))
    for g in ml.grad(model.loss(TOKENS, TARGETS), model.parameters(trainable=True)):
        assert g.all()


def test_the_update_is_the_papers():
    """y = x (W - s B0 A0)^T + b + s (x A^T) B^T, of rank 2r"""
    model = adapted()
    x = np.random.default_rng(0).standard_normal((4, 8))
    for path, layer in layers(model).items():
        parts = (layer.weight, layer.bias, layer.lora_A, layer.lora_B, layer.lora_A0, layer.lora_B0)
        W, b, A, B, A0, B0 = (p.data for p in parts)
        expected = x @ (W - 1.5 * B0 @ A0).T + b + 1.5 * (x @ A.T) @ B.T
        np.testing.assert_allclose(layer(ml.Tensor(x)).data, expected, rtol=1e-12, atol=1e-13)
        delta = ml.delta_weights(model)[path]
        np.testing.assert_allclose(delta, 1.5 * (B @ A - B0 @ A0), rtol=1e-12, atol=1e-13)
        assert np.linalg.matrix_rank(delta) == 4


def test_a_small_step_is_not_lost_in_rounding():
    """In float32 the difference of s B A and s B0 A0 is rounded at 1e-7 of them; the factors' differences are not."""
    model = ml.add_lora(base("float32"), ml.LoRAConfig(**SETTINGS))
    layer = model.blocks[0].attn.q_proj
    layer.lora_B.data += np.float32(1e-6)
    A, B, A0, B0 = (p.data.astype(float) for p in (layer.lora_A, layer.lora_B, layer.lora_A0, layer.lora_B0))
    exact = 1.5 * (B @ A - B0 @ A0)
    np.testing.assert_allclose(layer.delta(), exact, rtol=0, atol=1e-6 * abs(exact).max())


@pytest.mark.parametrize("method", ["central", "complex-step", "directional"])
def test_gradients(method):
    model = adapted(target_modules=("v_proj", "up_proj"))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    report = ml.gradcheck(lambda *_: model.loss(TOKENS, TARGETS), list(trained.values()), method, names=list(trained))
    assert report.passed, str(report)


# What every method must do


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("*",)])
def test_what_is_trained_is_loras(targets):
    """Names and shapes of A and B are the formula's; A0 and B0 are as many again, and frozen."""
    model = ml.add_lora(base(), ml.LoRAConfig(rank=3, target_modules=targets, init="pissa"))
    trained = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    assert trained == plan(GPT, "lora", rank=3, target_modules=targets).trainable
    frozen = {name: p.shape for name, p in adapter_parameters(model).items() if not p.requires_grad}
    assert frozen == {f"{name}0": shape for name, shape in trained.items()}


def test_training_moves_a_and_b_alone():
    model = ml.add_lora(base("float32"), ml.LoRAConfig(rank=4, target_modules="*", init="pissa"))
    state = model.state_dict()
    optimizer = ml.AdamW(model.named_parameters(), lr=0.03)
    losses = [ml.train_step(model, optimizer, TOKENS, TARGETS) for _ in range(60)]
    assert losses[-1] < 0.8 * losses[0]
    for name, value in model.state_dict().items():
        assert name.endswith(("lora_A", "lora_B")) == bool((value != state[name]).any()), name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_saved_and_loaded_it_has_the_same_bits(tmp_path, dtype):
    model = adapted(dtype, target_modules=("q_proj", "*.mlp.*"))
    loaded = ml.load_adapter(base(dtype), ml.save_adapter(model, tmp_path / "pissa.npz"))
    np.testing.assert_array_equal(loaded(TOKENS).data, model(TOKENS).data)
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(loaded.state_dict()[name], value)


def test_merging_keeps_the_outputs_and_unmerging_restores_every_bit():
    model = adapted(target_modules="*")
    before, state = model(TOKENS).data, model.state_dict()
    ml.merge_lora(model)
    np.testing.assert_allclose(model(TOKENS).data, before, rtol=1e-12, atol=1e-12)
    ml.unmerge_lora(model)
    assert all((value == state[name]).all() for name, value in model.state_dict().items())
    np.testing.assert_array_equal(model(TOKENS).data, before)


def test_disabling_switching_and_removing_give_the_base_back_bitwise():
    plain, model = base()(TOKENS).data, adapted(rng=1)
    one = model(TOKENS).data
    ml.add_lora(model, ml.LoRAConfig(**{**SETTINGS, "rank": 3}), name="two")
    np.testing.assert_array_equal(model(TOKENS).data, plain)  # of the base, not of what the first adapter made of it
    shake(model, rng=2)
    two = model(TOKENS).data
    for name, expected in (("default", one), ("two", two), (None, plain), ("default", one)):
        ml.set_adapter(model, name)
        np.testing.assert_array_equal(model(TOKENS).data, expected)
    with ml.lora_disabled(model):
        np.testing.assert_array_equal(model(TOKENS).data, plain)
    ml.remove_lora(model)
    assert model.state_dict().keys() == base().state_dict().keys()
    np.testing.assert_array_equal(model(TOKENS).data, plain)
    assert all(p.requires_grad for p in model.parameters())


def test_a_base_checkpoint_loads_beside_it_and_text_is_generated_with_and_without_cache():
    model = adapted("float32")
    model.load_state_dict(base("float32").state_dict())
    texts = [model.generate(TOKENS[:, :2], 8, temperature=0, use_cache=cache) for cache in (True, False)]
    np.testing.assert_array_equal(*texts)


def test_a_weight_that_is_not_finite_is_refused_and_nothing_changes():
    model = base()
    model.blocks[1].attn.v_proj.weight.data[3, 2] = np.nan
    names = sorted(vars(model))
    with pytest.raises(ValueError, match=r"pissa: a weight \(8, 8\) holds values that are not finite"):
        ml.add_lora(model, ml.LoRAConfig(**SETTINGS))
    with pytest.raises(ValueError, match="rank 9 exceeds"):
        ml.add_lora(model, ml.LoRAConfig(**{**SETTINGS, "rank": 9}))
    assert sorted(vars(model)) == names
    assert all(p.requires_grad for p in model.parameters())
