"""Who reads a weight past its layer: an adapter on the layer is not seen there, and merging it would be.

A module that computes with `self.proj.weight`, or holds the same tensor under a name of its own, does not call the
adapted layer. The first shows in the code of the module's class, the second in the model. What shows in neither, a
weight reached through a list, or by a function outside, cannot be warned of: such a layer should be no target.
"""

import dis
import functools
import itertools
import types
from typing import Any

from ..nn.module import Module


def bypassed(model: Any, paths: list[str]) -> list[str]:
    """What is to be said about each weight of the layers at `paths` that something else reads."""
    words, layers = [], {id(model.get_module(path)): path for path in paths}
    places = list(model.named_modules(remove_duplicate=False))
    held = {path: vars(model.get_module(path)).get("weight") for path in paths}  # a quantised one is no tensor
    weights = {id(p): path for path, p in held.items() if p is not None}
    for path, module in places:
        kind: Any = type(module)
        for child, attribute in reads(kind):
            tied = child != "wte" or getattr(module, "ties_table", vars(module).get("head") is None)
            if id(vars(module).get(child)) in layers and tied:
                reader = f"{kind.__name__} at {path}" if path else f"this {kind.__name__}"
                words.append(f"{layers[id(vars(module)[child])]}.{attribute} is read directly by {reader}")
        if id(module) not in layers:
            for name, p in vars(module).items():
                if id(p) in weights:
                    words.append(f"{weights[id(p)]}.weight is {path}.{name}, too".replace(" is .", " is "))
    return words


def said_of(model: Any, path: str) -> tuple[set[str], str]:
    """What code says behind the module at `path`, "" where it is called; and whose code says so."""
    module, said, readers = model.get_module(path), set[str](), set[str]()
    for _, owner in model.named_modules():
        kind: Any = type(owner)
        for child in (name for name, value in vars(owner).items() if value is module and name in mentions(kind)):
            said |= mentions(kind)[child]
            readers.add(kind.__name__)
    return said, " and ".join(sorted(readers))


def reads(kind: type) -> frozenset[tuple[str, str]]:
    """{(child, "weight" or "bias")} where the class's code says self.child.weight, or what an embedding reads it by."""
    said = {"weight": "weight", "bias": "bias", "logits": "weight"}
    return frozenset((child, said[one]) for child, after in mentions(kind).items() for one in after & said.keys())


@functools.cache
def mentions(kind: type) -> dict[str, frozenset[str]]:
    """{attribute: what the class's code says behind it}: "weight" for self.wte.weight, "" for self.wte(x)."""
    found: dict[str, set[str]] = {}
    for one in kind.__mro__[: kind.__mro__.index(Module)]:
        for name, function in vars(one).items():
            if isinstance(function, types.FunctionType) and name != "__init__":  # where weights are tied, not used
                said = ((i.opname in ("LOAD_ATTR", "LOAD_METHOD"), i.argval) for i in dis.get_instructions(function))
                for (is_name, child), (has_more, after) in itertools.pairwise([*said, (False, "")]):
                    if is_name:
                        found.setdefault(child, set()).add(after if has_more else "")
    return {child: frozenset(after) for child, after in found.items()}
