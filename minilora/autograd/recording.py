"""When the tape records, and when it does not: `no_grad`, for a block, a function or a generator."""

import functools
import inspect
import sys
from collections.abc import Callable
from contextvars import ContextVar
from types import FrameType
from typing import Any

from .signatures import shown

_SUSPENDS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Block:
    """One entry into `no_grad`, by a frame that may be suspended while others run."""

    __slots__ = ("owner", "frame", "left")

    def __init__(self, owner: "no_grad", frame: FrameType):
        self.owner, self.left = owner, False
        self.frame = frame if frame.f_code.co_flags & _SUSPENDS and not _is_manager(frame) else None

    def holds(self) -> bool:
        """Whether the frame is among those that are running here; one that waits at a `yield` is not."""
        frame: FrameType | None = None if self.left else sys._getframe(1)
        while frame is not None and frame is not self.frame:
            frame = frame.f_back
        return frame is not None


def _is_manager(frame: FrameType | None) -> bool:
    """Whether contextlib runs this generator as a context manager: then it waits for as long as its block runs."""
    while frame is not None and frame.f_code.co_flags & _SUSPENDS and frame.f_globals.get("__name__") != "contextlib":
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__") == "contextlib"


blocks: ContextVar[tuple[Block, ...]] = ContextVar("blocks", default=())  # of this thread, or of this asyncio task


def paused() -> bool:
    """Whether a `no_grad` block holds here and now."""
    for block in blocks.get():  # noqa: SIM110  (half the time of any(...), and primitives ask)
        if block.frame is None or block.holds():
            return True
    return False


class no_grad:
    """Inside it no tape is recorded, so nothing is kept for a backward pass.

    `with no_grad():` for a block, `@no_grad()` or `@no_grad` for a function: a generator or an async function, too. It
    holds for this thread and this asyncio task. A generator that waits at a `yield` inside the block does not hold it
    for whoever runs meanwhile, unless `contextlib.contextmanager` made it one that is entered.
    """

    def __new__(cls, function: Any = None) -> Any:
        return super().__new__(cls) if function is None else cls()(function)

    def __init__(self, function: Any = None) -> None:
        self.entered: list[Block] = []  # by frames that may be suspended, and end in another thread

    def __enter__(self) -> None:
        block = Block(self, sys._getframe(1))
        if block.frame is not None:
            self.entered.append(block)
        blocks.set((*(b for b in blocks.get() if not b.left), block))

    def __exit__(self, *error: object) -> None:
        frame, here = sys._getframe(1), blocks.get()
        mine = [b for b in self.entered if b.frame is frame]
        mine = mine or [b for b in here if b.owner is self and b.frame is None] or [b for b in here if b.owner is self]
        if mine:
            mine[-1].left = True
            self.entered = [b for b in self.entered if not b.left]
            blocks.set(tuple(b for b in here if not b.left))

    def __call__(self, function: Callable) -> Callable:
        """The function, recording nothing."""
        if not callable(function) or inspect.isclass(function):
            raise TypeError(f"no_grad: got {shown(function)}, expected a function to decorate, or `with no_grad():`")
        return functools.wraps(function)(_quiet(self, function))


def _quiet(block: no_grad, function: Callable) -> Callable:
    call: Any
    if inspect.isgeneratorfunction(function):

        def call(*args: Any, **kwargs: Any) -> Any:
            with block:
                return (yield from function(*args, **kwargs))

    elif inspect.isasyncgenfunction(function):

        async def call(*args: Any, **kwargs: Any) -> Any:
            with block:
                async for value in function(*args, **kwargs):
                    yield value

    elif inspect.iscoroutinefunction(function):

        async def call(*args: Any, **kwargs: Any) -> Any:
            with block:
                return await function(*args, **kwargs)

    else:

        def call(*args: Any, **kwargs: Any) -> Any:
            with block:
                return function(*args, **kwargs)

    return call
