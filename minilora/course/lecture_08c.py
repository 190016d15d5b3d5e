"""Exercises of lecture 8c: LoRA's descendants, and sums of adapters."""

from typing import Any

import numpy as np

from .exercises import cause, exercise, same


@exercise("8c.1")
def dora_by_hand(answer: Any) -> str | None:
    """W' = m V / ||V||, row by row, with V = W + the update."""
    W, update, m = np.array([[3.0, 4], [0, 2]]), np.array([[1.0, -1], [2, 0]]), np.array([10.0, 1])
    V = W + update
    right = m[:, None] * V / np.linalg.norm(V, axis=1)[:, None]
    got = np.asarray(answer, dtype=float)
    likely = {
        "the length is each row's, not each column's": m[:, None] * V / np.linalg.norm(V, axis=0),
        "m belongs to the rows": m * V / np.linalg.norm(V, axis=1)[:, None],
        "divide by the length of the *new* row": m[:, None] * V / np.linalg.norm(W, axis=1)[:, None],
        "divide each row of W + update by its length first": m[:, None] * V,
        "the direction is that of W + update": m[:, None] * W / np.linalg.norm(W, axis=1)[:, None],
    }
    return same(got, right, cause(got, likely, "each row of W + update over its length, times its m", 1e-5), 1e-3)


@exercise("8c.2")
def pissa_start(answer: Any) -> str | None:
    """s B0 A0 is the best approximation of rank r, and B0^T B0 = A0 A0^T."""
    W, r, s = np.random.default_rng(0).standard_normal((6, 5)), 2, 4.0
    A, B = (np.asarray(part, dtype=float) for part in answer(W, r, s))
    if A.shape != (r, 5) or B.shape != (6, r):
        return f"got A {A.shape} and B {B.shape}, expected ({r}, 5) and (6, {r}); A comes first"
    U, S, Vt = np.linalg.svd(W)
    best = U[:, :r] * S[:r] @ Vt[:r]
    if np.allclose(B @ A, best):
        return "B0 A0 is the best approximation, but the layer adds s B0 A0: each factor has the root of S / s"
    if wrong := same(s * B @ A, best, "the r largest singular values and their vectors", 1e-4):
        return f"s B0 A0: {wrong}"
    shared = np.allclose(B.T @ B, A @ A.T, atol=1e-6)
    return None if shared else "the product is right, but S_r is not shared evenly: the root of it in each factor"


@exercise("8c.3")
def exact_sum(answer: Any) -> str | None:
    """[w1 s1 B1, w2 s2 B2] [A1; A2]"""
    rng = np.random.default_rng(0)
    for r1, r2 in ((2, 2), (1, 3)):
        B1, A1, B2, A2 = (rng.standard_normal(shape) for shape in ((6, r1), (r1, 5), (6, r2), (r2, 5)))
        B, A = answer(0.7, 2.0, B1, A1, -1.0, 0.5, B2, A2)
        right = 0.7 * 2.0 * B1 @ A1 - 0.5 * B2 @ A2
        if np.shape(np.asarray(B) @ np.asarray(A)) == right.shape and r1 == r2:
            got = np.asarray(B) @ np.asarray(A)
            if np.allclose(got, (1.4 * B1 - 0.5 * B2) @ (A1 + A2)):
                return "that has the mixed terms B1 A2 and B2 A1: put the B's side by side, the A's one under the other"
            if np.allclose(got, 0.7 * B1 @ A1 - B2 @ A2):
                return "the scales s1 and s2 are missing"
            if np.allclose(got, (1.4 * B1) @ (1.4 * A1) + (-0.5 * B2) @ (-0.5 * A2)):
                return "w and s stand in B *and* in A, so they are squared"
        if wrong := same(np.asarray(B) @ np.asarray(A), right, f"ranks {r1} and {r2}"):
            return f"B A: {wrong}"
    return None


@exercise("8c.4")
def miss_as_lora(answer: Any) -> str | None:
    """A[j, i] = 1 where i = j, j + r, j + 2 r, ..."""
    right = np.tile(np.eye(2), 3)
    got = np.asarray(answer, dtype=float)
    if got.shape == (6, 2):
        return "got an array of shape (6, 2), expected (2, 6): A is (r, d_in), and h = x A^T"
    if got.shape == (2, 6) and np.allclose(got, np.repeat(np.eye(2), 3, axis=1)):
        return "that sums neighbours; h_1 = x_1 + x_3 + x_5"
    return same(got, right, "h_1 = x_1 + x_3 + x_5 and h_2 = x_2 + x_4 + x_6")


@exercise("8c.6")
def baseline(answer: Any) -> str | None:
    """R - the mean of the other rewards."""
    got, right = np.asarray(answer, dtype=float), np.array([1.0, -0.5, -0.5])
    if got.shape == (3,) and np.allclose(got, [2 / 3, -1 / 3, -1 / 3], atol=0.01):
        return "that is the mean of all three; the episode's own reward must not be in its baseline"
    return same(got, right, "for the first, the others' mean is 0; for the second, it is that of 1 and 0", 1e-3)
