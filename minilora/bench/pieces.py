"""Many cores: a LoRA step in 1 to 16 pieces on 1 to 16 threads or processes, and a model of cores that are not here.

A batch is split into pieces, which threads take one after the other (`training/parallel.py`), or of which processes
take one each (`training/processes.py`), as in a loop that trains a small model. The seconds of a step of
k pieces on p threads are modelled as

    t(k, p) = s + w / p + c k        s: what one thread does alone, w: what is shared, c: what a piece costs

by least squares over all k and the p that have a core each, no term below zero (Amdahl 1967, with the cost of a
piece). Threads without a core of their own are timed as well, to see what they cost; processes are in no model.
"""

import contextlib
import itertools
import sys
from collections.abc import Iterator

import numpy as np

from ..studies.turns import Contender, ratio, take_turns
from ..training import backward, parallel
from ..training.backward import loss_and_gradients
from ..training.loop import train_step
from ..training.optim import AdamW
from ..training.processes import SETTLED
from .peers import Workload, in_team
from .pytorch import LEARNING_RATE
from .rows import CORES, MORE_CORES, Row, row

PIECES = (1, 2, 4, 8, 16)
THREADS = (1, 2, 4, 8, 16)


@contextlib.contextmanager
def on_threads(number: int) -> Iterator[None]:
    """So many threads take pieces, whether or not there are cores for them."""
    before = backward.cores, parallel.cores
    backward.cores = parallel.cores = lambda: number
    try:
        yield
    finally:
        backward.cores, parallel.cores = before


def cores_rows(size: str, turns: int) -> list[Row]:
    """A row for each number of pieces and threads beside one piece on one thread, and one for each number of cores.

    Raises ArithmeticError where the threads change a bit of a gradient.
    """
    load, cores = Workload(size, "lora"), parallel.cores()
    able = [k for k in PIECES if k <= len(load.data[0])]
    pairs = [(k, p) for k in able for p in THREADS if p <= min(k, cores)] + [
        (able[-1], p) for p in THREADS if p > cores
    ]
    differences = {k: difference(load, k, cores) for k in able}
    shared = [p for p in able if 1 < p <= cores and sys.platform == "linux"]  # a piece for each process
    contenders = [contender(load, *pair) for pair in pairs] + [of_processes(load, p) for p in shared]
    times = take_turns(contenders, turns, strangers=False)
    one = times["1 on 1"]
    rows = [
        row(CORES, size, f"{k} on {p} thread{'s' * (p > 1)}", "s", ratio(times[f"{k} on {p}"], one),
            details={"pieces": k, "threads": p, "difference": differences[k]})
        for k, p in pairs
    ]  # fmt: skip
    rows += [
        row(CORES, size, f"{p} on {p} processes", "s", ratio(times[f"{p} in processes"], one),
            details={"pieces": p, "processes": p})
        for p in shared
    ]  # fmt: skip
    told = {(k, p): float(np.median(times[f"{k} on {p}"])) for k, p in pairs if p <= cores}
    terms = fitted(told)
    for p in THREADS:
        numbers = {"ours": modelled(terms, p, p), "theirs": modelled(terms, 1, 1)}
        share = {"ratio": numbers["ours"] / numbers["theirs"], "quartiles": [numbers["ours"] / numbers["theirs"]] * 2}
        details = dict(zip(("alone", "shared", "piece"), terms, strict=True))
        rows.append(row(MORE_CORES, size, f"{p} core{'s' * (p > 1)}", "s", numbers | share, details=details))
    return rows


def contender(load: Workload, pieces: int, threads: int) -> Contender:
    """A step in so many pieces on so many threads."""
    model, (tokens, targets) = load.model(), load.data
    optimizer = AdamW(model.named_parameters(), LEARNING_RATE)

    def step() -> float:
        with on_threads(threads):
            return train_step(model, optimizer, tokens, targets, pieces=pieces)

    return Contender(f"{pieces} on {threads}", step)


def of_processes(load: Workload, pieces: int) -> Contender:
    """A step in so many pieces on as many processes, which stand before the first turn."""
    model, (tokens, targets) = load.model(), load.data
    optimizer = AdamW(model.named_parameters(), LEARNING_RATE)
    step = in_team(model, optimizer, lambda: train_step(model, optimizer, tokens, targets, pieces=pieces))
    for _ in range(SETTLED):
        step()
    return Contender(f"{pieces} in processes", step)


def difference(load: Workload, pieces: int, threads: int) -> float:
    """How far the gradients in so many pieces are from those of one, over the largest. Raises where threads matter."""
    model, found = load.model(), []
    for k, p in ((1, 1), (pieces, 1), (pieces, threads), (pieces, 2 * threads)):
        with on_threads(p):
            found.append(loss_and_gradients(model, model.parameters(), *load.data, pieces=k)[1])
    one, *same = [[g for g in gradients if g is not None] for gradients in found]
    for first, other in itertools.pairwise(same):
        if not all(map(np.array_equal, first, other)):
            raise ArithmeticError(f"bench: the gradients of {pieces} pieces are others on another number of threads")
    largest = max(float(np.abs(g).max()) for g in one)
    return max(float(np.abs(g - h).max()) for g, h in zip(one, same[0], strict=True)) / largest


def fitted(told: dict[tuple[int, int], float]) -> tuple[float, float, float]:
    """s, w and c of t(k, p) = s + w / p + c k, none below zero: the best of the fits that leave some out."""
    k, p = np.array(list(told), float).T
    terms, seconds = np.stack([np.ones_like(k), 1 / p, k], axis=1), np.array(list(told.values()))
    best, least = (0.0, 0.0, 0.0), np.inf
    for kept in itertools.chain(*(itertools.combinations(range(3), n) for n in (3, 2, 1))):
        some = np.linalg.lstsq(terms[:, kept], seconds, rcond=None)[0]
        error = float(((terms[:, kept] @ some - seconds) ** 2).sum())
        if (some >= 0).all() and error < least:
            found = dict(zip(kept, some.tolist(), strict=True))
            best, least = (found.get(0, 0.0), found.get(1, 0.0), found.get(2, 0.0)), error
    return best


def modelled(terms: tuple[float, float, float], pieces: int, threads: int) -> float:
    """t(k, p), in seconds"""
    s, w, c = terms
    return s + w / threads + c * pieces
