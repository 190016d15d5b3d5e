"""The coefficients of the normal distribution's tail, computed again to 50 digits; and its digits beside mpmath's."""

import numpy as np
import pytest

import minilora as ml
from minilora import ops
from minilora.autograd import normal

mp = pytest.importorskip("mpmath", reason="comes with PyTorch: pip install 'minilora[peers]'")

NODES = 45


def scaled_tail(t):
    """P(t) = Phi(-z) e^(z^2 / 2) / w, where w = (1 + t) / 2 and z = 4 (1 / w - 1)."""
    w = (1 + t) / 2
    z = 4 * (1 / w - 1) / mp.sqrt(2)
    return mp.erfc(z) * mp.exp(z * z) / 2 / w


def chebyshev_series(n):
    """The monomial coefficients of P's Chebyshev interpolant, cut after T_n."""
    angles = [mp.pi * (k + mp.mpf(1) / 2) / NODES for k in range(NODES)]
    values = [scaled_tail(mp.cos(angle)) for angle in angles]
    total, before, now = [mp.mpf(0)] * (n + 1), [mp.mpf(0)] * (n + 1), [mp.mpf(1)] + [mp.mpf(0)] * n
    for j in range(n + 1):
        c = mp.mpf(2 if j else 1) / NODES * sum(v * mp.cos(j * a) for v, a in zip(values, angles, strict=True))
        total = [a + c * b for a, b in zip(total, now, strict=True)]
        shifted = [mp.mpf(0), *now[:-1]]  # t T_j
        before, now = now, [(2 if j else 1) * a - b for a, b in zip(shifted, before, strict=True)]
    return total


@pytest.mark.parametrize("table", [normal.SINGLE, normal.DOUBLE], ids=["float32", "float64"])
def test_the_coefficients_are_those_of_the_series(table):
    with mp.workdps(50):
        digits = 1e-8 if table is normal.SINGLE else 1e-15
        again = [float(c) for c in chebyshev_series(len(table) - 1)]
    np.testing.assert_allclose(table, again, rtol=digits)


@pytest.mark.parametrize("dtype, far", [("float64", 37.5), ("float32", 13.0)])
def test_digits_beside_mpmath(dtype, far):
    """The value to four units in the last place, as far out as it is a normal number."""
    x = np.random.default_rng(0).uniform(-far, far, 400).astype(dtype)
    x = np.concatenate([x, x / 1000])
    with mp.workdps(40):
        exact = [mp.mpf(float(v)) * mp.ncdf(mp.mpf(float(v))) for v in x]
        errors = [abs((mp.mpf(float(y)) - e) / e) for y, e in zip(ops.gelu_exact(x).data, exact, strict=True)]
        slopes = [mp.ncdf(mp.mpf(float(v))) + mp.mpf(float(v)) * mp.npdf(mp.mpf(float(v))) for v in x]
    tensor = ml.Tensor(x, requires_grad=True)
    gradient = ml.grad(ops.gelu_exact(tensor).sum(), [tensor])[0]
    eps = np.finfo(dtype).eps
    assert max(errors) <= 4 * eps
    np.testing.assert_allclose(gradient, np.array(slopes, float), rtol=8 * eps, atol=eps)
    tail = x < -3  # where 1 + erf has lost digits
    np.testing.assert_allclose(gradient[tail], np.array(slopes, float)[tail], rtol=8 * eps)
