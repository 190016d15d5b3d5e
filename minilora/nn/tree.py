"""A model as text: what `print(model)` shows, a line a module, and what an error quotes."""

import itertools
from typing import Any

from ..autograd.tensor import Tensor


def tree(model: Any) -> str:
    """Every module with the shapes of its parameters, what is frozen, and where adapters sit.

    Modules that follow one another and look alike share a line, `0 to 3: 4 x Block`. What stands in two places is shown
    at the first, and named at the second.
    """
    first: dict[int, str] = {}  # of each module and tensor, the name under which it is shown
    head, *below = _lines(model, "", first, model.count(trainable=True) < model.count())
    if below:  # one layer says it all in its line
        head = f"{head}: {summary(model)}"
    return "\n".join([head, *below])


def summary(model: Any) -> str:
    """How many parameters, how many of them trainable, in which precision; and the adapters."""
    kinds = sorted({str(p.dtype) for p in model.parameters()})
    adapters = f"; {vars(model)['adapters']!r}" if "adapters" in vars(model) else ""
    return f"{model.count():,} parameters, {model.count(trainable=True):,} trainable, {' and '.join(kinds)}{adapters}"


def line(module: Any, path: str = "", first: dict[int, str] | None = None, mixed: bool | None = None) -> str:
    """One module and its own parameters: `Linear(weight (4, 3), bias (4,))`.

    mixed: whether to say what is trainable; without it, where one of these parameters is frozen.
    """
    first = {} if first is None else first
    own = [(name, p) for name, p in module._branches(path) if isinstance(p, Tensor)]
    packed = [f"{name} {shape}" for name, shape in module.packed().items()]
    mixed = bool(packed) or not all(p.requires_grad for _, p in own) if mixed is None else mixed
    kinds: dict[str, list[str]] = {"frozen ": packed, "trainable ": []}
    for name, p in own:
        before = first.setdefault(id(p), name)
        short = name.removeprefix(f"{path}.")
        words = f"{short} {p.shape}" if before == name else f"{short} is {before}"
        kinds["trainable " if p.requires_grad else "frozen "].append(words)
    parts = [module.extra_repr(), *(kind * mixed + ", ".join(words) for kind, words in kinds.items() if words)]
    inside = "; ".join(part for part in parts if part)
    return f"{type(module).__name__}{f'({inside})' * bool(inside)}"


def _lines(module: Any, path: str, first: dict[int, str], mixed: bool) -> list[str]:
    """The module's line, and below it, indented, those of the modules in it."""
    if id(module) in first:
        return [f"the same as {first[id(module)] or 'the model'}"]
    first[id(module)] = path
    head = line(module, path, first, mixed)
    found = [(name, child) for name, child in module._branches(path) if not isinstance(child, Tensor)]
    blocks = [(name.removeprefix(f"{path}."), _lines(child, name, first, mixed)) for name, child in found]
    lines = [head]
    for _, alike in itertools.groupby(blocks, key=lambda block: (block[0].rpartition(".")[0], block[1])):
        (name, (top, *rest)), *others = alike
        if others and name.rpartition(".")[2].isdigit():
            name, top = f"{name} to {others[-1][0].rpartition('.')[2]}", f"{1 + len(others)} x {top}"
            others = []
        for label, text in [(name, top), *((other, block[0]) for other, block in others)]:
            lines += [f"  {label}: {text}", *(f"  {inner}" for inner in rest)]
    return lines
