"""DoRA: LoRA turns the rows of a weight, and a number for each row stretches them (Liu et al. 2024, "DoRA", section 4).

    V = W + s B A            the direction: LoRA's update, which may also change the rows' lengths
    c = m / ||V||            one factor a row: the trained magnitude over the length that the row has now
    W' = c V                 so row o of W' has the length m_o, whatever A and B do            (section 4.1, eq. 5)
    y = x W'^T + b = c (x W^T + s (x A^T) B^T) + b

A (r, d_in), B (d_out, r) and m (d_out,) are trained. m starts as ||W||, row by row, and B at zero: c is exactly 1, and
the adapted model starts exactly at the base model. The paper writes "column"; like its authors' code we take a row of
our (d_out, d_in), all the weights that lead to one output.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..autograd import ops
from ..autograd.backend import Array, to_numpy
from ..autograd.tensor import Tensor
from ..nn.checks import flag
from ..nn.layers import Embedding, Linear, parameter
from ..nn.module import Module
from .adapter import method
from .lora import LoRAConfig, LoRALinear, added


@method("dora")
@dataclass(frozen=True)
class DoRAConfig(LoRAConfig):
    """What to adapt, and how: LoRA's settings and one more. Raises ValueError for values outside those of LoRAConfig.

    exact_norm: False takes ||V|| for a constant in the backward pass, as section 4.3 (eq. 11) does to save memory; True
    differentiates it, too. Outputs are the same. init: "kaiming" or "gaussian". dropout: on the input of all that is
    added to the base layer's output, x W^T (c - 1) included, as in PEFT.
    """

    inits: ClassVar[tuple[str, ...]] = ("kaiming", "gaussian")
    exact_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        flag(self.exact_norm, f"{type(self).__name__}: exact_norm")

    def build(self, model: Module, rng: np.random.Generator) -> dict[str, Module]:
        """{path: a DoRA layer}. Raises ValueError where a row of W is zero or not finite: it has no direction."""
        layers: dict[str, Any] = super().build(model, rng)
        for path, layer in layers.items():
            for row, length in enumerate(to_numpy(layer.magnitude.data) if isinstance(layer, DoRALinear) else ()):
                if not 0 < length < math.inf:
                    raise ValueError(f"dora: row {row} of {path}.weight has length {length}, and so no direction")
        return layers

    def layer(self, base: Linear, rng: np.random.Generator) -> "DoRALinear":
        """The layer that takes the place of one linear layer."""
        return DoRALinear(base, self, rng)

    def table(self, base: Embedding, rng: np.random.Generator) -> Any:
        """A table has no place in DoRA's paper. Raises ValueError."""
        raise ValueError("dora: an embedding table is no target of DoRA, whose paper is of linear layers; use LoRA")


class DoRALinear(LoRALinear):
    """A linear layer whose rows are turned by A and B and stretched by `magnitude`."""

    config: DoRAConfig
    is_product = False  # c (W + s B A) - W is none
    optional_parameters = (*LoRALinear.optional_parameters, "magnitude")

    def __init__(self, base: Linear, config: DoRAConfig, rng: np.random.Generator):
        super().__init__(base, config, rng)
        self.magnitude = parameter(self.norm().data, self.lora_A.dtype)  # (d_out,), by the very sum that divides it

    def norm(self) -> Tensor:
        """||V|| = ||W + s B A||, the length of each row: (d_out,)"""
        return _lengths(self.weight + self.config.scale * (self.lora_B @ self.lora_A))

    def __call__(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """x: (..., d_in) -> (..., d_out)

        With V's length a constant, dA and dB are LoRA's with c g in the place of g, and dm = (sum of g V x) / ||V||.
        Differentiated exactly, the gradient of each row of V also loses its part along that row, since a longer row of
        V is divided by its length again (section 4.2, eq. 6).
        """
        W, b = self.weight, self.bias
        if self.unmerged is not None:
            return ops.linear(x, W, b)
        if x.dtype.itemsize > 2 and (rng is None or not self.dropout):
            y = self.stretch() * ops.lora_linear(
                x, W, None, self.lora_A, self.lora_B, self.config.scale
            )  # (..., d_out)
            return y if b is None else y + b
        return added(ops.linear(x, W, b), self.update(x, rng))  # the base's own x W^T + b drops nothing

    def stretch(self) -> Tensor:
        """c = m / ||V||: (d_out,)"""
        return self.magnitude / (self.norm() if self.config.exact_norm else self.norm().detach())

    def update(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """What is added to the base layer's output: (c - 1) x' W^T + c s (x' A^T) B^T with x' = dropout(x)."""
        kept, c = self.dropped(x, rng), self.stretch()
        update = self.config.scale * ops.linear(ops.linear(kept, self.lora_A), self.lora_B)  # (..., d_out)
        return (c - 1) * ops.linear(kept, self.weight) + c * update

    def delta(self) -> Array:
        """Delta W = c (W + s B A) - W, (d_out, d_in)"""
        W = self.weight.data if self.unmerged is None else self.unmerged["weight"]
        V = W + super().delta()
        return (self.magnitude.data / _lengths(V).data)[:, None] * V - W


def _lengths(V: Any) -> Tensor:
    """The Euclidean length of each row.   (d_out, d_in) -> (d_out,)"""
    return ops.sqrt(ops.sum(V * V, axis=1))
