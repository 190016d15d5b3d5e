"""What every method must do, whatever it is: one table of examples, and the promises of `adapters/adapter.py`."""

import copy
import dataclasses

import numpy as np
import pytest

import minilora as ml
from minilora.adapters.adapter import METHODS
from minilora.adapters.bottleneck import HoulsbyConfig, PfeifferConfig
from minilora.adapters.dora import DoRAConfig
from minilora.adapters.files import fingerprint
from minilora.adapters.prefix import PrefixConfig
from minilora.adapters.prompt import PromptConfig
from minilora.adapters.selected import BitFitConfig, FullConfig, LastBlocksConfig
from minilora.adapters.state import adapter_parameters, base_parameters
from minilora.analysis import methods
from minilora.nn.storage import load_arrays, save_arrays

CONFIG = ml.GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=8)
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 5))
TARGETS = np.random.default_rng(1).integers(0, 11, (3, 5))

EXAMPLES = {
    "full": FullConfig(),
    "last-blocks": LastBlocksConfig(blocks=1),
    "bitfit": BitFitConfig(),
    "prompt": PromptConfig(tokens=2),
    "prefix": PrefixConfig(tokens=2),
    "houlsby": HoulsbyConfig(bottleneck=3, adapter_norm=True),
    "pfeiffer": PfeifferConfig(bottleneck=3, activation="relu"),
    "lora": ml.LoRAConfig(rank=2, alpha=3),
    "dora": DoRAConfig(rank=2, alpha=3, exact_norm=True),  # the paper's norm is a constant: no gradient of the loss
    "lora-fa": ml.LoRAFAConfig(rank=2, alpha=3),
    "ia3": ml.IA3Config(),
    "vera": ml.VeRAConfig(rank=5),
    "miss": ml.MiSSConfig(rank=3),  # of 8 and 32 inputs: the last piece is shorter
}
PAIRS = {  # two methods, and what each brings
    "lora+pfeiffer": (ml.LoRAConfig(rank=2), PfeifferConfig(bottleneck=3)),
    "lora+houlsby": (ml.LoRAConfig(rank=2, target_modules="*"), HoulsbyConfig(bottleneck=3)),  # one inside the other
    "houlsby+last-blocks": (HoulsbyConfig(bottleneck=3), LastBlocksConfig(blocks=1)),
    "dora+lora": (
        DoRAConfig(rank=2, target_modules="q_proj", exact_norm=True),
        ml.LoRAConfig(3, target_modules="v_proj"),
    ),
}
every_method = pytest.mark.parametrize("kind", EXAMPLES)


def base(dtype="float64", rng=0, config=CONFIG):
    """A GPT whose logits are not tiny and whose biases are not zero, so that a change shows."""
    model = ml.GPT(config, rng=rng).astype(dtype)
    generator = np.random.default_rng(7)
    for p in model.parameters():
        p.data += generator.normal(0, 0.2, p.shape)
    return model


def shake(model, rng=5):
    """Move the adapter's parameters as training would."""
    generator = np.random.default_rng(rng)
    for p in adapter_parameters(model).values():
        p.data += generator.normal(0, 0.2, p.shape)
    return model


def adapted(kind, dtype="float64", rng=5):
    return shake(ml.add_adapter(base(dtype), EXAMPLES[kind]), rng)


def logits(model):
    return model(TOKENS).data


def snapshot(model):
    """Every parameter, with its values and whether it is trained, and what hangs on the model."""
    held = {name: (p, p.data.copy(), p.requires_grad) for name, p in model.named_parameters()}
    return held, sorted(vars(model)), logits(model)


def assert_same(model, before):
    held, names, outputs = before
    assert sorted(vars(model)) == names
    assert [name for name, _ in model.named_parameters()] == list(held)
    for name, p in model.named_parameters():
        tensor, values, trained = held[name]
        assert p is tensor, name
        assert p.requires_grad == trained, name
        np.testing.assert_array_equal(p.data, values, err_msg=name)
        assert p.dtype == values.dtype
    np.testing.assert_array_equal(logits(model), outputs)


def plan(model, config):
    fields = {f.name for f in dataclasses.fields(methods.Options)}
    sizes = {name: value for name, value in vars(config).items() if name in fields}
    return methods.plan(model, config.kind, **sizes)


def test_every_method_has_an_example():
    """A method that is added without one is not tested here."""
    assert EXAMPLES.keys() == METHODS.keys() == methods.METHODS.keys()
    assert all(type(config) is METHODS[kind] for kind, config in EXAMPLES.items())


# Attaching and taking out


@every_method
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_start_is_the_base_model_and_removing_gives_it_back(kind, dtype):
    model = base(dtype)
    model.wpe.weight.requires_grad = False  # somebody had frozen the positions before
    before = snapshot(model)
    assert ml.add_adapter(model, EXAMPLES[kind]) is model
    if kind not in ("prompt", "prefix"):
        np.testing.assert_array_equal(logits(model), before[2])
    assert logits(model).dtype == dtype
    assert {p.dtype for p in model.parameters()} == {np.dtype(dtype)}
    assert fingerprint(model) == fingerprint(base(dtype))
    shake(model)
    assert (logits(model) != before[2]).any()
    ml.remove_adapter(model)
    assert_same(model, before)


@every_method
def test_what_is_trained_is_what_the_formula_says(kind):
    model = ml.add_adapter(base(), EXAMPLES[kind])
    planned = plan(CONFIG, EXAMPLES[kind])
    expected = planned.trainable
    assert {name: p.shape for name, p in adapter_parameters(model).items()} == expected | planned.frozen
    assert {name: p.shape for name, p in model.named_parameters() if p.requires_grad} == expected
    assert not any(p.requires_grad for p in base_parameters(model).values())
    assert base_parameters(model).keys() == base().state_dict().keys()


@every_method
def test_training_moves_the_adapter_alone(kind):
    model = ml.add_adapter(base(), EXAMPLES[kind])
    before = {name: (p, p.data.copy()) for name, p in base_parameters(model).items()}
    start = {name: p.data.copy() for name, p in adapter_parameters(model).items()}
    optimizer = ml.AdamW(model.named_parameters(), lr=0.02)
    losses = [ml.train_step(model, optimizer, TOKENS, TARGETS) for _ in range(25)]
    assert losses[-1] < losses[0] - 0.01
    for name, p in adapter_parameters(model).items():
        assert (p.data != start[name]).any() == p.requires_grad, name
    for name, p in base_parameters(model).items():
        assert p is before[name][0]
        np.testing.assert_array_equal(p.data, before[name][1], err_msg=name)


@every_method
@pytest.mark.parametrize("method", ["central", "complex-step", "directional"])
def test_gradients(kind, method):
    model = adapted(kind)
    parameters = {name: p for name, p in adapter_parameters(model).items() if p.requires_grad}
    report = ml.gradcheck(
        lambda *_: model.loss(TOKENS, TARGETS), list(parameters.values()), method, max_entries=4, names=list(parameters)
    )
    assert report.passed, str(report)


@every_method
def test_a_base_checkpoint_loads_under_an_adapter(kind):
    model, state = ml.add_adapter(base(), EXAMPLES[kind]), base(rng=3).state_dict()
    model.load_state_dict(state)
    for name, values in model.state_dict().items():
        if name in state:
            np.testing.assert_array_equal(values, state[name], err_msg=name)


@every_method
def test_generating_with_and_without_the_cache(kind):
    model = adapted(kind)
    texts = [model.generate(TOKENS[:, :2], 3, rng=1, use_cache=cached) for cached in (True, False)]
    np.testing.assert_array_equal(*texts)


@every_method
def test_a_deepcopy_is_independent(kind):
    model = adapted(kind)
    before = snapshot(model)
    twin = copy.deepcopy(model)
    np.testing.assert_array_equal(logits(twin), before[2])
    assert adapter_parameters(twin).keys() == adapter_parameters(model).keys()
    shake(twin, rng=9)
    ml.remove_adapter(twin)
    for p in twin.parameters():
        p.data += 1
    assert_same(model, before)


# Merging and disabling


@every_method
def test_merging_keeps_the_outputs_or_says_why_it_cannot(kind):
    model, plain = adapted(kind), logits(base())
    before, trained = snapshot(model), adapter_parameters(model).keys()
    if not plan(CONFIG, EXAMPLES[kind]).mergeable:
        with pytest.raises(ValueError, match=r"merge_adapter: (blocks\.|front).*: .*no (weight|change)"):
            ml.merge_adapter(model)
        return assert_same(model, before)
    ml.merge_adapter(model)
    assert np.abs(logits(model) - before[2]).max() <= 1e-12 * np.abs(before[2]).max()
    assert not model.loss(TOKENS, TARGETS).requires_grad  # merged, nothing is trained
    assert adapter_parameters(model).keys() == trained
    assert fingerprint(model) == fingerprint(base())
    with ml.adapter_disabled(model):
        np.testing.assert_array_equal(logits(model), plain)
    ml.unmerge_adapter(model)
    assert_same(model, before)
    ml.merge_adapter(model)
    ml.remove_adapter(model)
    assert model.state_dict().keys() == base().state_dict().keys()
    assert np.abs(logits(model) - before[2]).max() <= 1e-12 * np.abs(before[2]).max()
    assert all(p.requires_grad for p in model.parameters())


@every_method
def test_disabled_is_the_base_model(kind):
    model, plain = adapted(kind), logits(base())
    before = snapshot(model)
    with pytest.raises(KeyError, match="inside"), ml.adapter_disabled(model):
        np.testing.assert_array_equal(logits(model), plain)
        raise KeyError("inside")
    assert_same(model, before)


# Files


@every_method
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_adapter_comes_back_bit_for_bit(tmp_path, kind, dtype):
    model = adapted(kind, dtype)
    path = ml.save_adapter(model, tmp_path / "adapter.npz")
    loaded = ml.load_adapter(base(dtype), path)
    assert loaded.adapters["default"].configs == model.adapters["default"].configs
    ours, theirs = adapter_parameters(model), adapter_parameters(loaded)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name].data, theirs[name].data, err_msg=name)
    np.testing.assert_array_equal(logits(loaded), logits(model))


def check_refused(path, message, model=None):
    model = model or base()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message) as error:
        ml.load_adapter(model, path)
    assert path.name in str(error.value)
    assert_same(model, before)


def test_files_of_an_unknown_or_another_method_are_refused(tmp_path):
    path = ml.save_adapter(adapted("pfeiffer"), tmp_path / "adapter.npz")
    arrays, header = load_arrays(path, "adapter")

    def write(*recipes):
        return save_arrays(path, arrays, {**header, "methods": list(recipes)})

    pfeiffer = header["methods"][0]
    check_refused(write({"kind": "magic", "config": {}}), "no method 'magic'; there are .*lora")
    check_refused(write({"kind": "lora", "config": {}}), r"adapts blocks\.0\.mlp\.adapter\.down\.bias")
    check_refused(write({"kind": "houlsby", "config": {"bottleneck": 3}}), r"nothing for blocks\.0\.attn\.adapter")
    check_refused(write({"kind": "pfeiffer", "config": {"bottleneck": 4}}), r"shape \(3, 8\) for .*, expected \(4, 8\)")
    check_refused(write({"kind": "pfeiffer", "config": {"bottleneck": 0}}), "bottleneck = 0")
    check_refused(write(), r"adapts blocks\.0\.mlp\.adapter")
    check_refused(write({"config": {}}), "header has no 'kind'")
    check_refused(write(pfeiffer, pfeiffer), "both want the place")
    check_refused(write(pfeiffer), "fingerprint", base(rng=4))
    assert ml.load_adapter(base(), write(pfeiffer)).adapters["default"].kind == "pfeiffer"


# Several on one model


def test_switching_among_all_methods_moves_references_alone():
    model = base()
    weights = {name: (p, p.data) for name, p in model.named_parameters()}
    expected, held = {None: logits(model)}, {}
    for i, (kind, config) in enumerate(EXAMPLES.items()):
        shake(ml.add_adapter(model, config, name=kind), rng=i)
        expected[kind] = logits(model)
        held[kind] = {name: (p, p.data) for name, p in model.named_parameters()}
    assert len({outputs.tobytes() for outputs in expected.values()}) == len(expected)
    for kind in np.random.default_rng(0).choice(list(EXAMPLES), 20):
        ml.set_adapter(model, str(kind))
        np.testing.assert_array_equal(logits(model), expected[kind])
        assert [name for name, _ in model.named_parameters()] == list(held[kind])
        for name, p in model.named_parameters():
            assert p is held[kind][name][0]
            assert p.data is held[kind][name][1]
    ml.set_adapter(model, None)
    np.testing.assert_array_equal(logits(model), expected[None])
    ml.remove_adapter(model)
    for name, p in model.named_parameters():
        assert p is weights[name][0]
        assert p.data is weights[name][1]


@every_method
def test_an_adapter_follows_the_precision_of_its_base(kind):
    model = adapted(kind, "float32")
    ml.add_adapter(model, ml.LoRAConfig(rank=1), name="other")
    model.astype("float64")
    for name in ("default", "other", "default", None):
        ml.set_adapter(model, name)
        assert {p.dtype for p in model.parameters()} == {np.dtype("float64")}
        assert logits(model).dtype == np.float64
    ml.remove_adapter(model)
    np.testing.assert_array_equal(logits(model), logits(base("float32").astype("float64")))


@pytest.mark.parametrize("pair", PAIRS)
def test_two_methods_together(tmp_path, pair):
    model = base()
    before = snapshot(model)
    ml.add_adapter(model, list(PAIRS[pair]))
    np.testing.assert_array_equal(logits(model), before[2])
    assert model.adapters["default"].kind == pair
    one, two = (plan(CONFIG, config).trainable for config in PAIRS[pair])
    assert {name: p.shape for name, p in adapter_parameters(model).items()} == one | two
    shake(model)
    trained = list(adapter_parameters(model).values())
    report = ml.gradcheck(lambda *_: model.loss(TOKENS, TARGETS), trained, "directional")
    assert report.passed, str(report)
    path, outputs = ml.save_adapter(model, tmp_path / "pair.npz"), logits(model)
    np.testing.assert_array_equal(logits(ml.load_adapter(base(), path)), outputs)
    with ml.adapter_disabled(model):
        np.testing.assert_array_equal(logits(model), before[2])
    np.testing.assert_array_equal(logits(model), outputs)
    if pair == "dora+lora":
        ml.merge_adapter(model)
        np.testing.assert_allclose(logits(model), outputs, rtol=1e-11, atol=1e-12)
        ml.unmerge_adapter(model)
    else:  # one part of it cannot be merged: then nothing is
        with pytest.raises(ValueError, match="nonlinearity"):
            ml.merge_adapter(model)
    np.testing.assert_array_equal(logits(model), outputs)
    ml.remove_adapter(model)
    assert_same(model, before)


@pytest.mark.parametrize(
    "one, two",
    [("lora", "dora"), ("lora", "bitfit"), ("full", "lora"), ("houlsby", "pfeiffer"), ("prompt", "prefix"),
     ("last-blocks", "full"), ("lora", "lora")],
)  # fmt: skip
def test_two_methods_on_one_module_are_refused(one, two):
    model = base()
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"add_adapter: {one} and {two} both want the place of [a-z]+"):
        ml.add_adapter(model, [EXAMPLES[one], EXAMPLES[two]])
    assert_same(model, before)


def test_what_is_no_configuration_is_refused():
    model = base()
    before = snapshot(model)
    for wrong in ("lora", ml.LoRAConfig, CONFIG, [EXAMPLES["lora"], None]):
        with pytest.raises(TypeError, match=r"expected a configuration: .*LoRAConfig.*BitFitConfig"):
            ml.add_adapter(model, wrong)
    assert_same(model, before)


@every_method
def test_errors_leave_an_adapted_model_as_it_was(kind):
    model = adapted(kind)
    before = snapshot(model)
    with pytest.raises(ValueError, match="has an adapter 'default' already"):
        ml.add_adapter(model, EXAMPLES[kind])
    with pytest.raises(ValueError, match="no adapter 'other'; there are default"):
        ml.set_adapter(model, "other")
    with pytest.raises(ValueError, match="not merged"):
        ml.unmerge_adapter(model)
    with pytest.raises(ValueError, match="rank 9 exceeds"):
        ml.add_adapter(model, [PfeifferConfig(), ml.LoRAConfig(rank=9)], name="other")
    assert_same(model, before)
    assert list(model.adapters) == ["default"]
