"""Attention: equal to the composition of elementary primitives, right in every gradient, blind to the future."""

import math

import numpy as np
import pytest
import scipy.special
from drawing import array, batched, check_gradients, check_same
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minilora as ml
from minilora import ops
from minilora.autograd import attention as blocks
from minilora.autograd import backend, fused


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
    monkeypatch.setattr(blocks, "QUERIES", queries)
    rng = np.random.default_rng(0)
    qkv = [rng.standard_normal(shape) for shape in [(2, 3, t, 2), (3, s, 2), (2, 1, s, 4)]]
    keep = (rng.random((2, 3, t, s)) < 0.7) / 0.7 if dropout else None
    check_same(lambda *a: ops.attention(*a, keep), lambda *a: attention_composed(*a, keep), qkv)
    check_gradients(lambda *a: ops.attention(*a, keep), qkv)


def test_several_blocks_leave_heads_side_by_side_in_memory():
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 2 * blocks.QUERIES + 1, 3, 8)).transpose(0, 1, 3, 2, 4)
    o, vjp = blocks.attention.__wrapped__(q, k, v)
    assert o.strides == q.strides and vjp(o)[0].strides == q.strides
    np.testing.assert_allclose(o, blocks.attend(q, k, v)[0], rtol=1e-12)


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


def test_attention_of_heads_without_width_is_the_mean_of_what_is_seen():
    v = np.array([[1.0], [3.0]])
    assert ops.attention(np.zeros((2, 0)), np.zeros((2, 0)), v).data.tolist() == [[1], [2]]


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


# ---- what is not finite, what is very large, what the caller writes over


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["k", "v"])
@pytest.mark.parametrize("t, s, at", [(5, 5, 3), (3, 6, 4), (5, 5, 4), (70, 70, 66), (70, 70, 3)])
def test_what_is_not_finite_stays_out_of_earlier_rows(t, s, at, place, special):
    """Zero times infinity is no number: a mask that multiplies would let it through."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((2, t, 4)), rng.standard_normal((2, s, 4)), rng.standard_normal((2, s, 4))
    first = at - (s - t)  # the first query that sees it
    before = ops.attention(q[:, :first], k[:, :at], v[:, :at]).data if first else np.zeros((2, 0, 4))
    {"k": k, "v": v}[place][:, at] = special
    tensors = [ml.Tensor(x, requires_grad=True) for x in (q, k, v)]
    y = ops.attention(*tensors)
    np.testing.assert_allclose(y.data[:, :first], before, rtol=1e-12)
    assert not np.isfinite(y.data[:, first:]).all(axis=(0, 2)).any() or special == -np.inf or place == "k"
    g = np.zeros(y.shape)
    g[:, :first] = 1  # a loss of the earlier rows alone
    assert np.isfinite(ml.grad(y, tensors, g)[0][:, :first]).all()


@pytest.mark.parametrize("dtype, size", [("float16", 60.0), ("float32", 1e9), ("float64", 1e100)])
@pytest.mark.parametrize("t", [3, 70])
def test_large_scores_do_not_overflow(dtype, size, t):
    """Each query looks at one key alone: the largest score, however large."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((t, 4)).astype(dtype) for _ in range(3))
    q, k = (x * np.dtype(dtype).type(size) for x in (q, k))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        tensors = [ml.Tensor(x, requires_grad=True) for x in (q, k, v)]
        y = ops.attention(*tensors)
        dq, dk, dv = ml.grad(y, tensors, np.ones((t, 4), dtype))
    scores = q.astype(np.float64) @ k.astype(np.float64).T / 2
    weights = scipy.special.softmax(np.where(np.tri(t, dtype=bool), scores, -np.inf), axis=-1)
    tolerance = {"float16": 2e-2, "float32": 1e-5, "float64": 1e-12}[dtype]
    np.testing.assert_allclose(y.data, weights @ v.astype(np.float64), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(dv, weights.T @ np.ones((t, 4)), rtol=tolerance, atol=tolerance)
    assert np.isfinite(dq).all() and np.isfinite(dk).all()


@pytest.mark.parametrize("t", [3, 70])
def test_the_dropout_mask_is_kept_by_value(t):
    x = ml.Tensor(np.random.default_rng(0).standard_normal((2, t, 4)), requires_grad=True)
    keep = (np.random.default_rng(1).random((2, t, t)) < 0.8) / 0.8
    expected = ml.grad(ops.attention(x, x, x, keep).sum(), [x])[0]
    y = ops.attention(x, x, x, keep).sum()
    keep[:] = 1
    np.testing.assert_array_equal(ml.grad(y, [x])[0], expected)


def test_a_mask_that_nobody_can_write_to_is_not_copied():
    keep = fused.dropout_mask(np.ones(1), (2, 3, 3), 0.2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="read-only"):
        keep[0] = 1
    assert backend.by_value(keep) is keep
    for other in (keep.copy(), keep[0], np.broadcast_to(np.ones(3), (3, 3))):  # what a view shows may be written to
        assert backend.by_value(other) is not other and not np.shares_memory(backend.by_value(other), other)


def test_a_mask_of_truth_values_is_one_of_zeros_and_ones():
    q, k, v = np.random.default_rng(0).standard_normal((3, 3, 4)).astype(np.float32)
    keep = np.random.default_rng(1).random((3, 3)) < 0.7
    y = ops.attention(q, k, v, keep)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y.data, ops.attention(q, k, v, keep.astype(np.float32)).data)
