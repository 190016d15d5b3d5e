"""The exercises of lecture 11: what is wrong in a likely way is told apart, with a hint of its own."""

import re

import numpy as np
import pytest
from hints import assert_hint, assert_right


def tiles(images: np.ndarray, p: int) -> np.ndarray:
    b, s = images.shape[:2]
    return images.reshape(b, s // p, p, s // p, p)


WRONG = [
    ("11.1", lambda x, p: x.reshape(len(x), -1, p * p), "whole rows of pixels"),
    ("11.1", lambda x, p: tiles(x, p).transpose(0, 3, 1, 2, 4).reshape(len(x), -1, p * p), "the patches go row by row"),
    ("11.1", lambda x, p: tiles(x, p).transpose(0, 1, 3, 4, 2).reshape(len(x), -1, p * p), "within a patch"),
    ("11.1", lambda x, p: tiles(x, p).swapaxes(2, 3), "array of shape"),
    ("11.2", lambda a, b, w: (1 + w) * b - w * a, "away from the class"),
    ("11.2", lambda a, b, w: b + w * (a - b), "with w = 0"),
    ("11.2", lambda a, b, w: (1 + w) * a + w * b, "add up to 1"),
    ("11.2", lambda a, b, w: a, "go on from"),
    ("11.3", lambda x, e, a: (x - (1 - a) * e) / a, "by its root"),
    ("11.3", lambda x, e, a: x - np.sqrt(1 - a) * e, "what is left"),
    ("11.3", lambda x, e, a: (x - e) / np.sqrt(a), "not all of the noise"),
    ("11.3", lambda x, e, a: x, "solve x_t"),
    ("11.4", lambda f, t: 2 * (f & t).sum() / (f.sum() + t.sum()), "Dice"),
    ("11.4", lambda f, t: (f == t).mean(), "in neither"),
    ("11.4", lambda f, t: (f & t).sum() / t.sum(), "a mask of everything"),
    ("11.4", lambda f, t: (f & t).sum() / f.sum(), "a mask of one pixel"),
    ("11.4", lambda f, t: 0.1, "of both over of either"),
]


@pytest.mark.parametrize(("name", "answer", "told"), WRONG)
def test_a_likely_mistake_has_its_hint(name: str, answer: object, told: str, capsys: pytest.CaptureFixture) -> None:
    assert_hint(capsys, name, answer, re.escape(told))


RIGHT = [
    ("11.1", lambda x, p: np.stack([[i[r : r + p, c : c + p].ravel() for r in range(0, len(i), p)
                                     for c in range(0, len(i), p)] for i in x])),
    ("11.2", lambda a, b, w: a + w * (a - b)),
    ("11.3", lambda x, e, a: x / np.sqrt(a) - np.sqrt(1 / a - 1) * e),
    ("11.4", lambda f, t: np.minimum(f, t).sum() / np.maximum(f, t).sum()),
]  # fmt: skip


@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_what_is_right_in_another_way_is_right(name: str, answer: object) -> None:
    assert_right(name, answer)
