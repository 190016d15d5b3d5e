"""LoRA among its alternatives, from the studies' records: what each method reaches, how it scales, what it forgets."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ..studies.findings import Records, Row, best_of, clearly, each, joined, listed, ordered, rows_of, seeds_note, where
from .drawing import LOOKS, LOSS, THIRD, brief, fit, heading, in_two_lines, line, name_astray, note, panels, state
from .style import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION, lecture_style

# --- all methods -----------------------------------------------------------------------------------------------------

FAMILIES = {  # how the methods' names begin: colour and marker
    ("lora", "rslora", "pissa", "dora", "qlora", "miss", "vera"): (BLUE, "o"),  # a Delta W of low rank
    ("full", "last-blocks", "bitfit"): (VERMILLION, "s"),
    ("ia3",): (ORANGE, "^"),
    ("houlsby", "pfeiffer"): (GREEN, "D"),
    ("prompt", "prefix"): (PURPLE, "v"),
}


def alternatives(methods: Records) -> Figure:
    """Validation loss of every method at its best learning rate, a panel for each text.

    The rate was chosen by this very loss: the title says who learns the new text, and nothing of what is forgotten.
    """
    keys = ("corpus", "method", "trainable", "before", "loss", "loss_spread", "old_loss", "old_before")
    rows = rows_of(methods, "methods", *keys)
    corpora, findings = each(rows, "corpus"), {}
    order = [row["method"] for row in ordered(rows, "loss", corpus=corpora[0])]
    budget = 1.2 * where(rows, method="lora-qv")[0]["trainable"]  # what most methods were made to keep to
    most = max(row["trainable"] for row in rows if row["trainable"] <= budget)
    with lecture_style():
        figure, all_axes = panels(len(corpora), sharey=True)
        for axes, corpus in zip(all_axes, corpora, strict=True):
            found = {row["method"]: row for row in where(rows, corpus=corpus)}
            small = [row for row in found.values() if row["trainable"] <= most]
            tied = best_of(small)[1]
            _dots(axes, [found[name] for name in order], tied)
            findings[corpus] = tied, len(small)
            heading(axes, f"{brief(corpus)}; dashed: base {found[order[0]]['before']:.2f}")
            axes.set_xlabel("loss (nats/character)")
        trained = {row["method"]: row["trainable"] for row in rows}
        labels = [f"{name}  {thousands(trained[name])}" for name in order]
        all_axes[0].set_yticks(range(len(order)), labels, fontsize=_size(len(order)))
        for words, name in zip(all_axes[0].get_yticklabels(), order, strict=True):
            words.set_color(_look(name)["color"])
        all_axes[0].set_ylim(len(order) - 0.4, -0.6)  # the best on top
        head = f"With at most {thousands(most)} parameters: "
        ways = ((str, 3), (brief, 3), (brief, 2), (brief, 1))
        told = ({called(c): _best(*found, named) for c, found in findings.items()} for called, named in ways)
        title = in_two_lines(head + joined(said) + seeds_note(rows) for said in told)
        return state(figure, title, _overall(rows, corpora))


def _size(rows: int) -> int:
    """Points of the letters of so many rows, so that they do not touch."""
    return 14 if rows <= 16 else 11


def _look(method: str) -> dict[str, Any]:
    colour, marker = next((look for names, look in FAMILIES.items() if method.startswith(names)), (GREY, "^"))
    return {"color": colour, "marker": marker}


def _dots(axes: Axes, rows: Sequence[Row], tied: Sequence[Row]) -> None:
    """A dot with its spread and its number for each method, bold where it is among the best of the small ones."""
    base = rows[0]["before"]
    for place, row in enumerate(rows):
        size = _size(len(rows))
        look = {**_look(row["method"]), "markersize": size // 2 + 1}
        axes.errorbar(row["loss"], place, xerr=row["loss_spread"], capsize=3, elinewidth=2, **look)
        how: dict[str, Any] = {"fontsize": size, "fontweight": "bold" if row in tied else "normal", "va": "center"}
        how["path_effects"] = [withStroke(linewidth=4, foreground="white")]  # parts it from the lines behind it
        note(axes, f"{row['loss']:.2f}", (row["loss"] + row["loss_spread"], place), (8, -1), color=look["color"], **how)
        axes.axhline(place, color="#E4E4E4", linewidth=1, zorder=0)
    low = min(row["loss"] - row["loss_spread"] for row in rows)
    high = max(base, *(row["loss"] + row["loss_spread"] for row in rows))
    axes.set_xlim(low - 0.06 * (high - low), high + 0.36 * (high - low))
    axes.axvline(base, color=GREY, linewidth=2, linestyle=(0, (4, 3)), zorder=0)


def _best(tied: Sequence[Row], count: int, most_named: int = 3) -> str:
    names = [row["method"] for row in tied]
    if len(tied) == 1:
        return f"{names[0]} is clearly best"
    return f"{listed(names)} are best" if len(tied) <= most_named else f"no clear best, {len(tied)} of {count} tie"


def _overall(rows: Sequence[Row], corpora: Sequence[str]) -> str:
    """The best of all methods, however many parameters they train."""
    best = {
        corpus: f"of all {listed([r['method'] for r in best_of(where(rows, corpus=corpus))[1]])}" for corpus in corpora
    }
    rises = [row["old_loss"] - row["old_before"] for row in rows]
    return (
        f"Best {joined(best)}. Beside each name: how many parameters it trains. Each method's rate was chosen by this "
        "loss alone; what they forget at it (the loss on the old text rises by "
        f"{min(rises):+.2f} to {max(rises):+.2f}) is not matched, and ranks nobody."
    )


def thousands(count: float) -> str:
    """412 -> "412", 1536 -> "1.5k", 8000 -> "8k", 16384 -> "16k\""""
    return f"{count:.0f}" if count < 1000 else f"{round(count / 1000, 1 if count < 9950 else 0):g}k"


# --- how each scales -------------------------------------------------------------------------------------------------

SCALED: dict[str, dict[str, Any]] = {
    "LoRA": LOOKS["lora"],
    "adapters": THIRD,
    "prefix": {"color": PURPLE, "marker": "v", "linestyle": (0, (6, 2))},
    "prompt": {"color": ORANGE, "marker": "s", "linestyle": (0, (2, 2))},
}


def sizes(records: Records) -> Figure:
    """Validation loss against the number of trained parameters (the paper's figure 2)."""
    keys = ("method", "size", "trainable", "loss", "loss_spread", "context", "base_loss")
    rows = rows_of(records, "sizes", *keys)
    found = {name: ordered(rows, "size", method=name) for name in SCALED}
    with lecture_style():
        figure, [axes] = panels()
        fit(axes, rows)
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.12 * (high - low), high + 0.08 * (high - low))  # room for the names at the ends
        name_astray(axes, rows, "trainable")
        for name, look in SCALED.items():
            line(axes, found[name], "trainable", look)
        _names(axes, {name: many[-1] for name, many in found.items()})
        axes.set(xscale="log", xlabel="trained parameters", ylabel=LOSS)
        axes.margins(x=0.13)
        courses = {name: _course(many) for name, many in found.items()}
        told = [
            f"{listed([n for n in SCALED if courses[n] == said])}: {said}" for said in dict.fromkeys(courses.values())
        ]
        words = "; ".join(told) + seeds_note(rows)
        return state(figure, in_two_lines((words, words.replace(" beyond ", " past "))), _room(found["prefix"]))


def _names(axes: Axes, ends: Mapping[str, Row]) -> None:
    """The methods' names over the ends of their lines; under the one that ends lowest and furthest to the right."""
    right, lowest = max(row["trainable"] for row in ends.values()), min(row["loss"] for row in ends.values())
    for name, row in ends.items():
        outside = row["trainable"] == right
        sign = -1 if outside and row["loss"] == lowest else 1
        how: dict[str, Any] = {"fontweight": "bold", "fontsize": 14, "va": "bottom" if sign > 0 else "top"}
        at = row["trainable"], row["loss"] + sign * row["loss_spread"]
        note(axes, name, at, (-2 if outside else -12, 9 * sign), color=SCALED[name]["color"], **how)


def _course(found: Sequence[Row]) -> str:
    """Whether more parameters go on helping: the losses from the smallest size to the largest, in words."""
    tied = best_of(found)[1]
    first, last = tied[0], tied[-1]
    if last is not found[-1]:
        return f"worse beyond {thousands(last['trainable'])}"
    if any(clearly(after, before) > 0 for i, before in enumerate(found) for after in found[i + 1 :]):
        return "up and down"
    if first is found[0]:
        return "no clear change"
    return "still improving" if first is last else f"no gain beyond {thousands(first['trainable'])}"


def _room(prefix: Sequence[Row]) -> str:
    """Whether prefixes turn worse with more tokens, as in the paper, and whether the text they displace explains it.

    The base model is given as little text as there is room for beside the prefix.
    """
    few, many = prefix[0], prefix[-1]
    turns = _course(prefix).startswith(("worse", "up"))
    gains = [{**row, "loss": row["loss"] - row["base_loss"]} for row in prefix]
    return (
        f"The paper (figure 2) saw prefixes turn worse with more tokens; here they {'do, too' if turns else 'do not'}. "
        f"But {many['size']} virtual tokens leave {many['context']} places to the text, on which the base model's loss "
        f"is {many['base_loss']:.2f}, beside {few['base_loss']:.2f}; below the base model's loss on as short a text, "
        f"the prefix is: {_course(gains)}."
    )
