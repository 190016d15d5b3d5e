"""Rows with different adapters in one pass: each must get what it would get alone."""

import numpy as np
import pytest

import minilora as ml
from minilora.adapters.bottleneck import PfeifferConfig
from minilora.adapters.dora import DoRAConfig
from minilora.adapters.qlora import quantize_model
from minilora.adapters.serving import rows_use

CONFIG = ml.GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=8)
TOKENS = np.random.default_rng(0).integers(0, 11, (5, 6))
ROWS = ["docs", "code", None, "pissa", "docs"]
BARS = {"float32": 5e-6, "float64": 1e-12}  # products and sums are rounded in another order in a larger batch


def served(dtype="float64", bias=True):
    """A model with three adapters of different ranks, scales and target modules; "code" is the active one."""
    model = ml.GPT(ml.GPTConfig(11, 8, 2, 2, 8, bias=bias), rng=1)
    for p in model.parameters():
        p.data *= 8
    model.astype(dtype)
    configs = {
        "docs": ml.LoRAConfig(rank=2, alpha=3),
        "code": ml.LoRAConfig(rank=5, alpha=5, target_modules=("v_proj", "*.mlp.*"), rank_stabilized=True, dropout=0.5),
        "pissa": ml.LoRAConfig(rank=3, alpha=4, target_modules=("q_proj", "o_proj"), init="pissa"),
    }
    for i, (name, config) in enumerate(configs.items()):
        ml.add_lora(model, config, name=name)
        generator = np.random.default_rng(i)
        for p in model.parameters(trainable=True):
            p.data += generator.normal(0, 0.2, p.shape)
    ml.set_adapter(model, "code")
    return model


def one_by_one(model, function):
    """What each row gives by itself, with its adapter set."""
    results, active = [], model.active_adapter
    for i, name in enumerate(ROWS):
        ml.set_adapter(model, name)
        results.append(function(TOKENS[i : i + 1]))
    ml.set_adapter(model, active)
    return np.concatenate(results)


def snapshot(model):
    held = {name: (p, p.data.copy(), p.requires_grad) for name, p in model.named_parameters()}
    return held, list(model.adapters), model.active_adapter, model(TOKENS).data


def assert_same(model, before):
    held, adapters, active, outputs = before
    assert (list(model.adapters), model.active_adapter) == (adapters, active)
    assert [name for name, _ in model.named_parameters()] == list(held)
    for name, p in model.named_parameters():
        assert p is held[name][0]
        assert p.requires_grad == held[name][2]
        np.testing.assert_array_equal(p.data, held[name][1])
    np.testing.assert_array_equal(model(TOKENS).data, outputs)


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("bias", [True, False])
def test_each_row_gets_what_it_gets_alone(dtype, bias):
    model = served(dtype, bias)
    before = snapshot(model)
    alone = one_by_one(model, lambda tokens: model(tokens).data)
    with rows_use(model, ROWS) as same:
        assert same is model
        together = model(TOKENS)
        assert together.dtype == dtype
        assert not together.requires_grad
        swapped = model(TOKENS[::-1]).data  # the adapters belong to places, not to texts
    for row, expected in zip(together.data, alone, strict=True):
        assert np.abs(row - expected).max() <= BARS[dtype] * np.abs(expected).max()
    assert np.abs(swapped[::-1] - together.data).max() > 0.1 * np.abs(together.data).max()
    assert_same(model, before)


@pytest.mark.parametrize("use_cache", [True, False])
def test_each_row_is_continued_as_it_is_alone(use_cache):
    """Beyond block_size, too, where the cache starts anew."""
    model = served()
    alone = one_by_one(model, lambda tokens: model.generate(tokens, 5, temperature=0, use_cache=use_cache))
    with rows_use(model, ROWS):
        together = model.generate(TOKENS, 5, temperature=0, use_cache=use_cache)
    np.testing.assert_array_equal(together, alone)
    plain = model.generate(TOKENS, 5, temperature=0)
    assert (plain != together).any()


def test_one_product_with_each_base_weight(monkeypatch):
    """Five rows and three adapters cost each layer one `linear`, as the base model alone does."""
    model, calls = served(), []
    linear = ml.ops.linear
    monkeypatch.setattr(ml.ops, "linear", lambda x, *rest: calls.append(x.shape) or linear(x, *rest))
    with rows_use(model, ROWS):
        model(TOKENS)
    assert len(calls) == 2 * 6 + 1
    assert all(shape[:2] == (5, 6) for shape in calls)


def test_rows_of_the_base_and_of_one_adapter():
    model = served()
    with ml.lora_disabled(model):
        plain = model(TOKENS).data
    with rows_use(model, [None] * 5):
        np.testing.assert_array_equal(model(TOKENS).data, plain)
    with rows_use(model, ["code"] * 5):
        together = model(TOKENS).data
        with ml.lora_disabled(model):
            np.testing.assert_array_equal(model(TOKENS).data, plain)
    np.testing.assert_allclose(together, model(TOKENS).data, rtol=1e-10, atol=1e-11)


def test_the_precision_is_the_bases():
    """Adapters that were aside when it changed are still in the old one."""
    model = served("float32")
    with rows_use(model, ROWS):
        before = model(TOKENS).data
    with rows_use(model, ROWS):
        model.astype("float64")
        assert model(TOKENS).dtype == np.float64
    with rows_use(model, ROWS):
        assert np.abs(model(TOKENS).data - before).max() <= 1e-5 * np.abs(before).max()
    ml.set_adapter(model, None)
    model.astype("float32")
    with rows_use(model, ROWS):
        assert model(TOKENS).dtype == np.float32


def test_rows_on_a_quantised_base(tmp_path):
    model = quantize_model(ml.GPT(CONFIG, rng=1))
    for i, name in enumerate(("docs", "code")):
        ml.add_lora(model, ml.LoRAConfig(rank=2 + i), name=name)
        for p in model.parameters(trainable=True):
            p.data += np.random.default_rng(i).normal(0, 0.2, p.shape)
    path, state = ml.save_adapter(model, tmp_path / "code.npz"), model.state_dict()
    codes = {name for name in state if "codes" in name}
    alone = []
    for name in ("docs", "code", None):
        ml.set_adapter(model, name)
        alone.append(model(TOKENS[:1]).data)
    with rows_use(model, ["docs", "code", None]):
        np.testing.assert_allclose(model(TOKENS[[0, 0, 0]]).data, np.concatenate(alone), rtol=1e-5, atol=1e-6)
        assert {name for name in model.state_dict() if "codes" in name} == codes != set()
        ml.load_adapter(model, path, name="again")  # the base is known by its codes
    assert model.active_adapter is None


def test_no_adapter_need_be_active():
    model = served()
    with rows_use(model, ROWS):
        expected = model(TOKENS).data
    ml.set_adapter(model, None)
    before = snapshot(model)
    with rows_use(model, ROWS):
        np.testing.assert_array_equal(model(TOKENS).data, expected)
    assert_same(model, before)


def test_everything_is_put_back_after_an_exception():
    model = served()
    before = snapshot(model)
    with pytest.raises(KeyError, match="inside"), rows_use(model, ROWS):
        raise KeyError("inside")
    assert_same(model, before)
    with rows_use(model, ROWS):
        ml.set_adapter(model, "docs")  # whatever is switched to in the block
    assert_same(model, before)
    with rows_use(model, ROWS):
        ml.remove_adapter(model)
    assert not hasattr(model, "adapters")


def test_a_block_in_a_block():
    model = served()
    before = snapshot(model)
    with rows_use(model, ROWS):
        outer = model(TOKENS).data
        with rows_use(model, ["code", None]):
            assert model(TOKENS[:2]).shape == (2, 6, 11)
        np.testing.assert_array_equal(model(TOKENS).data, outer)
        with pytest.raises(ValueError, match="these rows are in use already"), rows_use(model, ROWS):
            pass
        np.testing.assert_array_equal(model(TOKENS).data, outer)
    assert_same(model, before)


@pytest.mark.parametrize("rows", [1, 4, 6])
def test_another_number_of_rows(rows):
    model = served()
    before = snapshot(model)
    tokens = np.zeros((rows, 3), int)
    with pytest.raises(ValueError, match=f"the batch has {rows} rows, but adapters were named for 5"):  # noqa: SIM117
        with rows_use(model, ROWS):
            model(tokens)
    assert_same(model, before)


def test_nothing_is_trained_merged_or_saved_in_the_block(tmp_path):
    model = served()
    before = snapshot(model)
    with rows_use(model, ROWS):
        assert not model.loss(TOKENS, TOKENS).requires_grad
        with pytest.raises(ValueError, match="backward: the output depends on no tensor"):
            model.loss(TOKENS, TOKENS).backward()
        with pytest.raises(ValueError, match="its rows use different adapters"):
            ml.merge_adapter(model)
        with pytest.raises(ValueError, match="save_adapter: what is active has no parameters"):
            ml.save_adapter(model, tmp_path / "rows.npz")
        with pytest.raises(ValueError, match="no LoRA layers"):
            ml.delta_weights(model)
    assert_same(model, before)


def check_refused(model, names, message):
    before = snapshot(model)
    with pytest.raises(ValueError, match=message), rows_use(model, names):
        pass
    assert_same(model, before)


def test_errors_leave_the_model_as_it_was():
    model = served()
    ml.add_adapter(model, DoRAConfig(rank=2), name="dora")
    ml.add_adapter(model, [ml.LoRAConfig(rank=2), PfeifferConfig(2)], name="both")
    ml.set_adapter(model, "code")
    check_refused(model, ["docs", "prose"], "rows_use: no adapter 'prose'; there are docs, code")
    check_refused(model, ["docs", "dora"], "adapter 'dora' is dora, expected LoRA")
    check_refused(model, ["docs", "both"], r"adapter 'both' is lora\+pfeiffer, expected LoRA")
    check_refused(model, [], r"names = \[\], expected one for each row")
    check_refused(model, "docs", "names = 'docs', expected one for each row")
    ml.merge_adapter(model)
    check_refused(model, ["docs", "code"], "the adapter is merged into the weights")
    ml.unmerge_adapter(model)
    with ml.lora_disabled(model):
        check_refused(model, ["docs", "code"], "the adapter is disabled")


def test_a_model_without_adapters():
    model = ml.GPT(CONFIG)
    for names in ([None], ["docs"]):
        with pytest.raises(ValueError, match="rows_use: the model has no adapter"), rows_use(model, names):
            pass
