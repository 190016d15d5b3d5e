"""The workbench: what adapters' files say about them. Every function returns plain records, and forms no Delta W.

show: how large each update is and how many directions it uses. compare: how alike two adapters are. resize: the nearest
adapter of smaller ranks. combine: a weighted sum of adapters as one. Where Delta W needs the base's W (DoRA, a PiSSA
adapter that was not converted), `base` is the checkpoint, and that matrix's Delta W is formed.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis import low_rank
from ..analysis import rank as ranks
from ..autograd.signatures import checked
from .adapter_files import read_adapter
from .base_weights import Base, open_base
from .pairs import AdapterFile, Pair

Place = str | Path
INTRUDERS = 10  # of how many directions of W + Delta W it is asked whether W had them
LAYER = re.compile(r"^((?:.*[._])?(?:blocks?|layers?|attentions|resnets|h)[._]\d+)[._](.+)$")
KOHYA = re.compile(r"^lora_(?:unet|te\d?|transformer)_")


def layer_and_kind(name: str) -> tuple[str | None, str]:
    """Of a module's name: "model.layers.3.self_attn.q_proj" -> ("model.layers.3", "self_attn.q_proj").

    Numbers in a kind are its members': "mlp.experts.5.up_proj" is of the kind "mlp.experts.*.up_proj".
    """
    found = LAYER.match(name)
    layer, kind = found.groups() if found else (None, name)
    return layer, re.sub(r"(?<=[._])\d+(?=[._]|$)", "*", kind)


def opened(path: Place, base: Place | None, caller: str) -> tuple[AdapterFile, Base | None]:
    """An adapter, and its base where one is given. Raises ValueError where they do not fit, or a base is needed."""
    adapter = read_adapter(path)
    if base is None:
        if adapter.needs and caller != "show":
            raise ValueError(f"{adapter.path}: {adapter.needs}; give the checkpoint it was trained on: --base FOLDER")
        return adapter, None
    found = open_base(base)
    found.check(adapter)
    return adapter, found


def update_of(adapter: AdapterFile, pair: Pair, base: Base | None) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """B and A whose product is Delta W, and W where there is a base.   -> (d_out, r), (r, d_in), (d_out, d_in)"""
    B, A = pair.factors()
    if base is None:
        return B, A, None
    W = base.weight(pair, adapter)
    if pair.magnitude is not None:  # DoRA: Delta W = c (W + s B A) - W with c = m / ||W + s B A||, row by row
        V = W + B @ A
        m = pair.finite(pair.magnitude, "the magnitude").astype(float).reshape(-1, 1)
        u, s, vt = ranks.svd(m / np.linalg.norm(V, axis=1, keepdims=True) * V - W)
        return u * s, vt, W
    if adapter.needs:  # PiSSA: the update counts from W's first r directions, which the residual base lacks
        u, s, vt = ranks.svd(W)
        r = pair.rank
        B, A = low_rank.total([(B, A), (-u[:, :r] * s[:r], vt[:r])])
    return B, A, W


def progress_over(pairs: Iterable[Any], words: str, progress: bool) -> Iterator[Any]:
    """The same, with a bar on a terminal."""
    from tqdm import tqdm  # here: only when there is a bar to show

    return iter(tqdm(pairs, words, unit="matrix", disable=None if progress else True, leave=False, dynamic_ncols=True))


# --- show ------------------------------------------------------------------------------------------------------------


def measure(adapter: AdapterFile, base: Base | None = None, progress: bool = False) -> list[dict[str, Any]]:
    """A record of every matrix, its "singular_values" within. Raises ValueError where every Delta W is zero."""
    rows = []
    for pair in progress_over(list(adapter.matrices.values()), "measured", progress):
        B, A, W = update_of(adapter, pair, base)
        s = low_rank.singular_values(B, A)
        row = {"name": pair.name, "shape": list(pair.shape), "rank": pair.rank, **low_rank.describe(s)}
        rows.append({**row, **({} if W is None else beside(W, B, A)), "singular_values": s})
    if rows and not any(row["frobenius_norm"] for row in rows):
        raise ValueError(f"{adapter.path}: every Delta W is zero, as B is before training: there is nothing to measure")
    return rows


def beside(W: np.ndarray, B: np.ndarray, A: np.ndarray) -> dict[str, Any]:
    """An update beside its weight: ||W||_F, ||Delta W||_F / ||W||_F, the paper's amplification, intruder dimensions.

    amplification: ||Delta W||_F / ||U^T W V||_F with Delta W's own directions U and V (Hu et al. 2021, section 7.3);
    intruders: how many of the first 10 directions of W + Delta W are none of W's (Shuttleworth et al. 2024).
    """
    u, s, vt = low_rank.svd(B, A)
    k = int((s > s[0] * max(W.shape) * np.finfo(float).eps).sum())  # as numpy.linalg.matrix_rank
    within, size, weight = float(np.linalg.norm(u[:, :k].T @ W @ vt[:k].T)), float(np.linalg.norm(s)), np.linalg.norm(W)
    return {
        "weight_norm": float(weight),
        "relative_norm": size / float(weight) if weight else None,
        "amplification": size / within if within else None,
        "intruders": len(ranks.intruder_dimensions(W, W + B @ A, min(INTRUDERS, *W.shape))),
    }


@checked
def show(path: Place, base: Place | None = None, progress: bool = False) -> dict[str, Any]:
    """{"rank", "alpha", "scale", "matrices": [...]} of an adapter: a record for each matrix that it changes.

    Of a matrix: name, shape, rank, frobenius_norm and spectral_norm of Delta W, effective_rank, stable_rank, rank_90
    and rank_99 (how many directions hold that share of the energy). base: a checkpoint, for weight_norm, relative_norm,
    amplification and intruders as well. Of a method that has no Delta W, its "tensors" and their norms.
    """
    adapter, weights = opened(path, base, "show")
    return record(adapter, measure(adapter, weights, progress))


def record(adapter: AdapterFile, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `show` returns, from what `measure` did."""
    bare = [{key: value for key, value in row.items() if key != "singular_values"} for row in rows]
    found = {"rank": adapter.rank, "alpha": adapter.alpha, "scale": adapter.scale, "matrices": bare}
    return found if rows else {"method": adapter.method, **found, "tensors": tensors(adapter)}


def tensors(adapter: AdapterFile) -> list[dict[str, Any]]:
    """The name, shape and norm of what an adapter holds beside pairs. Raises ValueError for numbers that are none."""
    found = []
    for name, stored in adapter.others.items():
        norm = float(np.linalg.norm(stored.read().astype(float)))
        if not np.isfinite(norm):
            raise ValueError(f"{adapter.path}: {name} holds numbers that are not finite")
        found.append({"name": name, "shape": list(stored.shape), "frobenius_norm": norm})
    return found


def enough(rows: Sequence[Mapping[str, Any]], share: float = 0.99) -> int:
    """The smallest r which, cut out of every matrix, holds this share of the energy of them all."""
    longest = max(len(row["singular_values"]) for row in rows)
    total = np.zeros(longest)
    for row in rows:
        total[: len(row["singular_values"])] += row["singular_values"] ** 2
    return ranks.energy_rank(np.sqrt(total), share)


def shares(rows: Sequence[Mapping[str, Any]], part: int) -> dict[str, float]:
    """{layer (part 0) or kind (part 1): its share of the energy, the sum of ||Delta W||_F^2}"""
    energy: dict[str, float] = {}
    for row in rows:
        key = layer_and_kind(row["name"])[part] or "other"
        energy[key] = energy.get(key, 0.0) + row["frobenius_norm"] ** 2
    total = sum(energy.values())
    return {key: value / total for key, value in energy.items()}


# --- compare ---------------------------------------------------------------------------------------------------------


def key_of(name: str) -> str:
    """A module's name without what only a form of file adds: image tools write "lora_unet_a_b" for "a.b"."""
    return KOHYA.sub("", name.replace(".", "_"))


def in_common(one: AdapterFile, other: AdapterFile) -> list[tuple[Pair, Pair]]:
    """The matrices that two adapters both change. Raises ValueError where there are none, or their shapes differ."""
    theirs = {key_of(name): pair for name, pair in other.matrices.items()}
    pairs = [(pair, theirs[key_of(name)]) for name, pair in one.matrices.items() if key_of(name) in theirs]
    if not pairs:
        first, second = (next(iter(adapter.matrices)) for adapter in (one, other))
        raise ValueError(f"{one.path} and {other.path} have no matrix in common: one adapts {first}, one {second}")
    if odd := [f"{a.name} is {a.shape} and {b.shape}" for a, b in pairs if a.shape != b.shape]:
        raise ValueError(f"{one.path} and {other.path} are of different bases: {'; '.join(odd[:6])}")
    return pairs


@checked
def compare(first: Place, second: Place, base: Place | None = None, progress: bool = False) -> dict[str, Any]:
    """How alike two adapters are: {"cosine", "norm_ratio", "matrices": [...], "only_first", "only_second"}.

    Of a matrix: name, cosine of the two Delta W, norm_ratio ||second|| / ||first||, and the paper's phi of their A's
    and B's (similarity_A, similarity_B, from 0 to 1, at the smaller rank). The first two are also of all that both
    change, taken together. None where one side is zero.
    """
    (one, weights), (other, _) = opened(first, base, "compare"), opened(second, base, "compare")
    for adapter in (one, other):
        adapter.require_matrices("compare")
    rows, product, energy = [], 0.0, np.zeros(2)
    pairs = in_common(one, other)
    for a, b in progress_over(pairs, "compared", progress):
        (B1, A1, _), (B2, A2, _) = update_of(one, a, weights), update_of(other, b, weights)
        sizes = low_rank.norm(B1, A1), low_rank.norm(B2, A2)
        right, _ = low_rank.similarity(A1, A2, "right")
        left, _ = low_rank.similarity(B1, B2, "left")
        rows.append({
            "name": a.name,
            "cosine": low_rank.cosine((B1, A1), (B2, A2)),
            "norm_ratio": sizes[1] / sizes[0] if sizes[0] else None,
            "similarity_A": right,
            "similarity_B": left,
        })  # fmt: skip
        product, energy = product + low_rank.inner((B1, A1), (B2, A2)), energy + np.square(sizes)
    if not energy.all():
        raise ValueError(f"{(one, other)[int(np.argmin(energy))].path}: every Delta W is zero, as B is before training")
    both = {key_of(a.name) for a, _ in pairs}
    alone = [[name for name in adapter.matrices if key_of(name) not in both] for adapter in (one, other)]
    return {
        "cosine": float(np.clip(product / np.sqrt(energy.prod()), -1, 1)),
        "norm_ratio": float(np.sqrt(energy[1] / energy[0])),
        "matrices": rows,
        "only_first": alone[0],
        "only_second": alone[1],
    }


def in_words(cosine: float, ratio: float) -> str:
    """What a cosine and a ratio of norms say: "the same direction, half the size"."""
    said = [(0.95, "the same direction"), (0.6, "nearly the same direction"), (0.2, "a related direction")]
    direction = next((words for least, words in said if cosine >= least), "")
    if not direction:
        known = [(-0.95, "the opposite direction"), (-0.2, "a direction partly against it")]
        direction = next((words for most, words in known if cosine <= most), "an unrelated direction")
    sizes = {0.5: "half the size", 1.0: "the same size", 2.0: "twice the size"}
    size = next(
        (words for value, words in sizes.items() if abs(ratio / value - 1) <= 0.1), f"{ratio:.3g} times the size"
    )
    return f"{direction}, {size}"
