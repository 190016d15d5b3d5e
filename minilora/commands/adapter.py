"""`minilora adapter`: a word for the commands that work on adapters' files. A new one is an import and a word here."""

import argparse

from .adapter_convert import convert
from .adapter_extract import extract
from .adapter_merge import merge
from .adapter_resize import combine, resize
from .adapter_show import compare, show
from .options import command


@command(
    example="minilora adapter show runs/adapter.npz", under=(show, compare, resize, combine, extract, merge, convert)
)
def adapter(args: argparse.Namespace) -> int:
    """Look into adapters' files, and make others of them.

    A PEFT folder, a single file of image tools (lora_down, lora_up), or minilora's own; which, its content says. The
    update s B A of a matrix is never formed: two thin QR factorisations give its singular values in milliseconds.
    """
    return 0
