"""The tests catch wrong mathematics: every vjp of every primitive is negated, halved and zeroed in turn.

Each mutant must fail the check that the property tests rely on, by each of gradcheck's three methods alone.
"""

import functools

import numpy as np
import pytest
from drawing import check_gradients

import minilora as ml
from minilora.autograd.examples import EXAMPLES
from minilora.autograd.tensor import PRIMITIVES, primitive

METHODS = ("central", "complex-step", "directional")
ERRORS = {"negated": lambda g: -g, "halved": lambda g: g / 2, "zeroed": lambda g: g * 0}


def mutant(name, place, error):
    """The primitive with the cotangent of its input `place` put through `error`."""
    right = PRIMITIVES[name].__wrapped__

    @functools.wraps(right)
    def wrong(*args, **kwargs):
        output, vjps = right(*args, **kwargs)
        if callable(vjps):  # one function that returns all cotangents
            return output, lambda g: tuple(error(c) if i == place else c for i, c in enumerate(vjps(g)))
        vjps = list(vjps)
        vjps[place] = lambda g, vjp=vjps[place]: error(vjp(g))
        return output, tuple(vjps)

    return primitive(wrong)


def places(name):
    """The places of the inputs that the example of this primitive differentiates with respect to."""
    example = EXAMPLES[name]
    tensors = [ml.Tensor(x, requires_grad=True) for x in example.inputs(np.random.default_rng(0))]
    return [i for i, node in enumerate(example.function(PRIMITIVES[name])(*tensors).node.inputs) if node is not None]


MUTANTS = [(name, place, error) for name in EXAMPLES for place in places(name) for error in ERRORS]


def test_every_primitive_has_an_example():
    assert EXAMPLES.keys() == PRIMITIVES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_vjp_is_in_the_example(name):
    """What the primitive can differentiate with respect to, the example does."""
    example, found = EXAMPLES[name], []

    @functools.wraps(PRIMITIVES[name].__wrapped__)
    def watched(*args, **kwargs):
        output, vjps = PRIMITIVES[name].__wrapped__(*args, **kwargs)
        all_of_them = vjps(np.ones_like(output)) if callable(vjps) else vjps
        found.append([i for i, vjp in enumerate(all_of_them) if vjp is not None])
        return output, vjps

    example.function(primitive(watched))(*(ml.Tensor(x) for x in example.inputs(np.random.default_rng(0))))
    assert found == [places(name)]


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_passes(name):
    example = EXAMPLES[name]
    for seed in range(3):
        arrays = example.inputs(np.random.default_rng(seed))
        check_gradients(example.function(PRIMITIVES[name]), arrays, METHODS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_unharmed_mutant_passes(name):
    """Otherwise the next test would prove nothing: the wrapping alone would be what fails."""
    example = EXAMPLES[name]
    for place in places(name):
        unharmed = example.function(mutant(name, place, lambda g: g))
        check_gradients(unharmed, example.inputs(np.random.default_rng(0)), METHODS)


@pytest.mark.slow
@pytest.mark.parametrize("name, place, error", MUTANTS, ids=lambda value: str(value))
def test_every_mutant_is_caught(name, place, error):
    example = EXAMPLES[name]
    arrays = example.inputs(np.random.default_rng(0))
    wrong = example.function(mutant(name, place, ERRORS[error]))
    with pytest.raises(AssertionError, match="FAIL"):
        check_gradients(wrong, arrays)
    for method in METHODS:
        with pytest.raises(AssertionError, match="FAIL"):
            check_gradients(wrong, arrays, [method])
