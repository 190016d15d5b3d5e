"""Rank analysis: matrices built by hand have the spectra, ranks and subspaces that theory gives; SciPy agrees."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora.analysis import rank


def orthonormal(rng, n, k):
    """k orthonormal columns of length n."""
    return np.linalg.qr(rng.normal(size=(n, k)))[0]


def built(rng, m, n, spectrum):
    """A matrix (m, n) with the given singular values, and its singular vectors."""
    u, v = orthonormal(rng, m, len(spectrum)), orthonormal(rng, n, len(spectrum))
    return (u * np.asarray(spectrum)) @ v.T, u, v


shapes = st.tuples(st.integers(1, 24), st.integers(1, 24))
seeds = st.integers(0, 2**32 - 1)


@given(shapes, seeds)
def test_spectra_equal_scipys(shape, seed):
    matrix = np.random.default_rng(seed).normal(size=shape)
    expected = scipy.linalg.svdvals(matrix, check_finite=True)
    np.testing.assert_allclose(rank.singular_values(matrix), expected, rtol=1e-12, atol=1e-12 * expected[0])
    u, s, vt = rank.svd(matrix)
    np.testing.assert_allclose((u * s) @ vt, matrix, atol=1e-12)


@given(shapes, st.data(), seeds)
def test_product_svd_equals_the_dense_svd(shape, data, seed):
    r = data.draw(st.integers(1, min(shape)))
    scale = data.draw(st.sampled_from([2.0, 0.125, -3.0]))
    rng = np.random.default_rng(seed)
    B, A = rng.normal(size=(shape[0], r)), rng.normal(size=(r, shape[1]))
    u, s, vt = rank.product_svd(B, A, scale)
    dense = scale * B @ A
    expected = scipy.linalg.svdvals(dense)
    np.testing.assert_allclose(s, expected[:r], atol=1e-10 * expected[0])
    np.testing.assert_allclose((u * s) @ vt, dense, atol=1e-10 * expected[0])
    np.testing.assert_allclose(u.T @ u, np.eye(r), atol=1e-12)
    np.testing.assert_allclose(vt @ vt.T, np.eye(r), atol=1e-12)


def test_product_svd_of_gpt3s_matrix_never_forms_it():
    """12,288 x 12,288 of rank 8: the dense matrix would be 1.2 GB. Three products with vectors check the factors."""
    rng = np.random.default_rng(0)
    B, A = rng.normal(size=(12288, 8)), rng.normal(size=(8, 12288))
    u, s, vt = rank.product_svd(B, A, 2.0)
    for _ in range(3):
        x = rng.normal(size=12288)
        expected = 2.0 * (B @ (A @ x))
        assert np.linalg.norm((u * s) @ (vt @ x) - expected) <= 1e-10 * np.linalg.norm(expected)


def test_product_svd_of_deficient_factors():
    """B of zeros, as before training, and a repeated direction: zeros in the spectrum, no division by them."""
    rng = np.random.default_rng(0)
    A = rng.normal(size=(3, 9))
    assert rank.product_svd(np.zeros((7, 3)), A)[1].tolist() == [0, 0, 0]
    B = np.outer(rng.normal(size=7), [1, 2, 3])
    assert np.linalg.matrix_rank(np.diag(rank.product_svd(B, A)[1])) == 1


@given(st.integers(1, 12), st.floats(0.01, 100), seeds)
def test_k_equal_singular_values_have_every_rank_k(k, size, seed):
    matrix, _, _ = built(np.random.default_rng(seed), 16, 12, [size] * k)
    assert rank.effective_rank(matrix) == pytest.approx(k, rel=1e-6)
    assert rank.stable_rank(matrix) == pytest.approx(k)
    assert rank.energy_rank(matrix, share=1 - 1e-9) == k


@given(st.lists(st.floats(0, 10), min_size=1, max_size=9), seeds)
def test_ranks_from_numbers_and_from_a_matrix_agree_with_their_definitions(spectrum, seed):
    spectrum = sorted([*spectrum, 10.0], reverse=True)
    s = np.array(spectrum)
    matrix, _, _ = built(np.random.default_rng(seed), 12, 11, spectrum)
    p = s / s.sum()
    expected = np.exp(scipy.stats.entropy(p))
    assert rank.effective_rank(s) == pytest.approx(expected)
    assert rank.effective_rank(matrix) == pytest.approx(expected, rel=1e-6)
    assert rank.stable_rank(matrix) == pytest.approx((s**2).sum() / s[0] ** 2)
    for share in (0.5, 0.9, 1.0):
        by_hand = next(k for k in range(1, len(s) + 1) if (s[:k] ** 2).sum() >= share * (s**2).sum() * (1 - 1e-15))
        assert rank.energy_rank(s, share) == by_hand
    assert rank.energy_rank(s[::-1]) == rank.energy_rank(s)


def test_energy_of_three_four_five():
    """9 + 16 = 25: the first of (4, 3) holds 16/25 = 64 %."""
    np.testing.assert_allclose(rank.energy([4, 3]), [0.64, 1])
    assert [rank.energy_rank([4, 3], share) for share in (0.63, 0.65)] == [1, 2]
    assert rank.energy_rank([3, 1, 0]) == 1  # 9 of 10 is 90 %, exactly
    for scale in (1e-200, 1e200):  # whose squares are 0 and infinite
        np.testing.assert_allclose(rank.energy([4 * scale, 3 * scale]), [0.64, 1])
        assert rank.stable_rank([4 * scale, 3 * scale]) == pytest.approx(25 / 16)


def test_random_like_keeps_shape_and_norm():
    matrix = np.random.default_rng(1).normal(size=(5, 8)) * 7
    noise = rank.random_like(matrix, rng=3)
    assert noise.shape == matrix.shape
    assert np.linalg.norm(noise) == pytest.approx(np.linalg.norm(matrix))
    assert (noise == rank.random_like(matrix, rng=np.random.default_rng(3))).all()
    assert not np.allclose(noise, rank.random_like(matrix, rng=4))


@given(shapes, st.data(), seeds)
def test_best_approximation_is_eckart_youngs(shape, data, seed):
    r = data.draw(st.integers(1, min(shape)))
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=shape)
    B, A = rank.best_approximation(matrix, r)
    assert B.shape == (shape[0], r) and A.shape == (r, shape[1])
    rest = scipy.linalg.svdvals(matrix)[r:]
    assert np.linalg.norm(matrix - B @ A) == pytest.approx(np.sqrt((rest**2).sum()), abs=1e-10)
    other = matrix - rng.normal(size=(shape[0], r)) @ rng.normal(size=(r, shape[1]))
    assert np.linalg.norm(matrix - B @ A) <= np.linalg.norm(other) + 1e-10
    np.testing.assert_allclose(B.T @ B, A @ A.T, atol=1e-9)  # the same share of s on either side


def test_best_approximation_keeps_the_precision():
    B, A = rank.best_approximation(np.eye(3, dtype=np.float32), 2)
    assert B.dtype == A.dtype == np.float32
    assert rank.best_approximation([[1, 2], [3, 4]], 1)[0].dtype == np.float64


@given(st.integers(1, 8), st.integers(1, 8), seeds)
def test_a_subspace_is_similar_to_itself_and_not_to_its_complement(i, j, seed):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(8, 20))
    assert rank.subspace_similarity(A, A, i, j) == pytest.approx(1)
    turned = orthonormal(rng, 8, 8) @ A  # other rows, the same row space
    assert rank.subspace_similarity(A, turned, 8, 8) == pytest.approx(1)
    basis = orthonormal(rng, 20, 16).T
    assert rank.subspace_similarity(basis[:8], basis[8:], i, j) == pytest.approx(0, abs=1e-12)


@given(st.integers(1, 6), st.integers(1, 5), seeds)
def test_similarity_equals_equation_4_and_scipys_angles(i, j, seed):
    rng = np.random.default_rng(seed)
    A1, A2 = rng.normal(size=(6, 15)), rng.normal(size=(5, 15))
    v1, v2 = (scipy.linalg.svd(A)[2] for A in (A1, A2))
    by_hand = np.linalg.norm(v1[:i] @ v2[:j].T) ** 2 / min(i, j)
    angles = scipy.linalg.subspace_angles(v1[:i].T, v2[:j].T)
    phi = rank.subspace_similarity(A1, A2, i, j)
    assert phi == pytest.approx(by_hand)
    assert phi == pytest.approx((np.cos(angles) ** 2).mean(), abs=1e-9)
    assert rank.similarity_grid(A1, A2)[i - 1, j - 1] == pytest.approx(phi)
    assert rank.similarity_grid(A1, A2, i=i, j=j).shape == (i, j)
    assert rank.subspace_similarity(A1.T, A2.T, i, j, side="left") == pytest.approx(phi)


def test_random_subspaces_are_similar_by_their_share_of_the_space():
    """E phi(i, j) = max(i, j) / n: i j expected squared cosines of 1/n each, over min(i, j)."""
    rng = np.random.default_rng(0)
    draws = [rank.similarity_grid(rng.normal(size=(4, 64)), rng.normal(size=(8, 64))) for _ in range(400)]
    mean = np.mean(draws, axis=0)
    expected = np.maximum.outer(np.arange(1, 5), np.arange(1, 9)) / 64
    np.testing.assert_allclose(mean, expected, rtol=0.2)
    assert mean[3, 7] == pytest.approx(8 / 64, rel=0.03)


def test_amplification_of_a_matrix_built_by_hand():
    """W = diag(10, 2, 1) on known axes; Delta W amplifies the second and third by 3 and 5."""
    rng = np.random.default_rng(0)
    u, v = orthonormal(rng, 6, 3), orthonormal(rng, 5, 3)
    weight = (u * [10.0, 2.0, 1.0]) @ v.T
    delta = (u * [0.0, 6.0, 5.0]) @ v.T
    norm = np.hypot(6, 5)
    assert rank.amplification(weight, delta, 1) == pytest.approx(norm / 2)
    assert rank.amplification(weight, delta, 2) == pytest.approx(norm / np.hypot(2, 1))
    assert rank.amplification(np.zeros((6, 5)), delta, 2) == float("inf")
    table = rank.projection_table(weight, delta, 2, rng=0)
    assert table["delta"] == pytest.approx(np.hypot(2, 1))
    assert table["weight"] == pytest.approx(np.hypot(10, 2))
    assert table["delta_norm"] == pytest.approx(norm)
    assert table["amplification"] == pytest.approx(norm / np.hypot(2, 1))
    ur, _, vr = np.linalg.svd(rank.random_like(weight, 0))
    assert table["random"] == pytest.approx(np.linalg.norm(ur[:, :2].T @ weight @ vr[:2].T))


def test_an_intruder_is_found_where_it_was_put():
    """W_after keeps W_before's directions and gets one between all of them, as its second largest."""
    rng = np.random.default_rng(0)
    before, u, v = built(rng, 64, 32, np.linspace(3, 1, 32))
    mixed = u @ np.ones(32) / np.sqrt(32)
    intruding = before + 5.0 * np.outer(mixed, v @ np.ones(32) / np.sqrt(32))
    assert rank.intruder_dimensions(before, 1.5 * before, k=10).tolist() == []
    np.testing.assert_allclose(rank.best_cosines(before, 1.5 * before, 10), 1)
    assert rank.intruder_dimensions(before, intruding, k=1).tolist() == [0]
    expected = np.abs(scipy.linalg.svd(before)[0][:, :32].T @ scipy.linalg.svd(intruding)[0][:, :5]).max(axis=0)
    np.testing.assert_allclose(rank.best_cosines(before, intruding, 5), expected)


def fine_tuned():
    """A tiny model before and after a change of every parameter."""
    model = ml.GPT(ml.GPTConfig(7, 8, 2, 2, 8))
    before = model.state_dict()
    rng = np.random.default_rng(0)
    after = {name: value + rng.normal(size=value.shape).astype(value.dtype) for name, value in before.items()}
    return model, before, after


def test_truncations_run_from_the_base_to_the_fine_tuned_model():
    model, before, after = fine_tuned()
    states = dict(rank.truncations(before, after, [0, 3, 8]))
    for name in before:
        if not name.endswith("_proj.weight"):
            assert (states[0][name] == after[name]).all() and (states[3][name] == after[name]).all()
            continue
        np.testing.assert_allclose(states[0][name], before[name], atol=1e-6)
        np.testing.assert_allclose(states[8][name], after[name], atol=1e-5)
        B, A = rank.best_approximation(after[name].astype(float) - before[name], 3)
        np.testing.assert_allclose(states[3][name], before[name] + B @ A, atol=1e-5)
        assert states[3][name].dtype == np.float32
    model.load_state_dict(states[3])
    kept = rank.truncate_update(before, after, 3, rest="before")
    assert (kept["wte.weight"] == before["wte.weight"]).all()
    assert (kept["blocks.0.attn.q_proj.weight"] == states[3]["blocks.0.attn.q_proj.weight"]).all()


def test_summaries_of_a_models_updates():
    model = ml.add_lora(ml.GPT(ml.GPTConfig(7, 8, 2, 2, 8)), ml.LoRAConfig(rank=2))
    for _, p in model.named_parameters():
        p.data[...] = np.random.default_rng(p.size).normal(size=p.shape)
    updates = ml.delta_weights(model)
    records = rank.summaries(updates)
    assert [(r["layer"], r["matrix"]) for r in records] == [(0, "q_proj"), (0, "v_proj"), (1, "q_proj"), (1, "v_proj")]
    first = records[0]
    assert first["norm"] == pytest.approx(np.linalg.norm(updates[first["name"]]), rel=1e-6)
    assert first["effective_rank"] == pytest.approx(rank.effective_rank(updates[first["name"]]))
    assert 1 <= first["stable_rank"] <= 2 and first["energy_rank"] <= 2
    mean = (records[0]["norm"] + records[1]["norm"]) / 2
    assert rank.by_layer(records)[0]["norm"] == pytest.approx(mean)
    assert rank.by_matrix(records)["q_proj"]["norm"] == pytest.approx((records[0]["norm"] + records[2]["norm"]) / 2)
    assert rank.summaries({"blocks.3.mlp.up_proj.weight": np.eye(2)})[0]["matrix"] == "up_proj"


def test_tensors_are_taken_and_nothing_is_changed():
    matrix = np.arange(12.0).reshape(3, 4)
    copy = matrix.copy()
    assert rank.stable_rank(ml.Tensor(matrix)) == rank.stable_rank(matrix)
    rank.amplification(matrix, matrix, 1)
    assert (matrix == copy).all()


def test_what_is_taken_where_nothing_is_said():
    """Seed 0, ten directions, epsilon 1/2, a share of 0.9, matrices that LoRA adapts, and the rest as trained."""
    rng = np.random.default_rng(1)
    before, after = rng.normal(size=(40, 30)), rng.normal(size=(40, 30))
    assert (rank.random_like(before) == rank.random_like(before, 0)).all()
    assert rank.projection_table(before, after, 2) == rank.projection_table(before, after, 2, rng=0)
    assert (rank.best_cosines(before, after) == rank.best_cosines(before, after, 10)).all()
    assert len(rank.best_cosines(before, after)) == 10
    near = before + 2 * after
    found = rank.intruder_dimensions(before, near)
    assert found.tolist() == np.flatnonzero(rank.best_cosines(before, near, 10) < 0.5).tolist() and 0 < len(found) < 10
    assert rank.summary(before) == rank.summary(before, 0.9) and rank.energy_rank(before) == rank.energy_rank(
        before, 0.9
    )
    assert rank.summary(before, 0.5)["energy_rank"] == rank.energy_rank(before, 0.5) < rank.energy_rank(before)
    _, first, last = fine_tuned()
    assert (rank.truncate_update(first, last, 3)["wte.weight"] == last["wte.weight"]).all()
    assert rank.subspace_similarity(before, after, 2, 3) == rank.subspace_similarity(before, after, 2, 3, "right")


BAD = {
    "empty": (lambda: rank.singular_values(np.zeros((0, 3))), ValueError, "empty"),
    "not a matrix": (lambda: rank.svd(np.zeros(3)), ValueError, r"shape \(3,\), expected a matrix"),
    "nan": (lambda: rank.effective_rank(np.array([[1.0, np.nan]])), ValueError, "1 of 2 entries are not finite"),
    "inf": (lambda: rank.best_approximation(np.full((2, 2), np.inf), 1), ValueError, "4 of 4 entries"),
    "text": (lambda: rank.svd(np.array([["a"]])), TypeError, "expected real numbers"),
    "complex": (lambda: rank.svd(np.eye(2) * 1j), TypeError, "expected real numbers"),
    "negative": (lambda: rank.stable_rank([1.0, -1.0]), ValueError, "singular values"),
    "zeros": (lambda: rank.effective_rank(np.zeros((2, 2))), ValueError, "zero"),
    "rank too large": (lambda: rank.best_approximation(np.eye(3), 4), ValueError, "rank = 4, expected 1 to 3"),
    "rank 0": (lambda: rank.best_approximation(np.eye(3), 0), ValueError, "rank = 0, expected 1 to 3"),
    "rank no integer": (lambda: rank.best_approximation(np.eye(3), 1.5), TypeError, "expected an integer"),
    "widths": (lambda: rank.subspace_similarity(np.eye(3), np.eye(4), 1, 1), ValueError, "width: 3 and 4"),
    "heights": (lambda: rank.similarity_grid(np.eye(3), np.eye(4), "left"), ValueError, "height: 3 and 4"),
    "side": (lambda: rank.similarity_grid(np.eye(3), np.eye(3), "top"), ValueError, "side = 'top'"),
    "i too large": (lambda: rank.subspace_similarity(np.eye(3), np.eye(3), 4, 1), ValueError, "rank = 4"),
    "untrained B": (lambda: rank.similarity_grid(np.zeros((3, 2)), np.eye(3, 2), "left"), ValueError, "zeros"),
    "beyond the rank": (lambda: rank.amplification(np.eye(3), np.ones((3, 3)), 2), ValueError, "has rank 1"),
    "delta zero": (lambda: rank.amplification(np.eye(3), np.zeros((3, 3)), 1), ValueError, "zeros"),
    "shapes": (lambda: rank.amplification(np.eye(3), np.eye(4), 1), ValueError, r"\(3, 3\) and \(4, 4\)"),
    "factors": (lambda: rank.product_svd(np.ones((4, 2)), np.ones((3, 4))), ValueError, "inner dimensions 2 and 3"),
    "factors too wide": (lambda: rank.product_svd(np.ones((2, 3)), np.ones((3, 4))), ValueError, "rank = 3"),
    "factors too narrow": (
        lambda: rank.product_svd(np.ones((4, 3)), np.ones((3, 2))),
        ValueError,
        "rank = 3, .* 1 to 2",
    ),
    "k": (lambda: rank.best_cosines(np.eye(3), np.eye(3), 4), ValueError, "k = 4, expected 1 to 3"),
    "epsilon": (lambda: rank.intruder_dimensions(np.eye(3), np.eye(3), 1, epsilon=0), ValueError, "epsilon = 0"),
    "share": (lambda: rank.energy_rank(np.eye(3), share=1.5), ValueError, "share = 1.5"),
    "names differ": (lambda: rank.truncations({"a": 1}, {"b": 1}, [1]), ValueError, "differ in 2 names: a, b"),
    "no matrices": (lambda: rank.truncations({"a": np.eye(2)}, {"a": np.eye(2)}, [1]), ValueError, "no matrix"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_in_one_line(case):
    call, kind, words = BAD[case]
    with pytest.raises(kind, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_truncating_beyond_the_smallest_matrix_is_refused():
    _, before, after = fine_tuned()
    with pytest.raises(ValueError, match=r"q_proj.weight: rank = 9, expected 0 to 8"):
        rank.truncations(before, after, [2, 9])
    with pytest.raises(ValueError, match=r"wte.weight has shape \(7, 8\) before and \(2, 2\) after"):
        rank.truncations(before, {**after, "wte.weight": np.eye(2)}, [2])
    with pytest.raises(ValueError, match="rest = 'neither'"):
        rank.truncate_update(before, after, 2, rest="neither")
