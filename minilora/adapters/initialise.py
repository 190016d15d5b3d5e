"""How A and B begin: functions of the weight W, one for each name that `LoRAConfig(init=...)` takes.

A function gives A (r, d_in), B (d_out, r), and whether the base is corrected by what they start with. Most start at
B = 0: the update is zero, and there is nothing to correct. PiSSA does not (Meng et al. 2024, "PiSSA", section 3):

    W = U S V^T;    A0 = sqrt(S_r / s) V_r^T,   B0 = U_r sqrt(S_r / s);    A and B start there       (eq. 2 and 3)
    y = x (W - s B0 A0)^T + b + s (x A^T) B^T                                                        (eq. 4 and 5)

U_r, S_r, V_r: the r largest. s B0 A0 is then the best approximation of W of rank r. What is left of W is frozen, and
the principal part is trained: both A and B move from the first step on, where LoRA's dA is zero.

We leave W whole, so that other adapters can share it, and keep A0 and B0, frozen. The corrected update then is

    s (B A - B0 A0) = s ((B - B0) A + B0 (A - A0)) = s [B - B0, B0] [A; A - A0],

a LoRA of rank 2r; PiSSA's appendix turns it into LoRA in much the same way. Written so, each term holds a factor that
is exactly zero at the start: the adapted model starts exactly at the base model, and small steps are not lost in the
rounding of a difference of large products.
"""

import math
from collections.abc import Callable

import numpy as np

from ..autograd.backend import Array, array_module, new_array

Start = tuple[Array, Array, bool]  # A, B, and whether s B A of the start is subtracted


def kaiming(W: Array, r: int, s: float, rng: np.random.Generator) -> Start:
    """A from U(-1/sqrt(d_in), 1/sqrt(d_in)), as the paper's code draws it (Kaiming-uniform with a = sqrt(5)), B = 0."""
    d_out, d_in = W.shape
    bound = 1 / math.sqrt(d_in)
    return rng.uniform(-bound, bound, (r, d_in)), np.zeros((d_out, r)), False


def gaussian(W: Array, r: int, s: float, rng: np.random.Generator) -> Start:
    """A from N(0, 1/r^2), as PEFT's "gaussian" draws it, B = 0."""
    d_out, d_in = W.shape
    return rng.normal(0, 1 / r, (r, d_in)), np.zeros((d_out, r)), False


def pissa(W: Array, r: int, s: float, rng: np.random.Generator) -> Start:
    """A0 and B0 with s B0 A0 the best approximation of W of rank r, evenly shared. Raises ValueError for a W with NaN.

    The singular value decomposition is computed in float64, whatever W's precision.
    """
    xp = array_module(W)
    if not bool(xp.isfinite(W).all()):
        raise ValueError(f"pissa: a weight {W.shape} holds values that are not finite: it has no singular vectors")
    U, S, Vt = xp.linalg.svd(new_array(W, dtype=np.float64), full_matrices=False)
    root = (S[:r] / s) ** 0.5  # (r,)
    return root[:, None] * Vt[:r], U[:, :r] * root, True


STARTS: dict[str, Callable[[Array, int, float, np.random.Generator], Start]] = {
    "kaiming": kaiming,
    "gaussian": gaussian,
    "pissa": pissa,
}

GRADIENT = "lora-ga"  # begins from a gradient, which `lora_ga.py` or a file brings: here it has a place


def start_of(init: str, W: Array, r: int, s: float, rng: np.random.Generator) -> Start:
    """How a layer with the weight W begins; where the gradient decides, room for A and B and what they start with."""
    if init == GRADIENT:
        return np.zeros((r, W.shape[1])), np.zeros((W.shape[0], r)), True
    return STARTS[init](W, r, s, rng)
