"""What is forgotten for what is learned: each method's frontier over learning rates and steps, full fine-tuning's, too.

One rate a method, chosen by the new text alone, compares a method that learned more with one that learned less. Here
every rate of a method's grid is trained with every seed, and each look on the way counts: a training that was stopped
there. With equal right stand beside LoRA: the last block, bottleneck adapters, and full fine-tuning pulled back to the
base (Li, Grandvalet & Davoine 2018). What the records say is told by `frontier.py`.
"""

import itertools
from dataclasses import replace
from typing import Any

from ..nn.storage import load_model
from ..training.loop import evaluate
from .alternatives import COMPARED
from .runs import OLD_TEXT, SCALE, Runs, Spec

# What each method changes of a `Spec` (models are kept where other studies keep them), and its learning rates: around
# the best on the new text, and gentler ones, whose runs forget less.
METHODS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "full": ({"method": "full", "keep": True}, (1e-4, 3e-4, 1e-3, 1.98e-3, 3e-3)),
    "LoRA r=8": ({"keep": True}, (1e-3, 3e-3, 6.67e-3, 1e-2)),
    "LoRA r=1": ({"rank": 1, "alpha": SCALE, "keep": True}, (1e-3, 3e-3, 1e-2, 3e-2)),
    "LoRA r=64": ({"rank": 64, "alpha": 64 * SCALE, "keep": True}, (3e-4, 1e-3, 2.96e-3, 1e-2)),
    "LoRA r=8 on q,v": (COMPARED["lora-qv"], (1e-3, 3e-3, 1e-2, 3e-2)),
    "last block": (COMPARED["last-blocks"], (3e-4, 1e-3, 3e-3, 1e-2)),
    "adapters": (COMPARED["pfeiffer"], (1e-3, 3e-3, 1e-2, 3e-2)),
}
PULLED = ((1e-3, 10.0), (3e-3, 10.0), (3e-3, 30.0))  # learning rate, pull: beside the runs of "full", whose pull is 0


def study_forgetting(runs: Runs) -> list[dict[str, Any]]:
    """Loss on the new text against loss on the old, over rates and steps: does LoRA forget less at matched loss?"""
    old_before, rows = evaluate(load_model("base"), runs.corpus(OLD_TEXT), runs.scale.windows), []
    for corpus in runs.scale.corpora:
        for name, many in specs_of(runs, corpus).items():
            for spec, seed in itertools.product(many, runs.scale.seeds):
                record = runs.record(replace(spec, seed=seed))
                row = {"corpus": corpus, "method": name, "lr": spec.lr, "pull": spec.pull, "seed": seed}
                row |= {key: record[key] for key in ("trainable", "before", "loss", "old_loss", "curve")}
                rows.append({**row, "old_before": old_before})
    return rows


def specs_of(runs: Runs, corpus: str) -> dict[str, list[Spec]]:
    """{method: its runs on a text, at the first seed}"""
    quick, specs = len(runs.scale.seeds) < 2, {}
    for name, (changes, rates) in METHODS.items():
        specs[name] = [runs.spec(corpus=corpus, lr=lr, **changes) for lr in (rates[-1:] if quick else rates)]
    pulled = [runs.spec(corpus=corpus, method="full", lr=lr, pull=pull) for lr, pull in PULLED]
    return {**specs, "full + pull": specs["full"] + pulled}
