"""The parts that the study's figures share: titles and labels, lines with error bars, bars, and limits that compare.

Error bars reach from the least to the most over the seeds, half that distance to each side of the mean.
"""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ..studies.findings import Row, joined
from .style import BLUE, GREEN, GREY, SIZE, TITLE_WIDTH, VERMILLION, apart, new_figure

NAMES = {"lora": "LoRA", "full": "full fine-tuning"}
SHORT = {"lora": "LoRA", "full": "full", "random": "random"}
LOOKS: dict[str, dict[str, Any]] = {  # colour, marker and dashes differ, so that the lines part in grey, too
    "lora": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "full": {"color": VERMILLION, "marker": "s", "linestyle": (0, (6, 2))},
    "random": {"color": GREY, "marker": "^", "linestyle": (0, (2, 2))},
}
THIRD: dict[str, Any] = {"color": GREEN, "marker": "D", "linestyle": (0, (3, 1, 1, 1))}
LOSS = "validation loss\n(nats per character)"

# --- a figure and its words ------------------------------------------------------------------------------------------


def panels(
    count: int = 1, size: tuple[float, float] = SIZE, dpi: int | None = None, **options: Any
) -> tuple[Figure, list[Axes]]:
    """An empty figure with so many panels side by side.   size: in inches; dpi: in a notebook, else the style's"""
    figure = new_figure()
    figure.set(size_inches=size, dpi=dpi or figure.dpi)
    return figure, list(figure.subplots(1, count, squeeze=False, **options)[0])


def state(figure: Figure, sentence: str, lesson: str) -> Figure:
    """The conclusion as the figure's title, and what the class should take from it as its label."""
    sentence = sentence[0].upper() + sentence[1:]
    words = textwrap.fill(sentence, TITLE_WIDTH, break_on_hyphens=False)
    figure.suptitle(words, x=0.02, ha="left", fontsize=17, fontweight="bold")
    figure.set_label(" ".join(f"{sentence}. {lesson}".split()))
    return figure


def in_two_lines(sentences: Iterable[str]) -> str:
    """The first of some ways to say a title that takes two lines at most; else the last, the shortest."""
    for sentence in sentences:
        if len(textwrap.wrap(sentence, TITLE_WIDTH, break_on_hyphens=False)) <= 2:
            break
    return sentence


def of_texts(findings: Mapping[str, str], head: str = "", end: str = "") -> str:
    """What was found on each text as a title: the texts' names in full, or in brief where that needs a third line."""
    names: tuple[Callable[[str], str], ...] = (str, brief)
    return in_two_lines(head + joined({name(text): said for text, said in findings.items()}) + end for name in names)


def brief(text: str) -> str:
    """A text's name where there is little room: "python-docs" -> "docs\""""
    return text.rpartition("-")[2]


def heading(axes: Axes, words: str, colour: str = "black") -> None:
    """What a panel shows, above it."""
    axes.set_title(words, fontsize=15, fontweight="normal", color=colour, pad=8)


def note(axes: Axes, words: str, at: tuple[float, float], shift: tuple[float, float], **how: Any) -> None:
    """Words beside a point.   at: in the units of the data; shift: from there, in points"""
    axes.annotate(words, at, shift, textcoords="offset points", **how)


def corner(axes: Axes, lines: Sequence[tuple[str, str]], x: float = 0.98, y: float = 0.99) -> None:
    """Words in their colours, one under the other, in the upper right corner.   lines: (words, colour)"""
    for place, (words, colour) in enumerate(lines):
        how: dict[str, Any] = {"xycoords": "axes fraction", "ha": "right", "va": "top", "fontweight": "bold"}
        note(axes, words, (x, y), (0, -21 * place), color=colour, **how)


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], gap: float = 0.11) -> None:
    """Words at the right ends of lines, inside the limits and moved apart where they would touch.

    ends: (x, y, words, colour)
    """
    low, high = axes.get_ylim()
    heights = apart([min(y, high) for _, y, _, _ in ends], gap * (high - low))
    for (x, _, words, colour), height in zip(ends, heights, strict=True):
        how: dict[str, Any] = {"fontweight": "bold", "fontsize": 14, "annotation_clip": False, "va": "center"}
        note(axes, words, (x, height), (9, 0), color=colour, **how)


# --- lines -----------------------------------------------------------------------------------------------------------


def line(axes: Axes, rows: Sequence[Row], key: str, look: dict[str, Any]) -> None:
    """The loss against the number under a key, with its spread where the point is in the picture (see `fit`)."""
    top = axes.get_ylim()[1]
    spread = [row["loss_spread"] if row["loss"] <= top else 0.0 for row in rows]
    x, y = [row[key] for row in rows], [row["loss"] for row in rows]
    axes.errorbar(x, y, yerr=spread, capsize=5, capthick=2, elinewidth=2, markersize=9, **look)


def fit(axes: Axes, rows: Sequence[Row]) -> None:
    """Limits around the losses that can be compared; a run that went astray is above them. To be called before `line`.

    Raises ValueError when no loss is finite.
    """
    known = [row for row in rows if np.isfinite(row["loss"])]
    if not known:
        raise ValueError("figures: every loss in these records is not finite: no run was stable")
    low = min(row["loss"] - row["loss_spread"] for row in known)
    losses = [row["loss"] for row in known]
    top = min(max(losses), low + 8 * (float(np.median(losses)) - low) + 1e-9)
    within = [row["loss"] + row["loss_spread"] for row in rows if row["loss"] <= top]
    high = min(max(within), low + 1.3 * (top - low)) if within else top
    room = 0.08 * (high - low) or 0.1
    axes.set_ylim(low - room, high + room)


def name_astray(axes: Axes, rows: Sequence[Row], key: str) -> None:
    """The losses that are above the picture, written at its upper edge."""
    top = axes.get_ylim()[1]
    for row in rows:
        if not row["loss"] <= top:
            words = f"↑ {row['loss']:.1f}" if np.isfinite(row["loss"]) else "↑ ∞"
            axes.annotate(words, (row[key], top), ha="center", va="bottom", fontsize=14, annotation_clip=False)


def learning_rates(axes: Axes) -> None:
    """A log axis of learning rates."""
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("learning rate")


# --- bars ------------------------------------------------------------------------------------------------------------


def bar(
    axes: Axes, place: float, value: float, spread: float, colour: str, hatch: str = "", width: float = 0.7
) -> None:
    """An upright bar with its spread and its value on top."""
    axes.bar(place, value, width, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
    axes.errorbar(place, value, yerr=spread, color="black", capsize=6, capthick=2, elinewidth=2)
    words = f"{value:,.0f}" if value >= 99.5 or value == 0 else f"{value:#.3g}"
    note(axes, words, (place, value + spread), (0, 5), ha="center", fontsize=14)


def range_bar(axes: Axes, place: float, many: Sequence[float], colour: str, hatch: str, width: float = 0.7) -> None:
    """A bar as high as the mean, with a line from the least to the most."""
    mean = float(np.mean(many))
    axes.bar(place, mean, width, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
    reach = [[max(mean - min(many), 0)], [max(max(many) - mean, 0)]]  # rounding may put a mean beyond its numbers
    axes.errorbar(place, mean, yerr=reach, color="black", capsize=6, capthick=2, elinewidth=2)
