"""A study's runs on two workers of a cluster beside one, and on two processes of this machine beside one.

The study is `ranks`, of no rank: the grid of learning rates that it begins with, through `studies/grid.py`, as
`minilora study --backend dask --scheduler` and `--jobs` make it. Every worker multiplies on one thread.
"""

import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from ..studies import grid
from ..studies.runs import QUICK
from ..studies.turns import LeftOut, ratio
from .rows import ONE_PROCESS, ONE_WORKER, SIDE_BY_SIDE, TO_START, Row, row

RUNS = 24
RATES = tuple(np.geomspace(1e-3, 1e-2, RUNS).tolist())
SCALE = replace(QUICK, name="bench", steps=5, windows=2, learning_rates=RATES, ranks=())


def cluster_rows(turns: int) -> list[Row]:
    """Seconds of 24 runs on two over those on one: once Dask's workers have imported all, with that, and by joblib.

    Raises LeftOut without joblib and Dask, and ArithmeticError where not all runs are made.
    """
    try:
        import distributed  # noqa: F401
        import joblib  # noqa: F401
    except ImportError:
        raise LeftOut("Dask is not installed: pip install 'minilora[cluster]'") from None
    order = np.random.default_rng(0)
    dask, loky = np.empty((2, turns, 2)), np.empty((2, turns))  # one and two of them; of Dask to start, and of the runs
    for turn in range(turns):
        for n in order.permutation(2):
            dask[n, turn], loky[n, turn] = on_dask(n + 1), on_processes(n + 1)
    start, runs = dask.transpose(2, 0, 1)
    return [
        row(SIDE_BY_SIDE, "2 workers", ONE_WORKER, "s", ratio(runs[1], runs[0])),
        row(SIDE_BY_SIDE, "2 processes", ONE_PROCESS, "s", ratio(loky[1], loky[0])),
        row(TO_START, "2 workers", ONE_WORKER, "s", ratio(start[1], start[0])),
    ]


def ready() -> None:
    """What a worker is asked for, which imports this file for it, and all that runs need."""


def on_dask(workers: int) -> tuple[float, float]:
    """Seconds until so many workers are there and have imported all, and of the runs."""
    from distributed import Client, LocalCluster

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        began = time.perf_counter()
        cluster = stack.enter_context(LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None))
        stack.enter_context(Client(cluster)).run(ready)
        return time.perf_counter() - began, made(folder, 1, "dask", cluster.scheduler_address)


def on_processes(jobs: int) -> float:
    """Seconds of the runs on so many processes, which are started anew."""
    from joblib.externals.loky import get_reusable_executor

    with tempfile.TemporaryDirectory() as folder:
        seconds = made(folder, jobs)
    if jobs > 1:
        get_reusable_executor().shutdown(wait=True)
    return seconds


def made(folder: str, jobs: int, backend: str = "loky", scheduler: str | None = None) -> float:
    """Seconds in which all runs are made."""
    began = time.perf_counter()
    number = grid.make_runs(["ranks"], SCALE, folder, jobs, backend, scheduler, progress=False)
    if number != RUNS:
        raise ArithmeticError(f"bench: {number} runs of {RUNS} were made")
    return time.perf_counter() - began
