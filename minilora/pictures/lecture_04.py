"""The pictures of lecture 4: what full fine-tuning needs, what it learns by heart, and what it forgets."""

import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..analysis import counting
from .drawing import heading, note, panels, state
from .style import BLUE, GREY, VERMILLION, lecture_style, written_ticks

LOSS = "loss (nats per character)"
NEW_AND_OLD = (("new", BLUE), ("old", VERMILLION))
GUESSING = math.log(96)  # nats per character, of 96


def beside_pretraining(steps: int, batch: int, tuned: Sequence[float], newborn: Sequence[float]) -> str:
    """A table: the base's pretraining, as its record tells it; as many steps from the base; and from nothing.

    tuned, newborn: the losses on the new text from the first step to the last.
    """
    record = json.loads(resources.files("minilora").joinpath("base.json").read_text(encoding="utf-8"))
    done, before = record["settings"], record["validation"]["loss"][0]
    rows = [
        ("pretraining", done["steps"], done["batch_size"], [before, record["validation_loss"]]),
        ("fine-tuning", steps, batch, tuned),
        ("as much, from nothing", steps, batch, newborn),
    ]
    lines = [f"{'':<22}{'steps':>6}{'characters read':>17}{'operations':>12}{'loss before':>13}{'after':>7}"]
    for name, many, size, losses in rows:
        work = many * counting.operations("base", "full", batch=size, length=128)["training"]
        lines.append(f"{name:<22}{many:>6}{many * size * 128:>17,}{work:>12.1e}{losses[0]:>13.2f}{losses[-1]:>7.2f}")
    return "\n".join(lines)


def memory(need: Mapping[str, float]) -> Figure:
    """Bars of the GB (1e9 bytes) that full fine-tuning of each model needs before any activation, and two cards.

    need: {model: GB}, the least first.
    """
    with lecture_style():
        figure, [axes] = panels()
        axes.barh(range(len(need)), list(need.values()), color=VERMILLION, height=0.6)
        for place, size in enumerate(need.values()):
            words = f"{size:,.0f} GB" if size >= 1 else f"{1000 * size:.0f} MB"
            note(axes, words, (size, place), (6, 0), va="center", bbox={"facecolor": "white", "lw": 0, "pad": 1})
        top = len(need) - 0.25
        for size, ha in ((24, "right"), (80, "left")):
            axes.axvline(size, color=GREY, linestyle=(0, (4, 3)), zorder=0)
            note(axes, f" {size} GB ", (size, top), (0, 0), ha=ha, va="top", color=GREY)
        axes.set_yticks(range(len(need)), list(need))
        axes.set(xscale="log", xlim=(0.005, 40_000), ylim=(-0.6, top + 0.05))
        axes.set_xlabel("GB for weights, gradients and AdamW, without activations")
        fits = [name for name, size in need.items() if size < 24]
        return state(figure, f"On a card of 24 GB, full fine-tuning ends at {fits[-1]}", "")


def storage(copy: float, small: float) -> Figure:
    """TB that 1 to 100 tasks take, with a copy of the model each, and with one base and a small difference each."""
    tasks = np.array([1, 3, 10, 30, 100])
    with lecture_style():
        figure, [axes] = panels()
        for values, colour, words in (
            (tasks * copy, VERMILLION, "a copy a task"),
            (copy + tasks * small, BLUE, "one base and\nsmall differences"),
        ):
            axes.plot(tasks, values, "o-", color=colour, markersize=9)
            up = colour == VERMILLION
            how = {"ha": "right", "va": "bottom" if up else "top", "color": colour, "fontweight": "bold"}
            note(axes, f"{words}\n{values[-1]:.2f} TB at 100", (30, values[3]), (-12, 6 if up else -12), **how)
        axes.set(yscale="log", xlabel="tasks", ylabel="storage (TB)", ylim=(0.05, 60))
        written_ticks(axes, [float(n) for n in tasks])
        return state(figure, f"100 tasks: {100 * copy:.0f} TB, or {copy + 100 * small:.2f} TB", "")


def by_heart(seen: Mapping[str, Sequence[float]]) -> Figure:
    """The loss on the training text and on text not seen, against the step; a ring at the least of the second.

    seen: {"step", "train", "validation"}
    """
    step, best = seen["step"], int(np.argmin(seen["validation"]))
    with lecture_style():
        figure, [axes] = panels()
        for key, colour, words, va in (
            ("train", BLUE, "on its own text", "top"),
            ("validation", VERMILLION, "on text it has not seen", "bottom"),
        ):
            axes.plot(step, seen[key], "o-", color=colour, markersize=9)
            end, up = (step[-1], seen[key][-1]), 12 if va == "bottom" else -12
            note(axes, words, end, (0, up), ha="right", va=va, color=colour, fontweight="bold")
        axes.plot(step[best], seen["validation"][best], "o", markersize=22, mfc="none", mew=2, color=VERMILLION)
        axes.set(xlabel="training step", ylabel=LOSS)
        axes.margins(y=0.2)
        turned = seen["validation"][-1] > seen["validation"][best]
        said = f"From step {step[best]} on it learns by heart" if turned else "It has not begun to learn by heart"
        return state(figure, said, "A ring marks the best step.")


def forgetting(seen: Mapping[str, Sequence[float]], along: Sequence[float], walk: Mapping[str, Sequence]) -> Figure:
    """Both losses against the training step, and on the straight line from the base to where training ended.

    seen: {"step", "new", "old"}; along: the shares t of the way; walk: {"new", "old"}, the losses there
    """
    worse = seen["old"][-1] - seen["old"][0]
    with lecture_style():
        figure, [left, right] = panels(2, sharey=True)
        for key, colour in NEW_AND_OLD:
            left.plot(seen["step"], seen[key], "o-", color=colour, markersize=8)
            right.plot(along, walk[key], "o-", color=colour, markersize=8)
            _end(left, seen["step"][-1], seen[key][-1], f"{key} text: {seen[key][-1]:.2f}", colour)
        for axes in (left, right):
            axes.axhline(GUESSING, color=GREY, linestyle=(0, (4, 3)), linewidth=2, zorder=0)
        note(right, "pure guessing", (0, GUESSING), (0, 5), color=GREY)
        most = max(max(seen["new"]), max(seen["old"]), max(walk["old"]), GUESSING)
        left.set(xlabel="training step on the new text", ylabel=LOSS, ylim=(0, 1.15 * most))
        right.set_xlabel("t: how much of Δθ is added")
        heading(left, "while it trains")
        heading(right, "from θ₀ straight to θ₀ + Δθ")
        verb = "cost" if worse > 0 else "gain"
        return state(figure, f"{seen['step'][-1]} steps on the new text {verb} {abs(worse):.1f} nats on the old", "")


def _end(axes: Axes, x: float, y: float, words: str, colour: str) -> None:
    note(axes, words, (x, y), (0, 10), ha="right", color=colour, fontweight="bold", fontsize=14)


def frozen(results: Mapping[str, tuple[int, float, float]]) -> Figure:
    """Bars of the loss on the new and on the old text for each choice of what is trained.

    results: {choice: (parameters trained, loss on the new text, on the old text)}; LoRA's is blue
    """
    with lecture_style():
        figure, all_axes = panels(2, (8, 4.6))
        for axes, column, words in zip(all_axes, (1, 2), ("new text", "old text"), strict=True):
            for place, (choice, values) in enumerate(results.items()):
                axes.barh(place, values[column], 0.7, color=BLUE if choice.startswith("LoRA") else GREY)
                note(axes, f"{values[column]:.2f}", (values[column], place), (5, 0), va="center", fontsize=14)
            axes.set(xlim=(0, 1.25 * max(values[column] for values in results.values())), xticks=[])
            axes.spines["bottom"].set_visible(False)
            axes.invert_yaxis()
            heading(axes, f"loss on the {words}")
        labels = [f"{choice}\n{values[0]:,}" for choice, values in results.items()]
        all_axes[0].set_yticks(range(len(results)), labels, fontsize=13)
        all_axes[1].set_yticks([])
        forgot = sorted(results, key=lambda choice: results[choice][2])
        return state(figure, f"Least is forgotten by “{forgot[0]}”, most by “{forgot[-1]}”", "")
