"""`minilora demo`."""

import argparse
import sys
from pathlib import Path

from ..demo import tell
from .options import BACKEND, SEED, command, option, require_writable, whole


@command(
    option("--output", "figures", "the folder for the pictures", metavar="DIR"),
    option("--steps", 200, "training steps, of LoRA and of all weights each", type=whole(1), metavar="N"),
    SEED,
    BACKEND,
    example="minilora demo --output figures",
)
def demo(args: argparse.Namespace) -> int:
    """Adapt a language model with LoRA before your eyes.

    In about a minute: checks the gradients, trains LoRA and, for comparison, all weights on new text, merges, looks at
    the singular values of the change, and draws three figures.
    """
    require_writable(Path(args.output))
    tell(Path(args.output), args.steps, args.seed, progress=sys.stderr.isatty())
    return 0
