"""Do large batches hurt LoRA more? LoRA of two ranks and full fine-tuning on as much text in more or fewer steps.

Schulman et al. 2025, "LoRA Without Regret", report that in some settings LoRA pays more in loss than full fine-tuning
as batches grow beyond some size, whatever its rank. On as much text a larger batch means fewer steps, so the study
holds those fixed as well: as few steps as the largest batch has, with a small batch.
"""

import itertools
import math
from dataclasses import replace
from typing import Any

from .choosing import rates_around
from .runs import SCALE, Runs, over_seeds, summarise

METHODS: dict[str, tuple[dict[str, Any], float]] = {  # what each changes, and where to start for its rate at 8 windows
    "LoRA r=8": ({}, 5e-3),
    "LoRA r=64": ({"rank": 64, "alpha": SCALE * 64}, 2.5e-3),
    "full": ({"method": "full"}, 1e-3),
}
SIZES = (1, 4, 16, 64)  # windows in a batch
FEW = 8  # windows in a batch, where the steps are as few as those of the largest


def study_batches(runs: Runs) -> list[dict[str, Any]]:
    """Batches of 1, 4, 16 and 64 windows, as many windows of a text in all: what LoRA loses against full fine-tuning,
    each at its own best rate; and batches of 8 in as few steps as those of 64, to tell the batch from the fewer steps.
    """
    sizes = SIZES[1:3] if len(runs.scale.seeds) < 2 else SIZES
    windows = max(runs.scale.steps * runs.scale.batch_size // sizes[-1], 1) * sizes[-1]
    shapes = [*((size, windows // size) for size in sizes), (FEW, windows // sizes[-1])]
    each = itertools.product(runs.scale.corpora, shapes)
    return [row for corpus, (size, steps) in each for row in _compared(runs, corpus, size, steps)]


def _compared(runs: Runs, corpus: str, size: int, steps: int) -> list[dict[str, Any]]:
    """A row a method: its loss, and by how much that is above full fine-tuning's on the same batches."""
    rows: list[dict[str, Any]] = []
    records: dict[str, list[dict[str, Any]]] = {}
    for method, (changes, guess) in METHODS.items():
        spec = runs.spec(corpus=corpus, batch_size=size, steps=steps, looks=1, **changes)
        near = guess * 2.0 ** int(math.log2(size / 8) / 2)  # about as the square root of the batch
        lr, around = rates_around(runs, spec, near, first_alone=True)
        row: dict[str, Any] = {"corpus": corpus, "method": method, "batch_size": size, "steps": steps, "lr": lr}
        rows.append({**row, "around": list(around.items()), **over_seeds(runs, replace(spec, lr=lr))})
        records[method] = runs.records(replace(spec, lr=lr, seed=seed) for seed in runs.scale.seeds)
    for row in rows:
        pairs = zip(records[row["method"]], records["full"], strict=True)
        row |= summarise([{"gap": ours["loss"] - full["loss"]} for ours, full in pairs], "gap")
    return rows
