"""Lecture 10: its tables and pictures, from plain numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..studies.findings import Records, by_kind, where
from .drawing import bar, corner, note, panels, state
from .lecture_08 import SIZE
from .style import BLUE, GREEN, GREY, VERMILLION, lecture_style
from .tables import Table, table


def facts(ours: Any, theirs: Any, name: str) -> Table:
    """The course's own model beside one of a known architecture: sizes, heads, norm and MLP."""
    a, config = theirs.architecture, ours.config
    gated = "gated" if a.gated else "not gated"
    rows = [
        ["parameters", ours.count(), theirs.count()],
        ["layers and width", f"{config.n_layer} × {config.n_embd}", f"{a.layers} × {a.width}"],
        ["heads, of queries and of keys", config.n_head, f"{a.heads} and {a.kv_heads}"],
        ["tokens it knows", config.vocab_size, a.vocab_size],
        ["longest text", ours.context, theirs.context],
        ["the norm, the MLP", "layer norm, GELU", f"{a.norm}, {a.activation}, {gated}"],
    ]
    return table(["", "ours", name], [[f"{v:,}" if isinstance(v, int) else v for v in row] for row in rows])


def training(history: Mapping[str, Sequence[float]], start: float, end: float, seen: int) -> Figure:
    """The loss of a training's batches, and the held-out loss before and after it.   seen: questions in all"""
    with lecture_style():
        figure, [axes] = panels(size=SIZE)
        axes.plot(history["step"], history["loss"], color=BLUE)
        axes.plot([0, history["step"][-1]], [start, end], "o", color=VERMILLION, markersize=10)
        note(axes, "held out", (0, start), (12, -4), color=VERMILLION, fontweight="bold")
        axes.set(xlabel="training step", ylabel="loss on answers\n(nats per token)", ylim=(0, None))
        return state(figure, f"{seen} questions take the loss on answers from {start:.2f} to {end:.2f}", "")


def spectra(spectra: Records, theirs: Sequence[float]) -> Figure:
    """The median spectrum of Delta W in lecture 6's model beside the real one's, each over its largest value."""
    rows = where(spectra["rows"], method="lora", corpus="unicode-names")
    ours = np.median([np.array(row["spectrum"][: len(theirs)]) / row["spectrum"][0] for row in rows], axis=0)
    places = range(1, len(theirs) + 1)
    with lecture_style():
        figure, [axes] = panels(size=SIZE)
        for name, curve, hue, at in (
            ("lecture 6, width 128", ours, GREY, 1),
            ("SmolLM2, width 576", np.array(theirs), BLUE, 4),
        ):
            axes.plot(places, curve, "o-", color=hue)
            note(axes, name, (at + 1, curve[at]), (12, 10), color=hue, fontweight="bold")
        axes.set(xlabel="index of the singular value", ylabel="singular value / largest", ylim=(0, 1.05))
        halves = [int((np.array(curve) > 0.5).sum()) for curve in (theirs, ours)]
        sentence = f"{halves[0]} of {len(theirs)} values of ΔW are over half the largest; {halves[1]} in lecture 6"
        return state(figure, sentence, "")


def amplification(subspaces: Records, row: Mapping[str, Any]) -> Table:
    """The amplification of each matrix: lecture 6's median beside the real model's, and the directions of 90 %."""
    before = by_kind(where(subspaces["rows"], corpus="unicode-names"))
    told = {kind: f"{np.median([one['amplification'] for one in rows]):.1f}" for kind, rows in before.items()}
    return table(
        ["matrix", "amplification, lecture 6", "SmolLM2, the study", "directions for 90 %"],
        [
            [kind, told.get(kind, ""), f"{value:.2f}", f"{row['energy_rank'][kind]:.1f}"]
            for kind, value in row["amplification"].items()
        ],
    )


def lost(shares: Mapping[tuple[str, float], float]) -> Figure:
    """The entries of Delta W of which a merge leaves nothing.   shares: {(format, size of Delta W): share}"""
    formats, sizes = list(dict.fromkeys(kind for kind, _ in shares)), list(dict.fromkeys(size for _, size in shares))
    hues = dict(zip(formats, (GREY, GREEN, VERMILLION), strict=True))
    with lecture_style():
        figure, [axes] = panels(size=SIZE)
        for (name, size), share in shares.items():
            shift = 0.27 * (formats.index(name) - 1)
            bar(axes, sizes.index(size) + shift, 100 * share, 0, hues[name], width=0.25)
        axes.set_xticks(range(len(sizes)), [f"ΔW × {size:g}" for size in sizes])
        axes.set(ylabel="entries that leave\nno trace (%)", ylim=(0, 115))
        corner(axes, list(hues.items()), x=0.3)
        gone = [f"{shares[formats[-1], size]:.0%}" for size in (sizes[0], sizes[-1])]
        sentence = f"In {formats[-1]} {gone[0]} of ΔW's entries are lost; of ΔW × {sizes[-1]:g} {gone[1]}"
        return state(figure, sentence, "")
