"""The benchmark as text of 80 columns: what was measured, beside what was asked."""

import textwrap
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from ..studies.runs import write_json
from .rows import TRAINING

WIDTH = 80


def table(record: Mapping[str, Any]) -> str:
    """The whole record: the machine, a block of rows for each thing that was measured, profiles, what was left out."""
    lines = machine_lines(record["machine"])
    for what, rows in groupby(record["rows"], key=lambda r: r["what"]):
        lines += ["", what, f" {'':<13}{'beside':<17}{'ours':>10}{'theirs':>10}{'ratio':>6}{'quartiles':>11}  bar"]
        lines += [row_line(r) for r in rows]
    for profile in record["profile"]:
        lines += ["", *profile_lines(profile)]
    if record["rows"]:
        lines += ["", "ratio: our time (or memory) over theirs, the median over turns; below 1 is less than theirs.",
                  "matrix products: the step's floating-point operations at the rate of a large product."]  # fmt: skip
    lines += [f"left out: {what}: {why}" for what, why in record["left_out"].items()]
    return "\n".join(line for long in lines for line in fill(long))


def save(record: Mapping[str, Any], path: Path) -> Path:
    """Write the record as JSON, for the figure and the README to be made from."""
    return write_json(path, dict(record))


def fill(line: str) -> list[str]:
    """A line, in as many as it needs."""
    return [line] if len(line) <= WIDTH else textwrap.wrap(line, WIDTH, subsequent_indent="  ")


def machine_lines(machine: Mapping[str, Any]) -> list[str]:
    """What the numbers were measured on."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    place = machine.get("gpu", machine["processor"])
    return [f"{place}, {machine['threads']} threads, {machine['blas']}, {machine['system']}", versions]


def amount(value: float | None, unit: str) -> str:
    """A time, a rate or a size, with its unit."""
    if value is None:
        return "-"
    if unit == "bytes":
        return f"{value / 2**20:,.1f} MiB" if value < 100 * 2**20 else f"{value / 2**20:,.0f} MiB"
    if unit == "exponent":
        return f"{value:.2f}"
    if unit == "s/token":
        return f"{1 / value:,.0f} /s"
    for scale, name in ((1, "s"), (1e3, "ms")):
        if value * scale >= 1:
            return f"{value * scale:,.2f} {name}" if value * scale < 100 else f"{value * scale:,.0f} {name}"
    return f"{1e6 * value:,.1f} us"


def row_line(r: Mapping[str, Any]) -> str:
    """One row: sizes, amounts, ratio, the quartiles of the ratio, and whether the bar was reached."""
    line = f" {r['size']:<13}{r['against']:<17}{amount(r['ours'], r['unit']):>10}{amount(r['theirs'], r['unit']):>10}"
    if r["ratio"] is None:
        line += f"{'-':>6}{'':>11}"
    else:
        low, high = r["quartiles"]
        line += f"{r['ratio']:>6.2f}{f'{low:.2f}-{high:.2f}':>11}"
    if r["bar"] is not None:
        line += f" {r['bar']:>4.3g} {'ok' if r['reached'] else 'over'}"
    return line.rstrip()


def profile_lines(profile: Mapping[str, Any]) -> list[str]:
    """Where the time of a step goes, the largest part first."""
    title = f"{TRAINING[profile['method']]} at {profile['size']}: where {1e3 * profile['seconds']:.1f} ms go"
    lines = [title, f"  {'':<24}{'calls':>8}{'forward':>13}{'backward':>13}{'share':>9}"]
    for part in profile["parts"]:
        calls = f"{part['calls']:.0f}" if part["calls"] else ""
        back = f"{1e3 * part['backward']:.2f} ms" if part["backward"] else ""
        there = f"{1e3 * part['forward']:.2f} ms"
        lines.append(f"  {part['name']:<24}{calls:>8}{there:>13}{back:>13}{100 * part['share']:>7.1f} %")
    return lines
