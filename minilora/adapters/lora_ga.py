"""LoRA-GA: A and B start where the loss is steepest (Wang, Yu & Li 2024, "LoRA-GA: Low-Rank Adaptation with Gradient
Approximation", section 3).

Before it trains, LoRA asks once what full fine-tuning would do: the gradient G of the loss by W on a few batches.

    G = U S V^T;    A0 = c V_1..r^T,   B0 = c U_r+1..2r,   c = d_out^(1/4) / sqrt(gamma);    A and B start there
    y = x (W - s B0 A0)^T + b + s (x A^T) B^T                    so that the adapted model starts at the base model

One step changes s B A by s (dB A0 + B0 dA), with dB = s G A0^T and dA = s B0^T G, so by s^2 (G A0^T A0 + B0 B0^T G).
The first term is G seen through its r largest right directions, the second through the next r left ones: together, but
for a factor, the best approximation of G of rank 2r (theorem 3.1). c keeps the size of outputs whatever the width
(theorem 3.2); gamma = 16 is what the authors' code takes. PEFT 0.21's "stable" multiplies B0 by the singular values and
leaves A0 as it is; its directions are the same.

As with PiSSA (`initialise.py`), W stays whole, and A0 and B0 are kept, frozen, beside A and B.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ..autograd.backend import Array, array_module, new_array
from ..autograd.tensor import grad
from ..nn.checks import is_real, shown
from ..nn.layers import Linear
from .adapter import Adapter
from .attach import attach, build
from .lora import LoRAConfig, shape_of
from .state import changeable, refuse_taken


def add_lora_ga(
    model: Any, config: LoRAConfig, batches: Iterable, rng: Any = 0, name: str = "default", gamma: float = 16.0
) -> Any:
    """Put a LoRA on a model whose A and B start from the loss's gradient; returns the model, its outputs unchanged.

    config: a LoRAConfig, whose init becomes "lora-ga". batches: what `model.loss` takes, one tuple a batch, such as
    [(tokens, targets), ...]; of all that they give, the mean counts. Raises ValueError where `add_lora` does, for no
    batch, for targets that are tables or quantised, and where a matrix has fewer than 2 r singular vectors.
    """
    if type(config) is not LoRAConfig:
        raise TypeError(f"add_lora_ga: config = {shown(config)}, expected a LoRAConfig")
    if not is_real(gamma) or not 0 < gamma < float("inf"):
        raise ValueError(f"add_lora_ga: gamma = {shown(gamma)}, expected a positive number")
    refuse_taken(changeable(model, "add_lora_ga"), name, "add_lora_ga")
    config = replace(config, init="lora-ga")
    given = as_batches(batches)

    def make() -> Adapter:
        config.check(model, gradient=True)
        check_layers(layers := config.chosen(model), config)
        gradients = mean_gradients(model, layers, given)
        adapter = build("add_lora_ga", model, config, rng)
        for path, G in gradients.items():
            layer = adapter.modules[path]
            A, B = steepest(G, layer.config.rank, gamma)
            for held, start in ((layer.lora_A, A), (layer.lora_A0, A), (layer.lora_B, B), (layer.lora_B0, B)):
                held.data[...] = start
        return adapter

    return attach(model, name, make, "add_lora_ga")


def check_layers(layers: dict[str, Any], config: LoRAConfig) -> None:
    """Raise ValueError for what has no gradient of its own, or fewer singular vectors than A and B start from."""
    for path, one in config.of_each(list(layers)).items():
        if not isinstance(layers[path], Linear) or layers[path].packed():
            kind = "is quantised" if layers[path].packed() else "is an embedding table"
            raise ValueError(f"add_lora_ga: {path} {kind}, and the start needs the gradient of a linear layer's floats")
        if 2 * one.rank > min(shape := shape_of(layers[path])):
            raise ValueError(
                f"add_lora_ga: rank {one.rank} needs {2 * one.rank} singular vectors, {path} has {min(shape)}"
            )


def steepest(G: Array, r: int, gamma: float) -> tuple[Array, Array]:
    """A0 (r, d_in) and B0 (d_out, r): singular vectors 1 to r and r + 1 to 2r of a gradient G (d_out, d_in)."""
    xp = array_module(G)
    if not bool(xp.isfinite(G).all()):
        raise ValueError(f"add_lora_ga: a gradient {G.shape} holds values that are not finite")
    U, _, Vt = xp.linalg.svd(new_array(G, dtype="float64"), full_matrices=False)
    c = len(G) ** 0.25 / gamma**0.5
    return c * Vt[:r], c * U[:, r : 2 * r]


def mean_gradients(model: Any, layers: dict[str, Linear], batches: list[tuple]) -> dict[str, Array]:
    """{path: dL/dW (d_out, d_in)}, the mean over batches; what is trained is as it was afterwards."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    weights = [layer.weight for layer in layers.values()]
    total = None
    try:
        for p, _ in before:
            p.requires_grad = False
        for p in weights:
            p.requires_grad = True
        for batch in batches:
            found = grad(model.loss(*batch), weights)
            total = found if total is None else [one + more for one, more in zip(total, found, strict=True)]
    finally:
        for p, trained in before:
            p.requires_grad = trained
    return {path: g / len(batches) for path, g in zip(layers, total or (), strict=True)}


def as_batches(batches: Any) -> list[tuple]:
    """What `model.loss` takes, batch by batch. Raises ValueError for no batch and for what is none."""
    given = list(batches) if isinstance(batches, Iterable) and not isinstance(batches, str | bytes) else []
    if not given or not all(isinstance(one, tuple | list) and len(one) >= 2 for one in given):
        raise ValueError(f"add_lora_ga: batches = {shown(batches)}, expected one or more, as in [(tokens, targets)]")
    return [tuple(one) for one in given]
