"""Rows of one thing: cores that are free share them, and nothing else changes."""

import numpy as np
import pytest

from minilora.autograd import ops, parts, rows
from minilora.autograd.tensor import Tensor, grad

FLOATS = np.random.default_rng(0)


def backwards(lots):
    """Who shares: the last part first, noting how many there are."""

    def share(function, pieces):
        lots.append(len(pieces))
        return [function(*piece) for piece in pieces[::-1]][::-1]

    return share


@pytest.fixture
def few(monkeypatch):
    """Little is enough to be shared."""
    monkeypatch.setattr(rows, "WORK", 1 << 14)
    monkeypatch.setattr(rows, "LINES", 16)
    monkeypatch.setattr(rows, "SHARE", 1 << 8)


def both_ways(compute):
    """What it computes alone and shared, and into how many parts."""
    lots: list[int] = []
    alone = compute()
    with parts.shared_by(backwards(lots)), parts.rows_cut(True):
        return alone, compute(), lots


@pytest.mark.parametrize("n, m, k", [(200, 30, 40), (333, 64, 17), (64, 300, 64), (100, 513, 100)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.usefixtures("few")
def test_a_product_is_the_same(n, m, k, order):
    a, b, c, d = (
        np.asarray(FLOATS.standard_normal(shape, "float32"), order=order) for shape in ((n, m), (m, k), (n, 8), (8, k))
    )
    bias = FLOATS.standard_normal(k, "float32")
    for more in ((), ((c, d),), ((c, d), bias), (None, bias)):
        alone, shared, lots = both_ways(lambda more=more: rows.product(a, b, *more))
        np.testing.assert_allclose(shared, alone, rtol=0, atol=1e-6 * np.abs(alone).max())
        assert lots[0] > 1
    np.testing.assert_allclose(rows.product(a, b, (c, d), bias), a @ b + c @ d + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_large_product_is_the_same_bits():
    """A row is added up alike, whatever rows stand beside it: pieces are too large for kernels of small products."""
    for n, m, k in ((2048, 256, 256), (1030, 640, 72)):
        a, b, c, d = (FLOATS.standard_normal(shape, "float32") for shape in ((n, m), (m, k), (n, 8), (8, k)))
        alone, shared, lots = both_ways(lambda a=a, b=b, more=(c, d): rows.product(a, b, more))
        np.testing.assert_array_equal(shared, alone)
        assert lots[0] > 1


@pytest.mark.usefixtures("few")
def test_numbers_of_two_precisions_and_a_small_product_are_not_shared():
    a, b = FLOATS.standard_normal((200, 64)), FLOATS.standard_normal((64, 64), "float32")
    with parts.shared_by(lambda *_: pytest.fail("shared")), parts.rows_cut(True):
        assert rows.product(a, b).dtype == np.float64
        assert rows.product(a.astype("float32"), b, None, np.ones(64)).dtype == np.float64
        assert rows.product(b[:2], b).shape == (2, 64)


@pytest.mark.parametrize("n, parts_asked", [(1, 4), (16, 2), (100, 3), (1000, 50), (2048, 4), (0, 2)])
def test_stretches_cover_every_row_once_in_lots_of_sixteen(n, parts_asked):
    found = [at for (at,) in parts.stretches(n, parts_asked)]
    assert [i for at in found for i in range(n)[at]] == list(range(n))
    assert all(at.start % 16 == 0 for at in found) and len(found) <= min(parts_asked, parts.MOST)


W = FLOATS.standard_normal((48, 48), "float32")
A, B, SCALE, SHIFT = (Tensor(x.copy(), requires_grad=True) for x in (W[:4], W[:, :4], W[0], W[1]))
PRIMITIVES = {
    "linear": (lambda x: ops.linear(x, B, SHIFT), [B, SHIFT], 4),
    "lora_linear": (lambda x: ops.lora_linear(x, W, SHIFT, A, B, 2.0), [A, B, SHIFT], 48),
    "layer_norm": (lambda x: ops.layer_norm(x, SCALE, SHIFT), [SCALE, SHIFT], 48),
    "layer_norm without bias": (lambda x: ops.layer_norm(x, SCALE, eps=0.1), [SCALE], 48),
    "rms_norm": (lambda x: ops.rms_norm(x, SCALE), [SCALE], 48),
}


@pytest.mark.parametrize("name", PRIMITIVES)
@pytest.mark.usefixtures("few")
def test_values_and_gradients_of_shared_rows(name):
    function, leaves, width = PRIMITIVES[name]
    start = FLOATS.standard_normal((2, 100, width), "float32")

    def compute():
        x = Tensor(start, requires_grad=True)
        y = function(x)
        return [y.data, *grad(ops.sum(y * y), [x, *leaves])]

    alone, shared, lots = both_ways(compute)
    assert max(lots) > 1
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=2e-6 * np.abs(one).max())


@pytest.mark.usefixtures("few")
def test_rows_are_whole_unless_they_are_asked_for():
    x = FLOATS.standard_normal((100, 48), "float32")
    with parts.shared_by(lambda *_: pytest.fail("shared")):
        y = ops.layer_norm(ops.linear(x, W), W[0]).data
    np.testing.assert_allclose((y / W[0]).mean(-1), 0, atol=1e-5)


@pytest.mark.usefixtures("few")
def test_a_norm_whose_scale_is_each_texts_own_is_not_cut():
    x, w = FLOATS.standard_normal((2, 50, 48)), FLOATS.standard_normal((2, 1, 48))
    with parts.shared_by(lambda *_: pytest.fail("shared")), parts.rows_cut(True):
        y = ops.layer_norm(x, w).data
    np.testing.assert_allclose(y[1], ops.layer_norm(x[1], w[1, 0]).data)


@pytest.mark.usefixtures("few")
def test_shared_rows_know_when_what_they_need_was_written_over():
    x, w = Tensor(FLOATS.standard_normal((100, 48)), requires_grad=True), Tensor(np.ones(48), requires_grad=True)
    with parts.shared_by(backwards([])), parts.rows_cut(True):
        y = ops.sum(ops.layer_norm(x, w))
    w.data *= 2
    w.changed()
    with pytest.raises(ValueError, match="run the forward pass again"):
        grad(y, [x])
