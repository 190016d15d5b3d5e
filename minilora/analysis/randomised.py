"""The largest singular values of a matrix that is too large for its full decomposition, from a few products with it.

Halko, Martinsson & Tropp 2011, "Finding structure with randomness" (SIAM Review 53). A matrix D (m, n) times a few
random vectors spans nearly what its largest singular vectors span. With an orthonormal Q (m, l) of that span,

    D ~ Q (Q^T D) = (Q U) S V^T        of the SVD of the small Q^T D (l, n)                        (algorithm 5.1)

Multiplying by D D^T a few times in between turns Q towards the largest ones (algorithm 4.4), and a few vectors more
than the rank, the oversampling, keep what a draw may miss small. How far Q Q^T D is from D, fresh vectors w_i tell:

    ||D - Q Q^T D||_2 <= 10 sqrt(2/pi) max_i ||(D - Q Q^T D) w_i||,   i = 1 ... 10,                 (eq. 4.3)

but for one draw in 10^10. The rank is then cut to k, which costs s_{k+1} of Q^T D by the triangle inequality.
"""

from typing import Any, NamedTuple

import numpy as np

from ..autograd.signatures import checked
from .rank import _matrix

OVERSAMPLING, ROUNDS, VECTORS = 10, 2, 10  # columns of Q beyond the rank; products with D D^T; vectors of eq. 4.3


class Decomposition(NamedTuple):
    """D ~ U diag(s) V^T: u (m, k), s (k,), vt (k, n); bound: what ||D - U diag(s) V^T||_2 is at most."""

    u: np.ndarray
    s: np.ndarray
    vt: np.ndarray
    bound: float


@checked
def randomised_svd(matrix: Any, rank: int, rng: int = 0) -> Decomposition:
    """The k largest singular values and their vectors, in the matrix's precision; k at most min(m, n)."""
    D = matrix if isinstance(matrix, np.ndarray) and matrix.dtype == np.float32 else _matrix("randomised_svd", matrix)
    draw = np.random.default_rng(rng)
    columns = min(rank + OVERSAMPLING, *D.shape)
    Q = np.linalg.qr(D @ draw.standard_normal((D.shape[1], columns), D.dtype))[0]  # (m, l)
    for _ in range(ROUNDS):
        Q = np.linalg.qr(D.T @ Q)[0]  # (n, l)
        Q = np.linalg.qr(D @ Q)[0]  # (m, l)
    inside = Q.T @ D  # (l, n)
    u, s, vt = np.linalg.svd(inside, full_matrices=False)
    w = draw.standard_normal((D.shape[1], VECTORS), D.dtype)
    outside = 10 * np.sqrt(2 / np.pi) * np.linalg.norm(D @ w - Q @ (inside @ w), axis=0).max()
    return Decomposition(Q @ u[:, :rank], s[:rank], vt[:rank], float(outside + s[rank : rank + 1].sum()))


@checked
def distance(matrix: Any, B: Any, A: Any, rng: int = 0) -> tuple[float, float]:
    """||D - B A||_F and ||D - B A||_2 of D (m, n), measured: no other matrix of D's size is made.

    The first is summed over stretches of rows; the second is what the power method finds in 15 rounds, from below.
    """
    squares, step = 0.0, max(1, 2**20 // matrix.shape[1])
    for i in range(0, len(matrix), step):
        rest = (matrix[i : i + step] - B[i : i + step] @ A).astype(float)
        squares += float(np.vdot(rest, rest))
    x = np.random.default_rng(rng).standard_normal(matrix.shape[1], matrix.dtype)
    length = 0.0
    for _ in range(15):
        x /= np.linalg.norm(x) or 1
        y = matrix @ x - B @ (A @ x)
        length, x = float(np.linalg.norm(y)), matrix.T @ y - A.T @ (B.T @ y)
    return float(np.sqrt(squares)), length


@checked
def random_share(shape: tuple, rank: int) -> float:
    """The share of the energy that the k largest directions hold of a matrix of independent numbers, (m, n) large.

    Marchenko & Pastur 1967: with b = min(m, n) / max(m, n), squared singular values per max(m, n) lie at 1 + b +
    2 sqrt(b) cos(t), 0 <= t <= pi, in numbers (2/pi) sin(t)^2 / (1 + b + 2 sqrt(b) cos(t)) dt; their energy is
    (2/pi) sin(t)^2 dt, whose integral is (t - sin(t) cos(t)) / pi.
    """
    low, high = min(shape), max(shape)
    t = np.linspace(0, np.pi, 4001)
    value = 1 + low / high + 2 * np.sqrt(low / high) * np.cos(t)
    numbers = np.divide(2 / np.pi * np.sin(t) ** 2, value, out=np.zeros_like(t), where=value > 1e-12)
    count = np.concatenate([[0], np.cumsum((numbers[1:] + numbers[:-1]) / 2 * t[1])])
    top = np.interp(min(rank / low, 1), count / count[-1], t)
    return float((top - np.sin(top) * np.cos(top)) / np.pi)
