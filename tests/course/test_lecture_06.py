"""Lecture 6's checks: the likely mistakes are found, each with its cause. Right answers: tests/test_instructor.py."""

import numpy as np
import pytest
from hints import assert_hint

from minilora.analysis import rank


def delta_s_share(W: np.ndarray, delta: np.ndarray, i: int) -> float:
    u, s, vt = rank.svd(W + delta)
    return u[:, i] @ delta @ vt[i] / s[i]


def of_w_itself(W: np.ndarray, delta: np.ndarray, i: int) -> float:
    u, _, vt = rank.svd(W)
    return u[:, i] @ W @ vt[i] / rank.singular_values(W + delta)[i]


WRONG = [
    ("6.1", 3, "expected three numbers"),
    ("6.1", (2, 25 / 16, 3.6), "energy rank: .*squared"),
    ("6.1", (3, 9 / 4, 3.6), "stable rank"),
    ("6.1", (3, 25 / 16, 2.6), "effective rank: .*not squared"),
    ("6.4", 24 / 25, "its square"),
    ("6.4", 24**2, "length 1"),
    ("6.5", delta_s_share, "Delta W's share"),
    ("6.5", of_w_itself, "those of W"),
    ("6.6", 0.01, "expected two numbers"),
    ("6.6", (0.1, 0.1), "bfloat16: .*smaller"),
    ("6.6", (0.003, 0.003), "float16: .*smaller"),
    ("6.6", (1e-4, 1e-4), "bfloat16: .*larger"),
    ("6.7", (0.25, 1.0), "last"),
    ("6.7", (4.0, 4.0), "first"),
]


@pytest.mark.parametrize(("name", "answer", "hint"), WRONG)
def test_a_likely_mistake_is_told_its_cause(
    name: str, answer: object, hint: str, capsys: pytest.CaptureFixture
) -> None:
    assert_hint(capsys, name, answer, hint)
