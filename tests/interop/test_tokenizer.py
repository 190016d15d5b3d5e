"""A folder's own tokenizer: text to numbers and back, chats, and one line for every file that does not fit."""

import json

import numpy as np
import pytest
import tiny_tokenizers as tiny

from minilora.interop import tokenizer
from minilora.interop.chat import render

TEMPLATE = {
    "bos_token": "<|im_start|>",
    "eos_token": {"content": "<|im_end|>", "lstrip": False},
    "chat_template": tiny.CHAT,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_folder(tmp_path_factory.mktemp("folder"), TEMPLATE)


@pytest.fixture(scope="module")
def tok(folder):
    return tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    "text", [tiny.TEXT, "", " ", "\x00\r\n\u2028", "日本語 🙂🏽 e\u0301", "<|im_end|> is three words"]
)
def test_text_comes_back(tok, text):
    tokens = tok.encode(text)
    assert tokens.dtype == np.int64 and tokens.ndim == 1
    assert tok.decode(tokens) == text


def test_special_tokens_are_text_unless_asked_for(tok):
    text = "a<|im_end|>b"
    assert 2 not in tok.encode(text) and tok.encode(text, special=True).tolist()[1] == 2
    assert 2 not in tok.encode(text)  # asking once changes nothing for later
    marked = tok.encode(text, special=True)
    assert tok.decode(marked) == text and tok.decode(marked, skip_special=True) == "ab"
    assert tok.eos == {2} and tok.vocab_size == len(tiny.trained()[0])


def test_what_is_no_text_and_no_token(tok):
    with pytest.raises(TypeError, match=r"^encode: got b'a', expected a text$"):
        tok.encode(b"a")
    with pytest.raises(ValueError, match=r"^encode: character 1 is '\\ud800', half a character$"):
        tok.encode("a\ud800")
    with pytest.raises(ValueError, match=r"^decode: -1 is no token; there are \d+, from 0$"):
        tok.decode([3, -1])
    with pytest.raises(ValueError, match=rf"^decode: {tok.vocab_size} is no token"):
        tok.decode(tok.vocab_size)
    with pytest.raises(TypeError, match=r"^decode: got 'text', expected integers"):
        tok.decode("text")
    with pytest.raises(TypeError, match=r"^decode: got \[1.5\], expected integers"):
        tok.decode([1.5])
    assert tok.decode([]) == ""


def test_a_file_that_cuts_and_pads_does_neither(folder, tmp_path):
    made = json.loads((folder / "tokenizer.json").read_text())
    made["truncation"] = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    made["padding"] = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                       "pad_type_id": 0, "pad_token": "<|endoftext|>"}  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(made))
    assert tokenizer.from_folder(tmp_path).decode(tokenizer.from_folder(tmp_path).encode(tiny.TEXT)) == tiny.TEXT


def test_a_text_begins_and_ends_as_its_file_says(folder, tmp_path):
    made = json.loads((folder / "tokenizer.json").read_text())
    piece, word = (lambda name: {"SpecialToken": {"id": name, "type_id": 0}}), {"Sequence": {"id": "A", "type_id": 0}}
    made["post_processor"] = {
        "type": "TemplateProcessing", "single": [piece("<|im_start|>"), word, piece("<|im_end|>")], "pair": [],
        "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]} for i, t in enumerate(tiny.SPECIAL)},
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(made))
    tok = tokenizer.from_folder(tmp_path)
    assert tok.encode("a b").tolist() == [1, *tok.encode("a b", frame=False), 2]


def test_every_end_of_a_text_is_known(tmp_path):
    place = tiny.write_folder(tmp_path, TEMPLATE, generation_config__json='{"eos_token_id": [0, 2]}')
    assert tokenizer.from_folder(place).eos == {0, 2}
    (place / "generation_config.json").write_text('{"eos_token_id": 0}')
    assert tokenizer.from_folder(place).eos == {0, 2}
    assert tokenizer.from_folder(tiny.write_folder(tmp_path / "none", {})).eos == set()


def test_tokens_that_the_configuration_adds(tmp_path):
    n = len(tiny.trained()[0])
    added = {str(n): {"content": "<extra>", "special": True, "normalized": False}, "2": {"content": "<|im_end|>"}}
    tok = tokenizer.from_folder(tiny.write_folder(tmp_path, {"added_tokens_decoder": added}))
    assert tok.vocab_size == n + 1 and tok.encode("<extra>", special=True).tolist() == [n]
    tiny.write_folder(tmp_path, {"added_tokens_decoder": {"7": {"content": "<|im_end|>"}}})
    with pytest.raises(
        ValueError, match=r"tokenizer.json: '<\|im_end\|>' is token 2, in tokenizer_config.json it is 7$"
    ):
        tokenizer.from_folder(tmp_path)


def test_a_chat_is_written_as_the_template_says(tok):
    said = tok.chat_text(tiny.MESSAGES)
    assert said.startswith("<|im_start|>user\nHello <b>&amp;<|im_end|>\n<|im_start|>assistant\nYes?")
    assert said.endswith("<|im_start|>assistant\n") and not tok.chat_text(tiny.MESSAGES, False).endswith("assistant\n")
    assert tok.chat(tiny.MESSAGES)[0] == 1 and tok.decode(tok.chat(tiny.MESSAGES)) == said


def test_a_template_beside_the_configuration_counts(tmp_path):
    several = [{"name": "tools", "template": "tools"}, {"name": "default", "template": "default {{ eos_token }}"}]
    tiny.write_folder(tmp_path, {**TEMPLATE, "chat_template": several})
    assert tokenizer.from_folder(tmp_path).chat_text(tiny.MESSAGES) == "default <|im_end|>"
    (tmp_path / "chat_template.jinja").write_text("of its own file")
    assert tokenizer.from_folder(tmp_path).chat_text(tiny.MESSAGES) == "of its own file"


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{ raise_exception('roles must alternate') }}", "no such messages: roles must alternate"),
        ("{% if %}", "chat: line 1 of the model's template: Expected an expression"),
        ("{{ messages[0].content.x.y }}", "no such messages: 'str object' has no attribute 'x'"),
        ("{{ messages[0]['content'] + 1 }}", "no such messages: "),
        ("{{ ''.__class__.__mro__ }}", "no such messages: access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ messages.append(1) }}", "no such messages: "),  # what it is given is not its to change
    ],
)
def test_a_template_that_does_not_work_is_one_line(template, error):
    with pytest.raises(ValueError) as raised:
        render(template, tiny.MESSAGES, True, {})
    assert error in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("messages", ["Hello", [], {"role": "user"}, [{"content": "no role"}], ["Hello"], None])
def test_what_are_no_messages(tok, messages):
    with pytest.raises(TypeError, match=r'^chat: got .*expected .*"role": "user"'):
        tok.chat(messages)


def test_a_tokenizer_without_a_template_takes_no_chat(tmp_path):
    with pytest.raises(ValueError, match=r"^chat: this tokenizer has no chat template: "):
        tokenizer.from_folder(tiny.write_folder(tmp_path, {})).chat(tiny.MESSAGES)


def test_a_tokenizer_and_a_model_of_other_vocabularies(tok):
    n = tok.vocab_size
    assert tok.fit(n, "here").rows == n
    assert tok.fit(n + 92, "here").decode([n + 91]) == ""  # a row that is there to make the table a round number
    for rows in (n - 1, n + 200, 96):
        with pytest.raises(ValueError, match=f"^here: its tokenizer has {n} tokens, the model's vocabulary {rows}$"):
            tok.fit(rows, "here")


def test_a_model_may_lack_the_row_of_an_added_token(folder, tmp_path):
    n = len(tiny.trained()[0])
    added = {"added_tokens_decoder": {str(n): {"content": "<image>", "special": True}}}
    tok = tokenizer.from_folder(tiny.write_folder(tmp_path, added)).fit(n, "here")
    assert tok.decode([n]) == "<image>"


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("tokenizer.json", None, "has no tokenizer.json$"),
        ("tokenizer.json", "{", "tokenizer.json is no tokenizer: "),
        ("tokenizer.json", "{}", "tokenizer.json is no tokenizer: "),
        ("tokenizer_config.json", "[]", r"tokenizer_config.json holds \[\], expected an object of JSON$"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is no JSON: "),
        ("generation_config.json", "\xff\xfe", "generation_config.json is no JSON: "),
    ],
)
def test_a_folder_that_does_not_fit_is_one_line(tmp_path, name, text, error):
    tiny.write_folder(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    if text is not None:
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises((ValueError, FileNotFoundError), match=error) as raised:
        tokenizer.from_folder(tmp_path)
    assert "\n" not in str(raised.value)


def test_an_older_kind_of_file_says_what_to_do(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer.json, but tokenizer.model; transformers'"):
        tokenizer.from_folder(tmp_path)


def test_what_is_written_reads_the_same(tok, tmp_path):
    for name, text in tok.files().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    again = tokenizer.from_folder(tmp_path)
    assert again.encode(tiny.TEXT).tolist() == tok.encode(tiny.TEXT).tolist()
    assert (again.eos, again.special, again.template) == (tok.eos, tok.special, tok.template)
    assert again.chat(tiny.MESSAGES).tolist() == tok.chat(tiny.MESSAGES).tolist()
