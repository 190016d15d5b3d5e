"""Pictures of characters, drawn from the fonts that Matplotlib brings: the character is content, the font is style.

An outline is a polygon whose inside lies on one side of its edges. Along a line of the picture each crossing of an edge
adds 1 or takes 1 away, so the sum from the left is 1 inside and 0 outside; a pixel's ink is that sum's mean over it.
The outlines themselves are moved, sheared and made bolder, and then drawn once: nothing is blurred by doing it.
"""

import functools
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd.signatures import checked, shown
from .checks import Bounds, integer, number, pictures_fit

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
# Of the fonts that every Matplotlib from 3.8 on has (cmti10 came with 3.11) those with all 62, without cmmi10, whose
# old-style 0 and 1 nobody can tell from o and I.
FILES = {
    "DejaVu Sans": "DejaVuSans", "DejaVu Sans Bold": "DejaVuSans-Bold",
    "DejaVu Sans Oblique": "DejaVuSans-Oblique", "DejaVu Sans Bold Oblique": "DejaVuSans-BoldOblique",
    "DejaVu Sans Mono": "DejaVuSansMono", "DejaVu Sans Mono Bold": "DejaVuSansMono-Bold",
    "DejaVu Sans Mono Oblique": "DejaVuSansMono-Oblique", "DejaVu Sans Mono Bold Oblique": "DejaVuSansMono-BoldOblique",
    "DejaVu Serif": "DejaVuSerif", "DejaVu Serif Bold": "DejaVuSerif-Bold",
    "DejaVu Serif Italic": "DejaVuSerif-Italic", "DejaVu Serif Bold Italic": "DejaVuSerif-BoldItalic",
    "STIX": "STIXGeneral", "STIX Bold": "STIXGeneralBol",
    "STIX Italic": "STIXGeneralItalic", "STIX Bold Italic": "STIXGeneralBolIta",
    "Computer Modern Roman": "cmr10", "Computer Modern Bold": "cmb10",
    "Computer Modern Sans": "cmss10", "Computer Modern Typewriter": "cmtt10",
}  # fmt: skip
FONTS = tuple(FILES)
SANS = tuple(name for name in FONTS if "Sans" in name)  # those that the diffusion model begins with
# What the judge of characters never saw: a variant of each family, and the one font of its kind.
HELD_OUT = ("DejaVu Sans Mono Oblique", "DejaVu Serif Bold", "STIX Bold Italic", "Computer Modern Roman",
            "Computer Modern Typewriter")  # fmt: skip
EM = 64  # the units of an outline: curves are cut into lines that are as good as they are at this size
LINES = 8  # of a pixel, in each of which the ink is exact
MODEST: Bounds = ("a number from 0 to 4", lambda v: 0 <= v <= 4)
MARGIN = 1 / 16  # of a picture, on each side: what jitter may use


@dataclass(frozen=True, eq=False)
class Glyphs:
    """Pictures of characters.   images: (N, size, size) float32 in [0, 1], 1 is ink; character, font: (N,) integers

    characters, fonts: what these are the numbers of. glyphs[rows] are some of them.
    """

    images: np.ndarray
    character: np.ndarray
    font: np.ndarray
    characters: str
    fonts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Any) -> "Glyphs":
        return Glyphs(self.images[rows], self.character[rows], self.font[rows], self.characters, self.fonts)


@checked
def draw_glyphs(
    fonts: str | Path | Sequence[str | Path] = FONTS,
    characters: str | Sequence[str] = CHARACTERS,
    size: int = 16,
    copies: int = 1,
    jitter: float = 1.0,
    variety: float = 0.0,
    rng: Any = 0,
) -> Glyphs:
    """Each character in each font, `copies` times: all of a font, character by character, then the next font's.

    fonts: of FONTS, other names of Matplotlib's fonts, such as "cmmi10", or paths of .ttf and .otf files. All of a font
    stand on one line, in one scale, so that c is smaller than C. jitter: 1 moves each by up to a sixteenth of the
    picture and sizes it by up to 4 %; 0 draws the true glyph. variety: 1 shears, widens, and makes bolder or thinner as
    other fonts would be. rng: a seed or a numpy Generator. Raises ValueError for a font that there is not, and for a
    character that it lacks.

    >>> glyphs = draw_glyphs(["DejaVu Sans", "STIX"], "ABC", copies=2)
    >>> glyphs.images.shape, glyphs.character.tolist(), glyphs.font.tolist()
    ((12, 16, 16), [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
    """
    fonts = (str(fonts),) if isinstance(fonts, str | Path) else tuple(map(str, fonts))
    for what, several in (("fonts", fonts), ("characters", tuple(characters))):
        if not several or len(set(several)) < len(several):
            raise ValueError(f"draw_glyphs: {what} = {shown(several)}, expected at least one, none of them twice")
    if wrong := [c for c in characters if len(c) != 1]:
        raise ValueError(f"draw_glyphs: characters: {shown(wrong[0])} is not one character")
    size, copies = integer("draw_glyphs: size", size, 4), integer("draw_glyphs: copies", copies, 1)
    jitter = number("draw_glyphs: jitter", jitter, MODEST)
    variety = number("draw_glyphs: variety", variety, MODEST)
    pictures_fit("draw_glyphs", len(fonts) * len(characters) * copies, size)
    rng, characters = np.random.default_rng(rng), "".join(characters)
    outlines = [outline(font, c) for font in fonts for c in characters for _ in range(copies)]
    few = max(2**18 // size**2, 1)  # at a time: the lines of a thousand glyphs of 16 x 16 are 18 MiB
    parts = (outlines[i : i + few] for i in range(0, len(outlines), few))
    images = np.concatenate([fill(*moved(part, jitter, variety, rng), len(part), size) for part in parts])
    font, character = np.indices((len(fonts), len(characters))).reshape(2, -1).repeat(copies, axis=1)
    return Glyphs(images, character, font, characters, fonts)


@functools.cache
def opened(font: str) -> Any:
    """Matplotlib's reader of a font's file, of EM units."""
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    inside = Path(get_data_path(), "fonts", "ttf", f"{FILES.get(font, font)}.ttf")
    path = inside if inside.is_file() else Path(font)
    if not path.is_file():
        raise ValueError(f"draw_glyphs: there is no font {font!r}; expected one of {', '.join(FONTS)}, or a .ttf file")
    try:
        reader = FT2Font(str(path))
    except RuntimeError as error:
        raise ValueError(f"draw_glyphs: {font}: not a font that can be read: {error}") from error
    reader.set_size(16 * EM, 72)  # large: what the grid of pixels does to an outline is then small
    return reader


@functools.cache
def raw(font: str, character: str) -> tuple[np.ndarray, np.ndarray]:
    """The edges of a character and the outward normals at their ends, each (E, 2, 2): start and end, x and y."""
    from matplotlib.path import Path as Outline

    reader = opened(font)
    if not reader.get_char_index(ord(character)):  # 0 is the sign for what is missing
        raise ValueError(f"draw_glyphs: the font {font!r} lacks the character {character!r}")
    reader.load_char(ord(character))
    vertices, codes = reader.get_path()
    edges, normals = [np.zeros((0, 2, 2))], [np.zeros((0, 2, 2))]  # of a space there are none
    for polygon in Outline(vertices / 16, codes).to_polygons(closed_only=False) if len(vertices) else ():
        polygon = np.asarray(polygon, float)
        corners = polygon[np.append(True, np.abs(np.diff(polygon, axis=0)).sum(axis=1) > 1e-6)]  # each once
        along = np.diff(corners, axis=0)
        across = np.stack([along[:, 1], -along[:, 0]], axis=1) / np.hypot(*along.T)[:, None]  # (E, 2), of length 1
        before = np.roll(across, 1, axis=0)
        # at a corner both edges move by 1 along their normals: n = (a + b) / (1 + a b), at sharp ones not so far
        at = (across + before) / np.maximum(1 + (across * before).sum(axis=1, keepdims=True), 0.5)
        edges.append(np.stack([corners[:-1], corners[1:]], axis=1))
        normals.append(np.stack([at, np.roll(at, -1, axis=0)], axis=1))
    points, outward = np.concatenate(edges), np.concatenate(normals)
    area = (points[:, 0, 0] * points[:, 1, 1] - points[:, 1, 0] * points[:, 0, 1]).sum() / 2
    return points, outward * np.sign(area)


@functools.cache
def frame(font: str) -> tuple[float, float]:
    """The middle of a font's lines, and the side of a square that its highest, lowest and widest character fit in."""
    known = [c for c in CHARACTERS if opened(font).get_char_index(ord(c))]
    points = [raw(font, c)[0].reshape(-1, 2) for c in known]
    if not points:
        raise ValueError(f"draw_glyphs: the font {font!r} lacks all of {CHARACTERS}, which give it its size")
    heights = np.concatenate(points)[:, 1]
    side = max(np.ptp(heights), *(np.ptp(p[:, 0]) for p in points))
    return (heights.min() + heights.max()) / 2, side / (1 - 2 * MARGIN)


@functools.cache
def outline(font: str, character: str) -> tuple[np.ndarray, np.ndarray]:
    """Edges and normals in the frame from -1/2 to 1/2, y upwards, on the font's line, and in the middle of it."""
    points, normals = raw(font, character)
    middle, side = frame(font)
    xs = points[..., 0]
    centre = (xs.min() + xs.max()) / 2 if len(xs) else 0.0
    return (points - [centre, middle]) / side, normals


def moved(
    outlines: Sequence[tuple[np.ndarray, np.ndarray]], jitter: float, variety: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """All edges, (E, 2, 2), each outline's moved and changed as it is drawn, and which outline each is of, (E,)."""
    draw = lambda low, high, *shape: rng.uniform(low, high, (len(outlines), *shape))
    shift, zoom = jitter * MARGIN * draw(-1, 1, 2), 1 + jitter * draw(-0.04, 0.04)
    bold, shear, wide = variety * draw(-0.008, 0.02), variety * draw(-0.2, 0.2), np.exp(variety * draw(-0.15, 0.15))
    of = np.repeat(np.arange(len(outlines)), [len(points) for points, _ in outlines])
    points, normals = (np.concatenate(arrays) for arrays in zip(*outlines, strict=True))
    x, y = np.moveaxis(points + bold[of, None, None] * normals, -1, 0)  # (E, 2) each
    x, y = zoom[of, None] * wide[of, None] * (x + shear[of, None] * y), zoom[of, None] * y
    return np.stack([x, y], axis=-1) + shift[of, None], of


def fill(points: np.ndarray, of: np.ndarray, count: int, size: int) -> np.ndarray:
    """The ink of `count` pictures, (count, size, size), of edges (E, 2, 2) in a frame from -1/2 to 1/2, y upwards."""
    (x0, x1), (y0, y1) = (0.5 + points[..., 0]).T * size, (0.5 - points[..., 1]).T * size * LINES
    ends = np.ceil(np.clip([np.minimum(y0, y1), np.maximum(y0, y1)], 0, size * LINES) - 0.5).astype(int)
    first, crossed = ends[0], ends[1] - ends[0]  # an edge crosses the lines whose middles lie between its ends
    edge = np.repeat(np.arange(len(points)), crossed)
    line = first[edge] + np.arange(len(edge)) - (crossed.cumsum() - crossed)[edge]
    x = x0[edge] + (line + 0.5 - y0[edge]) / (y1 - y0)[edge] * (x1 - x0)[edge]
    x = np.clip(x, 0, size)
    cell, sign = x.astype(int), np.sign(y1 - y0)[edge]
    at, right = (of[edge] * size * LINES + line) * (size + 2) + cell, x - cell
    cells = count * size * LINES * (size + 2)
    steps = np.bincount(at, sign * (1 - right), cells) + np.bincount(at + 1, sign * right, cells)
    inside = steps.reshape(count, size, LINES, size + 2)[..., :size].cumsum(axis=-1)
    return np.minimum(np.abs(inside), 1).mean(axis=2).astype(np.float32)
