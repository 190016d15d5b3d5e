"""The elementary primitives: each one a line of calculus beside the line that computes it.

Every function here takes tensors, arrays or numbers and returns a Tensor. Its body returns the output and, for each
input, the vjp: g is the cotangent of the output (the gradient of the loss with respect to it). Where an input was
broadcast, the tape sums its cotangent back to the input's shape. Here are those that work entry by entry; others live
in `products.py`, `reductions.py` and `shapes.py`, and those that fuse several in `fused.py`, `attention.py`,
`gated.py`, `normal.py`, `head.py` and `masks.py`: all are `ops.NAME`. Shapes are NumPy's. Every line also holds for
complex numbers where the mathematics is analytic: no conjugate is used, and comparisons look at real parts, so that the
complex-step check works.
"""

from typing import Any

from .backend import array_module, by_value
from .products import *  # noqa: F403
from .reductions import *  # noqa: F403
from .reductions import refuse_complex
from .shapes import *  # noqa: F403
from .tensor import PRIMITIVES, Tensor, primitive, register

__all__ = ["PRIMITIVES", "Tensor", "primitive", "register"]  # the primitives themselves are added at the end


@register
def add(a, b):
    """a + b"""
    return a + b, (lambda g: g, lambda g: g)


@register
def subtract(a, b):
    """a - b"""
    return a - b, (lambda g: g, lambda g: -g)


@register
def multiply(a, b):
    """a b, entry by entry.   d(ab) = b da + a db"""
    return a * b, (lambda g: g * b, lambda g: g * a)


@register
def divide(a, b):
    """y = a / b.   dy = da / b - (y / b) db, g / b first: b^2 may overflow where the quotients do not"""
    y = a / b
    return y, (lambda g: g / b, lambda g: -(g / b) * y)


@register
def negate(x):
    """-x"""
    return -x, (lambda g: -g,)


@register
def power(a, b):
    """a^b.   d(a^b) = b a^(b-1) da + a^b log(a) db;   a^0, and 0^b with b >= 0, are constants with derivative 0"""
    xp = array_module(a, b)
    y = a**b

    def db(g):
        constant = (a == 0) & (b.real >= 0)
        return g * y * xp.log(a + constant)

    return y, (lambda g: g * b * a ** (b - 1 + (b == 0)), db)


@register
def abs(x):
    """|x|.   dy = sign(x) dx, and 0 at 0"""
    xp = array_module(x)
    refuse_complex("abs", x)
    sign = lambda: xp.sign(x.real)
    return x * sign() if x.dtype.kind == "c" else xp.abs(x), (lambda g: g * sign(),)


@register
def exp(x):
    """e^x.   dy = y dx"""
    y = array_module(x).exp(x)
    return y, (lambda g: g * y,)


@register
def log(x):
    """ln x.   dy = dx / x"""
    return array_module(x).log(x), (lambda g: g / x,)


@register
def sqrt(x):
    """sqrt(x).   dy = dx / (2 y)"""
    y = array_module(x).sqrt(x)
    return y, (lambda g: g / (2 * y),)


@register
def tanh(x):
    """tanh(x).   dy = (1 - y^2) dx"""
    y = array_module(x).tanh(x)
    return y, (lambda g: g * (1 - y * y),)


@register
def log1p(x):
    """ln(1 + x), with all its digits where x is small.   dy = dx / (1 + x)"""
    return array_module(x).log1p(x), (lambda g: g / (1 + x),)


@register
def expm1(x):
    """e^x - 1, with all its digits where x is small.   dy = e^x dx, and not y + 1, which has lost e^-17"""
    xp = array_module(x)
    return xp.expm1(x), (lambda g: g * xp.exp(x),)


@register
def sin(x):
    """sin(x).   dy = cos(x) dx"""
    xp = array_module(x)
    return xp.sin(x), (lambda g: g * xp.cos(x),)


@register
def cos(x):
    """cos(x).   dy = -sin(x) dx"""
    xp = array_module(x)
    return xp.cos(x), (lambda g: -g * xp.sin(x),)


@register
def relu(x):
    """max(x, 0).   dy = dx where x > 0, else 0"""
    xp, on = array_module(x), ~(x.real <= 0)  # not x > 0: what is not a number stays so
    return xp.maximum(x, 0) if x.dtype.kind != "c" else x * on, (lambda g: g * on,)


@register
def maximum(a, b):
    """The larger of a and b.   g goes to where the maximum is, half of it to each where they are equal."""
    xp = array_module(a, b)
    return xp.maximum(a, b), _shared(xp, a.real == b.real, a.real < b.real)


@register
def minimum(a, b):
    """The smaller of a and b.   g goes to where the minimum is, half of it to each where they are equal."""
    xp = array_module(a, b)
    return xp.minimum(a, b), _shared(xp, a.real == b.real, b.real < a.real)


def _shared(xp: Any, equal: Any, second: Any) -> tuple:
    """The vjps of a choice between a and b, which fell on b where `second`."""
    return (
        lambda g: xp.where(equal, g / 2, xp.where(second, 0, g)),
        lambda g: xp.where(equal, g / 2, xp.where(second, g, 0)),
    )


@register
def clip(x, low=None, high=None):
    """x, but low where it is less and high where that is more; None is no bound.   Each gets g where it stands."""
    xp, y = array_module(x, low, high), x
    under = over = xp.zeros((), dtype=bool)
    if low is not None:
        under, y = x.real < low.real, xp.maximum(x, low)
    if high is not None:
        over, y = y.real > high.real, xp.minimum(y, high)
    return y, (
        lambda g: xp.where(under | over, 0, g),
        lambda g: xp.where(under & ~over, g, 0),
        lambda g: xp.where(over, g, 0),
    )


@register
def where(condition, a, b):
    """a where the condition holds, b elsewhere."""
    xp = array_module(a, b, condition)
    condition = by_value(xp.asarray(condition))
    return xp.where(condition, a, b), (None, lambda g: xp.where(condition, g, 0), lambda g: xp.where(condition, 0, g))


from .attention import *  # noqa: E402, F403  (at the end: the fused primitives are checked against these)
from .fused import *  # noqa: E402, F403
from .gated import *  # noqa: E402, F403
from .head import *  # noqa: E402, F403
from .masks import *  # noqa: E402, F403
from .normal import *  # noqa: E402, F403

__all__ += sorted(PRIMITIVES)
