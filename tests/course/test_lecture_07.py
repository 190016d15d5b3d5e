"""The checks of lecture 7: the right answers, and the likely wrong ones with a hint at their cause."""

import pytest
from hints import assert_hint, assert_right

from minilora.course.lecture_07 import fitting

RIGHT = {
    "7.1": 4 * 32 * 16 * (4096 + 4096),
    "7.2": 102.4,
    "7.4": (fitting(16), sorted(fitting(4))),
    "7.5": 7,
    "7.8": 336,
}
WRONG = [
    ("7.1", 2 * 32 * 16 * (4096 + 4096), "2 times that .*four matrices"),
    ("7.1", 4 * 16 * (4096 + 4096), "32 layers"),
    ("7.1", 16, "each of four"),
    ("7.2", 64, "square"),
    ("7.2", 103, "fraction"),
    ("7.4", (fitting(16), fitting(16)), "in 4 bits .* fits, too"),
    ("7.4", ({"llama-2-70b"} | fitting(16), fitting(4)), "llama-2-70b does not fit"),
    ("7.4", ({"llama-9"}, fitting(4)), "no models"),
    ("7.5", 6, "compare the two parts"),
    ("7.8", 335, "the next one"),
    ("7.8", 672, "two bytes a number"),
    ("7.8", 64, "what is left is alpha"),
]


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_and_untouched_stubs(name: str) -> None:
    assert_right(name, RIGHT[name])


@pytest.mark.parametrize(("name", "answer", "hint"), WRONG)
def test_wrong_answers_get_a_hint(name: str, answer: object, hint: str, capsys: pytest.CaptureFixture) -> None:
    assert_hint(capsys, name, answer, hint)
