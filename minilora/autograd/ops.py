"""The elementary primitives: each one a line of calculus beside the line that computes it.

Every function here takes tensors, arrays or numbers and returns a Tensor. Its body returns the output and, for each
input, the vjp: g is the cotangent of the output (the gradient of the loss with respect to it). Where an input was
broadcast, the tape sums its cotangent back to the input's shape. The primitives that fuse several of these live in
`fused.py`. Shapes are NumPy's. Every line also holds for complex numbers where the mathematics is analytic: no
conjugate is used, and comparisons look at real parts, so that the complex-step check works.
"""

from collections.abc import Callable
from itertools import pairwise
from math import prod
from typing import Any

from .backend import array_module
from .tensor import PRIMITIVES, Tensor, primitive, register

__all__ = ["PRIMITIVES", "Tensor", "primitive", "register"]  # the primitives themselves are added at the end


@register
def add(a, b):
    """a + b"""
    return a + b, (lambda g: g, lambda g: g)


@register
def subtract(a, b):
    """a - b"""
    return a - b, (lambda g: g, lambda g: -g)


@register
def multiply(a, b):
    """a b, entry by entry.   d(ab) = b da + a db"""
    return a * b, (lambda g: g * b, lambda g: g * a)


@register
def divide(a, b):
    """a / b.   d(a/b) = da / b - (a / b^2) db"""
    return a / b, (lambda g: g / b, lambda g: -g * a / (b * b))


@register
def negate(x):
    """-x"""
    return -x, (lambda g: -g,)


@register
def power(a, b):
    """a^b.   d(a^b) = b a^(b-1) da + a^b log(a) db;   a^0 and 0^b are constants, and their derivatives 0"""
    xp = array_module(a, b)
    y = a**b
    return y, (lambda g: g * b * a ** (b - 1 + (b == 0)), lambda g: g * y * xp.log(a + (a == 0)))


@register
def exp(x):
    """e^x.   dy = y dx"""
    y = array_module(x).exp(x)
    return y, (lambda g: g * y,)


@register
def log(x):
    """ln x.   dy = dx / x"""
    return array_module(x).log(x), (lambda g: g / x,)


@register
def sqrt(x):
    """sqrt(x).   dy = dx / (2 y)"""
    y = array_module(x).sqrt(x)
    return y, (lambda g: g / (2 * y),)


@register
def tanh(x):
    """tanh(x).   dy = (1 - y^2) dx"""
    y = array_module(x).tanh(x)
    return y, (lambda g: g * (1 - y * y),)


@register
def relu(x):
    """max(x, 0).   dy = dx where x > 0, else 0"""
    positive = x.real > 0
    return x * positive, (lambda g: g * positive,)


@register
def where(condition, a, b):
    """a where the condition holds, b elsewhere."""
    xp = array_module(a, b, condition)
    condition = xp.asarray(condition)
    return xp.where(condition, a, b), (None, lambda g: xp.where(condition, g, 0), lambda g: xp.where(condition, 0, g))


@register
def matmul(a, b):
    """a @ b.   a: (..., n, k), b: (..., k, m) -> (..., n, m); a vector on either side is NumPy's row or column.

    y_ij = sum_k a_ik b_kj, so da = g b^T and db = a^T g.
    """
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError(f"matmul: {a.shape} @ {b.shape}: a number is no matrix; multiply with *")
    row = a if a.ndim > 1 else a[None, :]  # (..., n, k)
    column = b if b.ndim > 1 else b[:, None]  # (..., k, m)
    n, k = row.shape[-2:]
    if k != column.shape[-2]:
        raise ValueError(f"matmul: {a.shape} @ {b.shape}: inner dimensions {k} and {column.shape[-2]} differ")
    y = a @ b
    batch = y.shape[: y.ndim - (a.ndim > 1) - (b.ndim > 1)]
    matrix = (*batch, n, column.shape[-1])  # the shape of g before NumPy drops a vector's axis
    from_column = (lambda x: x) if b.ndim > 1 else (lambda x: x[..., 0])
    return y, (
        lambda g: g.reshape(matrix) @ column.swapaxes(-1, -2),  # (..., n, k)
        lambda g: from_column(row.swapaxes(-1, -2) @ g.reshape(matrix)),  # (..., k, m)
    )


@register
def sum(x, axis=None, keepdims=False):
    """The sum over one axis, several, or all.   Every entry has derivative 1: g is copied back over the axes."""
    shape, kept = x.shape, _kept(x, axis)
    spread = array_module(x).broadcast_to
    return x.sum(axis=axis, keepdims=keepdims), (lambda g: spread(g.reshape(kept), shape),)


@register
def mean(x, axis=None, keepdims=False):
    """The mean over one axis, several, or all: the sum over their n entries, divided by n.   dy = (1/n) sum dx"""
    shape, kept = x.shape, _kept(x, axis)
    n = _reduced(shape, kept)
    if n == 0:
        raise ValueError(f"mean: got shape {shape}: no entries have no mean")
    spread = array_module(x).broadcast_to
    return x.sum(axis=axis, keepdims=keepdims) / n, (lambda g: spread(g.reshape(kept) / n, shape),)


@register
def max(x, axis=None, keepdims=False):
    """The maximum over one axis, several, or all.   g goes to where the maximum is; equal maxima share it evenly."""
    kept = _kept(x, axis)
    if _reduced(x.shape, kept) == 0:
        raise ValueError(f"max: got shape {x.shape}: no entries have no maximum")
    at_maximum = x.real == x.real.max(axis=axis, keepdims=True)
    share = at_maximum / at_maximum.sum(axis=axis, keepdims=True, dtype=x.real.dtype)
    share = share.astype(x.real.dtype)
    y = x.max(axis=axis, keepdims=keepdims) if x.dtype.kind != "c" else (x * share).sum(axis=axis, keepdims=keepdims)
    return y, (lambda g: g.reshape(kept) * share,)


def _kept(x: Any, axis: Any) -> tuple:
    """The shape of a reduction's result with the reduced axes kept at length 1."""
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    if any(not -x.ndim <= a < x.ndim for a in axes):
        raise ValueError(f"axis {axis} is out of range for shape {x.shape}")
    reduced = {a % x.ndim for a in axes}
    return tuple(1 if i in reduced else n for i, n in enumerate(x.shape))


def _reduced(shape: tuple, kept: tuple) -> int:
    """How many entries meet in each entry of a reduction's result."""
    return prod(n for n, left in zip(shape, kept, strict=True) if left == 1)


@register
def reshape(x, shape):
    """The same entries in another shape."""
    old = x.shape
    return x.reshape(shape), (lambda g: g.reshape(old),)


@register
def transpose(x, axes=None):
    """The axes in another order; without `axes`, reversed.   The cotangent goes back by the inverse permutation."""
    y = x.transpose(axes)
    axes = tuple(a % x.ndim for a in axes) if axes is not None else tuple(range(x.ndim))[::-1]
    inverse = tuple(sorted(range(x.ndim), key=axes.__getitem__))
    return y, (lambda g: g.transpose(inverse),)


@register
def index(x, key):
    """x[key], with NumPy's slices, integer arrays and boolean masks.   An entry picked twice gets two cotangents."""
    parts = key if isinstance(key, tuple) else (key,)
    key = tuple(part.data if isinstance(part, Tensor) else part for part in parts)
    xp, shape, dtype = array_module(x), x.shape, x.dtype
    once = all(part is None or part is Ellipsis or isinstance(part, int | slice) for part in key)
    if not once:  # numbers of entries go where x is
        key = tuple(xp.asarray(part) if hasattr(part, "dtype") else part for part in key)

    def vjp(g):
        dx = xp.zeros(shape, dtype=dtype)
        if once:  # slices pick no entry twice, and assignment is faster than addition
            dx[key] = g
        else:
            xp.add.at(dx, key, g)
        return dx

    return x[key], (vjp,)


@register
def concatenate(*arrays, axis=0):
    """Join along an axis: concatenate([a, b], axis).   Each input receives its own part of the cotangent."""
    if not arrays:
        raise ValueError("concatenate: got no arrays")
    y = array_module(*arrays).concatenate(arrays, axis=axis)
    axis = axis % y.ndim
    stops = [0]
    for array in arrays:
        stops.append(stops[-1] + array.shape[axis])

    def part(start: int, stop: int) -> Callable:
        return lambda g: g[(slice(None),) * axis + (slice(start, stop),)]

    return y, tuple(part(start, stop) for start, stop in pairwise(stops))


from .fused import *  # noqa: E402, F403  (at the end: the fused primitives are checked against these)

__all__ += sorted(PRIMITIVES)
