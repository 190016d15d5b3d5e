"""Reductions: values against NumPy and SciPy, gradients against two computations that know no calculus rule."""

import math

import numpy as np
import pytest
import scipy.special
from drawing import array, check_gradients, shapes
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minilora as ml
from minilora import ops

METHODS = (("central", "complex-step"), ())  # of a std of one entry, which is 0, there is no derivative to compare with


@st.composite
def reduction(draw, least_side):
    """An array, and the options axis (None, one axis or several, negative too) and keepdims."""
    x = draw(array(shapes(least_side=least_side), distinct=True))
    axes = [st.none(), hnp.valid_tuple_axes(x.ndim)]
    if x.ndim:
        axes.append(st.integers(-x.ndim, x.ndim - 1))
    return x, {"axis": draw(st.one_of(axes)), "keepdims": draw(st.booleans())}


REFERENCES = {  # name -> (what computes it elsewhere, the shortest axis it takes)
    "sum": (np.sum, 0),
    "mean": (np.mean, 1),
    "max": (np.max, 1),
    "min": (np.min, 1),
    "prod": (np.prod, 0),
    "var": (np.var, 1),
    "std": (np.std, 1),
    "logsumexp": (scipy.special.logsumexp, 1),
    "norm": (lambda x, axis, keepdims: np.sqrt(np.sum(x * x, axis=axis, keepdims=keepdims)), 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCES)
@given(data=st.data())
def test_reductions(name, data):
    reference, least_side = REFERENCES[name]
    x, options = data.draw(reduction(least_side))
    primitive = ops.PRIMITIVES[name]
    np.testing.assert_allclose(primitive(x, **options).data, reference(x, **options), rtol=1e-13, atol=1e-14)
    corner = name == "std" and x.size and not np.all(reference(x, **options))
    check_gradients(lambda x: primitive(x, **options), [x], METHODS[corner])


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "prod", "var", "std", "logsumexp", "norm"])
@pytest.mark.parametrize("axis", [None, 0, -1, (), [0], np.int64(0)])
def test_a_number_has_one_axis_of_length_one(name, axis):
    """As in NumPy, whose reductions of a 0-d array take axis 0 and -1."""
    x = np.float64(0.7)
    y = ops.PRIMITIVES[name](x, axis=axis)
    assert y.shape == () and y.item() == (0 if name in ("var", "std") else pytest.approx(0.7, abs=1e-15))
    check_gradients(lambda x: ops.PRIMITIVES[name](x, axis=axis), [np.array(0.7)], METHODS[name == "std"])
    for wrong in (1, -2, (0, 1)):
        with pytest.raises(ValueError, match=rf"^{name}: .*axis .*{wrong if wrong != (0, 1) else ''} is out of range"):
            ops.PRIMITIVES[name](x, axis=wrong)


@pytest.mark.parametrize("name", [*REFERENCES, "cumsum"])
@pytest.mark.parametrize("axis", [1.0, "rows", (0, None), slice(2)])
def test_an_axis_that_is_none(name, axis):
    with pytest.raises(TypeError, match=rf"^{name}: .*axis .*expected a whole number"):
        ops.PRIMITIVES[name](np.ones((2, 3)), axis=axis)


def test_several_axes_may_be_a_list():
    x = ml.Tensor(np.arange(24.0).reshape(2, 3, 4))
    assert ops.sum(x, [0, 2]).data.tolist() == ops.sum(x, axis=[0, 2]).data.tolist() == x.data.sum((0, 2)).tolist()


@given(data=st.data())
def test_ddof(data):
    x = data.draw(array(shapes(least_dims=1, least_side=2), distinct=True))
    axis, ddof = data.draw(st.integers(0, x.ndim - 1)), data.draw(st.sampled_from([0, 1, 0.5]))
    for name in ("var", "std"):
        primitive = lambda x, name=name: ops.PRIMITIVES[name](x, axis=axis, ddof=ddof)
        np.testing.assert_allclose(primitive(x).data, getattr(np, name)(x, axis=axis, ddof=ddof), rtol=1e-13)
        check_gradients(primitive, [x])


@pytest.mark.parametrize("name", ["var", "std"])
def test_a_variance_of_too_few(name):
    for x, ddof in [(np.ones(1), 1), (np.ones((3, 2)), 2), (np.ones((2, 3)), 7)]:
        with pytest.raises(ValueError, match=rf"^{name}: ddof={ddof} with \d entries: n - ddof must be positive"):
            ops.PRIMITIVES[name](x, axis=-1, ddof=ddof)
    with pytest.raises(ValueError, match=rf"^{name}: got shape \(2, 0\): no entries have no {name}"):
        ops.PRIMITIVES[name](np.ones((2, 0)), axis=1)


@pytest.mark.parametrize("name", ["std", "norm"])
def test_the_gradient_of_a_length_of_zero_is_zero(name):
    """A corner, as that of abs at 0; PyTorch's convention."""
    x = ml.Tensor(np.zeros((2, 3)), requires_grad=True)
    with np.errstate(all="raise"):
        assert not ml.grad(ops.PRIMITIVES[name](x, axis=1).sum(), [x])[0].any()


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1.0, 1e160, 1e300])
@pytest.mark.parametrize("name", ["std", "norm"])
def test_a_length_neither_overflows_nor_vanishes(name, size):
    x = ml.Tensor(size * np.array([3.0, -3.0, 3.0, -3.0]), requires_grad=True)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        y = ops.PRIMITIVES[name](x)
        g = ml.grad(y, [x])[0]
    n = 1 if name == "norm" else 4
    assert y.item() == pytest.approx(6 * size / math.sqrt(n), rel=1e-15)
    np.testing.assert_allclose(g, [0.5 / n**0.5, -0.5 / n**0.5] * 2, rtol=1e-15)


def test_norms_of_other_orders():
    x = np.array([[3.0, 4.0], [0.0, 12.0]])
    assert ops.norm(x[0], 2).item() == 5 and ops.norm(x, "fro").item() == np.linalg.norm(x, "fro")
    assert ops.norm(x, 2, axis=1).data.tolist() == ops.norm(x, axis=1).data.tolist() == [5, 12]
    for ord, axis in [(1, None), (np.inf, 0), (2, None), ("fro", 1), ("nuc", None), (3, 1)]:
        with pytest.raises(ValueError, match=rf"^norm: ord={ord!r} over [12] axes of shape \(2, 2\): expected None"):
            ops.norm(x, ord, axis=axis)


@pytest.mark.parametrize("name", ["abs", "norm", "std", "var"])
def test_the_modulus_of_complex_numbers_is_refused(name):
    with pytest.raises(TypeError, match=f"^{name}: got complex numbers, expected real ones"):
        ops.PRIMITIVES[name](np.array([1 + 2j, 3j]))


@given(data=st.data())
def test_logsumexp_of_infinities(data):
    """As SciPy's, and without a warning: masked classes are -inf."""
    entries = st.sampled_from([-np.inf, -5e307, -3.0, 0.0, 2.0, 5e307])
    x = data.draw(hnp.arrays(np.float64, (2, 4), elements=entries))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        tensor = ml.Tensor(x, requires_grad=True)
        y = ops.logsumexp(tensor, axis=1)
        g = ml.grad(y.sum(), [tensor])[0]
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(y.data, scipy.special.logsumexp(x, axis=1), rtol=1e-14)
        softmax = np.where(np.isinf(y.data)[:, None], 0, scipy.special.softmax(x, axis=1))
    np.testing.assert_allclose(g, softmax, rtol=1e-14)


@given(data=st.data())
def test_cumsum(data):
    x = data.draw(array(shapes()))
    axis = data.draw(st.none() | st.integers(-max(x.ndim, 1), max(x.ndim, 1) - 1))
    np.testing.assert_array_equal(ops.cumsum(x, axis).data, np.cumsum(x, axis))
    check_gradients(lambda x: ops.cumsum(x, axis), [x])


def test_cumsum_along_two_axes():
    with pytest.raises(ValueError, match=r"^cumsum: .*axis \(0, 1\): expected one axis, or None"):
        ops.cumsum(np.ones((2, 3)), (0, 1))


@pytest.mark.parametrize("zeros", [(), (1,), (0, 2), (0, 1, 2)])
def test_the_product_of_zeros_among_others(zeros):
    x = np.array([2.0, 3.0, 5.0])
    x[list(zeros)] = 0
    expected = [math.prod(np.delete(x, j)) for j in range(3)]
    tensor = ml.Tensor(x, requires_grad=True)
    assert ml.grad(ops.prod(tensor), [tensor])[0].tolist() == expected
    check_gradients(ops.prod, [x], ["complex-step"])


@pytest.mark.parametrize("name", ["mean", "max", "min", "var", "std", "logsumexp"])
def test_a_reduction_over_a_full_axis_beside_an_empty_one_is_empty(name):
    x = np.zeros((0, 3))
    assert ops.PRIMITIVES[name](x, axis=1).shape == (0,)
    check_gradients(lambda x: ops.PRIMITIVES[name](x, axis=1), [x])


def test_equal_maxima_share_the_cotangent():
    x = ml.Tensor([[2.0, 1.0, 2.0], [0.0, 3.0, 1.0]], requires_grad=True)
    assert ml.grad(x.max(axis=1).sum(), [x])[0].tolist() == [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]


def test_equal_minima_share_the_cotangent():
    x = ml.Tensor([[2.0, 3.0, 2.0], [0.0, -3.0, 1.0]], requires_grad=True)
    assert ml.grad(ops.min(x, axis=1).sum(), [x])[0].tolist() == [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]


@pytest.mark.parametrize("name", ["max", "min"])
def test_the_extreme_of_what_is_not_a_number_is_none(name):
    x = ml.Tensor([[np.nan, 1.0], [2.0, 3.0]], requires_grad=True)
    y = ops.PRIMITIVES[name](x, axis=1)
    assert np.isnan(y.data[0]) and np.isfinite(y.data[1])
    g = ml.grad(y.sum(), [x])[0]
    assert np.isnan(g[0]).all() and g[1].tolist() == ([0, 1] if name == "max" else [1, 0])
