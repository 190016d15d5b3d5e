"""`minilora finetune`."""

import argparse
import shlex
from pathlib import Path
from typing import Any

import numpy as np

import minilora as ml

from ..adapters.adapter import METHODS
from ..adapters.initialise import GRADIENT
from ..adapters.lora import LoRAConfig
from ..adapters.state import active_adapter
from ..demo import LEARNING_RATE
from ..nn.architectures import find
from ..nn.storage import BASE
from ..training.corpus import BUILT_IN
from ..training.examples import Examples
from ..training.loop import length_of
from .models import base_name, is_pretrained, load_model, with_tokenizer
from .options import (
    ACCUMULATE,
    BACKEND,
    CHECKPOINT,
    CHECKPOINT_BLOCKS,
    CHECKPOINT_EVERY,
    DTYPE,
    FRACTION,
    MODEL,
    QUANTIZE,
    RATE,
    RESUME,
    SEED,
    SHARD,
    TASKS,
    command,
    convert,
    destination,
    dtype_of,
    names_in,
    one_of,
    option,
    refuse_other_methods,
    whole,
)
from .outputs import output_file, output_folder, output_place
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
    with_others,
)

HIGH = ("prompt", "prefix", "vera", "ia3")  # few numbers that must move far
RATES = dict.fromkeys(("full", "last-blocks"), LEARNING_RATE["full"]) | dict.fromkeys(HIGH, 0.1)
OTHERS_RATES, OTHERS_RATE = dict.fromkeys(("full", "last-blocks"), 1e-5) | dict.fromkeys(HIGH, 0.01), 5e-4
LOW_RANK = ("--rank", "--alpha", "--targets", "--lora-dropout", "--rslora")
BESIDE = ("--rank", "--targets", "--lora-dropout")
OUTPUT: dict[str, Any] = {"type": output_file, "metavar": "FILE"}
FOLDER: dict[str, Any] = {"type": output_folder, "metavar": "FOLDER"}
TAKES = {  # which options a method takes, of those that only some take
    "lora": (*LOW_RANK, "--init"),
    "dora": LOW_RANK,
    "lora-fa": LOW_RANK,
    "vera": BESIDE,
    "miss": BESIDE,
    "ia3": ("--targets",),
    "houlsby": ("--bottleneck",),
    "pfeiffer": ("--bottleneck",),
    "prompt": ("--virtual",),
    "prefix": ("--virtual",),
    "last-blocks": ("--blocks",),
}
THEIR_OWN = {"vera": ("rank",), "ia3": ("targets",)}  # what has another default in the method's configuration


@command(
    option("--corpus", "unicode-names", f"{', '.join(BUILT_IN)}, a text file, or pairs in a .jsonl file (prompt and "
           "completion, or messages), of which the answers count", metavar="NAME"),
    option("--task", None, "classify: learn labels, of the texts in a .jsonl file (text and label), or, where none is "
           "given, the categories of Unicode's characters from their names; sql, repair: learn to answer what "
           "minilora evaluate asks", type=one_of("classify", *TASKS), metavar="NAME"),
    MODEL,
    option("--method", "lora", "full trains all weights; beside frozen ones train lora, dora, lora-fa, vera, miss, "
           "ia3, houlsby, pfeiffer, prompt and prefix; bitfit and last-blocks train some", type=one_of(*METHODS),
           metavar="NAME"),
    option("--rank", 8, "r of LoRA and what is made like it, the width of the thin matrices (of vera 256)",
           type=whole(1), metavar="N"),
    option("--alpha", 16.0, "LoRA's scale: the update counts alpha / r", type=RATE, metavar="X"),
    option("--targets", "*", "layers to adapt, by commas, such as q_proj,v_proj; * is every linear layer (default of "
           "ia3 k_proj,v_proj,down_proj)", type=names_in, metavar="NAMES"),
    option("--lora-dropout", 0.0, "the share of LoRA's inputs dropped in training", type=FRACTION, metavar="P"),
    option("--rslora", False, "scale by alpha / sqrt(r)", action="store_true"),
    option("--init", "kaiming", "how lora's A and B begin: kaiming, gaussian, pissa, or lora-ga, from the loss's "
           "gradient on four batches", type=one_of(*LoRAConfig.inits), metavar="NAME"),
    option("--bottleneck", 16, "the width of houlsby's and pfeiffer's adapters", type=whole(1), metavar="N"),
    option("--virtual", 16, "virtual tokens of prompt and prefix", type=whole(1), metavar="N"),
    option("--blocks", 2, "how many blocks last-blocks trains", type=whole(1), metavar="N"),
    QUANTIZE,
    DTYPE,
    option("--steps", 200, "training steps", type=whole(1), metavar="N"),
    option("--lr", None, f"the highest learning rate (default {RATES['full']:g} for full and last-blocks, "
           f"{RATES['prompt']:g} for {', '.join(HIGH)}, {LEARNING_RATE['lora']:g} for others; for a model that others "
           f"trained {OTHERS_RATES['full']:g}, {OTHERS_RATES['prompt']:g} and {OTHERS_RATE:g})",
           type=RATE, metavar="X"),
    option("--batch", None, "windows of text a step (default 16; of a model that others trained 1, or 8 examples)",
           type=whole(1), metavar="N"),
    option("--window", None, "tokens of a text at a time (default the context, or 256 where it is longer)",
           type=whole(1), metavar="N"),
    ACCUMULATE,
    CHECKPOINT_BLOCKS,
    SHARD,
    SEED,
    option("--output", None, "the adapter or model file (default runs/adapter.npz or runs/full.npz), or the folder for "
           "all the weights of a model that others trained (default runs/full)", type=output_place, metavar="FILE"),
    CHECKPOINT,
    CHECKPOINT_EVERY,
    RESUME,
    BACKEND,
    example="minilora finetune --corpus unicode-names --rank 8 --output runs/names.npz",
)  # fmt: skip
@with_others
def finetune(args: argparse.Namespace) -> int:
    """Adapt a trained model to a new text, by LoRA, an alternative to it, or in full.

    The result is a small adapter file that goes with the base model; full training's is a whole new model file.
    """
    if not args.resume:
        refuse_other_methods(args, args.method, TAKES)
        output_of(args, args.method != "full")  # what cannot be written costs nothing now
    run = resume(args) if args.resume else new_finetune(args)
    args.model, args.quantize, dtype = base_of(run)
    adapted, others = bool(getattr(run.model, "adapters", None)), is_pretrained(args.model)
    output = output_of(args, adapted)
    refuse_losses(args, run.corpus.name, [output], BASE if args.model == "base" else args.model)
    describe_run(run, active_adapter(run.model).kind if adapted else "all weights")

    def save() -> None:
        if adapted:
            ml.save_adapter(run.model, output)
        elif others:
            ml.save_pretrained(run.model, output)
        else:
            ml.save_model(run.model, output, corpus=Path(run.corpus.name).name, steps=run.step)

    def tell() -> None:
        first, last = run.validation["loss"][0], run.validation["loss"][-1]
        print(f"validation loss   {first:.3f} before, {last:.3f} after {run.step:,} steps, in nats per {unit(run)}")
        if run.model.labels:
            say_accuracy(run)
        else:
            say_sample(run.model, run.settings.seed)
        size = sum(p.stat().st_size for p in (output.iterdir() if output.is_dir() else [output]))
        print(f"saved             {output} ({size:,} bytes)")
        given = {"--model": args.model != "base" and args.model, "--quantize": args.quantize, "--dtype": dtype}
        base = "".join(f"{flag} {shlex.quote(value)} " for flag, value in given.items() if value)
        flags = f"{base}--adapter" if adapted else "--model"
        place = repr(str(output))
        model = (
            f"ml.load_adapter(model, {place})" if adapted else f"ml.load_{'pretrained' if others else 'model'}({place})"
        )
        verb = f"evaluate --task {run.corpus.name}" if run.corpus.name in TASKS else "generate"
        use = f"minilora {verb} {flags} {shlex.quote(str(output))}"
        use = f"ml.classify({model}, texts)" if run.model.labels else use
        print(f"use it            {use}")

    return finish(args, run, output, save, tell)


def output_of(args: argparse.Namespace, adapted: bool) -> Path:
    """Where the result goes: an adapter is a file, and so is a model of ours, a model that others trained a folder."""
    if adapted:
        return convert("--output", OUTPUT, str(args.output or "runs/adapter.npz"))
    if is_pretrained(args.model):
        return convert("--output", FOLDER, str(args.output or "runs/full"))
    return convert("--output", OUTPUT, str(args.output or "runs/full.npz"))


def base_of(run: ml.Run) -> tuple[str, str | None, str | None]:
    """The name of a run's base model, as it is to be given here, how it was quantised, and how it is held."""
    return base_name(run.notes), run.notes.get("quantize"), run.notes.get("dtype")


def new_finetune(args: argparse.Namespace) -> ml.Run:
    """The base model, adapted or not, at the start of its training on a corpus."""
    dtype, others, more = dtype_of(args), is_pretrained(args.model), {}
    model = load_model(args.model, args.quantize, dtype)
    with_tokenizer(model, args.model)
    if args.task == "classify":
        refuse_no_head(args, model)
        virtual = args.virtual if "--virtual" in TAKES.get(args.method, ()) else 0
        corpus = read_labels(args.corpus if "corpus" in args.given else None, model, virtual)
        more = new_head(model, corpus.labels, "--targets" in TAKES.get(args.method, ()))
    if args.method == "lora" and args.init == GRADIENT:
        add_by_gradient(args, model)
    elif args.method != "full":
        ml.add_adapter(model, METHODS[args.method](**method_options(args), **more), rng=args.seed)
    elif args.quantize:
        raise ValueError(f"--quantize {args.quantize} --method full: quantised weights cannot be trained; use lora")
    elif dtype not in (None, "float32", "float64"):
        raise ValueError(f"--dtype {dtype} --method full: weights held in 16 bits or fewer stay frozen; use lora")
    if args.task != "classify":
        corpus = read_text(args, model)
    rates, rate = (OTHERS_RATES, OTHERS_RATE) if others else (RATES, LEARNING_RATE["lora"])
    settings = ml.Settings(
        steps=args.steps,
        batch_size=batch_of(args, corpus),
        lr=args.lr or rates.get(args.method, rate),
        seed=args.seed,
        checkpoint_every=args.checkpoint_every,
        evaluation_windows=16 if others else 64,
        accumulate=args.accumulate,
        checkpoint_blocks=args.checkpoint_blocks,
        shard=args.shard,
        window=args.window,
    )
    run = ml.Run(model, corpus, settings)
    place = str(Path(args.model).absolute()) if Path(args.model).exists() else args.model
    run.notes = {"model": args.model, "place": place, "quantize": args.quantize, "dtype": dtype}
    return run


def read_text(args: argparse.Namespace, model: Any) -> Any:
    """What there is to learn, where it is no labels."""
    return read_task(args, model) if args.task in TASKS else read_corpus(args.corpus, model, args.window)


def batch_of(args: argparse.Namespace, corpus: Any) -> int:
    """How many windows or examples a step takes."""
    return args.batch or (16 if not is_pretrained(args.model) else 8 if isinstance(corpus, Examples) else 1)


def add_by_gradient(args: argparse.Namespace, model: Any) -> None:
    """LoRA that begins from the gradient on four batches of the text. Raises ValueError for labels."""
    if args.task == "classify":
        raise ValueError("--init lora-ga --task classify: a new head's gradient says nothing yet; use kaiming or pissa")
    corpus, rng = read_text(args, model), np.random.default_rng(args.seed)
    length = length_of("finetune", model, corpus, args.window)
    batches = [corpus.batch(batch_of(args, corpus), length, rng)[:2] for _ in range(4)]
    ml.add_lora_ga(model, LoRAConfig(**method_options(args)), batches, rng=args.seed)


def refuse_no_head(args: argparse.Namespace, model: Any) -> None:
    """Raises ValueError for a method that trains no head for labels, and for a result that could not be written."""
    came = f"--task {args.task} --method {args.method}"
    if args.method != "full" and "modules_to_save" not in METHODS[args.method].__dataclass_fields__:
        raise ValueError(f"{came}: lora and what is made like it, ia3, prompt, prefix and full train its head")
    if args.method == "full" and is_pretrained(args.model) and find(model).causal:
        raise ValueError(f"{came}: a decoder that others trained is written without a head for labels; use lora")


def new_head(model: Any, labels: tuple[str, ...], exclude: bool) -> dict[str, Any]:
    """Give a model a head for labels: -> what a configuration says of it, so that all that is new is saved.

    exclude: whether the method has targets, of which what is trained in full is none.
    """
    had = getattr(model, "pooler", None) is not None
    ml.add_classifier(model, labels)
    if had or getattr(model, "pooler", None) is None:
        return {"modules_to_save": ("classifier",)}
    return {"modules_to_save": ("classifier", "pooler"), **({"exclude_modules": ("pooler",)} if exclude else {})}


def method_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the configuration of the chosen method takes of the command line."""
    names = {"targets": "target_modules", "lora_dropout": "dropout", "rslora": "rank_stabilized", "virtual": "tokens"}
    own = [name for name in THEIR_OWN.get(args.method, ()) if name not in args.given]
    taken = [name for flag in TAKES.get(args.method, ()) if (name := destination(flag)) not in own]
    return {names.get(name, name): getattr(args, name) for name in taken}
