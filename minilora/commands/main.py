"""From words to a command, and from what it raises to one line and an exit code."""

import argparse
import contextlib
import difflib
import inspect
import os
import sys
import textwrap
from typing import Any

import minilora as ml

from .bench import bench
from .count import count
from .demo import demo
from .figures import figures
from .finetune import finetune
from .generate import generate
from .gradcheck import gradcheck
from .homework import homework
from .merge import merge
from .options import BACKEND, did_you_mean
from .pretrain import pretrain
from .study import study
from .words import reason, say_error, warnings_as_lines

# Every command, in the order of the help: a new one is an import above and a word here.

COMMANDS = {
    entry.run.__name__: entry
    for entry in (demo, pretrain, finetune, generate, merge, count, study, bench, figures, gradcheck, homework)
}
MISTAKES = (ValueError, TypeError, OSError, ArithmeticError, MemoryError, ImportError)  # each says what is wrong


class Parser(argparse.ArgumentParser):
    """argparse, with its errors raised for `main` to print on one line."""

    def error(self, message: str) -> Any:
        """Raises ValueError."""
        raise ValueError(message.removeprefix("argument "))


def build_parser() -> Parser:
    """The parser of every command, each with its help."""
    style: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    first = "Start with:\n  minilora demo\nHelp on a command:\n  minilora COMMAND --help"
    parser = Parser("minilora", description="LoRA from scratch in NumPy.", epilog=first, **style)
    parser.add_argument("--version", action="version", version=f"minilora {ml.__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    parser.set_defaults(command=None)
    chooser = parser.add_subparsers(metavar="COMMAND", title="commands", parser_class=Parser)
    for name, entry in COMMANDS.items():
        paragraphs = (inspect.getdoc(entry.run) or "").split("\n\n")
        told = "\n\n".join(textwrap.fill(paragraph, 78) for paragraph in paragraphs)
        example = f"example:\n  {entry.example}"
        child = chooser.add_parser(name, help=told.split("\n")[0], description=told, epilog=example, **style)
        child.set_defaults(command=entry)
        for flag, arguments in entry.options:
            child.add_argument(flag, **arguments)
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """The command and its options. Raises ValueError for a word it does not know, with the closest one it does."""
    chosen = next((word for word in argv if not word.startswith("-")), None)
    if chosen is not None and chosen not in COMMANDS:
        raise ValueError(f"no command {chosen!r}{did_you_mean(chosen, list(COMMANDS))}")
    args, unknown = build_parser().parse_known_args(argv)
    if unknown:
        word = unknown[0].partition("=")[0]
        flags = [flag for flag, _ in args.command.options] if args.command else ["--version", "--traceback", "--help"]
        close = difflib.get_close_matches(word, flags, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"minilora {chosen or ''} --help lists the options"
        raise ValueError(f"unknown word {word!r}; {' '.join(hint.split())}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run a command line (by default this process's): -> the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        with warnings_as_lines():
            args = parse(argv)
            if args.command is None:
                build_parser().print_help()
                return 0
            with ml.use_backend(args.backend) if BACKEND in args.command.options else contextlib.nullcontext():
                code = args.command.run(args)
            sys.stdout.flush()
            return code
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    except KeyboardInterrupt:
        say_error("interrupted")
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MISTAKES as error:
        if "--traceback" in argv:
            raise
        say_error(f"error: {reason(error)}")
        return 2
    except RuntimeError as error:  # CUDA's, whose types cannot be named where CuPy is not installed
        if "--traceback" in argv or not type(error).__module__.startswith("cupy"):
            raise
        say_error(f"error: the GPU failed: {type(error).__name__}: {error}")
        return 2
