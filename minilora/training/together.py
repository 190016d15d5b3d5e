"""Data-parallel training on several processes, which may be on several machines, through MPI.

    mpiexec -n 4 minilora finetune --corpus unicode-names          pip install "minilora[mpi]"

Each process holds the model and draws the same batch, takes its own rows of it, and adds its gradients to the others'.
The loss is a sum over rows, so the sum of the processes' gradients is the whole batch's gradient:

    dL/dw = sum over p of dL_p/dw        one Allreduce of one flat buffer: the loss, and every trained number once

LoRA exchanges its few numbers, full fine-tuning all. Then each process takes the same step. Only the first one writes
files and prints.
"""

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..autograd.backend import Array
from ..autograd.tensor import Tensor
from .parallel import at_most, cores

SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")  # how many processes mpiexec has started: MPICH's and Open MPI's word
_world: list[Any] = []  # the communicator of the processes that train together, while they do


def started() -> int:
    """How many processes mpiexec has started of this program; 1 without it."""
    return max(int(os.environ.get(name, 1)) for name in SIZES)


@contextlib.contextmanager
def together() -> Iterator[int]:
    """Let the processes that mpiexec started train together while this lasts: gives this one's number, 0 to n - 1.

    An error in one of them ends all of them, since the others would wait for its gradients for ever. Processes of one
    machine share its cores. Raises ImportError without mpi4py.
    """
    try:
        from mpi4py import MPI
    except ImportError:
        raise ImportError('several processes need MPI: pip install "minilora[mpi]"') from None
    world = MPI.COMM_WORLD
    here = world.Split_type(MPI.COMM_TYPE_SHARED).Get_size()
    _world.append(world)
    try:
        with at_most(max(1, cores() // here)):
            yield world.Get_rank()
    finally:
        _world.remove(world)


def abort(code: int) -> None:
    """End all processes at once, where this one cannot go on: the others would wait for it."""
    sys.stderr.flush()
    _world[-1].Abort(code)
    os._exit(code)  # MPI may take a moment


def own_rank() -> int:
    """This process's number among those that train together; 0 where it is alone."""
    return _world[-1].Get_rank() if _world else 0


def own_rows(rows: int) -> tuple[int, int]:
    """(start, stop) of this process's rows of a batch, as equal as can be; of some there are none in a small batch."""
    if not _world:
        return 0, rows
    rank = own_rank()
    start, stop = _ends(rows)[rank : rank + 2]
    return start, stop


def _ends(rows: int) -> list[int]:
    """Where the rows of each process begin, and where the last ones end."""
    size = _world[-1].Get_size()
    return [rows * rank // size for rank in range(size + 1)]


def every_share(own: Array, rows: int, first_alone: bool = False) -> Array | None:
    """What each process has of so many rows (`own_rows`), put together: in each process, or in the first alone."""
    if not _world:
        return own
    world = _world[-1]
    counts = [stop - start for start, stop in itertools.pairwise(_ends(rows))]
    if not first_alone:
        whole = np.empty(rows, own.dtype)
        world.Allgatherv(own, [whole, counts])
        return whole
    kept = np.empty(rows, own.dtype) if own_rank() == 0 else None
    world.Gatherv(own, None if kept is None else [kept, counts])
    return kept


def sum_over_processes(
    loss: float, gradients: list[Array | None], parameters: Sequence[Tensor]
) -> tuple[float, list[Array | None]]:
    """The sums of the processes' losses and gradients; None for a parameter that no process's rows reach."""
    if not _world:
        return loss, gradients
    flat = flatten(loss, gradients, parameters)
    total = np.empty_like(flat)
    _world[-1].Allreduce(flat, total)
    return unflatten(total, parameters)


def flatten(loss: float, gradients: Sequence[Array | None], parameters: Sequence[Tensor]) -> np.ndarray:
    """One buffer: the loss, whether each parameter is reached, and the gradients, 0 of those that are not."""
    dtype = np.result_type(np.float32, *(p.dtype for p in parameters))
    parts = [np.array([loss, *(g is not None for g in gradients)], dtype)]
    for p, g in zip(parameters, gradients, strict=True):
        parts.append(np.zeros(p.size, dtype) if g is None else g.astype(dtype, copy=False).reshape(-1))
    return np.concatenate(parts)


def unflatten(flat: np.ndarray, parameters: Sequence[Tensor]) -> tuple[float, list[Array | None]]:
    """The loss and the gradients of a buffer that `flatten` made, or of a sum of some."""
    head, gradients, place = 1 + len(parameters), [], 1 + len(parameters)
    for p, reached in zip(parameters, flat[1:head], strict=True):
        gradients.append(flat[place : place + p.size].reshape(p.shape) if reached else None)
        place += p.size
    return float(flat[0]), gradients


def any_of(truth: bool) -> bool:
    """Whether it is true in any of the processes: a signal that one of them got stops all after the same step."""
    return bool(_world[-1].allreduce(int(truth))) if _world else truth
