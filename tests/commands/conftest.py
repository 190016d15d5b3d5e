"""An empty folder with a text in it, and a small model; and `lines.py` made importable by the tests beside it."""

import contextlib
import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from lines import QUICK, SIZES

from minilora.commands.main import main

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
