"""Prefixes: the attention they take part in, the network that makes them, and that it is gone once it is folded."""

import numpy as np
import pytest
import scipy.special
import scipy.stats

import minilora as ml
from minilora.adapters.attach import add_adapter
from minilora.adapters.prefix import Prefix, PrefixConfig, fold_prefix
from minilora.adapters.prompt import PromptConfig
from minilora.adapters.state import active_adapter, adapter_parameters
from minilora.nn.language_model import Cache
from minilora.nn.storage import load_arrays

TOKENS = np.random.default_rng(0).integers(0, 11, (3, 6))
TARGETS = np.random.default_rng(1).integers(0, 11, (3, 6))


def base(dtype: str = "float64", n_head: int = 2, block_size: int = 9) -> ml.GPT:
    """A GPT whose logits are not tiny, so that a change shows."""
    model = ml.GPT(ml.GPTConfig(11, block_size, 2, n_head, 8))
    for p in model.parameters():
        p.data *= 8
    return model.astype(dtype)


# What a prefix computes


def test_attention_with_a_prefix_is_the_equation():
    """Position by position and head by head, with SciPy's softmax: every prefix is seen, and no later token."""
    model = add_adapter(base(), PrefixConfig(3), rng=1)
    attention, prefix, d = model.blocks[1].attn, model.front, 4
    x = np.random.default_rng(2).standard_normal((2, 5, 8))
    cache = prefix.fill(model, Cache(), 2)
    ours = attention(ml.Tensor(x), cache=cache, block=1).data
    q, k, v = (x @ m.weight.data.T + m.bias.data for m in (attention.q_proj, attention.k_proj, attention.v_proj))
    y = np.zeros_like(x)
    for b, t, h in np.ndindex(2, 5, 2):
        part = slice(h * d, (h + 1) * d)
        keys = np.vstack([prefix.keys.data[1][:, part], k[b, : t + 1, part]])  # (P + t + 1, D)
        values = np.vstack([prefix.values.data[1][:, part], v[b, : t + 1, part]])
        y[b, t, part] = scipy.special.softmax(keys @ q[b, t, part] / np.sqrt(d)) @ values
    theirs = y @ attention.o_proj.weight.data.T + attention.o_proj.bias.data
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_prompt_is_the_prefix_of_the_keys_and_values_it_computes():
    model = add_adapter(base(), PromptConfig(3, init="random"), rng=1)
    logits, cache = model(TOKENS).data, model.front.fill(model, Cache(), 1)
    add_adapter(model, PrefixConfig(3), name="prefix")
    for i, pair in cache.pairs.items():
        for p, x in zip((model.front.keys, model.front.values), pair, strict=True):
            p.data[i] = x.data[0].transpose(1, 0, 2).reshape(3, 8)  # (H, P, D) -> (P, C)
    np.testing.assert_allclose(model(TOKENS).data, logits, rtol=1e-12, atol=1e-12)


def test_the_network_is_the_equation():
    """[K', V'] = W_2 tanh(W_1 e + b_1) + b_2, block after block, keys before values."""
    model = add_adapter(base(), PrefixConfig(3, hidden=5), rng=1)
    e, w1, b1, w2, b2 = (p.data for p in adapter_parameters(model).values())
    assert [a.shape for a in (e, w1, b1, w2, b2)] == [(3, 8), (5, 8), (5,), (32, 5), (32,)]
    keys, values = model.front.keys_and_values()
    for p in range(3):
        row = w2 @ np.tanh(w1 @ e[p] + b1) + b2
        for i in range(2):
            np.testing.assert_allclose(keys.data[i, p], row[16 * i : 16 * i + 8], rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(values.data[i, p], row[16 * i + 8 : 16 * i + 16], rtol=1e-12, atol=1e-14)


# Where it starts


def test_random_starts():
    """N(0, 1), and for the network's layers U(-1/sqrt(d_in), 1/sqrt(d_in))."""
    model = ml.GPT(ml.GPTConfig(5, 100, 2, 1, 32))
    normal = scipy.stats.norm(0, 1).cdf
    uniform = lambda d_in: scipy.stats.uniform(-(d_in**-0.5), 2 * d_in**-0.5).cdf
    laws = {"keys": normal, "values": normal, "embedding": normal}
    laws |= {f"inner.{part}": uniform(32) for part in ("weight", "bias")}
    laws |= {f"outer.{part}": uniform(48) for part in ("weight", "bias")}
    for name, hidden in (("plain", None), ("network", 48)):
        add_adapter(model, PrefixConfig(40, hidden=hidden), rng=1, name=name)
        for path, p in adapter_parameters(model).items():
            law = laws.pop(path.removeprefix("front."))
            assert scipy.stats.kstest(p.data.ravel().astype(float), law).pvalue > 1e-3, path
            assert p.dtype == np.float32
    assert not laws


def test_started_from_real_tokens_it_is_the_base_model_after_them():
    """Also in a model of one head, and with every token of the context but one."""
    for n_head in (1, 4):
        model, text = base(n_head=n_head), (*TOKENS[1], 5, 6)
        told = model(np.array([[*text, 7]])).data[:, -1:]
        add_adapter(model, PrefixConfig(8, init="vocabulary", text=text))
        np.testing.assert_allclose(model(np.array([[7]])).data, told, rtol=1e-12, atol=1e-12)


# Folding


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_head", [1, 2, 8])
@pytest.mark.parametrize("tokens, hidden", [(1, 1), (3, 5), (20, 40)])
def test_folding_keeps_every_bit_of_the_outputs(dtype, n_head, tokens, hidden):
    model = add_adapter(base(dtype, n_head, block_size=tokens + 6), PrefixConfig(tokens, hidden=hidden), rng=1)
    logits = [model(TOKENS[:rows, :time]).data for rows in (1, 3) for time in (1, 6)]
    assert fold_prefix(model) is model
    for before, (rows, time) in zip(logits, ((1, 1), (1, 6), (3, 1), (3, 6)), strict=True):
        np.testing.assert_array_equal(model(TOKENS[:rows, :time]).data, before)
    own = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    plan = ml.analysis.counting.plan(model, "prefix", tokens=tokens)
    assert own == plan.trainable
    assert all(p.dtype == dtype for p in model.parameters())
    assert active_adapter(model).configs == (PrefixConfig(tokens),)


def test_a_folded_prefix_trains_on_switches_and_leaves_like_any_other():
    model = base()
    plain = model(TOKENS).data
    add_adapter(model, [ml.LoRAConfig(rank=2), PrefixConfig(3, hidden=5)], name="both")
    add_adapter(model, PromptConfig(2), name="other")
    with pytest.raises(ValueError, match="fold_prefix: the active adapter has no prefix with a network"):
        fold_prefix(model)
    ml.set_adapter(model, "both")
    before = model(TOKENS).data
    with ml.lora_disabled(model):
        fold_prefix(model)
        np.testing.assert_array_equal(model(TOKENS).data, plain)
    np.testing.assert_array_equal(model(TOKENS).data, before)
    with pytest.raises(ValueError, match="no prefix with a network"):
        fold_prefix(model)  # it is folded already
    ml.train_step(model, ml.SGD(model.named_parameters(), lr=0.1), TOKENS, TARGETS)
    after = model(TOKENS).data
    assert (after != before).any()
    ml.set_adapter(model, "other")
    ml.set_adapter(model, "both")
    np.testing.assert_array_equal(model(TOKENS).data, after)
    ml.remove_adapter(model)
    np.testing.assert_array_equal(model(TOKENS).data, plain)
    with pytest.raises(ValueError, match="no active adapter"):
        fold_prefix(model)


def test_a_file_holds_keys_and_values_and_no_network(tmp_path):
    model = add_adapter(base("float32"), PrefixConfig(3, hidden=5), rng=1)
    logits = model(TOKENS).data
    arrays, header = load_arrays(ml.save_adapter(model, tmp_path / "prefix.npz"), "adapter")
    assert {name: array.shape for name, array in arrays.items()} == dict.fromkeys(
        ("front.keys", "front.values"), (2, 3, 8)
    )
    assert header["methods"][0]["config"]["hidden"] is None
    assert model.front.config.hidden == 5  # the model itself trains on with its network
    loaded = ml.load_adapter(base("float32"), tmp_path / "prefix.npz")
    np.testing.assert_array_equal(loaded(TOKENS).data, logits)
    folded = ml.save_adapter(fold_prefix(model), tmp_path / "folded.npz")
    assert all((arrays[name] == array).all() for name, array in load_arrays(folded, "adapter")[0].items())


# Refusals


@pytest.mark.parametrize("hidden", [0, -3, 2.0, True, "512"])
def test_the_networks_width_must_be_a_positive_integer(hidden):
    with pytest.raises(ValueError, match=f"PrefixConfig: hidden = {hidden!r}, expected a positive integer, or None"):
        PrefixConfig(hidden=hidden)


def test_a_network_cannot_be_made_to_start_at_given_keys_and_values():
    with pytest.raises(ValueError, match="init = 'vocabulary' needs hidden=None"):
        PrefixConfig(hidden=5, init="vocabulary")


def test_a_plain_prefix_folds_to_itself():
    model = add_adapter(base(), PrefixConfig(3))
    assert isinstance(model.front, Prefix) and model.front.folded() is model.front
