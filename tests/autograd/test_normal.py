"""The exact gelu: x Phi(x) and its slope in every digit, tails included, for any size and precision."""

import numpy as np
import pytest
import scipy.special
from drawing import array, check_gradients, check_same, shapes
from hypothesis import given

import minilora as ml
from minilora import ops
from minilora.autograd import normal, parts, versions
from minilora.autograd.parts import SHARE, shared_by


def answers(x, g=None):
    """The value and the gradient, for a cotangent of ones unless given."""
    x = ml.Tensor(x, requires_grad=True)
    y = ops.gelu_exact(x)
    return y.data, ml.grad(y, [x], np.ones(x.shape, x.dtype) if g is None else g)[0]


def expected(x):
    """scipy's, in float64: x Phi(x), and Phi(x) + x phi(x)."""
    x = np.asarray(x, dtype=np.float64)
    cdf = scipy.special.ndtr(x)
    return x * cdf, cdf + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)


@given(array(shapes()))
def test_gelu_exact(x):
    composed = lambda x: x * (1 + ops.tanh(x) * 0 + scipy.special.erf(x.data / np.sqrt(2))) / 2
    np.testing.assert_allclose(ops.gelu_exact(x).data, composed(ml.Tensor(x)).data, rtol=1e-12, atol=1e-15)
    check_gradients(ops.gelu_exact, [x])


@pytest.mark.parametrize("dtype, far, ulps", [("float64", 37, 8), ("float32", 12.5, 8), ("float16", 5, 2)])
def test_digits_are_kept_in_both_tails(dtype, far, ulps):
    """Of the value everywhere; of the slope, which crosses 0 at -0.75, to as much of the largest, and in the tails."""
    x = np.linspace(-far, far, 3001).astype(dtype)
    y, dy = answers(x)
    value, slope = expected(x)
    eps = np.finfo(dtype).eps
    rounded = np.finfo("float64" if dtype == "float64" else "float32").eps  # the exponent is; the judge's, too
    bar = ulps * eps + x.astype(float) ** 2 * rounded / (1 if dtype == "float64" else 4)
    least = np.finfo(dtype).smallest_subnormal
    assert y.dtype == dy.dtype == dtype
    assert (np.abs(y - value) <= np.abs(value) * bar + least).all()
    scale = np.where(np.abs(x + 0.75) < 1, 1, np.abs(slope))
    assert (np.abs(dy - slope) <= scale * bar + least).all()


def test_what_is_very_large_or_not_finite():
    x = np.array([-np.inf, -1e300, -40, -0.0, 0.0, 40, 1e300, np.inf, np.nan])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        y, dy = answers(x)
    np.testing.assert_array_equal(y, [0, 0, 0, 0, 0, 40, 1e300, np.inf, np.nan])
    np.testing.assert_array_equal(dy, [0, 0, 0, 0.5, 0.5, 1, 1, 1, np.nan])


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 40])
def test_stretches_join_without_a_seam(size, monkeypatch):
    x, g = np.random.default_rng(0).standard_normal((2, size, 3)).swapaxes(1, 2)
    y, dy = answers(x, g)
    monkeypatch.setattr(parts, "SHARE", 8)
    for whole, stretched in zip((y, dy), answers(x, g), strict=True):
        np.testing.assert_array_equal(whole, stretched)


def test_one_number_and_integers():
    assert ops.gelu_exact(0.0).item() == 0 and ops.gelu_exact(1.0).shape == ()
    np.testing.assert_allclose(ops.gelu_exact(np.array([1, -1])).data, expected([1, -1])[0], rtol=1e-15)


def test_only_the_slope_is_kept():
    """As large as x, whose values may be written over once y is known."""
    x = np.ones((3, 4))
    _, (vjp,) = normal.gelu_exact.__wrapped__(x)
    assert [array.nbytes for _, array in versions.kept_arrays(vjp)] == [x.nbytes]
    assert not any(np.shares_memory(array, x) for _, array in versions.kept_arrays(vjp))


@pytest.mark.parametrize("dtype", ["float32", "complex64", "float64"])
def test_an_infinity_beside_them_changes_no_bit(dtype):
    x = np.random.default_rng(0).normal(0, 5, 200).astype(dtype)
    alone, beside = answers(x), answers(np.append(x, np.array(np.inf, dtype)))
    for one, other in zip(alone, beside, strict=True):
        np.testing.assert_array_equal(one, other[:-1])


def test_cores_that_are_free_share_many_entries():
    """Each part is computed once, by whom `shared_by` names, and the bits are those of one core."""
    x, sizes = np.random.default_rng(0).standard_normal((3, SHARE), dtype=np.float32), []

    def share(function, pieces):
        sizes.append(len(pieces))
        return [function(*piece) for piece in reversed(pieces)]

    with shared_by(share):
        shared = answers(x)
    assert sizes == [3, 3]  # forward and backward
    for one, other in zip(shared, answers(x), strict=True):
        np.testing.assert_array_equal(one, other)


def test_complex_numbers_of_both_precisions():
    """The derivative along i h is the slope: Phi's formulas are analytic on either side of 0."""
    x = np.linspace(-6, 6, 97)  # exact in float32
    for dtype, h, digits in (("complex128", 1e-20, 1e-13), ("complex64", 1e-10, 2e-6)):
        y = ops.gelu_exact((x + 1j * h).astype(dtype)).data
        np.testing.assert_allclose(y.real, expected(x)[0], rtol=digits, atol=h)
        np.testing.assert_allclose(y.imag / h, expected(x)[1], rtol=digits, atol=digits)


def test_gelu_with_tanh_is_near():
    """The approximation is within 5e-4 of it: Hendrycks & Gimpel's two forms are of one function."""
    x = np.linspace(-8, 8, 1001)
    assert 1e-4 < np.abs(ops.gelu(x).data - ops.gelu_exact(x).data).max() < 5e-4


def test_as_a_method():
    x = np.random.default_rng(0).standard_normal((2, 3))
    check_same(lambda x: x.gelu_exact(), ops.gelu_exact, [x])
