"""LoRA: adapt a frozen weight by a product of two thin matrices (Hu et al. 2021, "LoRA", section 4).

    y = x W^T + b + s (x A^T) B^T        W (d_out, d_in) frozen;  A (r, d_in) and B (d_out, r) trained;  s = alpha / r

The update Delta W = s B A has rank r at most and r (d_in + d_out) numbers in place of d_in d_out. B starts at zero, so
the adapted model starts exactly at the base model; other ways to begin: `initialise.py`. `lora_forward` and
`lora_backward` are the whole method in NumPy; below them come the configuration and the layer. What it shares with
other methods, from adding it to a model to saving it: `adapter.py`.
"""

import fnmatch
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..autograd import ops
from ..autograd.backend import Array
from ..autograd.tensor import Tensor
from ..nn.layers import Linear, parameter
from ..nn.module import Module
from .adapter import StandIn, method
from .attach import add_adapter
from .initialise import STARTS
from .state import active_adapter


def lora_forward(x: Array, W: Array, b: Array, A: Array, B: Array, s: float) -> tuple[Array, Array]:
    """The adapted layer on plain arrays: -> y (N, d_out), and h (N, r), which the backward pass needs.

    x: (N, d_in), W: (d_out, d_in), b: (d_out,), A: (r, d_in), B: (d_out, r), s = alpha / r.
    """
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
    dB = s * (g.T @ h)  # (d_out, r)
    dh = s * (g @ B)  # (N, r)
    dA = dh.T @ x  # (r, d_in)
    dx = g @ W + dh @ A  # (N, d_in)
    return dx, dA, dB


@method("lora")
@dataclass(frozen=True)
class LoRAConfig:
    """What to adapt, and how.

    rank: r, the width of the bottleneck. alpha: the update is scaled by alpha/r (section 4.1), or by alpha/sqrt(r) when
    rank_stabilized (Kalajdzievski 2023, "rsLoRA"). target_modules: names or patterns; "q_proj" is every q_proj,
    "blocks.0.*" and "*.mlp.*" are shell patterns on whole names, "*" is every linear layer. dropout: on the input of A,
    where a generator is given. init: "kaiming" draws A from U(-1/sqrt(d_in), 1/sqrt(d_in)), "gaussian" from
    N(0, 1/r^2), and B is zero; "pissa" starts both from W's singular vectors (`initialise.py`). Raises ValueError for
    values outside these.
    """

    inits: ClassVar[tuple[str, ...]] = tuple(STARTS)
    rank: int = 8
    alpha: float = 16
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    dropout: float = 0.0
    init: str = "kaiming"
    rank_stabilized: bool = False

    def __post_init__(self) -> None:
        name = type(self).__name__
        targets = (self.target_modules,) if isinstance(self.target_modules, str) else tuple(self.target_modules)
        object.__setattr__(self, "target_modules", targets)
        if not isinstance(self.rank, int | np.integer) or self.rank < 1:
            raise ValueError(f"{name}: rank = {self.rank!r}, expected a positive integer")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"{name}: alpha = {self.alpha}, expected a positive number")
        if not targets:
            raise ValueError(f"{name}: target_modules is empty; name at least one, such as 'q_proj'")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"{name}: dropout = {self.dropout}, expected 0 <= dropout < 1")
        if self.init not in self.inits:
            raise ValueError(f"{name}: init = {self.init!r}, expected {' or '.join(map(repr, self.inits))}")

    @property
    def scale(self) -> float:
        """s = alpha / r, or alpha / sqrt(r)."""
        return float(self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank))

    def build(self, model: Module, rng: np.random.Generator) -> dict[str, Module]:
        """{path: a LoRA layer} for every linear layer that is targeted."""
        linears = {path: m for path, m in model.named_modules() if isinstance(m, Linear) and path}
        if not linears:
            raise ValueError(f"add_lora: there is no linear layer inside this {type(model).__name__}")
        targets = match_targets(self.target_modules, list(linears))
        for path in targets:
            d_out, d_in = linears[path].weight.shape
            if self.rank > min(d_out, d_in):
                raise ValueError(f"add_lora: rank {self.rank} exceeds min(d_in, d_out) = {min(d_out, d_in)} of {path}")
        return {path: self._layer_for(linears[path], rng) for path in targets}

    def _layer_for(self, base: Any, rng: np.random.Generator) -> "LoRALinear":
        """A quantised layer brings a LoRA layer of its own (`qlora.py`)."""
        return base.lora_layer(self, rng) if hasattr(base, "lora_layer") else self.layer(base, rng)

    def layer(self, base: Linear, rng: np.random.Generator) -> "LoRALinear":
        """The layer that takes the place of one linear layer."""
        return LoRALinear(base, self, rng)


class LoRALinear(StandIn, Linear):
    """A linear layer with an update beside it; it shares `weight` and `bias` with the layer whose place it takes."""

    optional_parameters: tuple[str, ...] = ("lora_A", "lora_B", "lora_A0", "lora_B0")  # a base checkpoint has none
    corrected = False  # whether the update counts from where A and B started, which lora_A0 and lora_B0 keep

    def __init__(self, base: Linear, config: LoRAConfig, rng: np.random.Generator):
        vars(self).update(vars(base))  # the base's very weight and bias
        W = base.weight.data
        A, B, corrected = STARTS[config.init](W, config.rank, config.scale, rng)
        self.lora_A = parameter(A, W.dtype)  # (r, d_in)
        self.lora_B = parameter(B, W.dtype)  # (d_out, r)
        self.config, self.dropout = config, config.dropout
        if corrected:
            self.corrected = True
            self.lora_A0 = Tensor(self.lora_A.data.copy())  # (r, d_in), frozen, and saved with A and B
            self.lora_B0 = Tensor(self.lora_B.data.copy())  # (d_out, r)

    def __call__(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """x: (..., d_in) -> (..., d_out)"""
        if self.unmerged is not None:
            return ops.linear(x, self.weight, self.bias)
        (A, B), s, p = self.factors(), self.config.scale, self.dropout
        if rng is None or not p:
            return ops.lora_linear(x, self.weight, self.bias, A, B, s)
        h = ops.linear(ops.dropout(x, p, rng), A)  # (..., r), or 2r where corrected
        return ops.linear(x, self.weight, self.bias) + s * ops.linear(h, B)

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


def add_lora(model: Any, config: LoRAConfig, rng: Any = 0, name: str = "default") -> Any:
    """Put a LoRA layer in the place of every linear layer that the config targets, and freeze everything else.

    rng: a seed or a Generator for A. Returns the model, whose outputs have not changed. A second adapter under another
    name leaves the first one aside; `set_adapter` switches between them without copying the base.
    Raises ValueError when a name is taken, an adapter is merged, a pattern matches nothing or the rank is too large.
    """
    if not isinstance(config, LoRAConfig):
        raise TypeError(f"add_lora: got {config!r}, expected a LoRAConfig; add_adapter takes any method's")
    return add_adapter(model, config, rng, name)


def match_targets(patterns: tuple[str, ...], names: list[str]) -> list[str]:
    """The names that a pattern names in full or by their last parts."""
    found = set()
    for pattern in patterns:
        hits = {n for n in names if fnmatch.fnmatchcase(n, pattern) or fnmatch.fnmatchcase(n, f"*.{pattern}")}
        if not hits:
            kinds = ", ".join(dict.fromkeys(n.rpartition(".")[2] for n in names))
            raise ValueError(f"target_modules: {pattern!r} matches nothing; there are {kinds} (as in {names[0]})")
        found |= hits
    return [n for n in names if n in found]


def lora_layers(model: Module) -> dict[str, LoRALinear]:
    """{module name: layer} of the active adapter."""
    return {path: m for path, m in model.named_modules() if isinstance(m, LoRALinear)}


def delta_weights(model: Module) -> dict[str, Array]:
    """{module name: Delta W = s B A}, arrays (d_out, d_in). Raises ValueError where there are no LoRA layers."""
    modules = active_adapter(model, "delta_weights").modules
    deltas = {path: m.delta() for path, m in modules.items() if isinstance(m, LoRALinear)}
    if not deltas:
        raise ValueError("delta_weights: the active adapter has no LoRA layers, and so no Delta W")
    return deltas
