"""The transformer of every family in `architectures.py`, to be read from top to bottom, beside `gpt.py`.

A family is a few choices on what GPT-2 is. Each is a line or two here, with the paper that it is from:

    GPT-2    learned positions, layer norms with biases, an MLP of two matrices, the embedding table as the head
    Llama    rotated queries and keys, RMSNorm, a gated MLP of three matrices, groups of heads, no biases
    Mistral  Llama, and a query sees no further back than a window
    Phi-3    Llama, and its files have matrices fused
    Qwen     Llama, with biases on q, k and v (2), or norms on q and k (3)
    Gemma    Llama with another gate, norms that scale by 1 + w, and embeddings times sqrt(C); in 3, norms on q and k
             and after attention and MLP, and five layers with a window to one without

Shapes: B batch, T time, S keys (what is cached, then T), C width, H heads, K heads of keys and values, D width of a
head, F width of the MLP, V vocabulary.
"""

import contextlib
import math
from typing import Any

import numpy as np

from ..autograd import ops
from ..autograd.backend import Array, array_module
from ..autograd.fused import IGNORED
from ..autograd.signatures import checked
from ..autograd.tensor import Tensor
from .architectures import Architecture, find
from .checks import generator
from .decode import Decoder, decodes
from .language_model import Cache, LanguageModel, as_mask, as_tokens
from .layers import STANDARD_DEVIATION, Embedding, LayerNorm, Linear, RMSNorm
from .module import Module

ACTIVATIONS: dict[str, Any] = {  # Hendrycks & Gimpel 2016, "GELU", section 2: gelu by tanh, or exactly, and silu
    "gelu_tanh": ops.gelu, "gelu": ops.gelu_exact, "silu": ops.silu, "relu": ops.relu,
}  # fmt: skip
WINDOW = 256  # tokens that training and evaluation take at a time, where the context is longer


def norm(a: Architecture, width: int) -> LayerNorm | RMSNorm:
    """The family's norm over the last axis."""
    if a.norm == "rms":
        return RMSNorm(width, a.norm_eps, int(a.norm_offset))
    return LayerNorm(width, a.norm_bias, a.norm_eps)


def frequencies(a: Architecture, base: float, scaling: str = "") -> np.ndarray:
    """By how much each pair of features is turned from one position to the next.   (R / 2,), R = a.rotated

    f_i = base^(-2 i / R)                      Su et al. 2021, "RoFormer", section 3.2.2
    linear: f_i / factor                       Chen et al. 2023, "Positional Interpolation", section 2.3
    llama3: (1 - s) f_i / factor + s f_i, where s goes from 0 to 1 as original / (positions that a whole turn takes)
        goes from low to high: quick pairs stay as they are, slow ones are slowed down (the code of Llama 3.1)
    """
    f = base ** -(np.arange(0, a.rotated, 2) / a.rotated)
    if scaling == "linear":
        return f / a.rope_factor
    if scaling == "llama3":
        turns = a.rope_original * f / (2 * math.pi)
        s = np.clip((turns - a.rope_low) / (a.rope_high - a.rope_low), 0, 1)
        return (1 - s) * f / a.rope_factor + s * f
    return f


class Attention(Module):
    """Each position takes a weighted mean of the values at and before it, or of the last `window` of them."""

    def __init__(self, a: Architecture, layer: int, rng: np.random.Generator, residual_std: float):
        c, d = a.width, a.dim
        self.n_head, self.kv_heads, self.causal = a.heads, a.key_value_heads, a.causal
        self.window = a.window if a.slides(layer) else None  # Beltagy et al. 2020, "Longformer", section 3.1
        self.local = a.slides(layer) and a.rope_local_base > 0
        self.scale = a.query_scale or 1 / math.sqrt(d)
        self.q_proj = Linear(c, a.heads * d, a.qkv_bias, rng)
        self.k_proj = Linear(c, a.key_value_heads * d, a.qkv_bias, rng)
        self.v_proj = Linear(c, a.key_value_heads * d, a.qkv_bias, rng)
        self.q_norm = norm(a, d) if a.qk_norm else None  # Henry et al. 2020, "QK-Norm"; Qwen 3's and Gemma 3's reports
        self.k_norm = norm(a, d) if a.qk_norm else None
        self.o_proj = Linear(a.heads * d, c, a.o_bias, rng, residual_std)

    def __call__(self, x: Tensor, rng: Any, cache: Cache | None, block: int, place: "Place") -> Tensor:
        """x: (B, T, C) -> (B, T, C)"""
        q = ops.split_heads(self.q_proj(x, rng), self.n_head)  # (B, H, T, D)
        k = ops.split_heads(self.k_proj(x, rng), self.kv_heads)  # (B, K, T, D): Ainslie et al. 2023, "GQA", section 2.2
        v = ops.split_heads(self.v_proj(x, rng), self.kv_heads)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = place.turn(q, self.local), place.turn(k, self.local)
        if cache is not None:
            k, v = cache.append(block, k, v)  # (B, K, S, D)
        y = ops.attention(q, k, v, None, self.causal, *place.seen(self.window), self.scale)  # (B, H, T, D)
        return self.o_proj(ops.join_heads(y), rng)  # (B, T, C)


class MLP(Module):
    """W_down f(W_up x), or gated: W_down (f(W_gate x) * W_up x) (Shazeer 2020, "GLU Variants", eq. 6)."""

    def __init__(self, a: Architecture, rng: np.random.Generator, residual_std: float):
        c, f = a.width, a.mlp_width
        self.activation = a.activation
        self.gate_proj = Linear(c, f, a.mlp_bias, rng) if a.gated else None
        self.up_proj = Linear(c, f, a.mlp_bias, rng)
        self.down_proj = Linear(f, c, a.mlp_bias, rng, residual_std)

    def __call__(self, x: Tensor, rng: Any = None) -> Tensor:
        """x: (B, T, C) -> (B, T, C)"""
        f, up = ACTIVATIONS[self.activation], self.up_proj(x, rng)  # (B, T, F)
        inside = f(up) if self.gate_proj is None else ops.gated(self.gate_proj(x, rng), up, f)
        return self.down_proj(inside, rng)


class Block(Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); with Gemma 3's norms after both as well."""

    def __init__(self, a: Architecture, layer: int, rng: np.random.Generator):
        residual_std = STANDARD_DEVIATION / math.sqrt(2 * a.layers)  # as in GPT: 2 a.layers terms add up on the way
        self.ln_1 = norm(a, a.width)
        self.attn = Attention(a, layer, rng, residual_std)
        self.ln_1_post = norm(a, a.width) if a.post_norms else None  # Gemma Team 2025, "Gemma 3", section 2
        self.ln_2 = norm(a, a.width)
        self.mlp = MLP(a, rng, residual_std)
        self.ln_2_post = norm(a, a.width) if a.post_norms else None

    def __call__(self, x: Tensor, rng: Any, cache: Cache | None, block: int, place: "Place") -> Tensor:
        """x: (B, T, C) -> (B, T, C)"""
        y = self.attn(self.ln_1(x), rng, cache, block, place)
        x = x + (y if self.ln_1_post is None else self.ln_1_post(y))
        y = self.mlp(self.ln_2(x), rng)
        return x + (y if self.ln_2_post is None else self.ln_2_post(y))


class Place:
    """Where the tokens of a pass stand, which all its blocks need: their positions' angles, and which keys count.

    mask: (B, S), 1 where a key counts and 0 where it is padding, or None where all count. past: how many are cached.
    positions: (T,), or (B, T) where there is padding: of real tokens alone, so that padding moves no token.
    """

    def __init__(self, a: Architecture, mask: Array | None, past: int, length: int, like: Array):
        self.mask, self.a, self.like = mask, a, like
        self.positions: Array = array_module(like).arange(past, past + length)  # (T,)
        if mask is not None:
            self.positions = (mask.cumsum(axis=1) - 1).clip(0)[:, past:]  # (B, T)
        self.angles: dict[bool, tuple[Array, Array]] = {}  # of layers with a base of their own, and of the others

    def seen(self, window: int | None) -> tuple[Array | None, int | None]:
        """The mask and the window of a layer; where there is padding, one mask, with a window of real tokens alone."""
        if self.mask is None or window is None:
            return self.mask, window
        own = self.mask.cumsum(axis=1) - 1  # the keys' positions: (B, S)
        near = self.positions[:, :, None] - own[:, None, :] < window  # (B, T, S)
        return (near & self.mask[:, None, :])[:, None], None  # (B, 1, T, S)

    def turn(self, x: Tensor, local: bool) -> Tensor:
        """Queries or keys turned by their positions' angles; as they are where positions are learned."""
        n = self.a.rotated
        if not n:
            return x
        if local not in self.angles:
            base, scaling = (self.a.rope_local_base, "") if local else (self.a.rope_base, self.a.rope_scaling)
            f = frequencies(self.a, base, scaling)
            xp, dtype = array_module(self.like), self.like.real.dtype
            angles = self.positions[..., None] * xp.asarray(f)  # (T, R / 2) or (B, T, R / 2)
            angles = angles if angles.ndim == 2 else angles[:, None]  # for all heads: (B, 1, T, R / 2)
            self.angles[local] = xp.cos(angles).astype(dtype), xp.sin(angles).astype(dtype)
        if n == self.a.dim:
            return ops.rotate(x, *self.angles[local])
        return ops.concatenate([ops.rotate(x[..., :n], *self.angles[local]), x[..., n:]], axis=-1)  # the rest stays


class Transformer(LanguageModel):
    """logits = head(ln_f(blocks(wte[tokens]))), as the architecture says.

    architecture: an Architecture, or what `find` takes: a name in `MODELS`, a config.json; rng: a seed or a numpy
    Generator for the initial weights, drawn as GPT's. Parameters are float32, named as `architectures.parameters` has
    them; `model.astype("float64")` for gradient checks. Raises ValueError for an architecture that is counted only.
    """

    encoder: Any = None  # the class that BERT and its relatives are made as: `encoder.py` enters it

    def __new__(cls, architecture: Any = None, rng: Any = 0) -> Any:
        if cls is Transformer and architecture is not None:  # None where one is copied
            with contextlib.suppress(ValueError, TypeError, OSError):  # which __init__ says
                cls = cls if find(architecture).norm_first else cls.encoder
        return super().__new__(cls)

    @checked
    def __init__(self, architecture: Any, rng: Any = 0):
        a = find(architecture)
        if not (a.causal and a.norm_first) or a.head == "none" or a.relative_positions:
            raise ValueError(f"{a.name} is an encoder of the family {a.family!r}, counted and not run")
        if a.rope_base and (a.rotated % 2 or not a.rotated):
            turned = f"{a.rotated} of the {a.dim} features of a head are turned"
            raise ValueError(f"{a.name}: {turned}, expected an even number")
        super().__init__(a.vocab_size, a.width, a.context, cached_heads=(a.key_value_heads, a.dim))
        self.architecture = a
        rng = generator(rng, "Transformer")
        self.wte = Embedding(a.vocab_size, a.width, rng)
        self.wpe = Embedding(a.positions, a.width, rng) if a.positions else None
        self.blocks = [Block(a, i, rng) for i in range(a.layers)]
        self.ln_f = norm(a, a.width)
        self.head = Linear(a.width, a.vocab_size, False, rng) if a.head == "untied" else None
        self.front: Any = None  # virtual tokens before every text: a trained prompt or prefix (adapters/prompt.py)

    @property
    def window(self) -> int:
        """How many tokens at a time training and evaluation take: what the context allows, up to 256."""
        return min(self.places, WINDOW)

    def __call__(self, tokens: Any, rng: Any = None, cache: Cache | None = None, mask: Any = None) -> Tensor:
        """Logits for the token after each position.   tokens: (B, T) integers -> (B, T, V)

        rng: a numpy Generator for adapters that drop out. mask: (B, T), 1 where a token counts and 0 where it is
        padding, on either side: no token that counts sees it, and the logits there mean nothing. Raises as GPT does.
        """
        return self.logits(self.last(tokens, rng, cache, mask), rng)

    def last(self, tokens: Any, rng: Any = None, cache: Cache | None = None, mask: Any = None) -> Tensor:
        """What the head reads: the hidden states after the last norm.   (B, T) -> (B, T, C)"""
        tokens, cache = self.read(tokens, rng, cache)
        mask = None if mask is None else as_mask("Transformer", mask, tokens.shape)
        return self.ln_f(self.hidden(self.embed(tokens), rng, cache, mask))

    def next_logits(self, tokens: Array, cache: Cache, mask: Array | None = None) -> Array:
        """The logits of the token after a text, which is cached: the head reads its end alone.   (B, T) -> (B, V)"""
        return self.logits(self.last(tokens, None, cache, mask)[:, -1]).data

    def _reader(self, cache: Cache) -> Any:
        """A Decoder where layers are plain or merged, and no padding stands between virtual tokens and a window."""
        a, kinds = self.architecture, (Transformer, Block, Attention, MLP, LayerNorm, RMSNorm, Linear, Embedding)
        if not decodes(self, kinds) or (a.window and self.front is not None and cache.mask is not None):
            return super()._reader(cache)
        turned = {False: frequencies(a, a.rope_base, a.rope_scaling)} if a.rope_base else {}
        return Decoder(self, cache, turned | ({True: frequencies(a, a.rope_local_base)} if a.rope_local_base else {}))

    def embed(self, tokens: Any) -> Tensor:
        """Rows of the embedding table, in Gemma times sqrt(C) (Vaswani et al. 2017, section 3.4).   -> (B, T, C)"""
        x = self.wte(tokens)
        return x * math.sqrt(self.width) if self.architecture.scaled_embedding else x

    def hidden(self, x: Tensor, rng: Any = None, cache: Cache | None = None, mask: Any = None) -> Tensor:
        """Embeddings, placed after what is cached, through all blocks.   x: (B, T, C) -> (B, T, C)"""
        past = cache.length if cache is not None else 0
        if cache is not None:
            mask = cache.counting(mask, x.shape[:2])
        place = Place(self.architecture, mask, past, x.shape[1], x.data)
        if self.wpe is not None:
            x = x + self.wpe(place.positions)
        for i, block in enumerate(self.blocks):
            x = self.through(block, x, rng, cache, i, place)
        return x

    def logits(self, x: Tensor, rng: Any = None) -> Tensor:
        """x W^T with the head's own weight, or with that of the embedding table.   (B, T, C) -> (B, T, V)"""
        return self.wte.logits(x) if self.head is None else self.head(x, rng)

    def loss(self, tokens: Any, targets: Any, rng: Any = None, mask: Any = None) -> Tensor:
        """The mean cross-entropy in nats per target, of tokens or labels.   tokens, targets: (B, T) integers -> ()

        A target of -100 does not count, nor that of a token which is padding. Where there are many logits, the head and
        the loss take a stretch of the vocabulary at a time.
        """
        x, targets = self.last(tokens, rng, None, mask), as_tokens(targets, "Transformer.loss")
        if mask is not None:
            counts = as_mask("Transformer.loss", mask, targets.shape)
            targets = array_module(targets).where(counts, targets.astype(np.int64), IGNORED)
        if self.labels:
            return ops.cross_entropy(self.classifier(x, rng), targets)
        return self.wte.cross_entropy(x, targets) if self.head is None else self.head.cross_entropy(x, targets, rng)
