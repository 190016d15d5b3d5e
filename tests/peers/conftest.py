"""What the comparisons with PyTorch, transformers and PEFT share. Nothing is downloaded: all weights are random."""

import math
import os

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers and PEFT are imported

MASK = float("-inf")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """PyTorch on one core: its matrices here are so small that a second core would only be waited for."""
    torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def relative_error():
    """relative_error(ours, theirs, floor): of two arrays or two dicts of arrays, the largest relative error.

    Each array's largest difference is divided by its largest entry. Some gradients are zero in exact arithmetic (the
    bias of the keys: softmax does not see a shift) and hold nothing but rounding, so no array is measured on a scale
    below `floor` times the largest entry of all.
    """

    def array(value):
        return np.asarray(value.detach() if hasattr(value, "detach") else value)

    def measure(ours, theirs, floor=1e-4):
        if not isinstance(theirs, dict):
            ours, theirs = {"": ours}, {"": theirs}
        assert ours.keys() == theirs.keys()
        pairs = [(array(ours[name]), array(theirs[name])) for name in theirs]
        assert all(a.shape == b.shape for a, b in pairs)
        least = floor * max(np.abs(b).max(initial=0) for _, b in pairs) or 1.0
        errors = [np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), least) for a, b in pairs]
        return float(np.nan_to_num(np.max(errors), nan=np.inf))  # Python's max would pass over a NaN

    return measure


@pytest.fixture(scope="session")
def randomize():
    """randomize(model, rng): every parameter from N(0, 0.2), B and the biases too, so that no gradient is idle."""

    def fill(model, rng):
        for p in model.parameters():
            p.data[...] = rng.normal(0, 0.2, p.shape)
        return model

    return fill


@pytest.fixture(scope="session")
def torch_weights():
    """torch_weights(model): {name: a PyTorch leaf with the same values, trainable where ours is}."""
    torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
    return lambda model: {
        name: torch.tensor(p.data, requires_grad=p.requires_grad) for name, p in model.named_parameters()
    }


@pytest.fixture(scope="session")
def torch_gpt():
    """torch_gpt(weights, config, tokens, scale): the logits of GPT-2 with LoRA, in PyTorch's own functions.

    A layer is adapted where `weights` holds its lora_A and lora_B; scale is LoRA's s.
    """
    torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
    F = torch.nn.functional

    def logits(weights, config, tokens, scale=0.0):
        (b, t), c = tokens.shape, config.n_embd
        future = torch.ones(t, t, dtype=torch.bool).triu(1)

        def linear(name, x):
            y = F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))
            if f"{name}.lora_A" in weights:
                y = y + scale * (x @ weights[f"{name}.lora_A"].T @ weights[f"{name}.lora_B"].T)
            return y

        def norm(name, x):
            return F.layer_norm(x, (c,), weights[f"{name}.weight"], weights.get(f"{name}.bias"), 1e-5)

        def heads(x):
            return x.view(b, t, config.n_head, -1).transpose(1, 2)  # (B, H, T, D)

        x = F.embedding(tokens, weights["wte.weight"]) + weights["wpe.weight"][:t]  # (B, T, C)
        for i in range(config.n_layer):
            h = norm(f"blocks.{i}.ln_1", x)
            q, k, v = (heads(linear(f"blocks.{i}.attn.{part}_proj", h)) for part in "qkv")
            scores = q @ k.transpose(-1, -2) / math.sqrt(c // config.n_head)  # (B, H, T, T)
            y = scores.masked_fill(future, MASK).softmax(-1) @ v  # (B, H, T, D)
            x = x + linear(f"blocks.{i}.attn.o_proj", y.transpose(1, 2).reshape(b, t, c))
            h = linear(f"blocks.{i}.mlp.up_proj", norm(f"blocks.{i}.ln_2", x))  # (B, T, 4C)
            x = x + linear(f"blocks.{i}.mlp.down_proj", F.gelu(h, approximate="tanh"))
        return F.linear(norm("ln_f", x), weights["wte.weight"])  # (B, T, V)

    return logits
