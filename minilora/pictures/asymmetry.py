"""Are A and B alike, from the study's records: each trained alone, and each in turn the one that begins at random."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..studies.findings import Records, Row, clearly, each, joined, listed, rows_of, seeds_note, where
from .drawing import heading, note, panels, state
from .style import BLUE, GREEN, VERMILLION, lecture_style

SHOWN: dict[str, tuple[str, str, str]] = {  # {kind: (what the picture calls it, colour, marker)}, from the top
    "A and B": ("both, A random", BLUE, "o"),
    "A and B, B random": ("both, B random", BLUE, "D"),
    "B": ("B alone", GREEN, "o"),
    "A": ("A alone", VERMILLION, "D"),
    "B, r=16": ("B alone, r = 16", GREEN, "o"),
    "A, r=16": ("A alone, r = 16", VERMILLION, "D"),
}


def asymmetry(records: Records) -> Figure:
    """Validation loss where both factors are trained and where one is, a panel for each text."""
    rows = rows_of(records, "asymmetry", "corpus", "kind", "lr", "trainable", "loss", "loss_spread")
    corpora = each(rows, "corpus")
    with lecture_style():
        figure, all_axes = panels(len(corpora), sharey=True)
        for axes, corpus in zip(all_axes, corpora, strict=True):
            for place, (kind, (_, colour, marker)) in enumerate(SHOWN.items()):
                _dot(axes, place, where(rows, corpus=corpus, kind=kind)[0], colour, marker)
            axes.margins(x=0.35)
            axes.set_xlabel("validation loss\n(nats per character)")
            heading(axes, corpus)
        all_axes[0].set_yticks(range(len(SHOWN)), [words for words, *_ in SHOWN.values()])
        for words, (_, colour, _) in zip(all_axes[0].get_yticklabels(), SHOWN.values(), strict=True):
            words.set_color(colour)
        all_axes[0].set_ylim(len(SHOWN) - 0.5, -0.6)
        found = {corpus: {kind: where(rows, corpus=corpus, kind=kind)[0] for kind in SHOWN} for corpus in corpora}
        alone = _where(
            {corpus: _alone(kinds) for corpus, kinds in found.items()}, "no clear difference between B and A"
        )
        begun = _where(
            {corpus: _begun(kinds) for corpus, kinds in found.items()}, "no clear difference by which begins random"
        )
        return state(figure, f"Alone, {alone}; {begun}{seeds_note(rows)}", _as_many(found))


def _dot(axes: Axes, place: int, row: Row, colour: str, marker: str) -> None:
    reach: dict[str, Any] = {"xerr": row["loss_spread"], "capsize": 5, "capthick": 2, "elinewidth": 2}
    axes.errorbar(row["loss"], place, color=colour, marker=marker, markersize=11, **reach)
    end = row["loss"] + row["loss_spread"], place
    note(axes, f"{row['loss']:.2f}", end, (9, 0), va="center", fontsize=14, color=colour, fontweight="bold")


def _alone(kinds: Mapping[str, Row]) -> str:
    """Whether training B alone or A alone ends lower, at rank 8 and at rank 16; "" where neither clearly does."""
    signs = [clearly(kinds[f"B{rank}"], kinds[f"A{rank}"]) for rank in ("", ", r=16")]
    if signs in ([-1, 1], [1, -1]):
        return "B and A change places with the rank"
    if not any(signs):
        return ""
    beats = "B beats A" if min(signs) < 0 else "A beats B"
    return beats if all(signs) else f"{beats} at r = {8 if signs[0] else 16} only"


def _begun(kinds: Mapping[str, Row]) -> str:
    """Which of A and B is better begun at random, where both are trained; "" where neither clearly is."""
    sign = clearly(kinds["A and B"], kinds["A and B, B random"])
    return ("A random is the better start", "", "B random is the better start")[1 + sign]


def _where(findings: Mapping[str, str], nothing: str) -> str:
    """What was found, and on which of the texts, where not on all; `nothing` where it was on none."""
    texts: dict[str, list[str]] = {}
    for corpus, finding in findings.items():
        texts.setdefault(finding, []).append(corpus)
    if len(texts) == 1:
        return joined({corpus: finding or nothing for corpus, finding in findings.items()})
    only = " only" * ("" in texts)
    return ", ".join(f"{finding} on {listed(many)}{only}" for finding, many in texts.items() if finding)


def _as_many(found: Mapping[str, Mapping[str, Row]]) -> str:
    """One factor at twice the rank beside both, which have as many parameters."""
    told = {}
    for corpus, kinds in found.items():
        sign = clearly(kinds["B, r=16"], kinds["A and B"])
        told[corpus] = ("better than", "not clearly different from", "worse than")[sign + 1]
    words = joined({corpus: f"B alone at r = 16 is {said} both at r = 8" for corpus, said in told.items()})
    return f"With as many trained parameters, {words}. Each kind has its own best learning rate."
