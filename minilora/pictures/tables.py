"""Tables that a notebook shows as such, and a terminal as the Markdown that they are."""

from collections.abc import Sequence
from typing import Any


class Table(str):
    """A table in Markdown, which a notebook shows as one."""

    def _repr_markdown_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return str(self)


def table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> Table:
    """Rows under a head; all columns but the first are aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return Table("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines))
