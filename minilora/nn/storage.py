"""Arrays in files: an .npz with a JSON header, written whole or not at all, and never unpickled."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd.backend import to_numpy
from .checks import shown
from .classifier import add_classifier
from .files import write_beside
from .gpt import GPT, GPTConfig
from .language_model import LanguageModel
from .module import in_precision, precision

HEADER = "header"  # the name of the JSON text among the arrays, as in `archive.py`
SLACK = 2**24  # parameters that are built before they are found to be too many
COMPRESSED = 2**24  # bytes, up to which a file is compressed: it takes 20 times as long as writing, and saves 8 %
OTHERS = {"ViT": "save_vision", "DiT": "save_diffusion", "Segmenter": "save_segmenter"}  # what writes each
BASE = Path(__file__).parent.parent / "base.npz"  # the pretrained model that comes with the package


def save_arrays(
    path: str | Path, arrays: Mapping[str, Any], header: Mapping[str, Any], compress: bool | None = None
) -> Path:
    """Write named arrays and a JSON-able header into one .npz file. None: compress where that takes but a moment."""
    from .archive import write_archive  # here, so that `import minilora` stays quick

    host: dict[str, Any] = {name: to_numpy(array) for name, array in arrays.items()}
    host[HEADER] = np.array(json.dumps(header, default=_number))
    size = sum(array.nbytes for array in host.values())
    deflate = size < COMPRESSED if compress is None else compress
    return write_beside(path, lambda file: write_archive(file, host, deflate), size)


def _number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"save_arrays: the header holds {value!r}, which is neither text nor a number")


def load_arrays(path: str | Path, kind: str | None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save_arrays` wrote: (arrays, header). The header's "kind" must be `kind`; None takes any.

    Raises FileNotFoundError, or ValueError for a file that is truncated, holds pickled objects, or is of another kind.
    """
    from zipfile import is_zipfile

    from .archive import read_archive  # here, so that `import minilora` stays quick

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    if path.is_file() and not is_zipfile(path):
        raise ValueError(f"{path} is no complete minilora file: it is no .npz archive, or its end is missing")
    try:
        arrays, header = read_archive(path)
    except (FileNotFoundError, IsADirectoryError, PermissionError, MemoryError):
        raise
    except Exception as error:  # NumPy, zipfile, zlib and JSON raise many kinds where a file is damaged
        raise ValueError(f"{path} is no complete minilora file: {said(error)}") from None
    if kind is not None and header.get("kind") != kind:
        raise ValueError(f"{path} holds {header.get('kind', 'something else')!r}, expected {kind!r}")
    for name, array in arrays.items():
        try:
            in_precision(array, array.dtype)
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from None
    return arrays, header


@contextlib.contextmanager
def blaming(path: str | Path) -> Iterator[None]:
    """Whatever inside the block does not fit (a name, a shape, a setting) becomes a ValueError that names the file."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path}: the header has no {error}") from None
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{path}: {said(error)}") from None


def said(error: Exception) -> str:
    """What an error says, on one line; of an error that says nothing to a person, its kind, too."""
    words = " ".join(str(error).split()) or "no reason given"
    return words if isinstance(error, ValueError | TypeError) else f"{words} ({type(error).__name__})"


class Blank(np.random.Generator):
    """Draws zeros: for weights that a file is about to fill, where drawing would take longer than reading."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def normal(self, loc: Any = 0.0, scale: Any = 1.0, size: Any = None) -> Any:
        """Zeros (*size), whose memory the system gives when it is written to."""
        return np.zeros(size, np.float32)


def save_model(model: GPT, path: str | Path, dtype: Any = None, **record: Any) -> Path:
    """Write a model's configuration and parameters, optionally rounded to another precision, with a record of facts.

    Raises ValueError for a model with adapters or quantised weights and for numbers that are not finite in that
    precision (which, and where), TypeError for what is no GPT, and OSError where the folder cannot be written to.
    """
    if str(path) == "base":
        raise ValueError(
            "save_model: 'base' is the model that comes with minilora; name the file another way: 'my.npz'"
        )
    path = file_path(path, "save_model")
    if not isinstance(model, GPT):
        fix = "; ml.save_pretrained(model, folder) writes a Transformer" if isinstance(model, LanguageModel) else ""
        kind = type(model).__name__
        fix = f"; ml.{OTHERS[kind]}(model, path) writes a {kind}" if kind in OTHERS else fix
        raise TypeError(f"save_model: got {shown(model)}, expected a GPT: save_model(model, path){fix}")
    labels = {"labels": model.labels} if model.labels else {}
    return save_whole("save_model", model, path, dtype, {"kind": "model", **labels, **record})


def save_whole(caller: str, model: Any, path: Path, dtype: Any, header: Mapping[str, Any]) -> Path:
    """Write any model's configuration and parameters, rounded where a precision is given; a header says what it is.

    Raises as `save_model` does, in the name of its caller.
    """
    if getattr(model, "adapters", None):
        raise ValueError(f"{caller}: the model has an adapter; save_adapter(model, path), or remove_lora(model) first")
    refuse_parts(model, caller)
    if any(True for _ in model.named_buffers()):
        raise ValueError(f"{caller}: the model is quantised; save the float model and quantise it again after loading")
    if dtype is not None and precision(dtype, caller).kind != "f":
        raise TypeError(f"{caller}: dtype = {dtype!r}, expected 'float16', 'float32' or 'float64'")
    state = {}
    for name, value in model.state_dict().items():
        try:
            state[name] = in_precision(value, dtype or value.dtype)
        except ValueError as error:
            raise ValueError(f"{caller}: {name}: {error}") from None
    return save_arrays(path, state, {"config": asdict(model.config), **header})


def refuse_parts(model: Any, caller: str) -> None:
    """Raise ValueError where an adapter is on a part of the model: a file of the whole could not be opened again."""
    for path, module in model.named_modules():
        if path and vars(module).get("adapters"):
            fix = f"remove_lora(model.get_module({path!r})) first, or put it on the whole model"
            raise ValueError(f"{caller}: {path} has an adapter of its own, of which no file of the model tells; {fix}")


def load_model(path: str | Path = "base") -> GPT:
    """The model in a file, in float32; "base" is the pretrained model that comes with the package."""
    path = BASE if str(path) == "base" else file_path(path, "load_model")  # "./base" is a file
    if path.is_dir() or path.suffix in (".gguf", ".safetensors"):
        raise ValueError(
            f"load_model: {path} is no .npz of minilora's: ml.load_pretrained reads others' folders and files"
        )
    return load_whole(path, "model", GPT, GPTConfig, named=_name)


def _name(model: GPT, header: Mapping[str, Any]) -> None:
    if header.get("labels"):
        add_classifier(model, header["labels"])


def load_whole(
    path: Path,
    kind: str,
    model_of: Callable,
    config_of: Callable,
    check: Callable | None = None,
    named: Callable | None = None,
) -> Any:
    """The model in a file of `save_whole`'s, in float32. A misfit is a ValueError that names the file.

    check(config, arrays): raises ValueError where the one asks for more than the others hold (`check_size`).
    named(model, header): gives the model the names of its labels, before its numbers.
    """
    arrays, header = load_arrays(path, kind)
    with blaming(path):
        config = config_of(**header["config"])
        (check or check_size)(config, arrays)
        model = model_of(config, Blank())
        if named is not None:
            named(model, header)
        model.load_state_dict(arrays, fresh=True)
    return model


def check_size(config: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError where a model is much larger than what is there to fill it, before it is built.

    A whole number may hold two codes of 4 bits. What differs by less is built, and its shapes are told one by one.
    """
    held = sum(array.size * (2 if array.dtype.kind in "iu" else 1) for array in arrays.values())
    if config.n_layer > len(arrays) or config.count > held + SLACK:
        asked = f"{config.n_layer:,} layers and {config.count:,} parameters"
        raise ValueError(f"its configuration asks for {asked}, it holds {len(arrays):,} arrays of {held:,} numbers")


def file_path(path: Any, caller: str) -> Path:
    """The path of a file. Raises TypeError for what is none."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{caller}: path = {shown(path)}, expected the name of a file")
    return Path(path)
