"""A model's modules by the names that PEFT's files have for them, and what of ours each of theirs is."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..adapters.targets import OUTPUTS
from ..nn.architectures import Architecture, find
from ..nn.language_model import LanguageModel
from ..nn.layers import Embedding, Linear
from ..nn.vision import ViT
from .names import Place, family_of, module_names
from .vit_files import modules_in_memory

UNSURE = "PEFT's files do not say which weights they were trained on: names and shapes are all that can be checked"
HEAD = "lm_head"
Arrays = dict[str, np.ndarray]


def architecture_of(model: Any) -> Architecture:
    """What a model is made of. Raises ValueError for one that is no transformer whose files are known."""
    if isinstance(model, ViT):
        return model.config.blocks
    if not isinstance(model, LanguageModel):
        raise ValueError(
            f"a {type(model).__name__} has no names in PEFT's files; the modules of GPT, Transformer and ViT do"
        )
    return find(model)


class Theirs:
    """places: {their module: [(our path, Place)]} in the order of its rows. kinds: {their module: "linear", "table",
    "output"}, of those that LoRA can adapt. bare: whether names begin as those of a model without a head do.
    """

    def __init__(self, model: Any, bare: bool = False):
        self.model, self.architecture = model, architecture_of(model)
        sees = isinstance(model, ViT)
        self.prefix = "vit." if sees else family_of(self.architecture).prefix
        self.tied, self.masked = (self.architecture.head == kind for kind in ("tied", "masked"))
        self.places: dict[str, list[tuple[str, Place]]] = {}
        self.kinds: dict[str, str] = {}
        named = modules_in_memory(model) if sees else dict(module_names(self.architecture))
        if self.architecture.causal and model.labels:
            named["classifier"] = Place("score")
        for path, place in named.items():
            name = place.module.removeprefix(self.prefix if bare else "")
            self.places.setdefault(name, []).append((path, place))
            module = model.get_module(path)
            if isinstance(module, Embedding | Linear):
                kind = "output" if path in OUTPUTS else "linear"
                self.kinds[name] = "table" if isinstance(module, Embedding) else kind
        if self.tied:  # the head is a module there, whose weight is the table's
            self.places[HEAD], self.kinds[HEAD] = [("wte", Place(HEAD))], "output"

    def of(self, module: str) -> list[tuple[str, Place]]:
        """Our modules that one of theirs is. Raises ValueError for one that the model does not have."""
        if module in self.places:
            return self.places[module]
        if module in OUTPUTS or module == "pre_classifier" or module.endswith("pooler.dense"):
            raise ValueError(
                f"it holds {module}, a head for labels: ml.add_classifier(model, labels) gives the model one"
            )
        there = ", ".join([name for name, kind in self.kinds.items() if kind == "linear"][:2])
        raise ValueError(f"it holds {module}, and this model's modules are called {there} ...; {UNSURE}")

    def shape(self, module: str) -> tuple[int, int]:
        """(d_out, d_in) of one of theirs; of a table (C, V), as its update is held."""
        shapes = [self._shape(path) for path, _ in self.of(module)]
        if self.kinds[module] == "table":
            return shapes[0][1], shapes[0][0]
        return sum(rows for rows, _ in shapes), shapes[0][1]

    def _shape(self, path: str) -> tuple[int, int]:
        layer = self.model.get_module(path)
        return layer.packed().get("weight") or layer.weight.shape

    def ours(self, name: str, value: np.ndarray) -> Arrays:
        """{our parameter: its rows} of one of theirs."""
        module, _, last = name.rpartition(".")
        parts, found = self.of(module), {}
        for path, place in parts:
            whole = value.T if place.transposed and value.ndim == 2 else value
            if place.rows is not None and (rows := parts[-1][1].rows.stop) != len(whole):  # type: ignore[union-attr]
                raise ValueError(f"{name} has {len(whole)} rows, expected {rows}; {UNSURE}")
            found[f"{path}.{last}"] = whole[place.rows or slice(None)]
        return found

    def theirs(self, parameters: Arrays, base: Any) -> Iterator[tuple[str, np.ndarray]]:
        """(their name, their matrix) of some of our parameters; where theirs is more than those, the rest is base's."""
        for module, parts in self.places.items():
            for last in ("weight", "bias"):
                names = [f"{path}.{last}" for path, _ in parts]
                if any(name in parameters for name in names):
                    whole = np.concatenate([parameters[n] if n in parameters else base(n) for n in names])
                    yield f"{module}.{last}", whole.T if parts[0][1].transposed and whole.ndim == 2 else whole
