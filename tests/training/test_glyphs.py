"""Pictures of characters: the right character, on its line, in its scale, and what is refused."""

import shutil
import string
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest

import minilora as ml
from minilora.training.glyphs import CHARACTERS, FILES, FONTS, HELD_OUT, SANS, draw_glyphs, fill
from minilora.training.scenes import draw_scenes

FOLDER = Path(matplotlib.get_data_path(), "fonts", "ttf")


def drawn_by_matplotlib(font: str, character: str) -> np.ndarray:
    """A character's ink, cut to its edges, by another's rasteriser (FreeType's own),."""
    from matplotlib.ft2font import FT2Font

    reader = FT2Font(str(FOLDER / f"{FILES[font]}.ttf"))
    reader.set_size(512, 72)
    reader.set_text(character, 0.0)
    reader.draw_glyphs_to_bitmap(antialiased=True)
    return np.asarray(reader.get_image()) / 255


def cut(image: np.ndarray) -> np.ndarray:
    rows, columns = (np.nonzero(image.max(axis=axis) > 0.5)[0] for axis in (1, 0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def resized(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    for axis, n in enumerate(shape):
        starts = np.arange(n) * image.shape[axis] // n
        ones = np.add.reduceat(np.ones(image.shape), starts, axis)
        image = np.add.reduceat(image, starts, axis) / ones
    return image


@pytest.mark.parametrize("font", FONTS)
def test_a_glyph_is_what_freetype_draws(font):
    for character in "0AQgij":
        ours = cut(draw_glyphs(font, character, size=96, jitter=0).images[0])
        theirs = resized(cut(drawn_by_matplotlib(font, character)), ours.shape)
        assert np.abs(ours - theirs).mean() < 0.08, (font, character)


def test_all_characters_are_there_in_every_font_and_differ():
    glyphs = draw_glyphs(jitter=0)
    assert len(CHARACTERS) == 62 and len(FONTS) == 20 and set(SANS) | set(HELD_OUT) < set(FONTS)
    assert glyphs.images.shape == (20 * 62, 16, 16) and glyphs.images.dtype == np.float32
    assert glyphs.images.min() == 0 and 0.99 < glyphs.images.max() <= 1
    flat = glyphs.images.reshape(len(glyphs), -1)
    for font in range(20):
        rows = flat[glyphs.font == font]
        apart = np.abs(rows[:, None] - rows).sum(axis=-1) + 99 * np.eye(62)
        i, j = divmod(apart.argmin(), 62)
        assert apart.min() > 0.5, (FONTS[font], CHARACTERS[i], CHARACTERS[j])


def test_characters_stand_on_one_line_in_one_scale():
    glyphs = draw_glyphs("DejaVu Sans", "xXgd", size=64, jitter=0)
    ink = glyphs.images.max(axis=2) > 0.5  # (4, size): the rows that have ink
    top, bottom = ink.argmax(axis=1), 63 - ink[:, ::-1].argmax(axis=1)
    assert bottom[0] == bottom[1] and abs(bottom[3] - bottom[0]) <= 1 and bottom[2] > bottom[0] + 5
    assert top[0] > top[1] + 5 and abs(top[2] - top[0]) <= 1 and top[3] < top[1]


def test_no_character_is_cut_off():
    for font in FONTS:
        images = draw_glyphs(font, jitter=0, size=32).images
        edge = np.stack([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]])
        assert edge.max() == 0, font


def test_order_and_labels():
    glyphs = draw_glyphs(["STIX", "DejaVu Sans"], ["b", "A"], copies=3)
    assert glyphs.characters == "bA" and glyphs.fonts == ("STIX", "DejaVu Sans")
    assert glyphs.character.tolist() == [0, 0, 0, 1, 1, 1] * 2 and glyphs.font.tolist() == [0] * 6 + [1] * 6
    some = glyphs[glyphs.font == 1]
    assert len(some) == 6 and (some.images == glyphs.images[6:]).all() and some.fonts == glyphs.fonts


def test_a_seed_draws_the_same_again_and_a_generator_goes_on():
    first, again, other = (draw_glyphs("STIX", "ab", rng=seed).images for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()
    rng = np.random.default_rng(1)
    one, two = (draw_glyphs("STIX", "ab", rng=rng).images for _ in range(2))
    assert (one == first).all() and (two != one).any()


def test_the_scale_of_a_glyph_does_not_hang_on_what_else_is_drawn():
    alone, among = draw_glyphs("STIX", "a", jitter=0), draw_glyphs(FONTS, CHARACTERS, jitter=0)
    at = (among.font == FONTS.index("STIX")) & (among.character == CHARACTERS.index("a"))
    assert (alone.images == among.images[at]).all()


def test_jitter_moves_by_about_a_pixel_and_nothing_else():
    true = draw_glyphs("DejaVu Sans", "o", jitter=0).images[0]
    many = draw_glyphs("DejaVu Sans", "o", copies=200).images
    places = np.arange(16)
    middle = lambda images: (images.sum(axis=-2) * places).sum(axis=-1) / images.sum(axis=(-2, -1))
    away = middle(many) - middle(true)
    assert np.abs(away).max() <= 1.01 and away.std() > 0.4
    assert np.abs(many.sum(axis=(1, 2)) / true.sum() - 1).max() < 0.09  # an area of at most 1.04^2
    assert (draw_glyphs("DejaVu Sans", "o", copies=2, jitter=0, rng=5).images == true).all()


def test_variety_changes_the_weight_and_the_slant():
    ink = draw_glyphs("DejaVu Sans", "l", copies=200, size=32, variety=1, jitter=0).images.sum(axis=(1, 2))
    assert ink.max() > 1.3 * ink.min()


def test_a_triangle_has_its_exact_area():
    corners = np.array([[-0.25, -0.25], [0.25, -0.25], [0.0, 0.25]])
    edges = np.stack([corners, np.roll(corners, -1, axis=0)], axis=1)
    for turned in (edges, edges[:, ::-1]):  # whichever way round it goes
        image = fill(turned, np.zeros(3, int), 1, 8)
        assert image.sum() == pytest.approx(4 * 4 / 2) and image[0, 5].tolist() == image[0, 5, ::-1].tolist()
        assert image[0, 2].sum() < image[0, 5].sum() and image[0, :2].sum() == 0  # its tip is up


def test_what_reaches_over_the_frame_is_cut_there():
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=float)
    image = fill(np.stack([square, np.roll(square, -1, axis=0)], axis=1), np.zeros(4, int), 1, 8)
    assert (image == 1).all()


def test_a_font_of_ones_own(tmp_path):
    path = shutil.copy(FOLDER / "cmr10.ttf", tmp_path / "mine.ttf")
    theirs = draw_glyphs("Computer Modern Roman", "aQ")
    for own in (path, Path(path), [str(path)]):
        assert (draw_glyphs(own, "aQ").images == theirs.images).all()
    assert draw_glyphs(path, "a").fonts == (str(path),)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fonts": "Comic Sans"}, "there is no font 'Comic Sans'; expected one of DejaVu Sans, "),
        ({"fonts": "STIX", "characters": "a\u4e2d"}, "the font 'STIX' lacks the character '\u4e2d'"),
        ({"fonts": "STIXNonUni", "characters": "a"}, "the font 'STIXNonUni' lacks the character 'a'"),
        ({"fonts": []}, "fonts = (), expected at least one"),
        ({"fonts": ["STIX", "STIX"]}, "fonts = ('STIX', 'STIX'), expected at least one, none of them twice"),
        ({"characters": ""}, "characters = (), expected at least one"),
        ({"characters": "aba"}, "none of them twice"),
        ({"characters": ["ab"]}, "characters: 'ab' is not one character"),
        ({"size": 3}, "size = 3, expected 4 or more"),
        ({"size": 16.0}, "size = 16.0, expected 4 or more, an integer"),
        ({"copies": 0}, "copies = 0, expected 1 or more"),
        ({"jitter": -1}, "jitter = -1, expected a number from 0 to 4"),
        ({"jitter": float("nan")}, "jitter = nan, expected a number from 0 to 4"),
        ({"variety": -0.5}, "variety = -0.5, expected a number from 0 to 4"),
        ({"fonts": 3}, "fonts = 3, expected"),
        ({"rng": -1}, "rng = -1, expected a seed"),
    ],
)
def test_what_is_refused(options, words):
    with pytest.raises((ValueError, TypeError)) as error:
        draw_glyphs(**options)
    assert words in str(error.value) and str(error.value).startswith("draw_glyphs: ")
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_font(tmp_path):
    path = tmp_path / "not.ttf"
    path.write_text("a text")
    with pytest.raises(ValueError, match=r"^draw_glyphs: .*not\.ttf: not a font that can be read") as error:
        draw_glyphs(path)
    assert "\n" not in str(error.value)


def test_more_than_letters_where_a_font_has_them():
    greek = ml.draw_glyphs("DejaVu Serif", "αβγ", jitter=0)
    assert (greek.images.sum(axis=(1, 2)) > 5).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw_glyphs("STIX", string.punctuation + " ").images[-1].sum() == 0  # a space is empty


def test_more_pictures_than_fit_are_refused_before_they_are_drawn():
    with pytest.raises(ValueError, match=r"^draw_glyphs: 62,000,000 pictures of 16 x 16 pixels are 59 GiB; draw at"):
        ml.draw_glyphs("STIX", copies=10**6)
    with pytest.raises(ValueError, match=r"^draw_glyphs: 1 pictures of 1,000,000 x 1,000,000 pixels are 3,725 GiB;"):
        ml.draw_glyphs("STIX", "A", size=10**6)
    with pytest.raises(ValueError, match=r"^draw_scenes: 1,000,000 pictures of 48 x 48 pixels"):
        draw_scenes("cracks", 10**6)
