"""`minilora fetch`: what it says; how it fetches is tested in tests/interop/."""

import pytest

from minilora.commands.main import main
from minilora.interop import fetch


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A model that is not here yet, and whose download is a file written on the spot."""
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path))
    monkeypatch.setitem(
        fetch.MODELS, "tiny", fetch.Source("tiny-model", "1.0", "0" * 64, 9, "tiny.gguf", 5, "MIT", "it")
    )
    monkeypatch.setattr(fetch, "fetch", lambda name, progress: fetch.place(name).write_bytes(b"12345"))
    return tmp_path / "tiny.gguf"


def test_what_there_is(tiny, capsys):
    assert main(["fetch"]) == 0
    listed = capsys.readouterr().out
    assert (
        "smollm2-135m" in listed and "Apache-2.0, 98,362,432 bytes, not here yet: minilora fetch smollm2-135m" in listed
    )
    tiny.write_bytes(b"12345")
    assert main(["fetch"]) == 0
    assert f"MIT, 5 bytes, here: {tiny}" in capsys.readouterr().out


def test_a_model_is_fetched_once(tiny, capsys):
    assert main(["fetch", "tiny"]) == 0
    said = capsys.readouterr().out
    assert "fetching          tiny-model 1.0, 9 bytes\n" in said and f"saved             {tiny} (5 bytes)\n" in said
    assert "licence           MIT\n" in said and "minilora generate --model tiny " in said
    assert main(["fetch", "tiny"]) == 0
    assert capsys.readouterr().out.startswith(f"here already      {tiny} (5 bytes)\n")


def test_an_unknown_name_is_one_line(capsys):
    assert main(["fetch", "smollm-135m"]) == 2
    assert capsys.readouterr().err == "minilora: error: no model 'smollm-135m' to fetch; did you mean 'smollm2-135m'?\n"
