"""Every family writes token by token as it reads at once, and prompts of several lengths go on as each does alone."""

from dataclasses import replace

import numpy as np
import pytest

import minilora as ml
from minilora.autograd.tensor import no_grad
from minilora.nn import decode
from minilora.nn.architectures import MODELS
from minilora.nn.language_model import Cache
from minilora.nn.transformer import Transformer

FAMILIES = ["gpt2", "llama-3.2-1b", "mistral-7b", "phi-3-mini", "qwen2-0.5b", "qwen3-0.6b", "gemma-2b", "gemma-3-1b"]
PROMPTS = [[3], [1, 2, 3, 4, 5, 6, 7], [12, 0, 5]]
TOKENS = np.array([[0] * (7 - len(prompt)) + prompt for prompt in PROMPTS])
MASK = np.array([[0] * (7 - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])


def drawn(name, dtype="float64"):
    """A small model of a family, every parameter drawn, with a window shorter than the prompts."""
    a = MODELS[name]
    sizes = dict(vocab_size=13, layers=3, heads=4, width=8, mlp_width=9, context=12, head_dim=4, rope_original=8)
    own = dict(positions=12 * bool(a.positions), kv_heads=2 if a.key_value_heads < a.heads else None)
    own |= {"window": 3 * bool(a.window), "full_layers": (1,) * bool(a.full_layers)}
    model, rng = Transformer(replace(a, **sizes, **own)).astype(dtype), np.random.default_rng(1)
    for p in model.parameters():
        p.data = rng.normal(0, 0.7, p.shape).astype(dtype)
    return model


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("small", [0, 10**6])
@pytest.mark.parametrize("mask", [None, MASK[:, 2:]])
def test_the_decoder_has_the_model_s_logits_at_each_position(name, small, mask, monkeypatch):
    """Whether q, k and v are one product or three; with room for one position more at first."""
    monkeypatch.setattr(decode, "SMALL", small)
    monkeypatch.setattr(decode, "ROOM", 1)
    model, cache, rng = drawn(name), Cache(), np.random.default_rng(3)
    more = rng.integers(13, size=(3, 7))
    with no_grad():
        model(TOKENS[:, 2:], cache=cache, mask=mask)
        decoder = model._reader(cache)
        assert isinstance(decoder, decode.Decoder)
        rest = None if mask is None else np.concatenate([mask, np.ones((3, 7), int)], axis=1)
        whole = model(np.concatenate([TOKENS[:, 2:], more], axis=1), mask=rest).data[:, 5:]  # (B, T, V)
    for t in range(7):
        np.testing.assert_allclose(decoder(more[:, t]), whole[:, t], rtol=1e-11, atol=1e-11)
    with pytest.raises(ValueError, match=r"^Decoder: the context = 12 is full$"):
        decoder(more[:, 0])


def test_layers_with_something_on_them_are_decoded_as_they_are_merged():
    model = ml.add_lora(drawn("smollm2-135m"), ml.LoRAConfig(rank=2, target_modules="*"))
    for p in model.parameters(trainable=True):
        p.data = p.data + 0.5
    cache = Cache()
    with no_grad():
        model(TOKENS, cache=cache, mask=MASK)
    assert isinstance(model._reader(cache), decode.Decoder)
    texts = [model.generate(TOKENS, 5, temperature=0, mask=MASK)]
    ml.merge_lora(model)
    assert isinstance(model._reader(cache), decode.Decoder)
    texts.append(model.generate(TOKENS, 5, temperature=0, mask=MASK))
    np.testing.assert_array_equal(*texts)


@pytest.mark.parametrize("name", ["llama-3.2-1b", "gemma-3-1b"])
@pytest.mark.parametrize("where", ["wte", "blocks.1.ln_1", "blocks.0.mlp.up_proj", "ln_f"])
@pytest.mark.parametrize("scale", [1e-30, 1e12, 1e25])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_numbers_of_any_size_go_the_same_way(name, where, scale):
    """float32, whose squares overflow: logits finite in one path are finite in the other, and then the same."""
    model, cache = drawn(name, "float32"), Cache()
    p = model.get_module(where).weight
    p.data = p.data * np.float32(scale)
    with no_grad():
        model(TOKENS, cache=cache)
        logits, other = model._reader(cache)(TOKENS[:, 0]), model(TOKENS[:, :1], cache=cache).data[:, 0]
    np.testing.assert_array_equal(np.isfinite(logits), np.isfinite(other))
    finite = np.isfinite(logits)
    size = np.abs(logits[finite]).max(initial=1e-30)
    np.testing.assert_allclose(logits[finite] / size, other[finite] / size, atol=2e-4)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_batch_with_padding_is_its_prompts_one_by_one(name, use_cache):
    model = drawn(name)
    together = model.generate(TOKENS, 5, temperature=0, mask=MASK, use_cache=use_cache)
    assert len(np.unique(together[:, 7:])) > 2
    for prompt, row in zip(PROMPTS, together, strict=True):
        np.testing.assert_array_equal(row[-5 - len(prompt) :], model.generate(prompt, 5, temperature=0))


@pytest.mark.parametrize("name", FAMILIES)
def test_with_or_without_a_cache_a_batch_that_outgrows_the_context_is_the_same(name):
    model = drawn(name)
    texts = [model.generate(TOKENS, 9, 1.5, rng=4, mask=MASK, use_cache=use) for use in (True, False)]
    np.testing.assert_array_equal(*texts)


def test_a_mask_of_ones_is_none_and_one_prompt_may_have_one():
    for model in (drawn("smollm2-135m"), ml.GPT(ml.GPTConfig(13, 12, 2, 2, 8))):
        for prompt in (TOKENS, TOKENS[1]):
            texts = [model.generate(prompt, 4, rng=2, mask=mask) for mask in (None, np.ones(prompt.shape, bool))]
            np.testing.assert_array_equal(*texts)
    alone = drawn("smollm2-135m").generate(TOKENS[0], 4, mask=MASK[0])
    np.testing.assert_array_equal(alone[6:], drawn("smollm2-135m").generate(PROMPTS[0], 4))


def test_texts_stop_each_at_its_own_token():
    model = drawn("smollm2-135m")
    whole = model.generate(TOKENS, 5, temperature=0, mask=MASK)[:, 7:]
    stop = {int(whole[0, 1]), int(whole[1, 3])}
    stopped = model.generate(TOKENS, 5, temperature=0, mask=MASK, stop=stop)[:, 7:]
    for row, text in zip(stopped, whole, strict=True):
        ends = np.flatnonzero(np.isin(text, [*stop]))
        end = ends[0] if len(ends) else 4
        np.testing.assert_array_equal(row[: end + 1], text[: end + 1])
        assert (row[end:] == row[end]).all()
    np.testing.assert_array_equal(stopped, model.generate(TOKENS, 5, 0, mask=MASK, stop=np.array([*stop]))[:, 7:])


@pytest.mark.parametrize(
    "mask",
    [MASK[:, ::-1], MASK[:2], MASK[:, 1:], MASK * 2, 1 - MASK, MASK * 0, "1", [[1], [1, 1]], np.where(MASK, 1, np.nan)],
)
def test_a_mask_that_is_none_of_padding_on_the_left_is_refused(mask):
    with pytest.raises((ValueError, TypeError), match=r"^generate: [^\n]*$"):
        drawn("smollm2-135m").generate(TOKENS, 2, mask=mask)
    with pytest.raises((ValueError, TypeError), match=r"^generate: [^\n]*$"):
        gpt().generate(TOKENS, 2, mask=mask)


def gpt(dtype="float64"):
    """A GPT of a few drawn numbers."""
    model, rng = ml.GPT(ml.GPTConfig(13, 12, 3, 2, 8)).astype(dtype), np.random.default_rng(1)
    for p in model.parameters():
        p.data = rng.normal(0, 0.7, p.shape).astype(dtype)
    return model


def on(model, config, name="default"):
    """A model with an adapter that does something."""
    ml.add_adapter(model, config, name=name)
    for p in model.parameters(trainable=True):
        p.data = p.data + np.random.default_rng(p.size).normal(0, 0.4, p.shape)
    return model


LORA = ml.LoRAConfig(rank=2, target_modules="*")
SERVED = {  # each of a model that is made anew
    "GPT": gpt,
    "GPT and LoRA": lambda: on(gpt(), LORA),
    "GPT of few bits and LoRA": lambda: on(ml.quantize_model(gpt("float32"), block=4), LORA),
    "GPT and a bottleneck": lambda: on(gpt(), ml.PfeifferConfig(2)),
    "GPT and virtual tokens": lambda: on(gpt(), ml.PromptConfig(tokens=3)),
    "GPT and a prefix": lambda: on(gpt(), ml.PrefixConfig(3)),
    "GPT and DoRA": lambda: on(gpt(), ml.DoRAConfig(rank=2)),
    "Llama and LoRA": lambda: on(drawn("llama-3.2-1b"), LORA),
    "windows and a prefix": lambda: on(drawn("mistral-7b"), ml.PrefixConfig(3)),
    "Gemma 3 of few bits": lambda: on(ml.quantize_model(drawn("gemma-3-1b", "float32"), block=4), LORA),
}


@pytest.mark.parametrize("steps", [4, pytest.param(9, marks=pytest.mark.slow)])  # the second outgrows the context
@pytest.mark.parametrize("name", SERVED)
def test_a_list_of_prompts_gives_what_each_gives_alone(name, steps):
    model = SERVED[name]()
    prompts = [[3], [1, 2, 3, 4, 5], np.array([12, 0, 5])]
    texts = model.generate(prompts, steps, temperature=0)
    alone = [model.generate(prompt, steps, temperature=0) for prompt in prompts]
    drawn_texts = model.generate(prompts, steps, 1.4, rng=[7, 8, np.random.default_rng(9)], top_k=7)
    for i, prompt in enumerate(prompts):
        np.testing.assert_array_equal(texts[i], alone[i])
        np.testing.assert_array_equal(drawn_texts[i], model.generate(prompt, steps, 1.4, rng=7 + i, top_k=7))
    stop = {int(alone[0][2])}
    for text, prompt in zip(model.generate(prompts, steps, 0, stop=stop), prompts, strict=True):
        np.testing.assert_array_equal(text, model.generate(prompt, steps, 0, stop=stop))


def test_prompts_may_be_of_any_kind_of_integers():
    texts = gpt().generate([[3], (1, 2), range(1, 4), np.array([5, 6], "uint64"), ml.Tensor([7, 8, 9, 1])], 2)
    assert [len(text) for text in texts] == [3, 4, 5, 4, 6] and {text.dtype for text in texts} == {np.dtype("int64")}


def test_prompts_of_several_lengths_each_with_its_own_adapter():
    model = on(
        on(gpt(), ml.LoRAConfig(rank=2), "one"), ml.LoRAConfig(rank=3, target_modules=("v_proj", "mlp.*")), "two"
    )
    prompts, names = [[3], [1, 2, 3, 4, 5], [12, 0, 5]], ["two", None, "one"]
    with ml.rows_use(model, names):
        texts = model.generate(prompts, 6, temperature=0)
    for prompt, text, name in zip(prompts, texts, names, strict=True):
        ml.set_adapter(model, name)
        np.testing.assert_array_equal(text, model.generate(prompt, 6, temperature=0))


def test_rows_of_one_length_stay_an_array_and_each_may_have_a_seed():
    model = gpt()
    texts = model.generate([[1, 2], [1, 2]], 6, 2.0, rng=[3, 4])
    assert texts.shape == (2, 8) and (texts[0] != texts[1]).any()
    np.testing.assert_array_equal(model.generate([1, 2], 6, 2.0, rng=[4]), texts[1])


def test_padding_is_not_seen_by_a_gpt_in_any_pass():
    """Logits, and gradients where blocks are computed again; what stands where padding is changes nothing."""
    model, other = gpt(), np.where(MASK, TOKENS, 7)
    logits = [model(tokens, mask=MASK).data[MASK == 1] for tokens in (TOKENS, other)]
    np.testing.assert_array_equal(*logits)
    np.testing.assert_allclose(logits[0][:1], model(np.array([[3]])).data[0], rtol=1e-12)
    gradients = []
    for again in (False, True):
        model.recompute_blocks = again
        gradients.append(ml.grad((model(TOKENS, mask=MASK) * MASK[..., None]).sum(), model.parameters()))
    for g, same in zip(*gradients, strict=True):
        np.testing.assert_array_equal(g, same)


@pytest.mark.parametrize(
    ("prompts", "more", "said"),
    [
        ([[1], []], {}, "prompt 1 has shape (0,), expected (T,), T at least 1"),
        ([[1], [[1, 2], [3, 4]]], {}, "prompt 1 has shape (2, 2), expected (T,), T at least 1"),
        ([[1], [2, 13]], {}, "generate: tokens"),
        ([[1], [2, 0.5]], {}, "generate: prompt 1 has dtype float64, expected integers"),
        ([[True], [1, 2]], {}, "generate: prompt 0 has dtype bool, expected integers"),
        ([[1], "text"], {}, "expected integers"),
        ([[1], [2, "a"]], {}, "generate: prompt 1: got"),
        ([[1], [2, 3]], {"mask": [[0, 1], [1, 1]]}, "prompts of several lengths need no mask"),
        ([[1], [2, 3]], {"rng": [1, 2, 3]}, "generate: rng has 3 seeds, expected one, or one for each of 2 prompts"),
        ([[1], [2, 3]], {"rng": [1, -2]}, "generate: rng = -2, expected a seed"),
        ([[1], [2, 3]], {"rng": []}, "generate: rng has 0 seeds"),
    ],
)
def test_a_list_that_is_none_of_prompts_is_refused_in_one_line(prompts, more, said):
    with pytest.raises((ValueError, TypeError)) as error:
        gpt().generate(prompts, 2, **more)
    assert said in str(error.value) and "\n" not in str(error.value) and str(error.value).startswith("generate: ")
