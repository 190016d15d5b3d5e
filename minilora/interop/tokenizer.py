"""A model's own tokenizer: text to numbers and back, through Hugging Face's `tokenizers`, and its chat template.

A folder's `tokenizer.json` says all of it but what begins and ends a text, and how a chat is written, which stand in
the files beside it. `gguf_tokenizer.py` makes one of the vocabulary in a GGUF file.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd.signatures import is_whole, shown
from ..nn.storage import said
from .chat import render
from .extras import extra

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """tokens = tokenizer.encode(text); text = tokenizer.decode(tokens)

    backend: a tokenizers.Tokenizer; special: {"eos_token": "</s>"} and its like; eos: the tokens that end a text;
    template: how a chat is written, in Jinja's language, or None. vocab_size: how many tokens there are.
    """

    def __init__(
        self,
        backend: Any,
        special: Mapping[str, str] | None = None,
        eos: Sequence[int] = (),
        template: str | None = None,
    ):
        backend.no_truncation()  # a file may ask for both: nothing is cut, or added, unsaid
        backend.no_padding()
        self.backend, self.special, self.template = backend, dict(special or {}), template
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.rows = self.vocab_size  # of the model's embedding: `fit` says how many
        end = self.special.get("eos_token")
        ends = [*eos, *([backend.token_to_id(end)] if end else [])]
        self.eos = frozenset(token for token in ends if token is not None)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size:,}, eos={sorted(self.eos)})"

    def encode(self, text: str, special: bool = False, frame: bool = True) -> np.ndarray:
        """Text as tokens: (T,) integers.

        special: "<|im_end|>" and its like in the text are the tokens of these names, not characters. frame: with the
        tokens that every text of this model begins or ends with, such as <s> or [CLS] and [SEP]. Raises TypeError for
        what is no text, ValueError for half a surrogate pair, which no text has.
        """
        if not isinstance(text, str):
            raise TypeError(f"encode: got {shown(text)}, expected a text")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"encode: character {error.start} is {text[error.start]!r}, half a character") from None
        self.backend.encode_special_tokens = not special
        return np.array(self.backend.encode(text, add_special_tokens=frame).ids, dtype=np.int64)

    def decode(self, tokens: Any, skip_special: bool = False) -> str:
        """Tokens as text. skip_special: without "<|im_end|>" and its like. Bytes that are no text become "\\ufffd".

        Raises TypeError for what are no integers, ValueError for numbers that are no token's.
        """
        array = np.asarray(tokens).reshape(-1)
        if array.size and array.dtype.kind not in "iu":
            raise TypeError(f"decode: got {shown(tokens)}, expected integers, the numbers of tokens")
        wrong = array[(array < 0) | (array >= self.rows)]
        if wrong.size:
            raise ValueError(f"decode: {wrong[0]} is no token; there are {self.rows:,}, from 0")
        return self.backend.decode(array.tolist(), skip_special_tokens=skip_special)

    def chat_text(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """A chat as the model's text: [{"role": "user", "content": "Hello"}] -> "<|im_start|>user\\nHello...".

        add_generation_prompt: with what stands before an answer, for the model to go on. Raises ValueError without a
        template, and for messages that the template refuses.
        """
        if self.template is None:
            raise ValueError("chat: this tokenizer has no chat template: the model was not made for chats")
        return render(self.template, messages, add_generation_prompt, self.special)

    def chat(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> np.ndarray:
        """A chat as tokens: (T,) integers. As `chat_text`."""
        return self.encode(self.chat_text(messages, add_generation_prompt), special=True, frame=False)

    def fit(self, rows: int, called: str) -> "Tokenizer":
        """This tokenizer, beside a model of so many rows of embeddings. Raises ValueError when they do not go together.

        A model may have more rows than there are tokens, which makes the table a round number: up to 127, or 5 %. It
        may lack those of added tokens, which no plain text is made of, such as the images' token of Gemma 3's text
        models.
        """
        own = max(self.backend.get_vocab(with_added_tokens=False).values(), default=-1) + 1
        added = [t for t in range(min(rows, own), own) if t not in self.backend.get_added_tokens_decoder()]
        if added or rows - self.vocab_size > max(127, self.vocab_size // 20):
            raise ValueError(f"{called}: its tokenizer has {self.vocab_size:,} tokens, the model's vocabulary {rows:,}")
        self.rows = max(rows, self.vocab_size)
        return self

    def files(self) -> dict[str, str]:
        """{name: text} of the files that say this tokenizer in a Hugging Face folder."""
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **self.special}
        config |= {"clean_up_tokenization_spaces": False, "model_max_length": math.floor(1e30)}
        if self.template is not None:
            config["chat_template"] = self.template
        return {
            "tokenizer.json": self.backend.to_str(pretty=True),
            "tokenizer_config.json": json.dumps(config, indent=2),
        }


def from_folder(folder: str | Path) -> Tokenizer:
    """The tokenizer in a Hugging Face folder.

    Raises FileNotFoundError where there is no tokenizer.json, ValueError for a file that is no tokenizer, ImportError
    where the library `tokenizers` is not installed.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        old = [
            name for name in ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model") if (folder / name).exists()
        ]
        why = f", but {old[0]}; transformers' AutoTokenizer reads it and its save_pretrained writes one" if old else ""
        raise FileNotFoundError(f"{folder} has no tokenizer.json{why}")
    tokenizers = extra("tokenizers", f"reading {path}")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"{path} is no tokenizer: {said(error)}") from None
    config = _json(folder / "tokenizer_config.json")
    special = _special(_json(folder / "special_tokens_map.json") | config)
    _add_tokens(tokenizers, backend, config.get("added_tokens_decoder") or {}, path)
    ends = _json(folder / "generation_config.json").get("eos_token_id")
    eos: list[int] = [end for end in (ends if isinstance(ends, list) else [ends]) if end is not None and is_whole(end)]
    return Tokenizer(backend, special, eos, _template(folder, config))


def _json(path: Path) -> dict[str, Any]:
    """What a JSON file holds, nothing where there is none. Raises ValueError where it holds no object."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {said(error)}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {shown(found)}, expected an object of JSON")
    return found


def _special(config: Mapping[str, Any]) -> dict[str, str]:
    """{"eos_token": "</s>"}: each is written as a text, or as an object with its "content"."""
    found = {name: config[name] for name in NAMED if config.get(name)}
    return {name: token["content"] if isinstance(token, dict) else str(token) for name, token in found.items()}


def _add_tokens(tokenizers: Any, backend: Any, added: Mapping[str, Any], path: Path) -> None:
    """Tokens that tokenizer_config.json adds to tokenizer.json. Raises ValueError where they have other numbers."""
    fields = ("single_word", "lstrip", "rstrip", "normalized", "special")
    for number, token in sorted(added.items(), key=lambda pair: int(pair[0])):
        if backend.token_to_id(token["content"]) is None:
            flags = {name: token[name] for name in fields if name in token}
            backend.add_tokens([tokenizers.AddedToken(token["content"], **flags)])
        if backend.token_to_id(token["content"]) != int(number):
            there = backend.token_to_id(token["content"])
            raise ValueError(f"{path}: {token['content']!r} is token {there}, in tokenizer_config.json it is {number}")


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """How a chat is written: chat_template.jinja, or what tokenizer_config.json says; of several, the default."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    return found
