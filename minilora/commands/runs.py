"""What pretraining and fine-tuning share: a run to begin or to go on with, its end, and what is said of it."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import minilora as ml

from ..adapters.qlora import QuantizedLinear
from ..adapters.state import base_parameters
from ..demo import quoted, sample
from ..training.checkpoint import load_checkpoint
from .models import existing
from .options import Command
from .words import say_error


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


def say_sample(model: ml.GPT, seed: int) -> None:
    """Print a few lines that the model writes."""
    print("a sample")
    print(quoted(sample(model, "", 200, seed), 5))
