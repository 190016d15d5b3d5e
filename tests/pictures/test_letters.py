"""Fonts taught by LoRA: the titles say what the records say, and what the records do not show is not said."""

import numpy as np

from minilora.studies.style import packed, pictures_of


def test_how_much_is_learned_of_a_font_and_beside_full_fine_tuning(title, figure_of, wide):
    said = "LoRA on 26 glyphs: 90 % of new letters right, 50 % in the font; "
    assert title("style") == said + "more than full"
    assert title("style", wide) == said + "no clear difference to full"
    better = lambda row: row.update(both=0.9) if row.get("method") == "full" else None
    assert title("style", better) == said + "less than full"
    ranks = figure_of("style").get_label()
    assert "r = 1: 90 % and 30 %; r = 4: 90 % and 50 %; r = 16: 90 % and 50 %; rank 4 beats 1." in ranks
    assert ranks.endswith("In 600 steps, rank 4: 80 % and 60 %.")
    assert "no clear difference by rank" in figure_of("style", wide).get_label()


def test_the_letters_are_those_of_the_records(title, figure_of):
    assert title("style-letters") == "Letters that LoRA never saw in a font: 90 % are read right, 50 % are in the font"
    (axes,) = figure_of("style-letters").axes
    shown = axes.images[0].get_array()
    assert shown.shape == (2 * (3 * 8 + 4), 16) and (shown[:24, ::2] == 1).all() and (shown[:24, 1::2] == 0).all()
    pictures = np.random.default_rng(0).random((3, 4, 4))
    np.testing.assert_allclose(pictures_of({"a": packed(pictures)}, "a"), pictures, atol=1 / 510 + 1e-6)
