"""The checks of lecture 1b: the right answers, and the likely wrong ones with a hint at their cause."""

import numpy as np
import pytest
from hints import assert_hint, assert_right

import minilora as ml
from minilora.analysis import rank


def nearest(matrix: np.ndarray, r: int) -> np.ndarray:
    B, A = rank.best_approximation(matrix, r)
    return B @ A


def without_transpose(matrix: np.ndarray, r: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :r] * s[:r]) @ vt.T[:r]


def gradients(B: np.ndarray, A: np.ndarray, M: np.ndarray) -> list[np.ndarray]:
    factors = [ml.Tensor(x, requires_grad=True) for x in (B, A)]
    return ml.grad(((factors[0] @ factors[1] - M) ** 2).sum(), factors)


RIGHT = {"1b.1": (45**0.5, 5**0.5), "1b.2": nearest, "1b.3": gradients, "1b.4": 2 * (300**0.5 + 10)}
WRONG = [
    ("1b.1", (45, 5), "their roots"),
    ("1b.1", (5, 3), "eigenvalues of M;"),
    ("1b.1", (5**0.5, 45**0.5), "largest first"),
    ("1b.2", without_transpose, "transposed already"),
    ("1b.2", lambda matrix, r: nearest(matrix, 1), "at r = 3"),
    ("1b.3", lambda B, A, M: [g / 2 for g in gradients(B, A, M)], "gradient of B: .*mind the 2"),
    ("1b.3", lambda B, A, M: (gradients(B, A, M)[0], np.zeros_like(A)), "gradient of A"),
    ("1b.4", 300**0.5 + 10, "grows with sigma"),
    ("1b.4", 40.0, "root of a sum"),
]


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_and_untouched_stubs(name: str) -> None:
    assert_right(name, RIGHT[name])


@pytest.mark.parametrize(("name", "answer", "hint"), WRONG)
def test_wrong_answers_get_a_hint(name: str, answer: object, hint: str, capsys: pytest.CaptureFixture) -> None:
    assert_hint(capsys, name, answer, hint)
