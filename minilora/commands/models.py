"""The model and adapter files that commands are given."""

import contextlib
import difflib
from pathlib import Path
from typing import Any

import minilora as ml

from ..adapters.files import kinds
from ..adapters.quantization import LEVELS
from ..interop import fetch
from ..nn.characters import VOCABULARY
from ..nn.language_model import LanguageModel
from ..nn.storage import load_arrays
from .outputs import same

FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json")  # of a model's folder


def existing(text: str, what: str, hint: str) -> Path:
    """The path of a file that is there. Raises FileNotFoundError with the closest name in its folder, or a hint."""
    path = Path(text)
    if path.is_file():
        return path
    beside = sorted(p.name for p in path.parent.glob("*.npz")) if path.parent.is_dir() else []
    if path.is_dir():
        other = {"model": ", or a Hugging Face folder, which has a config.json",
                 "adapter": ", or PEFT's folder, which has an adapter_config.json"}.get(what, "")  # fmt: skip
        raise IsADirectoryError(f"{text} is a folder, expected {'an' if what[0] == 'a' else 'a'} {what} file{other}")
    names = ["base", *fetch.MODELS] if what == "model" else []
    close = difflib.get_close_matches(path.name, [*beside, *names], 1)
    hint = f"did you mean {close[0] if close[0] in names else str(path.with_name(close[0]))!r}?" if close else hint
    raise FileNotFoundError(f"no {what} file {text!r}; {hint}")


def is_pretrained(name: str) -> bool:
    """Whether a model is one that others trained: fetched, a folder, a .gguf file, or one of the hub's by its name."""
    path = Path(name)
    if path.exists():
        return any((path / name).is_file() for name in FILES) or (path.is_file() and path.suffix == ".gguf")
    of_hub = name.count("/") == 1 and path.suffix != ".npz" and not path.parent.exists()
    return name in fetch.MODELS or path.suffix == ".gguf" or of_hub


def load_model(name: str, kind: str | None = None, dtype: str | None = None) -> LanguageModel:
    """The model of this name, file or folder, its linear layers quantised where a kind is given.

    dtype: how a model that others trained is held, float32 where it is None. Raises ValueError when the vocabulary of a
    model of ours is not the characters of the corpora.
    """
    if is_pretrained(name):
        if kind and dtype not in (None, "float32"):
            raise ValueError(f"--quantize {kind} cannot be given with --dtype {dtype}, which says how weights are held")
        model: LanguageModel = ml.load_pretrained(name, dtype or "float32")
    else:
        if name != "base":
            existing(name, "model", f"'base' comes with minilora, and minilora fetch gets {', '.join(fetch.MODELS)}")
        if dtype is not None:
            raise ValueError(f"--dtype {dtype} cannot be given with --model {name}, which is held in float32")
        model = ml.load_model(name)
        if model.vocab_size != len(VOCABULARY):
            raise ValueError(
                f"{name} has a vocabulary of {model.vocab_size}, expected the {len(VOCABULARY)} characters"
            )
    return ml.quantize_model(model, kind) if kind else model


def with_tokenizer(model: Any, name: str) -> Any:
    """A model that reads text. Raises ValueError where there is nothing that makes tokens of one."""
    if model.tokenizer is None:
        raise ValueError(f"{name} comes without a tokenizer (tokenizer.json), which makes tokens of a text")
    return model


def load_adapted(name: str, kind: str | None, adapter: str, dtype: str | None = None) -> Any:
    """The model of this name with the adapter in a file or folder. Raises ValueError, with the option that lacks."""
    folder = (Path(adapter) / "adapter_config.json").is_file()
    path = Path(adapter) if folder else existing(adapter, "adapter", "minilora finetune writes one")
    model = load_model(name, kind, dtype)
    try:
        return ml.load_adapter(model, path)
    except ValueError as error:
        with contextlib.suppress(ValueError, OSError):
            trained_on = load_arrays(path, "adapter")[1].get("quantized")
            if trained_on is not None and trained_on != kinds(model):
                error.add_note(
                    f"here: {option_for(trained_on[0])}" if trained_on else "here: leave out --quantize, --dtype"
                )
        raise


def option_for(kind: str) -> str:
    """The option that holds a base in this kind of few bits."""
    if kind in LEVELS:
        return f"--quantize {kind}"
    return f"--dtype {kind if kind in ('float16', 'bfloat16') else 'file'}"


def base_name(notes: dict[str, Any]) -> str:
    """How the base model of a run, of which its notes tell, is to be called here."""
    name, place = notes.get("model", "base"), notes.get("place", "")
    return name if name == "base" or same(name, place) else place
