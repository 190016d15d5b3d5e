"""A model in somebody's file: its architecture, and for every parameter of ours what reads it.

Readers of a format give a `Source`; `built` makes the model. Shapes and names are compared before a number is read, and
numbers are read one tensor at a time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..adapters.qlora import QuantizedEmbedding, QuantizedLinear
from ..adapters.quantization import Half, Packed, half
from ..nn.architectures import Architecture, parameters
from ..nn.checks import listed
from ..nn.layers import Embedding, Linear
from ..nn.module import in_precision
from ..nn.storage import Blank
from ..nn.transformer import Transformer
from .names import Place

Value = np.ndarray | Packed


@dataclass(frozen=True)
class Source:
    """A model that can be read.

    called: what errors call it; values: {our parameter's name: what reads it}; labels: the names of its head's labels.
    """

    called: str
    architecture: Architecture
    values: Mapping[str, Callable[[], Value]]
    tokenizer: Callable[[], Any]  # None where there is none
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Share:
    """What one of our parameters is of a tensor in a file."""

    tensor: str
    rows: slice | None
    transposed: bool

    def of(self, array: np.ndarray) -> np.ndarray:
        """Our part of the file's array, in our layout: a view where it can be one."""
        if self.transposed:
            return np.ascontiguousarray(array.T[self.rows] if self.rows else array.T)
        return array[self.rows] if self.rows else array


def shares(architecture: Architecture, places: Mapping[str, Place]) -> tuple[dict[str, Share], dict[str, tuple]]:
    """({our parameter: its share of a tensor}, {tensor: its shape}) of a file with these names."""
    ours: dict[str, Share] = {}
    theirs: dict[str, tuple] = {}
    for name, shape in parameters(architecture).items():
        path, _, last = name.rpartition(".")
        place = places[path]
        tensor, turned = f"{place.module}.{last}", place.transposed and len(shape) == 2
        rows = shape[0] + (0 if tensor not in theirs else theirs[tensor][-1 if turned else 0])  # what is fused adds up
        whole = (rows, *shape[1:])
        ours[name], theirs[tensor] = Share(tensor, place.rows, turned), whole[::-1] if turned else whole
    return ours, theirs


def compare(called: str, expected: Mapping[str, tuple], found: Mapping[str, tuple]) -> None:
    """Raise ValueError that lists what of the tensors is missing, unexpected, or of another shape."""
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in expected]
    problems += [
        f"{name} has shape {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != shape
    ]
    if problems:
        raise ValueError(f"{called}: {listed(problems)}")


def as_value(array: np.ndarray) -> Value:
    """A file's floats: those of 16 bits stay as they are until they are asked for."""
    if array.dtype.name == "bfloat16":
        array = array.view(np.uint16)
    return Half(array) if array.dtype in (np.float16, np.uint16) else array


def built(source: Source, dtype: str) -> Transformer:
    """The model, its matrices and its table of tokens held as `dtype` says; all else in floats."""
    model = Transformer(source.architecture, Blank())
    model.labels = source.labels
    kinds = fill(model, source.values, source.called, dtype)
    model.recompute_blocks = any(kind is not Half for kind in kinds)  # who holds few bits is short of memory
    return model


def fill(model: Any, values: Mapping[str, Callable[[], Value]], called: str, dtype: str) -> list[type]:
    """Put a file's numbers into a model that was made blank, one at a time; returns the kinds of those in few bits."""
    for name, read in values.items():
        path, _, last = name.rpartition(".")
        module = model.get_module(path)
        matrix = last == "weight" and (isinstance(module, Linear) or path == "wte")
        try:
            value = held(read(), dtype if matrix or dtype == "float64" else "float32")
        except ValueError as error:
            raise ValueError(f"{called}: {name}: {error}") from None
        if not isinstance(value, Packed):
            getattr(module, last).data = np.require(value, requirements="W")  # what is mapped is for reading
        elif isinstance(module, Embedding):
            model.set_module(path, QuantizedEmbedding(value))
        else:
            model.set_module(path, QuantizedLinear.of(value, module.bias))
    kinds = [type(m.quantized) for _, m in model.named_modules() if isinstance(m, QuantizedEmbedding | QuantizedLinear)]
    for p in model.parameters() if kinds else ():
        p.requires_grad = False
    return kinds


def held(value: Value, dtype: str) -> Value:
    """A value in the precision asked for. Raises ValueError where a number is none, or too large for it."""
    if dtype in ("float16", "bfloat16"):
        if not isinstance(value, Half) or value.kind != dtype:
            return half(value.dequantize() if isinstance(value, Packed) else value, dtype)
    elif dtype != "file" or not isinstance(value, Packed):
        wide = value.dequantize(np.float32) if isinstance(value, Packed) else value
        return in_precision(wide, np.float32 if dtype == "file" else dtype)
    for _, floats in value.stretches():
        in_precision(floats, np.float32)
    return value
