"""VeRA: one random pair A, B for all layers, never trained; each layer trains two vectors (Kopiczko, Blankevoort &
Asano 2024, "VeRA: Vector-based Random Matrix Adaptation", section 3.1, eq. 2).

    y = x W^T + b + v * ((d * (x A^T)) B^T)        A (r, d_in), B (d_out, r) frozen;  d (r,), v (d_out,) trained
    Delta W = diag(v) B diag(d) A

d says which of r random directions count, v which outputs hear of them: r + d_out numbers in place of r (d_in + d_out),
so r can be large. v (the paper's b) starts at zero, so the adapted model starts exactly at the base model, and d at 0.1
(table 6). dv = sum_n g_n * (h B^T)_n with h = d * (x A^T), and dd = sum_n (x A^T)_n * ((g v) B)_n: with v = 0 only v
moves at first, as LoRA's B does.

A and B are drawn once, as wide as the widest layer (Kaiming's uniform, as in PEFT), and a narrower layer takes a part
of them. They are not stored: a file has d, v and the seed. NumPy keeps `RandomState`'s stream as it is for good, which
it does not promise of Generators. PEFT's stream is another: its pairs are other matrices.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..autograd import ops
from ..autograd.backend import Array, new_array
from ..autograd.tensor import Tensor
from ..nn.checks import is_real, is_whole, shown
from ..nn.layers import parameter
from ..nn.module import Module
from .adapter import method
from .lora import shape_of
from .low_rank import LowRank
from .on_linears import OnLinears
from .targets import Patterns


class RandomPair:
    """A (r, d_in) and B (d_out, r) from U(-sqrt(6 / n), sqrt(6 / n)), n the inputs of each: A's d_in, B's r."""

    def __init__(self, rank: int, d_out: int, d_in: int, seed: int):
        rng = np.random.RandomState(seed)
        draw = lambda rows, n: new_array(rng.uniform(-1, 1, (rows, n)) * math.sqrt(6 / n), dtype="float32")
        self.A, self.B = draw(rank, d_in), draw(d_out, rank)


class VeRA(LowRank):
    """A linear layer with v * B (d * A x) beside it, of a pair that all layers share."""

    optional_parameters = ("vera_d", "vera_b")

    def __init__(self, base: Any, config: "VeRAConfig", path: str, pair: RandomPair):
        vars(self).update(vars(base))  # the base's very weight, or its codes, and bias
        self.config, self.dropout, self.pair, self.shape = config, config.dropout, pair, shape_of(base)
        self.vera_d = parameter(np.full(config.rank, config.d_initial))  # (r,)
        self.vera_b = parameter(np.zeros(self.shape[0]))  # (d_out,)

    def update(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """v * ((d * (x' A^T)) B^T) with x' = dropout(x).   (..., d_in) -> (..., d_out)"""
        x = self.dropped(x, rng)
        A, B = self.of_pair(x.data.real.dtype)
        h = ops.linear(x, A)  # (..., r)
        return ops.linear(h * self.vera_d, B) * self.vera_b

    def of_pair(self, dtype: Any) -> tuple[Array, Array]:
        """This layer's part of the pair: A (r, d_in), B (d_out, r)"""
        d_out, d_in = self.shape
        return self.pair.A[:, :d_in].astype(dtype, copy=False), self.pair.B[:d_out].astype(dtype, copy=False)

    def factors(self) -> tuple[Tensor, Tensor]:
        """diag(d) A and diag(v) B: a LoRA of rank r"""
        d, v = self.vera_d, self.vera_b
        A, B = self.of_pair(d.data.real.dtype)
        return d.reshape(-1, 1) * A, v.reshape(-1, 1) * B


@method("vera")
@dataclass(frozen=True)
class VeRAConfig(OnLinears):
    """What to adapt, and how.

    rank: r, the width of the shared pair (the paper takes 256 to 1024). target_modules, exclude_modules, dropout: as in
    `LoRAConfig`. seed: of the pair, whatever the adapter's own. d_initial: what d starts at. modules_to_save: modules
    trained in full beside. Raises ValueError for values outside these.
    """

    layer: ClassVar = VeRA
    scale: ClassVar[float] = 1.0
    rank: int = 256
    target_modules: Patterns = ("q_proj", "v_proj")
    dropout: float = 0.0
    seed: int = 0
    d_initial: float = 0.1
    exclude_modules: Patterns = ()
    modules_to_save: Patterns = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if not is_whole(self.seed) or not 0 <= self.seed < 2**32:
            raise ValueError(f"{name}: seed = {shown(self.seed)}, expected an integer from 0 to 2^32 - 1")
        if not is_real(self.d_initial) or not math.isfinite(self.d_initial) or not self.d_initial:
            what = "expected a number that is not zero: with d and b at zero nothing would ever move"
            raise ValueError(f"{name}: d_initial = {shown(self.d_initial)}, {what}")

    def shared(self, model: Module, layers: dict[str, Any]) -> RandomPair:
        """The pair, as wide as the widest of the layers."""
        outs, ins = zip(*(shape_of(layer) for layer in layers.values()), strict=True)
        return RandomPair(self.rank, max(outs), max(ins), self.seed)
