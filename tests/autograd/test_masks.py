"""The losses of masks: the composition's value, right in every gradient, and what does not fit is said."""

import numpy as np
import pytest
from drawing import check_gradients, check_same
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora import ops


def drawn(seed, shape):
    rng = np.random.default_rng(seed)
    return 3 * rng.standard_normal(shape), rng.random(shape) > 0.6


def composed_cross_entropy(z, t):
    p = ops.sigmoid(z)
    return -ops.mean(t * ops.log(p) + (1 - t) * ops.log(1 - p))


def composed_dice(z, t):
    p, axes = ops.sigmoid(z), tuple(range(1, t.ndim))
    both, sizes = ops.sum(p * t, axis=axes), ops.sum(p, axis=axes) + t.sum(axis=axes)
    return ops.mean(1 - (2 * both + 1) / (sizes + 1))


PAIRS = [(ops.binary_cross_entropy, composed_cross_entropy), (ops.dice_loss, composed_dice)]


@pytest.mark.slow
@pytest.mark.parametrize("loss, composed", PAIRS, ids=["cross-entropy", "dice"])
@given(seed=st.integers(0, 99), shape=st.sampled_from([(1, 1), (3, 4), (2, 3, 4)]), soft=st.booleans())
def test_the_compositions_value_and_gradients(loss, composed, seed, shape, soft):
    z, t = drawn(seed, shape)
    t = np.random.default_rng(seed).random(shape) if soft else t
    check_same(lambda x: loss(x, t), lambda x: composed(x, t.astype(float)), [z], 1e-10)
    check_gradients(lambda x: loss(x, t), [z])


def answers(loss, z, t):
    x = ml.Tensor(z, requires_grad=True)
    y = loss(x, t)
    return y.data, ml.grad(y, [x])[0]


def test_far_from_the_border_nothing_overflows_and_the_digits_stay():
    z = np.array([[-800.0, 800.0, -40.0, 40.0]])
    with np.errstate(over="raise"):
        assert ops.binary_cross_entropy(z, z > 0).item() == pytest.approx(np.exp(-40) / 2)
        assert ops.binary_cross_entropy(z, z < 0).item() == pytest.approx(420)
    assert ops.dice_loss(z, z > 0).item() == pytest.approx(0)
    assert ops.dice_loss(z, z < 0).item() == pytest.approx(4 / 5)  # 1 - 1 / (2 + 2 + 1)
    assert ops.dice_loss(z - 900, z > 900).item() == 0  # nothing asked for, and nothing found


def test_the_caller_may_write_over_the_targets():
    z, t = drawn(0, (2, 3))
    for loss, _ in PAIRS:
        x, mine = ml.Tensor(z, requires_grad=True), t.copy()
        y = loss(x, mine)
        mine[:] = ~mine
        np.testing.assert_array_equal(ml.grad(y, [x])[0], answers(loss, z, t)[1])


@pytest.mark.parametrize("name", ["binary_cross_entropy", "dice_loss"])
def test_what_does_not_fit_is_said(name):
    loss, z = getattr(ops, name), np.zeros((2, 3))
    wrong = [
        (z, np.zeros((3, 2)), rf"^{name}: logits \(2, 3\) and targets \(3, 2\), expected two of one shape"),
        (z[:0], z[:0], rf"^{name}: logits \(0, 3\) and targets \(0, 3\), expected two of one shape, and some entries"),
        (z, z + 255, rf"^{name}: targets run from 255.0 to 255.0, expected 0 to 1"),
        (z, z - 1, rf"^{name}: targets run from -1.0 to -1.0, expected 0 to 1"),
        (z, z + np.nan, rf"^{name}: targets run from nan to nan, expected 0 to 1"),
        (z, z + 1j, rf"^{name}: targets have dtype complex128, expected True and False, or numbers from 0 to 1"),
    ]
    for logits, targets, message in wrong:
        with pytest.raises((ValueError, TypeError), match=message):
            loss(logits, targets)
    with pytest.raises(ValueError, match=r"^dice_loss: logits \(3,\), expected \(B, ...\), masks one after the other"):
        ops.dice_loss(z[0], z[0])
