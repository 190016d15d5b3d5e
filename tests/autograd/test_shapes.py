"""What only moves entries: values against NumPy, gradients against two computations that know no calculus rule."""

import itertools

import numpy as np
import pytest
from drawing import array, check_gradients, shapes
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minilora as ml
from minilora import ops


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


@given(data=st.data())
def test_stack_along_any_new_axis(data):
    shape = data.draw(shapes(most_side=3))
    axis = data.draw(st.integers(-len(shape) - 1, len(shape)))
    parts = [data.draw(array(shape)) for _ in range(data.draw(st.integers(1, 3)))]
    np.testing.assert_array_equal(ops.stack(parts, axis=axis).data, np.stack(parts, axis=axis))
    check_gradients(lambda *parts: ops.stack(parts, axis=axis), parts)
    np.testing.assert_array_equal(ops.stack(parts, axis).data, ops.stack(*parts, axis=axis).data)


@given(data=st.data())
def test_flatten_squeeze_expand_and_swap(data):
    x = data.draw(array(shapes(most_side=2)))
    ones = [i for i, n in enumerate(x.shape) if n == 1]
    some = tuple(data.draw(st.lists(st.sampled_from(ones), unique=True))) if ones else ()
    new = data.draw(st.integers(-x.ndim - 1, x.ndim))
    calls = {"flatten": (), "squeeze": (data.draw(st.sampled_from([None, some])),), "expand_dims": (new,)}
    if x.ndim:
        calls["swapaxes"] = tuple(data.draw(st.integers(-x.ndim, x.ndim - 1)) for _ in range(2))
    for name, options in calls.items():
        reference = {"flatten": np.ravel}.get(name) or getattr(np, name)
        np.testing.assert_array_equal(ops.PRIMITIVES[name](x, *options).data, reference(x, *options))
        check_gradients(lambda x, name=name, options=options: ops.PRIMITIVES[name](x, *options), [x])


@given(data=st.data())
def test_broadcast_to(data):
    shape = data.draw(shapes(most_side=3))
    kept = [data.draw(st.sampled_from([1, n])) for n in shape][data.draw(st.integers(0, len(shape))) :]
    x = data.draw(array(tuple(kept)))
    np.testing.assert_array_equal(ops.broadcast_to(x, shape).data, np.broadcast_to(x, shape))
    check_gradients(lambda x: ops.broadcast_to(x, shape), [x])


@given(data=st.data())
def test_repeat(data):
    x = data.draw(array(shapes(most_side=3)))
    axis = data.draw(st.none() | st.integers(-x.ndim, x.ndim - 1)) if x.ndim else None
    n = x.size if axis is None else x.shape[axis]
    repeats = data.draw(st.integers(0, 3) | st.lists(st.integers(0, 3), min_size=n, max_size=n))
    np.testing.assert_array_equal(ops.repeat(x, repeats, axis).data, np.repeat(x, np.asarray(repeats, int), axis))
    check_gradients(lambda x: ops.repeat(x, repeats, axis), [x])


def test_an_empty_list_picks_nothing():
    x = ml.Tensor(np.ones((3, 2)), requires_grad=True)
    assert x[[]].shape == (0, 2) and x[[], 1].shape == (0,)
    assert ml.grad(x[[]].sum(), [x])[0].tolist() == [[0, 0]] * 3


def pick(x, key):
    return x[key]


BY_VALUE = {  # what is given -> (the call, the given array, what it is overwritten with)
    "whole numbers": (pick, np.array([0, 2, 2]), 1),
    "a mask": (pick, np.array([True, False, True]), True),
    "in a tuple": (lambda x, key: x[key, 0], np.array([0, 2, 2]), 1),
    "a list": (lambda x, key: x[(key, slice(None))], [0, 2, 2], 1),
    "a tensor": (lambda x, key: x[ml.Tensor(key)], np.array([0, 2, 2]), 1),
    "a view": (lambda x, key: x[np.broadcast_to(key[1:], (2, 2))], np.array([0, 2, 2]), 1),
    "repeats": (lambda x, key: ops.repeat(x, key, axis=0), np.array([0, 2, 2]), 1),
    "a condition": (lambda x, key: ops.where(key, x, 0.0), np.array([[True], [False], [True]]), False),
}


@pytest.mark.parametrize("case", BY_VALUE)
def test_what_the_caller_writes_over_after_the_call_was_kept_by_value(case):
    call, given, other = BY_VALUE[case]
    given = given.copy()
    x = ml.Tensor(np.arange(6.0).reshape(3, 2), requires_grad=True)
    expected = ml.grad((call(x, given) ** 2).sum(), [x])[0]
    y = (call(x, given) ** 2).sum()
    given[:] = [other] * 3 if isinstance(given, list) else other
    np.testing.assert_array_equal(ml.grad(y, [x])[0], expected)
