"""The lecture's questions about LoRA, put to a model that a class can train.

Each study fine-tunes the shipped base model many times, changes one thing, and returns plain records: means and spreads
over seeds, with the settings that made them. The runs are in `runs.py`, studies of other methods in `alternatives.py`.
"""

import itertools
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters.lora import delta_weights, lora_layers
from ..analysis import rank as ranks
from ..autograd.tensor import grad
from ..nn.storage import load_model
from ..training.loop import evaluate
from . import (
    alternatives,
    asymmetry,
    batches,
    change,
    data,
    forgetting,
    images,
    intruders,
    rates,
    real,
    rewards,
    segments,
    style,
    tasks,
)
from .records import record_path
from .runs import (
    ALL,
    FORMAT,
    FULL,
    SCALE,
    Runs,
    Scale,
    Spec,
    best_rate,
    over_seeds,
    prepare,
    read_json,
    summarise,
    write_json,
)

# --- the studies: each takes `runs` and returns rows -----------------------------------------------------------------


TARGET_SETS = {  # name: (targets, rank): about 12,288 parameters a layer, which all weights of one rank-48 matrix have
    "q": (("q_proj",), 48),
    "k": (("k_proj",), 48),
    "v": (("v_proj",), 48),
    "o": (("o_proj",), 48),
    "q,k": (("q_proj", "k_proj"), 24),
    "q,v": (("q_proj", "v_proj"), 24),
    "q,k,v,o": (("q_proj", "k_proj", "v_proj", "o_proj"), 12),
    "MLP": (("up_proj", "down_proj"), 10),
    "all": (ALL, 5),
}


def study_matrices(runs: Runs) -> list[dict[str, Any]]:
    """Which matrices to adapt at one parameter budget: the paper's table 5."""
    rows = []
    for corpus in runs.scale.corpora:
        lr = best_rate(runs, "lora", corpus)
        for name, (targets, rank) in TARGET_SETS.items():
            spec = runs.spec(corpus=corpus, targets=targets, rank=rank, alpha=SCALE * rank, lr=lr)
            rows.append({"corpus": corpus, "targets": name, "rank": rank, **over_seeds(runs, spec)})
    return rows


def study_ranks(runs: Runs) -> list[dict[str, Any]]:
    """Which rank: the paper's table 6, at a constant alpha / r."""
    rows = []
    for corpus in runs.scale.corpora:
        lr = best_rate(runs, "lora", corpus)
        for rank in runs.scale.ranks:
            spec = runs.spec(corpus=corpus, rank=rank, alpha=SCALE * rank, lr=lr, keep=True)
            rows.append({"corpus": corpus, "rank": rank, **over_seeds(runs, spec)})
    return rows


def study_starts(runs: Runs) -> list[dict[str, Any]]:
    """What the initialisation does: loss at step 0, gradient norms of A and B at step 0, loss after training."""
    rows = []
    for corpus, start in itertools.product(runs.scale.corpora, ("lora", "both zero", "both random")):
        spec = runs.spec(corpus=corpus, start=start, lr=best_rate(runs, "lora", corpus))
        tokens, targets = runs.corpus(spec.corpus).validation_windows(128, 4)
        model = load_model("base")
        prepare(model, spec)
        layers = lora_layers(model).values()
        parameters = [layer.lora_A for layer in layers] + [layer.lora_B for layer in layers]
        gradients = grad(model.loss(tokens, targets), parameters)
        norms = [float(np.sqrt(sum((g * g).sum() for g in part))) for part in _halves(gradients)]
        records = runs.records([replace(spec, seed=seed) for seed in runs.scale.seeds])
        for record in records:
            record["first"] = record["curve"]["loss"][0]
        numbers = summarise(records, "before", "first", "loss")
        rows.append({"corpus": corpus, "start": start, "gradient_A": norms[0], "gradient_B": norms[1], **numbers})
    return rows


def _halves(items: list) -> tuple[list, list]:
    return items[: len(items) // 2], items[len(items) // 2 :]


def study_spectra(runs: Runs) -> list[dict[str, Any]]:
    """The spectrum of every Delta W, of LoRA and of full fine-tuning, beside a random matrix's."""
    rows = []
    base = load_model("base").state_dict()
    for corpus, method in itertools.product(runs.scale.corpora, ("lora", "full")):
        spec = runs.spec(corpus=corpus, method=method, lr=best_rate(runs, method, corpus), keep=True)
        for seed in runs.scale.seeds:
            for name, delta in updates(runs, replace(spec, seed=seed), base).items():
                spectrum = ranks.singular_values(delta)
                row: dict[str, Any] = {"corpus": corpus, "method": method, "seed": seed, "name": name}
                row |= ranks.summary(spectrum)
                row["spectrum"] = _short(spectrum)
                row["random"] = _short(ranks.singular_values(ranks.random_like(delta, seed)))
                rows.append(row)
    return rows


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]  # more digits would only make the file longer


def updates(runs: Runs, spec: Spec, base: dict[str, Any]) -> dict[str, np.ndarray]:
    """{module name: Delta W} of a run."""
    model = runs.model(spec)
    if spec.method == "lora":
        return delta_weights(model)
    names = [name for name in base if ranks.adapted_matrix(name)]
    after = model.state_dict()
    return {name.removesuffix(".weight"): after[name] - base[name] for name in names}


def study_truncation(runs: Runs) -> list[dict[str, Any]]:
    """The hypothesis itself: full fine-tuning's Delta W truncated to rank r, beside LoRA trained at rank r."""
    rows = []
    base = load_model("base").state_dict()
    for corpus in runs.scale.corpora:
        lr = {method: best_rate(runs, method, corpus) for method in ("lora", "full")}
        losses: dict[int, list[float]] = {}
        for seed in runs.scale.seeds:
            model = runs.model(runs.spec(corpus=corpus, method="full", lr=lr["full"], keep=True, seed=seed))
            for r, state in ranks.truncations(base, model.state_dict(), (0, *runs.scale.ranks, 128)):
                model.load_state_dict(state)
                losses.setdefault(r, []).append(evaluate(model, runs.corpus(corpus), runs.scale.windows))
        for r, values in losses.items():
            numbers = summarise([{"loss": value} for value in values], "loss")
            rows.append({"corpus": corpus, "method": "truncated", "rank": r, **numbers})
        for r in runs.scale.ranks:
            spec = runs.spec(corpus=corpus, rank=r, alpha=SCALE * r, lr=lr["lora"], keep=True)
            rows.append({"corpus": corpus, "method": "lora", "rank": r, **over_seeds(runs, spec, "loss")})
    return rows


def study_subspaces(runs: Runs) -> list[dict[str, Any]]:
    """Section 7 of the paper: phi between ranks and between seeds, for A and for B, and table 7's amplification."""
    rows, base = [], load_model("base").state_dict()
    for corpus in runs.scale.corpora:
        lr = best_rate(runs, "lora", corpus)
        small, large, other = (
            lora_layers(runs.model(runs.spec(corpus=corpus, rank=r, alpha=SCALE * r, lr=lr, keep=True, seed=seed)))
            for r, seed in ((8, 0), (64, 1), (64, 2))  # seeds apart: from one seed, ranks would share rows of A
        )
        for name in small:
            row: dict[str, Any] = {"corpus": corpus, "name": name}
            for side, part in (("right", "lora_A"), ("left", "lora_B")):
                first, second, third = (getattr(layers[name], part).data for layers in (small, large, other))
                noise = np.random.default_rng(0).normal(size=third.shape)
                row[f"{part}_ranks"] = ranks.similarity_grid(first, second, side, 8, 8).round(4).tolist()
                row[f"{part}_seeds"] = ranks.similarity_grid(second, third, side, 8, 8).round(4).tolist()
                row[f"{part}_random"] = ranks.similarity_grid(second, noise, side, 8, 8).round(4).tolist()
            row |= ranks.projection_table(base[f"{name}.weight"], small[name].delta(), 4)
            rows.append(row)
    return rows


STUDIES: dict[str, Callable[[Runs], list[dict[str, Any]]]] = {
    "methods": alternatives.study_methods,
    "matrices": study_matrices,
    "ranks": study_ranks,
    "rates": rates.study_rates,
    "starts": study_starts,
    "asymmetry": asymmetry.study_asymmetry,
    "batches": batches.study_batches,
    "data": data.study_data,
    "spectra": study_spectra,
    "intruders": intruders.study_intruders,
    "rank-use": change.study_rank_use,
    "truncation": study_truncation,
    "subspaces": study_subspaces,
    "sizes": alternatives.study_sizes,
    "bits": alternatives.study_bits,
    "sixteen-bits": change.study_sixteen_bits,
    "forgetting": forgetting.study_forgetting,
    "tasks": tasks.study_tasks,
    "latency": alternatives.study_latency,
    "memory": alternatives.study_memory,
    "rewards": rewards.study_rewards,
    "style": style.study_style,
    "style-blocks": style.study_style_blocks,
    "style-mixed": style.study_style_mixed,
    "segments": segments.study_segments,
    "images": images.study_images,
    "real": real.study_real,
}
NEEDS = {"real": real.MODEL}  # what has to be fetched for a study
ALONE = ("latency", "memory", "images", "real")  # they measure on this machine, or have no runs to share


# --- records in files ------------------------------------------------------------------------------------------------


def run_study(
    name: str,
    scale: Scale = FULL,
    folder: str | Path = "figures/data",
    cache: str | Path = "runs/study",
    force: bool = False,
    progress: bool = True,
) -> Path:
    """Run one study and write its records to `folder`/`name`.json; returns the path.

    Raises ValueError for a study that does not exist, and when its records are there already, unless `force`.
    """
    if name not in STUDIES:
        raise ValueError(f"study: no study {name!r}; there are {', '.join(STUDIES)}")
    path = Path(folder) / f"{name}.json"
    if path.exists() and not force:
        raise ValueError(f"study: {path} is there already; --force makes it anew")
    runs = Runs(cache, scale, progress)
    with runs.bar:
        runs.bar.set_description(name)
        rows = STUDIES[name](runs)
    question = (STUDIES[name].__doc__ or "").strip()
    facts = {"format": FORMAT, "study": name, "question": question, "python": sorted(runs.pythons)}
    return write_json(path, {**facts, "scale": asdict(scale), "rows": rows})


def load_records(name: str, folder: str | Path | None = None) -> dict[str, Any]:
    """The records of a study: {"study", "question", "scale", "rows"}; without a folder, the committed ones.

    Raises FileNotFoundError, or ValueError for records that are cut short or were made by another version.
    """
    path = record_path(name, folder)
    if not path.exists():
        raise FileNotFoundError(f"no records {path}: `minilora study {name}` makes them")
    records = read_json(path, "make it anew with --force")
    rows = records.get("rows")
    if records.get("format") != FORMAT or not rows or not isinstance(rows, list) or not isinstance(rows[0], dict):
        came = f"format {records.get('format')!r} and {len(rows) if isinstance(rows, list) else 'no'} rows"
        raise ValueError(f"{path} has {came}, expected format {FORMAT} and rows; make it anew with --force")
    return records
