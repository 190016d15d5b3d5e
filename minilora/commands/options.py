"""A command, its options, and the kinds of values that options take: each says what came and what was expected."""

import argparse
import contextlib
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..adapters.quantization import LEVELS
from ..autograd.backend import BACKENDS
from .outputs import output_file


@dataclass(frozen=True)
class Command:
    """A function, its options as (flag, arguments of argparse's add_argument), and a command line that uses it.

    commands: those under it, as `minilora adapter show` is under `minilora adapter`, which alone prints its help.
    """

    run: Callable[[argparse.Namespace], int]
    options: tuple[tuple[str, dict], ...]
    example: str
    commands: Mapping[str, "Command"] = field(default_factory=dict)


def command(
    *options: tuple[str, dict], example: str, under: Sequence[Command] = ()
) -> Callable[[Callable[[argparse.Namespace], int]], Command]:
    """Make a function a command of its own name; its docstring is the help. under: those that it is a word for."""
    return lambda run: Command(run, options, example, {entry.run.__name__: entry for entry in under})


def option(flag: str, default: Any, help: str, **arguments: Any) -> tuple[str, dict]:
    """One option; its default is told in its help."""
    silent = default is None or default is False or default == ""
    told = help if silent else f"{help} (default {default})"
    return flag, {"default": default, "help": told, **arguments}


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """'; did you mean "x"?' with the closest known word, or the list of all."""
    close = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"


def one_of(*known: str) -> Callable[[str], str]:
    """An option that takes one of these words."""

    def choice(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"got {text!r}{did_you_mean(text, known)}")
        return text

    return choice


def names_in(text: str) -> tuple[str, ...]:
    """An option that takes a list by commas."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected names by commas")
    return names


def whole(least: int) -> Callable[[str], int]:
    """An option that takes a whole number."""

    def parse(text: str) -> int:
        with contextlib.suppress(ValueError):
            if int(text) >= least:
                return int(text)
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number, {least} or more")

    return parse


def number(low: float, high: float, words: str) -> Callable[[str], float]:
    """An option that takes a number from low to high; `words` describe it. NaN is outside."""

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            if low <= float(text) <= high:
                return float(text)
        raise argparse.ArgumentTypeError(f"got {text!r}, expected {words}")

    return parse


def something(text: str) -> str:
    """An option that takes a name or a path: not nothing."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a name or a path")
    return text


def destination(flag: str) -> str:
    """The attribute that an option's value gets: "--top-k" -> "top_k"."""
    return flag.removeprefix("--").replace("-", "_")


def convert(flag: str, how: dict, text: Any) -> Any:
    """An option's word (or words) as a value. Raises ValueError or OSError that names the option."""
    if not isinstance(text, str | list):
        return text
    called = flag if flag.startswith("-") else how.get("metavar", flag)
    kind = how.get("type", str if how.get("metavar") == "TEXT" else something)
    try:
        return kind(text) if isinstance(text, str) else [kind(word) for word in text]
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{called}: {error}") from None
    except OSError as error:
        error.add_note(f"{called} takes another")
        raise


def given(args: argparse.Namespace) -> list[str]:
    """The options of this command line, as they were given."""
    words: list[str] = []
    for flag, how in args.command.options:
        if flag.startswith("--") and destination(flag) in args.given:
            words += [flag] if how.get("action") else [flag, str(getattr(args, destination(flag)))]
    return words


def dtype_of(args: argparse.Namespace) -> str | None:
    """What --dtype says; None where it was not given."""
    return args.dtype if "dtype" in args.given else None


def refuse_ignored(args: argparse.Namespace, flags: Iterable[str], why: str) -> None:
    """Raises ValueError when one of these options was given, whatever its value; `why` goes on: "cannot be ..."."""
    if idle := [flag for flag in flags if destination(flag) in args.given]:
        raise ValueError(f"{' and '.join(idle)} {why}")


def refuse_other_methods(args: argparse.Namespace, method: str, takes: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError when an option was given that other methods take, and this one does not."""
    ours = takes.get(method, ())
    others = dict.fromkeys(flag for flags in takes.values() for flag in flags if flag not in ours)
    what = f"takes {', '.join(ours)}" if ours else "has no such options"
    refuse_ignored(args, others, f"cannot be given with --method {method}, which {what}")


TASKS = ("sql", "repair")  # whose answers are executed: training/tasks.py makes them
SOME = "a number above 0"
FRACTION = number(0, 0.999, "a number from 0 to 0.999")
RATE = number(1e-12, 1e6, SOME)
BACKEND = option("--backend", "numpy", "where to compute: numpy, or cupy on an NVIDIA GPU",
                 type=lambda text: one_of(*BACKENDS)(text), metavar="NAME")  # fmt: skip
SEED = option("--seed", 0, "of every random choice; the same seed gives the same bits", type=whole(0), metavar="N")
MODEL = option(
    "--model", "base", "'base', which comes with minilora; a model file; or one that others trained: a name that "
    "minilora fetch knows, a Hugging Face folder, a .gguf file, or its name on the hub", metavar="NAME",
)  # fmt: skip
DTYPE = option(
    "--dtype", "float32", "how a model that others trained holds its weights: float32, float64, float16, bfloat16, or "
    "file, as they are stored", type=one_of("float32", "float64", "float16", "bfloat16", "file"),
    metavar="KIND",
)  # fmt: skip
CHECKPOINT = option(
    "--checkpoint", None, "where the run is saved on the way and at Ctrl-C (default: beside the output, until it ends)",
    type=output_file, metavar="FILE",
)  # fmt: skip
CHECKPOINT_EVERY = option("--checkpoint-every", 200, "steps from one saving of the run to the next", type=whole(1),
                          metavar="N")  # fmt: skip
RESUME = option(
    "--resume", None, "go on with the run in a checkpoint, bit for bit; its settings are the checkpoint's",
    metavar="FILE",
)  # fmt: skip
QUANTIZE = option(
    "--quantize", None, "hold the base's linear layers in few bits: nf4, int4 or int8 (LoRA on them is QLoRA)",
    type=one_of(*LEVELS), metavar="KIND",
)  # fmt: skip
BATCH = option("--batch", 16, "windows of text a step", type=whole(1), metavar="N")
ACCUMULATE = option("--accumulate", 1, "batches a step: an update from as many times the windows, in the memory of one",
                    type=whole(1), metavar="N")  # fmt: skip
SHARD = option(
    "--shard", False, "each of the processes that mpiexec started keeps its share of the optimiser's moments alone",
    action="store_true",
)  # fmt: skip
CHECKPOINT_BLOCKS = option(
    "--checkpoint-blocks", False, "compute blocks again in the backward pass: less memory, more time, the same bits",
    action="store_true",
)  # fmt: skip
