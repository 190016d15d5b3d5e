"""Texts of several lengths, each with the targets that count: an answer after its prompt, or a label at the end.

A batch of them is padded on the right, which changes no result: a target of -100 does not count, and what comes later
is not seen by a model that reads from left to right; a model that reads both ways gets the mask.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..autograd.fused import IGNORED

Example = tuple[np.ndarray, np.ndarray]  # tokens and targets, both (T,)
PADDING = 0  # any token would do


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples in two parts, train and validation, each (tokens, targets), both (T,) integers.

    what: what they are called, such as "pairs". how: with what they are read again from the file `name`, as JSON has
    it. labels: what targets are the numbers of, where they are no tokens. Stands where a Corpus does: `batch`,
    `validation_windows`, `require`, `digest`.
    """

    name: str
    train: Sequence[Example]
    validation: Sequence[Example]
    what: str = "examples"
    how: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Examples({self.name!r}, {self.extent})"

    @property
    def extent(self) -> str:
        """How much there is, in words."""
        tokens, counted = (sum(count(row) for row in self.train) for count in (lambda row: len(row[0]), _counted))
        return (
            f"{len(self.train):,} {self.what}, {len(self.validation):,} held out; {tokens:,} tokens, {counted:,} of "
            "them targets"
        )

    @functools.cached_property
    def digest(self) -> str:
        """A hash of both parts: whether two files of examples are the same."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation):
            digest.update(f"{len(part)} ".encode())
            for row in part:
                digest.update(f"{len(row[0])} ".encode() + np.ascontiguousarray(np.stack(row), "<i8").tobytes())
        return digest.hexdigest()

    def batch(self, batch_size: int, block_size: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Examples to train on, drawn at random, none twice where there are enough: (tokens, targets, mask), (B, T)."""
        chosen = rng.choice(len(self.train), batch_size, replace=batch_size > len(self.train))
        return padded([self.train[i] for i in chosen])

    def validation_windows(self, block_size: int, most: int | None = None) -> tuple[np.ndarray, ...]:
        """Held-out examples, at most `most` of them, evenly spread, the short ones first: as a batch."""
        n = len(self.validation)
        chosen = np.arange(n) if most is None or most >= n else np.linspace(0, n - 1, most).round().astype(int)
        return padded(sorted((self.validation[i] for i in chosen), key=lambda row: len(row[0])))

    def require(self, block_size: int) -> "Examples":
        """These examples, or a ValueError when a part is empty or an example is longer than `block_size` tokens."""
        if not self.train or not self.validation:
            raise ValueError(
                f"{self.name}: {len(self.train)} {self.what} to train on and {len(self.validation)} held out, expected "
                "at least one of each, with different prompts"
            )
        long = [len(row[0]) for row in (*self.train, *self.validation) if len(row[0]) > block_size]
        if long:
            raise ValueError(
                f"{self.name}: {len(long):,} {self.what} are longer than the model's context of {block_size:,} tokens, "
                f"the longest has {max(long):,}; longest={block_size} where they are loaded cuts them"
            )
        return self


def padded(rows: Sequence[Example]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Examples side by side, as long as the longest: tokens, targets, and a mask with 1 where a token counts, (B, T)"""
    shape = len(rows), max(len(tokens) for tokens, _ in rows)
    tokens, targets, mask = np.full(shape, PADDING), np.full(shape, IGNORED), np.zeros(shape, dtype=bool)
    for i, (text, wanted) in enumerate(rows):
        tokens[i, : len(text)], targets[i, : len(text)], mask[i, : len(text)] = text, wanted, True
    return tokens, targets, mask


def split(rows: Sequence[Example], keys: Sequence[bytes]) -> tuple[list[Example], list[Example]]:
    """(train, held out): a tenth of the different keys, at least one of two, by their hashes, whatever their order.

    Examples of one key, such as two answers to one prompt, are in one part.
    """
    known = sorted(set(keys), key=lambda key: hashlib.sha256(key).digest())
    held_out = set(known[: max(len(known) // 10, len(known) > 1)])
    parts: tuple[list[Example], list[Example]] = [], []
    for row, key in zip(rows, keys, strict=True):
        parts[key in held_out].append(row)
    return parts


def _counted(row: Example) -> int:
    return int((row[1] != IGNORED).sum())
