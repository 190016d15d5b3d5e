"""Exercises of lecture 8a: prompts, prefixes, bottlenecks."""

from typing import Any

import numpy as np

from ..adapters.attach import add_adapter
from ..adapters.prefix import PrefixConfig, fold_prefix
from ..analysis.counting import count
from ..nn.storage import load_model
from .exercises import cause, exercise, same


@exercise("8a.1")
def counted_by_hand(answer: Any) -> str | None:
    """(prompt, prefix, houlsby) of GPT-2: P C, 2 L P C, and 2 L (2 b C + b + C)."""
    _, prefix, houlsby = answer
    counted = (
        count("gpt2", "prompt", tokens=20),
        count("gpt2", "prefix", tokens=20),
        count("gpt2", "houlsby", bottleneck=64),
    )
    right = [one.trainable_parameters for one in counted]
    if prefix == right[1] // 2:
        return f"prefix {prefix:,} is half of it: keys *and* values are trained"
    if prefix == right[1] // 12:
        return f"prefix {prefix:,} is one block's; every block has its own keys and values"
    if houlsby == 2 * 12 * 2 * 64 * 768:
        return f"houlsby {houlsby:,} has no biases: each bottleneck has b of them in the middle and C at its end"
    if houlsby == right[2] // 2:
        return f"houlsby {houlsby:,} is one bottleneck a block; there are two"
    wrong = [name for name, a, b in zip(("prompt", "prefix", "houlsby"), answer, right, strict=True) if a != b]
    formulas = "prompt P C, prefix 2 L P C, houlsby 2 L (two matrices and two biases)"
    return f"{', '.join(wrong)}: not right; {formulas}" if wrong else None


@exercise("8a.2")
def share_of_the_prefix(answer: Any) -> str | None:
    """lambda = sum over the prefix of exp(q k / sqrt(D)), over the sum over all."""
    rng = np.random.default_rng(0)
    q, K, K_new = rng.standard_normal(5), rng.standard_normal((4, 5)), rng.standard_normal((2, 5))

    def share(scale: float) -> float:
        on_new, on_text = np.exp(K_new @ q / scale).sum(), np.exp(K @ q / scale).sum()
        return float(on_new / (on_new + on_text))

    got, right = answer(q, K, K_new), share(np.sqrt(5))
    likely = {
        "that is the share of the text": 1 - right,
        "the scores are divided by the root of D first": share(1),
        "that is prefix over text; lambda is prefix over all": right / (1 - right),
    }
    return same(got, right, cause(got, likely, "exp of the prefix's scores, over exp of all", 1e-5))


@exercise("8a.4")
def prefix_with_a_network(answer: Any) -> str | None:
    """(trained before folding, after it)."""
    model = add_adapter(load_model("base"), PrefixConfig(16, hidden=128), rng=0)
    right = [model.count(trainable=True)]
    fold_prefix(model)
    right.append(model.count(trainable=True))
    before, after = answer
    if after == before:
        return f"{after:,} both times: the network is thrown away after folding, and what it gave is kept"
    if (after, before) == tuple(right):
        return "the other way round: (before, after)"
    return same(np.array([before, after]), right, "count(trainable=True) before and after ml.fold_prefix(model)")


@exercise("8a.6")
def bottleneck_without_its_f(answer: Any) -> str | None:
    """x = W z + b; y = x + up (down x + b_down) + b_up = (I + up down) W z + (I + up down) b + up b_down + b_up"""
    rng = np.random.default_rng(0)
    W, b, down, b_down, up, b_up = (rng.standard_normal(s) for s in ((6, 5), 6, (2, 6), 2, (6, 2), 6))
    new_W, new_b = answer(W, b, down, b_down, up, b_up)
    both = np.eye(6) + up @ down
    if np.shape(new_W) == W.shape and np.allclose(new_W, up @ down @ W):
        return "W' lacks what passes by the bottleneck: y = x + ..."
    wrong = same(new_W, both @ W, "(I + up down) W: the layer first, then the bottleneck")
    if wrong:
        return f"W': {wrong}"
    for lacks, value in (("b_up", both @ b + up @ b_down), ("b_down, which passes through up", both @ b + b_up),
                         ("what the bottleneck does to b", b + up @ b_down + b_up)):  # fmt: skip
        if np.shape(new_b) == b.shape and np.allclose(new_b, value):
            return f"b' lacks {lacks}"
    wrong = same(new_b, both @ b + up @ b_down + b_up, "put z = 0 in, and see what comes out")
    return f"b': {wrong}" if wrong else None
