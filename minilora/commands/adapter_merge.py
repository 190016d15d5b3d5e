"""`minilora adapter merge`."""

import argparse
import textwrap
from collections.abc import Mapping
from typing import Any

from .adapter_resize import tell
from .adapter_show import JSON, by_matrix
from .options import command, one_of, option
from .outputs import output_folder

CHECKPOINT = option("base", None, "the checkpoint: a Hugging Face folder, or one .safetensors file", metavar="BASE")
ADAPTER = option("adapter", None, "an adapter: a folder or a file", metavar="ADAPTER")
FOLDER = option("--output", None, "the folder to write", type=output_folder, metavar="FOLDER", required=True)
LOST = 0.01  # a share of the norm of Delta W, above which it is said where rounding cost most


@command(
    CHECKPOINT, ADAPTER,
    option("--dtype", None, "the precision to write: float32, bfloat16, float16 or float64 (default: the checkpoint's)",
           type=one_of("float32", "bfloat16", "float16", "float64"), metavar="KIND"),
    JSON, FOLDER,
    example="minilora adapter merge Llama-2-7b-hf runs/adapter --output runs/merged",
)  # fmt: skip
def merge(args: argparse.Namespace) -> int:
    """Add an adapter into a checkpoint's files.

    W + s B A, tensor by tensor through the shards, so that a checkpoint larger than the memory can be merged, of any
    architecture whose names fit. The folder has the checkpoint's other files, too, and opens in transformers. It says
    how much of each update rounding kept: one far smaller than the spacing of bfloat16's numbers is lost in it, and
    --dtype float32 keeps it.
    """
    from ..interop import merging

    found = merging.merge(args.base, args.adapter, args.output, args.dtype, progress=True)
    return tell(args, found, table(found))


def table(found: Mapping[str, Any]) -> list[str]:
    """Everything that `merge` says, in 80 columns."""
    rows = found["matrices"]
    lines = [f"{'':<42} {'norm':>8} {'arrived':>8} {'kept':>7} {'changed':>8}"]
    told = lambda row: (
        f"{row['frobenius_norm']:>8.3g} {row['arrived']:>8.3g} {share(row['kept']):>7} {row['changed']:>8.1%}"
    )
    lines += [*by_matrix(rows, 42, told), ""]
    lines += [textwrap.fill(f"note              {note}", 80, subsequent_indent=" " * 18) for note in found["notes"]]
    return [*lines, *textwrap.wrap(sentence(found), 80)]


def share(value: float | None) -> str:
    """A share in per cent, a dash for none."""
    return "-" if value is None else f"{value:.1%}"


def sentence(found: Mapping[str, Any]) -> str:
    """What rounding kept, in words."""
    if not found["norm"]:
        return "Every Delta W is zero; what was trained beside them is merged."
    off = found["lost"] / found["norm"]
    said = (
        f"What arrived in {found['dtype']} has {share(found['kept'])} of the norm of Delta W, and is {off:.2%} of it "
    )
    said += f"away from it; {share(found['changed'])} of the entries of these matrices changed."
    if off > LOST and found["dtype"] not in ("float32", "float64"):
        apart = {r["name"]: r["lost"] / r["frobenius_norm"] for r in found["matrices"] if r["frobenius_norm"]}
        worst = max(apart, key=apart.__getitem__)
        said += f" Most was lost in {worst}, {apart[worst]:.1%} of its norm: --dtype float32 keeps it."
    return said
