"""Lecture 2's pictures: no curve hides another, and no primitive's name stands on its head."""

import itertools

import numpy as np
import pytest
from matplotlib.text import Text

from minilora.pictures import lecture_02


def test_where_two_curves_are_one_both_are_seen():
    steps = 10.0 ** np.arange(0, -16.5, -0.5)
    same = np.maximum(steps**2, 1e-16)
    errors = {"forward difference": same, "central difference": same, "complex step": same}
    lines = lecture_02.error_curves(steps, errors).axes[0].lines
    widths = [line.get_linewidth() for line in lines]
    assert len({line.get_color() for line in lines}) == 3
    assert all(below >= above + 2 for below, above in itertools.pairwise(widths))  # drawn in this order


@pytest.mark.slow
def test_a_dot_for_each_primitive_and_the_worst_named():
    rng = np.random.default_rng(0)
    errors = {method: {f"p{i}": e for i, e in enumerate(rng.uniform(*ends, 35))} for method, ends in
              (("central", (1e-12, 1e-9)), ("complex-step", (1e-17, 1e-15)))}  # fmt: skip
    figure = lecture_02.primitives(errors)
    figure.canvas.draw()
    (axes,) = figure.axes
    dots = [set(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axes.lines]
    assert [len(found) for found in dots] == [35, 35]  # none on top of another
    worst = max(errors["central"], key=errors["central"].__getitem__)
    assert f"central\nlargest: 1e-09,\n{worst}" in [text.get_text() for text in axes.texts]
    assert all(text.get_rotation() == 0 for text in figure.findobj(Text) if text.get_text())


def test_what_was_learned_says_its_losses():
    x = np.linspace(-1, 1, 5)[:, None]
    figure = lecture_02.learned([0.5, 0.25], x, x, x)
    assert figure.axes[0].get_title("left") == "From 0.50 to 0.250"
