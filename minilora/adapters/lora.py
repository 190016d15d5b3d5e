"""LoRA: adapt a frozen weight by a product of two thin matrices (Hu et al. 2021, "LoRA", section 4).

    y = x W^T + b + s (x A^T) B^T        W (d_out, d_in) frozen;  A (r, d_in) and B (d_out, r) trained;  s = alpha / r

The update Delta W = s B A has rank r at most and r (d_in + d_out) numbers in place of d_in d_out. B starts at zero, so
the adapted model starts exactly at the base model; other ways to begin: `initialise.py`. `lora_forward` and
`lora_backward` are the whole method in NumPy; below them come the configuration and the layer. What it shares with
other methods, from adding it to a model to saving it: `adapter.py`.
"""

import functools
import math
import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from ..autograd import ops
from ..autograd.backend import Array
from ..autograd.tensor import Tensor, primitive
from ..nn.checks import flag, is_real, is_whole, plain, shown
from ..nn.layers import Linear, parameter
from ..nn.module import Module
from .adapter import Put, StandIn, method, stand_in_for
from .attach import add_adapter
from .bypass import bypassed
from .copies import copies
from .initialise import STARTS
from .state import active_adapter, check_model
from .targets import Patterns, by_pattern, in_layers, match_targets, patterns


def lora_forward(x: Array, W: Array, b: Array, A: Array, B: Array, s: float) -> tuple[Array, Array]:
    """The adapted layer on plain arrays: -> y (N, d_out), and h (N, r), which the backward pass needs.

    x: (N, d_in), W: (d_out, d_in), b: (d_out,), A: (r, d_in), B: (d_out, r), s = alpha / r.
    """
    x, W, b, A, B = numbers("lora_forward", s, x=x, W=W, b=b, A=A, B=B)
    h = x @ A.T  # (N, r)
    y = x @ W.T + b + s * (h @ B.T)  # (N, d_out)
    return y, h


def lora_backward(g: Array, x: Array, h: Array, W: Array, A: Array, B: Array, s: float) -> tuple[Array, Array, Array]:
    """The gradients of a loss L: -> dx (N, d_in), dA (r, d_in), dB (d_out, r), given g = dL/dy (N, d_out).

    Entry by entry, with n for rows, i for d_in, o for d_out, k for r:
        y_no = sum_i x_ni W_oi + b_o + s sum_k h_nk B_ok,    h_nk = sum_i x_ni A_ki.

    B enters y only in the last sum:   dL/dB_ok = sum_n g_no dy_no/dB_ok = s sum_n g_no h_nk      so dB = s g^T h.
    h enters y only there, too:        dL/dh_nk = s sum_o g_no B_ok                               so dh = s g B.
    A enters only through h:           dL/dA_ki = sum_n dh_nk x_ni                                so dA = dh^T x.
    x enters through W and through A:  dL/dx_ni = sum_o g_no W_oi + sum_k dh_nk A_ki              so dx = g W + dh A.

    W is frozen: its gradient g^T x, as large as W itself, is never formed. At the start B = 0, hence dh = 0 and dA = 0:
    the first step moves only B. (With A = 0 as well, h = 0 and dB = 0, and nothing would ever move.)
    """
    g, x, h, W, A, B = numbers("lora_backward", s, g=g, x=x, h=h, W=W, A=A, B=B)
    dB = s * (g.T @ h)  # (d_out, r)
    dh = s * (g @ B)  # (N, r)
    dA = dh.T @ x  # (r, d_in)
    dx = g @ W + dh @ A  # (N, d_in)
    return dx, dA, dB


AXES = {"x": "ni", "W": "oi", "b": "o", "A": "ki", "B": "ok", "g": "no", "h": "nk"}  # letters as in `lora_backward`


def numbers(caller: str, s: Any, **given: Any) -> list[Array]:
    """What came, as arrays whose shapes fit each other. Raises TypeError or ValueError that says which does not."""
    sizes: dict[str, int] = {}
    arrays = {name: plain(value, f"{caller}: {name}") for name, value in given.items()}
    for name, array in arrays.items():
        axes = AXES[name]
        if array.ndim != len(axes) or any(sizes.setdefault(k, n) != n for k, n in zip(axes, array.shape, strict=True)):
            shapes = ", ".join(f"{one} {other.shape}" for one, other in arrays.items())
            raise ValueError(f"{caller}: {name} has shape {array.shape}, which does not fit the others: {shapes}")
    if not is_real(s):
        raise TypeError(f"{caller}: s = {shown(s)}, expected a number: alpha / r")
    return list(arrays.values())


@method("lora")
@dataclass(frozen=True)
class LoRAConfig:
    """What to adapt, and how.

    rank: r, the width of the bottleneck. alpha: the update is scaled by alpha/r (section 4.1), or by alpha/sqrt(r) when
    rank_stabilized (Kalajdzievski 2023, "rsLoRA"). target_modules: names or patterns; "q_proj" is every q_proj,
    "blocks.0.*" and "*.mlp.*" are shell patterns on whole names, "*" is every linear layer; or one regular expression
    as a string (`targets.py`). dropout: on the input of A, where a generator is given. init: "kaiming" draws A from
    U(-1/sqrt(d_in), 1/sqrt(d_in)), "gaussian" from N(0, 1/r^2), and B is zero; "pissa" starts both from W's singular
    vectors (`initialise.py`).

    exclude_modules: targets that are left out. layers_to_transform: the layers, by number, that targets must be in.
    rank_pattern, alpha_pattern: {pattern: rank or alpha} of the targets that differ. bias: "none", or train the biases
    of the adapted layers ("lora_only") or of every module ("all"). modules_to_save: modules trained in full beside
    LoRA, such as ("ln_f",). These names and what they do are PEFT's.
    Raises ValueError for values outside these, and, once the model is seen, for a pattern that means nothing in it.
    """

    inits: ClassVar[tuple[str, ...]] = tuple(STARTS)
    rank: int = 8
    alpha: float = 16
    target_modules: Patterns = ("q_proj", "v_proj")
    dropout: float = 0.0
    init: str = "kaiming"
    rank_stabilized: bool = False
    exclude_modules: Patterns = ()
    layers_to_transform: int | Sequence[int] | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict, hash=False)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict, hash=False)
    bias: str = "none"
    modules_to_save: Patterns = ()

    def __post_init__(self) -> None:
        name = type(self).__name__
        for what in ("target_modules", "exclude_modules", "modules_to_save"):
            object.__setattr__(self, what, patterns(getattr(self, what), f"{name}: {what}"))
        if not self.target_modules:
            raise ValueError(f"{name}: target_modules is empty; name at least one, such as 'q_proj'")
        _positive_integer(self.rank, f"{name}: rank")
        _positive(self.alpha, f"{name}: alpha")
        if not is_real(self.dropout) or not 0 <= self.dropout < 1:
            raise ValueError(f"{name}: dropout = {shown(self.dropout)}, expected 0 <= dropout < 1")
        one_of(self.init, self.inits, f"{name}: init")
        one_of(self.bias, ("none", "lora_only", "all"), f"{name}: bias")
        flag(self.rank_stabilized, f"{name}: rank_stabilized")
        for what, check in (("rank_pattern", _positive_integer), ("alpha_pattern", _positive)):
            settings = getattr(self, what)
            if not isinstance(settings, Mapping):
                raise ValueError(
                    f"{name}: {what} = {shown(settings)}, expected {{pattern: value}}, as in {{'q_proj': 4}}"
                )
            for pattern, value in settings.items():
                check(value, f"{name}: {what}[{pattern!r}]")
            object.__setattr__(self, what, dict(settings))
        if self.layers_to_transform is not None:
            came: Any = self.layers_to_transform
            several = isinstance(came, Sequence) and not isinstance(came, str | bytes)
            layers = tuple(came) if several else (came,)
            if not layers or not all(map(is_whole, layers)):
                raise ValueError(f"{name}: layers_to_transform = {shown(came)}, expected integers")
            object.__setattr__(self, "layers_to_transform", layers)

    @property
    def scale(self) -> float:
        """s = alpha / r, or alpha / sqrt(r)."""
        return float(self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank))

    def build(self, model: Module, rng: np.random.Generator) -> dict[str, Module]:
        """{path: a LoRA layer} for every linear layer that is targeted, and copies of what else is trained."""
        places = [(path, m) for path, m in model.named_modules(remove_duplicate=False) if path]
        linears = {path: m for path, m in places if isinstance(m, Linear)}
        if not linears:
            raise ValueError(f"add_lora: there is no linear layer inside this {type(model).__name__}")
        first: dict[int, str] = {}  # a layer that stands in several places is adapted once, for all of them
        for path in self.targets(list(linears)):
            first.setdefault(id(linears[path]), path)
        targets = list(first.values())
        each = self.of_each(targets)
        for path in targets:
            (d_out, d_in), rank = shape_of(linears[path]), each[path].rank
            if rank > min(d_out, d_in):
                raise ValueError(f"add_lora: rank {rank} exceeds min(d_in, d_out) = {min(d_out, d_in)} of {path}")
        copied: dict[int, Tensor] = {}  # the base's tensor -> its copy, one wherever it is shared
        for words in bypassed(model, targets):
            warnings.warn(f"add_lora: {words}, past the adapted layer; merging would reach it", stacklevel=2)
        layers: dict[str, Any] = {path: each[path].layer_for(linears[path], rng) for path in targets}
        if self.bias != "none":
            for layer in layers.values():
                layer.train_copies([name for name in ("bias",) if layer.bias is not None], copied)
        return layers | self._beside(model, layers, dict(places), copied)

    def _beside(self, model: Module, layers: Any, places: dict[str, Module], copied: Any) -> dict[str, Module]:
        """{path: a copy} of modules that are trained in full, and of those whose biases are."""
        full = match_targets(self.modules_to_save, list(places), "modules_to_save")
        within = tuple(f"{path}." for path in full)
        if both := [path for path in layers if f"{path}.".startswith(within)]:
            raise ValueError(f"add_lora: {both[0]} is a target and, by modules_to_save, trained in full; choose one")
        own = tuple(f"{path}." for path in layers)
        biases = lambda name: self.bias == "all" and name.endswith(".bias") and not name.startswith(own)
        beside = copies(model, lambda name: name.startswith(within) or biases(name), copied)
        if self.bias != "none" and not any("bias" in layer.copied for layer in (layers | beside).values()):
            raise ValueError(f"add_lora: bias = {self.bias!r}, and there is no bias to train; the model has none")
        return beside

    def targets(self, names: list[str]) -> list[str]:
        """Of these linear layers, those that are adapted."""
        found = match_targets(self.target_modules, names)
        out = match_targets(self.exclude_modules, names, "exclude_modules")
        if self.layers_to_transform is not None:
            found = in_layers(self.layers_to_transform, found, "layers_to_transform")  # type: ignore[arg-type]
        if not (found := [name for name in found if name not in set(out)]):
            raise ValueError(f"exclude_modules: {', '.join(self.exclude_modules)} leaves no target to adapt")
        return found

    def of_each(self, targets: list[str]) -> dict[str, "LoRAConfig"]:
        """{path: this configuration with the rank and the alpha that patterns give it}"""
        ranks = by_pattern(self.rank_pattern, targets, "rank_pattern")
        alphas = by_pattern(self.alpha_pattern, targets, "alpha_pattern")
        if not ranks and not alphas:
            return dict.fromkeys(targets, self)
        plain = replace(self, rank_pattern={}, alpha_pattern={})
        return {
            path: replace(plain, rank=ranks.get(path, self.rank), alpha=alphas.get(path, self.alpha))
            for path in targets
        }

    def layer_for(self, base: Any, rng: np.random.Generator) -> "LoRALinear":
        """A quantised layer brings a LoRA layer of its own (`qlora.py`)."""
        return base.lora_layer(self, rng) if hasattr(base, "lora_layer") else self.layer(base, rng)

    def layer(self, base: Linear, rng: np.random.Generator) -> "LoRALinear":
        """The layer that takes the place of one linear layer."""
        return LoRALinear(base, self, rng)


def one_of(value: Any, allowed: tuple[str, ...], what: str) -> None:
    """Raise ValueError unless a setting is one of these words."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{what} = {shown(value)}, expected {' or '.join(map(repr, allowed))}")


def _positive_integer(value: Any, what: str) -> None:
    if not is_whole(value) or value < 1:
        raise ValueError(f"{what} = {shown(value)}, expected a positive integer")


def _positive(value: Any, what: str) -> None:
    if not is_real(value) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{what} = {shown(value)}, expected a positive number")


class LoRALinear(StandIn, Linear):
    """A linear layer with an update beside it; it shares `weight` and `bias` with the layer whose place it takes."""

    optional_parameters: tuple[str, ...] = ("lora_A", "lora_B", "lora_A0", "lora_B0")  # a base checkpoint has none
    corrected = False  # whether the update counts from where A and B started, which lora_A0 and lora_B0 keep

    def __init__(self, base: Linear, config: LoRAConfig, rng: np.random.Generator):
        vars(self).update(vars(base))  # the base's very weight and bias
        W = base.weight.data
        A, B, corrected = STARTS[config.init](W, config.rank, config.scale, rng)
        dtype = np.promote_types(W.dtype, "float32")
        self.lora_A = parameter(A, dtype)  # (r, d_in)
        self.lora_B = parameter(B, dtype)  # (d_out, r)
        self.config, self.dropout = config, config.dropout
        if corrected:
            self.corrected = True
            self.lora_A0 = Tensor(self.lora_A.data.copy())  # (r, d_in), frozen, and saved with A and B
            self.lora_B0 = Tensor(self.lora_B.data.copy())  # (d_out, r)

    def __call__(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """x: (..., d_in) -> (..., d_out)"""
        if self.unmerged is not None:
            return ops.linear(x, self.weight, self.bias)
        if x.dtype.itemsize > 2 and (rng is None or not self.dropout):
            return ops.lora_linear(x, self.weight, self.bias, *self.factors(), self.config.scale)
        return added(ops.linear(x, self.weight, self.bias), self.update(x, rng))

    def update(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """What is added to the base layer's output: s (x' A^T) B^T with x' = dropout(x).   (..., d_in) -> (..., d_out)

        Where x has 16 bits, this has 32.
        """
        (A, B), s, p = self.factors(), self.config.scale, self.dropout
        x = x if x.dtype.itemsize > 2 else cast(x, "float32")
        h = s * ops.linear(ops.dropout(x, p, rng) if rng is not None and p else x, A)  # (..., r), or 2r where corrected
        return ops.linear(h, B)

    def extra_repr(self) -> str:
        """Rank and alpha; a quantised base's kind; whether it is merged."""
        return ", ".join(filter(None, (f"rank {self.config.rank}, alpha {self.config.alpha:g}", super().extra_repr())))

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (r, d_in) and B (d_out, r) of the update s B A; where corrected, [A; A - A0] and [B - B0, B0]"""
        if not self.corrected:
            return self.lora_A, self.lora_B
        A = ops.concatenate([self.lora_A, self.lora_A - self.lora_A0], axis=0)  # (2r, d_in)
        B = ops.concatenate([self.lora_B - self.lora_B0, self.lora_B0], axis=1)  # (d_out, 2r)
        return A, B

    def delta(self) -> Array:
        """Delta W = s B A, (d_out, d_in)"""
        A, B = self.factors()
        return self.config.scale * (B.data @ A.data)

    def merged_values(self) -> dict[str, Array]:
        """W <- W + s B A (section 4.1)"""
        return super().merged_values() | {"weight": self.weight.data + self.delta()}

    def beside(self, base: Any, parts: list[Any]) -> StandIn:
        """The layer whose update is the sum of several adapters' updates, this one's among them."""
        if all(isinstance(part, LoRALinear) and not part.copied for part in parts):
            kind: Any = type(base)
            return stand_in_for(Summed, kind)(base, parts)
        return super().beside(base, parts)


class Summed(StandIn, Linear):
    """A linear layer with the updates of several adapters beside it: y = x W^T + b + sum_i update_i(x)."""

    def __init__(self, base: Linear, parts: list[LoRALinear]):
        vars(self).update(vars(base))  # the base's very weight, or its codes, and bias
        self.parts = parts

    def __call__(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """x: (..., d_in) -> (..., d_out)"""
        y = super().__call__(x)
        return y if self.unmerged is not None else added(y, *(part.update(x, rng) for part in self.parts))

    def delta(self) -> Array:
        """Delta W = sum_i Delta W_i, (d_out, d_in)"""
        return sum(part.delta() for part in self.parts)  # type: ignore[return-value]

    def merged_values(self) -> dict[str, Array]:
        """W <- W + sum_i Delta W_i"""
        return {"weight": self.weight.data + self.delta()}

    def merge(self, put: Put, values: Mapping[str, Array], before: Mapping[int, Array]) -> None:
        """Each part is merged, too: DoRA's asks for the base's weight."""
        super().merge(put, values, before)
        for part in self.parts:
            put(part, "unmerged", self.unmerged)

    def unmerge(self, put: Put) -> None:
        """So is each part unmerged."""
        super().unmerge(put)
        for part in self.parts:
            put(part, "unmerged", None)


@primitive
def cast(x: Array, dtype: Any) -> tuple:
    """The same numbers in another precision."""
    return x.astype(dtype), (lambda g: g,)  # the tape gives each cotangent its input's precision


def added(y: Tensor, *updates: Tensor) -> Tensor:
    """y + updates, summed in the updates' precision and given in y's: 16 bits where the base has 16."""
    total = functools.reduce(operator.add, updates, y)
    return total if y.dtype.itemsize > 2 else cast(total, y.dtype)


def shape_of(linear: Linear) -> tuple[int, ...]:
    """(d_out, d_in), without making a quantised weight"""
    return linear.packed().get("weight") or linear.weight.shape


def add_lora(model: Any, config: LoRAConfig, rng: Any = 0, name: str = "default") -> Any:
    """Put a LoRA layer in the place of every linear layer that the config targets, and freeze everything else.

    rng: a seed or a Generator for A. Returns the model, whose outputs have not changed. A second adapter under another
    name leaves the first one aside; `set_adapter` switches between them without copying the base.
    Raises ValueError when a name is taken, an adapter is merged, a pattern matches nothing or the rank is too large.
    """
    if not isinstance(config, LoRAConfig):
        raise TypeError(f"add_lora: got {shown(config)}, expected a LoRAConfig; add_adapter takes any method's")
    return add_adapter(model, config, rng, name)


def lora_layers(model: Module) -> dict[str, LoRALinear]:
    """{module name: layer} of the active adapter."""
    check_model(model, "lora_layers")
    return {path: m for path, m in model.named_modules() if isinstance(m, LoRALinear)}


def delta_weights(model: Module) -> dict[str, Array]:
    """{module name: Delta W = s B A}, arrays (d_out, d_in). Raises ValueError where there are no LoRA layers."""
    modules = active_adapter(model, "delta_weights").modules
    deltas = {path: m.delta() for path, m in modules.items() if isinstance(m, LoRALinear | Summed)}
    if not deltas:
        raise ValueError("delta_weights: the active adapter has no LoRA layers, and so no Delta W")
    return deltas
