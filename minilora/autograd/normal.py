"""The normal distribution's Phi(x) in every digit, and the activation that is made of it: x Phi(x), the exact gelu.

NumPy has no erf. With z = |x| the tail is Phi(-z) = e^(-z^2 / 2) M(z), where M (Mills' ratio over sqrt(2 pi)) falls
slowly, like 1 / z. So M(z) = w P(t) with w = 1 / (1 + z / 4) and t = 2 w - 1 in [-1, 1], for all z >= 0 at once, where
P is smooth and nearly even in size; that t is Schonfelder's (1978, "Chebyshev expansions for the error and related
functions"). P's coefficients are those of its Chebyshev series at 45 nodes, computed to 50 digits and cut where the
rest is below a rounding error; `tests/peers/test_normal.py` computes them again. Nothing in it but z = |x| asks what x
is, so it holds for x + ih as well: the derivative by the complex step is that of the formula.
"""

import math

import numpy as np

from .backend import array_module, at_least_float32
from .tensor import register

__all__ = ["gelu_exact"]

DOUBLE = (  # of 1, t, t^2, ..., for float64
    0.18882128260393788, 0.15197416049297308, 0.09678435018555373, 0.04663046448990915, 0.015099143722729469,
    0.001885047241846578, -0.0008699230917619934, -0.00040770461685247714, 3.333607735295814e-05,
    5.7773754340693565e-05, -4.770615878536427e-07, -8.786277975709413e-06, 1.7916469102987802e-07,
    1.4804027614809944e-06, -1.5745918346230922e-07, -2.5619627541381934e-07, 6.811574237786468e-08,
    3.994349035559805e-08, -2.1716617539994733e-08, -4.461231943245354e-09, 5.356900960863089e-09,
    1.4684066912467977e-10, -9.326612704670926e-10, 2.999445507813274e-11, 8.508280771623737e-11,
)  # fmt: skip
SINGLE = (  # for float32
    0.188821282, 0.151974101, 0.0967843907, 0.0466316777, 0.015098824, 0.00187805785, -0.000869041974, -0.000390946725,
    3.23314203e-05, 3.93301424e-05,
)  # fmt: skip
STRETCH = 1 << 15  # entries that stay in the processor's cache while P is added up
FAR = 40  # beyond it, Phi(-x) is 0 and Phi(x) is 1 in every digit


@register
@at_least_float32
def gelu_exact(x):
    """y = x Phi(x), Phi(x) = (1 + erf(x / sqrt 2)) / 2.   Hendrycks & Gimpel 2016, section 2; BERT's activation

    dy/dx = Phi(x) + x phi(x), phi(x) = e^(-x^2 / 2) / sqrt(2 pi). Only x is kept. Phi(x) keeps its digits where it is
    small: 1 + erf would have lost them. `gelu` is the approximation with tanh. Computed from z = |x|, as
    y = max(x, 0) - z Phi(-z), since Phi(z) = 1 - Phi(-z).
    """
    xp = array_module(x)

    def value(x):
        z, tail, _ = _normal(xp, x)
        z *= tail
        return _positive_part(xp, x) - z

    def slope(x, g):
        z, tail, density = _normal(xp, x)
        z *= density
        tail -= z  # Phi(-z) - z phi(z), the slope at -z; that at z is 1 less this one
        right = (x.real > 0).astype(g.real.dtype)
        tail *= 1 - 2 * right
        tail += right
        tail *= g
        return tail

    return _by_stretches(value, x), (lambda g: _by_stretches(slope, x, g),)


def _by_stretches(function, *arrays):
    """A function entry by entry, of so many entries at a time that what it writes down stays in the cache."""
    flat = [array.reshape(-1) for array in arrays]
    xp, y = array_module(arrays[0]), array_module(arrays[0]).empty_like(flat[0])
    step = STRETCH if xp is np else max(y.size, 1)
    for start in range(0, y.size, step):
        y[start : start + step] = function(*(array[start : start + step] for array in flat))
    return y.reshape(arrays[0].shape)


def _positive_part(xp, x):
    """max(x, 0)"""
    return xp.maximum(x, 0) if x.dtype.kind == "f" else xp.where(x.real < 0, 0, x)


def _normal(xp, x):
    """z = |x|, no more than FAR, and Phi(-z) and phi(z)."""
    z = xp.minimum(xp.abs(x), FAR) if x.dtype.kind == "f" else xp.where(x.real < 0, -x, x).clip(None, FAR)
    near = xp.rint(16 * z.real)
    near /= 16  # its square is exact: e^(-z^2 / 2) in two factors keeps the digits that z^2 loses
    density = xp.exp((near - z) * (near + z) / 2)
    near *= near
    density *= xp.exp(near / -2)
    w = 1 / (1 + z / 4)
    t = 2 * w - 1
    coefficients = SINGLE if x.dtype.char in "fF" else DOUBLE
    tail = t * coefficients[-1]
    for c in coefficients[-2:0:-1]:
        tail += c
        tail *= t
    tail += coefficients[0]
    tail *= w
    tail *= density
    density *= 1 / math.sqrt(2 * math.pi)
    return z, tail, density
