"""Names, counting, snapshots and loading: what a state dict promises."""

import copy

import numpy as np
import pytest

import minilora as ml
from minilora.nn.layers import Linear
from minilora.nn.module import Module

CONFIG = ml.GPTConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)


def names_by_the_contract(config: ml.GPTConfig, lora: tuple[str, ...] = ()) -> set[str]:
    """The names that the design fixes, spelled out independently of the code."""
    kinds = ("weight", "bias") if config.bias else ("weight",)
    names = {"wte.weight", "wpe.weight"} | {f"ln_f.{kind}" for kind in kinds}
    for i in range(config.n_layer):
        names |= {f"blocks.{i}.{norm}.{kind}" for norm in ("ln_1", "ln_2") for kind in kinds}
        linears = [f"attn.{p}" for p in ("q_proj", "k_proj", "v_proj", "o_proj")] + ["mlp.up_proj", "mlp.down_proj"]
        for path in linears:
            names |= {f"blocks.{i}.{path}.{kind}" for kind in kinds}
            if path.rpartition(".")[2] in lora:
                names |= {f"blocks.{i}.{path}.lora_A", f"blocks.{i}.{path}.lora_B"}
    return names


@pytest.mark.parametrize("bias", [True, False])
def test_names_are_the_contract(bias):
    config = ml.GPTConfig(vocab_size=11, block_size=6, n_layer=3, n_head=2, n_embd=8, bias=bias)
    model = ml.GPT(config)
    names = [name for name, _ in model.named_parameters()]
    assert set(names) == names_by_the_contract(config)
    assert len(names) == len(set(names))
    assert list(model.state_dict()) == names
    ml.add_lora(model, ml.LoRAConfig(rank=2, target_modules=("q_proj", "up_proj")))
    assert set(model.state_dict()) == names_by_the_contract(config, ("q_proj", "up_proj"))


def test_shapes_are_out_by_in():
    state = ml.add_lora(ml.GPT(CONFIG), ml.LoRAConfig(rank=3, target_modules="*")).state_dict()
    assert state["wte.weight"].shape == (11, 8)
    assert state["wpe.weight"].shape == (6, 8)
    assert state["blocks.0.mlp.up_proj.weight"].shape == (32, 8)
    assert state["blocks.1.mlp.down_proj.weight"].shape == (8, 32)
    assert state["blocks.0.mlp.up_proj.lora_A"].shape == (3, 8)
    assert state["blocks.0.mlp.up_proj.lora_B"].shape == (32, 3)


@pytest.mark.parametrize("bias", [True, False])
def test_counting_is_exact(bias):
    v, t, layers, c = 13, 7, 3, 12
    model = ml.GPT(ml.GPTConfig(v, t, layers, 4, c, bias=bias))
    block = 12 * c * c + 2 * c  # four C x C, two 4C x C matrices, two layer norms
    biases = (4 * c + 4 * c + c + 2 * c) if bias else 0  # of q k v o, up, down, and the two layer norms
    total = v * c + t * c + layers * (block + biases) + (2 * c if bias else c)
    assert model.count() == total == sum(a.size for a in model.state_dict().values())
    assert model.count(trainable=True) == total
    ml.add_lora(model, ml.LoRAConfig(rank=2, target_modules=("q_proj", "down_proj")))
    adapter = layers * 2 * ((c + c) + (4 * c + c))
    assert model.count() == total + adapter
    assert model.count(trainable=True) == adapter == sum(p.size for p in model.parameters(trainable=True))


def test_state_dict_is_a_snapshot():
    model = ml.GPT(CONFIG)
    snapshot = model.state_dict()
    before = {name: a.copy() for name, a in snapshot.items()}
    for p in model.parameters():
        p.data += 1
    for name, array in snapshot.items():
        np.testing.assert_array_equal(array, before[name])
    snapshot["wte.weight"][...] = 7  # nor does writing into the snapshot reach the model
    assert not (dict(model.named_parameters())["wte.weight"].data == 7).any()


def test_load_state_dict_copies_and_keeps_tensors_and_precision():
    model, other = ml.GPT(CONFIG, rng=0), ml.GPT(CONFIG, rng=1).astype("float64")
    held = dict(model.named_parameters())
    state = other.state_dict()
    model.load_state_dict(state)
    for name, p in model.named_parameters():
        assert p is held[name]
        assert p.dtype == np.float32
        assert p.requires_grad
        np.testing.assert_array_equal(p.data, state[name].astype(np.float32))
        assert not np.shares_memory(p.data, state[name])


def test_load_state_dict_takes_tensors_and_lists():
    model, other = ml.GPT(CONFIG, rng=0), ml.GPT(CONFIG, rng=1)
    model.load_state_dict(dict(other.named_parameters()))
    np.testing.assert_array_equal(model.wte.weight.data, other.wte.weight.data)
    third = ml.GPT(CONFIG, rng=2)
    third.load_state_dict({name: array.tolist() for name, array in other.state_dict().items()})
    np.testing.assert_array_equal(third.wte.weight.data, other.wte.weight.data)


def break_nothing(state):
    state.pop("ln_f.bias")
    return "missing ln_f.bias"


def break_extra(state):
    state["blocks.7.ln_1.weight"] = np.ones(8)
    return r"unexpected blocks\.7\.ln_1\.weight"


def break_shape(state):
    state["ln_f.weight"] = np.ones(9)
    return r"ln_f\.weight has shape \(9,\), expected \(8,\)"


def break_transposed(state):
    state["blocks.1.mlp.down_proj.weight"] = state["blocks.1.mlp.down_proj.weight"].T
    return r"down_proj\.weight has shape \(32, 8\), expected \(8, 32\)"


def break_broadcastable(state):
    state["ln_f.bias"] = np.ones(())  # would broadcast silently into (8,)
    return r"ln_f\.bias has shape \(\), expected \(8,\)"


def break_kind(state):
    state["ln_f.bias"] = np.array(["a"] * 8)
    return r"ln_f\.bias"


def break_complex(state):
    state["ln_f.bias"] = np.ones(8) * 1j  # the imaginary part would be dropped
    return r"ln_f\.bias"


@pytest.mark.parametrize(
    "damage",
    [break_nothing, break_extra, break_shape, break_transposed, break_broadcastable, break_kind, break_complex],
)
def test_load_state_dict_checks_everything_before_it_changes_anything(damage):
    model = ml.GPT(CONFIG, rng=0)
    before, state = model.state_dict(), ml.GPT(CONFIG, rng=1).state_dict()
    message = damage(state)
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(state)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_many_problems_are_summed_up():
    with pytest.raises(ValueError, match=r"missing wte\.weight; .*\(and \d+ more\)"):
        ml.GPT(CONFIG).load_state_dict({})


@pytest.mark.parametrize("lacking, more", [(1, ""), (5, ""), (6, " (and 1 more)"), (9, " (and 4 more)")])
def test_the_sum_of_the_problems_is_exact(lacking, more):
    model = ml.GPT(CONFIG)
    state = model.state_dict()
    names = list(state)[:lacking]
    for name in names:
        del state[name]
    with pytest.raises(ValueError) as caught:
        model.load_state_dict(state)
    assert str(caught.value) == f"load_state_dict: {'; '.join(f'missing {name}' for name in names[:5])}{more}"


@pytest.mark.parametrize(
    "value, dtype, words",
    [
        (np.nan, "float32", r"entry \(3,\) is nan$"),
        (-np.inf, "float64", r"entry \(3,\) is -inf$"),
        (7e4, "float16", r"entry \(3,\) is 70000\.0, too large for float16$"),
        (1e39, "float32", r"entry \(3,\) is 1e\+39, too large for float32$"),
        (10**40, "float32", r"has dtype object, expected real numbers$"),
    ],
)
def test_numbers_that_would_not_be_finite_are_refused_by_name(value, dtype, words):
    model = ml.GPT(CONFIG).astype(dtype)
    before = model.state_dict()
    state = {**before, "ln_f.bias": [0, 0, 0, value, 0, 0, 0, np.nan]}
    with pytest.raises(ValueError, match=f"^load_state_dict: ln_f\\.bias {words}"):
        model.load_state_dict(state)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


@pytest.mark.parametrize("state", ["base", None, 3, [("ln_f.bias", np.ones(8))], {"ln_f.bias"}, ml.GPT])
def test_a_state_that_is_no_mapping(state):
    with pytest.raises(TypeError, match=r"^load_state_dict: got .*expected \{name: array\}.*load_model"):
        ml.GPT(CONFIG).load_state_dict(state)


@pytest.mark.parametrize("value", [np.ma.masked_array(np.ones(8), [True] + [False] * 7), [[1], [2, 3]], None, "abc"])
def test_a_value_that_is_no_plain_array_is_refused_by_name(value):
    model = ml.GPT(CONFIG)
    with pytest.raises(ValueError, match=r"^load_state_dict: ln_f\.bias (is|has)"):
        model.load_state_dict({**model.state_dict(), "ln_f.bias": value})


@pytest.mark.parametrize("dtype", ["int8", int, bool, "bfloat16", None, "U4", 3, {}, object])
def test_astype_refuses_what_is_no_precision(dtype):
    model = ml.GPT(CONFIG)
    with pytest.raises(TypeError, match=r"^astype: dtype = .*expected 'float16', 'float32' or 'float64'"):
        model.astype(dtype)
    assert {p.dtype for p in model.parameters()} == {np.dtype("float32")}


def test_astype_refuses_numbers_that_the_precision_has_not():
    model = ml.GPT(CONFIG)
    model.ln_f.bias.data[2] = -7e4
    with pytest.raises(ValueError, match=r"^astype: ln_f\.bias: entry \(2,\) is -70000\.0, too large for float16$"):
        model.astype("float16")
    assert {p.dtype for p in model.parameters()} == {np.dtype("float32")}
    assert all(p.requires_grad for p in model.parameters())


def test_astype_leaves_integers_alone():
    class Table(Module):
        """A table of numbers of tokens beside a parameter."""

        def __init__(self):
            self.places, self.scale = ml.Tensor(np.arange(3)), ml.Tensor(np.ones(2, np.float32), requires_grad=True)

    table = Table().astype("float64")
    assert (table.places.dtype, table.scale.dtype) == (np.arange(3).dtype, np.float64)


def test_a_base_checkpoint_loads_before_and_after_add_lora():
    checkpoint = ml.GPT(CONFIG, rng=5).state_dict()
    config = ml.LoRAConfig(rank=2, target_modules="*")
    tokens = np.arange(6)[None]

    before = ml.GPT(CONFIG, rng=0)
    before.load_state_dict(checkpoint)
    ml.add_lora(before, config, rng=9)
    after = ml.add_lora(ml.GPT(CONFIG, rng=0), config, rng=9)
    adapter = {name: array for name, array in after.state_dict().items() if "lora_" in name}
    after.load_state_dict(checkpoint)

    for name, array in after.state_dict().items():
        np.testing.assert_array_equal(array, adapter[name] if "lora_" in name else checkpoint[name])
    np.testing.assert_array_equal(before(tokens).data, after(tokens).data)
    assert all(p.requires_grad == ("lora_" in name) for name, p in after.named_parameters())


def test_a_lora_checkpoint_is_refused_by_a_plain_model():
    lora = ml.add_lora(ml.GPT(CONFIG), ml.LoRAConfig(rank=2))
    with pytest.raises(ValueError, match=r"unexpected .*lora_A"):
        ml.GPT(CONFIG).load_state_dict(lora.state_dict())


def test_a_lora_state_with_the_other_rank_is_refused():
    two, three = (ml.add_lora(ml.GPT(CONFIG), ml.LoRAConfig(rank=r)) for r in (2, 3))
    with pytest.raises(ValueError, match=r"lora_A has shape \(3, 8\), expected \(2, 8\)"):
        two.load_state_dict(three.state_dict())


def test_astype_converts_every_parameter_and_keeps_what_is_frozen():
    model = ml.add_lora(ml.GPT(CONFIG), ml.LoRAConfig(rank=2))
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    values = model.state_dict()
    assert model.astype("float64") is model
    for name, p in model.named_parameters():
        assert p.dtype == np.float64
        assert p.requires_grad == trainable[name]
        np.testing.assert_array_equal(p.data, values[name])
    tokens = np.arange(6)[None]
    loss = model.loss(tokens, tokens)
    assert loss.dtype == np.float64
    assert all(g.dtype == np.float64 for g in ml.grad(loss, model.parameters(trainable=True)))


def test_get_and_set_module():
    model = ml.GPT(CONFIG)
    assert model.get_module("") is model
    assert model.get_module("blocks.1") is model.blocks[1]
    assert model.get_module("blocks.1.attn.q_proj") is model.blocks[1].attn.q_proj
    layer = Linear(8, 8, True, np.random.default_rng(0))
    model.set_module("blocks.1.attn.q_proj", layer)
    assert model.blocks[1].attn.q_proj is layer
    assert dict(model.named_parameters())["blocks.1.attn.q_proj.weight"] is layer.weight
    block = copy.deepcopy(model.blocks[0])
    model.set_module("blocks.1", block)
    assert model.blocks[1] is block
    assert [name for name, m in model.named_modules() if m is block] == ["blocks.1"]
    with pytest.raises(AttributeError, match="nothing_here"):
        model.get_module("blocks.0.nothing_here")


def test_a_module_of_ones_own():
    class Pair(Module):
        """Two layers in a list, and a number that is no parameter."""

        def __init__(self):
            rng = np.random.default_rng(0)
            self.layers = [Linear(3, 4, True, rng), Linear(4, 2, False, rng)]
            self.width = 4

    pair = Pair()
    assert [name for name, _ in pair.named_parameters()] == ["layers.0.weight", "layers.0.bias", "layers.1.weight"]
    assert [name for name, _ in pair.named_modules()] == ["", "layers.0", "layers.1"]
    assert pair.count() == 3 * 4 + 4 + 4 * 2


def test_what_is_loaded_between_forward_and_backward_is_noticed():
    model = ml.GPT(CONFIG)
    state = {name: array + 1 for name, array in model.state_dict().items()}
    tokens = np.arange(6)[None]
    loss, before = model.loss(tokens, tokens), {name: p.version for name, p in model.named_parameters()}
    model.load_state_dict(state)
    assert all(p.version > before[name] for name, p in model.named_parameters())
    with pytest.raises(ValueError, match=r"backward|changed|version"):
        loss.backward()
    ml.GPT(CONFIG).loss(tokens, tokens).backward()
    loss, before = model.loss(tokens, tokens), {name: p.version for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match="missing"):
        model.load_state_dict({})  # what failed has changed nothing
    assert {name: p.version for name, p in model.named_parameters()} == before
    loss.backward()


def test_a_precision_that_changes_between_forward_and_backward_loses_no_gradient():
    """d(w^2) at 3 is 6, before and after."""
    layer = Linear(1, 1, False, np.random.default_rng(0))
    layer.weight.data = np.full((1, 1), 3.0, np.float32)
    loss = (layer.weight * layer.weight).sum()
    layer.astype("float64")
    loss.backward()
    assert layer.weight.grad.item() == 6 and layer.weight.requires_grad
