"""How a study chooses: the walk ends where neither neighbour is lower; what is chosen on is not what is told of."""

import numpy as np
import pytest

import minilora as ml
from minilora.studies.choosing import Between, descend, rates_around
from minilora.studies.runs import FULL, QUICK, Spec


@pytest.mark.parametrize("start", [-4, 0, 3, 9])
def test_the_walk_ends_at_the_bottom_of_a_valley_and_stays_on_a_plain(start):
    assert descend(lambda k: (k - 3) ** 2, start) == 3
    assert descend(lambda k: 1.0, start) == start
    assert descend(lambda k: abs(k - 3) if k < 20 else float("inf"), start) == 3


def test_a_walk_from_below_ends_before_the_cliff_and_one_from_beyond_it_does_not():
    """As LoRA of rank 64 at batches of 64 has it: why a guess had better be low."""
    heights = [2.9, 2.5, 2.2, 3.8, 3.1, 3.2, 3.4]
    assert [descend(lambda k: heights[k], start) for start in (1, 2, 4)] == [2, 2, 4]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unicode-names", "python-code"])
def test_windows_for_choosing_are_none_of_those_that_are_told_of(name):
    corpus = ml.load_corpus(name)
    told, choosing = corpus.validation_windows(128, FULL.windows), Between(name, corpus.train, corpus.validation)
    tokens, targets = choosing.validation_windows(128, FULL.windows)
    assert tokens.shape == (FULL.windows - 1, 128) and np.array_equal(tokens[:, 1:], targets[:, :-1])
    assert len(np.unique(np.concatenate([told[0], tokens]), axis=0)) == 2 * FULL.windows - 1
    whole = corpus.validation_windows(128)[0]
    assert all((whole == window).all(axis=1).any() for window in tokens)  # of the held-out text all the same


class Valley:
    """Runs whose loss is least at one learning rate."""

    def __init__(self, best, scale=FULL):
        self.best, self.taken, self.scale = best, [], scale

    def record(self, spec):
        self.taken.append(spec)
        return {"loss": abs(np.log2(spec.lr / self.best)), "other": spec.lr}


@pytest.mark.parametrize("best", [1e-4, 8e-3, 1e-2, 0.3])
def test_the_best_rate_is_inside_the_three_that_are_told(best):
    runs = Valley(best)
    lr, around = rates_around(runs, Spec(seed=7), 1e-2)
    assert list(around)[1] == lr and around[lr] == min(around.values()) and 0.7 < lr / best < 1.42
    assert np.allclose(np.diff(np.log2(list(around))), 1, atol=1e-3)
    assert {spec.lr for spec in runs.taken if spec.seed == FULL.seeds[-1]} == set(around)  # on the way one seed leads
    few = Valley(best)
    assert rates_around(few, Spec(seed=7), 1e-2, first_alone=True) == (lr, around)
    assert {spec.seed for spec in few.taken} == {FULL.seeds[0]}
    assert rates_around(runs, Spec(), 1e-2, 3.0, lambda record: abs(np.log(record["other"] / 1e-2)))[0] == 1e-2


def test_a_rate_that_the_first_seed_alone_likes_is_not_chosen():
    """It is at the edge of what is stable: one seed comes through, and others do not."""
    runs = Valley(1e-2)
    usual = runs.record
    runs.record = lambda spec: {"loss": 9.0} if spec.seed > 0 and spec.lr > 9e-3 else usual(spec)
    assert rates_around(runs, Spec(), 1e-2, first_alone=True)[0] == 1e-2
    lr, around = rates_around(runs, Spec(), 1e-2)
    assert lr == 5e-3 and around == {2.5e-3: pytest.approx(2), 5e-3: pytest.approx(1), 1e-2: pytest.approx(6)}


def test_the_quick_form_takes_the_guess():
    runs = Valley(1e-2, QUICK)
    assert rates_around(runs, Spec(), 3e-3) == (3e-3, {3e-3: pytest.approx(np.log2(10 / 3))})
    assert len(runs.taken) == 1
