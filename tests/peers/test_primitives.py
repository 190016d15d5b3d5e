"""Every primitive against its counterpart in PyTorch: the value, and the gradient of every input."""

import numpy as np
import pytest

import minilora as ml
from minilora import ops

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
from pytorch_rows import ROWS  # noqa: E402

F = torch.nn.functional

BARS = {"float64": 1e-12, "float32": 1e-5}  # relative


def compare(ours, theirs, arrays, relative_error):
    """The largest relative error of the value and of all gradients, for a random cotangent."""
    tensors = [ml.Tensor(a, requires_grad=True) for a in arrays]
    peers = [torch.tensor(a, requires_grad=True) for a in arrays]
    y, expected = ours(*tensors), theirs(*peers)
    assert y.dtype == arrays[0].dtype
    g = np.asarray(np.random.default_rng(2).normal(size=y.shape), dtype=y.dtype)
    gradients = ml.grad(y, tensors, cotangent=g)
    assert all(d.dtype == a.dtype for d, a in zip(gradients, arrays, strict=True))
    pairs = zip(gradients, torch.autograd.grad(expected, peers, torch.tensor(g)), strict=True)
    return max(relative_error(y.data, expected), *(relative_error(d, peer) for d, peer in pairs))


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(filter(None, row[:2])))
def test_value_and_gradients(row, dtype, relative_error):
    _, _, ours, theirs, shapes, *positive = row
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(dtype) for shape in shapes]
    arrays = [0.5 + abs(a) for a in arrays] if positive else arrays
    assert compare(ours, theirs, arrays, relative_error) <= BARS[dtype]


def test_every_primitive_has_a_row():
    assert {row[0] for row in ROWS} == set(ops.PRIMITIVES)


KINKS = [
    ("max", lambda x: ops.max(x, axis=-1), lambda x: x.amax(-1), [[2.0, 1.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]]),
    ("relu", ops.relu, torch.relu, [[-1.0, 0.0, -0.0, 1.0]]),
    ("zero to the 2", lambda x: x**2, lambda x: x**2, [[-1.0, 0.0, 2.0]]),
    ("zero to the 1", lambda x: x**1, lambda x: x**1, [[-1.0, 0.0, 2.0]]),
    ("zero to the 0", lambda x: x**0, lambda x: x**0, [[-1.0, 0.0, 2.0]]),
    ("exponents of zero", lambda x: 0.0**x, lambda x: 0.0**x, [[0.0, 1.0, 2.0]]),
]


@pytest.mark.parametrize("kink", KINKS, ids=lambda kink: kink[0])
def test_where_a_derivative_is_a_convention(kink, relative_error):
    """Equal maxima share the cotangent, relu's slope at 0 is 0, x^0 is flat everywhere: PyTorch's conventions."""
    _, ours, theirs, values = kink
    assert compare(ours, theirs, [np.array(values)], relative_error) <= BARS["float64"]


FAR = [
    ("softmax", ops.softmax, lambda x: x.softmax(-1)),
    ("log_softmax", ops.log_softmax, lambda x: x.log_softmax(-1)),
    ("cross_entropy", lambda x: ops.cross_entropy(x, [3, 0]), lambda x: F.cross_entropy(x, torch.tensor([3, 0]))),
    ("tanh", ops.tanh, torch.tanh),
    ("gelu", ops.gelu, lambda x: F.gelu(x, approximate="tanh")),
    ("gelu_exact", ops.gelu_exact, F.gelu),
    ("silu", ops.silu, F.silu),
]


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("far", FAR, ids=lambda far: far[0])
def test_large_inputs_do_not_overflow(far, dtype, relative_error):
    _, ours, theirs = far
    x = np.array([[-1e4, -100.0, -20.0, 0.0], [20.0, 100.0, 500.0, 1e4]], dtype=dtype)
    with np.errstate(over="raise", invalid="raise"):
        assert compare(ours, theirs, [x], relative_error) <= BARS[dtype]
