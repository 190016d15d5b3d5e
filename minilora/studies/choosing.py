"""How a study chooses: a learning rate by walking downhill, and a step by windows that it does not tell of."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..training.corpus import Corpus


class Between(Corpus):
    """A corpus that is validated on windows halfway between those that it would be, so that what is chosen on these can
    be told of by those: none is in both, where the text has windows for both."""

    def validation_windows(self, block_size: int, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Every second of 2 most - 1 windows, evenly spread, of which the others are `most`: both (most - 1, T)"""
        tokens, targets = super().validation_windows(block_size, most and 2 * most - 1)
        return tokens[1::2], targets[1::2]


def descend(height: Callable[[int], float], place: int = 0) -> int:
    """The place that neither neighbour is below, walking downhill one place at a time."""
    while (lowest := min((place, place - 1, place + 1), key=height)) != place:
        place = lowest
    return place


def final_loss(record: Mapping[str, Any]) -> float:
    """What a run came to."""
    return record["loss"]


def rates_around(
    runs: Any,
    spec: Any,
    guess: float,
    factor: float = 2.0,
    score: Callable[[Mapping[str, Any]], float] = final_loss,
    first_alone: bool = False,
) -> tuple[float, dict[float, float]]:
    """The learning rate whose neighbours are no better, and {rate: score} of the three, by the mean over the seeds.

    The rates are a factor apart, on a grid through a guess, which had better be low: below the best rate the loss falls
    steadily, while beyond it it rises, and may fall again before it rises for good. The first seed alone leads the way;
    from where it ends all of them do, since a rate that one seed likes may be beyond the edge for another.
    first_alone: it decides, too, which is two thirds of the runs less.
    """
    rate = lambda place: float(f"{guess * factor**place:.4g}")
    at = lambda place, seed: float(score(runs.record(replace(spec, lr=rate(place), seed=seed))))
    first, *others = runs.scale.seeds
    if not others:  # the quick form takes the guess
        return rate(0), {rate(0): at(0, first)}
    mean = lambda place: float(np.mean([at(place, seed) for seed in runs.scale.seeds]))
    best = descend(lambda place: at(place, first))
    if first_alone:
        return rate(best), {rate(place): at(place, first) for place in (best - 1, best, best + 1)}
    best = descend(mean, best)
    return rate(best), {rate(place): mean(place) for place in (best - 1, best, best + 1)}
