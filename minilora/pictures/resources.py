"""What LoRA and its alternatives take, as measured: bits to hold a base, time to run it, memory to train on it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from ..studies.findings import Records, Row, clearly, each, listed, ordered, percent, rows_of, seeds_note, where
from .drawing import corner, heading, note, panels, state
from .style import BLUE, GREEN, GREY, ORANGE, SKY, VERMILLION, lecture_style, new_figure

# --- few bits --------------------------------------------------------------------------------------------------------

HELD: dict[str, tuple[str, str, str]] = {  # number in a row: (what it is, colour, marker)
    "loss_before": ("■ before QLoRA", VERMILLION, "s"),
    "loss": ("● after QLoRA", BLUE, "o"),
    "again_loss": ("◆ merged and quantised again", GREEN, "D"),
}


def bits(records: Records) -> Figure:
    """Loss on the base model's own text against bits a weight: as held, after QLoRA, merged and quantised again."""
    keys = ("base", "bits", "loss_before", "loss", "loss_spread", "again_loss", "again_loss_spread")
    rows = ordered(rows_of(records, "bits", *keys), "bits")
    exact = where(rows, base="float32")[0]
    with lecture_style():
        figure, [axes] = panels()
        low = min(row[number] - row.get(f"{number}_spread", 0) for row in rows for number in HELD)
        losses = [row[number] for row in rows for number in HELD]
        most = low + 8 * (float(np.median(losses)) - low) + 1e-9  # a loss beyond it would squash the others
        high = max(loss for loss in losses if loss <= most)
        height = high - low + 1e-9  # of the losses; what is above them is for words
        axes.set(ylim=(low - 0.07 * height, high + 0.45 * height), xlim=(-0.6, len(rows) - 0.4))
        axes.axhline(exact["loss_before"], color=GREY, linewidth=2, linestyle=(0, (4, 3)), zorder=0)
        for place, row in enumerate(rows):
            _marks(axes, place, row, high)
        above = any(row[number] > high for row in rows for number in HELD)
        arrows = " Numbers with an arrow are above the picture." if above else ""
        corner(axes, [(words, colour) for words, colour, _ in HELD.values()])
        names = [f"{row['bits']:.3g}\n{_held(row)}".replace(" ", "\n") for row in rows]
        axes.set_xticks(range(len(rows)), names)
        axes.set(xlabel="bits a weight, and how it is held", ylabel="loss on the old text\n(nats per character)")
        return state(figure, _repair(rows) + seeds_note(rows), _again(rows) + arrows)


def _held(row: Row) -> str:
    """ "nf4, blocks of 16" -> "nf4/16"; "nf4, double" -> "nf4 double\""""
    return row["base"].replace(", blocks of ", "/").replace(",", "")


def _marks(axes: Axes, place: float, row: Row, high: float) -> None:
    """The three losses of a base with their spreads; what is above `high`, as a number at the upper edge."""
    top, above = axes.get_ylim()[1], 0
    for shift, (number, (_, colour, marker)) in zip((-0.25, 0, 0.25), HELD.items(), strict=True):
        value, spread = row[number], row.get(f"{number}_spread", 0.0)
        if value <= high:
            how: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 10}
            axes.errorbar(place + shift, value, yerr=spread, capsize=4, elinewidth=2, **how)
        else:
            words = f"↑ {value:.2f}"
            note(axes, words, (place, top), (0, -20 * above), ha="center", va="top", color=colour, fontsize=14)
            above += 1


def _repair(rows: Sequence[Row]) -> str:
    """What few bits cost before QLoRA, and what four cost after it, beside LoRA on the float32 base."""
    exact, four = where(rows, base="float32")[0], where(rows, base="nf4, double")[0]
    worst = max(rows, key=lambda row: row["loss_before"])
    lost, most = (row["loss_before"] - exact["loss_before"] for row in (four, worst))
    before = f"{four['bits']:.2g}-bit NF4 costs {lost:+.3f} nats, {_held(worst)} {most:+.3f}"
    sign, gap = clearly(four, exact), abs(four["loss"] - exact["loss"])
    after = f"ends {gap:.3f} {'above' if sign > 0 else 'below'} LoRA" if sign else "shows no clear difference from LoRA"
    return f"{before}; QLoRA on NF4 {after}"


def _again(rows: Sequence[Row]) -> str:
    """What merging and quantising again costs, and from which on QLoRA no longer reaches LoRA on float32."""
    exact, four = where(rows, base="float32")[0], where(rows, base="nf4, double")[0]
    again = {"loss": four["again_loss"], "loss_spread": four["again_loss_spread"]}
    merged = f"costs {again['loss'] - four['loss']:+.3f} nats" if clearly(again, four) > 0 else "costs nothing clear"
    worse = [_held(row) for row in rows if clearly(row, exact) > 0]
    short = f"QLoRA stays above LoRA on float32 with {listed(worse)}" if worse else "QLoRA repairs all of them"
    return f"Merged and quantised again, NF4 {merged}{_given_back(rows)}. {short}. Dashed: the base model in float32."


def _given_back(rows: Sequence[Row]) -> str:
    """How much of what QLoRA gained is lost when it is merged and quantised again: a part, or more than all."""
    share = {
        _held(row): (row["again_loss"] - row["loss"]) / (row["loss_before"] - row["loss"])
        for row in rows
        if row["loss"] < row["loss_before"]
    }
    if not share:
        return ""
    more = [name for name, part in share.items() if part > 1]
    sure = [_held(row) for row in rows if row["again_loss"] - row["again_loss_spread"] > row["loss_before"]]
    least, most = (percent(max(part, 0)) for part in (min(share.values()), max(share.values())))
    span = f"; of what QLoRA gains, that gives back {least} to {most}"
    if not more:
        return span
    clear = f"clearly so over the seeds with {listed(sure)}" if sure else "with none of them clearly so over the seeds"
    return f"{span}: more than all in {len(more)} of {len(rows)} bases ({listed(more)}), {clear}"


# --- latency ---------------------------------------------------------------------------------------------------------

SLOWER = LinearSegmentedColormap.from_list("slower", [BLUE, "white", ORANGE])
CALLS = {"token": "one token", "forward": "forward"}
MIB = 2**20
MODELS = {"base": "the shipped model", "gpt2": "GPT-2 small's shape"}


def latency(records: Records) -> Figure:
    """Time of a forward pass and of a generated token over the base model's: the paper's table 1 as a heat map."""
    keys = ("model", "task", "batch", "length", "method", "ratio", "ratio_spread")
    rows = rows_of(records, "latency", *keys)
    served = [row for row in rows if row["method"] != "base"]
    columns: dict[str, list[tuple[int, int]]] = {}
    for row in served:
        shapes = columns.setdefault(row["model"], [])
        if (row["batch"], row["length"]) not in shapes:
            shapes.append((row["batch"], row["length"]))
    with lecture_style():
        figure, wide = new_figure(), [len(shapes) for shapes in columns.values()]
        grid = figure.subplots(len(CALLS), len(wide), sharex="col", sharey=True, squeeze=False, width_ratios=wide)
        for line_of_axes, (call, words) in zip(grid, CALLS.items(), strict=True):
            line_of_axes[0].set_ylabel(words)
            for axes, model in zip(line_of_axes, columns, strict=True):
                _ratios(axes, where(served, task=call, model=model), columns[model])
        for axes, model in zip(grid[0], columns, strict=True):
            heading(axes, MODELS.get(model, model))
        for axes, model in zip(grid[-1], columns, strict=True):
            axes.set_xticks(range(len(columns[model])), [f"{batch}×{length}" for batch, length in columns[model]])
            axes.set_xlabel("batch × length")
        return state(figure, _added(served), _noise(served))


def _ratios(axes: Axes, rows: Sequence[Row], columns: Sequence[tuple[int, int]]) -> None:
    """A line for each method, a column for each batch and length: the ratios, in colour where they are not noise."""
    methods = each(rows, "method")
    found = {(row["method"], row["batch"], row["length"]): row for row in rows}
    values = np.ones((len(methods), len(columns)))  # (methods, columns)
    for (i, j), _ in np.ndenumerate(values):
        row = found[methods[i], *columns[j]]
        values[i, j] = row["ratio"] if _differs(row) else 1.0
        how: dict[str, Any] = {"fontweight": "bold", "color": "black"} if _differs(row) else {"color": GREY}
        axes.text(j, i, f"{row['ratio']:.2f}", ha="center", va="center", fontsize=14, **how)
    axes.imshow(np.log2(values), cmap=SLOWER, vmin=-1, vmax=1, aspect="auto")  # half the time to twice the time
    axes.set_yticks(range(len(methods)), methods)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _differs(row: Row) -> int:
    """-1 or 1 where the base model's time, 1, is further from the median than half the quartiles' distance; else 0."""
    return clearly(row, {"ratio": 1.0, "ratio_spread": 0.0}, "ratio")


def _added(rows: Sequence[Row]) -> str:
    merged, apart = where(rows, method="lora merged"), where(rows, method="lora")
    beyond = [row for row in merged if _differs(row)]
    said = f"{min(r['ratio'] for r in merged):.2f} to {max(r['ratio'] for r in merged):.2f} times the base model's time"
    words = f"Merged LoRA takes {said}" if beyond else "Merged LoRA takes the base model's time"
    return f"{words}; unmerged {min(r['ratio'] for r in apart):.2f} to {max(r['ratio'] for r in apart):.2f} times"


def _noise(rows: Sequence[Row]) -> str:
    merged = where(rows, method="lora merged")
    same = sum(not _differs(row) for row in merged)
    spread = float(np.median([row["ratio_spread"] for row in merged]))
    return (
        f"Merged LoRA is within noise of the base model in {same} of {len(merged)} cases; "
        f"half the distance between the quartiles of the turns is {spread:.2f} there."
    )


# --- memory ----------------------------------------------------------------------------------------------------------

PARTS = (("weights", GREY, ""), ("gradients", ORANGE, "//"), ("optimizer_state", VERMILLION, "xx"),
         ("activations", SKY, ".."))  # fmt: skip


def step_memory(records: Records) -> Figure:
    """Memory of a training step: its parts by formula as bars, what was measured as a mark, a panel for each model."""
    rows = rows_of(records, "memory", "model", "method", "memory_bytes", "share_of_full", *(name for name, *_ in PARTS))
    models = each(rows, "model")
    with lecture_style():
        figure, all_axes = panels(len(models))
        for axes, model in zip(all_axes, models, strict=True):
            found = where(rows, model=model)
            for place, row in enumerate(found):
                bottom = 0.0
                for name, colour, hatch in PARTS:
                    height = row[name] / MIB
                    axes.bar(place, height, 0.62, bottom, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
                    bottom += height
                measured = row["memory_bytes"] / MIB
                axes.plot(place, measured, "D", color="black", markersize=9)
                note(axes, f"{measured:,.0f}", (place, max(measured, bottom)), (0, 8), ha="center", fontweight="bold")
            axes.set_xticks(range(len(found)), [f"{row['method']}\n× {row['share_of_full']:.2f}" for row in found])
            axes.set_ylim(0, axes.get_ylim()[1] * 1.12)
            heading(axes, MODELS.get(model, model))
        all_axes[0].set_ylabel("memory (MiB)")
        lines = [("◆ measured", "black"), *((f"■ {name.replace('_', ' ')}", colour) for name, colour, _ in PARTS[::-1])]
        corner(all_axes[-1], [(words.replace("optimizer", "optimiser"), colour) for words, colour in lines])
        shares = [where(rows, model=model, method="lora-qv")[0]["share_of_full"] for model in models]
        sentence = (
            f"LoRA on q and v trains in {listed([f'{share:.2f}' for share in shares])} of full fine-tuning's memory"
        )
        return state(
            figure,
            sentence,
            "Bars: parts by formula. Over them what was measured, in MiB; below, as a share of full's.",
        )
