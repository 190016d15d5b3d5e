"""The fused primitives: what a transformer spends its time in, each with one hand-derived vjp.

Each equals a composition of the elementary primitives in `ops.py` (a test proves it) and is here because one derivation
saves time, memory, or digits. As there, g is the cotangent of the output. Indices: i runs over the normalised axis.
"""

import functools
import math

import numpy as np

from .backend import array_module
from .tensor import register

__all__ = [
    "attention",
    "cross_entropy",
    "dropout",
    "embedding",
    "gelu",
    "join_heads",
    "layer_norm",
    "linear",
    "linear_on_demand",
    "log_softmax",
    "lora_linear",
    "rms_norm",
    "silu",
    "softmax",
    "split_heads",
]

GELU_SCALE = math.sqrt(2 / math.pi)
GELU_CUBIC = 0.044715


@register
def linear(x, weight, bias=None):
    """y = x W^T + b.   x: (..., d_in), W: (d_out, d_in), b: (d_out,) -> (..., d_out)

    dx = g W,  dW = g^T x,  db = sum of g over all rows. Only the vjp of W refers to x: freeze W and x is let go.
    """
    shape, (d_out, d_in) = _fitting("linear", x, weight, bias)
    n = math.prod(shape[:-1])
    rows = x.reshape(n, d_in)  # (N, d_in): one large product instead of many small ones
    y = rows @ weight.T  # (N, d_out)
    if bias is not None:
        y = _plus(y, bias)
    return y.reshape(*shape[:-1], d_out), (
        lambda g: (g.reshape(n, d_out) @ weight).reshape(shape),
        lambda g: g.reshape(n, d_out).T @ rows,
        lambda g: g.reshape(n, d_out).sum(axis=0),
    )


@register
def linear_on_demand(x, weight_of, bias=None):
    """y = x W^T + b, where W is made when it is needed and kept by nobody.   x: (..., d_in) -> (..., d_out)

    weight_of: a function from a dtype to W (d_out, d_in), the same one each time; for a weight kept in few bits. As in
    `linear`, dx = g W and db = sum of g over all rows; W has no gradient. The vjp of x makes W again, so that the tape
    refers to the function and to no float weight (Dettmers et al. 2023, "QLoRA", section 3, eq. 5).
    """
    dtype = x.real.dtype
    weight = weight_of(dtype)
    shape, (d_out, d_in) = _fitting("linear_on_demand", x, weight, bias)
    n = math.prod(shape[:-1])
    y = x.reshape(n, d_in) @ weight.T  # (N, d_out)
    if bias is not None:
        y = y + bias
    return y.reshape(*shape[:-1], d_out), (
        lambda g: (g.reshape(n, d_out) @ weight_of(dtype)).reshape(shape),
        None,
        lambda g: g.reshape(n, d_out).sum(axis=0),
    )


@register
def lora_linear(x, weight, bias, lora_A, lora_B, scale):
    """y = x W^T + b + s (x A^T) B^T, never forming B A.   A: (r, d_in), B: (d_out, r), s = alpha/r

    With h = s x A^T of r columns, the added path is h B^T: scaled where it is thin. By the product rule:
        dh = g B,   dx = g W + s dh A,   dA = s dh^T x,   dB = g^T h.
    Derived term by term in `adapters/lora.py` (Hu et al. 2021, "LoRA", section 4.1, eq. 3).
    """
    shape, (d_out, d_in) = _fitting("lora_linear", x, weight, bias)
    rank, scale = lora_A.shape[0], float(scale)  # a Python number keeps float32 what it is
    if lora_A.shape != (rank, d_in) or lora_B.shape != (d_out, rank):
        raise ValueError(
            f"lora_linear: A {lora_A.shape} and B {lora_B.shape} do not fit W {weight.shape}: "
            f"expected A (r, {d_in}) and B ({d_out}, r)"
        )
    n = math.prod(shape[:-1])
    rows = x.reshape(n, d_in)  # (N, d_in)
    h = scale * (rows @ lora_A.T)  # (N, r)
    y = _plus(rows @ weight.T, h @ lora_B.T)  # (N, d_out)
    if bias is not None:
        y = _plus(y, bias)
    return y.reshape(*shape[:-1], d_out), (
        lambda g: _plus(g.reshape(n, d_out) @ weight, scale * (g.reshape(n, d_out) @ lora_B) @ lora_A).reshape(shape),
        lambda g: g.reshape(n, d_out).T @ rows,
        lambda g: g.reshape(n, d_out).sum(axis=0),
        lambda g: scale * ((g.reshape(n, d_out) @ lora_B).T @ rows),
        lambda g: g.reshape(n, d_out).T @ h,
    )


def _plus(fresh, other):
    """fresh + other, written over `fresh`, which nobody else holds; a new array only where the precisions differ."""
    if fresh.dtype != other.dtype:
        return fresh + other
    fresh += other
    return fresh


def _dot(a, b):
    """The sum of a b over the last axis, kept: (..., C), (..., C) -> (..., 1), without writing a b down"""
    return array_module(a).einsum("...c,...c->...", a, b)[..., None]


def _mean(x):
    """The mean over the last axis, kept, as a product: BLAS adds short rows several times faster than NumPy"""
    c = x.shape[-1]
    return x @ array_module(x).full((c, 1), 1 / c, dtype=x.dtype)


def _fitting(name, x, weight, bias):
    """The shapes of x and W, or an error that says which one does not fit."""
    if weight.ndim != 2:
        raise ValueError(f"{name}: weight has shape {weight.shape}, expected (d_out, d_in)")
    d_out, d_in = weight.shape
    if x.ndim == 0 or x.shape[-1] != d_in:
        raise ValueError(f"{name}: x {x.shape} does not fit W {weight.shape}: x's last axis must be d_in = {d_in}")
    if bias is not None and bias.shape != (d_out,):
        raise ValueError(f"{name}: bias has shape {bias.shape}, expected ({d_out},)")
    return x.shape, (d_out, d_in)


@register
def softmax(x, axis=-1):
    """y_i = e^(x_i) / sum_j e^(x_j).   dy_i/dx_j = y_i (delta_ij - y_j), so dx = y (g - sum_j g_j y_j)"""
    xp = array_module(x)
    y = x - _largest(x, axis)  # the largest exponent is 0: no overflow
    xp.exp(y, out=y)
    y /= y.sum(axis=axis, keepdims=True)
    return y, (lambda g: y * (g - (g * y).sum(axis=axis, keepdims=True)),)


def _largest(x, axis):
    return x.real.max(axis=axis, keepdims=True) if x.size else 0  # no entries have no maximum, and need none


@register
def log_softmax(x, axis=-1):
    """y_i = x_i - log sum_j e^(x_j).   dx = g - softmax(x) sum_j g_j"""
    xp = array_module(x)
    shifted = x - _largest(x, axis)
    y = shifted - xp.log(xp.exp(shifted).sum(axis=axis, keepdims=True))
    return y, (lambda g: g - xp.exp(y) * g.sum(axis=axis, keepdims=True),)


@register
def cross_entropy(logits, targets):
    """The mean over all rows of -log softmax(logits)[target], in nats.   logits: (..., V), targets: (...) integers

    d/dlogits = (softmax(logits) - onehot(targets)) / number of rows.
    """
    xp, shape = array_module(logits), logits.shape
    targets = array_module(targets).asarray(targets)
    if not shape or targets.shape != shape[:-1]:
        raise ValueError(f"cross_entropy: logits {shape} and targets {targets.shape} do not fit: (..., V), (...)")
    check_tokens("cross_entropy", targets, shape[-1], "targets")
    if targets.size == 0:
        raise ValueError(f"cross_entropy: logits {shape}: no rows have no mean")
    z = logits.reshape(-1, shape[-1])  # (N, V)
    n, row, column = len(z), xp.arange(len(z)), xp.asarray(targets).reshape(-1)
    z = z - z.real.max(axis=1, keepdims=True)
    picked = z[row, column]  # (N,)
    p = xp.exp(z, out=z)
    total = p.sum(axis=1, keepdims=True)  # (N, 1)
    p /= total

    def vjp(g):
        d = p * (g / n)  # (N, V)
        d[row, column] -= g / n
        return d.reshape(shape)

    return (xp.log(total[:, 0]) - picked).sum() / n, (vjp, None)


def check_tokens(name, tokens, vocab_size, what="tokens"):
    """Raise unless `tokens` are integers in [0, vocab_size). Asked where they are: a GPU has to be waited for."""
    if tokens.dtype.kind not in "iu":
        raise TypeError(f"{name}: {what} have dtype {tokens.dtype}, expected integers")
    if tokens.size and (tokens.min() < 0 or tokens.max() >= vocab_size):
        raise ValueError(f"{name}: {what} run from {tokens.min()} to {tokens.max()}, expected 0 to {vocab_size - 1}")


@register
def embedding(weight, tokens):
    """y = W[tokens]: row t of the table for token t.   W: (V, C), tokens: (...) integers -> (..., C)

    dW gathers, for each token of the vocabulary, the sum of the cotangents of the places where it stands.
    """
    xp, shape, dtype = array_module(weight), weight.shape, weight.dtype
    tokens = array_module(tokens).asarray(tokens)
    if len(shape) != 2:
        raise ValueError(f"embedding: the table has shape {shape}, expected (V, C)")
    check_tokens("embedding", tokens, shape[0])
    tokens = xp.asarray(tokens)

    def vjp(g):
        dw = xp.zeros(shape, dtype=dtype)
        xp.add.at(dw, tokens.reshape(-1), g.reshape(tokens.size, shape[1]))
        return dw

    return weight[tokens], (vjp, None)


@register
def gelu(x):
    """y = x (1 + tanh u) / 2,  u = sqrt(2/pi) (x + 0.044715 x^3).   Hendrycks & Gimpel 2016, section 2; GPT-2's form

    With t = tanh u:  dy/dx = (1 + t)/2 + x (1 - t^2)/2 du/dx = (1 + t)/2 (1 + (1 - t) x du/dx),
    and since u = a x + b x^3,  x du/dx = a x + 3 b x^3 = 3 u - 2 a x.
    Only x is kept; u is computed again. Arrays are written over once used: two thirds of the formula's time.
    """

    xp = array_module(x)

    def inner():
        u = xp.asarray(x * x)  # an array even where x is one number, to be written over
        u *= GELU_SCALE * GELU_CUBIC
        u += GELU_SCALE
        u *= x
        return u

    def vjp(g):
        u = inner()
        d = 3 * u
        d -= 2 * GELU_SCALE * x  # x du/dx
        t = xp.tanh(u, out=u)
        d *= 1 - t
        d += 1
        t += 1
        d *= t
        d *= g
        d *= 0.5
        return d

    u = inner()
    y = xp.tanh(u, out=u)
    y += 1
    y *= x
    y *= 0.5
    return y, (vjp,)


@register
def silu(x):
    """y = x s,  s = 1 / (1 + e^-x).   dy/dx = s (1 + x (1 - s)).   Also called swish; LLaMA's activation"""
    s = 0.5 * (1 + array_module(x).tanh(0.5 * x))  # the logistic function, without overflow
    return x * s, (lambda g: g * s * (1 + x * (1 - s)),)


@register
def layer_norm(x, weight, bias=None, eps=1e-5):
    """y = w n + b,  n = (x - mean x) / sqrt(var x + eps), over the last axis.   Ba et al. 2016, eq. 4

    n is x centred and scaled by k = 1 / sqrt(var + eps). With m = g w, the cotangent of n:
        dx = k (m - mean m - n mean(m n)):  the parts of m that would shift or stretch x change nothing.
        dw = sum of g n over all rows,  db = sum of g over all rows.
    """
    _fitting_rows("layer_norm", x, weight, bias)
    xp = array_module(x)
    c = x.shape[-1]
    n = x - _mean(x)
    k = 1 / xp.sqrt(_dot(n, n) / c + eps)  # (..., 1)
    n *= k
    y = n * weight if bias is None else _plus(n * weight, bias)

    def dx(g):
        m = g * weight
        along = _dot(m, n) / c  # mean(m n)
        m -= _mean(m)
        m -= n * along
        m *= k
        return m

    return y, (dx, lambda g: g * n, lambda g: g)  # the tape sums dw and db over the rows: w and b were broadcast


def _fitting_rows(name, x, *scales):
    """An error unless each of the weight and bias has one entry per feature of x."""
    for scale in scales:
        if scale is not None and scale.shape != x.shape[-1:]:
            raise ValueError(f"{name}: x {x.shape}, weight or bias {scale.shape}: expected {x.shape[-1:]}")


@register
def rms_norm(x, weight, eps=1e-6):
    """y = w n,  n = x / sqrt(mean x^2 + eps), over the last axis.   Zhang & Sennrich 2019, eq. 4

    As in layer_norm without the centring, with m = g w and k = 1 / sqrt(mean x^2 + eps):  dx = k (m - n mean(m n)).
    """
    _fitting_rows("rms_norm", x, weight)
    c = x.shape[-1]
    k = 1 / array_module(x).sqrt(_dot(x, x) / c + eps)  # (..., 1)
    n = x * k

    def dx(g):
        m = g * weight
        return k * (m - n * (_dot(m, n) / c))

    return n * weight, (dx, lambda g: g * n)


@register
def split_heads(x, heads):
    """Each head gets its own slice of the width.   x: (B, T, C) -> (B, H, T, C / H), a view;   dx = join_heads(g)"""
    if x.ndim != 3 or x.shape[2] % heads:
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
    if not causal or t <= QUERIES or array_module(q) is not np:  # a GPU is quicker with one large block
        return attend(q, k, v, keep, causal)
    blocks = [(slice(i, min(i + QUERIES, t)), slice(s - t + min(i + QUERIES, t))) for i in range(0, t, QUERIES)]
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
    scale = 1 / math.sqrt(q.shape[-1])
    q = q * scale  # of no further use as it was: kept in its place
    e = k @ q.swapaxes(-1, -2)  # (..., S, T)
    if causal and t > 1:
        own = e[..., k.shape[-2] - t :, :]  # the keys at the queries' own positions: (..., T, T)
        own += _unseen(xp, t, e.real.dtype)
    e -= _largest(e, -2)
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
        ds -= _dot(g, o).swapaxes(-1, -2)
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


@register
def dropout(x, p, rng):
    """Zero each entry with probability p and divide the rest by 1 - p, so that the mean stays.   dx = the same mask * g

    rng: a numpy.random.Generator.   Srivastava et al. 2014, in the "inverted" form of every library.
    """
    keep = dropout_mask(x, x.shape, p, rng)
    return x * keep, (lambda g: g * keep,)


def dropout_mask(like, shape, p, rng):
    """0 with probability p, else 1 / (1 - p), in the precision of `like`."""
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p = {p}, expected 0 <= p < 1")
    xp, dtype = array_module(like), like.real.dtype
    return xp.asarray(rng.random(shape, dtype="float32") >= p).astype(dtype) * (1 / (1 - p))
