"""Names, sharing and state dicts of module trees, drawn, beside torch.nn.Module."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora.nn.layers import Linear
from minilora.nn.module import Module

torch = pytest.importorskip("torch")


def built(plan: list, theirs: bool):
    """A model from a plan: each step puts a layer, an earlier module, or a list or dictionary of some into a place."""
    modules, model = [], torch.nn.Module() if theirs else Module()

    def new():
        layer = torch.nn.Linear(2, 3) if theirs else Linear(2, 3, True, np.random.default_rng(0))
        modules.append(layer)
        return layer

    for i, (kind, pick) in enumerate(plan):
        earlier = modules[pick % len(modules)] if modules else new()
        if kind == "new":
            part = new()
        elif kind == "again":
            part = earlier
        elif kind == "tied":
            part = new()
            part.weight = earlier.weight
        elif kind == "list":
            part = [new(), earlier, new()]
            part = torch.nn.ModuleList(part) if theirs else part
        elif kind == "dictionary":
            part = {"left": earlier, "right": new()}
            part = torch.nn.ModuleDict(part) if theirs else part
        else:  # a module that holds an earlier one
            part = torch.nn.Module() if theirs else Module()
            part.inner, part.own = earlier, new()
            modules.append(part.own)
        setattr(model, f"part{i}", part)
    return model


steps = st.tuples(st.sampled_from(["new", "again", "tied", "list", "dictionary", "nested"]), st.integers(0, 9))


@given(st.lists(steps, min_size=1, max_size=7), st.randoms(use_true_random=False))
def test_names_counts_and_states_of_drawn_trees_are_torchs(plan, random):
    ours, theirs = built(plan, False), built(plan, True)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    every = [n for n, _ in theirs.named_parameters(remove_duplicate=False)]
    assert [n for n, _ in ours.named_parameters(remove_duplicate=False)] == every
    assert list(ours.state_dict()) == list(theirs.state_dict())
    containers = (torch.nn.ModuleList, torch.nn.ModuleDict)
    named = [n for n, m in theirs.named_modules() if not isinstance(m, containers)]
    assert [n for n, _ in ours.named_modules()] == named
    assert ours.count() == sum(p.numel() for p in theirs.parameters())
    state = {n: t.detach().numpy().copy() for n, t in theirs.state_dict().items()}
    ours.load_state_dict(state)
    for name, array in ours.state_dict().items():
        np.testing.assert_array_equal(array, state[name])
    tied = random.choice(every)  # a change of one name's value: refused where the tensor has another name, too
    state[tied] = state[tied] + 1
    alone = sum(p is dict(ours.named_parameters(remove_duplicate=False))[tied] for p in
                (p for _, p in ours.named_parameters(remove_duplicate=False))) == 1  # fmt: skip
    if alone:
        ours.load_state_dict(state)
    else:
        with pytest.raises(ValueError, match="they are one tensor here"):
            ours.load_state_dict(state)


@given(st.lists(steps, min_size=1, max_size=6))
def test_a_step_of_sgd_on_drawn_trees_is_torchs(plan):
    ours, theirs = built(plan, False), built(plan, True)
    theirs.load_state_dict({n: torch.tensor(a) for n, a in ours.state_dict().items()})
    gradients = [np.full(p.shape, 0.5, np.float32) for p in ours.parameters()]
    for p, g in zip(theirs.parameters(), gradients, strict=True):
        p.grad = torch.tensor(g)
    ml.SGD(ours.parameters(), lr=0.1).step(gradients)
    torch.optim.SGD(theirs.parameters(), lr=0.1).step()
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[name], tensor.numpy(), rtol=1e-6)
