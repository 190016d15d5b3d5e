"""Ctrl-C while a command is still importing what it needs: one line and exit code 130, as at any later time.

The first thing that `minilora COMMAND` does is `import minilora`, before a line of its own could catch anything, and an
import that is interrupted prints a traceback. In any other program that imports minilora nothing is changed.
"""

import os
import signal
import sys


def leave(*_: object) -> None:
    """End this process, which has done nothing yet."""
    try:
        os.write(2, b"minilora: interrupted\n")
    finally:
        os._exit(130)


def is_command(argv: list[str], whole: list[str]) -> bool:
    """Whether a process with these sys.argv and sys.orig_argv is `minilora` or `python -m minilora`."""
    if argv[:1] == ["-m"]:  # what Python puts there while it looks for the module
        return "-mminilora" in whole or "minilora" in whole[whole.index("-m") + 1 :][:1]
    return bool(argv) and os.path.basename(argv[0]) in ("minilora", "minilora.exe", "minilora-script.py")


if (
    is_command(getattr(sys, "argv", []), sys.orig_argv)
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, leave)
