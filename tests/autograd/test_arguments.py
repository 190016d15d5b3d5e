"""What primitives are given: containers, numbers of every kind, and odd things; what comes of it, or what is said."""

import datetime
import decimal
import fractions
import inspect
import re
import warnings

import numpy as np
import pytest
from drawing import check_gradients
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora import ops
from minilora.autograd.arguments import OPTIONS
from minilora.autograd.examples import EXAMPLES
from minilora.autograd.tensor import PRIMITIVES, primitive

pytestmark = pytest.mark.filterwarnings("ignore:the matrix subclass")

# ---- containers


def test_tensors_in_lists_keep_their_tape():
    a, b, v = ml.Tensor(2.0, True), ml.Tensor(3.0, True), ml.Tensor([1.0, 10.0], True)
    for joined in (
        ml.Tensor([a, b]),
        ml.Tensor((a, b)),
        ops.add([a, b], 0.0),
        ops.add((a, b), (0, 0)),
        ops.stack([a, b]),
    ):
        assert joined.data.tolist() == [2.0, 3.0]
        assert [g.tolist() for g in ml.grad((joined * v).sum(), [a, b, v])] == [1.0, 10.0, [2.0, 3.0]]
    assert [g.item() for g in ml.grad(ops.sum([a, b]), [a, b])] == [1, 1]
    assert [g.item() for g in ml.grad((v * [a, b]).sum(), [a, b])] == [1, 10]
    assert [g.item() for g in ml.grad(((a, b) @ v), [a, b])] == [1, 10]
    nested = ml.Tensor([[a, 1.0], [2, b], v])  # tensors, numbers and rows
    assert nested.data.tolist() == [[2, 1], [2, 3], [1, 10]]
    assert [g.tolist() for g in ml.grad((nested * nested).sum(), [a, b, v])] == [4, 6, [2, 20]]


@given(data=st.data())
def test_drawn_containers_are_numpys(data):
    """A tree of lists and tuples with tensors, arrays and numbers as its leaves: NumPy's array, and every gradient."""
    depth = data.draw(st.integers(1, 3))
    leaves = []

    def tree(level):
        if level == depth:
            value = data.draw(st.integers(-8, 8)) / 4
            kind = data.draw(st.sampled_from(("tensor", "tensor", "number", "array", "computed")))
            if kind in ("number", "array"):
                return (value, value) if kind == "number" else (np.asarray(value), value)
            leaf = ml.Tensor(value, requires_grad=True)
            leaves.append(leaf)
            return (leaf if kind == "tensor" else leaf * 1.0), value
        width = 2
        parts = [tree(level + 1) for _ in range(width)]
        made = data.draw(st.sampled_from((list, tuple)))
        return made(p for p, _ in parts), [v for _, v in parts]

    items, values = tree(0)
    t = ml.Tensor(items)
    np.testing.assert_array_equal(t.data, np.array(values))
    if leaves:
        weights = np.arange(1.0, t.size + 1).reshape(t.shape)
        gradients = ml.grad((t * weights).sum(), leaves)
        assert sorted(float(g) for g in gradients) == sorted(set(float(g) for g in gradients)), (
            "each leaf its own place"
        )
        assert all(g in weights for g in gradients)


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_tuple_is_an_array_as_a_list_is(kind):
    assert ops.add(kind((1, 2)), kind((3, 4))).data.tolist() == [4, 6]
    assert ops.softmax(kind(([1.0, 2.0], [3.0, 4.0]))).shape == (2, 2)
    assert ops.matmul(kind((1.0, 2.0)), kind((3.0, 4.0))).item() == 11
    x = ml.Tensor(np.arange(6.0).reshape(1, 2, 3), requires_grad=True)
    assert (x * kind((1, 2, 3))).data.tolist() == (x.data * [1, 2, 3]).tolist()
    for y, shape in [
        (x.sum(kind((0, 1))), (3,)),
        (x.transpose(kind((2, 0, 1))), (3, 1, 2)),
        (x.reshape(kind((3, 2))), (3, 2)),
    ]:
        assert y.shape == shape and y.requires_grad  # an axis or a shape is no array
    assert ops.where(kind((True, False, True)), x, kind((0, 0, 0))).shape == (1, 2, 3)
    assert ops.cross_entropy(x, kind(((0, 1),))).requires_grad and ops.embedding(x[0], kind((0, 1))).shape == (2, 3)


def test_rows_that_do_not_fit_are_refused():
    a = ml.Tensor([1.0, 2.0], requires_grad=True)
    for items in ([a, 1.0], [a, [1.0, 2.0, 3.0]], [[1.0, 2.0], [3.0]], [a, "b"]):
        with pytest.raises((ValueError, TypeError), match=r"^Tensor: "):
            ml.Tensor(items)
        with pytest.raises((ValueError, TypeError), match=r"^exp: "):
            ops.exp(items)


def test_keywords_and_pytorchs_names_for_options():
    x = ml.Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    assert ops.sum(x=x, dim=1, keepdim=True).shape == (2, 1) and x.mean(dim=0).shape == (3,)
    assert x.softmax(dim=0).data.sum(0).tolist() == pytest.approx([1, 1, 1])
    assert ops.concatenate([x, x], dim=1).shape == (2, 6) and ops.stack([x, x], 1).shape == (2, 2, 3)
    assert x.clip(min=1, max=3).data.tolist() == x.data.clip(1, 3).tolist()
    with pytest.raises(TypeError, match=r"^max: dim= gives values and their places in PyTorch; here, axis= the values"):
        x.max(dim=1)
    with pytest.raises(TypeError, match=r"^sum: .*unexpected keyword argument 'keep'"):
        x.sum(keep=True)
    with pytest.raises(TypeError, match=r"^concatenate: got 3 arguments"):
        ops.concatenate([x, x], 0, 7)
    eps = ml.Tensor(1e-5, requires_grad=True)
    with pytest.raises(TypeError, match=r"layer_norm has no derivative in its argument 3; detach it"):
        ops.layer_norm(x, np.ones(3), eps=eps).sum().backward()
    assert ops.layer_norm(x, np.ones(3), eps=ml.Tensor(1e-5)).requires_grad


# ---- precision

NUMBERS = {
    "2": 2, "2.5": 2.5, "True": True, "np.float64": np.float64(2.5), "np.sqrt": np.sqrt(2),
    "np.float32": np.float32(2.5), "np.int64": np.int64(2), "np.bool": np.True_,
    "np.longdouble": np.longdouble(2.5), "array float64": np.array(2.5),
    "array int": np.array(2), "Tensor float64": ml.Tensor(2.5), "Tensor int": ml.Tensor(2),
    "integers": np.array([1, 2, 3]), "booleans": np.array([True, True, True]), "integer list": [1, 2, 3],
    "list": [1.5, 2.5, 3.5], "tuple": (1.5, 2, 3.5),
    "integer Tensor": ml.Tensor([1, 2, 3]), "uint8": np.array([1, 2, 3], np.uint8), "range": range(1, 4),
}  # fmt: skip
MIX = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b,
    "**": lambda a, b: a**b, "maximum": np.maximum, "where": lambda a, b: ops.where([True, False, True], a, b),
    "ops.multiply": lambda a, b: ops.multiply(a, b),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_raises_no_precision(number, dtype):
    data, other = np.array([1.0, 2.0, 4.0], dtype), NUMBERS[number]
    plain = other.data if isinstance(other, ml.Tensor) else np.asarray(other, "float64")
    for name, mix in MIX.items():
        for swap in (False, True):
            x = ml.Tensor(data, requires_grad=True)
            y = mix(other, x) if swap else mix(x, other)
            assert isinstance(y, ml.Tensor) and y.dtype == dtype, name
            wide = data.astype("float64")
            expected = mix(ml.Tensor(plain), ml.Tensor(wide)) if swap else mix(ml.Tensor(wide), ml.Tensor(plain))
            np.testing.assert_allclose(y.data, expected.data, rtol=2e-3 if dtype == "float16" else 1e-6)
            assert ml.grad(y.sum(), [x])[0].dtype == dtype


def test_arrays_of_their_own_precision_do_raise_it():
    x = ml.Tensor(np.float32([1, 2]), requires_grad=True)
    y = x * np.array([1.0, 2.0])
    assert y.dtype == np.float64 and ml.grad(y.sum(), [x])[0].dtype == np.float32
    assert (ml.Tensor(np.float32(2)) * np.array(2.0)).dtype == np.float64  # two of shape (): NumPy's and PyTorch's rule
    assert (ml.Tensor(np.float32(2)) * np.float64(2)).dtype == np.float32  # a number is a number
    assert (x * 1j).dtype == np.complex64 and (x * np.array(1j)).dtype == np.complex64
    assert ops.add(np.float32(1), np.float32(2)).dtype == np.float32
    assert ops.concatenate([x, np.array([1, 2])]).dtype == np.float32
    assert (ml.Tensor([1, 2]) / 2).dtype == np.float64 and (ml.Tensor([1, 2]) * 2).dtype == np.int64


def test_a_model_in_float32_stays_so():
    model = ml.GPT(ml.GPTConfig(11, 4, 1, 1, 8), rng=0)
    loss = model.loss(np.array([[1, 2, 3]]), np.array([[2, 3, 4]])) * np.float64(0.5) + np.sqrt(2) + np.array(1)
    assert loss.dtype == np.float32
    assert {g.dtype for g in ml.grad(loss, model.parameters())} == {np.dtype("float32")}


# ---- odd arguments

ODD = {
    "None": None, "'abc'": "abc", "b'abc'": b"abc", "''": "", "5": 5, "-1": -1, "2.5": 2.5, "True": True, "1j": 1j,
    "nan": float("nan"), "10**30": 10**30, "[]": [], "()": (), "{}": {}, "set": {1, 2}, "object": object(), "type": int,
    "[1, 2]": [1, 2], "((1, 2), (3, 4))": ((1, 2), (3, 4)), "ragged": [[1, 2], [3]], "words": ["a", "b"],
    "[None]": [None], "array of words": np.array(["a"]), "array of objects": np.array([None, 1]),
    "empty array": np.zeros((0, 3)), "0-d array": np.array(2.0), "dates": np.array(["2020-01-01"], "M8[D]"),
    "date": datetime.date(2020, 1, 1), "Fraction": fractions.Fraction(1, 2), "Decimal": decimal.Decimal("0.5"),
    "matrix": np.matrix([[1.0, 2.0], [3.0, 4.0]]), "masked": np.ma.masked_array([1.0, 2.0], [False, True]),
    "unmasked": np.ma.masked_array([1.0, 2.0], [False, False]), "structured": np.zeros(2, [("a", float)]),
    "range": range(3), "function": len, "lambda": lambda: 0, "Tensor": ml.Tensor([1.0, 2.0]), "class": ml.Tensor,
    "np.float64": np.float64(2), "np.str": np.str_("a"), "generator": (i for i in range(3)), "slice": slice(0, 1),
    "...": ..., "NotImplemented": NotImplemented, "module": np, "complex array": np.array([1j, 2.0]),
}  # fmt: skip


def arguments(name):
    """The arguments of the primitive's example call."""
    example, seen = EXAMPLES[name], []

    def spy(*args, **kwargs):
        seen.append((args, kwargs))
        return PRIMITIVES[name](*args, **kwargs)

    example.function(spy)(*(ml.Tensor(x, requires_grad=True) for x in example.inputs(np.random.default_rng(0))))
    return seen[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PRIMITIVES)
def test_every_odd_argument_gives_what_is_right_or_one_line_that_names_the_primitive(name):
    """Each argument of the example call replaced by each odd thing, and each odd thing given alone."""
    args, kwargs = arguments(name)
    calls = [
        ((*args[:place], odd, *args[place + 1 :]), kwargs, odd) for place in range(len(args)) for odd in ODD.values()
    ]
    calls += [((odd,), {}, odd) for odd in ODD.values()]
    calls += [(args, {**kwargs, key: odd}, odd) for key in kwargs for odd in ODD.values()]
    for given_args, given_kwargs, odd in calls:
        with np.errstate(all="ignore"):
            try:
                y = PRIMITIVES[name](*given_args, **given_kwargs)
            except (TypeError, ValueError, IndexError) as error:
                assert re.match(rf"^{name}: [^\n]+$", str(error)), (odd, error)
                continue
            assert isinstance(y, ml.Tensor) and y.dtype.kind in "biufc", (name, odd)
            if y.requires_grad and y.dtype.kind == "f":
                try:
                    y.sum().backward()
                except (TypeError, ValueError) as error:
                    assert re.match(rf"^backward: {name}[^\n]+$", str(error)), (odd, error)


@pytest.mark.parametrize("odd", ["masked", "matrix", "words", "ragged", "Fraction", "dates", "[None]"])
@pytest.mark.parametrize("name", ["add", "multiply", "matmul", "sum", "softmax", "linear", "concatenate"])
def test_what_would_be_silently_wrong_is_never_taken(name, odd):
    x = ml.Tensor(np.ones((2, 2)), requires_grad=True)
    args = ([x, ODD[odd]],) if name == "concatenate" else (ODD[odd],) if name in ("sum", "softmax") else (x, ODD[odd])
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: "):
        PRIMITIVES[name](*args)
    with pytest.raises((TypeError, ValueError), match=r"^Tensor: "):
        ml.Tensor(ODD[odd])


def test_a_number_is_an_array_where_one_is_needed():
    assert ops.sum(5).item() == 5 and ops.max(2.5).item() == 2.5 and ops.softmax([3.0]).item() == 1
    x = ml.Tensor(np.ones((2, 3)), requires_grad=True)
    for product in (lambda: x @ 2, lambda: 2 @ x, lambda: np.array(2.0) @ x):
        with pytest.raises(ValueError, match=r"^matmul: .*a number is no matrix; multiply with \*"):
            product()
    with pytest.raises(TypeError, match=r"^softmax: argument 'x' is None \(NoneType\), expected an array or a number"):
        ops.softmax(None)
    with pytest.raises(TypeError, match=r"^linear: argument 'weight' is None"):
        ops.linear(x, None)
    assert ops.linear(x, np.ones((4, 3)), None).shape == (2, 4)


def test_other_libraries_arrays_are_taken_by_their_values():
    class Elsewhere:
        def __array__(self, dtype=None, copy=None):
            return np.array([1.0, 2.0])

    x = ml.Tensor([3.0, 4.0], requires_grad=True)
    assert (x * Elsewhere()).data.tolist() == [3, 8] and ml.grad((x * Elsewhere()).sum(), [x])[0].tolist() == [1, 2]


def test_options_are_arguments_of_primitives():
    """A name in OPTIONS that no primitive has, or an array's name among them, would be a mistake."""
    codes = [inspect.unwrap(p).__code__ for p in PRIMITIVES.values()]
    names = {n for code in codes for n in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]}
    assert names >= OPTIONS
    arrays = {
        "x",
        "a",
        "b",
        "weight",
        "bias",
        "q",
        "k",
        "v",
        "logits",
        "targets",
        "tokens",
        "condition",
        "lora_A",
        "lora_B",
    }
    assert not OPTIONS & arrays


# ---- a user's primitive


def test_a_primitive_that_returns_too_little_is_named():
    cases = {
        "bare": lambda x: x * 2, "three": lambda x: (x, (lambda g: g,), 1), "rows": lambda x: np.stack([x, x]),
        "no vjps": lambda x: (x * 2, None), "array for vjps": lambda x: (x * 2, x),
        "no output": lambda x: (None, (lambda g: g,)),
        "word": lambda x: ("y", (lambda g: g,)), "nothing": lambda x: None, "number": lambda x: 3.0,
    }  # fmt: skip
    for function in cases.values():
        function.__name__ = "mine"
        for x in (ml.Tensor(np.ones((2, 2)), requires_grad=True), np.ones((2, 2))):
            with pytest.raises(TypeError, match=r"^mine: the primitive returned .*expected [^\n]+$"):
                primitive(function)(x)


def test_a_list_of_vjps_is_as_good_as_a_tuple():
    @primitive
    def mine(a, b):
        return a * b, [lambda g: g * b, lambda g: g * a]

    check_gradients(mine, [np.ones(3), np.arange(3.0)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mine(ml.Tensor(2.0, True), 3.0).requires_grad
