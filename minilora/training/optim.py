"""Optimisers: what a gradient does to a parameter. Each is PyTorch's update, exactly, in plain arithmetic."""

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..autograd.backend import Array, array_module, is_array
from ..autograd.tensor import Tensor
from .checks import NORM, NOT_NEGATIVE, POSITIVE, described, integer, number, two_betas
from .parallel import in_parallel, to_its_end

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


def _entries(caller: str, parameters: Any) -> Iterator[tuple[str, Tensor, float]]:
    """(name, tensor, its learning rate over lr), one after the other, out of the groups they come in."""
    for i, entry in enumerate(_several(caller, parameters)):
        group: dict[Any, Any] = entry if isinstance(entry, dict) else {"params": [entry]}
        if "params" not in group or not group.keys() <= {"params", "lr_ratio"}:
            keys = ", ".join(map(str, group)) or "none"
            raise ValueError(f"{caller}: a group has the keys {keys}, expected params and lr_ratio")
        ratio = number(f"{caller}: lr_ratio", group.get("lr_ratio", 1.0), POSITIVE)
        members = group["params"]
        for j, p in enumerate([members] if isinstance(members, Tensor) else _several(caller, members)):
            place = f"{j} of group {i}" if isinstance(entry, dict) else str(i)
            name, p = p if isinstance(p, tuple) and len(p) == 2 else (f"parameter {place}", p)
            if not isinstance(p, Tensor):
                came = f"parameter {place} is {described(p)}"
                raise TypeError(
                    f"{caller}: {came}, expected a Tensor, or a name and a Tensor: model.named_parameters()"
                )
            yield str(name), p, ratio


def _several(caller: str, values: Any) -> list:
    """Values to go through; not one tensor's rows, nor one text's letters."""
    if not isinstance(values, Iterable) or is_array(values) or isinstance(values, Tensor | dict | str | bytes):
        hint = "model.parameters()" if hasattr(values, "parameters") else "[x]"
        raise TypeError(f"{caller}: parameters is {described(values)}, expected a list of tensors: {caller}({hint})")
    return list(values)


def _check_trained(caller: str, entries: list[tuple[str, Tensor, float]]) -> None:
    """Raise for tensors that no optimiser can train: computed ones, complex ones, and one tensor given twice."""
    seen: dict[int, str] = {}
    for name, p, _ in entries:
        if p.node is not None and p.node.leaf is None:
            raise ValueError(f"{caller}: {name} was computed from others; give what it was computed from")
        if p.dtype.kind != "f":
            raise TypeError(f"{caller}: {name} has dtype {p.dtype}, expected real numbers")
        if id(p) in seen:
            both = f"{seen[id(p)]} and {name}"
            raise ValueError(f"{caller}: {both} are one tensor, which would be updated twice a step; give it once")
        seen[id(p)] = name


class Optimizer:
    """What SGD and AdamW share: a list of parameters, a learning rate, and state that a checkpoint can hold.

    parameters: trainable tensors, or (name, tensor) pairs as named_parameters() gives them; frozen ones are left out.
    A group, {"params": tensors or pairs, "lr_ratio": 16}, learns at lr_ratio times lr; a schedule sets lr alone.
    State is kept, and updates are computed, in float32 for parameters of 16 bits.
    """

    def __init__(self, parameters: Iterable[Any], lr: float):
        name = type(self).__name__
        entries = list(_entries(name, parameters))
        trained = [entry for entry in entries if entry[1].requires_grad]
        if not trained:
            hint = "add_lora(model, LoRAConfig()) gives a frozen or quantised model some that do"
            hint = hint if entries else "a generator gives them once; was it used up?"
            raise ValueError(f"{name}: none of the {len(entries)} parameters requires a gradient; {hint}")
        _check_trained(name, trained)
        self.parameters: list[Tensor] = [p for _, p, _ in trained]
        self.ratios: list[float] = [ratio for _, _, ratio in trained]  # each parameter's learning rate over lr
        self.lr = lr
        self.steps = 0
        self.ages = [0] * len(self.parameters)  # how many updates each parameter has had
        self.state: dict[str, list[Array]] = {}  # name -> one array per parameter, made at the first step

    @property
    def lr(self) -> float:
        """The learning rate, which a schedule may set before each step."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = number(f"{type(self).__name__}: lr", value, NOT_NEGATIVE)

    def __repr__(self) -> str:
        count = sum(p.size for p in self.parameters)
        of = f"{len(self.parameters)} tensors, {count:,} parameters"
        return f"{type(self).__name__}({of}, lr={self.lr:g}, steps={self.steps})"

    def step(self, gradients: Sequence[Array | None] | None = None) -> None:
        """Update every parameter in place, from `gradients` or, without them, from each parameter's `.grad`.

        A parameter whose gradient is None was not reached by the loss: it stays as it is, and so does its state. An
        update is done or not begun, whatever interrupts it. Raises ValueError where no parameter has a gradient.
        """
        to_its_end(functools.partial(self._step, self._fitting(gradients)))

    def _fitting(self, gradients: Any) -> list:
        """One array or None for each parameter, or an error that says what came instead."""
        name = f"{type(self).__name__}.step"
        if gradients is None:
            fix = "call loss.backward() first, on a loss that depends on them, or give step(gradients)"
            gradients = [p.grad for p in self.parameters]
        else:
            fix = "the loss that they are the gradients of depends on none of the parameters"
            gradients = arrays_of(name, gradients)
        if len(gradients) != len(self.parameters):
            raise ValueError(f"{name}: {len(gradients)} gradients for {len(self.parameters)} parameters")
        for i, (p, g) in enumerate(zip(self.parameters, gradients, strict=True)):
            if g is not None and g.shape != p.data.shape:
                raise ValueError(f"{name}: gradient {i} has shape {g.shape}, expected {p.data.shape}")
        shapes = [self.own(i, p.data).shape for i, p in enumerate(self.parameters)]
        for kept in self.state.values():
            for i, (shape, array) in enumerate(zip(shapes, kept, strict=True)):
                if array.shape != shape:
                    raise ValueError(f"{name}: parameter {i} has another shape, {shape}, than at the step before")
        if all(g is None for g in gradients):
            raise ValueError(f"{name}: none of the {len(gradients)} parameters has a gradient; {fix}")
        return gradients

    def _step(self, gradients: list) -> None:
        if not self.state:
            owned = [self.own(i, p.data) for i, p in enumerate(self.parameters)]
            zeros = lambda p: array_module(p).zeros(p.shape, dtype=_at_least_32(p.dtype))
            self.state = {slot: [zeros(p) for p in owned] for slot in self.slots()}
        reached = [i for i, g in enumerate(gradients) if g is not None]
        pieces: list[tuple] = []
        for i in reached:
            p, g = self.own(i, self.parameters[i].data), self.own(i, gradients[i])
            rate, state = self.lr * self.ratios[i], (arrays[i] for arrays in self.state.values())
            pieces += [(rate, self.ages[i] + 1, *piece) for piece in _pieces(p, g, *state)]
        small = sum(p.size for p in self.parameters) <= PIECE
        lots = 1 if small or array_module(self.parameters[0].data) is not np else min(LOTS, len(pieces))
        in_parallel(self._update_all, [tuple(pieces[i::lots]) for i in range(lots)])
        self.steps += 1
        for i in reached:
            self.ages[i] += 1
            self.parameters[i].changed()

    def _update_all(self, *lot: tuple) -> None:
        for rate, t, p, g, *state in lot:
            wide = _at_least_32(p.dtype)
            if p.dtype == wide:
                self.update(p, _widened(g), rate, t, *state)
            else:
                q = p.astype(wide)
                self.update(q, _widened(g), rate, t, *state)
                p[...] = q

    def own(self, i: int, array: Array) -> Array:
        """Of parameter i's array, what this optimiser updates and keeps state of: all of it."""
        return array

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

    def gather(self) -> None:
        """Make ready for `state_dict()`, where several processes train: each has all there is here."""

    def state_dict(self) -> dict[str, Any]:
        """{"steps": n, "ages": array, "m.0": array, ...}: everything but the parameters."""
        arrays = {f"{slot}.{i}": a.copy() for slot, kept in self.state.items() for i, a in enumerate(kept)}
        return {"steps": self.steps, "ages": np.array(self.ages), **arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict()`. Raises ValueError when it belongs to other parameters."""
        if not isinstance(state, Mapping):
            raise TypeError(
                f"{type(self).__name__}.load_state_dict: got {described(state)}, expected what state_dict() gives"
            )
        steps = integer("optimizer state steps", state.get("steps", 0), 0)
        ages = np.asarray(state.get("ages", ()))
        if ages.shape != (len(self.parameters),) or ages.dtype.kind not in "iu" or not (ages >= 0).all():
            came = described(ages.tolist())
            raise ValueError(f"optimizer state ages: got {came}, expected a count for each of {len(self.parameters)}")
        loaded: dict[str, list[Array]] = {}
        for slot in self.slots() if steps else ():
            loaded[slot] = []
            for i, p in enumerate(self.parameters):
                wide = _at_least_32(p.dtype)
                value: Any = state.get(f"{slot}.{i}")
                if not is_array(value) or value.shape != p.shape or value.dtype.kind != "f":
                    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
                    came = "nothing" if value is None else f"shape {shape} of {dtype}"
                    raise ValueError(f"optimizer state {slot}.{i}: got {came}, expected {p.shape} of {wide}")
                loaded[slot].append(array_module(p.data).array(value, dtype=wide))
        self.steps, self.ages, self.state = steps, [int(age) for age in ages], loaded


class SGD(Optimizer):
    """g <- g + weight_decay p;   v <- momentum v + g;   p <- p - lr v.   torch.optim.SGD's update"""

    def __init__(self, parameters: Iterable[Any], lr: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0):
        super().__init__(parameters, lr)
        self.momentum = number("SGD: momentum", momentum, NOT_NEGATIVE)
        self.weight_decay = number("SGD: weight_decay", weight_decay, NOT_NEGATIVE)

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
        self.betas = two_betas("AdamW: betas", betas)
        self.eps = number("AdamW: eps", eps, NOT_NEGATIVE)
        self.weight_decay = number("AdamW: weight_decay", weight_decay, NOT_NEGATIVE)

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
    step, total = integer("cosine_schedule: step", step, 0), integer("cosine_schedule: total", total, 0)
    peak, floor = (
        number(f"cosine_schedule: {name}", value, NOT_NEGATIVE) for name, value in (("peak", peak), ("floor", floor))
    )
    if step < integer("cosine_schedule: warmup", warmup, 0):
        return peak * (step + 1) / warmup
    q = min((step - warmup) / max(total - warmup, 1), 1.0)
    return floor + (peak - floor) * (1 + math.cos(math.pi * q)) / 2


def clip_gradients(gradients: Sequence[Array | None], max_norm: float) -> float:
    """Scale gradients in place so that their joint Euclidean norm is at most `max_norm`; returns the norm before.

    torch.nn.utils.clip_grad_norm_: every gradient times min(1, max_norm / (norm + 1e-6)). Pascanu et al. 2013.
    None, of a parameter that was not reached, has no length. Squares are added in float32 at least. A norm that is not
    finite scales nothing.
    """
    max_norm = number("clip_gradients: max_norm", max_norm, NORM)
    reached = [g for g in arrays_of("clip_gradients", gradients) if g is not None]
    with np.errstate(over="ignore"):
        norm = math.sqrt(sum(map(_sum_of_squares, reached)))
    if math.isfinite(norm) and norm + 1e-6 > max_norm:
        scale = max_norm / (norm + 1e-6)
        for g in reached:
            if g.dtype.itemsize >= 4:
                g *= scale
            else:
                g[...] = _widened(g) * scale
    return norm


def _sum_of_squares(g: Array) -> float:
    g = _widened(g)
    total = float((g * g).sum())
    if total == math.inf:  # the sum, or a square, is too large for float32
        g = g.astype(np.float64)
        total = float((g * g).sum())
    return total


def arrays_of(caller: str, gradients: Any) -> list:
    """Gradients as a list of arrays of real numbers, None where there is none, or an error that says what came."""
    if not isinstance(gradients, Iterable) or is_array(gradients) or isinstance(gradients, Tensor | dict | str | bytes):
        came = described(gradients)
        raise TypeError(f"{caller}: gradients is {came}, expected a list of arrays, as ml.grad(loss, parameters) gives")
    gradients = list(gradients)
    for i, g in enumerate(gradients):
        if type(g) is np.ndarray and g.dtype.kind == "f":
            continue
        if (g is not None and not (hasattr(g, "dtype") and g.dtype.kind in "fiu")) or isinstance(g, Tensor):
            raise TypeError(f"{caller}: gradient {i} is {described(g)}, expected an array of real numbers, or None")
    return gradients


def _at_least_32(dtype: Any) -> Any:
    return dtype if dtype.itemsize >= 4 else np.dtype(np.float32)


def _widened(array: Array) -> Array:
    """The array, in float32 where its own precision is lower: squares of 16 bits overflow from 256 on."""
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array
