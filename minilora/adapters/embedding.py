"""LoRA on an embedding table: what a token looks up gets an update of low rank.

    y = W[t] + s (B A)^T[t] = W[t] + s B a_t        W (V, C) frozen;  A (r, V) and B (C, r) trained;  a_t: column t of A

A token is a vector of V entries, one of them 1, and to look it up is to multiply: a table is a linear layer with the
weight W^T, (C, V). So Delta W^T = s B A, and LoRA's derivatives (`lora.py`) at such an x are, for g the cotangent of y,

    dB = s sum over places of g a_t^T (C, r),    da_t = s B^T sum over the places where t stands of g (r,).

Only columns of tokens that occur in a text move. A starts at zero and B from N(0, 1), the other way round than in a
linear layer: B is shared by all tokens, and with B = 0 a column would wait for the first token to turn it. Hu et al.'s
own code and PEFT begin so.

Where the table is the output head, too, the update is for looking up alone, as in PEFT: the head keeps W. Then nothing
can be merged, since the two would have to part; the layer says so in `cannot_merge`.
"""

from typing import Any

import numpy as np

from ..autograd import ops
from ..autograd.backend import Array
from ..autograd.tensor import Tensor
from ..nn.layers import Embedding
from .adapter import stand_in_for
from .bypass import bypassed, only_read
from .initialise import STARTS, Start
from .low_rank import LowRank, added


class LoRAEmbedding(LowRank, Embedding):
    """An embedding table with an update beside it; it shares `weight` with the table whose place it takes."""

    def __init__(self, base: Any, config: Any, rng: np.random.Generator):
        v, c = base.packed().get("weight") or base.weight.shape
        start: Start = np.zeros((config.rank, v)), rng.standard_normal((c, config.rank)), False
        if config.init == "pissa":
            start = STARTS["pissa"](base.weight.data.T, config.rank, config.scale, rng)
        self.begin(base, config, start)

    def __call__(self, tokens: Any) -> Tensor:
        """tokens: (...) integers -> (..., C)"""
        y = super().__call__(tokens)
        return y if self.unmerged is not None else added(y, self.update(tokens))

    def update(self, tokens: Any, rng: np.random.Generator | None = None) -> Tensor:
        """s B a_t for each token.   (...) -> (..., C)"""
        A, B = self.factors()
        return ops.linear(self.config.scale * ops.embedding(ops.transpose(A), tokens), B)  # (..., r) inside

    def delta(self) -> Array:
        """Delta W = s (B A)^T, (V, C)"""
        return super().delta().T


def adapted_table(base: Any, config: Any, rng: np.random.Generator) -> LoRAEmbedding:
    """The layer that takes the place of one embedding, of whatever kind."""
    kind: Any = type(base)
    return (LoRAEmbedding if kind is Embedding else stand_in_for(LoRAEmbedding, kind))(base, config, rng)


def tie(model: Any, path: str) -> str:
    """Why an update of the table at `path` cannot be merged, or "": the table is the output head, too.

    Raises ValueError for a table whose rows are only ever read past it: an update there would do nothing.
    """
    if reader := only_read(model, path):
        why = f"{reader} reads its weight and never calls it, so an update would do nothing"
        raise ValueError(f"add_lora: {path}: {why}")
    shared = bypassed(model, [path])
    return (
        f"{shared[0]}: a tied head. The update is for looking up alone, and merged it would reach both"
        if shared
        else ""
    )
