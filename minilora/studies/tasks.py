"""Three tasks, one after the other: one model that is trained again and again, beside an adapter for each task."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..adapters.attach import set_adapter
from ..adapters.files import load_adapter
from ..nn.storage import load_model
from ..training.loop import evaluate
from ..training.run import Run
from .runs import Runs, best_rate, settings, summarise, trained

TASKS = ("python-docs", "python-code", "unicode-names")


def study_tasks(runs: Runs) -> list[dict[str, Any]]:
    """Three tasks, one after the other: all weights trained in sequence, and an adapter for each on one base.

    A row is the loss on one text after one stage: what a stage does to the others' texts is forgetting. In sequence the
    rates are once each stage's own best ("sequential"), and once those that serve all texts so far best ("gentle").
    """
    plans = {"sequential": {stage: best_rate(runs, "full", stage) for stage in TASKS}, "gentle": _gentle_rates(runs)}
    own = {stage: best_rate(runs, "lora", stage) for stage in TASKS}
    losses: dict[tuple[str, str, str], list[float]] = {}
    switches = []
    for seed in runs.scale.seeds:
        for kind, rates in plans.items():
            for stage, model in _sequence(runs, seed, rates):
                for text, loss in _losses(runs, model, TASKS).items():
                    losses.setdefault((kind, stage, text), []).append(loss)
        model = load_model("base")
        for stage in ("base", *TASKS):
            if stage != "base":
                load_adapter(model, runs.file(runs.spec(corpus=stage, lr=own[stage], seed=seed, keep=True)), stage)
            for text in TASKS:
                set_adapter(model, text if text in getattr(model, "adapters", {}) else None)
                losses.setdefault(("adapters", stage, text), []).append(_losses(runs, model, (text,))[text])
        switches.append(_switch_seconds(model))
    rows = []
    for (kind, stage, text), values in losses.items():
        row = {"kind": kind, "stage": stage, "text": text, "switch_seconds": float(np.median(switches))}
        row["lr"] = plans.get(kind, own).get(stage, 0.0)  # nothing is trained before the first stage
        rows.append({**row, **summarise([{"loss": value} for value in values], "loss")})
    return rows


def _losses(runs: Runs, model: Any, texts: tuple[str, ...]) -> dict[str, float]:
    return {text: evaluate(model, runs.corpus(text), runs.scale.windows) for text in texts}


def _sequence(runs: Runs, seed: int, rates: Mapping[str, float]) -> Iterator[tuple[str, Any]]:
    """(stage, model) before training and after full fine-tuning on each task in turn, at its rate."""
    model = load_model("base")
    yield "base", model
    for stage, lr in rates.items():
        _train_on(runs, model, stage, lr, seed)
        yield stage, model


def _train_on(runs: Runs, model: Any, stage: str, lr: float, seed: int) -> None:
    spec = runs.spec(method="full", corpus=stage, lr=lr, seed=seed)
    for _ in trained(Run(model, runs.corpus(stage), settings(spec)), spec.steps):
        pass
    runs.bar.update()


def _gentle_rates(runs: Runs) -> dict[str, float]:
    """{stage: the rate after which the mean loss on all texts so far is lowest}, at the first seed, stage by stage."""
    rates: dict[str, float] = {}
    state = load_model("base").state_dict()
    for i, stage in enumerate(TASKS):
        ends = {}
        for lr in runs.scale.learning_rates[:3]:
            model = load_model("base")
            model.load_state_dict(state)
            _train_on(runs, model, stage, lr, runs.scale.seeds[0])
            mean = float(np.mean(list(_losses(runs, model, TASKS[: i + 1]).values())))
            ends[lr] = mean, model.state_dict()
        rates[stage] = min(ends, key=lambda lr: ends[lr][0])
        state = ends[rates[stage]][1]
    return rates


def _switch_seconds(model: Any, repeats: int = 50) -> float:
    """The median time of `set_adapter` from one task to the next."""
    times = []
    for i in range(repeats * len(TASKS)):
        start = time.perf_counter()
        set_adapter(model, TASKS[i % len(TASKS)])
        times.append(time.perf_counter() - start)
    return float(np.median(times))
