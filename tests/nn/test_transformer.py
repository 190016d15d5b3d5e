"""The transformer of every family, on its own: counts, caches, padding, derivatives. Beside peers: tests/peers."""

from dataclasses import replace

import numpy as np
import pytest

import minilora as ml
from minilora.nn.architectures import MODELS, find, parameters, size
from minilora.nn.language_model import Cache
from minilora.nn.transformer import Transformer

SMALL = dict(vocab_size=13, layers=3, heads=4, width=8, mlp_width=9, context=24, head_dim=4, rope_original=8)
DECODERS = [name for name, model in MODELS.items() if model.causal]
FAMILIES = ["gpt2", "llama-3.2-1b", "mistral-7b", "phi-3-mini", "qwen2-0.5b", "qwen3-0.6b", "gemma-2b", "gemma-3-1b"]
TOKENS = np.random.default_rng(0).integers(13, size=(2, 9))


def small(name, **other):
    """A named model with everything that sets it apart, and few of everything."""
    a = MODELS[name]
    own = dict(positions=24 * bool(a.positions), kv_heads=2 if a.key_value_heads < a.heads else None)
    own |= {"window": 3 * bool(a.window), "full_layers": (1,) * bool(a.full_layers)}
    return replace(a, **{**SMALL, **own, **other})


def drawn(name, dtype="float64", **other):
    """A small model whose every parameter is drawn, norms and biases too."""
    model, rng = Transformer(small(name, **other)).astype(dtype), np.random.default_rng(1)
    for p in model.parameters():
        p.data[...] = rng.normal(0, 0.3, p.shape)
        p.changed()
    return model


@pytest.mark.parametrize("name", DECODERS)
def test_what_is_built_is_what_is_counted(name):
    model = Transformer(small(name))
    expected = parameters(model.architecture)
    assert {path: p.shape for path, p in model.named_parameters()} == expected
    assert [path for path, _ in model.named_parameters()] == list(expected)  # in the order of the forward pass
    assert model.count() == size(expected) and find(model) is model.architecture


def test_a_gpt_and_a_transformer_of_its_architecture_are_one_model():
    gpt = ml.GPT(ml.GPTConfig(13, 24, 2, 2, 8), rng=3).astype("float64")
    model = Transformer(find(gpt)).astype("float64")
    model.load_state_dict(gpt.state_dict())
    np.testing.assert_allclose(model(TOKENS).data, gpt(TOKENS).data, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(model.generate(TOKENS, 20, rng=5), gpt.generate(TOKENS, 20, rng=5))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cache_changes_nothing(name):
    """In pieces of 4, 1 and 4 tokens, with padding before a text and without; the window is shorter than the text."""
    model, mask = drawn(name), np.ones((2, 9), int)
    for padding in (0, 3):
        mask[1, :padding] = 0
        cache = Cache()
        given = {"mask": mask} if padding else {}
        whole = model(TOKENS, **given).data
        parts = [
            model(TOKENS[:, part], cache=cache, **({"mask": mask[:, part]} if padding else {})).data
            for part in (slice(0, 4), slice(4, 5), slice(5, 9))
        ]
        real = mask.astype(bool)
        np.testing.assert_allclose(np.concatenate(parts, axis=1)[real], whole[real], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_with_a_cache_without_and_beyond_the_context(name):
    model = drawn(name, context=12, positions=12 * bool(MODELS[name].positions))
    cached = model.generate(TOKENS, 8, temperature=0)
    np.testing.assert_array_equal(cached, model.generate(TOKENS, 8, temperature=0, use_cache=False))
    with pytest.raises(ValueError, match="Transformer: 13 tokens exceed the context = 12"):
        model(np.zeros((1, 13), int))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["central", "complex-step", "directional"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_gradient_three_ways(name, method):
    sizes = dict(vocab_size=5, layers=2, heads=2, kv_heads=1, width=4, mlp_width=3, head_dim=4, window=2, context=8)
    model = drawn(name, **sizes, positions=8 * bool(MODELS[name].positions))
    tokens, mask = TOKENS[:, :4] % 5, np.array([[0, 1, 1, 1], [1, 1, 1, 1]])
    loss = lambda *_: model.loss(tokens, np.roll(tokens, -1, 1), mask=mask)
    report = ml.gradcheck(loss, model.parameters(), method=method)
    assert report, str(report)
