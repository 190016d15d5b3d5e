"""The pictures of lecture 11: where each pixel lands, and what is coloured."""

import numpy as np
import pytest

from minilora.pictures import lecture_11
from minilora.pictures.style import BLUE, ORANGE, VERMILLION

INK = np.linspace(0, 1, 16).reshape(4, 4)


def test_a_canvas_puts_each_picture_in_its_place_as_ink_on_paper() -> None:
    page = lecture_11.canvas([[INK, np.zeros((4, 4))], [np.full((4, 4, 3), 0.5)]])
    assert page.shape == (11, 11, 3)
    assert np.allclose(page[1:5, 1:5], 1 - INK[..., None]) and np.allclose(page[6:10, 1:5], 0.5)
    assert (page[:, 5:] == 1).all() and (page[5] == 1).all()  # paper, and the gaps


def test_the_patch_most_looked_at_is_orange_and_the_least_white() -> None:
    page = lecture_11.lit(np.zeros((4, 4)), np.array([[0.0, 0.1], [0.2, 0.4]]))
    assert np.allclose(page[:2, :2], 1) and np.allclose(page[2:, 2:], lecture_11.colour(ORANGE))
    assert np.allclose(lecture_11.lit(np.ones((4, 4)), np.ones((2, 2))), 0)  # ink stays black


def test_a_mask_is_blue_and_its_point_red_and_the_rest_is_as_it_was() -> None:
    mask = np.zeros((4, 4), bool)
    mask[2, 3] = True
    page = lecture_11.tinted(INK, mask, (0, 1))
    assert np.allclose(page[2, 3], 0.45 * INK[2, 3] + 0.55 * lecture_11.colour(BLUE))
    red = np.isclose(page, lecture_11.colour(VERMILLION)).all(axis=-1)
    assert red.nonzero()[0].tolist() == [0, 1, 1, 2] and red.nonzero()[1].tolist() == [0, 0, 1, 0]
    rest = ~red & ~mask
    assert np.allclose(page[rest], INK[rest][:, None])


def test_a_sheet_names_its_rows_and_columns_and_is_as_high_as_it_needs() -> None:
    one = lecture_11.sheet({"true": [INK] * 3}, "Three of them", "abc", "a font")
    axes = one.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["true"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c"]
    assert axes.get_xlabel() == "a font" and one.get_label().startswith("Three of them")
    assert axes.get_xticks().tolist() == [2.5, 7.5, 12.5]  # the middles of pixels 1 to 4, 6 to 9, 11 to 14
    few = lecture_11.sheet({"one": [INK] * 9}, "One row")
    assert few.get_figheight() < one.get_figheight()


def test_pictures_of_two_sizes_are_no_sheet() -> None:
    with pytest.raises(ValueError, match=r"^sheet: the pictures have the sizes .*\(4, 4\), \(8, 8\)"):
        lecture_11.sheet({"a": [INK], "b": [np.zeros((8, 8))]}, "No")


def test_patches_are_numbered_row_by_row() -> None:
    figure = lecture_11.patches(np.arange(64.0).reshape(8, 8) / 64, 4)
    left, right = figure.axes
    assert [text.get_text() for text in right.texts] == ["0", "1", "2", "3"]
    assert len(left.patches) == len(right.patches) == 4
    shown = right.images[0].get_array()
    assert np.allclose(shown[2:6, 8:12, 0], 1 - (np.arange(64.0).reshape(8, 8) / 64)[:4, 4:])  # number 1: right of 0
