"""Rows of arrays: products, sums and largest entries; cores that are free share many rows of one thing."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from .backend import Array, array_module
from .parts import SHARE, cut, in_parts, stretches

__all__ = ["largest", "plus", "product", "row_by_row", "row_dot"]

LINES = 512  # rows of a part of a product, where there are more than two: its own copy of the other factor takes time
WORK = 1 << 24  # multiplications of a part of a product: fewer are not worth waking another core


def product(a: Array, b: Array, more: tuple[Array, Array] | None = None, bias: Array | None = None) -> Array:
    """a b + c d + bias, where more = (c, d): cores that are free share many rows.   (n, m), (m, k) -> (n, k)

    A thin product and a bias are added to a part while a core's cache holds it.
    """
    if not cut():
        return _product(a, b, more, bias)
    n, count = len(a), min(max(2, len(a) // LINES), len(a) * b.size // WORK)
    arrays = (a, b, *(more or ()), *(() if bias is None else (bias,))) if count > 1 else ()
    if len({(type(x), x.dtype) for x in arrays}) != 1 or type(a) is not np.ndarray:
        return _product(a, b, more, bias)
    whole = np.empty((n, b.shape[1]), a.dtype)
    part = lambda at: _product(a[at], b, more and (more[0][at], more[1]), bias, whole[at])
    in_parts(part, stretches(n, count))
    return whole


def _product(a: Array, b: Array, more: tuple | None, bias: Array | None, out: Array | None = None) -> Array:
    y = a @ b if out is None else np.matmul(a, b, out=out)
    if more is not None:
        y = plus(y, more[0] @ more[1])
    return y if bias is None else plus(y, bias)


def plus(fresh: Array, other: Array) -> Array:
    """fresh + other, written over `fresh`, which nobody else holds; a new array only where the precisions differ."""
    if fresh.dtype != other.dtype:
        return fresh + other
    fresh += other
    return fresh


def row_by_row(function: Callable[..., tuple]) -> Callable[..., tuple]:
    """A primitive that takes each row of x by itself, (..., C) -> (..., C): cores that are free share many rows.

    All its other arrays are (C,), or it is left as it is, and each of its vjps gives (..., C).
    """

    @functools.wraps(function)
    def call(x: Array, *rest: Any, **options: Any) -> tuple:
        if not cut():
            return function(x, *rest, **options)
        count = x.size // SHARE
        if count < 2 or type(x) is not np.ndarray or any(getattr(w, "ndim", 1) != 1 for w in rest):
            return function(x, *rest, **options)
        shape, rows = x.shape, x.reshape(-1, x.shape[-1])
        y = np.empty(rows.shape, np.result_type(x, *(w for w in rest if isinstance(w, np.ndarray))))
        places = stretches(len(rows), count)

        def part(at: slice) -> tuple:
            y[at], vjps = function(rows[at], *rest, **options)
            return vjps

        pulls = in_parts(part, places)

        def vjp_of(i: int, g: Array) -> Array:
            g = g.reshape(-1, shape[-1])
            d = np.empty_like(g)

            def part(at: slice, vjps: tuple) -> None:
                d[at] = vjps[i](g[at])

            in_parts(part, [(*at, vjps) for at, vjps in zip(places, pulls, strict=True)])
            return d.reshape(shape)

        return y.reshape(shape), tuple(functools.partial(vjp_of, i) for i in range(len(pulls[0])))

    return call


def row_dot(a, b):
    """The sum of a b over the last axis, kept: (..., C), (..., C) -> (..., 1), without writing a b down"""
    return array_module(a).einsum("...c,...c->...", a, b)[..., None]


def largest(x, axis):
    """The largest real part along an axis, kept, to be subtracted before exponentials are taken."""
    return x.real.max(axis=axis, keepdims=True) if x.size else 0  # no entries have no maximum, and need none
