"""Weights of 16 bits beside activations of more: made float32 on the way through, and the result is as precise as x."""

import numpy as np
import pytest

import minilora as ml
from minilora import ops

RNG = np.random.default_rng(0)
W, A, B = RNG.standard_normal((5, 4)), RNG.standard_normal((2, 4)), RNG.standard_normal((5, 2))
TARGETS = np.array([[0, 1, 2], [3, 4, 0]])
CASES = {
    "linear": lambda x, w: ops.linear(x, w, w[:, 0]),
    "lora_linear": lambda x, w: ops.lora_linear(x, w, w[:, 0], A.astype(x.dtype), B.astype(x.dtype), 0.5),
    "linear_on_demand": lambda x, w: ops.linear_on_demand(x, w.astype),
    "layer_norm": lambda x, w: ops.layer_norm(x, w[0], w[1]),
    "rms_norm": lambda x, w: ops.rms_norm(x, w[0]),
    "linear_cross_entropy": lambda x, w: ops.linear_cross_entropy(x, w, TARGETS),
    "matmul": lambda x, w: ops.matmul(x, w.T),
    "add": lambda x, w: x + w[0],
}


def sixteen(name):
    return np.dtype(getattr(pytest.importorskip("ml_dtypes"), name) if name == "bfloat16" else name)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_weights_of_16_bits_give_what_the_same_numbers_in_32_give(name, kind, precision):
    w = W.astype(sixteen(kind))
    x = ml.Tensor(np.random.default_rng(1).standard_normal((2, 3, 4)).astype(precision), requires_grad=True)
    results = []
    for weight in (w, w.astype("float32")):
        y = CASES[name](x, weight)
        gradient = ml.grad(y, [x], np.ones(y.shape, y.dtype))[0]
        assert y.dtype == gradient.dtype == precision
        results.append((y.data, gradient))
    for half, single in zip(*results, strict=True):
        np.testing.assert_allclose(half, single, rtol=1e-6 if precision == "float32" else 1e-12, atol=1e-12)


def test_a_tensor_of_bfloat16_is_refused_with_the_way_out():
    w = W.astype(sixteen("bfloat16"))
    for refused in (lambda: ml.Tensor(w), lambda: ops.embedding(w, [0])):
        with pytest.raises(TypeError, match=r"dtype bfloat16, expected numbers; x.astype\('float32'\) holds the same"):
            refused()
