"""Quantization against PyTorch: absmax rounding, and a model on dequantised weights with LoRA beside them."""

import numpy as np
import pytest

import minilora as ml
from minilora.adapters.qlora import QuantizedLinear, quantize_model
from minilora.adapters.quantization import LEVELS, quantize

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
F = torch.nn.functional

BARS = {"float32": 1e-5, "float64": 1e-10}  # relative
FLOORS = {"float32": 1e-2, "float64": 1e-4}  # in float32 a gradient 1e-3 of the largest is rounded by 1e-5 of itself
CONFIG = ml.GPTConfig(vocab_size=31, block_size=10, n_layer=2, n_head=2, n_embd=16)
TOKENS = np.random.default_rng(0).integers(CONFIG.vocab_size, size=(3, 8))
TARGETS = np.random.default_rng(1).integers(CONFIG.vocab_size, size=(3, 8))


@pytest.mark.parametrize("kind, most", [("int8", 127), ("int4", 7)])
@pytest.mark.parametrize("size", [1e-30, 0.02, 1e30])
def test_integers_are_pytorchs(kind, most, size):
    """PyTorch's rounding with a scale for each row: our blocks as its channels, s / 127 or s / 7 as its scale."""
    w = (size * np.random.default_rng(0).standard_normal((200, 64))).astype(np.float32)
    x = torch.tensor(w)
    scale, zero = x.abs().amax(1) / most, torch.zeros(200, dtype=torch.int32)
    theirs = torch.fake_quantize_per_channel_affine(x, scale, zero, 0, -most, most)
    np.testing.assert_allclose(quantize(w, kind).dequantize(), theirs, rtol=3e-7, atol=0)


@pytest.mark.parametrize("kind", ["nf4", "int4", "int8"])
def test_codes_are_the_nearest_by_pytorchs_distances(kind):
    w = np.random.default_rng(0).standard_normal((100, 64)).astype(np.float32)
    x, levels = torch.tensor(w, dtype=torch.float64), torch.tensor(LEVELS[kind], dtype=torch.float64)
    s = x.abs().amax(1, keepdim=True)
    nearest = levels[torch.cdist((x / s).reshape(-1, 1), levels[:, None]).argmin(1)].reshape(x.shape)
    np.testing.assert_allclose(quantize(w, kind).dequantize(), s * nearest, rtol=3e-7, atol=0)


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_qlora_is_pytorchs_model_on_dequantized_weights(
    dtype, kind, relative_error, randomize, torch_weights, torch_gpt
):
    """The loss, and the gradient of every A and B."""
    config = ml.LoRAConfig(rank=3, alpha=5, target_modules=("q_proj", "o_proj", "*.mlp.*"))
    model = quantize_model(randomize(ml.GPT(CONFIG).astype(dtype), np.random.default_rng(2)), kind, block=24)
    plain = {path: m.weight.data for path, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    ml.add_lora(model, config)
    randomize(model, np.random.default_rng(3))
    weights = torch_weights(model)
    weights |= {f"{path}.weight": torch.tensor(W.astype(dtype)) for path, W in plain.items()}

    logits = torch_gpt(weights, CONFIG, torch.tensor(TOKENS), config.scale)
    expected = F.cross_entropy(logits.flatten(0, 1), torch.tensor(TARGETS).flatten())
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == {f"{path}.lora_{part}" for path in plain if is_adapted(path) for part in "AB"}
    theirs = torch.autograd.grad(expected, [weights[name] for name in trained])
    loss = model.loss(TOKENS, TARGETS)
    assert relative_error(model(TOKENS).data, logits) <= BARS[dtype]
    assert relative_error(loss.data, expected) <= BARS[dtype]
    ours = dict(zip(trained, ml.grad(loss, list(trained.values())), strict=True))
    assert relative_error(ours, dict(zip(trained, theirs, strict=True)), FLOORS[dtype]) <= BARS[dtype]


def is_adapted(path):
    return path.endswith(("q_proj", "o_proj", "up_proj", "down_proj"))
