"""Processes that train together: each its rows, one sum of gradients, and the curve of one process."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from mpi import MPIEXEC, needs_mpi

import minilora as ml
from minilora.training import together
from minilora.training.backward import loss_and_gradients
from minilora.training.checkpoint import load_checkpoint


class World:
    """One of several processes, played one after the other: what the others sent is there already."""

    def __init__(self, rank: int, size: int, sent: list[np.ndarray]):
        self.rank, self.size, self.sent = rank, size, sent

    def Get_rank(self) -> int:
        return self.rank

    def Get_size(self) -> int:
        return self.size

    def Allreduce(self, mine: np.ndarray, total: np.ndarray) -> None:
        self.sent.append(mine)
        total[...] = np.sum(self.sent, axis=0)


@pytest.mark.parametrize(("rows", "size"), [(5, 2), (5, 3), (2, 4)])
def test_the_processes_gradients_add_up_to_the_batchs(rows: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ml.add_lora(ml.GPT(ml.GPTConfig(11, 8, 1, 2, 4, dropout=0.5)).astype("float64"), ml.LoRAConfig(rank=2))
    tokens = np.random.default_rng(0).integers(11, size=(rows, 8))
    targets = np.where(tokens % 3, tokens, -100)  # the rows have unequal numbers of targets that count
    parameters = [p for p in model.parameters() if p.requires_grad]
    alone = loss_and_gradients(model, parameters, tokens, targets, np.random.default_rng(1))
    sent: list[np.ndarray] = []
    for rank in reversed(range(size)):  # the last one has rows
        monkeypatch.setattr(together, "_world", [World(rank, size, sent)])
        loss, gradients = loss_and_gradients(model, parameters, tokens, targets, np.random.default_rng(1))
    assert loss == pytest.approx(alone[0], rel=1e-12)
    for g, wanted in zip(gradients, alone[1], strict=True):
        np.testing.assert_allclose(g, wanted, rtol=1e-10, atol=1e-14)


def test_a_parameter_that_no_process_reaches_stays_unreached() -> None:
    a, b = (ml.Tensor(np.ones(2, "float32"), requires_grad=True) for _ in range(2))
    flat = together.flatten(1.5, [np.array([1, 2], "float32"), None], [a, b])
    assert flat.dtype == np.float32 and flat.size == 1 + 2 + 4  # each trained number once
    loss, (g, none) = together.unflatten(flat, [a, b])
    assert loss == 1.5 and g.tolist() == [1, 2] and none is None


def finetune(n: int, folder: Path, *words: str) -> subprocess.Popen:
    before: Sequence[str] = [str(MPIEXEC), "-n", str(n)] if n > 1 else []
    line = [*before, sys.executable, "-m", "minilora", "finetune", *words]
    return subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def done(process: subprocess.Popen) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=240)
    return process.returncode, out, error


@needs_mpi
@pytest.mark.slow
def test_three_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    common = ("--batch", "5", "--steps", "4", "--rank", "2", "--lora-dropout", "0.3")
    curves = {}
    for n in (1, 3):
        code, out, error = done(finetune(n, tmp_path, *common, "--output", f"{n}.npz", "--checkpoint", f"{n}.ck.npz"))
        assert (code, error) == (0, "") and out.count("saved  ") == 1, (out, error)
        curves[n] = load_checkpoint(tmp_path / f"{n}.ck.npz")
    assert np.abs(np.subtract(curves[1].history["loss"], curves[3].history["loss"])).max() <= 1e-5
    mine, theirs = (ml.delta_weights(ml.load_adapter(ml.load_model("base"), tmp_path / f"{n}.npz")) for n in (1, 3))
    for name, delta in mine.items():
        np.testing.assert_allclose(theirs[name], delta, atol=1e-4)


@needs_mpi
@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    pytest.importorskip("mpi4py")
    process = finetune(2, tmp_path, "--batch", "2", "--steps", "100000", "--checkpoint-every", "1",
                       "--checkpoint", "kept.npz")  # fmt: skip
    started = time.monotonic()
    while not (tmp_path / "kept.npz").exists() and time.monotonic() < started + 120:
        time.sleep(0.1)
    ranks = [p for p in psutil.Process(process.pid).children(recursive=True) if "finetune" in p.cmdline()]
    ranks[-1].send_signal(signal.SIGKILL)
    code, out, error = done(process)
    assert code not in (0, None) and "terminat" in (out + error).lower()
    assert load_checkpoint(tmp_path / "kept.npz").step >= 1


@needs_mpi
@pytest.mark.slow
def test_what_is_wrong_is_said_once_and_ends_all(tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    code, _, error = done(finetune(2, tmp_path, "--corpus", "absent"))
    assert code == 2 and error.count("no corpus and no file 'absent'") == 1


def test_without_mpi4py_several_processes_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from minilora.commands.main import main

    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert main(["finetune", "--steps", "1"]) == 2
    assert capsys.readouterr().err == ('minilora: error: several processes need MPI: pip install "minilora[mpi]"\n')
