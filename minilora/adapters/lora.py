"""LoRA: adapt a frozen weight by a product of two thin matrices (Hu et al. 2021, "LoRA", section 4).

    y = x W^T + b + s (x A^T) B^T        W (d_out, d_in) frozen;  A (r, d_in) and B (d_out, r) trained;  s = alpha / r

The update Delta W = s B A has rank r at most and r (d_in + d_out) numbers in place of d_in d_out. B starts at zero, so
the adapted model starts exactly at the base model. `lora_forward` and `lora_backward` are the whole method in NumPy;
below them come the layer, and adding it to, merging it into and taking it out of a model.
"""

import contextlib
import fnmatch
import hashlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd import ops
from ..autograd.backend import Array, array_module, to_numpy
from ..autograd.tensor import Tensor
from ..nn.layers import Linear, parameter
from ..nn.module import Module
from ..nn.storage import blaming, load_arrays, save_arrays


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


@dataclass(frozen=True)
class LoRAConfig:
    """What to adapt, and how.

    rank: r, the width of the bottleneck. alpha: the update is scaled by alpha/r (section 4.1), or by alpha/sqrt(r) when
    rank_stabilized (Kalajdzievski 2023, "rsLoRA"). target_modules: names or patterns; "q_proj" is every q_proj,
    "blocks.0.*" and "*.mlp.*" are shell patterns on whole names, "*" is every linear layer. dropout: on the input of A,
    where a generator is given. init: "kaiming" draws A from U(-1/sqrt(d_in), 1/sqrt(d_in)), "gaussian" from
    N(0, 1/r^2); B is zero either way. Raises ValueError for values outside these.
    """

    rank: int = 8
    alpha: float = 16
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    dropout: float = 0.0
    init: str = "kaiming"
    rank_stabilized: bool = False

    def __post_init__(self) -> None:
        targets = (self.target_modules,) if isinstance(self.target_modules, str) else tuple(self.target_modules)
        object.__setattr__(self, "target_modules", targets)
        if not isinstance(self.rank, int | np.integer) or self.rank < 1:
            raise ValueError(f"LoRAConfig: rank = {self.rank!r}, expected a positive integer")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"LoRAConfig: alpha = {self.alpha}, expected a positive number")
        if not targets:
            raise ValueError("LoRAConfig: target_modules is empty; name at least one, such as 'q_proj'")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"LoRAConfig: dropout = {self.dropout}, expected 0 <= dropout < 1")
        if self.init not in ("kaiming", "gaussian"):
            raise ValueError(f"LoRAConfig: init = {self.init!r}, expected 'kaiming' or 'gaussian'")

    @property
    def scale(self) -> float:
        """s = alpha / r, or alpha / sqrt(r)."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


class LoRALinear(Linear):
    """A linear layer with an update beside it; it shares `weight` and `bias` with the layer whose place it takes."""

    optional_parameters = ("lora_A", "lora_B")  # a base checkpoint has none

    def __init__(self, base: Linear, config: LoRAConfig, rng: np.random.Generator):
        d_out, d_in = base.weight.shape
        self.weight, self.bias = base.weight, base.bias
        bound, std = 1 / math.sqrt(d_in), 1 / config.rank
        shape = (config.rank, d_in)
        A = rng.uniform(-bound, bound, shape) if config.init == "kaiming" else rng.normal(0, std, shape)
        self.lora_A = parameter(A, base.weight.dtype)  # (r, d_in)
        self.lora_B = parameter(np.zeros((d_out, config.rank)), base.weight.dtype)  # (d_out, r)
        self.config, self.dropout = config, config.dropout
        self.enabled = True
        self.unmerged: Array | None = None  # the base weight, kept while the update is merged into `weight`

    def __call__(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """x: (..., d_in) -> (..., d_out)"""
        if self.unmerged is not None or not self.enabled:
            return ops.linear(x, self.weight, self.bias)
        s, p = self.config.scale, self.dropout
        if rng is None or not p:
            return ops.lora_linear(x, self.weight, self.bias, self.lora_A, self.lora_B, s)
        h = ops.linear(ops.dropout(x, p, rng), self.lora_A)  # (..., r)
        return ops.linear(x, self.weight, self.bias) + s * ops.linear(h, self.lora_B)

    def check_loadable(self) -> None:
        """A loaded weight would be taken for the merged one, and lost by `unmerge_lora`."""
        if self.unmerged is not None:
            raise ValueError("load_state_dict: the adapter is merged into the weights; unmerge_lora(model) first")

    def delta(self) -> Array:
        """Delta W = s B A, (d_out, d_in)"""
        return self.config.scale * (self.lora_B.data @ self.lora_A.data)

    def base_weight(self) -> Array:
        """W without the update, merged or not."""
        return self.weight.data if self.unmerged is None else self.unmerged.astype(self.weight.dtype, copy=False)


@dataclass
class Adapter:
    """One named adapter of a model: its configuration and its layers, by the name of the layer each replaces."""

    config: LoRAConfig
    layers: dict[str, LoRALinear] = field(default_factory=dict)


def add_lora(model: Any, config: LoRAConfig, rng: Any = 0, name: str = "default") -> Any:
    """Put a LoRA layer in the place of every linear layer that the config targets, and freeze everything else.

    rng: a seed or a Generator for A. Returns the model, whose outputs have not changed. A second adapter under another
    name leaves the first one aside; `set_adapter` switches between them without copying the base.
    Raises ValueError when a name is taken, an adapter is merged, a pattern matches nothing or the rank is too large.
    """
    if name in _adapters(model):
        raise ValueError(f"add_lora: the model has an adapter {name!r} already; remove_lora(model) first, or name=...")
    _refuse_merged(model, "add_lora")
    linears = {path: m for path, m in model.named_modules() if isinstance(m, Linear) and path}
    if not linears:
        raise ValueError(f"add_lora: there is no linear layer inside this {type(model).__name__}")
    targets = match_targets(config.target_modules, list(linears))
    for path in targets:
        d_out, d_in = linears[path].weight.shape
        if config.rank > min(d_out, d_in):
            raise ValueError(f"add_lora: rank {config.rank} exceeds min(d_in, d_out) = {min(d_out, d_in)} of {path}")
    rng = np.random.default_rng(rng)
    return _attach(model, name, Adapter(config, {path: LoRALinear(linears[path], config, rng) for path in targets}))


def _attach(model: Any, name: str, adapter: Adapter) -> Any:
    """Freeze the base model, remembering what was trainable, and switch to a new adapter."""
    if not _adapters(model):
        model.frozen_by_lora = model.parameters(trainable=True)
        for p in model.frozen_by_lora:
            p.requires_grad = False
    model.adapters = {**_adapters(model), name: adapter}
    set_adapter(model, name)
    return model


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


def _adapters(model: Module) -> dict[str, Adapter]:
    return getattr(model, "adapters", {})


def lora_layers(model: Module) -> dict[str, LoRALinear]:
    """{module name: layer} of the active adapter."""
    return {path: m for path, m in model.named_modules() if isinstance(m, LoRALinear)}


def _active_layers(model: Module, caller: str) -> dict[str, LoRALinear]:
    layers = lora_layers(model)
    if not layers:
        raise ValueError(f"{caller}: the model has no LoRA layers; add_lora(model, LoRAConfig()) puts them in")
    return layers


def _refuse_merged(model: Module, caller: str) -> None:
    if any(layer.unmerged is not None for layer in lora_layers(model).values()):
        raise ValueError(f"{caller}: the adapter is merged into the weights; unmerge_lora(model) first")


def _refuse_disabled(layers: dict[str, LoRALinear], caller: str) -> None:
    if not all(layer.enabled for layer in layers.values()):
        raise ValueError(f"{caller}: the adapter is disabled; leave the lora_disabled block first")


def set_adapter(model: Any, name: str | None) -> None:
    """Switch to a named adapter, or with None to the base model. Only references move: no weight is copied."""
    if name is not None and name not in _adapters(model):
        raise ValueError(f"set_adapter: no adapter {name!r}; there are {', '.join(_adapters(model)) or 'none'}")
    _refuse_merged(model, "set_adapter")
    for path, layer in lora_layers(model).items():
        model.set_module(path, Linear.sharing(layer))
    if name is not None:
        for path, layer in _adapters(model)[name].layers.items():
            model.set_module(path, layer.astype(layer.weight.dtype))  # the base may have changed precision meanwhile
    model.active_adapter = name


def merge_lora(model: Module) -> None:
    """W <- W + s B A in every LoRA layer: from here on the model costs what the base model costs (section 4.1).

    The base weights are kept aside, so that `unmerge_lora` gives them back bit for bit.
    """
    layers = _active_layers(model, "merge_lora")
    if any(layer.unmerged is not None for layer in layers.values()):
        raise ValueError("merge_lora: the adapter is merged already; unmerge_lora(model) undoes it")
    _refuse_disabled(layers, "merge_lora")
    for layer in layers.values():
        layer.unmerged = layer.weight.data
        layer.weight.data = layer.weight.data + layer.delta()


def unmerge_lora(model: Module) -> None:
    """Undo `merge_lora`, exactly."""
    layers = _active_layers(model, "unmerge_lora")
    if any(layer.unmerged is None for layer in layers.values()):
        raise ValueError("unmerge_lora: the adapter is not merged")
    _refuse_disabled(layers, "unmerge_lora")
    for layer in layers.values():
        layer.weight.data, layer.unmerged = layer.base_weight(), None


def remove_lora(model: Any) -> Any:
    """Take all adapters out and make trainable again what `add_lora` froze; returns the model.

    Not merged, this gives the base model back. Merged, the update stays in the weights: a plain model, ready to ship.
    """
    if not _adapters(model):
        raise ValueError("remove_lora: the model has no LoRA layers")
    for path, layer in lora_layers(model).items():
        model.set_module(path, Linear.sharing(layer))
    for p in model.frozen_by_lora:
        p.requires_grad = True
    del model.adapters, model.active_adapter, model.frozen_by_lora
    return model


@contextlib.contextmanager
def lora_disabled(model: Module) -> Iterator[Module]:
    """Inside the block the model is the base model, merged or not."""
    layers = list(_active_layers(model, "lora_disabled").values())
    before = [(layer.enabled, layer.weight.data) for layer in layers]
    for layer in layers:
        layer.enabled = False
        layer.weight.data = layer.base_weight()
    try:
        yield model
    finally:
        for layer, (enabled, weight) in zip(layers, before, strict=True):
            layer.enabled, layer.weight.data = enabled, weight


def delta_weights(model: Module) -> dict[str, Array]:
    """{module name: Delta W = s B A}, arrays (d_out, d_in)"""
    return {path: layer.delta() for path, layer in _active_layers(model, "delta_weights").items()}


def fingerprint(model: Module) -> str:
    """A hash of the base model's parameters in float32, whatever adapter is on it: which base an adapter belongs to."""
    layers = lora_layers(model)
    digest = hashlib.sha256()
    for name, p in sorted(model.named_parameters()):
        path, _, last = name.rpartition(".")
        if path in layers and last in LoRALinear.optional_parameters:
            continue
        data = to_numpy(layers[path].base_weight() if path in layers and last == "weight" else p.data)
        digest.update(f"{name} {data.shape}".encode())
        digest.update(np.ascontiguousarray(data, dtype="<f4").tobytes())
    return digest.hexdigest()


def save_adapter(model: Any, path: str | Path) -> Path:
    """Write the active adapter alone: its matrices, its configuration and the fingerprint of its base model."""
    layers = _active_layers(model, "save_adapter")
    config = next(iter(layers.values())).config
    arrays = {
        f"{name}.{part}": getattr(layer, part).data
        for name, layer in layers.items()
        for part in LoRALinear.optional_parameters
    }
    return save_arrays(path, arrays, {"kind": "lora", "config": asdict(config), "base": fingerprint(model)})


def load_adapter(model: Any, path: str | Path, name: str = "default") -> Any:
    """Put a saved adapter on its base model, under a name, and make it the active one; returns the model.

    An adapter of that name is replaced. Raises ValueError when the file belongs to another base model, is damaged, or
    does not fit; then the model is as it was.
    """
    _refuse_merged(model, "load_adapter")
    arrays, header = load_arrays(path, "lora")
    with blaming(path):
        if header["base"] != fingerprint(model):
            raise ValueError(
                f"the adapter was trained on another base model "
                f"(fingerprint {header['base'][:12]}, this model has {fingerprint(model)[:12]})"
            )
        config = LoRAConfig(**header["config"])
        layers = _layers_from(arrays, config, model)
    return _attach(model, name, Adapter(config, layers))


def _layers_from(arrays: dict[str, np.ndarray], config: LoRAConfig, model: Module) -> dict[str, LoRALinear]:
    """The layers of a saved adapter, around the weights of its base model."""
    linears = {path: m for path, m in model.named_modules() if isinstance(m, Linear)}
    layers: dict[str, LoRALinear] = {}
    for path in dict.fromkeys(name.rpartition(".")[0] for name in arrays):
        if path not in linears:
            raise ValueError(f"it adapts {path}, which this model does not have")
        layers[path] = LoRALinear(linears[path], config, np.random.default_rng(0))
        for part in LoRALinear.optional_parameters:
            p, value = getattr(layers[path], part), arrays.get(f"{path}.{part}")
            if value is None or value.shape != p.shape:
                came = "nothing" if value is None else f"shape {value.shape}"
                raise ValueError(f"it has {came} for {path}.{part}, expected {p.shape}")
            p.data[...] = array_module(p.data).asarray(value)
    if not layers:
        raise ValueError("it adapts no layer")
    return layers
