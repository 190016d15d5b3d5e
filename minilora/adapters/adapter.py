"""What a method is: a configuration, and the modules that it puts in the places of the model's own.

    config.build(model, rng) -> {"blocks.0.attn.q_proj": LoRALinear(...), ...}

Each of these has the parameters of the module whose place it takes, and brings some of its own: these are what is
trained and what a file holds. The base is frozen and belongs to all adapters together, so that switching between them
moves references and copies nothing. What a model carries: `state.py`; putting in, switching, taking out: `attach.py`;
folding into the weights: `merge.py`; files: `files.py`.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..autograd.backend import Array
from ..autograd.tensor import Tensor
from ..nn.habits import names_its_settings
from ..nn.layers import parameter
from ..nn.module import Module

METHODS: dict[str, Any] = {}  # the name of a method -> its configuration's class

Put = Callable[[Any, Any, Any], None]  # put(owner, key, value), which can be undone: `whole` in state.py


def method(kind: str) -> Callable:
    """Enter a configuration class under the method's name, which its files carry."""

    def register(config: Any) -> Any:
        config.kind = kind
        METHODS[kind] = names_its_settings(config)
        return config

    return register


class StandIn(Module):
    """A module in another's place. It can be merged where it only changes the values of base parameters."""

    references = ("copied",)
    cannot_merge = ""  # why there is nothing to fold it into, where that is so
    copied: Mapping[str, Tensor] = {}  # the base's parameters by name, of which this module trains copies of its own
    unmerged: dict[str, Array] | None = None  # the base's values by name, kept aside while merged
    written_as: Mapping[str, tuple[int, int]] = {}  # the arrays and versions that the merge left in the base

    def train_copies(self, names: list[str], copied: dict[int, Tensor]) -> None:
        """Have trainable copies of some of the base's parameters. copied: those made before, of tensors shared."""
        self.copied = {name: getattr(self, name) for name in names}
        for name, p in self.copied.items():
            setattr(self, name, copied.setdefault(id(p), parameter(p.data.copy(), p.dtype)))

    def merged_values(self) -> dict[str, Array]:
        """{name of a base parameter: its value with the update folded in}"""
        return {name: getattr(self, name).data.copy() for name in self.copied}

    def base_parameter(self, name: str) -> Tensor:
        """The base's parameter of that name, beside which this module may have its own."""
        return self.copied[name] if name in self.copied else getattr(self, name)

    def written(self, names: Iterable[str]) -> dict[str, Tensor]:
        """{name: the base's tensor} of those merged values that are written into one."""
        return {name: self.base_parameter(name) for name in names}

    def merge(self, put: Put, values: Mapping[str, Array], before: Mapping[int, Array]) -> None:
        """Write merged values into the base, keeping the base's own aside. Copies are trained on once it is undone.

        before: {id of a tensor: the base's value}, where another module may have been merged into it already.
        """
        base = self.written(values)
        put(self, "unmerged", {name: before.get(id(p), p.data) for name, p in base.items()})
        for name, p in base.items():
            write(put, p, values[name])
        for name in self.copied:
            put(getattr(self, name), "requires_grad", False)
        put(self, "written_as", {name: (id(p.data), p.version) for name, p in base.items()})

    def unmerge(self, put: Put) -> None:
        """Put the base's values back, bit for bit. Raises ValueError where that would undo more than the merge."""
        for name, (array, version) in self.written_as.items():
            p = self.base_parameter(name)
            if id(p.data) == array and p.version != version:
                fix = "remove_lora(model) keeps what is in the weights"
                raise ValueError(
                    f"unmerge_adapter: a {name} {p.shape} was trained while merged, and that would be lost; {fix}"
                )
        for name, value in (self.unmerged or {}).items():
            write(put, self.base_parameter(name), value)
        for name in self.copied:
            put(getattr(self, name), "requires_grad", True)
        put(self, "unmerged", None)

    def beside(self, base: Module, parts: list[Any]) -> "StandIn":
        """The module that does what the stand-ins of several adapters do for one place. Most cannot be added up."""
        kinds = " and ".join(dict.fromkeys(type(part).__name__ for part in parts))
        raise ValueError(f"{kinds} cannot be added up; only the updates of LoRA and its variants can, without biases")

    def folded(self) -> "StandIn":
        """This module without what only training needs, and with the same outputs: what a file holds."""
        return self

    def left_behind(self, base: Module) -> Module:
        """What stays when the adapter is taken out: the base's module, or one that holds what was merged."""
        return base

    def extra_repr(self) -> str:
        """What the base's module says, and whether the update is folded into the weights."""
        words = super().extra_repr(), "merged" if self.unmerged is not None else ""
        return ", ".join(filter(None, words))

    def check_loadable(self, path: str, state: Mapping[str, Any]) -> None:
        """A loaded value would be taken for the merged one, and lost when that is undone."""
        if self.unmerged is not None:
            raise ValueError("load_state_dict: the adapter is merged into the weights; unmerge_lora(model) first")
        super().check_loadable(path, state)


def write(put: Put, p: Tensor, value: Array) -> None:
    """Give a base parameter other values, in its precision. A derivative that needs those before is refused then."""
    put(p, "data", value.astype(p.dtype, copy=False))
    p.changed()


@functools.cache
def stand_in_for(mixin: Any, kind: Any) -> Any:
    """A class that does what the StandIn `mixin` says and the rest as `kind` does: Trained, Linear -> TrainedLinear."""
    on_top = (one for one in getattr(kind, "on_top", ()) if not issubclass(mixin, one))
    return type(mixin.__name__ + kind.__name__, (*on_top, mixin, kind), {"__doc__": mixin.__doc__})


@dataclass
class Adapter:
    """One named adapter of a model: the methods it is made of, and the modules they put in, outer ones first.

    Where the model holds one module in several places, so does the adapter.
    """

    configs: tuple[Any, ...]
    modules: dict[str, Any]

    @property
    def merged(self) -> bool:
        """Whether the update is folded into the base."""
        return any(module.unmerged is not None for module in self.modules.values())

    @property
    def kind(self) -> str:
        """The name of the method, or of the methods: "lora+prefix"."""
        return "+".join(config.kind for config in self.configs)

    def distinct(self) -> dict[str, Any]:
        """{path: module}, each module once, at its first place."""
        first: dict[int, str] = {}
        for path, module in self.modules.items():
            first.setdefault(id(module), path)
        return {path: self.modules[path] for path in first.values()}

    def folded(self) -> "Adapter":
        """The adapter without what only training needs: a prefix without the network that makes it."""
        configs = tuple(getattr(config, "folded", config) for config in self.configs)
        return Adapter(configs, {path: m.folded() for path, m in self.modules.items()})
