"""Bottleneck adapters: what they compute, where they stand, how they start."""

import math

import numpy as np
import pytest
import scipy.stats

import minilora as ml
from minilora.adapters.bottleneck import Bottleneck, BottleneckConfig, HoulsbyConfig, PfeifferConfig
from minilora.adapters.state import adapter_parameters
from minilora.nn.layers import Linear

CONFIG = ml.GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=8)
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 5))


def bottleneck(**settings):
    """A bottleneck with every number of it drawn anew."""
    rng = np.random.default_rng(0)
    adapter = Bottleneck(8, BottleneckConfig(bottleneck=3, **settings), rng).astype("float64")
    for p in adapter.parameters():
        p.data[...] = rng.standard_normal(p.shape)
    return adapter


def relu(x):
    return np.maximum(x, 0)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("f", [relu, gelu])
@pytest.mark.parametrize("norm", [False, True])
def test_the_equation(f, norm):
    adapter = bottleneck(activation=f.__name__, adapter_norm=norm)
    state = adapter.state_dict()
    x = np.random.default_rng(1).standard_normal((2, 5, 8))
    n = x
    if norm:
        centred = x - x.mean(axis=-1, keepdims=True)
        n = centred / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5) * state["norm.weight"] + state["norm.bias"]
    h = f(n @ state["down.weight"].T + state["down.bias"])
    expected = x + h @ state["up.weight"].T + state["up.bias"]
    np.testing.assert_allclose(adapter(ml.Tensor(x)).data, expected, rtol=1e-12, atol=1e-12)


def test_the_narrowest_has_one_number_inside():
    """y = x + w_up f(w_down x + b_down) + b_up with vectors for matrices."""
    model = ml.add_adapter(ml.GPT(CONFIG), PfeifferConfig(1))
    assert model.count(trainable=True) == 2 * ((8 + 1) + (8 + 8))  # two blocks
    assert all(np.isfinite(g).all() for g in ml.grad(model.loss(TOKENS, TOKENS), model.parameters(trainable=True)))


@pytest.mark.parametrize("config, places", [(HoulsbyConfig(3), ("attn", "mlp")), (PfeifferConfig(3), ("mlp",))])
@pytest.mark.parametrize("bias", [True, False])
def test_they_stand_behind_a_part_and_before_the_sum(config, places, bias):
    """y = x + adapter(attention(norm(x))): a bottleneck that returns zero takes its part out of the block."""
    model = ml.GPT(ml.GPTConfig(11, 8, 2, 2, 8, bias=bias)).astype("float64")
    ml.add_adapter(model, config)
    names = {name.rpartition(".adapter.")[0] for name in adapter_parameters(model)}
    assert names == {f"blocks.{i}.{place}" for i in (0, 1) for place in places}
    block = model.blocks[1]
    x = ml.Tensor(np.random.default_rng(1).standard_normal((2, 5, 8)))
    after_attention = x + block.attn(block.ln_1(x))
    np.testing.assert_allclose(block(x).data, (after_attention + block.mlp(block.ln_2(after_attention))).data)

    adapter = getattr(block, places[-1]).adapter
    inside = block.mlp.down_proj(ml.ops.gelu(block.mlp.up_proj(block.ln_2(after_attention))))
    adapter.up.bias.data[...] = 3.0
    np.testing.assert_allclose(block(x).data, (after_attention + inside).data + 3.0, rtol=1e-12)


@pytest.mark.parametrize("config", [HoulsbyConfig(3), PfeifferConfig(3, adapter_norm=True)])
def test_the_start(config):
    model = ml.add_adapter(ml.GPT(CONFIG), config, rng=4)
    for name, p in adapter_parameters(model).items():
        assert p.data.any() == name.endswith(("down.weight", "norm.weight")), name
    same, other = (ml.add_adapter(ml.GPT(CONFIG), config, rng=rng).state_dict() for rng in (4, 5))
    name = "blocks.0.mlp.adapter.down.weight"
    np.testing.assert_array_equal(same[name], model.state_dict()[name])
    assert (other[name] != same[name]).any()
    assert (same[name] != same["blocks.1.mlp.adapter.down.weight"]).any()
    # up = 0 stops every gradient but its own
    parameters = adapter_parameters(model)
    gradients = ml.grad(model.loss(TOKENS, TOKENS), list(parameters.values()))
    for name, g in zip(parameters, gradients, strict=True):
        assert g.any() == (".up." in name), name


def test_the_initial_spread():
    weights = Bottleneck(100, BottleneckConfig(bottleneck=40), np.random.default_rng(0)).down.weight.data.ravel()
    law = scipy.stats.norm(0, 1 / math.sqrt(300))  # as wide as U(-1/sqrt(100), 1/sqrt(100))
    assert scipy.stats.kstest(weights, law.cdf).pvalue > 1e-3


def test_dropout_stays_outside():
    """The block drops what the bottleneck puts out: the same places with an adapter that does nothing yet."""
    config = ml.GPTConfig(11, 8, 2, 2, 8, dropout=0.5)
    plain = ml.GPT(config)(TOKENS, np.random.default_rng(3)).data
    model = ml.add_adapter(ml.GPT(config), HoulsbyConfig(3))
    np.testing.assert_array_equal(model(TOKENS, np.random.default_rng(3)).data, plain)


@pytest.mark.parametrize("kind", [HoulsbyConfig, PfeifferConfig])
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"bottleneck": 0}, "bottleneck = 0, expected a positive integer"),
        ({"bottleneck": 2.0}, r"bottleneck = 2\.0"),
        ({"bottleneck": True}, "bottleneck = True"),
        ({"activation": "silu"}, "activation = 'silu', expected 'gelu' or 'relu'"),
    ],
)
def test_wrong_settings(kind, settings, message):
    with pytest.raises(ValueError, match=f"{kind.__name__}: {message}"):
        kind(**settings)


def test_what_is_no_gpt():
    with pytest.raises(TypeError, match="got a Linear; bottlenecks go behind the parts of a GPT"):
        ml.add_adapter(Linear(3, 3, True, np.random.default_rng(0)), HoulsbyConfig(2))


def test_merging_names_the_place_and_the_reason():
    model = ml.add_adapter(ml.GPT(CONFIG), HoulsbyConfig(2))
    with pytest.raises(ValueError, match=r"blocks\.0\.attn: a bottleneck has a nonlinearity between its two matrices"):
        ml.merge_adapter(model)
