"""`minilora adapter resize` and `minilora adapter combine`."""

import argparse
import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .adapter_show import BASE, JSON, PATH, by_matrix
from .options import command, number, option, whole
from .outputs import require_writable


def output_place(text: str) -> Path:
    """An option that takes a file or a folder to write, as the adapter's form wants it."""
    if not text:
        raise argparse.ArgumentTypeError("got '', expected a file or folder to write")
    path = Path(text)
    require_writable(path if path.is_dir() else path.parent)
    return path


def weighted(text: str) -> tuple[str, float]:
    """An option that takes an adapter with its weight: "docs:0.7"."""
    path, _, weight = text.rpartition(":")
    with contextlib.suppress(ValueError):
        if path and math.isfinite(float(weight)):
            return path, float(weight)
    raise argparse.ArgumentTypeError(f"got {text!r}, expected an adapter and a weight, as in runs/docs.npz:0.7")


SHARE = number(1e-9, 1, "a share of the energy, above 0 and up to 1")
OUTPUT = option("--output", None, "what to write: a folder for PEFT's form, a file for the others", type=output_place,
                metavar="OUT", required=True)  # fmt: skip


@command(
    PATH,
    option("--rank", None, "the rank of every matrix that has more", type=whole(1), metavar="R"),
    option("--energy", None, "of each matrix the rank that holds so much of its energy", type=SHARE, metavar="SHARE"),
    BASE, JSON, OUTPUT,
    example="minilora adapter resize runs/adapter.npz --rank 4 --output runs/small.npz",
)  # fmt: skip
def resize(args: argparse.Namespace) -> int:
    """Write the nearest adapter of a smaller rank.

    Each update's singular value decomposition, cut: no other matrix of that rank is nearer (Eckart and Young 1936). It
    keeps the form, the scale and the precision of what it read, and says what was lost of each matrix, in norm.
    """
    from ..interop import workbench

    require_one(args, "--rank 4")
    found = workbench.resize(args.path, args.output, args.rank, args.energy, args.base, progress=True)
    lines = [f"{'':<44} {'rank':>9} {'norm':>8} {'lost':>9} {'of it':>6}"]
    lines += losses(found["matrices"], lambda row: f"{row['rank_before']} -> {row['rank']}")
    share = found["lost"] / found["norm"]
    lines += [
        "",
        f"lost              {found['lost']:.3g} of {found['norm']:.3g} in norm ({share:.2%}), "
        f"{share**2:.3%} of the energy",
    ]
    return tell(args, found, lines, f"; {args.path} has {size_of(args.path):,}")


@command(
    option("adapters", None, "adapters, each with its weight", nargs="+", type=weighted, metavar="ADAPTER:WEIGHT"),
    option("--rank", None, "cut the sum back to this rank (default: exact)", type=whole(1), metavar="R"),
    BASE, JSON, OUTPUT,
    example="minilora adapter combine docs.npz:0.7 names.npz:0.3 --output mixed.npz",
)  # fmt: skip
def combine(args: argparse.Namespace) -> int:
    """Write a weighted sum of adapters as one.

    A sum of products is a product of longer matrices, so that the sum is exact, whatever the ranks, scales and targets;
    with --rank it is the nearest of that rank, and the error is told. A negative weight takes away what was learned.
    """
    from ..interop import workbench

    weights = dict(args.adapters)
    if len(weights) < len(args.adapters):
        raise ValueError("an adapter is named twice; add its weights")
    found = workbench.combine(weights, args.output, args.rank, args.base, progress=True)
    lines = [f"{'':<44} {'ranks':>9} {'norm':>8} {'lost':>9} {'of it':>6}"]
    lines += losses(found["matrices"], lambda row: f"{ranks_of(row)} -> {row['rank']}")
    lines += ["", *(f"note              {note}" for note in found["notes"])]
    lines.append(f"error             {found['lost']:.3g} of {found['norm']:.3g} in norm")
    return tell(args, found, lines)


def ranks_of(row: Mapping[str, Any]) -> str:
    """The ranks of a sum's parts: "8+4"; a matrix that an adapter lacks has none."""
    return "+".join(str(rank) for rank in row["ranks"] if rank is not None)


def losses(rows: Sequence[Mapping[str, Any]], ranks: Any) -> list[str]:
    """A line a matrix: its ranks, its norm, and what was lost of it."""

    def told(row: Mapping[str, Any]) -> str:
        share = row["lost"] / row["frobenius_norm"] if row["frobenius_norm"] else 0.0
        return f"{ranks(row):>9} {row['frobenius_norm']:>8.3g} {row['lost']:>9.3g} {share:>6.1%}"

    return by_matrix(rows, 44, told)


def require_one(args: argparse.Namespace, example: str) -> None:
    """Raise ValueError unless one of --rank and --energy is given."""
    if (args.rank is None) == (args.energy is None):
        raise ValueError(f"give one of --rank and --energy: {example}, or --energy 0.99")


def tell(args: argparse.Namespace, found: Mapping[str, Any], lines: Sequence[str], beside: str = "") -> int:
    """Print what was found, as JSON or in lines with what was written (and `beside` it): -> the exit code."""
    saved = f"saved             {args.output}, {size_of(args.output):,} bytes{beside}"
    print(json.dumps(found) if args.json else "\n".join([*lines, saved]))
    return 0


def size_of(path: str | Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    path = Path(path)
    return sum(one.stat().st_size for one in path.iterdir() if one.is_file()) if path.is_dir() else path.stat().st_size
