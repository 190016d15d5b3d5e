"""Fused primitives: equal to the composition of elementary ones, to SciPy, and right in every gradient."""

import math
import weakref

import numpy as np
import pytest
import scipy.special
from drawing import array, batched, check_gradients, check_same, shapes, spread
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minilora as ml
from minilora import ops
from minilora.autograd import fused

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


def test_embedding_of_no_features():
    check_gradients(lambda w: ops.embedding(w, np.array([1, 0, 1])), [np.zeros((2, 0))])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_tokens_of_any_integer_type(dtype):
    tokens = np.array([[0, 3, 3], [1, 0, 3]], dtype=dtype)
    weight = np.random.default_rng(0).standard_normal((4, 3))
    np.testing.assert_array_equal(ops.embedding(weight, tokens).data, weight[tokens])
    check_gradients(lambda w: ops.cross_entropy(ops.embedding(w, tokens), tokens % 3), [weight])


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


# ---- attention


@given(st.integers(1, 3), st.data())
def test_heads_are_split_and_joined(heads, data):
    b, t, d = (data.draw(st.integers(0, 3)) for _ in range(3))
    x = data.draw(array((b, t, heads * d)))
    split = lambda x: ops.transpose(ops.reshape(x, (b, t, heads, d)), (0, 2, 1, 3))
    join = lambda x: ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (b, t, heads * d))
    check_same(lambda x: ops.split_heads(x, heads), split, [x])
    check_same(ops.join_heads, join, [split(x).data])


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(ValueError, match=r"split_heads: x \(1, 2, 10\) does not split into 3 heads"):
        ops.split_heads(np.zeros((1, 2, 10)), 3)
    with pytest.raises(ValueError, match=r"split_heads: x \(2, 10\) .* expected \(B, T, C\)"):
        ops.split_heads(np.zeros((2, 10)), 5)
    with pytest.raises(ValueError, match=r"join_heads: x \(2, 10\), expected \(B, H, T, D\)"):
        ops.join_heads(np.zeros((2, 10)))


def attention_composed(q, k, v, keep=None, causal=True):
    t, s, d = q.shape[-2], k.shape[-2], q.shape[-1]
    k_rows = ops.transpose(k, (*range(k.ndim - 2), k.ndim - 1, k.ndim - 2))
    scores = ops.matmul(q, k_rows) / math.sqrt(d)
    if causal:  # query i stands at position s - t + i
        scores = ops.where(np.arange(s) <= np.arange(t)[:, None] + s - t, scores, -1e300)
    weights = ops.softmax(scores)
    return ops.matmul(weights if keep is None else weights * keep, v)


@st.composite
def attention_inputs(draw):
    """q, k, v with batch axes that broadcast and S >= T, and the options keep and causal."""
    q, k, v = draw(batched("(t,d),(s,d),(s,e)->(t,e)", least_side=1))
    causal = draw(st.booleans()) if k.shape[-2] >= q.shape[-2] else False
    keep = None
    if draw(st.booleans()):
        batch = np.broadcast_shapes(q.shape[:-2], k.shape[:-2])
        kept = draw(hnp.arrays(bool, (*batch, q.shape[-2], k.shape[-2])))
        keep = kept / 0.8
    return [q, k, v], {"keep": keep, "causal": causal}


@given(attention_inputs())
def test_attention(drawn):
    qkv, options = drawn
    check_same(lambda *a: ops.attention(*a, **options), lambda *a: attention_composed(*a, **options), qkv)
    check_gradients(lambda *a: ops.attention(*a, **options), qkv)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("t, s, queries", [(5, 5, 2), (5, 7, 2), (4, 4, 2), (3, 5, 1)])
def test_attention_in_several_blocks_of_queries(t, s, queries, dropout, monkeypatch):
    monkeypatch.setattr(fused, "QUERIES", queries)
    rng = np.random.default_rng(0)
    qkv = [rng.standard_normal(shape) for shape in [(2, 3, t, 2), (3, s, 2), (2, 1, s, 4)]]
    keep = (rng.random((2, 3, t, s)) < 0.7) / 0.7 if dropout else None
    check_same(lambda *a: ops.attention(*a, keep), lambda *a: attention_composed(*a, keep), qkv)
    check_gradients(lambda *a: ops.attention(*a, keep), qkv)


def test_several_blocks_leave_heads_side_by_side_in_memory():
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 2 * fused.QUERIES + 1, 3, 8)).transpose(0, 1, 3, 2, 4)
    o, vjp = fused.attention.__wrapped__(q, k, v)
    assert o.strides == q.strides and vjp(o)[0].strides == q.strides
    np.testing.assert_allclose(o, fused.attend(q, k, v)[0], rtol=1e-12)


@pytest.mark.parametrize("t, s", [(1, 1), (1, 5), (3, 5), (5, 5)])
def test_cached_queries_see_what_they_would_see_in_the_whole_sequence(t, s):
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, s, 4))
    whole = ops.attention(q, k, v).data
    np.testing.assert_allclose(ops.attention(q[:, s - t :], k, v).data, whole[:, s - t :], rtol=1e-13)
    check_gradients(ops.attention, [q[:, s - t :], k, v])


def test_a_query_sees_no_later_key():
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 5, 4))
    before = ops.attention(q, k, v).data
    k[3:], v[3:] = rng.standard_normal((2, 2, 4))
    after = ops.attention(q, k, v).data
    np.testing.assert_array_equal(after[:3], before[:3])
    assert np.all(after[3:] != before[3:])


def test_attention_of_a_tensor_to_itself_adds_its_three_gradients():
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    check_same(lambda x: ops.attention(x, x, x), lambda x: attention_composed(x, x, x), [x])
    check_gradients(lambda x: ops.attention(x, x, x), [x])


@pytest.mark.parametrize("frozen", [(0,), (1, 2), (0, 2)])
def test_attention_with_some_inputs_frozen(frozen):
    arrays = np.random.default_rng(0).standard_normal((3, 2, 3, 4))
    free = [i for i in range(3) if i not in frozen]

    def some(*tensors):
        inputs = list(arrays)
        for place, tensor in zip(free, tensors, strict=True):
            inputs[place] = tensor
        return ops.attention(*inputs)

    check_gradients(some, [arrays[i] for i in free])


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
