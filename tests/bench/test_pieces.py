"""Pieces and threads: every pair that can be is timed, threads change no bit, and the model's terms are found again."""

import sys

import numpy as np
import pytest

from minilora.bench import peers, pieces
from minilora.bench.peers import Workload
from minilora.training import backward, parallel, processes


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(peers.SIZES, "tiny", (7, 8, 16, 2, 1, 4))
    monkeypatch.setattr(pieces, "PIECES", (1, 2, 4, 8))
    monkeypatch.setattr(pieces, "THREADS", (1, 2, 4))
    for place in (backward, parallel, processes):
        monkeypatch.setattr(place, "cores", lambda: 2)


def test_the_pairs_that_are_timed_and_the_cores_that_are_modelled(small):
    found = pieces.cores_rows("tiny", 2)
    pairs = [(r.details["pieces"], r.details["threads"]) for r in found if "threads" in r.details]
    assert pairs == [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)]  # four rows are no eight pieces
    assert found[0].ratio == 1.0 and all(r.details["difference"] < 1e-5 for r in found[: len(pairs)])
    processes_there = ["2 on 2 processes"] * (sys.platform == "linux")
    assert [r.against for r in found[len(pairs) :]] == [*processes_there, "1 core", "2 cores", "4 cores"]
    terms = found[-1].details
    assert found[-1].ours == pytest.approx(terms["alone"] + terms["shared"] / 4 + 4 * terms["piece"])


def test_threads_are_as_many_as_asked_for_and_then_as_before(small):
    before = backward.cores, parallel.cores
    with pieces.on_threads(5):
        assert backward.cores() == parallel.cores() == 5
    assert (backward.cores, parallel.cores) == before


def test_threads_that_change_a_bit_are_no_fair_comparison(small, monkeypatch):
    calls = iter(range(100))
    monkeypatch.setattr(pieces, "loss_and_gradients", lambda *_, **__: (0.0, [np.array([1.0 + next(calls)])]))
    with pytest.raises(ArithmeticError, match="2 pieces are others on another number of threads"):
        pieces.difference(Workload("tiny", "lora"), 2, 2)


@pytest.mark.parametrize("terms", [(0.3, 2.0, 0.1), (0.0, 2.0, 0.1), (0.3, 2.0, 0.0), (0.5, 0.0, 0.0)])
def test_the_terms_of_the_model_are_found_again_and_none_is_below_zero(terms):
    told = {(k, p): pieces.modelled(terms, k, p) for k in (1, 2, 4, 8) for p in (1, 2) if p <= k}
    assert pieces.fitted(told) == pytest.approx(terms, abs=1e-9)
    told = {(k, p): seconds + (0.5 if p == 2 else 0) for (k, p), seconds in told.items()}  # two threads are slower
    assert min(pieces.fitted(told)) >= 0
