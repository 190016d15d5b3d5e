"""What one training did, from plain numbers: its losses, the spectra of what changed, one matrix with its B and A."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
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

WRITTEN = 8  # rows and columns, at most, of a matrix whose entries are written out


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
    """W + Delta W as heat maps of one scale, Delta W = s B A with B at its left and A above it: an entry is s times the
    row of B beside it, times the column of A over it. Entries of matrices up to 8 x 8 are written out.

    weight: (d_out, d_in), B: (d_out, r), A: (r, d_in); name: of the matrix. Raises ValueError when these do not fit.
    """
    (m, n), r = weight.shape, A.shape[0]
    if B.shape != (m, r) or A.shape != (r, n):
        raise ValueError(f"matrices: B {B.shape} and A {A.shape} do not fit W {weight.shape}")
    delta, plus, beside = scale * (B @ A), 1.4, 0.12  # inches between W and B, and between a product's parts
    told = f"ΔW = {scale:g} · B A\n{m} × {n}\nrank {np.linalg.matrix_rank(delta)}"
    inch = min((SIZE[0] - 0.8 - plus - beside) / (2 * n + r), 2.6 / (m + r))  # the side of one entry
    x, low = (SIZE[0] - (2 * n + r) * inch - plus - beside) / 2, 1.25
    x_B = x + n * inch + plus
    x_delta = x_B + r * inch + beside
    with lecture_style():
        figure = new_figure()
        figure.set_layout_engine("none")
        for array, at, bottom, colour in (
            (weight, x, low, GREY),
            (B, x_B, low, BLUE),
            (delta, x_delta, low, VERMILLION),
            (A, x_delta, low + m * inch + beside, BLUE),
        ):
            _heat_map(figure, array, (at, bottom), inch, colour)
        for middle, words, colour in (
            (x + n * inch / 2, f"W\n{m} × {n}\n{weight.size:,} frozen", GREY),
            (x_delta + n * inch / 2, told, VERMILLION),
        ):
            _text(figure, middle, low - 0.1, words, color=colour, va="top")
        top = low + m * inch + beside + r * inch
        _text(figure, x_delta + n * inch / 2, top + 0.08, f"A   {r} × {n}", color=BLUE, va="bottom")
        _text(figure, x_B - 0.5, low + m * inch / 2, f"B\n{m} × {r}", color=BLUE, va="center")
        _text(figure, x + n * inch + 0.25, low + m * inch / 2, "+", fontsize=20, va="center")
        words = f"LoRA trains {A.size + B.size:,} numbers in place of {weight.size:,}"
        figure.text(0.3 / SIZE[0], 0.95, textwrap.fill(words, TITLE_WIDTH), va="top", fontsize=17, fontweight="bold")
        _text(figure, SIZE[0] / 2, 0.12, f"W is {name}. Red is positive, blue negative.", color=GREY)
    return figure


def _heat_map(figure: Figure, array: np.ndarray, corner: tuple[float, float], inch: float, colour: str) -> None:
    """A matrix whose lower left corner is there, in inches; its numbers, where there is room for them."""
    width, height = array.shape[1] * inch, array.shape[0] * inch
    axes = figure.add_axes((corner[0] / SIZE[0], corner[1] / SIZE[1], width / SIZE[0], height / SIZE[1]))
    limit = float(np.quantile(np.abs(array), 0.99)) or 1.0
    axes.imshow(array, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=colour, linewidth=2)
    if max(array.shape) <= WRITTEN:
        for (i, j), number in np.ndenumerate(array):
            ink = "white" if abs(number) > 0.7 * limit else "black"
            axes.text(j, i, f"{number + 0:.2g}".replace("-", "−"), ha="center", va="center", color=ink, fontsize=14)


def _text(figure: Figure, x: float, y: float, words: str, **how: Any) -> None:
    figure.text(x / SIZE[0], y / SIZE[1], words, ha="center", **how)


def by_hand(x: np.ndarray, W: np.ndarray, b: np.ndarray, A: np.ndarray, B: np.ndarray, s: float) -> Figure:
    """A LoRA layer's forward pass with all its numbers, each product below its right factor and beside its left one.

    x: (N, d_in), W: (d_out, d_in), b: (d_out,), A: (r, d_in), B: (d_out, r), s = alpha / r; sizes of 4 or so.
    Raises ValueError when these do not fit, or are too large to be written out.
    """
    (N, n), (m, r) = x.shape, B.shape
    columns = n + r + 3 * m
    if W.shape != (m, n) or A.shape != (r, n) or b.shape != (m,) or columns > 20 or N + n > 10:
        shapes = f"x {x.shape}, W {W.shape}, b {b.shape}, A {A.shape}, B {B.shape}"
        raise ValueError(f"by_hand: {shapes}: expected shapes that fit, of 20 columns and 10 rows at most")
    h, base = x @ A.T, x @ W.T + b
    update = s * (h @ B.T)
    inch, near, far = min(6.2 / columns, 2.9 / (N + n + 1)), 0.12, 0.5
    with lecture_style():
        figure = new_figure()
        figure.set_layout_engine("none")
        title = "x goes two ways: through A and B, and through W"
        figure.text(0.3 / SIZE[0], 0.95, title, va="top", fontsize=17, fontweight="bold")
        at, low = (SIZE[0] - columns * inch - 2 * near - 2 * far) / 2, 0.65
        over = low + N * inch + near
        for part, words, over_it, above, colour, after, sign in (
            (x, "x", "", None, "black", near, ""),
            (h, "h = x Aᵀ", "Aᵀ", A.T, BLUE, near, ""),
            (update, f"{s:g} · h Bᵀ", "Bᵀ", B.T, BLUE, far, "+"),
            (base, "x Wᵀ + b", "Wᵀ, then b", np.vstack([W.T, b]), GREY, far, "="),
            (base + update, "y", "", None, VERMILLION, 0.0, ""),
        ):
            width = part.shape[1] * inch
            _heat_map(figure, part, (at, low), inch, colour)
            _text(figure, at + width / 2, low - 0.1, words, color=colour, va="top", fontweight="bold")
            _text(figure, at + width + after / 2, low + N * inch / 2, sign, fontsize=20, va="center")
            if above is not None:
                _heat_map(figure, above, (at, over), inch, colour)
                _text(figure, at + width / 2, over + len(above) * inch + 0.08, over_it, color=colour, va="bottom")
            at += width + after
    return figure


def _title(axes: Axes, text: str) -> None:
    axes.set_title("\n".join(textwrap.fill(line, TITLE_WIDTH) for line in text.split("\n")))
