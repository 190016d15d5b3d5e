"""Lecture 7's pictures and tables: the numbers they state."""

import pytest

from minilora.pictures import lecture_07 as draw


def test_one_matrix_says_what_is_saved() -> None:
    figure = draw.one_matrix(1000, 2)
    assert figure.get_suptitle() == "A 1000 × 1000 matrix: 250 times fewer at rank 2"
    assert {"W itself: 1,000,000", "rank 2: 4,000", "rank 500: nothing saved"} <= {
        text.get_text() for text in figure.axes[0].texts
    }


def test_the_passes_of_a_step_and_what_is_saved_where_it_is_little() -> None:
    figure = draw.passes({("a", "full"): 3.0, ("a", "lora"): 2.1, ("b", "full"): 3.0, ("b", "lora"): 2.2}, ["a", "b"])
    assert "not quite a third" in figure.get_suptitle()
    figure = draw.passes({("a", "full"): 3.0, ("a", "lora"): 2.7}, ["a"])
    assert "saves 10% of" in figure.get_suptitle()


def test_a_row_of_the_paper_that_does_not_come_out_is_marked() -> None:
    pytest.importorskip("IPython")
    table = draw.paper_table(3).split("\n")
    assert table[0].startswith("| table 3 |") and any("**no**" in row for row in table) and "---:" in table[1]
