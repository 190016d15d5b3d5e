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
from ..autograd.backend import Array, array_module, to_numpy
from ..autograd.fused import check_tokens, dropout_mask
from ..autograd.signatures import is_real, is_whole, shown
from ..autograd.tensor import Tensor, no_grad
from .checks import generator
from .decode import Decoder
from .habits import names_its_settings
from .layers import STANDARD_DEVIATION, Embedding, LayerNorm, Linear
from .module import Module


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
        if self.n_embd % self.n_head:
            raise ValueError(f"GPTConfig: n_embd = {self.n_embd} is not divisible by n_head = {self.n_head}")
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


class Cache:
    """Keys and values of the positions already seen, one pair a block: (B, H, S, D). New ones are appended."""

    def __init__(self) -> None:
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        """How many positions are cached."""
        return self.pairs[0][0].shape[2] if self.pairs else 0

    def append(self, block: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values; return all of them."""
        if block in self.pairs:
            old_k, old_v = self.pairs[block]
            k = ops.concatenate([old_k, k], axis=2)  # (B, H, S, D)
            v = ops.concatenate([old_v, v], axis=2)
        self.pairs[block] = k, v
        return k, v


class Attention(Module):
    """Causal self-attention: each position takes a weighted mean of the values at and before it."""

    def __init__(self, config: GPTConfig, rng: np.random.Generator, residual_std: float):
        c, bias = config.n_embd, config.bias
        self.n_head, self.dropout = config.n_head, config.dropout
        self.q_proj = Linear(c, c, bias, rng)
        self.k_proj = Linear(c, c, bias, rng)
        self.v_proj = Linear(c, c, bias, rng)
        self.o_proj = Linear(c, c, bias, rng, residual_std)

    def __call__(self, x: Tensor, rng: Any = None, cache: Cache | None = None, block: int = 0) -> Tensor:
        """x: (B, T, C) -> (B, T, C)"""
        q, k, v = (self.heads(proj(x, rng)) for proj in (self.q_proj, self.k_proj, self.v_proj))  # (B, H, T, D)
        if cache is not None:
            k, v = cache.append(block, k, v)  # (B, H, S, D)
        keep = None
        if rng is not None and self.dropout:
            keep = dropout_mask(x.data, (*q.shape[:3], k.shape[2]), self.dropout, rng)
        y = ops.attention(q, k, v, keep)  # (B, H, T, D)
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

    def __call__(self, x: Tensor, rng: Any = None, cache: Cache | None = None, block: int = 0) -> Tensor:
        """x: (B, T, C) -> (B, T, C)"""
        x = x + _drop(self.attn(self.ln_1(x), rng, cache, block), self.dropout, rng)
        return x + _drop(self.mlp(self.ln_2(x), rng), self.dropout, rng)


def _drop(x: Tensor, p: float, rng: Any) -> Tensor:
    return ops.dropout(x, p, rng) if rng is not None and p else x


class GPT(Module):
    """logits = ln_f(blocks(wte[tokens] + wpe[positions])) wte^T

    config: a GPTConfig; rng: a seed or a numpy Generator for the initial weights, drawn from N(0, 0.02) with residual
    projections scaled by 1/sqrt(2 n_layer). Parameters are float32; `model.astype("float64")` for gradient checks.
    """

    def __init__(self, config: GPTConfig, rng: Any = 0):
        if not isinstance(config, GPTConfig):
            fix = f"; ml.load_model({config!r}) reads a model's file" if isinstance(config, str) else ""
            raise TypeError(f"GPT: got {shown(config)}, expected a GPTConfig(vocab_size, block_size, ...){fix}")
        self.config = config
        rng = generator(rng, "GPT")
        self.wte = Embedding(config.vocab_size, config.n_embd, rng)
        self.wpe = Embedding(config.block_size, config.n_embd, rng)
        self.blocks = [Block(config, rng) for _ in range(config.n_layer)]
        self.ln_f = LayerNorm(config.n_embd, config.bias)
        self.front: Any = None  # virtual tokens before every text: a trained prompt or prefix (adapters/prompt.py)

    @property
    def context(self) -> int:
        """The longest text: block_size, less the virtual tokens in front of it."""
        return self.config.block_size - (self.front.length if self.front is not None else 0)

    def __call__(self, tokens: Any, rng: Any = None, cache: Cache | None = None) -> Tensor:
        """Logits for the token after each position.   tokens: (B, T) integers -> (B, T, V)

        rng: a numpy Generator switches dropout on; without one the pass is deterministic.
        Raises ValueError when T (plus what is cached) exceeds block_size or a token is out of range, TypeError for
        tokens that are not integers.
        """
        tokens = as_tokens(tokens, "GPT")
        if rng is not None and not hasattr(rng, "random"):
            raise TypeError(
                f"GPT: rng = {shown(rng)}, expected a numpy Generator, as np.random.default_rng(0), or None"
            )
        if cache is not None and not isinstance(cache, Cache):
            raise TypeError(f"GPT: cache = {shown(cache)}, expected a Cache, or None")
        if tokens.ndim != 2 or not tokens.shape[1]:
            raise ValueError(f"GPT: tokens have shape {tokens.shape}, expected (B, T); for one sequence: tokens[None]")
        if self.front is not None and (cache is None or not cache.length):
            cache = self.front.fill(self, cache or Cache(), len(tokens), rng)
        past = cache.length if cache is not None else 0
        end = past + tokens.shape[1]
        if end > self.config.block_size:
            virtual = f" ({self.front.length} of them virtual)" if self.front is not None else ""
            raise ValueError(f"GPT: {end} tokens{virtual} exceed the context of block_size = {self.config.block_size}")
        x = self.hidden(self.wte(tokens), rng, cache)  # (B, T, C)
        return ops.linear(self.ln_f(x), self.wte.weight)  # (B, T, V)

    def hidden(self, x: Tensor, rng: Any = None, cache: Cache | None = None) -> Tensor:
        """Embeddings, placed after what is cached, through all blocks.   x: (B, T, C) -> (B, T, C)"""
        past = cache.length if cache is not None else 0
        x = x + self.wpe.weight[past : past + x.shape[1]]  # (B, T, C)
        x = _drop(x, self.config.dropout, rng)
        for i, block in enumerate(self.blocks):
            x = block(x, rng, cache, i)
        return x

    def loss(self, tokens: Any, targets: Any, rng: Any = None) -> Tensor:
        """The mean cross-entropy in nats per token.   tokens, targets: (B, T) integers -> a scalar Tensor"""
        return ops.cross_entropy(self(tokens, rng), as_tokens(targets, "GPT.loss"))

    def generate(
        self,
        tokens: Any,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        rng: Any = 0,
        use_cache: bool = True,
    ) -> np.ndarray:
        """Continue a text by sampling one token at a time from softmax(logits / temperature).

        tokens: (T,) or (B, T) integers -> (T + n,) or (B, T + n). temperature 0 takes the likeliest token; top_k
        samples among the k likeliest. Of equally likely tokens the lower number counts as the likelier.
        Beyond block_size the window slides: positions move, so the cache starts anew.
        Raises ValueError for a negative temperature or count, top_k below 1, a prompt without tokens, and logits that
        are not finite, with the parameter that is not; TypeError for tokens that are not integers.
        """
        if not is_real(temperature) or not temperature >= 0:
            raise ValueError(f"generate: temperature = {shown(temperature)}, expected a number of 0 or more")
        if top_k is not None and (not is_whole(top_k) or top_k < 1):
            raise ValueError(f"generate: top_k = {shown(top_k)}, expected an integer of 1 or more, or None for all")
        if not is_whole(max_new_tokens) or max_new_tokens < 0:
            raise ValueError(f"generate: max_new_tokens = {shown(max_new_tokens)}, expected an integer of 0 or more")
        if not isinstance(use_cache, bool | np.bool_):
            raise TypeError(f"generate: use_cache = {shown(use_cache)}, expected True or False")
        rng = generator(rng, "generate")
        prompt = to_numpy(as_tokens(tokens, "generate"))
        if prompt.ndim not in (1, 2) or prompt.size == 0:
            raise ValueError(f"generate: the prompt has shape {prompt.shape}, expected (T,) or (B, T), T at least 1")
        check_tokens("generate", prompt, self.config.vocab_size)
        text = prompt.reshape(-1, prompt.shape[-1])  # (B, T)
        one_more: Any = None  # what reads one more token of each text
        with no_grad(), np.errstate(over="ignore", invalid="ignore"):  # what is not finite is said below
            for _ in range(max_new_tokens):
                if one_more is None or text.shape[1] > self.context:  # the first step, or positions that have moved
                    cache = Cache()
                    logits = self(text[:, -self.context :], cache=cache).data[:, -1]  # (B, V)
                    one_more = self._reader(cache) if use_cache and text.shape[1] < self.context else None
                else:
                    logits = one_more(text[:, -1])  # (B, V)
                logits = to_numpy(logits)
                if not np.isfinite(logits).all():
                    why = self.first_not_finite() or f"the numbers on the way to them are too large for {logits.dtype}"
                    raise ValueError(f"generate: the logits are not finite; {why}")
                chosen = sample(logits, temperature, top_k, rng) if temperature else logits.argmax(axis=1)  # (B,)
                text = np.concatenate([text, chosen[:, None]], axis=1)
        return text if prompt.ndim > 1 else text[0]

    def _reader(self, cache: Cache) -> Any:
        """What maps tokens (B,) to logits (B, V) after what is cached: a Decoder where layers are plain or merged."""
        plain = (GPT, Block, Attention, MLP, LayerNorm, Linear, Embedding)
        layers = [m for name, m in self.named_modules() if not name.startswith("front")]
        simple = all(type(m) in plain or getattr(m, "unmerged", None) for m in layers)  # merged: W is in m.weight
        kinds = {p.dtype for p in self.parameters()}
        if simple and len(kinds) == 1 and kinds.pop().itemsize >= 4 and array_module(self.wte.weight.data) is np:
            return Decoder(self, cache)
        return lambda tokens: self(tokens[:, None], cache=cache).data[:, -1]


def sample(logits: np.ndarray, temperature: float, top_k: int | None, rng: np.random.Generator) -> np.ndarray:
    """One token for each row of logits.   (B, V) -> (B,)

    Of equal logits the lower token number counts as the likelier. A logit of -inf is a token that is never drawn.
    Raises ValueError for a row with NaN, infinity, or nothing but -inf.
    """
    largest = logits.max(axis=1, keepdims=True)  # (B, 1), NaN where a row has one
    if not np.isfinite(largest).all():
        raise ValueError(
            f"sample: the largest logit of a row is {largest[~np.isfinite(largest)][0]}, expected a number"
        )
    if temperature == 0:
        return logits.argmax(axis=1)
    z = logits.astype(np.float64) - largest  # at most 0
    if top_k is not None and top_k < z.shape[1]:
        kth = np.partition(z, -top_k, axis=1)[:, -top_k, None]
        above, ties = z > kth, z == kth
        z[~above & ~(ties & (ties.cumsum(axis=1) <= top_k - above.sum(axis=1, keepdims=True)))] = -np.inf
    z /= min(max(temperature, 1e-200), 1e300)  # nothing colder or hotter would differ
    p = np.exp(z)
    cumulative = (p / p.sum(axis=1, keepdims=True)).cumsum(axis=1)  # (B, V), the last column is 1
    return (cumulative <= rng.random((len(z), 1)) * cumulative[:, -1:]).sum(axis=1)  # the first that is larger


def as_tokens(tokens: Any, caller: str = "GPT") -> Array:
    """Tokens as an array, where they are: they are checked there, and go to the GPU with the first look-up.

    Raises TypeError for text, a masked array, and what is no array of numbers.
    """
    tokens = tokens.data if isinstance(tokens, Tensor) else tokens
    if isinstance(tokens, str):
        raise TypeError(f"{caller}: got the text {shown(tokens)}, expected integers; ml.encode(text) gives them")
    try:
        array = array_module(tokens).asarray(tokens)
    except ValueError as error:  # rows of unequal lengths
        raise TypeError(f"{caller}: got {shown(tokens)}, expected integers: {error}") from None
    if array.dtype.kind in "OSUV" or isinstance(tokens, np.ma.MaskedArray):
        raise TypeError(f"{caller}: got {shown(tokens)}, expected integers, the numbers of tokens")
    return array
