"""Parts of a primitive: who shares them decides nothing but where they are computed."""

import numpy as np
import pytest

from minilora.autograd import ops, parts
from minilora.autograd.tensor import Tensor, grad


@pytest.mark.parametrize("function", [ops.gelu, lambda x: ops.gated(x, 2 * x, ops.silu)])
@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 4)])
def test_entries_shared_by_cores_are_the_same_bits(function, shape, monkeypatch):
    monkeypatch.setattr(parts, "SHARE", 10)
    monkeypatch.setattr("minilora.autograd.gated.STRETCH", 10)
    lots = []

    def backwards(function, pieces):
        lots.append(len(pieces))
        return [function(*piece) for piece in pieces[::-1]][::-1]

    def value_and_gradient():
        x = Tensor(np.random.default_rng(0).standard_normal(shape, dtype=np.float32), requires_grad=True)
        y = function(x)
        return y.data, grad(ops.sum(y * y), [x])[0]

    alone = value_and_gradient()
    with parts.shared_by(backwards):
        shared = value_and_gradient()
    assert all(np.array_equal(a, b) for a, b in zip(alone, shared, strict=True))
    assert max(lots, default=1) > 1 if shape != (1, 4) else max(lots, default=1) == 1  # few entries are not shared


def test_what_stands_apart_in_memory_is_not_shared(monkeypatch):
    monkeypatch.setattr(parts, "SHARE", 1)
    x = np.arange(12.0).reshape(3, 4).T
    with parts.shared_by(lambda *_: pytest.fail("shared")):
        assert np.array_equal(parts.by_entry(np.square, x), x**2)
