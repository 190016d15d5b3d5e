"""Lectures 8a to 8c: their tables and pictures, from plain numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from ..adapters.quantization import LEVELS
from .drawing import LOSS, corner, heading, label_ends, note, panels, state
from .style import BLUE, GREEN, GREY, PURPLE, VERMILLION, lecture_style
from .tables import Table
from .tables import table as table  # which the lectures call, too

SIZE = (9.0, 4.5)  # inches: a slide has room for it and a line above
WHERE = {  # where each method sits
    "prompt": "in front of the text",
    "prefix": "keys and values of every block",
    "houlsby": "behind attention and MLP",
    "pfeiffer": "behind the MLP",
    "bitfit": "the model's biases",
    "lora": "beside q and v",
    "pissa": "beside q and v",
    "dora": "beside q and v, and their rows' lengths",
}
COLOUR = {"prompt": PURPLE, "prefix": PURPLE, "houlsby": GREEN, "pfeiffer": GREEN, "bitfit": VERMILLION}
DASHES: dict[str, Any] = {"prefix": (0, (6, 2)), "houlsby": (0, (6, 2)), "pissa": (0, (6, 2)), "dora": (0, (2, 2))}


# --- 8a: prompts, bottlenecks ----------------------------------------------------------------------------------------


def starts(trained: Mapping[str, int], gap: Mapping[str, float], mergeable: Mapping[str, bool]) -> Table:
    """Where each method sits, what it trains, where it starts, and whether it merges."""
    start = {name: f"{far:.2f} away" if far else "the base's" for name, far in gap.items()}
    merges = {name: "yes" if can else "no" for name, can in mergeable.items()}
    return table(
        ["method", "where", "trained", "logits at the start", "can be merged"],
        [[name, WHERE[name], f"{trained[name]:,}", start[name], merges[name]] for name in trained],
    )


def curves(curves: Mapping[str, Mapping[str, Sequence[float]]], trained: Mapping[str, int]) -> Figure:
    """The loss of every method against the step, with what it trains at its end.

    curves: {method: {"step": [...], "loss": [...]}}, nats per character.
    """
    last = {name: curve["loss"][-1] for name, curve in curves.items()}
    end = max(curve["step"][-1] for curve in curves.values())
    with lecture_style():
        figure, [axes] = panels(size=SIZE)
        for name, curve in curves.items():
            axes.plot(curve["step"], curve["loss"], color=_hue(name), linestyle=DASHES.get(name, "-"))
        axes.set(xlabel="training step", ylabel=LOSS, xlim=(0, 1.45 * end), xticks=np.linspace(0, end, 6).round())
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.25 * (high - low), high)  # room for as many names
        axes.spines["bottom"].set_bounds(0, end)
        ends = [(end, last[name], f"{name}  {trained[name]:,}", _hue(name)) for name in curves]
        label_ends(axes, ends, gap=0.085)
        best = min(last, key=last.__getitem__)
        return state(figure, f"After {end} steps {best} is ahead of the other {len(curves) - 1}", "")


def prefix_shares(shares: np.ndarray, text: str) -> Figure:
    """The share of attention on the prefix, a row for each head, a column for each character.   shares: (L H, T)"""
    with lecture_style():
        figure, [axes] = panels(size=SIZE)
        image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.set_yticks(np.arange(1.5, len(shares), 4), [f"block {i}" for i in range(len(shares) // 4)])
        axes.set_xticks(range(len(text)), ["⏎" if c == "\n" else c for c in text], fontsize=11)
        for edge in range(4, len(shares), 4):
            axes.axhline(edge - 0.5, color="white", linewidth=2)
        axes.tick_params(length=0)
        figure.colorbar(image, ax=axes, label="share on the prefix")
        most, mean = np.ptp(shares, axis=1).max(), shares.mean()
        sentence = f"{mean:.0%} of attention is on the prefix; in one head it varies by {most:.0%} along the text"
        return state(figure, sentence, "")


def _hue(name: str) -> str:
    return COLOUR.get(name, BLUE)


# --- 8b: few bits ----------------------------------------------------------------------------------------------------


def levels(u: np.ndarray, entropy: Mapping[str, float]) -> Figure:
    """How weights over their block's largest are distributed, and where each kind has its levels.

    u: in [-1, 1]; entropy: {kind: bits of information in a code}.
    """
    grid, sigma = np.linspace(-1, 1, 400), u.std()
    density = lambda x: np.exp(-((x / sigma) ** 2) / 2) / sigma / np.sqrt(2 * np.pi)
    with lecture_style():
        figure, both = panels(len(entropy), SIZE, sharey=True)
        for axes, kind, hue in zip(both, entropy, (BLUE, VERMILLION), strict=True):
            axes.hist(u, 80, density=True, color="#D9D9D9")
            axes.plot(grid, density(grid), color=GREY, linewidth=2)
            axes.vlines(LEVELS[kind], 0, density(LEVELS[kind]) + 0.06, color=hue, linewidth=2.5)
            heading(axes, f"{kind}: {entropy[kind]:.2f} bits used of 4", hue)
            axes.set(xlabel="weight / largest of its block", xticks=(-1, -0.5, 0, 0.5, 1), yticks=[])
        return state(figure, "NF4's levels lie where a normal density has its weights", "")


# --- 8c: descendants, many adapters ----------------------------------------------------------------------------------


def rows_in_the_plane(
    w: np.ndarray, v: np.ndarray, d: np.ndarray, turned: Mapping[str, np.ndarray], longer: Mapping[str, np.ndarray]
) -> Figure:
    """Left, one row as it was (w), by LoRA (v) and by DoRA (d); right, how far each row turned and grew.

    w, v, d: (2,); turned: {"lora": degrees (d_out,), "dora": ...}; longer: shares of the length.
    """
    with lecture_style():
        figure, (left, right) = panels(2, SIZE)
        arrow = {"arrowstyle": "-|>", "linewidth": 3, "mutation_scale": 22, "shrinkA": 0, "shrinkB": 0}
        for row, words, hue, shift in (
            (w, "w", GREY, (4, -18)),
            (v, "v = w + s b A", VERMILLION, (-60, 8)),
            (d, "m v/‖v‖", BLUE, (-86, 2)),
        ):
            left.annotate("", (row[0], row[1]), (0, 0), arrowprops={**arrow, "color": hue})
            note(left, words, (row[0], row[1]), shift, color=hue, fontweight="bold")
        left.add_patch(Circle((0, 0), float(np.linalg.norm(d)), fill=False, color=BLUE, linestyle=(0, (2, 3))))
        left.set(xlim=(-0.2, 4), ylim=(-0.2, 3.6), aspect="equal", xticks=[], yticks=[])
        heading(left, "one row, in the plane")
        for name, hue, marker in (("lora", VERMILLION, "o"), ("dora", BLUE, "^")):
            right.plot(turned[name], 100 * longer[name], marker, color=hue, markersize=6, alpha=0.7)
        low, high = right.get_ylim()
        right.set(xlabel="turned by (degrees)", ylabel="longer by (%)", ylim=(low, high + 0.3 * (high - low)))
        corner(right, [("● LoRA", VERMILLION), ("▲ DoRA", BLUE)])
        heading(right, f"{len(turned['lora'])} rows, after training")
        return state(figure, "DoRA: A and B turn a row, m sets its length", "")


def along_a_line(weights: Sequence[float], along: Mapping[str, Sequence[float]], text: str) -> Figure:
    """Losses on the new and the old text against the weight of an adapter, with what a weight of -1 does as title."""
    none, minus = list(weights).index(0), list(weights).index(-1)
    with lecture_style():
        figure, [axes] = panels(size=SIZE)
        named = {"new": f"loss on {text}", "old": "loss on python-docs"}
        for (name, words), hue, up in zip(named.items(), (BLUE, VERMILLION), (8, 12), strict=True):
            axes.plot(weights, along[name], "o-", color=hue, markersize=9)
            note(axes, words, (weights[1], along[name][1]), (10, up), color=hue, fontweight="bold")
        axes.set(xlabel="weight w of the adapter", ylabel="loss (nats per character)", xticks=weights)
        new, old = (along[name][minus] - along[name][none] for name in ("new", "old"))
        sentence = f"A weight of −1 changes the loss by {new:+.2f} on the new text and by {old:+.2f} on the old"
        return state(figure, sentence, "")
