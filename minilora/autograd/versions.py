"""Versions: has a value been written over since the forward pass that used it?

A vjp keeps arrays: b, for the derivative of a b with respect to a. An optimiser's step writes over b in place, and the
vjp would use what stands there now. `changed` notes when an array was written over; the walk of the tape asks `stale`,
for nodes older than the last such note, whether a vjp keeps that array. The forward pass notes nothing: a function's
closure says itself what it keeps, so only values that a derivative needs are asked for, and frozen ones as well.
"""

import dataclasses
import functools
import itertools
import math
import types
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from .backend import Array, is_array

clock = itertools.count(1)  # nodes and changes, in the order in which they came
REMEMBERED = 16  # changes of one array whose times are kept


class _Changes:
    """How often a stretch of memory was written over, and when it last was."""

    def __init__(self) -> None:
        self.version = 0
        self.times: deque[int] = deque(maxlen=REMEMBERED)


_latest = 0  # when the last change came
_changes: dict[int, dict[tuple, _Changes]] = {}  # id of the array that owns the memory -> {(from, to): changes}


def _root(array: Array) -> Array:
    """The array that owns the memory of this one."""
    while array.base is not None and is_array(array.base):
        array = array.base
    return array


def _span(array: Array, root: Array) -> tuple:
    """The first byte and the one past the last; of an array with all that its root has, and on a GPU, every byte."""
    whole = array is root or array.nbytes == root.nbytes or type(array) is not np.ndarray
    return (0, math.inf) if whole else np.lib.array_utils.byte_bounds(array)


def changed(array: Array) -> None:
    """Note that this array has been written over."""
    root = _root(array)
    entries = _changes.get(id(root))
    if entries is None:
        entries = _changes[id(root)] = {}
        weakref.finalize(root, _changes.pop, id(root), None).atexit = False
    span = _span(array, root)
    entry = entries.get(span)
    if entry is None:
        entry = entries[span] = _Changes()
    entry.version += 1
    entry.times.append(note_change())


def note_change() -> int:
    """The time of a change: now."""
    global _latest
    _latest = next(clock)
    return _latest


def latest() -> int:
    """When the last change came, on the nodes' clock."""
    return _latest


def version(array: Array) -> int:
    """How often an array has been written over."""
    root = _root(array)
    entry = _changes.get(id(root), {}).get(_span(array, root))
    return entry.version if entry else 0


def same_memory(a: Array, b: Array) -> bool:
    """Whether one array owns the memory of both."""
    return _root(a) is _root(b)


def stale(vjp: Any, since: int) -> tuple[str, Array, int, int] | None:
    """(variable, array, version now, version then) of the first array a vjp keeps that changed after `since`."""
    for name, array in kept_arrays(vjp):
        root = _root(array)
        low, high = _span(array, root)
        for (start, stop), entry in list(_changes.get(id(root), {}).items()):
            if entry.times[-1] > since and start < high and low < stop:
                later = sum(time > since for time in entry.times)
                return name, array, entry.version, entry.version - later
    return None


def kept_arrays(value: Any, name: str = "", seen: set | None = None) -> Iterator[tuple[str, Array]]:
    """(variable, array) for every array that a function's closure refers to, through functions and containers."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    inside: Any = ()
    if is_array(value):
        yield name, value
    elif isinstance(value, types.FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        inside = [(variable, cell.cell_contents) for variable, cell in cells]
        inside += [(name, default) for default in (value.__defaults__ or ())]
    elif isinstance(value, functools.partial):
        inside = [(name, part) for part in (value.func, *value.args, *value.keywords.values())]
    elif isinstance(value, types.MethodType | types.BuiltinMethodType):
        owner = value.__self__  # a quantised weight, whose method makes the float one
        inside = [(name, owner)]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inside = list(vars(value).items())
    elif isinstance(value, list | tuple):
        inside = [(name, part) for part in value]
    elif isinstance(value, dict):
        inside = list(value.items())
    elif hasattr(value, "requires_grad"):  # a Tensor that a user's vjp refers to
        inside = [(name, value.data)]
    for variable, part in inside:
        yield from kept_arrays(part, str(variable), seen)
