"""The frontier of learning and forgetting: loss on the old text against loss on the new, over rates and steps.

Every look at a run on its way is a point (new, old): a training that stopped there. Of the points of one method and one
seed the lower-left envelope is what the method can do. Two methods are compared at **matched** loss on the new text: at
each one's own best rate by the new text alone, that loss differs, and who learns more seems to forget more.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .findings import Row, each, where

Point = tuple[float, float]  # loss on the new text, loss on the old text
SHARES = (
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
    1.0,
)  # of the way from the base's loss on the new text to the least that both methods reach


def points(curves: Iterable[Mapping[str, Any]], ends: bool = False) -> list[Point]:
    """(new, old) at every look of several runs, or at the base and the ends alone: without early stopping."""
    pairs = (list(zip(curve["loss"], curve["old_loss"], strict=True)) for curve in curves)
    return [point for run in pairs for point in ((run[0], run[-1]) if ends else run)]


def envelope(many: Iterable[Point]) -> list[Point]:
    """The points that none beats on both texts, the least loss on the new one first. Runs that went astray fall out."""
    kept: list[Point] = []
    for new, old in sorted(point for point in many if np.isfinite(point).all()):
        if not kept or old < kept[-1][1]:
            kept.append((new, old))
    return kept


def old_at(frontier: Sequence[Point], new: float) -> float | None:
    """The loss on the old text where that on the new one is `new`, on lines between the points; None short of it."""
    x, y = np.transpose(frontier)
    return float(np.interp(new, x, y)) if new >= x[0] else None


def frontiers(rows: Iterable[Row], ends: bool = False) -> dict[str, list[list[Point]]]:
    """{method: the envelope of each seed} of the rows of one text, a row a run."""
    rows = list(rows)
    return {
        method: [
            envelope(points((row["curve"] for row in where(rows, method=method, seed=seed)), ends))
            for seed in each(where(rows, method=method), "seed")
        ]
        for method in each(rows, "method")
    }


def reach(seeds: Iterable[Sequence[Point]]) -> float:
    """The least loss on the new text that is reached with every seed."""
    return max(frontier[0][0] for frontier in seeds)


def olds(seeds: Iterable[Sequence[Point]], new: float) -> list[float]:
    """Each seed's loss on the old text at a matched loss on the new one. Raises ValueError where a seed stops short."""
    found = [old_at(frontier, new) for frontier in seeds]
    if None in found:
        raise ValueError(f"frontier: a loss of {new:.4g} on the new text is not reached with every seed")
    return [old for old in found if old is not None]


def forgets(seeds: Iterable[Sequence[Point]], new: float) -> Row:
    """{"old_loss", "old_loss_spread", "seeds"} at a matched loss on the new text: mean, half the range, how many."""
    losses = olds(seeds, new)
    spread = (max(losses) - min(losses)) / 2
    return {"old_loss": float(np.mean(losses)), "old_loss_spread": spread, "seeds": len(losses)}


def matches(one: Sequence[Sequence[Point]], other: Sequence[Sequence[Point]], before: float) -> list[float]:
    """Losses on the new text at which two methods are compared: `SHARES` of the way that both go with every seed."""
    deepest = max(reach(one), reach(other))
    return [before - share * (before - deepest) for share in SHARES]


def sign(one: Sequence[Sequence[Point]], other: Sequence[Sequence[Point]], new: float) -> int:
    """-1 where one forgets clearly less than the other at a matched loss: its most over the seeds is below the other's
    least; 1 where clearly more; 0 where the ranges meet."""
    a, b = olds(one, new), olds(other, new)
    return -1 if max(a) < min(b) else 1 if min(a) > max(b) else 0


def signs(one: Sequence[Sequence[Point]], other: Sequence[Sequence[Point]], before: float) -> list[int]:
    """`sign` at each of the `matches`."""
    return [sign(one, other, new) for new in matches(one, other, before)]


def verdict(found: Sequence[int]) -> int:
    """-1, less: clearly so at half of the matches or more and nowhere the other way round; 1, more; 0, no clear
    difference."""
    for sign in (-1, 1):
        if 2 * found.count(sign) >= len(found) and -sign not in found:
            return sign
    return 0
