"""Optimisers against the formulas of their papers, written again for one number at a time."""

import math

import numpy as np
import pytest

import minilora as ml
from minilora.training.optim import Optimizer, clip_gradients, cosine_schedule

SHAPES = [(3, 2), (4,), (1, 1)]


def parameters(dtype="float64", rng=0):
    generator = np.random.default_rng(rng)
    return [ml.Tensor(generator.standard_normal(shape).astype(dtype), requires_grad=True) for shape in SHAPES]


def gradients(step, dtype="float64"):
    generator = np.random.default_rng(100 + step)
    return [generator.standard_normal(shape).astype(dtype) for shape in SHAPES]


def adamw_of_one_number(p, gs, lr, b1, b2, eps, decay):
    """Loshchilov & Hutter 2019, algorithm 2, line by line."""
    m = v = 0.0
    for t, g in enumerate(gs, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        p = p - lr * decay * p - lr * m_hat / (math.sqrt(v_hat) + eps)
    return p


def sgd_of_one_number(p, gs, lr, momentum, decay):
    v = 0.0
    for g in gs:
        v = momentum * v + g + decay * p
        p = p - lr * v
    return p


def assert_follows(optimizer, tensors, rule, steps=30):
    start = [p.data.copy() for p in tensors]
    arrays = [p.data for p in tensors]
    for step in range(steps):
        optimizer.step(gradients(step))
    for i, p in enumerate(tensors):
        assert p.data is arrays[i]  # in place
        for where in np.ndindex(p.shape):
            expected = rule(start[i][where], [gradients(step)[i][where] for step in range(steps)])
            assert math.isclose(p.data[where], expected, rel_tol=1e-12, abs_tol=1e-14)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3},
        {"betas": (0.0, 0.0), "weight_decay": 0.0},
    ],
)
def test_adamw_is_its_formula(settings):
    tensors = parameters()
    s = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, **settings}
    rule = lambda p, gs: adamw_of_one_number(p, gs, s["lr"], *s["betas"], s["eps"], s["weight_decay"])
    assert_follows(ml.AdamW(tensors, **settings), tensors, rule)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_sgd_is_its_formula(momentum, decay):
    tensors = parameters()
    optimizer = ml.SGD(tensors, lr=0.05, momentum=momentum, weight_decay=decay)
    assert_follows(optimizer, tensors, lambda p, gs: sgd_of_one_number(p, gs, 0.05, momentum, decay))


def test_the_learning_rate_may_change_between_steps():
    one, two = parameters(), parameters()
    a, b = ml.SGD(one, lr=0.1), ml.SGD(two, lr=99)
    b.lr = 0.1
    a.step(gradients(0))
    b.step(gradients(0))
    np.testing.assert_array_equal(one[0].data, two[0].data)


@pytest.mark.parametrize("make", [ml.AdamW, lambda p: ml.SGD(p, momentum=0.9), ml.SGD])
def test_steps_from_grad_and_from_arguments_are_the_same(make):
    one, two = parameters(), parameters()
    a, b = make(one), make(two)
    for step in range(3):
        a.step(gradients(step))
        for p, g in zip(two, gradients(step), strict=True):
            p.grad = g
        b.step()
        b.zero_grad()
        assert all(p.grad is None for p in two)
    for p, q in zip(one, two, strict=True):
        np.testing.assert_array_equal(p.data, q.data)


def test_a_parameter_without_gradient_stays():
    tensors = parameters()
    before = [p.data.copy() for p in tensors]
    ml.AdamW(tensors).step([gradients(0)[0], None, gradients(0)[2]])
    assert (tensors[0].data != before[0]).all()
    np.testing.assert_array_equal(tensors[1].data, before[1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("make", [ml.AdamW, lambda p: ml.SGD(p, momentum=0.9), ml.SGD])
def test_state_round_trip(make, dtype):
    one = parameters(dtype)
    a = make(one)
    for step in range(5):
        a.step(gradients(step, dtype))
    state = a.state_dict()
    two = [ml.Tensor(p.data.copy(), requires_grad=True) for p in one]
    b = make(two)
    b.load_state_dict(state)
    assert b.steps == 5
    for step in range(5, 9):
        a.step(gradients(step, dtype))  # the snapshot does not move with it
        b.step(gradients(step, dtype))
    for p, q in zip(one, two, strict=True):
        assert q.dtype == dtype
        np.testing.assert_array_equal(p.data, q.data)


def test_frozen_parameters_are_left_out():
    model = ml.add_lora(ml.GPT(ml.GPTConfig(11, 6, 1, 2, 8)), ml.LoRAConfig(rank=2))
    optimizer = ml.AdamW(model.named_parameters())
    assert [id(p) for p in optimizer.parameters] == [id(p) for p in model.parameters(trainable=True)]
    assert len(optimizer.parameters) == 4
    assert [id(p) for p in ml.SGD(model.parameters()).parameters] == [id(p) for p in optimizer.parameters]


def test_nothing_to_train():
    frozen = [ml.Tensor(np.ones(2)), ml.Tensor(np.ones(3))]
    with pytest.raises(ValueError, match="AdamW: none of the 2 parameters requires a gradient"):
        ml.AdamW(frozen)
    with pytest.raises(ValueError, match="SGD: none of the 0 parameters"):
        ml.SGD([])


@pytest.mark.parametrize("lr", [-0.1, float("nan")])
def test_wrong_learning_rate(lr):
    with pytest.raises(ValueError, match=r"lr = .*expected 0 or more"):
        ml.SGD(parameters(), lr=lr)


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, -0.1), (float("nan"), 0.9)])
def test_wrong_betas(betas):
    with pytest.raises(ValueError, match="betas = "):
        ml.AdamW(parameters(), betas=betas)


def test_wrong_gradients_change_nothing():
    tensors = parameters()
    optimizer = ml.AdamW(tensors)
    before = [p.data.copy() for p in tensors]
    with pytest.raises(ValueError, match="2 gradients for 3 parameters"):
        optimizer.step(gradients(0)[:2])
    for wrong in (np.ones((4, 1)), np.ones(()), np.ones(1)):  # the last two would broadcast silently
        with pytest.raises(ValueError, match=r"gradient 1 has shape .*expected \(4,\)"):
            optimizer.step([gradients(0)[0], wrong, gradients(0)[2]])
    assert optimizer.steps == 0
    for p, b in zip(tensors, before, strict=True):
        np.testing.assert_array_equal(p.data, b)


def test_state_of_other_parameters_is_refused():
    optimizer = ml.AdamW(parameters())
    optimizer.step(gradients(0))
    state = optimizer.state_dict()
    other = ml.AdamW(parameters()[::-1])
    for bad, message in (
        (state, r"m\.0: got shape \(3, 2\) of float64, expected \(1, 1\) of float64"),
        ({k: v for k, v in state.items() if k != "v.2"}, "optimizer state"),
        ({}, "optimizer state"),
    ):
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(bad)
        assert other.steps == 0
        assert not other.state
    with pytest.raises(ValueError, match="optimizer state"):
        ml.AdamW(parameters()[:2]).load_state_dict(state)  # one parameter fewer


def test_an_optimizer_without_a_rule():
    with pytest.raises(TypeError, match="no update rule"):
        Optimizer(parameters(), 0.1).step(gradients(0))


# Two learning rates


def test_a_group_learns_at_its_own_multiple_of_the_rate():
    """As an optimiser of its own would, at lr_ratio times lr; decay, too, and also after the rate has changed."""
    for make in (lambda p, lr: ml.AdamW(p, lr, weight_decay=0.1), lambda p, lr: ml.SGD(p, lr, 0.9, 0.1)):
        together, apart = parameters(), parameters()
        names = [("weight", together[0]), together[2]]
        both = make([{"params": [together[1]], "lr_ratio": 4}, {"params": names}], 0.01)
        slow, fast = make([apart[0], apart[2]], 0.01), make([apart[1]], 0.04)
        for step, lr in enumerate((0.01, 0.02, 0.005)):
            both.lr, slow.lr, fast.lr = lr, lr, 4 * lr
            g = gradients(step)
            both.step([g[1], g[0], g[2]])  # in the groups' order
            slow.step([g[0], g[2]])
            fast.step([g[1]])
        for p, q in zip(together, apart, strict=True):
            np.testing.assert_array_equal(p.data, q.data)


def test_frozen_parameters_are_left_out_of_groups():
    tensors = parameters()
    tensors[0].requires_grad = False
    groups = [{"params": tensors[:2], "lr_ratio": 3.0}, {"params": tensors[2:]}]
    optimizer = ml.AdamW(groups)
    assert [id(p) for p in optimizer.parameters] == [id(p) for p in tensors[1:]]
    assert optimizer.ratios == [3.0, 1.0]


@pytest.mark.parametrize(
    "group, message",
    [
        ({"lr_ratio": 0}, r"SGD: lr_ratio = 0, expected a positive number"),
        ({"lr_ratio": float("nan")}, "lr_ratio = nan"),
        ({"lr": 0.1}, "a group has the keys params, lr, expected params and lr_ratio"),
    ],
)
def test_wrong_groups(group, message):
    with pytest.raises(ValueError, match=message):
        ml.SGD([{"params": parameters(), **group}])


# Schedule


def test_schedule_climbs_in_a_line_and_falls_along_half_a_cosine():
    rates = [cosine_schedule(step, 100, 2.0, warmup=10, floor=0.5) for step in range(100)]
    np.testing.assert_allclose(rates[:10], 2.0 * np.arange(1, 11) / 10, rtol=1e-15)
    angles = np.linspace(0, math.pi, 91)[:90]
    np.testing.assert_allclose(rates[10:], 1.25 + 0.75 * np.cos(angles), rtol=1e-13)
    assert max(rates) == 2.0
    assert (np.diff(rates[10:]) <= 0).all()
    assert cosine_schedule(100, 100, 2.0, 10, 0.5) == 0.5
    assert cosine_schedule(1000, 100, 2.0, 10, 0.5) == 0.5


def test_schedule_without_warmup_and_with_nothing_but_warmup():
    assert cosine_schedule(0, 10, 3.0) == 3.0
    assert cosine_schedule(5, 10, 3.0) == pytest.approx(1.5, rel=1e-15)
    assert cosine_schedule(10, 10, 3.0) == 0.0
    assert [cosine_schedule(step, 2, 3.0, warmup=2) for step in (0, 1)] == [1.5, 3.0]


# Clipping


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 3.0])
def test_long_gradients_are_shortened_together(max_norm):
    gs = gradients(0)
    long = math.sqrt(sum(float(x) ** 2 for g in gs for x in g.ravel()))
    assert long > max_norm
    expected = [g * max_norm / (long + 1e-6) for g in gs]
    assert clip_gradients(gs, max_norm) == pytest.approx(long, rel=1e-13)
    for g, e in zip(gs, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-13)
    assert math.sqrt(sum(float((g * g).sum()) for g in gs)) == pytest.approx(max_norm, rel=1e-5)


def test_short_gradients_stay_as_they_are():
    gs = gradients(0)
    clip_gradients(gs, 100.0)
    for g, before in zip(gs, gradients(0), strict=True):
        np.testing.assert_array_equal(g, before)


@pytest.mark.parametrize("make", [lambda p: ml.AdamW(p, 0.1), lambda p: ml.SGD(p, 0.1, momentum=0.9, weight_decay=0.1)])
def test_large_parameters_are_updated_in_pieces_to_the_same_bits(make, monkeypatch):
    from minilora.training import optim

    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(7, 11)), rng.normal(size=(3, 7, 11))
    results = []
    for piece, order in ((10**6, "C"), (10, "C"), (10, "F")):  # whole; in 8 pieces; laid out so that it cannot be cut
        monkeypatch.setattr(optim, "PIECE", piece)
        p = ml.Tensor(np.array(start, order=order), requires_grad=True)
        optimizer = make([p])
        for g in gradients:
            optimizer.step([np.array(g, order=order)])
        results.append(p.data)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


# What is given to an optimiser


def a(value=1.0, **options):
    return ml.Tensor(np.full(2, value), requires_grad=True, **options)


@pytest.mark.parametrize("make", [ml.AdamW, ml.SGD])
def test_one_tensor_twice_is_refused_with_both_names(make):
    """It would be updated twice a step, by a gradient that holds both uses already."""
    p, q = a(), a()
    name = make.__name__
    for parameters, words in (
        ([p, p], "parameter 0 and parameter 1"),
        ([q, p, q], "parameter 0 and parameter 2"),
        ([("b.weight", p), ("head.weight", p)], r"b\.weight and head\.weight"),
        ([{"params": [p]}, {"params": [q, p]}], "parameter 0 of group 0 and parameter 1 of group 1"),
        ([p, {"params": p}], "parameter 0 and parameter 0 of group 1"),
    ):
        with pytest.raises(ValueError, match=f"{name}: {words} are one tensor, .* give it once"):
            make(parameters)


def test_tied_tables_are_one_parameter():
    """Two modules with one weight: listed once by the model, so that the optimiser has it once."""
    model = ml.GPT(ml.GPTConfig(11, 6, 2, 2, 8))
    model.blocks[1].attn.q_proj.weight = model.blocks[0].attn.q_proj.weight
    assert len({id(p) for p in ml.AdamW(model.named_parameters()).parameters}) == len(model.parameters())


ODD_PARAMETERS = [
    (lambda: None, "parameters is None"),
    (lambda: 5, "parameters is 5"),
    (lambda: "weights", "parameters is 'weights'"),
    (lambda: a(), r"parameters is a Tensor, expected a list of tensors: AdamW\(\[x\]\)"),
    (lambda: np.ones(3), "parameters is a ndarray"),
    (lambda: ml.GPT(ml.GPTConfig(11, 6, 1, 2, 8)), r"parameters is a GPT, .*: AdamW\(model\.parameters\(\)\)"),
    (lambda: {"params": [a()]}, "parameters is a dict"),
    (lambda: [np.ones(3)], r"parameter 0 is a ndarray, expected a Tensor, or a name and a Tensor"),
    (lambda: [a(), [a()]], "parameter 1 is a list"),
    (lambda: [a(), None], "parameter 1 is None"),
    (lambda: [a(), ("w", 3)], "parameter 1 is 3"),
    (lambda: [(a(), "w")], "parameter 0 is 'w'"),
    (lambda: [("w", a(), 1)], "parameter 0 is a tuple"),
    (lambda: [{"params": 3}], "parameters is 3"),
    (lambda: [{"params": [a(), "w"]}], "parameter 1 of group 0 is 'w'"),
    (lambda: [{}], "a group has the keys none, expected params and lr_ratio"),
    (lambda: [{1: 2, "params": [a()]}], "a group has the keys 1, params, expected"),
    (lambda: [{"params": [a()], "lr_ratio": "fast"}], "lr_ratio = 'fast', expected a positive number"),
    (lambda: [{"params": [a()], "lr_ratio": True}], "lr_ratio = True"),
    (lambda: [a(), a() * 2], "parameter 1 was computed from others"),
    (lambda: [ml.Tensor(np.ones(2, complex), requires_grad=True)], "parameter 0 has dtype complex128, expected real"),
    (lambda: iter([]), "none of the 0 parameters requires a gradient; a generator gives them once"),
]


@pytest.mark.parametrize("make, message", ODD_PARAMETERS)
def test_odd_parameters_are_named(make, message):
    with pytest.raises((TypeError, ValueError), match=f"^AdamW: {message}") as error:
        ml.AdamW(make())
    assert "\n" not in str(error.value)


def test_a_group_may_hold_one_tensor_or_a_generator():
    p, q = a(), a()
    optimizer = ml.SGD(iter([{"params": p, "lr_ratio": np.float32(2)}, {"params": (x for x in [q])}]))
    assert [id(x) for x in optimizer.parameters] == [id(p), id(q)]
    assert optimizer.ratios == [2.0, 1.0]


ODD_GRADIENTS = [
    (lambda: a().sum(), "gradients is a Tensor, expected a list of arrays"),
    (lambda: np.ones(2), "gradients is a ndarray"),
    (lambda: 0.5, "gradients is 0.5"),
    (lambda: "none", "gradients is 'none'"),
    (lambda: {"w": np.ones(2)}, "gradients is a dict"),
    (lambda: [a()], "gradient 0 is a Tensor, expected an array of real numbers, or None"),
    (lambda: [[1.0, 2.0]], "gradient 0 is a list"),
    (lambda: [1.0], "gradient 0 is 1.0"),
    (lambda: [np.array(["a", "b"])], "gradient 0 is a ndarray"),
    (lambda: [np.ones(2, complex)], "gradient 0 is a ndarray"),
]


@pytest.mark.parametrize("make, message", ODD_GRADIENTS)
def test_odd_gradients_are_named_and_change_nothing(make, message):
    p = a()
    optimizer = ml.SGD([p], momentum=0.9)
    with pytest.raises(TypeError, match=f"^SGD.step: {message}"):
        optimizer.step(make())
    with pytest.raises(TypeError, match=f"^clip_gradients: {message}"):
        clip_gradients(make(), 1.0)
    assert optimizer.steps == 0 and not optimizer.state
    np.testing.assert_array_equal(p.data, np.ones(2))


def test_a_step_without_any_gradient_is_an_error():
    optimizer = ml.AdamW([a(), a()])
    with pytest.raises(ValueError, match=r"AdamW\.step: none of the 2 parameters has a gradient; call loss\.backward"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"AdamW\.step: none of the 2 parameters has a gradient; the loss that"):
        optimizer.step([None, None])
    assert optimizer.steps == 0 and optimizer.ages == [0, 0]


def test_odd_states_are_refused():
    optimizer = ml.AdamW([a()])
    optimizer.step([np.ones(2)])
    state = optimizer.state_dict()
    for odd, message in (
        (None, "AdamW.load_state_dict: got None"),
        ([1], "AdamW.load_state_dict: got a list"),
        ({**state, "steps": 1.5}, "steps = 1.5, expected 0 or more, an integer"),
        ({**state, "steps": -1}, "steps = -1"),
        ({**state, "ages": np.array([-1])}, "ages: got"),
        ({**state, "ages": 3}, "ages: got"),
        ({**state, "m.0": [1.0, 2.0]}, r"m\.0: got"),
        ({**state, "m.0": np.ones(2, int)}, r"m\.0: got shape \(2,\) of int64, expected \(2,\) of float64"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            optimizer.load_state_dict(odd)
        assert optimizer.steps == 1
        np.testing.assert_array_equal(optimizer.state["m"][0], state["m.0"])


# Hyperparameters


NUMBERS = [-1, -1e-9, float("nan"), float("inf"), -float("inf"), "a", "0.1", None, True, False, 1j, [0.1], 10**400]
NUMBERS += [np.float64(-1), np.bool_(True), np.array([0.1, 0.2]), ml.Tensor(0.1)]


@pytest.mark.slow
@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize(
    "make, name",
    [
        *((ml.AdamW, name) for name in ("lr", "eps", "weight_decay", "betas")),
        *((ml.SGD, name) for name in ("lr", "momentum", "weight_decay")),
    ],
)
def test_hyperparameters_that_make_no_sense(make, name, value):
    given = [value, (value, 0.9), (0.9, value)] if name == "betas" else [value]
    for one in given:
        with pytest.raises((TypeError, ValueError), match=f"^{make.__name__}: {name} = ") as error:
            make([a()], **{name: one})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [0, 0.25, np.float32(0.25), np.float64(0.25), np.int64(0)], ids=repr)
def test_hyperparameters_are_pythons_own_numbers(value):
    """A NumPy scalar would raise float32 to float64 on the way, to other bits."""
    optimizer = ml.AdamW([a()], lr=value, betas=(value, value), eps=value, weight_decay=value)
    for number in (optimizer.lr, *optimizer.betas, optimizer.eps, optimizer.weight_decay):
        assert type(number) is float
        assert number == float(value)
    optimizer.lr = np.float32(0.5)
    assert type(optimizer.lr) is float
    with pytest.raises(ValueError, match="AdamW: lr = nan"):
        optimizer.lr = float("nan")
    assert optimizer.lr == 0.5


@pytest.mark.parametrize("max_norm", [-1.0, float("nan"), -float("inf"), "1", None, True, [1.0]], ids=repr)
def test_norms_that_make_no_sense_leave_the_gradients(max_norm):
    gs = gradients(0)
    with pytest.raises((TypeError, ValueError), match=r"clip_gradients: max_norm = .*, expected 0 or more, or"):
        clip_gradients(gs, max_norm)
    for g, before in zip(gs, gradients(0), strict=True):
        np.testing.assert_array_equal(g, before)


@pytest.mark.parametrize("name", ["step", "total", "peak", "warmup", "floor"])
@pytest.mark.parametrize("value", [-1, float("nan"), "a", None, True, 10**400], ids=lambda value: repr(value)[:20])
def test_schedules_that_make_no_sense(name, value):
    if value == 10**400 and name in ("step", "total", "warmup"):
        return  # a whole number of any size
    arguments = {"step": 1, "total": 10, "peak": 1.0, "warmup": 2, "floor": 0.1}
    with pytest.raises((TypeError, ValueError), match=f"cosine_schedule: {name} = "):
        cosine_schedule(**{**arguments, name: value})


# 16 bits


def test_the_norm_of_16_bit_gradients():
    """300^2 is no number of 16 bits: the norm was infinite, and the gradient zero."""
    gs = [np.full(1, 300, np.float16) for _ in range(10)]
    assert clip_gradients(gs, 1.0) == pytest.approx(300 * math.sqrt(10), rel=1e-6)
    np.testing.assert_allclose([g[0] for g in gs], 1 / math.sqrt(10), rtol=1e-3)
    assert all(g.dtype == np.float16 for g in gs)


def test_the_norm_of_gradients_whose_squares_are_too_large():
    gs = [np.full((2, 2), 1e30, np.float32), None, np.full(3, 3.0, np.float32)]
    assert clip_gradients(gs, 1.0) == pytest.approx(2e30, rel=1e-6)
    np.testing.assert_allclose(gs[0], 0.5, rtol=1e-6)
    broken = [np.array([1.0, np.inf], np.float32)]
    assert clip_gradients(broken, 1.0) == np.inf
    assert broken[0][0] == 1.0


@pytest.mark.parametrize("make", [ml.AdamW, lambda p: ml.SGD(p, momentum=0.9, weight_decay=0.1)], ids=["AdamW", "SGD"])
def test_16_bit_parameters_follow_those_of_32(make):
    """AdamW's v is below the least number of 16 bits at a gradient of 1e-4: NaN at the second step."""
    rng = np.random.default_rng(0)
    start = rng.normal(size=20).astype(np.float16)
    low, high = (ml.Tensor(start.astype(kind), requires_grad=True) for kind in (np.float16, np.float32))
    one, two = make([low]), make([high])
    for step in range(50):
        g = rng.normal(0, 1e-4 if step % 2 else 300, 20).astype(np.float16)
        one.step([g])
        two.step([g.astype(np.float32)])
        assert {array.dtype.name for arrays in one.state.values() for array in arrays} == {"float32"}
        high.data[...] = low.data.copy()  # rounded as the other one is
        np.testing.assert_array_equal(low.data, high.data)
    assert low.dtype == np.float16
    assert np.isfinite(low.data).all()
    state = one.state_dict()
    twin = make([ml.Tensor(low.data.copy(), requires_grad=True)])
    twin.load_state_dict(state)
    one.step([g])
    twin.step([g])
    np.testing.assert_array_equal(twin.parameters[0].data, low.data)


# Values under the tape


@pytest.mark.parametrize("make", [ml.AdamW, ml.SGD])
def test_a_backward_pass_after_the_step_is_refused(make):
    """It would use the new weights: -1 where 1 is right."""
    w = ml.Tensor(np.array([1.0]), requires_grad=True)
    optimizer, loss = make([w], lr=1.0), (w * w).sum()
    loss.backward(retain_graph=True)
    before = w.version
    optimizer.step()
    assert w.version > before
    with pytest.raises(ValueError, match="an optimiser's step, say, has written over it since"):
        loss.backward()


def test_what_has_no_gradient_keeps_its_version():
    p, q = a(), a()
    ml.SGD([p, q]).step([np.ones(2), None])
    assert (p.version, q.version) == (1, 0)


def test_the_short_description():
    assert repr(ml.AdamW([a(), a()], lr=0.01)) == "AdamW(2 tensors, 4 parameters, lr=0.01, steps=0)"


def test_the_ages_in_a_state_are_counts():
    """How often each parameter was updated: 0 for one that was never reached, and a whole number for all."""
    first, second = ml.AdamW(parameters()), ml.AdamW(parameters())
    first.step([g if i else None for i, g in enumerate(gradients(0))])
    state = first.state_dict()
    assert state["ages"].tolist() == [0, 1, 1] and state["steps"] == 1
    for p, q in zip(first.parameters, second.parameters, strict=True):
        q.data[...] = p.data
    second.load_state_dict(state)
    for optimizer in (first, second):
        optimizer.step(gradients(1))
    assert first.state_dict()["ages"].tolist() == [1, 2, 2]
    for p, q in zip(first.parameters, second.parameters, strict=True):
        assert (p.data == q.data).all()
    for odd in ([0.0, 1.0, 1.0], [0, 1], [-1, 1, 1], ["0", "1", "1"], None):
        with pytest.raises(ValueError, match=r"optimizer state ages: got .*, expected a count for each of 3"):
            second.load_state_dict({**state, "ages": odd})
    fresh = ml.AdamW(parameters())
    fresh.load_state_dict({"ages": [0, 0, 0]})  # before any step
    assert fresh.steps == 0 and fresh.state_dict()["ages"].tolist() == [0, 0, 0]
