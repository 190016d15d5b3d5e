"""The lecture's questions, put to a model that a class can train.

Each study fine-tunes the shipped base model many times, changes one thing, and returns plain records: means and spreads
over seeds, with the settings that made them. Finished runs are kept in a folder (default `runs/study`), so a study that
was interrupted goes on where it stopped, and studies share the runs they have in common. Losses are in nats per
character on held-out text, times in seconds, sizes in bytes.
"""

import hashlib
import itertools
import json
import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..adapters.adapter import load_adapter, save_adapter
from ..adapters.lora import LoRAConfig, add_lora, delta_weights, lora_layers
from ..autograd.tensor import grad
from ..nn.storage import load_model, save_model, write_beside
from ..training.corpus import Corpus, load_corpus
from ..training.loop import Run, Settings, evaluate, train, train_step
from . import rank as ranks

FORMAT = 1  # of the records; a file with another number was made by another version
OLD_TEXT = "python-docs"  # what the base model was pretrained on: its loss afterwards is what was forgotten
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
SCALE = 2.0  # alpha / r where a study does not vary it


@dataclass(frozen=True)
class Spec:
    """One fine-tuning run, completely: two runs with equal specs give equal numbers.

    start: how A and B begin ("lora": A random and B zero; "both zero"; "both random"). characters: how much of the
    training text there is (None: all of it).
    """

    corpus: str = "unicode-names"
    method: str = "lora"
    rank: int = 8
    alpha: float = 16.0
    rank_stabilized: bool = False
    targets: tuple[str, ...] = ALL
    start: str = "lora"
    lr: float = 1e-2
    steps: int = 100
    batch_size: int = 8
    characters: int | None = None
    seed: int = 0
    keep: bool = False  # whether the trained weights are kept, for studies that look at matrices

    @property
    def key(self) -> str:
        """A name for the files of this run."""
        text = json.dumps([FORMAT, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Scale:
    """How large the studies are: `FULL` is what the committed records hold, `QUICK` shows every study in minutes."""

    name: str
    steps: int
    batch_size: int
    seeds: tuple[int, ...]
    corpora: tuple[str, ...]
    learning_rates: tuple[float, ...]
    ranks: tuple[int, ...]
    characters: tuple[int, ...]
    windows: int


FULL = Scale(
    name="full",
    steps=100,
    batch_size=8,
    seeds=(0, 1, 2),
    corpora=("unicode-names", "python-code"),
    learning_rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    ranks=(1, 2, 4, 8, 16, 32, 64),
    characters=(2_000, 8_000, 32_000, 128_000, 512_000),
    windows=48,
)
QUICK = Scale(
    name="quick",
    steps=20,
    batch_size=8,
    seeds=(0,),
    corpora=("unicode-names",),
    learning_rates=(1e-3, 1e-2),
    ranks=(1, 8, 64),
    characters=(2_000, 128_000),
    windows=16,
)


class Runs:
    """Runs by their specs: a finished one is read from its file, another is trained and kept."""

    def __init__(self, folder: str | Path = "runs/study", scale: Scale = FULL, progress: bool = True):
        self.folder, self.scale = Path(folder) / scale.name, scale
        self.bar = tqdm(unit="run", disable=not progress, leave=False, ncols=79)
        self._corpora: dict[str, Corpus] = {}

    def spec(self, **changes: Any) -> Spec:
        """A spec of this scale's length."""
        return replace(Spec(steps=self.scale.steps, batch_size=self.scale.batch_size), **changes)

    def corpus(self, name: str) -> Corpus:
        """A corpus, loaded once."""
        if name not in self._corpora:
            self._corpora[name] = load_corpus(name)
        return self._corpora[name]

    def record(self, spec: Spec) -> dict[str, Any]:
        """What came of a run: losses before and after on the new and the old text, curve, sizes, times."""
        path = self.folder / f"{spec.key}.json"
        if not path.exists() or (spec.keep and not path.with_suffix(".npz").exists()):
            self.bar.set_postfix_str(f"{spec.method} {spec.corpus} r={spec.rank} lr={spec.lr:g} seed={spec.seed}")
            record, model = self._train(spec)
            if spec.keep:
                (save_adapter if spec.method == "lora" else save_model)(model, path.with_suffix(".npz"))
            write_json(path, record)
        self.bar.update()
        return json.loads(path.read_text(encoding="utf-8"))

    def records(self, specs: Iterable[Spec]) -> list[dict[str, Any]]:
        """The records of several runs."""
        return [self.record(spec) for spec in specs]

    def model(self, spec: Spec) -> Any:
        """The trained model of a run with keep=True."""
        self.record(spec)
        path = self.folder / f"{spec.key}.npz"
        return load_adapter(load_model("base"), path) if spec.method == "lora" else load_model(path)

    def _train(self, spec: Spec) -> tuple[dict[str, Any], Any]:
        model, corpus = load_model("base"), self.corpus(spec.corpus)
        before = evaluate(model, corpus, self.scale.windows)
        prepare(model, spec)
        if spec.characters is not None:
            corpus = replace(corpus, train=corpus.train[: spec.characters])
        run = Run(model, corpus, _settings(spec, self.scale))
        train(run, progress=False)
        parameters = [p.data for p in run.optimizer.parameters]
        record = {
            "spec": asdict(spec),
            "before": before,
            "curve": run.validation,
            "loss": evaluate(model, corpus, self.scale.windows),
            "old_loss": evaluate(model, self.corpus(OLD_TEXT), self.scale.windows),
            "trainable": sum(p.size for p in parameters),
            "stored_bytes": sum(p.nbytes for p in parameters),
        }
        return record, model


def _settings(spec: Spec, scale: Scale) -> Settings:
    return Settings(
        steps=spec.steps,
        batch_size=spec.batch_size,
        lr=spec.lr,
        warmup=max(spec.steps // 10, 1),
        evaluate_every=max(spec.steps // 5, 1),
        evaluation_windows=scale.windows,
        seed=spec.seed,
    )


def prepare(model: Any, spec: Spec) -> None:
    """Make the parameters trainable that the spec's method trains, and start them as it says."""
    if spec.method == "full":
        return
    if spec.method != "lora":
        raise ValueError(f"study: method = {spec.method!r}, expected 'lora' or 'full'")
    add_lora(model, LoRAConfig(spec.rank, spec.alpha, spec.targets, rank_stabilized=spec.rank_stabilized), spec.seed)
    rng = np.random.default_rng(spec.seed)
    for layer in lora_layers(model).values():
        if spec.start == "both zero":
            layer.lora_A.data[...] = 0
        elif spec.start == "both random":
            layer.lora_B.data[...] = rng.normal(0, 1 / spec.rank, layer.lora_B.shape)


def _probe(run: Run) -> Callable[[], float]:
    """A training step that moves nothing: the learning rate is 0, the optimiser and the generator are its own."""
    probe = Run(run.model, run.corpus, replace(run.settings, weight_decay=0.0))
    probe.optimizer.lr = 0.0
    tokens, targets = run.corpus.batch(run.settings.batch_size, run.model.config.block_size, probe.rng)
    return lambda: train_step(run.model, probe.optimizer, tokens, targets)


def measure_steps(runs: Runs, repeats: int = 15) -> dict[str, dict[str, float]]:
    """{method: {"step_seconds", "memory_bytes"}} of LoRA (rank 8, all matrices) and full fine-tuning, taking turns.

    The median time of a step; and the bytes of weights and optimiser state, plus the most that a step allocates beside
    them: the median of five, with half their range, since threads do not always meet at their peaks.
    """
    steps: dict[str, Callable[[], float]] = {}
    held: dict[str, int] = {}
    times: dict[str, list[float]] = {}
    for method in ("lora", "full"):
        model, spec = load_model("base"), runs.spec(method=method)
        prepare(model, spec)
        run = Run(model, runs.corpus(spec.corpus), _settings(spec, runs.scale))
        steps[method], times[method] = _probe(run), []
        moments = 2 * sum(p.data.nbytes for p in run.optimizer.parameters)  # AdamW's m and v
        held[method] = sum(p.data.nbytes for p in model.parameters()) + moments
    for _ in range(repeats + 2):
        for method, step in steps.items():
            start = time.perf_counter()
            step()
            times[method].append(time.perf_counter() - start)
    peaks = {method: [_peak_bytes(step) for _ in range(5)] for method, step in steps.items()}
    return {
        method: {
            "step_seconds": float(np.median(times[method][2:])),  # the first two warm up
            "memory_bytes": held[method] + float(np.median(peaks[method])),
            "memory_bytes_spread": float(np.ptp(peaks[method])) / 2,
        }
        for method in steps
    }


def _peak_bytes(step: Callable[[], float]) -> int:
    tracemalloc.start()
    step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def summarise(records: Sequence[dict[str, Any]], *numbers: str) -> dict[str, Any]:
    """{number: its mean over the seeds, number_spread: half the distance from least to most, "seeds": how many}"""
    summary: dict[str, Any] = {"seeds": len(records)}
    for number in numbers:
        values = [record[number] for record in records]
        summary[number] = float(np.mean(values))
        summary[f"{number}_spread"] = float(np.max(values) - np.min(values)) / 2
    return summary


def _over_seeds(runs: Runs, spec: Spec, *numbers: str, seeds: tuple[int, ...] | None = None) -> dict[str, Any]:
    specs = [replace(spec, seed=seed) for seed in seeds or runs.scale.seeds]
    records = runs.records(specs)
    return {**summarise(records, *(numbers or ("loss", "old_loss"))), "trainable": records[0]["trainable"]}


def best_rate(runs: Runs, method: str, corpus: str) -> float:
    """The learning rate of the sweep with the lowest validation loss, at the first seed."""
    sweep = [runs.spec(method=method, corpus=corpus, lr=lr, keep=True) for lr in runs.scale.learning_rates]
    return min(runs.records(sweep), key=lambda record: record["loss"])["spec"]["lr"]


# --- the studies: each takes `runs` and returns rows -----------------------------------------------------------------


def study_methods(runs: Runs) -> list[dict[str, Any]]:
    """LoRA against full fine-tuning, each at its own best learning rate: what is learned, forgotten, paid, stored."""
    rows, costs = [], measure_steps(runs)
    for corpus in runs.scale.corpora:
        for method in ("lora", "full"):
            lr = best_rate(runs, method, corpus)
            specs = [runs.spec(method=method, corpus=corpus, lr=lr, keep=True, seed=seed) for seed in runs.scale.seeds]
            records = runs.records(specs)
            numbers = summarise(records, "before", "loss", "old_loss", "stored_bytes")
            old = evaluate(load_model("base"), runs.corpus(OLD_TEXT), runs.scale.windows)
            curves = [record["curve"] for record in records]
            trainable = records[0]["trainable"]
            rows.append(
                {"corpus": corpus, "method": method, "lr": lr, "trainable": trainable, "old_before": old, **numbers}
                | {
                    **costs[method],
                    "curve": {"step": curves[0]["step"], "loss": [curve["loss"] for curve in curves]},
                }
            )
    return rows


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
            rows.append({"corpus": corpus, "targets": name, "rank": rank, **_over_seeds(runs, spec)})
    return rows


def study_ranks(runs: Runs) -> list[dict[str, Any]]:
    """Which rank: the paper's table 6, at a constant alpha / r."""
    rows = []
    for corpus in runs.scale.corpora:
        lr = best_rate(runs, "lora", corpus)
        for rank in runs.scale.ranks:
            spec = runs.spec(corpus=corpus, rank=rank, alpha=SCALE * rank, lr=lr, keep=True)
            rows.append({"corpus": corpus, "rank": rank, **_over_seeds(runs, spec)})
    return rows


def study_rates(runs: Runs) -> list[dict[str, Any]]:
    """Learning rates: LoRA's optimum against full fine-tuning's, and whether it moves with the rank under alpha/r and
    alpha/sqrt(r). The two scalings are set to agree at r = 8."""
    rows = []
    kinds: list[tuple[str, dict[str, Any]]] = [("full", {"method": "full"})]
    for rank in (2, 8, 32):
        kinds.append((f"r={rank}, alpha/r", {"rank": rank, "alpha": 16.0}))
        if rank != 8:
            kinds.append((f"r={rank}, alpha/sqrt(r)", {"rank": rank, "alpha": 16 / 8**0.5, "rank_stabilized": True}))
    for corpus in runs.scale.corpora:
        for name, changes in kinds:
            for lr in runs.scale.learning_rates:
                spec = runs.spec(corpus=corpus, lr=lr, keep=True, **changes)
                rows.append({"corpus": corpus, "kind": name, "lr": lr, **_over_seeds(runs, spec, "loss")})
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


def study_data(runs: Runs) -> list[dict[str, Any]]:
    """How much text: LoRA at ranks 1 and 8 against full fine-tuning on more and more characters."""
    rows = []
    for corpus, (method, rank) in itertools.product(runs.scale.corpora, (("lora", 1), ("lora", 8), ("full", 8))):
        name, lr = "full" if method == "full" else f"LoRA r={rank}", best_rate(runs, method, corpus)
        for characters in runs.scale.characters:
            spec = runs.spec(corpus=corpus, method=method, rank=rank, alpha=SCALE * rank, lr=lr, characters=characters)
            rows.append({"corpus": corpus, "method": name, "characters": characters, **_over_seeds(runs, spec)})
    return rows


def study_spectra(runs: Runs) -> list[dict[str, Any]]:
    """The spectrum of every Delta W, of LoRA and of full fine-tuning, beside a random matrix's; and intruders."""
    rows = []
    base = load_model("base").state_dict()
    for corpus, method in itertools.product(runs.scale.corpora, ("lora", "full")):
        spec = runs.spec(corpus=corpus, method=method, lr=best_rate(runs, method, corpus), keep=True)
        for seed in runs.scale.seeds:
            for name, delta in updates(runs, replace(spec, seed=seed), base).items():
                spectrum = ranks.singular_values(delta)
                before = base[f"{name}.weight"]
                row: dict[str, Any] = {"corpus": corpus, "method": method, "seed": seed, "name": name}
                row |= ranks.summary(spectrum)
                row["spectrum"] = _short(spectrum)
                row["random"] = _short(ranks.singular_values(ranks.random_like(delta, seed)))
                row["intruders"] = len(ranks.intruder_dimensions(before, before + delta))
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
            rows.append({"corpus": corpus, "method": "lora", "rank": r, **_over_seeds(runs, spec, "loss")})
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
    "methods": study_methods,
    "matrices": study_matrices,
    "ranks": study_ranks,
    "rates": study_rates,
    "starts": study_starts,
    "data": study_data,
    "spectra": study_spectra,
    "truncation": study_truncation,
    "subspaces": study_subspaces,
}


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
    return write_json(
        path, {"format": FORMAT, "study": name, "question": question, "scale": asdict(scale), "rows": rows}
    )


def load_records(name: str, folder: str | Path = "figures/data") -> dict[str, Any]:
    """The records of a study: {"study", "question", "scale", "rows"}.

    Raises FileNotFoundError, or ValueError for records that are cut short or were made by another version.
    """
    path = Path(folder) / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"no records {path}: `minilora study {name}` makes them")
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        came = records["format"], len(records["rows"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is cut short or no record of a study ({error}); make it anew with --force") from None
    if came[0] != FORMAT or not came[1]:
        raise ValueError(f"{path} has format {came[0]} and {came[1]} rows, expected format {FORMAT}; make it anew")
    return records


def write_json(path: str | Path, content: Any) -> Path:
    """Write JSON beside its place and rename it."""
    text = json.dumps(content, indent=1) + "\n"
    return write_beside(path, lambda file: file.write(text.encode()))
