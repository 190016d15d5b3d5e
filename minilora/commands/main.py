"""From words to a command, and from what it raises to one line and an exit code."""

import argparse
import contextlib
import difflib
import inspect
import shutil
import signal
import sys
import textwrap
from collections.abc import Mapping
from typing import Any

import minilora as ml

from ..interrupt import leave
from .adapter import adapter
from .bench import bench
from .count import count
from .demo import demo
from .evaluate import evaluate
from .fetch import fetch
from .figures import figures
from .finetune import finetune
from .generate import generate
from .gradcheck import gradcheck
from .homework import homework
from .merge import merge
from .options import BACKEND, Command, convert, destination, did_you_mean
from .pretrain import pretrain
from .study import study
from .words import heard, reason, say_error, warnings_as_lines

# Every command, in the order of the help: a new one is an import above and a word here.
EVERY = (
    *(demo, pretrain, fetch, finetune, evaluate, generate, merge, adapter),
    *(count, study, bench, figures, gradcheck, homework),
)
COMMANDS = {entry.run.__name__: entry for entry in EVERY}
MISTAKES = (ValueError, TypeError, OSError, ArithmeticError, MemoryError, ImportError)  # each says what is wrong


class Parser(argparse.ArgumentParser):
    """argparse, with its errors raised for `main` to print on one line."""

    def error(self, message: str) -> Any:
        """Raises ValueError."""
        raise ValueError(message.removeprefix("argument "))


def build_parser() -> Parser:
    """The parser of every command, each with its help. What is given stays a word, and what is not given absent."""
    style: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    first = "Start with:\n  minilora demo\nHelp on a command:\n  minilora COMMAND --help"
    parser = Parser("minilora", description="LoRA from scratch in NumPy.", epilog=first, **style)
    parser.add_argument("--version", action="version", version=f"minilora {ml.__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    parser.set_defaults(command=None)
    add_commands(parser, COMMANDS, style)
    return parser


def add_commands(parser: Parser, commands: Mapping[str, Command], style: Mapping[str, Any]) -> None:
    """Give a parser the parsers of commands, each with its help, its options and the commands under it."""
    chooser = parser.add_subparsers(metavar="COMMAND", title="commands", parser_class=Parser)
    width = min(78, shutil.get_terminal_size().columns - 2)
    for name, entry in commands.items():
        paragraphs = (inspect.getdoc(entry.run) or "").split("\n\n")
        told = "\n\n".join(textwrap.fill(paragraph, width) for paragraph in paragraphs)
        example = f"example:\n  {entry.example}"
        child = chooser.add_parser(
            name, help=" ".join(paragraphs[0].split()), description=told, epilog=example, **style
        )
        child.set_defaults(command=entry)
        for flag, how in entry.options:
            words = {name: value for name, value in how.items() if name != "type"}  # `parse` makes values of them
            child.add_argument(flag, **{**words, "default": argparse.SUPPRESS})
        if entry.commands:
            add_commands(child, entry.commands, style)


def chosen(argv: list[str]) -> list[str]:
    """The words of a command line that name its command: ["adapter", "show"].

    Raises ValueError for a word that is none, with the closest one that is.
    """
    names: list[str] = []
    commands: Mapping[str, Command] = COMMANDS
    for word in (word for word in argv if not word.startswith("-")):
        if not commands:
            break
        if word not in commands:
            raise ValueError(f"no command {' '.join([*names, word])!r}{did_you_mean(word, list(commands))}")
        names, commands = [*names, word], commands[word].commands
    return names


def parse(argv: list[str]) -> argparse.Namespace:
    """The command and its options, and which of them were `given`.

    Raises ValueError for a word it does not know, with the closest one it does, and for a value that is none.
    """
    names = chosen(argv)
    args, unknown = build_parser().parse_known_args(argv)
    if unknown:
        word = unknown[0].partition("=")[0]
        flags = [flag for flag, _ in args.command.options] if args.command else ["--version", "--traceback", "--help"]
        close = difflib.get_close_matches(word, flags, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"minilora {' '.join(names)} --help lists the options"
        raise ValueError(f"unknown word {word!r}; {' '.join(hint.split())}")
    args.given = frozenset(vars(args))
    for flag, how in args.command.options if args.command else ():
        name = destination(flag)
        setattr(args, name, convert(flag, how, getattr(args, name, how["default"])))
    return args


def run() -> int:
    """This process is a command: -> its exit code. Ctrl-C is `main`'s while it lasts, and comes too late after it."""
    with contextlib.suppress(ValueError):
        if signal.getsignal(signal.SIGINT) is leave:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    code = main()
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return code


def main(argv: list[str] | None = None) -> int:
    """Run a command line (by default this process's): -> the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    with heard() as out:
        code = answer(argv)
        out.flush()
        if out.lost and not isinstance(
            out.lost, BrokenPipeError
        ):  # the reader of a pipe, such as `head`, has had enough
            say_error(f"error: standard output: {reason(out.lost)}")
            code = code or 2
    return code


def answer(argv: list[str]) -> int:
    """Run a command line: -> the exit code. What is wrong is one line on stderr."""
    try:
        with warnings_as_lines():
            args = parse(argv)
            if args.command is None or args.command.commands:
                build_parser().parse_args([*chosen(argv), "--help"])
            with ml.use_backend(args.backend) if BACKEND in args.command.options else contextlib.nullcontext():
                return args.command.run(args)
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    except KeyboardInterrupt as stopped:
        say_error("; ".join(["interrupted", *getattr(stopped, "__notes__", [])]))
        return 130
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
