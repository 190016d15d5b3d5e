"""The training loop: batches in, gradients out, one step at a time, until the end or Ctrl-C."""

import contextlib
import inspect
import itertools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters.state import adapter_parameters, carried
from ..autograd.attention import LONG
from ..autograd.backend import Array, array_module
from ..autograd.fused import IGNORED
from ..autograd.parts import rows_cut, shared_by
from ..autograd.signatures import checked
from ..autograd.tensor import Tensor, grad, no_grad
from ..nn.checks import plain
from ..nn.language_model import LanguageModel, as_mask, as_tokens
from .checkpoint import check_run, save_checkpoint
from .checks import NORM, described, integer, number
from .corpus import as_corpus
from .examples import Examples
from .memory import keep_freed_memory
from .optim import Optimizer, clip_gradients, cosine_schedule
from .parallel import RowsOf, blas_of_one_thread, cores, in_parallel
from .run import Run
from .stopping import stop_at_signals
from .together import any_of, own_rows, sum_over_processes

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
    call gives the same bits; pieces: how many it is split into, if not one for each core.
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


def loss_and_gradients(
    model: Any,
    parameters: list,
    tokens: Any,
    targets: Any,
    rng: Any = None,
    pieces: int | None = None,
    mask: Any = None,
    accumulate: int = 1,
) -> tuple[float, list[Array | None]]:
    """The mean loss over a batch and its gradients, computed on every core; None for a parameter it does not reach.

    The mean over the targets that count is the mean of those over the batch's pieces, each weighted by how many of
    these targets it has, and so is its gradient. Of `accumulate` parts of the batch, one after the other, each is split
    into pieces that the cores share.
    """
    arrays, targets, mask = _checked_batch(model, tokens, targets, rng, mask)
    most = None if pieces is None else integer("train_step: pieces", pieces, 1)
    parts = _split(*own_rows(len(targets)), integer("train_step: accumulate", accumulate, 1))
    total = counting(targets)
    # One seed a step, of two words: as many as when each piece drew one and the committed records were made, on two
    # cores. So the batches that are drawn after it are those of the records.
    seed = None if rng is None else rng.integers(2**63, size=2)

    def loss_of(start: int, stop: int) -> tuple[Tensor | None, float]:
        rows = None if seed is None else RowsOf(seed, start, stop - start)
        share = counting(targets[start:stop]) / total
        padding = {} if mask is None else {"mask": mask[start:stop]}
        inputs = [array[start:stop] for array in (*arrays, targets)]
        return model.loss(*inputs, rows, **padding) if share else None, share

    long = isinstance(model, LanguageModel) and arrays[0].shape[1] >= LONG
    alone = pieces or long  # for one piece, too: the same anywhere; of a long text the pool's threads share the rows
    with blas_of_one_thread() if alone else contextlib.nullcontext(), rows_cut(long):
        loss, gradients = sum_over_processes(*add_up(loss_of, parameters, parts, most), parameters)
    if all(g is None for g in gradients):
        raise ValueError(
            "train_step: the loss depends on no trainable parameter (adapter merged or disabled?) of this optimizer; "
            "AdamW(model.parameters()) takes those that the model trains now"
        )
    if any(g is None for g in gradients):
        _refuse_merged(model, parameters, gradients)
    return loss, gradients


def _refuse_merged(model: Any, parameters: list, gradients: list[Array | None]) -> None:
    """Raise ValueError where the adapter is merged, so that only what is beside it would be trained."""
    state = carried(model)
    own = adapter_parameters(model) if state is not None and state.merged else {}
    names = {id(p): name for name, p in own.items() if p.requires_grad}
    if idle := [names[id(p)] for p, g in zip(parameters, gradients, strict=True) if g is None and id(p) in names]:
        fix = "unmerge_lora(model) first, or give the optimiser only what is beside it"
        raise ValueError(f"train_step: the adapter is merged, and {idle[0]} would not be trained; {fix}")


def add_up(
    loss_of: Callable[[int, int], tuple[Tensor | None, float]],
    parameters: list,
    parts: list[tuple[int, int]],
    most: int | None = None,
) -> tuple[float, list[Array | None]]:
    """The sum of a batch's losses, each times its share, and of their gradients; None for a parameter not reached.

    loss_of(start, stop): the loss of these rows, or None, and its share. Each part (start, stop), one after the other,
    is split into at most so many pieces (None: one for each core), which the cores share; they are added in order.
    """
    wanted = [i for i, p in enumerate(parameters) if p.requires_grad]  # one may have been frozen since
    most = _pieces_of(parameters) if most is None else most

    def piece(start: int, stop: int) -> tuple[float, list]:
        gradients: list[Array | None] = [None] * len(parameters)
        loss, share = loss_of(start, stop)
        if loss is None:
            return 0.0, gradients
        if loss.node is not None and wanted:
            found = grad(loss, [parameters[i] for i in wanted], cotangent=share, unused="none")
            for i, g in zip(wanted, found, strict=True):
                gradients[i] = g
        return loss.item() * share, gradients

    loss, gradients = 0.0, [None] * len(parameters)
    for part in parts:
        pieces = _split(*part, most)
        with shared_by(in_parallel if len(pieces) < _pieces_of(parameters) else None):  # some cores are free
            computed = in_parallel(piece, pieces)
        for one, found in computed:
            loss += one
            gradients = [_sum(g, other) for g, other in zip(gradients, found, strict=True)]
    return loss, gradients


def _split(start: int, stop: int, most: int) -> list[tuple[int, int]]:
    """The rows from start to stop in at most so many pieces, as equal as can be: [(start, stop), ...]"""
    rows, n = stop - start, min(stop - start, most)
    return list(itertools.pairwise(start + rows * i // max(n, 1) for i in range(n + 1)))


def counting(targets: Array) -> int:
    """How many targets count: those that are not -100."""
    return int((targets != IGNORED).sum())


def _pieces_of(parameters: list) -> int:
    return cores() if array_module(parameters[0].data) is np else 1  # a GPU is one large core


def _sum(g: Array | None, other: Array | None) -> Array | None:
    """Their sum, in the place of the first; a piece that does not reach a parameter adds nothing to its gradient."""
    if g is None or other is None:
        return other if g is None else g
    g += other
    return g


def _checked_batch(
    model: Any, tokens: Any, targets: Any, rng: Any, mask: Any
) -> tuple[list[Array], Array, Array | None]:
    """What the loss takes before its targets, these, and the mask, or an error that says what came instead."""
    if not hasattr(model, "loss") or isinstance(model, type):
        raise TypeError(f"train_step: model is {described(model)}, expected one such as ml.load_model('base')")
    if rng is not None and not isinstance(rng, np.random.Generator):
        why = "; a seed would drop out the same in every step" if isinstance(rng, int | np.integer) else ""
        raise TypeError(f"train_step: rng = {described(rng)}, expected a numpy.random.Generator{why}")
    if rng is None and model.drops_out():
        raise ValueError("train_step: the model has dropout, which needs a generator: rng=numpy.random.default_rng(0)")
    if isinstance(model, LanguageModel) or mask is not None:
        tokens, targets, mask = _checked_texts(model, tokens, targets, mask)
        arrays = [tokens]
    else:
        arrays, targets = _rows(tokens, targets)
    if not counting(targets):
        raise ValueError(f"train_step: all {targets.size:,} targets are {IGNORED} or padding: no loss counts")
    return arrays, targets, mask


def _rows(inputs: Any, targets: Any) -> tuple[list[Array], Array]:
    """A batch of pictures, say: arrays of numbers, each with as many rows as the others."""
    given = (*inputs, targets) if isinstance(inputs, tuple) else (inputs, targets)
    arrays = [plain(one.data if isinstance(one, Tensor) else one, "train_step: a part of the batch") for one in given]
    if any(not array.ndim for array in arrays) or len({len(array) for array in arrays}) > 1 or not arrays[-1].size:
        shapes = " and ".join(str(array.shape) for array in arrays)
        raise ValueError(f"train_step: a batch of {shapes}, expected arrays of one length B, a row for each example")
    return arrays[:-1], arrays[-1]


def _checked_texts(model: Any, tokens: Any, targets: Any, mask: Any) -> tuple[Array, Array, Array | None]:
    """Tokens, targets and the mask as arrays (B, T), or an error that says what came. Padding is no target."""
    tokens, targets = as_tokens(tokens, "train_step"), as_tokens(targets, "train_step")
    of_texts = getattr(getattr(model, "architecture", None), "head", "") == "labels"  # an encoder's: one for each text
    words = "(B, T) for both" + ", or targets (B,)" * of_texts
    alone = of_texts and targets.shape == tokens.shape[:1]
    if not (alone or targets.shape == tokens.shape) or tokens.ndim != 2 or not tokens.size:
        raise ValueError(f"train_step: tokens {tokens.shape} and targets {targets.shape}, expected {words}")
    if mask is not None:
        if "mask" not in inspect.signature(model.loss).parameters:
            fix = f"a causal model needs none where the padding is on the right and its targets are {IGNORED}"
            raise TypeError(f"train_step: {type(model).__name__}.loss takes no mask; {fix}")
        mask, xp = as_mask("train_step", mask, tokens.shape), array_module(targets)
    if mask is not None and not alone:
        targets = xp.where(xp.asarray(mask), targets.astype("int64") if targets.dtype.kind == "u" else targets, IGNORED)
    return tokens, targets, mask


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
    with bar, stop_at_signals() as interrupt:
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
