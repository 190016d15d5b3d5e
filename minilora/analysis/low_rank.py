"""The mathematics of an update that is never formed: Delta W = B A of two thin factors, s within B.

Of a matrix (m, n) of rank r everything follows from its factors B (m, r) and A (r, n). With the thin QR factorisations
B = Q_B R_B and A^T = Q_A R_A, where Q_B and Q_A have orthonormal columns,

    B A = Q_B (R_B R_A^T) Q_A^T

and a matrix keeps its singular values between two such Q. So those of the small R_B R_A^T (r, r) are Delta W's, and its
singular vectors, turned by Q_B and Q_A, are Delta W's vectors. The rest are sums over singular values s_1 >= s_2 >= ...

    ||Delta W||_F^2 = sum_i s_i^2,    ||Delta W||_2 = s_1,    <B_1 A_1, B_2 A_2> = tr(A_1^T B_1^T B_2 A_2)

This costs O((m + n) r^2) where the dense matrix would cost O(m n min(m, n)): for a matrix of Llama 2's 70 billion
parameters (28,672 x 8,192) at r = 16 a few milliseconds in the place of minutes. Golub & Van Loan 2013, "Matrix
Computations", sections 2.4 and 5.2. Everything is computed in float64.

>>> import numpy as np
>>> B, A = np.array([[3.0, 0.0], [0.0, 4.0]]), np.eye(2)
>>> singular_values(B, A).tolist(), norm(B, A)
([4.0, 3.0], 5.0)
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..adapters.combine import product_svd
from ..autograd.signatures import checked, is_real, is_whole, shown
from . import rank as ranks
from .rank import _matrix

Factors = tuple[np.ndarray, np.ndarray]  # B (m, r), A (r, n)


def factors(B: Any, A: Any, caller: str = "low_rank") -> Factors:
    """B (m, r) and A (r, n) in float64. Raises ValueError for what is no matrix, not finite, or does not fit."""
    one, two = (_matrix(caller, values) for values in (B, A))
    if one.shape[1] != two.shape[0]:
        inside = f"inner dimensions {one.shape[1]} and {two.shape[0]} differ"
        raise ValueError(f"{caller}: B {one.shape} @ A {two.shape}: {inside}")
    return one, two


# --- one update ------------------------------------------------------------------------------------------------------


def svd(B: Any, A: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The SVD of B A.   B: (m, r), A: (r, n) -> U (m, k), s (k,), V^T (k, n), k = min(m, r, n)"""
    return product_svd(*factors(B, A, "svd"))


def singular_values(B: Any, A: Any) -> np.ndarray:
    """s_1 >= s_2 >= ... of B A.   B: (m, r), A: (r, n) -> (min(m, r, n),)"""
    B, A = factors(B, A, "singular_values")
    r_b: Any = np.linalg.qr(B, mode="r")  # (r, r): no Q is asked for
    r_a: Any = np.linalg.qr(A.T, mode="r")  # (r, r)
    return np.linalg.svd(r_b @ r_a.T, compute_uv=False)


def norm(B: Any, A: Any) -> float:
    """||B A||_F"""
    return float(np.linalg.norm(singular_values(B, A)))


def describe(spectrum: Any) -> dict[str, Any]:
    """What a spectrum says: norms, ranks, and how many directions hold 90 and 99 % of the energy sum_i s_i^2.

    effective_rank: Roy & Vetterli 2007; stable_rank: ||M||_F^2 / ||M||_2^2. A matrix of zeros has 0 of everything.
    """
    s = np.asarray(spectrum, float)
    if not s.any():
        zero = dict.fromkeys(("frobenius_norm", "spectral_norm", "effective_rank", "stable_rank"), 0.0)
        return {**zero, "rank_90": 0, "rank_99": 0}
    return {
        "frobenius_norm": float(np.linalg.norm(s)),
        "spectral_norm": float(s.max()),
        "effective_rank": ranks.effective_rank(s),
        "stable_rank": ranks.stable_rank(s),
        "rank_90": ranks.energy_rank(s, 0.90),
        "rank_99": ranks.energy_rank(s, 0.99),
    }


def truncate(B: Any, A: Any, rank: int | None = None, energy: float | None = None) -> tuple[Any, Any, float]:
    """The nearest update of a smaller rank, and how far it is: -> B (m, k), A (k, n), ||difference||_F.

    rank: k, or as many as there are; energy: the smallest k that holds this share of ||B A||_F^2, 0 < energy <= 1. The
    distance is sqrt(sum_{i > k} s_i^2), and no other matrix of rank k is nearer (Eckart & Young 1936). sqrt(s_i) goes
    to each side, so that both factors keep their digits in few bits. k is 1 at least.
    """
    if (rank is None) == (energy is None):
        raise ValueError(f"truncate: rank = {shown(rank)} and energy = {shown(energy)}; give one of the two")
    if energy is not None and not (is_real(energy) and 0 < energy <= 1):
        raise ValueError(f"truncate: energy = {shown(energy)}, expected 0 < energy <= 1")
    if rank is not None and not (is_whole(rank) and rank >= 1):
        raise ValueError(f"truncate: rank = {shown(rank)}, expected a positive integer")
    u, s, vt = svd(B, A)
    k = rank if rank is not None else ranks.energy_rank(s, float(energy)) if s.any() else 1  # type: ignore[arg-type]
    root = np.sqrt(s[:k])
    return u[:, :k] * root, root[:, None] * vt[:k], float(np.linalg.norm(s[k:]))


# --- several updates -------------------------------------------------------------------------------------------------


def total(updates: Iterable[Factors]) -> Factors:
    """The sum of updates as one, exactly: [B_1 B_2 ...] (m, r_1 + r_2 + ...) and [A_1; A_2; ...].

    A product of longer matrices is a sum of products: B_1 A_1 + B_2 A_2 = [B_1 B_2] [A_1; A_2].
    """
    pairs = [factors(B, A, "total") for B, A in updates]
    if len({(len(B), A.shape[1]) for B, A in pairs}) != 1:
        shapes = ", ".join(str((len(B), A.shape[1])) for B, A in pairs) or "none"
        raise ValueError(f"total: updates of shapes {shapes}, expected one or more of one shape")
    return np.concatenate([B for B, _ in pairs], axis=1), np.concatenate([A for _, A in pairs])


def inner(one: Factors, other: Factors) -> float:
    """<Delta W_1, Delta W_2> = tr(A_1^T B_1^T B_2 A_2) = sum of (B_1^T B_2) * (A_1 A_2^T), both (r_1, r_2)"""
    (B1, A1), (B2, A2) = factors(*one, "inner"), factors(*other, "inner")
    if (len(B1), A1.shape[1]) != (len(B2), A2.shape[1]):
        raise ValueError(f"inner: {(len(B1), A1.shape[1])} and {(len(B2), A2.shape[1])}, expected one shape")
    return float(((B1.T @ B2) * (A1 @ A2.T)).sum())


def cosine(one: Factors, other: Factors) -> float | None:
    """<Delta W_1, Delta W_2> / (||Delta W_1||_F ||Delta W_2||_F), from -1 to 1; None where one of them is zero."""
    size = norm(*one) * norm(*other)
    return float(np.clip(inner(one, other) / size, -1, 1)) if size else None


def distance(one: Factors, other: Factors) -> float:
    """||Delta W_1 - Delta W_2||_F, to all its digits even where the two are close: of their difference, factored."""
    B, A = other
    return norm(*total([one, (-np.asarray(B, float), A)]))


def similarity(one: Any, other: Any, side: str) -> tuple[float | None, int]:
    """phi of two A's (side="right") or B's (side="left") at i = j = the smaller of their ranks: -> phi, i.

    How much of the one's subspace lies in the other's, from 0 to 1: Hu et al. 2021, section 7.2, eq. 4. None where one
    of them is zero.
    """
    one, other = (_matrix("similarity", value) for value in (one, other))
    if not one.any() or not other.any():
        return None, 0
    grid = ranks.similarity_grid(one, other, side)
    i = min(grid.shape)
    return float(min(grid[i - 1, i - 1], 1.0)), i


for _name, _value in [*globals().items()]:  # what people call is held to its signature
    if callable(_value) and getattr(_value, "__module__", "") == __name__ and not _name.startswith("_"):
        globals()[_name] = checked(_value)
