"""An adapter is folded into the base weights, and taken out of them again bit for bit."""

import warnings
from typing import Any

import numpy as np

from ..autograd.backend import Array
from ..nn.checks import flag
from ..nn.module import in_precision
from .adapter import Put
from .state import in_use, whole

LOST = 0.1  # a share of the update's norm, from which on it is said that rounding takes it


def merge_adapter(model: Any, safe: bool = True) -> None:
    """Fold the active adapter into the base weights: from here on the model costs what the base model costs.

    The base's values are kept aside, so that `unmerge_adapter` gives them back bit for bit. safe: refuse values that
    are not finite, or too large for the base's precision, and warn where the rounding of a base of 16 bits takes a
    tenth of the update or more. Raises ValueError, and changes nothing, for those, for a
    weight that something else shares, and, with the reason, for a method that adds computation which no weight of the
    base can do.
    """
    flag(safe, "merge_adapter: safe")
    state = in_use(model, "merge_adapter")
    if state.merged:
        raise ValueError("merge_adapter: the adapter is merged already; unmerge_lora(model) undoes it")
    with whole() as put:
        fold(put, model, "merge_adapter", safe)


def fold(put: Put, model: Any, caller: str, safe: bool = True) -> None:
    """All of `merge_adapter`, to be undone with what else `put` has done."""
    modules = model.adapters.current.distinct()
    if not modules:
        raise ValueError(f"{caller}: what is in use has no update; leave the rows_use block first")
    for path, module in modules.items():
        if module.cannot_merge:
            raise ValueError(f"{caller}: {path}: {module.cannot_merge}")
    with np.errstate(over="ignore", invalid="ignore"):
        values = {path: module.merged_values() for path, module in modules.items()}  # all, before the first is put
    _refuse_shared(model, modules, values, caller)
    for path, names in values.items() if safe else ():
        tensors = modules[path].written(names)
        for name, value in names.items():
            try:
                in_precision(value, tensors[name].dtype if name in tensors else value.dtype)
            except ValueError as error:
                raise ValueError(f"{caller}: {path}.{name}, with the update folded in: {error}") from None
    if safe:
        _warn_of_rounding(modules, values, caller)
    before = {id(p): p.data for path, module in modules.items() for p in module.written(values[path]).values()}
    for path, module in modules.items():
        module.merge(put, values[path], before)


def _warn_of_rounding(modules: dict[str, Any], values: dict[str, dict[str, Array]], caller: str) -> None:
    """Say where 16 bits round the update away: it may be smaller than the gap between two of their numbers."""
    asked = lost = 0.0  # squared norms of the update, and of what rounding does to it
    for path, names in values.items():
        for name, p in modules[path].written(names).items():
            if p.dtype.itemsize == 2:
                W, merged = p.data.astype("float32"), names[name].astype("float32")
                asked += float(((merged - W) ** 2).sum())
                lost += float(((merged - merged.astype(p.dtype).astype("float32")) ** 2).sum())
    if lost > LOST**2 * asked:
        said = f"rounding to 16 bits is off by {(lost / asked) ** 0.5:.0%} of the update's norm"
        warnings.warn(f"{caller}: {said}; model.astype('float32') before it keeps the update", stacklevel=4)


def _refuse_shared(model: Any, modules: dict[str, Any], values: dict[str, dict[str, Array]], caller: str) -> None:
    """Raise ValueError where a weight would change for those, too, who hold it beside the adapted module."""
    folded: dict[int, tuple[str, Array]] = {}  # id of a tensor -> who folds what into it
    for path, names in values.items():
        for name, p in modules[path].written(names).items():
            other, before = folded.setdefault(id(p), (f"{path}.{name}", names[name]))
            if before is not names[name] and bool((before != names[name]).any()):
                raise ValueError(f"{caller}: {path}.{name} and {other} are one tensor, and their updates differ")
    inside = tuple(f"{path}." for path in model.adapters.current.modules)
    for name, p in model.named_parameters(remove_duplicate=False):
        if id(p) in folded and not name.startswith(inside):
            raise ValueError(f"{caller}: {folded[id(p)][0]} is {name}, too, which is not adapted and would change, too")


def unmerge_adapter(model: Any) -> None:
    """Undo `merge_adapter`, exactly."""
    state = in_use(model, "unmerge_adapter")
    if not state.merged:
        raise ValueError("unmerge_adapter: the adapter is not merged")
    with whole() as put:
        for module in state.current.distinct().values():  # type: ignore[union-attr]
            module.unmerge(put)
