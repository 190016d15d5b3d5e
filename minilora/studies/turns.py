"""How two programs are timed fairly: in turns, and only their ratio within a turn is believed.

A laptop's clock and its neighbours change from minute to minute, so times of different minutes say little about each
other. Contenders take turns, in another order each turn, so that nobody always comes after the same one; what is told
is the median and the quartiles of the ratio over the turns.
"""

import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 0.05  # seconds: a stranger's quick step is repeated until a turn lasts so long
SETTLE = 0.1  # seconds of its steps before those that are timed


def nothing() -> None:
    """What there is to wait for on a processor."""


class LeftOut(Exception):
    """A contender that cannot take part on this machine, and why, in one line."""


@dataclass(frozen=True)
class Contender:
    """A program that takes turns: step() does its work once and returns its loss, finish() waits until it is done.

    On a GPU a step returns while the device still computes; on a processor there is nothing to wait for.
    """

    name: str
    step: Callable[[], Any]
    finish: Callable[[], Any] = nothing


def seconds(contender: Contender, steps: int, settle: float = 0.0) -> float:
    """Seconds a step, over so many steps in a row, after others for `settle` seconds that are not timed.

    Those bring the data back into the caches, and let the threads of the contender before, which go on looking for work
    for a while, fall asleep.
    """
    settled = time.perf_counter() + settle
    while time.perf_counter() < settled:
        contender.step()
        contender.finish()
    start = time.perf_counter()
    for _ in range(steps):
        contender.step()
    contender.finish()
    return (time.perf_counter() - start) / steps


def take_turns(contenders: Sequence[Contender], turns: int, strangers: bool = True) -> dict[str, np.ndarray]:
    """{name: seconds a step, one number a turn}. Strangers, whose threads differ, settle first; others take one step.

    Before the first turn each contender is timed once, which warms it up and says how many steps a block takes.
    """
    block, settle = (BLOCK, SETTLE) if strangers else (0.0, 0.0)
    order = np.random.default_rng(0)
    steps = {c.name: max(1, round(block / max(seconds(c, 1, settle), 1e-9))) for c in contenders}
    times = {c.name: np.empty(turns) for c in contenders}
    for turn in range(turns):
        for i in order.permutation(len(contenders)):
            c = contenders[i]
            times[c.name][turn] = seconds(c, steps[c.name], settle)
    return times


def ratio(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """{"ours", "theirs", "ratio", "quartiles", "turns"}: medians, and the ratio of the two in the same turn."""
    low, middle, high = (float(q) for q in np.quantile(ours / theirs, (0.25, 0.5, 0.75)))
    return {
        "ours": float(np.median(ours)),
        "theirs": float(np.median(theirs)),
        "ratio": middle,
        "quartiles": [low, high],
        "turns": len(ours),
    }


def beside(calls: Mapping[str, Callable[[], object]], reference: str, turns: int) -> dict[str, dict[str, float]]:
    """{name: {"seconds", "ratio", "ratio_spread"}} of our own calls, one call a turn.

    The median time; the median of the ratios to the reference's time in the same turn, and half the range of the
    middle half of those ratios.
    """
    times = take_turns([Contender(name, call) for name, call in calls.items()], turns, strangers=False)
    told = {name: ratio(taken, times[reference]) for name, taken in times.items()}
    return {
        name: {"seconds": r["ours"], "ratio": r["ratio"], "ratio_spread": (r["quartiles"][1] - r["quartiles"][0]) / 2}
        for name, r in told.items()
    }


def processor() -> str:
    """The processor's model, as the system tells it."""
    try:
        if sys.platform == "darwin":
            asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, subprocess.CalledProcessError):
        return platform.processor() or platform.machine()
