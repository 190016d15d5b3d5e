"""`ml.draw`: the numbers in its boxes are the tape's, the gradients those that `grad` and differences give."""

import numpy as np
import pytest
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text

import minilora as ml
from minilora.autograd.tape import FEW
from minilora.pictures.tape import MOST


def leaf(*numbers):
    return ml.Tensor(np.array(numbers[0] if len(numbers) == 1 else numbers, dtype=float), requires_grad=True)


def boxes(figure):
    """[(name, value, gradient)] as they stand in the picture, in any order."""
    words = [t.get_text() for t in figure.findobj(Text) if t.get_text()][:-2]
    return sorted(zip(words[::3], words[1::3], words[2::3], strict=True))


def test_numbers_and_gradients_stand_on_every_node():
    x, w, b = leaf(2.0), leaf(-3.0), leaf(7.0)
    figure = ml.draw((x * w + b) * 0.5, {"x": x, "w": w, "b": b})
    assert boxes(figure) == sorted(
        [
            *(("x", "2", "−1.5"), ("w", "−3", "1"), ("b", "7", "0.5")),
            *(("multiply", "−6", "0.5"), ("add", "1", "0.5"), ("multiply", "0.5", "1")),
        ]
    )
    assert x.grad is None and ml.grad((x * w + b) * 0.5, [x])[0] == -1.5


def test_of_a_matrix_the_entries_of_a_larger_one_shape_and_norm():
    x, w = np.array([[1.0, 2.0], [0.0, -1.0]]), leaf([[1.0], [0.5]])
    big = leaf(np.full((4, 3), 2.0))
    told = boxes(ml.draw((x @ w).sum() + big.sum(), {"w": w, "W": big}))
    assert ("w", "  1\n0.5", "1\n1") in told and ("matmul", "   2\n−0.5", "1\n1") in told
    assert ("W", "4 × 3", "norm 3.46") in told


def test_it_draws_before_backward_and_after_one_that_keeps_the_tape():
    x = leaf(1.0, 2.0)
    loss = (x * x).sum()
    ml.draw(loss)
    loss.backward(retain_graph=True)
    assert ("leaf", "1 2", "2 4") in boxes(ml.draw(loss)) and x.grad.tolist() == [2, 4]
    loss.backward()
    with pytest.raises(ValueError, match="draw: the tape is freed"):
        ml.draw(loss)


def test_an_input_used_twice_or_far_away_has_its_arrows_and_no_box_covers_another():
    x, w = leaf(1.0, 2.0, 3.0), leaf(0.5)
    y = ml.ops.tanh(x * w)
    z = (y * y).sum() + w * 2 + (x * x).sum() / (y.sum() + 3)
    figure = ml.draw(z, {"x": x, "w": w, "y": y})
    figure.canvas.draw()
    frames = [p.get_window_extent() for p in figure.findobj(FancyBboxPatch)]
    assert len(frames) == len(boxes(figure)) == 14 and ("y = tanh" in {name for name, _, _ in boxes(figure)})
    for i, frame in enumerate(frames):
        assert figure.bbox.x0 < frame.x0 and frame.x1 < figure.bbox.x1
        assert not any(frame.overlaps(other) for other in frames[:i])
    for text in figure.findobj(Text):
        assert any(f.x0 <= text.get_window_extent().x0 and text.get_window_extent().x1 <= f.x1 for f in frames) or (
            text.get_text() == "" or "line" in text.get_text() or "below" in text.get_text()
        )


def test_what_cannot_be_drawn_is_said_in_one_line():
    x = leaf(1.0, 2.0)
    deep = x.sum()
    for _ in range(MOST):
        deep = deep + 1.0
    changed = (x * 3).sum()
    x.data += 1
    x.changed()
    w = leaf(1.0)
    assigned = w + 1.0
    w.data = np.array(5.0)
    assert ("leaf", "5", "1") in boxes(ml.draw(w + 1.0))
    for wrong, error, words in (
        (lambda: ml.draw(assigned), ValueError, "draw: a leaf of add has changed since the forward pass"),
        (lambda: ml.draw(x * 2), ValueError, r"draw: loss has shape \(2,\), expected one number"),
        (lambda: ml.draw(ml.Tensor(1.0)), ValueError, "draw: loss depends on no tensor"),
        (lambda: ml.draw(3.0), TypeError, "draw: loss = 3.0, expected a Tensor"),
        (lambda: ml.draw(deep, {"x": 1}), TypeError, r"draw: names\['x'\] is no Tensor"),
        (lambda: ml.draw(deep), ValueError, "draw: 62 nodes, expected at most 60"),
        (lambda: ml.draw(changed), ValueError, "draw: a leaf of multiply has changed since the forward pass"),
    ):
        with pytest.raises(error, match=words) as caught:
            wrong()
        assert "\n" not in str(caught.value)


def test_a_node_keeps_nine_numbers_and_nothing_larger_behind_them():
    x = leaf(np.ones((100, 100)))
    for y in (x[0, :3], x[:3, :3], x.sum()):
        assert y.node.value.size <= FEW and y.node.value.base is None
    assert (x * 2).node.value is None and x[0, :10].node.value is None


def test_a_notebook_shows_it_without_pyplot_no_wider_than_a_slide():
    y = leaf(1.0)
    for _ in range(20):
        y = y * 2
    picture = ml.draw(y)._repr_png_()
    assert picture.startswith(b"\x89PNG") and int.from_bytes(picture[16:20]) <= 1200
