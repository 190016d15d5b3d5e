"""What print(model) shows: a line a module, shapes, what is frozen, where adapters sit; and what an error quotes."""

import copy

import numpy as np
import pytest

import minilora as ml
from minilora.nn.layers import Linear
from minilora.nn.module import Module

CONFIG = ml.GPTConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)

PLAIN = """\
GPT: 1,896 parameters, 1,896 trainable, float32
  wte: Embedding(weight (11, 8))
  wpe: Embedding(weight (6, 8))
  blocks.0 to 1: 2 x Block
    ln_1: LayerNorm(weight (8,), bias (8,))
    attn: Attention
      q_proj: Linear(weight (8, 8), bias (8,))
      k_proj: Linear(weight (8, 8), bias (8,))
      v_proj: Linear(weight (8, 8), bias (8,))
      o_proj: Linear(weight (8, 8), bias (8,))
    ln_2: LayerNorm(weight (8,), bias (8,))
    mlp: MLP
      up_proj: Linear(weight (32, 8), bias (32,))
      down_proj: Linear(weight (8, 32), bias (8,))
  ln_f: LayerNorm(weight (8,), bias (8,))"""


def test_a_plain_model():
    assert str(ml.GPT(CONFIG)) == PLAIN


def test_what_is_frozen_and_where_lora_sits():
    model = ml.add_lora(ml.GPT(CONFIG), ml.LoRAConfig(rank=2, target_modules=("blocks.0.*.q_proj", "up_proj")))
    head, *lines = str(model).splitlines()
    assert head == "GPT: 2,088 parameters, 192 trainable, float32; Adapters('default': lora (active))"
    assert "  wte: Embedding(frozen weight (11, 8))" in lines
    assert "  blocks.0: Block" in lines and "  blocks.1: Block" in lines  # no longer alike
    layer = "LoRALinear(rank 2, alpha 16; frozen weight (8, 8), bias (8,); trainable lora_A (2, 8), lora_B (8, 2))"
    assert lines.index(f"      q_proj: {layer}") < lines.index("  blocks.1: Block")
    assert sum("LoRALinear" in line for line in lines) == 3
    assert all("frozen" in line for line in lines if "(" in line)
    assert repr(model.blocks[0].attn.q_proj) == layer
    ml.merge_lora(model)
    assert repr(model.blocks[0].attn.q_proj).startswith("LoRALinear(rank 2, alpha 16, merged; frozen weight")
    ml.remove_lora(model)
    assert str(model) == PLAIN


def test_a_quantised_model():
    model = ml.quantize_model(ml.GPT(CONFIG), "int8", block=16)
    lines = str(model).splitlines()
    assert lines[0] == "GPT: 1,896 parameters, 0 trainable, float32"
    assert "      q_proj: QuantizedLinear(int8; frozen weight (8, 8), bias (8,))" in lines
    ml.add_lora(model, ml.LoRAConfig(rank=2))
    q = "QLoRALinear(rank 2, alpha 16, int8; frozen weight (8, 8), bias (8,); trainable lora_A (2, 8), lora_B (8, 2))"
    assert f"      q_proj: {q}" in str(model).splitlines()


def test_one_frozen_layer_and_a_parameter_alone():
    model = ml.GPT(CONFIG).astype("float64")
    model.ln_f.weight.requires_grad = False
    lines = str(model).splitlines()
    assert lines[0] == "GPT: 1,896 parameters, 1,888 trainable, float64"
    assert lines[-1] == "  ln_f: LayerNorm(frozen weight (8,); trainable bias (8,))"
    assert lines[1] == "  wte: Embedding(trainable weight (11, 8))"


class Odd(Module):
    """A module in two places, a tensor with two names, modules in a dictionary, a way back up."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.a = Linear(2, 2, False, rng)
        self.again, self.tied = self.a, Linear(2, 2, True, rng)
        self.tied.weight = self.a.weight
        self.heads = {"left": Linear(2, 1, False, rng), "right": Linear(2, 1, False, rng)}
        self.up = self


def test_what_is_shared_is_shown_once_and_named_again():
    assert str(Odd()).splitlines() == [
        "Odd: 10 parameters, 10 trainable, float32",
        "  a: Linear(weight (2, 2))",
        "  again: the same as a",
        "  tied: Linear(weight is a.weight, bias (2,))",
        "  heads.left: Linear(weight (1, 2))",
        "  heads.right: Linear(weight (1, 2))",
        "  up: the same as the model",
    ]


def test_one_layer_is_one_line():
    layer = Linear(3, 4, True, np.random.default_rng(0))
    assert str(layer) == repr(layer) == "Linear(weight (4, 3), bias (4,))"
    layer.weight.requires_grad = False
    assert repr(layer) == "Linear(frozen weight (4, 3); trainable bias (4,))"
    assert repr(Module()) == str(Module()) == "Module"


@pytest.mark.parametrize("kind", ["plain", "lora", "prefix", "houlsby", "dora", "quantised"])
def test_a_model_in_an_error_is_one_line_and_plain_ascii(kind):
    model = ml.GPT(CONFIG)
    configs = {"lora": ml.LoRAConfig(2), "prefix": ml.PrefixConfig(2), "houlsby": ml.HoulsbyConfig(2)}
    configs["dora"] = ml.DoRAConfig(2)
    if kind in configs:
        ml.add_adapter(model, configs[kind], name="mine")
    elif kind == "quantised":
        ml.quantize_model(model, block=16)
    text = repr(model)
    assert text.startswith("GPT(") and f"{model.count():,} parameters" in text and "\n" not in text
    assert kind not in configs or f"'mine': {kind} (active)" in text
    assert str(model).isascii() and repr(copy.deepcopy(model)) == text
    assert str(copy.deepcopy(model)) == str(model)


def test_a_notebook_shows_the_tree():
    pretty = pytest.importorskip("IPython.lib.pretty")
    assert pretty.pretty(ml.GPT(CONFIG)) == PLAIN


def test_a_thousand_layers_are_a_line_and_take_no_time():
    class Deep(Module):
        """Many layers alike."""

        def __init__(self):
            self.layers = [Linear(1, 1, False, np.random.default_rng(0)) for _ in range(1000)]

    assert str(Deep()).splitlines()[1:] == ["  layers.0 to 999: 1000 x Linear(weight (1, 1))"]
