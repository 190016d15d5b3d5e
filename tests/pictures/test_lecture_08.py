"""The tables and pictures of lectures 8a to 8c: what their titles compute, and what they show."""

import numpy as np

from minilora.pictures import lecture_08

LOSSES = {
    "prompt": {"step": [0, 5, 10], "loss": [3.3, 3.0, 2.9]},
    "lora": {"step": [0, 5, 10], "loss": [3.3, 2.9, 2.7]},
    "houlsby": {"step": [0, 5, 10], "loss": [3.3, 2.8, 2.8]},
}
TRAINED = {"prompt": 2048, "lora": 16_384, "houlsby": 17_472}


def test_a_table_is_markdown_where_it_is_shown_and_where_it_is_printed() -> None:
    made = lecture_08.table(["name", "value"], [["a", 1], ["b", "2.50"]])
    assert made == "| name | value |\n| --- | ---: |\n| a | 1 |\n| b | 2.50 |"
    assert made._repr_markdown_() == repr(made) == str(made)


def test_where_each_method_starts() -> None:
    gap, merges = {"prompt": 6.237, "lora": 0.0, "houlsby": 0.0}, {"prompt": False, "lora": True, "houlsby": False}
    rows = lecture_08.starts(TRAINED, gap, merges).splitlines()
    assert rows[2] == "| prompt | in front of the text | 2,048 | 6.24 away | no |"
    assert rows[3] == "| lora | beside q and v | 16,384 | the base's | yes |"


def test_the_curves_name_who_is_ahead_at_the_end_and_what_each_trains() -> None:
    figure = lecture_08.curves(LOSSES, TRAINED)
    assert figure.get_label().startswith("After 10 steps lora is ahead of the other 2")
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words == ["prompt  2,048", "lora  16,384", "houlsby  17,472"]


def test_no_name_of_a_curve_covers_another_or_leaves_the_picture() -> None:
    many = {name: {"step": [0, 25], "loss": [3.3, 2.7]} for name in lecture_08.WHERE}  # the worst case: one end for all
    figure = lecture_08.curves(many, dict.fromkeys(many, 16_384))
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_the_share_of_a_prefix_is_stated_as_it_is() -> None:
    shares = np.zeros((8, 5))
    shares[3] = 0.2, 0.4, 0.6, 0.8, 1.0
    figure = lecture_08.prefix_shares(shares, "ab\nde")
    assert "8% of attention is on the prefix; in one head it varies by 80%" in figure.get_label()
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == list("ab⏎de")


def test_the_line_of_weights_says_what_minus_one_does() -> None:
    along = {"new": [7.0, 5.0, 3.25, 2.5], "old": [1.25, 1.0, 1.0, 1.5]}
    figure = lecture_08.along_a_line((-1.0, -0.5, 0.0, 1.0), along, "unicode-names")
    assert "by +3.75 on the new text and by +0.25 on the old" in figure.get_label()


def test_levels_and_rows_are_drawn() -> None:
    u = np.random.default_rng(0).normal(0, 0.3, 500).clip(-1, 1)
    figure = lecture_08.levels(u, {"nf4": 3.9, "int4": 3.4})
    assert [axes.get_title("left") for axes in figure.axes] == ["nf4: 3.90 bits used of 4", "int4: 3.40 bits used of 4"]
    rows = {name: np.array([1.0, 2.0, 3.0]) for name in ("lora", "dora")}
    drawn = lecture_08.rows_in_the_plane(np.array([3.0, 1]), np.array([2.5, 2.5]), np.array([1.8, 1.8]), rows, rows)
    assert drawn.axes[1].get_title("left") == "3 rows, after training" and len(drawn.axes[1].lines) == 2
