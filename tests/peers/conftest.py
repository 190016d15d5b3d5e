"""What the comparisons with PyTorch, transformers and PEFT share. Nothing is downloaded: all weights are random."""

import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))  # for pytorch_rows.py, which two files share
os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers and PEFT are imported

MASK = float("-inf")
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")


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

    A layer is adapted where `weights` holds its lora_A and lora_B; scale is LoRA's s. Attention or an MLP has a
    bottleneck behind it, with GELU, where `weights` holds one.
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

        def part(name, x):
            adapter = f"{name}.adapter"
            if f"{adapter}.up.weight" not in weights:
                return x
            h = norm(f"{adapter}.norm", x) if f"{adapter}.norm.weight" in weights else x
            return x + linear(f"{adapter}.up", F.gelu(linear(f"{adapter}.down", h), approximate="tanh"))

        def heads(x):
            return x.view(b, t, config.n_head, -1).transpose(1, 2)  # (B, H, T, D)

        x = F.embedding(tokens, weights["wte.weight"]) + weights["wpe.weight"][:t]  # (B, T, C)
        for i in range(config.n_layer):
            h = norm(f"blocks.{i}.ln_1", x)
            q, k, v = (heads(linear(f"blocks.{i}.attn.{part}_proj", h)) for part in "qkv")
            scores = q @ k.transpose(-1, -2) / math.sqrt(c // config.n_head)  # (B, H, T, T)
            y = scores.masked_fill(future, MASK).softmax(-1) @ v  # (B, H, T, D)
            x = x + part(f"blocks.{i}.attn", linear(f"blocks.{i}.attn.o_proj", y.transpose(1, 2).reshape(b, t, c)))
            h = linear(f"blocks.{i}.mlp.up_proj", norm(f"blocks.{i}.ln_2", x))  # (B, T, 4C)
            x = x + part(f"blocks.{i}.mlp", linear(f"blocks.{i}.mlp.down_proj", F.gelu(h, approximate="tanh")))
        return F.linear(norm("ln_f", x), weights["wte.weight"])  # (B, T, V)

    return logits


@pytest.fixture(scope="session")
def as_gpt2():
    """as_gpt2(state): our parameters, or their gradients, under transformers' names for GPT-2.

    Its matrices are (d_in, d_out), with q, k and v in one.
    """

    def rename(state):
        renamed = {}
        for name, value in state.items():
            *path, layer, part = name.split(".")
            value = value.T if layer in LINEARS and part == "weight" else value
            if layer == "q_proj":
                layer, rest = "c_attn", [state[name.replace("q_proj", other)] for other in ("k_proj", "v_proj")]
                value = np.concatenate([value, *(r.T if part == "weight" else r for r in rest)], axis=-1)  # (C, 3C)
            elif layer in ("k_proj", "v_proj"):
                continue
            layer = {"o_proj": "c_proj", "up_proj": "c_fc", "down_proj": "c_proj"}.get(layer, layer)
            renamed[".".join(["transformer", *("h" if p == "blocks" else p for p in path), layer, part])] = value
        return renamed

    return rename


@pytest.fixture(scope="session")
def transformers_gpt2(as_gpt2):
    """transformers_gpt2(model): a GPT2LMHeadModel with the weights and the precision of our model without adapters."""
    torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'minilora[peers]'")
    assert os.environ["HF_HUB_OFFLINE"] == "1"

    def build(model):
        config = model.config
        sizes = dict(n_embd=config.n_embd, n_layer=config.n_layer, n_head=config.n_head)
        dropouts = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        gpt2_config = transformers.GPT2Config(
            vocab_size=config.vocab_size, n_positions=config.block_size, **sizes, **dropouts,
            bos_token_id=None, eos_token_id=None, attn_implementation="eager",
        )  # fmt: skip
        peer = transformers.GPT2LMHeadModel(gpt2_config).to(getattr(torch, str(model.wte.weight.dtype)))
        state = {name: torch.tensor(value) for name, value in as_gpt2(model.state_dict()).items()}
        peer.load_state_dict({**state, "lm_head.weight": state["transformer.wte.weight"]})
        return peer

    return build
