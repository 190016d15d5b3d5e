"""The folder that merging writes: the checkpoint's shards with the edits in them, a new index, and its other files."""

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..nn.files import write_beside
from ..training.parallel import blas_of_one_thread
from .adapter_writing import folder_beside
from .base_weights import Base
from .edits import copied, edited
from .folders import FLOATS
from .shards import CONFIG, INDEX, WEIGHTS, open_weights
from .tensor_files import Stored, open_tensors, write_tensors

ENDINGS = (  # endings of files that hold weights in another form, which merging would leave behind
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".onnx_data", ".ot", ".tflite",
    ".npz", ".index.json",
)  # fmt: skip


def refuse_inside(output: Path, inputs: Sequence[Path]) -> None:
    """Raises ValueError where an output is an input, the folder of one, or inside one."""
    there = Path(os.path.realpath(output))
    for path in inputs:
        place = Path(os.path.realpath(path))
        if there in (place, place if place.is_dir() else place.parent):
            raise ValueError(f"the output {str(output)!r} is an input; choose another name")
        if place.is_dir() and place in there.parents:
            raise ValueError(f"the output {str(output)!r} is inside {str(path)!r}, an input; choose another place")


def require_new(output: Path) -> None:
    """Raises an error where an output is no new or empty folder."""
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{str(output)!r} is a file, expected a new folder; choose another output")
    if output.is_dir() and any(output.iterdir()):
        raise FileExistsError(f"the folder {str(output)!r} holds other things; choose a new one")


def write_folder(output: Path, base: Base, plan: Any, dtype: np.dtype | None, progress: bool) -> None:
    """Everything beside the output, then renamed: the folder is whole, or not there at all."""
    folder = base.path if base.path.is_dir() else base.path.parent
    held = open_weights(base.path) if base.path.is_dir() else {base.path: open_tensors(base.path)[0]}
    files = list(held)
    names = {path: path.name if base.path.is_dir() else WEIGHTS for path in files}
    where = {name: path for path, tensors in held.items() for name in tensors}  # of one that is there twice the last
    merged = {name: merged_tensor(base, name, plan, dtype) for name in (*where, *plan.edits.keys() - where.keys())}
    added = {name: copied(f"{base.path}: {name}", stored, float_of(stored, dtype)) for name, stored in plan.new.items()}
    size = sum(tensor.nbytes for tensor in (*merged.values(), *added.values()))
    index: dict[str, str] = {}
    writers: dict[str, Callable[[Path], object]] = {}
    with tqdm(total=size, desc="merged", unit="B", unit_scale=True, leave=False, dynamic_ncols=True,
              disable=None if progress else True) as bar:  # fmt: skip
        for path, name in names.items():
            inside = {plan.prefix + n: watched(merged[n], bar) for n, place in where.items() if place == path}
            if path == files[-1]:  # the last holds what is new
                inside |= {plan.prefix + n: watched(tensor, bar) for n, tensor in merged.items() if n not in where}
                inside |= {
                    plan.prefix + n if n in base.tensors else n: watched(tensor, bar) for n, tensor in added.items()
                }
            index |= dict.fromkeys(inside, name)
            metadata = {"format": "pt", **open_tensors(path)[1]}
            writers[name] = functools.partial(write_tensors, tensors=inside, metadata=metadata)
        if set(names.values()) != {WEIGHTS}:
            text = {"metadata": {"total_size": size}, "weight_map": dict(sorted(index.items()))}
            writers[INDEX] = text_writer(text)
        if base.config:
            writers[CONFIG] = text_writer(config_of(plan.config, dtype))
        for path in other_files(folder) if base.path.is_dir() or base.path.name == WEIGHTS else ():
            writers.setdefault(str(path.relative_to(folder)), copier(path))
        with blas_of_one_thread():  # products of stretches are too small for two, which would wait for each other
            folder_beside(output, writers)


def merged_tensor(base: Base, name: str, plan: Any, dtype: np.dtype | None) -> Stored:
    """One tensor as it will be. The head of a tied model is not in the files: it begins as its table is."""
    stored = base.tensors[name] if name in base.tensors else base.tensors[plan.table]
    kind, called = float_of(stored, dtype), f"{base.path}: {name}"
    edits = plan.edits.get(name)
    return edited(called, stored, kind, edits) if edits else copied(called, stored, kind)


def float_of(stored: Stored, dtype: np.dtype | None) -> np.dtype:
    """The precision that a tensor is written in: one that was asked for is that of floats alone."""
    return dtype if dtype is not None and stored.dtype.name in FLOATS else stored.dtype


def watched(tensor: Stored, bar: Any) -> Stored:
    """The same, which moves a progress bar on as it is written."""

    def stretches() -> Iterator[np.ndarray]:
        for part in tensor.stretches() if tensor.stretches else (tensor.read(),):
            yield part
            bar.update(part.size * tensor.dtype.itemsize)

    return replace(tensor, stretches=stretches)


def config_of(config: Mapping[str, Any], dtype: np.dtype | None) -> dict[str, Any]:
    """config.json with the precision in it, under the name that it had there."""
    found = dict(config)
    if dtype is not None:
        told = [name for name in ("dtype", "torch_dtype") if name in found] or ["torch_dtype"]
        found |= dict.fromkeys(told, dtype.name)
        for name, inside in found.items():
            if isinstance(inside, dict):
                found[name] = {**inside, **{n: dtype.name for n in ("dtype", "torch_dtype") if n in inside}}
    return found


def other_files(folder: Path) -> Iterator[Path]:
    """What is beside the weights, in folders of the folder too: texts, tokenizers, the card; nothing hidden."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and not name.endswith(ENDINGS):
                yield Path(place, name)


def text_writer(content: Mapping[str, Any]) -> Callable[[Path], object]:
    """What writes a table as JSON."""
    words = (json.dumps(content, indent=2) + "\n").encode()
    return lambda path: write_beside(path, lambda file: file.write(words))


def copier(source: Path) -> Callable[[Path], object]:
    """What copies a file; of a link, what it leads to."""

    def copy(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)

    return copy
