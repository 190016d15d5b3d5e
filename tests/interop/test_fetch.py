"""Models that are fetched by name: their table, their place, and what is said where they are not there."""

import sys
from pathlib import Path

import pytest

from minilora.interop import fetch

NAME = "smollm2-135m"


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("platform", "environment", "folder"),
    [
        ("linux", {}, "home/.cache/minilora"),
        ("linux", {"XDG_CACHE_HOME": "/elsewhere"}, "/elsewhere/minilora"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "home/.cache/minilora"),  # which the XDG standard has us ignore
        ("darwin", {"XDG_CACHE_HOME": "/elsewhere"}, "home/Library/Caches/minilora"),
        ("win32", {}, "home/AppData/Local/minilora"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/minilora"),
        ("linux", {"MINILORA_CACHE": "/ours", "XDG_CACHE_HOME": "/elsewhere"}, "/ours"),
        ("linux", {"MINILORA_CACHE": ""}, "home/.cache/minilora"),
    ],
)
def test_the_cache_is_where_the_system_keeps_such_things(monkeypatch, tmp_path, platform, environment, folder):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "MINILORA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(sys, "platform", platform)
    assert fetch.cache_folder() == tmp_path / folder


def test_a_model_that_is_not_there_says_the_command(cache):
    with pytest.raises(
        FileNotFoundError, match=f"^the model '{NAME}' is not on this machine yet; minilora fetch {NAME}"
    ):
        fetch.cached(NAME)
    cache.mkdir()
    (cache / fetch.MODELS[NAME].file).write_bytes(b"half of it")
    assert not fetch.is_here(NAME)


def test_an_unknown_name_gets_the_closest():
    with pytest.raises(ValueError, match=r"^no model 'smolm2' to fetch; did you mean 'smollm2-135m'\?$"):
        fetch.place("smolm2")
    with pytest.raises(ValueError, match=r"; there is smollm2-135m$"):
        fetch.place("x")
