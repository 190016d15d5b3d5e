"""Optimisers: what a gradient does to a parameter. Each is PyTorch's update, exactly, in plain arithmetic."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..autograd.backend import Array, array_module
from ..autograd.tensor import Tensor
from .parallel import in_parallel

PIECE = 2**17  # numbers updated at a time, so that temporaries stay in a core's cache
LOTS = 8  # that the pieces of large parameters are dealt into, for the cores to share


def _pieces(p: Array, *others: Array) -> Iterator[tuple]:
    """A parameter and the arrays of its shape, cut alike. An update goes entry by entry, so the bits are the same."""
    if p.size <= PIECE or not p.flags.c_contiguous or array_module(p) is not np:
        yield p, *others
        return
    flat = [array.reshape(-1) for array in (p, *others)]
    for start in range(0, p.size, PIECE):
        yield tuple(array[start : start + PIECE] for array in flat)


def _with_ratios(parameters: Iterable[Any]) -> Iterator[tuple[Tensor, float]]:
    """(tensor, its learning rate over lr), one after the other, out of the groups they come in."""
    for entry in parameters:
        group: dict[str, Any] = entry if isinstance(entry, dict) else {"params": [entry]}
        if "params" not in group or not group.keys() <= {"params", "lr_ratio"}:
            raise ValueError(f"optimizer: a group has the keys {', '.join(group)}, expected params and lr_ratio")
        for p in group["params"]:
            yield p[1] if isinstance(p, tuple) else p, float(group.get("lr_ratio", 1.0))


class Optimizer:
    """What SGD and AdamW share: a list of parameters, a learning rate, and state that a checkpoint can hold.

    parameters: trainable tensors, or (name, tensor) pairs as named_parameters() gives them; frozen ones are left out.
    A group, {"params": tensors or pairs, "lr_ratio": 16}, learns at lr_ratio times lr; a schedule sets lr alone.
    """

    def __init__(self, parameters: Iterable[Any], lr: float):
        name = type(self).__name__
        pairs = list(_with_ratios(parameters))
        trained = [(p, ratio) for p, ratio in pairs if p.requires_grad]
        if not trained:
            hint = "add_lora(model, LoRAConfig()) gives a frozen or quantised model some that do"
            raise ValueError(f"{name}: none of the {len(pairs)} parameters requires a gradient; {hint}")
        if not lr >= 0:
            raise ValueError(f"{name}: lr = {lr}, expected 0 or more")
        if wrong := [ratio for _, ratio in pairs if not 0 < ratio < math.inf]:
            raise ValueError(f"{name}: lr_ratio = {wrong[0]}, expected a positive number")
        self.parameters: list[Tensor] = [p for p, _ in trained]
        self.ratios: list[float] = [ratio for _, ratio in trained]  # each parameter's learning rate over lr
        self.lr = lr
        self.steps = 0
        self.ages = [0] * len(self.parameters)  # how many updates each parameter has had
        self.state: dict[str, list[Array]] = {}  # name -> one array per parameter, made at the first step

    def step(self, gradients: Sequence[Array] | None = None) -> None:
        """Update every parameter in place, from `gradients` or, without them, from each parameter's `.grad`."""
        gradients = [p.grad for p in self.parameters] if gradients is None else gradients
        if len(gradients) != len(self.parameters):
            raise ValueError(f"step: {len(gradients)} gradients for {len(self.parameters)} parameters")
        for i, (p, g) in enumerate(zip(self.parameters, gradients, strict=True)):
            if g is not None and g.shape != p.shape:
                raise ValueError(f"step: gradient {i} has shape {g.shape}, expected {p.shape}")
        for slot in self.slots() if self.steps == 0 else ():
            self.state[slot] = [array_module(p.data).zeros_like(p.data) for p in self.parameters]
        self.steps += 1
        pieces: list[tuple] = []
        for i, (p, g) in enumerate(zip(self.parameters, gradients, strict=True)):
            if g is not None:  # as in PyTorch: a parameter the loss did not reach stays
                self.ages[i] += 1
                state = (arrays[i] for arrays in self.state.values())
                rate = self.lr * self.ratios[i]
                pieces += [(rate, self.ages[i], *piece) for piece in _pieces(p.data, g, *state)]
        small = sum(p.size for p in self.parameters) <= PIECE
        lots = 1 if small or array_module(self.parameters[0].data) is not np else min(LOTS, len(pieces))
        in_parallel(self._update_all, [tuple(pieces[i::lots]) for i in range(lots)])

    def _update_all(self, *lot: tuple) -> None:
        for rate, t, p, g, *state in lot:
            self.update(p, g, rate, t, *state)

    def zero_grad(self) -> None:
        """Forget the gradients that `backward()` has accumulated."""
        for p in self.parameters:
            p.grad = None

    def slots(self) -> tuple[str, ...]:
        """The names of the arrays kept for each parameter."""
        return ()

    def update(self, p: Array, g: Array, lr: float, t: int, *state: Array) -> None:
        """Change one parameter's values in place, at its learning rate, by its t-th update (t = 1, 2, ...)."""
        raise TypeError(f"{type(self).__name__} has no update rule; use SGD or AdamW")

    def state_dict(self) -> dict[str, Any]:
        """{"steps": n, "ages": array, "m.0": array, ...}: everything but the parameters."""
        arrays = {f"{slot}.{i}": a.copy() for slot, kept in self.state.items() for i, a in enumerate(kept)}
        return {"steps": self.steps, "ages": np.array(self.ages), **arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict()`. Raises ValueError when it belongs to other parameters."""
        steps, ages = int(state.get("steps", 0)), state.get("ages", ())
        if len(ages) != len(self.parameters):
            raise ValueError(f"optimizer state ages: got {len(ages)}, expected one for each of {len(self.parameters)}")
        loaded: dict[str, list[Array]] = {}
        for slot in self.slots() if steps else ():
            loaded[slot] = []
            for i, p in enumerate(self.parameters):
                value = state.get(f"{slot}.{i}")
                if value is None or value.shape != p.shape:
                    came = "nothing" if value is None else f"shape {value.shape}"
                    raise ValueError(f"optimizer state {slot}.{i}: got {came}, expected {p.shape}")
                loaded[slot].append(array_module(p.data).array(value, dtype=p.dtype))
        self.steps, self.ages, self.state = steps, [int(age) for age in ages], loaded


class SGD(Optimizer):
    """g <- g + weight_decay p;   v <- momentum v + g;   p <- p - lr v.   torch.optim.SGD's update"""

    def __init__(self, parameters: Iterable[Any], lr: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0):
        super().__init__(parameters, lr)
        self.momentum, self.weight_decay = momentum, weight_decay

    def slots(self) -> tuple[str, ...]:
        """v, the velocity, where there is momentum."""
        return ("v",) if self.momentum else ()

    def update(self, p: Array, g: Array, lr: float, t: int, *state: Array) -> None:
        """One parameter's step."""
        g = g + self.weight_decay * p if self.weight_decay else g
        for v in state:
            v *= self.momentum
            v += g
            g = v
        p -= lr * g


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2). torch.optim.AdamW's update

    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2,
    p <- p - lr wd p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        super().__init__(parameters, lr)
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"AdamW: betas = {betas}, expected two numbers in [0, 1)")
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay

    def slots(self) -> tuple[str, ...]:
        """m and v, running means of the gradient and of its square."""
        return ("m", "v")

    def update(self, p: Array, g: Array, lr: float, t: int, *state: Array) -> None:
        """One parameter's step."""
        m, v = state
        b1, b2 = self.betas
        m += (1 - b1) * (g - m)
        v *= b2
        v += (1 - b2) * g * g
        root = array_module(v).sqrt(v)
        root /= math.sqrt(1 - b2**t)
        root += self.eps
        p *= 1 - lr * self.weight_decay
        p -= (lr / (1 - b1**t)) * m / root


def cosine_schedule(step: int, total: int, peak: float, warmup: int = 0, floor: float = 0.0) -> float:
    """The learning rate at step 0, 1, ...: up to `peak` in a line, then down to `floor` along half a cosine.

    step < warmup: peak (step + 1) / warmup;  then floor + (peak - floor) (1 + cos(pi q)) / 2, where q runs from 0 to 1.
    Loshchilov & Hutter 2017, "SGDR", eq. 5.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    q = min((step - warmup) / max(total - warmup, 1), 1.0)
    return floor + (peak - floor) * (1 + math.cos(math.pi * q)) / 2


def clip_gradients(gradients: Sequence[Array], max_norm: float) -> float:
    """Scale gradients in place so that their joint Euclidean norm is at most `max_norm`; returns the norm before.

    torch.nn.utils.clip_grad_norm_: every gradient times min(1, max_norm / (norm + 1e-6)). Pascanu et al. 2013.
    """
    norm = math.sqrt(sum(float((g * g).sum()) for g in gradients))
    if norm + 1e-6 > max_norm:
        for g in gradients:
            g *= max_norm / (norm + 1e-6)
    return norm
