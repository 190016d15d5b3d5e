"""Where the time of a training step goes: by primitive, forward and backward, and what is around the primitives.

While a profile is taken, every primitive of `ml.ops` and every vjp that it hands to the tape reads the clock before and
after its work. A step may work on pieces of the batch in several threads; times are summed over the threads and divided
by their number, so that all parts together are the time on the wall.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..autograd import ops
from ..autograd.tensor import PRIMITIVES, primitive
from ..training import backward
from ..training.loop import train_step
from ..training.optim import AdamW
from ..training.parallel import cores
from .peers import Workload, finish_of
from .pytorch import LEARNING_RATE

FORWARD, BACKWARD = "forward", "backward"
STEP, LOSS, GRAD, UPDATE = "step", "loss", "grad", "update"
Spans = list[tuple[str, str, float]]  # (primitive or part, forward or backward or "", seconds)


class Clock:
    """Notes how long functions take. A list's append is safe from several threads."""

    def __init__(self, finish: Callable[[], Any]):
        self.spans: Spans = []
        self.finish = finish

    def timed(self, function: Callable, name: str, way: str = "") -> Callable:
        """The function, noting its time at each call."""

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **options)
            self.finish()
            self.spans.append((name, way, time.perf_counter() - start))
            return result

        return call

    def primitive(self, name: str, function: Callable) -> Callable:
        """A primitive's function on arrays, with its own time and that of each vjp noted."""
        forward = self.timed(function, name, FORWARD)

        @functools.wraps(function)
        def call(*arrays: Any, **options: Any) -> tuple:
            output, vjps = forward(*arrays, **options)
            if callable(vjps):
                return output, self.timed(vjps, name, BACKWARD)
            return output, tuple(vjp and self.timed(vjp, name, BACKWARD) for vjp in vjps)

        return call


@contextlib.contextmanager
def watched(clock: Any) -> Iterator[None]:
    """Inside the block the clock, or what does as one, runs for every primitive and for the walk of the tape."""
    walk = backward.grad
    for name, plain in PRIMITIVES.items():
        setattr(ops, name, primitive(clock.primitive(name, plain.__wrapped__)))  # type: ignore[attr-defined]
    backward.grad = clock.timed(walk, GRAD)
    try:
        yield
    finally:
        backward.grad = walk
        for name, plain in PRIMITIVES.items():
            setattr(ops, name, plain)


def profile(workload: Workload, steps: int = 10) -> dict[str, Any]:
    """Time a training step part by part.

    -> {"size", "method", "seconds" (a step, watched), "parts": [{"name", "calls", "forward", "backward", "share"}]},
    with seconds a step, the largest part first; a part that is no primitive stands with its whole time under "forward".
    """
    model, (tokens, targets) = workload.model(), workload.data
    optimizer = AdamW(model.named_parameters(), LEARNING_RATE)
    clock = Clock(finish_of(model.wte.weight.data))
    model.loss = clock.timed(model.loss, LOSS)  # type: ignore[method-assign]
    optimizer.step = clock.timed(optimizer.step, UPDATE)  # type: ignore[method-assign]
    step = clock.timed(lambda: train_step(model, optimizer, tokens, targets), STEP)
    with watched(clock):
        for _ in range(2):
            step()
        clock.spans.clear()
        for _ in range(steps):
            step()
    pieces = sum(name == LOSS for name, _, _ in clock.spans) / steps
    seconds, parts = account(clock.spans, steps, threads=min(pieces, cores()))
    return {"size": workload.size, "method": workload.method, "seconds": seconds, "parts": parts}


def account(spans: Spans, steps: int, threads: float) -> tuple[float, list[dict[str, Any]]]:
    """Seconds a step, and its parts. What happens inside the pieces of a batch is divided by the threads."""
    total: dict[tuple[str, str], float] = {}
    calls: dict[str, int] = {}
    for name, way, taken in spans:
        alone = name in (STEP, UPDATE)
        total[name, way] = total.get((name, way), 0.0) + taken / (steps if alone else steps * threads)
        calls[name] = calls.get(name, 0) + (way == FORWARD)
    in_primitives = {way: sum(t for (_, w), t in total.items() if w == way) for way in (FORWARD, BACKWARD)}
    seconds, update = total[STEP, ""], total[UPDATE, ""]
    loss, grad = total[LOSS, ""], total[GRAD, ""]
    around = {
        "model and recording": loss - in_primitives[FORWARD],
        "walk of the tape": grad - in_primitives[BACKWARD],
        "optimiser": update,
        "pieces, threads, sums": seconds - update - loss - grad,
    }
    names = dict.fromkeys(name for name, way in total if way)
    parts = [(name, calls[name] / steps, total[name, FORWARD], total.get((name, BACKWARD), 0.0)) for name in names]
    parts += [(name, 0, taken, 0.0) for name, taken in around.items()]
    rows = [
        {"name": name, "calls": count, "forward": there, "backward": back, "share": (there + back) / seconds}
        for name, count, there, back in parts
    ]
    return seconds, sorted(rows, key=lambda part: -part["share"])
