"""What to choose, from the study's records: which matrices, which rank, and how to start. Rates are in `rates.py`."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..studies.findings import Records, Row, best_of, clearly, each, listed, ordered, rows_of, seeds_note, where
from .drawing import (
    LOOKS,
    LOSS,
    THIRD,
    bar,
    corner,
    fit,
    heading,
    line,
    name_astray,
    note,
    of_texts,
    panels,
    state,
)
from .style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, lecture_style, written_ticks


def matrices(records: Records) -> Figure:
    """Validation loss for each set of adapted matrices, at one budget of parameters."""
    rows = rows_of(records, "matrices", "corpus", "targets", "rank", "loss", "loss_spread")
    corpora, findings = each(rows, "corpus"), {}
    with lecture_style():
        figure, all_axes = panels(len(corpora), sharey=True)
        for axes, corpus in zip(all_axes, corpora, strict=True):
            found = where(rows, corpus=corpus)
            best, tied = best_of(found)
            for place, row in enumerate(found):
                _lying_bar(axes, place, row, row in tied)
            top = max(row["loss"] + row["loss_spread"] for row in found)
            axes.set(xlim=(0, top * 1.28), xlabel="validation loss\n(nats per character)")
            heading(axes, corpus)
            findings[corpus] = _which(best, [row["targets"] for row in tied], len(found))
        found = where(rows, corpus=corpora[0])
        all_axes[0].set_yticks(range(len(found)), [f"{row['targets']}  r={row['rank']}" for row in found])
        all_axes[0].invert_yaxis()
        lesson = "Every set has about as many trained parameters. Dark bars: not clearly worse than the best."
        return state(figure, of_texts(findings, end=seeds_note(rows)), lesson)


def _lying_bar(axes: Axes, place: float, row: Row, good: bool) -> None:
    look: dict[str, Any] = {"color": BLUE} if good else {"color": SKY, "hatch": "//"}
    axes.barh(place, row["loss"], 0.74, edgecolor="white", linewidth=0, **look)
    axes.errorbar(row["loss"], place, xerr=row["loss_spread"], color="black", capsize=4, elinewidth=2)
    weight, end = "bold" if good else "normal", (row["loss"] + row["loss_spread"], place)
    note(axes, f"{row['loss']:.2f}", end, (6, 0), va="center", fontsize=14, fontweight=weight)


def _which(best: Row, tied: Sequence[str], count: int) -> str:
    if len(tied) == count:
        return "no clear difference between the sets"
    if len(tied) == 1:
        return f"adapting {best['targets']} is clearly best"
    return f"best are {listed(tied)}" if len(tied) < 4 else f"no clear best: {len(tied)} of {count} sets tie"


def rank_choice(records: Records) -> Figure:
    """Validation loss against the rank of LoRA, at a constant alpha / r."""
    rows = rows_of(records, "ranks", "corpus", "rank", "loss", "loss_spread")
    corpora, findings = each(rows, "corpus"), {}
    with lecture_style():
        figure, all_axes = panels(len(corpora))
        for axes, corpus, look in zip(all_axes, corpora, (LOOKS["lora"], THIRD), strict=False):
            found = ordered(rows, "rank", corpus=corpus)
            fit(axes, found)
            name_astray(axes, found, "rank")
            line(axes, found, "rank", look)
            written_ticks(axes, [row["rank"] for row in found][:: min(len(corpora), 2)])
            axes.set_xlabel("rank r")
            heading(axes, corpus, look["color"])
            _, tied = best_of(found)
            findings[corpus] = _enough(tied, found)
        all_axes[0].set_ylabel(LOSS)
        lesson = "α/r and the learning rate are the same at every rank."
        return state(figure, of_texts(findings, end=seeds_note(rows)), lesson)


def _enough(tied: Sequence[Row], found: Sequence[Row]) -> str:
    """The least rank that is not clearly worse than the best, and from where on more is worse."""
    least, most = tied[0]["rank"], tied[-1]["rank"]
    said = f"rank {least} is enough"
    if least == found[0]["rank"]:
        said = f"no rank is clearly better than {least}"
    elif least == most:
        return f"rank {least} is clearly best"
    return said if most == found[-1]["rank"] else f"{said}, beyond {most} is worse"


def starts(records: Records) -> Figure:
    """What the initialisation does: loss at step 0 and after training, and the gradients that A and B get first."""
    keys = ("start", "gradient_A", "gradient_B", "before", "first", "first_spread", "loss", "loss_spread")
    rows = rows_of(records, "starts", *keys)
    lora, zero, both = (where(rows, start=start)[0] for start in ("lora", "both zero", "both random"))
    with lecture_style():
        figure, (left, right) = panels(2, width_ratios=(1.3, 1))
        left.axhline(lora["before"], color=GREY, linewidth=2, linestyle=(0, (4, 3)))
        for place, row in enumerate((lora, zero, both)):
            bar(left, place - 0.2, row["first"], row["first_spread"], ORANGE, "//", width=0.38)
            bar(left, place + 0.2, row["loss"], row["loss_spread"], BLUE, width=0.38)
            bar(right, place - 0.2, row["gradient_A"], 0, PURPLE, "//", width=0.38)
            bar(right, place + 0.2, row["gradient_B"], 0, GREEN, width=0.38)
        for axes in (left, right):
            axes.set_xticks(range(3), ("A random,\nB zero", "both\nzero", "both\nrandom"))
            axes.set_ylim(0, axes.get_ylim()[1] * 1.35)
        left.set_ylabel("loss (nats per character)")
        right.set_ylabel("gradient norm at step 0")
        corner(left, [("▨ at step 0", "#8A5F00"), ("■ after training", BLUE)])
        corner(right, [("▨ of A", PURPLE), ("■ of B", GREEN)])
        still = zero["gradient_A"] == zero["gradient_B"] == 0 and abs(zero["loss"] - zero["before"]) < 0.005
        learnt = "no gradient, nothing is learned" if still else "something is learned"
        away = both["first"] - both["before"]
        begins = f"{abs(away):.2f} nats {'above' if away > 0 else 'below'}" if abs(away) >= 0.005 else "at"
        sentence = f"Both zero: {learnt}. Both random: starts {begins} the base model"
        lesson = ("There is no clear difference between the random starts after training.", "Both random ends worse.",
                  "Both random ends better.")[clearly(both, lora)]  # fmt: skip
        return state(figure, sentence + seeds_note(rows), f"The dashed line is the base model. {lesson}")
