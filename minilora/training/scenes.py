"""Small grey pictures whose masks are known exactly: shapes, plates with characters, and cracks in brickwork.

Everything that is asked for is drawn from one number a pixel: its signed distance d to the border, in pixels, positive
inside. Coverage clip(d + 1/2, 0, 1) is how much of the pixel is painted, and the mask is where d > 0. So a mask fits
its picture to half a pixel, however thin the thing is.

    shapes      discs, boxes and triangles that may hide one another: the prompt says which one is meant
    plates      a licence plate, a little tilted, on a textured ground
    characters  the same pictures, and what is written on the plate
    cracks      a random walk of changing width, through bricks and mortar or along the joints, where much else is dark

A point is (x, y): x to the right and y down, both from 0 at the centre of the first pixel. A box is (x0, y0, x1, y1),
the outermost pixels of a mask.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..autograd.signatures import checked, shown
from ..nn.checks import generator
from ..nn.segmenter import as_images, as_masks
from .checks import integer, pictures_fit
from .glyphs import draw_glyphs

Painted = tuple[np.ndarray, np.ndarray]  # a picture and its mask: (S, S) each

SMALLEST = 32  # pixels of a side: on fewer, nobody can read a plate
WRITTEN = "0123456789ABCDEFGHJKLMNPRSTUVWXYZ"  # on plates
LETTER_FONTS = ("DejaVu Sans Bold", "DejaVu Sans Mono Bold")


@dataclass(frozen=True, eq=False)
class Scenes:
    """Pictures, what is meant in each, and two ways to say so.

    images: (N, S, S) float32 in [0, 1]. masks: (N, S, S), True inside. points: (N, 2), a pixel of each mask, drawn by a
    generator. boxes: (N, 4), around each mask.
    """

    images: np.ndarray
    masks: np.ndarray
    points: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Any) -> "Scenes":
        """Some of the scenes, by a slice or an array of numbers."""
        return Scenes(self.images[rows], self.masks[rows], self.points[rows], self.boxes[rows])


@checked
def draw_scenes(kind: str, count: int, size: int = 48, rng: Any = 0) -> Scenes:
    """So many pictures of a kind ("shapes", "plates", "characters" or "cracks") with their masks and prompts.

    size: S, the pixels of a side, 32 or more. rng: a seed or a numpy Generator.

    >>> scenes = draw_scenes("cracks", 3)
    >>> scenes.images.shape, scenes.masks.dtype, scenes.points.shape, scenes.boxes.shape
    ((3, 48, 48), dtype('bool'), (3, 2), (3, 4))
    """
    if kind not in KINDS:
        raise ValueError(f"draw_scenes: kind = {shown(kind)}, expected one of {', '.join(KINDS)}")
    count, size = integer("draw_scenes: count", count, 1), integer("draw_scenes: size", size, SMALLEST)
    pictures_fit("draw_scenes", count, size)
    rng = generator(rng, "draw_scenes")
    painted = [KINDS[kind](size, rng) for _ in range(count)]
    return scenes_of([image for image, _ in painted], [mask for _, mask in painted], rng)


@checked
def scenes_of(images: Any, masks: Any, rng: Any = 0) -> Scenes:
    """Pictures of one's own with their masks, and prompts that are drawn from these.   images, masks: (N, S, S)

    images: grey, numbers from 0 to 1. masks: True inside, or 1 inside and 0 outside. rng: a seed or a numpy Generator,
    for the points. Raises ValueError for pictures of another shape or range, and masks that do not fit, or are empty.
    """
    rng = generator(rng, "scenes_of")
    pictures, inside = fitting("scenes_of", images, masks)
    return Scenes(pictures, inside, *prompts_of(inside, rng))


def fitting(caller: str, images: Any, masks: Any, size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Grey pictures, and masks that fit them, none of them empty, or an error that says what came instead."""
    pictures = as_images(caller, images, size)
    inside = as_masks(caller, masks, pictures.shape)
    if len(empty := np.flatnonzero(~inside.any(axis=(1, 2)))):
        raise ValueError(f"{caller}: mask {empty[0]} has no pixel inside: there is nothing to point at")
    return pictures, inside


def prompts_of(masks: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A pixel of each mask, and the box around it.   (N, S, S) -> points (N, 2), boxes (N, 4)"""
    points, boxes = [], []
    for mask in masks:
        y, x = np.nonzero(mask)
        pick = rng.integers(len(x))
        points.append((x[pick], y[pick]))
        boxes.append((x.min(), y.min(), x.max(), y.max()))
    return np.array(points, np.float32), np.array(boxes, np.float32)


# --- how they are painted --------------------------------------------------------------------------------------------


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every pixel: (S, S) each."""
    return tuple(np.meshgrid(np.arange(size, dtype=float), np.arange(size, dtype=float)))  # type: ignore[return-value]


def cover(d: np.ndarray) -> np.ndarray:
    """How much of a pixel is inside, from its signed distance to the border: clip(d + 1/2, 0, 1)"""
    return np.clip(d + 0.5, 0, 1)


def paint(image: np.ndarray, share: np.ndarray, shade: Any) -> np.ndarray:
    """A shade over so much of each pixel."""
    return image + share * (shade - image)


def turned(size: int, centre: Sequence[float] | np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Every pixel's place in axes of its own thing, u along and v across it."""
    x, y = grid(size)
    x, y, c, s = x - centre[0], y - centre[1], math.cos(angle), math.sin(angle)
    return c * x + s * y, c * y - s * x


def shape(size: int, rng: np.random.Generator) -> np.ndarray:
    """The signed distance to a disc, a box or a triangle somewhere; of a corner's two edges, to the nearer one."""
    u, v = turned(size, rng.uniform(0.12, 0.88, 2) * size, rng.uniform(0, 2 * math.pi))
    a, b = rng.uniform(0.08, 0.24, 2) * size
    kind = rng.integers(3)
    if kind == 0:
        return a - np.hypot(u, v)
    if kind == 1:
        return np.minimum(a - np.abs(u), b - np.abs(v))
    turns = [2 * math.pi * k / 3 + t for k, t in enumerate(rng.uniform(-0.3, 0.3, 3))]
    return np.min([0.7 * a - (u * math.cos(t) + v * math.sin(t)) for t in turns], axis=0)


def ground(size: int, rng: np.random.Generator, shade: float, depth: float) -> np.ndarray:
    """A shade that changes over the picture, with waves: what things stand on."""
    u, v = turned(size, (size / 2, size / 2), rng.uniform(0, 2 * math.pi))
    waves = np.sin(u * rng.uniform(0.1, 0.9) + rng.uniform(0, 6)) * np.cos(v * rng.uniform(0, 0.9) + rng.uniform(0, 6))
    return shade + depth * waves + rng.uniform(-0.2, 0.2) * u / size


def finished(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With the noise of a camera, in [0, 1]."""
    return np.clip(image + rng.normal(0, rng.uniform(0.01, 0.05), image.shape), 0, 1).astype(np.float32)


def shapes(size: int, rng: np.random.Generator) -> Painted:
    """Two to five shapes, later ones over earlier ones, and one that can be seen well enough to be meant."""
    shade = rng.uniform(0.15, 0.85)
    while True:
        image, top = ground(size, rng, shade, rng.uniform(0, 0.08)), np.full((size, size), -1)
        for i in range(rng.integers(2, 6)):
            d, own = shape(size, rng), rng.uniform(0, 1)
            own += math.copysign(max(0.15 - abs(own - shade), 0), own - shade)  # it can be told from the ground
            image, top = paint(image, cover(d), own), np.where(d > 0, i, top)
        seen = [i for i in range(top.max() + 1) if (top == i).sum() >= size * size / 50]
        if seen:
            return finished(image, rng), top == rng.choice(seen)


def cracks(size: int, rng: np.random.Generator) -> Painted:
    """A crack in brickwork, in which other things are dark, too: joints, pores, and where a shadow falls.

    Those are what crack detectors take for cracks: Ge et al. 2023 name dim light, shadows and construction joints. In
    masonry a crack goes through bricks, or like stairs along the joints.
    """
    origin, tilt = rng.uniform(0, size, 2), rng.uniform(-0.1, 0.1)
    u, v = turned(size, origin, tilt)
    high, long, joint = rng.uniform(7, 10), rng.uniform(14, 20), rng.uniform(0.8, 1.6)
    row = np.floor(v / high).astype(int)
    u = u + np.where(row % 2, long / 2, 0)
    column = np.floor(u / long).astype(int)
    image = rng.uniform(0.4, 0.75) + rng.uniform(-0.1, 0.1, (97, 89))[row % 97, column % 89]
    image = image + ground(size, rng, 0, rng.uniform(0, 0.08)) + grain(size, rng, rng.uniform(0, 0.06))
    for _ in range(rng.integers(0, 7)):  # pores
        at, wide = rng.uniform(0, size, 2), rng.uniform(0.4, 1.2)
        image = paint(image, cover(wide - np.hypot(*turned(size, at, 0))), rng.uniform(0.1, 0.3))
    d = joint / 2 - np.minimum(np.minimum(v % high, high - v % high), np.minimum(u % long, long - u % long))
    mortar = rng.uniform(0.8, 0.95) if rng.random() < 0.5 else rng.uniform(0.2, 0.35)  # bright or dark
    image = paint(image, cover(d), mortar + grain(size, rng, 0.04))
    inside, stepped = np.zeros((size, size)), rng.random() < 0.5
    while (inside > 0).sum() < size:  # until enough of it is in the picture
        inside = line(size, along_joints(size, rng, origin, tilt, high, long) if stepped else walk(size, rng), rng)
    image = paint(image, cover(inside), rng.uniform(0.0, 0.15))  # a void, from which no light comes back
    return finished(image * light(size, rng), rng), inside > 0


def walk(size: int, rng: np.random.Generator) -> np.ndarray:
    """The corners of a line that wanders across the picture, through whatever there is: (n, 2)"""
    side, angle = rng.uniform(0, 2 * math.pi), 0.0
    places = [size / 2 - size / 2 * np.array([math.cos(side), math.sin(side)]) * rng.uniform(0.8, 1.1)]
    while len(places) < 2 * size and np.abs(places[-1] - size / 2).max() <= size / 2 + 4:
        angle += rng.normal(-0.1 * angle, 0.35)  # it turns back to where it was going
        places.append(places[-1] + 2 * np.array([math.cos(side + angle), math.sin(side + angle)]))
    return np.array(places)


def along_joints(size: int, rng: np.random.Generator, origin: Any, tilt: float, high: float, long: float) -> np.ndarray:
    """The corners of a line like stairs, a walk on the joints: down beside a brick, along half of the next, on."""
    c, s = math.cos(tilt), math.sin(tilt)
    x, y = rng.uniform(0.2, 0.8) * size - origin[0], -origin[1]
    row = math.floor(y / high) - 1
    u = math.floor(x / long) * long - (row % 2) * long / 2
    side, places = rng.choice((-1, 1)), [(u, row * high)]
    while row * high < size - origin[1] + high:
        places.append((u, (row + 1) * high))
        row, u = row + 1, u + side * long / 2  # of the next row, whose upright joints stand half a brick aside
        places.append((u, row * high))
        side = -side if rng.random() < 0.25 else side
    jitter = rng.normal(0, 0.5, (len(places), 2))
    u, v = (np.array(places) + jitter).T
    return np.stack([c * u - s * v, s * u + c * v], axis=-1) + origin


def line(size: int, places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The signed distance to a line through these places, whose width is a random walk: one to four pixels."""
    x, y = grid(size)
    half, d = rng.uniform(0.6, 1.8), np.full((size, size), -np.inf)
    for at, to in itertools.pairwise(places):
        step = to - at
        half = np.clip(half + rng.normal(0, 0.12), 0.55, 2.0)
        t = np.clip(((x - at[0]) * step[0] + (y - at[1]) * step[1]) / (step @ step), 0, 1)  # of the nearest place on it
        d = np.maximum(d, half - np.hypot(x - at[0] - t * step[0], y - at[1] - t * step[1]))
    return d


def grain(size: int, rng: np.random.Generator, depth: float) -> np.ndarray:
    """What is rough: spots of two pixels' size."""
    return rng.normal(0, depth, (size // 2 + 1, size // 2 + 1)).repeat(2, axis=0).repeat(2, axis=1)[:size, :size]


def light(size: int, rng: np.random.Generator) -> np.ndarray:
    """How much light falls on each pixel: more on one side, and less where something throws its shadow."""
    u, _ = turned(size, (size / 2, size / 2), rng.uniform(0, 2 * math.pi))
    d, _ = turned(size, rng.uniform(0.2, 0.8, 2) * size, rng.uniform(0, 2 * math.pi))
    shadow = rng.uniform(0.5, 0.9) if rng.random() < 0.4 else 1
    return paint(1 + rng.uniform(0, 0.4) * u / size, cover(d / rng.uniform(1, 5)), shadow)


# --- plates ----------------------------------------------------------------------------------------------------------


@functools.cache
def letters(font: str) -> np.ndarray:
    """The ink of each of `WRITTEN`, with what is empty on all of their sides left out: (33, height, width)"""
    ink = draw_glyphs([font], WRITTEN, size=32, jitter=0.0, rng=0).images
    rows, columns = (np.flatnonzero(ink.max(axis=axes)) for axes in ((0, 2), (0, 1)))
    return ink[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def written(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A plate's picture, its mask, and that of its characters."""
    long = rng.uniform(0.38, 0.44) * size  # half of its length
    high = rng.uniform(0.15, 0.18) * size
    centre, angle = (
        (size / 2 + rng.uniform(-0.05, 0.05) * size, rng.uniform(0.25, 0.75) * size),
        rng.uniform(-0.15, 0.15),
    )
    u, v = turned(size, centre, angle)
    light, dark = rng.uniform(0.75, 1.0), rng.uniform(0.0, 0.2)
    image = ground(size, rng, rng.uniform(0.2, 0.6), rng.uniform(0.05, 0.2))
    for _ in range(2):  # lamps and the like
        image = paint(image, cover(shape(size, rng)), rng.uniform(0, 1))
    d = np.minimum(long - np.abs(u), high - np.abs(v))
    image = paint(image, cover(d), dark)
    image = paint(image, cover(d - 1.2), light)  # a dark rim
    ink = script(u, v, 1.8 * (long - 2.5), 1.45 * high, rng)
    return finished(paint(image, ink, dark), rng), d > 0, ink > 0.5


def script(u: np.ndarray, v: np.ndarray, long: float, high: float, rng: np.random.Generator) -> np.ndarray:
    """The ink of four characters in a strip (long, high) about the middle: the mean over 4 x 4 places in each pixel."""
    sheet = letters(LETTER_FONTS[rng.integers(len(LETTER_FONTS))])
    strip = np.concatenate([sheet[i] for i in rng.choice(len(sheet), 4)], axis=1)  # (height, 4 width)
    rows, columns = strip.shape
    total = np.zeros_like(u)
    for du in (-0.375, -0.125, 0.125, 0.375):
        for dv in (-0.375, -0.125, 0.125, 0.375):
            i = np.floor(((v + dv) / high + 0.5) * rows).astype(int)
            j = np.floor(((u + du) / long + 0.5) * columns).astype(int)
            inside = (i >= 0) & (i < rows) & (j >= 0) & (j < columns)
            total += np.where(inside, strip[i.clip(0, rows - 1), j.clip(0, columns - 1)], 0)
    return total / 16


def plates(size: int, rng: np.random.Generator) -> Painted:
    """A plate, and all of it."""
    image, plate, _ = written(size, rng)
    return image, plate


def characters(size: int, rng: np.random.Generator) -> Painted:
    """A plate, and what is written on it."""
    image, _, ink = written(size, rng)
    return image, ink


KINDS: dict[str, Callable[[int, np.random.Generator], Painted]] = {
    "shapes": shapes, "plates": plates, "characters": characters, "cracks": cracks,
}  # fmt: skip
