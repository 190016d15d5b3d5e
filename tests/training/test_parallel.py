"""Pieces on a pool of threads: results in order, errors out, BLAS as it was."""

import threading
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_info

import minilora as ml
from minilora.training.parallel import cores, in_parallel


def blas_threads() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def test_results_come_in_the_order_of_the_pieces():
    def slow_first(i):
        time.sleep(0.02 if i == 0 else 0)
        return i * i

    assert in_parallel(slow_first, [(i,) for i in range(9)]) == [i * i for i in range(9)]
    assert in_parallel(lambda a, b: a - b, [(5, 3)]) == [2]
    assert in_parallel(slow_first, []) == []


@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_an_exception_reaches_the_caller(pieces):
    def fail(i):
        if i == pieces - 1:
            raise KeyError(f"piece {i}")
        return i

    before = blas_threads()
    with pytest.raises(KeyError, match=f"piece {pieces - 1}"):
        in_parallel(fail, [(i,) for i in range(pieces)])
    assert blas_threads() == before
    assert in_parallel(lambda i: i, [(1,), (2,)]) == [1, 2]  # and the pool works on


def test_after_an_error_nobody_begins_another_piece():
    begun = []

    def fail(i):
        begun.append(i)
        time.sleep(0.02)
        raise KeyError(i)

    with pytest.raises(KeyError):
        in_parallel(fail, [(i,) for i in range(100)])
    assert len(begun) <= cores()


def test_pieces_inside_pieces():
    """Each waits for what has begun, not for threads that wait for it."""
    inner = lambda i: in_parallel(lambda j: 10 * i + j, [(0,), (1,)])
    done = []
    thread = threading.Thread(target=lambda: done.extend(in_parallel(inner, [(i,) for i in range(4)])), daemon=True)
    thread.start()
    thread.join(10)
    assert done == [[0, 1], [10, 11], [20, 21], [30, 31]]


def test_blas_threads_are_restored():
    before = blas_threads()
    assert before
    in_parallel(lambda i: np.ones((50, 50)) @ np.ones((50, 50)), [(i,) for i in range(4)])
    assert blas_threads() == before


@pytest.mark.skipif(cores() < 2, reason="one processor: nothing to share")
def test_there_is_more_than_one_thread_at_work():
    """Two pieces that wait for each other finish only if they run at the same time."""
    meeting = threading.Barrier(2)
    names = in_parallel(lambda i: (meeting.wait(10), threading.current_thread().name)[1], [(0,), (1,)])
    assert len(set(names)) == 2


def test_16_losses_over_shared_parameters_have_the_bits_of_one_after_another():
    model = ml.GPT(ml.GPTConfig(11, 6, 2, 2, 8))
    tokens = np.random.default_rng(0).integers(0, 11, (16, 2, 6))
    gradients = lambda i: ml.grad(model.loss(tokens[i], tokens[i]), model.parameters())
    one_by_one = [gradients(i) for i in range(16)]
    for together, alone in zip(in_parallel(gradients, [(i,) for i in range(16)]), one_by_one, strict=True):
        for g, expected in zip(together, alone, strict=True):
            np.testing.assert_array_equal(g, expected)
