"""Independent parts of one primitive: computed one after the other, or on several cores by who has charge of them.

What the parts are is decided by sizes alone and what one computes by no other, so who computes it changes no bit.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np

from .backend import Array, array_module

__all__ = ["by_entry", "cut", "in_parts", "rows_cut", "shared_by", "stretches", "two_by_entry"]

Share = Callable[[Callable[..., Any], Sequence[tuple]], list]
_share: ContextVar[Share | None] = ContextVar("share", default=None)
_cut: ContextVar[bool] = ContextVar("cut", default=False)


def in_parts(function: Callable[..., Any], parts: Sequence[tuple]) -> list:
    """[function(*part) for part in parts], shared out where that was asked for."""
    share = _share.get()
    return [function(*part) for part in parts] if share is None else share(function, parts)


SHARE = 1 << 17  # entries of a part: fewer are not worth waking another core
MOST = 8  # parts of one thing


def stretches(n: int, parts: int) -> list[tuple[slice]]:
    """n rows in so many parts, or fewer, as equal as whole lots of 16 rows can be: BLAS takes so many at a time."""
    lots = -(-n // 16)
    parts = max(1, min(parts, MOST, lots))
    ends = [min(n, lots * i // parts * 16) for i in range(parts + 1)]
    return [(slice(*both),) for both in itertools.pairwise(ends)]


def by_entry(function: Callable[..., Array], *arrays: Array) -> Array:
    """function(*arrays), which works entry by entry on arrays of one shape: cores that are free share many entries."""
    count = arrays[0].size // SHARE
    if count < 2 or _share.get() is None or not all(type(a) is np.ndarray and a.flags.c_contiguous for a in arrays):
        return function(*arrays)
    flat, whole = [a.reshape(-1) for a in arrays], np.empty(arrays[0].size, np.result_type(*arrays))

    def part(start: int, stop: int) -> None:
        whole[start:stop] = function(*(a[start:stop] for a in flat))

    ends = [len(whole) * i // count for i in range(count + 1)]
    in_parts(part, list(itertools.pairwise(ends)))
    return whole.reshape(arrays[0].shape)


def two_by_entry(write: Callable[[Array, Array, Array], None], x: Array) -> tuple[Array, Array]:
    """What write(x, a, b) writes into a and b entry by entry: cores that are free share many entries."""
    xp, flat = array_module(x), x.reshape(-1)
    a, b = xp.empty_like(flat), xp.empty_like(flat)
    step = SHARE if xp is np else max(x.size, 1)  # a GPU takes all at once
    parts = [(slice(start, start + step),) for start in range(0, x.size, step)]
    in_parts(lambda part: write(flat[part], a[part], b[part]), parts)
    return a.reshape(x.shape), b.reshape(x.shape)


@contextlib.contextmanager
def shared_by(share: Share | None) -> Iterator[None]:
    """Let `share(function, parts)` compute what is in parts; None: one after the other."""
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)


def cut() -> bool:
    """Whether products and norms are cut into parts of their rows."""
    return _cut.get()


@contextlib.contextmanager
def rows_cut(cut: bool) -> Iterator[None]:
    """Let products and norms be cut, as those of a long text can be, whoever shares them: sums are then of parts."""
    token = _cut.set(cut)
    try:
        yield
    finally:
        _cut.reset(token)
