"""Are A and B alike? Each trained alone, and each in its turn the one that begins at random.

Zhu et al. 2024, "Asymmetry in Low-Rank Adapters of Foundation Models": A, frozen at random, takes features of the
input, and training B alone comes near to training both; A trained under a random B does not. At equal numbers of
trained parameters, one factor alone has twice the rank. Hayou, Ghosh & Yu 2024, "The Impact of Initialization on LoRA
Finetuning Dynamics": with both trained, A random and B zero on average ends better than B random and A zero.

Where B is frozen, how large it begins says nothing: c B trained at rate lr / c gives the same steps of s B A (but for
the weight decay, and for Adam's epsilon). So a kind's own best rate is what makes the comparison fair.
"""

import itertools
from dataclasses import replace
from typing import Any

from .choosing import rates_around
from .runs import SCALE, Runs, over_seeds

B_FIRST: dict[str, Any] = {"start": "B random"}  # Hayou's Init[B]; LoRA's own start is Init[A]
KINDS: dict[
    str, tuple[dict[str, Any], float]
] = {  # {kind: (what it changes of LoRA, where to start for its best rate)}
    "A and B": ({}, 1e-2),
    "A and B, B random": (B_FIRST, 2.5e-3),
    "B": ({"trained": "B"}, 1e-2),
    "A": ({"trained": "A", **B_FIRST}, 2.5e-3),
    "B, r=16": ({"trained": "B", "rank": 16, "alpha": SCALE * 16}, 5e-3),
    "A, r=16": ({"trained": "A", "rank": 16, "alpha": SCALE * 16, **B_FIRST}, 2.5e-3),
}


def study_asymmetry(runs: Runs) -> list[dict[str, Any]]:
    """A and B are not alike: B trained alone, A trained alone, at one rank and at as many parameters as both have; and
    which of them begins at random. Each at its own best learning rate."""
    rows = []
    for corpus, (kind, (changes, guess)) in itertools.product(runs.scale.corpora, KINDS.items()):
        spec = runs.spec(corpus=corpus, looks=1, **changes)
        lr, around = rates_around(runs, spec, guess, first_alone=True)
        row: dict[str, Any] = {"corpus": corpus, "kind": kind, "rank": spec.rank, "lr": lr}
        rows.append({**row, "around": list(around.items()), **over_seeds(runs, replace(spec, lr=lr))})
    return rows
