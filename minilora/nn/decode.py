"""One token at a time: the forward pass of `gpt.py` and `transformer.py` for a text's next position, on plain arrays.

A token is so little work that of a small model most of the time goes to calling functions, of a large one to reading
its weights. So nothing is recorded here, no weight is copied but small ones, of which q, k and v come out of one
product, and keys and values are written into arrays that are longer than they need to be.
Shapes: B batch, S keys, C width, H heads, K heads of keys and values, D width of a head, R of its features turned.
"""

import inspect
import math
from typing import Any

import numpy as np

from ..autograd import ops
from ..autograd.backend import Array, array_module
from ..autograd.fused import check_tokens
from .layers import Linear, RMSNorm

# The primitives themselves, on arrays of float32 or more: -> y, vjps
layer_norm, rms_norm, *_activations = (
    inspect.unwrap(function)
    for function in (ops.layer_norm, ops.rms_norm, ops.gelu, ops.gelu_exact, ops.silu, ops.relu)  # type: ignore
)
ACTIVATIONS: dict[str, Any] = dict(zip(("gelu_tanh", "gelu", "silu", "relu"), _activations, strict=True))
SMALL = 2**18  # numbers in the weights of q, k and v, up to which they are copied into one
ROOM = 256  # positions that keys and values have room for at first, beyond what was read


def decodes(model: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a Decoder computes what a model does: its layers are of these kinds, or merged, in one precision.

    That is float32 or more: below, sums need more than the numbers have. Merged: W is in the layer's weight.
    """
    layers = [m for name, m in model.named_modules() if not name.startswith("front")]
    simple = all(type(m) in kinds or getattr(m, "unmerged", None) for m in layers)
    dtypes = {p.dtype for p in model.parameters()}
    return simple and len(dtypes) == 1 and dtypes.pop().itemsize >= 4 and array_module(model.wte.weight.data) is np


class Memory:
    """What the decoder knows of one block: its layers, what sets it apart, and the keys and values it has seen."""

    weight: Array | None = None  # of q, k and v in one, where they are small

    def __init__(self, block: Any, seen: tuple, places: int):
        attn = self.attn = block.attn
        self.block, self.heads = block, attn.n_head
        self.kv_heads = getattr(attn, "kv_heads", attn.n_head)
        self.window, self.local = getattr(attn, "window", None), getattr(attn, "local", False)
        self.gate = getattr(block.mlp, "gate_proj", None)
        self.activation = ACTIVATIONS[getattr(block.mlp, "activation", "gelu_tanh")]
        self.q_norm, self.k_norm = getattr(attn, "q_norm", None), getattr(attn, "k_norm", None)
        self.post = getattr(block, "ln_1_post", None), getattr(block, "ln_2_post", None)
        self.qkv = [attn.q_proj, attn.k_proj, attn.v_proj]
        if sum(m.weight.size for m in self.qkv) <= SMALL:
            self.weight = np.concatenate([m.weight.data for m in self.qkv]).T  # (C, (H + 2K) D)
            self.bias = None if attn.q_proj.bias is None else np.concatenate([m.bias.data for m in self.qkv])
        (b, k, s, d), dtype = seen[0].shape, seen[0].dtype  # (B, K, S, D)
        self.scale = getattr(attn, "scale", 1 / math.sqrt(d))
        self.shape = b, self.heads + 2 * k, d
        self.places = places
        self.keys, self.values = (np.empty((b, k, min(places, s + ROOM), d), dtype) for _ in range(2))
        self.keys[:, :, :s], self.values[:, :, :s] = (array.data for array in seen)

    def project(self, x: Array) -> Array:
        """Queries, keys and values of each head, side by side.   (B, C) -> (B, H + 2K, D)"""
        if self.weight is None:
            y = np.concatenate([linear(x, layer) for layer in self.qkv], axis=1)
        else:
            y = x @ self.weight if self.bias is None else x @ self.weight + self.bias
        return y.reshape(self.shape)

    def write(self, t: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Put a position's keys and values at t: -> those that its query sees, (B, K, S, D)"""
        if t == self.keys.shape[2]:
            more = np.empty((*k.shape[:2], min(self.places, 2 * t) - t, k.shape[2]), k.dtype)
            self.keys, self.values = (np.concatenate([seen, more], axis=2) for seen in (self.keys, self.values))
        self.keys[:, :, t], self.values[:, :, t] = k, v
        start = max(0, t + 1 - self.window) if self.window else 0
        return self.keys[:, :, start : t + 1], self.values[:, :, start : t + 1]


class Decoder:
    """logits = decoder(tokens): what the model says after one more token a text.   (B,) integers -> (B, V)

    model: a GPT or Transformer that `decodes`; cache: what it has read, at least one position. frequencies: by how much
    features turn from a position to the next, {local or not: (R / 2,)}. Raises ValueError where the context is full.
    """

    def __init__(self, model: Any, cache: Any, frequencies: dict[bool, Array] | None = None):
        self.model, self.length, self.mask = model, cache.length, cache.mask
        self.positions = cache.length if self.mask is None else self.mask.sum(axis=1)  # of the next token
        self.frequencies, self.dtype = frequencies or {}, model.wte.weight.dtype
        self.blocks = [Memory(block, cache.pairs[i], model.places) for i, block in enumerate(model.blocks)]
        widths = {model.width, self.blocks[0].shape[-1]}
        self.means = {width: np.full((width, 1), 1 / width, self.dtype) for width in widths}  # x @ mean: of each row
        scaled = getattr(getattr(model, "architecture", None), "scaled_embedding", False)
        self.scale = math.sqrt(model.width) if scaled else None
        self.head = getattr(model, "head", None) or model.wte

    def __call__(self, tokens: Array) -> Array:
        """(B,) -> (B, V)"""
        model, vocab_size = self.model, self.model.vocab_size
        if tokens.dtype.kind not in "iu" or not all([0 <= token < vocab_size for token in tokens.tolist()]):
            check_tokens("Decoder", tokens, vocab_size)  # which takes longer to ask, and says what came
        if self.length == model.places:
            raise ValueError(f"Decoder: the {model.limit} = {model.places} is full")
        x = model.wte.weight.data[tokens]  # (B, C)
        if self.scale is not None:
            x = x * self.scale
        if model.wpe is not None:
            x = x + model.wpe.weight.data[self.positions]
        if self.mask is not None:
            self.mask = np.concatenate([self.mask, np.ones((len(tokens), 1), bool)], axis=1)  # (B, S)
        angles = {local: self.angles(f) for local, f in self.frequencies.items()} if self.frequencies else None
        for memory in self.blocks:
            block = memory.block
            y = linear(self.attend(memory, self.norm(x, block.ln_1), angles), memory.attn.o_proj)
            x = x + (y if memory.post[0] is None else self.norm(y, memory.post[0]))
            n = self.norm(x, block.ln_2)
            inside = memory.activation(linear(n, block.mlp.up_proj if memory.gate is None else memory.gate))[0]
            if memory.gate is not None:
                inside *= linear(n, block.mlp.up_proj)  # (B, F)
            y = linear(inside, block.mlp.down_proj)
            x += y if memory.post[1] is None else self.norm(y, memory.post[1])
        self.length += 1
        self.positions = self.positions + 1
        return self.norm(x, model.ln_f) @ self.head.weight.data.T  # (B, V)

    def angles(self, frequencies: Array) -> tuple[Array, Array]:
        """cos and sin of the angles at this position: (R / 2,), or (B, 1, R / 2) where each text has its own"""
        angles = np.multiply.outer(self.positions, frequencies)
        angles = angles if angles.ndim == 1 else angles[:, None]
        return np.cos(angles).astype(self.dtype), np.sin(angles).astype(self.dtype)

    def attend(self, memory: Memory, x: Array, angles: dict[bool, tuple] | None) -> Array:
        """softmax(scale q k^T) v for one query a head   (B, C) -> (B, H D)"""
        y, h, k = memory.project(x), memory.heads, memory.kv_heads  # (B, H + 2K, D)
        if memory.q_norm is not None:
            y[:, :h], y[:, h : h + k] = self.norm(y[:, :h], memory.q_norm), self.norm(y[:, h : h + k], memory.k_norm)
        if angles is not None:
            turn(y[:, : h + k], *angles[memory.local])
        keys, values = memory.write(self.length, y[:, h : h + k], y[:, h + k :])
        q = (y[:, :h] * memory.scale).reshape(len(y), k, h // k, -1)  # (B, K, H / K, D)
        e = q @ keys.swapaxes(-1, -2)  # (B, K, H / K, S)
        if self.mask is not None:
            np.copyto(e, -np.inf, where=~self.mask[:, None, None, -e.shape[-1] :])
        e -= e.max(axis=-1, keepdims=True)
        np.exp(e, out=e)
        e /= e.sum(axis=-1, keepdims=True)
        return (e @ values).reshape(len(y), -1)

    def norm(self, x: Array, norm: Any) -> Array:
        """w (x - mean) / sqrt(var + eps) + b, or w x / sqrt(mean x^2 + eps)   (..., C) -> (..., C)"""
        mean, rms = self.means[x.shape[-1]], type(norm) is RMSNorm
        weight = norm.weight.data + 1 if rms and norm.offset else norm.weight.data
        n = x if rms else x - x @ mean
        variance = (n * n) @ mean  # (..., 1)
        largest = variance.item() if variance.size == 1 else variance.max()
        if not largest < math.inf:  # a square is too large for float32; the primitive knows what to do
            if rms:
                return rms_norm(x, weight, norm.eps)[0]
            return layer_norm(x, weight, norm.bias if norm.bias is None else norm.bias.data, norm.eps)[0]
        variance += norm.eps
        n = np.divide(n, np.sqrt(variance, out=variance), out=None if rms else n)
        n *= weight
        return n if rms or norm.bias is None else n + norm.bias.data


def turn(x: Array, cos: Array, sin: Array) -> None:
    """Turn the first R features of each head by a position's angles, where they are (`ops.rotate`).   x: (B, H, D)"""
    half = cos.shape[-1]
    one, two = x[..., :half], x[..., half : 2 * half]
    one[...], two[...] = one * cos - two * sin, two * cos + one * sin


def linear(x: Array, layer: Linear) -> Array:
    """x W^T + b"""
    y = x @ layer.weight.data.T
    return y if layer.bias is None else y + layer.bias.data
