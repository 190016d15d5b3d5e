"""Exercises of lecture 11: LoRA beyond text."""

from typing import Any

import numpy as np

from .exercises import cause, exercise, same


@exercise("11.1")
def into_patches(answer: Any) -> str | None:
    """(B, S, S) -> (B, T, p^2): side by side, p rows of p pixels each."""
    images, p = np.arange(2 * 6 * 6.0).reshape(2, 6, 6), 3
    tiles = images.reshape(2, 2, p, 2, p)
    likely = {
        "reshape alone takes whole rows of pixels; a patch is p pixels of each of p rows: swap axes first": images,
        "the patches go row by row: the second is to the right of the first": tiles.transpose(0, 3, 1, 2, 4),
        "within a patch, too, the pixels go row by row": tiles.transpose(0, 1, 3, 4, 2),
    }
    got = np.asarray(answer(images, p), dtype=float)
    hint = cause(got, {words: wrong.reshape(2, 4, p * p) for words, wrong in likely.items()})
    return same(got, tiles.swapaxes(2, 3).reshape(2, 4, p * p), hint)


@exercise("11.2")
def guided(answer: Any) -> str | None:
    """(1 + w) eps(x, class) - w eps(x)"""
    a, b = np.random.default_rng(0).standard_normal((2, 3, 4, 4))
    got = np.asarray(answer(a, b, 2.0), dtype=float)
    likely = {
        "so it pushes away from the class: which of the two should count more?": 3 * b - 2 * a,
        "with w = 0 it must be what the model says with the class; here it is what it says without": b + 2 * (a - b),
        "the shares must add up to 1: as it is, the noise as a whole grows with w": 3 * a + 2 * b,
    }
    return same(
        got, 3 * a - 2 * b, cause(got, likely, "go on from what is said without the class, beyond what is said with")
    )


@exercise("11.3")
def first_picture(answer: Any) -> str | None:
    """x_0 = (x_t - sqrt(1 - a) eps) / sqrt(a)"""
    x, noise = np.random.default_rng(1).standard_normal((2, 3, 4, 4))
    a = 0.36
    got = np.asarray(answer(0.6 * x + 0.8 * noise, noise, a), dtype=float)
    mixed = 0.6 * x + 0.8 * noise
    likely = {
        "a is a share of the variance: the picture itself is scaled by its root": (mixed - (1 - a) * noise) / a,
        "what is left is sqrt(a) times the picture": mixed - 0.8 * noise,
        "not all of the noise is in it: sqrt(1 - a) times": (mixed - noise) / 0.6,
    }
    return same(got, x, cause(got, likely, "solve x_t = sqrt(a) x_0 + sqrt(1 - a) noise for x_0"))


@exercise("11.4")
def overlap(answer: Any) -> str | None:
    """|both| / |either|"""
    found, truth = np.zeros((2, 8, 8), bool)
    found[1:5, 1:5] = truth[2:6, 2:7] = True
    both, either = (found & truth).sum(), (found | truth).sum()
    likely = {
        "that is Dice: what is in both counts twice there, above and below": 2 * both / (found.sum() + truth.sum()),
        "pixels that are in neither must not count: a picture is mostly ground": (found == truth).mean(),
        "that is the share of the truth that was found; a mask of everything would have all of it": both / truth.sum(),
        "that is the share of the found that is right; a mask of one pixel could have all of it": both / found.sum(),
    }
    return same(answer(found, truth), both / either, cause(answer(found, truth), likely, "of both over of either"))
