"""`minilora generate`."""

import argparse
import warnings
from typing import Any

import numpy as np

from ..nn.characters import Characters, count_foreign, plain
from .models import load_adapted, load_model, with_tokenizer
from .options import BACKEND, DTYPE, MODEL, QUANTIZE, SEED, command, dtype_of, number, option, whole


@command(
    MODEL,
    option("--adapter", None, "an adapter to put on the model: a file from finetune, or PEFT's folder", metavar="FILE"),
    QUANTIZE,
    DTYPE,
    option("--prompt", "", "the text to continue", metavar="TEXT"),
    option("--chat", False, "the prompt is what a user says, and the model answers", action="store_true"),
    option("--tokens", 300, "tokens to write at most: characters, or a model's own", type=whole(1), metavar="N"),
    option("--temperature", 0.8, "0 takes the likeliest token, 1 samples as trained, more is wilder",
           type=number(0, 1e6, "0 or more"), metavar="X"),
    option("--top-k", None, "sample among the k likeliest tokens only", type=whole(1), metavar="K"),
    option("--top-p", None, "sample among the likeliest tokens that together have this probability",
           type=number(1e-9, 1, "a number above 0, up to 1"), metavar="P"),
    option("--samples", 1, "texts to write", type=whole(1), metavar="N"),
    SEED,
    BACKEND,
    example="minilora generate --prompt 'The class ' --tokens 200 --temperature 0.7",
)  # fmt: skip
def generate(args: argparse.Namespace) -> int:
    """Continue a text, or answer one, token by token: character by character where the model reads these.

    A model that others trained stops where its text ends.
    """
    kind, dtype, adapter = args.quantize, dtype_of(args), args.adapter
    model = load_adapted(args.model, kind, adapter, dtype) if adapter else load_model(args.model, kind, dtype)
    with_tokenizer(model, args.model)
    prompt = prompt_tokens(model, args.prompt, args.chat)  # (T,)
    tokens = np.tile(prompt, (args.samples, 1))  # (B, T)
    eos = model.tokenizer.eos
    texts = model.generate(tokens, args.tokens, args.temperature, args.top_k, rng=args.seed, top_p=args.top_p, stop=eos)
    texts = texts[:, len(prompt) :] if args.chat else texts
    said = [model.tokenizer.decode(text, skip_special=True).strip("\n") for text in texts]
    print(("\n" + "-" * 40 + "\n").join(said))
    return 0


def prompt_tokens(model: Any, prompt: str, chat: bool) -> np.ndarray:
    """A prompt in the model's tokens, (T,). Raises ValueError where the model could not read it whole."""
    tokenizer = model.tokenizer
    if chat:
        tokens = tokenizer.chat([{"role": "user", "content": prompt}])
    elif isinstance(tokenizer, Characters):
        prompt = plain(prompt) or "\n"  # a model needs a token to start from; a new line is the start of one
        if foreign := count_foreign(prompt):
            warnings.warn(f"the prompt has {foreign} characters outside the vocabulary; they read '?'", stacklevel=2)
        return tokenizer.encode(prompt)  # where it is longer than the context, its end is read
    else:
        tokens = tokenizer.encode(prompt)
        tokens = tokens if len(tokens) else tokenizer.encode("\n")
    if len(tokens) > model.context:
        raise ValueError(f"--prompt has {len(tokens):,} tokens, more than the model's context of {model.context:,}")
    return tokens
