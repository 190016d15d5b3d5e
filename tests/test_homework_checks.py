"""What a test of a problem set says of an answer: of the student's function, with its cause, in enough digits."""

import numpy as np
import pytest

from minilora.homework.checks import apart, call, draw, expect, held, leans_on, own_work

RIGHT = draw(0, (3, 4))[0]


def defined(source, name="f"):
    """A function as a notebook defines it."""
    space = {"__name__": "__main__", "np": np}
    exec(source, space)
    return space[name]


def said(got, wanted=RIGHT, **more):
    """What `expect` says of a wrong result."""
    with pytest.raises(AssertionError) as error:
        expect("dx", got, wanted, "Look here.", **more)
    (line,) = str(error.value).splitlines()
    return line


@pytest.mark.parametrize(
    ("got", "words"),
    [
        (RIGHT.T, "got shape (4, 3), expected (3, 4). It is transposed. The numbers are right."),
        (RIGHT[None] * np.ones((5, 1, 1)), "got shape (5, 3, 4), expected (3, 4). What is used once for every row"),
        (RIGHT.ravel(), "got shape (12,), expected (3, 4). As many numbers in another form"),
        (np.ones(2), "got shape (2,), expected (3, 4). Look here."),
        (-RIGHT, "The sign is wrong, all else is right."),
        (2 * RIGHT, "Everything is 2 times what is expected"),
        (12 * RIGHT, "12 times too large: a sum in place of a mean?"),
        (RIGHT / 3, "1/3 of what is expected: a mean in place of a sum?"),
        (RIGHT[::-1], "The right numbers in the wrong places."),
        (RIGHT * np.nan, "There is nan: did an exponential overflow"),
        (RIGHT + np.inf, "There is inf"),
        (0 * RIGHT, "Everything is zero."),
        (RIGHT + 1e-5 * RIGHT**2, "They agree in the first digits only: is something float32"),
        (RIGHT + 1, "12 of 12 entries differ; at (0, 0) got 1.12573, expected 0.12573. Look here."),
        ("text", "got 'text', expected an array of numbers (3, 4)"),
        ({"q": RIGHT}, "got {q: (3, 4)}, expected an array of numbers"),
        (RIGHT + 1j, "expected an array of numbers"),
    ],
)  # fmt: skip
def test_a_wrong_result_is_told_with_its_cause(got, words):
    assert words in said(got)


def test_a_foreseen_mistake_comes_before_the_usual_ones():
    causes = {"eps is forgotten.": lambda: 2 * RIGHT, "the scale": RIGHT + 1}
    assert said(2 * RIGHT, causes=causes).endswith("eps is forgotten.")
    assert said(RIGHT + 1, causes=causes).endswith("the scale")
    assert "5 times what" in said(5 * RIGHT, causes=causes)


def test_two_numbers_have_digits_enough_to_tell_them_apart():
    assert apart(21.1798, 21.1798187) == ("21.1798", "21.17982")
    got, wanted = np.float32(21.1798187), 21.1798187
    line = said(np.array([got]), np.array([wanted]), rtol=1e-9)
    assert "got 21.1798191, expected 21.1798187" in line and "float32" in line


def test_what_is_right_passes():
    for got in (RIGHT, RIGHT + 1e-9, RIGHT.tolist(), np.asfortranarray(RIGHT)):
        expect("dx", got, RIGHT)
    expect("n", 3, 3.0)
    expect("nothing", np.zeros((0, 2)), np.zeros((0, 2)))
    expect("infinite", np.array([np.inf]), np.array([np.inf]))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def f(x, w): return x @ w", "your f raises ValueError on x (2, 3), w (4,): matmul: "),
        ("def f(x, w): return missing", "your f raises NameError on x (2, 3), w (4,): name 'missing' is not defined"),
        ("def f(x, w): pass", "your f returns None on x (2, 3), w (4,). Does every path"),
        ("def f(x, w): raise NotImplementedError()", "f is not written yet"),
        ("def f(x, w): x += 1; return x, w", "your f writes into its argument x. Work on a new array."),
        ("def f(x, w): return x", "your f returns (2, 3) on x (2, 3), w (4,); expected (dx, dw)"),
        ("def f(x): return x, x", "your f raises TypeError on x (2, 3), w (4,): f() takes 1 positional argument but 2"),
    ],
)
def test_what_a_function_does_wrong_is_told_of_the_function(source, words):
    with pytest.raises(AssertionError) as error:
        call("dx dw", defined(source), x=np.ones((2, 3)), w=np.ones(4))
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "source",
    [
        "from minilora.autograd.fused import softmax as f",
        "import minilora as ml\ndef f(x): return ml.ops.softmax(x).numpy()",
        "def f(x):\n    import minilora.autograd.ops as o\n    return o.softmax(x)",
        "from minilora.autograd.fused import softmax\ndef f(x): return softmax(x).numpy()",
        "from minilora.autograd.fused import softmax\ndef help(x): return softmax(x)\ndef f(x): return help(x)",
        "from minilora.autograd.fused import softmax\ntools = {'s': [softmax]}\ndef f(x): return tools['s'][0](x)",
        "from minilora.autograd.fused import softmax\ndef f(x, s=softmax): return s(x)",
        "from minilora.autograd.fused import softmax\ndef f(x, *, s=softmax): return s(x)",
        "import functools\nfrom minilora.autograd.fused import softmax\nf = functools.partial(softmax)",
        "from minilora import Tensor\ndef f(x): return Tensor(x)",
        "import minilora\nclass C:\n    def __call__(self, x): return minilora.ops.softmax(x)\nf = C()",
        "import minilora\nclass C:\n    def go(self, x): return minilora.ops.softmax(x)\ndef f(x): return C().go(x)",
        "def f(x): return __import__('minilora').ops.softmax(x)",
        "def f(x): return eval('x')",
        "def f(x):\n    import sys\n    return sys.modules['minilora'].ops.softmax(x)",
        "import scipy.special as s\ndef f(x): return s.softmax(x)",
        "from minilora.homework.checks import tape\ndef f(x): return tape(lambda t: t * 2, [x], x)[0]",
    ],
)
def test_an_answer_that_a_library_gives_is_seen(source):
    if "scipy" in source:
        pytest.importorskip("scipy")
    with pytest.raises(AssertionError, match="It is to be written with NumPy alone"):
        own_work(defined(source))


@pytest.mark.parametrize(
    "source",
    [
        "import math, itertools\ndef f(x): return np.exp(x) * math.pi",
        "def g(x): return x\ndef f(x): return g(x) if x.ndim else f(x[None])",
        "class Row:\n    def __init__(self, x): self.tape = x\ndef f(x): return Row(x).tape",
        "import minilora as ml\nmodel = 3\ndef f(x): return x.sum() + model",
        "f = np.exp",
    ],
)
def test_own_work_is_taken_for_what_it_is(source):
    function = defined(source)
    own_work(function)
    assert leans_on(function, set()) == ""


def test_an_array_that_is_too_large_is_noticed_and_a_view_is_not():
    x = np.ones((1000, 1000))
    square, view = defined("def f(x): return (x @ x).sum()"), defined("def f(x): return x.T[0, 0] + x.sum()")
    with pytest.raises(
        AssertionError, match=r"your f holds 7\.[67] MiB at once on x \(1000, 1000\), and 1\.0 are enough\. Sum"
    ):
        held("y", 2**20, "Sum first.", square, x=x)
    assert held("y", 2**20, "Sum first.", view, x=x) == 1000001
