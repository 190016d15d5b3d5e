"""What processes exchange is measured in real processes, and left out in one line where there is no MPI."""

import json
import sys

import numpy as np
import pytest
from mpi import needs_mpi

from minilora.bench import benchmark, exchange, figure, peers, report, rows
from minilora.commands.main import main
from minilora.training import together


def test_without_mpi_it_is_left_out_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    record = benchmark.bench(["tiny"], ["exchange"], [], turns=1)
    assert record["rows"] == []
    why = "MPI is not installed: pip install 'minilora[mpi]'"
    assert record["left_out"] == {"two processes at tiny": why, "exchange at tiny": why}
    monkeypatch.setitem(sys.modules, "mpi4py", sys)
    monkeypatch.setattr(exchange.shutil, "which", lambda *_, **__: None)
    record = benchmark.bench(["tiny"], ["exchange"], [], turns=1)
    assert "there is no mpiexec beside mpi4py" in record["left_out"]["exchange at tiny"]


def a_record(monkeypatch: pytest.MonkeyPatch) -> dict:
    """As if two and four processes had measured."""
    messages = [1e-5 + 1e-9 * n for n in exchange.SIZES]
    told = {"bytes": {"lora": 1000, "full": 64000}, "seconds": {"lora": [1.0, 2.0], "full": [4.0, 8.0]},
            "step": {"lora": 5.0, "full": 9.0}, "messages": messages}  # fmt: skip
    monkeypatch.setattr(exchange, "launcher", lambda: "mpiexec")
    runs = {"losses": [2.0, 1.0], "seconds": 3.0}
    monkeypatch.setattr(exchange, "fresh", lambda code, before=(): told if "measure" in code else runs)
    return benchmark.bench(["tiny"], ["exchange"], [], turns=2)


def test_the_rows_say_what_is_sent_how_long_it_takes_and_what_was_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    record = json.loads(json.dumps(a_record(monkeypatch)))
    told = [(r["what"], r["size"], r["ours"], r["theirs"], r["ratio"]) for r in record["rows"]]
    assert told == [
        (rows.TOGETHER, "tiny", 3.0, 3.0, 1.0),
        *((rows.SENT, f"tiny x {n}", 1000, 64000, 1 / 64) for n in (2, 4)),
        *((rows.EXCHANGED, f"tiny x {n}", 1.5, 6.0, 0.25) for n in (2, 4)),
        *((rows.ALLREDUCE, f"tiny x {n}", pytest.approx(1e-5), None, None) for n in (2, 4)),
    ]
    assert record["rows"][-1]["details"]["beta"] == pytest.approx(1e-9)
    assert max(map(len, report.table(record).splitlines())) <= 80


def test_two_processes_that_train_something_else_are_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "launcher", lambda: "mpiexec")
    told = {True: {"losses": [2.0, 1.0 + 2e-5], "seconds": 3.0}, False: {"losses": [2.0, 1.0], "seconds": 2.0}}
    monkeypatch.setattr(exchange, "fresh", lambda code, before=(): told[bool(before)])
    with pytest.raises(ArithmeticError, match="losses differ from one's by 2e-05"):
        exchange.together_rows("tiny", 2)
    told[True]["losses"][1] = 1.0 + 9e-6
    [row] = exchange.together_rows("tiny", 2)
    assert (row.ratio, row.bar, row.reached) == (1.5, 1.1, False)


def test_the_figure_draws_what_was_fitted(monkeypatch: pytest.MonkeyPatch, tmp_path, capsys) -> None:
    record = a_record(monkeypatch)
    drawn = figure.messages(record)
    assert drawn.get_suptitle() == "A LoRA step sends 64 times fewer bytes"
    assert "2 processes: 10.0 us and 1 GB/s" in drawn.get_label()
    lines = drawn.axes[0].lines
    np.testing.assert_allclose(lines[0].get_ydata(), lines[1].get_ydata())
    with pytest.raises(ValueError, match="no exchange between processes"):
        figure.messages({"rows": []})
    words = ["bench", "--parts", "exchange", "--sizes", "tiny", "--repeats", "2", "--figure", str(tmp_path / "a")]
    assert main(words) == 0 and (tmp_path / "a.svg").exists()


class Alone:
    """A world of one process."""

    def Allreduce(self, mine: np.ndarray, total: np.ndarray) -> None:
        total[...] = mine

    def Barrier(self) -> None:
        pass

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return 1


def test_a_step_sends_each_trained_number_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.SIZES, "tiny", (7, 8, 16, 2, 1, 2))
    timed = exchange.Timed(Alone())
    monkeypatch.setattr(together, "_world", [timed])
    told = exchange.steps(timed, "tiny", 2)
    for method in ("lora", "full"):
        trained = peers.Workload("tiny", method).model().parameters(trainable=True)
        assert told["bytes"][method] == 4 * (1 + len(trained) + sum(p.size for p in trained))
        assert len(told["seconds"][method]) == 2 and 0 < max(told["seconds"][method]) < told["step"][method] * 10
    assert 0 < exchange.messages(timed, 64, 2) < 1


@needs_mpi
@pytest.mark.slow
def test_two_processes_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mpi4py")
    monkeypatch.setattr(exchange, "PROCESSES", (2,))
    record = benchmark.bench(["tiny"], ["exchange"], [], turns=1)
    assert not record["left_out"] and [r["size"] for r in record["rows"]] == ["tiny", *["tiny x 2"] * 3]
    side_by_side, sent, _, fit = record["rows"]
    assert side_by_side["details"]["loss_difference"] <= 1e-5
    assert sent["ours"] == 4 * (1 + 8 + 8 * 8 * 64) and sent["theirs"] > 20 * sent["ours"]
    assert len(fit["details"]["seconds"]) == len(exchange.SIZES) and fit["details"]["beta"] > 0
