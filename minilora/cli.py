"""The door: `minilora COMMAND`. One function a command; its options stand above it, its docstring is its help.

A new command is a new function under `@command(...)`. It gets the parsed options and returns an exit code. What it
raises for a wrong argument or file becomes one line on stderr and exit code 2; Ctrl-C is one line and exit code 130.
"""

import argparse
import contextlib
import difflib
import inspect
import json
import os
import platform
import re
import shlex
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import minilora as ml

from .adapters.adapter import METHODS, active_adapter, base_parameters
from .adapters.qlora import QuantizedLinear
from .adapters.quantization import LEVELS
from .autograd.backend import BACKENDS
from .autograd.examples import EXAMPLES
from .autograd.gradcheck import TOLERANCE
from .autograd.ops import PRIMITIVES
from .demo import LEARNING_RATE, quoted, sample, tell
from .nn.storage import write_beside
from .training.checkpoint import load_checkpoint
from .training.corpus import BUILT_IN, VOCABULARY

RATES = {"full": LEARNING_RATE["full"], "last-blocks": LEARNING_RATE["full"], "prompt": 0.1, "prefix": 0.1}
MISTAKES = (ValueError, TypeError, OSError, ArithmeticError, MemoryError, ImportError)  # each says what is wrong


@dataclass(frozen=True)
class Command:
    """A function, its options as (flag, arguments of argparse's add_argument), and a command line that uses it."""

    run: Callable[[argparse.Namespace], int]
    options: tuple[tuple[str, dict], ...]
    example: str


COMMANDS: dict[str, Command] = {}


def command(*options: tuple[str, dict], example: str) -> Callable:
    """Make a function a command of its own name."""

    def register(function: Callable[[argparse.Namespace], int]) -> Callable:
        COMMANDS[function.__name__] = Command(function, options, example)
        return function

    return register


def option(flag: str, default: Any, help: str, **arguments: Any) -> tuple[str, dict]:
    """One option; its default is told in its help."""
    silent = default is None or default is False or default == ""
    told = help if silent else f"{help} (default {default})"
    return flag, {"default": default, "help": told, **arguments}


# --- Kinds of option values: each turns a word into a value, or says what came and what was expected.


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
    """The names in a list by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


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


def output_file(text: str) -> Path:
    """An option that takes a file to write. Found unwritable here, it costs nothing; after the training, all of it."""
    path = Path(text)
    if path.is_dir():
        raise IsADirectoryError(f"{text} is a folder, expected a file to write")
    require_writable(path.parent)
    return path


def require_writable(folder: Path) -> None:
    """Raises OSError, naming the folder, when a file cannot be written there; makes the folder where there is none."""
    probe = folder / f".minilora-{os.getpid()}"
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"cannot write to {str(folder)!r}: it is a file, expected a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"cannot write to the folder {str(folder)!r}: {error.strerror}") from None


SOME = "a number above 0"
FRACTION = number(0, 0.999, "a number from 0 to 0.999")
RATE = number(1e-12, 1e6, SOME)
BACKEND = option("--backend", "numpy", "where to compute: numpy, or cupy on an NVIDIA GPU",
                 type=lambda text: one_of(*BACKENDS)(text), metavar="NAME")  # fmt: skip
SEED = option("--seed", 0, "of every random choice; the same seed gives the same bits", type=whole(0), metavar="N")
MODEL = option("--model", "base", "a model file, or 'base' for the one that comes with minilora", metavar="FILE")
CHECKPOINT = option(
    "--checkpoint", None, "where Ctrl-C and every 200th step save the run (default: beside the output)",
    type=output_file, metavar="FILE",
)  # fmt: skip
RESUME = option(
    "--resume", None, "go on with the run in a checkpoint, bit for bit; its settings are the checkpoint's",
    metavar="FILE",
)  # fmt: skip
QUANTIZE = option(
    "--quantize", None, "hold the base's linear layers in few bits: nf4, int4 or int8 (LoRA on them is QLoRA)",
    type=one_of(*LEVELS), metavar="KIND",
)  # fmt: skip
BATCH = option("--batch", 16, "windows of text a step", type=whole(1), metavar="N")


# --- The commands.


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


@command(
    option("--corpus", "python-docs", f"{', '.join(BUILT_IN)}, or a text file", metavar="NAME"),
    option("--steps", 3000, "training steps", type=whole(1), metavar="N"),
    option("--lr", 3e-3, "the highest learning rate", type=RATE, metavar="X"),
    option("--weight-decay", 0.1, "AdamW's", type=number(0, 1e6, "0 or more"), metavar="X"),
    BATCH,
    option("--layers", 4, "blocks", type=whole(1), metavar="N"),
    option("--heads", 4, "attention heads a block", type=whole(1), metavar="N"),
    option("--width", 128, "n_embd", type=whole(1), metavar="N"),
    option("--context", 128, "the longest text it sees at once, in characters", type=whole(1), metavar="N"),
    option("--dropout", 0.05, "the share of values dropped in training", type=FRACTION, metavar="P"),
    SEED,
    option("--output", "runs/base.npz", "the model file", type=output_file, metavar="FILE"),
    CHECKPOINT,
    RESUME,
    BACKEND,
    example="minilora pretrain --corpus python-docs --output runs/base.npz",
)
def pretrain(args: argparse.Namespace) -> int:
    """Train a transformer from nothing on a text.

    Writes the model in float16, and beside it a .json with the settings, the loss curve and the final validation loss.
    """
    output = args.output
    if args.resume:
        run = resume(args)
        if getattr(run.model, "adapters", None):
            raise ValueError(f"{args.resume} is a LoRA run; go on with: minilora finetune --resume {args.resume}")
    else:
        sizes = ml.GPTConfig(len(VOCABULARY), args.context, args.layers, args.heads, args.width, args.dropout)
        corpus = ml.load_corpus(args.corpus).require(args.context)
        settings = ml.Settings(
            steps=args.steps, batch_size=args.batch, lr=args.lr, warmup=args.steps // 20, seed=args.seed,
            weight_decay=args.weight_decay, evaluate_every=max(1, args.steps // 40),
        )  # fmt: skip
        run = ml.Run(ml.GPT(sizes, rng=args.seed), corpus, settings)
    describe_run(run, "from nothing")
    started = time.perf_counter()
    if not train_or_save(run, args, "pretrain", output):
        return 130
    seconds = time.perf_counter() - started
    facts = {"corpus": Path(run.corpus.name).name, "steps": run.step, "seed": run.settings.seed}
    model = ml.GPT(replace(run.model.config, dropout=0.0))  # dropout was for this training, not for what comes after
    model.load_state_dict(run.model.state_dict())
    ml.save_model(model, output, dtype="float16", **facts)
    loss = ml.evaluate(ml.load_model(output), run.corpus)  # of what is in the file, rounded to float16
    record = write_record(run, output, facts, loss, seconds)
    print(f"validation loss   {loss:.4f} nats per character, on the whole validation text, in float16")
    say_sample(model, run.settings.seed)
    print(f"saved             {output} ({output.stat().st_size:,} bytes) and {record}")
    print(f"use it            minilora generate --model {shlex.quote(str(output))}")
    return 0


@command(
    option("--corpus", "unicode-names", f"{', '.join(BUILT_IN)}, or a text file", metavar="NAME"),
    MODEL,
    option("--method", "lora", "full trains all weights; beside frozen ones train lora, dora, houlsby, pfeiffer, "
           "prompt and prefix; bitfit and last-blocks train some", type=one_of(*METHODS), metavar="NAME"),
    option("--rank", 8, "LoRA's and DoRA's r, the width of the thin matrices", type=whole(1), metavar="N"),
    option("--alpha", 16.0, "LoRA's scale: the update counts alpha / r", type=RATE, metavar="X"),
    option("--targets", "*", "layers to adapt, by commas, such as q_proj,v_proj; * is every linear layer",
           metavar="NAMES"),
    option("--lora-dropout", 0.0, "the share of LoRA's inputs dropped in training", type=FRACTION, metavar="P"),
    option("--rslora", False, "scale by alpha / sqrt(r)", action="store_true"),
    option("--bottleneck", 16, "the width of houlsby's and pfeiffer's adapters", type=whole(1), metavar="N"),
    option("--virtual", 16, "virtual tokens of prompt and prefix", type=whole(1), metavar="N"),
    option("--blocks", 2, "how many blocks last-blocks trains", type=whole(1), metavar="N"),
    QUANTIZE,
    option("--steps", 200, "training steps", type=whole(1), metavar="N"),
    option("--lr", None, f"the highest learning rate (default {RATES['full']:g} for full and last-blocks, "
           f"{RATES['prompt']:g} for prompt and prefix, {LEARNING_RATE['lora']:g} for others)", type=RATE, metavar="X"),
    BATCH,
    SEED,
    option("--output", None, "the adapter or model file (default runs/adapter.npz or runs/full.npz)",
           type=output_file, metavar="FILE"),
    CHECKPOINT,
    RESUME,
    BACKEND,
    example="minilora finetune --corpus unicode-names --rank 8 --output runs/names.npz",
)  # fmt: skip
def finetune(args: argparse.Namespace) -> int:
    """Adapt a trained model to a new text, by LoRA, an alternative to it, or in full.

    The result is a small adapter file that goes with the base model; full training's is a whole new model file.
    """
    run = resume(args) if args.resume else new_finetune(args)
    adapted = bool(getattr(run.model, "adapters", None))
    output = args.output or output_file("runs/adapter.npz" if adapted else "runs/full.npz")
    describe_run(run, active_adapter(run.model).kind if adapted else "all weights")
    if not train_or_save(run, args, "finetune", output):
        return 130
    first, last = run.validation["loss"][0], run.validation["loss"][-1]
    print(f"validation loss   {first:.3f} before, {last:.3f} after {run.step:,} steps, in nats per character")
    say_sample(run.model, run.settings.seed)
    if adapted:
        ml.save_adapter(run.model, output)
    else:
        ml.save_model(run.model, output, corpus=Path(run.corpus.name).name, steps=run.step)
    print(f"saved             {output} ({output.stat().st_size:,} bytes)")
    base = f"--model {shlex.quote(args.model)} " if args.model != "base" else ""
    base += f"--quantize {args.quantize} " if args.quantize else ""
    flags = f"{base}--adapter" if adapted else "--model"
    print(f"use it            minilora generate {flags} {shlex.quote(str(output))}")
    return 0


@command(
    MODEL,
    option("--adapter", None, "an adapter file from finetune, to put on the model", metavar="FILE"),
    QUANTIZE,
    option("--prompt", "", "the text to continue", metavar="TEXT"),
    option("--tokens", 300, "characters to write", type=whole(1), metavar="N"),
    option("--temperature", 0.8, "0 takes the likeliest character, 1 samples as trained, more is wilder",
           type=number(0, 1e6, "0 or more"), metavar="X"),
    option("--top-k", None, "sample among the k likeliest characters only", type=whole(1), metavar="K"),
    option("--samples", 1, "texts to write", type=whole(1), metavar="N"),
    SEED,
    BACKEND,
    example="minilora generate --prompt 'The class ' --tokens 200 --temperature 0.7",
)  # fmt: skip
def generate(args: argparse.Namespace) -> int:
    """Continue a text, character by character."""
    model = load_model(args.model, args.quantize)
    if args.adapter:
        ml.load_adapter(model, existing(args.adapter, "adapter", "minilora finetune writes one"))
    prompt = args.prompt or "\n"  # a model needs a character to start from; a new line is the start of one
    foreign = sum(c not in VOCABULARY for c in prompt)
    if foreign:
        warnings.warn(f"the prompt has {foreign} characters outside the vocabulary; they read '?'", stacklevel=1)
    tokens = np.tile(ml.encode(prompt), (args.samples, 1))  # (B, T)
    texts = model.generate(tokens, args.tokens, args.temperature, args.top_k, rng=args.seed)
    print(("\n" + "-" * 40 + "\n").join(ml.decode(text).strip("\n") for text in texts))
    return 0


@command(
    option("model", "base", "a model's name, such as gpt3-175b, or a Hugging Face config.json", nargs="?"),
    option("--method", "lora", "full, last-blocks, bitfit, prompt, prefix, houlsby, pfeiffer, lora or dora",
           metavar="NAME"),
    option("--rank", 4, "LoRA's and DoRA's r", type=whole(1), metavar="N"),
    option("--targets", "q_proj,v_proj", "layers to adapt, by commas", metavar="NAMES"),
    option("--bottleneck", 64, "the width of bottleneck adapters", type=whole(1), metavar="N"),
    option("--adapter-norm", False, "bottleneck adapters have a layer norm of their own", action="store_true"),
    option("--tokens", 20, "virtual tokens of prompt and prefix tuning", type=whole(1), metavar="N"),
    option("--blocks", 2, "how many blocks last-blocks trains", type=whole(1), metavar="N"),
    option("--batch", 1, "texts a training step", type=whole(1), metavar="N"),
    option("--length", None, "tokens a text (default the context, at most 2,048)", type=whole(1), metavar="N"),
    option("--bits", None, "a base weight: 32, 16, 8 or 4 (default 16; our own model 32)", type=whole(1), metavar="N"),
    option("--optimizer", "adamw", "adamw, adamw-16bit or sgd", metavar="NAME"),
    option("--engine", None, "what is kept for the backward pass: pytorch, flash or minilora", metavar="NAME"),
    option("--compare", False, "all methods side by side", action="store_true"),
    option("--paper", False, "the tables of the LoRA paper, by formula and as printed", action="store_true"),
    option("--json", False, "print JSON in place of tables", action="store_true"),
    example="minilora count gpt3-175b --method lora --rank 4 --targets q_proj,v_proj",
)  # fmt: skip
def count(args: argparse.Namespace) -> int:
    """Count what a method costs: parameters, checkpoint, memory, operations.

    From a model's architecture alone, exactly, for any model from our own to GPT-3.
    """
    from .analysis import counting

    targets = names_in(args.targets)
    method = {} if args.compare else {"method": args.method}
    elsewhere = ("command", "traceback", "model", "method", "targets", "compare", "paper", "json")
    options = {name: value for name, value in vars(args).items() if name not in elsewhere}
    options["target_modules"] = targets
    if args.paper:
        rows = {"rows": counting.paper_rows(), "savings": counting.savings()}
        print(json.dumps(rows) if args.json else counting.paper_table())
    elif args.json:
        print(
            json.dumps((counting.compare_records if args.compare else counting.count)(args.model, **method, **options))
        )
    else:
        print((counting.compare if args.compare else counting.table)(args.model, **method, **options))
    return 0


@command(
    option("name", None, "one study, or all", metavar="STUDY"),
    option("--quick", False, "every study in reduced form, in minutes", action="store_true"),
    option(
        "--output", None, "the folder for the records (default figures/data; with --quick runs/quick)", metavar="DIR"
    ),
    option("--cache", "runs/study", "where finished runs are kept; delete it to train anew", metavar="DIR"),
    option("--table", False, "train nothing: print the table of all methods from the records there are",
           action="store_true"),
    option("--force", False, "make records anew that are there already", action="store_true"),
    example="minilora study ranks --quick",
)  # fmt: skip
def study(args: argparse.Namespace) -> int:
    """Put a question of the lecture to the base model, by training it many times.

    The studies: methods (LoRA, all weights, every alternative), matrices, ranks, rates (learning rates), starts
    (initialisation), data (how much text), spectra, truncation and subspaces (where the update lives), sizes (how
    each method scales), bits (quantised bases and QLoRA), tasks (one after the other), latency and memory.

    Finished runs are kept: a study that was stopped goes on where it was. A full study of everything may take an hour.
    """
    from .analysis import runs, studies
    from .analysis.method_table import FOOT, methods_table

    names = list(studies.STUDIES) if args.name == "all" else [args.name]
    if names[0] not in studies.STUDIES:
        raise ValueError(f"no study {args.name!r}{did_you_mean(args.name, [*studies.STUDIES, 'all'])}")
    scale = runs.QUICK if args.quick else runs.FULL
    folder = Path(args.output or ("runs/quick" if args.quick else "figures/data"))
    if args.table:
        if args.name != "methods":
            raise ValueError(f"study {args.name} --table: the table is of the study methods")
        print(f"{methods_table(studies.load_records('methods', folder))}\n\n{FOOT}")
        return 0
    require_writable(folder)
    for name in names:
        if args.name == "all" and not args.force and (folder / f"{name}.json").exists():
            print(f"{name:<12}  there     {folder / name}.json; --force makes it anew", flush=True)
            continue  # an interrupted `all` goes on with the study it was in
        started = time.perf_counter()
        path = studies.run_study(name, scale, folder, args.cache, args.force, progress=sys.stderr.isatty())
        print(f"{name:<12}{time.perf_counter() - started:>6.0f} s   {path}", flush=True)
    print(f"draw them    minilora figures --data {shlex.quote(str(folder))}")
    return 0


@command(
    option("--sizes", "tiny,small,medium", "model sizes, by commas; there is gpt2, too", metavar="NAMES"),
    option("--parts", "import,memory,scalars,generation,lora,full", "what to measure, by commas; lora and full are "
           "training steps", metavar="NAMES"),
    option("--peers", "torch,torch-compiled,jax,autograd", "who stands beside, by commas, where installed",
           metavar="NAMES"),
    option("--repeats", 15, "turns", type=whole(1), metavar="N"),
    option("--batch", None, "texts a training step, in place of the size's own", type=whole(1), metavar="N"),
    option("--backend", "numpy", "numpy, or cupy for the training steps on a GPU (batch 64 at medium, 8 at gpt2)",
           type=one_of(*BACKENDS), metavar="NAME"),
    option("--profile", False, "where the time of a step goes, too", action="store_true"),
    option("--demo", False, "minilora demo beside its training in PyTorch, too; this takes minutes",
           action="store_true"),
    option("--json", False, "print JSON in place of the table", action="store_true"),
    option("--output", None, "write the JSON to a file, such as figures/data/bench.json", type=output_file,
           metavar="FILE"),
    option("--figure", None, "draw the training steps' ratios: FILE.png and FILE.svg", type=output_file,
           metavar="FILE"),
    example="minilora bench --sizes tiny,small --peers torch --profile",
)  # fmt: skip
def bench(args: argparse.Namespace) -> int:
    """Time training steps and more, beside PyTorch's, JAX's and HIPS autograd's.

    The same shapes, data and threads, taking turns: only the ratios mean anything. All peers at all sizes take many
    minutes; Ctrl-C ends it with what has been measured.
    """
    from .analysis import bench as benchmark
    from .analysis import bench_report

    chosen: dict[str, tuple[str, ...]] = {}
    for what, known in (("sizes", benchmark.SIZES), ("parts", benchmark.PARTS), ("peers", benchmark.PEERS)):
        chosen[what] = names_in(getattr(args, what))
        for name in chosen[what]:
            if name not in known:
                raise ValueError(f"--{what}: no {name!r}{did_you_mean(name, list(known))}")
    if args.figure and not {"lora", "full"} & set(chosen["parts"]):
        raise ValueError("--figure shows training steps: --parts must have lora or full")
    record = benchmark.bench(
        **chosen, turns=args.repeats, backend=args.backend, batch=args.batch, with_profile=args.profile,
        with_demo=args.demo, progress=sys.stderr.isatty(),
    )  # fmt: skip
    print(json.dumps(record) if args.json else bench_report.table(record))
    if args.output:
        bench_report.save(record, args.output)
    if args.figure:
        from .analysis import bench_figure, figures

        figures.save(bench_figure.ratios(record), re.sub(r"\.(png|svg)$", "", str(args.figure)))
    return 130 if record.get("interrupted") else 0


@command(
    option("names", None, "figures to draw (default all)", nargs="*", metavar="FIGURE"),
    option("--data", "figures/data", "the folder with the records", metavar="DIR"),
    option("--corpus", "unicode-names", "the text, in figures that show one", metavar="NAME"),
    option("--output", "figures", "the folder for the pictures", metavar="DIR"),
    example="minilora figures truncation rates",
)
def figures(args: argparse.Namespace) -> int:
    """Draw the figures of the studies from their saved records.

    Each is a PNG, an SVG and a caption that says what it shows. The same records give the same bytes.
    """
    from .analysis import study_figures

    require_writable(Path(args.output))
    for path in study_figures.draw(args.names or None, args.data, args.output, args.corpus):
        print(path)
    return 0


@command(
    option("--primitive", None, "one primitive, entry by entry, in place of the whole table",
           type=one_of(*EXAMPLES), metavar="NAME"),
    option("--method", None, "one method in place of all three", type=one_of(*TOLERANCE), metavar="NAME"),
    SEED,
    example="minilora gradcheck --primitive gelu --method complex-step",
)  # fmt: skip
def gradcheck(args: argparse.Namespace) -> int:
    """Check every derivative by three other computations.

    None of them knows a derivative rule. Central differences and the complex step move one entry at a time, the
    directional test moves all of them at once. Every primitive is checked, then a whole transformer with LoRA. Exit
    code 1 when a check fails.
    """
    methods = [args.method] if args.method else list(TOLERANCE)
    if args.primitive:
        reports = [check_primitive(args.primitive, method, args.seed) for method in methods]
        print("\n\n".join(map(str, reports)))
        return 0 if all(reports) else 1
    print("The largest relative error, |tape - reference| / max |reference|, in float64\n")
    started = time.perf_counter()
    rows = print_checks("primitive", methods, EXAMPLES, lambda name, m: check_primitive(name, m, args.seed))
    print()
    function, groups = lora_transformer(args.seed)
    check = lambda group, m: ml.gradcheck(function, groups[group], m, rng=args.seed)
    rows += print_checks("LoRA transformer (2 blocks)", methods, groups, check)
    failed = rows.count(False)
    limits = ", ".join(f"{m} {TOLERANCE[m]:.0e}" for m in methods)
    print(f"\nTolerances: {limits}.")
    print("rounding: where the gradient is all but zero, the two differ by rounding alone.")
    print(f"{len(rows) - failed} of {len(rows)} pass, in {time.perf_counter() - started:.1f} s.")
    return 1 if failed else 0


@command(
    MODEL,
    option("--adapter", "runs/adapter.npz", "the adapter file, from finetune", metavar="FILE"),
    QUANTIZE,
    option("--output", "runs/merged.npz", "the model file to write", type=output_file, metavar="FILE"),
    BACKEND,
    example="minilora merge --adapter runs/adapter.npz --output runs/merged.npz",
)
def merge(args: argparse.Namespace) -> int:
    """Add an adapter into the weights; write a plain model file.

    W + (alpha/r) B A takes the place of W in every adapted layer, so the merged model costs what the base model costs.
    A quantised base becomes one of floats. Bottleneck adapters, prompts and prefixes cannot be merged.
    Prints how far the outputs of the file are from the adapter's.
    """
    model = load_model(args.model, args.quantize)
    ml.load_adapter(model, existing(args.adapter, "adapter", "minilora finetune writes one"))
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (8, model.context))
    with ml.no_grad():
        apart = model(tokens).numpy()  # (B, T, V)
        layers = len(active_adapter(model).modules)
        ml.merge_lora(model)
        ml.remove_lora(model)
        ml.save_model(model, args.output, merged=Path(args.adapter).name)
        merged = ml.load_model(args.output)(tokens).numpy()
    difference = float(np.abs(merged - apart).max())
    print(f"merged            {args.adapter} into {layers} layers of {args.model}")
    print(f"largest difference in outputs {difference:.1e}, where the largest output is {np.abs(apart).max():.1f}")
    print(f"saved             {args.output} ({args.output.stat().st_size:,} bytes)")
    print(f"use it            minilora generate --model {shlex.quote(str(args.output))}")
    return 0


@command(
    option("action", None, "release writes the students' version, grade grades what came back",
           type=one_of("release", "grade"), metavar="release|grade"),
    option("folder", None, "for grade: the submissions, STUDENT/ps1/NAME.ipynb or STUDENT/ps1.ipynb", nargs="?"),
    option("--output", "homework", "the folder for release, grades and gradebook", metavar="DIR"),
    option("--course", None, "the course (default notebooks/homework, here or in the checkout)", metavar="DIR"),
    option("--timeout", None, "seconds a cell may take (default the course's, 30)", type=whole(1), metavar="N"),
    example="minilora homework grade submissions --output homework",
)  # fmt: skip
def homework(args: argparse.Namespace) -> int:
    """Hand out the homework, or grade it, with nbgrader.

    Grading runs the students' code with your rights: read notebooks/homework/README.md first. What was graded before
    and has not changed is not run again. The exit code is 1 when a submission could not be graded.
    """
    from .homework import grade, release, save_table, table

    if args.action == "release":
        for path in release(args.output, args.course):
            print(path)
        return 0
    if args.folder is None:
        raise ValueError("grade what? minilora homework grade FOLDER takes the folder with the submissions")
    rows = grade(args.folder, args.output, args.course, args.timeout, progress=sys.stderr.isatty())
    print(table(rows))
    print(f"saved    {save_table(rows, Path(args.output) / 'grades.csv')}")
    print(f"by hand  cd {shlex.quote(args.output)} && jupyter lab   (nbgrader's menu, Formgrader)")
    return int(any(not row.cells for row in rows))


# --- What the commands share.


def existing(text: str, what: str, hint: str) -> Path:
    """The path of a file that is there. Raises FileNotFoundError with the closest name in its folder, or a hint."""
    path = Path(text)
    if path.is_file():
        return path
    beside = sorted(p.name for p in path.parent.glob("*.npz")) if path.parent.is_dir() else []
    if path.is_dir():
        raise IsADirectoryError(f"{text} is a folder, expected a {what} file")
    close = difflib.get_close_matches(path.name, [*beside, *(["base"] if what == "model" else [])], 1)
    hint = f"did you mean {close[0] if close[0] == 'base' else str(path.with_name(close[0]))!r}?" if close else hint
    raise FileNotFoundError(f"no {what} file {text!r}; {hint}")


def load_model(name: str, kind: str | None = None) -> ml.GPT:
    """The model of this name or file, its linear layers quantised where a kind is given.

    Raises ValueError when its vocabulary is not the characters of the corpora.
    """
    if name != "base":
        existing(name, "model", "'base' is the one that comes with minilora")
    model = ml.load_model(name)
    if model.config.vocab_size != len(VOCABULARY):
        raise ValueError(
            f"{name} has a vocabulary of {model.config.vocab_size}, expected the {len(VOCABULARY)} characters"
        )
    return ml.quantize_model(model, kind) if kind else model


def new_finetune(args: argparse.Namespace) -> ml.Run:
    """The base model, adapted or not, at the start of its training on a corpus."""
    model = load_model(args.model, args.quantize)
    if args.method != "full":
        ml.add_adapter(model, METHODS[args.method](**method_options(args)), rng=args.seed)
    elif args.quantize:
        raise ValueError(f"--quantize {args.quantize} --method full: quantised weights cannot be trained; use lora")
    corpus = ml.load_corpus(args.corpus).require(model.context)
    lr = args.lr or RATES.get(args.method, LEARNING_RATE["lora"])
    return ml.Run(model, corpus, ml.Settings(steps=args.steps, batch_size=args.batch, lr=lr, seed=args.seed))


def method_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the configuration of the chosen method takes of the command line."""
    if args.method in ("lora", "dora"):
        low_rank = {"rank": args.rank, "alpha": args.alpha, "target_modules": names_in(args.targets)}
        return {**low_rank, "dropout": args.lora_dropout, "rank_stabilized": args.rslora}
    if args.method in ("houlsby", "pfeiffer"):
        return {"bottleneck": args.bottleneck}
    if args.method in ("prompt", "prefix"):
        return {"tokens": args.virtual}
    return {"blocks": args.blocks} if args.method == "last-blocks" else {}


def resume(args: argparse.Namespace) -> ml.Run:
    """The run in a checkpoint. Raises ValueError when the command line asks for other settings than it holds."""
    free = ("--resume", "--checkpoint", "--output", "--backend")
    fixed = [flag for flag, told in args.command.options if flag not in free]
    given = [flag for flag in fixed if getattr(args, _dest(flag)) != _default(args.command, flag)]
    if given and set(given) != {"--model"}:
        raise ValueError(f"{' and '.join(given)} cannot change when a run goes on: the checkpoint holds them")
    return load_checkpoint(existing(args.resume, "checkpoint", "Ctrl-C in a training writes one"))


def _dest(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _default(command: Command, flag: str) -> Any:
    return dict(command.options)[flag]["default"]


def describe_run(run: ml.Run, method: str) -> None:
    """What is trained on what: three lines."""
    model, corpus, s = run.model, run.corpus, run.settings
    trained = model.count(trainable=True)
    total = sum(p.size for p in base_parameters(model).values())
    total += sum(layer.quantized.size for _, layer in model.named_modules() if isinstance(layer, QuantizedLinear))
    print(f"corpus            {corpus.name}: {len(corpus.train):,} characters, {len(corpus.validation):,} held out")
    print(f"training          {method}: {trained:,} trained, base model {total:,} ({100 * trained / total:.1f} %)")
    print(f"steps             {s.steps:,} of {s.batch_size} x {model.context} characters, "
          f"learning rate {s.lr:g}, seed {s.seed}", flush=True)  # fmt: skip


def train_or_save(run: ml.Run, args: argparse.Namespace, name: str, output: Path) -> bool:
    """Train to the end; or, at Ctrl-C, say where the run is saved and how to go on, and return False."""
    beside = output.with_name(f"{output.stem}.checkpoint.npz")
    checkpoint = args.checkpoint or Path(args.resume or beside)
    ml.train(run, checkpoint, progress=sys.stderr.isatty())
    if run.interrupted:
        words = f"minilora {name} --resume {shlex.quote(str(checkpoint))} --output {shlex.quote(str(output))}"
        say_error(f"stopped after step {run.step:,} of {run.settings.steps:,} and saved; to go on: {words}")
        return False
    if not args.checkpoint:
        checkpoint.unlink()  # nobody asked for it, and the result is about to be written
    return True


def write_record(run: ml.Run, output: Path, facts: dict, loss: float, seconds: float) -> Path:
    """The .json beside a pretrained model: how it was made and how the loss fell."""
    record = {
        **facts,
        "validation_loss": round(loss, 5),
        "parameters": run.model.count(),
        "config": asdict(run.model.config),
        "settings": asdict(run.settings),
        "seconds": round(seconds, 1),
        "versions": {"minilora": ml.__version__, "python": platform.python_version(), "numpy": np.__version__},
        "validation": run.validation,
        "training": run.history,
    }
    text = json.dumps(record, indent=2)
    text = re.sub(r"\[[^\]{]*\]", lambda found: " ".join(found[0].split()), text)  # a list of numbers is one line
    return write_beside(output.with_suffix(".json"), lambda file: file.write(f"{text}\n".encode()))


def say_sample(model: ml.GPT, seed: int) -> None:
    """Print a few lines that the model writes."""
    print("a sample")
    print(quoted(sample(model, "", 200, seed), 5))


def check_primitive(name: str, method: str, seed: int) -> Any:
    """The gradient report of a primitive's example, its inputs named as the example names them."""
    example = EXAMPLES[name]
    names = list(inspect.signature(example.call).parameters)[1:]
    function, inputs = example.function(PRIMITIVES[name]), example.inputs(np.random.default_rng(seed))
    return ml.gradcheck(function, inputs, method, names=names, rng=seed)


def lora_transformer(seed: int) -> tuple[Callable, dict[str, list]]:
    """A small transformer with LoRA on every linear layer: (loss function, {name: its tensors in all blocks}).

    Here the base weights want gradients as well, so that every derivative is checked; B is drawn, for at B = 0 the
    gradient of A would be zero.
    """
    rng = np.random.default_rng(seed)
    model: Any = ml.GPT(ml.GPTConfig(vocab_size=7, block_size=5, n_layer=2, n_head=2, n_embd=4), rng).astype("float64")
    ml.add_lora(model, ml.LoRAConfig(rank=2, alpha=1, target_modules=("*",)), rng)
    tokens, targets = rng.integers(0, 7, (2, 2, 5))
    groups: dict[str, list] = {}
    for name, p in model.named_parameters():
        p.data += rng.normal(0, 0.3, p.shape)  # away from zero, where a wrong gradient could hide
        p.requires_grad = True
        groups.setdefault(re.sub(r"^blocks\.\d+\.", "", name), []).append(p)
    return lambda *tensors: model.loss(tokens, targets), groups


def print_checks(title: str, methods: list[str], rows: Any, check: Callable) -> list[bool]:
    """A table with a line for each row and a column for each method; returns what passed."""
    print(f"{title:<28}" + "".join(f"{method:>14}" for method in methods))
    passed = []
    for row in rows:
        reports = [check(row, method) for method in methods]
        verdict = "pass" if all(reports) else "FAIL"
        errors = ["rounding" if r.passed and r.relative > r.tolerance else f"{r.relative:.1e}" for r in reports]
        print(f"{row:<28}" + "".join(f"{error:>14}" for error in errors) + f"  {verdict}", flush=True)
        passed.append(all(reports))
    return passed


# --- From words to a command.


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


def say_error(words: str) -> None:
    """One line on stderr, whatever is in the words."""
    print("minilora: " + " ".join(words.split()), file=sys.stderr)


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Inside the block a warning is one line. NumPy's are left out: a loss that is not finite is reported as such."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.filterwarnings("ignore", category=RuntimeWarning)
        warnings.showwarning = lambda message, *_: say_error(f"warning: {message}")
        yield


def reason(error: Exception) -> str:
    """What an error says to a person."""
    if isinstance(error, MemoryError):
        return f"not enough memory ({error or 'none left'}): a smaller model, --batch or --context needs less"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


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
