"""Do intruder dimensions cause forgetting? Counted at matched loss on the new text, and shrunk step by step.

Shuttleworth et al. 2024 (arXiv 2410.21228v3) find that LoRA brings in more intruders than full fine-tuning (section
3.1), and that a tuned model whose intruders are made weaker forgets less while it loses little of what it learned
(section 5). Both are tried here in ways that could fail: counts are compared where the methods have learned equally
much, not at one learning rate; and beside the intruders as many other directions are shrunk, and all of Delta W.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..adapters.lora import delta_weights
from ..analysis import intruders, rank
from ..nn.storage import load_model
from ..training.loop import evaluate
from .findings import Row, each, ordered, where
from .records import kept_rows
from .runs import OLD_TEXT, Runs, Spec, summarise

STEPS = (0.75, 0.5, 0.0)  # times which a part of the tuned matrices is taken; 1 is the model as it was tuned
# All of Delta W in smaller steps, too: near 1 the new text's loss hardly moves, and the old text's does
FACTORS = {"intruders": STEPS, "others": STEPS, "rest": STEPS, "change": (0.95, 0.9, *STEPS)}
TOP = 10  # among so many first singular directions, as in the paper
RATES = {"full": (3e-4, 1e-3, 3e-3), "lora": (1e-3, 3e-3, 1e-2)}  # up to each one's best on the grid of factor three
SHRUNK = {"full": 1, "lora": 2}  # of each, how many rates' models are shrunk, the highest


def rates_of(runs: Runs, method: str) -> list[float]:
    """Of these rates, those that the scale knows."""
    return [lr for lr in RATES[method] if lr in runs.scale.learning_rates] or [max(runs.scale.learning_rates)]


def settings(runs: Runs, corpus: str) -> Iterator[tuple[str, Spec, bool]]:
    """(method, run, whether it is shrunk): full fine-tuning and LoRA of rank 8, from the gentlest rate up.

    Shrunk are the models of the highest rates (`SHRUNK`).
    """
    for method in RATES:
        rates = rates_of(runs, method)
        for lr in rates:
            yield method, runs.spec(corpus=corpus, method=method, lr=lr, keep=True), lr in rates[-SHRUNK[method] :]


def study_intruders(runs: Runs) -> list[dict[str, Any]]:
    """Do intruder dimensions cause forgetting? Their number at several rates, and losses as they are shrunk to nothing.

    A row is a model whose tuned matrices have a part of them times a factor. The part is the intruders; as many of the
    strongest other directions; all of Delta W ("change"); or what of Delta W lies outside the intruders' left
    directions ("rest"). part "none" is the model as it was tuned, with intruders, their mean number in a matrix, and
    change, the mean of ||Delta W|| / ||W||.
    """
    rows = []
    for corpus in runs.scale.corpora:
        for (name, spec, shrink), seed in itertools.product(settings(runs, corpus), runs.scale.seeds):
            spec = replace(spec, seed=seed)
            told = {"corpus": corpus, "kind": name, "lr": spec.lr, "seed": seed}
            for part in ("none", *(FACTORS if shrink else ())):
                words, measure = (spec.key, part, *FACTORS.get(part, ())), functools.partial(shrunk, runs, spec, part)
                rows += [{**told, "part": part, **row} for row in kept_rows(runs.folder, words, measure)]
    return rows


def shrunk(runs: Runs, spec: Spec, part: str) -> Iterator[dict[str, Any]]:
    """The rows of a run and a part; none where there is no intruder to shrink, and to compare anything with."""
    base = load_model("base").state_dict()
    tuned, record = tuned_state(runs, spec, base), runs.record(spec)
    names = [name for name in base if rank.adapted_matrix(name)]
    found = {name: rank.intruder_dimensions(base[name], tuned[name], TOP) for name in names}
    if part == "none":
        ratios = [np.linalg.norm(tuned[name] - base[name]) / np.linalg.norm(base[name]) for name in names]
        counts = {"intruders": float(np.mean([len(many) for many in found.values()])), "change": float(np.mean(ratios))}
        yield {"factor": 1.0, "loss": record["loss"], "old_loss": record["old_loss"], **counts}
    elif any(map(len, found.values())):
        probe, texts = load_model("base"), {"loss": spec.corpus, "old_loss": OLD_TEXT}
        pieces = {name: piece(part, base[name], tuned[name], found[name]) for name in names}
        for factor in FACTORS[part]:
            less = {n: (tuned[n] + (factor - 1) * pieces[n]).astype(tuned[n].dtype) for n in names}
            probe.load_state_dict({**tuned, **less})
            losses = {n: round(evaluate(probe, runs.corpus(text), runs.scale.windows), 5) for n, text in texts.items()}
            yield {"factor": factor, **losses}


def tuned_state(runs: Runs, spec: Spec, base: dict[str, Any]) -> dict[str, np.ndarray]:
    """The state dict of a run's model, with LoRA's Delta W in its matrices."""
    model = runs.model(spec)
    if spec.method == "full":
        return model.state_dict()
    updates = {f"{name}.weight": delta for name, delta in delta_weights(model).items()}
    return {name: value + updates[name] if name in updates else value for name, value in base.items()}


def piece(part: str, before: np.ndarray, after: np.ndarray, found: np.ndarray) -> np.ndarray:
    """What is made weaker of a tuned matrix.   found: its intruders   -> (m, n)"""
    if part == "change":
        return after - before
    if part == "rest":
        u = rank.svd(after)[0][:, found]  # (m, intruders)
        return (after - before) - u @ (u.T @ (after - before))
    others = np.setdiff1d(np.arange(min(after.shape)), found)
    return intruders.part_of(after, found if part == "intruders" else others[: len(found)])


# --- what the rows say -----------------------------------------------------------------------------------------------


def at_loss(path: Sequence[Row], loss: float, number: str) -> float | None:
    """A number where a path of models has a loss on the new text, between two of them in a straight line.

    The last such place along the path; None where the path does not come there.
    """
    found = None
    for a, b in itertools.pairwise(path):
        low, high = sorted((a["loss"], b["loss"]))
        if low <= loss <= high:
            share = (loss - a["loss"]) / (b["loss"] - a["loss"]) if low < high else 1.0
            found = a[number] + share * (b[number] - a[number])
    return found


def learned(rows: Sequence[Row], kind: str) -> dict[int, list[Row]]:
    """{seed: the models of a kind as they were tuned, from the best rate on the new text down to the gentlest}"""
    paths = {}
    for seed in each(rows, "seed"):
        models = ordered(rows, "lr", kind=kind, part="none", seed=seed)
        best = min(range(len(models)), key=lambda place: models[place]["loss"])
        paths[seed] = models[best::-1]
    return paths


def at_equal_loss(
    rows: Sequence[Row], number: str, kinds: Sequence[str] = ("lora", "full")
) -> list[dict[str, dict[str, Any]]]:
    """A number of each kind where all have learned equally much: {kind: its mean over the seeds, and spread, and loss}.

    At three losses on the new text: the lowest that every kind comes to with every seed, and a quarter and half of the
    way from there to the highest. [] where they have no loss in common.
    """
    paths = {kind: learned(rows, kind) for kind in kinds}
    reach = [[row["loss"] for row in path] for many in paths.values() for path in many.values()]
    low, high = max(map(min, reach)), min(map(max, reach))
    found = []
    for loss in (low + share * (high - low) for share in (0.0, 0.25, 0.5) if low < high):
        values = {kind: [at_loss(path, loss, number) for path in many.values()] for kind, many in paths.items()}
        if all(value is not None for many in values.values() for value in many):
            found.append({k: {"at": loss, **summarise([{number: v} for v in vs], number)} for k, vs in values.items()})
    return found


def beside_change(rows: Sequence[Row], factor: float, part: str = "intruders") -> tuple[Row, Row] | None:
    """How much lower the old text's loss is with a part of a kind's models times a factor, and with all of Delta W made
    so much weaker that the new text's loss is the same: "saved", each seed against its own model, means and spreads.

    None where a weaker Delta W never has that loss, or a model had no intruder.
    """
    saved: list[list[dict[str, float]]] = [[], []]
    for seed in each(rows, "seed"):
        if not any(row["part"] == part and row["seed"] == seed for row in rows):
            return None
        model = where(rows, part="none", seed=seed)
        path = [*model, *sorted(where(rows, part="change", seed=seed), key=lambda row: -row["factor"])]
        weaker = where(rows, part=part, seed=seed, factor=factor)[0]
        loss = max(weaker["loss"], min(row["loss"] for row in path))  # where it gained, it is to beat the best there is
        for many, old in zip(saved, (weaker["old_loss"], at_loss(path, loss, "old_loss")), strict=True):
            if old is None:
                return None
            many.append({"saved": model[0]["old_loss"] - old})
    return summarise(saved[0], "saved"), summarise(saved[1], "saved")
