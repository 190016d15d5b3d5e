"""Real text that every Python installation carries, or any text file, as numbers: characters, or a tokenizer's tokens.

`python-docs` is the language reference behind `help()`, `python-code` the standard library's source, `unicode-names`
the names of Unicode characters. They differ in vocabulary, grammar and layout, which is what adaptation needs.
"""

import functools
import hashlib
import os
import re
import sys
import sysconfig
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..nn.characters import Characters, count_foreign, encode, plain
from .checks import described
from .examples import Examples

PYTHON = sys.version.split()[0]  # whose library the built-in corpora are read from; other versions have other text
PAGE = 1024  # characters; every tenth page is held out, so that both parts cover the same topics

MUCH, TOO_MUCH = 0.1, 0.5  # shares of characters that the model has not


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text as tokens, in two parts without overlap: train, and validation (every tenth page of 1,024 characters).

    replaced counts the characters outside the vocabulary, which stand as '?'. unit: what a token is, "characters", or
    "tokens" where a model's own tokenizer made them. Raises TypeError unless both parts are arrays (T,) of integers.
    """

    name: str
    train: np.ndarray
    validation: np.ndarray
    replaced: int = 0
    unit: str = "characters"

    def __post_init__(self) -> None:
        for part in ("train", "validation"):
            tokens = getattr(self, part)
            if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or tokens.dtype.kind not in "iu":
                came = f"{tokens.shape} of {tokens.dtype}" if isinstance(tokens, np.ndarray) else described(tokens)
                raise TypeError(f"Corpus: {part} is {came}, expected an array (T,) of integers: ml.encode(text)")

    def __repr__(self) -> str:
        return f"Corpus({self.name!r}, {len(self.train):,} tokens to train on, {len(self.validation):,} to validate on)"

    @functools.cached_property
    def digest(self) -> str:
        """A hash of both parts: whether two texts are the same."""
        digest = hashlib.sha256()
        for tokens in (self.train, self.validation):
            digest.update(f"{len(tokens)} ".encode() + np.ascontiguousarray(tokens, "<u4").tobytes())
        return digest.hexdigest()

    def batch(self, batch_size: int, block_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Windows of the training text at random places: (tokens, targets), both (B, T); targets are one ahead."""
        if len(self.train) <= block_size:
            self.require(block_size)
        starts = rng.integers(0, len(self.train) - block_size, batch_size)
        windows = self.train[starts[:, None] + np.arange(block_size + 1)]  # (B, T + 1)
        return windows[:, :-1], windows[:, 1:]

    def validation_windows(self, block_size: int, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The validation text cut into windows side by side, at most `most` of them, evenly spread: both (N, T)."""
        n = (len(self.validation) - 1) // block_size
        chosen = np.arange(n) if most is None or most >= n else np.linspace(0, n - 1, most).round().astype(int)
        windows = self.validation[chosen[:, None] * block_size + np.arange(block_size + 1)]  # (N, T + 1)
        return windows[:, :-1], windows[:, 1:]

    def require(self, block_size: int) -> "Corpus":
        """This corpus, or a ValueError when one of its parts is too short for one context of `block_size`."""
        shortest = min(len(self.train), len(self.validation))
        if shortest <= block_size:
            raise ValueError(
                f"corpus {self.name!r} is too short: it has {len(self.train):,} {self.unit} to train on and "
                f"{len(self.validation):,} to validate on; a context of {block_size} needs {block_size + 1} of each"
            )
        return self


def load_corpus(name_or_path: str | os.PathLike, tokenizer: Any = None) -> Corpus:
    """The corpus 'python-docs', 'python-code' or 'unicode-names', or the text of a UTF-8 file.

    tokenizer: a model's own, model.tokenizer, whose tokens the text becomes as it is; without one they are characters:
    a file's tabs, typographic quotes and dashes are read as ASCII has them (`plain`), and a warning says once when
    characters outside the vocabulary were replaced. Raises FileNotFoundError for what is neither a corpus nor a file,
    and ValueError for a file that is empty, no text, or in characters for the most part in another alphabet.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise TypeError(f"load_corpus: got {described(name_or_path)}, expected {', '.join(BUILT_IN)}, or a file's path")
    name = os.fspath(name_or_path)
    text = BUILT_IN[name]() if name in BUILT_IN else _read(Path(name))
    if not text.strip():
        raise ValueError(f"corpus {name!r} is empty")
    if not (tokenizer is None or isinstance(tokenizer, Characters)):
        if not hasattr(tokenizer, "encode") or not hasattr(tokenizer, "eos"):
            raise TypeError(f"load_corpus: tokenizer is {described(tokenizer)}, expected a model's: model.tokenizer")
        return Corpus(name, *_split(tokenizer.encode(text, frame=False)), unit="tokens")
    text = text if name in BUILT_IN else plain(text)
    replaced = count_foreign(text)
    if replaced and name not in BUILT_IN:
        _warn_of_foreign(name, replaced, len(text))
    return Corpus(name, *_split(encode(text)), replaced)


def as_corpus(caller: str, corpus: Any, tokenizer: Any = None) -> Any:
    """A corpus or examples, or the text that a name or a path means. Raises TypeError, with the caller's name, for
    anything else."""
    if isinstance(corpus, Corpus | Examples):
        return corpus
    if isinstance(corpus, str | os.PathLike):
        if os.fspath(corpus).endswith(".jsonl"):
            raise ValueError(f"{caller}: {os.fspath(corpus)!r} holds pairs: ml.load_pairs(path, model.tokenizer)")
        return load_corpus(corpus, tokenizer)
    raise TypeError(f"{caller}: corpus is {described(corpus)}, expected one such as ml.load_corpus('unicode-names')")


def _warn_of_foreign(name: str, replaced: int, total: int) -> None:
    share = replaced / total
    said = f"{name}: {replaced:,} of {total:,} characters are outside the vocabulary and read '?'"
    if share > TOO_MUCH:
        raise ValueError(
            f"{name}: {share:.0%} of its characters are outside the vocabulary (newline and printable ASCII): a model "
            "would learn to write question marks; transliterate the text first, say with iconv -t ascii//TRANSLIT"
        )
    more = f": {share:.0%}, which the model will learn to write" if share > MUCH else ""
    warnings.warn(said + more, stacklevel=3)


def _split(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(train, validation): pages 9, 19, 29 ... are held out. A short text has ten shorter pages."""
    page = min(PAGE, -(-len(tokens) // 10))
    held_out = np.arange(len(tokens)) // page % 10 == 9
    return tokens[~held_out], tokens[held_out]


def _read(path: Path) -> str:
    if not path.is_file():
        import difflib  # here: only a typo needs it

        close = difflib.get_close_matches(path.name, BUILT_IN, 1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(BUILT_IN)}, or a text file's path"
        raise FileNotFoundError(f"no corpus and no file {str(path)!r}{hint}")
    try:
        return path.read_text(encoding="utf-8-sig")  # with or without the mark that some editors put in front
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error.reason} at byte {error.start}") from None


def _python_docs() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions, and a browser's Python, leave it out
        raise FileNotFoundError(
            "python-docs: this Python comes without its documentation (pydoc_data); take 'unicode-names' or a file"
        ) from None

    # Topics quote each other's sections whole. Each paragraph is kept once, so that none is in both parts.
    paragraphs = (p.strip("\n") for topic in sorted(topics) for p in re.split(r"\n\s*\n", topics[topic]))
    return "\n\n".join(dict.fromkeys(p for p in paragraphs if p.strip()))


def _python_code() -> str:
    found = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    modules = dict.fromkeys(module.resolve() for module in found)  # a link is no second text, such as Debian has
    return "\n".join(module.read_text(encoding="utf-8", errors="replace") for module in modules)


@functools.cache  # a megabyte, for which a million code points are asked
def _unicode_names() -> str:
    # Left out: names that a rule makes from a number, such as CJK UNIFIED IDEOGRAPH-4E00 and the Hangul syllables.
    names = (unicodedata.name(chr(code), "") for code in range(0x110000))
    return "\n".join(n for n in names if n and not re.search(r"-[0-9A-F]{4,5}$|^HANGUL SYLLABLE", n))


BUILT_IN: dict[str, Callable[[], str]] = {
    "python-docs": _python_docs,
    "python-code": _python_code,
    "unicode-names": _unicode_names,
}
