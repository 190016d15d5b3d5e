"""Randomised SVD beside NumPy's dense one, its bound, and what a random matrix's directions hold."""

import numpy as np
import pytest

from minilora.analysis.randomised import random_share, randomised_svd


def falling(m: int, n: int, fall: float = 0.8, seed: int = 0) -> np.ndarray:
    """A matrix (m, n) with singular values 1, fall, fall^2 ..."""
    rng = np.random.default_rng(seed)
    k = min(m, n)
    u, v = (np.linalg.qr(rng.normal(size=(size, k)))[0] for size in (m, n))
    return (u * fall ** np.arange(k)) @ v.T


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (5, 3), (1, 7)])
@pytest.mark.parametrize("rank", [1, 4, 50])
def test_the_largest_singular_values_are_numpy_s(shape, rank):
    D = falling(*shape)
    s = np.linalg.svd(D, compute_uv=False)
    found = randomised_svd(D, rank)
    k = min(rank, *shape)
    assert len(found.s) == k and found.u.shape == (shape[0], k) and found.vt.shape == (k, shape[1])
    np.testing.assert_allclose(found.s, s[:k], rtol=1e-5)
    error = np.linalg.norm(D - (found.u * found.s) @ found.vt, 2)
    assert error <= found.bound + 1e-12 and error <= 1.01 * s[k : k + 1].sum() + 1e-12


@pytest.mark.parametrize("seed", range(20))
def test_the_bound_holds_of_noise(seed):
    """Where nothing is low-rank the error is large, and the bound is above it, by no more than its factor."""
    D = np.random.default_rng(seed).normal(size=(80, 60)).astype("f")
    found = randomised_svd(D, 4, seed)
    error = np.linalg.norm(D - (found.u * found.s) @ found.vt, 2)
    assert error <= found.bound <= 200 * error and found.u.dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(300, 300), (100, 400), (400, 100)])
def test_random_share_is_that_of_random_matrices(shape):
    s = np.linalg.svd(np.random.default_rng(0).normal(size=shape), compute_uv=False) ** 2
    for k in (1, 10, 50, 100):
        assert random_share(shape, k) == pytest.approx(s[:k].sum() / s.sum(), abs=0.01)
    assert random_share(shape, 1000) == pytest.approx(1)
