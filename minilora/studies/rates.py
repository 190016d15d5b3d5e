"""Learning rates: LoRA's best beside full fine-tuning's, and whether it moves with the rank; and what the records say.

LoRA's update is scaled by s = alpha / r, and alpha has to be told how to follow r. Conventions, alike at r = 8:

    "alpha"      alpha constant             s = 16 / r             Hu et al. 2021, section 4.1; Schulman et al. 2025
    "alpha/r"    alpha = 2 r                s = 2                  common advice
    "rsLoRA"     alpha constant, over √r    s = 2 √8 / √r          Kalajdzievski 2023: between the two

What AdamW makes of them (lecture 5 measures it). B begins at zero, so the first step moves B alone, each entry by the
rate eta whatever its gradient's size: B_1 = -eta sign(dB), with dB = s dW A^T. To first order the loss then falls by

    <dB, eta sign(dB)> = eta |dB|_1 = eta s sum_ok |<dW_o, a_k>|  ~  eta s r       a_k: the rows of A, drawn alike

(with plain gradient descent by eta |dB|_2^2 ~ eta s^2 r). Later A, too, has moved by more than it began with: then both
factors are about eta t, and Delta W = s B A, a sum of r like terms, is about s r (eta t)^2. A best rate that holds one
of these numbers is as r^0 with alpha constant, between r^-1 and r^-1/2 with alpha = 2 r, and between r^-1/2 and r^-1/4
with rsLoRA.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .findings import Row, each, ordered, where
from .runs import SCALE, Runs, Spec, summarise

CONVENTIONS: dict[str, Any] = {  # how alpha follows the rank: {name: r -> settings}; alpha / r = SCALE at r = 8
    "alpha": lambda r: {"alpha": 8 * SCALE},
    "alpha/r": lambda r: {"alpha": r * SCALE},
    "rsLoRA": lambda r: {"alpha": (8 * r) ** 0.5 * SCALE},  # alpha / r is then 2 √8 / √r
}
FEW = (1, 8, 64)  # ranks, of those there are: of rsLoRA, and on texts beside the first
FACTOR, REACH = 1.5, 1  # from rate to rate, and how many rates at least are looked at on each side of the best


def study_rates(runs: Runs) -> list[dict[str, Any]]:
    """Learning rates: LoRA's best against full fine-tuning's, on a grid of factor 1.5 around each, and whether it moves
    with the rank, when alpha is constant, when alpha / r is, and when alpha / √r is."""
    rows = []
    for corpus in runs.scale.corpora:
        rows += _sweep(runs, runs.spec(corpus=corpus, method="full", lr=3e-3, keep=True), "full")
        common = runs.spec(corpus=corpus, lr=1e-2, keep=True)  # where the search begins
        at_8 = _sweep(runs, common, "alpha")
        common = replace(common, lr=min(at_8, key=lambda row: row["loss"])["lr"])  # looked at with every rank
        for kind, settings in CONVENTIONS.items():
            whole = corpus == runs.scale.corpora[0] and kind != "rsLoRA"
            for rank in runs.scale.ranks if whole else FEW:
                rows += _sweep(runs, replace(common, rank=rank, **settings(rank)), kind)
    return rows


def _sweep(runs: Runs, spec: Spec, kind: str) -> list[dict[str, Any]]:
    """The rates from the spec's own on, each a factor from the next, until the best has enough of them on each side."""
    if len(runs.scale.seeds) == 1:  # a look at the study: one seed says nothing about small steps
        return [_row(runs.records([replace(spec, lr=lr)]), spec, kind) for lr in runs.scale.learning_rates]
    nearest = round(np.log(spec.lr / 1e-2) / np.log(FACTOR))
    places = {nearest}
    records: dict[int, list[dict[str, Any]]] = {}  # of the rates so far, with all seeds or the first
    for seeds in (runs.scale.seeds[:1], runs.scale.seeds):  # far away one seed is enough
        while missing := sorted(places - {place for place, found in records.items() if len(found) >= len(seeds)}):
            for place in missing:
                lr = float(f"{1e-2 * FACTOR**place:.3g}")
                records[place] = runs.records([replace(spec, lr=lr, seed=seed) for seed in seeds])
            losses = {place: summarise(records[place], "loss")["loss"] for place in places}
            best = min(losses, key=lambda place: np.nan_to_num(losses[place], nan=np.inf))
            places |= set(range(best - REACH, best + REACH + 1))
        places = set(range(best - REACH, best + REACH + 1)) | {nearest}
    return [_row(records[place], spec, kind) for place in sorted(records) if len(records[place]) == len(seeds)]


def _row(records: Sequence[dict[str, Any]], spec: Spec, kind: str) -> dict[str, Any]:
    """The runs of one rate: the loss over the seeds, and each seed's own, at the looks on the way."""
    row = {"corpus": spec.corpus, "kind": kind, "rank": spec.rank, "lr": records[0]["spec"]["lr"]}
    curves = [record["curve"]["loss"] for record in records]
    return {**row, **summarise(records, "loss", "old_loss"), "step": records[0]["curve"]["step"], "curves": curves}


# --- what the records say --------------------------------------------------------------------------------------------

NEAR = 1.5 * np.log(FACTOR)  # how far from the best rate of the grid the parabola reaches
NUMBERS = ("kind", "rank", "lr", "loss", "loss_spread", "step", "curves")  # of a row


def best_rates(rows: Sequence[Row], look: int = -1) -> np.ndarray:
    """Each seed's best rate in one sweep, at a look (default the last): the lowest point of a parabola. -> (seeds,)

    The parabola of the loss over log(rate) goes through the rates near the one with the lowest mean, by least squares.
    Where it has no lowest point inside the sweep, the seed's best is the best of those rates.
    """
    sweep = np.log([row["lr"] for row in rows])
    losses = np.array([[curve[look] for curve in row["curves"]] for row in rows], float)  # (rates, seeds)
    losses = np.where(np.isfinite(losses), losses, np.finfo(np.float32).max)
    near = np.abs(sweep - sweep[np.argmin(losses.mean(axis=1))]) <= NEAR
    x, losses = sweep[near], losses[near]
    found = x[np.argmin(losses, axis=0)]
    if len(x) >= 3:
        a, b, _ = np.polyfit(x - x.mean(), losses, 2)
        with np.errstate(all="ignore"):
            lowest = x.mean() - b / (2 * a)
        found = np.where((a > 0) & (sweep.min() <= lowest) & (lowest <= sweep.max()), lowest, found)
    return np.exp(found)


def sweep(rows: Sequence[Row], kind: str, rank: int | None = None) -> list[Row]:
    """The rows of one kind, and rank, in the order of their rates. Raises ValueError for rows that are none."""
    found = where(rows, kind=kind) if rank is None else where(rows, kind=kind, rank=rank)
    for row in found:
        curves = np.array(row["curves"], float)
        if curves.ndim != 2 or curves.shape[1] != len(row["step"]) or not row["lr"] > 0 or not row["rank"] > 0:
            raise ValueError(f"figures: {kind}, rank {row['rank']!r}: a rate or its curves are out of shape")
    if len({np.shape(row["curves"]) for row in found}) > 1:
        raise ValueError(f"figures: {kind}, rank {rank}: the rates have curves of different shapes")
    if not any(np.isfinite(row["loss"]) for row in found):
        raise ValueError(f"figures: no learning rate of {kind!r}, rank {found[0]['rank']}, gave a finite loss")
    return ordered(found, "lr")


def ranks_of(rows: Sequence[Row], kind: str) -> list[int]:
    """The ranks that were looked at under one convention, the least first."""
    return sorted(each(where(rows, kind=kind), "rank"))


def times_full(rows: Sequence[Row], kind: str, rank: int, look: int = -1) -> np.ndarray:
    """LoRA's best rate over full fine-tuning's, for each seed. -> (seeds,)"""
    return best_rates(sweep(rows, kind, rank), look) / best_rates(sweep(rows, "full"), look)


def slopes(rows: Sequence[Row], kind: str, look: int = -1) -> np.ndarray:
    """The power of r that the best rate is as, under one convention, by least squares, for each seed. -> (seeds,)"""
    ranks = ranks_of(rows, kind)
    if len(ranks) < 2:
        raise ValueError(f"figures: {kind} was looked at with rank {ranks[0]} alone on this text, expected several")
    best = np.log([best_rates(sweep(rows, kind, rank), look) for rank in ranks])  # (ranks, seeds)
    return np.polyfit(np.log(ranks), best, 1)[0]


def at(rows: Sequence[Row], kind: str, rank: int, lr: float | None = None) -> np.ndarray:
    """The loss at a rate of the grid, or at that with the lowest mean, for each seed. -> (seeds,)"""
    found = sweep(rows, kind, rank)
    row = min(found, key=lambda row: row["loss"]) if lr is None else where(found, lr=lr)[0]
    return np.array([curve[-1] for curve in row["curves"]])
