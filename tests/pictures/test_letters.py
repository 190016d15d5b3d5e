"""Fonts taught by LoRA: the titles say what the records say, and what the records do not show is not said."""

import itertools

import numpy as np

from minilora.pictures.figures import FIGURES
from minilora.studies.studies import load_records
from minilora.studies.style import packed, pictures_of


def test_how_much_is_learned_of_a_font_and_beside_full_fine_tuning(title, figure_of, wide):
    said = "LoRA on 26 glyphs: 90 % of new letters right, 60 % in the font; "
    assert title("style") == said + "more than full"
    assert title("style", wide) == said + "no clear difference to full"
    better = lambda row: row.update(both=0.9) if row.get("method") == "full" else None
    assert title("style", better) == said + "less than full"
    ranks = figure_of("style").get_label()
    assert "r = 1: 90 % and 30 %; r = 4: 90 % and 50 %; r = 16: 90 % and 50 %; rank 4 beats 1." in ranks
    longer = "Hollow, in 600 steps of 64: LoRA of rank 16: 90 % and 60 %; full: 80 % and 50 %."
    assert ranks.endswith(f"{longer} The same LoRA, drawn with guidance alone: 95 % and 30 %.")
    hollow = [line for axes in figure_of("style").axes for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert [line.get_ydata()[0] for line in hollow] == [0.9, 0.8, 0.6, 0.5]
    assert "no clear difference by rank" in figure_of("style", wide).get_label()


def test_the_letters_are_those_of_the_records(title, figure_of):
    assert title("style-letters") == "Letters that LoRA never saw in a font: 90 % are read right, 60 % are in the font"
    assert "LoRA of rank 16, 600 steps of 64. The fonts: One and Two." in figure_of("style-letters").get_label()
    (axes,) = figure_of("style-letters").axes
    shown = axes.images[0].get_array()
    assert shown.shape == (2 * (3 * 8 + 4), 16) and (shown[:24, ::2] == 1).all() and (shown[:24, 1::2] == 0).all()
    pictures = np.random.default_rng(0).random((3, 4, 4))
    np.testing.assert_allclose(pictures_of({"a": packed(pictures)}, "a"), pictures, atol=1 / 510 + 1e-6)


def test_a_block_and_a_pair_are_named_only_where_they_are_clearly_above_all_others(title, figure_of, wide):
    shares = "in the font 19 % by one, 37 % by two and 60 % by all"
    assert title("style-blocks") == f"Clearly ahead in style: block 1 and pair 1 + 2: {shares}"
    assert title("style-blocks", wide) == f"No block and no pair is clearly where style lives: {shares}"
    two = lambda row: row.update(font=0.38) if row["blocks"] == [2] else None
    assert title("style-blocks", two).startswith("Clearly ahead in style: pair 1 + 2: in the font 29 % by one")
    label = figure_of("style-blocks").get_label()
    assert "All blocks: 60 % and 60 %; the base: 90 % and 2 %. The spread of the font is 2 to 2 points." in label
    assert "these clearly move the font: 0, 1, 2; these clearly harm the letters: 2." in label
    assert "move the font: none; these clearly harm the letters: none." in figure_of("style-blocks", wide).get_label()


def test_two_blocks_are_compared_seed_by_seed(figure_of, records):
    label = figure_of("style-blocks").get_label()
    assert "a pair gains 35, the better of its blocks alone 28, and the gains of both add up to 34." in label
    assert (
        "Whatever the seed, 1 of 3 pairs gain more than their better block, 1 less than that sum, 3 less than" in label
    )
    assert label.endswith("Neighbours gain 43, the other pairs 18: so whatever the seed.")
    far = lambda row: row["each"].update(font=[0.8, 0.1, 0.1]) if row["blocks"] == [0, 2] else None
    assert figure_of("style-blocks", far).get_label().endswith("the other pairs 31: no clear difference.")
    _, function = FIGURES["style-blocks"]
    quick = records("style-blocks")
    quick["rows"] = [row for row in quick["rows"] if len(row["blocks"]) != 2]
    figure = function(quick)
    assert "points of the font" not in figure.get_label()
    assert figure.get_label().startswith("Clearly ahead in style: block 1: in the font 19 % by one and 60 % by all.")


def test_the_committed_records_hold_every_two_of_the_six_blocks():
    taught = [tuple(row["blocks"]) for row in load_records("style-blocks")["rows"]]
    pairs = [at for at in taught if len(at) == 2]
    assert pairs == list(itertools.combinations(range(6), 2)) and len(taught) == 1 + 6 + 15 + 1


def test_each_pair_stands_once_where_its_row_and_column_cross(figure_of):
    letters, font = figure_of("style-blocks").axes
    table = font.images[0].get_array()
    nan = np.nan
    np.testing.assert_array_equal(table.filled(nan), [[0.1, nan, 0.6], [0.4, 0.4, 0.02], [0.2, 0.5, 0.07]])
    assert letters.images[0].get_clim() == font.images[0].get_clim() == (0, 1)
    told = {text.get_position(): text.get_text() for text in font.texts}
    assert (told[0, 2], told[1, 2], told[2, 0], told[2, 1]) == ("20", "50", "60", "2")


def test_strength_and_blocks_of_two(title, figure_of, wide):
    said = "In the font by the adapter's strength: 0 % at 0, 50 % at 1, "
    assert title("style-strength") == said + "not clearly more elsewhere"
    beyond = lambda row: row.update(font=0.8) if row.get("strength") == 1.5 else None
    assert title("style-strength", beyond) == said + "80 % at 1.5"
    label = figure_of("style-strength").get_label()
    assert "The first font is clearly ahead from 2 blocks on; with 2 blocks of the first, 80 % of the letters" in label
    never = lambda row: row.update(other=1.0) if row["kind"] == "blocks" else None
    assert "The first is never ahead" in figure_of("style-strength", never).get_label()


def test_two_fonts_mixed(title, figure_of, wide):
    said = "The sum of a bold and an italic adapter is bold italic for 40 %; one taught both, 60 %"
    assert title("style-two-fonts") == said
    mean = lambda row: row.update(font=0.5) if row.get("name") == "mean" else None
    assert title("style-two-fonts", mean) == said.replace("sum", "mean").replace("40 %", "50 %")
    alone = "Bold and italic adapters mixed: no clear difference to one of them alone"
    assert title("style-two-fonts", wide) == alone
    assert "bold 0.275, italic 0.300, mean 0.250" in figure_of("style-two-fonts").get_label()
