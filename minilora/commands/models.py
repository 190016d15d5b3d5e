"""The model and adapter files that commands are given."""

import contextlib
import difflib
from pathlib import Path

import minilora as ml

from ..nn.characters import VOCABULARY
from ..nn.storage import load_arrays


def existing(text: str, what: str, hint: str) -> Path:
    """The path of a file that is there. Raises FileNotFoundError with the closest name in its folder, or a hint."""
    path = Path(text)
    if path.is_file():
        return path
    beside = sorted(p.name for p in path.parent.glob("*.npz")) if path.parent.is_dir() else []
    if path.is_dir():
        raise IsADirectoryError(f"{text} is a folder, expected a {what} file")
    close = difflib.get_close_matches(path.name, [*beside, *(["base"] if what == "model" else [])], 1)
    hint = f"did you mean {close[0] if close[0] == 'base' else str(path.with_name(close[0]))!r}?" if close else hint
    raise FileNotFoundError(f"no {what} file {text!r}; {hint}")


def load_model(name: str, kind: str | None = None) -> ml.GPT:
    """The model of this name or file, its linear layers quantised where a kind is given.

    Raises ValueError when its vocabulary is not the characters of the corpora.
    """
    if name != "base":
        existing(name, "model", "'base' is the one that comes with minilora")
    model = ml.load_model(name)
    if model.config.vocab_size != len(VOCABULARY):
        raise ValueError(
            f"{name} has a vocabulary of {model.config.vocab_size}, expected the {len(VOCABULARY)} characters"
        )
    return ml.quantize_model(model, kind) if kind else model


def load_adapted(name: str, kind: str | None, adapter: str) -> ml.GPT:
    """The model of this name or file with the adapter in a file. Raises ValueError, with the option that lacks."""
    path = existing(adapter, "adapter", "minilora finetune writes one")
    model = load_model(name, kind)
    try:
        return ml.load_adapter(model, path)
    except ValueError as error:
        with contextlib.suppress(ValueError):
            trained_on = load_arrays(path, "adapter")[1].get("quantized")
            if trained_on is not None and trained_on != ([kind] if kind else []):
                error.add_note(f"here: --quantize {trained_on[0]}" if trained_on else "here: leave out --quantize")
        raise
