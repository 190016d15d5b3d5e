"""One forward pass for a batch whose rows use different LoRA adapters.

    y_i = x_i W^T + b + (x_i A_i^T) (s_i B_i)^T        i: the row of the batch; A_i and s_i B_i: its adapter's

Merged, a base serves one task; unmerged, all tasks share the large product x W^T, and each row adds a thin one of its
own. The A's and B's of the rows are stacked into arrays (B, r, d_in) and (B, d_out, r), filled with zeros up to the
largest rank, which changes no sum; a row without an adapter has only zeros. This is how one machine serves thousands of
fine-tunings (Chen et al. 2023, "Punica", section 4; Sheng et al. 2023, "S-LoRA", section 5, there without the zeros).
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..autograd import ops
from ..autograd.backend import Array, array_module
from ..autograd.tensor import Tensor
from ..nn.layers import Linear
from .adapter import Adapter, StandIn, set_adapter, stand_in_for
from .combine import Factors, lora_updates


class Rows(StandIn, Linear):
    """A linear layer with another update for each row of the batch. Nothing in it is trained."""

    cannot_merge = "its rows use different adapters, and one weight serves all rows"

    def __init__(self, base: Linear, updates: Sequence[Factors | None], dtype: Any):
        vars(self).update(vars(base))  # the base's very weight, or its codes, and bias
        self.A, self.B = _stack(updates, dtype)

    def __call__(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """x: (B, T, d_in) -> (B, T, d_out)"""
        if len(x) != len(self.A):
            raise ValueError(f"rows_use: the batch has {len(x)} rows, but adapters were named for {len(self.A)}")
        h = ops.matmul(x, self.A)  # (B, T, r)
        return super().__call__(x) + ops.matmul(h, self.B)  # (B, T, d_out)


def _stack(updates: Sequence[Factors | None], dtype: Any) -> tuple[Array, Array]:
    """A^T (B, d_in, r) and (s B)^T (B, r, d_out) of all rows, with zeros where a row has a smaller rank or none."""
    _, B, A = next(update for update in updates if update is not None)
    rank = max(len(update[2]) for update in updates if update is not None)
    xp = array_module(A)
    stacked_A = xp.zeros((len(updates), A.shape[1], rank), dtype)
    stacked_B = xp.zeros((len(updates), rank, len(B)), dtype)
    for i, update in enumerate(updates):
        if update is not None:
            s, B, A = update
            stacked_A[i, :, : len(A)], stacked_B[i, : len(A)] = A.T, s * B.T
    return stacked_A, stacked_B


@contextlib.contextmanager
def rows_use(model: Any, names: Sequence[str | None]) -> Iterator[Any]:
    """Inside the block, row i of a batch uses the adapter called names[i]; None is the base model.

    `model(tokens)` and `model.generate(tokens, ...)` with tokens (B, T) then equal what each row would give by itself
    with its adapter set; B must be len(names). The adapters may have different ranks and target modules. They are read
    on entering, and get no gradients. Afterwards the model is as it was.
    Raises ValueError for a name that is unknown, an adapter that is not LoRA, one that is merged, and another B.
    """
    if isinstance(names, str) or not len(names):
        raise ValueError(f"rows_use: names = {names!r}, expected one for each row, such as ['docs', None]")
    if not getattr(model, "adapters", None):
        raise ValueError("rows_use: the model has no adapter; add_lora(model, LoRAConfig()) puts one in")
    label = f"rows: {', '.join(str(name) for name in names)}"
    if label in model.adapters:
        raise ValueError("rows_use: these rows are in use already; leave that block first")
    used = {name: lora_updates(model, name, "rows_use") for name in dict.fromkeys(names) if name is not None}
    paths = dict.fromkeys(path for updates in used.values() for path in updates)
    rows = {path: [used[n].get(path) if n is not None else None for n in names] for path in paths}
    before, dtype = model.active_adapter, model.parameters()[0].dtype
    set_adapter(model, None)  # refuses, and changes nothing, while an adapter is merged or disabled
    try:
        layers = {}
        for path, updates in rows.items():
            base: Any = model.get_module(path)
            kind: Any = type(base)
            layers[path] = stand_in_for(Rows, kind)(base, updates, dtype)
        model.adapters[label] = Adapter((), layers)
        set_adapter(model, label)
        yield model
    finally:
        if getattr(model, "adapters", None):  # unless remove_adapter has taken all of them out
            set_adapter(model, before)
            model.adapters.pop(label, None)
