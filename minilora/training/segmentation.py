"""Training a segmenter on scenes, half of them asked by a point and half by a box, and measuring what it finds."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..autograd.signatures import checked, shown
from ..autograd.tensor import no_grad
from ..nn.segmenter import Segmenter, as_masks, as_prompts
from .checks import integer, truth
from .loop import train_step
from .optim import AdamW, Optimizer, cosine_schedule
from .parallel import in_parallel
from .processes import Team
from .scenes import Scenes, draw_scenes, fitting, prompts_of

AT_A_TIME = 16  # scenes, where they are only looked at


@checked
def segment_step(
    model: Segmenter,
    optimizer: Optimizer,
    images: Any,
    prompts: Any,
    masks: Any,
    max_norm: float | None = None,
    pieces: int | None = None,
    rng: np.random.Generator | None = None,
) -> float:
    """One step of training: `train_step`'s, with pictures, prompts and masks that fit. Returns the loss before it.

    images, masks: (B, S, S); prompts: (B, 2) or (B, 4). rng: for adapters that drop out.
    """
    images, prompts = model.fitting("segment_step", images, prompts)
    masks = as_masks("segment_step", masks, images.shape)
    return train_step(model, optimizer, (images, prompts), masks, rng, max_norm, pieces)


def segmenter_steps(
    model: Segmenter,
    scenes: Scenes,
    steps: int,
    lr: float,
    batch_size: int = 16,
    rng: Any = 0,
    weight_decay: float = 0.01,
    pieces: int | None = None,
    mirrored: bool = False,
) -> Iterator[tuple[int, float]]:
    """Train what the model trains now: (step, loss before it), one after the other; a look between them changes none.

    Each batch is drawn anew, and so are its prompts. mirrored: and half of the batches left to right, half upside down,
    for things that are the same in a mirror. The rate rises for a tenth of the steps, then falls as a cosine.
    """
    rng, optimizer = np.random.default_rng(rng), AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    team = Team(model, optimizer.parameters)
    images, masks = whole = fitting("train_segmenter", scenes.images, scenes.masks, model.config.size)
    for step in range(steps):
        if mirrored:
            over, across = rng.choice((-1, 1), 2)
            images, masks = (array[:, ::over, ::across] for array in whole)
        optimizer.lr = cosine_schedule(step, steps, lr, max(steps // 10, 1), 0.02 * lr)
        rows = rng.choice(len(images), min(batch_size, len(images)), replace=False)
        points, boxes = prompts_of(masks[rows], rng)
        by_point = rng.random(len(rows))[:, None] < 0.5
        prompts = np.where(by_point, np.tile(points, 2), boxes)
        given = (images[rows], prompts, masks[rows])
        with team:
            loss = segment_step(model, optimizer, *given, 1.0, pieces, rng if model.drops_out() else None)
        yield step, loss


def pretrain_segmenter(steps: int = 5000, scenes: int = 16384, rng: Any = 0) -> Iterator[tuple[int, float, Segmenter]]:
    """The shipped base, as it was made: a new segmenter, trained on shapes.   (step, loss before it, the model)"""
    rng = np.random.default_rng(rng)
    model, shapes = Segmenter(rng=rng), draw_scenes("shapes", scenes, rng=rng)
    for step, loss in segmenter_steps(model, shapes, steps, 3e-3, rng=rng, pieces=1):
        yield step, loss, model


@checked
def train_segmenter(
    model: Segmenter, scenes: Scenes, steps: int = 100, lr: float = 1e-2, rng: Any = 0, mirrored: bool = False
) -> list[float]:
    """Train what the model trains now, an adapter or all of it, on scenes. -> the loss before each step

    lr: the highest rate. rng: a seed or a numpy Generator, for what is drawn. mirrored: whether batches are, too, left
    to right and upside down: a crack in a mirror is a crack, a letter is none. Raises as `segment_step` does.
    """
    steps, mirrored = integer("train_segmenter: steps", steps, 1), truth("train_segmenter: mirrored", mirrored)
    return [loss for _, loss in segmenter_steps(model, scenes, steps, lr, rng=rng, mirrored=mirrored)]


@checked
def iou(model: Segmenter, scenes: Scenes, by: str = "point") -> np.ndarray:
    """Intersection over union, |found and meant| / |found or meant|, of each scene.   -> (N,), from 0 to 1

    by: "point" or "box", how the model is asked.
    """
    if by not in ("point", "box"):
        raise ValueError(f"iou: by = {shown(by)}, expected 'point' or 'box'")
    images, masks = fitting("iou", scenes.images, scenes.masks, model.config.size)
    prompts = as_prompts("iou", scenes.points if by == "point" else scenes.boxes, len(images), model.config.size)

    def piece(start: int) -> np.ndarray:
        rows = slice(start, start + AT_A_TIME)
        with no_grad():
            found, meant = model(images[rows], prompts[rows]).data > 0, masks[rows]
        return (found & meant).sum(axis=(1, 2)) / (found | meant).sum(axis=(1, 2))

    return np.concatenate(in_parallel(piece, [(start,) for start in range(0, len(images), AT_A_TIME)]))
