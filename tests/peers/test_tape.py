"""The tape beside PyTorch's: precision of mixtures, what is reached, leaves that are frozen, values written over."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minilora as ml

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")

# ---- precision: the dtype of every mixture

FLOATS = ("float16", "float32", "float64")
NUMBERS = {
    **{repr(n): (n, n) for n in (2, 2.5, True, -1.5)},
    **{
        f"np.{k}": (getattr(np, k)(2), getattr(np, k)(2).item())
        for k in ("float16", "float32", "float64", "int8", "int64", "bool_")
    },
    **{
        f"0-d {k}": (np.array(2, k), torch.tensor(2, dtype=getattr(torch, k)))
        for k in (*FLOATS, "int32", "int64", "uint8", "bool")
    },
    **{
        f"1-d {k}": (np.array([2, 1], k), torch.tensor([2, 1], dtype=getattr(torch, k)))
        for k in (*FLOATS, "int32", "int64", "uint8", "bool")
    },
}
OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("shape", [(), (2,), (3, 2)], ids=str)
def test_a_mixture_has_pytorchs_precision(number, shape):
    ours, theirs = NUMBERS[number]
    for dtype, (symbol, operate) in itertools.product(FLOATS, OPERATIONS.items()):
        if isinstance(theirs, bool) and symbol == "-":
            continue  # PyTorch subtracts no truth values
        if isinstance(theirs, torch.Tensor) and theirs.dtype is torch.bool and symbol == "-":
            continue
        x = ml.Tensor(np.ones(shape, dtype), requires_grad=True)
        t = torch.ones(shape, dtype=getattr(torch, dtype))
        for here, there in ((operate(x, ours), operate(t, theirs)), (operate(ours, x), operate(theirs, t))):
            assert str(here.dtype) == str(there.dtype).removeprefix("torch."), (dtype, symbol)
            np.testing.assert_allclose(here.data, there.numpy(), rtol=2e-3)


# ---- one program on both tapes: a few leaves, a few operations, changes in between

STEPS = ("forward", "backward", "backward, kept", "step", "freeze", "thaw", "load", "zero", "double")
USES = {  # which leaves' values a derivative needs is for the tapes to know
    "a + b": lambda a, b: (a + b).sum(),
    "a * b": lambda a, b: (a * b).sum(),
    "a * 2": lambda a, b: (a * 2).sum(),
    "a ** 2": lambda a, b: (a**2).sum(),
    "exp(a) b": lambda a, b: (a.exp() * b).sum(),
    "a / b": lambda a, b: (a / b).sum(),
    "tanh(a + b)": lambda a, b: (a + b).tanh().sum(),
    "a @ b": lambda a, b: a @ b,
    "a * a": lambda a, b: (a * a).sum(),
    "a + b * 3": lambda a, b: (a + b * 3).sum(),
    "max(a)": lambda a, b: a.max() + b.sum(),
    "a[1] b": lambda a, b: (a[1] * b).sum(),
}


class Ours:
    """The steps on our tape."""

    def __init__(self):
        self.a, self.b = (ml.Tensor(np.array(v), requires_grad=True) for v in ([0.5, 1.5, 2.5], [3.0, 1.25, 2.0]))
        self.loss = None

    def forward(self, use):
        self.used = use, *(np.array(x.tolist()) for x in (self.a, self.b))
        self.loss = use(self.a, self.b)
        if not self.loss.requires_grad:
            self.loss = None

    def fresh(self):
        """The gradients of the last forward pass, from a tape of its own."""
        use, *values = self.used
        leaves = [ml.Tensor(v, requires_grad=True) for v in values]
        return ml.grad(use(*leaves), leaves)

    def backward(self, keep):
        self.loss.backward(retain_graph=keep)

    def step(self, x):
        g = np.zeros(3) if x.grad is None else x.grad
        ml.SGD([x], lr=0.1).step([g]) if x.requires_grad else None

    def load(self, x):
        x.data[...] = [1.0, 2.0, 4.0]
        x.changed()

    def freeze(self, x, value):
        x.requires_grad = value

    def double(self, x):
        x.data = x.data.astype(np.float32).astype(np.float64)  # another array with the same values: nothing is lost

    def zero(self, x):
        x.grad = None

    def gradients(self):
        return [None if x.grad is None else x.grad.tolist() for x in (self.a, self.b)]


class Theirs(Ours):
    """The same steps on PyTorch's."""

    def __init__(self):
        values = ([0.5, 1.5, 2.5], [3.0, 1.25, 2.0])
        self.a, self.b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values)
        self.loss = None

    def step(self, x):
        with torch.no_grad():
            if x.requires_grad:
                x -= 0.1 * (torch.zeros(3) if x.grad is None else x.grad)

    def load(self, x):
        with torch.no_grad():
            x.copy_(torch.tensor([1.0, 2.0, 4.0]))

    def freeze(self, x, value):
        x.requires_grad_(value)

    def double(self, x):
        x.data = x.data.clone()


@settings(max_examples=400)
@given(data=st.data())
def test_drawn_programs_do_as_pytorch_does(data):
    """Forward, backward, steps, loads and freezing in any order: the same gradients, or both refuse."""
    ours, theirs = Ours(), Theirs()
    use = USES[data.draw(st.sampled_from(sorted(USES)))]
    for _ in range(data.draw(st.integers(2, 8))):
        step, name = data.draw(st.sampled_from(STEPS)), data.draw(st.sampled_from("ab"))
        if step == "forward":
            use = USES[data.draw(st.sampled_from(sorted(USES)))]
        outcomes, had = [], ours.gradients()
        for side in (ours, theirs):
            x = getattr(side, name)
            try:
                if step.startswith("backward"):
                    if side.loss is None:
                        outcomes.append("no loss")
                        continue
                    side.backward(step.endswith("kept"))
                    side.loss = side.loss if step.endswith("kept") else None  # freed; PyTorch allows what kept nothing
                elif step == "forward":
                    side.forward(use)
                elif step in ("freeze", "thaw"):
                    side.freeze(x, step == "thaw")
                else:
                    getattr(side, step)(x)
                outcomes.append("done")
            except (ValueError, RuntimeError):
                outcomes.append("refused")
        if outcomes == ["done", "refused"]:  # our derivative needs fewer values: it must be that of the forward pass
            for g, before, right in zip(ours.gradients(), had, ours.fresh(), strict=True):
                if g is not None and g != before:
                    np.testing.assert_allclose(np.subtract(g, before or 0), right, rtol=1e-9)
            return
        assert outcomes[0] == outcomes[1], (step, outcomes)
        if outcomes[0] == "refused":
            return  # what PyTorch has freed by then is its own affair
        for g, right in zip(ours.gradients(), theirs.gradients(), strict=True):
            assert (g is None) == (right is None)
            if g is not None:
                np.testing.assert_allclose(g, right, rtol=1e-9)


def test_what_is_not_reached_is_none_as_allow_unused_says():
    for use in USES.values():
        ours, theirs = Ours(), Theirs()
        extra, extra_there = ml.Tensor([1.0], requires_grad=True), torch.ones(1, requires_grad=True)
        found = ml.grad(use(ours.a, ours.b), [ours.a, ours.b, extra], unused="none")
        wanted = torch.autograd.grad(use(theirs.a, theirs.b), [theirs.a, theirs.b, extra_there], allow_unused=True)
        for g, right in zip(found, wanted, strict=True):
            assert (g is None) == (right is None)
            if g is not None:
                np.testing.assert_allclose(g, right, rtol=1e-12)


@pytest.mark.parametrize("before, after", [("float32", "float64"), ("float64", "float32")])
def test_conversion_between_forward_and_backward(before, after):
    """d(x^2) at 3 is 6, in the precision that the leaf has now."""
    x = ml.Tensor(np.array(3.0, before), requires_grad=True)
    t = torch.nn.Parameter(torch.tensor(3.0, dtype=getattr(torch, before)))
    module = torch.nn.Module()
    module.t = t
    y, u = x * x, t * t
    x.data = x.data.astype(after)
    module.to(getattr(torch, after))
    y.backward()
    u.backward()
    assert x.grad == t.grad.item() == 6.0 and x.grad.dtype == x.dtype == after
