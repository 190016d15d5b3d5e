"""Primitives that make few numbers of many, along one axis, several, or all.

As in `ops.py`, g is the cotangent of the output. What is added up is added in float32 at least, and the result has the
input's precision again. `kept` is the result's shape with the reduced axes at length 1, which broadcasts against x.
"""

import builtins
import math
import operator
from typing import Any

from .backend import array_module, floating, narrow, wide
from .tensor import register

__all__ = ["cumsum", "logsumexp", "max", "mean", "min", "norm", "prod", "std", "sum", "var"]


@register
def sum(x, axis=None, keepdims=False):
    """The sum over one axis, several, or all.   Every entry has derivative 1: g is copied back over the axes."""
    axis = checked_axis(x, axis)
    shape, kept = x.shape, _kept(x, axis)
    spread = array_module(x).broadcast_to
    return narrow(wide(x).sum(axis=axis, keepdims=keepdims), x), (lambda g: spread(g.reshape(kept), shape),)


@register
def mean(x, axis=None, keepdims=False):
    """The mean over one axis, several, or all: the sum over their n entries, divided by n.   dy = (1/n) sum dx"""
    axis = checked_axis(x, axis)
    shape, kept = x.shape, _kept(x, axis)
    n = _several("mean", shape, kept)
    spread = array_module(x).broadcast_to
    y = narrow(wide(x).sum(axis=axis, keepdims=keepdims) / n, x)
    return y, (lambda g: spread(g.reshape(kept) / n, shape),)


@register
def var(x, axis=None, keepdims=False, ddof=0):
    """The variance, sum d^2 / (n - ddof), d = x - mean x.   dx = 2 g d / (n - ddof), since sum d = 0"""
    axis = checked_axis(x, axis)
    kept = _kept(x, axis)
    d, n = _centred("var", x, axis, kept, ddof)
    y = (d * (d / n)).sum(axis=axis, keepdims=keepdims)  # the sum of squares might be infinite
    return narrow(y, x), (lambda g: g.reshape(kept) * (d * (2 / n)),)


@register
def std(x, axis=None, keepdims=False, ddof=0):
    """The standard deviation, |d| / sqrt(n - ddof), d = x - mean x.   dx = g d / (|d| sqrt(n - ddof)), 0 where d = 0"""
    axis = checked_axis(x, axis)
    kept = _kept(x, axis)
    d, n = _centred("std", x, axis, kept, ddof)
    root, length = math.sqrt(n), _length(d, axis)
    y = (length / root).reshape(kept if keepdims else _left(x, axis))
    return narrow(y, x), (lambda g: g.reshape(kept) / root * _over(d, length),)


@register
def norm(x, ord=None, axis=None, keepdims=False):
    """|x| = sqrt(sum x^2) over one axis, several, or all.   dx = g x / |x|, and 0 where |x| = 0

    NumPy's np.linalg.norm, of its orders the usual one: None, 2 for vectors, "fro" for matrices.
    """
    axis = checked_axis(x, axis)
    kept = _kept(x, axis)
    axes = x.ndim if axis is None else 1 if isinstance(axis, int) else len(axis)
    if ord is not None and ord != {1: 2, 2: "fro"}.get(axes):
        raise ValueError(
            f"norm: ord={ord!r} over {axes} axes of shape {x.shape}: expected None, the root of the sum of squares; "
            "other norms are compositions, such as ops.sum(ops.abs(x))"
        )
    refuse_complex("norm", x)
    long = floating(x)
    length = _length(long, axis)
    y = length.reshape(kept if keepdims else _left(x, axis))
    return narrow(y, x), (lambda g: g.reshape(kept) * _over(long, length),)


@register
def logsumexp(x, axis=None, keepdims=False):
    """y = log sum_j e^(x_j).   dy/dx_j = e^(x_j - y), the softmax;   0 where every x_j is -inf, and with it y"""
    axis = checked_axis(x, axis)
    kept = _kept(x, axis)
    _several("logsumexp", x.shape, kept)
    xp, long = array_module(x), floating(x)
    top = long.real.max(axis=axis, keepdims=True)
    top = xp.where(xp.isinf(top), 0, top)
    e = xp.exp(long - top)  # the largest exponent is 0: no overflow
    total = e.sum(axis=axis, keepdims=True)
    nothing = total == 0
    total += nothing
    y = xp.where(nothing, -xp.inf, top + xp.log(total))
    return narrow(y.reshape(kept if keepdims else _left(x, axis)), x), (lambda g: g.reshape(kept) * (e / total),)


@register
def max(x, axis=None, keepdims=False):
    """The maximum over one axis, several, or all.   g goes to where the maximum is; equal maxima share it evenly."""
    return _extreme("max", x, axis, keepdims)


@register
def min(x, axis=None, keepdims=False):
    """The minimum over one axis, several, or all.   g goes to where the minimum is; equal minima share it evenly."""
    return _extreme("min", x, axis, keepdims)


def _extreme(name: str, x: Any, axis: Any, keepdims: bool) -> tuple:
    """The value and the vjp of max and min, which are told apart by their names alone."""
    axis = checked_axis(x, axis)
    kept = _kept(x, axis)
    _several(name + "imum", x.shape, kept, name)
    y = getattr(x.real, name)(axis=axis, keepdims=True)
    there = x.real == y
    count = there.sum(axis=axis, keepdims=True)
    if x.dtype.kind == "c":
        y = (x * there).sum(axis=axis, keepdims=True) / count
    y = y.reshape(kept if keepdims else _left(x, axis))

    def vjp(g):  # not a number where the maximum is none: no entry is where it is
        return array_module(g).where(count == 0, math.nan, g.reshape(kept) / (count + (count == 0)) * there)

    return y, (vjp,)


@register
def prod(x, axis=None, keepdims=False):
    """The product over one axis, several, or all.   dx_j = g times the product of the others, be they zero or not"""
    axis = checked_axis(x, axis)
    xp, shape, kept = array_module(x), x.shape, _kept(x, axis)
    axes = tuple(range(x.ndim)) if axis is None or x.ndim == 0 else axis if isinstance(axis, tuple) else (axis,)
    last = tuple(range(-len(axes), 0))
    moved = xp.moveaxis(wide(x), axes, last)
    rows = moved.reshape(*_left(x, axis), math.prod(shape[a] for a in axes))  # (..., n)

    def vjp(g):
        one = xp.ones((*rows.shape[:-1], 1), dtype=rows.dtype)
        before = xp.concatenate([one, rows[..., :-1]], axis=-1).cumprod(axis=-1)  # x_0 ... x_(j-1)
        after = xp.concatenate([one, rows[..., :0:-1]], axis=-1).cumprod(axis=-1)[..., ::-1]  # x_(j+1) ... x_(n-1)
        others = (before * after)[..., : rows.shape[-1]]
        return g.reshape(kept) * xp.moveaxis(others.reshape(moved.shape), last, axes)

    return narrow(rows.prod(axis=-1), x).reshape(kept if keepdims else _left(x, axis)), (vjp,)


@register
def cumsum(x, axis=None):
    """y_i = x_0 + ... + x_i along an axis, or of the flattened x.   dx_j = g_j + ... + g_n: added up from the end"""
    shape, axis = x.shape, checked_axis(x, axis)
    if axis is None or not shape:
        x, axis = x.reshape(-1), 0
    if not isinstance(axis, int):
        raise ValueError(f"cumsum: axis {axis}: expected one axis, or None")
    back = (slice(None),) * (axis % x.ndim) + (slice(None, None, -1),)
    return narrow(wide(x).cumsum(axis=axis), x), (lambda g: wide(g)[back].cumsum(axis=axis)[back].reshape(shape),)


def checked_axis(x: Any, axis: Any) -> Any:
    """None, an axis or a tuple of axes, as NumPy takes them; a list is a tuple; a number has one axis of length 1."""
    if axis is None or (type(axis) is int and -x.ndim <= axis < x.ndim):
        return axis
    try:
        one = not hasattr(axis, "__len__")
        axes = tuple(operator.index(a) for a in ((axis,) if one else axis))
    except TypeError:
        raise TypeError(f"axis {axis!r}: expected a whole number, several of them, or None") from None
    ndim = builtins.max(x.ndim, 1)
    if any(not -ndim <= a < ndim for a in axes):
        raise ValueError(f"axis {axis} is out of range for shape {x.shape}")
    return () if x.ndim == 0 else axes[0] if one else axes


def _reduced(x: Any, axis: Any) -> set:
    """The axes that are reduced, counted from 0."""
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    return {a % x.ndim for a in axes}


def _kept(x: Any, axis: Any) -> tuple:
    """The shape of a reduction's result with the reduced axes kept at length 1."""
    if axis is None:
        return (1,) * x.ndim
    reduced = _reduced(x, axis)
    return tuple([1 if i in reduced else n for i, n in enumerate(x.shape)])


def _left(x: Any, axis: Any) -> tuple:
    """The shape of a reduction's result without the reduced axes."""
    reduced = _reduced(x, axis)
    return tuple(n for i, n in enumerate(x.shape) if i not in reduced)


def _several(what: str, shape: tuple, kept: tuple, name: str = "") -> int:
    """How many entries meet in each entry of a reduction's result; an error where there are none."""
    n = math.prod(n for n, left in zip(shape, kept, strict=True) if left == 1)
    if n == 0:
        raise ValueError(f"{name or what}: got shape {shape}: no entries have no {what}")
    return n


def _centred(name: str, x: Any, axis: Any, kept: tuple, ddof: float) -> tuple:
    """x - mean x, and what the sum of its squares is divided by."""
    refuse_complex(name, x)
    n, ddof = _several(name, x.shape, kept), float(ddof)  # a Python number keeps float32 what it is
    if n <= ddof:
        raise ValueError(f"{name}: ddof={ddof:g} with {n} entries: n - ddof must be positive")
    x = floating(x)
    return x - x.sum(axis=axis, keepdims=True) / n, n - ddof


def _length(x: Any, axis: Any) -> Any:
    """sqrt(sum x^2), axes kept. Scaled by a power of 2, which is exact, so that squares neither overflow nor vanish."""
    xp = array_module(x)
    if x.size == 0:
        return xp.zeros(_kept(x, axis), dtype=x.dtype)
    largest = abs(x.real).max(axis=axis, keepdims=True)
    size = xp.where(xp.isfinite(largest), xp.ldexp(xp.ones_like(largest), xp.frexp(largest)[1] - 1), 1)
    scaled = x / size
    return size * xp.sqrt((scaled * scaled).sum(axis=axis, keepdims=True))


def _over(x: Any, length: Any) -> Any:
    return x / (length + (length == 0))


def refuse_complex(name: str, x: Any) -> None:
    """An error where x is truly complex: |x| is not analytic. The complex step of a check is no more than a step."""
    if x.dtype.kind == "c" and x.size and abs(x.imag).max() > 1e-8:
        raise TypeError(f"{name}: got complex numbers, expected real ones: |x| has no complex derivative")
