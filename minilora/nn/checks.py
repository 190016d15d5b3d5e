"""The words of errors that several files have."""

import difflib
import reprlib
from typing import Any


def unknown(what: str, name: str, known: list[str], close: list[str] | None = None) -> str:
    """The text of an error about a name that is not known: the closest one (among `close`), then all of them."""
    best = difflib.get_close_matches(name.lower(), known if close is None else close, n=1, cutoff=0.5)
    hint = f" (did you mean {best[0]!r}?)" if best else ""
    return f"unknown {what} {reprlib.repr(name)}{hint}; there are {', '.join(known)}"


def whole(name: str, field: str, value: Any, least: int = 1) -> int:
    """The value, if it is an integer of at least `least` that a computer's array could have as its size."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        expected = "a positive integer" if least == 1 else f"an integer, {least} or more"
        expected += " below 2^63" if isinstance(value, int) and value >= 2**63 else ""
        raise ValueError(f"{name}: {field} = {reprlib.repr(value)}, expected {expected}")
    return value
