"""An MLP's gate: the composition's bits, right in every gradient, and nothing kept but what came in."""

import numpy as np
import pytest
from drawing import array, check_gradients, shapes
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora import ops
from minilora.autograd import gated, versions

ACTIVATIONS = [ops.silu, ops.gelu, ops.gelu_exact, ops.relu]


def answers(function, *values):
    """The output and both gradients for one random cotangent."""
    inputs = [ml.Tensor(value, requires_grad=True) for value in values]
    y = function(*inputs)
    g = np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype)
    return [y.data, *ml.grad(y, inputs, cotangent=g)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("f", ACTIVATIONS, ids=lambda f: f.__name__)
def test_bit_for_bit_the_product_in_stretches_too(f, dtype, monkeypatch):
    gate, up = np.random.default_rng(0).standard_normal((2, 3, 5, 7)).astype(dtype)
    composed = answers(lambda a, b: f(a) * b, gate, up)
    for size in (gated.STRETCH, 8):  # all at once, and a last stretch that is shorter
        monkeypatch.setattr(gated, "STRETCH", size)
        for one, other in zip(answers(lambda a, b: ops.gated(a, b, f), gate, up), composed, strict=True):
            assert one.dtype == dtype
            np.testing.assert_array_equal(one, other)


@given(data=st.data(), shape=shapes(), f=st.sampled_from(ACTIVATIONS[:3]))
def test_gradients(data, shape, f):
    gate, up = data.draw(array(st.just(shape))), data.draw(array(st.just(shape)))
    check_gradients(lambda a, b: ops.gated(a, b, f), [gate, up])


def test_only_gate_and_up_are_kept():
    gate, up = np.random.default_rng(0).standard_normal((2, 3, 4))
    _, vjp = gated.gated.__wrapped__(gate, up, ops.silu)
    kept = [array for _, array in versions.kept_arrays(vjp)]
    assert kept and all(any(np.shares_memory(array, given) for given in (gate, up)) for array in kept)


@pytest.mark.parametrize("f", ACTIVATIONS, ids=lambda f: f.__name__)
def test_a_backward_pass_where_nothing_is_recorded(f):
    """The activation is made again there, with its slope."""
    a, b = (ml.Tensor(x, requires_grad=True) for x in np.random.default_rng(0).standard_normal((2, 3, 4)))
    y, again = ops.gated(a, b, f).sum(), ops.gated(a, b, f).sum()
    with ml.no_grad():
        found = ml.grad(y, [a, b])
    np.testing.assert_array_equal(found, ml.grad(again, [a, b]))


def test_half_precision_one_number_and_none():
    gate, up = np.random.default_rng(0).standard_normal((2, 6)).astype("float16")
    y = ops.gated(gate, up, ops.silu)
    assert y.dtype == "float16"
    np.testing.assert_array_equal(y.data, (ops.silu(gate.astype("f")) * up.astype("f")).data.astype("float16"))
    assert ops.gated(1.0, 2.0, ops.relu).item() == 2 and ops.gated(np.ones((0, 3)), np.ones((0, 3)), ops.silu).size == 0


@pytest.mark.parametrize(
    ("gate", "up", "f", "message"),
    [
        (np.ones(3), np.ones(4), ops.silu, r"^gated: gate \(3,\) and up \(4,\), expected two of one shape$"),
        (np.ones(3), np.ones(3), "silu", "^gated: activation = 'silu', expected one of ops.silu, ops.gelu, "),
        (np.ones(3), np.ones(3), np.tanh, "^gated: activation = <ufunc 'tanh'>, expected one of ops.silu"),
        (np.ones(3), np.ones(3), ops.softmax, "^gated: activation = <function softmax at .*, expected one of ops.silu"),
    ],
)
def test_what_does_not_fit_is_said(gate, up, f, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ops.gated(gate, up, f)
