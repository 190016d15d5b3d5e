"""Tokenizers beside transformers': of the same folder, and of the same GGUF file."""

import os
import unicodedata
from pathlib import Path

import pytest
import tiny_tokenizers as tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from minilora.interop.gguf_tokenizer import from_metadata
from minilora.interop.tokenizer import from_folder

transformers = pytest.importorskip("transformers")

WORDS = [
    "The class",
    " of 12",
    "def f(x):\n",
    "    return",
    "'ll",
    "HE'LL",
    "été",
    "日本語",
    "🙂🏽",
    "\t",
    "\r\n",
    "<|im_end|>",
    "…",
    "_",
    "ß",
    "e\u0301",
]
TEXTS = st.lists(st.sampled_from(WORDS) | st.text(max_size=8), max_size=8).map("".join)
DIGITS_FIRST = {"smollm"}  # transformers reads these files by GPT-2's rule: it differs where digits follow two spaces


def theirs(metadata, folder: Path):
    """transformers' tokenizer of a GGUF file with this metadata."""
    path = tiny.write_gguf(folder / "tiny.gguf", metadata)
    return transformers.AutoTokenizer.from_pretrained(str(folder), gguf_file=path.name)


def check_same(ours, their, text: str) -> None:
    """The same tokens, and the same text back."""
    expected = their.encode(text)
    assert ours.encode(text, special=True).tolist() == expected
    assert ours.decode(expected) == their.decode(expected, clean_up_tokenization_spaces=False)
    assert ours.decode(expected, True) == their.decode(expected, True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "tekken", "gpt-4o", "smollm"])
def test_byte_pairs(tmp_path, pre):
    metadata = tiny.byte_pairs(
        pre, "qwen2" if pre == "qwen2" else "llama", **{"tokenizer.ggml.add_bos_token": pre != "qwen2"}
    )
    ours, their = from_metadata(metadata, "x"), theirs(metadata, tmp_path)

    @given(TEXTS)
    def same(text):
        if pre in DIGITS_FIRST:
            text = "".join(c for c in text if not c.isnumeric())
        if (
            pre == "qwen2"
        ):  # whose own tokenizer composes characters first, which transformers leaves out for a GGUF file
            text = unicodedata.normalize("NFC", text)
        check_same(ours, their, text)

    same()


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gemma3"])
def test_sentence_pieces(tmp_path, architecture):
    metadata = tiny.sentence_piece(architecture)
    ours, their = from_metadata(metadata, "x"), theirs(metadata, tmp_path)

    @given(TEXTS)
    def same(text):
        if architecture == "llama":  # a space at the start gets one before it, as in Llama's own tokenizer.json
            text = text.replace("<|im_end|>", "").lstrip(" ▁")
        check_same(ours, their, text)

    same()


@pytest.mark.parametrize("config", [{}, {"add_bos_token": True}, {"add_bos_token": True, "add_eos_token": True}])
def test_a_folder(tmp_path, config):
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": tiny.CHAT, **config}
    tiny.write_folder(tmp_path, {"tokenizer_class": "PreTrainedTokenizerFast", **config})
    ours, their = from_folder(tmp_path), transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    check_same(ours, their, tiny.TEXT + "<|im_end|>")
    for prompt in (True, False):
        expected = their.apply_chat_template(tiny.MESSAGES, tokenize=False, add_generation_prompt=prompt)
        assert ours.chat_text(tiny.MESSAGES, prompt) == expected
    assert (
        ours.chat(tiny.MESSAGES).tolist()
        == their.apply_chat_template(tiny.MESSAGES, add_generation_prompt=True)["input_ids"]
    )


def test_what_we_write_transformers_reads(tmp_path):
    ours = from_metadata(tiny.byte_pairs("smollm"), "x")
    for name, text in ours.files().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    their = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    check_same(ours, their, tiny.TEXT + "  12")
    assert {their.eos_token_id} == ours.eos
    assert their.apply_chat_template(tiny.MESSAGES, tokenize=False) == ours.chat_text(tiny.MESSAGES, False)


def test_the_tokenizer_of_gpt2():
    data = os.environ.get("MINILORA_DATA")
    if not data:
        pytest.skip("MINILORA_DATA names no folder of files that others made")
    place = Path(data) / "tokenizers" / "gpt2"
    ours, their = from_folder(place), transformers.GPT2TokenizerFast(tokenizer_file=str(place / "tokenizer.json"))

    @settings(max_examples=200)
    @given(TEXTS)
    def same(text):
        check_same(ours, their, text)

    same()
    assert ours.encode("Hello world").tolist() == [15496, 995]  # as in the paper's own encoder


@pytest.mark.model
def test_the_tokenizer_of_smollm2(smollm2):
    import gguf

    metadata = {key: field.contents() for key, field in gguf.GGUFReader(str(smollm2)).fields.items()}
    ours = from_metadata(metadata, smollm2.name)
    their = transformers.AutoTokenizer.from_pretrained(str(smollm2.parent), gguf_file=smollm2.name)

    @settings(max_examples=300)
    @given(TEXTS)
    def same(text):
        check_same(ours, their, "".join(c for c in text if not c.isnumeric()))

    same()
    for text in ("1234 and 12.5", tiny.TEXT.replace("  ", " ")):
        check_same(ours, their, text)
    expected = their.apply_chat_template(tiny.MESSAGES, add_generation_prompt=True)["input_ids"]
    assert ours.chat(tiny.MESSAGES).tolist() == expected
