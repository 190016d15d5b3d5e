"""The benchmark as a figure: our training step over each peer's, a bar for each size and peer."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ..pictures.drawing import heading, note, panels, state
from ..pictures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION, lecture_style
from .rows import ALLREDUCE, EAGER, EVERY, FULL, LORA, PRODUCTS, SENT

LOOKS = {  # colour and hatch differ, so that the bars part in grey, too
    EAGER: (VERMILLION, ""),
    "PyTorch compiled": (ORANGE, "//"),
    "JAX compiled": (GREEN, "\\\\"),
    "HIPS autograd": (PURPLE, ".."),
    PRODUCTS: (GREY, "xx"),
}
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10)


def ratios(record: Mapping[str, Any]) -> Figure:
    """Bars from 1, where both take as long, to the ratio: to the left we are faster. A panel for each method.

    Raises ValueError for a record without training steps beside a peer.
    """
    rows = [r for r in record["rows"] if r["what"] in (LORA, FULL) and r["against"] in LOOKS]
    if not rows:
        raise ValueError("bench: there is no training step beside a peer in this record to draw")
    kinds = [what for what in (LORA, FULL) if any(r["what"] == what for r in rows)]
    places: list[tuple[str, str]] = []  # (size, peer) of each line of the picture; a size's name has a line of its own
    for size in [size for size in EVERY if any(r["size"] == size for r in rows)]:
        there = [peer for peer in LOOKS if any((r["size"], r["against"]) == (size, peer) for r in rows)]
        places += [(size, ""), *((size, peer) for peer in there)]
    with lecture_style():
        figure, axes = panels(len(kinds), sharey=True)
        figure.set_size_inches(10, 2.2 + 0.3 * len(places))
        for what, ax in zip(kinds, axes, strict=True):
            heading(ax, what)
            _ratio_axis(ax, [q for r in rows for q in r["quartiles"]])
            for r in rows:
                if r["what"] == what:
                    _bar(ax, r, places.index((r["size"], r["against"])))
        _name_lines(axes[0], places)
        return state(figure, sentence(rows), lesson(record))


def _bar(axes: Axes, r: Mapping[str, Any], place: int) -> None:
    colour, hatch = LOOKS[r["against"]]
    ratio, (low, high) = r["ratio"], r["quartiles"]
    axes.barh(place, ratio - 1, 0.75, left=1, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
    reach = [[max(ratio - low, 0)], [max(high - ratio, 0)]]
    axes.errorbar(ratio, place, xerr=reach, color="black", capsize=3, elinewidth=1.5)
    side = 1 if ratio >= 1 else -1
    how: dict[str, Any] = {"ha": "left" if side > 0 else "right", "va": "center", "fontsize": 14}
    note(axes, f"{ratio:.2f}", (max(ratio, high) if side > 0 else min(ratio, low),
         place), (6 * side, 0), **how)  # fmt: skip


def _ratio_axis(axes: Axes, values: Sequence[float]) -> None:
    """A log axis with room for the numbers beside the bars, and a line at 1."""
    low, high = min(0.7, *values) / 2.2, max(1.4, *values) * 2.2
    axes.set(xscale="log", xlim=(low, high), xlabel="our time over theirs")
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in TICKS if low < tick < high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.axvline(1, color=BLUE, linewidth=2, zorder=3)


def _name_lines(axes: Axes, places: Sequence[tuple[str, str]]) -> None:
    axes.set_yticks(range(len(places)), [peer or size for size, peer in places])
    axes.set_ylim(len(places) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    for (_, peer), words in zip(places, axes.get_yticklabels(), strict=True):
        words.set_fontweight("normal" if peer else "bold")


def sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the bars say about PyTorch, or about the limit where PyTorch is not there."""
    beside = EAGER if any(r["against"] == EAGER for r in rows) else rows[0]["against"]
    of = [r["ratio"] for r in rows if r["against"] == beside and r["what"] == LORA]
    what = "a LoRA step" if of else "a full step"
    of = of or [r["ratio"] for r in rows if r["against"] == beside]
    least, most = f"{min(of):.2f}", f"{max(of):.2f}"
    span = least if least == most else f"{least} to {most}"
    who = {EAGER: "PyTorch's time", PRODUCTS: "the time of its matrix products"}.get(beside, f"the time of {beside}")
    return f"{what} takes {span} times {who}"


def lesson(record: Mapping[str, Any]) -> str:
    """Where and how it was measured."""
    return (
        f"{place(record)}; lines: the middle half. "
        "Matrix products: the step's floating-point operations at the rate of a large product."
    )


def place(record: Mapping[str, Any]) -> str:
    """How often, and on what machine."""
    machine, turns = record["machine"], max(r["turns"] for r in record["rows"])
    return (
        f"Medians of {turns} turns in one run on {machine.get('gpu', machine['processor'])}, "
        f"{machine['threads']} threads"
    )


def messages(record: Mapping[str, Any]) -> Figure:
    """Seconds of a sum over processes against its bytes, measured and fitted, and what a step of each method sends.

    Raises ValueError for a record without such messages.
    """
    rows = [r["details"] for r in record["rows"] if r["what"] == ALLREDUCE]
    if not rows:
        raise ValueError("bench: there is no exchange between processes in this record to draw")
    looks = itertools.cycle(((GREY, "o"), (ORANGE, "D")))
    with lecture_style():
        figure, [axes] = panels()
        for told, (colour, marker) in zip(rows, looks, strict=False):
            n = np.asarray(told["sizes"], float)
            axes.plot(n, told["seconds"], marker, color=colour, markersize=10)
            axes.plot(n, told["alpha"] + told["beta"] * n, color=colour)
            words, ink = f"{told['processes']} processes", "#8A5F00" if colour == ORANGE else colour
            note(axes, words, (n[0], told["alpha"]), (8, 10), color=ink, fontweight="bold")
        sent = next(r for r in record["rows"] if r["what"] == SENT)
        for at, words, colour in ((sent["ours"], "LoRA", BLUE), (sent["theirs"], "full", VERMILLION)):
            axes.axvline(at, color=colour, linestyle=(0, (4, 3)))
            axes.text(at, 0.03, f" {words}", color=colour, fontweight="bold", transform=axes.get_xaxis_transform())
        axes.set(xscale="log", yscale="log", xlabel="bytes of each process", ylabel="seconds of their sum")
        axes.xaxis.set_minor_locator(NullLocator())
        words = f"a LoRA step sends {sent['theirs'] / sent['ours']:,.0f} times fewer bytes"
        fits = [f"{r['processes']} processes: {1e6 * r['alpha']:,.1f} us and {1e-9 / r['beta']:.2g} GB/s" for r in rows]
        return state(figure, words, f"Lines: alpha + beta bytes, fitted. {'; '.join(fits)}. {place(record)}")
