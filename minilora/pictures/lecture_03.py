"""The pictures of lecture 3: letters that have found each other, what attention looks at, and what training learns."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .drawing import corner, heading, label_ends, panels, state
from .style import BLUE, COLOURS, GREY, SKY, VERMILLION, lecture_style

LOSS = "loss (nats per character)"


def letter_map(groups: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Characters at their places in a plane, a colour for each group; moved apart just as far as keeps them readable.

    groups: {"digits": {"0": (across, up), ...}, ...}
    """
    letters = [(name, letter, at) for name, places in groups.items() for letter, at in places.items()]
    spots = np.array([at for _, _, at in letters], dtype=float)
    spots = (spots - spots.min(axis=0)) / np.ptp(spots, axis=0)  # both axes from 0 to 1
    colours = dict(zip(groups, COLOURS, strict=False))
    with lecture_style():
        figure, [axes] = panels()
        for (name, letter, _), (x, y) in zip(letters, _moved_apart(spots), strict=True):
            axes.text(x, y, letter, color=colours[name], ha="center", va="center", fontweight="bold")
        axes.set(xlim=(-0.05, 1.3), ylim=(-0.06, 1.06), xticks=[], yticks=[])
        axes.set(xlabel="first direction", ylabel="second direction")
        corner(axes, list(colours.items()), x=1.0)
        return state(figure, "Kinds of characters have found each other", "")


def _moved_apart(spots: np.ndarray, across: float = 0.036, up: float = 0.062) -> np.ndarray:
    """The places, each pair at least a letter's width or height apart: those that are nearer push each other away."""
    size, spots = np.array([across, up]), spots.copy()
    for _ in range(500):
        apart = (spots[:, None] - spots[None]) / size  # (n, n, 2), in letters
        far = np.sqrt((apart**2).sum(axis=-1)) + np.eye(len(spots))
        push = np.where(far < 1, (1 - far) / 2, 0)[..., None] * apart / np.maximum(far, 1e-9)[..., None]
        if not push.any():
            break
        spots += push.sum(axis=1) * size
    return spots


def attention_maps(text: str, scores: np.ndarray, masked: np.ndarray, weights: np.ndarray) -> Figure:
    """A head's scores, what the mask leaves of them, and its weights: queries in rows, keys in columns, each (T, T)."""
    limit = float(np.abs(scores).max())
    shown: tuple[tuple[str, np.ndarray, dict[str, Any]], ...] = (
        ("scores", scores, {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}),
        ("masked", masked, {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}),
        ("weights", weights, {"cmap": "Blues", "vmin": 0, "vmax": 1}),
    )
    with lecture_style():
        figure, all_axes = panels(3, (10.5, 3.9))
        letters, size = [c.replace(" ", "␣") for c in text], min(14, 200 / len(text))
        for axes, (words, array, how) in zip(all_axes, shown, strict=True):
            axes.imshow(array, **how)
            axes.set_xticks(range(len(text)), letters, fontsize=size)
            axes.set_yticks(range(len(text)), letters, fontsize=size)
            axes.tick_params(length=0, pad=2)
            heading(axes, words)
        return state(figure, "No query looks ahead, and its weights add to 1", "Query: row. Key: column.")


def heads(previous: np.ndarray, blank: np.ndarray, share: float) -> Figure:
    """Each head's weight on the character before, and on white space.   both (layers, heads); share: of white space"""
    with lecture_style():
        figure, all_axes = panels(2, (8, 3.7))
        told = ((previous, "on the character before"), (blank, f"on white space ({share:.0%} of the text)"))
        for axes, (array, words) in zip(all_axes, told, strict=True):
            axes.imshow(array, cmap="Blues", vmin=0, vmax=1, aspect="auto")
            for (i, j), part in np.ndenumerate(array):
                axes.text(j, i, f"{part:.0%}", ha="center", va="center", color="white" if part > 0.5 else "black")
            axes.set(xlabel="head", xticks=range(array.shape[1]), yticks=range(array.shape[0]))
            heading(axes, words)
        all_axes[0].set_ylabel("layer")
        layer, head = np.unravel_index(previous.argmax(), previous.shape)
        said = f"Head {head} of layer {layer} puts {previous.max():.0%} of its weight on the character before"
        return state(figure, said, "")


def learning(
    history: Mapping[str, Sequence[float]],
    validation: Mapping[str, Sequence[float]],
    tables: Mapping[int, float],
    pretrained: float,
) -> Figure:
    """Training and validation loss against the step, beside tables of what follows 0, 1, 2, ... characters.

    history, validation: {"step", "loss"}; tables: {characters before: loss}; pretrained: the course's model's loss
    """
    steps, losses = (np.array(validation[key]) for key in ("step", "loss"))
    with lecture_style():
        figure, [axes] = panels()
        axes.plot(history["step"], history["loss"], color=SKY, linewidth=1)
        axes.plot(steps, losses, color=BLUE)
        for loss in (*tables.values(), pretrained):
            axes.axhline(loss, color=GREY, linestyle=(0, (4, 3)), linewidth=1.5, zorder=0)
        axes.set(xlabel="step", ylabel=LOSS, xlim=(0, steps[-1]), ylim=(min(pretrained, *tables.values()) - 0.3, 4.8))
        best = min(tables, key=tables.__getitem__)
        shown = {n: loss for n, loss in tables.items() if n <= 2 or n == best}
        ends = [(steps[-1], loss, f"table after {n}", GREY) for n, loss in shown.items()]
        label_ends(axes, [*ends, (steps[-1], pretrained, "pretrained", VERMILLION)], gap=0.08)
        return state(figure, _learned(steps, losses, tables), "")


def _learned(steps: np.ndarray, losses: np.ndarray, tables: Mapping[int, float]) -> str:
    beaten = [n for n, loss in tables.items() if losses.min() < loss]
    if not beaten:
        return f"After {steps[-1]} steps it knows less than a table of single characters"
    most = min(beaten, key=tables.__getitem__)
    crossed = steps[losses < tables[most]][0]
    return f"After {crossed} steps it knows more than a table of what follows {most} character{'s' * (most != 1)}"


def temperatures(prompt: str, letters: Sequence[str], chances: Mapping[float, np.ndarray]) -> Figure:
    """Bars of the probability of each next character, a colour for each temperature.   chances: {τ: (n,)}"""
    with lecture_style():
        figure, [axes] = panels(1, (8, 4.2))
        width = 0.82 / len(chances)
        for i, p in enumerate(chances.values()):
            axes.bar(np.arange(len(letters)) + width * (i - (len(chances) - 1) / 2), p, width, color=COLOURS[i])
        axes.set_xticks(range(len(letters)), [_visible(letter) for letter in letters])
        axes.set_ylabel("probability")
        corner(axes, [(f"τ = {tau:g}", COLOURS[i]) for i, tau in enumerate(chances)])
        return state(figure, f"“{prompt}…”", "What comes next, at each temperature.")


def _visible(letter: str) -> str:
    return repr(letter)[1:-1].replace(" ", "␣")
