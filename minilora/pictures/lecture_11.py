"""Lecture 11: its pictures, from plain arrays. A picture is (S, S) of ink, 1 is black, or (S, S, 3) of colours."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..autograd.signatures import shown
from .drawing import heading, panels, state
from .lecture_08 import SIZE
from .style import BLUE, ORANGE, VERMILLION, lecture_style

GAP = 1  # pixels between pictures of a sheet


def colour(name: str) -> np.ndarray:
    """ "#0072B2" as (3,) in [0, 1]"""
    return np.array([int(name[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def plainly(image: np.ndarray) -> np.ndarray:
    """Ink on paper.   (S, S) -> (S, S, 3)"""
    return np.repeat(1 - image[..., None], 3, axis=-1)


def lit(image: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Ink on paper that is the more orange the larger its share is, from none to the largest.   (S, S), (G, G)"""
    big = np.kron(share / max(share.max(), 1e-12), np.ones([len(image) // len(share)] * 2))[..., None]  # (S, S, 1)
    return (1 - image[..., None]) * (1 + big * (colour(ORANGE) - 1))


def tinted(image: np.ndarray, mask: np.ndarray, point: Sequence[float] = ()) -> np.ndarray:
    """A photograph (1 is white), what is inside a mask in blue, a red cross at a point (x, y).   -> (S, S, 3)"""
    grey = np.repeat(image[..., None], 3, axis=-1)
    page = np.where(mask[..., None], 0.45 * grey + 0.55 * colour(BLUE), grey)
    if len(point):
        x, y = (round(float(place)) for place in point)
        page[y, max(x - 1, 0) : x + 2] = page[max(y - 1, 0) : y + 2, x] = colour(VERMILLION)
    return page


def canvas(rows: Sequence[Sequence[np.ndarray]], gap: int = GAP) -> np.ndarray:
    """Pictures of one size, each (S, S) of ink or (S, S, 3), put on white with gaps between them."""
    side, wide = len(rows[0][0]) + gap, max(map(len, rows))
    page = np.ones((len(rows) * side + gap, wide * side + gap, 3))
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = gap + i * side, gap + j * side
            page[top : top + len(image), left : left + len(image)] = image if image.ndim == 3 else plainly(image)
    return page.clip(0, 1)


def sheet(
    rows: Mapping[str, Sequence[np.ndarray]], sentence: str, columns: Sequence[Any] = (), under: str = ""
) -> Figure:
    """Rows of pictures, each with its name on its left; words above the columns, and under them all.

    Raises ValueError for pictures of different sizes.
    """
    sizes = {image.shape[:2] for row in rows.values() for image in row}
    if len(sizes) != 1:
        raise ValueError(f"sheet: the pictures have the sizes {shown(sorted(sizes))}, expected one")
    page, side = canvas(list(rows.values())), sizes.pop()[0] + GAP
    wide = SIZE[0] - 0.11 * max(map(len, rows)) - 0.3  # inches that the names leave
    high = min(wide * page.shape[0] / page.shape[1] + 0.9 + 0.35 * bool(len(columns)) + 0.35 * bool(under), SIZE[1])
    with lecture_style():
        figure, [axes] = panels(size=(SIZE[0], high))
        axes.imshow(page, interpolation="nearest")
        middles = lambda count: (GAP - 1 + side) / 2 + side * np.arange(count)
        axes.set_yticks(middles(len(rows)), list(rows))
        axes.set_xticks(middles(len(columns)), [str(c) for c in columns])
        axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(under)
        return state(figure, sentence, "")


def patches(image: np.ndarray, p: int) -> Figure:
    """A picture cut along its patches, and the patches one after another, as the model gets them."""
    side, gap = len(image) // p, 2
    tiles = image.reshape(side, p, side, p).swapaxes(1, 2).reshape(-1, p, p)
    half = -(-len(tiles) // 2)  # in two lines, or the back row sees nothing
    with lecture_style():
        figure, (left, right) = panels(2, (9, 3.6), width_ratios=(1, 2))
        left.imshow(image, cmap="gray_r", vmin=0, vmax=1)
        right.imshow(canvas([list(tiles[:half]), list(tiles[half:])], gap), interpolation="nearest")
        for i in range(len(tiles)):
            row, column = divmod(i, side)
            frame(left, p * column, p * row, p)
            row, column = divmod(i, half)
            x, y = gap + (p + gap) * column, gap + (p + gap) * row
            frame(right, x, y, p)
            how: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 13, "fontweight": "bold"}
            right.text(x + p / 2 - 0.5, y + p + gap / 2 - 0.5, str(i), color=VERMILLION, **how)
        heading(left, f"{len(image)} × {len(image)} pixels")
        heading(right, f"{len(tiles)} tokens of {p * p} numbers, row by row")
        for axes in (left, right):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        return state(figure, f"A picture is a sentence of {len(tiles)} patches", "")


def frame(axes: Axes, x: float, y: float, side: float) -> None:
    """A frame around the pixels from x and y on."""
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), side, side, fill=False, color=VERMILLION, linewidth=2))
