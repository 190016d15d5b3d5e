"""The pictures of lecture 9: what fits on a card, and what limits a matrix product."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .drawing import note, panels, state
from .style import BLUE, GREY, ORANGE, SKY, VERMILLION, lecture_style

PARTS = {"weights": GREY, "gradients": ORANGE, "optimizer_state": VERMILLION, "activations": SKY}
CARD, TOP = 24, 60  # GB: the card, and the end of the axis


def card(fits: Mapping[tuple[str, str], Mapping[str, int]]) -> Figure:
    """Bars of the memory of a training step by part, methods of a model side by side, beside a card of 24 GB.

    fits: {(model, method): {part: bytes}}, as many methods for each model, the first of them full fine-tuning
    """
    models, methods = (list(dict.fromkeys(key[i] for key in fits)) for i in (0, 1))
    step, sums = len(methods) + 1, {key: sum(memory.values()) / 1e9 for key, memory in fits.items()}
    with lecture_style():
        figure, [axes] = panels()
        for i, (key, memory) in enumerate(fits.items()):
            place, bottom = i + i // len(methods), 0.0  # a gap between models
            for part, hue in PARTS.items():
                axes.bar(place, memory[part] / 1e9, 0.85, bottom, color=hue, edgecolor="white", linewidth=0.5)
                bottom += memory[part] / 1e9
            if bottom <= TOP - 4:
                note(axes, f"{bottom:,.0f}", (place, bottom), (0, 3), ha="center", fontsize=13, fontweight="bold")
            else:
                how: dict[str, Any] = {
                    "rotation": 90,
                    "ha": "center",
                    "va": "top",
                    "color": "white",
                    "fontweight": "bold",
                }
                axes.text(place, TOP - 1, f"{sums[key]:,.0f} →", **how)
        axes.axhline(CARD, color="black", linestyle=(0, (4, 3)), linewidth=2)
        axes.set(ylim=(0, TOP), ylabel="memory of a step (GB)")
        places = [step * i + j for i in range(len(models)) for j in range(len(methods))]
        axes.set_xticks(places, methods * len(models), rotation=90, fontsize=13)
        for i, name in enumerate(models):
            axes.text(step * i + (step - 2) / 2, TOP + 2, name, ha="center", fontsize=14, fontweight="bold")
        for i, (part, hue) in enumerate(PARTS.items()):
            words = part.replace("optimizer_state", "optimiser")
            axes.text(-0.4, TOP - 5 - 4 * i, f"■ {words}", color=hue, fontsize=13)
        small = [" with ".join(key) for key, total in sums.items() if total < CARD]
        return state(
            figure, f"{len(small)} of {len(sums)} fit on {CARD} GB (dashed)", f"Those that fit: {', '.join(small)}."
        )


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
