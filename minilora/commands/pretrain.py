"""`minilora pretrain`."""

import argparse
import json
import platform
import re
import shlex
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

import minilora as ml

from ..nn.storage import write_beside
from ..training.corpus import BUILT_IN, VOCABULARY
from .options import (
    BACKEND,
    BATCH,
    CHECKPOINT,
    FRACTION,
    RATE,
    RESUME,
    SEED,
    command,
    number,
    option,
    output_file,
    whole,
)
from .runs import describe_run, resume, say_sample, train_or_save


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
