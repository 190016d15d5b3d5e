"""Fonts taught by LoRA, from the studies' records: the letters themselves, how many glyphs it takes, in which blocks
the font lives, and what becomes of adapters that are mixed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..studies.findings import Records, Row, clearly, listed, ordered, percent, rows_of, seeds_note, where
from ..studies.style import pictures_of
from .drawing import LOOKS, NAMES, bar, heading, label_ends, panels, state
from .style import BLUE, GREEN, GREY, PURPLE, VERMILLION, lecture_style

SHARES = ("character", "font")
LEVELS = {"base": "base", "true": "font itself"}  # drawn as levels: before LoRA, and what the judges say of true glyphs


def style_letters(records: Records) -> Figure:
    """Characters that were not shown, of each font: as the base draws them, as LoRA does, and as the font has them."""
    rows = [row for row in rows_of(records, "style") if row["name"] == "pictures"]
    lora = where(rows_of(records, "style"), method="lora", examples=26)
    taught = next((row for row in lora if row["name"] == "long"), lora[0])
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
        how = f"LoRA of rank {taught['rank']}, {taught['steps']} steps of {taught['batch_size']}"
        lesson = f"{how}. The fonts: {listed([row['font'] for row in rows])}."
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
        long = [row for row in rows_of(records, "style") if row["name"] == "long"]
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
            for place, row in zip((0.94, 1.06), long, strict=False):  # side by side
                look = LOOKS[row["method"]] | {"markerfacecolor": "white"}
                spread = row[f"{share}_spread"]
                axes.errorbar(26 * place, row[share], yerr=spread, capsize=5, markersize=9, **look)
            axes.set_xscale("log")
            axes.set_xticks(ticks, list(map(str, ticks)))
            axes.minorticks_off()
            axes.set_xlim(ticks[0] * 0.85, ticks[-1] * 2.4)
            axes.yaxis.set_major_formatter(lambda value, _: percent(value))
            axes.set_xlabel("characters shown")
            label_ends(axes, ends)
            heading(axes, {"character": "right letter", "font": "right font"}[share])
        plain = [row for row in rows_of(records, "style") if row["name"] == "not led away"]
        return state(figure, _amount(rows, long) + seeds_note(rows), _ranks(rows) + _longer(long, plain))


def _amount(rows: Sequence[Row], long: Sequence[Row]) -> str:
    """What LoRA comes to on 26 characters, taught for long where it was, and whether full comes to more of both."""
    lora, full = where(rows, method="lora", examples=26, rank=4)[0], where(rows, method="full", examples=26)[0]
    lora, full = where(long, method="lora")[0] if long else lora, where(long, method="full")[0] if long else full
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


def _longer(long: Sequence[Row], plain: Sequence[Row]) -> str:
    """What more steps on more pictures come to, and the same adapters where nothing is led away from the base."""
    if not long:
        return ""
    names = [f"LoRA of rank {row['rank']}" if row["method"] == "lora" else "full" for row in long]
    told = "; ".join(
        f"{name}: {percent(row['character'])} and {percent(row['font'])}" for name, row in zip(names, long, strict=True)
    )
    told = f" Hollow, in {long[0]['steps']} steps of {long[0]['batch_size']}: {told}."
    shares = [f"{percent(row['character'])} and {percent(row['font'])}" for row in plain]
    return told + "".join(f" The same LoRA, drawn with guidance alone: {share}." for share in shares)


def style_blocks(records: Records) -> Figure:
    """LoRA in every two blocks of the model, on the diagonal in one alone: shares of right letters, and of the font."""
    rows = rows_of(records, "style-blocks", "blocks", "each", *SHARES, *(f"{share}_spread" for share in SHARES))
    everything = max(rows, key=lambda row: len(row["blocks"]))
    with lecture_style():
        figure, both = panels(2)
        for axes, share in zip(both, SHARES, strict=True):
            _table(axes, rows, everything, share)
            heading(axes, {"character": "right letter, %", "font": "right font, %"}[share])
        return state(figure, _where_it_lives(rows, everything) + seeds_note(rows), _beside(rows, everything))


def _table(axes: Axes, rows: Sequence[Row], everything: Row, share: str) -> None:
    """A share where two blocks' row and column cross; what all blocks and the base come to in the corner left free."""
    last = max(everything["blocks"])
    cells = {(max(row["blocks"]), min(row["blocks"])): row for row in _of_size(rows, 1) + _of_size(rows, 2)}
    corner = {"all": everything, "base": where(rows, blocks=[])[0]}
    cells |= {(place, last): row for place, row in enumerate(corner.values())}
    grid = np.full((last + 1, last + 1), np.nan)
    for at, row in cells.items():
        grid[at] = row[share]
        how: dict[str, Any] = {"ha": "center", "va": "center", "color": "white" if row[share] > 0.65 else "black"}
        axes.text(at[1], at[0], f"{100 * row[share]:.0f}", fontsize=17, **how)
    axes.imshow(np.ma.masked_invalid(grid), cmap="Blues", vmin=0, vmax=1)
    for place, words in enumerate(corner):
        axes.text(last - 0.65, place, words, ha="right", va="center", color=GREY, fontweight="bold")
    along: dict[str, Any] = {"rotation": -45, "ha": "center", "va": "center"}
    axes.text(last - 0.95, last - 2.05, "alone", color=GREY, fontweight="bold", **along)
    for ticks in (axes.set_xticks, axes.set_yticks):
        ticks(everything["blocks"])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("block")
    axes.set_ylabel("and block")


def _of_size(rows: Sequence[Row], count: int) -> list[Row]:
    """LoRA in so many blocks."""
    return [row for row in rows if len(row["blocks"]) == count]


def _where_it_lives(rows: Sequence[Row], everything: Row) -> str:
    """Whether a block, or a pair, is clearly above all others in the share of the right font; and the mean shares."""
    kinds = {words: _of_size(rows, count) for count, words in ((1, "block"), (2, "pair")) if _of_size(rows, count)}
    ahead = []
    for words, some in kinds.items():
        best = max(some, key=lambda row: row["font"])
        if all(clearly(best, row, "font") > 0 for row in some if row is not best):
            ahead.append(f"{words} {' + '.join(map(str, best['blocks']))}")
    nowhere = f"No {' and no '.join(kinds)} is clearly where style lives"
    first = f"Clearly ahead in style: {listed(ahead)}" if ahead else nowhere
    means = [percent(float(np.mean([row["font"] for row in some]))) for some in kinds.values()]
    shares = [f"{share} by {number}" for share, number in zip(means, ("one", "two"), strict=False)]
    shares.append(f"{percent(everything['font'])} by all")
    return f"{first}: in the font {listed(shares)}"


def _beside(rows: Sequence[Row], everything: Row) -> str:
    """All blocks and none; and whether style and content part: a block that teaches the font and harms the letters."""
    base, single = where(rows, blocks=[])[0], _of_size(rows, 1)
    told = f"All blocks: {percent(everything['character'])} and {percent(everything['font'])}; the base: "
    told += f"{percent(base['character'])} and {percent(base['font'])}."
    spreads = [100 * row["font_spread"] for row in rows if row["blocks"]]
    told += f" The spread of the font is {min(spreads):.0f} to {max(spreads):.0f} points."
    harmed = [row["blocks"][0] for row in single if clearly(row, base, "character") < 0]
    moved = [row["blocks"][0] for row in single if clearly(row, base, "font") > 0]
    names = lambda blocks: ", ".join(map(str, blocks)) or "none"
    told += f" Alone, these clearly move the font: {names(moved)}; these clearly harm the letters: {names(harmed)}."
    return told + _together(rows, everything)


def _together(rows: Sequence[Row], everything: Row) -> str:
    """What two blocks gain in the font beside what each gains alone, beside all, and near each other or far apart."""
    each = {tuple(row["blocks"]): np.array(row["each"]["font"]) for row in rows}  # (seeds,)
    gain = {at: share - each[()] for at, share in each.items()}
    pairs = [at for at in gain if len(at) == 2]
    if not pairs:
        return ""
    two, most = np.array([gain[at] for at in pairs]), gain[tuple(everything["blocks"])]  # (pairs, seeds), (seeds,)
    alone = np.array([[gain[i,], gain[j,]] for i, j in pairs])  # (pairs, 2, seeds)
    better, summed = alone.max(axis=1), alone.sum(axis=1)
    near = np.array([j - i == 1 for i, j in pairs])
    gap = two[near].mean(axis=0) - two[~near].mean(axis=0)  # (seeds,)
    points = lambda gains: f"{100 * np.mean(gains):.0f}"
    always = lambda true: f"{true.all(axis=1).sum()}"
    verdict = "no clear difference" if gap.min() <= 0 <= gap.max() else "so whatever the seed"
    return (
        f" In points of the font over the base a pair gains {points(two)}, the better of its blocks alone "
        f"{points(better)}, and the gains of both add up to {points(summed)}. Whatever the seed, "
        f"{always(two > better)} of {len(pairs)} pairs gain more than their better block, {always(two < summed)} less "
        f"than that sum, {always(two < most)} less than all blocks. Neighbours gain {points(two[near])}, the other "
        f"pairs {points(two[~near])}: {verdict}."
    )


def style_strength(records: Records) -> Figure:
    """An adapter at several strengths, and the first blocks of one font's adapter with the rest of another's."""
    rows = rows_of(records, "style-mixed", "kind")
    strengths, blocks = (ordered(rows, key, kind=kind) for key, kind in (("strength", "strength"), ("first", "blocks")))
    with lecture_style():
        figure, (left, right) = panels(2)
        _shares(left, strengths, "strength", {"character": ("right letter", GREEN), "font": ("right font", BLUE)})
        left.set_xlabel("strength of the adapter")
        names = {"character": ("right letter", GREEN), "font": ("first font", BLUE), "other": ("second", VERMILLION)}
        _shares(right, blocks, "first", names)
        right.set_xlabel("blocks of the first font's")
        for axes, words in ((left, "one adapter, scaled"), (right, "two adapters, by blocks")):
            heading(axes, words)
        return state(figure, _slider(strengths) + seeds_note(strengths), _by_blocks(blocks))


def _shares(axes: Axes, rows: Sequence[Row], key: str, names: Mapping[str, tuple[str, str]]) -> None:
    """A line for each share, its name at its end."""
    x, ends = [row[key] for row in rows], []
    axes.set_ylim(-0.03, 1.08)
    for (share, (words, colour)), marker in zip(names.items(), "oDs", strict=False):
        y, spread = [row[share] for row in rows], [row[f"{share}_spread"] for row in rows]
        axes.errorbar(x, y, yerr=spread, capsize=4, markersize=8, marker=marker, color=colour)
        ends.append((x[-1], y[-1], words, colour))
    axes.set_xlim(x[0] - 0.05 * (x[-1] - x[0]), x[-1] + 0.75 * (x[-1] - x[0]))
    axes.set_xticks([value for value in x if value == int(value)][:: 2 if len(x) > 6 and key == "first" else 1])
    axes.yaxis.set_major_formatter(lambda value, _: percent(value))
    label_ends(axes, ends)


def _slider(rows: Sequence[Row]) -> str:
    """At which strength most pictures are in the font, and whether that is clearly more than at 1."""
    best, one = max(rows, key=lambda row: row["font"]), where(rows, strength=1.0)[0]
    first = f"{percent(rows[0]['font'])} at {rows[0]['strength']:g}, {percent(one['font'])} at 1"
    beyond = clearly(best, one, "font") > 0
    more = f"{percent(best['font'])} at {best['strength']:g}" if beyond else "not clearly more elsewhere"
    return f"In the font by the adapter's strength: {first}, {more}"


def _by_blocks(rows: Sequence[Row]) -> str:
    """Where the first font takes over from the second, and the letters half-way."""
    ahead = lambda row: row["font"] - row["other"] > row["font_spread"] + row["other_spread"]
    over = next((row["first"] for row in rows if ahead(row)), None)
    taken = f"The first font is clearly ahead from {over} blocks on" if over is not None else "The first is never ahead"
    middle = rows[len(rows) // 2]
    return (
        f"{taken}; with {middle['first']} blocks of the first, {percent(middle['character'])} of the letters are right."
    )


def style_two_fonts(records: Records) -> Figure:
    """A bold font's adapter, an italic one's, and what is made of the two: the share that the judge says is both."""
    rows = where(rows_of(records, "style-mixed", "kind"), kind="two fonts")
    names = {"bold": "bold\nalone", "italic": "italic\nalone", "mean": "mean", "sum": "sum", "taught": "taught\nboth"}
    with lecture_style():
        figure, both = panels(2, sharey=True)
        for axes, share in zip(both, ("font", "character"), strict=True):
            for place, name in enumerate(names):
                row = where(rows, name=name)[0]
                colour = {"mean": PURPLE, "sum": PURPLE, "taught": BLUE}.get(name, GREY)
                bar(axes, place, 100 * row[share], 100 * row[f"{share}_spread"], colour)
            axes.set_xticks(range(len(names)), ["bold", "ital.", "mean", "sum", "both"])
            axes.set_ylim(0, 125)
            axes.set_yticks(range(0, 101, 20))
            heading(axes, {"character": "right letter, %", "font": "bold italic, %"}[share])
        return state(figure, _of_two(rows) + seeds_note(rows), _errors(rows))


def _of_two(rows: Sequence[Row]) -> str:
    """Whether the mean or the sum of two adapters is clearly more often the font that is both than either alone."""
    row = {name: where(rows, name=name)[0] for name in ("bold", "italic", "mean", "sum", "taught")}
    mixed = max((row["mean"], row["sum"]), key=lambda one: one["font"])
    if any(clearly(mixed, row[name], "font") <= 0 for name in ("bold", "italic")):
        return "Bold and italic adapters mixed: no clear difference to one of them alone"
    shares = f"{percent(mixed['font'])}; one taught both, {percent(row['taught']['font'])}"
    return f"The {mixed['name']} of a bold and an italic adapter is bold italic for {shares}"


def _errors(rows: Sequence[Row]) -> str:
    """The error of a pixel against the true bold italic."""
    told = ", ".join(f"{row['name']} {row['error']:.3f}" for row in rows)
    return f"Error of a pixel against the true bold italic, as a share of black: {told}."
