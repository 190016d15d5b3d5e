"""The segmenter's figures: their titles say what the records say."""

import numpy as np
import pytest
from matplotlib.text import Text

from minilora.pictures import segments


def test_errors_are_compared_over_seeds(title, figure_of):
    said = "clearly less than head and last blocks, not clearly otherwise than full"
    assert title("segments") == f"With 64 scenes, LoRA errs {said}"
    worse = lambda row: row.update(loss=0.5) if row["method"] == "LoRA" else None
    assert title("segments", worse).endswith("LoRA errs clearly more than head, last blocks and full")
    figure = figure_of("segments")
    assert "LoRA 0.15, 0.11, 0.10" in figure.get_label() and "full 0.15, 0.11, 0.10" in figure.get_label()
    assert "against full fine-tuning at an equal error on cracks: LoRA less" in figure.get_label()
    assert "With 8 scenes LoRA errs clearly less than head and last blocks, not clearly" in figure.get_label()
    left, right = figure.axes
    assert len(left.containers) == 4 and len(right.collections) == 4
    more = lambda row: row["curve"].update(old_loss=[0.9] * 6) if row["method"] == "LoRA" else None
    assert "cracks: LoRA more" in figure_of("segments", more).get_label()


def test_masks_before_and_after(title, figure_of):
    assert title("segmented") == "LoRA on 64 scenes: IoU on new cracks 0.10 → 0.89 and plates 0.50 → 0.89"
    figure = figure_of("segmented")
    assert len(figure.axes) == 8
    assert {"cracks", "plates", "before", "truth"} <= {text.get_text() for text in figure.findobj(Text)}
    painted = figure.axes[1].images[0].get_array()
    assert (
        painted[5, 5, 2] > painted[5, 6, 2] + 0.1 and painted[5, 6].std() < 1e-6
    )  # the diagonal is blue, the rest grey
    label = figure.get_label()
    assert "by a point, is 0.89, on cracks. On shapes IoU falls from 0.85 to 0.66" in label
    assert "Asked by a box instead: cracks 0.20 → 0.80 and plates 0.20 → 0.80." in label


def test_records_without_the_studied_task_are_refused(figure_of):
    with pytest.raises(ValueError, match="no row with kind = 'methods', corpus = 'cracks'"):
        figure_of("segments", lambda row: row.update(corpus="faces"))


def test_a_mask_is_painted_over_its_picture():
    image, mask = np.ones((2, 2)), np.array([[True, False], [False, False]])
    painted = segments._over(image, mask)
    np.testing.assert_allclose(painted[1, 1], 1)
    assert painted[0, 0, 0] < 0.3 < painted[0, 0, 2]
