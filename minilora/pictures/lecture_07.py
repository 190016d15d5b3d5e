"""What lecture 7 draws and sets in tables: one matrix at every rank, the operations of a step, the paper's rows."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ..analysis import counting
from .drawing import corner, note, panels, state
from .style import BLUE, VERMILLION, lecture_style, written_ticks
from .tables import Table
from .tables import table as table  # which the lecture calls, too


def on_a_slide(figure: Figure) -> Figure:
    """The same figure as small as a slide wants it."""
    figure.set_dpi(90)
    return figure


def paper_table(number: int) -> Table:
    """Table 2, 3 or 4 of the paper: the formula's count in millions, the printed one, and whether they agree."""
    rows = [
        [r["row"].replace("^", r"\^").replace("_", r"\_"), f"{r['formula'] / 1e6:,.2f}", r["printed"],
         "yes" if r["agrees"] else "**no**", r["note"]]
        for r in counting.paper_rows(number)
    ]  # fmt: skip
    return table([f"table {number}", "formula (millions)", "printed", "agrees", "note"], rows)


def one_matrix(d: int, rank: int) -> Figure:
    """The numbers that LoRA trains for a square matrix at each rank, beside the matrix's own."""
    ranks = np.unique(np.geomspace(1, d, 25).astype(int))
    with lecture_style():
        figure, [axes] = panels()
        axes.plot(ranks, ranks * 2 * d, color=BLUE)
        axes.axhline(d * d, color=VERMILLION, linestyle=(0, (6, 2)))
        note(axes, f"W itself: {d * d:,}", (1, d * d), (0, 8), color=VERMILLION, fontweight="bold")
        axes.plot(rank, rank * 2 * d, "o", color=BLUE, markersize=11)
        note(axes, f"rank {rank}: {rank * 2 * d:,}", (rank, rank * 2 * d), (12, -12), color=BLUE, fontweight="bold")
        half = f"rank {d // 2}: nothing saved"
        note(axes, half, (d / 2, d * d), (0, 8), ha="right", color=BLUE)
        axes.set(yscale="log", ylim=(d, 6 * d * d), xlabel="rank r", ylabel="numbers to train")
        written_ticks(axes, [1, 4, 16, 64, 256, d])
        state(figure, f"A {d} × {d} matrix: {d / (2 * rank):g} times fewer at rank {rank}", "")
    return on_a_slide(figure)


def passes(found: Mapping[tuple[str, str], float], models: Sequence[str]) -> Figure:
    """The operations of a training step in forward passes: full fine-tuning and LoRA, side by side for each model.

    found: {(model, "full" or "lora"): forward passes}
    """
    with lecture_style():
        figure, [axes] = panels(1, (8, 4.4))
        for place, m in enumerate(models):
            for shift, method, colour, hatch in ((-0.2, "full", VERMILLION, "//"), (0.2, "lora", BLUE, "")):
                height = found[m, method]
                axes.bar(place + shift, height, 0.38, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
                note(axes, f"{height:.2f}", (place + shift, height), (0, 3), ha="center", fontsize=12)
        axes.set_xticks(range(len(models)), models)
        axes.tick_params(axis="x", labelsize=12)
        axes.set(ylabel="operations of a step,\nin forward passes", ylim=(0, 4.4), yticks=[0, 1, 2, 3])
        corner(axes, [("▨ full fine-tuning", VERMILLION), ("■ LoRA", BLUE)])
        saved = 1 - max(found[m, "lora"] / found[m, "full"] for m in models)
        words = "not quite a third" if saved < 1 / 3 and saved > 0.2 else f"{saved:.0%}"
        state(figure, f"LoRA saves {words} of a step's operations", "")
    return on_a_slide(figure)
