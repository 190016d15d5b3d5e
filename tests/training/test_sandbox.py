"""A line of somebody else's is called where it hurts nobody, and what is no such line is not called."""

import pytest

from minilora.training import sandbox
from minilora.training.sandbox import call, is_one_function


def test_results_are_python_s_own():
    assert call("def f(x): return x + x", [[1], ["a"], [[2]], [0.5], [True]]) == [2, "aa", [2, 2], 1.0, 2]
    results = call("def f(n): return (1, {2: 'x'}, {3}, None) if n else f(1)", [[0]])
    assert results == [(1, {2: "x"}, {3}, None)]
    assert call("def f(xs, by=2): return sorted({x for x in xs}, key=lambda x: x % by)", [[[3, 2]]]) == [[2, 3]]
    assert call("def f(s): return s.strip().upper()", [[" a "]]) == ["A"]


NOT_CALLED = [
    "", "def", "f = lambda x: x", "x", "def f(x): pass", "def f(x): x", "async def f(x): return x",
    "def f(x): import os", "import os", "def f(x): return x; import os", "def f(x): return os.getcwd()",
    "class f: pass", "def f(x):\n return x", "def f(x): return print(x)", "def f(x): return open('here', 'w')",
    "def f(x): x()", "def f(x): return exit()",
    "def f(x): return __import__('os')._exit(0)", "def f(x): return x.__class__",
    "def f(x): return globals()",
    "def f(x): return (y for y in x).gi_frame", "def f(x): return '{0.__class__}'.format(x)", "def f(x): return f'{x}'",
    "@print\ndef f(x): return x", "@print", "def f(x) -> (1).__class__: return x", "def f(x=(1).__class__): return x",
    "def f(x: print(1)): return x", "def f(x): return (y := x)", "def f(x): return eval('1')", "def f(x): yield 1",
    "def f(x): return input()", "def f(x): return [*iter(int, 1)]", "def f(x): return x" + " + 1" * 400, "\0", "\ud800",
    "def f(x): return " + "(" * 400 + "1" + ")" * 400, "def f(x): return type(x)", "def f[T: int](x): return x",
    "def f(x): return getattr(x, 'a')", "def f(x): return breakpoint()", "def f(x): return quit", "def f(x): raise x",
]  # fmt: skip


@pytest.mark.parametrize("code", NOT_CALLED)
def test_what_is_not_one_function_of_expressions_is_not_called(code, monkeypatch):
    monkeypatch.setattr(sandbox.subprocess, "Popen", None)
    assert not is_one_function(code)
    assert call(code, [[1]]) is None


FAILS = [
    "def f(x): return 1 / 0", "def f(x): return f(x)", "def f(): return 1", "def f(x): return [0] * 10**10",
    "def f(x): return 'a' * 10**10", "def f(x): return list(range(10**9))", "def f(x): return '%1000000000d' % x",
    "def f(x): return (lambda g: g(g))(lambda g: g(g))", "def f(x): return [0] * 10**6", "def f(x): return sum",
    "def f(x): return 10 ** 10000", "def __builtins__(x): return 1", "def f(x): return float('nan')",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("code", FAILS)
def test_what_fails_or_is_too_large_has_no_result(code):
    assert is_one_function(code)
    assert call(code, [[1]]) is None
    assert call("def f(x): return x", [[1]]) == [1]


@pytest.mark.slow
@pytest.mark.parametrize("code", ["def f(x): return sum(range(10**12))", "def f(x): return 9**9**9"])
def test_what_does_not_end_is_ended(code):
    assert call(code, [[1]]) is None


SYSTEM = "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close'][0].__init__.__globals__"


@pytest.mark.slow
@pytest.mark.parametrize(
    "then", ["_exit'](0)", "open']('HERE', 65)", "system']('touch HERE')", "popen']('touch HERE')"]
)
def test_behind_the_first_wall_stands_a_second(then, monkeypatch, tmp_path):
    """A line that got to the operating system's functions: its process may end; nothing is passed, nothing written."""
    monkeypatch.setattr(sandbox, "is_one_function", lambda code: True)
    place = tmp_path / "here"
    results = call(f"def f(x): return {SYSTEM}['{then}".replace("HERE", str(place)), [[1]])
    assert results is None or results[0] != 0
    assert not place.exists()
