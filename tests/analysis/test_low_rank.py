"""Updates that are never formed have the numbers of the dense matrix, to 1e-10, whatever their ranks."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from minilora.analysis import low_rank, rank

BAR = 1e-10


@st.composite
def updates(draw, shape=None):
    """B (m, r) and A (r, n): full, of lower rank, zero, and with an r beyond m and n; of any size."""
    m, n = shape or (draw(st.integers(1, 12)), draw(st.integers(1, 12)))
    r, seed = draw(st.integers(1, 15)), draw(st.integers(0, 2**32 - 1))
    rng, size = np.random.default_rng(seed), draw(st.sampled_from([1e-6, 1.0, 1e4]))
    B, A = size * rng.normal(size=(m, r)), rng.normal(size=(r, n))
    kind = draw(st.sampled_from(["full", "full", "deficient", "zero"]))
    if kind == "deficient":
        B[:, r // 2 :] = B[:, :1]
    return (0 * B, A) if kind == "zero" else (B, A)


@given(updates())
def test_spectra_norms_and_vectors_are_the_dense_matrix_s(update):
    B, A = update
    dense = B @ A
    expected = scipy.linalg.svdvals(dense)
    scale = expected[0] or 1.0
    s = low_rank.singular_values(B, A)
    k = min(*dense.shape, len(A))
    assert s.shape == (k,) and not expected[k:].any(where=expected[k:] > BAR * scale)
    np.testing.assert_allclose(s, expected[:k], atol=BAR * scale)
    u, s, vt = low_rank.svd(B, A)
    np.testing.assert_allclose((u * s) @ vt, dense, atol=BAR * scale)
    np.testing.assert_allclose(u.T @ u, np.eye(k), atol=BAR)
    assert low_rank.norm(B, A) == pytest.approx(np.linalg.norm(dense), abs=BAR * scale)


@given(updates())
def test_descriptions_are_those_of_the_dense_matrix(update):
    """By the definitions, written out."""
    dense = update[0] @ update[1]
    told, s = low_rank.describe(low_rank.singular_values(*update)), scipy.linalg.svdvals(dense)
    if not dense.any():
        assert set(told.values()) == {0}
        return
    p, kept = s[s > 0] / s.sum(), np.cumsum(s**2) / (s**2).sum()
    assert told["frobenius_norm"] == pytest.approx(np.sqrt((dense**2).sum()), rel=BAR)
    assert told["spectral_norm"] == pytest.approx(np.linalg.norm(dense, 2), rel=BAR)
    assert told["effective_rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=BAR)
    assert told["stable_rank"] == pytest.approx((dense**2).sum() / np.linalg.norm(dense, 2) ** 2, rel=BAR)
    assert (told["rank_90"], told["rank_99"]) == tuple(int((kept < e * (1 - 1e-13)).sum()) + 1 for e in (0.9, 0.99))


def test_descriptions_of_spectra_that_are_known():
    """Four equal directions are four; one that holds 95 % of the energy is one of 90 % and two of 99."""
    four = {"frobenius_norm": 6.0, "spectral_norm": 3.0, "effective_rank": 4.0, "stable_rank": 4.0}
    assert low_rank.describe([3.0] * 4) == pytest.approx({**four, "rank_90": 4, "rank_99": 4})
    assert [low_rank.describe(np.sqrt([95, 4.5, 0.5]))[f"rank_{e}"] for e in (90, 99)] == [1, 2]


@given(updates(), st.integers(1, 8))
def test_a_truncation_is_eckart_and_young_s(update, k):
    """The distance is that of the best matrix of rank k, and it is the distance of what came."""
    dense = update[0] @ update[1]
    u, s, vt = np.linalg.svd(dense)
    B, A, lost = low_rank.truncate(*update, rank=k)
    scale = s[0] or 1.0
    best = (u[:, : len(s[:k])] * s[:k]) @ vt[: len(s[:k])]
    assert B.shape[1] == len(A) == min(k, *dense.shape, len(update[1]))
    np.testing.assert_allclose(np.linalg.norm(B @ A - dense), np.linalg.norm(best - dense), atol=BAR * scale)
    assert lost == pytest.approx(np.linalg.norm(best - dense), abs=BAR * scale)
    np.testing.assert_allclose(np.linalg.norm(B, axis=0), np.linalg.norm(A, axis=1), atol=1e-8 * scale)  # balanced


@given(updates(), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_truncation_to_an_energy_holds_it_and_no_smaller_rank_does(update, energy):
    dense = update[0] @ update[1]
    B, _, lost = low_rank.truncate(*update, energy=energy)
    all_of_it = (dense**2).sum()
    assert lost**2 <= (1 - energy) * all_of_it + 1e-13 * all_of_it
    if B.shape[1] > 1:
        shorter = low_rank.truncate(*update, rank=B.shape[1] - 1)[2]
        assert shorter**2 >= (1 - energy) * all_of_it * (1 - 1e-9)


@given(st.data(), st.tuples(st.integers(1, 9), st.integers(1, 9)), st.integers(1, 4))
def test_sums_are_exact(data, shape, count):
    """Of updates of any ranks and weights."""
    several = [data.draw(updates(shape)) for _ in range(count)]
    B, A = low_rank.total(several)
    dense = sum(b @ a for b, a in several)
    np.testing.assert_allclose(B @ A, dense, atol=1e-12 * max(1.0, np.abs(dense).max()))
    assert B.shape[1] == sum(len(a) for _, a in several)


@given(st.data(), st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_products_cosines_and_distances_are_those_of_the_dense_matrices(data, shape):
    one, other = data.draw(updates(shape)), data.draw(updates(shape))
    first, second = one[0] @ one[1], other[0] @ other[1]
    size = np.linalg.norm(first) * np.linalg.norm(second)
    assert low_rank.inner(one, other) == pytest.approx((first * second).sum(), abs=BAR * (size or 1))
    if size:
        assert low_rank.cosine(one, other) == pytest.approx((first * second).sum() / size, abs=1e-9)
        assert low_rank.cosine(one, (-2 * one[0], one[1])) == pytest.approx(-1, abs=1e-12)
    else:
        assert low_rank.cosine(one, other) is None
    scale = np.linalg.norm(first) + np.linalg.norm(second)
    assert low_rank.distance(one, other) == pytest.approx(np.linalg.norm(first - second), abs=BAR * (scale or 1))


def test_the_distance_of_neighbours_keeps_its_digits():
    """1e-9 apart: the norms' difference of squares would have none left."""
    rng = np.random.default_rng(0)
    B, A, step = rng.normal(size=(40, 3)), rng.normal(size=(3, 30)), 1e-9 * rng.normal(size=(40, 3))
    assert low_rank.distance((B + step, A), (B, A)) == pytest.approx(np.linalg.norm(step @ A), rel=1e-5)


def test_similarity_is_the_paper_s():
    """phi at the smaller rank; one subspace in another gives 1, orthogonal ones 0, no rows nothing."""
    rng = np.random.default_rng(0)
    A1, A2 = rng.normal(size=(2, 9)), rng.normal(size=(4, 9))
    assert low_rank.similarity(A1, A2, "right") == (pytest.approx(rank.subspace_similarity(A1, A2, 2, 2)), 2)
    assert low_rank.similarity(A2[:2] * 3, A2[[1, 0]] + A2[0], "right") == (pytest.approx(1.0), 2)
    assert low_rank.similarity(np.eye(6)[:, :2], np.eye(6)[:, 2:], "left") == (0.0, 2)
    assert low_rank.similarity(0 * A1, A2, "right") == (None, 0)
    assert low_rank.similarity(A1[[0, 0]], A2, "right")[1] == 1  # of rank 1


def test_half_precision_is_taken_for_what_it_is():
    B, A = np.ones((4, 2), "float16"), np.full((2, 3), 300, "float16")
    assert low_rank.norm(B, A) == pytest.approx(600 * np.sqrt(12))  # in float16 this would be infinite


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda B, A: low_rank.singular_values(B, A[:, :1].T), r"singular_values: B \(4, 2\) @ A \(1, 2\): inner"),
        (lambda B, A: low_rank.svd(B[0], A), r"svd: got an array of shape \(2,\), expected a matrix"),
        (lambda B, A: low_rank.norm(B * np.nan, A), r"singular_values: 8 of 8 entries are not finite"),
        (lambda B, A: low_rank.truncate(B, A), r"truncate: rank = None and energy = None; give one of the two"),
        (lambda B, A: low_rank.truncate(B, A, 1, 0.5), r"truncate: rank = 1 and energy = 0.5; give one"),
        (lambda B, A: low_rank.truncate(B, A, energy=1.5), r"truncate: energy = 1.5, expected 0 < energy <= 1"),
        (lambda B, A: low_rank.truncate(B, A, energy=float("nan")), r"truncate: energy = nan"),
        (lambda B, A: low_rank.truncate(B, A, 0), r"truncate: rank = 0, expected a positive integer"),
        (lambda B, A: low_rank.truncate(B, A, 1.5), r"truncate: rank = 1.5, expected a positive integer"),
        (lambda B, A: low_rank.total([(B, A), (B[:3], A)]), r"total: updates of shapes \(4, 3\), \(3, 3\)"),
        (lambda B, A: low_rank.total([]), r"total: updates of shapes none"),
        (lambda B, A: low_rank.inner((B, A), (B[:3], A)), r"inner: \(4, 3\) and \(3, 3\), expected one shape"),
        (
            lambda B, A: low_rank.similarity(A, B, "right"),
            r"subspace similarity: \(2, 3\) and \(4, 2\) differ in width",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(call, words):
    rng = np.random.default_rng(0)
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        call(rng.normal(size=(4, 2)), rng.normal(size=(2, 3)))
    assert "\n" not in str(caught.value)
