"""The checks of lecture 5's exercises. The truth is computed from the lecture's 4 x 4 example, by `lora_forward`."""

from typing import Any

import numpy as np

from ..adapters.lora import lora_backward, lora_forward
from .exercises import exercise, same

W = np.array([[1, 0, 2, 0], [0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1]], float)  # (4, 4)
b = np.array([1, 0, 0, -1], float)  # (4,)
A, B = np.array([[1, 0, -1, 2]], float), np.array([[1], [0], [2], [-1]], float)  # (1, 4), (4, 1)
x, t = np.array([[1, 2, 0, 1], [0, 1, 1, 1]], float), np.array([[7, 3, 16, -8], [5, 1, 4, -1]], float)  # (2, 4) each
ALPHA = 2.0


@exercise("5.1")
def by_hand(answer: Any) -> str | None:
    """[y, dx, dA, dB] with another B."""
    if not isinstance(answer, list | tuple) or len(answer) != 4:
        return "expected a list of four: [y, dx, dA, dB]"
    y, dx, dA, dB = answer
    other = np.array([[0], [1], [0], [0]], float)
    truth, h = lora_forward(x, W, b, A, other, ALPHA)
    gradients = lora_backward(truth - t, x, h, W, A, other, ALPHA)
    hints = (
        "only the second output gets an update, s h",
        "dx = g W + dh A",
        "dA = dh^T x with dh = s g B",
        "dB = s g^T h",
    )
    for name, got, wanted, hint in zip(
        ("y", "dx", "dA", "dB"), (y, dx, dA, dB), (truth, *gradients), hints, strict=True
    ):
        if wrong := same(got, wanted, f"{hint}; g is of the new y"):
            return f"{name}: {wrong}"
    return None


@exercise("5.2")
def rank_two(answer: Any) -> str | None:
    """y with a second row of A and a second column of B."""
    two_A, two_B = np.vstack([A, [0, 1, 1, 0]]), np.hstack([B, [[1], [1], [0], [0]]])
    if same(answer, lora_forward(x, W, b, two_A, two_B, ALPHA)[0]) is None:
        return "that is with s = 2; but s = alpha / r, and r is 2 now"
    return same(answer, lora_forward(x, W, b, two_A, two_B, ALPHA / 2)[0], "h has two columns, and s = alpha / r = 1")


@exercise("5.3")
def planted(answer: Any) -> str | None:
    """The factor that makes up for a forgotten s in dA."""
    if same(answer(4.0), 1 / 4) is None:
        return "the forgotten factor made dA too small where s > 1; the rate has to make it larger"
    return next((wrong for s in (0.5, 2.0, 7.0) if (wrong := same(answer(s), s, "dA lacks one factor s"))), None)


@exercise("5.4")
def free(answer: Any) -> str | None:
    """How many of LoRA's numbers are free."""
    for d_in, d_out, r in ((4, 4, 1), (128, 128, 8), (30, 50, 5)):
        if same(answer(d_in, d_out, r), r * (d_in + d_out)) is None:
            return "those are all of them; M has r^2 numbers that change nothing"
        if wrong := same(
            answer(d_in, d_out, r), r * (d_in + d_out) - r * r, f"with d_in, d_out, r = {d_in}, {d_out}, {r}"
        ):
            return wrong
    return None


@exercise("5.5")
def first_step(answer: Any) -> str | None:
    """Delta W after one step of gradient descent from B = 0."""
    dW = (lora_forward(x, W, b, A, 0 * B, ALPHA)[0] - t).T @ x  # (4, 4)
    step = -0.01 * dW @ A.T @ A  # with s = 1
    if same(answer, ALPHA * step) is None:
        return "one factor s is missing: it stands in dB, and in Delta W = s B A"
    if same(answer, -(ALPHA**2) * step) is None:
        return "the sign: a step goes against the gradient"
    return same(answer, ALPHA**2 * step, "dW = g^T x with g = y - t, and y is the base model's: B is zero")


@exercise("5.6")
def deviations(answer: Any) -> str | None:
    """A's standard deviation under kaiming, gaussian, and some slides."""
    for d_in, r in ((128, 8), (768, 4)):
        got = answer(d_in, r)
        if len(got) == 3 and same(got[0], d_in**-0.5) is None:
            return "1/sqrt(d_in) is the bound; a uniform distribution's deviation is its bound over sqrt(3)"
        if wrong := same(
            got, [(3 * d_in) ** -0.5, 1 / r, r**-0.5], f"kaiming, gaussian, slides for d_in = {d_in}, r = {r}"
        ):
            return wrong
    return None
