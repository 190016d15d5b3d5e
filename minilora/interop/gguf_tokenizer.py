"""The tokenizer in a GGUF file: a vocabulary, merges or scores, kinds of tokens, and the name of a rule that cuts text.

Three kinds of byte pairs: over bytes written as letters (GPT-2's, "gpt2"), and over characters with bytes where one is
unknown (SentencePiece's, "llama"), whose merges are not written and follow from the scores. The names and their
meaning: "Standardized key-value pairs" in the GGUF specification, and llama.cpp's table of pre-tokenizers.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..nn.checks import unknown
from ..nn.storage import said
from .extras import extra
from .tokenizer import Tokenizer

KEYS = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # the kinds of tokens

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_END = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_END}"
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORDS = [rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"]
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_TEKKEN = "|".join([*_WORDS, r"\p{N}", _MARKS, _END])
_GPT4O = "|".join([*(f"{words}{_CONTRACTIONS}?" for words in _WORDS), r"\p{N}{1,3}", _MARKS, _END])


class Rule(NamedTuple):
    """How text is cut before its bytes are paired: at `pattern`, or else as GPT-2 does."""

    pattern: str | None = None
    digits: bool = False  # each alone
    begins: bool = False  # with the token that begins a text, where the file does not say
    whole: bool = False  # a piece that is a token is that token, whatever its pairs are
    composed: bool = False  # characters are first composed, as Unicode's form C has them


_GPT2, _DIGITS = Rule(), Rule(digits=True)
_OF_LLAMA3 = Rule(_LLAMA3, begins=True, whole=True)
RULES = {  # by the names in files, which are llama.cpp's
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "granite-docling"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), _OF_LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Rule(_LLAMA3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), Rule(_QWEN2, composed=True)),
    "stablelm2": Rule(_QWEN2),
    "tekken": Rule(_TEKKEN, begins=True, whole=True),
    **dict.fromkeys(("gpt-4o", "llama4"), Rule(_GPT4O)),
}


def from_metadata(metadata: Mapping[str, Any], called: str) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describes: {key: value}, arrays as lists; called: the file's name.

    Raises ValueError for a kind of tokenizer or a pre-tokenizer that is not known (the known are listed), and where
    something is missing or does not fit.
    """
    tokenizers = extra("tokenizers", f"reading {called}")
    kind = metadata.get(f"{KEYS}model")
    if kind not in KINDS:
        raise ValueError(f"{called}: {unknown('kind of tokenizer', str(kind), list(KINDS))}")
    words = metadata.get(f"{KEYS}tokens")
    if not words:
        raise ValueError(f"{called}: it has no {KEYS}tokens")
    if len(set(words)) < len(words):
        twice = next(word for number, word in enumerate(words) if words.index(word) < number)
        raise ValueError(f"{called}: two of its tokens are {twice!r}")
    kinds = metadata.get(f"{KEYS}token_type") or [NORMAL] * len(words)
    if len(kinds) != len(words):
        raise ValueError(f"{called}: it has {len(words):,} tokens and the kinds of {len(kinds):,}")
    if str(metadata.get("general.architecture")).startswith("gemma"):  # which spells runs of spaces as they are
        kinds = [NORMAL if not word.strip(" ") else its for word, its in zip(words, kinds, strict=True)]
        words = ["▁" * len(word) if not word.strip(" ") else word for word in words]
    try:
        backend, begins = KINDS[kind](tokenizers, metadata, list(words), called)
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(said(error) if str(error).startswith(called) else f"{called}: {said(error)}") from None
    for word, its in zip(words, kinds, strict=True):
        if its in (UNKNOWN, CONTROL, USER_DEFINED):
            backend.add_tokens([tokenizers.AddedToken(word, special=its != USER_DEFINED, normalized=False)])
    special = _special(metadata, words, called)
    begins = bool(metadata.get(f"{KEYS}add_bos_token", begins))
    _set_frame(backend, special, begins, bool(metadata.get(f"{KEYS}add_eos_token", False)))
    eos = [metadata[key] for key in (f"{KEYS}eot_token_id", f"{KEYS}eom_token_id") if key in metadata]
    return Tokenizer(backend, special, eos, metadata.get("tokenizer.chat_template"))


def _set_frame(backend: Any, special: Mapping[str, str], bos: bool, eos: bool) -> None:
    """Let every text begin with the token that begins one, or end with the one that ends it, or both."""
    begin = [special["bos_token"]] if bos and "bos_token" in special else []
    end = [special["eos_token"]] if eos and "eos_token" in special else []
    backend.post_processor = extra("tokenizers.processors", "a tokenizer").TemplateProcessing(
        single=[*begin, "$A", *end], special_tokens=[(token, backend.token_to_id(token)) for token in {*begin, *end}]
    )


def _special(metadata: Mapping[str, Any], words: list[str], called: str) -> dict[str, str]:
    """{"eos_token": "</s>"}, from the numbers in the file."""
    names = {
        "bos": "bos",
        "eos": "eos",
        "unknown": "unk",
        "padding": "pad",
        "seperator": "sep",
        "cls": "cls",
        "mask": "mask",
    }
    found = {}
    for theirs, ours in names.items():
        number = metadata.get(f"{KEYS}{theirs}_token_id")
        if number is not None and not 0 <= number < len(words):
            raise ValueError(f"{called}: {KEYS}{theirs}_token_id is {number}, and there are {len(words):,} tokens")
        if number is not None:
            found[f"{ours}_token"] = words[number]
    return found


def _bytes_as_letters(tokenizers: Any, metadata: Mapping[str, Any], words: list[str], called: str) -> tuple[Any, bool]:
    """GPT-2's byte pairs: (tokenizer, whether texts begin with a token where the file does not say)."""
    name = metadata.get(f"{KEYS}pre")
    if name is None:
        raise ValueError(f"{called}: it does not say how text is cut ({KEYS}pre)")
    if name not in RULES:
        raise ValueError(f"{called}: {unknown('pre-tokenizer', str(name), list(RULES))}")
    rule, cut = RULES[name], tokenizers.pre_tokenizers
    merges = [tuple(merge.split(" ")) for merge in metadata.get(f"{KEYS}merges") or ()]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=_numbers(words), merges=merges, ignore_merges=rule.whole)
    )
    steps = [cut.Digits(individual_digits=True)] if rule.digits else []
    steps += [cut.Split(tokenizers.Regex(rule.pattern), "isolated")] if rule.pattern else []
    backend.pre_tokenizer = cut.Sequence([*steps, cut.ByteLevel(add_prefix_space=False, use_regex=not rule.pattern)])
    backend.normalizer = tokenizers.normalizers.NFC() if rule.composed else None
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend, rule.begins


def _characters(tokenizers: Any, metadata: Mapping[str, Any], words: list[str], called: str) -> tuple[Any, bool]:
    """SentencePiece's byte pairs: a space is "▁", a text begins with one; the better a token's score, the earlier."""
    scores = metadata.get(f"{KEYS}scores")
    if scores is None or len(scores) != len(words):
        raise ValueError(f"{called}: it has {len(words):,} tokens and {len(scores or ()):,} scores ({KEYS}scores)")
    if str(metadata.get("general.architecture")).startswith("gemma"):  # whose scores are not in the order of its merges
        scores = range(0, -len(words), -1)
    numbers = _numbers(words)
    unknown_token = metadata.get(f"{KEYS}unknown_token_id")
    name = words[unknown_token] if unknown_token is not None else None
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=numbers, merges=_merges(numbers, scores), unk_token=name, fuse_unk=True, byte_fallback=True
        )
    )
    prefix = bool(metadata.get(f"{KEYS}add_space_prefix", True))
    n, d = tokenizers.normalizers, tokenizers.decoders
    backend.normalizer = n.Sequence([*([n.Prepend("▁")] if prefix else []), n.Replace(" ", "▁")])
    strip = [d.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), *strip])
    return backend, True


def _merges(numbers: dict[str, int], scores: Any) -> list[tuple[str, str]]:
    """Every pair of tokens that is a token, the best first; of equal scores the longer left, then right, part first."""
    found = []
    for (word, _), score in zip(numbers.items(), scores, strict=True):
        pairs = [(word[:i], word[i:]) for i in range(1, len(word))]
        pairs = [pair for pair in pairs if pair[0] in numbers and pair[1] in numbers]
        pairs.sort(key=lambda pair: (numbers[pair[0]], numbers[pair[1]]))
        found += [((score, len(left), len(right)), (left, right)) for left, right in pairs]
    found.sort(key=lambda entry: entry[0], reverse=True)
    return [pair for _, pair in found]


def _numbers(words: list[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate(words)}


KINDS = {"gpt2": _bytes_as_letters, "llama": _characters}
