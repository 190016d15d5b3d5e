"""What one training did, from plain numbers: its losses, the spectra of what changed, one matrix with its B and A."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..analysis.rank import energy_rank
from .style import (
    BLUE,
    COLOURS,
    GREY,
    SIZE,
    TITLE_WIDTH,
    VERMILLION,
    apart,
    lecture_style,
    new_figure,
    powers_of_two,
    written_ticks,
)


def loss_curves(
    curves: Mapping[str, Mapping[str, Sequence[float]]], base_loss: float, trained: Mapping[str, int]
) -> Figure:
    """Validation loss against training step, a line for each method, with the base model's loss as a level.

    curves: {method: {"step": [...], "loss": [...]}}, nats per character; trained: {method: parameters it trains}.
    """
    last = {name: curve["loss"][-1] for name, curve in curves.items()}
    end = max(curve["step"][-1] for curve in curves.values())
    with lecture_style():
        figure = new_figure()
        axes = figure.add_subplot()
        axes.axhline(base_loss, color=GREY, linestyle=(0, (4, 3)), linewidth=2)
        axes.text(end, base_loss, f"base model {base_loss:.2f}", color=GREY, ha="right", va="bottom")
        top = 1.12 * max(base_loss, *(max(curve["loss"]) for curve in curves.values()))
        labels = apart([last[name] for name in curves], gap=top * 0.17)
        for (name, curve), colour, height in zip(curves.items(), COLOURS, labels, strict=False):
            axes.plot(curve["step"], curve["loss"], color=colour)
            axes.plot(curve["step"][-1], last[name], "o", color=colour, markersize=10, clip_on=False)
            words = f"{name}: {last[name]:.2f}\n{trained[name]:,} trained"
            axes.text(end * 1.04, height, words, color=colour, va="center", fontweight="bold")
        axes.set(xlim=(0, end), ylim=(0, top), xlabel="training step", ylabel="validation loss (nats/character)")
        axes.spines["bottom"].set_bounds(0, end)
        _title(axes, _loss_title(base_loss, last, trained))
    return figure


def _loss_title(base_loss: float, last: Mapping[str, float], trained: Mapping[str, int]) -> str:
    few, many = min(trained, key=trained.__getitem__), max(trained, key=trained.__getitem__)
    share = 100 * trained[few] / trained[many]
    fall = (base_loss - last[few]) / (base_loss - last[many]) if base_loss > last[many] else float("nan")
    if few == many or not np.isfinite(fall):
        return f"{few}: the loss goes from {base_loss:.2f} to {last[few]:.2f}"
    return f"{few}: {100 * fall:.0f} % of the gain with {share:.0f} % of the parameters"


def spectra(values: Mapping[str, Sequence[np.ndarray]]) -> Figure:
    """Singular values of Delta W, each over the largest of its matrix, against their index, on log axes.

    values: {method: [the singular values of each matrix, largest first]}. A thin line for each matrix, a thick one for
    their geometric mean. Values below 1e-5 of the largest are rounding, and are not drawn.
    """
    longest = max(len(s) for many in values.values() for s in many)
    floor = 1e-3
    with lecture_style():
        figure = new_figure()
        axes = figure.add_subplot()
        for (name, many), colour in zip(values.items(), COLOURS, strict=False):
            relative = [_relative(s) for s in many]
            for s in relative:
                axes.plot(np.arange(1, len(s) + 1), s, color=colour, linewidth=1, alpha=0.25)
            rank = min(len(s) for s in relative)
            mean = np.exp(np.mean([np.log(s[:rank]) for s in relative], axis=0))
            floor = min(floor, mean[: longest // 2].min() / 3)
            axes.plot(np.arange(1, rank + 1), mean, color=colour, linewidth=4.5)
            label: dict[str, Any] = {"textcoords": "offset points", "color": colour, "fontweight": "bold"}
            if rank < longest / 2:  # a rank that ends: say so where the line does
                axes.plot(rank, mean[-1], "o", color=colour, markersize=11)
                axes.annotate(f"{name}: rank {rank}", (rank, mean[-1]), (4, -10), ha="center", va="top", **label)
            else:
                place = longest // 5
                axes.annotate(name, (place + 1, mean[place]), (8, 22), va="bottom", **label)
        written_ticks(axes, powers_of_two(longest))
        axes.set(yscale="log", xlim=(0.93, longest * 1.08), ylim=(floor, 1.3))
        axes.set(xlabel="index of the singular value", ylabel="singular value / largest")
        _title(axes, _spectra_title(values, longest))
    return figure


def _relative(s: np.ndarray) -> np.ndarray:
    s = np.asarray(s) / s[0]
    return s[s > 1e-5]


def _spectra_title(values: Mapping[str, Sequence[np.ndarray]], size: int) -> str:
    needed = [(name, round(float(np.mean([energy_rank(s, 0.9) for s in many])))) for name, many in values.items()]
    (first, n), others = needed[0], needed[1:]
    told = "".join(f",\n{count} with {name}" for name, count in others)
    return f"90 % of the change takes {n} directions with {first}{told}, of {size}"


def matrices(weight: np.ndarray, B: np.ndarray, A: np.ndarray, scale: float, name: str) -> Figure:
    """W + Delta W and Delta W = s B A as heat maps, all drawn to the same scale, with their shapes and counts.

    weight: (d_out, d_in), B: (d_out, r), A: (r, d_in); name: of the matrix. Raises ValueError when these do not fit.
    """
    (m, n), r = weight.shape, A.shape[0]
    if B.shape != (m, r) or A.shape != (r, n):
        raise ValueError(f"matrices: B {B.shape} and A {A.shape} do not fit W {weight.shape}")
    delta, trained = scale * (B @ A), f"{A.size + B.size:,} trained"
    panels = (  # array, what stands under it, its colour, the sign after it and the inches that takes
        (weight, f"W\n{m} × {n}\n{weight.size:,} frozen", GREY, "+", 0.45),
        (delta, f"ΔW\n{m} × {n}\nrank {np.linalg.matrix_rank(delta)}", VERMILLION, f"where\nΔW = {scale:g} ·", 1.35),
        (B, f"B\n{m} × {r}", BLUE, "·", 0.5),
        (A, f"A\n{r} × {n}\n{trained}", BLUE, "", 0.0),
    )
    room = SIZE[0] - 0.6 - sum(panel[-1] for panel in panels)
    inch = min(room / (3 * n + r), 2.6 / m)  # the side of one entry
    with lecture_style():
        figure = Figure(figsize=SIZE)
        FigureCanvasAgg(figure)
        x, top = (SIZE[0] - (3 * n + r) * inch - sum(panel[-1] for panel in panels)) / 2, 3.95
        for array, words, colour, sign, after in panels:
            height, width = array.shape[0] * inch, array.shape[1] * inch
            axes = figure.add_axes((x / SIZE[0], (top - height) / SIZE[1], width / SIZE[0], height / SIZE[1]))
            _heat_map(axes, array, colour)
            _text(figure, x + width / 2, top - height - 0.12, words, color=colour, va="top")
            _text(figure, x + width + after / 2, top - m * inch / 2, sign, fontsize=18, va="center")
            x += width + after
        words = f"LoRA trains {A.size + B.size:,} numbers in place of {weight.size:,}"
        figure.text(0.3 / SIZE[0], 0.95, textwrap.fill(words, TITLE_WIDTH), va="top", fontsize=17, fontweight="bold")
        _text(figure, SIZE[0] / 2, 0.4, f"W is {name}. Red is positive, blue negative.", color=GREY)
    return figure


def _heat_map(axes: Axes, array: np.ndarray, colour: str) -> None:
    limit = float(np.quantile(np.abs(array), 0.99)) or 1.0
    axes.imshow(array, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=colour, linewidth=2)


def _text(figure: Figure, x: float, y: float, words: str, **how: Any) -> None:
    figure.text(x / SIZE[0], y / SIZE[1], words, ha="center", **how)


def _title(axes: Axes, text: str) -> None:
    axes.set_title("\n".join(textwrap.fill(line, TITLE_WIDTH) for line in text.split("\n")))
