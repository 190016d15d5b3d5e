"""The walk: what a vjp hands back is what is due, or is refused with the primitive, the argument, and both shapes."""

import numpy as np
import pytest
from drawing import check_gradients
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minilora as ml
from minilora.autograd.tape import sum_to_shape
from minilora.autograd.tensor import primitive


def with_vjp(vjp, output=lambda x: x * 1.0):
    """A primitive of one argument with this vjp."""

    def mine(x):
        return output(x), (vjp,)

    return primitive(mine)


def check_refused(function, x, words):
    """The backward pass fails with these words, and leaves no gradient."""
    with pytest.raises((ValueError, TypeError), match=words):
        function(x).sum().backward()
    assert x.grad is None


SHAPES = [
    ((3, 4), (4, 3)), ((3, 4), (12,)), ((3, 4), (3, 4, 1)), ((3, 4), (3, 1)), ((3, 4), ()), ((3, 4), (1, 3, 4, 2)),
    ((3,), (3, 3)), ((3,), (2, 3)), ((1, 4), (3, 4)), ((), (3,)), ((4,), (5,)), ((0, 3), (3, 0)), ((2, 2), (2, 2, 2)),
]  # fmt: skip


@pytest.mark.parametrize("due, came", SHAPES)
def test_a_vjp_of_another_shape_is_refused(due, came):
    """Nothing is reshaped into place, and nothing is summed that was not broadcast: output and input have one shape."""
    x = ml.Tensor(np.ones(due), requires_grad=True)
    if came == (3, 4, 1):
        words = r"^backward: mine's vjp of argument 0 returned shape \(3, 4, 1\), expected \(3, 4\)"
    else:
        words = r"^backward: mine's vjp of argument 0 returned shape \(.*\), expected \(.*\), or the output's \(.*\)"
    check_refused(with_vjp(lambda g: np.ones(came)), x, words)


def test_a_transposed_product_is_refused():
    @primitive
    def times(x, w):
        return x @ w, (lambda g: g @ w.T, lambda g: g.T @ x)  # x^T g is due

    x, w = np.ones((2, 3)), ml.Tensor(np.ones((3, 4)), requires_grad=True)
    words = r"^backward: times's vjp of argument 1 returned shape \(4, 3\), expected \(3, 4\), or the output's \(2, 4\)"
    check_refused(lambda w: times(x, w), w, words)


@given(data=st.data())
def test_true_broadcasting_is_undone(data):
    """An argument broadcast against another: each entry gets the sum of its own cotangents."""
    together = data.draw(hnp.mutually_broadcastable_shapes(num_shapes=2, min_side=0, max_dims=3, max_side=3))
    a, b = (np.random.default_rng(i).standard_normal(shape) for i, shape in enumerate(together.input_shapes))

    @primitive
    def mine(a, b):
        return a * b, (lambda g: g * b, lambda g: g * a)

    check_gradients(mine, [a, b], ["central"])
    x = ml.Tensor(a, requires_grad=True)
    y = mine(x, b)
    np.testing.assert_allclose(ml.grad(y, [x], np.ones(y.shape))[0], sum_to_shape(np.broadcast_to(b, y.shape), a.shape))


@given(data=st.data())
def test_what_is_no_broadcasting_is_never_summed(data):
    """An output of the input's shape, and a vjp of any other: it is refused, whatever the two shapes are."""
    due = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=3))
    came = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, max_side=3))
    x = ml.Tensor(np.ones(due), requires_grad=True)
    y = with_vjp(lambda g: np.ones(came))(x)
    if came == due:
        ml.grad(y, [x], np.ones(due))
    elif np.prod(came) == np.prod(due) and came[len(came) - len(due) :] == due:
        ml.grad(y, [x], np.ones(due))  # axes of length 1 in front hold the same entries
    else:
        with pytest.raises(ValueError, match=r"^backward: mine's vjp of argument 0 returned shape"):
            ml.grad(y, [x], np.ones(due))


RETURNS = {
    "nothing": (lambda g: None, "returned NoneType, expected an array"),
    "a list": (lambda g: [1.0, 2.0], "returned list, expected an array"),
    "a word": (lambda g: "g", "returned str, expected an array"),
    "a failure": (lambda g: g @ np.ones((3, 3)), " of argument 0: matmul: "),
    "a wrong attribute": (lambda g: g.nothing, " of argument 0: .*no attribute 'nothing'"),
    "an array": (np.ones(2), " of argument 0: 'numpy.ndarray' object is not callable"),
}


@pytest.mark.parametrize("name", RETURNS)
def test_a_vjp_that_gives_no_array_is_named(name):
    vjp, words = RETURNS[name]
    check_refused(with_vjp(vjp), ml.Tensor([1.0, 2.0], requires_grad=True), rf"^backward: mine's vjp.*{words}[^\n]*$")


def test_a_number_or_a_tensor_from_a_vjp_is_an_array():
    x = ml.Tensor(3.0, requires_grad=True)
    assert ml.grad(with_vjp(lambda g: 2.0)(x), [x])[0] == 2.0
    x = ml.Tensor([3.0, 4.0], requires_grad=True)
    assert ml.grad(with_vjp(lambda g: ml.Tensor(g) * 2)(x).sum(), [x])[0].tolist() == [2, 2]
    assert ml.grad(with_vjp(lambda g: np.array([1, 2]))(x).sum(), [x])[0].dtype == float


def test_one_function_for_all_cotangents():
    def joint(result):
        def mine(a, b):
            return a * b, result

        return primitive(mine)

    a, b = ml.Tensor([1.0, 2.0], True), ml.Tensor([3.0, 4.0], True)
    good = joint(lambda g: (g * 3, g * 4))
    assert [g.tolist() for g in ml.grad(good(a, b).sum(), [a, b])] == [[3, 3], [4, 4]]
    check_refused(
        lambda a: joint(lambda g: np.ones((2, 2)))(a, b), a, r"^backward: mine's vjp returned ndarray, expected a tuple"
    )
    check_refused(
        lambda a: joint(lambda g: (g,))(2.0, a), a, r"^backward: mine has no derivative in its argument 1; detach it"
    )
    check_refused(lambda a: joint(lambda g: (g.T @ g, g))(a, b), a, r"returned shape \(\), expected \(2,\)")
    check_refused(lambda a: joint(lambda g: g.nothing)(a, b), a, r"^backward: mine's vjp: .*no attribute 'nothing'")


def test_a_complex_derivative_of_a_real_number_is_refused():
    x = ml.Tensor([1.0, 2.0], requires_grad=True)
    words = r"^backward: multiply makes complex numbers of its real argument 'a'"
    for make in (lambda: x * (1 + 2j), lambda: x * np.array([1j, 2]), lambda: (x * 3 * 1j) * (x * 1j)):
        with pytest.raises(TypeError, match=words):
            ml.grad(make(), [x], np.ones(2))
    assert x.grad is None
    z = ml.Tensor([1.0 + 0j, 2.0], requires_grad=True)
    assert ml.grad((z * (1 + 2j)).sum(), [z])[0].tolist() == [1 + 2j] * 2
    with pytest.raises(TypeError, match=r"^backward: the cotangent is complex \(complex128\), and the output real"):
        (x * 2).backward([1j, 2])


def test_what_is_no_tensor_is_refused_by_grad():
    x = ml.Tensor([1.0, 2.0], requires_grad=True)
    for output, inputs, words in [
        (5, [x], "output is 5 (int)"), (x.data, [x], "output is array"), (x.sum(), [x.data], "input 0 is array"),
        (x.sum(), [x, None], "input 1 is None"), (None, [x], "output is None"),
    ]:  # fmt: skip
        with pytest.raises(TypeError, match=r"^grad: .*expected a Tensor$") as caught:
            ml.grad(output, inputs)
        assert words in str(caught.value)


def test_sums_over_broadcast_axes_do_not_saturate_in_float16():
    x = ml.Tensor(np.ones(2, np.float16), requires_grad=True)
    assert ml.grad((x * np.ones((4096, 2), np.float16)).sum(), [x])[0].tolist() == [4096, 4096]  # 2048 + 1 is 2048
