"""Tokenizers of a few hundred tokens, made on the spot: a Hugging Face folder, and the metadata of a GGUF file."""

import functools
import json
from pathlib import Path

TEXT = """The class of 2024 isn't over: they'll meet 12 times, 345 hours in all. été, naïve; 日本語 と 🙂 emoji.
def add(a, b):
    return a + b    # 1 + 2 == 3

    SELECT name, count(*) FROM people WHERE age >= 18 GROUP BY name;\tTab and  two spaces. We've, I'd, it'S, HE'LL.
"""
CHAT = """{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] }}
{{- '<|im_end|>' + '\\n' }}{% endfor %}
{% if add_generation_prompt %}
    {{ '<|im_start|>assistant\\n' }}{% endif %}"""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MESSAGES = [
    {"role": "user", "content": "Hello <b>&amp;"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "1 + 1?"},
]


WORDS = """The the class clas of is in and def return SELECT FROM name people count 12 123 20 're 'll es 've""".split()  # noqa: SIM905


@functools.cache
def trained() -> tuple[list[str], list[str]]:
    """(tokens, merges) of byte pairs: words grow letter by letter, after a space first."""
    from tokenizers import pre_tokenizers

    grown = [*(f"Ġ{word}" for word in WORDS), *WORDS, "ĠĠ", "ĊĊ", "Ã©", "æĹ¥"]
    merges = dict.fromkeys(f"{word[:i]} {word[i]}" for word in grown for i in range(1, len(word)))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*SPECIAL, *alphabet, *(merge.replace(" ", "") for merge in merges)], list(merges)


def byte_pairs(pre: str, architecture: str = "llama", **more) -> dict:
    """The metadata of a GGUF file whose tokenizer is over bytes."""
    tokens, merges = trained()
    return {
        "general.architecture": architecture,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": CHAT,
        **more,
    }


def sentence_piece(architecture: str = "llama", **more) -> dict:
    """The metadata of a GGUF file whose tokenizer is SentencePiece's, with bytes for what it does not know."""
    grown = [f"▁{word}" for word in WORDS] + WORDS
    pieces = list(dict.fromkeys(word[: i + 1] for word in grown for i in range(1, len(word))))  # the best first
    pieces += [c for c in dict.fromkeys("▁" + TEXT) if c not in "日本🙂=\n "]
    spaces = ["  ", "   "] if architecture.startswith("gemma") else []
    head = ["<unk>", "<s>", "</s>"]
    tokens = [*head, *(f"<0x{byte:02X}>" for byte in range(256)), *spaces, *pieces]
    kinds = [2, 3, 3] + [6] * 256 + [4] * len(spaces) + [1] * len(pieces)
    scores = [0.0] * (3 + 256 + len(spaces)) + [-float(n) for n in range(len(pieces))]
    return {
        "general.architecture": architecture,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": not architecture.startswith("gemma"),
        **more,
    }


def write_gguf(path: Path, metadata: dict) -> Path:
    """A GGUF file of this metadata and no tensors."""
    import gguf

    writer = gguf.GGUFWriter(str(path), metadata["general.architecture"])
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def write_folder(folder: Path, config: dict | None = None, **more: str) -> Path:
    """A Hugging Face folder of a tokenizer over bytes; config: what tokenizer_config.json says; more: other files."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, merges = trained()
    vocab = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(merge.split(" ")) for merge in merges]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"} if config is None else config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, text in more.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder
