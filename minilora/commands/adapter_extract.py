"""`minilora adapter extract`."""

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from .adapter_resize import SHARE, output_place, require_one, tell
from .adapter_show import JSON, by_matrix
from .options import command, option, whole

BOTH = "a checkpoint: a Hugging Face folder, or one .safetensors file"


@command(
    option("base", None, f"{BOTH}, as it was", metavar="BASE"),
    option("tuned", None, f"{BOTH}, as it was trained on", metavar="TUNED"),
    option("--rank", None, "the rank of every matrix", type=whole(1), metavar="R"),
    option("--energy", None, "of each matrix the rank that holds so much of the change", type=SHARE, metavar="SHARE"),
    JSON,
    option("--output", None, "the folder to write, in PEFT's form", type=output_place, metavar="OUT", required=True),
    example="minilora adapter extract Qwen2-0.5B my-qwen --rank 16 --output runs/it",
)  # fmt: skip
def extract(args: argparse.Namespace) -> int:
    """Take an adapter out of two checkpoints.

    Of each linear layer the change, cut to a rank: a randomised singular value decomposition of the matrix that is read
    from the two files (Halko, Martinsson and Tropp 2011). How far the adapter is from the change is measured, beside
    the bound that the method gives. What changed and is no linear layer is listed. Full fine-tuning may change a matrix
    in all directions: it is told what a random matrix's would hold.
    """
    from ..interop import extract as extraction

    require_one(args, "--rank 16")
    found = extraction.extract(args.base, args.tuned, args.output, args.rank, args.energy, progress=True)
    return tell(args, found, table(found))


def table(found: Mapping[str, Any]) -> list[str]:
    """Everything that `extract` says, in 80 columns."""
    rows = found["matrices"]
    lines = [f"{'':<32} {'rank':>4} {'change':>8} {'lost':>8} {'held':>6} {'random':>6} {'in 2-norm':>9}"]
    lines += by_matrix(
        rows, 32, lambda row: f"{row['rank']:>4} {row['frobenius_norm']:>8.3g} {row['lost']:>8.3g} "
        f"{row['energy']:>6.1%} {row['random']:>6.1%} {row['error']:>9.3g}",
    )  # fmt: skip
    worst = max(rows, key=lambda row: row["bound"])
    lines += ["", *others(found["beside"], found["unchanged"])]
    for which, names in (("BASE", found["only_base"]), ("TUNED", found["only_tuned"])):
        if names:
            lines.append(f"in {which} alone"[:17].ljust(18) + f"{len(names)}, as {names[0]}")
    lines.append(f"bound             {worst['bound']:.3g} in 2-norm, but for one draw in 10^10 (Halko et al.)")
    return [*lines, "", *textwrap.wrap(sentence(found), 80)]


def others(rows: Sequence[Mapping[str, Any]], unchanged: int) -> list[str]:
    """A line each of what changed and is in no linear layer, the largest changes first."""
    lines = [f"unchanged         {unchanged} tensors"] if unchanged else []
    if rows:
        lines.append(f"left out          {len(rows)} changed and are no linear layers; --json has all:")
    for row in sorted(rows, key=lambda row: -row["frobenius_norm"])[:6]:
        told = "-" if row["relative_norm"] is None else f"{row['relative_norm']:.2%}"
        lines.append(f"  {row['name'][-50:]:<50} {row['frobenius_norm']:>8.3g}, {told} of it")
    return lines


def sentence(found: Mapping[str, Any]) -> str:
    """What the numbers say, in words."""
    held, chance, rank = found["energy"], found["random"], found["rank"]
    said = f"Rank {rank} holds {held:.1%} of the energy of the change"
    beside = f"of a random matrix's change it would hold {chance:.1%}"
    if held >= 0.9:
        return f"{said}; {beside}."
    if held < 2 * chance:
        said += f", hardly more than of a random one: {beside}"
        return (
            f"{said}. The change has full rank, and an adapter is a bad idea: keep the checkpoint, or the difference."
        )
    return (
        f"{said}; {beside}. What is lost is {found['lost'] / found['norm']:.0%} of its norm: a larger rank holds more."
    )
