"""The segmenter beside the same model written in PyTorch, on copied weights: logits, loss and every gradient."""

import numpy as np
import pytest

import minilora as ml
from minilora.nn.segmenter import Segmenter, SegmenterConfig

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
from minilora.bench.segmenter import TorchSegmenter  # noqa: E402

BARS = {"float64": 1e-10, "float32": 1e-5}
CONFIGS = [
    SegmenterConfig(size=12, patch=3, width=16, layers=2, decoder_layers=2, heads=4, features=5, window=3),
    SegmenterConfig(size=16, patch=8, width=12, layers=1, decoder_layers=1, heads=2, features=7, window=5),
]  # fmt: skip


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("config", CONFIGS, ids=["fine", "coarse"])
def test_logits_loss_and_every_gradient(config, dtype, relative_error):
    rng, s = np.random.default_rng(1), config.size
    model = Segmenter(config).astype(dtype)
    for p in model.parameters():
        p.data = (p.data + rng.normal(0, 0.1, p.shape)).astype(dtype)
    images, masks = rng.random((3, s, s)).astype(dtype), rng.random((3, s, s)) > 0.7
    prompts = np.array([[2, 5, 2, 5], [1, 2, 9, 10], [0, 0, s - 1, s - 1]]).astype(dtype)
    peer = TorchSegmenter(model)
    theirs = peer.masks(torch.tensor(images), torch.tensor(prompts))
    assert relative_error(model(images, prompts).data, theirs) <= BARS[dtype]
    expected = peer.loss((torch.tensor(images), torch.tensor(prompts)), torch.tensor(masks, dtype=theirs.dtype))
    loss = model.loss(images, prompts, masks)
    assert relative_error(loss.data, expected) <= BARS[dtype]
    there = dict(zip(peer.p, torch.autograd.grad(expected, list(peer.p.values())), strict=True))
    ours = dict(zip(there, ml.grad(loss, model.parameters()), strict=True))
    assert relative_error(ours, there, 0.01) <= BARS[dtype]  # the keys' biases have no gradient but rounding
