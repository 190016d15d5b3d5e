"""PEFT's figures are what its files print, and fit the methods' own formulas; an order's p is that of every order."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.analysis.peft_comparison import EXPERIMENTS, best, clearly_right, kendall

PRINTED = {  # "test accuracy", as it stands in each file
    "full": [0.5003790750568613], "lora-qv": [0.48218347232752085, 0.488248673237301], "rslora": [0.5299469294920395],
    "dora": [0.48218347232752085, 0.4943138741470811], "lora-fa": [0.42987111448066717], "miss": [0.5087187263078089],
    "vera": [0.3684609552691433], "ia3": [0.41243366186504926, 0.45489006823351025],
    "prompt": [0.25246398786959817, 0.3912054586808188], "prefix": [0.1470811220621683, 0.400303260045489],
}  # fmt: skip
LAYERS, C, KV, MLP = 28, 3072, 1024, 8192  # of Llama-3.2-3B
TRAINED = {  # parameters a layer, by each method's formula
    "lora-qv": [32 * (3 * C + KV), 64 * (3 * C + KV)], "rslora": [64 * (3 * C + KV)], "lora-fa": [32 * (C + KV)],
    "dora": [32 * (3 * C + KV) + C + KV] * 2, "miss": [64 * (C + KV)], "vera": [2 * 256 + C + KV],
    "ia3": [2 * KV + MLP, 2 * KV + 4 * C + MLP], "prompt": [200 * C / LAYERS] * 2,
    "prefix": [200 * 2 * KV, 50 * 2 * KV],
}  # fmt: skip


def test_shares_are_those_that_the_files_print():
    assert {name: [e.accuracy for e in many] for name, many in EXPERIMENTS.items()} == PRINTED


def test_trained_parameters_are_those_of_the_formulas():
    counted = {name: [e.trainable for e in many] for name, many in EXPERIMENTS.items() if name != "full"}
    assert counted == {name: [LAYERS * n for n in many] for name, many in TRAINED.items()}


def test_the_best_setting_and_what_is_clearly_more():
    assert best("prefix").right == 528 and best("prompt").right == 516
    assert clearly_right(best("rslora"), best("ia3")) == 1 == -clearly_right(best("ia3"), best("rslora"))
    assert clearly_right(*EXPERIMENTS["dora"]) == 0  # a repeat of one run, with 16 answers more


numbers = st.integers(2, 6).flatmap(
    lambda n: st.tuples(st.permutations(range(n)), st.lists(st.integers(0, 4), min_size=n, max_size=n))
)


@given(numbers)
def test_tau_and_its_p_are_those_of_every_order(pair):
    x, y = pair
    if len(set(y)) < 2:
        with pytest.raises(ValueError, match="of two different values or more"):
            kendall(x, y)
        return
    places = list(itertools.combinations(range(len(x)), 2))
    s = lambda x: sum(np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]) for i, j in places)
    found = kendall(x, y)
    assert found.p == pytest.approx(np.mean([abs(s(other)) >= abs(s(x)) for other in itertools.permutations(x)]))
    assert found.tau == pytest.approx(s(x) / np.sqrt(len(places) * sum(y[i] != y[j] for i, j in places)))


def test_kendall_by_hand():
    assert kendall([1.0, 2.0, 3.0], [10, 20, 30]).tau == 1 and kendall([1, 2, 3], [3, 2, 1]).tau == -1
    assert kendall([1, 2, 3], [10, 20, 30]).p == 2 / 6  # this order, and the opposite one
    assert kendall(range(10), range(10)).p == pytest.approx(2 / 3_628_800)


def test_what_has_no_order_is_refused():
    for x, y in (([1], [2]), ([1, 2], [1, 2, 3]), ([1, 2], [5, 5])):
        with pytest.raises(ValueError, match=f"kendall: {len(x)} and {len(y)} numbers, expected equally many"):
            kendall(x, y)
    with pytest.raises(ValueError, match="1 of the 3 numbers of x stand there twice"):
        kendall([1, 1, 2], [1, 2, 3])
