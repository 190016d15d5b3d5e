"""The exercises of lectures 8a to 8c: what is wrong in a likely way is told apart, with a hint of its own.

That the instructor's solutions are accepted and what is untouched is not: `tests/test_instructor.py`.
"""

import numpy as np
import pytest
from hints import assert_hint

from minilora.adapters.quantization import LEVELS


def softmax_share(scale: float, other: bool = False) -> object:
    def share(q: np.ndarray, K: np.ndarray, K_new: np.ndarray) -> float:
        new, old = (np.exp(k @ q / scale).sum() for k in (K_new, K))
        return float((old if other else new) / (new + old))

    return share


def pissa(power: float, scaled: bool = True) -> object:
    def start(W: np.ndarray, r: int, s: float) -> tuple[np.ndarray, np.ndarray]:
        U, S, Vt = np.linalg.svd(W)
        S = S[:r] / s if scaled else S[:r]
        return (S ** (1 - power))[:, None] * Vt[:r], U[:, :r] * S**power

    return start


EYE = np.eye(6)
V = np.array([[4.0, 3], [2, 2]])
WRONG = [
    ("8a.1", (15_360, 184_320, 2_379_264), "keys *and* values"),
    ("8a.1", (15_360, 30_720, 2_379_264), "one block's"),
    ("8a.1", (15_360, 368_640, 2_359_296), "has no biases"),
    ("8a.1", (15_360, 368_640, 1_189_632), "one bottleneck a block"),
    ("8a.1", (20, 368_640, 2_379_264), "prompt: not right"),
    ("8a.2", softmax_share(1), "root of D"),
    ("8a.2", softmax_share(np.sqrt(5), True), "share of the text"),
    ("8a.2", lambda q, K, K_new: np.exp(K_new @ q / 5**0.5).sum() / np.exp(K @ q / 5**0.5).sum(), "prefix over all"),
    ("8a.4", (150_656, 150_656), "thrown away"),
    ("8a.4", 3, "TypeError"),
    ("8a.6", lambda W, b, D, d, U, u: (U @ D @ W, b), "W' lacks"),
    ("8a.6", lambda W, b, D, d, U, u: (W @ (EYE + U @ D)[:5, :5], b), "the layer first"),
    ("8a.6", lambda W, b, D, d, U, u: ((EYE + U @ D) @ W, b + U @ d + u), "what the bottleneck does to b"),
    ("8a.6", lambda W, b, D, d, U, u: ((EYE + U @ D) @ W, (EYE + U @ D) @ b + u), "passes through up"),
    ("8b.1", [6, -1, 2, -4], "the largest weight has the largest code"),
    ("8b.1", [7, -1, 2, -4], "the nearest level"),
    ("8b.1", [7, -2, 3], "shape"),
    ("8b.2", LEVELS["nf4"], "that is NF4"),
    ("8b.2", np.linspace(-1, 1, 16), "half as many"),
    ("8b.2", np.linspace(-1, 1, 15), "got 15 levels"),
    ("8b.2", np.linspace(-0.5, 0.5, 16), "can be reached"),
    ("8b.3", np.linspace(-1, 1, 8), "evenly spaced"),
    ("8b.3", np.array([-1, -0.5, -0.25, -0.1, 0.1, 0.25, 0.5, 1]), "zero must be a level"),
    ("8b.3", np.array([-1, -0.6, -0.25, 0, 0.2, 0.4, 0.6, 1]), "made apart"),
    ("8b.4", lambda block, double: 4 + 32 / block, r"bits\(16, True\)"),
    ("8b.4", lambda block, double: 4 + (8 if double else 32) / block, "scales' own scale"),
    ("8b.4", lambda block, double: 32 / block, "beside 4 bits"),
    ("8c.1", np.array([10.0, 1])[:, None] * V / np.linalg.norm(V, axis=0), "each row's"),
    ("8c.1", np.array([10.0, 1])[:, None] * V, "divide each row"),
    ("8c.1", V, "over its length"),
    ("8c.2", pissa(0.5, scaled=False), "root of S / s"),
    ("8c.2", pissa(1.0), "not shared evenly"),
    ("8c.2", lambda W, r, s: pissa(0.5)(W, r, s)[::-1], "A comes first"),
    ("8c.3", lambda w1, s1, B1, A1, w2, s2, B2, A2: (w1 * s1 * B1 + w2 * s2 * B2, A1 + A2), "mixed terms"),
    ("8c.3", lambda w1, s1, B1, A1, w2, s2, B2, A2: (np.hstack([w1 * B1, w2 * B2]), np.vstack([A1, A2])), "missing"),
    ("8c.4", np.tile(EYE[:2, :2], 3).T, "A is"),
    ("8c.4", np.repeat(EYE[:2, :2], 3, axis=1), "neighbours"),
    ("8c.6", [2 / 3, -1 / 3, -1 / 3], "mean of all three"),
    ("8c.6", [1, 0, 0], "others' mean"),
]


@pytest.mark.parametrize(("name", "answer", "told"), WRONG)
def test_a_likely_mistake_has_its_hint(name: str, answer: object, told: str, capsys: pytest.CaptureFixture) -> None:
    assert_hint(capsys, name, answer, told.replace("*", r"\*"))
