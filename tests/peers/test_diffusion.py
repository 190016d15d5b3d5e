"""DiT and its block against the same in PyTorch's functions: outputs, loss and every gradient, on copied weights."""

import numpy as np
import pytest

import minilora as ml
from minilora.nn.diffusion import DiT, DiTConfig

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
F = torch.nn.functional

BARS = {"float64": 1e-10, "float32": 1e-5}
FLOORS = {"float64": 1e-4, "float32": 1e-2}  # the gradient of the keys' bias is rounding alone: softmax sees no shift
CONFIGS = [
    DiTConfig(),
    DiTConfig(image_size=8, patch_size=2, classes=3, n_layer=2, n_head=3, n_embd=12),
    DiTConfig(image_size=6, patch_size=3, classes=1, n_layer=1, n_head=1, n_embd=6),
]


def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def modulated(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def block(w, name, config, x, c):
    """Peebles & Xie 2023, figure 3: adaLN-Zero."""
    one, two = linear(w, f"{name}.ada_proj", c).chunk(2, dim=1)
    (shift_1, scale_1, gate_1), (shift_2, scale_2, gate_2) = one.chunk(3, dim=1), two.chunk(3, dim=1)
    h = modulated(x, shift_1, scale_1)
    q, k, v = (linear(w, f"{name}.attn.{p}_proj", h).unflatten(2, (config.n_head, -1)).transpose(1, 2) for p in "qkv")
    h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = x + gate_1.unsqueeze(1) * linear(w, f"{name}.attn.o_proj", h)
    h = F.gelu(linear(w, f"{name}.mlp.up_proj", modulated(x, shift_2, scale_2)), approximate="tanh")
    return x + gate_2.unsqueeze(1) * linear(w, f"{name}.mlp.down_proj", h)


def theirs(w, config, images, times, classes):
    """The noise in pictures, by unfold and fold: PyTorch's own patches."""
    p, half = config.patch_size, config.n_embd // 2
    x = linear(w, "patch_proj", F.unfold(images[:, None], p, stride=p).transpose(1, 2)) + w["wpe.weight"]
    angles = times[:, None].double() * torch.exp(-np.log(10000) * torch.arange(half).double() / half)
    waves = torch.cat([angles.cos(), angles.sin()], 1).to(images.dtype)
    c = linear(w, "time_mlp.1", F.silu(linear(w, "time_mlp.0", waves)))
    c = F.silu(c + F.embedding(classes, w["class_table.weight"]))
    for i in range(config.n_layer):
        x = block(w, f"blocks.{i}", config, x, c)
    shift, scale = linear(w, "ada_proj", c).chunk(2, dim=1)
    patches = linear(w, "head", modulated(x, shift, scale)).transpose(1, 2)
    return F.fold(patches, (config.image_size,) * 2, p, stride=p)[:, 0]


def drawn(config, dtype):
    """A model with every parameter away from zero, where gates would hide the rest."""
    model, rng = DiT(config), np.random.default_rng(3)
    for p in model.parameters():
        p.data = p.data + rng.normal(0, 0.05, p.shape)
    return model.astype(dtype)


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("config", CONFIGS)
def test_the_whole_model(config, dtype, relative_error, torch_weights):
    model, rng = drawn(config, dtype), np.random.default_rng(1)
    images, noise = rng.normal(size=(2, 4, config.image_size, config.image_size)).astype(dtype)
    times, classes = rng.integers(1, 1001, 4), rng.integers(config.classes + 1, size=4)
    loss, w = model.loss(images, times, classes, noise), torch_weights(model)
    found = theirs(w, config, *(torch.tensor(a) for a in (images, times, classes)))
    their_loss = F.mse_loss(found, torch.tensor(noise))
    assert relative_error(model(images, times, classes).data, found) <= BARS[dtype]
    assert abs(loss.item() / their_loss.item() - 1) <= BARS[dtype]
    names, parameters = zip(*model.named_parameters(), strict=True)
    ours = dict(zip(names, ml.grad(loss, list(parameters)), strict=True))
    grads = dict(zip(w, torch.autograd.grad(their_loss, list(w.values())), strict=True))
    assert relative_error(ours, grads, FLOORS[dtype]) <= BARS[dtype]


@pytest.mark.parametrize("dtype", BARS)
def test_one_block(dtype, relative_error, torch_weights):
    config = CONFIGS[0]
    model, rng = drawn(config, dtype), np.random.default_rng(1)
    x, g = rng.normal(size=(2, 4, 16, config.n_embd)).astype(dtype)
    c = rng.normal(size=(4, config.n_embd)).astype(dtype)
    w, inputs = torch_weights(model), [ml.Tensor(a, requires_grad=True) for a in (x, c)]
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, c)]
    y, found = model.blocks[1](*inputs), block(w, "blocks.1", config, *leaves)
    assert relative_error(y.data, found) <= BARS[dtype]
    names = [name for name in w if name.startswith("blocks.1.")]
    parameters = dict(model.named_parameters())
    ours = ml.grad(y, [*inputs, *(parameters[name] for name in names)], cotangent=g)
    grads = torch.autograd.grad(found, [*leaves, *(w[name] for name in names)], torch.tensor(g))
    keys = ["x", "c", *names]
    ours, grads = (dict(zip(keys, side, strict=True)) for side in (ours, grads))
    assert relative_error(ours, grads, FLOORS[dtype]) <= BARS[dtype]


@pytest.mark.parametrize("dtype", BARS)
def test_a_layer_norm_with_a_weight_and_bias_for_each_picture(dtype, relative_error):
    rng = np.random.default_rng(0)
    x, weight, bias, g = (rng.normal(size=s).astype(dtype) for s in ((3, 5, 8), (3, 1, 8), (3, 1, 8), (3, 5, 8)))
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    found = F.layer_norm(leaves[0], (8,), eps=1e-5) * leaves[1] + leaves[2]
    inputs = [ml.Tensor(a, requires_grad=True) for a in (x, weight, bias)]
    y = ml.ops.layer_norm(*inputs)
    assert relative_error(y.data, found) <= BARS[dtype]
    for ours, grad in zip(
        ml.grad(y, inputs, cotangent=g), torch.autograd.grad(found, leaves, torch.tensor(g)), strict=True
    ):
        assert relative_error(ours, grad) <= BARS[dtype]
