"""The change itself, from models that other studies trained: how much of its rank is used, and what 16 bits keep of it.

Each row is a mean over the matrices of one model, one seed: what spreads is the seeds.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..analysis import rank, rounding
from ..nn.storage import load_model
from ..training.loop import evaluate
from .intruders import rates_below, tuned_state
from .runs import SCALE, Runs, Spec, best_rate

SHARES = (1.0, 0.1, 0.03, 0.01, 0.003, 0.001)  # of Delta W that are merged
FORMATS = ("bfloat16", "float16")
Loss = Callable[[Mapping[str, Any], Mapping[str, Any]], float]


def matrices(runs: Runs, spec: Spec, base: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{matrix: Delta W} of a run, in float64."""
    tuned = tuned_state(runs, spec, dict(base))
    return {n: tuned[n].astype(float) - base[n] for n in base if rank.adapted_matrix(n)}


def study_rank_use(runs: Runs) -> list[dict[str, Any]]:
    """Does rank get used? Stable and effective rank of Delta W against r, beside a product of random factors.

    At a constant alpha / r and the best rate of rank 8: each rank on the first text, the least, the middle and the
    largest on the other; these on the first text at the rate below it, too ("lora, gentler"); and full fine-tuning.
    random: of Gaussian A and B, or a Gaussian matrix.
    """
    rows, base = [], load_model("base").state_dict()
    for corpus, seed in itertools.product(runs.scale.corpora, runs.scale.seeds):
        for kind, spec in ranked(runs, corpus):
            spec = replace(spec, seed=seed)
            changes, rng = list(matrices(runs, spec, base).values()), np.random.default_rng(seed)
            r = spec.rank if spec.method == "lora" else min(changes[0].shape)
            row = {"corpus": corpus, "kind": kind, "rank": r, "lr": spec.lr, "seed": seed}
            rows.append({**row, **means(changes), "loss": runs.record(spec)["loss"]})
            if kind != "lora, gentler":
                rows.append({**row, "kind": f"{kind}, random", **means(at_random(kind, r, changes, rng))})
    return rows


def ranked(runs: Runs, corpus: str) -> Iterator[tuple[str, Spec]]:
    """(kind, run) of the study `rank-use`."""
    spec, rates, first = runs.spec(corpus=corpus, keep=True), rates_below(runs, "lora", corpus), runs.scale.corpora[0]
    few, every = runs.scale.ranks[::3], runs.scale.ranks
    for kind, lr, ranks in (("lora", rates[-1], every if corpus == first else few), ("lora, gentler", rates[0], few)):
        for r in ranks if kind == "lora" or corpus == first else ():
            yield kind, replace(spec, rank=r, alpha=SCALE * r, lr=lr)
    yield "full", replace(spec, method="full", lr=best_rate(runs, "full", corpus))


def at_random(kind: str, r: int, changes: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """What has nothing to say, of the same shapes and of the same rank."""
    if kind == "full":
        return [rank.random_like(delta, rng) for delta in changes]
    return [rng.normal(size=(len(delta), r)) @ rng.normal(size=(r, delta.shape[1])) for delta in changes]


def means(changes: Sequence[np.ndarray]) -> dict[str, float]:
    """Over matrices, of what one number says about a spectrum."""
    found = [rank.summary(delta) for delta in changes]
    return {name: float(np.mean([one[name] for one in found])) for name in ("stable_rank", "effective_rank", "norm")}


def study_sixteen_bits(runs: Runs) -> list[dict[str, Any]]:
    """What do bfloat16 and float16 keep of a merged Delta W, by its size? In numbers, and in what was learned.

    LoRA of rank 8, W in the format already: as it was trained at two rates, and the best one's Delta W times a share.
    A row is a way of merging: the sum rounded to the nearest, or at random. gone, along and error are as
    `rounding.kept` says; NAME_noise, of a Gaussian matrix of the same norm; NAME_formula, from ||Delta W|| / ||W||
    alone. gain: how much lower the loss is than the rounded base's; gain_exact: where the sum stays in float32.
    """
    rows, base = [], load_model("base").state_dict()
    for corpus, seed in itertools.product(runs.scale.corpora, runs.scale.seeds):
        loss = losses(runs, corpus, base)
        for lr, shares in shared(runs, corpus):
            changes = matrices(runs, runs.spec(corpus=corpus, lr=lr, keep=True, seed=seed), base)
            for share, kind in itertools.product(shares, FORMATS):
                part = {name: share * delta for name, delta in changes.items()}
                told = {"corpus": corpus, "lr": lr, "seed": seed, "share": share, "format": kind}
                rows += [{**told, **row} for row in merged(base, part, kind, seed, loss)]
    return rows


def losses(runs: Runs, corpus: str, base: Mapping[str, Any]) -> Loss:
    """loss(W, Delta W) on a text, of the base with other matrices, summed in float32."""
    probe = load_model("base")

    def loss(held: Mapping[str, np.ndarray], added: Mapping[str, np.ndarray]) -> float:
        probe.load_state_dict({**base, **{name: value + added.get(name, 0.0) for name, value in held.items()}})
        return evaluate(probe, runs.corpus(corpus), runs.scale.windows)

    return loss


def shared(runs: Runs, corpus: str) -> list[tuple[float, tuple[float, ...]]]:
    """(rate, what shares of its Delta W are merged)"""
    rates, shares = rates_below(runs, "lora", corpus), SHARES if len(runs.scale.seeds) > 1 else SHARES[::3]
    return [(lr, shares if lr == rates[-1] else (1.0,)) for lr in rates]


def merged(
    base: Mapping[str, Any], changes: Mapping[str, np.ndarray], kind: str, seed: int, loss: Loss
) -> Iterator[dict[str, Any]]:
    """A change merged in a format in both ways.   loss(W, Delta W): on the new text"""
    held = {name: rounding.rounded(base[name], kind) for name in changes}
    noise = {name: rank.random_like(delta, [seed, place]) for place, (name, delta) in enumerate(changes.items())}
    ratio = float(np.linalg.norm(_flat(changes)) / np.linalg.norm(_flat(held)))
    none, exact = loss(held, {}), loss(held, changes)
    formula = {f"{name}_formula": value for name, value in rounding.predicted(ratio, kind).items()}
    for way, rng in (("nearest", None), ("at random", np.random.default_rng(seed))):
        added, of_noise = (
            {name: rounding.arrived(held[name], delta, kind, rng) for name, delta in many.items()}
            for many in (changes, noise)
        )
        row = {"way": way, "ratio": ratio, **rounding.kept(_flat(changes), _flat(added))}
        row |= {f"{name}_noise": value for name, value in rounding.kept(_flat(noise), _flat(of_noise)).items()}
        row |= formula if rng is None else {}
        yield {**row, "gain": none - loss(held, added), "gain_exact": none - exact}


def _flat(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays.values()])
