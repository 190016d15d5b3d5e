"""How low is the rank of Delta W, and which directions are in it? Drawn from the study's records.

What is measured here is defined in `rank`: the energy of the best r directions, the similarity of two subspaces and the
amplification. Intruder dimensions are drawn in `intruders.py`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..analysis import rank as ranks
from ..studies.findings import (
    Records,
    Row,
    by_kind,
    clearly,
    percent,
    rows_of,
    seeds_note,
    where,
)
from .drawing import (
    LOOKS,
    LOSS,
    SHORT,
    fit,
    heading,
    in_two_lines,
    label_ends,
    line,
    name_astray,
    note,
    panels,
    state,
)
from .style import BLUE, GREY, ORANGE, VERMILLION, apart, lecture_style, new_figure, powers_of_two, written_ticks

# --- how many directions? --------------------------------------------------------------------------------------------


def _spectra(records: Records) -> list[Row]:
    return rows_of(records, "spectra", "method", "name", "spectrum", "random", "energy_rank")


def _values(records: Records) -> dict[str, np.ndarray]:
    """{method: singular values (matrices, k)}, the random matrices being those of full fine-tuning's norms."""
    rows = _spectra(records)
    k = min(len(row[key]) for row in rows for key in ("spectrum", "random"))
    lora, full = where(rows, method="lora"), where(rows, method="full")
    kinds = {"lora": (lora, "spectrum"), "full": (full, "spectrum"), "random": (full, "random")}
    return {name: np.array([row[key][:k] for row in found]) for name, (found, key) in kinds.items()}


def spectra(records: Records) -> Figure:
    """Singular values of Delta W, each over its largest: the median over matrices and seeds; bands hold 80 %."""
    values = _values(records)
    size = values["full"].shape[1]
    with lecture_style():
        figure, [axes] = panels()
        for name, many in values.items():
            _spectrum(axes, name, many / many[:, :1])
        floor = min(np.median(values[name][:, 3 * size // 4] / values[name][:, 0]) for name in ("full", "random"))
        axes.set(yscale="log", ylim=(min(max(float(floor), 1e-4), 0.1) / 3, 1.3))
        axes.set(xlabel="index of the singular value", ylabel="singular value / largest")
        written_ticks(axes, powers_of_two(size))
        needed = {name: round(float(np.mean([ranks.energy_rank(s) for s in many]))) for name, many in values.items()}
        parts = f"{needed['lora']} of {size} directions with LoRA, {needed['full']} with full fine-tuning"
        lesson = f"Full fine-tuning is not told to be of low rank; a random matrix needs {needed['random']} directions."
        return state(figure, f"90 % of ΔW takes {parts}, {needed['random']} in a random matrix", lesson)


def _spectrum(axes: Axes, name: str, relative: np.ndarray) -> None:
    """The median, its band and its name.   relative: (matrices, k), each row over its first"""
    median = np.median(relative, axis=0)  # (k,)
    shown = median > 1e-5  # below is the rounding of 32 bits
    index, median, look = np.arange(1, len(median) + 1)[shown], median[shown], LOOKS[name]
    low, high = np.quantile(relative[:, shown], (0.1, 0.9), axis=0)
    axes.fill_between(index, low, high, color=look["color"], alpha=0.2, linewidth=0)
    axes.plot(index, median, **look, markersize=9, markevery=(0.0, 0.12))
    style: dict[str, Any] = {"color": look["color"], "fontweight": "bold"}
    if name == "lora":  # its rank ends: say so where the line does
        note(axes, f"LoRA: rank {len(index)}", (index[-1], median[-1]), (0, -14), ha="center", va="top", **style)
    elif name == "full":
        at = relative.shape[1] // 4
        note(axes, SHORT[name], (index[at], median[at]), (10, 10), ha="left", va="bottom", **style)
    else:
        at = relative.shape[1] // 8
        note(axes, SHORT[name], (index[at], median[at]), (0, -14), ha="center", va="top", **style)


def energy(records: Records) -> Figure:
    """The share of Delta W's energy that its best r directions hold, against r."""
    held = {name: np.array([ranks.energy(s) for s in many]) for name, many in _values(records).items()}  # (matrices, k)
    mean = {name: share.mean(axis=0) for name, share in held.items()}  # (k,)
    size = len(mean["full"])
    look_at = min(8, size)
    with lecture_style():
        figure, [axes] = panels()
        axes.axhline(0.9, color=GREY, linewidth=1.5)
        note(axes, "90 %", (1, 0.9), (0, 4), color=GREY, fontsize=14)
        r, marked = np.arange(1, size + 1), [power - 1 for power in powers_of_two(size)]
        for name, share in held.items():
            low, high = np.quantile(share, (0.1, 0.9), axis=0)
            axes.fill_between(r, low, high, color=LOOKS[name]["color"], alpha=0.2, linewidth=0)
            axes.plot(r, mean[name], markersize=9, markevery=marked, **LOOKS[name])
        written_ticks(axes, powers_of_two(size))
        axes.set(xlabel="rank r", ylabel="share of the energy ‖ΔW‖²", ylim=(0, 1.04))
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        for name, y in zip(mean, apart([float(m[look_at - 1]) for m in mean.values()], 0.1), strict=True):
            note(axes, SHORT[name], (look_at, y), (12, -4), va="top", color=LOOKS[name]["color"], fontweight="bold")
        at = {name: percent(m[look_at - 1]) for name, m in mean.items()}
        sentence = f"The best {look_at} of {size} directions hold {at['full']} of full fine-tuning's ΔW"
        lesson = f"They hold {at['lora']} of LoRA's own ΔW."
        return state(figure, f"{sentence}, {at['random']} of a random matrix", lesson)


def truncation(records: Records) -> Figure:
    """Validation loss against rank: full fine-tuning's Delta W cut to rank r, and LoRA trained at rank r."""
    rows = rows_of(records, "truncation", "method", "rank", "loss", "loss_spread")
    rows = sorted(
        ({**row, "place": row["rank"] or 0.5} for row in rows), key=lambda row: row["rank"]
    )  # 0 on a log axis
    cut, lora = where(rows, method="truncated"), where(rows, method="lora")
    whole = cut[-1]
    with lecture_style():
        figure, [axes] = panels()
        fit(axes, [*cut, *lora])
        name_astray(axes, [*cut, *lora], "place")
        line(axes, cut, "place", LOOKS["full"])
        line(axes, lora, "place", LOOKS["lora"])
        written_ticks(axes, [row["place"] for row in cut])
        axes.set_xticks([row["place"] for row in cut], [str(row["rank"]) for row in cut])
        axes.set(xlabel="rank r", ylabel=LOSS)
        label_ends(axes, [(whole["place"], whole["loss"], "full's ΔW\ncut to r", VERMILLION)])
        _name_lora(axes, lora, cut)
        worse = [row["rank"] for row in cut if clearly(row, whole) > 0]
        first = next(row["rank"] for row in cut if not worse or row["rank"] > max(worse))
        enough = [row["rank"] for row in lora if clearly(row, whole) <= 0]
        sentence = f"full fine-tuning's ΔW cut to rank {first} is as good as whole"
        if first == whole["rank"]:
            sentence = "full fine-tuning's ΔW is clearly worse after every cut"
        trained = f"LoRA of rank {enough[0]}" if enough else f"no LoRA up to rank {lora[-1]['rank']}"
        lesson = "As good: no clear difference. Biases, norms and embeddings are never cut."
        return state(figure, f"{sentence}; {trained} does as well" + seeds_note(rows), lesson)


def _name_lora(axes: Axes, lora: Sequence[Row], cut: Sequence[Row]) -> None:
    """LoRA's name at its second point, on the side away from the other line, where falling lines leave room."""
    row = lora[min(1, len(lora) - 1)]
    nearest = min(cut, key=lambda other: abs(other["rank"] - row["rank"]))
    style: dict[str, Any] = {"color": BLUE, "fontweight": "bold"}
    if row["loss"] >= nearest["loss"]:
        note(axes, "LoRA", (row["place"], row["loss"] + row["loss_spread"]), (2, 8), ha="left", va="bottom", **style)
    else:
        note(axes, "LoRA", (row["place"], row["loss"] - row["loss_spread"]), (-2, -8), ha="right", va="top", **style)


# --- which directions? -----------------------------------------------------------------------------------------------


def similarity(subspaces: Records) -> Figure:
    """phi(i, j) of the first i and j singular directions, the mean over matrices: between ranks, seeds, and chance."""
    sides, pairs = ("lora_A", "lora_B"), {"ranks": "r = 8 and 64", "seeds": "two seeds", "random": "random"}
    rows = rows_of(subspaces, "subspaces", "name", *(f"{side}_{pair}" for side in sides for pair in pairs))
    grids = {(s, p): np.array([row[f"{s}_{p}"] for row in rows]) for s in sides for p in pairs}  # (matrices, i, j)
    with lecture_style():
        figure = new_figure()
        all_axes = figure.subplots(2, 3, sharex=True, sharey=True)
        means = {key: grid.mean(axis=0) for key, grid in grids.items()}
        chance_level = max(float(means[side, "random"].max()) for side in sides)
        high = max(chance_level + 0.1, np.ceil(10 * max(float(mean.max()) for mean in means.values())) / 10)
        for axes, mean in zip(all_axes.flat, means.values(), strict=True):
            picture = _grid(axes, mean, chance_level, high)
        for axes, words in zip(all_axes[0], pairs.values(), strict=True):
            heading(axes, words)
        for axes, side in zip(all_axes[:, 0], sides, strict=True):
            axes.set_ylabel(f"{side[-1]}:  i", rotation=0, labelpad=22, va="center", fontweight="bold")
        for axes in all_axes[1]:
            axes.set_xlabel("j")
        bar = figure.colorbar(picture, ax=all_axes, shrink=0.9, aspect=14, pad=0.02)
        bar.set_label("φ(i, j), from random up")
        bar.set_ticks([chance_level, high], labels=[f"{chance_level:.2f}", f"{high:.1f}"])
        first = {key: grid[:, 0, 0] for key, grid in grids.items()}  # (matrices,)
        told = {side[-1]: _shared(first[side, "ranks"], first[side, "random"]) for side in sides}
        apart = "; ".join(f"{side}'s {said}, φ = {mean:.2f}" for side, (said, mean) in told.items())
        both = " and ".join(f"{side} (φ = {mean:.2f})" for side, (_, mean) in told.items())
        said = {said for said, _ in told.values()}
        head = "First directions of ranks 8 and 64"
        ways = (f"{head}: {apart}", f"{head}, of {both}: {', '.join(said)}" if len(said) == 1 else f"first: {apart}")
        chance = [f"{first[side, 'random'].mean():.2f}" for side in sides]
        lesson = f"A random matrix has φ = {chance[0]} (A) and {chance[1]} (B) there."
        return state(figure, in_two_lines(ways), lesson)


def _grid(axes: Axes, mean: np.ndarray, low: float, high: float) -> Any:
    """One heat map of phi, white where it is no more than by chance, with its first and its last number."""
    n, m = mean.shape
    picture = axes.imshow(mean, cmap="Blues", vmin=low, vmax=high, extent=(0.5, m + 0.5, n + 0.5, 0.5), aspect="auto")
    for value, x, y, ha, va in (
        (mean[0, 0], 0.7, 0.6, "left", "top"),
        (mean[-1, -1], m + 0.3, n + 0.3, "right", "bottom"),
    ):
        axes.text(
            x,
            y,
            f"{value:.2f}",
            color="black" if value < low + 0.6 * (high - low) else "white",
            fontsize=14,
            ha=ha,
            va=va,
        )
    axes.set(xticks=[1, m], yticks=[1, n])
    axes.spines[:].set(visible=True, color=GREY)
    return picture


def _shared(found: np.ndarray, chance: np.ndarray) -> tuple[str, float]:
    """How the first direction compares with chance, over the matrices; and its mean."""
    mean = found.mean()
    said = "shared" if mean >= 0.5 else "shared in part" if mean >= 0.2 else "hardly shared"
    if np.quantile(found, 0.25) <= np.quantile(chance, 0.75):
        said = "shared no more than by chance"
    return said, mean


def amplification(subspaces: Records) -> Figure:
    """Table 7 of the paper: what W has in Delta W's directions, and how much louder Delta W is there."""
    rows = rows_of(subspaces, "subspaces", "name", "delta", "weight", "random", "delta_norm", "amplification")
    kinds = by_kind(rows)
    with lecture_style():
        figure, (left, right) = panels(2, width_ratios=(1, 1.5))
        parts = (("weight", "W's", GREY, ""), ("delta", "ΔW's", BLUE, ""), ("random", "random", ORANGE, "//"))
        for place, (key, _, colour, hatch) in enumerate(parts):
            many = [row[key] for row in rows]
            left.bar(place, np.mean(many), 0.7, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
            across = place + np.linspace(-0.22, 0.22, len(many))  # a dot for each matrix, in the model's order
            left.plot(across, many, "o", color="black", markersize=3, alpha=0.6)
        means = [float(np.mean([row[key] for row in rows])) for key, *_ in parts]
        left.set_xticks(range(3), [f"{words}\n{mean:.2g}" for (_, words, *_), mean in zip(parts, means, strict=True)])
        left.set(ylabel="‖UᵀWVᵀ‖", ylim=(0, None))
        heading(left, "W in 4 directions of")
        for place, found in enumerate(kinds.values()):
            many = [row["amplification"] for row in found]
            right.bar(place, np.mean(many), 0.7, color=BLUE)
            right.plot(place + np.linspace(-0.2, 0.2, len(many)), many, "o", color="black", markersize=4, alpha=0.6)
        right.axhline(1, color=GREY, linewidth=1.5, linestyle=(0, (4, 3)))
        right.set_xticks(range(len(kinds)), list(kinds))
        right.set_ylim(0, None)
        heading(right, "amplification ‖ΔW‖ / ‖UᵀWVᵀ‖")
        factor = float(np.mean([row["amplification"] for row in rows]))
        lesson = f"In ΔW's directions the update is {factor:.1f} times as large as W itself, on average. "
        return state(figure, f"{_against_chance(rows)}; ΔW is {factor:.1f} times W there", lesson)


def _against_chance(rows: Sequence[Row]) -> str:
    """How much more W has in Delta W's directions than in random ones."""
    ratio = np.array([row["delta"] / row["random"] for row in rows])
    share = float(np.mean(ratio > 1))
    if share >= 0.9:
        return f"ΔW's directions are no chance: W has {ratio.mean():.1f} times as much there as at random"
    if share <= 0.5:
        return f"W has no more in ΔW's directions than at random ({ratio.mean():.1f} times)"
    return f"in {percent(share)} of the matrices W has more in ΔW's directions than at random"
