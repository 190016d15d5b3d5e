"""One example call of every primitive, for `minilora gradcheck` and for the tests that plant errors in the vjps.

A primitive without an example here fails a test: nothing enters the tape unchecked.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .tensor import PRIMITIVES, Tensor


@dataclass(frozen=True)
class Example:
    """call(primitive, *tensors) uses the primitive on tensors of these shapes; positive entries where it needs them."""

    call: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    positive: bool = False

    def inputs(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Random inputs away from kinks and poles."""
        draws = [rng.standard_normal(shape) for shape in self.shapes]
        return [0.5 + abs(x) for x in draws] if self.positive else draws

    def function(self, primitive: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The example as a function of its tensors alone, as `gradcheck` takes it."""
        return lambda *tensors: self.call(primitive, *tensors)


def _unary(positive: bool = False) -> Example:
    return Example(lambda f, x: f(x), ((3, 4),), positive)


def _binary(positive: bool = False) -> Example:
    return Example(lambda f, a, b: f(a, b), ((3, 4), (3, 1)), positive)


TOKENS = np.array([[0, 3, 1], [3, 2, 3]])
WEIGHT = np.random.default_rng(0).standard_normal((5, 4))
ANGLES = np.arange(6.0).reshape(3, 2)
PADDED = np.array([[1, 1, 0, 1, 1]])
CONDITION = np.array([[True, False, True, False]])

EXAMPLES: dict[str, Example] = {
    "add": _binary(),
    "subtract": _binary(),
    "multiply": _binary(),
    "divide": _binary(positive=True),
    "negate": _unary(),
    "power": _binary(positive=True),
    "abs": _unary(),
    "exp": _unary(),
    "expm1": _unary(),
    "log1p": _unary(positive=True),
    "sin": _unary(),
    "cos": _unary(),
    "sigmoid": _unary(),
    "log": _unary(positive=True),
    "sqrt": _unary(positive=True),
    "tanh": _unary(),
    "relu": _unary(),
    "maximum": _binary(),
    "minimum": _binary(),
    "clip": Example(lambda f, x, low, high: f(x, low - 1, high + 1), ((5, 8), (8,), (5, 1))),
    "where": Example(lambda f, a, b: f(CONDITION, a, b), ((3, 4), (1, 4))),
    "matmul": Example(lambda f, a, b: f(a, b), ((2, 3, 4), (4, 5))),
    "dot": Example(lambda f, a, b: f(a, b), ((2, 4), (3, 4, 2))),
    "outer": Example(lambda f, a, b: f(a, b), ((3,), (2, 2))),
    "einsum": Example(lambda f, a, b: f("iij,...jk->k...i", a, b), ((3, 3, 2), (2, 2, 4))),
    "sum": Example(lambda f, x: f(x, axis=(0, 2)), ((2, 3, 4),)),
    "mean": Example(lambda f, x: f(x, axis=1, keepdims=True), ((2, 3, 4),)),
    "max": Example(lambda f, x: f(x, axis=-1), ((3, 4),)),
    "min": Example(lambda f, x: f(x, axis=(0, 2)), ((2, 3, 4),)),
    "var": Example(lambda f, x: f(x, axis=(0, 2), ddof=1), ((2, 3, 4),)),
    "std": Example(lambda f, x: f(x, axis=1, keepdims=True), ((2, 3, 4),)),
    "norm": Example(lambda f, x: f(x, axis=-1), ((3, 4),)),
    "logsumexp": Example(lambda f, x: f(x, axis=0), ((3, 4),)),
    "prod": Example(lambda f, x: f(x, axis=(2, 0)), ((2, 3, 4),)),
    "cumsum": Example(lambda f, x: f(x, axis=1), ((2, 3, 4),)),
    "astype": Example(lambda f, x: f(x, x.dtype), ((3, 4),)),
    "reshape": Example(lambda f, x: f(x, (2, -1)), ((3, 4),)),
    "flatten": _unary(),
    "squeeze": Example(lambda f, x: f(x, axis=1), ((3, 1, 1, 2),)),
    "expand_dims": Example(lambda f, x: f(x, (0, -1)), ((3, 4),)),
    "broadcast_to": Example(lambda f, x: f(x, (2, 3, 4)), ((3, 1),)),
    "swapaxes": Example(lambda f, x: f(x, 0, 2), ((2, 3, 4),)),
    "repeat": Example(lambda f, x: f(x, [2, 0, 1], axis=0), ((3, 2),)),
    "transpose": Example(lambda f, x: f(x, (2, 0, 1)), ((2, 3, 4),)),
    "index": Example(lambda f, x: f(x, TOKENS), ((4, 3),)),
    "concatenate": Example(lambda f, a, b: f([a, b], axis=1), ((3, 4), (3, 2))),
    "stack": Example(lambda f, a, b: f([a, b], axis=1), ((3, 4), (3, 4))),
    "softmax": _unary(),
    "log_softmax": _unary(),
    "gelu": _unary(),
    "gelu_exact": _unary(),
    "silu": _unary(),
    "gated": Example(lambda f, gate, up: f(gate, up, PRIMITIVES["silu"]), ((3, 4), (3, 4))),
    "layer_norm": Example(lambda f, x, w, b: f(x, w, b), ((3, 4), (4,), (4,))),
    "rms_norm": Example(lambda f, x, w: f(x, w), ((3, 4), (4,))),
    "embedding": Example(lambda f, w: f(w, TOKENS), ((4, 3),)),
    "linear": Example(lambda f, x, w, b: f(x, w, b), ((2, 3, 4), (5, 4), (5,))),
    "linear_on_demand": Example(lambda f, x, b: f(x, WEIGHT.astype, b), ((2, 3, 4), (5,))),
    "lora_linear": Example(lambda f, x, w, b, A, B: f(x, w, b, A, B, 0.5), ((2, 3, 4), (5, 4), (5,), (2, 4), (5, 2))),
    "split_heads": Example(lambda f, x: f(x, 2), ((2, 3, 4),)),
    "join_heads": Example(lambda f, x: f(x), ((2, 2, 3, 4),)),
    "rotate": Example(lambda f, x: f(x, np.cos(ANGLES), np.sin(ANGLES)), ((2, 3, 4),)),
    "attention": Example(  # four heads at two of keys, the last three of five positions, one of them padding
        lambda f, q, k, v: f(q, k, v, None, True, PADDED, 4, 0.7), ((1, 4, 3, 2), (1, 2, 5, 2), (1, 2, 5, 2))
    ),
    "cross_entropy": Example(lambda f, x: f(x, TOKENS), ((2, 3, 5),)),
    "linear_cross_entropy": Example(lambda f, x, w, b: f(x, w, TOKENS, b), ((2, 3, 4), (5, 4), (5,))),
    "linear_cross_entropy_on_demand": Example(
        lambda f, x, b: f(x, lambda part, dtype: WEIGHT[part].astype(dtype), TOKENS, 5, b), ((2, 3, 4), (5,))
    ),
    "binary_cross_entropy": Example(lambda f, z: f(z, CONDITION), ((1, 4),)),
    "dice_loss": Example(lambda f, z: f(z, np.stack([TOKENS > 1, TOKENS < 3])), ((2, 2, 3),)),
    "dropout": Example(lambda f, x: f(x, 0.4, np.random.default_rng(1)), ((3, 4),)),
}

assert EXAMPLES.keys() <= PRIMITIVES.keys()
