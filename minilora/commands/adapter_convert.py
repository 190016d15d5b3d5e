"""`minilora adapter convert`."""

import argparse
import json
import textwrap
from collections.abc import Mapping
from typing import Any

from .adapter_resize import OUTPUT, size_of
from .adapter_show import JSON, MOST, PATH, common_start, labelled, more
from .options import command, one_of, option


@command(
    PATH,
    option("--to", None, "the form to write: peft, kohya (the single file of image tools) or minilora",
           type=one_of("peft", "kohya", "minilora"), metavar="FORM", required=True),
    option("--base", None, "the checkpoint it was trained on: a folder, or 'base'; for the names of modules, "
           "and to and from minilora's form", metavar="CHECKPOINT"),
    option("--matrices-only", False, "leave out heads and biases that the form cannot hold", action="store_true"),
    JSON, OUTPUT,
    example="minilora adapter convert runs/adapter.npz --to kohya --output k.safetensors",
)  # fmt: skip
def convert(args: argparse.Namespace) -> int:
    """Write an adapter in another form.

    PEFT's folder, the single file of image tools (lora_down, lora_up, alpha), and minilora's own. A and B stay as they
    are, and the scale goes into alpha. The single file turns dots in names into underscores: one that is written here
    keeps the names beside the matrices, and for one of others --base gives them. What a form cannot hold is refused by
    name.
    """
    from ..interop import convert as conversion

    found = conversion.convert(args.path, args.to, args.output, args.base, args.matrices_only, progress=True)
    if args.json:
        print(json.dumps(found))
        return 0
    print(table(found))
    print(f"saved             {args.output}, {size_of(args.output):,} bytes")
    return 0


def table(found: Mapping[str, Any]) -> str:
    """Everything that `convert` says, in 80 columns."""
    rows = found["matrices"]
    start = len(common_start([row["name"] for row in rows])) if rows else 0
    lines = [f"{'':<44} {'rank':>5} {'alpha':>8} {'scale':>8} {'norm':>10}"] if rows else []
    for row in rows[:MOST]:
        lines.append(
            f"{labelled(row['name'][start:], 44)} {row['rank']:>5} {row['alpha']:>8.4g} {row['scale']:>8.4g} "
            f"{row['frobenius_norm']:>10.4g}"
        )
    lines += [*more(rows), ""]
    lines += [textwrap.fill(f"note              {note}", 80, subsequent_indent=" " * 18) for note in found["notes"]]
    return "\n".join([*lines, f"converted         {found['from']} to {found['to']}; {found['lost']:.2g} of "
                              f"{found['norm']:.4g} in norm is lost"])  # fmt: skip
