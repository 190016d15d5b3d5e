"""The head's loss in stretches of the vocabulary: equal to linear and cross_entropy, in a fraction of the memory."""

import tracemalloc

import numpy as np
import pytest
from drawing import check_gradients, check_same
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora import ops
from minilora.adapters.quantization import quantize
from minilora.autograd import head, versions


def drawn(shape=(2, 3), c=4, v=11, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    x, weight = rng.standard_normal((*shape, c)).astype(dtype), rng.standard_normal((v, c)).astype(dtype)
    return x, weight, rng.integers(0, v, shape)


def composed(x, weight, targets, bias=None):
    return ops.cross_entropy(ops.linear(x, weight, bias), targets)


def on_demand(weight):
    """The loss as a function of x and targets, W being made a stretch at a time."""
    rows_of = lambda part, dtype: weight[part].astype(dtype)
    return lambda x, targets, *bias: ops.linear_cross_entropy_on_demand(x, rows_of, targets, len(weight), *bias)


@pytest.mark.parametrize("frozen", ["x", "weight", None])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_few_logits_give_the_same_bits(dtype, frozen):
    x, weight, targets = drawn(dtype=dtype)
    here, there = ([ml.Tensor(x, frozen != "x"), ml.Tensor(weight, frozen != "weight")] for _ in range(2))
    y, z = ops.linear_cross_entropy(*here, targets), composed(*there, targets)
    assert y.dtype == z.dtype and y.item() == z.item()
    pairs = [(a, b) for a, b in zip(here, there, strict=True) if a.requires_grad]
    gradients = ml.grad(y, [a for a, _ in pairs]), ml.grad(z, [b for _, b in pairs])
    for g, h in zip(*gradients, strict=True):
        np.testing.assert_array_equal(g, h)


@pytest.mark.slow
@given(st.data())
def test_in_stretches(data):
    """Of any length, rows of no shape and of several, targets that do not count, logits that grow and shrink."""
    shape = data.draw(st.sampled_from([(1,), (5,), (2, 3), (2, 2, 2)]))
    v, seed = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 99))
    x, weight, targets = drawn(shape, data.draw(st.integers(1, 3)), v, seed=seed)
    weight *= data.draw(st.sampled_from([1, np.arange(v)[:, None], np.arange(v)[::-1, None]]))
    out = np.random.default_rng(seed).random(shape) < data.draw(st.sampled_from([0, 0.5]))
    out.reshape(-1)[0] = False
    targets = np.where(out, -100, targets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "LOGITS", data.draw(st.integers(0, x.size // x.shape[-1] * v - 1)))
        loss = lambda x, weight: ops.linear_cross_entropy(x, weight, targets)
        check_same(loss, lambda x, weight: composed(x, weight, targets), [x, weight])
        check_gradients(loss, [x, weight], ["complex-step"])
        check_same(lambda x: on_demand(weight)(x, targets), lambda x: composed(x, weight, targets), [x])
        loss, bias = lambda x, W, b: ops.linear_cross_entropy(x, W, targets, b), weight[:, 0] * 3
        check_same(loss, lambda x, W, b: composed(x, W, targets, b), [x, weight, bias])
        check_gradients(loss, [x, weight, bias], ["complex-step"])
        held = lambda x, b: on_demand(weight)(x, targets, b)
        check_same(held, lambda x, b: composed(x, weight, targets, b), [x, bias])


@pytest.mark.parametrize("dtype, tolerance", [("float16", 2e-3), ("float32", 1e-6)])
def test_precision(dtype, tolerance, monkeypatch):
    monkeypatch.setattr(head, "LOGITS", 8)
    x, weight, targets = drawn(dtype=dtype)
    for here, loss in [
        ([ml.Tensor(x, True), ml.Tensor(weight, True)], lambda x, w: ops.linear_cross_entropy(x, w, targets)),
        ([ml.Tensor(x, True)], lambda x: on_demand(weight)(x, targets)),
    ]:
        there = [ml.Tensor(t.data.astype("float64"), True) for t in here]
        y = loss(*here)
        z = composed(*there[:2], targets) if len(there) > 1 else composed(there[0], weight.astype("float64"), targets)
        assert y.dtype == dtype
        np.testing.assert_allclose(y.data, z.data, rtol=tolerance)
        for g, h in zip(ml.grad(y, here), ml.grad(z, there), strict=True):
            assert g.dtype == dtype
            np.testing.assert_allclose(g, h, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("logits", [1 << 21, 8])
def test_logits_that_overflow_and_a_target_of_probability_zero(logits, monkeypatch):
    monkeypatch.setattr(head, "LOGITS", logits)
    x, weight = np.array([[1e3], [-1e3]]), np.array([[0.0], [1.0], [-1.0]])
    tensors = [ml.Tensor(x, True), ml.Tensor(weight, True)]
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        y = ops.linear_cross_entropy(*tensors, np.array([0, 1]))
        dx, dw = ml.grad(y, tensors)
    np.testing.assert_allclose(y.data, 1500)
    np.testing.assert_allclose(dx, [[0.5], [-1.0]])
    np.testing.assert_allclose(dw, [[-500], [1000], [-500]])


@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_what_is_no_number_stays_so(special, monkeypatch):
    monkeypatch.setattr(head, "LOGITS", 8)
    x, weight, targets = drawn()
    weight[3, 0] = special
    with np.errstate(invalid="ignore"):
        assert np.isnan(ops.linear_cross_entropy(np.abs(x), weight, targets).item())


@pytest.mark.parametrize("logits", [1 << 21, 8])
def test_arguments_that_do_not_fit(logits, monkeypatch):
    monkeypatch.setattr(head, "LOGITS", logits)
    x, weight, targets = drawn()
    for arrays, message in [
        ((x, weight[:, :3], targets), r"^linear_cross_entropy: x \(2, 3, 4\) and W \(11, 3\) do not fit"),
        ((x, weight[0], targets), r"^linear_cross_entropy: x \(2, 3, 4\) and W \(4,\) do not fit"),
        ((x, weight, targets[0]), r"^linear_cross_entropy: .*targets \(3,\)"),
        ((x, weight, targets + 9), r"^linear_cross_entropy: .*expected 0 to 10"),
        ((x, weight, targets, weight[0]), r"^linear\w*: .*(4,)"),
        ((x, weight, targets * 0 - 100), r"^linear_cross_entropy: .*no rows have no mean; 6 targets are -100"),
    ]:
        with pytest.raises(ValueError, match=message):
            ops.linear_cross_entropy(*arrays)
    with pytest.raises(TypeError, match=r"^linear_cross_entropy: .*targets have dtype float64, expected integers"):
        ops.linear_cross_entropy(x, weight, targets * 1.0)
    with pytest.raises(ValueError, match=r"^linear_cross_entropy_on_demand: .*expected 0 to 4"):
        ops.linear_cross_entropy_on_demand(x, lambda part, dtype: weight[part], targets + 5, 5)
    with pytest.raises(ValueError, match=r"^linear_cross_entropy_on_demand: rows .* of W are \(.*, 4\), x \(2, 3, 4\)"):
        ops.linear_cross_entropy_on_demand(x, lambda part, dtype: weight[part], targets, 10**30)
    with pytest.raises(TypeError, match=r"^linear_cross_entropy_on_demand: vocab_size = 5.0, expected a whole number"):
        ops.linear_cross_entropy_on_demand(x, lambda part, dtype: weight[part], targets % 5, 5.0)


def test_what_the_tape_keeps(monkeypatch):
    """With a frozen W, the gradient of the rows that count, and nothing else."""
    monkeypatch.setattr(head, "LOGITS", 8)
    x, weight, targets = drawn()
    targets[0, 1:] = -100
    bias = np.zeros(len(weight))
    _, (dx, dw, db) = head._in_stretches("", x, lambda part, dtype: weight[part], targets, len(weight), bias)
    kept = [array.shape for _, array in versions.kept_arrays(dx)]
    assert sorted(kept) == [(4,), (4, 4)]
    assert all(any(array is weight for _, array in versions.kept_arrays(vjp)) for vjp in (dw, db))


def test_a_weight_that_was_written_over_is_refused(monkeypatch):
    monkeypatch.setattr(head, "LOGITS", 8)
    x, weight, targets = drawn()
    W = ml.Tensor(weight, requires_grad=True)
    y = ops.linear_cross_entropy(x, W, targets)
    W.data -= 1
    with pytest.raises(ValueError, match="linear_cross_entropy needs its argument 'weight'"):
        ml.grad(y, [W])


def test_targets_may_be_written_over(monkeypatch):
    monkeypatch.setattr(head, "LOGITS", 8)
    x, weight, targets = drawn()
    W = ml.Tensor(weight, requires_grad=True)
    expected = ml.grad(ops.linear_cross_entropy(x, W, targets), [W])[0]
    y = ops.linear_cross_entropy(x, W, targets)
    targets[:] = 0
    np.testing.assert_array_equal(ml.grad(y, [W])[0], expected)


def test_without_a_tape_no_gradient_is_made(monkeypatch):
    monkeypatch.setattr(head, "LOGITS", 8)
    x, weight, targets = drawn()
    seen = []
    with ml.no_grad():
        y = ops.linear_cross_entropy_on_demand(
            x, lambda part, dtype: seen.append(part) or weight[part], targets, len(weight)
        )
    np.testing.assert_allclose(y.item(), composed(x, weight, targets).item(), rtol=1e-12)
    assert y.node is None and len(seen) == 11  # eight logits are those of one row of W


def test_a_quantised_head():
    x, weight, targets = drawn(v=96, c=64)
    codes = quantize(weight.astype("float32"))
    tensor = ml.Tensor(x, requires_grad=True)
    y = ops.linear_cross_entropy_on_demand(tensor, codes.rows, targets, 96)
    z = composed(tensor, codes.dequantize("float64"), targets)
    np.testing.assert_allclose(y.item(), z.item(), rtol=1e-12)
    np.testing.assert_allclose(ml.grad(y, [tensor])[0], ml.grad(z, [tensor])[0], rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("loss, most", [(composed, 110), (ops.linear_cross_entropy, 30)])
def test_peak_memory_at_a_vocabulary_of_49152(loss, most):
    """256 rows of 576, in MiB: with all logits, 96; in stretches, 18."""
    x, weight, targets = drawn((256,), 576, 49152, "float32")
    x = ml.Tensor(x, requires_grad=True)
    tracemalloc.start()
    ml.grad(loss(x, weight, targets), [x])
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    assert most / 2 < peak < most
