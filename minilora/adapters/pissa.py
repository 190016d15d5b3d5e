"""PiSSA: LoRA that starts from the weight's own largest singular directions (Meng et al. 2024, "PiSSA", section 3).

    W = U S V^T;    A0 = sqrt(S_r / s) V_r^T,   B0 = U_r sqrt(S_r / s);    A and B start there       (eq. 2 and 3)
    y = x (W - s B0 A0)^T + b + s (x A^T) B^T                                                        (eq. 4 and 5)

U_r, S_r, V_r: the r largest. s B0 A0 is then the best approximation of W of rank r. What is left of W is frozen, and
the principal part is trained: both A and B move from the first step on, where LoRA's dA is zero.

We leave W whole, so that other adapters can share it, and keep A0 and B0, frozen. The update then is

    s (B A - B0 A0) = s ((B - B0) A + B0 (A - A0)) = s [B - B0, B0] [A; A - A0],

a LoRA of rank 2r; the paper's appendix turns PiSSA into LoRA in much the same way. Written so, each term holds a
factor that is exactly zero at the start: the adapted model starts exactly at the base model, and small steps are not
lost in the rounding of a difference of large products.
"""

import numpy as np

from ..autograd import ops
from ..autograd.backend import Array, array_module, new_array
from ..autograd.tensor import Tensor
from ..nn.layers import Linear
from .lora import LoRAConfig, LoRALinear


class PiSSALinear(LoRALinear):
    """LoRA's layer with A and B started from W's singular vectors: `LoRAConfig(init="pissa")`.

    lora_A and lora_B are trained, as many numbers as LoRA has; lora_A0 and lora_B0 are as many again, frozen, and saved
    with them. dropout: on the input of the update as a whole, so that the start stays exact.
    """

    optional_parameters = ("lora_A", "lora_B", "lora_A0", "lora_B0")

    def __init__(self, base: Linear, config: LoRAConfig, rng: np.random.Generator):
        super().__init__(base, config, rng)
        A0, B0 = principal_factors(base.weight.data, config.rank, config.scale)
        for p, start in ((self.lora_A, A0), (self.lora_B, B0)):
            p.data[...] = start  # rounded to the precision of W
        self.lora_A0 = Tensor(self.lora_A.data.copy())  # (r, d_in)
        self.lora_B0 = Tensor(self.lora_B.data.copy())  # (d_out, r)

    def factors(self) -> tuple[Tensor, Tensor]:
        """[A; A - A0] (2r, d_in) and [B - B0, B0] (d_out, 2r): the two thin matrices of the update."""
        A = ops.concatenate([self.lora_A, self.lora_A - self.lora_A0], axis=0)  # (2r, d_in)
        B = ops.concatenate([self.lora_B - self.lora_B0, self.lora_B0], axis=1)  # (d_out, 2r)
        return A, B


def principal_factors(W: Array, r: int, s: float) -> tuple[Array, Array]:
    """A0 (r, d_in) and B0 (d_out, r) in float64, with s B0 A0 the best approximation of W of rank r, evenly shared.

    W: (d_out, d_in). Raises ValueError for a W that is not finite.
    """
    xp = array_module(W)
    if not bool(xp.isfinite(W).all()):
        raise ValueError(f"pissa: a weight {W.shape} holds values that are not finite: it has no singular vectors")
    U, S, Vt = xp.linalg.svd(new_array(W, dtype=np.float64), full_matrices=False)
    root = (S[:r] / s) ** 0.5  # (r,)
    return root[:, None] * Vt[:r], U[:, :r] * root
