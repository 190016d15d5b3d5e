"""Attention of long texts: no weights are kept, and cores that are free share the heads.

A block of rows of P = softmax(S), S = scale q k^T, is computed when it is needed, in the forward pass and once more in
the backward pass (Dao et al. 2022, "FlashAttention", section 3.1 and appendix B.4): memory grows with T, not with T^2.
As in `attend.py`, P = f E with E = exp(S - top) and f = 1 / rowsum(E), and

    O = f E v,   dv = E^T (f g),   dS = E (f g v^T - rowsum(f g O)),   dq = scale dS k,   dk = scale dS^T q.

`top` keeps E from overflowing, and any number will do that does. A score is no larger than the length of its query
times that of the longest key that this sees (Cauchy and Schwarz), which is known before there are scores. So the
products subtract as well, and S and dP are never written down:

    S_ij - top_i = [q_i, -top_i] . [k_j, 1],   dP_ij - rowsum_i = [g_i, -rowsum_i] . [v_j, 1].

Where it is so large, or so far above the largest score, that digits would be lost, `top` is that score, subtracted.
"""

import numpy as np

from .attend import across, block_of, blocks_of, hide, largest_scores
from .backend import array_module
from .parts import in_parts
from .rows import row_dot

QUERIES = 64  # at a time
HEADS = 2  # at a time, so that a block's scores stay in a core's cache; and the cores share them
FAR = 100  # a bound from which on digits of S - top might be lost
SMALL = 1e-18  # a sum of E from which down weights that matter might vanish


def attend_long(q, k, v, keep, causal, window, mask, group, scale):
    """Attention of a few heads at a time, which cores that are free share, and its vjp.

    q: (..., H, T, D), or in groups (..., K, H / K, T, D); k and v: (..., K, S, D)
    """
    xp, own = array_module(q), 3 if group > 1 else 2  # axes of a head of k, in q
    lead = np.broadcast_shapes(q.shape[:-own], k.shape[:-2], v.shape[:-2])
    q, k, v = (xp.broadcast_to(x, (*lead, *x.shape[-n:])) for x, n in ((q, own), (k, 2), (v, 2)))
    heads = range(0, lead[-1], HEADS) if lead else ()
    places = [(*at, slice(h, h + HEADS)) for at in np.ndindex(lead[:-1]) for h in heads] if xp is np else []
    places = places or [()]  # a GPU takes all heads at once
    o = _new(q, (*q.shape[:-1], v.shape[-1]), np.result_type(q.dtype, k.dtype, v.dtype))

    def part(at):
        hides = [_at(x, at, q.ndim) for x in (keep, mask)]
        return _some_heads(q[at], k[at], v[at], hides, causal, window, group, scale, o[at])

    pulls = in_parts(part, [(at,) for at in places])
    shapes = q.shape, k.shape, v.shape

    def vjp(g):
        like = g if group == 1 else g[..., 0, :, :]
        found = [_new(x, shape, g.dtype) for x, shape in zip((g, like, like), shapes, strict=True)]
        pull_at = lambda at, pull: pull(g[at], *(d[at] for d in found))
        in_parts(pull_at, list(zip(places, pulls, strict=True)))
        return found

    return o, vjp


def _new(like, shape, dtype):
    """An array in the memory order of `like`: heads are then joined without a copy."""
    xp = array_module(like)
    return np.empty_like(like, dtype, shape=shape) if xp is np else xp.empty(shape, dtype)


def _at(mask, at, axes):
    """What of a mask (..., T or 1, S), which may be one for all heads or texts, is of these heads."""
    if mask is None or not at:
        return mask
    mask = mask.reshape(*[1] * (axes - mask.ndim), *mask.shape)
    one = lambda i: 0 if isinstance(i, int) else slice(None)
    return mask[tuple(one(i) if n == 1 else i for i, n in zip(at, mask.shape, strict=False))]


def _some_heads(q, k, v, hides, causal, window, group, scale, o):
    """Attention of these heads, written into o, and its vjp, which writes into dq, dk and dv."""
    xp, t = array_module(q), q.shape[-2]
    given = (q, k, v, hides, causal, window, group, scale, o)
    with np.errstate(invalid="ignore", over="ignore"):
        pull = _in_blocks(*given, QUERIES if xp is np else t)
        if causal and not xp.isfinite(o).all():  # 0 times infinity is no 0: a query leaves out what it does not see
            pull = _in_blocks(*given, 1)
    return pull


def _in_blocks(q, k, v, hides, causal, window, group, scale, o, size):
    """`_some_heads`, so many queries at a time."""
    xp, t, (keep, mask) = array_module(q), q.shape[-2], hides
    q = q * scale
    q1, k1, v1 = _beside(q, -_bound(q, k, causal)), _beside(k), _beside(v)
    del q, k, v  # of no further use as they were
    f = xp.empty((*o.shape[:-1], 1), o.dtype)  # (..., T, 1)
    blocks = list(blocks_of(xp, t, k1.shape[-2], size, causal, window, mask))
    flat = lambda x: x if group == 1 else x.reshape(*x.shape[:-3], -1, x.shape[-1])  # (..., H / K T, D)
    apart = lambda x: x if group == 1 else x.reshape(*x.shape[:-2], group, -1, x.shape[-1])

    scores = lambda rows, seen, hidden: _scores(flat(q1[..., rows, :]), k1[..., seen, :], hidden, causal, group)
    add_up = lambda e: xp.ones((1, e.shape[-2]), e.dtype) @ e  # (..., 1, T), by BLAS as in `fused._mean`
    dropped = lambda rows, seen: across(xp, block_of(keep, rows, seen), group, rows.stop - rows.start)
    near, tops = bool((q1[..., -1].real >= -FAR).all()), []
    for rows, seen, hidden in blocks:
        if near:
            e, top = scores(rows, seen, hidden), None
            sums = add_up(xp.exp(e, out=e))
            near = bool((sums.real > SMALL).all())
        if not near:
            q1[..., rows, -1:] = 0
            e = scores(rows, seen, hidden)
            top = largest_scores(e)
            top = xp.where(top == -np.inf, 0, top)  # a query that sees no key: E is 0 all the same
            e -= top
            sums = add_up(xp.exp(e, out=e))
            sums[sums == 0] = np.inf  # and its f is 0
        tops.append(top)
        f[..., rows, :] = apart(1 / sums.swapaxes(-1, -2))
        if keep is not None:
            e *= dropped(rows, seen)
        o[..., rows, :] = apart(e.swapaxes(-1, -2) @ v1[..., seen, :-1])
    o *= f

    def pull(g, dq, dk, dv):
        g = g * f
        g1 = _beside(g, -row_dot(g, o))
        of_k, of_v = (xp.zeros((*x.shape[:-1], x.shape[-1] - 1), g.dtype) for x in (k1, v1))
        for (rows, seen, hidden), top in zip(blocks, tops, strict=True):
            e, one = scores(rows, seen, hidden), flat(g1[..., rows, :])
            if top is not None:
                e -= top
            xp.exp(e, out=e)
            if keep is None:
                kept, ds = e, v1[..., seen, :] @ one.swapaxes(-1, -2)
            else:
                ds, drop = v1[..., seen, :-1] @ one[..., :-1].swapaxes(-1, -2), dropped(rows, seen)
                ds *= drop
                ds += one[..., -1:].swapaxes(-1, -2)
                kept = e * drop
            ds *= e  # (..., S, T)
            dq[..., rows, :] = apart(ds.swapaxes(-1, -2) @ k1[..., seen, :-1])
            of_k[..., seen, :] += ds @ flat(q1[..., rows, :-1])
            of_v[..., seen, :] += kept @ one[..., :-1]
        dq *= scale
        dk[...], dv[...] = of_k, of_v

    return pull


def _scores(q1, k1, hidden, causal, group):
    """S - top, or S where top has been set to 0, and -inf where a key is hidden: (..., S, T)"""
    e = k1 @ q1.swapaxes(-1, -2)
    hide(e, causal, hidden, group, q1.shape[-2] // group)
    return e


def _bound(q, k, causal):
    """|q_i| times the largest |k_j| of the keys that it may see, so that a later one changes no bit: (..., T, 1)"""
    xp, t = array_module(q), q.shape[-2]
    length = lambda x: xp.sqrt(row_dot(abs(x), abs(x)))
    longest = length(k)  # (..., S, 1)
    if causal and xp is np:
        longest = np.maximum.accumulate(longest, axis=-2)[..., longest.shape[-2] - t :, :]
    else:
        longest = longest.max(axis=-2, keepdims=True)
    return length(q) * (longest if q.ndim == k.ndim else longest[..., None, :, :])


def _beside(x, column=None):
    """One more feature, 1 unless given: (..., T, D), (..., T, 1) -> (..., T, D + 1), without gaps"""
    xp = array_module(x)
    wide = xp.empty((*x.shape[:-1], x.shape[-1] + 1), x.dtype)
    wide[..., :-1] = x
    wide[..., -1:] = 1 if column is None else column
    return wide
