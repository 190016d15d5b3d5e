"""What to choose, from the study's records: which matrices, which rank, learning rate and scaling, and how to start."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..studies.findings import Records, Row, best_of, clearly, each, joined, listed, ordered, rows_of, seeds_note, where
from .drawing import (
    LOOKS,
    LOSS,
    SHORT,
    THIRD,
    bar,
    corner,
    fit,
    heading,
    label_ends,
    learning_rates,
    line,
    name_astray,
    note,
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
        return state(figure, joined(findings) + seeds_note(rows), lesson)


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
        return state(figure, joined(findings) + seeds_note(rows), lesson)


def _enough(tied: Sequence[Row], found: Sequence[Row]) -> str:
    """The least rank that is not clearly worse than the best, and from where on more is worse."""
    least, most = tied[0]["rank"], tied[-1]["rank"]
    said = f"rank {least} is enough"
    if least == found[0]["rank"]:
        said = f"no rank is clearly better than {least}"
    elif least == most:
        return f"rank {least} is clearly best"
    return said if most == found[-1]["rank"] else f"{said}, beyond {most} is worse"


def rates(records: Records) -> Figure:
    """Validation loss against learning rate: LoRA of rank 8 and full fine-tuning."""
    rows = rows_of(records, "rates", "kind", "lr", "loss", "loss_spread", finite=False)
    sweeps = {"lora": _sweep(rows, "r=8, alpha/r"), "full": _sweep(rows, "full")}
    with lecture_style():
        figure, [axes] = panels()
        shown = [row for found in sweeps.values() for row in found]
        fit(axes, shown)
        name_astray(axes, shown, "lr")
        ends = []
        for method, found in sweeps.items():
            line(axes, found, "lr", LOOKS[method])
            best, colour = best_of(found)[0], LOOKS[method]["color"]
            axes.plot(best["lr"], best["loss"], "o", markersize=20, markerfacecolor="none", color=colour, mew=2)
            ends.append((found[-1]["lr"], found[-1]["loss"], f"{SHORT[method]}\nbest {best['lr']:g}", colour))
        learning_rates(axes)
        axes.set_ylabel(LOSS)
        label_ends(axes, ends, gap=0.18)
        return state(figure, _compared(sweeps["lora"], sweeps["full"]) + seeds_note(rows), _edges(sweeps.values()))


def _compared(lora: Sequence[Row], full: Sequence[Row]) -> str:
    """How many times larger the best rate of LoRA is, unless one rate is good for both."""
    (best, tied), (full_best, full_tied) = best_of(lora), best_of(full)
    overlap = {row["lr"] for row in tied} & {row["lr"] for row in full_tied}
    if overlap:
        return f"LoRA and full fine-tuning share a good learning rate, {max(overlap):g}"
    times = best["lr"] / full_best["lr"]
    told = f"{times:.0f} times larger" if times > 1 else f"{1 / times:.0f} times smaller"
    return f"LoRA wants a learning rate about {told} than full fine-tuning"


def _sweep(rows: Sequence[Row], kind: str) -> list[Row]:
    """The runs of one kind by learning rate, those whose loss is not finite as infinitely bad."""
    found = ordered(rows, "lr", kind=kind)
    if not any(np.isfinite(row["loss"]) for row in found):
        raise ValueError(f"figures: no learning rate of {kind!r} gave a finite loss")
    return [row if np.isfinite(row["loss"]) else {**row, "loss": float("inf"), "loss_spread": 0.0} for row in found]


def _edges(sweeps: Iterable[Sequence[Row]]) -> str:
    """A warning where a best rate stands at the end of its sweep."""
    if any(best_of(found)[0]["lr"] in (found[0]["lr"], found[-1]["lr"]) for found in sweeps):
        return "A best rate stands at the end of the sweep: the optimum may lie beyond."
    return "Every best rate lies inside the sweep; its steps are about threefold, so factors are rough."


SCALINGS = {"α/r": "alpha/r", "α/√r": "alpha/sqrt(r)"}  # as written on the figure: as named in the records
SCALED_RANKS = {2: LOOKS["lora"], 8: THIRD, 32: {**LOOKS["full"], "color": PURPLE}}


def scaling(records: Records) -> Figure:
    """Validation loss against learning rate for three ranks, scaled by alpha / r and by alpha / sqrt(r)."""
    rows = rows_of(records, "rates", "kind", "lr", "loss", "loss_spread", finite=False)
    sweeps = {  # alpha / r and alpha / sqrt(r) are set to agree at r = 8
        words: {r: _sweep(rows, f"r={r}, {'alpha/r' if r == 8 else scale}") for r in SCALED_RANKS}
        for words, scale in SCALINGS.items()
    }
    everything = [found for by_rank in sweeps.values() for found in by_rank.values()]
    with lecture_style():
        figure, all_axes = panels(2, sharey=True)
        fit(all_axes[0], [row for found in everything for row in found])
        low, high = all_axes[0].get_ylim()
        for axes, (words, by_rank) in zip(all_axes, sweeps.items(), strict=True):
            for r, found in by_rank.items():
                line(axes, found, "lr", SCALED_RANKS[r])
            learning_rates(axes)
            heading(axes, f"scaled by {words}")
            marks = (("●", 2), ("◆", 8), ("■", 32))
            corner(axes, [(f"{mark} r={r}", SCALED_RANKS[r]["color"]) for mark, r in marks], 0.6)
        all_axes[0].set_ylim(low, high + 0.2 * (high - low))
        all_axes[0].set_ylabel(LOSS)
        moved = {words: _moves(by_rank) for words, by_rank in sweeps.items()}
        told = "; ".join(f"{finding} with {words}" for words, finding in moved.items())
        if len(set(moved.values())) == 1:
            told = f"{moved['α/r']} with either scaling"
        sentence = f"From r = 2 to 32 the best learning rate {told}"
        return state(figure, sentence + seeds_note(rows), _edges(everything))


def _moves(by_rank: dict[int, list[Row]]) -> str:
    """From which best rate to which, from the least rank to the largest, unless one rate is good for all."""
    found = [best_of(sweep) for sweep in by_rank.values()]
    common = set.intersection(*({row["lr"] for row in tied} for _, tied in found))
    first, last = found[0][0]["lr"], found[-1][0]["lr"]
    return "does not clearly move" if common or first == last else f"moves from {first:g} to {last:g}"


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
