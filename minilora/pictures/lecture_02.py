"""The pictures of lecture 2: how wrong a numerical derivative is at each step, and how right the primitives are."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from .drawing import note, panels, state
from .style import BLUE, COLOURS, GREEN, GREY, VERMILLION, lecture_style

INCH = 100  # dots: a slide holds 800 by 500 beside its code
WIDTHS = (8, 4.5, 2)  # of the lines, the thinnest on top: where two are one, both are seen


def learned(losses: Sequence[float], x: np.ndarray, t: np.ndarray, found: np.ndarray) -> Figure:
    """The loss of the small network while it trains, and the function it learned beside its targets.

    x, t, found: (n, 1)
    """
    with lecture_style():
        figure, axes = panels(2, (9, 3.5), INCH)
        axes[0].plot(losses, color=BLUE)
        axes[0].set(yscale="log", xlabel="step", ylabel="mean squared error")
        axes[0].set_title(f"From {losses[0]:.2f} to {losses[-1]:.3f}", fontsize=15)
        axes[1].plot(x, t, "o", color=GREY, markersize=6)
        axes[1].plot(x, found, color=VERMILLION)
        axes[1].set(xlabel="x", ylim=(-1.6, 1.6))
        axes[1].set_title("The dots, and what it learned", fontsize=15)
    return figure


def error_curves(steps: np.ndarray, errors: Mapping[str, np.ndarray]) -> Figure:
    """Relative errors of derivatives against the step h, on log axes.

    steps: (n,); errors: {"forward difference": (n,), "central difference": (n,), "complex step": (n,)}
    """
    with lecture_style():
        figure, [axes] = panels(dpi=INCH)
        for (name, error), width, colour in zip(errors.items(), WIDTHS, (BLUE, VERMILLION, GREEN), strict=True):
            axes.plot(steps, error, color=colour, linewidth=width, solid_capstyle="round")
            least = int(np.argmin(error))
            at, shift = (steps[least], error[least]), (-20, -12)
            if name.startswith("complex"):  # flat, and right to the last digit: its name stands on it
                at, shift = (steps.min(), error[-1]), (170, 22)
            note(axes, name, at, shift, color=colour, fontweight="bold", ha="right", va="center")
        axes.text(3e-11, 0.05, "rounding: slope −1", ha="left", color=GREY)
        axes.text(1, 1e-11, "truncation:\nslopes 1, 2, 2", ha="right", va="top", color=GREY)
        axes.set(xscale="log", yscale="log", xlabel="step h", ylabel="relative error", ylim=(2e-17, 10))
        lesson = "Where two lines are one, the thinner lies on the thicker."
        return state(figure, "Differences must choose between two errors, the complex step need not", lesson)


def primitives(errors: Mapping[str, Mapping[str, float]]) -> Figure:
    """Every primitive's relative error as a dot, a pile for each quarter of a decade, a colour for each method.

    errors: {method: {primitive: error}}. The one with the largest error is named.
    """
    with lecture_style():
        figure, [axes] = panels(1, (8, 4.4), INCH)
        for (method, found), colour in zip(errors.items(), COLOURS, strict=False):
            place = np.round(4 * np.log10(np.sort(list(found.values())))) / 4
            height = np.array([np.sum(place[:i] == p) for i, p in enumerate(place)])
            axes.plot(10.0**place, height, "o", color=colour, markersize=9)
            worst = max(found, key=found.__getitem__)
            words = f"{method.replace('-', ' ')}\nlargest: {found[worst]:.0e},\n{worst}"
            axes.text(10.0 ** place.mean(), max(height) + 1, words, color=colour, ha="center", va="bottom")
        axes.set(
            xscale="log", xlim=(1e-19, 1e-7), yticks=[], ylim=(-1, axes.get_ylim()[1] + 9), xlabel="relative error"
        )
        axes.set_xticks(10.0 ** np.arange(-18, -6, 2))
        axes.spines["left"].set_visible(False)
        count = len(next(iter(errors.values())))
        return state(figure, f"All {count} primitives, a dot for each, by both methods", "")
