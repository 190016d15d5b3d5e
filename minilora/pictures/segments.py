"""A segmenter taught something else by few scenes, from the records: errors, what is forgotten, and masks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..studies.findings import Records, Row, clearly, each, listed, ordered, rows_of, seeds_note, where
from ..studies.frontier import Point, frontiers, olds, reach, signs, verdict
from ..studies.runs import summarise
from ..studies.segments import ENOUGH, METHODS, STUDIED, seen
from .drawing import LOOKS, THIRD, corner, heading, note, panels, state
from .style import BLUE, PURPLE, VERMILLION, lecture_style, new_figure, written_ticks

STYLES: dict[str, dict[str, Any]] = {
    "LoRA": LOOKS["lora"], "full": LOOKS["full"], "head": THIRD,
    "last blocks": {"color": PURPLE, "marker": "^", "linestyle": (0, (3, 1, 1, 1, 1, 1))},
}  # fmt: skip
KEYS = ("kind", "corpus", "method", "examples", "lr", "seed", "loss", "old_loss", "before", "old_before", "curve")
PANELS = {"prompt": "asked by a point", "before": "before", "after": "after LoRA", "truth": "truth"}


def means(rows: Sequence[Row], method: str) -> list[Row]:
    """A method's error on the studied task for each number of examples: the mean over the seeds, and the spread."""
    own = where(rows, kind="methods", method=method)
    found = [{"examples": n, **summarise(where(own, examples=n), "loss")} for n in each(own, "examples")]
    return ordered(found, "examples")


def segments(records: Records) -> Figure:
    """Left, the error on new scenes against the number of examples; right, the error on shapes against the new one."""
    rows = rows_of(records, "segments", *KEYS)
    studied = where(rows, kind="methods", corpus=STUDIED)
    found = {method: means(rows, method) for method in METHODS}
    methods = frontiers(studied)
    with lecture_style():
        figure, (left, right) = panels(2)
        for method, look in STYLES.items():
            x, y, spread = ([row[key] for row in found[method]] for key in ("examples", "loss", "loss_spread"))
            left.errorbar(x, y, yerr=spread, capsize=5, capthick=2, elinewidth=2, markersize=9, **look)
        written_ticks(left, [row["examples"] for row in found["LoRA"]])
        left.set(xlabel=f"scenes of {STUDIED}", ylabel=f"error on new {STUDIED} (1 − IoU)", ylim=(0, None))
        corner(right, [(method, look["color"]) for method, look in STYLES.items()])
        before, old = studied[0]["before"], studied[0]["old_before"]
        for method, look in STYLES.items():
            _frontier(right, methods[method], before, look)
        right.plot(before, old, "*", color="black", markersize=18, zorder=3)
        note(right, "base", (before, old), (-12, 4), ha="right", fontsize=14)
        right.set(xlabel=f"error on new {STUDIED}", ylabel="error on shapes")
        heading(right, "what is forgotten")
        title = f"With {ENOUGH} scenes, LoRA errs {_against(found, ENOUGH)}{seeds_note(found['LoRA'])}"
        return state(figure, title, f"{_told(found)} {_forgotten(methods, before)}")


def _frontier(axes: Axes, seeds: Sequence[Sequence[Point]], before: float, look: Mapping[str, Any]) -> None:
    """The mean of the seeds' frontiers, as far as all of them reach, and their band."""
    new = np.linspace(reach(seeds), before, 100)
    old = np.array([olds(seeds, x) for x in new])  # (points, seeds)
    axes.fill_between(new, old.min(axis=1), old.max(axis=1), color=look["color"], alpha=0.2, lw=0)
    axes.plot(new, old.mean(axis=1), color=look["color"], linestyle=look["linestyle"])


def _against(found: Mapping[str, Sequence[Row]], examples: int) -> str:
    """How LoRA's error compares with the others', at so many examples."""
    at = {method: where(rows, examples=examples)[0] for method, rows in found.items()}
    words: dict[int, list[str]] = {}
    for method in METHODS:
        if method != "LoRA":
            words.setdefault(clearly(at["LoRA"], at[method]), []).append(method)
    said = {-1: "clearly less than {}", 0: "not clearly otherwise than {}", 1: "clearly more than {}"}
    return ", ".join(said[sign].format(listed(words[sign])) for sign in said if sign in words)


def _told(found: Mapping[str, Sequence[Row]]) -> str:
    """Every method's error with the fewest examples, with `ENOUGH` and with the most."""
    told = []
    for method, rows in found.items():
        some = [f"{row['loss']:.2f}" for row in (rows[0], where(rows, examples=ENOUGH)[0], rows[-1])]
        told.append(f"{method} {', '.join(some)}")
    few, most = found["LoRA"][0]["examples"], found["LoRA"][-1]["examples"]
    least = f"With {few} scenes LoRA errs {_against(found, few)}."
    return f"{least} Errors with {few}, {ENOUGH} and {most} scenes: {'; '.join(told)}."


def _forgotten(methods: Mapping[str, list[list[Point]]], before: float) -> str:
    """Which method forgets less of shapes than full fine-tuning, where both have learned as much."""
    words = {-1: "less", 0: "not clearly otherwise", 1: "more"}
    told = [
        f"{name} {words[verdict(signs(seeds, methods['full'], before))]}"
        for name, seeds in methods.items() if name != "full"
    ]  # fmt: skip
    return f"Of shapes is forgotten, against full fine-tuning at an equal error on {STUDIED}: {', '.join(told)}."


def segmented(records: Records) -> Figure:
    """A held-out scene of each task: the picture with its prompt, the masks before and after LoRA, and the truth."""
    rows = where(rows_of(records, "segments", *KEYS), kind="tasks")
    tasks = {task: where(rows, corpus=task) for task in each(rows, "corpus")}
    with lecture_style():
        figure = new_figure()
        axes = figure.subplots(len(tasks), len(PANELS), squeeze=False)
        for line, (task, many) in zip(axes, tasks.items(), strict=True):
            one = next(row["shown"] for row in many if "shown" in row)
            image = seen(one["image"], one["side"])
            for place, name in zip(line, PANELS, strict=True):
                place.imshow(
                    image if name == "prompt" else _over(image, seen(one[name], one["side"])), "gray", vmin=0, vmax=1
                )
                place.set(xticks=[], yticks=[], frame_on=False)
            line[0].plot(*one["point"], "o", color=VERMILLION, markersize=9, mec="white", mew=1.5)
            line[0].set_ylabel(task)
        for place, words in zip(axes[0], PANELS.values(), strict=True):
            heading(place, words)
        told = [f"{task} {_iou(many, 'before'):.2f} → {_iou(many, 'loss'):.2f}" for task, many in tasks.items()]
        title = f"LoRA on {ENOUGH} scenes: IoU on new {listed(told)}"
        boxes = [f"{task} {_iou(many, 'box_before'):.2f} → {_iou(many, 'box'):.2f}" for task, many in tasks.items()]
        low = max(rows, key=lambda row: row["loss"])
        lesson = (
            f"Asked by a box instead: {listed(boxes)}. Means over held-out scenes and seeds; the least of a seed, by a "
        )
        lesson += f"point, is {1 - low['loss']:.2f}, on {low['corpus']}. On shapes IoU falls from "
        lesson += f"{_iou(rows, 'old_before'):.2f} to {_iou(rows, 'old_loss'):.2f}, the mean over the tasks."
        return state(figure, title + seeds_note([{"seeds": len(many)} for many in tasks.values()]), lesson)


def _iou(rows: Sequence[Row], number: str) -> float:
    return 1 - float(np.mean([row[number] for row in rows]))


def _over(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A picture in which a mask is painted blue.   -> (S, S, 3)"""
    blue = np.array([int(BLUE[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    share = 0.75 * mask[..., None]
    return (1 - share) * (0.4 + 0.6 * image[..., None]) + share * blue
