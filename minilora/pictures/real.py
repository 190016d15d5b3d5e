"""A real model on a task whose answers are run, from the study's records: what it gets right, and what it forgets."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..studies.findings import Records, Row, ordered, percent, rows_of, where
from ..training.classify import Share
from .drawing import note, panels, state
from .style import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION, lecture_style

SPREAD = "Bars reach over the 95 % interval of a share of so many questions (Wilson 1927)."
RATES = ((GREEN, "D"), (BLUE, "o"), (VERMILLION, "s"), (PURPLE, "v"), (ORANGE, "^"))  # the lowest first


def right_answers(records: Records) -> Figure:
    """The share of held-out questions that are answered rightly, by execution: as it came, and after LoRA by seeds."""
    rows = rows_of(records, "real", "lr", "seed", "steps", "right", "asked", "processor_seconds")
    before, after = where(rows, steps=0)[0], _seeds(rows)
    shares = [100 * row["right"] / row["asked"] for row in (before, *after)]
    with lecture_style():
        figure, [axes] = panels()
        for place, (row, share) in enumerate(zip((before, *after), shares, strict=True)):
            low, high = (100 * end for end in Share(row["right"], row["asked"]).interval)
            axes.bar(place, share, 0.7, color=BLUE if row["steps"] else GREY, edgecolor="white")
            reach = [[max(share - low, 0)], [max(high - share, 0)]]
            axes.errorbar(place, share, yerr=reach, color="black", capsize=6, capthick=2, elinewidth=2)
            note(axes, f"{share:.0f} %", (place, high), (0, 5), ha="center", fontweight="bold")
        names = [f"LoRA,\nseed {row['seed']}" for row in after]
        axes.set_xticks(range(len(shares)), ["as it\ncame", *names])
        axes.set(ylim=(0, 112), ylabel=f"right of {before['asked']} held-out\nquestions, by execution (%)")
        axes.set_yticks([0, 25, 50, 75, 100])
        minutes = max(row["processor_seconds"] for row in after) / 60
        least, most = f"{min(shares[1:]):.0f}", f"{max(shares[1:]):.0f}"
        told = f"{most} %" if least == most else f"{least} to {most} %"
        sentence = f"SQL that is right: {shares[0]:.0f} % before, {told} after {after[0]['steps']} steps of LoRA"
        lesson = f"A training at {after[0]['lr']:g} takes up to {minutes:.0f} minutes of one core's time. {SPREAD}"
        return state(figure, sentence, lesson)


def _share(row: Row) -> float:
    return row["right"] / row["asked"]


def _seeds(rows: Sequence[Row]) -> list[Row]:
    """The rows of the rate that has most seeds."""
    trained = [row for row in rows if row["steps"]]
    if not trained:
        raise ValueError("figures: the records have no row of a trained model; make them anew with --force")
    rates = [row["lr"] for row in trained]
    return ordered(trained, "seed", lr=max(rates, key=rates.count))


def english_forgotten(records: Records) -> Figure:
    """Loss on English prose against loss on the answers, along a training at each rate, from where all begin."""
    keys = ("lr", "seed", "steps", "right", "asked", "loss", "old_loss", "curve")
    rows = rows_of(records, "real", *keys)
    before = where(rows, steps=0)[0]
    lines = ordered([row for row in rows if row["steps"] and not row["seed"]], "lr")
    with lecture_style():
        figure, [axes] = panels()
        axes.set(xscale="log", xlabel="loss on the answers in SQL (nats per token)")
        axes.set_ylabel("loss on English prose\n(nats per token)")
        for row, (colour, marker) in zip(lines, RATES, strict=False):
            x, y = [before["loss"], *row["curve"]["loss"]], [before["old_loss"], *row["curve"]["old_loss"]]
            axes.plot(x, y, color=colour, marker=marker, markersize=9)
            for other in (other for other in rows if other["seed"] and other["lr"] == row["lr"]):
                axes.plot(other["loss"], other["old_loss"], marker, color=colour, markersize=9, fillstyle="none", mew=2)
            words = f"{row['lr']:g}: {percent(_share(row))} right"
            lowest = row is min(lines, key=lambda row: row["old_loss"])  # below it there is room
            offset, ha = ((10, -26), "right") if lowest else ((-12, 0), "right")
            note(axes, words, (x[-1], y[-1]), offset, color=colour, fontweight="bold", fontsize=14, ha=ha)
        axes.plot(before["loss"], before["old_loss"], "*", color="black", markersize=18, zorder=3)
        note(axes, "as it came", (before["loss"], before["old_loss"]), (4, -24), ha="right", fontsize=14)
        _written_losses(axes, [before["loss"], *(row["loss"] for row in lines)])
        axes.margins(0.12, 0.2)
        axes.set_xlim(left=min(row["loss"] for row in lines) / 14)  # room for the words at their ends
        lesson = (
            "Right to left is learning, upwards is forgetting; a point is a quarter of a run. At each rate one seed is "
            "drawn, and of others, hollow, the end."
        )
        return state(figure, _paid(lines, before), lesson)


def _written_losses(axes: Axes, losses: Sequence[float]) -> None:
    """Ticks with plain numbers on a log axis, as many as the losses span."""
    wanted = [tick for tick in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5) if min(losses) / 1.5 < tick < max(losses) * 1.5]
    axes.set_xticks(wanted, [f"{tick:g}" for tick in wanted])
    axes.minorticks_off()


def _paid(lines: Sequence[Row], before: Row) -> str:
    """What the rate that answers most rightly pays in English, and the rate that pays most."""
    best = max(lines, key=_share)
    dearest = max(lines, key=lambda row: row["old_loss"])
    right, cost = lambda row: percent(_share(row)), lambda row: f"{row['old_loss'] - before['old_loss']:+.2f}"
    told = f"{right(best)} right for {cost(best)} nats of English at {best['lr']:g}"
    return told if dearest is best else f"{told}; {right(dearest)} for {cost(dearest)} at {dearest['lr']:g}"
