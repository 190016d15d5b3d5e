"""GGUF, llama.cpp's file: facts under keys, then tensors; read as the specification has it, and mapped.

    "GGUF", version (4 bytes), how many tensors, how many facts (8 each)
    facts: key, type (4), value; a text is its length (8) and its bytes, a list its type (4), its length (8), its values
    tensors: name, how many axes (4), their lengths (8 each, the last axis first), kind (4), where it begins (8)
    the numbers, from the next multiple of `general.alignment` on

A vocabulary is 100,000 texts, which `gguf`'s own reader takes seconds for; from that package come the kinds' numbers.
"""

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..nn.architectures import Architecture, from_hugging_face
from .extras import extra
from .gguf_blocks import KINDS, Blocks
from .gguf_config import config_of
from .names import gguf_names
from .sources import Source, Value, as_value, compare, shares

FLOATS: dict[str, np.dtype] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F64": np.dtype("<f8"),
}
VERSIONS = (2, 3)
NUMBERS = "BbHhIif?__Qqd"  # struct's letter of a fact's type, by its number in the specification; 8 is text, 9 a list
TEXT, LIST = 8, 9


class Entry(NamedTuple):
    """A tensor in a file: its kind, its shape (d_out, d_in) or (n,), and where its bytes begin among the numbers."""

    kind: str
    shape: tuple[int, ...]
    start: int


class _Cursor:
    """Goes through a header, value by value."""

    def __init__(self, data: Any):
        self.data, self.at = data, 0

    def numbers(self, letter: str, count: int) -> tuple:
        """So many numbers of a type."""
        size = count * struct.calcsize(letter)
        if self.at + size > len(self.data):
            raise ValueError("its end is missing")
        found = struct.unpack_from(f"<{count}{letter}", self.data, self.at)
        self.at += size
        return found

    def text(self) -> str:
        """A length and so many bytes of UTF-8."""
        (length,) = self.numbers("Q", 1)
        if self.at + length > len(self.data):
            raise ValueError("its end is missing")
        self.at += length
        return str(self.data[self.at - length : self.at], "utf-8")

    def value(self, kind: int) -> Any:
        """A fact of a type."""
        if kind == TEXT:
            return self.text()
        if kind == LIST:
            ((kind,), (count,)) = self.numbers("I", 1), self.numbers("Q", 1)
            return [self.value(kind) for _ in range(count)] if kind in (TEXT, LIST) else [*self._several(kind, count)]
        return self._several(kind, 1)[0]

    def _several(self, kind: int, count: int) -> tuple:
        letter = NUMBERS[kind] if kind < len(NUMBERS) else "_"
        if letter == "_":
            raise ValueError(f"a fact is of type {kind}, which GGUF does not have")
        return self.numbers(letter, count)


def read_gguf(path: str | Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    """({key: fact}, {name of a tensor: Entry}) of a GGUF file. Raises ValueError for one that is damaged or cut off."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    kinds = {kind.value: kind.name for kind in extra("gguf", "a .gguf file").GGMLQuantizationType}
    size = path.stat().st_size
    header: Any = np.memmap(path, np.uint8, "r") if size else b""
    header = memoryview(header)
    try:
        if bytes(header[:4]) != b"GGUF":
            raise ValueError(f"it begins with {bytes(header[:4])!r}, expected b'GGUF'")
        cursor = _Cursor(header)
        _, version = cursor.numbers("I", 2)
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}, expected {' or '.join(map(str, VERSIONS))}")
        tensors, count = cursor.numbers("Q", 2)
        facts: dict[str, Any] = {}
        for _ in range(count):
            key, (kind,) = cursor.text(), cursor.numbers("I", 1)
            if key in facts:
                raise ValueError(f"it says {key} twice")
            facts[key] = cursor.value(kind)
        found: dict[str, tuple[int, tuple, int]] = {}
        for _ in range(tensors):
            name, (axes,) = cursor.text(), cursor.numbers("I", 1)
            if name in found:
                raise ValueError(f"it has {name} twice")
            shape = cursor.numbers("Q", axes)[::-1]
            found[name] = (*cursor.numbers("I", 1), shape, *cursor.numbers("Q", 1))
        step = facts.get("general.alignment", 32)
        if type(step) is not int or step < 1:
            raise ValueError(f"general.alignment = {step!r}, expected a positive integer")
        numbers = -(-cursor.at // step) * step
        entries = {name: _entry(name, kinds, *told, numbers, size) for name, told in found.items()}
    except (ValueError, RecursionError, struct.error, MemoryError) as error:
        raise ValueError(f"{path} is no complete GGUF file: {error}") from None
    return facts, entries


def _entry(name: str, kinds: dict[int, str], number: int, shape: tuple, start: int, numbers: int, size: int) -> Entry:
    kind = kinds.get(number, f"number {number}")
    if kind not in {**FLOATS, **KINDS}:
        raise ValueError(f"{name} is of the kind {kind}, which is not read; {', '.join([*FLOATS, *KINDS])} are")
    entry = Entry(kind, shape, numbers + start)
    if kind in KINDS and (len(shape) != 2 or shape[1] % KINDS[kind].weights):
        raise ValueError(f"{name} has shape {shape}, expected rows of whole blocks of {KINDS[kind].weights}")
    if entry.start + math.prod(_bytes(entry)) > size:
        needed = entry.start + math.prod(_bytes(entry))
        raise ValueError(f"its end is missing: it has {size:,} bytes, and {name} ends at {needed:,}")
    return entry


def _bytes(entry: Entry) -> tuple[int, ...]:
    """The shape of a tensor in bytes: each row's are together."""
    if entry.kind in KINDS:
        kind = KINDS[entry.kind]
        return (*entry.shape[:-1], entry.shape[-1] // kind.weights * kind.record.itemsize)
    return (*entry.shape[:-1], entry.shape[-1] * FLOATS[entry.kind].itemsize)


def open_gguf(path: str | Path) -> Source:
    """The model in a GGUF file."""
    facts, entries = read_gguf(path)
    shapes = {name: entry.shape for name, entry in entries.items()}
    stretch = entries.get("rope_freqs.weight")
    factors = None if stretch is None else _reader(Path(path), stretch, None, None, False)()
    config = config_of(facts, shapes, factors, str(path))
    architecture = from_hugging_face(config, Path(path).stem)
    ours, theirs = shares(architecture, gguf_names(architecture))
    compare(str(path), theirs, {name: shape for name, shape in shapes.items() if name != "rope_freqs.weight"})
    turned = facts["general.architecture"] == "llama"
    values = {}
    for name, share in ours.items():
        rows = _unturned(architecture, name) if turned else None
        values[name] = _reader(Path(path), entries[share.tensor], share.rows, rows, _is_raised(architecture, name))

    def tokenizer() -> Any:
        from .gguf_tokenizer import from_metadata

        return from_metadata(facts, str(path)) if "tokenizer.ggml.model" in facts else None

    return Source(str(path), architecture, values, tokenizer)


def _unturned(a: Architecture, name: str) -> np.ndarray | None:
    """Which row of a Llama file's q or k is each of ours. There the two features that a rotation turns are neighbours
    (2i, 2i + 1); here, as in Hugging Face's files, they are half a head apart (i, i + D/2)."""
    if ".attn.q_proj." not in name and ".attn.k_proj." not in name:
        return None
    heads = a.heads if ".q_proj." in name else a.key_value_heads
    return np.arange(heads * a.dim).reshape(heads, a.dim // 2, 2).swapaxes(1, 2).reshape(-1)


def _is_raised(a: Architecture, name: str) -> bool:
    """Whether the file holds 1 + w for a w of ours: the norms of Gemma, which compute with 1 + w."""
    return a.norm_offset and ("ln_" in name or "_norm." in name)


def _reader(path: Path, entry: Entry, part: slice | None, rows: Any, raised: bool) -> Callable[[], Value]:
    """What maps one tensor, takes the rows that are ours, and holds them as the file does."""

    def read() -> Value:
        shape = _bytes(entry)
        array = np.memmap(path, np.uint8, "r", entry.start, shape) if math.prod(shape) else np.empty(shape, np.uint8)
        array = np.asarray(array)
        array = array if entry.kind in KINDS else array.view(FLOATS[entry.kind])
        array = array if part is None else array[part]
        array = array if rows is None else array[rows]
        if entry.kind in KINDS:
            return Blocks(entry.kind, array)
        return array - np.float32(1) if raised else as_value(array)

    return read
