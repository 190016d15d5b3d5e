"""What processes that train together exchange, LoRA beside full fine-tuning, and a model of how long messages take.

They are started here by mpiexec, on this machine. What the model says of other networks is in `analysis/exchange.py`.
"""

import contextlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis.exchange import fitted
from ..studies.turns import LeftOut, ratio
from ..training import together
from ..training.loop import train_step
from ..training.optim import AdamW
from .peers import Workload
from .processes import fresh
from .pytorch import LEARNING_RATE
from .rows import ALLREDUCE, EXCHANGED, ITSELF, OWN_FULL, SENT, THREADS, TOGETHER, Row, row

PROCESSES = (2, 4)
SIZES = tuple(4**k for k in range(2, 13))  # bytes of a message: 16 to 16 MiB
STEPS, WARM = 50, 10  # of a run beside another, and of them before those that are timed
AGREEMENT = 1e-5  # of their losses, in nats
BLOCK = 2e6  # bytes that the messages of one turn have together, as long as they are a hundred at most


def exchange_rows(size: str, turns: int) -> list[Row]:
    """A row for what a step sends and one for how long that takes, LoRA over full fine-tuning, and the fitted messages.

    The rows are named by the size and the number of processes. Raises LeftOut without MPI, and ChildProcessError where
    the processes fail.
    """
    start = launcher()
    rows = []
    for n in PROCESSES:
        code = f"from {__name__} import measure; measure({size!r}, {turns})"
        told = fresh(code, [start, "-n", str(n)])
        seconds, sent = told["seconds"], told["bytes"]
        place = f"{size} x {n}"
        of_bytes = {"ours": sent["lora"], "theirs": sent["full"], "ratio": sent["lora"] / sent["full"],
                    "quartiles": [sent["lora"] / sent["full"]] * 2, "turns": turns}  # fmt: skip
        details = {"processes": n, "step": told["step"]}
        of_time = ratio(np.array(seconds["lora"]), np.array(seconds["full"]))
        rows += [row(SENT, place, OWN_FULL, "bytes", of_bytes, details=details),
                 row(EXCHANGED, place, OWN_FULL, "s", of_time, details=details)]  # fmt: skip
        alpha, beta = fitted(SIZES, told["messages"])
        details = {"processes": n, "alpha": alpha, "beta": beta, "sizes": SIZES, "seconds": told["messages"]}
        rows.append(row(ALLREDUCE, place, ITSELF, "s", {"ours": alpha, "turns": turns}, details=details))
    return sorted(rows, key=lambda r: (SENT, EXCHANGED, ALLREDUCE).index(r.what))


def together_rows(size: str, turns: int) -> list[Row]:
    """Seconds of a LoRA step of two processes, over those of one with as many threads: whole runs, in turns.

    Raises ArithmeticError where their losses differ by more than 1e-5, and LeftOut without MPI.
    """
    start, code = launcher(), f"from {__name__} import train; train({size!r})"
    runs = [(fresh(code, [start, "-n", "2"]), fresh(code)) for _ in range(turns)]
    curves = np.array([[told["losses"] for told in both] for both in runs])  # (turns, 2, steps)
    difference = float(np.abs(curves - curves[0, 1]).max())
    if not difference <= AGREEMENT:
        raise ArithmeticError(f"bench: at {size}, two processes' losses differ from one's by {difference:.2g}")
    ours, theirs = np.array([[told["seconds"] for told in both] for both in runs]).T
    details = {"loss_difference": difference, "steps": STEPS}
    return [row(TOGETHER, size, THREADS, "s", ratio(ours, theirs), details=details)]


def train(size: str) -> None:
    """In each of the processes, or in one: so many LoRA steps; the first prints losses, and seconds a step."""
    with together.together() if together.started() > 1 else contextlib.nullcontext(0) as rank:
        load = Workload(size, "lora")
        model = load.model()
        optimizer = AdamW(model.named_parameters(), LEARNING_RATE)
        losses = [train_step(model, optimizer, *load.data) for _ in range(WARM)]
        start = time.perf_counter()
        losses += [train_step(model, optimizer, *load.data) for _ in range(STEPS - WARM)]
        seconds = (time.perf_counter() - start) / (STEPS - WARM)
    if not rank:
        print(json.dumps({"losses": losses, "seconds": seconds}), flush=True)


def launcher() -> str:
    """The path of mpiexec. Raises LeftOut where it or mpi4py is not installed."""
    try:
        import mpi4py  # noqa: F401
    except ImportError:
        raise LeftOut("MPI is not installed: pip install 'minilora[mpi]'") from None
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    found = shutil.which("mpiexec", path=path)
    if found is None:
        raise LeftOut("there is no mpiexec beside mpi4py: pip install 'minilora[mpi]'")
    return found


class Timed:
    """A communicator that remembers its last sum: how many bytes, and how long once all processes were there."""

    def __init__(self, world: Any):
        self.world, self.bytes, self.seconds = world, 0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world, name)

    def Allreduce(self, mine: np.ndarray, total: np.ndarray) -> None:
        """The sum over processes, timed."""
        self.world.Barrier()  # waiting for the slowest is no exchange
        start = time.perf_counter()
        self.world.Allreduce(mine, total)
        self.bytes, self.seconds = mine.nbytes, time.perf_counter() - start


def measure(size: str, turns: int) -> None:
    """In each of the processes: steps of both methods in turns, and messages; the first prints what it measured."""
    with together.together() as rank:
        timed = Timed(together._world[-1])
        together._world.append(timed)
        try:
            told = {**steps(timed, size, turns), "messages": [messages(timed, n, turns) for n in SIZES]}
        finally:
            together._world.remove(timed)
    if not rank:
        print(json.dumps(told), flush=True)


def steps(timed: Timed, size: str, turns: int) -> dict[str, dict[str, Any]]:
    """{"bytes": {method: of a step}, "seconds": {method: of exchanging them, a turn}, "step": {method: of it all}}."""
    told: dict[str, dict[str, Any]] = {"bytes": {}, "seconds": {}, "step": {}}
    loads = {method: Workload(size, method) for method in ("lora", "full")}
    models = {method: load.model() for method, load in loads.items()}
    optimizers = {method: AdamW(model.named_parameters(), LEARNING_RATE) for method, model in models.items()}
    for turn in range(-1, turns):  # one to warm up
        for method, load in loads.items():
            start = time.perf_counter()
            train_step(models[method], optimizers[method], *load.data)
            if turn >= 0:
                told["bytes"][method] = timed.bytes
                told["seconds"].setdefault(method, []).append(timed.seconds)
                told["step"].setdefault(method, []).append(time.perf_counter() - start)
    told["step"] = {method: float(np.median(seconds)) for method, seconds in told["step"].items()}
    return told


def messages(timed: Timed, size: int, turns: int) -> float:
    """Seconds of the sum of so many bytes: the median over all such messages, so that few long ones do not count."""
    mine = np.ones(size // 4, np.float32)
    total, times = np.empty_like(mine), []
    for _ in range(turns):
        timed.Barrier()
        for _ in range(max(2, min(100, round(BLOCK / size)))):
            start = time.perf_counter()
            timed.world.Allreduce(mine, total)
            times.append(time.perf_counter() - start)
    return float(np.median(times))
