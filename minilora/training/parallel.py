"""Every core at work: pieces of a batch on a pool of threads, each with a BLAS of one thread.

NumPy lets other threads run during its loops and matrix products, so two threads on half a batch each also share the
elementwise work, which BLAS threads do not.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any


@functools.cache
def cores() -> int:
    """The number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _pool() -> Any:
    # imported at the first step, so that `import minilora` stays quick
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(max(cores() - 1, 1), thread_name_prefix="minilora")


@functools.cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def in_parallel(function: Callable[..., Any], pieces: Sequence[tuple]) -> list:
    """[function(*piece) for piece in pieces], on as many threads as there are cores; results in the same order.

    The calling thread is one of them, so that with two cores only one has to be woken.
    """
    if len(pieces) == 1 or cores() == 1:
        return [function(*piece) for piece in pieces]
    left, results = iter(enumerate(pieces)), {}

    def work() -> None:
        for i, piece in left:
            results[i] = function(*piece)

    with _blas().limit(limits=1, user_api="blas"):
        others = [_pool().submit(work) for _ in range(min(cores(), len(pieces)) - 1)]
        try:
            work()
        finally:
            list(left)  # after an error, or Ctrl-C, nobody begins another piece
            errors = [other.exception() for other in others if not other.cancel()]  # waits for those that have begun
    for error in filter(None, errors):
        raise error
    return [results[i] for i in range(len(pieces))]
