"""The runs of many studies at once, on the processes of this machine through joblib, or on a cluster's through Dask.

A study asks for its runs one after the other, and what it asks for next may rest on what came before. So it is asked
again and again, each time until it reads a run that is not made yet; all the runs that the studies have named by then
are made side by side. When they name no more, each study is run as ever and finds its runs kept.

A run says of itself all that it needs (`Spec`), is written whole or not at all, and takes one core and no randomness
but its own seed: the records are the same, bit for bit, however many workers there are, and who is killed loses the
run that it was in.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from ..training.corpus import Corpus
from ..training.parallel import at_most
from .runs import Runs, Scale, Spec
from .studies import ALONE, STUDIES

PATIENCE = 10  # seconds for a scheduler, and a worker of it, to answer
Workers = tuple[Callable[[Iterable[tuple[Runs, Spec]]], Iterator[str]], type[Exception]]  # make all; a worker's death
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
    where no scheduler or none of its workers answers, and RuntimeError when worker after worker dies.
    """
    if backend not in (kinds := {"loky": _processes, "dask": _cluster}):
        raise ValueError(f"study: backend = {backend!r}; there are {', '.join(kinds)}")
    runs, made, deaths = Runs(Path(cache).absolute(), scale, progress), 0, 0
    runs.folder.mkdir(parents=True, exist_ok=True)
    open_names = [name for name in names if name not in ALONE]
    with runs.bar, kinds[backend](jobs, scheduler) as (make_all, died):
        while wanted := _plan(open_names, runs):
            runs.bar.total = made + len(wanted)
            try:
                for key in make_all(wanted.values()):
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


@contextlib.contextmanager
def _processes(jobs: int, scheduler: str | None) -> Iterator[Workers]:
    """Processes of this machine, through joblib; one is this one."""
    try:
        from joblib import Parallel, delayed
        from joblib.externals.loky.process_executor import BrokenProcessPool
    except ImportError:
        raise ImportError('study: runs side by side need joblib: pip install "minilora[cluster]"') from None
    with Parallel(jobs, backend="loky", return_as="generator_unordered") as parallel:
        yield lambda runs: parallel(delayed(make_one)(*one) for one in runs), BrokenProcessPool


@contextlib.contextmanager
def _cluster(jobs: int, scheduler: str | None) -> Iterator[Workers]:
    """The workers of a Dask scheduler that runs, those that join it later, too; or so many processes of this machine.

    Not through joblib, which makes the runs in this process where a cluster has one worker, and for those that it has
    at the start.
    """
    try:
        from distributed import Client, as_completed
        from distributed.scheduler import KilledWorker
    except ImportError:
        raise ImportError('study: --backend dask needs Dask: pip install "minilora[cluster]"') from None
    try:
        local = {"n_workers": jobs, "threads_per_worker": 1, "dashboard_address": None}
        client = Client(scheduler, timeout=PATIENCE) if scheduler else Client(**local)
    except (OSError, TimeoutError, ValueError) as error:
        raise ValueError(f"study: no Dask scheduler at {scheduler!r} ({error}); such as tcp://HOST:8786") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError:
            fix = f"dask worker {scheduler} starts one"
            raise ValueError(f"study: the Dask scheduler at {scheduler!r} has no worker; {fix}") from None

        def make_all(runs: Iterable[tuple[Runs, Spec]]) -> Iterator[str]:
            sent = [client.submit(make_one, *one, pure=False) for one in runs]
            return (future.result() for future in as_completed(sent))

        yield make_all, KilledWorker
