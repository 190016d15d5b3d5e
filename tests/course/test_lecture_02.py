"""The checks of lecture 2: the right answers, and the likely wrong ones with a hint at their cause."""

import numpy as np
import pytest
from hints import assert_hint, assert_right

import minilora as ml


def shared(g: np.ndarray, x: np.ndarray) -> np.ndarray:
    top = x == x.max(axis=-1, keepdims=True)
    return g[..., None] * top / top.sum(axis=-1, keepdims=True)


def add(a: tuple, b: tuple) -> tuple:
    return a[0] + b[0], a[1] + b[1]


def multiply(a: tuple, b: tuple) -> tuple:
    return a[0] * b[0], a[0] * b[1] + b[0] * a[1]


def tanh(a: tuple) -> tuple:
    y = np.tanh(a[0])
    return y, (1 - y * y) * a[1]


RIGHT = {
    "2.1": (lambda g, a, b: g / b, lambda g, a, b: -g * a / b**2),
    "2.3": shared,
    "2.4": lambda eps, f, f2: 2 * (eps * f / f2) ** 0.5,
    "2.5": (add, multiply, tanh),
}
WRONG = [
    ("2.1", (lambda g, a, b: 1 / b, RIGHT["2.1"][1]), "for a"),
    ("2.1", (RIGHT["2.1"][0], lambda g, a, b: g * a / b**2), "for b: .*-1 / b"),
    ("2.3", lambda g, x: g[:, None] * np.ones_like(x), "where the maximum is"),
    ("2.3", lambda g, x: g[..., None] * (x == x.max(axis=-1, keepdims=True)), "add up to 2"),
    ("2.4", lambda eps, f, f2: (3 * eps * f / f2) ** (1 / 3), "central"),
    ("2.4", lambda eps, f, f2: (eps * f / f2) ** 0.5, "set the derivative"),
    ("2.5", (add, lambda a, b: (a[0] * b[0], a[1] * b[1]), tanh), "a db"),
    ("2.5", (add, multiply, lambda a: (np.tanh(a[0]), 1 - np.tanh(a[0]) ** 2)), "mind dx"),
]


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_and_untouched_stubs(name: str) -> None:
    assert_right(name, RIGHT[name])


def test_one_of_two_equal_maxima_may_take_it_all() -> None:
    assert ml.check("2.3", lambda g, x: g[:, None] * np.eye(x.shape[-1])[x.argmax(axis=-1)])


@pytest.mark.parametrize(("name", "answer", "hint"), WRONG)
def test_wrong_answers_get_a_hint(name: str, answer: object, hint: str, capsys: pytest.CaptureFixture) -> None:
    assert_hint(capsys, name, answer, hint)
