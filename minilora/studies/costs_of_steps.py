"""What a training step costs, measured: time beside that of full fine-tuning, in turns, and the most memory held."""

import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..training.loop import train_step
from ..training.run import Run
from .runs import Runs, Spec, base_model, prepare, settings
from .turns import beside


def _probe(run: Run) -> Callable[[], float]:
    """A training step that moves nothing: the learning rate is 0, the optimiser and the generator are its own."""
    probe = Run(run.model, run.corpus, replace(run.settings, weight_decay=0.0))
    probe.optimizer.lr = 0.0
    tokens, targets = run.corpus.batch(run.settings.batch_size, run.model.context, probe.rng)
    return lambda: train_step(run.model, probe.optimizer, tokens, targets)


def measure_steps(runs: Runs, specs: Mapping[str, Spec], repeats: int) -> dict[str, dict[str, float]]:
    """{name: {"step_seconds", "step_ratio", "memory_bytes"}} of training steps, as several specs make them, in turns.

    The median time of a step, and of its ratio to the step of the spec called "full" in the same turn; and the bytes of
    weights and optimiser state, plus the most that a step allocates beside them: the median of some, with half their
    range, since threads do not always meet at their peaks.
    """
    if runs.wanted is not None:
        raise LookupError("a plan measures nothing: the study will")
    steps: dict[str, Callable[[], float]] = {}
    held: dict[str, int] = {}
    for name, spec in specs.items():
        model = base_model(spec)
        prepare(model, spec, runs.corpus(spec.corpus))
        run = Run(model, runs.corpus(spec.corpus), settings(spec))
        steps[name] = _probe(run)
        moments = 2 * sum(p.data.nbytes for p in run.optimizer.parameters)  # AdamW's m and v
        held[name] = weight_bytes(model) + moments
    timed = beside(steps, "full", repeats)
    peaks = {name: [peak_bytes(step) for _ in range(min(5, repeats))] for name, step in steps.items()}
    return {
        name: {
            "step_seconds": timed[name]["seconds"],
            "step_ratio": timed[name]["ratio"],
            "memory_bytes": held[name] + float(np.median(peaks[name])),
            "memory_bytes_spread": float(np.ptp(peaks[name])) / 2,
        }
        for name in steps
    }


def weight_bytes(model: Any) -> int:
    """Bytes of a model's parameters, and of the codes and scales of those held in few bits."""
    return sum(p.data.nbytes for p in model.parameters()) + sum(array.nbytes for _, array in model.named_buffers())


def peak_bytes(step: Callable[[], float]) -> int:
    """The most that is allocated at one time during a step, beside what was there before."""
    tracemalloc.start()
    step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak
