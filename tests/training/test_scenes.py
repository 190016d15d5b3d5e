"""Scenes: exact masks, prompts inside them, the same from the same seed; and pictures of one's own."""

import numpy as np
import pytest

from minilora.training import scenes as of
from minilora.training.scenes import KINDS, draw_scenes, scenes_of


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "shapes")) for kind in KINDS])
def test_prompts_are_of_the_mask_and_a_seed_says_all(kind):
    scenes = draw_scenes(kind, 6, 40, rng=3)
    assert scenes.images.shape == scenes.masks.shape == (6, 40, 40) and len(scenes) == 6
    assert scenes.images.dtype == np.float32 and 0 <= scenes.images.min() <= scenes.images.max() <= 1
    for mask, (x, y), (x0, y0, x1, y1) in zip(scenes.masks, scenes.points.astype(int), scenes.boxes, strict=True):
        assert mask[y, x]  # x to the right, y down
        rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
        assert (x0, y0, x1, y1) == (columns[0], rows[0], columns[-1], rows[-1])
    again, other = draw_scenes(kind, 6, 40, rng=np.random.default_rng(3)), draw_scenes(kind, 6, 40, rng=4)
    for name in ("images", "masks", "points", "boxes"):
        np.testing.assert_array_equal(getattr(scenes, name), getattr(again, name))
        assert not np.array_equal(getattr(scenes, name), getattr(other, name))
    some = scenes[[4, 1]]
    np.testing.assert_array_equal(some.masks, scenes.masks[[4, 1]])
    np.testing.assert_array_equal(some.boxes, scenes.boxes[[4, 1]])


def test_a_disc_is_as_large_as_it_should_be_and_covers_what_it_is_in_part():
    x, y = of.grid(48)
    d = 10.3 - np.hypot(x - 20, y - 24.5)
    assert (d > 0).sum() == pytest.approx(np.pi * 10.3**2, rel=0.02)
    assert of.cover(d).sum() == pytest.approx(np.pi * 10.3**2, rel=0.01)
    np.testing.assert_array_equal(of.paint(np.zeros(3), np.array([0, 0.5, 1]), 0.8), [0, 0.4, 0.8])
    u, v = of.turned(48, (20, 30), np.pi / 2)  # u points down, and v to the left
    assert u[40, 20] == pytest.approx(10) and v[30, 15] == pytest.approx(5)


@pytest.mark.slow
def test_a_crack_is_darker_than_the_wall_around_it_thin_and_long():
    scenes = draw_scenes("cracks", 20, rng=1)
    inside = np.array([image[mask].mean() for image, mask in zip(scenes.images, scenes.masks, strict=True)])
    outside = np.array([image[~mask].mean() for image, mask in zip(scenes.images, scenes.masks, strict=True)])
    assert (inside < outside).all() and np.median(outside - inside) > 0.2
    assert scenes.masks.mean(axis=(1, 2)).max() < 0.2 and scenes.masks.sum(axis=(1, 2)).min() >= 48
    long = np.maximum(*(scenes.boxes[:, 2:] - scenes.boxes[:, :2]).T)
    assert np.median(long) > 24


@pytest.mark.slow
def test_in_some_walls_other_things_are_as_dark_as_the_crack():
    """The darkest pixels, as many as the crack has, are not the crack: mortar, pores and what lies in a shadow."""
    overlaps = []
    for image, mask in ((s.images[0], s.masks[0]) for s in (draw_scenes("cracks", 1, rng=i) for i in range(60))):
        darkest = np.zeros(image.size, bool)
        darkest[np.argsort(image, axis=None)[: mask.sum()]] = True
        overlaps.append((darkest & mask.ravel()).sum() / (darkest | mask.ravel()).sum())
    assert 0.15 < np.mean(np.array(overlaps) < 0.75) < 0.6


def test_stairs_go_along_the_joints():
    """Without jitter each corner is where joints meet: at a row's edge, half a brick aside from row to row."""

    class Straight:
        uniform = staticmethod(lambda low, high: 0.5)
        choice = staticmethod(lambda options: 1)
        random = staticmethod(lambda: 0.9)
        normal = staticmethod(lambda mean, spread, shape: np.zeros(shape))

    places = of.along_joints(48, Straight(), np.array([3.0, 5.0]), 0.0, 8.0, 16.0) - [3, 5]
    rows, halves = places[:, 1] / 8, places[:, 0] / 8
    np.testing.assert_allclose([rows, halves], np.rint([rows, halves]))
    steps = np.diff(places, axis=0)
    assert set(map(tuple, steps[::2])) == {(0, 8)} and set(map(tuple, steps[1::2])) == {(8, 0)}
    for (u, v), down in zip(
        places[:-1:2], rows[:-1:2], strict=True
    ):  # upright joints of row n: (n odd) half a brick aside
        assert (u + (down % 2) * 8) % 16 == 0 and v == 8 * down


@pytest.mark.slow
def test_what_is_written_stands_on_its_plate_dark_on_light():
    """One generator in one state paints the same picture for both."""
    for seed in range(5):
        image, plate = of.plates(48, np.random.default_rng(seed))
        same, ink = of.characters(48, np.random.default_rng(seed))
        np.testing.assert_array_equal(image, same)
        assert not (ink & ~plate).any() and 40 < ink.sum() < plate.sum() / 2
        assert image[ink].mean() < image[plate & ~ink].mean() - 0.2


def test_letters_are_told_apart():
    sheet = of.letters(of.LETTER_FONTS[0])
    assert len(sheet) == len(of.WRITTEN) == len({one.tobytes() for one in sheet})
    assert sheet.max(axis=(0, 2)).min() > 0 and sheet.max(axis=(0, 1)).min() > 0  # nothing is left empty around them


def test_pictures_of_ones_own():
    images = np.random.default_rng(0).random((2, 9, 9))
    masks = np.zeros((2, 9, 9), int)
    masks[0, 2:5, 3], masks[1, 7, 1:4] = 1, 1
    scenes = scenes_of(images, masks, rng=1)
    np.testing.assert_array_equal(scenes.boxes, [[3, 2, 3, 4], [1, 7, 3, 7]])
    assert scenes.masks.dtype == bool and all(scenes.masks[i][int(y), int(x)] for i, (x, y) in enumerate(scenes.points))
    np.testing.assert_array_equal(scenes_of(list(images), list(masks), rng=1).points, scenes.points)


NINE = np.zeros((2, 9, 9))
WRONG = [
    (lambda: draw_scenes("faces", 1), r"^draw_scenes: kind = 'faces', expected one of shapes, plates, ch"),
    (lambda: draw_scenes(7, 1), r"^draw_scenes: kind = 7, expected a text"),
    (lambda: draw_scenes("cracks", 0), r"^draw_scenes: count = 0, expected 1 or more, an integer"),
    (lambda: draw_scenes("cracks", 1, 16), r"^draw_scenes: size = 16, expected 32 or more, an integer"),
    (lambda: draw_scenes("cracks", 1, rng="a"), r"^draw_scenes: rng = 'a', expected a seed"),
    (lambda: scenes_of(NINE, NINE), r"^scenes_of: mask 0 has no pixel inside: there is nothing to point at"),
    (lambda: scenes_of(NINE, NINE[:1]), r"^scenes_of: masks have shape \(1, 9, 9\), the images \(2, 9, 9\)"),
    (lambda: scenes_of(NINE, NINE + 255), r"^scenes_of: masks hold other numbers than 0 and 1, .*masks > 127"),
    (lambda: scenes_of(NINE[:, :4], NINE[:, :4]), r"^scenes_of: images have shape \(2, 4, 9\), expected \(B, S, S\)"),
    (lambda: scenes_of(NINE + 255, NINE), r"^scenes_of: pixels run from 255 to 255, expected 0 to 1; divide by 255"),
    (lambda: scenes_of([NINE[0], NINE[0, :4]], NINE), r"^scenes_of: images have .*, which is no array"),
]  # fmt: skip


@pytest.mark.parametrize("call, message", WRONG)
def test_what_does_not_fit_is_said_in_one_line(call, message):
    with pytest.raises((ValueError, TypeError), match=message) as told:
        call()
    assert "\n" not in str(told.value)
