"""Lecture 9's roofline: no dot is covered by a word."""

import pytest

from minilora.pictures import lecture_09


@pytest.mark.slow
def test_no_word_covers_a_dot():
    rate = {1: 13e9, 2: 9.7e9, 4: 23e9, 8: 35e9, 16: 59e9, 32: 77e9, 64: 89e9}
    for low in (9.7e9, 1e9, 13e9):
        figure = lecture_09.roofline({n: n / 2 for n in rate}, {**rate, 2: low}, 39e9, 108e9)
        figure.canvas.draw()
        (axes,) = figure.axes
        boxes = [text.get_window_extent() for text in axes.texts]
        dots = [axes.transData.transform(line.get_xydata()[0]) for line in axes.lines if line.get_marker() == "o"]
        assert len(dots) == 7 and not any(box.padded(6).contains(*dot) for box in boxes for dot in dots)
        assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])
    assert figure._suptitle.get_text() == "1 row at a time: 15% of the speed of 64"
