"""Arithmetic with adapters: sum_i w_i Delta W_i of several LoRA adapters on one base, as one LoRA adapter.

An update is s B A, and a sum of products is one product of longer matrices:

    w_1 s_1 B_1 A_1 + w_2 s_2 B_2 A_2  =  [w_1 s_1 B_1  w_2 s_2 B_2] [A_1]
                                                                     [A_2]

so the sum is exact at rank r_1 + r_2 ("concatenate"). Its singular value decomposition, cut at a chosen rank, is the
closest update of that rank ("svd": Eckart & Young 1936). Weights that add to 1 mix tasks; all 1 add them; -1 negates
one: a model that unlearns what the adapter learned (Ilharco et al. 2023, "Editing models with task arithmetic",
section 3). Averaging the A's and the B's by themselves ("linear") is cheap, keeps the rank, and is another update:

    (B_1 + B_2)(A_1 + A_2)  =  B_1 A_1 + B_2 A_2  +  B_1 A_2 + B_2 A_1        the last two belong to neither adapter
"""

import math
from collections.abc import Mapping
from typing import Any

from ..autograd.backend import Array, array_module
from ..nn.checks import is_real, is_whole, shown
from .adapter import Adapter
from .attach import attach, build
from .lora import LoRAConfig
from .low_rank import LowRank
from .state import carried, changeable, refuse_taken

HOW = ("concatenate", "svd", "linear")
Factors = tuple[float, Array, Array]  # s, B (d_out, r), A (r, d_in), so that Delta W = s B A


def combine_adapters(
    model: Any, weights: Mapping[str, float], how: str = "concatenate", rank: int | None = None, name: str = "combined"
) -> Any:
    """Add the adapter with Delta W = sum_i w_i Delta W_i under a new name, and switch to it; returns the model.

    weights: {adapter's name: w_i}, as in {"docs": 0.7, "code": 0.3}. how: "concatenate" (exact), "svd" (the closest of
    a `rank`; by default the largest of the adapters') or "linear" (for adapters of one rank; not the sum, see above).
    The result is a LoRA adapter with alpha = rank, so that its scale is 1; the others stay as they are.
    Raises ValueError, and changes nothing, for names that are unknown or taken, adapters that are not LoRA or have
    other target modules, weights that are not finite, and ranks that do not fit the matrices.
    """
    if not isinstance(how, str) or how not in HOW:
        raise ValueError(f"combine_adapters: how = {shown(how)}, expected one of {', '.join(map(repr, HOW))}")
    if rank is not None and how != "svd":
        raise ValueError(f"combine_adapters: rank = {shown(rank)} is for how='svd'; {shown(how)} has no choice")
    if not isinstance(weights, Mapping):
        raise TypeError(f"combine_adapters: weights = {shown(weights)}, expected {{name: weight}}: {{'docs': 0.7}}")
    if bad := [w for w in weights.values() if not is_real(w) or not math.isfinite(w)]:
        raise ValueError(f"combine_adapters: a weight is {shown(bad[0])}, expected finite numbers")
    refuse_taken(changeable(model, "combine_adapters"), name, "combine_adapters")
    updates = _same_targets({one: lora_updates(model, one, "combine_adapters") for one in weights})
    combined = {}
    for path, parts in updates.items():
        terms = [(w * s, B, A) for w, (s, B, A) in zip(weights.values(), parts, strict=True)]
        combined[path] = _combine(terms, how, rank, path)
    by_rank: dict[int, list[str]] = {}  # one configuration for each rank there is
    for path, (_, A) in combined.items():
        by_rank.setdefault(len(A), []).append(path)

    def make() -> Adapter:
        configs = [LoRAConfig(r, r, tuple(paths)) for r, paths in by_rank.items()]
        adapter = build("combine_adapters", model, configs, 0)
        for path, (B, A) in combined.items():
            layer = adapter.modules[path]
            layer.lora_B.data[...], layer.lora_A.data[...] = B, A
        return adapter

    return attach(model, name, make, "combine_adapters")


def lora_updates(model: Any, name: str, caller: str) -> dict[str, Factors]:
    """{path: (s, B, A)} of a named adapter that is LoRA throughout. Raises ValueError for any other."""
    adapters: Any = carried(model) or {}
    if not isinstance(name, str) or name not in adapters:
        raise ValueError(f"{caller}: no adapter {shown(name)}; there are {', '.join(adapters) or 'none'}")
    updates = {}
    for path, layer in adapters[name].modules.items():
        if not isinstance(layer, LowRank) or not layer.is_product or layer.copied:
            kind = adapters[name].kind
            does = f"trains {path}.{next(iter(layer.copied))} in full" if kind == "lora" else f"is {kind}"
            raise ValueError(f"{caller}: adapter {name!r} {does}, expected LoRA: what it does to {path} is no s B A")
        A, B = layer.factors()
        updates[path] = layer.config.scale, B.data, A.data
    return updates


def _same_targets(updates: dict[str, dict[str, Factors]]) -> dict[str, list[Factors]]:
    """{path: each adapter's update}. Raises ValueError unless all adapters have the same target modules."""
    if not updates:
        raise ValueError("combine_adapters: got no adapters; name them with their weights: {'docs': 0.7, 'code': 0.3}")
    first, *others = updates
    for other in others:
        if odd := sorted(updates[first].keys() ^ updates[other].keys()):
            has, lacks = (first, other) if odd[0] in updates[first] else (other, first)
            raise ValueError(f"combine_adapters: unequal targets: {has!r} adapts {odd[0]}, {lacks!r} does not")
    return {path: [of_one[path] for of_one in updates.values()] for path in updates[first]}


def _combine(terms: list[Factors], how: str, rank: int | None, path: str) -> tuple[Array, Array]:
    """B and A of the combined update of one matrix, from each adapter's (w s, B, A)."""
    ranks = [len(A) for _, _, A in terms]
    if how == "linear":
        if len(set(ranks)) > 1:
            raise ValueError(f"combine_adapters: how='linear' averages matrices of one rank; got {ranks} at {path}")
        return _average(terms)
    xp = array_module(terms[0][1])
    B = xp.concatenate([ws * B for ws, B, _ in terms], axis=1)  # (d_out, r_1 + r_2 + ...)
    A = xp.concatenate([A for _, _, A in terms], axis=0)  # (r_1 + r_2 + ..., d_in)
    r = len(A) if how == "concatenate" else max(ranks) if rank is None else rank
    most = min(len(B), A.shape[1])
    if not is_whole(r) or not 1 <= r <= most:
        fix = f"; how='svd' with rank={most} loses nothing" if how == "concatenate" else ""
        raise ValueError(f"combine_adapters: rank {shown(r)}, expected 1 to min(d_in, d_out) = {most} of {path}{fix}")
    return (B, A) if how == "concatenate" else _truncate(B, A, r)


def _average(terms: list[Factors]) -> tuple[Array, Array]:
    """sum of sqrt|w s| B, sum of +-sqrt|w s| A: one adapter alone keeps its update, several get the mixed terms."""
    B = sum(math.sqrt(abs(ws)) * B for ws, B, _ in terms)  # (d_out, r)
    return B, sum(math.copysign(math.sqrt(abs(ws)), ws) * A for ws, _, A in terms)  # (r, d_in)


def _truncate(B: Array, A: Array, r: int) -> tuple[Array, Array]:
    """The closest product of rank r, each factor with the root of the singular values."""
    xp = array_module(B)
    u, s, vt = product_svd(B.astype(float), A.astype(float))
    B, A = u[:, :r] * xp.sqrt(s[:r]), xp.sqrt(s[:r, None]) * vt[:r]  # (d_out, r), (r, d_in), or fewer
    short = r - len(A)  # B and A had fewer columns and rows than asked for: zeros fill the rest
    return xp.pad(B, ((0, 0), (0, short))), xp.pad(A, ((0, short), (0, 0)))


def product_svd(B: Array, A: Array) -> tuple[Array, Array, Array]:
    """The SVD of B A without forming it.   B: (m, r), A: (r, n) -> U (m, k), s (k,), V^T (k, n), k = min(m, r, n)

    With the thin QR factorisations B = Q_B R_B and A^T = Q_A R_A,
        B A = Q_B (R_B R_A^T) Q_A^T,
    and the SVD of the small matrix in the middle, turned by Q_B and Q_A, is the SVD of the whole. This costs
    O((m + n) r^2) operations instead of O(m n min(m, n)). Golub & Van Loan 2013, "Matrix Computations", section 5.2.
    """
    xp = array_module(B)
    q_b, r_b = xp.linalg.qr(B)  # (m, r), (r, r)
    q_a, r_a = xp.linalg.qr(A.T)  # (n, r), (r, r)
    u, s, vt = xp.linalg.svd(r_b @ r_a.T, full_matrices=False)  # (r, r), (r,), (r, r)
    return q_b @ u, s, vt @ q_a.T
