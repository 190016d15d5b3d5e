"""`minilora evaluate`."""

import argparse
import sys
import warnings

from ..training.classify import Share
from .models import load_adapted, load_model, with_tokenizer
from .options import BACKEND, DTYPE, MODEL, QUANTIZE, TASKS, command, dtype_of, one_of, option, whole


@command(
    option("--task", "sql", "sql: questions in SQL, run in sqlite3; repair: functions with a bug, called in a process "
           "with limits", type=one_of(*TASKS), metavar="NAME"),
    MODEL,
    option("--adapter", None, "an adapter file from finetune, to put on the model", metavar="FILE"),
    QUANTIZE,
    DTYPE,
    option("--questions", 100, "held-out questions to ask", type=whole(1), metavar="N"),
    option("--examples", 3, "how many right and wrong answers to show", type=whole(0), metavar="N"),
    option("--seed", 0, "of the questions", type=whole(0), metavar="N"),
    BACKEND,
    example="minilora evaluate --task sql --model smollm2-135m --adapter runs/sql.npz",
)  # fmt: skip
def evaluate(args: argparse.Namespace) -> int:
    """Ask a model held-out questions of a task, and run what it answers.

    Each answer is the likeliest line. What is right is the share of questions, with its 95 % interval. The questions
    share no template and no value with those that finetune --task trains on.
    """
    from tqdm import tqdm

    from ..training.tasks import answers, asked, task_named

    kind, dtype, adapter = args.quantize, dtype_of(args), args.adapter
    model = load_adapted(args.model, kind, adapter, dtype) if adapter else load_model(args.model, kind, dtype)
    with_tokenizer(model, args.model)
    questions = task_named(args.task)(args.questions, args.seed, held_out=True)
    longest = max(len(asked(question, model.tokenizer)) for question in questions)
    if longest > model.context:
        warnings.warn(
            f"prompts have up to {longest} tokens, and the model sees the last {model.context} of them", stacklevel=1
        )
    print(f"task              {args.task}: {len(questions)} held-out questions, seed {args.seed}", flush=True)
    bar = tqdm(total=len(questions), disable=not sys.stderr.isatty(), unit="question", dynamic_ncols=True, leave=False)
    with bar:
        said = answers(model, questions, bar.update)
    marks = [question.mark(answer) for question, answer in zip(questions, said, strict=True)]
    print(f"right             {Share(sum(marks), len(marks))}")
    for verdict, wanted in (("right", True), ("wrong", False)):
        chosen = [i for i, mark in enumerate(marks) if mark == wanted][: args.examples]
        for i in chosen:
            print(f"\n{verdict}\n{indented(questions[i].prompt)}\n  answer: {said[i].strip()}")
            if not wanted:
                print(f"  known:  {questions[i].completion}")
    return 0


def indented(text: str) -> str:
    """Each line two columns to the right."""
    return "\n".join(f"  {line}" for line in text.splitlines())
