"""How much text, at a time and in all: batch size, and how little text is worth training on."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..studies.findings import Records, Row, clearly, listed, ordered, rows_of, seeds_note, where
from .drawing import LOOKS, LOSS, THIRD, corner, fit, heading, label_ends, line, name_astray, note, panels, state
from .style import GREY, lecture_style, written_ticks

LORAS: dict[str, dict[str, Any]] = {"LoRA r=8": LOOKS["lora"], "LoRA r=64": THIRD}
BY_BATCH = {**LORAS, "full": LOOKS["full"]}

# --- at a time -------------------------------------------------------------------------------------------------------


def batches(records: Records) -> Figure:
    """Loss against batch size on as much text, and what LoRA loses against full fine-tuning; beside the largest batch,
    as few steps of a small one."""
    keys = ("method", "batch_size", "steps", "loss", "loss_spread", "gap", "gap_spread")
    rows = rows_of(records, "batches", *keys)
    most = max(row["batch_size"] * row["steps"] for row in rows)
    whole = [row for row in rows if row["batch_size"] * row["steps"] == most]
    few = [row for row in rows if row["batch_size"] * row["steps"] < most]
    found = {method: ordered(whole, "batch_size", method=method) for method in BY_BATCH}
    with lecture_style():
        figure, (left, right) = panels(2)
        fit(left, whole)
        for method, look in BY_BATCH.items():
            line(left, found[method], "batch_size", look)
        right.axhline(0, color=GREY, linewidth=2, linestyle=(0, (4, 3)))
        for method, look in LORAS.items():
            _gaps(right, found[method], where(few, method=method)[0], look)
        for axes in (left, right):
            written_ticks(axes, [row["batch_size"] for row in found["full"]])
            axes.set_xlabel("windows in a batch")
        left.set_ylabel(LOSS)
        ends = [(found[m][-1]["batch_size"], found[m][-1]["loss"], m, look["color"]) for m, look in BY_BATCH.items()]
        label_ends(left, ends)
        heading(right, "above full fine-tuning")
        told = {method.removeprefix("LoRA "): _course(found[method]) for method in LORAS}
        said = ", ".join(f"{words} at {rank}" for rank, words in told.items())
        said = f"{told['r=8']} at either rank" if len(set(told.values())) == 1 else said
        first, last = found["full"][0]["batch_size"], found["full"][-1]["batch_size"]
        title = f"From batches of {first} to {last}, LoRA's gap to full {said}"
        return state(figure, title + seeds_note(rows), f"{_numbers(found)} {_few_steps(found, few)}")


def _gaps(axes: Axes, rows: Sequence[Row], control: Row, look: Mapping[str, Any]) -> None:
    """The gaps with their ranges; hollow: as few steps as the largest batch takes, with a small one."""
    bars: dict[str, Any] = {"capsize": 5, "capthick": 2, "elinewidth": 2, "markersize": 9}
    gaps, spreads = ([row[number] for row in rows] for number in ("gap", "gap_spread"))
    axes.errorbar([row["batch_size"] for row in rows], gaps, yerr=spreads, **bars, **look)
    hollow = {**look, "linestyle": "none", "markerfacecolor": "white", "markeredgewidth": 2.5}
    axes.errorbar(control["batch_size"], control["gap"], yerr=control["gap_spread"], **bars, **hollow)


def _course(rows: Sequence[Row]) -> str:
    """What becomes of the gap from the smallest batch to the largest, and whether it turns on the way."""
    ends = rows[0], rows[-1]
    turns = [[clearly(row, end, "gap") for end in ends] for row in rows[1:-1]]
    if [1, 1] in turns or [-1, -1] in turns:
        return "grows, then shrinks" if [1, 1] in turns else "shrinks, then grows"
    return ("shrinks", "does not clearly change", "grows")[1 + clearly(rows[-1], rows[0], "gap")]


def _numbers(found: Mapping[str, Sequence[Row]]) -> str:
    told = [f"for {method} {found[method][0]['gap']:+.2f} and {found[method][-1]['gap']:+.2f} nats" for method in LORAS]
    return f"At the smallest and the largest batch the gap is {listed(told)}."


def _few_steps(found: Mapping[str, Sequence[Row]], few: Sequence[Row]) -> str:
    """Whether a small batch has the largest one's gap when it takes as few steps."""
    told = []
    for method in LORAS:
        row, large = where(few, method=method)[0], found[method][-1]
        sign = clearly(row, large, "gap")
        words = ("clearly less than", "not clearly other than", "clearly more than")[1 + sign]
        told.append(f"{row['gap']:+.2f} for {method}, {words} with {large['batch_size']}")
    return f"In as few steps ({few[0]['steps']}) of {few[0]['batch_size']} windows it is {listed(told)}."


# --- in all ----------------------------------------------------------------------------------------------------------

BY_TEXT = {"LoRA r=1": THIRD, "LoRA r=8": LOOKS["lora"], "full": LOOKS["full"]}


def data(records: Records) -> Figure:
    """Validation loss against the amount of training text, beside the untouched base: runs trained to their end, and
    runs stopped at their best step."""
    keys = ("method", "characters", "base", "loss", "loss_spread", "last", "last_spread", "seen", "gain", "gain_spread")
    rows = rows_of(records, "data", *keys, "gap", "gap_spread")
    ends: list[Row] = [{**row, "loss": row["last"], "loss_spread": row["last_spread"]} for row in rows]
    with lecture_style():
        figure, all_axes = panels(2, sharey=True)
        fit(all_axes[0], [*rows, *ends, {"loss": rows[0]["base"], "loss_spread": 0.0}])
        name_astray(all_axes[0], ends, "characters")
        for axes, shown, words in zip(all_axes, (ends, rows), ("trained to the end", "stopped in time"), strict=True):
            axes.axhline(rows[0]["base"], color=GREY, linewidth=2, linestyle=(0, (4, 3)))
            for method, look in BY_TEXT.items():
                line(axes, ordered(shown, "characters", method=method), "characters", look)
            written_ticks(axes, sorted({row["characters"] for row in rows}), "{:,.0f}")
            axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k")
            axes.set_xlabel("characters of text")
            heading(axes, words)
        all_axes[0].set_ylabel(LOSS)
        note(
            all_axes[0],
            "base",
            (1, rows[0]["base"]),
            (-4, 5),
            xycoords=("axes fraction", "data"),
            ha="right",
            color=GREY,
        )
        corner(all_axes[1], [(method, look["color"]) for method, look in BY_TEXT.items()], x=0.4, y=0.31)
        found = {method: ordered(rows, "characters", method=method) for method in BY_TEXT}
        told = {method: _against_full(many) for method, many in found.items() if method != "full"}
        said = [f"{method} {words}" for method, words in told.items()]
        said = (
            [f"LoRA {words}, at either rank" for words in set(told.values())] if len(set(told.values())) == 1 else said
        )
        return state(
            figure, f"Stopped in time, {'; '.join(said)}{seeds_note(rows)}", f"{_idle(found)} {_flattery(rows)}"
        )


NOTHING = {"gap": 0.0, "gap_spread": 0.0, "gain": 0.0, "gain_spread": 0.0}


def _against_full(lora: Sequence[Row]) -> str:
    """At which amounts of text LoRA ends clearly below full fine-tuning on the same text, and at which above."""
    told = []
    for sign, verb in ((-1, "beats"), (1, "loses to")):
        amounts = [_thousands(row["characters"]) for row in lora if clearly(row, NOTHING, "gap") == sign]
        if amounts:
            told.append(f"{verb} full at {'every amount' if len(amounts) == len(lora) else listed(amounts)}")
    return ", ".join(told) or "does not clearly differ from full"


def _idle(found: Mapping[str, Sequence[Row]]) -> str:
    """On how much text no method, or not each, ends clearly below the untouched base."""
    told = {}
    for place, row in enumerate(found["full"]):
        better = [method for method, rows in found.items() if clearly(rows[place], NOTHING, "gain") > 0]
        if len(better) < len(found):
            told[_thousands(row["characters"])] = f"only {listed(better)} clearly" if better else "nothing clearly"
    words = "; ".join(f"at {amount} {said} beats the untouched base" for amount, said in told.items())
    return (
        f"{words[0].upper()}{words[1:]}." if told else "Every method clearly beats the untouched base at every amount."
    )


def _flattery(rows: Sequence[Row]) -> str:
    """What it would have added to choose the step by the loss that is told."""
    most = max(row["loss"] - row["seen"] for row in rows)
    ends = max(rows, key=lambda row: row["last"] - row["loss"])
    return (
        f"A step chosen by the very loss that is told would flatter by up to {most:.2f} nats; trained to its end, "
        f"{ends['method']} at {_thousands(ends['characters'])} is {ends['last'] - ends['loss']:.2f} nats worse."
    )


def _thousands(characters: int) -> str:
    return f"{characters / 1000:g}k"
