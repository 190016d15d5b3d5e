"""How a training step grows: time and peak memory against length, batch, width and depth, beside PyTorch eager.

One of the four grows at a time, and the others are as in BASE. To each line of points a power law is fitted, a n^b: b
is the slope of log(seconds), or log(bytes), over log(n). Calls cost what they cost, so short texts hardly grow: lengths
are fitted from 512 positions up, from where attention is computed again in the backward pass and memory should grow
with T, not with T^2.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..autograd.attention import LONG
from ..studies.turns import LeftOut, ratio, take_turns
from .peers import METHODS, STEPS_COMPARED, Workload, compare_losses, our_step, peer_steps
from .processes import peaks
from .rows import EAGER, EXPONENT, GROWTH, GROWTH_OF_MEMORY, Row, row

BASE = {"length": 256, "batch": 1, "width": 256, "depth": 4}
GROWING: dict[str, tuple[int, ...]] = {
    "length": (128, 256, 512, 1024, 2048, 4096),
    "batch": (1, 4, 16),
    "width": (64, 128, 256, 512),
    "depth": (1, 2, 4, 8),
}
VOCABULARY, HEAD = 512, 32  # HEAD: features of a head
BUDGET, MOST = 2.0, 7  # seconds that the turns of a point may take, once it has three; and how many there are at most
LONG_STEP = 0.5  # seconds: such a step needs no others before it to be timed
Sizes = Mapping[str, int]


def points() -> list[dict[str, int]]:
    """The sizes of every point, each once."""
    grown = [{**BASE, what: n} for what, numbers in GROWING.items() for n in numbers]
    return [at for i, at in enumerate(grown) if at not in grown[:i]]


def workload(at: Sizes, method: str) -> Workload:
    """The step of a point, named by what is not as in BASE."""
    name = next((f"{what} {n:,}" for what, n in at.items() if n != BASE[what]), f"length {at['length']:,}")
    sizes = (VOCABULARY, at["length"], at["width"], at["width"] // HEAD, at["depth"], at["batch"])
    return Workload(name, method, sizes=sizes)


def scaling_jobs(turns: int) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    """(name, what measures it) of each point, the processes first, while this one is small; then the exponents.

    Full fine-tuning is measured along the lengths only.
    """
    found: list[Row] = []
    for measure, words in ((memory_of, "memory"), (time_of, "time")):
        for method in METHODS:
            for at in points():
                if method == "full" and at["length"] == BASE["length"] and at != BASE:
                    continue  # it grows with length alone, or this would take twice as long
                load = workload(at, method)
                yield f"{words} of a {method} step at {load.size}", partial(_noted, found, measure, load, at, turns)
    yield "exponents", partial(exponents, found)


def _noted(found: list[Row], measure: Callable, load: Workload, at: Sizes, turns: int) -> list[Row]:
    """A point's row, kept for the exponents as well."""
    found.append(measure(load, at, turns))
    return found[-1:]


def time_of(load: Workload, at: Sizes, turns: int) -> Row:
    """Seconds of a step, ours and PyTorch's, in turns: three to MOST, as BUDGET allows.

    Raises LeftOut without PyTorch.
    """
    others, left_out = peer_steps(load, ["torch"])
    if left_out:
        raise LeftOut(left_out[EAGER])
    ours, start = our_step(load), time.perf_counter()
    compare_losses(ours, others)
    both = (time.perf_counter() - start) / STEPS_COMPARED  # seconds of a step of ours and one of theirs
    times = take_turns([ours, *others], min(turns, MOST, max(3, int(BUDGET / both))), strangers=both < 2 * LONG_STEP)
    return row(GROWTH[load.method], load.size, EAGER, "s", ratio(times["minilora"], times[EAGER]), details=at)


def memory_of(load: Workload, at: Sizes, turns: int) -> Row:
    """Bytes that steps add at their peak, ours and PyTorch's, each in a process of its own."""
    return row(GROWTH_OF_MEMORY[load.method], load.size, EAGER, "bytes", ratio(*peaks(load, 1)), details=at)


def exponents(found: Sequence[Row]) -> list[Row]:
    """The slope of each line of points, ours and PyTorch's; of lengths, from LONG up."""
    rows = []
    for what in dict.fromkeys(r.what for r in found):
        of = [{**(r.details or {}), "ours": r.ours, "theirs": r.theirs} for r in found if r.what == what]
        for grows in GROWING:
            n, ours, theirs = line(of, grows, LONG if grows == "length" else 0)
            if len(n) > 1:
                words = f"{grows} ≥ {LONG}" if grows == "length" else grows
                numbers = {"ours": slope(n, ours), "theirs": slope(n, theirs)}
                rows.append(row(what + EXPONENT, words, EAGER, "exponent", numbers))
    return rows


def line(of: Sequence[Mapping[str, Any]], grows: str, least: int = 0) -> tuple[list, list, list]:
    """n, ours and theirs of the points where one thing alone grows, from `least` up, the smallest first."""
    fixed = {what: n for what, n in BASE.items() if what != grows}
    there = [p for p in of if all(p[what] == n for what, n in fixed.items()) and p[grows] >= least]
    there.sort(key=lambda p: p[grows])
    return [p[grows] for p in there], [p["ours"] for p in there], [p["theirs"] for p in there]


def slope(n: Sequence[float], amounts: Sequence[float]) -> float:
    """b of the power law a n^b that is nearest to the amounts, by least squares of their logarithms."""
    return float(np.polyfit(np.log(n), np.log(amounts), 1)[0])
