"""LoRA against full fine-tuning, from the study's records: what each learns, what it forgets and what it costs."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..studies.findings import (
    Records,
    Row,
    clearly,
    each,
    joined,
    listed,
    lora_and_full,
    percent,
    rows_of,
    seeds_note,
)
from .drawing import (
    LOOKS,
    LOSS,
    SHORT,
    bar,
    heading,
    label_ends,
    panels,
    state,
)
from .style import lecture_style


def loss_curves(methods: Records) -> Figure:
    """Validation loss against training step, a panel for each text, a band for the seeds."""
    rows = rows_of(methods, "methods", "corpus", "method", "trainable", "loss", "loss_spread", "curve")
    corpora, findings = each(rows, "corpus"), {}
    with lecture_style():
        figure, all_axes = panels(len(corpora))
        for axes, corpus in zip(all_axes, corpora, strict=True):
            lora, full = lora_and_full(rows, corpus=corpus)
            label_ends(axes, [_curve(axes, row) for row in (lora, full)])
            axes.set(xlabel="training step", xlim=(0, full["curve"]["step"][-1]))
            heading(axes, corpus)
            findings[corpus] = _lower(lora, full)
        all_axes[0].set_ylabel(LOSS)
        share = percent(lora["trainable"] / full["trainable"])
        lesson = "Each method has its own best learning rate, and equally many steps."
        return state(figure, f"{joined(findings)}; LoRA trains {share} of the parameters{seeds_note(rows)}", lesson)


def _curve(axes: Axes, row: Row) -> tuple[float, float, str, str]:
    """Draw the mean over the seeds and their band: -> the label at its end, as `label_ends` takes it."""
    steps, losses = np.array(row["curve"]["step"]), np.array(row["curve"]["loss"])  # (points,), (seeds, points)
    look, mean = LOOKS[row["method"]], losses.mean(axis=0)  # (points,)
    axes.fill_between(steps, losses.min(axis=0), losses.max(axis=0), color=look["color"], alpha=0.25, lw=0)
    axes.plot(steps, mean, markersize=9, **look)
    return steps[-1], mean[-1], f"{SHORT[row['method']]} {mean[-1]:.2f}", look["color"]


def _lower(lora: Row, full: Row) -> str:
    sign = clearly(lora, full)
    if not sign:
        return "no clear difference between LoRA and full fine-tuning"
    return "LoRA ends below full fine-tuning" if sign < 0 else "full fine-tuning ends below LoRA"


COSTS = (  # the number, over its panel, its unit, what the title calls it
    ("step_seconds", "a step (ms)", 1e-3, "the step time"),
    ("memory_bytes", "memory (MiB)", 2**20, "the memory"),
    ("stored_bytes", "to store (MiB)", 2**20, "the bytes to store"),
)


def costs(methods: Records) -> Figure:
    """What a task costs on this model, measured: seconds a step, memory of training, bytes to store."""
    spreads = ("memory_bytes_spread", "stored_bytes_spread")
    numbers = (number for number, *_ in COSTS)
    rows = rows_of(methods, "methods", "corpus", "method", "loss", "curve", *numbers, *spreads)
    corpus = rows[0]["corpus"]
    lora, full = lora_and_full(rows, corpus=corpus)
    with lecture_style():
        figure, all_axes = panels(len(COSTS))
        for axes, (number, words, unit, _) in zip(all_axes, COSTS, strict=True):
            for place, (row, hatch) in enumerate(((lora, ""), (full, "//"))):
                value, spread = row[number] / unit, row.get(f"{number}_spread", 0) / unit
                bar(axes, place, value, spread, LOOKS[row["method"]]["color"], hatch)
            axes.set(xticks=[0, 1], xticklabels=["LoRA", "full"], yticks=[], xlim=(-0.6, 1.6))
            axes.spines["left"].set_visible(False)
            axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
            heading(axes, words)
        lesson = (
            f"Measured while fine-tuning on {corpus}. Step times within 4 % are called equal. "
            "Memory is weights, optimiser state and the peak of a step. A step costs as much at any learning rate; "
            f"but equally many steps do not learn equally much: {_as_far(lora, full)}."
        )
        return state(figure, f"LoRA: {_shares(lora, full)}{seeds_note(rows)}", lesson)


def _as_far(lora: Row, full: Row) -> str:
    """After how many steps full fine-tuning is where LoRA ends, or LoRA where full fine-tuning does: who is ahead."""
    (ahead, name), (behind, other) = sorted(
        ((lora, "LoRA"), (full, "full fine-tuning")), key=lambda one: one[0]["loss"]
    )
    steps, losses = ahead["curve"]["step"], np.mean(ahead["curve"]["loss"], axis=0)  # (points,)
    reached = np.interp(-behind["loss"], -np.minimum.accumulate(losses), steps)
    return f"where {other} ends after {steps[-1]} steps, {name} is after {reached:.0f}"


def _shares(lora: Row, full: Row) -> str:
    """What LoRA needs of what full fine-tuning needs, where they differ clearly."""
    lora, full = ({**row, "step_seconds_spread": 0.02 * row["step_seconds"]} for row in (lora, full))  # timed once
    clear = {number: clearly(lora, full, number) for number, *_ in COSTS}
    told = [f"{percent(lora[n] / full[n])} of {words}" for n, _, _, words in COSTS if clear[n]]
    same = [words for n, _, _, words in COSTS if not clear[n]]
    return "; ".join([*told, *([f"no clear difference in {listed(same)}"] if same else [])])
