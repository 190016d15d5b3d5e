"""The checks of lecture 3: the likely mistakes get their own hint."""

import numpy as np
import pytest
from hints import told

import minilora as ml


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    weights = np.exp(x - x.max(axis=axis, keepdims=True))
    return weights / weights.sum(axis=axis, keepdims=True)


def scores(q: np.ndarray, k: np.ndarray, root: float | None = None) -> np.ndarray:
    return q @ k.swapaxes(-1, -2) / (np.sqrt(q.shape[-1]) if root is None else root)


def masked(s: np.ndarray, value: float = -np.inf) -> np.ndarray:
    return np.where(np.tri(s.shape[-1], dtype=bool), s, value)


def naive(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    weights = np.exp(masked(scores(q, k)))
    return weights / weights.sum(axis=-1, keepdims=True) @ v


@pytest.mark.parametrize(
    ("attention", "hint"),
    [
        (lambda q, k, v: None, "not answered yet"),
        (lambda q, k, v: softmax(scores(q, k)) @ v, "nothing is masked"),
        (lambda q, k, v: softmax(masked(scores(q, k, 1.0))) @ v, "not divided"),
        (lambda q, k, v: softmax(masked(scores(q, k, np.sqrt(5)))) @ v, "not of T"),
        (lambda q, k, v: softmax(masked(scores(q, k, 3.0))) @ v, "not by D"),
        (lambda q, k, v: masked(softmax(scores(q, k)), 0) @ v, "no longer adds to 1"),
        (lambda q, k, v: softmax(masked(scores(q, k), 0)) @ v, "still gets weight"),
        (lambda q, k, v: softmax(masked(scores(q, k)), -2) @ v, "each row"),
        (lambda q, k, v: masked(scores(q, k), 0) @ v, "softmax is missing"),
        (lambda q, k, v: softmax(scores(q, k)).T @ v, "ends in ValueError"),
        (naive, "nan"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_attention(capsys: pytest.CaptureFixture, attention: object, hint: str) -> None:
    assert "✗" in (said := told(capsys, "3.1", attention)) and hint in said


def test_right_attention(capsys: pytest.CaptureFixture) -> None:
    assert "✓" in told(capsys, "3.1", lambda q, k, v: softmax(masked(scores(q, k))) @ v)
    assert "✓" in told(capsys, "3.1", ml.ops.attention)


def test_a_new_models_loss(capsys: pytest.CaptureFixture) -> None:
    assert "✓" in told(capsys, "3.2", 10.82)
    assert "natural logarithm" in told(capsys, "3.2", np.log2(50257))
    assert "equally likely" in told(capsys, "3.2", 4.56)


def test_a_gate(capsys: pytest.CaptureFixture) -> None:
    sigma = lambda u: 1 / (1 + np.exp(-u))
    assert "product rule" in told(capsys, "3.5", lambda u, v, g: (g * v * sigma(u), g * u * sigma(u)))
    assert "of dv" in told(capsys, "3.5", lambda u, v, g: (g * v * sigma(u), g * u))
    assert "(1 - σ)" in told(capsys, "3.5", lambda u, v, g: (g * v * sigma(u) * (1 + u * sigma(u)), g * u * sigma(u)))


def test_the_price_of_length(capsys: pytest.CaptureFixture) -> None:
    assert "✓" in told(capsys, "3.7", 768)
    assert "masked ones" in told(capsys, "3.7", 1536)
    assert "2 T C" in told(capsys, "3.7", 384) and "2 T C" in told(capsys, "3.7", 128)
