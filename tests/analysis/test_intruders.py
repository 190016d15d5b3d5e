"""Shrinking directions of a tuned matrix: against the SVD written out, and what stays as it is."""

import numpy as np
import pytest

from minilora.analysis import intruders, rank


def tuned(m=24, n=16, r=2, seed=0):
    """A matrix, and the same with r strong directions that are none of its own."""
    rng = np.random.default_rng(seed)
    before = rng.normal(size=(m, n))
    return before, before + 8 * rng.normal(size=(m, r)) @ rng.normal(size=(r, n))


def test_the_intruders_values_are_scaled_and_nothing_else():
    before, after = tuned()
    found = rank.intruder_dimensions(before, after, 4)
    assert len(found)
    u, s, vt = np.linalg.svd(after, full_matrices=False)
    for factor in (0.0, 0.3, 1.0, 2.0):
        scaled = s.copy()
        scaled[found] *= factor
        np.testing.assert_allclose(
            intruders.shrink_intruders(before, after, factor, k=4), (u * scaled) @ vt, atol=1e-10
        )


def test_without_an_intruder_nothing_changes():
    before, _ = tuned()
    np.testing.assert_array_equal(intruders.shrink_intruders(before, 1.5 * before, 0.0), 1.5 * before)


def test_parts_add_up_to_the_matrix_and_are_orthogonal():
    _, after = tuned()
    some, rest = intruders.part_of(after, [0, 3]), intruders.part_of(after, [i for i in range(16) if i not in (0, 3)])
    np.testing.assert_allclose(some + rest, after, atol=1e-12)
    assert np.vdot(some, rest) == pytest.approx(0, abs=1e-9) and np.linalg.matrix_rank(some) == 2
    assert not intruders.part_of(after, []).any()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda a: intruders.part_of(a, [16]), "16 is none of 0 to 15"),
        (lambda a: intruders.part_of(a, [-1]), "-1 is none of 0 to 15"),
        (lambda a: intruders.part_of(a, [True]), "True is none of"),
        (lambda a: intruders.part_of(a, [1, 1]), "one is named twice"),
        (lambda a: intruders.shrink_intruders(a, a, float("nan")), "factor = nan, expected a finite number"),
        (lambda a: intruders.shrink_intruders(a, a.T, 0.5), "expected two matrices of the same shape"),
    ],
)
def test_bad_arguments_are_one_line(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call(tuned()[1])
    assert "\n" not in str(error.value)
