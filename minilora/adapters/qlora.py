"""QLoRA: LoRA on a frozen base that is held in 4 bits (Dettmers et al. 2023, "QLoRA", section 3, eqs. 5 and 6).

    y = x W^T + b + s (x A^T) B^T        W = dequantize(codes, scales): never trained;  A and B: floats, trained

`quantize_model` puts quantised layers in the places of linear layers; `add_lora` on the result is QLoRA. Each layer
makes its W from the codes when it runs and lets it go: forwards, and once more backwards, one W at a time is in memory.
Gradients flow through W to the layers below, dx = g W, and none flows to W. So this buys memory with time.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ..autograd import ops
from ..autograd.backend import Array
from ..autograd.fused import check_tokens
from ..autograd.tensor import Tensor
from ..nn.layers import Embedding, Linear, Plain
from ..nn.module import Module
from .adapter import Put, StandIn
from .attach import take_away
from .lora import LoRAConfig, LoRALinear, added
from .merge import fold
from .quantization import Packed, Quantized, quantize
from .state import carried, check_model, in_use, place, whole
from .targets import OUTPUTS, match_targets, patterns

LARGEST = 2**22  # floats that are made of a weight at a time
NO_TRAINING = "a quantised weight is for reading: its codes cannot be trained; put LoRA on it, add_lora(model, config)"


class FrozenWeight(Tensor):
    """A tensor made from codes on the spot: a gradient or a new value for it would be lost, and is refused."""

    __slots__ = ()

    def __init__(self, data: Array):
        super().__init__(data)
        if hasattr(data, "setflags"):
            data.setflags(write=False)

    @property
    def requires_grad(self) -> bool:
        """Always False."""
        return False

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value:
            raise ValueError(f"requires_grad: {NO_TRAINING}")


class Held(Module):
    """A module whose weight is a `Packed`: codes in the place of a parameter."""

    quantized: Packed
    merged_weight: Any = None  # (d_out, d_in) of what takes its place, while merged

    @property
    def weight(self) -> Tensor:
        """W (d_out, d_in) in float32, made anew each time, to look at; while merged, W with the update."""
        return FrozenWeight(self.quantized.dequantize() if self.merged_weight is None else self.merged_weight)

    @weight.setter
    def weight(self, value: Any) -> None:
        raise ValueError(f"weight: {NO_TRAINING}")

    def buffers(self) -> dict[str, Array]:
        """{"weight.codes": ..., "weight.scales": ...}: what stands in a state dict in the place of "weight"."""
        return {f"weight.{name}": array for name, array in self.quantized.arrays().items()}

    def extra_repr(self) -> str:
        """The kind of its codes."""
        return self.quantized.kind

    def packed(self) -> dict[str, tuple[int, ...]]:
        """W, which is no parameter here and still one of the model's numbers."""
        return {"weight": self.quantized.shape}

    def check_loadable(self, path: str, state: Mapping[str, Any]) -> None:
        """A floating-point weight does not fit into codes."""
        name = f"{path}.weight" if path else "weight"
        if name in state:
            raise ValueError(
                f"load_state_dict: {name} is quantised here; load floating-point weights into the float model, "
                "then quantize_model(model)"
            )
        super().check_loadable(path, state)


class QuantizedEmbedding(Held, Embedding):
    """y = W[tokens], of which the rows looked up are made floats.   W: (V, C), held as codes"""

    def __init__(self, weight: Packed):
        self.quantized = weight

    def __call__(self, tokens: Any) -> Tensor:
        """tokens: (...) integers -> (..., C)"""
        check_tokens("embedding", tokens, self.quantized.shape[0])
        return Tensor(self.quantized.rows(tokens))

    def plain(self) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
        """Rows are made floats as they are looked up, and all of them for the logits, a stretch after the other."""
        return lambda tokens: self.quantized.rows(tokens), functools.partial(by_stretches, self.quantized)

    def logits(self, x: Tensor) -> Tensor:
        """x W^T, where the table is the output head as well.   (..., C) -> (..., V)"""
        return product(x, self.quantized)

    def cross_entropy(self, x: Tensor, targets: Any, bias: Tensor | None = None) -> Tensor:
        """The loss of these logits, and of a bias, which are never all held.   (..., C), (...) -> ()"""
        if type(self) is not QuantizedEmbedding:
            return super().cross_entropy(x, targets, bias)
        return ops.linear_cross_entropy_on_demand(x, self.quantized.rows, targets, self.quantized.shape[0], bias)


FEW = 8  # rows of x up to which scales are put on sums over a block, and not on the block's weights


def by_stretches(weight: Packed, x: Array) -> Array:
    """x W^T on arrays, of rows of W that are made, used and let go while they are in a core's cache."""
    if isinstance(weight, Quantized) and weight.apart and weight.block >= 32 and len(x) <= FEW and x.dtype == "float32":
        return weight.times(x)
    return np.concatenate([x @ rows.T for _, rows in weight.stretches(x.dtype)], axis=-1)


def product(x: Tensor, weight: Packed, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, of a large W one part of its rows after the other.   (..., d_in) -> (..., d_out)"""
    if weight.size <= LARGEST or not weight.apart:
        return ops.linear_on_demand(x, weight.dequantize, bias)
    step = max(LARGEST // weight.shape[1], 1)
    parts = [slice(start, start + step) for start in range(0, weight.shape[0], step)]
    y = [ops.linear_on_demand(x, functools.partial(weight.rows, rows), None) for rows in parts]
    return ops.concatenate(y, axis=-1) if bias is None else ops.concatenate(y, axis=-1) + bias


class QuantizedLinear(Held, Linear):
    """y = x W^T + b with W held as codes and scales.   W: (d_out, d_in), b: (d_out,) or None, in floating point"""

    on_top: tuple[type, ...] = ()  # what the classes that take its place are, too: OnCodes, below

    def __init__(self, linear: Linear, kind: str = "nf4", block: int = 64, double: bool = True):
        self.quantized = quantize(linear.weight.data, kind, block, double)
        self.bias = linear.bias

    @classmethod
    def of(cls, weight: Packed, bias: Tensor | None) -> "QuantizedLinear":
        """A layer over a weight that is held already."""
        layer = cls.__new__(cls)
        layer.quantized, layer.bias = weight, bias
        return layer

    def __call__(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """x: (..., d_in) -> (..., d_out)"""
        if self.merged_weight is not None:
            return ops.linear(x, self.merged_weight.astype(x.data.real.dtype, copy=False), self.bias)
        return product(x, self.quantized, self.bias)

    def plain(self) -> Plain:
        """W as a product with its codes; once merged, the floats."""
        weight = functools.partial(by_stretches, self.quantized) if self.merged_weight is None else self.merged_weight
        return weight, None if self.bias is None else self.bias.data, []

    def cross_entropy(self, x: Tensor, targets: Any, rng: np.random.Generator | None = None) -> Tensor:
        """The loss of this layer as an output head, whose logits are never all held.   (..., d_in), (...) -> ()"""
        if type(self) is not QuantizedLinear or self.bias is not None or self.merged_weight is not None:
            return super().cross_entropy(x, targets, rng)
        return ops.linear_cross_entropy_on_demand(x, self.quantized.rows, targets, self.quantized.shape[0])

    def lora_layer(self, config: LoRAConfig, rng: np.random.Generator) -> "QLoRALinear":
        """The layer that `add_lora` puts in this one's place. Raises ValueError for variants that need W in floats."""
        variant = "init='pissa'" if config.init == "pissa" else type(config).__name__
        if config.init == "pissa" or type(config).layer is not LoRAConfig.layer:
            raise ValueError(f"add_adapter: {variant} needs floating-point weights, and these are quantised; use LoRA")
        return QLoRALinear(self, config, rng)


class OnCodes(StandIn):
    """What stands in a quantised layer's place, over the same codes.

    Merging makes a floating-point weight, since the codes have no room for an update: outputs stay the same up to
    rounding, and the layer's memory is that of a float layer again. The codes are kept, so unmerging gives every bit
    back. `requantize` says what it costs to go back to few bits.
    """

    def written(self, names: Iterable[str]) -> dict[str, Tensor]:
        """A bias, say; the weight is held by codes."""
        return super().written(name for name in names if name != "weight")

    def merge(self, put: Put, values: Mapping[str, Array], before: Mapping[int, Array]) -> None:
        """W + s B A becomes a floating-point weight beside the codes, which do not change."""
        super().merge(put, values, before)
        if "weight" in values:
            put(self, "merged_weight", values["weight"])

    def unmerge(self, put: Put) -> None:
        """Let the floating-point weight go."""
        super().unmerge(put)
        put(self, "merged_weight", None)

    def left_behind(self, base: Any) -> Module:
        """The quantised layer, or while merged a plain one with W + s B A, frozen like the rest of the base."""
        weight = vars(self).get("merged_weight")
        if weight is None:
            return base
        linear = Linear.__new__(Linear)  # one with these very values, none drawn at random
        linear.weight, linear.bias = Tensor(weight), base.bias
        return linear


QuantizedLinear.on_top = (OnCodes,)


class QLoRALinear(OnCodes, LoRALinear, QuantizedLinear):
    """LoRA's layer on a quantised weight, which it shares with the layer whose place it takes."""

    def __call__(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """x: (..., d_in) -> (..., d_out)"""
        y = QuantizedLinear.__call__(self, x)  # (..., d_out)
        return y if self.merged_weight is not None else added(y, self.update(x, rng))

    plain = LoRALinear.plain


def quantize_model(
    model: Any, kind: str = "nf4", block: int = 64, double: bool = True, target_modules: str | tuple[str, ...] = ("*",)
) -> Any:
    """Hold the weights of linear layers in few bits from now on, and freeze the model; returns it.

    kind, block, double: as for `quantize`. target_modules: patterns as in `LoRAConfig`; layers that are quantised
    already stay as they are. Embeddings, norms, biases and, unless it is named, the output head stay in floating point:
    an error there is the answer's own (transformers leaves them, too). Raises ValueError, and changes
    nothing, for a model with an adapter, where no layer is left to quantise, and for weights that are not finite.
    """
    check_model(model, "quantize_model")
    if carried(model):
        raise ValueError("quantize_model: the model has an adapter; remove_lora(model), then put LoRA on the codes")
    linears = {path: m for path, m in model.named_modules() if isinstance(m, Linear) and path}
    if inside := next((path for path, m in model.named_modules() if isinstance(m, StandIn)), ""):
        raise ValueError(
            f"quantize_model: {inside} is an adapter's, put on a part of this model; remove_lora(part) first"
        )
    wanted = patterns(target_modules, "quantize_model: target_modules")
    if not linears:
        raise ValueError(f"quantize_model: there is no linear layer inside this {type(model).__name__}")
    heads = [path for path in linears if path.split(".")[0] in OUTPUTS]
    targets = match_targets(wanted, [*linears], "quantize_model: target_modules", heads)
    targets = [path for path in targets if not isinstance(linears[path], QuantizedLinear)]
    if not targets:
        raise ValueError(f"quantize_model: no layer is left that is not quantised, of {', '.join(wanted)}")
    with whole() as put:
        few_bits = lambda array: quantize(array, kind, block, double)
        _quantize(put, model, dict.fromkeys(targets, few_bits), "quantize_model")
    return model


def _quantize(put: Put, model: Any, ways: Mapping[str, Callable[[Array], Packed]], caller: str) -> None:
    """A quantised layer at each path, made in its way, in a model that is frozen."""
    layers = {}
    for path, way in ways.items():
        linear = model.get_module(path)
        try:
            layers[path] = QuantizedLinear.of(way(linear.weight.data), linear.bias)
        except ValueError as error:
            raise ValueError(f"{caller}: {path}.weight: {error}") from None
    for path, layer in layers.items():
        place(put, model, path, layer)
    for p in model.parameters():
        put(p, "requires_grad", False)


def _held(model: Module) -> dict[str, Packed]:
    """{path of a quantised layer: its weight}"""
    return {path: m.quantized for path, m in model.named_modules() if isinstance(m, QuantizedLinear)}


def _lost(before: Mapping[str, Packed], model: Module) -> dict[str, Callable[[Array], Packed]]:
    """{path of what was quantised and is a plain layer now: how to quantise it as it was}"""
    return {path: before[path].again for path in before.keys() - _held(model).keys()}


def quantization(model: Module) -> dict[str, dict[str, Any]]:
    """{path of a quantised layer: the settings of `quantize_model` that it was made with, or its kind alone}"""
    return {
        path: {"kind": q.kind, **({"block": q.block, "double": q.double} if isinstance(q, Quantized) else {})}
        for path, q in _held(model).items()
    }


def requantize(model: Any) -> Any:
    """Fold the active LoRA into the weights and quantise them again, each as its layer was; returns the model.

    W' = quantize(dequantize(codes) + s B A): a model in few bits without an adapter. W' is rounded once more, by up to
    half a gap between levels, and an update smaller than that is lost in part: the loss shows what this costs.
    Raises ValueError where there is no adapter, it cannot be merged, or blocks are a GGUF file's, which are only read.
    """
    state, before = in_use(model, "requantize"), _held(model)
    with whole() as put:
        if not state.merged:
            fold(put, model, "requantize: merge_adapter")
        take_away(put, model, state)
        _quantize(put, model, _lost(before, model), "requantize")
    return model
