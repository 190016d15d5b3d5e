"""Questions asked and marked: whose answer is whose, and where it ends."""

import numpy as np
import pytest

import minilora as ml
from minilora.nn.architectures import MODELS
from minilora.nn.characters import CHARACTERS
from minilora.training.sql import sql_questions
from minilora.training.tasks import TASKS, answers, asked, batches, in_words, load_task, padded_on_the_left


class Knowing:
    """A model that writes the known answers, and then more."""

    tokenizer, context, eos = CHARACTERS, 10**6, "~"

    def __init__(self, questions, then):
        self.known = {q.prompt: q.completion for q in questions}
        self.then, self.calls = then, 0

    def generate(self, tokens, count, temperature, stop, mask):
        self.calls += 1
        assert temperature == 0 and stop == {CHARACTERS.encode("\n")[0]}
        prompts = [CHARACTERS.decode(row[counts]).removesuffix("\n") for row, counts in zip(tokens, mask, strict=True)]
        texts = [CHARACTERS.encode(self.known[prompt] + self.then) for prompt in prompts]
        new = np.zeros((len(texts), max(map(len, texts))), int)  # 0 is a new line
        for row, text in zip(new, texts, strict=True):
            row[: len(text)] = text
        return np.concatenate([tokens, new], axis=1)


@pytest.mark.parametrize("then, right", [("\n", 40), ("\nand more", 40), ("~", 0), (" WHERE", 0)])
def test_each_question_gets_its_own_answer_up_to_the_end_of_the_line(then, right):
    questions, told = sql_questions(40, held_out=True), []
    model = Knowing(questions, then)
    said = answers(model, questions, told.append)
    assert sum(q.mark(answer) for q, answer in zip(questions, said, strict=True)) == right
    assert sum(told) == 40 and model.calls == len(told) == 3


def test_batches_are_of_like_lengths_or_of_one():
    prompts = [np.ones(n, int) for n in [3, 1, 2] * 20]
    mixed, alike = list(batches(prompts, False)), list(batches(prompts, True))
    for found in (mixed, alike):
        assert sorted(i for batch in found for i in batch) == list(range(60)) and max(map(len, found)) == 16
    assert len(mixed) == 4 and all(len({len(prompts[i]) for i in batch}) == 1 for batch in alike)
    tokens, mask = padded_on_the_left([np.array([1, 2]), np.array([3, 4, 5])])
    assert tokens.tolist() == [[0, 1, 2], [3, 4, 5]] and mask.tolist() == [[False, True, True], [True] * 3]


@pytest.mark.parametrize("make", [lambda: ml.GPT(ml.GPTConfig(96, 300, 1, 2, 8)), lambda: small("smollm2-135m")])
def test_a_model_that_knows_nothing_answers_every_question_and_none_rightly(make):
    questions = sql_questions(3, held_out=True)
    model = make()
    said = answers(model, questions)
    assert len(said) == 3 and not any(q.mark(answer) for q, answer in zip(questions, said, strict=True))
    alone = [answers(model, [question])[0] for question in questions]
    assert said == alone


def small(name):
    from dataclasses import replace

    sizes = dict(vocab_size=96, layers=1, heads=2, kv_heads=1, width=8, mlp_width=9, context=300, head_dim=4)
    return ml.Transformer(replace(MODELS[name], **sizes))


def test_a_model_without_a_tokenizer_is_refused_in_one_line():
    model = ml.GPT(ml.GPTConfig(13, 300, 1, 2, 8))
    with pytest.raises(ValueError, match=r"^answers: the model has no tokenizer to read questions with$"):
        answers(model, sql_questions(1))


class Chatting:
    """A tokenizer with a template; its tokens are characters."""

    template, eos, vocab_size = "there is one", {95}, 96

    def encode(self, text, special=False, frame=True):
        return CHARACTERS.encode(text)

    def chat_text(self, messages, add_generation_prompt=True):
        text = "".join(f"{m['role']}: {m['content']}~" for m in messages)
        return text + "assistant: " * add_generation_prompt

    def chat(self, messages, add_generation_prompt=True):
        return self.encode(self.chat_text(messages, add_generation_prompt))


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("tokenizer", [CHARACTERS, Chatting()], ids=["text", "chat"])
def test_pairs_to_train_on_count_the_answer_alone(name, tokenizer):
    corpus = load_task(name, tokenizer, pairs=12, seed=3)
    assert (len(corpus.train), len(corpus.validation)) == (12, 64)
    for part, questions in ((corpus.train, TASKS[name](12, 3)), (corpus.validation, TASKS[name](64, 3, held_out=True))):
        for (tokens, targets), question in zip(part, questions, strict=True):
            counted = CHARACTERS.decode(targets[targets != -100])
            assert counted.rstrip("\n~") == question.completion and counted != question.completion  # it has an end
            prompt = asked(question, tokenizer)
            np.testing.assert_array_equal(tokens[: len(prompt)], prompt)
            assert (targets[: len(prompt) - 1] == -100).all()
    assert load_task(corpus.name, tokenizer, 12, 3).digest == corpus.digest != load_task(name, tokenizer, 12).digest
    assert in_words(TASKS[name](1)[0], tokenizer).keys() == {"prompt", "completion"}


def test_what_is_no_task_or_no_number_of_pairs_is_refused():
    with pytest.raises(ValueError, match=r"^there is no task 'sq'; there are sql, repair$"):
        load_task("sq", CHARACTERS)
    for pairs in (0, 1.5, "2", True):
        with pytest.raises((ValueError, TypeError), match=r"^load_task: pairs = "):
            load_task("sql", CHARACTERS, pairs)
