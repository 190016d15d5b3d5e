"""Products: values against NumPy, gradients against two computations that know no calculus rule."""

import numpy as np
import pytest
from drawing import array, batched, check_gradients, check_same, shapes
from hypothesis import given
from hypothesis import strategies as st

from minilora import ops


@given(batched("(n?,k),(k,m?)->(n?,m?)"))
def test_matmul_of_vectors_matrices_and_batches(ab):
    a, b = ab
    np.testing.assert_allclose(ops.matmul(a, b).data, a @ b, rtol=1e-14, atol=1e-14)
    check_gradients(ops.matmul, [a, b])


@given(data=st.data())
def test_dot_of_any_dimensions(data):
    k = data.draw(st.integers(0, 3))
    lead, rest = data.draw(shapes(most_dims=2, most_side=3)), data.draw(shapes(most_dims=2, most_side=3))
    a = data.draw(array((*lead, k)))
    b = data.draw(array((*rest[:-1], k, *rest[-1:])))
    np.testing.assert_allclose(ops.dot(a, b).data, np.dot(a, b), rtol=1e-14, atol=1e-14)
    check_gradients(ops.dot, [a, b])
    check_gradients(ops.dot, [np.array(1.5), b])
    check_gradients(ops.dot, [a, np.array(-0.5)])
    check_same(
        ops.dot, lambda a, b: ops.sum(a[..., None] * b, axis=-2) if b.ndim == 2 else ops.matmul(a, b), [a, b]
    ) if b.ndim < 3 else None


@given(array(shapes(most_dims=2)), array(shapes(most_dims=2)))
def test_outer(a, b):
    np.testing.assert_array_equal(ops.outer(a, b).data, np.outer(a, b))
    check_gradients(ops.outer, [a, b])


@st.composite
def einsum_call(draw, operands):
    """Subscripts and operands: letters twice in one, in one alone, in several; dots; an explicit output or none."""
    sizes = {letter: draw(st.integers(0, 3)) for letter in "ijkl"}
    batch = draw(shapes(most_dims=2, most_side=3))
    inputs, arrays, dotted = [], [], draw(st.booleans())
    for _ in range(operands):
        own = "".join(draw(st.lists(st.sampled_from("ijkl"), max_size=3)))
        shape = tuple(sizes[letter] for letter in own)
        if dotted and draw(st.booleans()):
            seen = batch[draw(st.integers(0, len(batch))) :]
            stretched = tuple(draw(st.sampled_from([1, n])) for n in seen)
            place = draw(st.integers(0, len(own)))
            own, shape = own[:place] + "..." + own[place:], shape[:place] + stretched + shape[place:]
        inputs.append(own)
        arrays.append(draw(array(shape)))
    left = ",".join(inputs)
    if draw(st.booleans()):
        return left, arrays
    letters = sorted(set(left) - set(",."))
    output = "".join(draw(st.lists(st.sampled_from(letters), unique=True))) if letters else ""
    return f"{left}->{'...' * ('...' in left)}{output}", arrays


@pytest.mark.slow
@pytest.mark.parametrize("operands", [1, 2, 3])
@given(data=st.data())
def test_einsum(operands, data):
    subscripts, arrays = data.draw(einsum_call(operands))
    np.testing.assert_allclose(
        ops.einsum(subscripts, *arrays).data, np.einsum(subscripts, *arrays), rtol=1e-13, atol=1e-14
    )
    check_gradients(lambda *arrays: ops.einsum(subscripts, *arrays), arrays)


EINSUMS = ["ii", "ii->i", "ij->", "ij", "ba", "ij->j", "...i->...", "i...->..."]


@pytest.mark.parametrize("subscripts", EINSUMS)
def test_einsum_of_one(subscripts):
    x = np.random.default_rng(0).standard_normal((3, 3))
    np.testing.assert_allclose(ops.einsum(subscripts, x).data, np.einsum(subscripts, x), rtol=1e-14)
    check_gradients(lambda x: ops.einsum(subscripts, x), [x])


@pytest.mark.parametrize("subscripts", ["ij,ij->j", "ij,ij->ji", "ij,ij"])
def test_an_einsum_stretches_axes_of_length_one(subscripts):
    """As NumPy's does, wherever the output has them, if it has them."""
    a, b = np.random.default_rng(0).standard_normal((1, 2)), np.random.default_rng(1).standard_normal((3, 2))
    np.testing.assert_allclose(ops.einsum(subscripts, a, b).data, np.einsum(subscripts, a, b), rtol=1e-14)
    check_gradients(lambda a, b: ops.einsum(subscripts, a, b), [a, b])


def test_einsum_that_is_attention_has_attentions_scores_and_memory():
    q, k = np.random.default_rng(0).standard_normal((2, 2, 3, 4, 5))
    check_same(lambda q, k: ops.einsum("bhtd,bhsd->bhts", q, k), lambda q, k: q @ k.transpose(0, 1, 3, 2), [q, k])


WRONG = {
    "no letters": (lambda: ops.einsum(np.ones(2), np.ones(2)), "einsum: got ndarray, expected letters first"),
    "one operand too few": (lambda: ops.einsum("i,i", np.ones(2)), "einsum: 'i,i' names 2 operands, got 1"),
    "a letter too many": (lambda: ops.einsum("ijk", np.ones((2, 2))), "einsum: 'ijk' does not fit shapes (2, 2)"),
    "two lengths of a letter": (lambda: ops.einsum("i,i", np.ones(2), np.ones(3)), "einsum: "),
    "an unknown output": (lambda: ops.einsum("i->j", np.ones(2)), "einsum: "),
    "dot": (lambda: ops.dot(np.ones((2, 3)), np.ones((4, 5))), "dot: (2, 3) and (4, 5): inner dimensions"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit(case):
    call, words = WRONG[case]
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert str(caught.value).startswith(words)
