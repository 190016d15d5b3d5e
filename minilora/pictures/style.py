"""Pictures that a class reads from the back row: one style, titles that state what the data show, no legends.

`lecture_style` sets it, `new_figure` begins a picture, `save` writes it as PNG and SVG, the same bytes from the same
numbers. pyplot is never touched, so a notebook's own figures and backend stay as they are.
"""

import contextlib
import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ..nn.files import write_beside

SIZE = (8.0, 5.0)  # inches
TITLE_WIDTH = 52  # characters a line
# Okabe & Ito 2008, "Color universal design": colours that remain apart for colour-blind eyes.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
GREY = "#595959"
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same letters
    "font.size": 15,
    "axes.titlesize": 17,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 14,
    "axes.labelsize": 15,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 1.2,
    "xtick.labelsize": 14,
    "ytick.labelsize": 14,
    "lines.linewidth": 3,
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "svg.hashsalt": "minilora",  # without it the ids in an SVG are drawn at random
    "svg.fonttype": "path",
}
METADATA: dict[str, dict] = {"png": {"Software": "minilora"}, "svg": {"Creator": "minilora", "Date": None}}


@contextlib.contextmanager
def lecture_style() -> Iterator[None]:
    """Inside the block matplotlib draws in this style, whatever the user's own settings; after it, in theirs again."""
    with style.context(["default", STYLE]):
        yield


def save(figure: Figure, stem: str | Path) -> list[Path]:
    """Write stem.png and stem.svg, the same bytes each time: -> their paths. Raises OSError when it cannot."""
    paths = []
    with lecture_style():
        for kind, facts in METADATA.items():
            drawn = io.BytesIO()
            figure.savefig(drawn, format=kind, metadata=facts)
            paths.append(write_beside(f"{stem}.{kind}", lambda file, d=drawn: file.write(d.getvalue())))  # type: ignore[misc]
    return paths


class Picture(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        drawn = io.BytesIO()
        with lecture_style():
            self.savefig(drawn, format="png", dpi=self.dpi, metadata=METADATA["png"])
        return drawn.getvalue()


def new_figure() -> Figure:
    """An empty figure that belongs to no window."""
    figure = Picture(figsize=SIZE, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    FigureCanvasAgg(figure)
    return figure


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Heights for labels that would like to stand at these, moved as little as keeps them `gap` apart."""
    order = np.argsort(heights)
    placed = np.array(heights, dtype=float)
    for _ in range(100 * len(placed)):
        moved = False
        for low, high in itertools.pairwise(order):
            short = gap - (placed[high] - placed[low])
            if short > 1e-9:
                placed[low], placed[high], moved = placed[low] - short / 2, placed[high] + short / 2, True
        if not moved:
            break
    return list(placed)


def written_ticks(axes: Axes, values: Sequence[float], words: str = "{:g}") -> None:
    """A log axis with ticks at these values only, written out."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(values)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: words.format(x)))


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... up to the last that is not above `most`."""
    return [2**k for k in range(int(np.log2(most)) + 1)]
