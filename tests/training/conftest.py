"""A small text and a small model for the tests of training."""

import numpy as np
import pytest

import minilora as ml
from minilora.training.corpus import Corpus

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "that", "rat", "run", "from", "dog", "who", "ate", "it"]


@pytest.fixture
def text_path(tmp_path):
    """A file of 6,000 or so characters with something to learn in it."""
    words = np.random.default_rng(0).choice(WORDS, 1500)
    path = tmp_path / "story.txt"
    path.write_text(" ".join(words))
    return path


@pytest.fixture
def corpus(text_path) -> Corpus:
    """The small text as a corpus."""
    return ml.load_corpus(text_path)


@pytest.fixture
def make_model():
    """A function that builds a small GPT over the 96 characters."""

    def make(dtype: str = "float32", dropout: float = 0.0, lora: ml.LoRAConfig | None = None, rng: int = 0) -> ml.GPT:
        model = ml.GPT(ml.GPTConfig(96, 12, 2, 2, 16, dropout=dropout), rng=rng).astype(dtype)
        return ml.add_lora(model, lora, rng=1) if lora else model

    return make
