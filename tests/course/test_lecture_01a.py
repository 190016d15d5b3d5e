"""The checks of lecture 1a: the right answers, and the likely wrong ones with a hint at their cause."""

import numpy as np
import pytest
from hints import assert_hint, assert_right

ONES = np.ones
RIGHT = {
    "1a.1": (np.stack([6 * np.arange(4), ONES(4)], axis=1), np.stack([ONES(6), np.arange(1, 7)])),
    "1a.2": (3, 2, 2),
    "1a.3": 5,
    "1a.4": lambda B1, A1, B2, A2: (np.hstack([B1, B2]), np.vstack([A1, A2])),
    "1a.5": 277,
}
WRONG = [
    ("1a.1", (np.stack([6 * np.arange(4), ONES(4)], axis=1), np.stack([ONES(6), np.arange(6)])), r"6 i \+ "),
    ("1a.1", RIGHT["1a.1"][::-1], r"expected B \(4, 2\)"),
    ("1a.2", (2, 2, 2), "squares: .*expand"),
    ("1a.2", (3, 8, 2), "sines: .*two outer products"),
    ("1a.2", (3, 2, 1), "checkerboard: .*one rank less"),
    ("1a.3", 9, "3/2 of the first row"),
    ("1a.4", lambda B1, A1, B2, A2: (np.hstack([B1, B2]), np.vstack([A1, 2 * A2])), "side by side"),
    ("1a.4", lambda B1, A1, B2, A2: (B1, A1), "expected B"),
    ("1a.5", 276, "compare r"),
]


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_and_untouched_stubs(name: str) -> None:
    assert_right(name, RIGHT[name])


@pytest.mark.parametrize(("name", "answer", "hint"), WRONG)
def test_wrong_answers_get_a_hint(name: str, answer: object, hint: str, capsys: pytest.CaptureFixture) -> None:
    assert_hint(capsys, name, answer, hint)
