"""GPT: a decoder-only transformer with GPT-2's choices, to be read from top to bottom.

Pre-layer-norm blocks, tanh GELU, learned positions, an output head tied to the token embedding
(Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3).
Shapes: B batch, T time, C width (n_embd), H heads, D = C / H, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..autograd import ops
from ..autograd.fused import dropout_mask
from ..autograd.signatures import is_real, is_whole, shown
from ..autograd.tensor import Tensor
from .checks import divides, generator
from .decode import Decoder, decodes
from .habits import names_its_settings
from .language_model import Cache, LanguageModel, as_mask, sample
from .layers import STANDARD_DEVIATION, Embedding, LayerNorm, Linear
from .module import Module

__all__ = ["GPT", "MLP", "Attention", "Block", "Cache", "GPTConfig", "sample"]


@names_its_settings
@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT.

    vocab_size V, block_size (the longest context), n_layer, n_head H, n_embd C (a multiple of H), dropout (a
    probability; it acts only where a generator is given), bias (whether linear layers and layer norms have one).
    Raises ValueError for sizes that are not positive integers or do not divide.
    """

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float = 0.0
    bias: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            value = getattr(self, name)
            if not is_whole(value) or value < 1:
                raise ValueError(f"GPTConfig: {name} = {shown(value)}, expected a positive integer")
        divides("GPTConfig", self, ("n_embd", "n_head"))
        if not is_real(self.dropout) or not 0 <= self.dropout < 1:
            raise ValueError(f"GPTConfig: dropout = {shown(self.dropout)}, expected 0 <= dropout < 1")
        if not isinstance(self.bias, bool | np.bool_):
            raise ValueError(f"GPTConfig: bias = {shown(self.bias)}, expected True or False")

    @property
    def count(self) -> int:
        """How many parameters such a GPT has: (V + block_size) C + n_layer (12 C^2 + 13 C) + 2 C, or without biases
        2 C a layer and C at the end."""
        c, scales = int(self.n_embd), 13 if self.bias else 2
        tables = (int(self.vocab_size) + int(self.block_size)) * c
        return tables + int(self.n_layer) * (12 * c * c + scales * c) + (2 * c if self.bias else c)


class Attention(Module):
    """Causal self-attention: each position takes a weighted mean of the values at and before it."""

    def __init__(self, config: GPTConfig, rng: np.random.Generator, residual_std: float):
        c, bias = config.n_embd, config.bias
        self.n_head, self.dropout = config.n_head, config.dropout
        self.q_proj = Linear(c, c, bias, rng)
        self.k_proj = Linear(c, c, bias, rng)
        self.v_proj = Linear(c, c, bias, rng)
        self.o_proj = Linear(c, c, bias, rng, residual_std)

    def __call__(
        self, x: Tensor, rng: Any = None, cache: Cache | None = None, block: int = 0, mask: Any = None
    ) -> Tensor:
        """x: (B, T, C) -> (B, T, C). mask: (B, S), 1 where a key counts and 0 where it is padding, or None."""
        q, k, v = (self.heads(proj(x, rng)) for proj in (self.q_proj, self.k_proj, self.v_proj))  # (B, H, T, D)
        if cache is not None:
            k, v = cache.append(block, k, v)  # (B, H, S, D)
        keep = None
        if rng is not None and self.dropout:
            keep = dropout_mask(x.data, (*q.shape[:3], k.shape[2]), self.dropout, rng)
        y = ops.attention(q, k, v, keep, True, mask)  # (B, H, T, D)
        return self.o_proj(ops.join_heads(y), rng)  # (B, T, C)

    def heads(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, H, T, D): each head gets its own slice of the width."""
        return ops.split_heads(x, self.n_head)


class MLP(Module):
    """y = W_down gelu(W_up x): four times as wide inside."""

    def __init__(self, config: GPTConfig, rng: np.random.Generator, residual_std: float):
        c, bias = config.n_embd, config.bias
        self.up_proj = Linear(c, 4 * c, bias, rng)
        self.down_proj = Linear(4 * c, c, bias, rng, residual_std)

    def __call__(self, x: Tensor, rng: Any = None) -> Tensor:
        """x: (B, T, C) -> (B, T, C)"""
        return self.down_proj(ops.gelu(self.up_proj(x, rng)), rng)  # (B, T, 4C) inside


class Block(Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): what a block computes is added to what flows past it."""

    def __init__(self, config: GPTConfig, rng: np.random.Generator):
        residual_std = STANDARD_DEVIATION / math.sqrt(2 * config.n_layer)  # 2 n_layer terms add up on the way
        self.dropout = config.dropout
        self.ln_1 = LayerNorm(config.n_embd, config.bias)
        self.attn = Attention(config, rng, residual_std)
        self.ln_2 = LayerNorm(config.n_embd, config.bias)
        self.mlp = MLP(config, rng, residual_std)

    def __call__(
        self, x: Tensor, rng: Any = None, cache: Cache | None = None, block: int = 0, mask: Any = None
    ) -> Tensor:
        """x: (B, T, C) -> (B, T, C)"""
        x = x + _drop(self.attn(self.ln_1(x), rng, cache, block, mask), self.dropout, rng)
        return x + _drop(self.mlp(self.ln_2(x), rng), self.dropout, rng)


def _drop(x: Tensor, p: float, rng: Any) -> Tensor:
    return ops.dropout(x, p, rng) if rng is not None and p else x


class GPT(LanguageModel):
    """logits = ln_f(blocks(wte[tokens] + wpe[positions])) wte^T

    config: a GPTConfig; rng: a seed or a numpy Generator for the initial weights, drawn from N(0, 0.02) with residual
    projections scaled by 1/sqrt(2 n_layer). Parameters are float32; `model.astype("float64")` for gradient checks.
    """

    limit = "context of block_size"

    def __init__(self, config: GPTConfig, rng: Any = 0):
        if not isinstance(config, GPTConfig):
            fix = f"; ml.load_model({config!r}) reads a model's file" if isinstance(config, str) else ""
            raise TypeError(f"GPT: got {shown(config)}, expected a GPTConfig(vocab_size, block_size, ...){fix}")
        self.config, c, h = config, config.n_embd, config.n_head
        super().__init__(config.vocab_size, c, config.block_size, cached_heads=(h, c // h))
        rng = generator(rng, "GPT")
        self.wte = Embedding(config.vocab_size, config.n_embd, rng)
        self.wpe = Embedding(config.block_size, config.n_embd, rng)
        self.blocks = [Block(config, rng) for _ in range(config.n_layer)]
        self.ln_f = LayerNorm(config.n_embd, config.bias)
        self.front: Any = None  # virtual tokens before every text: a trained prompt or prefix (adapters/prompt.py)

    def __call__(self, tokens: Any, rng: Any = None, cache: Cache | None = None, mask: Any = None) -> Tensor:
        """Logits for the token after each position.   tokens: (B, T) integers -> (B, T, V)

        rng: a numpy Generator switches dropout on; without one the pass is deterministic. mask: (B, T), 1 where a token
        counts and 0 where it is padding: no token that counts sees it, and the logits there mean nothing.
        Raises ValueError when T (plus what is cached) exceeds block_size or a token is out of range, TypeError for
        tokens that are not integers.
        """
        tokens, cache = self.read(tokens, rng, cache)
        mask = None if mask is None else as_mask("GPT", mask, tokens.shape)
        x = self.hidden(self.wte(tokens), rng, cache, mask)  # (B, T, C)
        return self.wte.logits(self.ln_f(x))  # (B, T, V)

    def hidden(self, x: Tensor, rng: Any = None, cache: Cache | None = None, mask: Any = None) -> Tensor:
        """Embeddings, placed after what is cached, through all blocks.   x: (B, T, C) -> (B, T, C)"""
        past = cache.length if cache is not None else 0
        mask = mask if cache is None else cache.counting(mask, x.shape[:2])  # (B, S), or None
        places: Any = slice(past, past + x.shape[1])  # (T,)
        if mask is not None:
            places = (mask.cumsum(axis=1) - 1).clip(0)[:, past:]  # (B, T): of tokens that count alone
        x = x + self.wpe.weight[places]  # (B, T, C)
        x = _drop(x, self.config.dropout, rng)
        for i, block in enumerate(self.blocks):
            x = self.through(block, x, rng, cache, i, mask)
        return x

    def _reader(self, cache: Cache) -> Any:
        """A Decoder where layers are plain or merged."""
        if decodes(self, (GPT, Block, Attention, MLP, LayerNorm, Linear, Embedding)):
            return Decoder(self, cache)
        return super()._reader(cache)
