"""Sums of adapters: exact by concatenation, closest by SVD, and what averaging the factors gives instead."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora.adapters.bottleneck import PfeifferConfig
from minilora.adapters.combine import combine_adapters, product_svd
from minilora.adapters.dora import DoRAConfig
from minilora.adapters.lora import lora_layers
from minilora.adapters.qlora import quantize_model
from minilora.analysis.rank import best_approximation

CONFIG = ml.GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=8)
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 5))


def shake(model, rng):
    generator = np.random.default_rng(rng)
    for p in model.parameters(trainable=True):
        p.data[...] = p.data + generator.normal(0, 0.3, p.shape)
    return model


def base(dtype="float64"):
    return ml.GPT(CONFIG, rng=1).astype(dtype)


def three(dtype="float64", ranks=(2, 3, 2), **settings):
    """A model with the adapters "docs", "code" and "names", of different ranks and scales."""
    model = base(dtype)
    for i, (name, r) in enumerate(zip(("docs", "code", "names"), ranks, strict=True)):
        shake(ml.add_lora(model, ml.LoRAConfig(rank=r, alpha=4, **settings), name=name), rng=i)
    return model


def deltas(model, name):
    active = model.active_adapter
    ml.set_adapter(model, name)
    found = ml.delta_weights(model)
    ml.set_adapter(model, active)
    return found


def weighted_sum(model, weights):
    parts = {name: deltas(model, name) for name in weights}
    return {path: sum(w * parts[name][path] for name, w in weights.items()) for path in next(iter(parts.values()))}


def assert_close(ours, theirs, tolerance=1e-12):
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert np.abs(ours[name] - expected).max() <= tolerance * np.abs(expected).max(), name


def frobenius(update):
    return np.sqrt(sum(float((matrix**2).sum()) for matrix in update.values()))


# Concatenation


@pytest.mark.slow
@given(w=st.lists(st.floats(-3, 3), min_size=1, max_size=3), stabilized=st.booleans())
def test_concatenation_is_the_weighted_sum(w, stabilized):
    model = three(rank_stabilized=stabilized)
    weights = dict(zip(("docs", "code", "names"), w, strict=False))
    expected = weighted_sum(model, weights)
    assert combine_adapters(model, weights) is model
    assert model.active_adapter == "combined"
    for path, delta in ml.delta_weights(model).items():
        np.testing.assert_allclose(delta, expected[path], atol=1e-12)
    assert {len(layer.lora_A.data) for layer in lora_layers(model).values()} == {sum((2, 3, 2)[: len(w)])}
    assert {layer.config.scale for layer in lora_layers(model).values()} == {1.0}


@pytest.mark.parametrize("dtype, bar", [("float64", 1e-12), ("float32", 1e-5)])
def test_the_outputs_are_those_of_the_summed_weights(dtype, bar):
    model = three(dtype)
    weights = {"docs": 0.7, "code": 0.3}
    expected = base(dtype)
    for path, delta in weighted_sum(model, weights).items():
        expected.get_module(path).weight.data += delta
    combine_adapters(model, weights)
    assert model(TOKENS).dtype == dtype
    assert np.abs(model(TOKENS).data - expected(TOKENS).data).max() <= bar * np.abs(expected(TOKENS).data).max()


def test_one_of_one_adapter_is_itself_and_minus_one_takes_it_away():
    model = three()
    docs = deltas(model, "docs")
    combine_adapters(model, {"docs": 1.0}, name="same")
    assert_close(ml.delta_weights(model), docs)
    combine_adapters(model, {"docs": -1.0}, name="negated")
    assert_close(ml.delta_weights(model), {path: -delta for path, delta in docs.items()})
    combine_adapters(model, {"same": 1.0, "negated": 1.0}, name="nothing")
    assert frobenius(ml.delta_weights(model)) <= 1e-12 * frobenius(docs)
    np.testing.assert_allclose(model(TOKENS).data, base()(TOKENS).data, rtol=1e-11, atol=1e-12)


def test_the_result_is_an_adapter_like_any_other(tmp_path):
    model = three()
    before = {name: deltas(model, name) for name in ("docs", "code", "names")}
    combine_adapters(model, {"docs": 0.5, "names": 2}, name="mixture")
    path = ml.save_adapter(model, tmp_path / "mixture.npz")
    np.testing.assert_array_equal(ml.load_adapter(base(), path)(TOKENS).data, model(TOKENS).data)
    assert len(model.parameters(trainable=True)) == 8
    shake(model, rng=9)  # training it on moves none of the others
    for name, expected in before.items():
        for module, delta in deltas(model, name).items():
            np.testing.assert_array_equal(delta, expected[module])
    assert list(model.adapters) == ["docs", "code", "names", "mixture"]


def test_each_matrix_keeps_its_own_rank():
    model = base()
    for i, name in enumerate(("one", "two")):
        configs = [ml.LoRAConfig(1 + i, target_modules="q_proj"), ml.LoRAConfig(3, target_modules="up_proj")]
        shake(ml.add_adapter(model, configs, name=name), rng=i)
    expected = weighted_sum(model, {"one": 2.0, "two": -0.5})
    combine_adapters(model, {"one": 2.0, "two": -0.5})
    assert_close(ml.delta_weights(model), expected)
    ranks = {path.rpartition(".")[2]: len(layer.lora_A.data) for path, layer in lora_layers(model).items()}
    assert ranks == {"q_proj": 3, "up_proj": 6}


def test_pissa_is_summed_by_its_factors():
    model = three(ranks=(1, 1, 1))
    shake(ml.add_lora(model, ml.LoRAConfig(rank=2, alpha=3, init="pissa"), name="pissa"), rng=7)
    for how, rank in (("concatenate", None), ("svd", 5)):  # rank 1 + 2 * 2
        weights = {"docs": 0.7, "pissa": -1.5}
        expected = weighted_sum(model, weights)
        combine_adapters(model, weights, how, rank, name=how)
        assert_close(ml.delta_weights(model), expected, 1e-11)


def test_adapters_on_a_quantised_base():
    model = quantize_model(ml.GPT(CONFIG, rng=1))
    for i, name in enumerate(("docs", "code")):
        shake(ml.add_lora(model, ml.LoRAConfig(rank=2), name=name), rng=i)
    expected = weighted_sum(model, {"docs": 0.5, "code": 2.0})
    combine_adapters(model, {"docs": 0.5, "code": 2.0})
    assert_close(ml.delta_weights(model), expected, 1e-5)


# SVD


@given(m=st.integers(1, 9), n=st.integers(1, 9), r=st.integers(1, 12), seed=st.integers(0, 2**31))
def test_product_svd_of_any_shape(m, n, r, seed):
    """Also with more columns than the product has room for."""
    rng = np.random.default_rng(seed)
    B, A = rng.normal(size=(m, r)), rng.normal(size=(r, n))
    u, s, vt = product_svd(B, A)
    k = min(m, n, r)
    assert (u.shape, s.shape, vt.shape) == ((m, k), (k,), (k, n))
    np.testing.assert_allclose((u * s) @ vt, B @ A, atol=1e-11)
    np.testing.assert_allclose(s, np.linalg.svd(B @ A, compute_uv=False)[:k], atol=1e-11)
    np.testing.assert_allclose(u.T @ u, np.eye(k), atol=1e-12)
    np.testing.assert_allclose(vt @ vt.T, np.eye(k), atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 4, 7, 8])
def test_svd_gives_the_closest_update_of_its_rank(rank):
    model = three()
    weights = {"docs": 0.7, "code": 0.3, "names": -1.0}
    expected = weighted_sum(model, weights)
    combine_adapters(model, weights, how="svd", rank=rank)
    for path, delta in ml.delta_weights(model).items():
        B, A = best_approximation(expected[path], rank)  # of the full matrix
        np.testing.assert_allclose(delta, B @ A, atol=1e-12)
        layer = model.get_module(path)
        assert layer.lora_A.shape == (rank, 8)
        np.testing.assert_allclose((layer.lora_A.data**2).sum(), (layer.lora_B.data**2).sum())  # evenly shared
    if rank >= 7:  # 2 + 3 + 2: nothing is lost
        assert_close(ml.delta_weights(model), expected)


def test_svd_takes_the_largest_rank_by_default():
    model = three()
    combine_adapters(model, {"docs": 1, "code": 1}, how="svd")
    assert {len(layer.lora_A.data) for layer in lora_layers(model).values()} == {3}


# Averages of the factors


def test_linear_is_not_the_sum():
    model = three(ranks=(2, 2, 2))
    weights = {"docs": 0.7, "code": 0.3}
    expected = weighted_sum(model, weights)
    combine_adapters(model, weights, how="linear", name="linear")
    linear = ml.delta_weights(model)
    combine_adapters(model, weights, how="svd", name="closest")
    closest = ml.delta_weights(model)
    error = {name: frobenius({p: d[p] - expected[p] for p in d}) for name, d in (("linear", linear), ("svd", closest))}
    assert error["linear"] > 2 * error["svd"] > 0
    # The terms that belong to neither adapter are all that it adds.
    layers = {name: model.adapters[name].modules["blocks.0.attn.q_proj"] for name in weights}
    (B1, A1), (B2, A2) = ((layer.lora_B.data, layer.lora_A.data) for layer in layers.values())
    mixed = np.sqrt(0.7 * 2 * 0.3 * 2) * (B1 @ A2 + B2 @ A1)
    q = "blocks.0.attn.q_proj"
    np.testing.assert_allclose(linear[q] - expected[q], mixed, atol=1e-12)


@pytest.mark.parametrize("w", [0.6, -1.0])
def test_linear_of_one_adapter_is_that_adapter(w):
    model = three()
    expected = weighted_sum(model, {"code": w})
    combine_adapters(model, {"code": w}, how="linear")
    assert_close(ml.delta_weights(model), expected)


# Errors


def check_refused(model, message, *arguments, **settings):
    state, adapters, active = model.state_dict(), dict(model.adapters), model.active_adapter
    with pytest.raises(ValueError, match=message):
        combine_adapters(model, *arguments, **settings)
    assert model.adapters == adapters
    assert model.active_adapter == active
    assert all(np.array_equal(values, state[name]) for name, values in model.state_dict().items())


def test_errors_leave_the_model_as_it_was():
    model = three()
    ml.add_lora(model, ml.LoRAConfig(rank=2, target_modules=("q_proj", "k_proj")), name="keys")
    ml.add_adapter(model, DoRAConfig(rank=2), name="dora")
    ml.add_adapter(model, PfeifferConfig(2), name="pfeiffer")
    ml.add_adapter(model, [ml.LoRAConfig(rank=2), PfeifferConfig(2)], name="both")
    ml.set_adapter(model, "docs")
    both = {"docs": 1, "code": 1}
    check_refused(
        model,
        r"unequal targets: 'keys' adapts blocks\.0\.attn\.k_proj, 'docs' does not",
        {"docs": 1, "code": 1, "keys": 1},
    )
    check_refused(model, r"unequal targets: 'keys' adapts blocks\.0\.attn\.k_proj", {"keys": 1, "docs": 1})
    check_refused(model, r"adapter 'dora' is dora, expected LoRA", {"docs": 1, "dora": 1})
    check_refused(model, r"adapter 'pfeiffer' is pfeiffer, expected LoRA", {"pfeiffer": 1})
    check_refused(model, r"adapter 'both' is lora\+pfeiffer, expected LoRA", {"both": 1})
    ml.add_lora(model, ml.LoRAConfig(rank=2, bias="lora_only"), name="biased")
    ml.add_lora(model, ml.LoRAConfig(rank=2, modules_to_save=("ln_f",)), name="normed")
    check_refused(model, r"adapter 'biased' trains blocks\.0\.attn\..*\.bias in full, expected LoRA", {"biased": 1})
    check_refused(model, r"adapter 'normed' trains ln_f\.weight in full, expected LoRA", {"normed": 1})
    ml.set_adapter(model, "docs")
    check_refused(model, "no adapter 'prose'; there are docs, code", {"docs": 1, "prose": 1})
    check_refused(model, "got no adapters", {})
    check_refused(model, "a weight is nan, expected finite", {"docs": float("nan")})
    check_refused(model, "how = 'mean', expected one of 'concatenate', 'svd', 'linear'", both, how="mean")
    check_refused(model, r"averages matrices of one rank; got \[2, 3\]", both, how="linear")
    check_refused(model, "rank = 2 is for how='svd'", both, rank=2)
    for rank in (0, 9, 2.0, True):
        check_refused(model, rf"rank {rank!r}, expected 1 to min\(d_in, d_out\) = 8", both, how="svd", rank=rank)
    check_refused(model, "has an adapter 'code' already", both, name="code")
    ml.merge_adapter(model)
    check_refused(model, "merged", both)


def test_a_sum_of_more_ranks_than_the_matrix_has():
    model = three(ranks=(4, 5, 2))
    check_refused(model, "rank 9, .* = 8 of .*; how='svd' with rank=8 loses nothing", {"docs": 1, "code": 1})
    expected = weighted_sum(model, {"docs": 1, "code": 1})
    combine_adapters(model, {"docs": 1, "code": 1}, how="svd", rank=8)
    assert_close(ml.delta_weights(model), expected, 1e-11)


def test_a_model_without_adapters():
    with pytest.raises(ValueError, match="no adapter 'docs'; there are none"):
        combine_adapters(base(), {"docs": 1})
