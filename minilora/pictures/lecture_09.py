"""The pictures of lecture 9: what limits a matrix product."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from .drawing import panels, state
from .style import BLUE, GREY, lecture_style


def roofline(intensity: Mapping[int, float], rate: Mapping[int, float], fast: float, peak: float) -> Figure:
    """Operations a second of y = x W^T for some numbers of rows, below the roof that memory and arithmetic make.

    intensity, rate: {rows: operations a byte, or a second}; fast: bytes a second; peak: operations a second.
    """
    with lecture_style():
        figure, [axes] = panels()
        ends = np.array(list(intensity.values()))
        span = np.geomspace(min(0.2 * peak / fast, ends.min() / 3), max(20 * peak / fast, ends.max() * 3), 200)
        floor = min(rate.values()) / 4 / 1e9
        axes.plot(span, np.minimum(peak, span * fast) / 1e9, color=GREY)
        for rows, x in intensity.items():
            y = rate[rows] / 1e9
            axes.plot([x, x], [floor, y], color=BLUE, linewidth=1, alpha=0.5)
            axes.plot(x, y, "o", color=BLUE, markersize=10)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            axes.text(x, floor * 1.1, f"{rows}", color=BLUE, fontweight="bold", ha="center", va="bottom", bbox=box)
        axes.text(ends.max() * 1.7, floor * 1.1, "rows", color=BLUE, fontweight="bold", ha="left", va="bottom")
        axes.text(span[0], 1.3 * peak / 1e9, "memory limits", color=GREY, ha="left", va="bottom")
        axes.text(span[-1], 1.3 * peak / 1e9, "arithmetic limits", color=GREY, ha="right", va="bottom")
        axes.set(xscale="log", yscale="log", xlabel="intensity (operations a byte)", ylabel="10⁹ operations a second")
        axes.set_ylim(floor, 4 * peak / 1e9)
        few, many = min(rate), max(rate)
        share = rate[few] / rate[many]
        words = f"{few} row{'s' * (few > 1)} at a time: {share:.0%} of the speed of {many}"
        return state(
            figure, words, "Measured here: y = x Wᵀ. A point below the roof does less than memory or core could."
        )
