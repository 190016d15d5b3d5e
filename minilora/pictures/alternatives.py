"""LoRA among its alternatives, from the studies' records: what each method reaches, costs, adds and forgets."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ..studies.findings import Records, Row, best_of, clearly, each, joined, listed, ordered, rows_of, seeds_note, where
from .drawing import LOOKS, LOSS, THIRD, corner, fit, heading, line, name_astray, note, panels, state
from .style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, lecture_style, new_figure

# --- all methods -----------------------------------------------------------------------------------------------------

FAMILIES = {  # how the methods' names begin: colour and marker
    ("lora", "rslora", "pissa", "dora", "qlora"): (BLUE, "o"),
    ("full", "last-blocks", "bitfit"): (VERMILLION, "s"),
    ("houlsby", "pfeiffer"): (GREEN, "D"),
    ("prompt", "prefix"): (PURPLE, "v"),
}


def alternatives(methods: Records) -> Figure:
    """Validation loss of every method at its best learning rate, a panel for each text."""
    rows = rows_of(methods, "methods", "corpus", "method", "trainable", "before", "loss", "loss_spread")
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
            findings[corpus] = _best(tied, len(small))
            heading(axes, corpus)
            axes.set_xlabel("loss (nats/character)")
        trained = {row["method"]: row["trainable"] for row in rows}
        all_axes[0].set_yticks(range(len(order)), [f"{name}  {thousands(trained[name])}" for name in order])
        for words, name in zip(all_axes[0].get_yticklabels(), order, strict=True):
            words.set_color(_look(name)["color"])
        all_axes[0].set_ylim(len(order) - 0.4, -0.6)  # the best on top
        title = f"With at most {thousands(most)} parameters: {joined(findings)}{seeds_note(rows)}"
        return state(figure, title, _overall(rows, corpora))


def _look(method: str) -> dict[str, Any]:
    colour, marker = next((look for names, look in FAMILIES.items() if method.startswith(names)), (GREY, "^"))
    return {"color": colour, "marker": marker}


def _dots(axes: Axes, rows: Sequence[Row], tied: Sequence[Row]) -> None:
    """A dot with its spread and its number for each method, bold where it is among the best of the small ones."""
    base = rows[0]["before"]
    for place, row in enumerate(rows):
        look = _look(row["method"])
        axes.errorbar(row["loss"], place, xerr=row["loss_spread"], markersize=8, capsize=3, elinewidth=2, **look)
        how: dict[str, Any] = {"fontsize": 14, "fontweight": "bold" if row in tied else "normal", "va": "center"}
        how["path_effects"] = [withStroke(linewidth=4, foreground="white")]  # parts it from the lines behind it
        note(axes, f"{row['loss']:.2f}", (row["loss"] + row["loss_spread"], place), (8, -1), color=look["color"], **how)
        axes.axhline(place, color="#E4E4E4", linewidth=1, zorder=0)
    low = min(row["loss"] - row["loss_spread"] for row in rows)
    high = max(base, *(row["loss"] + row["loss_spread"] for row in rows))
    axes.set_xlim(low - 0.06 * (high - low), high + 0.36 * (high - low))
    axes.axvline(base, color=GREY, linewidth=2, linestyle=(0, (4, 3)), zorder=0)
    note(axes, f"base {base:.2f}", (base, 0), (-5, 0), ha="right", va="center", color=GREY, fontsize=14)


def _best(tied: Sequence[Row], count: int) -> str:
    names = [row["method"] for row in tied]
    if len(tied) == 1:
        return f"{names[0]} is clearly best"
    return f"{listed(names)} are best" if len(tied) < 4 else f"no clear best, {len(tied)} of {count} tie"


def _overall(rows: Sequence[Row], corpora: Sequence[str]) -> str:
    """The best of all methods, however many parameters they train."""
    best = {
        corpus: f"of all {listed([r['method'] for r in best_of(where(rows, corpus=corpus))[1]])}" for corpus in corpora
    }
    return f"Best {joined(best)}. Beside each name: how many parameters it trains."


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
        return state(figure, "; ".join(told) + seeds_note(rows), _room(found["prefix"]))


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


# --- few bits --------------------------------------------------------------------------------------------------------

HELD: dict[str, tuple[str, str, str]] = {  # number in a row: (what it is, colour, marker)
    "loss_before": ("■ before QLoRA", VERMILLION, "s"),
    "loss": ("● after QLoRA", BLUE, "o"),
    "again_loss": ("◆ merged and quantised again", GREEN, "D"),
}


def bits(records: Records) -> Figure:
    """Loss on the base model's own text against bits a weight: as held, after QLoRA, merged and quantised again."""
    keys = ("base", "bits", "loss_before", "loss", "loss_spread", "again_loss", "again_loss_spread")
    rows = ordered(rows_of(records, "bits", *keys), "bits")
    exact = where(rows, base="float32")[0]
    with lecture_style():
        figure, [axes] = panels()
        low = min(row[number] - row.get(f"{number}_spread", 0) for row in rows for number in HELD)
        losses = [row[number] for row in rows for number in HELD]
        most = low + 8 * (float(np.median(losses)) - low) + 1e-9  # a loss beyond it would squash the others
        high = max(loss for loss in losses if loss <= most)
        height = high - low + 1e-9  # of the losses; what is above them is for words
        axes.set(ylim=(low - 0.07 * height, high + 0.45 * height), xlim=(-0.6, len(rows) - 0.4))
        axes.axhline(exact["loss_before"], color=GREY, linewidth=2, linestyle=(0, (4, 3)), zorder=0)
        for place, row in enumerate(rows):
            _marks(axes, place, row, high)
        corner(axes, [(words, colour) for words, colour, _ in HELD.values()])
        names = [f"{row['bits']:.3g}\n{_held(row)}".replace(" ", "\n") for row in rows]
        axes.set_xticks(range(len(rows)), names)
        axes.set(xlabel="bits a weight, and how it is held", ylabel="loss on the old text\n(nats per character)")
        return state(figure, _repair(rows) + seeds_note(rows), _again(rows))


def _held(row: Row) -> str:
    """ "nf4, blocks of 16" -> "nf4/16"; "nf4, double" -> "nf4 double\""""
    return row["base"].replace(", blocks of ", "/").replace(",", "")


def _marks(axes: Axes, place: float, row: Row, high: float) -> None:
    """The three losses of a base with their spreads; what is above `high`, as a number at the upper edge."""
    top, above = axes.get_ylim()[1], 0
    for shift, (number, (_, colour, marker)) in zip((-0.25, 0, 0.25), HELD.items(), strict=True):
        value, spread = row[number], row.get(f"{number}_spread", 0.0)
        if value <= high:
            how: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 10}
            axes.errorbar(place + shift, value, yerr=spread, capsize=4, elinewidth=2, **how)
        else:
            words = f"↑ {value:.2f}"
            note(axes, words, (place, top), (0, -20 * above), ha="center", va="top", color=colour, fontsize=14)
            above += 1


def _repair(rows: Sequence[Row]) -> str:
    """What few bits cost before QLoRA, and what four cost after it, beside LoRA on the float32 base."""
    exact, four = where(rows, base="float32")[0], where(rows, base="nf4, double")[0]
    worst = max(rows, key=lambda row: row["loss_before"])
    lost, most = (row["loss_before"] - exact["loss_before"] for row in (four, worst))
    before = f"{four['bits']:.2g}-bit NF4 costs {lost:+.3f} nats, {_held(worst)} {most:+.3f}"
    sign, gap = clearly(four, exact), abs(four["loss"] - exact["loss"])
    after = f"ends {gap:.3f} {'above' if sign > 0 else 'below'} LoRA" if sign else "shows no clear difference from LoRA"
    return f"{before}; QLoRA on NF4 {after}"


def _again(rows: Sequence[Row]) -> str:
    """What merging and quantising again costs, and from which on QLoRA no longer reaches LoRA on float32."""
    exact, four = where(rows, base="float32")[0], where(rows, base="nf4, double")[0]
    again = {"loss": four["again_loss"], "loss_spread": four["again_loss_spread"]}
    merged = f"costs {again['loss'] - four['loss']:+.3f} nats" if clearly(again, four) > 0 else "costs nothing clear"
    worse = [_held(row) for row in rows if clearly(row, exact) > 0]
    short = f"QLoRA stays above LoRA on float32 with {listed(worse)}" if worse else "QLoRA repairs all of them"
    return f"Merged and quantised again, NF4 {merged}. {short}. Dashed: the base model in float32."


# --- several tasks ---------------------------------------------------------------------------------------------------

KINDS = {"sequential": "all weights, in sequence", "adapters": "an adapter for each"}


def tasks(records: Records) -> Figure:
    """Three tasks in a row: the loss on each text after each stage, one model retrained or one adapter a task."""
    rows = rows_of(records, "tasks", "kind", "stage", "text", "loss", "loss_spread", "switch_seconds")
    stages, texts = each(rows, "stage"), each(rows, "text")
    grids = {
        kind: np.array([[where(rows, kind=kind, stage=s, text=t)[0]["loss"] for t in texts] for s in stages])
        for kind in KINDS
    }  # (stages, texts)
    most = max(float(grid.max()) for grid in grids.values())
    with lecture_style():
        figure, all_axes = panels(2, sharey=True)
        for axes, (kind, words) in zip(all_axes, KINDS.items(), strict=True):
            axes.imshow(grids[kind], cmap="cividis", vmin=0, vmax=most, aspect="auto")
            for (i, j), loss in np.ndenumerate(grids[kind]):
                how: dict[str, Any] = {"ha": "center", "va": "center", "color": "black" if loss > most / 2 else "white"}
                trained = stages[i] == texts[j]  # the text of this very stage
                axes.text(j, i, f"{loss:.2f}", fontweight="bold" if trained else "normal", **how)
            axes.set_xticks(range(len(texts)), [_brief(text) for text in texts])
            axes.set_xlabel("loss on")
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            heading(axes, words)
        names = [f"after\n{_brief(stage)}" if stage in texts else stage for stage in stages]
        all_axes[0].set_yticks(range(len(stages)), names)
        lost = {kind: _forgot(rows, kind) for kind in KINDS}
        told = f"Trained in sequence the model forgets {lost['sequential']}, adapters {lost['adapters']}"
        micro = rows[0]["switch_seconds"] * 1e6
        lesson = (
            f"Bold: the text just trained on. To switch from one adapter to the next takes {micro:.0f} microseconds."
        )
        return state(figure, told + seeds_note(rows), lesson)


def _brief(text: str) -> str:
    """ "python-docs" -> "docs\""""
    return text.rpartition("-")[2]


def _forgot(rows: Sequence[Row], kind: str) -> str:
    """The texts whose loss is higher at the end than after their own stage: -> "docs (+1.00) and code (+0.50)\""""
    texts = each(rows, "text")
    lost = []
    for text in texts:
        fresh = where(rows, kind=kind, stage=text, text=text)[0]
        final = where(rows, kind=kind, stage=texts[-1], text=text)[0]
        if clearly(final, fresh) > 0:
            lost.append(f"{_brief(text)} ({final['loss'] - fresh['loss']:+.2f})")
    return listed(lost) if lost else "nothing"


# --- latency ---------------------------------------------------------------------------------------------------------

SLOWER = LinearSegmentedColormap.from_list("slower", [BLUE, "white", ORANGE])
CALLS = {"token": "one token", "forward": "forward"}
MIB = 2**20
MODELS = {"base": "the shipped model", "gpt2": "GPT-2 small's shape"}


def latency(records: Records) -> Figure:
    """Time of a forward pass and of a generated token over the base model's: the paper's table 1 as a heat map."""
    keys = ("model", "task", "batch", "length", "method", "ratio", "ratio_spread")
    rows = rows_of(records, "latency", *keys)
    served = [row for row in rows if row["method"] != "base"]
    columns: dict[str, list[tuple[int, int]]] = {}
    for row in served:
        shapes = columns.setdefault(row["model"], [])
        if (row["batch"], row["length"]) not in shapes:
            shapes.append((row["batch"], row["length"]))
    with lecture_style():
        figure, wide = new_figure(), [len(shapes) for shapes in columns.values()]
        grid = figure.subplots(len(CALLS), len(wide), sharex="col", sharey=True, squeeze=False, width_ratios=wide)
        for line_of_axes, (call, words) in zip(grid, CALLS.items(), strict=True):
            line_of_axes[0].set_ylabel(words)
            for axes, model in zip(line_of_axes, columns, strict=True):
                _ratios(axes, where(served, task=call, model=model), columns[model])
        for axes, model in zip(grid[0], columns, strict=True):
            heading(axes, MODELS.get(model, model))
        for axes, model in zip(grid[-1], columns, strict=True):
            axes.set_xticks(range(len(columns[model])), [f"{batch}×{length}" for batch, length in columns[model]])
            axes.set_xlabel("batch × length")
        return state(figure, _added(served), _noise(served))


def _ratios(axes: Axes, rows: Sequence[Row], columns: Sequence[tuple[int, int]]) -> None:
    """A line for each method, a column for each batch and length: the ratios, in colour where they are not noise."""
    methods = each(rows, "method")
    found = {(row["method"], row["batch"], row["length"]): row for row in rows}
    values = np.ones((len(methods), len(columns)))  # (methods, columns)
    for (i, j), _ in np.ndenumerate(values):
        row = found[methods[i], *columns[j]]
        values[i, j] = row["ratio"] if _differs(row) else 1.0
        how: dict[str, Any] = {"fontweight": "bold", "color": "black"} if _differs(row) else {"color": GREY}
        axes.text(j, i, f"{row['ratio']:.2f}", ha="center", va="center", fontsize=14, **how)
    axes.imshow(np.log2(values), cmap=SLOWER, vmin=-1, vmax=1, aspect="auto")  # half the time to twice the time
    axes.set_yticks(range(len(methods)), methods)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _differs(row: Row) -> int:
    """-1 or 1 where the base model's time, 1, lies outside the middle half of a method's ratios; else 0."""
    return clearly(row, {"ratio": 1.0, "ratio_spread": 0.0}, "ratio")


def _added(rows: Sequence[Row]) -> str:
    merged, apart = where(rows, method="lora merged"), where(rows, method="lora")
    beyond = [row for row in merged if _differs(row)]
    said = f"{min(r['ratio'] for r in merged):.2f} to {max(r['ratio'] for r in merged):.2f} times the base model's time"
    words = f"Merged LoRA takes {said}" if beyond else "Merged LoRA takes the base model's time"
    return f"{words}; unmerged {min(r['ratio'] for r in apart):.2f} to {max(r['ratio'] for r in apart):.2f} times"


def _noise(rows: Sequence[Row]) -> str:
    merged = where(rows, method="lora merged")
    same = sum(not _differs(row) for row in merged)
    spread = float(np.median([row["ratio_spread"] for row in merged]))
    return (
        f"Merged LoRA is within noise of the base model in {same} of {len(merged)} cases; "
        f"the middle half of the turns lies within {spread:.2f} of the median there."
    )


PARTS = (("weights", GREY, ""), ("gradients", ORANGE, "//"), ("optimizer_state", VERMILLION, "xx"),
         ("activations", SKY, ".."))  # fmt: skip


def step_memory(records: Records) -> Figure:
    """Memory of a training step: its parts by formula as bars, what was measured as a mark, a panel for each model."""
    rows = rows_of(records, "memory", "model", "method", "memory_bytes", "share_of_full", *(name for name, *_ in PARTS))
    models = each(rows, "model")
    with lecture_style():
        figure, all_axes = panels(len(models))
        for axes, model in zip(all_axes, models, strict=True):
            found = where(rows, model=model)
            for place, row in enumerate(found):
                bottom = 0.0
                for name, colour, hatch in PARTS:
                    height = row[name] / MIB
                    axes.bar(place, height, 0.62, bottom, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
                    bottom += height
                measured = row["memory_bytes"] / MIB
                axes.plot(place, measured, "D", color="black", markersize=9)
                words = f"{measured:,.0f}" if place == 0 else f"{row['share_of_full']:.2f}"
                note(axes, words, (place, max(measured, bottom)), (0, 8), ha="center", fontweight="bold")
            axes.set_xticks(range(len(found)), [row["method"] for row in found])
            axes.set_ylim(0, axes.get_ylim()[1] * 1.12)
            heading(axes, MODELS.get(model, model))
        all_axes[0].set_ylabel("memory (MiB)")
        lines = [("◆ measured", "black"), *((f"■ {name.replace('_', ' ')}", colour) for name, colour, _ in PARTS[::-1])]
        corner(all_axes[-1], [(words.replace("optimizer", "optimiser"), colour) for words, colour in lines])
        shares = [where(rows, model=model, method="lora-qv")[0]["share_of_full"] for model in models]
        sentence = (
            f"LoRA on q and v trains in {listed([f'{share:.2f}' for share in shares])} of full fine-tuning's memory"
        )
        return state(figure, sentence, "Bars: parts by formula. Over LoRA's: what was measured, as a share of full's.")
