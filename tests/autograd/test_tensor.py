"""The tape: what it records, how it is walked, what it keeps, and what it never touches."""

import copy
import gc
import itertools
import pickle
import re
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import minilora as ml
from minilora import ops
from minilora.autograd.tensor import primitive


def leaf(*shape, seed=0, dtype=np.float64):
    return ml.Tensor(np.random.default_rng(seed).standard_normal(shape).astype(dtype), requires_grad=True)


# ---- grad and backward


def test_grad_is_pure():
    x, w = leaf(3, 4), leaf(5, 4, seed=1)
    h = ops.linear(x, w)
    y = (h * h).sum()
    before = [t.data.copy() for t in (x, w, h, y)]
    gradients = ml.grad(y, [x, w, h])
    np.testing.assert_allclose(gradients[0], 2 * h.data @ w.data, rtol=1e-14)
    np.testing.assert_allclose(gradients[1], 2 * h.data.T @ x.data, rtol=1e-14)
    np.testing.assert_allclose(gradients[2], 2 * h.data, rtol=1e-14)
    for tensor, data in zip((x, w, h, y), before, strict=True):
        assert tensor.grad is None
        np.testing.assert_array_equal(tensor.data, data)


def test_backward_adds_to_the_grad_of_leaves_only():
    x, w = leaf(3), leaf(3, seed=1)
    for times in (1, 2, 3):
        h = x * w
        h.sum().backward()
        np.testing.assert_allclose(x.grad, times * w.data)
        np.testing.assert_allclose(w.grad, times * x.data)
        assert h.grad is None


def test_backward_gives_what_grad_gives():
    x, w = leaf(3, 4), leaf(5, 4, seed=1)
    loss = lambda: ops.tanh(ops.linear(x, w)).mean()
    loss().backward()
    for tensor, g in zip((x, w), ml.grad(loss(), [x, w]), strict=True):
        np.testing.assert_array_equal(tensor.grad, g)


def test_backward_on_a_leaf():
    x = ml.Tensor(3.0, requires_grad=True)
    x.backward()
    assert x.grad == 1.0


def test_a_leaf_that_is_gone_does_not_stop_backward():
    x = leaf(3)
    y = (x * leaf(3, seed=1)).sum()  # the second leaf is held by nobody
    gc.collect()
    y.backward()
    assert x.grad is not None


def counted(calls):
    """x -> 2x, noting each time its vjp is used."""

    def double(x):
        return 2 * x, (lambda g: (calls.append(1), 2 * g)[1],)

    return primitive(double)


def test_every_node_of_a_diamond_is_visited_once():
    calls = []
    x = ml.Tensor(1.0, requires_grad=True)
    y = counted(calls)(x)
    for _ in range(60):  # 2^60 paths lead from the end to the start
        y = y + y
    assert ml.grad(y, [x])[0] == 2.0**61
    assert len(calls) == 1


def test_uneven_paths_meet_before_they_go_on():
    x = ml.Tensor(2.0, requires_grad=True)
    h = x * x
    assert ml.grad(h * h * h + h + x, [x])[0] == 6 * 2.0**5 + 2 * 2.0 + 1


def test_gradients_with_respect_to_tensors_in_between():
    x = leaf(4)
    h = ops.exp(x)
    y = (h * x).sum()
    of_x, of_h, of_y = ml.grad(y, [x, h, y])
    np.testing.assert_allclose(of_h, x.data)
    np.testing.assert_allclose(of_x, h.data * x.data + h.data)
    assert of_y == 1.0


def test_branches_that_lead_to_no_wanted_input_are_not_walked():
    calls = []
    x, other = leaf(3), leaf(3, seed=1)
    y = (x * counted(calls)(other)).sum()
    ml.grad(y, [x])
    assert calls == []


def test_an_input_that_is_not_reached_gets_zeros():
    x, other = leaf(3), leaf(2, 5, dtype=np.float32)
    g = ml.grad((x * x).sum(), [other, x])
    assert g[0].shape == (2, 5) and g[0].dtype == np.float32 and not g[0].any()
    np.testing.assert_allclose(g[1], 2 * x.data)


def test_the_same_input_twice():
    x = leaf(3)
    first, second = ml.grad((x * x).sum(), [x, x])
    np.testing.assert_array_equal(first, second)
    assert not np.shares_memory(first, second)


def test_a_cotangent_weighs_the_outputs():
    x = leaf(2, 3)
    v = np.arange(6.0).reshape(2, 3)
    for cotangent in (v, ml.Tensor(v), v.tolist(), v.astype(int)):
        np.testing.assert_allclose(ml.grad(ops.exp(x), [x], cotangent)[0], v * np.exp(x.data))
    ops.exp(x).backward(v)
    np.testing.assert_allclose(x.grad, v * np.exp(x.data))


def test_a_cotangent_of_another_shape():
    with pytest.raises(ValueError, match=r"cotangent has shape \(3,\), the output \(2, 3\)"):
        ml.grad(leaf(2, 3) * 1, [leaf(1)], np.ones(3))


def test_one_number_in_any_shape_needs_no_cotangent():
    x = leaf(1, 1)
    assert ml.grad(3 * x, [x])[0].tolist() == [[3.0]]


@pytest.mark.parametrize("walk", [lambda y, x: ml.grad(y, [x]), lambda y, x: y.backward()], ids=["grad", "backward"])
def test_a_freed_tape(walk):
    x = leaf(3)
    y = ops.exp(x).sum()
    walk(y, x)
    with pytest.raises(ValueError, match=r"tape was already freed at .*retain_graph=True"):
        walk(y, x)


def test_a_tape_freed_in_part():
    x = leaf(3)
    h = ops.exp(x)
    ml.grad(h.sum(), [x])
    with pytest.raises(ValueError, match="already freed at 'exp'"):
        (h * 2).sum().backward()
    assert x.grad is None


def test_retain_graph():
    x = leaf(3)
    y = (ops.exp(x) * x).sum()
    first = ml.grad(y, [x], retain_graph=True)[0]
    np.testing.assert_array_equal(ml.grad(y, [x], retain_graph=True)[0], first)
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_array_equal(x.grad, first + first)
    with pytest.raises(ValueError, match="already freed"):
        y.backward()


def test_an_output_that_is_no_scalar():
    with pytest.raises(ValueError, match=r"shape \(3,\), not one number; take .sum\(\) or .mean\(\)"):
        (leaf(3) * 2).backward()
    with pytest.raises(ValueError, match=r"shape \(0,\), not one number"):
        (leaf(0) * 2).backward()


def test_nothing_to_differentiate():
    x = leaf(3)
    with pytest.raises(ValueError, match="depends on no tensor with requires_grad=True"):
        ml.Tensor(1.0).backward()
    with pytest.raises(ValueError, match=r"input 1 \(shape \(2,\)\) has requires_grad=False"):
        ml.grad(x.sum(), [x, ml.Tensor([1.0, 2.0])])
    with pytest.raises(TypeError, match=r"grad\(output, \[x\]\)"):
        ml.grad(x.sum(), x)


def test_a_gradient_belongs_to_its_receiver_alone():
    """d(a + b) hands the same array to both sides; what is returned shares memory with nothing."""
    a, b, c = leaf(2, 3), leaf(2, 3, seed=1), leaf(6, seed=2)
    seed = np.ones((2, 3))
    expressions = [
        lambda: a + b,
        lambda: a + b + ops.reshape(c, (2, 3)),
        lambda: ops.transpose(ops.transpose(a)) + ops.concatenate([b, b])[:2] + c.reshape(2, 3),
        lambda: a * 1.0 - b,
        lambda: ops.exp(a) + b,
    ]
    for expression in expressions:
        y = expression()
        gradients = ml.grad(y, [a, b, c, y], seed)
        owners = [*gradients, seed, a.data, b.data, c.data, y.data]
        for one, other in itertools.combinations(owners, 2):
            assert not np.shares_memory(one, other)
        assert all(g.flags.writeable for g in gradients)
        gradients[0] += 1
    y = a + b
    y.backward(seed)
    y = a.sum() + b.sum()
    y.backward()
    a.grad *= 0
    np.testing.assert_array_equal(b.grad, seed + 1)
    np.testing.assert_array_equal(seed, 1)


# ---- what needs a gradient


def test_requires_grad_of_leaves_can_be_changed():
    x, w = leaf(3), leaf(3, seed=1)
    w.requires_grad = False
    assert not w.requires_grad
    (x * w).sum().backward()
    assert w.grad is None and x.grad is not None
    w.requires_grad = True
    w.requires_grad = True
    (x * w).sum().backward()
    np.testing.assert_array_equal(w.grad, x.data)


def test_requires_grad_of_a_computed_tensor_cannot():
    y = leaf(3) * 2
    for value in (True, False):
        with pytest.raises(ValueError, match=r"only a leaf can be frozen. Use .detach\(\)"):
            y.requires_grad = value
    assert y.requires_grad and not y.detach().requires_grad


@pytest.mark.parametrize("data", [[1, 2], np.array([True]), np.uint8(3)], ids=["int", "bool", "uint8"])
def test_whole_numbers_have_no_gradient(data):
    with pytest.raises(TypeError, match="gradients need floating-point data, got dtype"):
        ml.Tensor(data, requires_grad=True)
    assert not ml.Tensor(data).requires_grad


def test_detach_shares_data_and_stops_gradients():
    x = leaf(3)
    y = x.detach()
    assert y.data is x.data
    np.testing.assert_array_equal(ml.grad((x * y).sum(), [x])[0], x.data)


def test_no_grad_records_nothing_and_can_be_nested_and_reused():
    x = leaf(3)
    quiet = ml.no_grad()
    with quiet:
        with quiet:
            assert not (x * 2).requires_grad
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad
    with pytest.raises(KeyError), ml.no_grad():
        raise KeyError
    assert (x * 2).requires_grad


def test_no_grad_is_per_thread():
    x, inside, done, seen = leaf(3), threading.Event(), threading.Event(), []

    def quietly():
        with ml.no_grad():
            inside.set()
            done.wait(10)
            seen.append((x * 2).requires_grad)

    thread = threading.Thread(target=quietly)
    thread.start()
    assert inside.wait(10)
    seen.append((x * 2).requires_grad)
    done.set()
    thread.join()
    assert seen == [True, False]


# ---- a leaf is one leaf for its life


def test_freezing_and_thawing_between_forward_and_backward_loses_nothing():
    x, w = ml.Tensor(3.0, requires_grad=True), ml.Tensor(2.0, requires_grad=True)
    y = x * x * w
    x.requires_grad = False
    y.backward(retain_graph=True)
    assert x.grad is None and w.grad == 9.0  # frozen now: it receives none, and the other its own
    x.requires_grad = True
    y.backward(retain_graph=True)
    assert x.grad == 12.0 and w.grad == 18.0
    assert ml.grad(y, [x])[0] == 12.0


@pytest.mark.parametrize("before, after", [("float32", "float64"), ("float64", "float32")])
def test_gradients_have_the_precision_that_the_data_has(before, after):
    x = ml.Tensor(np.array([3.0, 0.1], before), requires_grad=True)
    w = ml.Tensor(np.array([1.0, 1 / 3]), requires_grad=True)
    early = (x * x * w).sum()
    x.data = x.data.astype(after)
    g = ml.grad(early, [x])[0]
    assert g.dtype == after
    np.testing.assert_allclose(g, 2 * np.array([3.0, 0.1], before) * w.data, rtol=1e-6)
    g = ml.grad((x * w).sum(), [x])[0]
    assert g.dtype == after and g.tolist() == w.data.astype(after).tolist()  # 1/3 to the last digit


def test_data_of_another_shape():
    x = ml.Tensor(2.0, requires_grad=True)
    w = ml.Tensor(np.arange(3.0), requires_grad=True)
    early, early_too = (x * w).sum(), (x + w).sum()
    x.data = np.ones(3)
    for y in (early, early_too):
        with pytest.raises(ValueError, match=r"changed shape, .*run the forward pass again"):
            y.backward()
    assert x.grad is None and w.grad is None
    (x * w).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 2.0]


def test_data_that_is_no_array_becomes_one_and_what_is_no_number_is_refused():
    x = ml.Tensor([1.0, 2.0], requires_grad=True)
    x.data = [3.0, 4.0]
    assert ml.grad((x * x).sum(), [x])[0].tolist() == [6.0, 8.0]
    x.data = ml.Tensor([5.0])
    assert x.data.tolist() == [5.0]
    for wrong in ("abc", None, [1, 2]):
        with pytest.raises(TypeError, match=r"expected numbers|need floating-point data"):
            x.data = wrong
    assert x.data.tolist() == [5.0]


# ---- what is not reached


def test_what_is_not_reached_is_told_from_what_is_zero():
    x, other, flat = leaf(3), leaf(2, dtype=np.float32), leaf(3)
    loss = lambda: (x * x + 0.0 * flat).sum()
    zeros = ml.grad(loss(), [x, other, flat])
    assert [g.any() for g in zeros] == [True, False, False] and zeros[1].dtype == np.float32
    _, unreached, zero = ml.grad(loss(), [x, other, flat], unused="none")
    assert unreached is None and zero.tolist() == [0, 0, 0]
    y = loss()
    with pytest.raises(ValueError, match=r"does not depend on input 1 \(shape \(2,\)\)"):
        ml.grad(y, [x, other], unused="error")
    ml.grad(y, [x, flat], unused="error")  # what was refused freed nothing
    with pytest.raises(ValueError, match="unused = 'maybe', expected one of 'zeros', 'none', 'error'"):
        ml.grad(y, [x], unused="maybe")


def test_backward_leaves_none_where_nothing_arrives():
    x, other = leaf(3), leaf(3, seed=1)
    chosen = ml.ops.where(other, x, 0.0)  # a condition has no derivative
    chosen.sum().backward()
    assert x.grad is not None and other.grad is None


# ---- values that change under the tape

WRITES = {
    "in place": lambda w: w._assign(w.data.__isub__(1.0)),
    "x.data -= step": lambda w: exec("w.data -= 1.0", {"w": w}),
    "into the array": lambda w: (w.data.__setitem__(0, 5.0), w.changed()),
    "into a view": lambda w: ml.Tensor(w.data[:1]).changed(),
    "replaced": lambda w: (setattr(w, "data", w.data + 1), w.changed()),
}
NEEDS_W = {
    "multiply": lambda x, w: x * w,
    "divide": lambda x, w: x / w,
    "matmul": lambda x, w: x @ w,
    "power": lambda x, w: x**w,
}


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("name", ["multiply", "divide", "matmul", "power"])
def test_a_value_that_was_written_over_is_refused(name, write, frozen):
    x, w = ml.Tensor([1.0, 2.0, 3.0], True), ml.Tensor([2.0, 3.0, 4.0], not frozen)
    y = NEEDS_W[name](x, w).sum()
    WRITES[write](w)
    before = w.version
    for _ in range(2):  # and what was refused freed nothing
        with pytest.raises(
            ValueError, match=rf"^backward: {name} needs its .* \(3.* at version 0, and it is at version 1"
        ):
            y.backward()
    assert x.grad is None and w.grad is None and w.version == before
    NEEDS_W[name](x, w).sum().backward()  # the next forward pass is as good as any


@pytest.mark.parametrize("write", WRITES)
def test_what_needs_no_value_minds_no_change(write):
    x, w = ml.Tensor([1.0, 2.0, 3.0], True), ml.Tensor([1.0, 2.0, 3.0], True)
    for y, expected in [((x + w).sum(), 1), ((x - w).sum(), 1), (ops.concatenate([x, w])[:3].sum(), 1)]:
        WRITES[write](w)
        WRITES[write](x)
        assert ml.grad(y, [x])[0].tolist() == [expected] * 3
    y = (x * 2).sum() + w.sum()
    WRITES[write](w)
    y.backward()


def test_the_argument_is_named():
    x, A, B = ml.Tensor(np.ones((1, 3)), True), ml.Tensor(np.ones((2, 3)), True), ml.Tensor(np.ones((4, 2)), True)
    W = ml.Tensor(np.ones((4, 3)))
    for changed, words in [
        (A, "argument 'lora_A' (2, 3)"),
        (B, "argument 'lora_B' (4, 2)"),
        (W, "'weight' (4, 3)"),
        (x, "argument 'x'"),
    ]:
        y = ops.lora_linear(x, W, None, A, B, 0.5).sum()
        changed.changed()
        with pytest.raises(ValueError, match=rf"^backward: lora_linear needs its {re.escape(words)}"):
            y.backward()


def test_a_replaced_array_is_the_tapes_own():
    x, w = ml.Tensor(3.0, True), ml.Tensor(2.0, True)
    y = x * w
    w.data = np.array(7.0)
    assert ml.grad(y, [x])[0] == 2.0  # the value of that forward pass


def test_versions_count_what_was_told():
    x = ml.Tensor(np.zeros(4))
    assert x.version == 0
    for times in (1, 2, 3):
        x.changed()
        assert x.version == times
    assert ml.Tensor(x).version == 3 and ml.Tensor(np.zeros(4)).version == 0
    assert ml.Tensor(x.data[:2]).version == 0  # as far as anybody said
    w = ml.Tensor(np.ones(4), requires_grad=True)
    y = (w * x).sum()
    for _ in range(20):
        x.changed()
    with pytest.raises(ValueError, match=r"multiply needs its 'b' .* and it is at version 23"):
        y.backward()


def test_neighbours_in_one_buffer_are_told_apart():
    buffer = np.ones(6)
    a, b, x = ml.Tensor(buffer[:3]), ml.Tensor(buffer[3:]), leaf(3)
    y, z = (x * a).sum(), (x * b).sum()
    a.changed()
    z.backward()
    with pytest.raises(ValueError, match="multiply needs its 'b'"):
        y.backward()


# ---- copies


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_a_copy_is_a_leaf_of_its_own(duplicate):
    x = leaf(2, 3)
    computed = x * 2
    both = duplicate({"x": x, "again": x, "computed": computed, "frozen": ml.Tensor([1, 2])})
    twin = both["x"]
    np.testing.assert_array_equal(twin.data, x.data)
    assert twin.requires_grad and both["again"] is twin
    assert not both["computed"].requires_grad and not both["frozen"].requires_grad
    assert not np.shares_memory(twin.data, x.data)
    (twin * twin).sum().backward()
    assert x.grad is None
    np.testing.assert_allclose(twin.grad, 2 * x.data)


# ---- a Tensor behaves like an array

OPERATORS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "**": lambda a, b: a**b,
}
PARTNERS = [2, 0.5, np.float64(1.5), np.array(2.0), np.array([1.0, 2.0, 3.0]), np.array([[1.0], [2.0]])]


@pytest.mark.parametrize("symbol", OPERATORS)
@pytest.mark.parametrize("partner", PARTNERS, ids=repr)
def test_operators_on_either_side(symbol, partner):
    operator, data = OPERATORS[symbol], np.array([[1.0, 2.0, 3.0], [0.5, 1.5, 2.5]])
    x = ml.Tensor(data, requires_grad=True)
    for result, expected in [
        (operator(x, partner), operator(data, partner)),
        (operator(partner, x), operator(partner, data)),
        (operator(x, ml.Tensor(partner)), operator(data, partner)),
    ]:
        assert isinstance(result, ml.Tensor) and result.requires_grad
        np.testing.assert_allclose(result.data, expected, rtol=1e-15)
        assert ml.grad(result.sum(), [x])[0].shape == data.shape


def test_matmul_on_either_side():
    x, m = leaf(2, 3), np.arange(6.0).reshape(3, 2)
    for result, expected in [(x @ m, x.data @ m), (m @ x, m @ x.data)]:
        assert isinstance(result, ml.Tensor) and result.requires_grad
        np.testing.assert_allclose(result.data, expected)


def test_in_place_operators_make_a_new_tensor():
    x = leaf(3)
    y = x
    y += 1.0
    assert y is not x and y.requires_grad
    np.testing.assert_array_equal(y.data, x.data + 1)


def test_methods_are_numpys():
    x = ml.Tensor(np.abs(np.random.default_rng(0).standard_normal((2, 3, 4))) + 0.1)
    d = x.data
    pairs = [
        (-x, -d),
        (x.exp(), np.exp(d)),
        (x.log(), np.log(d)),
        (x.sqrt(), np.sqrt(d)),
        (x.tanh(), np.tanh(d)),
        (x.sum(), d.sum()),
        (x.sum(1, keepdims=True), d.sum(1, keepdims=True)),
        (x.mean(axis=(0, -1)), d.mean(axis=(0, -1))),
        (x.max(-1), d.max(-1)),
        (x.T, d.T),
        (x.transpose(), d.transpose()),
        (x.transpose(1, 0, 2), d.transpose(1, 0, 2)),
        (x.transpose((2, 0, 1)), d.transpose(2, 0, 1)),
        (x.reshape(6, 4), d.reshape(6, 4)),
        (x.reshape((4, -1)), d.reshape(4, -1)),
        (x.reshape(-1), d.reshape(-1)),
        (x[1, ..., ::2], d[1, ..., ::2]),
        (x[:, None], d[:, None]),
    ]
    for result, expected in pairs:
        assert isinstance(result, ml.Tensor)
        np.testing.assert_allclose(result.data, expected, rtol=1e-14)


def test_comparisons_give_plain_booleans():
    x, y = ml.Tensor([1.0, 2.0, 3.0]), ml.Tensor([3.0, 2.0, 1.0])
    for other in (y, y.data, 2.0):
        value = other.data if isinstance(other, ml.Tensor) else other
        pairs = [(x == other, x.data == value), (x != other, x.data != value), (x < other, x.data < value)]
        pairs += [(x <= other, x.data <= value), (x > other, x.data > value), (x >= other, x.data >= value)]
        for result, expected in pairs:
            assert type(result) is np.ndarray and result.dtype == bool
            np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(y.data < x, y.data < x.data)
    assert len({x, y, x}) == 2  # hashed by identity


def test_shape_and_conversion_to_numbers():
    x = ml.Tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert (x.shape, x.ndim, x.size, x.dtype, len(x)) == ((2, 3), 2, 6, np.float64, 2)
    assert [row.data.tolist() for row in x] == x.data.tolist()
    one = ml.Tensor([2.5])
    assert one.item() == 2.5 and float(ml.Tensor(2.5)) == 2.5 and int(ml.Tensor(2.5)) == 2 and bool(ml.Tensor(1.0))
    assert f"{one:.3f}" == "2.500" and f"{one}" == repr(one)
    assert x.numpy() is x.data
    np.testing.assert_array_equal(np.asarray(x), x.data)
    assert np.asarray(x, dtype=np.float32).dtype == np.float32
    assert 2.0 in x and 7.0 not in x
    with pytest.raises(ValueError, match=r"^item: got shape \(2, 3\), expected one number"):
        x.item()
    with pytest.raises(TypeError, match=r"^astype: .*'abc'"):
        x.astype("abc")
    with pytest.raises(TypeError):
        len(ml.Tensor(1.0))
    with pytest.raises(ValueError):
        bool(x == x)


def test_iterating_keeps_gradients():
    x = leaf(3, 2)
    first, _, last = x
    assert ml.grad((first * last).sum(), [x])[0].tolist() == [last.data.tolist(), [0.0, 0.0], first.data.tolist()]


def test_repr_says_data_dtype_and_origin():
    x = ml.Tensor([1.0, 2.0], requires_grad=True)
    assert repr(x) == "Tensor([1., 2.], float64, requires_grad=True)"
    assert repr(x * 2) == "Tensor([2., 4.], float64, from=multiply)"
    assert repr(ml.Tensor(np.float32([1, 2]))) == "Tensor([1., 2.], float32)"
    assert len(repr(ml.Tensor(np.zeros((1000, 1000))))) < 500
    assert repr((x * 2).node) == "Node(multiply, (2,), float64)"


def test_a_tensor_of_a_tensor_shares_its_data():
    x = leaf(3)
    assert ml.Tensor(x).data is x.data and not ml.Tensor(x).requires_grad


# ---- depth, threads, memory

DEPTH = 50_000


@pytest.mark.slow
def test_a_chain_of_50000_nodes_differentiates():
    x = ml.Tensor(1.0, requires_grad=True)
    y = x
    for _ in range(DEPTH):
        y = y * 1.0001
    assert ml.grad(y, [x])[0] == pytest.approx(1.0001**DEPTH, rel=1e-9)


@pytest.mark.slow
def test_a_chain_of_50000_nodes_is_forgotten_without_recursion():
    x = ml.Tensor(1.0, requires_grad=True)
    y = x
    for _ in range(DEPTH):
        y = y * 1.0001
    del y
    y = x
    for _ in range(DEPTH):
        y = y + x
    y.backward()
    assert x.grad == DEPTH + 1


def test_16_losses_over_shared_parameters_on_4_threads_are_bit_identical():
    rng = np.random.default_rng(0)
    table, ln_w, ln_b = leaf(11, 8), leaf(8, seed=1), leaf(8, seed=2)
    q, k, v, up, down = (leaf(*s, seed=i) for i, s in enumerate([(8, 8)] * 3 + [(16, 8), (8, 16)]))
    parameters = [table, ln_w, ln_b, q, k, v, up, down]
    batches = rng.integers(0, 11, (16, 4, 9))

    def gradients(tokens):
        x = ops.embedding(table, tokens[:, :-1])  # (4, 8, 8)
        h = ops.layer_norm(x, ln_w, ln_b)
        x = x + ops.attention(*(ops.linear(h, w) for w in (q, k, v)))
        x = x + ops.linear(ops.gelu(ops.linear(x, up)), down)
        loss = ops.cross_entropy(ops.linear(x, table), tokens[:, 1:])
        return [loss.data, *ml.grad(loss, parameters)]

    alone = [gradients(tokens) for tokens in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for expected, got in zip(alone, pool.map(gradients, batches), strict=True):
                for a, b in zip(expected, got, strict=True):
                    assert a.tobytes() == b.tobytes()
    assert all(p.grad is None for p in parameters)


LAYERS = 24
FROZEN = {  # one layer with a frozen weight, and the same one through another primitive
    "linear": lambda x, w, b: ops.linear(x, w, b),
    "matmul": lambda x, w, b: x @ w.T + b,
}


def held_bytes(layer, x, weights, biases):
    """Bytes that are alive because of the output and its tape, in units of one activation."""
    gc.collect()
    tracemalloc.start()
    try:
        y = x
        for w, b in zip(weights, biases, strict=True):
            y = layer(y, w, b)
        gc.collect()
        with_tape = tracemalloc.get_traced_memory()[0]
        ml.grad(y, [x], np.ones(y.shape))
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    return with_tape / y.data.nbytes, after / y.data.nbytes


@pytest.mark.slow
@pytest.mark.parametrize("kind", FROZEN)
def test_24_frozen_layers_hold_no_more_than_2_activations(kind):
    """The output is one activation. Were the weights trainable, every layer would keep its input as well."""
    x = leaf(512, 64)
    weights = [ml.Tensor(w) for w in np.random.default_rng(1).standard_normal((LAYERS, 64, 64)) / 8]
    biases = [ml.Tensor(np.zeros(64)) for _ in range(LAYERS)]
    held, after = held_bytes(FROZEN[kind], x, weights, biases)
    assert held <= 2
    assert after <= 1.5
    for w in weights:
        w.requires_grad = True
    held, after = held_bytes(FROZEN[kind], x, weights, biases)
    assert held >= LAYERS  # the inputs of layers 2 to 24, and the output: the measurement sees what is kept
    assert after <= 1.5  # and differentiating lets go of it


def test_a_node_holds_no_vjp_of_a_frozen_input():
    x, w, b = leaf(3, 4), ml.Tensor(np.ones((5, 4))), leaf(5)
    node = ops.linear(x, w, b).node
    assert (node.name, node.shape) == ("linear", (3, 5))
    assert [vjp is None for vjp in node.vjps] == [False, True, False]
    assert [source is None for source in node.inputs] == [False, True, False]


def test_a_tensor_where_there_is_no_derivative_is_refused():
    x, w, a, b = (ml.Tensor(np.ones(shape), True) for shape in ((2, 3), (4, 3), (1, 3), (4, 1)))
    scale = ml.Tensor(2.0, requires_grad=True)
    with pytest.raises(TypeError, match="lora_linear has no derivative in its argument 5"):
        ml.ops.lora_linear(x, w, None, a, b, scale).sum().backward()


def test_a_numpy_scale_keeps_float32():
    x, w, a, b = (np.ones(shape, np.float32) for shape in ((2, 3), (4, 3), (1, 3), (4, 1)))
    assert ml.ops.lora_linear(x, w, None, a, b, np.float64(0.5)).dtype == np.float32


@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "tanh", "negative"])
def test_numpy_functions_of_a_tensor_are_primitives(name):
    x = ml.Tensor([0.5, 2.0], requires_grad=True)
    y = getattr(np, name)(x)
    np.testing.assert_array_equal(y.data, getattr(np, name)(x.data))
    own = ml.ops.PRIMITIVES["negate" if name == "negative" else name](x)
    np.testing.assert_array_equal(ml.grad(y.sum(), [x])[0], ml.grad(own.sum(), [x])[0])


def test_numpy_functions_without_a_primitive_say_so():
    x = ml.Tensor([0.5, 2.0], requires_grad=True)
    with pytest.raises(TypeError, match=r"np\.arctan has no derivative here"):
        np.arctan(x)
    with pytest.raises(TypeError, match=r"np\.add has no derivative here"):
        np.add.reduce(x)
    np.testing.assert_array_equal(np.array([1.0, 1.0]) < x, [False, True])


def test_lists_are_arrays():
    np.testing.assert_array_equal(ml.ops.add([1.0, 2.0], [3.0, 4.0]).data, [4.0, 6.0])
    assert ml.ops.softmax([[1.0, 2.0, 3.0]]).shape == (1, 3)
    assert ml.ops.reshape([1.0, 2.0], [2, 1]).shape == (2, 1)
