"""An adapter is folded into the base weights, and taken out of them again bit for bit."""

from typing import Any

from .state import in_use, whole


def merge_adapter(model: Any) -> None:
    """Fold the active adapter into the base weights: from here on the model costs what the base model costs.

    The base's values are kept aside, so that `unmerge_adapter` gives them back bit for bit. Raises ValueError, with the
    reason, for a method that adds computation which no weight of the base can do.
    """
    state = in_use(model, "merge_adapter")
    if state.merged:
        raise ValueError("merge_adapter: the adapter is merged already; unmerge_lora(model) undoes it")
    with whole() as put:
        fold(put, model)


def fold(put: Any, model: Any) -> None:
    """All of `merge_adapter`, to be undone with what else `put` has done."""
    modules = model.adapters.current.distinct()
    for path, module in modules.items():
        if module.cannot_merge:
            raise ValueError(f"merge_adapter: {path}: {module.cannot_merge}")
    values = {path: module.merged_values() for path, module in modules.items()}  # all of them before the first is put
    for path, module in modules.items():
        module.merge(put, values[path])


def unmerge_adapter(model: Any) -> None:
    """Undo `merge_adapter`, exactly."""
    state = in_use(model, "unmerge_adapter")
    if not state.merged:
        raise ValueError("unmerge_adapter: the adapter is not merged")
    with whole() as put:
        for module in state.current.distinct().values():  # type: ignore[union-attr]
            module.unmerge(put)
