"""The table of grades: rows, as text and as CSV."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from ..nn.storage import write_beside


@dataclass(frozen=True)
class Cell:
    """The points of one graded cell: given so far, at most, and whether a person has yet to look at it."""

    points: float
    maximum: float
    waiting: bool
    by_hand: bool

    @property
    def too_many(self) -> bool:
        """Whether there are more points than the cell can give: nobody's tests do that."""
        return not 0 <= self.points <= self.maximum


@dataclass(frozen=True)
class Row:
    """One line of the table: a student's problem set. `note` says what was put back, or why there are no points."""

    student: str
    problem_set: str
    cells: dict[str, Cell]
    note: str = ""

    def points(self, by_hand: bool) -> float:
        """Given so far in the cells that a person grades, or in those that tests grade."""
        return sum(cell.points for cell in self.cells.values() if cell.by_hand == by_hand)

    def maximum(self, by_hand: bool) -> float:
        """The most that those cells can give."""
        return sum(cell.maximum for cell in self.cells.values() if cell.by_hand == by_hand)

    @property
    def waiting(self) -> float:
        """The points that wait for a person."""
        return sum(cell.maximum for cell in self.cells.values() if cell.waiting)


# --- The table.

TITLES = ("student", "set", "tests", "of", "by hand", "of", "waiting", "total", "of")


def figures(row: Row) -> list[float]:
    """The numbers of a row, in the order of the titles."""
    tests, by_hand = (row.points(hand) for hand in (False, True))
    of_tests, of_hand = (row.maximum(hand) for hand in (False, True))
    return [tests, of_tests, by_hand, of_hand, row.waiting, tests + by_hand, of_tests + of_hand]


def table(rows: list[Row]) -> str:
    """The rows as aligned text. `waiting` are the points that a person has yet to give."""
    wide = max([7, *(len(row.student) for row in rows)])
    layout = f"{{:<{wide}}}  {{:<4}}{{:>7}}{{:>5}}{{:>9}}{{:>5}}{{:>9}}{{:>8}}{{:>5}}"
    lines = [layout.format(*TITLES)]
    for row in rows:
        numbers = [f"{x:g}" for x in figures(row)] if row.cells else ["-"] * 7
        lines.append(layout.format(row.student, row.problem_set, *numbers) + (f"  {row.note}" if row.note else ""))
    return "\n".join(map(printable, lines))


def printable(line: str) -> str:
    """A line in which what a terminal would act on is written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def save_table(rows: list[Row], path: str | Path) -> Path:
    """The rows as CSV; a submission that was not graded has empty figures."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    titles = ["tests", "tests_of", "by_hand", "by_hand_of", "waiting", "total", "total_of"]
    writer.writerow(["student", "problem_set", *titles, "note"])
    for row in rows:
        numbers = [f"{x:g}" for x in figures(row)] if row.cells else [""] * 7
        writer.writerow([no_formula(row.student), row.problem_set, *numbers, no_formula(row.note)])
    return write_beside(path, lambda file: file.write(text.getvalue().encode()))


def no_formula(text: str) -> str:
    """The text with an apostrophe before what a spreadsheet would take for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
