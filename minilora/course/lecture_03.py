"""The checks of lecture 3's exercises."""

from collections.abc import Callable

import numpy as np

from ..autograd import ops
from ..autograd.backend import to_numpy
from ..autograd.tensor import Tensor, grad
from .exercises import cause, exercise, same


@exercise("3.1")
def attention(yours: Callable) -> str | None:
    """Attention with a causal mask, written by the class: a function of q, k and v."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 5, 3)) for _ in range(3))  # (H, T, D)
    found = yours(q.copy(), k.copy(), v.copy())
    if found is None:
        return "not answered yet: attention returns nothing"
    scores, seen = q @ k.swapaxes(-1, -2), np.tri(5, dtype=bool)
    right = _mean(np.where(seen, scores / np.sqrt(3), -np.inf), v)
    late = np.where(seen, _weights(scores / np.sqrt(3)), 0)
    columns = np.where(seen, scores / np.sqrt(3), -np.inf).swapaxes(-1, -2)
    likely = {
        "the scores are not divided by the root of D": _mean(np.where(seen, scores, -np.inf), v),
        "divide by the root of D, the last axis, not of T": _mean(np.where(seen, scores / np.sqrt(5), -np.inf), v),
        "divide by the root of D, not by D": _mean(np.where(seen, scores / 3, -np.inf), v),
        "it looks ahead: nothing is masked": _mean(scores / np.sqrt(3), v),
        "it looks ahead only: the mask is the wrong way round": _mean(
            np.where(seen.T, scores / np.sqrt(3), -np.inf), v
        ),
        "mask the scores, not the weights: after the softmax a row no longer adds to 1": late @ v,
        "a masked score is -inf; a score of 0 still gets weight": _mean(np.where(seen, scores / np.sqrt(3), 0), v),
        "the softmax is over each row, axis -1": _weights(columns).swapaxes(-1, -2) @ v,
        "those are the masked scores times the values: the softmax is missing": np.where(seen, scores, 0)
        / np.sqrt(3)
        @ v,
    }
    hint = cause(found, likely, "scores, mask, softmax row by row, times v")
    if (wrong := same(found, right, hint)) is not None:
        return wrong
    large = to_numpy(yours(1e3 * q, k, v))
    return None if np.isfinite(large).all() else "right, but for large scores it gives nan: subtract each row's maximum"


def _weights(scores: np.ndarray) -> np.ndarray:
    return ops.softmax(scores).numpy()


def _mean(scores: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _weights(scores) @ v


@exercise("3.2")
def new_models_loss(answer: float) -> str | None:
    """The loss of a model with 50,257 tokens before any training, in nats."""
    likely = {"in nats, so the natural logarithm": np.log2(50257)}
    hint = cause(answer, likely, "all characters are equally likely; the loss is the mean of -ln p", 1e-2)
    return same(answer, np.log(50257), hint, 1e-2)


@exercise("3.5")
def gate(backward: Callable) -> str | None:
    """(du, dv) of y = u sigma(u) v: a function of u, v and the cotangent g."""
    rng = np.random.default_rng(0)
    u, v, g = (rng.normal(size=(4, 3)) for _ in range(3))
    leaves = [Tensor(u, requires_grad=True), Tensor(v, requires_grad=True)]
    gated = leaves[0] / (ops.exp(-leaves[0]) + 1) * leaves[1]
    du, dv = grad(gated, leaves, cotangent=g)
    found_u, found_v = backward(u, v, g)
    s = 1 / (1 + np.exp(-u))
    if (wrong := same(found_v, dv, "of dv: y is linear in v, so what stands before it comes back with g")) is not None:
        return wrong
    lost = same(found_u, g * v * s) is None
    return same(
        found_u,
        du,
        f"of du: {'u stands twice in u σ(u): the product rule' if lost else 'the derivative of σ is σ (1 - σ)'}",
    )


@exercise("3.7")
def price_of_length(answer: float) -> str | None:
    """The length of text from which attention costs more than the linear layers."""
    width = 128
    likely = {
        "all T scores of a row are computed, masked ones as well": 12 * width,
        "T is 6 times something": 12,
        "that many scores and as many weighted values: 2 T C": 3 * width,
    }
    return same(answer, 6 * width, cause(answer, likely, "2 T C multiplications a token, against 12 C^2"), 1e-2)
