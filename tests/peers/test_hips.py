"""HIPS autograd, the older NumPy tape, as the judge of NumPy's face: one expression, theirs and ours, one gradient.

Each expression is written once for a module `m`: with `autograd.numpy` it is theirs, with `numpy` itself, on tensors,
ours. What their tests go through is gone through here by sweeps: functions, shapes that broadcast, axes, indices.
"""

import itertools

import numpy as np
import pytest

import minilora as ml

autograd = pytest.importorskip("autograd", reason="the peers' tests need HIPS autograd: pip install 'minilora[peers]'")
anp = pytest.importorskip("autograd.numpy")


def draw(shape, seed=0, positive=False):
    """Distinct entries, none of them near 0."""
    x = np.random.default_rng([seed, *shape]).permutation(np.prod(shape, dtype=int)).reshape(shape) + 0.75
    x = x / (x.size + 1) * np.random.default_rng(seed).choice([-1, 1], shape)
    return abs(x) + 0.25 if positive else x


def check_agreement(expression, *arrays):
    """Value and gradients of a weighted sum of the expression's result, ours and theirs."""
    theirs = expression(anp, *arrays)
    weights = np.cos(np.arange(np.size(theirs))).reshape(np.shape(theirs))
    scalar = lambda *args: anp.sum(expression(anp, *args) * weights)
    expected = autograd.grad(scalar, tuple(range(len(arrays))))(*arrays)
    tensors = [ml.Tensor(x, requires_grad=True) for x in arrays]
    y = expression(np, *tensors)
    assert isinstance(y, ml.Tensor)
    np.testing.assert_allclose(y.data, theirs, rtol=1e-13, atol=1e-15)
    for g, right in zip(ml.grad(y, tensors, weights), expected, strict=True):
        np.testing.assert_allclose(g, right, rtol=1e-10, atol=1e-13)


UNARY = ["abs", "cos", "cosh", "exp", "exp2", "expm1", "fabs", "negative", "sin", "sinh", "square", "tan", "tanh"]
POSITIVE = ["log", "log10", "log1p", "log2", "reciprocal", "sqrt"]


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (2, 1, 3), (0, 2)], ids=str)
@pytest.mark.parametrize("name", UNARY + POSITIVE)
def test_functions_of_one_argument(name, shape):
    check_agreement(lambda m, x: getattr(m, name)(x), draw(shape, positive=name in POSITIVE))


BINARY = ["add", "subtract", "multiply", "divide", "true_divide", "power", "maximum", "minimum"]
PAIRS = [
    ((), ()),
    ((3,), ()),
    ((), (3,)),
    ((2, 3), (3,)),
    ((3,), (2, 3)),
    ((2, 1), (3,)),
    ((2, 1, 3), (4, 1)),
    ((1,), (2, 3)),
    ((2, 3), (2, 1)),
    ((2, 0), (1,)),
]


@pytest.mark.parametrize("shapes", PAIRS, ids=str)
@pytest.mark.parametrize("name", BINARY)
def test_functions_of_two_arguments(name, shapes):
    a, b = (draw(shape, seed, positive=name == "power") for seed, shape in enumerate(shapes))
    check_agreement(lambda m, x, y: getattr(m, name)(x, y), a, b)
    check_agreement(lambda m, x: getattr(m, name)(x, b), a)
    check_agreement(lambda m, y: getattr(m, name)(a, y), b)


OPERATORS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "**": lambda a, b: a**b,
}


OTHERS = [2, 0.5, np.float64(1.5), np.array(2.0), np.array([1.0, 2.0, 3.0]), [1.0, 2.0, 3.0]]


@pytest.mark.parametrize("other", OTHERS, ids=repr)
@pytest.mark.parametrize("symbol", OPERATORS)
def test_operators_with_arrays_and_numbers_on_either_side(symbol, other):
    operate, x = OPERATORS[symbol], draw((2, 3), positive=True)

    def beside(m):  # a list beside one of their boxes is no case of theirs
        return np.array(other) if m is anp and isinstance(other, list) else other

    check_agreement(lambda m, x: operate(x, beside(m)), x)
    check_agreement(lambda m, x: operate(beside(m), x), x)


REDUCTIONS = ["sum", "mean", "prod", "max", "min", "amax", "amin", "var", "std"]
AXES = [None, 0, 1, -1, (0, 2), (1,), (-1, 0)]


@pytest.mark.parametrize("name, axis", itertools.product(REDUCTIONS, AXES), ids=str)
def test_reductions(name, axis):
    x = draw((2, 3, 4))
    for keepdims in (False, True):
        check_agreement(lambda m, x, k=keepdims: getattr(m, name)(x, axis=axis, keepdims=k), x)
    check_agreement(
        lambda m, x: getattr(x, "max" if name == "amax" else "min" if name == "amin" else name)(axis=axis), x
    )
    check_agreement(lambda m, x: getattr(m, name)(x), x)
    if name in ("var", "std"):
        check_agreement(lambda m, x: getattr(m, name)(x, axis, ddof=1), x)


MOVES = {
    "reshape": lambda m, x: m.reshape(x, (4, 6)),
    "reshape -1": lambda m, x: m.reshape(x, (-1, 3)),
    "x.reshape": lambda m, x: x.reshape((6, 4)),
    "x.reshape places": lambda m, x: x.reshape(6, -1),
    "ravel": lambda m, x: m.ravel(x),
    "x.flatten": lambda m, x: x.flatten(),
    "transpose": lambda m, x: m.transpose(x),
    "transpose axes": lambda m, x: m.transpose(x, (1, 2, 0)),
    "x.transpose": lambda m, x: x.transpose((2, 0, 1)),
    "T": lambda m, x: x.T,
    "swapaxes": lambda m, x: m.swapaxes(x, 0, -1),
    "moveaxis": lambda m, x: m.moveaxis(x, 0, 2),
    "rollaxis": lambda m, x: m.rollaxis(x, 2),
    "roll": lambda m, x: m.roll(x, 2, axis=1),
    "flipud": lambda m, x: m.flipud(x),
    "fliplr": lambda m, x: m.fliplr(x),
    "rot90": lambda m, x: m.rot90(x),
    "squeeze": lambda m, x: m.squeeze(x[None], 0),
    "expand_dims": lambda m, x: m.expand_dims(x, 1),
    "tile": lambda m, x: m.tile(x, (2, 1, 3)),
    "repeat": lambda m, x: m.repeat(x, 2, axis=1),
    "broadcast_to": lambda m, x: m.broadcast_to(x[:, :1], (2, 3, 4)),
    "cumsum": lambda m, x: m.cumsum(x, axis=1),
    "cumsum flat": lambda m, x: m.cumsum(x),
    "clip": lambda m, x: m.clip(x, -0.3, 0.4),
    "triu": lambda m, x: m.triu(x, 1),
    "tril": lambda m, x: m.tril(x, -1),
    "trace": lambda m, x: m.trace(x[0, :, :3]),
    "diagonal": lambda m, x: m.diagonal(x[:, :, :3], axis1=-1, axis2=-2),
    "split": lambda m, x: m.split(x, 2, axis=2)[1],
    "vsplit": lambda m, x: m.vsplit(x, 2)[0],
    "array_split": lambda m, x: m.array_split(x, [1, 2], axis=1)[2],
    "take": lambda m, x: x[:, [0, 2, 2]],
    "where": lambda m, x: m.where(draw((2, 3, 4), 1) > 0, x, 2 * x),
    "where both": lambda m, x: m.where(np.arange(4) > 1, x, x[:, :1] ** 2),
    "norm": lambda m, x: m.linalg.norm(x),
    "norm axis": lambda m, x: m.linalg.norm(x, axis=1),
    "norm matrix": lambda m, x: m.linalg.norm(x[0], "fro"),
    "sum of sums": lambda m, x: m.sum(m.sum(x, 0), 1),
}


@pytest.mark.parametrize("name", MOVES)
def test_moving_entries(name):
    check_agreement(MOVES[name], draw((2, 3, 4)))


KEYS = [
    1,
    -1,
    slice(None),
    slice(None, None, -1),
    slice(1, None),
    ...,
    None,
    (0, 1),
    (slice(None), 2),
    (..., 0),
    (None, 1, ..., None),
    (slice(0, 1), [0, 2]),
    [0, 1, 0],
    ([0, 1], [2, 2]),
    np.array([[0, 1], [1, 1]]),
    draw((2, 3, 4), 2) > 0,
    (slice(None), np.array([True, False, True])),
    (0, [True, False, True]),
    (slice(None), slice(None, None, 2), [[0], [3]]),
]


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_indexing(key):
    check_agreement(lambda m, x: x[key], draw((2, 3, 4)))


JOINS = {
    "concatenate": lambda m, a, b: m.concatenate([a, b]),
    "concatenate axis": lambda m, a, b: m.concatenate((a, b, a), axis=1),
    "concatenate -1": lambda m, a, b: m.concatenate((b, a), -1),
    "vstack": lambda m, a, b: m.vstack((a, b)),
    "hstack": lambda m, a, b: m.hstack([a, b]),
    "column_stack": lambda m, a, b: m.column_stack((a, b)),
    "dstack": lambda m, a, b: m.dstack((a, b)),
    "append": lambda m, a, b: m.append(a, b, axis=0),
    "stack": lambda m, a, b: m.stack([a, b]),
    "stack axis": lambda m, a, b: m.stack([a, b, b], axis=1),
    "append flat": lambda m, a, b: m.append(a, b),
}


@pytest.mark.parametrize("name", JOINS)
def test_joining(name):
    check_agreement(JOINS[name], draw((2, 3)), draw((2, 3), 1))
    if name in ("concatenate", "hstack", "stack", "append flat", "vstack", "column_stack"):
        check_agreement(JOINS[name], draw((3,)), draw((3,), 1))


CONTAINERS = {
    "list": lambda array, a, b: array([a, b]),
    "tuple": lambda array, a, b: array((b, a, b)),
    "nested": lambda array, a, b: array([[a, b], [b * a, 1.0]]),
    "of rows": lambda array, a, b: array([a * np.ones(2), b * np.ones(2)]),
    "deep": lambda array, a, b: array([[[a], [2.0]], [[b], [a]]]),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(name):
    """Their np.array of a list is our Tensor of one."""
    check_agreement(
        lambda m, a, b: CONTAINERS[name](anp.array if m is anp else ml.Tensor, a, b), np.array(0.5), np.array(-1.5)
    )


PRODUCTS = [
    ((3,), (3,)),
    ((2, 3), (3,)),
    ((3,), (3, 2)),
    ((2, 3), (3, 4)),
    ((2, 2, 3), (3, 4)),
    ((2, 2, 3), (3,)),
    ((3,), (2, 3, 4)),
    ((2, 2, 3), (2, 3, 4)),
    ((2, 1, 2, 3), (4, 3, 2)),
]


@pytest.mark.parametrize("shapes", PRODUCTS, ids=str)
def test_products(shapes):
    a, b = (draw(shape, seed) for seed, shape in enumerate(shapes))
    check_agreement(lambda m, a, b: m.matmul(a, b), a, b)
    check_agreement(lambda m, a, b: a @ b, a, b)
    check_agreement(lambda m, a, b: m.dot(a, b), a, b)
    check_agreement(lambda m, a, b: m.outer(m.ravel(a), m.ravel(b)), a, b)  # theirs takes vectors alone
    check_agreement(lambda m, a, b: m.inner(a, m.swapaxes(b, -1, -2) if len(shapes[1]) > 1 else b), a, b)


LETTERS = [
    ("ij,jk->ik", (2, 3), (3, 4)),
    ("i,i->", (3,), (3,)),
    ("ij,ij->ij", (2, 3), (2, 3)),
    ("ij,j->i", (2, 3), (3,)),
    ("bij,bjk->bik", (2, 2, 3), (2, 3, 4)),
    ("i,j->ij", (2,), (3,)),
    ("...j,j->...", (2, 2, 3), (3,)),
    ("ij,jk", (2, 3), (3, 4)),
    ("ij,kj->", (2, 3), (4, 3)),
    ("ab,cd->dbca", (2, 3), (2, 4)),
]


@pytest.mark.parametrize("letters", LETTERS, ids=str)
def test_einsum(letters):
    subscripts, *shapes = letters
    check_agreement(
        lambda m, a, b: m.einsum(subscripts, a, b), *(draw(shape, seed) for seed, shape in enumerate(shapes))
    )


ALONE = [("ij->i", (2, 3)), ("ij->", (2, 3)), ("ij->ji", (2, 3)), ("...ij->...j", (2, 3, 4))]


@pytest.mark.parametrize("letters", ALONE, ids=str)
def test_einsum_of_one(letters):
    check_agreement(lambda m, a: m.einsum(letters[0], a), draw(letters[1]))


PROGRAMS = {
    "logistic": lambda m, w, x: m.sum(m.log1p(m.exp(-m.dot(x, w)))),
    "softmax": lambda m, w, x: m.exp(x * w) / m.sum(m.exp(x * w), axis=1, keepdims=True),
    "stable": lambda m, w, x: m.log(m.sum(m.exp(x * w - m.max(x * w, axis=1, keepdims=True)), axis=1)),
    "layers": lambda m, w, x: m.tanh(m.dot(m.tanh(x * w), x.T)) @ m.ones(2),
    "gaussian": lambda m, w, x: -0.5 * m.sum(((x - w) / m.std(x, axis=0)) ** 2) - m.sum(m.log(m.std(x, axis=0))),
    "penalty": lambda m, w, x: m.sum(m.dot(x, w) ** 2) + 0.1 * m.dot(w, w) + m.linalg.norm(w),
    "loop": lambda m, w, x: sum((m.sin(w[i]) * x[:, i] for i in range(3)), 0.0),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name):
    """Whole functions with branches, reuse and broadcasting; a constant m.ones stays a plain array on both sides."""
    check_agreement(PROGRAMS[name], draw((3,)), draw((2, 3), 1))
