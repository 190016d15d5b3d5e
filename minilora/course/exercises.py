"""Exercises that check themselves: `check("5.2", answer)` says whether an answer is right, and what may be wrong.

The checks of a lecture are functions in a file of its own, lecture_05.py, each under its exercise's name:

    @exercise("5.2")
    def rank_two(answer):
        return same(answer, expected, hint="s = alpha / r has changed, too")

It gets what the student hands in and returns None where it is right, or one line that says what is wrong and hints at
why. It computes the truth itself; it never holds a result that somebody typed.
"""

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..autograd.backend import to_numpy
from ..autograd.signatures import checked, shown

Check = Callable[[Any], str | None]
CHECKS: dict[str, Check] = {}  # "5.2" -> its check, once its lecture's file has been read


def exercise(name: str) -> Callable[[Check], Check]:
    """Enter a check under the name of its exercise."""

    def enter(function: Check) -> Check:
        CHECKS[name] = function
        return function

    return enter


@checked
def check(name: str, answer: Any) -> bool:
    """Check an answer to an exercise of a lecture, such as check("5.2", y): -> whether it is right.

    Prints "✓ 5.2", or "✗ 5.2: " and what is wrong. An answer that is not given yet (`...`) is not right; one whose code
    raises is shown its error. Raises ValueError for an exercise that does not exist or has no check.
    """
    function = _find(name)
    if answer is ... or answer is None:
        wrong: str | None = "not answered yet"
    else:
        try:
            wrong = function(answer)
        except Exception as error:  # of the student's own function, or of an answer of another form
            wrong = f"your answer {shown(answer)} ends in {type(error).__name__}: {error}"
    print(f"✓ {name}" if wrong is None else f"✗ {name}: {' '.join(wrong.split())}")
    return wrong is None


def _find(name: str) -> Check:
    lecture = re.match(r"(\d+)([a-z]?)\.\d+", name)
    if lecture:
        module = f"lecture_{int(lecture[1]):02d}{lecture[2]}"
        try:
            importlib.import_module(f".{module}", __package__)
        except ModuleNotFoundError as error:
            if error.name != f"{__package__}.{module}":
                raise
    if name not in CHECKS:
        there = ", ".join(sorted(CHECKS)) or "none in this lecture"
        raise ValueError(f"check: no exercise {name!r} that checks itself; there are {there}")
    return CHECKS[name]


def same(answer: Any, expected: Any, hint: str = "", tolerance: float = 1e-6) -> str | None:
    """None where two numbers or arrays agree to `tolerance` of the largest entry; else what differs, and the hint."""
    try:
        got = np.asarray(to_numpy(answer), dtype=float)
    except (TypeError, ValueError):
        return f"got {shown(answer)}, expected {_form(np.asarray(expected))}"
    expected = np.asarray(to_numpy(expected), dtype=float)
    if got.shape != expected.shape:
        return f"got {_form(got)}, expected {_form(expected)}"
    off = np.abs(got - expected)
    if off.size and not off.max() <= tolerance * max(1.0, np.abs(expected).max()):
        worst = np.unravel_index(np.argmax(np.where(np.isnan(off), np.inf, off)), off.shape)
        where = f"entry {tuple(map(int, worst))} is" if off.ndim else "got"
        return f"{where} {got[worst]:.8g}, and that is not right{'; ' if hint else ''}{hint}"
    return None


def cause(answer: Any, likely: Mapping[str, Any], otherwise: str = "", tolerance: float = 1e-6) -> str:
    """The hint at the first likely mistake whose result the answer is, or else the other.   likely: {hint: result}"""
    return next((hint for hint, wrong in likely.items() if same(answer, wrong, "", tolerance) is None), otherwise)


def _form(array: np.ndarray) -> str:
    return f"an array of shape {array.shape}" if array.ndim else "one number"
