"""What a student of PyTorch, transformers or PEFT writes works where it does no harm, or is answered in one line."""

import re

import numpy as np
import pytest

import minilora as ml
from minilora.nn import habits
from minilora.nn.layers import Linear
from minilora.nn.module import Module

CONFIG = ml.GPTConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)
TOKENS = np.arange(6)[None]


def test_what_works():
    model = ml.GPT(CONFIG)
    assert model.train() is model and model.eval() is model and model.train(False) is model
    np.testing.assert_array_equal(model.forward(TOKENS).data, model(TOKENS).data)
    model.loss(TOKENS, TOKENS).backward()
    assert model.wte.weight.grad is not None
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    assert model.to("float64") is model and model.wte.weight.dtype == np.float64
    assert model.to("cpu") is model and model.to(device="cpu", dtype=np.float32).wte.weight.dtype == np.float32


def test_a_mode_that_would_not_do_what_it_does_elsewhere_is_refused():
    model = ml.GPT(ml.GPTConfig(11, 6, 2, 2, 8, dropout=0.1))
    with pytest.raises(ValueError, match=r"^train: this model has dropout; write model\.loss\(tokens, targets, rng\)"):
        model.train()
    assert model.eval() is model and model.train(False) is model
    assert ml.add_lora(ml.GPT(CONFIG), ml.LoRAConfig(2)).train()
    with pytest.raises(ValueError, match=r"^train: this model has dropout"):
        ml.add_lora(ml.GPT(CONFIG), ml.LoRAConfig(2, dropout=0.1)).train()


@pytest.mark.parametrize("place", ["cuda", "cuda:0", "mps"])
def test_a_gpu_is_chosen_before(place):
    with pytest.raises(ValueError, match=rf'^to: got {place!r}; write ml\.use_backend\("cupy"\) before'):
        ml.GPT(CONFIG).to(place)
    with pytest.raises(TypeError, match=r"^astype: dtype = 'gpu', expected 'float16'"):
        ml.GPT(CONFIG).to("gpu")


def test_forward_is_as_good_a_name_as_call():
    class Mine(Module):
        """As it is written for PyTorch."""

        def __init__(self):
            self.layer = Linear(2, 3, True, np.random.default_rng(0))

        def forward(self, x):
            """x: (..., 2) -> (..., 3)"""
            return self.layer(x)

    x = ml.Tensor(np.ones((1, 2), np.float32))
    np.testing.assert_array_equal(Mine()(x).data, Mine().layer(x).data)

    class Nothing(Module):
        """Without either."""

    for call in (Nothing(), Nothing().forward):
        with pytest.raises(TypeError, match=r"^Nothing computes nothing: it has no __call__, and no forward$"):
            call(x)


@pytest.mark.parametrize("name", habits.MODULE)
def test_an_attribute_of_other_libraries_models_says_what_to_write(name):
    for module in (ml.GPT(CONFIG), Linear(2, 2, True, np.random.default_rng(0))):
        assert not hasattr(module, name)
        with pytest.raises(
            AttributeError, match=f"^{type(module).__name__!r} object .*; write {re.escape(habits.MODULE[name])}$"
        ):
            getattr(module, name)


@pytest.mark.parametrize("name", habits.PACKAGE)
def test_a_name_of_other_libraries_says_what_to_write(name):
    for package in (ml, ml.nn):
        with pytest.raises(AttributeError, match=f"{name!r}; write {re.escape(habits.PACKAGE[name])}$"):
            getattr(package, name)


def test_names_that_exist_are_not_answered():
    assert not habits.PACKAGE.keys() & (set(dir(ml)) | set(ml.__all__))
    assert not habits.MODULE.keys() & (set(dir(ml.GPT)) - {"active_adapter"})


@pytest.mark.parametrize("name", ml.ops.PRIMITIVES)
def test_a_primitive_s_place(name):
    if not hasattr(ml, name):
        with pytest.raises(AttributeError, match=rf"^minilora has no {name!r}; write ml\.ops\.{name}$"):
            getattr(ml, name)


@pytest.mark.parametrize("slip, meant", [("no_gard", "no_grad"), ("LoRaConfig", "LoRAConfig"), ("AdamW_", "AdamW")])
def test_a_slip(slip, meant):
    with pytest.raises(AttributeError, match=rf"^minilora has no {slip!r}; did you mean {meant}\?$"):
        getattr(ml, slip)


def test_what_nobody_knows_is_said_plainly():
    with pytest.raises(AttributeError, match=r"^minilora has no 'qqqqq'$"):
        ml.qqqqq  # noqa: B018
    with pytest.raises(AttributeError, match=r"^'GPT' object has no attribute 'qqqqq'$"):
        ml.GPT(CONFIG).qqqqq  # noqa: B018
    assert not hasattr(ml, "__wrapped__") and not hasattr(ml.GPT(CONFIG), "__array__")


CONFIGS = [
    ml.LoRAConfig, ml.DoRAConfig, ml.PrefixConfig, ml.PromptConfig, ml.HoulsbyConfig, ml.PfeifferConfig,
    ml.BitFitConfig, ml.FullConfig, ml.LastBlocksConfig, ml.GPTConfig,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("setting", [*habits.SETTING, "qqqqq"])
def test_another_library_s_setting_says_its_name_here(config, setting):
    fields = config.__dataclass_fields__
    assert habits.SETTING.get(setting) != setting
    if setting not in fields:
        with pytest.raises(
            TypeError, match=f"^{config.__name__}: got {setting}=3, and there is no such setting; "
        ) as e:
            config(**{setting: 3})
        here = habits.SETTING.get(setting)
        assert str(e.value).endswith(f"write {here}=") == (here in fields and here not in ("inits", "adapted"))


def test_settings_that_are_there_are_taken():
    assert ml.LoRAConfig(rank=4, alpha=8) == ml.LoRAConfig(4, 8)
    assert all(
        any(here in config.__dataclass_fields__ for config in [*CONFIGS, ml.Settings])
        for here in habits.SETTING.values()
    )
