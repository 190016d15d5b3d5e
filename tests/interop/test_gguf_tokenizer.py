"""The tokenizer in a GGUF file's metadata: rules by name, two kinds of byte pairs, one line for what does not fit."""

import pytest
import tiny_tokenizers as tiny

from minilora.interop.gguf_tokenizer import RULES, from_metadata

KEYS, N = "tokenizer.ggml.", len(tiny.trained()[0])


@pytest.mark.parametrize("pre", RULES)
def test_every_rule_gives_the_text_back(pre):
    tok = from_metadata(tiny.byte_pairs(pre), "x.gguf")
    assert tok.decode(tok.encode(tiny.TEXT, frame=False)) == tiny.TEXT
    assert tok.eos == {2} and tok.vocab_size == len(tiny.trained()[0])


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "a  12", ["a", "Ġ", "Ġ12"]),
        ("smollm", "a  12", ["a", "ĠĠ", "1", "2"]),  # digits are cut off first, so two spaces are one piece
        ("llama-bpe", "a 12", ["a", "Ġ", "12"]),
        ("qwen2", "a 12", ["a", "Ġ", "1", "2"]),
    ],
)
def test_where_a_rule_cuts(pre, text, pieces):
    tok = from_metadata(tiny.byte_pairs(pre), "x.gguf")
    assert [tok.backend.id_to_token(t) for t in tok.encode(text, frame=False)] == pieces


def test_a_piece_that_is_a_token_is_that_token_where_the_rule_says_so():
    data = tiny.byte_pairs("llama-bpe")
    data[f"{KEYS}tokens"], data[f"{KEYS}token_type"] = (
        [*data[f"{KEYS}tokens"], "nobody"],
        [*data[f"{KEYS}token_type"], 1],
    )
    assert from_metadata(data, "x.gguf").encode("nobody", frame=False).tolist() == [N]
    data[f"{KEYS}pre"] = "gpt-2"
    assert len(from_metadata(data, "x.gguf").encode("nobody", frame=False)) > 1


def test_a_composed_character_is_what_qwen_reads():
    qwen, gpt = (from_metadata(tiny.byte_pairs(pre), "x.gguf") for pre in ("qwen2", "gpt-2"))
    assert qwen.encode("e\u0301").tolist() == qwen.encode("é").tolist() == gpt.encode("é").tolist()
    assert gpt.decode(gpt.encode("e\u0301")) == "e\u0301"


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gemma3"])
def test_sentence_pieces_give_the_text_back(architecture):
    tok = from_metadata(tiny.sentence_piece(architecture), "x.gguf")
    text = tiny.TEXT + "\x00 日本\u200d"  # whose characters are bytes
    assert tok.decode(tok.encode(text), skip_special=True) == text
    assert tok.encode(text)[0] == 1  # a file of this kind that says nothing begins a text with <s>


def test_the_best_pair_is_merged_first():
    tok = from_metadata(tiny.sentence_piece(), "x.gguf")
    words = lambda text: [tok.backend.id_to_token(t) for t in tok.encode(text, frame=False)]
    assert words("The class of") == ["▁The", "▁class", "▁of"]
    assert words("é =") == ["▁", "é", "▁", "<0x3D>"]


@pytest.mark.parametrize("begins", [True, False])
def test_the_file_says_how_texts_begin(begins):
    tok = from_metadata(tiny.byte_pairs("llama-bpe", **{f"{KEYS}add_bos_token": begins}), "x.gguf")
    assert (tok.encode("a")[0] == 1) == begins
    assert from_metadata(tiny.byte_pairs("llama-bpe"), "x.gguf").encode("a")[0] == 1
    assert from_metadata(tiny.byte_pairs("smollm"), "x.gguf").encode("a")[0] != 1


def test_a_token_of_users_is_one_token_and_not_special():
    data = tiny.byte_pairs("smollm")
    data[f"{KEYS}tokens"] = [*data[f"{KEYS}tokens"], "<think>"]
    data[f"{KEYS}token_type"] = [*data[f"{KEYS}token_type"], 4]
    tok = from_metadata(data, "x.gguf")
    assert tok.encode("<think>").tolist() == [tok.vocab_size - 1]
    assert tok.decode(tok.encode("<think>"), skip_special=True) == "<think>"


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("model", "bert", "x.gguf: unknown kind of tokenizer 'bert'; there are gpt2, llama"),
        ("model", None, "x.gguf: unknown kind of tokenizer 'None'"),
        ("pre", "smolm", "x.gguf: unknown pre-tokenizer 'smolm' (did you mean 'smollm'?); there are gpt-2, "),
        ("pre", None, "x.gguf: it does not say how text is cut (tokenizer.ggml.pre)"),
        ("tokens", [], "x.gguf: it has no tokenizer.ggml.tokens"),
        ("tokens", ["a", "b", "a"], "x.gguf: two of its tokens are 'a'"),
        ("token_type", [1], f"x.gguf: it has {N} tokens and the kinds of 1"),
        ("merges", ["zz q"], "x.gguf: "),
        ("merges", ["zz"], "x.gguf: "),
        ("merges", ["a b c"], "x.gguf: "),
        ("eos_token_id", N, f"x.gguf: tokenizer.ggml.eos_token_id is {N}, and there are {N} tokens"),
    ],
)
def test_what_does_not_fit_is_one_line(key, value, error):
    data = tiny.byte_pairs("smollm")
    data[f"{KEYS}{key}"] = value
    with pytest.raises(ValueError) as raised:
        from_metadata(data, "x.gguf")
    assert str(raised.value).startswith(error) and "\n" not in str(raised.value)


def test_scores_must_be_there():
    data = tiny.sentence_piece()
    del data[f"{KEYS}scores"]
    with pytest.raises(ValueError, match=r"^x.gguf: it has \d+ tokens and 0 scores \(tokenizer.ggml.scores\)$"):
        from_metadata(data, "x.gguf")
