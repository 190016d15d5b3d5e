"""`python -m minilora`: the same door as the command `minilora`."""

import sys

from .commands.main import run

if __name__ == "__main__":
    sys.exit(run())
