"""NumPy's functions on tensors: ours or refused, never an array without the tape. NumPy is the judge of every value."""

import warnings

import numpy as np
import pytest
from drawing import check_gradients

import minilora as ml
from minilora.autograd.border import LOOKING
from minilora.autograd.tape import PRIMITIVES

M = np.array([[0.5, -1.25, 2.0], [1.5, 0.75, -0.5]])
V = np.array([0.25, 1.5, -2.0])
P = np.array([0.5, 1.25, 3.0])

CALLS = {  # what is written, on arrays that are all given as tensors, or the first one alone
    "sum": (lambda x: np.sum(x), M),
    "sum, keywords": (lambda x: np.sum(a=x, axis=1, keepdims=True), M),
    "sum, places": (lambda x: np.sum(x, 0, None, None, True), M),
    "mean": (lambda x: np.mean(x, axis=(0, 1)), M),
    "max": (lambda x: np.max(x, axis=-1), M),
    "amin": (lambda x: np.amin(x), M),
    "var": (lambda x: np.var(x, axis=0, ddof=1), M),
    "std, places": (lambda x: np.std(x, 0, None, None, 1), M),
    "prod": (lambda x: np.prod(x, axis=1), M),
    "cumsum": (lambda x: np.cumsum(x, axis=1), M),
    "norm": (lambda x: np.linalg.norm(x), V),
    "norm, axis": (lambda x: np.linalg.norm(x, axis=1, keepdims=True), M),
    "dot": (lambda x, y: np.dot(x, y), M, V),
    "vdot": (lambda x: np.vdot(x, x), M),
    "inner": (lambda x, y: np.inner(x, y), M, V),
    "outer": (lambda x, y: np.outer(x, y), V, V),
    "matmul": (lambda x, y: np.matmul(x, y), M, V),
    "einsum": (lambda x, y: np.einsum("ij,j->i", x, y, optimize=True), M, V),
    "concatenate": (lambda x, y: np.concatenate([x, y]), V, P),
    "concatenate, axis": (lambda x: np.concatenate((x, x), 1), M),
    "concatenate of one": (lambda x: np.concatenate(x), M),
    "stack": (lambda x, y: np.stack([x, y], axis=-1), V, P),
    "vstack": (lambda x, y: np.vstack([x, y]), M, V),
    "hstack": (lambda x, y: np.hstack((x, y)), V, P),
    "column_stack": (lambda x, y: np.column_stack([x, y]), V, P),
    "append": (lambda x, y: np.append(x, y), V, P),
    "where": (lambda x, y: np.where(V > 0, x, y), V, P),
    "clip": (lambda x: np.clip(x, -1, 1.25), M),
    "clip, keywords": (lambda x: np.clip(x, a_min=-1, a_max=None), M),
    **({"clip, other keywords": (lambda x: np.clip(x, max=1), M)} if np.__version__ >= "2.1" else {}),
    "reshape": (lambda x: np.reshape(x, (3, 2)), M),
    "ravel": (lambda x: np.ravel(x, order="F"), M),
    "transpose": (lambda x: np.transpose(x), M),
    "swapaxes": (lambda x: np.swapaxes(x, 0, 1), M),
    "moveaxis": (lambda x: np.moveaxis(x[None], 0, -1), M),
    "squeeze": (lambda x: np.squeeze(x[None]), M),
    "expand_dims": (lambda x: np.expand_dims(x, 1), V),
    "broadcast_to": (lambda x: np.broadcast_to(x, (2, 3)), V),
    "repeat": (lambda x: np.repeat(x, 2, axis=1), M),
    "tile": (lambda x: np.tile(x, (2, 1)), V),
    "roll": (lambda x: np.roll(x, 1, axis=1), M),
    "flip": (lambda x: np.flip(x, axis=0), M),
    "rot90": (lambda x: np.rot90(x), M),
    "take": (lambda x: np.take(x, [0, 2, 2], axis=1), M),
    "diagonal": (lambda x: np.diagonal(x), M),
    "trace": (lambda x: np.trace(x), M),
    "triu": (lambda x: np.triu(x, 1), M),
    "split": (lambda x: np.split(x, 3, axis=1)[1], M),
    "atleast_2d": (lambda x: np.atleast_2d(x), V),
    "diff": (lambda x: np.diff(x), M),
    "abs": (lambda x: np.abs(x), M),
    "square": (lambda x: np.square(x), M),
    "reciprocal": (lambda x: np.reciprocal(x), P),
    "log2": (lambda x: np.log2(x), P),
    "log10": (lambda x: np.log10(x), P),
    "exp2": (lambda x: np.exp2(x), V),
    "expm1": (lambda x: np.expm1(x), V),
    "log1p": (lambda x: np.log1p(x), P),
    "sin": (lambda x: np.sin(x) * np.cos(x), V),
    "tan": (lambda x: np.tan(x), V),
    "sinh": (lambda x: np.sinh(x) + np.cosh(x), V),
    "maximum": (lambda x, y: np.maximum(x, y), V, P),
    "minimum": (lambda x: np.minimum(x, 0.3), V),
    "power": (lambda x, y: np.power(x, y), P, V),
    "divide": (lambda x, y: np.true_divide(x, y), V, P),
    "negative": (lambda x: np.negative(np.positive(x)), V),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_numpy_function_is_ours(name):
    call, *arrays = CALLS[name]
    expected = call(*arrays)
    tensors = [ml.Tensor(x, requires_grad=True) for x in arrays]
    for given in (tensors, [tensors[0], *arrays[1:]], [*arrays[:-1], tensors[-1]]):
        y = call(*given)
        assert isinstance(y, ml.Tensor) and y.requires_grad
        np.testing.assert_allclose(y.data, expected, rtol=1e-14, atol=1e-15)
    check_gradients(call, arrays, ["central"])


def test_a_penalty_on_numpys_side_counts():
    w = ml.Tensor([3.0, 4.0], requires_grad=True)
    for penalty in (np.dot(w, w), np.sum(np.square(w)), np.einsum("i,i->", w, w), np.linalg.norm(w) ** 2):
        np.testing.assert_allclose(ml.grad((w * w).sum() + 0.1 * penalty, [w])[0], [6.6, 8.8], rtol=1e-14)


def numpys():
    """(name, function) of all that dispatches on its arguments, in numpy, numpy.linalg and numpy.fft."""
    for module in (np, np.linalg, np.fft):
        for name, function in vars(module).items():
            dispatches = isinstance(function, np.ufunc) or type(function).__name__ == "_ArrayFunctionDispatcher"
            if dispatches and not name.startswith("_") and not name.startswith("save"):
                yield name if module is np else f"{module.__name__.removeprefix('numpy.')}.{name}", function


FUNCTIONS = dict(numpys())
SQUARE = np.array([[2.0, 0.5], [0.25, 1.5]])
SHAPES = {
    "x": lambda x: (x,), "x, x": lambda x: (x, x), "[x, x]": lambda x: ([x, x],), "x, 1": lambda x: (x, 1),
    "1, x": lambda x: (1.0, x), "x, x, x": lambda x: (x, x, x), "x, [1]": lambda x: (x, [1]),
    "x, 0, 1": lambda x: (x, 0, 1),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_function_of_numpy_drops_a_tape(name):
    """With a tape: the primitive's tensor, or one line that names the function; plain arrays of values alone."""
    function = FUNCTIONS[name]
    for kind, shape in SHAPES.items():
        if kind == "1, x" and name in ("real_if_close", "linalg.matrix_rank", "linalg.pinv"):
            continue  # a tolerance, of which the result is no function that has a derivative
        for data in (SQUARE, SQUARE[0]):
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                try:
                    expected = function(*shape(data.copy()))
                except Exception:
                    continue  # not how this one is called
                x = ml.Tensor(data, requires_grad=True)
                try:
                    got = function(*shape(x))
                except (TypeError, ValueError, AttributeError) as error:
                    names = (f"np.{name}", f"np.{function.__name__}", "Tensor:", *(f"{p}:" for p in PRIMITIVES))
                    assert str(error).startswith(names) and "\n" not in str(error), error
                    continue
            if function.__name__ in LOOKING or (isinstance(got, tuple) and name == "where"):
                continue
            for part, right in zip(
                *((r if isinstance(r, (list, tuple)) else [r]) for r in (got, expected)), strict=True
            ):
                assert isinstance(part, ml.Tensor) and part.requires_grad, name
                np.testing.assert_allclose(part.data, right, rtol=1e-12, atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, f in FUNCTIONS.items() if not isinstance(f, np.ufunc)])
def test_without_a_tape_numpy_computes(name):
    """A tensor without a tape is an array: NumPy's value, as a tensor or an array, or a refusal of an option."""
    function = FUNCTIONS[name]
    for shape in SHAPES.values():
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                expected = function(*shape(SQUARE.copy()))
            except Exception:
                continue
            try:
                got = function(*shape(ml.Tensor(SQUARE)))
            except (TypeError, ValueError):
                assert name in (
                    "linalg.norm",
                    "linalg.vector_norm",
                    "atleast_1d",
                    "atleast_2d",
                    "atleast_3d",
                    "clip",
                    "reshape",
                    "dot",
                    "diff",
                ), name
                continue
        if name != "empty_like" and isinstance(expected, np.ndarray | np.generic | float):
            np.testing.assert_allclose(ml.to_numpy(got), expected, rtol=1e-12, atol=1e-15)


OPTIONS = {
    "out": lambda x, a: np.sum(x, axis=0, out=a),
    "dtype": lambda x, a: np.mean(x, dtype="float32"),
    "where": lambda x, a: np.sum(x, where=a > 0),
    "initial": lambda x, a: np.max(x, initial=0.0),
    "order": lambda x, a: np.reshape(x, -1, order="F"),
    "ufunc out": lambda x, a: np.multiply(x, 2, out=a),
    "ufunc where": lambda x, a: np.exp(x, where=a > 0),
    "ufunc dtype": lambda x, a: np.add(x, x, dtype="float32"),
    "in place": lambda x, a: a.__iadd__(x),
    "in place, product": lambda x, a: a.__imul__(x),
    "at": lambda x, a: np.add.at(a, [0], x[0]),
    "reduce": lambda x, a: np.add.reduce(x),
    "accumulate": lambda x, a: np.multiply.accumulate(x),
    "outer of a ufunc": lambda x, a: np.add.outer(x, x),
    "reduceat": lambda x, a: np.add.reduceat(x, [0, 1]),
    "ndarray.dot": lambda x, a: a.dot(x),
    "asarray": lambda x, a: np.asarray(x),
    "array": lambda x, a: np.array([x, x]),
    "asarray of a list": lambda x, a: np.asarray([x[0], x[1]]),
    "copyto": lambda x, a: np.copyto(a, x),
    "assigned": lambda x, a: a.__setitem__(slice(None), x),
    "full": lambda x, a: np.full(3, x),
    "masked": lambda x, a: np.ma.masked_array(a, a > 0) * x,
    "vectorize": lambda x, a: np.vectorize(lambda v: v)(x),
    "fft": lambda x, a: np.fft.fft(x),
    "svd": lambda x, a: np.linalg.svd(x[None]),
    "poly": lambda x, a: np.polyval(x, 2.0),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_what_would_lose_the_tape_is_refused(name):
    x, a = ml.Tensor([1.0, 2.0, 3.0], requires_grad=True), np.ones(3)
    with pytest.raises(TypeError, match=r"^(np\.|Tensor: ).*(use|write|takes)"):
        OPTIONS[name](x, a)
    np.testing.assert_array_equal(a, 1)


def test_in_place_says_what_to_write():
    a = np.ones(2)
    with pytest.raises(TypeError, match=r"^np\.add: an array written in place keeps no tape: write y = y \+ x"):
        a += ml.Tensor([1.0, 2.0], requires_grad=True)
    a += ml.Tensor([1.0, 2.0])  # there is no tape to lose
    np.testing.assert_array_equal(a, [2, 3])


def test_values_alone():
    x = ml.Tensor(M, requires_grad=True)
    assert np.argmax(x) == 2 and np.shape(x) == (2, 3) and np.allclose(x, M) and np.isfinite(x).all()
    assert type(np.zeros_like(x)) is np.ndarray and np.floor(x).tolist() == np.floor(M).tolist()
    np.testing.assert_array_equal(np.nonzero(np.where(x > 1)[0]), np.nonzero(np.where(M > 1)[0]))
    np.testing.assert_array_equal(x[np.argsort(x[0])[::-1] * 0].data, M[[0, 0, 0]])


def test_every_name_that_is_looked_at_is_numpys():
    assert all(hasattr(np, name) for name in LOOKING)
