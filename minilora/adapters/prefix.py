"""Prefix tuning: trained keys and values of virtual tokens, in every block.

    y_t = sum_i softmax_i(q_t [K'; K]^T / sqrt(D)) [V'; V]_i        K', V': (P, C) trained, of their own in each block

(Li & Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", section 4.2). P virtual tokens take the
positions 0 to P - 1; the text starts at position P. A prompt (`prompt.py`) trains the embeddings from which the model
computes K' and V'. A prefix trains K' and V' themselves: 2 L P C numbers for L blocks, in place of P C.

Trained as they are, the keys and values are unsteady: they are sensitive to the learning rate and to where they start.
So the paper lets a network make them (section 4.3), the same for all P tokens,

    [K', V'] of all blocks = W_2 tanh(W_1 e + b_1) + b_2        e: (P, C), W_1: (M, C), W_2: (2 L C, M)

and trains e and the network. After training it is dropped: what it put out last is the prefix.

In an encoder every token of the text sees the P keys of each block, and the text starts at position P there as well: so
PEFT has it in BERT and RoBERTa. In DistilBERT, where PEFT has no prefix, the same is done.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..autograd import ops
from ..autograd.backend import array_module
from ..autograd.tensor import Tensor, no_grad
from ..nn.checks import is_whole, shown
from ..nn.language_model import Cache, LanguageModel
from ..nn.layers import Linear, parameter
from ..nn.module import Module
from .adapter import method
from .copies import in_full
from .prompt import VirtualTokens, VirtualTokensConfig
from .state import Adapters, active_adapter, whole


@method("prefix")
@dataclass(frozen=True)
class PrefixConfig(VirtualTokensConfig):
    """How long the prefix is, how it is trained, and what it starts from.

    tokens: P. hidden: M, the width of the network that makes the prefix while it is trained (the paper's small matrix,
    which it starts from, is 512 wide for table-to-text and 800 for summarisation: section 4.3), or None to train keys
    and values directly. init: "random" draws keys and values, or e, from N(0, 1)
    and the network's weights from U(-1/sqrt(d_in), 1/sqrt(d_in)); the paper says only that they are random, and PEFT
    draws them so. "vocabulary" takes the keys and values that the base model computes for real tokens, which needs
    less data to train (section 7.4). text: those tokens, repeated or cut to P; without it they are drawn evenly.
    modules_to_save: modules trained in full beside, such as a new head, ("classifier",).
    Raises ValueError for values outside these, and for "vocabulary" with a network, which cannot be made to put out
    given values.
    """

    init: str = "random"
    hidden: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden is None:
            return
        if not is_whole(self.hidden) or self.hidden < 1:
            raise ValueError(f"PrefixConfig: hidden = {shown(self.hidden)}, expected a positive integer, or None")
        if self.init == "vocabulary":
            raise ValueError("PrefixConfig: a network (hidden) starts at random; init = 'vocabulary' needs hidden=None")

    @property
    def folded(self) -> "PrefixConfig":
        """The configuration once the network is dropped."""
        return replace(self, hidden=None)

    def build(self, model: Module, rng: np.random.Generator) -> dict[str, Module]:
        """{"front": the prefix}, and copies of what is trained beside it"""
        self.check_room(model)
        return {"front": Prefix(self, model, rng), **in_full(model, self.modules_to_save)}


class Prefix(VirtualTokens):
    """Keys and values (L, P, C) for the cache of every block, or the network that makes them."""

    optional_parameters = (  # a base checkpoint has none
        "keys", "values", "embedding", "inner.weight", "inner.bias", "outer.weight", "outer.bias"
    )  # fmt: skip
    cannot_merge = (
        "a prefix is more keys and values for the text to attend to, and their pull depends on each query: "
        "no weight of the base can hold that"
    )

    def __init__(self, config: PrefixConfig, model: Any, rng: np.random.Generator):
        self.config: PrefixConfig = config
        self.n_head, d = model.cached_heads
        layers, c, dtype = len(model.blocks), self.n_head * d, model.ln_f.weight.dtype
        self.shape = layers, config.tokens, c  # (L, P, C), C the width of all heads of keys
        if config.hidden is not None:
            self.embedding = parameter(rng.standard_normal((config.tokens, c)), dtype)  # (P, C)
            self.inner = _linear(c, config.hidden, rng)
            self.outer = _linear(config.hidden, 2 * layers * c, rng)
            self.astype(dtype)
        elif config.init == "random":
            self.keys = parameter(rng.standard_normal(self.shape), dtype)  # (L, P, C)
            self.values = parameter(rng.standard_normal(self.shape), dtype)  # (L, P, C)
        else:
            keys, values = activations(model, config.opening(model, rng))
            self.keys, self.values = parameter(keys, dtype), parameter(values, dtype)  # (L, P, C)

    def keys_and_values(self) -> tuple[Tensor, Tensor]:
        """K' and V' of all blocks, (L, P, C) each."""
        if self.config.hidden is None:
            return self.keys, self.values
        layers, p, c = self.shape
        both = self.outer(ops.tanh(self.inner(self.embedding)))  # (P, 2 L C)
        both = both.reshape(p, layers, 2, c).transpose(2, 1, 0, 3)  # (2, L, P, C)
        return both[0], both[1]

    def fill(self, model: LanguageModel, cache: Cache, batch: int, rng: Any = None) -> Cache:
        """Each head gets its own slice of the width, as in `Attention.heads`; the batch repeats them."""
        layers, p, c = self.shape
        by_head = (layers, p, self.n_head, c // self.n_head)
        keys, values = (x.reshape(by_head).transpose(0, 2, 1, 3) for x in self.keys_and_values())  # (L, H, P, D)
        return self.repeat(zip(keys, values, strict=True), cache, batch)

    def folded(self) -> "Prefix":
        """Plain keys and values in the place of the network, with the same outputs bit for bit."""
        if self.config.hidden is None:
            return self
        plain = Prefix.__new__(Prefix)
        plain.config, plain.shape, plain.n_head = self.config.folded, self.shape, self.n_head
        with no_grad():
            plain.keys, plain.values = (parameter(x.data.copy(), x.dtype) for x in self.keys_and_values())
        return plain


def fold_prefix(model: Any) -> Any:
    """Drop the network of the active adapter's prefix, once it is trained; returns the model, whose outputs stay.

    What is trainable now are the keys and values: an optimiser of before holds parameters that are gone.
    Raises ValueError where there is no prefix with a network.
    """
    front = active_adapter(model, "fold_prefix").modules.get("front")
    if not isinstance(front, Prefix) or front.config.hidden is None:
        raise ValueError("fold_prefix: the active adapter has no prefix with a network (PrefixConfig(hidden=...))")
    state: Adapters = model.adapters
    with whole() as put:
        for name in state.active:
            put(state.named, name, state[name].folded())
        state.switch(put, model, state.active)
    return model


def activations(model: LanguageModel, tokens: np.ndarray) -> tuple[Any, Any]:
    """The keys and values that a model computes for one text, in every block.   (P,) -> (L, P, C) twice"""
    cache = Cache()
    with no_grad():
        model.hidden(model.embed(tokens[None]), cache=cache)
    pairs = [[_joined(x) for x in pair] for pair in cache.pairs.values()]
    stack = array_module(pairs[0][0]).stack
    return stack([k for k, _ in pairs]), stack([v for _, v in pairs])


def _joined(x: Tensor) -> Any:
    """The heads of one row side by side: (1, H, P, D) -> (P, C)"""
    _, h, p, d = x.shape
    return x.data[0].swapaxes(0, 1).reshape(p, h * d)


def _linear(d_in: int, d_out: int, rng: np.random.Generator) -> Linear:
    """A linear layer that starts as PyTorch's do: weight and bias from U(-1/sqrt(d_in), 1/sqrt(d_in))."""
    layer, bound = Linear(d_in, d_out, True, rng), 1 / math.sqrt(d_in)
    layer.weight = parameter(rng.uniform(-bound, bound, (d_out, d_in)))
    layer.bias = parameter(rng.uniform(-bound, bound, d_out))
    return layer
