"""The checks of lecture 4's exercises."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..analysis import counting
from ..analysis.costs import Walk
from ..training.corpus import Corpus
from .exercises import cause, exercise, same


@exercise("4.1")
def sgd_bytes(answer: float) -> str | None:
    """Bytes of weights, gradients and optimiser of llama-2-7b with SGD."""
    memory = counting.count("llama-2-7b", "full", optimizer="sgd").training_memory_bytes
    parts = {part: memory[part] for part in ("weights", "gradients", "optimizer_state")}
    expected = sum(parts.values())
    adamw = counting.count("llama-2-7b", "full").training_memory_bytes
    likely = {
        "that counts the activations, too": sum(memory.values()),
        "that is AdamW's: SGD keeps no moments": sum(adamw[part] for part in parts),
        "in this mix the optimiser still keeps a 32-bit copy of the weights": parts["weights"] + parts["gradients"],
        "give bytes, not GB": expected / 1e9,
    }
    return same(answer, expected, cause(answer, likely, "weights, gradients and optimizer_state, in bytes", 1e-3))


@exercise("4.2")
def rehearsal(mixed: Callable) -> str | None:
    """A batch of two windows of the old text and six of the new: a function of both and a generator."""
    steps = np.arange(4000, dtype=np.int64)
    old, new = (Corpus(name, first + steps % 40, first + steps % 40) for name, first in (("old", 0), ("new", 50)))
    tokens, targets = (np.asarray(array) for array in mixed(old, new, np.random.default_rng(0)))
    if tokens.shape != (8, 128) or targets.shape != (8, 128):
        return f"tokens and targets have the shapes {tokens.shape} and {targets.shape}, expected (8, 128) both"
    if not (tokens[:, 1:] == targets[:, :-1]).all():
        return "the targets are not the tokens one place ahead: shuffle or join both in the same order"
    olds = int((tokens < 40).all(axis=1).sum())
    news = int((tokens >= 50).all(axis=1).sum())
    if (olds, news) != (2, 6):
        return f"{olds} windows are of the old text and {news} of the new, expected 2 and 6"
    again = np.asarray(mixed(old, new, np.random.default_rng(1))[0])
    return "another generator draws the same windows: draw them with rng" if np.array_equal(again, tokens) else None


@exercise("4.3")
def pull_back(pull: Callable) -> str | None:
    """A step towards where training started: a function of theta, start, rate and strength."""
    rng = np.random.default_rng(0)
    theta, start, rate, strength = rng.normal(size=(3, 2)), rng.normal(size=(3, 2)), 0.1, 0.5
    kept = theta.copy()
    found = pull(theta, start, rate, strength)
    expected = kept - rate * strength * (kept - start)
    likely = {
        "it moves away from the start: the sign": 2 * kept - expected,
        "that pulls to zero, which is weight decay; the pull is to where training started": kept
        * (1 - rate * strength),
        "the learning rate is missing": kept - strength * (kept - start),
        "the strength is missing": kept - rate * (kept - start),
        "that is the move alone; add it to theta": expected - kept,
    }
    return same(found, expected, cause(found, likely, "theta - rate * strength * (theta - start)"))


@exercise("4.7")
def price_of_the_place(answer: tuple[float, float]) -> str | None:
    """(last, first): a step's forward passes, where that block alone is trained."""
    expected = [forward_passes("blocks.3"), forward_passes("blocks.0")]
    if same(answer, expected[::-1]) is None:
        return "those are first and last, expected (last, first)"
    return same(answer, expected, "training / forward, of a plan whose `trained` holds that block's parameters alone")


def forward_passes(beginning: str) -> float:
    """A training step's operations over a forward pass's, where the parameters that begin so are trained."""
    plan = counting.plan("base", "full")
    chosen = {name: shape for name, shape in plan.base.items() if name.startswith(beginning)}
    walk = Walk(replace(plan, trained=chosen), batch=1, length=128)
    return walk.training / walk.forward
