"""Instruction tuning: prompts and answers from a file of JSON lines, of which only the answers' tokens count.

Each line is one object, as for TRL's SFTTrainer ("Dataset formats" in its documentation):
    {"prompt": "2 + 2 = ", "completion": "4"}                              a text, and how it goes on
    {"prompt": [{"role": "user", ...}], "completion": [{"role": "assistant", ...}]}     a chat, and its answers
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}   all answers count
Texts are taken as they are, chats are written by the model's own template. An answer ends with the token that ends one.
"""

import json
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd.fused import IGNORED
from ..autograd.signatures import checked, shown
from ..nn.characters import Characters, count_foreign, plain
from .checks import described, integer
from .examples import Example, Examples, split

ROLES = ("system", "developer", "user", "assistant", "tool")
LONGEST = 1024  # tokens; longer pairs lose their end, as in TRL


@checked
def load_pairs(path: str | os.PathLike, tokenizer: Any, longest: int = LONGEST) -> Examples:
    """The pairs in a file of JSON lines, in the tokens of a tokenizer (model.tokenizer), for `ml.Run` or `ml.evaluate`.

    A tenth of the prompts is held out, with all their answers. A pair of more than `longest` tokens loses its end, and
    one whose answer is all beyond is left out; a warning counts both. Raises ValueError, with the line's number, for
    what is no JSON, lacks a field, has an empty answer or an unknown role; FileNotFoundError where there is no file.
    """
    name = os.fspath(path)
    rows = ((f"{name}, line {number}", line) for number, line in json_lines(Path(path)))
    found = make_pairs(name, rows, tokenizer, longest)
    found.how.update(kind="pairs", longest=longest)
    return found


def make_pairs(name: str, rows: Iterable[tuple[str, dict]], tokenizer: Any, longest: int = LONGEST) -> Examples:
    """Pairs of the objects that a file would hold, each with words that say which one it is. As `load_pairs`."""
    longest, pairs = integer("load_pairs: longest", longest, 1), []
    require_tokenizer("load_pairs", tokenizer)
    for place, row in _in_characters(name, rows) if isinstance(tokenizer, Characters) else rows:
        try:
            pairs.append(pair_of(row, tokenizer))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{place}: {error}") from None
    if not pairs:
        raise ValueError(f"{name} holds no pairs")
    short = [(tokens[:longest], targets[:longest]) for tokens, targets in pairs]
    kept = [row for row in short if (row[1] != IGNORED).any()]
    if cut := sum(len(tokens) > longest for tokens, _ in pairs):
        lost = f"; {len(pairs) - len(kept):,} had no answer left and were left out" if len(kept) < len(pairs) else ""
        said = f"{name}: {cut:,} of {len(pairs):,} pairs are longer than {longest:,} tokens and lost their end{lost}"
        if not kept:
            raise ValueError(f"{said}: none is left")
        warnings.warn(said, stacklevel=3)
    return Examples(name, *split(kept, [_prompt(row) for row in kept]), what="pairs")


def pair_of(row: Any, tokenizer: Any) -> Example:
    """A pair as (tokens, targets), both (T,): targets are the next tokens where these are an answer's, else -100."""
    if not isinstance(row, dict):
        raise ValueError(f'got {shown(row)}, expected an object: {{"prompt": "...", "completion": "..."}}')
    if "messages" in row:
        ids, answer = _chat(row["messages"], 0, tokenizer)
    elif missing := {"prompt", "completion"} - row.keys():
        there = f"it has {', '.join(map(repr, row))}" if row else "it has none"
        raise ValueError(f"no {' and no '.join(map(repr, sorted(missing)))}; {there}, expected prompt and completion, "
                         "or messages")  # fmt: skip
    elif isinstance(row["prompt"], list) and isinstance(row["completion"], list):
        ids, answer = _chat(row["prompt"] + row["completion"], len(row["prompt"]), tokenizer)
    else:
        ids, answer = _text(row["prompt"], row["completion"], tokenizer)
    last = int(np.flatnonzero(answer)[-1])  # what follows the last answer is nobody's to learn
    targets = np.where(answer, ids, IGNORED)[1 : last + 1]
    if not (targets != IGNORED).any():
        raise ValueError("the answer is one token, and nothing stands before it to predict it from")
    return ids[:last], targets


def _in_characters(name: str, rows: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Texts and how they go on for a model of 96 characters, as `load_corpus` reads a text; '?' is counted."""
    found, foreign, total = [], 0, 0
    for place, row in rows:
        if isinstance(row, dict):
            row = {key: plain(value) if isinstance(value, str) else value for key, value in row.items()}
            text = "".join(row[key] for key in ("prompt", "completion") if isinstance(row.get(key), str))
            foreign, total = foreign + count_foreign(text), total + len(text)
        found.append((place, row))
    if foreign:
        warnings.warn(
            f"{name}: {foreign:,} of {total:,} characters are outside the vocabulary and read '?'", stacklevel=3
        )
    return found


def _text(prompt: Any, completion: Any, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a text and how it goes on, and which are the latter's: as many as differ from the prompt's alone.

    They are the tokens of the whole, since a token may hold the prompt's last letter and the answer's first.
    """
    for field, value in (("prompt", prompt), ("completion", completion)):
        if not isinstance(value, str):
            raise ValueError(f"{field} is {shown(value)}, expected a text, or messages in both prompt and completion")
    if not completion.strip():
        raise ValueError(f"the completion is {completion!r}, an empty answer")
    ids, end = tokenizer.encode(prompt + completion), _end(tokenizer)
    if end is not None and ids[-1] not in tokenizer.eos:
        ids = np.append(ids, end)
    return ids, np.arange(len(ids)) >= _common(ids, tokenizer.encode(prompt))


def _chat(messages: Any, first: int, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a chat, and which are answers': of every assistant's turn from `first` on, with the token that ends
    it."""
    _check_messages(messages, first)
    ids, text = tokenizer.chat(messages, add_generation_prompt=False), tokenizer.chat_text(messages, False)
    answer = np.zeros(len(ids), dtype=bool)
    for i in [i for i in range(first, len(messages)) if messages[i]["role"] == "assistant"]:
        before, after = (messages[:i], True), (messages[: i + 1], False)
        if not (text.startswith(tokenizer.chat_text(*after)) and text.startswith(tokenizer.chat_text(*before))):
            raise ValueError(
                f"message {i + 1}: the model's template writes this turn in another way once more follow, or when it "
                "is asked for; give the chat up to each answer a line of its own, as prompt and completion"
            )
        start, stop = (_common(ids, tokenizer.chat(*part)) for part in (before, after))
        ends = [t for t in range(start, stop) if ids[t] in tokenizer.eos]
        answer[start : ends[-1] + 1 if ends else stop] = True  # a line's end after the token is not the model's to say
    return ids, answer


def _check_messages(messages: Any, first: int) -> None:
    if not isinstance(messages, list) or not messages:
        raise ValueError(f'messages is {shown(messages)}, expected [{{"role": "user", "content": "..."}}, ...]')
    for i, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f'message {i} is {shown(message)}, expected {{"role": "user", "content": "..."}}')
        if message.get("role") not in ROLES:
            raise ValueError(f"message {i} has the role {shown(message.get('role'))}; there are {', '.join(ROLES)}")
        if message["role"] == "assistant" and i > first and not message["content"].strip():
            raise ValueError(f"message {i} is {message['content']!r}, an empty answer")
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i >= first]
    if not answers or answers[0] == 0:
        raise ValueError("no message is an answer: of the role assistant, and after another's")


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(its number, what it holds) of each line that is not empty."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}, expected one of JSON lines")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error.reason} at byte {error.start}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number} is no JSON: {error}") from None


def require_tokenizer(caller: str, tokenizer: Any) -> None:
    """Raises TypeError for what is no tokenizer."""
    if not hasattr(tokenizer, "encode") or not hasattr(tokenizer, "eos"):
        raise TypeError(f"{caller}: tokenizer is {described(tokenizer)}, expected a model's own: model.tokenizer")


def _end(tokenizer: Any) -> int | None:
    """The token that ends a text, where the tokenizer has one."""
    name = getattr(tokenizer, "special", {}).get("eos_token")
    if name is not None:
        return int(tokenizer.encode(name, special=True, frame=False)[-1])
    return min(tokenizer.eos, default=None)


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """With how many tokens both begin."""
    n = min(len(a), len(b))
    return n if (differ := np.flatnonzero(a[:n] != b[:n])).size == 0 else int(differ[0])


def _prompt(row: Example) -> bytes:
    """What stands before the first answer."""
    tokens, targets = row
    return tokens[: int(np.argmax(targets != IGNORED)) + 1].tobytes()
