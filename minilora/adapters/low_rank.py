"""What every layer with a low-rank update has, whatever the update stands beside: s B A, added or merged."""

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..autograd import ops
from ..autograd.backend import Array
from ..autograd.tensor import Tensor, primitive
from ..nn.decode import plain_of
from ..nn.layers import parameter
from .adapter import Put, StandIn, stand_in_for
from .initialise import Start


class LowRank(StandIn):
    """A layer with an update of rank r beside it; it shares what it holds with the layer whose place it takes."""

    optional_parameters: tuple[str, ...] = ("lora_A", "lora_B", "lora_A0", "lora_B0")  # a base checkpoint has none
    corrected = False  # whether the update counts from where A and B started, which lora_A0 and lora_B0 keep
    is_product = True  # whether Delta W is s B A, and nothing else is done

    config: Any
    weight: Tensor
    lora_A: Tensor  # (r, d_in)
    lora_B: Tensor  # (d_out, r)
    update: Callable[..., Tensor]  # what is added to the base layer's output; takes x and the generator of dropout

    def begin(self, base: Any, config: Any, start: Start) -> None:
        """Share what the base has, and begin with A and B; where the start is corrected, keep it, frozen."""
        vars(self).update(vars(base))  # the base's very weight and bias
        A, B, corrected = start
        held = vars(base).get("weight")  # a quantised one is no tensor
        dtype = np.promote_types(held.dtype, "float32") if held is not None else "float32"
        self.lora_A = parameter(A, dtype)  # (r, d_in)
        self.lora_B = parameter(B, dtype)  # (d_out, r)
        self.config, self.dropout = config, config.dropout
        if corrected:
            self.corrected = True
            self.lora_A0 = Tensor(self.lora_A.data.copy())  # (r, d_in), frozen, and saved with A and B
            self.lora_B0 = Tensor(self.lora_B.data.copy())  # (d_out, r)

    def extra_repr(self) -> str:
        """Rank and alpha; a quantised base's kind; whether it is merged."""
        alpha = f"alpha {self.config.alpha:g}" if hasattr(self.config, "alpha") else ""
        return ", ".join(filter(None, (f"rank {self.config.rank}", alpha, super().extra_repr())))

    def __call__(self, x: Any, rng: np.random.Generator | None = None) -> Tensor:
        """What the base's layer gives, and where it is not merged the update.   (..., d_in) -> (..., d_out)"""
        y = super().__call__(x)  # type: ignore[misc]
        return y if self.unmerged is not None else added(y, self.update(x, rng))

    def dropped(self, x: Tensor, rng: np.random.Generator | None) -> Tensor:
        """x', the update's input: dropout(x), where there is a generator; of 16 bits it has 32."""
        x = x if x.dtype.itemsize > 2 else cast(x, "float32")
        return ops.dropout(x, self.dropout, rng) if rng is not None and self.dropout else x

    def plain(self) -> Any:
        """What the base's layer does; and beside it, where it is not merged, A^T and s B^T."""
        weight, bias, updates = super().plain()  # type: ignore[misc]
        A, B = self.factors()
        return weight, bias, updates if self.unmerged is not None else [(A.data.T, self.config.scale * B.data.T)]

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (r, d_in) and B (d_out, r) of the update s B A; where corrected, [A; A - A0] and [B - B0, B0]"""
        if not self.corrected:
            return self.lora_A, self.lora_B
        A = ops.concatenate([self.lora_A, self.lora_A - self.lora_A0], axis=0)  # (2r, d_in)
        B = ops.concatenate([self.lora_B - self.lora_B0, self.lora_B0], axis=1)  # (d_out, 2r)
        return A, B

    def delta(self) -> Array:
        """Delta W = s B A, (d_out, d_in)"""
        A, B = self.factors()
        return self.config.scale * (B.data @ A.data)

    def merged_values(self) -> dict[str, Array]:
        """W <- W + s B A (section 4.1)"""
        return super().merged_values() | {"weight": self.weight.data + self.delta()}

    def beside(self, base: Any, parts: list[Any]) -> StandIn:
        """The layer whose update is the sum of several adapters' updates, this one's among them."""
        if all(isinstance(part, LowRank) and not part.copied for part in parts):
            kind: Any = type(base)
            return stand_in_for(Summed, kind)(base, parts)
        return super().beside(base, parts)


class Summed(StandIn):
    """A layer with the updates of several adapters beside it: y = x W^T + b + sum_i update_i(x)."""

    weight: Tensor

    def __init__(self, base: Any, parts: list[Any]):
        vars(self).update(vars(base))  # the base's very weight, or its codes, and bias
        self.parts = parts
        self.cannot_merge = next((part.cannot_merge for part in parts if part.cannot_merge), "")

    def __call__(self, x: Any, rng: np.random.Generator | None = None) -> Tensor:
        """x: (..., d_in), or what the layer takes, -> (..., d_out)"""
        y = super().__call__(x)
        return y if self.unmerged is not None else added(y, *(part.update(x, rng) for part in self.parts))

    def plain(self) -> Any:
        """What the base's layer does, and every update beside it; None where one is no product of two matrices."""
        if self.unmerged is not None:
            return super().plain()  # type: ignore[misc]
        parts = [plain_of(part) for part in self.parts]
        if None in parts:
            return None
        weight, bias, updates = super().plain()  # type: ignore[misc]
        return weight, bias, [*updates, *(update for part in parts for update in part[2])]

    def delta(self) -> Array:
        """Delta W = sum_i Delta W_i, (d_out, d_in)"""
        return sum(part.delta() for part in self.parts)  # type: ignore[return-value]

    def merged_values(self) -> dict[str, Array]:
        """W <- W + sum_i Delta W_i"""
        return {"weight": self.weight.data + self.delta()}

    def merge(self, put: Put, values: Mapping[str, Array], before: Mapping[int, Array]) -> None:
        """Each part is merged, too: DoRA's asks for the base's weight."""
        super().merge(put, values, before)
        for part in self.parts:
            put(part, "unmerged", self.unmerged)

    def unmerge(self, put: Put) -> None:
        """So is each part unmerged."""
        super().unmerge(put)
        for part in self.parts:
            put(part, "unmerged", None)


@primitive
def cast(x: Array, dtype: Any) -> tuple:
    """The same numbers in another precision."""
    return x.astype(dtype), (lambda g: g,)  # the tape gives each cotangent its input's precision


def added(y: Tensor, *updates: Tensor) -> Tensor:
    """y + updates, summed in the updates' precision and given in y's: 16 bits where the base has 16."""
    total = functools.reduce(operator.add, updates, y)
    return total if y.dtype.itemsize > 2 else cast(total, y.dtype)
