"""The pictures of lectures 1a and 1b: what they say, from small matrices whose answers are known."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from minilora.pictures import lecture_01 as draw


def words(figure: Figure) -> str:
    """All texts of a picture."""
    axes = figure.axes
    return " | ".join([a.get_title(where) for a in axes for where in ("left", "center")]
                      + [text.get_text() for a in axes for text in a.texts])  # fmt: skip


def test_tables_write_each_number_with_its_sign_and_no_minus_zero() -> None:
    figure = draw.tables([np.array([[1, -2], [0, -1e-17]])], ["M"], digits=0)
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "−2", "0", "0"]


def test_a_thin_product_counts_its_numbers() -> None:
    said = words(draw.thin_product(np.zeros((1000, 2)), np.zeros((2, 1000))))
    assert "250 times fewer" in said and "1,000,000" in said and "2,000 numbers" in said


def test_the_noise_of_a_clean_matrix_and_the_rank_that_is_nearest() -> None:
    assert "By rank, 4 directions; by eye, 1" in words(draw.above_the_edge(np.array([9.0, 1, 1, 1]), 2.0, 1))
    assert "Rank 2 throws away 75% of the error" in words(draw.nearest_rank([4.0, 2.0, 1.0, 3.0], 4.0))
    assert "Rank 0 throws away 0%" in words(draw.nearest_rank([0.0, 0.0], 0.0))  # no noise at all


@pytest.mark.slow
def test_the_others_are_drawn_for_any_size() -> None:
    u, s, vt = np.linalg.svd(np.array([[1.6, 0.9], [0.3, 1.2]]))
    assert f"{s[0] / s[1]:.1f} times as long" in words(draw.ellipse((u * s) @ vt, u, s, vt))
    assert "rank 3" in words(draw.descent([5.0, 2.0], 1.5, 3)) and draw.stretch_by_angle(np.eye(2), 0.0).axes
    photo = np.random.default_rng(0).random((6, 5))
    u, s, vt = np.linalg.svd(photo, full_matrices=False)
    assert "36.7 % stored" in words(draw.approximations(photo, u, s, vt, (1,)))
    assert "4 of 5 layers" in words(draw.spectrum(s, 1 - np.cumsum(s**2) / (s**2).sum(), 4))
    assert "2 layers" in words(draw.words_and_chance(s[:3], s[:3] / 2, 2))
    drawn = draw.drowning(np.array([0.5, 1.0]), np.array([[1, 0.9], [0.8, 0.2]]), np.array([20.0, 10.0]), 100)
    assert "σ = 1.0" in words(drawn) and "2.0" in words(drawn)
    assert "22 of 30 numbers" in words(draw.one_rank(u, s, vt, 2))
