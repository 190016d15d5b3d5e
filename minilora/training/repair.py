"""Functions of one line with a planted bug, to be repaired. An answer is right when it passes the function's tests.

A function says what it is for, and is made of three parts: what it does with numbers, with which of them, and what of
each. One part has the bug: a wrong comparison or operator, a limit taken in or left out, swapped arguments, a missing
negation, another function. Which parts stand together is its skeleton; held-out functions have skeletons and numbers
that none to train on has.
"""

from dataclasses import dataclass

import numpy as np

from .sandbox import call
from .sql import is_held_out

ASK = "The code has a bug. Answer with the corrected line."

SHAPES = {  # what is done -> its code, in words, and with a bug
    "sum": ("sum({each} for x in xs{if})", "the sum of {told}", "len([{each} for x in xs{if}])"),
    "count": ("len([{each} for x in xs{if}])", "how many of {told} there are", "sum([{each} for x in xs{if}])"),
    "largest": ("max([{each} for x in xs{if}], default=0)", "the largest of {told}, or 0",
                "min([{each} for x in xs{if}], default=0)"),
    "smallest": ("min([{each} for x in xs{if}], default=0)", "the smallest of {told}, or 0",
                 "max([{each} for x in xs{if}], default=0)"),
    "list": ("[{each} for x in xs{if}]", "the list of {told}", "[{each} for x in xs[1:]{if}]"),
    "sorted": ("sorted({each} for x in xs{if})", "{told}, smallest first",
               "sorted(({each} for x in xs{if}), reverse=True)"),
    "reversed": ("[{each} for x in xs[::-1]{if}]", "{told}, last first", "[{each} for x in xs[1::-1]{if}]"),
    "all but the first": ("[{each} for x in xs{if}][1:]", "{told}, without the first", "[{each} for x in xs{if}][2:]"),
    "all but the last": ("[{each} for x in xs{if}][:-1]", "{told}, without the last", "[{each} for x in xs{if}][1:]"),
}  # fmt: skip
CONDITIONS = {  # with which numbers
    "all": ("", "the numbers", None),
    "over": (" if x > {n}", "the numbers above {n}", " if x < {n}"),
    "under": (" if x < {n}", "the numbers below {n}", " if x <= {n}"),
    "from": (" if x >= {n}", "the numbers of at least {n}", " if x > {n}"),
    "up to": (" if x <= {n}", "the numbers of at most {n}", " if x >= {n}"),
    "not": (" if x != {n}", "the numbers other than {n}", " if x == {n}"),
    "multiple": (" if x % {m} == 0", "the multiples of {m}", " if {m} % x == 0"),
    "no multiple": (" if x % {m} != 0", "the numbers that are no multiples of {m}", " if x % {m} == 0"),
    "between": (" if {n} <= x <= {n2}", "the numbers from {n} to {n2}", " if {n} <= x < {n2}"),
    "outside": (" if not {n} <= x <= {n2}", "the numbers outside {n} to {n2}", " if {n} <= x <= {n2}"),
}
EACH = {  # what of each number
    "itself": ("x", "{told}", "-x"),
    "plus": ("x + {k}", "{told} plus {k}", "x - {k}"),
    "minus": ("x - {k}", "{told} minus {k}", "{k} - x"),
    "taken from": ("{k} - x", "{k} minus {told}", "x - {k}"),
    "times": ("x * {k}", "{told} times {k}", "x + {k}"),
    "square": ("x ** 2", "the squares of {told}", "x * 2"),
    "remainder": ("x % {k}", "the remainders of {told} by {k}", "x // {k}"),
    "quotient": ("x // {k}", "the whole quotients of {told} by {k}", "{k} // x"),
}
TESTS, LENGTH, LARGEST = 12, 8, 60  # lists that a function is called with, numbers in each, and the largest of them


@dataclass(frozen=True)
class RepairQuestion:
    """A function with a bug, the corrected line, and lists that tell the two apart."""

    prompt: str
    completion: str
    skeleton: str
    template: str
    values: frozenset[str]
    tests: tuple[tuple[int, ...], ...]

    def mark(self, answer: str) -> bool:
        """Whether an answer returns on every list what the known line returns."""
        calls = [[list(numbers)] for numbers in self.tests]
        given = call(answer, calls)
        return given is not None and given == [evaluate(self.completion, numbers) for numbers in self.tests]


def repair_questions(n: int, seed: int = 0, held_out: bool = False) -> list[RepairQuestion]:
    """n different functions, to train on or held out."""
    rng = np.random.default_rng([seed, held_out])
    found: dict[str, RepairQuestion] = {}
    while len(found) < n:
        question = draw(rng, held_out)
        found.setdefault(question.prompt, question)
    return list(found.values())


def draw(rng: np.random.Generator, held_out: bool) -> RepairQuestion:
    """A function of a skeleton of this part, whose tests see its bug."""
    while True:
        names = [str(rng.choice(list(kind))) for kind in (SHAPES, CONDITIONS, EACH)]
        parts = [SHAPES[names[0]], CONDITIONS[names[1]], EACH[names[2]]]
        skeleton, where = ", ".join(names), int(rng.integers(3))
        values, bug = draw_values(rng, held_out), parts[where][2]
        if bug is None or is_held_out(skeleton) != held_out:
            continue
        right, wrong = [part[0] for part in parts], [part[0] for part in parts]
        wrong[where] = bug
        told = parts[0][1].replace("{told}", parts[2][1]).replace("{told}", parts[1][1])
        template = f"# {told}\n{line(wrong)}"
        fixed, broken = line(right).format(**values), line(wrong).format(**values)
        tests = draw_tests(rng, values)
        if sum(evaluate(fixed, numbers) != evaluate(broken, numbers) for numbers in tests) >= 2:
            break
    used = frozenset(str(value) for name, value in values.items() if f"{{{name}}}" in template)
    return RepairQuestion(f"{template.format(**values)}\n{ASK}", fixed, skeleton, template, used, tests)


def line(parts: list[str]) -> str:
    """The three parts put together."""
    return f"def f(xs): return {parts[0].replace('{each}', parts[2]).replace('{if}', parts[1])}"


def draw_values(rng: np.random.Generator, held_out: bool) -> dict[str, int]:
    """The numbers in a function: held out are the multiples of three. (The 2 of a square is no such number.)"""
    numbers = lambda low, high: np.array([i for i in range(low, high) if (i % 3 == 0) == held_out])
    n, n2 = sorted(rng.choice(numbers(10, 51), 2, replace=False).tolist())
    return {"n": n, "n2": n2, "m": int(rng.choice(numbers(3, 10))), "k": int(rng.choice(numbers(3, 20)))}


def draw_tests(rng: np.random.Generator, values: dict[str, int]) -> tuple[tuple[int, ...], ...]:
    """Lists to call a function with; half of them hold the numbers that it names, a limit's own among them."""
    lists = rng.integers(1, LARGEST, (TESTS, LENGTH))
    for row in lists[::2]:
        row[rng.choice(LENGTH, 3, replace=False)] = values["n"], values["n2"], values["m"] * values["k"]
    return tuple(map(tuple, lists.tolist()))


def evaluate(code: str, numbers: tuple[int, ...]) -> object:
    """What a line of this file's own returns for a list."""
    return eval(code.removeprefix("def f(xs): return "), {"xs": list(numbers)})
