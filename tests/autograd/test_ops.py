"""Elementary primitives: values against NumPy, gradients against two computations that know no calculus rule."""

import itertools

import numpy as np
import pytest
from drawing import array, batched, broadcasting, check_gradients, shapes
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

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
}
BINARY = {
    "add": (np.add, False),
    "subtract": (np.subtract, False),
    "multiply": (np.multiply, False),
    "divide": (np.divide, True),
    "power": (np.power, True),
}


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


@given(batched("(n?,k),(k,m?)->(n?,m?)"))
def test_matmul_of_vectors_matrices_and_batches(ab):
    a, b = ab
    np.testing.assert_allclose(ops.matmul(a, b).data, a @ b, rtol=1e-14, atol=1e-14)
    check_gradients(ops.matmul, [a, b])


@st.composite
def reduction(draw, least_side):
    """An array, and the options axis (None, one axis or several, negative too) and keepdims."""
    x = draw(array(shapes(least_side=least_side), distinct=True))
    axes = [st.none(), hnp.valid_tuple_axes(x.ndim)]
    if x.ndim:
        axes.append(st.integers(-x.ndim, x.ndim - 1))
    return x, {"axis": draw(st.one_of(axes)), "keepdims": draw(st.booleans())}


@pytest.mark.parametrize("name, least_side", [("sum", 0), ("mean", 1), ("max", 1)])
@given(data=st.data())
def test_reductions(name, least_side, data):
    x, options = data.draw(reduction(least_side))
    primitive = ops.PRIMITIVES[name]
    np.testing.assert_allclose(primitive(x, **options).data, getattr(np, name)(x, **options), rtol=1e-13, atol=1e-15)
    check_gradients(lambda x: primitive(x, **options), [x])


@pytest.mark.parametrize("name", ["mean", "max"])
def test_a_reduction_over_a_full_axis_beside_an_empty_one_is_empty(name):
    x = np.zeros((0, 3))
    assert ops.PRIMITIVES[name](x, axis=1).shape == (0,)
    check_gradients(lambda x: ops.PRIMITIVES[name](x, axis=1), [x])


def test_equal_maxima_share_the_cotangent():
    x = ml.Tensor([[2.0, 1.0, 2.0], [0.0, 3.0, 1.0]], requires_grad=True)
    assert ml.grad(x.max(axis=1).sum(), [x])[0].tolist() == [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]


@given(data=st.data())
def test_reshape(data):
    x = data.draw(array(shapes(least_side=1)))
    shape = data.draw(st.permutations((*x.shape, 1)))
    shape[data.draw(st.integers(0, x.ndim))] = -1
    np.testing.assert_array_equal(ops.reshape(x, tuple(shape)).data, x.reshape(shape))
    check_gradients(lambda x: ops.reshape(x, tuple(shape)), [x])


def test_reshape_of_nothing():
    check_gradients(lambda x: ops.reshape(x, (3, 0, 2)), [np.zeros((0, 5))])


@given(data=st.data())
def test_transpose(data):
    x = data.draw(array(shapes(most_dims=4, most_side=3)))
    axes = data.draw(st.none() | st.permutations(range(x.ndim)).map(tuple))
    if axes is not None:
        axes = tuple(a - x.ndim if data.draw(st.booleans()) else a for a in axes)
    np.testing.assert_array_equal(ops.transpose(x, axes).data, np.transpose(x, axes))
    check_gradients(lambda x: ops.transpose(x, axes), [x])


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_transpose_in_every_order(axes):
    """Two of the six orders are not their own inverse."""
    check_gradients(lambda x: ops.transpose(x, axes), [np.arange(24.0).reshape(2, 3, 4)])
    check_gradients(lambda x: x.transpose(*axes), [np.arange(8.0).reshape(2, 2, 2)])


@given(data=st.data())
def test_index_with_slices_integers_none_and_ellipsis(data):
    x = data.draw(array(shapes()))
    key = data.draw(hnp.basic_indices(x.shape, allow_newaxis=True))
    np.testing.assert_array_equal(ops.index(x, key).data, x[key])
    check_gradients(lambda x: x[key], [x])


@given(data=st.data())
def test_index_with_integer_arrays_that_repeat(data):
    x = data.draw(array(shapes(least_dims=1, least_side=1)))
    key = data.draw(hnp.integer_array_indices(x.shape, result_shape=hnp.array_shapes(max_dims=2, max_side=5)))
    np.testing.assert_array_equal(ops.index(x, key).data, x[key])
    check_gradients(lambda x: x[key], [x])


@given(data=st.data())
def test_index_with_a_boolean_mask(data):
    x = data.draw(array(shapes(least_dims=1)))
    mask = data.draw(hnp.arrays(bool, x.shape[: data.draw(st.integers(1, x.ndim))]))
    np.testing.assert_array_equal(ops.index(x, mask).data, x[mask])
    check_gradients(lambda x: x[mask], [x])


MIXED_KEYS = [
    (slice(None, None, -1), np.array([2, 0, 2, 2])),
    (None, np.array([[1, 1], [0, 1]]), ..., slice(0, 4, 2)),
    (np.array([True, False, True]), 1),
    (..., np.array([3, 3, 0]), None),
    ([0, 0, 2], [1, 1, 1]),
    np.int64(1),
    ml.Tensor(np.array([2, 2, 1])),
]


@pytest.mark.parametrize("key", MIXED_KEYS, ids=range(len(MIXED_KEYS)))
def test_index_with_mixed_keys(key):
    x = np.random.default_rng(0).standard_normal((3, 4, 5))
    np.testing.assert_array_equal(ops.index(x, key).data, x[ml.to_numpy(key) if isinstance(key, ml.Tensor) else key])
    check_gradients(lambda x: x[key], [x])


@given(data=st.data())
def test_concatenate_along_any_axis(data):
    shape = data.draw(shapes(least_dims=1, most_side=3))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    lengths = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    parts = []
    for length in lengths:
        part = list(shape)
        part[axis] = length
        parts.append(data.draw(array(tuple(part))))
    np.testing.assert_array_equal(ops.concatenate(parts, axis=axis).data, np.concatenate(parts, axis=axis))
    check_gradients(lambda *parts: ops.concatenate(parts, axis=axis), parts)


def test_concatenate_takes_a_list_with_the_axis_second_or_loose_arrays():
    a, b = np.ones((2, 1)), np.zeros((2, 3))
    expected = np.concatenate([a, b], 1)
    for y in (ops.concatenate([a, b], 1), ops.concatenate((a, b), axis=1), ops.concatenate(a, b, axis=1)):
        np.testing.assert_array_equal(y.data, expected)


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


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5])
def test_a_dropout_probability_that_is_none(p):
    with pytest.raises(ValueError, match=f"dropout: p = {p}"):
        ops.dropout(F(3), p, np.random.default_rng(0))


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
