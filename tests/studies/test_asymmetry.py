"""A or B trained alone: the other one stays as it began, and so many parameters are trained."""

import numpy as np
import pytest

import minilora as ml
from minilora.adapters.lora import lora_layers
from minilora.studies.asymmetry import KINDS
from minilora.studies.runs import Spec, prepare, settings
from minilora.training.run import Run


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.mark.slow
def test_one_factor_moves_and_the_other_stays_as_it_began(kind):
    spec = Spec(steps=2, batch_size=2, **KINDS[kind][0])
    model = ml.load_model("base")
    prepare(model, spec)
    factors = {name: p for name, p in model.named_parameters() if name.endswith(("lora_A", "lora_B"))}
    before = {name: p.numpy().copy() for name, p in factors.items()}
    zero = "lora_A" if spec.start == "B random" else "lora_B"
    assert all((not value.any()) == name.endswith(zero) for name, value in before.items())
    run = Run(model, "unicode-names", settings(spec))
    tokens, targets = run.corpus.batch(2, model.window, run.rng)
    for _ in range(2):  # in the first step the factor under a zero one gets no gradient
        ml.train_step(model, run.optimizer, tokens, targets)
    for name, p in factors.items():
        assert np.array_equal(p.numpy(), before[name]) == (name[-1] not in spec.trained), name


def test_one_factor_at_twice_the_rank_has_as_many_parameters_as_both():
    """q, k, v and o are square; what up has more outputs than inputs, down has fewer."""
    trained = {}
    for kind, (changes, _) in KINDS.items():
        model = ml.load_model("base")
        prepare(model, Spec(**changes))
        trained[kind] = sum(p.size for p in model.parameters() if p.requires_grad)
    both, half = 4 * 8 * (8 * 128 + 2 * (128 + 512)), 4 * 8 * (4 * 128 + 128 + 512)
    assert trained == {k: half if k in ("A", "B") else both for k in KINDS} and both == 2 * half


def test_b_begins_as_its_inputs_ask():
    """U(-1/sqrt(r), 1/sqrt(r)): what Kaiming's rule gives A by d_in, for the r inputs of B."""
    model = ml.load_model("base")
    prepare(model, Spec(rank=16, alpha=32.0, start="B random"))
    values = np.concatenate([layer.lora_B.numpy().ravel() for layer in lora_layers(model).values()])
    assert np.abs(values).max() <= 0.25 and values.std() == pytest.approx(0.25 / 3**0.5, rel=0.02)


def test_a_alone_under_a_zero_b_is_refused():
    with pytest.raises(ValueError, match='from B = 0 would learn nothing; give start = "B random"'):
        prepare(ml.load_model("base"), Spec(trained="A"))


@pytest.mark.slow
def test_how_large_a_frozen_b_begins_is_the_learning_rates_business():
    """c B at the rate lr / c takes the same steps of s B A: with Adam a step of A is as long as the rate."""
    tokens, targets = ml.load_corpus("unicode-names").batch(4, 64, np.random.default_rng(0))
    deltas = []
    for c in (1.0, 4.0):
        model = ml.load_model("base")
        prepare(model, Spec(trained="A", start="B random"))
        for layer in lora_layers(model).values():
            layer.lora_B.data *= c
        optimizer = ml.AdamW(model.named_parameters(), lr=1e-2 / c, eps=1e-30, weight_decay=0.0)
        for _ in range(3):
            ml.train_step(model, optimizer, tokens, targets)
        deltas.append(np.concatenate([delta.ravel() for delta in ml.delta_weights(model).values()]))
    assert np.linalg.norm(deltas[0] - deltas[1]) < 1e-3 * np.linalg.norm(deltas[0])
