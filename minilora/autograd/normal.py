"""The normal distribution's Phi(x) in every digit, and the activation that is made of it: x Phi(x), the exact gelu.

NumPy has no erf. With z = |x| the tail is Phi(-z) = phi(z) M(z), phi(z) = e^(-z^2 / 2) / sqrt(2 pi), where M (Mills'
ratio) falls slowly, like 1 / z.
float64: M(z) = w P(t) with w = 1 / (1 + z / 4) and t = 2 w - 1 in [-1, 1], for all z >= 0 at once, where P is smooth
and nearly even in size; that t is Schonfelder's (1978, "Chebyshev expansions for the error and related functions").
P's coefficients are those of its Chebyshev series at 45 nodes, cut where the rest is below a rounding error.
float32: M(z) = 1 / (z + b_0 + c_1 / (z + b_1 + c_2 / (z + b_2 + ...))), Laplace's continued fraction (there all b are
0, and c_k = k) cut after c_4, which takes half the operations. These b and c make it exact at nine z up to 14.5, beyond
which the tail is 0: the zeros of a Chebyshev polynomial of (3 - z) / (3 + z); between them 3e-8 of it is missing.
z^2 is rounded, and so z^2 / 4 units in the last place are lost: a tail of 1e-30 has five digits, in PyTorch it is 0.
Both were computed to 50 digits; `tests/peers/test_normal.py` computes them again. Nothing but z = |x| asks what x is,
so all holds for x + ih as well: the derivative by the complex step is that of the formula.
"""

import math

import numpy as np

from .backend import array_module, at_least_float32
from .parts import by_entry, two_by_entry
from .tensor import register

__all__ = ["gelu_exact"]

DOUBLE = (  # of 1, t, t^2, ...: times 1 / sqrt(2 pi)
    0.18882128260393788, 0.15197416049297308, 0.09678435018555373, 0.04663046448990915, 0.015099143722729469,
    0.001885047241846578, -0.0008699230917619934, -0.00040770461685247714, 3.333607735295814e-05,
    5.7773754340693565e-05, -4.770615878536427e-07, -8.786277975709413e-06, 1.7916469102987802e-07,
    1.4804027614809944e-06, -1.5745918346230922e-07, -2.5619627541381934e-07, 6.811574237786468e-08,
    3.994349035559805e-08, -2.1716617539994733e-08, -4.461231943245354e-09, 5.356900960863089e-09,
    1.4684066912467977e-10, -9.326612704670926e-10, 2.999445507813274e-11, 8.508280771623737e-11,
)  # fmt: skip
SINGLE = (  # b_k and c_(k + 1), for float32
    (6.4997596e-05, 0.996230339), (-0.0979567913, 3.54103806), (4.75637681, -14.1644151), (0.0979122413, 28.8128172),
)  # fmt: skip
LAST = 4.39094248  # b_4
FAR = 40  # beyond it, Phi(-x) is 0 and Phi(x) is 1 in every digit


@register
@at_least_float32
def gelu_exact(x):
    """y = x Phi(x), Phi(x) = (1 + erf(x / sqrt 2)) / 2.   Hendrycks & Gimpel 2016, section 2; BERT's activation

    dy/dx = Phi(x) + x phi(x), phi(x) = e^(-x^2 / 2) / sqrt(2 pi). Phi and phi, which take long, make both: the slope is
    kept in the place of x. Phi(x) keeps its digits where it is small: 1 + erf would have lost them. `gelu` is the
    approximation with tanh.
    """
    xp = array_module(x)
    y, slope = two_by_entry(lambda *part: _value_and_slope(xp, *part), x)
    return y, (lambda g: by_entry(xp.multiply, g, slope),)


def _value_and_slope(xp, x, y, slope):
    """Write x Phi(x) into y, and Phi(x) + x phi(x) into slope."""
    real = x.dtype.kind == "f"
    z = xp.abs(x) if real else xp.where(x.real < 0, -x, x)
    within = above = x
    if xp is not np or not z.real.max() < FAR:  # infinity times 0 is no number; of all others this changes no bit
        z, above = z.clip(None, FAR), x.clip(-FAR, None)
        within = above.clip(None, FAR)
    density, tail = (_single if x.dtype.char in "fF" else _double)(xp, z)
    if real:
        tail -= x > 0
        cdf = xp.abs(tail, out=tail)  # |Phi(-z) - 1| is Phi(z)
        xp.multiply(above, cdf, out=y)
    else:
        cdf = xp.where(x.real > 0, 1 - tail, tail)
        y[...] = xp.where(x.real < 0, 0, x) - z * tail
    density *= within
    xp.add(density, cdf, out=slope)


def _single(xp, z):
    """phi(z) and Phi(-z) in float32."""
    density = z * z
    density *= -1 / 2
    xp.exp(density, out=density)
    density *= 1 / math.sqrt(2 * math.pi)
    below = z + LAST
    for b, c in reversed(SINGLE):
        xp.divide(c, below, out=below)
        below += z
        below += b
    return density, xp.divide(density, below, out=below)


def _double(xp, z):
    """phi(z) and Phi(-z) in float64."""
    near = xp.rint(16 * z.real)
    near /= 16  # its square is exact: e^(-z^2 / 2) in two factors keeps the digits that z^2 loses
    density = xp.exp((near - z) * (near + z) / 2)
    near *= near
    density *= xp.exp(near / -2)
    w = 1 / (1 + z / 4)
    t = 2 * w - 1
    tail = t * DOUBLE[-1]
    for c in DOUBLE[-2:0:-1]:
        tail += c
        tail *= t
    tail += DOUBLE[0]
    tail *= w
    tail *= density
    density *= 1 / math.sqrt(2 * math.pi)
    return density, tail
