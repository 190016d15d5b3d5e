"""Layers and weights that something else holds or reads: adapted for all, refused, or warned of."""

import warnings

import numpy as np
import pytest
from adapters.test_attach import base, shake

import minilora as ml
from minilora.nn.layers import Linear
from minilora.nn.module import Module


class Shared(Module):
    """A layer in two places, a list that holds it again, and another layer with the same weight."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.a = Linear(4, 4, True, rng, std=1)
        self.b = self.a
        self.more = [self.a, Linear(4, 4, True, rng, std=1)]
        self.pair = (self.a, Linear(4, 4, True, rng, std=1))
        self.named = {"left": self.a, "right": Linear(4, 4, True, rng, std=1)}
        self.astype("float64")

    def __call__(self, x):
        for layer in (self.a, self.b, *self.more, *self.pair, *self.named.values()):
            x = ml.ops.tanh(layer(x))
        return x


X = np.random.default_rng(1).standard_normal((3, 4))


@pytest.mark.parametrize("target", ["a", "b", "more.0", "pair.0", "named.left", "*"])
@pytest.mark.parametrize("config", [ml.LoRAConfig(rank=2), ml.DoRAConfig(rank=2)])
def test_a_layer_in_several_places_is_adapted_once_for_all_of_them(config, target):
    config = type(config)(rank=2, target_modules=target)
    model = Shared()
    plain, names = model(X).data, list(model.state_dict())
    ml.add_lora(model, config)
    np.testing.assert_array_equal(model(X).data, plain)
    shake(model)
    assert model.a is model.b is model.more[0] is model.pair[0] is model.named["left"]
    layers = 4 if target == "*" else 1
    assert model.count(trainable=True) == layers * (16 + 4 * isinstance(config, ml.DoRAConfig))
    before = model(X).data
    assert (before != plain).any()
    parameters = model.parameters(trainable=True)
    exact = isinstance(config, ml.DoRAConfig)  # whose norm is a constant in the backward pass
    assert exact or ml.gradcheck(lambda *_: model(X).sum(), parameters, "directional").passed
    ml.merge_lora(model)
    np.testing.assert_allclose(model(X).data, before, rtol=1e-12, atol=1e-13)
    ml.unmerge_lora(model)
    np.testing.assert_array_equal(model(X).data, before)
    with ml.lora_disabled(model):
        np.testing.assert_array_equal(model(X).data, plain)
    ml.remove_lora(model)
    np.testing.assert_array_equal(model(X).data, plain)
    assert model.a is model.b is model.more[0] is model.pair[0] is model.named["left"]
    assert list(model.state_dict()) == names


class Tied(Module):
    """Two layers with one weight."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.a, self.b = (Linear(4, 4, True, rng, std=1) for _ in range(2))
        self.b.weight = self.a.weight
        self.astype("float64")

    def __call__(self, x):
        return self.b(ml.ops.tanh(self.a(x)))


def test_merging_into_a_weight_that_another_layer_holds_is_refused():
    model = Tied()
    with pytest.warns(UserWarning, match=r"a\.weight is b\.weight, too"):
        ml.add_lora(model, ml.LoRAConfig(rank=2, target_modules="a"))
    before = shake(model)(X).data
    with pytest.raises(ValueError, match=r"merge_adapter: a\.weight is b\.weight, too, which is not adapted"):
        ml.merge_lora(model)
    np.testing.assert_array_equal(model(X).data, before)
    ml.remove_lora(model)
    ml.add_lora(model, ml.LoRAConfig(rank=2, target_modules="*"))
    before = shake(model)(X).data
    with pytest.raises(ValueError, match=r"b\.weight and a\.weight are one tensor, and their updates differ"):
        ml.merge_lora(model)
    np.testing.assert_array_equal(model(X).data, before)


def test_copies_of_what_is_shared_are_shared():
    model = Tied()
    ml.add_adapter(model, ml.FullConfig())
    assert model.a.weight is model.b.weight
    assert model.count(trainable=True) == 16 + 4 + 4
    before = shake(model)(X).data
    ml.merge_adapter(model)
    np.testing.assert_array_equal(model(X).data, before)
    ml.remove_adapter(model)
    np.testing.assert_array_equal(model(X).data, before)
    assert model.a.weight is model.b.weight


def test_a_tensor_trained_in_one_place_and_frozen_in_another_is_refused():
    model = ml.GPT(ml.GPTConfig(7, 5, 2, 2, 8))
    model.blocks[1].mlp.up_proj.weight = model.blocks[0].mlp.up_proj.weight
    names = list(vars(model))
    with pytest.raises(ValueError, match=r"1\.mlp\.up_proj\.weight is to be trained, and is blocks\.0\.mlp\.up_proj"):
        ml.add_adapter(model, ml.LastBlocksConfig(1))
    assert list(vars(model)) == names
    assert all(p.requires_grad for p in model.parameters())


def test_a_parameter_that_is_no_attribute_cannot_be_copied():
    class Scales(Module):
        def __init__(self):
            self.inner = Linear(2, 2, True, np.random.default_rng(0))
            self.scales = [ml.Tensor(np.ones(2), requires_grad=True)]

    with pytest.raises(ValueError, match=r"scales\.0 is no attribute of a layer"):
        ml.add_adapter(Scales(), ml.FullConfig())


# Weights read past their layer


class Direct(Module):
    """Computes with a layer's weight, and does not call it."""

    def __init__(self):
        self.proj, self.called = (Linear(4, 4, True, np.random.default_rng(0)) for _ in range(2))

    def __call__(self, x):
        return ml.ops.linear(self.called(x), self.proj.weight, self.proj.bias)


def test_a_weight_read_past_its_layer_is_warned_of():
    with pytest.warns(UserWarning, match=r"add_lora: proj\.weight is read directly by this Direct") as found:
        ml.add_lora(Direct(), ml.LoRAConfig(rank=2, target_modules="proj"))
    assert {str(w.message).split(" is ")[0] for w in found} == {"add_lora: proj.weight", "add_lora: proj.bias"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ml.add_lora(Direct(), ml.LoRAConfig(rank=2, target_modules="called"))
        ml.add_lora(base(), ml.LoRAConfig(rank=2, target_modules="*"))
