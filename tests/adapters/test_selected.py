"""Full fine-tuning, the last blocks, BitFit: the adapter holds the values, and the base stays."""

import numpy as np
import pytest

import minilora as ml
from minilora.adapters.copies import Trained
from minilora.adapters.qlora import quantize_model
from minilora.adapters.selected import BitFitConfig, FullConfig, LastBlocksConfig
from minilora.adapters.state import adapter_parameters, base_parameters
from minilora.nn.layers import Embedding, LayerNorm, Linear

CONFIG = ml.GPTConfig(vocab_size=11, block_size=8, n_layer=3, n_head=2, n_embd=8)
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 5))
TARGETS = np.random.default_rng(1).integers(0, 11, (3, 5))
CONFIGS = [FullConfig(), LastBlocksConfig(2), BitFitConfig()]


def train(model, steps=3):
    optimizer = ml.SGD(model.named_parameters(), lr=0.1)
    return [ml.train_step(model, optimizer, TOKENS, TARGETS) for _ in range(steps)]


def test_full_is_fine_tuning_of_the_model_itself():
    """The same steps on a plain model lead to the same bits."""
    plain, model = (ml.GPT(CONFIG).astype("float64") for _ in range(2))
    ml.add_adapter(model, FullConfig())
    assert train(model) == train(plain)
    assert model.state_dict().keys() == plain.state_dict().keys()
    for name, values in plain.state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[name], values, err_msg=name)
    for name, p in base_parameters(model).items():
        np.testing.assert_array_equal(p.data, ml.GPT(CONFIG).state_dict()[name], err_msg=name)


@pytest.mark.parametrize("config", [LastBlocksConfig(2), BitFitConfig()])
def test_a_part_is_fine_tuning_with_the_rest_frozen(config):
    plain, model = (ml.GPT(CONFIG).astype("float64") for _ in range(2))
    ml.add_adapter(model, config)
    trained = adapter_parameters(model).keys()
    for name, p in plain.named_parameters():
        p.requires_grad = name in trained
    assert train(model) == train(plain)
    np.testing.assert_array_equal(model(TOKENS).data, plain(TOKENS).data)


def test_which_parameters():
    names = {c.kind: adapter_parameters(ml.add_adapter(ml.GPT(CONFIG), c)).keys() for c in CONFIGS}
    every = ml.GPT(CONFIG).state_dict().keys()
    assert names["full"] == every
    assert names["last-blocks"] == {name for name in every if name.startswith(("blocks.1.", "blocks.2."))}
    assert names["bitfit"] == {name for name in every if name.endswith(".bias")}
    one = adapter_parameters(ml.add_adapter(ml.GPT(CONFIG), LastBlocksConfig(1)))
    assert one.keys() == {name for name in every if name.startswith("blocks.2.")}
    bare = ml.GPT(ml.GPTConfig(11, 8, 3, 2, 8, bias=False))
    assert adapter_parameters(ml.add_adapter(bare, FullConfig())).keys() == {n for n in every if "bias" not in n}


def test_the_tied_head_reads_the_trained_embedding():
    model = ml.add_adapter(ml.GPT(CONFIG), FullConfig())
    head = base_parameters(model)["wte.weight"].data
    model.wte.weight.data[:] = 0
    assert not model(TOKENS).data.any()
    assert head.any()


def test_modules_of_every_type_are_copied_and_stay_what_they_are():
    model = ml.add_adapter(ml.GPT(CONFIG), FullConfig())
    kinds = {type(module).__bases__[1] for _, module in model.named_modules() if isinstance(module, Trained)}
    assert kinds == {Linear, Embedding, LayerNorm}
    assert type(model.wte).__name__ == "TrainedEmbedding"
    assert len(model.adapters["default"].modules) == 3 + 3 * 8  # wte, wpe, ln_f; two norms and six matrices a block


def test_only_what_is_trained_is_copied():
    model = ml.add_adapter(ml.GPT(CONFIG), BitFitConfig())
    base = base_parameters(model)
    for name, p in model.named_parameters():
        assert (p is base[name]) == name.endswith(".weight")
        assert np.shares_memory(p.data, base[name].data) == name.endswith(".weight")


@pytest.mark.parametrize("config", CONFIGS)
def test_several_on_one_base(config):
    model = ml.GPT(CONFIG)
    expected = {}
    for name, steps in (("one", 1), ("two", 3)):
        ml.add_adapter(model, config, name=name)
        train(model, steps)
        expected[name] = model(TOKENS).data
    assert (expected["one"] != expected["two"]).any()
    for name in ("one", "two", "one"):
        ml.set_adapter(model, name)
        np.testing.assert_array_equal(model(TOKENS).data, expected[name])
    ml.merge_adapter(model)
    ml.unmerge_adapter(model)
    ml.set_adapter(model, "two")
    np.testing.assert_array_equal(model(TOKENS).data, expected["two"])


@pytest.mark.parametrize("config", CONFIGS)
def test_merging_writes_the_values_and_shares_no_memory(config):
    model = ml.add_adapter(ml.GPT(CONFIG), config)
    train(model)
    trained = {name: p.data.copy() for name, p in adapter_parameters(model).items()}
    ml.merge_adapter(model)
    base = base_parameters(model)
    for name, p in adapter_parameters(model).items():
        np.testing.assert_array_equal(base[name].data, trained[name])
        assert not np.shares_memory(base[name].data, p.data)
    with pytest.raises(ValueError, match=r"none of the .* parameters requires a gradient"):
        train(model)
    ml.unmerge_adapter(model)
    train(model)  # and on
    ml.merge_adapter(model)
    outputs = model(TOKENS).data
    np.testing.assert_array_equal(ml.remove_adapter(model)(TOKENS).data, outputs)


def test_precision_may_change_while_merged():
    model = ml.add_adapter(ml.GPT(CONFIG), FullConfig())
    train(model)
    outputs = model.state_dict()
    ml.merge_adapter(model)
    model.astype("float64")
    ml.unmerge_adapter(model)
    for name, values in model.state_dict().items():
        np.testing.assert_array_equal(values, outputs[name].astype("float64"))
    for name, values in ml.remove_adapter(model).state_dict().items():
        np.testing.assert_array_equal(values, ml.GPT(CONFIG).state_dict()[name].astype("float64"))


def check_refused(config, message, model):
    before = model.state_dict()
    with pytest.raises(ValueError, match=message):
        ml.add_adapter(model, config)
    assert not hasattr(model, "adapters")
    assert all(p.requires_grad for p in model.parameters())
    assert all(np.array_equal(values, before[name]) for name, values in model.state_dict().items())


def test_too_many_blocks_and_no_biases():
    check_refused(LastBlocksConfig(4), "last-blocks: blocks = 4, but the model has 3", ml.GPT(CONFIG))
    no_bias = ml.GPT(ml.GPTConfig(11, 8, 3, 2, 8, bias=False))
    check_refused(BitFitConfig(), "bitfit: the model has no biases to train", no_bias)
    check_refused(LastBlocksConfig(1), "the model has 0", Linear(3, 3, True, np.random.default_rng(0)))


@pytest.mark.parametrize("blocks", [0, -1, 1.0, "2", True])
def test_blocks_must_be_a_positive_integer(blocks):
    with pytest.raises(ValueError, match=f"LastBlocksConfig: blocks = {blocks!r}, expected a positive integer"):
        LastBlocksConfig(blocks)


def test_a_quantised_weight_is_not_trained():
    """Codes and scales are buffers, no parameters; a bias beside them is one."""
    model = ml.GPT(CONFIG)
    quantize_model(model, target_modules="blocks.2.mlp.up_proj")
    for p in model.parameters():
        p.requires_grad = True
    for config in (FullConfig(), LastBlocksConfig(1)):
        check_refused(config, r"blocks\.2\.mlp\.up_proj is quantised and cannot be trained", model)
    before = model(TOKENS).data
    ml.add_adapter(model, BitFitConfig())
    np.testing.assert_array_equal(model(TOKENS).data, before)
    assert type(model.blocks[2].mlp.up_proj).__name__ == "TrainedQuantizedLinear"
    train(model)
    assert (model(TOKENS).data != before).any()
    np.testing.assert_array_equal(ml.remove_adapter(model)(TOKENS).data, before)
