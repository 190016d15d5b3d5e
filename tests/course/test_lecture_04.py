"""The checks of lecture 4: the likely mistakes get their own hint."""

import numpy as np
import pytest
from hints import told

from minilora.analysis import counting
from minilora.course.lecture_04 import forward_passes
from minilora.training.corpus import Corpus

P = counting.count("llama-2-7b", "full").total_parameters


@pytest.mark.parametrize(
    ("answer", "hint"),
    [(16 * P, "AdamW"), (4 * P, "32-bit copy"), (8 * P / 1e9, "not GB"), (12 * P, "not right"), ("x", "")],
)
def test_bytes_of_sgd(capsys: pytest.CaptureFixture, answer: object, hint: str) -> None:
    assert "✗" in (said := told(capsys, "4.1", answer)) and hint in said
    assert "✓" in told(capsys, "4.1", 8 * P)


def joined(old: tuple, new: tuple) -> tuple:
    return tuple(np.concatenate(pair) for pair in zip(old, new, strict=True))


def always(old: Corpus, new: Corpus) -> tuple:
    rng = np.random.default_rng(0)
    return joined(old.batch(2, 128, rng), new.batch(6, 128, rng))


@pytest.mark.parametrize(
    ("mixed", "hint"),
    [
        (lambda old, new, rng: joined(old.batch(6, 128, rng), new.batch(2, 128, rng)), "6 windows are of the old"),
        (lambda old, new, rng: joined(old.batch(2, 64, rng), new.batch(6, 64, rng)), "(8, 64)"),
        (lambda old, new, rng: tuple(rng.permutation(a) for a in new.batch(8, 128, rng)), "the same order"),
        (lambda old, new, rng: always(old, new), "draw them with rng"),
        (lambda old, new, rng: new.batch(8, 128, rng)[0], "ends in ValueError"),
    ],
)  # fmt: skip
def test_rehearsal(capsys: pytest.CaptureFixture, mixed: object, hint: str) -> None:
    assert hint in told(capsys, "4.2", mixed)


@pytest.mark.parametrize(
    ("pull", "hint"),
    [
        (lambda t, s, r, k: t + r * k * (t - s), "sign"),
        (lambda t, s, r, k: t - r * k * t, "weight decay"),
        (lambda t, s, r, k: t - k * (t - s), "rate is missing"),
        (lambda t, s, r, k: t - r * (t - s), "strength is missing"),
        (lambda t, s, r, k: -r * k * (t - s), "alone"),
    ],
)
def test_pull(capsys: pytest.CaptureFixture, pull: object, hint: str) -> None:
    assert hint in told(capsys, "4.3", pull)


def test_a_pull_may_write_in_place(capsys: pytest.CaptureFixture) -> None:
    def pull(theta: np.ndarray, start: np.ndarray, rate: float, strength: float) -> np.ndarray:
        theta -= rate * strength * (theta - start)
        return theta

    assert "✓" in told(capsys, "4.3", pull)


def test_the_price_of_the_place(capsys: pytest.CaptureFixture) -> None:
    last, first = forward_passes("blocks.3"), forward_passes("blocks.0")
    assert "✓" in told(capsys, "4.7", (last, first)) and "expected (last, first)" in told(capsys, "4.7", (first, last))
    assert "not right" in told(capsys, "4.7", (3.0, 3.0))
