"""QLoRA: LoRA's mathematics on a base in few bits, what that base weighs, and what is refused."""

import copy
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora.adapters.bottleneck import HoulsbyConfig
from minilora.adapters.dora import DoRAConfig
from minilora.adapters.files import fingerprint
from minilora.adapters.lora import lora_layers
from minilora.adapters.qlora import (
    QLoRALinear,
    QuantizedEmbedding,
    QuantizedLinear,
    product,
    quantization,
    quantize_model,
    requantize,
)
from minilora.adapters.quantization import half, quantize
from minilora.adapters.selected import BitFitConfig, FullConfig, LastBlocksConfig
from minilora.adapters.state import adapter_parameters
from minilora.analysis.methods import plan
from minilora.nn.architectures import find
from minilora.nn.layers import Linear
from minilora.nn.storage import load_arrays, save_arrays
from minilora.training.checkpoint import load_checkpoint, save_checkpoint

CONFIG = ml.GPTConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 6))
TARGETS = np.random.default_rng(1).integers(0, 11, (3, 6))
KINDS = ("nf4", "int4", "int8")
BLOCK = 12  # fills no row and no matrix
LORA = ml.LoRAConfig(rank=2, alpha=3, target_modules="*")


def floats(dtype="float32", rng=0, bias=True):
    """A GPT whose logits are not tiny, so that a change shows."""
    model = ml.GPT(ml.GPTConfig(11, 6, 2, 2, 8, bias=bias), rng=rng)
    for p in model.parameters():
        p.data *= 8
    return model.astype(dtype)


def quantized(dtype="float32", kind="nf4", **settings):
    return quantize_model(floats(dtype), kind, BLOCK, **settings)


def rounded(dtype="float32", kind="nf4", double=True):
    """The float model whose weights are what the quantised model's codes stand for."""
    model = floats(dtype)
    for layer in (m for _, m in model.named_modules() if isinstance(m, Linear)):
        layer.weight.data = quantize(layer.weight.data, kind, BLOCK, double).dequantize(dtype)
    return model


def shake(model, rng=5):
    """Move what is trained, as training would: B starts at zero, which hides mistakes."""
    generator = np.random.default_rng(rng)
    for _, p in sorted(adapter_parameters(model).items()):
        p.data[...] = generator.normal(0, 0.3, p.shape)
    return model


def qlora(dtype="float32", config=LORA, rng=5, **settings):
    return shake(ml.add_lora(quantized(dtype, **settings), config), rng)


def linears(model):
    return {path: m for path, m in model.named_modules() if isinstance(m, Linear)}


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
        assert one[name].dtype == two[name].dtype


def snapshot(model):
    return model.state_dict(), [p.requires_grad for p in model.parameters()], sorted(vars(model)), model(TOKENS).data


def assert_untouched(model, before):
    assert_same(model.state_dict(), before[0])
    assert [p.requires_grad for p in model.parameters()] == before[1]
    assert sorted(vars(model)) == before[2]
    np.testing.assert_array_equal(model(TOKENS).data, before[3])


# The quantised model


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("double", [False, True])
def test_it_is_the_float_model_of_the_dequantized_weights(dtype, kind, double):
    model = quantized(dtype, kind, double=double)
    np.testing.assert_array_equal(model(TOKENS).data, rounded(dtype, kind, double)(TOKENS).data)
    assert model(TOKENS).dtype == dtype
    for path, layer in linears(rounded("float32", kind, double)).items():
        np.testing.assert_array_equal(model.get_module(path).weight.data, layer.weight.data)
    assert not np.array_equal(model(TOKENS).data, floats(dtype)(TOKENS).data)


def test_linear_layers_are_replaced_and_the_rest_stays():
    model = floats()
    others = {n: p for n, p in model.named_parameters() if "_proj.weight" not in n}
    assert quantize_model(model) is model
    assert all(type(layer) is QuantizedLinear for layer in linears(model).values())
    assert len(linears(model)) == 12
    left = dict(model.named_parameters())
    assert left.keys() == others.keys()
    assert all(left[name] is others[name] for name in left)
    assert not any(p.requires_grad for p in model.parameters())


def test_some_layers_now_and_the_others_later():
    model = quantize_model(floats(), "nf4", BLOCK, target_modules=("q_proj", "*.mlp.*"))
    first = {path: m for path, m in linears(model).items() if isinstance(m, QuantizedLinear)}
    assert {path.rpartition(".")[2] for path in first} == {"q_proj", "up_proj", "down_proj"}
    quantize_model(model, "int8", 32, double=False)
    assert all(model.get_module(path) is layer for path, layer in first.items())  # quantised once is enough
    settings = quantization(model)
    assert settings["blocks.0.attn.q_proj"] == {"kind": "nf4", "block": BLOCK, "double": True}
    assert settings["blocks.1.attn.k_proj"] == {"kind": "int8", "block": 32, "double": False}
    assert len(settings) == 12
    assert quantization(quantize_model(floats(), target_modules="k_proj")).keys() == {
        f"blocks.{i}.attn.k_proj" for i in (0, 1)
    }


def test_a_quantized_model_generates_as_the_rounded_one_with_and_without_cache():
    model, same = qlora(), rounded()
    for use_cache in (True, False):
        text = model.generate(TOKENS[0, :3], 8, use_cache=use_cache, rng=1)
        np.testing.assert_array_equal(text, model.generate(TOKENS[0, :3], 8, use_cache=not use_cache, rng=1))
        with ml.lora_disabled(model):
            np.testing.assert_array_equal(
                model.generate(TOKENS[0, :3], 8, use_cache=use_cache, rng=1),
                same.generate(TOKENS[0, :3], 8, use_cache=use_cache, rng=1),
            )


# LoRA on it


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
def test_it_starts_exactly_at_the_quantized_model(dtype, bias):
    model = quantize_model(floats(dtype, bias=bias), "nf4", BLOCK)
    before = model(TOKENS).data
    ml.add_lora(model, LORA)
    np.testing.assert_array_equal(model(TOKENS).data, before)
    assert len(lora_layers(model)) == 12
    assert all(type(layer) is QLoRALinear for layer in lora_layers(model).values())
    assert {p.dtype for p in model.parameters()} == {np.dtype(dtype)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_it_is_lora_on_the_dequantized_weights(kind, dropout):
    """Outputs, loss and every gradient, to 1e-12."""
    config = ml.LoRAConfig(rank=2, alpha=3, target_modules=("q_proj", "*.mlp.*"), dropout=dropout)
    ours = qlora("float64", config, kind=kind)
    theirs = shake(ml.add_lora(rounded("float64", kind), config))
    np.testing.assert_allclose(ours(TOKENS).data, theirs(TOKENS).data, rtol=1e-12, atol=1e-12)
    one, two = (m.loss(TOKENS, TARGETS, np.random.default_rng(4)) for m in (ours, theirs))
    assert abs(one.item() - two.item()) <= 1e-12
    names = adapter_parameters(ours).keys()
    assert names == adapter_parameters(theirs).keys()
    g, h = (ml.grad(x, [adapter_parameters(m)[n] for n in names]) for x, m in ((one, ours), (two, theirs)))
    for name, a, b in zip(names, g, h, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(b).max(), err_msg=name)
        assert b.any()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["central", "complex-step", "directional"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_of_a_and_b(method, dropout):
    config = ml.LoRAConfig(
        rank=2, alpha=3, target_modules=("q_proj", "o_proj", "up_proj", "down_proj"), dropout=dropout
    )
    model = qlora("float64", config)
    report = ml.gradcheck(
        lambda *_: model.loss(TOKENS, TARGETS, np.random.default_rng(0)), model.parameters(trainable=True), method
    )
    assert report.passed, str(report)
    assert len(report.inputs) == (1 if method == "directional" else 16)


@given(
    lead=st.lists(st.integers(0, 3), max_size=2),
    d_in=st.integers(1, 9),
    d_out=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_gradients_flow_through_the_weight_and_none_to_it(lead, d_in, d_out, seed):
    rng = np.random.default_rng(seed)
    layer = QuantizedLinear(Linear(d_in, d_out, True, rng, std=1), "nf4", 4).astype("float64")
    W, b = layer.weight.data.astype("float64"), ml.Tensor(rng.standard_normal(d_out), requires_grad=True)
    layer.bias = b
    x = ml.Tensor(rng.standard_normal((*lead, d_in)), requires_grad=True)
    y, g = layer(x), rng.standard_normal((*lead, d_out))
    np.testing.assert_allclose(y.data, x.data @ W.T + b.data, rtol=1e-12, atol=1e-12)
    dx, db = ml.grad(y, [x, b], cotangent=g)
    np.testing.assert_allclose(dx, g @ W, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(db, g.sum(axis=tuple(range(g.ndim - 1))), rtol=1e-12, atol=1e-12)
    assert dict(layer.named_parameters()).keys() == {"bias"}


def test_training_moves_a_and_b_alone_and_learns():
    model = ml.add_lora(quantized(), ml.LoRAConfig(rank=4, target_modules="*"))
    before = model.state_dict()
    optimizer = ml.AdamW(model.named_parameters(), lr=0.02)
    losses = [ml.train_step(model, optimizer, TOKENS, TARGETS) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]
    after = model.state_dict()
    moved = {name for name in after if (after[name] != before[name]).any()}
    assert moved == {f"{path}.lora_{part}" for path in lora_layers(model) for part in "AB"}


def test_the_count_is_that_of_lora():
    model = ml.add_lora(quantized(), ml.LoRAConfig(rank=2))
    expected = plan(floats(), "lora", rank=2)
    assert {name: p.shape for name, p in adapter_parameters(model).items()} == expected.added
    assert model.count(trainable=True) == sum(int(np.prod(shape)) for shape in expected.trainable.values())


@pytest.mark.parametrize("config, bias", [(BitFitConfig(), True), (HoulsbyConfig(2), True), (HoulsbyConfig(2), False)])
def test_other_methods_stand_on_a_quantized_base(config, bias):
    model = quantize_model(floats("float64", bias=bias), "nf4", BLOCK)
    before = snapshot(model)
    ml.add_adapter(model, config)
    np.testing.assert_array_equal(model(TOKENS).data, before[3])
    shake(model)
    assert not np.array_equal(model(TOKENS).data, before[3])
    report = ml.gradcheck(lambda *_: model.loss(TOKENS, TARGETS), model.parameters(trainable=True), "directional")
    assert report.passed, str(report)
    ml.remove_lora(model)
    assert_untouched(model, before)


# Memory, measured


def allocated(function):
    """(what `function` returns, bytes that are allocated after it and were not before, the most in between)"""
    tracemalloc.start()
    try:
        result = function()
        held, peak = tracemalloc.get_traced_memory()
        return result, held, peak
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "kind, double, bits", [("nf4", True, 4.127), ("nf4", False, 4.5), ("int4", True, 4.127), ("int8", True, 8.127)]
)
def test_the_memory_of_the_base(kind, double, bits):
    """What Python has allocated for the model's linear layers, in bits a weight: the float weights are really gone."""
    config = ml.GPTConfig(vocab_size=16, block_size=8, n_layer=2, n_head=2, n_embd=192)
    model, held, _ = allocated(lambda: quantize_model(ml.GPT(config), kind, 64, double))
    weights = 2 * 12 * 192**2
    assert sum(m.quantized.size for _, m in model.named_modules() if isinstance(m, QuantizedLinear)) == weights
    assert abs(8 * sum(array.nbytes for _, array in model.named_buffers()) / weights - bits) < 0.005
    rest = sum(p.data.nbytes for p in model.parameters())
    measured = 8 * (held - rest) / weights
    assert bits <= measured < bits + 0.5  # Python's own objects: about 50 KiB
    ml.add_lora(model, LORA)
    assert not [name for name in model.state_dict() if name.endswith("_proj.weight")]


def test_the_tape_keeps_no_float_weight():
    rng, side = np.random.default_rng(0), 512
    layer = QuantizedLinear(Linear(side, side, True, rng))
    for adapted in (layer, layer.lora_layer(ml.LoRAConfig(rank=1), rng)):
        x = ml.Tensor(np.ones((1, side), np.float32), requires_grad=True)
        adapted(x)  # once unmeasured, so that nothing made on first use is counted
        y, held, peak = allocated(lambda layer=adapted, x=x: layer(x))
        assert held < 0.05 * side * side * 4
        assert peak >= side * side * 4  # it was there in between
        assert y.requires_grad


def test_a_frozen_layer_keeps_no_activation():
    layer = QuantizedLinear(Linear(8, 8, True, np.random.default_rng(0)))
    layer.bias.requires_grad = False
    x = ml.Tensor(np.ones((20_000, 8), np.float32), requires_grad=True)
    y, held, _ = allocated(lambda: layer(2 * x))
    assert y.requires_grad
    assert held < 1.2 * y.data.nbytes  # y itself, and nothing of 2 x


@pytest.mark.slow
def test_a_step_needs_no_more_than_loras_and_one_weight():
    """The peak of a step beside LoRA's on float weights, both without what the weights themselves take."""
    config = ml.GPTConfig(vocab_size=16, block_size=16, n_layer=3, n_head=2, n_embd=128)
    tokens = np.random.default_rng(0).integers(0, 16, (4, 16))
    peaks = []
    for model in (ml.GPT(config), quantize_model(ml.GPT(config))):
        ml.add_lora(model, ml.LoRAConfig(rank=2, target_modules="*"))
        step = lambda m=model: ml.grad(m.loss(tokens, tokens), m.parameters(trainable=True))
        step()
        peaks.append(allocated(step)[2])
    largest = 4 * 128 * 128 * 4  # bytes of up_proj's weight in float32
    read_at_a_time = 2**15 * 8  # the index that NumPy makes of the codes
    sums = 2 * tokens.size * 4 * 128 * 4  # the two terms of y, which LoRA's one primitive adds in place
    assert peaks[1] <= peaks[0] + largest + read_at_a_time + sums


# Merging


def test_merging_gives_a_float_weight_and_unmerging_gives_every_bit_back():
    model = qlora("float64")
    before, state, mark = model(TOKENS).data, model.state_dict(), fingerprint(model)
    deltas = ml.delta_weights(model)
    ml.merge_lora(model)
    merged = model(TOKENS).data
    assert np.abs(merged - before).max() <= 1e-12 * np.abs(before).max()
    for path, delta in deltas.items():
        layer = model.get_module(path)
        np.testing.assert_array_equal(layer.weight.data, layer.quantized.dequantize("float64") + delta)
        assert layer(ml.Tensor(np.ones((2, layer.weight.shape[1])), requires_grad=True)).node.name == "linear"
    assert fingerprint(model) == mark
    assert_same(model.state_dict(), state)
    with ml.lora_disabled(model):
        np.testing.assert_array_equal(model(TOKENS).data, rounded("float64")(TOKENS).data)
    np.testing.assert_array_equal(model(TOKENS).data, merged)
    ml.unmerge_lora(model)
    np.testing.assert_array_equal(model(TOKENS).data, before)
    assert_same(model.state_dict(), state)
    assert all(layer.merged_weight is None for layer in lora_layers(model).values())


def test_removing_gives_the_quantized_model_back():
    model = quantized()
    before, layers = snapshot(model), linears(model)
    ml.remove_lora(shake(ml.add_lora(model, LORA)))
    assert_untouched(model, before)
    assert all(layer is layers[path] for path, layer in linears(model).items())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_removing_while_merged_leaves_plain_float_layers(dtype):
    model = qlora(dtype, ml.LoRAConfig(rank=2, target_modules="*.mlp.*"))
    ml.merge_lora(model)
    logits, kept = model(TOKENS).data, {path: layer.weight.data for path, layer in lora_layers(model).items()}
    ml.remove_lora(model)
    np.testing.assert_array_equal(model(TOKENS).data, logits)
    for path, layer in linears(model).items():
        assert type(layer) is (Linear if ".mlp." in path else QuantizedLinear)
        if path in kept:
            np.testing.assert_array_equal(layer.weight.data, kept[path])
            assert layer.weight.dtype == dtype
            assert not layer.weight.requires_grad


def test_precision_may_change_while_merged():
    model = qlora("float64")
    before = model(TOKENS).data
    ml.merge_lora(model)
    model.astype("float32")
    assert model(TOKENS).dtype == np.float32
    np.testing.assert_allclose(model(TOKENS).data, before, rtol=1e-4, atol=1e-4)
    model.astype("float64")
    assert model(TOKENS).dtype == np.float64


@pytest.mark.parametrize("merged", [False, True])
def test_requantizing_is_merging_and_quantizing_again(merged):
    model = qlora(config=ml.LoRAConfig(rank=2, target_modules=("q_proj", "*.mlp.*")))
    twin, settings = copy.deepcopy(model), quantization(model)
    if merged:
        ml.merge_lora(model)
    assert requantize(model) is model
    assert quantization(model) == settings
    assert not getattr(model, "adapters", None)
    ml.merge_lora(twin)
    merged_logits = twin(TOKENS).data
    ml.remove_lora(twin)
    for path, layer in linears(twin).items():
        if type(layer) is Linear:
            expected = quantize(layer.weight.data, "nf4", BLOCK, True).dequantize()
            np.testing.assert_array_equal(model.get_module(path).weight.data, expected)
    assert 0 < np.abs(model(TOKENS).data - merged_logits).max() < np.abs(merged_logits).max()


# Several adapters, files


def test_switching_among_adapters_leaves_the_codes_alone():
    model = quantized("float64")
    plain, codes = model(TOKENS).data, dict(model.named_buffers())
    one = shake(ml.add_lora(model, LORA, name="one"), 1)(TOKENS).data
    two = shake(ml.add_lora(model, ml.LoRAConfig(rank=1), name="two"), 2)(TOKENS).data
    for name, expected in (("one", one), (None, plain), ("two", two), ("one", one)):
        ml.set_adapter(model, name)
        np.testing.assert_array_equal(model(TOKENS).data, expected)
        assert all(array is codes[path] for path, array in model.named_buffers())
    with ml.lora_disabled(model):
        np.testing.assert_array_equal(model(TOKENS).data, plain)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
def test_an_adapter_comes_back_bit_for_bit_on_its_own_base_alone(tmp_path, dtype, bias):
    model = shake(ml.add_lora(quantize_model(floats(dtype, bias=bias), "nf4", BLOCK), LORA))
    path = ml.save_adapter(model, tmp_path / "adapter.npz")
    loaded = ml.load_adapter(quantize_model(floats(dtype, bias=bias), "nf4", BLOCK), path)
    np.testing.assert_array_equal(loaded(TOKENS).data, model(TOKENS).data)
    assert_same(loaded.state_dict(), model.state_dict())
    others = [floats(dtype, bias=bias)]
    others += [quantize_model(floats(dtype, bias=bias), kind, BLOCK) for kind in ("int4", "int8")]
    others += [quantize_model(floats(dtype, bias=bias), "nf4", block, d) for block, d in ((BLOCK, False), (16, True))]
    for other in others:
        before = snapshot(other)
        with pytest.raises(ValueError, match=r"adapter\.npz: the adapter was trained on another base model"):
            ml.load_adapter(other, path)
        assert_untouched(other, before)


def test_the_fingerprint_sees_every_code_and_scale():
    plain = fingerprint(quantized())
    assert fingerprint(qlora()) == plain
    for name in dict(quantized().named_buffers()):
        model = quantized()
        array = dict(model.named_buffers())[name].reshape(-1)
        array[-1] = array[-1] + 1
        assert fingerprint(model) != plain, name


def test_a_state_dict_of_a_quantized_model_goes_back_into_one():
    model, other = quantized(), quantize_model(floats(rng=1), "nf4", BLOCK)
    assert not np.array_equal(other(TOKENS).data, model(TOKENS).data)
    other.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(other(TOKENS).data, model(TOKENS).data)
    ml.add_lora(other, LORA).load_state_dict(model.state_dict())  # a base's state loads with LoRA on it, too


def test_a_state_dict_that_does_not_fit():
    model = quantized()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.q_proj\.weight is quantised here; .* then quantize_model"):
        model.load_state_dict(floats().state_dict())
    codes = "blocks.0.attn.q_proj.weight.codes"
    for changed, message in (
        ({codes: before[0][codes].astype("float32")}, "codes has dtype float32, expected uint8"),
        ({codes: before[0][codes][1:]}, r"codes has shape \(31,\), expected \(32,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.load_state_dict({**before[0], **changed})
    with pytest.raises(ValueError, match=f"missing {codes}"):
        model.load_state_dict({name: a for name, a in before[0].items() if name != codes})
    with pytest.raises(ValueError, match=r"missing blocks\.0\.attn\.q_proj\.weight"):
        floats().load_state_dict(before[0])
    assert_untouched(model, before)
    adapted = qlora()
    before = snapshot(adapted)
    with pytest.raises(ValueError, match="is quantised here"):
        adapted.load_state_dict(floats().state_dict())
    assert_untouched(adapted, before)


def run_of(text, steps=6):
    model = quantize_model(ml.GPT(ml.GPTConfig(96, 12, 2, 2, 16), rng=3), "nf4", BLOCK, target_modules=("*.attn.*",))
    quantize_model(model, "int8", 32, double=False, target_modules=("up_proj",))
    ml.add_lora(model, ml.LoRAConfig(rank=2, target_modules=("q_proj", "up_proj", "down_proj"), dropout=0.1), rng=1)
    settings = ml.Settings(steps=steps, batch_size=4, evaluate_every=3, evaluation_windows=4, warmup=2)
    return ml.Run(model, text, settings)


def test_a_run_goes_on_from_its_checkpoint_bit_for_bit(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(" ".join(np.random.default_rng(0).choice(["the", "cat", "sat", "on", "a", "mat"], 1500)))
    text = ml.load_corpus(path)
    whole = ml.train(run_of(text), progress=False)
    part = ml.train(run_of(text, steps=3), progress=False)
    part.settings.steps = 6
    loaded = load_checkpoint(save_checkpoint(part, tmp_path / "run.npz"))
    assert_same(loaded.model.state_dict(), part.model.state_dict())
    assert quantization(loaded.model) == quantization(part.model)
    expected, got = (ml.train(run, progress=False) for run in (part, loaded))
    assert_same(got.model.state_dict(), expected.model.state_dict())
    assert got.history == expected.history
    assert got.history["loss"][:3] == whole.history["loss"][:3]
    codes = {name for name in whole.model.state_dict() if ".codes" in name}
    assert len(codes) == 8 + 8 + 2  # attention's codes, those of its scales, and up_proj's


# What is refused


def test_training_a_quantized_model_without_an_adapter(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("to be or not to be " * 200)
    model = quantize_model(ml.GPT(ml.GPTConfig(96, 12, 1, 2, 8)))
    with pytest.raises(
        ValueError, match=r"requires a gradient; add_lora\(model, LoRAConfig\(\)\) gives a .* quantised"
    ):
        ml.Run(model, ml.load_corpus(path), ml.Settings(steps=2))


@pytest.mark.parametrize("config", [FullConfig(), LastBlocksConfig(1)])
def test_training_the_weights(config):
    model = quantized()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"is quantised and cannot be trained; put LoRA on it"):
        ml.add_adapter(model, config)
    assert_untouched(model, before)


@pytest.mark.parametrize("layer", [lambda: quantized(), lambda: qlora()], ids=["quantised", "qlora"])
def test_a_quantized_weight_is_for_reading(layer):
    model = layer()
    q_proj = model.blocks[0].attn.q_proj
    before = snapshot(model)
    weight = q_proj.weight
    weight.requires_grad = False  # it is frozen already
    with pytest.raises(ValueError, match=r"requires_grad: a quantised weight is for reading: .* put LoRA on it"):
        weight.requires_grad = True
    with pytest.raises(ValueError, match="weight: a quantised weight is for reading"):
        q_proj.weight = ml.Tensor(np.ones((8, 8)))
    with pytest.raises(ValueError, match="read-only"):
        weight.data += 1
    assert not weight.requires_grad
    assert_untouched(model, before)


def test_variants_that_need_float_weights():
    model = quantized()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"DoRAConfig needs floating-point weights, .* use LoRA"):
        ml.add_lora(model, DoRAConfig(rank=2))
    with pytest.raises(ValueError, match="init='pissa' needs floating-point weights"):
        ml.add_lora(model, ml.LoRAConfig(rank=2, init="pissa"))
    assert_untouched(model, before)


def test_quantizing_what_cannot_be():
    model = floats()
    model.blocks[1].mlp.up_proj.weight.data[3, 2] = np.nan
    before = model.state_dict()
    with pytest.raises(ValueError, match=r"quantize_model: blocks\.1\.mlp\.up_proj\.weight: .*entry \(3, 2\) is nan"):
        quantize_model(model)
    assert_same(model.state_dict(), before)
    assert all(p.requires_grad for p in model.parameters())
    assert not quantization(model)

    adapted = ml.add_lora(floats(), LORA)
    untouched = snapshot(adapted)
    with pytest.raises(ValueError, match="quantize_model: the model has an adapter; remove_lora"):
        quantize_model(adapted)
    assert_untouched(adapted, untouched)

    with pytest.raises(ValueError, match=r"no layer is left that is not quantised, of q_proj"):
        quantize_model(quantized(), target_modules=("q_proj",))
    with pytest.raises(ValueError, match="'query' matches nothing; there are q_proj"):
        quantize_model(floats(), target_modules="query")
    with pytest.raises(ValueError, match="kind = 'nf5'"):
        quantize_model(floats(), "nf5")


def test_files_and_functions_that_need_another_model(tmp_path):
    with pytest.raises(ValueError, match="save_model: the model is quantised; save the float model"):
        ml.save_model(quantized(), tmp_path / "model.npz")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="requantize: the model has no active adapter"):
        requantize(quantized())
    model = ml.add_adapter(quantized(), HoulsbyConfig(bottleneck=2))
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"merge_adapter: .* nonlinearity"):
        requantize(model)
    assert_untouched(model, before)


@pytest.mark.parametrize("kind", ["nf4", "int4", "int8"])
def test_an_adapter_says_how_its_base_was_held(kind, tmp_path):
    """The fingerprint alone would call a base in other bits another model."""
    few, many = tmp_path / "few.npz", tmp_path / "many.npz"
    ml.save_adapter(ml.add_lora(quantized(kind=kind), LORA), few)
    ml.save_adapter(ml.add_lora(floats(), LORA), many)
    other = "int8" if kind != "int8" else "nf4"
    for model, path, held in ((floats(), few, "floats"), (quantized(kind=other), few, other)):
        with pytest.raises(ValueError, match=rf"trained on {kind}, .* {held}; quantize_model\(model, '{kind}'\) first"):
            ml.load_adapter(model, path)
    with pytest.raises(
        ValueError, match=f"trained on floats, this model holds {kind}; put it on the model that is not"
    ):
        ml.load_adapter(quantized(kind=kind), many)
    ml.load_adapter(quantized(kind=kind), few)
    arrays, header = load_arrays(few, "adapter")
    del header["quantized"]  # as files from before have it
    save_arrays(few, arrays, header)
    ml.load_adapter(quantized(kind=kind), few)
    with pytest.raises(ValueError, match=r"another base model \(fingerprint \w+, this model has \w+\)$"):
        ml.load_adapter(floats(), few)


# --- a weight in 16 bits, and a table --------------------------------------------------------------------------------


def in_16_bits(kind="bfloat16"):
    """A GPT whose matrices are held in 16 bits, and the same one in floats."""
    model, plain = floats(), floats()
    for path, m in [*plain.named_modules()]:
        if isinstance(m, Linear):
            held = half(m.weight.data, kind)
            m.weight.data = held.dequantize()
            model.set_module(path, QuantizedLinear.of(held, model.get_module(path).bias))
    return model, plain


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_lora_on_16_bits_is_lora_on_the_floats_they_stand_for(kind):
    model, plain = in_16_bits(kind)
    assert model.count() == plain.count()
    outputs = []
    for m in (model, plain):
        ml.add_lora(m, ml.LoRAConfig(rank=2), rng=1)
        optimizer = ml.AdamW(m.named_parameters(), lr=0.01)
        outputs.append([ml.train_step(m, optimizer, TOKENS, TOKENS) for _ in range(3)])
        ml.merge_lora(m)
        outputs[-1].append(m(TOKENS).data)
    for ours, theirs in zip(*outputs, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    requantize(model)
    assert {m.quantized.kind for _, m in model.named_modules() if isinstance(m, QuantizedLinear)} == {kind}


def test_a_table_in_16_bits_gives_its_rows():
    held = half(np.random.default_rng(0).normal(size=(7, 4)), "bfloat16")
    table = QuantizedEmbedding(held)
    np.testing.assert_array_equal(table(np.array([[6, 0]])).data, held.dequantize()[[[6, 0]]])
    np.testing.assert_array_equal(table.weight.data, held.dequantize())
    assert table.count() == 28 and str(table) == "QuantizedEmbedding(bfloat16; frozen weight (7, 4))"
    with pytest.raises(ValueError, match="tokens run from 0 to 7, expected 0 to 6"):
        table(np.array([0, 7]))


def test_an_output_head_is_quantised_where_it_is_named():
    small = dict(vocab_size=11, width=8, layers=1, heads=2, mlp_width=12, context=8)
    model = quantize_model(ml.Transformer(replace(find("llama-2-7b"), **small)), "int8", 4)
    assert len(quantization(model)) == 7 and type(model.head) is Linear and not model.head.weight.requires_grad
    exact = model(TOKENS).data
    ml.add_lora(model, LORA, rng=0)
    ml.train_step(model, ml.AdamW(model.named_parameters(), lr=0.1), TOKENS, TARGETS)
    ml.remove_lora(model)
    np.testing.assert_array_equal(model(TOKENS).data, exact)
    quantize_model(model, "int8", 4, target_modules=("head",))
    assert quantization(model).keys() >= {"head"} and len(quantization(model)) == 8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block, apart", [(8, True), (4, True), (12, False)])
def test_rows_and_parts_of_a_quantised_weight_are_those_of_the_whole(kind, block, apart, monkeypatch):
    rng = np.random.default_rng(0)
    held = quantize(rng.normal(size=(9, 8)), kind, block, double=True)
    whole = held.dequantize()
    assert held.apart == apart
    for index in (slice(2, 5), np.array([[8, 0], [3, 3]]), [1]):
        np.testing.assert_array_equal(held.rows(index), whole[index])
    monkeypatch.setattr("minilora.adapters.quantization.STRETCH", 16)
    np.testing.assert_array_equal(np.concatenate([floats for _, floats in held.stretches()]), whole)
    monkeypatch.setattr("minilora.adapters.qlora.LARGEST", 16)
    x, bias, g = ml.Tensor(rng.normal(size=(2, 8)), True), ml.Tensor(rng.normal(size=9), True), rng.normal(size=(2, 9))
    y = product(x, held, bias)
    np.testing.assert_allclose(y.data, x.data @ whole.T + bias.data, rtol=1e-6)
    dx, db = ml.grad((y * g).sum(), [x, bias])
    np.testing.assert_allclose(dx, g @ whole, rtol=1e-6)
    np.testing.assert_allclose(db, g.sum(axis=0))
