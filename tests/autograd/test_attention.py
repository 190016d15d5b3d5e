"""Attention: equal to the composition of elementary primitives, right in every gradient, blind to the future."""

import math
import tracemalloc

import numpy as np
import pytest
import scipy.special
from drawing import array, batched, check_gradients, check_same, shapes
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minilora as ml
from minilora import ops
from minilora.autograd import attend, attention, backend, fused, long_attention, versions


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


def attention_composed(q, k, v, keep=None, causal=True, mask=None, window=None, scale=None):
    """The formula; with fewer heads of keys than of queries, each is written down for every head that looks at it."""
    t, s, d = q.shape[-2], k.shape[-2], q.shape[-1]
    if min(q.ndim, k.ndim) > 2 and q.shape[-3] > k.shape[-3] > 1:
        k, v = (ops.repeat(x, q.shape[-3] // x.shape[-3], axis=-3) for x in (k, v))
    k_rows = ops.transpose(k, (*range(k.ndim - 2), k.ndim - 1, k.ndim - 2))
    scores = ops.matmul(q, k_rows) * (1 / math.sqrt(d) if scale is None else scale)
    place, own = np.arange(s), np.arange(t)[:, None] + s - t  # query i stands at position s - t + i
    seen = (place <= own) if causal else np.ones((t, s), bool)
    seen = seen if window is None else seen & (place > own - window)
    if mask is not None:
        mask = np.asarray(mask) != 0
        seen = seen & (mask[:, *[None] * (q.ndim - 2)] if mask.ndim == 2 < q.ndim else mask)
    weights = ops.softmax(ops.where(seen, scores, -1e300)) * seen.any(-1, keepdims=True)  # a row that sees none is zero
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


@st.composite
def grouped_inputs(draw):
    """q (B, H, T, D), k and v (B, K, S, D) with K dividing H, and masks, windows, scales and dropout."""
    b, shared, group, t, d = (draw(st.integers(1, n)) for n in (2, 2, 3, 5, 2))
    s, heads, sizes = t + draw(st.integers(0, 3)), shared * group, st.sampled_from
    masks = [(b, s), (1, s), (s,) if b > 1 else (1, 1, 1, s), (b, 1, t, s), (heads, t, s), (1, heads, 1, s)]
    mask = draw(st.none() | sizes(masks).flatmap(lambda shape: hnp.arrays(draw(sizes([bool, int, float])), shape,
                                                                         elements=sizes([0, 1]))))  # fmt: skip
    keep = draw(st.none() | sizes([(b, heads, t, s), (t, s), (1, 1, t, s)]).flatmap(lambda x: hnp.arrays(bool, x)))
    options = {"mask": mask, "keep": None if keep is None else keep / 0.8, "causal": draw(st.booleans())}
    options |= {"window": draw(st.none() | st.integers(1, s + 1)) if options["causal"] else None}
    qkv = [draw(array(shape)) for shape in ((b, heads, t, d), (b, shared, s, d), (b, shared, s, 3))]
    return qkv, options | {"scale": draw(st.none() | st.just(0.3))}


@pytest.mark.slow
@given(grouped_inputs(), st.sampled_from([1, 2, 64]))
def test_attention_in_groups_with_masks_and_windows(drawn, queries):
    qkv, options = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attend, "QUERIES", queries)
        check_same(lambda *a: ops.attention(*a, **options), lambda *a: attention_composed(*a, **options), qkv)
        check_gradients(lambda *a: ops.attention(*a, **options), qkv, ["complex-step"])


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("t, s, queries", [(5, 5, 2), (5, 7, 2), (4, 4, 2), (3, 5, 1)])
def test_attention_in_several_blocks_of_queries(t, s, queries, dropout, monkeypatch):
    monkeypatch.setattr(attend, "QUERIES", queries)
    rng = np.random.default_rng(0)
    qkv = [rng.standard_normal(shape) for shape in [(2, 3, t, 2), (3, s, 2), (2, 1, s, 4)]]
    keep = (rng.random((2, 3, t, s)) < 0.7) / 0.7 if dropout else None
    check_same(lambda *a: ops.attention(*a, keep), lambda *a: attention_composed(*a, keep), qkv)
    check_gradients(lambda *a: ops.attention(*a, keep), qkv)


@pytest.mark.parametrize("options", [{}, {"window": 7}, {"mask": True}, {"keep": True}, {"causal": False}])
@pytest.mark.parametrize("heads", [4, 2])
def test_what_is_computed_again_is_the_same_to_rounding(heads, options, monkeypatch):
    rng, t, s = np.random.default_rng(0), 21, 25
    q, k, v = (rng.normal(size=(2, h, n, 8)).astype("float32") for h, n in ((4, t), (heads, s), (heads, s)))
    options = dict(options)
    if "mask" in options:
        options["mask"] = rng.random((2, s)) < 0.7
    if "keep" in options:
        options["keep"] = (rng.random((2, 4, t, s)) < 0.9) / 0.9
    monkeypatch.setattr(attend, "QUERIES", 8)
    monkeypatch.setattr(long_attention, "QUERIES", 8)
    monkeypatch.setattr(long_attention, "HEADS", 1)
    found = []
    for long in (512, 1):
        monkeypatch.setattr(attention, "LONG", long)
        leaves = [ml.Tensor(x, requires_grad=True) for x in (q, k, v)]
        out = ops.attention(*leaves, **options)
        found.append([out.data, *ml.grad(ops.sum(out * out), leaves)])
    for kept, again in zip(*found, strict=True):
        np.testing.assert_allclose(again, kept, rtol=0, atol=8 * np.finfo("float32").eps * np.abs(kept).max())


@pytest.mark.parametrize("sizes", [(1, 1), (12, 12), (1, 12), (12, 1), (1e6, 1e6), (1e-20, 1e25)])
def test_scores_of_any_size_are_taken_from_a_bound_or_from_the_largest(sizes, monkeypatch):
    """What a bound would lose, where it is far above every score, is found as it is where P is kept."""
    rng, far = np.random.default_rng(0), np.ones((40, 1))
    far[20:] = sizes[1] / sizes[0]
    q, k, v, g = (rng.standard_normal((2, 40, 8)) * scale for scale in (far * sizes[0], 1, 1, 1))
    q[:, 5], k[:, 25] = 0, -30 * q[:, 30] / max(sizes)  # a score of 0 alone, and a key that is long and far from all
    exact, of_exact = attention.attention.__wrapped__(q, k, v)
    monkeypatch.setattr(attention, "LONG", 1)
    monkeypatch.setattr(long_attention, "QUERIES", 8)
    o, vjp = attention.attention.__wrapped__(*(x.astype("float32") for x in (q, k, v)))
    kept, of_kept = attend.attend(*(x.astype("float32") for x in (q, k, v)))
    error = lambda x, right: np.abs(x - right).max() / np.abs(right).max()
    pairs = zip((o, *vjp(g.astype("f"))), (kept, *of_kept(g.astype("f"))), (exact, *of_exact(g)), strict=True)
    for found, plain, right in pairs:
        assert np.isfinite(found).all() and error(found, right) < 3 * error(plain, right) + 3e-6


def test_a_long_texts_later_tokens_change_no_bit_of_what_comes_before(monkeypatch):
    monkeypatch.setattr(attention, "LONG", 1)
    monkeypatch.setattr(long_attention, "QUERIES", 8)
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 30, 4)).astype("float32")
    before = ops.attention(q, k, v).data
    k[:, 20:] *= 7
    after = ops.attention(q, k, v).data
    np.testing.assert_array_equal(after[:, :20], before[:, :20])
    assert (after[:, 20:] != before[:, 20:]).any()


@pytest.mark.parametrize("t, s, dropout", [(5, 5, False), (5, 7, True)])
def test_long_texts_broadcast_and_have_every_gradient(t, s, dropout, monkeypatch):
    monkeypatch.setattr(attention, "LONG", 1)
    monkeypatch.setattr(long_attention, "QUERIES", 2)
    rng = np.random.default_rng(0)
    qkv = [rng.standard_normal(shape) for shape in [(2, 3, t, 2), (3, s, 2), (2, 1, s, 4)]]
    keep = (rng.random((2, 3, t, s)) < 0.7) / 0.7 if dropout else None
    check_same(lambda *a: ops.attention(*a, keep), lambda *a: attention_composed(*a, keep), qkv)
    check_gradients(lambda *a: ops.attention(*a, keep), qkv)


@pytest.mark.parametrize("long", [512, 10**9])
def test_memory_of_a_long_text_grows_with_its_length(long, monkeypatch):
    """At twice the length twice as much, and not four times, which it is where P is kept."""
    monkeypatch.setattr(attention, "LONG", long)
    peaks = []
    for t in (512, 1024):
        q, k, v = (ml.Tensor(np.ones((1, 2, t, 8), "float32"), requires_grad=True) for _ in range(3))
        tracemalloc.start()
        ml.grad(ops.sum(ops.attention(q, k, v)), [q, k, v])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert math.log2(peaks[1] / peaks[0]) < 1.15 if long == 512 else math.log2(peaks[1] / peaks[0]) > 1.6


def test_several_blocks_leave_heads_side_by_side_in_memory():
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 2 * attend.QUERIES + 1, 3, 8)).transpose(0, 1, 3, 2, 4)
    o, vjp = attention.attention.__wrapped__(q, k, v)
    assert o.strides == q.strides and vjp(o)[0].strides == q.strides
    np.testing.assert_allclose(o, attend.attend(q, k, v)[0], rtol=1e-12)


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
@pytest.mark.parametrize("long", [1, 512])
def test_what_is_not_finite_stays_out_of_earlier_rows(t, s, at, place, special, long, monkeypatch):
    """Zero times infinity is no number: a mask that multiplies would let it through."""
    monkeypatch.setattr(attention, "LONG", long)
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
@pytest.mark.parametrize("t, long", [(3, 512), (70, 512), (70, 1)])
def test_large_scores_do_not_overflow(dtype, size, t, long, monkeypatch):
    """Each query looks at one key alone: the largest score, however large."""
    monkeypatch.setattr(attention, "LONG", long)
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


# ---- masks, windows, groups


def qkv_of(t=6, heads=4, shared=2, b=2, dtype="float64"):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((b, n, t, 4)).astype(dtype) for n in (heads, shared, shared)]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("t, long", [(6, 512), (70, 512), (70, 1)])
def test_a_query_that_sees_no_key_gives_zeros_and_has_no_gradient(t, long, dtype, monkeypatch):
    """A text that begins with padding: its first queries see padding alone."""
    monkeypatch.setattr(attention, "LONG", long)
    tensors = [ml.Tensor(x, requires_grad=True) for x in qkv_of(t, dtype=dtype)]
    mask = np.ones((2, t), int)
    mask[1, :3] = 0
    with np.errstate(all="raise", under="ignore"):
        y = ops.attention(*tensors, mask=mask)
        dq, dk, dv = ml.grad(y, tensors, np.ones(y.shape, dtype))
    assert not y.data[1, :, :3].any() and np.isfinite(y.data).all()
    assert not dq[1, :, :3].any() and not dk[1, :, :3].any() and not dv[1, :, :3].any()
    assert dv[1, :, 3:].any() and dv[0, :, 0].any()


def test_padding_changes_nothing_for_the_rest():
    """Whatever stands at padding, left or right of a text."""
    qkv = qkv_of()
    alone = ops.attention(*(x[..., 1:5, :] for x in qkv)).data
    padded = [np.full_like(x, 1e3) for x in qkv]
    for x, y in zip(padded, qkv, strict=True):
        x[..., 1:5, :] = y[..., 1:5, :]
    y = ops.attention(*padded, mask=np.tile([0, 1, 1, 1, 1, 0], (2, 1)))
    np.testing.assert_allclose(y.data[..., 1:5, :], alone, rtol=1e-13)


def test_a_mask_of_ones_is_none_bit_for_bit():
    tensors = [ml.Tensor(x, requires_grad=True) for x in qkv_of(70, dtype="float32")]
    plain, masked = ops.attention(*tensors), ops.attention(*tensors, mask=np.ones((2, 70)), window=70)
    np.testing.assert_array_equal(plain.data, masked.data)
    g = np.ones(plain.shape, "float32")
    for one, other in zip(ml.grad(plain, tensors, g), ml.grad(masked, tensors, g), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_mask_is_kept_by_value():
    mask = np.ones((2, 70), bool)
    mask[0, 3] = False
    tensors = [ml.Tensor(x, requires_grad=True) for x in qkv_of(70)]
    expected = ml.grad(ops.attention(*tensors, mask=mask).sum(), tensors)
    y = ops.attention(*tensors, mask=mask).sum()
    mask[:] = False
    np.testing.assert_array_equal(ml.grad(y, tensors)[1], expected[1])


def test_what_lies_before_a_window_is_not_looked_at():
    q, k, v = qkv_of(150)
    k[..., :20, :], v[..., :20, :] = np.nan, np.nan
    y = ops.attention(q, k, v, window=8).data
    assert np.isfinite(y[..., 27:, :]).all() and np.isnan(y[..., :27, :]).all()


def test_heads_that_share_keys_do_not_copy_them():
    """Nothing that the tape keeps is as large as the keys written down for every head."""
    q, k, v = np.zeros((1, 32, 1, 64)), np.zeros((1, 2, 64, 64)), np.zeros((1, 2, 64, 64))
    _, vjp = attention.attention.__wrapped__(q, k, v)
    kept = [array for _, array in versions.kept_arrays(vjp)]
    assert any(np.shares_memory(array, k) for array in kept) and max(array.size for array in kept) == k.size


def test_groups_leave_heads_side_by_side_in_memory():
    q, k, v = (np.swapaxes(np.random.default_rng(0).standard_normal((2, 150, n, 8)), 1, 2) for n in (4, 2, 2))
    o, vjp = attention.attention.__wrapped__(q, k, v)
    assert o.strides == q.strides and vjp(o)[0].strides == q.strides


WRONG = [
    ({"mask": np.ones((3, 6))}, r"mask \(3, 6\) does not fit q \(2, 4, 6, 4\) and 6 keys: expected \(B, S\)"),
    ({"mask": np.ones((2, 5))}, r"mask \(2, 5\) does not fit"),
    ({"mask": np.ones((2, 2, 6, 6))}, r"mask \(2, 2, 6, 6\) does not fit"),
    ({"mask": np.ones((2, 1))}, r"mask \(2, 1\) does not fit"),
    ({"mask": 1.0}, "attention: "),
    ({"mask": np.array([[0, -np.inf, 0, 0, 0, 0]] * 2)}, "mask holds more than 0 and 1"),
    ({"mask": np.array([[0, np.nan, 0, 0, 0, 0]] * 2)}, "mask holds more than 0 and 1"),
    ({"window": 0}, "window = 0, expected a whole number of keys, 1 or more, or None"),
    ({"window": 2.5}, "window = 2.5, expected a whole number"),
    ({"window": True}, "window = True, expected a whole number"),
    ({"window": 2, "causal": False}, "window = 2 with causal=False"),
]


@pytest.mark.parametrize("options, message", WRONG)
def test_wrong_masks_and_windows(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ops.attention(*qkv_of(), **options)


def test_heads_that_do_not_share_evenly():
    with pytest.raises(
        ValueError, match=r"attention: q \(2, 4, 6, 4\) and k \(2, 3, 6, 4\): 4 heads are no multiple of 3"
    ):
        ops.attention(*qkv_of(shared=3))


def test_a_mask_has_no_gradient():
    mask = ml.Tensor(np.ones((2, 6)) * ([1] * 5 + [0]), requires_grad=True)
    q = ml.Tensor(qkv_of()[0], requires_grad=True)
    with pytest.raises(TypeError, match="no derivative in its argument 5"):
        ml.grad(ops.attention(q, *qkv_of()[1:], None, True, mask).sum(), [q, mask])


# ---- rotary positions


@pytest.mark.slow
@given(st.integers(1, 3), st.data())
def test_rotate(half, data):
    """Pairs (x_i, x_{i + D/2}) as complex numbers, multiplied by e^(i angle)."""
    x = data.draw(array(shapes(least_dims=2, least_side=1).map(lambda shape: (*shape[:-1], 2 * half))))
    lead = data.draw(st.integers(0, x.ndim - 1))
    angles = data.draw(array((*x.shape[lead:-1], half)))
    y = ops.rotate(x, np.cos(angles), np.sin(angles)).data
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    np.testing.assert_allclose(y, np.concatenate([z.real, z.imag], axis=-1), rtol=1e-12, atol=1e-14)
    check_gradients(lambda x: ops.rotate(x, np.cos(angles), np.sin(angles)), [x])


def test_rotate_keeps_precision_memory_order_and_its_angles():
    x = ml.Tensor(np.ones((2, 5, 3, 4), "float32").swapaxes(1, 2), requires_grad=True)
    cos, sin = np.cos(np.ones((5, 2))), np.sin(np.ones((5, 2)))
    y = ops.rotate(x, cos, sin)
    assert y.dtype == np.float32 and y.data.strides == x.data.strides
    cos[:], sin[:] = 0, 0
    np.testing.assert_allclose(
        ml.grad(y.sum(), [x])[0][0, 0, 0], np.repeat([np.cos(1) + np.sin(1), np.cos(1) - np.sin(1)], 2), rtol=1e-6
    )


@pytest.mark.parametrize("x, cos, sin", [((3, 4), (3, 4), (3, 4)), ((3, 3), (3, 1), (3, 1)), ((3, 4), (2, 2), (2, 2)),
                                         ((3, 4), (3, 2), (1, 2)), ((3, 4), (2, 3, 2), (2, 3, 2)), ((4,), (2,), (2,)),
                                         ((3, 4), (3, 1), (3, 1))])  # fmt: skip
def test_angles_that_do_not_fit(x, cos, sin):
    with pytest.raises(ValueError, match=r"rotate: x \(.*\), cos \(.*\) and sin \(.*\) do not fit: \(..., T, D\)"):
        ops.rotate(np.ones(x), np.ones(cos), np.ones(sin))


@pytest.mark.parametrize(
    "shape", [(2, 3, 17, 17), (3, 16, 16), (2, 64, 64), (2, 33, 40), (130, 200), (9, 1), (1, 1), (5, 7)]
)
def test_the_largest_score_is_found_however_keys_are_laid(shape):
    """Among infinities, and what is not a number, too."""
    e = np.random.default_rng(0).standard_normal(shape)
    e.flat[0], e.flat[-1] = np.nan, -np.inf
    np.testing.assert_array_equal(attend.largest_scores(e), e.max(axis=-2, keepdims=True))
