"""Gradient checkpointing: activations that are computed again in the backward pass instead of being kept.

What a tape keeps of a deep stack grows with its depth. If of each block only the input is kept, and the block is run
again when its cotangent arrives, the tape holds one block's activations at a time, for one forward pass more (Chen et
al. 2016, "Training Deep Nets with Sublinear Memory Cost", section 4).
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from .backend import Array, array_module
from .recording import blocks
from .tape import Node, pull_back
from .tensor import Tensor
from .versions import clock

CHANGED = (
    "has changed since the forward pass, and what was to be computed again would differ; run the forward pass again"
)


def recompute(function: Callable[..., Tensor], *arguments: Any, **options: Any) -> Tensor:
    """function(*arguments, **options), of which the tape keeps the arguments alone: the rest is computed again.

    Every tensor that the function uses gets its gradient, whether it is among the arguments or, as a module's weights,
    is only known to the function: bit for bit what it gets without `recompute`, where it is used once. A generator
    among the arguments (dropout's) begins the second time where it began the first. The function must do the same
    twice: the backward pass raises ValueError where a tensor has been written over since, or another result comes out,
    or the same one without a tensor that waits for its gradient.
    """
    start, spare = next(clock), [_replayable(value) for value in arguments]
    spares = {name: _replayable(value) for name, value in options.items()}
    y = function(*arguments, **options)
    if not isinstance(y, Tensor):
        raise TypeError(f"recompute: the function returned {type(y).__name__}, expected a Tensor")
    outside = _split(y, start)[1]
    if not outside:
        return y
    first, leaves = y.data, [(node.leaf(), node.leaf()._array) for node in outside if node.leaf is not None]

    def vjp(g: Array) -> list:
        if any(leaf is None or leaf._array is not array for leaf, array in leaves):
            raise ValueError(f"recompute: a tensor {CHANGED}")
        start, recording = next(clock), blocks.set(())  # recorded, even where the backward pass stands in a no_grad
        try:
            again = function(*map(_replayable, spare), **{name: _replayable(value) for name, value in spares.items()})
        finally:
            blocks.reset(recording)
        if again.shape != first.shape or (abs(again.data - first) > _tolerance(first)).any():
            raise ValueError(f"recompute: the function gives another result; something that it uses {CHANGED}")
        inside, reached = _split(again, start)
        if any(map(_wanted, set(outside).difference(reached))):  # an adapter, say, was merged: its gradient would be 0
            raise ValueError(f"recompute: which tensors the function uses {CHANGED}")
        cotangents = pull_back(inside, set(outside), {again.node: g}, False)
        return [cotangents[node] if node in cotangents else _zeros(g, node) for node in outside]

    result = Tensor(first)
    result.node = Node("recompute", tuple(outside), vjp, first)
    return result


def _replayable(value: Any) -> Any:
    """A generator as it is now; anything else is itself."""
    return copy.deepcopy(value) if isinstance(value, np.random.Generator) else value


def _split(y: Tensor, start: int) -> tuple[list[Node], list[Node]]:
    """The nodes behind y that were made since `start`, the newest first, and the older ones that they lead to."""
    inside: set[Node] = set()
    outside: dict[Node, None] = {}  # in the order of their discovery
    stack = [y.node]
    while stack:
        node = stack.pop()
        if node is None or node in inside:
            continue
        if node.order < start:
            outside[node] = None
            continue
        inside.add(node)
        stack.extend(node.inputs)
    return sorted(inside, key=lambda node: node.order, reverse=True), list(outside) if inside else []


def _wanted(node: Node) -> bool:
    """Whether a gradient may arrive here: at what was computed, and at a leaf that has not been frozen since."""
    leaf = node.leaf and node.leaf()
    return leaf is None or leaf.node is node


def _tolerance(first: Array) -> Array:
    """What a second run may differ by: libraries may add up in another order, which no change of a weight hides in."""
    return np.finfo(first.dtype).eps ** 0.75 * abs(first).max(initial=0)


def _zeros(g: Array, node: Node) -> Array:
    return array_module(g).zeros(node.shape, dtype=node.dtype)
