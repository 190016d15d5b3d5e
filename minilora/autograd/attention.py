"""Attention, and how heads are split and joined: each a primitive with one hand-derived vjp, as in `fused.py`."""

import functools
import math

import numpy as np

from .backend import array_module, at_least_float32, by_value
from .fused import largest, row_dot
from .tensor import register

__all__ = ["attention", "join_heads", "split_heads"]


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


QUERIES = 64  # that causal attention takes at a time, leaving out the keys that none of them sees


@register
@at_least_float32
def attention(q, k, v, keep=None, causal=True):
    """softmax(q k^T / sqrt(D)) v, where query i sees keys 0 to i only.   Vaswani et al. 2017, eq. 1

    q: (..., T, D), k and v: (..., S, D) with S >= T -> (..., T, D). The queries are the last T of the S positions.
    keep: optional dropout mask (..., T, S), 0 or 1/(1-p), on the attention weights.

    A row of P = softmax(q k^T / sqrt(D)) needs no other row, so long texts are taken in blocks of queries: all that is
    computed of P's upper triangle, where it is zero, lies in the blocks on the diagonal. Keys add up their cotangents.
    What it buys at T = 128: a quarter of what is kept, and a seventh of the time.
    """
    matrices = min(q.ndim, k.ndim, v.ndim) >= 2
    if not (matrices and q.shape[-1] == k.shape[-1] and k.shape[-2] == v.shape[-2]):
        raise ValueError(f"attention: q {q.shape}, k {k.shape} and v {v.shape} do not fit: (T, D), (S, D), (S, D)")
    t, s = q.shape[-2], k.shape[-2]
    if causal and s < t:
        raise ValueError(f"attention: {t} queries but {s} keys: a query must be able to see itself")
    if keep is not None:
        dtype = q.real.dtype
        keep = by_value(keep) if keep.dtype == dtype else keep.astype(dtype)
    if not causal or t == 1 or array_module(q) is not np:  # a GPU is quicker with one large block
        return attend(q, k, v, keep, causal)
    with np.errstate(invalid="ignore"):
        o, vjp = _in_blocks(q, k, v, keep, QUERIES)
    if np.isfinite(o).all():
        return o, vjp
    return _in_blocks(q, k, v, keep, 1)  # 0 times infinity is no 0: each query leaves out the keys that it does not see


def _in_blocks(q, k, v, keep, size):
    """Causal attention with so many queries at a time, and its vjp."""
    t, s = q.shape[-2], k.shape[-2]
    if t <= size:
        return attend(q, k, v, keep)
    blocks = [(slice(i, min(i + size, t)), slice(s - t + min(i + size, t))) for i in range(0, t, size)]
    parts, vjps = [], []
    for rows, seen in blocks:
        mask = None if keep is None else keep[..., rows, seen]
        part, vjp_of_part = attend(q[..., rows, :], k[..., seen, :], v[..., seen, :], mask)
        parts.append(part)
        vjps.append(vjp_of_part)

    def vjp(g):
        dqs, dks, dvs = zip(*(pull(g[..., rows, :]) for pull, (rows, _) in zip(vjps, blocks, strict=True)), strict=True)
        dk, dv = dks[-1], dvs[-1]  # the last block sees all keys
        for (_, seen), dk_part, dv_part in zip(blocks[:-1], dks, dvs, strict=False):
            dk[..., seen, :] += dk_part
            dv[..., seen, :] += dv_part
        return _stacked(dqs, g), dk, dv

    return _stacked(parts, q), vjp


def attend(q, k, v, keep=None, causal=True):
    """Attention, all queries at once: -> O, and its vjp, which returns (dq, dk, dv).

    With S = q k^T / sqrt(D), P = softmax(S), O = P v:
        dv = P^T g,   dP = g v^T,   dS = P (dP - rowsum(dP P)),   dq = dS k / sqrt(D),   dk = dS^T q / sqrt(D),
    where rowsum(dP P)_i = sum_j sum_d g_id v_jd P_ij = sum_d g_id O_id: a sum over D instead of S numbers.
    Written as P = f E, where E = exp(S - the largest of each row) and f = 1 / rowsum(E), f scales O and g, whose rows
    are short, instead of P. Scores stand transposed, keys down and queries across: NumPy takes a maximum over
    columns twice as fast as one over rows.
    """
    xp, t = array_module(q), q.shape[-2]
    scale = 1 / math.sqrt(q.shape[-1] or 1)
    q = q * scale  # of no further use as it was: kept in its place
    e = k @ q.swapaxes(-1, -2)  # (..., S, T)
    if causal and t > 1:
        own = e[..., k.shape[-2] - t :, :]  # the keys at the queries' own positions: (..., T, T)
        own += _unseen(xp, t, e.real.dtype)
    e -= largest(e, -2)
    xp.exp(e, out=e)
    sums = xp.ones((1, e.shape[-2]), dtype=e.dtype) @ e  # (..., 1, T), by BLAS as in `_mean`
    f = 1 / sums.swapaxes(-1, -2)  # (..., T, 1)
    kept = e if keep is None else e * keep.swapaxes(-1, -2)  # (..., S, T)
    o = kept.swapaxes(-1, -2) @ v  # (..., T, D)
    o *= f

    def vjp(g):
        g = g * f
        ds = v @ g.swapaxes(-1, -2)  # (..., S, T), dP^T at first
        if keep is not None:
            ds *= keep.swapaxes(-1, -2)
        ds -= row_dot(g, o).swapaxes(-1, -2)
        ds *= e
        return ds.swapaxes(-1, -2) @ (k * scale), ds @ q, kept @ g

    return o, vjp


@functools.lru_cache(maxsize=8)
def _unseen(xp, t, dtype):
    """-inf where a key (down) is later than a query (across), else 0: (T, T)"""
    return xp.where(xp.tri(t, t, -1, dtype=bool), -xp.inf, 0).astype(dtype)


def _stacked(parts, like):
    """Blocks of rows below one another, in the memory order of `like`: heads are then joined without a copy."""
    rows, width = sum(part.shape[-2] for part in parts), parts[0].shape[-1]
    whole = np.empty_like(like, parts[0].dtype, shape=(*parts[0].shape[:-2], rows, width))
    return np.concatenate(parts, axis=-2, out=whole)
