"""Prompt tuning: trained embeddings of virtual tokens in front of every text.

    logits(text) = the base model's logits on [prompt; wte[text]] at the text's positions       prompt: (P, C) trained

(Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", section 2). P is the number of virtual
tokens. They take the positions 0 to P - 1, so the text starts at position P and has P positions less.

What makes it cheap: attention looks back only, so a virtual token never sees the text. Its keys and values are the same
whatever follows. They are computed once for a whole batch and stand in the attention's cache before the first token, as
if the prompt had been read already. A prefix (`prefix.py`) goes one step further: it trains those keys and values.

In an encoder every token sees every other. There a prompt goes through the blocks in front of every text, with the
embeddings of the first P positions and of the first segment added, as PEFT has it; a head for labels, which reads the
first token, reads the prompt's. In RoBERTa, whose padding has a position of its own, the positions are then one after
another: embeddings do not say what is padding. On the right of a text, padding still changes nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..autograd.backend import array_module
from ..autograd.fused import check_tokens
from ..autograd.tensor import Tensor, no_grad
from ..nn.checks import is_whole, shown
from ..nn.language_model import Cache, LanguageModel
from ..nn.layers import parameter
from ..nn.module import Module
from .adapter import StandIn, method
from .copies import in_full
from .targets import Patterns, patterns


@dataclass(frozen=True)
class VirtualTokensConfig:
    """What prompts and prefixes are told: how many virtual tokens, what they start from, what is trained beside."""

    tokens: int = 20
    init: str = "vocabulary"
    text: tuple[int, ...] | None = None
    modules_to_save: Patterns = ()

    def __post_init__(self) -> None:
        name = type(self).__name__
        object.__setattr__(self, "modules_to_save", patterns(self.modules_to_save, f"{name}: modules_to_save"))
        if not is_whole(self.tokens) or self.tokens < 1:
            raise ValueError(f"{name}: tokens = {shown(self.tokens)}, expected a positive integer")
        if not isinstance(self.init, str) or self.init not in ("vocabulary", "random"):
            raise ValueError(f"{name}: init = {shown(self.init)}, expected 'vocabulary' or 'random'")
        if self.text is None:
            return
        text = tuple(self.text) if isinstance(self.text, Sequence | np.ndarray) else ()
        if not text or not all(map(is_whole, text)):
            raise ValueError(f"{name}: text = {shown(self.text)}, expected at least one token, each an integer")
        if self.init == "random":
            raise ValueError(f"{name}: a text to start from and init = 'random'; with a text, init is 'vocabulary'")
        object.__setattr__(self, "text", tuple(int(token) for token in text))

    def check_room(self, model: Module) -> None:
        """Raise ValueError unless the model is one of language whose context is longer than the virtual tokens."""
        name = type(self).__name__
        if not isinstance(model, LanguageModel):
            raise ValueError(f"{name}: virtual tokens stand before the text of a GPT; this is a {type(model).__name__}")
        if self.tokens >= model.places:
            context = f"a {model.limit} = {model.places}"
            raise ValueError(f"{name}: {self.tokens} virtual tokens leave no room for a text in {context}")

    def opening(self, model: LanguageModel, rng: np.random.Generator) -> np.ndarray:
        """The real tokens to start from, (P,): the text, repeated or cut to the length, or tokens drawn evenly."""
        if self.text is None:
            return rng.integers(model.vocab_size, size=self.tokens)
        check_tokens(f"{type(self).__name__}.text", np.array(self.text), model.vocab_size)
        return np.resize(self.text, self.tokens)


class VirtualTokens(StandIn):
    """Stands at `model.front`; its `fill(model, cache, batch, rng)` fills an empty cache before the text comes."""

    config: VirtualTokensConfig

    @property
    def length(self) -> int:
        """P, the positions that are not left for the text."""
        return self.config.tokens

    def repeat(self, pairs: Iterable[tuple[Tensor, Tensor]], cache: Cache, batch: int) -> Cache:
        """Put each block's keys and values, (H, P, D) or (1, H, P, D), into the cache, once for every row."""
        for i, pair in enumerate(pairs):
            k, v = (x + array_module(x.data).zeros((batch, 1, 1, 1), x.data.real.dtype) for x in pair)  # (B, H, P, D)
            cache.append(i, k, v)
        return cache


@method("prompt")
@dataclass(frozen=True)
class PromptConfig(VirtualTokensConfig):
    """How long the prompt is, and what it starts from.

    tokens: P. init: "vocabulary" starts from the embeddings of P tokens of the vocabulary, "random" from U(-0.5, 0.5)
    (Lester et al., section 3.2, who take the vocabulary's 5,000 commonest tokens; a model does not know which are
    common, so here they are drawn evenly). text: the tokens to start from instead, such as those of an instruction
    (their class labels), repeated or cut to P. modules_to_save: modules trained in full beside, such as a new head,
    ("classifier",).
    Raises ValueError for values outside these.
    """

    def build(self, model: Module, rng: np.random.Generator) -> dict[str, Module]:
        """{"front": the prompt}, and copies of what is trained beside it"""
        self.check_room(model)
        return {"front": Prompt(self, model, rng), **in_full(model, self.modules_to_save)}


class Prompt(VirtualTokens):
    """P trained embeddings, run through the model's own blocks."""

    optional_parameters = ("prompt",)  # a base checkpoint has none
    cannot_merge = (
        "a prompt is more positions for the text to attend to, and their pull depends on each query: "
        "no weight of the base can hold that"
    )

    def __init__(self, config: PromptConfig, model: Any, rng: np.random.Generator):
        self.config = config
        dtype = model.ln_f.weight.dtype  # a table may be held in few bits
        if config.init == "random":
            self.prompt = parameter(rng.uniform(-0.5, 0.5, (config.tokens, model.width)), dtype)  # (P, C)
        else:
            with no_grad():
                self.prompt = parameter(model.embed(config.opening(model, rng)).data, dtype)  # (P, C)

    def fill(self, model: LanguageModel, cache: Cache, batch: int, rng: Any = None) -> Cache | None:
        """One row goes through the blocks and leaves its keys and values; the batch repeats them."""
        if not model.causal:
            return None  # an encoder's prompt sees the text, and goes with it
        row, rng = Cache(), getattr(rng, "shared", rng)  # it is no row of the batch: every piece of that draws the same
        model.hidden(self.prompt.reshape(1, *self.prompt.shape), rng, row)
        return self.repeat(row.pairs.values(), cache, batch)
