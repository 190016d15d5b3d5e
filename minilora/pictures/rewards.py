"""Learning from rewards and from examples with few parameters, from the study's records."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..studies.findings import Records, Row, clearly, listed, ordered, percent, rows_of, seeds_note, where
from .alternatives import thousands
from .drawing import LOOKS, heading, label_ends, note, panels, state
from .style import GREY, lecture_style

WAYS = {"rewards": LOOKS["lora"], "examples": LOOKS["full"]}
SHARE = 0.9  # of the best size's gain, that a size must not clearly miss to be enough
KEYS = ("way", "size", "trainable", "steps", "batch_size", "before", "reward", "reward_spread", "different")


def rewards(records: Records) -> Figure:
    """The share of right names against the number of trained parameters, and at rank 1 against the step."""
    rows = rows_of(records, "rewards", *KEYS, "base_loss", "loss", "loss_spread", "curve", "names")
    found = {way: ordered(rows, "trainable", way=way) for way in WAYS}
    with lecture_style():
        figure, (left, right) = panels(2, sharey=True, width_ratios=(1.25, 1))
        for way, many in found.items():
            _sizes(left, many, way)
        left.set(xscale="log", xlabel="trained parameters", ylabel="names that keep the rule (%)", ylim=(-4, 109))
        right.set_xlim(0, 1.58 * rows[0]["steps"])
        label_ends(right, [_curve(right, where(many, size="r=1")[0], way) for way, many in found.items()], gap=0.12)
        right.set_xticks(np.linspace(0, rows[0]["steps"], 4))
        right.set_xlabel("step")
        heading(left, f"after {rows[0]['steps']} steps of {rows[0]['batch_size']} names")
        heading(right, "LoRA of rank 1")
        for axes in (left, right):
            axes.axhline(100 * rows[0]["before"], color=GREY, linewidth=2, linestyle=(0, (4, 3)), zorder=0)
        note(left, "before", (left.get_xlim()[1], 100 * rows[0]["before"]), (0, 4), ha="right", fontsize=14, color=GREY)
        return state(figure, _enough(found) + seeds_note(rows), f"{_beside(found)} {_apart(found)}{_lost(found)}")


def _sizes(axes: Axes, rows: Sequence[Row], way: str) -> None:
    """The mean share at each size, with a bar from the least to the most over the seeds."""
    shares = [100 * np.array(row["curve"]["reward"])[:, -1] for row in rows]  # (seeds,) each
    means = np.array([seeds.mean() for seeds in shares])
    reach = [
        [m - s.min() for m, s in zip(means, shares, strict=True)],
        [s.max() - m for m, s in zip(means, shares, strict=True)],
    ]
    x = [row["trainable"] for row in rows]
    axes.errorbar(x, means, yerr=np.maximum(reach, 0), capsize=5, capthick=2, elinewidth=2, markersize=9, **WAYS[way])


def _curve(axes: Axes, row: Row, way: str) -> tuple[float, float, str, str]:
    """The mean over the seeds and their band: -> the label at its end, as `label_ends` takes it."""
    steps, shares = np.array(row["curve"]["step"]), 100 * np.array(row["curve"]["reward"])  # (points,), (seeds, points)
    look, mean = WAYS[way], shares.mean(axis=0)
    axes.fill_between(steps, shares.min(axis=0), shares.max(axis=0), color=look["color"], alpha=0.25, lw=0)
    axes.plot(steps, mean, markersize=9, **look)
    return steps[-1], mean[-1], way, look["color"]


def _least(rows: Sequence[Row]) -> Row | None:
    """The smallest size that is not clearly below SHARE of the best one's gain; None where no size clearly gains."""
    best = max(rows, key=lambda row: row["reward"])
    before = {"reward": best["before"], "reward_spread": 0.0}
    if clearly(best, before, "reward") <= 0:
        return None
    bar = {"reward": best["before"] + SHARE * (best["reward"] - best["before"]), "reward_spread": 0.0}
    return next(row for row in rows if clearly(row, bar, "reward") >= 0)


def _enough(found: dict[str, list[Row]]) -> str:
    """How few parameters are enough, for each way."""
    least = {way: _least(rows) for way, rows in found.items()}
    taught = {way: row for way, row in least.items() if row is not None}
    idle = [way for way in least if way not in taught]
    if not taught:
        return f"{listed(idle)} teach nothing that is clear"
    counts = {way: thousands(row["trainable"]) for way, row in taught.items()}
    if len(counts) == 2 and len(set(counts.values())) == 1:
        return f"{counts['rewards']} parameters are enough, from rewards and from examples"
    first, *others = (f"{count} {{}}from {way}" for way, count in counts.items())
    told = ", ".join([first.format("parameters are enough to learn "), *(other.format("") for other in others)])
    return f"{told}; {listed(idle)} teach nothing that is clear" if idle else told


def _beside(found: dict[str, list[Row]]) -> str:
    """Which way comes further at each size, where that is clear."""
    ahead: dict[str, list[str]] = {"rewards": [], "examples": [], "": []}
    for one, other in zip(*found.values(), strict=True):
        sign = clearly(one, other, "reward")
        ahead["rewards" if sign > 0 else "examples" if sign < 0 else ""].append(thousands(one["trainable"]))
    said = [f"{way} come further with {listed(sizes)}" for way, sizes in ahead.items() if sizes and way]
    if ahead[""]:
        said.append(f"no clear difference with {listed(ahead[''])}")
    return (
        f"Enough: not clearly below {percent(SHARE)} of the best gain. At the same size: {'; '.join(said)} parameters."
    )


def _apart(found: dict[str, list[Row]]) -> str:
    """Where seeds end far apart, although the rate was chosen by their mean."""
    told = ""
    for way, rows in found.items():
        for row in (row for row in rows if row["reward_spread"] > 0.25):
            ends = np.array(row["curve"]["reward"])[:, -1]
            between = f"end between {percent(ends.min())} and {percent(ends.max())}"
            told += f"With {thousands(row['trainable'])} parameters the seeds of {way} {between}. "
    return told


def _lost(found: dict[str, list[Row]]) -> str:
    """What the rule does not ask for: other names, and good ones."""
    least = [where(rows, size="r=1")[0] for rows in found.values()]
    losses = " and ".join(f"{row['loss']:.2f} with {way}" for way, row in zip(found, least, strict=True))
    name = next((name for name in least[0]["names"] if " WITH " in name), least[0]["names"][0])
    return (
        f"At rank 1 the loss on all names goes from {least[0]['base_loss']:.2f} to {losses}: a rule is learned to the "
        f"letter, as by {name!r}."
    )
