"""Pairs from a file: which tokens count, what is held out, what is cut and said, and what is refused by its line."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from letters import Letters

import minilora as ml
from minilora.nn.characters import CHARACTERS
from minilora.training import checkpoint, loop
from minilora.training.checkpoint import load_checkpoint
from minilora.training.optim import cosine_schedule
from minilora.training.pairs import load_pairs, pair_of

CONFIG = ml.GPTConfig(128, 24, 2, 2, 16)
QUESTION = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4"}


def counted(row, tokenizer=None):
    """What a pair teaches to write, as text, and all of what the model sees and writes."""
    tokenizer = tokenizer or Letters()
    tokens, targets = pair_of(row, tokenizer)
    assert tokens.shape == targets.shape
    np.testing.assert_array_equal(targets[targets != -100][:-1], tokens[1:][targets[:-1] != -100])  # one ahead
    return tokenizer.decode(targets[targets != -100]), tokenizer.decode([*tokens, targets[-1]])


def write(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def sums(n=30):
    return [{"prompt": f"{a}+{a + 1}=", "completion": str(2 * a + 1)} for a in range(n)]


# Which tokens count


@pytest.mark.parametrize("begin", [False, True])
def test_of_a_text_the_completion_counts_and_its_end(begin):
    row = {"prompt": "2 + 2 = ", "completion": "4"}
    assert counted(row, Letters(begin)) == ("4<end>", "2 + 2 = 4<end>")


def test_a_prompt_may_be_empty():
    assert counted({"prompt": "", "completion": "abc"}) == ("bc<end>", "abc<end>")  # nothing stands before the a
    assert counted({"prompt": "", "completion": "abc"}, Letters(begin=True)) == ("abc<end>", "abc<end>")


def test_a_token_of_the_prompts_end_and_the_answers_beginning_counts():
    """The tokens are those of the whole text, as the model will see it."""
    assert counted({"prompt": "a\n", "completion": "\nb"}) == ("\n\nb<end>", "a\n\nb<end>")


def test_of_a_chat_every_answer_counts_with_its_end_and_not_the_line_after_it():
    messages = [{"role": "system", "content": "Be brief."}, QUESTION, ANSWER, {"role": "user", "content": "3+3?"},
                {"role": "assistant", "content": "\n6"}]  # fmt: skip
    what, whole = counted({"messages": messages})
    assert what == "4<end>\n\n6<end>"  # the template's line end and the answer's are one token
    assert whole == Letters().chat_text(messages, False).rstrip("\n")


def test_of_a_chat_in_two_fields_only_the_completion_counts():
    row = {"prompt": [QUESTION, ANSWER, QUESTION], "completion": [{"role": "assistant", "content": "Four."}]}
    assert counted(row)[0] == "Four.<end>"


def test_a_turn_without_a_token_that_ends_it_counts_whole():
    class Endless(Letters):
        eos = frozenset()
        special = {}  # noqa: RUF012

    assert counted({"messages": [QUESTION, ANSWER]}, Endless())[0] == "4<end>\n"
    assert counted({"prompt": "a", "completion": "b"}, Endless())[0] == "b"


letters = st.text(st.characters(codec="ascii", min_codepoint=10, exclude_characters="\r<>"), max_size=8)
answers = letters.filter(str.strip)


@given(prompt=letters, completion=answers, begin=st.booleans())
def test_any_text_comes_back_whole(prompt, completion, begin):
    what, whole = counted({"prompt": prompt + ":", "completion": completion}, Letters(begin))
    assert (what, whole) == (completion + "<end>", f"{prompt}:{completion}<end>")


# The file


def test_a_file_in_two_parts_without_overlap(tmp_path):
    path = write(tmp_path / "sums.jsonl", *sums(), {**sums(10)[9], "completion": "nineteen"}, "", "  ")
    pairs = load_pairs(path, Letters())
    prompts = [[Letters().decode(t).partition("=")[0] for t, _ in part] for part in (pairs.train, pairs.validation)]
    assert set(prompts[0]).isdisjoint(prompts[1]) and len(set(prompts[1])) == 3  # a tenth of the prompts
    assert sorted(map(len, prompts)) == [len(prompts[1]), 31 - len(prompts[1])] and "9+10" in prompts[0] + prompts[1]
    assert repr(pairs).startswith(f"Examples({str(path)!r}, {len(prompts[0])} pairs, {len(prompts[1])} held out; ")
    other = load_pairs(write(tmp_path / "other.jsonl", *reversed(sums())), Letters())
    assert {t.tobytes() for t, _ in other.validation} == {t.tobytes() for t, _ in pairs.validation if len(t) < 9}
    assert pairs.digest == load_pairs(path, Letters()).digest != load_pairs(path, Letters(begin=True)).digest


@pytest.mark.parametrize("n, held", [(2, 1), (9, 1), (10, 1), (11, 1), (20, 2)])
def test_a_few_pairs_hold_one_out(tmp_path, n, held):
    assert len(load_pairs(write(tmp_path / "a.jsonl", *sums(n)), Letters()).validation) == held


def test_a_pair_that_is_too_long_is_cut_and_said(tmp_path, recwarn):
    rows = [*sums(20), {"prompt": "x" * 30, "completion": "y"}, {"prompt": "z", "completion": "w" * 30}]
    path = write(tmp_path / "a.jsonl", *rows)
    assert not len(load_pairs(path, Letters(), 32).train) < 20 and not recwarn
    with pytest.warns(
        UserWarning, match=r"a\.jsonl: 2 of 22 pairs are longer than 12 tokens and lost their end; 1 had"
    ):
        pairs = load_pairs(path, Letters(), longest=12)
    assert len(pairs.train) + len(pairs.validation) == 21
    long = next(row for row in pairs.train if len(row[0]) == 12)
    assert Letters().decode(long[0]) == "z" + "w" * 11 and (long[1] == ord("w")).all()
    with pytest.raises(ValueError, match=r"all\.jsonl: 1 of 1 pairs are longer than 12 tokens .*: none is left$"):
        load_pairs(write(tmp_path / "all.jsonl", rows[20]), Letters(), longest=12)


def test_for_a_model_of_96_characters_texts_are_read_as_a_corpus_is(tmp_path):
    rows = [{"prompt": "\u2018a\u2019\t", "completion": "\u2014 é"}, {"prompt": "b", "completion": "c", "id": "ü"}]
    with pytest.warns(UserWarning, match=r"a\.jsonl: 1 of 12 characters are outside the vocabulary and read '\?'$"):
        pairs = load_pairs(write(tmp_path / "a.jsonl", *rows), CHARACTERS)
    tokens, targets = max(pairs.train + pairs.validation, key=lambda row: len(row[0]))
    assert CHARACTERS.decode([*tokens, targets[-1]]) == "'a'    - ?"
    assert CHARACTERS.decode(targets[targets != -100]) == "- ?"  # no token ends a text
    with pytest.raises(ValueError, match=r"line 1: chat: a model of characters has no chat template"):
        load_pairs(write(tmp_path / "chat.jsonl", {"messages": [QUESTION, ANSWER]}), CHARACTERS)


WRONG = {  # a line -> what is said of it
    "{": r", line 2 is no JSON: ",
    "[1]": r", line 2: got \[1\], expected an object",
    '"text"': r", line 2: got 'text', expected an object",
    "{}": r", line 2: no 'completion' and no 'prompt'; it has none, expected prompt and completion, or messages",
    '{"prompt": "a"}': r", line 2: no 'completion'; it has 'prompt', expected",
    '{"instruction": "a", "output": "b"}': r", line 2: no 'completion' and no 'prompt'; it has 'instruction', 'output'",
    '{"prompt": "a", "completion": ""}': r", line 2: the completion is '', an empty answer",
    '{"prompt": "a", "completion": " \\n"}': r", line 2: the completion is ' \\n', an empty answer",
    '{"prompt": "a", "completion": 4}': r", line 2: completion is 4, expected a text",
    '{"prompt": null, "completion": "a"}': r", line 2: prompt is None, expected a text",
    '{"prompt": [], "completion": "a"}': r", line 2: prompt is \[\], expected a text, or messages in both",
    '{"messages": "a"}': r", line 2: messages is 'a', expected",
    '{"messages": []}': r", line 2: messages is \[\], expected",
    '{"messages": [3]}': r", line 2: message 1 is 3, expected",
    '{"messages": [{"role": "user"}]}': r", line 2: message 1 is \{'role': 'user'\}, expected",
    '{"messages": [{"role": "user", "content": ["a"]}]}': r", line 2: message 1 is .*, expected",
    '{"messages": [{"role": "human", "content": "a"}]}': r", line 2: message 1 has the role 'human'; there are system,",
    '{"messages": [{"content": "a"}]}': r", line 2: message 1 has the role None; there are",
    '{"messages": [{"role": "user", "content": "a"}]}': r", line 2: no message is an answer",
    '{"messages": [{"role": "assistant", "content": "a"}]}': r", line 2: no message is an answer: .*after another's$",
    '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]}': r"message 2 is ' '",
    '{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "user", "content": "a"}]}': r"no message",
}


@pytest.mark.parametrize("line, message", WRONG.items(), ids=range(len(WRONG)))
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "a.jsonl", sums(1)[0], line, sums(2)[1])
    with pytest.raises(ValueError, match=message) as error:
        load_pairs(path, Letters())
    assert str(error.value).startswith(f"load_pairs: {path}, line 2") and "\n" not in str(error.value)


def test_wrong_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*none\.jsonl', expected one of JSON lines"):
        load_pairs(tmp_path / "none.jsonl", Letters())
    with pytest.raises(ValueError, match=r"empty\.jsonl holds no pairs$"):
        load_pairs(write(tmp_path / "empty.jsonl", "", ""), Letters())
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.jsonl is no UTF-8 text: .* at byte 12$"):
        load_pairs(tmp_path / "latin.jsonl", Letters())
    with pytest.raises(ValueError, match=r"Run: 'some\.jsonl' holds pairs: ml\.load_pairs\(path, model\.tokenizer\)"):
        ml.Run(ml.GPT(CONFIG), "some.jsonl")
    with pytest.raises(ValueError, match="load_pairs: longest = 0, expected 1 or more"):
        load_pairs(write(tmp_path / "a.jsonl", *sums()), Letters(), 0)
    path = write(tmp_path / "chat.jsonl", {"messages": [QUESTION, {**ANSWER, "content": "four"}, QUESTION, ANSWER]})
    with pytest.raises(
        ValueError, match=r"chat\.jsonl, line 1: message 2: the model's template writes this turn in an"
    ):
        load_pairs(path, Letters(keeps=False))
    path = write(tmp_path / "one.jsonl", sums(1)[0])
    with pytest.raises(
        ValueError, match=r"one\.jsonl: 1 pairs to train on and 0 held out, expected at least one of each"
    ):
        load_pairs(path, Letters()).require(99)


# Training on them


@pytest.fixture
def model():
    return ml.GPT(CONFIG)


def test_a_batch_is_padded_and_holds_none_twice(tmp_path):
    rows = [*sums(29), {"prompt": "how much is one and one? ", "completion": "two"}]
    pairs = load_pairs(write(tmp_path / "a.jsonl", *rows), Letters())
    tokens, targets, mask = pairs.batch(20, 99, np.random.default_rng(0))
    assert tokens.shape == targets.shape == mask.shape == (20, mask.sum(axis=1).max())
    assert len({row.tobytes() for row in tokens}) == 20
    assert (targets[~mask] == -100).all() and ((targets != -100).sum(axis=1) >= 2).all()
    assert len(pairs.batch(40, 99, np.random.default_rng(0))[0]) == 40  # more than there are
    again = pairs.batch(20, 99, np.random.default_rng(0))
    assert all((a == b).all() for a, b in zip(again, (tokens, targets, mask), strict=True))


def test_the_loss_is_over_the_answers_alone_whatever_the_padding(model, tmp_path):
    """Of each pair by itself, weighted by its answer's tokens; by hand from the logits."""
    pairs = load_pairs(write(tmp_path / "a.jsonl", *sums(40), *[{"prompt": str(n), "completion": "x" * n} for n in
                                                               range(1, 20)]), Letters())  # fmt: skip
    total, n = 0.0, 0
    for tokens, targets in pairs.validation:
        log_p = ml.ops.log_softmax(model(tokens[None])).numpy()[0]
        for t in np.flatnonzero(targets != -100):
            total, n = total - log_p[t, targets[t]], n + 1
    assert ml.evaluate(model, pairs) == pytest.approx(total / n, rel=1e-6)


@pytest.mark.slow
def test_a_run_learns_pairs_and_goes_on_bit_for_bit(tmp_path, monkeypatch):
    """A model that has its tokenizer finds its pairs again; where it has none, they are asked for."""
    path = write(tmp_path / "a.jsonl", *sums(40))

    class GPT(ml.GPT):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.tokenizer = Letters()

    def run():
        settings = ml.Settings(steps=30, batch_size=4, lr=1e-2, evaluate_every=15, checkpoint_every=1, warmup=0)
        return ml.Run(GPT(CONFIG), load_pairs(path, Letters(), 20), settings)

    whole = ml.train(run(), progress=False)
    assert whole.validation["loss"][-1] < 0.8 * whole.validation["loss"][0]
    half = run()
    half.settings.steps = 10
    monkeypatch.setattr(loop, "cosine_schedule", lambda step, steps, *more: cosine_schedule(step, 30, *more))
    ml.train(half, tmp_path / "run.npz", progress=False)
    with pytest.raises(ValueError, match=r"the run's examples cannot be read again here: give them, load_checkpoint\("):
        load_checkpoint(tmp_path / "run.npz")
    monkeypatch.setattr(checkpoint, "GPT", GPT)
    resumed = load_checkpoint(tmp_path / "run.npz")
    assert resumed.step == 10 and resumed.corpus.digest == whole.corpus.digest
    resumed.settings.steps = 30
    assert ml.train(resumed, progress=False).history == whole.history
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        np.testing.assert_array_equal(a.data, b.data)
    write(path, *sums(39))
    with pytest.raises(ValueError, match=r"trained on another text than .* is now: the file has changed"):
        load_checkpoint(tmp_path / "run.npz")


def test_pairs_longer_than_the_context_are_refused(model, tmp_path):
    pairs = load_pairs(write(tmp_path / "a.jsonl", *sums(), {"prompt": "x" * 30, "completion": "y"}), Letters())
    with pytest.raises(
        ValueError, match=r"1 pairs are longer than the model's context of 24 tokens, the longest has 31; "
    ):
        ml.evaluate(model, pairs)
    with pytest.raises(ValueError, match=r"longest=24 where they are loaded cuts them"):
        ml.train(ml.Run(model, pairs, ml.Settings(steps=1)), progress=False)
