"""The tape: its nodes, and how they are walked backwards to differentiate what they record.

    a tensor holds data and points to its node
    a node holds vjps and points to its inputs' nodes, and never holds data

`pull_back` walks the nodes from an output back to the inputs (reverse-mode differentiation: Baydin et al. 2018,
"Automatic Differentiation in Machine Learning: a Survey", section 3.2). A vjp is kept only if its input needs a
gradient. The vjp of a frozen weight W is dropped on the spot, and with it the only reference to the layer's input: a
frozen layer stores no activation. That is LoRA's memory story.
"""

import operator
from collections.abc import Iterator
from typing import Any

from .backend import Array
from .versions import clock, latest, note_change, stale

_order = operator.attrgetter("order")


class Node:
    """One step of the tape: the vjps that survive, and the nodes of the inputs they send cotangents to."""

    __slots__ = ("name", "inputs", "vjps", "shape", "dtype", "order", "leaf", "__weakref__")

    vjps: Any  # a tuple of functions, one function that returns all cotangents, or None once freed
    inputs: tuple["Node | None", ...]

    def __init__(self, name: str, inputs: tuple, vjps: Any, data: Array, leaf: Any = None):
        self.name, self.inputs, self.vjps, self.leaf = name, inputs, vjps, leaf
        self.shape, self.dtype = data.shape, data.dtype
        self.order = next(clock)  # an input's node is always older than its output's

    @property
    def freed(self) -> bool:
        """Whether a backward pass has used it up."""
        return self.vjps is None

    def fits(self, data: Array) -> None:
        """A leaf's data has been replaced: cotangents arrive in its precision, and only in its shape."""
        if data.shape != self.shape:
            self.order = note_change()  # what was recorded with the old shape finds a leaf younger than itself
        self.shape, self.dtype = data.shape, data.dtype


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
    while tape:
        node = tape.pop()  # popped, so that nothing but `cotangents` keeps what was used
        if node not in leads_to_target or node not in cotangents:
            continue
        g = cotangents[node] if node in targets else cotangents.pop(node)
        for source, cotangent in _apply(node, g, leads_to_target):
            cotangents[source] = _added(cotangent, cotangents[source], g) if source in cotangents else cotangent
        if not retain_graph and node.leaf is None:
            node.vjps, node.inputs = None, ()
    return cotangents


def _added(fresh: Array, earlier: Array, g: Array) -> Array:
    """Their sum, written over the cotangent just made, unless it is g itself, which others hold, or a view of it."""
    if fresh is g or fresh.base is not None:
        return fresh + earlier
    fresh += earlier
    return fresh


def _refuse_stale(node: Node, wanted: set) -> None:
    """Raise where a vjp about to be applied keeps an array that was written over after it was recorded."""
    for i, source in enumerate(node.inputs):
        if source is None or source not in wanted:
            continue
        if source.order > node.order:
            raise ValueError(
                f"backward: the data of {node.name}'s argument {i} has another shape, {source.shape}, than in the "
                "forward pass; run the forward pass again"
            )
        rule = node.vjps if callable(node.vjps) else node.vjps[i] if i < len(node.vjps) else None
        if found := stale(rule, node.order):
            name, array, now, then = found
            raise ValueError(
                f"backward: {node.name} needs its {name!r} {array.shape} as it was in the forward pass, at version "
                f"{then}, and it is at version {now}: an optimiser's step, say, has written over it since; run the "
                "forward pass again"
            )


def _apply(node: Node, g: Array, wanted: set) -> Iterator[tuple[Node, Array]]:
    """(input node, its cotangent) for each wanted input, with broadcasting undone: the one place where it is."""
    joint = node.vjps(g) if callable(node.vjps) else None
    rules = node.vjps if joint is None else joint
    for i, source in enumerate(node.inputs):
        if source is None or source not in wanted:
            continue
        if i >= len(rules):
            raise TypeError(f"backward: {node.name} has no derivative in its argument {i}; detach it: x.detach()")
        if joint is not None:
            cotangent = joint[i]
        elif rules[i] is not None:
            cotangent = rules[i](g)
        else:
            continue  # nothing to differentiate with respect to: a condition, token numbers
        if cotangent.shape != source.shape:
            cotangent = sum_to_shape(cotangent, source.shape)
        yield source, cotangent if cotangent.dtype == source.dtype else cotangent.astype(source.dtype)


def sum_to_shape(g: Array, shape: tuple) -> Array:
    """Undo broadcasting: an entry that was used many times receives the sum of its copies' cotangents."""
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))  # axes that broadcasting put in front
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1)
    return g.sum(axis=stretched, keepdims=True).reshape(shape)
