"""Programs to be repaired: nothing of the held-out ones is seen in training, and who passes computes what was asked."""

import re

import pytest

from minilora.training import repair
from minilora.training.repair import CONDITIONS, EACH, SHAPES, repair_questions

TRAIN, HELD_OUT = repair_questions(1500), repair_questions(200, held_out=True)


def masked(prompt: str) -> str:
    """A function and what it is for, without its numbers."""
    return re.sub(r"\d+", "_", prompt)


def test_train_and_held_out_share_no_function_no_template_and_no_value():
    assert not {q.skeleton for q in TRAIN} & {q.skeleton for q in HELD_OUT}
    assert not {masked(q.prompt) for q in TRAIN} & {masked(q.prompt) for q in HELD_OUT}
    assert not {masked(q.completion) for q in TRAIN} & {masked(q.completion) for q in HELD_OUT}
    values = [set().union(*(q.values for q in part)) for part in (TRAIN, HELD_OUT)]
    assert not values[0] & values[1] and min(map(len, values)) >= 15
    for q in TRAIN + HELD_OUT:
        assert {*re.findall(r"\d+", q.completion.split("return")[1])} <= q.values | {"0", "1", "2"}


def test_the_parts_of_a_held_out_function_are_known_from_training():
    for part in (TRAIN, HELD_OUT):
        shapes, conditions, each = map(set, zip(*(q.skeleton.split(", ") for q in part), strict=True))
        assert (shapes, conditions, each) == ({*SHAPES}, {*CONDITIONS}, {*EACH})


def test_the_same_seed_gives_the_same_functions_and_no_two_are_the_same():
    assert repair_questions(20, 3) == repair_questions(20, 3) != repair_questions(20, 4)
    assert len({q.prompt for q in HELD_OUT}) == len(HELD_OUT)


def test_the_tests_tell_the_bug_from_the_corrected_line():
    """Here, without a process: what each line of the file itself returns."""
    for q in TRAIN[:300] + HELD_OUT:
        broken = q.prompt.splitlines()[1]
        different = [repair.evaluate(broken, t) != repair.evaluate(q.completion, t) for t in q.tests]
        assert sum(different) >= 2 and broken != q.completion


@pytest.mark.slow
def test_the_corrected_line_is_right_in_any_words_and_the_bug_is_not():
    q = next(q for q in TRAIN + HELD_OUT if q.skeleton.startswith("sum, over, plus"))
    n, k = (re.search(pattern, q.completion)[1] for pattern in (r"> (\d+)", r"\+ (\d+)"))
    answers = [
        q.completion, f"  {q.completion}  \n",
        f"def g(a, b=1): return sum(map(lambda y: y + {k}, [y for y in a if {n} < y]))",
        f"def f(xs): return sum([x for x in xs if not x <= {n}]) + {k} * len([1 for x in xs if x > {n}])",
    ]  # fmt: skip
    assert [q.mark(answer) for answer in answers] == [True] * 4
    wrong = [q.prompt.splitlines()[1], q.completion.replace(k, f"1{k}"), "def f(xs): return 0", f"return {n}", ""]
    assert not any(q.mark(answer) for answer in wrong)


@pytest.mark.slow
def test_every_kind_of_corrected_line_passes():
    kinds = {(q.skeleton.split(", ")[0], q.skeleton.split(", ")[1]): q for q in HELD_OUT}
    assert all(q.mark(q.completion) and not q.mark(q.prompt.splitlines()[1]) for q in list(kinds.values())[:20])
