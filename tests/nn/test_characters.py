"""The tokenizer of characters: the face of every other tokenizer."""

import numpy as np
import pytest

import minilora as ml
from minilora.nn.characters import VOCABULARY


def test_a_model_of_characters_has_their_tokenizer():
    tokenizer = ml.load_model("base").tokenizer
    assert tokenizer.encode("The class").tolist() == ml.encode("The class").tolist()
    assert tokenizer.decode(tokenizer.encode("The class"), skip_special=True) == "The class"
    assert (tokenizer.vocab_size, tokenizer.eos) == (96, set())
    everything = tokenizer.encode(VOCABULARY, special=True, frame=False)
    assert everything.dtype == np.int64 and everything.tolist() == list(range(96))


def test_a_model_of_another_vocabulary_has_none():
    sizes = {"block_size": 8, "n_layer": 1, "n_head": 1, "n_embd": 4}
    assert ml.GPT(ml.GPTConfig(vocab_size=97, **sizes)).tokenizer is None
    assert ml.GPT(ml.GPTConfig(vocab_size=96, **sizes)).tokenizer.encode("a").tolist() == [66]


def test_characters_have_no_chats():
    with pytest.raises(ValueError, match=r"^chat: a model of characters has no chat template"):
        ml.load_model("base").tokenizer.chat([{"role": "user", "content": "Hello"}])
