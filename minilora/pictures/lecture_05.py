"""Lecture 5's tables: plain numbers in, Markdown out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .tables import Table
from .tables import table as table  # which the lecture calls, too


def starts_table(found: Mapping[str, Sequence[float]]) -> Table:
    """How A and B may begin.   found: {start: (A's standard deviation, its loss - the base's, |dA|, |dB|)}"""
    rows = [
        [name, f"{a:.3f}", f"{off:+.6f}", f"{dA:.3g}", f"{dB:.3g}", _first(dA, dB)]
        for name, (a, off, dA, dB) in found.items()
    ]
    return table(["start", "A's deviation", "loss − base", "norm of dA", "norm of dB", "who moves first"], rows)


def _first(dA: float, dB: float) -> str:
    return " and ".join(name for name, norm in (("A", dA), ("B", dB)) if norm) or "**nobody**"


def powers_table(ranks: Sequence[int], squared: Any, absolute: Any) -> Table:
    """The power of r that the first step is as, by least squares, for each way that the scale s follows the rank.

    squared, absolute: |dB|_F^2 and |dB|_1 at each rank, at s = 1. Gradient descent does s^2 of the one, AdamW s of the
    other.
    """
    r = np.asarray(ranks, float)
    power = lambda values: f"{np.polyfit(np.log(r), np.log(values), 1)[0]:+.2f}"  # values ~ r^power
    ways = (("α constant", 1 / r, "−1", "0"), ("α/√r", r**-0.5, "0", "+1/2"), ("α = 2r", r**0, "+1", "+1"))
    rows = [[name, power(s**2 * squared), descent, power(s * absolute), adam] for name, s, descent, adam in ways]
    return table(["first step as a power of r", "gradient descent", "derived", "AdamW", "derived"], rows)


def losses_table(losses: Mapping[Any, Sequence[float]], texts: Sequence[str]) -> Table:
    """Each adapter's loss on each text.   losses: {adapter, or None for the base: [a loss for each text]}"""
    rows = [[name or "none", *(f"{loss:.2f}" for loss in many)] for name, many in losses.items()]
    return table(["adapter", *(f"loss on {text.rpartition('/')[2]}" for text in texts)], rows)
