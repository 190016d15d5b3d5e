"""Intruder dimensions: how many there are where as much was learned, and what becomes of a model without them."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..studies.findings import ONE_SEED, Records, Row, clearly, each, rows_of, where
from ..studies.intruders import at_equal_loss, beside_change, learned
from ..studies.runs import summarise
from .drawing import LOOKS, NAMES, SHORT, heading, label_ends, note, of_texts, panels, state
from .style import BLUE, GREEN, GREY, ORANGE, lecture_style

NEW, OLD = "loss on the new text\n(nats per character)", "loss on the old text\n(nats per character)"
HALF = 0.5  # the least factor that is drawn
GENTLY = 0.75  # what PEFT's reduce_intruder_dimension takes, and the title speaks of
PATHS: dict[str, tuple[str, dict[str, Any]]] = {  # part: its name, its look
    "intruders": ("intruders", {"color": BLUE, "marker": "o", "linestyle": "-"}),
    "others": ("as many others", {"color": GREY, "marker": "^", "linestyle": (0, (2, 2))}),
    "rest": ("rest of ΔW", {"color": ORANGE, "marker": "D", "linestyle": (0, (3, 1, 1, 1))}),
    "change": ("all of ΔW", {"color": GREEN, "marker": "s", "linestyle": (0, (6, 2))}),
}


def one_seed(rows: Sequence[Row]) -> str:
    """A warning that stands behind a title when nothing is known about the spread."""
    return ONE_SEED if len(each(rows, "seed")) < 2 else ""


def _rows(records: Records) -> Sequence[Row]:
    return rows_of(records, "intruders", "corpus", "kind", "lr", "seed", "part", "factor", "loss", "old_loss")


def intruders(records: Records) -> Figure:
    """How many intruders a matrix has, against the loss on the new text: a point for each learning rate."""
    rows, said, numbers = _rows(records), {}, []
    with lecture_style():
        figure, all_axes = panels(len(each(rows, "corpus")), sharey=True)
        for axes, corpus in zip(all_axes, each(rows, "corpus"), strict=True):
            here = where(rows, corpus=corpus)
            for kind in NAMES:
                _counts(axes, here, kind)
            matched = at_equal_loss(here, "intruders")
            said[corpus] = _has_more(matched)
            if matched:
                axes.axvline(matched[0]["lora"]["at"], color=GREY, linewidth=1.5, zorder=0)
                told = ", ".join(f"{NAMES[kind]} {matched[0][kind]['intruders']:.2g}" for kind in NAMES)
                numbers.append(f"{corpus}, at {matched[0]['lora']['at']:.2f}: {told}")
            axes.invert_xaxis()
            axes.set_xlabel(NEW)
            heading(axes, corpus)
        all_axes[0].set_ylabel("intruders a matrix,\namong the first 10")
        all_axes[0].set_ylim(0, None)
        lesson = f"To the right is learning. {'; '.join(numbers)}" + "." * bool(numbers)
        return state(figure, of_texts(said, "at equal loss on the new text ", one_seed(rows)), lesson)


def _counts(axes: Axes, rows: Sequence[Row], kind: str) -> None:
    """A kind's rates up to the best: a small mark for each seed, a large one for their mean, and the kind's name."""
    paths = learned(rows, kind).values()
    rates = set.intersection(*({row["lr"] for row in path} for path in paths))
    means = [summarise([row for path in paths for row in path if row["lr"] == lr], "loss", "intruders") for lr in rates]
    means.sort(key=lambda row: -row["loss"])
    x, y = ([row[number] for row in means] for number in ("loss", "intruders"))
    axes.plot(x, y, markersize=10, **LOOKS[kind])
    seeds = [(row["loss"], row["intruders"]) for path in paths for row in path if row["lr"] in rates]
    axes.plot(*zip(*seeds, strict=True), markersize=4, alpha=0.6, **{**LOOKS[kind], "linestyle": ""})
    how: dict[str, Any] = {"color": LOOKS[kind]["color"], "fontweight": "bold"}
    if kind == "lora":
        note(axes, SHORT[kind], (x[-1], y[-1]), (-32, -4), ha="right", va="top", **how)
    else:
        note(axes, SHORT[kind], (x[-1], y[-1]), (0, 14), ha="center", va="bottom", **how)


def _has_more(matched: Sequence[Mapping[str, Row]]) -> str:
    """Which of LoRA and full fine-tuning has more intruders at every loss that both come to."""
    if not matched:
        return "nothing can be compared: LoRA and full fine-tuning come to none in common"
    signs = {clearly(pair["lora"], pair["full"], "intruders") for pair in matched}
    if signs == {1}:
        return "LoRA has more intruders than full fine-tuning"
    return "LoRA has fewer intruders than full fine-tuning" if signs == {-1} else "no clear difference in intruders"


def intruders_shrunk(records: Records) -> Figure:
    """Loss on the old text against loss on the new, as parts of LoRA's tuned matrices are made weaker."""
    rows, said = _rows(records), {}
    with lecture_style():
        figure, all_axes = panels(len(each(rows, "corpus")))
        for axes, corpus in zip(all_axes, each(rows, "corpus"), strict=True):
            here = where(rows, corpus=corpus, kind="lora")
            shrunk = where(here, part="intruders")
            tuned = [row for row in where(here, part="none") if row["lr"] in {row["lr"] for row in shrunk}]
            best = min(tuned, key=lambda row: row["loss"])["lr"]
            model = where(here, lr=best)
            _paths(axes, model)
            said[corpus] = _saves(model)
            heading(axes, corpus)
            axes.set_xlabel(NEW)
        all_axes[0].set_ylabel(OLD)
        lesson = f"From the black point, as tuned, a part is taken times 0.75 and 0.5. {_tally(rows)}"
        return state(figure, of_texts(said, "at equal new loss, shrinking intruders ", one_seed(rows)), lesson)


def _paths(axes: Axes, model: Sequence[Row]) -> None:
    """From the model as it was tuned, a line for each part, down to half of it."""
    start, ends = summarise(where(model, part="none"), "loss", "old_loss"), []
    for part, (words, look) in PATHS.items():
        factors = sorted({row["factor"] for row in where(model, part=part) if row["factor"] >= HALF}, reverse=True)
        means = [start, *(summarise(where(model, part=part, factor=f), "loss", "old_loss") for f in factors)]
        x, y, spread = ([row[number] for row in means] for number in ("loss", "old_loss", "old_loss_spread"))
        axes.errorbar(x[1:], y[1:], yerr=spread[1:], capsize=4, elinewidth=2, color=look["color"], linestyle="")
        axes.plot(x, y, markersize=8, **look)
        ends.append((x[-1], y[-1], words, look["color"]))
    axes.plot(start["loss"], start["old_loss"], "o", color="black", markersize=12, zorder=5)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + 0.75 * (high - low))  # room for the names
    label_ends(axes, ends)


def _saves(model: Sequence[Row]) -> str:
    """What shrinking the intruders of one kind of model does for the old text, beside all of Delta W."""
    pair = beside_change(model, GENTLY)
    if pair is None:
        return "can be compared with nothing"
    if pair[0]["saved"] <= pair[0]["saved_spread"]:
        return "does not bring the old text back"
    sign = clearly(*pair, "saved")
    if not sign:
        return "saves the old text no better or worse than shrinking all of ΔW"
    return f"saves {'more' if sign > 0 else 'less'} of the old text than shrinking all of ΔW"


def _tally(rows: Sequence[Row]) -> str:
    """Of all the models that were shrunk, where the intruders save more than all of Delta W, and where less."""
    models = {(r["corpus"], r["kind"], r["lr"]) for r in rows if r["part"] == "intruders"}
    signs = []
    for corpus, kind, lr in sorted(models):
        pair = beside_change(where(rows, corpus=corpus, kind=kind, lr=lr), GENTLY)
        signs += [] if pair is None else [clearly(*pair, "saved")]
    told = f"more in {signs.count(1)}, less in {signs.count(-1)}, and are not clearly apart in {signs.count(0)}"
    return f"Of {len(signs)} models (LoRA and full, texts, rates) intruders save {told}."
