"""Lecture 6's tables, and a folder that is gone after use."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .tables import Table
from .tables import table as table  # which the lecture calls, too


def losses(head: Sequence[str], found: Mapping[tuple[str, float], Sequence[float]]) -> Table:
    """Losses on two texts, with a part made weaker.   found: {(part, factor): (new, old)}"""
    return table(
        head, [[f"{part} × {factor:g}", *(f"{x:.2f}" for x in many)] for (part, factor), many in found.items()]
    )


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new folder, as long as the block lasts."""
    with tempfile.TemporaryDirectory() as place:
        yield Path(place)
