"""What a file holds of an adapter, whichever form it has: the pairs A and B, and what is beside them.

Shapes and numbers of the configuration are known at once; A and B come from the file when they are asked for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..nn.module import in_precision
from .tensor_files import Stored

DORA = "DoRA turns and stretches the rows of W: s B A is its turning alone, and Delta W needs W"


@dataclass(frozen=True)
class Pair:
    """One matrix's update Delta W = s B A: A and B stay in the file until they are asked for.

    a: A as it is stored, (r, d_in), or (r, channels, height, width) of a convolution; b: B, (d_out, r), or with two
    axes of 1.
    kind: "linear", "convolution", or "embedding", whose table is (d_in, d_out). start: A_0 and B_0, where the update
    counts from what A and B started with. middle: a convolution's third factor (r, r, height, width), between B and A.
    magnitude: DoRA's lengths, which need W before there is a Delta W.
    """

    name: str
    a: Stored
    b: Stored
    alpha: float
    scale: float
    path: Path
    kind: str = "linear"
    magnitude: Stored | None = None
    start: tuple[Stored, Stored] | None = None
    middle: Stored | None = None

    @property
    def A(self) -> np.ndarray:
        """(r, d_in); where the update counts from a start, [A; A - A_0] (2r, d_in)"""
        A = self.finite(self.a, "A")
        if self.middle is not None:
            A = np.einsum("rskl,si->rikl", self.finite(self.middle, "the middle"), A[:, :, 0, 0])
        A = A.reshape(len(A), -1)  # a kernel's height and width are inputs as its channels are
        return A if self.start is None else np.concatenate([A, A - self.finite(self.start[0], "A_0")])

    @property
    def B(self) -> np.ndarray:
        """(d_out, r); where the update counts from a start, [B - B_0, B_0] (d_out, 2r)"""
        B = self.finite(self.b, "B").reshape(self.b.shape[:2])
        if self.start is None:
            return B
        return np.concatenate([B - (B0 := self.finite(self.start[1], "B_0")), B0], axis=1)

    @property
    def rank(self) -> int:
        """r, the rows of A and the columns of B as they are stored."""
        return self.b.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of Delta W"""
        kernel = self.a.shape[2:] if self.middle is None else self.middle.shape[2:]
        return self.b.shape[0], int(np.prod((self.a.shape[1], *kernel)))

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """s B and A in float64, whose product is Delta W.   -> (d_out, r), (r, d_in)"""
        return self.scale * self.B.astype(float), self.A.astype(float)

    def finite(self, stored: Stored, what: str) -> np.ndarray:
        """The numbers of an array of this pair. Raises ValueError for one that is not finite."""
        try:
            return in_precision(array := stored.read(), array.dtype)
        except ValueError as error:
            raise ValueError(f"{self.path}: {what} of {self.name}: {error}") from None


@dataclass(frozen=True)
class AdapterFile:
    """What a file holds of one adapter.

    form: "peft", "kohya" or "minilora". method: "lora", "dora", "ia3" ... config: adapter_config.json, the single
    file's metadata, or the .npz's header. matrices: {module: Pair}, by the names of modules in the base model. others:
    what is no pair, by its name in the file without "base_model.model.": a new head (modules_to_save), a prompt.
    notes: what a reader of the numbers should know. inputs: the files that were read. needs: why Delta W cannot be had
    without the base's W, "" where it can.
    """

    path: Path
    form: str
    method: str
    config: Mapping[str, Any]
    matrices: dict[str, Pair]
    others: dict[str, Stored] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    inputs: tuple[Path, ...] = ()
    needs: str = ""

    def common(self, what: str) -> Any:
        """The rank, alpha or scale that most matrices have; None where there are none."""
        values = [getattr(pair, what) for pair in self.matrices.values()]
        return max(values, key=values.count) if values else None

    @property
    def rank(self) -> int | None:
        """The r that most matrices have."""
        return self.common("rank")

    @property
    def alpha(self) -> float | None:
        """The alpha that most matrices have."""
        return self.common("alpha")

    @property
    def scale(self) -> float | None:
        """The s that most matrices have."""
        return self.common("scale")

    def require_matrices(self, caller: str) -> None:
        """Raises ValueError for an adapter of a method that has no Delta W = s B A."""
        if not self.matrices:
            raise ValueError(f"{self.path}: a {self.method} adapter has no Delta W = s B A to {caller}")


def fitting(path: Path, pairs: Mapping[str, Mapping[str, Stored]], names: tuple[str, str]) -> Iterator[tuple]:
    """(module, A, B) of each, checked by their shapes. names: what the file calls the two.

    Raises ValueError for a half that is alone, for what is no matrix, and where A's rows are not B's columns.
    """
    for module, halves in pairs.items():
        for half, other in (names, names[::-1]):
            if half not in halves:
                raise ValueError(f"{path}: {module} has {other} without {half}")
        A, B = (halves[name] for name in names)
        if A.dtype.kind not in "fV" or B.dtype.kind not in "fV":  # V: the types of ml_dtypes
            raise ValueError(f"{path}: {module}: {names[0]} is {A.dtype}, {names[1]} {B.dtype}, expected real numbers")
        if len(A.shape) < 2 or 0 in A.shape + B.shape:
            raise ValueError(f"{path}: {module}: {names[0]} has shape {A.shape}, expected (r, d_in): was it gathered?")
        if B.shape[1:] != (A.shape[0], *(1 for _ in A.shape[2:])):
            shapes = f"{names[0]} {A.shape} and {names[1]} {B.shape}"
            raise ValueError(f"{path}: {module}: {shapes} do not fit; expected (r, d_in) and (d_out, r) of one r")
        yield module, A, B


def require_rank(path: Path, module: str, rank: int, told: Any) -> None:
    """Raises ValueError where a matrix has another rank than its configuration says."""
    if rank != told:
        raise ValueError(f"{path}: {module} has rank {rank}, its configuration says {told}")
