"""LoRA on an embedding table: what a token looks up gets an update of low rank.

    y = W[t] + s (B A)^T[t] = W[t] + s B a_t        W (V, C) frozen;  A (r, V) and B (C, r) trained;  a_t: column t of A

A token is a vector of V entries, one of them 1, and to look it up is to multiply: a table is a linear layer with the
weight W^T, (C, V). So Delta W^T = s B A, and LoRA's derivatives (`lora.py`) at such an x are, for g the cotangent of y,

    dB = s sum over places of g a_t^T (C, r),    da_t = s B^T sum over the places where t stands of g (r,).

Only columns of tokens that occur in a text move. A starts at zero and B from N(0, 1), the other way round than in a
linear layer: B is shared by all tokens, and with B = 0 a column would wait for the first token to turn it. Hu et al.'s
own code and PEFT begin so.

Where the table is the output head, too, the update is for looking up alone, as in PEFT, and the head keeps W: nothing
can be merged then, since the two would have to part; the layer says so in `cannot_merge`. With ensure_weight_tying the
head computes with W + s (B A)^T as well, and the tie outlives a merge.
"""

from typing import Any

import numpy as np

from ..autograd import ops
from ..autograd.backend import Array
from ..autograd.tensor import Tensor
from ..nn.layers import Embedding
from .adapter import stand_in_for
from .bypass import bypassed, said_of
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
        if base.packed():
            self.cannot_merge = "the table is held in few bits, which have no room for an update"

    __call__ = LowRank.__call__  # type: ignore[assignment]  # said here, where `plain` is not: that is of linear layers

    def logits(self, x: Tensor) -> Tensor:
        """x W^T, where the head has the update, too: x (W + s (B A)^T)^T = x W^T + s (x B) A.   (..., C) -> (..., V)"""
        y = super().logits(x)
        if self.unmerged is not None or not self.config.ensure_weight_tying:
            return y
        A, B = self.factors()
        return added(y, ops.linear(self.config.scale * ops.linear(x, ops.transpose(B)), ops.transpose(A)))

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


def tie(model: Any, path: str, both: bool) -> str:
    """Why an update of the table at `path` cannot be merged, or "": the table is the output head, too.

    both: whether the head is to have the update, too (`ensure_weight_tying`): then it is merged for both. Raises
    ValueError where the head cannot have it, and for a table that is never called: an update there would do nothing.
    """
    said, readers = said_of(model, path)
    if said and said <= {"weight", "logits"}:
        why = f"{readers} reads its weight and never calls it, so an update would do nothing"
        raise ValueError(f"add_lora: {path}: {why}")
    shared = bypassed(model, [path])
    if path == "wte" and getattr(getattr(model, "architecture", None), "head", "") == "masked":
        shared, said = ["wte is the last matrix of the masked head"], {*said, "logits"}
    if not shared:
        return ""
    if not both:
        return f"{shared[0]}: a tied head. The update is for looking up alone, and merged it would reach both"
    if "logits" not in said:
        raise ValueError(f"add_lora: ensure_weight_tying: {shared[0]}, past the adapted layer")
    return ""
