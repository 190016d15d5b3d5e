"""The loss of a language model's head, x W^T and cross-entropy in one, for vocabularies whose logits are too many.

256 tokens of a vocabulary of 49,152 have 12.6 million logits, and their softmax as many again. But the cross-entropy of
a row needs two numbers of its logits z, log sum_v e^(z_v) and z of its target, and the gradient of x is a mean of rows
of W: with p = softmax(z),
    dx = (sum_v p_v W_v - W_target) / n.
A bias, as BERT's head has, is added to a stretch's logits as they are made.
All of them are sums over the vocabulary, and can be added up over stretches of it, each stretch's logits written over
once used. What has been added up is relative to the largest logit so far, and scaled down when a larger one comes
(Milakov & Gimelshein 2018, "Online normalizer calculation for softmax", algorithm 3).
"""

import math

import numpy as np

from .backend import array_module, floating, narrow, wide
from .fused import cross_entropy, linear, rows_that_count
from .recording import blocks, paused
from .rows import product
from .tensor import register

__all__ = ["linear_cross_entropy", "linear_cross_entropy_on_demand"]

LOGITS = 1 << 21  # of a stretch, and as many again while the next one's are made


@register
def linear_cross_entropy(x, weight, targets, bias=None):
    """The mean over the rows of -log softmax(x W^T + b)[target], in nats, never holding all logits where they are many.

    x: (..., C), W: (V, C), targets: (...) integers, -100 in rows that do not count, b: (V,) or None.
    dx as above, made on the way, where the logits are; dW_v = sum over rows of (p_v - [v is the target]) x / n and
    db_v = sum over rows of (p_v - [v is the target]) / n, of logits made again, and only where W or b is trained.
    Few logits go through `linear` and `cross_entropy`, bit for bit.
    """
    if weight.ndim != 2 or x.shape[-1:] != weight.shape[1:]:
        raise ValueError(f"linear_cross_entropy: x {x.shape} and W {weight.shape} do not fit: (..., C), (V, C)")
    if math.prod(x.shape[:-1]) * len(weight) <= LOGITS:
        return _at_once(x, weight, targets, bias)
    rows_of, dtype = lambda part, dtype: wide(weight[part]), wide(weight[:0]).dtype
    loss, (dx, dw, db) = _in_stretches("linear_cross_entropy", x, rows_of, targets, len(weight), bias, dtype)
    return narrow(loss, x, weight, bias), (dx, dw, None, db)


@register
def linear_cross_entropy_on_demand(x, rows_of, targets, vocab_size, bias=None):
    """`linear_cross_entropy` of a W (V, C) that is made a stretch at a time, where it is needed, and kept by nobody.

    rows_of: a function from a slice and a dtype to those rows of W, for a head that is held in few bits, which has no
    gradient (Dettmers et al. 2023, "QLoRA", section 3, eq. 5). vocab_size: V.
    """
    loss, (dx, _, db) = _in_stretches("linear_cross_entropy_on_demand", x, rows_of, targets, vocab_size, bias)
    return narrow(loss, x, bias), (dx, None, None, None, db)


def _at_once(x, weight, targets, bias):
    """All logits, by the two primitives that this one stands for."""
    logits, (dx, dw, db) = linear.__wrapped__(x, weight, bias)  # type: ignore[attr-defined]
    loss, (dlogits, _) = cross_entropy.__wrapped__(logits, targets)  # type: ignore[attr-defined]
    return loss, (lambda g: dx(dlogits(g)), lambda g: dw(dlogits(g)), None, lambda g: db(dlogits(g)))


def _in_stretches(name, x, rows_of, targets, vocab_size, bias, *precisions):
    """The loss, and the vjps of x, W and b, by stretches of the vocabulary with LOGITS logits each."""
    xp, shape = array_module(x), x.shape
    targets = array_module(targets).asarray(targets)
    if not shape or targets.shape != shape[:-1]:
        raise ValueError(f"{name}: x {shape} and targets {targets.shape} do not fit: (..., C), (...)")
    if not isinstance(vocab_size, int | np.integer) or isinstance(vocab_size, bool):
        raise TypeError(f"{name}: vocab_size = {vocab_size!r}, expected a whole number")
    if bias is not None and bias.shape != (vocab_size,):
        raise ValueError(f"{name}: b has shape {bias.shape}, expected (V,) = ({vocab_size},)")
    row, target, _ = rows_that_count(name, xp, targets, vocab_size, f"x {shape}")
    rows = floating(x).reshape(-1, shape[-1])[row]  # (n, C), of those that count
    n, kind = len(row), np.result_type(rows.dtype, *precisions, *([] if bias is None else [wide(bias[:0]).dtype]))
    step = max(1, LOGITS // n)
    stretches = lambda: (slice(start, min(start + step, vocab_size)) for start in range(0, vocab_size, step))
    here = lambda part: ((target >= part.start) & (target < part.stop)).nonzero()[0]  # the rows with a target in it
    logits = lambda W, part: product(rows, W.T, None, None if bias is None else wide(bias[part]))  # (n, v)
    recorded = not (blocks.get() and paused())  # else nobody asks for dx
    top, total, picked = -np.inf, 0, xp.empty((n, 1), kind)
    mean, own = 0, xp.empty((n, shape[-1]) if recorded else 0, kind)
    for part in stretches():
        W, mine = rows_of(part, rows.real.dtype), here(part)  # (v, C)
        if W.shape != (part.stop - part.start, shape[-1]):
            raise ValueError(
                f"{name}: rows {part.start} to {part.stop - 1} of W are {W.shape}, x {shape}: expected (V, C)"
            )
        z = logits(W, part)  # (n, v)
        picked[mine, 0] = z[mine, target[mine] - part.start]
        before, top = top, xp.maximum(top, z.real.max(axis=1, keepdims=True))  # (n, 1)
        z -= top
        e, down = xp.exp(z, out=z), xp.exp(before - top)
        total = down * total + e @ xp.ones((e.shape[1], 1), e.dtype)
        if recorded:
            mean = down * mean + product(e, W)  # (n, C)
            own[mine] = W[target[mine] - part.start]
    slope = (mean / total - own) / n if recorded else None

    def dx(g):
        whole = xp.zeros((math.prod(shape[:-1]), shape[-1]), kind)
        whole[row] = g * slope
        return whole.reshape(shape)

    def dlogits(part, g):
        d, mine = logits(rows_of(part, rows.real.dtype), part), here(part)
        d -= top
        xp.exp(d, out=d)
        d *= g / (n * total)
        d[mine, target[mine] - part.start] -= g / n
        return d  # (n, v)

    def dw(g):
        whole = xp.empty((vocab_size, shape[-1]), kind)
        for part in stretches():
            whole[part] = product(dlogits(part, g).T, rows)
        return whole

    db = lambda g: xp.concatenate([dlogits(part, g).sum(axis=0) for part in stretches()])
    return (xp.log(total) + (top - picked)).sum() / n, (dx, dw, db)
