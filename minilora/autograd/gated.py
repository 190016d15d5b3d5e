"""Gates: the logistic function, silu, which is x times it, and an MLP that multiplies by an activation."""

import numpy as np

from .backend import array_module, at_least_float32
from .parts import in_parts
from .tensor import PRIMITIVES, register

__all__ = ["gated", "sigmoid", "silu"]

ACTIVATIONS = ("silu", "gelu", "gelu_exact", "relu", "sigmoid", "tanh")  # primitives that work entry by entry
STRETCH = 1 << 17  # entries at a time, so that what is written down of them is no third array


@register
@at_least_float32
def sigmoid(x):
    """s(x) = 1 / (1 + e^-x), the logistic function.   ds/dx = s(x) s(-x), which keeps its digits on both sides"""
    s = _logistic(x)
    return s, (lambda g: g * s * _logistic(-x),)


@register
@at_least_float32
def silu(x):
    """y = x s,  s = 1 / (1 + e^-x).   dy/dx = s (1 + x - x s).   Also called swish; LLaMA's activation"""
    xp, q = array_module(x), _one_plus_e(x)  # 1 / s

    def vjp(g):
        d = xp.asarray(x / q)
        xp.subtract(x, d, out=d)
        d += 1
        d /= q
        d *= g
        return d

    return x / q, (vjp,)


def _logistic(x):
    return 1 / _one_plus_e(x)


def _one_plus_e(x):
    """1 + e^-x, an array even where x is one number, to be written over"""
    xp = array_module(x)
    q = xp.asarray(-x)
    with np.errstate(over="ignore"):  # x / inf is 0, as it should be
        xp.exp(q, out=q)
    q += 1
    return q


@register
@at_least_float32
def gated(gate, up, activation):
    """y = f(gate) up, entry by entry.   Shazeer 2020, "GLU Variants Improve Transformer", eqs. 5 and 6

    dup = g f(gate),  dgate = f'(gate) g up. f(gate) is as large as gate and up, which are all that is kept.
    activation: f, one of the primitives in ACTIVATIONS, as ops.silu or ops.gelu.
    """
    name = getattr(activation, "__name__", "")
    if name not in ACTIVATIONS or PRIMITIVES[name] is not activation:
        raise TypeError(f"gated: activation = {activation!r}, expected one of ops.{', ops.'.join(ACTIVATIONS)}")
    if gate.shape != up.shape:
        raise ValueError(f"gated: gate {gate.shape} and up {up.shape}, expected two of one shape")
    f = activation.__wrapped__  # type: ignore[attr-defined]
    xp, shape = array_module(gate), gate.shape
    gate, up = gate.reshape(-1), up.reshape(-1)
    step = STRETCH if type(gate) is np.ndarray else max(gate.size, 1)
    parts = [(slice(start, start + step),) for start in range(0, gate.size, step)]
    y = xp.empty(gate.shape, np.result_type(gate.dtype, up.dtype))
    in_parts(lambda part: xp.multiply(f(gate[part])[0], up[part], out=y[part]), parts)

    def vjp(g):
        g, dgate, dup = g.reshape(-1), xp.empty_like(gate), xp.empty_like(up)

        def vjp_of(part):
            value, (slope,) = f(gate[part])
            dgate[part] = slope(g[part] * up[part])
            xp.multiply(g[part], value, out=dup[part])

        in_parts(vjp_of, parts)
        return dgate.reshape(shape), dup.reshape(shape)

    return y.reshape(shape), vjp
