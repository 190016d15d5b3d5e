"""The exercises of lecture 2 that check themselves: derivatives."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..autograd.tensor import Tensor, grad
from .exercises import exercise, same

Rule = Callable[..., Any]


@exercise("2.1")
def division(answer: tuple[Rule, Rule]) -> str | None:
    """The vjps of a / b for a and for b, as functions of (g, a, b)."""
    g, a, b = np.random.default_rng(0).uniform(1, 2, size=(3, 4))
    tensors = [Tensor(x, requires_grad=True) for x in (a, b)]
    truth = grad((tensors[0] / tensors[1] * g).sum(), tensors)
    hints = ("a / b is a times 1 / b", "the derivative of 1 / b is -1 / b^2; and g multiplies it")
    for name, rule, expected, hint in zip("ab", answer, truth, hints, strict=True):
        if wrong := same(rule(g, a, b), expected, hint):
            return f"for {name}: {wrong}"
    return None


@exercise("2.3")
def largest(answer: Rule) -> str | None:
    """The vjp of max over the last axis, as a function of (g, x)."""
    rng = np.random.default_rng(0)
    x, g = rng.permutation(12.0 * np.arange(12)).reshape(3, 4), rng.normal(size=3)
    tensor = Tensor(x, requires_grad=True)
    (truth,) = grad((tensor.max(axis=-1) * g).sum(), [tensor])
    if wrong := same(answer(g, x), truth, "g goes to where the maximum is, row by row, and nowhere else"):
        return wrong
    tied = np.asarray(answer(np.ones(1), np.array([[2.0, 2.0, 1.0]])))
    if same(tied.sum(), 1.0) is not None:
        return f"where two entries are equal the shares add up to {tied.sum():g}, not to g = 1: split it, or choose one"
    return None


@exercise("2.4")
def step(answer: Rule) -> str | None:
    """The best step of the forward difference, as a function of (eps, |f|, |f''|)."""
    eps, f, f2 = 1e-16, 3.0, 0.5
    truth = 2 * np.sqrt(eps * f / f2)
    got = answer(eps, f, f2)
    if same(got / truth, (3 * eps * f / f2) ** (1 / 3) / truth) is None:
        return "this is the power of central differences; here the truncation is h |f''| / 2"
    return same(
        got / truth, 1.0, "set the derivative of 2 eps |f| / h + h |f''| / 2 by h to zero; divided by the truth"
    )


@exercise("2.5")
def duals(answer: tuple[Rule, Rule, Rule]) -> str | None:
    """add, multiply and tanh of pairs (y, dy)."""
    add, multiply, tanh = answer
    a, b, y = (2.0, 3.0), (-0.5, 0.7), np.tanh(-0.5)
    rows = (
        ("add", add(a, b), (1.5, 3.7), "both parts add"),
        ("multiply", multiply(a, b), (-1.0, 2 * 0.7 - 0.5 * 3), "d(ab) = a db + b da"),
        ("tanh", tanh(b), (y, (1 - y * y) * 0.7), "d tanh(x) = (1 - tanh(x)^2) dx; mind dx"),
    )
    for name, got, truth, hint in rows:
        if wrong := same(got, truth, hint):
            return f"{name}: {wrong}"
    return None
