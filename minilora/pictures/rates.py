"""Learning rates, from the study's records: LoRA's best beside full fine-tuning's, and how it follows the rank."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ..studies.findings import Records, Row, listed, rows_of, seeds_note
from ..studies.rates import NUMBERS, at, best_rates, ranks_of, slopes, sweep, times_full
from .drawing import (
    LOOKS,
    LOSS,
    SHORT,
    THIRD,
    corner,
    fit,
    heading,
    label_ends,
    learning_rates,
    line,
    name_astray,
    panels,
    state,
)
from .style import PURPLE, lecture_style, written_ticks

WORDS = {"alpha": "α constant", "alpha/r": "α = 2r", "rsLoRA": "rsLoRA"}
CONVENTION_LOOKS = {"alpha": LOOKS["lora"], "alpha/r": {**LOOKS["full"], "color": PURPLE}, "rsLoRA": THIRD}
STEADY = 1.5  # the grid's own step: a best rate that moves by less has not been seen to move


def rates(records: Records) -> Figure:
    """Validation loss against learning rate: LoRA of rank 8 and full fine-tuning, each with its best rate."""
    rows = rows_of(records, "rates", *NUMBERS, finite=False)
    sweeps = {"lora": sweep(rows, "alpha", 8), "full": sweep(rows, "full")}
    with lecture_style():
        figure, [axes] = panels()
        shown = [row for found in sweeps.values() for row in found]
        fit(axes, shown)
        name_astray(axes, shown, "lr")
        ends = []
        for method, found in sweeps.items():
            line(axes, found, "lr", LOOKS[method])
            best, colour = best_rates(found), LOOKS[method]["color"]
            axes.axvspan(best.min(), best.max(), color=colour, alpha=0.25, linewidth=0)
            ends.append((found[-1]["lr"], found[-1]["loss"], f"{SHORT[method]}\nbest {mean(best):.2g}", colour))
        learning_rates(axes)
        _written(axes.xaxis, axes.get_xlim())
        axes.set_ylabel(LOSS)
        label_ends(axes, ends, gap=0.18)
        return state(figure, _compared(times_full(rows, "alpha", 8)) + seeds_note(rows), _beside(rows, sweeps))


def _written(axis: Axis, limits: tuple[float, float]) -> None:
    """Ticks at rates that are easy to read, written out: a fine grid spans less than a power of ten."""
    easy = [digit * 10.0**power for power in range(-7, 3) for digit in (1, 2, 5)]
    axis.set_major_locator(FixedLocator([rate for rate in easy if limits[0] <= rate <= limits[1]]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))


def mean(values: np.ndarray) -> float:
    """The geometric mean, for rates and their ratios."""
    return float(np.exp(np.log(values).mean()))


def between(values: np.ndarray) -> str:
    """A mean, and from where to where it reaches over the seeds: "4.1 (3.8 to 4.4)\""""
    return f"{mean(values):.2g} ({values.min():.2g} to {values.max():.2g})"


def _compared(times: np.ndarray) -> str:
    """LoRA's best rate over full fine-tuning's, unless the seeds do not agree on which is larger."""
    if times.min() <= 1 <= times.max():
        return "no clear difference between the best rates of LoRA and of full fine-tuning"
    return f"LoRA's best learning rate is {between(times)} times full fine-tuning's"


def _beside(rows: Sequence[Row], sweeps: dict[str, list[Row]]) -> str:
    """The other ranks, what was reported elsewhere, and a warning where a best rate stands at the end of its sweep."""
    ratios = [mean(times_full(rows, "alpha", rank)) for rank in ranks_of(rows, "alpha")]
    said = f"Over all ranks, α constant, it is between {min(ratios):.2g} and {max(ratios):.2g} times full's."
    ends = [min(found, key=lambda row: row["loss"]) in (found[0], found[-1]) for found in sweeps.values()]
    return said + " A best rate stands at the end of its sweep: the optimum may lie beyond." * any(ends)


def scaling(records: Records) -> Figure:
    """The best rate against the rank under conventions for alpha; the loss there, and at the rate of rank 8."""
    rows = rows_of(records, "rates", *NUMBERS, finite=False)
    home = min(sweep(rows, "alpha", 8), key=lambda row: row["loss"])["lr"]
    looks = {kind: CONVENTION_LOOKS[kind] for kind in kinds_of(rows)}
    with lecture_style():
        figure, (left, right) = panels(2)
        for kind, look in looks.items():
            ranks = ranks_of(rows, kind)
            _reaching(left, ranks, [best_rates(sweep(rows, kind, rank)) for rank in ranks], look)
            _reaching(right, ranks, [at(rows, kind, rank) for rank in ranks], look)
            kept = {**look, "linestyle": ":", "markerfacecolor": "white", "linewidth": 1.5}
            _reaching(right, ranks, [at(rows, kind, rank, home) for rank in ranks], kept)
        left.set(yscale="log", ylabel="best learning rate")
        _written(left.yaxis, left.get_ylim())
        right.set_ylabel(LOSS)
        for axes in (left, right):
            ranks = ranks_of(rows, "alpha")
            written_ticks(axes, sorted({ranks[0], 8, ranks[-1]}))
            axes.set_xlabel("rank r")
        heading(left, "tuned at each rank")
        heading(right, f"tuned; hollow: at {home:g}")
        corner(left, [(WORDS[kind], str(look["color"])) for kind, look in looks.items()])
        if any(len(ranks_of(rows, kind)) < 2 for kind in looks):
            return state(figure, "One rank alone was looked at on this text", "")
        return state(figure, _moving(rows) + seeds_note(rows), _advice(rows, home))


def kinds_of(rows: Sequence[Row]) -> list[str]:
    """The conventions that were looked at."""
    return [kind for kind in WORDS if any(row["kind"] == kind for row in rows)]


def _reaching(axes: Axes, ranks: Sequence[int], values: Sequence[np.ndarray], look: dict) -> None:
    """A line through the means over the seeds, with bars from the least to the most."""
    array = np.array(values)  # (ranks, seeds)
    middle = array.mean(axis=1)
    reach = np.maximum([middle - array.min(axis=1), array.max(axis=1) - middle], 0)  # rounding may leave a mean outside
    axes.errorbar(ranks, middle, yerr=reach, capsize=5, capthick=2, elinewidth=2, markersize=9, **look)


def _moving(rows: Sequence[Row]) -> str:
    """By how many times the best rate changes from the least rank to the largest, under each convention."""
    first, *_, last = ranks_of(rows, "alpha")
    told: dict[str, list[str]] = {}
    for kind in kinds_of(rows):
        change = _change((last / first) ** slopes(rows, kind))
        told.setdefault(change, []).append(WORDS[kind].replace(" ", "\N{NO-BREAK SPACE}"))
    said = [f"{change} ({', '.join(words)})" for change, words in told.items()]
    return f"From r = {first} to {last} the best rate: {', '.join(said)}"


def _change(factors: np.ndarray) -> str:
    if factors.min() <= 1 <= factors.max() or np.abs(np.log(factors)).max() < np.log(STEADY):
        return "same"
    times = mean(factors)
    return f"×{times:.2g}" if times > 1 else f"÷{1 / times:.2g}"


def _advice(rows: Sequence[Row], home: float) -> str:
    """Each convention's power of r, which is clearly the least, what one rate for all costs, and who ends lowest."""
    powers = {kind: slopes(rows, kind) for kind in kinds_of(rows)}
    signed = lambda power: f"{power.round(2) + 0.0:+.2f}"  # no "-0.00"
    said = [f"{signed(p.mean())} ({signed(p.min())} to {signed(p.max())}) with {WORDS[k]}" for k, p in powers.items()]
    least, *others = sorted(powers, key=lambda kind: np.abs(powers[kind]).mean())
    clear = np.abs(powers[least]).max() < min(np.abs(powers[kind]).min() for kind in others)
    none = "neither" if len(powers) == 2 else "none"
    best = f"{WORDS[least]} keeps it most nearly" if clear else f"{none} clearly keeps it better"
    lost = lambda kind: max((at(rows, kind, r, home) - at(rows, kind, r)).mean() for r in ranks_of(rows, kind))
    costs = [f"{lost(kind):.2f} with {WORDS[kind]}" for kind in powers]
    return (
        f"Best rate as a power of r: {listed(said)}; {best}. One rate for all ranks costs up to {listed(costs)} nats. "
        f"{_lowest(rows)}"
    )


def _lowest(rows: Sequence[Row]) -> str:
    """Which convention ends clearly lowest at the largest rank, each at its own best rate."""
    rank = min(ranks_of(rows, kind)[-1] for kind in kinds_of(rows))
    ends = {WORDS[kind]: at(rows, kind, rank) for kind in kinds_of(rows)}
    first, second, *_ = sorted(ends, key=lambda words: ends[words].mean())
    tuned = f"Tuned at r = {rank}, "
    neither, lower = ("neither", "lower") if len(ends) == 2 else ("none", "lowest")
    if ends[first].max() < ends[second].min():
        return f"{tuned}{first} ends {lower}, {ends[first].mean():.2f} beside {ends[second].mean():.2f} with {second}."
    return f"{tuned}{neither} ends clearly {lower}."
