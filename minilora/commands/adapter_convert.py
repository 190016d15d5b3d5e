"""`minilora adapter convert`."""

import argparse
import textwrap
from collections.abc import Mapping
from typing import Any

from .adapter_resize import OUTPUT, tell
from .adapter_show import JSON, PATH, by_matrix
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
    return tell(args, found, table(found))


def table(found: Mapping[str, Any]) -> list[str]:
    """Everything that `convert` says, in 80 columns."""
    rows = found["matrices"]
    lines = [f"{'':<44} {'rank':>5} {'alpha':>8} {'scale':>8} {'norm':>10}"] if rows else []
    told = lambda r: f"{r['rank']:>5} {r['alpha']:>8.4g} {r['scale']:>8.4g} {r['frobenius_norm']:>10.4g}"
    lines += [*by_matrix(rows, 44, told), ""]
    lines += [textwrap.fill(f"note              {note}", 80, subsequent_indent=" " * 18) for note in found["notes"]]
    lost = f"{found['lost']:.2g} of {found['norm']:.4g} in norm is lost"
    return [*lines, f"converted         {found['from']} to {found['to']}; {lost}"]
