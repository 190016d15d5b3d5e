"""Quantization: a weight in 4 or 8 bits, by blocks, with one scale for each (Dettmers et al. 2022 and 2023).

A kind is a list of levels in [-1, 1] with -1, 0 and 1 among them. A block of weights w_1 ... w_n is held as its largest
absolute value and, for each weight, the number of the nearest level:

    s = max |w_i|,      code_i = the k whose level q_k is nearest to w_i / s,      w_i is read as  s q_k

    int8, int4   255 or 15 levels, evenly spaced: round(127 w / s) / 127 (Dettmers et al. 2022, "LLM.int8()", 2.1)
    nf4          16 levels, dense where a normal distribution is: about as many weights fall on each
                 (Dettmers et al. 2023, "QLoRA", section 3, eq. 4)

A large weight makes s large and all levels of its block coarse; so blocks are small. 4-bit codes lie two in a byte. A
scale of 32 bits for 64 weights costs half a bit a weight; quantised in its turn, it costs an eighth.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..autograd.backend import Array, array_module
from ..nn.checks import flag, is_whole, plain, shown

FLOAT32_MAX = float(np.finfo(np.float32).max)
SCALES_PER_BLOCK = 256  # of double quantization (Dettmers et al. 2023, section 3)
STRETCH = 2**17  # floats made at a time of a matrix that is gone through by rows
PIECE = 2**15  # codes read at a time: NumPy makes an index of 8 bytes from each, which should fit a core's cache


def evenly_spaced(most: int) -> list[float]:
    """-1, ..., -1/most, 0, 1/most, ..., 1: an odd number of levels, so that zero is one of them"""
    return [k / most for k in range(-most, most + 1)]


def normal_float() -> list[float]:
    """NF4: 16 quantiles of the normal distribution, scaled into [-1, 1] (Dettmers et al. 2023, section 3, eq. 4).

    Evenly spaced probabilities have quantiles Q(p) that lie densest around 0. Sixteen of them, placed symmetrically,
    miss 0, which must be exact. So the halves are made apart: 8 quantiles above 0, 7 below, and 0 itself. As Q(1) is
    infinite, the outermost probability is half way between 1 - 1/32 and 1 - 1/30, the middles of the last of 16 and of
    15 equal parts (0.9677083 in the paper's code).
    """
    outermost = 1 - (1 / 32 + 1 / 30) / 2

    def quantile(p: float) -> float:
        """Q(p) for p > 1/2: Newton's method on Phi(q) = p, from below; `statistics` would be 6 ms of an import"""
        q = 0.0
        for _ in range(10):
            q += (p - (1 + math.erf(q / math.sqrt(2))) / 2) * math.sqrt(2 * math.pi) * math.exp(q * q / 2)
        return q

    def half(count: int) -> list[float]:
        """From the outermost probability down to 1/2, which is left out: Q(1/2) = 0"""
        return [quantile(outermost + (0.5 - outermost) * i / count) for i in range(count)]

    above, below = half(8), half(7)
    return [-q / below[0] for q in below] + [0.0] + [q / above[0] for q in reversed(above)]


LEVELS: dict[str, np.ndarray] = {  # kind -> its levels in ascending order
    "nf4": np.array(normal_float(), np.float32),
    "int4": np.array(evenly_spaced(7), np.float32),
    "int8": np.array(evenly_spaced(127), np.float32),
}


class Packed:
    """A weight that is held in fewer bits than the floats it stands for, which are made where a product needs them.

    shape: (d_out, d_in); kind: the name of its bits; what is held comes under names from `arrays`. Layers in `qlora.py`
    take any of these: `Quantized`, `Half`, and blocks as other people's files have them (interop/gguf_blocks.py).
    """

    kind: str
    shape: tuple[int, ...]
    arrays: Callable[[], dict[str, Array]]  # all that is held
    dequantize: Callable[..., Array]  # of a dtype, float32 by default: the array that this stands for
    again: Callable[[Array], "Packed"]  # another array of this shape, held in this way

    def rows(self, index: Any, dtype: Any = np.float32) -> Array:
        """Some rows of it, by a slice or by their numbers."""
        return self.dequantize(dtype)[index]

    def stretches(self, dtype: Any = np.float32) -> Iterator[tuple[slice, Array]]:
        """(rows, their floats) from the first to the last, few enough at a time to stay in a core's cache."""
        step = max(STRETCH // max(self.shape[1], 1), 1) if self.apart else max(self.shape[0], 1)
        for start in range(0, self.shape[0], step):
            rows = slice(start, start + step)
            yield rows, self.rows(rows, dtype)

    @property
    def apart(self) -> bool:
        """Whether a row can be made without the others."""
        return True

    @property
    def size(self) -> int:
        """How many entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays held."""
        return sum(array.nbytes for array in self.arrays().values())

    @property
    def bits_per_weight(self) -> float:
        """All bits held, divided by the number of entries (0 for an empty array)."""
        return 8 * self.nbytes / self.size if self.size else 0.0


@dataclass(frozen=True)
class Half(Packed):
    """An array in 16 bits.   bits: float16, or uint16, the upper halves of float32 numbers, which are bfloat16"""

    bits: Array

    @property
    def kind(self) -> str:  # type: ignore[override]
        """ "float16" or "bfloat16"."""
        return "float16" if self.bits.dtype.kind == "f" else "bfloat16"

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The array's."""
        return self.bits.shape

    def arrays(self) -> dict[str, Array]:
        """{"bits": array}"""
        return {"bits": self.bits}

    def dequantize(self, dtype: Any = np.float32) -> Array:
        """The same numbers, which every wider format has, too."""
        if self.kind == "float16":
            return self.bits.astype(dtype)
        wide = self.bits.astype("uint32")
        wide <<= 16
        return wide.view("float32").astype(dtype, copy=False)

    def rows(self, index: Any, dtype: Any = np.float32) -> Array:
        """Some rows of it; no other is made."""
        return Half(self.bits[index]).dequantize(dtype)

    def again(self, array: Array) -> "Half":
        """Another array, rounded to these 16 bits."""
        return half(array, self.kind)


def half(array: Array, kind: str) -> Half:
    """The nearest numbers of 16 bits, of two equally near the even one.   kind: "float16" or "bfloat16"

    A bfloat16 is the upper half of a float32, so half of the lower half's unit is added before it is cut off; a float64
    is rounded to float32 first, which rounds twice. Raises ValueError, as `quantize` does, for what is not finite, and
    for what is beyond the format's largest number.
    """
    _check_finite(array, "")
    xp = array_module(array)
    with np.errstate(over="ignore"):
        if kind == "float16":
            result = Half(array.astype("float16"))
        else:
            bits = xp.ascontiguousarray(array, dtype="float32").view("uint32")
            result = Half(((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("uint16"))
    wrong = ~xp.isfinite(result.bits) if kind == "float16" else (result.bits & 0x7F80) == 0x7F80
    if wrong.any():
        place = tuple(int(axis[0]) for axis in xp.nonzero(wrong))
        raise ValueError(f"entry {place} is {float(array[place])}, too large for {kind}")
    return result


@dataclass(frozen=True)
class Quantized(Packed):
    """An array in few bits: `codes`, and one of `scales` for every `block` entries in row-major order.

    codes: (n,) uint8, or (ceil(n / 2),) with two in a byte, the first one in the high half. scales: (blocks,) float32;
    quantised twice, they are a `Quantized` themselves, of what remains after `mean` is subtracted.
    """

    kind: str
    block: int
    shape: tuple[int, ...]
    codes: Array
    scales: "Array | Quantized"
    mean: Array | None = None  # () float32

    @property
    def double(self) -> bool:
        """Whether the scales are quantised, too."""
        return self.mean is not None

    def arrays(self) -> dict[str, Array]:
        """All that is held: {name: array}"""
        if isinstance(self.scales, Quantized):
            inner = {f"scales.{name}": array for name, array in self.scales.arrays().items()}
            return {"codes": self.codes, **inner, "mean": self.mean}
        return {"codes": self.codes, "scales": self.scales}

    @property
    def apart(self) -> bool:
        """Where no block reaches into the next row."""
        return len(self.shape) == 2 and self.shape[1] % self.block == 0 and self.shape[1] % 2 == 0

    def rows(self, index: Any, dtype: Any = np.float32) -> Array:
        """Some rows of it; no other is made where that can be."""
        if not self.apart:
            return super().rows(index, dtype)
        d_out, d_in = self.shape
        codes, scales = (part.reshape(d_out, -1)[index] for part in (self.codes, self._scales()))
        shape = (*codes.shape[:-1], d_in)
        return Quantized(self.kind, self.block, shape, codes.reshape(-1), scales.reshape(-1)).dequantize(dtype)

    def stretches(self, dtype: Any = np.float32) -> Iterator[tuple[slice, Array]]:
        """(rows, their floats) from the first to the last; the scales are made once for all."""
        once = replace(self, scales=self._scales(), mean=None)
        return super(Quantized, once).stretches(dtype)

    def times(self, x: Array) -> Array:
        """x W^T of a few rows of float32, on NumPy: a block's scale is put on its sum, and not on its weights.

        y_i = sum over blocks b of s_ib (sum over j in b of q_ij x_j)        (B, d_in) -> (B, d_out)
        """
        (d_out, d_in), scales = self.shape, self._scales().reshape(self.shape[0], -1)  # (d_out, blocks)
        codes, y = self.codes.reshape(d_out, -1), np.empty((len(x), d_out), np.float32)
        parts = x.reshape(len(x), -1, self.block).transpose(1, 2, 0)  # (blocks, block, B)
        step = max(STRETCH // d_in, 1)
        for start in range(0, d_out, step):
            rows = slice(start, start + step)
            q = self._levels(codes[rows].reshape(-1)).reshape(-1, *parts.shape[:2])  # (rows, blocks, block)
            sums = q.swapaxes(0, 1) @ parts  # (blocks, rows, B)
            y[:, rows] = np.einsum("nib,in->bi", sums, scales[rows])
        return y

    def again(self, array: Array) -> "Quantized":
        """Another array, quantised with the same settings."""
        return quantize(array, self.kind, self.block, self.double)

    def dequantize(self, dtype: Any = np.float32) -> Array:
        """The array that the codes stand for: s q_k, computed in float32 and given as `dtype`.

        In every precision these are the same numbers.
        """
        values = self._levels(self.codes)[: self.size]
        scales, whole = self._scales(), self.size // self.block
        full = values[: whole * self.block].reshape(whole, self.block)  # a view: all blocks but a shorter last one
        full *= scales[:whole, None]
        values[whole * self.block :] *= scales[whole:]
        return values.reshape(self.shape).astype(dtype, copy=False)

    def _levels(self, codes: Array) -> Array:
        """The levels that codes stand for, float32; of an odd number of weights in half bytes, one more."""
        xp = array_module(codes)
        table = xp.asarray(_looked_up(self.kind, 1))
        if xp is np and len(LEVELS[self.kind]) <= 16 and len(codes) % 2 == 0:
            table, codes = _looked_up(self.kind, 2), codes.view("uint16")
        values = xp.empty(len(codes), table.dtype)
        piece = PIECE if xp is np else max(len(values), 1)
        for start in range(0, len(values), piece):
            part = slice(start, start + piece)
            if xp is np:
                table.take(codes[part], out=values[part], mode="clip")  # no code is beyond: nothing is checked
            else:
                values[part] = table[codes[part]]
        return values.view("float32")

    def _scales(self) -> Array:
        """(blocks,) float32: never negative, never above float32's largest number."""
        if not isinstance(self.scales, Quantized):
            return self.scales
        scales = self.scales.dequantize("float64") + self.mean  # in float64, since the sum may pass float32's largest
        return scales.clip(0, FLOAT32_MAX).astype("float32")

    def error_bound(self) -> Array:
        """What no entry's error exceeds: |w - dequantized w| <= bound, entry by entry, in float64.

            bound = (h + e) s + t                          h: half the largest gap between two levels, s: the scale
            bound = (h + e) (s' + d) + d + t               quantised twice: s' as read, d: the bound of its own error

        Proof. u = w / s lies in [-1, 1], whose ends are levels, so the nearest level q is within h of u, and
        |w - s q| = s |u - q| <= s h. If the scale is read as s' with |s - s'| <= d, then
        |w - s' q| <= |w - s q| + |q| |s - s'| <= s h + d <= (s' + d) h + d.
        Rounding: w, u, the middles between levels and s q are each rounded to float32, which moves each by 2^-24 of
        itself at most, w and s q by 2^-150 below the normal numbers: e = 2^-22 and t = 2^-149 hold them all. d comes
        from the same formula, with h of int8, and e s' + t more for rounding s' itself; cutting s' at 0 and at
        float32's largest number only brings it nearer to s. For nf4 h = 0.152, int4 1/14, int8 1/254.
        """
        xp, e, t = array_module(self.codes), 2.0**-22, 2.0**-149
        h = float(np.diff(LEVELS[self.kind].astype(np.float64)).max()) / 2
        s = self._scales().astype("float64")
        d = self.scales.error_bound() + e * s + t if isinstance(self.scales, Quantized) else 0.0
        bound = (h + e) * (s + d) + d + t  # (blocks,)
        return xp.repeat(bound, self.block)[: self.size].reshape(self.shape)


@functools.cache
def _looked_up(kind: str, many: int) -> np.ndarray:
    """What so many bytes of codes stand for, in one look: a level, or the two of each byte, side by side in one number.

    Two levels are a complex number, so that one look gives both; four are a complex number of twice the precision.
    """
    levels = LEVELS[kind]
    if len(levels) > 16:
        return levels
    levels = levels[np.minimum(np.arange(16), len(levels) - 1)]  # int4 has no 16th level
    pairs = (levels[:, None] + 1j * levels).reshape(256)  # of a byte
    if many == 1:
        return pairs
    return pairs[np.arange(2**16, dtype="uint16").view("uint8")].view("complex128")  # bytes as they lie in memory


def quantize(array: Array, kind: str = "nf4", block: int = 64, double: bool = False) -> Quantized:
    """The nearest levels to an array's entries, block by block in row-major order.

    array: real floating-point numbers of any shape; the last block may be shorter. kind: "nf4", "int4" or "int8".
    double: the scales, less their mean, are quantised to 8 bits in blocks of 256 (Dettmers et al. 2023, section 3;
    there as 8-bit floats, here as int8). Bits a weight, for many: 4 + 32/block, or 4 + 8/block + 32/(256 block).
    Raises TypeError for other than floating-point numbers, and ValueError for an unknown kind, a block that is no
    positive integer, or an entry that is not finite or beyond float32, the precision of the scales.
    """
    if not isinstance(kind, str) or kind not in LEVELS:
        raise ValueError(f"quantize: kind = {shown(kind)}, expected one of {', '.join(LEVELS)}")
    if not is_whole(block) or block < 1:
        raise ValueError(f"quantize: block = {shown(block)}, expected a positive integer")
    flag(double, "quantize: double")
    array = plain(array, "quantize: array")
    xp = array_module(array)
    if array.dtype.kind != "f":
        raise TypeError(f"quantize: got dtype {array.dtype}, expected floating-point numbers")
    _check_finite(array, "quantize: ")
    blocks, flat = -(-array.size // block), array.reshape(-1)
    padded = xp.zeros((blocks, block), dtype="float32")
    padded.reshape(-1)[: array.size] = flat
    s = abs(padded).max(axis=1)  # (blocks,)
    levels = LEVELS[kind]
    padded /= xp.where(s > 0, s, 1)[:, None]  # u = w / s, in [-1, 1]
    middles = xp.asarray((levels[:-1] + levels[1:]) / 2)
    codes = xp.searchsorted(middles, padded.reshape(-1)[: array.size]).astype("uint8")  # how many middles lie below u
    if len(levels) <= 16:
        codes = _two_in_a_byte(codes)
    if not double:
        return Quantized(kind, int(block), array.shape, codes, s)
    mean = xp.asarray(s.mean(dtype="float64") if blocks else 0, dtype="float32")
    inner = quantize(s.astype("float64") - mean, "int8", SCALES_PER_BLOCK)
    return Quantized(kind, int(block), array.shape, codes, inner, mean)


def _check_finite(array: Array, caller: str) -> None:
    xp = array_module(array)
    wrong = ~(abs(array.astype(np.promote_types(array.dtype, "float32"), copy=False)) <= FLOAT32_MAX)  # NaN, too
    if wrong.any():
        place = tuple(int(axis[0]) for axis in xp.nonzero(wrong)) if array.ndim else ()
        raise ValueError(
            f"{caller}entry {place} is {float(array[place])}, "
            f"expected finite numbers of at most {FLOAT32_MAX:.3g}, float32's largest"
        )


def _two_in_a_byte(codes: Array) -> Array:
    """[a, b, c] -> [16 a + b, 16 c]"""
    pairs = array_module(codes).zeros(2 * -(-len(codes) // 2), dtype="uint8")
    pairs[: len(codes)] = codes
    return pairs[0::2] << 4 | pairs[1::2]
