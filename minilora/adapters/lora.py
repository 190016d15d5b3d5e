"""LoRA: adapt a frozen weight by a product of two thin matrices (Hu et al. 2021, "LoRA", section 4).

    y = x W^T + b + s (x A^T) B^T        W (d_out, d_in) frozen;  A (r, d_in) and B (d_out, r) trained;  s = alpha / r

The update Delta W = s B A has rank r at most and r (d_in + d_out) numbers in place of d_in d_out. B starts at zero, so
the adapted model starts exactly at the base model; other ways to begin: `initialise.py`. `lora_forward` and
`lora_backward` are the whole method in NumPy; below them come the configuration and the layer. What it shares with
other methods, from adding it to a model to saving it: `adapter.py`.
"""

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from ..autograd import ops
from ..autograd.backend import Array
from ..autograd.tensor import Tensor
from ..nn.checks import flag, is_real, is_whole, plain, shown
from ..nn.layers import Embedding, Linear
from ..nn.module import Module
from .adapter import method
from .attach import add_adapter
from .bypass import bypassed
from .copies import copies
from .embedding import LoRAEmbedding, adapted_table, tie
from .initialise import GRADIENT, STARTS, start_of
from .low_rank import LowRank, Summed, added
from .state import active_adapter, check_model
from .targets import OUTPUTS, Patterns, by_pattern, in_layers, match_targets, read_targets


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
    "blocks.0.*" and "*.mlp.*" are shell patterns on whole names, "*" is every linear layer but an output head; or one
    regular expression as a string (`targets.py`). An embedding table ("wte") or an untied head ("head") is meant only
    by a pattern with its name in it. dropout: on the input of A, where a generator is given. init: "kaiming" draws A
    from U(-1/sqrt(d_in), 1/sqrt(d_in)), "gaussian" from N(0, 1/r^2), and B is zero (of a table A is zero and B from
    N(0, 1): `embedding.py`); "pissa" starts both from W's singular vectors (`initialise.py`), "lora-ga" from those of
    the loss's gradient, for which it needs a text: `add_lora_ga` (`lora_ga.py`).

    exclude_modules: targets that are left out. layers_to_transform: the layers, by number, that targets must be in.
    rank_pattern, alpha_pattern: {pattern: rank or alpha} of the targets that differ. bias: "none", or train the biases
    of the adapted layers ("lora_only") or of every module ("all"). modules_to_save: modules trained in full beside
    LoRA, such as ("ln_f",). ensure_weight_tying: an update of a table that is the output head, too, is the head's, too.
    These names and what they do are PEFT's.
    Raises ValueError for values outside these, and, once the model is seen, for a pattern that means nothing in it.
    """

    inits: ClassVar[tuple[str, ...]] = (*STARTS, GRADIENT)
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
    ensure_weight_tying: bool = False

    def __post_init__(self) -> None:
        name = type(self).__name__
        read_targets(self)
        _positive_integer(self.rank, f"{name}: rank")
        _positive(self.alpha, f"{name}: alpha")
        one_of(self.init, self.inits, f"{name}: init")
        one_of(self.bias, ("none", "lora_only", "all"), f"{name}: bias")
        for what in ("rank_stabilized", "ensure_weight_tying"):
            flag(getattr(self, what), f"{name}: {what}")
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
        """{path: a LoRA layer} for every layer that is targeted, and copies of what else is trained."""
        found, copied = self.chosen(model), {}  # type: ignore[var-annotated]
        each = self.of_each(list(found))
        for words in bypassed(model, [path for path, layer in found.items() if isinstance(layer, Linear)]):
            warnings.warn(f"add_lora: {words}, past the adapted layer; merging would reach it", stacklevel=2)
        layers: dict[str, Any] = {path: each[path].layer_for(layer, rng) for path, layer in found.items()}
        for path in (path for path, layer in found.items() if isinstance(layer, Embedding)):
            if why := tie(model, path, self.ensure_weight_tying):
                layers[path].cannot_merge = why
                warnings.warn(f"add_lora: {why}", stacklevel=2)
        if self.bias != "none":
            for layer in layers.values():
                layer.train_copies([name for name in ("bias",) if getattr(layer, name, None) is not None], copied)
        return layers | self._beside(model, layers, copied)

    def chosen(self, model: Module) -> dict[str, Any]:
        """{path: layer} of those that are targeted; one that stands in several places is adapted once, for all."""
        places = [(path, m) for path, m in model.named_modules(remove_duplicate=False) if path]
        linears = {path: m for path, m in places if isinstance(m, Linear)}
        tables = {path: m for path, m in places if isinstance(m, Embedding)}
        if not linears and not tables:
            raise ValueError(f"add_lora: there is no linear layer inside this {type(model).__name__}")
        layers: dict[str, Any] = linears | tables
        first: dict[int, str] = {}
        for path in self.targets(list(layers), {*tables, *OUTPUTS}):
            first.setdefault(id(layers[path]), path)
        return {path: layers[path] for path in first.values()}

    def check(self, model: Module, gradient: bool = False) -> None:
        """Raise ValueError for a rank that a matrix cannot have: a person chose it, where a file says what it holds.

        gradient: whether there is one to start from, where the start needs it.
        """
        if self.init == GRADIENT and not gradient:
            fix = "add_lora_ga(model, config, [(tokens, targets), ...]) takes them"
            raise ValueError(f"add_lora: init = {GRADIENT!r} starts from the loss's gradient on some batches; {fix}")
        found = self.chosen(model)
        for path, config in self.of_each(list(found)).items():
            if config.rank > min(shape := shape_of(found[path])):
                raise ValueError(f"add_lora: rank {config.rank} exceeds min(d_in, d_out) = {min(shape)} of {path}")

    def _beside(self, model: Module, layers: Any, copied: Any) -> dict[str, Module]:
        """{path: a copy} of modules that are trained in full, and of those whose biases are."""
        places = [path for path, _ in model.named_modules(remove_duplicate=False) if path]
        full = match_targets(self.modules_to_save, places, "modules_to_save")
        within = tuple(f"{path}." for path in full)
        if both := [path for path in layers if f"{path}.".startswith(within)]:
            raise ValueError(f"add_lora: {both[0]} is a target and, by modules_to_save, trained in full; choose one")
        own = tuple(f"{path}." for path in layers)
        biases = lambda name: self.bias == "all" and name.endswith(".bias") and not name.startswith(own)
        beside = copies(model, lambda name: name.startswith(within) or biases(name), copied)
        if self.bias != "none" and not any("bias" in layer.copied for layer in (layers | beside).values()):
            raise ValueError(f"add_lora: bias = {self.bias!r}, and there is no bias to train; the model has none")
        return beside

    def targets(self, names: list[str], by_name: Collection[str] = ()) -> list[str]:
        """Of these layers, those that are adapted. by_name: those that only a pattern with their name in it means."""
        found = match_targets(self.target_modules, names, by_name=by_name)
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

    def layer_for(self, base: Any, rng: np.random.Generator) -> LowRank:
        """A table's, or a linear layer's; a quantised one brings a LoRA layer of its own (`qlora.py`)."""
        if isinstance(base, Embedding):
            return self.table(base, rng)
        return base.lora_layer(self, rng) if hasattr(base, "lora_layer") else self.layer(base, rng)

    def layer(self, base: Linear, rng: np.random.Generator) -> "LoRALinear":
        """The layer that takes the place of one linear layer."""
        return LoRALinear(base, self, rng)

    def table(self, base: Embedding, rng: np.random.Generator) -> LoRAEmbedding:
        """The layer that takes the place of one embedding table."""
        return adapted_table(base, self, rng)


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


class LoRALinear(LowRank, Linear):
    """A linear layer with an update beside it; it shares `weight` and `bias` with the layer whose place it takes."""

    def __init__(self, base: Linear, config: LoRAConfig, rng: np.random.Generator):
        self.begin(base, config, start_of(config.init, base.weight.data, config.rank, config.scale, rng))

    def __call__(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """x: (..., d_in) -> (..., d_out)"""
        if self.unmerged is not None:
            return ops.linear(x, self.weight, self.bias)
        if x.dtype.itemsize > 2 and (rng is None or not self.dropout):
            return ops.lora_linear(x, self.weight, self.bias, *self.factors(), self.config.scale)
        return added(ops.linear(x, self.weight, self.bias), self.update(x, rng))

    plain = LowRank.plain  # which is what __call__ does, in another way

    def update(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """What is added to the base layer's output: s (x' A^T) B^T with x' = dropout(x).   (..., d_in) -> (..., d_out)

        Where x has 16 bits, this has 32.
        """
        A, B = self.factors()
        h = self.config.scale * ops.linear(self.dropped(x, rng), A)  # (..., r), or 2r where corrected
        return ops.linear(h, B)


def shape_of(layer: Any) -> tuple[int, ...]:
    """(d_out, d_in), or (V, C), without making a quantised weight"""
    return layer.packed().get("weight") or layer.weight.shape


def add_lora(model: Any, config: LoRAConfig, rng: Any = 0, name: str = "default") -> Any:
    """Put a LoRA layer in the place of every linear layer that the config targets, and freeze everything else.

    rng: a seed or a Generator for A. Returns the model, whose outputs have not changed. A second adapter under another
    name leaves the first one aside; `set_adapter` switches between them without copying the base.
    Raises ValueError when a name is taken, an adapter is merged, a pattern matches nothing or the rank is too large.
    """
    if not isinstance(config, LoRAConfig):
        raise TypeError(f"add_lora: got {shown(config)}, expected a LoRAConfig; add_adapter takes any method's")
    return add_adapter(model, config, rng, name)


def lora_layers(model: Module) -> dict[str, LowRank]:
    """{module name: layer} of the active adapter."""
    check_model(model, "lora_layers")
    return {path: m for path, m in model.named_modules() if isinstance(m, LowRank)}


def delta_weights(model: Module) -> dict[str, Array]:
    """{module name: Delta W = s B A}, arrays (d_out, d_in), for a table (V, C). Raises ValueError without LoRA."""
    modules = active_adapter(model, "delta_weights").modules
    deltas = {path: m.delta() for path, m in modules.items() if isinstance(m, LowRank | Summed)}
    if not deltas:
        raise ValueError("delta_weights: the active adapter has no LoRA layers, and so no Delta W")
    return deltas
