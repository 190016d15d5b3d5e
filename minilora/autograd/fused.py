"""The fused primitives: what a transformer spends its time in, each with one hand-derived vjp.

Each equals a composition of the elementary primitives in `ops.py` (a test proves it) and is here because one derivation
saves time, memory, or digits. As there, g is the cotangent of the output. Indices: i runs over the normalised axis.
"""

import math

import numpy as np

from .backend import array_module, at_least_float32, by_value, narrow, sum_of_rows, wide
from .parts import by_entry, two_by_entry
from .recording import blocks, paused
from .rows import largest, plus, product, row_by_row, row_dot
from .tensor import register

__all__ = [
    "cross_entropy",
    "dropout",
    "embedding",
    "gelu",
    "layer_norm",
    "linear",
    "linear_on_demand",
    "log_softmax",
    "lora_linear",
    "rms_norm",
    "softmax",
]

IGNORED = -100  # the target of a row that does not count, as in PyTorch
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
    y = product(wide(rows), wide(weight).T, None, bias)  # (N, d_out)
    return narrow(y.reshape(*shape[:-1], d_out), x, weight, bias), (
        lambda g: product(g.reshape(n, d_out), wide(weight)).reshape(shape),
        lambda g: product(g.reshape(n, d_out).T, wide(rows)),
        lambda g: sum_of_rows(wide(g).reshape(n, d_out)),
    )


@register
def linear_on_demand(x, weight_of, bias=None):
    """y = x W^T + b, where W is made when it is needed and kept by nobody.   x: (..., d_in) -> (..., d_out)

    weight_of: a function from a dtype to W (d_out, d_in), the same one each time; for a weight kept in few bits. As in
    `linear`, dx = g W and db = sum of g over all rows; W has no gradient. The vjp of x makes W again, so that the tape
    refers to the function and to no float weight (Dettmers et al. 2023, "QLoRA", section 3, eq. 5).
    """
    dtype = x.real.dtype if x.dtype.char != "e" else np.dtype("float32")
    weight = weight_of(dtype)
    shape, (d_out, d_in) = _fitting("linear_on_demand", x, weight, bias)
    n = math.prod(shape[:-1])
    y = product(wide(x).reshape(n, d_in), weight.T, None, bias)  # (N, d_out)
    return narrow(y.reshape(*shape[:-1], d_out), x, bias), (
        lambda g: product(g.reshape(n, d_out), weight_of(dtype)).reshape(shape),
        None,
        lambda g: sum_of_rows(wide(g).reshape(n, d_out)),
    )


@register
def lora_linear(x, weight, bias, lora_A, lora_B, scale):
    """y = x W^T + b + s (x A^T) B^T, never forming B A.   A: (r, d_in), B: (d_out, r), s = alpha/r

    With h = s x A^T of r columns, the added path is h B^T: scaled where it is thin. By the product rule:
        dh = g B,   dx = g W + s dh A,   dA = s dh^T x,   dB = g^T h.
    Derived term by term in `adapters/lora.py` (Hu et al. 2021, "LoRA", section 4.1, eq. 3). Where x, W and b are
    float16 so is y, whatever A and B are, and the sums are float32.
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
    A, B = wide(lora_A), wide(lora_B)
    h = scale * (wide(rows) @ A.T)  # (N, r)
    y = product(wide(rows), wide(weight).T, (h, B.T), bias)  # (N, d_out)
    return narrow(y.reshape(*shape[:-1], d_out), x, weight, bias), (
        lambda g: product(g.reshape(n, d_out), wide(weight), (scale * (g.reshape(n, d_out) @ B), A)).reshape(shape),
        lambda g: product(g.reshape(n, d_out).T, wide(rows)),
        lambda g: sum_of_rows(wide(g).reshape(n, d_out)),
        lambda g: scale * ((g.reshape(n, d_out) @ B).T @ wide(rows)),
        lambda g: g.reshape(n, d_out).T @ h,
    )


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
@at_least_float32
def softmax(x, axis=-1):
    """y_i = e^(x_i) / sum_j e^(x_j).   dy_i/dx_j = y_i (delta_ij - y_j), so dx = y (g - sum_j g_j y_j)"""
    xp = array_module(x)
    y = xp.asarray(x - largest(x, axis))  # the largest exponent is 0: no overflow
    xp.exp(y, out=y)
    y /= y.sum(axis=axis, keepdims=True)
    return y, (lambda g: y * (g - (g * y).sum(axis=axis, keepdims=True)),)


@register
@at_least_float32
def log_softmax(x, axis=-1):
    """y_i = x_i - log sum_j e^(x_j).   dx = g - softmax(x) sum_j g_j"""
    xp = array_module(x)
    shifted = x - largest(x, axis)
    y = shifted - xp.log(xp.exp(shifted).sum(axis=axis, keepdims=True))
    return y, (lambda g: g - xp.exp(y) * g.sum(axis=axis, keepdims=True),)


@register
@at_least_float32
def cross_entropy(logits, targets):
    """The mean over the rows of -log softmax(logits)[target], in nats.   logits: (..., V), targets: (...) integers

    d/dlogits = (softmax(logits) - onehot(targets)) / number of rows. A row whose target is -100 does not count.
    """
    xp, shape = array_module(logits), logits.shape
    targets = array_module(targets).asarray(targets)
    if not shape or targets.shape != shape[:-1]:
        raise ValueError(f"cross_entropy: logits {shape} and targets {targets.shape} do not fit: (..., V), (...)")
    row, column, out = rows_that_count("cross_entropy", xp, targets, shape[-1], f"logits {shape}")
    n = len(row)
    z = logits.reshape(-1, shape[-1])  # (N, V)
    z = z - z.real.max(axis=1, keepdims=True)
    picked = z[row, column]  # (n,)
    p = xp.exp(z, out=z)
    total = p @ xp.ones((shape[-1], 1), dtype=p.dtype)  # (N, 1), by BLAS as in `_mean`
    p /= total

    def vjp(g):
        each = g / n
        d = p * each  # (N, V)
        d[row, column] -= each
        if out is not None:
            d[out] = 0
        return d.reshape(shape)

    return (xp.log(total[row, 0]) - picked).sum() / n, (vjp, None)


def rows_that_count(name, xp, targets, vocab_size, of):
    """Which rows have a target, what it is, and where the others are, None where there are none of these."""
    row, out = xp.arange(targets.size), None
    wanted = targets.flatten()  # a copy: the caller may write over the targets
    if targets.dtype.kind == "i" and targets.size and targets.min() < 0:
        row, out = xp.asarray(wanted != IGNORED).nonzero()[0], xp.asarray(wanted == IGNORED)
        wanted = wanted[wanted != IGNORED]
    check_tokens(name, wanted, vocab_size, "targets")
    if not len(row):
        raise ValueError(f"{name}: {of}: no rows have no mean; {targets.size} targets are {IGNORED}")
    return row, xp.asarray(wanted), out


def check_tokens(name, tokens, vocab_size, what="tokens"):
    """Raise unless `tokens` are integers in [0, vocab_size). Asked where they are: a GPU has to be waited for."""
    if tokens.dtype.kind not in "iu":
        raise TypeError(f"{name}: {what} have dtype {tokens.dtype}, expected integers")
    if tokens.size and (tokens.min() < 0 or tokens.max() >= vocab_size):
        raise ValueError(f"{name}: {what} run from {tokens.min()} to {tokens.max()}, expected 0 to {vocab_size - 1}")


@register
def embedding(weight, tokens):
    """y = W[tokens]: row t of the table for token t.   W: (V, C), tokens: (...) integers -> (..., C)

    dW gathers, for each token of the vocabulary, the sum of the cotangents of the places where it stands. Where W has
    a cotangent already, as a table that is the head, too, the few rows are added to that.
    """
    xp, shape, dtype = array_module(weight), weight.shape, wide(weight[:0]).dtype
    tokens = array_module(tokens).asarray(tokens)
    if len(shape) != 2:
        raise ValueError(f"embedding: the table has shape {shape}, expected (V, C)")
    check_tokens("embedding", tokens, shape[0])
    tokens = by_value(xp.asarray(tokens))

    def vjp(g):
        dw = xp.zeros(shape, dtype=dtype)
        xp.add.at(dw, tokens.reshape(-1), g.reshape(tokens.size, shape[1]))
        return dw

    def add_to(g, dw):
        there, places = xp.unique(tokens, return_inverse=True)
        rows = xp.zeros((len(there), shape[1]), dtype)
        xp.add.at(rows, places.reshape(-1), g.reshape(tokens.size, shape[1]))
        dw[there] += rows  # as the sum with all of dW would be, bit for bit

    vjp.add_to = add_to  # type: ignore[attr-defined]
    return weight[tokens], (vjp, None)


@register
@at_least_float32
def gelu(x):
    """y = x (1 + tanh u) / 2,  u = sqrt(2/pi) (x + 0.044715 x^3).   Hendrycks & Gimpel 2016, section 2; GPT-2's form

    (1 + tanh u) / 2 is the logistic function s = 1 / (1 + e^-2u), which keeps its digits where tanh u is nearly -1. So
    y = x s and dy/dx = s (1 + (1 - s) 2x du/dx), where u = a x + b x^3 and so 2x du/dx = 2a x + 6b x^3 = 6u - 4a x.
    u and s, which take long, make both: the slope is kept in the place of x. Arrays are written over once used.
    """
    xp = array_module(x)

    def minus_2u(x):
        v = xp.asarray(x * x)  # an array even where x is one number, to be written over
        v *= -2 * GELU_SCALE * GELU_CUBIC
        v += -2 * GELU_SCALE
        v *= x
        return v

    def one_plus_e(v):
        if v.dtype.kind == "c":
            v.real = v.real.clip(None, 700)  # of a complex number beyond, exp has no angle; x / q is 0 all the same
        with np.errstate(over="ignore"):  # x / inf is 0, as it should be
            xp.exp(v, out=v)
        v += 1
        return v

    def value(x):
        with np.errstate(over="ignore"):
            q = one_plus_e(minus_2u(x))
        return xp.divide(x, q, out=q)

    def value_and_slope(x, y, d):
        near = x
        if xp is not np or not -40 < x.real.min() <= x.real.max() < 40:
            near = x.clip(-40, 40)  # beyond, s is 0 or 1 in every digit, and u might be infinite
        v = minus_2u(near)
        xp.multiply(v, -3, out=d)
        d -= xp.multiply(near, 4 * GELU_SCALE, out=y)  # 2x du/dx
        q = one_plus_e(v)  # 1 / s
        d -= xp.divide(d, q, out=y)
        d += 1
        d /= q
        xp.divide(x, q, out=y)

    if blocks.get() and paused():  # hardly anybody asks for the slope
        return by_entry(value, x), (lambda g: g * two_by_entry(value_and_slope, x)[1],)
    y, slope = two_by_entry(value_and_slope, x)
    return y, (lambda g: by_entry(xp.multiply, g, slope),)


@register
@at_least_float32
@row_by_row
def layer_norm(x, weight, bias=None, eps=1e-5):
    """y = w n + b,  n = (x - mean x) / sqrt(var x + eps), over the last axis.   Ba et al. 2016, eq. 4

    n is x centred and scaled by k = 1 / sqrt(var + eps). With m = g w, the cotangent of n:
        dx = k (m - mean m - n mean(m n)):  the parts of m that would shift or stretch x change nothing.
        dw = sum of g n over all rows,  db = sum of g over all rows.
    w and b: (C,), or of their own for some rows, as (B, 1, C) where a condition makes them (`nn/diffusion.py`).
    """
    _fitting_rows("layer_norm", x, weight, bias)
    c = x.shape[-1]
    n = x - _mean(x)
    k = _scale_of(n, eps)  # (..., 1)
    n *= k
    y = n * weight if bias is None else plus(n * weight, bias)

    def dx(g):
        m = g * weight
        along = row_dot(m, n) / c  # mean(m n)
        m -= _mean(m)
        m -= n * along
        m *= k
        return m

    return y, (dx, lambda g: g * n, lambda g: g)  # the tape sums dw and db over the rows: w and b were broadcast


def _scale_of(x, eps):
    """1 / sqrt(mean x^2 + eps) over the last axis, kept: (..., C) -> (..., 1)"""
    xp, c, eps = array_module(x), x.shape[-1], float(eps)  # a Python number keeps float32 what it is
    if not eps >= 0:
        raise ValueError(f"eps = {eps}, expected eps >= 0")
    k = 1 / xp.sqrt(row_dot(x, x) / c + eps)
    if xp is np and not k.all():  # x^2 is infinite, x is not: divided by a power of 2, which is exact
        size = np.ldexp(np.ones_like(k.real), np.frexp(np.abs(x.real).max(axis=-1, keepdims=True))[1] - 1)
        k = np.where(k == 0, 1 / size / np.sqrt(row_dot(x / size, x / size) / c), k)
    return k


def _fitting_rows(name, x, *scales):
    """An error unless x has features, and each of the weight and bias one entry per feature, for all rows or some."""
    if x.shape[-1:] in ((), (0,)):
        raise ValueError(f"{name}: x {x.shape}: no features to normalise over; expected (..., C)")
    for scale in scales:
        if scale is not None and scale.shape != x.shape[-1:] and not _of_rows(scale.shape, x.shape):
            raise ValueError(f"{name}: x {x.shape}, weight or bias {scale.shape}: expected {x.shape[-1:]}")


def _of_rows(shape, rows):
    """Whether it has all features, and broadcasts to the rows: (B, 1, C) for (B, T, C)"""
    fits = all(n in (1, m) for n, m in zip(shape[::-1], rows[::-1], strict=False))
    return shape[-1:] == rows[-1:] and len(shape) <= len(rows) and fits


@register
@at_least_float32
@row_by_row
def rms_norm(x, weight, eps=1e-6):
    """y = w n,  n = x / sqrt(mean x^2 + eps), over the last axis.   Zhang & Sennrich 2019, eq. 4

    As in layer_norm without the centring, with m = g w and k = 1 / sqrt(mean x^2 + eps):  dx = k (m - n mean(m n)).
    """
    _fitting_rows("rms_norm", x, weight)
    c = x.shape[-1]
    k = _scale_of(x, eps)  # (..., 1)
    n = x * k

    def dx(g):
        m = g * weight
        m -= n * (row_dot(m, n) / c)
        m *= k
        return m

    return n * weight, (dx, lambda g: g * n)


@register
def dropout(x, p, rng):
    """Zero each entry with probability p and divide the rest by 1 - p, so that the mean stays.   dx = the same mask * g

    rng: a numpy.random.Generator.   Srivastava et al. 2014, in the "inverted" form of every library.
    """
    keep = dropout_mask(x, x.shape, p, rng)
    return x * keep, (lambda g: g * keep,)


def dropout_mask(like, shape, p, rng):
    """0 with probability p, else 1 / (1 - p), in the precision of `like`; nobody may write to it."""
    p = float(p)  # a Python number keeps float32 what it is
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p = {p}, expected 0 <= p <= 1")
    if not hasattr(rng, "random"):
        raise TypeError(f"dropout: rng = {rng!r}, expected a numpy.random.Generator: np.random.default_rng(0)")
    xp, dtype = array_module(like), like.real.dtype
    keep = xp.asarray(rng.random(shape, dtype="float32") >= p).astype(dtype)
    keep *= 1 / (1 - p) if p < 1 else 0
    if xp is np:
        keep.flags.writeable = False  # kept as it is, where a mask that can be written to would be copied
    return keep
