"""The change itself: how much of its rank is used, and what 16 bits keep of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..analysis import rounding
from ..studies.findings import Records, Row, clearly, percent, rows_of, where
from ..studies.runs import summarise
from .drawing import LOOKS, corner, heading, note, panels, state
from .intruders import one_seed
from .style import BLUE, GREY, ORANGE, VERMILLION, lecture_style, written_ticks

MEASURES = (("effective_rank", "effective rank"), ("stable_rank", "stable rank"))


def rank_use(records: Records) -> Figure:
    """Effective and stable rank of Delta W against r, beside random factors of rank r and full fine-tuning."""
    rows = rows_of(records, "rank-use", "kind", "rank", "seed", *(name for name, _ in MEASURES))
    top = max(row["rank"] for row in where(rows, kind="lora"))
    with lecture_style():
        figure, all_axes = panels(2, sharey=True)
        for axes, (number, words) in zip(all_axes, MEASURES, strict=True):
            ranks = sorted({row["rank"] for row in where(rows, kind="lora")})
            axes.plot([ranks[0], top], [ranks[0], top], color=GREY, linewidth=1.5, linestyle=(0, (4, 3)))
            for kind, look, name in (("lora", "lora", "LoRA"), ("lora, random", "random", "random A, B")):
                means = [summarise(where(rows, kind=kind, rank=r), number) for r in ranks]
                y, spread = ([row[key] for row in means] for key in (number, f"{number}_spread"))
                axes.errorbar(ranks, y, yerr=spread, capsize=5, capthick=2, elinewidth=2, markersize=9, **LOOKS[look])
                how: dict[str, Any] = {"color": LOOKS[look]["color"], "fontweight": "bold", "fontsize": 14}
                at, shift = (ranks[-1], y[-1]), ((0, -26) if kind == "lora" else (-30, 4))
                note(axes, name, at, shift, ha="right", va="top" if kind == "lora" else "bottom", **how)
            full = summarise(where(rows, kind="full"), number)[number]
            axes.axhline(full, color=VERMILLION, linewidth=2, linestyle=(0, (6, 2)))
            note(axes, f"full {full:.1f}", (ranks[0], full), (0, 5), color=VERMILLION, fontweight="bold", fontsize=14)
            written_ticks(axes, ranks)
            axes.set_yscale("log", base=2)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.set_xlabel("rank r")
            heading(axes, f"{words} of ΔW")
        return state(figure, f"{_used(rows, top)}{one_seed(rows)}", _lesson(rows, top))


def _used(rows: Sequence[Row], top: int) -> str:
    """What LoRA uses of the largest r, beside chance."""
    found = {kind: summarise(where(rows, kind=kind, rank=top), *dict(MEASURES)) for kind in ("lora", "lora, random")}
    lora, chance = found["lora"], found["lora, random"]
    signs = {clearly(lora, chance, number) for number in dict(MEASURES)}
    told = " and ".join(f"{lora[number]:.2g} by {words}" for number, words in MEASURES)
    by_chance = " and ".join(f"{chance[number]:.2g}" for number in dict(MEASURES))
    beside = "fewer than" if signs == {-1} else "more than" if signs == {1} else "not clearly apart from"
    return f"of r = {top} LoRA uses {told}, {beside} chance: {by_chance}"


def _lesson(rows: Sequence[Row], top: int) -> str:
    """How the ranks grow with r, and what they are at a gentler rate."""
    lesson = f"Over r, stable rank grows like r to the power {_power(rows):.2f}; {_grows(rows)}."
    gentler = [row for row in rows if row["kind"] == "lora, gentler" and row["rank"] == top]
    if gentler:
        told = " and ".join(f"{summarise(gentler, number)[number]:.2g}" for number in dict(MEASURES))
        lesson += f" At the rate below, r = {top} uses {told}."
    return lesson


def _power(rows: Sequence[Row]) -> float:
    """The slope of log stable rank over log r."""
    lora = where(rows, kind="lora")
    x, y = np.log([row["rank"] for row in lora]), np.log([row["stable_rank"] for row in lora])
    return float(np.polyfit(x, y, 1)[0]) if np.ptp(x) else 0.0


def _grows(rows: Sequence[Row]) -> str:
    """Whether a larger r is used less fully: effective rank over r, at the least r above 1 and at the largest."""
    lora = where(rows, kind="lora")
    ranks = sorted({row["rank"] for row in lora})
    low, high = ranks[min(1, len(ranks) - 1)], ranks[-1]
    share = {r: summarise([{"x": row["effective_rank"] / r} for row in where(lora, rank=r)], "x") for r in (low, high)}
    a, b = share[low], share[high]
    if abs(a["x"] - b["x"]) <= a["x_spread"] + b["x_spread"]:
        return f"no clear difference in the share of r that is used, from r = {low} to {high}"
    return f"effective rank is {percent(a['x'])} of r at r = {low}, {percent(b['x'])} at r = {high}"


# --- 16 bits ---------------------------------------------------------------------------------------------------------

WAYS: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("bfloat16", "nearest"): ("bfloat16", {"color": VERMILLION, "marker": "s"}),
    ("float16", "nearest"): ("float16", {"color": BLUE, "marker": "o"}),
    ("bfloat16", "at random"): ("bfloat16, at random", {"color": ORANGE, "marker": "D"}),
}


def sixteen_bits(records: Records) -> Figure:
    """What 16 bits lose of Delta W's entries, and keep of what was learned, against ||Delta W|| / ||W||."""
    keys = ("format", "way", "ratio", "share", "lr", "seed", "gone", "gain", "gain_exact")
    rows = rows_of(records, "sixteen-bits", *keys)
    with lecture_style():
        figure, (left, right) = panels(2)
        for (kind, way), (_, look) in WAYS.items():
            found, points = where(rows, format=kind, way=way), {**look, "linestyle": "", "markersize": 8}
            if way == "nearest":
                sizes = np.geomspace(min(r["ratio"] for r in found) / 3, max(r["ratio"] for r in found), 40)
                told = [rounding.predicted(float(size), kind, points=201) for size in sizes]
                for axes, number in ((left, "gone"), (right, "along")):
                    axes.plot(sizes, [one[number] for one in told], color=look["color"], linewidth=2)
                left.plot(*_points(found, "gone"), **points)
            x, y, spread = ([row[number] for row in _gains(found)] for number in ("ratio", "kept", "kept_spread"))
            right.errorbar(x, y, spread, capsize=4, elinewidth=2, **points)
        names = [(words, look["color"]) for words, look in WAYS.values()]
        corner(left, names[:2])
        corner(right, names)
        for axes, words in ((left, "entries that leave no trace"), (right, "share of the gain kept")):
            axes.set(xscale="log", xlabel="‖ΔW‖ / ‖W‖", ylim=(-0.05, 1.45))
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
            heading(axes, words)
        lesson = (
            "Lines: the formula for Gaussian W and ΔW. At random: up or down, by chances that are right on average."
        )
        return state(figure, f"{_halves(rows)}{one_seed(rows)}", lesson)


def _points(rows: Sequence[Row], number: str) -> tuple[list[float], list[float]]:
    """A number against the size of Delta W, the least first."""
    pairs = sorted((row["ratio"], row[number]) for row in rows)
    return [x for x, _ in pairs], [y for _, y in pairs]


def _gains(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of the rate whose shares were merged, how much of the gain is kept: means over seeds, with spreads."""
    lr, found = min(rows, key=lambda row: row["share"])["lr"], []
    for share in sorted({row["share"] for row in where(rows, lr=lr)}):
        many = [{**row, "kept": row["gain"] / row["gain_exact"]} for row in where(rows, lr=lr, share=share)]
        found.append(summarise(many, "ratio", "kept"))
    return found


def _halves(rows: Sequence[Row]) -> str:
    """At which size bfloat16 loses half of the entries, between the sizes that were measured, and what is left of the
    gain at the least size."""
    found = where(rows, format="bfloat16", way="nearest")
    x, y = _points(found, "gone")
    least = _gains(found)[0]
    left = f"at {percent(least['ratio'])} it keeps {percent(least['kept'])} of the gain"
    if not min(y) <= 0.5 <= max(y):
        return f"bfloat16 keeps half of ΔW's entries at every size; {left}"
    half = float(np.exp(np.interp(-0.5, [-value for value in y], np.log(x))))
    return f"where ΔW is {percent(half)} of W, bfloat16 loses half of its entries; {left}"
