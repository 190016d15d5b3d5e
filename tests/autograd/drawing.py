"""What the tests of derivatives share: the check itself, and strategies that draw arrays for it."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minilora as ml

ANALYTIC = ("central", "complex-step")


def check_gradients(function, arrays, methods=ANALYTIC):
    """Fail unless the tape's gradients of function(*arrays) agree with every one of the methods.

    The bars are gradcheck's own: 1e-6 relative for central differences, 1e-12 for the complex step. That this
    function fails on every planted error is shown in `test_examples.py`.
    """
    for method in methods:
        report = ml.gradcheck(function, arrays, method)
        assert report.passed, f"\n{report}"


def check_same(function, composition, arrays, tolerance=1e-12):
    """Fail unless two functions have the same value and the same gradients at `arrays`, in float64."""
    here, there = ([ml.Tensor(x, requires_grad=True) for x in arrays] for _ in range(2))
    y, z = function(*here), composition(*there)
    assert y.shape == z.shape
    np.testing.assert_allclose(y.data, z.data, rtol=tolerance, atol=tolerance)
    cotangent = np.cos(np.arange(y.size)).reshape(y.shape)
    for g, h in zip(ml.grad(y, here, cotangent), ml.grad(z, there, cotangent), strict=True):
        np.testing.assert_allclose(g, h, rtol=tolerance, atol=tolerance)


LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: np.ascontiguousarray(x.T).T if x.ndim else x,
    "strided": lambda x: np.repeat(x, 2, axis=-1)[..., ::2] if x.ndim else x,
    "reversed": lambda x: x[::-1].copy()[::-1] if x.ndim else x,
}


def shapes(least_dims=0, most_dims=3, least_side=0, most_side=4):
    """Shapes, with axes of length 0 and 1 among them."""
    return hnp.array_shapes(min_dims=least_dims, max_dims=most_dims, min_side=least_side, max_side=most_side)


@st.composite
def array(draw, shape, positive=False, distinct=False):
    """A float64 array of this shape (or strategy of shapes), no entry nearer to 0 than 0.025, laid out somehow."""
    shape = draw(shape) if isinstance(shape, st.SearchStrategy) else shape
    entries = st.integers(-40, 39).map(lambda k: (2 * k + 1) / 40)
    x = draw(hnp.arrays(np.float64, shape, elements=entries, unique=distinct))
    x = 0.5 + abs(x) if positive else x
    return LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](x)


@st.composite
def spread(draw, shape):
    """An array whose last axis has no nearly equal entries: normalising one divides by almost nothing."""
    x = draw(array(shape))
    return x + 3.0 * np.arange(x.shape[-1])


@st.composite
def broadcasting(draw, count, positive=False):
    """`count` arrays that NumPy broadcasts together: size-1, missing and empty axes included."""
    together = draw(hnp.mutually_broadcastable_shapes(num_shapes=count, min_side=0, max_dims=3, max_side=3))
    return [draw(array(shape, positive)) for shape in together.input_shapes]


@st.composite
def batched(draw, signature, least_side=0):
    """Arrays for a generalised signature such as "(t,d),(s,d)->(t,s)", with batch axes that broadcast in front."""
    together = draw(hnp.mutually_broadcastable_shapes(signature=signature, min_side=least_side, max_dims=2, max_side=3))
    return [draw(array(shape)) for shape in together.input_shapes]
