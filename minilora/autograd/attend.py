"""Attention as the formula says, all queries at once or in blocks; the backward pass finds its weights as they were."""

import functools
import math

import numpy as np

from .backend import MANY, array_module
from .rows import largest, row_dot

QUERIES = 64  # that causal attention takes at a time, leaving out the keys that none of them sees
FEW_KEYS, LOOP = 32, 128  # below which NumPy's loops over so many numbers are short


def all_at_once(q, k, v, keep, causal, window, mask, group, scale):
    """Attention of all heads, and its vjp: at once, or in blocks of queries."""
    t, rest = q.shape[-2], {"mask": mask, "group": group, "scale": scale}
    if window is None and (not causal or t == 1 or array_module(q) is not np):  # a GPU is quicker with one large block
        o, vjp = attend(q, k, v, keep, causal, **rest)
    else:
        with np.errstate(invalid="ignore"):
            o, vjp = _in_blocks(q, k, v, keep, QUERIES if array_module(q) is np else t, window, rest)
        if not array_module(o).isfinite(o).all():  # 0 times infinity is no 0: a query leaves out what it does not see
            o, vjp = _in_blocks(q, k, v, keep, 1, window, rest)
    return o, vjp


def _in_blocks(q, k, v, keep, size, window, rest):
    """Causal attention with so many queries at a time, and its vjp. rest: `attend`'s other arguments."""
    t, s = q.shape[-2], k.shape[-2]
    if t <= size and window is None:
        return attend(q, k, v, keep, **rest)
    blocks, parts, vjps = [], [], []
    for rows, seen, mask in blocks_of(array_module(q), t, s, size, True, window, rest["mask"]):
        part, vjp_of_part = attend(
            q[..., rows, :], k[..., seen, :], v[..., seen, :], block_of(keep, rows, seen), **(rest | {"mask": mask})
        )
        blocks.append((rows, seen))
        parts.append(part)
        vjps.append(vjp_of_part)

    def vjp(g):
        *others, (rows, seen) = blocks
        last, *ends = vjps[-1](g[..., rows, :])
        dk, dv = (_among(d, seen, s) for d in ends)
        dqs = []
        for pull, (rows, seen) in zip(vjps, others, strict=False):
            dq, dk_part, dv_part = pull(g[..., rows, :])
            dqs.append(dq)
            dk[..., seen, :] += dk_part
            dv[..., seen, :] += dv_part
        return _stacked([*dqs, last], g), dk, dv

    return _stacked(parts, q), vjp


def blocks_of(xp, t, s, size, causal, window, mask):
    """(queries, the keys that some of them see, what hides more of these, or None), so many queries at a time."""
    for start in range(0, t, size):
        rows = slice(start, min(start + size, t))
        first = 0 if window is None else max(0, s - t + start - window + 1)
        seen = slice(first, s - t + rows.stop) if causal else slice(0, s)
        hidden = block_of(mask, rows, seen)
        if window is not None and seen.stop - first > window:
            near = near_keys(xp, rows.stop - start, seen.stop - first, window)
            hidden = near if hidden is None else hidden & near
        yield rows, seen, hidden


def block_of(mask, rows, seen):
    """What of a mask (..., T or 1, S) is of these queries and keys."""
    return mask if mask is None else mask[..., rows if mask.shape[-2] > 1 else slice(None), seen]


def _among(part, seen, s):
    """The cotangents of the keys that the last block sees among those of all keys, where the others have 0 so far."""
    if part.shape[-2] == s:
        return part
    whole = array_module(part).zeros((*part.shape[:-2], s, part.shape[-1]), dtype=part.dtype)
    whole[..., seen, :] = part
    return whole


def attend(q, k, v, keep=None, causal=True, mask=None, group=1, scale=None):
    """Attention, all queries at once: -> O, and its vjp, which returns (dq, dk, dv).

    With S = scale q k^T, P = softmax(S), O = P v:
        dv = P^T g,   dP = g v^T,   dS = P (dP - rowsum(dP P)),   dq = scale dS k,   dk = scale dS^T q,
    where rowsum(dP P)_i = sum_j sum_d g_id v_jd P_ij = sum_d g_id O_id: a sum over D instead of S numbers.
    Written as P = f E, where E = exp(S - the largest of each row) and f = 1 / rowsum(E), f scales O and g, whose rows
    are short, instead of P. Scores stand transposed, keys down and queries across: NumPy takes a maximum over
    columns twice as fast as one over rows. With a group, q is (..., K, H / K, T, D) and k is (..., K, S, D): the
    queries of the heads that look at the same keys stand below one another, as if they were queries of one head.
    """
    xp, shape, t = array_module(q), q.shape, q.shape[-2]
    scale = 1 / math.sqrt(q.shape[-1] or 1) if scale is None else scale
    q = q * scale  # of no further use as it was: kept in its place
    if group > 1:
        q = q.reshape(*shape[:-3], group * t, shape[-1])
    apart = lambda x: x if group == 1 else x.reshape(*x.shape[:-2], group, t, x.shape[-1])
    e = k @ q.swapaxes(-1, -2)  # (..., S, T)
    hide(e, causal, mask, group, t)
    top = largest_scores(e)
    e -= top if mask is None else xp.where(top == -np.inf, 0, top)  # a query that sees no key: E is 0 all the same
    xp.exp(e, out=e)
    keep = keep if keep is None else across(xp, keep, group, t)
    kept = e if keep is None else e * keep  # (..., S, T)
    sums = xp.ones((1, e.shape[-2]), dtype=e.dtype) @ e  # (..., 1, T), by BLAS as in `_mean`
    if mask is not None:
        sums[sums == 0] = np.inf  # and its f is 0
    f = 1 / sums.swapaxes(-1, -2)  # (..., T, 1)
    o = kept.swapaxes(-1, -2) @ v  # (..., T, D)
    o *= f

    def vjp(g):
        g = (g if group == 1 else g.reshape(o.shape)) * f
        ds = v @ g.swapaxes(-1, -2)
        if keep is not None:
            ds *= keep
        ds -= row_dot(g, o).swapaxes(-1, -2)
        ds *= e  # (..., S, T)
        dq = ds.swapaxes(-1, -2) @ k
        dq *= scale
        return apart(dq), ds @ q, kept @ g

    return apart(o), vjp


def hide(e, causal, mask, group, t):
    """-inf for scores (..., S, T) of keys that are later than their query, and that the mask hides."""
    xp = array_module(e)
    if causal and t > 1:
        own = e[..., e.shape[-2] - t :, :]  # the keys at the queries' own positions: (..., T, T)
        own += unseen(xp, t, group, e.real.dtype)
    if mask is not None:
        e += xp.where(across(xp, mask, group, t), 0, -np.inf).astype(e.real.dtype)


def largest_scores(e):
    """The largest score of each query: (..., S, T) -> (..., 1, T)

    NumPy is slow where its loops are short. Few keys are laid in front of all else at first, where a loop is as long as
    that; of many, eight lie side by side. Either takes a third of the time.
    """
    *batch, s, t = e.shape
    if e.dtype.kind != "f" or not e.size or t == 1:
        return largest(e, -2)
    if t < LOOP and e.size < MANY and (s < FEW_KEYS or s % 8):
        return array_module(e).moveaxis(e, -2, 0).copy(order="C").max(axis=0)[..., None, :]
    if s % 8:
        return largest(e, -2)
    return e.reshape(*batch, s // 8, 8 * t).max(axis=-2).reshape(*batch, 8, t).max(axis=-2, keepdims=True)


def across(xp, mask, group, t):
    """A mask as the scores stand: (..., T, S) -> (..., S, T), or in groups (..., H / K, T, S) -> (..., S, H / K T)"""
    if group == 1:
        return mask.swapaxes(-1, -2)
    s, batch = mask.shape[-1], mask.shape[:-3]
    return xp.moveaxis(xp.broadcast_to(mask, (*batch, group, t, s)), -1, -3).reshape(*batch, s, group * t)


def near_keys(xp, t, s, window):
    """True where a key is among the last `window` up to a query's own, the queries being the last t of s: (T, S)"""
    return ~xp.tri(t, s, s - t - window, dtype=bool)


@functools.lru_cache(maxsize=8)
def unseen(xp, t, group, dtype):
    """-inf where a key (down) is later than a query (across), else 0: (T, T), or (T, H / K T) in groups"""
    return xp.tile(xp.where(xp.tri(t, t, -1, dtype=bool), -xp.inf, 0).astype(dtype), (1, group))


def _stacked(parts, like):
    """Blocks of rows below one another, in the memory order of `like`: heads are then joined without a copy."""
    if array_module(like) is not np:
        return array_module(like).concatenate(parts, axis=-2)
    rows, width = sum(part.shape[-2] for part in parts), parts[0].shape[-1]
    whole = np.empty_like(like, parts[0].dtype, shape=(*parts[0].shape[:-2], rows, width))
    return np.concatenate(parts, axis=-2, out=whole)
