"""What is forgotten for what is learned, from the studies' records: frontiers; and why one rate each is no answer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..studies.findings import Records, Row, clearly, each, joined, listed, lora_and_full, rows_of, seeds_note, where
from ..studies.frontier import Point, frontiers, olds, reach, signs, verdict
from .drawing import LOOKS, SHORT, brief, heading, note, panels, state
from .style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, lecture_style

# --- the frontier ----------------------------------------------------------------------------------------------------

SHOWN: dict[str, tuple[str, dict[str, Any]]] = {  # method: its name in the picture, its look
    "full": ("full", {"color": VERMILLION, "linestyle": (0, (6, 2))}),
    "full + pull": ("full + pull", {"color": ORANGE, "linestyle": (0, (1, 1))}),
    "LoRA r=8": ("LoRA r=8", {"color": BLUE, "linestyle": "-"}),
    "LoRA r=8 on q,v": ("LoRA on q,v", {"color": SKY, "linestyle": (0, (4, 1, 1, 1))}),
    "last block": ("last block", {"color": PURPLE, "linestyle": (0, (3, 1, 1, 1, 1, 1))}),
    "adapters": ("adapters", {"color": GREEN, "linestyle": (0, (2, 2))}),
}
RIVAL = "full"  # what every method is compared with
HEIGHT = 2.5  # nats above the base that the picture shows of the loss on the old text, at most


def frontier(records: Records) -> Figure:
    """Loss on the old text against loss on the new, the least over rates and steps: a line and a band a method."""
    rows = rows_of(records, "forgetting", "corpus", "method", "seed", "before", "old_before", "curve")
    corpora, findings, told = each(rows, "corpus"), {}, {}
    with lecture_style():
        figure, all_axes = panels(len(corpora))
        for axes, corpus in zip(all_axes, corpora, strict=True):
            found = where(rows, corpus=corpus)
            before, old = found[0]["before"], found[0]["old_before"]
            methods = frontiers(found)
            where(found, method="LoRA r=8"), where(found, method=RIVAL)
            _limits(axes, methods, before, old)
            _names(axes, {name: _line(axes, name, methods[name], before) for name in SHOWN if name in methods})
            axes.plot(before, old, "*", color="black", markersize=18, zorder=3)
            note(axes, "base", (before, old), (0, -11), ha="right", va="top", fontsize=14)
            axes.set_xlabel("loss on the new text\n(nats per character)")
            heading(axes, corpus)
            rivals = {name: seeds for name, seeds in methods.items() if name != RIVAL}
            found_signs = {name: signs(seeds, methods[RIVAL], before) for name, seeds in rivals.items()}
            findings[corpus], told[corpus] = _said(verdict(found_signs["LoRA r=8"])), _others(found_signs)
        all_axes[0].set_ylabel("loss on the old text\n(nats per character)")
        title = f"Where both have learned equally much, {joined(findings)}"
        one = [{"seeds": len(each(where(rows, corpus=corpus), "seed"))} for corpus in corpora]
        on_each = "; ".join(f"on {corpus} {words}" for corpus, words in told.items())
        lesson = f"Against full fine-tuning at matched loss on the new text: {on_each}."
        longest = max(row["curve"]["step"][-1] for row in rows)
        return state(figure, title + seeds_note(one), f"{lesson} No run has more than {longest} steps.")


def _limits(axes: Axes, methods: dict[str, list[list[Point]]], before: float, old: float) -> None:
    """From the least loss that is reached on the new text to the base's; of what is forgotten, the part compared."""
    left = min(reach(seeds) for seeds in methods.values())
    most = max(max(olds(seeds, reach(seeds))) for seeds in methods.values()) - old
    axes.set_xlim(left - 0.12 * (before - left), before + 0.12 * (before - left))
    axes.set_ylim(old - 0.22 * min(most, HEIGHT), old + 1.12 * min(most, HEIGHT))


def _line(axes: Axes, name: str, seeds: Sequence[Sequence[Point]], before: float) -> tuple[float, float]:
    """The mean of the seeds' frontiers, as far as all of them reach, and their band: -> where its name begins."""
    new = np.linspace(reach(seeds), before, 200)
    found = np.array([olds(seeds, x) for x in new])  # (points, seeds)
    mean, look = found.mean(axis=1), SHOWN[name][1]
    axes.fill_between(new, found.min(axis=1), found.max(axis=1), color=look["color"], alpha=0.2, lw=0)
    axes.plot(new, mean, **look)
    seen = np.flatnonzero(mean <= axes.get_ylim()[1])
    return new[seen[0]], mean[seen[0]]


def _names(axes: Axes, ends: dict[str, tuple[float, float]]) -> None:
    """The methods' names in their colours, in the upper right corner, in the order of their lines' ends."""
    order = sorted(ends, key=lambda name: ends[name][0])
    for place, name in enumerate(order):
        words, look = SHOWN[name]
        how: dict[str, Any] = {"xycoords": "axes fraction", "ha": "right", "va": "top", "fontweight": "bold"}
        note(axes, words, (1.0, 1.0), (0, -20 * place), color=look["color"], fontsize=14, **how)


def _said(sign: int) -> str:
    if not sign:
        return "no clear difference in what LoRA and full fine-tuning forget"
    return f"LoRA forgets {'less' if sign < 0 else 'more'} than full fine-tuning"


def _others(found: dict[str, list[int]]) -> str:
    """Which methods forget less than full fine-tuning, which do in places, which more, and of which it is not clear."""
    kinds: dict[str, list[str]] = {"less is forgotten by": [], "in places less by": [], "more by": [], "neither by": []}
    for name, many in found.items():
        sign, places = verdict(many), -1 in many and 1 not in many
        words = "less is forgotten by" if sign < 0 else "more by" if sign else "in places less by" if places else ""
        kinds[words or "neither by"].append(name)
    return ", ".join(f"{words} {listed(names)}" for words, names in kinds.items() if names)


# --- the first answer, and why it was wrong --------------------------------------------------------------------------


def one_rate(methods: Records) -> Figure:
    """Loss on the old text against loss on the new, each method at the rate that is best for the new text alone: an
    arrow from the base model to each method. Who ends further to the left has learned more, so nothing is matched."""
    keys = ("before", "old_before", "loss", "loss_spread", "old_loss", "old_loss_spread")
    rows = rows_of(methods, "methods", "corpus", "method", "lr", *keys)
    corpora, findings = each(rows, "corpus"), {}
    with lecture_style():
        figure, all_axes = panels(len(corpora))
        for axes, corpus in zip(all_axes, corpora, strict=True):
            lora, full = lora_and_full(rows, corpus=corpus)
            start = lora["before"], lora["old_before"]
            axes.plot(*start, "*", color="black", markersize=18)
            note(axes, "base", start, (0, -12), ha="center", va="top", fontsize=14)
            lora_up = lora["old_loss"] >= full["old_loss"]
            _arrow(axes, start, lora, lora_up)
            _arrow(axes, start, full, not lora_up)
            axes.margins(0.3, 0.38)
            axes.set_xlabel("loss on the new text\n(nats per character)")
            heading(axes, corpus)
            findings[corpus] = _unmatched(lora, full)
        all_axes[0].set_ylabel("loss on the old text\n(nats per character)")
        pairs = {corpus: lora_and_full(rows, corpus=corpus) for corpus in corpora}
        rates = "; ".join(f"on {c} LoRA at {lora['lr']:g}, full at {full['lr']:g}" for c, (lora, full) in pairs.items())
        lesson = f"Right to left is learning, upwards is forgetting. Rates chosen by the new text alone: {rates}."
        return state(figure, f"At one rate each, {joined(findings)}{seeds_note(rows)}", lesson)


def _arrow(axes: Axes, start: tuple[float, float], row: Row, up: bool) -> None:
    """From the base model to where a method ends; its name and what it forgot stand above that end or below."""
    look, end, spread = LOOKS[row["method"]], (row["loss"], row["old_loss"]), row["old_loss_spread"]
    how = {"arrowstyle": "-|>", "color": look["color"], "lw": 2.5, "linestyle": look["linestyle"]}
    axes.annotate("", end, start, arrowprops={**how, "shrinkA": 12, "shrinkB": 8, "mutation_scale": 22})
    bars = {"xerr": row["loss_spread"], "yerr": spread, "capsize": 5, "elinewidth": 2}
    axes.errorbar(*end, color=look["color"], marker=look["marker"], markersize=12, **bars)
    words = f"{SHORT[row['method']]}\n{row['old_loss'] - row['old_before']:+.2f}"
    style: dict[str, Any] = {"ha": "right", "color": look["color"], "fontweight": "bold", "fontsize": 14}
    if up:
        note(axes, words, (end[0], end[1] + spread), (14, 12), va="bottom", **style)
    else:
        note(axes, words, (end[0], end[1] - spread), (4, -10), va="top", **style)


def _unmatched(lora: Row, full: Row) -> str:
    """Who forgets more; and where the same one has learned more, that this is no answer."""
    old, new = clearly(lora, full, "old_loss"), clearly(lora, full)
    if not old:
        return "no clear difference in what LoRA and full fine-tuning forget"
    who, other = ("full fine-tuning", "LoRA") if old < 0 else ("LoRA", "full fine-tuning")
    more = -new if old > 0 else new  # 1 where the one that forgets more has learned more
    learned = {1: "and learns more: no answer", 0: "and learns no more", -1: "and learns less"}[more]
    return f"{who} forgets more than {other} {learned}"


# --- several tasks ---------------------------------------------------------------------------------------------------

KINDS = {  # kind: over its panel, in the title
    "sequential": ("in sequence", "in sequence"),
    "gentle": ("at gentle rates", "gently"),
    "adapters": ("an adapter each", "by adapters"),
}


def tasks(records: Records) -> Figure:
    """Three tasks in a row: the loss on each text after each stage, one model retrained or one adapter a task."""
    rows = rows_of(records, "tasks", "kind", "stage", "text", "loss", "loss_spread", "switch_seconds")
    stages, texts = each(rows, "stage"), each(rows, "text")
    shown = {kind: KINDS[kind] for kind in each(rows, "kind")}
    grids = {
        kind: np.array([[where(rows, kind=kind, stage=s, text=t)[0]["loss"] for t in texts] for s in stages])
        for kind in shown
    }  # (stages, texts)
    most = max(float(grid.max()) for grid in grids.values())
    with lecture_style():
        figure, all_axes = panels(len(shown), sharey=True)
        for axes, (kind, (words, _)) in zip(all_axes, shown.items(), strict=True):
            axes.imshow(grids[kind], cmap="cividis", vmin=0, vmax=most, aspect="auto")
            for (i, j), loss in np.ndenumerate(grids[kind]):
                how: dict[str, Any] = {"ha": "center", "va": "center", "color": "black" if loss > most / 2 else "white"}
                trained = stages[i] == texts[j]  # the text of this very stage
                axes.text(j, i, f"{loss:.2f}", fontweight="bold" if trained else "normal", **how)
            axes.set_xticks(range(len(texts)), [brief(text) for text in texts])
            axes.set_xlabel("loss on")
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            heading(axes, words)
        names = [f"after\n{brief(stage)}" if stage in texts else stage for stage in stages]
        all_axes[0].set_yticks(range(len(stages)), names)
        told = "; ".join(f"{_forgot(rows, kind)} {words}" for kind, (_, words) in shown.items())
        micro = rows[0]["switch_seconds"] * 1e6
        lesson = (
            f"Bold: the text just trained on. {_at_rates(rows)}To switch from one adapter to the next takes "
            f"{micro:.0f} microseconds."
        )
        return state(figure, f"Forgotten: {told}{seeds_note(rows)}", lesson)


def _at_rates(rows: Sequence[Row]) -> str:
    """The rate of each stage in sequence, where the records tell them."""
    kinds = {KINDS[row["kind"]][1]: row["kind"] for row in rows if "lr" in row and row["kind"] != "adapters"}
    stages = each(rows, "text")
    rate = lambda kind, stage: f"{where(rows, kind=kind, stage=stage)[0]['lr']:g}"
    told = [f"{words} {', '.join(rate(kind, stage) for stage in stages)}" for words, kind in kinds.items()]
    return f"Rates: {'; '.join(told)}. " if told else ""


def _forgot(rows: Sequence[Row], kind: str) -> str:
    """The texts whose loss is higher at the end than after their own stage: -> "docs +1, code +0.5\""""
    texts = each(rows, "text")
    lost = []
    for text in texts:
        fresh = where(rows, kind=kind, stage=text, text=text)[0]
        final = where(rows, kind=kind, stage=texts[-1], text=text)[0]
        if clearly(final, fresh) > 0:
            lost.append(f"{brief(text)} {final['loss'] - fresh['loss']:+.2g}")
    return ", ".join(lost) or "nothing"
