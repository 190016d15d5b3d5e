"""Copies of a model's own parameters that are trained in their place, so that the base stays as it is."""

from collections.abc import Callable
from typing import Any

from ..autograd.tensor import Tensor
from ..nn.module import Module
from .adapter import StandIn, stand_in_for
from .targets import Patterns, match_targets


class Trained(StandIn):
    """A module with copies of some of its parameters, which are trained; the rest is the base's own."""

    def __init__(self, base: Module, names: list[str], copied: dict[int, Tensor]):
        vars(self).update(vars(base))
        self.train_copies(names, copied)


def copies(model: Module, wanted: Callable[[str], bool], copied: dict[int, Tensor] | None = None) -> dict[str, Module]:
    """{path: a copy} for every module with parameters of its own whose full names are wanted.

    A tensor that stands in several places is copied once for all of them. copied: what was copied before. Raises
    ValueError where some of its places are wanted and others not, and for what cannot be copied.
    """
    copied = {} if copied is None else copied
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    chosen = {key for key, alike in names.items() if any(wanted(name) for name in alike)}
    for alike in (names[key] for key in chosen):
        if not all(wanted(name) for name in alike):
            one, other = (next(name for name in alike if wanted(name) == true) for true in (True, False))
            raise ValueError(
                f"add_adapter: {one} is to be trained, and is {other}, too, which is not: train both or none"
            )
    found: dict[str, Module] = {}
    for path, module in model.named_modules():
        if any(wanted(f"{path}.{name}") for name in module.buffers()):
            raise ValueError(f"add_adapter: {path} is quantised and cannot be trained; put LoRA on it instead")
        own = [name for name, value in vars(module).items() if isinstance(value, Tensor) and id(value) in chosen]
        if own and path:
            kind: Any = type(module)
            found[path] = stand_in_for(Trained, kind)(module, own, copied)
    reached = {id(p) for module in found.values() for p in module.copied.values()}  # type: ignore[attr-defined]
    if lost := chosen - reached - copied.keys():
        raise ValueError(f"add_adapter: {names[lost.pop()][0]} is no attribute of a layer, and so cannot be copied")
    return found


def in_full(model: Module, modules_to_save: Patterns) -> dict[str, Module]:
    """{path: a copy} of modules that are trained in full beside what an adapter adds."""
    places = [path for path, _ in model.named_modules(remove_duplicate=False) if path]
    within = tuple(f"{path}." for path in match_targets(modules_to_save, places, "modules_to_save"))
    return copies(model, lambda name: name.startswith(within))
