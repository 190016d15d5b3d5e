"""Fused primitives: equal to the composition of elementary ones, to SciPy, and right in every gradient."""

import math
import tracemalloc
import weakref

import numpy as np
import pytest
import scipy.special
from drawing import array, check_gradients, check_same, shapes, spread
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minilora as ml
from minilora import ops
from minilora.autograd import parts, versions

# ---- pointwise


def gelu_composed(x):
    return 0.5 * x * (1 + ops.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def silu_composed(x):
    return x / (1 + ops.exp(-x))


POINTWISE = {"gelu": (gelu_composed, 1e-12), "silu": (silu_composed, 1e-12)}


@pytest.mark.parametrize("name", POINTWISE)
@given(x=array(shapes()))
def test_pointwise(name, x):
    composed, tolerance = POINTWISE[name]
    check_same(ops.PRIMITIVES[name], composed, [x], tolerance)
    check_gradients(ops.PRIMITIVES[name], [x])


def test_gelu_is_the_tanh_form_of_the_normal_distribution_function():
    x = np.linspace(-6, 6, 241)
    exact = x * scipy.special.ndtr(x)
    difference = np.abs(ops.gelu(x).data - exact).max()
    assert 1e-5 < difference < 5e-4  # the tanh form is near the exact one, and is not it


def test_silu_is_x_times_scipys_logistic_function_without_overflow():
    x = np.array([-1000.0, -20.0, -0.5, 0.0, 0.5, 20.0, 1000.0])
    with np.errstate(all="raise", under="ignore"):
        y = ops.silu(x).data
    np.testing.assert_allclose(y, x * scipy.special.expit(x), rtol=1e-6, atol=1e-14)


FAR = np.array([-1e300, -1e15, -1e3, -100.0, -40.0, -17.0, -9.0, -5.0, 0.0, 5.0, 17.0, 100.0, 1e15, 1e300])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", ["gelu", "silu", "sigmoid"])
def test_far_from_zero_every_digit_is_right(name, dtype):
    """Beside SciPy's logistic function in float64: relative to the value itself, however small that is."""
    with np.errstate(over="ignore"):
        x = FAR.astype(dtype)
    x = x[np.isfinite(x)]
    wide = x.astype(np.float64)
    near = wide.clip(-50, 50)
    u = {"gelu": 2 * math.sqrt(2 / math.pi) * (near + 0.044715 * near**3)}.get(name, wide)
    times_du = {"gelu": 2 * math.sqrt(2 / math.pi) * (near + 3 * 0.044715 * near**3)}.get(name, wide)
    s, rest = scipy.special.expit(u), scipy.special.expit(-u)
    value = s if name == "sigmoid" else wide * s
    slope = s * rest if name == "sigmoid" else s + s * rest * times_du.clip(-1e4, 1e4)
    tensor = ml.Tensor(x, requires_grad=True)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        y = ops.PRIMITIVES[name](tensor)
        g = ml.grad(y, [tensor], np.ones(x.shape, dtype))[0]
    info = np.finfo(dtype)
    for ours, exact in [(y.data, value), (g, slope)]:
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours.astype(np.float64), exact, rtol=64 * info.eps, atol=float(info.tiny))


@pytest.mark.parametrize("far", [1, 1e30])
def test_gelu_keeps_its_slope_alone_in_the_place_of_x(far, monkeypatch):
    """In stretches, and where nothing is recorded, the bits are those of all at once; a vjp asked for there has them"""
    x = np.random.default_rng(0).standard_normal((3, 35), dtype=np.float32) * np.float32(far)
    gelu = ops.gelu.__wrapped__
    y, (vjp,) = gelu(x)
    (_, slope), *others = versions.kept_arrays(vjp)
    assert slope.shape == x.shape and slope.dtype == x.dtype and not np.shares_memory(slope, x) and not others
    with ml.no_grad():
        unrecorded, (later,) = gelu(x)
    monkeypatch.setattr(parts, "SHARE", 10)
    stretched, (pull,) = gelu(x)
    for one, d in [(unrecorded, later(x)), (stretched, pull(x))]:
        np.testing.assert_array_equal(one, y)
        np.testing.assert_array_equal(d, x * slope)


# ---- softmax and its logarithm


@st.composite
def array_and_axis(draw):
    x = draw(array(shapes(least_dims=1)))
    return x, draw(st.integers(-x.ndim, x.ndim - 1))


def softmax_composed(x, axis):
    if x.size == 0:
        return ops.exp(x)  # no row to divide
    e = ops.exp(x - ops.max(x, axis=axis, keepdims=True))
    return e / ops.sum(e, axis=axis, keepdims=True)


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # the sum over an empty axis has no logarithm
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@given(drawn=array_and_axis())
def test_softmax_along_any_axis(name, drawn):
    x, axis = drawn
    primitive = ops.PRIMITIVES[name]
    check_gradients(lambda x: primitive(x, axis=axis), [x])
    if x.size:
        reference = getattr(scipy.special, name)(x, axis=axis)
        np.testing.assert_allclose(primitive(x, axis=axis).data, reference, rtol=1e-13, atol=1e-15)
        outer = ops.log if name == "log_softmax" else lambda p: p
        check_same(lambda x: primitive(x, axis=axis), lambda x: outer(softmax_composed(x, axis)), [x])


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_of_large_numbers_does_not_overflow(name):
    x = np.array([[1e4, 1e4 - 1.0, -1e4], [-1e30, 0.0, -1e30]])
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        y = ops.PRIMITIVES[name](x).data
    np.testing.assert_allclose(y, getattr(scipy.special, name)(x, axis=-1), rtol=1e-13)


# ---- cross-entropy


@st.composite
def logits_and_targets(draw):
    logits = draw(array(shapes(least_dims=1, least_side=1)))
    return logits, draw(hnp.arrays(np.int64, logits.shape[:-1], elements=st.integers(0, logits.shape[-1] - 1)))


def cross_entropy_composed(logits, targets):
    rows = ops.reshape(ops.log_softmax(logits), (-1, logits.shape[-1]))
    return -ops.mean(rows[np.arange(len(rows)), targets.reshape(-1)])


@given(logits_and_targets())
def test_cross_entropy_with_any_leading_shape(drawn):
    logits, targets = drawn
    loss = ops.cross_entropy(logits, targets)
    picked = np.take_along_axis(scipy.special.log_softmax(logits, axis=-1), targets[..., None], axis=-1)
    assert loss.item() == pytest.approx(-picked.mean(), rel=1e-13, abs=1e-15)
    check_same(lambda x: ops.cross_entropy(x, targets), lambda x: cross_entropy_composed(x, targets), [logits])
    check_gradients(lambda x: ops.cross_entropy(x, targets), [logits])


def test_cross_entropy_of_large_logits_is_finite():
    logits = ml.Tensor(np.array([[1e4, 0.0], [0.0, 1e4]]), requires_grad=True)
    loss = ops.cross_entropy(logits, np.array([0, 0]))
    assert loss.item() == 5000.0
    np.testing.assert_allclose(ml.grad(loss, [logits])[0], [[0, 0], [-0.5, 0.5]])


def test_cross_entropy_in_float32_keeps_float32s_digits():
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((64, 50)) * 5, rng.integers(0, 50, 64)
    single = ops.cross_entropy(logits.astype(np.float32), targets)
    assert single.item() == pytest.approx(ops.cross_entropy(logits, targets).item(), rel=1e-6)


@given(logits_and_targets(), st.data())
def test_rows_whose_target_is_minus_100_do_not_count(drawn, data):
    logits, targets = drawn
    counted = data.draw(hnp.arrays(bool, targets.shape))
    some = np.where(counted, targets, -100)
    if not counted.any():
        with pytest.raises(
            ValueError, match=rf"^cross_entropy: .*no rows have no mean; {targets.size} targets are -100"
        ):
            ops.cross_entropy(logits, some)
        return
    rows = lambda x: ops.cross_entropy(x[np.nonzero(counted)] if counted.ndim else x, targets[counted].reshape(-1))
    rows = rows if counted.ndim else lambda x: ops.cross_entropy(x, targets)
    check_same(lambda x: ops.cross_entropy(x, some), rows, [logits])


def test_masked_classes_have_no_probability_and_no_gradient():
    logits = ml.Tensor(np.array([[1.0, -np.inf, 2.0], [-np.inf, 0.0, -np.inf]]), requires_grad=True)
    with np.errstate(all="raise"):
        loss = ops.cross_entropy(logits, np.array([0, 1]))
        g = ml.grad(loss, [logits])[0]
    assert loss.item() == pytest.approx(math.log(1 + math.e) / 2, rel=1e-14)
    p = 1 / (1 + math.e)
    np.testing.assert_allclose(g, [[(p - 1) / 2, 0, (1 - p) / 2], [0, 0, 0]], atol=1e-16)


# ---- embedding


@given(data=st.data())
def test_embedding_with_repeated_tokens(data):
    weight = data.draw(array(hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=4)))
    tokens = hnp.arrays(np.int64, shapes(most_dims=2), elements=st.integers(0, len(weight) - 1))
    tokens = data.draw(tokens)
    np.testing.assert_array_equal(ops.embedding(weight, tokens).data, weight[tokens])
    onehot = np.eye(len(weight))[tokens]
    check_same(lambda w: ops.embedding(w, tokens), lambda w: ops.matmul(onehot, w), [weight])
    check_same(lambda w: ops.embedding(w, tokens), lambda w: w[tokens], [weight])
    check_gradients(lambda w: ops.embedding(w, tokens), [weight])


def with_two_uses(embedding):
    """A table that is the head, too: the head's cotangent is there when the table's few rows come."""
    return lambda w, tokens: (ops.linear(ops.tanh(embedding(w, tokens)), w) ** 2).sum()


@given(data=st.data())
def test_a_table_with_a_cotangent_gets_its_rows_added(data):
    weight = data.draw(array(hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=4)))
    tokens = data.draw(hnp.arrays(np.int64, shapes(most_dims=2), elements=st.integers(0, len(weight) - 1)))
    onehot = np.eye(len(weight))[tokens]
    fused = lambda w: with_two_uses(ops.embedding)(w, tokens)
    check_same(fused, lambda w: with_two_uses(lambda w, _: ops.matmul(onehot, w))(w, tokens), [weight])
    check_gradients(fused, [weight])


def test_a_few_rows_of_a_large_table_make_no_second_one():
    rng = np.random.default_rng(0)
    weight, tokens = ml.Tensor(rng.standard_normal((20_000, 16)), True), rng.integers(0, 9, 12)
    loss = with_two_uses(ops.embedding)(weight, tokens)
    tracemalloc.start()
    (found,) = ml.grad(loss, [weight])
    peak = tracemalloc.get_traced_memory()[1] - 2 * 12 * 20_000 * 8  # of the head's outputs' cotangents
    tracemalloc.stop()
    assert peak < 1.6 * weight.data.nbytes
    taken = ops.tanh(ops.embedding(weight, tokens)).detach()
    (of_head,) = ml.grad((ops.linear(taken, weight) ** 2).sum(), [weight])
    (slope,) = ml.grad((ops.linear(ops.tanh(x := ml.Tensor(weight.data[tokens], True)), weight.data) ** 2).sum(), [x])
    of_rows = np.zeros(weight.shape)
    np.add.at(of_rows, tokens, slope)
    np.testing.assert_array_equal(found, of_rows + of_head)  # bit for bit


def test_rows_are_added_to_no_array_that_others_hold():
    """The cotangent of w in w + c is that of the sum, which somebody may have asked for."""
    w, c = ml.Tensor(np.ones((3, 2)), True), ml.Tensor(np.ones((3, 2)), True)
    rows = ops.embedding(w, [0, 0]).sum()
    z = w + c
    found = ml.grad((z * z).sum() + rows, [z, c, w])
    expected = [np.full((3, 2), 4.0), np.full((3, 2), 4.0), np.array([[6.0, 6], [4, 4], [4, 4]])]
    for g, e in zip(found, expected, strict=True):
        np.testing.assert_array_equal(g, e)


def test_embedding_of_no_features():
    check_gradients(lambda w: ops.embedding(w, np.array([1, 0, 1])), [np.zeros((2, 0))])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_tokens_of_any_integer_type(dtype):
    tokens = np.array([[0, 3, 3], [1, 0, 3]], dtype=dtype)
    weight = np.random.default_rng(0).standard_normal((4, 3))
    np.testing.assert_array_equal(ops.embedding(weight, tokens).data, weight[tokens])
    check_gradients(lambda w: ops.cross_entropy(ops.embedding(w, tokens), tokens % 3), [weight])


@pytest.mark.parametrize(
    "call",
    [
        lambda x, given: ops.cross_entropy(x, given),
        lambda x, given: ops.embedding(x, given) ** 2,
        lambda x, given: ops.cross_entropy(x, given[None, :][0]),
    ],
)
def test_targets_and_tokens_are_kept_by_value(call):
    given = np.array([1, 0, -100 if call.__code__.co_names[1] == "cross_entropy" else 2])
    x = ml.Tensor(np.random.default_rng(0).standard_normal((3, 4)), requires_grad=True)
    expected = ml.grad(call(x, given).sum(), [x])[0]
    y = call(x, given).sum()
    given[:] = 2
    np.testing.assert_array_equal(ml.grad(y, [x])[0], expected)


# ---- linear and the LoRA linear


@st.composite
def linear_inputs(draw, lora=False):
    """x of one to four dimensions, W, perhaps b, and for LoRA A and B of any rank."""
    d_in, d_out, rank = (draw(st.integers(1, 4)) for _ in range(3))
    lead = draw(shapes(most_side=3))
    x, weight = draw(array((*lead, d_in))), draw(array((d_out, d_in)))
    bias = [draw(array((d_out,)))] if draw(st.booleans()) else []
    adapter = [draw(array((rank, d_in))), draw(array((d_out, rank)))] if lora else []
    return [x, weight, *bias, *adapter]


def linear_composed(x, weight, bias=None):
    y = ops.matmul(x, ops.transpose(weight))
    return y if bias is None else y + bias


@given(linear_inputs())
def test_linear(arrays):
    check_same(ops.linear, linear_composed, arrays)
    check_gradients(ops.linear, arrays)


SCALE = 0.75


def lora(x, weight, *rest):
    *bias, a, b = rest
    return ops.lora_linear(x, weight, bias[0] if bias else None, a, b, SCALE)


def lora_composed(x, weight, *rest):
    """The paper's equation 3, with the update formed as a matrix of its own: W + s B A."""
    *bias, a, b = rest
    return linear_composed(x, weight + SCALE * ops.matmul(b, a), *bias)


@given(linear_inputs(lora=True))
def test_lora_linear(arrays):
    check_same(lora, lora_composed, arrays)
    check_gradients(lora, arrays)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (3, 0), (0, 0)])
def test_linear_of_no_rows_or_no_features(shape):
    rng = np.random.default_rng(0)
    d_in = shape[-1]
    x, weight, bias, a, b = (rng.standard_normal(s) for s in (shape, (5, d_in), (5,), (2, d_in), (5, 2)))
    check_same(ops.linear, linear_composed, [x, weight, bias])
    check_same(lora, lora_composed, [x, weight, bias, a, b])
    check_same(ops.linear, linear_composed, [x, weight[:0], bias[:0]])
    assert ops.linear(x, weight[:0]).shape == (*shape[:-1], 0)


def test_lora_linear_with_b_zero_is_the_linear_layer_bit_for_bit():
    rng = np.random.default_rng(0)
    x, weight, bias, a = (rng.standard_normal(s) for s in [(3, 4), (5, 4), (5,), (2, 4)])
    y = ops.lora_linear(x, weight, bias, a, np.zeros((5, 2)), 2.0)
    np.testing.assert_array_equal(y.data, ops.linear(x, weight, bias).data)


@given(linear_inputs())
def test_linear_on_demand_is_linear(arrays):
    x, weight, *bias = arrays
    on_demand = lambda x, *bias: ops.linear_on_demand(x, weight.astype, *bias)
    check_same(on_demand, lambda x, *bias: ops.linear(x, weight, *bias), [x, *bias])
    check_gradients(on_demand, [x, *bias])


def test_linear_on_demand_makes_its_weight_for_each_pass_and_keeps_none():
    made = []

    def weight_of(dtype):
        weight = np.ones((5, 4), dtype)
        made.append(weakref.ref(weight))
        return weight

    x = ml.Tensor(np.ones((3, 4), np.float32), requires_grad=True)
    y = ops.linear_on_demand(x, weight_of)
    assert [weight() for weight in made] == [None]  # while y and its tape are alive
    np.testing.assert_array_equal(ml.grad(y.sum(), [x])[0], np.full((3, 4), 5))
    assert [weight() for weight in made] == [None, None]


def test_linear_on_demand_with_only_a_bias_to_train_makes_its_weight_once_and_lets_its_input_go():
    calls, x, b = [], np.ones((3, 4)), ml.Tensor(np.zeros(5), requires_grad=True)
    y = ops.linear_on_demand(x, lambda dtype: calls.append(dtype) or np.ones((5, 4), dtype), b)
    alive, x = weakref.ref(x), None
    assert alive() is None
    np.testing.assert_array_equal(ml.grad(y.sum(), [b])[0], np.full(5, 3))
    assert calls == [np.float64]


def test_linear_on_demand_says_what_does_not_fit():
    with pytest.raises(ValueError, match=r"linear_on_demand: x \(2, 3\) does not fit W \(5, 4\)"):
        ops.linear_on_demand(np.ones((2, 3)), np.ones((5, 4)).astype)


# ---- normalisation

FEATURES = shapes(least_dims=1, least_side=1)
EPS = 1e-5


def normalised(x, eps, centre):
    centred = x - ops.mean(x, axis=-1, keepdims=True) if centre else x
    return centred / ops.sqrt(ops.mean(centred * centred, axis=-1, keepdims=True) + eps)


def layer_norm_composed(x, weight, bias=None):
    y = normalised(x, EPS, centre=True) * weight
    return y if bias is None else y + bias


def rms_norm_composed(x, weight):
    return normalised(x, 1e-6, centre=False) * weight


@given(data=st.data())
def test_layer_norm_with_and_without_bias(data):
    x = data.draw(spread(FEATURES))
    scales = [data.draw(array(x.shape[-1:])) for _ in range(data.draw(st.integers(1, 2)))]
    check_same(ops.layer_norm, layer_norm_composed, [x, *scales], tolerance=1e-11)
    check_gradients(ops.layer_norm, [x, *scales])


@given(data=st.data())
def test_rms_norm(data):
    x = data.draw(array(FEATURES))
    weight = data.draw(array(x.shape[-1:]))
    check_same(ops.rms_norm, rms_norm_composed, [x, weight], tolerance=1e-11)
    check_gradients(ops.rms_norm, [x, weight])


@pytest.mark.parametrize("name, scales", [("layer_norm", 2), ("rms_norm", 1)])
def test_normalising_no_rows(name, scales):
    arrays = [np.zeros((0, 4)), *np.random.default_rng(0).standard_normal((scales, 4))]
    check_gradients(ops.PRIMITIVES[name], arrays)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_eps_is_inside_the_root(eps):
    x = np.array([[1.0, 2.0, 6.0]])
    ones = np.ones(3)
    np.testing.assert_allclose(ops.layer_norm(x, ones, eps=eps).data, (x - 3) / np.sqrt(14 / 3 + eps))
    np.testing.assert_allclose(ops.rms_norm(x, ones, eps=eps).data, x / np.sqrt(41 / 3 + eps))
    check_gradients(lambda x, w: ops.layer_norm(x, w, eps=eps), [x, ones])
    check_gradients(lambda x, w: ops.rms_norm(x, w, eps=eps), [x, ones])


# ---- dropout


@given(array(shapes()), st.sampled_from([0.0, 0.1, 0.5, 0.9]), st.integers(0, 99))
def test_dropout(x, p, seed):
    kept = ops.dropout(np.ones(x.shape), p, np.random.default_rng(seed)).data
    function = lambda x: ops.dropout(x, p, np.random.default_rng(seed))
    check_same(function, lambda x: x * kept, [x])
    check_gradients(function, [x])


def test_dropout_zeroes_its_share_keeps_the_mean_and_follows_the_generator():
    x = np.ones((400, 500))
    y = ops.dropout(x, 0.3, np.random.default_rng(0)).data
    assert set(np.unique(y)) == {0.0, 1 / (1 - 0.3)}
    share = (y == 0).mean()
    assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / x.size)  # five standard deviations
    assert abs(y.mean() - 1) < 5 * math.sqrt(0.3 / 0.7 / x.size)
    np.testing.assert_array_equal(y, ops.dropout(x, 0.3, np.random.default_rng(0)).data)
    assert np.any(y != ops.dropout(x, 0.3, np.random.default_rng(1)).data)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("p", [1, 1.0, np.float64(1)])
def test_dropping_everything_leaves_zeros(p, dtype):
    x = ml.Tensor(np.arange(6.0).reshape(2, 3).astype(dtype), requires_grad=True)
    with np.errstate(all="raise"):
        y = ops.dropout(x, p, np.random.default_rng(0))
        g = ml.grad(y.sum(), [x])[0]
    assert y.dtype == dtype and not y.data.any() and not g.any()


# ---- precision, and what goes in

HALF = np.float16


def in_half(function, arrays):
    """The value and the gradients of `function` in float16 beside those in float64, from the same numbers."""
    results = []
    for dtype in (HALF, np.float64):
        tensors = [ml.Tensor(a.astype(HALF).astype(dtype), requires_grad=True) for a in arrays]
        y = function(*tensors)
        results.append([y, *ml.grad(y, tensors, np.ones(y.shape, dtype))])
    (y, *here), (z, *there) = results
    assert y.dtype == HALF and all(g.dtype == HALF for g in here)
    return [(y.data, z.data), *zip(here, there, strict=True)]


def test_layer_norm_in_float16_at_width_768_is_not_all_zeros():
    """The sum of 768 squares of 10 is beyond float16's largest number."""
    x = 10 * np.random.default_rng(0).standard_normal((4, 768))
    w, b = np.random.default_rng(1).standard_normal((2, 768))
    for function, arrays in [(ops.layer_norm, [x, w, b]), (ops.rms_norm, [x, w])]:
        for here, there in in_half(function, arrays):
            np.testing.assert_allclose(here, there, rtol=2e-3, atol=2e-3)


WIDE = {  # what adds up many numbers in float16 -> (the call, the inputs' shapes)
    "sum of rows": (lambda x: ops.sum(x, axis=0), [(5000, 2)]),
    "mean": (lambda x: ops.mean(x, axis=0), [(5000, 2)]),
    "var": (lambda x: ops.var(x, axis=0), [(5000, 2)]),
    "std": (lambda x: ops.std(100 * x), [(5000, 2)]),
    "norm": (lambda x: ops.norm(100 * x), [(5000, 2)]),
    "logsumexp": (lambda x: ops.logsumexp(x, axis=0), [(5000, 2)]),
    "cumsum": (lambda x: ops.cumsum(x, axis=0), [(5000, 2)]),
    "softmax": (lambda x: ops.softmax(x, axis=0), [(5000, 2)]),
    "log_softmax": (lambda x: ops.log_softmax(x, axis=0), [(5000, 2)]),
    "cross_entropy": (lambda x: ops.cross_entropy(x, np.arange(5000) % 3), [(5000, 3)]),
    "linear": (ops.linear, [(5000, 3), (2, 3), (2,)]),
    "lora_linear": (lambda *t: ops.lora_linear(*t, 2.0), [(5000, 3), (2, 3), (2,), (1, 3), (2, 1)]),
    "matmul": (ops.matmul, [(2, 5000), (5000, 2)]),
    "dot": (ops.dot, [(5000,), (5000,)]),
    "outer": (ops.outer, [(2,), (5000,)]),
    "einsum": (lambda a, b: ops.einsum("ki,kj->ij", a, b), [(5000, 2), (5000, 3)]),
    "attention": (lambda *t: ops.attention(*t, causal=False), [(2, 3), (5000, 3), (5000, 3)]),
    "embedding": (lambda w: ops.embedding(w, np.zeros(5000, int)), [(3, 2)]),
    "index": (lambda w: w[np.zeros(5000, int)], [(3, 2)]),
    "repeat": (lambda w: ops.repeat(w, 5000, axis=0), [(1, 2)]),
    "a sum over what was broadcast": (lambda x, b: x + b, [(5000, 2), (2,)]),
}


@pytest.mark.parametrize("name", WIDE)
def test_what_adds_up_in_float16_adds_in_float32(name):
    """Entries near 1: from 2048 on float16 has no odd numbers, and 1 more would be lost; and the sums of squares."""
    function, shapes = WIDE[name]
    arrays = [1 + np.random.default_rng(i).uniform(-0.2, 0.2, shape) for i, shape in enumerate(shapes)]
    for here, there in in_half(function, arrays):
        np.testing.assert_allclose(here, there, rtol=2e-3, atol=2e-3 * max(np.abs(there).max(), 0.01))


def test_float32_adapters_on_a_float16_layer():
    """The output is the layer's, the adapter's gradients are the adapter's: as in PEFT."""
    shapes = [(2, 3), (4, 3), (4,), (1, 3), (4, 1)]
    dtypes = [HALF, HALF, HALF, np.float32, np.float32]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s).astype(d) for s, d in zip(shapes, dtypes, strict=True)]
    tensors = [ml.Tensor(a, requires_grad=True) for a in arrays]
    y = ops.lora_linear(*tensors, 2.0)
    assert y.dtype == HALF
    assert [g.dtype for g in ml.grad(y, tensors, np.ones(y.shape, HALF))] == dtypes
    x, w, b, A, B = (a.astype(np.float64) for a in arrays)
    np.testing.assert_allclose(y.data, x @ w.T + b + 2 * x @ A.T @ B.T, rtol=2e-3, atol=2e-3)


REAL_FORMULAS = ["softmax", "log_softmax", "gelu", "silu", "sigmoid", "logsumexp", "norm", "mean", "std", "var"]


@pytest.mark.parametrize("name", REAL_FORMULAS)
@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint8, bool])
def test_whole_numbers_are_numbers(name, dtype):
    x = np.array([[3, 0, 1], [2, 5, 2]]).astype(dtype)
    expected = ops.PRIMITIVES[name](x.astype(np.float64)).data
    assert ops.PRIMITIVES[name](x).dtype == np.float64
    np.testing.assert_allclose(ops.PRIMITIVES[name](x).data, expected, rtol=1e-15)


def test_whole_numbers_take_the_precision_of_the_weights():
    x, w = np.array([[3, 0, 1], [2, 5, 2]]), np.ones(3, np.float32)
    keys = x.astype(np.float32)
    for y in (ops.layer_norm(x, w, w), ops.rms_norm(x, w), ops.attention(x, keys, keys)):
        assert y.dtype == np.float32


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "gelu", "silu", "sigmoid"])
@pytest.mark.parametrize("x", [0.7, np.float64(0.7), np.array(0.7), 1])
def test_a_number_is_an_array_of_one(name, x):
    y = ops.PRIMITIVES[name](ml.Tensor(x))
    assert y.shape == () and y.item() == pytest.approx(ops.PRIMITIVES[name]([[float(x)]]).item())
    check_gradients(ops.PRIMITIVES[name], [np.array(float(x))])


OPTIONS = {
    "scale": lambda n: ops.lora_linear(*(np.ones(s, "f4") for s in [(2, 3), (4, 3), (4,), (1, 3), (4, 1)]), n),
    "eps of layer_norm": lambda n: ops.layer_norm(np.eye(3, dtype="f4"), np.ones(3, "f4"), None, n),
    "eps of rms_norm": lambda n: ops.rms_norm(np.eye(3, dtype="f4"), np.ones(3, "f4"), n),
    "p of dropout": lambda n: ops.dropout(np.ones(3, "f4"), n, np.random.default_rng(0)),
    "ddof": lambda n: ops.var(np.eye(3, dtype="f4"), ddof=n),
    "ddof of std": lambda n: ops.std(np.eye(3, dtype="f4"), ddof=n),
    "keep": lambda n: ops.attention(*np.ones((3, 2, 2), "f4"), np.full((2, 2), n)),
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", [float, np.float64, np.float32, np.array])
def test_an_option_of_any_kind_leaves_float32_what_it_is(option, kind):
    y = OPTIONS[option](kind(0.5))
    assert y.dtype == np.float32
    np.testing.assert_allclose(y.data, OPTIONS[option](0.5).data)


@pytest.mark.parametrize("size", [1e15, 1e18, 1e19, 1e25, 3e37])
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_normalising_large_float32_is_not_all_zeros(name, size):
    """Squares of 1e20 are infinite in float32; what they normalise is not."""
    x = np.random.default_rng(0).standard_normal((3, 8))
    w, g = np.random.default_rng(1).standard_normal((2, 8))
    both = []
    for dtype in ("float32", "float64"):
        tensor = ml.Tensor((x * size).astype("float32").astype(dtype), requires_grad=True)
        with np.errstate(invalid="raise", divide="raise"):
            y = ops.PRIMITIVES[name](tensor, w.astype(dtype))
            both.append((y.data, ml.grad(y, [tensor], np.tile(g, (3, 1)).astype(dtype))[0] * size))
    for here, there in zip(*both, strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-5)
