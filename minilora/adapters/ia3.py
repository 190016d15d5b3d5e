"""IA3: learned numbers stretch what flows through a layer (Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning
is Better and Cheaper than In-Context Learning", section 3.3).

    y = l * (x W^T + b)        behind W_k and W_v:  l (d_out,), a number for each entry of a key and a value
    y = (l * x) W^T + b        in front of W_down:  l (d_in,), a number for each hidden unit of the MLP

All start at 1, so the adapted model starts exactly at the base model. A row or a column of W takes l in:
W[o] <- l_o W[o] and b_o <- l_o b_o, or W[:, i] <- l_i W[:, i]. With g the cotangent of y, behind a layer
dl_o = sum_n g_no (x W^T + b)_no, and in front of one dl_i = sum_n x_ni (g W)_ni. As in PEFT, which calls them so, too,
targets that are `feedforward_modules` are stretched in front, and a layer's bias is stretched with its output.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..autograd.backend import Array
from ..autograd.tensor import Tensor
from ..nn.layers import parameter
from ..nn.module import Module
from .adapter import StandIn, method
from .lora import shape_of
from .low_rank import cast
from .on_linears import OnLinears, linears_of
from .targets import OUTPUTS, Patterns, match_targets, patterns


class IA3(StandIn):
    """A linear layer whose outputs, or whose inputs, are stretched one by one."""

    optional_parameters = ("ia3_l",)  # a base checkpoint has none

    weight: Tensor
    bias: Tensor | None

    def __init__(self, base: Any, config: "IA3Config", path: str, inputs: set[str]):
        vars(self).update(vars(base))  # the base's very weight, or its codes, and bias
        self.feedforward = path in inputs
        self.ia3_l = parameter(np.ones(shape_of(base)[1 if self.feedforward else 0]))  # (d_in,) or (d_out,)

    def __call__(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """x: (..., d_in) -> (..., d_out)"""
        if self.unmerged is not None:
            return super().__call__(x)
        return super().__call__(self.stretched(x)) if self.feedforward else self.stretched(super().__call__(x))

    def stretched(self, z: Tensor) -> Tensor:
        """l * z, in z's precision: 16 bits where the base has 16.   (..., d) -> (..., d)"""
        return z * self.ia3_l if z.dtype.itemsize > 2 else cast(cast(z, "float32") * self.ia3_l, z.dtype)

    def merged_values(self) -> dict[str, Array]:
        """W <- W diag(l), or W <- diag(l) W and b <- l b"""
        W, factor = self.weight.data, self.ia3_l.data
        if self.feedforward:
            return {"weight": W * factor}
        return {"weight": factor[:, None] * W} | ({} if self.bias is None else {"bias": factor * self.bias.data})


@method("ia3")
@dataclass(frozen=True)
class IA3Config(OnLinears):
    """What is stretched: by default keys, values and the hidden units of the MLP, as in the paper.

    target_modules, exclude_modules: as in `LoRAConfig`. feedforward_modules: those of the targets whose inputs are
    stretched, where others' outputs are. modules_to_save: modules trained in full beside. Raises ValueError for what is
    no pattern, and, once the model is seen, for a pattern that means nothing in it.
    """

    layer: ClassVar = IA3
    target_modules: Patterns = ("k_proj", "v_proj", "down_proj")
    feedforward_modules: Patterns = ("down_proj",)
    exclude_modules: Patterns = ()
    modules_to_save: Patterns = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        inputs = patterns(self.feedforward_modules, f"{type(self).__name__}: feedforward_modules")
        object.__setattr__(self, "feedforward_modules", inputs)

    def shared(self, model: Module, layers: dict[str, Any]) -> set[str]:
        """The paths of the layers whose inputs are stretched, targets or not."""
        return set(match_targets(self.feedforward_modules, list(linears_of(model)), "feedforward_modules", OUTPUTS))
