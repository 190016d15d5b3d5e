"""An adapter in a file: what it trained, how it was made, and the fingerprint of the base model it belongs to."""

import hashlib
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd.backend import array_module, to_numpy
from ..autograd.tensor import Tensor
from ..nn.architectures import Architecture
from ..nn.checks import shown
from ..nn.classifier import with_classifier
from ..nn.gpt import GPT
from ..nn.module import in_precision
from ..nn.storage import blaming, file_path, load_arrays, save_arrays
from .adapter import METHODS, Adapter
from .attach import attach, build, set_adapter
from .qlora import quantization
from .quantization import LEVELS
from .state import active_adapter, base_parameters, brought, carried, changeable, check_model, refuse_merged


def stored_parameters(model: Any) -> dict[str, Tensor]:
    """{name: tensor} that a file of the active adapter holds: without what only training needs."""
    return brought(model, active_adapter(model, "stored_parameters").folded())


def fingerprint(model: Any, without: Container[str] = ()) -> str:
    """A hash of the base model's parameters in float32, whatever adapter is on it: which base an adapter belongs to.

    without: names of parameters that do not count.
    """
    state = carried(model)
    merged = state.current.distinct().values() if state is not None and state.current is not None else ()
    aside = {id(m.base_parameter(name)): value for m in merged for name, value in (m.unmerged or {}).items()}
    held = sorted((name, p) for name, p in base_parameters(model).items() if name not in without)
    found = digest((name, to_numpy(aside.get(id(p), p.data))) for name, p in held)
    for name, buffer in model.named_buffers():
        found.update(f"{name} {buffer.shape}".encode() + to_numpy(buffer).tobytes())
    return found.hexdigest()


def digest(parameters: Iterable[tuple[str, np.ndarray]]) -> Any:
    """What a fingerprint begins with: a hash of (name, array) in the order of the names."""
    found = hashlib.sha256()
    for name, data in parameters:
        found.update(f"{name} {data.shape}".encode())
        found.update(np.ascontiguousarray(data, dtype="<f4").data)
    return found


def recipe(adapter: Adapter) -> list[dict[str, Any]]:
    """An adapter's methods as plain values: [{"kind": "lora", "config": {...}}]"""
    return [{"kind": c.kind, "config": asdict(c)} for c in adapter.configs]


def from_recipe(methods: list[dict[str, Any]]) -> list[Any]:
    """The configurations in a `recipe`. Raises ValueError for a method that does not exist."""
    if unknown := [m["kind"] for m in methods if m["kind"] not in METHODS]:
        raise ValueError(f"no method {unknown[0]!r}; there are {', '.join(METHODS)}")
    return [METHODS[m["kind"]](**m["config"]) for m in methods]


def check_sizes(methods: list[dict[str, Any]], arrays: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError for a rank, a width or a length that no array of the file has, before anything is built."""
    if not arrays:
        raise ValueError("it holds no parameters")
    longest = max((n for array in arrays.values() for n in array.shape), default=1)
    for one in methods:
        config = one["config"]
        sizes = [(name, config.get(name)) for name in ("rank", "bottleneck", "tokens", "hidden")]
        sizes += [("rank_pattern", rank) for rank in dict(config.get("rank_pattern", {})).values()]
        for name, size in sizes:
            if isinstance(size, int) and size > longest:
                raise ValueError(f"its configuration has {name} = {size:,}, its longest array has {longest:,} entries")


def named_adapter(model: Any, name: str | None, caller: str) -> Adapter:
    """The adapter of that name, or the one in use. Raises ValueError where there is none, or it is not one alone."""
    if name is None:
        adapter, state = active_adapter(model, caller), carried(model)
        if len(state.active) > 1:  # type: ignore[union-attr]
            each = ", ".join(state.active)  # type: ignore[union-attr]
            raise ValueError(f"{caller}: {each} are in use together; say which: name=...")
        return adapter
    check_model(model, caller)
    state = carried(model)
    if not isinstance(name, str) or name not in (state or ()):
        raise ValueError(f"{caller}: no adapter {shown(name)}; there are {', '.join(state or ()) or 'none'}")
    return state[name]  # type: ignore[index]


def to_store(model: Any, name: str | None = None) -> tuple[Adapter, dict[str, Tensor]]:
    """(the adapter, {name: tensor}) that a file of it holds. name: which; by default the one in use.

    Raises ValueError where there is none, where parameters of the base are trained beside it, which its file would
    lack, and for values that are not finite: which, and where.
    """
    adapter = named_adapter(model, name, "save_adapter").folded()
    own = brought(model, adapter)
    if not own:
        raise ValueError("save_adapter: what is active has no parameters of its own; leave the rows_use block first")
    if beside := [name for name, p in base_parameters(model).items() if p.requires_grad]:
        fix = f"freeze it, or train it in the adapter: LoRAConfig(modules_to_save=({beside[0].rpartition('.')[0]!r},))"
        raise ValueError(f"save_adapter: {beside[0]} is trained beside the adapter, whose file would lack it; {fix}")
    for parameter, p in own.items():
        try:
            in_precision(p.data, p.dtype)
        except ValueError as error:
            raise ValueError(f"save_adapter: {parameter}: {error}") from None
    return adapter, own


def save_adapter(model: Any, path: str | Path, name: str | None = None) -> Path:
    """Write one adapter alone: its parameters, its configuration and the fingerprint of its base model.

    name: which; by default the one in use. Raises ValueError for what `to_store` refuses.
    """
    path, (adapter, own) = file_path(path, "save_adapter"), to_store(model, name)
    header: dict[str, Any] = {"kind": "adapter", "methods": recipe(adapter), "base": fingerprint(model)}
    header["quantized"] = kinds(model)
    if getattr(model, "labels", ()):
        header["labels"] = model.labels  # whose head is among the parameters
    if isinstance(model, GPT):
        header["config"] = asdict(model.config)  # the base's sizes, from which it can be counted
    elif isinstance(architecture := getattr(model, "architecture", None), Architecture):
        header["architecture"] = asdict(architecture)
    return save_arrays(path, {name: p.data for name, p in own.items()}, header)


def load_adapter(model: Any, path: str | Path, name: str = "default") -> Any:
    """Put a saved adapter on its base model, under a name, and make it the active one; returns the model.

    An adapter of that name is replaced. Raises ValueError when the file is damaged, is no adapter, or was trained on
    another base model; the model has not changed then.
    """
    refuse_merged(changeable(model, "load_adapter"), "load_adapter")
    arrays, header = load_arrays(file_path(path, "load_adapter"), "adapter")
    with blaming(path), with_classifier(model, header.get("labels", ())):
        if header["base"] != (ours := fingerprint(model)):
            raise ValueError(
                f"the adapter was trained on another base model "
                f"(fingerprint {header['base'][:12]}, this model has {ours[:12]})"
                f"{_in_few_bits(header.get('quantized', kinds(model)), kinds(model))}"
            )

        check_sizes(header["methods"], arrays)

        def make() -> Adapter:
            adapter = build("load_adapter", model, from_recipe(header["methods"]), 0)
            fill(brought(model, adapter), arrays)
            return adapter

        return attach(model, name, make, "load_adapter")


def kinds(model: Any) -> list[str]:
    """How the linear layers of a model are quantised: [] for floats, ["nf4"] where all that are quantised are alike."""
    return sorted({settings["kind"] for settings in quantization(model).values()})


def _in_few_bits(theirs: list[str], ours: list[str]) -> str:
    """What to do where an adapter's base and this model differ in how they are quantised."""
    if theirs == ours:
        return ""
    was, holds = (" and ".join(names) or "floats" for names in (theirs, ours))
    do = "put it on the model that is not quantised"
    if theirs:
        dtype = theirs[0] if theirs[0] in ("float16", "bfloat16") else "file"
        opened = f"open that with load_pretrained(place, dtype={dtype!r})"
        do = f"quantize_model(model, {theirs[0]!r}) first" if theirs[0] in LEVELS else opened
    return f": it was trained on {was}, this model holds {holds}; {do}"


def fill(parameters: dict[str, Tensor], arrays: Mapping[str, np.ndarray]) -> None:
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
        try:
            p.data[...] = array_module(p.data).asarray(in_precision(value, p.dtype))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def adapters_state(model: Any, names: Sequence[str] = (), caller: str = "adapters_state") -> tuple[dict, dict]:
    """Adapters of a model, to be written beside its base: (a JSON-able header, {"name:parameter": array}).

    names: which; by default all. What only training needs is in it. Raises ValueError while one is merged or disabled,
    or a rows_use block is open.
    """
    state = changeable(model, caller)
    refuse_merged(state, caller)
    if state.rows:
        raise ValueError(f"{caller}: the rows of a batch use different adapters; leave the rows_use block first")
    own = {name: brought(model, adapter) for name, adapter in state.items() if name in (names or state)}
    adapters = {
        name: {"methods": recipe(state[name]), "trainable": [key for key, p in named.items() if p.requires_grad]}
        for name, named in own.items()
    }
    arrays = {f"{name}:{key}": p.data for name, named in own.items() for key, p in named.items()}
    return {"active": list(state.active), "adapters": adapters}, arrays


def put_adapters(model: Any, header: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Put on a model what `adapters_state` wrote. Raises ValueError where names or shapes do not fit its base."""
    for name, what in header["adapters"].items():
        values = {key.removeprefix(f"{name}:"): value for key, value in arrays.items() if key.startswith(f"{name}:")}

        def make(what: Any = what, values: Any = values) -> Adapter:
            adapter = build("put_adapters", model, from_recipe(what["methods"]), 0)
            own = brought(model, adapter)
            fill(own, values)
            for key, p in own.items():
                p.requires_grad = key in what["trainable"]
            return adapter

        attach(model, name, make, "put_adapters")
    set_adapter(model, header["active"] or None)
