"""The transformer of every family, on its own: counts, caches, padding, derivatives. Beside peers: tests/peers."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

import minilora as ml
from minilora.adapters.qlora import QuantizedEmbedding, QuantizedLinear
from minilora.adapters.quantization import half
from minilora.nn.architectures import MODELS, find, parameters, size
from minilora.nn.language_model import Cache
from minilora.nn.transformer import Transformer, frequencies

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


@pytest.mark.parametrize("config", [ml.PromptConfig(2), ml.PrefixConfig(2)], ids=["prompt", "prefix"])
@pytest.mark.parametrize("name", ["gpt2", "mistral-7b", "gemma-3-1b"])
def test_virtual_tokens_padding_and_a_window_at_once(name, config):
    """A text padded on the left is as alone: a window is of tokens that count, the virtual ones in front among them."""
    model, mask = ml.add_adapter(drawn(name, window=6 * bool(MODELS[name].window)), config, rng=1), np.ones((2, 9), int)
    mask[1, :5] = 0
    alone = model(TOKENS[1:, 5:]).data[0]
    np.testing.assert_allclose(model(TOKENS, mask=mask).data[1, 5:], alone, rtol=0, atol=1e-12)
    text = model.generate(TOKENS, 6, temperature=0, mask=mask)[1, 5:]
    np.testing.assert_array_equal(text, model.generate(TOKENS[1, 5:], 6, temperature=0))
    np.testing.assert_array_equal(text, model.generate(TOKENS, 6, temperature=0, mask=mask, use_cache=False)[1, 5:])


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


@pytest.mark.parametrize(
    "architecture, words",
    [
        (MODELS["deberta-v2-xxlarge"], "of the family 'deberta-v2', counted and not run"),
        (small("llama-2-7b", head_dim=3), "3 of the 3 features of a head are turned, expected an even number"),
        ("lama-2-7b", "Transformer: unknown model 'lama-2-7b' .did you mean 'llama-2-7b'"),
        ({"model_type": "llama", "num_local_experts": 8}, "Transformer: llama: num_local_experts = 8 is not known"),
    ],
)
def test_what_is_not_built_says_so_in_one_line(architecture, words):
    with pytest.raises(ValueError, match=words) as error:
        Transformer(architecture)
    assert "\n" not in str(error.value)


def test_a_mask_that_is_none():
    model = drawn("llama-2-7b")
    for mask in (np.ones((2, 8)), np.full((2, 9), 2), np.full((2, 9), np.nan), [[True] * 9]):
        with pytest.raises(ValueError, match=r"Transformer: mask is .*expected \(2, 9\): 1 where a token counts"):
            model(TOKENS, mask=mask)


def test_a_transformer_is_no_npz():
    with pytest.raises(TypeError, match=r"save_model: got .*ml.save_pretrained\(model, folder\) writes a Transformer"):
        ml.save_model(drawn("llama-2-7b"), "new.npz")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_of_lora_trains_the_adapter_alone(name):
    model = ml.add_lora(drawn(name, "float32"), ml.LoRAConfig(rank=2, target_modules=("q_proj", "v_proj", "*mlp*")))
    before, ps = model.state_dict(), model.parameters(trainable=True)
    optimizer = ml.AdamW(ps, lr=1e-2)
    mask = np.ones((2, 9), int)
    mask[1, :4] = 0
    losses = [ml.train_step(model, optimizer, TOKENS, np.roll(TOKENS, -1, 1), mask=mask) for _ in range(8)]
    assert losses[-1] < losses[0]
    moved = {path for path, array in model.state_dict().items() if (array != before[path]).any()}
    assert moved == {path for path in before if "lora" in path}


def test_llama_3s_frequencies():
    """Quick pairs stay, slow ones are slowed by the factor, and those between are between (Llama 3.1's own numbers)."""
    a = replace(MODELS["llama-3.2-1b"], head_dim=64)
    plain, scaled = frequencies(a, a.rope_base), frequencies(a, a.rope_base, a.rope_scaling)
    turn = 2 * np.pi / plain  # positions that a whole turn takes
    quick, slow = turn < 8192 / 4, turn > 8192 / 1
    np.testing.assert_array_equal(scaled[quick], plain[quick])
    np.testing.assert_allclose(scaled[slow], plain[slow] / 32, rtol=1e-15)
    between = ~quick & ~slow
    assert between.any() and (plain[between] / 32 < scaled[between]).all() and (scaled[between] < plain[between]).all()


@pytest.mark.slow
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("name", ["llama-2-7b", "gemma-2b"])
def test_the_loss_of_a_large_vocabulary_never_holds_all_logits(name, held):
    """As of the logits, by the table or a head of its own, in floats or held in 16 bits."""
    v = 2**19
    model, tokens = drawn(name, "float32", vocab_size=v, layers=1), TOKENS * 9999
    if held and model.head is not None:
        model.head = QuantizedLinear.of(half(model.head.weight.data, "float16"), None)
    elif held:
        model.wte = QuantizedEmbedding(half(model.wte.weight.data, "float16"))
    ps = [p for path, p in model.named_parameters() if path not in ("wte.weight", "head.weight")]
    expected = ml.ops.cross_entropy(model(tokens), tokens)
    tracemalloc.start()
    found = model.loss(tokens, tokens)
    gradients = ml.grad(found, ps)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert abs(found.item() - expected.item()) < 1e-5
    for g, e in zip(gradients, ml.grad(expected, ps), strict=True):
        np.testing.assert_allclose(g, e, rtol=0, atol=1e-5 * np.abs(e).max() + 1e-9)
    assert peak < 3 * 4 * 2**21  # a stretch of logits, and what it is made with; all of them are 2^23
