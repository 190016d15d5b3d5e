"""The parts of a study's figure: limits that compare, runs that went astray, labels beside their lines."""

import math

import numpy as np
import pytest

from minilora.pictures import drawing


def points(*losses, spread=0.1):
    return [{"x": float(x), "loss": loss, "loss_spread": spread} for x, loss in enumerate(losses)]


def test_limits_hold_what_can_be_compared():
    _, [axes] = drawing.panels()
    drawing.fit(axes, points(1.0, 2.0, 3.0))
    low, high = axes.get_ylim()
    assert low < 0.9 and 3.1 < high < 3.5
    drawing.fit(axes, points(1.0, 1.1, 1.2, 50.0, math.inf))
    assert 1.3 < axes.get_ylim()[1] < 5
    with pytest.raises(ValueError, match="no run was stable"):
        drawing.fit(axes, points(math.inf))


def test_a_point_above_the_picture_has_its_value_at_the_edge_and_no_bar_that_hangs_in():
    _, [axes] = drawing.panels()
    rows = points(1.0, 1.1, 1.2, 50.0, math.inf)
    rows[3]["loss_spread"] = 49.0  # its lower cap would lie at 1
    drawing.fit(axes, rows)
    drawing.name_astray(axes, rows, "x")
    drawing.line(axes, rows, "x", drawing.LOOKS["lora"])
    assert [(text.get_text(), text.xy[0]) for text in axes.texts] == [("↑ 50.0", 3.0), ("↑ ∞", 4.0)]
    bars = axes.containers[0].lines[2][0].get_segments()
    assert [np.ptp(bar[:, 1]) for bar in bars[:4]] == pytest.approx([0.2, 0.2, 0.2, 0.0])


def test_labels_stand_right_of_the_lines_and_inside_the_limits():
    _, [axes] = drawing.panels()
    axes.set_ylim(0, 1)
    drawing.label_ends(axes, [(1, 0.5, "a", "black"), (1, 0.5, "b", "black"), (1, math.inf, "c", "black")], gap=0.2)
    heights = [text.xy[1] for text in axes.texts]
    assert heights == pytest.approx([0.4, 0.6, 1.0]) and all(text.xyann[0] > 0 for text in axes.texts)


def test_the_sentence_is_the_title_and_with_its_lesson_the_label():
    figure = drawing.state(drawing.new_figure(), "lower is better", "Look  down.")
    assert figure.get_suptitle() == "Lower is better" and figure.get_label() == "Lower is better. Look down."
