"""What a primitive costs beside its arithmetic: long chains of one primitive on a single number, there and back."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..autograd import ops
from ..autograd.tensor import Tensor, grad
from ..studies.turns import Contender, LeftOut, ratio, take_turns
from .rows import ALL_CHAINS, HIPS, SCALARS, Row, row

LENGTH = 100  # applications in a chain
START = 0.7

# name: (one link of the chain, the primitives in it). m: `ml.ops`, or autograd's NumPy. No chain leaves the numbers
# that its primitives are defined for.
CHAINS: dict[str, tuple[Callable[[Any, Any], Any], int]] = {
    "add": (lambda m, x: x + 0.5, 1),
    "multiply": (lambda m, x: x * 0.99, 1),
    "divide": (lambda m, x: x / 1.01, 1),
    "negate": (lambda m, x: -x, 1),
    "power": (lambda m, x: x**0.9, 1),
    "sqrt": (lambda m, x: m.sqrt(x), 1),
    "tanh": (lambda m, x: m.tanh(x), 1),
    "exp, negate": (lambda m, x: m.exp(-x), 2),
    "log, add": (lambda m, x: m.log(x + 1.0), 2),
}


def chained(name: str, module: Any) -> Callable[[Any], Any]:
    """The function that applies one link LENGTH times."""
    link, _ = CHAINS[name]

    def function(x: Any) -> Any:
        for _ in range(LENGTH):
            x = link(module, x)
        return x

    return function


def our_derivative(name: str) -> Callable[[], float]:
    """d chain / dx at START, by our tape."""
    function = chained(name, ops)

    def derivative() -> float:
        x = Tensor(np.float64(START), requires_grad=True)
        return float(grad(function(x), [x])[0])

    return derivative


def their_derivative(name: str) -> Callable[[], float]:
    """d chain / dx at START, by HIPS autograd. Raises LeftOut where it is not installed."""
    try:
        import autograd
        import autograd.numpy as anp
    except ImportError:
        raise LeftOut("HIPS autograd is not installed: pip install 'minilora[peers]'") from None
    derivative = autograd.grad(chained(name, anp))
    return lambda: derivative(START)


def scalar_rows(turns: int) -> list[Row]:
    """A row for each chain and one for all of them together, in seconds for one primitive, forward and backward.

    Raises ArithmeticError where the two derivatives differ; LeftOut without HIPS autograd.
    """
    rows, sums = [], [np.zeros(turns), np.zeros(turns)]
    for name, (_, primitives) in CHAINS.items():
        ours, theirs = our_derivative(name), their_derivative(name)
        if not np.isclose(ours(), theirs(), rtol=1e-9, atol=0):
            raise ArithmeticError(f"bench: the derivative of the chain of {name} is {ours()}, autograd's {theirs()}")
        times = take_turns([Contender("ours", ours), Contender("theirs", theirs)], turns)
        one = [times[side] / (LENGTH * primitives) for side in ("ours", "theirs")]
        sums = [total + part for total, part in zip(sums, one, strict=True)]
        rows.append(row(SCALARS, name, HIPS, "s", ratio(*one)))
    mean = [total / len(CHAINS) for total in sums]
    return [*rows, row(SCALARS, ALL_CHAINS, HIPS, "s", ratio(mean[0], mean[1]))]
