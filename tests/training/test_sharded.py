"""Moments that are shared out over processes: AdamW's bits, the n-th of its memory, and checkpoints for any number."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mpi import MPIEXEC, needs_mpi

import minilora as ml
from minilora.training import together
from minilora.training.checkpoint import load_checkpoint
from minilora.training.optim import AdamW
from minilora.training.sharded import ShardedAdamW


class World:
    """One of several processes, played from the last to the first: the shares of those played before are there."""

    def __init__(self, rank: int, size: int, lines: dict[tuple, np.ndarray]):
        self.rank, self.size, self.lines, self.calls = rank, size, lines, 0

    def Get_rank(self) -> int:
        return self.rank

    def Get_size(self) -> int:
        return self.size

    def Allgatherv(self, own: np.ndarray, receive: list) -> None:
        whole, counts = receive
        assert counts[self.rank] == own.size and sum(counts) == whole.size
        self.Gatherv(own, receive)

    def Gatherv(self, own: np.ndarray, receive: list | None) -> None:
        self.calls += 1
        line = self.lines.setdefault((self.calls, self.rank), own.copy())
        assert line.dtype.itemsize >= 4  # MPI knows no shorter floats
        if receive is not None:
            parts = [self.lines.get((self.calls, rank), np.full(n, np.nan)) for rank, n in enumerate(receive[1])]
            receive[0][...] = np.concatenate(parts)


SHAPES = {"wide": (3, 50), "one": (1,), "none": (0, 4), "long": (101,), "turned": (7, 5)}


def parameters(dtypes: tuple = ("float32",)) -> list[ml.Tensor]:
    rng = np.random.default_rng(0)
    drawn = [rng.normal(size=shape).astype(dtypes[i % len(dtypes)]) for i, shape in enumerate(SHAPES.values())]
    drawn[-1] = np.asfortranarray(drawn[-1])
    return [ml.Tensor(array, requires_grad=True) for array in drawn]


@pytest.mark.parametrize("dtypes", [("float32",), ("float64", "float32"), ("float16",)])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_each_process_steps_its_share_to_adamws_bits(size: int, dtypes: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    every = [[rng.normal(size=p.shape).astype(p.dtype) for p in parameters(dtypes)] for _ in range(3)]
    every[1][3] = None  # not reached in the second step
    plain = AdamW(parameters(dtypes), 0.1)
    for gradients in every[:2]:
        plain.step(gradients)
    before, values = plain.state_dict(), [p.data.copy() for p in plain.parameters]
    plain.step(every[2])
    lines: dict[tuple, np.ndarray] = {}
    held = []
    for rank in reversed(range(size)):
        monkeypatch.setattr(together, "_world", [World(rank, size, lines)] if size > 1 else [])
        optimizer = ShardedAdamW(parameters(dtypes), 0.1)
        for p, value in zip(optimizer.parameters, values, strict=True):
            p.data[...] = value
        optimizer.load_state_dict(before)
        optimizer.step([np.asfortranarray(g) for g in every[2]])
        held.append(sum(a.size for a in optimizer.state["m"]))
        if size > 1:
            with pytest.raises(ValueError, match=r"^ShardedAdamW.state_dict: each process has a share; call gather"):
                optimizer.state_dict()
            optimizer.gather()
    for p, wanted in zip(optimizer.parameters, plain.parameters, strict=True):
        np.testing.assert_array_equal(p.data, wanted.data)
    state, expected = optimizer.state_dict(), plain.state_dict()
    assert list(state) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(state[name], array)
        assert np.asarray(state[name]).dtype == np.asarray(array).dtype and np.shape(state[name]) == np.shape(array)
    assert sum(held) == 287 and max(held) - min(held) <= 1  # of two moments each


def test_another_step_needs_another_gathering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "_world", [World(0, 2, {})])
    optimizer = ShardedAdamW(parameters(), 0.1)
    optimizer.step([np.ones(p.shape, "float32") for p in optimizer.parameters])
    optimizer.gather()
    kept = optimizer.state_dict()
    optimizer.step([np.ones(p.shape, "float32") for p in optimizer.parameters])
    with pytest.raises(ValueError, match="call gather"):
        optimizer.state_dict()
    assert kept["steps"] == 1
    optimizer.load_state_dict(kept)
    with pytest.raises(ValueError, match="call gather"):
        optimizer.state_dict()


WORKER = """
import json, sys
from pathlib import Path
import minilora as ml
from minilora.training.checkpoint import load_checkpoint
from minilora.training.together import together

steps, shard, start, end = int(sys.argv[1]), sys.argv[2] == "shard", sys.argv[3], sys.argv[4]
corpus = ml.load_corpus("unicode-names")
with together() as rank:
    if start == "new":
        settings = ml.Settings(steps=steps, batch_size=6, shard=shard, warmup=0, floor=1.0, evaluation_windows=2)
        run = ml.Run(ml.add_lora(ml.GPT(ml.GPTConfig(96, 16, 1, 2, 16)), ml.LoRAConfig(rank=3)), corpus, settings)
    else:
        run = load_checkpoint(start, corpus)
        run.settings.steps = steps
    ml.train(run, None if rank else end, progress=False)
    bytes = sum(a.nbytes for kept in run.optimizer.state.values() for a in kept)
    trained = sum(p.nbytes for p in run.optimizer.parameters)
    Path(f"{rank}.json").write_text(json.dumps(bytes / trained))
"""


def trained(n: int, folder: Path, *words: str) -> dict[int, float]:
    """Moments' bytes over the trained numbers' bytes, in each process."""
    line = [str(MPIEXEC), "-n", str(n), sys.executable, "-c", WORKER, *words]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return {rank: json.loads((folder / f"{rank}.json").read_text()) for rank in range(n)}


@needs_mpi
@pytest.mark.slow
def test_two_share_what_three_and_then_one_go_on_with(tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    assert trained(2, tmp_path, "3", "shard", "new", "two.npz") == {0: 1, 1: 1}  # 2 moments, halved
    thirds = trained(3, tmp_path, "6", "shard", "two.npz", "three.npz")
    assert all(abs(share - 2 / 3) < 0.01 for share in thirds.values())
    trained(2, tmp_path, "6", "shard", "new", "shared.npz")
    trained(2, tmp_path, "6", "whole", "new", "plain.npz")
    corpus = ml.load_corpus("unicode-names")
    three, shared, plain = (load_checkpoint(tmp_path / f"{name}.npz", corpus) for name in ("three", "shared", "plain"))
    assert shared.history == plain.history  # bit for bit, on as many processes
    for p, q in zip(shared.model.parameters(), plain.model.parameters(), strict=True):
        np.testing.assert_array_equal(p.data, q.data)
    for name, array in plain.optimizer.state_dict().items():
        np.testing.assert_array_equal(shared.optimizer.state_dict()[name], array)
    assert np.abs(np.subtract(three.history["loss"], plain.history["loss"])).max() <= 1e-5
    three.settings.steps = 7  # and one process alone
    assert ml.train(three, progress=False).step == 7


@pytest.mark.slow
def test_the_command_shares_and_its_checkpoint_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from minilora.commands.main import main

    words = ["finetune", "--shard", "--steps", "1", "--batch", "1", "--rank", "1", "--targets", "q_proj"]
    assert main([*words, "--checkpoint", str(tmp_path / "a.npz"), "--output", str(tmp_path / "b.npz")]) == 0
    run = load_checkpoint(tmp_path / "a.npz")
    assert run.settings.shard is True and isinstance(run.optimizer, ShardedAdamW)
