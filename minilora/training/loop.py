"""The training loop: batches in, gradients out, one step at a time, until the end or Ctrl-C."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd.backend import Array, array_module
from ..autograd.fused import IGNORED
from ..autograd.signatures import checked
from ..autograd.tensor import no_grad
from .backward import counting, loss_and_gradients
from .checkpoint import check_run, save_checkpoint
from .checks import NORM, described, integer, number
from .corpus import as_corpus
from .examples import Examples
from .memory import keep_freed_memory
from .optim import Optimizer, clip_gradients, cosine_schedule
from .parallel import in_parallel
from .processes import Team
from .run import Run
from .stopping import stop_at_signals
from .together import any_of

EVALUATION_BATCH = 16  # windows at a time


def train_step(
    model: Any,
    optimizer: Optimizer,
    tokens: Any,
    targets: Any,
    rng: Any = None,
    max_norm: float | None = None,
    pieces: int | None = None,
    mask: Any = None,
    accumulate: int = 1,
) -> float:
    """One step of training: forward, backward, update. Returns the loss before the update, in nats.

    tokens, targets: (B, T) integers; a target of -100 does not count; of an encoder that labels texts the targets are
    (B,). Of a model of pictures both are what its loss takes, arrays with a row for each picture; where it takes
    several before the targets, they are a tuple. mask: (B, T), 1 where a token counts and 0 where it is padding, for a
    model that takes one. The batch is split over the cores and the gradients are added in a fixed order, so the same
    call gives the same bits; pieces: how many it is split into, if not one for each core. The cores are threads of this
    process; in a loop, `processes.Team` lets small models use processes, which is quicker and changes no bit.
    accumulate: in how many parts the batch is computed, one after the other, in the memory of one. rng: a Generator for
    dropout, needed where the model has any. max_norm: clip. A parameter that the loss does not depend on is left alone.
    Raises ValueError where it depends on none, and FloatingPointError when the loss is not finite; the parameters are
    then as they were.
    """
    keep_freed_memory()
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"train_step: optimizer is {described(optimizer)}, expected ml.AdamW(model.parameters())")
    if max_norm is not None:
        max_norm = number("train_step: max_norm", max_norm, NORM)
    loss, gradients = loss_and_gradients(model, optimizer.parameters, tokens, targets, rng, pieces, mask, accumulate)
    norm = clip_gradients(gradients, max_norm) if max_norm is not None else 0.0
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise FloatingPointError(diagnosis(model, optimizer, gradients, loss))
    optimizer.step(gradients)
    return loss


def diagnosis(model: Any, optimizer: Optimizer, gradients: list[Array | None], loss: float) -> str:
    """Which step and which parameter: what a person needs to know about a loss that is not finite."""
    # Values before gradients: one broken value breaks every gradient.
    names = {id(p): name for name, p in model.named_parameters()}
    pairs = zip(optimizer.parameters, gradients, strict=True)
    broken = [p for p, g in pairs if g is not None and not bool(array_module(g).isfinite(g).all())]
    culprit = model.first_not_finite() or next((names.get(id(p), "none") for p in broken), "none")
    return (
        f"training diverged at step {optimizer.steps + 1}: the loss is {loss}, the first parameter affected {culprit}; "
        f"the step was not taken. A lower learning rate than {optimizer.lr:g} or gradient clipping may help"
    )


def evaluate(model: Any, corpus: Any, most: int | None = None, window: int | None = None) -> float:
    """The mean loss on a corpus's validation text, in nats per token, over at most `most` windows or examples.

    corpus: a Corpus, or what load_corpus takes, or Examples, of which the targets that are not -100 count. Windows are
    of `window` tokens, or of model.window. Where virtual tokens take places, the last of each are scored, so that
    models are compared on one text. Raises FloatingPointError, with the name of the parameter that is not finite, when
    the loss is not.
    """
    if not hasattr(model, "loss") or isinstance(model, type):
        raise TypeError(f"evaluate: model is {described(model)}, expected one such as ml.load_model('base')")
    corpus = as_corpus("evaluate", corpus, getattr(model, "tokenizer", None))
    length = length_of("evaluate", model, corpus, window)
    size = length if isinstance(corpus, Examples) else window or model.window
    most = None if most is None else integer("evaluate: most", most, 1)
    windows = corpus.require(size).validation_windows(size, most)
    tokens, targets, *mask = (rows[:, size - length :] for rows in windows)  # (N, T)

    def piece(start: int) -> tuple[float, float]:
        rows = slice(start, start + EVALUATION_BATCH)
        longest = int(mask[0][rows].sum(axis=1).max()) if mask else None  # short examples are not padded to long ones
        inputs, wanted, *cut = (array[rows, :longest] for array in (tokens, targets, *mask))
        padding = {} if (needed := _needed(model, cut)) is None else {"mask": needed}
        weight = counting(wanted) / targets.shape[1]  # in whole rows
        if not weight:
            return 0.0, 0.0
        with no_grad():
            return model.loss(inputs, wanted, **padding).item() * weight, weight

    starts = [(start,) for start in range(0, len(tokens), EVALUATION_BATCH)]
    on_processor = array_module(model.parameters()[0].data) is np
    parts = in_parallel(piece, starts) if on_processor else [piece(*start) for start in starts]
    loss, weight = (sum(numbers) for numbers in zip(*parts, strict=True))
    if not weight:
        raise ValueError(f"evaluate: all {targets.size:,} targets of {corpus.name!r} are {IGNORED}: no loss counts")
    loss /= weight
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"evaluate: the loss is {loss}; {model.first_not_finite() or 'every parameter is finite'}"
        )
    return loss


def length_of(caller: str, model: Any, corpus: Any, window: int | None = None) -> int:
    """How many tokens of a text a step takes: a window, or what virtual tokens leave of it. An example is whole.

    Raises ValueError for a window that is longer than the model's context, and for a text that an encoder should go on
    with: it sees what comes next.
    """
    architecture: Any = getattr(model, "architecture", None)
    if not hasattr(model, "window"):
        raise TypeError(f"{caller}: model is {described(model)}, which reads no text; ml.train_step takes pictures")
    if not getattr(architecture, "causal", True) and not getattr(corpus, "labels", ()):
        what = f"{corpus.name!r} asks for the next token, and {architecture.name} is an encoder, which sees it"
        raise ValueError(f"{caller}: {what}; give it texts with labels: ml.load_labels, --task classify")
    if window is not None and integer(f"{caller}: window", window, 1) > model.places:
        raise ValueError(f"{caller}: window = {window:,}, and the model's context is {model.places:,} tokens")
    return model.context if isinstance(corpus, Examples) else min(window or model.window, model.context)


def _needed(model: Any, mask: list[Array]) -> Array | None:
    """The mask of padded examples, for a model that reads both ways: one that reads on sees no padding at the end."""
    causal = getattr(getattr(model, "architecture", None), "causal", True)
    return None if causal or not mask else mask[0]


@checked
def train(run: Any, checkpoint: str | Path | None = None, progress: bool = True) -> Run:
    """Train until `run.settings.steps` steps are taken, from wherever the run stands.

    With a checkpoint path the run is saved every checkpoint_every steps, at the end, and at Ctrl-C; where that fails
    there is a warning, and the training goes on. Ctrl-C, SIGTERM and SIGHUP end the loop after the step it is in: then
    `run` is as far as it is, saved, and KeyboardInterrupt is raised. A second Ctrl-C ends it at once. Raises
    FloatingPointError when the loss is not finite, OSError when the checkpoint has no folder to be in, ValueError where
    the model trains what the run does not, and with a checkpoint for what could not be saved.
    """
    from tqdm import tqdm  # here, so that `import minilora` stays quick

    if not isinstance(run, Run):
        raise TypeError(f"train: got {described(run)}, expected a run: ml.Run(model, corpus, ml.Settings(steps=200))")
    if checkpoint is not None and Path(checkpoint).is_dir():
        raise IsADirectoryError(f"train: checkpoint = {str(checkpoint)!r} is a folder, expected the path of a file")
    own = {id(p) for p in run.optimizer.parameters}
    trained = {name: id(p) in own for name, p in run.model.named_parameters() if p.requires_grad}
    if len({*trained.values()}) == 2:  # of a run that trains nothing of the model, the first step says so
        late, fix = min(trained, key=trained.__getitem__), "make another run: ml.Run(model, corpus, settings)"
        raise ValueError(f"train: the model trains {late}, and the run, which was made before, does not; {fix}")
    s, corpus = run.settings, run.corpus.require(length_of("train", run.model, run.corpus, run.settings.window))
    bar = tqdm(total=s.steps, initial=run.step, disable=not progress, unit="step", dynamic_ncols=True, leave=False)
    run.interrupted, run.saved = False, None
    if s.checkpoint_blocks:
        run.compute_again()
    saving = any_of(checkpoint is not None)  # by the first of several processes
    if checkpoint is not None:
        check_run(run, "train")  # now, and not when hours are trained and cannot be saved
        Path(checkpoint).parent.mkdir(parents=True, exist_ok=True)
    with bar, Team(run.model, run.optimizer.parameters), stop_at_signals() as interrupt:
        if not run.validation["step"]:
            _evaluate(run)
        stopped = False
        while run.step < s.steps and not (stopped := any_of(interrupt.is_set())):
            loss = _step(run, corpus)
            run.history["step"].append(run.step)
            run.history["loss"].append(round(loss, 5))
            if run.step % s.evaluate_every == 0 or run.step == s.steps:
                _evaluate(run)
            bar.set_postfix(loss=f"{loss:.3f}", validation=f"{run.validation['loss'][-1]:.3f}")
            bar.update()
            if saving and run.step % s.checkpoint_every == 0 and run.step < s.steps:
                _save(run, checkpoint)
        run.interrupted = stopped
        if saving:
            _save(run, checkpoint)
    if stopped or interrupt.is_set():
        raise KeyboardInterrupt
    return run


def _step(run: Run, corpus: Any) -> float:
    """The next batch's step. Where none is taken, the generator is set back: the batch will be the next one's."""
    s, step, before = run.settings, run.step, run.rng.bit_generator.state
    try:
        run.optimizer.lr = cosine_schedule(step, s.steps, s.lr, s.warmup, s.floor * s.lr)
        length = length_of("train", run.model, corpus, s.window)
        tokens, targets, *mask = corpus.batch(s.batch_size * s.accumulate, length, run.rng)
        mask = _needed(run.model, mask)
        return train_step(run.model, run.optimizer, tokens, targets, run.rng, s.max_norm, s.pieces, mask, s.accumulate)
    except BaseException:
        if run.step == step:
            run.rng.bit_generator.state = before
        raise


def _save(run: Run, checkpoint: str | Path | None) -> None:
    """Write the checkpoint. A failure is no end: the training is what was asked for, and the last good file stays.

    Every process comes here, to give what it alone has; of several only the first has a file.
    """
    run.optimizer.gather()
    if checkpoint is None:
        return
    try:
        save_checkpoint(run, checkpoint)
        run.saved = run.step
    except OSError as error:
        why = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        warnings.warn(f"the run could not be saved at step {run.step:,}: {why}", stacklevel=3)


def _evaluate(run: Run) -> None:
    loss = evaluate(run.model, run.corpus, run.settings.evaluation_windows, run.settings.window)
    run.validation["step"].append(run.step)
    run.validation["loss"].append(round(loss, 5))
