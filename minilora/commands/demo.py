"""`minilora demo`."""

import argparse
import sys

from ..demo import tell
from .options import BACKEND, SEED, command, option, whole
from .outputs import output_folder


@command(
    option("--output", "runs/demo", "the folder for the pictures", type=output_folder, metavar="DIR"),
    option("--steps", 200, "training steps, of LoRA and of all weights each", type=whole(1), metavar="N"),
    SEED,
    BACKEND,
    example="minilora demo --output runs/demo",
)
def demo(args: argparse.Namespace) -> int:
    """Adapt a language model with LoRA before your eyes.

    In about a minute: checks the gradients, trains LoRA and, for comparison, all weights on new text, merges, looks at
    the singular values of the change, and draws three figures.
    """
    tell(args.output, args.steps, args.seed, progress=sys.stderr.isatty())
    return 0
