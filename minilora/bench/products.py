"""The matrix products of a training step by themselves, in NumPy and in PyTorch: what of a ratio is BLAS.

The products of layers and head are noted while one step is taken, and then done on arrays of the same shapes in each
library, on its own threads. Attention is left out: the two do not compute it by the same products.
"""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from ..studies.turns import Contender
from ..training.backward import loss_and_gradients
from .peers import Workload
from .profile import watched
from .pytorch import import_torch
from .rows import NUMPY_PRODUCTS, TORCH_PRODUCTS

Product = tuple[str, int, int, int]  # how it stands in memory, and n, k, m: (n, k) times (k, m)


class Noted:
    """In the place of a profile's clock: notes the products of linear layers and the head, LoRA's thin ones as well."""

    def __init__(self) -> None:
        self.products: Counter[Product] = Counter()

    def timed(self, function: Callable, *_: Any) -> Callable:
        """The function, as it is."""
        return function

    def primitive(self, name: str, function: Callable) -> Callable:
        """A layer's function on arrays, with its products noted, forward and in each vjp that is called."""
        if name not in ("linear", "lora_linear", "linear_cross_entropy"):
            return function

        @functools.wraps(function)
        def call(x: Any, weight: Any, *rest: Any, **options: Any) -> tuple:
            output, vjps = function(x, weight, *rest, **options)
            (d_out, d_in), n = weight.shape, x.size // weight.shape[1]
            r = len(rest[1]) if name == "lora_linear" else 0
            wide = {"forward": ("nt", n, d_in, d_out), "x": ("nn", n, d_out, d_in), "weight": ("tn", d_out, n, d_in)}
            thin = {
                "forward": [("nt", n, d_in, r), ("nt", n, r, d_out)], "x": [("nn", n, d_out, r), ("nn", n, r, d_in)],
                "A": [("nn", n, d_out, r), ("tn", r, n, d_in)], "B": [("tn", d_out, n, r)],
            }  # fmt: skip

            def note(what: str, result: Any) -> Any:
                self.products.update([wide[what]] if what in wide else [])
                self.products.update(thin.get(what, []) if r else [])
                return result

            noting = lambda what, vjp: vjp and (lambda g: note(what, vjp(g)))
            return note("forward", output), tuple(map(noting, ("x", "weight", "bias", "A", "B"), vjps))

        return call


def products_of(workload: Workload) -> Counter[Product]:
    """{product: how often a step has it}, of the whole batch at once."""
    model, noted = workload.model(), Noted()
    with watched(noted):
        loss_and_gradients(model, model.parameters(), *workload.data, pieces=1)
    return noted.products


def product_steps(workload: Workload) -> list[Contender]:
    """The products of a step, in NumPy and in PyTorch, in turn. Raises LeftOut without PyTorch."""
    torch, products = import_torch(), products_of(workload)
    rng = np.random.default_rng(0)
    jobs = []
    for (how, n, k, m), times in products.items():
        a = rng.random((k, n) if how[0] == "t" else (n, k), dtype=np.float32)
        b = rng.random((m, k) if how[1] == "t" else (k, m), dtype=np.float32)
        a, b = a.T if how[0] == "t" else a, b.T if how[1] == "t" else b
        jobs.append((times, a, b, np.empty((n, m), np.float32)))
    theirs = [(times, *map(torch.from_numpy, arrays)) for times, *arrays in jobs]

    def in_numpy() -> None:
        for times, a, b, out in jobs:
            for _ in range(times):
                np.matmul(a, b, out=out)

    def in_torch() -> None:
        for times, a, b, out in theirs:
            for _ in range(times):
                torch.mm(a, b, out=out)

    return [Contender(NUMPY_PRODUCTS, in_numpy), Contender(TORCH_PRODUCTS, in_torch)]
