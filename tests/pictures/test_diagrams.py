"""The LoRA layer and its tape: what is drawn is what the tape of this package holds."""

import numpy as np
import pytest
from matplotlib.text import Text

import minilora as ml
from minilora.autograd import ops
from minilora.pictures import diagrams


def test_kept_arrays_are_those_of_the_closures():
    x, w = ml.Tensor(np.ones((6, 4), "f4"), requires_grad=True), ml.Tensor(np.ones((3, 4), "f4"), requires_grad=True)
    frozen = ml.Tensor(w.data)
    names = {id(x.data): "x", id(w.data): "W"}
    both, one = ops.linear(x, w), ops.linear(x, frozen)
    assert diagrams.kept_rows(both.node, names) == [("x", {"W": 48}), ("weight", {"x": 96}), ("bias", None)][:2]
    assert diagrams.kept_rows(one.node, names) == [("x", {"W": 48}), ("weight", None)]
    assert diagrams.kept_bytes(diagrams.tape(both), [w]) == 96  # x, for dW
    assert diagrams.kept_bytes(diagrams.tape(one), [frozen]) == 0
    assert [node.name for node in diagrams.tape(both.sum())] == ["linear", "sum"]


def test_the_drawn_tape_counts_x_and_h_against_x_and_y():
    lora, full = (diagrams.Recorded(kind, 100, 16, 2) for kind in (True, False))
    assert lora.kept == 4 * 100 * (16 + 2) and full.kept == 4 * 100 * (16 + 16)
    assert lora.gradients == 4 * 2 * (16 + 16) and full.gradients == 4 * 2 * (16 * 16 + 16)
    words = [text.get_text() for text in diagrams.lora_tape(100, 16, 2).findobj(Text)]
    assert words.count("dropped") == 4 and "kept: 7 KiB" in words and "kept: 12 KiB" in words
    assert "LoRA's tape keeps 44 % less for the way back," in words[0] or any("44 % less" in word for word in words)


def test_the_layer_tells_its_counts():
    words = " ".join(text.get_text() for text in diagrams.lora_layer(64, 32, 4, 8).findobj(Text))
    assert "384 numbers" in words and "2,048" in words and "4 × 64" in words and "32 × 4" in words
    with pytest.raises(ValueError, match="rank = 33, expected 1 to 32"):
        diagrams.lora_layer(64, 32, 33)


def test_the_block_tells_the_shapes_of_its_model():
    config = ml.GPTConfig(vocab_size=50, block_size=64, n_layer=1, n_head=3, n_embd=48)
    words = [text.get_text() for text in diagrams.block(config).findobj(Text)]
    assert "3 heads, T × D each:\nsoftmax(q kᵀ / √D) v" in words and words.count("T × 4C") == 2
    assert "T ≤ 64 places,   C = 48,   H = 3 heads of D = 16" in words
    linear = {name.split(".")[-2] for name, _ in ml.GPT(config).named_parameters() if "blocks" in name}
    assert linear <= set(words)  # every layer of a block, ln_1 to down_proj, has its box
    with pytest.raises(TypeError, match="block: config = 3, expected a GPTConfig"):
        diagrams.block(3)
