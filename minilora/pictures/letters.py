"""Fonts taught by LoRA, from the studies' records: the letters themselves, how many glyphs it takes, in which blocks
the font lives, and what becomes of adapters that are mixed."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ..studies.findings import Records, Row, clearly, listed, ordered, percent, rows_of, seeds_note, where
from ..studies.style import pictures_of
from .drawing import LOOKS, NAMES, heading, label_ends, panels, state
from .style import GREY, lecture_style

SHARES = ("character", "font")
LEVELS = {"base": "base", "true": "font itself"}  # drawn as levels: before LoRA, and what the judges say of true glyphs


def style_letters(records: Records) -> Figure:
    """Characters that were not shown, of each font: as the base draws them, as LoRA does, and as the font has them."""
    rows = [row for row in rows_of(records, "style") if row["name"] == "pictures"]
    taught = where(rows_of(records, "style"), name="lora", rank=4, examples=26)[0]
    with lecture_style():
        figure, (axes,) = panels()
        sheet = np.concatenate([_three(row) for row in rows])
        axes.imshow(1 - sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        side = pictures_of(rows[0], "true").shape[1]
        axes.set_yticks([side * (i + 0.5) + i // 3 * side / 2 - 0.5 for i in range(3 * len(rows))],
                        ["base", "LoRA", "font"] * len(rows))  # fmt: skip
        axes.set_xticks([])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        said = f"{percent(taught['character'])} are read right, {percent(taught['font'])} are in the font"
        lesson = f"The fonts: {listed([row['font'] for row in rows])}."
        return state(figure, f"Letters that LoRA never saw in a font: {said}{seeds_note([taught])}", lesson)


def _three(row: Row) -> np.ndarray:
    """Three lines of pictures, half a line of white under them."""
    lines = [np.concatenate(pictures_of(row, which), axis=1) for which in ("before", "after", "true")]
    return np.concatenate([*lines, np.zeros((len(lines[0]) // 2, lines[0].shape[1]))])


def style(records: Records) -> Figure:
    """The share of right letters, and of the right font, against how many characters were shown; ranks beside."""
    rows = [row for row in rows_of(records, "style") if row["name"] in NAMES]
    levels = {words: where(rows_of(records, "style"), name=name)[0] for name, words in LEVELS.items()}
    with lecture_style():
        figure, both = panels(2)
        for axes, share in zip(both, SHARES, strict=True):
            axes.set_ylim(-0.03, 1.08)
            ticks = sorted({row["examples"] for row in rows})
            ends = [(ticks[-1], level[share], words, GREY) for words, level in levels.items()]
            for end, height, _, colour in ends:
                axes.plot([ticks[0], end], [height] * 2, color=colour, linestyle=(0, (2, 2)), linewidth=2)
            for method in NAMES:
                line = [row for row in ordered(rows, "examples", method=method) if method == "full" or row["rank"] == 4]
                x, y = [row["examples"] for row in line], [row[share] for row in line]
                spread = [row[f"{share}_spread"] for row in line]
                axes.errorbar(x, y, yerr=spread, capsize=5, markersize=9, **LOOKS[method])
                ends.append((x[-1], y[-1], "LoRA" if method == "lora" else "full", LOOKS[method]["color"]))
            axes.set_xscale("log")
            axes.set_xticks(ticks, list(map(str, ticks)))
            axes.minorticks_off()
            axes.set_xlim(ticks[0] * 0.85, ticks[-1] * 2.4)
            axes.yaxis.set_major_formatter(lambda value, _: percent(value))
            axes.set_xlabel("characters shown")
            label_ends(axes, ends)
            heading(axes, {"character": "right letter", "font": "right font"}[share])
        long = [row for row in rows_of(records, "style") if row["name"] == "long"]
        return state(figure, _amount(rows) + seeds_note(rows), _ranks(rows) + "".join(map(_longer, long)))


def _amount(rows: Sequence[Row]) -> str:
    """What LoRA comes to on 26 characters, and whether full fine-tuning comes to another share of both."""
    lora, full = where(rows, method="lora", examples=26, rank=4)[0], where(rows, method="full", examples=26)[0]
    sign = clearly(lora, full, "both")
    beside = ("less than full", "no clear difference to full", "more than full")[1 + sign]
    share = f"{percent(lora['character'])} of new letters right, {percent(lora['font'])} in the font"
    return f"LoRA on 26 glyphs: {share}; {beside}"


def _ranks(rows: Sequence[Row]) -> str:
    """Both shares at every rank, and what was asked for."""
    line = ordered(rows, "rank", method="lora", examples=26)
    told = "; ".join(f"r = {row['rank']}: {percent(row['character'])} and {percent(row['font'])}" for row in line)
    best = max(line, key=lambda row: row["both"])
    apart = [row["rank"] for row in line if clearly(row, best, "both")]
    verdict = f"rank {best['rank']} beats {', '.join(map(str, apart))}" if apart else "no clear difference by rank"
    return f"Letters and font by rank, on 26 characters: {told}; {verdict}."


def _longer(row: Row) -> str:
    """What more steps come to."""
    return f" In {row['steps']} steps, rank {row['rank']}: {percent(row['character'])} and {percent(row['font'])}."
