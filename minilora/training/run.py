"""A run of training: what it is made of (a model, a text, settings), and what it has come to so far."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..adapters.lora_plus import lora_plus
from .corpus import Corpus
from .optim import AdamW


@dataclass
class Settings:
    """How to train: steps of batch_size windows, AdamW with warm-up and a cosine down to floor * lr, clipping.

    evaluate_every: steps between evaluations, on at most evaluation_windows windows. seed: of batches and dropout.
    lr_ratio: B's learning rate over A's (LoRA+); 1 is one rate for all.
    """

    steps: int = 200
    batch_size: int = 16
    lr: float = 3e-3
    warmup: int = 20
    floor: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    max_norm: float = 1.0
    evaluate_every: int = 50
    evaluation_windows: int | None = 64
    checkpoint_every: int = 200
    seed: int = 0
    lr_ratio: float = 1.0

    def __post_init__(self) -> None:
        self.betas = (self.betas[0], self.betas[1])
        for name in ("steps", "batch_size", "evaluate_every", "evaluation_windows", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"Settings: {name} = {value}, expected 1 or more")


@dataclass
class Run:
    """A training run in progress or done: everything that a checkpoint holds.

    history: {"step": [...], "loss": [...]} of the training batches; validation: {"step": [...], "loss": [...]}.
    """

    model: Any
    corpus: Corpus
    settings: Settings
    optimizer: AdamW = field(init=False)
    rng: np.random.Generator = field(init=False)
    history: dict[str, list] = field(default_factory=lambda: {"step": [], "loss": []})
    validation: dict[str, list] = field(default_factory=lambda: {"step": [], "loss": []})
    interrupted: bool = False

    def __post_init__(self) -> None:
        s = self.settings
        parameters = self.model.named_parameters() if s.lr_ratio == 1 else lora_plus(self.model, s.lr_ratio)
        self.optimizer = AdamW(parameters, s.lr, s.betas, weight_decay=s.weight_decay)
        self.rng = np.random.default_rng(s.seed)

    @property
    def step(self) -> int:
        """Steps taken so far."""
        return self.optimizer.steps
