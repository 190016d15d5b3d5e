"""The change itself, from models that other studies trained: how much of its rank is used, and what 16 bits keep of it.

Each row is a mean over the matrices of one model, one seed: what spreads is the seeds.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..analysis import rank, rounding
from ..nn.storage import load_model
from ..training.loop import evaluate
from .intruders import rates_of, tuned_state
from .records import kept_rows
from .runs import SCALE, Runs, Spec

RANKS = (1, 2, 8, 16, 32, 64)  # models that other studies train, too
GENTLER = 2.96e-3  # about a third of LoRA's rate, on the grid of a factor of 1.5
SHARES = (1.0, 0.1, 0.01, 0.001)  # of Delta W that are merged
FORMATS = ("bfloat16", "float16")
Loss = Callable[[Mapping[str, Any], Mapping[str, Any]], float]


def matrices(runs: Runs, spec: Spec, base: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{matrix: Delta W} of a run, in float64."""
    tuned = tuned_state(runs, spec, dict(base))
    return {n: tuned[n].astype(float) - base[n] for n in base if rank.adapted_matrix(n)}


def study_rank_use(runs: Runs) -> list[dict[str, Any]]:
    """Does rank get used? Stable and effective rank of Delta W against r, beside a product of random factors.

    On the first text, at a constant alpha / r and one rate; the largest r at a third of it, too ("lora, gentler"); and
    full fine-tuning. random: of Gaussian A and B, or a Gaussian matrix.
    """
    rows, base, corpus = [], load_model("base").state_dict(), runs.scale.corpora[0]
    for (kind, spec), seed in itertools.product(ranked(runs, corpus), runs.scale.seeds):
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
    lr, full = (rates_of(runs, method)[-1] for method in ("lora", "full"))
    spec = runs.spec(corpus=corpus, lr=lr, keep=True)
    for r in (r for r in RANKS if r in runs.scale.ranks):
        yield "lora", replace(spec, rank=r, alpha=SCALE * r)
    yield "lora, gentler", replace(spec, rank=RANKS[-1], alpha=SCALE * RANKS[-1], lr=GENTLER)
    yield "full", replace(spec, method="full", lr=full)


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

    LoRA of rank 8, W in the format already: as it was trained at two rates, and the higher one's Delta W times a share.
    A row is a way of merging: the sum rounded to the nearest, or at random. gone, along and error are as
    `rounding.kept` says; NAME_noise, of a Gaussian matrix of the same norm; NAME_formula, from ||Delta W|| / ||W||
    alone. gain: how much lower the loss is than the rounded base's; gain_exact: where the sum stays in float32.
    """
    rows = []
    for corpus, seed in itertools.product(runs.scale.corpora, runs.scale.seeds):
        rates, shares = rates_of(runs, "lora")[-2:], SHARES if len(runs.scale.seeds) > 1 else SHARES[::3]
        for lr in rates:
            spec = runs.spec(corpus=corpus, lr=lr, keep=True, seed=seed)
            told = {"corpus": corpus, "lr": lr, "seed": seed}
            some = shares if lr == rates[-1] else (1.0,)
            measure = functools.partial(merges, runs, spec, some)
            rows += [{**told, **row} for row in kept_rows(runs.folder, (spec.key, "merged", *some), measure)]
    return rows


def merges(runs: Runs, spec: Spec, shares: Sequence[float]) -> Iterator[dict[str, Any]]:
    """A run's rows."""
    base = load_model("base").state_dict()
    changes, loss = matrices(runs, spec, base), losses(runs, spec.corpus, base)
    for kind in FORMATS:
        held = {name: rounding.rounded(base[name], kind) for name in changes}
        for share in shares:
            part, told = {name: share * delta for name, delta in changes.items()}, {"share": share, "format": kind}
            yield from ({**told, **row} for row in merged(held, part, kind, spec.seed, loss))


def losses(runs: Runs, corpus: str, base: Mapping[str, Any]) -> Loss:
    """loss(W, Delta W) on a text, of the base with other matrices, summed in float32."""
    probe = load_model("base")

    def loss(held: Mapping[str, np.ndarray], added: Mapping[str, np.ndarray]) -> float:
        probe.load_state_dict({**base, **{name: value + added.get(name, 0.0) for name, value in held.items()}})
        return evaluate(probe, runs.corpus(corpus), runs.scale.windows)

    return loss


def merged(
    held: Mapping[str, np.ndarray], changes: Mapping[str, np.ndarray], kind: str, seed: int, loss: Loss
) -> Iterator[dict[str, Any]]:
    """A change merged into W, held in a format, in both ways.   loss(W, Delta W): on the new text"""
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
