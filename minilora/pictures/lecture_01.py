"""What lectures 1a and 1b draw: tables of numbers, thin products, what an SVD does, and how noise hides a rank."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .drawing import panels
from .style import BLUE, COLOURS, GREY, VERMILLION, lecture_style, written_ticks

Array = np.ndarray
INCH = 100  # dots: nine inches by four fit a slide


# --- tables ----------------------------------------------------------------------------------------------------------


def tables(matrices: Sequence[Array], titles: Sequence[str], digits: int = 1) -> Figure:
    """Small matrices side by side, their numbers written into cells of a common colour scale: blue below zero."""
    most = max(float(np.abs(m).max()) for m in matrices) or 1.0
    with lecture_style():
        figure, axes = panels(len(matrices), (9, 3.2), INCH)
        for ax, matrix, title in zip(axes, matrices, titles, strict=True):
            ax.imshow(matrix, cmap="RdBu_r", vmin=-most, vmax=most)
            for (i, j), x in np.ndenumerate(matrix):
                words = f"{x:.{digits}f}".replace("-", "−") if round(abs(x), digits) else f"{0:.{digits}f}"
                ax.text(j, i, words, ha="center", va="center", color="white" if abs(x) > 0.55 * most else "black")
            ax.set_title(title, loc="center", fontsize=15)
            ax.set_axis_off()
    return figure


def thin_product(B: Array, A: Array) -> Figure:
    """M = B A as shapes to scale: A above M, B at its left, so that row i of B and column j of A meet in M's (i, j).

    B: (m, r), A: (r, n)
    """
    (m, r), n = B.shape, A.shape[1]
    unit = 2.4 / max(m, n)  # inches a number
    thick = max(r * unit, 0.25)  # thinner than this nobody sees it
    with lecture_style():
        figure, [ax] = panels(1, (9, 4), INCH)
        for x, y, width, height, colour, words in (
            (0, 0, n * unit, m * unit, GREY, f"M   {m:,} × {n:,}\n{m * n:,} numbers"),
            (-thick - 0.2, 0, thick, m * unit, BLUE, ""),
            (0, -thick - 0.2, n * unit, thick, VERMILLION, ""),
        ):
            ax.fill([x, x + width, x + width, x], [y, y, y + height, y + height], fc=colour, alpha=0.35, ec=colour)
            ax.text(x + width / 2, y + height / 2, words, ha="center", va="center", fontsize=13, fontweight="bold")
        told: dict[str, Any] = {"fontweight": "bold", "va": "center"}
        ax.text(-thick - 0.4, m * unit / 2, f"B   {m:,} × {r}\n{m * r:,} numbers", color=BLUE, ha="right", **told)
        place = (n * unit + 0.2, -thick / 2 - 0.2)
        ax.text(*place, f"A   {r} × {n:,}\n{r * n:,} numbers", color=VERMILLION, ha="left", **told)
        ax.set(xlim=(-3.4, 5.2), ylim=(m * unit + 0.1, -thick - 0.6), aspect="equal")
        ax.set_title(f"{m * n / (r * (m + n)):,.3g} times fewer numbers in two thin factors")
        ax.set_axis_off()
    return figure


# --- the singular value decomposition --------------------------------------------------------------------------------


def ellipse(matrix: Array, u: Array, s: Array, vt: Array) -> Figure:
    """A circle with the directions v_i, and what a 2 x 2 matrix makes of it, with s_i u_i."""
    turn = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(turn), np.sin(turn)])  # (2, 200)
    with lecture_style():
        figure, axes = panels(2, (9, 4), INCH)
        shapes: tuple[tuple[Axes, Array, Array, str], ...] = (
            (axes[0], circle, vt, "v{i}"),
            (axes[1], matrix @ circle, (u * s).T, "{s:.2f} u{i}"),
        )
        for ax, shape, arrows, name in shapes:
            ax.plot(*shape, color=GREY)
            for i, (tip, colour) in enumerate(zip(arrows, COLOURS, strict=False)):
                ax.annotate("", tip, (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 3})
                words = name.format(s=s[i], i="₁₂"[i])
                place = tip + 0.45 * tip / np.linalg.norm(tip)
                ax.text(place[0], place[1], words, color=colour, ha="center", va="center", fontsize=16)
            ax.set(xlim=(-2.6, 2.6), ylim=(-1.7, 1.7), aspect="equal")
            ax.set_axis_off()
        axes[0].set_title("in: a circle", loc="center")
        axes[1].set_title(f"out: an ellipse,\n{s[0] / s[1]:.1f} times as long as wide", loc="center")
    return figure


def stretch_by_angle(matrix: Array, angle: float) -> Figure:
    """The length of M x against the direction of x in the plane, with the angle of v_1 marked."""
    degrees = np.linspace(0, 180, 361)
    x = np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])  # (2, 361)
    length = np.linalg.norm(matrix @ x, axis=0)
    with lecture_style():
        figure, [ax] = panels(1, (9, 3.6), INCH)
        ax.plot(degrees, length, color=BLUE)
        ax.plot(angle, length.max(), "o", color=VERMILLION, markersize=11)
        ax.annotate("v₁", (angle, length.max()), (0, 9), textcoords="offset points", color=VERMILLION, ha="center")
        ax.set(xlabel="direction of x, in degrees", ylabel="length of M x", xticks=range(0, 181, 45))
        ax.set(ylim=(0, 1.25 * length.max()), title="Somewhere a closed circle is stretched the most")
    return figure


def descent(losses: Sequence[float], bound: float, rank: int) -> Figure:
    """The squared error of two factors while they train, above the bound of Eckart and Young."""
    with lecture_style():
        figure, [ax] = panels(1, (9, 3.8), INCH)
        ax.plot(losses, color=BLUE)
        ax.axhline(bound, color=VERMILLION, linestyle="--")
        words: dict[str, Any] = {"color": VERMILLION, "ha": "right", "va": "top"}
        ax.text(len(losses), bound * 0.93, f"Eckart and Young: {bound:.3g}", **words)
        ax.set(yscale="log", ylim=(bound * 0.5, max(losses[0], bound) * 1.3), xlabel="step", ylabel="squared error")
        ax.set_title(f"Two trained factors of rank {rank} never cross the bound")
    return figure


# --- a photograph ----------------------------------------------------------------------------------------------------


def spectrum(s: Array, lost: Array, needed: int) -> Figure:
    """Singular values, and the share of energy that the best approximation of each rank loses."""
    index = np.arange(1, len(s) + 1)
    with lecture_style():
        figure, axes = panels(2, (9, 4), INCH)
        axes[0].plot(index, s, color=BLUE)
        axes[0].set(yscale="log", xlabel="index", ylabel="singular value")
        axes[0].set_title("The layers get small quickly", fontsize=15)
        axes[1].plot(index, lost + 1e-16, color=BLUE)
        axes[1].set(yscale="log", ylim=(1e-6, 1), xlabel="rank r", ylabel="share of energy lost")
        axes[1].set_title(f"{needed} of {len(s)} layers hold 99 %", fontsize=15)
    return figure


def approximations(photo: Array, u: Array, s: Array, vt: Array, ranks: Sequence[int]) -> Figure:
    """The best pictures of a few ranks beside the photograph, with the share of numbers that each stores."""
    (m, n), k = photo.shape, len(s)
    with lecture_style():
        figure, axes = panels(len(ranks) + 1, (9, 3.2), INCH)
        for ax, r in zip(axes, [*ranks, k], strict=True):
            ax.imshow((u[:, :r] * s[:r]) @ vt[:r], cmap="gray", vmin=0, vmax=1)
            stored = f"{100 * r * (m + n) / (m * n):.1f} % stored" if r < k else "the photograph"
            ax.set_title(f"rank {r}\n{stored}", loc="center", fontsize=13)
            ax.set_axis_off()
    return figure


def one_rank(u: Array, s: Array, vt: Array, r: int) -> Figure:
    """The picture of one rank beside its part of the spectrum.   For a slider: see `classroom.sliders`."""
    m, n = len(u), vt.shape[1]
    shown = s[: max(200, r)]
    with lecture_style():
        figure, axes = panels(2, (9, 4), INCH)
        axes[0].imshow((u[:, :r] * s[:r]) @ vt[:r], cmap="gray", vmin=0, vmax=1)
        axes[0].set_axis_off()
        axes[1].plot(np.arange(1, len(shown) + 1), shown, color=GREY)
        axes[1].plot(np.arange(1, r + 1), s[:r], color=BLUE, linewidth=6)
        axes[1].set(yscale="log", xlabel="index", ylabel="singular value")
        kept = (s[:r] ** 2).sum() / (s**2).sum()
        axes[1].set_title(f"{r * (m + n):,} of {m * n:,} numbers\n{kept:.2%} of the energy", fontsize=15)
    return figure


# --- words and noise -------------------------------------------------------------------------------------------------


def words_and_chance(s_words: Array, s_shuffled: Array, above: int) -> Figure:
    """The spectrum of a table of words, without its first layer, the mean, over that of the same numbers shuffled."""
    k = len(s_words)
    with lecture_style():
        figure, [ax] = panels(1, (9, 4), INCH)
        for s, colour, dashes, words, place in (
            (s_words, BLUE, "-", "the word table", (8, 6)),
            (s_shuffled, VERMILLION, "--", "the same numbers, shuffled", (0, -36)),
        ):
            ax.plot(np.arange(2, k + 1), s[1:], color=colour, linestyle=dashes)
            at = min(4 if colour == BLUE else 1, k - 2)
            how: dict[str, Any] = {"color": colour, "fontweight": "bold", "textcoords": "offset points"}
            ax.annotate(words, (at + 1, s[at]), place, **how)
        written_ticks(ax, (2, 5, 20, 100, k))
        ax.set(xlabel="index (without the first, the mean)", ylabel="singular value", ylim=(0, 1.1 * s_words[1]))
        ax.set_title(f"{above} layers stand above what chance makes")
    return figure


def above_the_edge(s: Array, edge: float, visible: int) -> Figure:
    """The spectrum of a noisy matrix, with the edge below which noise alone would lie."""
    with lecture_style():
        figure, [ax] = panels(1, (9, 4), INCH)
        ax.plot(np.arange(1, len(s) + 1), s, "o", color=BLUE, markersize=5)
        ax.axhline(edge, color=VERMILLION, linestyle="--")
        ax.text(len(s), edge + 0.03 * s[0], "edge of the noise", color=VERMILLION, ha="right")
        how: dict[str, Any] = {"color": BLUE, "fontweight": "bold", "va": "center"}
        ax.text(0.05 * len(s), 0.9 * s[0], f"{visible} stand above the edge", **how)
        ax.set(xlabel="index", ylabel="singular value", ylim=(0, 1.1 * s[0]))
        ax.set_title(f"By rank, {len(s)} directions; by eye, {visible}")
    return figure


def nearest_rank(errors: Sequence[float], itself: float) -> Figure:
    """How far the approximation of each rank is from the clean matrix, and how far the noisy matrix itself is."""
    best = int(np.argmin(errors))
    saved = 1 - errors[best] / itself if itself else 0.0
    with lecture_style():
        figure, [ax] = panels(1, (9, 3.8), INCH)
        ax.plot(errors, color=BLUE)
        ax.plot(best, errors[best], "o", color=VERMILLION, markersize=11)
        ax.axhline(itself, color=GREY, linestyle="--")
        ax.text(len(errors) - 1, itself * 1.02, "the noisy matrix itself", color=GREY, ha="right", va="bottom")
        ax.set(xlabel="rank r of the approximation", ylabel="distance to\nthe clean matrix")
        ax.set(ylim=(0, 1.15 * (max(*errors, itself) or 1)))
        ax.set_title(f"Rank {best} throws away {saved:.0%} of the error")
    return figure


def drowning(levels: Array, cosines: Array, strengths: Array, n: int) -> Figure:
    """How well the strongest and the weakest direction of a square matrix are found at each noise, with the theory.

    levels: (L,), cosines: (L, k) of true and found left singular vectors, strengths: (k,) of an n x n matrix
    """
    lost = strengths / np.sqrt(n)  # the noise at which each direction drowns
    with lecture_style():
        figure, [ax] = panels(1, (9, 4), INCH)
        for j, colour in ((0, BLUE), (len(strengths) - 1, VERMILLION)):
            ax.plot(levels, cosines[:, j], "o", color=colour, markersize=7)
            below = np.linspace(levels[0], lost[j], 400)
            ax.plot(below, np.sqrt(np.maximum(1 - (below / lost[j]) ** 2, 0)), color=colour, linewidth=2)
            how: dict[str, Any] = {"color": colour, "fontweight": "bold", "ha": "right" if j else "left"}
            ax.text(lost[j] * (0.75 if j else 1), 0.45, f"strength {strengths[j]:.0f}", **how)
        ax.set(xscale="log", xlabel="noise σ", ylabel="|cosine| of true and found", ylim=(0, 1.05), xlim=(0.28, 20))
        ax.set_xticks([0.3, 1, 3, 10], ["0.3", "1", "3", "10"])
        ax.set_title(f"The weak direction drowns at σ = {lost[-1]:.1f},\nthe strong one at {lost[0]:.1f}")
    return figure
