"""The 96 characters that the models of this package read and write: a text as numbers, and back."""

import re
from typing import Any

import numpy as np

from ..autograd.fused import check_tokens
from ..autograd.signatures import checked

VOCABULARY = "\n" + "".join(chr(code) for code in range(0x20, 0x7F))  # 96 characters: newline and printable ASCII

# What an editor or a word processor makes of ASCII, back in ASCII. Built-in corpora are read as they are.
ALIKE = str.maketrans(
    {"\t": "    ", "…": "..."}
    | dict.fromkeys("\u2018\u2019\u201a\u201b\u2032", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"')
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-")
    | dict.fromkeys("\u00a0\u2002\u2003\u2009\u202f", " ")
    | dict.fromkeys("\u00ad\u200b\ufeff", "")
    | dict.fromkeys("\r\u2028\u2029", "\n")
)

_BEYOND = 0x7F  # no character of the vocabulary: stands for all that follow
_number_of = np.full(_BEYOND + 1, -1, dtype=np.int16)  # code point -> token
_number_of[[ord(c) for c in VOCABULARY]] = np.arange(len(VOCABULARY))
_UNKNOWN = VOCABULARY.index("?")


@checked
def encode(text: str) -> np.ndarray:
    """Text as tokens, (T,) integers in [0, 96). A character outside the vocabulary becomes '?'."""
    codes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
    tokens = _number_of[np.minimum(codes, _BEYOND)]
    return np.where(tokens < 0, _UNKNOWN, tokens).astype(np.int64)


def plain(text: str) -> str:
    """The text with tabs as four spaces, and typographic quotes, dashes and spaces as ASCII has them."""
    return text.replace("\r\n", "\n").translate(ALIKE)


def count_foreign(text: str) -> int:
    """How many characters are outside the vocabulary, and would read '?'."""
    return len(text) - len(re.findall(r"[\n -~]", text))


@checked
def decode(tokens: np.ndarray) -> str:
    """Tokens as text, the inverse of `encode`. Raises ValueError or TypeError for what is no token."""
    tokens = np.asarray(tokens).reshape(-1)
    if tokens.size:
        check_tokens("decode", tokens, len(VOCABULARY))
    return "".join(VOCABULARY[token] for token in tokens)


class Characters:
    """A tokenizer of characters, with the face of every other (`interop/tokenizer.py`): a token is a character.

    No token ends a text, none is special, and nothing stands around a text.
    """

    vocab_size, eos = len(VOCABULARY), frozenset[int]()

    def encode(self, text: str, special: bool = False, frame: bool = True) -> np.ndarray:
        """As `ml.encode`."""
        return encode(text)

    def decode(self, tokens: Any, skip_special: bool = False) -> str:
        """As `ml.decode`."""
        return decode(tokens)

    def chat(self, messages: Any, add_generation_prompt: bool = True) -> np.ndarray:
        """Raises ValueError."""
        raise ValueError("chat: a model of characters has no chat template: it was not made for chats")


CHARACTERS = Characters()
