"""Weighted sums of adapters against PEFT's `add_weighted_adapter`, on the same A and B."""

import numpy as np
import pytest

import minilora as ml
from minilora.adapters.combine import combine_adapters

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
peft = pytest.importorskip("peft", reason="this test needs PEFT: pip install 'minilora[peers]'")

BARS = {"float32": 1e-5, "float64": 1e-10}
HOW = {"concatenate": "cat", "svd": "svd", "linear": "linear"}
WEIGHTS = [(0.75, 0.25), (1.0, -1.0), (-0.5, 2.0, 0.25)]
MODEL = ml.GPTConfig(vocab_size=11, block_size=4, n_layer=2, n_head=2, n_embd=16)


def ours_and_theirs(count, dtype, ranks):
    """Adapters of different scales on our model, and the same with PEFT on bare linear layers."""
    model = ml.GPT(MODEL).astype(dtype)
    linears = {"q_proj": (16, 16), "up_proj": (16, 64)}
    blocks = [torch.nn.ModuleDict({k: torch.nn.Linear(*shape) for k, shape in linears.items()}) for _ in range(2)]
    peer = None
    for i, name in enumerate(["docs", "code", "names"][:count]):
        config = ml.LoRAConfig(ranks[i], alpha=3 + i, target_modules=tuple(linears))
        randomize_adapter(ml.add_lora(model, config, name=name), np.random.default_rng(i))
        theirs = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=list(linears))
        if peer is None:
            peer = peft.get_peft_model(torch.nn.Sequential(*blocks), theirs, adapter_name=name)
        else:
            peer.add_adapter(name, theirs)
        for path, layer in model.adapters[name].modules.items():
            target = peer_layer(peer, path)
            target.lora_A[name].weight.data = torch.tensor(layer.lora_A.data)
            target.lora_B[name].weight.data = torch.tensor(layer.lora_B.data)
    return model, peer.to(getattr(torch, dtype))


def randomize_adapter(model, rng):
    for p in model.parameters(trainable=True):
        p.data[...] = rng.normal(0, 0.3, p.shape)


def peer_layer(peer, path):
    _, block, _, kind = path.split(".")
    return peer.base_model.model[int(block)][kind]


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("how", HOW)
def test_weighted_sums(how, weights, dtype, relative_error):
    ranks = (2, 2, 2) if how == "linear" else (2, 4, 3)
    model, peer = ours_and_theirs(len(weights), dtype, ranks)
    names = list(model.adapters)
    rank = 3 if how == "svd" else None
    combine_adapters(model, dict(zip(names, weights, strict=True)), how, rank, name="sum")
    peer.add_weighted_adapter(names, list(weights), "sum", combination_type=HOW[how], svd_rank=rank)
    deltas = ml.delta_weights(model)
    theirs = {path: peer_layer(peer, path).get_delta_weight("sum") for path in deltas}
    bar = 1e-6 if (how, dtype) == ("linear", "float64") else BARS[dtype]  # PEFT rounds the roots to float32
    assert relative_error(deltas, theirs) <= bar
    ranks = {path: layer.lora_A.shape[0] for path, layer in model.adapters["sum"].modules.items()}
    assert ranks == {path: peer_layer(peer, path).lora_A["sum"].out_features for path in deltas}
