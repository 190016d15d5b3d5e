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


def continued_fraction(n, s=3, far=14.5):
    """b and c of the fraction that is Mills' ratio at 2n + 1 nodes: the zeros of T_(2n+1) in t = (s - z) / (s + z)."""
    m, low = 2 * n + 1, (s - mp.mpf(far)) / (s + mp.mpf(far))
    ts = [low + (1 - low) * (1 + mp.cos(mp.pi * (2 * k + 1) / (2 * m))) / 2 for k in range(m)]
    zs = [s * (1 - t) / (1 + t) for t in ts]
    ratios = [mp.ncdf(-z) / mp.npdf(z) for z in zs]
    # N(z) = M(z) D(z) at the nodes; N and D begin with z^n and z^(n + 1)
    rows = [[z**k for k in range(n)] + [-r * z**k for k in range(n + 1)] for z, r in zip(zs, ratios, strict=True)]
    found = mp.lu_solve(mp.matrix(rows), mp.matrix([r * z ** (n + 1) - z**n for z, r in zip(zs, ratios, strict=True)]))
    N, D = [*found[:n], mp.mpf(1)], [*found[n:], mp.mpf(1)]
    b, c = [], []
    while len(N) > 1:  # D = (z + b) N + c rest, and N / rest goes on
        b.append(D[-2] - N[-2])
        rest = [d - b[-1] * k - j for d, k, j in zip(D[:-2], N[:-1], [mp.mpf(0), *N[:-2]], strict=True)]
        c.append(rest[-1])
        D, N = N, [k / rest[-1] for k in rest]
    return [*b, D[0]], c


def test_the_coefficients_are_those_of_the_series():
    with mp.workdps(50):
        again = [float(c) for c in chebyshev_series(len(normal.DOUBLE) - 1)]
    np.testing.assert_allclose(normal.DOUBLE, again, rtol=1e-15)


def test_the_coefficients_are_those_of_the_continued_fraction():
    with mp.workdps(50):
        b, c = continued_fraction(len(normal.SINGLE))
    found, last = zip(*normal.SINGLE, strict=True), normal.LAST
    for kept, again in zip(found, (b[:-1], c), strict=True):
        np.testing.assert_allclose(kept, np.array(again, float), rtol=1e-8)
    np.testing.assert_allclose(last, float(b[-1]), rtol=1e-8)


@pytest.mark.parametrize("dtype, far", [("float64", 37.5), ("float32", 13.0)])
def test_digits_beside_mpmath(dtype, far):
    """The value to four units in the last place, as far out as it is a normal number; x^2 is rounded in float32."""
    x = np.random.default_rng(0).uniform(-far, far, 400).astype(dtype)
    x = np.concatenate([x, x / 1000])
    with mp.workdps(40):
        exact = [mp.mpf(float(v)) * mp.ncdf(mp.mpf(float(v))) for v in x]
        errors = [abs((mp.mpf(float(y)) - e) / e) for y, e in zip(ops.gelu_exact(x).data, exact, strict=True)]
        slopes = [mp.ncdf(mp.mpf(float(v))) + mp.mpf(float(v)) * mp.npdf(mp.mpf(float(v))) for v in x]
    tensor = ml.Tensor(x, requires_grad=True)
    gradient = ml.grad(ops.gelu_exact(tensor).sum(), [tensor])[0]
    eps = np.finfo(dtype).eps
    bar = eps * (1 + x.astype(float) ** 2 / 16 * (dtype == "float32"))
    assert (np.array(errors, float) <= 4 * bar).all()
    np.testing.assert_array_less(np.abs(gradient - np.array(slopes, float)), 8 * bar * np.abs(gradient) + eps)
    tail = x < -3  # where 1 + erf has lost digits
    wrong = np.abs(gradient[tail] / np.array(slopes, float)[tail] - 1)
    np.testing.assert_array_less(wrong, 8 * bar[tail])
