"""The frontier: what lies on it, what it says at a matched loss, and when a method is said to forget less."""

import pytest

from minilora.studies import frontier as f


def curve(*pairs):
    return {"step": list(range(len(pairs))), "loss": [new for new, _ in pairs], "old_loss": [old for _, old in pairs]}


RUN = curve((3.0, 1.0), (2.0, 1.5), (2.5, 1.6), (1.0, 4.0))


def test_the_envelope_holds_what_no_other_point_beats_on_both_texts():
    astray = curve((3.0, 1.0), (float("nan"), 0.5), (0.5, float("inf")))
    many = f.points([RUN, astray])
    assert len(many) == 7
    assert f.envelope(many) == [(1.0, 4.0), (2.0, 1.5), (3.0, 1.0)]  # least new loss first; (2.5, 1.6) is beaten
    assert f.envelope([(1.0, 2.0), (1.0, 1.0), (2.0, 1.0)]) == [(1.0, 1.0)]  # equal on one text
    assert f.envelope(f.points([RUN], ends=True)) == [(1.0, 4.0), (3.0, 1.0)]  # without stopping early


def test_the_old_loss_at_a_matched_new_one():
    frontier = f.envelope(f.points([RUN]))
    assert f.old_at(frontier, 2.5) == 1.25 and f.old_at(frontier, 1.0) == 4.0
    assert f.old_at(frontier, 3.5) == 1.0  # who reaches less than is asked for forgets no more
    assert f.old_at(frontier, 0.9) is None  # not reached


def seeds(*olds):
    """A frontier a seed from (3, 1) to (2, old)."""
    return [[(2.0, old), (3.0, 1.0)] for old in olds]


def test_two_methods_are_compared_where_both_get_with_every_seed():
    short = [[(2.5, 2.0), (3.0, 1.0)], [(2.4, 2.0), (3.0, 1.0)]]
    assert f.reach(short) == 2.5 and f.matches(short, seeds(2.0), 3.0) == pytest.approx(
        [2.8, 2.75, 2.7, 2.65, 2.6, 2.55, 2.5]
    )
    assert f.forgets(seeds(2.0, 3.0), 2.0) == {"old_loss": 2.5, "old_loss_spread": 0.5, "seeds": 2}
    assert f.olds(seeds(2.0, 3.0), 2.5) == [1.5, 2.0]
    with pytest.raises(ValueError, match=r"a loss of 2\.45 on the new text is not reached with every seed"):
        f.olds(short, 2.45)


def test_less_is_said_only_where_the_ranges_over_the_seeds_part():
    low, high, wide = seeds(1.4, 1.5), seeds(2.0, 2.2), seeds(1.3, 2.6)
    assert f.signs(low, high, 3.0) == [-1] * 7 and f.signs(high, low, 3.0) == [1] * 7
    assert f.signs(low, wide, 3.0) == [0] * 7
    assert f.sign(low, seeds(1.5, 9.0), 2.0) == 0 != f.sign(low, seeds(1.51, 9.0), 2.0)  # the ranges meet, or part
    found = {(-1, -1, -1, -1): -1, (0, 0, -1, -1): -1, (0, 0, 0, -1): 0, (-1, -1, 0, 1): 0, (0, 1, 1, 1): 1}
    assert {signs: f.verdict(signs) for signs in found} == found


def test_who_learns_more_at_its_best_rate_may_yet_forget_less_at_matched_loss():
    """The old wording's fault: full ends with more forgotten than LoRA, and lies below it everywhere."""
    full = [[(1.5, 5.0), (1.7, 1.7), (3.0, 1.0)]] * 2
    lora = [[(1.8, 3.0), (2.0, 1.6), (3.0, 1.0)]] * 2
    assert full[0][0][1] > lora[0][0][1]
    assert f.verdict(f.signs(lora, full, 3.0)) == 1
