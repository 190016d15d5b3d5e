"""The words of errors that several files have."""

import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..autograd.backend import array_module
from ..autograd.signatures import is_real, is_whole, shown

__all__ = ["divides", "flag", "generator", "is_real", "is_whole", "plain", "shown", "unknown", "whole"]


def unknown(what: str, name: str, known: list[str], close: list[str] | None = None) -> str:
    """The text of an error about a name that is not known: the closest one (among `close`), then all of them."""
    import difflib  # here: only a slip needs it

    best = difflib.get_close_matches(name.lower(), known if close is None else close, n=1, cutoff=0.5)
    hint = f" (did you mean {best[0]!r}?)" if best else ""
    return f"unknown {what} {reprlib.repr(name)}{hint}; there are {', '.join(known)}"


def listed(faults: Sequence[str], between: str = "; ") -> str:
    """The first six of what an error has to tell, and how many there are beside them."""
    return between.join(faults[:6]) + (f" (and {len(faults) - 6} more)" if len(faults) > 6 else "")


def whole(name: str, field: str, value: Any, least: int = 1) -> int:
    """The value, if it is an integer of at least `least` that a computer's array could have as its size."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        expected = "a positive integer" if least == 1 else f"an integer, {least} or more"
        expected += " below 2^63" if isinstance(value, int) and value >= 2**63 else ""
        raise ValueError(f"{name}: {field} = {reprlib.repr(value)}, expected {expected}")
    return value


def divides(name: str, sizes: Any, *pairs: tuple[str, str]) -> None:
    """Raise ValueError where one of the sizes is no multiple of another. pairs: their names, the larger first."""
    for large, small in pairs:
        if getattr(sizes, large) % getattr(sizes, small):
            came = f"{large} = {getattr(sizes, large)} is not divisible by {small} = {getattr(sizes, small)}"
            raise ValueError(f"{name}: {came}")


def generator(rng: Any, caller: str) -> np.random.Generator:
    """The Generator of a seed, or the one that is given. Raises TypeError or ValueError for what is no seed."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        wanted = "expected a seed, an integer of 0 or more, or a numpy Generator"
        raise type(error)(f"{caller}: rng = {shown(rng)}, {wanted}") from None


def flag(value: Any, what: str) -> None:
    """Raise ValueError unless a setting is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{what} = {shown(value)}, expected True or False")


def plain(value: Any, what: str) -> Any:
    """A value as an array of numbers, where it is. Raises TypeError for what is none, or has a mask."""
    if hasattr(value, "requires_grad") or isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{what} is a {type(value).__name__}, expected a plain array: x.data")
    try:
        array = array_module(value).asarray(value)
    except (ValueError, TypeError) as error:
        raise TypeError(f"{what} = {shown(value)}, expected an array: {error}") from None
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{what} = {shown(value)}, expected an array of numbers")
    return array
