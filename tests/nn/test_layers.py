"""Linear, Embedding and LayerNorm against NumPy, and what a frozen one keeps for the backward pass."""

import tracemalloc

import numpy as np
import pytest

import minilora as ml
from minilora.nn.layers import Embedding, LayerNorm, Linear


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_x_times_the_transposed_weight_plus_bias(bias):
    rng = np.random.default_rng(0)
    layer = Linear(3, 5, bias, rng).astype("float64")
    x = rng.standard_normal((2, 4, 3))
    expected = np.einsum("bti,oi->bto", x, layer.weight.data)
    if bias:
        layer.bias.data[...] = rng.standard_normal(5)
        expected = expected + layer.bias.data
    np.testing.assert_allclose(layer(ml.Tensor(x)).data, expected, rtol=1e-13)


def test_embedding_picks_rows():
    layer = Embedding(7, 3, np.random.default_rng(0))
    tokens = np.array([[6, 0, 6], [1, 2, 3]])
    np.testing.assert_array_equal(layer(tokens).data, layer.weight.data[tokens])


def test_layer_norm_starts_with_mean_zero_and_variance_one():
    rng = np.random.default_rng(0)
    x = rng.normal(5, 3, (4, 64))
    layer = LayerNorm(64, True).astype("float64")
    y = layer(ml.Tensor(x)).data
    np.testing.assert_allclose(y, (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5), rtol=1e-12)


def test_shapes_that_do_not_fit_name_the_primitive():
    layer = Linear(3, 5, True, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"linear: .*\(2, 4\).*\(5, 3\)"):
        layer(ml.Tensor(np.ones((2, 4), np.float32)))


def test_24_frozen_layers_keep_at_most_two_activations():
    """A frozen layer's vjp to x needs W alone, so no layer's input stays alive above one trainable input."""
    rng = np.random.default_rng(0)
    layers = [Linear(64, 64, True, rng) for _ in range(24)]
    for layer in layers:
        for p in layer.parameters():
            p.requires_grad = False
    x = ml.Tensor(rng.standard_normal((512, 64)).astype(np.float32), requires_grad=True)

    def held() -> int:
        tracemalloc.start()
        y = x
        for layer in layers:
            y = layer(y)
        current, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert y.requires_grad
        return current

    assert held() <= 2 * x.data.nbytes
    for layer in layers:
        layer.weight.requires_grad = True
    assert held() >= 23 * x.data.nbytes  # the same measurement sees the activations when W is trained


def test_what_layers_begin_with():
    """N(0, 0.02) for matrices and tables, zero biases, ones in a norm; all of it is trained, in float32."""
    rng = np.random.default_rng(3)
    linear, wider, table = Linear(200, 100, True, rng), Linear(200, 100, False, rng, std=0.5), Embedding(100, 200, rng)
    for p, std in ((linear.weight, 0.02), (wider.weight, 0.5), (table.weight, 0.02)):
        assert abs(p.data.std() / std - 1) < 0.02 and abs(p.data.mean()) < 3 * std / np.sqrt(p.size)
    norm, bare = LayerNorm(4, bias=True), LayerNorm(4, bias=False)
    assert linear.bias.data.tolist() == [0] * 100 and wider.bias is None and bare.bias is None
    assert norm.weight.data.tolist() == bare.weight.data.tolist() == [1] * 4 and norm.bias.data.tolist() == [0] * 4
    for p in (linear.weight, linear.bias, table.weight, norm.weight, norm.bias):
        assert p.requires_grad and p.dtype == np.float32
