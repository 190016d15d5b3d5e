"""Exercises of lecture 10: a real language model."""

from typing import Any

import numpy as np

from .exercises import cause, exercise, same


@exercise("10.1")
def how_many_questions(answer: Any) -> str | None:
    """0.98 / sqrt(n) <= 0.05: n = 385, or 384 by rounding."""
    if float(answer) in (384, 385):
        return None
    if abs(float(answer) - 96) <= 1:
        return "that is for 10 points; half the width takes four times as many"
    if abs(float(answer) - (0.98 / 5) ** 2) < 0.1:
        return "5 points are 0.05"
    return "n with 0.98 / sqrt(n) = 0.05, as a whole number"


@exercise("10.2")
def what_counts(answer: Any) -> str | None:
    """The target of a place is the next token; it counts where that token is one of the answer's, its end included."""
    got = np.asarray(answer, dtype=float)
    likely = {
        "a target is one ahead: the *next* token": [-100, -100, -100, 8, 9],
        "the last token of the prompt predicts the answer's first one, and that counts": [-100, -100, -100, 9, 2],
        "the prompt's own tokens must not count": [6, 7, 8, 9, 2],
        "the end counts, too: the model has to learn to stop": [-100, -100, 8, 9, -100],
    }
    return same(got, [-100.0, -100, 8, 9, 2], cause(got, likely, "five targets, one for each input"))


@exercise("10.3")
def from_the_factors(answer: Any) -> str | None:
    """The singular values of R_B R_A^T, with B = Q_B R_B and A^T = Q_A R_A."""
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((9, 3)), rng.standard_normal((3, 7))
    right = np.linalg.svd(B @ A, compute_uv=False)[:3]
    got = np.asarray(answer(B, A), dtype=float)
    if got.shape == (7,) and np.allclose(got[:3], right):
        return "got 7 values, of which 4 are rounding: BA was formed; the small matrix in the middle has 3"
    if got.shape == (3,) and np.allclose(np.sort(got), np.sort(right)) and not np.allclose(got, right):
        return "the largest first"
    swapped = np.linalg.svd(np.linalg.qr(B)[1] @ np.linalg.qr(A.T)[1], compute_uv=False)
    forgot = got.shape == (3,) and np.allclose(got, swapped)
    return same(
        got, right, "R_A stands transposed: B A = Q_B (R_B R_A^T) Q_A^T" if forgot else "R_B R_A^T is 3 x 3", 1e-4
    )


@exercise("10.4")
def half_a_step(answer: Any) -> str | None:
    """Between 2 and 4 bfloat16's numbers are 2^-6 apart; half of that, 2^-7, rounds to the even one, which is 3."""
    if np.isclose(float(answer), 2.0**-6):
        return "that is a whole step; what is nearer to 3 than to the next number is rounded back"
    if np.isclose(float(answer), 2.0**-9 * 3):
        return "the rule's bound is for any W; between 2 and 4 the numbers are equally far apart: how far?"
    if np.isclose(float(answer), 2.0**-8):
        return "between 1 and 2 it would be; 3 lies between 2 and 4, where a step is twice as large"
    return same(answer, 2.0**-7, "half the distance from 3 to the next number of 8 significant bits", 1e-4)
