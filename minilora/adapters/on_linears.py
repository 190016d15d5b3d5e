"""What IA3, VeRA and MiSS share: a layer of their own in the place of each linear layer that is targeted."""

import warnings
from typing import Any, ClassVar

import numpy as np

from ..nn.checks import is_whole, shown
from ..nn.layers import Linear
from ..nn.module import Module
from .adapter import stand_in_for
from .bypass import bypassed
from .copies import in_full
from .targets import OUTPUTS, Patterns, match_targets, read_targets


class OnLinears:
    """A method's configuration: which layers it targets, as LoRA's does, and what is trained in full beside them.

    layer: the StandIn that takes a layer's place; `shared` is what all of them are given.
    """

    layer: ClassVar[Any]
    target_modules: Patterns
    exclude_modules: Patterns
    modules_to_save: Patterns

    def __post_init__(self) -> None:
        read_targets(self)
        r = getattr(self, "rank", 1)
        if not is_whole(r) or r < 1:
            raise ValueError(f"{type(self).__name__}: rank = {shown(r)}, expected a positive integer")

    def shared(self, model: Module, layers: dict[str, Any]) -> Any:
        """What the layers have in common."""
        return None

    def build(self, model: Module, rng: np.random.Generator) -> dict[str, Module]:
        """{path: the layer that takes a targeted one's place}, and copies of what is trained in full beside."""
        found = self.chosen(model)
        for words in bypassed(model, list(found)):
            warnings.warn(f"add_adapter: {words}, past the adapted layer; merging would reach it", stacklevel=2)
        shared = self.shared(model, found)
        kinds: dict[str, Any] = {path: type(base) for path, base in found.items()}
        layers = {p: stand_in_for(self.layer, kinds[p])(base, self, p, shared) for p, base in found.items()}
        beside = in_full(model, self.modules_to_save)
        if both := sorted(layers.keys() & beside.keys()):
            raise ValueError(f"add_adapter: {both[0]} is a target and, by modules_to_save, trained in full; choose one")
        return layers | beside

    def chosen(self, model: Module) -> dict[str, Any]:
        """{path: linear layer} of those that are targeted; one that stands in several places comes once."""
        linears = linears_of(model)
        out = set(match_targets(self.exclude_modules, list(linears), "exclude_modules"))
        wanted = match_targets(self.target_modules, list(linears), by_name=OUTPUTS)
        if not (found := {path: linears[path] for path in wanted if path not in out}):
            raise ValueError(f"exclude_modules: {', '.join(self.exclude_modules)} leaves no target to adapt")
        return found


def linears_of(model: Module) -> dict[str, Any]:
    """{path: linear layer} of a model. Raises ValueError where there is none."""
    if not (found := {path: m for path, m in model.named_modules() if isinstance(m, Linear) and path}):
        raise ValueError(f"add_adapter: there is no linear layer inside this {type(model).__name__}")
    return found
