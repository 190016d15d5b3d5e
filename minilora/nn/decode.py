"""One token at a time: the forward pass of `gpt.py` and `transformer.py` for a text's next position, on plain arrays.

A token is so little work that of a small model most of the time goes to calling functions, of a large one to reading
its weights. So nothing is recorded here, no weight is copied but small ones, of which q, k and v come out of one
product, and keys and values are written into arrays that are longer than they need to be.
Shapes: B batch, S keys, C width, H heads, K heads of keys and values, D width of a head, R of its features turned.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..autograd import ops
from ..autograd.backend import Array, array_module
from ..autograd.fused import check_tokens
from .layers import Embedding, Linear, RMSNorm

# The primitives themselves, on arrays of float32 or more: -> y, vjps
layer_norm, rms_norm, *_activations = (
    inspect.unwrap(function)
    for function in (ops.layer_norm, ops.rms_norm, ops.gelu, ops.gelu_exact, ops.silu, ops.relu)  # type: ignore
)
ACTIVATIONS: dict[str, Any] = dict(zip(("gelu_tanh", "gelu", "silu", "relu"), _activations, strict=True))
SMALL = 2**18  # numbers in the weights of q, k and v, up to which they are copied into one
ROOM = 256  # positions that keys and values have room for at first, beyond what was read


def decodes(model: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a Decoder computes what a model does: its modules are of these kinds, or merged, or can say it plainly.

    Floats are of one precision, float32 or more: below, sums need more than the numbers have.
    """
    modules = [m for name, m in model.named_modules() if not name.startswith("front")]
    simple = all(type(m) in kinds or getattr(m, "unmerged", None) or plain_of(m) is not None for m in modules)
    dtypes = {p.dtype for p in model.parameters()}
    return simple and len(dtypes) == 1 and dtypes.pop().itemsize >= 4 and array_module(model.ln_f.weight.data) is np


def plain_of(layer: Any) -> Any:
    """`layer.plain()`, if that and its __call__ are of one class, and so say one thing; once merged, its weight's."""
    of_call = next((kind for kind in type(layer).__mro__ if vars(kind).keys() & {"__call__", "plain"}), object)
    if "plain" in vars(of_call):
        return layer.plain()
    kind = next((kind for kind in (Linear, Embedding) if isinstance(layer, kind)), None)
    return kind.plain(layer) if kind and getattr(layer, "unmerged", None) else None


def product(layers: list[Linear], dtype: Any) -> Callable[[Array], Array]:
    """x -> what layers make of one x, side by side.   (B, C) -> (B, d_1 + d_2 + ...)

    Small weights are copied for it, made floats where they are few bits, with what is added to them: one product.
    """
    parts = [plain_of(layer) for layer in layers]
    sizes = [layer.packed().get("weight") or layer.weight.shape for layer in layers]
    if sum(math.prod(size) for size in sizes) > SMALL:
        each = [_large(*part) for part in parts]
        return each[0] if len(each) == 1 else lambda x: np.concatenate([y(x) for y in each], axis=1)
    weights = [_floats(W, size[1], updates, dtype) for (W, _, updates), size in zip(parts, sizes, strict=True)]
    W = weights[0] if len(weights) == 1 else np.concatenate(weights, axis=1)  # (C, d_1 + d_2 + ...)
    biases = [np.zeros(size[0], dtype) if b is None else b for (_, b, _), size in zip(parts, sizes, strict=True)]
    bias = None if all(b is None for _, b, _ in parts) else np.concatenate(biases)
    rows = _rows([updates for _, _, updates in parts], sizes)
    return _large(W.T, bias, [] if rows is None else [rows])


def _large(W: Any, bias: Array | None, updates: list) -> Callable[[Array], Array]:
    """x -> x W^T + b + the sum of x A^T B^T, where A and B may be each row's own"""

    def y(x: Array) -> Array:
        total = W(x) if callable(W) else x @ W.T
        if bias is not None:
            total += bias
        for A, B in updates:
            total += (x[:, None] @ A @ B)[:, 0] if A.ndim == 3 else x @ A @ B
        return total

    return y


def _floats(W: Any, d_in: int, updates: list, dtype: Any) -> Array:
    """W^T (d_in, d_out) in floats, in the order that a batch is quick with, with what is added alike for every row."""
    W = W(np.eye(d_in, dtype=dtype)) if callable(W) else np.ascontiguousarray(W.T)
    return sum((A @ B for A, B in updates if A.ndim == 2), W)


def _rows(updates: list[list], sizes: list[tuple]) -> tuple[Array, Array] | None:
    """A^T (B, C, r) and s B^T (B, r, d_1 + d_2 + ...) of the updates that are each row's own, r their ranks' sum"""
    own = [(i, A, B) for i, those in enumerate(updates) for A, B in those if A.ndim == 3]
    if not own:
        return None
    starts = np.cumsum([0, *(size[0] for size in sizes)])
    total = sum(A.shape[2] for _, A, _ in own)
    stacked = np.zeros((len(own[0][1]), total, starts[-1]), own[0][2].dtype)
    at = 0
    for i, A, B in own:
        stacked[:, at : at + A.shape[2], starts[i] : starts[i + 1]] = B
        at += A.shape[2]
    return np.concatenate([A for _, A, _ in own], axis=2), stacked


class Memory:
    """What the decoder knows of one block: its layers, what sets it apart, and the keys and values it has seen."""

    def __init__(self, block: Any, seen: tuple, places: int):
        attn = self.attn = block.attn
        self.block, self.heads = block, attn.n_head
        self.kv_heads = getattr(attn, "kv_heads", attn.n_head)
        self.window, self.local = getattr(attn, "window", None), getattr(attn, "local", False)
        gate = getattr(block.mlp, "gate_proj", None)
        self.activation = ACTIVATIONS[getattr(block.mlp, "activation", "gelu_tanh")]
        self.q_norm, self.k_norm = getattr(attn, "q_norm", None), getattr(attn, "k_norm", None)
        self.post = getattr(block, "ln_1_post", None), getattr(block, "ln_2_post", None)
        (b, k, s, d), dtype = seen[0].shape, seen[0].dtype  # (B, K, S, D)
        self.qkv = product([attn.q_proj, attn.k_proj, attn.v_proj], dtype)
        self.out, self.up, self.down = (
            product([layer], dtype) for layer in (attn.o_proj, block.mlp.up_proj, block.mlp.down_proj)
        )
        self.gate = None if gate is None else product([gate], dtype)
        self.scale = getattr(attn, "scale", 1 / math.sqrt(d))
        self.shape = b, self.heads + 2 * k, d
        self.places = places
        self.keys, self.values = (np.empty((b, k, min(places, s + ROOM), d), dtype) for _ in range(2))
        self.keys[:, :, :s], self.values[:, :, :s] = (array.data for array in seen)

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
        self.frequencies, self.dtype = frequencies or {}, model.ln_f.weight.dtype
        self.blocks = [Memory(block, cache.pairs[i], model.places) for i, block in enumerate(model.blocks)]
        widths = {model.width, self.blocks[0].shape[-1]}
        self.means = {width: np.full((width, 1), 1 / width, self.dtype) for width in widths}  # x @ mean: of each row
        scaled = getattr(getattr(model, "architecture", None), "scaled_embedding", False)
        self.scale = math.sqrt(model.width) if scaled else None
        self.rows, self.logits = plain_of(model.wte)
        if getattr(model, "head", None) is not None:
            self.logits = product([model.head], self.dtype)
        self.places = None if model.wpe is None else plain_of(model.wpe)[0]

    def __call__(self, tokens: Array) -> Array:
        """(B,) -> (B, V)"""
        model, vocab_size = self.model, self.model.vocab_size
        if tokens.dtype.kind not in "iu" or not all([0 <= token < vocab_size for token in tokens.tolist()]):
            check_tokens("Decoder", tokens, vocab_size)  # which takes longer to ask, and says what came
        if self.length == model.places:
            raise ValueError(f"Decoder: the {model.limit} = {model.places} is full")
        x = self.rows(tokens)  # (B, C)
        if self.scale is not None:
            x = x * self.scale
        if self.places is not None:
            x = x + self.places(self.positions)
        if self.mask is not None:
            self.mask = np.concatenate([self.mask, np.ones((len(tokens), 1), bool)], axis=1)  # (B, S)
        angles = {local: self.angles(f) for local, f in self.frequencies.items()} if self.frequencies else None
        for memory in self.blocks:
            block = memory.block
            y = memory.out(self.attend(memory, self.norm(x, block.ln_1), angles))
            x = x + (y if memory.post[0] is None else self.norm(y, memory.post[0]))
            n = self.norm(x, block.ln_2)
            inside = memory.activation((memory.gate or memory.up)(n))[0]
            if memory.gate is not None:
                inside *= memory.up(n)  # (B, F)
            y = memory.down(inside)
            x += y if memory.post[1] is None else self.norm(y, memory.post[1])
        self.length += 1
        self.positions = self.positions + 1
        return self.logits(self.norm(x, model.ln_f))  # (B, V)

    def angles(self, frequencies: Array) -> tuple[Array, Array]:
        """cos and sin of the angles at this position: (R / 2,), or (B, 1, R / 2) where each text has its own"""
        angles = np.multiply.outer(self.positions, frequencies)
        angles = angles if angles.ndim == 1 else angles[:, None]
        return np.cos(angles).astype(self.dtype), np.sin(angles).astype(self.dtype)

    def attend(self, memory: Memory, x: Array, angles: dict[bool, tuple] | None) -> Array:
        """softmax(scale q k^T) v for one query a head   (B, C) -> (B, H D)"""
        y, h, k = memory.qkv(x).reshape(memory.shape), memory.heads, memory.kv_heads  # (B, H + 2K, D)
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
