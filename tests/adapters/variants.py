"""What the tests of LoRA's variants share: a small GPT and one way to move what is trained."""

import numpy as np

import minilora as ml

GPT = ml.GPTConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 6))
TARGETS = np.random.default_rng(1).integers(0, 11, (3, 6))


def base(dtype="float64", bias=True):
    """A GPT whose logits are not tiny, so that a change shows."""
    model = ml.GPT(ml.GPTConfig(11, 6, 2, 2, 8, bias=bias))
    rng = np.random.default_rng(3)
    for p in model.parameters():
        p.data[...] = rng.normal(0, 0.3, p.shape)
    return model.astype(dtype)


def shake(model, rng=5):
    """Move what is trained as training would."""
    rng = np.random.default_rng(rng)
    for p in model.parameters(trainable=True):
        p.data += rng.normal(0, 0.3, p.shape).astype(p.dtype)
    return model
