"""`minilora finetune`."""

import argparse
import shlex
from pathlib import Path
from typing import Any

import minilora as ml

from ..adapters.adapter import METHODS
from ..adapters.state import active_adapter
from ..demo import LEARNING_RATE
from ..nn.storage import BASE
from ..training.corpus import BUILT_IN
from .models import load_model
from .options import (
    ACCUMULATE,
    BACKEND,
    BATCH,
    CHECKPOINT,
    CHECKPOINT_BLOCKS,
    CHECKPOINT_EVERY,
    FRACTION,
    MODEL,
    QUANTIZE,
    RATE,
    RESUME,
    SEED,
    TASKS,
    command,
    convert,
    destination,
    names_in,
    one_of,
    option,
    refuse_other_methods,
    whole,
)
from .outputs import output_file, same
from .runs import (
    describe_run,
    finish,
    read_corpus,
    read_labels,
    read_task,
    refuse_losses,
    resume,
    say_accuracy,
    say_sample,
    unit,
)

RATES = {"full": LEARNING_RATE["full"], "last-blocks": LEARNING_RATE["full"], "prompt": 0.1, "prefix": 0.1}
LOW_RANK = ("--rank", "--alpha", "--targets", "--lora-dropout", "--rslora")
OUTPUT: dict[str, Any] = {"type": output_file, "metavar": "FILE"}
TAKES = {  # which options a method takes, of those that only some take
    "lora": LOW_RANK,
    "dora": LOW_RANK,
    "houlsby": ("--bottleneck",),
    "pfeiffer": ("--bottleneck",),
    "prompt": ("--virtual",),
    "prefix": ("--virtual",),
    "last-blocks": ("--blocks",),
}


@command(
    option("--corpus", "unicode-names", f"{', '.join(BUILT_IN)}, a text file, or pairs in a .jsonl file (prompt and "
           "completion, or messages), of which the answers count", metavar="NAME"),
    option("--task", None, "classify: learn labels, of the texts in a .jsonl file (text and label), or, where none is "
           "given, the categories of Unicode's characters from their names; sql, repair: learn to answer what "
           "minilora evaluate asks", type=one_of("classify", *TASKS), metavar="NAME"),
    MODEL,
    option("--method", "lora", "full trains all weights; beside frozen ones train lora, dora, houlsby, pfeiffer, "
           "prompt and prefix; bitfit and last-blocks train some", type=one_of(*METHODS), metavar="NAME"),
    option("--rank", 8, "LoRA's and DoRA's r, the width of the thin matrices", type=whole(1), metavar="N"),
    option("--alpha", 16.0, "LoRA's scale: the update counts alpha / r", type=RATE, metavar="X"),
    option("--targets", "*", "layers to adapt, by commas, such as q_proj,v_proj; * is every linear layer",
           type=names_in, metavar="NAMES"),
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
    ACCUMULATE,
    CHECKPOINT_BLOCKS,
    SEED,
    option("--output", None, "the adapter or model file (default runs/adapter.npz or runs/full.npz)", **OUTPUT),
    CHECKPOINT,
    CHECKPOINT_EVERY,
    RESUME,
    BACKEND,
    example="minilora finetune --corpus unicode-names --rank 8 --output runs/names.npz",
)  # fmt: skip
def finetune(args: argparse.Namespace) -> int:
    """Adapt a trained model to a new text, by LoRA, an alternative to it, or in full.

    The result is a small adapter file that goes with the base model; full training's is a whole new model file.
    """
    if not args.resume:
        refuse_other_methods(args, args.method, TAKES)
    run = resume(args) if args.resume else new_finetune(args)
    args.model, args.quantize = base_of(run)
    adapted = bool(getattr(run.model, "adapters", None))
    output = args.output or convert("--output", OUTPUT, "runs/adapter.npz" if adapted else "runs/full.npz")
    refuse_losses(args, run.corpus.name, [output], BASE if args.model == "base" else args.model)
    describe_run(run, active_adapter(run.model).kind if adapted else "all weights")

    def save() -> None:
        if adapted:
            ml.save_adapter(run.model, output)
        else:
            ml.save_model(run.model, output, corpus=Path(run.corpus.name).name, steps=run.step)

    def tell() -> None:
        first, last = run.validation["loss"][0], run.validation["loss"][-1]
        print(f"validation loss   {first:.3f} before, {last:.3f} after {run.step:,} steps, in nats per {unit(run)}")
        if run.model.labels:
            say_accuracy(run)
        else:
            say_sample(run.model, run.settings.seed)
        print(f"saved             {output} ({output.stat().st_size:,} bytes)")
        base = f"--model {shlex.quote(args.model)} " if args.model != "base" else ""
        base += f"--quantize {args.quantize} " if args.quantize else ""
        flags = f"{base}--adapter" if adapted else "--model"
        place = repr(str(output))
        model = f"ml.load_adapter(model, {place})" if adapted else f"ml.load_model({place})"
        verb = f"evaluate --task {run.corpus.name}" if run.corpus.name in TASKS else "generate"
        use = f"minilora {verb} {flags} {shlex.quote(str(output))}"
        use = f"ml.classify({model}, texts)" if run.model.labels else use
        print(f"use it            {use}")

    return finish(args, run, output, save, tell)


def base_of(run: ml.Run) -> tuple[str, str | None]:
    """The name of a run's base model, as it is to be given here, and how it was quantised."""
    name, place = run.notes.get("model", "base"), run.notes.get("place", "")
    return name if name == "base" or same(name, place) else place, run.notes.get("quantize")


def new_finetune(args: argparse.Namespace) -> ml.Run:
    """The base model, adapted or not, at the start of its training on a corpus."""
    model, more = load_model(args.model, args.quantize), {}
    if args.task == "classify":
        if args.method not in ("full", "lora", "dora"):
            raise ValueError(f"--task {args.task} --method {args.method}: its head is trained by lora, dora and full")
        corpus = read_labels(args.corpus if "corpus" in args.given else None, model)
        ml.add_classifier(model, corpus.labels)
        more = {"modules_to_save": ("classifier",)}
    if args.method != "full":
        ml.add_adapter(model, METHODS[args.method](**method_options(args), **more), rng=args.seed)
    elif args.quantize:
        raise ValueError(f"--quantize {args.quantize} --method full: quantised weights cannot be trained; use lora")
    if args.task in TASKS:
        corpus = read_task(args, model)
    elif args.task is None:
        corpus = read_corpus(args.corpus, model)
    lr = args.lr or RATES.get(args.method, LEARNING_RATE["lora"])
    settings = ml.Settings(
        steps=args.steps,
        batch_size=args.batch,
        lr=lr,
        seed=args.seed,
        checkpoint_every=args.checkpoint_every,
        accumulate=args.accumulate,
        checkpoint_blocks=args.checkpoint_blocks,
    )
    run = ml.Run(model, corpus, settings)
    run.notes = {"model": args.model, "place": str(Path(args.model).absolute()), "quantize": args.quantize}
    return run


def method_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the configuration of the chosen method takes of the command line."""
    names = {"targets": "target_modules", "lora_dropout": "dropout", "rslora": "rank_stabilized", "virtual": "tokens"}
    taken = [destination(flag) for flag in TAKES.get(args.method, ())]
    return {names.get(name, name): getattr(args, name) for name in taken}
