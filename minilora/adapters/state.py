"""What a model carries: its adapters, which of them are in use, and the base's modules whose places they take.

All of it is one object, `model.adapters`, which reads as {name: adapter}. Its invariant, `check`: the modules of the
adapters in use stand in their places and nowhere else, except inside `adapter_disabled`, where the base's do; and no
other adapter is merged. Every operation writes through `whole`, so that it is done or undone, whatever ends it.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..autograd.tensor import Tensor
from ..nn.checks import shown
from ..nn.module import Module
from .adapter import Adapter, Put, StandIn

NOTHING: Any = object()  # the value of what was not there


class whole:
    """`with whole() as put:` what is put inside, put(owner, key, value), is undone if the block ends by an exception.

    owner: an object with attributes, a dictionary or a list. An interrupt is an exception like any other. No
    comprehension stands inside: CPython 3.12 and 3.13 do not tell the block of an interrupt at its first line.
    """

    def __enter__(self) -> Put:
        self.steps: list[tuple[Any, Any, Any]] = []
        return self.put

    def put(self, owner: Any, key: Any, value: Any) -> None:
        """Set one thing, remembering what it was."""
        self.steps.append((owner, key, _read(owner, key)))
        _write(owner, key, value)

    def __exit__(self, kind: Any, *error: object) -> None:
        while kind is not None and self.steps:
            _write(*self.steps[-1])  # a step stays in the list until it is undone
            self.steps.pop()


def without(named: Mapping[str, Any], name: str) -> dict[str, Any]:
    """All but one, as a dictionary of its own."""
    return {one: value for one, value in named.items() if one != name}


def _read(owner: Any, key: Any) -> Any:
    if isinstance(owner, dict):
        return owner.get(key, NOTHING)
    return owner[int(key)] if isinstance(owner, list) else getattr(owner, key, NOTHING)


def _write(owner: Any, key: Any, value: Any) -> None:
    if isinstance(owner, list):
        owner[int(key)] = value
    elif isinstance(owner, dict):
        owner.pop(key, None) if value is NOTHING else owner.__setitem__(key, value)
    elif value is not NOTHING:
        setattr(owner, key, value)
    elif key in vars(owner):
        delattr(owner, key)


class Adapters(Mapping[str, Adapter]):
    """{name: adapter} of one model, for reading; `add_adapter`, `set_adapter` and their like change it.

    active: the names in use. current: the adapter in use, or of several the one that sums them, or None. originals:
    {path: the base's module}, of the places that are taken now. frozen: what the first adapter froze. disabled: the
    open `adapter_disabled` blocks. refold: whether the last of these folds the update into the weights again. rows: the
    open `rows_use` blocks, {the name of their adapter: what was in use before}.
    """

    def __init__(self) -> None:
        self.named: dict[str, Adapter] = {}
        self.active: tuple[str, ...] = ()
        self.current: Adapter | None = None
        self.originals: dict[str, Any] = {}
        self.frozen: list[Tensor] = []
        self.disabled: tuple[object, ...] = ()
        self.refold = False
        self.rows: dict[str, tuple[str, ...]] = {}

    def __getitem__(self, name: str) -> Adapter:
        return self.named[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.named)

    def __len__(self) -> int:
        return len(self.named)

    def __repr__(self) -> str:
        words = [f"{name!r}: {a.kind or 'rows'}" + " (active)" * (name in self.active) for name, a in self.items()]
        return f"Adapters({', '.join(words)})"

    def __deepcopy__(self, memo: dict) -> "Adapters":
        """A copy made inside a block has no block to leave: it is the base model that is seen there."""
        twin = memo[id(self)] = Adapters()
        vars(twin).update(copy.deepcopy(vars(self), memo))
        if twin.disabled:
            twin.active, twin.current, twin.disabled, twin.refold = (), None, (), False
        twin.rows = {}
        return twin

    @property
    def merged(self) -> bool:
        """Whether what is in use is folded into the weights."""
        return self.current is not None and self.current.merged

    def switch(self, put: Put, model: Any, names: tuple[str, ...]) -> None:
        """Put the modules of other adapters in, or of none. Only references move."""
        self.take_out(put, model)
        put(self, "active", names)
        put(self, "current", together(model, {name: self.named[name] for name in names}))
        put(self, "refold", False)
        if not self.disabled:
            self.put_in(put, model)

    def put_in(self, put: Put, model: Any) -> None:
        """The modules in use stand in the places of the base's."""
        for path, module in self.current.modules.items() if self.current is not None else ():
            put(self.originals, path, model.get_module(path))
            place(put, model, path, module)

    def take_out(self, put: Put, model: Any) -> None:
        """The base's modules stand in their own places, inner ones before the outer ones they sit in."""
        for path, module in reversed(self.originals.items()):
            place(put, model, path, module)
        put(self, "originals", {})

    def precisions(self, model: Any, dtype: Any) -> Iterator[tuple[Tensor, Any]]:
        """(tensor, the precision it gets) where a model is converted: an adapter is never below float32."""
        base = {id(p): p for p in base_parameters(model).values()}
        own = {id(p): p for adapter in self.values() for m in adapter.distinct().values() for p in m.parameters()}
        yield from ((p, dtype) for p in base.values())
        yield from ((p, np.promote_types(dtype, "float32")) for i, p in own.items() if i not in base)


def place(put: Put, model: Any, path: str, module: Any) -> None:
    """Put a module at a path; where that is in a tuple, which cannot be written to, another tuple takes its place."""
    parent, _, last = path.rpartition(".")
    owner = model.get_module(parent)
    if isinstance(owner, tuple):
        at = int(last)
        place(put, model, parent, (*owner[:at], module, *owner[at + 1 :]))
    else:
        put(owner, _key(owner, last), module)


def _key(owner: Any, part: str) -> Any:
    """The attribute, number or key that a part of a path stands for."""
    return next(key for key in owner if str(key) == part) if isinstance(owner, dict) else part


def places(model: Any) -> dict[int, list[str]]:
    """{id of a module: the paths of all places where it stands}; what is inside a shared module is one place."""
    found: dict[int, list[str]] = {}
    taken = set()
    for path, module in model.named_modules(remove_duplicate=False):
        parent, _, last = path.rpartition(".")
        owner = model.get_module(parent)
        while isinstance(owner, tuple):
            parent, _, above = parent.rpartition(".")
            owner, last = model.get_module(parent), f"{above}.{last}"
        if path and (id(owner), last) not in taken:
            taken.add((id(owner), last))
            found.setdefault(id(module), []).append(path)
    return found


def together(model: Any, adapters: Mapping[str, Adapter]) -> Adapter | None:
    """One adapter that does what several do; a place that more than one wants gets the sum of their updates."""
    if len(adapters) < 2:
        return next(iter(adapters.values()), None)
    wanted: dict[str, list[Any]] = {}
    for adapter in adapters.values():
        for path, module in adapter.modules.items():
            wanted.setdefault(path, []).append(module)
    modules: dict[str, Any] = {}
    sums: dict[tuple[int, ...], Any] = {}  # one for all places of a shared module
    for path, parts in wanted.items():
        key = tuple(id(part) for part in parts)
        try:
            if key not in sums:
                sums[key] = parts[0].beside(model.get_module(path), parts) if len(parts) > 1 else parts[0]
        except ValueError as error:
            raise ValueError(f"set_adapter: {' and '.join(map(repr, adapters))} both want {path}: {error}") from None
        modules[path] = sums[key]
    return Adapter(tuple(c for adapter in adapters.values() for c in adapter.configs), outer_first(modules))


def outer_first(modules: dict[str, Any]) -> dict[str, Any]:
    """Modules before those that stand inside them."""
    return dict(sorted(modules.items(), key=lambda item: item[0].count(".")))


def carried(model: Any) -> Adapters | None:
    """What a model carries, or None where it has no adapter."""
    return getattr(model, "adapters", None)


def check_model(model: Any, caller: str) -> None:
    """Raise TypeError for what is no model."""
    if not isinstance(model, Module):
        raise TypeError(f"{caller}: got {shown(model)}, expected a model, such as GPT(config) or load_model('base')")


def in_use(model: Any, caller: str) -> Adapters:
    """What a model carries. Raises ValueError where no adapter is in use, or none to be seen."""
    active_adapter(model, caller)
    return changeable(model, caller)


def changeable(model: Any, caller: str) -> Adapters:
    """What a model carries, or would. Raises ValueError inside `adapter_disabled`, where it must stay as it is."""
    check_model(model, caller)
    state = carried(model) or Adapters()
    if state.disabled:
        raise ValueError(f"{caller}: the adapter is disabled; leave the lora_disabled block first")
    return state


def refuse_merged(state: Adapters, caller: str) -> None:
    """Raise ValueError where an update is folded into the weights: the base would change hands with it."""
    if state.merged:
        raise ValueError(f"{caller}: the adapter is merged into the weights; unmerge_lora(model) first")


def refuse_taken(state: Adapters, name: Any, caller: str) -> None:
    """Raise ValueError where an adapter has that name."""
    if isinstance(name, str) and name in state:
        raise ValueError(f"{caller}: the model has an adapter {name!r} already; remove_lora(model), or name=...")


def active_adapter(model: Any, caller: str = "active_adapter") -> Adapter:
    """The adapter in use. Raises ValueError where there is none."""
    check_model(model, caller)
    state = carried(model)
    if state is None or state.current is None:
        raise ValueError(f"{caller}: the model has no active adapter; add_lora(model, LoRAConfig()) puts one in")
    return state.current


def base_parameters(model: Any) -> dict[str, Tensor]:
    """{name: tensor} of the base model, whatever adapter is on it."""
    check_model(model, "base_parameters")
    state = carried(model)
    originals = state.originals if state is not None else {}
    places = tuple(f"{path}." for path in originals)
    found = {name: p for name, p in model.named_parameters() if not name.startswith(places)}
    for path, module in originals.items():
        found |= dict(module.named_parameters(path)) if module is not None else {}
    return found


def adapter_parameters(model: Any) -> dict[str, Tensor]:
    """{name: tensor} that the active adapter brings."""
    return brought(model, active_adapter(model, "adapter_parameters"))


def brought(model: Any, adapter: Adapter) -> dict[str, Tensor]:
    """{name: tensor} of the adapter's modules that is not the base's."""
    base = {id(p) for p in base_parameters(model).values()}
    named = (pair for path, module in adapter.distinct().items() for pair in module.named_parameters(path))
    return {name: p for name, p in named if id(p) not in base}


def check(model: Any) -> None:
    """Raise AssertionError unless what a model carries fits together, and fits the model."""
    state = carried(model) or Adapters()
    summed = {id(part) for _, m in model.named_modules() for part in getattr(m, "parts", ())}
    there = [m for _, m in model.named_modules() if isinstance(m, StandIn) and id(m) not in summed]
    modules = state.current.modules if state.current is not None else {}
    expected = {} if state.disabled else modules
    assert state.originals.keys() == expected.keys(), "places are taken that are not in use, or the other way round"
    assert {id(m) for m in there} == {id(m) for m in expected.values()}, "a module stands in a wrong place"
    assert all(model.get_module(path) is module for path, module in expected.items()), "a place is not taken"
    assert "adapters" not in vars(model) or len(state), "what is carried is empty"
    assert {*state.active, *state.rows} <= state.keys(), "a name in use is not there"
    assert len(state.active) != 1 or state.current is state[state.active[0]], "another adapter is in use"
    folded = {id(m) for adapter in state.values() for m in adapter.modules.values() if m.unmerged is not None}
    used = {id(part) for m in modules.values() for part in (m, *getattr(m, "parts", ()))}
    folded |= {id(m) for m in modules.values() if m.unmerged is not None}
    assert not folded or folded == used, "an adapter is merged in part, or not in use"
    assert not folded or not state.disabled, "an adapter is merged where it is disabled"
    assert not state.refold or state.disabled, "an update is to be folded in again, and no block is open"
