"""Exercises of lecture 8b: few bits."""

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from ..adapters.quantization import LEVELS
from .exercises import cause, exercise, same


@exercise("8b.1")
def by_hand(answer: Any) -> str | None:
    """s = 0.9, codes round(7 w / s)."""
    w = np.array([0.9, -0.2, 0.35, -0.6])
    right = np.round(7 * w / 0.9)
    got = np.asarray(answer, dtype=float)
    likely = {
        "the largest weight has the largest code, 7: divide by s = 0.9 first": np.round(7 * w),
        "there are 15 levels, so the codes go from -7 to 7": np.round(8 * w / 0.9),
        "the nearest level, not the next one towards zero": np.trunc(7 * w / 0.9),
        "a code is a whole number": 7 * w / 0.9,
    }
    return same(got, right, cause(got, likely, "s is the largest absolute value, a code round(7 w / s)", 1e-5))


@exercise("8b.2")
def levels_for_uniform_weights(answer: Any) -> str | None:
    """The middles of 16 equal cells: -15/16, -13/16, ... 15/16, with a mean squared error of (1/16)^2 / 3."""
    levels = np.sort(np.asarray(answer, dtype=float).ravel())
    if len(levels) != 16:
        return f"got {len(levels)} levels, expected 16"
    if np.allclose(levels, LEVELS["nf4"], atol=1e-3):
        return "that is NF4, whose levels are dense around zero, where uniform weights are not denser"
    if np.allclose(levels, np.linspace(-1, 1, 16)):
        return (
            "nearly: the outermost levels serve half as many weights as the others; take the middles of 16 equal cells"
        )
    grid = np.linspace(-1, 1, 20_001)
    error = ((grid[:, None] - levels) ** 2).min(axis=1).mean()
    least = (1 / 16) ** 2 / 3
    if error > 1.01 * least:
        return f"their mean squared error is {error:.3g}, and {least:.3g} can be reached"
    return None


@exercise("8b.3")
def three_bits(answer: Any) -> str | None:
    """Three levels below zero, zero, four above, from quantiles of the normal distribution."""
    outermost = 1 - (1 / 16 + 1 / 14) / 2
    half = lambda n: np.array([NormalDist().inv_cdf(outermost + (0.5 - outermost) * i / n) for i in range(n)])
    above, below = half(4), half(3)
    right = np.concatenate([-below / below[0], [0.0], (above / above[0])[::-1]])
    got = np.asarray(answer, dtype=float)
    if got.shape == (8,) and np.allclose(np.sort(got), np.linspace(-1, 1, 8)):
        return "those are evenly spaced; the *probabilities* are, and their quantiles lie densest around zero"
    if got.shape == (8,) and not np.isclose(np.abs(got).max(), 1):
        return "divide by the outermost quantile, so that the levels end at -1 and 1"
    if got.shape == (8,) and not np.any(np.isclose(got, 0, atol=1e-9)):
        return "zero must be a level: three below it, four above"
    return same(np.sort(got) if got.shape == (8,) else got, right, "the halves are made apart", 1e-3)


@exercise("8b.4")
def bits_a_weight(answer: Any) -> str | None:
    """4 + 32 / block, or 4 + 8 / block + 32 / (256 block)."""
    for block in (16, 64, 4096):
        got, right = answer(block, False), 4 + 32 / block
        if wrong := same(got, right, "a scale of 32 bits for each block, beside 4 bits for each weight"):
            return f"bits({block}, False): {wrong}"
        got, right = answer(block, True), 4 + 8 / block + 32 / (256 * block)
        forgot = math.isclose(float(got), 4 + 8 / block)
        hint = "8 bits a scale, and the scales' own scale: 32 bits for 256 blocks"
        if wrong := same(got, right, hint + (" is missing" if forgot else "")):
            return f"bits({block}, True): {wrong}"
    return None
