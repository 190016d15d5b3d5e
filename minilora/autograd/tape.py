"""The tape: its nodes, and how they are walked backwards to differentiate what they record.

    a tensor holds data and points to its node
    a node holds vjps and points to its inputs' nodes, and never holds data, but for nine numbers or fewer, so that
    `ml.draw` can write them on it

`pull_back` walks the nodes from an output back to the inputs (reverse-mode differentiation: Baydin et al. 2018,
"Automatic Differentiation in Machine Learning: a Survey", section 3.2). A vjp is kept only if its input needs a
gradient. The vjp of a frozen weight W is dropped on the spot, and with it the only reference to the layer's input: a
frozen layer stores no activation. That is LoRA's memory story.
"""

import inspect
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .backend import Array, array_module, is_array, sum_of_rows, wide
from .versions import clock, latest, note_change, same_memory, stale

PRIMITIVES: dict[str, Callable[..., Any]] = {}  # name -> primitive: the complete list

FEW = 9  # numbers that a node keeps of its output: a 3 x 3 matrix

ERRORS = (ValueError, TypeError, IndexError, AttributeError, OverflowError)  # that a vjp raises where it is wrong

_order = operator.attrgetter("order")


class Taped:
    """What has a node on the tape, or could have one: `Tensor`, as the rooms' files know it that it imports."""

    __slots__ = ("_array", "grad", "node", "_leaf", "_replaced", "__weakref__")

    _array: Array
    grad: Array | None  # what `backward` has added up
    node: "Node | None"  # None where no gradient arrives
    _leaf: "Node"  # of a tensor that is, or was, a leaf: one for its life, so that freezing it loses no gradient
    _replaced: Any  # a weak reference to the array that `data` was before


class Node:
    """One step of the tape: the vjps that survive, and the nodes of the inputs they send cotangents to."""

    __slots__ = ("name", "inputs", "vjps", "shape", "dtype", "order", "leaf", "value", "assigned", "__weakref__")

    value: Array | None  # the output where it is small, for `ml.draw`
    assigned: int  # when a leaf's data was last replaced by another array, if it ever was
    vjps: Any  # a tuple of functions, one function that returns all cotangents, or None once freed
    inputs: tuple["Node | None", ...]

    def __init__(self, name: str, inputs: tuple, vjps: Any, data: Array, leaf: Any = None):
        self.name, self.inputs, self.vjps, self.leaf = name, inputs, vjps, leaf
        self.shape, self.dtype = data.shape, data.dtype
        if data.size > FEW:
            self.value = None
        else:  # a copy of a view holds nothing larger
            self.value = data if leaf is None and data.base is None else data.copy()
        self.order = next(clock)  # an input's node is always older than its output's

    def __repr__(self) -> str:
        return f"Node({self.name}, {self.shape}, {self.dtype})"

    @property
    def freed(self) -> bool:
        """Whether a backward pass has used it up."""
        return self.vjps is None

    def fits(self, data: Array) -> None:
        """A leaf's data has been replaced: cotangents arrive in its precision, and only in its shape."""
        if data.shape != self.shape:
            self.order = note_change()  # what was recorded with the old shape finds a leaf younger than itself
        self.shape, self.dtype, self.assigned = data.shape, data.dtype, next(clock)


def nodes_behind(output: Node) -> list[Node]:
    """Every node that the output was computed from, the newest first; no recursion, so depth is no limit."""
    seen, stack = {output}, [output]
    while stack:
        node = stack.pop()
        if node.freed:
            raise ValueError(
                f"backward: the tape was already freed at {node.name!r} by an earlier backward pass; "
                "run the forward pass again, or pass retain_graph=True to the first one"
            )
        for source in node.inputs:
            if source is not None and source not in seen:
                seen.add(source)
                stack.append(source)
    return sorted(seen, key=_order, reverse=True)


def pull_back(tape: list[Node], targets: set, cotangents: dict, retain_graph: bool) -> dict:
    """Send cotangents from the newest node to the oldest, through the nodes that lead to a target."""
    leads_to_target, last_change = set(targets), latest()
    for node in reversed(tape):
        if not leads_to_target.isdisjoint(node.inputs):
            leads_to_target.add(node)
            if node.order < last_change:
                _refuse_stale(node, leads_to_target)
    tape.reverse()
    ours: set[Node] = set()  # leaves whose cotangent is an array that nobody else holds
    while tape:
        node = tape.pop()  # popped, so that nothing but `cotangents` keeps what was used
        if node not in leads_to_target or node not in cotangents:
            continue
        g = cotangents[node] if node in targets else cotangents.pop(node)
        joint = None if type(node.vjps) is tuple else _all_at_once(node, g)
        rules = node.vjps if joint is None else joint
        for i, source in enumerate(node.inputs):
            if source is None or source not in leads_to_target:
                continue
            if i >= len(rules):
                raise TypeError(f"backward: {node.name} has no derivative in its argument {i}; detach it: x.detach()")
            cotangent = rules[i]
            if joint is None:
                if cotangent is None:
                    continue  # nothing to differentiate with respect to: a condition, token numbers
                try:
                    if source in ours and g.dtype == source.dtype and hasattr(cotangent, "add_to"):
                        cotangent.add_to(g, cotangents[source])  # a few rows of a large table
                        continue
                    cotangent = cotangent(g)
                except ERRORS as error:
                    raise _named(error, node, i) from error
            if type(cotangent) is not type(g) or cotangent.shape != source.shape or cotangent.dtype != source.dtype:
                cotangent = _received(cotangent, g, node, i, source)
            if source in cotangents:
                cotangent = _added(cotangent, cotangents[source], g)
            if source.leaf is not None and cotangent is not g and cotangent.base is None:
                ours.add(source)
            cotangents[source] = cotangent
        if not retain_graph and node.leaf is None:
            node.vjps, node.inputs = None, ()
    return cotangents


def _added(fresh: Array, earlier: Array, g: Array) -> Array:
    """Their sum, written over the cotangent just made, unless it is g itself, which others hold, or a view of it."""
    if fresh is g or fresh.base is not None:
        return fresh + earlier
    fresh += earlier
    return fresh


def _all_at_once(node: Node, g: Array) -> Sequence:
    """The cotangents of all inputs, from the one function that returns them."""
    try:
        joint = node.vjps(g)
    except ERRORS as error:
        raise _named(error, node) from error
    if not isinstance(joint, tuple | list):
        raise TypeError(f"backward: {node.name}'s vjp returned {type(joint).__name__}, expected a tuple, one per input")
    return joint


def _received(cotangent: Any, g: Array, node: Node, place: int, source: Node) -> Array:
    """An input's cotangent in the input's shape and precision: the one place where broadcasting is undone."""
    cotangent = cotangent._array if isinstance(cotangent, Taped) else cotangent
    if isinstance(cotangent, int | float | complex | np.generic) and not hasattr(cotangent, "ndim"):
        cotangent = array_module(g).asarray(cotangent)
    if not (is_array(cotangent) or isinstance(cotangent, np.generic)):
        came = type(cotangent).__name__
        raise TypeError(f"backward: {node.name}'s vjp of {_argument(node, place)} returned {came}, expected an array")
    if cotangent.dtype.kind == "c" and source.dtype.kind != "c":
        raise TypeError(
            f"backward: {node.name} makes complex numbers of its real {_argument(node, place)}, whose derivative would "
            "be complex; give it as complex numbers, or take real parts apart"
        )
    if cotangent.shape != source.shape:
        if not _was_broadcast(cotangent.shape, source.shape, g.shape):
            raise ValueError(
                f"backward: {node.name}'s vjp of {_argument(node, place)} returned shape {cotangent.shape}, expected "
                f"{source.shape}, or the output's {g.shape} where that was broadcast"
            )
        cotangent = sum_to_shape(cotangent, source.shape)
    return cotangent if cotangent.dtype == source.dtype else cotangent.astype(source.dtype)


def _was_broadcast(came: tuple, expected: tuple, output: tuple) -> bool:
    """Whether summing `came` to `expected` undoes broadcasting, over axes that the output has and the input has not."""
    extra = len(came) - len(expected)
    new = [i for i in range(len(came)) if came[i] != 1 and (i < extra or expected[i - extra] == 1)]
    kept = all(n in (m, 1) or m == n for m, n in zip(came[max(extra, 0) :], expected, strict=False))
    in_output = all(i < len(output) and output[i] == came[i] for i in new)
    in_front = sum(i < extra for i in new) <= max(len(output) - len(expected), 0)
    return extra >= 0 and kept and in_output and in_front


def _argument(node: Node, place: int) -> str:
    """What the input at this place is called."""
    names = inspect.unwrap(PRIMITIVES.get(node.name, _argument)).__code__.co_varnames
    known = node.name in PRIMITIVES and place < len(names)
    return f"argument {names[place]!r}" if known else f"argument {place}"


def _named(error: Exception, node: Node, place: int | None = None) -> Exception:
    """An error out of a vjp, with the primitive's name."""
    of = "" if place is None else f" of {_argument(node, place)}"
    said = " ".join(str(error).split())
    kind = TypeError if isinstance(error, AttributeError | TypeError) else ValueError
    return kind(f"backward: {node.name}'s vjp{of}: {said}")


def _refuse_stale(node: Node, wanted: set) -> None:
    """Raise where a vjp about to be applied keeps an array that was written over after it was recorded."""
    for i, source in enumerate(node.inputs):
        if source is None or source not in wanted:
            continue
        if source.order > node.order:
            raise ValueError(
                f"backward: the data of {node.name}'s {_argument(node, i)} has changed shape, {source.shape} now, "
                "since the forward pass; run the forward pass again"
            )
        rule = node.vjps if callable(node.vjps) else node.vjps[i] if i < len(node.vjps) else None
        if found := stale(rule, node.order):
            name, array, now, then = found
            of = [j for j, leaf in enumerate(_leaves(node)) if leaf is not None and same_memory(leaf._array, array)]
            what = _argument(node, of[0]) if of else repr(name)
            raise ValueError(
                f"backward: {node.name} needs its {what} {array.shape} as it was in the forward pass, at version "
                f"{then}, and it is at version {now}: an optimiser's step, say, has written over it since; run the "
                "forward pass again"
            )


def _leaves(node: Node) -> list:
    """The leaf at each input, where there is one."""
    return [source and source.leaf and source.leaf() for source in node.inputs]


def sum_to_shape(g: Array, shape: tuple) -> Array:
    """Undo broadcasting: an entry that was used many times receives the sum of its copies' cotangents."""
    g, front = wide(g), g.ndim - len(shape)
    if front:  # axes that broadcasting put there
        kept = g.shape[front:]
        g = sum_of_rows(g.reshape(math.prod(g.shape[:front]), math.prod(kept))).reshape(kept)
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1)
    if stretched == (g.ndim - 2,):
        return sum_of_rows(g).reshape(shape)
    return g.sum(axis=stretched, keepdims=True).reshape(shape) if stretched else g
