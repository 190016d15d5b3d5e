"""`ml.draw(loss)`: a small computation as its tape recorded it, the numbers and the gradients on its nodes.

Left to right is the way forward: leaves in blue, a grey box for each primitive. Above a box's line stands the value,
below it the gradient of the loss, d loss / d value. Gradients are computed here, by the walk of `autograd/tape.py`; no
`.grad` is written and the tape stays. What needs no gradient (inputs, targets, frozen weights) has no node.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

from ..autograd.backend import Array, array_module, to_numpy
from ..autograd.signatures import checked
from ..autograd.tape import FEW, Node, nodes_behind, pull_back
from ..autograd.tensor import Tensor
from ..autograd.versions import stale
from .diagrams import PALE_BLUE, PALE_GREY
from .style import BLUE, GREY, VERMILLION, lecture_style, new_figure

MOST = 60  # nodes: more are no picture any more
LETTER, LINE, FONT = 0.1, 0.205, 12  # inches across and down that a letter of this size takes
GAP, ROOM, EDGE = 0.4, 0.2, 0.09  # inches between columns, between boxes, and inside a box
INK: dict[str, Any] = {"family": "DejaVu Sans Mono", "fontsize": FONT, "va": "top", "linespacing": 1.1}
WIDEST = 1200  # pixels, so that a slide holds it
Point = tuple[float, float]
Item = Any  # what stands in a column: a node, or (from, to, column) where an arrow passes by


@checked
def draw(loss: Tensor, names: Mapping[str, Any] | None = None) -> Figure:
    """The graph of what led to `loss`, one number, with values and gradients: -> a Figure, which a notebook shows.

    names: {"x": x}, what to call leaves, or any tensor on the way; `dict(model.named_parameters())` will do. Up to nine
    numbers are written out; of more, the shape, and of their gradient the norm. Pure, as `ml.grad` is: draw before
    `loss.backward()`, which frees the tape, or after `loss.backward(retain_graph=True)`.
    Raises ValueError for more than one number, a tape that is freed, or of more than 60 nodes.
    """
    if wrong := [name for name, t in (names or {}).items() if not isinstance(t, Tensor)]:
        raise TypeError(f"draw: names[{wrong[0]!r}] is no Tensor; expected what to call them, as in {{'x': x}}")
    if loss.node is None:
        raise ValueError("draw: loss depends on no tensor with requires_grad=True, so there is no tape to draw")
    if loss.size != 1:
        raise ValueError(f"draw: loss has shape {loss.shape}, expected one number; take .sum() or .mean() first")
    nodes = _nodes(loss.node)
    gradients = pull_back(list(nodes), set(nodes), {loss.node: array_module(loss.data).ones_like(loss.data)}, True)
    called = {t.node: name for name, t in (names or {}).items() if t.node is not None}
    words = {node: _words(node, called.get(node), gradients.get(node)) for node in nodes}
    with lecture_style():
        return _picture(nodes, words)


def _nodes(output: Node) -> list[Node]:
    """The tape, the newest first, where it can be drawn."""
    try:
        nodes = nodes_behind(output)
    except ValueError as error:
        raise ValueError(
            "draw: the tape is freed: draw before loss.backward(), or call loss.backward(retain_graph=True)"
        ) from error
    if len(nodes) > MOST:
        raise ValueError(f"draw: {len(nodes)} nodes, expected at most {MOST}; draw a part: its sum, or a smaller model")
    for node in nodes:
        leaves = [source for source in node.inputs if source is not None and source.leaf]
        held = [tensor.data for tensor in (source.leaf() for source in leaves) if tensor is not None]
        if stale(held, node.order) or any(getattr(source, "assigned", 0) > node.order for source in leaves):
            raise ValueError(
                f"draw: a leaf of {node.name} has changed since the forward pass; run the forward pass again"
            )
    return nodes


# --- words -----------------------------------------------------------------------------------------------------------


def _words(node: Node, name: str | None, gradient: Array | None) -> tuple[str, str, str]:
    """What stands in a box: its name, its value, its gradient."""
    leaf = node.leaf and node.leaf()
    value = leaf.data if leaf is not None else node.value
    default = "leaf" if node.leaf else node.name
    title = default if name is None else name if node.leaf else f"{name} = {default}"
    told = _written(value, node.shape) or " × ".join(map(str, node.shape))
    if gradient is None:
        return title, told, "none"
    return title, told, _written(gradient, node.shape) or f"norm {np.linalg.norm(to_numpy(gradient)):.3g}"


def _written(array: Array | None, shape: tuple) -> str:
    """A small array's numbers in rows; nothing for a larger one."""
    if array is None or array.size > FEW or len(shape) > 2 or max(shape, default=1) > 4:
        return ""
    rows = [[_number(x, 4 if array.size == 1 else 3) for x in row] for row in np.atleast_2d(to_numpy(array))]
    wide = max((len(word) for row in rows for word in row), default=0)
    return "\n".join(" ".join(word.rjust(wide) for word in row) for row in rows)


def _number(x: complex, digits: int) -> str:
    return f"{x + 0:.{digits}g}".replace("-", "−")  # + 0: no minus before a zero


# --- where it stands -------------------------------------------------------------------------------------------------


def _columns(nodes: list[Node], arrows: Counter) -> list[list[Item]]:
    """Columns from the output to the left: each node as near to it as its farthest use allows, and passing arrows."""
    column = dict.fromkeys(nodes, 0)
    for node in nodes:  # the newest first: a node's place is known before its inputs ask for it
        for source in filter(None, node.inputs):
            column[source] = max(column[source], column[node] + 1)
    columns: list[list[Item]] = [[] for _ in range(max(column.values()) + 1)]
    for node in sorted(nodes, key=lambda node: node.leaf is not None):  # what was computed takes its place first
        columns[column[node]].append(node)
    for source, node in arrows:
        for passed in range(column[node] + 1, column[source]):
            columns[passed].append((source, node, passed))
    return columns


def _heights(columns: list[list[Item]], tall: Mapping[Item, float]) -> dict[Item, float]:
    """Where each item's middle stands: level with what uses it, or the nearest free place below or above."""
    y: dict[Item, float] = {}
    for place, column in enumerate(columns):
        for item in column:
            users = [u for u in (columns[place - 1] if place else []) if _feeds(item, u)]
            level = float(np.mean([y[u] for u in users])) if users else 0.0
            steps = (level + 0.1 * sign * k for k in range(1000) for sign in (-1, 1))
            others = [o for o in column if o in y]
            y[item] = next(
                h for h in steps if all(abs(h - y[o]) > (tall[item] + tall[o]) / 2 + ROOM - 1e-9 for o in others)
            )
    return y


def _feeds(item: Item, user: Item) -> bool:
    """Whether an arrow leads from an item to one of the next column."""
    if isinstance(user, Node):
        return item in user.inputs if isinstance(item, Node) else item[1] is user
    return item is user[0] if isinstance(item, Node) else item[:2] == user[:2]


# --- how it is drawn -------------------------------------------------------------------------------------------------


def _picture(nodes: list[Node], words: Mapping[Node, tuple[str, str, str]]) -> Figure:
    arrows = Counter((source, node) for node in nodes for source in node.inputs if source is not None)
    columns = _columns(nodes, arrows)
    size = {node: _size(words[node]) for node in nodes}
    tall = {item: size[item][1] if isinstance(item, Node) else 0.1 for column in columns for item in column}
    wide = [max(size[item][0] for item in column if isinstance(item, Node)) for column in columns]
    y = _heights(columns, tall)
    low, high = min(y[i] - tall[i] / 2 for i in y) - 0.55, max(y[i] + tall[i] / 2 for i in y) + 0.15
    x, ends, width = 0.15, {}, max(sum(wide) + GAP * (len(wide) - 1) + 0.3, 5.2)
    for place in reversed(range(len(columns))):  # from the left: the last column is the farthest from the output
        for item in columns[place]:  # where arrows come in and go out
            half = size[item][0] / 2 if isinstance(item, Node) else wide[place] / 2
            middle = x + wide[place] / 2
            ends[item] = ((middle - half, y[item]), (middle + half, y[item]))
        x += wide[place] + GAP
    figure = new_figure()
    figure.set_layout_engine("none")
    figure.set(size_inches=(width, high - low), dpi=min(100, WIDEST / width))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(low, high))
    axes.set_axis_off()
    for (source, node), times in arrows.items():
        passed = [
            ends[item]
            for column in reversed(columns)
            for item in column
            if not isinstance(item, Node) and item[:2] == (source, node)
        ]
        _arrow(axes, [ends[source][1], *(point for pair in passed for point in pair), ends[node][0]], times)
    for node in nodes:
        _box(axes, ends[node][0], size[node], words[node], node.leaf is not None)
    axes.text(0.15, low + 0.2, "above the line: the value", fontsize=FONT, va="center")
    axes.text(2.6, low + 0.2, "below: d loss / d value", fontsize=FONT, va="center", color=VERMILLION)
    steps = sum(node.leaf is None for node in nodes)
    figure.set_label(f"The tape of {steps} steps from {len(nodes) - steps} leaves, with values and gradients.")
    return figure


def _size(words: tuple[str, str, str]) -> Point:
    """Inches across and down of a box."""
    lines = "\n".join(words).split("\n")
    return LETTER * max(5, *map(len, lines)) + 2 * EDGE, LINE * len(lines) + 3 * EDGE


def _box(
    axes: Axes, left: tuple[float, float], size: tuple[float, float], words: tuple[str, str, str], leaf: bool
) -> None:
    (x, middle), (width, height) = left, size
    y = middle + height / 2 - EDGE
    look: dict[str, Any] = {
        "facecolor": PALE_BLUE if leaf else PALE_GREY,
        "edgecolor": BLUE if leaf else GREY,
        "linewidth": 1.6,
    }
    axes.add_patch(FancyBboxPatch((x, middle - height / 2), *size, boxstyle="round,pad=0,rounding_size=0.07", **look))
    name, value, gradient = words
    axes.text(x + width / 2, y, name, ha="center", fontweight="bold", color=BLUE if leaf else "black", **INK)
    y -= LINE
    axes.text(x + width / 2, y, value, ha="center", **INK)
    y -= LINE * len(value.split("\n")) + EDGE / 2
    axes.plot([x + 0.04, x + width - 0.04], [y, y], color=GREY, linewidth=1)
    axes.text(x + width / 2, y - EDGE / 2, gradient, ha="center", color=VERMILLION, **INK)


def _arrow(axes: Axes, points: list[Point], times: int) -> None:
    """An arrow along the points; two side by side where an input is used twice."""
    for i in range(times):
        shifted = [(x, y + 0.1 * (i - (times - 1) / 2)) for x, y in points]
        how: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 14, "linewidth": 1.6, "color": GREY}
        axes.add_patch(FancyArrowPatch(path=Path(shifted), shrinkA=0, shrinkB=0, **how))
