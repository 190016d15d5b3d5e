"""The exercises of lecture 1b that check themselves: the singular value decomposition."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .exercises import exercise, same


@exercise("1b.1")
def by_hand(answer: Sequence[float]) -> str | None:
    """The singular values of a 2 x 2 matrix, the largest first."""
    truth = np.linalg.svd([[3.0, 0.0], [4.0, 5.0]], compute_uv=False)
    got = np.asarray(answer, dtype=float)
    if same(got, truth**2) is None:
        return "these are the eigenvalues of M^T M; the singular values are their roots"
    if same(np.sort(got), [3.0, 5.0]) is None:
        return "these are the eigenvalues of M; singular values are roots of the eigenvalues of M^T M"
    return same(got, truth, "take the eigenvalues of M^T M, then roots, the largest first", 1e-3)


@exercise("1b.2")
def nearest(answer: Callable[[np.ndarray, int], Any]) -> str | None:
    """A function: a matrix and r -> the nearest matrix of rank r."""
    matrix = np.random.default_rng(0).normal(size=(5, 4))
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    hint = "numpy gives V transposed already: add s_i times column i of U times row i of V^T, for the r largest s_i"
    for r in (1, 3):
        if wrong := same(answer(matrix, r), (u[:, :r] * s[:r]) @ vt[:r], hint):
            return f"at r = {r}: {wrong}"
    return None


@exercise("1b.3")
def gradients(answer: Callable[..., tuple[Any, Any]]) -> str | None:
    """A function: B, A, M -> the gradients of the squared distance of B A and M."""
    rng = np.random.default_rng(0)
    B, A, M = (rng.normal(size=shape) for shape in ((4, 2), (2, 3), (4, 3)))
    error = B @ A - M
    for name, got, truth in zip(("B", "A"), answer(B, A, M), (2 * error @ A.T, 2 * B.T @ error), strict=True):
        hint = f"write d{name} for a small change of {name} and sort the change of the sum of squares; mind the 2"
        if wrong := same(got, truth, hint):
            return f"the gradient of {name}: {wrong}"
    return None


@exercise("1b.4")
def edge(answer: float) -> str | None:
    """Where the singular values of noise of sigma = 2 in a 300 x 100 matrix end."""
    if same(answer, np.sqrt(300) + np.sqrt(100), tolerance=1e-2) is None:
        return "the edge grows with sigma: twice the noise, twice the edge"
    return same(
        answer, 2 * (np.sqrt(300) + np.sqrt(100)), "sigma (sqrt m + sqrt n); the root of a sum is another", 1e-2
    )
