"""Adapters are put on a model, switched, disabled and taken out. Only references move: no weight is copied."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..nn.checks import generator, shown
from .adapter import METHODS, Adapter, StandIn
from .merge import fold
from .state import (
    NOTHING,
    Adapters,
    active_adapter,
    carried,
    changeable,
    check_model,
    outer_first,
    places,
    refuse_merged,
    refuse_taken,
    whole,
    without,
)


def add_adapter(model: Any, config: Any, rng: Any = 0, name: str = "default") -> Any:
    """Put an adapter on a model and freeze everything else.

    config: any method's configuration, or a list of several that touch different modules. rng: a seed or a Generator
    for what starts random. Returns the model. A second adapter under another name leaves the first one aside;
    `set_adapter` switches. Raises ValueError, and changes nothing, when a name is taken, an adapter is merged or
    disabled, two methods want the same module, or a method does not fit the model.
    """
    refuse_taken(changeable(model, "add_adapter"), name, "add_adapter")
    if isinstance(config, list | tuple) and not config:
        raise ValueError("add_adapter: got no configuration, expected one or several, such as LoRAConfig(rank=8)")

    def make() -> Adapter:
        for one in config if isinstance(config, list | tuple) else (config,):
            if isinstance(one, tuple(METHODS.values())) and hasattr(one, "check"):
                one.check(model)
        return build("add_adapter", model, config, rng)

    return attach(model, name, make, "add_adapter")


def attach(model: Any, name: str, make: Callable[[], Adapter], caller: str) -> Any:
    """Freeze the base, take a name's earlier adapter out, and switch to the one that `make` makes beside the base."""
    state = changeable(model, caller)
    refuse_merged(state, caller)
    if not isinstance(name, str) or not name or name in state.rows:
        raise ValueError(
            f"{caller}: name = {shown(name)}, expected a text such as 'default', and none in use by rows_use"
        )
    with whole() as put:
        state.switch(put, model, ())  # so that what is made is made from the base's modules
        adapter = make()
        if carried(model) is None:
            state.frozen = model.parameters(trainable=True)
            put(model, "adapters", state)
            for p in state.frozen:
                put(p, "requires_grad", False)
        put(state.named, name, adapter)
        state.switch(put, model, (name,))
    return model


def build(caller: str, model: Any, config: Any, rng: Any) -> Adapter:
    """The modules of a new adapter, while the base's stand in their places."""
    configs = tuple(config) if isinstance(config, list | tuple) else (config,)
    rng = generator(rng, caller)
    if inside := next((path for path, module in model.named_modules() if isinstance(module, StandIn)), ""):
        raise ValueError(f"{caller}: {inside} is an adapter's already, put on a part of this model; remove_lora(part)")
    modules: dict[str, Any] = {}
    owner: dict[str, str] = {}  # path -> the method that wants it
    base = {id(p): p.dtype for p in model.parameters()}
    if not base:
        raise ValueError(f"{caller}: this {type(model).__name__} has no parameters, and so nothing to adapt")
    wanted = np.promote_types(next(iter(base.values())), "float32")  # an adapter is never below float32
    where = places(model)
    for one in configs:
        if type(one) not in METHODS.values():
            names = ", ".join(config.__name__ for config in METHODS.values())
            raise TypeError(f"{caller}: got {shown(one)}, expected a configuration: {names}")
        for path, module in one.build(model, rng).items():
            for alike in where.get(id(model.get_module(path)), [path]):  # wherever the model has the same module
                if alike in owner:
                    both = f"{owner[alike]} and {one.kind} both want the place of {alike}"
                    raise ValueError(f"{caller}: {both}; choose one of them, or other target_modules")
                modules[alike], owner[alike] = module, one.kind
            for p in module.parameters():
                if id(p) not in base:
                    p.data = p.data.astype(wanted, copy=False)
    return Adapter(configs, outer_first(modules))


def set_adapter(model: Any, name: str | Sequence[str] | None) -> None:
    """Switch to a named adapter, to several at once, or with None to the base model. No weight is copied.

    Several, set_adapter(model, ["a", "b"]), give the sum of their updates; of those that want one place this takes LoRA
    and its variants. All of them are trained then. Raises ValueError, and changes nothing, for names that are unknown
    or given twice, for adapters that cannot be added up, and while one is merged or disabled.
    """
    check_model(model, "set_adapter")
    state = carried(model)
    listed = isinstance(name, Sequence) and not isinstance(name, str)
    names: tuple[Any, ...] = () if name is None else tuple(name) if listed else (name,)
    for one in names:
        if not isinstance(one, str) or one not in (state or ()):
            raise ValueError(f"set_adapter: no adapter {shown(one)}; there are {', '.join(state or ()) or 'none'}")
    if listed and (not names or len(set(names)) < len(names)):
        raise ValueError(f"set_adapter: got {name!r}, expected names, each once; None is the base model")
    if state is None:
        return
    changeable(model, "set_adapter")
    refuse_merged(state, "set_adapter")
    with whole() as put:
        state.switch(put, model, names)


def remove_adapter(model: Any, name: str | None = None) -> Any:
    """Take all adapters out and make trainable again what the first one froze; returns the model.

    Not merged, this gives the base model back. Merged, the update stays in the weights: a plain model, ready to ship.
    name: take out one adapter alone; if it is in use, what is in use beside it stays so, or the base does. Raises
    ValueError, and changes nothing, where there is no such adapter, and for one of several while it is merged.
    """
    state = changeable(model, "remove_adapter")
    if carried(model) is None:
        raise ValueError("remove_adapter: the model has no adapter")
    if name is not None and (not isinstance(name, str) or name not in state or name in state.rows):
        there = ", ".join(one for one in state if one not in state.rows)
        raise ValueError(f"remove_adapter: no adapter {shown(name)}; there are {there}")
    with whole() as put:
        if name is None or len(state) == 1:
            take_away(put, model, state)
        else:
            if name in state.active:
                refuse_merged(state, "remove_adapter")
                state.switch(put, model, tuple(one for one in state.active if one != name))
            put(state, "named", without(state, name))
    return model


def take_away(put: Any, model: Any, state: Adapters) -> None:
    """All of `remove_adapter`, to be undone with what else `put` has done."""
    left: dict[int, Any] = {}  # what a module in several places leaves behind is one module, too
    for path, base in [*state.originals.items()]:
        module = state.current.modules[path]  # type: ignore[union-attr]
        put(state.originals, path, left.setdefault(id(module), module.left_behind(base)))
    state.take_out(put, model)
    for p in state.frozen:
        put(p, "requires_grad", True)
    put(model, "adapters", NOTHING)


@contextlib.contextmanager
def adapter_disabled(model: Any) -> Iterator[Any]:
    """Inside the block the model is the base model, merged or not; what it carries cannot be changed there."""
    active_adapter(model, "adapter_disabled")
    state, block = model.adapters, object()
    try:
        try:
            _disable(model, state, block)
            yield model
        finally:
            _enable(model, state, block)
    finally:
        _enable(model, state, block)  # again, in case an interrupt came first; once is enough


def _disable(model: Any, state: Adapters, block: object) -> None:
    """The base's values and modules, until the last of the blocks is left."""
    with whole() as put:
        put(state, "disabled", (*state.disabled, block))
        if len(state.disabled) == 1:
            put(state, "refold", state.merged)
            for module in state.current.distinct().values() if state.merged else ():  # type: ignore[union-attr]
                module.unmerge(put)
            state.take_out(put, model)


def _enable(model: Any, state: Adapters, block: object) -> None:
    if block not in state.disabled:
        return
    with whole() as put:
        put(state, "disabled", tuple(one for one in state.disabled if one is not block))
        if not state.disabled:
            if state.refold:
                fold(put, model, "adapter_disabled", safe=False)
            put(state, "refold", False)
            state.put_in(put, model)
