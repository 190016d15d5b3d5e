"""Arrays in files: an .npz with a JSON header, written beside its place and renamed, and never unpickled."""

import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd.backend import to_numpy
from .gpt import GPT, GPTConfig

HEADER = "header"  # the name of the JSON text among the arrays
BASE = Path(__file__).parent.parent / "base.npz"  # the pretrained model that comes with the package


def write_beside(path: str | Path, write: Callable[[Any], object]) -> Path:
    """Call `write(file)` on a new file beside `path`, then rename it: the old file, or the whole new one, never half.

    Raises OSError when the folder cannot be written to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            file.close()
            os.unlink(file.name)
            raise
    os.chmod(file.name, 0o644)  # temporary files start out private
    os.replace(file.name, path)
    return path


def save_arrays(path: str | Path, arrays: Mapping[str, Any], header: Mapping[str, Any]) -> Path:
    """Write named arrays and a JSON-able header into one .npz file."""
    host: dict[str, Any] = {name: to_numpy(array) for name, array in arrays.items()}
    host[HEADER] = np.array(json.dumps(header))
    return write_beside(path, lambda file: np.savez_compressed(file, **host))


def load_arrays(path: str | Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save_arrays` wrote: (arrays, header). The header's "kind" must be `kind`.

    Raises FileNotFoundError, or ValueError for a file that is truncated, holds pickled objects, or is of another kind.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(str(arrays.pop(HEADER)))
    except (ValueError, KeyError, EOFError, AttributeError, OSError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError):
            raise
        raise ValueError(f"{path} is no complete minilora file: {error}") from None
    if header.get("kind") != kind:
        raise ValueError(f"{path} holds {header.get('kind', 'something else')!r}, expected {kind!r}")
    return arrays, header


def save_model(model: GPT, path: str | Path, dtype: Any = None, **record: Any) -> Path:
    """Write a model's configuration and parameters, optionally rounded to another precision, with a record of facts."""
    state = {name: value.astype(dtype or value.dtype) for name, value in model.state_dict().items()}
    return save_arrays(path, state, {"kind": "model", "config": asdict(model.config), **record})


def load_model(path: str | Path = "base") -> GPT:
    """The model in a file, in float32; "base" is the pretrained model that comes with the package."""
    arrays, header = load_arrays(BASE if str(path) == "base" else path, "model")
    model = GPT(GPTConfig(**header["config"]))
    model.load_state_dict(arrays)
    return model
