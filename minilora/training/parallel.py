"""Every core at work: pieces of a batch on a pool of threads, each with a BLAS of one thread.

NumPy lets other threads run during its loops and matrix products, so two threads on half a batch each also share the
elementwise work, which BLAS threads do not.

What the seed of a run promises:
    the same machine and versions      the same bits: the gradients of the pieces are added in a fixed order
    another number of cores            the same to rounding: sums are taken in another order, but each row of a batch
                                       drops out what it did (`RowsOf`)
    the same Settings(pieces=...)      the same bits, too, on any number of cores of one kind
    another version of Python          another text: the built-in corpora are its own documentation, source and names
"""

import _thread
import contextlib
import contextvars
import functools
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np


def cores() -> int:
    """The number of processors this process may use; 1 where no thread can be started, as in a browser's Python."""
    return min([_processors(), *_most])


_most: list[int] = []  # what `at_most` allows


@contextlib.contextmanager
def at_most(number: int) -> Iterator[None]:
    """So many cores for this process, as for one of several workers on a machine; a matrix product takes one."""
    _most.append(number)
    try:
        with blas_of_one_thread():
            yield
    finally:
        _most.remove(number)


@functools.cache
def _processors() -> int:
    if not _threads():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _threads() -> bool:
    try:
        _thread.start_new_thread(int, ())
    except RuntimeError:  # "can't start new thread"
        return False
    return True


@functools.cache
def _jobs(threads: int, of: object) -> SimpleQueue:
    """The queue `of` some purpose, and threads that do what is put into it, started once; they end with the process.

    Made of what is a single instruction to Python's interpreter, so that a Ctrl-C leaves no lock half taken.
    """
    jobs: SimpleQueue = SimpleQueue()

    def serve() -> None:
        while True:
            jobs.get()()

    with contextlib.suppress(RuntimeError):  # where no more threads can be started, those that are there do all
        for _ in range(threads):
            _thread.start_new_thread(serve, ())
    return jobs


def in_parallel(function: Callable[..., Any], pieces: Sequence[tuple]) -> list:
    """[function(*piece) for piece in pieces], on as many threads as there are cores; results in the same order.

    The calling thread is one of them, so that with two cores only one has to be woken.
    """
    if len(pieces) <= 1 or cores() == 1:
        return [function(*piece) for piece in pieces]
    left, results, errors = list(enumerate(pieces))[::-1], {}, []
    begun: list[SimpleQueue] = []  # of each thread that has begun, where it says that it has ended

    def work() -> None:
        ended: SimpleQueue = SimpleQueue()
        begun.append(ended)
        try:
            for i, piece in _each_to_one(left):
                results[i] = function(*piece)
        except BaseException as error:
            errors.append(error)
        finally:
            ended.put(True)

    with blas_of_one_thread():
        try:
            for _ in range(min(cores(), len(pieces)) - 1):
                _jobs(cores() - 1, in_parallel).put(functools.partial(contextvars.copy_context().run, work))
            for i, piece in _each_to_one(left):
                results[i] = function(*piece)
        finally:
            left.clear()  # after an error, or Ctrl-C, nobody begins another piece
            for ended in list(begun):  # waits for each that has begun; who has not will find nothing left
                ended.get()
    if errors:
        raise errors.pop()
    return [results[i] for i in range(len(pieces))]


def _each_to_one(left: list) -> Iterator[Any]:
    """What is left, from the end, each thing to one thread alone.

    Threads do not share an iterator: where Python has no lock, it gives the same thing twice, and another never.
    """
    while True:
        try:
            thing = left.pop()
        except IndexError:
            return
        yield thing


def to_its_end(function: Callable[[], Any]) -> Any:
    """function(), which is done or never begun: a Ctrl-C in the middle of it is raised when it has ended.

    Python interrupts the main thread alone, so another one does the work, and the main thread waits.
    """
    if threading.current_thread() is not threading.main_thread() or not _threads():
        return function()
    ticket, ended = [True], SimpleQueue()  # type: ignore[var-annotated]
    outcome: list[tuple[Any, BaseException | None]] = []

    def work() -> None:
        if _taken(ticket):
            try:
                outcome.append((function(), None))
            except BaseException as error:
                outcome.append((None, error))
            ended.put(True)

    try:
        _jobs(1, to_its_end).put(functools.partial(contextvars.copy_context().run, work))
        ended.get()
    except BaseException:  # Ctrl-C
        if not _taken(ticket):  # too late for that: it has begun
            while not outcome:
                time.sleep(0.001)
        raise
    result, error = outcome.pop()
    if error is not None:
        raise error
    return result


def _taken(ticket: list) -> bool:
    """Whether the one ticket is ours: of two threads that ask, one gets it."""
    return next(_each_to_one(ticket), False)


_lock = threading.Lock()
_inside: set[object] = set()  # the calls of in_parallel at work
_before: list[tuple[Any, int]] = []  # the BLAS libraries, and how many threads each had before the first came
_LOCKS_STAY = sys.version_info >= (3, 14)  # taken, where a Ctrl-C comes between `with lock:` and what is inside
# at one thread, for this thread's work
_held: contextvars.ContextVar[bool] = contextvars.ContextVar("held", default=False)


def _after_fork() -> None:
    """A forked process has none of its parent's threads: none works for it, and none will give the lock back."""
    global _lock
    _jobs.cache_clear()
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _blas() -> list[Any]:
    from threadpoolctl import ThreadpoolController

    return [library for library in ThreadpoolController().lib_controllers if library.user_api == "blas"]


def _of_each_thread(library: Any) -> bool:
    """Whether it has a number for each thread that calls it, as OpenMP's have."""
    return getattr(library, "threading_layer", "") == "openmp"


@functools.cache
def _by_thread() -> bool:
    return any(map(_of_each_thread, _blas()))


@contextlib.contextmanager
def blas_of_one_thread() -> Iterator[None]:
    """The number is the whole process's: the first one in sets it to one, the last one out sets it back."""
    if _held.get() and not _by_thread():  # by who called us, until after we have ended
        yield
        return
    call = object()
    do = to_its_end if _LOCKS_STAY and not _by_thread() else lambda work: work()

    def leave() -> None:
        _held.set(False)
        do(lambda: _leave(call))

    try:
        _held.set(True)
        do(lambda: _enter(call))
        yield
    finally:
        try:
            leave()
        except BaseException:  # a Ctrl-C just now: once more, from the beginning
            leave()
            raise


def blas_has_one_thread() -> bool:
    """Whether somebody is inside `blas_of_one_thread`."""
    return bool(_inside)


def _enter(call: object) -> None:
    with _lock:
        _inside.add(call)
        if not _before:
            _before.extend([(library, library.num_threads) for library in _blas()])
        for library, _ in _before:
            _set_threads(library, 1)


def _leave(call: object) -> None:
    with _lock:
        _inside.discard(call)
        for library, threads in _before:
            if not _inside or _of_each_thread(library):
                _set_threads(library, threads)
        if not _inside:
            _before.clear()


def _set_threads(library: Any, threads: int) -> None:
    # threadpoolctl lets one thread set OpenBLAS's number and ignores the others; who may is said by our lock
    clear = getattr(library, "clear_controlling_thread", lambda force: None)
    clear(force=True)
    library.set_num_threads(threads)
    clear(force=True)


class RowsOf(np.random.Generator):
    """The generator of a piece of a batch: each of its rows draws what it would if the whole batch were drawn at once.

    seed: two integers, the step's. The n-th call of `random` has the 2^64 draws from n 2^64 on for itself; there the
    piece passes over the rows before its own, at no cost: PCG64 can `advance` by any number of draws (O'Neill 2014,
    "PCG", section 4.3.1). All but `random` of an array of the batch's rows, (rows, ...) or (rows T, ...), is drawn by
    the piece for itself.
    """

    def __init__(self, seed: Sequence[int], start: int, rows: int):
        super().__init__(np.random.PCG64([*seed, 1 + start]))
        self.seed, self.start, self.rows = seed, start, rows
        self.words = np.random.PCG64(seed)  # of 64 bits, for the whole batch

    def __deepcopy__(self, memo: dict) -> "RowsOf":
        """Another that draws the same from here on: a Generator's own copy would be none of rows."""
        other = RowsOf(self.seed, self.start, self.rows)
        other.words.state, other.bit_generator.state = self.words.state, self.bit_generator.state
        return other

    def random(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
        """Uniform numbers in [0, 1): the piece's rows of the batch's."""
        shape = np.atleast_1d(size).tolist() if size is not None else []
        if out is not None or not shape or shape[0] % self.rows:
            return super().random(size, dtype, out)
        numbers = math.prod(shape) // self.rows  # in a row of the batch
        in_word = 8 // np.dtype(dtype).itemsize
        words = -(-numbers // in_word)  # for a row
        self.words.advance(self.start * words)
        drawn = np.random.Generator(self.words).random((self.rows, words * in_word), dtype)  # one too many where odd
        self.words.advance(2**64 - (self.start + self.rows) * words)
        return drawn[:, :numbers].reshape(shape)

    @property
    def shared(self) -> np.random.Generator:
        """A generator that draws the same for every piece: for what stands before each row alike, as a prompt does."""
        return np.random.default_rng([*self.seed, 0])
