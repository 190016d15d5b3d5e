"""The exercises of lecture 10: what is wrong in a likely way is told apart, with a hint of its own."""

import re

import numpy as np
import pytest
from hints import assert_hint

WRONG = [
    ("10.1", 96, "half the width"),
    ("10.1", 0.0384, "5 points are 0.05"),
    ("10.1", 400, "0.98 / sqrt(n)"),
    ("10.2", [-100, -100, -100, 8, 9], "one ahead"),
    ("10.2", [-100, -100, -100, 9, 2], "last token of the prompt"),
    ("10.2", [6, 7, 8, 9, 2], "prompt's own"),
    ("10.2", [-100, -100, 8, 9, -100], "learn to stop"),
    ("10.2", [8, 9, 2], "shape"),
    ("10.3", lambda B, A: np.linalg.svd(B @ A, compute_uv=False), "BA was formed"),
    ("10.3", lambda B, A: np.linalg.svd(B @ A, compute_uv=False)[:3][::-1], "largest first"),
    ("10.3", lambda B, A: np.linalg.svd(np.linalg.qr(B)[1] @ np.linalg.qr(A.T)[1], compute_uv=False), "transposed"),
    ("10.4", 2.0**-6, "a whole step"),
    ("10.4", 3 * 2.0**-9, "between 2 and 4"),
    ("10.4", 2.0**-8, "twice as large"),
    ("10.4", 0.1, "half the distance"),
]


@pytest.mark.parametrize(("name", "answer", "told"), WRONG)
def test_a_likely_mistake_has_its_hint(name: str, answer: object, told: str, capsys: pytest.CaptureFixture) -> None:
    assert_hint(capsys, name, answer, re.escape(told))


def test_the_largest_update_that_leaves_no_trace_is_the_one_that_the_package_rounds_away() -> None:
    from minilora.analysis.rounding import arrived

    assert arrived(np.array([[3.0]]), np.array([[2.0**-7]]), "bfloat16") == 0
    assert arrived(np.array([[3.0]]), np.array([[2.0**-7 * (1 + 1e-6)]]), "bfloat16") > 0
