"""GPT, with and without LoRA, against PyTorch: the loss and every gradient on drawn shapes, in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minilora as ml
from minilora.nn.language_model import sample

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")

BAR = 1e-10  # relative
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")


@st.composite
def cases(draw, bias=None):
    """A configuration, tokens and targets (B, T) with T <= block_size, and a generator for the weights.

    The width is 4 or more: of two numbers layer norm leaves only which is larger, and its gradient is all rounding.
    """
    heads, time = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    config = ml.GPTConfig(
        vocab_size=draw(st.integers(2, 40)),
        block_size=time + draw(st.integers(0, 4)),
        n_layer=draw(st.integers(1, 3)),
        n_head=heads,
        n_embd=heads * draw(st.integers(4 if heads == 1 else 2, 8)),
        bias=draw(st.booleans()) if bias is None else bias,
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(1, 4)), time
    return config, rng.integers(config.vocab_size, size=shape), rng.integers(config.vocab_size, size=shape), rng


adapters = st.builds(
    ml.LoRAConfig,
    rank=st.integers(1, 2),
    alpha=st.floats(0.5, 32),
    target_modules=st.lists(st.sampled_from(LINEARS), min_size=1, unique=True).map(tuple),
    rank_stabilized=st.booleans(),
)


def ours(model, tokens, targets):
    """Logits, loss, and {name: gradient} of everything that trains."""
    loss = model.loss(tokens, targets)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return model(tokens).data, loss.data, dict(zip(trained, ml.grad(loss, list(trained.values())), strict=True))


def theirs(logits, parameters, targets):
    """The same three from PyTorch, given the logits and {name: parameter}."""
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten())
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    return logits, loss, dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_gpt_equals_pytorch(case, randomize, torch_weights, torch_gpt, relative_error):
    config, tokens, targets, rng = case
    model = randomize(ml.GPT(config).astype("float64"), rng)
    weights = torch_weights(model)
    peer = theirs(torch_gpt(weights, config, torch.tensor(tokens)), weights, targets)
    assert max(map(relative_error, ours(model, tokens, targets), peer)) <= BAR


@settings(max_examples=100, deadline=None)
@given(case=cases(), adapter=adapters)
def test_gpt_with_lora_equals_pytorch(case, adapter, randomize, torch_weights, torch_gpt, relative_error):
    """With the base frozen there are gradients of A and B alone; thawed, the same ones, and W and b have theirs."""
    config, tokens, targets, rng = case
    model = randomize(ml.add_lora(ml.GPT(config).astype("float64"), adapter), rng)
    frozen = ours(model, tokens, targets)[2]
    for p in model.parameters():
        p.requires_grad = True
    thawed = ours(model, tokens, targets)
    assert frozen.keys() == {name for name in thawed[2] if name.endswith(("lora_A", "lora_B"))}
    assert all(np.array_equal(g, thawed[2][name]) for name, g in frozen.items())
    s = adapter.alpha / (adapter.rank**0.5 if adapter.rank_stabilized else adapter.rank)
    weights = torch_weights(model)
    peer = theirs(torch_gpt(weights, config, torch.tensor(tokens), s), weights, targets)
    assert max(map(relative_error, thawed, peer)) <= BAR


@settings(max_examples=40, deadline=None)
@given(case=cases(bias=True))
def test_gpt_equals_transformers(case, randomize, relative_error, as_gpt2, transformers_gpt2):
    """GPT2LMHeadModel, the model whose choices are ours, with our weights."""
    config, tokens, targets, rng = case
    model = randomize(ml.GPT(config).astype("float64"), rng)
    peer = transformers_gpt2(model)
    logits, loss, gradients = ours(model, tokens, targets)
    peers = theirs(peer(torch.tensor(tokens)).logits, dict(peer.named_parameters()), targets)
    assert max(map(relative_error, (logits, loss, as_gpt2(gradients)), peers)) <= BAR


@pytest.mark.parametrize("top_k", [None, 5, 40])
def test_nucleus_sampling_keeps_what_transformers_keeps(top_k):
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    rng = np.random.default_rng(0)
    logits = rng.normal(scale=3, size=(20, 50))
    for temperature, top_p in ((0.5, 0.3), (1.0, 0.9), (2.0, 0.99)):
        kept = TemperatureLogitsWarper(temperature)(None, torch.tensor(logits))
        kept = kept if top_k is None else TopKLogitsWarper(top_k)(None, kept)
        p = torch.softmax(TopPLogitsWarper(top_p)(None, kept), -1).numpy()
        drawn = np.array([sample(logits, temperature, top_k, rng, top_p) for _ in range(1500)])  # (1500, 20)
        shares = np.stack([np.bincount(column, minlength=50) for column in drawn.T]) / len(drawn)
        np.testing.assert_array_equal(shares[p == 0], 0)
        np.testing.assert_allclose(shares, p, atol=0.06)
