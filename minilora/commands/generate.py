"""`minilora generate`."""

import argparse
import warnings
from typing import Any

import numpy as np

from ..nn.characters import Characters, count_foreign, plain
from .models import existing, load_adapted, load_model, with_tokenizer
from .options import BACKEND, DTYPE, MODEL, QUANTIZE, SEED, command, dtype_of, number, option, whole


@command(
    MODEL,
    option("--adapter", None, "an adapter to put on the model: a file from finetune, or PEFT's folder", metavar="FILE"),
    QUANTIZE,
    DTYPE,
    option("--prompt", None, "the text to continue; given again, one more of them, all side by side", action="append",
           metavar="TEXT"),
    option("--prompts", None, "a file of texts to continue, one a line", metavar="FILE"),
    option("--chat", False, "the prompt is what a user says, and the model answers", action="store_true"),
    option("--tokens", 300, "tokens to write at most: characters, or a model's own", type=whole(1), metavar="N"),
    option("--temperature", 0.8, "0 takes the likeliest token, 1 samples as trained, more is wilder",
           type=number(0, 1e6, "0 or more"), metavar="X"),
    option("--top-k", None, "sample among the k likeliest tokens only", type=whole(1), metavar="K"),
    option("--top-p", None, "sample among the likeliest tokens that together have this probability",
           type=number(1e-9, 1, "a number above 0, up to 1"), metavar="P"),
    option("--samples", 1, "texts to write of each prompt", type=whole(1), metavar="N"),
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
    prompts = [prompt_tokens(model, prompt, args.chat) for prompt in prompts_of(args) for _ in range(args.samples)]
    eos = model.tokenizer.eos
    texts = model.generate(
        prompts, args.tokens, args.temperature, args.top_k, rng=args.seed, top_p=args.top_p, stop=eos
    )
    starts = [len(prompt) if args.chat else 0 for prompt in prompts]
    both = zip(texts, starts, strict=True)
    said = [model.tokenizer.decode(text[start:], skip_special=True).strip("\n") for text, start in both]
    print(("\n" + "-" * 40 + "\n").join(said))
    return 0


def prompts_of(args: argparse.Namespace) -> list[str]:
    """The texts to continue, of the command line or of a file. Raises ValueError for both, and a file without any."""
    if args.prompts is None:
        return args.prompt or [""]
    if args.prompt is not None:
        raise ValueError("--prompt and --prompts: give the texts in one of them")
    path = existing(args.prompts, "prompts", "write one, with a text to continue in each line")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error.reason} at byte {error.start}") from None
    prompts = [text for line in lines if (text := line.rstrip("\r")).strip()]
    if not prompts:
        raise ValueError(f"--prompts {path}: the file is empty, expected a text to continue in each line")
    return prompts


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
