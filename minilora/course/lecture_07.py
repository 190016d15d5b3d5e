"""The exercises of lecture 7 that check themselves: counting, and what nodes exchange."""

from collections.abc import Collection
from functools import cache

import numpy as np

from ..analysis import counting
from ..analysis.exchange import NETWORKS, exchange
from .exercises import exercise, same


@exercise("7.1")
def on_paper(answer: int) -> str | None:
    """LoRA of rank 16 on q, k, v and o of Llama 2 7B."""
    truth = counting.count(
        "llama-2-7b", rank=16, target_modules=("q_proj", "k_proj", "v_proj", "o_proj")
    ).trainable_parameters
    for factor, hint in ((2, "q, k, v and o are four matrices, or A and B two factors"), (32, "it has 32 layers")):
        if same(answer * factor, truth) is None:
            return f"{factor} times that would be right: {hint}"
    return same(answer, truth, "r (d_out + d_in) for each of four matrices in each of 32 layers")


@exercise("7.2")
def break_even(answer: float) -> str | None:
    """The r at which r (4C + C) = 4 C^2, for C = 128."""
    if same(answer, 64.0) is None:
        return "this is half the width, which holds for a square matrix; this one is 512 x 128"
    return same(answer, 512 * 128 / (512 + 128), "r (4C + C) = 4 C^2; leave the fraction as it is")


@cache
def fitting(bits: int) -> frozenset[str]:
    """The models whose LoRA of rank 8 takes at most 24 GB."""
    found = set()
    for name in counting.MODELS:
        length = min(512, counting.find(name).context)
        c = counting.count(name, "lora", rank=8, bits=bits, engine="flash", length=length)
        found |= {name} if sum(c.training_memory_bytes.values()) <= 24e9 else set()
    return frozenset(found)


@exercise("7.4")
def one_card(answer: tuple[Collection[str], Collection[str]]) -> str | None:
    """The models that fit a card of 24 GB on a base in 16 and in 4 bits."""
    for names, bits in zip(answer, (16, 4), strict=True):
        truth, got = fitting(bits), set(names)
        if unknown := got - counting.MODELS.keys():
            return f"{sorted(unknown)} are no models of counting.MODELS"
        if wrong := sorted(got ^ truth):
            side = "does not fit" if wrong[0] in got else "fits, too"
            return (
                f"in {bits} bits {wrong[0]} {side}: add all four parts of training_memory_bytes; 24 GB are 24e9 bytes"
            )
    return None


@exercise("7.5")
def crossing(answer: int) -> str | None:
    """The smallest batch at which Llama 2 7B's activations take more than its weights."""

    def over(batch: int) -> bool:
        memory = counting.count(
            "llama-2-7b", "lora", rank=8, batch=batch, length=512, engine="flash"
        ).training_memory_bytes
        return memory["activations"] > memory["weights"]

    truth = next(batch for batch in range(1, 100) if over(batch))
    return same(np.asarray(answer), truth, "compare the two parts of training_memory_bytes as `batch` grows from 1")


@exercise("7.8")
def too_many(answer: int) -> str | None:
    """The least k for which 2 (k - 1) alpha > 2 (k - 1) / k beta n: the bytes' time is that of one start, k times."""
    network = NETWORKS["10 Gbit/s"]
    size = exchange("llama-2-7b", rank=8)["bytes"]
    truth = int(size * network.beta / network.alpha) + 1
    if same(answer, truth - 1) is None:
        return "there the bytes still take a little longer: the next one"
    if same(answer, int(2 * size * network.beta / network.alpha) + 1) is None:
        return "gradients in 16 bits are two bytes a number"
    return same(answer, truth, "2 (k - 1) is in both terms; what is left is alpha, and beta n / k, with beta = 8e-10 s")
