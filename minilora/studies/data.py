"""How much text is enough to train on, and for which method? Less than enough is where not to train competes.

A run on little text learns it by heart: its validation loss falls, then rises above that of the untouched base. So each
run is stopped at its best step, the first of all, the base itself, among them; the step is chosen on other windows than
those that are told of, and so is the learning rate, for each amount of text anew.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .choosing import rates_around
from .runs import SCALE, Runs, Spec, summarise

METHODS: dict[str, tuple[dict[str, Any], float]] = {  # what each changes, and where to start for its rate on 2,000
    "LoRA r=1": ({"rank": 1, "alpha": SCALE}, 1e-3 / 3),
    "LoRA r=8": ({}, 1e-3 / 9),
    "full": ({"method": "full"}, 1e-3 / 27),
}
LOOKS = 10  # at a run


def study_data(runs: Runs) -> list[dict[str, Any]]:
    """How much text of one kind: LoRA at ranks 1 and 8, full fine-tuning and the untouched base, on more and more
    characters, each run stopped at its best step, and trained to its end."""
    rows = []
    for corpus, characters in itertools.product(runs.scale.corpora, runs.scale.characters):
        spec = runs.spec(corpus=corpus, characters=characters, choice=True, looks=min(LOOKS, runs.scale.steps))
        found = {name: _stopped_runs(runs, spec, characters, *METHODS[name]) for name in METHODS}
        for name, (lr, ends) in found.items():
            row: dict[str, Any] = {"corpus": corpus, "method": name, "characters": characters, "lr": lr}
            for end, full in zip(ends, found["full"][1], strict=True):
                end["gap"] = end["loss"] - full["loss"]
            row |= summarise(ends, "loss", "last", "seen", "base", "gain", "gap")
            rows.append(row | {"stopped": [end["step"] for end in ends]})
    return rows


def _stopped_runs(
    runs: Runs, spec: Spec, characters: int, changes: dict[str, Any], guess: float
) -> tuple[float, list[dict[str, Any]]]:
    """A method's rate, chosen at the first seed, and what its runs with each seed came to."""
    spec = replace(spec, **changes)
    near = guess * 3.0 ** round(math.log(characters / 2_000, 6))  # the less text, the gentler
    lr, _ = rates_around(runs, spec, near, 3.0, lambda record: min(record["curve"]["choice"]), first_alone=True)
    return lr, [
        stopped(record) for record in runs.records(replace(spec, lr=lr, seed=seed) for seed in runs.scale.seeds)
    ]


def stopped(record: Mapping[str, Any]) -> dict[str, Any]:
    """A run stopped where the loss on the windows for choosing is least: the step, and the losses that are told of.

    last: the loss at the end. seen: the loss where it is least itself, which flatters: it was chosen by what is told.
    gain: how far below the base's the loss is.
    """
    curve = record["curve"]
    at = int(np.argmin(curve["choice"]))
    told = {"step": curve["step"][at], "loss": curve["loss"][at]}
    told |= {"last": curve["loss"][-1], "seen": min(curve["loss"]), "base": curve["loss"][0]}
    return told | {"gain": told["base"] - told["loss"]}
