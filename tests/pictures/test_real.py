"""A real model's figures: their titles say what the records say."""

import numpy as np
import pytest
from matplotlib.text import Text


def words_of(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def test_right_answers_before_and_after_with_their_intervals(title, figure_of):
    assert title("real") == "SQL that is right: 3 % before, 78 to 82 % after 100 steps of LoRA"
    [axes] = figure_of("real").axes
    assert [bar.get_height() for bar in axes.patches] == [3, 80, 78, 82]  # the other rates' runs are not among them
    assert {"3 %", "78 %", "80 %", "82 %"} <= {*words_of(axes.figure)}
    lows = [line.get_segments()[0][0][1] for line in axes.collections]
    assert lows == pytest.approx([1.03, 71.1, 68.9, 73.3], abs=0.1)  # Wilson's interval of 3, 80 ... of 100


def test_one_share_is_told_once(title):
    assert title("real", lambda row: row.update(right=3 if not row["steps"] else 80)).endswith(
        "3 % before, 80 % after 100 steps of LoRA"
    )


def test_what_is_paid_in_english(title, figure_of):
    assert title("real-forgetting") == (
        "81 % right for +0.60 nats of English at 0.003"
    )  # fmt: skip
    few = lambda row: row.update(right=50) if row["lr"] == 3e-3 else None
    assert title("real-forgetting", few) == ("80 % right for +0.10 nats of English at 0.001; 50 % for +0.60 at 0.003")
    [axes] = figure_of("real-forgetting").axes
    lines = [line.get_xydata().tolist() for line in axes.lines if len(line.get_xdata()) > 1]
    assert np.allclose(
        lines[0], [[1.7, 3.0], [0.4, 3.01], [0.2, 3.02]]
    )  # the lowest rate first, from the model as it came
    assert len(lines) == 3  # other seeds are not among them: they are hollow points
    assert [line.get_fillstyle() for line in axes.lines].count("none") == 2


def test_records_without_a_trained_model_are_refused(figure_of):
    with pytest.raises(ValueError, match="no row of a trained model"):
        figure_of("real", lambda row: row.update(steps=0))
