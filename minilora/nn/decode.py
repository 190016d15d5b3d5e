"""One token at a time: `gpt.py`'s forward pass for the next position of a text, on plain arrays.

A token is so little work that most of the time goes to calling functions. So nothing is recorded here, q, k and v come
out of one product, and keys and values are written into arrays that were made long enough at the start.
"""

import math
from typing import Any

import numpy as np

from ..autograd import ops
from ..autograd.backend import Array
from ..autograd.fused import check_tokens
from .layers import LayerNorm, Linear

gelu: Any = ops.gelu.__wrapped__.__wrapped__  # type: ignore[attr-defined]  # on arrays of float32 or more: -> y, vjps
layer_norm: Any = ops.layer_norm.__wrapped__  # type: ignore[attr-defined]


class Decoder:
    """logits = decoder(tokens): what the model says after one more token a text.   (B,) integers -> (B, V)

    model: a GPT of plain or merged linear layers in one precision, float32 or more (below, sums need more than the
    numbers have); cache: what the model has read, at least one position. Raises ValueError where the context is full.
    """

    def __init__(self, model: Any, cache: Any):
        config = model.config
        self.model, self.length, self.heads = model, cache.length, config.n_head
        self.mean = np.full((config.n_embd, 1), 1 / config.n_embd, model.wte.weight.dtype)  # x @ mean: of each row
        self.blocks = []
        for i, block in enumerate(model.blocks):
            memory = []
            for seen in cache.pairs[i]:  # (B, H, S, D)
                b, h, s, d = seen.shape
                memory.append(np.empty((b, h, config.block_size, d), seen.dtype))
                memory[-1][:, :, :s] = seen.data
            qkv = [block.attn.q_proj, block.attn.k_proj, block.attn.v_proj]
            weight = np.concatenate([m.weight.data for m in qkv])  # (3C, C)
            bias = np.concatenate([m.bias.data for m in qkv]) if config.bias else None
            self.blocks.append((block, weight, bias, *memory))

    def __call__(self, tokens: Array) -> Array:
        """(B,) -> (B, V)"""
        model, t = self.model, self.length
        vocab_size = model.config.vocab_size
        if tokens.dtype.kind not in "iu" or not all([0 <= token < vocab_size for token in tokens.tolist()]):
            check_tokens("Decoder", tokens, vocab_size)  # which takes longer to ask, and says what came
        if t == model.config.block_size:
            raise ValueError(f"Decoder: the context of block_size = {t} is full")
        x = model.wte.weight.data[tokens] + model.wpe.weight.data[t]  # (B, C)
        for block, weight, bias, keys, values in self.blocks:
            n = self.norm(x, block.ln_1)
            qkv = n @ weight.T if bias is None else n @ weight.T + bias  # (B, 3C)
            q, k, v = qkv.reshape(len(x), 3, self.heads, -1).swapaxes(0, 1)  # (B, H, D)
            keys[:, :, t], values[:, :, t] = k, v
            a = self.attend(q, keys[:, :, : t + 1], values[:, :, : t + 1])  # (B, C)
            x = x + linear(a, block.attn.o_proj)
            up = linear(self.norm(x, block.ln_2), block.mlp.up_proj)  # (B, 4C)
            x += linear(gelu(up)[0], block.mlp.down_proj)
        self.length += 1
        return self.norm(x, model.ln_f) @ model.wte.weight.data.T  # (B, V)

    def norm(self, x: Array, ln: LayerNorm) -> Array:
        """w (x - mean) / sqrt(var + 1e-5) + b   (B, C) -> (B, C)"""
        n = x - x @ self.mean
        variance = (n * n) @ self.mean  # (B, 1)
        largest = variance.item() if len(variance) == 1 else variance.max()
        if not largest < math.inf:  # a square is too large for float32; the primitive knows what to do
            return layer_norm(x, ln.weight.data, ln.bias if ln.bias is None else ln.bias.data)[0]
        n /= np.sqrt(variance + 1e-5)
        n *= ln.weight.data
        return n if ln.bias is None else n + ln.bias.data

    @staticmethod
    def attend(q: Array, k: Array, v: Array) -> Array:
        """softmax(q k^T / sqrt(D)) v for one query a head   (B, H, D), (B, H, S, D), (B, H, S, D) -> (B, H D)"""
        b, h, d = q.shape
        e = (k @ (q[..., None] * (1 / math.sqrt(d))))[..., 0]  # (B, H, S)
        e -= e.max(axis=-1, keepdims=True)
        np.exp(e, out=e)
        e /= e.sum(axis=-1, keepdims=True)
        return (e[:, :, None] @ v).reshape(b, h * d)


def linear(x: Array, layer: Linear) -> Array:
    """x W^T + b"""
    y = x @ layer.weight.data.T
    return y if layer.bias is None else y + layer.bias.data
