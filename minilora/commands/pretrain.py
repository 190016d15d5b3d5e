"""`minilora pretrain`."""

import argparse
import contextlib
import json
import os
import platform
import re
import shlex
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

import minilora as ml

from ..nn.architectures import from_gpt_config, parameters, size
from ..nn.characters import VOCABULARY
from ..nn.files import write_beside
from ..nn.storage import Blank
from ..training.corpus import BUILT_IN
from .options import (
    ACCUMULATE,
    BACKEND,
    BATCH,
    CHECKPOINT,
    CHECKPOINT_BLOCKS,
    CHECKPOINT_EVERY,
    FRACTION,
    RATE,
    RESUME,
    SEED,
    SHARD,
    command,
    number,
    option,
    whole,
)
from .outputs import output_file
from .runs import describe_run, finish, refuse_losses, resume, say_sample, with_others


@command(
    option("--corpus", "python-docs", f"{', '.join(BUILT_IN)}, or a text file", metavar="NAME"),
    option("--steps", 3000, "training steps", type=whole(1), metavar="N"),
    option("--lr", 3e-3, "the highest learning rate", type=RATE, metavar="X"),
    option("--weight-decay", 0.1, "AdamW's", type=number(0, 1e6, "0 or more"), metavar="X"),
    BATCH,
    ACCUMULATE,
    CHECKPOINT_BLOCKS,
    SHARD,
    option("--layers", 4, "blocks", type=whole(1), metavar="N"),
    option("--heads", 4, "attention heads a block", type=whole(1), metavar="N"),
    option("--width", 128, "n_embd", type=whole(1), metavar="N"),
    option("--context", 128, "the longest text it sees at once, in characters", type=whole(1), metavar="N"),
    option("--dropout", 0.05, "the share of values dropped in training", type=FRACTION, metavar="P"),
    SEED,
    option("--output", "runs/base.npz", "the model file", type=output_file, metavar="FILE"),
    CHECKPOINT,
    CHECKPOINT_EVERY,
    RESUME,
    BACKEND,
    example="minilora pretrain --corpus python-docs --output runs/base.npz",
)
@with_others
def pretrain(args: argparse.Namespace) -> int:
    """Train a transformer from nothing on a text.

    Writes the model in float16, and beside it a .json with the settings, the loss curve and the final validation loss.
    """
    output = args.output
    record = output.with_suffix(".json") if output.is_file() or not output.exists() else None  # a device has no beside
    run = resume(args) if args.resume else new_pretraining(args)
    if getattr(run.model, "adapters", None):
        raise ValueError(f"{args.resume} is a LoRA run; go on with: minilora finetune --resume {args.resume}")
    refuse_losses(args, run.corpus.name, [output, *([record] if record else [])])
    if record:
        require_own(record)
    describe_run(run, "from nothing")
    started = time.perf_counter()
    made: dict[str, Any] = {}

    def save() -> None:
        seconds = time.perf_counter() - started
        model = made["model"] = as_stored(run.model)
        facts: dict[str, Any] = {"corpus": Path(run.corpus.name).name, "python": platform.python_version()}
        facts |= {"steps": run.step, "seed": run.settings.seed}
        ml.save_model(model, output, dtype="float16", **facts)
        print("scoring           the whole validation text", flush=True)
        made["loss"] = ml.evaluate(model, run.corpus)
        if record:
            write_record(run, record, facts, made["loss"], seconds)

    def tell() -> None:
        print(f"validation loss   {made['loss']:.4f} nats per character, on the whole validation text, in float16")
        say_sample(made["model"], run.settings.seed)
        print(f"saved             {output} ({output.stat().st_size:,} bytes){f' and {record}' if record else ''}")
        print(f"use it            minilora generate --model {shlex.quote(str(output))}")

    return finish(args, run, output, save, tell)


def as_stored(model: ml.GPT) -> ml.GPT:
    """The model as its file has it: rounded to float16, and without the dropout, which was for this training."""
    stored = ml.GPT(replace(model.config, dropout=0.0), Blank())
    stored.load_state_dict({name: value.astype("float16") for name, value in model.state_dict().items()})
    return stored


def new_pretraining(args: argparse.Namespace) -> ml.Run:
    """A model of the sizes that were asked for, at the start of its training."""
    sizes = ml.GPTConfig(len(VOCABULARY), args.context, args.layers, args.heads, args.width, args.dropout)
    require_memory(sizes)
    corpus = ml.load_corpus(args.corpus).require(args.context)
    settings = ml.Settings(
        steps=args.steps, batch_size=args.batch, lr=args.lr, warmup=args.steps // 20, seed=args.seed,
        weight_decay=args.weight_decay, evaluate_every=max(1, args.steps // 40),
        checkpoint_every=args.checkpoint_every, accumulate=args.accumulate,
        checkpoint_blocks=args.checkpoint_blocks,
        shard=args.shard,
    )  # fmt: skip
    return ml.Run(ml.GPT(sizes, rng=args.seed), corpus, settings)


def require_memory(sizes: ml.GPTConfig) -> None:
    """Raises MemoryError when a model of these sizes cannot be trained on this machine, before it is begun."""
    one, two = (size(parameters(from_gpt_config(replace(sizes, n_layer=n)))) for n in (1, 2))
    count = one + (sizes.n_layer - 1) * (two - one)
    needed = 16 * count  # float32: the weight, its gradient and AdamW's two moments
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else needed
    if needed > there:
        raise MemoryError(f"{count:,} parameters take {needed / 2**30:,.0f} GiB to train, of {there / 2**30:,.0f}")


def require_own(record: Path) -> None:
    """Raises ValueError when a file is in the record's place that is no record of a pretraining."""
    if record.exists():
        with contextlib.suppress(ValueError):
            if {"validation_loss", "config", "settings"} <= set(json.loads(record.read_bytes())):
                return
        raise ValueError(
            f"the record beside --output would overwrite {str(record)!r}, which is none; name another file"
        )


def write_record(run: ml.Run, path: Path, facts: dict, loss: float, seconds: float) -> Path:
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
    return write_beside(path, lambda file: file.write(f"{text}\n".encode()))
