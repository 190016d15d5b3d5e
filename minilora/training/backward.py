"""A batch's loss and gradients: in pieces that the cores share, whose gradients are added in a fixed order."""

import contextlib
import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..adapters.state import adapter_parameters, carried
from ..autograd.attention import LONG
from ..autograd.backend import Array, array_module
from ..autograd.fused import IGNORED
from ..autograd.parts import rows_cut, shared_by
from ..autograd.tensor import Tensor, grad
from ..nn.checks import plain
from ..nn.language_model import LanguageModel, as_mask, as_tokens
from .checks import described, integer
from .parallel import RowsOf, blas_has_one_thread, blas_of_one_thread, cores, in_parallel
from .processes import team_of
from .together import own_rows, sum_over_processes

Rows = tuple[int, int]  # from start to stop
Found = tuple[float, list[Array | None]]  # a loss, and a gradient for each parameter, or None


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

    def piece(start: int, stop: int) -> Piece:
        inputs = [array[start:stop] for array in (*arrays, targets)]
        share = counting(inputs[-1]) / total
        return Piece(inputs, None if mask is None else mask[start:stop], share, seed, start)

    long = isinstance(model, LanguageModel) and arrays[0].shape[1] >= LONG
    alone = pieces or long  # for one piece, too: the same anywhere; of a long text the pool's threads share the rows
    team = None if long else team_of(model, parameters)
    elsewhere = None if team is None else lambda ends: team.computed([piece(*rows) for rows in ends])
    with blas_of_one_thread() if alone else contextlib.nullcontext(), rows_cut(long):
        loss_of = lambda start, stop: piece(start, stop).loss(model)
        loss, gradients = sum_over_processes(*add_up(loss_of, parameters, parts, most, elsewhere), parameters)
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


@dataclass
class Piece:
    """Rows of a batch: what the model's loss takes, the share of the targets that they have, and the step's seed."""

    inputs: list[Array]  # the targets come last
    mask: Array | None
    share: float
    seed: Array | None
    start: int  # the first row

    def loss(self, model: Any) -> tuple[Tensor | None, float]:
        """The loss of these rows, None where no target counts, and their share."""
        if not self.share:
            return None, 0.0
        rows = None if self.seed is None else RowsOf(self.seed, self.start, len(self.inputs[-1]))
        padding = {} if self.mask is None else {"mask": self.mask}
        return model.loss(*self.inputs, rows, **padding), self.share

    def gradients(self, model: Any, parameters: list) -> Found:
        """Their share of the batch's loss, and of its gradients."""
        return gradients_of(*self.loss(model), parameters)


def gradients_of(loss: Tensor | None, share: float, parameters: list) -> Found:
    """A loss times its share, and its gradients; None for a parameter that is not reached, or has been frozen since."""
    gradients: list[Array | None] = [None] * len(parameters)
    if loss is None:
        return 0.0, gradients
    wanted = [i for i, p in enumerate(parameters) if p.requires_grad]
    if loss.node is not None and wanted:
        found = grad(loss, [parameters[i] for i in wanted], cotangent=share, unused="none")
        for i, g in zip(wanted, found, strict=True):
            gradients[i] = g
    return loss.item() * share, gradients


def add_up(
    loss_of: Callable[[int, int], tuple[Tensor | None, float]],
    parameters: list,
    parts: list[Rows],
    most: int | None = None,
    elsewhere: Callable[[list[Rows]], list[Found] | None] | None = None,
) -> Found:
    """The sum of a batch's losses, each times its share, and of their gradients; None for a parameter not reached.

    loss_of(start, stop): the loss of these rows, or None, and its share. Each part (start, stop), one after the other,
    is split into at most so many pieces (None: one for each core), which the cores share; they are added in order.
    elsewhere: what may compute the pieces in place of threads, or gives None.
    """
    most = _pieces_of(parameters) if most is None else most
    loss, gradients = 0.0, [None] * len(parameters)
    for part in parts:
        pieces = _split(*part, most)
        computed = elsewhere(pieces) if elsewhere else None
        if computed is None:
            free = len(pieces) < _pieces_of(parameters)  # some cores, unless a BLAS of many threads waits on them
            with shared_by(in_parallel if free and (len(pieces) > 1 or blas_has_one_thread()) else None):
                computed = in_parallel(lambda *rows: gradients_of(*loss_of(*rows), parameters), pieces)
        for one, found in computed:
            loss += one
            gradients = [_sum(g, other) for g, other in zip(gradients, found, strict=True)]
    return loss, gradients


def _split(start: int, stop: int, most: int) -> list[Rows]:
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
