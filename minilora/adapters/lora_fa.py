"""LoRA-FA: A is drawn at random and stays; only B is trained (Zhang et al. 2023, "LoRA-FA", section 3).

    y = x W^T + b + s (x A^T) B^T        A (r, d_in) frozen as it was drawn;  B (d_out, r) trained from zero

Half of LoRA's numbers, and less to remember: dA = dh^T x would need the layer's input x, (N, d_in), and dB = s g^T h
needs h = x A^T alone, (N, r). The tape sees that by itself: it keeps nothing for the derivative of what is frozen.

The paper's second version (2025) and PEFT's `create_lorafa_optimizer` also correct dB. Full fine-tuning would change W
along -G, G = g^T x; a step of B along -D changes it along -s D A. Of all D the one that comes closest to G,

    min_D ||s D A - G||_F^2:   s D A A^T = G A^T,   so   D = (1/s) G A^T (A A^T)^-1 = (1/s^2) dB (A A^T)^-1,

since dB = s G A^T. Rows of a random A are nearly orthogonal and equally long: A A^T is nearly a number times 1, and
AdamW divides numbers out. So we leave it to whoever asks for it: `corrected`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..autograd.backend import Array, array_module
from ..nn.layers import Embedding
from ..nn.module import Module
from .adapter import method
from .lora import LoRAConfig
from .low_rank import LowRank


@method("lora-fa")
@dataclass(frozen=True)
class LoRAFAConfig(LoRAConfig):
    """What to adapt, and how: LoRA's settings. init: "kaiming" or "gaussian", what A is drawn from."""

    inits: ClassVar[tuple[str, ...]] = ("kaiming", "gaussian")

    def build(self, model: Module, rng: np.random.Generator) -> dict[str, Module]:
        """{path: a LoRA layer whose A is frozen}, a quantised one, too"""
        layers: dict[str, Any] = super().build(model, rng)
        for layer in layers.values():
            if isinstance(layer, LowRank):
                layer.lora_A.requires_grad = False
        return layers

    def table(self, base: Embedding, rng: np.random.Generator) -> Any:
        """A table's A starts at zero, and frozen would stay there. Raises ValueError."""
        raise ValueError("lora-fa: an embedding table is no target: its A starts at zero and would stay so; use LoRA")


def corrected(dB: Array, A: Array, s: float) -> Array:
    """The step of B that changes W most like full fine-tuning's: (1/s^2) dB (A A^T)^-1.   (d_out, r) -> (d_out, r)"""
    xp = array_module(A)
    return xp.linalg.solve(A @ A.T, dB.T).T / s**2
