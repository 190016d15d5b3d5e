"""Attention, and how heads are split and joined: each a primitive with one hand-derived vjp, as in `fused.py`."""

import math

import numpy as np

from .attend import all_at_once
from .backend import array_module, at_least_float32, by_value, floating, narrow, wide
from .long_attention import attend_long
from .tensor import register

__all__ = ["attention", "join_heads", "rotate", "split_heads"]


@register
def split_heads(x, heads):
    """Each head gets its own slice of the width.   x: (B, T, C) -> (B, H, T, C / H), a view;   dx = join_heads(g)"""
    if x.ndim != 3 or heads < 1 or x.shape[2] % heads:
        raise ValueError(
            f"split_heads: x {x.shape} does not split into {heads} heads: expected (B, T, C), H dividing C"
        )
    b, t, c = x.shape
    return x.reshape(b, t, heads, c // heads).swapaxes(1, 2), (lambda g: g.swapaxes(1, 2).reshape(b, t, c),)


@register
def join_heads(x):
    """The heads' slices side by side again.   x: (B, H, T, D) -> (B, T, H D);   dx = split_heads(g)"""
    if x.ndim != 4:
        raise ValueError(f"join_heads: x {x.shape}, expected (B, H, T, D)")
    b, h, t, d = x.shape
    return x.swapaxes(1, 2).reshape(b, t, h * d), (lambda g: g.reshape(b, t, h, d).swapaxes(1, 2),)


@register
def rotate(x, cos, sin):
    """Turn each pair of features (x_i, x_{i + D/2}) by an angle of its position.   Su et al. 2021, "RoFormer", eq. 34

    y_1 = x_1 cos - x_2 sin,  y_2 = x_2 cos + x_1 sin, where x_1 and x_2 are the halves of x's last axis: which feature
    is paired with which is a custom, and this one that of files for transformers (its `rotate_half`).
    x: (..., T, D); cos and sin, of the angles: (T, D / 2), or what broadcasts to (..., T, D / 2), without a gradient.
    dx turns g back, by the negative angle.
    """
    half = x.shape[-1] // 2 if x.ndim else 0
    expected = (*x.shape[:-1], half)
    fits = all(n in (1, m) for n, m in zip(cos.shape[::-1], expected[::-1], strict=False)) and cos.ndim <= x.ndim
    if x.ndim < 2 or x.shape[-1] % 2 or cos.shape != sin.shape or not fits or cos.shape[-1:] != (half,):
        raise ValueError(
            f"rotate: x {x.shape}, cos {cos.shape} and sin {sin.shape} do not fit: (..., T, D), (T, D / 2), (T, D / 2)"
        )
    rows = floating(x)
    cos, sin = (array_module(x).asarray(a) for a in (cos, sin))  # tables go where x is
    cos, sin = (by_value(a) if a.dtype == rows.real.dtype else a.astype(rows.real.dtype) for a in (cos, sin))
    return narrow(_turned(rows, cos, sin), x), (lambda g: _turned(wide(g), cos, -sin),)


def _turned(x, cos, sin):
    """x turned by the angles, in x's order of memory."""
    half = x.shape[-1] // 2
    one, two = x[..., :half].copy(), x[..., half:].copy()  # without gaps: NumPy takes a head's positions in one loop
    y = array_module(x).empty_like(x)
    y[..., :half] = one * cos - two * sin
    y[..., half:] = two * cos + one * sin
    return y


LONG = 512  # positions from which on P is computed again in the backward pass, so that what is kept grows with T


@register
@at_least_float32
def attention(q, k, v, keep=None, causal=True, mask=None, window=None, scale=None):
    """softmax(scale q k^T) v, where query i sees keys 0 to i only.   Vaswani et al. 2017, eq. 1

    q: (..., T, D), k and v: (..., S, D) with S >= T -> (..., T, D). The queries are the last T of the S positions.
    k and v may have fewer heads than q, K for H, when K divides H: heads h H/K to (h + 1) H/K - 1 of q look at head h
    of theirs, and nothing is copied (Ainslie et al. 2023, "GQA", section 2.2). scale: 1 / sqrt(D) unless given.
    keep: optional dropout mask (..., T, S), 0 or 1/(1-p), on the attention weights.
    mask: 1 or True where a key counts, 0 where it is padding: (B, S), or what broadcasts to (..., T, S) and has another
    number of axes. A query that sees no key at all gives zeros, and gets and gives no gradient.
    window: of the keys up to its own a query sees the last so many (Beltagy et al. 2020, "Longformer", section 3.1).

    A row of P = softmax(scale q k^T) needs no other row, so long texts are taken in blocks of queries: all that is
    computed of P's upper triangle, where it is zero, lies in the blocks on the diagonal. Keys add up their cotangents.
    What it buys at T = 128: a quarter of what is kept, and a seventh of the time. From 512 positions on no block keeps
    its part of P, and memory grows with T, not with T^2 (`long_attention.py`).
    """
    group, window = _checked(q, k, v, causal, window)
    shape, s = q.shape, k.shape[-2]
    if keep is not None:
        dtype = q.real.dtype
        keep = by_value(keep) if keep.dtype == dtype else keep.astype(dtype)
    if mask is not None:
        mask = _truth(array_module(q).asarray(mask), q, s)
    if group > 1:  # heads that look at the same keys side by side: (..., K, H / K, T, D)
        q, keep, mask = (x if x is None else _by_group(x, k.shape[-3], group) for x in (q, keep, mask))
    scale = 1 / math.sqrt(shape[-1] or 1) if scale is None else float(scale)
    given = (q, k, v, keep, causal, window, mask, group, scale)
    o, vjp = (attend_long if s >= LONG and shape[-2] > 1 else all_at_once)(*given)
    if group == 1:
        return o, vjp
    grouped = o.shape  # (..., K, H / K, T, D)

    def of_heads(g):
        dq, dk, dv = vjp(g.reshape(grouped))
        return dq.reshape(*dq.shape[:-4], *shape[-3:]), dk, dv

    return o.reshape(*grouped[:-4], *shape[-3:-1], grouped[-1]), of_heads


def _checked(q, k, v, causal, window):
    """How many heads of q share one of k and v, and the window, None where it hides no key; or what does not fit."""
    matrices = min(q.ndim, k.ndim, v.ndim) >= 2
    if not (matrices and q.shape[-1] == k.shape[-1] and k.shape[-2] == v.shape[-2]):
        raise ValueError(f"attention: q {q.shape}, k {k.shape} and v {v.shape} do not fit: (T, D), (S, D), (S, D)")
    t, s = q.shape[-2], k.shape[-2]
    if causal and s < t:
        raise ValueError(f"attention: {t} queries but {s} keys: a query must be able to see itself")
    if window is not None:
        if not isinstance(window, int | np.integer) or isinstance(window, bool) or window < 1:
            raise ValueError(f"attention: window = {window!r}, expected a whole number of keys, 1 or more, or None")
        if not causal:
            raise ValueError(
                f"attention: window = {window} with causal=False: a window is of keys up to the query's own"
            )
        window = None if window >= s else int(window)
    if min(q.ndim, k.ndim, v.ndim) < 3 or q.shape[-3] == 1 or v.shape[-3] != k.shape[-3] or not v.shape[-3]:
        return 1, window
    heads, shared = q.shape[-3], k.shape[-3]
    if heads % shared:
        raise ValueError(f"attention: q {q.shape} and k {k.shape}: {heads} heads are no multiple of {shared}")
    return heads // shared, window


def _truth(mask, q, s):
    """The mask as truth values that broadcast to (..., T, S), by value; None where every key counts."""
    given, scores = mask.shape, (*q.shape[:-1], s)
    if mask.ndim == 2 < q.ndim:  # (B, S): of each text, for all its heads and queries
        mask = mask.reshape(given[0], *[1] * (q.ndim - 2), given[1])
    fits = mask.ndim <= q.ndim and all(n in (1, m) for n, m in zip(mask.shape[::-1], scores[::-1], strict=False))
    if not fits or mask.shape[-1:] != (s,):
        raise ValueError(f"attention: mask {given} does not fit q {q.shape} and {s} keys: expected (B, S), or {scores}")
    if mask.dtype != bool:
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError("attention: mask holds more than 0 and 1; expected 1 or True where a key counts, else 0")
        mask = mask != 0
    return None if mask.all() else mask.copy()


def _by_group(x, shared, group):
    """(..., H, T, D) -> (..., K, H / K, T, D), a view; what is one for all heads is one for all groups"""
    if x.ndim < 3:
        return x
    return x.reshape(*x.shape[:-3], *((1, 1) if x.shape[-3] == 1 else (shared, group)), *x.shape[-2:])
