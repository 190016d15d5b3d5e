"""The exercises of lecture 1a that check themselves: rank."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .exercises import exercise, same


def pair(answer: Any, B: tuple[int, int], A: tuple[int, int]) -> str | None:
    """What is wrong with the shapes of two factors, or None."""
    shapes = [np.shape(factor) for factor in answer]
    return None if shapes == [B, A] else f"got shapes {shapes}, expected B {B} and A {A}"


@exercise("1a.1")
def consecutive(answer: tuple[Any, Any]) -> str | None:
    """B (4, 2) and A (2, 6) whose product is 1 to 24."""
    table = np.arange(1, 25).reshape(4, 6)
    hint = "row i and column j, from 0, hold 6 i + (j + 1): one part of the row alone, one of the column alone"
    return pair(answer, (4, 2), (2, 6)) or same(np.asarray(answer[0]) @ np.asarray(answer[1]), table, hint)


@exercise("1a.2")
def tables(answer: Sequence[int]) -> str | None:
    """The ranks of the squares (i + j)^2, of sin(i + j), and of a checkerboard."""
    i, j = np.indices((8, 8))
    hints = (
        "expand the square of (i + j) into terms, each a part of i times a part of j",
        "sin(i + j) = sin i cos j + cos i sin j: two outer products",
        "how many different rows has it? The board of +1 and -1 has one rank less",
    )
    truth = [np.linalg.matrix_rank(table) for table in ((i + j) ** 2, np.sin(i + j), (i + j) % 2)]
    for name, got, rank, hint in zip(("squares", "sines", "checkerboard"), answer, truth, hints, strict=True):
        if wrong := same(got, rank, hint):
            return f"{name}: {wrong}"
    return None


@exercise("1a.3")
def one_number(answer: float) -> str | None:
    """The x for which elimination leaves two rows."""
    first, second = np.array([2.0, 4.0, 2.0]), np.array([1.0, 3.0, 3.0])
    mix = np.linalg.solve(np.stack([first[:2], second[:2]]).T, [3.0, 7.0])  # of the first two columns
    hint = (
        "subtract 3/2 of the first row from the third; what is left must be a multiple of the second row that is left"
    )
    return same(answer, mix @ [first[2], second[2]], hint)


@exercise("1a.4")
def join(answer: Callable[..., tuple[Any, Any]]) -> str | None:
    """A function: two pairs of factors -> one pair for the sum of their products."""
    rng = np.random.default_rng(0)
    B1, A1, B2, A2 = (rng.normal(size=shape) for shape in ((5, 2), (2, 4), (5, 3), (3, 4)))
    B, A = (np.asarray(factor) for factor in answer(B1, A1, B2, A2))
    hint = "put B1 and B2 side by side, A1 over A2; (B1 + B2)(A1 + A2) would have mixed terms, such as B1 A2"
    return pair((B, A), (5, 5), (5, 4)) or same(B @ A, B1 @ A1 + B2 @ A2, hint)


@exercise("1a.5")
def break_even(answer: int) -> str | None:
    """The smallest rank r with r (m + n) >= m n."""
    m, n = 600, 512
    truth = -(-m * n // (m + n))
    hint = "compare r (m + n) with m n; at the answer it is no smaller, one below it is"
    return same(answer, truth, hint)
