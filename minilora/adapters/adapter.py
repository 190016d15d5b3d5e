"""What all methods share: an adapter is put on a model, switched, merged, taken out, saved and loaded.

A method is a configuration with one function,

    config.build(model, rng) -> {"blocks.0.attn.q_proj": LoRALinear(...), ...}

the modules that are to stand in the places of the model's own. Each has the parameters of the module whose place it
takes, and brings some of its own: these are what is trained and what a file holds. The base is frozen and belongs to
all adapters together, so that switching between them moves references and copies nothing.
"""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd.backend import Array, array_module, to_numpy
from ..autograd.tensor import Tensor
from ..nn.module import Module
from ..nn.storage import blaming, load_arrays, save_arrays

METHODS: dict[str, Any] = {}  # the name of a method -> its configuration's class


def method(kind: str) -> Callable:
    """Enter a configuration class under the method's name, which its files carry."""

    def register(config: Any) -> Any:
        config.kind = kind
        METHODS[kind] = config
        return config

    return register


class StandIn(Module):
    """A module in another's place. It can be merged where it only changes the values of base parameters."""

    cannot_merge = ""  # why there is nothing to fold it into, where that is so
    unmerged: dict[str, Array] | None = None  # the base's values by name, kept aside while merged

    def merged_values(self) -> dict[str, Array]:
        """{name of a base parameter: its value with the update folded in}"""
        return {}

    def base_parameter(self, name: str) -> Tensor:
        """The base's parameter of that name."""
        return getattr(self, name)

    def merge(self) -> None:
        """Fold the update into the base, keeping the base's values aside."""
        values = self.merged_values()
        self.unmerged = {name: self.base_parameter(name).data for name in values}
        for name, value in values.items():
            self.base_parameter(name).data = value

    def unmerge(self) -> None:
        """Put the base's values back, bit for bit."""
        for name, value in (self.unmerged or {}).items():
            p = self.base_parameter(name)
            p.data = value.astype(p.dtype, copy=False)
        self.unmerged = None

    def folded(self) -> "StandIn":
        """This module without what only training needs, and with the same outputs: what a file holds."""
        return self

    def left_behind(self, base: Module) -> Module:
        """What stays when the adapter is taken out: the base's module, or one that holds what was merged."""
        return base

    def check_loadable(self, path: str, state: Mapping[str, Any]) -> None:
        """A loaded value would be taken for the merged one, and lost when that is undone."""
        if self.unmerged is not None:
            raise ValueError("load_state_dict: the adapter is merged into the weights; unmerge_lora(model) first")
        super().check_loadable(path, state)


@functools.cache
def stand_in_for(mixin: Any, kind: Any) -> Any:
    """A class that does what the StandIn `mixin` says and the rest as `kind` does: Trained, Linear -> TrainedLinear."""
    return type(mixin.__name__ + kind.__name__, (mixin, kind), {"__doc__": mixin.__doc__})


@dataclass
class Adapter:
    """One named adapter of a model: the methods it is made of, and the modules they put in, outer ones first."""

    configs: tuple[Any, ...]
    modules: dict[str, Any]
    enabled: bool = True
    dtype: Any = None  # of the model when the adapter was last put in

    @property
    def merged(self) -> bool:
        """Whether the update is folded into the base."""
        return any(module.unmerged is not None for module in self.modules.values())

    @property
    def kind(self) -> str:
        """The name of the method, or of the methods: "lora+prefix"."""
        return "+".join(config.kind for config in self.configs)

    def folded(self) -> "Adapter":
        """The adapter without what only training needs: a prefix without the network that makes it."""
        configs = tuple(getattr(config, "folded", config) for config in self.configs)
        return Adapter(configs, {path: m.folded() for path, m in self.modules.items()}, self.enabled)


def add_adapter(model: Any, config: Any, rng: Any = 0, name: str = "default") -> Any:
    """Put an adapter on a model and freeze everything else.

    config: any method's configuration, or a list of several that touch different modules. rng: a seed or a Generator
    for what starts random. Returns the model. A second adapter under another name leaves the first one aside;
    `set_adapter` switches. Raises ValueError, and changes nothing, when a name is taken, an adapter is merged, two
    methods want the same module, or a method does not fit the model.
    """
    if name in _adapters(model):
        raise ValueError(f"add_adapter: the model has an adapter {name!r} already; remove_lora(model), or name=...")
    return _attach(model, name, _build("add_adapter", model, config, rng))


def _build(caller: str, model: Any, config: Any, rng: Any) -> Adapter:
    """The modules of a new adapter, around those of the base model."""
    _refuse_merged(model, caller)
    configs = tuple(config) if isinstance(config, list | tuple) else (config,)
    rng = np.random.default_rng(rng)
    modules: dict[str, Any] = {}
    owner: dict[str, str] = {}  # path -> the method that wants it
    with _base_in_place(model):
        for one in configs:
            if type(one) not in METHODS.values():
                raise TypeError(f"{caller}: got {one!r}, expected a configuration: {_class_names()}")
            for path, module in one.build(model, rng).items():
                if path in owner:
                    both = f"{owner[path]} and {one.kind} both want the place of {path}"
                    raise ValueError(f"{caller}: {both}; choose one of them, or other target_modules")
                modules[path], owner[path] = module.astype(model.parameters()[0].dtype), one.kind
    return Adapter(configs, dict(sorted(modules.items(), key=lambda item: item[0].count("."))))


def _class_names() -> str:
    return ", ".join(config.__name__ for config in METHODS.values())


def _attach(model: Any, name: str, adapter: Adapter) -> Any:
    """Freeze the base model, remembering what was trainable, and switch to a new adapter."""
    if not _adapters(model):
        model.frozen = model.parameters(trainable=True)
        model.originals, model.active_adapter = {}, None
        for p in model.frozen:
            p.requires_grad = False
    model.adapters = {**_adapters(model), name: adapter}
    set_adapter(model, name)
    return model


def _adapters(model: Any) -> dict[str, Adapter]:
    return getattr(model, "adapters", {})


def active_adapter(model: Any, caller: str = "active_adapter") -> Adapter:
    """The adapter in use. Raises ValueError where there is none."""
    name = getattr(model, "active_adapter", None)
    if name is None:
        raise ValueError(f"{caller}: the model has no active adapter; add_lora(model, LoRAConfig()) puts one in")
    return model.adapters[name]


def _refuse_merged(model: Any, caller: str) -> None:
    if any(adapter.merged for adapter in _adapters(model).values()):
        raise ValueError(f"{caller}: the adapter is merged into the weights; unmerge_lora(model) first")


def _enabled(model: Any, caller: str) -> Adapter:
    adapter = active_adapter(model, caller)
    if not adapter.enabled:
        raise ValueError(f"{caller}: the adapter is disabled; leave the lora_disabled block first")
    return adapter


def set_adapter(model: Any, name: str | None) -> None:
    """Switch to a named adapter, or with None to the base model. Only references move: no weight is copied."""
    if name is not None and name not in _adapters(model):
        raise ValueError(f"set_adapter: no adapter {name!r}; there are {', '.join(_adapters(model)) or 'none'}")
    _refuse_merged(model, "set_adapter")
    if getattr(model, "active_adapter", None) is not None:
        _enabled(model, "set_adapter")
    if not _adapters(model):
        return
    _put_back(model)
    if name is not None:
        _put_in(model, model.adapters[name])
    model.active_adapter = name


def _put_in(model: Any, adapter: Adapter) -> None:
    dtype = _dtype(model)
    for path, module in adapter.modules.items():
        model.originals[path] = model.get_module(path)
        # the base may have changed precision while this adapter was aside
        model.set_module(path, module if adapter.dtype == dtype else module.astype(dtype))
    adapter.dtype = dtype


def _put_back(model: Any) -> None:
    dtype, active = _dtype(model), model.adapters.get(model.active_adapter)
    same = active is None or active.dtype == dtype
    for path, module in reversed(model.originals.items()):  # inner modules before the outer ones they sit in
        model.set_module(path, module if same or module is None else module.astype(dtype))
    model.originals = {}


def _dtype(model: Any) -> Any:
    return next(p.dtype for _, p in model.named_parameters())


@contextlib.contextmanager
def _base_in_place(model: Any) -> Iterator[None]:
    """Inside the block the modules are the base's; merged weights stay merged."""
    adapter = model.adapters[model.active_adapter] if getattr(model, "active_adapter", None) else None
    if adapter is not None:
        _put_back(model)
    try:
        yield
    finally:
        if adapter is not None:
            _put_in(model, adapter)


def merge_adapter(model: Any) -> None:
    """Fold the active adapter into the base weights: from here on the model costs what the base model costs.

    The base's values are kept aside, so that `unmerge_adapter` gives them back bit for bit. Raises ValueError, with the
    reason, for a method that adds computation which no weight of the base can do.
    """
    adapter = _enabled(model, "merge_adapter")
    if adapter.merged:
        raise ValueError("merge_adapter: the adapter is merged already; unmerge_lora(model) undoes it")
    for path, module in adapter.modules.items():
        if module.cannot_merge:
            raise ValueError(f"merge_adapter: {path}: {module.cannot_merge}")
    for module in adapter.modules.values():
        module.merge()


def unmerge_adapter(model: Any) -> None:
    """Undo `merge_adapter`, exactly."""
    adapter = _enabled(model, "unmerge_adapter")
    if not adapter.merged:
        raise ValueError("unmerge_adapter: the adapter is not merged")
    for module in adapter.modules.values():
        module.unmerge()


def remove_adapter(model: Any) -> Any:
    """Take all adapters out and make trainable again what the first one froze; returns the model.

    Not merged, this gives the base model back. Merged, the update stays in the weights: a plain model, ready to ship.
    """
    if not _adapters(model):
        raise ValueError("remove_adapter: the model has no adapter")
    if model.active_adapter is not None:
        modules = model.adapters[model.active_adapter].modules
        model.originals = {path: modules[path].left_behind(base) for path, base in model.originals.items()}
        _put_back(model)
    for p in model.frozen:
        p.requires_grad = True
    del model.adapters, model.active_adapter, model.frozen, model.originals
    return model


@contextlib.contextmanager
def adapter_disabled(model: Any) -> Iterator[Any]:
    """Inside the block the model is the base model, merged or not."""
    adapter = active_adapter(model, "adapter_disabled")
    enabled, adapter.enabled = adapter.enabled, False
    swapped = []
    for module in adapter.modules.values():
        for name, value in (module.unmerged or {}).items():
            p = module.base_parameter(name)
            swapped.append((p, p.data))
            p.data = value.astype(p.dtype, copy=False)
    try:
        with _base_in_place(model) if enabled else contextlib.nullcontext():
            yield model
    finally:
        adapter.enabled = enabled
        for p, data in swapped:
            p.data = data


def base_parameters(model: Any) -> dict[str, Tensor]:
    """{name: tensor} of the base model, whatever adapter is on it."""
    originals = getattr(model, "originals", {})
    places = tuple(f"{path}." for path in originals)
    found = {name: p for name, p in model.named_parameters() if not name.startswith(places)}
    for path, module in originals.items():
        found |= dict(module.named_parameters(path)) if module is not None else {}
    return found


def adapter_parameters(model: Any) -> dict[str, Tensor]:
    """{name: tensor} that the active adapter brings."""
    return _own(model, active_adapter(model, "adapter_parameters"))


def stored_parameters(model: Any) -> dict[str, Tensor]:
    """{name: tensor} that a file of the active adapter holds: without what only training needs."""
    return _own(model, active_adapter(model, "stored_parameters").folded())


def _own(model: Any, adapter: Adapter) -> dict[str, Tensor]:
    """{name: tensor} of the adapter's modules that is not the base's."""
    base = {id(p) for p in base_parameters(model).values()}
    named = (pair for path, module in adapter.modules.items() for pair in module.named_parameters(path))
    return {name: p for name, p in named if id(p) not in base}


def fingerprint(model: Any) -> str:
    """A hash of the base model's parameters in float32, whatever adapter is on it: which base an adapter belongs to."""
    aside = {
        id(module.base_parameter(name)): value
        for adapter in _adapters(model).values()
        for module in adapter.modules.values()
        for name, value in (module.unmerged or {}).items()
    }
    digest = hashlib.sha256()
    for name, p in sorted(base_parameters(model).items()):
        data = to_numpy(aside.get(id(p), p.data))
        digest.update(f"{name} {data.shape}".encode())
        digest.update(np.ascontiguousarray(data, dtype="<f4").tobytes())
    for name, buffer in model.named_buffers():
        digest.update(f"{name} {buffer.shape}".encode() + to_numpy(buffer).tobytes())
    return digest.hexdigest()


def recipe(adapter: Adapter) -> list[dict[str, Any]]:
    """An adapter's methods as plain values: [{"kind": "lora", "config": {...}}]"""
    return [{"kind": c.kind, "config": asdict(c)} for c in adapter.configs]


def from_recipe(methods: list[dict[str, Any]]) -> list[Any]:
    """The configurations in a `recipe`. Raises ValueError for a method that does not exist."""
    if unknown := [m["kind"] for m in methods if m["kind"] not in METHODS]:
        raise ValueError(f"no method {unknown[0]!r}; there are {', '.join(METHODS)}")
    return [METHODS[m["kind"]](**m["config"]) for m in methods]


def save_adapter(model: Any, path: str | Path) -> Path:
    """Write the active adapter alone: its parameters, its configuration and the fingerprint of its base model."""
    adapter = active_adapter(model, "save_adapter").folded()
    own = _own(model, adapter)
    if not own:
        raise ValueError("save_adapter: what is active has no parameters of its own; leave the rows_use block first")
    header = {"kind": "adapter", "methods": recipe(adapter), "base": fingerprint(model)}
    return save_arrays(path, {name: p.data for name, p in own.items()}, header)


def load_adapter(model: Any, path: str | Path, name: str = "default") -> Any:
    """Put a saved adapter on its base model, under a name, and make it the active one; returns the model.

    An adapter of that name is replaced. Raises ValueError when the file is damaged, is no adapter, or was trained on
    another base model; the model has not changed then.
    """
    _refuse_merged(model, "load_adapter")
    arrays, header = load_arrays(path, "adapter")
    with blaming(path):
        if header["base"] != (ours := fingerprint(model)):
            raise ValueError(
                f"the adapter was trained on another base model "
                f"(fingerprint {header['base'][:12]}, this model has {ours[:12]})"
            )
        adapter = _build("load_adapter", model, from_recipe(header["methods"]), 0)
        _fill(_own(model, adapter), arrays)
    return _attach(model, name, adapter)


def _fill(parameters: dict[str, Tensor], arrays: dict[str, np.ndarray]) -> None:
    """Copy saved values into an adapter's parameters. Raises ValueError unless names and shapes are the same."""
    if not arrays:
        raise ValueError("it holds no parameters")
    if extra := sorted(arrays.keys() - parameters.keys()):
        raise ValueError(f"it adapts {extra[0]}, which this model does not have")
    for name, p in parameters.items():
        value = arrays.get(name)
        if value is None or value.shape != p.shape:
            came = "nothing" if value is None else f"shape {value.shape}"
            raise ValueError(f"it has {came} for {name}, expected {p.shape}")
        p.data[...] = array_module(p.data).asarray(value)
