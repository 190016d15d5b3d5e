"""Elementary primitives: values against NumPy, gradients against two computations that know no calculus rule."""

import itertools

import numpy as np
import pytest
import scipy.special
from drawing import array, broadcasting, check_gradients, shapes
from hypothesis import assume, given
from hypothesis import strategies as st

import minilora as ml
from minilora import ops
from minilora.autograd.examples import EXAMPLES

UNARY = {  # name -> (NumPy's function, needs positive entries)
    "negate": (np.negative, False),
    "exp": (np.exp, False),
    "log": (np.log, True),
    "sqrt": (np.sqrt, True),
    "tanh": (np.tanh, False),
    "relu": (lambda x: np.maximum(x, 0), False),
    "abs": (np.abs, False),
    "sin": (np.sin, False),
    "cos": (np.cos, False),
    "log1p": (np.log1p, True),
    "expm1": (np.expm1, False),
    "sigmoid": (scipy.special.expit, False),
}
BINARY = {
    "add": (np.add, False),
    "subtract": (np.subtract, False),
    "multiply": (np.multiply, False),
    "divide": (np.divide, True),
    "power": (np.power, True),
    "maximum": (np.maximum, False),
    "minimum": (np.minimum, False),
}
CORNERS = ("maximum", "minimum")


@pytest.mark.parametrize("name", UNARY)
@given(data=st.data())
def test_unary(name, data):
    reference, positive = UNARY[name]
    x = data.draw(array(shapes(), positive))
    primitive = ops.PRIMITIVES[name]
    np.testing.assert_allclose(primitive(x).data, reference(x), rtol=1e-15)
    check_gradients(primitive, [x])


@pytest.mark.parametrize("name", BINARY)
@given(data=st.data())
def test_binary_with_broadcasting(name, data):
    reference, positive = BINARY[name]
    a, b = data.draw(broadcasting(2, positive))
    b = b + 1 / 80 if name in CORNERS else b  # no ties
    primitive = ops.PRIMITIVES[name]
    np.testing.assert_allclose(primitive(a, b).data, reference(a, b), rtol=1e-15)
    check_gradients(primitive, [a, b])


@given(array(shapes()), st.sampled_from([1, 2, 3, -1, -2]))
def test_power_of_a_negative_number_with_a_whole_exponent(x, exponent):
    np.testing.assert_allclose((ml.Tensor(x) ** exponent).data, x ** float(exponent), rtol=1e-14)
    check_gradients(lambda x: x**exponent, [x])


@pytest.mark.parametrize("exponent", [0, 1, 2, 3])
def test_power_at_zero(exponent):
    x = ml.Tensor([0.0, 2.0], requires_grad=True)
    with np.errstate(all="raise"):
        g = ml.grad((x**exponent).sum(), [x])[0]
    assert g.tolist() == [[0, 0], [1, 1], [0, 4], [0, 12]][exponent]


def test_zero_to_a_power_is_constant():
    b = ml.Tensor([1.0, 2.5], requires_grad=True)
    with np.errstate(all="raise"):
        assert ml.grad((0.0**b).sum(), [b])[0].tolist() == [0, 0]
        assert ml.grad((np.zeros(2) ** b).sum(), [b])[0].tolist() == [0, 0]


@given(broadcasting(3), st.booleans(), st.booleans())
def test_clip(abc, with_low, with_high):
    x, low, high = abc
    bounds = [low - 1 / 80 if with_low else None, high + 1 / 80 if with_high else None]  # no ties
    np.testing.assert_array_equal(ops.clip(x, *bounds).data, np.clip(x, *bounds) if with_low or with_high else x)
    given = [bound for bound in bounds if bound is not None]

    def clip(x, *given):
        given = list(given)
        return ops.clip(x, given.pop(0) if with_low else None, given.pop() if with_high else None)

    check_gradients(clip, [x, *given])


def test_clip_at_and_beyond_its_bounds():
    """At a bound the entry is still its own; where the bounds cross, the upper one holds, as in NumPy and PyTorch."""
    x = ml.Tensor([-2.0, -1.0, 0.0, 1.0, 2.0, np.nan], requires_grad=True)
    y = ops.clip(x, -1, 1)
    assert y.data[:5].tolist() == [-1, -1, 0, 1, 1] and np.isnan(y.data[5])
    assert ml.grad(y[:5].sum(), [x])[0].tolist() == [0, 1, 1, 1, 0, 0]
    low, high = ml.Tensor(1.0, requires_grad=True), ml.Tensor(-1.0, requires_grad=True)
    y = ops.clip(0.5, low, high)
    assert y.item() == -1 and [g.item() for g in ml.grad(y, [low, high])] == [0, 1]
    assert np.isnan(ops.clip(0.5, np.nan).item()) and np.isnan(ops.clip(0.5, None, np.nan).item())


def test_equal_entries_share_the_cotangent_of_their_maximum():
    a, b = ml.Tensor([1.0, 2.0, 3.0], requires_grad=True), ml.Tensor([3.0, 2.0, 1.0], requires_grad=True)
    for choice, expected in [(ops.maximum, [[0, 0.5, 1], [1, 0.5, 0]]), (ops.minimum, [[1, 0.5, 0], [0, 0.5, 1]])]:
        assert [g.tolist() for g in ml.grad(choice(a, b).sum(), [a, b])] == expected


@pytest.mark.parametrize("choice", [ops.maximum, ops.minimum])
def test_the_maximum_with_what_is_not_a_number_is_none(choice):
    assert np.isnan(choice([np.nan, 1.0, np.nan], [1.0, np.nan, np.nan]).data).all()


def test_relu_of_infinities_and_of_no_number():
    """Zeros without a sign, as PyTorch's; what is no number stays so, and lets the cotangent through to be seen."""
    x = ml.Tensor([-np.inf, -1.0, -0.0, 0.0, np.inf, np.nan], requires_grad=True)
    y = ops.relu(x)
    np.testing.assert_array_equal(y.data, [0, 0, 0, 0, np.inf, np.nan])
    assert not np.signbit(y.data[[0, 1, 3]]).any()
    assert ml.grad(y, [x], np.ones(6))[0].tolist() == [0, 0, 0, 0, 1, 1]


@given(broadcasting(3))
def test_where(abc):
    condition, a, b = abc
    np.testing.assert_array_equal(ops.where(condition > 0, a, b).data, np.where(condition > 0, a, b))
    check_gradients(lambda a, b: ops.where(condition > 0, a, b), [a, b])


def test_where_takes_a_comparison_of_tensors_and_numbers():
    x = ml.Tensor([-1.0, 2.0, 3.0], requires_grad=True)
    y = ops.where(x > 0, x, 0.0)
    assert y.data.tolist() == [0.0, 2.0, 3.0]
    assert ml.grad(y.sum(), [x])[0].tolist() == [0.0, 1.0, 1.0]


@given(broadcasting(2, positive=True))
def test_an_input_used_twice_and_mixed_with_constants(ab):
    a, b = ab
    assume(a.size and b.size)
    check_gradients(lambda a, b: (2 - a) * b / (a * a + 1) + (b**2.0) * a - np.float64(3) * b, [a, b])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_dtype_that_goes_in_comes_out(name, dtype):
    example = EXAMPLES[name]
    tensors = [ml.Tensor(x.astype(dtype), requires_grad=True) for x in example.inputs(np.random.default_rng(0))]
    y = example.function(ops.PRIMITIVES[name])(*tensors)
    assert y.dtype == dtype
    assert [g.dtype for g in ml.grad(y, tensors, np.ones(y.shape))] == [dtype] * len(tensors)
    assert [g.shape for g in ml.grad(example.function(ops.PRIMITIVES[name])(*tensors).sum(), tensors)] == [
        x.shape for x in tensors
    ]


@pytest.mark.parametrize("shape", [(), (1,), (2, 0), (2, 3)])
@pytest.mark.parametrize(
    "operation", [lambda x: 2 * x, lambda x: x + 1.5, lambda x: 2**x, lambda x: x**2, lambda x: 1 / x]
)
def test_python_numbers_do_not_widen_float32(operation, shape):
    x = ml.Tensor(np.ones(shape, dtype=np.float32), requires_grad=True)
    y = operation(x)
    assert y.dtype == np.float32
    assert ml.grad(y.sum(), [x])[0].dtype == np.float32


def test_float32_gradients_agree_with_float64():
    for name, example in EXAMPLES.items():
        arrays = example.inputs(np.random.default_rng(2))
        both = []
        for dtype in ("float32", "float64"):
            tensors = [ml.Tensor(x.astype(dtype), requires_grad=True) for x in arrays]
            y = example.function(ops.PRIMITIVES[name])(*tensors)
            both.append(ml.grad(y, tensors, np.cos(np.arange(y.size)).reshape(y.shape)))
        for g, h in zip(*both, strict=True):
            np.testing.assert_allclose(g, h, rtol=2e-5, atol=2e-5, err_msg=name)


def test_plain_arrays_numbers_and_no_grad_give_a_tensor_without_a_tape():
    x = ml.Tensor([1.0, 2.0], requires_grad=True)
    with ml.no_grad():
        inside = ops.exp(x)
    for y in (ops.exp(1.0), ops.add(np.ones(2), 1), ops.exp(np.ones(2)), inside):
        assert isinstance(y, ml.Tensor) and not y.requires_grad


def test_keywords_are_as_good_as_places():
    x, w, b = (np.random.default_rng(i).standard_normal(s) for i, s in enumerate([(2, 3), (4, 3), (4,)]))
    bias = ml.Tensor(b, requires_grad=True)
    y = ops.linear(x, weight=w, bias=bias)
    np.testing.assert_array_equal(y.data, ops.linear(x, w, b).data)
    np.testing.assert_allclose(ml.grad(y.sum(), [bias])[0], np.full(4, 2.0))


F = np.zeros
WRONG_SHAPES = {  # what is called -> (the call, what its message says)
    "matmul": (lambda: ops.matmul(F((2, 3)), F((4, 5))), "matmul: (2, 3) @ (4, 5): inner dimensions 3 and 4 differ"),
    "matmul of a row": (lambda: ops.matmul(F(3), F((4, 5))), "matmul: (3,) @ (4, 5): inner dimensions 3 and 4 differ"),
    "matmul of a batch": (lambda: ops.matmul(F((2, 3, 4)), F((5, 4, 3))), ("matmul", "(2, 3, 4)", "(5, 4, 3)")),
    "matmul of a number": (lambda: ops.matmul(F(()), F((4, 5))), ("matmul", "()", "(4, 5)", "*")),
    "where": (lambda: ops.where(F(2) > 0, F(3), F((2, 4))), ("where", "(2,)", "(3,)", "(2, 4)")),
    "sum": (lambda: ops.sum(F((2, 3)), axis=2), ("sum", "(2, 3)", "axis 2")),
    "mean": (lambda: ops.mean(F((2, 3)), axis=(0, -3)), ("mean", "(2, 3)", "axis (0, -3)")),
    "mean of nothing": (lambda: ops.mean(F((2, 0))), ("mean", "(2, 0)", "no mean")),
    "max": (lambda: ops.max(F((2, 3)), axis=5), ("max", "(2, 3)", "axis 5")),
    "max of nothing": (lambda: ops.max(F((0,))), ("max", "(0,)", "no maximum")),
    "axis twice": (lambda: ops.sum(F((2, 3)), axis=(0, 0)), ("sum", "(2, 3)")),
    "reshape": (lambda: ops.reshape(F((2, 3)), (4, 2)), ("reshape", "(2, 3)", "(4, 2)")),
    "reshape with two gaps": (lambda: ops.reshape(F((2, 3)), (-1, -1)), ("reshape", "(2, 3)")),
    "transpose": (lambda: ops.transpose(F((2, 3)), (0, 2)), ("transpose", "(2, 3)", "(0, 2)")),
    "transpose of too few": (lambda: ops.transpose(F((2, 3)), (0,)), ("transpose", "(2, 3)", "(0,)")),
    "transpose of the same": (lambda: ops.transpose(F((2, 3)), (1, 1)), ("transpose", "(2, 3)", "(1, 1)")),
    "concatenate": (lambda: ops.concatenate([F((2, 3)), F((3, 4))], 1), ("concatenate", "(2, 3)", "(3, 4)")),
    "concatenate along none": (lambda: ops.concatenate([F((2, 3)), F((2, 4))], 2), ("concatenate", "(2, 3)", "(2, 4)")),
    "concatenate of nothing": (lambda: ops.concatenate([]), ("concatenate", "no arrays")),
    "softmax": (lambda: ops.softmax(F((2, 3)), axis=2), ("softmax", "(2, 3)", "2")),
    "log_softmax": (lambda: ops.log_softmax(F((2, 3)), axis=-3), ("log_softmax", "(2, 3)", "-3")),
    "linear": (lambda: ops.linear(F((2, 3)), F((5, 4))), ("linear", "(2, 3)", "(5, 4)", "d_in = 4")),
    "linear of a number": (lambda: ops.linear(F(()), F((5, 4))), ("linear", "()", "(5, 4)")),
    "linear's weight": (lambda: ops.linear(F((2, 3)), F(3)), ("linear", "(3,)", "(d_out, d_in)")),
    "linear's bias": (lambda: ops.linear(F((2, 3)), F((5, 3)), F(4)), ("linear", "(4,)", "(5,)")),
    "lora_linear": (
        lambda: ops.lora_linear(F((2, 3)), F((5, 3)), None, F((2, 4)), F((5, 2)), 1.0),
        ("lora_linear", "A (2, 4)", "B (5, 2)", "W (5, 3)"),
    ),
    "lora_linear's ranks": (
        lambda: ops.lora_linear(F((2, 3)), F((5, 3)), None, F((2, 3)), F((5, 1)), 1.0),
        ("lora_linear", "A (2, 3)", "B (5, 1)"),
    ),
    "lora_linear's x": (
        lambda: ops.lora_linear(F((2, 4)), F((5, 3)), None, F((2, 3)), F((5, 2)), 1.0),
        ("lora_linear", "(2, 4)", "(5, 3)"),
    ),
    "layer_norm": (lambda: ops.layer_norm(F((2, 3)), F(4), F(4)), ("layer_norm", "(2, 3)", "(4,)")),
    "layer_norm of ones": (lambda: ops.layer_norm(F((2, 1)), F(4), F(4)), ("layer_norm", "(2, 1)", "(4,)")),
    "layer_norm's bias": (lambda: ops.layer_norm(F((2, 3)), F(3), F(4)), ("layer_norm", "(2, 3)", "(4,)")),
    "rms_norm": (lambda: ops.rms_norm(F((2, 3)), F(4)), ("rms_norm", "(2, 3)", "(4,)")),
    "rms_norm of ones": (lambda: ops.rms_norm(F((2, 1)), F(4)), ("rms_norm", "(2, 1)", "(4,)")),
    "embedding": (lambda: ops.embedding(F(4), np.array([1])), ("embedding", "(4,)")),
    "layer_norm of nothing": (lambda: ops.layer_norm(F((2, 0)), F(0)), ("layer_norm", "(2, 0)", "no features")),
    "rms_norm of a number": (lambda: ops.rms_norm(F(()), F(())), ("rms_norm", "()", "no features")),
    "layer_norm's eps": (lambda: ops.layer_norm(F((2, 3)), F(3), None, -1.0), ("layer_norm", "eps = -1.0")),
    "rms_norm's eps": (lambda: ops.rms_norm(F((2, 3)), F(3), np.nan), ("rms_norm", "eps = nan")),
    "no heads": (lambda: ops.split_heads(F((1, 2, 4)), 0), ("split_heads", "(1, 2, 4)", "0 heads")),
    "fewer heads": (lambda: ops.split_heads(F((1, 2, 4)), -2), ("split_heads", "(1, 2, 4)", "-2 heads")),
    "concatenate along no axis": (lambda: ops.concatenate([F(2), F(2)], None), ("concatenate", "axis=None", "flatten")),
    "stack": (lambda: ops.stack([F(2), F(3)]), ("stack", "(2,)", "(3,)")),
    "stack of nothing": (lambda: ops.stack([]), ("stack", "no arrays")),
    "broadcast_to": (lambda: ops.broadcast_to(F(3), (2, 2)), ("broadcast_to", "(3,)", "(2, 2)")),
    "squeeze": (lambda: ops.squeeze(F((2, 1)), 0), ("squeeze", "(2, 1)", "0")),
    "expand_dims": (lambda: ops.expand_dims(F(3), 7), ("expand_dims", "(3,)", "7")),
    "swapaxes": (lambda: ops.swapaxes(F((2, 3)), 0, 2), ("swapaxes", "(2, 3)", "2")),
    "repeat": (lambda: ops.repeat(F((2, 3)), [1, 2, 3], 0), ("repeat", "(2, 3)", "[1, 2, 3]")),
    "attention": (lambda: ops.attention(F((2, 3)), F((2, 4)), F((2, 4))), ("attention", "(2, 3)", "(2, 4)")),
    "attention's v": (lambda: ops.attention(F((2, 3)), F((2, 3)), F((5, 3))), ("attention", "(2, 3)", "(5, 3)")),
    "attention's batch": (
        lambda: ops.attention(F((2, 4, 3)), F((3, 4, 3)), F((3, 4, 3))),
        ("attention", "(2, 4, 3)", "(3, 4, 3)"),
    ),
    "attention of vectors": (lambda: ops.attention(F(3), F(3), F(3)), ("attention", "(3,)")),
    "attention to the future": (lambda: ops.attention(F((3, 2)), F((1, 2)), F((1, 2))), ("attention", "3 queries")),
    "attention's mask": (
        lambda: ops.attention(F((2, 3)), F((2, 3)), F((2, 3)), F((4, 4))),
        ("attention", "(2, 3)", "(4, 4)"),
    ),
    "cross_entropy": (
        lambda: ops.cross_entropy(F((2, 3, 5)), np.zeros((2, 4), int)),
        ("cross_entropy", "(2, 3, 5)", "(2, 4)"),
    ),
    "cross_entropy of nothing": (
        lambda: ops.cross_entropy(F((0, 5)), np.zeros(0, int)),
        ("cross_entropy", "(0, 5)", "no mean"),
    ),
    "cross_entropy of a number": (lambda: ops.cross_entropy(F(()), np.zeros((), int)), ("cross_entropy", "()")),
}


@pytest.mark.parametrize("case", WRONG_SHAPES)
def test_shapes_that_do_not_fit(case):
    call, said = WRONG_SHAPES[case]
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    if isinstance(said, str):
        assert message == said
    else:
        assert message.startswith(f"{said[0]}: ")
        assert [part for part in said if part not in message] == [], message


@pytest.mark.parametrize("name", BINARY)
def test_shapes_that_do_not_broadcast(name):
    with pytest.raises(ValueError, match=rf"^{name}: .*\(2, 3\).*\(4, 5\)"):
        ops.PRIMITIVES[name](ml.Tensor(F((2, 3))), F((4, 5)))


def test_an_index_out_of_range():
    with pytest.raises(IndexError, match=r"^index: got \(\(2, 3\), 7\): "):
        ml.Tensor(F((2, 3)))[7]


WRONG_TOKENS = [
    (np.array([[0, 5]]), ValueError, "from 0 to 5, expected 0 to 4"),
    (np.array([[-1, 2]]), ValueError, "from -1 to 2, expected 0 to 4"),
    (np.array([[0.0, 1.0]]), TypeError, "float64, expected integers"),
    (np.array([[True, False]]), TypeError, "bool, expected integers"),
]


@pytest.mark.parametrize("tokens, error, words", WRONG_TOKENS)
def test_tokens_that_are_none(tokens, error, words):
    with pytest.raises(error, match=f"^embedding: tokens .*{words}"):
        ops.embedding(F((5, 2)), tokens)
    with pytest.raises(error, match=f"^cross_entropy: targets .*{words}"):
        ops.cross_entropy(F((1, 2, 5)), tokens)


@pytest.mark.parametrize("p", [-0.1, np.nan, 1.5])
def test_a_dropout_probability_that_is_none(p):
    with pytest.raises(ValueError, match=f"dropout: p = {p}"):
        ops.dropout(F(3), p, np.random.default_rng(0))


@pytest.mark.parametrize("rng", [0, None, "seed"])
def test_a_generator_that_is_none(rng):
    with pytest.raises(TypeError, match=rf"^dropout: rng = {rng!r}, expected a numpy.random.Generator"):
        ops.dropout(F(3), 0.5, rng)


@pytest.mark.parametrize("repeats", [1.5, "a", None])
def test_a_number_of_repeats_that_is_none(repeats):
    with pytest.raises((TypeError, ValueError), match=r"^repeat: "):
        ops.repeat(F(3), repeats)


def test_a_keyword_may_skip_what_has_a_default():
    """A tensor that comes by keyword keeps its tape."""
    x, high = ml.Tensor([0.5, 2.0], requires_grad=True), ml.Tensor(1.0, requires_grad=True)
    y = ops.clip(x, high=high)
    assert [g.tolist() for g in ml.grad(y.sum(), [x, high])] == [[1, 0], 1]
    keep = np.zeros((2, 2))
    assert not ops.attention(F((2, 3)), F((2, 3)), np.ones((2, 3)), keep=keep, causal=False).data.any()


def test_too_few_inputs_names_the_primitive():
    with pytest.raises(TypeError, match="linear"):
        ops.linear(F(3))


def test_words_are_no_numbers():
    with pytest.raises(TypeError, match="Tensor: got data of dtype <U5, expected numbers"):
        ml.Tensor("seven")


def test_the_face_lists_every_primitive():
    for name, primitive in ops.PRIMITIVES.items():
        assert getattr(ops, name) is primitive and name in ops.__all__
        assert primitive.__doc__, name
    assert len({id(p) for p in ops.PRIMITIVES.values()}) == len(ops.PRIMITIVES)
    listed = set(itertools.chain(UNARY, BINARY, ["matmul", "softmax", "attention", "lora_linear", "cross_entropy"]))
    assert listed <= set(ops.PRIMITIVES)
