"""Classification: texts with labels, from a file or made of Unicode's names, and how many of them a model gets right.

texts = ml.unicode_categories(model.tokenizer, longest=model.context)
ml.add_classifier(model, texts.labels)
ml.add_lora(model, ml.LoRAConfig(target_modules="*", modules_to_save=("classifier",)))
ml.train(ml.Run(model, texts, ml.Settings(steps=300)))
ml.classify(model, ["LATIN SMALL LETTER A"]), accuracy(model, texts)
"""

import functools
import itertools
import math
import os
import re
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd.fused import IGNORED
from ..autograd.signatures import checked, shown
from ..autograd.tensor import no_grad
from .checks import integer
from .examples import Example, Examples, padded, split
from .pairs import LONGEST, json_lines, require_tokenizer

CATEGORIES = "unicode-categories"
AT_A_TIME = 16  # texts
EACH = 400  # names a category, at most
FEWEST = 200  # of a category that counts


@checked
def load_labels(
    path: str | os.PathLike, tokenizer: Any, labels: Sequence[str] | None = None, longest: int = LONGEST
) -> Examples:
    """Texts and their labels from a file of JSON lines: {"text": "...", "label": "..."} each.

    labels: those there may be, in their order; by default those of the file, sorted. A tenth of the texts is held out.
    A text of more than `longest` tokens loses its end, and a warning says how many did. Raises ValueError, with the
    line's number, for what is no JSON, lacks a field, or has an unknown label; FileNotFoundError where there is no
    file.
    """
    name, rows = os.fspath(path), []
    for number, line in json_lines(Path(path)):
        rows.append(_row(f"{name}, line {number}", line))
    if not rows:
        raise ValueError(f"{name} holds no texts")
    found = tuple(labels if labels is not None else sorted({label for _, _, label in rows}))
    made = label_texts(name, rows, tokenizer, found, longest)
    train, validation = split(made, [tokens.tobytes() for tokens, _ in made])
    return Examples(
        name, train, validation, "texts", {"kind": "labels", "labels": list(found), "longest": longest}, found
    )


@checked
def unicode_categories(tokenizer: Any, longest: int = LONGEST, seed: int = 0) -> Examples:
    """Names of Unicode characters, each with the character's general category: "LATIN SMALL LETTER A" is an Ll.

    Of each category with 200 names or more at most 400 are drawn, a tenth of them held out; names are unique, so that
    no name is in both parts. Left out are names that a rule makes of a number, such as CJK UNIFIED IDEOGRAPH-4E00.
    """
    by_category = _names()
    labels = tuple(sorted(category for category, names in by_category.items() if len(names) >= FEWEST))
    rng = np.random.default_rng(integer("unicode_categories: seed", seed, 0))
    drawn = {
        label: [by_category[label][i] for i in rng.permutation(len(by_category[label]))[:EACH]] for label in labels
    }
    texts = [("", name, label) for label, names in drawn.items() for name in names]
    rows = iter(label_texts(CATEGORIES, texts, tokenizer, labels, longest))
    train: list[Example] = []
    held_out: list[Example] = []
    for names in drawn.values():
        held_out += itertools.islice(rows, len(names) // 10)
        train += itertools.islice(rows, len(names) - len(names) // 10)
    return Examples(
        CATEGORIES, train, held_out, "names", {"kind": CATEGORIES, "longest": longest, "seed": seed}, labels
    )


@functools.cache
def _names() -> dict[str, list[str]]:
    """{category: the names of its characters} of all of Unicode."""
    found: dict[str, list[str]] = {}
    for character in map(chr, range(0x110000)):
        name = unicodedata.name(character, "")
        if name and not re.search(r"-[0-9A-F]{4,5}$|^HANGUL SYLLABLE", name):
            found.setdefault(unicodedata.category(character), []).append(name)
    return found


def label_texts(
    name: str, rows: Sequence[tuple[str, str, str]], tokenizer: Any, labels: Sequence[str], longest: int
) -> list[Example]:
    """(tokens, targets) of texts with labels, each with words that say which one it is: the label stands at the end."""
    longest, made, cut = integer("load_labels: longest", longest, 1), [], 0
    require_tokenizer("load_labels", tokenizer)
    for place, text, label in rows:
        if label not in labels:
            raise ValueError(f"{place}: the label {label!r} is unknown; there are {', '.join(labels)}")
        tokens = tokenizer.encode(text)
        cut += len(tokens) > longest
        targets = np.full(len(tokens[:longest]), IGNORED)
        targets[-1] = labels.index(label)
        made.append((tokens[:longest], targets))
    if cut:
        warnings.warn(
            f"{name}: {cut:,} of {len(rows):,} texts are longer than {longest:,} tokens and lost their end",
            stacklevel=3,
        )
    return made


@checked
def classify(model: Any, texts: Sequence[str]) -> list[str]:
    """The label that a model gives each text. Raises ValueError for a model without labels, or an empty text."""
    _require_labels(model, "classify")
    for text in texts:
        if not isinstance(text, str) or not text:
            raise ValueError(f"classify: got {shown(text)} among the texts, expected a text that is not empty")
    rows = label_texts(
        "classify", [("", text, model.labels[0]) for text in texts], model.tokenizer, model.labels, LONGEST
    )
    return [model.labels[i] for i in _likeliest(model, rows)]


@dataclass(frozen=True)
class Share:
    """How many of how many are right, and where the share of all that could be asked lies, 19 times of 20.

    That is Wilson's interval (1927, "Probable inference, the law of succession, and statistical inference").
    """

    right: int
    total: int

    @property
    def interval(self) -> tuple[float, float]:
        """(p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),  p = right / n,  z = 1.96"""
        n, p, z = self.total, self.right / self.total, 1.959964
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
        return max((middle - half) / (1 + z * z / n), 0.0), min((middle + half) / (1 + z * z / n), 1.0)

    def __str__(self) -> str:
        low, high = self.interval
        share = 100 * self.right / self.total
        return f"{share:.1f} % of {self.total:,} (95 % interval {100 * low:.1f} to {100 * high:.1f})"


def accuracy(model: Any, examples: Examples) -> Share:
    """How many of the held-out texts get their own label. Raises ValueError where the model has other labels."""
    _require_labels(model, "accuracy")
    if tuple(examples.labels) != tuple(model.labels):
        raise ValueError(f"accuracy: the texts have the labels {', '.join(examples.labels)}, the model "
                         f"{', '.join(model.labels)}")  # fmt: skip
    own = [int(targets[-1]) for _, targets in examples.validation]
    found = _likeliest(model, examples.validation)
    return Share(sum(a == b for a, b in zip(found, own, strict=True)), len(own))


def _likeliest(model: Any, rows: Sequence[Example]) -> list[int]:
    """The number of the highest score of each text."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))  # texts of a length together: less padding
    found: dict[int, int] = {}
    for start in range(0, len(rows), AT_A_TIME):
        some = order[start : start + AT_A_TIME]
        tokens, _, mask = padded([rows[i] for i in some])
        with no_grad():
            scores = model.scores_of_texts(tokens, mask).numpy()  # (B, labels)
        found |= dict(zip(some, scores.argmax(axis=1).tolist(), strict=True))
    return [found[i] for i in range(len(rows))]


def _require_labels(model: Any, caller: str) -> None:
    if not getattr(model, "labels", ()):
        raise ValueError(
            f"{caller}: the model has no labels; ml.add_classifier(model, labels) gives it a head for them"
        )


def _row(place: str, row: Any) -> tuple[str, str, str]:
    """(place, text, label) of one line."""
    if not isinstance(row, dict) or not {"text", "label"} <= row.keys():
        raise ValueError(f'{place}: got {shown(row)}, expected {{"text": "...", "label": "..."}}')
    text, label = row["text"], row["label"]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{place}: text is {shown(text)}, expected one that is not empty")
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise ValueError(f"{place}: label is {shown(label)}, expected a text, or a whole number")
    return place, text, str(label)
