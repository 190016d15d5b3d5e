"""Lecture 5's checks: the likely mistakes are found, each with its cause. Right answers: tests/test_instructor.py."""

import numpy as np
import pytest
from hints import assert_hint

import minilora as ml
from minilora.course.lecture_05 import ALPHA, A, B, W, b, t, x

FIRST = np.array([[0], [1], [0], [0]], float)
Y, H = ml.lora_forward(x, W, b, A, FIRST, ALPHA)
DX, DA, DB = ml.lora_backward(Y - t, x, H, W, A, FIRST, ALPHA)
OLD_G = ml.lora_forward(x, W, b, A, B, ALPHA)[0] - t
TWO = np.vstack([A, [0, 1, 1, 0]]), np.hstack([B, [[1], [1], [0], [0]]])
DW = (x @ W.T + b - t).T @ x

WRONG = [
    ("5.1", Y, "expected a list of four"),
    ("5.1", [ml.lora_forward(x, W, b, A, B, ALPHA)[0], DX, DA, DB], "y: "),
    ("5.1", [Y, DX, DA / ALPHA, DB], "dA: .*dh = s g B"),  # the scale forgotten
    ("5.1", [Y, DX, DA, ALPHA * OLD_G.T @ H], "dB: .*g is of the new y"),
    ("5.2", ml.lora_forward(x, W, b, *TWO, 2.0)[0], "r is 2 now"),
    ("5.2", ml.lora_forward(x, W, b, A, B, ALPHA)[0], "not right"),
    ("5.3", lambda s: 1 / s, "has to make it larger"),
    ("5.3", lambda s: s * s, "one factor s"),
    ("5.4", lambda d_in, d_out, r: r * (d_in + d_out), "those are all of them"),
    ("5.4", lambda d_in, d_out, r: r * (d_in + d_out) - r, "not right"),
    ("5.5", -0.01 * ALPHA * DW @ A.T @ A, "one factor s is missing"),
    ("5.5", 0.01 * ALPHA**2 * DW @ A.T @ A, "the sign"),
    ("5.5", -0.01 * ALPHA**2 * DW, "not right"),
    ("5.6", lambda d_in, r: (d_in**-0.5, 1 / r, r**-0.5), "over sqrt"),
    ("5.6", lambda d_in, r: ((3 * d_in) ** -0.5, r**-0.5, r**-0.5), "not right"),
]


@pytest.mark.parametrize(("name", "answer", "hint"), WRONG)
def test_a_likely_mistake_is_told_its_cause(
    name: str, answer: object, hint: str, capsys: pytest.CaptureFixture
) -> None:
    assert_hint(capsys, name, answer, hint)
