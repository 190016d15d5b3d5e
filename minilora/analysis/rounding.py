"""What 16 bits keep of an update: W + Delta W rounded to numbers whose spacing is a fixed share of W.

A format with p bits in its significand has, between 2^e and 2^(e+1), numbers that are ulp = 2^(e - p + 1) apart. The
nearest to w + d is w itself, and nothing of d is left, where |d| < ulp(w) / 2. Where d is far larger than an ulp, the
error is spread evenly over one: its mean square is ulp^2 / 12. p is 8 in bfloat16 (Kalamkar et al. 2019), 11 in float16
and 24 in float32 (IEEE 754), so float16 keeps of an update what bfloat16 keeps of one 2^3 times as large.

Rounded at random instead, up with the chance that is the distance from below over the ulp, the mean is w + d itself,
however small d is, and the error is not: Gupta et al. 2015, "Deep learning with limited numerical precision".

>>> float(rounded(1.003, "bfloat16")), float(rounded(1.005, "bfloat16"))
(1.0, 1.0078125)
"""

from statistics import NormalDist
from typing import Any

import numpy as np

from ..autograd.signatures import checked, is_real, shown
from .rank import _numbers

FORMATS = {  # bits of the significand, and the exponent of the least number above zero
    "bfloat16": (8, -133), "float16": (11, -24), "float32": (24, -149),
}  # fmt: skip
LARGEST = {"bfloat16": 2.0**128 * (1 - 2.0**-8), "float16": 65504.0, "float32": 2.0**128 * (1 - 2.0**-24)}


def _format(name: str, kind: str) -> tuple[int, int]:
    if kind not in FORMATS:
        raise ValueError(f"{name}: kind = {shown(kind)}, expected one of {', '.join(FORMATS)}")
    return FORMATS[kind]


@checked
def ulp(values: Any, kind: str) -> np.ndarray:
    """How far apart the format's numbers are at each value: 2^(e - p + 1) where 2^e <= |w| < 2^(e+1)."""
    bits, least = _format("ulp", kind)
    numbers = _numbers("ulp", values, "array")
    _, exponents = np.frexp(numbers)  # |w| = m 2^e, 1/2 <= m < 1
    return np.ldexp(1.0, np.where(numbers == 0, least, np.maximum(exponents - bits, least)))


@checked
def rounded(values: Any, kind: str, rng: Any = None) -> np.ndarray:
    """Values in a format, as float64: the nearest numbers, of two equally near the even one; or at random.

    rng: a seed or a numpy Generator; then each value is rounded up with the chance that makes the mean right. Raises
    ValueError for what is not finite, and for what is beyond the format's largest number.
    """
    numbers = _numbers("rounded", values, "array")
    step = ulp(numbers, kind)
    scaled = numbers / step  # exact: step is a power of two
    whole = np.rint(scaled) if rng is None else np.floor(scaled + np.random.default_rng(rng).random(scaled.shape))
    result = step * whole
    wrong = np.abs(result) > LARGEST[kind]
    if wrong.any():
        raise ValueError(f"rounded: {float(numbers[wrong][0])} is too large for {kind}")
    return result


@checked
def arrived(weight: Any, delta: Any, kind: str, rng: Any = None) -> np.ndarray:
    """What a merge in a format adds to W: round(W + Delta W) - W, where W, too, is held in that format.   -> (m, n)"""
    before = rounded(weight, kind)
    return rounded(before + _numbers("arrived", delta, "matrix"), kind, rng) - before


def kept(delta: np.ndarray, added: np.ndarray) -> dict[str, float]:
    """What of Delta W arrived: {"gone": the share of its entries of which nothing did, "along": <added, Delta W> /
    ||Delta W||^2, 1 where all did, "error": ||added - Delta W|| / ||Delta W||}
    """
    size = float(np.vdot(delta, delta))
    return {
        "gone": float(np.mean(added[delta != 0] == 0)),
        "along": float(np.vdot(added, delta)) / size,
        "error": float(np.linalg.norm(added - delta)) / size**0.5,
    }


@checked
def predicted(ratio: float, kind: str, points: int = 401) -> dict[str, float]:
    """`kept`, from ||Delta W|| / ||W|| alone, where the entries of both are Gaussian and know nothing of each other.

    The mean over quantiles of w and of d, in which d is rounded to multiples of ulp(w): a curve that depends on ratio *
    2^p alone, p being the format's bits, as long as its exponents suffice.
    """
    if not (is_real(ratio) and 0 < ratio < np.inf):
        raise ValueError(f"predicted: ratio = {shown(ratio)}, expected ||Delta W|| / ||W|| > 0")
    normal = np.array([NormalDist().inv_cdf((i + 0.5) / points) for i in range(points)])
    steps = ulp(normal, kind)[:, None]  # (w, 1)
    delta = ratio * normal[None, :]  # (1, d)
    return kept(np.broadcast_to(delta, (points, points)), steps * np.rint(delta / steps))
