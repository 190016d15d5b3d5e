"""LoRA+: which parameters learn faster, and by how much."""

import numpy as np
import pytest

import minilora as ml
from minilora.adapters.dora import DoRAConfig
from minilora.adapters.lora_plus import lora_plus

GPT = ml.GPTConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 6))
TARGETS = np.random.default_rng(1).integers(0, 11, (3, 6))


@pytest.mark.parametrize("config", [ml.LoRAConfig(rank=2), DoRAConfig(rank=2), ml.LoRAConfig(rank=2, init="pissa")])
def test_the_groups_are_every_b_and_the_rest(config):
    model = ml.add_lora(ml.GPT(GPT), config)
    model.ln_f.weight.requires_grad = True  # trained beside the adapter
    slow, fast = lora_plus(model, ratio=8)
    assert (slow["lr_ratio"], fast["lr_ratio"]) == (1, 8)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in fast["params"]} == {n for n in names.values() if n.endswith("lora_B")}
    together = [id(p) for group in (slow, fast) for p in group["params"]]
    assert sorted(together) == sorted(id(p) for p in model.parameters(trainable=True))


def test_a_step_of_b_is_ratio_times_as_long():
    """Plain gradient descent: after one step B has moved by ratio lr dB and A by lr dA."""
    model = ml.add_lora(ml.GPT(GPT).astype("float64"), ml.LoRAConfig(rank=2, init="pissa"))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.data.copy() for name, p in trained.items()}
    gradients = dict(zip(trained, ml.grad(model.loss(TOKENS, TARGETS), list(trained.values())), strict=True))
    ml.train_step(model, ml.SGD(lora_plus(model, ratio=5), lr=0.1), TOKENS, TARGETS)
    for name, p in trained.items():
        rate = 0.5 if name.endswith("lora_B") else 0.1
        np.testing.assert_allclose(before[name] - p.data, rate * gradients[name], rtol=1e-9, atol=1e-14)


def test_ratio_one_is_lora():
    one, two = (ml.add_lora(ml.GPT(GPT), ml.LoRAConfig(rank=2)) for _ in range(2))
    a, b = ml.AdamW(one.named_parameters()), ml.AdamW(lora_plus(two, 1))
    for _ in range(3):
        assert ml.train_step(one, a, TOKENS, TARGETS) == ml.train_step(two, b, TOKENS, TARGETS)


def test_errors():
    with pytest.raises(ValueError, match="lora_plus: the model trains no lora_B"):
        lora_plus(ml.GPT(GPT))
    model = ml.add_lora(ml.GPT(GPT), ml.LoRAConfig(rank=2))
    for ratio in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"AdamW: lr_ratio = .*, expected a positive number"):
            ml.AdamW(lora_plus(model, ratio))
