"""One tensor is one parameter, in however many places it stands, and none vanishes in a container."""

import copy
import pickle
import sys

import numpy as np
import pytest

import minilora as ml
from minilora.nn.layers import Embedding, Linear, parameter
from minilora.nn.module import Module


class Two(Module):
    """y = b(a(x)), 3 numbers to 3."""

    def __init__(self, tie: str = ""):
        rng = np.random.default_rng(0)
        self.a = Linear(3, 3, True, rng)
        self.b = self.a if tie == "module" else Linear(3, 3, True, rng)
        if tie == "tensor":
            self.b.weight = self.a.weight

    def __call__(self, x):
        return self.b(self.a(x))


class Tables(Module):
    """An embedding whose table is the output head, too."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.embedding, self.head = Embedding(5, 4, rng), Linear(4, 5, False, rng)
        self.head.weight = self.embedding.weight


FIRST_NAMES = {
    "": ["a.weight", "a.bias", "b.weight", "b.bias"],
    "module": ["a.weight", "a.bias"],
    "tensor": ["a.weight", "a.bias", "b.bias"],
}


@pytest.mark.parametrize("tie", FIRST_NAMES)
def test_listed_and_counted_once_and_by_the_first_name(tie):
    model, first = Two(tie), FIRST_NAMES[tie]
    assert [name for name, _ in model.named_parameters()] == first
    assert len(model.parameters()) == len({id(p) for p in model.parameters()}) == len(first)
    assert model.count() == model.count(trainable=True) == sum(9 if "weight" in name else 3 for name in first)
    every = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert every == list(model.state_dict()) == FIRST_NAMES[""]
    assert [name for name, _ in model.named_modules()] == (["", "a"] if tie == "module" else ["", "a", "b"])
    assert [name for name, _ in model.named_modules(remove_duplicate=False)] == ["", "a", "b"]


def test_tied_tables_are_one():
    model = Tables()
    assert [name for name, _ in model.named_parameters()] == ["embedding.weight"] and model.count() == 20
    assert list(model.state_dict()) == ["embedding.weight", "head.weight"]


@pytest.mark.parametrize("tie", ["module", "tensor"])
def test_a_step_updates_what_is_shared_once(tie):
    x, model = np.ones((1, 3), np.float32), Two(tie)
    parameters = model.parameters()
    gradients = ml.grad(model(ml.Tensor(x)).sum(), parameters)
    before = [p.data.copy() for p in parameters]
    ml.SGD(model.parameters(), lr=0.5).step(gradients)
    for p, old, g in zip(parameters, before, gradients, strict=True):
        np.testing.assert_allclose(p.data, old - 0.5 * g, rtol=1e-6)


@pytest.mark.parametrize("tie", ["module", "tensor"])
def test_astype_converts_once_and_keeps_the_tie(tie):
    model = Two(tie)
    values = model.state_dict()
    model.b.weight.requires_grad = False
    assert model.astype("float64") is model
    assert model.a.weight is model.b.weight and not model.a.weight.requires_grad
    for name, array in model.state_dict().items():
        assert array.dtype == np.float64
        np.testing.assert_array_equal(array, values[name])


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("tie", ["module", "tensor"])
def test_copies_and_pickles_keep_the_tie(tie, again):
    other = again(Two(tie))
    assert other.a.weight is other.b.weight and (other.a is other.b) == (tie == "module")
    assert other.count() == Two(tie).count()
    np.testing.assert_array_equal(other.b.weight.data, Two(tie).a.weight.data)


@pytest.mark.parametrize("tie", FIRST_NAMES)
def test_a_state_dict_loads_again_and_so_does_one_without_second_names(tie):
    model = Two(tie)
    state = {name: array + 1 for name, array in model.state_dict().items()}
    for given in (state, {name: state[name] for name in FIRST_NAMES[tie]}, {n: state[n] for n in reversed(state)}):
        other = Two(tie)
        other.load_state_dict(given)
        for name, array in other.state_dict().items():
            np.testing.assert_array_equal(array, state[name], err_msg=name)
    if tie:
        other.load_state_dict({name: a for name, a in model.state_dict().items() if name != "a.weight"})  # the second
        np.testing.assert_array_equal(other.a.weight.data, model.a.weight.data)


@pytest.mark.parametrize("tie", ["module", "tensor"])
def test_values_that_disagree_about_one_tensor_are_refused(tie):
    model = Two(tie)
    before, state = model.state_dict(), Two().state_dict()  # two matrices
    with pytest.raises(ValueError, match=r"load_state_dict: b\.weight differs from a\.weight, and they are one tensor"):
        model.load_state_dict(state)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_one_array_in_the_snapshot_of_what_is_one_tensor():
    state = Two("tensor").state_dict()
    state["a.weight"][0, 0] = 7
    assert state["b.weight"][0, 0] == 7  # so that who edits one name does not make two that disagree
    assert (Two("tensor").a.weight.data != 7).all()


def test_parameters_may_change_places_in_one_load():
    """The values are the very memory that is written to."""
    model = Two()
    a, b = model.a.weight.data.copy(), model.b.weight.data.copy()
    here = dict(model.named_parameters())
    model.load_state_dict({**here, "a.weight": here["b.weight"], "b.weight": model.a.weight.data[:]})
    np.testing.assert_array_equal(model.a.weight.data, b)
    np.testing.assert_array_equal(model.b.weight.data, a)


def test_a_way_back_up_is_no_place():
    model = Two()
    model.a.parent = model.b.parent = model
    assert [name for name, _ in model.named_modules()] == ["", "a", "b"]
    assert list(model.state_dict()) == FIRST_NAMES[""] and model.count() == 24


class Box(Module):
    """Whatever it is given."""

    def __init__(self, held):
        self.held = held


def layer() -> Linear:
    return Linear(2, 2, False, np.random.default_rng(0))


CONTAINERS = {
    "list": (lambda: [layer(), layer()], ["0.weight", "1.weight"]),
    "tuple": (lambda: (layer(), layer()), ["0.weight", "1.weight"]),
    "dictionary": (lambda: {"left": layer(), 3: layer()}, ["left.weight", "3.weight"]),
    "a list of lists": (lambda: [[layer()], [layer()]], ["0.0.weight", "1.0.weight"]),
    "a dictionary of tuples": (lambda: {"x": (layer(), None, "y")}, ["x.0.weight"]),
    "tensors in a list": (lambda: [parameter(np.ones((2, 2))), 1], ["0"]),
    "tensors in a dictionary": (lambda: {"scale": parameter(np.ones((2, 2)))}, ["scale"]),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_what_stands_in_a_container_is_found_counted_loaded_and_trained(kind):
    make, names = CONTAINERS[kind]
    model = Box(make())
    assert [name for name, _ in model.named_parameters()] == [f"held.{name}" for name in names]
    assert model.count() == 4 * len(names) == len(ml.AdamW(model.parameters()).parameters) * 4
    model.load_state_dict({f"held.{name}": np.full((2, 2), 5.0) for name in names})
    assert all((p.data == 5).all() for p in model.parameters())
    for name, module in model.named_modules():
        assert model.get_module(name) is module
        if name:
            new = layer()
            model.set_module(name, new)
            assert model.get_module(name) is new
    assert type(model.held) is type(make())


@pytest.mark.parametrize("held", [{layer()}, frozenset([layer()]), {"a.b": layer()}])
def test_what_can_have_no_name_is_refused(held):
    with pytest.raises(ValueError, match=r"held.* (a set|a name has no dot)"):
        Box(held).parameters()


def test_sets_and_dotted_keys_without_parameters_are_nobodys_business():
    assert Box([{1, 2}, {"a.b": 3}, "text", None]).parameters() == []


def test_a_quantised_weight_counts_as_the_numbers_that_it_stands_for():
    config = ml.GPTConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)
    plain, model = ml.GPT(config).count(), ml.quantize_model(ml.GPT(config), block=16)
    assert model.count() == plain and model.count(trainable=True) == 0
    ml.add_lora(model, ml.LoRAConfig(rank=2))
    update = 2 * 2 * 2 * (8 + 8)  # blocks, q and v, r (d_in + d_out)
    assert model.count() == plain + update and model.count(trainable=True) == update
    ml.merge_lora(model)
    assert model.count() == plain + update


@pytest.mark.parametrize("operation", ["load_state_dict", "astype"])
def test_an_interrupt_at_any_line_leaves_all_or_nothing(operation):
    """A KeyboardInterrupt at the first, second, third ... line that runs, until none is left to stop at."""

    def outcome(at: int) -> tuple[bool, set]:
        model, lines = Two("tensor"), 0
        before = model.state_dict()
        new = {name: array + 1 for name, array in before.items()}
        action = {"load_state_dict": lambda: model.load_state_dict(new), "astype": lambda: model.astype("float64")}

        def count(frame, event, argument):
            nonlocal lines
            lines += event == "line"
            if lines == at and event == "line":
                lines += 1
                raise KeyboardInterrupt
            return count

        try:
            sys.settrace(count)
            action[operation]()
            stopped = False
        except KeyboardInterrupt:
            stopped = True
        finally:
            sys.settrace(None)
        after = model.state_dict()
        kinds = {str(a.dtype) for a in after.values()}
        same = {name: bool((array == before[name]).all()) for name, array in after.items()}
        assert all(p.requires_grad for p in model.parameters())
        return stopped, kinds if operation == "astype" else set(same.values())

    at, stopped = 0, True
    while stopped:
        at += 1
        stopped, kinds = outcome(at)
        assert len(kinds) == 1, f"half done at line {at}"
    assert at > 20  # lines there were; NumPy's own count, and differ by version
