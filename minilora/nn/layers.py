"""Layers: a parameter or two and the primitive that uses them."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..autograd import ops
from ..autograd.backend import Array, new_array
from ..autograd.tensor import Tensor
from .module import Module

STANDARD_DEVIATION = 0.02  # of initial weights: Radford et al. 2018, "GPT", section 4.1

Plain = tuple[Array | Callable[[Array], Array], Array | None, list[tuple[Array, Array]]]


def parameter(values: Any, dtype: Any = np.float32) -> Tensor:
    """A trainable leaf on the current backend."""
    return Tensor(new_array(values, dtype=dtype), requires_grad=True)


def as_patches(images: Any, p: int) -> Any:
    """Pictures, a Tensor or an array, as rows of patches, row by row.   (B, S, S, ...) -> (B, (S / p)^2, p^2 ...)"""
    (b, s), rest = images.shape[:2], images.shape[3:]
    tiles = images.reshape(b, s // p, p, s // p, p, *rest).swapaxes(2, 3)  # (B, S / p, S / p, p, p, ...)
    return tiles.reshape(b, (s // p) ** 2, p * p * math.prod(rest))


def as_pictures(patches: Any, size: int, p: int) -> Any:
    """`as_patches` undone, for pictures of a side of `size`.   (B, (S / p)^2, p^2), in any form -> (B, S, S)"""
    b, n = patches.shape[0], size // p
    return patches.reshape(b, n, n, p, p).swapaxes(2, 3).reshape(b, size, size)


class Linear(Module):
    """y = x W^T + b.   W: (d_out, d_in), b: (d_out,) or None"""

    def __init__(self, d_in: int, d_out: int, bias: bool, rng: np.random.Generator, std: float = STANDARD_DEVIATION):
        self.weight = parameter(rng.normal(0, std, (d_out, d_in)))
        self.bias = parameter(np.zeros(d_out)) if bias else None

    def __call__(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """x: (..., d_in) -> (..., d_out). `rng` is for the layers that take this one's place and drop out."""
        return ops.linear(x, self.weight, self.bias)

    def plain(self) -> Plain:
        """What this layer does, for `decode.py`: (W or x -> x W^T, b, [(A^T, s B^T) of what is added, ...])."""
        return self.weight.data, None if self.bias is None else self.bias.data, []

    def cross_entropy(self, x: Tensor, targets: Any, rng: np.random.Generator | None = None) -> Tensor:
        """The loss of this layer as an output head, whose logits are never all held.   (..., d_in), (...) -> ()"""
        if type(self) is Linear and self.bias is None:  # what takes its place adds to x W^T
            return ops.linear_cross_entropy(x, self.weight, targets)
        return ops.cross_entropy(self(x, rng), targets)


class Embedding(Module):
    """y = W[tokens].   W: (V, C)"""

    def __init__(self, count: int, width: int, rng: np.random.Generator):
        self.weight = parameter(rng.normal(0, STANDARD_DEVIATION, (count, width)))

    def __call__(self, tokens: Any) -> Tensor:
        """tokens: (...) integers -> (..., C)"""
        return ops.embedding(self.weight, tokens)

    def plain(self) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
        """For `decode.py`: tokens -> W[tokens], and x -> x W^T."""
        return lambda tokens: self.weight.data[tokens], lambda x: x @ self.weight.data.T

    def logits(self, x: Tensor) -> Tensor:
        """x W^T, where the table is the output head as well (Press & Wolf 2017).   (..., C) -> (..., V)"""
        return ops.linear(x, self.weight)

    def cross_entropy(self, x: Tensor, targets: Any, bias: Tensor | None = None) -> Tensor:
        """The loss of these logits, and of a bias, which are never all held.   (..., C), (...) -> ()"""
        if type(self) is Embedding:
            return ops.linear_cross_entropy(x, self.weight, targets, bias)
        return ops.cross_entropy(self.logits(x) if bias is None else self.logits(x) + bias, targets)


class LayerNorm(Module):
    """y = w (x - mean) / sqrt(var + eps) + b, over the last axis.   w: (C,), b: (C,) or None"""

    def __init__(self, width: int, bias: bool, eps: float = 1e-5):
        self.weight = parameter(np.ones(width))
        self.bias = parameter(np.zeros(width)) if bias else None
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """x: (..., C) -> (..., C)"""
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm(Module):
    """y = w x / sqrt(mean(x^2) + eps), over the last axis (Zhang & Sennrich 2019, eq. 4).   w: (C,)

    offset: 1 where the scale is 1 + w, so that a weight of zero changes nothing, as Gemma's files have it; else 0.
    """

    def __init__(self, width: int, eps: float, offset: int = 0):
        self.weight = parameter(np.full(width, 1 - offset))
        self.eps, self.offset = eps, offset

    def __call__(self, x: Tensor) -> Tensor:
        """x: (..., C) -> (..., C)"""
        return ops.rms_norm(x, self.weight + 1 if self.offset else self.weight, self.eps)
