"""`minilora merge`."""

import argparse
import shlex
from pathlib import Path

import numpy as np

import minilora as ml

from ..adapters.state import active_adapter
from ..nn.storage import BASE
from .models import load_adapted
from .options import BACKEND, MODEL, QUANTIZE, command, option
from .outputs import output_file, refuse_overwriting


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
    inputs = [("the model", BASE if args.model == "base" else args.model), ("the adapter", args.adapter)]
    refuse_overwriting([("--output", args.output)], inputs)
    model = load_adapted(args.model, args.quantize, args.adapter)
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (8, model.context))
    with ml.no_grad():
        apart = model(tokens).numpy()  # (B, T, V)
        layers = len(active_adapter(model).modules)
        ml.merge_lora(model)
        ml.remove_lora(model)
        ml.save_model(model, args.output, merged=Path(args.adapter).name)
        merged = (ml.load_model(args.output) if args.output.is_file() else model)(tokens).numpy()
    difference = float(np.abs(merged - apart).max())
    print(f"merged            {args.adapter} into {layers} layers of {args.model}")
    print(f"largest difference in outputs {difference:.1e}, where the largest output is {np.abs(apart).max():.1f}")
    print(f"saved             {args.output} ({args.output.stat().st_size:,} bytes)")
    print(f"use it            minilora generate --model {shlex.quote(str(args.output))}")
    return 0
