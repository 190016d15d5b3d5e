"""Independent parts of one primitive: computed one after the other, or on several cores by who has charge of them.

What a part computes does not depend on the others, so the bits are the same either way.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

__all__ = ["in_parts", "shared_by"]

Share = Callable[[Callable[..., Any], Sequence[tuple]], list]
_share: ContextVar[Share | None] = ContextVar("share", default=None)


def in_parts(function: Callable[..., Any], parts: Sequence[tuple]) -> list:
    """[function(*part) for part in parts], shared out where that was asked for."""
    share = _share.get()
    return [function(*part) for part in parts] if share is None else share(function, parts)


@contextlib.contextmanager
def shared_by(share: Share | None) -> Iterator[None]:
    """Let `share(function, parts)` compute what is in parts; None: one after the other."""
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)
