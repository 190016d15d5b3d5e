"""Turns: who is timed when, and what is told of it. The clock here moves only when a step is made."""

from types import SimpleNamespace

import numpy as np
import pytest

from minilora.studies import turns


class Clock:
    """A clock that only moves when a step is made, and a machine that gets slower with each step."""

    def __init__(self):
        self.now, self.steps = 0.0, []

    def contender(self, name, cost):
        def step():
            self.now += cost * (1 + len(self.steps))
            self.steps.append(name)

        return turns.Contender(name, step)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(turns, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_every_second_step_is_timed(clock):
    times = turns.take_turns([clock.contender("a", 1), clock.contender("b", 1)], turns=3)
    made = "".join(clock.steps)[4:]  # four steps before them to see how long one takes
    assert [sorted(made[i : i + 4]) for i in (0, 4, 8)] == [list("aabb")] * 3
    for name in "ab":
        assert times[name].tolist() == [5 + i for i, who in enumerate(made) if who == name][1::2]


def test_nobody_always_comes_after_the_same(clock):
    turns.take_turns([clock.contender(name, 1) for name in "abc"], turns=20)
    made = "".join(clock.steps)[6::2]
    assert {made[i - 1] for i in range(1, 60) if made[i] == "a"} == set("bc") | ({"a"} if "aa" in made else set())


def test_a_quick_step_is_repeated_and_told_by_the_step(clock, monkeypatch):
    monkeypatch.setattr(turns, "BLOCK", 0.05)
    monkeypatch.setattr(turns, "SETTLE", 0.01)
    cost = {"quick": 0.001, "long": 9.0}
    contenders = [turns.Contender(name, lambda c=c: setattr(clock, "now", clock.now + c)) for name, c in cost.items()]
    before = clock.now
    times = turns.take_turns(contenders, 1)
    assert times["quick"] == pytest.approx([0.001]) and times["long"] == pytest.approx([9])
    assert clock.now - before == pytest.approx(4 * 9 + (10 + 1 + 10 + 50) * 0.001, abs=2e-3)


def test_the_device_is_waited_for_before_the_clock_is_read(clock):
    def finish():
        clock.now += 5

    assert turns.seconds(turns.Contender("a", lambda: None, finish), 1) == 5


def test_the_ratio_is_the_median_of_ratios_not_the_ratio_of_medians():
    told = turns.ratio(np.array([1.0, 2.0, 30.0]), np.array([1.0, 4.0, 10.0]))
    assert told == {"ours": 2.0, "theirs": 4.0, "ratio": 1.0, "quartiles": [0.75, 2.0], "turns": 3}


def test_calls_take_turns_and_ratios_are_to_the_reference():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in ("base", "other")}
    summary = turns.beside(calls, "base", turns=3)
    assert len(order) == 8 and [set(order[i : i + 2]) for i in range(0, 8, 2)] == [{"base", "other"}] * 4
    assert summary["base"]["ratio"] == 1 and summary["base"]["ratio_spread"] == 0


def test_a_call_is_timed_alone_and_its_ratio_is_to_the_reference_of_its_turn(clock):
    """One step warms each up; after that the n-th step of all takes n seconds."""
    summary = turns.beside({n: clock.contender(n, 1).step for n in "ab"}, "a", turns=2)
    first, second = (dict(zip(clock.steps[i : i + 2], (i + 1, i + 2), strict=True)) for i in (2, 4))
    ratios = sorted(turn["b"] / turn["a"] for turn in (first, second))
    assert len(clock.steps) == 6 and summary["b"]["seconds"] == (first["b"] + second["b"]) / 2
    assert summary["b"]["ratio"] == pytest.approx(sum(ratios) / 2)
    assert summary["b"]["ratio_spread"] == pytest.approx((ratios[1] - ratios[0]) / 4)  # half of the middle half
