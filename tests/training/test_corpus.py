"""Text as numbers: nothing lost without a word about it, and nothing in both parts."""

import os
import re
import string
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora.nn.characters import VOCABULARY
from minilora.training import corpus as corpora
from minilora.training.corpus import PAGE, Corpus

BUILT_IN = ["python-docs", "unicode-names", pytest.param("python-code", marks=pytest.mark.slow)]
READABLE = "\n" + "".join(sorted(set(string.printable) - set("\t\n\r\x0b\x0c")))


def test_the_vocabulary_is_newline_and_printable_ascii():
    assert READABLE == VOCABULARY
    assert len(VOCABULARY) == 96


@given(st.text(alphabet=READABLE))
def test_decode_is_the_inverse_of_encode(text):
    tokens = ml.encode(text)
    assert tokens.shape == (len(text),)
    assert np.issubdtype(tokens.dtype, np.integer)
    assert ml.decode(tokens) == text


@given(st.text(alphabet=st.characters(exclude_categories=())))  # surrogates, too
def test_any_character_outside_becomes_a_question_mark(text):
    assert ml.decode(ml.encode(text)) == "".join(c if c in READABLE else "?" for c in text)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_corpora(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nobody can do anything about characters in the standard library
        corpus = ml.load_corpus(name)
    assert corpus.name == name
    for part in (corpus.train, corpus.validation):
        assert part.min() >= 0
        assert part.max() < 96
    assert len(corpus.train) > 200_000
    assert 0.08 < len(corpus.validation) / (len(corpus.train) + len(corpus.validation)) < 0.12
    again = ml.load_corpus(name)
    np.testing.assert_array_equal(corpus.train, again.train)
    np.testing.assert_array_equal(corpus.validation, again.validation)


def test_the_corpora_are_what_they_say():
    docs, names = (ml.decode(ml.load_corpus(name).train) for name in ("python-docs", "unicode-names"))
    assert "statement" in docs
    assert "LATIN SMALL LETTER A\n" in names
    assert "HANGUL SYLLABLE" not in names
    assert "CJK UNIFIED IDEOGRAPH" not in names


@pytest.mark.slow
def test_python_code_is_code():
    assert "\nclass " in ml.decode(ml.load_corpus("python-code").train)


@pytest.mark.skipif(os.name != "posix", reason="links are POSIX's")
def test_a_module_that_is_a_link_to_another_is_read_once(tmp_path, monkeypatch):
    (tmp_path / "b.py").write_text("b = 1")
    (tmp_path / "c.py").write_text("c = 2")
    (tmp_path / "a.py").symlink_to("c.py")
    monkeypatch.setattr(corpora.sysconfig, "get_path", lambda name: str(tmp_path))
    assert corpora.BUILT_IN["python-code"]() == "c = 2\nb = 1"


def shared(corpus: Corpus, width: int) -> float:
    """The share of validation windows of that width that occur, letter by letter, in the training text."""
    train, validation = ml.decode(corpus.train), ml.decode(corpus.validation)
    windows = [validation[i : i + width] for i in range(0, len(validation) - width, width)]
    return sum(window in train for window in windows) / len(windows)


@pytest.mark.parametrize("name, most", [("python-docs", 0.01), ("unicode-names", 0), ("python-code", 0.02)])
@pytest.mark.slow
def test_training_text_does_not_hold_the_validation_text(name, most):
    """Windows of 200 characters; modules repeat a comment or a licence, Python 3.12's topics a passage."""
    assert shared(ml.load_corpus(name), 200) <= most


def test_pages_are_held_out_whole_and_none_is_in_both(tmp_path):
    """Every page is a text of its own, so where it went can be read off."""
    pages = 23
    text = "".join((f"<{i}>" * PAGE)[: PAGE - 1] + "\n" for i in range(pages))
    path = tmp_path / "pages.txt"
    path.write_text(text)
    corpus = ml.load_corpus(path)
    held_out = [i for i in range(pages) if i % 10 == 9]
    page = lambda i: text[i * PAGE : (i + 1) * PAGE]
    assert ml.decode(corpus.validation) == "".join(page(i) for i in held_out)
    assert ml.decode(corpus.train) == "".join(page(i) for i in range(pages) if i not in held_out)


@pytest.mark.parametrize("length", [10, 11, 99, 1000, 40_959, 40_960, 40_961, 100_000])
def test_every_character_is_in_exactly_one_part(tmp_path, length):
    tokens = np.random.default_rng(length).integers(1, 96, length)
    path = tmp_path / "text.txt"
    path.write_text(ml.decode(tokens))
    corpus = ml.load_corpus(path)
    assert len(corpus.train) + len(corpus.validation) == length
    both = np.concatenate([corpus.train, corpus.validation])
    np.testing.assert_array_equal(np.sort(both), np.sort(tokens))
    if length > 1000:
        assert 0.05 < len(corpus.validation) / length < 0.15


def test_replaced_characters_are_counted_and_said_once(tmp_path):
    path = tmp_path / "french.txt"
    path.write_text("Élève à l'été, plain\ttext. " * 10, encoding="utf-8")
    with pytest.warns(UserWarning, match=r"50 of 300 .* read '\?': 17%, which") as said:
        corpus = ml.load_corpus(path)
    assert len(said) == 1
    assert corpus.replaced == 50
    assert ml.decode(np.concatenate([corpus.train, corpus.validation])).count("?") == 50


@pytest.mark.filterwarnings("error")
def test_what_an_editor_makes_of_ascii_is_ascii_again(tmp_path):
    path = tmp_path / "typographic.txt"
    path.write_text("“It’s”\u00a0a\u2009dash – or\u2014two …\tand «more» \u2212 soft\u00adly\n" * 20, encoding="utf-8")
    tokens = np.concatenate([(corpus := ml.load_corpus(path)).train, corpus.validation])
    assert corpus.replaced == 0
    assert sorted(ml.decode(tokens)) == sorted('"It\'s" a dash - or-two ...    and "more" - softly\n' * 20)


@pytest.mark.parametrize(
    ("text", "share"), [("Ἐν ἀρχῇ ἦν ὁ Λόγος, ", "[678][0-9]"), ("太初有道，道與神同在。\n", "9[0-9]")]
)
def test_a_text_in_another_alphabet_is_refused(text, share, tmp_path):
    path = tmp_path / "other.txt"
    path.write_text(text * 40, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"other.txt: {share}% of its characters .* iconv"):
        ml.load_corpus(path)


@pytest.mark.parametrize(("foreign", "said"), [(10, "read '\\?'$"), (11, ": 11%"), (50, ": 50%"), (51, None)])
def test_how_much_is_foreign_decides_what_is_said(foreign, said, tmp_path):
    """At a tenth the plain count, above it the share, above a half no."""
    path = tmp_path / "mixed.txt"
    path.write_text("é" * foreign + "e" * (100 - foreign), encoding="utf-8")
    with pytest.warns(UserWarning, match=said) if said else pytest.raises(ValueError):
        ml.load_corpus(path)


@pytest.mark.slow
def test_the_built_in_corpora_are_read_as_they_are():
    """Their tabs and quotes count as replaced, so that records made from them stay what they are."""
    text = corpora.BUILT_IN["python-code"]()
    assert (
        ml.load_corpus("python-code").replaced
        == corpora.count_foreign(text)
        > corpora.count_foreign(corpora.plain(text))
    )


def test_plain_text_warns_of_nothing(text_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ml.load_corpus(str(text_path)).replaced == 0


@pytest.mark.filterwarnings("error")
def test_what_other_systems_write_is_read_as_text(tmp_path):
    """Windows ends lines with two characters, and some editors put a byte-order mark in front."""
    path = tmp_path / "windows.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"one line\r\n" * 20)
    corpus = ml.load_corpus(path)
    assert ml.decode(np.concatenate([corpus.train, corpus.validation])) == "one line\n" * 20


# Errors


@pytest.mark.parametrize("typo, meant", [("unicode-name", "unicode-names"), ("python_docs", "python-docs")])
def test_a_typo_gets_a_suggestion(typo, meant):
    with pytest.raises(FileNotFoundError, match=f"no corpus and no file '{typo}'; did you mean '{meant}'?"):
        ml.load_corpus(typo)


def test_a_missing_file_lists_the_corpora(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"zzz\.txt'; there are python-docs, python-code, unicode-names"):
        ml.load_corpus(tmp_path / "zzz.txt")
    with pytest.raises(FileNotFoundError, match="no corpus and no file"):
        ml.load_corpus(tmp_path)  # a folder


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
def test_an_empty_file(tmp_path, content):
    path = tmp_path / "empty.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"empty\.txt' is empty"):
        ml.load_corpus(path)


def test_a_binary_file(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    with pytest.raises(ValueError, match=r"picture\.png is no UTF-8 text: .* at byte 0"):
        ml.load_corpus(path)


def test_a_text_too_short_for_one_context(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("x" * 200)
    corpus = ml.load_corpus(path)
    assert corpus.require(19) is corpus
    with pytest.raises(ValueError, match=r"short\.txt' is too short: it has 180 .* and 20 .* context of 20 needs 21"):
        corpus.require(20)


@pytest.mark.parametrize("tokens, error", [([96], ValueError), ([-1], ValueError), ([1.5], TypeError)])
def test_decode_refuses_what_is_no_token(tokens, error):
    with pytest.raises(error, match="decode"):
        ml.decode(np.array(tokens))


# Windows


def numbered(n: int, validation: int = 50) -> Corpus:
    """Every token is its own position, so that a window tells where it came from."""
    return Corpus("numbers", np.arange(n), np.arange(validation))


def test_targets_are_one_ahead_and_every_place_is_drawn():
    corpus = numbered(20)
    tokens, targets = corpus.batch(5000, 8, np.random.default_rng(0))
    assert tokens.shape == targets.shape == (5000, 8)
    np.testing.assert_array_equal(targets, tokens + 1)
    np.testing.assert_array_equal(np.diff(tokens, axis=1), 1)
    assert set(tokens[:, 0]) == set(range(12))  # the last window ends at the last character, as a target
    assert targets.max() == 19


def test_the_shortest_corpus_that_require_lets_through_has_one_window():
    corpus = numbered(9, validation=9).require(8)
    tokens, targets = corpus.batch(3, 8, np.random.default_rng(0))
    np.testing.assert_array_equal(tokens, np.tile(np.arange(8), (3, 1)))
    tokens, targets = corpus.validation_windows(8)
    np.testing.assert_array_equal(targets, [np.arange(1, 9)])


def test_batches_are_drawn_by_the_generator():
    corpus = numbered(1000)
    one, two, other = (corpus.batch(4, 8, np.random.default_rng(seed))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()


@pytest.mark.parametrize("length, block", [(50, 7), (50, 49), (57, 8), (64, 8), (65, 8)])
def test_validation_windows_lie_side_by_side(length, block):
    tokens, targets = numbered(100, length).validation_windows(block)
    n = (length - 1) // block
    np.testing.assert_array_equal(tokens, np.arange(n * block).reshape(n, block))
    np.testing.assert_array_equal(targets, tokens + 1)
    assert length - targets.max() <= block  # nothing left out but a rest shorter than a window


def test_fewer_validation_windows_are_spread_evenly():
    tokens, _ = numbered(100, 1001).validation_windows(10, most=5)
    np.testing.assert_array_equal(tokens[:, 0], [0, 250, 500, 740, 990])
    every, _ = numbered(100, 1001).validation_windows(10, most=1000)
    assert len(every) == 100


@pytest.mark.parametrize("odd", [None, 5, b"unicode-names", [], {}, 1.5, True, np.arange(3)], ids=repr)
def test_odd_names_of_corpora(odd):
    with pytest.raises(TypeError, match=r"load_corpus: got .*, expected .*unicode-names, or a file's path"):
        ml.load_corpus(odd)


@pytest.mark.parametrize(
    "part", [None, "text", [1, 2], np.arange(3.0), np.zeros((2, 2), int), ml.Tensor([1.0])], ids=repr
)
def test_odd_parts_of_a_corpus(part):
    good = np.arange(5)
    for train, validation, name in ((part, good, "train"), (good, part, "validation")):
        with pytest.raises(TypeError, match=rf"Corpus: {name} is .*, expected an array \(T,\) of integers"):
            Corpus("odd", train, validation)


def test_a_batch_longer_than_the_text_is_refused():
    with pytest.raises(ValueError, match=r"corpus 'numbers' is too short: it has 20 characters .* needs 21 of each"):
        numbered(20).batch(2, 20, np.random.default_rng(0))


def test_the_short_description():
    assert repr(numbered(2000)) == "Corpus('numbers', 2,000 tokens to train on, 50 to validate on)"


class Words:
    """A tokenizer of another kind: a token is a word, or what stands between two."""

    eos = frozenset()

    def __init__(self):
        self.known: list[str] = []

    def encode(self, text, special=False, frame=True):
        assert not frame  # a text is one stretch: nothing begins in its middle
        words = re.findall(r"\w+|\W+", text)
        self.known += [word for word in dict.fromkeys(words) if word not in self.known]
        return np.array([self.known.index(word) for word in words])


def test_a_text_becomes_the_tokens_of_a_models_own_tokenizer(tmp_path, recwarn):
    path, words = tmp_path / "text.txt", Words()
    path.write_text("“日本語” — a\ttab… " * 40, encoding="utf-8")
    corpus = ml.load_corpus(path, words)
    assert corpus.unit == "tokens" and not recwarn
    assert len(corpus.train) + len(corpus.validation) == len(words.encode(path.read_text("utf-8"), frame=False))
    assert "“" in words.known[0] and "\t" in words.known  # as it is, not as ASCII has it
    with pytest.raises(ValueError, match=r"it has \d+ tokens to train on and \d+ to validate on; a context of 900"):
        corpus.require(900)


def test_the_tokenizer_of_characters_changes_nothing(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a plain text of words\n" * 40)
    ours, theirs = ml.load_corpus(path), ml.load_corpus(path, ml.load_model("base").tokenizer)
    assert ours.digest == theirs.digest and ours.unit == theirs.unit == "characters"


def test_what_is_no_tokenizer(tmp_path):
    (tmp_path / "text.txt").write_text("text")
    with pytest.raises(TypeError, match=r"^load_corpus: tokenizer is 'gpt2', expected a model's: model.tokenizer$"):
        ml.load_corpus(tmp_path / "text.txt", "gpt2")
