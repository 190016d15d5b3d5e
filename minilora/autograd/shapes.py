"""Primitives that only move entries: into another shape or order, apart, together, or several times.

As in `ops.py`, g is the cotangent of the output. None of them computes anything, so the way back is to move g's entries
to where they came from, and to add up those that came from one place.
"""

import operator
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from .backend import array_module, by_value, wide
from .reductions import checked_axis
from .tensor import Tensor, register

__all__ = [
    "astype",
    "broadcast_to",
    "concatenate",
    "expand_dims",
    "flatten",
    "index",
    "repeat",
    "reshape",
    "squeeze",
    "stack",
    "swapaxes",
    "transpose",
]


@register
def reshape(x, shape):
    """The same entries in another shape."""
    old = x.shape
    return x.reshape(shape), (lambda g: g.reshape(old),)


@register
def astype(x, dtype):
    """The same numbers in another precision.   dx: the tape brings g back to x's"""
    if x.dtype.kind == "c" and dtype != x.dtype:
        raise TypeError(f"astype: {x.dtype} to {dtype}: an imaginary part would be lost or gained unsaid")
    return x.astype(dtype), (lambda g: g,)


@register
def flatten(x):
    """The same entries in one row."""
    old = x.shape
    return x.reshape(-1), (lambda g: g.reshape(old),)


@register
def squeeze(x, axis=None):
    """Without its axes of length 1, or without these of them."""
    old, axis = x.shape, checked_axis(x, axis)
    return x.squeeze(axis), (lambda g: g.reshape(old),)


@register
def expand_dims(x, axis):
    """With a new axis of length 1 at this place, or several."""
    old = x.shape
    return array_module(x).expand_dims(x, axis), (lambda g: g.reshape(old),)


@register
def broadcast_to(x, shape):
    """x read as an array of this shape, by NumPy's rules for axes of length 1.   dx: the tape adds the copies' g up"""
    return array_module(x).broadcast_to(x, shape), (lambda g: g,)


@register
def transpose(x, axes=None):
    """The axes in another order; without `axes`, reversed.   The cotangent goes back by the inverse permutation."""
    y = x.transpose(axes)
    axes = tuple(a % x.ndim for a in axes) if axes is not None else tuple(range(x.ndim))[::-1]
    inverse = tuple(sorted(range(x.ndim), key=axes.__getitem__))
    return y, (lambda g: g.transpose(inverse),)


@register
def swapaxes(x, axis1, axis2):
    """Two axes exchanged, which is its own inverse."""
    return x.swapaxes(axis1, axis2), (lambda g: g.swapaxes(axis1, axis2),)


@register
def index(x, key):
    """x[key], with NumPy's slices, integer arrays and boolean masks.   An entry picked twice gets two cotangents."""
    parts = key if isinstance(key, tuple) else (key,)
    key = tuple(part.data if isinstance(part, Tensor) else part for part in parts)
    xp, shape, dtype = array_module(x), x.shape, wide(x[:0] if x.ndim else x).dtype
    once = all(part is None or part is Ellipsis or isinstance(part, int | slice) for part in key)
    if not once:  # numbers of entries go where x is
        key = tuple(_picked(xp, part) for part in key)

    def vjp(g):
        dx = xp.zeros(shape, dtype=dtype)
        if once:  # slices pick no entry twice, and assignment is faster than addition
            dx[key] = g
        else:
            xp.add.at(dx, key, g)
        return dx

    return x[key], (vjp,)


def _picked(xp: Any, part: Any) -> Any:
    """An array or a list in a key by value, where x is; an empty list picks nothing, and is no list of floats."""
    if not (hasattr(part, "dtype") or isinstance(part, list)):
        return part
    part = xp.asarray(part)
    return by_value(part if part.size or part.dtype.kind != "f" else part.astype(int))


@register
def concatenate(*arrays, axis=0):
    """Join along an axis: concatenate([a, b], axis).   Each input receives its own part of the cotangent."""
    if not arrays:
        raise ValueError("concatenate: got no arrays")
    y = array_module(*arrays).concatenate(arrays, axis=axis)
    if axis is None:
        raise ValueError("concatenate: axis=None: flatten the arrays first")
    axis = axis % y.ndim
    stops = [0]
    for array in arrays:
        stops.append(stops[-1] + array.shape[axis])

    def part(start: int, stop: int) -> Callable:
        return lambda g: g[(slice(None),) * axis + (slice(start, stop),)]

    return y, tuple(part(start, stop) for start, stop in pairwise(stops))


@register
def stack(*arrays, axis=0):
    """Join along a new axis: stack([a, b], axis).   Each input receives its own slice of the cotangent."""
    if not arrays:
        raise ValueError("stack: got no arrays")
    y = array_module(*arrays).stack(arrays, axis=axis)
    before = (slice(None),) * (axis % y.ndim)
    return y, tuple((lambda g, i=i: g[(*before, i)]) for i in range(len(arrays)))


@register
def repeat(x, repeats, axis=None):
    """Each entry along an axis this many times, one number for all or one each; of the flattened x without an axis.

    repeat([1, 2], 2) is [1, 1, 2, 2].   An entry's cotangent is the sum of those of its copies.
    """
    xp, old = array_module(x), x.shape
    if axis is None or not old:
        x, axis = x.reshape(-1), 0
    axis = checked_axis(x, axis) % x.ndim
    repeats = repeats if hasattr(repeats, "__len__") else operator.index(repeats)
    flat, dtype = x.shape, wide(x[:0]).dtype
    source = xp.repeat(xp.arange(flat[axis]), _picked(xp, repeats))  # where each entry comes from
    copies = (*(slice(None),) * axis, source)

    def vjp(g):
        dx = xp.zeros(flat, dtype=dtype)
        xp.add.at(dx, copies, g)
        return dx.reshape(old)

    return x[copies], (vjp,)
