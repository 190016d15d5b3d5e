"""Pieces on a pool of threads: results in order, errors out, BLAS as it was."""

import itertools
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

import minilora as ml
from minilora.training import parallel
from minilora.training.parallel import RowsOf, blas_of_one_thread, cores, in_parallel, to_its_end


@pytest.fixture(scope="module", autouse=True)
def two_blas_threads():
    """More than the one that tests have elsewhere, so that there is something to be restored."""
    with threadpool_limits(2, "blas"):
        assert set(blas_threads()) == {2}
        yield


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


@pytest.mark.skipif(cores() < 2, reason="one processor: nothing to share")
def test_each_piece_is_computed_once():
    """Two threads at one iterator get some things twice and others never, where Python has no lock (3.14t)."""
    found = []
    assert in_parallel(lambda i: found.append(i) or i, [(i,) for i in range(20_000)]) == list(range(20_000))
    assert sorted(found) == list(range(20_000))


# BLAS, which belongs to the whole process


@pytest.mark.skipif(cores() < 2, reason="one processor: nothing to share")
def test_the_inner_of_two_calls_leaves_blas_to_the_outer():
    before = blas_threads()
    with blas_of_one_thread():
        with blas_of_one_thread():
            assert set(blas_threads()) == {1}
        in_parallel(lambda i: in_parallel(lambda j: j, [(0,), (1,)]), [(0,), (1,)])
        assert set(blas_threads()) == {1}
    assert blas_threads() == before


@pytest.mark.skipif(cores() < 2, reason="one processor: nothing to share")
def test_the_last_of_overlapping_calls_gives_blas_its_threads_back():
    """The first one out would set what it found, the second one what the first had set: one thread for good."""
    before = blas_threads()
    inside, go_on = [threading.Event(), threading.Event()], [threading.Event(), threading.Event()]

    def call(i):
        in_parallel(lambda j: (inside[i].set(), go_on[i].wait(10)), [(0,), (1,)])

    threads = [threading.Thread(target=call, args=(i,)) for i in range(2)]
    for i in range(2):
        threads[i].start()
        assert inside[i].wait(10)
    for i in range(2):  # the first in is the first out
        assert set(blas_threads()) == {1}
        go_on[i].set()
        threads[i].join(10)
    assert blas_threads() == before


def test_of_two_libraries_only_the_one_with_a_number_for_each_thread_gets_its_own_back_early(monkeypatch):
    class Library:
        def __init__(self, layer):
            self.threading_layer, self.num_threads = layer, 2

        def set_num_threads(self, number):
            self.num_threads = number

    found = [Library("pthreads"), Library("openmp")]
    monkeypatch.setattr(parallel, "_blas", lambda: found)
    monkeypatch.setattr(parallel, "_by_thread", lambda: True)
    with blas_of_one_thread():
        with blas_of_one_thread():
            assert [library.num_threads for library in found] == [1, 1]
        assert [library.num_threads for library in found] == [1, 2]
    assert [library.num_threads for library in found] == [2, 2]


@pytest.mark.skipif(cores() < 2, reason="one processor: nothing to share")
def test_many_calls_at_once_leave_blas_as_it_was():
    before = blas_threads()

    def train(seed):
        rng = np.random.default_rng(seed)
        for _ in range(20):
            in_parallel(time.sleep, [(rng.uniform(0, 2e-3),) for _ in range(3)])

    threads = [threading.Thread(target=train, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert blas_threads() == before


def test_what_a_context_says_holds_in_every_piece():
    """np.errstate and the like are of a context, which threads do not share by themselves."""
    meeting = threading.Barrier(min(cores(), 2))

    def state(i):
        meeting.wait(10)
        return np.geterr()["over"]

    with np.errstate(over="raise"):
        assert in_parallel(state, [(i,) for i in range(2)]) == ["raise"] * 2
        assert to_its_end(lambda: np.geterr()["over"]) == "raise"


# Processors


def cores_anew():
    parallel._threads.cache_clear()
    return parallel._processors.__wrapped__()


def test_cores_where_there_is_no_affinity(monkeypatch):
    """Only Linux says which processors a process may use."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert cores_anew() == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores_anew() == 1


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 4, 6}, raising=False)
    assert cores_anew() == 3


WITHOUT_THREADS = """
import _thread, numpy as np, minilora as ml

def refuse(*_): raise RuntimeError("can't start new thread")
_thread.start_new_thread = refuse
model = ml.GPT(ml.GPTConfig(11, 6, 1, 2, 8, dropout=0.1))
tokens = np.arange(24).reshape(4, 6) % 11
optimizer = ml.AdamW(model.parameters())
for _ in range(2):
    ml.train_step(model, optimizer, tokens, tokens, np.random.default_rng(0))
print(optimizer.steps, ml.training.parallel.cores())
"""


def test_where_no_thread_can_be_started_there_is_one_core():
    """As in Python compiled for a browser."""
    child = subprocess.run([sys.executable, "-c", WITHOUT_THREADS], capture_output=True, text=True, timeout=60)
    assert (child.stdout, child.stderr) == ("2 1\n", "")


FORKED = """
import os, numpy as np, minilora as ml, minilora.training.parallel as parallel

def step():
    model = ml.GPT(ml.GPTConfig(11, 6, 1, 2, 8))
    tokens = np.arange(24).reshape(4, 6) % 11
    return ml.train_step(model, ml.AdamW(model.parameters()), tokens, tokens)

loss = step()
child = os.fork()
if child == 0:
    os._exit(0 if step() == loss else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_trains_with_threads_of_its_own():
    """It has none of its parent's: to wait for one of them would be for ever."""
    child = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, timeout=60)
    assert (child.stdout, child.stderr) == ("0\n", "")


# Done or not begun


def test_an_interrupt_at_any_line_finds_the_work_done_or_not_begun(interrupted_at_every_line):
    counts = []

    def slow():
        counts[-1] += 1
        time.sleep(0.002)
        counts[-1] += 1

    for _ in interrupted_at_every_line(lambda: (counts.append(0), to_its_end(slow))):
        now = counts[-1]
        time.sleep(0.003)  # what was not begun must not begin now
        assert now == counts[-1]
        assert now in (0, 2)
    assert {0, 2} == set(counts)


@pytest.mark.skipif(cores() < 2, reason="one processor: nothing to share")
def test_interrupts_at_random_moments_leave_blas_as_it_was(interrupted_at_random):
    before, pieces = blas_threads(), [(0,), (1,), (2,)]
    for _ in interrupted_at_random(lambda: in_parallel(lambda i: i, pieces), 1000, 200e-6):
        assert blas_threads() == before
    assert in_parallel(lambda i: i, pieces) == [0, 1, 2]


def test_what_is_done_to_its_end_returns_and_raises():
    assert to_its_end(lambda: 7) == 7
    with pytest.raises(KeyError, match="seven"):
        to_its_end(lambda: {}["seven"])
    assert in_parallel(lambda i: to_its_end(lambda: i), [(0,), (1,), (2,)]) == [0, 1, 2]
    assert to_its_end(lambda: to_its_end(lambda: 7)) == 7


# The rows of a batch


@given(
    st.integers(0, 2**63 - 1),
    st.integers(1, 9),
    st.lists(st.integers(0, 9), max_size=4),
    st.lists(
        st.tuples(st.lists(st.integers(0, 5), max_size=3), st.sampled_from(["float32", "float64"]), st.booleans())
    ),
)
def test_any_cut_of_a_batch_draws_what_the_whole_one_does(seed, total, cuts, draws):
    """Of any shape, an odd number of entries or none; several draws one after another; rows alone, or rows by T."""
    bounds = sorted({0, total, *(cut for cut in cuts if cut < total)})
    pieces = [(start, stop) for start, stop in itertools.pairwise(bounds)]

    def all_draws(pieces):
        rngs = [RowsOf([seed, 1], start, stop - start) for start, stop in pieces]
        return [
            np.concatenate([rng.random(((2 if flat else 1) * rng.rows, *shape), dtype) for rng in rngs])
            for shape, dtype, flat in draws
        ]

    for cut, whole in zip(all_draws(pieces), all_draws([(0, total)]), strict=True):
        np.testing.assert_array_equal(cut, whole)


def test_rows_draw_uniform_numbers_that_differ():
    for dtype, shape in (("float32", (4, 3, 333)), ("float64", (4, 1000))):
        rng = RowsOf([3, 4], 2, 4)
        drawn = np.stack([rng.random(shape, dtype).reshape(4, -1) for _ in range(5)])  # (5, 4, 1000)
        assert drawn.dtype == dtype
        assert len(np.unique(drawn)) > 0.99 * drawn.size
        assert abs(drawn.mean() - 0.5) < 0.01
        assert ((drawn >= 0) & (drawn < 1)).all()
        sure = np.corrcoef(drawn.reshape(20, -1))
        assert np.abs(sure - np.eye(20)).max() < 0.15  # no row repeats another, nor a draw the one before


def test_what_belongs_to_no_row_is_shared_or_of_the_piece():
    one, other = RowsOf([5, 6], 0, 4), RowsOf([5, 6], 4, 4)
    assert one.shared.random() == other.shared.random()
    assert one.normal() != other.normal()
    assert one.random() != other.random()
    assert (one.random((3, 5)) != other.random((3, 5))).all()  # three are no rows of a piece of four
    assert isinstance(one, np.random.Generator)


@pytest.mark.parametrize("total", [1, 5, 16])
def test_whole_batch_is_drawn_by_pcg64_one_row_after_another(total):
    """Nothing but NumPy's own stream: float32 takes half a draw of 64 bits, and a row begins with a whole one."""
    stream = np.random.Generator(np.random.PCG64([7, 8]))
    whole = stream.random((total, 6), "float32")
    np.testing.assert_array_equal(RowsOf([7, 8], 0, total).random((total, 6), "float32"), whole)
    if total > 2:
        np.testing.assert_array_equal(RowsOf([7, 8], 2, total - 2).random((total - 2, 6), "float32"), whole[2:])


def test_a_thread_that_comes_too_late_does_not_end_the_waiting_for_another(monkeypatch):
    """Two threads beside ours: one computes the last piece, the other was busy and finds nothing left."""
    monkeypatch.setattr(parallel, "cores", lambda: 3)
    jobs, busy, free, last = parallel._jobs(2, in_parallel), threading.Event(), threading.Event(), threading.Event()
    jobs.put(lambda: (busy.set(), free.wait(10)))
    assert busy.wait(10)

    theirs = []

    def piece(i):
        if threading.current_thread() is threading.main_thread():
            assert last.wait(10)  # until the other thread has the last piece
            return i
        theirs.append(i)
        if len(theirs) == 2:
            last.set()
            time.sleep(0.1)  # while ours begins to wait
            free.set()
            time.sleep(0.1)  # while the late thread finds nothing
        return i

    assert in_parallel(piece, [(0,), (1,), (2,)]) == [0, 1, 2]
    assert len(theirs) == 2
