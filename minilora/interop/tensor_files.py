"""Files of named tensors (.safetensors): what they hold is known at once, a tensor is read when it is asked for.

Such a file is the length of its header in 8 bytes, the header in JSON, {name: {dtype, shape, from and to which byte}},
and the numbers. The `safetensors` library checks a file; its tensors are then mapped, each when it is asked for, and
written one at a time, so that a file larger than the memory can be read and rewritten.
"""

import contextlib
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..nn.files import write_beside
from .extras import extra

DTYPES = {  # the format's name of a type -> NumPy's, or that of ml_dtypes
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
CODES = {name: code for code, name in DTYPES.items()}


@dataclass(frozen=True)
class Stored:
    """An array that is somewhere: its shape and type are known, its numbers come when they are read.

    stretches: where the whole is not to be in memory at once, its numbers one stretch after the other.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    stretches: Callable[[], Iterable[np.ndarray]] | None = None

    @classmethod
    def of(cls, array: np.ndarray) -> "Stored":
        """An array that is in memory."""
        return cls(array.shape, array.dtype, lambda: array)

    @property
    def nbytes(self) -> int:
        """How many bytes its numbers take."""
        return math.prod(self.shape) * self.dtype.itemsize


def float_type(name: str) -> np.dtype:
    """The dtype of a name; those of 16 and 8 bits that NumPy lacks are those of `ml_dtypes`."""
    try:
        return np.dtype(name)
    except TypeError:
        return np.dtype(getattr(extra("ml_dtypes", f"an array of {name}"), name))


def content(path: Path) -> str:
    """What a file is, by its first bytes and its members: "safetensors", "npz", "pickle" or "unknown"."""
    with open(path, "rb") as file:
        first = file.read(9)
    length = int.from_bytes(first[:8], "little")
    if first[8:] == b"{" and 8 + length <= max(path.stat().st_size, 100_000_000):
        return "safetensors"
    if re.match(rb"\x80[\x02-\x05]", first) or path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"):
        return "pickle"
    if zipfile.is_zipfile(path):
        with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:  # what is damaged, its reader says
            if any(name.endswith((".pkl", "/version")) for name in archive.namelist()):
                return "pickle"
        return "npz"
    return {".safetensors": "safetensors", ".npz": "npz"}.get(path.suffix, "unknown")


def open_tensors(path: str | Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """({name: Stored}, metadata) of a .safetensors file. Raises ValueError for one that is damaged or cut off."""
    path, library = Path(path), extra("safetensors", "a .safetensors file")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    with open(path, "rb") as file:  # first: where a file may not be read, the library says that there is none
        try:
            with library.safe_open(path, framework="numpy"):  # which checks that header and numbers fit each other
                pass
        except library.SafetensorError as error:
            raise ValueError(f"{path} is no complete .safetensors file: {' '.join(str(error).split())}") from None
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    metadata, found = header.pop("__metadata__", None) or {}, {}
    for name, told in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):  # in the order of the file
        if told["dtype"] not in DTYPES:
            raise ValueError(f"{path}: {name} is of type {told['dtype']}, expected one of {', '.join(DTYPES)}")
        shape, dtype = tuple(told["shape"]), float_type(DTYPES[told["dtype"]])
        found[name] = Stored(shape, dtype, _reader(path, 8 + length + told["data_offsets"][0], shape, dtype))
    return found, metadata


def _reader(path: Path, start: int, shape: tuple[int, ...], dtype: np.dtype) -> Callable[[], np.ndarray]:
    """What maps one tensor. Pages that were read count as memory in use until the array that they are in is gone."""

    def read() -> np.ndarray:
        size = math.prod(shape) * dtype.itemsize
        mapped = np.memmap(path, np.uint8, "r", start, (size,)) if size else np.empty(0, np.uint8)
        return np.asarray(mapped).view(dtype).reshape(shape)

    return read


def write_tensors(path: str | Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str] | None = None) -> Path:
    """Write tensors into a .safetensors file, each read when its turn comes; the file is whole, or not there at all.

    metadata: texts beside them; PEFT and transformers want {"format": "pt"}, which is the default.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": CODES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    words = json.dumps(header).encode()
    words += b" " * (-len(words) % 8)  # the numbers begin at a multiple of 8

    def write(file: Any) -> None:
        file.write(len(words).to_bytes(8, "little") + words)
        for name, tensor in tensors.items():
            written = 0
            for part in tensor.stretches() if tensor.stretches else (tensor.read(),):
                array = np.ascontiguousarray(part, dtype=tensor.dtype)
                file.write(array.reshape(-1).view(np.uint8))
                written += array.size
            if written != math.prod(tensor.shape):
                came = f"{written:,} numbers" if tensor.stretches else f"shape {array.shape}"
                raise ValueError(f"{path}: {name} has {came}, expected {tensor.shape}")

    return write_beside(path, write, 8 + len(words) + end)
