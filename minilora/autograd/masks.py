"""The losses of a mask, whose every pixel is inside or outside: z are the logits, t the targets, p = sigmoid(z).

Cross-entropy asks every pixel alike, and where few are inside it is nearly content with an empty mask; the Dice loss
asks for the overlap, whatever the size of the thing. A segmenter is trained on the sum of both.
"""

import numpy as np

from .backend import array_module, by_value, floating, narrow, wide
from .gated import sigmoid
from .tensor import register

__all__ = ["binary_cross_entropy", "dice_loss"]


@register
def binary_cross_entropy(logits, targets):
    """The mean of -t log p - (1 - t) log(1 - p), p = 1 / (1 + e^-z), in nats.   logits z, targets t in [0, 1]: (...)

    Of one entry it is log(1 + e^z) - t z, computed as max(z, 0) + log(1 + e^-|z|) - t z, which neither overflows nor
    loses its digits. d/dz = (p - t) / n.
    """
    xp, (z, t) = array_module(logits), _fitting("binary_cross_entropy", logits, targets)
    with np.errstate(invalid="ignore"):  # what is infinite and wrong is infinitely wrong
        size = xp.where(z.real < 0, -z, z)  # |z|
        total = (xp.log1p(xp.exp(-size)) + xp.where(z.real < 0, 0, z) - xp.where(t == 0, 0, t * z)).sum()
    n = z.size
    return narrow(total / n, logits), (lambda g: (_p(z) - t) * (wide(g) / n), None)


@register
def dice_loss(logits, targets):
    """1 - (2 sum p t + 1) / (sum p + sum t + 1), p = 1 / (1 + e^-z): a mean over masks.   z and t: (B, ...) -> ()

    The second term is Dice's coefficient, twice the overlap over both sizes, after Milletari et al. 2016, who square
    p and t in the sizes; the 1 gives an empty mask its due. With N and D for what is above and below the line,
        d/dp = (N / D - 2 t) / D,   dp/dz = p (1 - p),   each over B.
    """
    z, t = _fitting("dice_loss", logits, targets)
    if z.ndim < 2:
        raise ValueError(f"dice_loss: logits {z.shape}, expected (B, ...), masks one after the other")
    axes, masks, p = tuple(range(1, z.ndim)), len(z), _p(z)
    above = 2 * (p * t).sum(axis=axes, keepdims=True) + 1  # (B, 1, ...)
    below = p.sum(axis=axes, keepdims=True) + t.sum(axis=axes, keepdims=True, dtype=p.real.dtype) + 1
    share = above / below

    def vjp(g):
        d = (share - 2 * t) / below  # (B, ...)
        d *= p * (1 - p)
        d *= wide(g) / masks
        return d

    return narrow(1 - share.mean(), logits), (vjp, None)


def _p(z):
    return sigmoid.__wrapped__(z)[0]  # type: ignore[attr-defined]


def _fitting(name, logits, targets):
    """Logits to compute with, and targets by value. Raises ValueError unless they are of one shape, and t in [0, 1]."""
    z, t = floating(logits), by_value(array_module(logits).asarray(targets))
    if t.shape != z.shape or not z.size:
        raise ValueError(f"{name}: logits {z.shape} and targets {t.shape}, expected two of one shape, and some entries")
    if t.dtype.kind not in "biuf":
        raise TypeError(f"{name}: targets have dtype {t.dtype}, expected True and False, or numbers from 0 to 1")
    if t.dtype.kind != "b" and not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(f"{name}: targets run from {t.min()} to {t.max()}, expected 0 to 1")
    return z, t if t.dtype.kind == "b" else t.astype(z.real.dtype, copy=False)
