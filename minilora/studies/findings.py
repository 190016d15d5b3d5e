"""What a study's records say: reading them with care, comparing means over seeds, and telling it in words.

A number's spread is half the distance from its least to its most over the seeds, and stands beside it in a row as
NAME_spread. Two means over seeds are called different only where they lie further apart than their spreads together.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Row = Mapping[str, Any]
Records = Mapping[str, Any]
ONE_SEED = " (one seed: spread unknown)"

# --- reading records -------------------------------------------------------------------------------------------------


def rows_of(records: Records, study: str, *numbers: str, finite: bool = True) -> list[Row]:
    """The rows of a study's records, after a look at what they hold. Raises ValueError for anything else."""
    again = f"make them anew: `minilora study {study} --force`"
    if not isinstance(records, Mapping) or records.get("study") != study:
        came = records.get("study") if isinstance(records, Mapping) else type(records).__name__
        raise ValueError(f"figures: got the records of {came!r}, expected those of the study {study!r}")
    rows = records.get("rows") or []
    if not rows:
        raise ValueError(f"figures: the records of {study!r} have no rows; {again}")
    for place, row in enumerate(rows):
        missing = [number for number in numbers if number not in row]
        if missing:
            raise ValueError(f"figures: row {place} of the records of {study!r} has no {missing[0]!r}; {again}")
        odd = [n for n in numbers if isinstance(row[n], float) and not np.isfinite(row[n])]
        if odd and finite:
            raise ValueError(f"figures: {odd[0]} is {row[odd[0]]} in row {place} of the records of {study!r}; {again}")
    return rows


def where(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows with these entries. Raises ValueError when there are none."""
    found = [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
    if not found:
        said = ", ".join(f"{key} = {value!r}" for key, value in wanted.items())
        raise ValueError(f"figures: the records have no row with {said}; make them anew with --force")
    return found


def lora_and_full(rows: Iterable[Row], **wanted: Any) -> tuple[Row, Row]:
    """The first row of LoRA and the first of full fine-tuning with these entries. Raises ValueError without one."""
    rows = list(rows)
    return where(rows, **wanted, method="lora")[0], where(rows, **wanted, method="full")[0]


def ordered(rows: Iterable[Row], by: str, **wanted: Any) -> list[Row]:
    """The rows with these entries, the least of a number first. Raises ValueError when there are none."""
    return sorted(where(rows, **wanted), key=lambda row: row[by])


def each(rows: Iterable[Row], key: str) -> list[Any]:
    """The different entries under a key, in their order."""
    return list(dict.fromkeys(row[key] for row in rows))


def by_kind(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """{"q": the rows of all matrices called ...q_proj, ...}, in their order"""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(row["name"].split(".")[-1].removesuffix("_proj"), []).append(row)
    return kinds


# --- comparing -------------------------------------------------------------------------------------------------------


def clearly(a: Row, b: Row, number: str = "loss") -> int:
    """-1 where a is below b, 1 where it is above, 0 where they are no further apart than their spreads together."""
    gap = a[number] - b[number]
    return 0 if abs(gap) <= a[f"{number}_spread"] + b[f"{number}_spread"] else int(np.sign(gap))


def best_of(rows: Sequence[Row], number: str = "loss") -> tuple[Row, list[Row]]:
    """The row with the least of a number, and all the rows that are not clearly worse."""
    best = min(rows, key=lambda row: row[number])
    return best, [row for row in rows if clearly(row, best, number) == 0]


# --- telling ---------------------------------------------------------------------------------------------------------


def joined(findings: Mapping[str, str]) -> str:
    """{corpus: finding} as one sentence; a finding that all share is said once."""
    if len(set(findings.values())) == 1:
        return next(iter(findings.values())) + (" on each text" if len(findings) > 1 else "")
    return "; ".join(f"on {name} {finding}" for name, finding in findings.items())


def percent(share: float) -> str:
    """0.5 -> "50 %", 0.001 -> "0.1 %\""""
    return f"{100 * share:.0f} %" if share >= 0.01 or share == 0 else f"{100 * share:.1g} %"


def listed(words: Sequence[str]) -> str:
    """["q", "k", "v"] -> "q, k and v\""""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def seeds_note(rows: Iterable[Row]) -> str:
    """A warning that stands behind a title when nothing is known about the spread."""
    return ONE_SEED if min(row.get("seeds", 1) for row in rows) < 2 else ""
