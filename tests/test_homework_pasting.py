"""Answers that are copied earn next to nothing: every cell of every lecture and every function of the package, called
or pasted under the asked name, is handed in as the answer to every task. In this process: thousands of attempts."""

import ast
import contextlib
import functools
import importlib
import inspect
import io
import itertools
import pkgutil
import textwrap
import types
from pathlib import Path

import homework_grading as grading
import nbformat
import pytest

import minilora
from minilora.homework import checks

pytestmark = pytest.mark.slow
SETS = ("ps1", "ps2", "ps3", "ps4")
OPEN = "design"  # a choice of numbers, which the package may help with: there is no function to copy
MOST = 10  # points of a set that one piece of somebody else's work may earn
LECTURES = sorted(Path(__file__).parents[1].glob("notebooks/*.ipynb"))


def parameters(name, asked):
    """The names of what an answer takes, from its cell."""
    (function,) = ast.parse(grading.answers(name)[asked]).body
    return [a.arg for a in function.args.args]


@functools.cache
def package_functions():
    """{full name: function} of all public functions of the package."""
    found = {}
    for module in pkgutil.walk_packages(minilora.__path__, "minilora."):
        if module.name.endswith("__main__"):
            continue
        with contextlib.suppress(ImportError):  # of an extra that is not there
            for name, value in vars(importlib.import_module(module.name)).items():
                if callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == module.name:
                    found[f"{module.name}.{name}"] = value
    return found


@functools.cache
def pasted_functions():
    """[(where from, its name, the least and the most arguments, code)]: of the package, and in cells of lectures."""
    found = []
    for full, function in package_functions().items():
        if isinstance(inspect.unwrap(function), types.FunctionType):
            found.append((full, ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0]))
    for where, tree in cells():
        found += [(where, node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    pieces = []
    for where, node in found:
        node.decorator_list = []
        most = len(node.args.posonlyargs) + len(node.args.args)
        least = most - len(node.args.defaults)
        code = compile(ast.Module([node], []), where, "exec")
        pieces.append((where, node.name, least, 99 if node.args.vararg else most, code))
    return pieces


@functools.cache
def cells():
    """[(where from, tree)]: the code cells of the lectures."""
    found = []
    for path in LECTURES:
        for n, cell in enumerate(nbformat.read(path, as_version=4).cells):
            if cell.cell_type == "code":
                lines = (line for line in cell.source.split("\n") if not line.startswith(("%", "!")))
                found.append((f"{path.stem} cell {n}", ast.parse("\n".join(lines))))
    return found


def attempts(asked, takes):
    """[(where from, code that defines the asked name)]: pasted functions, and cells as a function's body."""
    for where, name, least, most, code in pasted_functions():
        if least <= len(takes) <= most:
            yield where, name, code
    for where, tree in cells():
        read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        targets = [t for node in tree.body if isinstance(node, ast.Assign) for t in node.targets]
        assigned = [t.id for t in targets if isinstance(t, ast.Name)]
        if read & set(takes):  # else nothing of it depends on what it is given
            for count in {1, 2, 3} & set(range(len(assigned) + 1)):  # what it assigns last is what it returns
                result = ast.parse(f"def {asked}({', '.join(takes)}):\n    return {', '.join(assigned[-count:])}")
                result.body[0].body[:0] = tree.body
                yield where, asked, compile(ast.fix_missing_locations(result), where, "exec")


def graded_by(name):
    """{asked: [(test, its points, its code)]}: the tests that fail where the answer is not there."""
    stubs = {}
    for asked in grading.answers(name):
        if asked in {key for key, _, _ in grading.code_of(name)}:
            source = grading.answers(name)[asked].partition("    ### BEGIN")[0] + "    raise NotImplementedError"
            said, _ = grading.run_here(name, {**grading.answers(name), asked: source})
            stubs[asked] = [(key, points, code) for key, code, points in grading.code_of(name) if key in said]
    return stubs


def earned(space, tests):
    """The points of these tests, from the first that fails on."""
    total = 0
    for _, points, code in tests:
        try:
            exec(code, space)
        except Exception:
            continue
        total += points
    return total


@pytest.mark.parametrize("name", SETS)
def test_no_lecture_cell_and_no_function_of_the_package_is_an_answer(name):
    """One piece, handed in for every task of a set, earns at most 10 points of it."""
    _, space = grading.run_here(name, grading.answers(name))
    points, best = {}, {}
    for asked, tests in graded_by(name).items():
        if asked == OPEN:
            continue
        takes = parameters(name, asked)
        called = ((full, function, None) for full, function in package_functions().items())
        right = dict(space)
        with contextlib.redirect_stdout(io.StringIO()):
            assert earned(space, tests) == sum(gives for _, gives, _ in tests) > 0  # the right answer has them all
        for where, piece, code in itertools.chain(called, attempts(asked, takes)):
            with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(BaseException):
                if code is not None:
                    trial = dict(space)
                    exec(code, trial)
                    piece = trial[piece]
                checks.own_work(piece)
                space[asked] = piece  # in place: it is there that the tests' helpers look
                if gained := earned(space, tests):
                    points[where] = points.get(where, 0) + gained
                    best[asked] = max(best.get(asked, 0), gained)
            space.update(right)
    assert max(points.values(), default=0) <= MOST, points
    assert sum(best.values()) <= MOST, best  # even whoever pastes the best piece for each task
