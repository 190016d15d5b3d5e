"""`minilora merge`."""

import argparse
import shlex
from pathlib import Path
from typing import Any

import numpy as np

import minilora as ml

from ..adapters.state import active_adapter
from ..nn.storage import BASE
from .models import is_pretrained, load_adapted
from .options import BACKEND, DTYPE, MODEL, QUANTIZE, command, convert, dtype_of, option
from .outputs import output_file, output_folder, output_place, refuse_overwriting

OURS: dict[str, Any] = {"type": output_file, "metavar": "FILE"}
OTHERS: dict[str, Any] = {"type": output_folder, "metavar": "FOLDER"}


@command(
    MODEL,
    option("--adapter", "runs/adapter.npz", "the adapter: a file from finetune, or PEFT's folder", metavar="FILE"),
    QUANTIZE,
    DTYPE,
    option("--output", None, "the model file to write (default runs/merged.npz), or, for a model that others trained, "
           "the Hugging Face folder (default runs/merged)", type=output_place, metavar="FILE"),
    BACKEND,
    example="minilora merge --adapter runs/adapter.npz --output runs/merged.npz",
)  # fmt: skip
def merge(args: argparse.Namespace) -> int:
    """Add an adapter into the weights; write a plain model.

    W + (alpha/r) B A takes the place of W in every adapted layer, so the merged model costs what the base model costs.
    A quantised base becomes one of floats. Bottleneck adapters, prompts and prefixes cannot be merged.
    Prints how far the outputs of what is written are from the adapter's.
    """
    others = is_pretrained(args.model)
    output = convert(
        "--output", OTHERS if others else OURS, str(args.output or f"runs/merged{'' if others else '.npz'}")
    )
    inputs = [("the model", BASE if args.model == "base" else args.model), ("the adapter", args.adapter)]
    refuse_overwriting([("--output", output)], inputs)
    model = load_adapted(args.model, args.quantize, args.adapter, dtype_of(args))
    shape = (1, min(model.context, 64)) if others else (8, model.context)
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, shape)
    with ml.no_grad():
        apart = model(tokens).numpy()  # (B, T, V)
        layers = len(active_adapter(model).modules)
        ml.merge_lora(model)
        ml.remove_lora(model)
        if others:
            ml.save_pretrained(model, output)
            written: Any = ml.load_pretrained(output)
        else:
            ml.save_model(model, output, merged=Path(args.adapter).name)
            written = ml.load_model(output) if output.is_file() else model
        merged = written(tokens).numpy()
    difference = float(np.abs(merged - apart).max())
    size = sum(p.stat().st_size for p in output.iterdir()) if others else output.stat().st_size
    print(f"merged            {args.adapter} into {layers} layers of {args.model}")
    print(f"largest difference in outputs {difference:.1e}, where the largest output is {np.abs(apart).max():.1f}")
    print(f"saved             {output} ({size:,} bytes)")
    use = f"minilora generate --model {shlex.quote(str(output))}"
    use = f"ml.classify(ml.load_pretrained({str(output)!r}), texts)" if others and model.labels else use
    print(f"use it            {use}")
    return 0
