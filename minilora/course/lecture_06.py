"""The checks of lecture 6's exercises. The truth is computed by `analysis/rank.py` and `analysis/rounding.py`."""

from typing import Any

import numpy as np

from ..analysis import rank, rounding
from .exercises import exercise, same


@exercise("6.1")
def by_hand(answer: Any) -> str | None:
    """The energy rank, stable rank and effective rank of the singular values 4, 2, 2, 1."""
    s = np.array([4.0, 2.0, 2.0, 1.0])
    if np.size(answer) != 3:
        return "expected three numbers: (energy rank, stable rank, effective rank)"
    truth = [rank.energy_rank(s), rank.stable_rank(s), rank.effective_rank(s)]
    hints = (
        "energy is squared: 16 + 4 + 4 + 1",
        "all energy over the largest value's",
        "p = s / sum(s), not squared; exp of the entropy",
    )
    for name, got, wanted, hint in zip(
        ("energy rank", "stable rank", "effective rank"), answer, truth, hints, strict=True
    ):
        if wrong := same(got, wanted, hint, tolerance=2e-3):
            return f"{name}: {wrong}"
    return None


@exercise("6.4")
def phi(answer: Any) -> str | None:
    """phi(1, 1) of two vectors."""
    if same(answer, 24 / 25) is None:
        return "that is the cosine; phi is its square"
    return same(answer, rank.subspace_similarity([[3.0, 4.0]], [[4.0, 3.0]], 1, 1), "the directions have length 1")


@exercise("6.5")
def own_share(answer: Any) -> str | None:
    """The share of a singular value of W + Delta W that is W's own."""
    rng = np.random.default_rng(0)
    W, delta = rng.normal(size=(6, 5)), rng.normal(size=(6, 5))
    u, s, vt = rank.svd(W + delta)
    for i in (0, 2):
        share = u[:, i] @ W @ vt[i] / s[i]
        if same(answer(W, delta, i), 1 - share) is None:
            return "that is Delta W's share"
        if wrong := same(answer(W, delta, i), share, "u and v are those of W + Delta W; divide by s"):
            return wrong
    return None


@exercise("6.6")
def threshold(answer: Any) -> str | None:
    """Where bfloat16, and float16, lose half of the entries."""
    if np.size(answer) != 2:
        return "expected two numbers: (bfloat16, float16)"
    for kind, size in zip(("bfloat16", "float16"), answer, strict=True):
        gone = rounding.predicted(float(size), kind)["gone"]
        if abs(gone - 0.5) > 0.05:
            more = "larger" if gone > 0.5 else "smaller"
            return f"{kind}: at {float(size):.2g} of W {gone:.0%} are gone; half are at a {more} size"
    return None


@exercise("6.7")
def louder(answer: Any) -> str | None:
    """The amplification of an update in W's last direction, and in its first."""
    W = np.diag([2.0, 1.0, 0.5])
    if np.size(answer) != 2:
        return "expected two numbers: (last, first)"
    for name, got, delta in zip(
        ("last", "first"), answer, (np.diag([0.0, 0.0, 2.0]), np.diag([2.0, 0.0, 0.0])), strict=True
    ):
        if wrong := same(got, rank.amplification(W, delta, 1), "the norm of Delta W over what W has in its direction"):
            return f"{name}: {wrong}"
    return None
