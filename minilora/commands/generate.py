"""`minilora generate`."""

import argparse
import warnings

import numpy as np

import minilora as ml

from ..nn.characters import count_foreign, plain
from .models import load_adapted, load_model
from .options import BACKEND, MODEL, QUANTIZE, SEED, command, number, option, whole


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
    adapted = args.adapter is not None
    model = load_adapted(args.model, args.quantize, args.adapter) if adapted else load_model(args.model, args.quantize)
    prompt = plain(args.prompt) or "\n"  # a model needs a character to start from; a new line is the start of one
    if foreign := count_foreign(prompt):
        warnings.warn(f"the prompt has {foreign} characters outside the vocabulary; they read '?'", stacklevel=1)
    tokens = np.tile(ml.encode(prompt), (args.samples, 1))  # (B, T)
    texts = model.generate(tokens, args.tokens, args.temperature, args.top_k, rng=args.seed)
    print(("\n" + "-" * 40 + "\n").join(ml.decode(text).strip("\n") for text in texts))
    return 0
