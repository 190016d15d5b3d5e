"""Our table of methods beside PEFT's on a model of 3 billion parameters, as far as a method is in both."""

import itertools
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..analysis.peft_comparison import EXPERIMENTS, Experiment, best, clearly_right, kendall
from ..studies.findings import Records, Row, clearly, each, joined, ordered, rows_of, seeds_note, where
from .alternatives import _look
from .drawing import panels, state
from .style import lecture_style

SIGNIFICANT = 0.05


def comparison(methods: Records) -> Figure:
    """Each table's order of the methods, the best on top, a line for each method from column to column."""
    rows = rows_of(methods, "methods", "corpus", "method", "loss", "loss_spread")
    corpora = each(rows, "corpus")[:2]
    ours = {corpus: {row["method"]: row for row in where(rows, corpus=corpus)} for corpus in corpora}
    shared = [name for name in EXPERIMENTS if all(name in found for found in ours.values())]
    if len(shared) < 3:
        raise ValueError(f"figures: the records of 'methods' share {len(shared)} methods with PEFT's; 3 have an order")
    theirs = {name: best(name) for name in shared}
    columns = [
        [row["method"] for row in ordered(found.values(), "loss") if row["method"] in shared] for found in ours.values()
    ]
    columns.insert(1, sorted(shared, key=lambda name: -theirs[name].right))
    words = [{name: f"{found[name]['loss']:.2f}" for name in shared} for found in ours.values()]
    words.insert(1, {name: f"{100 * theirs[name].accuracy:.0f} %" for name in shared})
    heads = [f"{corpus}:\nloss" for corpus in corpora]
    heads.insert(1, "PEFT, 3 B:\nright")
    with lecture_style():
        figure, [axes] = panels()
        _columns(axes, columns, words, heads)
        findings = {corpus: _agreement(ours[corpus], theirs) for corpus in corpora}
        sentence = f"Here and on PEFT's model of 3 billion, {len(shared)} methods: {joined(findings)}"
        details = " ".join(_details(corpus, ours[corpus], theirs) for corpus in corpora)
        return state(figure, sentence + seeds_note(rows), f"{details} {_of_settings(shared)}")


def _columns(
    axes: Axes, columns: Sequence[Sequence[str]], words: Sequence[Mapping[str, str]], heads: Sequence[str]
) -> None:
    """A column for each order, with the names outside and a line for each method."""
    last, count = len(columns) - 1, len(columns[0])
    for name in columns[0]:
        places = [column.index(name) for column in columns]
        colour = _look(name)["color"]
        axes.plot(range(len(columns)), places, color=colour, linewidth=2.5, zorder=1)
        for x, place in enumerate(places):
            inside = 0 < x < last
            said = words[x][name]
            said = said if inside else f"{name}  {said}" if x == 0 else f"{said}  {name}"
            side = "center" if inside else "right" if x == 0 else "left"
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5} if inside else None
            at = x if inside else x - 0.04 if x == 0 else x + 0.04
            axes.text(at, place, said, ha=side, va="center", color=colour, fontsize=14, bbox=box)
    for x, head in enumerate(heads):
        axes.text(x, -0.8, head, ha="center", va="bottom", fontsize=14)
    axes.set(xlim=(-0.8, last + 0.8), ylim=(count - 0.4, -0.9 - 0.22 * count))
    axes.set_axis_off()


def _order(ours: Mapping[str, Row], theirs: Mapping[str, Experiment]) -> tuple[float, float]:
    """Kendall's tau of the two orders, and how often chance gives as large a one."""
    found = kendall([-ours[name]["loss"] for name in theirs], [theirs[name].right for name in theirs])
    return found.tau, found.p


def _agreement(ours: Mapping[str, Row], theirs: Mapping[str, Experiment]) -> str:
    tau, p = _order(ours, theirs)
    if p >= SIGNIFICANT:
        return "no clear agreement"
    return "the orders agree" if tau > 0 else "the orders are opposed"


def _details(corpus: str, ours: Mapping[str, Row], theirs: Mapping[str, Experiment]) -> str:
    """tau and p, and of the pairs that both tables tell apart, how many stand in the same order."""
    tau, p = _order(ours, theirs)
    pairs = list(itertools.combinations(theirs, 2))
    signs = [(-clearly(ours[a], ours[b]), clearly_right(theirs[a], theirs[b])) for a, b in pairs]
    decided = [a == b for a, b in signs if a and b]
    return (
        f"On {corpus} Kendall's tau is {tau:.2f} (exact p {p:.2g}); of {len(pairs)} pairs both tables tell "
        f"{len(decided)} apart, {sum(decided)} of them in the same order."
    )


def _of_settings(shared: Sequence[str]) -> str:
    """How much a method's place depends on its setting: the one whose settings differ most."""
    gap = lambda name: best(name).right - EXPERIMENTS[name][0].right
    most = max(shared, key=gap)
    first = EXPERIMENTS[most][0]
    return (
        f"PEFT's are at the best of its settings, with one seed; {most} has {100 * first.accuracy:.0f} % at the first "
        f"({first.setting}) and {100 * best(most).accuracy:.0f} % at another ({best(most).setting})."
    )
