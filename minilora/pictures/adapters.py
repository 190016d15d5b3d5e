"""What `minilora adapter` draws: the spectra of one adapter's updates and where their norm is; two adapters compared.

Rows are those of the workbench (`interop/workbench.py`); the titles are computed from them.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..interop.updates import layer_and_kind
from ..interop.workbench import enough, in_words, shares
from ..nn.files import write_beside
from ..studies.findings import percent
from .drawing import corner, heading, panels, state
from .style import BLUE, METADATA, VERMILLION, lecture_style

FORMATS = (".png", ".svg", ".pdf")
Rows = Sequence[Mapping[str, Any]]


def save_one(figure: Figure, path: Path) -> Path:
    """Write a picture into one file, in the format of its ending."""
    kind, drawn = path.suffix.removeprefix("."), io.BytesIO()
    with lecture_style():
        figure.savefig(drawn, format=kind, metadata=METADATA.get(kind))
    return write_beside(path, lambda file: file.write(drawn.getvalue()))


def spectra(rows: Rows, name: str) -> Figure:
    """The singular values of each layer's updates, and a map of their norms by layer and kind."""
    with lecture_style():
        figure, (left, right) = panels(2, width_ratios=(1, 1.15))
        layers, kinds = axes_of(rows)
        for place, layer in enumerate(layers):
            own = [row["singular_values"] for row in rows if layer_of(row) == layer]
            s = np.sqrt(sum(np.pad(s, (0, max(map(len, own)) - len(s))) ** 2 for s in own))  # (r,) of all its matrices
            shown = s[s > 1e-6 * s[0]] if s[0] else s[:0]
            colour = colormaps["cividis"](0.92 * place / max(1, len(layers) - 1))
            left.plot(np.arange(1, len(shown) + 1), shown, color=colour, linewidth=2, marker="o", markersize=4)
        left.set(xlabel="direction i", ylabel="singular value of ΔW")
        values = np.concatenate([line.get_ydata() for line in left.lines])  # type: ignore[misc]
        if values.max() > 10 * values.min():
            left.set_yscale("log")  # a log axis of less than a decade would be without a number
        else:
            left.set_ylim(0, None)
        left.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        left.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        heading(left, "layers, dark to light" if len(layers) > 1 else "all matrices")
        norms = grid(rows, layers, kinds, "frobenius_norm")
        draw_map(figure, right, norms, layers, kinds, "‖ΔW‖", cmap="cividis", vmin=0)
        r, k = max(row["rank"] for row in rows), enough(rows)
        said = f"rank {r} holds what rank {k} would: 99 %" if k < r else f"rank {r} is used in full"
        share = shares(rows, 1)
        most = max(share, key=lambda kind: share[kind])
        where = f"; {most} has {percent(share[most])} of the energy" if len(share) > 1 else ""
        return state(
            figure, f"In {name} {said}{where}", "Each line is the root of the sum of squares over a layer's matrices."
        )


def comparison(found: Mapping[str, Any]) -> Figure:
    """The cosine of two adapters' updates by layer and kind, and what of their subspaces they share by layer."""
    rows = found["matrices"]
    with lecture_style():
        figure, (left, right) = panels(2, width_ratios=(1.15, 1))
        layers, kinds = axes_of(rows)
        draw_map(
            figure, left, grid(rows, layers, kinds, "cosine"), layers, kinds, "cosine", cmap="PuOr_r", vmin=-1, vmax=1
        )
        for key, colour, mark in (("similarity_A", BLUE, "o"), ("similarity_B", VERMILLION, "s")):
            mean = np.ma.masked_invalid(grid(rows, layers, kinds, key)).mean(axis=1)  # (layers,)
            right.plot(range(len(layers)), mean, color=colour, marker=mark, markersize=8)
        right.set(ylim=(0, 1.3), yticks=[0, 0.5, 1], xlabel="layer")
        right.set_xticks(*ticks(layers))
        corner(right, [("● of A", BLUE), ("■ of B", VERMILLION)])
        heading(right, "shared subspace φ")
        words = in_words(found["cosine"], found["norm_ratio"])
        lesson = "φ = 1: the smaller subspace lies in the larger one; 0: they are orthogonal."
        return state(figure, f"Beside the first, the second adapter has {words}: cosine {found['cosine']:.2f}", lesson)


# --- layers and kinds ------------------------------------------------------------------------------------------------


def layer_of(row: Mapping[str, Any]) -> str:
    """The layer that a row's matrix is in, or "other"."""
    return layer_and_kind(row["name"])[0] or "other"


def axes_of(rows: Rows) -> tuple[list[str], list[str]]:
    """The layers and the kinds of matrices that there are, in the order of the rows."""
    return list(dict.fromkeys(map(layer_of, rows))), list(dict.fromkeys(layer_and_kind(row["name"])[1] for row in rows))


def grid(rows: Rows, layers: Sequence[str], kinds: Sequence[str], key: str) -> np.ndarray:
    """A number of each matrix as an array (layers, kinds), NaN where there is no such matrix; of several, the mean."""
    cells: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        if row[key] is not None:
            place = layers.index(layer_of(row)), kinds.index(layer_and_kind(row["name"])[1])
            cells.setdefault(place, []).append(row[key])
    found = np.full((len(layers), len(kinds)), np.nan)
    for place, values in cells.items():
        found[place] = np.mean(values)
    return found


def draw_map(
    figure: Figure, axes: Axes, values: np.ndarray, layers: Sequence[str], kinds: Sequence[str], name: str, **how: Any
) -> None:
    """A heat map of layers by kinds, with its scale."""
    picture = axes.imshow(np.ma.masked_invalid(values), aspect="auto", **how)
    axes.set_xticks(range(len(kinds)), [kind.rpartition(".")[2] if unique(kinds) else kind for kind in kinds])
    axes.tick_params(axis="x", rotation=35 if len(kinds) < 5 else 60, labelsize=13, length=0)
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(*ticks(layers))
    axes.set_ylabel("layer")
    axes.spines[:].set_visible(False)
    figure.colorbar(picture, ax=axes, shrink=0.9, aspect=18, pad=0.03)
    heading(axes, f"{name} by layer and kind")


def unique(kinds: Sequence[str]) -> bool:
    """Whether the last parts of the kinds' names tell them apart."""
    return len({kind.rpartition(".")[2] for kind in kinds}) == len(kinds)


def ticks(layers: Sequence[str]) -> tuple[list[int], list[str]]:
    """At most ten places along an axis of layers, and the numbers that they have."""
    step = -(-len(layers) // 10)
    places = list(range(0, len(layers), step))
    return places, [layers[place].replace("_", ".").rpartition(".")[2] for place in places]
