"""An empty folder with a text in it, and a small model; and `lines.py` made importable by the tests beside it."""

import contextlib
import shutil
import sys
from pathlib import Path

import pytest
import tiny_tokenizers

sys.path.append(str(Path(__file__).parent))

from lines import QUICK, SIZES

import minilora as ml
from minilora.commands.main import main
from minilora.nn.architectures import from_hugging_face

TEXT = "The quick brown fox jumps over the lazy dog.\n" * 60


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder with a small text in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with a text, a small model that has seen it for four steps, and its record."""
    folder = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(folder):
        (folder / "text.txt").write_text(TEXT)
        assert main(["pretrain", "--corpus", "text.txt", *SIZES, *QUICK, "--output", "base.npz"]) == 0
    return folder


@pytest.fixture
def base(here, trained):
    """The path of a copy of that model in the current folder."""
    for name in ("base.npz", "base.json"):
        shutil.copyfile(trained / name, here / name)
    return here / "base.npz"


LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture
def folder(here):
    """A tiny model that others might have trained, with its tokenizer: a Hugging Face folder in the current folder."""
    tokens = len(tiny_tokenizers.trained()[0])
    model = ml.Transformer(from_hugging_face({**LLAMA, "vocab_size": tokens}), rng=0)
    for p in model.parameters():
        p.data *= 4  # so that it prefers some tokens to others
        p.changed()
    ml.save_pretrained(model, "llama")
    tiny_tokenizers.write_folder(here / "llama", {"eos_token": "<|im_end|>", "chat_template": tiny_tokenizers.CHAT})
    return here / "llama"
