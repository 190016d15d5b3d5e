"""LoRA: the derivation, the exact start, merging, switching, saving, and what a frozen model spares."""

import copy
import json
import math
import tracemalloc

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora.adapters.files import fingerprint
from minilora.adapters.lora import LoRALinear, lora_layers
from minilora.nn.layers import Linear
from minilora.nn.module import Module
from minilora.nn.storage import load_arrays, save_arrays

CONFIG = ml.GPTConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 6))
TARGETS = np.random.default_rng(1).integers(0, 11, (3, 6))
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")


def base(dtype: str = "float32", rng: int = 0) -> ml.GPT:
    """A GPT whose logits are not tiny, so that a change shows."""
    model = ml.GPT(CONFIG, rng=rng)
    for p in model.parameters():
        p.data *= 8
    return model.astype(dtype)


def shake(model: Module, rng: int = 5, std: float = 0.3) -> Module:
    """Move A and B as training would: B starts at zero, which hides mistakes."""
    generator = np.random.default_rng(rng)
    for layer in lora_layers(model).values():
        layer.lora_A.data[...] = generator.normal(0, std, layer.lora_A.shape)
        layer.lora_B.data[...] = generator.normal(0, std, layer.lora_B.shape)
    return model


def adapted(dtype: str = "float32", rng: int = 5, **settings) -> ml.GPT:
    return shake(ml.add_lora(base(dtype), ml.LoRAConfig(**{"rank": 2, "alpha": 3, **settings})), rng)


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
        assert one[name].dtype == two[name].dtype


def targets_of(*patterns: str) -> set[str]:
    return set(lora_layers(ml.add_lora(ml.GPT(CONFIG), ml.LoRAConfig(rank=2, target_modules=patterns))))


# The derivation


@given(
    n=st.integers(1, 6),
    d_in=st.integers(1, 7),
    d_out=st.integers(1, 7),
    r=st.integers(1, 5),
    s=st.floats(0.1, 8),
    seed=st.integers(0, 2**31),
)
def test_the_pair_the_tape_and_the_formula_agree(n, d_in, d_out, r, s, seed):
    rng = np.random.default_rng(seed)
    shapes = [(n, d_in), (d_out, d_in), (d_out,), (r, d_in), (d_out, r), (n, d_out)]
    x, W, b, A, B, g = (rng.standard_normal(shape) for shape in shapes)

    y, h = ml.lora_forward(x, W, b, A, B, s)
    dx, dA, dB = ml.lora_backward(g, x, h, W, A, B, s)

    # The formula with the update formed in full: W' = W + s B A, so dW' = g^T x, and dB = s dW' A^T, dA = s B^T dW'.
    merged, dW = W + s * B @ A, np.einsum("no,ni->oi", g, x)
    close = {"rtol": 1e-10, "atol": 1e-10}
    np.testing.assert_allclose(y, np.einsum("ni,oi->no", x, merged) + b, **close)
    np.testing.assert_allclose(dx, g @ merged, **close)
    np.testing.assert_allclose(dA, s * B.T @ dW, **close)
    np.testing.assert_allclose(dB, s * dW @ A.T, **close)

    tensors = [ml.Tensor(a, requires_grad=True) for a in (x, W, b, A, B)]
    out = ml.ops.lora_linear(*tensors, s)
    np.testing.assert_allclose(out.data, y, rtol=1e-12, atol=1e-12)
    for tape, pair in zip(ml.grad(out, [tensors[0], *tensors[3:]], cotangent=g), (dx, dA, dB), strict=True):
        np.testing.assert_allclose(tape, pair, rtol=1e-12, atol=1e-12)


def test_the_layer_in_a_model_is_the_pair_of_functions():
    model = adapted("float64", alpha=5, rank=3)
    layer = model.blocks[0].attn.q_proj
    x = np.random.default_rng(0).standard_normal((4, 8))
    W, b, A, B = (p.data for p in (layer.weight, layer.bias, layer.lora_A, layer.lora_B))
    y, h = ml.lora_forward(x, W, b, A, B, 5 / 3)
    out = layer(ml.Tensor(x))
    np.testing.assert_allclose(out.data, y, rtol=1e-12)
    g = np.random.default_rng(1).standard_normal(y.shape)
    _, dA, dB = ml.lora_backward(g, x, h, W, A, B, 5 / 3)
    for tape, pair in zip(ml.grad(out, [layer.lora_A, layer.lora_B], cotangent=g), (dA, dB), strict=True):
        np.testing.assert_allclose(tape, pair, rtol=1e-12, atol=1e-14)


def test_the_first_step_moves_only_b():
    """B = 0 makes dA = 0; dB is not zero."""
    model = ml.add_lora(base("float64"), ml.LoRAConfig(rank=2))
    layer = model.blocks[1].attn.v_proj
    dA, dB = ml.grad(model.loss(TOKENS, TARGETS), [layer.lora_A, layer.lora_B])
    assert not dA.any()
    assert dB.any()


def test_a_layer_without_bias():
    model = ml.GPT(ml.GPTConfig(11, 6, 1, 2, 8, bias=False)).astype("float64")
    shake(ml.add_lora(model, ml.LoRAConfig(rank=2, target_modules="*")))
    before = model(TOKENS).data
    ml.merge_lora(model)
    np.testing.assert_allclose(model(TOKENS).data, before, rtol=1e-12, atol=1e-13)


# Scaling and initialisation


@pytest.mark.parametrize("rank, alpha, stabilized, scale", [(4, 16, False, 4), (4, 16, True, 8), (8, 1, False, 1 / 8)])
def test_scaling(rank, alpha, stabilized, scale):
    config = ml.LoRAConfig(rank=rank, alpha=alpha, rank_stabilized=stabilized)
    assert math.isclose(config.scale, scale, rel_tol=1e-15)
    model = shake(ml.add_lora(base("float64"), config))
    for path, delta in ml.delta_weights(model).items():
        layer = model.get_module(path)
        np.testing.assert_allclose(delta, scale * layer.lora_B.data @ layer.lora_A.data, rtol=1e-13, atol=1e-15)
        assert delta.shape == layer.weight.shape
        assert np.linalg.matrix_rank(delta) == rank


def test_rank_stabilized_scaling_reaches_the_output():
    one = adapted("float64", rank=4, alpha=4, rank_stabilized=True)
    other = adapted("float64", rank=4, alpha=8)  # 4 / sqrt(4) = 8 / 4
    np.testing.assert_allclose(one(TOKENS).data, other(TOKENS).data, rtol=1e-12)


def test_a_rank_out_of_numpy_keeps_the_precision():
    """alpha / rank is then a NumPy number, which would turn a float32 product into float64."""
    model = adapted(rank=np.int64(2))
    assert {delta.dtype for delta in ml.delta_weights(model).values()} == {np.dtype("float32")}
    ml.merge_lora(model)
    assert model(TOKENS).dtype == "float32"


@pytest.mark.parametrize("init", ["kaiming", "gaussian"])
def test_initial_distributions(init):
    base_layer = Linear(100, 80, True, np.random.default_rng(0))
    layer = LoRALinear(base_layer, ml.LoRAConfig(rank=32, init=init), np.random.default_rng(1))
    a = layer.lora_A.data.ravel().astype(float)
    assert a.shape == (3200,)
    assert not layer.lora_B.data.any()
    bound = 1 / math.sqrt(100)  # Kaiming-uniform with a = sqrt(5), as the paper's code draws it
    law = scipy.stats.uniform(-bound, 2 * bound) if init == "kaiming" else scipy.stats.norm(0, 1 / 32)
    assert scipy.stats.kstest(a, law.cdf).pvalue > 1e-3


def test_a_seed_gives_the_same_bits():
    one, two, other = (
        ml.add_lora(base(), ml.LoRAConfig(rank=2), rng=rng).state_dict() for rng in (3, np.random.default_rng(3), 4)
    )
    assert_same(one, two)
    name = "blocks.0.attn.q_proj.lora_A"
    assert (one[name] != other[name]).any()
    assert (one[name] != one["blocks.1.attn.q_proj.lora_A"]).any()


# The exact start


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("init", ["kaiming", "gaussian"])
@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("up_proj",), ("*",)])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_it_starts_exactly_at_the_base_model(dtype, init, targets, rank):
    model = base(dtype)
    state, logits = model.state_dict(), model(TOKENS).data
    config = ml.LoRAConfig(rank=rank, alpha=16, target_modules=targets, init=init)
    assert ml.add_lora(model, config, rng=rank) is model
    np.testing.assert_array_equal(model(TOKENS).data, logits)
    assert model(TOKENS).dtype == dtype
    assert_same(state, {name: a for name, a in model.state_dict().items() if "lora_" not in name})
    assert all(layer.lora_A.data.any() for layer in lora_layers(model).values())


# Patterns


def test_patterns():
    every = {f"blocks.{i}.{'mlp' if k in KINDS[4:] else 'attn'}.{k}" for i in (0, 1) for k in KINDS}
    assert targets_of("q_proj") == {"blocks.0.attn.q_proj", "blocks.1.attn.q_proj"}
    assert targets_of("q_proj", "down_proj") == {name for name in every if name.endswith(("q_proj", "down_proj"))}
    assert targets_of("*.mlp.*") == {name for name in every if ".mlp." in name}
    assert targets_of("blocks.0.*") == {name for name in every if name.startswith("blocks.0.")}
    assert targets_of("*") == every
    assert targets_of("blocks.1.attn.k_proj") == {"blocks.1.attn.k_proj"}
    assert targets_of("attn.k_proj") == {"blocks.0.attn.k_proj", "blocks.1.attn.k_proj"}
    assert targets_of("q_proj", "*.q_proj", "*") == every  # named twice, adapted once


def test_a_single_pattern_may_be_a_string():
    assert ml.LoRAConfig(target_modules="q_proj").target_modules == ("q_proj",)
    assert ml.LoRAConfig(target_modules=["q_proj", "v_proj"]).target_modules == ("q_proj", "v_proj")


def test_a_part_of_a_name_is_no_match():
    """'proj' ends every name, 'q' begins one, 'Q_PROJ' is another name: none of them is a last part."""
    for pattern in ("proj", "q", "Q_PROJ", "blocks.0", "ln_f"):
        with pytest.raises(ValueError, match="matches nothing"):
            targets_of(pattern)


# Errors, each of which leaves everything as it was


@pytest.mark.parametrize("rank", [0, -1, 2.0, "8", None])
def test_rank_must_be_a_positive_integer(rank):
    with pytest.raises(ValueError, match=f"rank = {rank!r}, expected a positive integer"):
        ml.LoRAConfig(rank=rank)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"alpha": 0}, "alpha = 0"),
        ({"alpha": float("nan")}, "alpha = nan"),
        ({"alpha": float("inf")}, "alpha = inf"),
        ({"target_modules": ()}, "target_modules is empty"),
        ({"dropout": 1.0}, r"dropout = 1\.0"),
        ({"dropout": -0.1}, r"dropout = -0\.1"),
        ({"init": "zeros"}, "init = 'zeros', expected 'kaiming' or 'gaussian'"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ml.LoRAConfig(**settings)


def snapshot(model):
    return model.state_dict(), [p.requires_grad for p in model.parameters()], sorted(vars(model))


def assert_untouched(model, before):
    assert_same(model.state_dict(), before[0])
    assert [p.requires_grad for p in model.parameters()] == before[1]
    assert sorted(vars(model)) == before[2]


def test_a_pattern_that_matches_nothing_lists_the_names_there_are():
    model = ml.GPT(CONFIG)
    before = snapshot(model)
    with pytest.raises(ValueError, match="'query' matches nothing; there are q_proj, k_proj, v_proj, o_proj") as error:
        ml.add_lora(model, ml.LoRAConfig(rank=2, target_modules=("q_proj", "query")))
    assert all(kind in str(error.value) for kind in KINDS)
    assert_untouched(model, before)


def test_a_rank_too_large_names_the_layer():
    model = ml.GPT(CONFIG)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"rank 9 exceeds min\(d_in, d_out\) = 8 of blocks\.0\.mlp\.up_proj"):
        ml.add_lora(model, ml.LoRAConfig(rank=9, target_modules="up_proj"))
    assert_untouched(model, before)


def test_adding_twice_merging_twice_unmerging_and_removing_what_is_not_there():
    plain = ml.GPT(CONFIG)
    before = snapshot(plain)
    for function in (ml.merge_lora, ml.unmerge_lora, ml.remove_lora, ml.delta_weights):
        with pytest.raises(ValueError, match=f"{function.__name__}: the model has no (active )?adapter"):
            function(plain)
    with pytest.raises(ValueError, match="no active adapter"), ml.lora_disabled(plain):
        pass
    assert_untouched(plain, before)

    model = adapted()
    before = snapshot(model)
    with pytest.raises(ValueError, match="add_adapter: the model has an adapter 'default' already"):
        ml.add_lora(model, ml.LoRAConfig(rank=2))
    with pytest.raises(ValueError, match="unmerge_adapter: the adapter is not merged"):
        ml.unmerge_lora(model)
    assert_untouched(model, before)

    ml.merge_lora(model)
    before = snapshot(model)
    with pytest.raises(ValueError, match="merge_adapter: the adapter is merged already"):
        ml.merge_lora(model)
    with pytest.raises(ValueError, match="add_adapter: the adapter is merged"):
        ml.add_lora(model, ml.LoRAConfig(rank=2), name="second")
    with pytest.raises(ValueError, match="set_adapter: the adapter is merged"):
        ml.set_adapter(model, None)
    assert_untouched(model, before)


def test_a_module_without_linear_layers_inside():
    with pytest.raises(ValueError, match="no linear layer inside this Linear"):
        ml.add_lora(Linear(3, 3, True, np.random.default_rng(0)), ml.LoRAConfig(rank=1, target_modules="*"))


# Merging


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("*",)])
@pytest.mark.parametrize("stabilized", [False, True])
@pytest.mark.parametrize("rank", [1, 4, 8])
def test_merging_keeps_the_outputs_and_unmerging_restores_every_bit(targets, stabilized, rank):
    model = adapted("float64", rank=rank, target_modules=targets, rank_stabilized=stabilized)
    before, state = model(TOKENS).data, model.state_dict()
    with ml.lora_disabled(model):
        plain = model(TOKENS).data
    assert np.abs(before - plain).max() > 1e-2 * np.abs(plain).max()  # the adapter does something
    ml.merge_lora(model)
    merged = model(TOKENS).data
    assert np.abs(merged - before).max() <= 1e-12 * np.abs(before).max()
    deltas = ml.delta_weights(model)
    for path, delta in deltas.items():
        np.testing.assert_array_equal(model.get_module(path).weight.data, state[f"{path}.weight"] + delta)
    ml.unmerge_lora(model)
    assert_same(model.state_dict(), state)
    np.testing.assert_array_equal(model(TOKENS).data, before)


def test_unmerging_restores_every_bit_in_float32():
    model = adapted(target_modules="*")
    state = model.state_dict()
    for _ in range(3):
        ml.merge_lora(model)
        ml.unmerge_lora(model)
    assert_same(model.state_dict(), state)


def test_a_merged_model_costs_what_the_base_model_costs():
    """No LoRA primitive is on the tape: only the layers that a base model has."""
    model = adapted(target_modules="*")
    ml.merge_lora(model)
    x = ml.Tensor(np.ones((2, 8), np.float32), requires_grad=True)
    assert model.blocks[0].attn.q_proj(x).node.name == "linear"
    assert not model.loss(TOKENS, TARGETS).requires_grad


def test_precision_may_change_while_merged():
    model = adapted()
    state = model.state_dict()
    ml.merge_lora(model)
    model.astype("float64")
    ml.unmerge_lora(model)
    assert_same(model.state_dict(), {name: a.astype("float64") for name, a in state.items()})


# Removing


def test_remove_gives_the_base_model_back():
    model = base()
    for name, p in model.named_parameters():
        p.requires_grad = not name.startswith("wpe")  # somebody had frozen the positions before
    state, logits, names = model.state_dict(), model(TOKENS).data, sorted(vars(model))
    held = dict(model.named_parameters())
    ml.add_lora(model, ml.LoRAConfig(rank=2, target_modules="*"))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name in model.state_dict() if "lora_" in name
    }
    shake(model)
    assert ml.remove_lora(model) is model
    assert_same(model.state_dict(), state)
    np.testing.assert_array_equal(model(TOKENS).data, logits)
    assert sorted(vars(model)) == names
    for name, p in model.named_parameters():
        assert p is held[name]
        assert p.requires_grad == (not name.startswith("wpe"))
    assert not lora_layers(model)
    ml.add_lora(model, ml.LoRAConfig(rank=2))  # and it can be adapted again


def test_remove_while_merged_leaves_the_update_in_the_weights():
    model = adapted("float64")
    ml.merge_lora(model)
    merged = {name: a for name, a in model.state_dict().items() if "lora_" not in name}
    logits = model(TOKENS).data
    ml.remove_lora(model)
    assert_same(model.state_dict(), merged)
    np.testing.assert_array_equal(model(TOKENS).data, logits)
    assert all(p.requires_grad for p in model.parameters())


# Disabling


@pytest.mark.parametrize("merged", [False, True])
def test_disabled_is_the_base_model_also_nested_and_after_an_exception(merged):
    plain = base("float64")(TOKENS).data
    model = adapted("float64")
    if merged:
        ml.merge_lora(model)
    before, state = model(TOKENS).data, model.state_dict()
    with ml.lora_disabled(model) as same:
        assert same is model
        np.testing.assert_array_equal(model(TOKENS).data, plain)
        with ml.lora_disabled(model):
            np.testing.assert_array_equal(model(TOKENS).data, plain)
        np.testing.assert_array_equal(model(TOKENS).data, plain)
    np.testing.assert_array_equal(model(TOKENS).data, before)
    with pytest.raises(KeyError, match="inside"), ml.lora_disabled(model):
        raise KeyError("inside")
    np.testing.assert_array_equal(model(TOKENS).data, before)
    assert_same(model.state_dict(), state)
    if merged:
        ml.unmerge_lora(model)
        np.testing.assert_allclose(model(TOKENS).data, before, rtol=1e-11, atol=1e-12)


def test_no_merging_or_unmerging_while_disabled():
    """Leaving the block would put weights back that no longer belong there."""
    model = adapted("float64")
    before = model(TOKENS).data
    with ml.lora_disabled(model), pytest.raises(ValueError, match="merge_adapter: the adapter is disabled"):
        ml.merge_lora(model)
    np.testing.assert_array_equal(model(TOKENS).data, before)
    ml.merge_lora(model)
    with ml.lora_disabled(model), pytest.raises(ValueError, match="unmerge_adapter: the adapter is disabled"):
        ml.unmerge_lora(model)
    ml.unmerge_lora(model)
    np.testing.assert_array_equal(model(TOKENS).data, before)


# Several adapters on one base


def test_switching_moves_references_and_copies_nothing():
    model = base("float64")
    weights = {name: p for name, p in model.named_parameters()}
    arrays = {name: p.data for name, p in model.named_parameters()}
    plain = model(TOKENS).data

    shake(ml.add_lora(model, ml.LoRAConfig(rank=2), name="one"), rng=1)
    one = model(TOKENS).data
    ml.add_lora(model, ml.LoRAConfig(rank=3, target_modules="*.mlp.*"), name="two")
    np.testing.assert_array_equal(model(TOKENS).data, plain)  # a second adapter starts at the base, too
    assert set(lora_layers(model)) == {f"blocks.{i}.mlp.{k}" for i in (0, 1) for k in ("up_proj", "down_proj")}
    shake(model, rng=2)
    two = model(TOKENS).data

    for name, expected in (("one", one), ("two", two), (None, plain), ("two", two), ("one", one)):
        ml.set_adapter(model, name)
        assert model.active_adapter == name
        np.testing.assert_array_equal(model(TOKENS).data, expected)
        for path, p in model.named_parameters():
            if "lora_" not in path:
                assert p is weights[path]
                assert p.data is arrays[path]
                assert not p.requires_grad

    with pytest.raises(ValueError, match="no adapter 'three'; there are one, two"):
        ml.set_adapter(model, "three")
    np.testing.assert_array_equal(model(TOKENS).data, one)
    ml.remove_lora(model)
    np.testing.assert_array_equal(model(TOKENS).data, plain)
    assert all(p.requires_grad for p in model.parameters())


def test_a_merged_and_unmerged_adapter_leaves_the_others_alone():
    model = adapted("float64", rng=1)
    one = model(TOKENS).data
    shake(ml.add_lora(model, ml.LoRAConfig(rank=2), name="two"), rng=2)
    two = model(TOKENS).data
    ml.merge_lora(model)
    ml.unmerge_lora(model)
    np.testing.assert_array_equal(model(TOKENS).data, two)
    ml.set_adapter(model, "default")
    np.testing.assert_array_equal(model(TOKENS).data, one)


def test_an_adapter_follows_the_precision_of_its_base():
    model = shake(ml.add_lora(base(), ml.LoRAConfig(rank=2), name="one"))
    ml.add_lora(model, ml.LoRAConfig(rank=2), name="two")
    model.astype("float64")
    ml.set_adapter(model, "one")
    assert {p.dtype for p in model.parameters()} == {np.dtype("float64")}
    assert {g.dtype for g in ml.grad(model.loss(TOKENS, TARGETS), model.parameters(True))} == {np.dtype("float64")}


# Training


def test_only_a_and_b_get_gradients_and_only_they_change():
    model = ml.add_lora(base(), ml.LoRAConfig(rank=2, target_modules=("q_proj", "down_proj")))
    state = model.state_dict()
    loss = model.loss(TOKENS, TARGETS)
    loss.backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None) == ("lora_" in name)
    for optimizer in (ml.AdamW(model.named_parameters(), lr=0.01), ml.SGD(model.named_parameters(), lr=0.1)):
        for _ in range(3):
            ml.train_step(model, optimizer, TOKENS, TARGETS)
    for name, array in model.state_dict().items():
        if "lora_" in name:
            assert (array != state[name]).any(), name
        else:
            np.testing.assert_array_equal(array, state[name], err_msg=name)


def test_the_adapter_learns():
    model = ml.add_lora(base(), ml.LoRAConfig(rank=4, target_modules="*"))
    optimizer = ml.AdamW(model.named_parameters(), lr=0.02)
    losses = [ml.train_step(model, optimizer, TOKENS, TARGETS) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]


def tape_bytes(model: ml.GPT, tokens: np.ndarray) -> int:
    """What stays allocated between the forward and the backward pass."""
    model.loss(tokens, tokens)  # once unmeasured, so that nothing made on first use is counted
    tracemalloc.start()
    loss = model.loss(tokens, tokens)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert loss.requires_grad
    return held


def test_frozen_layers_keep_no_activation():
    config = ml.GPTConfig(vocab_size=32, block_size=32, n_layer=4, n_head=2, n_embd=64)
    tokens = np.random.default_rng(0).integers(0, 32, (8, 32))
    full = tape_bytes(ml.GPT(config), tokens)
    lora = ml.add_lora(ml.GPT(config), ml.LoRAConfig(rank=2, target_modules="v_proj"))
    activation = 8 * 32 * 64 * 4  # bytes of one (B, T, C) array in float32
    # In every block at least the inputs of o_proj (C) and down_proj (4C) go, and in the first one what lies below v.
    assert full - tape_bytes(lora, tokens) >= 4 * 5 * activation
    assert tape_bytes(lora, tokens) < 0.75 * full
    last = ml.add_lora(ml.GPT(config), ml.LoRAConfig(rank=2, target_modules="blocks.3.attn.v_proj"))
    assert tape_bytes(last, tokens) < 0.3 * full  # nothing at all of the three blocks below
    ml.merge_lora(lora)
    with pytest.raises(AssertionError):
        tape_bytes(lora, tokens)


def test_deepcopy_is_independent():
    model = adapted("float64")
    shake(ml.add_lora(model, ml.LoRAConfig(rank=2), name="two"), rng=8)
    state, logits = model.state_dict(), model(TOKENS).data
    twin = copy.deepcopy(model)
    assert_same(twin.state_dict(), state)
    np.testing.assert_array_equal(twin(TOKENS).data, logits)
    assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in model.parameters()]
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
    ml.train_step(twin, ml.SGD(twin.named_parameters(), lr=1.0), TOKENS, TARGETS)
    ml.set_adapter(twin, "default")
    ml.merge_lora(twin)
    ml.remove_lora(twin)
    for p in twin.parameters():
        p.data += 1
    assert_same(model.state_dict(), state)
    np.testing.assert_array_equal(model(TOKENS).data, logits)
    assert model.active_adapter == "two"
    ml.remove_lora(copy.deepcopy(model))
    assert not any(p.requires_grad for name, p in model.named_parameters() if "lora_" not in name)


# Dropout


def test_dropout_is_on_the_input_of_a_alone():
    model = adapted("float64", dropout=0.5)
    plain = adapted("float64")
    np.testing.assert_array_equal(model(TOKENS).data, plain(TOKENS).data)
    one, two, other = (model(TOKENS, rng=np.random.default_rng(seed)).data for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()

    layer = model.blocks[0].attn.q_proj
    x = np.random.default_rng(0).standard_normal((1000, 8))
    y = layer(ml.Tensor(x), np.random.default_rng(3)).data
    dropped = ml.ops.dropout(x, 0.5, np.random.default_rng(3)).data
    assert set(np.unique((dropped / x).round(12))) == {0.0, 2.0}
    s, (W, b, A, B) = 1.5, (p.data for p in (layer.weight, layer.bias, layer.lora_A, layer.lora_B))
    np.testing.assert_allclose(y, x @ W.T + b + s * dropped @ A.T @ B.T, rtol=1e-11, atol=1e-12)


def test_dropout_has_gradients_and_none_while_merged_or_disabled():
    model = adapted("float64", dropout=0.5)
    parameters = model.parameters(trainable=True)
    report = ml.gradcheck(
        lambda *_: model.loss(TOKENS, TARGETS, np.random.default_rng(0)), parameters, method="complex-step"
    )
    assert report.passed, str(report)
    with ml.lora_disabled(model):
        np.testing.assert_array_equal(model(TOKENS, np.random.default_rng(0)).data, base("float64")(TOKENS).data)
    ml.merge_lora(model)
    np.testing.assert_array_equal(model(TOKENS, np.random.default_rng(0)).data, model(TOKENS).data)


# Files


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_adapter_comes_back_bit_for_bit(tmp_path, dtype):
    settings = {"rank": 3, "alpha": 5, "target_modules": ("q_proj", "*.mlp.*"), "dropout": 0.1, "rank_stabilized": True}
    model = adapted(dtype, **settings)
    path = ml.save_adapter(model, tmp_path / "adapter.npz")
    loaded = ml.load_adapter(base(dtype), path)
    assert_same(loaded.state_dict(), model.state_dict())
    np.testing.assert_array_equal(loaded(TOKENS).data, model(TOKENS).data)
    assert next(iter(lora_layers(loaded).values())).config == ml.LoRAConfig(**settings)
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    arrays, _ = load_arrays(path, "adapter")
    assert all("lora_" in name for name in arrays)  # the adapter alone


def test_a_merged_adapter_is_saved_as_itself(tmp_path):
    model = adapted()
    unmerged = ml.save_adapter(model, tmp_path / "unmerged.npz")
    ml.merge_lora(model)
    merged = ml.save_adapter(model, tmp_path / "merged.npz")
    one, two = (load_arrays(path, "adapter") for path in (unmerged, merged))
    assert_same(one[0], two[0])
    assert one[1] == two[1]


def test_the_rank_may_be_a_numpy_integer(tmp_path):
    path = ml.save_adapter(adapted(rank=np.int64(2)), tmp_path / "adapter.npz")
    assert lora_layers(ml.load_adapter(base(), path))


def test_loading_puts_an_adapter_beside_or_in_the_place_of_others(tmp_path):
    model = adapted("float64", rng=1)
    one = model(TOKENS).data
    path = ml.save_adapter(model, tmp_path / "one.npz")
    shake(model, rng=2)
    two = model(TOKENS).data
    ml.load_adapter(model, path, name="saved")
    np.testing.assert_array_equal(model(TOKENS).data, one)
    ml.set_adapter(model, "default")
    np.testing.assert_array_equal(model(TOKENS).data, two)
    ml.load_adapter(model, path)  # of the same name: replaced
    np.testing.assert_array_equal(model(TOKENS).data, one)
    assert list(model.adapters) == ["default", "saved"]


def check_refused(model, path, message):
    before, logits = snapshot(model), model(TOKENS).data
    with pytest.raises(ValueError, match=message) as error:
        ml.load_adapter(model, path)
    assert path.name in str(error.value)
    assert_untouched(model, before)
    np.testing.assert_array_equal(model(TOKENS).data, logits)


def test_an_adapter_of_another_base_is_refused(tmp_path):
    path = ml.save_adapter(adapted(), tmp_path / "adapter.npz")
    for other in (base(rng=1), ml.GPT(ml.GPTConfig(11, 6, 2, 4, 8), rng=1), adapted(rng=9)):
        if lora_layers(other):
            other.wte.weight.data[0, 0] += 1e-3  # one number of the base has moved
        check_refused(other, path, "trained on another base model")
    shape = ml.GPT(ml.GPTConfig(11, 6, 1, 2, 8))
    with pytest.raises(ValueError, match="another base"):
        ml.load_adapter(shape, path)
    assert not lora_layers(shape)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_damaged_adapter_is_refused(tmp_path, share):
    path = ml.save_adapter(adapted(), tmp_path / "adapter.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    check_refused(base(), path, "no complete minilora file")
    check_refused(adapted(rng=9), path, "no complete minilora file")


def test_adapters_that_do_not_fit_are_refused(tmp_path):
    path = ml.save_adapter(adapted(), tmp_path / "adapter.npz")
    arrays, header = load_arrays(path, "adapter")
    config = header["methods"][0]["config"]
    a = "blocks.0.attn.q_proj.lora_A"

    def write(changed=None, **fields):
        return save_arrays(path, arrays if changed is None else changed, {**header, **fields})

    check_refused(base(), write({**arrays, a: arrays[a][:1]}), r"shape \(1, 8\) for blocks\.0\.attn\.q_proj\.lora_A")
    check_refused(base(), write({k: v for k, v in arrays.items() if k != a}), "nothing for blocks")
    check_refused(
        base(), write({**arrays, "blocks.9.attn.q_proj.lora_A": arrays[a]}), r"adapts blocks\.9\.attn\.q_proj"
    )
    check_refused(base(), write({**arrays, a: np.full((2, 8), "x")}), "has dtype <U1, expected numbers")
    check_refused(base(), write({}), "holds no parameters")
    check_refused(base(), write(methods=[{"kind": "lora", "config": {**config, "rank": 0}}]), "rank = 0")
    check_refused(base(), write(methods=[{"kind": "lora", "config": {**config, "colour": 3}}]), "colour")
    lacking = {key: value for key, value in header.items() if key != "base"}
    check_refused(base(), save_arrays(path, arrays, lacking), "header has no 'base'")
    check_refused(base(), save_arrays(path, arrays, {**header, "kind": "model"}), "holds 'model', expected 'adapter'")
    np.savez(path, header=np.array(json.dumps(header)), **{a: np.array([{}], dtype=object)})
    check_refused(base(), path, "has dtype object, expected numbers")


def test_loading_onto_a_merged_model_is_refused(tmp_path):
    model = adapted()
    path = ml.save_adapter(model, tmp_path / "adapter.npz")
    ml.merge_lora(model)
    before = snapshot(model)
    with pytest.raises(ValueError, match="load_adapter: the adapter is merged"):
        ml.load_adapter(model, path)
    assert_untouched(model, before)
    with pytest.raises(FileNotFoundError):
        ml.load_adapter(base(), tmp_path / "nowhere.npz")


# The fingerprint


def test_the_fingerprint_is_the_base_models_own():
    model = base()
    plain = fingerprint(model)
    assert plain == fingerprint(base()) == fingerprint(copy.deepcopy(model))
    assert fingerprint(base(rng=1)) != plain
    ml.add_lora(model, ml.LoRAConfig(rank=2))
    assert fingerprint(model) == plain
    shake(model)
    assert fingerprint(model) == plain
    ml.merge_lora(model)
    assert fingerprint(model) == plain
    with ml.lora_disabled(model):
        assert fingerprint(model) == plain
    model.astype("float64")
    assert fingerprint(model) == plain
    ml.unmerge_lora(model)
    assert fingerprint(model) == plain
    ml.set_adapter(model, None)
    assert fingerprint(model) == plain
    for name in base().state_dict():
        other = base()
        dict(other.named_parameters())[name].data.flat[0] += 0.01
        assert fingerprint(other) != plain, name
    ml.set_adapter(model, "default")
    ml.merge_lora(model)
    ml.remove_lora(model)
    assert fingerprint(model) != plain  # the update is in the weights now: another base


def test_loading_into_merged_weights_is_refused():
    model = ml.add_lora(ml.GPT(ml.GPTConfig(11, 6, 1, 2, 8)), ml.LoRAConfig(rank=2))
    state = model.state_dict()
    ml.merge_lora(model)
    before = model.state_dict()
    with pytest.raises(ValueError, match="unmerge_lora"):
        model.load_state_dict(state)
    assert all(np.array_equal(before[name], value) for name, value in model.state_dict().items())
