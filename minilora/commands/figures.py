"""`minilora figures`."""

import argparse

from .options import command, option
from .outputs import output_folder


@command(
    option("names", None, "figures to draw (default all)", nargs="*", metavar="FIGURE"),
    option("--data", "figures/data", "the folder with the records", metavar="DIR"),
    option("--corpus", "unicode-names", "the text, in figures that show one", metavar="NAME"),
    option("--output", "figures", "the folder for the pictures", type=output_folder, metavar="DIR"),
    example="minilora figures truncation rates",
)
def figures(args: argparse.Namespace) -> int:
    """Draw the figures of the studies from their saved records.

    Each is a PNG, an SVG and a caption that says what it shows. The same records give the same bytes.
    """
    from ..pictures import figures as lecture

    for path in lecture.draw(args.names or None, args.data, args.output, args.corpus):
        print(path)
    return 0
