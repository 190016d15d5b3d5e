"""What moves before a class: sliders that answer at once, since they draw from records, and an animation of a spectrum.

    classroom.rates()                                 sliders for r, alpha and the rate, from the records of `rates`
    classroom.ranks()                                 a slider for r, from those of `truncation`
    classroom.sliders(draw, rank=[1, 2, 4])           a slider for each name; draw(rank=2) gives the Figure to show
    classroom.spectrum_animation(spectra, steps)      moves by itself, in a browser, a slide or a page, without a kernel
    classroom.spectrum_frames(spectra, steps)         the same, as a row of pictures to print

A slider sets the value of a `widgets.Image`; where no widget can be shown, there is the first picture. In a cell, write
the call as the last line, or `display(...)` it.
"""

import base64
import functools
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..analysis.rank import energy_rank
from ..autograd.signatures import shown
from ..studies.findings import Row, ordered, rows_of, where
from ..studies.rates import NUMBERS, ranks_of, sweep
from ..studies.studies import load_records
from .drawing import LOSS, corner, label_ends
from .rates import WORDS, kinds_of
from .style import BLUE, GREY, VERMILLION, lecture_style, new_figure, powers_of_two, written_ticks

RING: dict[str, Any] = {"markersize": 17, "markerfacecolor": "none", "markeredgewidth": 3}
PIXELS = 80  # an inch: a picture that is sent at each move of a slider

# --- sliders ---------------------------------------------------------------------------------------------------------


def sliders(draw: Callable[..., Figure], **choices: Iterable) -> Any:
    """Sliders over a picture: a widget, which redraws draw(name=value, ...) as one moves. Each picture is drawn once.

    choices: for each name its values, or (values, the one to begin with).
    """
    try:
        import ipywidgets as widgets
    except ImportError as error:
        raise ImportError('sliders: needs ipywidgets: pip install "minilora[notebooks]"') from error

    class Shown(widgets.VBox):
        """The widgets; and the first picture, for a page that can show no widget."""

        def _repr_mimebundle_(self, **kwargs: Any) -> dict:
            return {**(super()._repr_mimebundle_(**kwargs) or {}), "image/png": first}

    @functools.cache
    def png(*values: Any) -> bytes:
        drawn = io.BytesIO()
        with lecture_style():
            draw(**dict(zip(choices, values, strict=True))).savefig(drawn, format="png", dpi=PIXELS)
        return drawn.getvalue()

    made: list[Any] = []
    for name, given in choices.items():
        values, begin = given if isinstance(given, tuple) else (list(given), None)
        if not values or begin not in (None, *values):
            raise ValueError(
                f"sliders: {name} = {shown(given)}, expected values to choose from, and one of them to begin with"
            )
        begin = values[0] if begin is None else begin
        made.append(widgets.SelectionSlider(options=values, value=begin, description=name, continuous_update=False))
    first = png(*(slider.value for slider in made))
    picture = widgets.Image(value=first, format="png")
    for slider in made:
        slider.observe(lambda change: setattr(picture, "value", png(*(one.value for one in made))), names="value")
    return Shown([*made, picture])


def rates(corpus: str = "unicode-names", data_folder: Any = None) -> Any:
    """Sliders for LoRA's rank, its alpha and the learning rate: the loss that training ended with, from the records.

    The records have several ranks for one text; for another, the ranks that they have.
    """
    rows = _of(corpus, rows_of(load_records("rates", data_folder), "rates", *NUMBERS, finite=False))
    ranks = sorted({rank for kind in kinds_of(rows) for rank in ranks_of(rows, kind)})
    tried = sorted({row["lr"] for row in rows if row["kind"] in WORDS})
    begin = 8 if 8 in ranks else ranks[0]
    best = min(sweep(rows, "alpha", begin), key=lambda row: row["loss"])["lr"]
    choices = {"rank": (ranks, begin), "alpha": [WORDS[kind] for kind in kinds_of(rows)], "rate": (tried, best)}
    return sliders(functools.partial(rate_picture, rows), **choices)


def rate_picture(rows: Sequence[Row], rank: int, alpha: str, rate: float) -> Figure:
    """Loss against rate at a rank and a convention for alpha, the others in grey; the point that was chosen."""
    kind = next(key for key, words in WORDS.items() if words == alpha)
    losses = [row["loss"] for row in rows if np.isfinite(row["loss"])]
    with lecture_style():
        figure = new_figure()
        axes = figure.add_subplot()
        for other, its in ((kind, r) for kind in kinds_of(rows) for r in ranks_of(rows, kind)):
            _sweep(axes, sweep(rows, other, its), color=GREY, linewidth=1, alpha=0.35)
        full = min(sweep(rows, "full"), key=lambda row: row["loss"])
        axes.axhline(full["loss"], color=VERMILLION, linestyle=(0, (6, 2)), linewidth=2)
        axes.set(xlabel="learning rate", ylabel=LOSS, ylim=(min(losses) - 0.05, max(losses) + 0.15))
        written_ticks(axes, sorted({row["lr"] for row in rows if row["kind"] in WORDS})[::2])
        corner(axes, [(f"full, at its best rate: {full['loss']:.2f}", VERMILLION)])
        scale = 16 / rank if kind == "alpha" else 2
        words = f"r = {rank}, {alpha}: ΔW = {scale:g} · B A"
        if rank not in ranks_of(rows, kind):
            axes.set_title(f"{words}\nnot in the records")
            return figure
        mine = sweep(rows, kind, rank)
        row = min(mine, key=lambda row: abs(np.log(row["lr"] / rate)))
        _sweep(axes, mine, color=BLUE, marker="o", markersize=8)
        axes.plot(
            row["lr"], row["loss"], "o", markersize=17, markerfacecolor="none", markeredgecolor=BLUE, markeredgewidth=3
        )
        nearest = "" if row["lr"] == rate else f" ({rate:g} was not tried)"
        axes.set_title(f"{words}\nrate {row['lr']:g}: loss {row['loss']:.2f}{nearest}")
    return figure


def _sweep(axes: Axes, rows: Sequence[Row], **look: Any) -> None:
    axes.plot([row["lr"] for row in rows], [row["loss"] for row in rows], **look)


def ranks(corpus: str = "unicode-names", data_folder: Any = None) -> Any:
    """A slider for the rank: full fine-tuning's Delta W cut to it, and LoRA trained at it, from the records."""
    numbers = ("method", "rank", "loss", "loss_spread")
    rows = _of(corpus, rows_of(load_records("truncation", data_folder), "truncation", *numbers))
    there = sorted({row["rank"] for row in where(rows, method="lora")})
    return sliders(functools.partial(rank_picture, rows), rank=(there, there[len(there) // 2]))


def rank_picture(rows: Sequence[Row], rank: int) -> Figure:
    """Two lines over the rank, and their points at the one that was chosen."""
    with lecture_style():
        figure = new_figure()
        axes = figure.add_subplot()
        ends, told = [], []
        for method, name, colour in (("truncated", "full, cut to r", VERMILLION), ("lora", "LoRA", BLUE)):
            line = [row for row in ordered(where(rows, method=method), "rank") if row["rank"] > 0]
            axes.plot([row["rank"] for row in line], [row["loss"] for row in line], "o-", color=colour, markersize=8)
            loss = where(line, rank=rank)[0]["loss"]
            axes.plot(rank, loss, "o", color=colour, **RING)
            ends.append((line[-1]["rank"], line[-1]["loss"], name, colour))
            told.append(f"{name} {loss:.2f}")
        axes.axvline(rank, color=GREY, linewidth=1)
        written_ticks(axes, sorted({row["rank"] for row in rows if row["rank"] > 0}))
        axes.set(xlabel="rank r", ylabel=LOSS)
        label_ends(axes, ends, gap=0.18)
        axes.set_title(f"r = {rank}: {', '.join(told)}")
    return figure


def _of(corpus: str, rows: Sequence[Row]) -> list[Row]:
    """The rows of one text; where the records have none of it, those of the text they begin with."""
    return [row for row in rows if row["corpus"] == corpus] or where(rows, corpus=rows[0]["corpus"])


# --- a spectrum while it trains --------------------------------------------------------------------------------------


class Animation:
    """A GIF that a notebook, a slide and a page show moving."""

    def __init__(self, gif: bytes, words: str):
        self.gif, self.words = gif, words

    def _repr_html_(self) -> str:
        return f'<img alt="{self.words}" src="data:image/gif;base64,{base64.b64encode(self.gif).decode()}">'


def spectrum_animation(spectra: Sequence[Any], steps: Sequence[int], seconds: float = 0.3) -> Animation:
    """Singular values of Delta W, a frame for each step.

    spectra: of each step the singular values, largest first; or a list of them for each matrix, whose geometric mean
    is drawn. Raises ValueError where the two have different lengths.
    """
    from PIL import Image  # comes with matplotlib

    frames = []
    for spectrum, step, limits in _frames(spectra, steps):
        with lecture_style():
            figure = new_figure()
            _spectrum(figure.add_subplot(), spectrum, step, limits)
            figure.set(dpi=PIXELS)
            figure.canvas.draw()
            pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
        frames.append(Image.fromarray(pixels).quantize(32, dither=Image.Dither.NONE))
    written, pauses = io.BytesIO(), [round(1000 * seconds)] * (len(frames) - 1) + [2000]
    frames[0].save(written, "gif", save_all=True, append_images=frames[1:], duration=pauses, loop=0)
    return Animation(written.getvalue(), f"The spectrum of the change from step {steps[0]} to step {steps[-1]}")


def spectrum_frames(spectra: Sequence[Any], steps: Sequence[int], count: int = 3) -> Figure:
    """Some of the animation's frames side by side, the first and the last among them."""
    frames = _frames(spectra, steps)
    chosen = [frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int))]
    with lecture_style():
        figure = new_figure()
        figure.set_size_inches(9, 3.6)
        for axes, frame in zip(figure.subplots(1, len(chosen), sharey=True, squeeze=False)[0], chosen, strict=True):
            _spectrum(axes, *frame)
            axes.label_outer()
    return figure


def _frames(spectra: Sequence[Any], steps: Sequence[int]) -> list[tuple[np.ndarray, int, tuple[float, float]]]:
    """(the spectrum, its step, limits that hold all of them)"""
    if len(spectra) != len(steps) or not len(steps):
        raise ValueError(f"spectrum_animation: {len(spectra)} spectra and {len(steps)} steps, expected one for each")
    means = [np.exp(np.log(np.maximum(np.atleast_2d(s), 1e-30)).mean(axis=0)) for s in spectra]
    top = max(s.max() for s in means)
    low = min((s[s > 1e-4 * top].min() for s in means if (s > 1e-4 * top).any()), default=top / 10)
    return [(s, step, (low / 1.5, top * 1.5)) for s, step in zip(means, steps, strict=True)]


def _spectrum(axes: Axes, spectrum: np.ndarray, step: int, limits: tuple[float, float]) -> None:
    seen = spectrum[spectrum >= limits[0]]
    axes.plot(np.arange(1, len(seen) + 1), seen, "o-", color=BLUE, markersize=6)
    axes.set(yscale="log", ylim=limits, xlim=(0.9, len(spectrum) * 1.1))
    written_ticks(axes, powers_of_two(len(spectrum))[:: 2 if len(spectrum) > 32 else 1])
    axes.set(xlabel="index", ylabel="singular value of ΔW")
    need = f"90 % in {energy_rank(spectrum)}" if len(seen) else "no change yet"
    axes.set_title(f"step {step}:\n{need}")
