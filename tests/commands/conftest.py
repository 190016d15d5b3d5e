"""An empty folder with a text in it, and a small model; and `lines.py` made importable by the tests beside it."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from lines import QUICK, SIZES

from minilora.commands.main import main


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder with a small text in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 60)
    return tmp_path


@pytest.fixture
def base(here):
    """A small model, trained for four steps on the text."""
    assert main(["pretrain", "--corpus", "text.txt", *SIZES, *QUICK, "--output", "base.npz"]) == 0
    return here / "base.npz"
