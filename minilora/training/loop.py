"""The training loop: batches in, gradients out, one step at a time, until the end or Ctrl-C."""

import contextlib
import math
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd.backend import Array, array_module
from ..autograd.tensor import grad, no_grad
from ..nn.gpt import as_tokens
from .checkpoint import save_checkpoint
from .corpus import Corpus
from .memory import keep_freed_memory
from .optim import Optimizer, clip_gradients, cosine_schedule
from .parallel import cores, in_parallel
from .run import Run

EVALUATION_BATCH = 16  # windows at a time


def train_step(
    model: Any, optimizer: Optimizer, tokens: Any, targets: Any, rng: Any = None, max_norm: float | None = None
) -> float:
    """One step of training: forward, backward, update. Returns the loss before the update, in nats.

    tokens, targets: (B, T) integers. The batch is split over the cores and the gradients are added in a fixed order,
    so the same call gives the same bits. rng: a Generator for dropout, needed where the model has any. max_norm: clip.
    Raises FloatingPointError when the loss is not finite; the parameters are then as they were.
    """
    keep_freed_memory()
    loss, gradients = loss_and_gradients(model, optimizer.parameters, tokens, targets, rng)
    norm = clip_gradients(gradients, max_norm) if max_norm is not None else 0.0
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise FloatingPointError(_diagnosis(model, optimizer, gradients, loss))
    optimizer.step(gradients)
    return loss


def loss_and_gradients(
    model: Any, parameters: list, tokens: Any, targets: Any, rng: Any = None
) -> tuple[float, list[Array]]:
    """The mean loss over a batch and its gradients, computed on every core.

    A mean over the batch is the weighted mean of the means over its pieces, and so is its gradient.
    """
    if rng is None and any(getattr(m, "dropout", 0) for _, m in model.named_modules()):
        raise ValueError("train_step: the model has dropout, which needs a generator: rng=numpy.random.default_rng(0)")
    tokens, targets = as_tokens(tokens), as_tokens(targets)
    if tokens.shape != targets.shape or tokens.ndim != 2 or not tokens.size:
        raise ValueError(f"train_step: tokens {tokens.shape} and targets {targets.shape}, expected (B, T) for both")
    pieces = min(len(tokens), cores() if array_module(parameters[0].data) is np else 1)  # a GPU is one large core
    bounds = [len(tokens) * i // pieces for i in range(pieces + 1)]
    seeds = [None] * pieces if rng is None else rng.integers(2**63, size=pieces)

    def piece(start: int, stop: int, seed: Any) -> tuple[float, list[Array]]:
        dropout_rng = None if seed is None else np.random.default_rng(seed)
        loss = model.loss(tokens[start:stop], targets[start:stop], dropout_rng)
        if loss.node is None:
            raise ValueError("train_step: the loss depends on no trainable parameter (adapter merged or disabled?)")
        share = (stop - start) / len(tokens)
        return loss.item() * share, grad(loss, parameters, cotangent=share)

    parts = in_parallel(piece, list(zip(bounds, bounds[1:], seeds, strict=False)))
    loss, gradients = parts[0]
    for other_loss, others in parts[1:]:
        loss += other_loss
        for g, other in zip(gradients, others, strict=True):
            g += other
    return loss, gradients


def _diagnosis(model: Any, optimizer: Optimizer, gradients: list[Array], loss: float) -> str:
    """Which step and which parameter: what a person needs to know about a loss that is not finite."""
    # Values before gradients: one broken value breaks every gradient.
    values = [(name, p.data) for name, p in model.named_parameters()]
    names = {id(p): name for name, p in model.named_parameters()}
    values += [(names.get(id(p), "none"), g) for p, g in zip(optimizer.parameters, gradients, strict=True)]
    culprit = next((name for name, array in values if not bool(array_module(array).isfinite(array).all())), "none")
    return (
        f"training diverged at step {optimizer.steps + 1}: the loss is {loss}, the first parameter affected {culprit}; "
        f"the step was not taken. A lower learning rate than {optimizer.lr:g} or gradient clipping may help"
    )


def evaluate(model: Any, corpus: Corpus, most: int | None = None) -> float:
    """The mean loss on a corpus's validation text, in nats per character, over at most `most` windows.

    Windows are of block_size whatever the model. Where virtual tokens take places, the last of each are scored, so that
    models are compared on one text.
    """
    size = model.config.block_size
    windows = corpus.require(size).validation_windows(size, most)
    tokens, targets = (rows[:, size - model.context :] for rows in windows)  # (N, T)

    def piece(start: int) -> float:
        rows = slice(start, start + EVALUATION_BATCH)
        with no_grad():
            return model.loss(tokens[rows], targets[rows]).item() * len(tokens[rows])

    starts = [(start,) for start in range(0, len(tokens), EVALUATION_BATCH)]
    on_processor = array_module(model.parameters()[0].data) is np
    return sum(in_parallel(piece, starts) if on_processor else [piece(*start) for start in starts]) / len(tokens)


def train(run: Run, checkpoint: str | Path | None = None, progress: bool = True) -> Run:
    """Train until `run.settings.steps` steps are taken, from wherever the run stands.

    With a checkpoint path the run is saved every checkpoint_every steps, at the end, and at Ctrl-C, which ends the loop
    after the step it is in; a second Ctrl-C ends it at once. Raises FloatingPointError when the loss is not finite.
    """
    from tqdm import tqdm  # here, so that `import minilora` stays quick

    s, corpus = run.settings, run.corpus.require(run.model.context)
    bar = tqdm(total=s.steps, initial=run.step, disable=not progress, unit="step", ncols=79, leave=False)
    with bar, _stop_at_interrupt() as interrupt:
        if not run.validation["step"]:
            _evaluate(run)
        while run.step < s.steps and not interrupt.is_set():
            run.optimizer.lr = cosine_schedule(run.step, s.steps, s.lr, s.warmup, s.floor * s.lr)
            tokens, targets = corpus.batch(s.batch_size, run.model.context, run.rng)
            loss = train_step(run.model, run.optimizer, tokens, targets, run.rng, s.max_norm)
            run.history["step"].append(run.step)
            run.history["loss"].append(round(loss, 5))
            if run.step % s.evaluate_every == 0 or run.step == s.steps:
                _evaluate(run)
            bar.set_postfix(loss=f"{loss:.3f}", validation=f"{run.validation['loss'][-1]:.3f}")
            bar.update()
            if checkpoint is not None and run.step % s.checkpoint_every == 0 and run.step < s.steps:
                save_checkpoint(run, checkpoint)
    run.interrupted = interrupt.is_set() and run.step < s.steps
    if checkpoint is not None:
        save_checkpoint(run, checkpoint)
    return run


def _evaluate(run: Run) -> None:
    run.validation["step"].append(run.step)
    run.validation["loss"].append(round(evaluate(run.model, run.corpus, run.settings.evaluation_windows), 5))


@contextlib.contextmanager
def _stop_at_interrupt() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one interrupts as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield event
        return

    def stop(number: int, frame: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
