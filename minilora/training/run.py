"""A run of training: what it is made of (a model, a text, settings), and what it has come to so far."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..adapters.lora_plus import lora_plus
from ..nn.habits import names_its_settings
from .checks import NORM, NOT_NEGATIVE, POSITIVE, SHARE, Bounds, described, integer, number, truth, two_betas
from .corpus import as_corpus
from .optim import AdamW
from .sharded import ShardedAdamW


def _whole(least: int) -> Callable:
    return lambda what, value: integer(what, value, least)


def _real(bounds: Bounds) -> Callable:
    return lambda what, value: number(what, value, bounds)


def _or_none(rule: Callable) -> Callable:
    return lambda what, value: None if value is None else rule(what, value)


RULES: dict[str, Callable] = {  # what each setting may be
    "steps": _whole(1),
    "batch_size": _whole(1),
    "lr": _real(NOT_NEGATIVE),
    "warmup": _whole(0),
    "floor": _real(SHARE),
    "betas": two_betas,
    "weight_decay": _real(NOT_NEGATIVE),
    "max_norm": _or_none(_real(NORM)),
    "evaluate_every": _whole(1),
    "evaluation_windows": _or_none(_whole(1)),
    "checkpoint_every": _whole(1),
    "seed": _whole(0),
    "lr_ratio": _real(POSITIVE),
    "pieces": _or_none(_whole(1)),
    "accumulate": _whole(1),
    "checkpoint_blocks": truth,
    "window": _or_none(_whole(1)),
    "shard": truth,
}


@names_its_settings
@dataclass
class Settings:
    """How to train: steps of batch_size windows, AdamW with warm-up and a cosine down to floor * lr, clipping.

    max_norm: of the gradient, or None for no clipping. evaluate_every: steps between evaluations, on at most
    evaluation_windows windows (None: all). seed: of batches and dropout. lr_ratio: B's learning rate over A's (LoRA+);
    1 is one rate for all. pieces: how many a batch is split into, for the same bits on any number of cores (None: one
    for each core; `parallel.py` says what is promised). accumulate: how many batches, one after the other, a step's
    gradient is the mean of: a step of as many times the rows in the memory of one batch. checkpoint_blocks:
    whether a block's activations are computed again in the backward pass, and not kept (`model.recompute_blocks`).
    window: tokens of a text at a time (None: model.window). shard: whether each of several processes keeps its share of
    the optimiser's moments alone (`sharded.py`). Raises TypeError or ValueError for what makes no sense, now
    and when one is changed.
    """

    steps: int = 200
    batch_size: int = 16
    lr: float = 3e-3
    warmup: int = 20
    floor: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    max_norm: float | None = 1.0
    evaluate_every: int = 50
    evaluation_windows: int | None = 64
    checkpoint_every: int = 200
    seed: int = 0
    lr_ratio: float = 1.0
    pieces: int | None = None
    accumulate: int = 1
    checkpoint_blocks: bool = False
    window: int | None = None
    shard: bool = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in RULES:
            raise AttributeError(f"Settings: there is no {name!r}; there are {', '.join(RULES)}")
        object.__setattr__(self, name, RULES[name](f"Settings: {name}", value))


@names_its_settings
@dataclass(eq=False)
class Run:
    """A training run in progress or done: everything that a checkpoint holds.

    corpus: a Corpus, or what load_corpus takes, or Examples, as load_pairs gives. history: {"step": [...], "loss":
    [...]} of the training batches; validation: {"step": [...], "loss": [...]}. interrupted: whether Ctrl-C ended the
    last `train` before its time. saved: the step that the checkpoint of the last `train` holds. notes: what is to be
    remembered with the run, as JSON has it. Raises ValueError for a model that trains nothing, or with a number that is
    not finite, which it names.
    """

    model: Any
    corpus: Any
    settings: Settings = field(default_factory=Settings)
    optimizer: AdamW = field(init=False)
    rng: np.random.Generator = field(init=False)
    history: dict[str, list] = field(default_factory=lambda: {"step": [], "loss": []})
    validation: dict[str, list] = field(default_factory=lambda: {"step": [], "loss": []})
    interrupted: bool = False
    saved: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        s = self.settings
        if not isinstance(s, Settings):
            raise TypeError(f"Run: settings is {described(s)}, expected ml.Settings(steps=200)")
        if not hasattr(self.model, "named_parameters") or isinstance(self.model, type):
            raise TypeError(f"Run: model is {described(self.model)}, expected one such as ml.load_model('base')")
        if s.checkpoint_blocks:
            self.compute_again()
        if broken := self.model.first_not_finite():
            raise ValueError(f"Run: {broken}, which training would spread")
        self.corpus = as_corpus("Run", self.corpus, getattr(self.model, "tokenizer", None))
        self.saved = None if self.saved is None else integer("Run: saved", self.saved, 0)
        parameters = self.model.named_parameters() if s.lr_ratio == 1 else lora_plus(self.model, s.lr_ratio)
        kind = ShardedAdamW if s.shard else AdamW
        self.optimizer = kind(parameters, s.lr, s.betas, weight_decay=s.weight_decay)
        self.rng = np.random.default_rng(s.seed)

    def compute_again(self) -> None:
        """Let the model's blocks be computed again in the backward pass. Raises ValueError where they cannot be."""
        if not hasattr(self.model, "recompute_blocks") or getattr(self.model, "front", None) is not None:
            why = "virtual tokens are cached" if hasattr(self.model, "recompute_blocks") else "the model has none"
            raise ValueError(f"Run: checkpoint_blocks = True, but the blocks cannot be computed again: {why}")
        self.model.recompute_blocks = True

    @property
    def step(self) -> int:
        """Steps taken so far."""
        return self.optimizer.steps

    def __repr__(self) -> str:
        loss = f", validation loss {self.validation['loss'][-1]:.3f}" if self.validation["loss"] else ""
        model = f"{type(self.model).__name__} on {self.corpus.name!r}"
        return f"Run({model}, step {self.step} of {self.settings.steps}{loss})"
