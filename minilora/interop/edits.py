"""What becomes of a checkpoint's tensor when an adapter is merged into it: a stretch of rows at a time.

A tensor T is W (d_out, d_in), or its transpose where the file holds W^T (GPT-2's Conv1D, a table of embeddings). Of a
stretch of rows i of T, in float64,

    LoRA    T_i + (s B A)_i      or, of the transpose, T_i + (A^T (s B)^T)_i
    DoRA    c (T + s B A)_i      with c = m / ||W + s B A||, a number for each of the d_out outputs

and the sum is rounded once, to the precision that is written. What arrives is (what is written - T), beside Delta W.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..nn.module import in_precision
from .pairs import Pair
from .tensor_files import Stored

STRETCH = 2**16  # numbers of a tensor that are held in float64 at a time
WHOLE = slice(None)


@dataclass
class Arrived:
    """Sums over a matrix: of Delta W, of what was added to the numbers in the file, and of what of it is missing."""

    asked: float = 0.0  # ||Delta W||_F^2
    added: float = 0.0  # ||what was written - what was read||_F^2
    missing: float = 0.0  # ||what was added - Delta W||_F^2
    changed: int = 0
    entries: int = 0

    def count(self, delta: np.ndarray, added: np.ndarray) -> None:
        """Another stretch."""
        self.asked += float(np.vdot(delta, delta))
        self.added += float(np.vdot(added, added))
        np.subtract(added, delta, out=delta)
        self.missing += float(np.vdot(delta, delta))
        self.changed += int(np.count_nonzero(added))
        self.entries += added.size


@dataclass(kw_only=True)
class Part:
    """Which part of a tensor: rows of W, and whether the tensor is W^T, whose columns they are then."""

    rows: slice = field(default_factory=lambda: WHOLE)
    turned: bool = False

    def region(self, height: int, start: int, stop: int) -> tuple[slice, slice, slice]:
        """Of rows start to stop of a tensor: which of them it is, which columns, and which of its own rows, or of its
        columns where the tensor is W^T.
        """
        if self.turned:
            return slice(0, stop - start), self.rows, slice(start, stop)
        first, last, _ = self.rows.indices(height)
        low, high = max(start, first), max(start, first, min(stop, last))
        return slice(low - start, high - start), WHOLE, slice(low - first, high - first)


@dataclass(kw_only=True)
class Update(Part):
    """An adapter's matrix in a tensor. B (d_out, r), s within, and A (r, d_in); lengths: DoRA's m (d_out,)."""

    pair: Pair
    B: np.ndarray
    A: np.ndarray
    lengths: np.ndarray | None = None
    arrived: Arrived = field(default_factory=Arrived)

    def plain(self, own: slice) -> np.ndarray:
        """s B A of a stretch, as the tensor lies."""
        return self.A[:, own].T @ self.B.T if self.turned else self.B[own] @ self.A

    def delta(self, old: np.ndarray, own: slice) -> np.ndarray:
        """Delta W of a stretch."""
        plain = self.plain(own)
        if self.lengths is None:
            return plain
        new = old + plain
        if self.turned:
            return self.lengths / self.columns * new - old
        return (self.lengths[own] / np.linalg.norm(new, axis=1))[:, None] * new - old

    def prepare(self, stored: Stored) -> None:
        """Where a row of W is a column of the tensor, DoRA asks for its length before the first stretch is written."""
        if self.lengths is not None and self.turned:
            squares = np.zeros(len(self.B))
            for start, stop, old in stretches_of(stored):
                squares += ((old[:, self.rows] + self.plain(slice(start, stop))) ** 2).sum(axis=0)
            self.columns = np.sqrt(squares)


@dataclass(kw_only=True)
class Replacement(Part):
    """What takes a tensor's place, or a part's: a head, or a bias, that was trained in full.

    add: the s of a bias that B has, which is added.
    """

    stored: Stored
    add: float | None = None

    def values(self) -> np.ndarray:
        """Its numbers as the tensor lies, in float64."""
        array = self.stored.read().astype(float)
        array = array.reshape(len(array), -1)
        return array.T if self.turned and self.stored.shape[1:] else array


def stretches_of(stored: Stored) -> Iterator[tuple[int, int, np.ndarray]]:
    """(start, stop, rows start to stop) of a tensor as a matrix, in float64, copied out of the file one by one."""
    height, width = stored.shape[0], math.prod(stored.shape[1:])
    step = max(1, STRETCH // max(1, width))
    for start in range(0, height, step):
        stop = min(start + step, height)
        yield start, stop, stored.read().reshape(height, width)[start:stop].astype(float)  # pages of this stretch alone


def edited(called: str, stored: Stored, dtype: np.dtype, edits: Sequence[Update | Replacement]) -> Stored:
    """A tensor with an adapter in it, to be written a stretch at a time. called: in what errors say."""
    updates = [edit for edit in edits if isinstance(edit, Update)]
    height = stored.shape[0]

    def stretches() -> Iterator[np.ndarray]:
        replacements = [(edit, edit.values()) for edit in edits if isinstance(edit, Replacement)]
        for update in updates:
            update.prepare(stored)
        for start, stop, old in stretches_of(stored):
            new, deltas = old.copy(), []
            for edit, values in replacements:
                rows, columns, own = edit.region(height, start, stop)
                new[rows, columns] = values[own] if edit.add is None else new[rows, columns] + edit.add * values[own]
            for update in updates:
                rows, columns, own = update.region(height, start, stop)
                deltas.append(update.delta(old[rows, columns], own))
                new[rows, columns] += deltas[-1]
            written = rounded(called, new, dtype)
            for update, delta in zip(updates, deltas, strict=True):
                rows, columns, _ = update.region(height, start, stop)
                update.arrived.count(delta, written[rows, columns].astype(float) - old[rows, columns])
            yield written

    return Stored(stored.shape, dtype, stored.read, stretches)


def copied(called: str, stored: Stored, dtype: np.dtype) -> Stored:
    """A tensor as it is, or in another precision, a stretch at a time."""
    if not stored.shape:
        return Stored(stored.shape, dtype, lambda: rounded(called, stored.read(), dtype))
    if dtype != stored.dtype:
        parts: Any = lambda: (rounded(called, rows, dtype) for _, _, rows in stretches_of(stored))
    else:
        step = max(1, 32 * STRETCH // max(1, math.prod(stored.shape[1:])))
        parts = lambda: (stored.read()[i : i + step] for i in range(0, stored.shape[0], step))
    return Stored(stored.shape, dtype, stored.read, parts)


def rounded(called: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Numbers in a precision. Raises ValueError for one that is not finite there."""
    try:
        return in_precision(array, dtype)
    except ValueError as error:
        raise ValueError(f"{called} would hold {str(error).partition(' is ')[2]}") from None
