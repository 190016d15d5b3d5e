"""Methods that add nothing and train some of the model's own parameters: all, the last blocks, or the biases.

    full           every parameter: what every other method is measured by
    last-blocks    every parameter of the last n blocks (Li & Liang 2021, "Prefix-Tuning", section 5.2: FT-Top2)
    bitfit         every bias, those of the layer norms too (Ben Zaken et al. 2021, "BitFit", section 3)

In other places these methods write into the model itself, and the base is gone. Here the adapter holds a copy of what
it trains, under the base's names, in modules that share everything else. So these methods are adapters like any other:
they start exactly at the base model, can be switched, saved and taken out, and several of them sit on one base. Merged,
their values are written into the base's parameters.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..nn.checks import is_whole, shown
from ..nn.module import Module
from .adapter import method
from .copies import copies


@method("full")
@dataclass(frozen=True)
class FullConfig:
    """Train a copy of every parameter."""

    def build(self, model: Module, rng: np.random.Generator) -> dict[str, Module]:
        """{path: a copy} for every module that has parameters. Raises ValueError where one is quantised."""
        return copies(model, lambda name: True)


@method("last-blocks")
@dataclass(frozen=True)
class LastBlocksConfig:
    """Train a copy of the last `blocks` blocks. Raises ValueError unless that is a positive integer."""

    blocks: int = 2

    def __post_init__(self) -> None:
        if not is_whole(self.blocks) or self.blocks < 1:
            raise ValueError(f"LastBlocksConfig: blocks = {shown(self.blocks)}, expected a positive integer")

    def build(self, model: Any, rng: np.random.Generator) -> dict[str, Module]:
        """{path: a copy} for the modules of the last blocks. Raises ValueError for too few, or quantised ones."""
        count = len(getattr(model, "blocks", []))
        if self.blocks > count:
            raise ValueError(f"add_adapter: last-blocks: blocks = {self.blocks}, but the model has {count}")
        last = tuple(f"blocks.{i}." for i in range(count - self.blocks, count))
        return copies(model, lambda name: name.startswith(last))


@method("bitfit")
@dataclass(frozen=True)
class BitFitConfig:
    """Train a copy of every bias."""

    def build(self, model: Module, rng: np.random.Generator) -> dict[str, Module]:
        """{path: a copy with its own bias} for every module that has one. Raises ValueError where there is none."""
        found = copies(model, lambda name: name.endswith(".bias"))
        if not found:
            raise ValueError("add_adapter: bitfit: the model has no biases to train; it was made with bias=False")
        return found
