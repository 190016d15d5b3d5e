"""gradcheck itself: it passes what is right, fails what is wrong, says where, and leaves everything as it was."""

import numpy as np
import pytest

import minilora as ml
from minilora import ops
from minilora.autograd.examples import EXAMPLES
from minilora.autograd.tensor import primitive

METHODS = ["central", "complex-step", "directional"]


@primitive
def square_wrong_at_one_entry(x):
    """x^2, with 0.5 too much in the gradient of entry (1, 2)."""

    def vjp(g):
        dx = 2 * x * g
        dx[1, 2] += 0.5 * g[1, 2]
        return dx

    return x * x, (vjp,)


@primitive
def square_without_a_number(x):
    """x^2, with a gradient that is not a number at one entry."""

    def vjp(g):
        dx = 2 * x * g
        dx[0, 1] = np.nan
        return dx

    return x * x, (vjp,)


def values(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("method", METHODS)
def test_right_gradients_pass(method):
    report = ml.gradcheck(lambda a, b: ops.tanh(a @ b) * b.sum(), [values(3, 4), values(4, 2)], method)
    assert report and report.passed
    assert report.method == method
    assert report.relative <= {"central": 1e-6, "complex-step": 1e-12, "directional": 1e-6}[method]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrong", [square_wrong_at_one_entry, square_without_a_number])
def test_wrong_gradients_fail(method, wrong):
    report = ml.gradcheck(lambda x, y: wrong(x) * y, [values(3, 4), values(3, 4, seed=1)], method)
    assert not report and not report.passed
    assert "FAIL" in str(report)


@pytest.mark.parametrize("method", ["central", "complex-step"])
def test_the_report_says_where_and_shows_the_two_numbers(method):
    x, y = values(3, 4), values(3, 4, seed=1)
    report = ml.gradcheck(lambda x, y: (square_wrong_at_one_entry(x) * y).sum(), [x, y], method, names=["x", "y"])
    wrong, right = report.inputs
    assert (wrong.name, wrong.shape, wrong.where, wrong.passed) == ("x", (3, 4), (1, 2), False)
    assert wrong.tape == pytest.approx((2 * x[1, 2] + 0.5) * y[1, 2])
    assert wrong.reference == pytest.approx(2 * x[1, 2] * y[1, 2])
    assert wrong.absolute == pytest.approx(abs(0.5 * y[1, 2]))
    assert wrong.relative == pytest.approx(abs(0.5 * y[1, 2]) / np.abs(2 * x * y).max())
    assert (right.name, right.passed) == ("y", True)
    assert report.relative == wrong.relative


def test_an_error_at_an_entry_of_a_view_is_named_in_the_inputs_own_order():
    x = np.ascontiguousarray(values(3, 4).T).T
    report = ml.gradcheck(lambda x: square_wrong_at_one_entry(x).sum(), [x])
    assert report.inputs[0].where == (1, 2)


def test_a_gradient_that_is_not_a_number_has_an_infinite_error():
    report = ml.gradcheck(lambda x: square_without_a_number(x).sum(), [values(3, 4)])
    assert report.inputs[0].where == (0, 1) and report.relative == np.inf


def test_a_missing_gradient_fails():
    """The function uses x behind the tape's back, so the tape's gradient of that part is zero."""
    report = ml.gradcheck(lambda x: (x * ops.exp(x.detach())).sum(), [values(3)])
    assert not report.passed


def test_many_outputs_are_all_checked():
    @primitive
    def wrong_for_the_last_output(x):
        def vjp(g):
            g = g.copy()
            g[-1] *= 1.01
            return 3 * g

        return 3 * x, (vjp,)

    for method in METHODS:
        assert not ml.gradcheck(wrong_for_the_last_output, [values(5)], method).passed


class Disaster(Exception):
    pass


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("failing_call", [None, 1, 2, 3, 4])
def test_inputs_are_put_back_bit_for_bit(method, failing_call):
    """Also when the function raises, whether at its first use or halfway through the entries."""
    calls = []

    def function(a, b):
        calls.append(1)
        if len(calls) == failing_call:
            raise Disaster
        return (a * b + shared).sum()

    shared = ml.Tensor(values(2, 3, seed=2), requires_grad=True)
    plain, tensor = values(2, 3), ml.Tensor(values(2, 3, seed=1).T.copy().T, requires_grad=True)
    held = [plain, tensor.data, shared.data]
    before = [x.tobytes() for x in held]
    try:
        ml.gradcheck(function, [plain, tensor], method)
        raised = False
    except Disaster:
        raised = True
    assert raised == (failing_call is not None and failing_call <= len(calls))
    assert tensor.data is held[1] and shared.data is held[2]
    assert [x.tobytes() for x in held] == before
    assert tensor.grad is None and shared.grad is None and tensor.requires_grad


def test_parameters_that_the_function_does_not_take_as_arguments():
    w, b = ml.Tensor(values(4, 3), requires_grad=True), ml.Tensor(values(4), requires_grad=True)
    x = values(5, 3)
    for method in METHODS:
        assert ml.gradcheck(lambda *_: ops.tanh(ops.linear(x, w, b)), [w, b], method).passed


@pytest.mark.parametrize("method, calls_each", [("central", 2), ("complex-step", 1)])
def test_max_entries_bounds_the_work(method, calls_each):
    calls = []

    def function(x):
        calls.append(1)
        return (x * x).sum()

    report = ml.gradcheck(function, [values(20, 30)], method, max_entries=7)
    assert report.passed
    assert 7 * calls_each <= len(calls) <= 7 * calls_each + 2
    calls.clear()
    assert ml.gradcheck(function, [values(2, 2)], method, max_entries=7).passed
    assert 4 * calls_each <= len(calls) <= 4 * calls_each + 2


def test_max_entries_looks_at_drawn_entries_that_follow_rng():
    x = values(20, 30)
    places = {ml.gradcheck(lambda x: ops.exp(x).sum(), [x], max_entries=1, rng=r).inputs[0].where for r in range(9)}
    assert len(places) > 1
    reports = [ml.gradcheck(ops.exp, [x], max_entries=5, rng=3) for _ in range(2)]
    assert reports[0] == reports[1]


def test_the_directional_check_costs_three_calls_however_large_the_input():
    calls = []

    def function(x, y):
        calls.append(1)
        return ops.gelu(x @ y).mean()

    assert ml.gradcheck(function, [values(100, 80), values(80, 90)], "directional").passed
    assert len(calls) == 3


def test_tolerance_can_be_chosen():
    @primitive
    def nearly(x):
        return x * x, (lambda g: 2.0002 * x * g,)

    assert not ml.gradcheck(nearly, [values(3)]).passed
    assert ml.gradcheck(nearly, [values(3)], tolerance=1e-3).passed


def test_one_array_needs_no_list_and_whole_numbers_become_float64():
    assert ml.gradcheck(ops.exp, values(3)).passed
    assert ml.gradcheck(ops.exp, [np.array([1, 2])]).passed
    assert ml.gradcheck(ops.exp, [values(3).astype(np.float32)]).passed


def test_a_zero_gradient_and_an_unused_input_pass():
    for method in METHODS:
        assert ml.gradcheck(lambda x, y: ops.softmax(x).sum() + 0 * y.sum(), [values(3, 4), values(2)], method).passed
        assert ml.gradcheck(lambda x, y: ops.exp(x).sum(), [values(3), values(2)], method).passed


def test_an_unknown_method():
    with pytest.raises(ValueError, match="method = 'guess', expected one of 'central', 'complex-step', 'directional'"):
        ml.gradcheck(ops.exp, [values(3)], "guess")


def test_leaves_that_cannot_be_checked():
    single = ml.Tensor(values(3).astype(np.float32), requires_grad=True)
    with pytest.raises(ValueError, match="input 1 is a float32 tensor with requires_grad=True; expected a"):
        ml.gradcheck(ops.add, [values(3), single])
    with pytest.raises(ValueError, match="input 0 is a float64 tensor with requires_grad=False"):
        ml.gradcheck(ops.exp, [ml.Tensor(values(3))])
    with pytest.raises(ValueError, match="expected a float64 leaf"):
        ml.gradcheck(ops.exp, [ml.Tensor(values(3), requires_grad=True) * 2])


def test_a_function_that_returns_no_tensor():
    with pytest.raises(TypeError, match="the function returned ndarray, expected a Tensor"):
        ml.gradcheck(lambda x: np.exp(x.data), [values(3)])


@primitive
def real_part(x):
    return x.real * 1.0, (lambda g: g,)


@primitive
def to_float(x):
    return x.astype(float) * 2, (lambda g: 2 * g,)


@primitive
def through_float(x):
    return np.array([float(entry) for entry in x]), (lambda g: g,)


@primitive
def absolute(x):
    return np.abs(x), (lambda g: g * np.sign(x),)


@pytest.mark.parametrize("method", METHODS)
def test_a_complex_input_is_refused(method):
    """Its imaginary part would be dropped, and the check would pass at another point than the one asked for."""
    for given in (np.array([1 + 2j, 3.0]), [1j], ml.Tensor(np.array([1 + 0j]))):
        with pytest.raises(TypeError, match=r"^gradcheck: input 1 is complex; expected real numbers"):
            ml.gradcheck(ops.multiply, [values(1), given], method)


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_of_exactly_zero_beside_a_large_output(method):
    """Rounding of an output of 3e8 moves the central difference; a wrong gradient moves it further."""
    function = lambda x: 1e8 * ops.softmax(x).sum()
    assert ml.gradcheck(function, [values(3, 4)], method).passed

    @primitive
    def wrong(y, x):
        return y.copy(), (lambda g: g, lambda g: np.full(x.shape, 100.0) * g)

    assert not ml.gradcheck(lambda x: wrong(1e8 * ops.softmax(x).sum(), x), [values(3, 4)], method).passed


@pytest.mark.parametrize("function", [real_part, to_float, through_float, absolute])
def test_a_function_that_is_not_complex_safe(function):
    x = ml.Tensor(values(4), requires_grad=True)
    data = x.data
    with pytest.raises(TypeError, match=r"gradcheck: the function is not complex-safe \(.*method='central'"):
        ml.gradcheck(function, [x], "complex-step")
    assert x.data is data
    assert ml.gradcheck(function, [x], "central").passed


def test_the_report_prints_in_80_columns():
    shapes = {"x": (2, 3, 4), "input 0": (12, 100, 128), "lora_B": (512, 128), "bias": (7,), "scalar": ()}
    shapes["blocks.11.attn.q_proj.lora_A"] = (4, 128)
    leaves = [ml.Tensor(-1e-5 * np.ones(shape), requires_grad=True) for shape in shapes.values()]

    @primitive
    def wrong(*arrays):
        return np.stack([1e6 * (x * x).sum() for x in arrays]), tuple(
            lambda g, x=x, i=i: -1.234567e-3 * x * g[i] for i, x in enumerate(arrays)
        )

    for method in METHODS:
        report = ml.gradcheck(wrong, leaves, method, max_entries=3, names=list(shapes))
        lines = str(report).splitlines()
        assert not report.passed and max(map(len, lines)) <= 80, report
        assert lines[0].startswith(f"gradcheck, {method}: FAIL")
        if method != "directional":
            for name in shapes:
                assert sum(line.startswith(name) for line in lines) == 1
            assert sum(line.endswith("FAIL") for line in lines[1:]) == len(shapes)


def test_the_report_of_every_example_prints_in_80_columns():
    for name, example in EXAMPLES.items():
        report = ml.gradcheck(example.function(ops.PRIMITIVES[name]), example.inputs(np.random.default_rng(0)))
        assert max(len(line) for line in str(report).splitlines()) <= 80
        assert "FAIL" not in str(report) and str(report).startswith("gradcheck, central: pass")
