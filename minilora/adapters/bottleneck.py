"""Bottleneck adapters: a small network behind a frozen one (Houlsby et al. 2019; Pfeiffer et al. 2021).

    y = x + W_up f(W_down x + b_down) + b_up        W_down (b, C), W_up (C, b), b much smaller than C; f: GELU or ReLU

It stands where a part of a block is done, before the result is added to what flows past. Houlsby puts one behind
attention and one behind the MLP (section 2.1, figure 2), Pfeiffer one behind the MLP alone (appendix A.2, figure 5;
their best form also has the pretrained norms before and behind the adapter, which we leave out). Houlsby starts near
the identity; here W_up starts at zero, so the adapted model starts exactly at the base model. W_down starts random, as
LoRA's A does and for the same reason: with both at zero nothing would ever move.

Beside LoRA, two things differ: f stands between the two matrices, so that no weight of the base can take the adapter
in; and the adapter waits for the layer before it instead of running beside it, which every token generated pays for.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..autograd import ops
from ..autograd.tensor import Tensor
from ..nn.checks import flag, is_whole, shown
from ..nn.language_model import LanguageModel
from ..nn.layers import LayerNorm, Linear
from ..nn.module import Module
from .adapter import StandIn, method, stand_in_for

ACTIVATIONS = {"gelu": ops.gelu, "relu": ops.relu}


class Bottleneck(Module):
    """y = x + W_up f(W_down n(x) + b_down) + b_up, with n a layer norm of its own, or nothing."""

    def __init__(self, width: int, config: "BottleneckConfig", rng: np.random.Generator):
        b = config.bottleneck
        self.norm = LayerNorm(width, bias=True) if config.adapter_norm else None
        self.down = Linear(width, b, True, rng, std=1 / math.sqrt(3 * width))  # the spread of LoRA's A
        self.up = Linear(b, width, True, rng, std=0)
        self.activation = config.activation

    def __call__(self, x: Tensor) -> Tensor:
        """x: (..., C) -> (..., C)"""
        h = self.norm(x) if self.norm is not None else x
        h = ACTIVATIONS[self.activation](self.down(h))  # (..., b)
        return x + self.up(h)  # (..., C)


class Adapted(StandIn):
    """A part of a block that keeps all it has and gets a bottleneck behind it."""

    cannot_merge = "a bottleneck has a nonlinearity between its two matrices, so no weight of the base can compute it"
    optional_parameters = tuple(  # a base checkpoint has none
        f"adapter.{layer}.{name}" for layer in ("down", "up", "norm") for name in ("weight", "bias")
    )

    def __init__(self, base: Module, adapter: Any):
        vars(self).update(vars(base))  # the base's very layers
        self.adapter = adapter

    def __call__(self, x: Tensor, *args: Any) -> Tensor:
        """x: (B, T, C) -> (B, T, C)"""
        return self.adapter(super().__call__(x, *args))


@dataclass(frozen=True)
class BottleneckConfig:
    """bottleneck: b, the width inside. adapter_norm: a layer norm before it. activation: f, "gelu" or "relu".

    Raises ValueError for values outside these.
    """

    bottleneck: int = 16
    adapter_norm: bool = False
    activation: str = "gelu"

    adapted: ClassVar[tuple[str, ...]] = ()  # the parts of a block that get one

    def __post_init__(self) -> None:
        name, b = type(self).__name__, self.bottleneck
        if not is_whole(b) or b < 1:
            raise ValueError(f"{name}: bottleneck = {shown(b)}, expected a positive integer")
        if not isinstance(self.activation, str) or self.activation not in ACTIVATIONS:
            raise ValueError(f"{name}: activation = {shown(self.activation)}, expected 'gelu' or 'relu'")
        flag(self.adapter_norm, f"{name}: adapter_norm")

    def build(self, model: Any, rng: np.random.Generator) -> dict[str, Module]:
        """{path: the same module with a bottleneck behind it}. Raises TypeError for a model that has no such parts."""
        if not isinstance(model, LanguageModel):
            raise TypeError(f"add_adapter: got a {type(model).__name__}; bottlenecks go behind the parts of a GPT")
        found: dict[str, Module] = {}
        for path in (f"blocks.{i}.{part}" for i in range(len(model.blocks)) for part in self.adapted):
            kind: Any = type(base := model.get_module(path))
            found[path] = stand_in_for(Adapted, kind)(base, Bottleneck(model.width, self, rng))
        return found


@method("houlsby")
class HoulsbyConfig(BottleneckConfig):
    """A bottleneck behind attention and one behind the MLP of every block (Houlsby et al. 2019, section 2.1)."""

    adapted: ClassVar = ("attn", "mlp")


@method("pfeiffer")
class PfeifferConfig(BottleneckConfig):
    """One bottleneck a block, behind the MLP (Pfeiffer et al. 2021, appendix A.2; without the norms around it)."""

    adapted: ClassVar = ("mlp",)
