"""The segmenter beside the same model written in PyTorch, on copied weights: logits, loss and every gradient."""

import numpy as np
import pytest

import minilora as ml
from minilora.nn.segmenter import Segmenter, SegmenterConfig

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
F = torch.nn.functional

BARS = {"float64": 1e-10, "float32": 1e-5}
CONFIGS = [
    SegmenterConfig(size=12, patch=3, width=16, layers=2, decoder_layers=2, heads=4, features=5, window=3),
    SegmenterConfig(size=16, patch=8, width=12, layers=1, decoder_layers=1, heads=2, features=7, window=5),
]  # fmt: skip


def their_logits(w, config, images, prompts):
    """Convolutions cut the patches and look at the windows; the rest is PyTorch's own layers on the same weights."""
    s, p, c, f, k = config.size, config.patch, config.width, config.features, config.window
    linear = lambda name, x: F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))
    norm = lambda name, x: F.layer_norm(x, (c,), w[f"{name}.weight"], w[f"{name}.bias"])

    def block(name, x):
        y = norm(f"{name}.ln_1", x)
        q, k, v = (
            linear(f"{name}.attn.{one}_proj", y).unflatten(2, (config.heads, -1)).transpose(1, 2) for one in "qkv"
        )
        x = x + linear(f"{name}.attn.o_proj", F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y = linear(f"{name}.mlp.up_proj", norm(f"{name}.ln_2", x))
        return x + linear(f"{name}.mlp.down_proj", F.gelu(y, approximate="tanh"))

    def places(points):
        angles = torch.pi * (points[..., None] + 0.5) / s * 2.0 ** (torch.arange(config.frequencies) - 1)
        angles = angles.flatten(-2)
        return linear("place_proj", torch.cat([angles.sin(), angles.cos()], -1))

    pictures = images[:, None]
    x = F.conv2d(pictures, w["patch_proj.weight"].view(c, 1, p, p), w["patch_proj.bias"], stride=p).flatten(2).mT
    middle = (torch.arange(s // p, dtype=images.dtype) + 0.5) * p - 0.5
    y, x_of = torch.meshgrid(middle, middle, indexing="ij")
    x = x + places(torch.stack([x_of, y], -1).view(-1, 2))
    for i in range(config.layers):
        x = block(f"blocks.{i}", x)
    x = norm("ln_f", x)

    windows = F.pad(pictures, (k // 2,) * 4, mode="replicate").unfold(2, k, 1).unfold(3, k, 1)[:, 0]  # (B, S, S, k, k)
    where = prompts.view(-1, 2, 2).mean(1).round().long()
    there = windows[torch.arange(len(images)), where[:, 1], where[:, 0]].flatten(1)[:, None]
    box = (prompts[:, :2] != prompts[:, 2:]).any(1)
    kinds = torch.stack([torch.where(box, 2, 1), torch.where(box, 3, 1)], 1)
    asked = places(prompts.view(-1, 2, 2)) + w["kinds.weight"][kinds] + linear("there_proj", there)
    z = torch.cat([w["kinds.weight"][0].expand(len(images), 1, c), asked, x], 1)
    for i in range(config.decoder_layers):
        z = block(f"decoder.{i}", z)
    z = norm("ln_d", z)
    up = linear("patch_up", z[:, 3:]).mT.unflatten(2, (s // p, s // p))  # (B, p^2 F, S/p, S/p)
    up = F.pixel_shuffle(up.unflatten(1, (p * p, f)).transpose(1, 2).flatten(1, 2), p)  # (B, F, S, S)
    around = F.conv2d(F.pad(pictures, (k // 2,) * 4, mode="replicate"), w["window_up.weight"].view(f, 1, k, k))
    h = F.gelu(up + around, approximate="tanh").movedim(1, -1)
    h = F.gelu(linear("pixel_proj", h), approximate="tanh")  # (B, S, S, F)
    wanted = linear("mask_proj", z[:, 0])
    return torch.einsum("bxyf,bf->bxy", h, wanted[:, :f]) + wanted[:, f, None, None]


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("config", CONFIGS, ids=["fine", "coarse"])
def test_logits_loss_and_every_gradient(config, dtype, relative_error):
    rng, s = np.random.default_rng(1), config.size
    model = Segmenter(config).astype(dtype)
    for p in model.parameters():
        p.data = (p.data + rng.normal(0, 0.1, p.shape)).astype(dtype)
    images, masks = rng.random((3, s, s)).astype(dtype), rng.random((3, s, s)) > 0.7
    prompts = np.array([[2, 5, 2, 5], [1, 2, 9, 10], [0, 0, s - 1, s - 1]]).astype(dtype)
    weights = {name: torch.tensor(p.data, requires_grad=True) for name, p in model.named_parameters()}
    theirs = their_logits(weights, config, torch.tensor(images), torch.tensor(prompts))
    assert relative_error(model(images, prompts).data, theirs) <= BARS[dtype]
    t = torch.tensor(masks, dtype=theirs.dtype)
    p = theirs.sigmoid()
    dice = 1 - (2 * (p * t).sum((1, 2)) + 1) / (p.sum((1, 2)) + t.sum((1, 2)) + 1)
    expected = F.binary_cross_entropy_with_logits(theirs, t) + dice.mean()
    loss = model.loss(images, prompts, masks)
    assert relative_error(loss.data, expected) <= BARS[dtype]
    there = torch.autograd.grad(expected, list(weights.values()))
    ours = dict(zip(weights, ml.grad(loss, model.parameters()), strict=True))
    assert relative_error(ours, dict(zip(weights, there, strict=True)), 0.01) <= BARS[dtype]
