"""The decoder of single tokens computes what the model computes, and stands in only where it does."""

import numpy as np
import pytest

import minilora as ml
from minilora.autograd.tensor import no_grad
from minilora.nn import decode
from minilora.nn.decode import Decoder
from minilora.nn.language_model import Cache

TOKENS = np.random.default_rng(0).integers(0, 11, (3, 9))


def trained(bias: bool = True) -> ml.GPT:
    """A float64 model with no parameter at zero or one."""
    model = ml.GPT(ml.GPTConfig(11, 9, n_layer=2, n_head=2, n_embd=8, bias=bias)).astype("float64")
    rng = np.random.default_rng(1)
    for p in model.parameters():
        p.data += rng.normal(0, 0.3, p.shape)
    return model


@pytest.mark.parametrize("bias", [True, False])
def test_each_position_has_the_model_s_logits(bias):
    model, cache = trained(bias), Cache()
    with no_grad():
        model(TOKENS[:, :2], cache=cache)
        decoder, whole = Decoder(model, cache), model(TOKENS).data  # (B, T, V)
    for t in range(2, 9):
        np.testing.assert_allclose(decoder(TOKENS[:, t]), whole[:, t], rtol=1e-12, atol=1e-12)
    assert decoder.length == 9 and cache.length == 2  # the model's cache stays what it was


def moved(model: ml.GPT) -> ml.GPT:
    for p in model.parameters(trainable=True):
        p.data = p.data + 0.6 * np.random.default_rng(p.size).normal(size=p.shape)
    return model


def lora(merge: bool, base: ml.GPT | None = None, targets: tuple = ("*",)) -> ml.GPT:
    model = moved(ml.add_lora(base or trained(), ml.LoRAConfig(rank=2, target_modules=targets)))
    return merged(model) if merge else model


def merged(model: ml.GPT) -> ml.GPT:
    ml.merge_adapter(model)
    return model


def two(config, targets: tuple = ("*",)) -> ml.GPT:
    model = lora(merge=False, targets=targets)
    ml.add_adapter(model, config, name="other")
    return ml.set_adapter(moved(model), ["default", "other"]) or model


def mixed() -> ml.GPT:
    """One layer in another precision than the rest."""
    model = trained()
    model.blocks[0].attn.q_proj.astype("float32")
    return model


MODELS = {
    "plain": (trained, True),
    "merged LoRA": (lambda: lora(merge=True), True),
    "LoRA": (lambda: lora(merge=False), True),
    "prefix": (lambda: ml.add_adapter(trained(), ml.PrefixConfig(2)), True),
    "bottleneck": (lambda: ml.add_adapter(trained(), ml.PfeifferConfig(2)), False),
    "float32": (lambda: trained().astype("float32"), True),
    "float16": (lambda: trained().astype("float16"), False),  # sums need more than its numbers have
    "two precisions": (mixed, False),
    "quantised": (lambda: ml.quantize_model(trained(), block=4), True),
    "QLoRA": (lambda: lora(merge=False, base=ml.quantize_model(trained(), block=4)), True),
    "merged QLoRA": (lambda: lora(merge=True, base=ml.quantize_model(trained(), block=4)), True),
    "two adapters at once": (lambda: two(ml.LoRAConfig(rank=1, target_modules=("*",))), True),
    "LoRA beside DoRA": (lambda: two(ml.DoRAConfig(rank=2)), False),  # whose update is no product
    "DoRA": (lambda: moved(ml.add_adapter(trained(), ml.DoRAConfig(rank=2))), False),
    "merged DoRA": (lambda: merged(moved(ml.add_adapter(trained(), ml.DoRAConfig(rank=2)))), True),
    "PiSSA": (lambda: moved(ml.add_lora(trained(), ml.LoRAConfig(2, init="pissa"))), True),
    "a trained bias": (lambda: moved(ml.add_lora(trained(), ml.LoRAConfig(2, bias="lora_only"))), True),
    "two adapters on the table": (lambda: two(ml.LoRAConfig(rank=1, target_modules=("wte",)), ("wte",)), False),
    "VeRA": (lambda: moved(ml.add_adapter(trained(), ml.VeRAConfig(rank=4))), True),
    "MiSS": (lambda: moved(ml.add_adapter(trained(), ml.MiSSConfig(rank=4))), True),
    "IA3": (lambda: moved(ml.add_adapter(trained(), ml.IA3Config())), False),
    "LoRA on the table": (lambda: lora(merge=False, targets=("wte", "q_proj")), False),
}


@pytest.mark.filterwarnings("ignore:add_lora. wte.weight is read directly")
@pytest.mark.parametrize("small", [2**18, 0], ids=["copied", "as they are"])
@pytest.mark.parametrize("name", MODELS)
def test_who_decodes_and_that_the_text_is_the_same_without_a_cache(name, small, monkeypatch):
    monkeypatch.setattr(decode, "SMALL", small)
    make, decoded = MODELS[name]
    model, cache = make(), Cache()
    with no_grad():
        model(TOKENS[:, :2], cache=cache)
    assert isinstance(model._reader(cache), Decoder) == decoded
    texts = [model.generate(TOKENS[:, :2], 12, temperature=3.0, rng=0, use_cache=use) for use in (True, False)]
    np.testing.assert_array_equal(*texts)
    assert len(np.unique(texts[0][:, 2:])) > 2  # no text of one token over and over


@pytest.mark.parametrize("small", [2**18, 0], ids=["copied", "as they are"])
@pytest.mark.parametrize("bits", [False, True], ids=["floats", "few bits"])
def test_rows_with_adapters_of_their_own_are_decoded(bits, small, monkeypatch):
    monkeypatch.setattr(decode, "SMALL", small)
    model = ml.quantize_model(trained(), block=4) if bits else trained()
    ml.add_lora(model, ml.LoRAConfig(rank=2, target_modules=("q_proj", "v_proj", "up_proj")), name="one")
    moved(ml.add_lora(model, ml.LoRAConfig(rank=3, target_modules=("k_proj", "v_proj")), name="other"))
    with ml.rows_use(model, ["one", None, "other"]):
        cache = Cache()
        with no_grad():
            model(TOKENS[:, :2], cache=cache)
            decoder, whole = model._reader(cache), model(TOKENS).data  # (B, T, V)
        assert isinstance(decoder, Decoder)
        for t in range(2, 9):
            np.testing.assert_allclose(decoder(TOKENS[:, t]), whole[:, t], rtol=1e-5, atol=1e-5)
    assert not np.allclose(whole, model(TOKENS).data, atol=1e-2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("where", ["wte", "blocks.0.ln_1", "blocks.1.attn.q_proj", "blocks.0.mlp.up_proj", "ln_f"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e-30, 1e4, 1e15, 1e30])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_numbers_of_any_size_and_none_go_the_same_way(where, value, dtype):
    """Logits finite in one path are finite in the other, and then the same."""
    model, cache = trained().astype(dtype), Cache()
    p = model.get_module(where).weight
    p.data = (
        p.data * np.asarray(value, dtype) if np.isfinite(value) else np.where(p.data == p.data.max(), value, p.data)
    )
    with no_grad():
        model(TOKENS[:, :4], cache=cache)
        decoder = Decoder(model, cache)
        for t in range(4, 9):
            logits, other = decoder(TOKENS[:, t]), model(TOKENS[:, t : t + 1], cache=cache).data[:, 0]
            finite = np.isfinite(logits)
            np.testing.assert_array_equal(finite, np.isfinite(other))
            scale = np.abs(logits[finite]).max(initial=1e-300)
            tolerance = {"float32": 2e-4, "float64": 1e-10}[dtype]
            np.testing.assert_allclose(logits[finite] / scale, other[finite] / scale, atol=tolerance)


@pytest.mark.parametrize("tokens", [[-1, 0, 1], [11, 0, 1], [0.5, 0, 1]])
def test_the_decoder_takes_the_tokens_that_the_model_takes(tokens):
    model, cache = trained(), Cache()
    with no_grad():
        model(TOKENS[:, :2], cache=cache)
        decoder = Decoder(model, cache)
        with pytest.raises((ValueError, TypeError), match="Decoder: tokens"):
            decoder(np.array(tokens))
        for _ in range(7):
            decoder(np.array([1, 2, 3]))
        with pytest.raises(ValueError, match="Decoder: the context of block_size = 9 is full"):
            decoder(np.array([1, 2, 3]))
