"""A classifier of pictures learns others, from the study's records: error over examples, and what it forgets."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..studies.findings import Records, Row, best_of, each, listed, ordered, rows_of, seeds_note, where
from .drawing import LOOKS, THIRD, heading, label_ends, panels, state
from .style import GREY, lecture_style, written_ticks

SHOWN: dict[str, tuple[str, dict[str, Any]]] = {  # {method: (what the picture calls it, how it looks)}
    "head": ("head alone", {"color": GREY, "marker": "^", "linestyle": (0, (2, 2))}),
    "last block": ("last block", THIRD),
    "lora": ("LoRA", LOOKS["lora"]),
    "full": ("full", LOOKS["full"]),
}


def images(records: Records) -> Figure:
    """Error on letters of unseen fonts against examples, and error on the old task at equal error on the new."""
    rows = rows_of(records, "images", "method", "examples", "lr", "trainable", "error", "error_spread", "matched")
    amounts = sorted(each(rows, "examples"))
    most = {method: where(rows, method=method, examples=amounts[-1])[0] for method in SHOWN}
    with lecture_style():
        figure, (left, right) = panels(2)
        for method, (_, look) in SHOWN.items():
            _errors(left, ordered(rows, "examples", method=method), look)
        written_ticks(left, amounts)
        left.set(xlabel="pictures of each letter", ylabel="wrong, new fonts (%)", ylim=(0, None))
        ends = [(amounts[-1], 100 * row["error"], *_called(method)) for method, row in most.items()]
        left.margins(x=0.1)
        label_ends(left, ends)
        for method, row in most.items():
            if row["matched"]:
                _forgotten(right, row["matched"], SHOWN[method][1])
        right.set(xlabel="wrong, Greek (%)", ylabel="wrong, what it knew (%)")
        right.invert_xaxis()
        right.set_ylim(0, None)
        heading(right, f"from {amounts[-1]} of each")
        return state(figure, f"{_learns(most)}; {_forgets(most)}{seeds_note(rows)}", _numbers(most))


def _called(method: str) -> tuple[str, str]:
    words, look = SHOWN[method]
    return words, look["color"]


def _errors(axes: Axes, rows: Sequence[Row], look: Mapping[str, Any]) -> None:
    x, y, spread = ([row[key] for row in rows] for key in ("examples", "error", "error_spread"))
    bars: dict[str, Any] = {"capsize": 5, "capthick": 2, "elinewidth": 2, "markersize": 9}
    axes.errorbar(x, 100 * np.array(y), yerr=100 * np.array(spread), **bars, **look)


def _forgotten(axes: Axes, matched: Sequence[Mapping[str, Any]], look: Mapping[str, Any]) -> None:
    """The mean over the seeds, and a band from the least to the most."""
    new, old = 100 * np.array([at["error"] for at in matched]), 100 * np.array([at["old"] for at in matched])
    axes.plot(new, old.mean(axis=1), **look)
    axes.fill_between(new, old.min(axis=1), old.max(axis=1), color=look["color"], alpha=0.2, linewidth=0)


def _learns(most: Mapping[str, Row]) -> str:
    """Who errs least on the new task, from the most examples."""
    best, alike = best_of(list(most.values()), "error")
    names = [SHOWN[row["method"]][0] for row in alike]
    if len(alike) == len(most):
        return "no clear difference in error"
    return f"{listed(names)} err{'s' if len(names) == 1 else ''} least ({100 * best['error']:.0f} %)"


def _forgets(most: Mapping[str, Row]) -> str:
    """Whether LoRA forgets less than all weights, at the least error on the new task that all reach with every seed."""
    lora, full = (most[method]["matched"][-1]["old"] for method in ("lora", "full"))
    if max(lora) < min(full) or max(full) < min(lora):
        return f"at equal error LoRA forgets {'less' if max(lora) < min(full) else 'more'} than full"
    return "at equal error LoRA clearly forgets neither more nor less than full"


def _numbers(most: Mapping[str, Row]) -> str:
    """What each trains, and what it has forgotten where all err alike and least."""
    told = [f"{SHOWN[method][0]} {row['trainable']:,}" for method, row in most.items()]
    last = {method: row["matched"][-1] for method, row in most.items() if row["matched"]}
    olds = [f"{100 * np.mean(at['old']):.0f} % for {SHOWN[method][0]}" for method, at in last.items()]
    new = 100 * next(iter(last.values()))["error"]
    return (
        f"Trained parameters: {listed(told)}. Where {new:.0f} % of Greek is wrong, of what was known "
        f"{listed(olds)} are; the head alone forgets nothing, since the blocks stay."
    )
