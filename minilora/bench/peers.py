"""Who takes part in the benchmark: our training step, its peers, and the matrix product that bounds them all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..adapters.lora import LoRAConfig, add_lora
from ..analysis.counting import operations
from ..autograd.backend import Array, array_module, new_array
from ..nn.gpt import GPT, GPTConfig
from ..studies.turns import Contender, LeftOut, nothing
from ..training.loop import train_step
from ..training.optim import AdamW
from ..training.processes import Team
from . import arrays, pytorch
from .pytorch import LEARNING_RATE
from .rows import PRODUCTS

SIZES = {  # vocabulary, context, width, heads, layers, batch
    "tiny": (65, 64, 64, 4, 2, 16),
    "small": (256, 128, 128, 4, 4, 16),
    "medium": (512, 128, 256, 8, 4, 16),
    "gpt2": (50257, 128, 768, 12, 12, 1),
}
METHODS = ("lora", "full")
RANK, TARGETS = 8, ("q_proj", "v_proj")  # the paper's choice of matrices
LORA = LoRAConfig(RANK, target_modules=TARGETS)
STEPS_COMPARED = 3  # first steps, whose losses must agree
AGREEMENT = 1e-4  # relative, in float32

# name: (title, builder), where a builder makes a Contender from (model, tokens, targets, device)
PEERS: dict[str, tuple[str, Callable[..., Contender]]] = {
    "torch": ("PyTorch eager", pytorch.eager),
    "torch-compiled": ("PyTorch compiled", pytorch.compiled),
    "jax": ("JAX compiled", arrays.jax_step),
    "autograd": ("HIPS autograd", arrays.autograd_step),
}
ON_GPU = ("torch", "torch-compiled")


@dataclass(frozen=True)
class Workload:
    """A training step to be timed: a size, a method, and a batch where it is not the size's own.

    sizes: those of a size that is not in SIZES.
    """

    size: str
    method: str
    batch: int | None = None
    sizes: tuple[int, int, int, int, int, int] | None = None

    def __post_init__(self) -> None:
        if (self.sizes is None and self.size not in SIZES) or self.method not in METHODS:
            known = f"{', '.join(SIZES)} and {', '.join(METHODS)}"
            raise ValueError(f"bench: got {self.size!r} and {self.method!r}; there are {known}")

    @cached_property
    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """tokens, targets: (B, T) random integers, always the same."""
        v, t, *_, b = self.sizes or SIZES[self.size]
        tokens, targets = np.random.default_rng(0).integers(0, v, (2, self.batch or b, t))
        return tokens, targets

    @property
    def config(self) -> GPTConfig:
        """The model's sizes."""
        v, t, c, h, n, _ = self.sizes or SIZES[self.size]
        return GPTConfig(v, t, n, h, c)

    def model(self) -> GPT:
        """A fresh model: the same weights at each call."""
        model = GPT(self.config)
        return add_lora(model, LORA) if self.method == "lora" else model

    def operations(self) -> float:
        """Floating-point operations of a forward and a backward pass: `costs.Walk` counts the matrix products."""
        b, t = self.data[0].shape
        count = operations(self.config, self.method, batch=b, length=t, rank=RANK, target_modules=TARGETS)
        return count["training"]


def our_step(workload: Workload, name: str = "minilora") -> Contender:
    """Forward, backward and AdamW with minilora, on the backend in use."""
    model, (tokens, targets) = workload.model(), workload.data
    optimizer = AdamW(model.named_parameters(), LEARNING_RATE)
    step = in_team(model, optimizer, lambda: train_step(model, optimizer, tokens, targets))
    return Contender(name, step, finish_of(model.wte.weight.data))


def in_team(model: Any, optimizer: AdamW, step: Callable[..., float]) -> Callable[..., float]:
    """The step, as a training loop takes it: a small model's pieces go to processes."""
    team = Team(model, optimizer.parameters)

    def step_of_a_loop(*batch: Any) -> float:
        with team:
            return step(*batch)

    return step_of_a_loop


def finish_of(array: Array) -> Callable[[], Any]:
    """What waits for the device that an array is on."""
    xp: Any = array_module(array)
    return nothing if xp is np else xp.cuda.Device().synchronize


def matrix_product(n: int) -> Contender:
    """A large float32 product, (n, n) by (n, n), on all cores or the GPU: 2 n^3 floating-point operations."""
    a = new_array(np.random.default_rng(0).random((n, n), dtype=np.float32))
    xp: Any = array_module(a)
    out = xp.empty_like(a)
    return Contender(PRODUCTS, lambda: xp.matmul(a, a, out=out), finish_of(a))


def peer_steps(workload: Workload, peers: Sequence[str], device: str = "cpu") -> tuple[list[Contender], dict[str, str]]:
    """The peers' training steps, and {title: why} for those that cannot take part."""
    steps, left_out = [], {}
    for name in peers:
        title, build = PEERS[name]
        try:
            steps.append(build(workload.model(), *workload.data, device))
        except LeftOut as reason:
            left_out[title] = str(reason)
    return steps, left_out


def compare_losses(ours: Contender, peers: Sequence[Contender]) -> dict[str, float]:
    """{peer: the largest relative difference of its first losses from ours}: do all compute the same thing?

    Raises ArithmeticError where they do not.
    """
    mine = np.array([ours.step() for _ in range(STEPS_COMPARED)])
    differences = {}
    for peer in peers:
        theirs = np.array([peer.step() for _ in range(STEPS_COMPARED)])
        differences[peer.name] = float(np.max(np.abs(theirs - mine) / np.abs(mine)))
        if not differences[peer.name] <= AGREEMENT:
            raise ArithmeticError(
                f"bench: {peer.name}'s losses {theirs.tolist()} are not ours, {mine.tolist()}: no fair comparison"
            )
    return differences
