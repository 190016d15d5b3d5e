"""The workbench: what adapters' files say about them. Every function returns plain records, and forms no Delta W.

show: how large each update is and how many directions it uses. compare: how alike two adapters are. resize: the nearest
adapter of smaller ranks. combine: a weighted sum of adapters as one. Where Delta W needs the base's W (DoRA, a PiSSA
adapter that was not converted), `base` is the checkpoint, and that matrix's Delta W is formed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis import low_rank
from ..analysis import rank as ranks
from ..autograd.signatures import checked, is_whole
from .adapter_writing import check_place, pair_of, refuse_inputs, targets_by_name, write_adapter
from .base_weights import Base
from .pairs import AdapterFile, Pair
from .updates import in_common, keyed, layer_and_kind, opened, progress_over, update_of

Place = str | Path
INTRUDERS = 10  # of how many directions of W + Delta W it is asked whether W had them

# --- show ------------------------------------------------------------------------------------------------------------


def measure(adapter: AdapterFile, base: Base | None = None, progress: bool = False) -> list[dict[str, Any]]:
    """A record of every matrix, its "singular_values" within. Raises ValueError where every Delta W is zero."""
    rows = []
    for pair in progress_over(list(adapter.matrices.values()), "measured", progress, base):
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


@checked
def compare(first: Place, second: Place, base: Place | None = None, progress: bool = False) -> dict[str, Any]:
    """How alike two adapters are: {"cosine", "norm_ratio", "matrices": [...], "only_first", "only_second"}.

    Of a matrix: name, cosine of the two Delta W, norm_ratio ||second|| / ||first||, and the paper's phi of their A's
    and B's (similarity_A, similarity_B, from 0 to 1, at the smaller rank). The first two are also of all that both
    change, taken together. None where one side is zero.
    """
    (one, weights), (other, beside_it) = opened(first, base, "compare"), opened(second, base, "compare")
    for adapter in (one, other):
        adapter.require_matrices("compare")
    rows, product, energy = [], 0.0, np.zeros(2)
    pairs = in_common(one, other)
    for a, b in progress_over(pairs, "compared", progress, weights):
        (B1, A1, _), (B2, A2, _) = update_of(one, a, weights), update_of(other, b, beside_it)
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
    both = [{pair.name for pair in side} for side in zip(*pairs, strict=True)]
    alone = [[name for name in a.matrices if name not in own] for a, own in zip((one, other), both, strict=True)]
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


# --- resize ----------------------------------------------------------------------------------------------------------


@checked
def resize(
    path: Place,
    output: Place,
    rank: int | None = None,
    energy: float | None = None,
    base: Place | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Write the nearest adapter of a smaller rank, or of the ranks that hold a share of each matrix's energy.

    -> {"rank": the largest, "norm", "lost", "matrices": [...]}; of a matrix: name, shape, rank_before, rank, its
    frobenius_norm and lost, ||Delta W - what is written||_F, which no other matrix of that rank can have smaller but
    for the rounding of the file's precision (Eckart & Young 1936). A matrix whose rank is that or less stays as it is.
    """
    adapter, weights = opened(path, base, "resize")
    adapter.require_matrices("resize")
    if (rank is None) == (energy is None):
        raise ValueError(f"resize: rank = {rank} and energy = {energy}; give one of the two")
    most = max(pair.rank for pair in adapter.matrices.values())
    if rank is not None and rank > most:
        raise ValueError(f"resize: rank = {rank}, and no matrix of {adapter.path} has more than {most}: nothing to cut")
    check_output(output, [adapter])
    pairs, rows = {}, []
    for name, pair in progress_over(list(adapter.matrices.items()), "resized", progress, weights):
        B, A, _ = update_of(adapter, pair, weights)
        cut = pair_of(pair, *low_rank.truncate(B, A, rank, energy)[:2], pair.scale)
        pairs[name] = pair if cut.rank >= pair.rank and not adapter.needs and pair.start is None else cut
        lost = 0.0 if pairs[name] is pair else low_rank.distance(pairs[name].factors(), (B, A))
        rows.append({
            "name": name, "shape": list(pair.shape), "rank_before": pair.rank, "rank": pairs[name].rank,
            "frobenius_norm": low_rank.norm(B, A), "lost": lost,
        })  # fmt: skip
    found = summed(rows, adapter.path)
    config = (
        {**adapter.config, "init_lora_weights": True} if adapter.needs and adapter.form == "peft" else adapter.config
    )
    write_adapter(replace(adapter, matrices=pairs, config=config), output)
    return found


def check_output(output: Place, adapters: Sequence[AdapterFile]) -> None:
    """Raises an error where an output could not be written, or is an input, before anything is computed."""
    for adapter in adapters:
        refuse_inputs(Path(output), adapter.inputs)
    check_place(Path(output), adapters[0].form)


def summed(rows: list[dict[str, Any]], where: Any) -> dict[str, Any]:
    """Of all matrices: the largest rank, the norm and what was lost. Raises ValueError where every Delta W is zero."""
    norm, lost = (float(np.linalg.norm([row[key] for row in rows])) for key in ("frobenius_norm", "lost"))
    if not norm:
        raise ValueError(f"{where}: every Delta W is zero; nothing is written")
    return {"rank": max(row["rank"] for row in rows), "norm": norm, "lost": lost, "matrices": rows}


# --- combine ---------------------------------------------------------------------------------------------------------


@checked
def combine(
    weights: Mapping[Any, float],
    output: Place,
    rank: int | None = None,
    base: Place | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Write sum_i w_i Delta W_i of several adapters as one, exactly, or cut back to a rank.

    weights: {path: w_i}, which may be negative; ranks, scales and targets may differ, and a matrix that some adapters
    lack is the sum of the others'. -> {"rank": the largest, "norm", "lost", "matrices": [...], "notes"}; of a matrix:
    name, shape, ranks (None where an adapter lacks it), rank, frobenius_norm and lost. The result has the form of the
    first adapter, in float32 at least, and the scale 1.
    """
    if not weights or not all(np.isfinite(list(weights.values()))):
        raise ValueError(f"combine: weights = {dict(weights)}, expected one adapter or more with finite numbers")
    if rank is not None and (not is_whole(rank) or rank < 1):
        raise ValueError(f"combine: rank = {rank}, expected a positive integer")
    both = [opened(path, base, "combine") for path in weights]
    adapters, checkpoints = [adapter for adapter, _ in both], [checkpoint for _, checkpoint in both]
    for adapter in adapters:
        adapter.require_matrices("combine")
    check_output(output, adapters)
    matrices = together(adapters)
    template, notes = like_which(adapters)
    pairs, rows, size = {}, [], 0.0
    for name, parts in progress_over(list(matrices.items()), "combined", progress, checkpoints[0]):
        terms, first = [], next(part for part in parts if part is not None)
        for adapter, beside_it, pair, weight in zip(adapters, checkpoints, parts, weights.values(), strict=True):
            if pair is not None:
                B, A, _ = update_of(adapter, pair, beside_it)
                terms.append((weight * B, A))
        size += sum(low_rank.norm(*term) for term in terms)
        B, A = low_rank.total(terms)
        dtype = np.result_type(*(part.a.dtype for part in parts if part is not None), np.float32)
        most = min(*first.shape, rank or len(A))
        B1, A1 = low_rank.truncate(B, A, most)[:2] if most < len(A) else (B, A)
        pairs[name] = replace(pair_of(first, B1, A1, 1.0, dtype), name=name)
        rows.append({
            "name": name, "shape": list(first.shape), "ranks": [part and part.rank for part in parts],
            "rank": pairs[name].rank, "frobenius_norm": low_rank.norm(B, A),
            "lost": low_rank.distance(pairs[name].factors(), (B, A)),
        })  # fmt: skip
    found = summed(rows, " and ".join(map(str, weights)))
    if found["norm"] <= 1e-10 * size:
        raise ValueError(f"combine: the sum of {' and '.join(map(str, weights))} is zero; nothing is written")
    write_adapter(combined(template, adapters, pairs), output)
    return {**found, "notes": notes}


def together(adapters: Sequence[AdapterFile]) -> dict[str, list[Pair | None]]:
    """{name: each adapter's pair, or None}, by the names of the adapter that has it first.

    Raises ValueError where an adapter has no matrix in common with any other, or shapes differ.
    """
    each = keyed(adapters)
    for place, own in enumerate(each):
        others = set().union(*(other.keys() for i, other in enumerate(each) if i != place))
        if len(each) > 1 and own.keys().isdisjoint(others):
            in_common(adapters[place], adapters[place - 1])  # which says so
    keys = dict.fromkeys(key for own in each for key in own)
    found = {next(own[key] for own in each if key in own).name: [own.get(key) for own in each] for key in keys}
    for name, parts in found.items():
        if len(shapes := {part.shape for part in parts if part is not None}) > 1:
            raise ValueError(
                f"combine: {name} is {' and '.join(map(str, sorted(shapes)))}: adapters of different bases"
            )
    return found


def like_which(adapters: Sequence[AdapterFile]) -> tuple[AdapterFile, list[str]]:
    """The adapter whose configuration the sum takes, and what should be said. Raises ValueError for what has no sum.

    What is beside the pairs (a head, biases) is no update and cannot be added up: one adapter may have some.
    """
    having = [adapter for adapter in adapters if adapter.others]
    if len(having) > 1:
        first, second = having[:2]
        raise ValueError(
            f"combine: {first.path} and {second.path} both hold parts trained in full ({next(iter(first.others))}, "
            f"{next(iter(second.others))}), which have no sum"
        )
    if having and (scaled := [name for name in having[0].others if name.endswith(".lora_B.bias")]):
        raise ValueError(f"combine: {having[0].path} has {scaled[0]}, which has no place in a sum")
    notes = [f"what {having[0].path} holds beside its pairs is taken as it is"] if having and len(adapters) > 1 else []
    ours = {adapter.config["base"] for adapter in adapters if adapter.form == "minilora"}
    if len(ours) > 1:
        raise ValueError(f"combine: {' and '.join(str(a.path) for a in adapters)} were trained on different bases")
    theirs = {adapter.config.get("base_model_name_or_path") for adapter in adapters if adapter.form == "peft"} - {None}
    if len(theirs) > 1:
        notes.append(f"they name different bases: {', '.join(sorted(map(str, theirs)))}")
    template = having[0] if having and having[0].form == adapters[0].form else adapters[0]
    return template, notes


def combined(template: AdapterFile, adapters: Sequence[AdapterFile], pairs: dict[str, Pair]) -> AdapterFile:
    """The sum as what is written: plain LoRA at the scale 1, on the targets of all."""
    config = dict(template.config)
    if template.form == "peft":
        config |= {"use_rslora": False, "init_lora_weights": True}
        if any(adapter.matrices.keys() != pairs.keys() for adapter in adapters):
            config |= targets_by_name(replace(template, matrices=pairs))
    others = next((adapter.others for adapter in adapters if adapter.others), {})
    return replace(template, config=config, matrices=pairs, others=others, inputs=())
