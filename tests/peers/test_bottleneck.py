"""Bottleneck adapters against PyTorch's own functions: logits and gradients of the whole model. PEFT has none."""

import numpy as np
import pytest

import minilora as ml
from minilora.adapters.bottleneck import HoulsbyConfig, PfeifferConfig

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")

BARS = {"float32": 1e-5, "float64": 1e-10}
FLOORS = {"float32": 1e-2, "float64": 1e-4}
CONFIG = ml.GPTConfig(vocab_size=31, block_size=10, n_layer=2, n_head=2, n_embd=16)
TOKENS = np.random.default_rng(0).integers(CONFIG.vocab_size, size=(3, 8))
TARGETS = np.random.default_rng(1).integers(CONFIG.vocab_size, size=(3, 8))


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize(
    "config", [HoulsbyConfig(4), PfeifferConfig(5, adapter_norm=True)], ids=["houlsby", "pfeiffer"]
)
def test_logits_and_gradients(config, dtype, randomize, torch_weights, torch_gpt, relative_error):
    model = ml.add_adapter(ml.GPT(CONFIG).astype(dtype), config)
    randomize(model, np.random.default_rng(2))
    weights = torch_weights(model)
    logits = torch_gpt(weights, CONFIG, torch.tensor(TOKENS))
    assert relative_error(model(TOKENS).data, logits) <= BARS[dtype]
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = ml.grad(model.loss(TOKENS, TARGETS), list(trained.values()))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(TARGETS).flatten()).backward()
    theirs = {name: weights[name].grad for name in trained}
    assert relative_error(dict(zip(trained, gradients, strict=True)), theirs, FLOORS[dtype]) <= BARS[dtype]
    with ml.adapter_disabled(model):
        assert relative_error(model(TOKENS).data, logits) > 1e-2  # the adapter had something to say
