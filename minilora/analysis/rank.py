"""How low is the rank of Delta W? Spectra, ranks, subspaces and truncations of trained matrices.

Every function takes plain arrays (or Tensors), brings them to NumPy from wherever they are, computes in float64, at
which most GPUs are slow, and changes nothing it was given. A matrix is
M = U diag(s) V^T with s_1 >= s_2 >= ... >= 0: the columns of U (m, k) are its left singular vectors, the rows of
V^T (k, n) its right ones, k = min(m, n). Every function raises ValueError for a matrix that is empty, not
two-dimensional or not finite, and for a rank that the matrix does not have.

>>> u, s, vt = svd([[3.0, 0.0], [0.0, 4.0]])
>>> s.tolist(), stable_rank(s)
([4.0, 3.0], 1.5625)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..adapters import combine
from ..autograd.backend import to_numpy
from ..autograd.signatures import checked

# --- spectra ---------------------------------------------------------------------------------------------------------


def svd(matrix: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The thin singular value decomposition M = U diag(s) V^T.   (m, n) -> U (m, k), s (k,), V^T (k, n)"""
    u, s, vt = np.linalg.svd(_matrix("svd", matrix), full_matrices=False)
    return u, s, vt


def product_svd(B: Any, A: Any, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The SVD of Delta W = s B A without forming it.   B: (m, r), A: (r, n) -> U (m, r), s (r,), V^T (r, n)

    See `adapters/combine.py` for how. Raises ValueError when B and A do not fit, or when r exceeds min(m, n).
    """
    B, A = _matrix("product_svd", scale * _matrix("product_svd", B)), _matrix("product_svd", A)  # s B, finite
    if B.shape[1] != A.shape[0]:
        raise ValueError(
            f"product_svd: B {B.shape} @ A {A.shape}: inner dimensions {B.shape[1]} and {A.shape[0]} differ"
        )
    _check_rank("product_svd", B.shape[1], (B.shape[0], A.shape[1]))
    return combine.product_svd(B, A)


def singular_values(matrix: Any) -> np.ndarray:
    """The spectrum s_1 >= s_2 >= ... of a matrix.   (m, n) -> (min(m, n),)"""
    return np.linalg.svd(_matrix("singular_values", matrix), compute_uv=False)


def random_like(matrix: Any, rng: Any = 0) -> np.ndarray:
    """A Gaussian matrix of the same shape and Frobenius norm: what a spectrum looks like when nothing was learned.

    rng: a seed or a numpy Generator.
    """
    matrix = _matrix("random_like", matrix)
    noise = np.random.default_rng(rng).normal(size=matrix.shape)
    return noise * (np.linalg.norm(matrix) / np.linalg.norm(noise))


# --- what one number says about a spectrum ---------------------------------------------------------------------------


def effective_rank(spectrum_or_matrix: Any) -> float:
    """exp(H(p)), p_i = s_i / sum_j s_j, H(p) = -sum_i p_i log p_i: between 1 and min(m, n).

    k equal singular values give k. Takes singular values (1-D) or a matrix (2-D). Roy & Vetterli 2007, "The effective
    rank", definition 1. Raises ValueError when all are zero.
    """
    s = _spectrum("effective_rank", spectrum_or_matrix)
    p = s / s.sum()
    p = p[p > 0]  # p log p -> 0 as p -> 0
    return float(np.exp(-(p * np.log(p)).sum()))


def stable_rank(spectrum_or_matrix: Any) -> float:
    """||M||_F^2 / ||M||_2^2 = sum_i s_i^2 / s_1^2: at most the rank, and unmoved by small singular values.

    Takes singular values (1-D) or a matrix (2-D). Rudelson & Vershynin 2007, "Sampling from large matrices".
    """
    s = _spectrum("stable_rank", spectrum_or_matrix)
    return float(((s / s.max()) ** 2).sum())


def energy(spectrum_or_matrix: Any) -> np.ndarray:
    """The share of ||M||_F^2 that the best approximation of rank r = 1, 2, ... keeps: rises to 1.   -> (min(m, n),)"""
    s = np.sort(_spectrum("energy", spectrum_or_matrix))[::-1]
    kept = np.cumsum((s / s[0]) ** 2)
    return kept / kept[-1]


def energy_rank(spectrum_or_matrix: Any, share: float = 0.9) -> int:
    """The smallest r whose best approximation holds `share` of the energy ||M||_F^2 = sum_i s_i^2, 0 < share <= 1."""
    if not 0 < share <= 1:
        raise ValueError(f"energy_rank: share = {share}, expected 0 < share <= 1")
    enough = energy(spectrum_or_matrix) >= share * (1 - 1e-15)  # rounding must not cost a rank
    return int(np.argmax(enough)) + 1


def summary(spectrum_or_matrix: Any, share: float = 0.9) -> dict[str, float]:
    """{"norm": ||M||_F, "largest": s_1, "effective_rank", "stable_rank", "energy_rank"}; all of them from one SVD."""
    s = _spectrum("summary", spectrum_or_matrix)
    return {
        "norm": float(np.linalg.norm(s)),
        "largest": float(s.max()),
        "effective_rank": effective_rank(s),
        "stable_rank": stable_rank(s),
        "energy_rank": energy_rank(s, share),
    }


def summaries(updates: Mapping[str, Any], share: float = 0.9) -> list[dict[str, Any]]:
    """One record per matrix of {module name: Delta W}, such as ml.delta_weights(model) gives.

    Each is `summary` with "name" ("blocks.2.attn.q_proj"), "layer" (2, or None outside the blocks) and "matrix"
    ("q_proj"). See `by_layer` and `by_matrix` for means.
    """
    records = []
    for name, update in updates.items():
        parts = [part for part in name.split(".") if part != "weight"]
        layer = next((int(part) for part in parts if part.isdigit()), None)
        records.append({"name": name, "layer": layer, "matrix": parts[-1], **summary(update, share)})
    return records


def by_layer(records: Iterable[Mapping[str, Any]]) -> dict[Any, dict[str, float]]:
    """{layer: the mean of each number over its matrices}, from `summaries`."""
    return _means(records, "layer")


def by_matrix(records: Iterable[Mapping[str, Any]]) -> dict[Any, dict[str, float]]:
    """{matrix name: the mean of each number over the layers}, from `summaries`."""
    return _means(records, "matrix")


def _means(records: Iterable[Mapping[str, Any]], key: str) -> dict[Any, dict[str, float]]:
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(record[key], []).append(record)
    numbers = ("norm", "largest", "effective_rank", "stable_rank", "energy_rank")
    return {name: {n: float(np.mean([r[n] for r in group])) for n in numbers} for name, group in groups.items()}


# --- the hypothesis: is a low rank enough? ---------------------------------------------------------------------------


def best_approximation(matrix: Any, r: int) -> tuple[np.ndarray, np.ndarray]:
    """The matrix of rank r nearest to M, as two factors with B A = sum_{i <= r} s_i u_i v_i^T.   -> B (m, r), A (r, n)

    No other matrix of rank r is nearer in the Frobenius or the spectral norm; the squared Frobenius distance is
    sum_{i > r} s_i^2 (Eckart & Young 1936; Mirsky 1960). sqrt(s_i) goes to each side. In M's own precision.
    """
    dtype = _precision(matrix)
    u, s, vt = svd(matrix)
    _check_rank("best_approximation", r, (u.shape[0], vt.shape[1]))
    root = np.sqrt(s[:r])
    return (u[:, :r] * root).astype(dtype), (root[:, None] * vt[:r]).astype(dtype)


def adapted_matrix(name: str) -> bool:
    """Whether a state-dict name is one of the matrices LoRA adapts: q, k, v, o, up or down, not its bias."""
    return name.endswith("_proj.weight")


def truncations(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    ranks: Iterable[int],
    select: Callable[[str], bool] = adapted_matrix,
    rest: str = "after",
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """(r, state dict) for each rank: W_before + the best rank-r approximation of Delta W = W_after - W_before.

    The test of LoRA's hypothesis (Hu et al. 2021, section 4.1: "the updates to the weights also have a low 'intrinsic
    rank' during adaptation"): load each state, measure the validation loss, plot it against r. r = 0 leaves Delta W
    out. The matrices that `select` names are truncated; everything else (biases, norms, embeddings) comes from `rest`,
    "after" or "before". Each Delta W is decomposed once, whatever the number of ranks.
    Raises ValueError for state dicts that do not match, and for ranks beyond the smallest matrix.
    """
    ranks, (before, after) = list(ranks), _matching(before, after)
    if rest not in ("after", "before"):
        raise ValueError(f"truncations: rest = {rest!r}, expected 'after' or 'before'")
    names = [name for name in before if select(name)]
    if not names:
        raise ValueError(f"truncations: no matrix to truncate among {', '.join(list(before)[:8])}")
    for r in ranks:
        for name in names:
            _check_rank(f"truncations: {name}", r, before[name].shape, least=0)
    factors = {name: svd(after[name].astype(float) - before[name]) for name in names}

    def states() -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        for r in ranks:
            state = dict(after if rest == "after" else before)
            for name, (u, s, vt) in factors.items():
                state[name] = (before[name] + (u[:, :r] * s[:r]) @ vt[:r]).astype(before[name].dtype)  # (m, n)
            yield r, state

    return states()


def truncate_update(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    r: int,
    select: Callable[[str], bool] = adapted_matrix,
    rest: str = "after",
) -> dict[str, np.ndarray]:
    """The state dict in which every Delta W is truncated to rank r: one of `truncations`."""
    return next(truncations(before, after, [r], select, rest))[1]


def _matching(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[dict, dict]:
    if set(before) != set(after):
        odd = sorted(set(before) ^ set(after))
        raise ValueError(f"truncations: the two state dicts differ in {len(odd)} names: {', '.join(odd[:5])}")
    first, second = ({name: to_numpy(state[name]) for name in before} for state in (before, after))
    for name, value in first.items():
        if value.shape != second[name].shape:
            raise ValueError(f"truncations: {name} has shape {value.shape} before and {second[name].shape} after")
    return first, second


# --- section 7 of the paper: which directions? -----------------------------------------------------------------------


def subspace_similarity(A1: Any, A2: Any, i: int, j: int, side: str = "right") -> float:
    """phi(A1, A2, i, j) = ||V_1^T V_2||_F^2 / min(i, j), from 0 (orthogonal) to 1 (one subspace holds the other).

    V_1 (n, i) and V_2 (n, j) hold the first i and j right singular vectors of A1 (r1, n) and A2 (r2, n). For B's, of
    equal height, pass side="left". Random subspaces of R^n give max(i, j) / n on average. Hu et al. 2021, section 7.2,
    eq. 4. Raises ValueError for unequal widths, and for i or j beyond the rank of its matrix.
    """
    return float(similarity_grid(A1, A2, side, i, j)[-1, -1])


def similarity_grid(A1: Any, A2: Any, side: str = "right", i: int | None = None, j: int | None = None) -> np.ndarray:
    """phi(A1, A2, i', j') for all i' <= i and j' <= j: the heat maps of figures 3 and 4.   -> (i, j)

    Entry [i' - 1, j' - 1] is `subspace_similarity` at (i', j'). ||V_1^T V_2||_F^2 is a sum of squares of the products
    v_1 . v_2, so that running sums along both axes give every entry at once. i, j: default, the ranks of A1 and A2.
    """
    if side not in ("right", "left"):
        raise ValueError(f"subspace similarity: side = {side!r}, expected 'right' (for A) or 'left' (for B)")
    first, second = (_matrix("subspace similarity", A) for A in (A1, A2))
    axis = 1 if side == "right" else 0
    if first.shape[axis] != second.shape[axis]:
        raise ValueError(
            f"subspace similarity: {first.shape} and {second.shape} differ in {'width' if axis else 'height'}: "
            f"{first.shape[axis]} and {second.shape[axis]}; adapters of the same matrix can be compared"
        )
    v1, v2 = (_directions("subspace similarity", A, k)[axis] for A, k in ((A1, i), (A2, j)))
    v1, v2 = (v1, v2) if axis else (v1.T, v2.T)  # rows: (i, n), (j, n)
    squares = (v1 @ v2.T) ** 2  # (i, j)
    smaller = np.minimum.outer(np.arange(1, len(v1) + 1), np.arange(1, len(v2) + 1))
    return squares.cumsum(axis=0).cumsum(axis=1) / smaller


def projection_norm(weight: Any, directions: Any, r: int) -> float:
    """||U^T W V^T||_F: how much of W lies in the first r left and right singular directions of another matrix.

    U^T (r, m), W (m, n), V^T (n, r), in the paper's notation. Hu et al. 2021, section 7.3.
    """
    weight, other = _same_shape("projection_norm", weight, directions)
    u, vt = _directions("projection_norm", other, r)
    return float(np.linalg.norm(u.T @ weight @ vt.T))


def amplification(weight: Any, delta: Any, r: int) -> float:
    """||Delta W||_F / ||U^T W V^T||_F, U and V the first r singular vectors of Delta W: how much louder the update is
    than W itself in the directions of the update. Infinite where W has nothing there.

    Hu et al. 2021, section 7.3: 21.5 for the query matrix of GPT-3's layer 48 at r = 4. Raises ValueError for unequal
    shapes, for a Delta W of zeros, and for an r beyond its rank, where directions are arbitrary.
    """
    weight, delta = _same_shape("amplification", weight, delta)
    u, vt = _directions("amplification", delta, r)
    norm = float(np.linalg.norm(u.T @ weight @ vt.T))
    return float(np.linalg.norm(delta)) / norm if norm else float("inf")


def projection_table(weight: Any, delta: Any, r: int, rng: Any = 0) -> dict[str, float]:
    """Table 7 of the paper for one matrix: ||U^T W V^T||_F with U, V from Delta W, from W and from a random matrix.

    -> {"delta", "weight", "random": the three norms; "delta_norm": ||Delta W||_F, "weight_norm": ||W||_F,
    "amplification": delta_norm / delta}.   rng: a seed or a numpy Generator for the random matrix
    """
    return {
        "delta": projection_norm(weight, delta, r),
        "weight": projection_norm(weight, weight, r),
        "random": projection_norm(weight, random_like(weight, rng), r),
        "delta_norm": float(np.linalg.norm(_matrix("projection_table", delta))),
        "weight_norm": float(np.linalg.norm(_matrix("projection_table", weight))),
        "amplification": amplification(weight, delta, r),
    }


# --- intruder dimensions ---------------------------------------------------------------------------------------------


def best_cosines(before: Any, after: Any, k: int = 10) -> np.ndarray:
    """max_i |x_i . u_j| over all left singular vectors x_i of W_before, for the first k ones u_j of W_after.   -> (k,)

    1 where training kept a direction, low where it brought in a new one. Shuttleworth et al. 2024, "LoRA vs full
    fine-tuning: an illusion of equivalence", algorithm 1. `intruders.py` shrinks them.
    """
    before, after = _same_shape("best_cosines", before, after)
    _check_rank("best_cosines", k, after.shape, what="k")
    x, _, _ = svd(before)
    u, _, _ = svd(after)
    return np.minimum(np.abs(x.T @ u[:, :k]).max(axis=0), 1.0)


def intruder_dimensions(before: Any, after: Any, k: int = 10, epsilon: float = 0.5) -> np.ndarray:
    """Which of the first k singular vectors of W_after are intruders: best cosine below epsilon.   -> indices from 0

    Shuttleworth et al. 2024, definition 1 (3.1 in the newer version). `len` of it is the count that the paper plots.
    """
    if not 0 < epsilon <= 1:
        raise ValueError(f"intruder_dimensions: epsilon = {epsilon}, expected 0 < epsilon <= 1")
    return np.flatnonzero(best_cosines(before, after, k) < epsilon)


# --- checks ----------------------------------------------------------------------------------------------------------


def _precision(values: Any) -> np.dtype:
    """The floating-point type that the values came in; float64 for integers."""
    dtype = to_numpy(values).dtype
    return dtype if dtype.kind == "f" else np.dtype(float)


def _numbers(name: str, values: Any, what: str) -> np.ndarray:
    array = to_numpy(values)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name}: got a {what} of dtype {array.dtype}, expected real numbers")
    if array.size == 0:
        raise ValueError(f"{name}: got an empty {what} of shape {array.shape}")
    array = array.astype(float)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: {np.size(array) - np.isfinite(array).sum()} of {array.size} entries are not finite")
    return array


def _matrix(name: str, values: Any) -> np.ndarray:
    array = _numbers(name, values, "matrix")
    if array.ndim != 2:
        raise ValueError(f"{name}: got an array of shape {array.shape}, expected a matrix (m, n)")
    return array


def _spectrum(name: str, values: Any) -> np.ndarray:
    """Singular values from singular values (1-D) or from a matrix (2-D)."""
    array = _numbers(name, values, "spectrum")
    if array.ndim == 2:
        array = singular_values(array)
    if array.ndim != 1 or array.min() < 0:
        raise ValueError(
            f"{name}: got shape {array.shape}, expected singular values (k,), 0 or more, or a matrix (m, n)"
        )
    if not array.any():
        raise ValueError(f"{name}: every entry is zero: a matrix of zeros has no rank to measure")
    return array


def _same_shape(name: str, first: Any, second: Any) -> tuple[np.ndarray, np.ndarray]:
    one, two = _matrix(name, first), _matrix(name, second)
    if one.shape != two.shape:
        raise ValueError(f"{name}: got shapes {one.shape} and {two.shape}, expected two matrices of the same shape")
    return one, two


def _check_rank(name: str, r: Any, shape: tuple[int, ...], least: int = 1, what: str = "rank") -> None:
    if isinstance(r, bool) or not isinstance(r, int | np.integer):
        raise TypeError(f"{name}: {what} = {r!r}, expected an integer")
    if not least <= r <= min(shape):
        raise ValueError(f"{name}: {what} = {r}, expected {least} to {min(shape)} for a matrix of shape {shape}")


def _directions(name: str, matrix: Any, r: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The first r left and right singular vectors, U (m, r) and V^T (r, n); None: as many as the rank.

    Beyond the numerical rank (singular values above s_1 max(m, n) eps, as in numpy.linalg.matrix_rank) they would be
    arbitrary, and are refused.
    """
    precision = np.finfo(_precision(matrix)).eps
    u, s, vt = svd(matrix)
    if r is not None:
        _check_rank(name, r, (u.shape[0], vt.shape[1]))
    rank = int((s > s[0] * max(u.shape[0], vt.shape[1]) * precision).sum())
    if rank == 0:
        raise ValueError(f"{name}: a matrix of zeros has no directions to compare (is this B before training?)")
    if r is not None and r > rank:
        raise ValueError(f"{name}: rank = {r}, but this matrix has rank {rank}: directions beyond it are arbitrary")
    r = rank if r is None else r
    return u[:, :r], vt[:r]


for _name, _value in [*globals().items()]:  # what people call is held to its signature
    if callable(_value) and getattr(_value, "__module__", "") == __name__ and not _name.startswith("_"):
        globals()[_name] = checked(_value)
