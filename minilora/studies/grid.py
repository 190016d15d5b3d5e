"""The runs of many studies at once, on the processes of this machine or of a cluster, through joblib.

A study asks for its runs one after the other, and what it asks for next may rest on what came before. So it is asked
again and again, each time until it reads a run that is not made yet; all the runs that the studies have named by then
are made side by side. When they name no more, each study is run as ever and finds its runs kept.

A run says of itself all that it needs (`Spec`), is written whole or not at all, and takes one core and no randomness
but its own seed: the records are the same, bit for bit, however many workers there are, and who is killed loses the
run that it was in.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..training.corpus import Corpus
from ..training.parallel import at_most
from .runs import Runs, Scale, Spec
from .studies import ALONE, STUDIES

PATIENCE = 10  # seconds for a scheduler to answer
_read: dict[str, Corpus] = {}  # a worker's texts, for its next run


def make_runs(
    names: Iterable[str],
    scale: Scale,
    cache: str | Path = "runs/study",
    jobs: int = 1,
    backend: str = "loky",
    scheduler: str | None = None,
    progress: bool = True,
) -> int:
    """Make what runs these studies need and are not kept yet, `jobs` at a time: -> how many were made.

    backend: "loky", processes of this machine, or "dask": so many workers here or, with a scheduler's address, all of
    its own; they must see the folder `cache` by the same path. Raises ImportError without joblib (or Dask), ValueError
    where no scheduler answers, and RuntimeError when worker after worker dies.
    """
    runs, made, deaths = Runs(Path(cache).absolute(), scale, progress), 0, 0
    runs.folder.mkdir(parents=True, exist_ok=True)
    delayed, died = _joblib()
    open_names = [name for name in names if name not in ALONE]
    with runs.bar, _workers(jobs, backend, scheduler) as parallel:
        while wanted := _plan(open_names, runs):
            runs.bar.total = made + len(wanted)
            try:
                for key in parallel(delayed(make_one)(*one) for one in wanted.values()):
                    made, deaths = made + 1, 0
                    runs.bar.set_postfix_str(f"{len(wanted)} runs known, {key[:6]} made")
                    runs.bar.update()
            except died as error:  # its finished runs are kept; the others are asked for again
                deaths += 1
                if deaths == 3:
                    raise RuntimeError(f"study: workers die before they finish one run ({error})") from None
    return made


def _plan(names: list[str], runs: Runs) -> dict[str, tuple[Runs, Spec]]:
    """The runs that the studies name, by their keys, each with what makes it; a study that names none is taken off."""
    wanted: dict[str, tuple[Runs, Spec]] = {}
    for name in list(names):
        plan = Runs(runs.folder.parent, runs.scale, progress=False)
        plan.wanted = {}
        with contextlib.suppress(LookupError, ValueError, TypeError, ArithmeticError):  # of a run that is not made yet
            STUDIES[name](plan)
        if not plan.wanted:
            names.remove(name)
        wanted |= plan.wanted
    return wanted


def make_one(runs: Runs, spec: Spec) -> str:
    """Make one run, in a worker: -> its key. Raises FileNotFoundError where the folder of the runs is not seen."""
    if not runs.folder.is_dir():
        raise FileNotFoundError(f"study: this worker does not see {runs.folder}; --cache takes a folder that all see")
    with at_most(1):
        runs.bar, runs.wanted, runs._corpora = tqdm(disable=True), None, _read
        runs.record(spec)
    return spec.key


def _joblib() -> tuple[Any, tuple[type[Exception], ...]]:
    """joblib's `delayed`, and the errors that say that a worker died."""
    try:
        from joblib import delayed
        from joblib.externals.loky.process_executor import BrokenProcessPool
    except ImportError:
        raise ImportError('study: runs side by side need joblib: pip install "minilora[cluster]"') from None
    died: tuple[type[Exception], ...] = (BrokenProcessPool,)
    with contextlib.suppress(ImportError):
        from distributed.scheduler import KilledWorker

        died = (*died, KilledWorker)
    return delayed, died


@contextlib.contextmanager
def _workers(jobs: int, backend: str, scheduler: str | None) -> Iterator[Any]:
    """What takes joblib's calls and gives their results as they come: processes here, or a Dask cluster's workers."""
    from joblib import Parallel, parallel_config

    with contextlib.ExitStack() as stack:
        if backend == "dask":
            stack.enter_context(_client(jobs, scheduler))
        stack.enter_context(parallel_config(backend, n_jobs=-1 if backend == "dask" else jobs))
        yield stack.enter_context(Parallel(return_as="generator_unordered"))


def _client(jobs: int, scheduler: str | None) -> Any:
    """A Dask client: of a scheduler that runs, or of a cluster of this machine's processes."""
    try:
        from distributed import Client
    except ImportError:
        raise ImportError('study: --backend dask needs Dask: pip install "minilora[cluster]"') from None
    if scheduler is None:
        return Client(n_workers=jobs, threads_per_worker=1, dashboard_address=None)
    try:
        return Client(scheduler, timeout=PATIENCE)
    except (OSError, TimeoutError, ValueError) as error:
        raise ValueError(f"study: no Dask scheduler at {scheduler!r} ({error}); such as tcp://HOST:8786") from None
