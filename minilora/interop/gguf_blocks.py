"""GGUF's blocks of few bits, held as a file has them and made floats where a product needs them.

A row of a matrix is cut into blocks of 32 weights, or of 256 for the kinds with a K; a block is a record of one or two
float16 scales and its codes. Layouts: ggml's `ggml-common.h`; how a code is read: the functions below.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..adapters.quantization import Packed

Array = np.ndarray
STRETCH = 2**16  # weights made at a time: their floats and codes fit a core's cache


def _scale(blocks: Array, name: str = "d") -> Array:
    """One float32 for each block, (n, 1)."""
    return blocks[name].astype(np.float32)[:, None]


def _nibbles(bytes_: Array, out: Array) -> Array:
    """The low halves of a block's bytes, then the high ones, as floats.   (..., k) -> (..., 2, k) in `out`"""
    bytes_ = np.ascontiguousarray(bytes_)
    out[..., 0, :], out[..., 1, :] = bytes_ & 15, bytes_ >> 4
    return out


def _q8_0(blocks: Array, w: Array) -> None:
    """w = d code, 8 bits with a sign"""
    w[:] = blocks["codes"]
    w *= _scale(blocks)


def _q4_0(blocks: Array, w: Array) -> None:
    """w = d (code - 8)"""
    _nibbles(blocks["codes"], w.reshape(-1, 2, 16))
    w -= 8
    w *= _scale(blocks)


def _q4_1(blocks: Array, w: Array) -> None:
    """w = d code + m"""
    _nibbles(blocks["codes"], w.reshape(-1, 2, 16))
    w *= _scale(blocks)
    w += _scale(blocks, "m")


def _q4_k(blocks: Array, w: Array) -> None:
    """w = (d s_j) code - (m t_j) for the j-th 32 of 256 weights; s and t have 6 bits each, packed in 12 bytes.

    The first four s and t are the low 6 bits of bytes 0 to 3 and 4 to 7, whose two high bits are the high ones of the
    last four; their low ones are the halves of bytes 8 to 11.
    """
    low, high, rest = (blocks["scales"][:, part] for part in (slice(0, 4), slice(4, 8), slice(8, 12)))
    s = np.concatenate([low & 63, rest & 15 | (low >> 6) << 4], axis=1)  # (n, 8)
    t = np.concatenate([high & 63, rest >> 4 | (high >> 6) << 4], axis=1)
    eighths = w.reshape(-1, 8, 32)
    _nibbles(blocks["codes"].reshape(-1, 4, 32), w.reshape(-1, 4, 2, 32))  # 32 bytes hold two eighths
    eighths *= (_scale(blocks) * s)[..., None]
    eighths -= (_scale(blocks, "m") * t)[..., None]


def _q6_k(blocks: Array, w: Array) -> None:
    """w = (d s_j) (code - 32) for the j-th 16 of 256 weights; a code is 4 low bits and 2 high ones.

    Of each half, 128 weights: its k-th quarter has its low bits in the low (k = 0, 1) or high halves of 2 x 32 bytes,
    and its high bits at place 2k in 32 others.
    """
    code = w.reshape(-1, 2, 2, 2, 32)  # block, half, low or high halves of bytes, which 32, weight
    _nibbles(blocks["low"].reshape(-1, 2, 64), w.reshape(-1, 2, 2, 64))
    high = blocks["high"].reshape(-1, 2, 1, 1, 32) >> np.array([[0, 2], [4, 6]], np.uint8)[..., None]
    code += (high & 3) << 4
    code -= 32
    sixteenths = w.reshape(-1, 16, 16)
    sixteenths *= (_scale(blocks) * blocks["scales"])[..., None]


class Kind(NamedTuple):
    """How a kind of block lies in a file, how many weights it has, and what makes them."""

    record: np.dtype
    weights: int
    read: Callable[[Array, Array], None]  # (blocks (n,), their weights (n, weights) to be filled)


KINDS: dict[str, Kind] = {
    "Q8_0": Kind(np.dtype([("d", "<f2"), ("codes", "i1", 32)]), 32, _q8_0),
    "Q4_0": Kind(np.dtype([("d", "<f2"), ("codes", "u1", 16)]), 32, _q4_0),
    "Q4_1": Kind(np.dtype([("d", "<f2"), ("m", "<f2"), ("codes", "u1", 16)]), 32, _q4_1),
    "Q4_K": Kind(np.dtype([("d", "<f2"), ("m", "<f2"), ("scales", "u1", 12), ("codes", "u1", 128)]), 256, _q4_k),
    "Q6_K": Kind(np.dtype([("low", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), ("d", "<f2")]), 256, _q6_k),
}


@dataclass(frozen=True)
class Blocks(Packed):
    """A matrix in GGUF's blocks.   blocks: (d_out, bytes of a row) uint8, mapped from a file or in memory"""

    kind: str
    blocks: Array

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(d_out, d_in)"""
        kind = KINDS[self.kind]
        return (len(self.blocks), self.blocks.shape[1] // kind.record.itemsize * kind.weights)

    def arrays(self) -> dict[str, Array]:
        """{"blocks": array}"""
        return {"blocks": self.blocks}

    def dequantize(self, dtype: Any = np.float32) -> Array:
        """The numbers that the codes stand for, in float32 as ggml has them, given as `dtype`."""
        values = np.empty(self.shape, np.float32)
        step = max(STRETCH // max(self.shape[1], 1), 1)
        kind = KINDS[self.kind]
        for start in range(0, len(values), step):
            blocks = np.ascontiguousarray(self.blocks[start : start + step]).view(kind.record).reshape(-1)
            kind.read(blocks, values[start : start + step].reshape(-1, kind.weights))
        return values.astype(dtype, copy=False)

    def rows(self, index: Any, dtype: Any = np.float32) -> Array:
        """Some rows of it; no other is made."""
        held = self.blocks[index if isinstance(index, slice) else np.asarray(index)]
        flat = Blocks(self.kind, held.reshape(math.prod(held.shape[:-1]), held.shape[-1]))
        return flat.dequantize(dtype).reshape(*held.shape[:-1], self.shape[1])

    def again(self, array: Array) -> Packed:
        """Raises ValueError: these blocks are read, not written."""
        raise ValueError(f"{self.kind} is read from GGUF files and not written; merge_lora(model) makes floats")
