"""Processes that compute pieces: the bits are the threads', whatever happens to the model or to them."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest

import minilora as ml
from minilora.autograd import ops
from minilora.nn.diffusion import DiT, DiTConfig
from minilora.training import backward, parallel, processes
from minilora.training.backward import loss_and_gradients
from minilora.training.diffusion import diffusion_step
from minilora.training.processes import Team

LOCKED = getattr(sys, "_is_gil_enabled", lambda: True)()
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone"),
    pytest.mark.skipif(not LOCKED, reason="this Python has no lock: threads wait for nobody"),
]
LORA = ml.LoRAConfig(rank=2, target_modules="*")


@pytest.fixture(autouse=True)
def cores(monkeypatch):
    """Three cores, and processes from the second step on."""
    for place in (backward, parallel, processes):
        monkeypatch.setattr(place, "cores", lambda: 3)
    monkeypatch.setattr(processes, "SETTLED", 1)
    others[:] = multiprocessing.active_children()
    yield
    gc.collect()
    assert not ours()  # none outlives its team


others: list = []  # what other tests have started


def ours():
    """The processes that this test has started."""
    return [process for process in multiprocessing.active_children() if process not in others]


def batch(b, t=12, rng=0):
    tokens = np.random.default_rng(rng).integers(0, 96, (b, t + 1))
    return tokens[:, :-1], tokens[:, 1:]


@pytest.fixture
def computed_here(monkeypatch):
    """How many pieces this process has computed itself."""
    pieces, function = [], backward.gradients_of
    monkeypatch.setattr(backward, "gradients_of", lambda *given: pieces.append(None) or function(*given))
    return pieces


def same(found, expected):
    assert found[0] == expected[0]
    for g, e in zip(found[1], expected[1], strict=True):
        assert (g is None) == (e is None) and (g is None or np.array_equal(g, e))


def steps(model, count, team=True, rows=7, rng=None):
    """The losses of some steps, and the parameters after them."""
    optimizer = ml.AdamW(model.parameters(), 0.01)
    together = Team(model, optimizer.parameters) if team else None
    losses = []
    for i in range(count):
        if together is None:
            losses.append(ml.train_step(model, optimizer, *batch(rows, rng=i), rng))
        else:
            with together:
                losses.append(ml.train_step(model, optimizer, *batch(rows, rng=i), rng))
    return losses, [p.data.tobytes() for p in model.parameters()]


# The same bits


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("lora", [None, LORA])
def test_processes_give_the_bits_of_threads(make_model, lora, dropout, computed_here):
    rng = lambda: np.random.default_rng(3) if dropout else None
    expected = steps(make_model(dropout=dropout, lora=lora), 5, team=False, rng=rng())
    computed_here.clear()
    assert steps(make_model(dropout=dropout, lora=lora), 5, rng=rng()) == expected
    assert len(computed_here) == 3 + 4  # three pieces at the first step, then the first piece of three


def test_a_model_of_pictures_and_its_step(computed_here):
    def trained(team):
        model = DiT(DiTConfig(image_size=8, n_layer=1, n_head=2, n_embd=8, classes=3))
        optimizer, rng = ml.AdamW(model.parameters(), 0.01), np.random.default_rng(0)
        images, classes = rng.standard_normal((6, 8, 8), "float32"), rng.integers(3, size=6)
        together = Team(model, optimizer.parameters if team else [])  # of other parameters: threads
        losses = []
        for _ in range(4):
            with together:
                losses.append(diffusion_step(model, optimizer, images, classes, rng))
        return losses, [p.data.tobytes() for p in model.parameters()]

    expected = trained(False)
    computed_here.clear()
    assert trained(True) == expected and len(computed_here) == 3 + 3


def test_train_lets_processes_work_and_ends_them(make_model, corpus, computed_here):
    def history(able):
        processes.LARGEST = 1 << 24 if able else 1
        settings = ml.Settings(steps=6, batch_size=6, evaluate_every=3, evaluation_windows=2, checkpoint_every=9)
        return ml.train(ml.Run(make_model(lora=LORA), corpus, settings), progress=False).history

    before = processes.LARGEST
    try:
        expected = history(False)
        computed_here.clear()
        assert history(True) == expected and len(computed_here) == 3 + 5
    finally:
        processes.LARGEST = before
    assert not ours()


# The model changes


def test_whatever_is_done_to_the_model_processes_compute_with_it(make_model, computed_here):
    """Values are written anew, whoever changed them; after any other change other processes are forked."""
    model = make_model(lora=LORA)
    parameters = [p for p in model.parameters() if p.requires_grad]
    team, frozen = Team(model, parameters), model.blocks[0].mlp.up_proj

    def check(forked=True):
        for i in range(3):
            with team:
                found = loss_and_gradients(model, parameters, *batch(6, rng=i))
            same(found, loss_and_gradients(model, parameters, *batch(6, rng=i)))
        assert bool(team.links) == forked

    check()
    pids = {p.pid for p in ours()}
    frozen.weight.data[:] *= 2  # unsaid
    frozen.weight.data = frozen.weight.data + 1
    parameters[0].data -= 1
    check()
    assert {p.pid for p in ours()} == pids
    frozen.lora_A.requires_grad = False
    check()
    assert not pids & {p.pid for p in ours()}
    model.blocks[1].attn.q_proj.scale = 3.0
    check()
    model.note = lambda: "of somebody's own"  # what this does to the loss cannot be told
    check(forked=False)


def test_a_switched_off_adapter_is_off_in_all_pieces(make_model):
    model = make_model(lora=LORA)
    parameters = [p for p in model.parameters() if p.requires_grad]
    with Team(model, parameters):
        for _ in range(3):
            loss_and_gradients(model, parameters, *batch(6))
        with ml.lora_disabled(model), pytest.raises(ValueError, match="no trainable parameter"):
            loss_and_gradients(model, parameters, *batch(6))
        ml.merge_lora(model)
        with pytest.raises(ValueError, match="no trainable parameter"):
            loss_and_gradients(model, parameters, *batch(6))


# What the first piece does not reach


def test_gradients_that_only_others_have_are_the_callers_to_keep(make_model):
    model = make_model()
    parameters, (tokens, targets) = model.parameters(), batch(6)
    targets = np.where(np.arange(6)[:, None] < 2, -100, targets)  # none of the first piece's counts
    with Team(model, parameters):
        for _ in range(3):
            found = loss_and_gradients(model, parameters, tokens, targets)
        kept = [g.copy() for g in found[1]]
        loss_and_gradients(model, parameters, tokens[::-1], targets)
        assert all(np.array_equal(g, k) for g, k in zip(found[1], kept, strict=True))
    same(found, loss_and_gradients(model, parameters, tokens, targets))


# Trouble


def forked(model, parameters):
    """A team at work: its processes stand."""
    team = Team(model, parameters)
    with team:
        for _ in range(2):
            loss_and_gradients(model, parameters, *batch(6))
    assert len(team.links) == 2 == len(ours())
    return team


def test_a_process_that_is_killed_loses_nothing(make_model):
    model = make_model()
    parameters = model.parameters()
    team, expected = forked(model, parameters), loss_and_gradients(model, parameters, *batch(6))
    os.kill(ours()[0].pid, signal.SIGKILL)
    with team:
        for _ in range(4):
            same(loss_and_gradients(model, parameters, *batch(6)), expected)
    assert not team.able and not ours()


def test_a_process_that_hangs_is_not_waited_for(make_model, monkeypatch):
    model = make_model()
    parameters = model.parameters()
    team, expected = forked(model, parameters), loss_and_gradients(model, parameters, *batch(6))
    monkeypatch.setattr(processes, "PATIENCE", 0.05)
    os.kill(ours()[-1].pid, signal.SIGSTOP)
    with team:
        same(loss_and_gradients(model, parameters, *batch(6)), expected)
    assert not team.able and not ours()


def test_a_lock_that_another_thread_holds_at_the_fork(make_model):
    """That thread is not in the fork to give it back."""
    model = make_model()
    parameters, held, done = model.parameters(), threading.Event(), threading.Event()

    def hold():
        with parallel._lock:
            held.set()
            done.wait()

    with Team(model, parameters) as team:
        loss_and_gradients(model, parameters, *batch(6))
        thread, lock = threading.Thread(target=hold), parallel._lock
        thread.start()
        held.wait()
        team._ready(2)
        done.set()
        thread.join()
        assert parallel._lock is lock
        found = loss_and_gradients(model, parameters, *batch(6))
        assert team.able and len(team.links) == 2
    same(found, loss_and_gradients(model, parameters, *batch(6)))


def test_a_team_at_work_in_a_thread(make_model):
    found, model = [], make_model()
    parameters = model.parameters()

    def work():
        with Team(model, parameters) as team:
            found.extend(loss_and_gradients(model, parameters, *batch(6)) for _ in range(3))
            assert len(team.links) == 2

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(found) == 3
    same(found[2], loss_and_gradients(model, parameters, *batch(6)))


def test_ctrl_c_is_the_first_processes_alone(make_model, monkeypatch):
    model = make_model()
    parameters = model.parameters()
    team, expected = forked(model, parameters), loss_and_gradients(model, parameters, *batch(6))
    pids = [p.pid for p in ours()]
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    with team:
        same(loss_and_gradients(model, parameters, *batch(6)), expected)
    assert {p.pid for p in ours()} == {*pids}

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), team:
        patch.setattr(backward, "gradients_of", interrupted)
        loss_and_gradients(model, parameters, *batch(6))
    assert not ours()
    with team:  # and on
        for i in range(3):
            same(
                loss_and_gradients(model, parameters, *batch(6, rng=i)),
                loss_and_gradients(model, parameters, *batch(6, rng=i)),
            )
    assert team.links


def test_ctrl_c_at_any_time_leaves_right_gradients_and_no_process_too_many(make_model, interrupted_at_random):
    model = make_model()
    parameters = model.parameters()
    team, expected = Team(model, parameters), loss_and_gradients(model, parameters, *batch(6))

    def three_steps():
        with team:
            for _ in range(3):
                loss_and_gradients(model, parameters, *batch(6, rng=1))

    for _ in interrupted_at_random(three_steps, 30, 0.05):
        assert len(ours()) <= 2
        with team:
            same(loss_and_gradients(model, parameters, *batch(6)), expected)


@pytest.mark.parametrize("trouble", [ValueError, RuntimeWarning])
def test_an_error_or_a_warning_is_seen_as_with_threads(make_model, trouble, monkeypatch):
    """A piece that fails in a process is computed once more here."""
    model, loss = make_model(), ml.GPT.loss

    def failing(self, tokens, targets, *more):
        if tokens[0, 0] == 95:
            if trouble is ValueError:
                raise ValueError("no such token")
            warnings.warn("a large number", RuntimeWarning, stacklevel=1)
        return loss(self, tokens, targets, *more)

    monkeypatch.setattr(ml.GPT, "loss", failing)
    parameters, (tokens, targets) = model.parameters(), batch(6)
    tokens[tokens == 95] = 0
    with Team(model, parameters):
        for _ in range(3):
            loss_and_gradients(model, parameters, tokens, targets)
        tokens[4, 0] = 95  # in the last piece
        seen = pytest.raises(ValueError, match="no such") if trouble is ValueError else pytest.warns(trouble)
        with seen:
            loss_and_gradients(model, parameters, tokens, targets)
        tokens[4, 0] = 1
        found = [loss_and_gradients(model, parameters, tokens, targets) for _ in range(3)]
    for one in found:
        same(one, loss_and_gradients(model, parameters, tokens, targets))


def test_where_python_has_no_lock_threads_compute(monkeypatch):
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    model = ml.GPT(ml.GPTConfig(96, 12, 1, 2, 16))
    optimizer = ml.AdamW(model.parameters())
    with Team(model, optimizer.parameters) as team:
        for _ in range(3):
            ml.train_step(model, optimizer, *batch(6))
        assert not team.links and not ours()


def test_processes_end_when_their_parent_is_killed(tmp_path):
    code = """
import multiprocessing, os, signal, numpy as np, minilora as ml
from minilora.training import backward, parallel, processes
for place in (backward, parallel, processes):
    place.cores = lambda: 3
model = ml.GPT(ml.GPTConfig(96, 12, 1, 2, 16))
optimizer = ml.AdamW(model.parameters())
tokens = np.zeros((6, 12), int)
with processes.Team(model, optimizer.parameters):
    for _ in range(12):
        ml.train_step(model, optimizer, tokens, tokens)
    print(*[p.pid for p in multiprocessing.active_children()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == -signal.SIGKILL, told.stderr
    pids = [int(pid) for pid in told.stdout.split()]
    assert len(pids) == 2
    until = time.monotonic() + 20
    while (left := [pid for pid in pids if lives(pid)]) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left


def lives(pid):
    """Whether a process is there, and has not ended unnoticed: not everybody's first process notices."""
    try:
        with open(f"/proc/{pid}/status") as file:
            return "State:\tZ" not in file.read()
    except OSError:
        return False


# Where threads do the work


@pytest.mark.parametrize(
    "why",
    [
        "too large",
        "too much beside numbers",
        "more pieces than cores",
        "too many pieces",
        "one row",
        "a function",
        "several at once",
    ],
)
def test_where_there_are_no_processes(make_model, why, monkeypatch, computed_here):
    model, rows, pieces = make_model(), 6, None
    if why == "too large":
        monkeypatch.setattr(processes, "LARGEST", 10_000)
    if why == "too much beside numbers":
        model.tokenizer = {str(i): i for i in range(20_000)}
    if why == "more pieces than cores":
        pieces = 4
    if why == "too many pieces":
        monkeypatch.setattr(processes, "MOST", 2)
    if why == "one row":
        rows = 1
    if why == "a function":
        model.blocks[0].mlp.hook = lambda x: x
    if why == "several at once":  # that mpiexec has started
        monkeypatch.setenv("PMI_SIZE", "2")
    parameters = model.parameters()
    with Team(model, parameters) as team:
        for _ in range(4):
            found = loss_and_gradients(model, parameters, *batch(rows), pieces=pieces)
        assert not team.links and not ours()
    assert len(computed_here) == 4 * min(rows, pieces or 3)
    same(found, loss_and_gradients(model, parameters, *batch(rows), pieces=pieces))


def test_a_long_text_is_shared_by_threads(make_model, monkeypatch):
    monkeypatch.setattr(backward, "LONG", 8)
    model = make_model()
    with Team(model, model.parameters()) as team:
        for _ in range(3):
            loss_and_gradients(model, team.parameters, *batch(6))
        assert not team.links


def test_shared_arrays_are_apart_and_aligned():
    arrays = [np.ones(3, "float32"), np.ones((2, 5)), np.ones(0, "float16"), np.ones((), "float32")]
    shared = processes.shared_like(arrays)
    for a, b in zip(shared, arrays, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype) and not a.any() and a.flags.writeable
        assert a.ctypes.data % processes.ALIGNED == 0
    for i, a in enumerate(shared):
        a[...] = i + 1
    assert [np.unique(a).tolist() for a in shared] == [[1], [2], [], [4]]
    assert ops.add(shared[0], 1).data.tolist() == [2, 2, 2]
