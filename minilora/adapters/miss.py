"""MiSS: one trained matrix D, whose columns are shared by pieces of the input (Kang & Yin 2024, "MiSS: Balancing LoRA
Performance and Efficiency with Simple Shard Sharing"; its earlier form was called Bone).

    y = x W^T + b + h D        h_j = x_j + x_{j+r} + x_{j+2r} + ...        D (r, d_out) trained, from zero
    Delta W[o, i] = D[i mod r, o]

The input is cut into pieces of length r, which are added up, and D maps the sum: pieces share D. So MiSS is LoRA with
B = D^T and a fixed A = [1 1 1 ...], r x r identities side by side: no random numbers, no product with A, r d_out
numbers to train, and a rank of r at most. By the product rule dD = h^T g, and dx gets g D^T, once for each piece. D
starts at zero, and so the adapted model exactly at the base model; A is no zero, so D moves at once. A last piece that
is too short is filled with zeros, as in PEFT.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..autograd import ops
from ..autograd.backend import array_module, new_array
from ..autograd.tensor import Tensor
from ..nn.layers import parameter
from ..nn.module import Module
from .adapter import method
from .lora import shape_of
from .low_rank import LowRank
from .on_linears import OnLinears
from .targets import Patterns


def pieces_added(x: Tensor, r: int) -> Tensor:
    """h_j = sum of x_i over i = j, j + r, j + 2r, ...   (..., d_in) -> (..., r)"""
    if short := -x.shape[-1] % r:
        zeros = array_module(x.data).zeros((*x.shape[:-1], short), x.data.real.dtype)
        x = ops.concatenate([x, zeros], axis=-1)
    return ops.sum(ops.reshape(x, (*x.shape[:-1], -1, r)), axis=-2)


class MiSS(LowRank):
    """A linear layer with h D beside it, h the sum of the pieces of its input."""

    optional_parameters = ("miss_D",)

    def __init__(self, base: Any, config: "MiSSConfig", path: str, shared: None):
        vars(self).update(vars(base))  # the base's very weight, or its codes, and bias
        self.config, self.dropout, self.shape = config, config.dropout, shape_of(base)
        self.miss_D = parameter(np.zeros((config.rank, self.shape[0])))  # (r, d_out)

    def update(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """h D of x' = dropout(x).   (..., d_in) -> (..., d_out)"""
        return pieces_added(self.dropped(x, rng), self.config.rank) @ self.miss_D

    def factors(self) -> tuple[Tensor, Tensor]:
        """A = [1 1 1 ...] (r, d_in) and B = D^T (d_out, r): a LoRA"""
        r, d_in = self.config.rank, self.shape[1]
        A = np.arange(d_in) % r == np.arange(r)[:, None]
        return Tensor(new_array(A.astype(self.miss_D.dtype))), ops.transpose(self.miss_D)


@method("miss")
@dataclass(frozen=True)
class MiSSConfig(OnLinears):
    """What to adapt, and how.

    rank: r, the length of a piece. target_modules, exclude_modules, dropout: as in `LoRAConfig`. modules_to_save:
    modules trained in full beside. Raises ValueError for values outside these, and, once the model is seen, for a rank
    beyond the inputs of a layer.
    """

    layer: ClassVar = MiSS
    scale: ClassVar[float] = 1.0
    rank: int = 8
    target_modules: Patterns = ("q_proj", "v_proj")
    dropout: float = 0.0
    exclude_modules: Patterns = ()
    modules_to_save: Patterns = ()

    def check(self, model: Module) -> None:
        """Raise ValueError for pieces that are longer than an input."""
        for path, layer in self.chosen(model).items():
            if self.rank > (d_in := shape_of(layer)[1]):
                raise ValueError(f"add_adapter: rank {self.rank} exceeds d_in = {d_in} of {path}")
