"""Tasks whose answers are executed: questions to train on, questions held out, and how many a model answers rightly.

A question has a prompt, its known answer in one line, and `mark(answer)`, which runs an answer and says whether it is
right, whatever its words.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from ..nn.gpt import GPT
from .checks import integer
from .examples import Examples
from .pairs import pair_of
from .repair import repair_questions
from .sql import sql_questions

TASKS: dict[str, Callable[..., list]] = {"sql": sql_questions, "repair": repair_questions}
PAIRS, HELD_OUT = 2000, 64  # to train on, and for the validation loss
BATCH, LONGEST = 16, 64  # prompts at a time, and tokens of an answer


class Question(Protocol):
    """What a task is made of."""

    prompt: str
    completion: str

    def mark(self, answer: str) -> bool:
        """Whether an answer is right."""
        ...


def load_task(name: str, tokenizer: Any, pairs: int = PAIRS, seed: int = 0) -> Examples:
    """A task's questions and answers, in a tokenizer's tokens, for `ml.Run`; those to validate on are held out."""
    make = task_named(name)
    parts = make(integer("load_task: pairs", pairs, 1), seed), make(HELD_OUT, seed, held_out=True)
    train, validation = ([pair_of(in_words(question, tokenizer), tokenizer) for question in part] for part in parts)
    return Examples(name, train, validation, what="pairs", how={"kind": "task", "pairs": pairs, "seed": seed})


def task_named(name: str) -> Callable[..., list]:
    """What makes a task's questions. Raises ValueError for a name that is none."""
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}; there are {', '.join(TASKS)}")
    return TASKS[name]


def in_words(question: Question, tokenizer: Any) -> dict[str, Any]:
    """A question as a line of a file of pairs: a chat where the model has a template, else a text."""
    if getattr(tokenizer, "template", None) is None:
        return {"prompt": question.prompt + "\n", "completion": question.completion + "\n"}
    user, assistant = ({"role": role, "content": text} for role, text in
                       (("user", question.prompt), ("assistant", question.completion)))  # fmt: skip
    return {"prompt": [user], "completion": [assistant]}


def asked(question: Question, tokenizer: Any) -> np.ndarray:
    """The tokens of a question, up to where its answer begins.   (T,)"""
    prompt = in_words(question, tokenizer)["prompt"]
    return tokenizer.encode(prompt) if isinstance(prompt, str) else tokenizer.chat(prompt)


def answers(model: Any, questions: Sequence[Question], progress: Callable[[int], Any] = int) -> list[str]:
    """What a model says to each question: its likeliest line, up to 64 tokens. progress: told how many more are done.

    Raises ValueError for a model without a tokenizer.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError("answers: the model has no tokenizer to read questions with")
    stop = {*tokenizer.eos, int(tokenizer.encode("\n", frame=False)[-1])}
    prompts = [asked(question, tokenizer) for question in questions]
    said = [""] * len(prompts)
    for batch in batches(prompts, isinstance(model, GPT)):
        tokens, mask = padded_on_the_left([prompts[i] for i in batch])
        texts = model.generate(tokens, LONGEST, temperature=0, stop=stop, mask=mask)[:, tokens.shape[1] :]  # (B, n)
        for i, text in zip(batch, texts, strict=True):
            ends = np.flatnonzero(np.isin(text, [*stop]))
            said[i] = tokenizer.decode(text[: ends[0]] if len(ends) else text)
        progress(len(batch))
    return said


def batches(prompts: Sequence[np.ndarray], alike: bool) -> Iterator[list[int]]:
    """The prompts' numbers in batches, of like lengths, or of one length where a model reads no padding."""
    batch: list[int] = []
    for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        if batch and (len(batch) == BATCH or (alike and len(prompts[i]) > len(prompts[batch[0]]))):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def padded_on_the_left(prompts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts that end side by side, and the mask of their tokens: both (B, T)."""
    shape = len(prompts), max(map(len, prompts))
    tokens, mask = np.zeros(shape, int), np.zeros(shape, bool)
    for row, counts, prompt in zip(tokens, mask, prompts, strict=True):
        row[-len(prompt) :], counts[-len(prompt) :] = prompt, True
    return tokens, mask
