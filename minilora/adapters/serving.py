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
from ..nn.checks import shown
from ..nn.layers import Embedding
from .adapter import Adapter, StandIn, stand_in_for
from .combine import Factors, lora_updates
from .low_rank import added, cast
from .state import Adapters, carried, changeable, refuse_merged, whole, without


class Rows(StandIn):
    """A linear layer with another update for each row of the batch. Nothing in it is trained."""

    weight: Tensor
    cannot_merge = "its rows use different adapters, and one weight serves all rows"

    def __init__(self, base: Any, updates: Sequence[Factors | None], dtype: Any):
        vars(self).update(vars(base))  # the base's very weight, or its codes, and bias
        self.A, self.B = _stack(updates, dtype)

    def __call__(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """x: (B, T, d_in) -> (B, T, d_out)"""
        if len(x) != len(self.A):
            raise ValueError(f"rows_use: the batch has {len(x)} rows, but adapters were named for {len(self.A)}")
        return added(super().__call__(x), self.update(x))

    def plain(self) -> Any:
        """What the base's layer does, and beside it an A^T and s B^T for each row."""
        weight, bias, updates = super().plain()  # type: ignore[misc]
        return weight, bias, [*updates, (self.A, self.B)]

    def update(self, x: Tensor) -> Tensor:
        """(x_i A_i^T) (s_i B_i)^T of every row.   (B, T, d_in) -> (B, T, d_out)"""
        wide = x if x.dtype.itemsize > 2 else cast(x, "float32")
        A, B = (m.astype(wide.data.real.dtype, copy=False) for m in (self.A, self.B))  # the base's precision may change
        return ops.matmul(ops.matmul(wide, A), B)  # (B, T, r) inside


class TableRows(Rows):
    """An embedding table with another update for each row of the batch."""

    plain = lambda self: None  # the decoder looks up rows of one table

    def update(self, x: Any) -> Tensor:
        """s_i B_i a_t for token t of row i.   (B, T) -> (B, T, C)"""
        dtype = np.promote_types(self.weight.dtype, "float32")
        h = self.A[array_module(self.A).arange(len(x))[:, None], x].astype(dtype, copy=False)  # (B, T, r)
        return ops.matmul(h, self.B.astype(dtype, copy=False))


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
    if not isinstance(names, list | tuple) or not names or any(n is not None and not isinstance(n, str) for n in names):
        raise ValueError(f"rows_use: names = {shown(names)}, expected one for each row, such as ['docs', None]")
    state = changeable(model, "rows_use")
    if not state:
        raise ValueError("rows_use: the model has no adapter; add_lora(model, LoRAConfig()) puts one in")
    refuse_merged(state, "rows_use")
    label = f"rows: {', '.join(str(name) for name in names)}"
    if label in state:
        raise ValueError("rows_use: these rows are in use already; leave that block first")
    used = {name: lora_updates(model, name, "rows_use") for name in dict.fromkeys(names) if name is not None}
    paths = dict.fromkeys(path for updates in used.values() for path in updates)
    rows = {path: [used[n].get(path) if n is not None else None for n in names] for path in paths}
    try:
        try:
            _enter(model, state, label, rows)
            yield model
        finally:
            _leave(model, state, label)
    finally:
        _leave(model, state, label)  # again, in case an interrupt came first; once is enough


def _enter(model: Any, state: Adapters, label: str, rows: dict[str, list[Factors | None]]) -> None:
    """An adapter of layers that look up their row's update takes the place of what is in use."""
    dtype = np.promote_types(model.parameters()[0].dtype, "float32")
    with whole() as put:
        put(state.rows, label, state.active)
        state.switch(put, model, ())
        layers = {}
        for path, updates in rows.items():
            base: Any = model.get_module(path)
            kind: Any = type(base)
            rows_of: Any = TableRows if isinstance(base, Embedding) else Rows
            layers[path] = stand_in_for(rows_of, kind)(base, updates, dtype)
        put(state.named, label, Adapter((), layers))
        state.switch(put, model, (label,))


def _leave(model: Any, state: Adapters, label: str) -> None:
    """What was in use before, as far as it is still there, unless a block that was entered later is still open."""
    if carried(model) is not state or label not in state.rows:
        return
    before, later = state.rows[label], [*state.rows][[*state.rows].index(label) + 1 :]
    with whole() as put:
        if later and state.rows[later[0]] == (label,):
            put(state.rows, later[0], before)
        if not later:
            for module in state.current.distinct().values() if state.merged else ():  # type: ignore[union-attr]
                module.unmerge(put)
            state.switch(put, model, tuple(name for name in before if name in state))
        put(state, "named", without(state, label))
        put(state, "rows", without(state.rows, label))
