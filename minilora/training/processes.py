"""Pieces of a batch in processes of their own, for models so small that threads wait for each other.

Threads of one Python take turns at its lock, which each of NumPy's calls asks for anew. Where a call takes some 50
microseconds, as at a width of 64, they wait longer than they compute. Processes have a lock each:

    with Team(model, optimizer.parameters):         # as `ml.train` does
        for tokens, targets in batches:
            ml.train_step(model, optimizer, tokens, targets)

Each process is a fork of this one, made after a few steps: the same code, the same model. The parameters' values are
written at each step into memory that all share, and so are the gradients; a piece's rows go through a pipe. Where
anything else about the model changes (an adapter is merged, switched off, or another one attached), others are forked;
where that cannot be told, or one of them fails, threads do the work. The same code on the same numbers gives the same
bits, so no result shows who computed it.
"""

import gc
import io
import itertools
import pickle
import signal
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextvars import ContextVar, Token
from typing import Any

import numpy as np

from ..autograd.tensor import Tensor
from .parallel import at_most, blas_of_one_thread, cores, to_its_end
from .together import started

LARGEST = 1 << 24  # bytes of parameters: a larger model's calls are long, and threads as quick
SETTLED = 8  # steps with one model before processes are worth their start
LONGEST = 1 << 16  # bytes of the model without its numbers, which are looked at before each step
MOST = 16  # pieces: on more cores each would be a row or two, and threads take them
PATIENCE, SLOWER = 10.0, 20.0  # seconds, and times a piece's own: who takes longer has been stopped, or hangs
ALIGNED = 64  # bytes: where arrays begin, as in a cache
_team: ContextVar["Team | None"] = ContextVar("team", default=None)


def team_of(model: Any, parameters: list) -> "Team | None":
    """The team that is at work on this model, if there is one."""
    team = _team.get()
    return team if team is not None and team.model is model and team.parameters is parameters else None


class Team:
    """Processes that compute pieces of one model's batches while `with team:` lasts; they end with this object.

    parameters: the optimiser's own list. On Linux, for a model of at most 16 MiB of parameters on the processor, in a
    Python with a lock; elsewhere, and for others, it does nothing, and threads compute.
    """

    def __init__(self, model: Any, parameters: list):
        self.model, self.parameters = model, parameters
        locked = getattr(sys, "_is_gil_enabled", lambda: True)()  # else threads wait for nobody (PEP 703)
        self.able = locked and sys.platform == "linux" and started() == 1
        self._end: Callable[[], Any] = lambda: None
        self._begin()

    def __enter__(self) -> "Team":
        self._token: Token = _team.set(self)
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        _team.reset(self._token)
        if kind is not None:  # an error's traceback might keep this object, and so the processes
            self._begin()

    def computed(self, pieces: Sequence[Any]) -> list[tuple[float, list]] | None:
        """[piece.gradients(model, parameters) for piece in pieces], the first of them here; None where threads should.

        Gradients may stand in shared memory, where the next call writes over them, unless the first piece has none.
        """
        if not self.able or not 2 <= len(pieces) <= min(cores(), MOST) or not self._ready(len(pieces) - 1):
            return None
        for p, shared in zip(self.held, self.values, strict=True):
            np.copyto(shared, p.data)
        try:
            for link, piece in zip(self.links, pieces[1:], strict=False):
                link.send(piece)
            start = time.monotonic()
            with blas_of_one_thread():
                found = [pieces[0].gradients(self.model, self.parameters)]
            until = time.monotonic() + PATIENCE + SLOWER * (time.monotonic() - start)
            answers = [_answer_of(link, until) for link, _ in zip(self.links, pieces[1:], strict=False)]
        except BaseException as error:  # a process died, or hangs; or Ctrl-C, after which nobody waits for the answers
            self._begin()
            self.able = not isinstance(error, EOFError | OSError)
            if not self.able:
                return None
            raise
        for piece, answer, gradients in zip(pieces[1:], answers, self.gradients, strict=False):
            if answer is None:  # it failed, or warned: here, where that is seen
                self._begin()
                found.append(piece.gradients(self.model, self.parameters))
                continue
            loss, reached = answer
            kept = [g if own is not None else g.copy() for g, own in zip(gradients, found[0][1], strict=True)]
            found.append((loss, [g if there else None for g, there in zip(kept, reached, strict=True)]))
        return found

    def _begin(self) -> None:
        """From the beginning: processes are forked when the model has been the same for a while."""
        self._end()
        self.links: list[Any] = []  # to each process
        self.values: list[np.ndarray] = []  # of the model's parameters, shared with all
        self.gradients: list[list[np.ndarray]] = []  # shared with each
        self.state: bytes | None = None  # the model's, when it was last looked at
        self.steps = 0  # since then

    def _ready(self, count: int) -> bool:
        """Whether so many processes stand that hold the model as it is now."""
        state = _described(self.model)
        if state != self.state or (self.links and count > len(self.links)):
            self._begin()
            self.held = [*{id(p): p for p in (*self.model.parameters(), *self.parameters)}.values()]
            self.kept: list[Any] = []  # while these live, no other object has their number
            self.state = _described(self.model, self.kept)
            here = all(type(p.data) is np.ndarray for p in self.held)  # and on no GPU
            small = 0 < len(self.state) <= LONGEST and sum(p.data.nbytes for p in self.held) <= LARGEST
            self.able = here and small
        self.steps += 1
        if not self.links and self.able and self.steps > SETTLED:
            to_its_end(lambda: self._fork(count))  # logging's locks, which a fork takes, are given back
        return bool(self.links)

    def _fork(self, count: int) -> None:
        import multiprocessing  # here, so that `import minilora` stays quick

        fork = multiprocessing.get_context("fork")
        processes: list[Any] = []
        self.values = shared_like([p.data for p in self.held])
        self.gradients = [shared_like([p.data for p in self.parameters]) for _ in range(count)]
        self._end = weakref.finalize(self, _ended, self.links, processes)
        try:
            for own in self.gradients:
                here, there = fork.Pipe()
                processes.append(fork.Process(target=self._serve, args=(here, there, own), daemon=True))
                with warnings.catch_warnings():  # of threads, which do not live on in a fork: ours wait for work
                    warnings.simplefilter("ignore", DeprecationWarning)
                    processes[-1].start()
                there.close()
                self.links.append(here)
        except (OSError, AssertionError):  # no process more; or this one is a daemon, which may have none
            self._begin()
            self.able = False

    def _serve(self, here: Any, link: Any, own: list[np.ndarray]) -> None:
        """What a process does: compute the pieces that it is sent, until nobody is there to send any."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first process, which ends the others
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        gc.freeze()  # what was there before is not this one's to end
        warnings.simplefilter("error")
        for other in (here, *self.links):
            other.close()
        for p, shared in zip(self.held, self.values, strict=True):
            p.data = shared
        with at_most(1):
            while True:
                try:
                    piece = link.recv()
                except (EOFError, OSError):
                    return
                link.send(self._answer(piece, own))

    def _answer(self, piece: Any, own: list[np.ndarray]) -> tuple[float, list[bool]] | None:
        """A piece's loss, and which parameters it reaches, with their gradients in shared memory; None: it failed."""
        try:
            loss, gradients = piece.gradients(self.model, self.parameters)
        except Exception:
            return None
        for g, shared in zip(gradients, own, strict=True):
            if g is None:
                continue
            if (g.shape, g.dtype) != (shared.shape, shared.dtype):
                return None
            shared[...] = g
        return loss, [g is not None for g in gradients]


def _answer_of(link: Any, until: float) -> Any:
    """What a process says. Raises OSError where it says nothing for too long, and EOFError where it has died."""
    if not link.poll(max(0.0, until - time.monotonic())):
        raise TimeoutError("a process does not answer")
    return link.recv()


def _ended(links: list[Any], processes: list[Any]) -> None:
    for link in links:
        link.close()
    for process in processes:
        if process.pid is not None:
            process.kill()  # also where it has been stopped; it holds nothing of its own
            process.join()


def _described(model: Any, kept: list | None = None) -> bytes:
    """The model without its numbers, as `pickle` writes it: the same while only numbers change. b"": it cannot be told

    kept: where the tensors and arrays go that stand in it as numbers of objects.
    """
    stream = io.BytesIO()
    try:
        _Skeleton(stream, kept).dump(model)
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError):  # a function of somebody's own, say
        return b""
    return stream.getvalue()


class _Skeleton(pickle.Pickler):
    """Writes a tensor or an array as which one it is and of what shape."""

    def __init__(self, stream: io.BytesIO, kept: list | None):
        super().__init__(stream, pickle.HIGHEST_PROTOCOL)
        self.kept = kept

    def persistent_id(self, value: Any) -> tuple | None:
        """What stands for a value, where it is not written itself."""
        plain = isinstance(value, np.ndarray)
        if not plain and not isinstance(value, Tensor):
            return None
        if self.kept is not None:
            self.kept.append(value)
        return id(value), value.shape, value.dtype.str, plain or value.requires_grad


def shared_like(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Arrays of the same shapes and dtypes, full of zeros, in memory that forks of this process share."""
    import mmap  # here, so that `import minilora` needs none: not every system has it

    sizes = [-(-array.nbytes // ALIGNED) * ALIGNED for array in arrays]
    starts = itertools.accumulate(sizes, initial=0)
    memory = mmap.mmap(-1, max(sum(sizes), 1))
    return [
        np.frombuffer(memory, array.dtype, array.size, start).reshape(array.shape)
        for array, start in zip(arrays, starts, strict=False)
    ]
