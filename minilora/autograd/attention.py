"""Attention, and how heads are split and joined: each a primitive with one hand-derived vjp, as in `fused.py`."""

import functools
import math

import numpy as np

from .backend import array_module, at_least_float32, by_value, floating, narrow, wide
from .fused import largest, row_dot
from .parts import in_parts
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


QUERIES = 64  # that causal attention takes at a time, leaving out the keys that none of them sees
LONG = 512  # positions from which on P is computed again in the backward pass, so that what is kept grows with T
HEADS = 2  # of a long text at a time, so that a block's scores stay in a core's cache; and the cores share them


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
    its part of P: the vjp computes it again from q, k and the rows' largest scores and sums (Dao et al. 2022,
    "FlashAttention", section 3.1 and appendix B.4), so that memory grows with T, not with T^2.
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
    rest = {"mask": mask, "group": group, "scale": 1 / math.sqrt(shape[-1] or 1) if scale is None else float(scale)}
    rest["again"] = s >= LONG
    if s >= LONG:  # of no further use as they were
        k, v = _beside_ones(k), _beside_ones(v)
    if s >= LONG and array_module(q) is np and q.shape[: k.ndim - 2] == k.shape[:-2] == v.shape[:-2] != ():
        o, vjp = _by_heads(q, k, v, keep, causal, window, rest)
    else:
        o, vjp = _whole(q, k, v, keep, causal, window, rest)
    if group == 1:
        return o, vjp
    grouped = o.shape  # (..., K, H / K, T, D)

    def of_heads(g):
        dq, dk, dv = vjp(g.reshape(grouped))
        return dq.reshape(*dq.shape[:-4], *shape[-3:]), dk, dv

    return o.reshape(*grouped[:-4], *shape[-3:-1], grouped[-1]), of_heads


def _whole(q, k, v, keep, causal, window, rest):
    """Attention of all heads, and its vjp: at once, or in blocks of queries. rest: `attend`'s other arguments."""
    t = q.shape[-2]
    if window is None and (not causal or t == 1 or array_module(q) is not np):  # a GPU is quicker with one large block
        o, vjp = attend(q, k, v, keep, causal, **rest)
    else:
        with np.errstate(invalid="ignore"):
            o, vjp = _in_blocks(q, k, v, keep, QUERIES if array_module(q) is np else t, window, rest)
        if not array_module(o).isfinite(o).all():  # 0 times infinity is no 0: a query leaves out what it does not see
            o, vjp = _in_blocks(q, k, v, keep, 1, window, rest)
    return o, vjp


def _by_heads(q, k, v, keep, causal, window, rest):
    """`_whole` of a few heads of k and v at a time, side by side where cores share the parts of one thing."""
    axis = -4 if rest["group"] > 1 else -3  # of the heads in q, which has an axis more in groups
    places = [slice(h, h + HEADS) for h in range(0, k.shape[-3], HEADS)]

    def part(h):
        few = {**rest, "mask": _heads(rest["mask"], h, axis)}
        return _whole(
            _heads(q, h, axis), _heads(k, h, -3), _heads(v, h, -3), _heads(keep, h, axis), causal, window, few
        )

    found = in_parts(part, [(h,) for h in places])

    def vjp(g):
        some = lambda h, pull: pull(_heads(g, h, axis))
        parts = in_parts(some, [(h, pull) for h, (_, pull) in zip(places, found, strict=True)])
        dqs, dks, dvs = zip(*parts, strict=True)
        like = g if axis == -3 else g[..., 0, :, :]
        return _together(dqs, g, axis), _together(dks, like, -3), _together(dvs, like, -3)

    return _together([o for o, _ in found], q, axis), vjp


def _heads(x, places, axis):
    """What is of these heads; all of what is one for every head."""
    return x if x is None or x.ndim < -axis or x.shape[axis] == 1 else x[(..., places, *[slice(None)] * (-axis - 1))]


def _together(parts, like, axis):
    """Parts of heads beside one another again, in the memory order of `like`."""
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    return np.concatenate(parts, axis, out=np.empty_like(like, parts[0].dtype, shape=shape))


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


def _in_blocks(q, k, v, keep, size, window, rest):
    """Causal attention with so many queries at a time, and its vjp. rest: `attend`'s other arguments."""
    t, s = q.shape[-2], k.shape[-2]
    if t <= size and window is None:
        return attend(q, k, v, keep, **rest)
    blocks, parts, vjps = [], [], []
    for start in range(0, t, size):
        rows = slice(start, min(start + size, t))
        first = 0 if window is None else max(0, s - t + start - window + 1)
        seen = slice(first, s - t + rows.stop)
        mask = _block(rest["mask"], rows, seen)
        if window is not None and seen.stop - first > window:
            near = _near(array_module(q), rows.stop - start, seen.stop - first, window)
            mask = near if mask is None else mask & near
        part, vjp_of_part = attend(
            q[..., rows, :], k[..., seen, :], v[..., seen, :], _block(keep, rows, seen), **(rest | {"mask": mask})
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


def _block(mask, rows, seen):
    """What of a mask (..., T or 1, S) is of these queries and keys."""
    return mask if mask is None else mask[..., rows if mask.shape[-2] > 1 else slice(None), seen]


def _among(part, seen, s):
    """The cotangents of the keys that the last block sees among those of all keys, where the others have 0 so far."""
    if part.shape[-2] == s:
        return part
    whole = array_module(part).zeros((*part.shape[:-2], s, part.shape[-1]), dtype=part.dtype)
    whole[..., seen, :] = part
    return whole


def attend(q, k, v, keep=None, causal=True, mask=None, group=1, scale=None, again=False):
    """Attention, all queries at once: -> O, and its vjp, which returns (dq, dk, dv).

    With S = scale q k^T, P = softmax(S), O = P v:
        dv = P^T g,   dP = g v^T,   dS = P (dP - rowsum(dP P)),   dq = scale dS k,   dk = scale dS^T q,
    where rowsum(dP P)_i = sum_j sum_d g_id v_jd P_ij = sum_d g_id O_id: a sum over D instead of S numbers.
    Written as P = f E, where E = exp(S - the largest of each row) and f = 1 / rowsum(E), f scales O and g, whose rows
    are short, instead of P. Scores stand transposed, keys down and queries across: NumPy takes a maximum over
    columns twice as fast as one over rows. With a group, q is (..., K, H / K, T, D) and k is (..., K, S, D): the
    queries of the heads that look at the same keys stand below one another, as if they were queries of one head.
    again: E is not kept; the vjp computes it from q, k and the largest scores once more. There k and v have a column
    of ones beside them, so that products subtract, too, which saves two passes over S numbers a query:
        S_ij - top_i = [q_i, -top_i] . [k_j, 1],   dP_ij - rowsum_i = [g_i, -rowsum_i] . [v_j, 1].
    """
    xp, shape, t = array_module(q), q.shape, q.shape[-2]
    k1, v1, k, v = (k, v, k[..., :-1], v[..., :-1]) if again else (None, None, k, v)
    scale = 1 / math.sqrt(q.shape[-1] or 1) if scale is None else scale
    q = q * scale  # of no further use as it was: kept in its place
    if group > 1:
        q = q.reshape(*shape[:-3], group * t, shape[-1])
    apart = lambda x: x if group == 1 else x.reshape(*x.shape[:-2], group, t, x.shape[-1])
    across = lambda x: _across(xp, x, group, t)

    def scores(q, k):
        e = k @ q.swapaxes(-1, -2)  # (..., S, T)
        if causal and t > 1:
            own = e[..., k.shape[-2] - t :, :]  # the keys at the queries' own positions: (..., T, T)
            own += _unseen(xp, t, group, e.real.dtype)
        if mask is not None:
            e += xp.where(across(mask), 0, -np.inf).astype(e.real.dtype)
        return e

    e = scores(q, k)
    top = _top(e)
    top = top if mask is None else xp.where(top == -np.inf, 0, top)  # a query that sees no key: E is 0 all the same
    e -= top
    e, kept = _weights(e, keep if keep is None else across(keep))  # (..., S, T)
    sums = xp.ones((1, e.shape[-2]), dtype=e.dtype) @ e  # (..., 1, T), by BLAS as in `_mean`
    if mask is not None:
        sums[sums == 0] = np.inf  # and its f is 0
    f = 1 / sums.swapaxes(-1, -2)  # (..., T, 1)
    o = kept.swapaxes(-1, -2) @ v  # (..., T, D)
    o *= f
    held = None if again else (e, kept)
    redo = again and (lambda keep, top=top: _weights(scores(_beside(q, -top), k1), keep))  # else `top` is let go

    def vjp(g):
        g = (g if group == 1 else g.reshape(o.shape)) * f
        e, kept = held or redo(keep if keep is None else across(keep))  # type: ignore[misc]
        ds = _less(v1 if again else v, g, row_dot(g, o).swapaxes(-1, -2), keep if keep is None else across(keep), again)
        ds *= e  # (..., S, T)
        return apart(ds.swapaxes(-1, -2) @ (k * scale)), ds @ q, kept @ g

    return apart(o), vjp


def _beside_ones(x):
    """[x, 1], without gaps: (..., S, D) -> (..., S, D + 1)"""
    return _beside(x, array_module(x).ones((*x.shape[:-2], 1, x.shape[-2]), x.dtype))


def _beside(x, column):
    """One more feature: (..., T, D), (..., 1, T) -> (..., T, D + 1)"""
    return array_module(x).concatenate([x, column.swapaxes(-1, -2)], axis=-1)


def _top(e):
    """The largest score of each query: (..., S, T) -> (..., 1, T)

    Eight keys are laid side by side at first: NumPy's loops over them are eight times as long, and take a third of the
    time.
    """
    *batch, s, t = e.shape
    if e.dtype.kind != "f" or s % 8 or not e.size:
        return largest(e, -2)
    return e.reshape(*batch, s // 8, 8 * t).max(axis=-2).reshape(*batch, 8, t).max(axis=-2, keepdims=True)


def _less(v, g, along, keep, ones):
    """(dP - rowsum(dP P))^T, where the rowsum is `along`: (..., 1, T) -> (..., S, T)"""
    if ones and keep is None:
        return v @ _beside(g, -along).swapaxes(-1, -2)
    d = (v[..., :-1] if ones else v) @ g.swapaxes(-1, -2)
    if keep is not None:
        d *= keep
    d -= along
    return d


def _weights(e, keep):
    """E = exp(S - the largest of each row), in the place of that difference, and what dropout leaves of it."""
    array_module(e).exp(e, out=e)
    return e, e if keep is None else e * keep


def _across(xp, mask, group, t):
    """A mask as the scores stand: (..., T, S) -> (..., S, T), or in groups (..., H / K, T, S) -> (..., S, H / K T)"""
    if group == 1:
        return mask.swapaxes(-1, -2)
    s, batch = mask.shape[-1], mask.shape[:-3]
    return xp.moveaxis(xp.broadcast_to(mask, (*batch, group, t, s)), -1, -3).reshape(*batch, s, group * t)


def _near(xp, t, s, window):
    """True where a key is among the last `window` up to a query's own, the queries being the last t of s: (T, S)"""
    return ~xp.tri(t, s, s - t - window, dtype=bool)


@functools.lru_cache(maxsize=8)
def _unseen(xp, t, group, dtype):
    """-inf where a key (down) is later than a query (across), else 0: (T, T), or (T, H / K T) in groups"""
    return xp.tile(xp.where(xp.tri(t, t, -1, dtype=bool), -xp.inf, 0).astype(dtype), (1, group))


def _stacked(parts, like):
    """Blocks of rows below one another, in the memory order of `like`: heads are then joined without a copy."""
    if array_module(like) is not np:
        return array_module(like).concatenate(parts, axis=-2)
    rows, width = sum(part.shape[-2] for part in parts), parts[0].shape[-1]
    whole = np.empty_like(like, parts[0].dtype, shape=(*parts[0].shape[:-2], rows, width))
    return np.concatenate(parts, axis=-2, out=whole)
