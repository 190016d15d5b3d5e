"""Diagrams: the LoRA layer, a transformer's block, and a LoRA layer's tape, drawn from one really recorded.

Blue with a solid edge is trained, grey with a dashed edge is frozen: the two can be told apart without colour, too.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon

from ..adapters.lora import LoRAConfig, LoRALinear
from ..autograd import ops
from ..autograd.signatures import checked
from ..autograd.tensor import Node, Tensor, grad
from ..nn.gpt import GPTConfig
from ..nn.layers import Linear
from .style import BLUE, GREY, SIZE, VERMILLION, lecture_style, new_figure

PALE_BLUE, PALE_GREY = "#D6E9F5", "#E6E6E6"
FROZEN: dict[str, Any] = {"facecolor": PALE_GREY, "edgecolor": GREY, "linestyle": (0, (5, 3)), "linewidth": 2.5}
TRAINED: dict[str, Any] = {"facecolor": PALE_BLUE, "edgecolor": BLUE, "linestyle": "-", "linewidth": 3}


def _sheet(title: str, lesson: str) -> tuple[Figure, Axes]:
    """A page whose coordinates are inches from the lower left corner."""
    figure = new_figure()
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, SIZE[0]), ylim=(0, SIZE[1]))
    axes.set_axis_off()
    axes.text(0.25, SIZE[1] - 0.2, title, va="top", fontsize=17, fontweight="bold")
    figure.set_label(lesson)
    return figure, axes


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = "black") -> None:
    arrow = FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=22, linewidth=2.2, color=colour)
    arrow.shrinkA = arrow.shrinkB = 0
    axes.add_patch(arrow)


# --- the layer -------------------------------------------------------------------------------------------------------


def lora_layer(d_in: int = 128, d_out: int = 128, rank: int = 8, alpha: float = 16) -> Figure:
    """The LoRA layer: x goes through the frozen W, and beside it through A and B; the two are added (Hu et al. 2021,
    figure 1). Shapes stand on the arrows, N for the rows of x.   Raises ValueError for a rank the matrix does not have.
    """
    if not 1 <= rank <= min(d_in, d_out):
        raise ValueError(f"lora_layer: rank = {rank}, expected 1 to {min(d_in, d_out)}")
    trained, frozen = rank * (d_in + d_out), d_in * d_out
    title = f"LoRA trains A and B, {trained:,} numbers;\nW's {frozen:,} stay as they are"
    lesson = (
        f"x is multiplied by the frozen W ({d_out} x {d_in}) and, beside it, by A ({rank} x {d_in}) and B "
        f"({d_out} x {rank}), scaled by alpha / r = {alpha / rank:g}; the two are added. A and B are "
        f"{100 * trained / frozen:.3g} % of W's size. B starts at zero, so at the start the layer does what W does."
    )
    with lecture_style():
        figure, axes = _sheet(title, lesson)
        _box(axes, (2.3, 2.75), (2.6, 1.0), f"W   {d_out} × {d_in}\nfrozen (and b)", FROZEN, GREY)
        for corners, text, x in (
            ([(2.05, 0.9), (2.05, 2.2), (3.15, 1.85), (3.15, 1.25)], f"A\n{rank} × {d_in}", 2.56),
            ([(4.15, 1.25), (4.15, 1.85), (5.25, 2.2), (5.25, 0.9)], f"B\n{d_out} × {rank}", 4.74),
        ):
            axes.add_patch(Polygon(corners, joinstyle="round", **TRAINED))
            axes.text(x, 1.55, text, ha="center", va="center", color=BLUE, fontweight="bold", fontsize=14)
        axes.text(0.42, 2.4, "x", ha="center", va="center", fontsize=24, fontweight="bold")
        axes.text(0.2, 2.0, f"N × {d_in}", va="top", fontsize=14)
        for y, end in ((3.25, 2.28), (1.55, 2.03)):
            axes.plot([0.75, 1.1, 1.1], [2.4, 2.4, y], color="black", linewidth=2.2, solid_joinstyle="miter")
            _arrow(axes, (1.1, y), (end, y))
        _arrow(axes, (3.17, 1.55), (4.13, 1.55))
        axes.text(3.65, 1.05, "trained", ha="center", va="center", color=BLUE, fontweight="bold", fontsize=14)
        axes.text(3.65, 1.68, f"N × {rank}", ha="center", va="bottom", fontsize=14)
        _to_sum(axes, d_out, alpha / rank)
        axes.text(4, 0.42, "y = x Wᵀ + b + (α/r) (x Aᵀ) Bᵀ", ha="center", va="center", fontsize=19)
    return figure


def _to_sum(axes: Axes, d_out: int, scale: float) -> None:
    """The two paths meet: W's from above, the scaled update's from below."""
    axes.plot([4.92, 6.5], [3.25, 3.25], color="black", linewidth=2.2)
    axes.plot([5.27, 6.5], [1.55, 1.55], color="black", linewidth=2.2)
    axes.text(5.7, 3.33, f"N × {d_out}", ha="center", va="bottom", fontsize=14)
    axes.text(5.95, 1.47, f"· α/r = {scale:g}", ha="center", va="top", fontsize=14, color=BLUE)
    _arrow(axes, (6.5, 3.25), (6.5, 2.65))
    _arrow(axes, (6.5, 1.55), (6.5, 2.15))
    axes.plot(6.5, 2.4, "o", markersize=34, markerfacecolor="white", markeredgecolor="black", markeredgewidth=2.2)
    axes.text(6.5, 2.385, "+", ha="center", va="center", fontsize=24)
    _arrow(axes, (6.74, 2.4), (7.3, 2.4))
    axes.text(7.55, 2.4, "y", ha="center", va="center", fontsize=24, fontweight="bold")
    axes.text(7.85, 2.0, f"N × {d_out}", ha="right", va="top", fontsize=14)


def _box(axes: Axes, corner: tuple[float, float], size: tuple[float, float], text: str, look: dict, ink: str) -> None:
    axes.add_patch(FancyBboxPatch(corner, *size, boxstyle="round,pad=0,rounding_size=0.08", **look))
    x, y = corner[0] + size[0] / 2, corner[1] + size[1] / 2
    axes.text(x, y, text, ha="center", va="center", color=ink, fontweight="bold", fontsize=14)


# --- the block -------------------------------------------------------------------------------------------------------


@checked
def block(config: GPTConfig) -> Figure:
    """A block of the transformer: two branches leave the residual stream and are added to it, shapes at the arrows."""
    C, H, D = config.n_embd, config.n_head, config.n_embd // config.n_head
    title = "A block adds to its input twice: what attention\nfetches from other places, and a small network"
    lesson = (
        f"x has T x C numbers, T up to {config.block_size}, C = {C}. ln_1, then q, k and v, attention in {H} heads of "
        f"D = {D}, and o_proj give what is added first; ln_2, up_proj to 4C = {4 * C}, GELU and down_proj what is "
        "added second. Only attention sees more than one place at a time."
    )
    with lecture_style():
        figure, axes = _sheet(title, lesson)
        axes.plot([0.15, 7.3], [3.6, 3.6], color="black", linewidth=3.5)
        _arrow(axes, (7.3, 3.6), (7.85, 3.6))
        axes.text(0.15, 3.66, "x", fontsize=19, fontweight="bold", va="bottom")
        axes.text(0.4, 3.69, "T × C", fontsize=14, va="bottom")
        heads = f"{H} heads, T × D each:\nsoftmax(q kᵀ / √D) v"
        _branch(axes, 0.35, (("ln_1",), ("q_proj", "k_proj", "v_proj"), (heads,), ("o_proj",)), ["T × C"] * 4)
        _branch(axes, 4.3, (("ln_2",), ("up_proj",), ("GELU",), ("down_proj",)), ["T × C"] * 2 + ["T × 4C"] * 2)
        told = f"T ≤ {config.block_size} places,   C = {C},   H = {H} heads of D = {D}"
        axes.text(4, 0.22, told, ha="center", va="center", fontsize=14, color=GREY)
    return figure


def _branch(axes: Axes, x: float, steps: Sequence[Sequence[str]], shapes: Sequence[str], width: float = 2.5) -> None:
    """From the stream down through the steps, a shape before each, and at their right up again to a sum."""
    y, places = 3.6, [x + width / 2]
    for step, shape in zip(steps, shapes, strict=True):
        part, tall = width / len(step), 0.6 if "\n" in step[0] else 0.38
        ends = [x + part * (i + 0.5) for i in range(len(step))]
        for place in max(places, ends, key=len):
            _arrow(axes, (place, y), (place, y - 0.34))
        axes.text(x + width / 2 + 0.1, y - 0.15, shape, va="center", fontsize=14)
        for name, end in zip(step, ends, strict=True):
            look = TRAINED if "_" in name else {**TRAINED, "facecolor": "white", "edgecolor": "black", "linewidth": 2}
            ink = BLUE if "_" in name else "black"
            _box(axes, (end - part / 2 + 0.03, y - 0.34 - tall), (part - 0.06, tall), name, look, ink)
        y, places = y - 0.34 - tall, ends
    right, level = x + width + 0.42, y + 0.19
    axes.plot([x + width, right, right], [level, level, 3.3], color="black", linewidth=2.2)
    _arrow(axes, (right, 3.2), (right, 3.43))
    axes.plot(right, 3.6, "o", markersize=25, markerfacecolor="white", markeredgecolor="black", markeredgewidth=2.2)
    axes.text(right, 3.585, "+", ha="center", va="center", fontsize=21)
    axes.text(right + 0.1, 2.4, shapes[0], va="center", fontsize=14)


# --- the tape --------------------------------------------------------------------------------------------------------


def closure_arrays(function: Callable | None) -> Iterator[tuple[str, np.ndarray]]:
    """(variable, array) for every array that a vjp keeps alive: those its closure refers to, and its closure's own
    functions'. A view stands for the array whose memory it shows."""
    cells = getattr(function, "__closure__", None) or ()
    names = function.__code__.co_freevars if cells and function is not None else ()
    for name, cell in zip(names, cells, strict=True):
        value = cell.cell_contents
        if isinstance(value, np.ndarray):
            while isinstance(value.base, np.ndarray):
                value = value.base
            yield name, value
        elif callable(value):
            yield from closure_arrays(value)


def tape(output: Tensor) -> list[Node]:
    """The nodes an output was computed from, the oldest first, leaves left out."""
    seen: dict[Node, None] = {}
    stack = [output.node]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen[node] = None
            stack.extend(node.inputs)
    return sorted((node for node in seen if node.leaf is None), key=lambda node: node.order)


def kept_rows(node: Node, names: Mapping[int, str]) -> list[tuple[str, dict[str, int] | None]]:
    """[(input, {name of an array its vjp keeps: bytes})] for the inputs of a node; None where the vjp was dropped.

    names: {id of an array: its name}; an array that is not there goes by its variable in the primitive.
    """
    inputs = list(inspect.signature(ops.PRIMITIVES[node.name]).parameters)
    rows: list[tuple[str, dict[str, int] | None]] = []
    for i, source in enumerate(node.inputs[: len(node.vjps)]):
        held = {names.get(id(array), name): array.nbytes for name, array in closure_arrays(node.vjps[i])}
        rows.append((inputs[i], None if source is None else held))
    return rows


def kept_bytes(nodes: list[Node], parameters: list[Tensor]) -> int:
    """Bytes that the tape keeps for the backward pass beside the parameters, which are in memory anyway."""
    known = {id(p.data) for p in parameters}
    arrays = {id(array): array for node in nodes for vjp in node.vjps for _, array in closure_arrays(vjp)}
    return sum(array.nbytes for key, array in arrays.items() if key not in known)


class Recorded:
    """Two linear layers, y = layer(x), z = W2 y, run once on N rows: their tape, and what it keeps."""

    def __init__(self, lora: bool, rows: int, width: int, rank: int):
        rng = np.random.default_rng(0)
        first, second = (Linear(width, width, True, rng) for _ in range(2))
        frozen = [p for layer in (first, second) for p in (layer.weight, layer.bias) if p is not None]
        if lora:
            for p in frozen:
                p.requires_grad = False
            first = LoRALinear(first, LoRAConfig(rank, 2 * rank), rng)
        x = Tensor(rng.standard_normal((rows, width)).astype(np.float32), requires_grad=True)
        y = first(x)
        z = second(y)
        adapters = [first.lora_A, first.lora_B] if isinstance(first, LoRALinear) else []
        parameters = [*frozen, *adapters]
        names = {id(p.data): name for p, name in zip(parameters, ("W", "b", "W₂", "b₂", "A", "B"), strict=False)}
        names |= {id(x.data): "x", id(_root(y.data)): "y"}
        nodes = tape(z)
        self.nodes = [(node.name, node.shape, kept_rows(node, names)) for node in nodes]
        self.kept = kept_bytes(nodes, parameters)
        self.sizes = {"x": x.data.nbytes, "y": y.data.nbytes}
        trained = [p for p in parameters if p.requires_grad]
        self.gradients = sum(g.nbytes for g in grad(z, trained, np.ones_like(z.data)))


def _root(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def lora_tape(rows: int = 2048, width: int = 128, rank: int = 8) -> Figure:
    """The tape of a LoRA layer and of a frozen layer after it, beside that of the same two layers fully trained.

    Both are recorded here, on `rows` rows of `width` numbers in float32; a row of a box is one vjp, with the arrays
    found in its closure, or struck out where the tape dropped it.
    """
    lora, full = Recorded(True, rows, width, rank), Recorded(False, rows, width, rank)
    less = 1 - lora.kept / full.kept
    change = f"{100 * abs(less):.0f} % {'less' if less > 0 else 'more'}"
    gradients = f"{_size(lora.gradients)}, not {_size(full.gradients)}"
    title = f"LoRA's tape keeps {change} for the way back,\nand its gradients are {gradients}"
    lesson = (
        f"Two layers of width {width} on {rows:,} rows in 32 bits. The vjp of a frozen W is dropped, and with it the "
        f"layer's input: the frozen layer keeps nothing of its own (y, {_size(full.sizes['y'])}). The LoRA layer still "
        f"keeps its input x, because A is trained, and h. Kept beside the parameters: {_size(lora.kept)} with LoRA, "
        f"{_size(full.kept)} in full fine-tuning; gradients of parameters: {_size(lora.gradients)} and "
        f"{_size(full.gradients)}."
    )
    with lecture_style():
        figure, axes = _sheet(title, lesson)
        for x, head, recorded in ((0.25, "LoRA, then a frozen layer", lora), (4.15, "both trained", full)):
            _draw_tape(axes, x, head, recorded)
    return figure


def _draw_tape(axes: Axes, x: float, head: str, recorded: Recorded) -> None:
    step, width, y = 0.265, 3.6, 3.95
    axes.text(x, y, head, fontsize=15, fontweight="bold", va="bottom")
    for place, (name, shape, rows) in enumerate(recorded.nodes):
        height = step * (len(rows) + 1) + 0.14
        any_kept = any(held for key, held in rows if key != "x")
        axes.add_patch(
            FancyBboxPatch(
                (x, y - 0.1 - height), width, height, boxstyle="round,pad=0,rounding_size=0.06",
                **(TRAINED if any_kept else FROZEN),
            )
        )  # fmt: skip
        y -= 0.1 + 0.07 + step / 2
        axes.text(x + 0.1, y, f"{name} → {shape[0]:,} × {shape[1]}", va="center", fontsize=14, fontweight="bold")
        for key, held in rows:
            y -= step
            _draw_vjp(axes, x + 0.25, y, key, held)
        y -= 0.07 + step / 2 + 0.12
        if place == 0:
            _arrow(axes, (x + 0.6, y + 0.1), (x + 0.6, y - 0.1))
    axes.text(x, 0.28, f"kept: {_size(recorded.kept)}", color=VERMILLION, fontsize=17, fontweight="bold", va="center")


def _draw_vjp(axes: Axes, x: float, y: float, key: str, held: dict[str, int] | None) -> None:
    """One vjp: struck out where it was dropped, else what it keeps: arrays beside the parameters with their size."""
    short = {"weight": "dW", "bias": "db", "lora_A": "dA", "lora_B": "dB"}.get(key, f"d{key}")
    line: dict[str, Any] = {"va": "center", "fontsize": 14}
    if held is None:
        axes.text(x, y, short, color=GREY, **line)
        axes.plot([x - 0.05, x + 0.4], [y, y], color=GREY, linewidth=1.8)
        axes.text(x + 0.65, y, "dropped", color=GREY, style="italic", **line)
        return
    axes.text(x, y, short, color=BLUE, fontweight="bold", **line)
    parameters = [name for name in held if name[0] in "WAB"]
    axes.text(x + 0.65, y, ", ".join(parameters) if held else "nothing to keep", **line)
    for name in [name for name in held if name not in parameters]:
        axes.text(x + 1.15, y, f"{name}: {_size(held[name])}", color=VERMILLION, fontweight="bold", **line)


def _size(count: int) -> str:
    return f"{count / 2**20:.2f} MiB" if count >= 2**20 else f"{count / 2**10:,.0f} KiB"
