"""Hyperparameters, checked where they are given: numbers that are numbers, within the bounds that make sense."""

import math
import reprlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

Bounds = tuple[str, Callable[[float], bool]]  # in words, and as a condition

LARGEST = sys.float_info.max
NOT_NEGATIVE: Bounds = ("0 or more", lambda v: 0 <= v <= LARGEST)
POSITIVE: Bounds = ("a positive number", lambda v: 0 < v <= LARGEST)
BELOW_ONE: Bounds = ("a number in [0, 1)", lambda v: 0 <= v < 1)
SHARE: Bounds = ("a number from 0 to 1", lambda v: 0 <= v <= 1)
NORM: Bounds = ("0 or more, or infinity", lambda v: 0 <= v <= LARGEST or v == math.inf)


def number(what: str, value: Any, bounds: Bounds) -> float:
    """A number within bounds, as Python's own: a NumPy scalar would raise the precision of the arrays it meets.

    what: "AdamW: lr", for the error. Raises TypeError for what is no number, ValueError for one out of bounds.
    """
    words, holds = bounds
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} = {described(value)}, expected {words}")
    if not holds(value):
        raise ValueError(f"{what} = {described(value)}, expected {words}")
    return float(value)


def integer(what: str, value: Any, least: int) -> int:
    """A whole number of at least so much, as Python's own. Raises TypeError or ValueError, as `number` does."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} = {described(value)}, expected {least} or more, an integer")
    if isinstance(value, float) or value < least:
        raise ValueError(f"{what} = {described(value)}, expected {least} or more, an integer")
    return value


def pictures_fit(caller: str, count: int, side: int) -> None:
    """Raises ValueError for more than 2^28 pixels, 1 GiB in float32, which somebody has hardly meant."""
    if count * side**2 > 2**28:
        asked = f"{count:,} pictures of {side:,} x {side:,} pixels"
        raise ValueError(f"{caller}: {asked} are {count * side**2 / 2**28:,.0f} GiB; draw at most 1 GiB at a time")


def truth(what: str, value: Any) -> bool:
    """True or False, as Python's own. Raises TypeError for anything else."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{what} = {described(value)}, expected True or False")
    return bool(value)


def two_betas(what: str, value: Any) -> tuple[float, float]:
    """Adam's two rates of forgetting. Raises TypeError or ValueError, as `number` does."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"{what} = {described(value)}, expected two numbers in [0, 1)")
    b1, b2 = (number(what, beta, BELOW_ONE) for beta in value)
    return b1, b2


def described(value: Any) -> str:
    """A value in few words: itself where it is short, else what it is."""
    if value is None or isinstance(value, int | float | complex | str | bytes):
        return reprlib.repr(value)
    return f"a {type(value).__name__}"
