"""Computed again instead of kept: the same gradients bit for bit, in a fraction of the memory, or a refusal."""

import contextlib
import tracemalloc

import numpy as np
import pytest

import minilora as ml
from minilora import ops
from minilora.autograd.checkpoint import recompute

CONFIG = ml.GPTConfig(vocab_size=16, block_size=8, n_layer=3, n_head=2, n_embd=8, dropout=0.3)


def model(lora=True):
    """A GPT whose blocks all have something to train."""
    gpt = ml.GPT(CONFIG)
    if lora:
        ml.add_lora(gpt, ml.LoRAConfig(rank=2, dropout=0.2))
        for p in gpt.parameters(trainable=True):
            p.data = p.data + np.random.default_rng(1).standard_normal(p.shape).astype("float32")
    return gpt


def through(gpt, x, rng, run):
    for block in gpt.blocks:
        x = run(block, x, rng)
    return x


def plainly(function, *arguments):
    return function(*arguments)


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("seed", [None, 3])
def test_a_stack_of_blocks_has_the_same_gradients(lora, seed):
    """With dropout as well: the generator's state is played again, and is afterwards what it is without."""
    gpt = model(lora)
    x = ml.Tensor(np.random.default_rng(0).standard_normal((2, 5, 8)).astype("float32"), requires_grad=True)
    inputs = [x, *(p for block in gpt.blocks for p in block.parameters(trainable=True))]
    results = []
    for run in (plainly, recompute):
        rng = None if seed is None else np.random.default_rng(seed)
        y = through(gpt, x, rng, run)
        gradients = ml.grad(y, inputs, np.cos(np.arange(y.size, dtype="float32")).reshape(y.shape))
        results.append([y.data, *gradients, *([] if rng is None else [rng.random()])])
    for plain, again in zip(*results, strict=True):
        np.testing.assert_array_equal(plain, again)


def test_backward_adds_up_in_leaves_and_may_run_twice():
    gpt = model()
    x = np.random.default_rng(0).standard_normal((2, 5, 8)).astype("float32")
    trained = gpt.blocks[0].parameters(trainable=True)
    ops.sum(gpt.blocks[0](ml.Tensor(x))).backward()
    expected = [p.grad for p in trained]
    for p in trained:
        p.grad = None
    loss = ops.sum(recompute(gpt.blocks[0], ml.Tensor(x)))
    loss.backward(retain_graph=True)
    with ml.no_grad():
        loss.backward()
    for p, g in zip(trained, expected, strict=True):
        np.testing.assert_array_equal(p.grad, 2 * g)


def test_a_computed_tensor_that_the_function_closes_over():
    """Its tape is outside: it is walked once, by the backward pass that is there already."""
    w, x = (ml.Tensor(np.random.default_rng(i).standard_normal((3, 3)), requires_grad=True) for i in range(2))

    def gradients(run):
        shared = ops.tanh(w)
        y = run(lambda x: ops.matmul(x, shared) * w, x) + shared
        return ml.grad(y.sum(), [w, x])

    for plain, again in zip(gradients(plainly), gradients(recompute), strict=True):
        np.testing.assert_allclose(again, plain, rtol=1e-14)


def test_gradcheck_through_it():
    w = ml.Tensor(np.random.default_rng(1).standard_normal((3, 4)), requires_grad=True)
    function = lambda x: recompute(lambda x: ops.gelu(ops.linear(x, w)), x)
    assert ml.gradcheck(function, [np.random.default_rng(0).standard_normal((2, 4))], "complex-step").passed


def test_nothing_is_recorded_where_nothing_is_to_be():
    gpt, x = model(), ml.Tensor(np.ones((1, 2, 8), "float32"))
    with ml.no_grad():
        assert recompute(gpt.blocks[0], x).node is None
    assert recompute(ops.tanh, x).node is None
    x.requires_grad = True
    assert recompute(lambda x: x, x) is x
    assert recompute(gpt.blocks[0], x).node.name == "recompute"


@pytest.mark.parametrize("write", ["data", "in place"])
def test_a_weight_that_has_changed_is_refused(write):
    x, w = (ml.Tensor(np.ones((2, 2)), requires_grad=True) for _ in range(2))
    y = recompute(lambda x: ops.tanh(ops.matmul(x, w)), x).sum()
    if write == "data":
        w.data = w.data + 1
    else:
        w.data -= 1
    with pytest.raises(ValueError, match=r"recompute.* since|recompute needs its .* as it was in the forward pass"):
        ml.grad(y, [x])


def test_another_result_the_second_time_is_refused():
    """A frozen weight written over, a generator of the function's own."""
    x, frozen, rng = ml.Tensor(np.ones((2, 2)), requires_grad=True), np.ones((2, 2)), np.random.default_rng(0)
    y = recompute(lambda x: ops.matmul(x, ml.Tensor(frozen)), x).sum()
    z = recompute(lambda x: ops.dropout(x, 0.5, rng), ops.concatenate([x] * 50)).sum()
    frozen[0] = 2
    for output in (y, z):
        with pytest.raises(ValueError, match="recompute: the function gives another result"):
            ml.grad(output, [x])


@pytest.mark.parametrize("change", ["merged", "disabled", "switched"])
def test_the_same_result_without_what_waits_for_a_gradient_is_refused(change):
    """Merged, an adapter gives the same result up to rounding, and a fresh one, at B = 0, the base's: its gradient is
    no zero for that."""
    gpt = model() if change == "merged" else ml.add_lora(ml.GPT(CONFIG), ml.LoRAConfig(rank=2))
    x = ml.Tensor(np.random.default_rng(0).standard_normal((2, 5, 8)).astype("float32"))
    y = recompute(gpt.blocks[0], x).sum()
    trained = gpt.blocks[0].parameters(trainable=True)
    if change == "merged":
        ml.merge_lora(gpt)
    elif change == "switched":
        ml.add_lora(gpt, ml.LoRAConfig(rank=2), name="other")
    refused = pytest.raises(ValueError, match="recompute: which tensors the function uses has changed since")
    with ml.lora_disabled(gpt) if change == "disabled" else contextlib.nullcontext(), refused:
        ml.grad(y, trained, retain_graph=True)
    if change == "disabled":
        assert any(g.any() for g in ml.grad(y, trained))


def test_what_was_frozen_since_is_no_reason_to_refuse():
    x, w = (ml.Tensor(np.ones((2, 2)), requires_grad=True) for _ in range(2))
    y = recompute(lambda x: ops.tanh(ops.matmul(x, w)), x).sum()
    expected = ml.grad(ops.tanh(ops.matmul(x, w)).sum(), [x])
    w.requires_grad = False
    np.testing.assert_array_equal(ml.grad(y, [x]), expected)


def test_a_function_that_returns_no_tensor():
    with pytest.raises(TypeError, match="recompute: the function returned tuple, expected a Tensor"):
        recompute(lambda x: (x, x), ml.Tensor(1.0))


def test_the_tape_keeps_one_block_at_a_time():
    """Of twelve blocks: a third of the memory at most."""
    gpt = ml.GPT(ml.GPTConfig(vocab_size=16, block_size=64, n_layer=12, n_head=2, n_embd=8))
    ml.add_lora(gpt, ml.LoRAConfig(rank=2))
    x, peaks = ml.Tensor(np.ones((2, 32, 8), "float32")), []
    for run in (plainly, recompute):
        tracemalloc.start()
        through(gpt, x, None, run).sum().backward()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] / 3
